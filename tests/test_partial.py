"""Partial participation: who sleeps computes nothing, says nothing, hears nothing and keeps what it had."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from scipy.optimize import minimize_scalar
from torch import Tensor

from by_hand import RUNTIMES, Course, equal, hand, method_of, problem_of, start
from laconic.compressors.impk import Importance, ReweightedImpK
from laconic.core import rows
from laconic.core.link import Cohort, Link
from laconic.core.mechanism import Need
from laconic.core.problem import Batch, Block, Problem
from laconic.core.spec import parse
from laconic.core.state import Placement, flatten, put, restore, take
from laconic.core.theory import NoTheorem
from laconic.mechanisms.clag import CLAG
from laconic.mechanisms.direct import Direct
from laconic.mechanisms.ef21 import EF21
from laconic.mechanisms.importance import LocalImportance
from laconic.mechanisms.partial import PartialParticipation
from laconic.methods.gd import GD
from laconic.problems.custom import Custom
from laconic.runtime.local import Local
from planted import RoundRobin

SMALL = "quadratic(d=7, workers=4, noise=0.3, mu=0.1)"
CONVEX = "quadratic(d=20, workers=6, noise=0.2, mu=0.05)"
LOGISTIC = "logistic(data='breast_cancer', l2=0.01, workers=5)"
OTHERS = [name for name in RUNTIMES if name != "plain"]
PARTIAL = "gd(partial({}, probability={}), step={})"


@dataclass(frozen=True)
class LazyCLAG(CLAG):
    """CLAG among some of the workers: private decisions inside a cohort."""

    name = "lazy_clag"
    lazy = True


@dataclass(frozen=True)
class LazyImportance(LocalImportance):
    """Importances lent inside a cohort."""

    name = "lazy_importance"
    lazy = True


def arrays(workers: int = 5) -> Problem:
    """Workers with three or four terms each."""
    rng = np.random.default_rng(0)
    return Custom.from_arrays(rng.standard_normal((17, 6)), rng.choice([-1, 1], 17), workers=workers, l2=0.1)


def cohorts(course: Course, probability: float) -> np.ndarray:
    """Who takes part in the run's last iteration, drawn again."""
    link = Link(Block.whole(course.problem.n), seed=course.runtime.links[0]._root.seed)
    link.begin(course.step)
    members = link.scope("participation").bernoulli(probability).members
    assert members is not None
    return members


def gradients(course: Course) -> Tensor:
    return course.oracles[0].gradients(course.x)


def whole(course: Course) -> dict[str, Tensor]:
    parts = [flatten(state) for state in course.states]
    return {
        name: torch.cat([part[name].tensor for part in parts]) if leaf.placement is Placement.WORKER else leaf.tensor
        for name, leaf in parts[0].items()
    }


def same(course: Course, plain: Course) -> bool:
    one, other, states = course.runtime.ledger, plain.runtime.ledger, whole(course)
    return bool(
        (one.uplink == other.uplink).all()
        and (one.downlink == other.downlink).all()
        and (one.rounds, one.messages_up, one.messages_down) == (other.rounds, other.messages_up, other.messages_down)
        and all(equal(states[name], tensor) for name, tensor in whole(plain).items())
    )


def on(runtime: str, spec: Any, problem: Any, iterations: int) -> Course:
    return start(spec, problem, seed=3, runtime=runtime).go(iterations)


# ---- theory ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("p", [0.05, 0.3, 0.9])
@pytest.mark.parametrize("share", [1, 36, 100])
def test_the_step_of_ef21_pp_by_hand(p: float, share: int) -> None:
    """theta_p = p theta - (1 - p) rho, B_p = p beta + (1 - p) (1 + 1 / rho), rho by search."""
    theta = 1 - math.sqrt(1 - share / 100)
    beta = (1 - share / 100) / theta

    def slow(rho: float) -> tuple[float, float]:
        return p * theta - (1 - p) * rho, p * beta + (1 - p) * (1 + 1 / rho)

    found: Any = minimize_scalar(
        lambda z: slow(math.exp(z))[1] / slow(math.exp(z))[0],
        bounds=(math.log(1e-9 * p * theta), math.log(p * theta / (1 - p)) - 1e-9),
        method="bounded",
        options={"xatol": 1e-10},
    )
    a, b = slow(math.exp(found.x))
    for mu in (None, 0.5):
        setting = hand(mu=mu)
        promise = parse(f"gd(partial(ef21(topk(k={share})), probability={p}))").settled(setting).guarantee(setting)
        smooth = 1 / (2 + math.sqrt(14.5 * b / a))
        largest = smooth if mu is None else min(1 / (2 + math.sqrt(14.5 * 2 * b / a)), a / (2 * mu))
        assert promise.step == pytest.approx(largest, rel=1e-6)
        assert promise.rate == (None if mu is None else pytest.approx(1 - mu * largest, rel=1e-6))


