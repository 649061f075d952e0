"""Three-point compressors and lazy aggregation: the inequality, steps by hand, contraction, and plain references."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any, cast

import numpy as np
import pytest
import torch
from torch import Tensor

from by_hand import Course, equal, hand, matrices, problem_of, setting_of, start
from laconic.core.link import Link
from laconic.core.problem import Block
from laconic.core.spec import parse
from laconic.core.state import flatten, restore
from laconic.core.theory import NoTheorem, Setting
from laconic.mechanisms.threepc import moved
from laconic.methods.gd import GD

SMALL = "quadratic(d=7, workers=4, noise=0.3, mu=0.1)"
CONVEX = "quadratic(d=20, workers=6, noise=0.2, mu=0.05)"
NONCONVEX_PARTS = "quadratic(d=20, workers=6, noise=0.8, mu=0.01)"  # f is strongly convex, some f_i are not convex
LOGISTIC = "logistic(data='breast_cancer', l2=0.01, workers=5)"
Compress = Callable[[np.ndarray], np.ndarray]


def gradients(course: Course) -> Tensor:
    return course.oracles[0].gradients(course.x)


# ---- steps by hand ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spec", "setting", "step", "rate"),
    [
        # L = 2, L+ = 3, mu = 0.5; step 1 / (2 + 3 sqrt(B / A)), with mu 1 / (2 + 3 sqrt(2 B / A)) or A / (2 mu)
        ("lag(trigger=4.0)", hand(mu=None), 1 / (2 + 3 * 2), None),
        ("lag(trigger=4.0)", hand(), 1 / (2 + 3 * math.sqrt(8)), 1 - 0.5 / (2 + 3 * math.sqrt(8))),
        ("lag(trigger=0.0)", hand(), 0.5, 0.75),
        ("lag(trigger=0.0)", hand(mu=2.0, L=2.0), 0.25, 0.5),  # 1 / (2 mu) is smaller than 1 / L
        # alpha = 0.36: A = 1, B = 0.64
        ("threepc_v1(topk(k=36))", hand(mu=None), 1 / (2 + 3 * 0.8), None),
        # A = 0.36, omega = 4: B = 0.64 * 4, so B / A = 64 / 9
        ("threepc_v2(randk(k=20), topk(k=36))", hand(mu=None), 1 / (2 + 3 * 8 / 3), None),
        ("threepc_v2(randk(k=20), topk(k=36))", hand(mu=9.0), 0.36 / 18, 1 - 0.18),
        ("threepc_v2(randk(k=20), identity)", hand(mu=None), 0.5, None),
        # within A' = 1, B' = 4: A = 1, B = 0.64 * 4; within clag: A' = 0.2, B' = 5: A = 1 - 0.64 * 0.8, B = 3.2
        ("threepc_v3(lag(trigger=4.0), topk(k=36))", hand(mu=None), 1 / (2 + 3 * 1.6), None),
        (
            "threepc_v3(clag(topk(k=36), trigger=5.0), topk(k=36))",
            hand(mu=None),
            1 / (2 + 3 * math.sqrt(3.2 / (1 - 0.512))),
            None,
        ),
        # A = 0.2, B = max(3.2, trigger)
        ("adacgd(k=36, levels=5)", hand(mu=None), 1 / (2 + 3 * 4), None),
        ("adacgd(k=36, levels=5, trigger=5.0)", hand(mu=None), 1 / (2 + 3 * 5), None),
        # 1 - alpha = 0.64 * 0.25 = 0.16: A = 0.6, B = 0.16 / 0.6
        ("threepc_v4(topk(k=36), topk(k=75))", hand(mu=None), 1 / (2 + 3 * 0.4 / 0.6), None),
        # p = 0.36: A = 0.2, B = 0.64 * 0.64 / 0.2, B / A = 10.24
        ("threepc_v5(topk(k=36), probability=0.36)", hand(mu=None), 1 / (2 + 3 * 3.2), None),
        ("threepc_v5(topk(k=36))", hand(mu=None), 1 / (2 + 3 * 3.2), None),  # p is the share of a message
        ("threepc_v5(topk(k=36), probability=1.0)", hand(), 0.5, 0.75),
        # y = step L = 2 step solves y + 0.75 y^2 = 1 (three rounds of weight 0.25, mu = 0): y = 2 / 3
        ("lag_wk(weight=0.75, rounds=3)", hand(mu=None), 1 / 3, None),
        ("lag_wk(weight=0.0)", hand(), 0.5, 0.75),
    ],
)
def test_steps_and_rates_by_hand(spec: str, setting: Setting, step: float, rate: float | None) -> None:
    method = GD(cast(Any, parse(spec))).settled(setting)
    promise = method.guarantee(setting)
    assert method.step == promise.step == pytest.approx(step, rel=1e-12)
    assert promise.rate == (None if rate is None else pytest.approx(rate, rel=1e-12))


def test_the_step_of_lag_wk_with_a_rule_of_its_own() -> None:
    """2 g + 0.5 g^2 / (1 - 0.5 g) = 1 for s = 1, D = 1: (2 g - 1) (1 - g / 2) + g^2 / 2 = 0, -g^2/2 + 2.5 g - 1 = 0."""
    step = 2.5 - math.sqrt(2.5**2 - 2.0)
    promise = GD(cast(Any, parse("lag_wk(weight=0.5, rounds=1, step=1.0)"))).guarantee(hand())
    assert promise.step == pytest.approx(step, rel=1e-12) and promise.rate == pytest.approx(1 - 0.5 * step, rel=1e-12)


@pytest.mark.parametrize(
    ("spec", "why"),
    [
        ("threepc_v1(randk(k=2))", "contractive"),
        ("threepc_v2(topk(k=2), topk(k=2))", "unbiased change and topk"),
        ("threepc_v2(randk(k=2), randk(k=2))", "contractive"),
        ("threepc_v3(clag(randk(k=2)), topk(k=2))", "contractive"),
        ("threepc_v4(topk(k=2), randk(k=2))", "contractive"),
        ("threepc_v5(randk(k=2))", "contractive"),
        ("gd(lag, estimator=sgd)", "full gradients"),
        ("gd(lag_wk, estimator=sgd)", "full gradients"),
    ],
)
def test_a_combination_without_theorem_says_why(spec: str, why: str) -> None:
    entry: Any = parse(spec)
    method: Any = entry if entry.kind == "method" else GD(entry)
    with pytest.raises(NoTheorem, match=why) as caught:
        method.settled(hand())
    assert "give an explicit step" in str(caught.value) and "\n" not in str(caught.value)


def test_what_cannot_be_inside_v3_is_refused_in_a_line() -> None:
    with pytest.raises(ValueError, match=r"ThreePCv3\(inner=ef21\(topk\(k=1\)\)\) : .*lag, clag or") as caught:
        parse("threepc_v3(ef21(topk(k=1)), topk(k=1))")
    assert "\n" not in str(caught.value)


# ---- the inequality --------------------------------------------------------------------------------------------------

COMPRESSED_ROUND = next(seed for seed in range(99) if not Link(Block.whole(1), seed=seed).coin(0.4))  # at step 0
INEQUALITY = [
    "lag(trigger=3.0)",
    "clag(topk(k=2), trigger=0.5)",
    "clag(topk(k=4), trigger=3.0)",
    "adacgd(k=4, levels=3, trigger=0.3)",
    "threepc_v1(topk(k=2))",
    "threepc_v2(randk(k=3), topk(k=2))",
    "threepc_v3(lag(trigger=3.0), topk(k=1))",
    "threepc_v3(threepc_v2(randk(k=3), topk(k=1)), topk(k=1))",
    "threepc_v4(topk(k=1), topk(k=2))",
    "threepc_v5(topk(k=2), probability=0.4)",
]


def errors(mechanism: Any, x: Tensor, h: Tensor, y: Tensor, seed: int) -> Tensor:
    """||C_{h, y}(x) - x||^2 of each row, every row with coins of its own but for those that all share."""
    link = Link(Block.whole(len(x)), seed=seed)
    return ((moved(h, mechanism.packets(x, h, y, link)) - x) ** 2).sum(1)


def triple(rng: np.random.Generator, trial: int) -> list[Tensor]:
    """x, h, y at many scales: anything, TopK's worst case, or y between h and x, where triangles are flat."""
    h, y, x = (torch.from_numpy(rng.standard_normal(5) * 10.0 ** rng.uniform(-1, 1)) for _ in range(3))
    x = x if trial % 3 == 0 else h + float(rng.uniform(0.1, 2)) * torch.sign(x)
    return [x, h, h + float(rng.uniform()) * (x - h) if trial % 3 == 2 else y]


