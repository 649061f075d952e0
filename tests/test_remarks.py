"""Remarks: what texts note on their way is collected from all parties; an inner solver that falls short says so."""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import laconic
from laconic.core.entry import Source
from laconic.core.link import Link
from laconic.core.method import Method
from laconic.core.problem import Oracles
from laconic.core.state import Server
from laconic.core.theory import Guarantee, NoTheorem, Setting
from laconic.lab.curve import Curve
from laconic.lab.remarks import counted, gather, merged
from laconic.methods._inner import SHORT, minimise, minimise_rows
from laconic.runtime.local import Local

PROBLEM = "quadratic(d=5, workers=5, noise=0.1, mu=0.1)"


@dataclass
class State:
    x: Server


@dataclass(frozen=True)
class Talkative(Method):
    """Gradient descent. Worker i remarks 10 i + k in every iteration k that i + 2 divides, the server in the fourth."""

    fails: int = 1 << 30  # the iteration that is interrupted

    name = "talkative"
    source = Source("Nobody", 2000, "Nothing")

    def settled(self, setting: Setting) -> Method:
        return self

    def guarantee(self, setting: Setting) -> Guarantee:
        raise NoTheorem("none")

    async def init(self, oracles: Oracles, link: Link) -> State:
        link.scope("inside").remark("begun", 1.0)
        return State(oracles.start())

    async def iterate(self, state: State, oracles: Oracles, link: Link) -> State:
        k = link.step
        for worker in link.block.workers.tolist():
            if k % (worker + 2) == 0:
                link.remark("a worker's", 10.0 * worker + k)
        if link.step == 4:
            link.at_server(lambda: self._noted(link, state.x), like=state.x)
        sent = await link.uplink(None, oracles.gradients(await link.broadcast(state.x)))
        return State(state.x - 0.5 * sent.mean.dense())

    def _noted(self, link: Link, x: Tensor) -> Tensor:
        link.remark("the server's", math.nan)
        return x

    def point(self, state: State) -> Tensor:
        return state.x


def parts(count: int) -> Any:
    return lambda n, *, seed, topology, encoded: Local(n, seed=seed, parts=count, encoded=encoded)


# workers 0 to 4 speak in multiples of 2, 3, 4, 5 and 6: of the first 12 in 2 3 4 5 6 8 9 10 12; worker 4 in 6 and 12
EXPECTED = {
    "a worker's": {"count": 9, "worst": 52.0},
    "begun": {"count": 1, "worst": 1.0},
    "the server's": {"count": 1, "worst": None},
}


@pytest.mark.parametrize("count", [1, 2, 5, 7])
def test_remarks_are_the_same_over_any_number_of_parts(count: int) -> None:
    found = laconic.run(PROBLEM, Talkative(), iterations=12, runtime=parts(count))
    assert found.results[0]["remarks"] == EXPECTED


def test_remarks_are_the_same_in_a_star() -> None:
    assert laconic.run(PROBLEM, Talkative(), iterations=12, topology="star").results[0]["remarks"] == EXPECTED


