"""A mechanism in DDP's communication hook, or around the optimizer where it needs gradients at other points."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from laconic.core.mechanism import Mechanism, Need
from laconic.training.alarms import ErrorGrows, NothingCompressed
from laconic.training.averager import Averager
from laconic.training.hook import attach
from laconic.training.needs import refuse
from laconic.training.notices import announce
from laconic.training.optimizer import Compressed as Wrapper
from laconic.training.policy import Policy
from laconic.training.recipes.exchange import Exchange, Joined, Traffic, dense_numbers, label_of, parallel, warm_up
from laconic.training.recipes.tasks import Course
from laconic.training.recipes.telling import Heard
from laconic.training.recipes.timing import Stopwatch
from laconic.training.telemetry import Telemetry
from laconic.training.wrapping import refuse_mechanism

CLOSURES = frozenset({Need.PROBE, Need.FULL_GRADIENTS})


@dataclass(frozen=True)
class Mechanised(Exchange):
    """Gradients averaged by a policy."""

    policy: Policy

    counting: ClassVar[str] = "the ledger: lengths of the messages"

    @property
    def label(self) -> str:  # type: ignore[override]
        """The mechanism's spec, with rules and warm-up where they are not the default ones."""
        return label_of(self.policy)

    @property
    def settles(self) -> int:  # type: ignore[override]
        """After the warm-up and two steps."""
        return 2 + warm_up(self.policy)

    def dense_numbers(self, named: Mapping[str, Tensor]) -> int:
        """The numbers of the tensors for which the policy says so."""
        return dense_numbers(self.policy, named)


@dataclass(frozen=True)
class Compressed(Mechanised):
    """A mechanism in DDP's communication hook, as :func:`laconic.training.attach` puts it there."""

    def check(self, optimizer: Optimizer) -> None:
        """Refuses mechanisms that need what a hook cannot give."""
        for one in self.policy.mechanisms:
            refuse(one, frozenset(), "a DDP hook")

    def join(self, module: nn.Module, optimizer: Optimizer, seed: int, bucket_mb: float) -> Joined:
        """Attaches the mechanism to the module in DDP."""
        return _Hooked(parallel(module, bucket_mb), optimizer, self.policy, seed)

    def candidate(self) -> Policy:
        """The policy."""
        return self.policy


@dataclass(frozen=True)
class Wrapped(Mechanised):
    """A mechanism around the optimizer, as :class:`laconic.training.Compressed`, which gives it closures.

    A full gradient, where it asks for one, is the mean over the minibatches that the process sees in the epoch of the
    step; the server's minibatch is process 0's.
    """

    def check(self, optimizer: Optimizer) -> None:
        """Refuses what the wrapper cannot serve with this optimizer."""
        probed = (self.policy.mechanism, *(stage for _, stage in self.policy.warm_up))
        for one in self.policy.mechanisms:
            refuse_mechanism(one, optimizer, probe=one in probed)

    def join(self, module: nn.Module, optimizer: Optimizer, seed: int, bucket_mb: float) -> Joined:
        """Puts the wrapper around the optimizer; the module stays without DDP."""
        asks = ", ".join(str(one) for one in self.policy.mechanisms if needs_wrapper(one))
        announce(
            f"{asks} needs what a DDP hook cannot give, so gradients are averaged in optimizer.step(closure) "
            "(laconic.training.Compressed), and nothing is hidden behind the backward pass"
        )
        return _Around(module, optimizer, self.policy, seed)


def needs_wrapper(mechanism: Mechanism) -> bool:
    """Whether a mechanism asks for closures, or for the stepsize, which the wrapper has and a hook has not."""
    return bool(mechanism.needs & CLOSURES) or mechanism.takes_step


def by_policy(policy: Policy) -> Mechanised:
    """In DDP's hook where that can serve all mechanisms, else around the optimizer."""
    return Wrapped(policy) if any(map(needs_wrapper, policy.mechanisms)) else Compressed(policy)


class _Averaging(Joined):
    """What both have: an averager that takes one step in each, and telemetry that listens to it."""

    averager: Averager

    def _listen(self, averager: Averager) -> None:
        self.averager, self._heard, self._parts = averager, Heard(), contextlib.ExitStack()
        self._telemetry = Telemetry(averager, self._heard, NothingCompressed(), ErrorGrows())
        self._parts.enter_context(self._telemetry)

    def told(self) -> dict[str, Any]:
        """The averager's record, which is complete a moment after the step."""
        self.averager.wait()
        return self._heard.take(self.averager.steps)[1]

    def traffic(self) -> Traffic:
        """By the ledger."""
        ledger, rank = self.averager.ledger, self.averager.rank
        sent = ledger.transport.payload + ledger.transport.framing
        return Traffic(int(ledger.uplink[rank]), int(ledger.downlink[rank]), sent)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._parts.__exit__(kind, error, trace)
        self._end()

    def _end(self) -> None:
        """Ends the averager's thread."""
        self.averager.close()


class _Hooked(_Averaging):
    def __init__(self, model: DistributedDataParallel, optimizer: Optimizer, policy: Policy, seed: int) -> None:
        self.model, self.optimizer = model, optimizer
        self._attached = attach(model, policy, seed=seed)
        self._listen(self._attached.averager)

    def state_dict(self) -> dict[str, Any]:
        return self._attached.state_dict()

    def load_state_dict(self, state: dict[str, Any], step: int) -> None:
        self._attached.load_state_dict(state)

    def _end(self) -> None:
        self._attached.detach()


class _Around(_Averaging):
    def __init__(self, model: nn.Module, optimizer: Optimizer, policy: Policy, seed: int) -> None:
        self.model = model
        self.optimizer = self._wrapper = Wrapper(optimizer, model, policy, seed=seed)
        self._epoch = 1  # minibatches of a full gradient
        self._listen(self._wrapper.averager)

    def take_step(self, course: Course, step: int, watched: Stopwatch) -> Tensor:
        self._epoch = course.steps_per_epoch

        def closure() -> Tensor:
            loss = course.loss(self.model, step)
            watched.forward()
            loss.backward()
            watched.backward()
            return loss.detach()

        def full() -> Tensor:
            first, losses = step - step % self._epoch, []
            for other in range(first, first + self._epoch):
                loss = course.loss(self.model, other) / self._epoch
                watched.forward()
                loss.backward()
                losses.append(loss.detach())
            watched.backward()
            return torch.stack(losses).sum()

        def server() -> None:
            course.batch_loss(self.model, step, 0).backward()

        loss = self._wrapper.step(closure, full, server)
        self._wrapper.zero_grad()
        return loss

    def evaluations(self, steps: int) -> int:
        counts = self._wrapper.evaluations
        return counts.plain + counts.probe + counts.server + counts.full * self._epoch

    def state_dict(self) -> dict[str, Any]:
        return {"wrapper": self._wrapper.state_dict(), "epoch": self._epoch}

    def load_state_dict(self, state: dict[str, Any], step: int) -> None:
        self._wrapper.load_state_dict(state["wrapper"])
        self._epoch = state["epoch"]
