"""Second-order and compressed methods under similarity: against plain NumPy, their contractions, counts and ends."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

import laconic
from by_hand import Course, distance, hand, matrices, method_of, problem_of, start
from laconic.core.keys import Keys
from laconic.core.problem import Block, Problem
from laconic.core.rows import svec_to_matrix
from laconic.core.spec import parse
from laconic.core.theory import NoTheorem
from laconic.methods._cubic import Indefinite, cubic_step
from laconic.problems.custom import Custom

SMALL = "quadratic(d=7, workers=4, noise=0.3, mu=0.1)"
Array = np.ndarray


def normal(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).normal(size=shape)


@functools.cache
def logistic(l2: float = 1e-2, workers: int = 4, rows: int = 30, d: int = 5) -> Problem:
    a = normal(workers * rows, d) / np.sqrt(np.arange(1, d + 1))
    return Custom.from_arrays(a, np.sign(a @ normal(d, seed=1) + normal(len(a), seed=2)), workers=workers, l2=l2)


def parts(problem: Problem) -> tuple[Callable[[Array], Array], Callable[[Array], Array], Array]:
    """Gradients (n, d) and Hessians (n, d, d) of all workers as plain functions, and x^0."""
    oracles = problem.oracles(Block.whole(problem.n))

    def gradients(x: Array) -> Array:
        return oracles.gradients(torch.from_numpy(x)).numpy()

    def hessians(x: Array) -> Array:
        found = oracles.hessians(torch.from_numpy(x))
        return np.stack([svec_to_matrix(one, len(x)).numpy() for one in found])

    return gradients, hessians, oracles.start().numpy()


def relative(run: Course, x: Array) -> float:
    return float(np.abs(run.x.numpy() - x).max() / np.abs(x).max())


# ---- the cubic step --------------------------------------------------------------------------------------------------


def model(a: Array, g: Array, weight: float, s: Array) -> float:
    return float(g @ s + s @ a @ s / 2 + weight / 6 * np.linalg.norm(s) ** 3)


def optimal(a: Array, g: Array, weight: float) -> Array:
    """The step, once the conditions that hold at the global minimiser and nowhere else hold."""
    s = cubic_step(torch.from_numpy(a), torch.from_numpy(g), weight).numpy()
    m = 0.5 * weight * float(np.linalg.norm(s))
    size = float(np.linalg.norm(g) + np.linalg.norm(a, 2) * np.linalg.norm(s) + m * np.linalg.norm(s))
    assert np.linalg.norm(g + a @ s + m * s) <= 1e-13 * size
    assert np.linalg.eigvalsh(a)[0] + m >= -1e-13 * (np.linalg.norm(a, 2) + m)
    return s


def spread(eigenvalues: Array, seed: int = 0) -> tuple[Array, Array]:
    """A symmetric matrix with these eigenvalues, and its eigenvectors."""
    basis = np.linalg.qr(normal(len(eigenvalues), len(eigenvalues), seed=seed))[0]
    a = (basis * eigenvalues) @ basis.T
    return (a + a.T) / 2, basis


@pytest.mark.parametrize("kind", ["any", "convex", "flat", "tied"])
def test_the_cubic_step_is_optimal(kind: str) -> None:
    for seed in range(60):
        rng = np.random.default_rng(seed)
        d = int(rng.integers(1, 12))
        eigenvalues = rng.normal(size=d) * 10.0 ** rng.normal()
        if kind == "convex":
            eigenvalues = np.abs(eigenvalues)
        if kind == "flat":
            eigenvalues = 0.0 * eigenvalues
        if kind == "tied":
            eigenvalues[: d // 2 + 1] = eigenvalues.min()
        a, _ = spread(eigenvalues, seed)
        g = rng.normal(size=d) * 10.0 ** (3 * rng.normal())
        weight = 10.0 ** (2 * rng.normal())
        s = optimal(a, g, weight)
        for _ in range(5):
            other = s + rng.normal(size=d) * np.linalg.norm(s) * 10.0 ** -rng.uniform(0, 4)
            assert model(a, g, weight, other) >= model(a, g, weight, s) - 1e-12 * abs(model(a, g, weight, s))


@pytest.mark.parametrize("share", [0.0, 1e-18, 1e-15, 1e-12, 1e-8])
def test_the_hard_case(share: float) -> None:
    """g sees the lowest eigenvector of an indefinite matrix hardly, or not at all: s needs it for its length."""
    a, basis = spread(np.array([-2.0, -1.0, 0.5, 3.0]))
    g = basis @ np.array([share, 0.01, -0.02, 0.01])
    s = optimal(a, g, 0.7)
    assert np.linalg.norm(s) == pytest.approx(2 * 2.0 / 0.7, rel=1e-6)  # m = 2 makes A + m I singular
    assert abs(basis[:, 0] @ s) > 5.0
    at_axes = optimal(np.diag([-2.0, -1.0, 0.5, 3.0]), np.array([0.0, 0.01, -0.02, 0.01]), 0.7)  # not at all
    assert np.linalg.norm(at_axes) == pytest.approx(2 * 2.0 / 0.7, rel=1e-12) and at_axes[0] > 5.0
    long = basis @ np.array([0.0, 30.0, -20.0, 10.0])  # what the others need is longer: the easy case
    assert np.linalg.norm(optimal(a, long, 0.7)) > 2 * 2.0 / 0.7


def test_the_cubic_step_in_one_coordinate_and_at_its_ends() -> None:
    """g + h s + (w / 2) |s| s = 0; with w = 0 Newton's step; without a gradient nowhere to go, or down."""
    for g, h, weight in ((1.0, 2.0, 3.0), (-1e3, 0.0, 1e-3), (1e-9, -4.0, 0.5)):
        (s,) = optimal(np.array([[h]]), np.array([g]), weight).tolist()
        expected = (-h + math.sqrt(h * h + 2 * weight * abs(g))) / weight
        assert s == pytest.approx(-math.copysign(expected, g), rel=1e-12)
    a, _ = spread(np.array([1.0, 2.0, 5.0]))
    g = normal(3)
    assert np.allclose(optimal(a, g, 0.0), -np.linalg.solve(a, g), rtol=1e-13)
    assert np.allclose(optimal(a, g, 1e-12), -np.linalg.solve(a, g), rtol=1e-9)
    assert not optimal(a, np.zeros(3), 2.0).any()
    assert np.linalg.norm(optimal(a - 3.0 * np.eye(3), np.zeros(3), 2.0)) == pytest.approx(2.0)


