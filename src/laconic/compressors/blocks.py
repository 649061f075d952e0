"""Blocks and per-tensor: a compressor on every part of a vector by itself."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from torch import Tensor

from laconic.compressors._parts import take_pure, worst
from laconic.compressors._pieces import Piece, cells, codes_of, decode_of, independent, schema_of
from laconic.core.compressor import Claim, Compressor, Decoded
from laconic.core.entry import Count, Range, Source
from laconic.core.keys import Keys
from laconic.core.message import Message, Schema

_LAYOUT_OF_BLOCKS = (
    "the fields of the inner message, each with the codes of all full blocks in order (indices as one subset of all"
    " their coordinates), then the inner message of the shorter last block"
)


@dataclass(frozen=True)
class Sizes(Range):
    """A tuple of integers of at least 1, perhaps empty."""

    def holds(self, value: Any) -> bool:
        return isinstance(value, tuple) and all(type(size) is int and size >= 1 for size in value)

    def examples_outside(self) -> tuple[Any, ...]:
        return (7, "many", [3, 4], (3, 0), (2.0,), (True,))

    def __str__(self) -> str:
        return "a tuple of integers >= 1, as in (784, 10)"


class InPieces(Compressor):
    """A compressor on pieces of the vector."""

    compressor: Compressor

    def __post_init__(self) -> None:
        super().__post_init__()
        take_pure(self, "compressor")

    @abstractmethod
    def pieces(self, d: int, keys: Keys) -> Sequence[Piece]:
        """The parts of the d coordinates, in order, with the addresses of their rows."""

    def schema(self, shape: tuple[int, ...], dtype: torch.dtype, keys: Keys) -> Schema:
        return schema_of(self.compressor, self.pieces(math.prod(shape), keys), dtype)

    def codes(self, v: Tensor, keys: Keys) -> tuple[Tensor, ...]:
        return codes_of(self.compressor, self.pieces(math.prod(v.shape[1:]), keys), v)

    def decode(self, message: Message, shape: tuple[int, ...], dtype: torch.dtype, keys: Keys) -> Decoded:
        return decode_of(self.compressor, self.pieces(math.prod(shape), keys), message, shape, dtype)


@dataclass(frozen=True)
class Blocks(InPieces):
    """The compressor on every `size` consecutive coordinates by itself, the last block perhaps shorter.

    Norms, scales and selections are those of a block, so that one large coordinate spoils its own block alone, and
    unbiased compressors whose omega grows with d have that of a block.

    Claim (derived: squared errors add up over blocks): the worst over the two sizes of blocks; contractive the least
    alpha, unbiased the largest omega, drawn jointly the largest A and omega and the least B. Every block has an address
    of its own, so draws of different blocks are independent; what workers share they share in each block.

    Pitfalls: every block pays for its own scale. Full blocks are the rows of one batch, unless the compressor looks at
    what workers have in common (shared draws, the number of workers) or its messages count themselves: such blocks are
    compressed one after another, and many of them are slow.

    Parameters
    ----------
    compressor : without a state.
    size : of a block.

    >>> from laconic.compressors.topk import TopK
    >>> Blocks(TopK(k=2), size=8).claim(d=100, n=3)
    Contractive(alpha=0.25)
    """

    compressor: Compressor
    size: Annotated[int, Count(1)] = 4096

    name = "blocks"
    aliases = ("per_block",)
    example = "blocks(topk(k=0.25), size=16)"
    layout = _LAYOUT_OF_BLOCKS
    source = Source(
        "Alistarh, Grubic, Li, Tomioka, Vojnovic",
        2017,
        "QSGD: communication-efficient SGD via gradient quantization and encoding",
        "1610.02132",
        "buckets; here for any compressor",
    )

    def claim(self, d: int, n: int) -> Claim | None:
        full, rest = divmod(d, self.size)
        return worst([self.compressor.claim(size, n) for size in (self.size * (full > 0), rest) if size], n)

    def share(self, d: int, n: int) -> float:
        full, rest = divmod(d, self.size)
        return (
            sum(times * self.compressor.share(s, n) * s for times, s in ((full, self.size), (1, rest)) if times * s) / d
        )

    def pieces(self, d: int, keys: Keys) -> Sequence[Piece]:
        full, rest = divmod(d, self.size)
        last = [Piece(full * self.size, rest, 1, keys.scope("rest"))] if rest else []
        if independent(self.compressor, self.size):
            return [*cells(keys, "blocks", 0, self.size, full), *last]
        return [*(Piece(b * self.size, self.size, 1, keys.scope(f"block{b}")) for b in range(full)), *last]


@dataclass(frozen=True)
class PerTensor(InPieces):
    """The compressor on every tensor of a model by itself, the vector being these tensors one after another.

    Claim (derived: squared errors add up over tensors): the worst over the sizes; contractive the least alpha, unbiased
    the largest omega, drawn jointly the largest A and omega and the least B. Every tensor has a stream of its own.

    Pitfalls: sizes must sum to the vector's length. Tensors are flat here, so that compressors of matrices see vectors.
    A count such as `topk(k=5)` is that of each tensor; a fraction keeps at least one coordinate of each.

    Parameters
    ----------
    compressor : without a state.
    sizes : of the tensors; none are one tensor, the vector itself.

    >>> from laconic.compressors.topk import TopK
    >>> PerTensor(TopK(k=0.25), sizes=(784, 10)).claim(d=794, n=3)
    Contractive(alpha=0.25)
    """

    compressor: Compressor
    sizes: Annotated[tuple[int, ...], Sizes()] = ()

    name = "per_tensor"
    aliases = ("layerwise",)
    example = "per_tensor(topk(k=0.05))"
    layout = "the inner messages of the tensors, one after another without padding between them"
    source = Source(
        "Dutta, Bergou, Abdelmoniem, Ho, Sahu, Canini, Kalnis",
        2019,
        "On the discrepancy between the theoretical analysis and practical implementations of compressed communication "
        "for distributed deep learning",
        "1911.08250",
        "layer-wise compression",
    )

    def claim(self, d: int, n: int) -> Claim | None:
        return worst([self.compressor.claim(size, n) for size in sorted(set(self._sizes(d)))], n)

    def share(self, d: int, n: int) -> float:
        return sum(self.compressor.share(size, n) * size for size in self._sizes(d)) / d

    def _sizes(self, d: int) -> tuple[int, ...]:
        if self.sizes and sum(self.sizes) != d:
            raise ValueError(f"PerTensor(sizes={self.sizes}) : sizes sum to {sum(self.sizes)}, and the vector has {d}")
        return self.sizes or (d,)

    def pieces(self, d: int, keys: Keys) -> Sequence[Piece]:
        pieces, begin = [], 0
        for tensor, size in enumerate(self._sizes(d)):
            pieces.append(Piece(begin, size, 1, keys.scope(f"tensor{tensor}")))
            begin += size
        return pieces
