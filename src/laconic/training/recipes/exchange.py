"""How the processes of a run come to one model: the seam between the loop and what communicates."""

from __future__ import annotations

import dataclasses
import inspect
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from laconic.training.alarms import ErrorGrows, NothingCompressed
from laconic.training.averager import Averager
from laconic.training.hook import attach
from laconic.training.meter import Step
from laconic.training.outputs import Output, Totals
from laconic.training.policy import DENSE, Policy
from laconic.training.telemetry import Telemetry


@dataclass(frozen=True)
class Traffic:
    """Bytes of one process so far: messages up and down, and what it handed to the transport for them."""

    up: int = 0
    down: int = 0
    sent: int = 0


class Joined(ABC):
    """An exchange at work in one process.

    Attributes
    ----------
    model : what the loop calls; its backward pass may communicate.
    """

    model: nn.Module

    @abstractmethod
    def stepped(self) -> None:
        """Called after each step of the optimizer; methods with local steps communicate here."""

    @abstractmethod
    def traffic(self) -> Traffic:
        """The bytes so far."""

    def told(self) -> dict[str, Any]:
        """What the averager says of the last step, as :class:`laconic.training.JsonLines` does; nothing without one."""
        return {}

    @abstractmethod
    def state_dict(self) -> dict[str, Any]:
        """This process' part of the state: tensors, numbers and text."""

    @abstractmethod
    def load_state_dict(self, state: dict[str, Any], step: int) -> None:
        """Goes on from a state that was taken before step `step`."""

    @abstractmethod
    def close(self) -> None:
        """Ends what it has started."""


class Exchange(ABC):
    """A way to average what the processes have computed, as the user chose it.

    Attributes
    ----------
    label : its name in tables: a spec, or a baseline's name.
    counting : where the bytes come from, in words.
    cannot_resume : why an interrupted run cannot go on with the same numbers; empty where it can.
    """

    label: str
    counting: str
    cannot_resume: str = ""

    @abstractmethod
    def join(self, module: nn.Module, optimizer: Optimizer, seed: int, bucket_mb: float) -> Joined:
        """Sets to work, on every process at the same time."""

    @abstractmethod
    def dense_numbers(self, named: dict[str, Tensor]) -> int:
        """How many of the parameters' numbers travel as they are."""


# PyTorch has renamed the option
SYNCHRONISED = next(
    name
    for name in ("forward_sync_buffers", "broadcast_buffers")
    if name in inspect.signature(DistributedDataParallel).parameters
)


def parallel(module: nn.Module, bucket_mb: float) -> DistributedDataParallel:
    """The module in PyTorch's data parallelism.

    Buffers (running statistics of batch normalisation) are not broadcast at every step, which would cost more bytes
    than some mechanisms: each process keeps its own, and evaluations use their mean.
    """
    options: dict[str, Any] = {"bucket_cap_mb": bucket_mb, SYNCHRONISED: False}
    return DistributedDataParallel(module, **options)


@dataclass(frozen=True)
class Compressed(Exchange):
    """A mechanism in DDP's communication hook; `policy` or its spec as in :func:`laconic.training.attach`."""

    policy: Policy

    counting = "the ledger: lengths of the messages"

    @property
    def label(self) -> str:  # type: ignore[override]
        """The mechanism's spec."""
        return str(self.policy.mechanism)

    def join(self, module: nn.Module, optimizer: Optimizer, seed: int, bucket_mb: float) -> Joined:
        """Attaches the mechanism to the module in DDP."""
        return _Hooked(parallel(module, bucket_mb), self.policy, seed)

    def dense_numbers(self, named: dict[str, Tensor]) -> int:
        """The numbers of the tensors for which the policy says so."""
        found = 0
        for name, tensor in named.items():
            rule = self.policy.rule_of(name, tuple(tensor.shape))
            mechanism = self.policy.mechanism if rule is None else rule.mechanism
            found += tensor.numel() * (str(mechanism) == DENSE)
        return found


class _Last(Output):
    """Keeps the last step for the loop, which writes it beside its own times."""

    def __init__(self) -> None:
        self.line: dict[str, Any] = {}

    def open(self, rank: int) -> bool:
        return True

    def write(self, step: Step, alarms: Sequence[str]) -> None:
        fields = dataclasses.asdict(step)
        self.line = {"step": fields.pop("number"), **fields, "ratio": step.ratio, "alarms": list(alarms)}

    def close(self, totals: Totals) -> None:
        pass


class _Hooked(Joined):
    def __init__(self, model: DistributedDataParallel, policy: Policy, seed: int) -> None:
        self.model = model
        self._attached = attach(model, policy, seed=seed)
        self._last = _Last()
        self._telemetry = Telemetry(self._attached, self._last, NothingCompressed(), ErrorGrows())

    @property
    def averager(self) -> Averager:
        """At work behind the hook."""
        return self._attached.averager

    def stepped(self) -> None:
        """All is said in the backward pass."""

    def told(self) -> dict[str, Any]:
        """The averager's record, which is complete a moment after the backward pass."""
        self.averager.wait()
        return self._last.line

    def traffic(self) -> Traffic:
        """By the ledger."""
        ledger, rank = self._attached.ledger, self.averager.rank
        sent = ledger.transport.payload + ledger.transport.framing
        return Traffic(int(ledger.uplink[rank]), int(ledger.downlink[rank]), sent)

    def state_dict(self) -> dict[str, Any]:
        """The averager's."""
        return self._attached.state_dict()

    def load_state_dict(self, state: dict[str, Any], step: int) -> None:
        """Into the averager."""
        self._attached.load_state_dict(state)

    def close(self) -> None:
        """Ends telemetry and the averager's thread."""
        self._telemetry.close()
        self._attached.detach()
