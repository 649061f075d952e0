"""The report: series, tables, figures and the page, from synthetic traces whose medians and prices are known."""

from __future__ import annotations

import csv
import io
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

import laconic
from laconic.lab import series, tables
from laconic.lab.plots import draw, marked
from laconic.lab.run import Runs
from laconic.lab.style import COLOURS, MARKERS, style
from laconic.lab.trace import schema
from laconic.runtime.network import Network

NETWORK = "10mbit,20ms"


def rows(
    method: str, seed: int = 0, *, rate: float = 0.5, count: int = 11, size: int = 100, **changes: Any
) -> list[dict]:
    """A curve whose gap is rate^t after t rounds of `size` bytes, 25 ms each at 10 Mbit/s and 20 ms."""
    found = []
    for t in range(count):
        row: dict[str, Any] = dict.fromkeys(schema([NETWORK]).names, math.nan)
        gap = rate**t
        row |= {
            "method": method,
            "seed": seed,
            "iteration": t,
            "rounds": t,
            "uplink": float(size * t),
            "uplink_max": size * t,
        }
        row |= {
            "downlink": 0.0,
            "downlink_max": 0,
            "messages": t,
            "flights": t,
            "peak": size * t,
            "compute_seconds": 0.001 * t,
        }
        row |= {"gap": gap, "f": 1.0 + gap, "grad_norm2": gap**2, "bound": 2 * gap, "status": "running"}
        row[f"seconds[{NETWORK}]"] = 0.02 * t + 8 * size * t / 1e7 + 0.001 * t
        found.append(row | changes)
    found[-1]["status"] = changes.get("status", "done")
    return found


def runs(
    *curves: list[dict], spec: str = "bowl", accuracy: float = 1e-14, data: str = "d1", path: Path | None = None
) -> Runs:
    frame = pd.DataFrame([row for curve in curves for row in curve])
    table = pa.Table.from_pandas(frame[schema([NETWORK]).names], schema=schema([NETWORK]), preserve_index=False)
    labels = list(dict.fromkeys(frame["method"]))
    guarantee = {
        "largest_step": 0.1, "rate": 0.5, "plateau": 0.0, "gap_factor": 1.0, "source": "Someone & Co (2020). <T>",
        "assumes": ["f smooth"], "leans_on": ["delta"], "tight": False, "sure": True,
    }  # fmt: skip
    methods = [
        {
            "method": label,
            "spec": label,
            "settled": label,
            "step": 0.1,
            "step_kind": "theorem",
            "why": None,
            "guarantee": guarantee,
        }
        for label in labels
    ]
    known = bool(frame["gap"].notna().any())
    solution = {"value": 1.0, "gap": accuracy, "accuracy": accuracy} if known else None
    document = {
        "identity": {"problem": spec, "data_sha256": data, "networks": [{"name": NETWORK}]},
        "solution": solution,
        "problem": {
            "spec": spec, "parameters": {"d": 3}, "workers": 4, "terms": 40, "shape": [3], 
            "constants": {"L": {"value": 1.0, "kind": "exact", "how": ""}},
        },
        "methods": methods, "results": [], "versions": {"python": "3"}, "machine": {"cores": 2},
    }  # fmt: skip
    return Runs(document, table, path)


# ---- series ------------------------------------------------------------------------------------------------


def line(frame: pd.DataFrame, key: str = "rounds", floor: float = 0.0) -> series.Line:
    axis = next(axis for axis in series.axes(frame, NETWORK) if axis.key == key)
    return series.figure(frame, axis, floor).lines[0]


def test_one_seed_is_drawn_as_it_is():
    found = line(runs(rows("a")).trace)
    np.testing.assert_array_equal(found.x, np.arange(11))
    np.testing.assert_allclose(found.y, 0.5 ** np.arange(11))
    np.testing.assert_allclose(found.bound, 2 * 0.5 ** np.arange(11))


def test_the_line_is_the_median_and_the_band_reaches_from_least_to_greatest():
    frame = runs(rows("a", 0, rate=0.5), rows("a", 1, rate=0.25), rows("a", 2, rate=0.1)).trace
    found = line(frame)
    np.testing.assert_allclose(found.y, 0.25 ** np.arange(11))
    np.testing.assert_allclose(found.low, 0.1 ** np.arange(11))
    np.testing.assert_allclose(found.high, 0.5 ** np.arange(11))
    assert found.seeds == 3


def test_seeds_with_rows_at_other_places_are_compared_on_a_log_scale():
    sparse = [row for row in rows("a", 1) if row["rounds"] % 5 == 0]
    found = line(runs(rows("a", 0), sparse).trace)
    np.testing.assert_allclose(found.y, 0.5 ** np.arange(11))  # log-linear between its rows, both are the same curve
    np.testing.assert_allclose(found.low, found.high)


