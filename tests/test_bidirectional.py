"""Compression on the way down: EF21-P, MCM, DORE, Artemis. Theorems, reductions, and references in plain NumPy."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from by_hand import RUNTIMES, Course, equal, hand, matrices, method_of, problem_of, start
from laconic.core.problem import Block
from laconic.core.spec import parse
from laconic.core.state import flatten, restore
from laconic.core.theory import NoTheorem, Setting

SMALL = "quadratic(d=7, workers=4, noise=0.3, mu=0.1)"
CONVEX = "quadratic(d=20, workers=6, noise=0.2, mu=0.05)"
NONCONVEX_PARTS = "quadratic(d=20, workers=6, noise=0.8, mu=0.01)"
LOGISTIC = "logistic(data='breast_cancer', l2=0.01, workers=5)"
UP = "diana(randk(k=20))"

# ---- constants by hand -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spec", "setting", "step", "rate"),
    [
        # theta = 0.2, beta = 3.2, so beta / theta = 16 and L sqrt(16) = 8; with mu L sqrt(32), and 0.2 / (2 mu)
        ("gd(down=ef21_p(topk(k=36)))", hand(mu=None), 1 / 10, None),
        ("gd(down=ef21_p(topk(k=36)))", hand(), 1 / (2 + 2 * math.sqrt(32)), 1 - 0.5 / (2 + 2 * math.sqrt(32))),
        ("gd(down=ef21_p(topk(k=36)))", hand(mu=3.0), 0.2 / 6, 0.9),
        ("gd(down=ef21_p(identity))", hand(), 1 / 2, 0.75**2),
        # omega = 4, alpha = 0.36: n / (160 omega L_max); sqrt(n alpha) / (20 sqrt(omega) L~); alpha / (100 L); 1 / 5 mu
        (f"gd({UP}, down=ef21_p(topk(k=36)))", hand(), 4 / (160 * 4 * 7), None),
        (f"gd({UP}, down=ef21_p(topk(k=36)))", hand(L_max=1.0), 0.36 / 200, None),
        (f"gd({UP}, down=ef21_p(topk(k=36)))", hand(L_max=1.0, L=0.1, L_tilde=9.0), 1.2 / (40 * 9), None),
        (f"gd({UP}, down=ef21_p(topk(k=36)))", hand(mu=400.0), 1 / 2000, None),
        ("gd(diana(identity), down=ef21_p(topk(k=36)))", hand(), 0.36 / 200, None),
        # omega = 4, a = 1/10: A = 1/20 and B = 4 (1 + 20) = 84, B / A = 1680
        ("gd(down=mcm(randk(k=20)))", hand(mu=None), 1 / (2 + 2 * math.sqrt(1680)), None),
        ("gd(down=mcm(randk(k=20)))", hand(), 1 / (2 + 2 * math.sqrt(3360)), 1 - 0.5 / (2 + 2 * math.sqrt(3360))),
        ("gd(down=mcm(randk(k=20), rate=0.2))", hand(mu=None), 1 / (2 + 2 * math.sqrt(44 / 0.1)), None),
        ("gd(down=mcm(identity))", hand(), 1 / 2, 0.75**2),
        (f"gd({UP}, down=mcm(randk(k=20)))", hand(), 1 / 128, None),
        (f"gd({UP}, down=mcm(randk(k=96)))", hand(), 1 / 44, None),
        # DIANA's 1 / 44, the model moving by a fifth of it, and 1 - a / 2
        (f"gd({UP}, down=dore(randk(k=20), feedback=0.0))", hand(), 1 / 44, 1 - 0.5 / 220),
        (f"gd({UP}, down=dore(randk(k=20), feedback=0.0))", hand(mu=44.0), 1 / 44, 0.9),
        (f"gd({UP}, down=dore(randk(k=20), feedback=0.0, rate=0.1))", hand(), 1 / 44, 1 - 0.5 / 440),
        (f"gd({UP}, down=dore(identity))", hand(), 1 / 44, 1 - 0.5 / 44),
        # (1 + omega_down) (L + 6 omega L_max / n) = 2 * 44; a = 1/10
        ("gd(artemis(randk(k=20), randk(k=50)))", hand(), 1 / 88, 1 - 0.5 / 88),
        ("gd(artemis(randk(k=20), randk(k=50)))", hand(mu=8.8), 1 / 88, 0.95),
        ("gd(artemis(randk(k=20), randk(k=50), rate=0.2))", hand(mu=88.0), 1 / 88, 0.9),
        ("gd(artemis(randk(k=20)))", hand(), 1 / 44, 1 - 0.5 / 44),
        ("gd(artemis(identity, randk(k=50)))", hand(), 1 / 4, 1 - 0.5 / 4),
        # (1 + omega_down) (L + 2 omega L_max / n) = 2 * 16
        ("gd(bi_qgd(randk(k=20), randk(k=50)))", hand(), 1 / 32, 1 - 0.5 / 32),
        ("gd(bi_qgd(randk(k=20)))", hand(), 1 / 16, 1 - 0.5 / 16),
    ],
)
def test_steps_and_rates_by_hand(spec: str, setting: Setting, step: float, rate: float | None) -> None:
    method: Any = parse(spec)
    method = method.settled(setting)
    promise = method.guarantee(setting)
    assert method.step == promise.step == pytest.approx(step, rel=1e-12)
    assert promise.rate == (None if rate is None else pytest.approx(rate, rel=1e-12))
    recalled = "diana" in spec and ("ef21_p" in spec or "mcm(randk" in spec)
    assert promise.sure is not recalled


def test_the_plateau_of_quantisation_both_ways_by_hand() -> None:
    """2 (1 + omega_down) step omega sigma*^2 / (n mu) with sigma* = 3."""
    setting = hand()
    promise = method_of_hand("gd(bi_qgd(randk(k=20), randk(k=50)))", setting).guarantee(setting)
    assert promise.plateau == pytest.approx(2 * 2 / 32 * 4 * 9 / (4 * 0.5), rel=1e-12)


def method_of_hand(spec: str, setting: Setting) -> Any:
    method: Any = parse(spec)
    return method.settled(setting)


def test_open_rates_by_hand() -> None:
    """1 / (2 (1 + omega)) for Artemis and MCM; 1 / (1 + omega) for DORE, and 1 where no omega is claimed."""
    setting = hand()
    for spec, settled in {
        "gd(artemis_memory(randk(k=20), randk(k=50)), step=0.1)": "rate=0.1, down_rate=0.25",
        "gd(artemis(randk(k=20), randk(k=50)), step=0.1)": "rate=0.1)",
        "gd(down=mcm(randk(k=25)), step=0.1)": "rate=0.125",
        "gd(down=dore(randk(k=25)), step=0.1)": "feedback=0.25, rate=0.25",
        "gd(down=dore(topk(k=25)), step=0.1)": "feedback=1.0, rate=1.0",
    }.items():
        assert settled in str(method_of_hand(spec, setting))


@pytest.mark.parametrize(
    ("spec", "setting", "why"),
    [
        ("gd(down=ef21_p(randk(k=2)))", hand(), "contractive"),
        ("gd(direct(natural), down=ef21_p(topk(k=2)))", hand(), "use direct"),
        ("gd(diana(topk(k=2), rate=0.1), down=ef21_p(topk(k=2)))", hand(), "unbiased"),
        ("gd(diana(natural), down=ef21_p(topk(k=2)))", hand(convex=False), "convex"),
        ("gd(down=ef21_p(topk(k=2)), estimator=sgd)", hand(), "full gradients"),
        ("gd(down=mcm(topk(k=2)))", hand(), "unbiased"),
        ("gd(down=mcm(randk(k=20), rate=0.5))", hand(), "rate <= "),
        ("gd(direct(natural), down=mcm(natural))", hand(), "use direct"),
        ("gd(down=mcm(natural), estimator=sgd)", hand(), "full gradients"),
        ("gd(diana(natural), down=dore(natural))", hand(), "feedback=0.0"),
        ("gd(ef21(topk(k=2)), down=dore(natural, feedback=0.0))", hand(), "diana"),
        ("gd(diana(natural), down=dore(randk(k=20), feedback=0.0, rate=0.5))", hand(), "rate <= "),
        ("gd(artemis(topk(k=2)))", hand(), "unbiased"),
        ("gd(artemis(permk))", hand(), "independent"),
        ("gd(artemis(natural, topk(k=2)))", hand(), "unbiased"),
        ("gd(artemis(randk(k=20), rate=0.5))", hand(), "rate <= "),
        ("gd(artemis(natural))", hand(convex=False), "convex"),
        ("gd(artemis(natural), estimator=sgd)", hand(), "full gradients"),
        ("gd(artemis_memory(natural, natural))", hand(), "theorem"),
        ("gd(bi_qgd(natural, topk(k=2)))", hand(), "unbiased"),
        ("gd(bi_qgd(natural))", hand(convex=False), "convex"),
    ],
)
def test_a_combination_that_no_theorem_covers_needs_a_step_and_says_why(spec: str, setting: Setting, why: str) -> None:
    with pytest.raises(NoTheorem, match=why) as caught:
        method_of_hand(spec, setting)
    assert "step" in str(caught.value) and "\n" not in str(caught.value)


def test_a_public_estimate_needs_no_broadcast() -> None:
    with pytest.raises(ValueError, match="leave down out"):
        parse("gd(artemis(natural), down=ef21_p(topk(k=1)))")


# ---- Lyapunov functions ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("problem", [CONVEX, NONCONVEX_PARTS, LOGISTIC, "counterexample"])
@pytest.mark.parametrize("compressor", ["topk(k=2)", "topk(k=0.5)", "scaled_sign"])
def test_ef21_p_contracts_at_every_step(compressor: str, problem: str) -> None:
    course = start(f"gd(down=ef21_p({compressor}))", problem)
    solution, rate = course.problem.solution(), course.guarantee().rate
    assert solution is not None and rate is not None
    values = [course.lyapunov()] + [course.go().lyapunov() for _ in range(120)]
    for before, after in itertools.pairwise(values):
        assert after <= rate * before * (1 + 1e-9) + 1e-13 * values[0]
    assert values[-1] < values[0]


def test_the_lyapunov_function_of_ef21_p_by_hand() -> None:
    """f - f* + (step L^2 / theta) ||w - x||^2 after the first step, of Top-1 on three coordinates."""
    course = start("gd(down=ef21_p(topk(k=1)), step=0.005)", "counterexample").go()
    solution = course.problem.solution()
    assert solution is not None
    a = 2 * sum(np.outer(r, r) for r in ([-3, 2, 2], [2, -3, 2], [2, 2, -3])) / 3 + np.eye(3) / 2
    x0 = np.ones(3)
    x = x0 - 0.005 * a @ x0
    w = x0 + np.array([(x - x0)[0], 0, 0])
    theta = 1 - math.sqrt(2 / 3)
    expected = 0.5 * x @ a @ x + 0.005 * (103 / 6) ** 2 / theta * ((w - x) ** 2).sum()
    assert course.lyapunov() == pytest.approx(expected, rel=1e-10)


def test_the_lyapunov_functions_of_mcm_and_artemis_by_hand() -> None:
    """Both at the next model, x+ = x - step g, with omega = 4/3 of three among seven coordinates."""
    a, b = matrices(problem_of(SMALL))
    solution = problem_of(SMALL).solution()
    assert solution is not None
    smooth, omega = float(torch.linalg.eigvalsh(a.mean(0))[-1]), 4 / 3
    course = start("gd(down=mcm(randk(k=3), rate=0.3), step=0.01)", SMALL).go(5)
    ahead = course.x - 0.01 * course.state.estimate
    away = ahead - solution.x
    expected = (
        0.5 * away @ a.mean(0) @ away
        + 0.01 * omega * smooth**2 / 0.15 * (ahead - course.state.told.shift).square().sum()
    )
    assert course.lyapunov() == pytest.approx(float(expected), rel=1e-9)

    course = start("gd(artemis(randk(k=3), randk(k=5), rate=0.3), step=0.01)", SMALL).go(5)
    away = course.x - 0.01 * course.state.estimate - solution.x
    drift = (course.state.memory.shift - (a @ solution.x - b)).square().sum(1).mean()
    expected = away.square().sum() + 4 * omega * (1 + 2 / 5) * 0.01**2 / (4 * 0.3) * drift
    assert course.lyapunov() == pytest.approx(float(expected), rel=1e-9)


@pytest.mark.parametrize(
    ("spec", "problem"),
    [
        ("gd(down=mcm(natural))", CONVEX),
        ("gd(down=mcm(randk(k=4)))", CONVEX),
        ("gd(down=mcm(randk(k=10), rate=0.5))", NONCONVEX_PARTS),
        ("gd(down=mcm(randk(k=10)))", LOGISTIC),
        ("gd(artemis(randk(k=4), natural))", CONVEX),
        ("gd(artemis(natural, randk(k=10), rate=0.8))", CONVEX),
        ("gd(artemis(randk(k=10), randk(k=15)))", LOGISTIC),
    ],
)
def test_the_lyapunov_function_contracts_on_average(spec: str, problem: str) -> None:
    """E[V after | before] <= rate V before: one step from one state, averaged over seeds, with its sampling error."""
    course = start(spec, problem).go(15)
    solution, rate = course.problem.solution(), course.guarantee().rate
    assert solution is not None and rate is not None
    before, after = course.lyapunov(), []
    kept, step, draws = {name: leaf.tensor.clone() for name, leaf in flatten(course.state).items()}, course.step, 100
    for draw in range(draws):
        course.states = [restore(course.state, kept)]
        course.step = step + 1000 * draw  # other randomness
        after.append(course.go().lyapunov())
    error = float(np.std(after)) / math.sqrt(draws)
    assert float(np.mean(after)) <= rate * before + 4 * error
    assert error < 0.2 * before  # the average says something


def test_dore_converges_at_its_rate_on_average() -> None:
    """E||x_k - x*||^2 <= rate^k V_0, V_0 = ||x_0 - x*||^2 + 4 omega (1 + omega_d) s^2 / (n a) mean ||grad f_i(x*)||^2.

    s is the step of the model: the server's / (1 + omega_d).
    """
    spec, problem, iterations = "gd(diana(randk(k=3)), down=dore(randk(k=2), feedback=0.0))", problem_of(SMALL), 400
    solution, omega, down = problem.solution(), 7 / 3 - 1, 7 / 2 - 1
    assert solution is not None
    finals = []
    for seed in range(12):
        course = start(spec, problem, seed)
        finals.append(float(((course.go(iterations).x - solution.x) ** 2).sum()))
    method: Any = course.method
    step, rate = method.step / (1 + down), course.guarantee().rate
    a = 1 / (1 + omega)
    at_solution = course.oracles[0].gradients(solution.x)
    noise = float((at_solution**2).sum(1).mean()) * 4 * omega * (1 + down) * step**2 / (4 * a)
    first = float((solution.x - course.oracles[0].start()).square().sum())
    assert rate is not None and rate == pytest.approx(max(1 - step * 0.1, 1 - a / 2), rel=1e-12)
    assert np.mean(finals) <= rate**iterations * (first + noise)
    assert max(finals) < 0.02 * first  # it did converge


# ---- reductions ------------------------------------------------------------------------------------------------------


def close(one: str, other: str, exactly: bool = False, problem: str = SMALL, iterations: int = 60) -> None:
    a, b = start(one, problem).go(iterations), start(other, problem).go(iterations)
    assert equal(a.x, b.x) if exactly else torch.allclose(a.x, b.x, rtol=1e-11, atol=1e-12)
    assert not torch.allclose(a.x, a.oracles[0].start(), rtol=1e-3)


@pytest.mark.parametrize("down", ["ef21_p(identity)", "mcm(identity)", "mcm(identity, rate=0.3)", "dore(identity)"])
@pytest.mark.parametrize("up", ["direct", "ef21(topk(k=2))", "diana(natural)", "marina(permk)"])
def test_a_lossless_broadcast_is_the_exact_one(up: str, down: str) -> None:
    """To rounding: w + (x - w) is x but for that. The step of the theorem is that of the mechanism as well."""
    close(f"gd({up}, down={down})", f"gd({up})")


def test_artemis_with_an_exact_way_down_is_diana() -> None:
    for rate in (0.3, 0.05):
        close(f"gd(artemis(randk(k=3), identity, rate={rate}))", f"gd(diana(randk(k=3), rate={rate}))", exactly=True)
        close(
            f"gd(artemis_memory(randk(k=3), identity, rate={rate}, down_rate=0.3), step=0.1)",
            f"gd(diana(randk(k=3), rate={rate}), step=0.1)",
        )


def test_quantisation_both_ways_with_an_exact_way_down_is_dcgd() -> None:
    close("gd(bi_qgd(randk(k=3), identity))", "gd(direct(randk(k=3)))", exactly=True)
    close("gd(bi_qgd(natural, identity))", "gd(direct(natural))", exactly=True)


def test_with_nothing_compressed_all_are_gradient_descent() -> None:
    close("gd(bi_qgd(identity, identity))", "gd", exactly=True)
    close("gd(artemis(identity, identity))", "gd")
    close("gd(artemis_memory(identity, identity), step=0.3)", "gd(step=0.3)")
    close("gd(artemis(identity, identity))", "gd", problem="quadratic(d=1, workers=1, noise=0.1, mu=0.1)", iterations=5)


def test_a_memory_that_never_learns_is_none() -> None:
    """artemis_memory's H stays near 0 with a tiny rate, and then it is artemis."""
    close(
        "gd(artemis_memory(randk(k=3), randk(k=5), rate=0.3, down_rate=1e-16), step=0.05)",
        "gd(artemis(randk(k=3), randk(k=5), rate=0.3), step=0.05)",
    )


