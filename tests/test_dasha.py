"""DASHA with its estimators, its synced form, MARINA on minibatches: recursions, steps by hand, expectations."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import pytest
import torch

from by_hand import Course, equal, hand, method_of, start
from laconic.core.estimator import Probe
from laconic.core.link import Link
from laconic.core.problem import Batch, Block
from laconic.core.spec import parse
from laconic.core.state import flatten, restore
from laconic.core.theory import NoTheorem, Setting
from laconic.problems.custom import Custom
from laconic.runtime.local import Local

SMALL = "quadratic(d=7, workers=4, noise=0.3, mu=0.1)"
CONVEX = "quadratic(d=20, workers=6, noise=0.2, mu=0.05)"
NONCONVEX_PARTS = "quadratic(d=20, workers=6, noise=0.8, mu=0.01)"


def arrays(rows: int = 17, d: int = 3, l2: float = 0.1) -> Any:
    """Five workers with three or four terms each."""
    rng = np.random.default_rng(0)
    return Custom.from_arrays(rng.standard_normal((rows, d)), rng.choice([-1, 1], rows), workers=5, l2=l2)


def gradients(course: Course) -> np.ndarray:
    return course.oracles[0].gradients(course.x).numpy()


def link_of(course: Course, scope: str) -> Link:
    """The addresses of an iteration, made anew."""
    link = Link(Block.whole(course.problem.n))
    link.begin(course.step)
    return link.scope(scope)


def randk_of(link: Link, v: np.ndarray, k: int) -> np.ndarray:
    """RandK of every row by its supports alone."""
    n, d = v.shape
    keep = np.zeros((n, d))
    np.put_along_axis(keep, link.keys("up").subsets(d, k), d / k, axis=1)
    return keep * v


# ---- the recursions, from the pseudo-code ----------------------------------------------------------------------------


def test_dasha_by_the_pseudo_code() -> None:
    """x, h_i, g_i and the server's g over 25 rounds, in NumPy."""
    course, a = start("gd(dasha(randk(k=2)), step=0.05)", SMALL), 1 / 6  # omega = 7 / 2 - 1
    assert course.method.mechanism.momentum == pytest.approx(a)
    x, h = course.x.numpy(), gradients(course)
    g, server = h.copy(), h.mean(0)
    assert (course.runtime.ledger.uplink == 56).all()
    for k in range(1, 26):
        course.go()
        x = x - 0.05 * server
        new = course.oracles[0].gradients(torch.from_numpy(x)).numpy()
        message = randk_of(link_of(course, "mechanism"), new - h - a * (g - h), 2)
        g, h, server = g + message, new, server + message.mean(0)
        memory = course.state.memory
        pairs = [(course.x, x), (memory.gradient, h), (memory.shift, g), (course.state.estimate, server)]
        assert all(np.allclose(mine, theirs, rtol=1e-12, atol=1e-12) for mine, theirs in pairs)
        assert (course.runtime.ledger.uplink == 56 + 16 * k).all()  # never at full width again


@pytest.mark.parametrize("spec", ["dasha(randk(k=2))", "dasha(natural)", "dasha(permk)", "dasha_sync_mvr(randk(k=2))"])
def test_the_server_holds_the_mean_of_the_workers(spec: str) -> None:
    course = start(spec, SMALL)
    for _ in range(30):
        memory = course.go().state.memory
        assert torch.allclose(memory.estimate, memory.shift.mean(0), rtol=1e-12, atol=1e-13)


