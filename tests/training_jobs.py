"""What the processes of worlds.py can be asked to do with DDP; `simulate` is the same training in one process."""

from __future__ import annotations

import copy
import os
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from jobs import account, sha
from laconic.core.flight import Flight, together
from laconic.core.link import Link
from laconic.core.mechanism import Mechanism, Need
from laconic.core.spec import parse
from laconic.runtime.local import Local
from laconic.runtime.process_group import Pending, ProcessGroup
from laconic.training import attach
from laconic.training.conductor import Conductor
from laconic.training.policy import Policy, setting_of

MANY_BUCKETS = 0.0008  # MiB


class Net(nn.Module):
    """A small network whose layers are used in another order than they are made, one of them twice."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.head = nn.Linear(20, 3)
        self.scale = nn.Parameter(torch.ones(()))
        self.twice = nn.Linear(20, 20, bias=False)
        self.first = nn.Linear(11, 20)
        self.filter = nn.Conv1d(1, 4, 3)
        self.join = nn.Linear(4 * 18, 20)
        generator = torch.Generator().manual_seed(3)
        for parameter in self.parameters():
            parameter.data = (0.3 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64)).to(dtype)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.twice(torch.tanh(self.twice(torch.tanh(self.first(x))))))
        x = torch.tanh(self.filter(x[:, None])).flatten(1)
        return self.head(torch.tanh(self.join(x))) * self.scale


def batch(rank: int, step: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """What a rank sees at a step."""
    generator = torch.Generator().manual_seed(1000 * rank + step)
    inputs = torch.randn(8 + rank, 11, generator=generator, dtype=torch.float64).to(dtype)
    return inputs, torch.randint(0, 3, (8 + rank,), generator=generator)


def loss_of(model: nn.Module, rank: int, step: int, dtype: torch.dtype) -> Tensor:
    inputs, targets = batch(rank, step, dtype)
    return nn.functional.cross_entropy(model(inputs), targets)


def parameters_of(model: nn.Module) -> dict[str, Any]:
    named = dict(model.named_parameters())
    return {
        "x": {name: sha(parameter.detach()) for name, parameter in named.items()},
        "values": {name: parameter.detach().flatten().tolist() for name, parameter in named.items()},
    }


def job_simulate(mechanism: str, workers: int, steps: int, dtype: str) -> dict[str, Any]:
    """The training in one process: every rank's gradients one after another, one mechanism per parameter."""
    kind: torch.dtype = getattr(torch, dtype)
    model, runtime = Net(kind), Local(workers)
    link, memory = runtime.links[0], {}
    chosen: Any = parse(mechanism)
    settled = {name: chosen.settled(setting_of(workers, tuple(p.shape))) for name, p in model.named_parameters()}
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for step in range(steps):
        gradients: dict[str, list[Tensor]] = {name: [] for name, _ in model.named_parameters()}
        for rank in range(workers):
            model.zero_grad()
            loss_of(model, rank, step, kind).backward()
            for name, parameter in model.named_parameters():
                assert parameter.grad is not None
                gradients[name].append(parameter.grad.clone())
        link.begin(step)
        for name, parameter in model.named_parameters():
            v = torch.stack(gradients[name])
            scope = link.scope(name)
            one = settled[name]
            text = one.exchange(v, memory[name], scope) if name in memory else one.init(v, scope)
            ((estimate, memory[name]),) = runtime.drive(text)
            parameter.grad = estimate.clone()
        optimizer.step()
    return {**parameters_of(model), **account(runtime)}


class Recorder:
    """What a conductor does, in order: ("begin" or "finish", the streams of a flight); and delays, if asked."""

    def __init__(self, runtime: Any, delays: random.Random | None) -> None:
        self.events: list[tuple[str, list[str]]] = []
        self.waited = 0.0
        self._begin, self._finish, self._delays = runtime.begin, runtime.finish, delays
        runtime.begin, runtime.finish = self.begin, self.finish

    def begin(self, flight: Flight) -> Pending:
        self.events.append(("begin", streams(flight)))
        return self._begin(flight)

    def finish(self, pending: Pending) -> list[Any]:
        self._sleep()
        replies = self._finish(pending)
        self._sleep()
        self.events.append(("finish", streams(pending.flight)))
        return replies

    def _sleep(self) -> None:
        if self._delays is not None:
            seconds = 0.01 * self._delays.random()
            time.sleep(seconds)
            self.waited += seconds


