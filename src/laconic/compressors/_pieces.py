"""A vector in pieces, each compressed by itself: equal blocks as rows of one batch, and the rest one by one."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from laconic.compressors._parts import joined, separated
from laconic.core.compressor import Compressor, Decoded, Dense, Sparse
from laconic.core.keys import SERVER, SHARED, Keys
from laconic.core.message import CountIn, Message, Schema, Slot
from laconic.wire.coding import Malformed, Subset

ADDRESSES = SERVER  # worker numbers below this one are free for cells


@dataclass(frozen=True)
class Piece:
    """`count` blocks of `size` coordinates from `begin` on, with an address for every block of every row."""

    begin: int
    size: int
    count: int
    keys: Keys


def cells(keys: Keys, name: str, begin: int, size: int, count: int) -> Iterator[Piece]:
    """Blocks whose draws are addressed by one number made of worker and block; more than fit go to further streams."""
    parties = keys.n + 2
    most = ADDRESSES // parties
    special = np.where(keys.workers == SERVER, keys.n, np.where(keys.workers == SHARED, keys.n + 1, keys.workers))
    for part, low in enumerate(range(0, count, most)):
        blocks = np.arange(min(most, count - low))
        numbers = (special[:, None] + parties * blocks).reshape(-1)
        own = Keys(keys.seed, keys.step, f"{keys.stream}/{name}{part}", numbers, keys.n)
        yield Piece(begin + low * size, size, len(blocks), own)


def schema_of(compressor: Compressor, pieces: Sequence[Piece], dtype: torch.dtype) -> Schema:
    """The fields of the pieces one after another, those of blocks of one batch together."""
    return joined(_schema(compressor, piece, dtype) for piece in pieces)


def codes_of(compressor: Compressor, pieces: Sequence[Piece], v: Tensor) -> tuple[Tensor, ...]:
    """The codes of the pieces of v (rows, *shape)."""
    rows = v.shape[0]
    flat = v.reshape(rows, math.prod(v.shape[1:]))
    found: list[Tensor] = []
    for piece in pieces:
        part = flat[:, piece.begin : piece.begin + piece.count * piece.size]
        codes = compressor.codes(part.reshape(rows * piece.count, piece.size), piece.keys)
        schema = compressor.schema((piece.size,), v.dtype, piece.keys)
        shifts = _shifts(schema, piece, Message(schema, codes, rows * piece.count))
        found += [code if shift is None else code + shift for code, shift in zip(codes, shifts, strict=True)]
    return tuple(found)


def decode_of(
    compressor: Compressor, pieces: Sequence[Piece], message: Message, shape: tuple[int, ...], dtype: torch.dtype
) -> Decoded:
    """What the messages of all pieces mean together."""
    schemas = [_schema(compressor, piece, dtype) for piece in pieces]
    parts = []
    for piece, own in zip(pieces, separated(message, schemas), strict=True):
        schema = compressor.schema((piece.size,), dtype, piece.keys)
        inner = Message(schema, own.codes, message.rows * piece.count)
        codes = tuple(
            code if shift is None else _local(code - shift, slot)
            for code, shift, slot in zip(own.codes, _shifts(schema, piece, inner), schema, strict=True)
        )
        heard = Message(schema, codes, inner.rows)
        parts.append(compressor.decode(heard, (piece.size,), dtype, piece.keys))
    sparse = [part for part in parts if isinstance(part, Sparse)]
    if len(sparse) == len(parts):
        return _merged(sparse, pieces, message.rows, shape)
    flat = [
        part.dense().reshape(message.rows, piece.count * piece.size) for part, piece in zip(parts, pieces, strict=True)
    ]
    return Dense(torch.cat(flat, 1).view(message.rows, *shape))


def _schema(compressor: Compressor, piece: Piece, dtype: torch.dtype) -> Schema:
    """The fields of one piece, a row of the message being `count` rows of the batch."""
    schema = compressor.schema((piece.size,), dtype, piece.keys)
    return schema if piece.count == 1 else tuple(_together(slot, piece.count) for slot in schema)


def _together(slot: Slot, blocks: int) -> Slot:
    """One field of a batch's `blocks` rows at a time. Subsets of the blocks are one subset of them all."""
    coding = Subset(slot.coding.size * blocks) if isinstance(slot.coding, Subset) else slot.coding
    if isinstance(slot.count, np.ndarray):
        return Slot(coding, slot.dtype, slot.count.reshape(-1, blocks).sum(1))
    if isinstance(slot.count, int):
        return Slot(coding, slot.dtype, slot.count * blocks)
    raise TypeError("a field that the message counts cannot be that of several blocks at once")


