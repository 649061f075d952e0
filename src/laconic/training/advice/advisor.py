"""The advisor: measures the link, the model and the candidates, and predicts a step with each of them."""

from __future__ import annotations

import hashlib
import os
import socket
from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from laconic.core.mechanism import Mechanism
from laconic.training.advice import compute as computing
from laconic.training.advice.candidates import Candidate, candidate_of
from laconic.training.advice.compute import Bucket, Loss, MakeOptimizer, sgd
from laconic.training.advice.link import Link, slowest
from laconic.training.advice.loopback import Loopback, registered
from laconic.training.advice.predict import Compute, Flight, Host, Journey, Prediction
from laconic.training.advice.verdict import Advice
from laconic.training.notices import announce
from laconic.training.policy import Policy

DEFAULTS = (  # in order of preference: what changes training least comes first
    "dense", "fp16", "powersgd-1", "powersgd-4", "powersgd(rank=1)", "powersgd(rank=4)", "direct(natural)",
    "ef21_sgdm(topk(k=0.01) | natural)", "ef14(topk(k=0.001) | natural)", "ef14(scaled_sign)", "diloco-50",
)  # fmt: skip


@dataclass(frozen=True)
class Bench:
    """What predictions are made from: a link, the processor's share of a process, and a model's step.

    Attributes
    ----------
    buckets : of the model, in the order in which they are ready.
    nobody : over which candidates are tried.
    """

    link: Link
    host: Host
    compute: Compute
    buckets: list[Bucket]
    nobody: Loopback

    @staticmethod
    def measure(
        model: nn.Module, loss: Loss, *, optimizer: MakeOptimizer = sgd, ddp: Mapping[str, Any] | None = None
    ) -> Bench:
        """Measures them. Every process of `torch.distributed` calls it; the slowest counts."""
        link, nobody = Link.measure(), registered()
        dist.barrier()  # processes that share a machine compute at the same time, as they do in training
        own, buckets = computing.measure(model, loss, nobody, optimizer=optimizer, ddp=ddp)
        forward, backward, step, *ready = slowest([own.forward, own.backward, own.optimizer, *own.ready])
        return Bench(link, here(), Compute(forward, backward, step, tuple(ready), own.broadcasts), buckets, nobody)

    def predict(self, candidate: Candidate | Policy | Mechanism | str) -> Prediction:
        """A step with one candidate, whose cost is measured first. Every process calls it; all get rank 0's."""
        chosen = candidate_of(candidate)
        dist.barrier()
        journeys = agreed(chosen.journeys(self.buckets, self.nobody))
        found = chosen.order.predict(self.compute, journeys, self.link, self.host)
        box = torch.tensor(astuple(found), dtype=torch.float64)
        dist.broadcast(box, 0)
        return Prediction(*box.tolist())


def advise(
    model: nn.Module, loss: Loss, candidates: Sequence[Candidate | Policy | Mechanism | str] = DEFAULTS, *,
    optimizer: MakeOptimizer = sgd, ddp: Mapping[str, Any] | None = None,
) -> Advice:  # fmt: skip
    """Whether compression pays here, and which: predicted seconds of a training step with each candidate.

    Every process of `torch.distributed` calls it with the same model and candidates; it takes some ten steps' time and
    at most some 10 s of the network, and sends no message of a candidate. The model stays as it is.

    Parameters
    ----------
    model : on the CPU, not wrapped in DDP.
    loss : makes a forward pass of the module that it is given (the model in DDP), and gives the loss.
    candidates : specs of mechanisms, policies, "dense", "fp16", "powersgd-R" (these three are PyTorch's), "diloco-H"
        (a dense exchange every H steps); in order of preference.
    optimizer : makes one for the module that it is given; SGD with momentum by default.
    ddp : keywords of `DistributedDataParallel`.

    Returns
    -------
    Advice : with `.table`, `.sentence`, and `.predicted` by candidate.

    Raises
    ------
    ValueError : a candidate that there is not, or that a DDP hook cannot serve. One that cannot serve this model is
        left out, which is announced.

    Examples
    --------
    >>> advice = advise(net, lambda module: loss(module(inputs), targets))  # doctest: +SKIP
    >>> print(advice.sentence)  # doctest: +SKIP
    """
    chosen = [candidate_of(candidate) for candidate in candidates]
    if not dist.is_initialized() or dist.get_world_size() < 2:
        return Advice(1, None, None, None, {})
    bench = Bench.measure(model, loss, optimizer=optimizer, ddp=ddp)
    predicted: dict[str, Prediction] = {}
    left_out: dict[str, str] = {}
    for candidate in chosen:
        try:
            predicted[candidate.name] = bench.predict(candidate)
        except ValueError as refusal:  # of the model's tensors, so all processes meet it
            left_out[candidate.name] = str(refusal)
            announce(f"{candidate.name} is left out: {refusal}")
    return Advice(dist.get_world_size(), bench.link, bench.host, bench.compute, predicted, left_out)


def agreed(journeys: Sequence[Journey]) -> list[Journey]:
    """The largest of each time and size over all processes.

    A process whose journeys have another form, because a message of its own did not fit where those of others did,
    takes no part: what counts is rank 0's form.
    """
    numbers = [n for journey in journeys for n in _numbers(journey)]
    form = torch.tensor([len(numbers)])
    dist.broadcast(form, 0)
    mine = numbers if len(numbers) == int(form) else [0.0] * int(form)
    largest = iter(slowest(mine))
    if mine is not numbers:
        return list(journeys)
    return [_with_numbers(journey, [next(largest) for _ in _numbers(journey)]) for journey in journeys]


def _numbers(journey: Journey) -> list[float]:
    works = [flight.work for flight in journey.flights]
    return [float(journey.nbytes), journey.last, *works, *(float(transfer.nbytes) for transfer in journey.transfers)]


def _with_numbers(journey: Journey, numbers: Sequence[float]) -> Journey:
    said, last, *rest = numbers
    works, sizes = rest[: len(journey.flights)], iter(rest[len(journey.flights) :])
    flights = [
        Flight(work, tuple(replace(transfer, nbytes=int(next(sizes))) for transfer in flight.transfers))
        for work, flight in zip(works, journey.flights, strict=True)
    ]
    return Journey(tuple(flights), last, int(said))


def here() -> Host:
    """The cores of this machine over the processes on it, the fewest over all machines; collective."""
    marks = [torch.zeros(1, dtype=torch.int64) for _ in range(dist.get_world_size())]
    mine = torch.tensor([_machine()], dtype=torch.int64)
    dist.all_gather(marks, mine)
    share = _cores() / sum(int(mark == mine) for mark in marks)
    (most,) = slowest([-share])
    return Host(-most, torch.get_num_threads())


def _cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _machine() -> int:
    """A number for the machine: of its boot, where the system tells it, for containers of one machine share cores."""
    boot = Path("/proc/sys/kernel/random/boot_id")
    try:
        text = boot.read_text(encoding="ascii")
    except OSError:
        text = socket.gethostname()
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=7).digest(), "little")
