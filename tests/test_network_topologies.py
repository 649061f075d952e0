"""Rounds on a ring and on a tree: closed prices against schedules, examples by hand, and whole runs."""

from __future__ import annotations

import itertools
import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import laconic
from laconic.core.flight import together
from laconic.core.link import Link
from laconic.runtime import collectives as c
from laconic.runtime.local import Local
from laconic.runtime.moves import Cost, Schedule, Send, cost, even_sizes
from laconic.runtime.network import Line, Network
from laconic.runtime.topologies import PLACEMENTS, Form, Ring, Tree

FORMS = (Ring(), Tree())
KINDS = tuple(PLACEMENTS)
Sides = tuple[list[int] | None, list[int] | None] | tuple[list[int] | None, list[int] | None, list[int]]


def seconds(kind: str, *flights: Sides, n: int | None = None) -> float:
    """At 1 ms a message and 1 byte a microsecond."""
    n = n or next(len(side) for flight in flights for side in flight if side is not None)
    clock = Network.parse(f"8mbit,1ms,{kind}").clock(n)
    for flight in flights:
        clock(*(None if side is None else np.array(side) for side in flight))
    return clock.seconds


# ---- closed prices are the schedules' costs ------------------------------------------------------------------

messages = st.lists(st.integers(0, 9).map(lambda size: max(0, size - 3)), min_size=1, max_size=21)


def parts_needed(schedule: Schedule, sizes: np.ndarray) -> dict[Send, int]:
    """How much of a broadcast every edge has to carry: what the longest listener behind it needs."""
    sends = list(itertools.chain(*(step.sends for step in schedule.steps)))
    needed = {node: int(sizes[node]) for node in range(schedule.nodes)}
    found = {}
    for send in reversed(sends):  # leaves first
        found[send] = needed[send.target]
        needed[send.source] = max(needed[send.source], needed[send.target])
    return found


@settings(max_examples=80, deadline=None)
@given(messages)
def test_gathers_cost_what_their_schedules_do(sizes: list[int]):
    p, held = len(sizes), np.array(sizes)
    pairs = [
        (Ring().gather(held), c.ring_gather(p)),
        (Ring().all_gather(held), c.ring_all_gather(p)),
        (Tree().gather(held), c.tree_gather(p)),
        (Tree().all_gather(held), c.doubling_all_gather(p)),
    ]
    for closed, schedule in pairs:
        assert closed == cost(schedule, sizes)


@settings(max_examples=80, deadline=None)
@given(messages)
def test_broadcasts_cost_what_their_schedules_do(sizes: list[int]):
    p, held = len(sizes), np.array(sizes)
    schedule = c.tree_broadcast(p)
    needed = parts_needed(schedule, held)
    longest = [max(needed[send] for send in step.sends) for step in schedule.steps]
    assert Tree().broadcast(held) == Cost(sum(size > 0 for size in longest), sum(longest))
    most = max(sizes[1:], default=0)
    assert Ring().broadcast(held) == cost(c.ring_broadcast(p), even_sizes(most, p))


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 40), st.integers(0, 300))
def test_all_reduces_cost_what_their_schedules_do(p: int, size: int):
    for form, build in ((Ring(), c.ring_all_reduce), (Tree(), c.rabenseifner_all_reduce)):
        counted = cost(build(p), even_sizes(size, p))
        assert form.all_reduce(p, size) == Cost(counted.messages, counted.numbers)


@settings(max_examples=60, deadline=None)
@given(messages, st.integers(0, 20), st.integers(1, 9), st.sampled_from(KINDS))
def test_more_bytes_never_take_less_time(sizes: list[int], worker: int, more: int, kind: str):
    longer = list(sizes)
    longer[worker % len(sizes)] += more
    for flights in (([sizes, None], [longer, None]), ([None, sizes], [None, longer])):
        before, after = (seconds(kind, tuple(flight)) for flight in flights)  # type: ignore[arg-type]
        assert after >= before >= 0.0


# ---- by hand ------------------------------------------------------------------------------------------------


def test_what_sums_is_all_reduced():
    vector = [4000] * 4
    assert seconds("ring", (vector, None, vector)) == pytest.approx(6 * 0.001 + 6 * 0.001)
    assert seconds("tree", (vector, None, vector)) == pytest.approx(4 * 0.001 + 6 * 0.001)
    assert seconds("ring,replicated", (vector, None, vector)) == pytest.approx(0.012)  # there is no other way to sum
    assert Network.parse("8mbit,1ms").clock(4).flight(*map(np.array, [vector, vector, vector])) == pytest.approx(0.010)
    # 2 bytes in 4 pieces: two of them are empty, and yet every step has one that is not
    assert seconds("ring", ([2] * 4, None, [2] * 4)) == pytest.approx(6 * 0.001001)


