"""GradSkip and GradSkip+: identities with ProxSkip, a plain reference with the same coins, contraction, and counts."""

from __future__ import annotations

import dataclasses
import itertools
import math
from typing import Any, cast

import numpy as np
import pytest
import torch
from torch import Tensor

from by_hand import Course, distance, hand, matrices, method_of, problem_of, start
from laconic.core.keys import Keys
from laconic.core.link import Link
from laconic.core.problem import Batch, Block, Oracles, Problem
from laconic.core.spec import parse
from laconic.core.theory import NoTheorem, Setting
from laconic.problems.custom import Custom
from laconic.runtime.local import Local

SMALL = "quadratic(d=7, workers=4, noise=0.3, mu=0.1)"


def uneven(hardest: float = 12.0, d: int = 3) -> Problem:
    """Ridge regressions of which the last is by far the worst conditioned."""
    rng = np.random.default_rng(2)
    rows = [size * rng.standard_normal((8, d)) for size in (0.4, 0.7, 1.3, 0.3, hardest)]
    return Custom.from_arrays(rows, [part.sum(1) + rng.standard_normal(8) for part in rows], loss="ridge", l2=1.0)


UNEVEN = uneven()


def parts(problem: Problem | str) -> tuple[np.ndarray, np.ndarray]:
    a, b = matrices(problem_of(problem))
    return a.numpy(), b.numpy()


class Reference:
    """The paper's box, with coins given from outside; `asked` counts the gradients of each worker."""

    def __init__(self, problem: Problem | str, x: Tensor, step: float, p: float) -> None:
        self.a, self.b = parts(problem)
        self.n, self.step, self.p = len(self.b), step, p
        self.local, self.h = np.tile(x.numpy(), (self.n, 1)), np.zeros_like(self.b)
        self.x, self.asked, self.frozen = x.numpy(), np.zeros(self.n), np.zeros(self.n, dtype=bool)

    def go(self, theta: bool, eta: np.ndarray) -> np.ndarray:
        self.asked += ~self.frozen
        g = np.einsum("ijk,ik->ij", self.a, self.local) - self.b
        hh = np.where(eta[:, None], self.h, g)
        ahead = self.local - self.step * (g - hh)
        self.frozen |= ~eta
        self.local = ahead
        if theta:
            self.x = (ahead - self.step / self.p * hh).mean(0)
            self.local, self.frozen[:] = np.tile(self.x, (self.n, 1)), False
        self.h = hh + self.p / self.step * (self.local - ahead)
        return self.x


def private(k: int, q: Any, n: int) -> np.ndarray:
    return (Keys(0, k, "/coins0", np.arange(n), n).uniform(1)[:, 0].numpy()) < np.asarray(q)


def shared(k: int, p: float, n: int, stream: str = "/coin0") -> bool:
    return bool(Keys(0, k, stream, np.arange(n), n).shared.coins(p))


# ---- identities ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("problem", [SMALL, "logistic(data='breast_cancer', l2=0.1, workers=5)"])
def test_without_private_coins_it_is_proxskip(problem: str) -> None:
    """The same shared coins; sum h_i = 0 makes the messages' means the same."""
    plain, skip = start("proxskip(probability=0.4)", problem), start("gradskip(probability=0.4, keep=(1.0,))", problem)
    assert cast(Any, skip.method).step == pytest.approx(cast(Any, plain.method).step, rel=1e-12)
    for _ in range(60):
        assert torch.allclose(plain.go().x, skip.go().x, rtol=1e-10, atol=1e-12)
        assert torch.allclose(plain.state.local, skip.state.local, rtol=1e-10, atol=1e-12)
    assert plain.runtime.ledger.rounds == skip.runtime.ledger.rounds > 10


