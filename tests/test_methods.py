"""Methods: identities with simpler methods, contraction at the theorem's rate, constants by hand, who computes what."""

from __future__ import annotations

import dataclasses
import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from by_hand import RUNTIMES, Course, distance, equal, matrices, method_of, problem_of, setting_of, start
from laconic.core import rows
from laconic.core.keys import Keys
from laconic.core.problem import Batch, Constant, Constants, Oracles
from laconic.core.spec import parse
from laconic.core.state import flatten, restore
from laconic.core.theory import NoTheorem, Setting
from laconic.methods._anchored import Anchor
from laconic.methods._inner import minimise

SMALL = "quadratic(d=7, workers=4, noise=0.1, mu=0.1)"
CONVEX = "quadratic(d=20, workers=6, noise=0.2, mu=0.05)"
ALIKE = "quadratic(d=12, workers=3, noise=0.0, mu=0.01)"
LOGISTIC = "logistic(data='breast_cancer', l2=0.01, workers=5)"


def lyapunovs(course: Course, iterations: int) -> list[float]:
    solution = course.problem.solution()
    assert solution is not None
    values = [course.lyapunov()]
    for _ in range(iterations):
        values.append(course.go().lyapunov())
    return values


def rate_of(course: Course) -> float:
    rate = course.guarantee().rate
    assert rate is not None
    return rate


def contracts(course: Course, iterations: int) -> bool:
    """At every step, down to rounding: below 1e-13 of the start differences of f decide nothing."""
    values, rate = lyapunovs(course, iterations), rate_of(course)
    return all(after <= rate * before * (1 + 1e-9) + 1e-13 * values[0] for before, after in itertools.pairwise(values))


# ---- gradient descent and Nesterov's method --------------------------------------------------------------------------


