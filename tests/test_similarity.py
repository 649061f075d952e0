"""Methods under similarity: error maps and recursions from the pseudo-code, contractions, scaling laws, refusals."""

from __future__ import annotations

import dataclasses
import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from by_hand import Course, distance, equal, hand, matrices, method_of, problem_of, setting_of, start
from laconic.core import rows
from laconic.core.problem import Block, Constant, Problem
from laconic.core.spec import parse
from laconic.core.theory import NoTheorem
from laconic.lab.run import run
from laconic.methods._similarity import Near
from laconic.methods.references import Quartic
from laconic.problems.custom import Custom
from laconic.runtime.local import Local

ROTATED = "rotated_quadratic(d=9, workers=4, mu=0.02, similarity=0.2)"  # some f_i are not convex
LOGISTIC = "logistic(data='breast_cancer', l2=0.01, workers=5)"
TIGHT = "accuracy=1e-9"


def ridge(seed: int = 0) -> Problem:
    """Five workers with 60 rows each, features of variance 1 / j."""
    rng = np.random.default_rng(seed)
    features = rng.standard_normal((300, 8)) / np.sqrt(np.arange(1, 9))
    return Custom.from_arrays(features, features @ rng.standard_normal(8), workers=5, loss="ridge", l2=0.01)


RIDGE = ridge()
QUADRATICS = [pytest.param(RIDGE, id="ridge"), pytest.param(problem_of(ROTATED), id="rotated")]


def known(problem: Problem) -> tuple[Tensor, Tensor, float, float, float]:
    """The H_i, x*, mu, and delta of all workers and of the server, worked out here."""
    h, b = matrices(problem)
    mean = h.mean(0)
    away = torch.linalg.eigvalsh(h - mean).abs().amax(1)
    best = torch.linalg.solve(mean, b.mean(0))
    return h, best, float(torch.linalg.eigvalsh(mean)[0]), float(away.max()), float(away[0])


def any_(entry: Any) -> Any:
    """An entry whose class the type checker need not know."""
    return entry


def gap(course: Course, x: Tensor) -> float:
    solution = course.problem.solution()
    assert solution is not None
    oracles: Any = course.oracles[0]
    return float(oracles.excess(x, solution).mean())


# ---- the problem with a similarity of one's choice -------------------------------------------------------------------


def test_rotated_quadratics_have_the_constants_they_are_asked_for() -> None:
    problem = problem_of(ROTATED)
    h, best, mu, delta, server = known(problem)
    c, solution = problem.constants(), problem.solution()
    assert solution is not None and torch.allclose(solution.x, best, rtol=1e-10, atol=1e-10)
    away = h - h.mean(0)
    by_hand = {
        "mu": 0.02,
        "L": 1.0,
        "delta": 0.2,
        "delta_server": 0.2,
        "delta_mean": math.sqrt(float(torch.linalg.matrix_norm((away @ away).mean(0), 2))),
        "delta_first": float(torch.linalg.matrix_norm(h - h[0], 2).max()),
        "mu_workers": float(torch.linalg.eigvalsh(h).min()),
        "L_max": float(torch.linalg.matrix_norm(h, 2).max()),
    }
    assert (mu, delta, server) == pytest.approx((0.02, 0.2, 0.2), rel=1e-9)
    for name, value in by_hand.items():
        assert float(getattr(c, name)) == pytest.approx(value, rel=1e-8), name
    assert by_hand["mu_workers"] < 0.0 and not problem.oracles(Block.whole(4)).convex
    assert float(away.sum(0).abs().max()) < 1e-14
    alone = problem_of("rotated_quadratic(d=1, workers=1, similarity=0.3)").constants()
    assert (float(alone.L), alone.delta_server and float(alone.delta_server)) == (1.0, 0.0)
    with pytest.raises(ValueError, match=r"RotatedQuadratic\(mu=2.0\) : mu must be at most smooth=1.0"):
        parse("rotated_quadratic(mu=2.0)")


