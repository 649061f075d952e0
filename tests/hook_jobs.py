"""What the processes of worlds.py can be asked to do with DDP's hook and all that PyTorch offers beside it."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from jobs import sha
from laconic.core.state import flatten
from laconic.runtime.routes import Load, Plain, Routes
from laconic.training import DENSE, Averager, LocalSGD, Policy, Rule, Stop, attach, detach, merge, notices
from laconic.training.hook import Attached
from training_jobs import MANY_BUCKETS, Net, loss_of, recorded_collectives

RATE = 0.1


class Branches(nn.Module):
    """A network of which a step uses one of two branches; nobody ever uses the last layer."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.net = Net(dtype)
        self.either = nn.Linear(3, 3, dtype=dtype)
        self.other = nn.Linear(3, 3, dtype=dtype)
        self.never = nn.Linear(3, 3, dtype=dtype)
        generator = torch.Generator().manual_seed(4)
        for layer in (self.either, self.other, self.never):
            layer.weight.data = torch.randn(3, 3, generator=generator, dtype=torch.float64).to(dtype)
            layer.bias.data.zero_()
        self.turn = 0

    def forward(self, x: Tensor) -> Tensor:
        return (self.either if self.turn % 2 else self.other)(self.net(x))


def mean_loss(model: nn.Module, step: int, dtype: torch.dtype) -> Tensor:
    return loss_of(model, dist.get_rank(), step, dtype)


# ---- what a loop may do: each gives the loop of one way, from a DDP model and an optimizer ---------------------------


def plain(model: Any, optimizer: torch.optim.Optimizer, step: int, dtype: torch.dtype) -> None:
    mean_loss(model, step, dtype).backward()


def accumulation(model: Any, optimizer: torch.optim.Optimizer, step: int, dtype: torch.dtype) -> None:
    with model.no_sync():
        (0.5 * mean_loss(model, 100 + step, dtype)).backward()
    (0.5 * mean_loss(model, step, dtype)).backward()


def clipping(model: Any, optimizer: torch.optim.Optimizer, step: int, dtype: torch.dtype) -> None:
    mean_loss(model, step, dtype).backward()
    nn.utils.clip_grad_norm_(model.parameters(), 0.1)


def schedule(model: Any, optimizer: torch.optim.Optimizer, step: int, dtype: torch.dtype) -> None:
    optimizer.param_groups[0]["lr"] = RATE * 0.8**step
    mean_loss(model, step, dtype).backward()


def branches(model: Any, optimizer: torch.optim.Optimizer, step: int, dtype: torch.dtype) -> None:
    model.module.turn = step
    mean_loss(model, step, dtype).backward()


def autocast(model: Any, optimizer: torch.optim.Optimizer, step: int, dtype: torch.dtype) -> None:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = mean_loss(model, step, dtype)
    loss.backward()


WAYS: dict[str, Callable[..., None]] = {
    "plain": plain, "accumulation": accumulation, "clipping": clipping, "schedule": schedule, "branches": branches,
    "autocast": autocast, "views": plain, "compile": plain,
}  # fmt: skip


def made(way: str, dtype: torch.dtype, bucket: float = MANY_BUCKETS) -> Any:
    net = Branches(dtype) if way == "branches" else Net(dtype)
    options: dict[str, Any] = {"bucket_cap_mb": bucket}
    if way == "branches":
        options["find_unused_parameters"] = True
    if way == "views":
        options["gradient_as_bucket_view"] = True
    return DistributedDataParallel(net, **options)


class Books:
    """Adds up, by parameter name, what mechanisms were given (v) and what they gave (the estimates)."""

    def __init__(self, attached: Attached) -> None:
        self.given: dict[str, Tensor] = {}
        self.got: dict[str, Tensor] = {}
        genuine = attached.averager._exchange

        async def exchange(name: str, v: Tensor, probe: Any = None) -> None:
            given = v[0].clone()
            await genuine(name, v, probe)
            self.given[name] = self.given.get(name, 0.0) + given
            self.got[name] = self.got.get(name, 0.0) + v[0]

        attached.averager._exchange = exchange  # type: ignore[method-assign]


