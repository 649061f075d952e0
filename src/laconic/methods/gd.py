"""Gradient descent over a mechanism over an estimator."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from torch import Tensor

from laconic.broadcasts.exact import Exact
from laconic.core.entry import Source
from laconic.core.theory import Guarantee, NoTheorem, Setting
from laconic.methods._descent import Descent


@dataclass(frozen=True)
class GD(Descent):
    """x <- x - step g, then the model goes down, workers estimate their gradients, and the mechanism makes the next g.

    The first g comes from the mechanism's start at x^0. Mechanisms whose estimate is public need no broadcast. On a
    problem with a regulariser r the step is proximal: x <- prox_(step r)(x - step g). The theorems of `direct` and
    `diana` hold there too, in the distance: the proximal operator is non-expansive, and x* a fixed point of the exact
    step.

    Parameters
    ----------
    mechanism : how n vectors become one estimate; the default averages them, which is gradient descent.
    step : None is the theorem's, "4x" four times it.
    estimator : how workers estimate their gradients.
    down : how the model reaches the workers.
    schedule : how the step changes over the run.

    >>> str(GD(step="4x"))
    "gd(step='4x')"
    """

    name = "gd"
    aliases = ("proximal_gd",)
    example = "gd(ef21(topk(k=0.05)), step='4x')"
    proximal = True
    source = Source("Cauchy", 1847, "Méthode générale pour la résolution des systèmes d'équations simultanées")

    def promise(self, setting: Setting, step: float | None) -> Guarantee:
        if not setting.composite:
            return self.down.guarantee(setting, self.mechanism, self.estimator, step)
        if not (self.mechanism.proximal and isinstance(self.down, Exact)):
            raise NoTheorem(
                f"no theorem of {self} covers problems with a regulariser; give an explicit step, or use direct or "
                "diana, with down=exact"
            )
        promise = self.mechanism.guarantee(setting, self.estimator, step)
        assumes = (*promise.assumes, "regulariser convex")
        # a distance bounds the gap of a smooth f alone
        return dataclasses.replace(promise, gap_factor=None, assumes=assumes)

    def move(
        self, x: Tensor, g: Tensor, rule: dict[str, Tensor], step: float, iteration: int
    ) -> tuple[Tensor, dict[str, Tensor]]:
        return x - step * g, rule
