"""SCAM in its three forms: the support counts and not the value, counter-findings, and plain references."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import numpy as np
import pytest
import torch
from torch import Tensor

from by_hand import RUNTIMES, Course, distance, equal, hand, matrices, method_of, problem_of, start
from laconic.compressors.impk import Importance
from laconic.core.problem import Block, Problem
from laconic.core.spec import parse
from laconic.core.state import Placement, flatten
from laconic.core.theory import NoTheorem
from laconic.mechanisms.scam import Memory, realised_delta
from laconic.methods.gd import GD
from laconic.problems.custom import Custom
from laconic.runtime.local import Local

SMALL = "quadratic(d=7, workers=4, noise=0.3, mu=0.1)"
UNEQUAL = "quadratic(d=12, workers=5, noise=0.3, mu=0.2)"  # sigma* > 0
FORMS = ("scam", "scam_reset", "scam_21")
Support = Callable[[np.ndarray, int], np.ndarray]  # of a vector of a worker


def exchanges(spec: str, vectors: list[Tensor]) -> list[tuple[Tensor, Any]]:
    """Estimate and a copy of the memory, round by round; vectors are (n, *shape)."""
    mechanism: Any = parse(spec)
    runtime, memory, seen = Local(len(vectors[0])), None, []
    (link,) = runtime.links
    for step, v in enumerate(vectors):
        link.begin(step)
        text = mechanism.init(v, link) if memory is None else mechanism.exchange(v, memory, link)
        ((estimate, memory),) = runtime.drive(text)
        seen.append((estimate.clone(), {name: leaf.tensor.clone() for name, leaf in flatten(memory).items()}))
    return seen


# ---- the seed's counterexample ---------------------------------------------------------------------------------------


def example_run(spec: str, iterations: int) -> tuple[list[Tensor], list[Tensor], list[Any]]:
    """Gradients, what was sent and memories on f = (x_1^2 / 2 + x_2^2) / 2 from (2, 0.9) with step 1 = 1 / L."""
    mechanism: Any = parse(spec)
    runtime, x, memory = Local(1), torch.tensor([2.0, 0.9], dtype=torch.float64), None
    gradients, sent, memories = [], [], []
    for step in range(iterations):
        g = (torch.tensor([0.5, 1.0], dtype=torch.float64) * x)[None]
        runtime.links[0].begin(step)
        text = (
            mechanism.init(g, runtime.links[0]) if memory is None else mechanism.exchange(g, memory, runtime.links[0])
        )
        ((estimate, memory),) = runtime.drive(text)
        x = x - estimate
        gradients, sent = [*gradients, g[0]], [*sent, estimate.clone()]
        memories.append(memory.error[0].clone())
    return gradients, sent, memories


def test_the_assumption_of_the_slides_fails_on_two_coordinates() -> None:
    """In round 4 the gradient is (1/4, 0) and the memory looks at coordinate 2: nothing is sent, delta is 0."""
    gradients, sent, memories = example_run("scam(topk(k=1))", 4)
    assert torch.allclose(torch.stack(gradients), torch.tensor([[1, 0.9], [0.5, 0.9], [0.5, 0], [0.25, 0]]).double())
    assert torch.allclose(torch.stack(sent), torch.tensor([[1, 0], [0, 0.9], [0.5, 0], [0, 0]]).double())
    assert torch.allclose(torch.stack(memories), torch.tensor([[0, 0.9], [0.5, 0.9], [0.5, 0.9], [0.75, 0.9]]).double())
    deltas = realised_delta(torch.stack(gradients), torch.stack(sent))
    assert torch.allclose(deltas, torch.tensor([1 / 1.81, 0.81 / 1.06, 1, 0]).double())
    assert float(deltas[3]) == 0.0


def test_a_coordinate_that_is_chosen_with_the_value_zero_is_chosen() -> None:
    """Memory (0, 2) and vector (1, 0): the second is chosen and sends zero, and only forgetting shows that it was."""
    for spec, left in (("scam(topk(k=1))", [1.0, 2.0]), ("scam_reset(topk(k=1))", [1.0, 0.0])):
        mechanism, runtime = cast(Any, parse(spec)), Local(1)
        memory, v = Memory(torch.tensor([[0.0, 2.0]]).double()), torch.tensor([[1.0, 0.0]]).double()
        ((estimate, memory),) = runtime.drive(mechanism.exchange(v, memory, runtime.links[0]))
        assert not estimate.any() and memory.error[0].tolist() == left


# ---- one worker: theorem (14) with the delta of each step ------------------------------------------------------------


def least_squares() -> Problem:
    """One worker, 60 Gaussian rows of 40 columns."""
    rng = np.random.default_rng(0)
    rows, targets = rng.standard_normal((60, 40)), rng.standard_normal(60)
    return Custom.from_arrays(rows, targets, workers=1, loss="ridge", l2=0.01)


@pytest.mark.parametrize("share", [0.5, 1.0, 1.8])
@pytest.mark.parametrize("form", ["scam", "scam_reset", "direct"])
def test_the_theorem_holds_in_every_step_with_the_delta_of_that_step(form: str, share: float) -> None:
    """f - f* shrinks by 1 - mu step (2 - L step) delta. TopK alone has delta >= k / d; SCAM falls far below it."""
    problem = least_squares()
    solution, c = problem.solution(), problem.constants()
    assert solution is not None and c.mu is not None
    smooth, mu = float(c.L), float(c.mu)
    step = share / smooth
    course, deltas = start(f"gd({form}(topk(k=4)), step={step!r})", problem), []
    oracles: Any = course.oracles[0]
    gap = float(oracles.excess(course.x, solution).mean())
    for _ in range(400):
        delta = float(realised_delta(oracles.gradients(course.x), course.state.estimate[None])[0])
        after = float(oracles.excess(course.go().x, solution).mean())
        assert after <= (1 - mu * step * (2 - smooth * step) * delta) * gap * (1 + 1e-9) + 1e-15
        gap, deltas = after, [*deltas, delta]
    assert max(deltas) <= 1.0
    assert min(deltas) >= 0.1 if form == "direct" else min(deltas) < (0.03 if form == "scam" else 0.05)


def test_the_literal_form_is_slower_than_sending_the_largest() -> None:
    """One worker at 1 / L: no memory at all is best, and forgetting mends most of what the memory spoils."""
    problem, gaps = least_squares(), {}
    solution, step = problem.solution(), 1.0 / float(problem.constants().L)
    assert solution is not None
    for form in ("scam", "scam_reset", "direct"):
        course = start(f"gd({form}(topk(k=4)), step={step!r})", problem).go(1200)
        gaps[form] = float(cast(Any, course.oracles[0]).excess(course.x, solution).mean())
    assert gaps["scam"] > 10 * gaps["direct"] and gaps["scam"] > 3 * gaps["scam_reset"]


# ---- several workers -------------------------------------------------------------------------------------------------


def test_the_floor_does_not_shrink_with_the_step_but_for_scam_21() -> None:
    """||x - x*|| where the f_i disagree: the same at a quarter of the step for two forms, rounding for the third."""
    problem = problem_of(UNEQUAL)
    worst = float(problem.constants().L_max)

    def floor(form: str, share: float, iterations: int) -> float:
        return distance(start(f"gd({form}(topk(k=2)), step={share / worst!r})", problem).go(iterations))

    for form in ("scam", "scam_reset"):
        large, small = floor(form, 0.2, 500), floor(form, 0.05, 1500)
        assert large > 1e-3 and small > 0.7 * large
    assert floor("scam_21", 0.2, 900) < 1e-12


def test_on_the_counterexample_all_forms_arrive() -> None:
    """sigma* = 0 there: where direct Top-1 diverges for every step."""
    for form, steps in (("scam", 1500), ("scam_reset", 800), ("scam_21", 800)):
        course = start(f"gd({form}(topk(k=1)), step={1 / 36!r})", "counterexample")
        first = float(course.x.norm())
        assert float(course.go(steps).x.norm()) < 0.05 * first, form


# ---- plain references ------------------------------------------------------------------------------------------------


def reference(form: str, support: Support, scale: Callable[[int], Any], step: float, iterations: int) -> np.ndarray:
    """x after so many steps on SMALL from the boxes of the three forms; C(v) = scale v on the support of v."""
    a, b = (tensor.numpy() for tensor in matrices(problem_of(SMALL)))
    x = problem_of(SMALL).oracles(Block.whole(4)).start().numpy().copy()
    error, shift = np.zeros((4, 7)), np.zeros((4, 7))
    for _ in range(iterations + 1):
        found = x.copy()
        sent = np.zeros((4, 7))
        for i in range(4):
            u = a[i] @ x - b[i] - (shift[i] if form == "scam_21" else 0.0)
            mask = np.zeros(7)
            mask[support(error[i] + u, i)] = 1.0
            sent[i] = scale(i) * mask * u
            if form == "scam":
                error[i] += u - sent[i]
            else:
                error[i] = (1 - mask) * (error[i] + u)
            shift[i] += sent[i]
        x = x - step * (shift if form == "scam_21" else sent).mean(0)
    return found


def top(v: np.ndarray, k: int) -> np.ndarray:
    return np.argsort(-np.abs(v), kind="stable")[:k]


@pytest.mark.parametrize("form", FORMS)
def test_plain_references_with_topk(form: str) -> None:
    course = start(f"gd({form}(topk(k=2)), step=0.2)", SMALL).go(30)
    expected = reference(form, lambda v, i: top(v, 2), lambda i: 1.0, 0.2, 30)
    assert np.allclose(course.x.numpy(), expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("compressor", ["impk", "reweighted_impk"])
def test_plain_references_with_importances(form: str, compressor: str) -> None:
    """`every` is so long that the importances stay the first ones; they are read from the memory."""
    spec = f"gd(local_importance({form}({compressor}(k=2)), steps=3, every=1000), step=0.1)"
    course = start(spec, SMALL)
    weights = course.state.memory.weights.numpy().copy()
    course.go(20)
    assert np.array_equal(course.state.memory.weights.numpy(), weights) and weights.std() > 0.01
    if compressor == "impk":
        expected = reference(form, lambda v, i: top(weights[i], 2), lambda i: 1.0, 0.1, 20)
    else:
        expected = reference(form, lambda v, i: top(weights[i] * v, 2), lambda i: weights[i], 0.1, 20)
    assert np.allclose(course.x.numpy(), expected, rtol=1e-9, atol=1e-12)


# ---- compressors -----------------------------------------------------------------------------------------------------


def test_both_calls_draw_the_same_coins() -> None:
    """A second draw of three of nine coordinates would seldom meet the first: all three values are sent, and scaled."""
    v = torch.from_numpy(np.random.default_rng(0).standard_normal((5, 9)))
    for compressor, gain in (("randk(k=3)", 3.0), ("random_impk(k=3)", 1.0), ("bernoulli(p=0.4)", 2.5)):
        estimate, memory = exchanges(f"scam_reset({compressor})", [v])[0]
        kept = memory["error"] == 0.0  # exactly where something was sent
        assert (kept.sum(1) == 3).all() or compressor == "bernoulli(p=0.4)"
        assert torch.allclose(estimate, (torch.where(kept, v, 0.0) * gain).mean(0), rtol=1e-12, atol=1e-15)


def test_values_may_travel_by_another_compressor() -> None:
    """topk | natural: the support of the first, its values rounded; SCAM keeps what rounding took."""
    v = torch.from_numpy(np.random.default_rng(0).standard_normal((3, 8)))
    estimate, memory = exchanges("scam(topk(k=2) | natural)", [v])[0]
    sent = v - memory["error"]
    assert ((sent != 0.0).sum(1) == 2).all() and torch.allclose(estimate, sent.mean(0), rtol=1e-12)
    logs = torch.log2(sent[sent != 0.0].abs())
    assert torch.allclose(logs, logs.round(), atol=1e-12)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("compressor", ["natural", "identity", "scaled_sign", "power_iteration(rank=1)"])
def test_a_compressor_without_a_support_is_refused_by_name(form: str, compressor: str) -> None:
    with pytest.raises(ValueError, match=r"compressor must be a sparsifier.*as topk and impk do") as caught:
        parse(f"{form}({compressor})")
    assert compressor.partition("(")[0] in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("form", FORMS)
def test_no_theorem_and_why(form: str) -> None:
    with pytest.raises(NoTheorem, match="does not imply; give an explicit step") as caught:
        GD(cast(Any, parse(f"{form}(topk(k=2))"))).settled(hand(n=1))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("form", FORMS)
def test_everything_kept_is_gradient_descent(form: str) -> None:
    course, plain = start(f"gd({form}(topk(k=7)), step=0.3)", SMALL), start("gd(step=0.3)", SMALL)
    for _ in range(30):
        assert torch.allclose(course.go().x, plain.go().x, rtol=1e-11, atol=1e-12)
    assert not course.state.memory.error.any()


def test_what_the_memory_of_the_literal_form_owes_is_what_was_not_sent() -> None:
    course = start("gd(scam(topk(k=2)), step=0.1)", SMALL)
    given, sent = course.oracles[0].gradients(course.x), course.state.estimate.clone()
    for _ in range(20):
        course.go()
        given, sent = given + course.oracles[0].gradients(course.x), sent + course.state.estimate
    assert torch.allclose(sent + course.state.memory.error.mean(0), given.mean(0), rtol=1e-12, atol=1e-12)


def test_the_servers_state_is_the_mean_of_the_workers() -> None:
    course = start("gd(scam_21(topk(k=2)), step=0.1)", SMALL)
    for _ in range(30):
        memory = course.go().state.memory
        assert torch.allclose(memory.estimate, memory.shift.mean(0), rtol=1e-12, atol=1e-13)


# ---- everywhere the same ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "spec",
    [
        "local_importance(scam(random_impk(k=2)))",
        "server_importance(scam_reset(reweighted_impk(k=2)))",
        "shared_importance(scam_21(impk(k=2)))",
        "scam_21(permk)",
        "scam(threshold(t=0.3) | natural)",
    ],
)
def test_the_same_on_every_runtime(spec: str) -> None:
    problem = problem_of("quadratic(d=7, workers=5, noise=0.1, mu=0.1)")
    method = method_of(f"gd({spec}, step=0.05)", problem)
    courses = [Course(method, problem, RUNTIMES[name](problem.n, 3)).go(6) for name in RUNTIMES]
    for course in courses[1:]:
        assert equal(course.x, courses[0].x)
        assert (course.runtime.ledger.uplink == courses[0].runtime.ledger.uplink).all()


def test_some_workers_alone() -> None:
    """A cohort's exchange is that of its own rows: supports as if all had spoken, and their own importances."""
    v = torch.from_numpy(np.random.default_rng(1).standard_normal((5, 9)))
    weights = torch.from_numpy(np.random.default_rng(2).uniform(1, 2, (5, 9)))
    mechanism: Any = parse("scam_reset(random_impk(k=3))")
    some = np.array([1, 3, 4])
    errors = []
    for among in (False, True):
        runtime = Local(5)
        (link,) = runtime.links
        rows = some if among else np.arange(5)
        inner = link.among(link.cohort(some)) if among else link
        inner = inner.lending(Importance(weights[rows]))
        memory = Memory(torch.zeros(len(rows), 9, dtype=torch.float64))
        ((_, memory),) = runtime.drive(mechanism.exchange(v[rows].clone(), memory, inner))
        errors.append(memory.error if among else memory.error[some])
    assert equal(*errors) and ((errors[0] == 0).sum(1) == 3).all()
    assert flatten(Memory(errors[0]))["error"].placement is Placement.WORKER
