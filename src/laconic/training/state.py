"""Checkpoints of an averager: tensors, numbers and text only, by parameter name, for any number of processes.

A *part* is what one process keeps; the parts of all processes `merge` into a *whole*. A run of as many processes goes
on from its own parts, or from a whole, with the same numbers as if it had not been interrupted. A run of another number
of processes goes on from a whole: what a worker kept (error, momentum, shift) becomes the mean over the old workers,
for every new one. So the mean over workers, which is all that the average sees of it, is what it was, and nothing that
was owed is lost. What compressors keep to themselves (a subspace, say) is dealt out in turn instead, since its mean
means nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import torch

from laconic.core.compressor import Mean, Own, Sent
from laconic.core.estimator import Probe
from laconic.core.flight import AllReduce, Ask, Downlink, Flight, Uplink, drive
from laconic.core.link import Link
from laconic.core.mechanism import Mechanism
from laconic.core.problem import Block
from laconic.core.state import Leaf, Placement, flatten, restore
from laconic.runtime.process_group import ProcessGroup
from laconic.training.policy import Plan, Policy

FORMAT = 1
_WORKER, _COMMON = "worker", "common"


class Kept(Protocol):
    """What is kept of an averager."""

    policy: Policy
    plans: dict[str, Plan]
    shapes: dict[str, tuple[int, ...]]
    dtypes: dict[str, torch.dtype]
    memory: dict[str, Any]
    steps: int
    seed: int
    rank: int
    world: int
    runtime: ProcessGroup


def part(averager: Kept) -> dict[str, Any]:
    """The state of one process. Its tensors are the averager's own: save or clone them before the next step."""
    link, ledger = averager.runtime.links[0], averager.runtime.ledger
    return {
        "format": FORMAT,
        "policy": str(averager.policy),
        "seed": averager.seed,
        "world": averager.world,
        "rank": averager.rank,
        "steps": averager.steps,
        "shapes": {name: list(shape) for name, shape in averager.shapes.items()},
        "memory": {name: _told(flatten(memory)) for name, memory in averager.memory.items()},
        "compressors": _told(link.compressor_leaves()),
        "ledger": ledger.state(),
    }


