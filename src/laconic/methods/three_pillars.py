"""The Three Pillars: similarity, compression (or one client at a time) and local steps for operators, at once."""

from __future__ import annotations

import dataclasses
import math
from abc import abstractmethod
from dataclasses import dataclass, field
from typing import Annotated, Any, Self

from torch import Tensor

from laconic.compressors.permk import PermK
from laconic.core.compressor import Compressor, informed
from laconic.core.entry import Count, Interval, Source, Stepsize
from laconic.core.flight import together
from laconic.core.link import Link
from laconic.core.method import Method, explicit, number, resolve
from laconic.core.problem import Constants, Oracles
from laconic.core.rows import square
from laconic.core.state import Server, Worker
from laconic.core.theory import Guarantee, NoTheorem, Setting, Snapshot, Terms, estimates, known
from laconic.methods._inner_operator import zero
from laconic.methods._variational import alike, strongly_monotone
from laconic.methods.optimistic_masha import joint_noise

MOST = 0.5  # the largest probability and pull that are chosen: the theorem needs a pull < 1


@dataclass
class State:
    """The server's point, and what is known at the anchor m."""

    z: Server  # (*shape)
    anchor: Server  # m, (*shape)
    operator: Server  # F(m), (*shape)
    own: Server  # F_1(m), (*shape)
    apart: Worker  # F_i(m) - F_1(m), (local, *shape)


class Pillars(Method):
    """What both share: all but who sends the differences at u, and how. Subclasses declare the parameters."""

    step: Stepsize
    probability: float | None
    pull: float | None
    smooth: float | None

    source = Source(
        "Beznosikov, Takac, Gasnikov",
        2023,
        "Similarity, compression and local steps: three pillars of efficient communications for distributed "
        "variational inequalities",
        "2302.07615",
        "Algorithms 1 and 2, constants derived",
    )

    @abstractmethod
    def noise2(self, setting: Setting, c: Constants) -> float:
        """E||estimate - mean||^2 <= noise2 ||u - m||^2, where the mean of F_i(m) - F_1(m) - F_i(u) + F_1(u) is sent."""

    @abstractmethod
    def chance(self, setting: Setting) -> float:
        """The default probability of a new anchor: the share of a whole round that an iteration costs."""

    @abstractmethod
    async def differences(self, u: Tensor, own: Tensor, apart: Tensor, oracles: Oracles, link: Link) -> Tensor:
        """The server's estimate of the mean of F_i(m) - F_1(m) - F_i(u) + F_1(u); `own` is F_1(u)."""

    def settled(self, setting: Setting) -> Self:
        p = min(MOST, self.chance(setting)) if self.probability is None else self.probability
        pull = min(MOST, p) if self.pull is None else self.pull
        smooth = setting.operator.L_workers[0] if self.smooth is None else self.smooth
        replace: Any = dataclasses.replace
        method = replace(self, probability=p, pull=pull, smooth=smooth)
        return replace(method, step=resolve(self.step, lambda: method.guarantee(setting).step))

    def guarantee(self, setting: Setting) -> Guarantee:
        if self.probability is None or self.pull is None:
            return self.settled(setting).guarantee(setting)
        c, _, mu = strongly_monotone(setting)
        delta, _ = known(delta_server=c.delta_server, delta_mean=c.delta_mean)
        p, pull = self.probability, self.pull
        if pull == 0.0:
            raise NoTheorem(f"the theorem of {self.name} needs a pull > 0; give an explicit step")
        unlike = alike(math.sqrt(2.0 * delta**2 + self.noise2(setting, c)), c)
        largest = math.sqrt(0.5 * pull) / unlike
        step, weight = explicit(self.step) or largest, pull / (p * (1.0 - pull))

        def lyapunov(snapshot: Snapshot) -> Terms:
            x = snapshot.solution.x
            return Terms(square(snapshot.state.z - x) + weight * square(snapshot.state.anchor - x))

        promise = Guarantee(
            largest,
            self.source,
            1.0 - min(step * mu / (1.0 - pull + pull / p), 0.25 * p),
            lyapunov,
            0.0,
            None if setting.variational else 0.5 * float(c.L),
            ("F strongly monotone", "F - F_1 and, in mean square, F_i - F Lipschitz"),
            leans_on=estimates(delta_server=c.delta_server, delta_mean=c.delta_mean, mu=c.mu),
        )
        return promise.at(explicit(self.step))

    async def init(self, oracles: Oracles, link: Link) -> State:
        return await self._anchored(oracles.start(), oracles, link)

    async def iterate(self, state: State, oracles: Oracles, link: Link) -> State:
        step, pull = number(self.step), number(self.pull)
        v = state.z + pull * (state.anchor - state.z)
        rest = state.operator - state.own
        u = link.at_server(lambda: self._solve(v, state.z, rest, oracles.server, link), like=v)
        own = link.at_server(lambda: oracles.server.gradients(u)[0], like=v)
        mean = await self.differences(u, own, state.apart, oracles, link)
        z = v - step * (own + rest - mean)
        if link.coin(number(self.probability)):
            return await self._anchored(z, oracles, link)
        return dataclasses.replace(state, z=z)

    async def _anchored(self, z: Tensor, oracles: Oracles, link: Link) -> State:
        own = link.at_server(lambda: oracles.server.gradients(z)[0], like=z)
        held, theirs = await together(link.broadcast(z), link.broadcast(own))
        here = oracles.gradients(held)
        sent = await link.uplink(None, here)
        return State(z, z, sent.mean.dense(), own, here - theirs)

    def _solve(self, v: Tensor, z: Tensor, rest: Tensor, server: Oracles, link: Link) -> Tensor:
        step = number(self.step)

        def subproblem(u: Tensor) -> Tensor:
            return server.gradients(u)[0] + rest + (u - v) / step

        relative = 0.5 * math.sqrt(1.0 - number(self.pull)) / step
        return zero(subproblem, z, number(self.smooth) + 1.0 / step, 1.0 / step, relative, link.remark)

    def point(self, state: State) -> Tensor:
        return state.z