def streams(flight: Flight) -> list[str]:
    return [ask.packet.keys.stream for ask in flight]  # type: ignore[attr-defined]


def recorded_collectives(carrier: Any) -> list[tuple[str, int]]:
    """From now on, the collectives of a carrier with their sizes, in the order in which they are issued."""
    issued: list[tuple[str, int]] = []
    gather, reduce = carrier.gather_padded, carrier.all_reduce

    def gather_padded(mine: Any, width: int) -> Any:
        issued.append(("all_gather", width))
        return gather(mine, width)

    def all_reduce(total: Tensor) -> Any:
        issued.append(("all_reduce", total.numel()))
        return reduce(total)

    carrier.gather_padded, carrier.all_reduce = gather_padded, all_reduce
    return issued


def train(model: DistributedDataParallel, steps: int, kind: torch.dtype, start: int = 0) -> None:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for step in range(start, start + steps):
        optimizer.zero_grad()
        loss_of(model, dist.get_rank(), step, kind).backward()
        optimizer.step()


def job_train(
    mechanism: str, steps: int, dtype: str, bucket_cap_mb: float, window: int = 4, delayed: int | None = None,
) -> dict[str, Any]:  # fmt: skip
    """The training with DDP: parameters, ledger, the buckets of every step, and the order of everything."""
    kind: torch.dtype = getattr(torch, dtype)
    model = DistributedDataParallel(Net(kind), bucket_cap_mb=bucket_cap_mb)  # type: ignore[arg-type]
    attached = attach(model, Policy(mechanism, rules=()), window=window)
    runtime: Any = attached.averager.runtime
    try:
        issued = recorded_collectives(runtime.carrier)
        recorder = Recorder(runtime, random.Random(1) if delayed == dist.get_rank() else None)
        buckets = recorded_buckets(attached)
        train(model, steps, kind)
    finally:
        attached.detach()
    said = account(runtime)
    flags = sum(map(len, buckets)) * dist.get_world_size() * kind.itemsize  # whether numbers were finite, per bucket
    said["uplink"] = [size - flags for size in said["uplink"]]
    return {
        **parameters_of(model.module), **said, "buckets": buckets, "events": recorder.events,
        "issued": issued, "waited": recorder.waited, "memory": sorted(attached.memory), "steps": attached.steps,
    }  # fmt: skip


def recorded_buckets(attached: Any) -> list[list[list[str]]]:
    """From now on, the names in every bucket of every step."""
    steps: list[list[list[str]]] = []
    genuine = attached.hook

    def hook(bucket: dist.GradBucket) -> Any:
        if bucket.index() == 0:
            steps.append([])
        steps[-1].append([attached._names[parameter] for parameter in bucket.parameters()])
        return genuine(bucket)

    attached.hook = hook
    return steps


def job_detach(dtype: str) -> dict[str, Any]:
    """After detaching: the gradients that DDP leaves, the mean over ranks, and the threads of the conductor."""
    kind: torch.dtype = getattr(torch, dtype)
    model = DistributedDataParallel(Net(kind))
    attached = attach(model, Policy("ef21(topk(k=0.1))", rules=()))
    train(model, 2, kind)
    rounds = attached.ledger.rounds
    attached.detach()
    attached.detach()
    model.zero_grad()
    loss_of(model, dist.get_rank(), 2, kind).backward()
    left = {name: parameter.grad for name, parameter in model.module.named_parameters()}
    plain = copy.deepcopy(model.module)
    mean: dict[str, Tensor] = {name: torch.zeros_like(parameter) for name, parameter in plain.named_parameters()}
    for rank in range(dist.get_world_size()):
        plain.zero_grad()
        loss_of(plain, rank, 2, kind).backward()
        for name, parameter in plain.named_parameters():
            assert parameter.grad is not None
            mean[name] += parameter.grad / dist.get_world_size()
    error = max(float((left[name] - mean[name]).abs().max()) for name in mean)  # type: ignore[operator]
    threads = [thread.name for thread in threading.enumerate() if "conductor" in thread.name]
    return {"error": error, "threads": threads, "said": attached.ledger.rounds - rounds}