@pytest.mark.parametrize(("least", "said"), [(-0.25, "-0.25"), (0.0, "least eigenvalue is"), (math.nan, "nan")])
def test_a_model_without_a_minimiser_is_refused_in_one_line(least: float, said: str) -> None:
    a = torch.diag(torch.tensor([least, 1.0], dtype=torch.float64))
    with pytest.raises(Indefinite, match=said) as raised:
        cubic_step(a, torch.ones(2, dtype=torch.float64), 0.0)
    assert isinstance(raised.value, torch.linalg.LinAlgError) and "\n" not in str(raised.value)


# ---- DiSCO -----------------------------------------------------------------------------------------------------------


def disco(problem: Problem, rho: float, accuracy: float, damping: float, rounds: int) -> tuple[Array, list[int]]:
    """Algorithms 1 and 2 as in the paper: x after so many rounds, and the products of every Newton step."""
    gradients, hessians, x = parts(problem)
    counts: list[int] = []
    while rounds > 0:
        rounds -= 1
        g, h = gradients(x).mean(0), hessians(x)
        p = np.linalg.inv(h[0] + rho * np.eye(len(x)))
        v, hv, r, s, u = 0.0 * x, 0.0 * x, g, p @ g, p @ g
        counts.append(0)
        while np.linalg.norm(r) > accuracy * np.linalg.norm(g):
            if rounds == 0:
                return x, counts
            rounds -= 1
            counts[-1] += 1
            hu = h.mean(0) @ u
            a = (r @ s) / (u @ hu)
            v, hv, old = v + a * u, hv + a * hu, r @ s
            r = r - a * hu
            s = p @ r
            u = s + (r @ s) / old * u
        x = x - v / (1.0 + damping * math.sqrt(v @ hv))
    return x, counts


@pytest.mark.parametrize("damping", [0.0, 1.0])
def test_disco_is_that_of_its_paper(damping: float) -> None:
    problem, spec = logistic(), f"disco(similarity=0.05, accuracy=0.02, concordance={damping})"
    run = start(spec, problem)
    for rounds in range(1, 18):
        x, _ = disco(problem, 0.05, 0.02, damping, rounds)
        assert np.allclose(run.go().x.numpy(), x, rtol=1e-10, atol=1e-12)
    assert x.any()
    assert run.runtime.ledger.rounds == 17


