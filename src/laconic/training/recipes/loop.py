"""The loop: build, join, train, evaluate, keep. Plain enough to read in one go."""

from __future__ import annotations

import dataclasses
import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, median
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from laconic.netlab.counters import Counters
from laconic.training.advice.predict import Prediction
from laconic.training.recipes.exchange import Exchange, Joined, Traffic
from laconic.training.recipes.forecast import forecast
from laconic.training.recipes.record import Record, machine, versions
from laconic.training.recipes.schedules import factor, schedule_of
from laconic.training.recipes.tasks import Course, Task
from laconic.training.recipes.timing import Seconds, Stopwatch

Watch = Callable[[int, int, float], None]  # step, of how many, the loss of this process


@dataclass(frozen=True)
class Plan:
    """The choices of a run that belong to neither the task nor the exchange.

    Parameters
    ----------
    out : the run directory.
    steps : None for the task's epochs.
    seed : of weights, order, augmentation and the mechanism's randomness.
    evaluate_every : steps; None for what the task says, once in an epoch for images.
    checkpoint_every : steps; None for when it is evaluated, 0 for never.
    bucket_mb : the size of DDP's buckets in MiB.
    resume : go on from the last checkpoint in `out`.
    predict : let the advisor predict the time of a step first.
    """

    out: Path
    steps: int | None = None
    seed: int = 0
    evaluate_every: int | None = None
    checkpoint_every: int | None = None
    bucket_mb: float = 25.0
    resume: bool = False
    predict: bool = False

    def __post_init__(self) -> None:
        for name, least in (("steps", 1), ("seed", 0), ("evaluate_every", 1), ("checkpoint_every", 0)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise ValueError(f"--{name.replace('_', '-')} {value} : give an integer >= {least}")
        if not self.bucket_mb > 0.0:
            raise ValueError(f"--bucket-mb {self.bucket_mb} : give a number > 0")


@dataclass(frozen=True)
class _Cost:
    """Of one step of this process: seconds, bytes by the ledger, and bytes that crossed the network's interface."""

    seconds: Seconds
    up: int
    sent: int
    wire_up: int | None
    wire_down: int | None


class Run:
    """A run in one process of `torch.distributed`, which must be initialised; every process makes one."""

    def __init__(self, task: Task, exchange: Exchange, plan: Plan) -> None:
        self.task, self.exchange, self.plan = task, exchange, plan
        self.rank, self.world = dist.get_rank(), dist.get_world_size()
        if plan.resume and exchange.cannot_resume:
            raise ValueError(f"--resume : {exchange.label} {exchange.cannot_resume}")
        self.record = Record(plan.out, self.rank, plan.resume)
        self.course: Course = task.course(plan.seed, self.rank, self.world)
        self.steps = plan.steps or max(1, round(task.epochs * self.course.steps_per_epoch))
        self.every = plan.evaluate_every or task.evaluate_every(self.steps, self.course.steps_per_epoch)
        self.module: nn.Module = task.module(plan.seed)
        self.optimizer = task.optimizer(self.module)
        self.base = [group["lr"] for group in self.optimizer.param_groups]
        self.schedule = schedule_of(task.schedule)
        self.numbers = sum(parameter.numel() for parameter in self.module.parameters())
        self.step, self.seconds = 0, 0.0
        self._costs: list[_Cost] = []
        self._losses: list[float] = []
        self._wire = Counters()
        bucket_mb = exchange.bucket_mb(self.module, plan.bucket_mb)
        self.predicted = forecast(task, exchange, self.course, self.module, bucket_mb) if plan.predict else None
        self.joined: Joined = exchange.join(self.module, self.optimizer, plan.seed, bucket_mb)
        # whoever averages in a hook before the step has registered it by now
        self.optimizer.register_step_pre_hook(lambda *_: task.prepare_step(self.module))

    @property
    def smoke(self) -> bool:
        """Whether the run is too short to say anything about quality."""
        return self.steps / self.course.steps_per_epoch < self.task.SMOKE

    def identity(self) -> dict[str, Any]:
        """What must be the same in a run that goes on."""
        named = {"exchange": self.exchange.label, "seed": self.plan.seed, "world": self.world, "steps": self.steps}
        return {**self.task.record(), **named, "data_sha256": self.course.data_sha256}

    def train(self, watch: Watch = lambda step, steps, loss: None) -> dict[str, Any]:
        """Trains to the end, and closes everything, whatever happens; gives what the last line says."""
        try:
            with self.joined:
                return self._train(watch)
        finally:
            self.record.close()

    def _train(self, watch: Watch) -> dict[str, Any]:
        document = self._document()
        if self.plan.resume:
            self._load()
        self.record.describe(document)
        watched = Stopwatch(self.module)
        found: dict[str, float] = {} if self.step else self._evaluate()
        while self.step < self.steps:
            self._take_a_step(watched)
            watch(self.step, self.steps, self._losses[-1])
            last = self.step == self.steps
            if last or self.step % self.every == 0:
                found = self._evaluate()
            every = self.every if self.plan.checkpoint_every is None else self.plan.checkpoint_every
            if every and (last or self.step % every == 0):
                self._save()
        if not found:  # it goes on from its very end
            found = self._evaluate()
        watched.close()
        result = self._result(found)
        self.record.describe({**document, "result": result})
        return result

    def _take_a_step(self, watched: Stopwatch) -> None:
        share = factor(self.schedule, self.step, self.steps, self.task.warm_up)
        for group, base in zip(self.optimizer.param_groups, self.base, strict=True):
            group["lr"] = base * share
        before = self.joined.traffic(), self.joined.evaluations(self.step)
        watched.start()
        loss = self.joined.take_step(self.course, self.step, watched)
        watched.end()
        self.step += 1
        if self.step == self.steps:
            self.joined.finish()
        self._note(float(loss), watched.seconds(), *before)

    def _note(self, loss: float, seconds: Seconds, before: Traffic, evaluations: int) -> None:
        if not math.isfinite(loss):
            raise FloatingPointError(f"the loss of rank {self.rank} is {loss} at step {self.step}; try a smaller --lr")
        told = self.joined.told()
        now, dense, wire = self.joined.traffic(), 4 * self.numbers, self._wire.look()
        crossed = (None, None) if wire is None else (wire.bytes_sent, wire.bytes_received)
        cost = _Cost(seconds, now.up - before.up, now.sent - before.sent, *crossed)
        self._losses.append(loss)
        self._costs.append(cost)
        self.seconds += seconds.total
        self.record.line("steps", {
            "step": self.step - 1, "loss": loss, "lr": self.optimizer.param_groups[0]["lr"],
            "up": cost.up, "down": now.down - before.down, "dense": dense, "sent": cost.sent,
            "ratio": cost.up / dense, "wire_up": cost.wire_up, "wire_down": cost.wire_down,
            "evaluations": self.joined.evaluations(self.step) - evaluations, "exposed": seconds.waiting, "alarms": [],
            **{name: round(value, 6) for name, value in dataclasses.asdict(seconds).items()}, **told,
        })  # fmt: skip

    def _evaluate(self) -> dict[str, float]:
        """Judges the model; the training loss is the mean since the last time, over all processes."""
        losses = self._losses[-self.every :]
        sums = torch.tensor([sum(losses), float(len(losses))], dtype=torch.float64)
        dist.all_reduce(sums)
        with self.joined.judged():
            found = self.course.evaluate(self.module)
        self.record.line("evaluations", {
            "step": self.step, "epoch": round(self.step / self.course.steps_per_epoch, 6), "seconds": self.seconds,
            **dataclasses.asdict(self.joined.traffic()), "evaluations": self.joined.evaluations(self.step),
            "train_loss": float(sums[0] / sums[1]) if losses else None, **found,
        })  # fmt: skip
        self.record.flush()
        self._wire.look()  # what an evaluation sends is no step's
        return found

    # ---- checkpoints ------------------------------------------------------------------------------------------

    def _save(self) -> None:
        self.record.save(self.step, {
            "identity": json.dumps(self.identity()), "step": self.step, "seconds": self.seconds,
            "losses": self._losses[-self.every :], "model": self.module.state_dict(),
            "optimizer": self.optimizer.state_dict(), "exchange": self.joined.state_dict(),
        })  # fmt: skip
        self._wire.look()

    def _load(self) -> None:
        state = self.record.load()
        there, here = json.loads(state["identity"]), self.identity()
        for name in here:
            if there.get(name) != here[name]:
                raise ValueError(
                    f"--resume : the run in {self.plan.out} has {name} {there.get(name)!r}, and this one {here[name]!r}"
                )
        self.step, self.seconds, self._losses = state["step"], state["seconds"], state["losses"]
        self.module.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.joined.load_state_dict(state["exchange"], self.step)
        self.record.forget_after(self.step)

    # ---- what is recorded -------------------------------------------------------------------------------------

    def _document(self) -> dict[str, Any]:
        named = {name: parameter.detach() for name, parameter in self.module.named_parameters()}
        dense = self.exchange.dense_numbers(named)
        counts = {"all": self.numbers, "dense": dense, "compressed": self.numbers - dense}
        return {
            "identity": self.identity(), "smoke": self.smoke, "evaluate_every": self.every,
            "bucket_mb": self.exchange.bucket_mb(self.module, self.plan.bucket_mb), "broadcast_buffers": False,
            "parameters": counts, "bytes": self.exchange.counting, "judged_model": self.exchange.judging,
            "evaluations": "gradients of minibatches that a process has computed", **self._forecast(),
            "facts": self.course.facts, "versions": versions(), "machine": machine(),
            "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        }  # fmt: skip

    def _forecast(self) -> dict[str, Any]:
        """What was predicted, in parts, or why not; nothing where nobody asked."""
        if self.predicted is None:
            return {}
        if isinstance(self.predicted, Prediction):
            return {"prediction": {**dataclasses.asdict(self.predicted), "seconds": self.predicted.seconds}}
        return {"prediction": self.predicted}

    def _result(self, found: dict[str, float]) -> dict[str, Any]:
        traffic = self.joined.traffic()
        settled = self._settled()
        times = {field.name: 0.0 for field in dataclasses.fields(Seconds)}
        if settled:
            times = {name: self._typical([getattr(cost.seconds, name) for cost in settled]) for name in times}
        crossed = {name: [getattr(cost, name) for cost in settled] for name in ("wire_up", "wire_down")}
        wire = {
            f"{name}_per_step": self._typical(values) if values and None not in values else None
            for name, values in crossed.items()
        }
        per_step = sum(times.values())
        predicted = self.predicted.seconds if isinstance(self.predicted, Prediction) else None
        compared = {} if self.predicted is None else {"predicted": predicted, "measured": per_step}
        return {
            **found, "steps": self.steps, "epochs": self.steps / self.course.steps_per_epoch, "smoke": self.smoke,
            "up_per_step": traffic.up / self.steps, "sent_per_step": traffic.sent / self.steps,
            "up_per_step_settled": self._typical([cost.up for cost in settled]) if settled else None,
            "sent_per_step_settled": self._typical([cost.sent for cost in settled]) if settled else None, **wire,
            "evaluations": self.joined.evaluations(self.steps), "dense_per_step": 4 * self.numbers,
            "seconds_per_step": per_step, "seconds": times, **compared,
        }  # fmt: skip

    def _settled(self) -> list[_Cost]:
        """The steps of this process without those that are unlike the rest: first messages, a warm-up, set-up."""
        first = max(2, self.exchange.settles - (self.steps - len(self._costs)))
        return self._costs[first:] or self._costs

    def _typical(self, values: list[Any]) -> float:
        """Their median where each step is like the next, else their mean."""
        return median(values) if self.exchange.steady else fmean(values)
