"""Checks of broadcasts: who holds which model, messages as bytes, failures, and models that stay."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from laconic.checks.course import RUNTIMES, Weighed, descent, difference, ledgers_differ, parts_of, replaced
from laconic.checks.findings import Findings
from laconic.checks.methods import Broken, Failing, method_checks
from laconic.checks.reference import Reference
from laconic.checks.suite import Amounts, Suite
from laconic.checks.trial import same
from laconic.core.broadcast import Broadcast
from laconic.core.compressor import Compressor
from laconic.core.registry import catalogue
from laconic.core.state import flatten
from laconic.runtime.local import Local

PROBLEM = Reference(workers=5)
SEED = 3


@dataclass
class Down:
    """A broadcast at work on every party of a runtime."""

    broadcast: Broadcast
    runtime: Local
    memories: list[Any] = field(default_factory=list)
    count: int = 0

    def begin(self, x: Tensor) -> Down:
        """Everyone knows x."""
        for link in self.runtime.links:
            link.begin(0)
        self.memories = [self.broadcast.init(x.clone(), link) for link in self.runtime.links]
        return self

    def send(self, x: Tensor, to: np.ndarray | None = None) -> tuple[list[Tensor], list[Tensor]]:
        """The server's and the workers' models of all parties, the former NaN where the server is not."""
        self.count += 1
        texts = []
        for place, link in enumerate(self.runtime.links):
            link.begin(self.count)
            here = x.clone() if link.holds_server else torch.full_like(x, math.nan)
            who = None if to is None else link.cohort(to)
            texts.append(self.broadcast.send(here, self.memories[place], link, who))
        replies = self.runtime.drive(*texts)
        self.memories = [memory for _, _, memory in replies]
        return [anchor for anchor, _, _ in replies], [held for _, held, _ in replies]


def down(broadcast: Broadcast, runtime: Local | None = None) -> Down:
    """A settled broadcast after its start at the reference problem's."""
    ready = broadcast.settled(PROBLEM.setting())
    return Down(ready, runtime or Local(PROBLEM.n, seed=SEED)).begin(path(1)[0])


def path(count: int) -> list[Tensor]:
    """Models on their way."""
    start, solution = PROBLEM.oracles(Local(PROBLEM.n).links[0].block).start(), PROBLEM.solution()
    assert solution is not None
    return [solution.x + 0.7**k * (start - solution.x).roll(k) for k in range(count)]


def broadcast_checks(found: Findings, broadcast: Broadcast, effort: Amounts) -> Suite:
    """Of a broadcast by itself, and of gradient descent with it."""
    for name, made in (
        ("every worker holds the same model", _held),
        ("counted is encoded", _weighed),
        ("a failed flight changes nothing", _failures),
        ("the model is not written to", _untouched),
        ("with the identity the model arrives", _identity),
        ("to some of the workers", _partial),
    ):
        yield name, functools.partial(made, found, broadcast)
    yield "a model that stays arrives", functools.partial(_stays, found, broadcast, effort)
    direct: Any = catalogue().find("direct")
    method = descent(direct(), down=broadcast)
    for name, check in method_checks(found, method, effort):
        yield f"{name}, with gd", check


def _held(found: Findings, broadcast: Broadcast) -> None:
    plain = down(broadcast)
    stars = [down(broadcast, make(PROBLEM.n, SEED)) for make in RUNTIMES.values()]
    for x in path(5):
        (anchor,), (held,) = plain.send(x)
        found.expect(anchor.shape == x.shape and held.shape == x.shape, "a model of another shape")
        for name, star in zip(RUNTIMES, stars, strict=True):
            found.place = name
            anchors, models = star.send(x)
            found.expect(same(anchors[0], anchor), "the server goes on from another model than in the simulator")
            for link, model in zip(star.runtime.links, models, strict=True):
                if link.block.size:
                    found.expect(same(model, held), "a worker holds another model than in the simulator")
    for name, star in zip(RUNTIMES, stars, strict=True):
        found.place = name
        found.expect(not ledgers_differ(star.runtime, plain.runtime), "the ledger differs from the simulator's")
    found.expect(bool(plain.runtime.ledger.downlink.any()), "nothing is entered as sent down")


