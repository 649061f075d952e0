"""The table of results: on the terminal, as CSV and as LaTeX."""

from __future__ import annotations

import csv
import io
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from laconic.lab.trace import curves, numbers, seconds_column

_LATEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}",
    "‖": r"$\|$", "∇": r"$\nabla$", "²": r"$^2$", "−": "$-$",
}  # fmt: skip


@dataclass(frozen=True)
class Summary:
    """Where one method ended: medians over seeds. Bytes are kB per worker (1 kB = 1000 bytes), time is seconds.

    A `final` gap below `accuracy` says nothing more.
    """

    method: str
    rounds: float
    uplink_kb: float
    downlink_kb: float
    seconds: float
    final: float
    accuracy: float
    step: str
    status: str


@dataclass(frozen=True)
class Steps:
    """How a method's stepsize was chosen, from run.json."""

    step: float | None
    kind: str


def headings(measure: str) -> tuple[str, ...]:
    """Column titles, with units."""
    return (
        "method",
        "rounds",
        "uplink [kB/worker]",
        "downlink [kB/worker]",
        "time [s]",
        f"final {measure}",
        "step",
        "status",
    )


def summarise(
    frame: pd.DataFrame, steps: dict[str, Steps], network: str | None, measure: str, accuracy: float
) -> list[Summary]:
    """One row per method, in the order in which they were given."""
    rows = []
    for method, seeds in curves(frame):
        ends = pd.concat([seed.tail(1) for seed in seeds])
        states = Counter(str(status) for status in ends["status"])
        shown = [
            state if count == len(ends) else f"{state} ({count} of {len(ends)})" for state, count in states.items()
        ]
        chosen = steps[method]
        number = "" if chosen.step is None else f"{chosen.step:.4g} "
        rows.append(
            Summary(
                method=method,
                rounds=float(np.median(numbers(ends, "rounds"))),
                uplink_kb=float(np.median(numbers(ends, "uplink"))) / 1e3,
                downlink_kb=float(np.median(numbers(ends, "downlink"))) / 1e3,
                seconds=math.nan if network is None else float(np.median(numbers(ends, seconds_column(network)))),
                final=_median(numbers(ends, measure)),
                accuracy=accuracy if measure.startswith("gap") else 0.0,
                step=f"{number}({chosen.kind})",
                status=", ".join(shown),
            )
        )
    return rows


def _median(values: np.ndarray) -> float:
    """The median that takes NaN, the gap of a diverged run, as the worst."""
    return float(np.sort(np.where(np.isnan(values), np.inf, values))[(len(values) - 1) // 2])


def cells(row: Summary) -> tuple[str, ...]:
    """A row as people read it."""
    final = (
        "–"
        if not math.isfinite(row.final)
        else f"< {row.accuracy:.0e}"
        if row.final < row.accuracy
        else f"{row.final:.2e}"
    )
    time = "–" if math.isnan(row.seconds) else _short(row.seconds)
    return (
        row.method,
        f"{row.rounds:g}",
        _short(row.uplink_kb),
        _short(row.downlink_kb),
        time,
        final,
        row.step,
        row.status,
    )


def _short(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def to_csv(rows: Sequence[Summary]) -> str:
    """Every number in full; the columns are the fields of :class:`Summary`."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(Summary.__dataclass_fields__)
    for row in rows:
        writer.writerow([repr(value) if isinstance(value, float) else value for value in vars(row).values()])
    return text.getvalue()


def escape(text: str) -> str:
    """Text that LaTeX shows as it is."""
    return "".join(_LATEX.get(letter, letter) for letter in text)


def to_latex(rows: Sequence[Summary], measure: str) -> str:
    """A table for `\\usepackage{booktabs}`."""
    titles = " & ".join(escape(title) for title in headings(measure))
    lines = [r"\begin{tabular}{lrrrrrll}", r"\toprule", titles + r" \\", r"\midrule"]
    for row in rows:
        method, *others = cells(row)
        lines.append(" & ".join([rf"\texttt{{{escape(method)}}}", *(_number(cell) for cell in others)]) + r" \\")
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", ""])


def _number(cell: str) -> str:
    """1.50e-08 as a power of ten; a dash as LaTeX's."""
    below = "< " if cell.startswith("< ") else ""
    mantissa, e, exponent = cell.removeprefix(below).partition("e")
    if e and exponent.lstrip("+-").isdigit() and mantissa.replace(".", "").lstrip("-").isdigit():
        return rf"${below}{mantissa} \cdot 10^{{{int(exponent)}}}$"
    return (
        "--" if cell == "–" else escape(cell).replace(",", "{,}") if cell.replace(",", "").isdigit() else escape(cell)
    )
