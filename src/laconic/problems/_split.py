"""Who holds which rows: contiguous, shuffled, sorted by label, or with skewed labels (Dirichlet)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import numpy as np
from scipy.special import betaincinv, gammaincinv

from laconic.core.keys import Keys


def _permutation(seed: int, count: int, purpose: str) -> np.ndarray:
    return Keys(seed, 0, f"split/{purpose}", np.arange(1), 1).shared.permutations(count)[0]


def ends(rows: int, workers: int, drop_last: bool) -> np.ndarray:
    """Where each worker's rows start in the dealt order, int64 of shape (workers + 1,); sizes differ by at most one.

    `drop_last` gives everybody rows // workers and leaves out the tail, as the papers on FedNL do.
    """
    if workers > rows:
        raise ValueError(f"workers={workers} : there are only {rows} rows; take at most one worker per row")
    if drop_last:
        return np.arange(workers + 1) * (rows // workers)
    return np.arange(workers + 1) * rows // workers


class Split(ABC):
    """An order of the rows, of which each worker takes its stretch."""

    @abstractmethod
    def order(self, targets: np.ndarray, starts: np.ndarray, seed: int) -> np.ndarray:
        """A permutation of the rows, int64. Worker i takes those at starts[i]..starts[i + 1]."""


@dataclass(frozen=True)
class Contiguous(Split):
    """In the file's order."""

    def order(self, targets: np.ndarray, starts: np.ndarray, seed: int) -> np.ndarray:
        return np.arange(len(targets))


@dataclass(frozen=True)
class Shuffled(Split):
    """In a random order: the workers' data are alike."""

    def order(self, targets: np.ndarray, starts: np.ndarray, seed: int) -> np.ndarray:
        return _permutation(seed, len(targets), "rows")


@dataclass(frozen=True)
class Sorted(Split):
    """By label: as unlike as can be."""

    def order(self, targets: np.ndarray, starts: np.ndarray, seed: int) -> np.ndarray:
        return np.argsort(targets, kind="stable")


@dataclass(frozen=True)
class Dirichlet(Split):
    """Two classes in proportions drawn per worker from Dir(concentration * their shares) (Hsu, Qi and Brown 2019).

    The sizes stay equal: the drawn counts of the upper class are shifted together, within what each worker can hold,
    until they use up that class exactly.
    """

    concentration: float

    def order(self, targets: np.ndarray, starts: np.ndarray, seed: int) -> np.ndarray:
        upper = np.flatnonzero(targets == targets.max())
        lower = np.flatnonzero(targets != targets.max())
        upper = upper[_permutation(seed, len(upper), "upper")]
        lower = lower[_permutation(seed, len(lower), "lower")]
        sizes = np.diff(starts)
        left_out = len(targets) - starts[-1]
        wanted = len(upper) - round(left_out * len(upper) / len(targets))
        counts = self._counts(sizes, wanted, len(upper) / len(targets), seed)
        above, below = np.r_[0, np.cumsum(counts)], np.r_[0, np.cumsum(sizes - counts)]
        pieces = [
            piece
            for i in range(len(sizes))
            for piece in (upper[above[i] : above[i + 1]], lower[below[i] : below[i + 1]])
        ]
        return np.concatenate([*pieces, upper[above[-1] :], lower[below[-1] :]])

    def _counts(self, sizes: np.ndarray, wanted: int, share: float, seed: int) -> np.ndarray:
        draws = Keys(seed, 0, "split/proportions", np.arange(len(sizes)), len(sizes)).uniform(1).numpy()[:, 0]
        proportions = betaincinv(self.concentration * share, self.concentration * (1.0 - share), draws)
        drawn = sizes * np.nan_to_num(proportions, nan=share)  # NaN where there is one class only
        low, high = -float(sizes.max()), float(sizes.max())
        for _ in range(100):
            middle = 0.5 * (low + high)
            low, high = (middle, high) if np.clip(drawn + middle, 0, sizes).sum() < wanted else (low, middle)
        shifted = np.clip(drawn + high, 0, sizes)
        counts = np.minimum(np.floor(shifted), sizes).astype(np.int64)
        missing = int(wanted - counts.sum())
        step = 1 if missing > 0 else -1
        able = np.flatnonzero(counts < sizes) if step > 0 else np.flatnonzero(counts > 0)
        nearest = able[np.argsort(step * (counts - shifted)[able], kind="stable")]
        counts[nearest[: abs(missing)]] += step
        return counts


@dataclass(frozen=True)
class DirichletClasses(Split):
    """Any number of classes, in proportions drawn per worker from Dir(concentration * their shares); sizes stay equal.

    Workers are served in order: where a class is used up, its share goes to the classes that the worker wants most of
    those left, so the last workers take what is left (as in Hsu, Qi and Brown 2019, with counts in place of draws).
    """

    concentration: float

    def order(self, targets: np.ndarray, starts: np.ndarray, seed: int) -> np.ndarray:
        classes, members = np.unique(targets, return_inverse=True)
        shuffled = _permutation(seed, len(targets), "rows")
        piles = [shuffled[members[shuffled] == c] for c in range(len(classes))]
        left = np.array([len(pile) for pile in piles])
        wanted, pieces = self._proportions(left / len(targets), len(starts) - 1, seed), []
        for size, share in zip(np.diff(starts), wanted, strict=True):
            for pile, count, rest in zip(piles, _served(share * size, size, left), left.copy(), strict=True):
                pieces.append(pile[len(pile) - rest : len(pile) - rest + count])
            left -= [len(piece) for piece in pieces[-len(piles) :]]
        return np.concatenate([*pieces, *(pile[len(pile) - rest :] for pile, rest in zip(piles, left, strict=True))])

    def _proportions(self, shares: np.ndarray, workers: int, seed: int) -> np.ndarray:
        """One row per worker: gamma variables over their sum, by their logarithms, for small ones are below 1e-308."""
        uniform = Keys(seed, 0, "split/proportions", np.arange(workers), workers).uniform(len(shares)).numpy()
        shape = self.concentration * shares
        draws = gammaincinv(shape + 1.0, uniform)  # gamma(a) = gamma(a + 1) U^(1 / a)
        powers = Keys(seed, 0, "split/powers", np.arange(workers), workers).uniform(len(shares)).numpy()
        with np.errstate(divide="ignore"):
            logs = np.log(draws) + np.log(powers) / shape
        weights = np.exp(logs - logs.max(axis=1, keepdims=True))
        return weights / weights.sum(axis=1, keepdims=True)


def _served(wanted: np.ndarray, size: int, left: np.ndarray) -> np.ndarray:
    """Counts that sum to `size`, at most `left`, near to `wanted`: whole parts, then one by one where most misses."""
    counts = np.minimum(np.floor(wanted).astype(np.int64), left)
    while counts.sum() < size:
        counts[np.argmax(np.where(counts < left, wanted - counts, -np.inf))] += 1
    return counts


@dataclass(frozen=True)
class Dealing:
    """How rows are dealt: the split, its seed, and whether the tail that does not divide evenly is left out."""

    split: Split
    seed: int = 0
    drop_last: bool = False


def named(split: str, concentration: float) -> Split:
    """The split that a spec string calls `split`."""
    splits = {
        "contiguous": Contiguous(),
        "shuffled": Shuffled(),
        "sorted": Sorted(),
        "dirichlet": Dirichlet(concentration),
    }
    return splits[split]


def of_classes(split: str, concentration: float) -> Split:
    """The same for labels of more than two classes."""
    return DirichletClasses(concentration) if split == "dirichlet" else named(split, concentration)