@pytest.mark.parametrize("problem", [CONVEX, LOGISTIC])
@pytest.mark.parametrize(
    "spec", ["partial(ef21(topk(k=3)), probability=0.3)", "partial(ef21(identity), probability=0.6)",
             "partial(ef21_plus(topk(k=3)), probability=0.5)"],
)  # fmt: skip
def test_ef21_pp_contracts_on_average(spec: str, problem: str) -> None:
    """One step from one state, averaged over who takes part; G is about the gradients of those who sleep as well."""
    course = start(spec, problem).go(15)
    solution, rate, draws = course.problem.solution(), course.guarantee().rate, 80
    assert solution is not None and rate is not None
    kept, step, after = {n: leaf.tensor.clone() for n, leaf in flatten(course.state).items()}, course.step, []
    before = course.lyapunov()
    for draw in range(draws):
        course.states = [restore(course.state, kept)]
        course.step = step + 1000 * draw
        after.append(course.go().lyapunov())
    error = float(np.std(after)) / math.sqrt(draws)
    assert float(np.mean(after)) <= rate * before + 4 * error and error < 0.2 * before


def test_ef21_pp_converges_at_its_step() -> None:
    course = start("partial(ef21(topk(k=5)), probability=0.5)", "quadratic(d=8, workers=4, noise=0.2, mu=0.5)")
    solution = course.problem.solution()
    assert solution is not None
    assert rows.square(course.go(1500).x - solution.x) < 1e-10


@pytest.mark.parametrize(
    ("spec", "why"),
    [
        ("partial(ef14(topk(k=2)), probability=0.5)", "use ef21 inside"),
        ("partial(direct(natural), probability=0.5)", "no theorem"),
        ("partial(ef21(randk(k=2)), probability=0.5)", "contractive"),
        ("gd(partial(ef21(topk(k=2)), probability=0.5), estimator=sgd)", "full gradients"),
    ],
)
def test_a_combination_that_no_theorem_covers_says_why(spec: str, why: str) -> None:
    entry: Any = parse(spec)
    method: Any = entry if entry.kind == "method" else GD(entry)
    with pytest.raises(NoTheorem, match=why) as caught:
        method.settled(hand())
    assert "step" in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "inner", ["marina(permk)", "ef21_bc(topk(k=2))", "diana(natural)", "partial(ef21(topk(k=2)), probability=0.4)"]
)
def test_only_a_lazy_mechanism_is_taken(inner: str) -> None:
    with pytest.raises(ValueError, match=r"mechanism must be one in which a silent worker changes nothing") as caught:
        parse(f"partial({inner}, probability=0.5)")
    assert str(caught.value).startswith(f"PartialParticipation(mechanism={inner}") and "\n" not in str(caught.value)


def test_it_says_that_it_needs_a_driver_who_draws_cohorts() -> None:
    mechanism: Any = parse("partial(ef21(topk(k=2)), probability=0.5)")
    assert Need.COHORTS in mechanism.needs and not mechanism.lazy
    assert Need.COHORTS not in PartialParticipation(EF21(parse("topk(k=2)")), 1.0).needs  # type: ignore[arg-type]


# ---- who does what ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("inner", ["ef21(topk(k=2))", "ef14(topk(k=2))", "ef14_inside(natural)", "direct(randk(k=3))"])
def test_with_probability_one_it_is_the_mechanism_itself(inner: str) -> None:
    course, plain = (
        start(f"gd({spec}, step=0.1)", SMALL).go(20) for spec in (f"partial({inner}, probability=1.0)", inner)
    )
    assert same(course, plain)
    full, alone = (
        method_of(spec, problem_of(SMALL)) for spec in ("partial(ef21(topk(k=2)), probability=1)", "ef21(topk(k=2))")
    )
    assert full.step == alone.step


def test_ef21_pp_by_the_formula() -> None:
    course = start(PARTIAL.format("ef21(topk(k=2))", 0.4, 0.1), SMALL)
    shift, sizes = course.state.memory.shift.numpy().copy(), []
    for _ in range(40):
        v = gradients(course.go()).numpy()
        members = cohorts(course, 0.4)
        for i in members:
            change = v[i] - shift[i]
            places = np.argsort(-np.abs(change), kind="stable")[:2]
            shift[i, places] += change[places]
        sizes.append(len(members))
        assert np.allclose(course.state.memory.shift.numpy(), shift, rtol=1e-12, atol=1e-13)
        assert np.allclose(course.state.estimate.numpy(), shift.mean(0), rtol=1e-12, atol=1e-13)
    assert min(sizes) == 0 and max(sizes) > 2 and 40 < sum(sizes) < 90


