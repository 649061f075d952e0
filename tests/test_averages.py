"""Weighted averages of iterates: by hand, without overflow, in the trace, after a resume, in reports."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import torch

import laconic
from by_hand import start
from laconic.core.theory import Guarantee
from laconic.lab import series
from laconic.lab.average import Average
from laconic.lab.report import report
from laconic.lab.trace import Trace, numbers
from laconic.runtime.local import Local

SMALL = "quadratic(d=7, workers=4, noise=0.3, mu=0.1)"
EF14 = "ef14(topk(k=2))"
FADING = "gd(ef14_inside(topk(k=2)), schedule=decreasing)"
PHASES = "gd(ef14_inside(topk(k=2)), step=0.004, schedule=two_phase(horizon=20, shift=3.0))"
METHODS = [EF14, FADING, PHASES, "gd"]
Weight = Callable[[int], float]


# ---- the recursion ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "log_weight",
    [
        lambda k: 0.0,
        lambda k: math.log(5.0 + k),
        lambda k: -(k + 1) * math.log1p(-0.01),
        lambda k: -0.3 * k,
        lambda k: 2.0 * math.log(k - 6) if k > 6 else -math.inf,
    ],
    ids=["uniform", "linear", "growing", "shrinking", "late"],
)
def test_it_is_the_weighted_mean(log_weight: Weight) -> None:
    points = torch.randn(40, 3, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    average = Average(log_weight)
    for k, point in enumerate(points):
        average.add(k, point)
        weights = np.exp([log_weight(j) for j in range(k + 1)])
        if weights.sum() == 0.0:
            assert average.point(point).isnan().all()
            continue
        expected = np.average(points[: k + 1].numpy(), axis=0, weights=weights)
        np.testing.assert_allclose(average.point(point).numpy(), expected, rtol=1e-11, atol=1e-13)


def test_weights_that_no_float_holds_neither_overflow_nor_forget() -> None:
    """Weights 2^(k+1) up to iteration 3000, and e^k around iteration 1 000 000: the last iterates decide."""
    average = Average(lambda k: (k + 1) * math.log(2.0))
    for k in range(3000):
        average.add(k, torch.tensor([float(k)]))
    assert float(average.point(torch.zeros(1))) == pytest.approx(2998.0, abs=1e-3)  # k_last - 1
    far, ratio = Average(lambda k: float(k)), math.exp(-1.0)
    for k in range(1_000_000, 1_000_100):
        far.add(k, torch.tensor([float(k)], dtype=torch.float64))
    expected = 1_000_099 - ratio / (1 - ratio)
    assert float(far.point(torch.zeros(1, dtype=torch.float64))) == pytest.approx(expected, abs=1e-6)


def test_late_iterates_in_a_short_format_are_not_lost() -> None:
    """The uniform mean of 0, ..., 4095 in float32, of which the last changes the mean by an eight-thousandth."""
    average = Average(lambda k: 0.0)
    for k in range(4096):
        average.add(k, torch.tensor([1000.0 + k / 4096], dtype=torch.float32))
    assert average.mean is not None and float(average.mean) == pytest.approx(1000.0 + 4095 / 8192, abs=1e-9)
    assert average.point(torch.zeros(1)).dtype == torch.float32


def test_it_keeps_nothing_it_was_lent() -> None:
    x, average = torch.zeros(3), Average(lambda k: 0.0)
    average.add(0, x)
    x += 1.0
    assert average.mean is not None and float(average.mean.sum()) == 0.0


# ---- in a run --------------------------------------------------------------------------------------------------------


def weights_of(spec: str, method: Any, count: int) -> np.ndarray:
    """By the papers' formulas: (1 - mu step / 2)^-(k+1), kappa + k, and (kappa + k - t0)^2 from t0 = 10 on."""
    k, step = np.arange(count), float(method.step)
    if spec == EF14:
        return (1.0 - 0.1 * step / 2.0) ** -(k + 1.0)
    if spec == FADING:
        return 4.0 / (0.1 * step) + k
    return np.where(k >= 10, (3.0 + k - 10.0) ** 2, 0.0)


@pytest.mark.parametrize("spec", [EF14, FADING, PHASES])
def test_the_trace_has_the_gap_at_the_average_that_the_theorem_is_about(spec: str) -> None:
    trace = laconic.run(SMALL, spec, iterations=30).trace
    course = start(spec, SMALL)
    points = [course.x]
    points += [course.go().x for _ in range(30)]
    solution = course.problem.solution()
    assert solution is not None
    weights = weights_of(spec, course.method, 31)
    oracles: Any = course.oracles[0]
    for k, found in zip(trace["iteration"], trace["gap_average"], strict=True):
        if weights[: k + 1].sum() == 0.0:
            assert math.isnan(found)
            continue
        mean = np.average(torch.stack(points[: k + 1]).numpy(), axis=0, weights=weights[: k + 1])
        expected = float(oracles.excess(torch.from_numpy(mean), solution).mean())
        assert found == pytest.approx(expected, rel=1e-9)
    assert np.isfinite(numbers(trace, "gap_average")).sum() == (21 if spec == PHASES else 31)
    assert list(trace.columns).index("gap_average") == list(trace.columns).index("gap") + 1


def test_theorems_about_the_last_iterate_have_none_and_neither_has_a_step_beyond_theory() -> None:
    trace = laconic.run(SMALL, ["gd", "ef21(topk(k=2))", "gd(ef14(topk(k=2)), step='4x')"], iterations=4).trace
    assert np.isnan(numbers(trace, "gap_average")).all() and np.isfinite(numbers(trace, "gap")).all()
    assert Guarantee(1.0, start("gd", SMALL).method.source, average=lambda k: 0.0).at(2.0).average is None


