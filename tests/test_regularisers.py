"""Regularisers by their definitions; problems with one: certified minimisers, the trace, runs and theorems."""

from __future__ import annotations

import dataclasses
import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
from scipy.optimize import lsq_linear, minimize, minimize_scalar
from torch import Tensor

import laconic
from by_hand import RUNTIMES, distance, equal, hand, method_of, problem_of, setting_of, start
from laconic.core.keys import Keys
from laconic.core.problem import Block, Problem, Solution
from laconic.core.regulariser import Regulariser
from laconic.core.spec import parse
from laconic.core.state import flatten, restore
from laconic.core.theory import NoTheorem
from laconic.problems._base import LinearProblem
from laconic.problems.composite import Composite, Lasso
from laconic.problems.custom import Custom
from laconic.regularisers.box import Box
from laconic.regularisers.l1 import L1

REGULARISERS: dict[str, Regulariser] = {
    "l1": L1(weight=0.7),
    "box": Box(low=-0.5, high=1.25),
    "orthant": Box(low=0.0, high=None),
    "point": Box(low=0.25, high=0.25),
}


@pytest.fixture(params=list(REGULARISERS))
def r(request) -> Regulariser:
    """Each regulariser in turn."""
    return REGULARISERS[request.param]


def normal(*shape: int, seed: int = 0, scale: float = 1.0) -> Tensor:
    flat = Keys(seed, 0, "test", np.arange(1), 1).normal(max(1, math.prod(shape)))[0]
    return scale * flat[: math.prod(shape)].reshape(shape)


def subgradients(r: Regulariser, u: float) -> tuple[float, float]:
    """The interval of subgradients of one coordinate's r at u, from its definition."""
    if isinstance(r, L1):
        slope = math.copysign(r.weight, u)
        return (-r.weight, r.weight) if u == 0.0 else (slope, slope)
    assert isinstance(r, Box)
    low, high = -math.inf if r.low is None else r.low, math.inf if r.high is None else r.high
    return (-math.inf if u == low else 0.0), (math.inf if u == high else 0.0)


# ---- definitions -----------------------------------------------------------------------------------------------------


def test_prox_minimises_what_it_should(r) -> None:
    for step, x in itertools.product((0.1, 1.0, 3.0), normal(6, seed=1, scale=2.0).tolist()):
        (got,) = r.prox(torch.tensor([x], dtype=torch.float64), step).tolist()

        def height(u: float, at: float = x, step: float = step) -> float:
            return r.value(torch.tensor([u], dtype=torch.float64)) + (u - at) ** 2 / (2 * step)

        low, high = (0.25, 0.25) if r == REGULARISERS["point"] else (-8.0, 8.0)
        if isinstance(r, Box):
            low, high = max(low, -8.0 if r.low is None else r.low), min(high, 8.0 if r.high is None else r.high)
        found: Any = minimize_scalar(height, bounds=(low, high), method="bounded", options={"xatol": 1e-9})
        searched = found.x
        assert got == pytest.approx(searched if high > low else low, abs=1e-6)
        least, most = subgradients(r, got)
        assert least - 1e-12 <= (x - got) / step <= most + 1e-12  # what makes it the minimiser exactly


def test_prox_keeps_shapes_steps_per_row_types_and_its_argument(r) -> None:
    x = normal(4, 3, 2, scale=2.0)
    kept, steps = x.clone(), torch.tensor([0.1, 0.5, 1.0, 2.0], dtype=torch.float64)
    rows = r.prox(x, steps[:, None, None])
    assert equal(x, kept) and rows.data_ptr() != x.data_ptr()
    for row, at, step in zip(rows, x, steps.tolist(), strict=True):
        assert equal(row, r.prox(at, step))
    assert r.prox(x.float(), 0.5).dtype == torch.float32
    assert not torch.isfinite(r.prox(torch.full((2,), math.nan, dtype=torch.float64), 1.0)).any()