@pytest.mark.parametrize("problem", ["ridge(workers=8)", "rotated_quadratic(d=12, workers=5, mu=0.01)"])
def test_the_products_of_a_newton_step_are_few_and_each_shrinks_the_gradient(problem: str) -> None:
    """At most sqrt(1 + 2 rho / mu) ln(2 sqrt(L / mu) / accuracy) + 1; the gradient is then at most accuracy of it."""
    known = problem_of(problem)
    c, method = known.constants().named(), method_of("disco", known)
    assert isinstance(method.accuracy, float) and method.concordance == 0.0  # type: ignore[attr-defined]
    accuracy, rho = method.accuracy, method.similarity  # type: ignore[attr-defined]
    mu, smooth = c["mu"].value, c["L"].value
    assert accuracy == pytest.approx(math.sqrt(mu / smooth) / 20) and rho == pytest.approx(c["delta_server"].value)
    _, counts = disco(known, rho, accuracy, 0.0, 60)
    most = math.sqrt(1 + 2 * rho / mu) * math.log(2 * math.sqrt(smooth / mu) / accuracy) + 1
    assert 1 < max(counts) <= most
    run, gradients = start("disco", known), parts(known)[0]
    at = [float(np.linalg.norm(gradients(run.x.numpy()).mean(0)))]
    for count in counts[:2]:
        run.go(1 + count)
        at.append(float(np.linalg.norm(gradients(run.x.numpy()).mean(0))))
        assert at[-1] <= accuracy * at[-2] * (1 + 1e-6)
    assert distance(run) < 1e-3 * distance(start("disco", known))


def test_workers_that_are_alike_need_one_product_for_each_newton_step() -> None:
    run = start("disco(similarity=1e-9, accuracy=1e-6)", "quadratic(d=9, workers=3, noise=0.0, mu=0.01)")
    assert distance(run.go(2)) < 1e-6
    (oracles,) = run.oracles
    assert (oracles.calls.gradient_terms, oracles.calls.product_terms) == (3, 3)


def test_disco_sends_vectors_and_one_number() -> None:
    run = start("disco", SMALL).go(9)
    ledger = run.runtime.ledger
    assert ledger.rounds == 9
    assert (ledger.uplink == 9 * 8 * 7).all() and (ledger.downlink == 9 * 8 * (7 + 1)).all()
    asked = run.oracles[0].asked()
    assert asked.gradient_terms + asked.product_terms == 9 * 4 and asked.hessian_terms == 0
    assert asked.server_hessian_terms == asked.gradient_terms // 4  # the server alone, once for each Newton step


# ---- DiRegINA --------------------------------------------------------------------------------------------------------


def test_without_the_cubic_term_diregina_is_mirror_descent_with_the_model() -> None:
    """x+ = x - (H_1 + tau I)^{-1} grad f(x), and the mean of that over workers."""
    problem = problem_of(SMALL)
    h, b = (one.numpy() for one in matrices(problem))
    one, every = start("diregina(similarity=0.2)", problem), start("diregina_averaged(similarity=0.2)", problem)
    x = y = one.x.numpy()
    inverses = np.linalg.inv(h + 0.2 * np.eye(7))
    for _ in range(6):
        x = x - inverses[0] @ (h.mean(0) @ x - b.mean(0))
        y = y - inverses.mean(0) @ (h.mean(0) @ y - b.mean(0))
        assert relative(one.go(), x) < 1e-12 and relative(every.go(), y) < 1e-12


@pytest.mark.parametrize("name", ["diregina", "diregina_averaged"])
def test_workers_that_are_alike_take_cubic_newton_steps(name: str) -> None:
    a, labels = normal(12, 3), np.sign(normal(12, seed=1))
    problem = Custom.from_arrays([a] * 3, [labels] * 3, l2=0.05)
    gradients, hessians, x = parts(problem)
    run = start(f"{name}(similarity=0.0, hessian_lipschitz=0.8)", problem)
    for _ in range(5):
        x = x + optimal(hessians(x)[1], gradients(x)[2], 0.8)
        assert relative(run.go(), x) < 1e-12


