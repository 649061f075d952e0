"""Signs: alone, with the mean magnitude, drawn at random without bias, and with a mean on either side. sign(0) = +1."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor

from laconic.compressors._levels import euclidean, flat, scale_slot
from laconic.core.compressor import Compressor, Contractive, Decoded, Dense, Unbiased
from laconic.core.entry import Count, Source
from laconic.core.floats import wide
from laconic.core.keys import Keys
from laconic.core.message import Message, Schema, Slot
from laconic.kernels import dither, ladder, sides
from laconic.wire.coding import Bits

_BIT = "a bit per coordinate: 1 for minus"


def _schema(shape: tuple[int, ...], dtype: torch.dtype) -> Schema:
    """A scale, then the signs."""
    return scale_slot(dtype, 1), Slot(Bits(1), torch.uint8, math.prod(shape))


def _decode(codes: Tensor, scales: Tensor, shape: tuple[int, ...], dtype: torch.dtype) -> Dense:
    """Plus or minus the scale of each row."""
    rows, d = len(scales), math.prod(shape)
    plus_minus = torch.tensor([1.0, -1.0], dtype=torch.float64)
    values = dither.expand(codes.view(rows, d), scales.view(rows, 1), max(1, d), plus_minus, dtype)
    return Dense(values.view(rows, *shape))


@dataclass(frozen=True)
class Sign(Compressor):
    """The sign of every coordinate, +1 or -1, with sign(0) = +1, so that zeros arrive as ones.

    Claims nothing: without a scale it is neither unbiased nor contractive. With different data on the workers its
    average need not lead to the minimiser. `scaled_sign` is contractive.

    >>> Sign().claim(d=10, n=3) is None
    True
    """

    name = "sign"
    example = "sign"
    layout = _BIT
    source = Source(
        "Bernstein, Wang, Azizzadenesheli, Anandkumar",
        2018,
        "signSGD: compressed optimisation for non-convex problems",
        "1802.04434",
    )

    def share(self, d: int, n: int) -> float:
        return 1 / 64

    def schema(self, shape: tuple[int, ...], dtype: torch.dtype, keys: Keys) -> Schema:
        return (Slot(Bits(1), torch.uint8, math.prod(shape)),)

    def codes(self, v: Tensor, keys: Keys) -> tuple[Tensor, ...]:
        return (dither.minus(flat(v)).view(-1),)

    def decode(self, message: Message, shape: tuple[int, ...], dtype: torch.dtype, keys: Keys) -> Decoded:
        return _decode(message.codes[0], torch.ones(message.rows, dtype=wide(dtype)), shape, dtype)


@dataclass(frozen=True)
class ScaledSign(Compressor):
    """The mean magnitude with every coordinate's sign: C(x) = (||x||_1 / d) sign(x), with sign(0) = +1.

    Claim: contractive with alpha = 1 / d for every x, attained by a single spike. For a given x it is exactly
    ||x||_1^2 / (d ||x||^2), which is 1 where all magnitudes are equal and about 2 / pi for a Gaussian x (Karimireddy
    et al.; equal because zeros are sent as plus). Biased: averaged over workers without error feedback it may
    diverge. One message per layer is better than one scale for all. A vector that is not finite arrives as NaN.

    >>> ScaledSign().claim(d=4, n=3)
    Contractive(alpha=0.25)
    """

    name = "scaled_sign"
    example = "scaled_sign"
    layout = f"the mean magnitude at full width, then {_BIT}"
    source = Source(
        "Karimireddy, Rebjock, Stich, Jaggi",
        2019,
        "Error feedback fixes SignSGD and other gradient compression schemes",
        "1901.09847",
    )

    def claim(self, d: int, n: int) -> Contractive:
        return Contractive(1.0 / d)

    def share(self, d: int, n: int) -> float:
        return (d + 64) / (64 * d)

    def schema(self, shape: tuple[int, ...], dtype: torch.dtype, keys: Keys) -> Schema:
        return _schema(shape, dtype)

    def codes(self, v: Tensor, keys: Keys) -> tuple[Tensor, ...]:
        rows = flat(v)
        d = max(1, rows.shape[1])
        most, unit, total, _ = dither.measure(rows, d).unbind(-1)
        return torch.where(most.isnan(), most, unit * (total / d)).to(rows.dtype).view(-1), dither.minus(rows).view(-1)

    def decode(self, message: Message, shape: tuple[int, ...], dtype: torch.dtype, keys: Keys) -> Decoded:
        return _decode(message.codes[1], message.codes[0], shape, dtype)


@dataclass(frozen=True)
class StochasticSign(Compressor):
    """Q(x)_j = ||x|| with probability 1/2 + x_j / (2 ||x||), else -||x||, independently over coordinates.

    Claim: unbiased with omega = d - 1 (Safaryan and Richtarik; exact for every x), independent over workers. The norm
    is sent; their method SSDM drops it. A zero vector arrives as zero, one that is not finite as NaN.

    >>> StochasticSign().claim(d=4, n=3)
    Unbiased(omega=3.0)
    """

    name = "stochastic_sign"
    aliases = ("ssign",)
    example = "stochastic_sign"
    layout = f"the norm at full width, then {_BIT}"
    source = Source(
        "Safaryan, Richtarik", 2019, "Stochastic sign descent methods: new algorithms and better theory", "1905.12938"
    )

    def claim(self, d: int, n: int) -> Unbiased:
        return Unbiased(d - 1.0)

    def share(self, d: int, n: int) -> float:
        return (d + 64) / (64 * d)

    def schema(self, shape: tuple[int, ...], dtype: torch.dtype, keys: Keys) -> Schema:
        return _schema(shape, dtype)

    def codes(self, v: Tensor, keys: Keys) -> tuple[Tensor, ...]:
        rows = flat(v)
        norms = euclidean(rows, max(1, rows.shape[1])).view(-1).clamp(max=torch.finfo(v.dtype).max)
        return norms, ladder.signs(rows, norms, keys.address, keys.workers).view(-1)

    def decode(self, message: Message, shape: tuple[int, ...], dtype: torch.dtype, keys: Keys) -> Decoded:
        return _decode(message.codes[1], message.codes[0], shape, dtype)


@dataclass(frozen=True)
class OneBit(Compressor):
    """Every coordinate becomes the mean of those on its side of zero: of the entries >= 0, or of the negative ones.

    With several columns the means are taken column by column: coordinate j, counted in row-major order, is in column
    j mod `columns`, so a matrix of that many columns keeps its own. A side without entries has mean 0.

    Claim: contractive with alpha = 1 / r, r = ceil(d / columns) the coordinates of a column (derived: the means are
    the projection on the vectors that are constant on each side, so the error is at most scaled sign's of each
    column; attained by one positive spike per column). Biased: Seide et al. always add error feedback. A side with
    an entry that is not finite arrives as such.

    Parameters
    ----------
    columns : of the matrix; at most d are used.

    >>> OneBit(columns=2).claim(d=8, n=3)
    Contractive(alpha=0.25)
    """

    columns: Annotated[int, Count(1)] = 1

    name = "one_bit"
    aliases = ("onebit",)
    example = "one_bit"
    layout = f"of each column the mean of its entries >= 0 and of the others, at full width, then {_BIT}"
    source = Source(
        "Seide, Fu, Droppo, Li, Yu",
        2014,
        "1-bit stochastic gradient descent and its application to data-parallel distributed training of speech DNNs",
        where="Interspeech 2014",
    )

    def claim(self, d: int, n: int) -> Contractive:
        return Contractive(1.0 / math.ceil(d / self._used(d)))

    def share(self, d: int, n: int) -> float:
        return (d + 128 * self._used(d)) / (64 * d)

    def schema(self, shape: tuple[int, ...], dtype: torch.dtype, keys: Keys) -> Schema:
        d = math.prod(shape)
        return scale_slot(dtype, 2 * self._used(d)), Slot(Bits(1), torch.uint8, d)

    def codes(self, v: Tensor, keys: Keys) -> tuple[Tensor, ...]:
        rows = flat(v)
        return dither.means(rows, self._used(rows.shape[1])).to(rows.dtype).view(-1), dither.minus(rows).view(-1)

    def decode(self, message: Message, shape: tuple[int, ...], dtype: torch.dtype, keys: Keys) -> Decoded:
        d = math.prod(shape)
        codes, means = message.codes[1].view(message.rows, d), message.codes[0].view(message.rows, self._used(d), 2)
        return Dense(sides.expand(codes, means, dtype).view(message.rows, *shape))

    def _used(self, d: int) -> int:
        return max(1, min(self.columns, d))
