"""Importance: compressors are told how much each coordinate matters, as gradients at trial points say."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from torch import Tensor

from laconic.compressors.impk import Importance
from laconic.core.entry import Count, Interval
from laconic.core.estimator import Probe
from laconic.core.link import Link
from laconic.core.mechanism import Mechanism, Need
from laconic.core.state import Server, Shared, Worker
from laconic.core.theory import Setting
from laconic.mechanisms._importance import Wrapper, flat, lending
from laconic.mechanisms.domains import importances, scale_free


def _open_trial(mechanism: Mechanism) -> ValueError:
    return ValueError(f"{mechanism} has no trial; use settled(), or give trial=")


# ---- every worker for itself -----------------------------------------------------------------------------------------


@dataclass
class LocalMemory:
    """Every worker's own importances, the exchanges so far, and what the mechanism inside keeps."""

    weights: Worker  # w_i, (local, d)
    round: int
    inner: Any


@dataclass(frozen=True)
class LocalImportance(Wrapper):
    """Worker i finds w_i for itself, by a few steps on phi(w) = f_i(x - trial w . v_i) on the data of v_i.

    phi says how good a step along the reweighted v_i would be; w = 1 is the plain step. The search starts where the
    last one ended, every `every` exchanges, and takes `steps` gradients more per worker, which the run's records
    count. No message grows: what is sent is what the compressor inside makes of w_i and v_i.

    Guarantee for direct(reweighted_impk(k)) with w in a cube, one worker and full gradients: for step < 2 / (L high),
    f - f* contracts by 1 - 2 mu step (1 - L step high / 2) (low^2 / high) (k / d); step = 1 / (L high) is the best
    (the slides' theorem for [1, 2], derived anew for every cube). Theorems of the mechanism inside hold where its
    compressor's claim does for every w, as that of scaled_reweighted_impk. Else there is none: with the simplex, or
    with the other operators, all of a gradient may be lost.

    Parameters
    ----------
    mechanism : whose compressors work with importances.
    domain : of the importances.
    steps : of the search, one gradient of f_i each.
    every : exchanges between searches.
    step : how far the largest coordinate moves in a step: on the simplex in log w.
    trial : the stepsize in phi; None is 1 / L, or 1 where the vectors are steps already.

    >>> from laconic.compressors.impk import ReweightedImpK
    >>> from laconic.mechanisms.direct import Direct
    >>> str(LocalImportance(Direct(ReweightedImpK(k=0.05)), steps=5, every=10))
    'local_importance(direct(reweighted_impk(k=0.05)), steps=5, every=10)'
    """

    steps: Annotated[int, Count(1)] = 1
    every: Annotated[int, Count(1)] = 1
    step: Annotated[float, Interval(0.0, open="low")] = 0.3
    trial: Annotated[float | None, Interval(0.0, open="low")] = None

    name = "local_importance"
    aliases = ("importance",)
    example = "local_importance(direct(reweighted_impk(k=0.05)))"
    needs = frozenset({Need.PROBE})

    async def init(self, v: Tensor, link: Link, probe: Probe | None = None) -> tuple[Tensor, LocalMemory]:
        weights = self._sought(self.domain.start(flat(v)), v, probe)
        estimate, inner = await self.mechanism.init(v, link.lending(Importance(weights)), probe)
        return estimate, LocalMemory(weights, 1, inner)

    async def exchange(
        self, v: Tensor, memory: LocalMemory, link: Link, probe: Probe | None = None
    ) -> tuple[Tensor, LocalMemory]:
        due = memory.round % self.every == 0
        weights = self._sought(memory.weights, v, probe) if due else memory.weights
        estimate, inner = await self.mechanism.exchange(v, memory.inner, link.lending(Importance(weights)), probe)
        return estimate, LocalMemory(weights, memory.round + 1, inner)

    def _sought(self, weights: Tensor, v: Tensor, probe: Probe | None) -> Tensor:
        if probe is None:
            raise ValueError(f"{self} needs {Need.PROBE.value}, and was given none")
        if self.trial is None:
            raise _open_trial(self)
        return importances(self.domain, weights, probe.at, v, probe, trial=self.trial, step=self.step, steps=self.steps)

    def settled(self, setting: Setting) -> LocalImportance:
        mechanism = self.mechanism.settled(setting)
        own = 1.0 if self.takes_step else 1.0 / float(setting.constants.L)
        return dataclasses.replace(self, mechanism=mechanism, trial=own if self.trial is None else self.trial)


# ---- the server for all ----------------------------------------------------------------------------------------------


@dataclass
class ServerMemory:
    """The importances of all workers, the exchanges so far, and what the mechanism inside keeps."""

    weights: Shared  # w, (d,)
    round: int
    inner: Any