@pytest.mark.parametrize("name", ["diregina", "diregina_averaged"])
def test_the_gap_shrinks_as_derived(name: str) -> None:
    """By 1 - mu / (mu + tau + delta + (2 / 3) M ||x - x*||) in every iteration, from far away as well."""
    for scale in (0.0, 30.0):
        problem = logistic()
        run, c = start(name, problem), problem.constants().named()
        method: Any = run.method
        delta = c["delta_server" if name == "diregina" else "delta"].value
        assert (method.similarity, method.hessian_lipschitz) == (delta, c["hessian_lipschitz"].value)
        run.state.x = torch.full((5,), scale, dtype=torch.float64)
        star = problem.solution()
        assert star is not None
        for _ in range(25):
            gap, away = run.gap(), float((run.x - star.x).norm())
            if gap < 1e-14:
                break
            share = c["mu"].value / (c["mu"].value + 2 * delta + 2 / 3 * c["hessian_lipschitz"].value * away)
            assert run.go().gap() <= (1 - share) * gap


def test_on_quadratics_the_promise_of_diregina_is_a_rate() -> None:
    """mu = 0.5, tau = delta = 0.125 of the server's, 0.25 of all; no rate with a smaller tau, or with a cubic term."""
    flat = hand(delta_server=0.125, delta=0.25, hessian_lipschitz=0.0)
    rates = {"diregina": 0.5 / 0.75, "diregina_averaged": 0.5 / 1.0, "diregina(similarity=0.5)": 0.5 / 1.125}
    for spec, share in rates.items():
        method: Any = parse(spec)
        promise = method.settled(flat).guarantee(flat)
        assert promise.rate == pytest.approx(1 - share, rel=1e-12) and not promise.sure
    for spec in ("diregina(similarity=0.1)", "diregina(hessian_lipschitz=0.1)"):
        method = parse(spec)
        assert method.settled(flat).guarantee(flat).rate is None
    bent = hand(delta_server=0.125, delta=0.25, hessian_lipschitz=2.0)
    method = parse("diregina")
    assert method.settled(bent).guarantee(bent).rate is None
    assert method.settled(bent).hessian_lipschitz == 2.0
    for missing in (hand(delta_server=0.1), hand(hessian_lipschitz=0.0)):
        with pytest.raises(NoTheorem, match="which this problem does not know"):
            method.settled(missing)


def test_rounds_and_work_of_diregina() -> None:
    one, every = start("diregina", SMALL).go(5), start("diregina_averaged", SMALL).go(5)
    assert (one.runtime.ledger.rounds, every.runtime.ledger.rounds) == (5, 10)
    assert (every.runtime.ledger.uplink == 10 * 8 * 7).all() and (one.runtime.ledger.uplink == 5 * 8 * 7).all()
    assert one.oracles[0].asked().server_hessian_terms == 5 and one.oracles[0].calls.hessian_terms == 0
    assert every.oracles[0].asked().server_hessian_terms == 0 and every.oracles[0].calls.hessian_terms == 5 * 4


# ---- ACN -------------------------------------------------------------------------------------------------------------


def acn(problem: Problem, tau: float, bend: float, restart: int, iterations: int) -> Array:
    """The estimating sequence with its minimiser by bisection on the distance from the centre."""
    gradients, hessians, x = parts(problem)
    centre = y = x
    total, k, total_g = 0.0, 0, 0.0 * x
    for _ in range(iterations):
        before, total = total, (k + 1) * (k + 2) * (k + 3) / 6
        a = total - before
        v = (1 - a / total) * x + a / total * y
        x = v + optimal(hessians(v)[0] + tau * np.eye(len(x)), gradients(v).mean(0), bend)
        total_g = total_g + a * gradients(x).mean(0)
        second, third, size = tau * a**2 / total, bend * a**3 / total**2, float(np.linalg.norm(total_g))
        low, high = 0.0, size / second
        for _ in range(200):
            middle = (low + high) / 2
            low, high = (middle, high) if second * middle + third / 2 * middle**2 < size else (low, middle)
        y, k = centre - low * total_g / size, k + 1
        if k == restart:
            centre, y, total, k, total_g = x, x, 0.0, 0, 0.0 * x
    return x


@pytest.mark.parametrize(("bend", "restart"), [(0.4, 4), (0.0, 100), (0.05, 1)])
def test_acn_is_its_pseudo_code(bend: float, restart: int) -> None:
    run = start(f"acn(similarity=0.1, hessian_lipschitz={bend}, restart={restart})", logistic())
    for iterations in range(1, 10):
        assert relative(run.go(), acn(logistic(), 0.1, bend, restart, iterations)) < 1e-9
    assert run.runtime.ledger.rounds == 18 and run.oracles[0].asked().server_hessian_terms == 9 * 30


