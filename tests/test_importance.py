"""Mechanisms that lend importances: by the formula, everywhere alike, and what theory says of them."""

from __future__ import annotations

import dataclasses
from typing import Any, cast

import numpy as np
import pytest
import torch

import laconic
from by_hand import RUNTIMES, Course, equal, hand, method_of, problem_of, setting_of, start
from laconic.compressors.impk import Importance, ReweightedImpK
from laconic.compressors.topk import TopK
from laconic.core.estimator import Probe
from laconic.core.link import Link
from laconic.core.problem import Block
from laconic.core.spec import parse
from laconic.core.state import Placement
from laconic.core.theory import NoTheorem
from laconic.mechanisms.domains import Cube
from laconic.mechanisms.importance import LocalImportance
from laconic.methods.gd import GD
from laconic.runtime.local import Local
from sending import send
from test_impk import lent, some
from test_star import resumed, runs, same, whole

SMALL = "quadratic(d=7, workers=5, noise=0.3, mu=0.1)"
ALONE = "quadratic(d=9, workers=1, noise=0.3, mu=0.1)"


# ---- each worker's own importances -----------------------------------------------------------------------------------


def test_local_importance_by_the_formula() -> None:
    """Warm start, every second exchange, each worker on its own function; the server sees TopK of w . g."""
    spec = "gd(local_importance(direct(reweighted_impk(k=2)), steps=3, every=2, step=0.2, trial=0.4), step=0.1)"
    course = start(spec, SMALL)
    oracles, d = course.oracles[0], 7
    w, x = np.full((5, d), 1.5), course.oracles[0].start()
    for exchange in range(8):
        if exchange:
            course.go()
        g = oracles.gradients(x).numpy()
        for _ in range(3 if exchange % 2 == 0 else 0):
            q = -g * oracles.gradients(torch.from_numpy(x.numpy() - 0.4 * w * g)).numpy()
            w = np.clip(w - 0.2 * q / np.abs(q).max(1, keepdims=True), 1.0, 2.0)
        assert np.allclose(course.state.memory.weights.numpy(), w, rtol=1e-12)
        assert course.state.memory.round == exchange + 1
        product = w * g
        out = np.zeros((5, d))
        for row in range(5):
            kept = np.argsort(-np.abs(product[row]), kind="stable")[:2]
            out[row, kept] = product[row, kept]
        assert np.allclose(course.state.estimate.numpy(), out.mean(0), rtol=1e-11, atol=1e-14)
        assert equal(course.x, x)
        x = x - 0.1 * course.state.estimate


def test_the_search_costs_gradients_and_no_bytes() -> None:
    plain, ours = (
        start("gd(direct(topk(k=2)), step=0.1)", SMALL),
        start("gd(local_importance(direct(reweighted_impk(k=2)), steps=4, every=3), step=0.1)", SMALL),
    )
    for course in (plain, ours):
        course.go(8)
    terms = [course.oracles[0].asked().gradient_terms for course in (plain, ours)]
    assert terms == [9 * 5, (9 + 3 * 4) * 5]  # nine exchanges, of which those numbered 0, 3 and 6 search
    assert (plain.runtime.ledger.downlink == ours.runtime.ledger.downlink).all()
    most = 5 * 9 * (16 + 2)  # two values and their indices
    assert plain.runtime.ledger.uplink.sum() <= most and ours.runtime.ledger.uplink.sum() <= most
    assert plain.runtime.ledger.rounds == ours.runtime.ledger.rounds


def test_a_trace_of_the_lab_counts_the_searches() -> None:
    specs = ["gd(direct(topk(k=2)), step=0.1)", "gd(importance(direct(reweighted_impk(k=2)), steps=4), step=0.1)"]
    found = laconic.run(SMALL, specs, iterations=6)
    grads = [name for name in found.trace.columns if "gradient" in name and "norm" not in name]
    assert grads, list(found.trace.columns)
    table: Any = found.trace
    last = [float(table[table["method"] == name][grads[0]].max()) for name in sorted(set(table["method"]))]
    assert max(last) == 5 * min(last) > 0


