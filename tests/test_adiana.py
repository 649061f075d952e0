"""ADIANA: parameters by hand, the algorithm against plain NumPy with the same draws, and that it is accelerated."""

from __future__ import annotations

import math
from typing import Any, cast

import numpy as np
import pytest
import torch

from by_hand import RUNTIMES, Course, distance, equal, hand, matrices, method_of, problem_of, start
from laconic.core.compressor import Compressor
from laconic.core.keys import Keys
from laconic.core.problem import Block
from laconic.core.spec import parse
from laconic.core.theory import NoTheorem, Setting

SMALL = "quadratic(d=7, workers=4, noise=0.3, mu=0.1)"


def settled(spec: str, setting: Setting) -> Any:
    method: Any = parse(spec)
    return method.settled(setting)


@pytest.mark.parametrize(
    ("spec", "setting", "rate", "p", "step"),
    [
        # omega = 4, n = 4: sqrt(4 / 128) - 1 < 1, so p = 1 / 10, and 4 / (64 * 4 * 7 * (1 + 1)^2)
        ("adiana(randk(k=20))", hand(), 0.2, 0.1, 4 / (64 * 28 * 4)),
        # omega = 1 / 8: p = 4 / 9 and 4 / (64 * 7 / 8 * (1 + 1)^2)
        ("adiana(natural)", hand(), 8 / 9, 4 / 9, 1 / 56),
        # omega = 1, n = 512: sqrt(512 / 32) - 1 = 3, p = 3 / 4, and 512 / (64 * 7 * (3 + 1)^2)
        ("adiana(randk(k=50))", hand(n=512), 0.5, 0.75, 512 / (64 * 7 * 16)),
        ("adiana(randk(k=50))", hand(n=3200, L=100.0), 0.5, 1.0, 1 / 200),
        ("adiana(randk(k=50), probability=0.25)", hand(n=512), 0.5, 0.25, 0.25),  # 512 / (64 * 7 * 4) is more
        ("adiana(identity)", hand(), 1.0, 1.0, 1 / 4),
        ("adiana(randk(k=20), rate=0.1, probability=0.5)", hand(), 0.1, 0.5, 4 / (64 * 28 * 36)),
        ("adiana(randk(k=20), step='4x')", hand(), 0.2, 0.1, 16 / (64 * 28 * 4)),
        ("adiana(randk(k=20), step=0.3, mu=0.2)", hand(), 0.2, 0.1, 0.3),
        ("adiana(topk(k=2), step=0.3, rate=0.1, probability=0.2)", hand(), 0.1, 0.2, 0.3),  # no theorem is asked
    ],
)
def test_parameters_by_hand(spec: str, setting: Setting, rate: float, p: float, step: float) -> None:
    method = settled(spec, setting)
    assert (method.rate, method.probability) == (pytest.approx(rate, rel=1e-12), pytest.approx(p, rel=1e-12))
    assert method.step == pytest.approx(step, rel=1e-12) and method.mu == (0.2 if "mu=" in spec else 0.5)
    if "topk" not in spec:
        promise = method.guarantee(setting)
        assert not promise.sure and promise.rate is None and any("recalled" in words for words in promise.assumes)


@pytest.mark.parametrize(
    ("spec", "setting", "why"),
    [
        ("adiana(topk(k=2))", hand(), "unbiased"),
        ("adiana(permk)", hand(), "independent"),
        ("adiana(natural)", hand(mu=None), "mu"),
        ("adiana(natural)", hand(convex=False), "convex"),
        ("adiana(natural, rate=1.0)", hand(), "rate <= "),
        ("adiana(natural, mu=0.7)", hand(), "mu <= "),
    ],
)
def test_a_combination_that_no_theorem_covers_needs_a_step_and_says_why(spec: str, setting: Setting, why: str) -> None:
    with pytest.raises(NoTheorem, match=why) as caught:
        settled(spec, setting)
    assert "step" in str(caught.value) and "\n" not in str(caught.value)


# ---- the algorithm ---------------------------------------------------------------------------------------------------


def reference(problem: str, compressor: str, method: Any, iterations: int, seed: int = 0) -> tuple[np.ndarray, int]:
    """The paper's box in NumPy, with the draws of the addresses that the method's text asks for; and new anchors."""
    a, b = (part.numpy() for part in matrices(problem_of(problem)))
    n, d = b.shape
    q = cast(Compressor, parse(compressor))
    y = problem_of(problem).oracles(Block.whole(n)).start().numpy()
    z, w, shifts, coins = y.copy(), y.copy(), np.zeros((n, d)), 0
    eta, mu, p, alpha = method.step, method.mu, method.probability, method.rate
    theta1, theta2 = min(0.25, math.sqrt(eta * mu / p)), 0.5
    gamma = eta / (2 * (theta1 + eta * mu))
    beta = 1 - gamma * mu

    def gradients(x: np.ndarray) -> np.ndarray:
        return np.einsum("ijk,k->ij", a, x) - b

    def compressed(v: np.ndarray, k: int, ordinal: int) -> np.ndarray:
        keys = Keys(seed, k, f"/up{ordinal}", np.arange(n), n)
        message = q.message(torch.from_numpy(v), keys)
        return q.decode(message, (d,), torch.float64, keys).dense().numpy()

    for k in range(1, iterations + 1):
        x = theta1 * z + theta2 * w + (1 - theta1 - theta2) * y
        ghat = shifts.mean(0) + compressed(gradients(x) - shifts, k, 0).mean(0)
        shifts = shifts + alpha * compressed(gradients(w) - shifts, k, 1)
        new = x - eta * ghat
        z = beta * z + (1 - beta) * x + gamma / eta * (new - x)
        if bool(Keys(seed, k, "/coin0", np.zeros(1, dtype=np.int64), n).shared.coins(p)):
            w, coins = y, coins + 1
        y = new
    return y, coins


