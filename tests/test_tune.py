"""Tuning: what is tried, what wins and why, and that nothing is computed twice."""

from __future__ import annotations

import dataclasses
import json
import math
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

import laconic
from laconic import cli
from laconic.core.problem import Block, Constant, Constants, Oracles, Problem, Solution
from laconic.core.spec import parse
from laconic.lab import bank
from laconic.lab.criteria import MeanLog, ToTarget
from laconic.lab.grid import DEFAULT, grid_of, multiples, points, put, wider
from laconic.lab.sweep import Field, Recording
from laconic.lab.trace import DIVERGED

QUADRATIC = "quadratic(d=13, workers=5, noise=0.5, mu=0.05)"


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("LACONIC_CACHE", str(tmp_path / "cache"))


class BowlOracles(Oracles):
    """f_i(x) = ||x - i||^2 / 2."""

    def __init__(self, block: Block) -> None:
        super().__init__()
        self.block, self.shape = block, (3,)
        self._centres = torch.from_numpy(block.workers.astype(float))

    def terms(self):
        return np.ones(self.block.size, dtype=np.int64)

    def _values(self, x, rows):
        return 0.5 * ((x.expand(len(rows), 3) - self._centres[rows, None]) ** 2).sum(dim=1)

    def _gradients(self, x, rows, batch):
        return x - self._centres[rows, None].expand(len(rows), 3)


@dataclass(frozen=True)
class Bowl(Problem):
    """f(x) = ||x - 1.5||^2 / 2 + const, so L = mu = 1 and every step multiplies the gap by (1 - step)^2."""

    name: ClassVar[str] = "bowl"

    @property
    def n(self) -> int:
        return 4

    def oracles(self, block, data_dir=None):
        return BowlOracles(block)

    def constants(self, data_dir=None):
        one = Constant(1.0)
        return Constants(one, (1.0,) * 4, one, one, one, Constant(0.0), one, one)

    def solution(self, data_dir=None):
        return Solution(torch.full((3,), 1.5, dtype=torch.float64), 0.5 * 3 * 1.25, 0.0)


def bytes_to(target: float, step: float) -> float:
    """Of gradient descent on bowls: 24 bytes go up at the start and in every iteration."""
    gap, k = 0.5 * 3 * 1.5**2, 0
    while gap > target:
        gap, k = gap * (1.0 - step) ** 2, k + 1
    return 24.0 * (k + 1)


# ---- who wins ------------------------------------------------------------------------------------------------------


def test_the_winner_on_bowls_by_hand():
    tuned = laconic.tune(Bowl(), "gd(step=1.0)", target=1e-6, multipliers=[0.25, 0.5, 1.0, 1.25, 4.0], every=1)
    (choice,) = tuned.choices
    assert (tuned.winner, choice.base, choice.multiple) == ("gd(step=1.0)", "as given", 1.0)
    assert (choice.score, choice.test, choice.tried) == (48.0, 48.0, 5)
    assert choice.edge == "" and tuned.notes == ()
    scores = tuned.curves[tuned.curves["part"] == "tuning"].groupby("multiple")["score"].unique()
    for multiple in (0.25, 0.5, 1.0, 1.25):
        assert list(scores[multiple]) == [bytes_to(1e-6, multiple)]
    assert list(scores[4.0]) == [math.inf]
    assert set(tuned.curves[tuned.curves["multiple"] == 4.0]["status"]) == {DIVERGED}


def test_a_winner_at_an_end_widens_the_multiples():
    tuned = laconic.tune(Bowl(), "gd(step=1.0)", target=1e-6, multipliers="2^-6..2^-4", seeds=1, every=1)
    (choice,) = tuned.choices
    assert choice.multiple == 1.0 and choice.edge == "" and choice.tried == 3 + 4 + 4
    tuned = laconic.tune(Bowl(), "gd(step=1.0)", target=1e-6, multipliers="2^2..2^4", seeds=1, every=1)
    assert tuned.choices[0].multiple == 1.0 and tuned.choices[0].tried == 3 + 4
    tuned = laconic.tune(Bowl(), "gd(step=1.0)", target=1e-6, multipliers=[1.25, 1.5, 1.75], seeds=1, every=1)
    assert tuned.choices[0].multiple == pytest.approx(1.25**2 / 1.5) and tuned.choices[0].tried == 3 + 4