def job_way(way: str, mechanism: str | None, steps: int, dtype: str) -> dict[str, Any]:
    """Training in one of the ways; without a mechanism, plain DDP. What EF14 owes is compared with its books."""
    kind: torch.dtype = getattr(torch, dtype)
    model = made(way, kind, bucket=25 if way == "compile" else MANY_BUCKETS)  # what torch splits graphs by
    attached = None if mechanism is None else attach(model, Policy(mechanism, rules=()))
    books = None if attached is None else Books(attached)
    stepped = torch.compile(model, backend="aot_eager") if way == "compile" else model
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE, momentum=0.9)
    for step in range(steps):
        optimizer.zero_grad()
        WAYS[way](stepped, optimizer, step, kind)
        optimizer.step()
    found = values_of(model.module)
    debts = []
    if attached is not None and books is not None:
        for name, memory in attached.memory.items():
            owed = {place.rpartition(".")[2]: leaf.tensor for place, leaf in flatten(memory).items()}
            if "error" in owed:
                total = owed["error"][0] - books.given[name]
                dist.all_reduce(total)  # mean error = mean of what was given - what came back
                debts.append(float((total / dist.get_world_size() + books.got[name]).abs().max()))
        attached.detach()
    return {"values": found, "debts": debts}


def values_of(model: nn.Module) -> dict[str, list[float]]:
    return {name: parameter.detach().flatten().tolist() for name, parameter in model.named_parameters()}


# ---- scales and numbers that are not finite --------------------------------------------------------------------------


def job_hook_scaled(mechanism: str, steps: int) -> dict[str, Any]:
    """Training with a GradScaler whose scale changes, and an overflow at step 3 on one rank; and without a scaler."""
    dtype = torch.float64
    model = made("plain", dtype)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10, growth_interval=2)
    attached = attach(model, Policy(mechanism, rules=()), scaler=scaler)
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE)
    scales, memory, done = [], {}, 0
    for turn in range(steps + 1):
        overflow = turn == 3
        optimizer.zero_grad()
        before = values_of(model.module)
        memory = {name: sha(leaf.error) for name, leaf in attached.memory.items()}
        loss = scaler.scale(mean_loss(model, done, dtype))
        if overflow and dist.get_rank() == dist.get_world_size() - 1:
            loss = loss * float("inf")
        loss.backward()
        scaler.step(optimizer)
        scaler.update()
        scales.append(scaler.get_scale())
        if overflow:
            untouched = memory == {name: sha(leaf.error) for name, leaf in attached.memory.items()}
            assert before == values_of(model.module)
        done += not overflow
    found = values_of(model.module)
    attached.detach()
    return {"values": found, "scales": scales, "untouched": untouched}


def job_hook_unscaled(mechanism: str, steps: int) -> dict[str, Any]:
    """The same without scaler and overflow."""
    model = made("plain", torch.float64)
    attached = attach(model, Policy(mechanism, rules=()))
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE)
    # randomness is addressed by the step, and the overflow took one
    for step in range(steps):
        if step == 3:
            attached.averager.steps += 1
        optimizer.zero_grad()
        mean_loss(model, step, torch.float64).backward()
        optimizer.step()
    attached.detach()
    return {"values": values_of(model.module)}


def job_not_finite(stop: bool) -> dict[str, Any]:
    """NaN in one gradient of one rank: what the others see, and what is said."""
    notices.said.clear()
    model = DistributedDataParallel(Net(torch.float64))  # one bucket
    attached = attach(model, Policy("ef14(topk(k=0.1))", rules=()), non_finite=Stop() if stop else None)
    skipped: list[int] = []
    attached.listeners.append(lambda step: skipped.append(step.skipped))
    mean_loss(model, 0, torch.float64).backward()
    before = {name: sha(memory.error) for name, memory in attached.memory.items()}
    model.zero_grad()
    if dist.get_rank() == 1:
        model.module.twice.weight.register_hook(
            lambda gradient: gradient.index_fill(0, torch.tensor([2]), float("nan"))
        )
    said = ""
    try:
        mean_loss(model, 1, torch.float64).backward()
    except RuntimeError as error:
        said = str(error)
    zeros = all(bool((p.grad == 0).all()) for p in model.parameters() if p.grad is not None)
    attached.averager.wait()
    after = {name: sha(memory.error) for name, memory in attached.memory.items()}
    attached.detach()
    return {
        "said": said,
        "zeros": zeros,
        "untouched": before == after,
        "skipped": skipped,
        "notices": list(notices.said),
    }