def test_acn_restarts_every_four_roots() -> None:
    method: Any = parse("acn")
    setting = hand(delta_server=2.0, hessian_lipschitz=0.3, mu=0.5)  # 4 sqrt(4) = 8
    found = method.settled(setting)
    assert (found.similarity, found.hessian_lipschitz, found.restart) == (2.0, 0.3, 8)
    assert found.guarantee(setting).rate is None and not found.guarantee(setting).sure
    assert method.settled(hand(delta_server=2.0, hessian_lipschitz=0.3, mu=None)).restart is None


def iterations_to(spec: str, problem: Problem, share: float, most: int = 3000) -> int:
    run = start(spec, problem)
    goal = share * distance(run)
    for iteration in range(1, most):
        if distance(run.go()) <= goal:
            return iteration
    return most


def test_acn_is_accelerated_and_diregina_is_not() -> None:
    """mu a sixteenth at the same delta: about 4 times and 16 times the iterations."""
    easy, hard = (problem_of(f"rotated_quadratic(d=12, workers=4, mu={mu}, seed=1)") for mu in (0.016, 0.001))
    assert easy.constants().delta_server == hard.constants().delta_server
    grown = [iterations_to(spec, hard, 1e-3) / iterations_to(spec, easy, 1e-3) for spec in ("acn", "diregina")]
    assert 2.0 <= grown[0] <= 7.0 and 9.0 <= grown[1] <= 20.0, grown


# ---- OLGA ------------------------------------------------------------------------------------------------------------


def olga(
    problem: Problem,
    p: float,
    theta: float,
    mu: float,
    coins: list[bool],
    sent: Callable[[Array], Array],
    feedback: bool,
) -> list[Array]:
    """The y of every iteration, with exact proxes; `sent` compresses rows, with errors fed back or without."""
    h, b = (one.numpy() for one in matrices(problem))
    tau = min(math.sqrt(mu * theta / p) / 4, 1 / 4)
    alpha, away, found = theta / (8 * p * tau), h - h[0], []
    y = z = x = problem.oracles(Block.whole(problem.n)).start().numpy()
    w, error, full = x, 0.0 * b, (h.mean(0) @ x - b.mean(0))
    for iteration, ends in enumerate(coins, start=1):
        if ends and iteration > 1:
            y = w
            there = h.mean(0) @ y - b.mean(0)
            slope = (h[0] @ (x - y) - (full - there) + (x - (y - error.mean(0))) / theta) * p
            z = (z / alpha + mu * y - slope) / (1 / alpha + mu)
            x = w = tau * z + (1 - tau) * y
        if ends or iteration == 1:
            full, error, estimate = h.mean(0) @ x - b.mean(0), 0.0 * b, 0.0 * x
        else:
            v = away @ (w - x)
            said = sent(error + theta * v if feedback else v)
            error = error + theta * v - said if feedback else error
            estimate = said.mean(0) / theta if feedback else said.mean(0)
        t = full + estimate - (h[0] @ x - b[0])
        w = np.linalg.solve(h[0] + np.eye(len(x)) / theta, w / theta + b[0] - t)
        found.append(y)
    return found


def coins_of(run: Course, p: float, count: int) -> list[bool]:
    n = run.problem.n
    return [bool(Keys(0, step, "/coin0", np.arange(n), n).shared.coins(p)) for step in range(1, count + 1)]


@pytest.mark.parametrize("feedback", [False, True])
@pytest.mark.parametrize("p", [1.0, 0.4])
def test_olga_is_its_pseudo_code(p: float, feedback: bool) -> None:
    """With top-3 in the place of C, and with the exact prox, which the inner solver comes close to."""
    problem, theta, mu = problem_of(SMALL), 0.8, 0.1
    compressor = "topk(k=3)" if feedback else "identity"

    def sent(v: Array) -> Array:
        if not feedback:
            return v
        kept = np.argsort(-np.abs(v), axis=1)[:, :3]
        said = np.zeros_like(v)
        np.put_along_axis(said, kept, np.take_along_axis(v, kept, 1), 1)
        return said

    name = "ef_olga" if feedback else "olga"
    run = start(f"{name}({compressor}, step={theta}, probability={p}, mu={mu}, convex=1.0, accuracy=1e-13)", problem)
    expected = olga(problem, p, theta, mu, coins_of(run, p, 25), sent, feedback)
    for y in expected:
        assert relative(run.go(), y) < 1e-9
    assert not np.array_equal(expected[-1], expected[0])