def test_vr_marina_by_the_pseudo_code() -> None:
    """Full gradients by the coin; else the compressed change of one minibatch's gradient, and its bytes."""
    problem, p, heads = arrays(), 0.3, 0
    course = start("gd(vr_marina(randk(k=1), probability=0.3), step=0.1, estimator=sgd(batch=2))", problem)
    x, g = course.x.numpy(), gradients(course).mean(0)
    for _ in range(40):
        up = course.runtime.ledger.uplink.copy()
        course.go()
        before, x = x, x - 0.1 * g
        batch = course.oracles[0].sample(link_of(course, "estimator").keys("batch"), 2)
        inner = link_of(course, "mechanism")
        if inner.coin(p):
            heads += 1
            g = course.oracles[0].gradients(torch.from_numpy(x)).numpy().mean(0)
            assert (course.runtime.ledger.uplink - up == 24).all()
        else:
            new, old = (course.oracles[0].gradients(torch.from_numpy(at), batch=batch).numpy() for at in (x, before))
            g = g + randk_of(inner, new - old, 1).mean(0)
            assert (course.runtime.ledger.uplink - up == 8).all()
        assert np.allclose(course.x, x, rtol=1e-12, atol=1e-13)
        assert np.allclose(course.state.estimate, g, rtol=1e-12, atol=1e-13)
    assert 5 < heads < 20


def test_dasha_sync_mvr_by_the_pseudo_code() -> None:
    problem, p, a, heads = arrays(), 0.25, 0.2, 0
    course = start(
        "gd(dasha_sync_mvr(randk(k=1), momentum=0.2, probability=0.25), step=0.1, estimator=sgd(batch=2))", problem
    )
    x, h = course.x.numpy(), gradients(course)
    g = h.copy()
    for _ in range(40):
        course.go()
        before, x = x, x - 0.1 * g.mean(0)
        batch = course.oracles[0].sample(link_of(course, "estimator").keys("batch"), 2)
        inner = link_of(course, "mechanism")
        if inner.coin(p):
            heads += 1
            h = course.oracles[0].gradients(torch.from_numpy(x)).numpy()
            g = h.copy()
        else:
            new, old = (course.oracles[0].gradients(torch.from_numpy(at), batch=batch).numpy() for at in (x, before))
            g = g + randk_of(inner, new - old - a * (g - h), 1)
            h = h + new - old
        memory = course.state.memory
        pairs = [(course.x, x), (memory.gradient, h), (memory.shift, g), (memory.estimate, g.mean(0))]
        assert all(np.allclose(mine, theirs, rtol=1e-11, atol=1e-12) for mine, theirs in pairs)
    assert 3 < heads < 20


def size2(v: np.ndarray) -> float:
    return float((v**2).sum())


# ---- special cases ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("special", "rounding"),
    [
        ("dasha(identity)", 1e-11),
        ("dasha(randk(k=1.0), momentum=1.0)", 1e-11),
        ("vr_marina(identity, probability=0.3)", 1e-11),
        ("vr_marina(randk(k=1), probability=1.0)", 0.0),
        ("dasha_sync_mvr(randk(k=1), probability=1.0)", 0.0),
        ("dasha_sync_mvr(identity, momentum=1.0, probability=0.3)", 1e-11),
    ],
)
def test_without_compression_or_with_every_coin_it_is_gradient_descent(special: str, rounding: float) -> None:
    course, plain = start(f"gd({special}, step=0.5)", SMALL), start("gd(step=0.5)", SMALL)
    for _ in range(30):
        assert torch.allclose(course.go().x, plain.go().x, rtol=rounding, atol=rounding)


def test_vr_marina_with_full_gradients_is_marina() -> None:
    course, plain = (
        start(f"gd({name}(randk(k=2), probability=0.3), step=0.1)", SMALL) for name in ("vr_marina", "marina")
    )
    for _ in range(40):
        assert equal(course.go().x, plain.go().x)
    assert (course.runtime.ledger.uplink == plain.runtime.ledger.uplink).all()


def test_dasha_sync_mvr_without_coins_and_with_full_gradients_is_dasha() -> None:
    course, plain = (
        start(f"gd({name}, step=0.1)", SMALL)
        for name in ("dasha_sync_mvr(randk(k=2), probability=1e-12)", "dasha(randk(k=2))")
    )
    for _ in range(40):
        assert torch.allclose(course.go().x, plain.go().x, rtol=1e-11, atol=1e-12)


