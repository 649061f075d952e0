"""One text everywhere: the simulator, several parties, real bytes and the star agree; cheats are caught there."""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from by_hand import RUNTIMES, Course, equal, method_of, problem_of
from laconic.checks.course import with_parameter
from laconic.core.compressor import as_joint
from laconic.core.link import Link
from laconic.core.problem import Problem
from laconic.core.registry import catalogue
from laconic.core.spec import example, parse
from laconic.core.state import Leaf, Placement, flatten, restore
from laconic.core.theory import NoTheorem
from laconic.mechanisms.clag import CLAG
from laconic.mechanisms.ef21 import EF21
from laconic.mechanisms.marina import VRMARINA
from laconic.methods.gd import GD
from laconic.problems.custom import Custom
from laconic.runtime.local import Cheating, Diverged, Local
from planted import (
    Both,
    EndsEarly,
    HasAPrivateCoin,
    Planted,
    ReadsTheMean,
    RoundRobin,
    Silent,
    UsesBeforeBroadcast,
)

SMALL = "quadratic(d=7, workers=5, noise=0.1, mu=0.1)"
OTHERS = [name for name in RUNTIMES if name != "plain"]


def of_kind(kind: str) -> list[Any]:
    return [parse(example(cls)) for cls in catalogue().of_kind(kind)]


def arrays() -> Problem:
    """Five workers with three or four terms each."""
    rng = np.random.default_rng(0)
    return Custom.from_arrays(rng.standard_normal((17, 6)), rng.choice([-1, 1], 17), workers=5, l2=0.1)


def runs(spec: Any, problem: Problem, runtime: str, iterations: int = 8) -> Course:
    return Course(spec, problem, RUNTIMES[runtime](problem.n, 3)).go(iterations)


def whole(course: Course) -> dict[str, Tensor]:
    """Every tensor of a state: all workers' rows, and the server's values as the first party holds them."""
    parts = [flatten(state) for state in course.states]
    return {
        name: torch.cat([part[name].tensor for part in parts]) if leaf.placement is Placement.WORKER else leaf.tensor
        for name, leaf in parts[0].items()
    }


def same(course: Course, plain: Course) -> bool:
    """Point, state and ledger, bit for bit."""
    one, other = course.runtime.ledger, plain.runtime.ledger
    ledgers = (one.uplink == other.uplink).all() and (one.downlink == other.downlink).all()
    counts = (one.rounds, one.messages_up, one.messages_down) == (other.rounds, other.messages_up, other.messages_down)
    states = whole(course)
    return bool(
        ledgers
        and counts
        and equal(course.x, plain.x)
        and all(equal(states[name], tensor) for name, tensor in whole(plain).items())
    )


def settled(entry: Any, problem: Problem) -> Any:
    """With an explicit step where no theorem gives one."""
    try:
        return method_of(entry, problem)
    except NoTheorem:
        return method_of(GD(entry, step=0.05), problem)


MECHANISMS = [
    *of_kind("mechanism"),
    CLAG(parse("natural"), trigger=2.0),
    CLAG(parse("permk"), trigger=0.5),
    EF21(RoundRobin()),
    Both(EF21(parse("topk(k=1)")), parse("diana(natural, rate=0.5)")),
]
COMPRESSED = [
    f"{mechanism}({example(cls)}{extra})"
    for cls in catalogue().of_kind("compressor")
    for mechanism, extra in (
        ("direct", ""),
        ("ef21", ""),
        ("diana", ", rate=0.3"),
        ("marina", ", probability=0.4"),
        ("ef14", ""),
    )
    if mechanism != "marina" or as_joint(parse(example(cls)).claim(7, 4), 4) is not None  # it refuses biased ones
]


@functools.lru_cache(maxsize=4)  # the runtimes of one method come one after another
def settled_and_run(spec: Any) -> tuple[Any, Course]:
    """A method on the small problem, and its run on the plain simulator."""
    problem = problem_of(SMALL)
    method = settled(spec, problem)
    return method, runs(method, problem, "plain")


