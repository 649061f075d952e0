"""Who holds which rows: contiguous, shuffled, sorted by label, or with skewed labels (Dirichlet)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import numpy as np
from scipy.special import betaincinv

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
