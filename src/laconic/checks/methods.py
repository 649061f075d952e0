"""Checks of methods: one text everywhere, checkpoints, failures, counts, a fixed point, and what theory promises."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch

from laconic.checks import theory
from laconic.checks.course import (
    RUNTIMES,
    Course,
    Weighed,
    carry,
    course,
    difference,
    frozen,
    ledgers_differ,
    settled,
    whole,
)
from laconic.checks.findings import Findings
from laconic.checks.reference import Reference
from laconic.checks.suite import WHOLE, Amounts, Suite
from laconic.checks.trial import same
from laconic.core.flight import Flight
from laconic.core.method import Method
from laconic.core.theory import NoTheorem, Setting
from laconic.runtime.local import Local

PLAIN = Reference()
AT_SOLUTION = Reference(unlike=0.0, away=0.0)
SEED = 3
AWAITS = 12  # of one iteration, at most: at each of them a flight is made to fail


class Broken(RuntimeError):
    """A flight that was made to fail."""


class Failing(Local):
    """A simulator whose flights fail from the next-but-`left` on."""

    left: int = 1 << 30

    def perform(self, flights: Sequence[Flight]) -> list[list[Any]]:
        self.left -= 1
        if self.left < 0:
            raise Broken("a peer is gone")
        return Local.perform(self, flights)


def method_checks(found: Findings, method: Method, effort: Amounts) -> Suite:
    """Of a method, on the reference problem, at its theorem's step where there is one."""

    @functools.cache
    def ready() -> Method:
        return settled(method, PLAIN.setting())

    for name, made in (
        ("it settles, and stays settled", _settles),
        ("counted is encoded", _weighed),
        ("it goes on from the middle", _resumed),
        ("a failed flight changes nothing", _failures),
        ("what is asked of oracles is counted", _counted),
    ):
        yield name, functools.partial(_of_settled, made, found, ready, effort)
    yield "the same in every runtime", functools.partial(_everywhere, found, method, effort)
    yield "the solution is a fixed point", functools.partial(_fixed, found, method, effort)
    yield "other problems run or are refused in one line", functools.partial(_others, found, method)
    yield from theory.theory_checks(found, method, effort)


def _of_settled(
    made: Callable[[Findings, Method, Amounts], None], found: Findings, ready: Callable[[], Method], effort: Amounts
) -> None:
    made(found, ready(), effort)


def _settles(found: Findings, method: Method, effort: Amounts) -> None:
    again = method.settled(PLAIN.setting())
    found.expect(again == method, f"settled once more, {method} becomes {again}")


# ---- one text everywhere ---------------------------------------------------------------------------------------------


def _everywhere(found: Findings, method: Method, effort: Amounts) -> None:
    """Point, state and ledger, bit for bit, over any number of parties, as bytes, and in a star."""
    problem = Reference(workers=5)
    method = settled(method, problem.setting())
    plain = course(method, problem).go(effort.iterations)
    found.expect(bool(torch.isfinite(plain.x).all()), "the model is not finite")
    ledger = plain.runtime.ledger
    said = bool(ledger.uplink.any()) and ledger.rounds > 0
    found.expect(said or effort.iterations < 20, f"in {effort.iterations} iterations nobody says anything")
    for name, runtime in list(RUNTIMES.items())[:: 1 if effort is WHOLE else 4]:
        found.place = name
        other = course(method, problem, runtime=runtime(problem.n, SEED)).go(effort.iterations)
        found.expect(same(other.x, plain.x), "the model differs from the simulator's")
        odd = difference(whole(other), whole(plain))
        found.expect(not odd, f"{odd} of the state differs from the simulator's")
        found.expect(not ledgers_differ(other.runtime, plain.runtime), "the ledger differs from the simulator's")


def _weighed(found: Findings, method: Method, effort: Amounts) -> None:
    runtime = Weighed(PLAIN.n, seed=SEED, encoded=True)
    run = course(method, PLAIN, runtime=runtime).go(effort.iterations)
    found.expect(not runtime.odd, runtime.odd)
    plain = course(method, PLAIN).go(effort.iterations)
    found.expect(not ledgers_differ(run.runtime, plain.runtime), "bytes that are encoded and those counted differ")
    found.expect(same(run.x, plain.x), "what is decoded from bytes differs from what is used without them")


# ---- the middle of a run ---------------------------------------------------------------------------------------------


