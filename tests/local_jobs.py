"""What the processes of worlds.py can be asked to do with local updates; test_local_training.py has the references."""

from __future__ import annotations

import functools
import io
import threading
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from jobs import account, sha
from laconic.training.control_variates import SCAFFOLD, ProxSkip
from laconic.training.diloco import DiLoCo
from laconic.training.local import LocalSGD, PostLocalSGD
from laconic.training.local_updates import LocalUpdates
from laconic.training.policy import Policy, Rule

METHODS: dict[str, Callable[..., LocalUpdates]] = {
    "LocalSGD": LocalSGD, "PostLocalSGD": PostLocalSGD, "DiLoCo": DiLoCo, "ProxSkip": ProxSkip, "SCAFFOLD": SCAFFOLD
}  # fmt: skip
DOUBLE = torch.float64


class Normed(nn.Module):
    """A small network with BatchNorm and a frozen parameter; its loss is cross-entropy."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.first = nn.Linear(11, 8, dtype=DOUBLE)
        self.norm = nn.BatchNorm1d(8, dtype=DOUBLE)
        self.shift = nn.Parameter(torch.full((1,), 0.1 * seed, dtype=DOUBLE), requires_grad=False)
        self.head = nn.Linear(8, 3, dtype=DOUBLE)
        generator = torch.Generator().manual_seed(seed)
        for parameter in self.parameters():
            if parameter.requires_grad:
                parameter.data = 0.3 * torch.randn(parameter.shape, generator=generator, dtype=DOUBLE)

    def loss(self, rank: int, step: int) -> Tensor:
        generator = torch.Generator().manual_seed(1000 * rank + step)
        inputs = torch.randn(6 + rank, 11, generator=generator, dtype=DOUBLE) + 0.3 * rank
        targets = torch.randint(0, 3, (6 + rank,), generator=generator)
        return nn.functional.cross_entropy(self(inputs), targets)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.norm(self.first(x)))) + self.shift


class Quadratic(nn.Module):
    """f_i(x) = |D_i x - b_i|^2 / 2, D_i diagonal, other minima on each worker; full gradients."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.x = nn.Parameter(torch.zeros(5, dtype=DOUBLE))

    @staticmethod
    def data(rank: int) -> tuple[Tensor, Tensor]:
        generator = torch.Generator().manual_seed(rank)
        d, b = torch.rand(5, generator=generator, dtype=DOUBLE), torch.randn(5, generator=generator, dtype=DOUBLE)
        return 0.5 + d, b

    def loss(self, rank: int, step: int) -> Tensor:
        d, b = self.data(rank)
        return 0.5 * (d * self.x - b).square().sum()


NETWORKS: dict[str, Callable[[int], Any]] = {"normed": Normed, "quadratic": Quadratic}


def inner_of(model: nn.Module, inner: dict[str, Any]) -> torch.optim.Optimizer:
    """The inner optimizer: {"name": "SGD", "lr": 0.1, ...}."""
    options = {key: value for key, value in inner.items() if key != "name"}
    parameters = [p for p in model.parameters() if p.requires_grad]
    return getattr(torch.optim, inner.get("name", "SGD"))(parameters, **options)


def made(method: str, model: nn.Module, optimizer: torch.optim.Optimizer, options: dict[str, Any]) -> LocalUpdates:
    """A method from JSON: the mechanism is for all tensors, "outer" has the options of an outer SGD."""
    options = dict(options)
    if "mechanism" in options:
        options["mechanism"] = Policy(options["mechanism"], rules=())
    if "outer" in options:
        options["outer_optimizer"] = functools.partial(torch.optim.SGD, **options.pop("outer"))
    return METHODS[method](model, optimizer, **options)


def steps_of(model: Any, optimizer: torch.optim.Optimizer, steps: range, rates: list[float] | None = None) -> None:
    """The user's loop. It does not know of anything."""
    for step in steps:
        if rates is not None:
            optimizer.param_groups[0]["lr"] = rates[step % len(rates)]
        optimizer.zero_grad()
        model.loss(dist.get_rank(), step).backward()
        optimizer.step()


def seen(model: nn.Module) -> dict[str, Any]:
    """Parameters and buffers of this worker."""
    tensors = {name: t.detach() for name, t in (*model.named_parameters(), *model.named_buffers())}
    return {
        "values": {name: t.flatten().tolist() for name, t in tensors.items()},
        "x": {name: sha(t) for name, t in tensors.items()},
    }