def test_messages_of_different_lengths_are_gathered_as_they_are():
    up = [9000, 1000, 2000, 4000]
    # ring: workers 1, 2, 3 pass on the longest of the messages that still are under way: 4, 2, 1 ms
    assert seconds("ring", (up, None)) == pytest.approx(3 * 0.001 + 0.007)
    # tree: 1 and 3 to their left neighbours (4 ms), then 2 with what it got (2 + 4 ms)
    assert seconds("tree", (up, None)) == pytest.approx(2 * 0.001 + 0.004 + 0.006)
    # all have to know all: the longest message is on some line in each of 3 steps
    assert seconds("ring,replicated", (up, None)) == pytest.approx(3 * 0.001 + 3 * 0.009)
    # each sends its own message (9 ms), then it and its right neighbour's: the most is 4 + 9
    assert seconds("tree,replicated", (up, None)) == pytest.approx(2 * 0.001 + 0.009 + 0.013)


def test_what_the_server_says_is_broadcast_or_known():
    # a scatter of four pieces (2 steps, 2 + 1 ms), an all-gather (3 steps, 3 ms)
    assert seconds("ring", (None, [4000] * 4)) == pytest.approx(5 * 0.001 + 0.006)
    assert seconds("tree", (None, [4000] * 4)) == pytest.approx(2 * 0.001 + 2 * 0.004)
    assert seconds("tree", (None, [0, 0, 0, 4000])) == pytest.approx(2 * 0.005)  # by way of worker 2
    assert seconds("tree", (None, [0, 4000, 0, 0])) == pytest.approx(0.005)
    assert seconds("tree", (None, [4000, 0, 0, 0])) == 0.0  # the server lives with worker 0
    assert seconds("tree", (None, [4000, 4000, 4000, 5000])) == pytest.approx(
        2 * 0.006
    )  # one message, part of it for all
    for kind in ("ring,replicated", "tree,replicated"):
        assert seconds(kind, (None, [4000] * 4)) == 0.0


@pytest.mark.parametrize("kind", KINDS)
def test_collectives_follow_each_other(kind: str):
    up, down, summed = [10, 3, 0, 0, 7], [4] * 5, [100] * 5
    both = [a + b for a, b in zip(up, summed, strict=True)]
    apart = seconds(kind, (up, None), (None, down), (summed, None, summed))
    assert seconds(kind, (both, down, summed)) == pytest.approx(apart)


@pytest.mark.parametrize("kind", KINDS)
def test_silence_and_one_worker_cost_nothing(kind: str):
    assert seconds(kind, ([0] * 4, [0] * 4)) == 0.0
    assert seconds(kind, (None, [0] * 4), ([0] * 4, None, [0] * 4)) == 0.0
    assert seconds(kind, ([9], [9]), ([9], None, [9])) == 0.0


