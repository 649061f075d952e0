"""Biased random sparsification: k uniformly random coordinates, as they are."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated

import numpy as np
import torch
from torch import Tensor

from laconic.compressors.composition import Sparsifier
from laconic.compressors.randk import RandK
from laconic.core.compressor import Contractive, Decoded, Sparse
from laconic.core.entry import Amount, Source, amount
from laconic.core.keys import Keys
from laconic.core.message import Message, Schema, Slot
from laconic.wire.coding import Bits


@dataclass(frozen=True)
class UnscaledRandK(Sparsifier):
    """C(x) = x_S with S a uniform k-subset, drawn by each worker for itself.

    Claim: contractive with alpha = k / d, exact for every x (Beznosikov et al.). It is RandK without the factor d / k:
    biased, for error feedback; without it, the step is in effect k / d times shorter.

    Parameters
    ----------
    k : how many coordinates, a count or a fraction of d.

    >>> UnscaledRandK(k=2).claim(d=10, n=3)
    Contractive(alpha=0.2)
    """

    k: Annotated[int | float, Amount()]

    name = "unscaled_randk"
    example = "unscaled_randk(k=0.05)"
    layout = RandK.layout
    source = Source(
        "Beznosikov, Horvath, Richtarik, Safaryan", 2020, "On biased compression for distributed learning", "2002.12410"
    )

    def claim(self, d: int, n: int) -> Contractive:
        return Contractive(self.share(d, n))

    def share(self, d: int, n: int) -> float:
        return amount(self.k, d) / d

    def numbers(self, d: int, n: int) -> range:
        k = amount(self.k, d)
        return range(k, k + 1)

    def schema(self, shape: tuple[int, ...], dtype: torch.dtype, keys: Keys) -> Schema:
        return (Slot(Bits(8 * dtype.itemsize), dtype, amount(self.k, math.prod(shape))),)

    def codes(self, v: Tensor, keys: Keys) -> tuple[Tensor, ...]:
        flat = v.reshape(v.shape[0], math.prod(v.shape[1:]))
        return (flat.gather(1, self._support(flat.shape[1], keys)).view(-1),)

    def decode(self, message: Message, shape: tuple[int, ...], dtype: torch.dtype, keys: Keys) -> Decoded:
        support = self._support(math.prod(shape), keys)
        return Sparse(support.view(-1), message.codes[0], np.arange(message.rows + 1) * support.shape[1], shape)

    def _support(self, d: int, keys: Keys) -> Tensor:
        return torch.from_numpy(keys.subsets(d, amount(self.k, d)))
