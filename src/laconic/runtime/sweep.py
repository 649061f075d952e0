"""One text for several runs: those of one method on one problem and seed that differ in its numbers, as stepsizes.

The runs share their randomness, for they have one seed; their values are stacked (`laconic.runtime.stack`), their
messages are made in one batch, and each run has its own bytes. What a sweep computes has the bits of single runs. What
it cannot do that way raises `Unstackable`.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from laconic.core.compressor import Compressor, Dense, Mean, Own, Packet, Sent, Sparse
from laconic.core.flight import AllReduce, Ask, Downlink, Flight, Text, Uplink, drive
from laconic.core.keys import Keys
from laconic.core.link import Link
from laconic.core.problem import Batch, Block, Oracles
from laconic.core.state import Placement, flatten, take
from laconic.runtime.stack import Stack, Unstackable, chosen


@dataclass
class _Shared:
    """What all scopes of the link of a sweep share: how many runs it has, and whether any randomness was used."""

    runs: int
    drew: bool = False


class _Watched(Keys):
    """Keys that say so when the seed is asked for, without which nothing random can be made."""

    def watching(self, shared: _Shared) -> _Watched:
        object.__setattr__(self, "_shared", shared)
        return self

    def __getattribute__(self, name: str) -> Any:
        if name == "seed":
            object.__getattribute__(self, "_shared").drew = True
        return object.__getattribute__(self, name)

    def _like(self, stream: str, workers: np.ndarray) -> Keys:
        seed = object.__getattribute__(self, "seed")
        return _Watched(seed, self.step, stream, workers, self.n).watching(object.__getattribute__(self, "_shared"))

    @property
    def shared(self) -> Keys:
        return self._like(self.stream, Keys(0, 0, "", self.workers, self.n).shared.workers)

    def at(self, rows: Sequence[int] | np.ndarray) -> Keys:
        return self._like(self.stream, self.workers[rows])

    def scope(self, name: str) -> Keys:
        return self._like(f"{self.stream}/{name}", self.workers)


class SweepLink(Link):
    """The link of a sweep: rows of a text are workers, and each of them speaks in every run."""

    def __init__(self, block: Block, seed: int, runs: int) -> None:
        super().__init__(block, seed)
        self._shared = _Shared(runs)

    @property
    def drew(self) -> bool:
        """Whether anything was random so far: if not, all seeds have the same curves."""
        return self._shared.drew

    @property
    def runs(self) -> int:
        return self._shared.runs

    def _view(self, path: str, lent: Any, who: Any) -> Link:
        inner: Any = super()._view(path, lent, who)
        inner._shared = self._shared
        return inner

    def _all_keys(self, kind: str) -> Keys:
        return self._watched(super()._all_keys(kind), self.block.workers)

    def _watched(self, keys: Keys, workers: np.ndarray) -> Keys:
        return _Watched(self._root.seed, keys.step, keys.stream, workers, keys.n).watching(self._shared)

    def lending(self, state: Any) -> Link:
        raise Unstackable("compressors that borrow the state of a mechanism")

    def again(self, packet: Packet, v: Any) -> Packet:
        made = super()._pack(packet.compressor, self._flat(v, v.shape[0]), packet.keys, packet.rows)
        return dataclasses.replace(made, members=packet.members, private=packet.private)

    def _pack(
        self,
        compressor: Compressor,
        v: Any,
        keys: Keys,
        rows: np.ndarray,
        lent: Any = None,
        other: Any = None,
        sign: int = 1,
    ) -> Packet:
        """Each row in every run: worker by worker, and the runs of a worker one after another."""
        runs = self.runs
        tiled = self._watched(keys, np.repeat(keys.workers, runs))
        places = (rows[:, None] * runs + np.arange(runs)).reshape(-1)
        beside = None if other is None else self._flat(other, len(rows))
        return super()._pack(compressor, self._flat(v, len(rows)), tiled, places, None, beside, sign)

    def _flat(self, v: Any, rows: int) -> Tensor:
        """A value of the workers as one row per worker and run."""
        if not isinstance(v, Stack):
            v = Stack(v[:, None].expand(rows, self.runs, *v.shape[1:]), 1)
        if v.axis == 0:
            v = v.expand((rows, *v.shape))
        if v.data.shape[0] != rows:
            raise Unstackable("rows of one worker beside those of several")
        return v.data.reshape(rows * self.runs, *v.data.shape[2:])

    def _state(self, compressor: Compressor, shape: tuple[int, ...], dtype: torch.dtype, keys: Keys) -> Any:
        state = super()._state(compressor, shape, dtype, keys)
        if any(leaf.placement is not Placement.WORKER for leaf in flatten(state).values()):
            raise Unstackable(f"{compressor}, whose state is not each row's own")
        return state

    def keep(self, index: np.ndarray) -> None:
        """Goes on with some of the runs."""
        states = self._root.states
        for address, state in states.items():
            rows = len(next(iter(flatten(state).values())).tensor) // self.runs
            states[address] = take(state, (np.arange(rows)[:, None] * self.runs + index).reshape(-1))
        self._shared.runs = len(index)


class SweepOracles(Oracles):
    """The oracles of a block, at one point per run or per worker and run."""

    def __init__(self, whole: Oracles, runs: int) -> None:
        super().__init__()
        self.block, self.shape, self.dtype, self.convex = whole.block, whole.shape, whole.dtype, whole.convex
        self.regulariser, self.whole, self.runs = whole.regulariser, whole, runs
        self.maximised = whole.maximised
        self._points = torch.empty((0, *self.shape), dtype=self.dtype)

    def terms(self) -> np.ndarray:
        return self.whole.terms()

    def start(self) -> Any:
        x = self.whole.start()
        return Stack(x.expand(self.runs, *x.shape).clone(), 0)

    def _values(self, x: Any, rows: np.ndarray) -> Any:
        points, tiled = self.spread(x, rows)
        return Stack(self.whole._values(points, tiled).view(len(rows), self.runs), 1)

    def _gradients(self, x: Any, rows: np.ndarray, batch: Batch | None) -> Any:
        if not isinstance(x, Stack):
            return self.whole._gradients(x, rows, batch)
        points, tiled = self.spread(x, rows)
        if batch is not None:
            batch = Batch(tiled, np.repeat(batch.indices, self.runs, axis=0))
        return Stack(self.whole._gradients(points, tiled, batch).view(len(rows), self.runs, *self.shape), 1)

    def spread(self, x: Stack, rows: np.ndarray) -> tuple[Tensor, np.ndarray]:
        """Points and rows of every worker and run. The points are borrowed until the next call."""
        count = len(rows) * self.runs
        if len(self._points) < count or self._points.dtype != x.dtype:
            self._points = torch.empty((count, *self.shape), dtype=x.dtype)
        points = self._points[:count]
        points.view(len(rows), self.runs, *self.shape).copy_(x.data)
        whole = rows is self._all_rows
        return points, _repeated(len(rows), self.runs) if whole else np.repeat(rows, self.runs)


@functools.lru_cache(maxsize=64)
def _repeated(size: int, runs: int) -> np.ndarray:
    return np.repeat(np.arange(size), runs)


@dataclass(frozen=True)
class StackedOwn(Own):
    """What the other side decoded, of every worker in every run; `local` workers."""

    runs: int = 1

    def dense(self) -> Any:
        rows = dataclasses.replace(self, local=self.local * self.runs)
        return Stack(Own.dense(rows).view(self.local, self.runs, *self.packet.shape), 1)

    def add_to(self, target: Any, scale: float = 1.0) -> None:
        self.packet.decoded.scatter(_written(target, scale).flatten(0, 1), self.packet.rows, scale)


@dataclass(frozen=True)
class StackedMean(Mean):
    """The mean over workers in every run, added in worker order."""

    runs: int = 1

    def dense(self) -> Any:
        first = self.packets[0]
        out = Stack(torch.zeros((self.runs, *first.shape), dtype=first.dtype), 0)
        self.add_to(out)
        return out

    def add_to(self, target: Any, scale: float = 1.0) -> None:
        (packet,), runs, out = self.packets, self.runs, _written(target, scale)
        decoded = packet.decoded
        if isinstance(decoded, Sparse):
            begins = _begins(decoded.offsets, runs, out[0].numel())
            places = decoded.indices + begins
            Sparse(places, decoded.values, decoded.offsets, (out.numel(),)).fold(out, scale / self.n)
            return
        if not isinstance(decoded, Dense):
            raise Unstackable(f"what {packet.compressor} decodes to")
        values = decoded.values.reshape(packet.message.rows // runs, runs, *packet.shape)
        Dense(values).fold(out, scale / self.n)


def _begins(offsets: np.ndarray, runs: int, each: int) -> Tensor:
    """Where the values of its run begin, for every value of sparse rows whose runs follow one another."""
    lengths = offsets[1:] - offsets[:-1]
    if len(lengths) and (lengths == lengths[0]).all():
        return _even(len(lengths), int(lengths[0]), runs, each)
    return torch.from_numpy(np.repeat(np.tile(np.arange(runs) * each, len(lengths) // runs), lengths))


@functools.lru_cache(maxsize=8)
def _even(rows: int, length: int, runs: int, each: int) -> Tensor:
    return torch.from_numpy(np.repeat(np.tile(np.arange(runs) * each, rows // runs), length))


def _written(target: Any, scale: Any) -> Tensor:
    if not isinstance(target, Stack) or not isinstance(scale, (int, float)) or not target.data.is_contiguous():
        raise Unstackable("messages added to what is not each run's own, or with a factor of each run")
    return target.data


@dataclass(frozen=True)
class StackedSent(Sent):
    """What an uplink leaves behind in every run."""

    runs: int = 1

    def among(self, rows: np.ndarray) -> Sent:
        places = (rows[:, None] * self.runs + np.arange(self.runs)).reshape(-1)
        packet = dataclasses.replace(self.own.packet, rows=np.searchsorted(places, self.own.packet.rows))
        return dataclasses.replace(self, own=StackedOwn(packet, len(rows), self.runs))


class Sweep:
    """Runs texts of several runs on n workers, and counts what each run says.

    Attributes
    ----------
    link : what the texts talk to.
    uplink, downlink : bytes per worker and run so far, int64 of shape (n, runs).
    rounds : of communication, the same in all runs.
    """

    def __init__(self, n: int, *, seed: int, runs: int) -> None:
        self.link = SweepLink(Block.whole(n), seed, runs)
        self.uplink = np.zeros((n, runs), dtype=np.int64)
        self.downlink = np.zeros((n, runs), dtype=np.int64)
        self.rounds = 0

    @property
    def n(self) -> int:
        return self.link.n

    @property
    def runs(self) -> int:
        return self.link.runs

    def drive(self, text: Text) -> Any:
        """Runs a text to its end."""
        return drive(text, self._perform)

    def keep(self, state: Any, index: np.ndarray) -> Any:
        """Goes on with some of the runs; gives their state."""
        self.link.keep(index)
        self.uplink, self.downlink = self.uplink[:, index], self.downlink[:, index]
        return chosen(state, torch.from_numpy(index))

    def _perform(self, flight: Flight) -> list[Any]:
        spoke = False
        replies = []
        for ask in flight:
            replies.append(self._answer(ask))
            spoke = spoke or isinstance(ask, (Uplink, AllReduce))
        self.rounds += spoke
        return replies

    def _answer(self, ask: Ask) -> Any:
        if isinstance(ask, Uplink):
            packet, runs = ask.packet, self.runs
            self.uplink += self._bytes(packet) + int(packet.private)
            own, mean = StackedOwn(packet, self.n, runs), StackedMean([packet], self.n, runs)
            return StackedSent(own, mean, packet.message.rows // runs, runs)
        if isinstance(ask, Downlink):
            sizes = ask.packet.message.nbytes
            self.downlink[slice(None) if ask.to is None else ask.to] += sizes
            return Stack(ask.packet.decoded.dense().clone(), 0)
        if isinstance(ask, AllReduce):
            sizes = self._bytes(ask.packet)
            self.uplink += sizes
            self.downlink += sizes
            return StackedMean([ask.packet], self.n, self.runs).dense()
        raise Unstackable(f"{type(ask).__name__} in a sweep")

    def _bytes(self, packet: Packet) -> np.ndarray:
        """Bytes per worker and run."""
        sizes = packet.message.nbytes
        if packet.message.rows == self.n * self.runs:
            return sizes.reshape(self.n, self.runs)
        out = np.zeros(self.n * self.runs, dtype=np.int64)
        out[packet.rows] = sizes
        return out.reshape(self.n, self.runs)