def test_one_worker_s_minibatch_of_all_terms_is_a_full_gradient() -> None:
    """DASHA over page with p = 1, and over mvr with b = 1, is DASHA over full gradients and over sgd."""
    problem = arrays()
    pairs = [("page(probability=1.0)", "full"), ("mvr(batch=3, rate=1.0, first=3)", "sgd(batch=3)")]
    for estimator, other in pairs:
        course, plain = (start(f"gd(dasha(randk(k=1)), step=0.2, estimator={e})", problem) for e in (estimator, other))
        for _ in range(25):
            assert equal(course.go().x, plain.go().x)


# ---- steps by hand ---------------------------------------------------------------------------------------------------

# omega = 4, n = 4, so A = 1 and 2 omega + 1 = 9; L = 2, L+ = 3, L_pm = 1.5, l = 10


@pytest.mark.parametrize(
    ("spec", "setting", "step", "rate"),
    [
        ("gd(dasha(randk(k=20)))", hand(mu=None), 1 / (2 + 3 * math.sqrt(18)), None),
        ("gd(dasha(randk(k=20)))", hand(mu=0.1), 1 / (2 + 3 * 6), 1 - 0.1 / 20),
        ("gd(dasha(randk(k=20)))", hand(mu=2.0), 1 / 36, 1 - 1 / 18),
        # a = 0.1: c = 1 / (2 a (2 - a)) = 1 / 0.38, c' = 0.2 c, and twice 2 c + 8 c' = 3.6 c under the root
        ("gd(dasha(randk(k=20), momentum=0.1))", hand(mu=None), 1 / (2 + 3 * math.sqrt(7.2 / 0.38)), None),
        # c = 1 / (a (3 - 2 a)) = 1 / 0.28, c' = 0.4 c, and twice 2 c + 8 c' = 5.2 c
        ("gd(dasha(randk(k=20), momentum=0.1))", hand(mu=0.1), 1 / (2 + 3 * math.sqrt(10.4 / 0.28)), None),
        # PermK: A = B = 1, omega = 3; a shared support: A = 0, B = -4, so A' = 4
        ("gd(dasha(permk))", hand(mu=None), 1 / (2 + 3 * math.sqrt(14)), None),
        ("gd(dasha(shared_randk(k=20)))", hand(mu=None), 1 / (2 + 3 * math.sqrt(72)), None),
        ("gd(dasha(identity))", hand(mu=None), 0.5, None),
        # 18 ((1 + .288) 9 + (1.28 + .8) 100 / 2) and .64 * 100 / (.36 * 4 * 2)
        (
            "gd(dasha(randk(k=20)), estimator=page(batch=2, probability=0.36))",
            hand(mu=None, L_sample=10.0),
            1 / (2 + math.sqrt(18 * (1.288 * 9 + 2.08 * 50)) + math.sqrt(64 / 2.88)),
            None,
        ),
        (
            "gd(dasha(randk(k=20)), estimator=page(batch=2, probability=0.36))",
            hand(mu=0.1, L_sample=10.0),
            1 / (2 + math.sqrt(36 * (1.288 * 9 + 3.52 * 50)) + math.sqrt(128 / 2.88)),
            1 - 0.1 / (2 + math.sqrt(36 * (1.288 * 9 + 3.52 * 50)) + math.sqrt(128 / 2.88)),
        ),
        ("gd(dasha(randk(k=20)), estimator=page(probability=0.02))", hand(mu=20.0, L_sample=1e-9), 0.02 / 40, 0.99),
        ("gd(dasha(randk(k=20)), estimator=page(probability=1.0))", hand(mu=None), 1 / (2 + 3 * math.sqrt(18)), None),
        # b = .5: (1 + b) 9 + 6 * .25 / 1.5 * 50, and 2 * .25 * 100 / (.75 * 4 * 2); no rate, for there is a floor
        (
            "gd(dasha(randk(k=20)), estimator=mvr(batch=2, rate=0.5))",
            hand(L_sample=10.0),
            1 / (2 + math.sqrt(18 * (13.5 + 50)) + math.sqrt(50 / 6)),
            None,
        ),
        # (1 - p) (L+^2 + l^2 / B) = 0.8 (9 + 50), and .8 * 100 / (.2 * 4 * 2) = 50
        (
            "gd(dasha_sync_mvr(randk(k=20)), estimator=sgd(batch=2))",
            hand(mu=None, L_sample=10.0),
            1 / (2 + math.sqrt(18 * 0.8 * 59) + math.sqrt(50)),
            None,
        ),
        (
            "gd(dasha_sync_mvr(randk(k=20)), estimator=sgd(batch=2))",
            hand(mu=0.1, L_sample=10.0),
            1 / (2 + math.sqrt(36 * 0.8 * 59) + 10),
            1 - 0.1 / (2 + math.sqrt(36 * 0.8 * 59) + 10),
        ),
        # the paper's (1 - p) / (p n) (omega L+^2 + (1 + omega) l^2 / B) = 36 + 250
        (
            "gd(vr_marina(randk(k=20)), estimator=sgd(batch=2))",
            hand(mu=None, L_sample=10.0),
            1 / (2 + math.sqrt(36 + 250)),
            None,
        ),
        (
            "gd(vr_marina(randk(k=20)), estimator=sgd(batch=2))",
            hand(L_sample=10.0),
            1 / (2 + math.sqrt(2 * 286)),
            1 - 0.5 / (2 + math.sqrt(2 * 286)),
        ),
        # PermK: 3 (L_pm^2 + (1 - 1/4 + 1/4) l^2 / B)
        (
            "gd(vr_marina(permk), estimator=sgd(batch=2))",
            hand(mu=None, L_sample=10.0),
            1 / (2 + math.sqrt(3 * (2.25 + 50))),
            None,
        ),
        ("gd(vr_marina(randk(k=20)))", hand(mu=None), 1 / 8, None),
        # a shared support, omega = 4: (1 - p) / p omega L^2 = 4 * 4 * 4
        ("gd(marina(shared_randk(k=20)))", hand(mu=None), 1 / 10, None),
    ],
)
def test_steps_and_rates_by_hand(spec: str, setting: Setting, step: float, rate: float | None) -> None:
    method: Any = parse(spec)
    settled = method.settled(setting)
    promise = settled.guarantee(setting)
    assert settled.step == promise.step == pytest.approx(step, rel=1e-12) and promise.sure and promise.assumes
    if rate is not None:
        assert promise.rate == pytest.approx(rate, rel=1e-12)
    if setting.constants.mu is None or "mvr(batch" in spec:
        assert promise.rate is None
    four = dataclasses.replace(method, step="4x").settled(setting)
    assert four.step == pytest.approx(4 * step) and four.guarantee(setting).rate is None


