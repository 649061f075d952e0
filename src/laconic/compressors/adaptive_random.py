"""Adaptive random sparsification: one coordinate, drawn in proportion to its magnitude."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from laconic.compressors.composition import Sparsifier
from laconic.core.compressor import Contractive, Decoded, Sparse
from laconic.core.entry import Source
from laconic.core.keys import Keys
from laconic.core.message import Message, Schema, Slot
from laconic.wire.coding import Bits, Subset


@dataclass(frozen=True)
class AdaptiveRandom(Sparsifier):
    """C(x) = x_j e_j, with coordinate j drawn by each worker for itself with probability |x_j| / ||x||_1.

    Claim: contractive with alpha = 1 / d (Beznosikov et al.), attained where all magnitudes are equal; exactly,
    E||C(x) - x||^2 = ||x||^2 - ||x||_3^3 / ||x||_1. Biased. The index depends on the data, so that it is sent.
    x = 0 sends the last coordinate, which is 0. A coordinate that is 0 in any other x is never sent.

    >>> AdaptiveRandom().claim(d=4, n=3)
    Contractive(alpha=0.25)
    """

    name = "adaptive_random"
    example = "adaptive_random"
    layout = "one index (a Rice-coded gap or a bitmap, whichever is shorter), then its value of full width"
    source = Source(
        "Beznosikov, Horvath, Richtarik, Safaryan", 2020, "On biased compression for distributed learning", "2002.12410"
    )

    def claim(self, d: int, n: int) -> Contractive:
        return Contractive(1.0 / d)

    def share(self, d: int, n: int) -> float:
        return 1.0 / d

    def numbers(self, d: int, n: int) -> range:
        return range(1, 2)

    def schema(self, shape: tuple[int, ...], dtype: torch.dtype, keys: Keys) -> Schema:
        return Slot(Subset(math.prod(shape)), torch.int64, 1), Slot(Bits(8 * dtype.itemsize), dtype, 1)

    def codes(self, v: Tensor, keys: Keys) -> tuple[Tensor, ...]:
        flat = v.reshape(v.shape[0], math.prod(v.shape[1:]))
        magnitude = flat.abs().double()
        largest = magnitude.amax(1, keepdim=True)
        heights = (magnitude / largest.where(largest > 0, 1.0)).cumsum(1)  # scaled, so that no sum overflows
        index = torch.searchsorted(heights, keys.uniform(1) * heights[:, -1:], right=True)
        index.clamp_(max=flat.shape[1] - 1)
        return index.view(-1), flat.gather(1, index).view(-1)

    def decode(self, message: Message, shape: tuple[int, ...], dtype: torch.dtype, keys: Keys) -> Decoded:
        return Sparse(message.codes[0], message.codes[1], np.arange(message.rows + 1), shape)
