"""Messages: a ragged batch of typed fields, one row per worker, with its exact size in bytes.

A row is its fields' bits one after another, padded with zeros to whole bytes. What the receiver knows beforehand is
the schema; bytes and schema are all that `unpack` gets.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from laconic.wire import bits
from laconic.wire.coding import Coding, Malformed


@dataclass(frozen=True)
class CountIn:
    """A number of codes that the message itself says, in an earlier slot with one code per row."""

    slot: int
    most: int


@dataclass(frozen=True)
class Slot:
    """What a receiver knows of one field: its coding, the dtype of its codes, and how many there are per row."""

    coding: Coding
    dtype: torch.dtype
    count: int | np.ndarray | CountIn


Schema = tuple[Slot, ...]


@dataclass(frozen=True)
class Message:
    """The codes of every field, flat, all rows one after another."""

    schema: Schema
    codes: tuple[Tensor, ...]
    rows: int

    @functools.cached_property
    def offsets(self) -> tuple[np.ndarray, ...]:
        """Per field, where each row's codes begin and end, int64 of shape (rows + 1,)."""
        return tuple(_offsets(slot, self.rows, self.codes) for slot in self.schema)

    @functools.cached_property
    def bits(self) -> np.ndarray:
        """The bits of each row, int64 of shape (rows,), found without encoding."""
        total = np.zeros(self.rows, dtype=np.int64)
        for place, (slot, codes) in enumerate(zip(self.schema, self.codes, strict=True)):
            known = slot.coding.fixed(np.asarray(slot.count)) if isinstance(slot.count, int) else None
            if known is not None:
                total += known
            else:
                slot.coding.measure(_patterns(codes), self.offsets[place], total)
        return total

    @functools.cached_property
    def nbytes(self) -> np.ndarray:
        """The bytes of each row, int64 of shape (rows,): the length of what `pack` makes of it, or that came."""
        return (self.bits + 7) >> 3

    def at(self, low: int, high: int) -> Message:
        """The message of rows low..high-1."""
        schema = tuple(
            Slot(s.coding, s.dtype, s.count[low:high] if isinstance(s.count, np.ndarray) else s.count)
            for s in self.schema
        )
        pairs = zip(self.codes, self.offsets, strict=True)
        return Message(schema, tuple(codes[offsets[low] : offsets[high]] for codes, offsets in pairs), high - low)

    def pack(self) -> np.ndarray:
        """The bytes of all rows one after another, uint8 of shape (nbytes.sum(),)."""
        sizes = (self.bits + 7) >> 3
        ends = np.cumsum(sizes)
        total = int(ends[-1]) if self.rows else 0
        buffer = bits.zeros(total)
        cursor = 8 * (ends - sizes)
        for slot, codes, offsets in zip(self.schema, self.codes, self.offsets, strict=True):
            slot.coding.write(_patterns(codes), offsets, buffer, cursor)
        return buffer[:total]

    @staticmethod
    def unpack(buffer: np.ndarray, lengths: np.ndarray, schema: Schema) -> Message:
        """The message in `buffer`, whose rows have the given lengths in bytes.

        Raises Malformed where lengths, counts, indices or padding cannot be right. Trusts nothing.
        """
        rows = len(lengths)
        wrong = (lengths < 0) | (lengths > len(buffer))  # each by itself: a sum of huge ones may come out right
        if wrong.any():
            raise Malformed(f"row {np.argmax(wrong)} of {lengths[wrong][0]} bytes in a buffer of {len(buffer)}")
        lengths = lengths.astype(np.int64)
        if lengths.sum() != len(buffer):
            raise Malformed(f"rows of {lengths.sum()} bytes in a buffer of {len(buffer)}")
        ends = 8 * np.cumsum(lengths)
        cursor, data = ends - 8 * lengths, bits.stream(buffer)
        codes: list[Tensor] = []
        for place, slot in enumerate(schema):
            try:
                raw = slot.coding.read(_offsets(slot, rows, codes), data, cursor, ends)
            except Malformed as error:
                raise Malformed(f"field {place}, {slot.coding}: {error}") from None
            codes.append(_as_dtype(raw, slot.dtype))
        _refuse_rest(buffer, ends, ends - cursor)
        message = Message(schema, tuple(codes), rows)
        vars(message)["nbytes"] = lengths  # known, so that nobody measures the codes for it
        return message


def fixed_lengths(schema: Schema, rows: int) -> np.ndarray | None:
    """The bytes of each row where they follow from the schema, int64 of shape (rows,), else None."""
    total = np.zeros(rows, dtype=np.int64)
    for slot in schema:
        if isinstance(slot.count, CountIn):
            return None
        part = slot.coding.fixed(np.asarray(slot.count))
        if part is None:
            return None
        total += part
    return (total + 7) >> 3


def _refuse_rest(buffer: np.ndarray, ends: np.ndarray, slack: np.ndarray) -> None:
    """Raises Malformed where the bits behind the last field of a row are more than 7, or not zero."""
    if (slack > 7).any():
        row = int(np.argmax(slack > 7))
        raise Malformed(f"row {row} is {slack[row] >> 3} bytes longer than its fields")
    rows = slack.nonzero()[0]
    dirty = buffer[(ends[rows] >> 3) - 1] >> (8 - slack[rows]).astype(np.uint8)
    if dirty.any():
        raise Malformed(f"the padding of row {rows[np.argmax(dirty > 0)]} is not zero")


def _offsets(slot: Slot, rows: int, codes: Sequence[Tensor]) -> np.ndarray:
    """Where the codes of each row begin and end, int64 of shape (rows + 1,)."""
    if isinstance(slot.count, int):
        return np.arange(rows + 1, dtype=np.int64) * slot.count
    counts = slot.count if isinstance(slot.count, np.ndarray) else _said(slot.count, codes)
    return np.concatenate([[0], np.cumsum(counts)])


def _said(number: CountIn, codes: Sequence[Tensor]) -> np.ndarray:
    """The numbers that the messages say. Raises Malformed where they cannot be right."""
    counts = codes[number.slot].numpy().astype(np.int64)
    wrong = (counts < 0) | (counts > number.most)
    if wrong.any():
        row, said = int(np.argmax(wrong)), f"which field {number.slot} says"
        raise Malformed(f"the count {counts[row]} of row {row}, {said}, is not in 0..{number.most}")
    return counts


def _patterns(codes: Tensor) -> np.ndarray:
    """Codes as NumPy integers; floats, bfloat16 among them, as their bit patterns."""
    if codes.dtype.is_floating_point:
        codes = codes.view({2: torch.int16, 4: torch.int32, 8: torch.int64}[codes.element_size()])
    return codes.numpy()


def _as_dtype(raw: np.ndarray, dtype: torch.dtype) -> Tensor:
    """Codes as read in the dtype the compressor gave them: bit patterns, not values."""
    unsigned = raw.view(f"u{raw.itemsize}").astype(f"u{dtype.itemsize}", copy=False)
    return torch.from_numpy(unsigned.view(f"i{dtype.itemsize}")).view(dtype)
