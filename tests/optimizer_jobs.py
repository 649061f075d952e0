"""What the processes of worlds.py can be asked to do with `Compressed`, and the same trainings in one process."""

from __future__ import annotations

import io
import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from jobs import account, sha
from laconic.core.estimator import Probe
from laconic.runtime.local import Local
from laconic.training import DENSE, Compressed, Policy, Rule, Stop, attach, notices
from laconic.training.joined import JOINED, Joining
from training_jobs import Net, loss_of, parameters_of

WHOLE = ()  # rules of a policy that joins all parameters
ALL = 12  # rows of data of a worker


def sgd(model: nn.Module, **options: Any) -> torch.optim.SGD:
    return torch.optim.SGD(model.parameters(), **{"lr": 0.1, **options})


@contextmanager
def closing(optimizer: Compressed) -> Iterator[Compressed]:
    try:
        yield optimizer
    finally:
        optimizer.close()


def hashed(model: nn.Module) -> str:
    """Of parameters and buffers."""
    return sha(torch.cat([tensor.detach().double().flatten() for tensor in model.state_dict().values()]))


# ---- without closures ------------------------------------------------------------------------------------------------


def job_wrapped_as_ddp(mechanism: str, steps: int, **options: Any) -> dict[str, Any]:
    """The same training with DDP (and its hook, where there is a mechanism) and with the wrapper."""
    replica = Net(torch.float64)
    ddp = DistributedDataParallel(replica)
    policy = Policy(mechanism, rules=(Rule(DENSE, dimensions=1),))
    attached = attach(ddp, policy) if mechanism != DENSE else None
    optimizer = sgd(ddp, **options)
    for step in range(steps):
        optimizer.zero_grad()
        loss_of(ddp, dist.get_rank(), step, torch.float64).backward()
        optimizer.step()
    if attached is not None:
        attached.detach()
    model = Net(torch.float64)
    if dist.get_rank():
        nn.init.ones_(model.head.weight)  # the model starts as it is on rank 0
    with closing(Compressed(sgd(model, **options), model, policy)) as wrapped:
        for step in range(steps):
            wrapped.zero_grad()
            loss_of(model, dist.get_rank(), step, torch.float64).backward()
            wrapped.step()
    return {
        "ddp": parameters_of(replica)["x"], "wrapped": parameters_of(model)["x"],
        "up": [int(wrapped.ledger.uplink[0]), 0 if attached is None else int(attached.ledger.uplink[0])],
        "evaluations": wrapped.evaluations.total,
    }  # fmt: skip


def job_inside(steps: int) -> dict[str, Any]:
    """EF14 with the step inside, dense for vectors, under a schedule; and by its pseudo-code over the same messages."""
    model, rank = Net(torch.float64), dist.get_rank()
    wrapped = Compressed(sgd(model), model, Policy("ef14_inside(topk(k=7))", rules=(Rule(DENSE, dimensions=1),)))
    schedule = torch.optim.lr_scheduler.ExponentialLR(wrapped, 0.5)
    twin = Net(torch.float64)
    error = {name: torch.zeros_like(p) for name, p in twin.named_parameters()}
    with closing(wrapped):
        for step in range(steps):
            wrapped.zero_grad()
            loss_of(model, rank, step, torch.float64).backward()
            wrapped.step()
            twin.zero_grad()
            loss_of(twin, rank, step, torch.float64).backward()
            for name, p in twin.named_parameters():
                assert p.grad is not None
                v = schedule.get_last_lr()[0] * p.grad
                if p.dim() > 1:
                    v += error[name]
                    kept = torch.zeros_like(v)
                    places = v.abs().flatten().topk(min(7, v.numel())).indices
                    kept.view(-1)[places] = v.view(-1)[places]
                    error[name] = v - kept
                    v = kept
                dist.all_reduce(v)
                p.data.sub_(v / dist.get_world_size())
            schedule.step()
        gradients = {name: float(p.grad.abs().sum()) for name, p in model.named_parameters() if p.grad is not None}
    apart = max(float((p - q).abs().max()) for p, q in zip(model.parameters(), twin.parameters(), strict=True))
    return {"apart": apart, "lr": schedule.get_last_lr()[0], "x": hashed(model), "gradients": gradients}


class Branched(nn.Module):
    """A part that is never used, and one that is used by some processes in some steps."""

    def __init__(self) -> None:
        super().__init__()
        self.always = nn.Linear(4, 4, dtype=torch.float64)
        self.never = nn.Linear(4, 4, dtype=torch.float64)
        self.now_and_then = nn.Linear(4, 4, dtype=torch.float64)
        for parameter in self.parameters():
            nn.init.constant_(parameter, 0.25)

    def forward(self, x: Tensor, also: bool) -> Tensor:
        x = self.always(x)
        return self.now_and_then(x) if also else x