def test_gaps_below_the_accuracy_rest_on_it():
    found = line(runs(rows("a", rate=0.1)).trace, floor=1e-6)
    np.testing.assert_allclose(found.y, np.maximum(0.1 ** np.arange(11.0), 1e-6))


def test_rows_at_one_place_count_with_the_last():
    curve = rows("a", count=5)
    curve.insert(3, {**curve[3], "rounds": 2, "iteration": 2, "gap": 0.2})
    found = line(runs(curve).trace)
    assert found.x.tolist() == [0, 1, 2, 3, 4] and found.y[2] == pytest.approx(0.2)


def test_axes_have_units_and_become_logarithmic_when_methods_are_far_apart():
    near = {axis.key: axis for axis in series.axes(runs(rows("a"), rows("b", size=200)).trace, NETWORK)}
    assert near["uplink"].label == "uplink per worker [kB]" and not near["uplink"].log
    assert near["seconds"].label == "simulated time at 10mbit, 20ms [s]"
    far = {axis.key: axis for axis in series.axes(runs(rows("a"), rows("b", size=200_000)).trace, None)}
    assert far["uplink"].label == "uplink per worker [MB]" and far["uplink"].log and "seconds" not in far


def test_long_traces_are_thinned_but_keep_their_ends():
    found = line(runs(rows("a", rate=0.999, count=20_000)).trace)
    assert len(found.x) <= series.POINTS and (found.x[0], found.x[-1]) == (0, 19_999)


def test_without_a_known_solution_the_gradient_is_shown():
    frame = runs(rows("a", gap=math.nan)).trace
    assert series.measure_of(frame) == ("grad_norm2", "‖∇f(x)‖²")
    assert line(frame).bound is None


def test_another_network_is_priced_from_the_trace():
    frame = runs(rows("a")).trace
    priced = series.price(frame, [Network.parse("1mbit,5ms")])
    t = np.arange(11)
    np.testing.assert_allclose(priced["seconds[1mbit,5ms]"], 0.005 * t + 8 * 100 * t / 1e6 + 0.001 * t)
    again = series.price(frame.drop(columns=f"seconds[{NETWORK}]"), [Network.parse(NETWORK)])
    np.testing.assert_allclose(again[f"seconds[{NETWORK}]"], frame[f"seconds[{NETWORK}]"])


def test_a_method_far_below_the_others_does_not_press_them_together():
    frame = runs(rows("a", rate=0.5), rows("b", rate=0.6), rows("c", rate=1e-3)).trace
    low, high = series.figure(frame, series.axes(frame, None)[0], 0.0).window
    assert low == pytest.approx(0.5 * 0.5**10 * series.TAIL) and high == 3.0


def test_styles_repeat_late_and_markers_stay_on_the_line():
    looks = [style(place) for place in range(len(COLOURS) * len(MARKERS))]
    assert len(set(looks)) == len(looks)
    found = line(runs(rows("a", rate=0.9, count=400)).trace)
    for place in range(12):
        marks = marked(found, place)
        assert 3 <= len(marks) <= 7 and marks == sorted(set(marks)) and 0 <= marks[0] and marks[-1] < 400
    assert marked(found, 0) != marked(found, 1)


# ---- tables ------------------------------------------------------------------------------------------------


def summary(found: Runs, accuracy: float = 0.0) -> list[tables.Summary]:
    steps = {one["method"]: tables.Steps(one["step"], one["step_kind"]) for one in found.document["methods"]}
    return tables.summarise(found.trace, steps, NETWORK, "gap", accuracy)


def test_the_table_holds_medians_over_seeds():
    found = summary(runs(rows("b", 0, rate=0.5), rows("b", 1, rate=0.1), rows("b", 2, rate=0.2), rows("a", size=5000)))
    assert [row.method for row in found] == ["b", "a"]
    assert found[0].final == pytest.approx(0.2**10)
    assert (found[1].rounds, found[1].uplink_kb) == (10, 50.0)
    assert found[1].seconds == pytest.approx(10 * (0.02 + 0.004 + 0.001))
    assert found[0].step == "0.1 (theorem)" and found[0].status == "done"


def test_a_diverged_seed_counts_as_the_worst():
    bad = rows("a", 1, status="diverged")
    bad[-1]["gap"] = math.nan
    found = summary(runs(rows("a", 0, rate=0.5), bad, rows("a", 2, rate=0.9)))[0]
    assert found.final == pytest.approx(0.9**10)
    assert found.status == "done (2 of 3), diverged (1 of 3)"


