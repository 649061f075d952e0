"""Error feedback: memories by their formulas, guarantees by hand, and what each of them reduces to."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from by_hand import RUNTIMES, Course, distance, equal, hand, method_of, problem_of, start
from laconic.compressors.permk import PermK
from laconic.core import rows
from laconic.core.link import Link
from laconic.core.problem import Block, Problem
from laconic.core.spec import parse
from laconic.core.state import flatten, restore
from laconic.core.theory import NoTheorem
from laconic.mechanisms.ef21 import EF21
from laconic.mechanisms.ef21_plus import EF21Plus
from laconic.methods.gd import GD
from laconic.problems.custom import Custom
from planted import RoundRobin

SMALL = "quadratic(d=7, workers=4, noise=0.3, mu=0.1)"
CONVEX = "quadratic(d=20, workers=6, noise=0.2, mu=0.05)"
NONCONVEX_PARTS = "quadratic(d=20, workers=6, noise=0.8, mu=0.01)"  # f is strongly convex, some f_i are not convex
LOGISTIC = "logistic(data='breast_cancer', l2=0.01, workers=5)"


def gradients(course: Course) -> Tensor:
    return course.oracles[0].gradients(course.x)


def top(v: np.ndarray, k: int) -> np.ndarray:
    """The k largest magnitudes of each row."""
    out = np.zeros_like(v)
    for row, kept in zip(v, out, strict=True):
        places = np.argsort(-np.abs(row), kind="stable")[:k]
        kept[places] = row[places]
    return out


def link_of(course: Course) -> Link:
    """The link of a run in its last iteration, at the start of the mechanism's text."""
    link = Link(Block.whole(course.problem.n))
    link.begin(course.step)
    return link.scope("mechanism")


def various(d: int, workers: int) -> Problem:
    """Logistic regression on noise: workers that agree on nothing, with dense gradients."""
    rng = np.random.default_rng(0)
    data, labels = rng.standard_normal((8 * workers, d)), rng.choice([-1, 1], 8 * workers)
    return Custom.from_arrays(data, labels, workers=workers, l2=0.3)


# ---- EF0, EF1, EF2 ---------------------------------------------------------------------------------------------------


def masks(course: Course, shape: tuple[int, ...]) -> np.ndarray:
    """1 where the mask of the last iteration lets a coordinate through, (n, d)."""
    keys, ones = link_of(course).keys("up"), torch.ones(shape, dtype=torch.float64)
    return PermK().decode(PermK().message(ones, keys), shape[1:], ones.dtype, keys).dense().numpy() > 0


