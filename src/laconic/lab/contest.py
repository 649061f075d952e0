"""The candidates of one method, their curves, and who wins."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from laconic.core.method import Method
from laconic.lab.bank import Bank, Job
from laconic.lab.criteria import Criterion, end
from laconic.lab.grid import Base, Point, base_of, candidate, has_step, wider
from laconic.lab.sweep import COLUMNS, Field, Recording


@dataclass(frozen=True)
class Choice:
    """What was chosen for one method.

    Attributes
    ----------
    method : its label.
    spec : the winner, to be given to `laconic run`; None where no candidate had a finite score.
    multiple : its stepsize in multiples of `base`, None where no stepsize was tuned.
    base : "theorem", or "1/L" where no theorem covers the method (`why` says why), or "as given"; empty without one.
    step : its stepsize.
    parameters : the values from braces and grid, by name or path.
    score, test : of the criterion, on the seeds of the tuning and on those not used for it. Lower is better; infinite
        where nothing counts.
    edge : in words, where the winner lies at an end of what was tried; else empty.
    tried : how many candidates there were.
    """

    method: str
    spec: str | None
    multiple: float | None
    base: str
    step: float | None
    parameters: dict[str, Any]
    score: float
    test: float
    edge: str = ""
    why: str = ""
    tried: int = 0

    @staticmethod
    def headings(criterion: str) -> tuple[str, ...]:
        """Of the columns of `cells`."""
        return ("method", "winner", "step", criterion, "on other seeds", "tried", "at an edge")

    def cells(self) -> tuple[str, ...]:
        """As a row of a table."""
        step = ""
        if self.multiple is not None and self.step is not None:
            times = {"1/L": "/L", "theorem": "x theorem"}.get(self.base, " times the given")
            step = f"{self.step:.4g} ({self.multiple:g}{times})"
        scores = (f"{value:.6g}" if math.isfinite(value) else "–" for value in (self.score, self.test))
        return (self.method, self.spec or "none", step, *scores, str(self.tried), self.edge)


@dataclass
class _Entered:
    """One candidate: a method at one stepsize, and its curves by part and seed."""

    point: Point
    multiple: float | None
    method: Method
    settled: Method
    curves: dict[tuple[str, int], Recording] = field(default_factory=dict)

    def of(self, part: str) -> list[Recording]:
        return [curve for (of, _), curve in self.curves.items() if of == part]


class Contest:
    """The candidates of one method, and who wins."""

    def __init__(
        self, label: str, found: list[Point], ground: Field, judge: Criterion, steps: Sequence[float], widen: int
    ) -> None:
        self.label, self._points, self._ground, self._judge = label, found, ground, judge
        self._bases: dict[int, Base | None] = {}
        self._entered: dict[int, list[_Entered]] = {}  # by the number of the point
        self._left = {number: widen for number in range(len(found))}
        for number, point in enumerate(found):
            base = base_of(point.method, ground.setting) if has_step(point.method) else None
            self._bases[number], self._entered[number] = base, []
            self._enter(number, [None] if base is None else steps)

    def _enter(self, number: int, multiples_: Sequence[float | None]) -> None:
        point, base = self._points[number], self._bases[number]
        for multiple in multiples_:
            method = point.method if base is None or multiple is None else candidate(point.method, base, multiple)
            settled = method.settled(self._ground.setting)
            self._entered[number].append(_Entered(point, multiple, method, settled))

    # ---- curves ---------------------------------------------------------------------------------------------------

    def wants(self, seeds: Sequence[int], part: str) -> list[Job]:
        """The curves that are still to be made: of all candidates on the tuning's seeds, of the winner on others."""
        jobs = []
        for group in [[self._best()]] if part == "test" else self._entered.values():
            for seed in seeds:
                missing = [one for one in group if (part, seed) not in one.curves]
                if missing:
                    methods, settled = tuple(one.method for one in missing), tuple(one.settled for one in missing)
                    jobs.append(Job(self.label, methods, settled, seed))
        return jobs

    def take(self, bank: Bank, seeds: Sequence[int], part: str) -> None:
        """Takes its curves out of the bank; then enters more stepsizes where the best one lies at an end."""
        for group in [[self._best()]] if part == "test" else self._entered.values():
            for one in group:
                for seed in seeds:
                    found = bank.find(one.settled, seed)
                    assert found is not None
                    one.curves[part, seed] = found
        if part == "tuning":
            for number, group in self._entered.items():
                edge = self._edge(group)
                if edge is not None and self._left[number]:
                    self._left[number] -= 1
                    tried = [one.multiple for one in group if one.multiple is not None]
                    self._enter(number, wider(tried, edge == "high"))

    def _edge(self, group: Sequence[_Entered]) -> str | None:
        """At which end of the multiples the best of a group lies; all diverged means that they are too large."""
        tried = [one.multiple for one in group if one.multiple is not None]
        best = min(group, key=self._rank)
        if not tried:
            return None
        if math.isinf(self._rank(best)[1]) or best.multiple == min(tried):
            return "low"
        return "high" if best.multiple == max(tried) else None

    # ---- who wins -------------------------------------------------------------------------------------------------

    def _score(self, one: _Entered, part: str) -> float:
        curves = one.of(part)
        return self._judge.combined([self._judge.score(curve) for curve in curves]) if curves else math.inf

    def _rank(self, one: _Entered) -> tuple[float, float, float]:
        """Candidates that the criterion does not tell apart are told apart by where they ended, then by the step."""
        last = statistics.median_high([end(curve) for curve in one.of("tuning")] or [math.inf])
        return self._score(one, "tuning"), last, abs(math.log(one.multiple or 1.0))

    def _best(self) -> _Entered:
        return min((one for group in self._entered.values() for one in group), key=self._rank)

    def _number(self, one: _Entered) -> int:
        return next(number for number, group in self._entered.items() if any(other is one for other in group))

    def choice(self) -> Choice:
        best = self._best()
        base = self._bases[self._number(best)]
        score = self._score(best, "tuning")
        step: Any = getattr(best.settled, "step", None)
        return Choice(
            method=self.label,
            spec=str(best.method) if math.isfinite(score) else None,
            multiple=best.multiple,
            base="" if base is None else base.kind,
            step=step if isinstance(step, float) else None,
            parameters=best.point.parameters,
            score=score,
            test=self._score(best, "test"),
            edge="; ".join(self._edges(best)),
            why="" if base is None else base.why,
            tried=sum(map(len, self._entered.values())),
        )

    def _edges(self, best: _Entered) -> list[str]:
        """In words, at which ends the winner lies. The end of a parameter's own range is none."""
        found = []
        edge = self._edge(self._entered[self._number(best)])
        if edge is not None:
            found.append(f"step at the {'lower' if edge == 'low' else 'upper'} edge")
        for name, value in best.point.parameters.items():
            values = {point.parameters[name] for point in self._points if _is_number(point.parameters[name])}
            if len(values) < 2 or not _is_number(value) or min(values) < value < max(values):
                continue
            low = value == min(values)
            further = value // 2 if low and isinstance(value, int) else value / 2 if low else value * 2
            if best.point.allows(name, further):
                found.append(f"{name}={value} at the {'lower' if low else 'upper'} edge")
        return found

    def notes(self) -> list[str]:
        choice, best, found = self.choice(), self._best(), []
        if choice.base == "1/L":
            found.append(f"{self.label}: no theorem; multiples of 1/L ({choice.why})")
        if choice.edge:
            found.append(f"{self.label}: the winner lies at an end of what was tried: {choice.edge}")
        if choice.spec is None:
            last = self._rank(best)[1]
            nearest = f"the best, {best.method}, ended at {last:.2e}" if math.isfinite(last) else "all diverged"
            found.append(f"{self.label}: no candidate has a finite score ({self._judge}); {nearest}")
        return found

    def rows(self) -> list[dict[str, Any]]:
        """One per curve."""
        rows = []
        for one in (one for group in self._entered.values() for one in group):
            for (part, seed), curve in one.curves.items():
                row = {"method": self.label, "spec": str(one.method), "multiple": one.multiple}
                row |= {"step": getattr(one.settled, "step", None), "seed": seed, "part": part}
                row |= {"score": self._judge.score(curve), "status": curve.status}
                row["iterations"] = int(curve["iteration"][-1])
                rows.append(row | {name: float(curve[name][-1]) for name in COLUMNS[1:]})
        return rows


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
