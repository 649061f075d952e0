"""LocalSGD and post-local SGD for networks: the workers' models are averaged now and then."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from laconic.core.mechanism import Mechanism
from laconic.training.local_updates import LocalUpdates, always_dense, at_least, copy_into, dense_too
from laconic.training.policy import DENSE, Policy


class _ModelAveraging(LocalUpdates):
    """x_i <- a + average (x_i - a), with a the model of the last synchronisation, and some entries of the optimizer's
    state averaged beside it. Tensors that are never compressed need no a: their mean is that of the x_i.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        mechanism: Policy | Mechanism | str,
        state: Sequence[str],
        *,
        beside: Mapping[str, Tensor],
        seed: int,
        window: int,
        timeout: float,
    ) -> None:
        self.averaged_state = tuple(state)
        mine = {f"{name}.{entry}": p for name, p in model.named_parameters() if p.requires_grad for entry in state}
        beside = {**mine, **beside}
        chosen = dense_too(mechanism, beside)
        super().__init__(model, optimizer, chosen, beside=beside, seed=seed, window=window, timeout=timeout)
        plans = self.averager.plans
        self.anchor = {name: p.detach().clone() for name, p in self.parameters.items() if not always_dense(plans[name])}

    def sync(self) -> None:
        """Averages the models now, whatever the step. Every process calls it; the schedule stays as it is."""
        with torch.no_grad():
            tensors = {
                name: p.detach() - self.anchor[name] if name in self.anchor else p.detach()
                for name, p in self.parameters.items()
            }
            self.averager.average({**tensors, **self._entries(), **self.buffers})
            for name, anchor in self.anchor.items():
                self.parameters[name].copy_(anchor.add_(tensors[name]))
        self._synced_at = self.steps

    def _entries(self) -> dict[str, Tensor]:
        """The entries of the optimizer's state that are averaged."""
        found = {}
        for name, p in self.parameters.items():
            kept = self.optimizer.state.get(p, {})
            for entry in self.averaged_state:
                tensor = kept.get(entry)
                if not isinstance(tensor, Tensor) or tensor.shape != p.shape:
                    tensors = [key for key, value in kept.items() if isinstance(value, Tensor)]
                    raise ValueError(
                        f"{type(self).__name__}(average_state={self.averaged_state}) : the optimizer has no {entry!r} "
                        f"of the shape of {name!r}; but {', '.join(tensors) or 'nothing'}"
                    )
                found[f"{name}.{entry}"] = tensor
        return found

    def own_state(self) -> dict[str, Any]:
        return {"anchor": self.anchor}

    def load_own_state(self, state: Mapping[str, Any]) -> None:
        copy_into(self.anchor, state["anchor"])