@pytest.mark.parametrize("spec", INEQUALITY)
def test_the_three_point_inequality_holds_and_gives_little_away(spec: str) -> None:
    """Averaged over the coins: over 300 private draws, or both outcomes of v5's coin for all, whose one is exact."""
    mechanism: Any = parse(spec)
    a, b = mechanism.constants(hand(n=1, d=5))
    rng, worst, draws = np.random.default_rng(0), 0.0, 300 if "rand" in spec else 1
    for trial in range(90 if draws > 1 else 1200):
        x, h, y = triple(rng, trial)
        rows = [vector.expand(draws, 5).contiguous() for vector in (x, h, y)]
        found = errors(mechanism, *rows, seed=COMPRESSED_ROUND if "v5" in spec else trial)
        mean = float(found.mean()) * (1 - 0.4 if "v5" in spec else 1)
        noise = float(found.std()) / math.sqrt(draws) if draws > 1 else 0.0
        bound = (1 - a) * float(((h - y) ** 2).sum()) + b * float(((x - y) ** 2).sum())
        assert mean <= bound * (1 + 1e-9) + 5 * noise + 1e-20
        worst = max(worst, mean / bound)
    assert worst > 0.75


# ---- Lyapunov functions ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("problem", [CONVEX, NONCONVEX_PARTS, LOGISTIC, "counterexample"])
@pytest.mark.parametrize(
    "spec",
    [
        "lag(trigger=0.5)",
        "lag(trigger=9.0)",
        "lag_wk(weight=0.5)",
        "lag_wk(weight=5.0, rounds=2)",
        "threepc_v1(topk(k=2))",
        "threepc_v3(lag(trigger=4.0), topk(k=1))",
        "threepc_v4(topk(k=1), topk(k=2))",
        "adacgd(k=2, levels=2, trigger=1.0)",
    ],
)
def test_deterministic_ones_contract_at_every_step(spec: str, problem: str) -> None:
    """Down to rounding: below 1e-13 of the start differences of f decide nothing."""
    course = start(spec, problem)
    solution, rate = course.problem.solution(), course.guarantee().rate
    assert solution is not None and rate is not None
    values = [course.lyapunov()]
    for _ in range(120):
        values.append(course.go().lyapunov())
    for before, after in itertools.pairwise(values):
        assert after <= rate * before * (1 + 1e-9) + 1e-13 * values[0]