# ---- what may not be combined ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spec", "why"),
    [
        ("gd(dasha(topk(k=2)), step=0.1)", "needs an unbiased compressor and topk"),
        ("gd(vr_marina(topk(k=2)), step=0.1)", "needs an unbiased compressor and topk"),
        ("gd(dasha_sync_mvr(topk(k=2), momentum=0.1), step=0.1)", "needs an unbiased compressor and topk"),
    ],
)
def test_a_biased_compressor_is_refused_whatever_the_step(spec: str, why: str) -> None:
    method: Any = parse(spec)
    with pytest.raises(ValueError, match=why) as caught:
        method.settled(hand())
    assert not isinstance(caught.value, NoTheorem) and "\n" not in str(caught.value)
    assert "use ef21" in str(caught.value)


@pytest.mark.parametrize(
    ("spec", "why"),
    [
        ("gd(dasha(natural), estimator=sgd)", "one probability for all workers, not sgd"),
        ("gd(dasha(natural), estimator=page)", "not page on 5 to 6 terms"),
        ("gd(dasha(natural), estimator=page(probability=0.5))", "L_sample"),
        ("gd(dasha(randk(k=20), momentum=0.5))", "momentum <= 1 / .2 omega . 1. = 0.111"),
        ("gd(vr_marina(natural), estimator=shuffled)", "afresh and independently"),
        ("gd(dasha_sync_mvr(natural), estimator=shuffled)", "afresh and independently"),
        ("gd(diana(natural), estimator=page)", "unbiased variance-reduced"),
    ],
)
def test_what_no_theorem_covers_needs_a_step_and_says_why(spec: str, why: str) -> None:
    method: Any = parse(spec)
    with pytest.raises(NoTheorem, match=why) as caught:
        method.settled(hand())
    assert "step" in str(caught.value) and "\n" not in str(caught.value)
    assert dataclasses.replace(method, step=0.1).settled(hand()).step == 0.1