def _resumed(found: Findings, method: Method, effort: Amounts) -> None:
    """From a checkpoint, in one party and in several, as if there had been no break."""
    half = max(2, effort.iterations // 2)
    straight = course(method, PLAIN).go(2 * half)
    for name, runtime in (
        ("in one party", Local(PLAIN.n, seed=SEED)),
        ("in three parts", RUNTIMES["in three parts"](PLAIN.n, SEED)),
    ):
        found.place = name
        first = course(method, PLAIN).go(half)
        second = course(method, PLAIN, runtime=runtime)
        carry(first, second)
        second.go(half)
        odd = difference(whole(second), whole(straight))
        found.expect(same(second.x, straight.x) and not odd, f"another run than without a break, from {odd or 'x'} on")


def _failures(found: Findings, method: Method, effort: Amounts) -> None:
    """At each await in turn: state and compressors' states stay as they were, and the next try goes on."""
    untouched = course(method, PLAIN).go(5)
    runtime = Failing(PLAIN.n, seed=SEED)
    run = course(method, PLAIN, runtime=runtime).go(2)
    for _ in range(3):
        for at in range(AWAITS):
            if _survives(found, run, runtime, at):
                break
    found.expect(same(run.x, untouched.x), "after failed flights the run goes another way")
    odd = difference(frozen(run), frozen(untouched))
    found.expect(not odd, f"after failed flights {odd} is another one")


def _survives(found: Findings, run: Course, runtime: Failing, at: int) -> bool:
    """One iteration whose flight number `at` fails; whether there was none."""
    before, ledger, states, step = frozen(run), runtime.ledger.state(), run.states, run.step
    runtime.left = at
    try:
        run.go()
    except Broken:
        odd = difference(frozen(run), before)
        found.expect(not odd, f"{odd} is written to before the last await: flight {at} failed, and it is changed")
        run.states, run.step = states, step
        runtime.ledger.load(ledger)
        return False
    finally:
        runtime.left = 1 << 30
    return True


def _counted(found: Findings, method: Method, effort: Amounts) -> None:
    run = course(method, PLAIN).go(effort.iterations)
    (oracles,) = run.oracles
    asked, looked = oracles.calls.gradient_terms + oracles.calls.product_terms, oracles.looked
    found.expect(asked == looked, f"{looked} terms of gradients and products were made and {asked} counted")
    found.expect(asked > 0, "no gradient is ever asked for")


# ---- where nothing moves ---------------------------------------------------------------------------------------------


def _fixed(found: Findings, method: Method, effort: Amounts) -> None:
    """From the solution, where the gradients of all terms of all workers vanish."""
    if not theory.homogeneous(method):
        return  # a sign method, say, whose steps do not shrink with the gradients
    solution = AT_SOLUTION.solution()
    assert solution is not None
    run = course(settled(method, AT_SOLUTION.setting()), AT_SOLUTION)
    for _ in range(3):
        run.go(max(1, effort.long // 3))
        away = float((run.x - solution.x).norm())
        found.expect(away < 1e-9, f"started at the solution, it is {away:.3g} away after {run.step} iterations")
        if not away < 1e-9:
            return


def _others(found: Findings, method: Method) -> None:
    """Settings of other kinds: a theorem, a run with an explicit step, or a refusal that fits on one line."""
    plain = PLAIN.setting()
    bare = dataclasses.replace(
        plain.constants, mu=None, mu_workers=None, delta=None, delta_server=None, delta_mean=None
    )
    settings: dict[str, Setting] = {
        "one worker": Reference(workers=1).setting(),
        "one coordinate": Reference(d=1).setting(),
        "f not convex": dataclasses.replace(plain, constants=bare, convex=False),
        "f convex, and no more": dataclasses.replace(plain, constants=bare),
        "a regulariser": dataclasses.replace(plain, composite=True),
    }
    for name, setting in settings.items():
        found.place = name
        try:
            promise = settled(method, setting).guarantee(setting)
        except ValueError as error:
            known = isinstance(error, NoTheorem) or type(error) is ValueError
            found.expect(known, f"{type(error).__name__}: {error}")
            found.expect("\n" not in str(error) and len(str(error)) > 10, "the refusal is not one line that says why")
            continue
        found.expect(promise.step > 0.0, f"the theorem's step is {promise.step}")
        convexity = setting.constants.mu is not None
        found.expect(convexity or promise.rate is None, "a linear rate without strong convexity")
