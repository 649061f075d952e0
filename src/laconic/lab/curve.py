"""One curve: one method with one seed, from x^0 (or a checkpoint) to one of its limits."""

from __future__ import annotations

import enum
import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from laconic.core.delay import Delays
from laconic.core.problem import Solution
from laconic.core.theory import Guarantee
from laconic.lab import trace
from laconic.lab.average import Average
from laconic.lab.clock import Stopwatch
from laconic.lab.evaluate import Evaluation, Party, Work, evaluate, work
from laconic.lab.plan import Limits
from laconic.lab.remarks import Remark, Remarks, counted, gather, merged, of_plain, plain
from laconic.lab.settle import Entrant
from laconic.lab.snapshot import COMPRESSORS, METHOD, capture, put_back
from laconic.lab.store import Checkpoint
from laconic.lab.virtual import VirtualTime
from laconic.runtime.base import Runtime
from laconic.runtime.network import Clock, Network

BLOWN_UP = 1e15  # f beyond this many times max(1, |f(x^0)|) counts as diverged


class Stop(enum.IntEnum):
    """Why a curve ends; an integer, for the leader tells the others."""

    NOT_YET = 0
    ROUNDS = 1
    ITERATIONS = 2
    BUDGET = 3
    UNTIL = 4
    DIVERGED = 5

    @property
    def status(self) -> str:
        return {Stop.UNTIL: trace.REACHED, Stop.DIVERGED: trace.DIVERGED}.get(self, trace.DONE)


class Recorded(NamedTuple):
    """When the trace was last written to."""

    iteration: int
    rounds: int


class Tally:
    """Flights and the sum of their largest messages, which price a network of equal lines. A listener of the ledger."""

    def __init__(self) -> None:
        self.flights = self.peak = 0

    def __call__(self, up: np.ndarray | None, down: np.ndarray | None, returned: np.ndarray | None = None) -> None:
        for sides in ((up, down), (returned,)):  # what all-reduces return is on its way once everything is up
            largest = max((int(side.max()) for side in sides if side is not None), default=0)
            if largest > 0:
                self.flights += 1
                self.peak += largest


