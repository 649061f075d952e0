"""PermK with other deals: contiguous blocks for shuffled workers, and an independent owner for every coordinate."""

from __future__ import annotations

import functools
import math
from abc import abstractmethod
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from laconic.compressors._parts import dealt
from laconic.compressors.composition import Sparsifier
from laconic.compressors.permk import PermK, stretches
from laconic.core.compressor import AB, Decoded, Sparse
from laconic.core.keys import Keys
from laconic.core.message import Message, Schema, Slot
from laconic.wire.coding import Bits


class Partition(Sparsifier):
    """Q_i(x) = n x on worker i's part of a random partition, 0 elsewhere.

    Every coordinate belongs to one worker, to each with probability 1/n. So the mean's coordinate j is that of a
    uniformly random worker's vector, which gives A = B = 1, for d < n as well: then some workers own nothing.
    """

    layout = PermK.layout
    source = PermK.source

    def claim(self, d: int, n: int) -> AB:
        return AB(1.0, 1.0, n - 1.0)

    def share(self, d: int, n: int) -> float:
        return 1.0 / n

    def numbers(self, d: int, n: int) -> range:
        return range(d + 1)

    @abstractmethod
    def owned(self, d: int, keys: Keys) -> tuple[np.ndarray, np.ndarray]:
        """The coordinates of every row, sorted within it, and where each row begins."""

    def schema(self, shape: tuple[int, ...], dtype: torch.dtype, keys: Keys) -> Schema:
        _, offsets = self.owned(math.prod(shape), keys)
        return (Slot(Bits(8 * dtype.itemsize), dtype, np.diff(offsets)),)

    def codes(self, v: Tensor, keys: Keys) -> tuple[Tensor, ...]:
        flat = v.reshape(v.shape[0], math.prod(v.shape[1:]))
        indices, offsets = self.owned(flat.shape[1], keys)
        rows = np.repeat(np.arange(keys.rows), np.diff(offsets))
        return (flat[torch.from_numpy(rows), torch.from_numpy(indices)] * float(keys.n),)

    def decode(self, message: Message, shape: tuple[int, ...], dtype: torch.dtype, keys: Keys) -> Decoded:
        indices, offsets = self.owned(math.prod(shape), keys)
        return Sparse(torch.from_numpy(indices), message.codes[0], offsets, shape)


@dataclass(frozen=True)
class PermKBlocks(Partition):
    """The d coordinates are cut into n contiguous blocks; every round the workers share them out by a permutation.

    Blocks have floor(d/n) + 1 coordinates (the first d mod n) or floor(d/n), none if d < n. No permutation of the
    coordinates is made, and each worker reads and writes one stretch of memory.

    Claim: unbiased with omega = n - 1, jointly A = B = 1 for every d and n (derived: the proof for PermK needs no more
    than owners that are uniform for each coordinate). Pitfall: the shuffle is what makes one worker's message
    unbiased, and the message of a lost worker is a lost block.

    >>> PermKBlocks().claim(d=7, n=3)
    AB(A=1.0, B=1.0, omega=2.0)
    """

    name = "permk_blocks"
    example = "permk_blocks"

    def numbers(self, d: int, n: int) -> range:
        return range(d // n, -(-d // n) + 1)

    def owned(self, d: int, keys: Keys) -> tuple[np.ndarray, np.ndarray]:
        shuffled = keys.shared.scope("workers").permutations(keys.n)[0]
        block = shuffled[dealt(self, keys)]
        q, r = divmod(d, keys.n)
        return stretches(block * q + np.minimum(block, r), q + (block < r))


@dataclass(frozen=True)
class PermKSampling(Partition):
    """Every round each coordinate draws its owner, uniform over the workers and independent of the others.

    Claim: unbiased with omega = n - 1, jointly A = B = 1 for every d and n (derived: the proof for PermK needs no more
    than owners that are uniform for each coordinate). Pitfall: the sizes are random, binomial with mean d / n, but
    together they are d values, and both ends know them from the shared seed.

    >>> PermKSampling().claim(d=2, n=5)
    AB(A=1.0, B=1.0, omega=4.0)
    """

    name = "permk_sampling"
    example = "permk_sampling"

    def owned(self, d: int, keys: Keys) -> tuple[np.ndarray, np.ndarray]:
        coordinates, begins = _sampled(keys.seed, keys.step, keys.stream, keys.n, d)
        workers = dealt(self, keys)
        places, offsets = stretches(begins[workers], begins[workers + 1] - begins[workers])
        return coordinates[places], offsets


@functools.lru_cache(maxsize=8)
def _sampled(seed: int, step: int, stream: str, n: int, d: int) -> tuple[np.ndarray, np.ndarray]:
    """The coordinates of workers 0..n-1 one after another, and where each worker's begin, int64 of shape (n + 1,)."""
    keys = Keys(seed, step, stream, np.zeros(0, dtype=np.int64), n).shared
    owner = (keys.uniform(d)[0] * n).long().numpy()
    begins = np.zeros(n + 1, dtype=np.int64)
    np.cumsum(np.bincount(owner, minlength=n), out=begins[1:])
    return np.argsort(owner, kind="stable"), begins
