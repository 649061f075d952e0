"""Checks of estimators: unbiased or exact, vanishing at the solution, the same in any company, untouched states."""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from laconic.checks.course import difference
from laconic.checks.findings import Findings
from laconic.checks.reference import Reference, ReferenceOracles
from laconic.checks.statistics import quantile
from laconic.checks.suite import Amounts, Suite
from laconic.checks.trial import same
from laconic.core.estimator import Estimate, Estimator
from laconic.core.link import Cohort, Link
from laconic.core.problem import Block
from laconic.core.state import Leaf, flatten, put, take

COPIES = 16  # workers with the same terms: as many draws at once
MANY = Reference(workers=4 * COPIES, families=4)
SMALL = Reference(workers=5)
VISITS = 4
PATIENCE = 25.0  # visits in means of renewals until a variance must have vanished


@dataclass
class Visits:
    """An estimator at work: estimates at given points, one after another, as a method would ask for them."""

    estimator: Estimator
    oracles: ReferenceOracles
    link: Link
    state: Any = None
    count: int = 0

    def at(self, x: Tensor) -> Estimate:
        """The next estimate."""
        self.link.begin(self.count)
        scope = self.link.scope("estimator")
        if self.count:
            estimate = self.estimator.estimate(x, self.state, self.oracles, scope)
        else:
            estimate = self.estimator.init(x, self.oracles, scope)
        self.state, self.count = estimate.state, self.count + 1
        return estimate


def visits(estimator: Estimator, problem: Reference, seed: int = 0, block: Block | None = None) -> Visits:
    """Of the workers of a block (None: of all)."""
    block = block or Block.whole(problem.n)
    oracles = problem.host(block)
    assert isinstance(oracles, ReferenceOracles)
    return Visits(estimator, oracles, Link(block, seed))


def path(problem: Reference, count: int, reach: float = 0.3) -> list[Tensor]:
    """Points on the way from the start, the same ones every time."""
    x = problem.oracles(Block.whole(problem.n)).start()
    away = torch.linspace(-1.0, 1.0, problem.d, dtype=x.dtype)
    return [x + reach * step * away.roll(step) for step in range(count)]


def copied(state: Any) -> dict[str, Tensor]:
    """A state's tensors as they are now."""
    return {name: leaf.tensor.clone() for name, leaf in flatten(state).items()}


def estimator_checks(found: Findings, estimator: Estimator, effort: Amounts) -> Suite:
    """Of an estimator, on the reference problem, whose workers have 2 to 5 terms."""
    stays = functools.partial(_unbiased, found, estimator, effort, path(MANY, VISITS, 0.0))
    yield "the mean is the gradient where x stays", stays
    yield (
        "the mean is the gradient where x moves",
        functools.partial(_unbiased, found, estimator, effort, path(MANY, VISITS)),
    )
    for name, made in (
        ("exact where it says so", _exact),
        ("its variance vanishes at the solution where it says so", _vanishing),
        ("the same alone and in company", _company),
        ("some of the workers", _among),
        ("the last state stays untouched", _untouched),
        ("the probe looks at the same data", _probe),
        ("calls are counted", _counted),
    ):
        yield name, functools.partial(made, found, estimator)


# ---- means -----------------------------------------------------------------------------------------------------------


def _unbiased(found: Findings, estimator: Estimator, effort: Amounts, points: Sequence[Tensor]) -> None:
    """Over all randomness from the first visit on, at every visit."""
    groups: list[Tensor] = []
    began = time.process_time()
    for seed in range(effort.draws):
        run = visits(estimator, MANY, seed)
        means = [run.at(x).v.view(COPIES, 4, MANY.d).mean(0) for x in points]
        groups.append(torch.stack(means))
        if len(groups) >= 12 and time.process_time() - began > effort.seconds:
            break
    exact = torch.stack([run.oracles.gradients(x)[:4] for x in points])
    drawn = torch.stack(groups)
    width = quantile(len(groups)) * drawn.std(0) / math.sqrt(len(groups)) + 1e-12 * exact.abs().max()
    off = (drawn.mean(0) - exact).abs() - width
    if not bool((off <= 0).all()):
        visit, worker, _ = (int(i) for i in torch.unravel_index(off.argmax(), off.shape))
        worst = float((drawn.mean(0) - exact)[visit, worker].norm() / exact[visit, worker].norm())
        found.fail(f"the mean of visit {visit} is off by {worst:.3g} of the gradient, beyond what chance allows")


def _exact(found: Findings, estimator: Estimator) -> None:
    if not estimator.exact:
        return
    run = visits(estimator, SMALL)
    for x in path(SMALL, VISITS):
        found.expect(same(run.at(x).v, run.oracles.gradients(x)), "exact, and not the gradient")


def _vanishing(found: Findings, estimator: Estimator) -> None:
    if not estimator.vanishing:
        return
    solution, run = SMALL.solution(), visits(estimator, SMALL)
    assert solution is not None
    run.at(path(SMALL, 1)[0])
    renewals = [estimator.renewal(int(terms)) for terms in run.oracles.terms()]
    found.expect(all(0.0 <= p <= 1.0 for p in renewals), f"probabilities of renewal {renewals}")
    least = min((p for p in renewals if p > 0.0), default=0.1)
    for _ in range(min(2000, max(100, math.ceil(PATIENCE / least)))):
        last = run.at(solution.x).v
    gradients = run.oracles.gradients(solution.x)
    left = float((last - gradients).norm() / gradients.norm())
    found.expect(
        left < 1e-6, f"after {run.count} visits of the solution it is still off by {left:.3g} of the gradients"
    )


