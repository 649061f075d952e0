"""Where asynchronous methods go, in virtual time: their distance to x*, and to the point that fast workers pull to."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from laconic.core import rows
from laconic.core.delay import Delays
from laconic.core.method import Method
from laconic.core.problem import Block, Oracles, Problem
from laconic.core.theory import Setting
from laconic.runtime.local import Local


@dataclass(frozen=True)
class Seen:
    """One moment of a run: distances of the mean of the iterates since half of the steps so far, and of the iterate."""

    step: int
    virtual_seconds: float
    mean_to_solution: float
    mean_to_pulled: float
    to_solution: float


def pulled_point(problem: Problem, weights: Sequence[float], accuracy: float = 1e-12, most: int = 100_000) -> Tensor:
    """The x with sum_i w_i grad f_i(x) = 0, by gradient descent: for f_i that are strongly convex together.

    For `weights` of one over the seconds of each worker it is where pure_async goes.
    Raises ValueError where the relative accuracy is not reached.
    """
    oracles = problem.oracles(Block.whole(problem.n))
    share = torch.tensor(weights, dtype=oracles.dtype) / sum(weights)
    shape = (len(weights), *(1 for _ in oracles.shape))
    smooth = max(problem.constants().L_workers)
    x, first = oracles.start(), None
    for _ in range(most):
        gradient = problem.n * rows.mean(share.view(shape) * oracles.gradients(x))
        norm = rows.square(gradient) ** 0.5
        first = first or norm
        if norm <= accuracy * first:
            return x
        x = x - gradient / smooth
    raise ValueError(f"{problem}: no point was found with a weighted gradient below {accuracy:g} times the first one")


def bias(problem: Problem, method: Method, delays: Delays, steps: int, every: int = 50, seed: int = 0) -> list[Seen]:
    """A run of an asynchronous method in virtual time, looked at every so many steps."""
    solution, bounds = problem.solution(), delays.bounds(problem.n)
    if solution is None or bounds is None:
        raise ValueError("the bias is shown on problems with a known solution, with delays that are bounded")
    pulled = pulled_point(problem, (1.0 / np.mean(bounds, axis=0)).tolist())
    runtime = Local(problem.n, seed=seed)
    oracles: Oracles = problem.host(runtime.links[0].block)
    ready = method.settled(dataclasses.replace(Setting.of(problem, oracles), delays=delays))
    link, found, points = runtime.links[0], [], []
    link.begin(0)
    (state,) = runtime.drive(ready.init(oracles, link))
    for step in range(1, steps + 1):
        link.begin(step)
        (state,) = runtime.drive(ready.iterate(state, oracles, link))
        points.append(ready.point(state))
        if step % every == 0:
            mean = torch.stack(points[step // 2 :]).mean(dim=0)
            x, now = points[-1], ready.virtual_seconds(state)
            assert now is not None
            away = [float((a - b).norm()) for a, b in ((mean, solution.x), (mean, pulled), (x, solution.x))]
            found.append(Seen(step, now, *away))
    return found
