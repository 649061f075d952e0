"""DiLoCo: many local steps of an inner optimizer, and Nesterov's momentum on the mean change."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from torch import Tensor

from laconic.core.entry import Count, Interval, Source
from laconic.core.estimator import Estimate, Probe
from laconic.core.link import Link
from laconic.core.mechanism import Need
from laconic.core.problem import Oracles
from laconic.core.state import Worker
from laconic.core.theory import Setting
from laconic.methods._descent import Descent
from laconic.methods._local import walk

_SOURCE = Source(
    "Douillard, Feng, Rusu, Chhaparia, Donchev, Kuncoro, Ranzato, Szlam, Shen",
    2023,
    "DiLoCo: distributed low-communication training of language models",
    "2311.08105",
    "Algorithm 1",
)


@dataclass(frozen=True)
class _Outer(Descent):
    """b <- momentum b + g and x <- x - server_step (g + momentum b), g the mechanism's mean of x - y_i."""

    local_steps: Annotated[int, Count(1)] = 20
    server_step: Annotated[float, Interval(0.0, open="low")] = 0.7
    momentum: Annotated[float, Interval(0.0, 1.0, open="high")] = 0.9

    def refuse(self, setting: Setting) -> None:
        super().refuse(setting)
        if self.mechanism.takes_step or Need.PROBE in self.mechanism.needs:
            what = "hands out finished steps" if self.mechanism.takes_step else f"needs {Need.PROBE.value}"
            raise ValueError(
                f"{self} gives momentum to an estimate of the mean change, and {self.mechanism} {what}; use a "
                "mechanism that estimates means of vectors, such as direct, ef21 or diana"
            )

    @abstractmethod
    def _walked(self, first: Estimate, x: Tensor, inner: Any, oracles: Oracles, link: Link) -> tuple[Tensor, Any]:
        """x - y_i after the local steps (local, *shape), from the estimate at x, and what workers keep."""

    @abstractmethod
    def _rested(self, x: Tensor, local: int) -> Any:
        """The inner optimizer's state before its first step."""

    def begin(self, x: Tensor, oracles: Oracles, link: Link) -> Estimate:
        return self._change(super().begin(x, oracles, link), x, self._rested(x, link.local), oracles, link)

    def work(self, x: Tensor, kept: Any, oracles: Oracles, link: Link) -> Estimate:
        return self._change(super().work(x, kept["estimator"], oracles, link), x, kept["inner"], oracles, link)

    def _change(self, first: Estimate, x: Tensor, inner: Any, oracles: Oracles, link: Link) -> Estimate:
        change, kept = self._walked(first, x, inner, oracles, link)
        return Estimate(change, kept, Probe(x, oracles.gradients, oracles.gradients))

    def first(self, x: Tensor) -> dict[str, Tensor]:
        return {"momentum": torch.zeros_like(x)}

    def _outer(self, iteration: int) -> float:
        return self.server_step

    def move(
        self, x: Tensor, g: Tensor, rule: dict[str, Tensor], step: float, iteration: int
    ) -> tuple[Tensor, dict[str, Tensor]]:
        b = self.momentum * rule["momentum"] + g
        return x - step * (g + self.momentum * b), {"momentum": b}


@dataclass
class Moments:
    """AdamW of each worker. What 1 - beta^t is, is kept as beta^t, which no two processors can compute differently."""

    mean: Worker  # (local, *shape)
    square: Worker  # (local, *shape)
    left1: Worker  # beta1^t, (local,)
    left2: Worker  # beta2^t, (local,)


