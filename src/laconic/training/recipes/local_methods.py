"""Local updates as exchanges: each process takes steps of its own, and now and then the models are brought together."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import math
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any, ClassVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.optim import SGD, Optimizer

from laconic.training.alarms import ErrorGrows
from laconic.training.control_variates import SCAFFOLD, ProxSkip, plain_sgd_only
from laconic.training.diloco import DiLoCo
from laconic.training.local import LocalSGD, PostLocalSGD
from laconic.training.local_updates import LocalUpdates, at_least, between
from laconic.training.needs import refuse
from laconic.training.policy import DENSE, Policy
from laconic.training.recipes.exchange import Exchange, Joined, Traffic, dense_numbers, holding, label_of
from laconic.training.recipes.telling import Heard
from laconic.training.telemetry import Telemetry

MEAN = "the mean of the processes' models as they are at that moment, computed beside the ledger"


@dataclass(frozen=True, kw_only=True)
class Local(Exchange):
    """Local updates. The fields of each method are options of the command line.

    Evaluations are about the mean of the processes' models at that moment, whatever the schedule; it is computed beside
    the ledger, and the models stay as they are. Running statistics are averaged likewise.
    """

    name: ClassVar[str]
    counting: ClassVar[str] = "the ledger: lengths of the messages of the averages"
    judging: ClassVar[str] = MEAN
    steady: ClassVar[bool] = False

    def __post_init__(self) -> None:
        for one in self.policy.mechanisms:
            refuse(one, frozenset(), f"--local {self.name}, which averages changes of models,", gives_step=True)

    @property
    def policy(self) -> Policy:
        """For what travels."""
        return Policy(DENSE, rules=())

    @property
    def label(self) -> str:  # type: ignore[override]
        """The method's name with its options, those at their defaults left out but for the first."""
        said = []
        for place, field in enumerate(dataclasses.fields(self)):
            value = getattr(self, field.name)
            if place == 0 or value != field.default:
                said.append(f"{field.name}={label_of(value) if isinstance(value, Policy) else value}")
        return f"{self.name}({', '.join(said)})"

    @abstractmethod
    def updates(self, module: nn.Module, optimizer: Optimizer, seed: int) -> LocalUpdates:
        """The method at work."""

    def shared(self, updates: LocalUpdates) -> Mapping[str, Tensor]:
        """The model to evaluate, by name; every process calls it."""
        parameters = updates.parameters
        flat = torch.cat([parameter.detach().flatten() for parameter in parameters.values()])
        dist.all_reduce(flat)
        pieces = flat.div_(dist.get_world_size()).split([parameter.numel() for parameter in parameters.values()])
        return {name: piece.view_as(parameters[name]) for name, piece in zip(parameters, pieces, strict=True)}

    def join(self, module: nn.Module, optimizer: Optimizer, seed: int, bucket_mb: float) -> Joined:
        """The method around the optimizer; the module stays without DDP."""
        return _Locally(self, module, optimizer, self.updates(module, optimizer, seed))

    def dense_numbers(self, named: Mapping[str, Tensor]) -> int:
        """The numbers of the tensors for which the policy says so."""
        return dense_numbers(self.policy, named)


class _Locally(Joined):
    """Local updates at work. A line tells of the averages that have been merged since the line before."""

    def __init__(self, method: Local, module: nn.Module, optimizer: Optimizer, updates: LocalUpdates) -> None:
        self.model, self.optimizer, self.updates = module, optimizer, updates
        self._method, self._traffic = method, Traffic()
        updates.left = f"the last evaluation is about {method.judging}"
        self._heard, self._parts = Heard(), contextlib.ExitStack()
        self._parts.enter_context(updates)
        compressed = any(str(one) != DENSE for one in method.policy.mechanisms)
        self._parts.enter_context(Telemetry(updates, self._heard, *([ErrorGrows()] if compressed else [])))

    def finish(self) -> None:
        self.updates.finish()

    def told(self) -> dict[str, Any]:
        aloft = self.updates.in_the_air
        if not aloft:  # else the wait would take away what the delay is for
            self.updates.averager.wait()
        new, line = self._heard.take(self.updates.exchanges - aloft)
        old = self._traffic
        self._traffic = Traffic(old.up + new.up, old.down + new.down, old.sent + new.sent)
        return line

    def traffic(self) -> Traffic:
        """By the ledger, of the averages that have been merged."""
        return self._traffic

    @contextlib.contextmanager
    def judged(self) -> Any:
        with holding(self.updates.parameters, self._method.shared(self.updates)):
            yield

    def state_dict(self) -> dict[str, Any]:
        updates = self.updates.state_dict()  # what is in the air arrives, and is heard of
        return {"updates": updates, "traffic": dataclasses.asdict(self._traffic), "heard": self._heard.state()}

    def load_state_dict(self, state: dict[str, Any], step: int) -> None:
        self.updates.load_state_dict(state["updates"])
        self._traffic = Traffic(**state["traffic"])
        self._heard.load(state["heard"])

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._parts.__exit__(kind, error, trace)


# ---- the methods -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Averages(Local):
    """A method that averages every so many steps, by a mechanism.

    Parameters
    ----------
    sync_every : steps between two averages.
    mechanism : for the changes; dense by default.
    """

    sync_every: int = 20
    mechanism: Policy = Policy(DENSE)

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(f"--local {self.name}", "sync_every", self.sync_every, 1)

    @property
    def policy(self) -> Policy:
        """That of the changes."""
        return self.mechanism

    @property
    def plain(self) -> bool:
        """Whether all is dense."""
        return all(str(one) == DENSE for one in self.mechanism.mechanisms)


