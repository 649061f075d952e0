"""Katyusha and loopless Katyusha with workers as components: accelerated variance reduction."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Annotated

from torch import Tensor

from laconic.core.entry import Count, Interval, Source, Stepsize
from laconic.core.flight import together
from laconic.core.link import Link
from laconic.core.method import Method, explicit, number, resolve
from laconic.core.problem import Oracles
from laconic.core.rows import square
from laconic.core.state import Server
from laconic.core.theory import Guarantee, NoTheorem, Setting, Snapshot, Terms, estimates, known
from laconic.methods._anchored import (
    Anchor,
    estimate,
    needs_convex,
    refuse_cohort,
    renewed,
    renewed_estimate,
    share,
    unset,
)

SECOND = 0.5  # theta_2, the weight of the anchor w


@dataclass
class EpochState:
    """Katyusha's sequences, the epoch's average, and how many of its steps are done."""

    y: Server  # the model, (*shape)
    z: Server  # (*shape)
    average: Server  # of this epoch's y, the next w, (*shape)
    anchor: Anchor
    done: int


@dataclass
class State:
    """Loopless Katyusha's sequences."""

    y: Server  # the model, (*shape)
    z: Server  # (*shape)
    anchor: Anchor


@dataclass(frozen=True)
class Katyusha(Method):
    """x = t1 z + w / 2 + (1/2 - t1) y; g = grad f_i(x) - grad f_i(w) + grad f(w) - mu x with a random worker i;
    z <- prox_(a q)(z - a g), y <- prox_(step q)(x - step g), q = r + (mu / 2) ||.||^2; after m steps w is the average
    of the epoch's y_j with weights (1 + a mu)^j, and everyone's gradient is asked for there. t1 = min(sqrt(m mu step),
    1/2), a = step / t1.

    The theorem wants a strongly convex q and convex f_i: the strong convexity mu of the f_i is moved from them to q, of
    which workers need not know. An iteration is one step; where an epoch begins its round is everyone's. The model is
    the last y.

    Guarantee for mu-strongly convex L-smooth f_i, step = 1 / (3 (L - mu)): over an epoch the expectation of
    m' D(w) + (1 - 2 t1) D(y) + (t1 / a) ||z - x*||^2 shrinks by (1 + a mu)^-m, or at worst by a half where m mu step >
    1/4; D is F less its minimum and m' the sum of the weights. It says nothing of single iterations. Work of the order
    (n + sqrt(n L / mu)) log(1 / eps). Constants are recalled; the contraction over an epoch was derived again from the
    bound of a step. A cohort of several workers has less variance than one, and the same bound.

    Parameters
    ----------
    step : of y; None is 1 / (3 (L_max - mu)).
    mu : strong convexity of the f_i; None is the problem's.
    length : m; None is 2 n / cohort.
    cohort : how many workers take part in a step.

    >>> str(Katyusha(length=20))
    'katyusha(length=20)'
    """

    step: Stepsize = None
    mu: Annotated[float | None, Interval(0.0, open="low")] = None
    length: Annotated[int | None, Count(1)] = None
    cohort: Annotated[int, Count(1)] = 1

    name = "katyusha"
    example = "katyusha"
    proximal = True
    source = Source(
        "Allen-Zhu",
        2016,
        "Katyusha: the first direct acceleration of stochastic gradient methods",
        "1603.05953",
        "Algorithm 1, Theorem 2.1",
    )

    def settled(self, setting: Setting) -> Katyusha:
        refuse_cohort(self, self.cohort, setting)
        method = dataclasses.replace(
            self,
            mu=self._convexity(setting),
            length=self.length or math.ceil(2 * setting.n / self.cohort),
        )
        return dataclasses.replace(method, step=resolve(self.step, lambda: method.guarantee(setting).step))

    def _convexity(self, setting: Setting) -> float:
        if self.mu is not None:
            return self.mu
        least = setting.constants.mu_workers
        if least is None or float(least) <= 0.0:
            raise NoTheorem(f"the theorem of {self} needs strongly convex f_i; give explicit step and mu")
        return float(least)

    def guarantee(self, setting: Setting) -> Guarantee:
        needs_convex(self, setting, "give explicit step and mu")
        mu, c = self._convexity(setting), setting.constants
        if c.mu_workers is None or mu > float(c.mu_workers) * (1.0 + 1e-12):
            raise NoTheorem(f"the theorem of {self} needs f_i that are {mu:.6g}-strongly convex; give an explicit step")
        smooth = float(c.L_max)
        return Guarantee(
            1.0 / (3.0 * max(smooth - mu, 1e-9 * smooth)),
            self.source,
            assumes=("f_i strongly convex and smooth", "constants recalled, not read in the paper"),
            sure=False,
            leans_on=estimates(L_max=c.L_max, mu_workers=c.mu_workers),
        )

    def weights(self) -> tuple[float, float]:
        """theta_1 of z, and alpha, the step of z."""
        step = number(self.step)
        assert self.length is not None
        first = min(math.sqrt(self.length * number(self.mu) * step), 0.5)
        return first, step / first

    async def init(self, oracles: Oracles, link: Link) -> EpochState:
        x = oracles.start()
        assert self.length is not None
        return EpochState(x, x, x, unset(x, oracles), self.length)  # an epoch is over, and the next one begins

    async def iterate(self, state: EpochState, oracles: Oracles, link: Link) -> EpochState:
        step, mu = number(self.step), number(self.mu)
        first, longer = self.weights()
        begins = state.done == self.length
        w, done = (state.average, 0) if begins else (state.anchor.point, state.done)
        x = first * state.z + SECOND * w + (1.0 - SECOND - first) * state.y
        if begins:
            anchor, g = await renewed_estimate(w, x, self.cohort, oracles, link)
        else:
            anchor, g = state.anchor, await estimate(x, state.anchor, self.cohort, oracles, link)
        g = g - mu * x
        z = _prox(state.z - longer * g, longer, mu, oracles)
        y = _prox(x - step * g, step, mu, oracles)
        average = state.average if done else y
        average = average + _part(1.0 + longer * mu, done) * (y - average)
        return EpochState(y, z, average, anchor, done + 1)

    def point(self, state: EpochState) -> Tensor:
        return state.y


