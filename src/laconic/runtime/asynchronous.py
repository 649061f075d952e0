"""Asynchronous methods over `torch.distributed`: a server that steps whenever a worker is done, and real workers.

Rank 0 is the server, rank i + 1 is worker i; messages travel from point to point. The server keeps the order in which
gradients were used; `replayed_async` follows it in the simulator, to the same x bit for bit.
"""

from __future__ import annotations

import contextlib
import math
import queue
import sys
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from laconic.core.compressor import Exact, Mean, Packet
from laconic.core.keys import Keys
from laconic.core.ledger import Account, Ledger
from laconic.core.link import Link
from laconic.core.message import Malformed, Message
from laconic.core.problem import Block, Oracles
from laconic.runtime.carrier import Carrier, NetworkFailure, Sizes

__all__ = ["NetworkFailure", "Served", "serve", "work"]

STOP, JOB = 0, 1  # the first byte of what the server sends; the model follows
SETTLED = 0.05  # seconds without news after which a failure is one of its own


@runtime_checkable
class Serving(Protocol):
    """What the server asks of an asynchronous method."""

    @property
    def per_step(self) -> int:
        """How many gradients make one step."""
        ...

    def scale(self, n: int) -> float:
        """What their sum over n is multiplied by, to be added to x."""
        ...

    def assigned(self, finished: np.ndarray, link: Link) -> np.ndarray:
        """The workers who get new jobs, one for each of those who have finished; link.step is the new version."""
        ...


@dataclass(frozen=True)
class Served:
    """What a run left at the server.

    Attributes
    ----------
    x : the model after the last step.
    order : (worker, version of the model) of every gradient that was used, in the order of its use.
    lost : (worker, step) of the workers who died on the way.
    ledger : bytes, messages and steps (as rounds).
    """

    x: Tensor
    order: tuple[tuple[int, int], ...]
    lost: tuple[tuple[int, int], ...]
    ledger: Ledger


class _Wire:
    """Models and gradients as bytes: what `Exact` makes of them, read back without trust."""

    def __init__(self, shape: tuple[int, ...], dtype: torch.dtype, n: int) -> None:
        self._shape, self._dtype, self._n = shape, dtype, n
        self.size = dtype.itemsize * math.prod(shape)

    def packed(self, v: Tensor) -> np.ndarray:
        """The bytes of one vector (*shape)."""
        return self._packet(Exact().codes(v[None].contiguous(), self._keys(0)), 0).message.pack()

    def unpacked(self, data: np.ndarray, worker: int) -> Packet:
        """A worker's message. Raises Malformed."""
        keys = self._keys(worker)
        schema = Exact().schema(self._shape, self._dtype, keys)
        return self._packet(Message.unpack(data, np.array([len(data)]), schema).codes, worker)

    def _packet(self, codes: tuple[Tensor, ...], worker: int) -> Packet:
        keys = self._keys(worker)
        message = Message(Exact().schema(self._shape, self._dtype, keys), codes, 1)
        return Packet(Exact(), message, keys, self._shape, self._dtype, np.zeros(1, dtype=np.int64))

    def _keys(self, worker: int) -> Keys:
        return Keys(0, 0, "asynchronous", np.array([worker]), self._n)


@dataclass
class _Worker:
    """What the server knows of one worker."""

    alive: bool = True
    version: int | None = None  # of the job that it is at work on
    jobs: deque[tuple[int, Tensor]] = field(default_factory=deque)  # those that wait


def serve(
    method: Serving, oracles: Oracles, steps: int, *, seed: int = 0, needs: int | None = None,
    say: Callable[[str], None] | None = None, group: dist.ProcessGroup | None = None,
) -> Served:  # fmt: skip
    """The server's part, on rank 0: so many steps from x^0, with the workers of all other ranks.

    Parameters
    ----------
    method : a settled asynchronous method.
    oracles : of a block without workers; the server asks them for x^0 alone.
    steps : of the server.
    seed : of the method's draws.
    needs : how many living workers the server goes on with when one dies; None needs all of them.
    say : is told of deaths, in one line each; None prints them on standard error.
    group : the default is the group of `torch.distributed`, whose timeout is the longest that one gradient may take.

    Raises
    ------
    NetworkFailure : in one line, where fewer workers are left than are needed, or one does not answer in time.
    """
    _refuse_world(oracles.block.n, group)
    return _Server(method, oracles.start(), seed, needs, say or _say, group).run(steps)


