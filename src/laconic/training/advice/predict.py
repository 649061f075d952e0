"""The model of a training step: threads that share a processor, and a wire. Pure functions of numbers.

A step is a forward pass, a backward pass in which buckets of gradients become ready one after the other, their way
over the wire, and an optimizer's step. A bucket makes flights: some work of the processor, then transfers, and when
they have landed the next flight; work after the last one ends it. The wire carries one transfer after the other, in the
order in which they are sent. Threads that work at the same time each get their full speed while the cores suffice, and
else an equal part for each core they want; while the wire is busy, they are slower by what the transport was measured
to take. Nobody waits but for a bucket or a transfer. Not modelled: processors of different speed, and noise.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Generator, Sequence
from dataclasses import dataclass, field, replace

from laconic.training.advice.link import Link
from laconic.training.advice.transfers import Transfer


@dataclass(frozen=True)
class Flight:
    """Seconds of work, and transfers that leave together after it."""

    work: float
    transfers: tuple[Transfer, ...]


@dataclass(frozen=True)
class Journey:
    """What becomes of one bucket: flights, and seconds of work after the last has landed.

    `nbytes` are the bytes of its messages, those of one process.
    """

    flights: tuple[Flight, ...]
    last: float = 0.0
    nbytes: int = 0

    @property
    def work(self) -> float:
        return self.last + sum(flight.work for flight in self.flights)

    @property
    def transfers(self) -> tuple[Transfer, ...]:
        return tuple(transfer for flight in self.flights for transfer in flight.transfers)


@dataclass(frozen=True)
class Compute:
    """Seconds of one step without communication.

    Parameters
    ----------
    forward, backward, optimizer : of the three parts.
    ready : seconds after the beginning of the backward pass at which each bucket is ready, in order.
    broadcasts : what the forward pass sends, such as buffers.
    """

    forward: float
    backward: float
    optimizer: float
    ready: tuple[float, ...]
    broadcasts: tuple[Transfer, ...] = ()

    def __post_init__(self) -> None:
        moments = [0.0, *self.ready, self.backward]
        if not all(math.isfinite(t) and t >= 0.0 for t in (*moments, self.forward, self.optimizer)):
            raise ValueError("Compute : times must be numbers >= 0")
        if moments != sorted(moments):
            raise ValueError(
                f"Compute(ready={self.ready}) : buckets must be ready in order, and within the backward pass"
            )

    @property
    def seconds(self) -> float:
        return self.forward + self.backward + self.optimizer


@dataclass(frozen=True)
class Host:
    """The processor's share of one process.

    Parameters
    ----------
    cores : of this machine, over the processes on it.
    threads : cores that a backward pass makes use of, if it can; all other work takes one.
    """

    cores: float
    threads: int = 1

    def speed(self, wanted: Sequence[int], taken: float = 0.0) -> float:
        """Of work that wants the first of these numbers of cores, compared with being alone, while all of them run and
        the transport takes `taken` cores.

        >>> Host(cores=1.0).speed([1, 1]), Host(cores=2.0).speed([1, 1]), Host(cores=2.0).speed([1])
        (0.5, 1.0, 1.0)
        >>> Host(cores=1.0).speed([1], taken=0.25), Host(cores=2.0).speed([1], taken=0.25)
        (0.75, 1.0)
        """
        return min(1.0, (self.cores - taken) / sum(wanted)) / min(1.0, self.cores / wanted[0])

    def transport(self, load: float, wanted: int) -> float:
        """Cores that the transport gets, which makes use of `load`, beside work that wants so many: what that leaves,
        and no less than a thread's equal part.

        >>> host = Host(cores=1.0)
        >>> host.transport(0.25, 1), host.transport(0.9, 1), host.transport(0.9, 0), Host(cores=2.0).transport(0.9, 1)
        (0.25, 0.5, 0.9, 0.9)
        """
        return min(load, max(self.cores - wanted, self.cores / (wanted + 1)))


@dataclass(frozen=True)
class Prediction:
    """Seconds and bytes of one step.

    Attributes
    ----------
    compute : forward, backward and optimizer, as without communication.
    codec : by how much the work on messages, and that of the transport, makes the step longer.
    exposed : while nothing but the wire is at work.
    hidden : of the wire, behind other work.
    nbytes : of the messages of one process.
    """

    compute: float
    codec: float
    exposed: float
    hidden: float
    nbytes: float

    @property
    def seconds(self) -> float:
        return self.compute + self.codec + self.exposed


# ---- threads and the wire -------------------------------------------------------------------------------------------


@dataclass
class _Event:
    """Something that has happened or is still to come."""

    happened: bool = False


_Thread = Generator["float | _Event", None, None]  # yields seconds to work for, or an event to wait for


@dataclass
class _Actor:
    thread: _Thread
    cores: int
    wants: float | _Event | None = 0.0  # None: it has ended


@dataclass
class _Room:
    """Time, the wire, and threads at work."""

    link: Link
    host: Host
    now: float = 0.0
    idle: float = 0.0
    busy: float = 0.0  # seconds of the wire
    wire: deque[tuple[float, _Event]] = field(default_factory=deque)  # what is on its way, with seconds that are left
    actors: list[_Actor] = field(default_factory=list)

    def send(self, transfers: Sequence[Transfer]) -> _Event:
        """Puts transfers behind all that were sent before; gives their landing."""
        landing = _Event()
        self.wire.append((self.link.seconds(transfers), landing))
        return landing

    def enter(self, thread: _Thread, cores: int = 1) -> None:
        self.actors.append(_Actor(thread, cores))

    def run(self) -> None:
        """Until all threads have ended and everything has landed."""
        while True:
            while any([self._resumed(actor) for actor in self.actors]):
                pass
            working = [actor for actor in self.actors if isinstance(actor.wants, float)]
            if not working and not self.wire:
                assert all(actor.wants is None for actor in self.actors), "every thread waits for another"
                return
            wanted = [actor.cores for actor in working]
            taken = self.host.transport(self.link.load, sum(wanted)) if self.wire else 0.0
            rates = [
                self.host.speed([one, *wanted[:place], *wanted[place + 1 :]], taken) for place, one in enumerate(wanted)
            ]
            ends = [_over(float(actor.wants), rate) for actor, rate in zip(working, rates, strict=True)]  # type: ignore[arg-type]
            carried = taken / self.link.load if self.link.load else 1.0
            passed: float = min([*ends, *(_over(seconds, carried) for seconds, _ in list(self.wire)[:1])])
            for actor, rate, end in zip(working, rates, ends, strict=True):
                actor.wants = _left(float(actor.wants), rate, end, passed)  # type: ignore[arg-type]
            if self.wire:
                self._carry(carried, passed)
                self.busy += passed
            self.idle += 0.0 if working else passed
            self.now += passed

    def _carry(self, rate: float, passed: float) -> None:
        seconds, landing = self.wire.popleft()
        left = _left(seconds, rate, _over(seconds, rate), passed)
        if left > 0.0:
            self.wire.appendleft((left, landing))
        else:
            landing.happened = True

    def _resumed(self, actor: _Actor) -> bool:
        """Lets a thread go on that has done its work, or whose event has come; whether there was one."""
        if actor.wants is None or (not actor.wants.happened if isinstance(actor.wants, _Event) else actor.wants > 0):
            return False
        wants = next(actor.thread, None)
        actor.wants = wants if wants is None or isinstance(wants, _Event) else float(wants)
        return True


def _over(seconds: float, rate: float) -> float:
    """How long work takes at a rate."""
    return seconds / rate if seconds else 0.0


def _left(seconds: float, rate: float, end: float, passed: float) -> float:
    """What is left of work. An equal end, up to rounding, is an end: else a sliver would be left."""
    return 0.0 if end <= passed * (1.0 + 1e-12) else seconds - passed * rate


# ---- orders of a step ----------------------------------------------------------------------------------------------


class Order(ABC):
    """In which order, and on which threads, the buckets of a step are worked on and sent."""

    @abstractmethod
    def predict(self, compute: Compute, journeys: Sequence[Journey], link: Link, host: Host) -> Prediction:
        """A step.

        Raises
        ------
        ValueError : another number of journeys than of buckets.
        """


class Overlapped(Order):
    """Buckets leave while the backward pass goes on."""

    @abstractmethod
    def enter(self, room: _Room, compute: Compute, journeys: Sequence[Journey]) -> None:
        """Sends the threads of a backward pass into a room."""

    def predict(self, compute: Compute, journeys: Sequence[Journey], link: Link, host: Host) -> Prediction:
        if len(journeys) != len(compute.ready):
            raise ValueError(f"predict : {len(journeys)} journeys for {len(compute.ready)} buckets; give one for each")
        room = _Room(link, host)
        self.enter(room, compute, journeys)
        room.run()
        codec = max(0.0, room.now - room.idle - compute.backward)
        exposed, hidden = room.idle + link.seconds(compute.broadcasts), max(0.0, room.busy - room.idle)
        return Prediction(compute.seconds, codec, exposed, hidden, float(sum(journey.nbytes for journey in journeys)))


@dataclass(frozen=True)
class Conducted(Overlapped):
    """The conductor's: one thread beside the backward pass, at most `window` buckets in flight, the oldest first."""

    window: int = 4

    def enter(self, room: _Room, compute: Compute, journeys: Sequence[Journey]) -> None:
        ready = [_Event() for _ in journeys]
        room.enter(_passes(room, compute, ready), room.host.threads)
        room.enter(self._conductor(room, ready, journeys))

    def _conductor(self, room: _Room, ready: Sequence[_Event], journeys: Sequence[Journey]) -> _Thread:
        to_come = deque(range(len(journeys)))
        aloft: deque[tuple[int, int, _Event]] = deque()
        while to_come or aloft:
            if to_come and len(aloft) < self.window:
                bucket, flown = to_come.popleft(), 0
                yield ready[bucket]
            else:
                bucket, flown, landing = aloft.popleft()
                yield landing
            journey = journeys[bucket]
            if flown < len(journey.flights):
                yield journey.flights[flown].work
                aloft.append((bucket, flown + 1, room.send(journey.flights[flown].transfers)))
            else:
                yield journey.last


