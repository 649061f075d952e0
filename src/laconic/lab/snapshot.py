"""The state of a running curve as plain tensors of all n workers, and back onto any number of processes."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from laconic.core.link import Link
from laconic.core.state import Leaf, Placement, flatten, restore
from laconic.lab.evaluate import Party

METHOD, COMPRESSORS = "method/", "compressor/"


def _leaves(party: Party) -> dict[str, Leaf]:
    """Everything a party must keep, by name; a compressor's leaf says in its name who holds it."""
    leaves = {f"{METHOD}{name}": leaf for name, leaf in flatten(party.state).items()}
    for name, leaf in sorted(party.link.compressor_leaves().items()):
        leaves[f"{COMPRESSORS}{leaf.placement.value}{name}"] = leaf
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


def put_back(party: Party, tensors: Mapping[str, Tensor]) -> None:
    """Gives a party that was initialised afresh the state in a checkpoint. Raises ValueError where they do not fit."""
    leaves = flatten(party.state)
    odd = sorted({f"{METHOD}{name}" for name in leaves} ^ {name for name in tensors if name.startswith(METHOD)})
    if odd:
        raise ValueError(f"the checkpoint does not fit this version of the method: {odd[0]!r} is in only one of them")
    own = {name: _own_part(party.link, leaf.placement, tensors[f"{METHOD}{name}"]) for name, leaf in leaves.items()}
    party.state = restore(party.state, own)
    compressors = {}
    for name, value in tensors.items():
        if name.startswith(COMPRESSORS):
            holder, slash, address = name.removeprefix(COMPRESSORS).partition("/")
            placement = Placement(holder)
            compressors[slash + address] = Leaf(_own_part(party.link, placement, value), placement)
    party.link.restore_compressors(compressors)


def _own_part(link: Link, placement: Placement, value: Tensor) -> Tensor:
    if placement is Placement.WORKER:
        if value.shape[0] != link.n:
            raise ValueError(f"the checkpoint has {value.shape[0]} workers' rows and the run has {link.n} workers")
        return value[link.block.low : link.block.high]
    if placement is Placement.SERVER and not link.holds_server:
        return torch.full_like(value, torch.nan)
    return value
