"""Saddle points and the methods for operators: constants, references in plain NumPy, contractions, what is refused."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import laconic
from by_hand import Course, distance, matrices, method_of, problem_of, setting_of, start
from laconic.checks.run import check
from laconic.core.problem import Block, Problem
from laconic.core.registry import catalogue
from laconic.core.spec import example, parse
from laconic.core.theory import NoTheorem
from laconic.lab import plots
from laconic.lab.page import Section, page
from laconic.lab.series import accuracy, axes, figure, measure_of
from laconic.methods import extragradient_sliding, svogs, three_pillars
from laconic.methods._inner import SHORT
from laconic.methods._inner_operator import zero
from laconic.problems import _data
from laconic.problems._split import ends

DEFAULT = "saddle"  # d = 20 each, 10 workers, ||B|| = 10, delta = 0.5, mu = 0.1: L / mu = 100, delta / mu = 5
SMALL = "saddle(d=4, workers=4, coupling=2.0, similarity=0.4, mu=0.2)"
ROBUST = "robust_regression(data='diabetes', workers=4)"
FOR_OPERATORS = {
    "extragradient", "optimistic_gradient", "extragradient_sliding", "optimistic_masha", "three_pillars",
    "three_pillars_pp", "svogs",
}  # fmt: skip


class Small:
    """SMALL in plain NumPy: K_i, c_i, z*."""

    def __init__(self, spec: str = SMALL) -> None:
        self.problem = problem_of(spec)
        k, c = matrices(self.problem)
        self.k, self.c = k.numpy(), c.numpy()
        self.mean, self.best = self.k.mean(0), np.linalg.solve(self.k.mean(0), self.c.mean(0))

    def each(self, z: np.ndarray) -> np.ndarray:
        """F_i(z), (n, d)."""
        return self.k @ z - self.c

    def f(self, z: np.ndarray) -> np.ndarray:
        return self.each(z).mean(0)


def measured(found: Any) -> np.ndarray:
    return np.asarray(found, dtype=np.float64)


def norm(a: np.ndarray) -> float:
    return float(np.linalg.norm(a, ord=2))


def step_of(course: Course) -> float:
    method: Any = course.method
    return method.step


def close(course: Course, z: np.ndarray) -> bool:
    return bool(np.allclose(course.x.numpy(), z, rtol=1e-9, atol=1e-10))


def drawn(course: Course, name: str, *arguments: Any) -> Any:
    """What a link draws at the course's iteration."""
    link = course.runtime.links[0]
    link.begin(course.step)
    return getattr(link, name)(*arguments)


@pytest.fixture
def exact(monkeypatch: pytest.MonkeyPatch) -> None:
    """Affine subproblems are solved by linear algebra."""

    def solved(operator: Callable[[Tensor], Tensor], start: Tensor, *_: Any) -> Tensor:
        at_zero = operator(torch.zeros_like(start))
        columns = [operator(e) - at_zero for e in torch.eye(len(start), dtype=start.dtype)]
        return torch.linalg.solve(torch.stack(columns, dim=1), -at_zero)

    for module in (extragradient_sliding, three_pillars, svogs):
        monkeypatch.setattr(module, "zero", solved)


# ---- problems --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("spec", [SMALL, "saddle(d=3, workers=1)", "saddle(d=1, workers=3, noise=0.0)"])
def test_constants_of_the_saddle_by_linear_algebra(spec: str) -> None:
    small = Small(spec)
    c, away, z = small.problem.constants(), small.k - small.mean, small.best
    squares = np.mean([k.T @ k for k in small.k], axis=0)
    expected = {
        "L": norm(small.mean),
        "L_max": max(norm(k) for k in small.k),
        "L_plus": math.sqrt(norm(squares)),
        "mu": float(np.linalg.eigvalsh(0.5 * (small.mean + small.mean.T))[0]),
        "mu_workers": min(float(np.linalg.eigvalsh(0.5 * (k + k.T))[0]) for k in small.k),
        "delta": max(norm(a) for a in away),
        "delta_server": norm(away[0]),
        "delta_mean": math.sqrt(norm(np.mean([a.T @ a for a in away], axis=0))),
        "L_pm": math.sqrt(norm(squares - small.mean.T @ small.mean)),
        "sigma_star": math.sqrt(float((small.each(z) ** 2).sum(1).mean())),
    }
    for name, value in expected.items():
        assert float(c.named()[name]) == pytest.approx(value, rel=1e-9, abs=2e-7), name
    assert c.L_workers == pytest.approx([norm(k) for k in small.k], rel=1e-12)
    solution = small.problem.solution()
    assert solution is not None and math.isnan(solution.value) and solution.gap < 1e-26
    assert np.allclose(solution.x.numpy(), z, rtol=1e-11, atol=1e-11)


