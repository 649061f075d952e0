"""Randomness is an address: (seed, step, stream, worker). Drawing twice at one address gives the same numbers."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from laconic.kernels import bijection, philox
from laconic.kernels.threads import over_rows

SHARED = 0xFFFFFFFF  # the worker number of draws that all parties share
SERVER = 0xFFFFFFFE  # the worker number of the server's own draws


@functools.lru_cache(maxsize=4096)
def _stream_key(seed: int, stream: str) -> tuple[int, int]:
    digest = hashlib.blake2b(f"{seed}|{stream}".encode(), digest_size=8).digest()
    return int.from_bytes(digest[:4], "little"), int.from_bytes(digest[4:], "little")


@dataclass(frozen=True)
class Keys:
    """A batch of addresses of randomness, one per row of the values that it serves.

    Parameters
    ----------
    seed, step : of the run, and the iteration of the method.
    stream : what the numbers are for; hashed with the seed into Philox's key.
    workers : the worker number of each row, int64 of shape (rows,).
    n : the number of workers of the whole problem.

    >>> keys = Keys(seed=0, step=7, stream="example", workers=np.arange(3), n=3)
    >>> bool((keys.uniform(4) == keys.uniform(4)).all())
    True
    """

    seed: int
    step: int
    stream: str
    workers: np.ndarray
    n: int

    @property
    def rows(self) -> int:
        """How many addresses there are."""
        return len(self.workers)

    @property
    def address(self) -> np.ndarray:
        """(key, key', step, step') as four uint32, what the kernels take."""
        first, second = _stream_key(self.seed, self.stream)
        return np.array([first, second, self.step & 0xFFFFFFFF, self.step >> 32], dtype=np.uint32)

    @property
    def shared(self) -> Keys:
        """One row that every party has alike."""
        return replace(self, workers=np.array([SHARED], dtype=np.int64))

    def at(self, rows: Sequence[int] | np.ndarray) -> Keys:
        """The addresses of some of the rows."""
        return replace(self, workers=self.workers[rows])

    def scope(self, name: str) -> Keys:
        """The same rows in another stream."""
        return Keys(self.seed, self.step, f"{self.stream}/{name}", self.workers, self.n)

    def words(self, count: int) -> np.ndarray:
        """Random 64-bit words, uint64 of shape (rows, count)."""
        out = np.empty((self.rows, count), dtype=np.uint64)
        over_rows(philox.fill, self.rows, 8 * out.size, self.address, self.workers, out)
        return out

    def uniform(self, count: int) -> Tensor:
        """Uniform numbers in [0, 1), multiples of 2^-53, float64 of shape (rows, count)."""
        return torch.from_numpy((self.words(count) >> np.uint64(11)) * 2.0**-53)

    def normal(self, count: int) -> Tensor:
        """Standard normal numbers by Box and Muller's transform, float64 of shape (rows, count)."""
        half = (count + 1) // 2
        u = self.uniform(2 * half)
        radius = torch.sqrt(-2.0 * torch.log1p(-u[:, :half]))
        angle = 2.0 * torch.pi * u[:, half:]
        return torch.cat([radius * torch.cos(angle), radius * torch.sin(angle)], dim=1)[:, :count]

    def coins(self, probability: float) -> Tensor:
        """One coin per row, bool of shape (rows,), true with the given probability."""
        return self.uniform(1)[:, 0] < probability

    def permutations(self, d: int) -> np.ndarray:
        """A uniform permutation of 0..d-1 per row, int64 of shape (rows, d)."""
        out = np.empty((self.rows, d), dtype=np.int64)
        over_rows(philox.permutations, self.rows, 8 * out.size, self.address, self.workers, out)
        return out

    def images(self, d: int, positions: np.ndarray) -> np.ndarray:
        """The images of positions under a bijection of 0..d-1 per row, int64 of shape (rows, len(positions)).

        Each is uniform, and no permutation of d is made; all d of them are no uniform permutation (kernels.bijection).
        """
        positions = np.ascontiguousarray(positions, dtype=np.int64)
        if len(positions) and not 0 <= positions.min() <= positions.max() < d:
            raise ValueError(f"positions must lie in 0..{d - 1}")
        return bijection.images(self.words(bijection.count(d)), d, positions)

    def subsets(self, d: int, k: int) -> np.ndarray:
        """A uniform sorted k-subset of 0..d-1 per row, int64 of shape (rows, k), from k draws (Floyd)."""
        out = np.empty((self.rows, k), dtype=np.int64)
        over_rows(philox.subsets, self.rows, 8 * out.size, self.address, self.workers, d, out)
        return out