@pytest.mark.parametrize("runtime", OTHERS)
@pytest.mark.parametrize("spec", [*of_kind("method"), *MECHANISMS], ids=str)
def test_every_method_and_mechanism_is_the_same_everywhere(spec: Any, runtime: str) -> None:
    method, plain = settled_and_run(spec)
    assert same(runs(method, problem_of(SMALL), runtime), plain)


@pytest.mark.parametrize("spec", COMPRESSED)
def test_every_compressor_is_the_same_everywhere_in_every_role(spec: str) -> None:
    problem = problem_of(SMALL)
    method = method_of(GD(parse(spec), step=0.05), problem)
    plain = runs(method, problem, "plain", 5)
    for runtime in OTHERS:
        assert same(runs(method, problem, runtime, 5), plain), runtime


@pytest.mark.parametrize("runtime", OTHERS)
@pytest.mark.parametrize("estimator", of_kind("estimator"), ids=str)
def test_every_estimator_is_the_same_everywhere(estimator: Any, runtime: str) -> None:
    problem = arrays()
    for mechanism in (parse("direct"), VRMARINA(parse("randk(k=2)"), 0.25)):
        method = method_of(GD(mechanism, step=0.1, estimator=estimator), problem)
        assert same(runs(method, problem, runtime), runs(method, problem, "plain"))


def exchanges(mechanism: Any, runtime: Local, shape: tuple[int, ...]) -> tuple[list[Tensor], dict[str, Tensor]]:
    """Estimates of four rounds on tensors of a shape as the server has them, and the memories of all workers."""
    estimates, memories = [], []
    for step in range(4):
        v = torch.from_numpy(np.random.default_rng(step).standard_normal((runtime.n, *shape)))
        texts = []
        for party, link in enumerate(runtime.links):
            link.begin(step)
            own = v[link.block.low : link.block.high].clone()
            texts.append(mechanism.init(own, link) if not step else mechanism.exchange(own, memories[party], link))
        replies = runtime.drive(*texts)
        memories = [memory for _, memory in replies]
        estimates.append(replies[0][0].clone())
    parts = [flatten(memory) for memory in memories]
    return estimates, {
        name: torch.cat([part[name].tensor for part in parts]) if leaf.placement is Placement.WORKER else leaf.tensor
        for name, leaf in parts[0].items()
    }


@pytest.mark.parametrize("shape", [(9, 13), (33, 17), (3, 4, 5), (1,)])
@pytest.mark.parametrize(
    "spec",
    [
        "powersgd(rank=1)",
        "powersgd(rank=2)",
        "ef21(topk(k=0.1))",
        "ef14(natural)",
        "diana(permk, rate=0.2)",
        "ef21_bc(topk(k=0.1), natural)",
        "marina(randk(k=0.2), probability=0.5)",
    ],
)
def test_tensors_of_any_shape_are_the_same_everywhere(spec: str, shape: tuple[int, ...]) -> None:
    mechanism = parse(spec)
    for name, make in RUNTIMES.items():
        runtime, plain = make(5, 1), Local(5, seed=1)
        (estimates, memory), (expected, kept) = exchanges(mechanism, runtime, shape), exchanges(mechanism, plain, shape)
        assert all(equal(a, b) for a, b in zip(estimates, expected, strict=True)), name
        assert all(equal(memory[key], tensor) for key, tensor in kept.items()), name
        assert (runtime.ledger.uplink == plain.ledger.uplink).all()


def test_one_worker_and_one_coordinate() -> None:
    """n = 1 and d = 1, where fractions of coordinates and differences of workers vanish."""
    for size in ("d=1, workers=1", "d=1, workers=4", "d=6, workers=1"):
        problem = problem_of(f"quadratic({size}, noise=0.1, mu=0.1)")
        for spec in [*of_kind("mechanism"), *of_kind("method")]:
            alone = with_parameter(spec, cohort=1, wait=1, order=((0, 0), (0, 1), (0, 2)))
            method = settled(alone, problem)
            plain = runs(method, problem, "plain", 3)
            assert same(runs(method, problem, "encoded star", 3), plain) and torch.isfinite(plain.x).all(), (
                str(spec),
                size,
            )


