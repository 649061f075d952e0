"""ProxSkip and SCAFFOLD for networks: local steps of plain SGD whose drift control variates correct."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.optim import SGD, Optimizer

from laconic.core.link import Link
from laconic.core.mechanism import Mechanism
from laconic.core.problem import Block
from laconic.training.local_updates import LocalUpdates, at_least, between, copy_into
from laconic.training.policy import DENSE, Policy


def plain_sgd_only(who: str, optimizer: Optimizer) -> None:
    """Raises ValueError, one line, for an optimizer whose change is not minus the rate times the gradient."""
    reason = "control variates are made from the change of the model as a multiple of gradients"
    if not isinstance(optimizer, SGD):
        raise ValueError(
            f"{who}(optimizer) : {reason}, which {type(optimizer).__name__} does not keep to; use torch.optim.SGD "
            "without momentum, or LocalSGD or DiLoCo around this one"
        )
    for group in optimizer.param_groups:
        if group["momentum"] != 0.0:
            raise ValueError(
                f"{who}(optimizer) : {reason}, and momentum={group['momentum']} mixes in those of earlier models; use "
                "momentum=0, or LocalSGD or DiLoCo"
            )
        if group["maximize"]:
            raise ValueError(f"{who}(optimizer) : with maximize=True the change is no descent; minimise the negative")


class ProxSkip(LocalUpdates):
    """x^_i = x_i - lr (g_i - h_i); by a coin that all workers share, with probability p, x_i = mean x^_j, else x^_i;

    h_i <- h_i + (p / lr) (x_i - x^_i). The control variates h_i start at zero, keep sum h_i = 0, and learn grad f_i at
    the common minimum, which is why local steps here do not spoil the limit. The term lr h_i is added after the
    optimizer's step, so that ``p.grad`` stays what the backward pass left.

    Weight decay of SGD is part of g_i, and of the theory. For full gradients and strongly convex f_i the method needs
    about sqrt(kappa) instead of kappa averages (see `proxskip` of the catalogue); minibatches leave a floor, clipped
    gradients and rates that change are outside the theorem, and for networks there is none. Averages are dense: with
    compressed ones sum h_i = 0 would be lost.

    Parameters
    ----------
    model : as of :class:`~laconic.training.local.LocalSGD`.
    optimizer : torch.optim.SGD without momentum; the same learning rates on all processes.
    probability : of an average after a step, 0 < p <= 1; with 1 it is synchronous SGD.
    seed : of the coin, and of nothing else.
    timeout : of the averager.

    Raises
    ------
    ValueError : as of LocalSGD; another optimizer, momentum.

    Source: Mishchenko, Malinovsky, Stich and Richtarik (2022), 2202.09357, Algorithm 2 (Scaffnew).

    Examples
    --------
    >>> with ProxSkip(model, optimizer, probability=0.1):  # doctest: +SKIP
    ...     train(model, optimizer)  # the loop as it was, without DDP
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        *,
        probability: float,
        seed: int = 0,
        timeout: float = 60.0,
    ) -> None:
        plain_sgd_only("ProxSkip", optimizer)
        self.probability = between("ProxSkip", "probability", probability, 0.0, 1.0)
        super().__init__(model, optimizer, Policy(DENSE, rules=()), beside={}, seed=seed, window=1, timeout=timeout)
        self.control = {name: torch.zeros_like(p.detach()) for name, p in self.parameters.items()}
        self._coins = Link(Block.deal(1, 1)[0], seed)

    def settings(self) -> dict[str, Any]:
        return {"probability": self.probability}

    def after_step(self) -> None:
        for rate, group in self.rates():
            for name, p in group.items():
                p.add_(self.control[name], alpha=rate)
        self._coins.begin(self.steps)
        if self._coins.coin(self.probability):
            self.sync()

    def sync(self) -> None:
        """Averages the models now, as if the coin had said so. Every process calls it."""
        with torch.no_grad():
            means = {name: p.detach().clone() for name, p in self.parameters.items()}
            self.averager.average({**means, **self.buffers})
            for rate, group in self.rates():
                for name, p in group.items():
                    if rate > 0.0:
                        self.control[name].add_(means[name] - p, alpha=self.probability / rate)
                    p.copy_(means[name])
        self._synced_at = self.steps

    def own_state(self) -> dict[str, Any]:
        return {"control": self.control}

    def load_own_state(self, state: Mapping[str, Any]) -> None:
        copy_into(self.control, state["control"])