def test_rows_left_out_change_no_average_and_looking_costs_nothing() -> None:
    dense, sparse = (laconic.run(SMALL, EF14, iterations=30, every=every).trace for every in (1, 7))
    both = sparse.merge(dense, on="iteration")
    assert len(both) == len(sparse) and (numbers(both, "gap_average_x") == numbers(both, "gap_average_y")).all()
    without = laconic.run(SMALL, "gd(ef14(topk(k=2)), step='4x')", iterations=30).trace
    for column in ("gradients", "uplink", "downlink", "messages", "rounds"):
        assert (numbers(without, column) == numbers(dense, column)).all()


# ---- the same bits everywhere ----------------------------------------------------------------------------------------

TIMED = ("compute_seconds", "seconds[10mbit,20ms]")


def untimed(runs: laconic.Runs) -> pd.DataFrame:
    return runs.trace.drop(columns=list(TIMED))


def parts(count: int) -> Any:
    return lambda n, *, seed, topology, encoded: Local(n, seed=seed, parts=count, encoded=encoded)


@pytest.mark.parametrize(
    "how", [{"runtime": parts(3)}, {"wire": "encoded"}, {"topology": "star"}], ids=["parts", "encoded", "star"]
)
def test_parts_wire_and_topology_change_no_bit(how: dict[str, Any]) -> None:
    plain, other = laconic.run(SMALL, METHODS, iterations=15), laconic.run(SMALL, METHODS, iterations=15, **how)
    pd.testing.assert_frame_equal(untimed(plain), untimed(other), check_exact=True)


class Killed(Exception):
    """Stands for a process that vanishes."""


def dies(after: int, star: bool, count: int) -> Any:
    """Opens runtimes that vanish after some calls into the network."""
    calls = 0

    def opens(n: int, *, seed: int, topology: str, encoded: bool) -> Local:
        runtime = Local.debug(n, seed=seed) if star else Local(n, seed=seed, parts=count)
        drive = runtime.drive

        def counted(*texts: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls > after:
                for text in texts:
                    text.close()
                raise Killed
            return drive(*texts)

        runtime.drive = counted  # pyright: ignore[reportAttributeAccessIssue]
        return runtime

    return opens


@pytest.mark.parametrize("after", [12, 40, 88, 120, 170])
@pytest.mark.parametrize(("star", "count"), [(False, 1), (False, 3), (True, 1)])
def test_a_killed_run_goes_on_with_the_same_averages(tmp_path: Path, after: int, star: bool, count: int) -> None:
    """From one kind of runtime to another: the checkpoint holds the server's mean and the sum of weights."""
    options: dict[str, Any] = {"iterations": 12, "every": 2, "topology": "star" if star else "replicated"}
    methods, out = [PHASES, EF14, FADING], tmp_path / "run"
    with pytest.raises(Killed):
        laconic.run(SMALL, methods, out=out, runtime=dies(after, star, count), save_every=0.0, **options)
    assert (out / "checkpoint.safetensors").exists()
    again: dict[str, Any] = {} if star else {"runtime": parts(4 - count)}
    resumed = laconic.run(SMALL, methods, out=out, resume=True, **again, **options)
    whole = laconic.run(SMALL, methods, **options)
    pd.testing.assert_frame_equal(untimed(resumed), untimed(whole), check_exact=True)


# ---- files and figures -----------------------------------------------------------------------------------------------


def without_the_column(out: Path) -> None:
    """Makes a run directory what an older version wrote."""
    table = pq.read_table(out / "trace.parquet")
    pq.write_table(table.drop_columns(["gap_average"]), out / "trace.parquet")


def test_runs_of_older_versions_are_read(tmp_path: Path) -> None:
    out = tmp_path / "old"
    laconic.run(SMALL, [EF14, "gd"], iterations=6, out=out)
    without_the_column(out)
    old = laconic.Runs.load(out)
    assert "gap_average" not in old.table.column_names and len(old.trace) == 14
    assert report(old, tmp_path / "page").page.exists()
    again = laconic.run(SMALL, [EF14, "gd"], iterations=6, out=out, resume=True)
    assert np.isnan(numbers(again.trace, "gap_average")).all() and len(again.trace) == 14
    with pytest.raises(ValueError, match="has no column 'gap'"):
        Trace.of(old.table.drop_columns(["gap"]), ["10mbit,20ms"])
    with pytest.raises(ValueError, match="the trace has no value of it"):
        report(old, tmp_path / "page", measure="gap_average")


def test_the_average_can_be_drawn(tmp_path: Path) -> None:
    runs = laconic.run(SMALL, [EF14, "gd"], iterations=20)
    axis = series.axes(runs.trace, None)[0]
    averaged, plain = series.figure(runs.trace, axis, 1e-14, "gap_average"), series.figure(runs.trace, axis, 1e-14)
    shown = series.clean(averaged)
    assert [line.label for line in shown] == [EF14] and averaged.measure == "f(x) − f* at the weighted average"
    ours = runs.trace[runs.trace["method"] == EF14]
    np.testing.assert_allclose(shown[0].y, ours["gap_average"], rtol=1e-12)
    assert shown[0].bound is None and averaged.floor == 1e-14 and len(series.clean(plain)) == 2
    page = report(runs, tmp_path, measure="gap_average").page.read_text()
    assert "at the weighted average" in page
    with pytest.raises(ValueError, match="measure must be one of 'gap', 'gap_average', 'grad_norm2'"):
        report(runs, tmp_path, measure="loss")
