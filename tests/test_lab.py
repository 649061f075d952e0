"""The lab: what a run records, when it ends, and that neither a kill nor a damaged file changes the result."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numba
import numpy as np
import pandas as pd
import pytest
import torch

import laconic
from laconic.core.problem import Block, Constant, Constants, Oracles, Problem, Solution
from laconic.core.spec import parse
from laconic.lab.clock import Stopwatch
from laconic.lab.store import Checkpoint, RunDirectory
from laconic.runtime.local import Local

ROOT = Path(__file__).resolve().parent.parent
QUADRATIC = "quadratic(d=13, workers=5, noise=0.5, mu=0.05)"
SOME = ["gd", "ef21(topk(k=2))", "diana(natural)", "marina(permk)", "proxskip"]
SAME = (
    "status",
    "iterations",
    "rounds",
    "uplink_bytes",
    "uplink_bytes_total",
    "downlink_bytes",
    "messages",
    "gap",
    "x_sha256",
)
TIMED = ("compute_seconds", "seconds[10mbit,20ms]")  # measured, so never the same twice


def facts(runs: laconic.Runs) -> list[dict[str, Any]]:
    return [{key: result[key] for key in ("method", "seed", *SAME)} for result in runs.results]


def untimed(runs: laconic.Runs) -> pd.DataFrame:
    return runs.trace.drop(columns=[name for name in TIMED if name in runs.trace])


# ---- a problem whose every number is known by hand ---------------------------------------------------------


class BowlOracles(Oracles):
    """f_i(x) = ||x - i||^2 / 2, or NaN for one worker."""

    def __init__(self, d: int, block: Block, sick: int) -> None:
        super().__init__()
        self.block, self.shape = block, (d,)
        self._centres = torch.from_numpy(np.where(block.workers == sick, np.nan, block.workers).astype(float))

    def terms(self) -> np.ndarray:
        return np.ones(self.block.size, dtype=np.int64)

    def _values(self, x, rows):
        return 0.5 * ((x.expand(len(rows), *self.shape) - self._centres[rows, None]) ** 2).sum(dim=1)

    def _gradients(self, x, rows, batch):
        return x - self._centres[rows, None].expand(len(rows), *self.shape)


@dataclass(frozen=True)
class Bowl(Problem):
    """f(x) = ||x - m||^2 / 2 + const with m = (workers - 1) / 2, so L = mu = 1."""

    d: int = 3
    workers: int = 4
    sick: int = -1

    name: ClassVar[str] = "bowl"

    @property
    def n(self) -> int:
        return self.workers

    def oracles(self, block: Block, data_dir: Path | None = None) -> Oracles:
        return BowlOracles(self.d, block, self.sick)

    def constants(self, data_dir: Path | None = None) -> Constants:
        one = Constant(1.0)
        return Constants(one, (1.0,) * self.n, one, one, one, Constant(0.0), one, one)

    def solution(self, data_dir: Path | None = None) -> Solution:
        m = (self.workers - 1) / 2
        value = 0.5 * self.d * float(np.mean((np.arange(self.workers) - m) ** 2))
        return Solution(torch.full((self.d,), m, dtype=torch.float64), value, 0.0)


def test_every_column_of_gradient_descent_on_bowls_by_hand():
    # x_t = m (1 - (1 - s)^t) in every coordinate; f - f* = d m^2 (1 - s)^(2t) / 2; grad^2 twice that
    runs = laconic.run(Bowl(), "gd(step=0.5)", iterations=4, network=["8bit,1s", "80bit,0s"])
    trace, d, n, m = runs.trace, 3, 4, 1.5
    t = np.arange(5)
    shrunk = 0.25**t
    np.testing.assert_array_equal(trace["iteration"], t)
    np.testing.assert_allclose(trace["gap"], 0.5 * d * m**2 * shrunk, rtol=1e-12)
    np.testing.assert_allclose(trace["f"] - trace["gap"], 0.5 * d * 1.25, rtol=1e-12)
    np.testing.assert_allclose(trace["grad_norm2"], d * m**2 * shrunk, rtol=1e-12)
    np.testing.assert_allclose(trace["distance2"], d * m**2 * shrunk, rtol=1e-12)
    # one gradient goes up at the start and per iteration, and each iteration begins with x going down
    np.testing.assert_array_equal(trace["rounds"], t + 1)
    np.testing.assert_array_equal(trace["uplink"], 8.0 * d * (t + 1))
    np.testing.assert_array_equal(trace["uplink_max"], 8 * d * (t + 1))
    np.testing.assert_array_equal(trace["downlink"], 8.0 * d * t)
    np.testing.assert_array_equal(trace["messages"], n * (2 * t + 1))
    np.testing.assert_array_equal(trace["gradients"], t + 1.0)
    np.testing.assert_array_equal(trace["flights"], 2 * t + 1)
    np.testing.assert_array_equal(trace["peak"], 8 * d * (2 * t + 1))
    # 24 bytes at 8 bit/s are 24 s and one of latency; at 80 bit/s 2.4 s
    travel = trace["seconds[8bit,1s]"] - trace["compute_seconds"]
    np.testing.assert_allclose(travel, 25.0 * (2 * t + 1), rtol=1e-9)
    travel = trace["seconds[80bit,0s]"] - trace["compute_seconds"]
    np.testing.assert_allclose(travel, 2.4 * (2 * t + 1), rtol=1e-9)
    assert list(trace["status"]) == ["running"] * 4 + ["done"]
    assert (trace["compute_seconds"].diff().dropna() >= 0).all()


def test_the_result_holds_the_hash_of_x_and_the_ledger():
    import hashlib

    result = laconic.run(Bowl(), "gd(step=1.0)", iterations=1).results[0]
    x = np.full(3, 1.5)
    assert result["x_sha256"] == hashlib.sha256(x.tobytes()).hexdigest()
    assert (result["uplink_bytes"], result["uplink_bytes_total"]) == (48.0, 192)
    assert (result["downlink_bytes"], result["rounds"], result["gap"]) == (24.0, 2, 0.0)


def test_the_bound_of_the_theorem_lies_above_the_gap():
    trace = laconic.run(QUADRATIC, ["gd", "ef21(topk(k=2))", "marina(permk)"], rounds=60, seeds=3).trace
    known = trace[trace["bound"].notna()]
    assert set(known["method"]) >= {"gd", "ef21(topk(k=2))"}
    mean = known.groupby(["method", "iteration"])[["gap", "bound"]].mean()
    assert (mean["gap"] <= mean["bound"] * (1 + 1e-9)).all()


# ---- when a curve ends -------------------------------------------------------------------------------------


def test_limits():
    run = lambda **limits: laconic.run(Bowl(), "gd(step=0.5)", **limits).results[0]  # noqa: E731
    assert run(rounds=7)["rounds"] == 7
    assert run(iterations=7)["iterations"] == 7
    assert run(budget=100)["uplink_bytes"] == 120  # 24 a round: the first amount of at least 100
    reached = run(until=1e-3)
    assert reached["status"] == "reached" and reached["gap"] <= 1e-3 < 4 * reached["gap"]
    assert run()["rounds"] == 1000
    assert run(rounds=0, iterations=0)["iterations"] == 0


def test_an_iteration_may_be_two_rounds_or_none():
    problem = "logistic(l2=1e-2, workers=4)"
    skip, slide = laconic.run(problem, ["proxskip", "sliding"], rounds=12, every=1).results
    assert skip["rounds"] == 12 and skip["iterations"] > 3 * 12
    assert slide["rounds"] == 12 and slide["iterations"] <= 6


def test_every_thins_the_trace_and_changes_nothing_else():
    often = laconic.run(QUADRATIC, SOME, rounds=30, every=1)
    rarely = laconic.run(QUADRATIC, SOME, rounds=30, every=7)
    assert facts(often) == facts(rarely)
    a, b = (table[table["method"] != "proxskip"] for table in map(untimed, (often, rarely)))
    assert len(b) < len(a) / 4
    both = b.merge(a, how="inner")  # every row of the thin trace, in all columns, is one of the full one
    assert len(both) == len(b)
    gd = b[b["method"] == "gd"]
    assert list(gd["iteration"]) == [0, 7, 14, 21, 28, 29]


def test_rows_are_recorded_only_when_something_was_said():
    trace = laconic.run("logistic(l2=1e-2, workers=4)", "proxskip", rounds=20).trace
    assert list(trace["rounds"]) == list(range(21))


def test_a_diverging_method_is_marked_and_the_others_go_on(capsys):
    runs = laconic.run(Bowl(), {"bad": "gd(step=30.0)", "good": "gd(step=0.5)"}, rounds=400)
    bad, good = runs.results
    assert bad["status"] == "diverged" and bad["rounds"] < 400 and f"round {bad['rounds']}" in bad["reason"]
    assert good["status"] == "done" and good["rounds"] == 400
    last = runs.trace[runs.trace["method"] == "bad"].iloc[-1]
    assert last["status"] == "diverged" and last["rounds"] == bad["rounds"]
    assert "bad (seed 0) diverged" in capsys.readouterr().err


def test_overflow_between_two_evaluations_is_noticed_at_once():
    result = laconic.run(Bowl(), "gd(step=1e150)", rounds=50, every=1000).results[0]
    assert result["status"] == "diverged" and result["rounds"] <= 5
    assert result["gap"] is None


def test_a_worker_with_bad_data_is_named():
    with pytest.raises(ValueError, match=r"worker 2's value is not finite at x\^0"):
        laconic.run(Bowl(sick=2), "gd(step=0.5)", rounds=3)


# ---- the same bits everywhere ------------------------------------------------------------------------------


def parts(count: int):
    return lambda n, *, seed, topology, encoded: Local(n, seed=seed, parts=count, encoded=encoded)


@pytest.mark.parametrize(
    "how", [{"runtime": parts(3)}, {"runtime": parts(2), "wire": "encoded"}, {"wire": "encoded"}, {"topology": "star"}]
)
def test_parts_wire_and_topology_change_no_bit(how):
    plain = laconic.run(QUADRATIC, SOME, rounds=25, seeds=(4,))
    other = laconic.run(QUADRATIC, SOME, rounds=25, seeds=(4,), **how)
    assert facts(plain) == facts(other)
    pd.testing.assert_frame_equal(untimed(plain), untimed(other), check_exact=True)


def test_seeds_differ_and_repeat():
    first = laconic.run(QUADRATIC, "diana(natural)", rounds=20, seeds=2)
    again = laconic.run(QUADRATIC, "diana(natural)", rounds=20, seeds=(1, 0))
    one, two = first.results
    assert one["x_sha256"] != two["x_sha256"]
    assert [one["x_sha256"], two["x_sha256"]] == [r["x_sha256"] for r in reversed(again.results)]


# ---- the run directory -------------------------------------------------------------------------------------


def test_run_json_says_what_was_run(tmp_path):
    methods = ["gd", 'gd(step="4x")', {"spec": "gd(step=0.01)", "label": "slow"}, "gd(direct(topk(k=1)), step=0.01)"]
    out = tmp_path / "run"
    laconic.run(QUADRATIC, methods, rounds=3, out=out)
    document = json.loads((out / "run.json").read_text())
    kinds = [method["step_kind"] for method in document["methods"]]
    assert kinds == ["theorem", "4x theorem", "explicit", "no theorem"]
    steps = [method["step"] for method in document["methods"]]
    assert steps[1] == 4 * steps[0] and steps[2] == 0.01
    assert document["methods"][0]["guarantee"]["source"] and document["methods"][3]["why"]
    assert document["problem"]["constants"]["L"] == {
        "value": pytest.approx(1.0, abs=2),
        "kind": "exact",
        "how": "",
    } or (document["problem"]["constants"]["L"]["kind"] == "exact")
    assert steps[0] == pytest.approx(1 / document["problem"]["constants"]["L"]["value"])
    assert {"python", "torch", "numpy", "numba"} <= set(document["versions"])
    assert [result["method"] for result in document["results"]] == [method["method"] for method in document["methods"]]
    assert sorted(path.name for path in out.iterdir()) == ["run.json", "trace.parquet"]
    loaded = laconic.Runs.load(out)
    assert len(loaded.trace) == 12


class Killed(Exception):
    """Stands for a process that vanishes."""


def killed_run(out: Path, after: int, **options) -> None:
    """A run that ends abruptly after some calls into the network, having saved a checkpoint at every iteration."""

    class Mortal(Local):
        calls = 0

        def drive(self, *texts):
            Mortal.calls += 1
            if Mortal.calls > after:
                for text in texts:
                    text.close()
                raise Killed
            return super().drive(*texts)

    def opens(n, *, seed, topology, encoded):
        return Mortal(n, seed=seed, encoded=encoded)

    with pytest.raises(Killed):
        laconic.run(QUADRATIC, SOME, rounds=12, seeds=2, every=3, out=out, runtime=opens, save_every=0.0, **options)


@pytest.mark.parametrize("after", [2, 3, 9, 60, 61, 62, 63, 64, 65, 250, 420])
@pytest.mark.parametrize("count", [1, 3])
def test_a_killed_run_resumed_on_any_number_of_parts_is_the_uninterrupted_one(tmp_path, after, count):
    options = {"rounds": 12, "seeds": 2, "every": 3}
    whole = laconic.run(QUADRATIC, SOME, **options)
    out = tmp_path / "run"
    killed_run(out, after)
    resumed = laconic.run(QUADRATIC, SOME, **options, out=out, resume=True, runtime=parts(count))
    assert facts(resumed) == facts(whole)
    pd.testing.assert_frame_equal(untimed(resumed), untimed(whole), check_exact=True)
    assert not resumed.trace.duplicated(["method", "seed", "iteration"]).any()
    on_disk = laconic.Runs.load(out)
    assert facts(on_disk) == facts(whole)
    # the network's clock went on too: with equal flights, seconds less computing are equal
    travel = [runs.trace[TIMED[1]] - runs.trace[TIMED[0]] for runs in (resumed, whole)]
    np.testing.assert_allclose(travel[0], travel[1], rtol=1e-9)


def test_a_run_killed_by_sigkill_at_a_random_moment_is_resumed(tmp_path):
    out = tmp_path / "run"
    code = (
        "import laconic, sys\n"
        f"laconic.run({QUADRATIC!r}, {SOME!r}, rounds=400, every=20, out=sys.argv[1], save_every=0.02, resume=True)"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    kills = 0
    for attempt in range(20):
        child = subprocess.Popen([sys.executable, "-c", code, str(out)], env=environment, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 60
        while child.poll() is None and not (out / "checkpoint.safetensors").exists() and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(0.05 + 0.13 * (attempt % 5))
        child.send_signal(signal.SIGKILL)
        kills += child.wait() == -signal.SIGKILL
        if child.returncode == 0 or attempt >= 2:
            break
    assert kills >= 1
    resumed = laconic.run(QUADRATIC, SOME, rounds=400, every=20, out=out, resume=True)
    whole = laconic.run(QUADRATIC, SOME, rounds=400, every=20)
    assert facts(resumed) == facts(whole)
    pd.testing.assert_frame_equal(untimed(resumed), untimed(whole), check_exact=True)


def damage(path: Path, how: str) -> None:
    content = path.read_bytes()
    if how == "truncated":
        path.write_bytes(content[: len(content) // 2])
    elif how == "empty":
        path.write_bytes(b"")
    else:  # one bit of the last tensor
        path.write_bytes(content[:-5] + bytes([content[-5] ^ 1]) + content[-4:])


@pytest.mark.parametrize("how", ["truncated", "empty", "flipped"])
def test_a_damaged_checkpoint_gives_way_to_the_one_before(tmp_path, capsys, how):
    out = tmp_path / "run"
    killed_run(out, 120)
    damage(out / "checkpoint.safetensors", how)
    resumed = laconic.run(QUADRATIC, SOME, rounds=12, seeds=2, every=3, out=out, resume=True)
    said = capsys.readouterr().err
    assert "checkpoint.safetensors is truncated or damaged; going on from the one before" in said
    whole = laconic.run(QUADRATIC, SOME, rounds=12, seeds=2, every=3)
    assert facts(resumed) == facts(whole)
    pd.testing.assert_frame_equal(untimed(resumed), untimed(whole), check_exact=True)


def test_two_damaged_checkpoints_are_an_error_that_loses_nothing(tmp_path):
    out = tmp_path / "run"
    killed_run(out, 120)
    for name in ("checkpoint.safetensors", "checkpoint.previous.safetensors"):
        damage(out / name, "truncated")
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    with pytest.raises(ValueError, match="truncated or damaged and there is no other; delete it"):
        laconic.run(QUADRATIC, SOME, rounds=12, seeds=2, every=3, out=out, resume=True)
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    for name in ("checkpoint.safetensors", "checkpoint.previous.safetensors"):
        (out / name).unlink()
    resumed = laconic.run(QUADRATIC, SOME, rounds=12, seeds=2, every=3, out=out, resume=True)
    assert facts(resumed) == facts(laconic.run(QUADRATIC, SOME, rounds=12, seeds=2, every=3))


def test_a_directory_that_holds_another_run_is_left_alone(tmp_path):
    out = tmp_path / "run"
    laconic.run(Bowl(), "gd(step=0.5)", rounds=3, out=out)
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    with pytest.raises(ValueError, match="already holds a run; go on with it by --resume"):
        laconic.run(Bowl(), "gd(step=0.5)", rounds=3, out=out)
    with pytest.raises(ValueError, match=r"holds another run: its limits.rounds is 3, not 4"):
        laconic.run(Bowl(), "gd(step=0.5)", rounds=4, out=out, resume=True)
    with pytest.raises(ValueError, match="holds another run: its problem is"):
        laconic.run(Bowl(d=4), "gd(step=0.5)", rounds=3, out=out, resume=True)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.tex").write_text("years of work")
    with pytest.raises(ValueError, match="not empty and holds no run"):
        laconic.run(Bowl(), "gd(step=0.5)", rounds=3, out=tmp_path / "other")
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before


def test_a_finished_run_resumes_to_itself(tmp_path):
    out = tmp_path / "run"
    first = laconic.run(Bowl(), "gd(step=0.5)", rounds=3, out=out)
    again = laconic.run(Bowl(), "gd(step=0.5)", rounds=3, out=out, resume=True)
    assert again.results == first.results and len(again.trace) == 3


def test_nothing_is_written_without_out(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    laconic.run(Bowl(), "gd(step=0.5)", rounds=3)
    assert list(tmp_path.iterdir()) == []


def test_a_checkpoint_keeps_every_dtype(tmp_path):
    tensors = {
        "a": torch.tensor([1.5, math.nan], dtype=torch.float32),
        "b": torch.arange(6).reshape(2, 3),
        "c": torch.tensor([True, False]),
        "d": torch.zeros(0, 4, dtype=torch.float64),
        "e": torch.tensor(2.0**-1074, dtype=torch.float64),
    }
    directory = RunDirectory(tmp_path)
    directory.write_checkpoint(Checkpoint({"x": 1}, tensors))
    found, source = directory.read_checkpoint(print)
    assert source == 1 and found is not None and found.facts == {"x": 1}
    for name, tensor in tensors.items():
        assert found.tensors[name].dtype == tensor.dtype
        assert torch.equal(found.tensors[name], tensor) or name == "a"
    assert found.tensors["a"][0] == 1.5 and found.tensors["a"][1].isnan()


# ---- what cannot be run ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("methods", "options", "said"),
    [
        ("gdd", {}, "did you mean 'gd'"),
        ("topk(k=1)", {}, "not a method or mechanism; as in gd(direct(topk(k=1)))"),
        ("quadratic(d=3)", {}, "is a problem, not a method"),
        ([], {}, "at least one method"),
        (["gd", "gd"], {}, "'gd' is given twice"),
        ([{"label": "x"}], {}, "a method is a spec"),
        ("direct(topk(k=1))", {}, "give an explicit step"),
        ("gd", {"rounds": -1}, "rounds must be an integer >= 0"),
        ("gd", {"rounds": 1.5}, "rounds must be an integer >= 0"),
        ("gd", {"until": 0}, "until must be a number > 0"),
        ("gd", {"budget": math.inf}, "budget must be a number > 0"),
        ("gd", {"every": 0}, "every must be an integer >= 1"),
        ("gd", {"seeds": []}, "seeds must be"),
        ("gd", {"seeds": (1, 1)}, "seeds must be"),
        ("gd", {"seeds": 0}, "seeds must be"),
        ("gd", {"topology": "ring"}, "topology must be one of 'replicated', 'star'"),
        ("gd", {"wire": "telex"}, "wire must be one of 'counted', 'encoded'"),
        ("gd", {"network": "fast"}, "a network is"),
        ("gd", {"network": ["1mbit,1ms", "1mbit,1ms"]}, "given twice"),
        ("gd", {"resume": True}, "resume needs out"),
    ],
)
def test_bad_input_is_one_clear_line(methods, options, said):
    with pytest.raises(ValueError) as caught:
        laconic.run(QUADRATIC, methods, **options)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_target_gap_needs_a_solution():
    with pytest.raises(ValueError, match="no reference solution"):
        laconic.run("logistic(workers=2, nonconvex=0.1)", "gd(step=0.1)", until=1e-3)


def test_without_a_solution_the_gradient_is_followed():
    trace = laconic.run("logistic(workers=2, nonconvex=0.1)", "gd(step=0.1)", rounds=5).trace
    assert trace["gap"].isna().all() and (trace["grad_norm2"].diff().dropna() < 0).all()


def test_objects_do_as_well_as_specs():
    problem, method = parse(QUADRATIC), parse("ef21(topk(k=2))")
    by_object = laconic.run(problem, [method], rounds=5)
    by_text = laconic.run(QUADRATIC, "ef21(topk(k=2))", rounds=5)
    assert facts(by_object) == facts(by_text)
    pairs = laconic.run(problem, [("mine", method)], rounds=5)
    assert pairs.results[0]["method"] == "mine"


def test_the_stopwatch_stands_still_while_numba_compiles():
    watch = Stopwatch()

    @numba.njit
    def fresh(x):
        return x + 1

    start = time.perf_counter()
    with watch.running():
        fresh(1.0)
        time.sleep(0.02)
    elapsed = time.perf_counter() - start
    assert 0.02 <= watch.seconds < 0.02 + 0.5 * (elapsed - 0.02)


def test_a_finished_plan_is_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        parse("gd").step = 3.0  # type: ignore[attr-defined]
