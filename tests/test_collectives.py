"""Collectives: what they leave on every node, what they cost, and what `laconic show ring` draws."""

from __future__ import annotations

import json
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from laconic import cli
from laconic.core.registry import catalogue
from laconic.lab import drawings
from laconic.runtime import collectives as c
from laconic.runtime.collectives import COLLECTIVES, Collective, levels, lower_bound
from laconic.runtime.moves import Cost, Price, Schedule, Send, Step, Take, cost, even_sizes, perform, volumes

NODES = (1, 2, 4, 5, 7)
NUMBERS = (1, 3, 20, 23)
PRICES = (Price(1.0, 0.0), Price(0.0, 1.0), Price(0.0, 0.0, 1.0), Price(3.0, 0.5, 0.25))
ALL_REDUCES = [one for one in COLLECTIVES if one.operation == "all-reduce"]
each = pytest.mark.parametrize("one", COLLECTIVES, ids=lambda one: one.name)
each_all_reduce = pytest.mark.parametrize("one", ALL_REDUCES, ids=lambda one: one.form)


def vectors(p: int, n: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng([seed, p, n]).normal(size=(p, n))


def pieces(p: int, n: int) -> list[slice]:
    """Where piece j lies, by NumPy's own cut."""
    parts = np.array_split(np.arange(n), p)
    return [slice(int(part[0]), int(part[-1]) + 1) if len(part) else slice(0, 0) for part in parts]


def ring_by_hand(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The ring all-reduce of the textbooks and the numbers that each node sends, without schedules."""
    p = len(x)
    chunks = [[part.copy() for part in np.array_split(row, p)] for row in x]
    sent = np.zeros(p, dtype=int)
    for phase in (0, 1):
        for s in range(p - 1):
            leaving = [chunks[i][(i + phase - s) % p].copy() for i in range(p)]
            for i in range(p):
                sent[i] += len(leaving[i])
                target, place = (i + 1) % p, (i + phase - s) % p
                chunks[target][place] = leaving[i] if phase else chunks[target][place] + leaving[i]
    return np.array([np.concatenate(row) for row in chunks]), sent


# ---- what is left on the nodes ------------------------------------------------------------------------------


@pytest.mark.parametrize("p", NODES)
@pytest.mark.parametrize("n", NUMBERS)
def test_ring_all_reduce(p: int, n: int):
    x = vectors(p, n)
    after, schedule = perform(c.ring_all_reduce(p), x), c.ring_all_reduce(p)
    by_hand, sent_by_hand = ring_by_hand(x)
    assert (after == after[0]).all()
    np.testing.assert_allclose(after, np.tile(x.sum(0), (p, 1)), rtol=0, atol=1e-13)
    np.testing.assert_allclose(after, by_hand, rtol=0, atol=1e-13)
    assert len(schedule.steps) == 2 * (p - 1)
    sent = volumes(schedule, even_sizes(n, p))
    assert sorted(sent) == sorted(sent_by_hand) and sent.mean() == pytest.approx(2 * n * (p - 1) / p)
    if n % p == 0:
        assert (sent == 2 * n * (p - 1) // p).all()
    for step in schedule.steps:  # to the right neighbour only
        assert all(send.target == (send.source + 1) % p for send in step.sends)


def test_the_ring_of_the_sheet_sends_thirty_numbers():
    assert volumes(c.ring_all_reduce(4), even_sizes(20, 4)).tolist() == [30] * 4


@settings(max_examples=25, deadline=None)
@given(p=st.integers(1, 19), n=st.integers(0, 45), seed=st.integers(0, 9))
def test_all_reduces_agree_on_all_nodes_and_with_their_halves(p: int, n: int, seed: int):
    x = vectors(p, n, seed)
    total = np.tile(x.sum(0), (p, 1))
    for one in ALL_REDUCES:
        after = perform(one.build(p), x)
        assert (after == after[0]).all(), one.name  # the same bits everywhere
        np.testing.assert_allclose(after, total, rtol=0, atol=1e-12)
    two_ways = [
        c.tree_reduce(p).then(c.tree_broadcast(p)),
        c.ring_reduce(p).then(c.ring_broadcast(p)),
        c.ring_reduce_scatter(p).then(c.doubling_all_gather(p)),
        c.halving_reduce_scatter(p).then(c.ring_all_gather(p)),
        c.ring_reduce_scatter(p).then(c.tree_gather(p)).then(c.tree_broadcast(p)),
    ]
    for schedule in two_ways:
        np.testing.assert_allclose(perform(schedule, x), total, rtol=0, atol=1e-12)
    np.testing.assert_array_equal(
        perform(c.ring_all_reduce(p), x), perform(c.ring_all_gather(p), perform(c.ring_reduce_scatter(p), x))
    )


@settings(max_examples=40, deadline=None)
@given(p=st.integers(1, 19), n=st.integers(0, 45), root=st.integers(0, 18))
def test_what_each_operation_leaves(p: int, n: int, root: int):
    root %= p
    x, places = vectors(p, n), pieces(p, n)
    of_root = x[root]
    for schedule in (c.tree_broadcast(p, root), c.ring_broadcast(p, root)):
        np.testing.assert_array_equal(perform(schedule, x), np.tile(of_root, (p, 1)))
    scattered = perform(c.tree_scatter(p, root), x)
    for j, place in enumerate(places):
        np.testing.assert_array_equal(scattered[j, place], of_root[place])
    mine = np.full((p, n), np.nan)  # nobody has anything but its own piece
    for j, place in enumerate(places):
        mine[j, place] = of_root[place]
    np.testing.assert_array_equal(perform(c.tree_gather(p, root), mine)[root], of_root)
    np.testing.assert_array_equal(perform(c.ring_gather(p), mine)[0], of_root)
    for schedule in (c.ring_all_gather(p), c.doubling_all_gather(p)):
        np.testing.assert_array_equal(perform(schedule, mine), np.tile(of_root, (p, 1)))
    for schedule in (c.tree_reduce(p, root), c.ring_reduce(p, root)):
        np.testing.assert_allclose(perform(schedule, x)[root], x.sum(0), rtol=0, atol=1e-12)
    for schedule in (c.ring_reduce_scatter(p), c.halving_reduce_scatter(p)):
        after = perform(schedule, x)
        for j, place in enumerate(places):
            np.testing.assert_allclose(after[j, place], x.sum(0)[place], rtol=0, atol=1e-12)


@settings(max_examples=30, deadline=None)
@given(p=st.integers(1, 19), n=st.integers(0, 45), root=st.integers(0, 18))
def test_gather_undoes_scatter(p: int, n: int, root: int):
    root %= p
    x = np.full((p, n), np.nan)
    x[root] = vectors(1, n)[0]
    held = perform(c.tree_scatter(p, root), x)
    held[root, [i for j, place in enumerate(pieces(p, n)) if j != root for i in range(n)[place]]] = np.nan
    np.testing.assert_array_equal(perform(c.tree_gather(p, root), held)[root], x[root])


@each_all_reduce
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.int64])
def test_tensors_move_as_arrays_do(one: Collective, dtype: torch.dtype):
    x = torch.arange(5 * 7 * 2).reshape(5, 7, 2).to(dtype)  # 7 rows are cut, the rest travels along
    kept = x.clone()
    after = perform(one.build(5), x)
    assert torch.equal(x, kept) and after.dtype == dtype
    assert torch.equal(after, after[:1].expand(5, 7, 2))
    if dtype != torch.bfloat16:
        assert torch.equal(after[0], x.sum(0).to(dtype))


def test_all_messages_of_a_step_leave_before_any_arrives():
    swap = Schedule(2, (Step(Take.COPY, (Send(0, 1, (0, 1)), Send(1, 0, (0, 1)))),))
    x = np.array([[1.0, 2.0], [3.0, 4.0]])
    assert perform(swap, x).tolist() == [[3.0, 4.0], [1.0, 2.0]]
    assert x.tolist() == [[1.0, 2.0], [3.0, 4.0]]


def test_chunks_may_be_of_any_lengths():
    x, sizes = vectors(3, 9), [0, 7, 2]
    np.testing.assert_allclose(perform(c.ring_all_reduce(3), x, sizes), np.tile(x.sum(0), (3, 1)), atol=1e-13)
    assert volumes(c.ring_all_gather(3), sizes).tolist() == [0 + 2, 7 + 0, 2 + 7]
    assert cost(c.ring_all_gather(3), sizes) == Cost(2, 7 + 7, 0)
    with pytest.raises(ValueError, match="give one row per node"):
        perform(c.ring_all_reduce(3), x, [1, 1, 1])
    with pytest.raises(ValueError, match="give one row per node"):
        perform(c.ring_all_reduce(4), x)


@each
def test_one_node_needs_nothing_and_nobody_has_two_mouths(one: Collective):
    assert one.build(1).steps == () and one.cost(1, 5) == one.closed(1, 5) == Cost()
    for p in range(2, 18):
        for step in one.build(p).steps:
            assert len({send.source for send in step.sends}) == len({send.target for send in step.sends}), p
            assert len({send.source for send in step.sends}) == len(step.sends) > 0, p
    with pytest.raises(AssertionError, match="node 0 is the source of 2"):
        Schedule(3, (Step(Take.COPY, (Send(0, 1, (0,)), Send(0, 2, (0,)))),))


@each
def test_the_mirror_image_of_the_mirror_image_is_the_schedule(one: Collective):
    for p in (1, 2, 6, 8):
        schedule = one.build(p)
        for take in Take:
            again = schedule.mirrored(take).mirrored(take)
            assert [step.sends for step in again.steps] == [step.sends for step in schedule.steps]
            sizes = even_sizes(3 * p, p)
            assert cost(schedule.mirrored(take), sizes).numbers == cost(schedule, sizes).numbers


# ---- costs ------------------------------------------------------------------------------------------------------


def published(p: int) -> dict[str, tuple[float, float, float]]:
    """Multiples of alpha, n beta and n gamma in the table of Chan et al., for p nodes and p dividing n."""
    lg, share = float(np.ceil(np.log2(p))), (p - 1) / p
    return {
        "tree broadcast": (lg, lg, 0),
        "ring broadcast": (lg + p - 1, 2 * share, 0),
        "tree reduce": (lg, lg, lg),
        "ring reduce": (p - 1 + lg, 2 * share, share),
        "tree scatter": (lg, share, 0),
        "tree gather": (lg, share, 0),
        "ring gather": (p - 1, share, 0),
        "doubling all-gather": (lg, share, 0),
        "ring all-gather": (p - 1, share, 0),
        "halving reduce-scatter": (lg, share, share),
        "ring reduce-scatter": (p - 1, share, share),
        "rabenseifner all-reduce": (2 * lg, 2 * share, share),
        "ring all-reduce": (2 * (p - 1), 2 * share, share),
        "tree all-reduce": (2 * lg, 2 * lg, lg),
        "star all-reduce": (2 * (p - 1), 2 * (p - 1), p - 1),
    }


@each
def test_costs_counted_from_schedules_are_the_published_ones(one: Collective):
    for p in (*range(1, 18), 31, 32, 33):
        messages, numbers, additions = published(p)[one.name]
        for n in (p, 3 * p):
            expected = (messages, numbers * n, additions * n)
            for found in (one.cost(p, n), one.closed(p, n)):
                assert (found.messages, found.numbers, found.additions) == pytest.approx(expected), (p, n)
    seconds = one.cost(p, n).seconds(Price(2.0, 0.5, 0.25))
    assert seconds == pytest.approx(2.0 * messages + n * (0.5 * numbers + 0.25 * additions))


def test_a_server_that_only_serves_is_a_star_of_one_more():
    workers, n, price = 6, 10, Price(1.0, 0.5)
    assert c.COLLECTIVES[-1].form == "star"
    assert c.COLLECTIVES[-1].cost(workers + 1, n).seconds(price) == 2 * workers * (1.0 + n * 0.5)


@settings(max_examples=40, deadline=None)
@given(p=st.integers(1, 25), n=st.integers(0, 60))
def test_uneven_chunks_cost_between_the_formulas_and_nobody_is_below_the_bounds(p: int, n: int):
    rounded = -(-n // p) * p
    for one in COLLECTIVES:
        found, most = one.cost(p, n), one.closed(p, rounded)
        assert found.messages <= most.messages and found.numbers <= most.numbers + 1e-9, one.name
        assert found.additions <= most.additions + 1e-9, one.name
        if one.operation not in ("scatter", "gather"):  # there the root may keep the one long piece
            assert found.numbers >= one.closed(p, n).numbers - 1e-9, one.name
        for price in PRICES:
            assert found.seconds(price) >= lower_bound(one.operation, p, n, price) - 1e-9, (one.name, price)


@pytest.mark.parametrize("p", [2, 4, 5, 8, 13])
def test_the_bounds_on_each_resource_are_reached(p: int):
    n = 6 * p
    for operation in ("broadcast", "scatter", "gather", "all-gather", "reduce", "reduce-scatter", "all-reduce"):
        forms = [one for one in COLLECTIVES if one.operation == operation]
        latency, wire, adding = (lower_bound(operation, p, n, price) for price in PRICES[:3])
        assert min(one.cost(p, n).messages for one in forms) <= 2 * latency == 2 * levels(p)
        least = min(one.cost(p, n).numbers for one in forms)
        assert least == pytest.approx(wire) or (operation in ("broadcast", "reduce") and least < 2 * wire)
        assert min(one.cost(p, n).additions for one in forms) == pytest.approx(adding)


def test_empty_chunks_are_not_sent():
    assert c.tree_scatter(8).steps and cost(c.tree_scatter(8), even_sizes(1, 8)) == Cost()
    assert cost(c.ring_all_gather(8), even_sizes(0, 8)) == Cost()
    assert cost(c.ring_all_reduce(8), even_sizes(1, 8)) == Cost(14, 14, 7)  # one number runs around twice


# ---- the drawing -------------------------------------------------------------------------------------------------


def show(*arguments: str) -> str:
    result = CliRunner().invoke(cli.app, ["show", *arguments])
    assert result.exit_code == 0, (result.output, result.exception)
    return result.stdout


def test_show_ring_draws_every_step():
    text = show("ring")
    lines = [" ".join(line.split()) for line in text.splitlines()]
    assert lines[0].startswith("ring all-reduce")
    assert "1 D → 1, added A → 2, added B → 3, added C → 0, added" in lines
    assert "6 C → 1 D → 2 A → 3 B → 0" in lines
    assert lines[lines.index("6 C → 1 D → 2 A → 3 B → 0") + 1] == " ".join(["ΣA ΣB ΣC ΣD"] * 4)
    assert "2(p−1)α + 2(p−1)/p nβ + (p−1)/p nγ" in text and "6 messages, 6 chunks" in text
    # 6 messages of 10 µs, and 1.5 n numbers of 3.2 ns: 60 + 4.8 µs
    assert "64.8 µs" in text


@each
def test_every_collective_is_drawn(one: Collective):
    text = show(one.name)
    assert text.startswith(one.name) and one.formula in text
    found = json.loads(show(one.name, "--json"))
    assert len(found["steps"]) == len(one.build(4).steps) and found["formula"] == one.formula
    # the last row of the steps shows what the operation leaves: all on all nodes, but for pieces and roots
    last = text.split("\n\ncost")[0].rstrip().splitlines()[-1]
    whole = {"broadcast": 16, "all-gather": 16, "all-reduce": 16}.get(one.operation)
    if whole is not None:
        assert sum(word.strip("Σ") in tuple("ABCD") for word in last.split()) == whole and "·" not in last


def test_short_names_and_numbers_of_nodes():
    drawn = {name: drawings.named(name) for name in ("tree", "star", "all_gather", "Reduce-Scatter", "ring(p=5)")}
    assert {name: (one.collective.name, one.nodes) for name, one in drawn.items() if one is not None} == {
        "tree": ("tree all-reduce", 4),
        "star": ("star all-reduce", 4),
        "all_gather": ("ring all-gather", 4),
        "Reduce-Scatter": ("ring reduce-scatter", 4),
        "ring(p=5)": ("ring all-reduce", 5),
    }
    assert drawings.named("topk") is drawings.named("topk(k=0.01)") is None
    taken = [name for name in catalogue().names if drawings.named(name) is not None]
    assert taken == []  # or the entry could not be shown


def test_too_many_nodes_to_draw_is_one_line(capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["laconic", "show", "ring(p=40)"])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    said = capsys.readouterr()
    assert stopped.value.code == 2 and said.err.count("\n") == 1
    assert "show ring(p=40) : p must be from 1 to 16" in said.err