@pytest.mark.parametrize("inner", ["ef21(topk(k=2))", "ef14(topk(k=2))", "direct(topk(k=2))", "econtrol(topk(k=2))"])
def test_only_those_who_take_part_compute_speak_and_hear(inner: str) -> None:
    course = start(PARTIAL.format(inner, 0.4, 0.05), arrays())
    oracles, ledger = course.oracles[0], course.runtime.ledger
    for _ in range(30):
        oracles.forget_calls()
        up, down, said, heard = ledger.uplink.copy(), ledger.downlink.copy(), ledger.messages_up, ledger.messages_down
        course.go()
        members = cohorts(course, 0.4)
        there = np.isin(np.arange(5), members)
        assert oracles.calls.gradient_terms == oracles.terms()[members].sum()
        assert (ledger.uplink - up == np.where(there, 2 * 8 + 1, 0)).all()
        assert (ledger.downlink - down == np.where(there, 6 * 8, 0)).all()
        assert ledger.messages_up - said == ledger.messages_down - heard == len(members)


def test_a_round_without_anybody_changes_nothing_but_x() -> None:
    """The estimate of EF21 stays, and x moves along it; direct has none."""
    for runtime in RUNTIMES:
        course = start(PARTIAL.format("ef21(topk(k=2))", 1e-12, 0.1), SMALL, runtime=runtime)
        up, memory, g, x = course.runtime.ledger.uplink.copy(), whole(course), course.state.estimate.clone(), course.x
        course.go(5)
        assert torch.allclose(course.x, x - 0.5 * g, rtol=1e-13) and (course.runtime.ledger.uplink == up).all()
        assert not course.runtime.ledger.downlink.any()
        after = whole(course)
        assert all(equal(after[name], memory[name]) for name in memory if name.startswith("memory"))
    silent = start(PARTIAL.format("direct(topk(k=2))", 1e-12, 0.1), SMALL).go(2)
    assert not silent.state.estimate.any()


# ---- the same everywhere ---------------------------------------------------------------------------------------------

INNER = [
    "ef21(topk(k=2))", "ef21(topk(k=2), start=identity)", "ef21_plus(topk(k=2))", "ef14(natural)", "ef14_inside(sign)",
    "direct(permk)", "ef1(topk_permk(k=1))", "ef2(topk_permk(k=1))", "econtrol(topk(k=2), control=0.2)",
    "delayed(ef21(topk(k=2)), delay=2)", EF21(RoundRobin()), LazyCLAG(parse("topk(k=2)"), trigger=0.5),  # type: ignore[arg-type]
    LazyImportance(Direct(ReweightedImpK(k=2)), steps=2, trial=0.5),
]  # fmt: skip


@pytest.mark.parametrize("runtime", OTHERS)
@pytest.mark.parametrize("inner", INNER, ids=str)
def test_every_lazy_mechanism_is_the_same_everywhere(inner: Any, runtime: str) -> None:
    mechanism: Any = parse(inner) if isinstance(inner, str) else inner
    method, problem = GD(PartialParticipation(mechanism, 0.4), step=0.1), arrays()
    course, plain = on(runtime, method, problem, 12), on("plain", method, problem, 12)
    assert same(course, plain) and torch.isfinite(plain.x).all()


@pytest.mark.parametrize("runtime", ["three parts", "encoded star"])
@pytest.mark.parametrize("estimator", ["sgd(batch=2)", "lsvrg(batch=2)"])
def test_estimators_in_a_cohort_are_the_same_everywhere(estimator: str, runtime: str) -> None:
    method = f"gd(partial(ef21(topk(k=2)), probability=0.5), step=0.1, estimator={estimator})"
    assert same(on(runtime, method, arrays(), 15), on("plain", method, arrays(), 15))


def test_a_sleeping_worker_keeps_its_reference_point() -> None:
    course = start("gd(partial(direct, probability=0.5), step=0.1, estimator=lsvrg(probability=1.0))", arrays())
    for _ in range(15):
        before = course.state.estimator.point.clone()
        course.go()
        there = np.isin(np.arange(5), cohorts(course, 0.5))
        point = course.state.estimator.point
        assert torch.equal(point[~torch.from_numpy(there)], before[~torch.from_numpy(there)])
        assert all(torch.equal(point[i], course.x) for i in np.flatnonzero(there))