@dataclass(frozen=True)
class ServerImportance(Wrapper):
    """The server finds one w for all by a few steps on phi(w) = f_1(x - trial w . grad f_1(x)), and broadcasts it.

    f_1 is the server's own function, a copy of worker 0's that stands for f: it costs the workers nothing, 1 + `steps`
    gradients of the server's per search, and d values of full width down to every worker.

    Guarantees are those of `local_importance`.

    Parameters
    ----------
    mechanism : whose compressors work with importances.
    domain : of the importances.
    steps : of the search, one gradient of f_1 each.
    every : exchanges between searches.
    step : how far the largest coordinate moves in a step: on the simplex in log w.
    trial : the stepsize in phi; None is 1 / L.

    >>> from laconic.compressors.impk import ImpK
    >>> from laconic.mechanisms.direct import Direct
    >>> str(ServerImportance(Direct(ImpK(k=0.05)), every=100))
    'server_importance(direct(impk(k=0.05)), every=100)'
    """

    steps: Annotated[int, Count(1)] = 1
    every: Annotated[int, Count(1)] = 1
    step: Annotated[float, Interval(0.0, open="low")] = 0.3
    trial: Annotated[float | None, Interval(0.0, open="low")] = None

    name = "server_importance"
    example = "server_importance(direct(reweighted_impk(k=0.05)), every=10)"
    needs = frozenset({Need.PROBE})

    async def init(self, v: Tensor, link: Link, probe: Probe | None = None) -> tuple[Tensor, ServerMemory]:
        shape = tuple(v.shape[1:])
        first = self.domain.start(torch.zeros(1, *shape, dtype=v.dtype))
        weights = await link.broadcast(self._sought(flat(first)[0], shape, link, probe))
        estimate, inner = await self.mechanism.init(v, lending(link, weights), probe)
        return estimate, ServerMemory(weights, 1, inner)

    async def exchange(
        self, v: Tensor, memory: ServerMemory, link: Link, probe: Probe | None = None
    ) -> tuple[Tensor, ServerMemory]:
        weights = memory.weights
        if memory.round % self.every == 0:
            weights = await link.broadcast(self._sought(weights, tuple(v.shape[1:]), link, probe))
        estimate, inner = await self.mechanism.exchange(v, memory.inner, lending(link, weights), probe)
        return estimate, ServerMemory(weights, memory.round + 1, inner)

    def _sought(self, weights: Tensor, shape: tuple[int, ...], link: Link, probe: Probe | None) -> Tensor:
        if probe is None or probe.server is None:
            raise ValueError(f"{self} needs a probe with a function of the server's, and was given none")
        if probe.at.shape != shape:
            raise ValueError(f"{self} needs one point that the server knows, and every worker has its own")
        if self.trial is None:
            raise _open_trial(self)
        own, trial = probe.server, self.trial

        def search() -> Tensor:
            g = own(probe.at)[None]
            start = weights[None]
            return importances(
                self.domain, start, probe.at, g, lambda x: own(x[0]), trial=trial, step=self.step, steps=self.steps
            )[0]

        return link.at_server(search, like=weights)

    def settled(self, setting: Setting) -> ServerImportance:
        mechanism = self.mechanism.settled(setting)
        own = 1.0 / float(setting.constants.L)
        return dataclasses.replace(self, mechanism=mechanism, trial=own if self.trial is None else self.trial)


# ---- from what all know ----------------------------------------------------------------------------------------------


@dataclass
class SharedMemory:
    """The importances of all workers, the last estimate, and what the mechanism inside keeps."""

    weights: Shared  # w, (d,)
    estimate: Server  # the last one, (*shape): borrowed, and read before the next exchange
    round: int
    inner: Any


@dataclass
class PublicMemory:
    """The same where every party knows the estimate."""

    weights: Shared  # w, (d,)
    estimate: Shared  # the last one, (*shape)
    round: int
    inner: Any


@dataclass(frozen=True)
class SharedImportance(Wrapper):
    """All workers find the same w from the last estimate g, which all know, by one step that takes no gradient.

    At w = 0 the gradient of phi(w) = f(x - trial w . grad f(x)) is -trial grad f(x) . grad f(x). With g in the place of
    grad f(x) all know it: w is the domain's start moved along g . g, so `impk` keeps the TopK support of the last
    estimate, the same on all workers. Where the mechanism inside is public this costs nothing; elsewhere g is
    broadcast, d values of full width down to every worker. In the first exchange w is the domain's start, all equal.

    Guarantees are those of `local_importance`.

    Parameters
    ----------
    mechanism : whose compressors work with importances.
    domain : of the importances.
    every : exchanges between renewals.
    step : how far the largest coordinate moves: on the simplex in log w.

    >>> from laconic.compressors.impk import ImpK
    >>> from laconic.mechanisms.direct import Direct
    >>> str(SharedImportance(Direct(ImpK(k=0.05)), every=10))
    'shared_importance(direct(impk(k=0.05)), every=10)'
    """

    every: Annotated[int, Count(1)] = 1
    step: Annotated[float, Interval(0.0, open="low")] = 0.3

    name = "shared_importance"
    example = "shared_importance(direct(reweighted_impk(k=0.05)))"

    async def init(self, v: Tensor, link: Link, probe: Probe | None = None) -> tuple[Tensor, Any]:
        first = self.domain.start(flat(torch.zeros(1, *v.shape[1:], dtype=v.dtype)))[0]
        estimate, inner = await self.mechanism.init(v, lending(link, first), probe)
        memory = PublicMemory if self.public else SharedMemory
        return estimate, memory(first, estimate, 0, inner)

    async def exchange(
        self, v: Tensor, memory: SharedMemory | PublicMemory, link: Link, probe: Probe | None = None
    ) -> tuple[Tensor, Any]:
        weights = memory.weights
        if memory.round % self.every == 0:
            estimate = memory.estimate if self.public else await link.broadcast(memory.estimate)
            g = flat(estimate[None])
            weights = self.domain.moved(self.domain.start(g), self.step * scale_free(g, g))[0]
        estimate, inner = await self.mechanism.exchange(v, memory.inner, lending(link, weights), probe)
        return estimate, type(memory)(weights, estimate, memory.round + 1, inner)
