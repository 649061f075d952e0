"""The report as one HTML file that works offline: interactive figures by plotly, tables, and where numbers are from."""

from __future__ import annotations

import html
import math
import re
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import plotly.graph_objects as go

from laconic.lab.plots import marked
from laconic.lab.series import Figure, Line, clean
from laconic.lab.style import Style, style
from laconic.lab.tables import Summary, cells, headings

_STYLE = """
:root { color-scheme: light; }
body { font: 15px/1.5 system-ui, sans-serif; color: #1a1a1a; background: #fff; }
body { max-width: 1180px; margin: 2rem auto; padding: 0 1.25rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.2rem; margin-top: 2.4rem; } h3 { font-size: 1rem; margin-top: 1.6rem; }
code { font: 0.92em ui-monospace, monospace; overflow-wrap: anywhere; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: 0.87rem; }
th, td { padding: 0.3rem 0.65rem; text-align: left; vertical-align: top; border-bottom: 1px solid #e2e2e2; }
th { border-bottom: 2px solid #555; white-space: nowrap; }
td.number, th.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
.key { display: inline-block; width: 0.75em; height: 0.75em; margin-right: 0.5em; border-radius: 50%; }
.note { color: #555; font-size: 0.87rem; } details { margin: 0.6rem 0; } summary { cursor: pointer; }
"""


@dataclass(frozen=True)
class Section:
    """One problem of a report: what was run on it, its figures and its table."""

    title: str
    document: dict[str, Any]
    figures: Sequence[Figure]
    rows: Sequence[Summary]
    sources: Sequence[str]


def page(sections: Sequence[Section]) -> str:
    """The whole page."""
    parts = [
        "<!doctype html><html lang='en'><head><meta charset='utf-8'>",
        "<meta name='viewport' content='width=device-width, initial-scale=1'><title>laconic report</title>",
        f"<style>{_STYLE}</style></head><body><h1>laconic report</h1>",
    ]
    script = True  # plotly's own code goes in once
    for section in sections:
        parts.append(_head(section))
        for figure in section.figures:
            parts.append(_plot(figure).to_html(full_html=False, include_plotlyjs=script, config={"displaylogo": False}))
            script = False
        parts += [_results(section), _methods(section), _constants(section), _origin(section)]
    return "\n".join([*parts, "</body></html>\n"])


def _e(value: Any) -> str:
    return html.escape(str(value))


def _head(section: Section) -> str:
    problem = section.document["problem"]
    solution = section.document["solution"]
    known = (
        "no reference solution: figures show ‖∇f(x)‖²"
        if solution is None
        else f"a saddle point, x* to {math.sqrt(solution['gap']):.1e}: figures show ‖x − x*‖²"
        if solution["value"] is None
        else f"f* = {solution['value']:.10g} to {solution['gap']:.1e}, gaps to {solution['accuracy']:.1e}"
    )
    chosen = ", ".join(f"{name} = {value}" for name, value in problem["parameters"].items())
    sizes = f"{problem['workers']} workers, {problem['terms']} terms, x of shape {tuple(problem['shape'])}"
    key = "Dashed: the theorem's bound. Bands: least to greatest over seeds. Grey: below the accuracy of the gap."
    return (
        f"<h2><code>{_e(section.title)}</code></h2><p><code>{_e(chosen)}</code></p><p>{_e(sizes)}; {_e(known)}.</p>"
        f"<p class='note'>{key} Click a legend entry to hide it.</p>"
    )


# ---- figures ----------------------------------------------------------------------------------------------------


def _plot(figure: Figure) -> go.Figure:
    plot = go.Figure()
    shown = clean(figure)
    for place, line in enumerate(figure.lines):
        if line in shown:
            for trace in _traces(line, style(place), place):
                plot.add_trace(trace)
    low, high = figure.window
    if low < figure.floor < high:
        plot.add_hrect(y0=low, y1=figure.floor, fillcolor="#ebebeb", line_width=0, layer="below")
    widest = max((len(line.label) for line in figure.lines), default=0)
    plot.update_layout(
        template="plotly_white",
        height=470,
        margin={"l": 75, "r": 20, "t": 20, "b": 60},
        font={"size": 13},
        legend={"x": 1.02, "y": 1, "font": {"size": 12 if widest < 40 else 11}, "tracegroupgap": 3},
        hovermode="closest",
    )
    plot.update_yaxes(
        type="log",
        range=[math.log10(low), math.log10(high)],
        title=figure.measure,
        exponentformat="power",
        dtick=_tick(low, high),
    )
    plot.update_xaxes(title=figure.axis.label, type="log" if figure.axis.log else "linear")
    if figure.axis.log:
        plot.update_xaxes(dtick=1, exponentformat="power")
    return plot


def _tick(low: float, high: float) -> int:
    return max(1, math.ceil(math.log10(high / low) / 10))