def test_a_sleeping_workers_compressor_does_not_move_on() -> None:
    for runtime in RUNTIMES:
        course = start(GD(PartialParticipation(EF21(RoundRobin()), 0.4), step=0.1), arrays(), runtime=runtime)
        turns = np.arange(5) + 1
        for _ in range(12):
            turns[cohorts(course.go(), 0.4)] += 1
        leaves = [link.compressor_leaves()["/mechanism/up0#next"].tensor for link in course.runtime.links]
        assert torch.cat(leaves).tolist() == (turns % 6).tolist()


def test_private_decisions_inside_a_cohort_cost_only_its_members_a_flag() -> None:
    for runtime in RUNTIMES:
        method = GD(PartialParticipation(LazyCLAG(parse("identity"), trigger=2.0), 0.5), step=0.3)  # type: ignore[arg-type]
        course = start(method, arrays(), runtime=runtime)
        ledger, spoke, slept = course.runtime.ledger, 0, 0
        for _ in range(20):
            up, messages = ledger.uplink.copy(), ledger.messages_up
            course.go()
            there = np.isin(np.arange(5), cohorts(course, 0.5))
            spent = ledger.uplink - up
            assert (spent[~there] == 0).all() and set(spent[there].tolist()) <= {1, 1 + 6 * 8}
            assert ledger.messages_up - messages == (spent > 1).sum()
            spoke, slept = spoke + int((spent > 1).sum()), slept + int((spent == 1).sum())
        assert spoke > 0 and slept > 0  # both happened inside cohorts


# ---- the link among some ---------------------------------------------------------------------------------------------


def among(members: list[int], n: int = 5) -> tuple[Link, Link, Local]:
    runtime = Local(n)
    link = runtime.links[0]
    link.begin(1)
    return link, link.among(link.cohort(np.array(members, dtype=np.int64))), runtime


def test_a_cohort_sends_what_its_workers_would_send_among_all() -> None:
    """Same coins, same means: (1/n) times the sum over those who spoke."""
    v = torch.from_numpy(np.random.default_rng(0).standard_normal((5, 3, 4)))
    for members in ([], [1, 4], [0, 1, 2, 3, 4]):
        for spec in ("natural", "randk(k=4)", "topk(k=3)", "permk"):
            compressor: Any = parse(spec)
            link, some, runtime = among(members)
            (sent,) = runtime.drive(some.uplink(compressor, v[members].clone()))
            link.begin(1)
            (every,) = runtime.drive(link.uplink(compressor, v.clone()))
            assert sent.count == len(members) and equal(sent.own.dense(), every.own.dense()[members])
            total = torch.zeros(3, 4, dtype=torch.float64)
            for row in sent.own.dense():
                total = total + row * (1 / 5)
            assert torch.allclose(sent.mean.dense(), total, rtol=1e-13, atol=1e-15)


def test_draws_of_a_cohort_are_those_of_its_workers() -> None:
    link, some, _ = among([0, 3])
    assert torch.equal(some.coins(0.5), Link.coins(_again(link), 0.5)[[0, 3]])
    assert some.local == 2 and link.local == 5
    link.begin(1)
    coin = some.scope("a").coin(0.5)
    link.begin(1)
    assert coin == link.scope("a").coin(0.5)


def _again(link: Link) -> Link:
    link.begin(1)
    return link


def test_volunteers_inside_a_cohort() -> None:
    v = torch.arange(15.0, dtype=torch.float64).view(5, 3)
    _, some, runtime = among([1, 2, 4])
    who = some.volunteers(torch.tensor([True, False, True]))
    (sent,) = runtime.drive(some.uplink(None, v[[1, 4]], who))
    expected = torch.stack([v[1], torch.zeros(3, dtype=torch.float64), v[4]])
    assert torch.equal(sent.own.dense(), expected) and sent.count == 2
    assert runtime.ledger.uplink.tolist() == [0, 25, 1, 0, 25]


def test_states_that_are_lent_inside_and_outside_a_cohort() -> None:
    weights = torch.from_numpy(np.random.default_rng(1).uniform(1, 2, (5, 4)))
    v = torch.ones(5, 4, dtype=torch.float64)
    compressor, runtime = ReweightedImpK(k=1), Local(5)
    link = runtime.links[0]
    link.begin(1)
    cohort = link.cohort(np.array([0, 3]))
    for some in (
        link.lending(Importance(weights)).among(cohort),
        link.among(cohort).lending(Importance(weights[[0, 3]])),
    ):
        (sent,) = runtime.drive(some.uplink(compressor, v[[0, 3]]))
        assert torch.equal(sent.own.dense().argmax(1), weights[[0, 3]].argmax(1))
        who = some.volunteers(torch.tensor([False, True]))
        (sent,) = runtime.drive(some.uplink(compressor, v[[3]], who))
        assert torch.equal(sent.own.dense()[1].argmax(), weights[3].argmax()) and not sent.own.dense()[0].any()