def test_prox_does_not_expand(r) -> None:
    for seed in range(20):
        x, y = normal(50, seed=seed, scale=2.0), normal(50, seed=100 + seed, scale=2.0)
        apart = r.prox(x, 0.8) - r.prox(y, 0.8)
        assert float(apart @ apart) <= float(apart @ (x - y)) + 1e-12  # firmly, which says more


def test_the_least_subgradient_is_the_shortest(r) -> None:
    """Every coordinate by itself: gradient + s over a grid of the subgradients s."""
    grid = np.array([-0.9, -0.5, 0.0, 0.2, 0.25, 1.25])
    points = [u for u in grid if math.isfinite(r.value(torch.tensor([u])))]
    for u, g in itertools.product(points, np.linspace(-2.0, 2.0, 9).tolist()):
        least, most = subgradients(r, u)
        reach = np.linspace(max(least, -5.0), min(most, 5.0), 20001)
        expected = np.abs(g + reach).min()
        x, gradient = torch.tensor([u], dtype=torch.float64), torch.tensor([g], dtype=torch.float64)
        got = float(r.least_subgradient(x, gradient))
        assert abs(got) == pytest.approx(expected, abs=1e-3) and least - 1e-12 <= got - g <= most + 1e-12


def test_the_least_subgradient_vanishes_at_minimisers_only(r) -> None:
    x = normal(40, seed=3, scale=2.0)
    u = r.prox(x, 1.0)
    assert float(r.least_subgradient(u, u - x).abs().max()) < 1e-15
    inside = r.prox(u + 0.05, 1.0)
    assert r == REGULARISERS["point"] or float(r.least_subgradient(inside, inside - x).abs().max()) > 1e-3


def test_outside_a_box_there_is_no_subgradient_and_no_finite_value() -> None:
    box, outside = Box(low=0.0, high=1.0), torch.tensor([0.5, 1.5], dtype=torch.float64)
    assert box.value(outside) == math.inf and box.value(outside[:1]) == 0.0
    assert box.least_subgradient(outside, torch.zeros(2, dtype=torch.float64)).tolist() == [0.0, math.inf]
    assert box.excess(outside, outside[:1].repeat(2), torch.zeros(2, dtype=torch.float64)) == math.inf


def test_excess_is_a_bregman_divergence_without_cancellation(r) -> None:
    target = normal(40, seed=4, scale=2.0)
    at = r.prox(target, 1.0)  # minimises r + ||. - target||^2 / 2, whose gradient there is at - target
    for scale in (1.0, 1e-3, 1e-9):
        x = r.prox(at + normal(40, seed=5, scale=scale), 1e-3 * scale)
        got = r.excess(x, at, at - target)
        plain = Regulariser.excess(r, x, at, at - target)  # the definition, which cancels
        assert got >= 0.0 and got == pytest.approx(plain, rel=1e-9, abs=1e-13)
    kinks = (at == 0.0) if isinstance(r, L1) else (at - target).abs() > 0.0
    near = at + torch.where(kinks & (at <= 0.3), 1e-12, 0.0)  # to first order it grows with the distance to the kink
    if isinstance(r, L1):
        moved = (near - at)[kinks]
        expected = float(((0.7 - (target - at)[kinks]) * moved).sum())
        assert r.excess(near, at, at - target) == pytest.approx(expected, rel=1e-9) and expected > 0.0


