"""What the processes of worlds.py can be asked to do for the advisor."""

from __future__ import annotations

import time
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from laconic.training.advice import Bench, Link, advise
from laconic.training.advice.transfers import AllGather, AllReduce
from laconic.training.hook import attach
from training_jobs import MANY_BUCKETS, Net, loss_of

KIND = torch.float32


def loss(model: nn.Module) -> torch.Tensor:
    return loss_of(model, dist.get_rank(), 0, KIND)


def job_advise(candidates: list[str]) -> dict[str, Any]:
    """Predictions for a small network, what its tensors were before and after, and the time that it took."""
    model = Net(KIND)
    before = [parameter.detach().clone() for parameter in model.parameters()]
    began = time.perf_counter()
    advice = advise(model, loss, candidates, ddp={"bucket_cap_mb": MANY_BUCKETS})
    seconds = time.perf_counter() - began
    assert advice.compute is not None
    untouched = all(bool((a == b).all()) for a, b in zip(before, model.parameters(), strict=True))
    document = advice.document()
    return {**document, "seconds": seconds, "untouched": untouched, "grads": [p.grad for p in model.parameters()]}


def job_bytes(mechanism: str, steps: int) -> dict[str, Any]:
    """The bytes of a real training's last step, by ledger and transport, beside what the advisor foresees."""
    ddp: Any = {"bucket_cap_mb": MANY_BUCKETS}
    model = DistributedDataParallel(Net(KIND), **ddp)
    attached = attach(model, mechanism)
    found = []
    attached.averager.listeners.append(lambda step: found.append((step.up, step.sent)))
    for _ in range(steps):
        model.zero_grad()
        loss(model).backward()
    attached.averager.wait()
    attached.detach()
    bench = Bench.measure(Net(KIND), loss, ddp=ddp)
    predicted = bench.predict(mechanism)
    return {"up": found[-1][0], "sent": found[-1][1], "predicted": predicted.nbytes, "buckets": len(bench.buckets)}


def job_link() -> dict[str, Any]:
    """The link between the processes of a test."""
    link = Link.measure(largest=1 << 18)
    again = link.seconds([AllReduce(1 << 18)]), link.seconds([AllGather(1 << 18)])
    return {"latency": link.latency, "bandwidth": link.bandwidth, "world": link.world, "seconds": again}