# ---- everywhere the same ---------------------------------------------------------------------------------------------

DOWNS = ["ef21_p(topk(k=2))", "mcm(natural)", "mcm(randk(k=3))", "dore(natural)", "dore(topk(k=2))"]


@pytest.mark.parametrize("up", ["direct", "diana(randk(k=3))", "ef21(topk(k=2))"])
@pytest.mark.parametrize("down", DOWNS)
def test_a_broadcast_is_the_same_everywhere(up: str, down: str) -> None:
    """Iterates, bytes, and what the workers hold, in one process and in several, encoded, and in a star."""
    problem = problem_of(SMALL)
    method = method_of(f"gd({up}, down={down}, step=0.05)", problem)
    plain = Course(method, problem, RUNTIMES["plain"](4, 3)).go(8)
    for name, runtime in RUNTIMES.items():
        course = Course(method, problem, runtime(4, 3)).go(8)
        assert equal(course.x, plain.x), name
        for public in ("model", "shift"):
            if hasattr(plain.state.told, public):
                held = getattr(plain.state.told, public)
                assert all(equal(getattr(state.told, public), held) for state in course.states), name
        one, other = course.runtime.ledger, plain.runtime.ledger
        assert (one.uplink == other.uplink).all() and (one.downlink == other.downlink).all()


