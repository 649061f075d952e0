"""Recipes in their small form: every claim of a source gets the verdict written down here, and a page to read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from laconic.core.registry import catalogue
from laconic.core.spec import parse
from laconic.lab.figures import Grid, Panel, Series
from laconic.lab.recipe import Bench, Outcome, Recipe, Ruling, Verdict, record, write

HOLDS, CORRECTED, FAILS = Ruling.HOLDS, Ruling.CORRECTED, Ruling.FAILS
EXPECTED = {
    "compression_lecture": {
        "randk-second-moment": HOLDS,
        "natural-probability": CORRECTED,
        "qgd-plateau": HOLDS,
        "qgd-noise-term": CORRECTED,
        "shared-support": HOLDS,
        "diana-rounds": CORRECTED,
        "information": HOLDS,
        "ef21-workers": HOLDS,
        "beta-omega": HOLDS,
        "ring-collisions": HOLDS,
        "one-node": HOLDS,
        "ef21-starts": CORRECTED,
        "top1-diverges": HOLDS,
        "memory-mends": HOLDS,
        "ef21-no-floor": HOLDS,
    },
    "importance_and_scam": {
        "theorem-11": HOLDS,
        "corollary-12": HOLDS,
        "assumption-13": FAILS,
        "theorem-14": HOLDS,
        "delta-like-k-over-d": FAILS,
        "corollary-15": FAILS,
        "proportional": CORRECTED,
        "memory-index": CORRECTED,
        "importance-problem": HOLDS,
        "compensation": CORRECTED,
        "scam-with-impk": CORRECTED,
        "superiority-rounds": CORRECTED,
        "superiority-bytes": CORRECTED,
        "superiority-gradient": FAILS,
        "importance-alone": CORRECTED,
    },
    "local_lecture": {
        "operations-table": HOLDS,
        "ring-all-reduce": HOLDS,
        "full-parallelisation": HOLDS,
        "bottleneck-everywhere": HOLDS,
        "compression-and-workers": HOLDS,
        "ring-against-tree": HOLDS,
        "local-faster": CORRECTED,
        "local-floor": HOLDS,
        "local-limit": HOLDS,
        "floor-and-step": HOLDS,
        "fedprox-limit": HOLDS,
        "diloco-limit": HOLDS,
        "post-local": HOLDS,
        "lower-bound": HOLDS,
        "nesterov-optimal": HOLDS,
        "proxskip-rounds": HOLDS,
        "scaffold-rounds": HOLDS,
        "stochastic-no-better": HOLDS,
        "where-local-wins": HOLDS,
        "nesterov-not-optimal": HOLDS,
        "nesterov-rate": HOLDS,
        "katyusha-rate": HOLDS,
        "l-katyusha-rate": HOLDS,
        "svrg-rate": HOLDS,
        "one-name-two-constants": CORRECTED,
        "variance-reduction": HOLDS,
    },
    "low_rank": {
        "contraction": HOLDS,
        "randomised-range": HOLDS,
        "potential": HOLDS,
        "fits-ef21": HOLDS,
        "communication": HOLDS,
        "quality": CORRECTED,
        "conditions": HOLDS,
        "error-feedback": HOLDS,
        "others": CORRECTED,
        "speed": CORRECTED,
    },
    "newton_local_async": {
        "nineteen-days": CORRECTED,
        "newton-step": HOLDS,
        "fednl-superlinear": HOLDS,
        "frozen-hessian": HOLDS,
        "fednl-halves": HOLDS,
        "condition-number": HOLDS,
        "condition-from-zero": FAILS,
        "line-search": HOLDS,
        "cubic": HOLDS,
        "fednl-bytes": CORRECTED,
        "hessian-compression": HOLDS,
        "partial-participation": HOLDS,
        "bidirectional": CORRECTED,
        "newton-3pc": HOLDS,
        "basis-matters": HOLDS,
        "gradskip-rate": HOLDS,
        "gradskip-rounds": HOLDS,
        "gradskip-work": HOLDS,
        "gradskip-gradients": HOLDS,
        "mean-delay": HOLDS,
        "pure-bias": FAILS,
        "pulled-point": HOLDS,
        "assigned-unbiased": HOLDS,
        "price": CORRECTED,
        "asynchrony-pays": HOLDS,
    },
    "sign_and_smoothness": {
        "perfect-speedup": CORRECTED,
        "sign-one-bit": HOLDS,
        "stochastic-sign-example": HOLDS,
        "stochastic-sign-unbiased": HOLDS,
        "majority-vote-median": FAILS,
        "ssdm-one-objective": HOLDS,
        "ssdm-three-objectives": FAILS,
        "signs-alike": HOLDS,
        "signs-unlike": FAILS,
        "error-feedback-signs": HOLDS,
        "ef21-signs": HOLDS,
        "contractive-one-node": HOLDS,
        "top1-diverges": HOLDS,
        "memory-mends-top1": HOLDS,
        "error-feedback-box": HOLDS,
        "error-feedback-decreasing": HOLDS,
        "expected-smoothness": HOLDS,
        "matrices-beat-constants": HOLDS,
        "diana-plus": HOLDS,
        "quantisation-theory": HOLDS,
        "quantisation-bytes": CORRECTED,
    },
    "similarity_lecture": {
        "delta-root": HOLDS,
        "delta-quadratic": CORRECTED,
        "larger-samples": HOLDS,
        "euclidean": HOLDS,
        "relative-theorem": HOLDS,
        "similarity-theorem": HOLDS,
        "convex-first": CORRECTED,
        "mirror-rounds": HOLDS,
        "better-than-descent": HOLDS,
        "half-delta": CORRECTED,
        "one-round": HOLDS,
        "proximal-form": CORRECTED,
        "estimator": CORRECTED,
        "table-mirror-descent": HOLDS,
        "table-dane-ls": HOLDS,
        "table-sonata": HOLDS,
        "table-diregina": HOLDS,
        "table-disco": HOLDS,
        "table-aide": HOLDS,
        "table-dane-hb": HOLDS,
        "table-spag": HOLDS,
        "table-acn": HOLDS,
        "table-acc-sonata": HOLDS,
        "table-sliding": HOLDS,
        "table-dane": HOLDS,
        "optimal": CORRECTED,
        "local-sliding": HOLDS,
        "local-aide": CORRECTED,
        "local-dane-forms": HOLDS,
        "copy-spag": CORRECTED,
        "copy-disco": CORRECTED,
        "logarithm": CORRECTED,
        "dimension": CORRECTED,
        "messages-full": HOLDS,
        "messages-svrp": HOLDS,
        "messages-svrs": HOLDS,
        "messages-accelerated": HOLDS,
        "fewer-messages": HOLDS,
        "fewest-rounds": HOLDS,
    },
    "topk_and_permk": {
        "topk-class": HOLDS,
        "combination-class": CORRECTED,
        "delta": CORRECTED,
        "unbiased-combination": FAILS,
        "permk": HOLDS,
        "classic-composition": CORRECTED,
        "coverage": HOLDS,
        "masked-memories": FAILS,
        "three-memories": CORRECTED,
        "ef-theorem": HOLDS,
        "ef21-masked": HOLDS,
        "nonconvex-workers": CORRECTED,
        "compression-pays": HOLDS,
        "nodes-decide": FAILS,
        "better-together": CORRECTED,
        "low-noise": HOLDS,
        "ef21-best": CORRECTED,
        "further-action": HOLDS,
    },
}


def test_every_recipe_has_its_verdicts_here() -> None:
    assert {cls.name for cls in catalogue().of_kind("recipe")} == set(EXPECTED)


@pytest.mark.parametrize("name", EXPECTED)
def test_the_small_form_decides_every_claim(name: str, tmp_path: Path) -> None:
    recipe: Any = parse(name)
    small = recipe.small()
    assert parse(str(small)) == small and small != recipe  # the command on the page runs this form again
    outcome = small.run(Bench())
    assert {verdict.claim: verdict.ruling for verdict in outcome.verdicts} == EXPECTED[name], [
        f"{verdict.claim}: {verdict.because}" for verdict in outcome.verdicts
    ]
    assert len({verdict.claim for verdict in outcome.verdicts}) == len(outcome.verdicts)
    assert all(np.isfinite(verdict.number) and verdict.because and verdict.says for verdict in outcome.verdicts)
    page = write(small, outcome, tmp_path)
    text = page.read_text()
    assert all(verdict.because.replace("|", "\\|") in text for verdict in outcome.verdicts)
    for figure in outcome.figures:
        assert (tmp_path / f"{figure}.png").stat().st_size > 5000 and (tmp_path / f"{figure}.pdf").is_file()
        assert f"({figure}.png)" in text
    for table in outcome.tables:
        assert len(pd.read_csv(tmp_path / f"{table}.csv")) == len(outcome.tables[table])
    assert json.loads((tmp_path / "verdicts.json").read_text())["recipe"] == str(small)


def test_a_page_shows_what_cannot_be_drawn_or_written_plainly(tmp_path: Path) -> None:
    """Values that are infinite, zero on a logarithmic axis, bars in text, and a row with fewer panels."""
    one = Panel(
        "a", "x", "y", [Series("zero", np.arange(3.0), np.zeros(3)), Series("up", np.arange(3.0), 10.0 ** np.arange(3))]
    )
    two = Panel("b", "x", "y", [Series("up", np.arange(1, 4.0), np.array([1.0, np.inf, 1e300]))], "xy")
    verdict = Verdict("a|b", "says |x|", Ruling.FAILS, float("inf"), "because |y| is infinite")
    outcome = Outcome(
        [verdict], {"odd": Grid("what | it shows", [[one, two], [one]])}, {"t": pd.DataFrame({"v": [float("nan")]})}
    )
    recipe = next(iter(catalogue().of_kind("recipe")))
    entry: Any = recipe()
    assert isinstance(entry, Recipe)
    text = write(entry, outcome, tmp_path).read_text()
    assert "says \\|x\\|" in text
    assert record(entry, outcome)["verdicts"][0]["number"] is None and outcome.ruling("a|b") is Ruling.FAILS
