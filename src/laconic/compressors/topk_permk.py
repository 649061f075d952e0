"""TopK after PermK: each worker's largest coordinates of the block that it was dealt."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated

import numpy as np
import torch
from torch import Tensor

from laconic.compressors.composition import Sparsifier
from laconic.compressors.permk import PermK
from laconic.core.compressor import Contractive, Decoded, Sparse
from laconic.core.entry import Amount, Interval, amount
from laconic.core.keys import Keys
from laconic.core.message import Message, Schema, Slot
from laconic.kernels.select import largest
from laconic.wire.coding import Bits, Subset

_DEAL = PermK()


@dataclass(frozen=True)
class TopKPermK(Sparsifier):
    """C_i(x) = T_k(a P_i x), where P_i keeps the coordinates that PermK deals to worker i and T_k is TopK.

    The mask P_i is not scaled by n. k is clamped to the block, of floor(d/n) or ceil(d/n) coordinates, or of one if
    d < n.

    Claim: for 0 < a < 2 contractive with alpha = a (2 - a) min(k, b) / d, b = max(d/n, 1), in expectation over the
    deal, attained where all magnitudes are equal (derived, for remainders and clamped k too). a = 1 is best. Other a
    claim nothing: alpha is 0 at a = 2, and from there on the error may grow. Biased; in memories use a = 1, since
    a = n makes error feedback explode. Equal vectors of all workers keep n k different coordinates, but one worker
    alone is never better than TopK.

    Parameters
    ----------
    k : how many coordinates, a count or a fraction of d.
    scale : a.

    >>> TopKPermK(k=2).claim(d=10, n=3)
    Contractive(alpha=0.2)
    """

    k: Annotated[int | float, Amount()]
    scale: Annotated[float, Interval(0.0, open="low")] = 1.0

    name = "topk_permk"
    example = "topk_permk(k=0.05)"
    layout = (
        "k sorted indices among the coordinates of the worker's block (Rice-coded gaps or a bitmap, whichever is"
        " shorter), then k values of full width; who owns what follows from the shared seed"
    )
    source = PermK.source

    def claim(self, d: int, n: int) -> Contractive | None:
        factor = self.scale * (2.0 - self.scale)
        return Contractive(factor * self.share(d, n)) if factor > 0.0 else None

    def share(self, d: int, n: int) -> float:
        return min(amount(self.k, d), max(d / n, 1.0)) / d

    @property
    def factor(self) -> float:
        return float(self.scale)

    def numbers(self, d: int, n: int) -> range:
        kept = [min(amount(self.k, d), size) for size in _sizes(d, n)]
        return range(kept[0], kept[-1] + 1)

    def schema(self, shape: tuple[int, ...], dtype: torch.dtype, keys: Keys) -> Schema:
        d = math.prod(shape)
        k, sizes = amount(self.k, d), np.diff(_DEAL.owned(d, keys)[1])
        indices = [
            Slot(Subset(size), torch.int64, np.where(sizes == size, min(k, size), 0)) for size in _sizes(d, keys.n)
        ]
        return (*indices, Slot(Bits(8 * dtype.itemsize), dtype, np.minimum(k, sizes)))

    def codes(self, v: Tensor, keys: Keys) -> tuple[Tensor, ...]:
        flat = v.reshape(v.shape[0], math.prod(v.shape[1:]))
        coordinates, offsets = _DEAL.owned(flat.shape[1], keys)
        found, values = [], flat.new_empty(int(self._kept(flat.shape[1], offsets)[-1]))
        for rows, block, places in self._blocks(flat.shape[1], keys.n, coordinates, offsets):
            own = flat[torch.from_numpy(rows)[:, None], torch.from_numpy(block)]
            local, kept = largest(own, places.shape[1])
            values[torch.from_numpy(places)] = kept * float(self.scale)
            found.append(local.view(-1))
        return (*found, values)

    def decode(self, message: Message, shape: tuple[int, ...], dtype: torch.dtype, keys: Keys) -> Decoded:
        d = math.prod(shape)
        coordinates, offsets = _DEAL.owned(d, keys)
        kept = self._kept(d, offsets)
        indices = np.empty(kept[-1], dtype=np.int64)
        blocks = self._blocks(d, keys.n, coordinates, offsets)
        for (_, block, places), local in zip(blocks, message.codes[:-1], strict=True):
            indices[places] = np.take_along_axis(block, local.numpy().reshape(places.shape), axis=1)
        return Sparse(torch.from_numpy(indices), message.codes[-1], kept, shape)

    def masked(self, v: Tensor, keys: Keys) -> Decoded:
        """a P_i v_i of each row of v (rows, *shape): what TopK chooses from at these addresses."""
        flat = v.reshape(v.shape[0], math.prod(v.shape[1:]))
        coordinates, offsets = _DEAL.owned(flat.shape[1], keys)
        rows = torch.from_numpy(np.repeat(np.arange(keys.rows), np.diff(offsets)))
        indices = torch.from_numpy(coordinates)
        return Sparse(indices, flat[rows, indices] * float(self.scale), offsets, tuple(v.shape[1:]))

    def _kept(self, d: int, offsets: np.ndarray) -> np.ndarray:
        """Where each row's kept coordinates begin."""
        kept = np.zeros_like(offsets)
        np.cumsum(np.minimum(amount(self.k, d), np.diff(offsets)), out=kept[1:])
        return kept

    def _blocks(
        self, d: int, n: int, coordinates: np.ndarray, offsets: np.ndarray
    ) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """Per size of a block: the rows that have one, its coordinates, and the places of their kept ones."""
        kept = self._kept(d, offsets)
        for size in _sizes(d, n):
            rows = np.flatnonzero(np.diff(offsets) == size)
            block = coordinates[offsets[rows][:, None] + np.arange(size)]
            yield rows, block, kept[rows][:, None] + np.arange(min(amount(self.k, d), size))


def _sizes(d: int, n: int) -> list[int]:
    """The sizes that PermK's blocks can have: one, or two that differ by one."""
    return sorted({d // n, -(-d // n)}) if d >= n else [1]