def job_local(
    method: str,
    steps: int,
    options: dict[str, Any],
    inner: dict[str, Any],
    network: str = "normed",
    rates: list[float] | None = None,
    stop: int | None = None,
    early: bool = False,
) -> dict[str, Any]:
    """A run; with `stop`, it is interrupted after so many steps, and another model and method go on from the files.

    `early` loads the model before the method is made, else after it.
    """
    model = NETWORKS[network](10 + dist.get_rank())  # another start on each process
    optimizer = inner_of(model, inner)
    flights = 0
    with made(method, model, optimizer, options) as local:
        if stop is not None:
            steps_of(model, optimizer, range(stop), rates)
            flights = len(getattr(local, "_flights", []))
            file = io.BytesIO()
            torch.save([model.state_dict(), optimizer.state_dict(), local.state_dict()], file)
        else:
            steps_of(model, optimizer, range(steps), rates)
            flights = len(getattr(local, "_flights", []))
            found = {**seen(model), "kept": kept(local)}
    if stop is not None:
        file.seek(0)
        states = torch.load(file, weights_only=True)
        model = NETWORKS[network](20 + dist.get_rank())
        optimizer = inner_of(model, inner)
        if early:
            model.load_state_dict(states[0])
        with made(method, model, optimizer, options) as local:
            optimizer.load_state_dict(states[1])
            local.load_state_dict(states[2])
            steps_of(model, optimizer, range(stop, steps), rates)
            found = {**seen(model), "kept": kept(local)}
    return {
        **found, **account(local.averager.runtime), "flights": flights, "exchanges": local.averager.steps,
        "hooks": len(optimizer._optimizer_step_pre_hooks) + len(optimizer._optimizer_step_post_hooks),
        "threads": [thread.name for thread in threading.enumerate() if "conductor" in thread.name],
    }  # fmt: skip


def kept(local: Any) -> dict[str, dict[str, list[float]]]:
    """What a method keeps by parameter: control variates, anchors."""
    names = ("anchor", "control", "mean", "correction")
    return {
        name: {key: t.detach().flatten().tolist() for key, t in getattr(local, name).items()}
        for name in names
        if hasattr(local, name)
    }


def job_local_synchronous(steps: int, inner: dict[str, Any]) -> dict[str, Any]:
    """The same loop under DDP."""
    plain = Normed(10)
    optimizer = inner_of(plain, inner)
    model = DistributedDataParallel(plain)
    for step in range(steps):
        optimizer.zero_grad()
        generator = torch.Generator().manual_seed(1000 * dist.get_rank() + step)
        rank = dist.get_rank()
        inputs = torch.randn(6 + rank, 11, generator=generator, dtype=DOUBLE) + 0.3 * rank
        targets = torch.randint(0, 3, (6 + rank,), generator=generator)
        nn.functional.cross_entropy(model(inputs), targets).backward()
        optimizer.step()
    return seen(plain)


class Sizes(nn.Module):
    """Parameters of given sizes, which each worker pulls to its own rank."""

    def __init__(self, sizes: list[int]) -> None:
        super().__init__()
        self.parts = nn.ParameterList([nn.Parameter(torch.zeros(size, dtype=DOUBLE)) for size in sizes])

    def loss(self, rank: int, step: int) -> Tensor:
        return sum(0.5 * (part - 1.0 - rank).square().sum() for part in self.parts)  # type: ignore[return-value]


def job_local_sizes(sizes: list[int], fragments: int, delay: int, sync_every: int) -> list[list[float]]:
    """DiLoCo that averages, after one period: the parts of the anchor."""
    model = Sizes(sizes)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)  # on its own minimum after a step
    outer = functools.partial(torch.optim.SGD, lr=1.0)
    with DiLoCo(
        model, optimizer, sync_every=sync_every, fragments=fragments, delay=delay, outer_optimizer=outer
    ) as diloco:
        steps_of(model, optimizer, range(sync_every))
    return [anchor.detach().tolist() for anchor in diloco.anchor.values()]


