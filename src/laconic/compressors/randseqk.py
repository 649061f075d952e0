"""RandSeqK: a window of k consecutive coordinates."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated

import numpy as np
import torch
from torch import Tensor

from laconic.compressors.composition import Sparsifier
from laconic.core.compressor import Decoded, Sparse, Unbiased
from laconic.core.entry import Amount, Source, amount
from laconic.core.keys import Keys
from laconic.core.message import Message, Schema, Slot
from laconic.wire.coding import Bits


@dataclass(frozen=True)
class RandSeqK(Sparsifier):
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

    k: Annotated[int | float, Amount()]

    name = "randseqk"
    aliases = ("randseq",)
    example = "randseqk(k=0.05)"
    layout = "k values of full width in index order; the window follows from the seed and is not sent"
    source = Source(
        "Burlachenko, Richtarik", 2024, "Unlocking FedNL: self-contained compute-optimized implementation", "2410.08760"
    )

    def claim(self, d: int, n: int) -> Unbiased:
        return Unbiased(d / amount(self.k, d) - 1.0)

    def share(self, d: int, n: int) -> float:
        return amount(self.k, d) / d

    def numbers(self, d: int, n: int) -> range:
        k = amount(self.k, d)
        return range(k, k + 1)

    def schema(self, shape: tuple[int, ...], dtype: torch.dtype, keys: Keys) -> Schema:
        return (Slot(Bits(8 * dtype.itemsize), dtype, amount(self.k, math.prod(shape))),)

    def codes(self, v: Tensor, keys: Keys) -> tuple[Tensor, ...]:
        flat = v.reshape(v.shape[0], math.prod(v.shape[1:]))
        d = flat.shape[1]
        k = amount(self.k, d)
        values = flat.gather(1, torch.from_numpy(_windows(keys, d, k)))
        return (values.view(-1) if k == d else values.mul_(d / k).view(-1),)

    def decode(self, message: Message, shape: tuple[int, ...], dtype: torch.dtype, keys: Keys) -> Decoded:
        d = math.prod(shape)
        windows = torch.from_numpy(_windows(keys, d, amount(self.k, d)))
        return Sparse(windows.view(-1), message.codes[0], np.arange(message.rows + 1) * windows.shape[1], shape)


def _windows(keys: Keys, d: int, k: int) -> np.ndarray:
    """The coordinates of each row's window in ascending order, int64 of shape (rows, k)."""
    starts = keys.subsets(d, 1)
    places = np.arange(k)
    wrapped = np.maximum(starts + k - d, 0)  # how many coordinates of the window stand at the beginning of the vector
    return np.where(places < wrapped, places, starts + places - wrapped)