def test_a_minibatch_is_searched_on_the_same_minibatch() -> None:
    """The gradients of the trial points come from the terms that made v, not from others."""
    asked: list[Any] = []
    problem = problem_of("logistic(data='breast_cancer', l2=0.01, workers=3)")
    method = method_of("gd(local_importance(direct(impk(k=3)), steps=2), step=0.1, estimator=sgd(batch=4))", problem)
    oracles = problem.host(Block.whole(3))
    plain = oracles.gradients
    oracles.gradients = lambda x, rows=None, batch=None: asked.append(batch) or plain(x, rows, batch)  # type: ignore
    Course(method, problem, Local(3), [oracles]).go(2)
    assert len(asked) == 9 and all(asked[3 * i] is batch for i in range(3) for batch in asked[3 * i : 3 * i + 3])
    assert asked[0] is not asked[3]


# ---- the server's, and those that all know ---------------------------------------------------------------------------


def test_server_importance_by_the_formula() -> None:
    spec = "gd(server_importance(direct(impk(k=2)), simplex, steps=2, every=3, step=0.5, trial=0.4), step=0.1)"
    course, plain = start(spec, SMALL), start("gd(direct(impk(k=2)), step=0.1)", SMALL)
    own = problem_of(SMALL).oracles(Block(0, 1, 5))
    w, x, before = np.ones(7), own.start(), 0
    for exchange in range(7):
        if exchange:
            course.go()
            plain.go()
        if exchange % 3 == 0:
            g = own.gradients(x)[0].numpy()
            for _ in range(2):
                q = -g * own.gradients(torch.from_numpy(x.numpy() - 0.4 * w * g))[0].numpy()
                w = w * np.exp(-0.5 * q / np.abs(q).max())
                w = 7 * w / w.sum()
        assert np.allclose(course.state.memory.weights.numpy(), w, rtol=1e-12)
        extra = course.runtime.ledger.downlink - plain.runtime.ledger.downlink
        assert (extra - before == (7 * 8 if exchange % 3 == 0 else 0)).all()
        before = extra
        kept = np.sort(np.argsort(-w, kind="stable")[:2])
        assert set(course.state.estimate.nonzero()[:, 0].tolist()) <= set(kept.tolist())
        x = x - 0.1 * course.state.estimate
    assert course.oracles[0].asked().server_terms == 3 * 3  # at exchanges 0, 3 and 6: one gradient and two trials
    assert course.oracles[0].asked().gradient_terms == 7 * 5


def test_shared_importance_keeps_the_support_of_the_last_estimate() -> None:
    course = start("gd(shared_importance(direct(reweighted_impk(k=7)), step=0.4, every=2), step=0.1)", SMALL)
    w, last = np.full(7, 1.5), course.state.estimate.clone()
    for exchange in range(6):
        if exchange:
            down = course.runtime.ledger.downlink.copy()
            course.go()
            due = (exchange - 1) % 2 == 0
            assert (course.runtime.ledger.downlink - down == (112 if due else 56)).all()  # x, and the estimate
            if due:
                square = last.numpy() ** 2
                w = np.clip(1.5 + 0.4 * square / square.max(), 1.0, 2.0)
        assert np.allclose(course.state.memory.weights.numpy(), w, rtol=1e-13)
        assert equal(course.state.memory.estimate, course.state.estimate)
        expected = (torch.from_numpy(w) * course.oracles[0].gradients(course.x)).mean(0)
        assert torch.allclose(course.state.estimate, expected, rtol=1e-12, atol=1e-14)
        last = course.state.estimate.clone()
    assert course.oracles[0].asked().gradient_terms == (6 + 6) * 5  # those of this test among them: none for the search


def test_a_public_estimate_makes_shared_importances_free() -> None:
    spec = "gd({}ef21_bc(scaled_reweighted_impk(k=3), topk(k=2)){}, step=0.05)"
    course, plain = start(spec.format("shared_importance(", ")"), SMALL), start(spec.format("", ""), SMALL)
    assert course.method.mechanism.public and not course.method.mechanism.needs  # type: ignore[attr-defined]
    for one in (course, plain):
        one.go(6)
    assert (course.runtime.ledger.downlink == plain.runtime.ledger.downlink).all()
    assert not equal(course.x, plain.x)
    square = course.go().state.memory.estimate ** 2  # the next importances
    expected = (1.5 + 0.3 * square / square.max()).clamp(max=2.0)
    assert torch.allclose(course.go().state.memory.weights, expected, rtol=1e-13)


