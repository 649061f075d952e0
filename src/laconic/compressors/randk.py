"""RandK: k uniformly random coordinates, scaled to be unbiased, with private or shared supports."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from laconic.compressors._drawn import Drawn
from laconic.core.compressor import AB, Unbiased
from laconic.core.entry import Source, amount
from laconic.core.keys import Keys

_SOURCE = Source(
    "Konecny, Richtarik", 2016, "Randomized distributed mean estimation: accuracy vs communication", "1611.07555"
)


@dataclass(frozen=True)
class RandK(Drawn):
    """Q(x) = (d / k) x_S with S a uniform k-subset, drawn by each worker for itself.

    Claim: unbiased with omega = d / k - 1 (exact for every x), independent over workers. Sampling is without
    replacement; k = d returns x itself.

    Parameters
    ----------
    k : how many coordinates, a count or a fraction of d.

    >>> RandK(k=2).claim(d=10, n=3)
    Unbiased(omega=4.0)
    """

    name = "randk"
    aliases = ("rand",)
    example = "randk(k=0.05)"
    source = _SOURCE

    def claim(self, d: int, n: int) -> Unbiased:
        return Unbiased(d / amount(self.k, d) - 1.0)

    def support(self, d: int, k: int, keys: Keys) -> np.ndarray:
        return keys.subsets(d, k)


@dataclass(frozen=True)
class SharedRandK(Drawn):
    """RandK with one support for all workers, drawn from the shared seed.

    Claim: unbiased with omega = d / k - 1, and jointly A = 0, B = -omega: it compresses the mean itself, so the error
    vanishes with the gradient and direct use has no plateau, but it gains nothing from many workers.

    Parameters
    ----------
    k : how many coordinates, a count or a fraction of d.

    >>> SharedRandK(k=2).claim(d=10, n=3)
    AB(A=0.0, B=-4.0, omega=4.0)
    """

    name = "shared_randk"
    example = "shared_randk(k=0.05)"
    source = _SOURCE

    def claim(self, d: int, n: int) -> AB:
        omega = d / amount(self.k, d) - 1.0
        return AB(0.0, -omega, omega)

    def support(self, d: int, k: int, keys: Keys) -> np.ndarray:
        return np.broadcast_to(keys.shared.subsets(d, k), (keys.rows, k)).copy()
