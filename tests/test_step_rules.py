"""Step rules and schedules: plain references in NumPy and torch, reductions, theorems' numbers by hand, refusals."""

from __future__ import annotations

import dataclasses
import itertools
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from by_hand import Course, distance, equal, hand, matrices, method_of, problem_of, setting_of, start
from laconic.core.broadcast import Broadcast
from laconic.core.link import Cohort, Link
from laconic.core.regulariser import Regulariser
from laconic.core.rows import square
from laconic.core.spec import parse
from laconic.core.theory import NoTheorem
from laconic.lab.evaluate import Party
from laconic.lab.snapshot import METHOD, capture, put_back
from laconic.methods.heavy_ball import HeavyBall
from laconic.methods.nesterov import Nesterov
from laconic.regularisers.l1 import L1

SMALL = "quadratic(d=7, workers=4, noise=0.3, mu=0.1)"
CONVEX = "quadratic(d=20, workers=6, noise=0.2, mu=0.05)"
LOGISTIC = "logistic(data='breast_cancer', l2=0.01, workers=5)"


def quadratic(spec: str) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """A_i, b_i, x^0 and x* of a quadratic."""
    problem = problem_of(spec)
    a, b = (tensor.numpy() for tensor in matrices(problem))
    return a, b, start("gd", problem).x.numpy(), np.linalg.solve(a.mean(0), b.mean(0))


def top(v: np.ndarray, k: int) -> np.ndarray:
    """The k largest entries of each row."""
    out = np.zeros_like(v)
    for row, kept in zip(v, out, strict=True):
        chosen = np.argsort(-np.abs(row))[:k]
        kept[chosen] = row[chosen]
    return out


# ---- heavy ball ------------------------------------------------------------------------------------------------------


def test_heavy_ball_by_its_text() -> None:
    a, b, x, _ = quadratic(SMALL)
    course = start("heavy_ball(step=0.2, momentum=0.7)", SMALL)
    v = np.zeros_like(x)
    for _ in range(40):
        v = 0.7 * v + (a @ x - b).mean(0)
        x = x - 0.2 * v
        np.testing.assert_allclose(course.go().x.numpy(), x, rtol=1e-11, atol=1e-12)