@pytest.mark.parametrize(
    ("spec", "each"),
    [
        ("gd(step=0.1)", 56),
        ("gd(down=ef21_p(randk(k=3)), step=0.1)", 24),  # three doubles; the support follows from the seed
        ("gd(down=mcm(randk(k=3)), step=0.1)", 24),
        ("gd(down=dore(randk(k=3)), step=0.1)", 24),
        ("gd(down=mcm(natural), step=0.1)", 11),  # 84 bits
        ("gd(artemis(natural, randk(k=2)), step=0.1)", 16),
        ("gd(artemis_memory(natural, randk(k=2)), step=0.1)", 16),
        ("gd(bi_qgd(natural, randk(k=2)), step=0.1)", 16),
    ],
)
def test_the_message_down_is_counted_as_it_is(spec: str, each: int) -> None:
    course = start(spec, SMALL)
    before = course.runtime.ledger.downlink.copy()
    assert (course.go(5).runtime.ledger.downlink - before).tolist() == [5 * each] * 4
    assert before.tolist() == [each if "(natural" in spec and "down" not in spec else 0] * 4  # a public start speaks


# ---- references in plain NumPy ---------------------------------------------------------------------------------------

Gradients = Callable[[np.ndarray], np.ndarray]


def topk(v: np.ndarray, k: int) -> np.ndarray:
    """The k largest magnitudes, row by row, or of one vector."""
    out = np.zeros_like(v)
    for row, target in zip(np.atleast_2d(v), np.atleast_2d(out), strict=True):
        keep = np.argsort(-np.abs(row), kind="stable")[:k]
        target[keep] = row[keep]
    return out