def test_the_bilinear_part_dominates_the_saddle() -> None:
    """K_i + K_i' = 2 mu I, and delta is attained by somebody, whatever the seed."""
    for seed in range(3):
        small = Small(f"saddle(d=5, workers=3, coupling=7.0, similarity=0.3, mu=0.05, seed={seed})")
        assert np.allclose(small.k + small.k.transpose(0, 2, 1), 0.1 * np.eye(10), atol=1e-12)
        assert norm(small.mean[:5, 5:]) == pytest.approx(7.0, rel=1e-12)
        assert max(norm(k - small.mean) for k in small.k) == pytest.approx(0.3, rel=1e-12)


def test_the_saddle_is_one() -> None:
    """f(u*, w) <= f(u*, w*) <= f(u, w*)."""
    problem = problem_of(SMALL)
    oracles, solution = problem.oracles(Block.whole(4)), problem.solution()
    assert solution is not None
    best, f = solution.x, lambda z: float(oracles.values(z).mean())
    for step in torch.randn(20, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64):
        first, second = torch.cat([step[:4], torch.zeros(4)]), torch.cat([torch.zeros(4), step[4:]])
        assert f(best + first) > f(best) > f(best + second)


@pytest.mark.parametrize("spec", [SMALL, ROBUST, "composite(saddle(d=4, workers=3), box(low=-0.5, high=0.5))"])
def test_saddle_points_conform(spec: str) -> None:
    verdict = check(spec)
    assert verdict.passed, verdict.failures


def rows_of(workers: int) -> list[tuple[np.ndarray, np.ndarray]]:
    table = _data.load("diabetes")
    cuts = ends(len(table.targets), workers, False)
    return [
        (table.matrix[low:high].toarray(), table.targets[low:high]) for low, high in itertools.pairwise(cuts.tolist())
    ]


def robust(a: np.ndarray, b: np.ndarray, z: np.ndarray, l2: float = 0.1, damping: float = 1.0) -> tuple[float, Any]:
    """f_i and F_i, term by term."""
    u, w = np.split(z, 2)
    value, first, second = 0.5 * l2 * u @ u - 0.5 * damping * w @ w, l2 * u, -damping * w
    for row, target in zip(a, b, strict=True):
        residual = u @ (row + w) - target
        value += residual**2 / 2 / len(b)
        first, second = first + residual * (row + w) / len(b), second + residual * u / len(b)
    return float(value), np.concatenate([first, -second])