def job_train_struck(step: int) -> dict[str, Any]:
    """Rank 1 dies in the middle of a step; what the others' backward passes say, and whether memory stayed."""
    model = DistributedDataParallel(Net(torch.float64))
    attached = attach(model, Policy("ef21(topk(k=0.1))", rules=()), timeout=5.0)
    train(model, step, torch.float64)
    if dist.get_rank() == 1:
        attached.averager.runtime.begin = lambda flight: os._exit(3)  # type: ignore[method-assign, assignment]
    before = {name: sha(memory.shift) for name, memory in attached.memory.items()}
    began = time.monotonic()
    says = []
    for again in range(2):
        try:
            train(model, 1, torch.float64, start=step + again)
        except RuntimeError as failure:
            says.append(str(failure))
    seconds = time.monotonic() - began
    attached.detach()
    after = {name: sha(memory.shift) for name, memory in attached.memory.items()}
    return {"says": says, "seconds": seconds, "untouched": before == after}


@dataclass(frozen=True)
class Probing(Mechanism):
    """A mechanism that wants a probe."""

    name: ClassVar[str] = "probing"
    needs: ClassVar[frozenset[Need]] = frozenset({Need.PROBE})

    async def init(self, v: Tensor, link: Link, probe: Any = None) -> tuple[Tensor, Any]:
        raise AssertionError("it was refused")

    async def exchange(self, v: Tensor, memory: Any, link: Link, probe: Any = None) -> tuple[Tensor, Any]:
        raise AssertionError("it was refused")


def job_refused() -> dict[str, str]:
    """What `attach` says to what it cannot do."""
    model = DistributedDataParallel(Net(torch.float64))
    half = DistributedDataParallel(Net(torch.float16))
    attempts: dict[str, Callable[[], Any]] = {
        "full gradients": lambda: attach(model, "marina(permk)"),
        "stepsize": lambda: attach(model, "ef14_inside(topk(k=0.1))"),
        "probe": lambda: attach(model, Probing()),
        "no mechanism": lambda: attach(model, "topk(k=0.1)"),
        "no theorem": lambda: attach(model, Policy("diana(topk(k=0.1))", rules=())),
        "window": lambda: attach(model, "ef21(topk(k=0.1))", window=0),
        "dtype": lambda: attach(half, "ef21(topk(k=0.1))"),
    }
    said = {}
    for name, attempt in attempts.items():
        try:
            attempt()
        except ValueError as error:
            said[name] = str(error)
    return said


def job_conduct(texts: Sequence[int], window: int) -> dict[str, Any]:
    """A conductor alone: one text per number, of that many flights; the order of events, and how the texts ended."""
    runtime = ProcessGroup(dist.get_world_size(), ordered=True)
    link = runtime.links[0]
    recorder = Recorder(runtime, random.Random(dist.get_rank()))
    conductor = Conductor(runtime, window)

    async def text(name: str, flights: int) -> Any:
        total = torch.zeros(1, 2, dtype=torch.float64)
        for i in range(flights):
            (mean,) = await together(link.scope(name).all_reduce(total + i + link.block.low))
            total = total + mean
        return total

    futures = []
    for step in range(2):
        link.begin(step)
        for i, flights in enumerate(texts):
            futures.append(conductor.submit(text(f"t{i}", flights), last=i == len(texts) - 1))
        for future in futures[-len(texts) :]:
            future.wait()
    conductor.close()
    events = [(what, flight[0]) for what, flight in recorder.events]
    aloft, most = Counter[str](), 0
    for what, _ in events:
        aloft["flights"] += 1 if what == "begin" else -1
        most = max(most, aloft["flights"])
    return {"events": events, "values": [future.value().flatten().tolist() for future in futures], "most": most}
