"""ImpK: k coordinates chosen by importances that whoever drives the compressor has found."""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import dataclass
from typing import Annotated

import numpy as np
import torch
from torch import Tensor

from laconic.core.compressor import Compressor, Contractive, Decoded, Sparse
from laconic.core.entry import Amount, Interval, Source, amount
from laconic.core.floats import wide
from laconic.core.keys import Keys
from laconic.core.message import Message, Schema, Slot
from laconic.core.state import Worker
from laconic.kernels.select import largest
from laconic.wire.coding import Bits, Subset

_SOURCE = Source(
    "Khafizov",
    2025,
    "Adaptive compression in distributed optimization",
    where="slides (in Russian), operators (7) to (10); no paper is known",
)
_LIFT = 2048.0  # log(w) plus a Gumbel number lies within +-1000 in float64: this makes every score positive


@dataclass
class Importance:
    """The explicit state of these compressors: how much each coordinate matters to each worker, numbers >= 0.

    Never sent. Kept in the dtype that :func:`laconic.core.floats.wide` gives for the vectors.
    """

    weights: Worker  # w, (rows, d)


def _product(flat: Tensor, weights: Tensor) -> Tensor:
    """w . v in the wide dtype; what would overflow is the largest number instead."""
    dtype, most = wide(flat.dtype), torch.finfo(flat.dtype).max
    return (flat.to(dtype) * weights).clamp_(-most, most)


def _at_random(values: Tensor, weights: Tensor, k: int, keys: Keys) -> tuple[Tensor, Tensor]:
    """k coordinates in turn, each with a probability proportional to its weight among those left, and the values there.

    They are the k largest of log w plus Gumbel noise (Efraimidis and Spirakis 2006; Kool et al. 2019). Coordinates
    without weight are never drawn: where too few have any, the lowest of the others fill the places with zeros.
    """
    gumbel = (keys.uniform(weights.shape[1]) + 2.0**-54).log_().neg_().log_().neg_()
    scores = weights.to(torch.float64).log().add_(gumbel).add_(_LIFT)
    support, found = largest(torch.where((weights > 0.0) & torch.isfinite(weights), scores, 0.0), k)
    return support, torch.where(found > 0.0, values.gather(1, support), 0.0)


@dataclass(frozen=True)
class _ByImportance(Compressor):
    """k indices and k values, as the importances have it; every final class says which."""

    k: Annotated[int | float, Amount()]

    layout = "k sorted indices (Rice-coded gaps or a bitmap, whichever is shorter), then k values of full width"
    borrows = (Importance,)
    source = _SOURCE

    @abstractmethod
    def _codes(self, flat: Tensor, weights: Tensor, keys: Keys) -> tuple[Tensor, Tensor]:
        """Sorted indices and values, each (rows, k), of v (rows, d) with importances (rows, d)."""

    def share(self, d: int, n: int) -> float:
        return amount(self.k, d) / d

    def schema(self, shape: tuple[int, ...], dtype: torch.dtype, keys: Keys) -> Schema:
        d = math.prod(shape)
        k = amount(self.k, d)
        return Slot(Subset(d), torch.int64, k), Slot(Bits(8 * dtype.itemsize), dtype, k)

    def start(self, shape: tuple[int, ...], dtype: torch.dtype, keys: Keys) -> Importance:
        return Importance(torch.ones(keys.rows, math.prod(shape), dtype=wide(dtype)))

    def codes(self, v: Tensor, keys: Keys) -> tuple[Tensor, ...]:
        return self.advance(v, keys, self.start(tuple(v.shape[1:]), v.dtype, keys))[0]

    def advance(self, v: Tensor, keys: Keys, state: Importance) -> tuple[tuple[Tensor, ...], Importance]:
        flat = v.reshape(v.shape[0], math.prod(v.shape[1:]))
        if state.weights.shape != flat.shape:
            raise ValueError(f"{self} : importances {tuple(state.weights.shape)} for vectors {tuple(flat.shape)}")
        indices, values = self._codes(flat, state.weights, keys)
        return (indices.view(-1), values.to(v.dtype).view(-1)), state

    def decode(self, message: Message, shape: tuple[int, ...], dtype: torch.dtype, keys: Keys) -> Decoded:
        k = amount(self.k, math.prod(shape))
        return Sparse(message.codes[0], message.codes[1], np.arange(message.rows + 1) * k, shape)


@dataclass(frozen=True)
class ImpK(_ByImportance):
    """Keeps v on the k coordinates of largest importance w, ties to the lower index: operator (7).

    w is an explicit state (:class:`Importance`) that a mechanism such as `local_importance` lends. Alone w is 1
    everywhere and the first k coordinates are kept. No claim: the vector may vanish where w is large, and all of it
    be lost. A heuristic, also inside error feedback.

    Parameters
    ----------
    k : how many coordinates, a count or a fraction of d.

    >>> str(ImpK(k=0.05))
    'impk(k=0.05)'
    """

    name = "impk"
    aliases = ("imp",)
    example = "impk(k=0.05)"

    def _codes(self, flat: Tensor, weights: Tensor, keys: Keys) -> tuple[Tensor, Tensor]:
        support, _ = largest(weights, amount(self.k, flat.shape[1]))
        return support, flat.gather(1, support)