def ef21_p(gradients: Gradients, x: np.ndarray) -> np.ndarray:
    w, step = x.copy(), 0.2
    for _ in range(25):
        x = x - step * gradients(w).mean(0)
        w = w + topk(x - w, 2)
    return x


def mcm(gradients: Gradients, x: np.ndarray) -> np.ndarray:
    memory, held, step, a = x.copy(), x.copy(), 0.2, 0.4
    for _ in range(25):
        x = x - step * gradients(held).mean(0)
        omega = topk(x - memory, 2)
        held, memory = memory + omega, memory + a * omega
    return x


def dore(gradients: Gradients, x: np.ndarray) -> np.ndarray:
    """DIANA up with Top-3, eta = 0.7, beta = 0.6 down with Top-2. The model is what the workers hold."""
    model, step, a, eta, beta = x.copy(), 0.2, 0.3, 0.7, 0.6
    error, shift = np.zeros_like(x), np.zeros_like(gradients(x))

    def estimate() -> np.ndarray:
        nonlocal shift
        sent = topk(gradients(model) - shift, 3)
        found = shift.mean(0) + sent.mean(0)
        shift = shift + a * sent
        return found

    g = estimate()
    for _ in range(25):
        q = (model - step * g) - model + eta * error
        sent = topk(q, 2)
        error, model = q - sent, model + beta * sent
        g = estimate()
    return model