# ---- what the link lends ---------------------------------------------------------------------------------------------


def test_a_link_lends_to_the_speaking_rows_and_keeps_nothing() -> None:
    v, w = some(5, 6)
    link = Link(Block.whole(5))
    inner = link.lending(Importance(w)).scope("deeper")
    who = inner.cohort(np.array([1, 4]))
    packet = inner.compress(ReweightedImpK(2), v[[1, 4]], who)
    expected = lent(ReweightedImpK(2), v[[1, 4]], w[[1, 4]], packet.keys)
    assert equal(packet.decoded.dense(), expected) and packet.state is None
    assert link.compressor_leaves() == {}
    own = link.scope("other").compress(ReweightedImpK(2), v)  # not lent: its own, which the link keeps
    assert equal(own.decoded.dense(), send(TopK(2), v, own.keys))
    assert {name: leaf.placement for name, leaf in link.compressor_leaves().items()} == {
        "/other/up0#weights": Placement.WORKER
    }


def test_the_server_s_compressor_is_lent_nothing() -> None:
    """Downwards a compressor works with importances of its own, all 1."""
    spec = "gd(local_importance(ef21_bc(scaled_reweighted_impk(k=3), {})), step=0.05)"
    ours, plain = (start(spec.format(down), SMALL).go(6) for down in ("reweighted_impk(k=2)", "topk(k=2)"))
    assert equal(ours.x, plain.x) and ours.x.any()


# ---- everywhere alike ------------------------------------------------------------------------------------------------

LENDERS = [
    "local_importance(direct(random_reweighted_impk(k=2)), simplex, steps=2, every=3)",
    "local_importance(clag(scaled_reweighted_impk(k=2), trigger=1.0), steps=2, every=2)",
    "local_importance(ef14_inside(scaled_reweighted_impk(k=2)))",
    "server_importance(ef21(random_impk(k=2)), every=2)",
    "server_importance(ef14(impk(k=2)), cube(low=0.5, high=3.0), every=3, steps=2)",
    "shared_importance(direct(random_impk(k=2)), simplex, every=2)",
    "shared_importance(ef21_bc(scaled_reweighted_impk(k=2), topk(k=3)))",
    "local_importance(shared_importance(direct(reweighted_impk(k=2))))",
]


@pytest.mark.parametrize("runtime", [name for name in RUNTIMES if name != "plain"])
@pytest.mark.parametrize("spec", LENDERS)
def test_importances_are_the_same_everywhere(spec: str, runtime: str) -> None:
    problem = problem_of(SMALL)
    method = method_of(GD(cast(Any, parse(spec)), step=0.1), problem)
    assert same(runs(method, problem, runtime), runs(method, problem, "plain"))


@pytest.mark.parametrize(("before", "after"), [("plain", "three parts"), ("three parts", "star"), ("star", "plain")])
@pytest.mark.parametrize("spec", LENDERS)
def test_importances_survive_a_resume_on_other_parties(spec: str, before: str, after: str) -> None:
    """They are of the memory: two exchanges after the search, one before the next."""
    problem = problem_of(SMALL)
    method = method_of(GD(cast(Any, parse(spec)), step=0.1, estimator=cast(Any, parse("lsvrg(batch=2)"))), problem)
    straight, second = resumed(method, problem, before, after)
    assert equal(second.x, straight.x)
    states = whole(second)
    assert all(equal(states[name], tensor) for name, tensor in whole(straight).items())
    assert "memory.weights" in states and states["memory.weights"].unique().numel() > 1


# ---- what theory says ------------------------------------------------------------------------------------------------


def theorem(low: float, high: float, k: int, step: float | None, setting: Any) -> Any:
    mechanism = LocalImportance(cast(Any, parse(f"direct(reweighted_impk(k={k}))")), Cube(low, high), trial=0.1)
    return mechanism.guarantee(setting, cast(Any, parse("full")), step)