# ---- mirror descent --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("problem", QUADRATICS)
def test_mirror_descents_error_map_and_bregman_ratio(problem: Problem) -> None:
    """The map is I - (H_1 + delta I)^-1 H; V shrinks by 1 - mu / (mu + 2 delta) at every step, f_1 convex or not."""
    h, best, mu, _, delta = known(problem)
    course = start(f"mirror_descent(server({TIGHT}))", problem)
    assert any_(course.method).reference.similarity == pytest.approx(delta, rel=1e-8)
    p = h[0] + delta * torch.eye(len(best), dtype=best.dtype)
    step = torch.eye(len(best), dtype=best.dtype) - torch.linalg.solve(p, h.mean(0))
    e = course.x - best
    v = first = float(e @ p @ e)
    for _ in range(40):
        assert torch.allclose(course.go().x - best, step @ e, rtol=1e-6, atol=1e-9 * float(e.norm()))
        e = course.x - best
        v, before = float(e @ p @ e), v
        assert v <= (1 - mu / (mu + 2 * delta)) * before * (1 + 1e-7) + 1e-20 * first
    assert v < 0.5 * first


def contracts(course: Course, iterations: int, factor: float) -> None:
    values = [gap(course, course.x)]
    for _ in range(iterations):
        values.append(gap(course, course.go().x))
    assert all(b <= factor * a * (1 + 1e-9) + 1e-14 * values[0] for a, b in itertools.pairwise(values))
    assert values[-1] < values[0]


@pytest.mark.parametrize("problem", [*QUADRATICS, pytest.param(problem_of(LOGISTIC), id="logistic")])
@pytest.mark.parametrize(
    ("spec", "accuracy", "share"),
    [
        ("mirror_descent", 0.01, 1.0),
        ("mirror_descent(server(accuracy=0.3))", 0.3, 1.0),
        ("dane", 1e-6, 1.0),
        ("inexact_dane", 0.1, 1.0),
        ("sonata(relaxation=0.6, accuracy=0.2)", 0.2, 0.6),
    ],
)
def test_the_gap_contracts_at_every_step(spec: str, accuracy: float, share: float, problem: Problem) -> None:
    c, course = problem.constants(), start(spec, problem)
    delta = c.delta_server if "mirror" in spec else c.delta
    assert c.mu is not None and delta is not None
    lost = (accuracy / (1 - accuracy)) ** 2
    factor = 1 - share * (1 - lost) * float(c.mu) / (float(c.mu) + 2 * float(delta))
    assert course.guarantee().rate == pytest.approx(factor, rel=1e-12)
    contracts(course, 25, factor)


def test_mirror_descents_special_cases() -> None:
    plain, course = start("gd", ROTATED).go(), start("mirror_descent(euclidean)", ROTATED)
    for _ in range(10):
        assert torch.allclose(course.go().x, plain.x, rtol=1e-13, atol=1e-13)
        plain.go()
    assert course.guarantee().rate == pytest.approx(1 - 0.02, rel=1e-9)
    slower = parse("mirror_descent(euclidean, smoothness=2.0)").settled(setting_of(problem_of(ROTATED)))  # type: ignore
    assert slower.guarantee(setting_of(problem_of(ROTATED))).rate == pytest.approx(0.99, rel=1e-9)
    alike = start("mirror_descent(server(accuracy=1e-9))", "rotated_quadratic(d=6, workers=3, similarity=0.0)")
    far = distance(alike)
    assert distance(alike.go()) < 1e-6 * far  # f_1 = f: one step


