"""Messages: a ragged batch of typed fields, one row per worker, with its exact size in bytes.

A row is its fields' bits one after another, padded with zeros to whole bytes. What the receiver knows beforehand is
the schema; bytes and schema are all that `unpack` gets.
"""

from __future__ import annotations

import functools
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
        return tuple(_offsets(_counts(slot, self.rows, self.codes)) for slot in self.schema)

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

    @property
    def nbytes(self) -> np.ndarray:
        """The bytes of each row, int64 of shape (rows,): the length of what `pack` makes of it."""
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
        ends = np.cumsum(self.nbytes)
        total = int(ends[-1]) if self.rows else 0
        buffer = bits.zeros(total)
        cursor = 8 * (ends - self.nbytes)
        for slot, codes, offsets in zip(self.schema, self.codes, self.offsets, strict=True):
            slot.coding.write(_patterns(codes), offsets, buffer, cursor)
        return buffer[:total]

    @staticmethod
    def unpack(buffer: np.ndarray, lengths: np.ndarray, schema: Schema) -> Message:
        """The message in `buffer`, whose rows have the given lengths in bytes.

        Raises Malformed where lengths, counts, indices or padding cannot be right. Trusts nothing.
        """
        rows = len(lengths)
        if np.any(lengths < 0) or int(lengths.sum()) != len(buffer):
            raise Malformed(f"rows of {int(lengths.sum())} bytes in a buffer of {len(buffer)}")
        ends = 8 * np.cumsum(lengths)
        cursor, data = ends - 8 * lengths, bits.stream(buffer)
        codes: list[Tensor] = []
        for slot in schema:
            counts = _counts(slot, rows, codes)
            raw = slot.coding.read(_offsets(counts), data, cursor, ends)
            codes.append(_as_dtype(raw, slot.dtype))
        slack = ends - cursor
        if np.any((slack < 0) | (slack > 7)):
            raise Malformed("a row is longer than its fields")
        last = buffer[(ends[slack > 0] >> 3) - 1]
        if np.any(last >> (8 - slack[slack > 0]).astype(np.uint8)):
            raise Malformed("the padding of a row is not zero")
        return Message(schema, tuple(codes), rows)


def fixed_lengths(schema: Schema, rows: int) -> np.ndarray | None:
    """The bytes of each row where they follow from the schema, int64 of shape (rows,), else None."""
    total = np.zeros(rows, dtype=np.int64)
    for slot in schema:
        if isinstance(slot.count, CountIn):
            return None
        part = slot.coding.fixed(_counts(slot, rows, ()))
        if part is None:
            return None
        total += part
    return (total + 7) >> 3


def _counts(slot: Slot, rows: int, codes: tuple[Tensor, ...] | list[Tensor]) -> np.ndarray:
    if isinstance(slot.count, CountIn):
        counts = codes[slot.count.slot].numpy().astype(np.int64)
        if np.any((counts < 0) | (counts > slot.count.most)):
            raise Malformed(f"a count is not in 0..{slot.count.most}")
        return counts
    return slot.count if isinstance(slot.count, np.ndarray) else np.full(rows, slot.count, dtype=np.int64)


def _offsets(counts: np.ndarray) -> np.ndarray:
    offsets = np.zeros(len(counts) + 1, dtype=np.int64)
    np.cumsum(counts, out=offsets[1:])
    return offsets


def _patterns(codes: Tensor) -> np.ndarray:
    """Codes as NumPy integers; floats, bfloat16 among them, as their bit patterns."""
    if codes.dtype.is_floating_point:
        codes = codes.view({2: torch.int16, 4: torch.int32, 8: torch.int64}[codes.element_size()])
    return codes.numpy()


def _as_dtype(raw: np.ndarray, dtype: torch.dtype) -> Tensor:
    """Codes as read in the dtype the compressor gave them: bit patterns, not values."""
    unsigned = raw.view(f"u{raw.itemsize}").astype(f"u{dtype.itemsize}", copy=False)
    return torch.from_numpy(unsigned.view(f"i{dtype.itemsize}")).view(dtype)