@dataclass
class Curve:
    """A curve on its way.

    `entrant` and `seed` say which; `parties` are this process' parties; `record` takes each row of the trace with its
    seconds on each network, and `pause` is called after every iteration and may save a checkpoint. `terms` are those of
    all workers together. `shares_decisions`: not every process sees the ledger and x, so the leader decides for all.
    """

    entrant: Entrant
    seed: int
    runtime: Runtime
    parties: Sequence[Party]
    limits: Limits
    every: int
    networks: Sequence[Network]
    terms: int
    shares_decisions: bool
    solution: Solution | None
    record: Callable[[trace.Row, list[float]], None]
    pause: Callable[[Curve], None]
    delays: Delays | None = None
    iteration: int = 0
    reason: str = ""
    _first: Evaluation | None = None
    _last: Evaluation | None = None
    _recorded: Recorded = Recorded(-1, -1)
    _done_before: Work = field(default_factory=Work)
    _remarked_before: Remarks = field(default_factory=dict)
    remarks: list[Remark] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.clocks: list[Clock] = [network.clock(self.runtime.n) for network in self.networks]
        self.tally = Tally()
        self.stopwatch = Stopwatch()
        self.virtual = VirtualTime(self.delays, self.seed, self.runtime)
        guarantee = self.entrant.guarantee
        weight = None if guarantee is None or self.solution is None else guarantee.average
        self.average = None if weight is None else Average(weight)

    # ---- running ------------------------------------------------------------------------------------------------

    def run(self, checkpoint: Checkpoint | None = None) -> Stop:
        """To the end; returns why it ended. `remarks` and, where it diverged, `reason` say more."""
        stop = self._to_the_end(checkpoint)
        remarked = self._remarked()
        if stop is Stop.DIVERGED:
            last = [text for text, numbers in sorted(remarked.items()) if self.iteration in numbers]
            self.reason = "; ".join(filter(None, [self.reason, *last, self.entrant.suspicion]))
        self.remarks = counted(remarked)
        return stop

    def _remarked(self) -> Remarks:
        """What all parties remarked so far."""
        return merged(self._remarked_before, self.runtime.drive(*[gather(party.link) for party in self.parties])[0])

    def _to_the_end(self, checkpoint: Checkpoint | None) -> Stop:
        if checkpoint is None:
            self._begin()
        else:
            self._resume(checkpoint)
        previous = self.point()
        while True:
            stop, due = self._decide(previous)
            if due or (stop is not Stop.NOT_YET and self._recorded.iteration < self.iteration):
                stop = self._evaluate(stop)
            if stop is not Stop.NOT_YET:
                return stop
            self.pause(self)
            previous = self.point().clone()
            try:
                self._advance()
            except (torch.linalg.LinAlgError, FloatingPointError) as error:
                self.reason = f"at round {self.runtime.ledger.rounds}: {error}".splitlines()[0]
                return self._evaluate(Stop.DIVERGED)

    def point(self) -> Tensor:
        """The server's x where this process holds it (NaN elsewhere)."""
        return self.entrant.method.point(self.parties[0].state)

    def _begin(self) -> None:
        self._reset_calls()
        self.runtime.ledger.listeners += [self.tally, *self.clocks]
        self._init()
        self._take_in()

    def _init(self) -> None:
        for party in self.parties:
            party.link.begin(0)
        with self.virtual.passing(0, self.parties), self.stopwatch.running():
            states = self.runtime.drive(*[self.entrant.method.init(p.oracles, p.link) for p in self.parties])
        for party, state in zip(self.parties, states, strict=True):
            party.state = state

    def _advance(self) -> None:
        self.iteration += 1
        method = self.entrant.method
        for party in self.parties:
            party.link.begin(self.iteration)
        with self.virtual.passing(self.iteration, self.parties), self.stopwatch.running():
            states = self.runtime.drive(*[method.iterate(p.state, p.oracles, p.link) for p in self.parties])
        for party, state in zip(self.parties, states, strict=True):
            party.state = state
        self._take_in()

    def _take_in(self) -> None:
        if self.average is not None:
            self.average.add(self.iteration, self.point())

    def _reset_calls(self) -> None:
        for party in self.parties:
            party.oracles.forget_calls()

    # ---- ends ---------------------------------------------------------------------------------------------------

    def _decide(self, previous: Tensor) -> tuple[Stop, bool]:
        """Whether a limit is reached, whether to evaluate; the leader decides where others cannot see ledger and x."""
        stop, due = self._limit_here(), self._due()
        if self.shares_decisions:
            code = self.runtime.agree(2 * stop + due)
            stop, due = Stop(code // 2), bool(code % 2)
        if stop is Stop.DIVERGED:
            seen = self._look(previous)
            self.reason = f"{seen.culprit or 'x is not finite'} at round {self.runtime.ledger.rounds}"
        return stop, due

    def _due(self) -> bool:
        if self._recorded.iteration < 0:
            return True
        return (
            self.iteration - self._recorded.iteration >= self.every
            and self.runtime.ledger.rounds > self._recorded.rounds
        )

    def _limit_here(self) -> Stop:
        ledger, limits = self.runtime.ledger, self.limits
        if not bool(torch.isfinite(self.point()).all()):
            return Stop.DIVERGED
        if limits.rounds is not None and ledger.rounds >= limits.rounds:
            return Stop.ROUNDS
        if limits.iterations is not None and self.iteration >= limits.iterations:
            return Stop.ITERATIONS
        if limits.budget is not None and float(ledger.uplink.mean()) >= limits.budget:
            return Stop.BUDGET
        return Stop.NOT_YET

    def _judge(self, seen: Evaluation, stop: Stop) -> Stop:
        assert self._first is not None
        if stop is Stop.DIVERGED:
            return stop
        if seen.culprit and self.iteration == 0:
            raise ValueError(f"{seen.culprit} at x^0, round 0: check its data")
        if seen.culprit or not abs(seen.f) <= BLOWN_UP * max(1.0, abs(self._first.f)):
            self.reason = f"{seen.culprit or f'f(x) = {seen.f:.3g}'} at round {self.runtime.ledger.rounds}"
            return Stop.DIVERGED
        if self.limits.until is not None and seen.measure <= self.limits.until:
            return Stop.UNTIL
        return stop

    # ---- the trace ----------------------------------------------------------------------------------------------

    def _look(self, point: Tensor, guarantee: Guarantee | None = None) -> Evaluation:
        return self.runtime.drive(*[evaluate(p, point, self.solution, guarantee) for p in self.parties])[0]

    def _evaluate(self, stop: Stop) -> Stop:
        seen = self._look(self.point(), self.entrant.guarantee)
        self._first = self._first or seen
        self._last, self._recorded = seen, Recorded(self.iteration, self.runtime.ledger.rounds)
        stop = Stop(self.runtime.agree(self._judge(seen, stop)))
        average = math.nan if self.average is None else self._look(self.average.point(self.point())).gap
        done = self._done_before + self.runtime.drive(*[work(p) for p in self.parties])[0]
        row = self._row(seen, average, done, trace.RUNNING if stop is Stop.NOT_YET else stop.status)
        self.record(row, [clock.seconds + self.stopwatch.seconds for clock in self.clocks])
        return stop

    def _row(self, seen: Evaluation, gap_average: float, done: Work, status: str) -> trace.Row:
        ledger = self.runtime.ledger
        return trace.Row(
            method=self.entrant.label,
            seed=self.seed,
            iteration=self.iteration,
            rounds=ledger.rounds,
            uplink=float(ledger.uplink.mean()),
            uplink_max=int(ledger.uplink.max()),
            downlink=float(ledger.downlink.mean()),
            downlink_max=int(ledger.downlink.max()),
            messages=ledger.messages_up + ledger.messages_down,
            gradients=done.gradient_terms / self.terms,
            hessians=done.hessian_terms / self.terms,
            products=done.product_terms / self.terms,
            server_gradients=done.server_terms * self.runtime.n / self.terms,
            server_hessians=done.server_hessian_terms * self.runtime.n / self.terms,
            compute_seconds=self.stopwatch.seconds,
            virtual_seconds=self._virtual_seconds(),
            flights=self.tally.flights,
            peak=self.tally.peak,
            f=seen.f,
            gap=seen.gap,
            gap_average=gap_average,
            grad_norm2=seen.grad_norm2,
            distance2=seen.distance2,
            lyapunov=seen.lyapunov,
            bound=self._bound(self.entrant.guarantee),
            status=status,
        )

    def _virtual_seconds(self) -> float:
        own = self.entrant.method.virtual_seconds(self.parties[0].state)
        return self.virtual.seconds if own is None else own

    def _bound(self, guarantee: Guarantee | None) -> float:
        if guarantee is None or guarantee.rate is None or guarantee.gap_factor is None or self._first is None:
            return math.nan
        return guarantee.gap_factor * (guarantee.rate**self.iteration * self._first.lyapunov + guarantee.plateau)

    def result(self, stop: Stop) -> dict[str, Any]:
        """What run.json says of a finished curve. `uplink_bytes` and `downlink_bytes` are means per worker."""
        ledger, seen = self.runtime.ledger, self._last
        assert seen is not None
        x = np.ascontiguousarray(self.point().double().numpy())
        return {
            "method": self.entrant.label,
            "seed": self.seed,
            "status": stop.status,
            "stopped_by": stop.name.lower(),
            "reason": self.reason or None,
            "remarks": {one.text: {"count": one.count, "worst": trace.finite(one.worst)} for one in self.remarks},
            "iterations": self.iteration,
            "rounds": ledger.rounds,
            "uplink_bytes": float(ledger.uplink.mean()),
            "uplink_bytes_total": int(ledger.uplink.sum()),
            "downlink_bytes": float(ledger.downlink.mean()),
            "downlink_bytes_total": int(ledger.downlink.sum()),
            "messages": ledger.messages_up + ledger.messages_down,
            "transport_bytes": {"payload": ledger.transport.payload, "framing": ledger.transport.framing},
            "compute_seconds": self.stopwatch.seconds,
            "virtual_seconds": trace.finite(self._virtual_seconds()),
            "seconds": {
                n.name: c.seconds + self.stopwatch.seconds for n, c in zip(self.networks, self.clocks, strict=True)
            },
            "f": trace.finite(seen.f),
            "gap": trace.finite(seen.gap),
            "grad_norm2": trace.finite(seen.grad_norm2),
            "x_sha256": hashlib.sha256(x.tobytes()).hexdigest(),
        }

    # ---- checkpoints --------------------------------------------------------------------------------------------

    def checkpoint(self) -> Checkpoint:
        """The whole state, gathered; every process takes part."""
        tensors = self.runtime.drive(*[capture(party) for party in self.parties])[0]
        done = self._done_before + self.runtime.drive(*[work(p) for p in self.parties])[0]
        tensors |= {f"ledger/{name}": value for name, value in self.runtime.ledger.state().items()}
        if self.average is not None:
            tensors |= self.runtime.drive(*[self.average.capture(party.link) for party in self.parties])[0]
        tensors |= {f"virtual/{name}": value for name, value in self.virtual.state().items()}
        for place, clock in enumerate(self.clocks):
            tensors |= {f"clock{place}/{name}": value for name, value in clock.state().items()}
        facts = {
            "method": self.entrant.label,
            "seed": self.seed,
            "iteration": self.iteration,
            "work": vars(done),
            "remarks": plain(self._remarked()),
            "compute_seconds": self.stopwatch.seconds,
            "flights": self.tally.flights,
            "peak": self.tally.peak,
            "recorded": list(self._recorded),
            "first": _plain(self._first),
            "last": _plain(self._last),
        }
        return Checkpoint(facts, tensors)

    def _resume(self, checkpoint: Checkpoint) -> None:
        """Initialises the method afresh, which makes a state of the right form, and puts the saved one in its place."""
        facts, tensors = checkpoint.facts, checkpoint.tensors
        mine = {k: v for k, v in tensors.items() if k.startswith((METHOD, COMPRESSORS))}
        self._init()
        for party in self.parties:
            put_back(party, mine)
        ledger = self.runtime.ledger
        ledger.load({k.removeprefix("ledger/"): v for k, v in tensors.items() if k.startswith("ledger/")})
        for place, clock in enumerate(self.clocks):
            prefix = f"clock{place}/"
            clock.load({k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)})
        virtual = {k.removeprefix("virtual/"): v for k, v in tensors.items() if k.startswith("virtual/")}
        self.virtual.load(virtual)
        if self.average is not None:
            self.average.load(tensors, self.parties[0].link, self.point())
        self.tally.flights, self.tally.peak = facts["flights"], facts["peak"]
        ledger.listeners += [self.tally, *self.clocks]
        self.stopwatch.seconds = facts["compute_seconds"]
        self.iteration, self._recorded = facts["iteration"], Recorded(*facts["recorded"])
        self._first, self._last = _evaluation(facts["first"]), _evaluation(facts["last"])
        self._done_before = Work(**facts["work"])
        self._remarked_before = of_plain(facts.get("remarks", {}))
        self._reset_calls()


def _plain(seen: Evaluation | None) -> dict[str, Any] | None:
    """For JSON, which has no NaN: floats as text that reads back exactly."""
    return None if seen is None else {name: str(value) for name, value in vars(seen).items()}


def _evaluation(plain: dict[str, str] | None) -> Evaluation | None:
    if plain is None:
        return None
    numbers = {name: float(value) for name, value in plain.items() if name != "culprit"}
    return Evaluation(**numbers, culprit=plain["culprit"])
