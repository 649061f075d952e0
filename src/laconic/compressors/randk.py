"""RandK: k uniformly random coordinates, scaled to be unbiased, with private or shared supports."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated

import numpy as np
import torch
from torch import Tensor

from laconic.compressors.composition import Sparsifier
from laconic.core.compressor import AB, Decoded, Sparse, Unbiased
from laconic.core.entry import Amount, Source, amount
from laconic.core.keys import Keys
from laconic.core.message import Message, Schema, Slot
from laconic.wire.coding import Bits

_SOURCE = Source(
    "Konecny, Richtarik", 2016, "Randomized distributed mean estimation: accuracy vs communication", "1611.07555"
)
_LAYOUT = "k values of full width in index order; the support follows from the seed and is not sent"


def _schema(k: int | float, shape: tuple[int, ...], dtype: torch.dtype) -> Schema:
    return (Slot(Bits(8 * dtype.itemsize), dtype, amount(k, math.prod(shape))),)


def _values(v: Tensor, support: np.ndarray) -> tuple[Tensor, ...]:
    flat = v.reshape(v.shape[0], math.prod(v.shape[1:]))
    d, k = flat.shape[1], support.shape[1]
    values = flat.gather(1, torch.from_numpy(support))
    return (values.view(-1) if k == d else (values * (d / k)).view(-1),)


def _sparse(message: Message, support: np.ndarray, shape: tuple[int, ...]) -> Sparse:
    offsets = np.arange(message.rows + 1) * support.shape[1]
    return Sparse(torch.from_numpy(support.reshape(-1)), message.codes[0], offsets, shape)


@dataclass(frozen=True)
class RandK(Sparsifier):
    """Q(x) = (d / k) x_S with S a uniform k-subset, drawn by each worker for itself.

    Claim: unbiased with omega = d / k - 1 (exact for every x), independent over workers. Sampling is without
    replacement; k = d returns x itself.

    Parameters
    ----------
    k : how many coordinates, a count or a fraction of d.

    >>> RandK(k=2).claim(d=10, n=3)
    Unbiased(omega=4.0)
    """

    k: Annotated[int | float, Amount()]

    name = "randk"
    aliases = ("rand",)
    example = "randk(k=0.05)"
    layout = _LAYOUT
    source = _SOURCE

    def claim(self, d: int, n: int) -> Unbiased:
        return Unbiased(d / amount(self.k, d) - 1.0)

    def share(self, d: int, n: int) -> float:
        return amount(self.k, d) / d

    def numbers(self, d: int, n: int) -> range:
        k = amount(self.k, d)
        return range(k, k + 1)

    def schema(self, shape: tuple[int, ...], dtype: torch.dtype, keys: Keys) -> Schema:
        return _schema(self.k, shape, dtype)

    def codes(self, v: Tensor, keys: Keys) -> tuple[Tensor, ...]:
        return _values(v, self._support(math.prod(v.shape[1:]), keys))

    def decode(self, message: Message, shape: tuple[int, ...], dtype: torch.dtype, keys: Keys) -> Decoded:
        return _sparse(message, self._support(math.prod(shape), keys), shape)

    def _support(self, d: int, keys: Keys) -> np.ndarray:
        return keys.subsets(d, amount(self.k, d))


@dataclass(frozen=True)
class SharedRandK(Sparsifier):
    """RandK with one support for all workers, drawn from the shared seed.

    Claim: unbiased with omega = d / k - 1, and jointly A = 0, B = -omega: it compresses the mean itself, so the error
    vanishes with the gradient and direct use has no plateau, but it gains nothing from many workers.

    Parameters
    ----------
    k : how many coordinates, a count or a fraction of d.

    >>> SharedRandK(k=2).claim(d=10, n=3)
    AB(A=0.0, B=-4.0, omega=4.0)
    """

    k: Annotated[int | float, Amount()]

    name = "shared_randk"
    example = "shared_randk(k=0.05)"
    layout = _LAYOUT
    source = _SOURCE

    def claim(self, d: int, n: int) -> AB:
        omega = d / amount(self.k, d) - 1.0
        return AB(0.0, -omega, omega)

    def share(self, d: int, n: int) -> float:
        return amount(self.k, d) / d

    def numbers(self, d: int, n: int) -> range:
        k = amount(self.k, d)
        return range(k, k + 1)

    def schema(self, shape: tuple[int, ...], dtype: torch.dtype, keys: Keys) -> Schema:
        return _schema(self.k, shape, dtype)

    def codes(self, v: Tensor, keys: Keys) -> tuple[Tensor, ...]:
        return _values(v, self._support(math.prod(v.shape[1:]), keys))

    def decode(self, message: Message, shape: tuple[int, ...], dtype: torch.dtype, keys: Keys) -> Decoded:
        return _sparse(message, self._support(math.prod(shape), keys), shape)

    def _support(self, d: int, keys: Keys) -> np.ndarray:
        one = keys.shared.subsets(d, amount(self.k, d))
        return np.broadcast_to(one, (keys.rows, one.shape[1])).copy()