# ---- policies --------------------------------------------------------------------------------------------------------


def job_policy() -> dict[str, Any]:
    """Rules by name, dimensions and size: which mechanism has which parameter, the bytes of a step, what is said."""
    notices.said.clear()
    policy = Policy(
        "ef14(topk(k=10))",
        rules=(Rule("direct(natural)", names="head.*"), Rule(DENSE, dimensions=1), Rule(DENSE, numbers=20)),
    )
    model = DistributedDataParallel(Net(torch.float32))
    attached = attach(model, policy)
    records: list[Any] = []
    attached.listeners.append(records.append)
    issued = recorded_collectives(attached.averager.runtime.carrier)
    for step in range(3):
        mean_loss(model, step, torch.float32).backward()
    attached.averager.wait()
    ledger = attached.ledger.uplink.tolist()
    attached.detach()
    return {
        "mechanisms": {name: str(plan.mechanism) for name, plan in attached.averager.plans.items()},
        "up": [record.up for record in records], "uplink": ledger, "issued": issued,
        "notices": list(notices.said), "shapes": {name: list(s) for name, s in attached.averager.shapes.items()},
    }  # fmt: skip


class Convolutions(nn.Module):
    """A network with filters of two dimensions, in either order of memory."""

    def __init__(self, order: torch.memory_format) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 6, 3)
        self.second = nn.Conv2d(6, 4, 3)
        self.head = nn.Linear(4, 3)
        generator = torch.Generator().manual_seed(5)
        for parameter in self.parameters():
            parameter.data = 0.3 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        self.to(memory_format=order)

    def loss(self, model: nn.Module, step: int) -> Tensor:
        generator = torch.Generator().manual_seed(1000 * dist.get_rank() + step)
        images = torch.randn(4, 3, 7, 7, generator=generator, dtype=torch.float64)
        return nn.functional.cross_entropy(model(images), torch.randint(0, 3, (4,), generator=generator))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.second(torch.tanh(self.first(x)))).mean((2, 3)))


def job_orders(mechanism: str, local: bool, steps: int) -> dict[str, Any]:
    """The same training with channels last in memory and not: the parameters of both."""
    found = {}
    for order in (torch.contiguous_format, torch.channels_last):
        net = Convolutions(order)
        optimizer = torch.optim.SGD(net.parameters(), lr=RATE)
        model = net if local else DistributedDataParallel(net, bucket_cap_mb=MANY_BUCKETS)
        policy = Policy(mechanism, rules=())
        held: Any = LocalSGD(net, optimizer, sync_every=2, mechanism=policy) if local else attach(model, policy)  # type: ignore[arg-type]
        for step in range(steps):
            optimizer.zero_grad()
            net.loss(model, step).backward()
            optimizer.step()
        held.close() if local else held.detach()
        found[str(order)] = values_of(net)
    return found


def job_warm_up(steps: int) -> dict[str, Any]:
    """Two dense steps, two with a large k, then the mechanism: bytes per step; the first steps against plain DDP."""
    found = {}
    for name, policy in {
        "plain": None,
        "warm": Policy("ef14(topk(k=0.02))", rules=(), warm_up=((2, DENSE), (2, "ef14(topk(k=0.5))"))),
    }.items():
        model = DistributedDataParallel(Net(torch.float64))
        up: list[int] = []
        attached = None
        if policy is not None:
            attached = attach(model, policy)
            attached.listeners.append(lambda step, up=up: up.append(step.up))
        optimizer = torch.optim.SGD(model.parameters(), lr=RATE)
        values = []
        for step in range(steps):
            optimizer.zero_grad()
            mean_loss(model, step, torch.float64).backward()
            optimizer.step()
            values.append(values_of(model.module))
        if attached is not None:
            attached.averager.wait()
            attached.detach()
        found[name] = {"values": values[1], "up": up}
    return found