def test_the_quartic_reference_is_inverted_and_descends() -> None:
    phi, oracles = Quartic(), problem_of(ROTATED).host(Block.whole(4))
    for scale in (0.0, 1e-9, 0.3, 1.0, 40.0):
        x = scale * torch.linspace(-1.0, 2.0, 9, dtype=torch.float64)
        back = phi.back(phi.image(x, oracles), x, oracles, Local(4).links[0])
        assert torch.allclose(back, x, rtol=1e-12, atol=1e-20)
        u = x + 0.5
        of_phi = [float(y.square().sum() ** 2 / 4 + y.square().sum() / 2) for y in (u, x)]
        straight = of_phi[0] - of_phi[1] - float(phi.image(x, oracles) @ (u - x))
        assert phi.divergence(u, x, phi.image(x, oracles), oracles)[0] == pytest.approx(straight, rel=1e-6, abs=1e-12)
    course = start("mirror_descent(quartic)", RIDGE)
    solution, x, smooth = RIDGE.solution(), course.x, float(RIDGE.constants().L)
    assert solution is not None
    first = phi.divergence(solution.x, x, phi.image(x, course.oracles[0]), course.oracles[0])[0]
    for k in range(1, 40):
        assert gap(course, course.go().x) <= smooth * first / k


# ---- DANE and SONATA -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("similarity", "weight"), [(0.25, 1.0), (0.5, 0.4)])
def test_danes_error_map(similarity: float, weight: float) -> None:
    """I - weight W H with W = mean (H_i + m I)^-1; f_i that are not convex are none of its business."""
    course = start(f"dane(similarity={similarity}, weight={weight}, {TIGHT})", ROTATED)
    h, best, *_ = known(course.problem)
    eye = torch.eye(9, dtype=best.dtype)
    step = eye - weight * torch.linalg.inv(h + similarity * eye).mean(0) @ h.mean(0)
    for _ in range(8):
        expected = step @ (course.x - best)
        assert torch.allclose(course.go().x - best, expected, rtol=1e-6, atol=1e-8 * float(expected.norm()))


def test_dane_is_sonata_on_a_star_bit_for_bit() -> None:
    dane, sonata = start("dane(accuracy=0.1)", ROTATED), start("sonata", ROTATED)
    half, x = start("sonata(relaxation=0.5)", ROTATED), dane.x
    assert equal(dane.go(12).x, sonata.go(12).x)
    once = start("dane(accuracy=0.1)", ROTATED).go().x
    assert torch.allclose(half.go().x, x + 0.5 * (once - x), rtol=1e-14)


def test_dane_alone_is_done_at_once_and_without_a_prox_may_diverge() -> None:
    alone = start("dane(similarity=0.0, accuracy=1e-9)", "rotated_quadratic(d=6, workers=1)")
    far = distance(alone)
    assert distance(alone.go()) < 1e-6 * far
    roots = np.sqrt(np.array([0.1, 1.9]) - 1e-3)[:, None]
    tiny = Custom.from_arrays(roots, np.array([1.0, 2.0]), workers=2, loss="ridge", l2=1e-3)
    course = start(f"dane(similarity=0.0, {TIGHT})", tiny)
    for _ in range(5):
        before = distance(course)
        assert distance(course.go()) == pytest.approx((0.5 * (1 / 0.1 + 1 / 1.9) - 1) * before, rel=1e-5)  # 4.26


def test_local_problems_are_solved_to_a_share_of_the_way() -> None:
    """||w - w*|| <= accuracy / (1 - accuracy) ||w* - start||, in every row by its own test."""
    h, _, _, _, _ = known(problem_of(ROTATED))
    oracles, link = problem_of(ROTATED).host(Block.whole(4)), Local(4).links[0]
    rng = torch.Generator().manual_seed(1)
    slope = torch.randn(4, 9, dtype=torch.float64, generator=rng) * torch.tensor([[1e-6], [1.0], [30.0], [0.1]])
    begin = torch.zeros(4, 9, dtype=torch.float64)
    linear = oracles.gradients(begin)
    least = float(torch.linalg.eigvalsh(h).min())
    for accuracy in (0.3, 1e-3):
        found = Near(0.4, 1.3, 0.4 + least, accuracy).solve(oracles.gradients, slope, begin, begin, link)
        exact = -torch.linalg.solve(h + 0.4 * torch.eye(9, dtype=h.dtype), (linear + slope)[:, :, None])[:, :, 0]
        assert ((found - exact).norm(dim=1) <= accuracy / (1 - accuracy) * (exact - begin).norm(dim=1)).all()
    assert not link.remarks