@pytest.mark.parametrize("problem", [CONVEX, NONCONVEX_PARTS])
@pytest.mark.parametrize(
    "spec",
    [
        "threepc_v2(randk(k=4), topk(k=2))",
        "threepc_v3(threepc_v5(topk(k=2), probability=0.5), topk(k=2))",
        "threepc_v5(topk(k=2), probability=0.3)",
    ],
)
def test_random_ones_contract_on_average(spec: str, problem: str) -> None:
    """E[V after | before] <= rate V before: one step from one state, averaged over coins, with its sampling error."""
    draws = 80
    course = start(spec, problem).go(15)
    solution, rate = course.problem.solution(), course.guarantee().rate
    assert solution is not None and rate is not None
    before, after, step = course.lyapunov(), [], course.step
    kept = {name: leaf.tensor.clone() for name, leaf in flatten(course.state).items()}
    for draw in range(draws):
        course.states, course.step = [restore(course.state, kept)], step + 1000 * draw
        after.append(course.go().lyapunov())
    error = float(np.std(after)) / math.sqrt(draws)
    assert float(np.mean(after)) <= rate * before + 4 * error and error < 0.2 * before


def test_lag_wk_is_silent_more_often_than_not_and_arrives() -> None:
    """The original rule at its own step: far fewer messages than gradient descent, to the same point."""
    course = start("lag_wk(weight=0.5)", CONVEX).go(600)
    solution = course.problem.solution()
    assert solution is not None
    assert course.runtime.ledger.messages_up < 0.7 * 6 * 601
    assert float((course.x - solution.x).norm()) < 1e-5 * float(solution.x.norm())


# ---- special cases ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "spec",
    [
        "lag(trigger=0.0)",
        "lag_wk(weight=0.0)",
        "threepc_v1(identity)",
        "threepc_v2(natural, identity)",
        "threepc_v3(lag(trigger=9.0), identity)",
        "threepc_v4(identity, topk(k=1))",
        "threepc_v4(topk(k=1), identity)",
        "threepc_v5(topk(k=1), probability=1.0)",
        "threepc_v5(identity, probability=0.5)",
    ],
)
def test_special_cases_that_are_gradient_descent(spec: str) -> None:
    """To rounding: differences are added up."""
    step = 1.0 / float(problem_of(SMALL).constants().L)
    course, plain = start(f"gd({spec}, step={step})", SMALL), start(f"gd(step={step})", SMALL)
    for _ in range(30):
        assert torch.allclose(course.go().x, plain.go().x, rtol=1e-11, atol=1e-12)


