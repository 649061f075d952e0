"""Why p workers are not p times faster: the time of computing over p, plus a time of communication that grows with p.

A step on one node takes `compute` seconds. On p nodes, which share its work, it takes

    T(p) = compute / p + communication(p)

where communication(p) is what a network model charges for making a vector of `nbytes` bytes known to all as a sum. The
first term falls and the second does not, so T has a least value, at the best number of workers; past it, more workers
are slower. On a ring, with alpha seconds per message and beta seconds per byte, and nbytes / ratio bytes to sum,

    T(p) = compute / p + 2(p - 1) alpha + 2(p - 1)/p nbytes beta / ratio

is least at p = sqrt((compute - 2 nbytes beta / ratio) / (2 alpha)): the numbers on the wire put a floor under T, which
compression lowers, but how many workers are worth having is a matter of latency alone. At a server whose port carries
everything, communication(p) is 2 alpha + 2 p nbytes beta / ratio, and T is least at
p = sqrt(compute ratio / (2 nbytes beta)): four times fewer bytes make twice as many workers worth having.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from laconic.runtime.network import Network


@dataclass(frozen=True)
class Work:
    """One step of training on one node: `compute` seconds, and then a vector of `nbytes` bytes is to be summed."""

    compute: float
    nbytes: int


class Exchange(ABC):
    """How the workers' vectors become a sum that all of them know."""

    @abstractmethod
    def seconds(self, network: Network, p: int, nbytes: int) -> float:
        """Of one exchange among p workers; none where there is only one."""


@dataclass(frozen=True)
class Summed(Exchange):
    """Messages `ratio` times shorter that can be added on their way: dense, of low rank, or with a shared support.

    >>> Summed().seconds(Network.parse("8mbit,1ms,ring"), 4, 1_000_000)  # 6 (1 ms + 250,000 bytes at 1 MB/s)
    1.506
    """

    ratio: float = 1.0

    def seconds(self, network: Network, p: int, nbytes: int) -> float:
        if p == 1:
            return 0.0
        clock, sizes = network.clock(p), _sizes(p, nbytes, self.ratio)
        clock(sizes, None, sizes)
        return clock.seconds


@dataclass(frozen=True)
class Gathered(Exchange):
    """Messages `ratio` times shorter that cannot be added: indices and values, every worker with its own support.

    Whoever adds them up then tells the sum, whose support is at most the union, p times as large. With a replicated
    network that is everybody, and nothing is told. An all-gather of p messages then competes with an all-reduce of one
    vector: on a ring, for long vectors, it is faster while p < 2 ratio.
    """

    ratio: float = 1.0

    def seconds(self, network: Network, p: int, nbytes: int) -> float:
        if p == 1:
            return 0.0
        clock, sizes = network.clock(p), _sizes(p, nbytes, self.ratio)
        clock(sizes, None)
        clock(None, np.minimum(p * sizes, nbytes))
        return clock.seconds


def _sizes(p: int, nbytes: int, ratio: float) -> np.ndarray:
    return np.full(p, math.ceil(nbytes / ratio), dtype=np.int64)


@dataclass(frozen=True)
class Timing:
    """Seconds of a step on `workers` nodes, its parts, and on one node."""

    workers: int
    computing: float
    communication: float
    alone: float

    @property
    def total(self) -> float:
        return self.computing + self.communication

    @property
    def speedup(self) -> float:
        """How many times faster than one node."""
        return self.alone / self.total

    @property
    def efficiency(self) -> float:
        """The speed-up of each worker's share: 1 would be full parallelisation."""
        return self.speedup / self.workers


def timings(work: Work, network: Network | str, exchange: Exchange, workers: Iterable[int]) -> list[Timing]:
    """A step's time for each number of workers.

    >>> for one in timings(Work(8.0, 1_000_000), "8mbit,1ms,ring", Summed(), (1, 4, 16)):
    ...     print(one.workers, round(one.total, 3), round(one.speedup, 2))
    1 8.0 1.0
    4 3.506 2.28
    16 2.405 3.33
    """
    network = Network.parse(network)
    return [Timing(p, work.compute / p, exchange.seconds(network, p, work.nbytes), work.compute) for p in workers]


def best(work: Work, network: Network | str, exchange: Exchange, most: int = 1024) -> Timing:
    """The number of workers, up to `most`, with which a step takes least time; the smaller of two equal ones."""
    return min(timings(work, network, exchange, range(1, most + 1)), key=lambda one: (one.total, one.workers))


@dataclass(frozen=True)
class Training:
    """A training that one node finishes in `alone` seconds, and what is claimed for `workers` nodes.

    Every node works on `batch` examples a step, so with more nodes there are fewer steps with more examples: the whole
    takes alone / workers (1 + communication / step) seconds, `step` being the seconds of computing in one.

    Parameters
    ----------
    alone, claimed : seconds on one node, and on all of them.
    workers : nodes.
    parameters : of the model, float32.
    examples : that are worked on in the whole training, over all its epochs.
    batch : examples of one node in one step.
    """

    alone: float
    claimed: float
    workers: int
    parameters: int
    examples: float
    batch: int

    @property
    def implied_speedup(self) -> float:
        return self.alone / self.claimed

    @property
    def perfect(self) -> float:
        """Seconds if communication took none."""
        return self.alone / self.workers

    @property
    def left(self) -> float:
        """Seconds of the claimed time that are left for communication; negative where it is beyond perfect."""
        return self.claimed - self.perfect

    @property
    def step(self) -> float:
        """Seconds that one node computes in one step."""
        return self.alone * self.batch / self.examples

    @property
    def nbytes(self) -> int:
        return 4 * self.parameters

    def seconds(self, network: Network | str, exchange: Exchange) -> float:
        """Of the whole training on all nodes."""
        waiting = exchange.seconds(Network.parse(network), self.workers, self.nbytes)
        return self.perfect * (1.0 + waiting / self.step)

    def allowed(self, efficiency: float) -> float:
        """Seconds that the communication of one step may take for such a part of the perfect speed."""
        if not 0.0 < efficiency <= 1.0:
            raise ValueError(f"allowed(efficiency={efficiency}) : efficiency must be in (0, 1]")
        return self.step * (1.0 / efficiency - 1.0)

    def needed_ratio(self, network: Network | str, efficiency: float) -> float:
        """The least compression of messages that sum, so that the network keeps to what is allowed; infinite where even
        empty messages would be too late. At least 1: no compression."""
        network, allowed = Network.parse(network), self.allowed(efficiency)
        if Summed(self.nbytes).seconds(network, self.workers, self.nbytes) > allowed:
            return math.inf
        low, high = 1.0, float(self.nbytes)
        if Summed().seconds(network, self.workers, self.nbytes) <= allowed:
            return low
        while high > low * (1.0 + 1e-9):
            middle = math.sqrt(low * high)
            if Summed(middle).seconds(network, self.workers, self.nbytes) <= allowed:
                high = middle
            else:
                low = middle
        return high


# ResNet-152 on ImageNet at CSCS, from the slides of M. Safaryan: 19 days on a single node, and 25 minutes on 1024, "in
# theory". They name neither epochs nor batch: 90 epochs and 32 pictures a node, as is usual, are ours, and so are the
# parameters, which are those of torchvision's model
RESNET152 = Training(
    alone=19 * 86_400.0, claimed=25 * 60.0, workers=1024, parameters=60_192_808, examples=90 * 1_281_167.0, batch=32
)
