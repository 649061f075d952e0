"""Bernoulli sparsification: every coordinate by a coin of its own, with private or shared coins."""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import dataclass
from typing import Annotated

import numpy as np
import torch
from torch import Tensor

from laconic.compressors.composition import Sparsifier
from laconic.core.compressor import AB, Decoded, Sparse, Unbiased
from laconic.core.entry import Interval, Source
from laconic.core.keys import Keys
from laconic.core.message import Message, Schema, Slot
from laconic.kernels import masks
from laconic.wire.coding import Bits


class Masked(Sparsifier):
    """Q(x)_j = x_j / p where the mask that both ends draw has a one, 0 elsewhere."""

    p: float

    layout = "the values of full width that the mask keeps, in index order; the mask follows from the seed"
    source = Source(
        "Konecny, Richtarik", 2016, "Randomized distributed mean estimation: accuracy vs communication", "1611.07555"
    )

    def share(self, d: int, n: int) -> float:
        return self.p

    def numbers(self, d: int, n: int) -> range:
        return range(d + 1)

    @abstractmethod
    def mask(self, d: int, keys: Keys) -> Tensor:
        """Which coordinates each row keeps, bool of shape (rows, d)."""

    def schema(self, shape: tuple[int, ...], dtype: torch.dtype, keys: Keys) -> Schema:
        return (Slot(Bits(8 * dtype.itemsize), dtype, masks.counts(self.mask(math.prod(shape), keys)).sum(1)),)

    def codes(self, v: Tensor, keys: Keys) -> tuple[Tensor, ...]:
        flat = v.reshape(v.shape[0], math.prod(v.shape[1:]))
        return (masks.kept(flat, *masks.positions(self.mask(flat.shape[1], keys))) / self.p,)

    def decode(self, message: Message, shape: tuple[int, ...], dtype: torch.dtype, keys: Keys) -> Decoded:
        positions, numbers = masks.positions(self.mask(math.prod(shape), keys))
        offsets = np.zeros(message.rows + 1, dtype=np.int64)
        np.cumsum(numbers.numpy(), out=offsets[1:])
        return Sparse(positions, message.codes[0], offsets, shape)


def coins(keys: Keys, d: int, probability: float) -> Tensor:
    """Which uniform numbers of each row, at positions 0..d-1, are below the probability: bool of shape (rows, d)."""
    return masks.coins(probability, keys.address, keys.workers, d)


@dataclass(frozen=True)
class Bernoulli(Masked):
    """Q(x)_j = x_j / p with probability p, else 0, independently for every coordinate and worker.

    Claim: unbiased with omega = 1 / p - 1 (exact for every x), independent over workers (Konecny and Richtarik).
    Pitfall: sizes are random, binomial with mean p d, and a message may be empty; both ends know them from the seed.

    Parameters
    ----------
    p : the probability of keeping a coordinate.

    >>> Bernoulli(p=0.25).claim(d=10, n=3)
    Unbiased(omega=3.0)
    """

    p: Annotated[float, Interval(0.0, 1.0, open="low")]

    name = "bernoulli"
    example = "bernoulli(p=0.1)"

    def claim(self, d: int, n: int) -> Unbiased:
        return Unbiased(1.0 / self.p - 1.0)

    def mask(self, d: int, keys: Keys) -> Tensor:
        return coins(keys, d, self.p)


@dataclass(frozen=True)
class SharedBernoulli(Masked):
    """Bernoulli sparsification with one mask for all workers, drawn from the shared seed.

    Claim: unbiased with omega = 1 / p - 1, and jointly A = 0, B = -omega (derived): it compresses the mean itself, so
    the error vanishes with the gradient, but it gains nothing from many workers. A round may send nothing at all.

    Parameters
    ----------
    p : the probability of keeping a coordinate.

    >>> SharedBernoulli(p=0.25).claim(d=10, n=3)
    AB(A=0.0, B=-3.0, omega=3.0)
    """

    p: Annotated[float, Interval(0.0, 1.0, open="low")]

    name = "shared_bernoulli"
    example = "shared_bernoulli(p=0.1)"

    def claim(self, d: int, n: int) -> AB:
        omega = 1.0 / self.p - 1.0
        return AB(0.0, -omega, omega)

    def mask(self, d: int, keys: Keys) -> Tensor:
        return coins(keys.shared, d, self.p).expand(keys.rows, d)