def work(oracles: Oracles, group: dist.ProcessGroup | None = None) -> int:
    """A worker's part: gradients of the one worker in the oracles' block, until the server says stop. Returns how many.

    Raises NetworkFailure, in one line, where the server is gone, and Malformed for what no server says.
    """
    n = oracles.block.n
    _refuse_world(n, group)
    carrier = Carrier(Ledger(n), group)
    wire = _Wire(oracles.shape, oracles.dtype, n)
    done = 0
    while True:
        data = carrier.receive(0, _sizes("job", 1 + wire.size, carrier))
        if data[0] == STOP:
            return done
        if data[0] != JOB:
            raise Malformed(f"the server sent a message of kind {data[0]}; there are {STOP} and {JOB}")
        x = wire.unpacked(data[1:], 0).decoded.dense()
        carrier.send(wire.packed(oracles.gradients(x)[0]), 0, _sizes("gradient", wire.size, carrier))
        done += 1


def _refuse_world(n: int, group: dist.ProcessGroup | None) -> None:
    world = dist.get_world_size(group)
    if world != n + 1:
        raise ValueError(f"a server and {n} workers are {n + 1} processes, and there are {world}; start {n + 1}")


def _timed_out(failure: NetworkFailure) -> bool:
    return "timed out" in str(failure).lower()


def _sizes(address: str, size: int, carrier: Carrier) -> Sizes:
    return Sizes(address, [size] * carrier.world, size)


def _say(line: str) -> None:
    print(f"laconic: {line}", file=sys.stderr)


