"""Nesterov's accelerated gradient method, over a mechanism."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Annotated

from torch import Tensor

from laconic.core.entry import Interval, Source
from laconic.core.method import number
from laconic.core.rows import square
from laconic.core.theory import Guarantee, NoTheorem, Setting, Snapshot, Terms, estimates, known
from laconic.methods._descent import Descent


@dataclass(frozen=True)
class Nesterov(Descent):
    """x+ = y - step g(y), y+ = x+ + b (x+ - x), with b = (1 - sqrt(q)) / (1 + sqrt(q)), q = step mu.

    On a problem with a regulariser r the step is proximal, x+ = prox_(step r)(y - step g(y)), which is FISTA for
    strongly convex functions. Workers take their gradients at y, which is what goes down.

    Guarantee for exact gradients, f mu-strongly convex, r convex: step <= 1 / L, and with F = f + r
    F(x_k) - F* <= (1 - sqrt(q))^k (F(x_0) - F* + (mu / 2) ||x_0 - x*||^2). The Lyapunov function is
    F(x) - F* + (mu / 2) ||z - x*||^2 with z = y + (y - x) / sqrt(q). With compression on either way, or with
    estimates of gradients, there is no theorem: errors accumulate with the momentum.

    Parameters
    ----------
    mechanism, step, estimator, down, schedule : as of `gd`; step None is 1 / L.
    momentum : b; None is the theorem's.

    >>> str(Nesterov())
    'nesterov'
    """

    momentum: Annotated[float | None, Interval(0.0, 1.0, open="high")] = None

    name = "nesterov"
    aliases = ("agd", "fista")
    example = "nesterov"
    proximal = True
    source = Source(
        "Nesterov",
        2004,
        "Introductory lectures on convex optimization",
        where="Scheme 2.2.9, Theorem 2.2.3; with a regulariser Beck (2017), First-order methods in optimization, "
        "Theorem 10.42",
    )

    def settled(self, setting: Setting) -> Nesterov:
        method = super().settled(setting)
        assert isinstance(method, Nesterov)
        if self.momentum is not None:
            return method
        (mu,) = known(mu=setting.constants.mu)
        return dataclasses.replace(method, momentum=_momentum(_root(number(method.step), mu)))

    def promise(self, setting: Setting, step: float | None) -> Guarantee:
        if not self.plain(setting):
            raise NoTheorem(
                f"no theorem covers {self}: acceleration needs exact gradients; give explicit step and momentum"
            )
        c = setting.constants
        smooth, mu = known(L=c.L, mu=c.mu)
        root = _root(1.0 / smooth if step is None else step, mu)
        if self.momentum is not None and abs(self.momentum - _momentum(root)) > 1e-12:
            raise NoTheorem(
                f"the theorem of {self} needs momentum={_momentum(root):.6g}; give explicit step and momentum"
            )

        def lyapunov(snapshot: Snapshot) -> Terms:
            state = snapshot.state
            y = state.rule["ahead"]
            z = y + (y - state.x) / root
            return Terms(snapshot.gap + 0.5 * mu * square(z - snapshot.solution.x))

        return Guarantee(
            1.0 / smooth,
            self.source,
            1.0 - root,
            lyapunov,
            0.0,
            1.0,
            ("f strongly convex and smooth",),
            leans_on=estimates(L=c.L, mu=c.mu),
        )

    def first(self, x: Tensor) -> dict[str, Tensor]:
        return {"ahead": x}

    def move(
        self, x: Tensor, g: Tensor, rule: dict[str, Tensor], step: float, iteration: int
    ) -> tuple[Tensor, dict[str, Tensor]]:
        return rule["ahead"] - step * g, rule

    def ahead(self, x: Tensor, before: Tensor) -> Tensor:
        return x + number(self.momentum) * (x - before)

    def adopt(self, x: Tensor, point: Tensor, rule: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        return x, {"ahead": point}


def _root(step: float, mu: float) -> float:
    """sqrt(q); a step beyond 1 / mu, which no theorem allows, gets no momentum."""
    return math.sqrt(min(step * mu, 1.0))


def _momentum(root: float) -> float:
    return (1.0 - root) / (1.0 + root)