# ---- accelerated forms, against recursions with exact solves ---------------------------------------------------------


def catalysed(
    problem: Problem, similarity: float, attraction: float, steps: int, total: int, mu: float
) -> list[np.ndarray]:
    """Inner steps of DANE on f + (attraction / 2) ||. - y||^2, y jumping ahead after every few of them."""
    h, b = (part.numpy() for part in matrices(problem))
    eye, root = np.eye(h.shape[1]), math.sqrt(mu / (mu + attraction))
    x = old = y = np.zeros(h.shape[1])
    found = []
    for k in range(1, total + 1):
        g = (h @ x - b).mean(0) + attraction * (x - y)
        local = []
        for h_i, b_i in zip(h, b, strict=True):
            # grad: h w - b + attraction (w - y) - (grad F_i(x) - g) + similarity (w - x) = 0
            of_i = h_i @ x - b_i + attraction * (x - y)
            right = b_i + attraction * y + of_i - g + similarity * x
            local.append(np.linalg.solve(h_i + (attraction + similarity) * eye, right))
        x = np.mean(local, axis=0)
        if k % steps == 0:
            y, old = x + (1 - root) / (1 + root) * (x - old), x
        found.append(x)
    return found


@pytest.mark.parametrize(
    ("spec", "similarity", "attraction", "steps"),
    [("aide(steps=2", 0.0, 0.4, 2), ("aide(attraction=0.3", 0.0, 0.3, 1), ("acc_sonata(", 0.2, 0.18, 3)],
)
def test_aide_and_accelerated_sonata_by_the_pseudo_code(
    spec: str, similarity: float, attraction: float, steps: int
) -> None:
    """On delta = 0.2, mu = 0.02: attraction 2 delta, or delta - mu with log(10) = 2.3 inner steps."""
    course = start(f"{spec}, {TIGHT})".replace("(,", "("), ROTATED)
    for expected in catalysed(course.problem, similarity, attraction, steps, 14, 0.02):
        assert torch.allclose(course.go().x, torch.from_numpy(expected), rtol=1e-5, atol=1e-6)


def test_aide_without_attraction_is_inexact_dane_without_a_prox() -> None:
    aide, dane = start("aide(attraction=0.0)", RIDGE), start("inexact_dane(similarity=0.0)", RIDGE)
    for _ in range(5):
        assert torch.allclose(aide.go().x, dane.go().x, rtol=1e-13, atol=1e-15)


@pytest.mark.parametrize("problem", QUADRATICS)
def test_dane_hb_by_the_recursion_and_its_quadratic_form(problem: Problem) -> None:
    """<e, e> - <p e, e'> + b <e', e'> in the product of P = H_1 + delta I, p = 1 + b - P^-1 H, shrinks by b."""
    h, best, mu, _, delta = known(problem)
    course = start(f"dane_hb(server({TIGHT}))", problem)
    beta = (1 - math.sqrt(mu / (mu + 2 * delta))) ** 2
    assert any_(course.method).momentum == pytest.approx(beta, rel=1e-7)
    eye = torch.eye(len(best), dtype=best.dtype)
    p, mean = h[0] + delta * eye, h.mean(0)
    step = eye - torch.linalg.solve(p, mean)
    e = old = course.x - best

    def form(e: Tensor, old: Tensor) -> float:
        return float(e @ p @ e - old @ ((1 + beta) * p - mean) @ e + beta * old @ p @ old)

    value = form(e, old)
    for _ in range(25):
        expected = step @ e + beta * (e - old)
        e, old = course.go().x - best, e
        assert torch.allclose(e, expected, rtol=1e-5, atol=1e-8 * float(old.norm()))
        value, before = form(e, old), value
        assert value == pytest.approx(beta * before, rel=1e-4)


def test_dane_hb_without_momentum_is_mirror_descent() -> None:
    assert equal(start("dane_hb(momentum=0.0)", LOGISTIC).go(6).x, start("mirror_descent", LOGISTIC).go(6).x)