def _passes(room: _Room, compute: Compute, ready: Sequence[_Event]) -> _Thread:
    """The backward pass, which tells when buckets are ready."""
    before = 0.0
    for moment, event in zip(compute.ready, ready, strict=True):
        yield moment - before
        before, event.happened = moment, True
    yield compute.backward - before


@dataclass(frozen=True)
class Hooked(Overlapped):
    """That of DDP and of PyTorch's hooks: a bucket's first work is done inside the backward pass, by its thread; what
    follows by the transport's threads, for each bucket when its transfer has landed."""

    def enter(self, room: _Room, compute: Compute, journeys: Sequence[Journey]) -> None:
        sent: list[tuple[_Event, list[_Event]]] = [(_Event(), []) for _ in journeys]
        room.enter(self._passes(room, compute, journeys, sent), room.host.threads)
        for journey, (event, landing) in zip(journeys, sent, strict=True):
            room.enter(self._goes_on(room, journey, event, landing))

    @staticmethod
    def _passes(
        room: _Room, compute: Compute, journeys: Sequence[Journey], sent: Sequence[tuple[_Event, list[_Event]]]
    ) -> _Thread:
        before = 0.0
        for moment, journey, (event, landing) in zip(compute.ready, journeys, sent, strict=True):
            yield moment - before
            before = moment
            if journey.flights:
                yield journey.flights[0].work
                landing.append(room.send(journey.flights[0].transfers))
            event.happened = True
        yield compute.backward - before

    @staticmethod
    def _goes_on(room: _Room, journey: Journey, sent: _Event, landing: Sequence[_Event]) -> _Thread:
        yield sent
        yield from landing
        for flight in journey.flights[1:]:
            yield flight.work
            yield room.send(flight.transfers)
        yield journey.last


@dataclass(frozen=True)
class AtTheEnd(Order):
    """All gradients in one bucket, ready when the last of them is: nothing is hidden behind the backward pass."""

    def predict(self, compute: Compute, journeys: Sequence[Journey], link: Link, host: Host) -> Prediction:
        return Hooked().predict(replace(compute, ready=compute.ready[-1:]), journeys, link, host)


@dataclass(frozen=True)
class EveryFew(Order):
    """Local updates: nothing is said for `every` steps, and then all at once, while nothing else is done.

    The prediction is of the mean step.
    """

    every: int

    def predict(self, compute: Compute, journeys: Sequence[Journey], link: Link, host: Host) -> Prediction:
        at_the_end = replace(compute, ready=(compute.backward,) * len(journeys), broadcasts=())
        whole = Hooked().predict(at_the_end, journeys, link, host)
        shares = [share / self.every for share in (whole.codec, whole.exposed, whole.hidden, whole.nbytes)]
        return Prediction(compute.seconds, *shares)