def job_unused(joined: bool) -> dict[str, Any]:
    """Rank 1 uses a part of the model from step 1 on, in odd steps; another part is never used. Weight decay is on."""
    model, rank = Branched(), dist.get_rank()
    mechanism: Any = Policy("lag_wk(weight=0.0)", rules=WHOLE) if joined else DENSE
    before = notices.said.copy()
    moved = []
    with closing(Compressed(sgd(model, weight_decay=0.1), model, mechanism)) as wrapped:
        for step in range(4):
            x = torch.full((1, 4), 1.0 + rank, dtype=torch.float64)
            start = model.now_and_then.bias.detach().clone()

            def closure(step: int = step, x: Tensor = x) -> Tensor:
                loss = model(x, also=rank == 1 and step % 2 == 1).sum()
                loss.backward()
                return loss

            wrapped.step(closure)
            moved.append(float((model.now_and_then.bias - start)[0].detach()))
    return {
        "never": float((model.never.weight - 0.25).abs().max().detach()), "grad": model.never.weight.grad is None,
        "moved": moved, "x": hashed(model), "said": sorted((notices.said - before).items()),
    }  # fmt: skip


def job_scaled() -> dict[str, Any]:
    """GradScaler where rank 1 overflows in step 2, and clipping in step 4; and the same without a scaler."""
    rank, found = dist.get_rank(), {}
    for scaling in (True, False):
        model = Net(torch.float32)
        scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, enabled=scaling)
        memory = []
        with closing(
            Compressed(sgd(model, momentum=0.9), model, Policy("ef21_sgdm(topk(k=0.1))", rules=WHOLE))
        ) as wrapped:
            for step in range(6):
                wrapped.zero_grad()
                loss = loss_of(model, rank, step, torch.float32)
                if step == 2 and rank == 1:
                    loss = loss * torch.inf
                scaler.scale(loss).backward()
                if step == 4:
                    scaler.unscale_(wrapped)
                    torch.nn.utils.clip_grad_norm_(model.parameters(), 0.1)
                before = hashed(model)
                scaler.step(wrapped)
                scaler.update()
                memory.append(float(wrapped.averager.memory["twice.weight"].shift.norm()))
                if step == 2:
                    found[f"left out {scaling}"] = hashed(model) == before
        found[str(scaling)] = {"x": hashed(model), "memory": memory, "scale": scaler.get_scale()}
    return found


def job_outside(steps: int) -> dict[str, Any]:
    """What schedulers, hooks and others see: one process, with warnings as errors."""
    model, twin = Net(torch.float64), Net(torch.float64)
    inner, plain = (torch.optim.AdamW(net.parameters(), lr=0.01) for net in (model, twin))
    called = []
    with warnings.catch_warnings(), closing(Compressed(inner, model, DENSE)) as wrapped:
        warnings.simplefilter("error")
        wrapped.register_step_pre_hook(lambda *_: called.append("before"))
        wrapped.register_step_post_hook(lambda *_: called.append("after"))
        rates, other = [], []
        for optimizer, net, seen in ((wrapped, model, rates), (plain, twin, other)):
            schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.05, total_steps=steps + 1)
            plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=0)
            for step in range(steps):
                optimizer.zero_grad()
                loss = loss_of(net, 0, step, torch.float64)
                loss.backward()
                optimizer.step()
                schedule.step()
                plateau.step(1.0)
                seen.append(optimizer.param_groups[0]["lr"])
        same = wrapped.state is inner.state and wrapped.param_groups is inner.param_groups
    state = wrapped.state_dict()
    return {
        "x": [hashed(model), hashed(twin)], "rates": rates == other, "moved": len(set(rates)), "called": called,
        "same": same, "keys": sorted(state), "optimizer": isinstance(wrapped, torch.optim.Optimizer),
        "defaults": wrapped.defaults == plain.defaults,
    }  # fmt: skip


# ---- with closures ---------------------------------------------------------------------------------------------------


class Normed(nn.Module):
    """A network with running statistics and dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(6, 8, bias=False), nn.BatchNorm1d(8), nn.Tanh(), nn.Dropout(0.3), nn.Linear(8, 3)
        ).double()
        generator = torch.Generator().manual_seed(5)
        for parameter in self.parameters():
            parameter.data = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


def rows_of(worker: int, step: int | None) -> tuple[Tensor, Tensor]:
    """A worker's minibatch of a step, or all its data; -1 is the server."""
    generator = torch.Generator().manual_seed(77 + worker)
    inputs = torch.randn(ALL, 6, generator=generator, dtype=torch.float64)
    labels = torch.randint(0, 3, (ALL,), generator=generator)
    some = slice(None) if step is None else slice(4 * (step % 3), 4 * (step % 3) + 4)
    return inputs[some], labels[some]