def artemis(gradients: Gradients, x: np.ndarray, down_rate: float = 0.0) -> np.ndarray:
    step, a, shift, known = 0.2, 0.3, np.zeros_like(gradients(x)), np.zeros_like(x)
    for _ in range(26):  # the reference starts with an estimate, the method's init makes the first
        sent = topk(gradients(x) - shift, 3)
        heard = topk(shift.mean(0) + sent.mean(0) - known, 2)
        shift, last = shift + a * sent, x
        x, known = x - step * (known + heard), known + down_rate * heard
    return last


@pytest.mark.parametrize("problem", [SMALL, "quadratic(d=9, workers=3, noise=0.5, mu=0.05, seed=2)"])
@pytest.mark.parametrize(
    ("spec", "reference"),
    [
        ("gd(down=ef21_p(topk(k=2)), step=0.2)", ef21_p),
        ("gd(down=mcm(topk(k=2), rate=0.4), step=0.2)", mcm),
        ("gd(diana(topk(k=3), rate=0.3), down=dore(topk(k=2), feedback=0.7, rate=0.6), step=0.2)", dore),
        ("gd(artemis(topk(k=3), topk(k=2), rate=0.3), step=0.2)", artemis),
        (
            "gd(artemis_memory(topk(k=3), topk(k=2), rate=0.3, down_rate=0.4), step=0.2)",
            lambda gradients, x: artemis(gradients, x, 0.4),
        ),
    ],
)
def test_the_algorithm_is_that_of_its_paper(spec: str, reference: Any, problem: str) -> None:
    """With deterministic compressors, against the boxes written out by hand."""
    a, b = (part.numpy() for part in matrices(problem_of(problem)))
    x = problem_of(problem).oracles(Block.whole(len(b))).start().numpy()
    expected = reference(lambda at: np.einsum("ijk,k->ij", a, at) - b, x)
    course = start(spec, problem).go(25)
    assert np.allclose(course.x.numpy(), expected, rtol=1e-10, atol=1e-11)
    assert not np.allclose(expected, x, rtol=1e-2)