def test_an_end_that_is_not_widened_is_reported():
    tuned = laconic.tune(Bowl(), "gd(step=1.0)", target=1e-6, multipliers="2^-6..2^-3", seeds=1, every=1, widen=0)
    (choice,) = tuned.choices
    assert choice.multiple == 0.125 and choice.edge == "step at the upper edge" and choice.tried == 4
    assert any("upper edge" in note for note in tuned.notes)


def test_a_target_that_nobody_reaches_has_no_winner_but_the_nearest_is_named():
    tuned = laconic.tune(Bowl(), "gd(step=1.0)", target=1e-9, rounds=5, multipliers=[0.1, 0.125], seeds=1, widen=0)
    (choice,) = tuned.choices
    assert choice.spec is None and choice.score == math.inf
    assert any("gd(step=0.125), ended at" in note for note in tuned.notes)
    with pytest.raises(ValueError, match="no method has a finite score"):
        tuned.winner  # noqa: B018
    assert tuned.document()["winner"] is None and json.dumps(tuned.document(), allow_nan=False)


def test_multiples_of_a_theorem_and_the_spec_of_the_winner():
    tuned = laconic.tune(QUADRATIC, "ef21(topk(k={1, 4}))", target=1e-3, rounds=300, seeds=1)
    (choice,) = tuned.choices
    assert choice.base == "theorem" and choice.edge == ""
    runs = laconic.run(QUADRATIC, tuned.winner, rounds=300, until=1e-3)
    assert runs.results[0]["uplink_bytes"] == choice.score == choice.test
    theory = laconic.run(QUADRATIC, f"ef21(topk(k={choice.parameters['k']}))", rounds=0).document["methods"][0]["step"]
    assert choice.step == choice.multiple * theory
    assert min(tuned.curves["score"]) == choice.score


def test_a_given_multiple_is_multiplied_further():
    tuned = laconic.tune(
        QUADRATIC, "gd(ef21(topk(k=4)), step='2x')", rounds=30, multipliers=[0.5, 4.0], seeds=1, widen=0
    )
    assert set(tuned.curves["spec"]) == {"gd(ef21(topk(k=4)), step='1x')", "gd(ef21(topk(k=4)), step='8x')"}


def test_without_a_theorem_they_are_multiples_of_one_over_l():
    spec = "gd(ef21(topk(k=4)), estimator=sgd(batch=1))"
    tuned = laconic.tune(QUADRATIC, spec, rounds=40, multipliers="2^-2..2^0", seeds=1, widen=0)
    (choice,) = tuned.choices
    problem: Any = parse(QUADRATIC)
    smooth = problem.constants().L.value
    assert choice.base == "1/L" and choice.step == pytest.approx(choice.multiple / smooth, rel=1e-15)
    assert any("no theorem; multiples of 1/L" in note for note in tuned.notes)


def test_without_a_target_the_mean_log_gap_decides():
    tuned = laconic.tune(QUADRATIC, ["gd", "marina(permk)"], rounds=60, seeds=2, test_seeds=[7, 8, 9], every=1)
    for choice in tuned.choices:
        for part, seeds, score in (("tuning", [0, 1], choice.score), ("test", [7, 8, 9], choice.test)):
            logs = []
            for seed in seeds:
                gap = laconic.run(QUADRATIC, choice.spec, rounds=60, seeds=[seed], network=()).trace["gap"]
                logs.append(np.log10(gap[math.ceil(0.1 * len(gap)) :]).mean())
            assert score == pytest.approx(np.mean(logs), rel=1e-12), part
    assert tuned.choices[1].score != tuned.choices[1].test  # randomised: other seeds, another number
    assert tuned.best.score == min(choice.score for choice in tuned.choices)
    assert tuned.winners == {choice.method: choice.spec for choice in tuned.choices}


def test_methods_without_a_stepsize_are_tuned_by_their_parameters():
    tuned = laconic.tune(QUADRATIC, {"newton": "fednl(rank(rank={1, 2}))"}, target=1e-6, rounds=200, seeds=1)
    (choice,) = tuned.choices
    assert choice.method == "newton" and choice.multiple is None and choice.tried == 2 and math.isfinite(choice.score)


def test_a_parameter_at_an_end_is_reported_unless_its_range_ends_there():
    many = laconic.tune(QUADRATIC, "ef21(topk(k=1))", grid={"mechanism.compressor.k": [2, 13]}, target=1e-3, rounds=300)
    assert many.choices[0].parameters == {"mechanism.compressor.k": 2}
    assert many.choices[0].edge == "mechanism.compressor.k=2 at the lower edge"
    least = laconic.tune(QUADRATIC, "ef21(topk(k={1, 13}))", target=1e-3, rounds=300)
    assert least.choices[0].parameters == {"k": 1} and least.choices[0].edge == ""


