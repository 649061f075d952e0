"""Guarantees of mechanisms: steps and rates by hand, Lyapunov functions that contract, and an exact plateau."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from by_hand import hand, matrices, method_of, problem_of, start
from laconic.core.compressor import as_contractive
from laconic.core.problem import Block
from laconic.core.spec import parse
from laconic.core.state import flatten, restore
from laconic.core.theory import NoTheorem, Setting

SMALL = "quadratic(d=7, workers=4, noise=0.3, mu=0.1)"
LOGISTIC = "logistic(data='breast_cancer', l2=0.01, workers=5)"


def mean_of(tensor: Tensor) -> Tensor:
    """The mean over workers in the order in which messages are added."""
    total = torch.zeros_like(tensor[0])
    for row in tensor:
        total = total + row * (1.0 / len(tensor))
    return total


# ---- constants by hand -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spec", "setting", "step", "rate"),
    [
        # 1 / (2 + sqrt(14.5) * 4) without mu; with mu the root is sqrt(32) and theta / (2 mu) = 0.2 is larger
        ("ef21(topk(k=36))", hand(mu=None), 1 / (2 + 4 * math.sqrt(14.5)), None),
        ("ef21(topk(k=36))", hand(), 1 / (2 + math.sqrt(14.5 * 32)), 1 - 0.5 / (2 + math.sqrt(464))),
        ("ef21(topk(k=36))", hand(mu=3.0), 0.2 / 6, 1 - 0.1),
        ("ef21(identity)", hand(), 0.5, 0.75),
        # 3PC: A = 0.2, B = max(3.2, trigger)
        ("clag(topk(k=36), trigger=1.0)", hand(mu=None), 1 / (2 + 3 * 4), None),
        ("clag(topk(k=36), trigger=5.0)", hand(mu=None), 1 / (2 + 3 * 5), None),
        ("clag(topk(k=36), trigger=5.0)", hand(), 1 / (2 + 3 * math.sqrt(50)), 1 - 0.5 / (2 + 3 * math.sqrt(50))),
        ("clag(identity, trigger=4.0)", hand(mu=None), 1 / (2 + 3 * 2), None),
        # 1 / (L + 6 omega L_max / n); a = 1/5, so 1 - a / 2 = 0.9; 9 / 8 makes natural's 1 / (2 + 6 * 7 / 32)
        ("diana(randk(k=20))", hand(), 1 / 44, 1 - 0.5 / 44),
        ("diana(randk(k=20))", hand(mu=8.8), 1 / 44, 0.9),
        ("diana(natural)", hand(), 1 / (2 + 42 / 32), 1 - 0.5 / (2 + 42 / 32)),
        ("diana(randk(k=20), rate=0.1)", hand(mu=8.8), 1 / 44, 0.95),
        ("diana(identity)", hand(), 0.5, 0.75),
        # p = 0.2: (1 - p) / p = 4; A = omega / n = 1, B = 0: M = sqrt(4 * 9) = 6
        ("marina(randk(k=20))", hand(mu=None), 1 / 8, None),
        ("marina(randk(k=20))", hand(), 1 / (2 + 6 * math.sqrt(2)), 1 - 0.5 / (2 + 6 * math.sqrt(2))),
        ("marina(randk(k=20), probability=0.1)", hand(mu=None), 1 / (2 + 9), None),
        ("marina(randk(k=20))", hand(mu=20.0), 0.2 / 40, 0.9),
        # PermK: p = 1/4, A = B = 1: M = sqrt(3) L_pm; shared: A = 0, B = -4: M^2 = 4 * 4 L^2 = 64
        ("marina(permk)", hand(mu=None), 1 / (2 + 1.5 * math.sqrt(3)), None),
        ("marina(shared_randk(k=20))", hand(mu=None), 1 / (2 + 8), None),
        ("marina(randk(k=1.0), probability=1.0)", hand(mu=None), 0.5, None),
        # d = 3 < n = 7: p = 1/3, A = 16/49, B = 2/7: M^2 = 2 (2/49 * 9 + 2/7 * 2.25)
        ("marina(permk)", hand(n=7, d=3, mu=None), 1 / (2 + math.sqrt(2 * (18 / 49 + 4.5 / 7))), None),
        # 1 / (max(1 - B, 0) L + 2 A L_max)
        ("direct(randk(k=20))", hand(), 1 / 16, 1 - 0.5 / 16),
        ("direct(natural)", hand(), 1 / (2 + 14 / 32), 1 - 0.5 / (2 + 14 / 32)),
        ("direct(permk)", hand(), 1 / 14, 1 - 0.5 / 14),
        ("direct(shared_randk(k=20))", hand(), 1 / 10, 0.95),
        ("direct(topk(k=36))", hand(n=1), 0.5, 1 - 0.25 * 0.36),
        # gradient descent: ||x - x*|| itself shrinks by 1 - step mu
        ("direct(identity)", hand(), 0.5, 0.75**2),
        ("direct(identity)", hand(mu=None), 0.5, None),
        # 1 - step mu / 2 is slower than 1 - alpha / 4
        ("ef14(topk(k=36))", hand(), 0.36 / (28 * 7), 1 - 0.25 * 0.36 / (28 * 7)),
        ("ef14_inside(topk(k=1))", hand(), 0.01 / (28 * 7), 1 - 0.25 * 0.01 / (28 * 7)),
        ("ef21_sgdm(topk(k=36), eta=0.05)", hand(), 0.05 / 14, None),
        ("ef21_sgdm(topk(k=36), eta=1.0)", hand(), 0.36 / (20 * math.sqrt(14.5)), None),
        # beta / theta = 16 on either side: 1 / (2 + sqrt(14.5 (16 * 16 + 32 * 129))); identity down: sqrt(14.5 * 32)
        ("ef21_bc(topk(k=36), topk(k=36))", hand(mu=None), 1 / (2 + math.sqrt(14.5 * (256 + 32 * 129))), None),
        ("ef21_bc(topk(k=36), identity)", hand(mu=None), 1 / (2 + math.sqrt(14.5 * 32)), None),
    ],
)
def test_steps_and_rates_by_hand(spec: str, setting: Setting, step: float, rate: float | None) -> None:
    entry: Any = parse(spec)
    method = parse("gd").__class__(entry).settled(setting)
    promise = method.guarantee(setting)
    assert method.step == promise.step == pytest.approx(step, rel=1e-12)
    assert promise.rate == (None if rate is None else pytest.approx(rate, rel=1e-12))
    four: Any = parse("gd").__class__(entry, step="4x").settled(setting)
    assert four.step == pytest.approx(4 * step, rel=1e-12)
    assert four.guarantee(setting).rate is None and four.guarantee(setting).lyapunov is None
    half: Any = parse("gd").__class__(entry, step=step / 2).settled(setting)
    assert (half.guarantee(setting).rate is None) == (rate is None)


def test_plateaus_by_hand() -> None:
    """2 step A sigma*^2 / mu with sigma* = 3: A = 1 at step 1/16, A = B = 1 at 1/14, and none with a shared support."""
    plateaus = {"randk(k=20)": 2 / 16 * 9 / 0.5, "permk": 2 / 14 * 9 / 0.5, "shared_randk(k=20)": 0.0, "identity": 0.0}
    for compressor, plateau in plateaus.items():
        promise = parse("gd").__class__(parse(f"direct({compressor})")).guarantee(hand())
        assert promise.plateau == pytest.approx(plateau, rel=1e-12)


def test_vr_diana_by_hand() -> None:
    """omega = 4, n = 4, terms up to 6: 1 / (L (1 + (144 + 34) / 4)), and 1 - 1 / 12 is the largest of the three."""
    method: Any = parse("gd(diana(randk(k=20)), estimator=lsvrg)")
    setting = hand(L_sample=10.0, mu=3.0)
    promise = method.settled(setting).guarantee(setting)
    assert promise.step == pytest.approx(1 / (10 * (1 + 178 / 4)), rel=1e-12)
    assert promise.rate == pytest.approx(max(1 - 3 * promise.step, 0.9, 1 - 1 / 12), rel=1e-12)


@pytest.mark.parametrize(
    ("spec", "setting", "why"),
    [
        ("direct(topk(k=2))", hand(), "biased"),
        ("diana(topk(k=2))", hand(), "unbiased"),
        ("diana(permk)", hand(), "independent"),
        ("ef21(randk(k=2))", hand(), "contractive"),
        ("ef14(randk(k=2))", hand(), "contractive"),
        ("clag(randk(k=2))", hand(), "contractive"),
        ("ef21_bc(randk(k=2))", hand(), "contractive"),
        ("powersgd", hand(), "theorem"),
        ("ef21_sgdm(permk)", hand(), "contractive"),
        ("direct(natural)", hand(convex=False), "convex"),
        ("diana(natural)", hand(convex=False), "convex"),
        ("diana(natural)", hand(mu=None), "mu"),
        ("ef14(topk(k=2))", hand(convex=False), "convex"),
        ("ef14_inside(topk(k=2))", hand(convex=False), "convex"),
        ("gd(ef21(topk(k=2)), estimator=sgd)", hand(), "full gradients"),
        ("gd(diana(natural), estimator=sgd)", hand(), "variance-reduced"),
        ("gd(diana(natural, rate=1.0))", hand(), "rate"),
    ],
)
def test_a_combination_that_no_theorem_covers_needs_a_step_and_says_why(spec: str, setting: Setting, why: str) -> None:
    entry: Any = parse(spec)
    method: Any = entry if entry.kind == "method" else parse("gd").__class__(entry)
    with pytest.raises(NoTheorem, match=why) as caught:
        method.settled(setting)
    assert "step" in str(caught.value) or "admit" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("spec", "why"),
    [
        ("gd(marina(permk), estimator=lsvrg{})", "needs full gradients and lsvrg gives estimates"),
        ("gd(marina(topk(k=2)){})", "needs an unbiased compressor and topk"),
    ],
)
def test_a_need_that_is_not_met_is_refused_whatever_the_step(spec: str, why: str) -> None:
    for step in ("", ", step=0.1"):
        method: Any = parse(spec.format(step))
        with pytest.raises(ValueError, match=why) as caught:
            method.settled(hand())
        assert not isinstance(caught.value, NoTheorem) and "\n" not in str(caught.value)


def test_an_explicit_step_asks_no_theorem() -> None:
    for spec in ("gd(direct(topk(k=2)), step=0.1)", "gd(powersgd, step=0.1)", "gd(ef14(randk(k=2)), step=0.1)"):
        assert method_of(spec, problem_of(SMALL)).step == 0.1


# ---- Lyapunov functions ----------------------------------------------------------------------------------------------

CONVEX = "quadratic(d=20, workers=6, noise=0.2, mu=0.05)"
NONCONVEX_PARTS = "quadratic(d=20, workers=6, noise=0.8, mu=0.01)"  # f is strongly convex, some f_i are not convex


def lyapunovs(spec: str, problem: str, iterations: int, seed: int = 0) -> tuple[list[float], float]:
    """V after every iteration, and the rate."""
    course = start(spec, problem, seed)
    solution, promise = course.problem.solution(), course.guarantee()
    assert solution is not None and promise.rate is not None
    values = [course.lyapunov()]
    for _ in range(iterations):
        values.append(course.go().lyapunov())
    return values, promise.rate


@pytest.mark.parametrize("problem", [CONVEX, NONCONVEX_PARTS, LOGISTIC, "counterexample"])
@pytest.mark.parametrize(
    "spec",
    [
        "direct(identity)",
        "ef21(topk(k=2))",
        "ef21(topk(k=0.5))",
        "clag(topk(k=2), trigger=1.0)",
        "clag(identity, trigger=9.0)",
        "gd(ef21(topk(k=1)), step='0.5x')",
    ],
)
def test_deterministic_mechanisms_contract_at_every_step(spec: str, problem: str) -> None:
    """Down to rounding: below 1e-13 of the start differences of f decide nothing."""
    values, rate = lyapunovs(spec, problem, 150)
    for before, after in itertools.pairwise(values):
        assert after <= rate * before * (1 + 1e-9) + 1e-13 * values[0]


def test_gradient_descent_attains_its_rate() -> None:
    """The bound is called tight: on an eigenvector of mu nothing is given away."""
    problem = problem_of("quadratic(d=5, workers=2, noise=0.0, mu=0.1)")
    course, solution = start("gd", problem), problem.solution()
    assert solution is not None and course.guarantee().tight and course.guarantee().rate is not None
    a, _ = matrices(problem)
    slow = torch.linalg.eigh(a.mean(0)).eigenvectors[:, 0]
    course.state.x, course.state.estimate = solution.x + slow, mean_of(course.oracles[0].gradients(solution.x + slow))
    before = course.lyapunov()
    assert course.go().lyapunov() / before == pytest.approx(course.guarantee().rate, rel=1e-9)


@pytest.mark.parametrize("problem", [CONVEX, LOGISTIC])
@pytest.mark.parametrize("spec", ["diana(natural)", "diana(randk(k=4))", "diana(randk(k=4), rate=0.05)"])
def test_diana_contracts_on_average(spec: str, problem: str) -> None:
    """E[V after | before] <= rate V before: one step from one state, averaged over seeds, with its sampling error."""
    average_contracts(spec, problem, warm=15, draws=60)


@pytest.mark.parametrize("problem", [CONVEX, NONCONVEX_PARTS])
@pytest.mark.parametrize(
    "spec", ["marina(randk(k=4))", "marina(permk)", "marina(natural)", "marina(shared_randk(k=4))"]
)
def test_marina_contracts_on_average(spec: str, problem: str) -> None:
    average_contracts(spec, problem, warm=15, draws=120)


def average_contracts(spec: str, problem: str, warm: int, draws: int) -> None:
    course = start(spec, problem).go(warm)
    solution, rate = course.problem.solution(), course.guarantee().rate
    assert solution is not None and rate is not None
    before, after = course.lyapunov(), []
    kept, step = {name: leaf.tensor.clone() for name, leaf in flatten(course.state).items()}, course.step
    for draw in range(draws):
        course.states = [restore(course.state, kept)]
        course.step = step + 1000 * draw  # other randomness
        after.append(course.go().lyapunov())
    error = float(np.std(after)) / math.sqrt(draws)
    assert float(np.mean(after)) <= rate * before + 4 * error
    assert error < 0.2 * before  # the average says something


# ---- the plateau of direct compression -------------------------------------------------------------------------------


def plateau_of_randk(a: Tensor, b: Tensor, step: float, omega: float) -> float:
    """tr Sigma of the stationary law of x <- x - step mean RandK(A_i x - b_i), solved exactly.

    Given z = x - x*, worker i's gradient is g_i = A_i z + r_i. RandK scales a uniform k-subset: Cov(Q(g)) has the
    entries omega g_j^2 on the diagonal and (d (k - 1) / (k (d - 1)) - 1) g_j g_l off it. Workers are independent.
    E z = 0 in the stationary law, so Sigma solves a linear equation: Sigma = (I - sH) Sigma (I - sH) + s^2 N(Sigma).
    """
    n, d = b.shape
    h = a.mean(0)
    solution = torch.linalg.solve(h, b.mean(0))
    residual = a @ solution - b
    k = d / (1 + omega)
    off = d * (k - 1) / (k * (d - 1)) - 1
    weights = torch.full((d, d), off, dtype=a.dtype).fill_diagonal_(omega)
    keep = torch.eye(d, dtype=a.dtype) - step * h

    def push(sigma: Tensor) -> Tensor:
        second = a @ sigma @ a.transpose(1, 2) + residual[:, :, None] * residual[:, None, :]
        return keep @ sigma @ keep + step**2 * (weights * second).sum(0) / n**2

    sigma = torch.zeros(d, d, dtype=a.dtype)
    for _ in range(200_000):
        renewed = push(sigma)
        if float((renewed - sigma).abs().max()) < 1e-14 * float(renewed.abs().max()):
            break
        sigma = renewed
    return float(sigma.trace())


def test_the_plateau_of_direct_randk_is_the_exact_one() -> None:
    problem = problem_of("quadratic(d=6, workers=5, noise=0.5, mu=0.3)")
    a, b = matrices(problem)
    solution = problem.solution()
    assert solution is not None and torch.allclose(torch.linalg.solve(a.mean(0), b.mean(0)), solution.x, rtol=1e-10)
    for factor in ("1x", "0.25x"):
        course = start(f"gd(direct(randk(k=2)), step={factor!r})", problem)
        step: float = course.method.step
        expected = plateau_of_randk(a, b, step, omega=2.0)
        promise = course.guarantee()
        assert expected < promise.plateau  # the bound is safe
        course.go(math.ceil(8 / (step * 0.3)))
        batches = []
        for _ in range(24):  # means over batches that are long against the mixing time are nearly independent
            total, length = 0.0, math.ceil(10 / (step * 0.3))
            for _ in range(length):
                total += float(((course.go().x - solution.x) ** 2).sum())
            batches.append(total / length)
        error = float(np.std(batches, ddof=1)) / math.sqrt(len(batches))
        assert abs(float(np.mean(batches)) - expected) < 4 * error and error < 0.1 * expected


def test_a_shared_support_has_no_plateau() -> None:
    problem = problem_of("quadratic(d=6, workers=5, noise=0.5, mu=0.3)")
    solution = problem.solution()
    assert solution is not None
    course = start("direct(shared_randk(k=2))", problem)
    assert float((course.go(3000).x - solution.x).norm()) < 1e-12


def test_the_helpers_of_this_file_are_right() -> None:
    """The matrices of a quadratic are those of its gradients, and the compressors have the constants used above."""
    problem = problem_of(SMALL)
    a, b = matrices(problem)
    x = torch.arange(7, dtype=torch.float64)
    assert torch.allclose(a @ x - b, problem.oracles(Block.whole(4)).gradients(x), rtol=1e-12, atol=1e-13)
    assert as_contractive(parse("topk(k=36)").claim(100, 4)) == 0.36
    assert parse("randk(k=20)").claim(100, 4).omega == 4.0