@dataclass(frozen=True, kw_only=True)
class LocalSGDRun(Averages):
    """:class:`laconic.training.LocalSGD`."""

    name: ClassVar[str] = "local_sgd"

    def updates(self, module: nn.Module, optimizer: Optimizer, seed: int) -> LocalUpdates:
        """The method at work."""
        return LocalSGD(module, optimizer, sync_every=self.sync_every, mechanism=self.mechanism, seed=seed)

    def candidate(self) -> str | None:
        """A dense exchange every so many steps."""
        return f"diloco-{self.sync_every}" if self.plain else None


@dataclass(frozen=True, kw_only=True)
class PostLocalRun(Averages):
    """:class:`laconic.training.PostLocalSGD`; `local_start`: steps with averaged gradients, which must be given."""

    local_start: int = -1
    name: ClassVar[str] = "post_local_sgd"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.local_start < 0:
            raise ValueError(
                "--local post_local_sgd : say after how many steps models are averaged instead of gradients, "
                "--local-start 1000 say; where the learning rate first falls is the paper's choice"
            )

    @property
    def settles(self) -> int:  # type: ignore[override]
        """After the steps with averaged gradients."""
        return max(2, self.local_start)

    def updates(self, module: nn.Module, optimizer: Optimizer, seed: int) -> LocalUpdates:
        """The method at work."""
        return PostLocalSGD(
            module, optimizer, sync_every=self.sync_every, start=self.local_start, mechanism=self.mechanism, seed=seed
        )


@dataclass(frozen=True, kw_only=True)
class DiLoCoRun(Averages):
    """:class:`laconic.training.DiLoCo`, judged by its anchor, the model that the processes share.

    Parameters
    ----------
    fragments, delay, mixing : of the streaming form.
    outer_lr, outer_momentum : of the outer optimizer, SGD with Nesterov's momentum.
    """

    fragments: int = 1
    delay: int = 0
    mixing: float = 0.0
    outer_lr: float = 0.7
    outer_momentum: float = 0.9

    name: ClassVar[str] = "diloco"
    judging: ClassVar[str] = "the anchor, which the processes share, with the mean of their running statistics"

    def __post_init__(self) -> None:
        super().__post_init__()
        who = f"--local {self.name}"
        at_least(who, "fragments", self.fragments, 1)
        at_least(who, "delay", self.delay, 0)
        between(who, "outer_lr", self.outer_lr, 0.0, math.inf)
        if not (0.0 <= self.mixing < 1.0 and 0.0 <= self.outer_momentum < 1.0):
            raise ValueError(
                f"{who} : --mixing {self.mixing} --outer-momentum {self.outer_momentum} : both must be >= 0 and < 1"
            )
        if self.delay >= self.sync_every:
            raise ValueError(
                f"{who} : --delay {self.delay} : give an integer < {self.sync_every}, that of --sync-every"
            )

    def updates(self, module: nn.Module, optimizer: Optimizer, seed: int) -> LocalUpdates:
        """The method at work."""
        nesterov = self.outer_momentum > 0.0
        outer = functools.partial(SGD, lr=self.outer_lr, momentum=self.outer_momentum, nesterov=nesterov)
        return DiLoCo(
            module, optimizer, sync_every=self.sync_every, mechanism=self.mechanism, outer_optimizer=outer,
            fragments=self.fragments, delay=self.delay, mixing=self.mixing, seed=seed,
        )  # fmt: skip

    def shared(self, updates: LocalUpdates) -> Mapping[str, Tensor]:
        """The anchor."""
        assert isinstance(updates, DiLoCo)
        return updates.anchor

    def candidate(self) -> str | None:
        """A dense exchange every so many steps, where it is in one piece and waited for."""
        known = self.plain and self.fragments == 1 and self.delay == 0
        return f"diloco-{self.sync_every}" if known else None


@dataclass(frozen=True, kw_only=True)
class ProxSkipRun(Local):
    """:class:`laconic.training.ProxSkip`; `probability`: of an average after a step."""

    probability: float = 0.05
    name: ClassVar[str] = "proxskip"

    def __post_init__(self) -> None:
        super().__post_init__()
        between(f"--local {self.name}", "probability", self.probability, 0.0, 1.0)

    def check(self, optimizer: Optimizer) -> None:
        """Plain SGD only."""
        plain_sgd_only(f"--local {self.name}", optimizer)

    def updates(self, module: nn.Module, optimizer: Optimizer, seed: int) -> LocalUpdates:
        """The method at work."""
        return ProxSkip(module, optimizer, probability=self.probability, seed=seed)


@dataclass(frozen=True, kw_only=True)
class ScaffoldRun(Averages):
    """:class:`laconic.training.SCAFFOLD`."""

    name: ClassVar[str] = "scaffold"

    def check(self, optimizer: Optimizer) -> None:
        """Plain SGD only."""
        plain_sgd_only(f"--local {self.name}", optimizer)

    def updates(self, module: nn.Module, optimizer: Optimizer, seed: int) -> LocalUpdates:
        """The method at work."""
        return SCAFFOLD(module, optimizer, sync_every=self.sync_every, mechanism=self.mechanism, seed=seed)


LOCAL_METHODS: dict[str, type[Local]] = {
    method.name: method for method in (LocalSGDRun, PostLocalRun, DiLoCoRun, ProxSkipRun, ScaffoldRun)
}
