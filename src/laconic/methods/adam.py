"""Adam and AMSGrad on the estimate: steps scaled coordinate by coordinate, at the server."""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor

from laconic.core.entry import Interval, Source
from laconic.core.theory import Setting
from laconic.methods._descent import Descent


@dataclass(frozen=True)
class _Adaptive(Descent):
    """x <- x - step m^ / (sqrt(s^) + epsilon), elementwise; variants differ in what they divide by.

    m <- beta1 m + (1 - beta1) g and s <- beta2 s + (1 - beta2) g^2 start at zero, and m^ = m / (1 - beta1^k),
    s^ = s / (1 - beta2^k) in the k-th step correct for that.
    """

    beta1: Annotated[float, Interval(0.0, 1.0, open="high")] = 0.9
    beta2: Annotated[float, Interval(0.0, 1.0, open="high")] = 0.999
    epsilon: Annotated[float, Interval(0.0, open="low")] = 1e-8

    def refuse(self, setting: Setting) -> None:
        super().refuse(setting)
        if self.mechanism.takes_step:
            raise ValueError(
                f"{self} scales its steps by the estimate itself, and {self.mechanism} hands out finished steps; "
                "use a mechanism that estimates gradients, such as ef21"
            )

    def move(
        self, x: Tensor, g: Tensor, rule: dict[str, Tensor], step: float, iteration: int
    ) -> tuple[Tensor, dict[str, Tensor]]:
        mean = rule["mean"] + (1.0 - self.beta1) * (g - rule["mean"])
        square = self.beta2 * rule["square"] + (1.0 - self.beta2) * (g * g)
        by, kept = self._divisor(square, rule)
        turn = iteration + 1
        scale = by.sqrt() / math.sqrt(1.0 - self.beta2**turn) + self.epsilon
        return x - step / (1.0 - self.beta1**turn) * (mean / scale), {"mean": mean, "square": square, **kept}

    def first(self, x: Tensor) -> dict[str, Tensor]:
        return {"mean": torch.zeros_like(x), "square": torch.zeros_like(x)}

    @abstractmethod
    def _divisor(self, square: Tensor, rule: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """The second moment to divide by, and what to keep of it."""


@dataclass(frozen=True)
class Adam(_Adaptive):
    """m <- beta1 m + (1 - beta1) g, s <- beta2 s + (1 - beta2) g^2, x <- x - step m^ / (sqrt(s^) + epsilon).

    m^ and s^ are m and s, which start at zero, divided by 1 - beta1^k and 1 - beta2^k in the k-th step. Everything is
    elementwise and happens at the server, on the mechanism's estimate g; the arithmetic is that of torch.optim.Adam
    (bias corrections outside the root). There is no theorem about it over a compressing mechanism, and Adam itself
    diverges on some convex problems, so the step must be given.

    Parameters
    ----------
    mechanism, estimator, down, schedule : as of `gd`; not a mechanism with the step inside its memory.
    step : explicit; about the distance that a coordinate moves per iteration.
    beta1, beta2 : memory of the mean and of the mean square.
    epsilon : added to the root, in units of the gradient.

    >>> from laconic.mechanisms.ef21 import EF21
    >>> from laconic.compressors.topk import TopK
    >>> str(Adam(EF21(TopK(k=0.05)), step=0.01))
    'adam(ef21(topk(k=0.05)), step=0.01)'
    """

    name = "adam"
    example = "adam(ef21(topk(k=0.05)), step=0.01)"
    source = Source("Kingma, Ba", 2014, "Adam: a method for stochastic optimization", "1412.6980", "Algorithm 1")

    def _divisor(self, square: Tensor, rule: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        return square, {}


@dataclass(frozen=True)
class AMSGrad(_Adaptive):
    """Adam that divides by the largest s so far, so that no coordinate's step grows again.

    As in torch.optim.Adam(amsgrad=True), the maximum is taken before the bias correction. The step must be given.

    Parameters
    ----------
    mechanism, step, estimator, down, schedule, beta1, beta2, epsilon : as of `adam`.

    >>> str(AMSGrad(step=0.01))
    'amsgrad(step=0.01)'
    """

    name = "amsgrad"
    example = "amsgrad(step=0.01)"
    source = Source("Reddi, Kale, Kumar", 2018, "On the convergence of Adam and beyond", "1904.09237", "Algorithm 2")

    def first(self, x: Tensor) -> dict[str, Tensor]:
        return super().first(x) | {"largest": torch.zeros_like(x)}

    def _divisor(self, square: Tensor, rule: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        largest = torch.maximum(rule["largest"], square)
        return largest, {"largest": largest}