def test_clag_with_the_identity_is_lag_bit_for_bit() -> None:
    one, other = (
        start("gd(clag(identity, trigger=2.0), step=0.3)", SMALL),
        start("gd(lag(trigger=2.0), step=0.3)", SMALL),
    )
    for _ in range(40):
        assert equal(one.go().x, other.go().x)
    assert (one.runtime.ledger.uplink == other.runtime.ledger.uplink).all()
    assert one.runtime.ledger.messages_up < 4 * 41  # somebody was silent


def test_adacgd_with_one_level_is_clag_bit_for_bit() -> None:
    one = start("gd(adacgd(k=2, levels=1, trigger=2.0), step=0.3)", SMALL)
    other = start("gd(clag(topk(k=2), trigger=2.0), step=0.3)", SMALL)
    for _ in range(40):
        assert equal(one.go().x, other.go().x)
    assert (one.runtime.ledger.uplink == other.runtime.ledger.uplink).all()


def test_v4_of_two_topk_is_ef21_with_both_together() -> None:
    """But for the start and rounding: the second TopK takes up where the first one ends."""
    course, plain = (
        start("gd(threepc_v4(topk(k=2), topk(k=1)), step=0.1)", SMALL),
        start("gd(ef21(topk(k=3)), step=0.1)", SMALL),
    )
    for name in ("shift", "estimate"):
        setattr(plain.state.memory, name, getattr(course.state.memory, name).clone())
    plain.state.estimate = plain.state.memory.estimate
    for _ in range(30):
        assert torch.allclose(course.go().x, plain.go().x, rtol=1e-12, atol=1e-13)


def test_v3_around_a_lag_that_never_speaks_is_ef21() -> None:
    """Trigger 1e30 silences everyone, so b = h; flags cost a byte a round."""
    course = start("gd(threepc_v3(lag(trigger=1e30), topk(k=2)), step=0.1)", SMALL)
    plain = start("gd(clag(topk(k=2), trigger=0.0), step=0.1)", SMALL)
    for _ in range(30):
        assert equal(course.go().x, plain.go().x)


@pytest.mark.parametrize("spec", [*INEQUALITY, "lag_wk(weight=0.5, step=0.3)"])
def test_the_servers_state_is_the_mean_of_the_workers(spec: str) -> None:
    course = start(f"gd({spec}, step=0.1)", SMALL)
    for _ in range(30):
        memory = course.go().state.memory
        assert torch.allclose(memory.estimate, memory.shift.mean(0), rtol=1e-12, atol=1e-13)


# ---- plain references ------------------------------------------------------------------------------------------------


def top(k: int) -> Compress:
    def compress(v: np.ndarray) -> np.ndarray:
        out = np.zeros_like(v)
        kept = np.argsort(-np.abs(v), kind="stable")[:k]
        out[kept] = v[kept]
        return out

    return compress


def reference(rule: Callable[..., np.ndarray], step: float, iterations: int) -> np.ndarray:
    """x after so many steps on SMALL, every worker for itself: h_i <- rule(h_i, y_i, v_i, past moves of x)."""
    a, b = (tensor.numpy() for tensor in matrices(problem_of(SMALL)))
    x = problem_of(SMALL).oracles(Block.whole(4)).start().numpy().copy()
    y = [a[i] @ x - b[i] for i in range(4)]
    h, moves = [v.copy() for v in y], [0.0] * 50
    for _ in range(iterations):
        new = x - step * np.mean(h, axis=0)
        moves.insert(0, float(((new - x) ** 2).sum()))
        x, v = new, [a[i] @ new - b[i] for i in range(4)]
        h = [rule(h[i], y[i], v[i], moves) for i in range(4)]
        y = v
    return x


