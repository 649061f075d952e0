"""What an averager tells of its steps, gathered for the loop, which writes it beside its own times."""

from __future__ import annotations

import dataclasses
from collections import deque
from collections.abc import Sequence
from typing import Any

from laconic.training.meter import Step
from laconic.training.outputs import Output, Totals
from laconic.training.recipes.exchange import Traffic

ADDED = ("compress", "communicate", "decode", "exposed", "hidden", "skipped")
SAMPLED = ("residual", "contraction", "norm")


class Heard(Output):
    """Keeps the averager's steps until they are taken; a step is written on its thread, and taken on the loop's."""

    def __init__(self) -> None:
        self._steps: deque[tuple[Step, list[str]]] = deque()

    def open(self, rank: int) -> bool:
        """On every process."""
        return True

    def write(self, step: Step, alarms: Sequence[str]) -> None:
        """Puts it to the others."""
        self._steps.append((step, list(alarms)))

    def close(self, totals: Totals) -> None:
        """Nothing is open."""

    def take(self, number: int) -> tuple[Traffic, dict[str, Any]]:
        """The steps before that number which were not taken yet: their bytes, and a line of sums, samples and alarms.

        A line has the fields of :class:`laconic.training.Step` but bytes and number; of several steps times add up.
        """
        taken: list[tuple[Step, list[str]]] = []
        while self._steps and self._steps[0][0].number < number:
            taken.append(self._steps.popleft())
        steps = [step for step, _ in taken]
        traffic = Traffic(*(sum(getattr(step, name) for step in steps) for name in ("up", "down", "sent")))
        line: dict[str, Any] = {name: sum(getattr(step, name) for step in steps) for name in ADDED}
        for name in SAMPLED:
            line[name] = next((getattr(step, name) for step in reversed(steps) if step.norm is not None), None)
        return traffic, {**line, "alarms": [alarm for _, alarms in taken for alarm in alarms]}

    def state(self) -> list[dict[str, Any]]:
        """The steps that were not taken yet, as plain values."""
        return [{**dataclasses.asdict(step), "alarms": alarms} for step, alarms in self._steps]

    def load(self, state: Sequence[dict[str, Any]]) -> None:
        """Goes on with those of a state."""
        self._steps.clear()
        for fields in state:
            step = {name: value for name, value in fields.items() if name != "alarms"}
            self._steps.append((Step(**step), list(fields["alarms"])))