def test_parameters_of_olga_by_hand() -> None:
    """n = 4, d = 100: rand-20 has omega = 4, so A = 1 and p = 1 / 5; top-20 has alpha = 1 / 5. delta = 0.25."""
    setting = hand(delta=0.25, delta_server=0.125)
    method: Any = parse("olga(randk(k=20))")
    found = method.settled(setting)
    assert found.probability == pytest.approx(0.2) and found.mu == 0.5 and found.smooth == 1.0
    assert found.step == pytest.approx(math.sqrt(0.2 / 1.0) / 8 / 0.25, rel=1e-12)
    assert found.convex == pytest.approx(1 / found.step + 0.5)  # f_i are 0.5-strongly convex
    exact: Any = parse("olga(identity)")
    assert exact.settled(setting).step == pytest.approx(1 / (2 * 0.25))
    biased: Any = parse("ef_olga(topk(k=20))")
    assert biased.settled(setting).step == pytest.approx(0.2**1.5 / 24 / 0.25, rel=1e-12)
    assert biased.settled(setting).probability == pytest.approx(0.2)
    assert not found.guarantee(setting).sure and found.guarantee(setting).rate is None
    for spec, why in (("olga(topk(k=20))", "use ef_olga"), ("ef_olga(randk(k=20))", "use olga for an unbiased one")):
        method = parse(spec)
        with pytest.raises(NoTheorem, match=why):
            method.settled(setting)
    method = parse("olga(identity, step=4.0, mu=0.5)")
    with pytest.raises(ValueError, match="not convex .* 0.25 does not make them so"):
        method.settled(hand(convex=False, mu=None, mu_workers=-0.5))


@pytest.mark.parametrize("spec", ["olga(randk(k=2), step='2x')", "ef_olga(topk(k=2), step='40x')"])
def test_olga_converges_exactly_and_its_messages_are_short(spec: str) -> None:
    run = start(spec, SMALL, seed=3)
    first, found = distance(run), [1.0]
    for _ in range(3):
        found.append(distance(run.go(200)) / first)
    assert all(after < 0.2 * before for before, after in zip(found, found[1:], strict=False)), found
    assert found[-1] < 1e-4
    assert (run.runtime.ledger.uplink < 0.9 * 8 * 7 * run.runtime.ledger.rounds).all()


# ---- all of them -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spec", "iterations"),
    [("disco", 60), ("diregina", 150), ("diregina_averaged", 150), ("acn", 150), ("olga(identity)", 250)],
)
def test_they_go_to_the_minimiser_of_logistic_regression(spec: str, iterations: int) -> None:
    run = start(spec, logistic())
    first = distance(run)
    assert distance(run.go(iterations)) < 1e-4 * first
    assert distance(run.go(iterations)) < 1e-8 * first


@pytest.mark.parametrize("spec", ["disco", "diregina", "acn"])
def test_a_server_whose_function_is_not_convex_is_fine(spec: str) -> None:
    """f_1's least eigenvalue is below 0, and delta lifts it."""
    problem = problem_of("rotated_quadratic(d=8, workers=4, mu=0.02, similarity=0.3)")
    assert float(torch.linalg.eigvalsh(matrices(problem)[0]).min()) < -0.01
    run = start(spec, problem)
    first = distance(run)
    assert distance(run.go(400)) < 1e-4 * first


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("disco(similarity=0.0, accuracy=0.1)", "the preconditioner hess f_1 + similarity I is not positive definite"),
        ("diregina(similarity=0.0)", "the matrix of a Newton step is not positive definite"),
        ("diregina_averaged(similarity=0.0)", "the matrix of a Newton step is not positive definite"),
    ],
)
def test_an_indefinite_hessian_ends_the_run_with_one_clear_line(spec: str, said: str) -> None:
    run = laconic.run("rotated_quadratic(d=8, workers=4, mu=0.02, similarity=0.3)", [spec], rounds=30)
    (curve,) = run.results
    assert curve["status"] == "diverged" and "\n" not in curve["reason"]
    assert said in curve["reason"] and "similarity=0 is below this problem's delta" in curve["reason"]
