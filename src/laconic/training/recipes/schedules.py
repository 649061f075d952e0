"""Learning rates as functions of the step: a factor on the base rate."""

from __future__ import annotations

import math
from collections.abc import Callable

Schedule = Callable[[float], float]  # the share of the run that is over, in [0, 1], to a factor


def constant(share: float) -> float:
    """1 throughout."""
    return 1.0


def cosine(share: float) -> float:
    """From 1 to 0 along half a cosine (Loshchilov & Hutter 2016, arXiv:1608.03983, equation 5, one cycle)."""
    return 0.5 * (1.0 + math.cos(math.pi * share))


def step(share: float) -> float:
    """Divided by ten after half and after three quarters of the run (He et al. 2015, section 4.2)."""
    return 0.1 ** ((share >= 0.5) + (share >= 0.75))


SCHEDULES: dict[str, Schedule] = {"constant": constant, "cosine": cosine, "step": step}


def schedule_of(name: str) -> Schedule:
    """A schedule by name. Raises ValueError with the names there are."""
    if name not in SCHEDULES:
        raise ValueError(f"--schedule {name} : give one of {', '.join(SCHEDULES)}")
    return SCHEDULES[name]


def factor(schedule: Schedule, step: int, steps: int, warm_up: int) -> float:
    """The factor of step 0, 1, ..., steps - 1: a linear rise over `warm_up` steps, then the schedule over the rest.

    >>> [round(factor(cosine, step, 6, warm_up=2), 3) for step in range(6)]
    [0.5, 1.0, 1.0, 0.854, 0.5, 0.146]
    """
    if step < warm_up:
        return (step + 1) / warm_up
    return schedule((step - warm_up) / max(1, steps - warm_up))
