"""What a mechanism or a hook costs the processor, and what it sends: measured by running it over nobody's network."""

from __future__ import annotations

import statistics
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.futures import Future

from laconic.runtime.process_group import ProcessGroup
from laconic.training.advice.compute import Bucket
from laconic.training.advice.loopback import Call, Loopback
from laconic.training.advice.predict import AtTheEnd, Conducted, Flight, Hooked, Journey, Order
from laconic.training.averager import Averager
from laconic.training.policy import Policy

WARM_UP, STEPS = 2, 3


class Candidate(ABC):
    """A way to average gradients, as it is called in a table, and in which order its buckets go."""

    name: str
    order: Order

    @abstractmethod
    def journeys(self, buckets: Sequence[Bucket], nobody: Loopback) -> list[Journey]:
        """What becomes of each bucket: medians of three steps after two others. Every process calls it.

        `nobody` stands for the network, and for the processes. The gradients stay as they are.
        """


Steps = Callable[[int], list[Journey]]


def _medians(step: Steps) -> list[Journey]:
    """Of the seconds of the measured steps; transfers and bytes are the last step's."""
    found = [step(number) for number in range(WARM_UP + STEPS)][WARM_UP:]
    joined = []
    for last, *others in zip(*reversed(found), strict=True):
        alike = [last, *(other for other in others if len(other.flights) == len(last.flights))]
        works = [statistics.median(works) for works in zip(*([f.work for f in j.flights] for j in alike), strict=True)]
        flights = tuple(Flight(work, flight.transfers) for work, flight in zip(works, last.flights, strict=True))
        joined.append(Journey(flights, statistics.median(one.last for one in alike), last.nbytes))
    return joined


@dataclass
class _Log:
    """What happened to one bucket: work, transfers, work, ...; the group's own work is left out."""

    since: float = field(default_factory=time.perf_counter)
    work: float = 0.0
    flights: list[Flight] = field(default_factory=list)

    def flight(self, calls: Sequence[Call]) -> None:
        """Transfers left together."""
        for call in calls:
            self.work += call.began - self.since
            self.since = call.ended
        self.flights.append(Flight(self.work, tuple(call.transfer for call in calls)))
        self.work = 0.0

    def journey(self, end: float, nbytes: int) -> Journey:
        return Journey(tuple(self.flights), self.work + end - self.since, nbytes)


# ---- mechanisms -----------------------------------------------------------------------------------------------------


class _Rehearsal(Averager):
    """An averager among processes that are not there: it hears from all of them what it said itself."""

    def __init__(self, buckets: Sequence[Bucket], policy: Policy, nobody: Loopback) -> None:
        super().__init__({name: g for bucket in buckets for name, g in bucket.gradients.items()}, policy)
        self.nobody = nobody
        self.runtime = ProcessGroup(self.world, seed=self.seed, group=self.nobody)

    def rehearse(self, bucket: Bucket, first: bool) -> Journey:
        """One bucket of a step, as the conductor would run its text alone."""
        tensors = [gradient.clone() for gradient in bucket.gradients.values()]
        text, replies, before = self._bucket(list(bucket.gradients), tensors, first, None, {}), None, self._said()
        self.nobody.taken()
        log = _Log()
        while True:
            try:
                flight = text.send(replies)
            except StopIteration:
                return log.journey(time.perf_counter(), self._said() - before)
            pending = self.runtime.begin(flight)
            log.flight(self.nobody.taken())
            replies = self.runtime.finish(pending)
            for call in self.nobody.taken():  # what did not fit into the first gather
                log.flight([call])

    def _said(self) -> int:
        return int(self.ledger.uplink[self.rank])


@dataclass(frozen=True)
class Averaged(Candidate):
    """A mechanism of laconic, attached to DDP. It takes `torch.distributed`, for the processes compare their specs."""

    policy: Policy
    window: int = 4

    @property
    def name(self) -> str:  # type: ignore[override]
        return str(self.policy.mechanism)

    @property
    def order(self) -> Order:  # type: ignore[override]
        return Conducted(self.window)

    def journeys(self, buckets: Sequence[Bucket], nobody: Loopback) -> list[Journey]:
        rehearsal = _Rehearsal(buckets, self.policy, nobody)
        try:
            return _medians(lambda _: [rehearsal.rehearse(bucket, i == 0) for i, bucket in enumerate(buckets)])
        finally:
            rehearsal.close()


# ---- hooks of PyTorch -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Given:
    """What a hook reads of `torch.distributed.GradBucket`, which only DDP can make."""

    place: int
    flat: Tensor
    views: list[Tensor]
    is_final: bool

    @staticmethod
    def of(bucket: Bucket, place: int, is_final: bool) -> _Given:
        flat = torch.cat([gradient.reshape(-1) for gradient in bucket.gradients.values()])
        pieces = flat.split([gradient.numel() for gradient in bucket.gradients.values()])
        views = [piece.view(g.shape) for piece, g in zip(pieces, bucket.gradients.values(), strict=True)]
        return _Given(place, flat, views, is_final)

    def buffer(self) -> Tensor:
        return self.flat

    def gradients(self) -> list[Tensor]:
        return self.views

    def index(self) -> int:
        return self.place

    def is_last(self) -> bool:
        return self.is_final


Hook = Callable[[Any, Any], Future[Tensor]]


@dataclass(frozen=True)
class TorchHook(Candidate):
    """A communication hook of PyTorch. Its state is made anew from the group; its bytes are those of its transfers."""

    name: str
    hook: Hook
    state: Callable[[dist.ProcessGroup], Any]
    order: Order = field(default_factory=Hooked)

    def journeys(self, buckets: Sequence[Bucket], nobody: Loopback) -> list[Journey]:
        state = self.state(nobody)

        def one(bucket: Bucket, place: int) -> Journey:
            given = _Given.of(bucket, place, place == len(buckets) - 1)
            nobody.taken()
            log = _Log()
            try:
                self.hook(state, given).wait()
            except Exception as failure:
                reason = (str(failure).strip() or type(failure).__name__).splitlines()[0]
                raise ValueError(f"PyTorch's hook fails on these gradients ({reason})") from failure
            end = time.perf_counter()
            calls = nobody.taken()
            for call in calls:
                log.flight([call])
            return log.journey(end, sum(call.transfer.nbytes for call in calls))

        return _medians(lambda _: [one(bucket, place) for place, bucket in enumerate(buckets)])


@dataclass(frozen=True)
class InOneBucket(Candidate):
    """A hook that gets all gradients at once, after the backward pass."""

    hook: TorchHook

    @property
    def name(self) -> str:  # type: ignore[override]
        return self.hook.name

    @property
    def order(self) -> Order:  # type: ignore[override]
        return AtTheEnd()

    def journeys(self, buckets: Sequence[Bucket], nobody: Loopback) -> list[Journey]:
        together = {name: gradient for bucket in buckets for name, gradient in bucket.gradients.items()}
        return self.hook.journeys([Bucket(together)], nobody)
