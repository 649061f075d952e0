"""`laconic report`: any number of runs as one HTML page, paper figures and tables."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from laconic.lab.page import Section, page
from laconic.lab.plots import draw
from laconic.lab.remarks import line
from laconic.lab.run import Runs
from laconic.lab.series import MEASURES, accuracy, axes, figure, measure_of, price
from laconic.lab.store import write_atomically
from laconic.lab.tables import Steps, Summary, summarise, to_csv, to_latex
from laconic.lab.trace import seconds_column
from laconic.runtime.network import Network


@dataclass(frozen=True)
class Report:
    """What was written."""

    page: Path
    files: tuple[Path, ...]


def report(
    runs: str | Path | Runs | Sequence[str | Path | Runs],
    out: str | Path | None = None,
    network: str | Network | None = None,
    measure: str | None = None,
) -> Report:
    """Writes report.html, and for each problem figures (PDF, PNG) and tables (CSV, LaTeX).

    Runs on the same data and problem share figures. `out` is by default the directory of the run, where there is one;
    several go to `report`. `network` chooses the network of the seconds; one that the runs did not follow must consist
    of equal lines, and is priced from the trace. `measure` chooses what is drawn: "gap" (by default if f* is known),
    "gap_average" (at the weighted average of the iterates, where a theorem is about that) or "grad_norm2". Raises
    ValueError where a run cannot be read.
    """
    given = [runs] if isinstance(runs, (str, Path, Runs)) else list(runs)
    if not given:
        raise ValueError("report(runs=[]) : give at least one run directory")
    loaded = [one if isinstance(one, Runs) else Runs.load(one) for one in given]
    folder = Path(out) if out is not None else _default_folder(loaded)
    folder.mkdir(parents=True, exist_ok=True)
    chosen = None if network is None else Network.parse(network)
    groups = _groups(loaded)
    sections, files = [], []
    for number, group in enumerate(groups):
        section, drawn = _section(group, chosen, measure)
        sections.append(section)
        place = folder if len(groups) == 1 else folder / f"problem-{number + 1}"
        files += draw(section.figures, place / "figures")
        files += _tables(section.rows, drawn, place)
    target = folder / "report.html"
    write_atomically(target, page(sections).encode())
    return Report(target, tuple(files))


def _default_folder(loaded: Sequence[Runs]) -> Path:
    if len(loaded) == 1 and loaded[0].path is not None:
        return loaded[0].path
    return Path("report")


def _groups(loaded: Sequence[Runs]) -> list[list[Runs]]:
    """Runs on the same problem and data together, in the order given."""
    groups: dict[tuple[str, str], list[Runs]] = {}
    for one in loaded:
        identity = one.document["identity"]
        groups.setdefault((identity["problem"], identity["data_sha256"]), []).append(one)
    return list(groups.values())


@dataclass(frozen=True)
class _Merged:
    """Several runs on one problem as one."""

    frame: pd.DataFrame
    methods: list[dict[str, Any]]


def _merge(group: Sequence[Runs]) -> _Merged:
    """Curves of the same method with other seeds join; a method that ran twice otherwise gets its run's name."""
    frames: list[pd.DataFrame] = []
    methods: dict[str, dict[str, Any]] = {}
    taken: dict[tuple[str, int], str] = {}
    for number, one in enumerate(group):
        frame = one.trace
        names = {}
        for method in one.document["methods"]:
            label = method["method"]
            seeds = set(frame.loc[frame["method"] == label, "seed"])
            clash = any((label, seed) in taken for seed in seeds)
            other = label in methods and methods[label]["settled"] != method["settled"]
            names[label] = f"{label} [{one.path.name if one.path else number + 1}]" if clash or other else label
            taken |= {(names[label], seed): label for seed in seeds}
            methods.setdefault(names[label], {**method, "method": names[label]})
        frame["method"] = [names[str(label)] for label in frame["method"]]
        frames.append(frame)
    merged = pd.concat(frames, ignore_index=True) if len(frames) > 1 else frames[0]
    present = set(merged["method"])
    return _Merged(merged, [method for label, method in methods.items() if label in present])


def _section(group: Sequence[Runs], chosen: Network | None, asked: str | None) -> tuple[Section, str]:
    merged = _merge(group)
    document = {**group[0].document, "methods": merged.methods, "remarks": _remarks(group)}
    frame = merged.frame
    if frame.empty:
        raise ValueError(f"{group[0].path} has recorded nothing yet; let the run go on with --resume")
    network = _network(group, chosen)
    if chosen is not None:
        frame = price(frame, [chosen])
    floor = accuracy(document["solution"])
    figures = [figure(frame, axis, floor, asked) for axis in axes(frame, network)]
    measure, _ = measure_of(frame, asked)
    steps = {one["method"]: Steps(one["step"], one["step_kind"]) for one in merged.methods}
    rows = summarise(frame, steps, network, measure, floor)
    sources = [str(one.path.name) for one in group if one.path is not None]
    return Section(document["problem"]["spec"], document, figures, rows, sources), measure


def _remarks(group: Sequence[Runs]) -> list[str]:
    """What curves remarked, one line each."""
    return [
        f"{result['method']} (seed {result['seed']}): {line(text, found['count'], found['worst'])}"
        for one in group
        for result in one.results
        for text, found in result.get("remarks", {}).items()
    ]


def _network(group: Sequence[Runs], chosen: Network | None) -> str | None:
    """The network of the seconds: the one chosen, else the first that all runs followed."""
    if chosen is not None:
        return chosen.name
    first = [network["name"] for network in group[0].document["identity"]["networks"]]
    common = [name for name in first if all(seconds_column(name) in one.table.column_names for one in group)]
    return common[0] if common else None


def _tables(rows: Sequence[Summary], measure: str, place: Path) -> list[Path]:
    files = {"table.csv": to_csv(rows), "table.tex": to_latex(rows, MEASURES[measure])}
    for name, text in files.items():
        write_atomically(place / name, text.encode())
    return [place / name for name in files]