def test_gradient_descent_by_the_formula() -> None:
    """On a quadratic x - x* is multiplied by I - step H."""
    problem = problem_of(SMALL)
    a, b = matrices(problem)
    h = a.mean(0)
    best = torch.linalg.solve(h, b.mean(0))
    course = start("gd", problem)
    step: float = course.method.step
    assert step == pytest.approx(1 / float(torch.linalg.eigvalsh(h)[-1]), rel=1e-10)
    error = course.x - best
    for _ in range(30):
        error = error - step * h @ error
        assert torch.allclose(course.go().x - best, error, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("problem", [SMALL, CONVEX, ALIKE, LOGISTIC, "counterexample"])
@pytest.mark.parametrize("spec", ["nesterov", "nesterov(step='0.3x')"])
def test_nesterovs_function_contracts_at_every_step(spec: str, problem: str) -> None:
    course = start(spec, problem)
    setting, step = setting_of(course.problem), course.method.step
    assert setting.constants.mu is not None
    assert rate_of(course) == pytest.approx(1 - math.sqrt(step * float(setting.constants.mu)), rel=1e-12)
    assert contracts(course, 150)


def test_nesterovs_bound_on_the_gap() -> None:
    course = start("nesterov", CONVEX)
    solution, c, rate = course.problem.solution(), course.problem.constants(), rate_of(course)
    oracles: Any = course.oracles[0]
    assert solution is not None and c.mu is not None
    first = float(oracles.excess(course.x, solution).mean()) + 0.5 * float(c.mu) * rows.square(course.x - solution.x)
    for k in range(1, 200):
        assert float(oracles.excess(course.go().x, solution).mean()) <= rate**k * first + 1e-14 * first


def test_nesterov_is_much_faster_than_gradient_descent() -> None:
    ill = "quadratic(d=50, workers=2, noise=0.0, mu=0.001)"
    assert distance(start("nesterov", ill).go(300)) < 0.05 * distance(start("gd", ill).go(300))


def test_a_momentum_of_ones_own_has_no_theorem() -> None:
    """nesterov(momentum=0) is gradient descent, whose rate is another."""
    plain, course = start("gd(step=0.5)", SMALL), start("nesterov(step=0.5, momentum=0.0)", SMALL)
    assert torch.equal(plain.go(10).x, course.go(10).x)
    with pytest.raises(NoTheorem, match="momentum"):
        course.guarantee()
    with pytest.raises(NoTheorem, match="momentum"):
        start("nesterov(momentum=0.0)", SMALL)
    settled = method_of("nesterov", problem_of(SMALL))
    assert rate_of(start(settled, SMALL)) < 1  # the theorem's own momentum, settled, keeps its promise


# ---- ProxSkip --------------------------------------------------------------------------------------------------------


def test_proxskip_that_never_skips_is_gradient_descent() -> None:
    problem = problem_of(CONVEX)
    step = 1 / float(problem.constants().L_max)
    plain, course = start(f"gd(step={step!r})", problem), start(f"proxskip(probability=1.0, step={step!r})", problem)
    plain.go()  # gd's first iterate repeats the start, at which its first estimate was made
    for _ in range(60):
        assert torch.allclose(course.go().x, plain.x, rtol=1e-12, atol=1e-13)
        plain.go()


def test_proxskip_controls_add_up_to_zero_and_rounds_follow_the_coin() -> None:
    course = start("proxskip", CONVEX)
    p: float = course.method.probability
    local = course.state.local.clone()
    for _ in range(200):
        before = course.runtime.ledger.rounds
        course.go()
        assert float(course.state.control.sum(0).abs().max()) < 1e-12
        if course.runtime.ledger.rounds > before:
            assert torch.equal(course.state.local, course.x.expand_as(local))
        else:
            assert not torch.equal(course.state.local[0], course.state.local[1])
    assert course.runtime.ledger.rounds == pytest.approx(200 * p, abs=5 * math.sqrt(200 * p))
    full = 20 * 8 * course.runtime.ledger.rounds
    assert (course.runtime.ledger.uplink == full).all() and (course.runtime.ledger.downlink == full).all()


@pytest.mark.parametrize("problem", [CONVEX, LOGISTIC])
@pytest.mark.parametrize("spec", ["proxskip", "proxskip(probability=0.5)", "proxskip(step='0.5x', probability=0.8)"])
def test_proxskip_contracts_in_expectation_over_its_coin(
    monkeypatch: pytest.MonkeyPatch, spec: str, problem: str
) -> None:
    """Both sides of the coin from the same state: the expectation is exact, at every step on the way."""
    course = start(spec, problem)
    solution, rate, p = course.problem.solution(), rate_of(course), course.method.probability
    setting = setting_of(course.problem)
    assert solution is not None and setting.constants.mu_workers is not None
    by_hand = 1 - min(course.method.step * float(setting.constants.mu_workers), p * p)
    assert rate == pytest.approx(by_hand, rel=1e-12)
    for _ in range(40):
        before, kept = course.lyapunov(), course.state
        after = []
        for heads in (True, False):
            monkeypatch.setattr(Keys, "coins", lambda self, probability, heads=heads: torch.tensor([heads]))
            course.states = [kept]
            after.append(course.go().lyapunov())
        monkeypatch.undo()
        assert p * after[0] + (1 - p) * after[1] <= rate * before * (1 + 1e-9) + 1e-16
        course.states = [kept]
        course.go()


def test_proxskip_reaches_the_solution_of_unlike_workers() -> None:
    assert distance(start("proxskip", CONVEX).go(1200)) < 1e-9


# ---- sliding ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("problem", "factor"), [*itertools.product([SMALL, CONVEX, LOGISTIC], [1.0, 3.0]), (ALIKE, 3.0)]
)
def test_slidings_function_contracts_with_an_inexact_prox(problem: str, factor: float) -> None:
    """At every iteration, with the computable criterion, also where the similarity is over-estimated."""
    delta = problem_of(problem).constants().delta_server
    assert delta is not None
    course = start("sliding" if factor == 1.0 else f"sliding(similarity={factor * max(float(delta), 1e-3)!r})", problem)
    assert contracts(course, 60 if factor == 1.0 else 100)
    assert course.runtime.ledger.rounds == 2 * course.step


def test_sliding_on_equal_workers_is_done_at_once() -> None:
    """L_p is next to nothing: the server's own function is all there is to know."""
    course = start("sliding", ALIKE)
    first = distance(course)
    assert rate_of(course) == 0.5
    assert distance(course.go(3)) < 1e-7 * first