def _prox(v: Tensor, step: float, mu: float, oracles: Oracles) -> Tensor:
    """prox_(step q)(v) of q = r + (mu / 2) ||.||^2."""
    shrunk = 1.0 + step * mu
    v = v / shrunk
    return v if oracles.regulariser is None else oracles.regulariser.prox(v, step / shrunk)


def _part(growth: float, done: int) -> float:
    """growth^done over the sum of growth^j, j = 0 .. done."""
    return (growth - 1.0) / (growth - growth**-done)


@dataclass(frozen=True)
class LKatyusha(Method):
    """x = t1 z + w / 2 + (1/2 - t1) y, g = grad f_i(x) - grad f_i(w) + grad f(w) with a random worker i,
    z+ = (b s x + z - (b / L) g) / (1 + b s), y+ = x + t1 (z+ - z), and with probability p w+ = y, the old one, where
    everyone's gradient is then asked for. s = mu / L, t1 = min(sqrt(2 s / (3 p)), 1/2), b = 1 / (3 t1).

    An iteration is one round of one worker, or of all where w is new. The model is y.

    Guarantee for convex L-smooth f_i, f mu-strongly convex: with step = 1 / L,
    L (1 + b s) / (2 b) ||z - x*||^2 + (f(y) - f*) / t1 + (1 + t1) / (2 p t1) (f(w) - f*) contracts in expectation by
    max(1 / (1 + b s), 1 - t1 / 2, 1 - p t1 / (1 + t1)). Work of the order (n + sqrt(n L / mu)) log(1 / eps). The bound
    of a step is recalled; the three factors follow from it. A cohort of several workers has less variance than one, and
    the same bound.

    Parameters
    ----------
    step : 1 / L; None is 1 / L_max.
    mu : strong convexity of f; None is the problem's.
    probability : p; None is cohort / n.
    cohort : how many workers take part where not all do.

    >>> str(LKatyusha(probability=0.5))
    'l_katyusha(probability=0.5)'
    """

    step: Stepsize = None
    mu: Annotated[float | None, Interval(0.0, open="low")] = None
    probability: Annotated[float | None, Interval(0.0, 1.0, open="low")] = None
    cohort: Annotated[int, Count(1)] = 1

    name = "l_katyusha"
    aliases = ("loopless_katyusha",)
    example = "l_katyusha"
    source = Source(
        "Kovalev, Horvath, Richtarik",
        2019,
        "Don't jump through hoops and remove those loops: SVRG and Katyusha are better without the outer loop",
        "1901.08689",
        "Algorithm 2, Theorem 11",
    )

    def settled(self, setting: Setting) -> LKatyusha:
        refuse_cohort(self, self.cohort, setting)
        mu = self.mu
        if mu is None:
            (mu,) = known(mu=setting.constants.mu)
        method = dataclasses.replace(self, mu=mu, probability=self.probability or share(self.cohort, setting))
        return dataclasses.replace(method, step=resolve(self.step, lambda: method.guarantee(setting).step))

    def guarantee(self, setting: Setting) -> Guarantee:
        needs_convex(self, setting, "give explicit step and mu")
        c = setting.constants
        smooth, convexity = known(L_max=c.L_max, mu=c.mu)
        if self.mu is not None and self.mu > convexity * (1.0 + 1e-12):
            raise NoTheorem(f"the theorem of {self} needs mu <= {convexity:.6g}, that of f; give an explicit step")
        mu, p = self.mu or convexity, self.probability or share(self.cohort, setting)
        step = explicit(self.step) or 1.0 / smooth
        first, longer = loopless_weights(step * mu, p)
        of_z = (1.0 + longer * step * mu) / (2.0 * longer * step)
        of_w = SECOND * (1.0 + first) / (p * first)

        def lyapunov(snapshot: Snapshot) -> Terms:
            state, solution = snapshot.state, snapshot.solution
            server = of_z * square(state.z - solution.x) + snapshot.gap / first
            return Terms(server, of_w * (snapshot.oracles.values(state.anchor.point) - solution.value))

        promise = Guarantee(
            1.0 / smooth,
            self.source,
            max(
                1.0 / (1.0 + longer * step * mu),
                1.0 - first * (1.0 - SECOND),
                1.0 - p * first / (1.0 + first),
            ),
            lyapunov,
            0.0,
            first,
            ("f_i convex and smooth", "f strongly convex", "constants recalled, not read in the paper"),
            sure=False,
            leans_on=estimates(L_max=c.L_max, mu=c.mu),
        )
        return promise.at(step)

    async def init(self, oracles: Oracles, link: Link) -> State:
        x = oracles.start()
        return State(x, x, unset(x, oracles))

    async def iterate(self, state: State, oracles: Oracles, link: Link) -> State:
        step, mu, p = number(self.step), number(self.mu), number(self.probability)
        first, longer = loopless_weights(step * mu, p)
        w, pull = state.anchor.point, longer * step * mu
        x = first * state.z + SECOND * w + (1.0 - SECOND - first) * state.y
        anchor, renew = state.anchor, link.coin(p)
        if link.step == 1:  # all points are x^0
            anchor = await renewed(x, oracles, link)
            g = anchor.gradient
        elif renew:
            anchor, g = await together(
                renewed(state.y, oracles, link), estimate(x, state.anchor, self.cohort, oracles, link)
            )
        else:
            g = await estimate(x, state.anchor, self.cohort, oracles, link)
        z = (pull * x + state.z - longer * step * g) / (1.0 + pull)
        y = x + first * (z - state.z)
        return State(y, z, anchor)

    def point(self, state: State) -> Tensor:
        return state.y


def loopless_weights(contraction: float, p: float) -> tuple[float, float]:
    """theta_1 of z, and eta, the step of z in units of 1 / L; `contraction` is mu / L."""
    first = min(math.sqrt(2.0 * contraction / (3.0 * p)), 0.5)
    return first, SECOND / ((1.0 + SECOND) * first)