@pytest.mark.parametrize("count", [1, 3])
def test_remarks_survive_an_interruption(count: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    advance = Curve._advance

    def interrupted(self: Curve) -> None:
        if self.iteration == 8:
            raise KeyboardInterrupt
        advance(self)

    monkeypatch.setattr(Curve, "_advance", interrupted)
    with pytest.raises(KeyboardInterrupt):
        laconic.run(PROBLEM, Talkative(), iterations=12, out=tmp_path / "run", save_every=0.0)
    monkeypatch.undo()
    again = laconic.run(
        PROBLEM, Talkative(), iterations=12, out=tmp_path / "run", save_every=0.0, resume=True, runtime=parts(count)
    )
    assert again.results[0]["iterations"] == 12 and again.results[0]["remarks"] == EXPECTED


def test_each_remark_is_told_once_for_a_curve(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = laconic.run(PROBLEM, [Talkative(), "gd"], iterations=12, seeds=2)
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("laconic:")]
    assert lines == [
        f"laconic: talkative (seed {seed}): {text}"
        for seed in (0, 1)
        for text in (
            "a worker's: in 9 iterations, at worst 52",
            "begun: in 1 iteration, at worst 1",
            "the server's: in 1 iteration, at worst inf",
        )
    ]
    assert found.results[2]["remarks"] == {}
    monkeypatch.setattr("laconic.lab.report.draw", lambda figures, place: [])  # takes seconds, and shows no remarks
    page = laconic.report(found, tmp_path).page.read_text()
    assert "talkative (seed 1): a worker&#x27;s: in 9 iterations, at worst 52." in page
    assert "the server&#x27;s: in 1 iteration, at worst without end." in page


def test_merging_takes_the_worse_of_the_same_iteration() -> None:
    one, other = {"a": {1: 2.0, 3: 1.0}}, {"a": {1: 5.0}, "b": {2: -1.0}}
    assert merged(one, other) == {"a": {1: 5.0, 3: 1.0}, "b": {2: -1.0}} and one["a"][1] == 2.0
    assert [(r.text, r.count, r.worst) for r in counted(merged(one, other))] == [("a", 2, 5.0), ("b", 1, -1.0)]
    runtime = Local(3)
    assert runtime.drive(gather(runtime.links[0])) == [{}]
    assert not runtime.ledger.uplink.any() and runtime.ledger.rounds == 0


# ---- the inner solver ------------------------------------------------------------------------------------------------


def test_an_inner_solver_that_stops_short_reports_the_accuracy_reached() -> None:
    told: list[tuple[str, float]] = []
    spectrum = torch.tensor([[1.0, 100.0], [1.0, 1.0], [50.0, 100.0]], dtype=torch.float64)
    begin = torch.zeros(3, 2, dtype=torch.float64)
    w = minimise(
        lambda w: spectrum * w - 1.0, begin, 100.0, 1.0, 1e-9, most=7, remark=lambda text, n: told.append((text, n))
    )
    norms = (spectrum * w - 1.0).norm(dim=1) / (1e-9 * w.norm(dim=1))
    assert told == [(SHORT, pytest.approx(float(norms.max()), rel=1e-12))] and told[0][1] > 1.0
    told.clear()
    minimise(lambda w: spectrum * w - 1.0, begin, 100.0, 1.0, 1e-9, remark=lambda text, n: told.append((text, n)))
    assert not told


def test_an_inner_solver_whose_smoothness_is_too_small_stops_where_it_overflows() -> None:
    """The momentum method diverges; it does not go on with what is not finite."""
    told: list[float] = []
    calls = 0

    def gradient(w: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        return 1e3 * w - 1.0

    begin = torch.zeros(1, 2, dtype=torch.float64)
    w = minimise(gradient, begin, 1.0, 0.5, 1e-3, remark=lambda text, n: told.append(n))
    assert told == [math.inf] and calls < 500 and float(w.abs().max()) > 1e100


def test_a_row_that_is_done_asks_for_nothing_and_its_bits_are_its_own() -> None:
    spectrum = torch.tensor([[1.0, 1.0], [1.0, 100.0], [90.0, 100.0]], dtype=torch.float64)
    asked = np.zeros(3, dtype=int)

    def gradient(w: Tensor, rows: np.ndarray) -> Tensor:
        asked[rows] += 1
        return spectrum[torch.from_numpy(rows)] * w - 1.0

    together = minimise_rows(gradient, torch.zeros(3, 2, dtype=torch.float64), 100.0, 1.0, 1e-6)
    of_all, asked[:] = asked.copy(), 0
    for row in range(3):

        def own(w: Tensor, rows: np.ndarray, row: int = row) -> Tensor:
            return gradient(w, rows + row)

        alone = minimise_rows(own, torch.zeros(1, 2, dtype=torch.float64), 100.0, 1.0, 1e-6)
        assert torch.equal(alone[0], together[row])
    assert np.array_equal(asked, of_all) and asked[2] < 0.5 * asked[0]
    whole = minimise(lambda w: spectrum * w - 1.0, torch.zeros(3, 2, dtype=torch.float64), 100.0, 1.0, 1e-6)
    assert torch.equal(whole, together)


def test_rounding_decides_in_the_units_of_the_problem() -> None:
    """Large numbers leave a gradient that no solver can make 1e-14; float32 ones even more so."""
    for dtype, scale in ((torch.float64, 1e6), (torch.float32, 1.0)):
        told: list[float] = []
        target = scale * torch.tensor([[1.0 / 3.0, 2.0 / 7.0, -1.1]], dtype=dtype)
        spectrum = torch.tensor([1.0, 30.0, 1000.0], dtype=dtype)
        start = target + 1e-3 * torch.finfo(dtype).eps * target
        steps = 0

        def gradient(w: Tensor, spectrum: Tensor = spectrum, target: Tensor = target) -> Tensor:
            nonlocal steps
            steps += 1
            return spectrum * w - spectrum * target

        minimise(gradient, start, 1000.0, 1.0, 1e-3, remark=lambda text, n, told=told: told.append(n))
        assert not told and steps < 1000


@pytest.mark.parametrize("spec", ["sliding", "svrp", "mirror_descent", "dane", "fedprox"])
def test_methods_report_solvers_that_stop_short(spec: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Through the link and into the record: all of them stop after one step here."""

    def hasty(*arguments: Any, most: int = 0, **other: Any) -> Tensor:
        return minimise_rows(*arguments, most=1, **other)

    def hasty_one(*arguments: Any, **other: Any) -> Tensor:
        return minimise(*arguments, most=1, **other)

    for name, module in list(sys.modules.items()):  # wherever it was imported to
        if name.startswith("laconic.methods.") and not name.startswith("laconic.methods._inner"):
            for solver, replacement in (("minimise_rows", hasty), ("minimise", hasty_one)):
                if hasattr(module, solver):
                    monkeypatch.setattr(module, solver, replacement)
    result = laconic.run("quadratic(d=9, workers=4, noise=0.1, mu=0.05)", spec, iterations=5).results[0]
    remark = result["remarks"][SHORT]
    assert 1 <= remark["count"] <= 5 and remark["worst"] > 1.0


@pytest.mark.parametrize(("similarity", "kind"), [(0.1, "no theorem"), (0.3, "theorem")])
def test_no_theorem_is_claimed_for_a_similarity_below_the_problems(similarity: float, kind: str) -> None:
    """delta_server is 0.2: with less than that the theorem of sliding says nothing, and the method says why."""
    problem = "rotated_quadratic(d=6, workers=3, similarity=0.2, mu=0.3)"
    entrant = laconic.run(problem, f"sliding(similarity={similarity})", iterations=1).document["methods"][0]
    assert entrant["step_kind"] == kind
    assert (f"similarity={similarity} is below" in str(entrant["why"])) == (kind == "no theorem")
