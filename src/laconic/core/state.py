"""Placements: whose value a field of a state is. Checkpoints and other numbers of processes follow from it."""

from __future__ import annotations

import dataclasses
import enum
import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, get_args, get_origin, get_type_hints

import numpy as np
import torch
from torch import Tensor


class Placement(enum.Enum):
    """Who holds a value."""

    WORKER = "worker"  # (local, ...): one row per local worker
    SERVER = "server"  # the server's alone; floating point, NaN elsewhere in a star
    SHARED = "shared"  # the same on every party


Worker = Annotated[Tensor, Placement.WORKER]
Server = Annotated[Tensor, Placement.SERVER]
Shared = Annotated[Tensor, Placement.SHARED]


@dataclass(frozen=True)
class Leaf:
    """One tensor of a state and who holds it."""

    tensor: Tensor
    placement: Placement


@functools.cache
def _marks(cls: type) -> dict[str, Placement | None]:
    hints = get_type_hints(cls, include_extras=True)
    return {field.name: _mark(hints[field.name]) for field in dataclasses.fields(cls)}


def _mark(hint: Any) -> Placement | None:
    """The placement marked on a type hint, looking inside containers and unions: dict[str, Worker], Worker | None."""
    if get_origin(hint) is Annotated:
        return next((extra for extra in hint.__metadata__ if isinstance(extra, Placement)), None)
    return next((mark for argument in get_args(hint) if (mark := _mark(argument)) is not None), None)


def flatten(state: Any, prefix: str = "", placement: Placement | None = None) -> dict[str, Leaf]:
    """Every tensor of a state by its dotted path. Numbers become 0-d tensors that all parties share.

    A state is a dataclass whose tensor fields are marked Worker, Server or Shared; it may hold other states, lists,
    tuples, dicts with text keys, numbers and None. Raises TypeError for a tensor without a mark, or anything else.
    """
    if state is None:
        return {}
    if isinstance(state, Tensor):
        if placement is None:
            raise TypeError(f"the tensor {prefix!r} of a state is not marked Worker, Server or Shared")
        return {prefix: Leaf(state, placement)}
    if isinstance(state, (bool, int, float)):
        dtype = torch.float64 if isinstance(state, float) else torch.int64
        return {prefix: Leaf(torch.tensor(state, dtype=dtype), Placement.SHARED)}
    leaves: dict[str, Leaf] = {}
    for name, value, mark in _children(state, prefix, placement):
        leaves |= flatten(value, f"{prefix}.{name}" if prefix else name, mark)
    return leaves


def _children(state: Any, prefix: str, placement: Placement | None) -> list[tuple[str, Any, Placement | None]]:
    if dataclasses.is_dataclass(state) and not isinstance(state, type):
        marks = _marks(type(state))
        return [(name, getattr(state, name), mark) for name, mark in marks.items()]
    if isinstance(state, dict):
        return [(str(name), value, placement) for name, value in state.items()]
    if isinstance(state, (list, tuple)):
        return [(str(name), value, placement) for name, value in enumerate(state)]
    raise TypeError(f"a state cannot hold {type(state).__name__} at {prefix!r}")


def restore(state: Any, values: Mapping[str, Tensor]) -> Any:
    """The state with the tensors of `values` (as named by `flatten`) in place of its own.

    Raises ValueError where a tensor is missing or has another shape or dtype.
    """

    def saved(name: str, own: Any, placement: Placement | None) -> Any:
        if name not in values:
            raise ValueError(f"the checkpoint has no {name!r}; it belongs to another method or version")
        value = values[name]
        if not isinstance(own, Tensor):
            return type(own)(value.item())
        if value.shape != own.shape or value.dtype != own.dtype:
            raise ValueError(f"the checkpoint's {name!r} is {_form(value)} and the run needs {_form(own)}")
        return value.clone()

    return _rebuilt(state, saved)


def take(state: Any, rows: np.ndarray) -> Any:
    """The state of some of the local workers."""
    index = torch.from_numpy(rows)
    return _rebuilt(state, lambda name, own, placement: own[index] if placement is Placement.WORKER else own)


def put(state: Any, rows: np.ndarray, part: Any) -> Any:
    """The state with what `take` gave, moved on since, in its place."""
    index, leaves = torch.from_numpy(rows), flatten(part)

    def merged(name: str, own: Any, placement: Placement | None) -> Any:
        if placement is Placement.WORKER:
            return own.index_copy(0, index, leaves[name].tensor)
        return leaves[name].tensor if isinstance(own, Tensor) else type(own)(leaves[name].tensor.item())

    return _rebuilt(state, merged)


def _rebuilt(
    state: Any, leaf: Callable[[str, Any, Placement | None], Any], prefix: str = "", placement: Placement | None = None
) -> Any:
    """A state of the same structure with every tensor and number replaced by `leaf(path, value, placement)`."""
    if state is None:
        return None
    if isinstance(state, (Tensor, bool, int, float)):
        return leaf(prefix, state, placement)
    dot = f"{prefix}." if prefix else ""
    children = _children(state, prefix, placement)
    renewed = {name: _rebuilt(value, leaf, dot + name, mark) for name, value, mark in children}
    if isinstance(state, (list, tuple)):
        return type(state)(renewed.values())
    if isinstance(state, dict):
        return {key: renewed[str(key)] for key in state}
    return dataclasses.replace(state, **renewed)


def _form(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {tuple(tensor.shape)}"
