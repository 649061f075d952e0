"""Hostile bytes: messages to damage, ways to damage them, and the judge who compares `unpack` with the plain reader."""

from __future__ import annotations

import functools
import warnings
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

import plain_reader
from laconic.core.compressor import Compressor
from laconic.core.keys import Keys
from laconic.core.message import CountIn, Message, Schema, Slot
from laconic.core.registry import catalogue
from laconic.core.spec import example, parse
from laconic.wire.coding import Bits, Malformed, Subset
from laconic.wire.levels import Levels

SHAPES = ((1,), (2,), (3,), (7,), (40,), (300,), (8, 5), (20, 15))
DTYPES = {"float64": torch.float64, "float32": torch.float32, "bfloat16": torch.bfloat16}
FURTHER = (
    "topk(k=0.3) | qsgd", "threshold(t=0.5) | int8", "relative_threshold(t=0.9) | natural", "blocks(terngrad, size=16)",
    "blocks(threshold(t=0.5), size=16)", "mean_of(toplek(k=0.2), copies=2)", "induced(relative_threshold(t=0.5), qsgd)",
    "qsgd(levels=127)", "qsgd(levels=1, bucket=16)", "linf_dithering(levels=2)", "topk(k=0.3)", "toplek(k=0.9)",
)  # fmt: skip


def specs() -> list[str]:
    """Every compressor of the catalogue, and combinations whose fields depend on one another."""
    return [example(cls) for cls in catalogue().of_kind("compressor")] + list(FURTHER)


class Subject(ABC):
    """Something that messages are read for, by its schema: `rows` of them at a time."""

    rows: int

    @property
    @abstractmethod
    def schema(self) -> Schema:
        """What the receiver knows."""

    @abstractmethod
    def valid(self, seed: int) -> Message:
        """A message as an honest sender makes it."""

    @abstractmethod
    def use(self, message: Message) -> None:
        """What the receiver does with a message that was read."""


@functools.cache
def _compressor(spec: str) -> Compressor:
    compressor = parse(spec)
    assert isinstance(compressor, Compressor)
    return compressor


@dataclass(frozen=True)
class Vectors(Subject):
    """Vectors of a shape and dtype through a compressor, one per worker; worker r of the batch is number r + 1."""

    spec: str
    shape: tuple[int, ...]
    dtype: str
    rows: int

    @property
    def keys(self) -> Keys:
        return Keys(3, 5, "/mechanism/up0", np.arange(1, self.rows + 1), 4)

    @property
    def schema(self) -> Schema:
        return _compressor(self.spec).schema(self.shape, DTYPES[self.dtype], self.keys)

    def valid(self, seed: int) -> Message:
        rng = np.random.default_rng(seed)
        v = rng.standard_normal((self.rows, *self.shape)) ** (1, 3)[seed % 2]
        v[rng.random(v.shape) < (0.0, 0.9, 0.3)[seed % 3]] = 0.0
        return _compressor(self.spec).message(torch.from_numpy(v).to(DTYPES[self.dtype]), self.keys)

    def use(self, message: Message) -> None:
        dtype = DTYPES[self.dtype]
        dense = _compressor(self.spec).decode(message, self.shape, dtype, self.keys).dense()
        if dense.shape != (self.rows, *self.shape) or dense.dtype != dtype:
            raise AssertionError(f"decoded to {dense.dtype} of shape {tuple(dense.shape)}")