def test_dane_ls_takes_full_steps_in_one_round_each() -> None:
    """With the theorem's similarity it is mirror descent: gradients and values in one round, n numbers more."""
    search, plain = start("dane_ls", LOGISTIC), start("mirror_descent", LOGISTIC)
    for _ in range(6):
        assert torch.allclose(search.go().x, plain.go().x, rtol=1e-12, atol=1e-14)
    ledger = search.runtime.ledger
    assert ledger.rounds == 7 and (ledger.uplink == 7 * (30 + 1) * 8).all()
    assert (ledger.downlink == 7 * 30 * 8 + 6 * 8).all()  # a verdict of one number each time


def test_dane_ls_shortens_steps_that_are_too_long() -> None:
    """phi far too flat, where the full step of mirror descent diverges; f decreases, one number per trial."""
    spec = "(euclidean, smoothness=0.05)"  # L is about 1
    plain = start(f"mirror_descent{spec}", RIDGE)
    assert gap(plain.go(30), plain.x) > 1e6
    course = start(f"dane_ls{spec}", RIDGE)
    values = [gap(course, course.x)]
    for _ in range(60):
        values.append(gap(course, course.go().x))
    assert all(b <= a + 1e-15 for a, b in itertools.pairwise(values)) and values[-1] < 1e-3 * values[0]
    ledger = course.runtime.ledger
    shorter = ledger.rounds - 61
    assert shorter > 0
    d, searched = 8, int(ledger.uplink[0] // 8 - 61 * 9)  # numbers beyond those of full steps
    assert 0 < searched - d <= d * 60 + shorter
    held = course.x
    assert torch.allclose(course.state.value, course.oracles[0].values(held).mean()[None], rtol=1e-12)
    assert torch.allclose(course.state.gradient, course.oracles[0].gradients(held).mean(0), rtol=1e-10, atol=1e-13)


# ---- SPAG ------------------------------------------------------------------------------------------------------------


def spag(h: np.ndarray, b: np.ndarray, p: np.ndarray, smooth: float, mu: float, total: int) -> list[np.ndarray]:
    """The pseudo-code with A and B as they are and gain 1, phi = x' p x / 2."""
    x = v = np.zeros(len(b))
    big, small, found = 0.0, 1.0, []
    for _ in range(total):
        # a^2 smooth = (A + a) (B + a mu)
        root = float(np.roots([smooth - mu, -(big * mu + small), -big * small]).max())
        big, small = big + root, small + root * mu
        al, be, et = root / big, root * mu / small, root / small
        y = ((1 - al) * x + al * (1 - be) * v) / (1 - al * be)
        v = (1 - be) * v + be * y - et * np.linalg.solve(p, h @ y - b)
        x = (1 - al) * x + al * v
        found.append(x)
    return found


@pytest.mark.parametrize("problem", QUADRATICS)
def test_spag_by_the_pseudo_code_and_its_potential(problem: Problem) -> None:
    h, best, mu, _, delta = known(problem)
    b = matrices(problem)[1].mean(0)
    p, relative = h[0] + delta * torch.eye(len(best), dtype=best.dtype), mu / (mu + 2 * delta)
    course = start(f"spag(server({TIGHT}))", problem)
    expected = spag(h.mean(0).numpy(), b.numpy(), p.numpy(), 1.0, relative, 20)
    potential = math.inf
    for k, x in enumerate(expected, 1):
        ratio = course.state.ratio
        assert torch.allclose(course.go().x, torch.from_numpy(x), rtol=1e-5, atol=1e-5)
        state, e = course.state, course.state.v - best
        after = state.ratio * gap(course, state.x) + 0.5 * float(e @ p @ e)  # over B
        grown = any_(course.method).weights(ratio, 1.0).rest
        assert after * grown <= potential * (1 + 1e-6) + 1e-14
        potential = after
        assert course.runtime.ledger.rounds == k  # the gain 1 always passes on quadratics


def test_spag_searches_for_its_gain_a_round_for_each_trial() -> None:
    """Where phi is not quadratic; half of what passed is tried first."""
    course, gains = start("spag", LOGISTIC), []
    for _ in range(25):
        before, gain = course.runtime.ledger.rounds, course.state.gain
        trials = course.go().runtime.ledger.rounds - before
        assert course.state.gain == max(1.0, gain / 2) * 2 ** (trials - 1)
        gains.append(course.state.gain)
    rounds = course.runtime.ledger.rounds
    assert rounds > 25 and max(gains) > 1.0
    assert (course.runtime.ledger.downlink == rounds * (30 + 1) * 8).all()  # y and a verdict
    assert (course.runtime.ledger.uplink == rounds * 30 * 8).all()


def test_spag_with_a_multiple_of_the_norm_is_accelerated_gradient_descent() -> None:
    problem = problem_of("rotated_quadratic(d=9, workers=3, mu=0.001, similarity=0.1)")
    h, b = (part.mean(0).numpy() for part in matrices(problem))
    course, plain = start("spag(euclidean)", problem), start("gd", problem).go(150)
    for x in spag(h, b, np.eye(9), 1.0, 0.001, 150):
        assert torch.allclose(course.go().x, torch.from_numpy(x), rtol=1e-8, atol=1e-6)
    assert gap(course, course.x) < 0.01 * gap(plain, plain.x)


# ---- sliding ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("problem", QUADRATICS)
@pytest.mark.parametrize("exact", [False, True])
def test_slidings_function_contracts(problem: Problem, exact: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Psi by hand, with the computable criterion and next to exactly; f_1 is not convex on one of them."""
    _, best, mu, _, delta = known(problem)
    if exact:
        monkeypatch.setattr("laconic.methods.sliding.ACCURACY", 1e-9)
    course = start("sliding", problem)
    tau = min(1.0, 0.5 * math.sqrt(mu / delta))
    eta = min(0.5 / mu, 0.5 / math.sqrt(mu * delta))

    def psi() -> float:
        return rows.square(course.state.x - best) + 2 * eta / tau * gap(course, course.state.x_f)

    values = [psi()]
    for _ in range(60):
        course.go()
        values.append(psi())
    factor = 1 - 0.5 * min(1.0, math.sqrt(mu / delta))
    assert all(b <= factor * a * (1 + 1e-8) + 1e-15 * values[0] for a, b in itertools.pairwise(values))


@pytest.mark.parametrize("problem", QUADRATICS)
def test_untuned_sliding_has_a_potential_and_its_rate_in_the_limit(problem: Problem) -> None:
    """A gap + B / 2 ||v - x*||^2 never grows, B from its own recursion."""
    _, best, mu, _, delta = known(problem)
    course = start("sliding_untuned", problem)
    weight = delta / 0.9
    big, small, last = 0.0, 1.0, math.inf
    for _ in range(50):
        a = (small + math.sqrt(small**2 + 4 * weight * big * small)) / (2 * weight)
        assert weight * a * a == pytest.approx((big + a) * small)
        big, small = big + a, small + mu * a
        course.go()
        potential = big * gap(course, course.x) + 0.5 * small * rows.square(course.state.v - best)
        assert potential <= last * (1 + 1e-8) + 1e-12 * small
        last = potential
    assert mu * a / (small - mu * a) >= math.sqrt(mu / weight)
    assert course.runtime.ledger.rounds == 100


def test_slidings_inner_work_grows_like_the_root_of_the_condition() -> None:
    """f_1's gradients per iteration: L_1 / delta from 5 to 20 doubles them, about."""
    work = []
    for similarity in (0.2, 0.05):
        course = start("sliding", f"rotated_quadratic(d=20, workers=4, mu=0.01, similarity={similarity})").go(40)
        work.append(course.oracles[0].asked().server_terms / 40)
    assert 1.4 <= work[1] / work[0] <= 2.8


# ---- scaling laws ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spec", "low", "high"),
    [
        ("dane_hb(server(accuracy=0.1))", 2.5, 6.0),
        ("spag(server(accuracy=0.1))", 2.5, 6.0),
        ("sliding", 2.5, 6.0),
        ("sliding_untuned", 2.5, 6.0),
        ("mirror_descent(server(accuracy=0.1))", 11.0, 20.0),
    ],
)
def test_iterations_grow_like_delta_over_mu_or_its_root(spec: str, low: float, high: float) -> None:
    """delta = 0.2, and mu 16 times smaller."""
    iterations = []
    for mu in (0.064, 0.004):
        course = start(spec, f"rotated_quadratic(d=10, workers=4, mu={mu}, similarity=0.2, seed=1)")
        far = distance(course)
        while distance(course) > 1e-4 * far:
            course.go()
        iterations.append(course.step)
    assert low <= iterations[1] / iterations[0] <= high


# ---- what travels, and who computes ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spec", "rounds", "vectors", "gradients"),
    [
        ("mirror_descent", 1, 1, 1),
        ("dane_hb", 1, 1, 1),
        ("sliding", 2, 2, 2),
        ("sliding_untuned", 2, 2, 2),
        ("inexact_dane", 2, 2, None),
        ("sonata", 2, 2, None),
        ("aide", 2, 2, None),
        ("acc_sonata", 2, 2, None),
    ],
)
def test_rounds_vectors_and_gradients_per_iteration(
    spec: str, rounds: int, vectors: int, gradients: int | None
) -> None:
    course = start(spec, ROTATED).go(5)
    ledger, calls = course.runtime.ledger, course.oracles[0].asked()
    assert ledger.rounds == 5 * rounds
    assert (ledger.uplink == 5 * vectors * 9 * 8).all() and (ledger.downlink == 5 * vectors * 9 * 8).all()
    if gradients is None:  # local solves besides
        assert calls.gradient_terms > 5 * 4 * 3 and calls.server_terms == 0
    else:
        assert calls.gradient_terms == 5 * 4 * gradients and calls.server_terms >= 5 * 3


