"""EDEN: one to four bits per coordinate after a random rotation, at the levels that suit a normal law best."""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor

from laconic.compressors._levels import Levels
from laconic.compressors._rotation import Rotation, narrowed
from laconic.core.compressor import Compressor, Contractive, Decoded, Dense
from laconic.core.entry import Source
from laconic.core.floats import wide
from laconic.core.keys import Keys
from laconic.core.message import Message, Schema, Slot
from laconic.kernels import dither, nearest
from laconic.wire.coding import Bits

_SOURCE = Source(
    "Vargaftik, Ben Basat, Portnoy, Mendelson, Ben-Itzhak, Mitzenmacher",
    2021,
    "EDEN: communication-efficient and robust distributed mean estimation for federated learning",
    "2108.08842",
)
_LAYOUT = (
    "the scale at full width, then the number of the centroid of each rotated coordinate in as many bits as said, "
    "d rounded up to a power of two"
)

# Lloyd and Max's quantisers of the standard normal law, the positive half: each is the mean of the law on the
# numbers nearest to it.
CENTROIDS = {
    1: (0.7978845608028654,),
    2: (0.452780034636492, 1.5104176084990955),
    3: (0.24509417894422167, 0.7560052812058773, 1.343909278505, 2.1519457045369874),
    4: (
        0.128395029851147, 0.3880482994902902, 0.6567591185324634, 0.9423404564869614,
        1.2562311973471771, 1.6180463860218826, 2.0690172265313866, 2.732589570995163,
    ),
}  # fmt: skip

# (a0, a2, a4, a6): (y - q(y))^2 <= a0 + a2 y^2 + a4 y^4 + a6 y^6 for all y, q the nearest centroid. A sum of random
# signs with weights of square sum one has E Z^2 = 1, E Z^4 <= 3, E Z^6 <= 15, the moments of the normal law.
MAJORANTS = {
    2: (0.2056, 0.0753, 0.0, 0.00184),
    3: (0.0603, 0.0203, 0.00251, 0.00063),
    4: (0.0165, 0.0063, 0.0, 0.00037),
}
ALPHAS = {1: 0.5, 2: 0.69, 3: 0.9, 4: 0.97}


def centroids(bits: int) -> Tensor:
    """All 2^bits centroids, ascending, float64."""
    half = torch.tensor(CENTROIDS[bits], dtype=torch.float64)
    return torch.cat([-half.flip(0), half])


class _Eden(Compressor):
    """Subclasses are the dataclasses, with the field `bits`, and say how they scale."""

    bits: Annotated[int, Levels(4)]

    @staticmethod
    @abstractmethod
    def _scale(square: float, products: Tensor, squares: Tensor) -> tuple[Tensor, Tensor]:
        """Numerator and denominator of the scale of the centroids q nearest to y, a vector of square norm `square`.

        products and squares are <y, q> and ||q||^2, of shape (rows,).
        """

    def share(self, d: int, n: int) -> float:
        return (64 + self.bits * Rotation(d).size) / (64 * d)

    def schema(self, shape: tuple[int, ...], dtype: torch.dtype, keys: Keys) -> Schema:
        scale = wide(dtype)
        codes = Slot(Bits(self.bits), torch.uint8, Rotation(math.prod(shape)).size)
        return Slot(Bits(8 * scale.itemsize), scale, 1), codes

    def codes(self, v: Tensor, keys: Keys) -> tuple[Tensor, ...]:
        rotated = Rotation(math.prod(v.shape[1:])).shrunk(v, keys)
        size = max(1, rotated.shape[1])
        most, unit, _, squares = dither.measure(rotated, size).view(-1, 4).unbind(-1)
        root = unit * (squares / size).sqrt() + 0.0 * most  # the root mean square, NaN where something is not finite
        codes, products, lengths = nearest.cells(rotated, root, centroids(self.bits))
        above, below = self._scale(size, products, lengths)
        return narrowed(root * (above / torch.where(below > 0, below, 1.0)), wide(v.dtype)), codes.view(-1)

    def decode(self, message: Message, shape: tuple[int, ...], dtype: torch.dtype, keys: Keys) -> Decoded:
        rotation = Rotation(math.prod(shape))
        codes = message.codes[1].view(message.rows, rotation.size)
        values = rotation.back_codes(codes, centroids(self.bits), message.codes[0], keys, dtype)
        return Dense(values.view(message.rows, *shape))


@dataclass(frozen=True)
class Eden(_Eden):
    """S R' q with S = ||x||^2 / <R x, q>, R as in `drive`, q the centroids nearest to sqrt(p) R x / ||x||.

    The 2^bits centroids are those of the least mean square error for a standard normal variable (Lloyd, Max).

    Claims nothing. With a uniform random rotation it is unbiased and the variance tends, as d grows, to 0.571, 0.133,
    0.0358 and 0.0096 times ||x||^2 for 1 to 4 bits (Vargaftik et al.). The Hadamard rotation, which takes
    d log d steps, only comes near to that: for dense vectors the mean is close to x, but for few large coordinates it
    is not. `biased_eden` contracts for every x. One spike arrives exactly.

    Parameters
    ----------
    bits : per coordinate, 1 to 4.

    >>> Eden(bits=2).claim(d=10, n=3) is None
    True
    """

    bits: Annotated[int, Levels(4)] = 4

    name = "eden"
    example = "eden"
    layout = _LAYOUT
    source = _SOURCE

    @staticmethod
    def _scale(square: float, products: Tensor, squares: Tensor) -> tuple[Tensor, Tensor]:
        return torch.full_like(products, square), products


@dataclass(frozen=True)
class BiasedEden(_Eden):
    """`eden` with the scale of least error, S = <R x, q> / ||q||^2: the point nearest to x on the line of R' q.

    Claim: contractive with alpha = 0.5, 0.69, 0.9, 0.97 for 1, 2, 3, 4 bits, in expectation over D. Derived: the error
    is at most that of the scale ||x|| / sqrt(p), which is ||x||^2 times the mean of (z_j - q(z_j))^2 over the
    coordinates of z = sqrt(p) R x / ||x||. Each z_j is a sum of random signs with weights x_k / ||x||, so
    E z^2 = 1, E z^4 <= 3, E z^6 <= 15, and (z - q(z))^2 is below an even polynomial of degree 6 whose expectation is
    then at most 1 - alpha. For 1 bit it is `drive`, with Szarek's constant, attained at x = (1, 1); for more bits the
    claim is not tight: for a uniform rotation alpha tends to 0.637, 0.883, 0.9655, 0.9905. One spike arrives exactly.

    Parameters
    ----------
    bits : per coordinate, 1 to 4.

    >>> BiasedEden(bits=2).claim(d=10, n=3)
    Contractive(alpha=0.69)
    """

    bits: Annotated[int, Levels(4)] = 4

    name = "biased_eden"
    example = "biased_eden"
    layout = _LAYOUT
    source = _SOURCE

    def claim(self, d: int, n: int) -> Contractive:
        return Contractive(ALPHAS[self.bits] if d > 1 else 1.0)

    @staticmethod
    def _scale(square: float, products: Tensor, squares: Tensor) -> tuple[Tensor, Tensor]:
        return products, squares
