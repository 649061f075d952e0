"""GradSkip: ProxSkip in which a worker with an easy function stops computing until the next communication."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from torch import Tensor

from laconic.core.entry import Interval, Range, Source, Stepsize
from laconic.core.link import Link
from laconic.core.method import Method, explicit, number, resolve
from laconic.core.problem import Oracles
from laconic.core.rows import norm2
from laconic.core.state import Server, Worker
from laconic.core.theory import Guarantee, NoTheorem, Setting, Snapshot, Terms, estimates, known


@dataclass(frozen=True)
class Probabilities(Range):
    """A tuple of probabilities: one for all workers, or one for each."""

    def holds(self, value: Any) -> bool:
        one = Interval(0.0, 1.0)
        return isinstance(value, tuple) and len(value) > 0 and all(one.holds(part) for part in value)

    def examples_outside(self) -> tuple[Any, ...]:
        return ((), 0.5, [0.5], (0.5, 1.5), (-0.1,), (math.nan,), ("half",))

    def __str__(self) -> str:
        return "a tuple of numbers in [0, 1], as in (0.9,) or one for each worker"


@dataclass
class State:
    """Each worker's model and control variate, whether it rests, and the last average."""

    local: Worker  # x_i, (local, *shape)
    control: Worker  # h_i, (local, *shape)
    resting: Worker  # h_i = grad f_i(x_i): nothing moves until the next communication; bool (local,)
    x: Server  # the mean at the last communication, (*shape)