def test_the_theorem_s_numbers() -> None:
    """On [1, 2] the slides': 1 - mu step (1 - L step) k / d, and mu / (4 L) k / d at the best step 1 / (2 L)."""
    setting = hand(n=1)  # L = 2, mu = 0.5, d = 100
    promise = theorem(1.0, 2.0, 10, None, setting)
    assert promise.step == 0.25 and promise.rate == pytest.approx(1 - 0.5 / (4 * 2) * 0.1, rel=1e-14)
    for step in (0.1, 0.25, 0.3, 0.49):
        found = theorem(1.0, 2.0, 10, step, setting)
        assert found.step >= step and found.rate == pytest.approx(1 - 0.5 * step * (1 - 2 * step) * 0.1, rel=1e-14)
        assert found.rate >= promise.rate
    assert theorem(1.0, 2.0, 10, 0.5, setting).rate is None
    wide_cube = theorem(0.5, 4.0, 10, 0.1, setting)
    assert wide_cube.rate == pytest.approx(1 - 2 * 0.5 * 0.1 * (1 - 2 * 0.1 * 2) * (0.25 / 4) * 0.1, rel=1e-14)


@pytest.mark.parametrize("high", [0.5, 1.0, 3.0])
def test_the_theorem_is_tight_on_a_line(high: float) -> None:
    """d = k = 1 and one importance: f contracts by (1 - L step high)^2, which is the theorem's factor."""
    spec = f"local_importance(direct(reweighted_impk(k=1)), cube(low={high}, high={high}))"
    problem = problem_of("quadratic(d=1, workers=1, noise=0.0, mu=1.0)")
    smooth = float(problem.constants().L)
    for share in (0.3, 0.9, 1.7):
        step = share / (smooth * high)
        course = start(f"gd({spec}, step={step!r})", problem)
        assert course.guarantee().rate == pytest.approx((1 - share) ** 2, rel=1e-6)
        solution = problem.solution()
        assert solution is not None
        before = float((course.x - solution.x).norm()) ** 2
        after = float((course.go().x - solution.x).norm()) ** 2
        assert after == pytest.approx((1 - share) ** 2 * before, rel=1e-6)


@pytest.mark.parametrize("cube", ["", "cube(low=0.5, high=1.5), ", "cube(low=1.0, high=4.0), "])
@pytest.mark.parametrize("kind", ["local", "server", "shared"])
def test_the_theorem_s_contraction_is_never_violated(kind: str, cube: str) -> None:
    for seed, (k, share) in enumerate([(1, 1.0), (3, 1.0), (2, 0.3), (2, 1.8), (9, 1.9)]):
        problem = problem_of(f"quadratic(d=9, workers=1, noise=0.3, mu=0.05, seed={seed})")
        spec = f"{kind}_importance(direct(reweighted_impk(k={k})), {cube}step=0.5)"
        best = method_of(spec, problem).guarantee(setting_of(problem)).step
        course, solution = start(f"gd({spec}, step={share * best!r})", problem), problem.solution()
        rate = course.guarantee().rate
        assert solution is not None and rate is not None and 0 < rate < 1
        now = course.lyapunov()
        for _ in range(40):
            last, now = now, course.go().lyapunov()
            assert now <= rate * last * (1 + 1e-9) + 1e-15


def test_error_feedback_keeps_its_theorem_with_the_scaled_form() -> None:
    """The Lyapunov function of EF21 contracts, whatever the importances; it sees the memory inside."""
    problem = problem_of(SMALL)
    course = start("local_importance(ef21(scaled_reweighted_impk(k=3)), steps=2, step=1.0)", problem)
    plain = method_of("ef21(scaled_reweighted_impk(k=3))", problem)
    promise, solution = course.guarantee(), problem.solution()
    assert cast(Any, course.method).step == cast(Any, plain).step == promise.step
    assert promise.rate is not None and solution is not None
    now = course.lyapunov()
    for _ in range(60):
        last, now = now, course.go().lyapunov()
        assert now <= promise.rate * last * (1 + 1e-12) + 1e-18
    assert course.state.memory.weights.unique().numel() > 2