# ---- criteria ------------------------------------------------------------------------------------------------------


def recording(gaps: list[float], status: str = "done", known: bool = True) -> Recording:
    found = Recording(status=status)
    for k, gap in enumerate(gaps):
        found.add(k, k + 1, 10.0 * k, 5.0 * k, 0.0, gap if known else math.nan, 7.0 * gap)
    return found


def test_criteria():
    falls = recording([10.0 ** -(k - 2) for k in range(10)])
    assert ToTarget(1e-3).score(falls) == 50.0 and ToTarget(1e-3, "rounds").score(falls) == 6.0
    assert ToTarget(1e-3).score(recording([100.0, 1.0])) == math.inf
    assert ToTarget(1.0).score(recording([1.0, 0.01], known=False)) == 10.0  # ||grad||^2 is 7 and then 0.07
    assert ToTarget(1.0).combined([3.0, math.inf, 1.0]) == 3.0 and ToTarget(1.0).combined([3.0, math.inf]) == math.inf
    assert MeanLog().score(falls) == pytest.approx(np.mean([-(k - 2) for k in range(1, 10)]))
    assert MeanLog().score(recording([1.0, 0.1, math.nan])) == math.inf
    assert MeanLog().score(recording([1.0, 0.1], DIVERGED)) == math.inf
    assert MeanLog(floor=1e-4).score(recording([1.0, 0.0])) == pytest.approx(-4.0)
    assert MeanLog().combined([-1.0, -4.0]) == -2.5 and MeanLog().combined([-1.0, math.inf]) == math.inf
    for wrong in (0.0, -1.0, math.nan, "small"):
        with pytest.raises(ValueError, match="target must be"):
            ToTarget(wrong)  # type: ignore[arg-type]


def test_problems_without_a_known_minimum_are_judged_by_the_gradient():
    problem = "logistic(l2=1e-2, workers=4, nonconvex=0.1)"
    tuned = laconic.tune(problem, "gd", target=1e-4, rounds=200, seeds=1, every=1)
    trace = laconic.run(problem, tuned.winner, rounds=200).trace
    there = np.flatnonzero(np.asarray(trace["grad_norm2"]) <= 1e-4)[0]
    assert float(np.asarray(trace["uplink"])[there]) == tuned.choices[0].score


# ---- what is tried -------------------------------------------------------------------------------------------------


def test_multiples():
    assert multiples(None) == multiples(DEFAULT) == tuple(2.0**p for p in range(-3, 9))
    assert multiples("2^-1..2^1") == (0.5, 1.0, 2.0) and multiples("4, 1,0.5") == multiples([4, 1, 0.5]) == (0.5, 1, 4)
    assert wider([1.0, 2.0, 4.0], True) == [8.0, 16.0, 32.0, 64.0] and wider([1.0, 3.0], False, 1) == [1.0 / 3.0]
    for wrong in ("2^3..2^1", "many", [], [0.0], [-1.0], [math.inf], "1,,2", 7):
        with pytest.raises(ValueError, match="multipliers"):
            multiples(wrong)  # type: ignore[arg-type]


def test_braces():
    found = points("gd(ef21({topk(k=1), randk(k=2) }), step={0.5,1.0}, down={exact})", None)
    assert [str(point.method) for point in found] == [
        f"gd(ef21({c}), step={s})" for c in ("topk(k=1)", "randk(k=2)") for s in (0.5, 1.0)
    ]
    assert found[1].parameters == {"choice": "topk(k=1)", "step": 1.0, "down": "exact"}
    names = [p.parameters for p in points("ef21_bc(topk(k={1}), topk(k={2, 3}))", None)]
    assert names == [{"k": 1, "k#2": 2}, {"k": 1, "k#2": 3}]
    for wrong in ("ef21(topk(k={1, 2))", "ef21(topk(k={{1}}))", "ef21(topk(k={}))", "ef21(topk(k={1,,2}))"):
        with pytest.raises(ValueError, match="braces"):
            points(wrong, None)