@pytest.mark.parametrize("name", ["l1", "box"])
def test_the_certificate_is_a_supremum(name) -> None:
    """Over the corners of {r <= above}, where a linear function less r is largest."""
    r, x, g = REGULARISERS[name], normal(4, seed=6, scale=0.3), normal(4, seed=7)
    above = r.value(x) + 2.0
    if isinstance(r, L1):
        corners = [torch.zeros(4, dtype=torch.float64)]
        corners += [sign * above / r.weight * e for sign in (-1, 1) for e in torch.eye(4, dtype=torch.float64)]
    else:
        corners = [torch.tensor(ends, dtype=torch.float64) for ends in itertools.product((-0.5, 1.25), repeat=4)]
    expected = max(float(g @ (x - u)) + r.value(x) - r.value(u) for u in corners)
    assert r.certificate(x, g, above) == pytest.approx(expected, rel=1e-12)
    assert REGULARISERS["orthant"].certificate(x.abs(), g, above) == math.inf
    assert REGULARISERS["orthant"].certificate(x.abs(), g.abs(), above) == pytest.approx(float(x.abs() @ g.abs()))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("box(low=2.0, high=1.0)", "Box(low=2.0, high=1.0) : low must be at most high"),
        ("l1(weight=0.0)", "L1(weight=0.0) : weight must be a number > 0"),
        ("composite(lasso, l1)", "Composite(problem=lasso) : problem must be one without a regulariser"),
        ("composite(ridge, topk(k=1))", "Composite(regulariser=topk(k=1)) : regulariser must be a regulariser"),
        ("lasso(l1=-1.0)", "Lasso(l1=-1.0) : l1 must be a number > 0"),
    ],
)
def test_what_cannot_be_is_refused(text: str, said: str) -> None:
    with pytest.raises(ValueError) as caught:
        parse(text)
    assert str(caught.value) == said


# ---- problems --------------------------------------------------------------------------------------------------------

BOXED = "composite(logistic(l2=1e-2, workers=5), box(low=-0.2, high=0.3))"
SPARSE = "composite(ridge(l2=0.1, workers=4), l1(weight=0.1))"
STRONG = ["lasso(l1=0.1, workers=6)", "lasso(l1=0.01, workers=442)", SPARSE, BOXED,
          "composite(quadratic(d=11, workers=5, noise=0.8, mu=0.01), box(low=-0.1, high=0.2))",
          "composite(counterexample, box(low=0.5, high=None))"]  # fmt: skip
WEAK = ["lasso(data='digits', l1=0.01)", "composite(logistic(l2=0.0), l1(weight=0.02))",
        "composite(logistic(l2=0.0), box(low=-0.5, high=0.5))"]  # fmt: skip


def parts(spec: str) -> tuple[Any, Any, Regulariser, Solution]:
    """The problem, the oracles of all workers, the regulariser and the solution."""
    problem: Any = problem_of(spec)
    solution = problem.solution()
    assert solution is not None
    return problem, problem.oracles(Block.whole(problem.n)), problem.parts()[1], solution


def total(oracles: Any, r: Regulariser, x: Tensor) -> float:
    return math.fsum(oracles.values(x).tolist()) / oracles.block.n + r.value(x)


@pytest.mark.parametrize("spec", [*STRONG, *WEAK])
def test_minimisers_are_certified(spec) -> None:
    problem, oracles, r, solution = parts(spec)
    gradient = oracles.gradients(solution.x).mean(0)
    least = r.least_subgradient(solution.x, gradient)
    mu = problem.constants().mu
    assert (mu is None) == (spec in WEAK)
    if mu is not None:
        assert solution.gap <= float(least @ least) / (2 * mu.value) * 1.5 + 1e-27 and solution.gap <= 1e-20
    assert 0.0 <= solution.gap <= 1e-12 * abs(solution.value)
    assert total(oracles, r, solution.x) == pytest.approx(solution.value, rel=1e-13)
    for seed in range(10):
        near = r.prox(solution.x + normal(oracles.d, seed=seed, scale=10.0 ** -(seed % 3)), 1e-6)
        assert total(oracles, r, near) >= solution.value - 1e-14 * abs(solution.value)
    sigma = problem.constants().sigma_star
    assert sigma is not None
    spread = math.sqrt(float((oracles.gradients(solution.x) ** 2).sum(1).mean()))
    assert sigma.value == pytest.approx(spread, rel=1e-9)