def test_with_full_feedback_dore_owes_what_it_did_not_send() -> None:
    """x^ + e moves by -step g exactly, as an uncompressed model would."""
    course = start("gd(diana(natural), down=dore(topk(k=2), feedback=1.0, rate=1.0), step=0.1)", SMALL)
    for _ in range(10):
        told, g = course.state.told, course.state.estimate.clone()
        owed = told.model + told.error
        after = course.go().state.told
        assert torch.allclose(after.model + after.error, owed - 0.1 * g, rtol=1e-12, atol=1e-13)
        assert equal(course.x, after.model)
    assert float(course.state.told.error.norm()) > 0


def test_the_downlink_s_noise_vanishes_with_mcm() -> None:
    """Exact convergence, unlike quantisation both ways, whose noise up keeps it at its plateau."""
    problem = "quadratic(d=7, workers=4, noise=0.3, mu=0.3)"
    solution = problem_of(problem).solution()
    assert solution is not None
    for spec, ends in {
        "gd(diana(randk(k=4)), down=mcm(natural))": True,
        "gd(artemis(randk(k=4), natural))": True,
        "gd(down=ef21_p(topk(k=3)))": True,
        "gd(bi_qgd(randk(k=4), natural))": False,
    }.items():
        assert (float((start(spec, problem).go(1500).x - solution.x).norm()) < 1e-6) is ends, spec
