"""Sums in two stages: the same averages and bytes as a gather, at the volume that is promised."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

import worlds
from laconic.runtime.routes import JOINED, Cheapest, Load, Plain

loads = st.lists(st.builds(Load, message=st.integers(1, 10**7), dense=st.integers(1, 10**7)), min_size=1, max_size=12)


@pytest.mark.parametrize(
    "mechanism",
    [
        "direct(natural)", "ef14(topk(k=0.1) | natural)", "ef21_sgdm(sign)", "direct(qsgd)", "powersgd(rank=1)",
        "ef21_plus(topk(k=0.1))",
    ],
)  # fmt: skip
@pytest.mark.parametrize("world", [3, 4])
def test_two_stages_average_as_a_gather_does(mechanism: str, world: int) -> None:
    gathered = worlds.pool().results("routes", world, mechanism=mechanism, dealt=False, steps=4)
    dealt = worlds.pool().results("routes", world, mechanism=mechanism, dealt=True, steps=4)
    for plain, rank in zip(gathered, dealt, strict=True):
        assert rank["values"] == dealt[0]["values"]
        for name, values in rank["values"].items():
            assert values == pytest.approx(plain["values"][name], rel=0.0, abs=1e-12)
        for key in ("uplink", "messages"):
            assert rank[key] == plain[key]
    expected = {"powersgd(rank=1)": "all-reduce", "ef21_plus(topk(k=0.1))": "all-gather"}  # each message is needed
    assert expected.get(mechanism, "two stages") in dealt[0]["collectives"]
    assert ("two stages" in dealt[0]["collectives"]) == (mechanism not in expected)
    assert "two stages" not in gathered[0]["collectives"]


def test_the_bytes_are_those_of_the_messages_to_their_owners_and_of_the_sums() -> None:
    """Of four tensors' worth each process sends those of others, and its own sums to three."""
    world, steps = 4, 3
    found = worlds.pool().results("routes", world, mechanism="direct(identity)", dealt=True, steps=steps)
    flags = 8 * world  # is summed in a collective of its own
    sizes = [1, 3, 4, 12, 20, 20, 60, 220, 400, 1440]
    total = 8 * sum(sizes)
    assert sum(rank["payload"] for rank in found) == steps * ((world - 1) * total + world * flags)
    # sums: rows as wide as the widest owner's, each with the sizes of its requests' messages
    sent = sum(rank["sent"] for rank in found) - sum(rank["payload"] for rank in found)
    widest = 8 * max(_owned(order, world) for order in [_order()]) + 8 * world * 3
    assert sent == steps * world * (widest + 8 * (world - 1))


def _order() -> list[int]:
    """The sizes of the network's tensors in the order of its parameters, in which they are dealt out."""
    return [1, 60, 3, 400, 220, 20, 12, 4, 1440, 20]


def _owned(sizes: list[int], world: int) -> int:
    return max(sum(sizes[owner::world]) for owner in range(world))


@given(loads, st.integers(2, 40))
def test_the_cheapest_route_brings_in_the_fewest_bytes(loads: list[Load], world: int) -> None:
    owners = Cheapest().owners(loads, world)
    gathered = (world - 1) * sum(load.message for load in loads)
    if owners is None:
        return
    mine = [sum(load.message for load, o in zip(loads, owners, strict=True) if o == owner) for owner in range(world)]
    sums = [sum(load.dense for load, o in zip(loads, owners, strict=True) if o == owner) for owner in range(world)]
    assert (world - 1) * (max(mine) + max(sums)) < gathered
    assert gathered > 2 * sum(load.dense for load in loads) * (world - 1) / world
    assert len(owners) == len(loads) and all(0 <= owner < world for owner in owners)


def test_few_processes_gather_and_many_share() -> None:
    nine_bits = [Load(message=9, dense=32)] * 64
    assert [world for world in (2, 4, 7, 8, 16, 64) if Cheapest().owners(nine_bits, world)] == [8, 16, 64]
    sparse = [Load(message=1, dense=32)] * 64
    assert [world for world in (8, 16, 64, 65, 128) if Cheapest().owners(sparse, world)] == [65, 128]
    one = [Load(message=9, dense=32)]  # a single tensor has one owner, who would get everything
    assert Cheapest().owners(one, 64) is None
    assert Plain().owners(nine_bits, 64) is None


def test_a_sum_joins_a_gather_where_that_brings_in_little_more() -> None:
    assert Cheapest().joins(10**9, 2)  # of two processes, both bring in the same
    assert Cheapest().joins(JOINED // 2, 4) and not Cheapest().joins(JOINED, 4)
    assert not Plain().joins(1, 2)
