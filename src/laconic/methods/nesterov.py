"""Nesterov's accelerated gradient method, over a mechanism."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Annotated

from torch import Tensor

from laconic.core.compressor import as_unbiased
from laconic.core.entry import Interval, Source
from laconic.core.method import number
from laconic.core.rows import square
from laconic.core.theory import Guarantee, NoTheorem, Setting, Snapshot, Terms, estimates, known
from laconic.mechanisms.direct import Direct
from laconic.methods._descent import Descent


@dataclass(frozen=True)
class Nesterov(Descent):
    """x+ = y - step g(y), y+ = x+ + b (x+ - x), with b = (1 - sqrt(q)) / (1 + sqrt(q)), q = step mu.

    Guarantee without compression, f mu-strongly convex: step <= 1 / L, and
    f(x_k) - f* <= (1 - sqrt(mu / L))^k (f(x_0) - f* + (mu / 2) ||x_0 - x*||^2). The Lyapunov function is
    f(x) - f* + (mu / 2) ||z - x*||^2 with z = y + (y - x) / sqrt(q). With a mechanism there is no theorem.

    Parameters
    ----------
    mechanism, step, estimator, down, schedule : as of `gd`; step None is 1 / L.
    momentum : b; None is the theorem's.

    >>> str(Nesterov())
    'nesterov'
    """

    momentum: Annotated[float | None, Interval(0.0, 1.0, open="high")] = None

    name = "nesterov"
    aliases = ("agd",)
    example = "nesterov"
    source = Source(
        "Nesterov", 2004, "Introductory lectures on convex optimization", where="Scheme 2.2.9, Theorem 2.2.3"
    )

    def settled(self, setting: Setting) -> Nesterov:
        method = super().settled(setting)
        assert isinstance(method, Nesterov)
        if self.momentum is not None:
            return method
        (mu,) = known(mu=setting.constants.mu)
        root = math.sqrt(number(method.step) * mu)
        return dataclasses.replace(method, momentum=(1.0 - root) / (1.0 + root))

    def promise(self, setting: Setting, step: float | None) -> Guarantee:
        direct = self.mechanism.compressor if isinstance(self.mechanism, Direct) else None
        if direct is None or as_unbiased(direct.claim(setting.d, setting.n)) != 0.0:
            raise NoTheorem(
                f"no theorem covers {self}: acceleration needs exact gradients; give explicit step and momentum"
            )
        c = setting.constants
        smooth, mu = known(L=c.L, mu=c.mu)
        root = math.sqrt((step or 1.0 / smooth) * mu)
        momentum = (1.0 - root) / (1.0 + root)
        if self.momentum is not None and abs(self.momentum - momentum) > 1e-12:
            raise NoTheorem(f"the theorem of {self} needs momentum={momentum:.6g}; give explicit step and momentum")

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

    def ahead(self, x: Tensor, before: Tensor, rule: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        y = x + number(self.momentum) * (x - before)
        return y, {"ahead": y}
