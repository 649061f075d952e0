"""The conformance kit on problems, estimators, mechanisms, methods and the small kinds: passes, and catches."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import pytest
import torch

import planted_defects as planted
from laconic.checks import NotConforming, check, conform, entries_of, entry_of
from laconic.checks.course import course
from laconic.checks.reference import Reference
from laconic.checks.verdict import Verdict
from laconic.core.entry import Entry
from laconic.core.problem import Block
from laconic.core.registry import catalogue
from laconic.core.rows import svec_to_matrix
from laconic.core.spec import example, parse
from laconic.methods.gd import GD
from laconic.problems.custom import Custom
from planted_defects import bowl

OTHERS = [cls for _, cls in sorted(catalogue().entries.items()) if cls.kind != "compressor"]


@pytest.mark.parametrize("cls", [pytest.param(cls, id=cls.name) for cls in OTHERS])
def test_every_entry_of_the_catalogue_conforms(cls: type[Entry]) -> None:
    conform(example(cls))


# ---- what is planted -------------------------------------------------------------------------------------------------

WHOSE, COMPANY = "the gradient of the right worker", "the same alone and in company"
SIZES, VARIANCE = "sizes, and bytes decode to the same bits", "unbiased, variance, contraction"
DEFECTS: list[tuple[str, Any, str]] = [
    ("D1", planted.D1Dithering(), SIZES),
    ("D1", planted.D1WithoutVariance(), VARIANCE),
    ("D2", bowl(planted.D2Oracles), "gradients by differences of values"),
    ("D3", planted.D3RandK(k=0.5), VARIANCE),
    ("D3", planted.D3Sizes(k=0.5), SIZES),
    ("D4", planted.D4Estimator(), COMPANY),
    ("D4", bowl(planted.D4Oracles), "gradients by differences of values"),
    ("D5", planted.D5Natural(), "vectors are not written to"),
    ("D6", bowl(planted.D6Oracles), "gradients by differences of values"),
    ("D7", bowl(planted.D7Oracles), WHOSE),
    ("D8", planted.D8Top1(), SIZES),
    ("D9", bowl(planted.D9Oracles), COMPANY),
    ("D10", planted.D10Power(), "with the identity in the place of compressors"),
    ("D10", planted.D10GradSkip(), "the same in every runtime"),
]
FAULTS: list[tuple[Any, str]] = [
    (bowl(planted.WritesToX), "points are not written to"),
    (bowl(planted.CountsNothing), "calls are counted"),
    (bowl(planted.SumsTheBatch), "minibatches are means of terms"),
    (planted.WrongConstant(constant="L"), "constants against differences of gradients"),
    (planted.WrongConstant(constant="L_plus"), "constants against differences of gradients"),
    (planted.WrongConstant(constant="mu", factor=1.05), "constants against differences of gradients"),
    (planted.WrongConstant(constant="L_plus", factor=3.0), "constants are in order"),
    (planted.WrongConstant(constant="L_max", factor=0.95), "constants are in order"),
    (planted.WrongSolution(), "the solution keeps its certificate"),
    (planted.SameTerms(), "the mean is the gradient where x stays"),
    (planted.TouchesItsState(), "the last state stays untouched"),
    (planted.HandsOutItsState(), "the last state stays untouched"),
    (planted.SaysItVanishes(), "its variance vanishes at the solution where it says so"),
    (planted.DrawsAgain(), "the probe looks at the same data"),
    (planted.SharesItsDraws(), COMPANY),
    (planted.DoesNotCount(), "calls are counted"),
    (planted.KeepsV(), "vectors are not kept"),
    (planted.WritesTooEarly(), "a failed flight changes nothing"),
    (planted.ReadsTheServer(), "the same in every runtime"),
    (planted.SaysItIsPublic(), "the estimate is whose it says"),
    (planted.NotLazy(), "it goes on from the middle"),
    (planted.ForgetsMarks(), "what it keeps is finite, and every party's own"),
    (planted.WrongUnits(), "f and x in other units"),
    (planted.TooFast(), "the Lyapunov function contracts"),
    (planted.Backwards(), "compressing more never allows a larger step"),
    (planted.TwiceTheMean(), "estimates are of the mean"),
    (planted.MovesAtTheSolution(), "the solution is a fixed point"),
    (planted.Talkative(), "other problems run or are refused in one line"),
    (planted.ForgetsTheStep(), "the proximal point is the minimiser"),
    (planted.HardThreshold(), "the proximal operator does not expand"),
    (planted.GoesOutInPlace(), "points are not written to"),
    (planted.Late(), "with the identity the model arrives"),
    (planted.NotSent(), "every worker holds the same model"),
    (planted.BelowZero(), "factors are positive"),
    (planted.Remembers(), "a factor depends on the iteration alone"),
]
HONEST = [
    planted.Plain(), planted.Bowl(), planted.Renewing(), planted.Feedback(), planted.Compressed(), planted.Skipping(),
    planted.Absolute(), planted.Falling(),
]  # fmt: skip


@functools.cache
def found(entry: Entry) -> dict[str, str]:
    """What the first failure of each check says; the global generators end as they began."""
    kept = np.random.get_state(), torch.random.get_rng_state()
    try:
        verdict = check(entry)
    finally:
        np.random.set_state(kept[0])
        torch.random.set_rng_state(kept[1])
    assert not verdict.passed
    return {failure.check: failure.what for failure in reversed(verdict.failures)}


@pytest.mark.parametrize("entry", HONEST, ids=lambda entry: type(entry).__name__)
def test_without_the_defect_it_passes(entry: Entry) -> None:
    assert check(entry).failures == ()


@pytest.mark.parametrize(
    ("number", "entry", "by"), DEFECTS, ids=[f"{n}-{type(e).__name__}-{by}" for n, e, by in DEFECTS]
)
def test_a_published_defect_is_caught(number: str, entry: Any, by: str) -> None:
    assert type(entry).__name__.removeprefix("Bowl").startswith(number)
    assert by in found(entry)


def test_all_ten_are_planted() -> None:
    assert {number for number, _, _ in DEFECTS} == {f"D{i}" for i in range(1, 11)}


@pytest.mark.parametrize(("entry", "by"), FAULTS, ids=[f"{type(e).__name__}-{by}" for e, by in FAULTS])
def test_a_planted_fault_is_caught(entry: Any, by: str) -> None:
    assert by in found(entry)


@pytest.mark.parametrize("entry", [planted.D4Estimator(), bowl(planted.D4Oracles), planted.D10GradSkip()], ids=repr)
def test_a_global_generator_is_named(entry: Any) -> None:
    assert any("NumPy's global random generator" in what for what in found(entry).values())


# ---- what it says, and what it is asked ------------------------------------------------------------------------------


def test_names_kinds_and_specs() -> None:
    """A kind is all its entries, a name alone its example, nothing everything."""
    mechanisms = [example(cls) for cls in catalogue().of_kind("mechanism")]
    assert entries_of(["mechanism"]) == entries_of(["mechanisms"]) == mechanisms
    assert entries_of(["ef21", "topk(k=0.25)"]) == [example(catalogue().find("ef21")), "topk(k=0.25)"]
    assert sorted(entries_of([])) == sorted(example(cls) for cls in catalogue().entries.values())
    with pytest.raises(ValueError, match="did you mean 'ef21'"):
        entries_of(["mechanism", "ef211"])


def test_an_entry_without_its_parameters_is_its_example() -> None:
    assert entry_of("ef21") == parse(example(catalogue().find("ef21")))
    assert entry_of("direct") == parse("direct") and entry_of("full") == parse("full")
    assert entry_of(planted.Bowl()) == planted.Bowl()


def test_a_verdict_says_what_kind_it_is_about_and_what_was_promised() -> None:
    verdict = check("ef21(topk(k=0.5))")
    assert isinstance(verdict, Verdict) and verdict.passed and verdict.kind == "mechanism"
    assert verdict.line().startswith("ef21(topk(k=0.5))   step ") and "rate" in verdict.measured()
    record = verdict.record()
    assert (record["entry"], record["kind"], record["passed"]) == ("ef21(topk(k=0.5))", "mechanism", True)


def test_an_assertion_says_what_failed() -> None:
    with pytest.raises(NotConforming, match="bowl does not conform:\n  gradients by differences of values: "):
        conform(bowl(planted.D6Oracles))


def test_a_problem_in_memory_is_checked_too() -> None:
    """Of no spec: nothing of it can be read back, and the rest holds."""
    rng = np.random.default_rng(0)
    rows, labels = rng.standard_normal((17, 4)), rng.choice([-1, 1], 17)
    made = Custom.from_arrays(rows, labels, workers=5, l2=0.1)
    assert check(made).failures == ()


# ---- the reference problem -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "problem",
    [Reference(), Reference(workers=1), Reference(d=1), Reference(bent=0.0, unlike=0.0, along=0), Reference(scale=4.0)],
    ids=repr,
)
def test_the_reference_problem_conforms_itself(problem: Reference) -> None:
    assert [failure for failure in check(problem).failures if not failure.check.startswith("values out")] == []


def test_the_reference_problem_is_what_it_says() -> None:
    """Its unlikeness, its distance and its axes; units of powers of two change exponents only."""
    plain = Reference()
    oracles, solution = plain.oracles(Block.whole(4)), plain.solution()
    assert solution is not None
    assert float((oracles.start() - solution.x).norm()) == pytest.approx(1.0, rel=1e-12)
    assert (
        float(oracles.gradients(solution.x).norm()) > 0.1 > 1e-13 > float(oracles.gradients(solution.x).mean(0).norm())
    )
    same = Reference(unlike=0.0)
    at = same.solution()
    assert at is not None and float(same.oracles(Block.whole(4)).gradients(at.x).norm()) < 1e-13
    x = torch.linspace(-2.0, 3.0, 6, dtype=torch.float64)
    scaled = Reference(scale=4.0).oracles(Block.whole(4)).gradients(x)
    assert torch.equal(scaled, 4.0 * oracles.gradients(x))
    halved = Reference(unit=2.0).oracles(Block.whole(4)).gradients(2.0 * x)
    assert torch.equal(2.0 * halved, oracles.gradients(x))
    h = svec_to_matrix(Reference(bent=0.0).oracles(Block.whole(4)).hessians(x).mean(0), 6)
    assert torch.equal(h, torch.diag(h.diagonal())) and h[0, 0] == h.diagonal().max() and h[5, 5] == h.diagonal().min()


def test_gradient_descent_at_twice_its_step_is_caught_on_the_steepest_axis() -> None:
    """The instance is tight: 2 / L swings for ever from one side to the other."""
    steep = Reference(bent=0.0, unlike=0.0, along=0)
    smooth = float(steep.constants().L)
    run = course(GD(step=2.0 / smooth), steep)
    before = run.gap()
    assert run.go(20).gap() == pytest.approx(before, rel=1e-9)