@pytest.mark.parametrize("problem", [SMALL, "quadratic(d=9, workers=3, noise=0.1, mu=0.05, seed=2)"])
@pytest.mark.parametrize(
    ("compressor", "extra"),
    [
        ("identity", ""),
        ("natural", ""),
        ("randk(k=3)", ""),
        ("randk(k=3)", ", step=0.05, rate=0.2, probability=0.4, mu=0.03"),
        ("topk(k=3)", ", step=0.05, rate=0.2, probability=0.4"),
    ],
)
def test_the_algorithm_is_that_of_its_paper(problem: str, compressor: str, extra: str) -> None:
    course = start(f"adiana({compressor}{extra})", problem).go(40)
    expected, coins = reference(problem, compressor, course.method, 40)
    assert np.allclose(course.x.numpy(), expected, rtol=1e-9, atol=1e-10)
    assert not np.allclose(expected, problem_of(problem).oracles(Block.whole(1)).start().numpy(), rtol=1e-2) or coins
    assert 0 < coins <= 40
    shifts = course.state.shift.mean(0)
    assert torch.allclose(course.state.mean, shifts, rtol=1e-12, atol=1e-13)  # the server's is the workers' mean


def test_both_messages_of_a_round_travel_in_one_flight() -> None:
    """Two messages up; x down, and y where the anchor is new; a gradient at x, and one at each new anchor."""
    course = start("adiana(randk(k=3), probability=0.3)", SMALL)
    _, coins = reference(SMALL, "randk(k=3)", course.method, 30)
    asked = course.oracles[0].asked().gradient_terms
    ledger = course.go(30).runtime.ledger
    assert (ledger.rounds, ledger.messages_up) == (30, 2 * 4 * 30)
    assert ledger.uplink.tolist() == [30 * 2 * 3 * 8] * 4
    assert ledger.downlink.tolist() == [(30 + coins) * 7 * 8] * 4 and 0 < coins < 30
    assert course.oracles[0].asked().gradient_terms - asked == 4 * (30 + coins)


@pytest.mark.parametrize("runtime", list(RUNTIMES))
@pytest.mark.parametrize("compressor", ["natural", "randk(k=3)", "identity"])
def test_it_is_the_same_everywhere(compressor: str, runtime: str) -> None:
    problem = problem_of(SMALL)
    method = method_of(f"adiana({compressor}, probability=0.4)", problem)
    plain = Course(method, problem, RUNTIMES["plain"](4, 5)).go(12)
    course = Course(method, problem, RUNTIMES[runtime](4, 5)).go(12)
    assert equal(course.x, plain.x) and all(equal(state.anchor, plain.state.anchor) for state in course.states)
    assert (course.runtime.ledger.downlink == plain.runtime.ledger.downlink).all()


# ---- convergence -----------------------------------------------------------------------------------------------------


def iterations(spec: str, mu: float, workers: int = 2, goal: float = 1e-4) -> int:
    """Until the distance to x* is that share of the first, looked at now and then."""
    course = start(spec, f"quadratic(d=30, workers={workers}, noise=0.01, mu={mu})")
    first, every = distance(course), 20
    for k in range(0, 60_000, every):
        if distance(course.go(every)) < goal * first:
            return k + every
    raise AssertionError(f"{spec} did not get there")


def test_without_noise_iterations_grow_as_the_root_of_the_condition() -> None:
    """kappa times 16: about 4 times the iterations; gradient descent needs as many times more as kappa grows."""
    accelerated = [iterations("adiana(identity)", mu) for mu in (1e-2, 1e-2 / 16)]
    plain = [iterations("gd", mu) for mu in (2e-2, 2e-2 / 4)]
    assert math.log(accelerated[1] / accelerated[0], 16) < 0.62
    assert math.log(plain[1] / plain[0], 4) > 0.85


def test_with_compression_it_is_accelerated_too() -> None:
    """With many workers the noise is small; at a condition of 10^4 it beats DIANA by far."""
    slow, fast = (iterations(spec, 1e-3, 40, 1e-2) for spec in ("gd(diana(natural))", "adiana(natural)"))
    assert fast < slow / 3


@pytest.mark.parametrize("compressor", ["natural", "randk(k=4)", "identity"])
def test_it_converges_exactly_on_unlike_workers(compressor: str) -> None:
    course = start(f"adiana({compressor})", "quadratic(d=7, workers=4, noise=0.3, mu=0.4)")
    first = distance(course)
    assert distance(course.go(1000)) < 1e-7 * first


def test_logistic_regression_and_tiny_problems() -> None:
    course = start("adiana(natural)", "logistic(data='breast_cancer', l2=0.1, workers=5)")
    first = distance(course)
    assert distance(course.go(400)) < 1e-2 * first
    for size in ("d=1, workers=1", "d=1, workers=3"):
        assert distance(start("adiana(natural)", f"quadratic({size}, noise=0.1, mu=0.3)").go(300)) < 1e-6