def test_slidings_prox_meets_its_criterion() -> None:
    course = start("sliding", CONVEX)
    method: Any = course.method
    tau, theta, _ = method._parameters()
    oracles, similarity = course.oracles[0], method.similarity
    for _ in range(10):
        state = course.state
        x_g = tau * state.x + (1 - tau) * state.x_f
        course.go()
        slope = rows.mean(oracles.gradients(x_g)) - oracles.server.gradients(x_g)[0]
        w = course.x
        a = slope + (w - x_g) / theta + oracles.server.gradients(w)[0]
        assert float(a.norm()) <= similarity / 3 * float((x_g - w).norm()) * (1 + 1e-9) + 1e-14
        # the theorem's own criterion, with the exact minimiser found to 1e-12
        exact = minimise(
            lambda y, s=slope, at=x_g: s + (y - at) / theta + oracles.server.gradients(y[0]),
            x_g[None],
            method.smooth + 1 / theta,
            1 / theta,
            1e-12,
        )[0]
        assert float(a.norm()) ** 2 <= similarity**2 / 3 * float((x_g - exact).norm()) ** 2 + 1e-28


def test_only_the_server_uses_its_copy() -> None:
    course = Course(method_of("sliding", problem_of(SMALL)), problem_of(SMALL), RUNTIMES["star"](4, 0)).go(3)
    assert "server" in vars(course.oracles[0]) and all("server" not in vars(o) for o in course.oracles[1:])


# ---- SVRP ------------------------------------------------------------------------------------------------------------


def test_svrp_with_the_reference_always_renewed_is_a_proximal_step_of_mirror_descent() -> None:
    """p = 1: x+ = argmin f_m(w) + <grad f(x) - grad f_m(x), w> + ||w - x||^2 / (2 step), m the sampled worker."""
    problem, step = problem_of(SMALL), 0.7
    a, b = matrices(problem)
    course = start(f"svrp(probability=1.0, step={step})", problem)
    for _ in range(15):
        x = course.x
        course.go()
        link = course.runtime.links[0]
        link.begin(course.step)
        (m,) = link.sample(1).members
        eye = torch.eye(7, dtype=x.dtype)
        slope = (a @ x - b).mean(0) - (a[m] @ x - b[m])
        exact = torch.linalg.solve(a[m] + eye / step, b[m] - slope + x / step)
        # the prox is solved to ||gradient|| <= 1e-3 ||x+ - x|| / step, and is 1 / step strongly convex
        assert float((course.x - exact).norm()) <= 1e-3 * float((x - course.x).norm()) * (1 + 1e-9) + 1e-13


@pytest.mark.parametrize("problem", [SMALL, LOGISTIC])
def test_svrp_shrinks_the_distance_at_the_theorems_rate(problem: str) -> None:
    """Over a long way and several seeds; to x* itself, though the prox is never exact."""
    for seed in range(3):
        course = start("svrp", problem, seed)
        rate, first = rate_of(course), distance(course)
        iterations = min(400, math.ceil(math.log(1e-20) / math.log(rate)))
        assert distance(course.go(iterations)) ** 2 <= rate**iterations * first**2 + 1e-26


def test_svrp_has_no_floor() -> None:
    assert distance(start("svrp", SMALL).go(300)) < 1e-12


def test_svrp_stays_at_the_solution() -> None:
    course = start("svrp", SMALL)
    solution = course.problem.solution()
    assert solution is not None
    own = course.oracles[0].gradients(solution.x)
    course.state.x, course.state.anchor = solution.x, Anchor(solution.x, own, torch.zeros(7, dtype=torch.float64))
    assert distance(course.go(20)) < 1e-12


class Strict(Oracles):
    """The oracles of a problem, on which only some workers may be asked."""

    def __init__(self, inner: Oracles) -> None:
        super().__init__()
        self.inner, self.block, self.shape, self.convex = inner, inner.block, inner.shape, inner.convex
        self.allowed: set[int] | None = None
        self.asked: set[int] = set()

    def _check(self, rows: np.ndarray) -> None:
        who = {self.block.low + int(row) for row in rows}
        assert self.allowed is None or who <= self.allowed, (
            f"workers {who - (self.allowed or set())} compute for others"
        )
        self.asked |= who

    def start(self) -> Tensor:
        return self.inner.start()

    def terms(self) -> np.ndarray:
        return self.inner.terms()

    def _values(self, x: Tensor, rows: np.ndarray) -> Tensor:
        return self.inner._values(x, rows)

    def _gradients(self, x: Tensor, rows: np.ndarray, batch: Batch | None) -> Tensor:
        self._check(rows)
        return self.inner._gradients(x, rows, batch)

    def _hessians(self, x: Tensor, rows: np.ndarray) -> Tensor:
        self._check(rows)
        return self.inner._hessians(x, rows)


