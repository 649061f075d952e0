"""What is learnt: a network, its data, its loss, how it is judged, and the hyper-parameters that go with it."""

from __future__ import annotations

import dataclasses
import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.optim import Optimizer

from laconic.training.recipes.schedules import schedule_of


class Course(ABC):
    """A task with its data in one process.

    Attributes
    ----------
    rank : of this process.
    steps_per_epoch : steps in which every training sample is seen once.
    data_sha256 : of training and evaluation data.
    facts : what a run records of the data: names, counts, the loss of simple models.
    """

    rank: int
    steps_per_epoch: int
    data_sha256: str
    facts: dict[str, Any]

    @abstractmethod
    def batch_loss(self, model: nn.Module, step: int, rank: int) -> Tensor:
        """The mean loss of a process' batch of a step, the same batch whenever it is asked for."""

    def loss(self, model: nn.Module, step: int) -> Tensor:
        """The mean loss of this process' batch of a step."""
        return self.batch_loss(model, step, self.rank)

    @abstractmethod
    def evaluate(self, module: nn.Module) -> dict[str, float]:
        """Means over the evaluation data, which are shared out among all processes; every process calls it."""


class InBfloat16(Course):
    """Another course whose products are computed in bfloat16 (`torch.autocast`); what is averaged stays float32."""

    def __init__(self, course: Course) -> None:
        self.course = course
        self.rank, self.steps_per_epoch = course.rank, course.steps_per_epoch
        self.data_sha256, self.facts = course.data_sha256, course.facts

    def batch_loss(self, model: nn.Module, step: int, rank: int) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return self.course.batch_loss(model, step, rank)

    def evaluate(self, module: nn.Module) -> dict[str, float]:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return self.course.evaluate(module)


@dataclass(frozen=True, kw_only=True)
class Task(ABC):
    """The choices of a run that belong to what is learnt. Its fields are options of the command line.

    Parameters
    ----------
    epochs : of a run whose steps are not given.
    batch : samples (images, windows of text) of one process in one step.
    lr : the learning rate at the schedule's height.
    weight_decay : see `optimizer`.
    schedule : "constant", "cosine" or "step".
    warm_up : steps of a linear rise before it.
    data_dir : where files are; else the environment's LACONIC_DATA.
    bf16 : compute products in bfloat16. Parameters, gradients and what mechanisms keep stay float32.
    """

    epochs: float
    batch: int
    lr: float
    weight_decay: float
    schedule: str = "cosine"
    warm_up: int = 0
    data_dir: Path | None = None
    bf16: bool = False

    name: ClassVar[str]
    SMOKE: ClassVar[float]  # a run of fewer epochs is a smoke run

    def __post_init__(self) -> None:
        schedule_of(self.schedule)
        for field, least in (("epochs", 0.0), ("batch", 1), ("lr", 0.0), ("weight_decay", 0.0), ("warm_up", 0)):
            value = getattr(self, field)
            if not (math.isfinite(value) and value >= least):
                raise ValueError(f"--{field.replace('_', '-')} {value} : give a finite number >= {least}")

    @abstractmethod
    def check(self) -> None:
        """Raises ValueError, one line, where data or packages are missing; quick, and before processes are started."""

    @abstractmethod
    def module(self, seed: int) -> nn.Module:
        """The network with fresh weights."""

    @abstractmethod
    def open(self, seed: int, rank: int, world: int) -> Course:
        """Reads the data."""

    def course(self, seed: int, rank: int, world: int) -> Course:
        """The data, and losses on them in the precision that was asked for."""
        course = self.open(seed, rank, world)
        return InBfloat16(course) if self.bf16 else course

    @abstractmethod
    def optimizer(self, module: nn.Module) -> Optimizer:
        """A fresh one."""

    @abstractmethod
    def prepare_step(self, module: nn.Module) -> None:
        """Called when gradients are averaged, before the optimizer's step: clipping."""

    def evaluate_every(self, steps: int, steps_per_epoch: int) -> int:
        """Steps between evaluations where the user does not say: an epoch or a tenth of the run, but at least 100."""
        return max(100, min(steps_per_epoch, math.ceil(steps / 10)))

    def record(self) -> dict[str, Any]:
        """Name and options, as JSON."""
        plain = {key: value for key, value in dataclasses.asdict(self).items() if key != "data_dir"}
        return {"task": self.name, **plain}


Made = TypeVar("Made")


def made(cls: type[Made], options: Mapping[str, Any]) -> Made:
    """A task, or another dataclass with a name, from the options that were given.

    Raises
    ------
    ValueError : an option that it does not have, in one line.
    """
    known = {field.name for field in dataclasses.fields(cls)}  # type: ignore[arg-type]
    for option in options:
        if option not in known:
            has = ", ".join(f"--{name.replace('_', '-')}" for name in sorted(known))
            name = getattr(cls, "name", cls.__name__)
            raise ValueError(f"--{option.replace('_', '-')} : {name} has no such option; it has {has}")
    return cls(**options)


@contextmanager
def mean_statistics(module: nn.Module) -> Iterator[None]:
    """Within it, floating-point buffers (running means and variances) are the means over all processes."""
    buffers = [buffer for buffer in module.buffers() if buffer.is_floating_point()]
    if not buffers:
        yield
        return
    flat = torch.cat([buffer.flatten() for buffer in buffers])
    own = flat.clone()
    dist.all_reduce(flat)
    _pour(flat.div_(dist.get_world_size()), buffers)
    try:
        yield
    finally:
        _pour(own, buffers)


def _pour(flat: Tensor, buffers: list[Tensor]) -> None:
    for buffer, piece in zip(buffers, flat.split([buffer.numel() for buffer in buffers]), strict=True):
        buffer.copy_(piece.view_as(buffer))


@contextmanager
def judging(module: nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients, with the mean statistics of all processes."""
    module.eval()
    try:
        with torch.no_grad(), mean_statistics(module):
            yield
    finally:
        module.train()