def merge(parts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The whole of the parts of all processes, in any order.

    Raises ValueError, one line, where they are not the parts of one moment of one run.

    >>> merge([{"format": 1, "world": 2, "rank": 0, "steps": 3, "policy": "ef14(topk(k=0.1))"}])
    Traceback (most recent call last):
    ...
    ValueError: merge : parts of ranks [0] of 2 : give those of all ranks, each once
    """
    world = parts[0]["world"] if parts else 0
    ranks = sorted(one["rank"] for one in parts)
    if not parts or ranks != list(range(world)):
        raise ValueError(f"merge : parts of ranks {ranks} of {world} : give those of all ranks, each once")
    ordered = sorted(parts, key=lambda one: one["rank"])
    for key in ("format", "policy", "seed", "world", "steps", "shapes"):
        if any(one[key] != ordered[0][key] for one in ordered):
            raise ValueError(f"merge : the parts differ in {key!r} : {[one[key] for one in ordered]}")
    memory = {name: _stacked([one["memory"][name] for one in ordered]) for name in ordered[0]["memory"]}
    compressors = _stacked([one["compressors"] for one in ordered])
    return {**ordered[0], "rank": -1, "memory": memory, "compressors": compressors}


def load(averager: Kept, state: Mapping[str, Any]) -> None:
    """Puts a part, or a whole, into an averager. Raises ValueError, one line, where it is another run's."""
    _check(averager, state)
    link, same = averager.runtime.links[0], state["world"] == averager.world
    if state["rank"] not in (-1, averager.rank) or (state["rank"] >= 0 and not same):
        raise ValueError(
            f"load_state_dict : this is the part of rank {state['rank']} of {state['world']} and this process is rank "
            f"{averager.rank} of {averager.world}; give its own part, or merge() of all parts"
        )
    whole, rank, world = state["rank"] == -1, averager.rank, averager.world
    renewed = {}
    for name, leaves in state["memory"].items():
        step = max(0, state["steps"] - 1)
        form = template(averager.plans[name].at(step), averager.shapes[name], averager.dtypes[name], world)
        values = {}
        for leaf, told in leaves.items():
            value = told["value"]
            if told["whose"] == _WORKER and whole:
                value = value[rank : rank + 1] if same else value.mean(0, keepdim=True, dtype=_summed(value.dtype))
            values[leaf] = value.to(told["value"].dtype)
        try:
            renewed[name] = restore(form, values)
        except ValueError as error:
            raise ValueError(f"load_state_dict : the memory of {name!r}: {error}") from error
    compressors = {}
    for address, told in state["compressors"].items():
        worker = told["whose"] == _WORKER
        dealt = rank % state["world"]
        value = told["value"][dealt : dealt + 1] if worker and whole else told["value"]
        compressors[address] = Leaf(value, Placement.WORKER if worker else Placement.SHARED)
    averager.memory = renewed
    averager.steps = int(state["steps"])
    link.restore_compressors(compressors)
    if same:
        averager.runtime.ledger.load(state["ledger"])


def _check(averager: Kept, state: Mapping[str, Any]) -> None:
    if state.get("format") != FORMAT:
        raise ValueError(
            f"load_state_dict : a state of format {state.get('format')!r}; this version of laconic reads {FORMAT}"
        )
    for key, here in (("policy", str(averager.policy)), ("seed", averager.seed)):
        if state[key] != here:
            raise ValueError(f"load_state_dict : the checkpoint's {key} is {state[key]!r} and this run's is {here!r}")
    there = {name: tuple(shape) for name, shape in state["shapes"].items()}
    if there == averager.shapes:
        return
    names = sorted(set(there) ^ set(averager.shapes))
    if names:
        where = "the checkpoint" if names[0] in there else "this model"
        raise ValueError(f"load_state_dict : the checkpoint is of another model; {names[0]!r} is only in {where}")
    name = next(name for name in there if there[name] != averager.shapes[name])
    raise ValueError(
        f"load_state_dict : the checkpoint is of another model; {name!r} is {there[name]} in it and "
        f"{averager.shapes[name]} here"
    )


def _summed(dtype: torch.dtype) -> torch.dtype:
    return dtype if dtype.is_floating_point else torch.float64


def _told(leaves: Mapping[str, Leaf]) -> dict[str, dict[str, Any]]:
    """Leaves as a checkpoint holds them: the tensor, and whether it is the worker's own."""
    whose = {Placement.WORKER: _WORKER}
    return {name: {"value": leaf.tensor, "whose": whose.get(leaf.placement, _COMMON)} for name, leaf in leaves.items()}


def _stacked(parts: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    found = {}
    for name, first in parts[0].items():
        worker = first["whose"] == _WORKER
        value = torch.cat([one[name]["value"] for one in parts]) if worker else first["value"]
        found[name] = {"value": value, "whose": first["whose"]}
    return found


# ---- the form of a mechanism's memory --------------------------------------------------------------------------------


def template(mechanism: Mechanism, shape: tuple[int, ...], dtype: torch.dtype, world: int) -> Any:
    """A memory of the structure that a mechanism keeps for a tensor of a shape: that of a start from zero.

    Nothing is sent: the mechanism speaks to a network where everybody says what it says itself.
    """
    link, zero = Link(Block(0, 1, world)), torch.zeros(1, *shape, dtype=dtype)
    probe = Probe(zero[0], lambda x: zero.clone(), lambda x: zero.clone(), lambda x: zero[0].clone())
    return drive(mechanism.init(zero.clone(), link, probe), lambda flight: _echo(flight, link))[1]


def _echo(flight: Flight, link: Link) -> list[Any]:
    return [_echoed(ask, link) for ask in flight]


def _echoed(ask: Ask, link: Link) -> Any:
    if isinstance(ask, Uplink):
        return Sent(Own(ask.packet, 1), Mean([ask.packet], 1), link.n)
    if isinstance(ask, (AllReduce, Downlink)):
        return ask.packet.decoded.dense()[0].clone()
    raise TypeError(f"a mechanism's start asks for {type(ask).__name__}")


def stateless(mechanism: Mechanism) -> bool:
    """Whether a mechanism keeps nothing from step to step."""
    return not flatten(template(mechanism, (4, 3), torch.float32, 1))


__all__ = ["FORMAT", "load", "merge", "part", "stateless", "template"]