def test_ef21_hb_by_its_text() -> None:
    """The server steps with the momentum of its estimate; workers compress what their shifts lack."""
    a, b, x, _ = quadratic(SMALL)
    course = start("heavy_ball(ef21(topk(k=2)), step=0.05, momentum=0.6)", SMALL)
    shift = top(a @ x - b, 2)
    v = shift.mean(0)
    for _ in range(60):
        x = x - 0.05 * v
        shift = shift + top(a @ x - b - shift, 2)
        v = 0.6 * v + shift.mean(0)
        np.testing.assert_allclose(course.go().x.numpy(), x, rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize("inner", ["ef21(topk(k=2))", "diana(natural)", "ef14_inside(topk(k=1))", "marina(randk(k=2))"])
@pytest.mark.parametrize("more", ["", ", schedule=decreasing(shift=9.0)", ", estimator=sgd"])
def test_without_momentum_it_is_gradient_descent(inner: str, more: str) -> None:
    if "sgd" in more and "marina" in inner:
        pytest.skip("marina needs full gradients")
    problem = problem_of("logistic(data='breast_cancer', l2=0.1, workers=3)" if "sgd" in more else SMALL)
    one = start(f"gd({inner}, step=0.03{more})", problem).go(12)
    other = start(f"heavy_ball({inner}, step=0.03, momentum=0.0{more})", problem).go(12)
    assert equal(one.x, other.x)


def test_without_momentum_its_guarantee_is_gradient_descents() -> None:
    for inner in ("ef21(topk(k=36))", "direct(randk(k=20))", "direct"):
        gd, ball = method_of_hand(f"gd({inner})"), method_of_hand(f"heavy_ball({inner}, momentum=0.0)")
        assert ball.step == gd.step and ball.guarantee(hand()).rate == gd.guarantee(hand()).rate is not None


def method_of_hand(spec: str, **constants: Any) -> Any:
    entry: Any = parse(spec)
    return entry.settled(hand(**constants))


def test_heavy_ball_steps_and_rates_by_hand() -> None:
    """L = 2, mu = 0.5, L~^2 = 14.5; alpha = 0.36: theta = 0.2, beta = 3.2."""
    # strongly convex: step (1 - 0.5) / 4 = 1/8; a = 1/4, b = 1: min(3/64, 1/8)
    ball = method_of_hand("heavy_ball(momentum=0.5)")
    promise = ball.guarantee(hand())
    assert ball.step == promise.step == pytest.approx(1 / 8) and promise.sure
    assert promise.rate == pytest.approx(1 - 3 / 64) and promise.gap_factor == pytest.approx(4 / (1 - 3 / 64))
    # momentum 0.9: b = 9, so 1 / (324 + 27 + 1) is the smaller
    assert method_of_hand("heavy_ball").guarantee(hand()).rate == pytest.approx(1 - 1 / 352)
    # convex: (1 - 0.9) / L, about the uniform average
    promise = method_of_hand("heavy_ball", mu=None).guarantee(hand(mu=None))
    assert promise.step == pytest.approx(0.05) and promise.rate is None and promise.lyapunov is None
    assert [promise.average(k) for k in (0, 7)] == [0.0, 0.0]
    # EF21-HB: 1 / (1.5 * 2 / (2 * 0.25) + sqrt(14.5) / 0.5 * sqrt(32 * (1 + 4 * 0.25 / 0.25)))
    promise = method_of_hand("heavy_ball(ef21(topk(k=36)), momentum=0.5)").guarantee(hand())
    assert promise.step == pytest.approx(1 / (6 + 2 * math.sqrt(14.5 * 160))) and not promise.sure
    assert "2110.03294" in str(promise.source)
    # quadratics: 4 / (sqrt(2) + sqrt(0.5))^2 = 8 / 9 with momentum (1 / 3)^2
    flat: dict[str, Any] = {"hessian_lipschitz": 0.0}
    ball = method_of_hand("heavy_ball(momentum=None)", **flat)
    assert (ball.step, ball.momentum) == (pytest.approx(8 / 9), pytest.approx(1 / 9))
    assert ball.guarantee(hand(**flat)).rate == pytest.approx(1 / 9) and ball.guarantee(hand(**flat)).tight
    four = method_of_hand("heavy_ball(step='4x', momentum=None)", **flat)  # a step that no momentum makes stable
    assert four.step == pytest.approx(32 / 9) and four.guarantee(hand(**flat)).rate is None
    # momentum 1/4: complex roots for steps in [0.25 / 0.5, 2.25 / 2]
    assert method_of_hand("heavy_ball(momentum=0.25)", **flat).step == pytest.approx(1.125)
    rates = {
        "0.6": 0.25, "1.12": 0.25, "1.13": None, "0.45": None, "0.1": 1 - 3 / 8 * (0.4 / 3) * 0.5,
    }  # fmt: skip
    for step, rate in rates.items():
        promise = method_of_hand(f"heavy_ball(step={step}, momentum=0.25)", **flat).guarantee(hand(**flat))
        assert promise.rate == (None if rate is None else pytest.approx(rate))


def test_heavy_balls_bound_and_function_by_hand() -> None:
    """p = 1.25 - 0.6 lambda: 0.95 at mu and 0.05 at L; the function from x, the x before it and the gradient."""
    flat: dict[str, Any] = {"hessian_lipschitz": 0.0}
    promise = method_of_hand("heavy_ball(step=0.6, momentum=0.25)", **flat).guarantee(hand(**flat))
    assert promise.gap_factor == pytest.approx(0.25 / (0.25 - 0.95**2 / 4))
    a, b, x, best = quadratic(SMALL)
    course, v = start("heavy_ball(step=0.02, momentum=0.5)", SMALL), np.zeros_like(x)
    solution = course.problem.solution()
    assert solution is not None
    for _ in range(4):
        before, v = x, 0.5 * v + (a @ x - b).mean(0)
        x = x - 0.02 * v
    g, move = (a @ x - b).mean(0), x - before
    gap = 0.5 * float((x - best) @ a.mean(0) @ (x - best))
    ahead = x + move - 0.04 * g - best
    value = float(ahead @ ahead) + 2 * 0.04 * gap + float(((0.5 * move - 0.02 * g) ** 2).sum())
    assert course.go(4).lyapunov() == pytest.approx(value, rel=1e-9)


@pytest.mark.parametrize("problem", [SMALL, CONVEX, "counterexample"])
@pytest.mark.parametrize("spec", ["heavy_ball", "heavy_ball(step='0.7x')", "heavy_ball(momentum=None)"])
def test_on_quadratics_heavy_balls_form_shrinks_by_exactly_the_momentum(problem: str, spec: str) -> None:
    course = start(spec, problem)
    solution, promise, method = course.problem.solution(), course.guarantee(), course.method
    assert solution is not None and promise.rate is not None and promise.tight
    assert isinstance(method, HeavyBall) and promise.rate == method.momentum
    values = [course.lyapunov()]
    while len(values) < 60 and values[-1] > 1e-9 * values[0]:
        values.append(course.go().lyapunov())
    assert len(values) > 8
    for before, after in itertools.pairwise(values):
        assert after == pytest.approx(promise.rate * before, rel=1e-4)


def test_on_quadratics_the_bound_on_the_gap_holds_and_twice_the_step_diverges() -> None:
    course = start("heavy_ball(step='0.7x')", CONVEX)
    solution, promise = course.problem.solution(), course.guarantee()
    assert solution is not None and promise.gap_factor is not None and promise.rate is not None
    first, gap = course.lyapunov(), 0.0
    for k in range(150):
        oracles: Any = course.oracles[0]
        gap = float(oracles.excess(course.x, solution).mean())
        assert gap <= promise.gap_factor * promise.rate**k * first * (1 + 1e-9)
        course.go()
    assert gap > 0.0
    assert not distance(start("heavy_ball(step='2x')", CONVEX).go(400)) < 1e6


@pytest.mark.parametrize("problem", [LOGISTIC, "logistic(data='breast_cancer', l2=0.2, workers=5)"])
@pytest.mark.parametrize("spec", ["heavy_ball", "heavy_ball(step='0.3x', momentum=0.5)", "heavy_ball(momentum=0.2)"])
def test_on_strongly_convex_functions_heavy_balls_function_contracts(problem: str, spec: str) -> None:
    course = start(spec, problem)
    solution, promise = course.problem.solution(), course.guarantee()
    assert solution is not None and promise.rate is not None and promise.gap_factor is not None
    values: list[float] = []
    oracles: Any = course.oracles[0]
    for k in range(200):
        values.append(course.lyapunov())
        gap = float(oracles.excess(course.x, solution).mean())
        assert gap <= promise.gap_factor * promise.rate**k * values[0]
        course.go()
    for before, after in itertools.pairwise(values):
        assert after <= promise.rate * before * (1 + 1e-9) + 1e-13 * values[0]


def test_heavy_balls_bound_on_the_uniform_average() -> None:
    """Ghadimi et al.: (||x_0 - x*||^2 / (2 a) + b (f(x_0) - f*)) / (K + 1), at the largest step, without using mu."""
    for momentum in (0.3, 0.9):
        problem = problem_of("quadratic(d=20, workers=2, noise=0.0, mu=1e-4)")
        step = (1 - momentum) / float(problem.constants().L)
        course, solution = start(f"heavy_ball(step={step!r}, momentum={momentum})", problem), problem.solution()
        assert solution is not None
        oracles: Any = course.oracles[0]
        gap0 = float(oracles.excess(course.x, solution).mean())
        start_ = square(course.x - solution.x) * (1 - momentum) / (2 * step) + momentum / (1 - momentum) * gap0
        total, close = torch.zeros_like(course.x), 0.0
        for k in range(200):
            total += course.x
            gap = float(oracles.excess(total / (k + 1), solution).mean())
            assert gap <= start_ / (k + 1)
            close = max(close, gap * (k + 1) / start_)
            course.go()
        assert close > 0.01  # the bound is not empty


def test_polyaks_momentum_is_worth_having() -> None:
    ill = "quadratic(d=50, workers=2, noise=0.0, mu=0.001)"
    assert distance(start("heavy_ball(momentum=None)", ill).go(300)) < 0.01 * distance(start("gd", ill).go(300))


@pytest.mark.parametrize("step", ["1x", "8x"])
def test_ef21_hb_converges(step: str) -> None:
    spec = f"heavy_ball(ef21(topk(k=3)), step={step!r}, momentum=0.5)"
    course = start(spec, "quadratic(d=6, workers=4, noise=0.3, mu=0.5)")
    assert distance(course.go(1500 if step == "1x" else 400)) < 1e-6 * distance(start(spec, course.problem))


# ---- Adam ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("inner", ["direct", "ef21(topk(k=2))", "diana(natural)"])
@pytest.mark.parametrize("more", ["", ", beta1=0.7, beta2=0.95, epsilon=0.01", ", schedule=inverse_root"])
@pytest.mark.parametrize("name", ["adam", "amsgrad"])
def test_adam_is_torchs_on_the_same_estimates(name: str, inner: str, more: str) -> None:
    course = start(f"{name}({inner}, step=0.05{more})", SMALL)
    x = torch.nn.Parameter(course.x)
    rule: Any = course.method
    theirs = torch.optim.Adam([x], 0.05, (rule.beta1, rule.beta2), rule.epsilon, amsgrad=name == "amsgrad")
    for k in range(80):
        x.grad = course.state.estimate.clone()
        theirs.param_groups[0]["lr"] = 0.05 / math.sqrt(1 + k) if "inverse_root" in more else 0.05
        theirs.step()
        assert torch.allclose(course.go().x, x.detach(), rtol=1e-12, atol=1e-12)


def test_amsgrad_and_adam_differ_once_gradients_shrink() -> None:
    adam, ams = start("adam(step=0.05, beta2=0.9)", SMALL).go(60), start("amsgrad(step=0.05, beta2=0.9)", SMALL).go(60)
    assert not torch.allclose(adam.x, ams.x, rtol=1e-3)
    assert (ams.state.rule["largest"] >= ams.state.rule["square"]).all()


@pytest.mark.parametrize("name", ["adam", "amsgrad"])
def test_adam_has_no_theorem_and_refuses_finished_steps(name: str) -> None:
    with pytest.raises(NoTheorem, match="explicit step"):
        method_of(name, problem_of(SMALL))
    with pytest.raises(ValueError, match="hands out finished steps; use a mechanism") as caught:
        method_of(f"{name}(ef14_inside(topk(k=1)), step=0.1)", problem_of(SMALL))
    assert "\n" not in str(caught.value)


# ---- Nesterov, with a regulariser and with compression on the way down -----------------------------------------------


@dataclass(frozen=True)
class Rounded(Broadcast):
    """Workers hold the point rounded to tenths; the server goes on from there or, `apart`, from its own."""

    apart: bool = False

    name = "rounded"

    def init(self, x: Tensor, link: Link) -> Any:
        return None

    async def send(self, x: Tensor, memory: Any, link: Link, to: Cohort | None = None) -> tuple[Tensor, Tensor, Any]:
        held = await link.broadcast(torch.round(x * 10.0) / 10.0, to=to)
        return (x if self.apart else held), held, None


@pytest.mark.parametrize("apart", [False, True])
@pytest.mark.parametrize("rule", ["gd", "nesterov"])
def test_the_server_goes_on_from_where_the_broadcast_says(rule: str, apart: bool) -> None:
    """Gradients at what the workers hold; the next step from there, or from the server's own point."""
    a, b, x, _ = quadratic(SMALL)
    entry: Any = parse(rule)
    method = dataclasses.replace(entry, step=0.3, down=Rounded(apart), **({"momentum": 0.6} if rule != "gd" else {}))
    course = start(method, SMALL)
    momentum, y, g = getattr(method, "momentum", 0.0), x, (a @ x - b).mean(0)
    for _ in range(20):
        before, x = x, y - 0.3 * g
        y = x + momentum * (x - before)
        held = np.round(y * 10.0) / 10.0
        y = y if apart else held
        x = y if rule == "gd" else x
        g = (a @ held - b).mean(0)
        np.testing.assert_allclose(course.go().x.numpy(), x, rtol=1e-11, atol=1e-12)


def test_proximal_nesterov_contracts_at_every_step() -> None:
    """F - F* + (mu / 2) ||z - x*||^2 of FISTA, with a lasso solution found by many proximal gradient steps."""
    a, b, _, x = quadratic(CONVEX)
    h, c, shrink = a.mean(0), b.mean(0), L1(weight=0.02)
    smooth, mu = float(np.linalg.eigvalsh(h)[-1]), float(np.linalg.eigvalsh(h)[0])

    def value(at: np.ndarray) -> float:
        return 0.5 * float(at @ h @ at) - float(c @ at) + shrink.value(torch.from_numpy(at))

    for _ in range(3000):
        x = shrink.prox(torch.from_numpy(x - (h @ x - c) / smooth), 1 / smooth).numpy()
    assert (x == 0.0).any() and (x != 0.0).any()
    problem = problem_of(CONVEX)
    setting = dataclasses.replace(setting_of(problem), composite=True)
    method = Nesterov().settled(setting)
    course = Course(method, problem, start("gd", problem).runtime)
    course.oracles[0].regulariser = shrink
    rate = method.guarantee(setting).rate
    assert rate is not None and rate == pytest.approx(1 - math.sqrt(mu / smooth), rel=1e-9)

    def lyapunov() -> float:
        at, ahead = course.x.numpy(), course.state.rule["ahead"].numpy()
        z = ahead + (ahead - at) * math.sqrt(smooth / mu)
        return value(at) - value(x) + 0.5 * mu * float(((z - x) ** 2).sum())

    values = [lyapunov()]
    for _ in range(120):
        course.go()
        values.append(lyapunov())
    for before, after in itertools.pairwise(values):
        assert after <= rate * before * (1 + 1e-9) + 1e-13 * values[0]
    assert values[-1] < 1e-8 * values[0]


@pytest.mark.parametrize("spec", ["nesterov(estimator=sgd{})", "nesterov(ef21(topk(k=2)){})"])
def test_acceleration_has_a_theorem_for_exact_gradients_only(spec: str) -> None:
    with pytest.raises(NoTheorem, match="exact gradients"):
        method_of(spec.format(""), problem_of(LOGISTIC))
    settled = method_of(spec.format(", step=0.1, momentum=0.5"), problem_of(LOGISTIC))
    with pytest.raises(NoTheorem, match="exact gradients"):
        settled.guarantee(setting_of(problem_of(LOGISTIC)))
    entry = dataclasses.replace(Nesterov(), down=Rounded())
    with pytest.raises(NoTheorem, match="exact gradients"):
        entry.settled(setting_of(problem_of(SMALL)))


# ---- schedules -------------------------------------------------------------------------------------------------------


def test_schedules_by_hand() -> None:
    """mu = 0.5, step = 0.25: shift 4 / (mu step) = 32 and 2 / (mu step) = 16."""
    decreasing, phases = (
        parse(f"gd(step=0.25, schedule={s})").settled(hand()).schedule  # pyright: ignore[reportAttributeAccessIssue]
        for s in ("decreasing", "two_phase(horizon=101)")
    )
    assert decreasing.shift == 32.0 and phases.shift == 16.0
    for k in (0, 1, 32, 500):
        assert 0.25 * decreasing.factor(k) == pytest.approx(4 / (0.5 * (32 + k)), rel=1e-14)
    for k in (51, 52, 67, 500):  # the first half of 101 iterations has 51
        assert 0.25 * phases.factor(k) == pytest.approx(2 / (0.5 * (16 + k - 51)), rel=1e-14)
    assert [phases.factor(k) for k in (0, 1, 50, 51)] == [1.0] * 4 and phases.factor(52) < 1.0
    short: Any = parse("two_phase(horizon=8, shift=16.0)")
    assert [short.factor(k) for k in (0, 7, 900)] == [1.0] * 3
    longer: Any = parse("two_phase(horizon=9, shift=16.0)")
    assert longer.factor(5) == 1.0 and longer.factor(6) == pytest.approx(16 / 17)
    root: Any = parse("inverse_root")
    assert [root.factor(k) for k in (0, 3, 99)] == [1.0, 0.5, 0.1]


def test_steps_of_a_run_are_those_of_its_schedule() -> None:
    """x^(k+1) = x^k - step factor(k) grad f(x^k), with factors of shift 4: 1, 4/5, 4/6, ..."""
    a, b, x, _ = quadratic(SMALL)
    course = start("gd(step=0.5, schedule=decreasing(shift=4.0))", SMALL)
    for k in range(30):
        x = x - 0.5 * 4.0 / (4.0 + k) * (a @ x - b).mean(0)
        np.testing.assert_allclose(course.go().x.numpy(), x, rtol=1e-11, atol=1e-12)


def test_the_virtual_iterate_moves_by_the_step_of_its_iteration() -> None:
    """EF14 inside: x - mean e_i takes the exact gradient step, whatever the schedule."""
    a, b, _, _ = quadratic(SMALL)
    course = start("gd(ef14_inside(topk(k=1)), step=0.05, schedule=decreasing(shift=3.0))", SMALL)

    def virtual() -> np.ndarray:
        """At iteration k the memory has seen the gradient at x^k, so this is the virtual iterate k + 1."""
        return (course.state.x - course.state.estimate - course.state.memory.error.mean(0)).numpy()

    before = virtual()
    for k in range(1, 30):
        g = (a @ course.go().x.numpy() - b).mean(0)
        after = virtual()
        np.testing.assert_allclose(after, before - 0.05 * 3.0 / (3.0 + k) * g, rtol=1e-10, atol=1e-12)
        before = after


@pytest.mark.parametrize("inner", ["ef14_inside(topk(k=1))", "diana(natural)"])
def test_a_schedule_that_does_not_move_is_none(inner: str) -> None:
    plain = start(f"gd({inner}, step=0.02)", SMALL).go(20)
    for schedule in (
        "decreasing(shift=1e300)",
        "two_phase(horizon=1000, shift=3.0)",
        "two_phase(horizon=3, shift=6.0)",
    ):
        assert equal(start(f"gd({inner}, step=0.02, schedule={schedule})", SMALL).go(20).x, plain.x)
    moves = start(f"gd({inner}, step=0.02, schedule=two_phase(horizon=20, shift=6.0))", SMALL)
    assert equal(moves.go(11).x, start(f"gd({inner}, step=0.02)", SMALL).go(11).x) and not equal(moves.go(9).x, plain.x)


@dataclass(frozen=True)
class Watching(Regulariser):
    """r = 0, and remembers the steps of its proximal operator."""

    seen: list[float] = dataclasses.field(default_factory=list)

    name = "watching"

    def value(self, x: Tensor) -> float:
        return 0.0

    def prox(self, x: Tensor, step: float | Tensor) -> Tensor:
        self.seen.append(float(step))
        return x.clone()

    def least_subgradient(self, x: Tensor, gradient: Tensor) -> Tensor:
        return gradient

    def excess(self, x: Tensor, at: Tensor, gradient: Tensor) -> float:
        return 0.0

    def certificate(self, x: Tensor, gradient: Tensor, above: float) -> float:
        return 0.0


@pytest.mark.parametrize("inner", ["direct", "ef14_inside(topk(k=1))"])
def test_proximal_steps_follow_the_schedule(inner: str) -> None:
    """Also where the mechanism's estimate has the step inside."""
    course = start(f"gd({inner}, step=0.5, schedule=inverse_root)", SMALL)
    watching = Watching()
    course.oracles[0].regulariser = watching
    course.go(5)
    assert watching.seen == pytest.approx([0.5 / math.sqrt(k) for k in range(1, 6)], rel=1e-14)


NOISY = "quadratic(d=6, workers=5, noise=0.5, mu=0.3)"


def squared_distances(spec: str, iterations: int, draws: int) -> np.ndarray:
    """||x_k - x*||^2, k = 1, ..., from x^1 = x*, the mean over seeds."""
    total = np.zeros(iterations)
    for seed in range(draws):
        course = start(spec, NOISY, seed)
        solution = course.problem.solution()
        assert solution is not None
        course.state.x, course.state.estimate = solution.x, torch.zeros_like(solution.x)
        total += [distance(course.go()) ** 2 for _ in range(iterations)]
    return total / draws


def exactly(factors: np.ndarray) -> np.ndarray:
    """E ||x_k - x*||^2, k = 1, ..., for steps 0.3 factor(k) and RandK with k = 2 of d = 6, from x^1 = x*.

    E z = 0 with z = x - x*. Sigma+ = (I - s H) Sigma (I - s H) + s^2 N / n^2, N = the sum over workers of Cov(Q(g_i)):
    omega g_j^2 on the diagonal and (d (k - 1) / (k (d - 1)) - 1) g_j g_l off it, in expectation over z.
    """
    a, b, _, best = quadratic(NOISY)
    n, d = b.shape
    h, residual = a.mean(0), a @ best - b
    weights = np.where(np.eye(d) > 0, 2.0, d / (2 * (d - 1)) - 1.0)
    sigma, found = np.zeros((d, d)), []
    for factor in factors:
        found.append(np.trace(sigma))
        second = a @ sigma @ a.transpose(0, 2, 1) + residual[:, :, None] * residual[:, None, :]
        keep = np.eye(d) - 0.3 * factor * h
        sigma = keep @ sigma @ keep + (0.3 * factor / n) ** 2 * (weights * second).sum(0)
    return np.array(found)


def test_decreasing_steps_make_compressed_gradients_converge_like_1_over_k() -> None:
    """E ||x_k - x*||^2 is the exact one, which halves when k doubles, where a constant step's ends in a floor."""
    shift = 4.0 / (0.3 * 0.3)
    steady, steps = np.ones(4000), shift / (shift + np.arange(1, 4001))
    ends = []
    for schedule, factors in (("", steady), (", schedule=decreasing", steps)):
        found = squared_distances(f"gd(direct(randk(k=2)), step=0.3{schedule})", 240, 12)
        exact = exactly(factors)
        for window in (slice(20, 80), slice(160, 240)):
            assert 0.7 < found[window].mean() / exact[window].mean() < 1.4
        assert exact[1999] / exact[3999] == pytest.approx(2.0 if schedule else 1.0, rel=0.05)
        ends.append(exact[240])
    assert ends[1] < 0.3 * ends[0]


def test_decreasing_steps_make_error_feedback_converge() -> None:
    """Where gradients at x* do not vanish EF14 has a floor of order step^2; with steps like 1 / k that vanishes."""
    late, later = slice(300, 400), slice(1200, 1600)
    stays = squared_distances("gd(ef14_inside(topk(k=1)), step=0.3)", 1600, 1)
    goes = squared_distances("gd(ef14_inside(topk(k=1)), step=0.3, schedule=decreasing)", 1600, 1)
    assert 0.5 < stays[later].mean() / stays[late].mean() < 2.0
    assert goes[later].mean() < 0.15 * goes[late].mean() and goes[later].mean() < 0.01 * stays[later].mean()


def test_error_in_gradient_units_refuses_a_changing_step() -> None:
    for rule in ("gd", "heavy_ball"):
        for schedule in ("decreasing", "two_phase(horizon=9)", "inverse_root"):
            with pytest.raises(
                ValueError, match=r"ef14\(topk\(k=1\)\) needs a constant step.*use ef14_inside"
            ) as caught:
                parse(f"{rule}(ef14(topk(k=1)), schedule={schedule})")
            assert "\n" not in str(caught.value)
    assert parse("gd(ef14(topk(k=1)), schedule=constant)") == parse("gd(ef14(topk(k=1)))")


def test_what_a_schedule_leaves_of_a_promise() -> None:
    method: Any = method_of_hand("gd(direct(randk(k=20)), schedule=decreasing)")
    promise = method.guarantee(hand())
    assert promise.step == method.step == pytest.approx(1 / 16)
    assert promise.rate is promise.lyapunov is promise.gap_factor is promise.average is None
    assert math.isnan(promise.plateau) and "never exceeds" in promise.assumes[-1]
    with pytest.raises(NoTheorem, match="mu"):
        method_of_hand("gd(step=0.1, schedule=decreasing)", mu=None)
    with pytest.raises(ValueError, match="not a number yet"):
        parse("two_phase(horizon=9)").factor(3)  # pyright: ignore[reportAttributeAccessIssue]


# ---- several models at once, bad input, resume -----------------------------------------------------------------------


@pytest.mark.parametrize("spec", ["gd", "heavy_ball", "nesterov(momentum=0.6)", "adam(step=1.0)", "amsgrad(step=1.0)"])
def test_models_stacked_with_a_step_each_move_as_they_would_alone(spec: str) -> None:
    rule: Any = parse(spec)
    generator = torch.Generator().manual_seed(1)
    x, steps = torch.randn(3, 5, generator=generator), torch.tensor([[0.1], [0.5], [2.0]])
    alone = [(x[row], rule.first(x[row])) for row in range(3)]
    stacked, kept = x, rule.first(x)
    for k in range(4):
        g = torch.randn(3, 5, generator=generator)
        before = stacked
        stacked, kept = rule.move(stacked, g, kept, steps, k)
        stacked, kept = rule.adopt(stacked, rule.ahead(stacked, before), kept)
        for row, (one, own) in enumerate(alone):
            moved, own = rule.move(one, g[row], own, float(steps[row]), k)
            moved, own = rule.adopt(moved, rule.ahead(moved, one), own)
            alone[row] = (moved, own)
            assert torch.allclose(stacked[row], moved, rtol=1e-6)


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("heavy_ball(momentum=1.0)", r"HeavyBall\(momentum=1.0\) : momentum must be a number in \[0, 1\)"),
        ("nesterov(momentum=1.0)", r"momentum must be a number in \[0, 1\)"),
        ("heavy_ball(momentum=-0.1)", "momentum must be"),
        ("adam(step=0.1, beta1=1.0)", "beta1 must be"),
        ("adam(step=0.1, epsilon=0.0)", "epsilon must be"),
        ("gd(schedule=decreasing(shift=0.0))", "shift must be"),
        ("gd(schedule=two_phase)", "horizon"),
        ("gd(schedule=ef21)", "compressor"),
        ("gd(schedule=full)", "schedule must be a schedule"),
        ("gd(schedule=decreasnig)", "decreasing"),
    ],
)
def test_bad_input_gets_one_clear_line(spec: str, said: str) -> None:
    with pytest.raises(ValueError, match=said) as caught:
        parse(spec)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("spec", "why"),
    [
        ("heavy_ball(momentum=None)", "known for quadratics only; give one"),
        ("heavy_ball(ef21(topk(k=2)), momentum=None)", "no theorem chooses the momentum"),
        ("heavy_ball(diana(natural))", "no theorem covers"),
        ("heavy_ball(direct(natural))", "no theorem covers"),
        ("heavy_ball(ef21(topk(k=2)), estimator=sgd)", "full gradients"),
        ("heavy_ball(estimator=sgd)", "no theorem covers"),
    ],
)
def test_what_no_theorem_covers_says_why(spec: str, why: str) -> None:
    with pytest.raises(NoTheorem, match=why) as caught:
        method_of(spec, problem_of(LOGISTIC))
    assert "\n" not in str(caught.value) and "give" in str(caught.value)