# ---- company ---------------------------------------------------------------------------------------------------------


def _company(found: Findings, estimator: Estimator) -> None:
    """In any block, and whether one point is given or that point for each worker."""
    for low, high in ((0, 1), (1, 3), (2, 5), (3, 3)):
        found.place = f"workers {low} to {high - 1}" if high > low else "a block without workers"
        whole, part = visits(estimator, SMALL), visits(estimator, SMALL, block=Block(low, high, 5))
        for x in path(SMALL, VISITS):
            expected = whole.at(x).v[low:high]
            found.expect(same(part.at(x).v, expected), "what a worker estimates depends on who shares its block")
    found.place = "a point for each worker"
    whole, apart = visits(estimator, SMALL), visits(estimator, SMALL)
    for x in path(SMALL, VISITS):
        found.expect(
            same(whole.at(x).v, apart.at(x.expand(5, -1).clone()).v), "one point for all gives another estimate"
        )


def _among(found: Findings, estimator: Estimator) -> None:
    """Where some act, their estimates and states are theirs, and nobody else's state moves."""
    run, rows, silent = visits(estimator, SMALL), np.array([1, 3, 4]), [0, 2]
    first, *rest = path(SMALL, VISITS)
    run.at(first)
    for x in rest:
        run.link.begin(run.count)
        everyone = estimator.estimate(x, run.state, run.oracles, run.link.scope("estimator"))
        run.link.begin(run.count)
        link = run.link.among(Cohort(rows, rows)).scope("estimator")
        before = copied(run.state)
        part = estimator.estimate(x, take(run.state, rows), run.oracles.among(rows), link)
        found.expect(same(part.v, everyone.v[rows]), "a worker's estimate depends on who else acts")
        run.state, run.count = put(run.state, rows, part.state), run.count + 1
        for name, tensor in copied(run.state).items():
            if tensor.dim() and tensor.shape[0] == SMALL.n:
                found.expect(same(tensor[silent], before[name][silent]), f"{name} of a silent worker moves")


def _untouched(found: Findings, estimator: Estimator) -> None:
    run, other = visits(estimator, SMALL), visits(estimator, SMALL)
    for x in path(SMALL, VISITS):
        state, before, point = run.state, copied(run.state), x.clone()
        estimate, again = run.at(x), other.at(x)
        found.expect(
            not difference(copied(state), before), f"{difference(copied(state), before)} of the last state is changed"
        )
        found.expect(same(x, point), "the point is changed")
        found.expect(same(estimate.v, again.v), "the same addresses give another estimate the second time")
        estimate.v.fill_(math.nan)  # the caller owns it
        touched = difference(copied(estimate.state), copied(again.state))
        found.expect(not touched, f"writing to the estimate changes {touched} of the state")
    leaves: dict[str, Leaf] = flatten(run.state)
    for name, leaf in leaves.items():
        found.expect(bool(torch.isfinite(leaf.tensor).all()), f"{name} of the state is not finite")


# ---- probes and counts -----------------------------------------------------------------------------------------------


def _probe(found: Findings, estimator: Estimator) -> None:
    run = visits(estimator, SMALL)
    points = path(SMALL, VISITS + 1)
    for x, y in zip(points, points[1:], strict=False):
        estimate = run.at(x)
        probe, v = estimate.probe, estimate.v.clone()
        found.expect(same(probe.at + 0.0, x), "the probe is not at the estimate's point")
        found.expect(same(probe.full(y), run.oracles.gradients(y)), "probe.full is not the full gradient")
        found.expect(probe.full(y).shape == v.shape and probe(y).shape == v.shape, "a probe of another shape")
        found.expect(same(probe(y), probe(y)), "the probe looks at other data the second time")
        shared = probe(y.expand(v.shape).clone())
        found.expect(same(shared, probe(y)), "one point for all and that point for each give other gradients")
        moved = (probe(y) - probe(x)).norm()
        found.expect(float(moved) > 0.0, "the probe does not depend on its point")
        found.expect(same(estimate.v, v), "the probe changes the estimate")
        if estimator.exact:
            found.expect(same(probe(y), run.oracles.gradients(y)), "exact, and the probe is not the gradient")
    _same_data(found, estimator)


def _same_data(found: Findings, estimator: Estimator) -> None:
    """Differences of a probe are means of differences of terms: unbiased, and on one term those of that term."""
    run = visits(estimator, MANY)
    x, y = path(MANY, 2)
    run.at(x)
    estimate = run.at(x)
    change = estimate.probe(y) - estimate.probe(x)
    drawn = change.view(COPIES, 4, MANY.d)
    exact = (run.oracles.gradients(y) - run.oracles.gradients(x))[:4]
    width = quantile(COPIES) * drawn.std(0) / math.sqrt(COPIES) + 1e-12 * exact.abs().max()
    found.expect(
        bool(((drawn.mean(0) - exact).abs() <= width).all()), "the probe's differences are not those of the gradient"
    )


def _counted(found: Findings, estimator: Estimator) -> None:
    """What the oracles were asked is what they did."""
    run = visits(estimator, SMALL)
    for x in path(SMALL, VISITS):
        before, looked = run.oracles.calls.gradient_terms, run.oracles.looked
        run.at(x)
        asked, did = run.oracles.calls.gradient_terms - before, run.oracles.looked - looked
        found.expect(asked == did, f"{did} terms of gradients were made and {asked} counted")
        found.expect(asked > 0 or run.count > 1, "no gradient is asked for")
