"""Hard thresholds: the magnitudes of at least a number, given or relative to the vector's norm."""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor

from laconic.compressors.composition import Sparsifier
from laconic.core.compressor import Contractive, Decoded, Sparse
from laconic.core.entry import Interval, Source
from laconic.core.floats import wide
from laconic.core.keys import Keys
from laconic.core.message import CountIn, Message, Schema, Slot
from laconic.kernels import dither, masks
from laconic.wire.coding import Bits, Subset


class Thresholded(Sparsifier):
    """Sends the coordinates that are large enough, as many as there are: `share` is an upper bound."""

    layout = (
        "how many there are (as many bits as d has), that many sorted indices (Rice-coded gaps or a bitmap, whichever"
        " is shorter), then their values of full width"
    )
    source = Source(
        "Sahu, Dutta, Abdelmoniem, Banerjee, Canini, Kalnis",
        2021,
        "Rethinking gradient sparsification as total error minimization",
        "2108.00951",
    )

    def numbers(self, d: int, n: int) -> range:
        return range(d + 1)

    @abstractmethod
    def mask(self, flat: Tensor) -> Tensor:
        """Which coordinates of each row of flat (rows, d) are sent, bool of the same shape."""

    def schema(self, shape: tuple[int, ...], dtype: torch.dtype, keys: Keys) -> Schema:
        d = math.prod(shape)
        number = CountIn(0, most=d)
        return (
            Slot(Bits(d.bit_length()), torch.int64, 1),
            Slot(Subset(d), torch.int64, number),
            Slot(Bits(8 * dtype.itemsize), dtype, number),
        )

    def codes(self, v: Tensor, keys: Keys) -> tuple[Tensor, ...]:
        flat = v.reshape(v.shape[0], math.prod(v.shape[1:]))
        positions, numbers = masks.positions(self.mask(flat))
        return numbers, positions, masks.kept(flat, positions, numbers)

    def decode(self, message: Message, shape: tuple[int, ...], dtype: torch.dtype, keys: Keys) -> Decoded:
        return Sparse(message.codes[1], message.codes[2], message.offsets[1], shape)


@dataclass(frozen=True)
class Threshold(Thresholded):
    """Keeps the coordinates with |x_j| >= t.

    No claim: the error is less than d t^2 whatever x is, so that it contracts no small x. Error feedback (EF14) works
    with such an absolute bound; the theory of EF21 does not cover it. Not homogeneous: C(c x) is not c C(x), so that
    it matters whether a step is taken before or after compression.

    Parameters
    ----------
    t : the least magnitude that is sent, in the vector's own unit.

    >>> Threshold(t=0.5).claim(d=10, n=3) is None
    True
    """

    t: Annotated[float, Interval(0.0, open="low")]

    name = "threshold"
    example = "threshold(t=0.01)"

    def mask(self, flat: Tensor) -> Tensor:
        return masks.at_least(flat.to(wide(flat.dtype)), torch.full((len(flat),), self.t, dtype=torch.float64))


@dataclass(frozen=True)
class RelativeThreshold(Thresholded):
    """Keeps the coordinates with |x_j| >= t ||x||_2 / sqrt(d): at least t times the root mean square. x = 0 is empty.

    Claim: contractive with alpha = 1 - t^2 (derived: fewer than d coordinates are left out, each below the threshold).
    Approached for large d, by a spike among magnitudes just too small. Biased; the size is anything from 1 to d.

    Parameters
    ----------
    t : the least magnitude that is sent, as a multiple of the root mean square.

    >>> RelativeThreshold(t=0.5).claim(d=10, n=3)
    Contractive(alpha=0.75)
    """

    t: Annotated[float, Interval(0.0, 1.0, open="both")]

    name = "relative_threshold"
    example = "relative_threshold(t=0.5)"

    def claim(self, d: int, n: int) -> Contractive:
        return Contractive(1.0 - self.t**2)

    def mask(self, flat: Tensor) -> Tensor:
        rows = flat.to(wide(flat.dtype))
        most, unit, _, squares = dither.measure(rows, max(1, rows.shape[1])).view(-1, 4).unbind(-1)
        least = self.t * (unit * (squares / max(1, rows.shape[1])).sqrt()) + 0.0 * most
        return masks.at_least(rows, least.clamp(min=5e-324))  # of zeros, none