def _weighed(found: Findings, broadcast: Broadcast) -> None:
    runtime = Weighed(PROBLEM.n, seed=SEED, encoded=True)
    run = down(broadcast, runtime)
    for x in path(5):
        run.send(x)
    found.expect(not runtime.odd, runtime.odd)


def _copied(run: Down) -> dict[str, Tensor]:
    held = flatten(run.memories[0]) | run.runtime.links[0].compressor_leaves()
    return {name: leaf.tensor.clone() for name, leaf in held.items()}


def _failures(found: Findings, broadcast: Broadcast) -> None:
    runtime = Failing(PROBLEM.n, seed=SEED)
    run, untouched = down(broadcast, runtime), down(broadcast)
    for x in path(4):
        for at in range(4):
            before, runtime.left = _copied(run), at
            try:
                run.send(x)
            except Broken:
                run.count -= 1
                odd = difference(_copied(run), before)
                found.expect(not odd, f"{odd} is written to before the last await: flight {at} failed")
            else:
                break
            finally:
                runtime.left = 1 << 30
        untouched.send(x)
        odd = difference(_copied(run), _copied(untouched))
        found.expect(not odd, f"after failed flights {odd} is another one")


def _untouched(found: Findings, broadcast: Broadcast) -> None:
    run, link = down(broadcast), Local(PROBLEM.n, seed=SEED).links[0]
    for x in path(4):
        before = x.clone()
        text = run.broadcast.send(x, run.broadcast.init(before.clone(), link), link)
        Local(PROBLEM.n, seed=SEED).drive(text)
        found.expect(same(x, before), "the model that is sent is changed")


def _identity(found: Findings, broadcast: Broadcast) -> None:
    """Nothing is lost on the way: workers and server hold what was sent."""
    try:
        exact = replaced(broadcast, Compressor, catalogue().find("identity")())
    except ValueError:
        return
    run = down(exact)
    for x in path(4):
        (anchor,), (held,) = run.send(x)
        for who, model in (("the server goes on from", anchor), ("the workers hold", held)):
            off = float((model - x).norm() / x.norm())
            found.expect(off < 1e-12, f"with the identity {who} a model that is off by {off:.3g}")


def _partial(found: Findings, broadcast: Broadcast) -> None:
    """To some, who need nothing of earlier rounds."""
    if not broadcast.partial:
        return
    few, every = down(broadcast), down(broadcast)
    star = down(broadcast, RUNTIMES["in a star"](PROBLEM.n, SEED))
    for turn, x in enumerate(path(4)):
        to = np.array([turn % 5, 4]) if turn % 5 != 4 else np.array([4])
        before = few.runtime.ledger.downlink.copy()
        _, (held,) = few.send(x, to)
        _, (expected,) = every.send(x)
        found.expect(same(held, expected), "what some hear depends on who else does")
        silent = np.setdiff1d(np.arange(5), to)
        found.expect(bool((few.runtime.ledger.downlink == before)[silent].all()), "who hears nothing is charged")
        _, models = star.send(x, to)
        for link, model in zip(star.runtime.links, models, strict=True):
            if any(link.block.low <= worker < link.block.high for worker in to):
                found.expect(same(model, expected), "a worker of the cohort holds another model")


def _stays(found: Findings, broadcast: Broadcast, effort: Amounts) -> None:
    """A model that stays the same is what workers hold in the end, or on average."""
    claims = [compressor.claim(PROBLEM.d, PROBLEM.n) for compressor in parts_of(broadcast, Compressor)]
    if None in claims:
        return
    run, x = down(broadcast), path(3)[2]
    rounds, total, squares = 10 * effort.long, torch.zeros_like(x), torch.zeros_like(x)
    for _ in range(rounds):
        held = run.send(x)[1][0]
        total, squares = total + held, squares + held**2
    mean = total / rounds
    spread = float((squares / rounds - mean**2).clamp(min=0).sum().sqrt())
    off, size = float((mean - x).norm()), float(x.norm())
    allowed = 0.1 * size + 8.0 * spread / math.sqrt(rounds)
    found.expect(off <= allowed, f"a model that stays is held {off / size:.3g} off on average")