class LocalSGD(_ModelAveraging):
    """After every `sync_every`-th step of the optimizer the workers' models are averaged.

    x_i <- a + average (x_i - a), where a is the model that all had at the last synchronisation and the average is a
    mechanism's: changes may be compressed, with error feedback in units of the model. Without compression it is the
    mean of the models, and a is not kept. With ``sync_every=1`` and plain SGD it is synchronous SGD, up to rounding.

    Each worker keeps its momentum or moments for itself, unless `average_state` names them. Guarantees are known for
    plain SGD alone (see `local_sgd` of the catalogue): where workers' data differ, the limit is not the minimum, by
    an amount that grows with the learning rate and `sync_every`.

    Parameters
    ----------
    model : the plain module; its parameters must be in the optimizer.
    optimizer : any; its `step` is what is counted.
    sync_every : steps between two averages, >= 1.
    mechanism : for the changes, as a spec, a Mechanism or a Policy; dense by default.
    average_state : entries of the optimizer's state that are averaged (densely) with the models, such as
        ("momentum_buffer",) of SGD or ("exp_avg", "exp_avg_sq") of Adam.
    seed, window, timeout : of the averager.

    Raises
    ------
    ValueError : a model inside DistributedDataParallel, parameters that the optimizer does not have or tensors that
        the model does not have, a mechanism that needs more than vectors, settings that differ between processes.

    Source: Stich (2018), 1805.09767; as FedAvg, McMahan, Moore, Ramage, Hampson and Aguera y Arcas (2016), 1602.05629.

    Examples
    --------
    >>> with LocalSGD(model, optimizer, sync_every=8, mechanism="ef14(topk(k=0.01))"):  # doctest: +SKIP
    ...     train(model, optimizer)  # the loop as it was, without DDP
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        *,
        sync_every: int,
        mechanism: Policy | Mechanism | str = DENSE,
        average_state: Sequence[str] = (),
        seed: int = 0,
        window: int = 4,
        timeout: float = 60.0,
    ) -> None:
        self.sync_every = at_least("LocalSGD", "sync_every", sync_every, 1)
        super().__init__(
            model, optimizer, mechanism, average_state, beside={}, seed=seed, window=window, timeout=timeout
        )

    def after_step(self) -> None:
        if self.steps % self.sync_every == 0:
            self.sync()

    def settings(self) -> dict[str, Any]:
        return {"sync_every": self.sync_every, "average_state": ",".join(self.averaged_state)}


class PostLocalSGD(_ModelAveraging):
    """Gradients are averaged in each of the first `start` steps; from then on it is LocalSGD.

    The first steps, in which a model moves fast, are those of synchronous data parallelism: densely averaged
    gradients, and the same model on every worker, bit for bit. After them the models are averaged after each
    `sync_every`-th step, counted from `start`. The paper starts where the learning rate first falls. Its hierarchical
    form, in which the processes of one machine go on averaging gradients, is not here: each process is a worker.

    A parameter without a gradient counts with zeros in the first steps. Buffers are averaged in each of them.

    Parameters
    ----------
    start : steps with averaged gradients, >= 0.
    model, optimizer, sync_every, mechanism, average_state, seed, window, timeout : as of :class:`LocalSGD`.

    Raises
    ------
    ValueError : as of LocalSGD; ``optimizer.step(closure)`` in the first steps, for a closure computes gradients
        after they were averaged.

    Source: Lin, Stich, Patel and Jaggi (2018), 1808.07217, Algorithm 1.

    Examples
    --------
    >>> with PostLocalSGD(model, optimizer, sync_every=8, start=1000):  # doctest: +SKIP
    ...     train(model, optimizer)  # the loop as it was, without DDP
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        *,
        sync_every: int,
        start: int,
        mechanism: Policy | Mechanism | str = DENSE,
        average_state: Sequence[str] = (),
        seed: int = 0,
        window: int = 4,
        timeout: float = 60.0,
    ) -> None:
        self.sync_every = at_least("PostLocalSGD", "sync_every", sync_every, 1)
        self.start = at_least("PostLocalSGD", "start", start, 0)
        beside = {f"{name}.grad": p for name, p in model.named_parameters() if p.requires_grad}
        super().__init__(
            model, optimizer, mechanism, average_state, beside=beside, seed=seed, window=window, timeout=timeout
        )

    def before_step(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if self.steps >= self.start:
            return
        if any(argument is not None for argument in (*args, kwargs.get("closure"))):
            raise ValueError(
                f"PostLocalSGD(start={self.start}) : optimizer.step(closure) computes gradients after the averaging; "
                "compute them before, and call optimizer.step()"
            )
        gradients = {}
        for name, p in self.parameters.items():
            if p.grad is None:
                p.grad = torch.zeros_like(p)
            gradients[f"{name}.grad"] = p.grad
        self.averager.average({**gradients, **self.buffers})

    def after_step(self) -> None:
        if self.steps <= self.start:
            self._synced_at = self.steps
            if self.steps == self.start:
                copy_into(self.anchor, {name: p.detach() for name, p in self.parameters.items()})
        elif (self.steps - self.start) % self.sync_every == 0:
            self.sync()

    def settings(self) -> dict[str, Any]:
        state = ",".join(self.averaged_state)
        return {"sync_every": self.sync_every, "start": self.start, "average_state": state}