@pytest.mark.parametrize("runtime", ["plain", "three parts"])
@pytest.mark.parametrize(
    ("spec", "size"), [("svrp(probability=1e-9, step=1.0)", 1), ("fednl_pp(topk(k=5), cohort=2)", 2)]
)
def test_a_worker_that_is_not_sampled_computes_nothing(spec: str, size: int, runtime: str) -> None:
    problem = problem_of(SMALL)
    local = RUNTIMES[runtime](4, 0)
    strict = [Strict(problem.oracles(link.block)) for link in local.links]
    course, seen = Course(method_of(spec, problem), problem, local, list(strict)), set()
    for _ in range(12):
        link = local.links[0]
        link.begin(course.step + 1)
        members = link.sample(size).members
        assert members is not None
        calls = sum(oracles.calls.gradient_terms for oracles in strict)
        for oracles in strict:
            oracles.allowed = set(members.tolist())
        course.go()
        asked = {worker for oracles in strict for worker in oracles.asked if worker in set(members.tolist())}
        assert asked == set(members.tolist()) and sum(o.calls.gradient_terms for o in strict) > calls
        seen |= asked
    assert seen == {0, 1, 2, 3}


# ---- the inner solver ------------------------------------------------------------------------------------------------


def test_the_inner_solver_stops_by_its_test_and_counts_as_accelerated() -> None:
    """Each row is a problem of its own; the number of gradients grows like the root of the condition number."""
    calls = []
    for condition in (100.0, 1600.0):
        spectrum = torch.logspace(0, math.log10(condition), 50, dtype=torch.float64)
        asked = 0

        def gradient(w: Tensor, spectrum: Tensor = spectrum) -> Tensor:
            nonlocal asked
            asked += 1
            return spectrum * w - 1.0

        begin = torch.zeros(3, 50, dtype=torch.float64)
        w = minimise(gradient, begin, condition, 1.0, 1e-8)
        assert ((spectrum * w - 1.0).norm(dim=1) <= 1e-8 * (begin - w).norm(dim=1)).all()
        calls.append(asked)
    assert 2.5 < calls[1] / calls[0] < 6.0
    still = torch.ones(1, 4, dtype=torch.float64)
    assert torch.equal(minimise(lambda w: w - 1.0, still, 1.0, 1.0, 1e-3), still)
    assert minimise(lambda w: w, still[:0], 1.0, 1.0, 1e-3).shape == (0, 4)


# ---- constants by hand -----------------------------------------------------------------------------------------------


def hand(
    mu: float | None = 0.5, mu_workers: float | None = 0.25, convex: bool = True, n: int = 4, d: int = 10
) -> Setting:
    """L = 2, L_max = 4, delta_server = 0.125, delta_mean = 0.25."""
    values = {
        "L": 2.0,
        "L_max": 4.0,
        "L_tilde": 3.0,
        "L_plus": 3.0,
        "L_pm": 1.5,
        "delta_server": 0.125,
        "delta_mean": 0.25,
    }
    values |= {name: value for name, value in (("mu", mu), ("mu_workers", mu_workers)) if value is not None}
    named: Any = {name: Constant(value) for name, value in values.items()}
    return Setting(Constants(L_workers=(1.5, 2.0, 2.0, 4.0), **named), n, (d,), (3, 3), convex)


