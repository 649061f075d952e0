"""The state of a running curve as plain tensors of all n workers, and back onto any number of processes."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from laconic.core.link import Link
from laconic.core.state import Leaf, Placement, flatten, restore
from laconic.lab.evaluate import Party


def _leaves(party: Party) -> dict[str, Leaf]:
    leaves = {f"method/{name}": leaf for name, leaf in flatten(party.state).items()}
    for address, state in sorted(party.link.compressor_states.items()):
        leaves |= {f"compressor{address}#{name}": leaf for name, leaf in flatten(state).items()}
    return leaves


async def capture(party: Party) -> dict[str, Tensor]:
    """Every tensor of the method's and the compressors' states: all workers' rows, and the server's values."""
    whole = {}
    for name, leaf in _leaves(party).items():
        tensor = leaf.tensor
        if leaf.placement is Placement.WORKER:
            # float64 holds every value of the dtypes that states use (counters stay far below 2^53)
            tensor = (await party.link.look(tensor.double())).to(tensor.dtype)
        elif leaf.placement is Placement.SERVER:
            tensor = await party.link.show(tensor)
        whole[name] = tensor
    return whole


def missing_addresses(party: Party, tensors: Mapping[str, Tensor]) -> bool:
    """Whether the checkpoint holds compressor states that this party's link has not made yet."""
    made = {f"compressor{address}" for address in party.link.compressor_states}
    return any(name.split("#")[0] not in made for name in tensors if name.startswith("compressor"))


def put_back(party: Party, tensors: Mapping[str, Tensor]) -> None:
    """Gives a party that was initialised afresh the state in a checkpoint. Raises ValueError where they do not fit."""
    leaves = _leaves(party)
    odd = sorted(set(leaves) ^ set(tensors))
    if odd:
        raise ValueError(f"the checkpoint does not fit this version of the method: {odd[0]!r} is in only one of them")
    own = {name: _own_part(party.link, leaf, tensors[name]) for name, leaf in leaves.items()}
    party.state = restore(party.state, _under(own, "method/"))
    for address, state in party.link.compressor_states.items():
        party.link.compressor_states[address] = restore(state, _under(own, f"compressor{address}#"))


def _under(values: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in values.items() if name.startswith(prefix)}


def _own_part(link: Link, leaf: Leaf, value: Tensor) -> Tensor:
    if leaf.placement is Placement.WORKER:
        return value[link.block.low : link.block.high]
    if leaf.placement is Placement.SERVER and not link.holds_server:
        return torch.full_like(value, torch.nan)
    return value