@pytest.mark.parametrize("spec", ["vr_marina(randk(k=2), probability=0.5)", "dasha_sync_mvr(randk(k=2), 0.1, 0.5)"])
def test_what_needs_a_probe_at_one_point_says_so(spec: str) -> None:
    mechanism: Any = parse(spec)
    v = torch.ones(3, 5, dtype=torch.float64)
    with pytest.raises(ValueError, match="needs a probe"):
        Local(3).drive(mechanism.init(v, Link(Block.whole(3))))
    with pytest.raises(ValueError, match="one point for all workers"):
        Local(3).drive(mechanism.init(v, Link(Block.whole(3)), Probe(v, lambda y: y, lambda y: y)))


@pytest.mark.parametrize("spec", ["vr_marina(natural)", "dasha(natural)", "dasha_sync_mvr(natural)"])
def test_an_open_parameter_is_named(spec: str) -> None:
    mechanism: Any = parse(spec)
    v = torch.ones(3, 5, dtype=torch.float64)
    link, probe = Link(Block.whole(3)), Probe(v[0], lambda y: v, lambda y: v)
    (outcome,) = Local(3).drive(mechanism.init(v, link, probe))
    with pytest.raises(ValueError, match="use settled"):
        Local(3).drive(mechanism.exchange(v, outcome[1], link, probe))


# ---- Lyapunov functions as the entries have them ---------------------------------------------------------------------


def average_contracts(spec: str, problem: Any, warm: int, draws: int) -> None:
    """One round from one state, averaged over seeds, with its sampling error."""
    course = start(spec, problem).go(warm)
    solution, rate = course.problem.solution(), course.guarantee().rate
    assert solution is not None and rate is not None
    before, after = course.lyapunov(), []
    kept, step = {name: leaf.tensor.clone() for name, leaf in flatten(course.state).items()}, course.step
    for draw in range(draws):
        course.states = [restore(course.state, kept)]
        course.step = step + 1000 * draw
        after.append(course.go().lyapunov())
    error = float(np.std(after)) / math.sqrt(draws)
    assert float(np.mean(after)) <= rate * before + 4 * error
    assert error < 0.2 * before  # the average says something


@pytest.mark.parametrize("problem", [CONVEX, NONCONVEX_PARTS])
@pytest.mark.parametrize(
    "spec", ["dasha(randk(k=4))", "dasha(permk)", "dasha(natural)", "dasha(randk(k=4), momentum=0.05)"]
)
def test_dasha_contracts_on_average(spec: str, problem: str) -> None:
    average_contracts(spec, problem, warm=15, draws=60)


@pytest.mark.parametrize("spec", ["vr_marina(randk(k=1))", "vr_marina(permk)"])
def test_vr_marina_contracts_on_average(spec: str) -> None:
    average_contracts(f"gd({spec}, estimator=sgd)", arrays(), warm=15, draws=60)