def test_parameters_by_hand() -> None:
    nesterov: Any = parse("nesterov")
    settled = nesterov.settled(hand())
    assert (settled.step, settled.momentum) == (0.5, pytest.approx(1 / 3, rel=1e-14))  # q = 1/4
    assert settled.guarantee(hand()).rate == pytest.approx(0.5) and nesterov.guarantee(hand()).step == 0.5
    proxskip: Any = parse("proxskip")
    settled = proxskip.settled(hand())
    assert (settled.step, settled.probability) == (0.25, 0.25)  # kappa = 16
    assert settled.guarantee(hand()).rate == pytest.approx(1 - 1 / 16)
    assert parse("proxskip(probability=0.1)").settled(hand()).guarantee(hand()).rate == pytest.approx(0.99)
    sliding: Any = parse("sliding")
    settled = sliding.settled(hand(mu=0.03125))  # L_p / mu = 4
    assert (settled.similarity, settled.mu, settled.smooth) == (0.125, 0.03125, 1.5)
    assert settled._parameters() == pytest.approx((0.25, 4.0, 8.0)) and settled.guarantee(
        hand(mu=0.03125)
    ).rate == pytest.approx(0.75)
    assert sliding.guarantee(hand()).rate == 0.5  # mu >= L_p
    assert sliding.settled(hand())._parameters() == pytest.approx((1.0, 4.0, 1.0))
    svrp: Any = parse("svrp")
    settled = svrp.settled(hand())
    assert (settled.step, settled.probability, settled.smooth) == (2.0, 0.25, 4.0)  # mu / (2 delta^2)
    assert settled.guarantee(hand()).rate == pytest.approx(1 - min(0.5 / 2, 0.125))
    assert parse("svrp(probability=1.0)").settled(hand()).guarantee(hand()).rate == pytest.approx(1 - 0.9 * 0.5 / 1.5)


@pytest.mark.parametrize(
    ("spec", "setting", "why"),
    [
        ("nesterov", hand(mu=None), "mu"),
        ("nesterov(ef21(topk(k=2)))", hand(), "exact gradients"),
        ("nesterov(direct(natural))", hand(), "exact gradients"),
        ("nesterov(step=0.1)", hand(mu=None), "mu"),
        ("proxskip", hand(mu_workers=None), "mu_workers"),
        ("proxskip", hand(mu_workers=0.0), "strongly convex"),
        ("proxskip(step=0.1)", hand(mu_workers=-1.0), "strongly convex"),
        ("sliding", hand(mu=None), "mu"),
        ("svrp", hand(mu_workers=-0.5), "strongly convex"),
        ("svrp", hand(mu_workers=0.0), "strongly convex"),
        ("svrp", hand(mu_workers=None), "mu_workers"),
        ("fednl(powersgd)", hand(), "compressor"),
    ],
)
def test_what_no_theorem_covers_says_why(spec: str, setting: Setting, why: str) -> None:
    with pytest.raises(ValueError, match=why) as caught:
        parse(spec).settled(setting)
    assert "\n" not in str(caught.value)
    assert isinstance(caught.value, NoTheorem) or "powersgd" in spec


def test_promises_end_where_assumptions_end() -> None:
    """Beyond the largest step, or with similarity or strong convexity claimed to be better than it is."""
    for spec in (
        "nesterov(step='2x')",
        "proxskip(step='2x')",
        "svrp(step='10x')",
        "sliding(similarity=0.1)",
        "sliding(mu=0.6)",
    ):
        settled: Any = parse(spec).settled(hand())
        promise = settled.guarantee(hand())
        assert promise.rate is None and promise.lyapunov is None, spec
    for spec in ("sliding(similarity=0.2)", "sliding(mu=0.4)", "proxskip(step='0.5x')", "svrp(step='0.1x')"):
        settled = parse(spec).settled(hand())
        assert settled.guarantee(hand()).rate is not None, spec


def test_a_cohort_larger_than_the_workers_is_refused() -> None:
    with pytest.raises(ValueError, match=r"FedNLPP\(cohort=5\) : the problem has 4 workers"):
        parse("fednl_pp(topk(k=1), cohort=5)").settled(hand())


# ---- states ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "spec",
    [
        "gd(ef21(topk(k=2)))",
        "gd(diana(natural), estimator=lsvrg)",
        "nesterov",
        "proxskip",
        "sliding",
        "svrp",
        "fednl(topk(k=9))",
        "fednl_pp(topk(k=9), cohort=2)",
        "gd(powersgd, step=0.1)",
    ],
)
def test_a_run_goes_on_from_its_state_alone(spec: str) -> None:
    course = start(spec, SMALL).go(4)
    kept = {name: leaf.tensor.clone() for name, leaf in flatten(course.state).items()}
    course.go(5)
    again = start(spec, SMALL)
    again.states, again.step = [restore(again.state, kept)], 4
    assert equal(again.go(5).x, course.x)
    for name, leaf in flatten(course.state).items():
        assert equal(flatten(again.state)[name].tensor, leaf.tensor)
    assert dataclasses.is_dataclass(course.state)