# ---- checkpoints -----------------------------------------------------------------------------------------------------


def _trained(model: Any, attached: Attached, steps: range) -> None:
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE)
    for step in steps:
        optimizer.zero_grad()
        mean_loss(model, step, torch.float64).backward()
        optimizer.step()


def through_a_file(state: Any) -> Any:
    """As a checkpoint on disk comes back."""
    box = io.BytesIO()
    torch.save(state, box)
    box.seek(0)
    return torch.load(box, weights_only=True)


def job_resume(mechanism: str, at: int, steps: int, whole: bool) -> dict[str, Any]:
    """A run, and the same run interrupted, saved and resumed in a new DDP: the parameters and bytes of both."""
    policy = Policy(mechanism, rules=(Rule(DENSE, dimensions=0),))
    found = []
    for interrupted in (False, True):
        model = made("plain", torch.float64, bucket=25)
        attached = attach(model, policy, seed=5)
        _trained(model, attached, range(at))
        if interrupted:
            saved = through_a_file({"model": model.module.state_dict(), "laconic": attached.state_dict()})
            if whole:
                saved["laconic"] = whole_of(saved["laconic"])
            attached.detach()
            model = made("plain", torch.float64, bucket=25)
            attached = attach(model, policy, seed=5)
            model.module.load_state_dict(saved["model"])
            attached.load_state_dict(saved["laconic"])
        _trained(model, attached, range(at, steps))
        attached.averager.wait()
        found.append({"values": values_of(model.module), "uplink": attached.ledger.uplink.tolist()})
        attached.detach()
    return {"straight": found[0], "resumed": found[1]}


def whole_of(part: Any) -> Any:
    """The whole of all ranks' parts, on every rank."""
    parts: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(parts, part)
    return merge(parts)


def job_save_whole(mechanism: str, steps: int, path: str) -> dict[str, Any]:
    """A run that rank 0 leaves in a file; its mean memories."""
    model = made("plain", torch.float64)
    attached = attach(model, Policy(mechanism, rules=()))
    _trained(model, attached, range(steps))
    whole = whole_of(attached.state_dict())
    if dist.get_rank() == 0:
        torch.save({"model": model.module.state_dict(), "laconic": whole}, path)
    dist.barrier()
    means = mean_memory(attached)
    attached.detach()
    return {"means": means}


def job_load_whole(mechanism: str, path: str, steps: int) -> dict[str, Any]:
    """Another number of processes goes on from it: the mean memories as loaded, and that training goes on."""
    model = made("plain", torch.float64)
    attached = attach(model, Policy(mechanism, rules=()))
    saved = torch.load(path, weights_only=True)
    model.module.load_state_dict(saved["model"])
    attached.load_state_dict(saved["laconic"])
    means, begun = mean_memory(attached), attached.steps
    _trained(model, attached, range(steps))
    values = values_of(model.module)
    attached.detach()
    return {"means": means, "steps": begun, "values": values}


def mean_memory(attached: Attached) -> dict[str, list[float]]:
    """The mean over workers of every tensor of the memories."""
    found = {}
    for name, memory in attached.memory.items():
        for place, leaf in flatten(memory).items():
            total = leaf.tensor.clone().to(torch.float64)
            dist.all_reduce(total)
            found[f"{name}.{place}"] = (total / dist.get_world_size()).flatten().tolist()
    return found


# ---- bad input -------------------------------------------------------------------------------------------------------


def said_by(attempt: Callable[[], Any]) -> str:
    try:
        attempt()
    except (ValueError, RuntimeError) as error:
        return str(error)
    return ""