def _shifts(schema: Schema, piece: Piece, inner: Message) -> list[Tensor | None]:
    """What is added to the codes of each field of a batch: where their block begins, for subsets."""
    return [
        _begins(slot.coding.size, piece, inner.offsets[place])
        if isinstance(slot.coding, Subset) and piece.count > 1
        else None
        for place, slot in enumerate(schema)
    ]


def _begins(size: int, piece: Piece, offsets: np.ndarray) -> Tensor:
    blocks = np.arange(len(offsets) - 1) % piece.count
    return torch.from_numpy(np.repeat(blocks * size, np.diff(offsets)))


def _local(codes: Tensor, slot: Slot) -> Tensor:
    assert isinstance(slot.coding, Subset)
    if torch.any((codes < 0) | (codes >= slot.coding.size)):
        raise Malformed(f"a block of {slot.coding.size} coordinates has another number of indices than it must have")
    return codes


def _merged(parts: Sequence[Sparse], pieces: Sequence[Piece], rows: int, shape: tuple[int, ...]) -> Sparse:
    moved = [
        part.indices + _begins(piece.size, piece, part.offsets) + piece.begin
        for part, piece in zip(parts, pieces, strict=True)
    ]
    ends = [part.offsets[:: piece.count] for part, piece in zip(parts, pieces, strict=True)]
    if len(parts) == 1:
        return Sparse(moved[0], parts[0].values, np.ascontiguousarray(ends[0]), shape)
    sizes = np.array([np.diff(end) for end in ends]).reshape(len(parts), rows)
    places = np.cumsum(sizes.T.reshape(-1)).reshape(rows, len(parts)).T - sizes  # of each part in each row
    total = int(sizes.sum())
    indices, values = torch.empty(total, dtype=torch.int64), torch.empty(total, dtype=parts[0].values.dtype)
    for part, own, end, place in zip(parts, moved, ends, places, strict=True):
        where = torch.from_numpy(np.repeat(place - end[:-1], np.diff(end)) + np.arange(end[-1]))
        indices[where], values[where] = own, part.values
    offsets = np.zeros(rows + 1, dtype=np.int64)
    np.cumsum(sizes.sum(0), out=offsets[1:])
    return Sparse(indices, values, offsets, shape)


class _JointError(Exception):
    """A compressor asked for what several workers have in common."""


class _Alone(Keys):
    """Addresses that do not say what workers have in common: shared draws, and how many workers there are."""

    def __getattribute__(self, name: str) -> object:
        if name in ("shared", "n"):
            raise _JointError
        return super().__getattribute__(name)

    def at(self, rows: Sequence[int] | np.ndarray) -> Keys:
        return _Alone(self.seed, self.step, self.stream, self.workers[rows], 1)

    def scope(self, name: str) -> Keys:
        return _Alone(self.seed, self.step, f"{self.stream}/{name}", self.workers, 1)


@functools.lru_cache(maxsize=256)
def independent(compressor: Compressor, size: int) -> bool:
    """Whether rows are compressed without a look at other workers, in fields whose numbers of codes follow from seeds.

    Found by trying: such a compressor works with addresses that know nothing else.
    """
    shape, keys = (min(size, 16),), _Alone(0, 0, "", np.zeros(1, dtype=np.int64), 1)
    try:
        schema = compressor.schema(shape, torch.float32, keys)
        codes = compressor.codes(torch.ones(1, *shape), keys)
        compressor.decode(Message(schema, codes, 1), shape, torch.float32, keys).dense()
    except _JointError:
        return False
    return not any(isinstance(slot.count, CountIn) for slot in schema)