def _traces(line: Line, look: Style, place: int) -> list[go.Scatter]:
    group = {"legendgroup": line.label, "hoverinfo": "skip", "showlegend": False}
    name = line.label + (" (diverged)" if line.diverged else "")
    found = []
    if line.seeds > 1:
        x = np.concatenate([line.x, line.x[::-1]])
        band = np.concatenate([line.high, line.low[::-1]])
        good = np.isfinite(band)
        fill = {"fill": "toself", "fillcolor": look.colour, "opacity": 0.18, "line": {"width": 0}, "mode": "lines"}
        found.append(go.Scatter(x=x[good], y=band[good], **fill, **group))
    if line.bound is not None:
        dash = {"color": look.colour, "dash": "dash", "width": 1.2}
        found.append(go.Scatter(x=line.x, y=line.bound, mode="lines", line=dash, **group))
    found.append(go.Scatter(x=line.x, y=line.y, mode="lines", line={"color": look.colour, "width": 2}, **group))
    marks = marked(line, place)
    text = "<br>".join(html.escape(piece) for piece in textwrap.wrap(name, 44, break_on_hyphens=False)) or html.escape(
        name
    )
    points = {"color": look.colour, "symbol": look.symbol, "size": 8}
    # the legend entry: line and marker together, drawn over the line so that hovering finds it
    found.append(
        go.Scatter(
            x=line.x[marks], y=line.y[marks], mode="markers", marker=points, name=text, legendgroup=line.label,
            hovertemplate=f"{html.escape(name)}<br>%{{x:.4g}}, %{{y:.3e}}<extra></extra>",
        )
    )  # fmt: skip
    return found


# ---- tables -----------------------------------------------------------------------------------------------------


def _table(titles: Sequence[str], rows: Sequence[Sequence[str]], numbers: range | tuple[int, ...]) -> str:
    """Cells are HTML already."""

    def cell(kind: str, place: int, text: str) -> str:
        right = " class='number'" if place in numbers else ""
        return f"<{kind}{right}>{text}</{kind}>"

    head = "".join(cell("th", place, title) for place, title in enumerate(titles))
    body = "".join("<tr>" + "".join(cell("td", i, text) for i, text in enumerate(row)) + "</tr>" for row in rows)
    return f"<div class='wide'><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"


def _results(section: Section) -> str:
    rows = []
    for place, row in enumerate(section.rows):
        method, *others = (_e(cell) for cell in cells(row))
        key = f"<span class='key' style='background:{style(place).colour}'></span>"
        rows.append([f"{key}<code>{method}</code>", *others])
    titles = [_e(title) for title in headings(section.figures[0].measure)]
    remarks = "".join(f"<p class='note'>{_e(remark)}.</p>" for remark in section.document["remarks"])
    return "<h3>Results</h3>" + _table(titles, rows, range(1, 6)) + remarks


def _methods(section: Section) -> str:
    rows = []
    for method in section.document["methods"]:
        promise = method["guarantee"]
        if promise is None:
            says = [_e(method["why"] or ""), "", ""]
        else:
            rate = "" if promise["rate"] is None else f"{promise['rate']:.8g}"
            notes = list(promise["assumes"]) + [f"leans on the estimate of {name}" for name in promise["leans_on"]]
            notes += [] if promise["sure"] else ["constant recalled, not re-derived"]
            says = [_e(promise["source"]), rate, _e("; ".join(notes))]
        step = "" if method["step"] is None else f"{method['step']:.6g}"
        rows.append([f"<code>{_e(_rounded(method['settled']))}</code>", step, _e(method["step_kind"]), *says])
    titles = ["method as run", "step", "chosen by", "theorem", "rate per iteration", "assumes"]
    return "<h3>Methods and theorems</h3>" + _table(titles, rows, (1, 4))


def _rounded(spec: str) -> str:
    """A spec with its numbers to six digits; run.json has them in full."""
    return re.sub(r"\d+\.\d{6,}(e[+-]?\d+)?", lambda found: f"{float(found[0]):.6g}", spec)


def _constants(section: Section) -> str:
    constants = section.document["problem"]["constants"]
    rows = [[_e(name), f"{one['value']:.8g}", _e(one["kind"]), _e(one["how"])] for name, one in constants.items()]
    inside = _table(["constant", "value", "kind", "how"], rows, (1,))
    return f"<details><summary>Constants of the problem</summary>{inside}</details>"


def _origin(section: Section) -> str:
    document = section.document
    facts = {**document["versions"], **document["machine"], "data": document["identity"]["data_sha256"]}
    rows = [[_e(name), f"<code>{_e(value)}</code>"] for name, value in facts.items()]
    rows += [["run", f"<code>{_e(source)}</code>"] for source in section.sources]
    return f"<details><summary>Versions and machine</summary>{_table(['what', 'value'], rows, ())}</details>"
