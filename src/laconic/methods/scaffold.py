"""SCAFFOLD: local steps whose drift control variates correct, for all workers or cohorts; two ways to renew them."""

from __future__ import annotations

import dataclasses
from abc import abstractmethod
from dataclasses import dataclass, field
from typing import Annotated, Any

import torch
from torch import Tensor

from laconic.core.entry import Count, Interval, Source, Stepsize
from laconic.core.estimator import Estimator
from laconic.core.flight import together
from laconic.core.link import Cohort, Link
from laconic.core.method import Method, explicit, number, resolve
from laconic.core.problem import Oracles
from laconic.core.rows import norm2, square
from laconic.core.state import Server, Worker
from laconic.core.theory import Guarantee, NoTheorem, Setting, Snapshot, Terms, estimates, known
from laconic.estimators.full import FullGradient
from laconic.methods._local import cohort_of, first_memory, walk_among

_SOURCE = Source(
    "Karimireddy, Kale, Mohri, Reddi, Stich, Suresh",
    2019,
    "SCAFFOLD: stochastic controlled averaging for federated learning",
    "1910.06378",
    "Algorithm 1, Theorem VII, constants recalled",
)


@dataclass
class State:
    """The model, the control variates and their mean, and what each worker's estimator keeps."""

    x: Server  # (*shape)
    mean: Server  # c = mean c_i, (*shape)
    control: Worker  # c_i, (local, *shape)
    kept: Any


@dataclass(frozen=True)
class _Controlled(Method):
    """The text of SCAFFOLD; `_renewed` makes the new control variates of a cohort."""

    step: Stepsize = None
    local_steps: Annotated[int, Count(1)] = 5
    cohort: Annotated[int | None, Count(1)] = None
    server_step: Annotated[float, Interval(0.0, open="low")] = 1.0
    estimator: Estimator = field(default_factory=FullGradient)

    @abstractmethod
    def _renewed(self, x: Tensor, walked: Tensor, who: Cohort, oracles: Oracles, link: Link) -> Tensor:
        """c_i+ of the cohort, from the x it was told and the mean gradients of its way, (its rows, *shape)."""

    def settled(self, setting: Setting) -> _Controlled:
        cohort = cohort_of(self, self.cohort, setting.n)
        step = resolve(self.step, lambda: self.guarantee(setting).step)
        return dataclasses.replace(self, step=step, cohort=cohort)

    def guarantee(self, setting: Setting) -> Guarantee:
        c, cohort = setting.constants, cohort_of(self, self.cohort, setting.n)
        if not setting.convex:
            raise NoTheorem(f"the theorem of {self} needs convex f_i; give an explicit step")
        if not self.estimator.exact:
            raise NoTheorem(f"the theorem of {self} is stated for full gradients here; give an explicit step")
        if self.server_step < 1.0:
            raise NoTheorem(f"the theorem of {self} needs server_step >= 1; give an explicit step")
        (smooth,) = known(L_max=c.L_max)
        moves, share = self.local_steps * self.server_step, cohort / setting.n
        largest, mu = 1.0 / (81.0 * smooth * moves), c.mu_workers
        if mu is None or float(mu) <= 0.0:
            leans = estimates(L_max=c.L_max)
            return Guarantee(largest, self.source, assumes=("f_i convex and smooth",), sure=False, leans_on=leans)
        largest = min(largest, share / (15.0 * float(mu) * moves))
        effective = moves * (explicit(self.step) or largest)

        def lyapunov(snapshot: Snapshot) -> Terms:
            drift = norm2(snapshot.state.control - snapshot.oracles.gradients(snapshot.solution.x))
            return Terms(square(snapshot.x - snapshot.solution.x), 9.0 * effective**2 / share * drift)

        promise = Guarantee(
            largest,
            self.source,
            1.0 - 0.5 * effective * float(mu),
            lyapunov,
            0.0,
            0.5 * float(c.L),
            ("f_i strongly convex and smooth",),
            sure=False,
            leans_on=estimates(L_max=c.L_max, mu_workers=mu),
        )
        return promise.at(explicit(self.step))

    async def init(self, oracles: Oracles, link: Link) -> State:
        x = oracles.start()
        control = x.new_zeros(oracles.block.size, *x.shape)
        return State(x, torch.zeros_like(x), control, first_memory(self.estimator, x, oracles, link))

    async def iterate(self, state: State, oracles: Oracles, link: Link) -> State:
        step, steps, who = number(self.step), self.local_steps, link.sample(self.cohort or link.n)
        rows = torch.from_numpy(who.rows)
        x, mean = await together(link.broadcast(state.x, to=who), link.broadcast(state.mean, to=who))
        correction = mean - state.control[rows]
        total, kept = walk_among(who, x, state.kept, steps, step, self.estimator, oracles, link, correction)
        renewed = self._renewed(x, total / steps - correction, who, oracles, link)
        moved, changed = await together(
            link.uplink(None, -step * total, who), link.uplink(None, renewed - state.control[rows], who)
        )
        x = state.x + self.server_step * (link.n / (self.cohort or link.n) * moved.mean.dense())
        state.control[rows] = renewed
        return State(x, state.mean + changed.mean.dense(), state.control, kept)

    def point(self, state: State) -> Tensor:
        return state.x