RULES: list[tuple[str, Callable[..., np.ndarray]]] = [
    ("lag(trigger=2.0)", lambda h, y, v, moves: v if ((v - h) ** 2).sum() > 2 * ((v - y) ** 2).sum() else h),
    (
        "clag(topk(k=2), trigger=2.0)",
        lambda h, y, v, moves: h + top(2)(v - h) if ((v - h) ** 2).sum() > 2 * ((v - y) ** 2).sum() else h,
    ),
    # weight / (D s^2) = 0.6 / (3 * 0.25)
    (
        "lag_wk(weight=0.6, rounds=3, step=0.5)",
        lambda h, y, v, moves: v if ((v - h) ** 2).sum() > 0.8 * sum(moves[:3]) else h,
    ),
    ("threepc_v1(topk(k=2))", lambda h, y, v, moves: y + top(2)(v - y)),
    (
        "threepc_v2(topk(k=3), topk(k=1))",
        lambda h, y, v, moves: (b := h + top(3)(v - y)) + top(1)(v - b),
    ),
    (
        "threepc_v3(threepc_v1(topk(k=2)), topk(k=1))",
        lambda h, y, v, moves: (b := y + top(2)(v - y)) + top(1)(v - b),
    ),
    ("threepc_v4(topk(k=2), topk(k=1))", lambda h, y, v, moves: (b := h + top(2)(v - h)) + top(1)(v - b)),
]


def adaptive(h: np.ndarray, y: np.ndarray, v: np.ndarray, moves: list[float]) -> np.ndarray:
    """Nothing, one, two or four coordinates of v - h: the first that leaves at most 1.5 ||v - y||^2, else four."""
    allowed = 1.5 * ((v - y) ** 2).sum()
    for found in (h, h + top(1)(v - h), h + top(2)(v - h)):
        if ((found - v) ** 2).sum() <= allowed:
            return found
    return h + top(4)(v - h)


RULES.append(("adacgd(k=4, levels=3, trigger=1.5)", adaptive))


@pytest.mark.parametrize(("spec", "rule"), RULES, ids=[spec for spec, _ in RULES])
def test_plain_references(spec: str, rule: Callable[..., np.ndarray]) -> None:
    course = start(f"gd({spec}, step=0.2)", SMALL).go(26)
    assert np.allclose(course.x.numpy(), reference(rule, 0.2, 26), rtol=1e-10, atol=1e-11)


def test_adacgd_uses_all_its_levels() -> None:
    """Changes of a shift in a round: of none, one, two or four coordinates, and never of three."""
    course, seen = start("gd(adacgd(k=4, levels=3, trigger=1.5), step=0.2)", SMALL), set()
    for _ in range(60):
        before = course.state.memory.shift.clone()
        seen |= set((course.go().state.memory.shift != before).sum(1).tolist())
    assert seen == {0, 1, 2, 4}


def test_the_coin_of_v5_is_one_for_all() -> None:
    """Either every worker's shift is its gradient, or none's; both happen, about as often as p says."""
    course, full = start("gd(threepc_v5(topk(k=1), probability=0.3), step=0.1)", SMALL), 0
    for _ in range(100):
        course.go()
        exact = ((course.state.memory.shift - gradients(course)).abs() < 1e-12).all(1)
        assert bool(exact.all()) or not bool(exact.any())
        full += bool(exact.all())
    assert 15 <= full <= 45


def test_v1_and_v2_send_both_messages_in_one_round() -> None:
    """56 bytes of y - h, then a bitmap and two values; 3 values of RandK, then a bitmap and one value."""
    for spec, size in (("threepc_v1(topk(k=2))", 56 + 1 + 1 + 16), ("threepc_v2(randk(k=3), topk(k=1))", 24 + 1 + 8)):
        course = start(f"gd({spec}, step=0.1)", SMALL)
        rounds, up = course.runtime.ledger.rounds, course.runtime.ledger.uplink.copy()
        course.go(5)
        assert course.runtime.ledger.rounds == rounds + 5
        assert ((course.runtime.ledger.uplink - up) <= 5 * size).all() and (
            (course.runtime.ledger.uplink - up) >= 5 * (size - 1)
        ).all()


def test_lag_wk_without_a_probe_or_a_step_says_so() -> None:
    mechanism: Any = parse("lag_wk")
    link = Link(Block.whole(2))
    with pytest.raises(ValueError, match="needs a probe"):
        mechanism._point(torch.zeros(2, 3), None)
    with pytest.raises(ValueError, match="has no step; use settled"):
        mechanism.exchange(torch.zeros(2, 3), None, link).send(None)
    assert mechanism.settled(setting_of(problem_of(SMALL))).step == pytest.approx(
        1 / float(problem_of(SMALL).constants().L)
    )
