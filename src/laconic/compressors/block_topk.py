"""Block TopK: the k largest magnitudes of every block of coordinates."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated

import numpy as np
import torch
from torch import Tensor

from laconic.compressors.composition import Sparsifier
from laconic.compressors.topk import TopK
from laconic.core.compressor import Contractive, Decoded, Sparse
from laconic.core.entry import Amount, Count, amount
from laconic.core.keys import Keys
from laconic.core.message import Message, Schema, Slot
from laconic.kernels.select import largest, largest_of_sum
from laconic.wire.coding import Bits, Subset


@dataclass(frozen=True)
class BlockTopK(Sparsifier):
    """TopK inside each block of consecutive coordinates, ties to the lower index.

    The last block may be shorter; it keeps k as well, or all it has. A block fits a cache, so that selection reads the
    vector once, and no block is starved by another's scale.

    Claim: contractive with alpha = k / min(block, d), attained where all magnitudes are equal and blocks are full
    (derived: TopK's claim in each block). On one vector it is never better than TopK of as many coordinates. Biased.

    Parameters
    ----------
    k : how many coordinates of each block, a count or a fraction of the block (of d where d is less).
    block : how many coordinates a block has.

    >>> BlockTopK(k=2, block=8).claim(d=100, n=3)
    Contractive(alpha=0.25)
    """

    k: Annotated[int | float, Amount()]
    block: Annotated[int, Count(1)] = 4096

    name = "block_topk"
    example = "block_topk(k=0.05)"
    layout = (
        "sorted indices in the vector, k of each block (Rice-coded gaps or a bitmap, whichever is shorter),"
        " then their values of full width"
    )
    source = TopK.source

    def claim(self, d: int, n: int) -> Contractive:
        block, k = self._each(d)
        return Contractive(k / block)

    def share(self, d: int, n: int) -> float:
        return self._total(d) / d

    def numbers(self, d: int, n: int) -> range:
        return range(self._total(d), self._total(d) + 1)

    def schema(self, shape: tuple[int, ...], dtype: torch.dtype, keys: Keys) -> Schema:
        d = math.prod(shape)
        total = self._total(d)
        return Slot(Subset(d), torch.int64, total), Slot(Bits(8 * dtype.itemsize), dtype, total)

    def codes(self, v: Tensor, keys: Keys) -> tuple[Tensor, ...]:
        return self._kept(largest, v)

    def codes_of_sum(self, v: Tensor, other: Tensor, sign: int, keys: Keys) -> tuple[Tensor, ...]:
        return self._kept(functools.partial(largest_of_sum, sign=sign), v, other)

    def _kept(self, select: Callable[..., tuple[Tensor, Tensor]], *vectors: Tensor) -> tuple[Tensor, ...]:
        """What a selection from one or more matrices of rows keeps of every block."""
        rows, d = vectors[0].shape[0], math.prod(vectors[0].shape[1:])
        flat, (block, k) = [v.reshape(rows, d) for v in vectors], self._each(d)
        blocks = d // block
        whole = blocks * block
        local, values = select(*(v[:, :whole].reshape(rows * blocks, block) for v in flat), k=k)
        first = torch.arange(blocks).mul_(block)[:, None]
        indices = (local.view(rows, blocks, k) + first).view(rows, blocks * k)
        local, rest = select(*(v[:, whole:] for v in flat), k=min(k, d - whole))
        indices = torch.cat([indices, local + whole], dim=1)
        return indices.view(-1), torch.cat([values.view(rows, blocks * k), rest], dim=1).view(-1)

    def decode(self, message: Message, shape: tuple[int, ...], dtype: torch.dtype, keys: Keys) -> Decoded:
        offsets = np.arange(message.rows + 1) * self._total(math.prod(shape))
        return Sparse(message.codes[0], message.codes[1], offsets, shape)

    def _each(self, d: int) -> tuple[int, int]:
        """The coordinates of a full block, and how many of them are kept."""
        block = min(self.block, d)
        return block, amount(self.k, block)

    def _total(self, d: int) -> int:
        block, k = self._each(d)
        return d // block * k + min(k, d % block)