def closure_of(model: nn.Module, worker: int, step: int | None) -> Callable[[], Tensor]:
    inputs, labels = rows_of(worker, step)

    def closure() -> Tensor:
        loss = nn.functional.cross_entropy(model(inputs), labels)
        loss.backward()
        return loss.detach()

    return closure


def rates(step: int) -> float:
    return 0.1 if step < 4 else 0.05


def told(model: nn.Module, **more: Any) -> dict[str, Any]:
    return {
        "x": torch.cat([p.detach().flatten() for p in model.parameters()]).tolist(),
        "buffers": torch.cat([b.double().flatten() for b in model.buffers()]).tolist(),
        "random": torch.rand(3, dtype=torch.float64).tolist(),
        **more,
    }


def job_closures(mechanism: str, steps: int, rules: str = "", **options: Any) -> dict[str, Any]:
    """Training of `Normed` with closures under a schedule; `rules`: the mechanism of tensors of one dimension."""
    rank = dist.get_rank()
    model = Normed()
    policy = Policy(mechanism, rules=(Rule(rules, dimensions=1),) if rules else WHOLE)
    losses, probed = [], []
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(100 + rank)
        with closing(Compressed(sgd(model, **options), model, policy)) as wrapped:
            schedule = torch.optim.lr_scheduler.LambdaLR(wrapped, lambda step: rates(step) / 0.1)
            for step in range(steps):
                before = wrapped.evaluations.probe
                loss = wrapped.step(
                    closure_of(model, rank, step),
                    full=closure_of(model, rank, None),
                    server=closure_of(model, -1, step),
                )
                losses.append(float(loss))
                probed.append(wrapped.evaluations.probe - before)
                schedule.step()
            counts = wrapped.evaluations
            evaluations = [counts.plain, counts.probe, counts.full, counts.server]
            up = int(wrapped.ledger.uplink[rank])
            return told(model, losses=losses, probed=probed, evaluations=evaluations, up=up)


class OneProcess:
    """The workers of `job_closures` in one process: a model each, with its own buffers and torch's random state."""

    def __init__(self, workers: int) -> None:
        self.models = [Normed() for _ in range(workers)]
        self.random = [torch.Generator().manual_seed(100 + i).get_state() for i in range(workers)]
        self.start = list(self.random)

    def at(self) -> Tensor:
        return torch.cat([p.detach().flatten() for p in self.models[0].parameters()])

    def move(self, x: Tensor) -> None:
        for model in self.models:
            nn.utils.vector_to_parameters(x, model.parameters())

    def plain(self, worker: int, step: int) -> Tensor:
        """The gradient at the model: it moves buffers and random state."""
        self.start[worker] = self.random[worker]
        torch.set_rng_state(self.random[worker])
        gradient = self._gradient(self.models[worker], worker, step)
        self.random[worker] = torch.get_rng_state()
        return gradient

    def other(self, worker: int, step: int | None, x: Tensor) -> Tensor:
        """The gradient elsewhere, with the masks of the plain one, on a copy."""
        copy = Normed()
        nn.utils.vector_to_parameters(x, copy.parameters())
        torch.set_rng_state(self.start[worker])
        return self._gradient(copy, worker, step)

    def of_server(self, step: int, x: Tensor) -> Tensor:
        """The gradient of the server's function, with masks that all processes know: seed 0 and the step."""
        copy = Normed()
        nn.utils.vector_to_parameters(x, copy.parameters())
        torch.set_rng_state(torch.Generator().manual_seed(step).get_state())
        return self._gradient(copy, -1, step)

    def _gradient(self, model: nn.Module, data: int, step: int | None) -> Tensor:
        model.zero_grad()
        closure_of(model, data, step)()
        return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])

    def told(self) -> list[dict[str, Any]]:
        found = []
        for model, random in zip(self.models, self.random, strict=True):
            torch.set_rng_state(random)
            found.append(told(model))
        return found


def importance_by_hand(
    reference: OneProcess, worker: int, step: int, x: Tensor, g: Tensor, w: Tensor, trial: float, steps: int
) -> Tensor:
    """The search on the cube [1, 2], from the pseudo-code: projected gradient, scale-free with step 0.3."""
    for _ in range(steps):
        slope = -trial * g * reference.other(worker, step, x - trial * w * g)
        w = (w - 0.3 * slope / slope.abs().max()).clamp(1.0, 2.0)
    return w


