"""The link between the processes: its latency and its bandwidth, measured by a short sweep of collectives."""

from __future__ import annotations

import contextlib
import itertools
import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from laconic.runtime.carrier import gather
from laconic.runtime.moves import Price
from laconic.training.advice.transfers import AllGather, AllReduce, Transfer

SMALLEST, GROWTH, LARGEST = 1 << 10, 4, 1 << 24  # bytes of the sweep
LONGEST = 1.0  # seconds that a transfer may take; the next size is left out where it would take more
PATIENCE = 0.3  # seconds for the repetitions of one size
REPETITIONS = 9
PATIENT_SWEEPS = 4  # where noise hides how times grow with sizes


@dataclass(frozen=True)
class Sample:
    """A transfer that took some seconds, and in them some of the processor's, of all threads of a process."""

    transfer: Transfer
    seconds: float
    processor: float = 0.0


@dataclass(frozen=True)
class Curve:
    """Measured seconds of one kind of transfer by the bytes of its longest chain of messages, both in rising order."""

    nbytes: tuple[float, ...]
    seconds: tuple[float, ...]

    def at(self, nbytes: float, slope: float) -> float:
        """Between two measured sizes by interpolation; beyond the largest with `slope` seconds per byte more."""
        return float(np.interp(nbytes, self.nbytes, self.seconds)) + max(0.0, nbytes - self.nbytes[-1]) * slope

    @property
    def slope(self) -> float | None:
        """Seconds per byte between the two largest sizes; None where there are not two, or noise hides it."""
        if len(self.nbytes) < 2 or not self.seconds[-1] > self.seconds[-2]:
            return None
        return (self.seconds[-1] - self.seconds[-2]) / (self.nbytes[-1] - self.nbytes[-2])


@dataclass(frozen=True)
class Link:
    """What a transfer takes: latency times its messages, plus its bytes over the bandwidth.

    That line is what all-reduces show. Gloo's collectives do not all keep to it: an all-gather may take half as long
    again, and long transfers on a fast link more than short ones promise. So where a kind of transfer was measured,
    `curves` hold its times by size, and are used instead of the line; beyond the largest measured size they go on as
    the all-reduces' curve ends, whose sizes go furthest.

    Parameters
    ----------
    world : processes.
    latency : seconds per message, alpha.
    bandwidth : bytes per second, beta.
    error : the median relative distance of the measured all-reduces from the line.
    curves : by the name of the transfer.
    load : how much of one core the transport of a process makes use of while it carries something long.

    >>> Link(world=2, latency=0.001, bandwidth=1e6).seconds([AllReduce(1_000_000)])
    1.002
    """

    world: int
    latency: float
    bandwidth: float
    error: float = 0.0
    curves: Mapping[str, Curve] = field(default_factory=dict)
    load: float = 0.0

    def seconds(self, transfers: Iterable[Transfer]) -> float:
        """Of transfers one after the other; none where there is only one process."""
        return 0.0 if self.world == 1 else sum(map(self._seconds, transfers))

    def _seconds(self, transfer: Transfer) -> float:
        cost = transfer.cost(self.world)
        curve = self.curves.get(transfer.name)
        if curve is None:
            return cost.seconds(Price(self.latency, 1.0 / self.bandwidth))
        if cost.numbers == 0:
            return 0.0
        sums = self.curves.get(AllReduce.name)
        slope = None if sums is None else sums.slope
        return curve.at(cost.numbers, 1.0 / self.bandwidth if slope is None else slope)

    @property
    def rate(self) -> str:
        """The bandwidth in bits.

        >>> Link(2, 0.0, 1.25e6).rate
        '10 Mbit/s'
        """
        bits = 8.0 * self.bandwidth
        for unit, size in (("Gbit/s", 1e9), ("Mbit/s", 1e6)):
            if bits >= size:
                return f"{bits / size:.3g} {unit}"
        return f"{bits / 1e3:.3g} kbit/s"

    @staticmethod
    def fit(samples: Sequence[Sample], world: int) -> Link:
        """The link whose times are nearest to the measured ones.

        Each transfer's median counts, once. The line is that of the all-reduces, or of all transfers where there are
        none: the squares of relative errors are least, so that short transfers have a say in the latency beside long
        ones. A latency below zero, which noise can yield, becomes zero. The curves are the medians, where a larger
        size that took less time than a smaller one is taken to have taken the same.

        Raises
        ------
        ValueError : one process, times that are not positive numbers, fewer than two sizes, times that do not grow.
        """
        if world < 2:
            raise ValueError(f"Link.fit(world={world}) : there is no link with fewer than 2 processes")
        times: dict[Transfer, list[float]] = {}
        for sample in samples:
            if not (math.isfinite(sample.seconds) and sample.seconds > 0.0):
                raise ValueError(f"Link.fit : a transfer took {sample.seconds} seconds; times must be positive numbers")
            times.setdefault(sample.transfer, []).append(sample.seconds)
        taken = {transfer: float(np.median(seconds)) for transfer, seconds in times.items()}
        sums = {transfer: t for transfer, t in taken.items() if isinstance(transfer, AllReduce)} or taken
        costs = [transfer.cost(world) for transfer in sums]
        matrix = np.array([[cost.messages, cost.numbers] for cost in costs]).reshape(len(costs), 2)
        if len(set(matrix[:, 1].tolist())) < 2:
            raise ValueError("Link.fit : a latency and a bandwidth take transfers of at least two sizes")
        medians = np.array(list(sums.values()))
        relative, ones = matrix / medians[:, None], np.ones(len(medians))
        latency, slope = np.linalg.lstsq(relative, ones, rcond=None)[0]
        if latency < 0.0:
            column = relative[:, 1]
            latency, slope = 0.0, float(column.sum() / (column @ column))
        if not slope > 0.0:
            raise ValueError("Link.fit : longer transfers took no more time than short ones, so there is no bandwidth")
        error = np.abs(matrix @ np.array([latency, slope]) / medians - 1.0)
        curves = _curves(taken, world)
        return Link(world, float(latency), float(1.0 / slope), float(np.median(error)), curves, _load(samples))

    @staticmethod
    def measure(group: dist.ProcessGroup | None = None, largest: int = LARGEST) -> Link:
        """The link of a group, by all-reduces and all-gathers of growing sizes. Every process of the group calls it.

        Of each transfer the time of the slowest process counts. Sizes grow fourfold up to `largest` bytes, or until
        the next transfer would take more than a second; the sweep takes some 6 s at 10 Mbit/s and less on fast links.
        Where processors are so busy that the medians do not grow with the size, it is repeated, and in the end the
        shortest transfer of each size counts.

        Raises
        ------
        ValueError : a group of one process; what `fit` refuses.
        """
        world = dist.get_world_size(group)
        if world < 2:
            raise ValueError("Link.measure : there is no link with fewer than 2 processes")
        samples: list[Sample] = []
        for _ in range(PATIENT_SWEEPS):
            samples += _sweep(group, AllReduce, _all_reduce, largest)
            samples += _sweep(group, AllGather, _all_gather, largest)
            with contextlib.suppress(ValueError):
                return Link.fit(samples, world)
        return Link.fit(shortest(samples), world)