@dataclass(frozen=True)
class RandomImpK(_ByImportance):
    """Keeps v on a random k-subset drawn by importance w: operator (8).

    Coordinates are drawn one after another without replacement, each with a probability proportional to its w among
    those that are left. The inclusion probabilities of this law are not k w_j / sum w: importances (.5, .3, .1, .06,
    .04) and k = 2 give (.823, .665, .253, .155, .104). A coordinate with w = 0 is never kept; places that fewer than
    k positive importances leave over carry zeros. Alone w is 1 everywhere: an unscaled RandK that sends its indices.
    Not unbiased, and no claim: what matters may have little importance.

    Parameters
    ----------
    k : how many coordinates, a count or a fraction of d.

    >>> str(RandomImpK(k=0.05))
    'random_impk(k=0.05)'
    """

    name = "random_impk"
    aliases = ("rimp",)
    example = "random_impk(k=0.05)"

    def _codes(self, flat: Tensor, weights: Tensor, keys: Keys) -> tuple[Tensor, Tensor]:
        return _at_random(flat, weights, amount(self.k, flat.shape[1]), keys)


@dataclass(frozen=True)
class ReweightedImpK(_ByImportance):
    """TopK of the products w_j v_j: sends them where |w_j v_j| is largest, ties to the lower index: operator (9).

    No claim of its own: at w = 2 the error is as large as the vector, so it must not stand inside EF14 or EF21; for
    these there is `scaled_reweighted_impk`. Sent directly by one worker with w in [a, b], gradient descent converges
    linearly (the guarantee of `local_importance`). Alone w is 1 everywhere and it is TopK.

    Parameters
    ----------
    k : how many coordinates, a count or a fraction of d.

    >>> str(ReweightedImpK(k=0.05))
    'reweighted_impk(k=0.05)'
    """

    name = "reweighted_impk"
    aliases = ("impw",)
    example = "reweighted_impk(k=0.05)"

    def _codes(self, flat: Tensor, weights: Tensor, keys: Keys) -> tuple[Tensor, Tensor]:
        return largest(_product(flat, weights), amount(self.k, flat.shape[1]))


@dataclass(frozen=True)
class RandomReweightedImpK(_ByImportance):
    """Sends w_j v_j on a random k-subset drawn by importance w: operator (10).

    The law of the subset is that of `random_impk`. Alone w is 1 everywhere: an unscaled RandK that sends its indices.
    Not unbiased, and no claim.

    Parameters
    ----------
    k : how many coordinates, a count or a fraction of d.

    >>> str(RandomReweightedImpK(k=0.05))
    'random_reweighted_impk(k=0.05)'
    """

    name = "random_reweighted_impk"
    aliases = ("rimpw",)
    example = "random_reweighted_impk(k=0.05)"

    def _codes(self, flat: Tensor, weights: Tensor, keys: Keys) -> tuple[Tensor, Tensor]:
        return _at_random(_product(flat, weights), weights, amount(self.k, flat.shape[1]), keys)


@dataclass(frozen=True)
class ScaledReweightedImpK(_ByImportance):
    """TopK of the products 2 w_j v_j / (low + high) with w clipped into [low, high]: operator (9), made contractive.

    Claim: contractive with alpha = (1 - rho^2) k low^2 / (k low^2 + (d - k) high^2), rho = (high - low) / (high + low),
    for every w (derived). Attained where the k coordinates kept have w = high and the others w = low, and all products
    w_j v_j are equal. With low = high it is TopK. Alone w is 1, clipped like any other.

    Parameters
    ----------
    k : how many coordinates, a count or a fraction of d.
    low, high : the least and largest importance, those of the `cube` that w is sought in.

    >>> round(ScaledReweightedImpK(k=10).claim(d=100, n=1).alpha, 6)  # (8 / 9) k / (4 d - 3 k)
    0.024024
    """

    low: Annotated[float, Interval(0.0, open="low")] = 1.0
    high: Annotated[float, Interval(0.0, open="low")] = 2.0

    name = "scaled_reweighted_impk"
    aliases = ("scaled_impw",)
    example = "scaled_reweighted_impk(k=0.05)"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.high < self.low:
            raise ValueError(f"ScaledReweightedImpK(high={self.high!r}) : high must be at least low={self.low!r}")

    def claim(self, d: int, n: int) -> Contractive:
        k, ratio = amount(self.k, d), self.low / self.high
        rho = (1.0 - ratio) / (1.0 + ratio)
        return Contractive((1.0 - rho**2) * k * ratio**2 / (k * ratio**2 + (d - k)))

    def _codes(self, flat: Tensor, weights: Tensor, keys: Keys) -> tuple[Tensor, Tensor]:
        half = 0.5 * self.low + 0.5 * self.high
        return largest(_product(flat, weights.clamp(self.low, self.high) / half), amount(self.k, flat.shape[1]))
