"""RandK with replacement: k independent uniformly random coordinates, scaled to be unbiased."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated

import numpy as np
import torch
from torch import Tensor

from laconic.compressors.composition import Sparsifier
from laconic.compressors.randk import RandK
from laconic.core.compressor import Decoded, Sparse, Unbiased
from laconic.core.entry import Amount, amount
from laconic.core.keys import Keys
from laconic.core.message import Message, Schema, Slot
from laconic.wire.coding import Bits


@dataclass(frozen=True)
class RandKReplacement(Sparsifier):
    """Q(x) = (d / k) sum of x_j e_j over k independent uniform draws j, made by each worker for itself.

    Claim: unbiased with omega = (d - 1) / k (exact for every x), independent over workers (derived). RandK without
    replacement is better for every 1 < k <= d. A coordinate that is drawn m times counts m times; how often follows
    from the seed, so that its value travels once, and k may exceed d.

    Parameters
    ----------
    k : how many draws, a count (also above d) or a fraction of d.

    >>> RandKReplacement(k=2).claim(d=11, n=3)
    Unbiased(omega=5.0)
    """

    k: Annotated[int | float, Amount()]

    name = "randk_replacement"
    example = "randk_replacement(k=0.05)"
    layout = "the drawn coordinates' values of full width, each once, in index order; the draws follow from the seed"
    source = RandK.source

    def claim(self, d: int, n: int) -> Unbiased:
        return Unbiased((d - 1) / self._draws(d))

    def share(self, d: int, n: int) -> float:
        return 1.0 - (1.0 - 1.0 / d) ** self._draws(d)

    def numbers(self, d: int, n: int) -> range:
        return range(1, min(self._draws(d), d) + 1)

    def schema(self, shape: tuple[int, ...], dtype: torch.dtype, keys: Keys) -> Schema:
        _, _, offsets = self._drawn(math.prod(shape), keys)
        return (Slot(Bits(8 * dtype.itemsize), dtype, np.diff(offsets)),)

    def codes(self, v: Tensor, keys: Keys) -> tuple[Tensor, ...]:
        flat = v.reshape(v.shape[0], math.prod(v.shape[1:]))
        d = flat.shape[1]
        indices, times, offsets = self._drawn(d, keys)
        rows = np.repeat(np.arange(keys.rows), np.diff(offsets))
        factors = torch.from_numpy(times * (d / self._draws(d))).to(v.dtype)
        return (flat[torch.from_numpy(rows), torch.from_numpy(indices)] * factors,)

    def decode(self, message: Message, shape: tuple[int, ...], dtype: torch.dtype, keys: Keys) -> Decoded:
        indices, _, offsets = self._drawn(math.prod(shape), keys)
        return Sparse(torch.from_numpy(indices), message.codes[0], offsets, shape)

    def _draws(self, d: int) -> int:
        return self.k if isinstance(self.k, int) else amount(self.k, d)

    def _drawn(self, d: int, keys: Keys) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The coordinates drawn by every row, sorted within it, how often each, and where each row begins."""
        draws = (keys.uniform(self._draws(d)) * d).long().numpy()
        places, times = np.unique(draws + d * np.arange(keys.rows)[:, None], return_counts=True)
        return places % d, times, np.searchsorted(places, d * np.arange(keys.rows + 1))
