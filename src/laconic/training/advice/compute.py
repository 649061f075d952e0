"""The computing of a training step, measured without communication, and when DDP's buckets become ready in it."""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.futures import Future
from torch.nn.parallel import DistributedDataParallel

from laconic.training.advice.loopback import Loopback
from laconic.training.advice.predict import Compute
from laconic.training.advice.transfers import Transfer
from laconic.training.hook import gradients_of

Loss = Callable[[nn.Module], Tensor]
MakeOptimizer = Callable[[nn.Module], torch.optim.Optimizer]
WARM_UP, STEPS = 2, 3  # DDP deals its buckets anew after the first step


@dataclass(frozen=True)
class Bucket:
    """Gradients that DDP hands on together, by name: copies of those of the last measured step."""

    gradients: dict[str, Tensor]

    @property
    def nbytes(self) -> int:
        return sum(gradient.numel() * gradient.element_size() for gradient in self.gradients.values())


@dataclass
class _Watch:
    """What DDP is given for a communication hook: it notes the time, and answers at once."""

    names: dict[Tensor, str]
    times: list[float] = field(default_factory=list)
    buckets: list[Bucket] = field(default_factory=list)

    def hook(self, bucket: dist.GradBucket) -> Future[Tensor]:
        now = time.perf_counter()
        if bucket.index() == 0:
            self.times, self.buckets = [], []
        named = [self.names[parameter] for parameter in bucket.parameters()]
        self.buckets.append(Bucket(dict(zip(named, gradients_of(bucket), strict=True))))
        self.times.append(now)
        future: Future[Tensor] = Future()
        future.set_result(bucket.buffer())
        return future


def sgd(module: nn.Module) -> torch.optim.Optimizer:
    """SGD with momentum, whose steps take the time of steps and lead nowhere."""
    return torch.optim.SGD(module.parameters(), lr=0.0, momentum=0.9)


def measure(
    model: nn.Module, loss: Loss, nobody: Loopback, *, optimizer: MakeOptimizer = sgd,
    ddp: Mapping[str, Any] | None = None,
) -> tuple[Compute, list[Bucket]]:  # fmt: skip
    """The seconds of a step of this process, and its buckets: medians of three steps after two others.

    DDP works as ever, but its group is `nobody`: it copies gradients to buckets and back. The model
    itself stays as it is: the steps are those of a copy. They draw from torch's generator what the loss draws.

    Parameters
    ----------
    model : on the CPU.
    loss : makes a forward pass of the module that it is given, and gives the loss.
    optimizer : makes one for the module that it is given.
    ddp : keywords of `DistributedDataParallel`, `bucket_cap_mb` say.
    """
    copied = copy.deepcopy(model)
    wrapped = DistributedDataParallel(copied, process_group=nobody, **dict(ddp or {}))
    watch = _Watch({parameter: name for name, parameter in copied.named_parameters()})
    # DDP compares a hook's annotations with types, and ours are text; a lambda has none
    wrapped.register_comm_hook(watch, lambda watch, bucket: watch.hook(bucket))
    steps, taken = optimizer(copied), []
    broadcasts: tuple[Transfer, ...] = ()
    for step in range(WARM_UP + STEPS):
        steps.zero_grad()
        nobody.taken()
        start = time.perf_counter()
        value = loss(wrapped)
        forward = time.perf_counter()
        broadcasts = tuple(call.transfer for call in nobody.taken())
        value.backward()
        backward = time.perf_counter()
        steps.step()
        end = time.perf_counter()
        if step >= WARM_UP:
            moments = [moment - forward for moment in watch.times]
            taken.append([forward - start, backward - forward, end - backward, *moments])
    medians = [statistics.median(column) for column in zip(*taken, strict=True)]
    buckets = [Bucket({name: g.clone() for name, g in bucket.gradients.items()}) for bucket in watch.buckets]
    return Compute(medians[0], medians[1], medians[2], tuple(medians[3:]), broadcasts), buckets
