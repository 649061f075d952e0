"""SVRG and loopless SVRG with workers as components: a step asks a few workers, now and then all of them."""

from __future__ import annotations

import dataclasses
import math
from abc import abstractmethod
from dataclasses import dataclass
from typing import Annotated

from torch import Tensor

from laconic.core.entry import Count, Interval, Source, Stepsize
from laconic.core.link import Link
from laconic.core.method import Method, explicit, number, resolve
from laconic.core.problem import Oracles
from laconic.core.rows import norm2, square
from laconic.core.state import Server
from laconic.core.theory import Guarantee, NoTheorem, Setting, Snapshot, Terms, estimates, known
from laconic.methods._anchored import Anchor, estimate, needs_convex, refuse_cohort, renewed, share, unset

_SOURCE = Source("Johnson, Zhang", 2013, "Accelerating stochastic gradient descent using predictive variance reduction")


@dataclass
class State:
    """The model and its anchor."""

    x: Server  # (*shape)
    anchor: Anchor


@dataclass
class EpochState:
    """The same, and how many steps this epoch still has."""

    x: Server  # (*shape)
    anchor: Anchor
    left: int


async def _stepped(
    x: Tensor, anchor: Anchor, renew: bool, step: float, cohort: int, oracles: Oracles, link: Link
) -> tuple[Tensor, Anchor]:
    """x - step g, by the proximal operator where there is a regulariser.

    With a new anchor, which is x itself, g is the gradient there and nobody else is asked.
    """
    if renew:
        anchor = await renewed(x, oracles, link)
        g = anchor.gradient
    else:
        g = await estimate(x, anchor, cohort, oracles, link)
    x = x - step * g
    return (x if oracles.regulariser is None else oracles.regulariser.prox(x, step)), anchor


@dataclass(frozen=True)
class _Epochs(Method):
    """SVRG; how long an epoch is, is left open."""

    step: Stepsize = None
    length: Annotated[int | None, Count(1)] = None
    cohort: Annotated[int, Count(1)] = 1

    @abstractmethod
    def drawn(self, link: Link) -> int:
        """The steps of the epoch that begins."""

    async def init(self, oracles: Oracles, link: Link) -> EpochState:
        x = oracles.start()
        return EpochState(x, unset(x, oracles), 0)

    async def iterate(self, state: EpochState, oracles: Oracles, link: Link) -> EpochState:
        begins = state.left == 0
        left = self.drawn(link) if begins else state.left
        x, anchor = await _stepped(state.x, state.anchor, begins, number(self.step), self.cohort, oracles, link)
        return EpochState(x, anchor, left - 1)

    def point(self, state: EpochState) -> Tensor:
        return state.x


@dataclass(frozen=True)
class SVRG(_Epochs):
    """An epoch begins at w = x with everyone's gradient there; then x <- x - step (grad f_i(x) - grad f_i(w) + grad
    f(w)) with a random worker i, and only i computes. Its length is uniform on 1..m.

    That is the paper's option II, which makes m steps and goes on from one of the m points x_0 .. x_(m-1) at random:
    here the steps after that one are left out. An iteration is one step; the first of an epoch is a full gradient step.

    Guarantee for convex L-smooth f_i, f mu-strongly convex, step < 1 / (4 L): over an epoch E f(w) - f* shrinks by
    1 / (mu step (1 - 2 L step) m) + 2 L step / (1 - 2 L step), a half at step = 1 / (10 L) and m = 50 L / mu
    (`epoch_factor`). It says nothing of single iterations. Work of the order (n + L / mu) log(1 / eps). A cohort of
    several workers has less variance than one, and the same bound.

    Parameters
    ----------
    step : None is 1 / (10 L_max).
    length : m, the steps of the longest epoch; None is 50 L_max / mu.
    cohort : how many workers take part in a step.

    >>> str(SVRG(length=20))
    'svrg(length=20)'
    """

    name = "svrg"
    example = "svrg(length=8)"
    source = dataclasses.replace(_SOURCE, where="Theorem 1, option II")

    def settled(self, setting: Setting) -> SVRG:
        refuse_cohort(self, self.cohort, setting)
        step, length = resolve(self.step, lambda: self.guarantee(setting).step), self.length
        if length is None:
            smooth, mu = known(L_max=setting.constants.L_max, mu=setting.constants.mu)
            length = math.ceil(50.0 * smooth / mu)
        return dataclasses.replace(self, step=step, length=length)

    def guarantee(self, setting: Setting) -> Guarantee:
        needs_convex(self, setting)
        c = setting.constants
        (smooth,) = known(L_max=c.L_max)
        return Guarantee(
            1.0 / (10.0 * smooth),
            self.source,
            assumes=("f_i convex and smooth", "f strongly convex"),
            leans_on=estimates(L_max=c.L_max, mu=c.mu),
        )

    def drawn(self, link: Link) -> int:
        assert self.length is not None
        return 1 + min(int(float(link.keys("length").shared.uniform(1)[0, 0]) * self.length), self.length - 1)


def epoch_factor(step: float, length: int, smooth: float, mu: float) -> float:
    """By what an epoch of SVRG shrinks E f(w) - f*; step < 1 / (2 smooth)."""
    slack = 1.0 - 2.0 * smooth * step
    return 1.0 / (mu * step * slack * length) + 2.0 * smooth * step / slack