class SCAFFOLD(LocalUpdates):
    """`sync_every` local steps y_i <- y_i - lr (g_i - c_i + c) from the common x, and then, with option II,

    c_i+ = c_i - c + (x - y_i) / (sum of the rates), x <- x + server_step average (y_i - x), c <- c + average (c_i+ -
    c_i). The control variates start at zero; without compression c = mean c_i. All workers take part in every round.
    The term lr (c_i - c) is added after the optimizer's step, so that ``p.grad`` stays what the backward pass left.

    Two vectors per worker travel at a synchronisation, and both may be compressed. With error feedback c is then the
    mean of the c_i but for what is still owed, and no theorem is known. Weight decay of SGD is part of g_i, and of the
    theory; rates that change in the middle of a round are weighed (the paper's are constant).

    Parameters
    ----------
    model : as of :class:`~laconic.training.local.LocalSGD`.
    optimizer : torch.optim.SGD without momentum; the same learning rates on all processes.
    sync_every : local steps of a round, >= 1; with 1 and server_step 1 it is synchronous SGD.
    mechanism : for both vectors; those of control variates are named ``NAME.control``. Dense by default.
    server_step : > 0; 1 is averaging.
    seed, window, timeout : of the averager.

    Raises
    ------
    ValueError : as of LocalSGD; another optimizer, momentum.

    Source: Karimireddy, Kale, Mohri, Reddi, Stich and Suresh (2019), 1910.06378, Algorithm 1.

    Examples
    --------
    >>> with SCAFFOLD(model, optimizer, sync_every=10):  # doctest: +SKIP
    ...     train(model, optimizer)  # the loop as it was, without DDP
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        *,
        sync_every: int,
        mechanism: Policy | Mechanism | str = DENSE,
        server_step: float = 1.0,
        seed: int = 0,
        window: int = 4,
        timeout: float = 60.0,
    ) -> None:
        plain_sgd_only("SCAFFOLD", optimizer)
        self.sync_every = at_least("SCAFFOLD", "sync_every", sync_every, 1)
        self.server_step = between("SCAFFOLD", "server_step", server_step, 0.0, math.inf)
        beside = {f"{name}.control": p for name, p in model.named_parameters() if p.requires_grad}
        super().__init__(model, optimizer, mechanism, beside=beside, seed=seed, window=window, timeout=timeout)
        self.anchor = {name: p.detach().clone() for name, p in self.parameters.items()}  # x
        self.mean = {name: torch.zeros_like(p.detach()) for name, p in self.parameters.items()}  # c
        self.correction = {name: torch.zeros_like(p.detach()) for name, p in self.parameters.items()}  # c_i - c
        self.walked = [0.0 for _ in optimizer.param_groups]  # the sum of the rates in this round

    def settings(self) -> dict[str, Any]:
        return {"sync_every": self.sync_every, "server_step": self.server_step}

    def after_step(self) -> None:
        for place, (rate, group) in enumerate(self.rates()):
            self.walked[place] += rate
            for name, p in group.items():
                p.add_(self.correction[name], alpha=rate)
        if self.steps % self.sync_every == 0:
            self.sync()

    def sync(self) -> None:
        """Ends the round now, whatever the step. Every process calls it; the schedule stays as it is."""
        walked = {
            name: rates for rates, (_, group) in zip(self.walked, self.rates(), strict=True) for name in group if rates
        }
        with torch.no_grad():
            changes = {name: self.parameters[name].detach() - self.anchor[name] for name in walked}
            renewed = {name: change.div(-walked[name]) for name, change in changes.items()}  # c_i+ - c_i + c
            sent = {f"{name}.control": direction - self.mean[name] for name, direction in renewed.items()}
            if walked:
                self.averager.average({**changes, **sent, **self.buffers})
            for name, change in changes.items():
                self.mean[name].add_(sent[f"{name}.control"])
                self.correction[name].add_(renewed[name]).sub_(self.mean[name])
                self.parameters[name].copy_(self.anchor[name].add_(change, alpha=self.server_step))
        self.walked = [0.0 for _ in self.walked]
        self._synced_at = self.steps

    def own_state(self) -> dict[str, Any]:
        return {"anchor": self.anchor, "mean": self.mean, "correction": self.correction, "walked": self.walked}

    def load_own_state(self, state: Mapping[str, Any]) -> None:
        for name in ("anchor", "mean", "correction"):
            copy_into(getattr(self, name), state[name])
        self.walked = [float(rates) for rates in state["walked"]]
