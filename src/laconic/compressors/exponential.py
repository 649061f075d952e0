"""Exponential dithering: magnitudes over the norm, rounded at random to powers of any base without bias."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor

from laconic.compressors._levels import Grid, Levels, euclidean, flat
from laconic.core.compressor import Compressor, Decoded, Unbiased
from laconic.core.entry import Interval, Source
from laconic.core.floats import wide
from laconic.core.keys import Keys
from laconic.core.message import Message, Schema
from laconic.kernels import ladder


@dataclass(frozen=True)
class ExponentialDithering(Compressor):
    """Rounds |x_j| / ||x|| at random to one of the two nearest of 0, b^(1-s), ..., 1/b, 1, without bias.

    Claim: unbiased, with s > 1, c = (b - 1)^2 / (4 b) and a = sqrt(d) b^(1-s): omega = a - 1 if a >= 2 (1 + c)
    (attained where all magnitudes are equal), else c + a^2 / (4 (1 + c)); sqrt(d) - 1 if s = 1. Derived by a concave
    envelope, as for `qsgd`: between levels t and b t the variance (y - t)(b t - y) is at most c y^2, under the least
    level l it is y l - y^2. Sharper than the c + a min(1, a) of Beznosikov et al. (recalled, not read again), which
    follows from it. Independent over workers and coordinates. b = 2 is `natural_dithering`. A zero vector
    arrives as zero, one that is not finite as NaN.

    Parameters
    ----------
    levels : s, levels of a magnitude above zero; 2 s + 1 codes.
    base : b.

    >>> ExponentialDithering(levels=3, base=4.0).claim(d=4, n=3)
    Unbiased(omega=0.565)
    """

    levels: Annotated[int, Levels(127)] = 7
    base: Annotated[float, Interval(1.0, 16.0, open="low")] = 2.0

    name = "exponential_dithering"
    example = "exponential_dithering"
    layout = "the norm at full width, then a zig-zag level per coordinate, entropy-coded where that is shorter"
    source = Source(
        "Beznosikov, Horvath, Richtarik, Safaryan", 2020, "On biased compression for distributed learning", "2002.12410"
    )

    @property
    def _grid(self) -> Grid:
        return Grid(self.levels)

    def claim(self, d: int, n: int) -> Unbiased:
        a = math.sqrt(d) * self.base ** (1 - self.levels)
        c = (self.base - 1.0) ** 2 / (4.0 * self.base)
        if self.levels == 1 or a >= 2.0 * (1.0 + c):
            return Unbiased(a - 1.0)
        return Unbiased(c + a * a / (4.0 * (1.0 + c)))

    def share(self, d: int, n: int) -> float:
        return self._grid.share(d)

    def schema(self, shape: tuple[int, ...], dtype: torch.dtype, keys: Keys) -> Schema:
        return self._grid.schema(shape, wide(dtype))

    def codes(self, v: Tensor, keys: Keys) -> tuple[Tensor, ...]:
        rows = flat(v.to(wide(v.dtype)))
        most = torch.finfo(v.dtype).max  # which a norm of bfloat16s exceeds before it is infinite
        norms = euclidean(rows, self._grid.size(rows.shape[1])).clamp(max=most)
        codes = ladder.dither(rows, norms, self._rungs(), keys.address, keys.workers)
        return norms.view(-1), codes.view(-1)

    def decode(self, message: Message, shape: tuple[int, ...], dtype: torch.dtype, keys: Keys) -> Decoded:
        return self._grid.decode(message, shape, dtype, self._fractions())

    def _fractions(self) -> Tensor:
        signed = self._grid.signed()
        return signed.sign() * self._rungs()[signed.abs()]

    def _rungs(self) -> Tensor:
        """0, b^(1-s), ..., 1/b, 1, float64: each is the next one divided by b."""
        rungs = [1.0]
        for _ in range(self.levels - 1):
            rungs.append(rungs[-1] / self.base)
        return torch.tensor([0.0, *reversed(rungs)], dtype=torch.float64)