def test_csv_reads_back_exactly():
    found = summary(runs(rows("gd(ef21(topk(k=0.1)), step='4x')", rate=1 / 3)))
    (row,) = csv.DictReader(io.StringIO(tables.to_csv(found)))
    assert row["method"] == "gd(ef21(topk(k=0.1)), step='4x')"
    assert float(row["final"]) == found[0].final and float(row["seconds"]) == found[0].seconds


def test_latex_is_escaped_and_set_with_booktabs():
    label = r"50% & more_{x} #1 ~ \foo"
    text = tables.to_latex(summary(runs(rows(label, rate=0.01)), accuracy=1e-6), "f(x) − f*")
    assert text.count(r"\toprule") == text.count(r"\midrule") == text.count(r"\bottomrule") == 1
    assert r"\texttt{50\% \& more\_\{x\} \#1 \textasciitilde{} \textbackslash{}foo}" in text
    assert r"$< 1 \cdot 10^{-6}$" in text
    body = re.sub(r"\\[&%#_{}]", "", text)
    assert {line.count("&") for line in body.splitlines() if line.endswith(r"\\")} == {7}
    assert text.isascii()


# ---- figures and page --------------------------------------------------------------------------------------


def test_figures_are_written_as_pdf_and_png(tmp_path):
    frame = runs(rows("a", 0), rows("a", 1, rate=0.4), rows("b", status="diverged")).trace
    figures = [series.figure(frame, axis, 1e-14) for axis in series.axes(frame, NETWORK)]
    files = draw(figures, tmp_path)
    names = {path.name for path in files}
    stems = {"gap-vs-rounds", "gap-vs-uplink", "gap-vs-seconds", "overview"}
    assert names == {f"{stem}.{kind}" for stem in stems for kind in ("pdf", "png")}
    for path in files:
        head = path.read_bytes()[:4]
        assert head == (b"%PDF" if path.suffix == ".pdf" else b"\x89PNG")


def test_the_page_stands_alone_and_escapes_what_it_shows(tmp_path):
    label = "gd(<b>x</b> & 'y')"
    written = laconic.report(
        runs(rows(label), rows("b", 0), rows("b", 1, rate=0.3), spec="custom('<script>')"), tmp_path
    )
    text = written.page.read_text()
    assert not re.search(r"<(script|link|img)[^>]+(src|href)=", text), "the page asks for something outside itself"
    assert "<b>x</b>" not in re.sub(r"<script.*?</script>", "", text, flags=re.DOTALL)
    assert "custom(&#x27;&lt;script&gt;&#x27;)" in text
    assert "Someone &amp; Co (2020). &lt;T&gt;" in text and "leans on the estimate of delta" in text
    assert text.count("plotly.js v") == 1
    assert {"table.csv", "table.tex"} <= {path.name for path in written.files}


def test_runs_on_one_problem_share_figures_and_others_get_their_own(tmp_path):
    first = runs(rows("a", 0), path=tmp_path / "one")
    second = runs(rows("a", 1, rate=0.4), rows("b"), path=tmp_path / "two")
    third = runs(rows("c"), spec="other", data="d2", path=tmp_path / "three")
    written = laconic.report([first, second, third], tmp_path / "out")
    (table,) = (path for path in written.files if path.name == "table.csv" and "problem-1" in str(path))
    assert [line.split(",")[0] for line in table.read_text().splitlines()] == ["method", "a", "b"]
    assert (tmp_path / "out" / "problem-2" / "figures" / "gap-vs-rounds.pdf").exists()


def test_the_same_curve_twice_is_told_apart_by_its_run(tmp_path):
    first, second = runs(rows("a"), path=tmp_path / "one"), runs(rows("a", rate=0.4), path=tmp_path / "two")
    written = laconic.report([first, second], tmp_path / "out")
    table = next(path for path in written.files if path.name == "table.csv").read_text()
    assert [line.split(",")[0] for line in table.splitlines()] == ["method", "a", "a [two]"]


def test_a_report_on_another_network(tmp_path):
    written = laconic.report(runs(rows("a")), tmp_path, network="1gbit,1ms")
    table = next(path for path in written.files if path.name == "table.csv").read_text()
    (row,) = csv.DictReader(io.StringIO(table))
    assert float(row["seconds"]) == pytest.approx(10 * (0.001 + 800 / 1e9 + 0.001))
    with pytest.raises(ValueError, match="--network"):
        laconic.report(runs(rows("a")), tmp_path, network="1gbit,1ms,server=1gbit")


def test_what_cannot_be_reported(tmp_path):
    with pytest.raises(ValueError, match="holds no run"):
        laconic.report(tmp_path / "nowhere")
    (tmp_path / "run.json").write_text("{")
    with pytest.raises(ValueError, match="cannot be read"):
        laconic.report(tmp_path)
    with pytest.raises(ValueError, match="at least one run"):
        laconic.report([])
