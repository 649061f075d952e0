"""A recorded asynchronous run once more, in the order in which its gradients were used."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
import torch
from torch import Tensor

from laconic.core.entry import Count, Range, Stepsize
from laconic.core.flight import together
from laconic.core.link import Link
from laconic.core.method import Method, number, resolve
from laconic.core.problem import Oracles
from laconic.core.state import Server
from laconic.core.theory import Guarantee, Setting
from laconic.methods._asynchronous import ASGRAD, promise


@dataclass(frozen=True)
class Recorded(Range):
    """Pairs of a worker and the version of the model that its gradient is about."""

    def holds(self, value: Any) -> bool:
        return isinstance(value, tuple) and len(value) > 0 and all(self._pair(one) for one in value)

    def _pair(self, one: Any) -> bool:
        return isinstance(one, tuple) and len(one) == 2 and all(Count(0).holds(part) for part in one)

    def examples_outside(self) -> tuple[Any, ...]:
        return ((), "01", ((0,),), ((0, -1),), ((0, 0), (0.5, 0)), ((0, True),))

    def __str__(self) -> str:
        return "a tuple of pairs (worker, version of the model) of integers >= 0, in the order of their use"


@dataclass
class State:
    """The model, and the earlier ones that are still to be used."""

    x: Server  # (*shape)
    kept: Server  # (slots, *shape)


@dataclass(frozen=True)
class ReplayedAsync(Method):
    """x_(t+1) = x_t - step g_i(x_v), with worker i and version v as recorded. After its last step nothing moves.

    `order` is what the server of a real asynchronous run keeps (laconic.runtime.asynchronous); with it and the step of
    that run x is the same, bit for bit. A model goes down when its gradient is due.

    Guarantee (recalled): as of pure_async, with the age of the oldest gradient that was recorded.

    Parameters
    ----------
    order : pairs of a worker and a version of the model, x^0 being version 0; one step uses `wait` of them.
    step : None is the theorem's.
    wait : how many gradients a step takes the mean of.

    >>> str(ReplayedAsync(((0, 0), (1, 0), (0, 1)), step=0.1))
    'replayed_async(order=((0, 0), (1, 0), (0, 1)), step=0.1)'
    """

    order: Annotated[tuple[tuple[int, int], ...], Recorded()]
    step: Stepsize = None
    wait: Annotated[int, Count(1)] = 1

    name = "replayed_async"
    example = "replayed_async(order=((0, 0), (1, 0), (0, 1), (1, 2)))"
    source = ASGRAD

    def __post_init__(self) -> None:
        super().__post_init__()
        for t, group in enumerate(self._groups):
            late = next(((worker, version) for worker, version in group if version > t), None)
            if late is not None:
                raise ValueError(
                    f"ReplayedAsync(order=...) : step {t + 1} uses version {late[1]} of the model, made only later"
                )
            if len({worker for worker, _ in group}) < len(group):
                raise ValueError(f"ReplayedAsync(order=...) : step {t + 1} uses two gradients of one worker")

    @functools.cached_property
    def _groups(self) -> Sequence[Sequence[tuple[int, int]]]:
        """What each step uses, by worker; a last step that is not whole is left out."""
        whole = len(self.order) // self.wait
        return [sorted(self.order[t * self.wait : (t + 1) * self.wait]) for t in range(whole)]

    @functools.cached_property
    def _slots(self) -> dict[int, int]:
        """Where each version is kept that is used but the first: in the first slot whose version is used no more."""
        last = {version: t for t, group in enumerate(self._groups) for _, version in group}
        free_from: list[int] = []
        slots: dict[int, int] = {}
        for version in sorted(last.keys() - {0}):  # it is made in iteration `version`, and groups count from 0
            slot = next((i for i, until in enumerate(free_from) if until < version), len(free_from))
            free_from[slot:] = [last[version], *free_from[slot + 1 :]]
            slots[version] = slot
        return slots

    def settled(self, setting: Setting) -> ReplayedAsync:
        most = max(worker for worker, _ in self.order)
        if most >= setting.n:
            raise ValueError(f"replayed_async(order=...) : it is of worker {most}, and there are {setting.n} workers")
        return dataclasses.replace(self, step=resolve(self.step, lambda: self.guarantee(setting).step))

    def guarantee(self, setting: Setting) -> Guarantee:
        stale = max((t - version for t, group in enumerate(self._groups) for _, version in group), default=0)
        return promise(setting, stale, self.wait, math.inf)

    async def init(self, oracles: Oracles, link: Link) -> State:
        x = oracles.start()
        return State(x, x.expand(max(1, len(set(self._slots.values()))), *x.shape).clone())

    async def iterate(self, state: State, oracles: Oracles, link: Link) -> State:
        if link.step > len(self._groups):
            return state
        group = self._groups[link.step - 1]
        workers, versions = np.array([worker for worker, _ in group]), np.array([version for _, version in group])
        who = link.cohort(workers)
        points = await self._told(versions, workers, state, oracles, link)
        here = torch.from_numpy(np.searchsorted(workers, who.rows + link.block.low))
        sent = await link.uplink(None, oracles.gradients(points[here], who.rows), who)
        x = state.x.clone()
        sent.mean.add_to(x, scale=-number(self.step) * link.n / self.wait)
        if link.step in self._slots:
            state.kept[self._slots[link.step]] = x
        return dataclasses.replace(state, x=x)

    async def _told(
        self, versions: np.ndarray, workers: np.ndarray, state: State, oracles: Oracles, link: Link
    ) -> Tensor:
        """The models as their workers hear them, (wait, *shape); the first one everybody knows."""
        different = [int(version) for version in np.unique(versions) if version > 0]
        heard = await together(*(
            link.broadcast(state.kept[self._slots[version]], to=link.cohort(workers[versions == version]))
            for version in different
        ))  # fmt: skip
        points = oracles.start().expand(len(versions), *state.x.shape).clone()
        for version, model in zip(different, heard, strict=True):
            points[torch.from_numpy(versions == version)] = model
        return points

    def point(self, state: State) -> Tensor:
        return state.x
