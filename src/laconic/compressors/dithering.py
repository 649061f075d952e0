"""Random dithering: magnitudes over the norm, rounded at random to levels without bias."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor

from laconic.compressors._levels import (
    Grid,
    Levels,
    euclidean,
    flat,
    largest,
    power_fractions,
    uniform_fractions,
)
from laconic.core.compressor import Compressor, Decoded, Unbiased
from laconic.core.entry import Count, Source
from laconic.core.keys import Keys
from laconic.core.message import Message, Schema
from laconic.kernels import dither

_QSGD = Source(
    "Alistarh, Grubic, Li, Tomioka, Vojnovic",
    2016,
    "QSGD: communication-efficient SGD via gradient quantization and encoding",
    "1610.02132",
)
_NATURAL = Source(
    "Horvath, Ho, Horvath, Sahu, Canini, Richtarik",
    2019,
    "Natural compression for distributed deep learning",
    "1905.10988",
)
_CODES = "then a zig-zag level per coordinate, entropy-coded where that is shorter"
_THREE = "then 0 for zero, 1 for minus or 2 for plus per coordinate, entropy-coded where that is shorter"


@dataclass(frozen=True)
class Ternary(Compressor):
    """Three levels: Q(x)_j = ||x|| sign(x_j) with probability |x_j| / ||x||, else 0, independently over coordinates.

    Claim: unbiased with omega = sqrt(d) - 1 (derived: the variance is exactly ||x|| ||x||_1 - ||x||^2), attained
    where all magnitudes are equal; independent over workers. On average at most sqrt(d) coordinates are not zero.
    A zero vector arrives as zero, one that is not finite as NaN.

    >>> Ternary().claim(d=16, n=3)
    Unbiased(omega=3.0)
    """

    name = "ternary"
    aliases = ("three_level",)
    example = "ternary"
    layout = f"the norm at full width, {_THREE}"
    source = _QSGD

    def claim(self, d: int, n: int) -> Unbiased:
        return Unbiased(math.sqrt(d) - 1.0)

    def share(self, d: int, n: int) -> float:
        return Grid(1).share(d)

    def schema(self, shape: tuple[int, ...], dtype: torch.dtype, keys: Keys) -> Schema:
        return Grid(1).schema(shape, dtype)

    def codes(self, v: Tensor, keys: Keys) -> tuple[Tensor, ...]:
        return _round(v, keys, Grid(1), euclidean, dither.uniform)

    def decode(self, message: Message, shape: tuple[int, ...], dtype: torch.dtype, keys: Keys) -> Decoded:
        return Grid(1).decode(message, shape, dtype, uniform_fractions(Grid(1)))


@dataclass(frozen=True)
class TernGrad(Compressor):
    """Three levels of the largest magnitude m: Q(x)_j = m sign(x_j) with probability |x_j| / m, else 0.

    Claim: unbiased with omega = (sqrt(d) - 1) / 2 (derived; attained by one coordinate of 1 and the others of
    1 / (1 + sqrt(d))), independent over workers and coordinates. The authors first clip at 2.5 standard deviations,
    which biases; this does not. Take one message per layer for a scale per layer. A zero vector arrives as zero, one
    that is not finite as NaN.

    >>> TernGrad().claim(d=9, n=3)
    Unbiased(omega=1.0)
    """

    name = "terngrad"
    example = "terngrad"
    layout = f"the largest magnitude at full width, {_THREE}"
    source = Source(
        "Wen, Xu, Yan, Wu, Wang, Chen, Li",
        2017,
        "TernGrad: ternary gradients to reduce communication in distributed deep learning",
        "1705.07878",
    )

    def claim(self, d: int, n: int) -> Unbiased:
        return Unbiased((math.sqrt(d) - 1.0) / 2.0)

    def share(self, d: int, n: int) -> float:
        return Grid(1).share(d)

    def schema(self, shape: tuple[int, ...], dtype: torch.dtype, keys: Keys) -> Schema:
        return Grid(1).schema(shape, dtype)

    def codes(self, v: Tensor, keys: Keys) -> tuple[Tensor, ...]:
        return _round(v, keys, Grid(1), largest, dither.uniform)

    def decode(self, message: Message, shape: tuple[int, ...], dtype: torch.dtype, keys: Keys) -> Decoded:
        return Grid(1).decode(message, shape, dtype, uniform_fractions(Grid(1)))


@dataclass(frozen=True)
class QSGD(Compressor):
    """Rounds s |x_j| / ||x|| at random to one of the two nearest integers, without bias, in buckets with a norm each.

    Claim: unbiased, with B the size of a bucket: omega = sqrt(B) / s - 1 if s <= sqrt(B) / 2 (attained where all
    magnitudes are equal), else B / (4 s^2). Derived by a concave envelope; sharper than the
    paper's min(B / s^2, sqrt(B) / s). Independent over workers and coordinates. For s = 1 `ternary` knows more. A
    bucket of zeros arrives as zeros, one that is not finite as NaN.

    Parameters
    ----------
    levels : s, levels of a magnitude above zero; 2 s + 1 codes.
    bucket : coordinates per bucket, the last one shorter; None for one norm of the whole vector.

    >>> QSGD(levels=4, bucket=256).claim(d=1000, n=3)
    Unbiased(omega=3.0)
    """

    levels: Annotated[int, Levels(32767)] = 7
    bucket: Annotated[int | None, Count(1)] = None

    name = "qsgd"
    example = "qsgd"
    layout = f"the norms of the buckets at full width, {_CODES}"
    source = _QSGD

    @property
    def _grid(self) -> Grid:
        return Grid(self.levels, self.bucket)

    def claim(self, d: int, n: int) -> Unbiased:
        size, s = self._grid.size(d), self.levels
        return Unbiased(math.sqrt(size) / s - 1.0 if 2 * s <= math.sqrt(size) else size / (4.0 * s**2))

    def share(self, d: int, n: int) -> float:
        return self._grid.share(d)

    def schema(self, shape: tuple[int, ...], dtype: torch.dtype, keys: Keys) -> Schema:
        return self._grid.schema(shape, dtype)

    def codes(self, v: Tensor, keys: Keys) -> tuple[Tensor, ...]:
        return _round(v, keys, self._grid, euclidean, dither.uniform)

    def decode(self, message: Message, shape: tuple[int, ...], dtype: torch.dtype, keys: Keys) -> Decoded:
        return self._grid.decode(message, shape, dtype, uniform_fractions(self._grid))


@dataclass(frozen=True)
class LinfDithering(Compressor):
    """Rounds s |x_j| / m at random to one of the two nearest integers, without bias, m the largest magnitude.

    Claim: unbiased with omega = (sqrt(1 + q) - 1) / 2, q = (d - 1) / s^2 (derived, and attained by one coordinate of 1
    and the others of 1 / (s (1 + sqrt(1 + q)))), independent over workers and coordinates. s = 1 is `terngrad`. A zero
    vector arrives as zero, one that is not finite as NaN.

    Parameters
    ----------
    levels : s, levels of a magnitude above zero; 2 s + 1 codes.

    >>> LinfDithering(levels=2).claim(d=33, n=3)
    Unbiased(omega=1.0)
    """

    levels: Annotated[int, Levels(32767)] = 7

    name = "linf_dithering"
    example = "linf_dithering"
    layout = f"the largest magnitude at full width, {_CODES}"
    source = _NATURAL

    def claim(self, d: int, n: int) -> Unbiased:
        q = (d - 1) / self.levels**2
        return Unbiased(q / (2.0 * (math.sqrt(1.0 + q) + 1.0)))  # the same, without cancellation

    def share(self, d: int, n: int) -> float:
        return Grid(self.levels).share(d)

    def schema(self, shape: tuple[int, ...], dtype: torch.dtype, keys: Keys) -> Schema:
        return Grid(self.levels).schema(shape, dtype)

    def codes(self, v: Tensor, keys: Keys) -> tuple[Tensor, ...]:
        return _round(v, keys, Grid(self.levels), largest, dither.uniform)

    def decode(self, message: Message, shape: tuple[int, ...], dtype: torch.dtype, keys: Keys) -> Decoded:
        return Grid(self.levels).decode(message, shape, dtype, uniform_fractions(Grid(self.levels)))


@dataclass(frozen=True)
class NaturalDithering(Compressor):
    """Rounds |x_j| / ||x|| at random to one of the two nearest of 0, 2^(1-s), ..., 1/2, 1, without bias.

    Claim: that of `exponential_dithering` with base 2, a = sqrt(d) 2^(1-s): unbiased with omega = a - 1 if a >= 9/4
    (attained where all magnitudes are equal), else 1/8 + 2 a^2 / 9; sqrt(d) - 1 if s = 1. Derived; sharper than the
    1/8 + a min(1, a) of Horvath et al. Independent over workers and coordinates. A zero vector arrives as zero, one
    that is not finite as NaN.

    Parameters
    ----------
    levels : s, levels of a magnitude above zero; 2 s + 1 codes.

    >>> NaturalDithering(levels=2).claim(d=9, n=3)
    Unbiased(omega=0.625)
    """

    levels: Annotated[int, Levels(127)] = 7

    name = "natural_dithering"
    example = "natural_dithering"
    layout = f"the norm at full width, {_CODES}"
    source = _NATURAL

    def claim(self, d: int, n: int) -> Unbiased:
        a = math.sqrt(d) * 2.0 ** (1 - self.levels)
        return Unbiased(a - 1.0 if self.levels == 1 or a >= 2.25 else 0.125 + 2.0 * a * a / 9.0)

    def share(self, d: int, n: int) -> float:
        return Grid(self.levels).share(d)

    def schema(self, shape: tuple[int, ...], dtype: torch.dtype, keys: Keys) -> Schema:
        return Grid(self.levels).schema(shape, dtype)

    def codes(self, v: Tensor, keys: Keys) -> tuple[Tensor, ...]:
        return _round(v, keys, Grid(self.levels), euclidean, dither.powers)

    def decode(self, message: Message, shape: tuple[int, ...], dtype: torch.dtype, keys: Keys) -> Decoded:
        return Grid(self.levels).decode(message, shape, dtype, power_fractions(Grid(self.levels)))


def _round(
    v: Tensor, keys: Keys, grid: Grid, norm: Callable[[Tensor, int], Tensor], rule: Callable[..., Tensor]
) -> tuple[Tensor, ...]:
    """The norms of the blocks, and the codes that a rule of `laconic.kernels.dither` draws over them."""
    rows = flat(v)
    size = grid.size(rows.shape[1])
    scales = norm(rows, size).clamp(max=torch.finfo(v.dtype).max)  # a norm may be too large for bfloat16
    return scales.view(-1), rule(rows, scales, size, grid.levels, keys.address, keys.workers).view(-1)
