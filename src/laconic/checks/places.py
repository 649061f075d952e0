"""A problem and where it is looked at."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from laconic.core.keys import Keys
from laconic.core.problem import Block, Oracles, Problem, Solution

WORKERS = 4  # of many, those whose derivatives are taken: the first, the last, and two between


@runtime_checkable
class Excess(Protocol):
    """Oracles that know f_i(x) - f_i(x*) - <grad f_i(x*), x - x*> without cancellation."""

    def excess(self, x: Tensor, solution: Solution) -> Tensor:
        """One value per local worker, (local,)."""
        ...


@dataclass(frozen=True)
class Place:
    """A problem with the oracles of all its workers, and points (count, *shape) to try."""

    problem: Problem
    oracles: Oracles
    points: Tensor

    @property
    def rows(self) -> np.ndarray:
        """A few workers."""
        return np.unique(np.linspace(0, self.problem.n - 1, WORKERS).astype(np.int64))

    def others(self, count: int, name: str) -> Tensor:
        """Directions of the length 1, (count, *shape)."""
        keys = Keys(11, count, f"/problems/{name}", np.arange(count), max(1, count))
        flat = keys.normal(self.oracles.d)
        return (flat / flat.norm(dim=1, keepdim=True)).view(count, *self.oracles.shape).to(self.oracles.dtype)


def place_of(problem: Problem, count: int) -> Place:
    """The start, and points around it near and far."""
    oracles = problem.host(Block.whole(problem.n))
    start = oracles.start()
    here = Place(problem, oracles, start[None])
    away = here.others(count, "points") * math.sqrt(oracles.d)
    reach = torch.tensor([0.3 * 3.0 ** (one % 3) for one in range(count)], dtype=oracles.dtype)
    points = start + away * reach.view(-1, *[1] * len(oracles.shape))
    return Place(problem, oracles, torch.cat([start[None], points]))