@dataclass(frozen=True)
class LastSVRG(_Epochs):
    """SVRG as it is mostly used: all epochs have m steps, and the next one goes on from the last point (option I).

    No theorem is known for the steps and lengths of practice; give a step, such as 1 / (4 L_max).

    Parameters
    ----------
    step : has to be given.
    length : m; None is 2 n / cohort, twice as much work as a full gradient.
    cohort : how many workers take part in a step.

    >>> str(LastSVRG(step=0.1))
    'svrg_last(step=0.1)'
    """

    name = "svrg_last"
    example = "svrg_last(step=0.01)"
    source = dataclasses.replace(_SOURCE, where="option I")

    def settled(self, setting: Setting) -> LastSVRG:
        refuse_cohort(self, self.cohort, setting)
        step = resolve(self.step, lambda: self.guarantee(setting).step)
        length = self.length or math.ceil(2 * setting.n / self.cohort)
        return dataclasses.replace(self, step=step, length=length)

    def guarantee(self, setting: Setting) -> Guarantee:
        raise NoTheorem(f"no theorem covers the last point of an epoch of {self}; give an explicit step, or use svrg")

    def drawn(self, link: Link) -> int:
        assert self.length is not None
        return self.length


@dataclass(frozen=True)
class LooplessSVRG(Method):
    """With probability p w becomes x, everyone's gradient is asked for there, and g = grad f(x); otherwise
    g = grad f_i(x) - grad f_i(w) + grad f(w) with a random worker i. Then x <- prox_(step r)(x - step g).

    The first iteration takes the full gradient. With p = 1 this is (proximal) gradient descent. The paper throws the
    coin after the step and moves w to the point before it; with the coin first, an iteration is one round of either
    all workers or one.

    Guarantee for convex L-smooth f_i, f mu-strongly convex, step <= 1 / (6 L): ||x - x*||^2 + (4 step^2 / p) mean
    ||grad f_i(w) - grad f_i(x*)||^2 contracts in expectation by max(1 - step mu, 1 - p / 2). The paper's proof holds
    for the coin thrown first, and with a convex r, since proximal steps do not expand: E||g - grad f(x*)||^2 <=
    (4 - 2 p) L D + 2 (1 - p) s and E s+ <= (1 - p) s + 2 p L D, where s is the mean above and D = f(x) - f* - <grad
    f(x*), x - x*>. Work of the order (n + L / mu) log(1 / eps). A cohort of several workers has less variance than
    one, and the same bounds.

    Parameters
    ----------
    step : None is 1 / (6 L_max).
    probability : p; None is cohort / n.
    cohort : how many workers take part where not all do.

    >>> str(LooplessSVRG(probability=0.5))
    'loopless_svrg(probability=0.5)'
    """

    step: Stepsize = None
    probability: Annotated[float | None, Interval(0.0, 1.0, open="low")] = None
    cohort: Annotated[int, Count(1)] = 1

    name = "loopless_svrg"
    example = "loopless_svrg"
    proximal = True
    source = Source(
        "Kovalev, Horvath, Richtarik",
        2019,
        "Don't jump through hoops and remove those loops: SVRG and Katyusha are better without the outer loop",
        "1901.08689",
        "Theorem 5",
    )

    def settled(self, setting: Setting) -> LooplessSVRG:
        refuse_cohort(self, self.cohort, setting)
        step = resolve(self.step, lambda: self.guarantee(setting).step)
        return dataclasses.replace(self, step=step, probability=self.probability or share(self.cohort, setting))

    def guarantee(self, setting: Setting) -> Guarantee:
        needs_convex(self, setting)
        c = setting.constants
        (smooth,) = known(L_max=c.L_max)
        largest = 1.0 / (6.0 * smooth)
        step, p = explicit(self.step) or largest, self.probability or share(self.cohort, setting)

        def lyapunov(snapshot: Snapshot) -> Terms:
            x = snapshot.solution.x
            unlike = norm2(snapshot.state.anchor.own - snapshot.oracles.gradients(x))
            return Terms(square(snapshot.x - x), 4.0 * step**2 / p * unlike)

        promise = Guarantee(
            largest,
            self.source,
            assumes=("f_i convex and smooth", "f strongly convex", *(["r convex"] if setting.composite else [])),
            leans_on=estimates(L_max=c.L_max, mu=c.mu),
        )
        if c.mu is None:
            return promise
        rate = max(1.0 - step * float(c.mu), 1.0 - p / 2.0)
        gap_factor = None if setting.composite else 0.5 * float(c.L)  # a distance bounds the gap of a smooth f alone
        return dataclasses.replace(promise, rate=rate, lyapunov=lyapunov, gap_factor=gap_factor).at(step)

    async def init(self, oracles: Oracles, link: Link) -> State:
        x = oracles.start()
        return State(x, unset(x, oracles))

    async def iterate(self, state: State, oracles: Oracles, link: Link) -> State:
        renew = link.coin(number(self.probability)) or link.step == 1
        x, anchor = await _stepped(state.x, state.anchor, renew, number(self.step), self.cohort, oracles, link)
        return State(x, anchor)

    def point(self, state: State) -> Tensor:
        return state.x
