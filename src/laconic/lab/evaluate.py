"""What the trace knows of a point: looked at off the books, with the same bits on any number of processes."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from laconic.core import rows
from laconic.core.link import Link
from laconic.core.problem import Oracles, Solution
from laconic.core.theory import Guarantee, Snapshot


@runtime_checkable
class Excess(Protocol):
    """Oracles that know f_i(x) - f_i(x*) - <grad f_i(x*), x - x*> without cancellation; its mean is f(x) - f*."""

    def excess(self, x: Tensor, solution: Solution) -> Tensor:
        """One value per local worker, (local,)."""
        ...


@dataclass
class Party:
    """One party of a run in this process: its end of the network, what its workers can compute, and its state."""

    link: Link
    oracles: Oracles
    state: Any = None
    slope: Tensor | None = None  # grad f(x*) of a composite problem, once it was needed


@dataclass(frozen=True)
class Evaluation:
    """A point as the trace sees it; NaN where something is not known.

    With a regulariser r, f and gap are those of f + r, and grad_norm2 that of its shortest subgradient. A variational
    problem has no gap: f is the function of its saddle point, grad_norm2 is ||F||^2.

    `culprit` names a worker whose value or gradient is not finite.
    """

    f: float
    gap: float
    grad_norm2: float
    distance2: float
    lyapunov: float
    culprit: str = ""

    @property
    def measure(self) -> float:
        """What is to vanish where x* is known: the gap, or ||x - x*||^2 where there is none."""
        return self.distance2 if math.isnan(self.gap) else self.gap


@dataclass(frozen=True)
class Work:
    """How often the oracles were asked, over all workers, in single terms; `server` is the server's own oracle."""

    gradient_terms: int = 0
    hessian_terms: int = 0
    product_terms: int = 0
    server_terms: int = 0
    server_hessian_terms: int = 0

    def __add__(self, other: Work) -> Work:
        return Work(*(a + b for a, b in zip(dataclasses.astuple(self), dataclasses.astuple(other), strict=True)))


async def evaluate(party: Party, point: Tensor, solution: Solution | None, guarantee: Guarantee | None) -> Evaluation:
    """f, gap, ||grad f||^2, distance and Lyapunov value at the server's `point`, on every party.

    The calls of the oracles that this takes are not counted.
    """
    oracles = party.oracles
    before = dataclasses.replace(oracles.calls)
    x = await party.link.show(point)
    values = await party.link.look(oracles.values(x))
    f = mean(values)
    gradients = await party.link.look(oracles.gradients(x))
    gradient = rows.mean(gradients)
    least = gradient
    if oracles.regulariser is not None:
        f += oracles.regulariser.value(x)
        least = oracles.regulariser.least_subgradient(x, gradient)
    grad_norm2 = rows.square(least.double())
    gap = distance2 = lyapunov = math.nan
    if solution is not None:
        gap = math.nan if oracles.variational else await _gap(party, x, f, solution)
        distance2 = rows.square((x - solution.x).double())
        known = math.isfinite(f if oracles.variational else gap)
        if guarantee is not None and guarantee.lyapunov is not None and known:
            lyapunov = await _lyapunov(party, guarantee, Snapshot(x, gap, gradient, party.state, oracles, solution))
    oracles.calls = before
    culprit = "" if math.isfinite(f) and math.isfinite(grad_norm2) else _culprit(values, gradients)
    return Evaluation(f, gap, grad_norm2, distance2, lyapunov, culprit)


async def _gap(party: Party, x: Tensor, f: float, solution: Solution) -> float:
    oracles = party.oracles
    if not isinstance(oracles, Excess) or not math.isfinite(f):
        return f - solution.value
    smooth = mean(await party.link.look(oracles.excess(x, solution)))
    if oracles.regulariser is None:
        return smooth
    if party.slope is None:
        party.slope = rows.mean(await party.link.look(oracles.gradients(solution.x)))
    return smooth + oracles.regulariser.excess(x, solution.x, party.slope)


def mean(values: Tensor) -> float:
    """The mean over workers, rounded once, so that it depends on nothing but the values."""
    return math.fsum(values.double().tolist()) / len(values) if torch.isfinite(values).all() else math.nan


async def _lyapunov(party: Party, guarantee: Guarantee, snapshot: Snapshot) -> float:
    assert guarantee.lyapunov is not None
    terms = guarantee.lyapunov(snapshot)
    shared = terms.shared
    if terms.vectors is not None and terms.of_mean is not None:
        shared += terms.of_mean(rows.mean(await party.link.look(terms.vectors)))
    value = float(await party.link.show(torch.tensor(shared, dtype=torch.float64)))
    return value if terms.workers is None else value + mean(await party.link.look(terms.workers.double()))


def _culprit(values: Tensor, gradients: Tensor) -> str:
    for what, rows_ in (("value", values), ("gradient", gradients)):
        bad = ~torch.isfinite(rows_.reshape(rows_.shape[0], -1)).all(dim=1)
        if bad.any():
            return f"worker {int(bad.nonzero()[0, 0])}'s {what} is not finite"
    return ""


async def survey(party: Party) -> tuple[int, int, int]:
    """Terms per worker of the whole problem: the fewest, the most, and all together."""
    terms = await party.link.look(torch.from_numpy(party.oracles.terms()).double())
    return int(terms.min()), int(terms.max()), int(terms.sum())


async def work(party: Party) -> Work:
    """What the oracles of all parties were asked since their calls were last reset."""
    calls = party.oracles.asked()
    counts = torch.zeros(party.link.block.size, 3, dtype=torch.float64)
    if party.link.block.size:
        asked = [calls.gradient_terms, calls.hessian_terms, calls.product_terms]
        counts[0] = torch.tensor(asked, dtype=torch.float64)
    everyone = (await party.link.look(counts)).sum(dim=0)
    own = torch.tensor([calls.server_terms, calls.server_hessian_terms], dtype=torch.float64)
    server = await party.link.show(own)
    return Work(*(int(count) for count in (*everyone, *server)))
