"""Runs of methods in this process, every state in view: in all runtimes, from the middle, through failures."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from laconic.checks.trial import same
from laconic.core import rows
from laconic.core.compressor import Packet
from laconic.core.entry import Entry, parameters
from laconic.core.link import Link
from laconic.core.mechanism import Mechanism
from laconic.core.method import Method
from laconic.core.problem import Block, Problem, Solution
from laconic.core.registry import catalogue
from laconic.core.state import Leaf, Placement, flatten, restore
from laconic.core.theory import Guarantee, NoTheorem, Setting, Snapshot
from laconic.runtime.local import Local


class Weighed(Local):
    """A simulator in which every message is packed, and the bytes are held against what the ledger enters."""

    odd: str = ""

    def _through_bytes(self, packet: Packet) -> Packet:
        sizes, packed = packet.message.nbytes, packet.message.pack()
        if int(sizes.sum()) != len(packed):
            self.odd = f"a message says {int(sizes.sum())} bytes and packs to {len(packed)}"
        return Local._through_bytes(self, packet)


RUNTIMES: dict[str, Callable[[int, int], Local]] = {
    "in three parts": lambda n, seed: Local(n, seed=seed, parts=3),
    "with messages as bytes": lambda n, seed: Weighed(n, seed=seed, encoded=True),
    "in a part for each worker and two for none": lambda n, seed: Local(n, seed=seed, parts=n + 2),
    "in a star": lambda n, seed: Local.debug(n, seed=seed),
    "in a star, with messages as bytes": lambda n, seed: Local.debug(n, seed=seed, encoded=True),
}


def descent(mechanism: Mechanism, **other: Any) -> Method:
    """Gradient descent with a mechanism."""
    gd: Any = catalogue().find("gd")
    return gd(mechanism, **other)


def with_parameter(entry: Any, **values: Any) -> Any:
    """The entry with other values of those of its parameters that are named, where it has them."""
    known = {parameter.name for parameter in parameters(type(entry))}
    return dataclasses.replace(entry, **{name: value for name, value in values.items() if name in known})


def settled(method: Method, setting: Setting) -> Method:
    """With theory's step in the place of any multiple of it, and a small explicit step where there is no theorem.

    Raises ValueError where the method cannot be settled in any of these ways.
    """
    open_step = with_parameter(method, step=None)
    try:
        return open_step.settled(setting)
    except NoTheorem:
        small = 0.05 / float(setting.constants.L_max)
        return with_parameter(method, step=small).settled(setting)


@dataclass
class Course:
    """A settled method on its way: `states` and `oracles` of every party; `go` moves on."""

    method: Method
    problem: Problem
    runtime: Local
    oracles: list[Any] = field(default_factory=list)
    states: list[Any] = field(default_factory=list)
    step: int = 0

    def __post_init__(self) -> None:
        self.oracles = self.oracles or [self.problem.host(link.block) for link in self.runtime.links]
        self._begin(0)
        pairs = zip(self.oracles, self.runtime.links, strict=True)
        self.states = self.runtime.drive(*(self.method.init(oracles, link) for oracles, link in pairs))

    def _begin(self, step: int) -> None:
        self.step = step
        for link in self.runtime.links:
            link.begin(step)

    def go(self, iterations: int = 1) -> Course:
        for _ in range(iterations):
            self._begin(self.step + 1)
            parties = zip(self.states, self.oracles, self.runtime.links, strict=True)
            self.states = self.runtime.drive(*(self.method.iterate(s, o, link) for s, o, link in parties))
        return self

    @property
    def state(self) -> Any:
        """The first party's, which holds the server."""
        return self.states[0]

    @property
    def x(self) -> Tensor:
        """The server's model."""
        return self.method.point(self.state).clone()

    def gap(self) -> float:
        """f(x) - f*, of a course with one party."""
        return float(self.oracles[0].excess(self.x, self._solution).mean())

    def guarantee(self) -> Guarantee:
        """The method's promise."""
        return self.method.guarantee(Setting.of(self.problem, self.problem.oracles(Block.whole(self.problem.n))))

    def lyapunov(self, promise: Guarantee | None = None) -> float:
        """The Lyapunov function of a promise, or else of the method's own, of a course with one party."""
        (oracles,), x = self.oracles, self.x
        promise = promise or self.guarantee()
        assert promise.lyapunov is not None
        gradient = rows.mean(oracles.gradients(x))
        return promise.lyapunov(Snapshot(x, self.gap(), gradient, self.state, oracles, self._solution)).value

    @functools.cached_property
    def _solution(self) -> Solution:
        found = self.problem.solution()
        assert found is not None
        return found