def job_local_overlap(delay: int) -> dict[str, Any]:
    """Whether training goes on while an exchange that takes half a second is in the air."""
    model = Quadratic(0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with DiLoCo(model, optimizer, sync_every=4, delay=delay) as diloco:
        runtime: Any = diloco.averager.runtime
        genuine = runtime.finish

        def slow(pending: Any) -> Any:
            time.sleep(0.5)
            return genuine(pending)

        runtime.finish = slow
        began = time.monotonic()
        steps_of(model, optimizer, range(5))
        seconds = time.monotonic() - began
        runtime.finish = genuine
    return {"seconds": seconds}


def job_local_left_by_error() -> dict[str, Any]:
    """An exception in the block on one rank only: nobody waits for the others, everything is taken out."""
    model = Quadratic(0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    try:
        with DiLoCo(model, optimizer, sync_every=2, delay=1):
            steps_of(model, optimizer, range(3))
            if dist.get_rank() == 0:
                raise KeyError("the user's")
    except KeyError:
        pass
    return {
        "hooks": len(optimizer._optimizer_step_post_hooks) + len(optimizer._optimizer_step_pre_hooks),
        "threads": [thread.name for thread in threading.enumerate() if "conductor" in thread.name],
    }


def job_local_not_finite() -> str:
    """Rank 1's model becomes NaN; what both processes say."""
    model = Quadratic(0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with LocalSGD(model, optimizer, sync_every=2) as local:
        try:
            steps_of(model, optimizer, range(1))
            if dist.get_rank() == 1:
                model.x.data[0] = float("nan")
            steps_of(model, optimizer, range(1, 2))
        except (RuntimeError, FloatingPointError) as error:
            local._remove()
            return str(error)
    return "nothing"


def job_local_differs() -> str:
    """What is said where rank 1 was given another sync_every."""
    model = Quadratic(0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    try:
        LocalSGD(model, optimizer, sync_every=2 + dist.get_rank())
    except ValueError as error:
        return str(error)
    return "nothing"


def job_local_refused() -> dict[str, str]:
    """What is said to what cannot be."""
    model = Normed(0)
    trainable = [p for p in model.parameters() if p.requires_grad]
    sgd = torch.optim.SGD(trainable, lr=0.1)
    every = {"sync_every": 4}
    stranger = torch.optim.SGD([*trainable, nn.Parameter(torch.zeros(3))], lr=0.1)
    closing = torch.optim.SGD(trainable, lr=0.1)
    held = torch.optim.SGD(trainable, lr=0.1)
    momentum = torch.optim.SGD(trainable, lr=0.1, momentum=0.9)
    up = torch.optim.SGD(trainable, lr=0.1, maximize=True)
    by_rule = Policy("direct(natural)", rules=(Rule("marina(permk)", names="head.*"),))
    warm = Policy("ef14(topk(k=0.1))", warm_up=((3, "direct_all_reduce"),))

    def second() -> None:
        with LocalSGD(model, held, **every):
            LocalSGD(model, held, **every)

    def with_closure() -> None:
        with PostLocalSGD(model, closing, start=2, **every):
            closing.step(lambda: 0.0)

    def no_entry() -> None:
        with LocalSGD(model, sgd, sync_every=1, average_state=("momentum_buffer",)):
            sgd.step()

    def other_state() -> None:
        with LocalSGD(model, sgd, sync_every=4) as local:
            state = local.state_dict()
        with LocalSGD(model, sgd, sync_every=5) as local:
            local.load_state_dict(state)

    def other_model() -> None:
        with LocalSGD(model, sgd, sync_every=4) as local:
            state = local.state_dict()
        small = Quadratic(0)
        with LocalSGD(small, torch.optim.SGD(small.parameters(), lr=0.1), sync_every=4) as local:
            local.load_state_dict(state)

    attempts: dict[str, Callable[[], Any]] = {
        "ddp": lambda: LocalSGD(DistributedDataParallel(model), sgd, **every),
        "sync_every": lambda: LocalSGD(model, sgd, sync_every=0),
        "start": lambda: PostLocalSGD(model, sgd, start=-1, **every),
        "delay": lambda: DiLoCo(model, sgd, delay=4, **every),
        "mixing": lambda: DiLoCo(model, sgd, mixing=1.0, **every),
        "fragments": lambda: DiLoCo(model, sgd, fragments=7, sync_every=20),
        "fragments and steps": lambda: DiLoCo(model, sgd, fragments=5, **every),
        "warm-up": lambda: DiLoCo(model, sgd, fragments=2, mechanism=warm, **every),
        "missing": lambda: LocalSGD(model, torch.optim.SGD(model.head.parameters(), lr=0.1), **every),
        "stranger": lambda: LocalSGD(model, stranger, **every),
        "second": second,
        "needs": lambda: LocalSGD(model, sgd, mechanism=by_rule, **every),
        "adam": lambda: SCAFFOLD(model, torch.optim.Adam(trainable), **every),
        "momentum": lambda: ProxSkip(model, momentum, probability=0.5),
        "maximize": lambda: ProxSkip(model, up, probability=0.5),
        "probability": lambda: ProxSkip(model, sgd, probability=0.0),
        "server_step": lambda: SCAFFOLD(model, sgd, server_step=0.0, **every),
        "no optimizer": lambda: LocalSGD(model, model, **every),  # type: ignore[arg-type]
        "closure": with_closure,
        "no entry": no_entry,
        "other state": other_state,
        "other model": other_model,
    }
    said = {}
    for name, attempt in attempts.items():
        try:
            attempt()
        except ValueError as error:
            said[name] = str(error)
    return said