# ---- what a star catches ---------------------------------------------------------------------------------------------


def test_a_star_holds_the_servers_values_in_one_place() -> None:
    course = runs(method_of("ef21(topk(k=2))", problem_of(SMALL)), problem_of(SMALL), "star")
    server, *workers = course.states
    assert torch.isfinite(server.x).all() and server.memory.shift.shape[0] == 0
    for state in workers:
        assert torch.isnan(state.x).all() and torch.isnan(state.memory.estimate).all()
        assert torch.isfinite(state.memory.shift).all()


@pytest.mark.parametrize("cheat", [UsesBeforeBroadcast(), ReadsTheMean()], ids=str)
def test_a_worker_that_uses_what_only_the_server_knows_is_caught(cheat: Planted) -> None:
    problem = problem_of(SMALL)
    for honest in ("plain", "three parts", "encoded"):
        assert torch.isfinite(runs(cheat, problem, honest, 2).x).all()  # nobody notices where all hold the server
    for star in ("star", "encoded star"):
        with pytest.raises(Cheating, match="was not broadcast"):
            runs(cheat, problem, star, 2)
        assert same(runs(Planted(), problem, star), runs(Planted(), problem, "plain"))  # and honest work passes


@pytest.mark.parametrize("cheat", [HasAPrivateCoin(), EndsEarly()], ids=str)
def test_a_decision_that_is_not_shared_is_caught(cheat: Planted) -> None:
    problem = problem_of(SMALL)
    runs(cheat, problem, "plain")
    with pytest.raises(Diverged, match="part"):
        runs(cheat, problem, "star")
    with pytest.raises(Diverged):
        runs(cheat, problem, "a part for each and two for none")


# ---- workers that say nothing ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("only", [-1, 0, 4])
def test_parties_where_nobody_speaks(only: int) -> None:
    """Each worker pays a byte of flag; the mean counts the silent as zero."""
    problem, method = problem_of(SMALL), Silent(only=only)
    plain = runs(method, problem, "plain", 3)
    assert plain.runtime.ledger.uplink.tolist() == [3 * (1 + 16 * (worker == only)) for worker in range(5)]
    assert plain.runtime.ledger.rounds == 3 and plain.state.memory == float(only >= 0)
    for runtime in OTHERS:
        course = runs(method, problem, runtime, 3)
        assert equal(course.x, plain.x) and (course.runtime.ledger.uplink == plain.runtime.ledger.uplink).all()
    assert equal(plain.x, plain.oracles[0].start()) == (only < 0)


# ---- what the kernel carries -----------------------------------------------------------------------------------------


def resumed(method: Any, problem: Problem, before: str, after: str) -> tuple[Course, Course]:
    """A run of ten iterations on one runtime, and one that changes runtime in the middle, as a checkpoint allows."""
    straight = runs(method, problem, before, 10)
    first, second = runs(method, problem, before, 4), Course(method, problem, RUNTIMES[after](problem.n, 3))
    _carry(first, second)
    second.step = 4
    return straight, second.go(6)


def _carry(first: Course, second: Course) -> None:
    parts = [flatten(state) for state in first.states]
    compressors = [link.compressor_leaves() for link in first.runtime.links]
    for place, link in enumerate(second.runtime.links):
        state = second.states[place]
        here = {name: _part(name, leaf, parts, link) for name, leaf in flatten(state).items()}
        second.states[place] = restore(state, {name: leaf.tensor for name, leaf in here.items()})
        link.restore_compressors({name: _part(name, leaf, compressors, link) for name, leaf in compressors[0].items()})


