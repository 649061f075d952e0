"""Who sees which samples at which step: one permutation per epoch, the same on all processes, each takes its part."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np
import torch

from laconic.training.recipes.randomness import generator_at


@dataclass(frozen=True)
class Shards:
    """The batches of all processes as a function of the step, so a resumed run knows its place by the step alone.

    Each epoch is a permutation of all samples, drawn from the seed and the epoch. Step s of an epoch takes the next
    `world * batch` of it, of which each process takes `batch` in a row. What is left at the end of an epoch, fewer than
    a step needs, is left out of that epoch.

    Parameters
    ----------
    count : samples.
    batch : samples of one process in one step.
    world : processes.
    seed : of the permutations.

    Raises
    ------
    ValueError : fewer samples than one step takes.

    Examples
    --------
    >>> shards = Shards(count=10, batch=2, world=2, seed=0)
    >>> shards.steps_per_epoch, len({int(i) for step in (0, 1) for rank in (0, 1) for i in shards.samples(step, rank)})
    (2, 8)
    """

    count: int
    batch: int
    world: int
    seed: int

    def __post_init__(self) -> None:
        if self.batch < 1 or self.batch * self.world > self.count:
            raise ValueError(
                f"--batch {self.batch} : with {self.world} processes a step takes {self.batch * self.world} of "
                f"{self.count} samples; give a batch from 1 to {self.count // self.world}"
            )

    @property
    def steps_per_epoch(self) -> int:
        """Steps in which every sample is seen once, up to what is left out."""
        return self.count // (self.batch * self.world)

    def epoch(self, step: int) -> float:
        """How often the samples were seen before a step."""
        return step / self.steps_per_epoch

    def samples(self, step: int, rank: int) -> np.ndarray:
        """The indices (batch,), int64, of the samples that a process sees at a step."""
        epoch, position = divmod(step, self.steps_per_epoch)
        start = (position * self.world + rank) * self.batch
        return _permutation(self.seed, epoch, self.count)[start : start + self.batch]


@functools.lru_cache(maxsize=2)
def _permutation(seed: int, epoch: int, count: int) -> np.ndarray:
    return torch.randperm(count, generator=generator_at(seed, "order", epoch)).numpy()


def part_of(count: int, rank: int, world: int) -> slice:
    """The samples that a process evaluates: contiguous, sizes differ by at most one."""
    return slice(count * rank // world, count * (rank + 1) // world)