def test_robust_regression_by_its_definition() -> None:
    problem = problem_of(ROBUST)
    oracles = problem.oracles(Block.whole(4))
    z = np.random.default_rng(3).normal(size=20)
    values, operators = oracles.values(torch.from_numpy(z)), oracles.gradients(torch.from_numpy(z))
    for row, (a, b) in enumerate(rows_of(4)):
        value, operator = robust(a, b, z)
        assert float(values[row]) == pytest.approx(value, rel=1e-11)
        assert np.allclose(operators[row].numpy(), operator, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("spec", [ROBUST, "robust_regression(workers=5, split='sorted')"])
def test_the_solution_of_robust_regression(spec: str) -> None:
    """F vanishes, to the accuracy of the certificate; mu and L hold on the way from z^0 to it."""
    problem = problem_of(spec)
    solution, c = problem.solution(), problem.constants()
    assert solution is not None and c.mu is not None and solution.gap < 1e-27
    oracles = problem.oracles(Block.whole(problem.n))
    operator = oracles.gradients(solution.x).mean(0)
    assert float(operator.norm()) < 1e-13
    for share in (0.0, 0.3, 0.9):
        z = share * solution.x
        change, away = oracles.gradients(z).mean(0) - operator, z - solution.x
        assert float(change @ away) >= float(c.mu) * float(away @ away)
        assert float(change.norm()) <= float(c.L) * float(away.norm())


def test_robust_regression_is_monotone_only_where_damping_pays() -> None:
    """The Jacobian's symmetric part in w is damping - ||u||^2; where it is negative there is no mu, or no solution."""
    problem = problem_of("robust_regression(data='diabetes', damping=0.3)")
    assert problem.constants().mu is None and problem.solution() is not None
    with pytest.raises(NoTheorem, match="the theorem of extragradient needs a monotone operator"):
        method_of("extragradient", problem)
    with pytest.raises(ValueError, match=r"no saddle point is found where F is monotone; take a larger damping"):
        problem_of("robust_regression(data='diabetes', damping=0.01)").solution()


# ---- theorems about minimisation say nothing here --------------------------------------------------------------------


def minimisers() -> list[str]:
    return [example(cls) for cls in catalogue().of_kind("method") if cls.name not in FOR_OPERATORS]


@pytest.mark.parametrize("spec", minimisers())
def test_no_theorem_about_minimisation_speaks_of_saddle_points(spec: str) -> None:
    setting = setting_of(problem_of(SMALL))
    method: Any = parse(spec)
    with pytest.raises(ValueError) as refused:
        method.settled(setting).guarantee(setting)
    assert "\n" not in str(refused.value)


def test_a_refusal_says_what_to_do() -> None:
    words = "gd: its theorem is about minimisation, and the problem is a variational inequality; give an explicit step"
    with pytest.raises(NoTheorem, match=words):
        laconic.run(SMALL, "gd", rounds=2)
    with pytest.raises(ValueError, match="has no proximal step"):
        laconic.run("composite(saddle(d=4), box)", "three_pillars", rounds=2)


@pytest.mark.parametrize("name", sorted(FOR_OPERATORS))
def test_a_gradient_is_an_operator(name: str) -> None:
    """The same constants, and the same step, on a problem that is minimised."""
    setting = setting_of(problem_of("quadratic(d=6, workers=4, noise=0.1, mu=0.1)"))
    assert setting.operator is setting.constants and not setting.variational
    as_operator = dataclasses.replace(setting, monotone=setting.constants)
    method: Any = parse(name)
    assert method.settled(setting).guarantee(setting).step == method.settled(as_operator).guarantee(as_operator).step


# ---- gradient descent-ascent -----------------------------------------------------------------------------------------


def test_descent_ascent_diverges_where_minimisation_would_converge() -> None:
    """At 0.5 / L; at mu / L^2 it creeps."""
    problem = problem_of(DEFAULT)
    c = problem.constants()
    smooth, mu = float(c.L), float(c.mu or 0.0)
    fast, slow = start(f"gd(step={0.5 / smooth!r})", problem), start(f"gd(step={mu / smooth**2!r})", problem)
    first = distance(fast)
    assert distance(fast.go(300)) > 1e6 * first
    assert (1 - mu**2 / smooth**2) ** 100 * first <= distance(slow.go(100)) < first


def test_descent_ascent_by_the_formula() -> None:
    small = Small()
    course, step = start("gd(step=0.03)", small.problem).go(), 0.03
    error = course.x.numpy() - small.best
    for _ in range(20):
        error = error - step * small.mean @ error
        assert close(course.go(), small.best + error)


# ---- extragradient and optimistic gradient ---------------------------------------------------------------------------


def test_extragradient_by_the_formula_and_its_step_by_hand() -> None:
    small = Small()
    smooth, mu = norm(small.mean), 0.2
    course = start("extragradient", small.problem)
    step = step_of(course)
    assert step == pytest.approx((math.sqrt(smooth**2 + mu**2) - mu) / smooth**2, rel=1e-12)
    assert step**2 * smooth**2 + 2 * step * mu == pytest.approx(1.0, rel=1e-12)
    assert course.guarantee().rate == pytest.approx(1 - step * mu, rel=1e-12)
    z = np.zeros(8)
    for k in range(30):
        z = z - step * small.f(z - step * small.f(z))
        assert close(course.go(), z) and course.runtime.ledger.rounds == 2 * (k + 1)


def optimistic(small: Small, step: float, optimism: float = 1.0) -> Any:
    """z^1, z^2, ... from 0, with F(z_before) = F(z^0) at first."""
    z, before = np.zeros(8), small.f(np.zeros(8))
    while True:
        here = small.f(z)
        z, before = z - step * (here + optimism * (here - before)), here
        yield z


def test_optimistic_gradient_by_the_formula() -> None:
    small = Small()
    course = start("optimistic_gradient", small.problem)
    step = step_of(course)
    assert step == pytest.approx(1 / (3 * norm(small.mean)), rel=1e-12)
    for k, z in enumerate(itertools.islice(optimistic(small, step), 30)):
        assert close(course.go(), z) and course.runtime.ledger.rounds == k + 2


@pytest.mark.parametrize("problem", [DEFAULT, SMALL, ROBUST, "saddle(similarity=0.0, d=3, coupling=1.0, mu=0.5)"])
@pytest.mark.parametrize(
    "spec", ["extragradient", "extragradient(step='0.4x')", "optimistic_gradient", "optimistic_gradient(step='0.4x')",
             "extragradient_sliding", "extragradient_sliding(step='0.4x')"],
)  # fmt: skip
def test_what_theorems_promise_contracts_at_every_step(spec: str, problem: str) -> None:
    course = start(spec, problem)
    promise, solution = course.guarantee(), course.problem.solution()
    assert promise.rate is not None and promise.lyapunov is not None and solution is not None
    after = first = value(course, promise)
    for _ in range(30):
        before, after = after, value(course.go(), promise)
        if after <= 1e-18 * first:
            break  # rounding
        assert after <= promise.rate * before * (1 + 1e-9)


def value(course: Course, promise: Any) -> float:
    """The Lyapunov function; there is no gap that it might look at."""
    x, solution = course.x, course.problem.solution()
    gradient = course.oracles[0].gradients(x).mean(0)
    snapshot = laconic.core.theory.Snapshot(x, math.nan, gradient, course.state, course.oracles[0], solution)
    return promise.lyapunov(snapshot).value


def test_rates_by_hand() -> None:
    """On SMALL: mu = 0.2, L^2 = 4.04."""
    smooth, rates = math.sqrt(4.04), {}
    for spec in ("optimistic_gradient", "optimistic_gradient(step=0.1)", "extragradient_sliding(step=0.5)"):
        rates[spec] = start(spec, SMALL).guarantee().rate
    assert rates["optimistic_gradient"] == pytest.approx(1 / (1 + 0.2 / (2 * smooth)), rel=1e-12)
    assert rates["optimistic_gradient(step=0.1)"] == pytest.approx(1 / (1 + 0.04 / (1 + 0.1 * smooth)), rel=1e-12)
    delta = float(problem_of(SMALL).constants().delta_server or 0.0)
    left = 1 - (0.5 * delta + 1 / 6) ** 2
    assert rates["extragradient_sliding(step=0.5)"] == pytest.approx(1 - 0.2 / (1 + max(1, 0.2 / left)), rel=1e-12)
    for spec, largest in (("extragradient", 0.5), ("optimistic_gradient", 1 / 6), ("extragradient_sliding", 1.3)):
        assert start(f"{spec}(step={2 * largest})", SMALL).guarantee().rate is None


# ---- sliding ---------------------------------------------------------------------------------------------------------


def test_sliding_with_an_exact_server_is_tsengs_splitting(exact: None) -> None:
    small = Small()
    delta = norm(small.k[0] - small.mean)
    course = start("extragradient_sliding", small.problem)
    step = step_of(course)
    assert step == pytest.approx(0.5 / delta, rel=1e-9)
    rest = lambda z: small.f(z) - small.each(z)[0]  # noqa: E731
    z, eye = np.zeros(8), np.eye(8)
    for k in range(12):
        u = np.linalg.solve(eye + step * small.k[0], z - step * rest(z) + step * small.c[0])
        z = u - step * (rest(u) - rest(z))
        assert close(course.go(), z) and course.runtime.ledger.rounds == 2 * (k + 1)


def test_slidings_own_constants_of_the_paper(exact: None) -> None:
    """z+ = z + eta pull (u - z) - eta F(u)."""
    small = Small()
    course = start("extragradient_sliding(step=0.6, prox_step=1.2, pull=0.4)", small.problem)
    z, eye = np.zeros(8), np.eye(8)
    for _ in range(8):
        rest = small.f(z) - small.each(z)[0]
        u = np.linalg.solve(eye + 1.2 * small.k[0], z - 1.2 * rest + 1.2 * small.c[0])
        z = z + 0.6 * 0.4 * (u - z) - 0.6 * small.f(u)
        assert close(course.go(), z)
    with pytest.raises(NoTheorem, match="needs prox_step = step and pull = 0"):
        course.guarantee()


def test_sliding_needs_few_rounds_and_counts_the_servers_work() -> None:
    """Contraction per iteration < 1 though L / mu = 100; inner calls grow with L / delta, rounds do not."""
    work = []
    for coupling in (10.0, 40.0):
        course = start("extragradient_sliding", f"saddle(coupling={coupling})")
        first = distance(course)
        assert distance(course.go(8)) < 0.9**3.5 * first
        assert course.runtime.ledger.rounds == 16
        work.append(course.oracles[0].asked().server_terms / 8)
        assert course.oracles[0].asked().gradient_terms == 16 * 10
    assert 2.0 < work[1] / work[0] < 8.0


def test_equal_workers_leave_nothing_to_say() -> None:
    """One iteration, up to the accuracy of the server."""
    for spec, most in (("extragradient_sliding", 1 / 6), ("three_pillars(step=1e4)", 0.4)):
        course = start(spec, "saddle(d=3, workers=3, similarity=0.0, coupling=1.0, mu=0.5)")
        assert distance(course.go()) < most * float(course.problem.solution().x.norm())  # type: ignore[union-attr]
        assert distance(course.go(3)) < most**3 * distance(start(spec, course.problem))


# ---- the inner solver ------------------------------------------------------------------------------------------------


def test_the_inner_solver_meets_its_criterion_or_says_how_far_it_came() -> None:
    small = Small()
    k, c, asked, said = torch.from_numpy(small.mean), torch.from_numpy(small.c.mean(0)), [0], []

    def operator(u: Tensor) -> Tensor:
        asked[0] += 1
        return k @ u - c

    remark = lambda text, number: said.append((text, number))  # noqa: E731
    at = torch.ones(8, dtype=torch.float64)
    for relative in (1e-1, 1e-4, 1e-9):
        u = zero(operator, at, norm(small.mean), 0.2, relative, remark)
        assert float((k @ u - c).norm()) <= relative * float((u - at).norm())
    assert not said and asked[0] % 2 == 1
    u = zero(operator, at, norm(small.mean), 0.2, 1e-9, remark, most=3)
    ((text, number),) = said
    assert text == SHORT
    assert number == pytest.approx(float((k @ u - c).norm()) / (1e-9 * float((u - at).norm())), rel=1e-9)
    broken = zero(lambda u: u * math.nan, at, 1.0, 1.0, 1e-3, remark)
    assert bool(broken.isnan().all()) and len(said) == 2


# ---- Optimistic MASHA ------------------------------------------------------------------------------------------------


def test_masha_that_compresses_nothing_is_the_optimistic_gradient_method() -> None:
    small = Small()
    course = start("optimistic_masha(identity, step=0.1, probability=1.0, optimism=0.9)", small.problem)
    for z in itertools.islice(optimistic(small, 0.1, 0.9), 25):
        assert close(course.go(), z)


def test_masha_by_the_pseudo_code() -> None:
    """Every coordinate comes from one worker; the anchor that is used is the one before."""
    small, step, pull = Small(), 0.05, 0.3
    course = start(f"optimistic_masha(step={step}, pull={pull}, probability=0.4, optimism=0.8)", small.problem)
    z = before = anchor = earlier = np.zeros(8)
    renewed = 0
    for _ in range(40):
        rounds = course.runtime.ledger.rounds
        after = course.go().x.numpy()
        estimate = (z + pull * (anchor - z) - after) / step - small.f(earlier)
        here = small.each(z)
        choices = here - small.each(earlier) + 0.8 * (here - small.each(before))
        off = np.abs(choices - estimate).argmin(axis=0)
        assert np.allclose(choices[off, np.arange(8)], estimate, atol=1e-10)
        assert (np.bincount(off, minlength=4) == 2).all() or np.ptp(choices, axis=0).max() < 1e-12
        heads = drawn(course, "coin", 0.4)
        assert course.runtime.ledger.rounds - rounds == 1 + heads
        renewed += heads
        z, before, anchor, earlier = after, z, after if heads else anchor, anchor
    assert 5 < renewed < 30


def test_mashas_step_by_hand() -> None:
    """PermK: A = B = 1, omega = n - 1; of four independent randk(k=2): A = omega / n = 3 / 4, B = 0, omega = 3."""
    c = problem_of(SMALL).constants()
    smooth, spread, plus = float(c.L), float(c.delta_mean or 0.0), float(c.L_plus)
    permk: Any = start("optimistic_masha", SMALL).method
    randk: Any = start("optimistic_masha(randk(k=2))", SMALL).method
    assert (permk.probability, permk.pull) == (0.25, 0.25) == (randk.probability, randk.pull)
    assert permk.step == pytest.approx(0.25 * min(0.5 / spread, 1 / smooth), rel=1e-9)
    assert randk.step == pytest.approx(0.25 * min(0.5 / (math.sqrt(0.75) * plus), 1 / smooth), rel=1e-9)
    with pytest.raises(ValueError, match="optimistic_masha needs an unbiased compressor and topk"):
        start("optimistic_masha(topk(k=2))", SMALL)


# ---- Three Pillars ---------------------------------------------------------------------------------------------------


def test_three_pillars_without_compression_is_sliding(exact: None) -> None:
    one = start("three_pillars(identity, step=0.9, pull=0.0, probability=1.0)", SMALL)
    other = start("extragradient_sliding(step=0.9)", SMALL)
    for _ in range(15):
        assert np.allclose(one.go().x.numpy(), other.go().x.numpy(), rtol=1e-10, atol=1e-11)
    with pytest.raises(NoTheorem, match="needs a pull > 0"):
        one.guarantee()


@pytest.mark.parametrize("cohort", [1, 3])
def test_three_pillars_with_few_workers_by_the_pseudo_code(exact: None, cohort: int) -> None:
    small, step, pull, p = Small(), 0.7, 0.2, 0.3
    spec = f"three_pillars_pp(cohort={cohort}, step={step}, pull={pull}, probability={p})"
    course, eye = start(spec, small.problem), np.eye(8)
    z = anchor = np.zeros(8)
    for _ in range(20):
        v, ledger = z + pull * (anchor - z), course.runtime.ledger
        said, asked = (ledger.messages_up, ledger.messages_down), course.oracles[0].calls.gradient_terms
        rest = small.f(anchor) - small.each(anchor)[0]
        u = np.linalg.solve(eye + step * small.k[0], v - step * rest + step * small.c[0])
        course.go()
        who = drawn(course, "sample", cohort).members
        differences = small.each(anchor) - small.each(anchor)[0] - small.each(u) + small.each(u)[0]
        z = u + step * differences[who].mean(0)
        assert close(course, z)
        heads = drawn(course, "coin", p)
        assert ledger.messages_up - said[0] == cohort + 4 * heads
        assert ledger.messages_down - said[1] == 2 * (cohort + 4 * heads)
        assert course.oracles[0].calls.gradient_terms - asked == cohort + 4 * heads  # nobody computes for others
        anchor = z if heads else anchor


def test_three_pillars_step_and_rate_by_hand() -> None:
    c = problem_of(SMALL).constants()
    delta, spread = float(c.delta_server or 0.0), float(c.delta_mean or 0.0)
    cases = {
        "three_pillars": (0.25, spread**2),  # A = B = 1
        "three_pillars(randk(k=2))": (0.25, 0.75 * (spread**2 + delta**2)),  # A = 3 / 4, B = 0
        "three_pillars_pp": (0.25, spread**2),
        "three_pillars_pp(cohort=2)": (0.5, spread**2 * 2 / (2 * 3)),
        "three_pillars(identity)": (0.5, 0.0),
    }
    for spec, (p, noise2) in cases.items():
        course = start(spec, SMALL)
        method: Any = course.method
        assert (method.probability, method.pull) == (p, p)
        assert method.step == pytest.approx(math.sqrt(p / 2 / (2 * delta**2 + noise2)), rel=1e-9)
        assert course.guarantee().rate == pytest.approx(1 - min(method.step * 0.2 / (2 - p), p / 4), rel=1e-12)
    with pytest.raises(ValueError, match=r"ThreePillarsPP\(cohort=9\) : there are 4 workers; take a smaller cohort"):
        start("three_pillars_pp(cohort=9)", SMALL)


@pytest.mark.parametrize("spec", ["three_pillars", "three_pillars_pp", "three_pillars(randk(k=3))"])
def test_three_pillars_contract_on_average(spec: str) -> None:
    """The mean over seeds, with an inexact server."""
    values = []
    for seed in range(3):
        course = start(spec, SMALL, seed)
        promise = course.guarantee()
        first = value(course, promise)
        values.append(value(course.go(60), promise) / first)
    assert promise.rate is not None and 0.0 < np.mean(values) <= promise.rate**60


def test_three_pillars_send_less_than_sliding_and_masha_at_equal_accuracy() -> None:
    sent = {}
    for spec in ("three_pillars", "extragradient_sliding", "optimistic_masha(step='2x')"):
        course = start(spec, "saddle(d=10, coupling=6.0, mu=0.2)")
        first = distance(course)
        while distance(course) > 3e-2 * first:
            course.go()
        sent[spec] = float(course.runtime.ledger.uplink.mean())
    three, sliding, masha = sent.values()
    assert three < sliding < masha


# ---- SVOGS -----------------------------------------------------------------------------------------------------------


def test_svogs_by_the_pseudo_code(exact: None) -> None:
    small, step, pull, p, a = Small(), 0.3, 0.2, 0.4, 0.7
    spec = f"svogs(step={step}, cohort=2, probability={p}, pull={pull}, optimism={a})"
    course, eye = start(spec, small.problem), np.eye(8)
    g = lambda z: small.each(z) - small.each(z)[0]  # noqa: E731
    z = before = anchor = earlier = np.zeros(8)
    for _ in range(20):
        asked = course.oracles[0].calls.gradient_terms
        course.go()
        who = drawn(course, "sample", 2).members
        direction = g(earlier).mean(0) + (g(z) - g(earlier) + a * (g(z) - g(before)))[who].mean(0)
        v = (1 - pull) * z + pull * anchor - step * direction
        after = np.linalg.solve(eye + step * small.k[0], v + step * small.c[0])
        assert close(course, after)
        heads = drawn(course, "coin", p)
        assert course.oracles[0].calls.gradient_terms - asked == 2 * 2 + 4 * heads
        z, before, anchor, earlier = after, z, after if heads else anchor, anchor


def test_svogs_parameters_by_hand() -> None:
    """n = 10, delta / mu = 5: m = sqrt(10)."""
    method: Any = start("svogs", DEFAULT).method
    p, eta = 1 / (math.sqrt(10) + 8), 1 / 16
    assert (method.cohort, method.step) == (4, pytest.approx(eta, rel=1e-12))
    assert method.probability == method.pull == pytest.approx(p, rel=1e-12)
    slow = max(1 - eta * 0.1 / (6 * (1 - p)), 1 - p * eta * 0.1 / (2 * p + eta * 0.1))
    assert method.optimism == pytest.approx(slow, rel=1e-12)
    with pytest.raises(ValueError, match=r"SVOGS\(cohort=11\) : there are 10 workers; take a smaller cohort"):
        start("svogs(cohort=11)", DEFAULT)


@pytest.mark.parametrize(
    ("spec", "problem", "iterations", "share"),
    [
        ("svogs(step='20x')", SMALL, 60, 1e-2), ("optimistic_masha(step='2x')", SMALL, 240, 1e-2),
        ("three_pillars(step='2x')", SMALL, 120, 1e-4), ("three_pillars_pp(step='3x')", ROBUST, 100, 0.3),
    ],
)  # fmt: skip
def test_methods_with_random_workers_approach_the_solution(
    spec: str, problem: str, iterations: int, share: float
) -> None:
    """x* itself: half of the way again in another half of the time, or better."""
    course = start(spec, problem)
    first = distance(course)
    half = distance(course.go(iterations // 2))
    assert distance(course.go(iterations // 2)) < min(0.5 * half, share * first)


# ---- constraints -----------------------------------------------------------------------------------------------------


def test_a_saddle_point_in_a_box() -> None:
    """-F(z*) is in the cone of the box's normals at z*, and proximal steps reach it at the theorem's rate."""
    problem: Problem = problem_of("composite(saddle(d=4, workers=4, coupling=2.0, mu=0.2), box(low=-0.5, high=1.0))")
    solution = problem.solution()
    assert solution is not None and solution.gap < 1e-26
    operator = problem.oracles(Block.whole(4)).gradients(solution.x).mean(0)
    for coordinate, slope in zip(solution.x.tolist(), operator.tolist(), strict=True):
        inside = -0.5 < coordinate < 1.0
        assert abs(slope) < 1e-12 if inside else slope * coordinate <= 0.0
    assert 0 < int(((solution.x == -0.5) | (solution.x == 1.0)).sum()) < 8
    for spec in ("extragradient", "optimistic_gradient"):
        course = start(spec, problem)
        promise = course.guarantee()
        assert promise.rate is not None and promise.gap_factor is None
        after = value(course, promise)
        for _ in range(60):
            before, after = after, value(course.go(), promise)
            assert after <= promise.rate * before * (1 + 1e-9) + 1e-24
        assert bool(((course.x >= -0.5) & (course.x <= 1.0)).all())


# ---- the lab ---------------------------------------------------------------------------------------------------------


def test_a_run_shows_the_distance(tmp_path: Path) -> None:
    methods = ["extragradient", "extragradient_sliding", "gd(step=3.0)"]
    runs = laconic.run(SMALL, methods, rounds=400, until=1e-6, out=tmp_path / "run")
    frame = runs.trace
    ends_ = frame.groupby("method", sort=False).tail(1)
    assert np.isnan(measured(frame["gap"])).all() and measure_of(frame) == ("distance2", "‖x − x*‖²")
    assert ends_["status"].tolist() == ["reached", "reached", "diverged"]
    assert (ends_["distance2"].to_numpy()[:2] <= 1e-6).all()
    plain = frame[frame["method"] == "extragradient"]
    small = Small()
    assert measured(plain["distance2"])[0] == pytest.approx(float(small.best @ small.best), rel=1e-9)
    assert measured(plain["grad_norm2"])[0] == pytest.approx(float((small.c.mean(0) ** 2).sum()), rel=1e-9)
    assert measured(plain["lyapunov"])[0] == pytest.approx(float(small.best @ small.best), rel=1e-9)
    assert runs.document["solution"]["value"] is None
    assert [one["step_kind"] for one in runs.document["methods"]] == ["theorem", "theorem", "no theorem"]
    axis, document = axes(frame, None)[0], {**runs.document, "remarks": []}
    shown = figure(frame, axis, accuracy(runs.document["solution"]))
    assert shown.measure == "‖x − x*‖²" and plots._word(shown) == "distance" and shown.lines[0].y[-1] <= 1e-6
    assert "a saddle point, x* to" in page([Section(SMALL, document, [shown], [], [])])


def test_tuning_judges_by_the_operator() -> None:
    """There is no gap; steps that no theorem gives are multiples of 1 / L."""
    options: Any = {"target": 0.05, "rounds": 160, "seeds": 1, "multipliers": [0.03, 1.0], "widen": 0}
    tuned = laconic.tune(SMALL, ["extragradient", "gd"], **options)
    assert tuned.choices[0].spec in ("extragradient", "extragradient(step='1x')")
    assert np.isfinite(measured(tuned.curves["grad_norm2"])).all() and np.isnan(measured(tuned.curves["gap"])).all()
    assert any("variational inequality" in note for note in tuned.notes)