def test_a_workers_solver_depends_on_nobody_beside_it() -> None:
    """The same bits and the same number of gradients over any number of parties."""
    alone = start("sonata", ROTATED).go(6)
    for parts in (2, 3, 6):
        problem = problem_of(ROTATED)
        several = Course(method_of("sonata", problem), problem, Local(4, seed=0, parts=parts)).go(6)
        assert equal(several.x, alone.x)
        assert sum(o.calls.gradient_terms for o in several.oracles) == alone.oracles[0].calls.gradient_terms


# ---- theory and refusals ---------------------------------------------------------------------------------------------

SETTING = hand(d=10, mu=0.5, delta=0.25, delta_server=0.125)  # L_i = 1, 2, 2, 7; mu_workers = 0.5


def test_numbers_by_hand() -> None:
    phi: Any = parse("server").settled(SETTING)  # type: ignore[attr-defined]
    assert (phi.similarity, phi.smooth, phi.convex) == (0.125, 1.0, 0.625)
    assert phi.convexity(SETTING) == pytest.approx(2 / 3)
    settled: Any = method_of_hand("dane")
    assert (settled.similarity, settled.smooth, settled.convex) == (0.25, 7.0, 0.75)
    assert settled.guarantee(SETTING).rate == pytest.approx(0.5, abs=1e-9)
    assert method_of_hand("dane(similarity=0.5)").guarantee(SETTING).rate == pytest.approx(0.6, abs=1e-9)
    assert method_of_hand("dane_hb").momentum == pytest.approx((1 - math.sqrt(2 / 3)) ** 2)
    aide: Any = method_of_hand("aide")
    assert (aide.attraction, aide.convex) == (0.5, 1.0)
    acc: Any = method_of_hand("acc_sonata(similarity=2.0)")
    assert acc.steps == 2 and acc.numbers().momentum == pytest.approx(1 / 3) and acc.convex == pytest.approx(4.0)
    assert method_of_hand("acc_sonata").numbers().momentum == 0.0  # delta < mu: nothing to accelerate
    untuned: Any = method_of_hand("sliding_untuned")
    assert untuned.weight() == pytest.approx(0.125 / 0.9)