@dataclass(frozen=True)
class DiLoCo(_Outer):
    """Each worker takes local_steps steps of AdamW from x, on its own data and with moments that it keeps for itself;

    with g = mean (x - y_i), b <- momentum b + g and x <- x - server_step (g + momentum b), which is the Nesterov
    momentum of torch.optim.SGD(nesterov=True). The arithmetic of the inner steps is that of torch.optim.AdamW. The
    first changes are those from the start. Averaging the workers' moments would be another method.

    There is no theorem, and the step must be given. In the limit x is not x*, and with AdamW depends on its units.

    Parameters
    ----------
    mechanism : carries the changes x - y_i; not one with the step inside its memory, nor one that asks for a probe.
    step : of the inner steps, explicit; about the distance that a coordinate moves in each.
    estimator, down, schedule : as of `gd`; the schedule is that of the inner steps, by rounds.
    local_steps : per round; the paper takes about 500.
    server_step, momentum : of the outer steps.
    beta1, beta2, epsilon : of the inner AdamW.
    decay : weight decay of the inner AdamW, which pulls x to zero; the paper takes 0.1 for language models.

    >>> str(DiLoCo(step=0.01))
    'diloco(step=0.01)'
    """

    beta1: Annotated[float, Interval(0.0, 1.0, open="high")] = 0.9
    beta2: Annotated[float, Interval(0.0, 1.0, open="high")] = 0.999
    epsilon: Annotated[float, Interval(0.0, open="low")] = 1e-8
    decay: Annotated[float, Interval(0.0)] = 0.0

    name = "diloco"
    example = "diloco(step=0.01, local_steps=4)"
    source = _SOURCE

    def _rested(self, x: Tensor, local: int) -> Moments:
        zeros, ones = x.new_zeros(local, *x.shape), x.new_ones(local)
        return Moments(zeros, zeros.clone(), ones, ones.clone())

    def _walked(
        self, first: Estimate, x: Tensor, inner: Moments, oracles: Oracles, link: Link
    ) -> tuple[Tensor, dict[str, Any]]:
        step, estimate, y = self._at(link.step), first, x.expand(link.local, *x.shape)
        for turn in range(self.local_steps):
            if turn:
                estimate = self.estimator.estimate(y, estimate.state, oracles, link)
            inner = self._moved(inner, estimate.v)
            y = y * (1.0 - step * self.decay) - step * self._direction(inner)
        return x - y, {"estimator": estimate.state, "inner": inner}

    def _moved(self, inner: Moments, v: Tensor) -> Moments:
        mean = inner.mean + (1.0 - self.beta1) * (v - inner.mean)
        square = self.beta2 * inner.square + (1.0 - self.beta2) * (v * v)
        return Moments(mean, square, self.beta1 * inner.left1, self.beta2 * inner.left2)

    def _direction(self, inner: Moments) -> Tensor:
        per_row = (-1, *[1] * (inner.mean.dim() - 1))
        scale = inner.square.sqrt() / (1.0 - inner.left2).sqrt().view(per_row) + self.epsilon
        return inner.mean / (1.0 - inner.left1).view(per_row) / scale


@dataclass(frozen=True)
class DiLoCoSGD(_Outer):
    """DiLoCo whose inner steps are plain, y_i <- y_i - step v_i(y_i).

    With server_step 1 and momentum 0 it is `local_sgd`; with one local step too it is `gd`. Every server_step and
    momentum share `local_sgd`'s limit, which is not x*, for in all of them it is where mean (x - y_i) vanishes; the
    momentum reaches it sooner. There is no theorem, and the step must be given.

    Parameters
    ----------
    mechanism, step, estimator, down, schedule, local_steps, server_step, momentum : as of `diloco`.

    >>> str(DiLoCoSGD(step=0.01))
    'diloco_sgd(step=0.01)'
    """

    name = "diloco_sgd"
    example = "diloco_sgd(step=0.05, local_steps=4)"
    source = _SOURCE

    def _rested(self, x: Tensor, local: int) -> None:
        return None

    def _walked(
        self, first: Estimate, x: Tensor, inner: None, oracles: Oracles, link: Link
    ) -> tuple[Tensor, dict[str, Any]]:
        step = self._at(link.step)
        total, kept = walk(first, x, self.local_steps, step, self.estimator, oracles, link)
        return step * total, {"estimator": kept, "inner": None}