@dataclass(frozen=True)
class GradSkip(Method):
    """h^_i = h_i, or by a private coin of probability 1 - q_i h^_i = grad f_i(x_i); x^_i = x_i - step (grad f_i(x_i) -
    h^_i); by a shared coin of probability p, x_i = mean (x^_j - (step / p) h^_j), else x_i = x^_i;
    h_i <- h^_i + (p / step) (x_i - x^_i).

    A worker whose private coin falls stays where it is, with h_i = grad f_i(x_i), until the next communication, and
    computes no gradient. sum h_i = 0 after every communication. With q_i = 1 it is `proxskip`, with p = 1 gradient
    descent.

    Guarantee for mu-strongly convex, L_i-smooth f_i (recalled): step <= min_i p^2 / (L_i (1 - q_i (1 - p^2))), and
    mean ||x_i - x*||^2 + (step / p)^2 mean ||h_i - grad f_i(x*)||^2 contracts in expectation by
    1 - min(step mu, 1 - max q_i (1 - p^2)). With kappa_i = L_i / mu, p = 1 / sqrt(kappa_max) and q_i =
    (1 - 1 / kappa_i) / (1 - 1 / kappa_max), step = 1 / L_max: rounds are those of `proxskip`, and worker i computes
    kappa_i (1 + sqrt(kappa_max)) / (kappa_i + sqrt(kappa_max)) gradients per round on average.

    Parameters
    ----------
    step : None is the theorem's.
    probability : p; None is 1 / sqrt(kappa_max).
    keep : the q_i, one for all workers or one for each; None are those above.

    >>> str(GradSkip(keep=(1.0,)))
    'gradskip(keep=(1.0,))'
    """

    step: Stepsize = None
    probability: Annotated[float | None, Interval(0.0, 1.0, open="low")] = None
    keep: Annotated[tuple[float, ...] | None, Probabilities()] = None

    name = "gradskip"
    example = "gradskip(probability=0.5)"
    source = Source(
        "Maranjyan, Safaryan, Richtarik",
        2022,
        "GradSkip: communication-accelerated local gradient methods with better computational complexity",
        "2210.16402",
        "Algorithm 1, Theorem 3.6, constants recalled",
    )

    def settled(self, setting: Setting) -> GradSkip:
        if self.keep is not None and len(self.keep) not in (1, setting.n):
            raise ValueError(
                f"GradSkip(keep={self.keep}) : the problem has {setting.n} workers; give one number, or one for each"
            )
        p = self.probability if self.probability is not None else math.sqrt(_least(setting) / _smoothness(setting)[1])
        keep = self.keep if self.keep is not None else _balanced(setting)
        method = dataclasses.replace(self, probability=p, keep=keep)
        return dataclasses.replace(method, step=resolve(self.step, lambda: method.guarantee(setting).step))

    def guarantee(self, setting: Setting) -> Guarantee:
        c, mu = setting.constants, _least(setting)
        each, worst = _smoothness(setting)
        p = self.probability if self.probability is not None else math.sqrt(mu / worst)
        keep = self.keep if self.keep is not None else _balanced(setting)
        keep = keep * setting.n if len(keep) == 1 else keep
        largest = min(p * p / (smooth * (1.0 - q * (1.0 - p * p))) for smooth, q in zip(each, keep, strict=True))
        step = explicit(self.step) or largest

        def lyapunov(snapshot: Snapshot) -> Terms:
            state, x = snapshot.state, snapshot.solution.x
            drift = norm2(state.control - snapshot.oracles.gradients(x))
            return Terms(0.0, norm2(state.local - x) + (step / p) ** 2 * drift)

        promise = Guarantee(
            largest,
            self.source,
            1.0 - min(step * mu, 1.0 - max(keep) * (1.0 - p * p)),
            lyapunov,
            assumes=("f_i strongly convex and smooth",),
            sure=False,
            leans_on=estimates(L_max=c.L_max, mu_workers=c.mu_workers),
        )
        return promise.at(step)

    async def init(self, oracles: Oracles, link: Link) -> State:
        x = oracles.start()
        local = x.expand(oracles.block.size, *x.shape).clone()
        return State(local, torch.zeros_like(local), torch.zeros(len(local), dtype=torch.bool), x)

    async def iterate(self, state: State, oracles: Oracles, link: Link) -> State:
        step, p = number(self.step), number(self.probability)
        goes_on = link.coins(self._keep(link))
        awake = (~state.resting).nonzero()[:, 0]
        at, held = state.local[awake], state.control[awake]
        gradient = oracles.gradients(at, awake.numpy())
        held = torch.where(goes_on[awake].view(-1, *[1] * (held.dim() - 1)), held, gradient)
        ahead = state.local.index_copy(0, awake, at - step * (gradient - held))
        control = state.control.index_copy(0, awake, held)
        if not link.coin(p):
            return State(ahead, control, state.resting | ~goes_on, state.x)
        sent = await link.uplink(None, ahead - (step / p) * control)
        x = sent.mean.dense()
        local = (await link.broadcast(x)).expand(ahead.shape).clone()
        return State(local, control + (p / step) * (local - ahead), torch.zeros_like(state.resting), x)

    def _keep(self, link: Link) -> Tensor | float:
        """q_i of the local workers."""
        if self.keep is None:
            raise ValueError(f"{self} has no q_i yet; run the method that settled(setting) gives")
        if len(self.keep) == 1:
            return self.keep[0]
        return torch.tensor(self.keep, dtype=torch.float64)[torch.from_numpy(link.block.workers)]

    def point(self, state: State) -> Tensor:
        return state.x


def _least(setting: Setting) -> float:
    """mu of the least convex f_i. Raises NoTheorem where it is not strongly convex."""
    (mu,) = known(mu_workers=setting.constants.mu_workers)
    if mu <= 0.0:
        raise NoTheorem("the theorem of gradskip needs strongly convex f_i; give explicit step, probability and keep")
    return mu


def _smoothness(setting: Setting) -> tuple[tuple[float, ...], float]:
    """The L_i, and the largest. An L_i below mu by rounding is mu."""
    mu = setting.constants.mu_workers
    least = 0.0 if mu is None else float(mu)
    each = tuple(max(smooth, least) for smooth in setting.constants.L_workers)
    return each, max(each)


def _balanced(setting: Setting) -> tuple[float, ...]:
    """The q_i for which no worker's private coin slows the method down."""
    mu = _least(setting)
    each, worst = _smoothness(setting)
    if worst <= mu:
        return (1.0,)
    return tuple((1.0 - mu / smooth) / (1.0 - mu / worst) for smooth in each)