@pytest.mark.parametrize("scale", [1.0, 0.5, 1.7])
@pytest.mark.parametrize("kind", ["ef0", "ef1", "ef2"])
@pytest.mark.parametrize("problem", [SMALL, "quadratic(d=3, workers=5, noise=0.3, mu=0.1)"])
def test_the_three_memories_by_their_formulas(kind: str, scale: float, problem: str) -> None:
    course = start(f"gd({kind}(topk_permk(k=1, scale={scale})), step=0.05)", problem)
    error = course.state.memory.error.numpy().copy()
    for _ in range(25):
        course.go()
        g = gradients(course).numpy()
        mask = scale * masks(course, g.shape)
        u = error + g
        sent = top(mask * u, 1)
        error = {"ef0": u - sent, "ef1": error + mask * g - sent, "ef2": mask * u - sent}[kind]
        assert np.allclose(course.state.memory.error.numpy(), error, rtol=1e-12, atol=1e-13)
        assert np.allclose(course.state.estimate.numpy(), sent.mean(0), rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("kind", ["ef0", "ef1", "ef2"])
def test_one_worker_sees_through_the_whole_mask(kind: str) -> None:
    """With n = 1 and a = 1 all three are EF14 with TopK."""
    alone = "quadratic(d=7, workers=1, noise=0.3, mu=0.1)"
    course = start(f"gd({kind}(topk_permk(k=2)), step=0.05)", alone)
    plain = start("gd(ef14(topk(k=2)), step=0.05)", alone)
    for _ in range(30):
        assert torch.allclose(course.go().x, plain.go().x, rtol=1e-12, atol=1e-13)


def test_ef0_is_ef14_with_the_compressor_behind_the_mask() -> None:
    course, plain = (start(f"gd({kind}(topk_permk(k=1)), step=0.05)", SMALL) for kind in ("ef0", "ef14"))
    assert equal(course.go(20).x, plain.go(20).x)
    assert (course.runtime.ledger.uplink == plain.runtime.ledger.uplink).all()
    for kind in ("ef1", "ef2"):  # their messages are the same ones too: k values, and indices inside the block
        spent = start(f"gd({kind}(topk_permk(k=1)), step=0.05)", SMALL).go(20).runtime.ledger.uplink
        assert (spent == plain.runtime.ledger.uplink).all()


def test_floors_of_the_three_memories() -> None:
    """EF0's and EF1's shrink with the step, EF2's does not, and EF21 with the same compressor has none."""
    problem = various(20, 5)
    solution = problem.solution()
    assert solution is not None
    size = float(solution.x.norm())

    def floor(spec: str, step: float, iterations: int) -> float:
        course = start(f"gd({spec}(topk_permk(k=1)), step={step})", problem).go(iterations)
        return sum(distance(course.go(10)) for _ in range(10)) / (10 * size)

    step = 0.08  # n times that for the two whose gradient is n times smaller
    assert floor("ef0", step / 5, 350) < 0.4 * floor("ef0", step, 50)
    assert floor("ef1", step, 300) < 0.6 * floor("ef1", 5 * step, 50)
    assert floor("ef2", step, 300) > 0.8 * floor("ef2", 5 * step, 100) > 0.2
    assert floor("ef21", step, 500) < 1e-3


@pytest.mark.parametrize("kind", ["ef0", "ef1"])
def test_memories_with_the_mask_scaled_by_n_explode(kind: str) -> None:
    """Counter-finding about the slides: what TopK takes of u = e + g is kept as (1 - n) u."""
    problem = various(12, 6)
    course = start(f"gd({kind}(topk_permk(k=1, scale=6.0)), step=1e-300)", problem)
    first = float(course.state.memory.error.square().sum())
    assert float(course.go(300).state.memory.error.square().sum()) > 1e60 * first
    tame = start(f"gd({kind}(topk_permk(k=1)), step=1e-300)", problem).go(300)
    assert float(tame.state.memory.error.square().sum()) < 1e3 * first
    with pytest.raises(NoTheorem):
        method_of(f"{kind}(topk_permk(k=1, scale=6.0))", problem)


@pytest.mark.parametrize("kind", ["ef0", "ef1", "ef2"])
def test_only_a_compressor_with_a_mask_is_taken(kind: str) -> None:
    with pytest.raises(ValueError, match=r"compressor must be a topk_permk.*ef14 takes any other") as caught:
        parse(f"{kind}(topk(k=2))")
    assert "\n" not in str(caught.value)


# ---- constants by hand -----------------------------------------------------------------------------------------------

ROOT = math.sqrt(14.5)
SQUEEZED = 48 * 0.64 * (1 + 64 * 0.64 / 0.36**2) / 0.36**2 + 384 * 0.64 / 0.36**2


@pytest.mark.parametrize(
    ("spec", "setting", "step", "rate"),
    [
        # alpha = a (2 - a) k / d = 0.75 * 9 / 100
        ("ef0(topk_permk(k=9, scale=0.5))", hand(), 0.0675 / 196, 1 - 0.25 * 0.0675 / 196),
        ("ef0(topk_permk(k=9))", hand(mu=1900.0), 0.09 / 196, 1 - 0.09 / 4),
        ("ef0(topk_permk(k=9))", hand(mu=50.0), 0.09 / 196, 1 - 25 * 0.09 / 196),
        ("ef14(topk(k=36))", hand(mu=140.0), 0.36 / 196, 1 - 0.09),
        ("double_squeeze(topk(k=36))", hand(), 0.36 / 196, 1 - 0.25 * 0.36 / 196),
        (
            "double_squeeze(topk(k=36), topk(k=36))",
            hand(),
            1 / math.sqrt(8 * SQUEEZED * 14),
            1 - 0.25 / math.sqrt(8 * SQUEEZED * 14),
        ),
        # theta = 0.2, r = 16: 32 r + 4 r (1 + 16 r) = 512 + 64 * 257; with the identity down 4 r = 64
        (
            "ef21_bc(topk(k=36), topk(k=36))",
            hand(),
            1 / (2 + ROOT * math.sqrt(512 + 64 * 257)),
            1 - 0.5 / (2 + ROOT * math.sqrt(512 + 64 * 257)),
        ),
        ("ef21_bc(topk(k=36))", hand(), 1 / (2 + 8 * ROOT), 1 - 0.5 / (2 + 8 * ROOT)),
        ("ef21_bc(topk(k=36), topk(k=36))", hand(mu=200.0), 0.2 / 400, 0.9),
        ("ef21_plus(topk(k=36))", hand(mu=None), 1 / (2 + 4 * ROOT), None),
        ("ef21(topk(k=36), start=identity)", hand(mu=None), 1 / (2 + 4 * ROOT), None),
        # s = 0.8, eta = 0.36 / (3 * 0.8 * 1.8) = 1 / 12: (1 + 5 / 24) 0.8 = 29 / 30 < 1 - 1 / 36, so q = 1 / 36
        ("econtrol(topk(k=36))", hand(mu=None), 1 / (2 + 36 * ROOT), None),
        ("econtrol(topk(k=36))", hand(), 1 / (2 + 36 * ROOT * math.sqrt(2)), 1 - 0.5 / (2 + 36 * ROOT * math.sqrt(2))),
        ("econtrol(topk(k=36))", hand(mu=50.0), 1 / 36 / 100, 1 - 1 / 72),
        ("econtrol(topk(k=36), control=0.06)", hand(mu=None), 1 / (2 + 50 * ROOT), None),
        ("econtrol(identity)", hand(), 0.5, 0.75),
        # eta = 0.8, omega = 0: lambda = nu = 1, r = r_av = 0.64
        ("ef_bv(topk(k=36))", hand(mu=None), 1 / (2 + ROOT / (math.sqrt(1.64 / 1.28) - 1)), None),
        ("ef_bv(topk(k=36))", hand(mu=9.0), 1 / (2 + ROOT / (math.sqrt(1.64 / 1.28) - 1)), 0.82),
        # omega = 4, omega_av = 1: lambda = 1 / 5, nu = 1 / 2, r = 0.64 + 0.16, r_av = 0.25 + 0.25
        ("ef_bv(randk(k=20))", hand(mu=None), 1 / (2 + ROOT * math.sqrt(0.625) / (math.sqrt(1.8 / 1.6) - 1)), None),
        # nu = 1, so r_av = 1
        (
            "ef_bv(randk(k=20), weight=1.0)",
            hand(mu=None),
            1 / (2 + ROOT * math.sqrt(1.25) / (math.sqrt(1.125) - 1)),
            None,
        ),
        # A = B = 1 and omega = 3: lambda = 1 / 4, r = 0.5625 + 0.1875, nu = 1 / 2, r_av = 0.5
        ("ef_bv(permk)", hand(mu=None), 1 / (2 + ROOT * math.sqrt(0.5 / 0.75) / (math.sqrt(1.75 / 1.5) - 1)), None),
        # one mask for all: omega_av = A - B = 4
        ("ef_bv(shared_randk(k=20))", hand(mu=None), 1 / (2 + ROOT / (math.sqrt(1.125) - 1)), None),
        ("ef_bv(identity)", hand(), 0.5, 0.75),
        ("ec_diana(topk(k=36), randk(k=20))", hand(), 0.36 / (24 * 0.8 * math.sqrt(14)), None),
        ("ec_diana(topk(k=36), randk(k=20))", hand(mu=100.0), 0.36 / (24 * 0.8 * math.sqrt(14)), 0.91),
        ("ec_diana(topk(k=96), randk(k=20))", hand(mu=8.0), 0.96 / (24 * 0.2 * math.sqrt(14)), 0.9),
        ("ec_diana(identity, randk(k=20))", hand(), 0.125, 1 - 0.25 * 0.125),
        ("delayed(direct, delay=4)", hand(), 1 / (8 * math.sqrt(3) * 4), 1 - 0.25 / (8 * math.sqrt(3) * 4)),
        ("delayed(direct, delay=4)", hand(mu=8.0), 1 / (8 * math.sqrt(3) * 4), 1 - 1 / 16),
        ("delayed(ef21(topk(k=36)), delay=0)", hand(mu=None), 1 / (2 + 4 * ROOT), None),
        # omega (1 - alpha) = 4 * 0.64, in place of error feedback
        ("direct(induced(topk(k=36), randk(k=20)))", hand(), 1 / (2 + 2 * 0.64 * 7), 1 - 0.5 / (2 + 2 * 0.64 * 7)),
        ("diana(induced(topk(k=36), randk(k=20)))", hand(), 1 / (2 + 6 * 0.64 * 7), 1 - 0.5 / (2 + 6 * 0.64 * 7)),
        ("diana(induced(topk(k=36), randk(k=20)))", hand(mu=9.0), 1 / (2 + 6 * 0.64 * 7), 1 - 0.5 / 3.56),
    ],
)
def test_steps_and_rates_by_hand(spec: str, setting: Any, step: float, rate: float | None) -> None:
    method: Any = parse("gd").__class__(parse(spec)).settled(setting)
    promise = method.guarantee(setting)
    assert method.step == promise.step == pytest.approx(step, rel=1e-12)
    if rate is not None or setting.constants.mu is None:
        assert promise.rate == (None if rate is None else pytest.approx(rate, rel=1e-12))


def test_plateaus_by_hand() -> None:
    """48 (1 - alpha) L step^3 sigma*^2 / alpha^2 / (1 - rate) with sigma* = 3, and none where nothing is left out."""
    step = 0.36 / 196
    expected = 48 * 0.64 * 2 * step**3 * 9 / 0.36**2 / (0.25 * step)
    for spec in ("ef14(topk(k=36))", "ef14_inside(topk(k=36))", "double_squeeze(topk(k=36))"):
        promise = parse("gd").__class__(parse(spec)).settled(hand()).guarantee(hand())
        assert promise.plateau == pytest.approx(expected, rel=1e-12)
    for spec in ("ef14(identity)", "ec_diana(topk(k=36), randk(k=20))"):
        assert parse("gd").__class__(parse(spec)).settled(hand()).guarantee(hand()).plateau == 0.0


@pytest.mark.parametrize(
    ("spec", "setting", "why"),
    [
        ("ef1(topk_permk(k=2))", hand(), "coins of its compressor"),
        ("ef2(topk_permk(k=2))", hand(), "keeps a bias whatever the step"),
        ("ef0(topk_permk(k=2))", hand(convex=False), "convex"),
        ("double_squeeze(topk(k=2), topk(k=2))", hand(convex=False), "convex"),
        ("double_squeeze(topk(k=2), randk(k=2))", hand(), "contractive"),
        ("gd(double_squeeze(topk(k=2), topk(k=2)), estimator=sgd)", hand(), "full gradients"),
        ("ef21_sgd2m(topk(k=2))", hand(), "not at hand"),
        ("econtrol(randk(k=2))", hand(), "contractive"),
        ("econtrol(topk(k=36), control=0.5)", hand(), "smaller control"),
        ("ef_bv(sign)", hand(), "unbiased or contractive"),
        ("ef_bv(randk(k=20), rate=1.0)", hand(), "smaller rate"),
        ("ec_diana(topk(k=2), topk(k=2))", hand(), "unbiased learner"),
        ("ec_diana(topk(k=2), permk)", hand(), "independent"),
        ("ec_diana(topk(k=2), randk(k=20), rate=0.3)", hand(), "rate <="),
        ("delayed(ef14(topk(k=2)), delay=2)", hand(), "not compressed"),
        ("gd(delayed(direct, delay=2), estimator=sgd)", hand(), "full gradients"),
        ("gd(ef21_plus(topk(k=2)), estimator=sgd)", hand(), "full gradients"),
    ],
)
def test_a_combination_that_no_theorem_covers_says_why(spec: str, setting: Any, why: str) -> None:
    entry: Any = parse(spec)
    method: Any = entry if entry.kind == "method" else parse("gd").__class__(entry)
    with pytest.raises(NoTheorem, match=why) as caught:
        method.settled(setting)
    assert "step" in str(caught.value) and "\n" not in str(caught.value)


# ---- Lyapunov functions ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("problem", [CONVEX, NONCONVEX_PARTS, LOGISTIC, "counterexample"])
@pytest.mark.parametrize(
    "spec",
    [
        "ef21(topk(k=2), start=identity)",
        "ef21_plus(topk(k=2))",
        "ef21_bc(topk(k=0.5), topk(k=0.5))",
        "ef21_bc(topk(k=0.3))",
        "econtrol(topk(k=2))",
        "econtrol(topk(k=0.9))",
        "econtrol(identity)",
        "ef_bv(topk(k=2))",
        "gd(ef_bv(topk(k=0.5), rate=0.7, weight=0.8))",
        "delayed(direct, delay=3)",
    ],
)
def test_deterministic_mechanisms_contract_at_every_step(spec: str, problem: str) -> None:
    course = start(spec, problem)
    solution, rate = course.problem.solution(), course.guarantee().rate
    assert solution is not None and rate is not None and rate < 1.0
    values = [course.lyapunov()]
    for _ in range(100):
        values.append(course.go().lyapunov())
    for before, after in itertools.pairwise(values):
        assert 0.0 < after <= rate * before * (1 + 1e-9) + 1e-13 * values[0]


@pytest.mark.parametrize("problem", [CONVEX, LOGISTIC])
@pytest.mark.parametrize(
    "spec", ["ef_bv(randk(k=4))", "ef_bv(permk)", "ef_bv(natural)", "ef_bv(randk(k=4), weight=1.0)"]
)
def test_ef_bv_contracts_on_average(spec: str, problem: str) -> None:
    average_contracts(spec, problem, lambda course: course.lyapunov(), draws=60)


def average_contracts(spec: str, problem: str, value: Any, draws: int, warm: int = 15) -> None:
    """E[V after | before] <= rate V before + (1 - rate) plateau: one step from one state, averaged over seeds."""
    course = start(spec, problem).go(warm)
    promise = course.guarantee()
    assert promise.rate is not None
    before, after = value(course), []
    kept, step = {name: leaf.tensor.clone() for name, leaf in flatten(course.state).items()}, course.step
    for draw in range(draws):
        course.states = [restore(course.state, kept)]
        course.step = step + 1000 * draw  # other randomness
        after.append(value(course.go()))
    error = float(np.std(after)) / math.sqrt(draws)
    assert float(np.mean(after)) <= promise.rate * before + (1 - promise.rate) * promise.plateau + 4 * error
    assert error < 0.2 * before


def owed(course: Course) -> float:
    """V of EF14, DoubleSqueeze and EC-DIANA by the formulas of their docstrings, from the state."""
    c, state, mechanism = course.problem.constants(), course.state, course.method.mechanism
    memory, step, smooth, d = state.memory, course.method.step, float(c.L), course.oracles[0].d
    unit = 1.0 / step if mechanism.takes_step else 1.0  # of errors and estimates, in gradients
    solution = course.problem.solution()
    assert solution is not None
    up = getattr(mechanism, "up", None) or mechanism.compressor
    alpha = up.claim(d, course.problem.n).alpha
    ahead = course.x - step * unit * state.estimate
    virtual, weight, total = ahead - step * unit * memory.error.mean(0), 12 * smooth * step**3 / alpha, 0.0
    if hasattr(memory, "servers"):
        down = mechanism.down.claim(d, course.problem.n).alpha
        weight *= 2 * (1 + 64 * (1 - down) / down**2)
        total += 24 * smooth * step**3 / down * rows.square(memory.servers)
        virtual = virtual - step * memory.servers
    if hasattr(memory, "shift"):
        behind = rows.norm2(memory.shift - course.oracles[0].gradients(solution.x)).mean()
        total += weight * 8 * (1 - alpha) / (alpha * mechanism.rate) * float(behind)
    return total + rows.square(virtual - solution.x) + weight * unit**2 * float(rows.norm2(memory.error).mean())


@pytest.mark.parametrize("problem", [CONVEX, LOGISTIC, "counterexample"])
@pytest.mark.parametrize(
    "spec",
    ["ef14(topk(k=2))", "ef14(topk(k=0.6))", "ef14_inside(topk(k=2))", "double_squeeze(topk(k=0.5), topk(k=0.6))"],
)
def test_what_is_owed_contracts_down_to_the_plateau(spec: str, problem: str) -> None:
    course = start(spec, problem)
    promise = course.guarantee()
    values = [owed(course)]
    for _ in range(150):
        values.append(owed(course.go()))
    assert promise.rate is not None
    for before, after in itertools.pairwise(values):
        assert after <= promise.rate * before + (1 - promise.rate) * promise.plateau + 1e-13 * values[0]


@pytest.mark.parametrize("k", [2, 0.6])
def test_ef14s_rate_holds_up_to_the_derived_step(k: float) -> None:
    """14 is short of sqrt(192): at alpha / sqrt(192 (1 - alpha) L L_max) the same V contracts."""
    problem = problem_of(CONVEX)
    c, alpha = problem.constants(), (k if k < 1 else k / 20)
    assert c.mu is not None and c.sigma_star is not None
    largest = alpha / math.sqrt(192 * (1 - alpha) * float(c.L) * float(c.L_max))
    step = min(0.25 / float(c.L), largest)
    course = start(f"gd(ef14(topk(k={k})), step={step!r})", problem)
    rate = max(1 - 0.5 * step * float(c.mu), 1 - alpha / 4)
    added = 48 * (1 - alpha) * float(c.L) * step**3 * float(c.sigma_star) ** 2 / alpha**2
    value = owed(course)
    for _ in range(200):
        before, value = value, owed(course.go())
        assert value <= rate * before + added


@pytest.mark.parametrize("problem", [CONVEX, LOGISTIC])
@pytest.mark.parametrize("spec", ["ec_diana(topk(k=3), randk(k=5))", "ec_diana(topk(k=0.6), natural)"])
def test_ec_diana_contracts_on_average(spec: str, problem: str) -> None:
    average_contracts(spec, problem, owed, draws=40)


# ---- virtual iterates, and servers that hold means -------------------------------------------------------------------


def virtual(course: Course) -> Tensor:
    """The next x less all that is owed, in units of x."""
    state, step = course.state, 1.0 if course.method.mechanism.takes_step else course.method.step
    memory, out = state.memory, course.x - step * state.estimate
    if hasattr(memory, "queue"):
        out, memory = out - step * memory.queue.sum(0), memory.inner
    if hasattr(memory, "servers"):
        out = out - step * memory.servers
    return out if memory is None else out - step * memory.error.mean(0)


@pytest.mark.parametrize(
    "mechanism",
    [
        "ef14(topk(k=1))",
        "ef0(topk_permk(k=1))",
        "double_squeeze(topk(k=2), topk(k=1))",
        "double_squeeze(natural, topk(k=3))",
        "econtrol(topk(k=2), control=0.2)",
        "ec_diana(topk(k=2), natural, rate=0.5)",
        "delayed(ef14(topk(k=2)), delay=3)",
        "delayed(ef14_inside(topk(k=2)), delay=1)",
        "delayed(double_squeeze(topk(k=2), topk(k=2)), delay=2)",
        "delayed(direct, delay=2)",
    ],
)
def test_the_virtual_iterate_takes_gradient_steps(mechanism: str) -> None:
    course = start(f"gd({mechanism}, step=0.05)", SMALL)
    for _ in range(40):
        before = virtual(course)
        moved = virtual(course.go()) - before
        assert torch.allclose(moved, -0.05 * gradients(course).mean(0), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(
    ("spec", "server"),
    [
        ("ef21(topk(k=2), start=identity)", "estimate"),
        ("ef21_sgd2m(topk(k=2))", "estimate"),
        ("econtrol(topk(k=2))", "estimate"),
        ("ef_bv(topk(k=2))", "mean"),
        ("ef_bv(randk(k=2))", "mean"),
        ("ec_diana(topk(k=2), randk(k=2))", "mean"),
    ],
)
def test_the_servers_state_is_the_mean_of_the_workers(spec: str, server: str) -> None:
    course = start(f"gd({spec}, step=0.05)", SMALL)
    for _ in range(30):
        memory = course.go().state.memory
        assert torch.allclose(getattr(memory, server), memory.shift.mean(0), rtol=1e-12, atol=1e-13)


# ---- what they reduce to ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("special", "simple", "exact"),
    [
        ("double_squeeze(topk(k=2))", "ef14(topk(k=2))", True),
        ("delayed(ef14(topk(k=2)), delay=0)", "ef14(topk(k=2))", True),
        ("delayed(ef14_inside(topk(k=2)), delay=0)", "ef14_inside(topk(k=2))", True),
        ("ef_bv(topk(k=2))", "ef21(topk(k=2))", False),
        ("ef_bv(natural, weight=1.0)", "diana(natural)", True),
        ("ef_bv(randk(k=2), weight=1.0)", "diana(randk(k=2))", True),
        ("ef_bv(identity)", "direct", False),
        ("econtrol(identity)", "direct", False),
        ("econtrol(topk(k=1.0))", "direct", False),
        ("ec_diana(identity, natural)", "direct", False),
        ("ec_diana(topk(k=1.0), randk(k=1.0))", "direct", False),
        ("ef0(topk_permk(k=1.0))", "ef14(topk_permk(k=1.0))", True),
        ("ef21_plus(identity)", "direct", False),
        ("double_squeeze(identity)", "direct", True),
        ("delayed(direct, delay=0)", "direct", True),
        ("direct(induced(identity, randk(k=2)))", "direct", True),
        ("ef21_sgd2m(identity, eta=1.0)", "direct", False),
    ],
)
def test_special_cases_are_simpler_mechanisms(special: str, simple: str, exact: bool) -> None:
    course, plain = (start(f"gd({spec}, step=0.1)", SMALL) for spec in (special, simple))
    for _ in range(30):
        if exact:
            assert torch.equal(course.go().x, plain.go().x)
        else:
            assert torch.allclose(course.go().x, plain.go().x, rtol=1e-11, atol=1e-12)


def test_ef21_sgd2m_averages_twice() -> None:
    course = start("gd(ef21_sgd2m(topk(k=2), eta=0.25), step=0.1)", SMALL)
    momentum = double = gradients(course)
    shift = momentum.numpy().copy()
    for _ in range(20):
        momentum = 0.75 * momentum + 0.25 * gradients(course.go())
        double = 0.75 * double + 0.25 * momentum
        shift = shift + top(double.numpy() - shift, 2)
        memory = course.state.memory
        assert torch.allclose(memory.momentum, momentum, rtol=1e-12, atol=1e-15)
        assert torch.allclose(memory.double, double, rtol=1e-12, atol=1e-15)
        assert np.allclose(memory.shift.numpy(), shift, rtol=1e-12, atol=1e-13)


# ---- EF21's starts ---------------------------------------------------------------------------------------------------


def test_the_two_initialisations_of_ef21_are_one() -> None:
    """h_0 = 0 with x <- x - step h_(k+1), and g_0 = C(gradient) with x <- x - step g_k, by plain loops; and the run."""
    problem = problem_of(SMALL)
    oracles, step, d, n = problem.oracles(Block.whole(4)), 0.1, 7, 4

    def gradient(x: np.ndarray) -> np.ndarray:
        return oracles.gradients(torch.from_numpy(x)).numpy()

    first = second = oracles.start().numpy()
    h, g = np.zeros((n, d)), top(gradient(second), 2)
    course = start("gd(ef21(topk(k=2)), step=0.1)", SMALL)
    for _ in range(30):
        h = h + top(gradient(first) - h, 2)
        first = first - step * h.mean(0)
        second = second - step * g.mean(0)
        g = g + top(gradient(second) - g, 2)
        assert np.array_equal(first, second)
        assert np.allclose(course.go().x.numpy(), first, rtol=1e-12, atol=1e-13)


def test_a_start_at_full_width_begins_without_error() -> None:
    problem = various(7, 4)
    course, plain = start("ef21(topk(k=2), start=identity)", problem), start("ef21(topk(k=2))", problem)
    assert torch.equal(course.state.memory.shift, gradients(course))
    assert (course.runtime.ledger.uplink == 7 * 8).all() and (plain.runtime.ledger.uplink == 2 * 8 + 1).all()
    solution = course.problem.solution()
    assert solution is not None and course.lyapunov() < plain.lyapunov()
    spent = course.runtime.ledger.uplink.copy()
    assert (course.go(5).runtime.ledger.uplink - spent == 5 * 17).all()  # then messages are the compressor's


def test_a_start_has_a_state_of_its_own() -> None:
    """A first compressor that remembers leaves nothing to the one that follows."""
    (link,) = start(GD(EF21(RoundRobin(), start=RoundRobin()), step=0.1), SMALL).go(3).runtime.links
    turns = {name: leaf.tensor.tolist() for name, leaf in link.compressor_leaves().items() if name.endswith("next")}
    assert turns == {"/mechanism/start/up0#next": [1, 2, 3, 4], "/mechanism/up0#next": [3, 4, 5, 6]}


def test_lyapunov_functions_by_hand() -> None:
    """From a state, by the formulas of the docstrings: random instances hardly see their weights."""
    solution = problem_of(SMALL).solution()
    assert solution is not None
    course = start("ef21_bc(topk(k=3), topk(k=2))", SMALL).go(5)
    step, memory, oracles = course.method.step, course.state.memory, course.oracles[0]
    theta, down = 1 - math.sqrt(4 / 7), 1 - math.sqrt(5 / 7)
    r = 5 / 7 / down**2
    own = rows.norm2(memory.shift - gradients(course)).mean() * 2 * step * (1 + 16 * r) / theta
    value = float(oracles.values(course.x).mean()) - solution.value + float(own)
    value += 2 * step / down * rows.square(memory.estimate - memory.mean)
    assert course.lyapunov() == pytest.approx(value, rel=1e-9)
    course = start("econtrol(topk(k=3), control=0.1)", SMALL).go(5)
    step, memory, oracles = course.method.step, course.state.memory, course.oracles[0]
    q = 1 - max(1.25 * math.sqrt(4 / 7), 1 - 0.1 / 3)
    ahead = course.x - step * course.state.estimate
    norms = (0.1 * memory.error + oracles.gradients(ahead) - memory.shift).norm(dim=1) + 0.15 * memory.error.norm(dim=1)
    value = float((oracles.values(ahead) + norms**2 * step / q).mean()) - solution.value
    assert course.lyapunov() == pytest.approx(value, rel=1e-9)


def test_ef21_page_by_hand() -> None:
    """p = 1 / 2 on minibatches of 2: q^2 = 1 / 2; beta / theta = 16, n = 4, l = 10, L+ = 3; under PL twice the rest."""
    spec, q = "gd(ef21(topk(k=36)), estimator=page(batch=2, probability=0.5))", math.sqrt(0.5)
    setting = hand(mu=None, L_sample=10.0)
    promise = method_of_setting(spec, setting).guarantee(setting)
    own = 16 * ((1 + 0.5 * q) * 9 + (1 + q) * 50)
    assert promise.step == pytest.approx(1 / (2 + math.sqrt(own) + q * 10 / math.sqrt(0.5 * 4 * 2)), rel=1e-12)
    setting = hand(L_sample=10.0)
    promise = method_of_setting(spec, setting).guarantee(setting)
    own = 32 * ((1 + 0.5 * q) * 9 + (1.5 + 2 * q) * 50)
    step = 1 / (2 + math.sqrt(own) + q * 10 / math.sqrt(0.25 * 4 * 2))
    assert promise.step == pytest.approx(step, rel=1e-12) and promise.rate == pytest.approx(1 - 0.5 * step, rel=1e-12)
    slow = hand(L_sample=10.0, mu=100.0)
    assert method_of_setting(spec, slow).guarantee(slow).step == pytest.approx(0.2 / 200, rel=1e-12)


def method_of_setting(spec: str, setting: Any) -> Any:
    method: Any = parse(spec)
    return method.settled(setting)


def test_ef21_over_page_converges_as_promised() -> None:
    """f - f* falls below rate^k times what it was at first, many times over, and to rounding at a larger step."""
    problem = various(6, 4)
    course = start("gd(ef21(topk(k=3)), estimator=page(batch=2, probability=0.3))", problem)
    rate, first = course.guarantee().rate, distance(course)
    assert rate is not None and distance(course.go(600)) ** 2 < rate**600 * first**2
    assert distance(start("gd(ef21(topk(k=3)), estimator=page(batch=2), step=0.1)", problem).go(1500)) < 1e-9


# ---- EF21+ -----------------------------------------------------------------------------------------------------------


def test_ef21_plus_takes_what_is_closer() -> None:
    """Both kinds happen, each worker pays a byte more than in EF21, and the server holds what the workers hold."""
    alike = "quadratic(d=7, workers=4, noise=0.1, mu=0.1)"
    course = start("gd(ef21_plus(topk(k=2)), step=0.9)", alike)
    shift, anew = course.state.memory.shift.numpy().copy(), 0
    for k in range(60):
        if k == 30:  # far from the shifts: the gradient's own message says more
            course.state.x = 1e-3 * torch.ones(7, dtype=torch.float64)
            course.state.estimate = torch.zeros(7, dtype=torch.float64)
        spent = course.runtime.ledger.uplink.copy()
        v = gradients(course.go()).numpy()
        whole, moved = top(v, 2), shift + top(v - shift, 2)
        fresh = ((whole - v) ** 2).sum(1) < ((moved - v) ** 2).sum(1)
        shift, anew = np.where(fresh[:, None], whole, moved), anew + int(fresh.sum())
        memory = course.state.memory
        assert np.allclose(memory.shift.numpy(), shift, rtol=1e-12, atol=1e-14)
        assert torch.equal(memory.shifts, memory.shift)
        assert np.allclose(course.state.estimate.numpy(), shift.mean(0), rtol=1e-12, atol=1e-14)
        assert (course.runtime.ledger.uplink - spent == 2 * 8 + 1 + 1).all()
    assert 0 < anew < 240


@pytest.mark.parametrize("runtime", [name for name in RUNTIMES if name != "plain"])
@pytest.mark.parametrize("compressor", ["topk(k=2)", "topk_permk(k=1)", "topk(k=3) | natural"])
def test_ef21_plus_is_the_same_everywhere(compressor: str, runtime: str) -> None:
    """With random compressors too: the message that is sent is the one that was compared."""
    course, plain = (
        start(f"gd(ef21_plus({compressor}), step=0.5)", SMALL, runtime=name) for name in (runtime, "plain")
    )
    assert equal(course.go(15).x, plain.go(15).x)
    assert (course.runtime.ledger.uplink == plain.runtime.ledger.uplink).all()


def test_ef21_plus_refuses_a_compressor_that_remembers() -> None:
    rng = np.random.default_rng(0)
    problem = Custom.from_arrays(rng.standard_normal((12, 6)), rng.choice([-1, 1], 12), workers=2, l2=0.1)
    with pytest.raises(ValueError, match="keeps a state; use ef21"):
        start(GD(EF21Plus(RoundRobin()), step=0.1), problem)


# ---- references ------------------------------------------------------------------------------------------------------


def test_double_squeeze_by_the_formula() -> None:
    course = start("gd(double_squeeze(topk(k=2), topk(k=1)), step=0.05)", SMALL)
    error, servers = course.state.memory.error.numpy().copy(), course.state.memory.servers.numpy().copy()
    for _ in range(25):
        v = gradients(course.go()).numpy()
        sent = top(error + v, 2)
        error, u = error + v - sent, servers + sent.mean(0)
        down = top(u[None], 1)[0]
        servers = u - down
        assert np.allclose(course.state.estimate.numpy(), down, rtol=1e-11, atol=1e-13)
        assert np.allclose(course.state.memory.error.numpy(), error, rtol=1e-11, atol=1e-13)
        assert np.allclose(course.state.memory.servers.numpy(), servers, rtol=1e-11, atol=1e-13)
    assert (course.runtime.ledger.downlink == 26 * (8 + 1)).all()  # one value and its place, never x


def test_econtrol_by_the_formula() -> None:
    course = start("gd(econtrol(topk(k=2), control=0.3), step=0.05)", SMALL)
    memory = course.state.memory
    error, shift = memory.error.numpy().copy(), memory.shift.numpy().copy()
    for _ in range(25):
        v = gradients(course.go()).numpy()
        sent = top(0.3 * error + v - shift, 2)
        error, shift = error + v - shift - sent, shift + sent
        assert np.allclose(course.state.memory.error.numpy(), error, rtol=1e-11, atol=1e-13)
        assert np.allclose(course.state.estimate.numpy(), shift.mean(0), rtol=1e-11, atol=1e-13)


def test_ec_diana_by_the_formula() -> None:
    course = start("gd(ec_diana(topk(k=2), randk(k=3), rate=0.4), step=0.05)", SMALL)
    memory = course.state.memory
    error, shift = memory.error.numpy().copy(), memory.shift.numpy().copy()
    for _ in range(25):
        v = gradients(course.go()).numpy()
        put_in = v - shift + shift.mean(0)
        sent = top(error + put_in, 2)
        supports = link_of(course).scope("learner").keys("up").subsets(7, 3)
        learned = np.zeros_like(v)
        np.put_along_axis(learned, supports, np.take_along_axis(v - shift, supports, 1) * 7 / 3, 1)
        error, shift = error + put_in - sent, shift + 0.4 * learned
        assert np.allclose(course.state.memory.error.numpy(), error, rtol=1e-11, atol=1e-13)
        assert np.allclose(course.state.memory.shift.numpy(), shift, rtol=1e-11, atol=1e-13)
        assert np.allclose(course.state.estimate.numpy(), sent.mean(0), rtol=1e-11, atol=1e-13)


def test_ef_bv_by_the_formula() -> None:
    course = start("gd(ef_bv(topk(k=2), rate=0.6, weight=0.8), step=0.05)", SMALL)
    shift = course.state.memory.shift.numpy().copy()
    for _ in range(25):
        sent = top(gradients(course.go()).numpy() - shift, 2)
        assert np.allclose(course.state.estimate.numpy(), shift.mean(0) + 0.8 * sent.mean(0), rtol=1e-11, atol=1e-13)
        shift = shift + 0.6 * sent


def test_a_delay_applies_old_gradients() -> None:
    problem = problem_of(SMALL)
    oracles, seen, x = problem.oracles(Block.whole(4)), [], problem.oracles(Block.whole(4)).start()
    course = start("gd(delayed(direct, delay=3), step=0.1)", SMALL)
    for k in range(30):
        seen.append(oracles.gradients(x).mean(0))
        x = x - 0.1 * seen[k - 3] if k >= 3 else x
        assert torch.allclose(course.go().x, x, rtol=1e-12, atol=1e-13)
        assert equal(course.x, oracles.start()) == (k < 3)


def test_floors_that_shifts_and_control_remove() -> None:
    """At one step, with different workers: EF14 and DoubleSqueeze keep a floor; EC-DIANA, EControl, EF-BV do not."""
    problem = various(20, 5)
    for spec in ("ef14(topk(k=2))", "double_squeeze(topk(k=2), topk(k=5))"):
        assert distance(start(f"gd({spec}, step=0.1)", problem).go(300)) > 1e-2
    for spec in ("ec_diana(topk(k=2), randk(k=5))", "econtrol(topk(k=2))", "ef_bv(topk(k=2))"):
        assert distance(start(f"gd({spec}, step=0.1)", problem).go(400)) < 1e-3


@pytest.mark.parametrize(
    "spec",
    [
        "ef14(topk(k=2))",
        "ef14_inside(topk(k=2))",
        "ef0(topk_permk(k=1))",
        "double_squeeze(topk(k=3), topk(k=2))",
        "ec_diana(topk(k=3), randk(k=3))",
    ],
)
def test_what_is_owed_is_the_lyapunov_function(spec: str) -> None:
    """The product's V, which takes a mean vector over workers, against the formula from the state."""
    course = start(spec, SMALL).go(5)
    solution = course.problem.solution()
    assert solution is not None
    assert course.lyapunov() == pytest.approx(owed(course), rel=1e-9)