def test_grids():
    found = points("ef21(topk(k=1))", {"mechanism.compressor.k": [3, 5], "mechanism": ["ef14(topk(k=2))"]})
    assert [str(point.method) for point in found] == ["gd(ef14(topk(k=2)))"] * 2
    assert str(put(parse("gd(ef21(topk(k=1)))"), "mechanism.compressor", "randk(k=7)")) == "gd(ef21(randk(k=7)))"
    assert grid_of("a.b={1, 0.5, topk(k=1)}") == ("a.b", [1, 0.5, "topk(k=1)"]) == grid_of("a.b=1,0.5, topk(k=1)")
    for wrong in ("a.b", "=1", "a="):
        with pytest.raises(ValueError, match="--grid"):
            grid_of(wrong)


BAD = [
    (dict(methods="ef21(topk(k=1))", grid={"mechanism.q": [1]}), "has no parameter 'q'"),
    (dict(methods="ef21(topk(k=1))", grid={"mechanism.compressor.k": []}), "give a list of values"),
    (dict(methods="ef21(topk(k=1))", grid={"mechanism.compressor.k": [0]}), "k must be"),
    (dict(methods="topk(k=1)"), "is a compressor, not a method"),
    (dict(methods=[]), "at least one method"),
    (dict(methods=["gd", "gd"]), "given twice"),
    (dict(methods=[3]), "is no method"),
    (dict(methods="gd", seeds=0), "seeds"),
    (dict(methods="gd", seeds=[1, 1]), "seeds"),
    (dict(methods="gd", seeds=2, test_seeds=[1]), "must not be among"),
    (dict(methods="gd", jobs=0), "jobs must be"),
    (dict(methods="gd", every=0), "every must be"),
    (dict(methods="gd", widen=-1), "widen must be"),
    (dict(methods="gd", target=-1.0), "target must be"),
    (dict(methods="gd", target=1.0, criterion=MeanLog()), "give one of the two"),
    (dict(methods="gd", criterion="best"), "give a Criterion"),
    (dict(methods="gd", rounds=-1), "tune(rounds=-1)"),
    (dict(problem="gd", methods="gd"), "is not a problem"),
    (dict(methods="ef21(topk(k={1, 2}))" + " " * 3, grid={"step": list(range(1, 6000))}), "combinations"),
    (dict(methods="diana(topk(k=1))"), "give explicit rate"),
]  # fmt: skip


@pytest.mark.parametrize(("given", "said"), BAD, ids=[said for _, said in BAD])
def test_bad_input_is_refused_in_one_line(given, said):
    with pytest.raises(ValueError) as refused:
        laconic.tune(**{"problem": QUADRATIC, "rounds": 3, **given})
    assert said in str(refused.value) and "\n" not in str(refused.value)


# ---- the cache -----------------------------------------------------------------------------------------------------

ASKED: dict[str, Any] = dict(rounds=40, seeds=2, multipliers="2^0..2^2", widen=0)


def columns(tuned: laconic.Tuned) -> list[dict[str, Any]]:
    return json.loads(json.dumps(tuned.document()["curves"]))


def test_nothing_is_computed_twice(tmp_path, monkeypatch):
    first = laconic.tune(QUADRATIC, ["ef21(topk(k=2))", "marina(permk)"], cache=tmp_path / "here", **ASKED)
    files = sorted((tmp_path / "here").rglob("*.json"))
    assert files and json.loads(files[0].read_text())["columns"]["gap"]

    def never(*_: Any) -> Any:
        raise AssertionError("computed again")

    monkeypatch.setattr(bank, "sweep", never)
    again = laconic.tune(QUADRATIC, ["ef21(topk(k=2))", "marina(permk)"], cache=tmp_path / "here", **ASKED)
    assert columns(first) == columns(again) and first.choices == again.choices
    for other in (dict(rounds=41), dict(seeds=[5])):
        with pytest.raises(AssertionError, match="computed again"):
            laconic.tune(QUADRATIC, "marina(permk)", cache=tmp_path / "here", **{**ASKED, **other})


def test_an_interrupted_tuning_goes_on(tmp_path, monkeypatch):
    whole = laconic.tune(QUADRATIC, ["ef21(topk(k=2))", "marina(permk)"], cache=tmp_path / "a", **ASKED)
    real, calls = bank.sweep, []

    def stops(*arguments: Any) -> Any:
        calls.append(arguments)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr(bank, "sweep", stops)
    with pytest.raises(KeyboardInterrupt):
        laconic.tune(QUADRATIC, ["ef21(topk(k=2))", "marina(permk)"], cache=tmp_path / "b", **ASKED)
    left = sorted((tmp_path / "b").rglob("*.json"))
    assert len(left) == 3  # the first method's, three stepsizes on the first seed
    left[0].write_text(left[0].read_text()[:40])  # damaged: computed again
    calls.extend([()] * 2)
    again = laconic.tune(QUADRATIC, ["ef21(topk(k=2))", "marina(permk)"], cache=tmp_path / "b", **ASKED)
    assert columns(whole) == columns(again)
    assert "ef21" in str(calls[4][1][0]) and len(calls[4][1]) == 1  # that one curve alone


