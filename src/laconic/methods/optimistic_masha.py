"""Optimistic MASHA: compressed differences of operators to an anchor, with an optimistic correction."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from typing import Annotated

from torch import Tensor

from laconic.compressors.permk import PermK
from laconic.core.compressor import AB, Compressor, as_joint, informed
from laconic.core.entry import Interval, Source, Stepsize
from laconic.core.link import Link
from laconic.core.method import Method, explicit, number, resolve
from laconic.core.problem import Oracles
from laconic.core.state import Server, Worker
from laconic.core.theory import Guarantee, NoTheorem, Setting, estimates, known
from laconic.methods._variational import Anchor, anchored, strongly_monotone

TRIED = 0.25  # of min(sqrt(p) / spread, 1 / L): half of it more was seen to work, four times it to diverge


def joint_noise(method: Method, compressor: Compressor, setting: Setting) -> AB:
    """A, B and omega of the n compressors. Raises ValueError where they are not known to be unbiased."""
    joint = as_joint(compressor.claim(setting.d, setting.n), setting.n)
    if joint is None:
        raise ValueError(
            f"{method.name} needs an unbiased compressor and {compressor} is not known to be one; use permk or randk"
        )
    return joint


@dataclass
class State:
    """The server's point, the workers' operators at the point before, the anchor, and the anchor before."""

    z: Server  # (*shape)
    operator: Worker  # F_i(z_before), (local, *shape)
    anchor: Anchor  # w
    earlier: Anchor  # w_before


@dataclass(frozen=True)
class OptimisticMASHA(Method):
    """z goes down; worker i sends Q_i(F_i(z) - F_i(w_before) + a (F_i(z) - F_i(z_before)));
    z+ = z + pull (w - z) - step (mean of these + F(w_before)); with probability p, w+ = z+ and all workers send their
    operators there whole.

    The iterations are of the order omega + L / mu + sqrt(omega) delta / mu, omega = n - 1 with PermK, whose noise knows
    only how unlike the workers are. The constants of the theorem are recalled and were tried, no more: step =
    min(sqrt(p) / v, 1 / L) / 4, v^2 = (A - B) L_plus^2 + B delta_mean^2 of the compressors' joint constants; p =
    pull = 1 / (1 + omega), a = 1. So there is a step and no rate.

    With the identity in the place of Q and p = 1 this is the optimistic gradient method.

    Parameters
    ----------
    compressor : Q, unbiased.
    step : None is the one above.
    probability : p of a new anchor; None is 1 / (1 + omega).
    pull : of z towards w; None is p.
    optimism : a.

    >>> str(OptimisticMASHA(probability=0.1))
    'optimistic_masha(probability=0.1)'
    """

    compressor: Compressor = field(default_factory=PermK)
    step: Stepsize = None
    probability: Annotated[float | None, Interval(0.0, 1.0, open="low")] = None
    pull: Annotated[float | None, Interval(0.0, 1.0)] = None
    optimism: Annotated[float, Interval(0.0, 1.0)] = 1.0

    name = "optimistic_masha"
    aliases = ("omasha",)
    example = "optimistic_masha"
    source = Source(
        "Beznosikov, Gasnikov",
        2022,
        "Compression and data similarity: combination of two techniques for communication-efficient solving of "
        "distributed variational inequalities",
        "2206.09446",
        "Algorithm 1, constants recalled",
    )

    def settled(self, setting: Setting) -> OptimisticMASHA:
        method = dataclasses.replace(self, compressor=informed(self.compressor, setting))
        joint, p = joint_noise(self, method.compressor, setting), self.probability
        p = 1.0 / (1.0 + joint.omega) if p is None else p
        pull = p if self.pull is None else self.pull
        step = resolve(self.step, lambda: dataclasses.replace(method, probability=p).guarantee(setting).step)
        return dataclasses.replace(method, step=step, probability=p, pull=pull)

    def guarantee(self, setting: Setting) -> Guarantee:
        c, smooth, _ = strongly_monotone(setting)
        plus, spread = known(L_plus=c.L_plus, delta_mean=c.delta_mean)
        joint, p = joint_noise(self, self.compressor, setting), self.probability
        if self.pull == 0.0 and p != 1.0:
            raise NoTheorem(f"the theorem of {self} needs a pull > 0; give an explicit step")
        noise = math.sqrt(max(0.0, joint.A - joint.B) * plus**2 + joint.B * spread**2)
        longest = math.sqrt(1.0 / (1.0 + joint.omega) if p is None else p)
        largest = TRIED * min(longest / noise if noise > 0.0 else math.inf, 1.0 / smooth)
        promise = Guarantee(
            largest,
            self.source,
            assumes=("F strongly monotone", "F_i Lipschitz", "constants recalled and tried"),
            sure=False,
            leans_on=estimates(L=c.L, L_plus=c.L_plus, delta_mean=c.delta_mean, mu=c.mu),
        )
        return promise.at(explicit(self.step))

    async def init(self, oracles: Oracles, link: Link) -> State:
        anchor = await anchored(oracles.start(), oracles, link)
        return State(anchor.point, anchor.own, anchor, anchor)

    async def iterate(self, state: State, oracles: Oracles, link: Link) -> State:
        anchor, step = state.anchor, number(self.step)
        here = oracles.gradients(await link.broadcast(state.z))
        ahead = here - state.earlier.own + self.optimism * (here - state.operator)
        sent = await link.uplink(self.compressor, ahead)
        estimate = sent.mean.dense() + state.earlier.mean
        z = state.z + number(self.pull) * (anchor.point - state.z) - step * estimate
        if link.coin(number(self.probability)):
            anchor = await anchored(z, oracles, link)
        return State(z, here, anchor, state.anchor)

    def point(self, state: State) -> Tensor:
        return state.z
