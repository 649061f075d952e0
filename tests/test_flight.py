"""Texts and flights: what travels together, what a failure does, and what a failure leaves alone."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from by_hand import RUNTIMES, Course, equal, method_of, problem_of, start
from laconic.core.flight import Ask, Flight, drive, together
from laconic.core.link import Link
from laconic.core.problem import Block
from laconic.core.registry import catalogue
from laconic.core.spec import example, parse
from laconic.core.state import flatten
from laconic.core.theory import NoTheorem
from laconic.mechanisms.ef21 import EF21
from laconic.methods.gd import GD
from laconic.runtime.local import Local
from planted import Both, RoundRobin

SMALL = "quadratic(d=7, workers=5, noise=0.1, mu=0.1)"


class Say(Ask):
    """A request that is answered with what it says."""

    def __init__(self, word: Any) -> None:
        self.word = word


def echo(flights: list[list[Any]]) -> Any:
    """Answers a flight with its words, and writes it down."""

    def perform(flight: Flight) -> list[Any]:
        words = [ask.word for ask in flight]
        flights.append(words)
        return words

    return perform


# ---- driving and merging ---------------------------------------------------------------------------------------------


async def talk(name: str, times: int) -> list[str]:
    return [await Say(f"{name}{i}") for i in range(times)]


def test_one_request_is_one_flight() -> None:
    flights: list[list[Any]] = []
    assert drive(talk("a", 2), echo(flights)) == ["a0", "a1"] and flights == [["a0"], ["a1"]]


def test_a_text_that_asks_nothing_needs_nobody() -> None:
    assert drive(talk("a", 0), lambda flight: pytest.fail("nothing was asked")) == []


@given(st.lists(st.integers(0, 4), max_size=5))
def test_what_is_asked_at_the_same_time_travels_in_one_flight(lengths: list[int]) -> None:
    """Each part gets its own answers, in its own order, and longer parts go on alone."""
    flights: list[list[Any]] = []

    async def text() -> list[list[str]]:
        return await together(*(talk(f"{part}:", times) for part, times in enumerate(lengths)))

    assert drive(text(), echo(flights)) == [[f"{part}:{i}" for i in range(times)] for part, times in enumerate(lengths)]
    expected = [[f"{p}:{i}" for p, times in enumerate(lengths) if times > i] for i in range(max(lengths, default=0))]
    assert flights == expected


def test_requests_coroutines_and_nested_groups_mix() -> None:
    flights: list[list[Any]] = []

    async def text() -> list[Any]:
        return await together(Say("x"), together(talk("a", 1), Say("y"), talk("b", 2)), talk("c", 3))

    assert drive(text(), echo(flights)) == ["x", [["a0"], "y", ["b0", "b1"]], ["c0", "c1", "c2"]]
    assert flights == [["x", "a0", "y", "b0", "c0"], ["b1", "c1"], ["c2"]]


def test_no_event_loop_is_needed_and_none_is_in_the_way() -> None:
    """Notebooks run inside one."""

    async def notebook() -> list[str]:
        return drive(talk("a", 2), echo([]))

    assert asyncio.run(notebook()) == ["a0", "a1"]


def test_several_messages_in_one_flight_are_one_round() -> None:
    runtime, v = Local(3), torch.ones(3, 4, dtype=torch.float64)
    heard: list[tuple[Any, Any]] = []
    runtime.ledger.listeners.append(lambda up, down, returned: heard.append((up, down)))

    async def text(link: Link) -> list[Any]:
        return await together(link.uplink(None, v), link.uplink(parse("topk(k=1)"), v), link.broadcast(v[0]))

    (answers,) = runtime.drive(text(runtime.links[0]))
    ledger = runtime.ledger
    assert (ledger.rounds, ledger.messages_up, ledger.messages_down) == (1, 6, 3) and len(heard) == 1
    assert ledger.uplink.tolist() == heard[0][0].tolist() == [32 + 1 + 8] * 3 and ledger.downlink.tolist() == [32] * 3
    assert torch.equal(answers[0].mean.dense(), v[0]) and torch.equal(answers[2], v[0])


def test_two_mechanisms_travel_together_and_keep_apart() -> None:
    """Their rounds are shared, their randomness and memories are their own."""
    first, second = EF21(parse("topk(k=1)")), parse("diana(randk(k=2), rate=0.2)")
    both = start(GD(Both(first, second), step=0.1), SMALL)
    for _ in range(10):
        both.go()
    assert both.runtime.ledger.rounds == 11
    alone = Local(5)
    oracles = both.problem.host(Block.whole(5))
    link = alone.links[0]
    link.begin(0)
    x, memories = oracles.start(), []
    for mechanism, name in ((first, "first"), (second, "second")):
        scope = link.scope("mechanism").scope(name)
        memories.append(alone.drive(mechanism.init(oracles.gradients(x), scope))[0])
    for step in range(1, 11):
        link.begin(step)
        x = x - 0.1 * (0.5 * (memories[0][0] + memories[1][0]))
        for i, (mechanism, name) in enumerate(((first, "first"), (second, "second"))):
            scope = link.scope("mechanism").scope(name)
            memories[i] = alone.drive(mechanism.exchange(oracles.gradients(x), memories[i][1], scope))[0]
    assert equal(x, both.x)
    assert alone.ledger.rounds == 22 and (alone.ledger.uplink == both.runtime.ledger.uplink).all()


def test_draws_have_addresses() -> None:
    """By step, scope, kind and ordinal: two draws of one step differ, and the same step draws the same again."""
    link = Link(Block(1, 3, 5), seed=4)

    def draws() -> list[str]:
        inner = link.scope("a")
        keys = [
            link.keys("up"),
            link.keys("up"),
            link.keys("other"),
            inner.keys("up"),
            inner.keys("up"),
            inner.scope("b").keys("up"),
        ]
        return [key.words(2).tobytes().hex() for key in keys]

    link.begin(1)
    first = draws()
    assert len(set(first)) == 6
    link.begin(2)
    assert not set(draws()) & set(first)
    link.begin(1)
    assert draws() == first


def test_shared_decisions_are_the_same_on_every_party_and_private_ones_are_the_workers() -> None:
    whole, parts = Link(Block.whole(5), seed=4), [Link(block, seed=4) for block in Block.deal(5, 3)]
    for step in range(20):
        for link in (whole, *parts):
            link.begin(step)
        assert len({link.coin(0.5) for link in (whole, *parts)}) == 1
        private = torch.cat([link.coins(0.5) for link in parts])
        assert torch.equal(private, whole.coins(0.5))
        for draw in (lambda link: link.sample(2), lambda link: link.bernoulli(0.4)):
            cohorts = [draw(link) for link in parts]
            everyone = draw(whole)
            assert all((cohort.members == everyone.members).all() for cohort in cohorts)
            here = [link.block.workers[cohort.rows] for link, cohort in zip(parts, cohorts, strict=True)]
            assert [worker for part in here for worker in part] == everyone.members.tolist()


# ---- failures --------------------------------------------------------------------------------------------------------


class Broken(ConnectionError):
    """A collective that failed."""


def broken(flight: Any) -> Any:
    raise Broken("a peer is gone")


async def careful(seen: list[str], name: str = "text") -> None:
    try:
        await Say(name)
    except Broken as failure:
        seen.append(f"{name} hears: {failure}")
        raise
    finally:
        seen.append(f"{name} cleans up")


def test_a_failure_reaches_the_text_at_its_await() -> None:
    seen: list[str] = []
    with pytest.raises(Broken, match="a peer is gone"):
        drive(careful(seen), broken)
    assert seen == ["text hears: a peer is gone", "text cleans up"]


def test_a_failure_reaches_every_part_of_a_group() -> None:
    seen: list[str] = []

    async def text() -> None:
        await together(careful(seen, "a"), together(careful(seen, "b"), careful(seen, "c")))

    with pytest.raises(Broken, match="a peer is gone"):
        drive(text(), broken)
    assert seen == [f"{name} {does}" for name in "abc" for does in ("hears: a peer is gone", "cleans up")]


def test_a_failure_reaches_every_party_of_a_runtime(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []
    runtime = Local(3, parts=3)
    monkeypatch.setattr(runtime, "perform", broken)
    with pytest.raises(Broken, match="a peer is gone"):
        runtime.drive(*(careful(seen, name) for name in "abc"))
    assert len(seen) == 6 and seen[0::2] == [f"{name} hears: a peer is gone" for name in "abc"]


@pytest.mark.parametrize("swallows", ["returns", "asks again"])
def test_a_text_cannot_hide_a_failure(swallows: str) -> None:
    """Other processes have failed as well: going on alone would wait for them forever."""

    async def text() -> int:
        try:
            await Say("x")
        except Broken:
            if swallows == "asks again":
                await Say("y")
        return 1

    with pytest.raises(Broken):
        drive(text(), broken)


def mechanisms() -> list[Any]:
    entries = [parse(example(cls)) for cls in catalogue().of_kind("mechanism")]
    return [*entries, EF21(RoundRobin()), Both(EF21(parse("topk(k=1)")), parse("diana(natural, rate=0.5)"))]


def frozen(course: Course) -> dict[str, bytes]:
    """The bytes of everything that a run holds."""
    held = flatten(course.state) | course.runtime.links[0].compressor_leaves()
    return {name: leaf.tensor.contiguous().numpy().tobytes() for name, leaf in held.items()}


def methods() -> list[Any]:
    """All methods of the catalogue, and gradient descent with every mechanism; an explicit step where no theorem is."""
    found: list[Any] = [parse(example(cls)) for cls in catalogue().of_kind("method")]
    for mechanism in mechanisms():
        try:
            method_of(GD(mechanism), problem_of(SMALL))
            found.append(GD(mechanism))
        except NoTheorem:
            found.append(GD(mechanism, step=0.05))
    return found


@pytest.mark.parametrize("spec", methods(), ids=str)
def test_a_failed_collective_changes_nothing(spec: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """At each of its awaits in turn: state, memory and compressors' states stay as they were; the next try goes on."""
    untouched = start(spec, SMALL).go(6)
    course = start(spec, SMALL).go(3)
    perform, failures = course.runtime.perform, 0
    for _ in range(3):
        for at in range(10):
            asked, before, ledger = 0, frozen(course), course.runtime.ledger.state()

            def fails(flights: Any, at: int = at) -> Any:
                nonlocal asked
                asked += 1
                return broken(flights) if asked > at else perform(flights)

            monkeypatch.setattr(course.runtime, "perform", fails)
            try:
                course.go()
            except Broken:
                failures += 1
                assert frozen(course) == before
                course.step -= 1
                course.runtime.ledger.load(ledger)
            else:
                break
            finally:
                monkeypatch.setattr(course.runtime, "perform", perform)
    assert failures > 0 or "proxskip" in str(spec)  # proxskip may say nothing for three iterations
    assert equal(course.x, untouched.x) and frozen(course) == frozen(untouched)
    assert (course.runtime.ledger.uplink == untouched.runtime.ledger.uplink).all()


def test_the_catalogue_is_covered() -> None:
    assert len(methods()) >= 7 + 10 and set(RUNTIMES) >= {"plain", "three parts", "encoded", "star"}
