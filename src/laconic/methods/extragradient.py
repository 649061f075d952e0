"""Extragradient and optimistic gradient: what gradient descent has to become where the operator is no gradient."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from torch import Tensor

from laconic.core.entry import Source, Stepsize
from laconic.core.link import Link
from laconic.core.method import Method, explicit, number, resolve
from laconic.core.problem import Oracles
from laconic.core.rows import inner, square
from laconic.core.state import Server
from laconic.core.theory import Guarantee, NoTheorem, Setting, Snapshot, Terms, estimates
from laconic.methods._inner_operator import extragradient_step
from laconic.methods._variational import distance, gap_factor, operator_at, strongly_monotone


def _monotone_only(method: Method, setting: Setting) -> Guarantee | None:
    """The promise where F is monotone and no more; None where it is more. Raises NoTheorem where it is not known."""
    c = setting.operator
    if c.mu is not None and float(c.mu) > 0.0:
        return None
    if not setting.convex:
        raise NoTheorem(f"the theorem of {method.name} needs a monotone operator; give an explicit step")
    return Guarantee(0.0, method.source, assumes=("F monotone and Lipschitz",), leans_on=estimates(L=c.L))


def _proximal(x: Tensor, oracles: Oracles, step: float) -> Tensor:
    return x if oracles.regulariser is None else oracles.regulariser.prox(x, step)


@dataclass
class State:
    """The server's point."""

    z: Server  # (*shape)


@dataclass(frozen=True)
class Extragradient(Method):
    """w = z - step F(z); z+ = z - step F(w). Two rounds per iteration. With a regulariser both steps are proximal.

    Guarantee for F mu-strongly monotone and L-Lipschitz: with step <= 1 / (sqrt(L^2 + mu^2) + mu), which is about
    1 / L, ||z - z*||^2 contracts by 1 - step mu. It follows from
    ||z+ - z*||^2 <= ||z - z*||^2 - (1 - step^2 L^2) ||z - w||^2 - 2 step mu ||w - z*||^2. Of an F that is monotone and
    no more the step is 1 / L, without a rate. F may be a gradient.

    Parameters
    ----------
    step : None is the theorem's.

    >>> str(Extragradient(step="0.5x"))
    "extragradient(step='0.5x')"
    """

    step: Stepsize = None

    name = "extragradient"
    aliases = ("eg",)
    example = "extragradient"
    proximal = True
    source = Source(
        "Korpelevich", 1976, "The extragradient method for finding saddle points and other problems", where="derived"
    )

    def settled(self, setting: Setting) -> Extragradient:
        return Extragradient(resolve(self.step, lambda: self.guarantee(setting).step))

    def guarantee(self, setting: Setting) -> Guarantee:
        promise = _monotone_only(self, setting)
        if promise is not None:
            return dataclasses.replace(promise, step=1.0 / float(setting.operator.L))
        c, smooth, mu = strongly_monotone(setting)
        largest = extragradient_step(smooth, mu)
        promise = Guarantee(
            largest,
            self.source,
            1.0 - (explicit(self.step) or largest) * mu,
            distance,
            0.0,
            gap_factor(setting),
            ("F strongly monotone and Lipschitz",),
            leans_on=estimates(L=c.L, mu=c.mu),
        )
        return promise.at(explicit(self.step))

    async def init(self, oracles: Oracles, link: Link) -> State:
        return State(oracles.start())

    async def iterate(self, state: State, oracles: Oracles, link: Link) -> State:
        step = number(self.step)
        w = _proximal(state.z - step * await operator_at(state.z, oracles, link), oracles, step)
        return State(_proximal(state.z - step * await operator_at(w, oracles, link), oracles, step))

    def point(self, state: State) -> Tensor:
        return state.z


@dataclass
class OptimisticState:
    """The server's points and the operator there."""

    z: Server  # (*shape)
    operator: Server  # F(z), (*shape)
    before: Server  # the point before z, (*shape)
    operator_before: Server  # F there, (*shape)


@dataclass(frozen=True)
class OptimisticGradient(Method):
    """z+ = z - step (2 F(z) - F(z_before)). One round per iteration. With a regulariser the step is proximal.

    Guarantee for F mu-strongly monotone and L-Lipschitz, step <= 1 / (3 L): with e = F(z) - F(z_before) and
    m = z - z_before, V = ||z - z*||^2 - 2 step <e, z - z*> + step L ||m||^2 >= (1 - step L) ||z - z*||^2 contracts by
    1 / (1 + c), c = min(2 step mu / (1 + step L), (1 - 2 step L) / (2 step L)), which is mu / (2 L) at the largest
    step. Of an F that is monotone and no more the step is the same, without a rate. F may be a gradient.

    Start: z_before = z^0.

    Parameters
    ----------
    step : None is 1 / (3 L).

    >>> str(OptimisticGradient(step=0.1))
    'optimistic_gradient(step=0.1)'
    """

    step: Stepsize = None

    name = "optimistic_gradient"
    aliases = ("ogda",)
    example = "optimistic_gradient"
    proximal = True
    source = Source(
        "Malitsky, Tam",
        2018,
        "A forward-backward splitting method for monotone inclusions without cocoercivity",
        "1808.04162",
        "Theorem 2.9, constants derived",
    )

    def settled(self, setting: Setting) -> OptimisticGradient:
        return OptimisticGradient(resolve(self.step, lambda: self.guarantee(setting).step))

    def guarantee(self, setting: Setting) -> Guarantee:
        promise = _monotone_only(self, setting)
        largest = 1.0 / (3.0 * float(setting.operator.L))
        if promise is not None:
            return dataclasses.replace(promise, step=largest)
        c, smooth, mu = strongly_monotone(setting)
        step = explicit(self.step) or largest
        part = step * smooth
        gain = min(2.0 * step * mu / (1.0 + part), (1.0 - 2.0 * part) / (2.0 * part))

        def lyapunov(snapshot: Snapshot) -> Terms:
            state = snapshot.state
            away, moved = state.z - snapshot.solution.x, state.z - state.before
            turned = inner(state.operator - state.operator_before, away)
            return Terms(square(away) - 2.0 * step * turned + part * square(moved))

        factor = gap_factor(setting)
        promise = Guarantee(
            largest,
            self.source,
            1.0 / (1.0 + gain) if gain > 0.0 else None,
            lyapunov,
            0.0,
            None if factor is None else factor / (1.0 - part) if part < 1.0 else None,
            ("F strongly monotone and Lipschitz",),
            leans_on=estimates(L=c.L, mu=c.mu),
        )
        return promise.at(explicit(self.step))

    async def init(self, oracles: Oracles, link: Link) -> OptimisticState:
        z = oracles.start()
        operator = await operator_at(z, oracles, link)
        return OptimisticState(z, operator, z, operator)

    async def iterate(self, state: OptimisticState, oracles: Oracles, link: Link) -> OptimisticState:
        step = number(self.step)
        z = _proximal(state.z - step * (2.0 * state.operator - state.operator_before), oracles, step)
        return OptimisticState(z, await operator_at(z, oracles, link), state.z, state.operator)

    def point(self, state: OptimisticState) -> Tensor:
        return state.z