def test_the_lasso_is_scikit_learns() -> None:
    from sklearn.datasets import load_diabetes
    from sklearn.linear_model import Lasso as Reference

    rows, targets = load_diabetes(return_X_y=True)
    rows, targets = ((np.asarray(a) - np.mean(a, axis=0)) / np.std(a, axis=0) for a in (rows, targets))
    for l1, workers in ((0.1, 2), (0.01, 13)):  # 442 = 2 * 13 * 17, so all workers have as many rows
        problem = Lasso(l1=l1, workers=workers)
        reference = Reference(alpha=l1, fit_intercept=False, tol=1e-15, max_iter=100_000).fit(rows, targets)
        solution = problem.solution()
        assert solution is not None
        assert np.allclose(solution.x.numpy(), reference.coef_, atol=1e-8)
        assert ((solution.x == 0.0).numpy() == (reference.coef_ == 0.0)).all()
    most = float(np.abs(rows.T @ targets).max()) / 442
    assert not Lasso(l1=1.001 * most, workers=2).solution().x.any()  # type: ignore[union-attr]
    assert Lasso(l1=0.999 * most, workers=2).solution().x.any()  # type: ignore[union-attr]


def test_a_boxed_ridge_is_scipys_and_the_boxed_logistic_too() -> None:
    rows, targets = normal(30, 5).numpy(), normal(30, seed=1).numpy()
    inner = Custom.from_arrays(rows, targets, workers=3, loss="ridge", l2=0.1)
    solution = Composite(inner, Box(low=-0.1, high=0.15)).solution()
    stacked = np.vstack([rows / math.sqrt(30), math.sqrt(0.1) * np.eye(5)])
    reference = lsq_linear(stacked, np.r_[targets / math.sqrt(30), np.zeros(5)], (-0.1, 0.15), tol=1e-14).x
    assert solution is not None and np.allclose(solution.x.numpy(), reference, atol=1e-8)
    _, oracles, _, found = parts(BOXED)

    def value(x: np.ndarray) -> tuple[float, np.ndarray]:
        at = torch.from_numpy(x)
        return float(oracles.values(at).mean()), oracles.gradients(at).mean(0).numpy()

    options = {"ftol": 1e-15, "gtol": 1e-9, "maxiter": 5000}
    other = minimize(value, np.zeros(30), jac=True, method="L-BFGS-B", bounds=[(-0.2, 0.3)] * 30, options=options)
    assert other.fun == pytest.approx(found.value, rel=1e-9) and other.fun >= found.value - 1e-15
    assert np.allclose(other.x, found.x.numpy(), atol=1e-5)


def test_a_lasso_that_is_not_strongly_convex_has_a_duality_gap() -> None:
    """Primal less dual of ||y - B x||^2 / 2 + l1 ||x||_1 at the scaled residual, by the textbook's formula."""
    problem, _, _, solution = parts(WEAK[0])
    data = problem.parts()[0].dealt()
    weights = np.repeat(1.0 / (data.n * data.sizes), data.sizes)
    b, y = np.sqrt(weights)[:, None] * data.matrix.toarray(), np.sqrt(weights) * data.labels
    assert np.linalg.matrix_rank(b) < b.shape[1]

    def gap(x: np.ndarray) -> float:
        rest = y - b @ x
        dual = rest * min(1.0, 0.01 / np.abs(b.T @ rest).max())
        return 0.5 * rest @ rest + 0.01 * np.abs(x).sum() - 0.5 * y @ y + 0.5 * (y - dual) @ (y - dual)

    assert gap(solution.x.numpy()) < 1e-13 and solution.gap < 1e-13
    assert gap(solution.x.numpy() + 1e-3) > 1e-6  # the formula sees what is no minimiser


def test_where_nothing_certifies_there_is_no_solution() -> None:
    assert problem_of("composite(logistic(nonconvex=0.1), l1(weight=0.01))").solution() is None
    assert problem_of("composite(logistic(l2=0.0), box(low=0.0, high=None))").solution() is None
    assert problem_of("composite(squared_sigmoid, box)").solution() is None


