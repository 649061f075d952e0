"""Biased random sparsification: k uniformly random coordinates, as they are."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from laconic.compressors._drawn import Drawn
from laconic.core.compressor import Contractive
from laconic.core.entry import Source
from laconic.core.keys import Keys


@dataclass(frozen=True)
class UnscaledRandK(Drawn):
    """C(x) = x_S with S a uniform k-subset, drawn by each worker for itself.

    Claim: contractive with alpha = k / d, exact for every x (Beznosikov et al.). It is RandK without the factor d / k:
    biased, for error feedback; without it, the step is in effect k / d times shorter.

    Parameters
    ----------
    k : how many coordinates, a count or a fraction of d.

    >>> UnscaledRandK(k=2).claim(d=10, n=3)
    Contractive(alpha=0.2)
    """

    name = "unscaled_randk"
    example = "unscaled_randk(k=0.05)"
    source = Source(
        "Beznosikov, Horvath, Richtarik, Safaryan", 2020, "On biased compression for distributed learning", "2002.12410"
    )

    def claim(self, d: int, n: int) -> Contractive:
        return Contractive(self.share(d, n))

    def support(self, d: int, k: int, keys: Keys) -> np.ndarray:
        return keys.subsets(d, k)

    def gain(self, d: int, k: int) -> float:
        return 1.0