@dataclass(frozen=True)
class SCAFFOLD(_Controlled):
    """x and c go to a random cohort; y_i = x, local_steps times y_i <- y_i - step (v_i(y_i) - c_i + c); then

    c_i+ = c_i - c + (x - y_i) / (local_steps step), the mean of the gradients on the way (option II); the cohort sends
    y_i - x and c_i+ - c_i; x <- x + server_step mean (y_i - x) over the cohort, c <- c + (sum of the changes) / n,
    which keeps c = mean c_i. Start: c_i = 0. Its limit is x*, with c_i = grad f_i(x*), also with cohorts.

    Guarantee for convex, L_i-smooth f_i and full gradients (constants recalled): step <= 1 / (81 L_max local_steps
    server_step) and, for mu-strongly convex f_i, cohort / (15 n mu local_steps server_step); with
    s = step local_steps server_step, ||x - x*||^2 + (9 s^2 n / cohort) mean ||c_i - grad f_i(x*)||^2 then contracts in
    expectation by 1 - mu s / 2 (server_step >= 1). Rounds are of the order L / mu + n / cohort, not better than
    gradient descent's; steps ten times as large usually work.

    Parameters
    ----------
    step : of the local steps; None is the theorem's.
    local_steps : per round.
    cohort : how many workers take part in a round; None is all.
    server_step : of the mean change; 1 is averaging.
    estimator : how workers estimate gradients on their way.

    >>> str(SCAFFOLD(step="10x", cohort=3))
    "scaffold(step='10x', cohort=3)"
    """

    name = "scaffold"
    aliases = ("scaffold_ii",)
    example = "scaffold(local_steps=4)"
    source = _SOURCE

    def _renewed(self, x: Tensor, walked: Tensor, who: Cohort, oracles: Oracles, link: Link) -> Tensor:
        return walked


@dataclass(frozen=True)
class SCAFFOLDAtServer(_Controlled):
    """SCAFFOLD whose control variates are gradients at the server's model (option I): c_i+ = grad f_i(x).

    They cost a worker one more gradient per round, and do not depend on the way that it took.

    Guarantee as of `scaffold`.

    Parameters
    ----------
    step, local_steps, cohort, server_step, estimator : as of `scaffold`.

    >>> str(SCAFFOLDAtServer(local_steps=3))
    'scaffold_i(local_steps=3)'
    """

    name = "scaffold_i"
    example = "scaffold_i(step='10x', local_steps=4, cohort=2)"
    source = _SOURCE

    def _renewed(self, x: Tensor, walked: Tensor, who: Cohort, oracles: Oracles, link: Link) -> Tensor:
        return oracles.gradients(x, who.rows)
