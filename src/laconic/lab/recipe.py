"""Recipes: an experiment as one command, with a figure, a table, and a verdict on every claim of its source."""

from __future__ import annotations

import dataclasses
import enum
import json
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pandas as pd

from laconic.core.entry import Entry
from laconic.lab.figures import Grid
from laconic.lab.record import machine, versions
from laconic.lab.store import write_atomically
from laconic.lab.trace import finite


class Ruling(enum.Enum):
    """What an experiment says of a claim."""

    HOLDS = "holds"
    CORRECTED = "holds as corrected"
    FAILS = "fails"


@dataclass(frozen=True)
class Verdict:
    """A claim, what became of it, and the number that decides.

    Attributes
    ----------
    claim : a short name, unique in its recipe.
    says : what the source says, in our words, with the place.
    ruling : what the experiment says of it.
    number : what decides.
    because : one sentence that names the number and what it is held against.
    """

    claim: str
    says: str
    ruling: Ruling
    number: float
    because: str


@dataclass(frozen=True)
class Outcome:
    """What a recipe found: figures and tables by name, one verdict per claim, minutes of computing per curve."""

    verdicts: Sequence[Verdict]
    figures: Mapping[str, Grid]
    tables: Mapping[str, pd.DataFrame]
    minutes: Mapping[str, float] = field(default_factory=dict)

    def ruling(self, claim: str) -> Ruling:
        """Of the claim with that name."""
        return next(verdict.ruling for verdict in self.verdicts if verdict.claim == claim)


@dataclass(frozen=True)
class Bench:
    """What a recipe runs on.

    Attributes
    ----------
    data_dir : where real data are; recipes that can do without them do.
    jobs : processes that may compute at the same time.
    progress : whether to show what is going on, on standard error.
    """

    data_dir: Path | None = None
    jobs: int = 1
    progress: bool = False


class Recipe(Entry, ABC):
    """An experiment. Its parameters are its sizes, and their defaults those of the full experiment.

    `title` is a line for a heading; `source` is the document whose claims it judges.
    """

    kind: ClassVar[str] = "recipe"
    title: ClassVar[str]

    @abstractmethod
    def small(self) -> Recipe:
        """The same experiment in a size that takes seconds and still decides every claim."""

    @abstractmethod
    def run(self, bench: Bench) -> Outcome:
        """Does it."""


def write(recipe: Recipe, outcome: Outcome, folder: Path) -> Path:
    """Writes figures, tables, verdicts.json and a page, index.md, that shows them all. Returns the page."""
    from laconic.lab.panels import draw  # matplotlib takes half a second, which other commands need not spend

    folder.mkdir(parents=True, exist_ok=True)
    for name, figure in outcome.figures.items():
        draw(figure, folder / name)
    for name, table in outcome.tables.items():
        write_atomically(folder / f"{name}.csv", table.to_csv(index=False).encode())
    write_atomically(folder / "verdicts.json", (json.dumps(record(recipe, outcome), indent=2) + "\n").encode())
    page = folder / "index.md"
    write_atomically(page, _page(recipe, outcome).encode())
    return page


def record(recipe: Recipe, outcome: Outcome) -> dict[str, Any]:
    """Plain values: the recipe, the verdicts, minutes per curve, versions and machine."""
    verdicts = [
        {**dataclasses.asdict(verdict), "ruling": verdict.ruling.value, "number": finite(verdict.number)}
        for verdict in outcome.verdicts
    ]
    return {
        "recipe": str(recipe),
        "verdicts": verdicts,
        "minutes": dict(outcome.minutes),
        "versions": versions(),
        "machine": machine(),
    }


def _page(recipe: Recipe, outcome: Outcome) -> str:
    lines = [f"# {recipe.title}", "", f"Source: {recipe.source}.", "", "```", f"laconic recipe '{recipe}'", "```", ""]
    made = ", ".join(f"{name} {version}" for name, version in versions().items())
    here = machine()
    lines += [f"Made on {here['system']} {here['architecture']} with {here['cores']} cores: {made}.", ""]
    lines += ["## Verdicts", "", "| claim | says | verdict | because |", "|---|---|---|---|"]
    lines += [f"| {v.claim} | {_cell(v.says)} | **{v.ruling.value}** | {_cell(v.because)} |" for v in outcome.verdicts]
    lines += ["", "## Figures"]
    for name, figure in outcome.figures.items():
        lines += ["", f"![{name}]({name}.png)", "", figure.caption]
    lines += ["", "## Tables"]
    for name, table in outcome.tables.items():
        lines += ["", f"### {name}", "", *markdown(table)]
    if outcome.minutes:
        lines += ["", "## Minutes", "", "| curve | minutes |", "|---|---|"]
        lines += [f"| {_cell(label)} | {spent:.2f} |" for label, spent in outcome.minutes.items()]
    return "\n".join(lines) + "\n"


def markdown(table: pd.DataFrame) -> list[str]:
    """A table as lines of Markdown."""
    head = [f"| {' | '.join(map(str, table.columns))} |", "|" + "---|" * len(table.columns)]
    return head + [f"| {' | '.join(_cell(_short(value)) for value in row)} |" for row in table.itertuples(index=False)]


def _short(value: Any) -> str:
    if isinstance(value, float):
        return "" if np.isnan(value) else f"{value:.4g}"
    return str(value)


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