def scam_by_hand(workers: int, steps: int, k: int, search: int, every: int, reweighted: bool) -> list[dict[str, Any]]:
    """SCAM with ImpK (operator 7) or its reweighted form (9), w found by each worker on its own minibatch."""
    with torch.random.fork_rng(devices=[]):
        reference = OneProcess(workers)
        x = reference.at()
        error = [torch.zeros_like(x) for _ in range(workers)]
        w = [torch.full_like(x, 1.5) for _ in range(workers)]
        for step in range(steps):
            mean = torch.zeros_like(x)
            for i in range(workers):
                g = reference.plain(i, step)
                if step % every == 0:
                    w[i] = importance_by_hand(reference, i, step, x, g, w[i], rates(step), search)
                score = (w[i] * (error[i] + g)).abs() if reweighted else w[i]
                support = score.argsort(descending=True, stable=True)[:k]
                sent = torch.zeros_like(x)
                sent[support] = (w[i] * g if reweighted else g)[support]
                error[i] += g - sent
                mean += sent / workers
            x = x - rates(step) * mean
            reference.move(x)
        return reference.told()


def on_simulator(mechanism: str, workers: int, steps: int) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """A mechanism on the simulator, with the functions, buffers and masks of `job_closures`."""
    with torch.random.fork_rng(devices=[]):
        reference, runtime = OneProcess(workers), Local(workers)
        link, memory = runtime.links[0], None
        x = reference.at()
        policy = Joining(mechanism, rules=WHOLE)
        for step in range(steps):
            plan = Joining.around(policy, rates(step)).plan(JOINED, tuple(x.shape), workers)
            v = torch.stack([reference.plain(i, step) for i in range(workers)])

            def everyone(y: Tensor, step: int | None) -> Tensor:
                points = y.expand(workers, -1)
                return torch.stack([reference.other(i, step, points[i]) for i in range(workers)])

            probe = Probe(
                x.clone(), lambda y, step=step: everyone(y, step), lambda y: everyone(y, None),
                lambda y, step=step: reference.of_server(step, y),
            )  # fmt: skip
            link.begin(step)
            one, scope = plan.at(step), link.scope(JOINED)
            text = one.init(v, scope, probe) if step == 0 else one.exchange(v, memory, scope, probe)
            ((estimate, memory),) = runtime.drive(text)
            x = x - rates(step) * estimate
            reference.move(x)
        return reference.told(), account(runtime)


def job_resumed(mechanism: str, rules: str, steps: int, at: int) -> dict[str, Any]:
    """Training with closures in one go, and with a checkpoint after some steps, into new objects. Ends alike?"""
    rank = dist.get_rank()
    policy = Policy(mechanism, rules=(Rule(rules, dimensions=1),) if rules else WHOLE)

    def build() -> tuple[nn.Module, Compressed, Any]:
        model = Normed()
        wrapped = Compressed(sgd(model, momentum=0.9), model, policy)
        return model, wrapped, torch.optim.lr_scheduler.LambdaLR(wrapped, lambda step: rates(step) / 0.1)

    def go(model: nn.Module, wrapped: Compressed, schedule: Any, first: int, last: int) -> None:
        for step in range(first, last):
            wrapped.step(closure_of(model, rank, step), full=closure_of(model, rank, None))
            schedule.step()

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(rank)
        whole = build()
        with closing(whole[1]):
            go(*whole, 0, steps)
        torch.manual_seed(rank)
        model, wrapped, schedule = build()
        with closing(wrapped):
            go(model, wrapped, schedule, 0, at)
            file = io.BytesIO()
            parts = {"model": model, "optimizer": wrapped, "schedule": schedule}
            torch.save({name: part.state_dict() for name, part in parts.items()}, file)  # type: ignore[attr-defined]
            random = torch.get_rng_state()
            go(model, wrapped, schedule, at, at + 1)  # what was saved is not what goes on
        file.seek(0)
        state = torch.load(file, weights_only=True)
        model, wrapped, schedule = build()
        model.load_state_dict(state["model"])
        wrapped.load_state_dict(state["optimizer"])
        schedule.load_state_dict(state["schedule"])
        torch.set_rng_state(random)
        with closing(wrapped):
            go(model, wrapped, schedule, at, steps)
    return {
        "x": [hashed(whole[0]), hashed(model)], "counts": [vars(whole[1].evaluations), vars(wrapped.evaluations)],
        "up": [int(one.ledger.uplink[rank]) for one in (whole[1], wrapped)],
    }  # fmt: skip