def method_of_hand(spec: str) -> Any:
    entry: Any = parse(spec)
    return entry.settled(SETTING)


@pytest.mark.parametrize(
    "spec", ["mirror_descent(server(similarity=0.1))", "dane(similarity=0.1)", "sonata(similarity=0.1, convex=0.6)"]
)
def test_promises_end_below_the_problems_similarity(spec: str) -> None:
    promise = method_of_hand(spec).guarantee(SETTING)
    assert promise.rate is None and promise.lyapunov is None


NOT_CONVEX = hand(d=10, mu=0.05, delta=0.3, delta_server=0.3, mu_workers=-0.25, convex=False)
UNKNOWN = dataclasses.replace(
    NOT_CONVEX, constants=dataclasses.replace(NOT_CONVEX.constants, mu_workers=None, mu=None, delta=None)
)


def not_convex() -> Any:
    """`hand` puts mu in the place of mu_workers."""
    return dataclasses.replace(
        NOT_CONVEX, constants=dataclasses.replace(NOT_CONVEX.constants, mu_workers=Constant(-0.25))
    )


@pytest.mark.parametrize(
    "spec",
    [
        "dane(similarity=0.0)",
        "inexact_dane(similarity=0.2)",
        "sonata(similarity=0.2)",
        "aide(attraction=0.1)",
        "acc_sonata(similarity=0.1)",
        "mirror_descent(server(similarity=0.2))",
        "spag(server(similarity=0.2))",
        "sliding(similarity=0.1)",
        "sliding(similarity=0.1, mu=0.05, smooth=1.0)",
        "sliding_untuned(similarity=0.2)",
    ],
)
def test_a_prox_that_stays_non_convex_is_refused_by_name_and_reason(spec: str) -> None:
    entry: Any = parse(spec)
    with pytest.raises(ValueError, match=r"the f_i are not convex \(their least curvature is -0.25\)") as caught:
        entry.settled(not_convex())
    said = str(caught.value)
    assert "\n" not in said and "it must be above 0.25" in said
    assert said.startswith("server(" if "server" in spec else spec.partition("(")[0])
    assert not isinstance(caught.value, NoTheorem)