@pytest.mark.parametrize(
    ("spec", "reason"),
    [
        ("local_importance(direct(reweighted_impk(k=2)))", "one worker with full gradients"),
        ("gd(local_importance(direct(reweighted_impk(k=2))), estimator=sgd)", "one worker with full gradients"),
        ("local_importance(ef21(impk(k=2)))", "needs a contractive compressor and impk"),
        ("local_importance(ef14(reweighted_impk(k=2)))", "needs a contractive compressor and reweighted_impk"),
        ("local_importance(ef21(random_reweighted_impk(k=2)))", "needs a contractive compressor"),
        ("shared_importance(direct(random_impk(k=2)))", "no theorem covers"),
    ],
)
def test_there_is_no_theorem_and_a_reason(spec: str, reason: str) -> None:
    with pytest.raises(NoTheorem, match=reason):
        method_of(spec, problem_of(SMALL))


def test_what_the_mechanism_inside_refuses_is_refused() -> None:
    with pytest.raises(ValueError, match=r"marina\(random_impk\(k=2\)\) needs an unbiased compressor"):
        method_of("gd(server_importance(marina(random_impk(k=2))), step=0.1)", problem_of(SMALL))


@pytest.mark.parametrize("domain", ["simplex", "cube(low=0.0, high=1.0)"])
def test_there_is_no_theorem_where_importances_may_vanish(domain: str) -> None:
    with pytest.raises(NoTheorem, match="must lie between two positive numbers"):
        method_of(f"local_importance(direct(reweighted_impk(k=2)), {domain})", problem_of(ALONE))


# ---- what is refused -------------------------------------------------------------------------------------------------


def said_by(mechanism: Any, probe: Probe | None) -> str:
    runtime = Local(3)
    with pytest.raises(ValueError) as caught:
        runtime.drive(mechanism.init(torch.ones(3, 4, dtype=torch.float64), runtime.links[0], probe))
    return str(caught.value)


def test_without_a_probe_they_refuse_by_name() -> None:
    local: Any = parse("local_importance(direct(impk(k=2)), trial=0.1)")
    server: Any = parse("server_importance(direct(impk(k=2)), trial=0.1)")
    at = torch.zeros(4, dtype=torch.float64)
    blind = Probe(at, lambda x: x, lambda x: x)
    assert (
        said_by(local, None)
        == f"{local} needs a probe (gradients at other points on the same data), and was given none"
    )
    for probe in (None, blind):
        assert said_by(server, probe).startswith(f"{server} needs a probe with a function of the server's")
    apart = dataclasses.replace(blind, at=at.expand(3, 4), server=lambda x: x)
    assert "every worker has its own" in said_by(server, apart)
    for mechanism in (local, server):
        whose = dataclasses.replace(blind, server=lambda x: x)
        assert "has no trial; use settled(), or give trial=" in said_by(
            dataclasses.replace(mechanism, trial=None), whose
        )


@pytest.mark.parametrize("kind", ["local", "server", "shared"])
def test_a_mechanism_without_a_use_for_importances_is_refused(kind: str) -> None:
    with pytest.raises(
        ValueError, match=r"Importance\(mechanism=ef21\(topk\(k=2\)\)\) : mechanism must hold a compressor"
    ):
        parse(f"{kind}_importance(ef21(topk(k=2)))")


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("cube(low=2.0, high=1.0)", r"Cube\(high=1.0\) : high must be at least low=2.0"),
        ("scaled_reweighted_impk(k=2, low=2.0, high=1.0)", r"ScaledReweightedImpK\(high=1.0\) : high must be at least"),
        (
            "local_importance(direct(impk(k=2)), topk(k=1))",
            r"LocalImportance\(domain=topk\(k=1\)\) : domain must be a dom",
        ),
    ],
)
def test_wrong_bounds(spec: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse(spec)


def test_what_a_wrapper_passes_on() -> None:
    inside: Any = parse("local_importance(ef14_inside(impk(k=2)))")
    assert inside.takes_step and not inside.public and inside.settled(hand()).trial == 1.0
    assert cast(Any, parse("local_importance(direct(impk(k=2)))")).settled(hand()).trial == 0.5  # 1 / L
    need: Any = parse("shared_importance(marina(impk(k=2)))")
    assert {one.name for one in need.needs} == {"FULL_GRADIENTS", "UNBIASED"}
    both: Any = parse("local_importance(marina(impk(k=2)))")
    assert {one.name for one in both.needs} == {"FULL_GRADIENTS", "PROBE", "UNBIASED"}
    assert need.settled(hand()).mechanism.probability == pytest.approx(0.02)
