"""Checks of schedules: positive factors that depend on the iteration alone."""

from __future__ import annotations

import functools
import math

from laconic.checks.findings import Findings
from laconic.checks.reference import Reference
from laconic.checks.suite import Amounts, Suite
from laconic.core.schedule import Schedule

ITERATIONS = (0, 1, 2, 3, 5, 10, 100, 1000, 12_345, 10**6)


def schedule_checks(found: Findings, schedule: Schedule, effort: Amounts) -> Suite:
    """Of a schedule, settled at a step of 0.1 on the reference problem."""
    yield "factors are positive", functools.partial(_positive, found, schedule)
    yield "a factor depends on the iteration alone", functools.partial(_alone, found, schedule)


def _settled(schedule: Schedule) -> Schedule:
    return schedule.settled(Reference().setting(), 0.1)


def _positive(found: Findings, schedule: Schedule) -> None:
    ready = _settled(schedule)
    found.expect(ready.settled(Reference().setting(), 0.1) == ready, f"settled once more, {ready} changes")
    for k in ITERATIONS:
        factor = ready.factor(k)
        found.expect(0.0 < factor < math.inf, f"factor({k}) is {factor}")
        found.expect(factor == 1.0 or not schedule.constant, f"constant, and factor({k}) is {factor}")


def _alone(found: Findings, schedule: Schedule) -> None:
    ready = _settled(schedule)
    forth = [ready.factor(k) for k in ITERATIONS]
    back = [ready.factor(k) for k in reversed(ITERATIONS)]
    found.expect(back[::-1] == forth, "factors asked for in another order are others")
    found.expect([_settled(schedule).factor(k) for k in ITERATIONS] == forth, "another object gives other factors")