# ---- refusals --------------------------------------------------------------------------------------------------------


def job_wrapper_refuses() -> dict[str, str]:
    """What is said to what cannot be served."""
    logging.getLogger("laconic").addHandler(logging.NullHandler())
    model = Net(torch.float64)
    everything = Policy("local_importance(direct(impk(k=3)))", rules=WHOLE)
    sparse = nn.Embedding(4, 2, sparse=True)
    mixed = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2).double())
    groups = torch.optim.SGD([{"params": [model.scale]}, {"params": [model.head.weight], "lr": 0.3}], lr=0.1)
    made: list[Compressed] = []

    def wrapped(optimizer: Any, net: nn.Module, mechanism: Any) -> Compressed:
        made.append(Compressed(optimizer, net, mechanism))
        return made[-1]

    def closure() -> Tensor:
        loss = loss_of(model, 0, 0, torch.float64)
        loss.backward()
        return loss

    def step_of_sparse() -> None:
        optimizer = wrapped(sgd(sparse), sparse, DENSE)
        sparse(torch.tensor([1])).sum().backward()
        optimizer.step()

    def another_checkpoint() -> None:
        state = wrapped(sgd(model), model, "ef21(topk(k=0.1))").state_dict()
        wrapped(sgd(model), model, DENSE).load_state_dict(state)

    def scaled_closure() -> None:
        optimizer = wrapped(sgd(model), model, DENSE)
        scaler = torch.amp.GradScaler("cpu")
        scaler.scale(loss_of(model, 0, 0, torch.float64)).backward()
        scaler.step(optimizer, closure)

    def not_finite() -> None:
        made.append(Compressed(sgd(model), model, DENSE, non_finite=Stop()))
        model.zero_grad()
        (loss_of(model, 0, 0, torch.float64) * torch.nan).backward()
        made[-1].step()

    def failing_probe() -> None:
        calls = []

        def failing() -> Tensor:
            calls.append(1)
            if len(calls) == 2:
                raise KeyError("the user's own")
            return closure()

        wrapped(sgd(model), model, everything).step(failing)

    attempts: dict[str, Callable[[], Any]] = {
        "cohorts": lambda: wrapped(sgd(model), model, "partial(ef21(topk(k=0.1)), probability=0.5)"),
        "probe in a rule": lambda: wrapped(
            sgd(model), model, Policy("ef14(topk(k=1))", rules=(Rule("lag_wk(step=1.0)"),))
        ),
        "momentum": lambda: wrapped(sgd(model, momentum=0.9), model, "ef14_inside(topk(k=0.1))"),
        "adam": lambda: wrapped(torch.optim.Adam(model.parameters()), model, "ef14_inside(topk(k=0.1))"),
        "no closure": lambda: wrapped(sgd(model), model, everything).step(),
        "no full": lambda: wrapped(sgd(model), model, Policy("vr_marina(randk(k=3))", rules=WHOLE)).step(closure),
        "no full gradients": lambda: wrapped(sgd(model), model, "marina(permk)").step(closure),
        "no server": lambda: wrapped(
            sgd(model), model, Policy("server_importance(direct(impk(k=3)))", rules=WHOLE)
        ).step(closure),
        "rates": lambda: wrapped(groups, model, everything).step(closure),
        "sparse": step_of_sparse,
        "strangers": lambda: wrapped(sgd(Net(torch.float64)), model, DENSE),
        "dtypes": lambda: wrapped(sgd(mixed), mixed, everything),
        "ddp": lambda: wrapped(sgd(model), DistributedDataParallel(model), DENSE),
        "lbfgs": lambda: wrapped(torch.optim.LBFGS(model.parameters()), model, DENSE),
        "twice": lambda: wrapped(wrapped(sgd(model), model, DENSE), model, DENSE),
        "added": lambda: wrapped(sgd(model), model, DENSE).add_param_group({"params": []}),
        "plain checkpoint": lambda: wrapped(sgd(model), model, DENSE).load_state_dict(sgd(model).state_dict()),
        "another checkpoint": another_checkpoint,
        "scaled closure": scaled_closure,
        "not finite": not_finite,
        "failing probe": failing_probe,
        "no mechanism": lambda: wrapped(sgd(model), model, "topk(k=0.1)"),
    }
    said = {}
    for name, attempt in attempts.items():
        try:
            attempt()
        except Exception as error:
            said[name] = f"{type(error).__name__}: {error}"
    for optimizer in made:
        optimizer.close()
    return said
