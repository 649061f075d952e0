"""What all local methods share: a hold on the user's loop through the optimizer's hooks, one start, one state."""

from __future__ import annotations

import dataclasses
import glob
import hashlib
import math
import weakref
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from types import TracebackType
from typing import Any, Self

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from laconic.core.ledger import Ledger
from laconic.core.mechanism import Mechanism
from laconic.training.averager import Averager
from laconic.training.needs import refuse
from laconic.training.nonfinite import Stop
from laconic.training.notices import announce
from laconic.training.policy import DENSE, Plan, Policy, Rule

_held: weakref.WeakSet[Optimizer] = weakref.WeakSet()  # optimizers that local updates are at work on


class LocalUpdates(ABC):
    """Workers take steps of an optimizer by themselves, and exchange what they have become now and then.

    The loop stays the user's: everything happens in hooks of ``optimizer.step()``, which `close` takes out again. As a
    context manager it closes at the end of the block; where the block ends by an exception nothing more is sent.

    Every process makes one, with the same settings. That copies rank 0's parameters and buffers to all (the only bytes
    that the ledger does not count). Floating-point buffers, such as BatchNorm's running statistics, are averaged
    densely at synchronisations; others stay local. Every process must take the same number of optimizer steps: one
    that skips a step (a GradScaler that met an overflow) is waited for. A model that is not finite ends the run on
    all processes, with worker and tensor named.

    Attributes
    ----------
    steps : of the optimizer so far.
    averager : what the models travel through.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        policy: Policy | Mechanism | str,
        *,
        beside: Mapping[str, Tensor],
        seed: int,
        window: int,
        timeout: float,
    ) -> None:
        who = type(self).__name__
        self.model, self.optimizer, self.steps = model, optimizer, 0
        _refuse_model(who, model)
        self.parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self.buffers = {name: b for name, b in model.named_buffers() if b.is_floating_point()}
        _refuse_optimizer(who, optimizer, self.parameters)
        chosen = dense_too(policy, self.buffers)
        for mechanism in chosen.mechanisms:
            refuse(mechanism, frozenset(), f"{who}, which averages changes of models,", gives_step=True)
        self._agree()
        named = {**self.parameters, **self.buffers, **beside}
        self.averager = Averager(named, chosen, seed=seed, window=window, timeout=timeout, non_finite=Stop())
        for tensor in self._everything().values():
            dist.broadcast(tensor, 0)
        self._synced_at = 0
        self._hooks = [
            optimizer.register_step_pre_hook(self._before),
            optimizer.register_step_post_hook(self._after),
        ]
        _held.add(optimizer)

    @property
    def ledger(self) -> Ledger:
        """The bytes said so far."""
        return self.averager.ledger

    @property
    def exchanges(self) -> int:
        """Begun so far, while none is in the air."""
        return self.averager.steps

    @property
    def in_the_air(self) -> int:
        """Exchanges that have begun and are not merged yet."""
        return 0

    # ---- the loop ---------------------------------------------------------------------------------------------

    def _before(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        with torch.no_grad():
            self.before_step(args[1:] if args and args[0] is optimizer else args, kwargs)

    def _after(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        self.steps += 1
        with torch.no_grad():
            self.after_step()

    def before_step(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:  # noqa: B027, as not all do something
        """What happens before a step of the optimizer, which is called with these arguments."""

    @abstractmethod
    def after_step(self) -> None:
        """What happens after the optimizer's step number `self.steps` (from 1)."""

    def rates(self) -> Iterator[tuple[float, dict[str, nn.Parameter]]]:
        """The present learning rate of each parameter group, and its parameters by name."""
        names = {p: name for name, p in self.parameters.items()}
        for group in self.optimizer.param_groups:
            yield float(group["lr"]), {names[p]: p for p in group["params"] if p in names}

    # ---- the end ----------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Takes everything out of the optimizer and ends the averager's thread. Every process calls it."""
        if self._hooks:
            self.finish()
            if self._synced_at < self.steps:
                name = type(self).__name__
                announce(f"{name} ends between synchronisations: the workers' models differ; {self.left}")
            self._remove()

    left: str = "call sync() before the end to average them"

    def finish(self) -> None:  # noqa: B027, as above
        """Completes what is in the air."""

    def _remove(self) -> None:
        for hook in self._hooks:
            hook.remove()
        self._hooks = []
        _held.discard(self.optimizer)
        self.averager.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self.close()
        elif self._hooks:
            self._remove()

    # ---- agreement and state ----------------------------------------------------------------------------------

    @abstractmethod
    def settings(self) -> dict[str, Any]:
        """What must be the same on all processes, and in a run that goes on from a state: numbers and text."""

    def _agree(self) -> None:
        """Compares the settings of all processes. Raises ValueError on all of them where they differ."""
        if not dist.is_initialized():
            raise ValueError(
                f"{type(self).__name__} : torch.distributed is not initialised; call init_process_group('gloo') first"
            )
        text = f"{type(self).__name__} {self.settings()}"
        digest = hashlib.blake2b(text.encode(), digest_size=7).digest()
        mine = torch.tensor([int.from_bytes(digest, "little")])
        everyone = [torch.empty_like(mine) for _ in range(dist.get_world_size())]
        dist.all_gather(everyone, mine)
        ranks = [rank for rank, other in enumerate(everyone) if int(other) != int(everyone[0])]
        if ranks:
            raise ValueError(
                f"rank {dist.get_rank()} : ranks {ranks} were given other settings than rank 0; here they are {text}"
            )

    def _everything(self) -> dict[str, Tensor]:
        return {name: t.detach() for name, t in (*self.model.named_parameters(), *self.model.named_buffers())}

    def state_dict(self) -> dict[str, Any]:
        """This process' part of the state: tensors, numbers and text, which are those in use, not copies.

        The worker's own model is in it, for between synchronisations it is like no other. The optimizer is not: save
        that of every process beside it.
        """
        return {
            "method": type(self).__name__,
            "settings": self.settings(),
            "rank": self.averager.rank,
            "world": self.averager.world,
            "steps": self.steps,
            "synced_at": self._synced_at,
            "averager": self.averager.state_dict(),
            "model": self._everything(),
            "own": self.own_state(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on from a state of this rank, and gives the worker its own model back.

        Raises
        ------
        ValueError : a state of another method, of other settings, of another rank or number of processes, of another
            model; one line that names what differs.
        """
        here = {"method": type(self).__name__, "world": self.averager.world, "rank": self.averager.rank}
        here |= self.settings()
        there = {key: state[key] for key in ("method", "world", "rank")} | state["settings"]
        differ = [f"{key} {there.get(key)!r} (here {here.get(key)!r})" for key in {**here, **there} if
                  there.get(key) != here.get(key)]  # fmt: skip
        if differ:
            raise ValueError(f"{type(self).__name__} : the state is of a run with {', '.join(differ)}")
        model = self._everything()
        shapes = {name: tuple(tensor.shape) for name, tensor in model.items()}
        saved = {name: tuple(tensor.shape) for name, tensor in state["model"].items()}
        if shapes != saved:
            names = sorted(name for name in {**shapes, **saved} if shapes.get(name) != saved.get(name))
            raise ValueError(f"{type(self).__name__} : the state is of another model; these differ: {', '.join(names)}")
        self.averager.load_state_dict(state["averager"])
        copy_into(model, state["model"])
        self.load_own_state(state["own"])
        self.steps, self._synced_at = int(state["steps"]), int(state["synced_at"])

    @abstractmethod
    def own_state(self) -> dict[str, Any]:
        """What the method keeps beside the model."""

    @abstractmethod
    def load_own_state(self, state: Mapping[str, Any]) -> None:
        """Takes back what `own_state` gave."""


def copy_into(tensors: Mapping[str, Tensor], values: Mapping[str, Tensor]) -> None:
    """Overwrites tensors with those of the same names."""
    with torch.no_grad():
        for name, tensor in tensors.items():
            tensor.copy_(values[name])


def dense_too(policy: Policy | Mechanism | str, names: Iterable[str]) -> Policy:
    """A policy that sends tensors with these names dense before anything else is looked at."""
    chosen = Policy.of(policy)
    if all(str(mechanism) == DENSE for mechanism in chosen.mechanisms):
        return Policy(DENSE, rules=())
    rules = tuple(Rule(DENSE, names=glob.escape(name)) for name in names)
    return dataclasses.replace(chosen, rules=(*rules, *chosen.rules))


def always_dense(plan: Plan) -> bool:
    """Whether a plan never compresses, so that a mean of models needs no point that they are measured from."""
    return all(str(mechanism) == DENSE for mechanism in (plan.mechanism, *(stage for _, stage in plan.stages)))


def at_least(who: str, name: str, value: int, least: int) -> int:
    """An integer that is large enough. Raises ValueError, one line, else."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ValueError(f"{who}({name}={value!r}) : {name} must be an integer >= {least}")
    return value


def between(who: str, name: str, value: float, low: float, high: float) -> float:
    """A number low < value <= high. Raises ValueError, one line, else."""
    if not low < value <= high:
        bound = f" and <= {high:g}" if math.isfinite(high) else ""
        raise ValueError(f"{who}({name}={value!r}) : {name} must be > {low:g}{bound}")
    return float(value)


def _refuse_model(who: str, model: nn.Module) -> None:
    if isinstance(model, DistributedDataParallel):
        raise ValueError(
            f"{who}(model) : DistributedDataParallel averages gradients at every step, and nothing is local; give "
            "model.module, and call that one in the loop (or the wrapped one under model.no_sync())"
        )


def _refuse_optimizer(who: str, optimizer: Optimizer, parameters: Mapping[str, nn.Parameter]) -> None:
    if not isinstance(optimizer, Optimizer):
        raise ValueError(f"{who}(optimizer) : it is a {type(optimizer).__name__}; give a torch.optim.Optimizer")
    if optimizer in _held:
        raise ValueError(f"{who}(optimizer) : local updates are at work on it already; close() those first")
    if not parameters:
        raise ValueError(f"{who}(model) : it has no parameter that requires a gradient")
    stepped = {p for group in optimizer.param_groups for p in group["params"]}
    missing = [name for name, p in parameters.items() if p not in stepped]
    if missing:
        raise ValueError(
            f"{who}(optimizer) : it does not have the parameters {', '.join(map(repr, missing[:5]))}"
            f"{' ...' if len(missing) > 5 else ''} of the model; add them, or freeze them by requires_grad_(False)"
        )
    strangers = len(stepped - set(parameters.values()))
    if strangers:
        raise ValueError(
            f"{who}(optimizer) : {strangers} of its tensors are no trainable parameters of the model, and would never "
            "be averaged; give them an optimizer of their own"
        )