def course(method: Method, problem: Problem, seed: int = 3, runtime: Local | None = None) -> Course:
    """A settled method after its init, in the plain simulator if no runtime is given."""
    return Course(method, problem, runtime or Local(problem.n, seed=seed))


def whole(run: Course) -> dict[str, Tensor]:
    """Every tensor of the state: all workers' rows, and the server's values as the first party holds them."""
    parts = [flatten(state) for state in run.states]
    return {
        name: torch.cat([part[name].tensor for part in parts]) if leaf.placement is Placement.WORKER else leaf.tensor
        for name, leaf in parts[0].items()
    }


def frozen(run: Course) -> dict[str, Tensor]:
    """Copies of everything that the first party holds, compressors' states included."""
    held = flatten(run.states[0]) | run.runtime.links[0].compressor_leaves()
    return {name: leaf.tensor.clone() for name, leaf in held.items()}


def difference(a: dict[str, Tensor], b: dict[str, Tensor]) -> str:
    """The first name whose tensors are not the same bits, or nothing."""
    if a.keys() != b.keys():
        return sorted(a.keys() ^ b.keys())[0]
    return next((name for name in a if not same(a[name], b[name])), "")


def ledgers_differ(one: Local, other: Local) -> bool:
    """Whether two runs were not entered alike."""
    a, b = one.ledger, other.ledger
    bytes_ = np.array_equal(a.uplink, b.uplink) and np.array_equal(a.downlink, b.downlink)
    return not bytes_ or (a.rounds, a.messages_up, a.messages_down) != (b.rounds, b.messages_up, b.messages_down)


def carry(first: Course, second: Course) -> None:
    """Gives a course that has just begun the state of another one, as a checkpoint would."""
    parts = [flatten(state) for state in first.states]
    compressors = [link.compressor_leaves() for link in first.runtime.links]
    for place, link in enumerate(second.runtime.links):
        own = {name: _part(name, leaf, parts, link) for name, leaf in flatten(second.states[place]).items()}
        second.states[place] = restore(second.states[place], {name: leaf.tensor for name, leaf in own.items()})
        link.restore_compressors({name: _part(name, leaf, compressors, link) for name, leaf in compressors[0].items()})
    second.step = first.step


def _part(name: str, leaf: Leaf, parts: list[dict[str, Leaf]], link: Link) -> Leaf:
    every = parts[0][name].tensor
    if leaf.placement is Placement.WORKER:
        every = torch.cat([part[name].tensor for part in parts])[link.block.low : link.block.high]
    elif leaf.placement is Placement.SERVER and not link.holds_server:
        every = torch.full_like(every, math.nan)
    return dataclasses.replace(leaf, tensor=every)


def parts_of(entry: Entry, kind: type) -> list[Any]:
    """The entries of a kind among the parameters of an entry, in depth."""
    found: list[Any] = []
    if dataclasses.is_dataclass(entry):
        for parameter in parameters(type(entry)):
            value = getattr(entry, parameter.name)
            found += [value] if isinstance(value, kind) else []
            found += parts_of(value, kind) if isinstance(value, Entry) else []
    return found


def replaced(entry: Any, kind: type, value: Entry) -> Any:
    """The entry with every part of a kind, in depth, replaced by one value."""
    if not dataclasses.is_dataclass(entry):
        return entry
    changed: dict[str, Any] = {}
    for parameter in parameters(type(entry)):
        own = getattr(entry, parameter.name)
        if isinstance(own, kind):
            changed[parameter.name] = value
        elif isinstance(own, Entry):
            changed[parameter.name] = replaced(own, kind, value)
    copied: Any = dataclasses.replace
    return copied(entry, **changed) if changed else entry
