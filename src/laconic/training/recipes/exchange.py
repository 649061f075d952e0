"""How the processes of a run come to one model: the seam between the loop and what communicates."""

from __future__ import annotations

import contextlib
import inspect
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any, ClassVar, Self

from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from laconic.training.policy import DENSE, Policy
from laconic.training.recipes.tasks import Course
from laconic.training.recipes.timing import Stopwatch


@dataclass(frozen=True)
class Traffic:
    """Bytes of one process so far: messages up and down, and what it handed to the transport for them."""

    up: int = 0
    down: int = 0
    sent: int = 0


class Joined(ABC):
    """An exchange at work in one process. As a context manager it is closed at the end of the block.

    Attributes
    ----------
    model : what is trained; its backward pass may communicate.
    optimizer : makes the steps.
    """

    model: nn.Module
    optimizer: Optimizer

    def take_step(self, course: Course, step: int, watched: Stopwatch) -> Tensor:
        """One step of training; gives the loss of this process' batch. Says when forward and backward have ended."""
        loss = course.loss(self.model, step)
        watched.forward()
        loss.backward()
        watched.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.stepped()
        return loss.detach()

    def stepped(self) -> None:  # noqa: B027, as not all do something
        """Called after each step of the optimizer."""

    def finish(self) -> None:  # noqa: B027, as above
        """Called after the last step: what is still in the air arrives."""

    @abstractmethod
    def traffic(self) -> Traffic:
        """The bytes so far; asked for after `told`."""

    def told(self) -> dict[str, Any]:
        """What the averager says of the step, but for bytes; called once after each. Nothing without an averager."""
        return {}

    def evaluations(self, steps: int) -> int:
        """Gradients of minibatches that this process has computed in so many steps."""
        return steps

    def judged(self) -> contextlib.AbstractContextManager[None]:
        """Within it the module holds the model that an evaluation is about."""
        return contextlib.nullcontext()

    @abstractmethod
    def state_dict(self) -> dict[str, Any]:
        """This process' part of the state: tensors, numbers and text."""

    @abstractmethod
    def load_state_dict(self, state: dict[str, Any], step: int) -> None:
        """Goes on from a state that was taken before step `step`."""

    def close(self) -> None:
        """Ends what it has started."""
        self.__exit__(None, None, None)

    def __enter__(self) -> Self:
        return self

    @abstractmethod
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Ends what it has started; after an error without another word to the other processes."""


class Exchange(ABC):
    """A way to average what the processes have computed, as the user chose it.

    Attributes
    ----------
    label : its name in tables: a spec, or a baseline's name.
    counting : where the bytes come from, in words.
    judging : which model evaluations are about, in words.
    cannot_resume : why an interrupted run cannot go on with the same numbers; empty where it can.
    settles : steps after which its messages and times are those of the rest of the run.
    steady : whether a step is like the next, so that a median speaks for all; of others the mean does.
    """

    label: str
    counting: str
    judging: ClassVar[str] = "the model that all processes have, with the mean of their running statistics"
    cannot_resume: str = ""
    settles: int = 2  # DDP deals its buckets anew
    steady: ClassVar[bool] = True

    def check(self, optimizer: Optimizer) -> None:  # noqa: B027, as not all refuse something
        """Raises ValueError, one line, for an optimizer of a kind that it cannot serve; before processes start."""

    def bucket_mb(self, module: nn.Module, asked: float) -> float:
        """The size of DDP's buckets in MiB."""
        return asked

    @abstractmethod
    def join(self, module: nn.Module, optimizer: Optimizer, seed: int, bucket_mb: float) -> Joined:
        """Sets to work, on every process at the same time."""

    @abstractmethod
    def dense_numbers(self, named: Mapping[str, Tensor]) -> int:
        """How many of the parameters' numbers travel as they are."""

    def candidate(self) -> Policy | str | None:
        """What the advisor knows it as; None where it does not."""
        return None


# PyTorch has renamed the option
SYNCHRONISED = next(
    name
    for name in ("forward_sync_buffers", "broadcast_buffers")
    if name in inspect.signature(DistributedDataParallel).parameters
)


def ddp_options(bucket_mb: float) -> dict[str, Any]:
    """Keywords of `DistributedDataParallel` in a recipe.

    Buffers (running statistics of batch normalisation) are not broadcast at every step, which would cost more bytes
    than some mechanisms: each process keeps its own, and evaluations use their mean.
    """
    return {"bucket_cap_mb": bucket_mb, SYNCHRONISED: False}


def parallel(module: nn.Module, bucket_mb: float) -> DistributedDataParallel:
    """The module in PyTorch's data parallelism."""
    return DistributedDataParallel(module, **ddp_options(bucket_mb))


# ---- policies --------------------------------------------------------------------------------------------------------


def label_of(policy: Policy) -> str:
    """The mechanism's spec, with rules and warm-up where they are not the default ones."""
    return str(policy.mechanism) if policy == Policy(policy.mechanism) else str(policy)


def dense_numbers(policy: Policy, named: Mapping[str, Tensor]) -> int:
    """The numbers of the tensors that a policy sends as they are."""
    rules = {name: policy.rule_of(name, tuple(tensor.shape)) for name, tensor in named.items()}
    chosen = {name: policy.mechanism if rule is None else rule.mechanism for name, rule in rules.items()}
    return sum(tensor.numel() for name, tensor in named.items() if str(chosen[name]) == DENSE)


def warm_up(policy: Policy) -> int:
    """The steps of a policy's warm-up."""
    return sum(steps for steps, _ in policy.warm_up)


@contextlib.contextmanager
def holding(tensors: Mapping[str, Tensor], values: Mapping[str, Tensor]) -> Iterator[None]:
    """Within it tensors have other values."""
    own = {name: tensor.detach().clone() for name, tensor in tensors.items()}
    for name, tensor in tensors.items():
        tensor.detach().copy_(values[name])
    try:
        yield
    finally:
        for name, tensor in tensors.items():
            tensor.detach().copy_(own[name])