@pytest.mark.parametrize("rule", ["heavy_ball", "adam", "amsgrad"])
def test_rules_without_a_proximal_step_refuse_a_regulariser(rule: str) -> None:
    entry: Any = parse(f"{rule}(step=0.1)")
    with pytest.raises(ValueError, match="no proximal step, and the problem has a regulariser; use gd"):
        entry.settled(dataclasses.replace(hand(), composite=True))


def test_a_memory_of_the_wrong_shape_is_refused_on_resume() -> None:
    course = start("heavy_ball(ef21(topk(k=2)), step=0.1)", SMALL).go(3)
    party = Party(course.runtime.links[0], course.oracles[0], course.state)
    (tensors,) = course.runtime.drive(capture(party))
    put_back(party, tensors)
    for name, other, said in [
        (f"{METHOD}memory.shift", torch.zeros(4, 8, dtype=torch.float64), r"float64 \(4, 8\) and the run needs"),
        (f"{METHOD}memory.shift", torch.zeros(6, 7, dtype=torch.float64), "6 workers' rows and the run has 4"),
        (f"{METHOD}rule.velocity", torch.zeros(7), r"float32 \(7,\) and the run needs float64 \(7,\)"),
        (f"{METHOD}rule.odd", torch.zeros(7), "'method/rule.odd' is in only one"),
    ]:
        with pytest.raises(ValueError, match=said) as caught:
            put_back(party, tensors | {name: other})
        assert "\n" not in str(caught.value)