@dataclass(frozen=True)
class ThreePillars(Pillars):
    """v = z + pull (m - z); the server alone solves F_1(u) + F(m) - F_1(m) + (u - v) / step = 0; u and F_1(u) go down;
    worker i sends Q_i(F_i(m) - F_1(m) - F_i(u) + F_1(u)); z+ = u + step (mean of these); with probability p, m+ = z+
    and all workers send their operators there whole.

    Where the server's u is not exact, z+ = v - step (F_1(u) + F(m) - F_1(m) - mean), which is the same of an exact one
    and a step nearer otherwise: an accuracy of ||residual|| <= sqrt(1 - pull) ||z - u|| / (2 step) is enough then, in
    the place of a number of steps that grows with log(1 / mu). The server's operator calls are counted.

    Guarantee for F mu-strongly monotone, F - F_1 delta-Lipschitz, 0 < pull < 1: with v^2 = A delta_mean^2 +
    (A - B) delta^2 of the compressors' joint constants and step <= sqrt(pull / (2 (2 delta^2 + v^2))),
    ||z - z*||^2 + pull / (p (1 - pull)) ||m - z*||^2 contracts in expectation by
    1 - min(step mu / (1 - pull + pull / p), p / 4). L is in no rate. With PermK the iterations are of the order
    n + sqrt(n) delta / mu, and each sends d / n numbers up per worker.

    Parameters
    ----------
    compressor : Q, unbiased.
    step : gamma; None is the theorem's.
    probability : p; None is 1 / (1 + omega), which is 1 / n with PermK, and at most 1/2.
    pull : tau; None is p.
    smooth : Lipschitz constant of F_1, for the inner solver; None is the problem's L_1.

    >>> str(ThreePillars(step="2x"))
    "three_pillars(step='2x')"
    """

    compressor: Compressor = field(default_factory=PermK)
    step: Stepsize = None
    probability: Annotated[float | None, Interval(0.0, 1.0, open="low")] = None
    pull: Annotated[float | None, Interval(0.0, 1.0, open="high")] = None
    smooth: Annotated[float | None, Interval(0.0, open="low")] = None

    name = "three_pillars"
    aliases = ("tpa",)
    example = "three_pillars"

    def settled(self, setting: Setting) -> ThreePillars:
        return super(ThreePillars, dataclasses.replace(self, compressor=informed(self.compressor, setting))).settled(
            setting
        )

    def noise2(self, setting: Setting, c: Constants) -> float:
        joint = joint_noise(self, self.compressor, setting)
        delta, spread = known(delta_server=c.delta_server, delta_mean=c.delta_mean)
        return joint.A * spread**2 + max(0.0, joint.A - joint.B) * delta**2

    def chance(self, setting: Setting) -> float:
        return 1.0 / (1.0 + joint_noise(self, self.compressor, setting).omega)

    async def differences(self, u: Tensor, own: Tensor, apart: Tensor, oracles: Oracles, link: Link) -> Tensor:
        held, theirs = await together(link.broadcast(u), link.broadcast(own))
        sent = await link.uplink(self.compressor, apart - oracles.gradients(held) + theirs)
        return sent.mean.dense()