def test_the_start_is_where_the_regulariser_is_finite_and_blocks_have_the_same_bits() -> None:
    boxed = problem_of("composite(quadratic(d=9, workers=5, mu=0.01), box(low=0.25, high=1.5))")
    assert boxed.oracles(Block.whole(5)).start().tolist() == [1.5] + [0.25] * 8
    assert not problem_of(SPARSE).oracles(Block.whole(4)).start().any()
    for problem in (boxed, problem_of(BOXED)):
        whole = problem.host(Block.whole(5))
        x = normal(whole.d, scale=0.2)
        for block in Block.deal(5, 3):
            part, mine = problem.host(block), slice(block.low, block.high)
            assert equal(part.gradients(x), whole.gradients(x)[mine]) and equal(part.values(x), whole.values(x)[mine])
            assert equal(part.excess(x, problem.solution()), whole.excess(x, problem.solution())[mine])  # type: ignore
            assert part.most_terms == whole.most_terms and part.server.block == Block(0, 1, 5)
        some = whole.among(np.array([3, 1]))
        assert equal(some.gradients(x), whole.gradients(x)[[3, 1]]) and some.regulariser is whole.regulariser


def test_fingerprints_see_both_parts() -> None:
    specs = [SPARSE, SPARSE.replace("l2=0.1", "l2=0.2"), SPARSE.replace("weight=0.1", "weight=0.2"), BOXED]
    assert len({problem_of(spec).fingerprint() for spec in specs}) == 4
    lasso = problem_of("composite(least_squares(workers=6), l1(weight=0.1))")
    assert lasso.fingerprint() == problem_of("lasso(l1=0.1, workers=6)").fingerprint()


# ---- the trace -------------------------------------------------------------------------------------------------------


def test_the_trace_shows_f_plus_r_and_its_gap_down_to_nothing() -> None:
    for spec in (SPARSE, BOXED):
        _, oracles, r, solution = parts(spec)
        runs = laconic.run(spec, "gd", iterations=300, rounds=1000)
        course = start("gd", spec)
        for k in range(6):
            row, x = runs.trace.iloc[k], course.x
            gradient = oracles.gradients(x).mean(0)
            assert row.f == pytest.approx(total(oracles, r, x), rel=1e-14)
            assert row.gap == pytest.approx(total(oracles, r, x) - solution.value, rel=1e-9)
            assert row.grad_norm2 == pytest.approx(float(r.least_subgradient(x, gradient).square().sum()), rel=1e-12)
            course.go()
        gaps = runs.trace.gap.to_numpy()
        assert (gaps >= 0.0).all() and (np.diff(gaps) <= 1e-30).all()  # monotone, also below rounding of f
        assert gaps[-1] < 1e-3 * gaps[0]
    gaps = laconic.run("lasso(workers=6)", "gd", iterations=20_000, every=500, until=1e-28).trace.gap.to_numpy()
    assert gaps[-1] <= 1e-28  # f itself is 0.34


@pytest.mark.parametrize(
    "spec", ["diana(natural)", "gd(ef21(topk(k=3)), step=0.05)", "gd(direct(randk(k=2)), step=0.05)"]
)
def test_runs_are_the_same_everywhere(spec) -> None:
    plain = start(spec, SPARSE).go(12)
    for name in RUNTIMES:
        assert equal(start(spec, SPARSE, runtime=name).go(12).x, plain.x)
    kinds = [dict(), dict(topology="star"), dict(wire="encoded")]
    rows = [laconic.run(SPARSE, spec, rounds=12, **kind).trace for kind in kinds]  # type: ignore[arg-type]
    for other in rows[1:]:
        for column in ("f", "gap", "grad_norm2", "distance2"):
            assert (other[column].to_numpy() == rows[0][column].to_numpy()).all()


def test_methods_without_a_proximal_step_are_refused() -> None:
    for method in ("fednl(topk(k=5))", "proxskip", "svrp", "sliding"):
        with pytest.raises(ValueError, match="no proximal step, and the problem has a regulariser") as caught:
            laconic.run(SPARSE, method, rounds=2)
        assert "\n" not in str(caught.value)
    laconic.run(SPARSE.replace("composite(", "", 1).rsplit(",", 1)[0], "proxskip", rounds=2)


