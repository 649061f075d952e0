"""Checks of mechanisms: what they keep and write to, silence, whose the estimate is, and gradient descent with them."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from laconic.checks.course import RUNTIMES, descent, difference, parts_of
from laconic.checks.findings import Findings
from laconic.checks.methods import method_checks
from laconic.checks.reference import Reference
from laconic.checks.suite import Amounts, Suite
from laconic.checks.theory import homogeneous
from laconic.checks.trial import same
from laconic.core.compressor import Compressor, as_contractive
from laconic.core.estimator import Probe, of_server
from laconic.core.link import Cohort
from laconic.core.mechanism import Mechanism, Need
from laconic.core.method import Method
from laconic.core.problem import Oracles
from laconic.core.state import Placement, flatten, put, take
from laconic.core.theory import Guarantee, NoTheorem, Setting
from laconic.runtime.local import Local

PROBLEM = Reference(workers=5)
SEED = 3


@dataclass
class Talk:
    """A mechanism at work on full gradients at given points, on every party of a runtime."""

    mechanism: Mechanism
    runtime: Local
    problem: Reference = PROBLEM
    memories: list[Any] = field(default_factory=list)
    estimates: list[Tensor] = field(default_factory=list)
    given: list[Tensor] = field(default_factory=list)
    count: int = 0

    def __post_init__(self) -> None:
        self.oracles = [self.problem.host(link.block) for link in self.runtime.links]

    def say(self, x: Tensor) -> Tensor:
        """One exchange at x; the server's estimate, borrowed."""
        texts, self.given = [], []
        for place, (link, oracles) in enumerate(zip(self.runtime.links, self.oracles, strict=True)):
            link.begin(self.count)
            v = oracles.gradients(x)
            self.given.append(v)
            scope, probe = link.scope("mechanism"), self.probe(x, oracles)
            if self.count:
                texts.append(self.mechanism.exchange(v, self.memories[place], scope, probe))
            else:
                texts.append(self.mechanism.init(v, scope, probe))
        replies = self.runtime.drive(*texts)
        self.estimates, self.memories = [one for one, _ in replies], [memory for _, memory in replies]
        self.count += 1
        return self.estimates[0]

    def probe(self, x: Tensor, oracles: Oracles) -> Probe | None:
        """For those alone that ask for one: who does not must do without."""
        if Need.PROBE not in self.mechanism.needs:
            return None
        return Probe(x, oracles.gradients, oracles.gradients, of_server(oracles))

    @property
    def memory(self) -> dict[str, Tensor]:
        """Copies of what the first party keeps."""
        return {name: leaf.tensor.clone() for name, leaf in flatten(self.memories[0]).items()}


def talk(mechanism: Mechanism, runtime: Local | None = None) -> Talk:
    """A settled mechanism about to begin."""
    return Talk(mechanism.settled(PROBLEM.setting()), runtime or Local(PROBLEM.n, seed=SEED))


def path(count: int) -> list[Tensor]:
    """Points towards the solution of the reference problem, and past it."""
    start, solution = PROBLEM.oracles(Local(PROBLEM.n).links[0].block).start(), PROBLEM.solution()
    assert solution is not None
    return [solution.x + 0.8**k * (start - solution.x).roll(k) for k in range(count)]


def mechanism_checks(found: Findings, mechanism: Mechanism, effort: Amounts) -> Suite:
    """Of a mechanism by itself, and of gradient descent with it."""
    for name, made in (
        ("vectors are not kept", _not_kept),
        ("what it keeps is finite, and every party's own", _memory),
        ("the estimate is whose it says", _public),
        ("nothing comes of nothing", _zeros),
        ("some of the workers", _lazy),
    ):
        yield name, functools.partial(made, found, mechanism)
    yield "estimates are of the mean", functools.partial(_mean, found, mechanism, effort)
    if mechanism.takes_step:
        yield "the step is taken inside", functools.partial(_takes_step, found, mechanism)
    yield from method_checks(found, descent(mechanism), effort)


def _not_kept(found: Findings, mechanism: Mechanism) -> None:
    """The caller reuses v once the exchange is over, and points are not written to."""
    kept, spoilt = talk(mechanism), talk(mechanism)
    for x in path(6):
        before = x.clone()
        expected = kept.say(x).clone()
        found.expect(same(spoilt.say(x), expected), "the vectors are kept: writing to them changes later estimates")
        for v in spoilt.given:
            v.fill_(math.nan)
        found.expect(same(x, before), "the point is written to")
    odd = difference(spoilt.memory, kept.memory)
    found.expect(not odd, f"the vectors are kept: writing to them changes {odd} of the memory")


def _memory(found: Findings, mechanism: Mechanism) -> None:
    """Workers' rows are workers' rows, shared values are the same everywhere, the server's are NaN elsewhere."""
    star = talk(mechanism, RUNTIMES["in a star"](PROBLEM.n, SEED))
    for x in path(6):
        star.say(x)
    leaves = [flatten(memory) for memory in star.memories]
    for name, leaf in leaves[0].items():
        for place, link in enumerate(star.runtime.links):
            own = leaves[place][name].tensor
            if leaf.placement is Placement.WORKER:
                found.expect(own.shape[0] == link.block.size, f"{name} is marked Worker and has {own.shape[0]} rows")
            if leaf.placement is Placement.SHARED:
                found.expect(same(own, leaf.tensor), f"{name} is marked Shared and differs between parties")
            if leaf.placement is not Placement.SERVER or link.holds_server:
                found.expect(bool(torch.isfinite(own.double()).all()), f"{name} is not finite on party {place}")