def job_bad_input() -> dict[str, str]:
    dtype = torch.float64
    model, other = made("plain", dtype), made("branches", dtype)
    embedding = DistributedDataParallel(nn.Sequential(nn.Embedding(4, 3, sparse=True), nn.Linear(3, 2)))
    taken = made("plain", dtype)
    taken.register_comm_hook(None, lambda state, bucket: torch.futures.Future())
    attached = attach(model, "ef14(topk(k=0.1))")
    state = attached.state_dict()
    said = {
        "second": said_by(lambda: attach(model, "ef14(topk(k=0.1))")),
        "bare": said_by(lambda: attach(Net(dtype), "ef14(topk(k=0.1))")),  # type: ignore[arg-type]
        "sparse": said_by(lambda: attach(embedding, "ef14(topk(k=0.1))")),
        "taken": said_by(lambda: attach(taken, "ef14(topk(k=0.1))")),
        "debts": said_by(lambda: attach(taken, Policy("ef21(topk(k=3))", warm_up=((2, "ef14(topk(k=0.1))"),)))),
        "format": said_by(lambda: attached.load_state_dict({**state, "format": 99})),
        "part": said_by(lambda: attached.load_state_dict({**state, "rank": 1 - dist.get_rank()})),
        "world": said_by(lambda: attached.load_state_dict({**state, "world": 3, "rank": 2})),
        "seed": said_by(lambda: attached.load_state_dict({**state, "seed": 7})),
        "shape": said_by(lambda: attached.load_state_dict({**state, "shapes": {**state["shapes"], "scale": [2]}})),
        "merge": said_by(lambda: merge([state, state])),
    }
    detach(model)
    again = attach(model, "ef21_sgdm(topk(k=0.1))")  # a model may have another mechanism after the first
    said["mechanism"] = said_by(lambda: again.load_state_dict(state))
    another = attach(other, "ef14(topk(k=0.1))")
    said["model"] = said_by(lambda: another.load_state_dict(state))
    again.detach()
    another.detach()
    return said


def job_differ(what: str) -> str:
    """Ranks that are given different things."""
    rank = dist.get_rank()
    model = made("plain", torch.float64)
    given: dict[str, Any] = {"mechanism": "ef14(topk(k=0.1))", "seed": 0}
    if rank == 1:
        given |= {"policy": {"mechanism": "ef14(topk(k=0.2))"}, "seed": {"seed": 3}}[what]
    return said_by(lambda: attach(model, **given))


def job_measured(steps: int) -> dict[str, Any]:
    """What a step's record says of EF14, and what its memory holds."""
    notices.said.clear()
    model = made("plain", torch.float64)
    attached = attach(model, Policy("ef14(topk(k=0.1))", rules=()), sample_every=2)
    attach_again = said_by(lambda: attach(made("plain", torch.float64), "ef21(topk(k=0.1))").detach())
    records: list[Any] = []
    owed: list[float] = []
    attached.listeners.append(records.append)

    def weigh(step: Any) -> None:
        total = sum(float(memory.error.square().sum()) for memory in attached.memory.values())
        owed.append(total**0.5)

    attached.listeners.append(weigh)
    _trained(model, attached, range(steps))
    attached.averager.wait()
    transport, uplink = attached.ledger.transport, attached.ledger.uplink.tolist()
    attached.detach()
    return {
        "owed": owed, "records": [vars(record) for record in records], "uplink": uplink,
        "sent": transport.payload + transport.framing, "notices": list(notices.said), "again": attach_again,
    }  # fmt: skip


class Dealt(Routes):
    """Deals requests out in turn."""

    def joins(self, dense: int, world: int) -> bool:
        return False

    def owners(self, loads: Sequence[Load], world: int) -> list[int] | None:
        return [place % world for place in range(len(loads))]


def job_routes(mechanism: str, dealt: bool, steps: int) -> dict[str, Any]:
    """Training whose messages go to everyone, or in two stages."""
    model = made("plain", torch.float64)
    named = dict(model.module.named_parameters())
    averager = Averager(named, Policy(mechanism, rules=()), routes=Dealt() if dealt else Plain())
    transport = averager.ledger.transport
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE)
    begun = transport.payload + transport.framing
    for step in range(steps):
        optimizer.zero_grad()
        with model.no_sync():
            mean_loss(model, step, torch.float64).backward()
        averager.average({name: parameter.grad for name, parameter in named.items()})
        optimizer.step()
    averager.wait()
    found = {
        "values": values_of(model.module), "uplink": averager.ledger.uplink.tolist(),
        "messages": averager.ledger.messages_up, "payload": transport.payload,
        "sent": transport.payload + transport.framing - begun, "collectives": averager.collectives,
    }  # fmt: skip
    averager.close()
    return found