def test_what_needs_all_workers_is_refused_in_a_cohort() -> None:
    _, some, runtime = among([0, 2])
    v = torch.ones(2, 3, dtype=torch.float64)
    for text in (lambda: some.sample(1), lambda: some.bernoulli(0.5), lambda: some.among(Cohort(np.arange(1), None))):
        with pytest.raises(ValueError, match=r"needs all workers|inside a cohort"):
            text()
    with pytest.raises(ValueError, match="all-reduce needs all workers"):
        runtime.drive(some.all_reduce(v))
    with pytest.raises(ValueError, match="uplink of 5 rows for 2 speaking workers"):
        runtime.drive(some.uplink(None, torch.ones(5, 3, dtype=torch.float64)))


def test_matrices_with_a_warm_start_in_a_cohort() -> None:
    """Power iteration's subspace moves on for those who speak; in any number of parts and encoded alike."""
    rng = np.random.default_rng(0)
    steps = [torch.from_numpy(rng.standard_normal((5, 6, 4))) for _ in range(6)]
    parties = [[0, 3], [], [1, 2, 3, 4], [4], [0, 1, 2, 3, 4]]
    found = {}
    for name, make in RUNTIMES.items():
        runtime, mechanism = make(5, 1), EF21(parse("power_iteration(rank=1)"))  # type: ignore[arg-type]
        for link in runtime.links:
            link.begin(0)
        blocks = [slice(link.block.low, link.block.high) for link in runtime.links]
        pairs = zip(blocks, runtime.links, strict=True)
        memories = [reply[1] for reply in runtime.drive(*(mechanism.init(steps[0][b], link) for b, link in pairs))]
        for step, members in enumerate(parties, 1):
            texts, whos = [], []
            for memory, block, link in zip(memories, blocks, runtime.links, strict=True):
                link.begin(step)
                who = link.cohort(np.array(members, dtype=np.int64))
                v = steps[step][block][torch.from_numpy(who.rows)]
                texts.append(mechanism.exchange(v, take(memory, who.rows), link.among(who)))
                whos.append(who)
            replies = runtime.drive(*texts)
            memories = [put(m, who.rows, r[1]) for m, who, r in zip(memories, whos, replies, strict=True)]
        right = torch.cat([link.compressor_leaves()["/up0#right"].tensor for link in runtime.links])
        found[name] = [torch.cat([m.shift for m in memories]), memories[0].estimate, right]
    for name in OTHERS:
        assert all(equal(a, b) for a, b in zip(found[name], found["plain"], strict=True)), name
    assert torch.allclose(found["plain"][1], found["plain"][0].mean(0), rtol=1e-12, atol=1e-13)


def test_oracles_among_some_rows() -> None:
    oracles = problem_of(arrays()).host(Block.whole(5))
    chosen = np.array([1, 4])
    some, x = oracles.among(chosen), torch.ones(6, dtype=torch.float64)
    assert equal(some.gradients(x), oracles.gradients(x, chosen)) and equal(some.values(x), oracles.values(x)[chosen])
    assert equal(some.gradients(x, np.array([1])), oracles.gradients(x, np.array([4])))
    points = torch.stack([x, 2 * x])
    assert equal(some.gradients(points), oracles.gradients(points, chosen))
    batch = Batch(np.arange(2), np.array([[0, 1], [2, 0]]))
    assert equal(some.gradients(x, batch=batch), oracles.gradients(x, chosen, Batch(chosen, batch.indices)))
    assert equal(some.hessians(x).clone(), oracles.hessians(x, chosen).clone())
    assert some.terms().tolist() == oracles.terms()[chosen].tolist() and equal(some.start(), oracles.start())
    oracles.forget_calls()
    fresh = oracles.among(chosen)
    fresh.gradients(x)
    assert oracles.calls.gradient_terms == fresh.calls.gradient_terms == oracles.terms()[chosen].sum()
    none = oracles.among(np.zeros(0, dtype=np.int64))
    assert none.gradients(x).shape == (0, 6) and none.values(x).shape == (0,)
    assert equal(some.server.gradients(x), oracles.server.gradients(x))
    again = some.among(np.array([1]))
    assert equal(again.gradients(x), oracles.gradients(x, np.array([4])))