def shortest(samples: Iterable[Sample]) -> list[Sample]:
    """Of each transfer the one that took the least time."""
    best: dict[Transfer, Sample] = {}
    for sample in samples:
        if sample.transfer not in best or sample.seconds < best[sample.transfer].seconds:
            best[sample.transfer] = sample
    return list(best.values())


def _load(samples: Sequence[Sample]) -> float:
    """Of the longest transfers of those that the line is fitted to: short ones are mostly latency."""
    longest = max((sample.transfer for sample in samples), key=lambda one: (isinstance(one, AllReduce), one.nbytes))
    alike = [sample for sample in samples if sample.transfer == longest]
    return min(1.0, sum(one.processor for one in alike) / sum(one.seconds for one in alike))


def _curves(taken: Mapping[Transfer, float], world: int) -> dict[str, Curve]:
    found: dict[str, list[tuple[float, float]]] = {}
    for transfer, seconds in taken.items():
        found.setdefault(transfer.name, []).append((transfer.cost(world).numbers, seconds))
    curves = {}
    for name, points in found.items():
        nbytes, seconds = zip(*sorted(points), strict=True)
        curves[name] = Curve(nbytes, tuple(np.maximum.accumulate(seconds).tolist()))
    return curves


def _all_reduce(group: dist.ProcessGroup | None, nbytes: int) -> Callable[[], object]:
    values = torch.zeros(nbytes // 4)
    return lambda: dist.all_reduce(values, group=group)


def _all_gather(group: dist.ProcessGroup | None, nbytes: int) -> Callable[[], object]:
    mine = torch.zeros(nbytes, dtype=torch.uint8)
    everyone = [torch.empty_like(mine) for _ in range(dist.get_world_size(group))]
    return lambda: [work.wait() for work in gather(everyone, mine, group)]


def _sweep(
    group: dist.ProcessGroup | None,
    kind: Callable[[int], Transfer],
    prepare: Callable[[dist.ProcessGroup | None, int], Callable[[], object]],
    largest: int,
) -> list[Sample]:
    samples: list[Sample] = []
    nbytes = SMALLEST
    prepare(group, SMALLEST)()  # the first one makes connections
    while nbytes <= largest:
        transfer = prepare(group, nbytes)
        taken = _timed(group, transfer, 1)
        # what follows is decided by numbers that all processes share
        taken += _timed(group, transfer, int(min(max(PATIENCE / max(taken[0][0], 1e-9), 1.0), REPETITIONS - 1)))
        samples += [Sample(kind(nbytes), seconds, processor) for seconds, processor in taken]
        if GROWTH * min(seconds for seconds, _ in taken) > LONGEST:
            break
        nbytes *= GROWTH
    return samples


def _timed(group: dist.ProcessGroup | None, transfer: Callable[[], object], count: int) -> list[tuple[float, float]]:
    """Seconds of transfers one after the other, and of the processor: those of the slowest, of the busiest process."""
    marks = [(time.perf_counter(), time.process_time())]
    for _ in range(count):
        transfer()
        marks.append((time.perf_counter(), time.process_time()))
    pairs = list(itertools.pairwise(marks))
    seconds, processor = ([b[side] - a[side] for a, b in pairs] for side in (0, 1))
    return list(zip(slowest(seconds, group), slowest(processor, group), strict=True))


def slowest(seconds: Sequence[float], group: dist.ProcessGroup | None = None) -> list[float]:
    """The largest of each number over all processes, on all of them."""
    box: Tensor = torch.tensor(list(seconds), dtype=torch.float64)
    dist.all_reduce(box, dist.ReduceOp.MAX, group=group)
    return box.tolist()