# ---- theorems --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("spec", ["lasso(l1=0.1, workers=6)", SPARSE, BOXED])
def test_proximal_gradient_descent_contracts_every_step(spec) -> None:
    course, c = start("gd", spec), problem_of(spec).constants()
    promise = course.guarantee()
    rate = (1.0 - c.mu.value / c.L.value) ** 2  # type: ignore[union-attr]
    assert promise.step == 1.0 / c.L.value and promise.rate == pytest.approx(rate, rel=1e-14)
    assert promise.gap_factor is None and promise.assumes[-1] == "regulariser convex"
    before = distance(course)
    for _ in range(40):
        after = distance(course.go())
        assert after**2 <= rate * before**2 * (1 + 1e-12) + 1e-26
        before = after


def test_its_rate_is_attained_where_the_box_does_not_matter() -> None:
    course = start("gd", "composite(quadratic(d=1, workers=3, noise=0.2, mu=0.5), box(low=-50.0, high=50.0))")
    promise, before = course.method.guarantee(setting_of(course.problem)), distance(course)
    half = start("gd(step=0.4)", "composite(quadratic(d=1, workers=3, noise=0.2, mu=0.5), box(low=-50.0, high=50.0))")
    assert promise.tight and promise.rate == pytest.approx(0.0, abs=1e-20)
    assert distance(half.go()) == pytest.approx((1 - 0.4 * 0.5) * before, rel=1e-12)


def averages(spec: str, problem: str, warm: int, draws: int) -> tuple[float, float, float]:
    """The Lyapunov function before one more step, its mean after it over draws, and the error of that mean."""
    course = start(spec, problem).go(warm)
    solution = course.problem.solution()
    assert solution is not None
    before, after = course.lyapunov(), []
    kept, step = {name: leaf.tensor.clone() for name, leaf in flatten(course.state).items()}, course.step
    for draw in range(draws):
        course.states = [restore(course.state, kept)]
        course.step = step + 1000 * draw  # other randomness
        after.append(course.go().lyapunov())
    return before, float(np.mean(after)), float(np.std(after)) / math.sqrt(draws)


@pytest.mark.parametrize("problem", [SPARSE, BOXED])
@pytest.mark.parametrize("compressor", ["natural", "randk(k=2)"])
def test_diana_contracts_with_a_regulariser(problem, compressor) -> None:
    promise = start(f"diana({compressor})", problem).guarantee()
    before, after, error = averages(f"diana({compressor})", problem, warm=10, draws=120)
    assert promise.rate is not None and after <= promise.rate * before + 4 * error and error < 0.2 * before


def test_diana_goes_to_the_solution_and_direct_compression_to_its_plateau() -> None:
    """grad f_i(x*) is not 0 and neither is grad f(x*): the shifts learn the former, and direct compression cannot."""
    course = start("gd(diana(randk(k=5)), step='4x')", SPARSE)
    first = distance(course)
    assert distance(course.go(3000)) < 1e-9 * first
    direct = start("direct(randk(k=5))", SPARSE)
    promise, squares = direct.guarantee(), []
    rate = promise.rate
    assert rate is not None and 0.0 < promise.plateau < 1e9
    for _ in range(1500):
        squares.append(distance(direct.go()) ** 2)
    assert 1e-3 * promise.plateau < np.mean(squares[500:]) <= rate**500 * first**2 + promise.plateau


def gd(mechanism: str) -> Any:
    """Gradient descent with it."""
    return parse(f"gd({mechanism})")