class _Server:
    """The server of one run. A thread per worker waits for its gradient; all decisions are made in one thread."""

    def __init__(
        self, method: Serving, start: Tensor, seed: int, needs: int | None, say: Callable[[str], None],
        group: dist.ProcessGroup | None,
    ) -> None:  # fmt: skip
        self.n, self.method, self.x, self.say = dist.get_world_size(group) - 1, method, start.clone(), say
        self.needs = max(method.per_step, self.n if needs is None else needs)
        self.ledger = Ledger(self.n)
        self._handed = [Ledger(self.n) for _ in range(self.n)]  # each thread has its own
        self.carriers = [Carrier(ledger, group) for ledger in self._handed]
        self.wire = _Wire(tuple(start.shape), start.dtype, self.n)
        self.link = Link(Block(0, 0, self.n), seed)
        self.workers = [_Worker() for _ in range(self.n)]
        self.inbox: queue.SimpleQueue[tuple[int, np.ndarray | NetworkFailure]] = queue.SimpleQueue()
        self.order: list[tuple[int, int]] = []
        self.lost: list[tuple[int, int]] = []
        self.step = 0
        self._down = np.zeros(self.n, dtype=np.int64)
        self._threads = ThreadPoolExecutor(max_workers=self.n)

    def run(self, steps: int) -> Served:
        """All steps. However it ends, the living workers are told to stop."""
        try:
            for worker in range(self.n):
                self._give(worker)
            self._enter([])
            while self.step < steps:
                self._advance()
        finally:
            self._dismiss()
        transport = self.ledger.transport
        transport.payload = int(self.ledger.downlink.sum())
        transport.framing = max(0, sum(one.transport.framing for one in self._handed) - transport.payload)
        return Served(self.x, tuple(self.order), tuple(self.lost), self.ledger)

    def _advance(self) -> None:
        arrived: list[tuple[int, int, Packet]] = []
        while len(arrived) < self.method.per_step:
            arrived.append(self._next(bool(arrived)))
        packets = [packet for _, _, packet in sorted(arrived, key=lambda one: one[0])]
        x = self.x.clone()
        Mean(packets, self.n).add_to(x, scale=self.method.scale(self.n))
        self.x, self.step = x, self.step + 1
        self.order += [(worker, version) for worker, version, _ in arrived]
        speakers = [worker for worker, _, _ in arrived]
        self.link.begin(self.step)
        for worker in self.method.assigned(np.array(speakers), self.link).tolist():
            self._give(self._living(worker))
        self._enter(speakers)

    def _next(self, some: bool) -> tuple[int, int, Packet]:
        """The next gradient: its worker, the version it is about, and itself."""
        while True:
            if not some and all(worker.version is None for worker in self.workers):
                for place, worker in enumerate(self.workers):  # all jobs died with their workers
                    if worker.alive:
                        self._give(place)
            place, data = self.inbox.get()
            worker = self.workers[place]
            if isinstance(data, NetworkFailure):
                self._lose(place, data)
                continue
            version = worker.version
            assert version is not None
            packet = self._read(place, data)
            worker.version = None
            if worker.jobs:
                self._start(place)
            return place, version, packet

    def _read(self, place: int, data: np.ndarray) -> Packet:
        packet = self.wire.unpacked(data, place)
        if not bool(torch.isfinite(packet.decoded.dense()).all()):
            raise FloatingPointError(
                f"worker {place} sent a gradient that is not finite after {self.step} steps; take a smaller step"
            )
        return packet

    # ---- jobs -----------------------------------------------------------------------------------------------------

    def _give(self, place: int) -> None:
        """A job with the model of now, which the worker starts unless it is busy."""
        worker = self.workers[place]
        worker.jobs.append((self.step, self.x))
        if worker.version is None:
            self._start(place)

    def _start(self, place: int) -> None:
        worker = self.workers[place]
        worker.version, x = worker.jobs.popleft()
        self._down[place] += self.wire.size
        frame = np.concatenate([np.array([JOB], dtype=np.uint8), self.wire.packed(x)])
        self._threads.submit(self._exchange, place, frame)

    def _exchange(self, place: int, frame: np.ndarray) -> None:
        """Sends a job and waits for its gradient, in a thread of its own."""
        try:
            carrier = self.carriers[place]
            carrier.send(frame, place + 1, _sizes("job", len(frame), carrier))
            data = carrier.receive(place + 1, _sizes("gradient", self.wire.size, carrier))
            self.inbox.put((place, data))
        except NetworkFailure as failure:
            self.inbox.put((place, failure))

    def _living(self, place: int) -> int:
        """The worker, or where it is dead the next one that is not."""
        return next(one % self.n for one in range(place, place + self.n) if self.workers[one % self.n].alive)

    def _enter(self, speakers: Sequence[int]) -> None:
        """The step in the ledger: what came up, and the models that went down since the last one."""
        account, up = Account(), np.zeros(self.n, dtype=np.int64)
        if speakers:
            up[speakers] = self.wire.size
            account.said_up(up, len(speakers))
        if self._down.any():
            account.said_down(self._down, int(self._down.sum()) // self.wire.size)
            self._down = np.zeros(self.n, dtype=np.int64)
        self.ledger.flight(account)

    # ---- ends -----------------------------------------------------------------------------------------------------

    def _lose(self, place: int, failure: NetworkFailure) -> None:
        if any(_timed_out(one) for one in (failure, *self._failures())):
            raise NetworkFailure(
                f"a worker did not answer in time after {self.step} steps, and the transport gives them all up; "
                "give the group a longer timeout"
            ) from failure
        worker = self.workers[place]
        worker.alive, worker.version = False, None
        worker.jobs.clear()
        self.lost.append((place, self.step))
        left = sum(one.alive for one in self.workers)
        what = f"worker {place} died after {self.step} steps"
        if left < self.needs:
            raise NetworkFailure(
                f"{what}: {left} of {self.n} workers are left and {self.needs} are needed, so the server stops; "
                "needs=... lets it go on with fewer"
            ) from failure
        self.say(f"{what}; the server goes on with {left} of {self.n} workers, without its function")

    def _failures(self) -> list[NetworkFailure]:
        """What fails at the same time: a timeout ends the waiting for all workers, in no order."""
        held: list[tuple[int, np.ndarray | NetworkFailure]] = []
        with contextlib.suppress(queue.Empty):
            while True:
                held.append(self.inbox.get(timeout=SETTLED))
        for one in held:
            self.inbox.put(one)
        return [data for _, data in held if isinstance(data, NetworkFailure)]

    def _dismiss(self) -> None:
        """Waits for the gradients that are under way, which nobody needs, and tells everyone to stop."""
        self._threads.shutdown(wait=True)
        while not self.inbox.empty():
            place, data = self.inbox.get()
            self.workers[place].alive &= not isinstance(data, NetworkFailure)
        frame = np.full(1 + self.wire.size, STOP, dtype=np.uint8)
        for place, worker in enumerate(self.workers):
            if worker.alive:
                try:
                    carrier = self.carriers[place]
                    carrier.send(frame, place + 1, _sizes("job", len(frame), carrier))
                except NetworkFailure:
                    worker.alive = False