def test_a_cache_that_cannot_be_written_is_none(tmp_path):
    (tmp_path / "file").write_text("")
    tuned = laconic.tune(QUADRATIC, "gd", cache=tmp_path / "file", **ASKED)
    assert tuned.winner.startswith("gd")


def test_where_the_seed_does_not_matter_one_curve_is_all(monkeypatch):
    real, seeds = bank.sweep, []
    monkeypatch.setattr(
        bank, "sweep", lambda field, methods, seed, *rest: seeds.append(seed) or real(field, methods, seed, *rest)
    )
    tuned = laconic.tune(QUADRATIC, "ef21(topk(k=2))", rounds=40, seeds=[3, 4, 5], multipliers="2^0..2^2", widen=0)
    assert seeds == [3] and sorted(set(tuned.curves["seed"])) == [3, 4, 5, 6, 7, 8]


def test_two_processes_find_the_same(tmp_path):
    both = [
        laconic.tune(
            QUADRATIC, ["ef21(topk(k={1, 2}))", "marina(permk)"], cache=tmp_path / str(jobs), jobs=jobs, **ASKED
        )
        for jobs in (1, 2)
    ]
    assert columns(both[0]) == columns(both[1])
    custom = laconic.tune(Bowl(), "gd(step=1.0)", jobs=2, **ASKED)  # no spec says what it is: it stays in this process
    assert custom.choices[0].multiple == 1.0


# ---- the command ---------------------------------------------------------------------------------------------------

COMMAND = ["tune", "--problem", QUADRATIC, "--target", "1e-2", "--rounds", "200", "--seeds", "1", "--jobs", "1"]


def test_the_command_prints_the_winner_last():
    told = CliRunner().invoke(cli.app, [*COMMAND, "--method", "ef21(topk(k={1, 5}))", "--method", "clag(topk(k=2))"])
    assert told.exit_code == 0, told.output
    lines = told.stdout.splitlines()
    assert "uplink bytes per worker to 0.01" in lines[0] and "on other seeds" in lines[0]
    assert any("x theorem" in line for line in lines[1:3]) and any("one by one" in line for line in lines)
    assert laconic.run(QUADRATIC, lines[-1], rounds=200, until=1e-2).results[0]["status"] == "reached"
    told = CliRunner().invoke(
        cli.app, [*COMMAND, "--method", "ef21(topk(k=1))", "--grid", "mechanism.compressor.k={1,5}", "--json"]
    )
    document = json.loads(told.stdout)
    assert document["winner"] == lines[-1] and document["choices"][0]["parameters"] == {"mechanism.compressor.k": 1}


def test_the_command_refuses_in_one_line(capsys, monkeypatch):
    for more in (["--method", "ef21(topk(k={1, 5))"], ["--method", "gd", "--multipliers", "big"],
                 ["--method", "gd", "--grid", "k"], ["--method", "gd", "--test-seeds", "0,a"]):  # fmt: skip
        monkeypatch.setattr(sys, "argv", ["laconic", *COMMAND, *more])
        with pytest.raises(SystemExit) as stopped:
            cli.main()
        said = capsys.readouterr()
        assert stopped.value.code == 2 and said.out == "" and said.err.count("\n") == 1


def test_a_choice_is_plain():
    tuned = laconic.tune(Bowl(), "gd(step=1.0)", rounds=3, seeds=1, multipliers=[1.0])
    assert dataclasses.is_dataclass(tuned) and tuned.problem == "bowl" and tuned.minutes > 0
    assert set(tuned.test) == {"gd(step=1.0)"} and tuned.document()["choices"][0]["method"] == "gd(step=1.0)"


def test_a_sweep_knows_the_smoothness_matrices() -> None:
    """Without them the matrix-aware sparsifier would be the ordinary one, and its theorem's step smaller."""
    problem = parse("quadratic(d=12, workers=3, noise=0.2, mu=0.05)")
    assert isinstance(problem, Problem)
    method: Any = parse("gd(direct(matrix_smooth(k=3)))")
    step = method.settled(Field.of(problem).setting).step
    found = laconic.run(problem, [method], rounds=1).document["methods"][0]
    assert step == found["step"]