def test_steps_with_a_regulariser_by_hand() -> None:
    """A = 1, omega = 4, L = 2, L_max = 7. B says something of ||grad f||^2, which is not 0 at x*, so it counts as 0."""
    setting = dataclasses.replace(hand(), composite=True)
    steps = {
        "direct(identity)": 0.5,
        "direct(randk(k=20))": 1 / 16,
        "direct(permk)": 1 / (2 + 2 * 7),
        "diana(randk(k=20))": 1 / 44,
    }
    for spec, step in steps.items():
        promise = gd(spec).guarantee(setting)
        assert promise.step == pytest.approx(step, rel=1e-12), spec
    # A = 0, B = -omega: omega ||grad f(x)||^2 <= 2 omega ||grad f(x) - grad f(x*)||^2 + 2 omega sigma*^2, sigma* = 3
    shared = gd("direct(shared_randk(k=20))").guarantee(setting)
    assert shared.step == pytest.approx(1 / (9 * 2), rel=1e-12)
    assert shared.plateau == pytest.approx(2 / 18 * 4 * 9 / 0.5, rel=1e-12)
    assert gd("direct(permk)").guarantee(setting).plateau == pytest.approx(2 / 16 * 9 / 0.5, rel=1e-12)


@pytest.mark.parametrize(
    "spec",
    ["ef21(topk(k=3))", "marina(randk(k=3))", "ef14(topk(k=3))", "ef21_sgdm(topk(k=3))", "direct(topk(k=3))"],
)
def test_other_theorems_do_not_speak_of_regularisers(spec) -> None:
    setting = setting_of(problem_of(SPARSE))
    with pytest.raises(NoTheorem, match="regulariser|biased"):
        gd(spec).guarantee(setting)
    if "direct" not in spec:
        gd(spec).settled(setting_of(problem_of("ridge(l2=0.1, workers=4)")))
    assert math.isfinite(distance(start(f"gd({spec}, step=0.01)", SPARSE).go(5)))


def test_a_biased_compressor_of_one_worker_has_no_theorem_with_a_regulariser() -> None:
    one = "ridge(l2=0.1, workers=1)"
    method_of("direct(topk(k=3))", problem_of(one))
    with pytest.raises(NoTheorem):
        method_of("direct(topk(k=3))", problem_of(f"composite({one}, l1(weight=0.1))"))


# ---- least squares that are not strongly convex ----------------------------------------------------------------------


def flat() -> LinearProblem:
    """Rows in a space of 3 of 6 dimensions."""
    rows = normal(24, 3).numpy() @ normal(3, 6, seed=1).numpy()
    return Custom.from_arrays(rows, normal(24, seed=2).numpy(), workers=4, loss="ridge", l2=0.0)


def test_theorems_under_polyak_lojasiewicz_take_mu_pl_and_others_refuse() -> None:
    problem = flat()
    c = problem.constants()
    assert c.mu is None and c.mu_pl is not None and c.polyak is c.mu_pl
    course = start("ef21(topk(k=2))", problem)
    promise, solution = course.guarantee(), problem.solution()
    theta = 1 - math.sqrt(1 - 2 / 6)
    root = math.sqrt(2 * (4 / 6) / theta / theta)
    step = min(1 / (c.L.value + c.L_tilde.value * root), theta / (2 * c.mu_pl.value))
    assert promise.step == pytest.approx(step, rel=1e-12)
    assert promise.rate == pytest.approx(1 - step * c.mu_pl.value, rel=1e-12) and solution is not None
    before = course.lyapunov()
    for _ in range(60):
        after = course.go().lyapunov()
        assert after <= promise.rate * before * (1 + 1e-9) + 1e-28  # type: ignore[operator]
        before = after
    for spec in ("diana(randk(k=2))", "direct(randk(k=2))", "ef14(topk(k=2))"):
        with pytest.raises(NoTheorem, match="needs mu"):
            method_of(spec, problem)


def test_gradient_descent_from_0_goes_to_the_minimiser_of_least_norm() -> None:
    problem: Problem = flat()
    course = start("gd", problem).go(400)
    assert distance(course) < 1e-10
    assert course.guarantee().rate is None  # the distance to it is not the theorem's from everywhere