@dataclass(frozen=True)
class Fields(Subject):
    """Up to `most` levels of a row, as many as an earlier field says, of an alphabet; then where they stand."""

    size: int
    most: int
    rows: int

    @property
    def schema(self) -> Schema:
        number = CountIn(1, self.most)
        levels = torch.uint8 if self.size <= 256 else torch.int16
        return (
            Slot(Bits(3), torch.uint8, np.arange(self.rows) % 3),
            Slot(Bits(1 + self.most.bit_length()), torch.int32, 1),
            Slot(Levels(self.size), levels, number),
            Slot(Subset(self.most), torch.int64, number),
        )

    def valid(self, seed: int) -> Message:
        rng = np.random.default_rng(seed)
        counts = rng.integers(0, self.most + 1, self.rows)
        levels = np.minimum(rng.geometric((0.995, 0.6, 0.1)[seed % 3], counts.sum()) - 1, self.size - 1)
        places = [np.sort(rng.choice(self.most, count, replace=False)) for count in counts]
        lead = rng.integers(0, 8, int((np.arange(self.rows) % 3).sum()))
        flat = (lead, counts, levels, np.concatenate(places))
        pairs = zip(self.schema, flat, strict=True)
        return Message(self.schema, tuple(torch.from_numpy(codes).to(slot.dtype) for slot, codes in pairs), self.rows)

    def use(self, message: Message) -> None:
        if any(int(offsets[-1]) != len(codes) for offsets, codes in zip(message.offsets, message.codes, strict=True)):
            raise AssertionError("offsets that are not those of the codes")


