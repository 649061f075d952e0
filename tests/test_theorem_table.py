"""Every mechanism with every compressor that its theorem admits: what is promised at the theorem's step is kept.

The table is made from the catalogue, so that a new mechanism is in it without a word here. A mechanism without a
Lyapunov function must be named in WITHOUT, so that none is missed by silence.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch

from by_hand import Course, matrices, problem_of, setting_of, start
from laconic.core.compressor import Compressor
from laconic.core.registry import catalogue
from laconic.core.spec import example, parse
from laconic.core.state import flatten, restore
from laconic.core.theory import Guarantee, NoTheorem
from laconic.methods.gd import GD

# unlike workers with convex f_i; unlike workers of which some f_i are not convex; real data
PROBLEMS = [
    "quadratic(d=20, workers=6, noise=0.2, mu=0.05)",
    "quadratic(d=20, workers=6, noise=0.8, mu=0.01)",
    "logistic(data='breast_cancer', l2=0.01, workers=5)",
]
COMPRESSORS = [
    "identity", "topk(k=2)", "topk(k=0.5)", "unscaled_randk(k=5)", "scaled_sign", "natural_rounding", "randk(k=4)",
    "natural", "qsgd(levels=3)", "permk", "shared_randk(k=4)", "induced(topk(k=2), randk(k=4))",
    "topk(k=5) | natural_rounding",
]  # fmt: skip
# what the replacement of compressors does not reach
OTHERS = [
    "delayed(direct, delay=2)", "local_importance(ef21(scaled_reweighted_impk(k=0.5)))",
    "server_importance(ef21(scaled_reweighted_impk(k=0.5)))", "shared_importance(ef21(scaled_reweighted_impk(k=0.5)))",
]  # fmt: skip
# mechanisms of which no theorem with a Lyapunov function is known; each says so, or why, where it is asked
WITHOUT = {
    "alternating_powersgd": "a warm start has no worst-case contraction",
    "powersgd": "a warm start has no worst-case contraction",
    "artemis_memory": "none is known",
    "dasha_sync_mvr": "its function needs the mean of what workers keep and the server's estimate at once",
    "ef1": "its memory takes a random part of the gradient",
    "ef2": "it forgets, and keeps a bias whatever the step",
    "ef21_sgdm": "recalled, for non-convex functions: no rate",
    "ef21_sgd2m": "the constants are not at hand",
    "majority_vote": "it ends in a cycle elsewhere",
    "ssdm": "its signs do not shrink",
    "scam": "the slides assume what does not follow",
    "scam_reset": "the slides assume what does not follow",
    "scam_21": "none is known",
}
DRAWS, WARM = 60, 12


def combinations() -> list[Any]:
    """Every mechanism by its example, its compressors replaced by each of the list (two compressors: by equal ones)."""
    found: list[Any] = [parse(spec) for spec in OTHERS]
    for cls in catalogue().of_kind("mechanism"):
        entry: Any = parse(example(cls))
        found.append(entry)
        names = [f.name for f in dataclasses.fields(entry) if isinstance(getattr(entry, f.name), Compressor)]
        for spec in COMPRESSORS if names else ():
            with contextlib.suppress(ValueError):  # refused by name: tests of the mechanism look at that
                found.append(dataclasses.replace(entry, **{name: parse(spec) for name in names}))
    return list(dict.fromkeys(found))


@functools.cache
def promise_of(mechanism: Any, problem: str) -> Any:
    """The settled method and its guarantee, or None where no theorem covers the combination."""
    setting = setting_of(problem_of(problem))
    try:
        method = GD(mechanism).settled(setting)
        promise = method.guarantee(setting)
    except (NoTheorem, ValueError):
        return None
    return (method, promise) if promise.lyapunov is not None and promise.rate is not None else None


TABLE = [
    pytest.param(mechanism, problem, id=f"{mechanism} on {problem.split('(')[0]} {place}")
    for mechanism in combinations()
    for place, problem in enumerate(PROBLEMS)
    if promise_of(mechanism, problem) is not None
]


@functools.cache
def varies(mechanism: Any, problem: str) -> bool:
    """Whether a run depends on its seed."""
    method = promise_of(mechanism, problem)[0]
    one = start(method, problem, 0).go(WARM).x
    return not all(torch.equal(one, start(method, problem, seed).go(WARM).x) for seed in (1, 2))


@pytest.mark.parametrize(("mechanism", "problem"), TABLE)
def test_the_lyapunov_function_contracts_as_promised(mechanism: Any, problem: str) -> None:
    """At every step where nothing is drawn; else on average over draws from one state, with its sampling error."""
    method, promise = promise_of(mechanism, problem)
    course = start(method, problem)
    allowed = (1.0 - promise.rate) * promise.plateau  # V - plateau contracts
    if varies(mechanism, problem):
        before, after = averaged(course, promise)
        excess = after - promise.rate * before
        error = float(np.std(excess)) / math.sqrt(len(excess))
        assert float(np.mean(excess)) <= allowed + 4.0 * error
        assert error < 0.25 * float(np.mean(before))  # the average says something
        return
    values = [course.lyapunov(promise)]
    values += [course.go().lyapunov(promise) for _ in range(60)]
    for before, after in itertools.pairwise(values):
        assert after <= promise.rate * before * (1 + 1e-9) + allowed + 1e-13 * values[0]


def averaged(course: Course, promise: Guarantee) -> tuple[np.ndarray, np.ndarray]:
    """V one and two iterations after a state that a run passes through, for many draws of both.

    Two, for a state may hold an estimate that is drawn already: then the first of them has nothing random.
    """
    pairs = []
    course.go(WARM)
    kept, step = {name: leaf.tensor.clone() for name, leaf in flatten(course.state).items()}, course.step
    for draw in range(DRAWS):
        course.states, course.step = [restore(course.state, kept)], step + 1000 * draw
        pairs.append((course.go().lyapunov(promise), course.go().lyapunov(promise)))
    before, after = np.array(pairs).T
    return before, after


def test_the_table_leaves_no_mechanism_out_by_silence() -> None:
    """Each has a row, or is named with the reason."""
    names = {cls.name for cls in catalogue().of_kind("mechanism")}
    rows = {parameter.values[0].name for parameter in TABLE}
    assert names - rows == set(WITHOUT), (sorted(names - rows), sorted(WITHOUT))


def test_where_a_bound_is_called_tight_twice_the_step_fails() -> None:
    """On an eigenvector of L nothing is gained at 2 / L."""
    tight = {str(p.values[0]) for p in TABLE if promise_of(*p.values)[1].tight}
    assert tight and all(name.endswith(("identity)", "direct", "all_reduce")) for name in tight), tight
    problem = problem_of("quadratic(d=5, workers=2, noise=0.0, mu=0.1)")
    solution, (a, _) = problem.solution(), matrices(problem)
    assert solution is not None
    steep = torch.linalg.eigh(a.mean(0)).eigenvectors[:, -1]
    for spec in tight:
        course = start(GD(parse(spec), step="2x"), problem)
        course.state.x = solution.x + steep
        course.state.estimate = course.oracles[0].gradients(course.x).mean(0)
        assert float((course.go().x - solution.x).norm()) == pytest.approx(1.0, rel=1e-9)
