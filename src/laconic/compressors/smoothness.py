"""Smoothness-aware compression: where f is smooth, little is sent. For diagonal smoothness matrices.

f is L-smooth for a matrix L where f(y) <= f(x) + <grad f(x), y - x> + <L (y - x), y - x> / 2. A worker sends
C(L^{-1/2} g) and the server applies L^{1/2}; what counts then is the *expected smoothness* of C,
sup of E||L^{1/2} (C(y) - y)||^2 over ||y|| = 1, in place of omega times the largest eigenvalue of L.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
import torch
from torch import Tensor

from laconic.compressors._levels import Levels
from laconic.compressors.composition import Sparsifier
from laconic.core.compressor import Compressor, Decoded, Dense, Sparse, Unbiased
from laconic.core.entry import Amount, Entry, Interval, Range, Source, amount
from laconic.core.floats import wide
from laconic.core.keys import Keys
from laconic.core.message import Message, Schema, Slot
from laconic.kernels import fold
from laconic.wire.coding import Bits

Diagonal = tuple[float, ...]
_MOST = 32767  # levels of one coordinate


@dataclass(frozen=True)
class Positives(Range):
    """A tuple of positive numbers."""

    def holds(self, value: Any) -> bool:
        positive = Interval(0.0, open="low")
        return isinstance(value, tuple) and len(value) > 0 and all(positive.holds(item) for item in value)

    def examples_outside(self) -> tuple[Any, ...]:
        return ((), (1.0, 0.0), (1.0, -2.0), (math.nan,), (math.inf,), ("much",), [1.0], 1.0)

    def __str__(self) -> str:
        return "a tuple of numbers > 0, one per coordinate, or None for equal ones"


def expected_smoothness(matrix: Tensor, joint: Tensor) -> float:
    """The largest eigenvalue of Ptilde o L for any sampling, where coordinate j is kept and divided by p_j = P_jj.

    Ptilde_ij = P_ij / (p_i p_j) - 1 with P_ij the probability that both i and j are kept; `o` is entrywise. It is the
    expected smoothness of the sampling, an equality (Safaryan, Hanzely, Richtarik). matrix, joint: (d, d), symmetric.
    """
    p = joint.diagonal()
    return max(0.0, float(torch.linalg.eigvalsh((joint / torch.outer(p, p) - 1.0) * matrix)[-1]))


@functools.lru_cache(maxsize=64)
def optimal_sampling(diagonal: Diagonal, count: int) -> tuple[Diagonal, float]:
    """The p_j = L_j / (L_j + rho) with the sum `count`, and rho: the least expected smoothness of independent coins.

    By bisection on sums that are exact before they are rounded, so that both ends find the same bits.
    """
    if count >= len(diagonal):
        return (1.0,) * len(diagonal), 0.0
    # the sum reaches `count` at the lower end and does not exceed it at the upper: equal L have rho = L (d / count - 1)
    low, high = (extreme * (len(diagonal) / count - 1.0) for extreme in (min(diagonal), max(diagonal)))
    while low < (middle := low + (high - low) / 2.0) < high:
        if math.fsum(item / (item + middle) for item in diagonal) > count:
            low = middle
        else:
            high = middle
    return tuple(item / (item + high) for item in diagonal), high


def _check(owner: Entry, diagonal: Diagonal | None, d: int) -> None:
    """Raises ValueError where a diagonal is for another number of coordinates."""
    if diagonal is not None and len(diagonal) != d:
        name, own = type(owner).__name__, len(diagonal)
        raise ValueError(f"{name}(diagonal=...) : diagonal must have one number per coordinate: {d}, and it has {own}")


@dataclass(frozen=True)
class SmoothSparsification(Sparsifier):
    """Q(x)_j = x_j / p_j with probability p_j = L_j / (L_j + rho), else 0, by a coin for every coordinate and worker.

    rho is such that k coordinates are kept on average. L^{1/2} C(L^{-1/2} x) is C(x) where L is diagonal and C scales
    coordinates, so that nothing else needs to be done at either end.

    Claim: unbiased with omega = rho / min L_j, attained by a vector of that coordinate alone (derived: the variance is
    the sum of (1 / p_j - 1) x_j^2 exactly). What the theory of matrix smoothness uses is `expected_smoothness`: the
    variance is rho <x, L^{-1} x>, exactly, for every x, the least that independent coins with k ones on average allow
    (Safaryan, Hanzely, Richtarik). Methods that know omega only gain nothing by it. Sizes are random, and a message may
    be empty; both ends know them from the seed, the diagonal and k.

    Parameters
    ----------
    k : how many coordinates are kept on average, a count or a fraction of d.
    diagonal : of L; of all workers alike. None is a multiple of the identity, and p_j = k / d.

    >>> round(SmoothSparsification(k=1, diagonal=(8.0, 2.0)).expected_smoothness(d=2), 9)
    4.0
    """

    k: Annotated[int | float, Amount()]
    diagonal: Annotated[Diagonal | None, Positives()] = None

    name = "smooth_sparsification"
    example = "smooth_sparsification(k=0.1)"
    layout = "the values of full width that the mask keeps, in index order; the mask follows from the seed"
    source = Source(
        "Safaryan, Hanzely, Richtarik",
        2021,
        "Smoothness matrices beat smoothness constants: better communication compression techniques for distributed "
        "optimization",
        "2102.07245",
    )

    def expected_smoothness(self, d: int) -> float:
        """rho, the expected smoothness with L; without a diagonal as for the identity matrix, where it is omega."""
        if self.diagonal is None:
            return d / amount(self.k, d) - 1.0
        return optimal_sampling(self.diagonal, amount(self.k, len(self.diagonal)))[1]

    def probabilities(self, d: int) -> Tensor:
        """p, float64 of shape (d,)."""
        _check(self, self.diagonal, d)
        if self.diagonal is None:
            return torch.full((d,), amount(self.k, d) / max(1, d), dtype=torch.float64)
        return torch.tensor(optimal_sampling(self.diagonal, amount(self.k, d))[0], dtype=torch.float64)

    def claim(self, d: int, n: int) -> Unbiased:
        return Unbiased(self.expected_smoothness(d) / (1.0 if self.diagonal is None else min(self.diagonal)))

    def share(self, d: int, n: int) -> float:
        return amount(self.k, d) / d

    def numbers(self, d: int, n: int) -> range:
        return range(d + 1)

    def schema(self, shape: tuple[int, ...], dtype: torch.dtype, keys: Keys) -> Schema:
        return (Slot(Bits(8 * dtype.itemsize), dtype, self._mask(math.prod(shape), keys).sum(1).numpy()),)

    def codes(self, v: Tensor, keys: Keys) -> tuple[Tensor, ...]:
        flat = v.reshape(v.shape[0], math.prod(v.shape[1:]))
        p = self.probabilities(flat.shape[1]).to(wide(v.dtype))
        return ((flat / p).to(v.dtype)[self._mask(flat.shape[1], keys)],)

    def decode(self, message: Message, shape: tuple[int, ...], dtype: torch.dtype, keys: Keys) -> Decoded:
        mask = self._mask(math.prod(shape), keys)
        offsets = np.zeros(message.rows + 1, dtype=np.int64)
        np.cumsum(mask.sum(1).numpy(), out=offsets[1:])
        return Sparse(mask.nonzero()[:, 1].contiguous(), message.codes[0], offsets, shape)

    def _mask(self, d: int, keys: Keys) -> Tensor:
        return keys.uniform(d) < self.probabilities(d)


@dataclass(frozen=True)
class SmoothQuantisation(Compressor):
    """Rounds x_j at random, without bias, to multiples of one step c ||L^{-1/2} x||, c = sqrt(mean L) / s.

    This is L^{1/2} Q(L^{-1/2} x) with Q dithering coordinate j in steps h_j = c / sqrt(L_j) of the norm. The h_j are
    those that minimise the bound ||diag(L) h|| on the expected smoothness at a given ||1 / h|| (derived; the paper's
    own choice was not re-read). As |x_j| <= sqrt(L_j) ||L^{-1/2} x||, coordinate j has no more than s_j =
    ceil(s sqrt(L_j / mean L)) levels: rough ones have many, smooth ones few. Without a diagonal it is as `qsgd`.

    Claim: unbiased; omega = d / (4 q^2), or sqrt(d) / q - 1 if q <= sqrt(d) / 2, with q = s sqrt(min L / mean L)
    (derived; attained for equal L_j where sqrt(d) >= 2 s). What the theory of matrix smoothness uses is
    `expected_smoothness`. A zero vector arrives as zero, one that is not finite as NaN. Independent over workers.

    Parameters
    ----------
    levels : s, levels of a coordinate of average L_j, in the root mean square over coordinates.
    diagonal : of L; of all workers alike. None is a multiple of the identity.

    >>> SmoothQuantisation(levels=4).claim(d=256, n=3)
    Unbiased(omega=3.0)
    >>> SmoothQuantisation(levels=1, diagonal=(1.0, 1.0, 1.0, 1.0)).expected_smoothness(d=4)
    1.0
    """

    levels: Annotated[int, Levels(_MOST)] = 7
    diagonal: Annotated[Diagonal | None, Positives()] = None

    name = "smooth_quantisation"
    example = "smooth_quantisation"
    layout = (
        "the step at full width, then a level per coordinate in zig-zag code of bit_length(2 s_j) bits, those of fewer"
        " bits first"
    )
    source = Source(
        "Wang, Safaryan, Richtarik",
        2021,
        "Theoretically better and numerically faster distributed optimization with smoothness-aware quantization "
        "techniques",
        "2106.03524",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.diagonal is not None and self.levels * math.sqrt(max(self.diagonal) / _mean(self.diagonal)) > _MOST:
            name = f"{type(self).__name__}(levels={self.levels})"
            raise ValueError(f"{name} : levels must be smaller for so uneven a diagonal: none may have over {_MOST}")

    def claim(self, d: int, n: int) -> Unbiased:
        if self.diagonal is None:
            return Unbiased(_equal(d, self.levels))
        least = min(self.diagonal) / _mean(self.diagonal)
        return Unbiased(_equal(len(self.diagonal), self.levels * math.sqrt(least)))

    def expected_smoothness(self, d: int) -> float:
        """The least bound on E||Q(x) - x||^2 / <x, L^{-1} x> (derived); without a diagonal for the identity, omega.

        c^2 times the largest sum of a_j (1 - a_j), 0 <= a_j <= 1/2, with sum a_j^2 / L_j <= 1 / c^2, a_j being |x_j| in
        steps. Attained where not all a_j can be 1/2. At most mean L min(sqrt(d) / s, d / (4 s^2)).
        """
        if self.diagonal is None:
            return _equal(d, self.levels)
        mean = _mean(self.diagonal)
        unit = np.asarray(self.diagonal) / mean
        budget = float(self.levels**2)

        def distances(price: float) -> np.ndarray:
            return 0.5 / (1.0 + price / unit)

        def spent(price: float) -> float:
            return float((distances(price) ** 2 / unit).sum())

        low, high = 0.0, 0.0 if spent(0.0) <= budget else 1.0
        while spent(high) > budget:
            high *= 2.0
        while low < (middle := (low + high) / 2.0) < high:
            low, high = (middle, high) if spent(middle) > budget else (low, middle)
        a = distances(high)
        return mean / budget * float((a * (1.0 - a)).sum())

    def share(self, d: int, n: int) -> float:
        return (64 + sum(width * len(places) for width, places in self._groups(d))) / (64 * d)

    def schema(self, shape: tuple[int, ...], dtype: torch.dtype, keys: Keys) -> Schema:
        groups = self._groups(math.prod(shape))
        scale = Slot(Bits(8 * wide(dtype).itemsize), wide(dtype), 1)
        return scale, *(Slot(Bits(width), torch.int32, len(places)) for width, places in groups)

    def codes(self, v: Tensor, keys: Keys) -> tuple[Tensor, ...]:
        flat = v.reshape(v.shape[0], math.prod(v.shape[1:])).to(torch.float64)
        d = flat.shape[1]
        most = self._most(d)
        step = _steps(flat, self._roots(d), most, self.levels, wide(v.dtype))
        distance = flat.abs() / torch.where(step > 0, step, 1.0).to(torch.float64)
        whole = distance.floor()
        level = torch.minimum(whole + (keys.uniform(d) < distance - whole), most).nan_to_num(0.0).to(torch.int32)
        codes = torch.where(flat < 0, 2 * level - 1, 2 * level).clamp(min=0)
        return step.view(-1), *(codes[:, places].reshape(-1) for _, places in self._groups(d))

    def decode(self, message: Message, shape: tuple[int, ...], dtype: torch.dtype, keys: Keys) -> Decoded:
        d, rows = math.prod(shape), message.rows
        codes = torch.zeros((rows, d), dtype=torch.int64)
        for part, (_, places) in zip(message.codes[1:], self._groups(d), strict=True):
            codes[:, places] = part.view(rows, len(places)).to(torch.int64)
        codes[codes > 2 * self._most(d).to(torch.int64)] = 0
        level = torch.where(codes % 2 == 0, codes // 2, -(codes + 1) // 2).to(torch.float64)
        values = level * message.codes[0].view(rows, 1).to(torch.float64)
        bound = torch.finfo(dtype).max
        return Dense(values.clamp(-bound, bound).to(dtype).view(rows, *shape))

    def _roots(self, d: int) -> Tensor:
        """sqrt(L_j / mean L)."""
        _check(self, self.diagonal, d)
        if self.diagonal is None:
            return torch.ones(d, dtype=torch.float64)
        return (torch.tensor(self.diagonal, dtype=torch.float64) / _mean(self.diagonal)).sqrt()

    def _most(self, d: int) -> Tensor:
        """s_j."""
        return (self.levels * self._roots(d)).ceil()

    def _groups(self, d: int) -> list[tuple[int, Tensor]]:
        """The widths of codes, ascending, and the coordinates that have them."""
        widths = torch.frexp(2.0 * self._most(d)).exponent
        return [(int(width), (widths == width).nonzero()[:, 0]) for width in widths.unique()]


def _mean(diagonal: Diagonal) -> float:
    return math.fsum(diagonal) / len(diagonal)


def _equal(d: int, levels: float) -> float:
    """omega of dithering d coordinates with s levels of the Euclidean norm, by a concave envelope."""
    return math.sqrt(d) / levels - 1.0 if 2.0 * levels <= math.sqrt(d) else d / (4.0 * levels**2)


def _steps(flat: Tensor, roots: Tensor, most: Tensor, levels: int, dtype: torch.dtype) -> Tensor:
    """c ||L^{-1/2} x|| of each row, rounded so that no coordinate needs more than its levels; NaN if not finite."""
    if not flat.shape[1]:
        return torch.zeros((flat.shape[0], 1), dtype=dtype)
    largest = flat.abs().amax(1, keepdim=True)
    scaled = flat / torch.where(largest > 0, largest, 1.0)  # no square overflows, and no sum of them vanishes
    smoothed = scaled / roots
    norm = fold.dots(smoothed, smoothed)[:, None].sqrt() / levels
    exact = torch.maximum(norm, (scaled.abs() / most).amax(1, keepdim=True)) * largest
    step = exact.clamp(max=torch.finfo(dtype).max).to(dtype)
    up = torch.nextafter(step, torch.full_like(step, math.inf)).clamp(max=torch.finfo(dtype).max)
    return torch.where(torch.isfinite(largest), torch.where(step.to(torch.float64) < exact, up, step), math.nan)
