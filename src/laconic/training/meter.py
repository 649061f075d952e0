"""The meter: where the time of a training step goes, and how well its compressors did."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from laconic.core.compressor import Exact, Packet
from laconic.core.state import flatten


@dataclass(frozen=True)
class Step:
    """What one step of training cost and did.

    Attributes
    ----------
    number : 0, 1, ...
    up, down : bytes of this worker in the ledger: messages, and what broadcasts and all-reduces bring back.
    dense : bytes of the same tensors at float32.
    sent : bytes that this process handed to the transport, messages and what surrounds them.
    compress, decode : seconds in which messages were made, and read.
    communicate : seconds in which something was in the air, as the conductor saw it.
    exposed : seconds from the moment when the last tensor was handed in to the end: training waited for these.
    hidden : seconds from the first tensor to the last, behind the backward pass, while the conductor was busy.
    residual : ||x - C(x)|| over all tensors that were compressed, x what the compressors were given (v + error,
        v - shift, ...): what error feedback still owes. None in steps that are not sampled.
    contraction : ||x - C(x)||^2 / ||x||^2 of the same.
    norm : of the vectors that were handed in, in sampled steps.
    skipped : buckets that were not averaged, since a worker's numbers were not finite.

    >>> Step(0, 5_000, 20_000, 1_000_000, 5_100, 0.021, 0.040, 0.004, exposed=0.009, hidden=0.3).ratio
    0.005
    """

    number: int
    up: int
    down: int
    dense: int
    sent: int
    compress: float
    communicate: float
    decode: float
    exposed: float
    hidden: float
    residual: float | None = None
    contraction: float | None = None
    norm: float | None = None
    skipped: int = 0

    @property
    def ratio(self) -> float:
        """Bytes up over those of dense float32."""
        return self.up / self.dense


class Meter:
    """Collects the times of a step, from the conductor and from whoever hands it tensors. Seconds are of one clock."""

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self.clock = clock
        self.compress = self.communicate = self.decode = self.idle = 0.0
        self._aloft, self._since = 0, 0.0
        self.first = self.last = self.clock()

    def restart(self) -> None:
        """A step begins."""
        self.compress = self.communicate = self.decode = self.idle = 0.0
        self._aloft = 0
        self.first = self.last = self.clock()

    def waited(self, since: float) -> None:
        """The conductor had nothing to do since then, nor was anything in the air."""
        self.idle += max(0.0, self.clock() - max(since, self.first))

    def took_off(self, now: float) -> None:
        """A flight is in the air."""
        if self._aloft == 0:
            self._since = now
        self._aloft += 1

    def landed(self, now: float) -> None:
        """A flight has arrived, or failed."""
        self._aloft -= 1
        if self._aloft == 0:
            self.communicate += now - self._since

    def handed_in(self) -> None:
        """The last tensor of the step is there; what comes from now on, training waits for."""
        self.last = self.clock()

    @property
    def exposed(self) -> float:
        """Seconds since the last tensor was handed in."""
        return self.clock() - self.last

    @property
    def hidden(self) -> float:
        """Busy seconds between the first tensor and the last, once all has ended."""
        return max(0.0, self.last - self.first - self.idle)


class Sampler:
    """Measures what compressors left out of one step's vectors, at the cost of a few passes over them."""

    def __init__(self) -> None:
        self._given = self._left_out = self._owed = self._handed_in = 0.0  # squared norms
        self._streams: set[str] = set()

    def handed(self, v: Tensor) -> None:
        """A vector that a mechanism is about to get."""
        self._handed_in += _square(v)

    def sent(self, packet: Packet, v: Tensor, other: Tensor | None, sign: int) -> None:
        """A message that is about to leave, of v or of v + sign other."""
        if isinstance(packet.compressor, Exact):
            return
        x = v.clone() if other is None else torch.add(v, other, alpha=sign)
        self._given += _square(x)
        packet.decoded.scatter(x, packet.rows, -1.0)
        self._left_out += _square(x)
        self._streams.add(packet.keys.stream)

    def kept(self, name: str, memory: Any) -> None:
        """The memory of a tensor's mechanism: what it owes, where no message of it was seen."""
        if memory is None or any(stream.startswith(f"/{name}/") for stream in self._streams):
            return
        for place, leaf in flatten(memory).items():
            if place.rpartition(".")[2] == "error":
                self._owed += _square(leaf.tensor)

    @property
    def residual(self) -> float:
        """||x - C(x)||."""
        return math.sqrt(self._left_out + self._owed)

    @property
    def contraction(self) -> float | None:
        """||x - C(x)||^2 / ||x||^2; None where no message was seen."""
        return self._left_out / self._given if self._given > 0.0 else None

    @property
    def norm(self) -> float:
        """Of the vectors handed in."""
        return math.sqrt(self._handed_in)


def _square(v: Tensor) -> float:
    return float(torch.linalg.vector_norm(v, dtype=torch.float64)) ** 2
