"""A random Hadamard rotation around any compressor without a state: with signs of each worker, or of all."""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor

from laconic.compressors._parts import take_pure
from laconic.compressors._rotation import PowerOfTwo, Rotation
from laconic.core.compressor import AB, Claim, Compressor, Decoded, Dense
from laconic.core.entry import Source
from laconic.core.floats import wide
from laconic.core.keys import Keys
from laconic.core.message import Message, Schema

_SOURCE = Source(
    "Suresh, Yu, Kumar, McMahan", 2016, "Distributed mean estimation with limited communication", "1611.00429"
)
_LAYOUT = (
    "the fields of the compressor's message of the rotated vector, d rounded up to a power of two, "
    "or with blocks to multiples of them and a power of two"
)


class _Rotated(Compressor):
    """Subclasses are the dataclasses, with the fields `compressor` and `block`, and say whose signs they use."""

    compressor: Compressor
    block: Annotated[int | None, PowerOfTwo()]

    def __post_init__(self) -> None:
        super().__post_init__()
        take_pure(self, "compressor")

    @abstractmethod
    def _signs(self, keys: Keys) -> Keys:
        """The addresses of the random signs."""

    def share(self, d: int, n: int) -> float:
        size = Rotation(d, self.block).size
        return self.compressor.share(size, n) * size / d

    def schema(self, shape: tuple[int, ...], dtype: torch.dtype, keys: Keys) -> Schema:
        size = Rotation(math.prod(shape), self.block).size
        return self.compressor.schema((size,), wide(dtype), _inner(keys))

    def codes(self, v: Tensor, keys: Keys) -> tuple[Tensor, ...]:
        rotation = Rotation(math.prod(v.shape[1:]), self.block)
        rotated = rotation.scaled(rotation.shrunk(v, self._signs(keys)), wide(v.dtype))
        return self.compressor.codes(rotated, _inner(keys))

    def decode(self, message: Message, shape: tuple[int, ...], dtype: torch.dtype, keys: Keys) -> Decoded:
        rotation = Rotation(math.prod(shape), self.block)
        heard = self.compressor.decode(message, (rotation.size,), wide(dtype), _inner(keys)).dense()
        return Dense(rotation.back(heard, self._signs(keys), dtype).view(message.rows, *shape))


def _inner(keys: Keys) -> Keys:
    """Signs and what the compressor draws must be independent."""
    return keys.scope("rotated")


@dataclass(frozen=True)
class Hadamard(_Rotated):
    """R' Q(R x) with R = H D / sqrt(p): random signs of each worker, Walsh and Hadamard's transform, a compressor Q.

    x is padded with zeros to p coordinates, the least power of two >= d, or block by block; R is orthogonal, and what
    decoding says of the padding is dropped. Rotated coordinates are of like size, mostly at most
    sqrt(2 ln(2p) / p) ||x||, which is what helps levels scaled to the largest magnitude. A sparse x becomes dense.

    Claim: that of Q at dimension p, unbiased or contractive (derived: given D, ||R x|| = ||x||, R' maps the error
    back without stretching it, and the mean of Q(R x) is R x). That holds at every D and says nothing of what rotating
    gains: in expectation over D, omega of `hadamard(terngrad)` is at most sqrt(2 ln(2p)) - 1 for every x (derived:
    ||R x||_1 <= sqrt(p) ||x||, and the largest of p sums of random signs of variance 1 / p is at most
    sqrt(2 ln(2p) / p) on average). A Q drawn jointly over workers loses its joint constants, since each worker's
    rotation is its own: then A = omega, B = 0 (derived by convexity).

    Parameters
    ----------
    compressor : Q, without a state.
    block : a power of two; coordinates are rotated in blocks of so many, and only those left over are padded. None
        rotates the whole vector.

    >>> from laconic.compressors.dithering import TernGrad
    >>> Hadamard(TernGrad()).claim(d=10, n=3)
    Unbiased(omega=1.5)
    """

    compressor: Compressor
    block: Annotated[int | None, PowerOfTwo()] = None

    name = "hadamard"
    aliases = ("rotated",)
    example = "hadamard(linf_dithering(levels=1))"
    layout = _LAYOUT
    source = _SOURCE

    def claim(self, d: int, n: int) -> Claim | None:
        inner = self.compressor.claim(Rotation(d, self.block).size, n)
        return AB(inner.omega, 0.0, inner.omega) if isinstance(inner, AB) else inner

    def _signs(self, keys: Keys) -> Keys:
        return keys


@dataclass(frozen=True)
class SharedHadamard(_Rotated):
    """`hadamard` with one rotation for all workers: sums of messages are rotated sums.

    Claim: that of Q at dimension p, joint constants among them (derived: all errors are mapped back by the same R').
    Errors of different workers are uncorrelated where those of Q are independent, but not independent: they
    share D.

    Parameters
    ----------
    compressor : Q, without a state.
    block : a power of two; coordinates are rotated in blocks of so many, and only those left over are padded. None
        rotates the whole vector.

    >>> from laconic.compressors.randk import SharedRandK
    >>> SharedHadamard(SharedRandK(k=4)).claim(d=7, n=3)
    AB(A=0.0, B=-1.0, omega=1.0)
    """

    compressor: Compressor
    block: Annotated[int | None, PowerOfTwo()] = None

    name = "shared_hadamard"
    example = "shared_hadamard(shared_randk(k=0.25))"
    layout = _LAYOUT
    source = _SOURCE

    def claim(self, d: int, n: int) -> Claim | None:
        return self.compressor.claim(Rotation(d, self.block).size, n)

    def _signs(self, keys: Keys) -> Keys:
        return keys.shared
