"""RandSeqK: a window of k consecutive coordinates."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from laconic.compressors._drawn import Drawn
from laconic.core.compressor import Unbiased
from laconic.core.entry import Source, amount
from laconic.core.keys import Keys


@dataclass(frozen=True)
class RandSeqK(Drawn):
    """Q(x) = (d / k) x_S with S = {s, ..., s + k - 1} modulo d and s uniform in 0..d-1, of each worker for itself.

    Claim: unbiased with omega = d / k - 1, exact for every x: a coordinate is in S with probability k / d, as with
    RandK (derived; more is not needed, since the error adds up over coordinates). One draw and one or two runs of
    memory instead of k draws and k scattered reads. Neighbours come together: where they are alike, as in images, a
    single message tells less than RandK's does.

    Parameters
    ----------
    k : how many coordinates, a count or a fraction of d.

    >>> RandSeqK(k=2).claim(d=10, n=3)
    Unbiased(omega=4.0)
    """

    name = "randseqk"
    aliases = ("randseq",)
    example = "randseqk(k=0.05)"
    layout = "k values of full width in index order; the window follows from the seed and is not sent"
    source = Source(
        "Burlachenko, Richtarik", 2024, "Unlocking FedNL: self-contained compute-optimized implementation", "2410.08760"
    )

    def claim(self, d: int, n: int) -> Unbiased:
        return Unbiased(d / amount(self.k, d) - 1.0)

    def support(self, d: int, k: int, keys: Keys) -> np.ndarray:
        starts, places = keys.subsets(d, 1), np.arange(k)
        wrapped = np.maximum(starts + k - d, 0)  # how many coordinates of the window stand at the vector's beginning
        return np.where(places < wrapped, places, starts + places - wrapped)
