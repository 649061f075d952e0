"""PermK: the workers share out the coordinates by a random permutation."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from laconic.compressors._parts import dealt
from laconic.compressors.composition import Sparsifier
from laconic.core.compressor import AB, Decoded, Sparse
from laconic.core.entry import Source
from laconic.core.keys import Keys
from laconic.core.message import Message, Schema, Slot
from laconic.wire.coding import Bits

EXACT = 1 << 12  # coordinates up to which the order is a uniform permutation


@dataclass(frozen=True)
class PermK(Sparsifier):
    """Every round the d coordinates in a shared random order are dealt to the n workers; each sends its own, scaled.

    d >= n: blocks of floor(d/n) or ceil(d/n) coordinates, Q_i(x) = n x on block i; which worker gets which block is
    a second uniform permutation, so that every coordinate goes to every worker with probability 1/n even where n does
    not divide d. The shuffle of workers alone gives that, whatever the order of coordinates. So from 4097 coordinates
    on the order is a keyed bijection, of which a worker needs its own d/n images only; up to there, and for d < n, it
    is a uniform permutation. d < n: every worker gets one coordinate, each coordinate floor(n/d) or ceil(n/d) workers,
    and Q_i(x) = d x on it.

    Claim: jointly A = B = 1 for d >= n, so equal vectors are averaged exactly; for n = q d + r,
    A = d (1 - s) / n and B = 1 - d s with s = q (d q - d + 2 r) / (n (n - 1)); omega = n - 1 or d - 1. The remainder
    cases are not in the paper: they are derived, and the tests enumerate them.

    >>> PermK().claim(d=7, n=3)
    AB(A=1.0, B=1.0, omega=2.0)
    """

    name = "permk"
    aliases = ("perm",)
    example = "permk"
    layout = "the worker's own values of full width in index order; who owns what follows from the shared seed"
    source = Source(
        "Szlendak, Tyurin, Richtarik",
        2021,
        "Permutation compressors for provably faster distributed nonconvex optimization",
        "2110.03300",
    )

    def claim(self, d: int, n: int) -> AB:
        if d >= n:
            return AB(1.0, 1.0, n - 1.0)
        q, r = divmod(n, d)
        s = q * (d * q - d + 2 * r) / (n * (n - 1))
        return AB(d * (1.0 - s) / n, 1.0 - d * s, d - 1.0)

    def share(self, d: int, n: int) -> float:
        return max(1.0 / n, 1.0 / d)

    def numbers(self, d: int, n: int) -> range:
        return range(d // n, -(-d // n) + 1) if d >= n else range(1, 2)

    def schema(self, shape: tuple[int, ...], dtype: torch.dtype, keys: Keys) -> Schema:
        _, offsets = self.owned(math.prod(shape), keys)
        return (Slot(Bits(8 * dtype.itemsize), dtype, np.diff(offsets)),)

    def codes(self, v: Tensor, keys: Keys) -> tuple[Tensor, ...]:
        flat = v.reshape(v.shape[0], math.prod(v.shape[1:]))
        d = flat.shape[1]
        indices, offsets = self.owned(d, keys)
        rows = np.repeat(np.arange(keys.rows), np.diff(offsets))
        values = flat[torch.from_numpy(rows), torch.from_numpy(indices)]
        return (values * float(min(d, keys.n)),)

    def decode(self, message: Message, shape: tuple[int, ...], dtype: torch.dtype, keys: Keys) -> Decoded:
        indices, offsets = self.owned(math.prod(shape), keys)
        return Sparse(torch.from_numpy(indices), message.codes[0], offsets, shape)

    def owned(self, d: int, keys: Keys) -> tuple[np.ndarray, np.ndarray]:
        """The coordinates of every row, sorted within it, and where each row begins."""
        workers = dealt(self, keys)
        if keys.n <= d and d > EXACT:
            return _blocks(keys.seed, keys.step, keys.stream, keys.n, d, workers.tobytes())
        everyone = _deal(keys.seed, keys.step, keys.stream, keys.n, d)
        coordinates, begins = everyone
        sizes = begins[workers + 1] - begins[workers]
        offsets = np.zeros(keys.rows + 1, dtype=np.int64)
        np.cumsum(sizes, out=offsets[1:])
        starts = np.repeat(begins[workers] - offsets[:-1], sizes)
        return coordinates[starts + np.arange(offsets[-1])], offsets


@functools.lru_cache(maxsize=8)
def _deal(seed: int, step: int, stream: str, n: int, d: int) -> tuple[np.ndarray, np.ndarray]:
    """The coordinates of workers 0..n-1 one after another, and where each worker's begin, int64 of shape (n + 1,)."""
    keys = Keys(seed, step, stream, np.zeros(0, dtype=np.int64), n).shared
    order = keys.permutations(d)[0]
    shuffled = keys.scope("workers").permutations(n)[0]
    begins = np.zeros(n + 1, dtype=np.int64)
    if d < n:  # the multiset with every coordinate q times and the first r of a random order once more, shuffled
        coordinates = np.concatenate([np.repeat(np.arange(d), n // d), order[: n % d]])[shuffled]
        return coordinates, np.arange(n + 1)
    q, r = divmod(d, n)
    block_sizes = q + (np.arange(n) < r)
    block_of = np.repeat(np.arange(n), block_sizes)
    worker_of_block = np.empty(n, dtype=np.int64)
    worker_of_block[shuffled] = np.arange(n)
    owner = np.empty(d, dtype=np.int64)
    owner[order] = worker_of_block[block_of]
    np.cumsum(block_sizes[shuffled], out=begins[1:])
    return np.argsort(owner, kind="stable"), begins


@functools.lru_cache(maxsize=8)
def _blocks(seed: int, step: int, stream: str, n: int, d: int, workers: bytes) -> tuple[np.ndarray, np.ndarray]:
    """The coordinates of these workers (int64), sorted for each, and where each one's begin: n <= d, images alone."""
    keys = Keys(seed, step, stream, np.frombuffer(workers, dtype=np.int64), n).shared
    block = keys.scope("workers").permutations(n)[0][np.frombuffer(workers, dtype=np.int64)]
    q, r = divmod(d, n)
    places, offsets = stretches(block * q + np.minimum(block, r), q + (block < r))
    coordinates = keys.images(d, places)[0]
    for size in {q, q + 1}:
        rows = np.flatnonzero(np.diff(offsets) == size)
        within = offsets[rows][:, None] + np.arange(size)
        coordinates[within] = np.sort(coordinates[within], axis=1)
    return coordinates, offsets


def stretches(low: np.ndarray, sizes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """low[r], low[r] + 1, ... of every row, sizes[r] many, and where each row begins."""
    offsets = np.zeros(len(sizes) + 1, dtype=np.int64)
    np.cumsum(sizes, out=offsets[1:])
    return np.repeat(low - offsets[:-1], sizes) + np.arange(offsets[-1]), offsets