@pytest.mark.parametrize("form", FORMS, ids=lambda form: type(form).__name__)
def test_a_sparse_gather_beats_a_dense_all_reduce_while_few_take_part(form: Form):
    """Messages `ratio` times shorter, to everybody, against 2(p - 1)/p of the whole: faster where p < 2 ratio."""
    d, ratio = 2 * 3 * 5 * 7 * 11 * 13 * 16, 8
    for p in (4, 7, 8, 13, 15, 16, 20, 32):
        sparse = form.all_gather(np.full(p, d // ratio)).numbers
        dense = form.all_reduce(p, d).numbers
        assert (sparse < dense * (1 - 1e-3)) == (p < 2 * ratio), p


def test_the_ring_and_the_tree_differ_in_messages_alone_where_all_are_equal():
    for p in (2, 3, 8, 100):
        ring, tree = (form.all_reduce(p, 1200 * p) for form in FORMS)
        assert ring.numbers == tree.numbers == 2 * (p - 1) * 1200
        assert ring.messages == 2 * (p - 1) and tree.messages == 2 * np.ceil(np.log2(p))


# ---- what sums is told from what does not -----------------------------------------------------------------------


def test_the_ledger_says_what_sums():
    runtime, v = Local(3), torch.ones(3, 4, dtype=torch.float64)
    heard: list[list[list[int] | None]] = []
    runtime.ledger.listeners.append(
        lambda *sides: heard.append([None if side is None else side.tolist() for side in sides])
    )

    async def text(link: Link) -> None:
        await link.all_reduce(v)
        await link.uplink(None, v)
        await link.broadcast(v[0])
        await together(link.all_reduce(v), link.uplink(None, v), link.broadcast(v[0]))

    runtime.drive(text(runtime.links[0]))
    dense, both = [32] * 3, [64] * 3
    assert heard == [[dense, None, dense], [dense, None, None], [None, dense, None], [both, dense, dense]]
    assert runtime.ledger.uplink.tolist() == [4 * 32] * 3 and runtime.ledger.downlink.tolist() == [4 * 32] * 3


def test_runs_are_priced_on_every_topology(tmp_path):
    d, n, rounds = 24, 4, 6
    kinds = ["8mbit,1ms", *(f"8mbit,1ms,{kind}" for kind in KINDS)]
    runs = laconic.run(
        f"quadratic(d={d}, workers={n})", ["gd(direct_all_reduce, step=0.1)", "gd(ef21(topk(k=2)), step=0.1)"],
        rounds=rounds, network=kinds, out=tmp_path / "run",
    )  # fmt: skip
    frame = runs.trace
    last = frame.groupby("method").last()
    spent = {kind: last[f"seconds[{kind}]"] - last["compute_seconds"] for kind in kinds}
    summed, sparse = (next(name for name in last.index if part in name) for part in ("all_reduce", "ef21"))
    vector = 8 * d / 1e6  # 48 bytes a piece
    times = last["rounds"]
    assert spent["8mbit,1ms,ring"][summed] == pytest.approx(times[summed] * (6 * 0.001 + 6 / 4 * vector))
    assert spent["8mbit,1ms,tree"][summed] == pytest.approx(times[summed] * (4 * 0.001 + 6 / 4 * vector))
    assert spent["8mbit,1ms,ring,replicated"][summed] == pytest.approx(spent["8mbit,1ms,ring"][summed])
    # EF21 sends a dense model down: known to everybody where the server is replicated, else as a broadcast
    model = (last["flights"][sparse] - times[sparse]) * (5 * 0.001 + 6 / 4 * vector)
    assert spent["8mbit,1ms,ring"][sparse] > model > 0
    replicated = spent["8mbit,1ms,ring,replicated"][sparse]
    assert replicated == pytest.approx(
        times[sparse] * 3 * 0.001 + 3 * 1e-6 * _peaks(frame[frame["method"] == sparse], vector), rel=1e-6
    )
    document = json.loads((tmp_path / "run" / "run.json").read_text())
    assert [Network.of_record(one) for one in document["identity"]["networks"]] == list(map(Network.parse, kinds))


def _peaks(frame, vector: float) -> float:
    """The largest uplink message of every round, summed: all but the dense models that went down."""
    end = frame.iloc[-1]
    return float(end["peak"] - (end["flights"] - end["rounds"]) * vector * 1e6)


# ---- names ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_topologies_in_the_text(kind: str):
    network = Network.parse(f" 10mbit, 20ms, {', '.join(kind.split(','))}")
    assert network == Network(f"10mbit,20ms,{kind}", Line(1e7, 1e7, 0.02), topology=kind)
    assert Network.of_record(json.loads(json.dumps(network.record()))) == network
    assert not network.repriceable
    with pytest.raises(ValueError, match="--network"):
        network.price(np.array(1), np.array(1))


def test_a_star_may_be_named_and_is_recorded_as_ever():
    plain, named = Network.parse("10mbit,20ms"), Network.parse("10mbit,20ms,star")
    assert named.repriceable and named.record() == {**plain.record(), "name": "10mbit,20ms,star"}
    assert set(plain.record()) == {"name", "default", "lines", "server"}  # runs of older versions are resumed
    flight = np.array([100, 5000]), np.array([300, 0]), None
    assert named.clock(2).flight(*flight) == plain.clock(2).flight(*flight) > 0
    assert Network.parse("10mbit,20ms,star,server=1mbit").server == 1e6


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("10mbit,20ms,mesh", "ring,replicated"),
        ("10mbit,20ms,ring,tree", "ring,replicated"),
        ("10mbit,20ms,replicated", "ring,replicated"),
        ("10mbit,20ms,star,replicated", "ring,replicated"),
        ("10mbit,20ms,server=1mbit,ring", "server=100mbit"),
        ("10mbit,20ms,ring,server=1mbit", "only a star has a server's port; leave server= or ring out"),
    ],
)
def test_bad_topologies_say_what_is_allowed(text: str, said: str):
    with pytest.raises(ValueError) as caught:
        Network.parse(text)
    assert said in str(caught.value) and text in str(caught.value) and "\n" not in str(caught.value)


def test_a_ring_needs_equal_lines():
    for network in (
        Network("unequal", Line(1e6, 1e7, 0.02), topology="ring"),
        Network("one's own", Line(1e6, 1e6, 0.02), lines=((1, Line(1e5, 1e5, 0.02)),), topology="tree"),
    ):
        with pytest.raises(ValueError, match="needs one symmetric line"):
            network.clock(3)