def _part(name: str, leaf: Leaf, parts: list[dict[str, Leaf]], link: Link) -> Leaf:
    """What a link holds of a leaf that the parties of another runtime held together."""
    every = parts[0][name].tensor
    if leaf.placement is Placement.WORKER:
        every = torch.cat([part[name].tensor for part in parts])[link.block.low : link.block.high]
    elif leaf.placement is Placement.SERVER and not link.holds_server:
        every = torch.full_like(every, math.nan)
    return dataclasses.replace(leaf, tensor=every)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("plain", "plain"),
        ("plain", "three parts"),
        ("three parts", "star"),
        ("a part for each and two for none", "encoded"),
    ],
)
@pytest.mark.parametrize(
    "mechanism",
    [
        VRMARINA(parse("randk(k=2)"), 0.25),
        EF21(RoundRobin()),
        parse("powersgd"),
        parse("clag(topk(k=2))"),
        Both(EF21(RoundRobin()), parse("diana(natural, rate=0.5)")),
    ],
    ids=str,
)
def test_a_checkpoint_goes_on_with_any_number_of_parties(mechanism: Any, before: str, after: str) -> None:
    problem = arrays()
    method = method_of(GD(mechanism, step=0.1, estimator=parse("lsvrg(batch=2)")), problem)
    straight, second = resumed(method, problem, before, after)
    assert equal(second.x, straight.x)
    states, expected = whole(second), whole(straight)
    assert all(equal(states[name], tensor) for name, tensor in expected.items())


def test_a_compressor_with_a_state_takes_turns() -> None:
    """In one block and in many; the state is the link's, by address, and marked as the workers'."""
    problem = problem_of(SMALL)
    for runtime in RUNTIMES:
        course = runs(method_of(GD(EF21(RoundRobin()), step=0.1), problem), problem, runtime, 9)
        leaves = [link.compressor_leaves() for link in course.runtime.links]
        assert all(leaf.placement is Placement.WORKER for part in leaves for leaf in part.values())
        assert {name.partition("#")[0] for part in leaves for name in part} == {"/mechanism/up0"}
        turns = torch.cat([part["/mechanism/up0#next"].tensor for part in leaves])
        assert turns.tolist() == [(worker + 10) % 7 for worker in range(5)]  # the start and nine iterations


def test_a_silent_worker_s_compressor_does_not_move_on() -> None:
    """With a cohort only the speakers' states advance, in every runtime alike."""
    problem = arrays()
    for runtime in RUNTIMES:
        course = runs(method_of(GD(CLAG(RoundRobin(), trigger=30.0), step=0.3), problem), problem, runtime, 12)
        turns = torch.cat([link.compressor_leaves()["/mechanism/up0#next"].tensor for link in course.runtime.links])
        messages = (course.runtime.ledger.uplink - 6 * 8 - 12) // 10  # less the start and a flag per iteration
        assert 0 < messages.sum() < 12 * 5 and messages.min() < messages.max()  # some were silent now and then
        assert turns.tolist() == [(worker + spoken) % 6 for worker, spoken in enumerate(messages.tolist())]


def test_the_probe_looks_at_the_same_minibatch_twice() -> None:
    """With the identity and one term per worker VR-MARINA's estimate is the full gradient, whatever the coin."""
    problem = problem_of(SMALL)
    exact, plain = (
        runs(method_of(GD(m, step=0.1), problem), problem, "plain", 20)
        for m in (VRMARINA(parse("identity"), 0.3), parse("direct"))
    )
    assert torch.allclose(exact.x, plain.x, rtol=1e-12, atol=1e-13)
    noisy = arrays()
    course = Course(
        method_of(GD(VRMARINA(parse("randk(k=2)"), 0.25), step=0.1, estimator=parse("sgd")), noisy), noisy, Local(5)
    )
    solution = noisy.solution()
    assert solution is not None
    # near x* both points give nearly the same: the difference's noise vanishes with the step, sgd's does not
    sgd = Course(method_of("gd(step=0.1, estimator=sgd(batch=1))", noisy), noisy, Local(5))
    assert float((course.go(2000).x - solution.x).norm()) < 1e-3 < 1e-2 < float((sgd.go(2000).x - solution.x).norm())