@dataclass(frozen=True)
class Row(Subject):
    """n levels in one row, and nothing else."""

    size: int
    n: int
    rows: int = 1

    @property
    def schema(self) -> Schema:
        return (Slot(Levels(self.size), torch.uint8 if self.size <= 256 else torch.int16, self.n),)

    def valid(self, seed: int) -> Message:
        rng = np.random.default_rng(seed)
        levels = np.minimum(rng.geometric((0.995, 0.6, 0.1)[seed % 3], self.n) - 1, self.size - 1)
        return Message(self.schema, (torch.from_numpy(levels).to(self.schema[0].dtype),), 1)

    def use(self, message: Message) -> None:
        if len(message.codes[0]) != self.n:
            raise AssertionError("another number of codes")

    def escaped(self, rng: np.random.Generator) -> bytes:
        """Behind the escape of docs/wire.md any bits, the rarer kind of them as rare as can be."""
        width, words = plain_reader.group(self.size, self.n)
        escape, width = (1, 1) if words == 1 << width else (words, width)
        bits = rng.random(8 * int(rng.integers(1, 60))) < rng.choice((0.03, 0.2, 0.5, 0.8, 0.97))
        number = escape | int.from_bytes(np.packbits(bits, bitorder="little").tobytes(), "little") << width
        return number.to_bytes((width + len(bits) + 7) // 8, "little")


# ---- damage ----------------------------------------------------------------------------------------------------------

Bytes = tuple[bytes, tuple[int, ...]]  # of all rows one after another, and the length of each
HUGE = (-1, -(2**63), 2**63 - 1, 2**62, 2**61, 2**32, 2**31)


@functools.lru_cache(maxsize=4096)
def honest(subject: Subject, seed: int) -> tuple[bytes, ...]:
    """The rows of a valid message."""
    message = subject.valid(seed)
    data, ends = message.pack().tobytes(), np.cumsum(message.nbytes)
    return tuple(data[end - length : end] for end, length in zip(ends, message.nbytes, strict=True))


def _joined(rows: Sequence[bytes]) -> Bytes:
    return b"".join(rows), tuple(map(len, rows))


def truncated(rows: Sequence[bytes], other: Sequence[bytes], rng: np.random.Generator) -> Bytes:
    row = int(rng.integers(len(rows)))
    kept = int(rng.integers(0, max(1, len(rows[row]))))
    return _joined([*rows[:row], rows[row][:kept], *rows[row + 1 :]])


def extended(rows: Sequence[bytes], other: Sequence[bytes], rng: np.random.Generator) -> Bytes:
    row, more = int(rng.integers(len(rows))), int(rng.integers(1, 20))
    tail = bytes(more) if rng.random() < 0.5 else rng.bytes(more)
    return _joined([*rows[:row], rows[row] + tail, *rows[row + 1 :]])


def noise(rows: Sequence[bytes], other: Sequence[bytes], rng: np.random.Generator) -> Bytes:
    """Random bytes in the place of all, or behind the first few."""
    kept = int(rng.integers(0, 9)) if rng.random() < 0.5 else 0
    return _joined([row[:kept] + rng.bytes(max(0, len(row) - kept)) for row in rows])


def flipped(rows: Sequence[bytes], other: Sequence[bytes], rng: np.random.Generator) -> Bytes:
    """A few bits, as often as not among the first."""
    data, lengths = _joined(rows)
    damaged = np.frombuffer(data, dtype=np.uint8).copy()
    for _ in range(rng.integers(1, 5) if len(data) else 0):
        begin, length = 0, len(data)
        if rng.random() < 0.5:
            row = int(rng.integers(len(rows)))
            begin, length = sum(lengths[:row]), min(8, lengths[row])
        if length:
            damaged[begin + rng.integers(length)] ^= np.uint8(1 << rng.integers(8))
    return damaged.tobytes(), lengths


def spliced(rows: Sequence[bytes], other: Sequence[bytes], rng: np.random.Generator) -> Bytes:
    """The beginning of one message and the end of another one, at bytes of their own or at the same."""
    out = []
    for mine, its in zip(rows, other, strict=True):
        cut = int(rng.integers(len(mine) + 1))
        out.append(mine[:cut] + its[cut if rng.random() < 0.5 else int(rng.integers(len(its) + 1)) :])
    return _joined(out)


def misled(rows: Sequence[bytes], other: Sequence[bytes], rng: np.random.Generator) -> Bytes:
    """Right bytes with lengths that are wrong: moved, negative, huge, or huge with a sum that comes out right."""
    data, lengths = _joined(rows)
    wrong, row = list(lengths), int(rng.integers(len(rows)))
    other_row = (row + 1) % len(rows)
    by = int(rng.choice(HUGE)) if rng.random() < 0.5 else int(rng.integers(1, 9))
    wrong[row] = by if rng.random() < 0.5 else max(-(2**63), min(2**63 - 1, wrong[row] + by))
    if rng.random() < 0.5 and other_row != row:
        wrong[other_row] = max(-(2**63), min(2**63 - 1, lengths[row] + lengths[other_row] - wrong[row]))
    return data, tuple(wrong)


def untouched(rows: Sequence[bytes], other: Sequence[bytes], rng: np.random.Generator) -> Bytes:
    return _joined(rows)


DAMAGES = (truncated, extended, noise, flipped, spliced, misled, untouched)


# ---- the judge -------------------------------------------------------------------------------------------------------


def judge(subject: Subject, data: bytes, lengths: Sequence[int]) -> str:
    """Why the bytes are refused; nothing where they are read, decoded, and the same to both readers.

    Raises AssertionError where the readers differ; whatever else is raised is a defect too.
    """
    schema = subject.schema
    try:
        expected: list[list[list[int]]] | plain_reader.Refused = plain_reader.read(data, lengths, schema)
    except plain_reader.Refused as refusal:
        expected = refusal
    try:
        message = Message.unpack(np.frombuffer(data, dtype=np.uint8), np.array(lengths, dtype=np.int64), schema)
    except Malformed as refusal:
        return _same_refusal(str(refusal), expected, schema)
    if isinstance(expected, plain_reader.Refused):
        raise AssertionError(f"read, where the page refuses field {expected.field}: {expected}")
    for place, (codes, rows) in enumerate(zip(message.codes, expected, strict=True)):
        if _unsigned(codes) != [code for row in rows for code in row]:
            raise AssertionError(f"other codes than the page says in field {place}, {schema[place].coding}")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        try:
            subject.use(message)
        except Malformed as refusal:
            return f"decode: {refusal}"
    return ""


def _same_refusal(said: str, expected: object, schema: Schema) -> str:
    if not isinstance(expected, plain_reader.Refused):
        raise AssertionError(f"refused, where the page reads it: {said}")
    if expected.field is None:
        if not said.startswith(("row ", "rows of ", "the padding of row ")):
            raise AssertionError(f"{said!r} does not say which row it is")
    elif not said.startswith(f"field {expected.field}, {schema[expected.field].coding}: ") or " row " not in said:
        raise AssertionError(f"{said!r} names another field or no row, it is field {expected.field}: {expected}")
    return said


def _unsigned(codes: torch.Tensor) -> list[int]:
    patterns = codes.view({1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[codes.element_size()]).numpy()
    return patterns.view(f"u{patterns.itemsize}").tolist()
