"""Runs methods by hand on runtimes in this process, for tests that look at every state."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor

from laconic.checks.course import Course
from laconic.core.mechanism import Mechanism
from laconic.core.method import Method
from laconic.core.problem import Block, Constant, Constants, Problem
from laconic.core.spec import parse
from laconic.core.theory import Setting
from laconic.methods.gd import GD
from laconic.runtime.local import Local

Runtimes = dict[str, Callable[[int, int], Local]]
RUNTIMES: Runtimes = {
    "plain": lambda n, seed: Local(n, seed=seed),
    "three parts": lambda n, seed: Local(n, seed=seed, parts=3),
    "encoded": lambda n, seed: Local(n, seed=seed, encoded=True),
    "a part for each and two for none": lambda n, seed: Local(n, seed=seed, parts=n + 2, encoded=True),
    "star": lambda n, seed: Local.debug(n, seed=seed),
    "encoded star": lambda n, seed: Local.debug(n, seed=seed, encoded=True),
}


def problem_of(spec: str | Problem) -> Problem:
    return cast(Problem, parse(spec)) if isinstance(spec, str) else spec


def setting_of(problem: Problem) -> Setting:
    return Setting.of(problem, problem.oracles(Block.whole(problem.n)))


def method_of(spec: Any, problem: Problem) -> Method:
    """A settled method; a mechanism means gradient descent with it."""
    entry: Any = parse(spec) if isinstance(spec, str) else spec
    return (GD(entry) if isinstance(entry, Mechanism) else entry).settled(setting_of(problem))


def start(spec: Any, problem: str | Problem, seed: int = 0, runtime: str = "plain") -> Course:
    """A settled method on a problem after its init."""
    problem = problem_of(problem)
    return Course(method_of(spec, problem), problem, RUNTIMES[runtime](problem.n, seed))


def distance(run: Course) -> float:
    """To the reference solution."""
    solution = run.problem.solution()
    assert solution is not None
    return float((run.x - solution.x).norm())


def equal(a: Tensor, b: Tensor) -> bool:
    """The same bits, NaN and signs of zero included."""
    return a.shape == b.shape and a.contiguous().numpy().tobytes() == b.contiguous().numpy().tobytes()


def matrices(problem: Problem) -> tuple[Tensor, Tensor]:
    """Of a quadratic problem: A_i (n, d, d) and b_i (n, d), from the oracles alone."""
    oracles = problem.oracles(Block.whole(problem.n))
    zero = torch.zeros(oracles.shape, dtype=oracles.dtype)
    columns = [oracles.gradients(e) for e in torch.eye(oracles.d, dtype=oracles.dtype)]
    linear = -oracles.gradients(zero)
    return torch.stack(columns, dim=2) + linear[:, :, None], linear


def hand(n: int = 4, d: int = 100, convex: bool = True, mu: float | None = 0.5, **other: float) -> Setting:
    """L = 2, L_i = 1, 2, 2, 7 (so L~^2 = 14.5), L+ = 3, L_pm = 1.5, mu = 0.5."""
    values = {
        "L": 2.0,
        "L_max": 7.0,
        "L_tilde": math.sqrt(14.5),
        "L_plus": 3.0,
        "L_pm": 1.5,
        "sigma_star": 3.0,
        **other,
    }
    if mu is not None:
        values |= {"mu": mu, "mu_workers": mu}
    named = {name: Constant(value) for name, value in values.items()}
    return Setting(Constants(L_workers=(1.0, 2.0, 2.0, 7.0), **named), n, (d,), (5, 6), convex)
