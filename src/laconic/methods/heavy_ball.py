"""Polyak's heavy ball over a mechanism; over EF21 it is EF21-HB."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor

from laconic.broadcasts.exact import Exact
from laconic.core.entry import Interval, Source
from laconic.core.mechanism import full_gradients_only
from laconic.core.method import number
from laconic.core.rows import square
from laconic.core.theory import Guarantee, NoTheorem, Setting, Snapshot, Terms, estimates, known
from laconic.mechanisms.ef21 import EF21, contraction
from laconic.methods._descent import Descent

_EF21_HB = Source(
    "Fatkhullin, Sokolov, Gorbunov, Li, Richtarik",
    2021,
    "EF21 with bells & whistles: practical algorithmic extensions of modern error feedback",
    "2110.03294",
    "EF21-HB",
)
_CONVEX = Source(
    "Ghadimi, Feyzmahdavian, Johansson",
    2014,
    "Global convergence of the heavy-ball method for convex optimization",
    "1412.7457",
    "Theorem 1; strongly convex with constants derived anew",
)


@dataclass(frozen=True)
class HeavyBall(Descent):
    """v <- momentum v + g, x <- x - step v, with v^0 = g^0; momentum 0 is gradient descent.

    Guarantees, with L, mu of f, b = momentum / (1 - momentum), a = step / (1 - momentum), D = x - x_previous:

    exact gradients, f quadratic, 1 - sqrt(momentum) <= sqrt(step mu) and sqrt(step L) <= 1 + sqrt(momentum):
    ||e||^2 - (1 + momentum) <e, e'> + step <grad f(x), e'> + momentum ||e'||^2, with e = x - x* and e' the same one
    iteration before, is multiplied by exactly `momentum` in every iteration (the characteristic roots are complex and
    of modulus sqrt(momentum)). Polyak's choice makes both conditions equalities.

    exact gradients, f strongly convex: step <= (1 - momentum) / (2 L), and
    ||x + b D - a grad f(x) - x*||^2 + 2 a b (f(x) - f*) + ||D+||^2 / (2 (1 - momentum)), with D+ the next D, contracts
    by 1 - min(3 a mu / 8, 1 / (4 b^2 + 3 b + 1)). Derived anew: Polyak's argument is local.

    exact gradients, f convex: step <= (1 - momentum) / L, and the uniform average of x_0, ..., x_K has
    f - f* <= (||x_0 - x*||^2 / (2 a) + b (f(x_0) - f*)) / (K + 1).

    EF21 (then it is EF21-HB), f smooth: step <= 1 / ((1 + momentum) L / (2 (1 - momentum)^2)
    + L~ sqrt((2 beta / theta) (1 + 4 momentum^2 / (1 - momentum)^2)) / (1 - momentum)); recalled from the paper.

    Parameters
    ----------
    mechanism, step, estimator, down, schedule : as of `gd`.
    momentum : None is Polyak's for quadratics, (sqrt(L) - sqrt(mu))^2 / (sqrt(L) + sqrt(mu))^2 at the theorem's step.

    >>> str(HeavyBall(step=0.1))
    'heavy_ball(step=0.1)'
    """

    momentum: Annotated[float | None, Interval(0.0, 1.0, open="high")] = 0.9

    name = "heavy_ball"
    aliases = ("polyak", "momentum")
    example = "heavy_ball(ef21(topk(k=0.05)), momentum=0.5)"
    source = Source("Polyak", 1964, "Some methods of speeding up the convergence of iteration methods")

    def settled(self, setting: Setting) -> HeavyBall:
        method = super().settled(setting)
        assert isinstance(method, HeavyBall)
        if self.momentum is not None:
            return method
        smooth, mu = _of_a_quadratic(self, setting)
        return dataclasses.replace(method, momentum=_polyaks(number(method.step), smooth, mu))

    def promise(self, setting: Setting, step: float | None) -> Guarantee:
        if self.momentum == 0.0:
            return self.down.guarantee(setting, self.mechanism, self.estimator, step)
        if self.plain(setting):
            return self._of_exact_gradients(setting, step)
        if type(self.mechanism) is not EF21 or not isinstance(self.down, Exact):
            raise NoTheorem(
                f"no theorem covers {self}: momentum has theorems over exact gradients and over ef21 with down=exact; "
                "give an explicit step"
            )
        if self.momentum is None:
            raise NoTheorem(f"no theorem chooses the momentum of {self}; give one, such as momentum=0.9")
        full_gradients_only(self.mechanism, self.estimator)
        return _ef21_hb(setting, self.mechanism, self.momentum)

    def _of_exact_gradients(self, setting: Setting, step: float | None) -> Guarantee:
        c = setting.constants
        if self.momentum is None:
            smooth, mu = _of_a_quadratic(self, setting)
            used = _polyaks_step(smooth, mu) if step is None else step
            return _on_quadratics(setting, _polyaks(used, smooth, mu), used)
        if c.mu is None:
            return _on_convex(self, setting, self.momentum)
        if _is_quadratic(setting):
            least, largest = _window(setting, self.momentum)
            used = largest if step is None else step
            if least * (1.0 - 1e-9) <= min(used, largest):
                return _on_quadratics(setting, self.momentum, used)
        return _on_strongly_convex(setting, self.momentum, step)

    def first(self, x: Tensor) -> dict[str, Tensor]:
        return {"velocity": torch.zeros_like(x)}

    def move(
        self, x: Tensor, g: Tensor, rule: dict[str, Tensor], step: float, iteration: int
    ) -> tuple[Tensor, dict[str, Tensor]]:
        velocity = number(self.momentum) * rule["velocity"] + g
        return x - step * velocity, {"velocity": velocity}


# ---- exact gradients of quadratics -----------------------------------------------------------------------------------


def _is_quadratic(setting: Setting) -> bool:
    third = setting.constants.hessian_lipschitz
    return third is not None and float(third) == 0.0


def _of_a_quadratic(method: HeavyBall, setting: Setting) -> tuple[float, float]:
    """L and mu. Raises NoTheorem where f is not known to be quadratic."""
    smooth, mu = known(L=setting.constants.L, mu=setting.constants.mu)
    if not _is_quadratic(setting):
        raise NoTheorem(f"the best momentum of {method} is known for quadratics only; give one, such as momentum=0.9")
    return smooth, mu


def _polyaks_step(smooth: float, mu: float) -> float:
    return 4.0 / (math.sqrt(smooth) + math.sqrt(mu)) ** 2


def _polyaks(step: float, smooth: float, mu: float) -> float:
    """The momentum with the best rate at a step: the least for which all characteristic roots are complex."""
    return (1.0 - math.sqrt(min(step, _polyaks_step(smooth, mu)) * mu)) ** 2


def _window(setting: Setting, momentum: float) -> tuple[float, float]:
    """The steps for which no characteristic root is real."""
    smooth, mu = known(L=setting.constants.L, mu=setting.constants.mu)
    root = math.sqrt(momentum)
    return (1.0 - root) ** 2 / mu, (1.0 + root) ** 2 / smooth


def _on_quadratics(setting: Setting, momentum: float, step: float) -> Guarantee:
    """On an eigenvector e+ = p e - momentum e', p = 1 + momentum - step lambda, and e^2 - p e e' + momentum e'^2 is
    multiplied by `momentum`; it is positive definite where p^2 < 4 momentum."""
    c = setting.constants
    smooth, mu = known(L=c.L, mu=c.mu)

    def lyapunov(snapshot: Snapshot) -> Terms:
        now = snapshot.x - snapshot.solution.x
        before = now + step * snapshot.state.rule["velocity"]
        mixed = step * snapshot.gradient - (1.0 + momentum) * now
        return Terms(square(now) + float((mixed * before).sum()) + momentum * square(before))

    p = max(abs(1.0 + momentum - step * mu), abs(1.0 + momentum - step * smooth))
    definite = momentum - p * p / 4.0
    return Guarantee(
        _window(setting, momentum)[1],
        HeavyBall.source,
        momentum,
        lyapunov,
        0.0,
        0.5 * smooth * momentum / definite if definite > 1e-9 * momentum else None,
        ("f quadratic and strongly convex",),
        tight=True,
        leans_on=estimates(L=c.L, mu=c.mu),
    )


# ---- exact gradients of convex functions -----------------------------------------------------------------------------


def _on_strongly_convex(setting: Setting, momentum: float, step: float | None) -> Guarantee:
    c = setting.constants
    smooth, mu = known(L=c.L, mu=c.mu)
    rest = 1.0 - momentum
    largest = rest / (2.0 * smooth)
    used = largest if step is None else step
    a, b = used / rest, momentum / rest
    rate = 1.0 - min(3.0 * a * mu / 8.0, 1.0 / (4.0 * b * b + 3.0 * b + 1.0))

    def lyapunov(snapshot: Snapshot) -> Terms:
        moved = -used * snapshot.state.rule["velocity"]
        ahead = snapshot.x + b * moved - a * snapshot.gradient - snapshot.solution.x
        moves = momentum * moved - used * snapshot.gradient
        return Terms(square(ahead) + 2.0 * a * b * snapshot.gap + square(moves) / (2.0 * rest))

    return Guarantee(
        largest,
        _CONVEX,
        rate,
        lyapunov,
        0.0,
        1.0 / (a * rate),
        ("f strongly convex and smooth",),
        leans_on=estimates(L=c.L, mu=c.mu),
    )


def _on_convex(method: HeavyBall, setting: Setting, momentum: float) -> Guarantee:
    if not setting.convex:
        raise NoTheorem(f"the theorem of {method} needs a convex f; give an explicit step")
    (smooth,) = known(L=setting.constants.L)
    return Guarantee(
        (1.0 - momentum) / smooth,
        _CONVEX,
        assumes=("f convex and smooth", "about the uniform average of the iterates"),
        leans_on=estimates(L=setting.constants.L),
        average=lambda k: 0.0,
    )


# ---- EF21 ------------------------------------------------------------------------------------------------------------


def _ef21_hb(setting: Setting, mechanism: EF21, momentum: float) -> Guarantee:
    theta, beta = contraction(mechanism, mechanism.compressor, setting)
    c = setting.constants
    smooth, spread = known(L=c.L, L_tilde=c.L_tilde)
    rest = 1.0 - momentum
    errors = math.sqrt(2.0 * beta / theta * (1.0 + 4.0 * momentum**2 / rest**2))
    return Guarantee(
        1.0 / ((1.0 + momentum) * smooth / (2.0 * rest**2) + spread / rest * errors),
        _EF21_HB,
        assumes=("f and f_i smooth", "constants recalled from the paper, checked for convergence only"),
        sure=False,
        leans_on=estimates(L=c.L, L_tilde=c.L_tilde),
    )
