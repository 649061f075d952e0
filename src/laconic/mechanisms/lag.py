"""LAG, lazy aggregation: workers send their gradients only when these have moved, by the rules of two papers."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor

from laconic.core.compressor import Packet
from laconic.core.entry import Count, Interval, Source
from laconic.core.estimator import Estimator, Probe
from laconic.core.link import Link
from laconic.core.mechanism import Mechanism, Need, full_gradients_only
from laconic.core.rows import norm2
from laconic.core.state import Server, Worker
from laconic.core.theory import Guarantee, Setting, Snapshot, Terms, estimates, known
from laconic.mechanisms.clag import triggered
from laconic.mechanisms.threepc import ThreePoint, paper

HALVINGS = 100  # of the interval in which the largest stepsize is sought


@dataclass(frozen=True)
class LAG(ThreePoint):
    """h_i <- v_i if ||v_i - h_i||^2 > trigger ||v_i - y_i||^2, else h_i stays; y_i is the worker's last vector.

    The rule of the 3PC paper, whose theory is simpler than that of the original one (:class:`LAGWK`). A worker that
    speaks sends v_i - h_i at full width; whether it does is its own affair and costs a byte of flag. With trigger 0
    it is gradient descent.

    Guarantee: that of `clag` with A = 1, B = trigger: step <= 1 / (L + L+ sqrt(trigger)), under PL
    step <= min(1 / (L + L+ sqrt(2 trigger)), 1 / (2 mu)).

    Parameters
    ----------
    trigger : the constant zeta >= 0 of the rule.

    >>> str(LAG(trigger=4.0))
    'lag(trigger=4.0)'
    """

    trigger: Annotated[float, Interval(0.0)] = 1.0

    name = "lag"
    example = "lag(trigger=4.0)"
    source = paper("Lemma on LAG")

    def packets(self, v: Tensor, shift: Tensor, previous: Tensor, link: Link) -> tuple[Packet, ...]:
        change = v - shift
        who = triggered(change, v, previous, self.trigger, link)
        return (link.compress(None, change[who.rows], who),)

    def constants(self, setting: Setting) -> tuple[float, float]:
        return 1.0, self.trigger


@dataclass
class Memory:
    """What LAG-WK keeps."""

    shift: Worker  # h_i, the vector sent last, (local, *shape)
    at: Worker  # the last point, (local, *shape)
    moves: Worker  # ||x^(k+1-l) - x^(k-l)||^2 for l = 1, ..., D, (local, D)
    estimate: Server  # mean h_i, (*shape)


@dataclass(frozen=True)
class LAGWK(Mechanism):
    """Worker i sends v_i - h_i if ||v_i - h_i||^2 > (weight / (D step^2)) sum over l <= D of ||x^(k+1-l) - x^(k-l)||^2.

    The original LAG-WK: what a worker still owes is compared with how far the model moved in the last D rounds, which
    every worker knows. Start: h_i = v_i, sent at full width. Whether a worker speaks is its own affair and costs a
    byte of flag. The paper writes f as the sum of the f_i, and divides by n^2 as well; for the mean, as here, the n^2
    is gone. Its xi is weight / D.

    Guarantee (derived anew; s is the step of the rule, xi = weight / D): for any step with
    step L + (step / s)^2 xi sum over j <= D of (1 - step mu)^-j <= 1,
    f - f* + (step xi / (2 s^2)) sum over l of ||x^(k+1-l) - x^(k-l)||^2 (sum over j <= D + 1 - l of (1 - step mu)^-j)
    contracts by 1 - step mu under PL. For smooth f the same with mu = 0 does not grow.

    Parameters
    ----------
    weight : of all D moves together; 0 is gradient descent.
    rounds : D.
    step : the stepsize that the rule counts with; None is 1 / L.

    >>> str(LAGWK(weight=0.5))
    'lag_wk(weight=0.5)'
    """

    weight: Annotated[float, Interval(0.0)] = 0.1
    rounds: Annotated[int, Count(1)] = 10
    step: Annotated[float | None, Interval(0.0, open="low")] = None

    name = "lag_wk"
    example = "lag_wk(weight=0.5)"
    needs = frozenset({Need.PROBE})
    source = Source(
        "Chen, Giannakis, Sun, Yin",
        2018,
        "LAG: lazily aggregated gradient for communication-efficient distributed learning",
        "1805.09965",
        "rule of LAG-WK; guarantee derived anew",
    )

    async def init(self, v: Tensor, link: Link, probe: Probe | None = None) -> tuple[Tensor, Memory]:
        sent = await link.uplink(None, v)
        moves = torch.zeros(v.shape[0], self.rounds, dtype=v.dtype)
        memory = Memory(sent.own.dense(), self._point(v, probe).clone(), moves, sent.mean.dense())
        return memory.estimate, memory

    async def exchange(
        self, v: Tensor, memory: Memory, link: Link, probe: Probe | None = None
    ) -> tuple[Tensor, Memory]:
        if self.step is None:
            raise ValueError(f"{self} has no step; use settled(), or give step=")
        at, change = self._point(v, probe), v - memory.shift
        moves = torch.cat([norm2(at - memory.at)[:, None], memory.moves[:, :-1]], dim=1)
        threshold = self.weight / (self.rounds * self.step**2) * moves.sum(1)
        who = link.volunteers(norm2(change) > threshold)
        sent = await link.uplink(None, change[who.rows], who)
        sent.own.add_to(memory.shift)
        sent.mean.add_to(memory.estimate)
        memory.at, memory.moves = at.clone(), moves
        return memory.estimate, memory

    def _point(self, v: Tensor, probe: Probe | None) -> Tensor:
        if probe is None:
            raise ValueError(f"{self} needs {Need.PROBE.value}, and was given none")
        return probe.at.expand(v.shape)

    def settled(self, setting: Setting) -> LAGWK:
        return self if self.step is not None else dataclasses.replace(self, step=1.0 / float(setting.constants.L))

    def guarantee(self, setting: Setting, estimator: Estimator, step: float | None) -> Guarantee:
        full_gradients_only(self, estimator)
        c, own = setting.constants, self.settled(setting).step or 1.0
        (smooth,) = known(L=c.L)
        mu, share, d = float(c.polyak or 0.0), self.weight / self.rounds / own**2, self.rounds
        largest = 1.0 / smooth if share == 0.0 else _largest(smooth, mu, share, d)
        leans = estimates(L=c.L, mu=c.polyak)
        if c.polyak is None:
            return Guarantee(largest, self.source, assumes=("f smooth",), leans_on=leans)
        used = largest if step is None else step
        weights = [0.5 * used * share * _sum(1.0 - used * mu, d + 1 - place) for place in range(1, d + 1)]

        def lyapunov(snapshot: Snapshot) -> Terms:
            moves = snapshot.state.memory.moves
            return Terms(snapshot.gap, (moves * torch.tensor(weights, dtype=moves.dtype)).sum(1))

        assumes = ("f smooth", "f strongly convex (or PL)")
        return Guarantee(largest, self.source, 1.0 - used * mu, lyapunov, 0.0, 1.0, assumes, leans_on=leans)


def _sum(rate: float, count: int) -> float:
    """rate^-1 + ... + rate^-count."""
    return sum(rate**-power for power in range(1, count + 1))


def _largest(smooth: float, mu: float, share: float, rounds: int) -> float:
    """The largest step with step L + step^2 share sum_j (1 - step mu)^-j <= 1; the left side grows with the step."""
    low, high = 0.0, 1.0 / smooth
    for _ in range(HALVINGS):
        step = 0.5 * (low + high)
        fits = step * mu < 1.0 and step * smooth + step**2 * share * _sum(1.0 - step * mu, rounds) <= 1.0
        low, high = (step, high) if fits else (low, step)
    return low