@pytest.mark.parametrize("estimator", ["lsvrg", "lsvrg(batch=2, probability=0.7)", "saga", "saga(batch=3)"])
@pytest.mark.parametrize("compressor", ["natural", "randk(k=1)"])
def test_vr_diana_contracts_on_average(compressor: str, estimator: str) -> None:
    for warm in (0, 20):
        average_contracts(f"gd(diana({compressor}), estimator={estimator})", arrays(), warm, draws=60)


def test_the_lyapunov_function_of_vr_diana_by_the_formula() -> None:
    """omega = 2: ||x+ - x*||^2 + (8 s^2 / (n a)) mean ||h_i - grad f_i(x*)||^2 + (44 s^2 / n) mean aged."""
    problem = arrays()
    solution = problem.solution()
    oracles = problem.oracles(Block.whole(5))
    for estimator in ("lsvrg(batch=2, probability=0.3)", "saga(batch=2)"):
        course = start(f"gd(diana(randk(k=1)), estimator={estimator})", problem).go(12)
        state, method = course.state, course.method
        step: float = method.step
        aged = []
        for i, count in enumerate(oracles.terms().tolist()):
            total = 0.0
            for j in range(count):
                one = np.array([i]), Batch(np.array([i]), np.array([[j]]))
                there = (
                    state.estimator.terms[i, j]
                    if "saga" in estimator
                    else oracles.gradients(state.estimator.point[i], *one)[0]
                )
                total += size2((there - oracles.gradients(solution.x, *one)[0]).numpy()) / count
            aged.append(total / (1 - (1 - 1 / count) ** 2) if "saga" in estimator else total * 0.7 / 0.3)
        drift = ((state.memory.shift - oracles.gradients(solution.x)) ** 2).sum(1).mean()
        ahead = course.x - step * state.estimate - solution.x
        expected = size2(ahead.numpy()) + 8 * step**2 * 3 / 5 * float(drift) + 44 * step**2 / 5 * float(np.mean(aged))
        assert course.lyapunov() == pytest.approx(expected, rel=1e-10)


# ---- where they go ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spec", "iterations"),
    [
        ("gd(diana(natural), step=0.25, estimator=lsvrg(batch=2))", 600),
        ("gd(diana(natural), step=0.25, estimator=saga(batch=2))", 600),
        ("gd(dasha(natural), step=0.3, estimator=page(batch=2))", 600),
        ("gd(vr_marina(natural, probability=0.3), step=0.3, estimator=sgd(batch=2))", 600),
        ("gd(dasha_sync_mvr(natural, probability=0.3), step=0.3, estimator=sgd(batch=2))", 600),
    ],
)
def test_variance_reduction_goes_all_the_way(spec: str, iterations: int) -> None:
    problem = arrays()
    course = start(spec, problem).go(iterations)
    assert float((course.x - problem.solution().x).norm()) < 1e-10


def test_dasha_mvr_s_estimate_has_a_floor_that_falls_with_b() -> None:
    """The mean of ||g - grad f(x)||^2 over the last rounds, the start being exact: near the solution b sigma^2 / n."""
    problem, floors = arrays(), []
    for b in (1.0, 0.2, 0.02):
        course = start(f"gd(dasha(natural), step=0.02, estimator=mvr(rate={b}))", problem).go(150)
        away = [size2(course.go().state.estimate.numpy() - gradients(course).mean(0)) for _ in range(250)]
        floors.append(float(np.mean(away)))
    assert floors[1] < 0.4 * floors[0] and floors[2] < 0.4 * floors[1] and floors[2] > 1e-8


def test_a_theorem_s_step_is_taken() -> None:
    """A probability for all where workers have unequal numbers of terms."""
    problem = arrays(rows=43, d=5, l2=0.5)
    method: Any = method_of("gd(dasha(randk(k=0.5)), estimator=page(batch=2, probability=0.2))", problem)
    assert 0 < method.step < 1 / float(problem.constants().L)
    course = Course(method, problem, Local(5))
    first = float(course.oracles[0].gradients(course.x).mean(0).norm())
    assert float(course.go(300).oracles[0].gradients(course.x).mean(0).norm()) < first