@pytest.mark.parametrize("spec", ["gradskip(probability=1.0, keep=({q},), step=0.3)"] + [
    f"gradskip_plus(identity, {inner}, step=0.3)" for inner in ("all_or_nothing(p={q})", "natural", "randk(k=2)")
])  # fmt: skip
@pytest.mark.parametrize("q", [0.1, 0.6, 1.0])
def test_with_communication_in_every_iteration_it_is_gradient_descent(spec: str, q: float) -> None:
    course = start(spec.format(q=q), SMALL)
    a, b = parts(SMALL)
    x = course.x.numpy()
    for _ in range(30):
        x = x - 0.3 * (a @ x - b).mean(0)
        assert np.allclose(course.go().x.numpy(), x, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("keep", [(0.8,), (0.2, 0.9, 0.5, 1.0), (0.0, 1.0, 0.7, 0.7)])
def test_the_algorithm_is_that_of_its_paper(keep: tuple[float, ...]) -> None:
    course = start(f"gradskip(probability=0.3, keep={keep}, step=0.4)", SMALL)
    plain = Reference(SMALL, course.x, 0.4, 0.3)
    asked = course.oracles[0].calls.gradient_terms
    for k in range(1, 80):
        theta = shared(k, 0.3, 4)
        x = plain.go(theta, private(k, keep, 4))
        course.go()
        assert np.allclose(course.x.numpy(), x, rtol=1e-9, atol=1e-11)
        assert np.allclose(course.state.local.numpy(), plain.local, rtol=1e-9, atol=1e-11)
        assert (course.state.resting.numpy() == plain.frozen).all()
        if theta:
            assert float(course.state.control.sum(0).abs().max()) < 1e-11
    assert course.oracles[0].calls.gradient_terms - asked == plain.asked.sum()


@pytest.mark.parametrize("q", [1.0, 0.8])
def test_gradskip_plus_with_coins_is_gradskip(q: float) -> None:
    """C = all_or_nothing(p), C' = all_or_nothing(q); the reference is given the coins of these compressors."""
    p, step = 0.3, 0.4
    course = start(f"gradskip_plus(all_or_nothing(p={p}), all_or_nothing(p={q}), step={step})", SMALL)
    plain = Reference(SMALL, course.x, step, p)
    rounds = 0
    for k in range(1, 80):
        theta = shared(k, p, 4, "/sent/choice0")
        eta = Keys(0, k, "/skipped/up0", np.arange(4), 4).coins(q).numpy()
        x = plain.go(theta, eta)
        rounds += theta
        assert np.allclose(course.go().x.numpy(), x, rtol=1e-9, atol=1e-11)
        assert np.allclose(course.state.local.numpy(), plain.local, rtol=1e-9, atol=1e-11)
        assert np.allclose(course.state.control.numpy(), plain.h, rtol=1e-8, atol=1e-9)
    ledger = course.runtime.ledger
    assert ledger.rounds == rounds and 10 < rounds < 40
    assert (ledger.uplink == rounds * 7 * 8).all() and (ledger.downlink == rounds * 7 * 8).all()


def test_gradskip_plus_by_its_own_box() -> None:
    """In R^(n d), with RandK for both; only the chosen coordinates travel."""
    course = start("gradskip_plus(randk(k=2), randk(k=3), step=0.2)", SMALL)
    a, b = parts(SMALL)
    n, d = b.shape
    x, h = np.tile(course.x.numpy(), (n, 1)), np.zeros((n, d))
    w, skips, step = d / 2 - 1, d / 3 - 1, 0.2
    for k in range(1, 60):
        keys = Keys(0, k, "/skipped/up0", np.arange(n), n)
        chosen = np.zeros(d)
        chosen[Keys(0, k, "/sent/choice0", np.arange(n), n).shared.subsets(d, 2)[0]] = d / 2
        own = np.zeros((n, d))
        np.put_along_axis(own, keys.subsets(d, 3), d / 3, axis=1)
        g = np.einsum("ijk,ik->ij", a, x) - b
        hh = g - own * (g - h) / (1 + skips)
        ahead = x - step * (g - hh)
        mean = (ahead - step * (1 + w) * hh).mean(0)
        x = ahead - chosen * (ahead - mean) / (1 + w)
        h = hh + (x - ahead) / (step * (1 + w))
        course.go()
        assert np.allclose(course.state.local.numpy(), x, rtol=1e-9, atol=1e-10)
        assert np.allclose(course.state.control.numpy(), h, rtol=1e-8, atol=1e-9)
    ledger = course.runtime.ledger
    assert (ledger.uplink == 59 * 2 * 8).all() and (ledger.downlink == 59 * 2 * 8).all()


# ---- convergence -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("spec", ["gradskip", "gradskip_plus(randk(k=4), randk(k=5))"])
def test_it_reaches_the_solution_of_unlike_workers(spec: str) -> None:
    problem = "quadratic(d=7, workers=4, noise=0.2, mu=0.3)"
    assert distance(start(spec, problem).go(260)) < 1e-9


@pytest.mark.parametrize("sent", ["all_or_nothing(p=0.5)", "randk(k=0.5)", "identity"])
def test_gradskip_plus_with_a_regulariser(sent: str) -> None:
    """To the certified minimiser of f + r, whose gradients the control variates learn."""
    problem = problem_of("composite(quadratic(d=6, workers=3, noise=0.2, mu=0.3), l1(weight=0.05))")
    course = start(f"gradskip_plus({sent}, all_or_nothing(p=0.9))", problem).go(120)
    solution = problem.solution()
    assert solution is not None and bool((solution.x == 0).any()) and bool((solution.x != 0).any())
    assert distance(course) < 1e-9
    assert torch.allclose(course.state.control, course.oracles[0].gradients(solution.x), atol=1e-8)


@pytest.mark.parametrize("spec", ["proxskip", "gradskip"])
def test_over_five_seeds_the_lyapunov_function_stays_below_its_bound(spec: str) -> None:
    iterations, rate = 500, start(spec, UNEVEN).guarantee().rate
    firsts, lasts = [], []
    assert rate is not None
    for seed in range(5):
        course = start(spec, UNEVEN, seed)
        promise = course.guarantee()
        firsts.append(course.lyapunov(promise))
        lasts.append(course.go(iterations).lyapunov(promise))
    assert np.mean(lasts) <= rate**iterations * np.mean(firsts)
    assert np.mean(lasts) < 0.7 * np.mean(firsts)


def test_it_contracts_in_expectation_over_all_its_coins(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every outcome of three private and one shared coin from one state, weighed by its probability."""
    problem = problem_of("quadratic(d=5, workers=3, noise=0.4, mu=0.2)")
    course = start("gradskip", problem)
    method, rate = cast(Any, course.method), course.guarantee().rate
    p, q = method.probability, method.keep
    assert rate is not None and len(q) == 3 and max(q) == 1.0 and min(q) < 1.0
    for _ in range(12):
        kept, before, expected = course.state, course.lyapunov(), 0.0
        for theta, eta in itertools.product((True, False), itertools.product((True, False), repeat=3)):
            shares = [share if one else 1 - share for one, share in zip(eta, q, strict=True)]
            weight = (p if theta else 1 - p) * math.prod(shares)
            monkeypatch.setattr(Link, "coin", lambda self, probability, theta=theta: theta)
            monkeypatch.setattr(Link, "coins", lambda self, probability, eta=eta: torch.tensor(eta))
            course.states = [kept]
            expected += weight * course.go().lyapunov()
        monkeypatch.undo()
        assert expected <= rate * before * (1 + 1e-9) + 1e-16
        course.states = [kept]
        course.go()


# ---- who computes ----------------------------------------------------------------------------------------------------


class Counting(Oracles):
    """The oracles of a problem, which count the gradients of each worker."""

    def __init__(self, inner: Oracles) -> None:
        super().__init__()
        self.inner, self.block, self.shape = inner, inner.block, inner.shape
        self.counts = np.zeros(inner.block.size, dtype=int)

    def start(self) -> Tensor:
        return self.inner.start()

    def terms(self) -> np.ndarray:
        return self.inner.terms()

    def _values(self, x: Tensor, rows: np.ndarray) -> Tensor:
        return self.inner._values(x, rows)

    def _gradients(self, x: Tensor, rows: np.ndarray, batch: Batch | None) -> Tensor:
        self.counts[rows] += 1
        return self.inner._gradients(x, rows, batch)


def test_the_gradients_of_each_worker_follow_the_formula() -> None:
    """kappa_i (1 + sqrt(kappa_max)) / (kappa_i + sqrt(kappa_max)) per round; and no more rounds than ProxSkip."""
    problem = uneven(7.0)
    c = problem.constants()
    assert c.mu_workers is not None
    kappa = np.array(c.L_workers) / float(c.mu_workers)
    root = math.sqrt(kappa.max())
    formula = kappa * (1 + root) / (kappa + root)
    assert kappa.max() > 10 * np.sort(kappa)[-2] and (formula <= 1 + np.minimum(kappa, root) + 1e-9).all()
    counts, rounds, iterations = np.zeros(5), 0, 4000
    counting = Counting(problem.oracles(Block.whole(5)))
    course = Course(method_of("gradskip", problem), problem, Local(5, seed=1), [counting]).go(iterations)
    counts, rounds = counting.counts, course.runtime.ledger.rounds
    assert np.abs(counts / rounds / formula - 1).max() < 0.1
    assert counts.max() == iterations and counts.min() < 0.4 * iterations
    assert rounds == pytest.approx(iterations / root, rel=0.15)


def test_its_messages_and_bytes() -> None:
    course = start("gradskip(probability=0.5)", SMALL).go(40)
    ledger = course.runtime.ledger
    full = ledger.rounds * 7 * 8
    assert (ledger.uplink == full).all() and (ledger.downlink == full).all() and 10 < ledger.rounds < 30


# ---- constants by hand -----------------------------------------------------------------------------------------------


def settled(spec: str, setting: Setting) -> Any:
    return cast(Any, parse(spec)).settled(setting)


def test_gradskips_parameters_by_hand() -> None:
    """L_i = 1, 2, 2, 7 and mu = 1/2: kappa = 2, 4, 4, 14."""
    method = settled("gradskip", hand())
    assert method.probability == pytest.approx(14**-0.5, rel=1e-12)
    assert method.keep == pytest.approx((0.5 * 14 / 13, 0.75 * 14 / 13, 0.75 * 14 / 13, 1.0), rel=1e-12)
    assert method.step == pytest.approx(1 / 7, rel=1e-12)
    promise = method.guarantee(hand())
    assert promise.rate == pytest.approx(1 - 1 / 14, rel=1e-12) and not promise.sure
    # p = 1/2, q = 0.8: p^2 / (1 - 0.8 * 3 / 4) = 0.625, over 7; then 1 - 0.6 is more than step mu
    other = settled("gradskip(probability=0.5, keep=(0.8,))", hand())
    assert other.step == pytest.approx(0.625 / 7, rel=1e-12)
    assert other.guarantee(hand()).rate == pytest.approx(1 - 0.5 * 0.625 / 7, rel=1e-12)
    steep = settled("gradskip(probability=0.5, keep=(0.8,))", hand(mu=6.0)).guarantee(hand(mu=6.0))
    assert steep.rate == pytest.approx(0.6, rel=1e-12)
    assert settled("gradskip(step='2x')", hand()).guarantee(hand()).rate is None


@pytest.mark.parametrize(
    ("spec", "step", "rate"),
    [
        # omega = 1, omega' = 1/4: 1 / (7 (1 + 3 / 5)), as gradskip's 0.625 / 7
        ("gradskip_plus(all_or_nothing(p=0.5), all_or_nothing(p=0.8))", 0.625 / 7, 1 - 0.5 * 0.625 / 7),
        ("gradskip_plus(identity, randk(k=20))", 1 / 7, 1 - 0.5 / 7),
        ("gradskip_plus(randk(k=20), identity)", 1 / 7, 1 - 0.04),  # 1 - (1 - 1 / 25)
    ],
)
def test_gradskip_pluss_parameters_by_hand(spec: str, step: float, rate: float) -> None:
    method = settled(spec, hand())
    assert method.step == pytest.approx(step, rel=1e-12)
    assert method.guarantee(hand()).rate == pytest.approx(rate, rel=1e-12)
    tripled = dataclasses.replace(cast(Any, parse(spec)), step="3x").settled(hand())
    assert tripled.step == pytest.approx(3 * step, rel=1e-12) and tripled.guarantee(hand()).rate is None


@pytest.mark.parametrize(
    ("spec", "setting", "error", "why"),
    [
        ("gradskip", hand(mu=None), NoTheorem, "mu_workers"),
        ("gradskip", hand(mu=0.0), NoTheorem, "strongly convex"),
        ("gradskip(keep=(0.5, 0.5))", hand(), ValueError, "has 4 workers; give one number, or one for each"),
        ("gradskip_plus(topk(k=2), identity)", hand(), ValueError, "chosen without looking"),
        ("gradskip_plus(natural, identity)", hand(), ValueError, "chosen without looking"),
        ("gradskip_plus(identity, topk(k=2))", hand(), ValueError, "unbiased"),
        ("gradskip_plus(identity, identity)", hand(mu=None), NoTheorem, "mu_workers"),
    ],
)
def test_what_is_refused_is_refused_in_one_line(spec: str, setting: Setting, error: type, why: str) -> None:
    with pytest.raises(error, match=why) as caught:
        settled(spec, setting)
    assert "\n" not in str(caught.value)


# ---- the coin as a compressor ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["all_or_nothing", "shared_all_or_nothing"])
def test_all_or_nothing_keeps_whole_vectors(name: str) -> None:
    q: Any = parse(f"{name}(p=0.25)")
    v, kept = torch.arange(1.0, 6 * 4 + 1, dtype=torch.float64).view(6, 4), 0
    for step in range(200):
        keys = Keys(3, step, "coin", np.arange(6), 6)
        message = q.message(v, keys)
        out = q.decode(message, (4,), torch.float64, keys).dense()
        whole = (out != 0).all(1)
        assert torch.equal(out, torch.where(whole[:, None], 4 * v, 0.0))
        assert (message.nbytes == whole.numpy() * 32).all()
        assert name == "all_or_nothing" or len(set(whole.tolist())) == 1
        kept += int(whole.sum())
    assert kept == pytest.approx(300, abs=130)