@dataclass(frozen=True)
class ThreePillarsPP(Pillars):
    """`three_pillars` with partial participation: instead of compressing, a few random workers take u and F_1(u), and
    send F_i(m) - F_1(m) - F_i(u) + F_1(u) whole.

    Guarantee as that of `three_pillars`, with v^2 = delta_mean^2 (n - b) / (b (n - 1)) for b workers drawn without
    replacement. With one the messages are of the order n + sqrt(n) delta / mu.

    Parameters
    ----------
    cohort : b, how many workers take part.
    step : gamma; None is the theorem's.
    probability : p; None is b / n, and at most 1/2.
    pull : tau; None is p.
    smooth : Lipschitz constant of F_1, for the inner solver; None is the problem's L_1.

    >>> str(ThreePillarsPP(cohort=2))
    'three_pillars_pp(cohort=2)'
    """

    cohort: Annotated[int, Count(1)] = 1
    step: Stepsize = None
    probability: Annotated[float | None, Interval(0.0, 1.0, open="low")] = None
    pull: Annotated[float | None, Interval(0.0, 1.0, open="high")] = None
    smooth: Annotated[float | None, Interval(0.0, open="low")] = None

    name = "three_pillars_pp"
    aliases = ("tpapp",)
    example = "three_pillars_pp"

    def settled(self, setting: Setting) -> ThreePillarsPP:
        if self.cohort > setting.n:
            raise ValueError(
                f"ThreePillarsPP(cohort={self.cohort}) : there are {setting.n} workers; take a smaller cohort"
            )
        return super().settled(setting)

    def noise2(self, setting: Setting, c: Constants) -> float:
        (spread,) = known(delta_mean=c.delta_mean)
        n, b = setting.n, self.cohort
        return spread**2 * (n - b) / (b * max(1, n - 1))

    def chance(self, setting: Setting) -> float:
        return self.cohort / setting.n

    async def differences(self, u: Tensor, own: Tensor, apart: Tensor, oracles: Oracles, link: Link) -> Tensor:
        who = link.sample(self.cohort)
        held, theirs = await together(link.broadcast(u, to=who), link.broadcast(own, to=who))
        sent = await link.uplink(None, apart[who.rows] - oracles.gradients(held, who.rows) + theirs, who)
        mean = u.new_zeros(u.shape)
        sent.mean.add_to(mean, scale=link.n / self.cohort)
        return mean