def test_enough_similarity_makes_a_prox_convex() -> None:
    for spec in ("dane", "sonata", "aide", "mirror_descent", "spag", "sliding", "sliding_untuned"):
        entry: Any = parse(spec)
        assert entry.settled(not_convex()).settled(not_convex()) == entry.settled(not_convex())
    with pytest.raises(ValueError, match="nobody knows their least curvature"):
        parse("dane(similarity=0.4)").settled(UNKNOWN)  # type: ignore[attr-defined]
    with pytest.raises(NoTheorem, match="delta"):
        parse("dane").settled(UNKNOWN)  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("spec", "name"),
    [
        ("sliding(similarity=0.02, convex=0.04)", "delta_server"),
        ("mirror_descent(server(similarity=0.001, convex=0.001))", "delta_server"),
        ("dane(similarity=0.0, convex=0.001)", "delta"),
    ],
)
def test_a_run_that_diverges_says_that_its_similarity_is_too_small(
    spec: str, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    problem = "rotated_quadratic(d=10, workers=4, mu=0.01, similarity=0.3)"
    found = run(problem, [spec], iterations=1500, every=5)
    (result,) = found.results
    assert result["status"] == "diverged"
    given = spec.partition("similarity=")[2].split(",")[0]
    hint = f"similarity={float(given):.6g} is below this problem's {name} = 0.3 (exact): give at least that"
    assert hint in result["reason"] and result["reason"].endswith("or leave it out")
    assert hint in capsys.readouterr().err
    assert "similarity" not in str(run(problem, ["gd(step=30.0)"], iterations=300).results[0]["reason"])