def _public(found: Findings, mechanism: Mechanism) -> None:
    """A public estimate is the same on all parties; every estimate is finite where the server is."""
    star = talk(mechanism, RUNTIMES["in a star"](PROBLEM.n, SEED))
    for x in path(6):
        star.say(x)
        first, *others = star.estimates
        found.expect(first.shape == (PROBLEM.d,), f"an estimate of the shape {tuple(first.shape)}")
        found.expect(bool(torch.isfinite(first).all()), "the server's estimate is not finite")
        if mechanism.public:
            found.expect(all(same(one, first) for one in others), "public, and not every party knows the estimate")


def _zeros(found: Findings, mechanism: Mechanism) -> None:
    """Where all gradients vanish the estimate is 0, from the start and for ever."""
    if not homogeneous(descent(mechanism)):
        return
    problem = Reference(workers=5, unlike=0.0, away=0.0)
    run = Talk(mechanism.settled(problem.setting()), Local(problem.n, seed=SEED), problem)
    solution = problem.solution()
    assert solution is not None
    for _ in range(8):
        size = float(run.say(solution.x).norm())
        found.expect(size < 1e-9, f"all gradients vanish and the estimate has the norm {size:.3g}")


def _lazy(found: Findings, mechanism: Mechanism) -> None:
    """Where some speak, what the silent keep stays; the estimate stays finite; all may speak again."""
    if not mechanism.lazy:
        return
    run, rows, silent = talk(mechanism), np.array([0, 3]), [1, 2, 4]
    (link,), (oracles,) = run.runtime.links, run.oracles
    first, *rest = path(7)
    run.say(first)
    for x in rest[:4]:
        link.begin(run.count)
        before, memory = run.memory, run.memories[0]
        few = oracles.among(rows)
        scope = link.among(Cohort(rows, rows)).scope("mechanism")
        text = run.mechanism.exchange(few.gradients(x), take(memory, rows), scope, run.probe(x, few))
        ((estimate, part),) = run.runtime.drive(text)
        run.memories, run.count = [put(memory, rows, part)], run.count + 1
        found.expect(bool(torch.isfinite(estimate).all()), "with silent workers the estimate is not finite")
        for name, leaf in flatten(run.memories[0]).items():
            if leaf.placement is Placement.WORKER:
                found.expect(same(leaf.tensor[silent], before[name][silent]), f"{name} of a silent worker changes")
    for x in rest[4:]:
        found.expect(bool(torch.isfinite(run.say(x)).all()), "after a silence the estimate is not finite")


# ---- what the estimate is of -----------------------------------------------------------------------------------------


def _mean(found: Findings, mechanism: Mechanism, effort: Amounts) -> None:
    """Of vectors that stay the same: over time, the mean of the estimates is their mean, where a theorem says so."""
    if not _has_theorem(mechanism) or any(_unknown(c) for c in parts_of(mechanism, Compressor)):
        return
    run, x = talk(mechanism), path(1)[0]
    (oracles,) = run.oracles
    exact = oracles.gradients(x).mean(0)
    rounds, total, squares = 5 * effort.long, torch.zeros_like(exact), torch.zeros_like(exact)
    for _ in range(rounds):
        estimate = run.say(x)
        total, squares = total + estimate, squares + estimate**2
    mean = total / rounds
    spread = float((squares / rounds - mean**2).clamp(min=0).sum().sqrt())
    off, size = float((mean - exact).norm()), float(exact.norm())
    allowed = 0.2 * size + 8.0 * spread / math.sqrt(rounds)
    found.expect(off <= allowed, f"of constant vectors the estimates are off by {off / size:.3g} of their mean")


def _has_theorem(mechanism: Mechanism) -> bool:
    setting: Setting = PROBLEM.setting()
    try:
        method: Method = descent(mechanism).settled(setting)
        promise: Guarantee = method.guarantee(setting)
    except (NoTheorem, ValueError):
        return False
    return promise.step > 0.0


def _unknown(compressor: Compressor) -> bool:
    claim = compressor.claim(PROBLEM.d, PROBLEM.n)
    return claim is None or ((alpha := as_contractive(claim)) is not None and alpha < 0.05)


def _takes_step(found: Findings, mechanism: Mechanism) -> None:
    """Vectors that come multiplied by a step give an estimate multiplied by it."""
    estimates = []
    for factor in (1.0, 0.25):
        run = Talk(mechanism.settled(PROBLEM.setting()), Local(PROBLEM.n, seed=SEED))
        (link,), (oracles,) = run.runtime.links, run.oracles
        memory: Any = None
        for count, x in enumerate(path(4)):
            link.begin(count)
            v = factor * oracles.gradients(x)
            scope, probe = link.scope("mechanism"), run.probe(x, oracles)
            begun = run.mechanism.exchange(v, memory, scope, probe) if count else run.mechanism.init(v, scope, probe)
            ((estimate, memory),) = run.runtime.drive(begun)
        estimates.append(estimate.clone() / factor)
    off = float((estimates[0] - estimates[1]).norm() / estimates[0].norm().clamp(min=1e-300))
    found.expect(off < 1e-6, f"vectors times a step give another estimate than that times the step, by {off:.3g}")
