"""Sign methods: majority vote and its median, SSDM's coins, EF-signSGD, and where they end up when data differ."""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import pytest
import torch
from torch import Tensor

from by_hand import Course, distance, equal, hand, matrices, method_of, problem_of, start
from laconic.core.problem import Block, Problem
from laconic.core.spec import parse
from laconic.core.state import flatten
from laconic.core.theory import NoTheorem
from laconic.methods.gd import GD
from laconic.problems.custom import Custom
from laconic.runtime.local import Local

SMALL = "quadratic(d=7, workers=4, noise=0.3, mu=0.1)"


def exchanges(spec: str, vectors: list[Tensor]) -> tuple[list[Tensor], list[Any], Local]:
    """Estimates and copies of the memory, round by round; vectors are (n, *shape)."""
    mechanism: Any = parse(spec)
    runtime, memory, estimates, memories = Local(len(vectors[0])), None, [], []
    (link,) = runtime.links
    for step, v in enumerate(vectors):
        link.begin(step)
        text = mechanism.exchange(v, memory, link) if step else mechanism.init(v, link)
        ((estimate, memory),) = runtime.drive(text)
        estimates.append(estimate.clone())
        memories.append({name: leaf.tensor.clone() for name, leaf in flatten(memory).items()})
    return estimates, memories, runtime


def signs(v: np.ndarray) -> np.ndarray:
    return np.where(v < 0, -1.0, 1.0)


# ---- majority vote ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [2, 6, 10, 14, 49, 600])
def test_the_majority_is_counted_exactly_and_a_tie_is_plus(workers: int) -> None:
    """Votes of weight 1/n would not cancel in floating point: 3 of 1/10 and 3 of -1/10 leave something."""
    rng = np.random.default_rng(workers)
    columns = [rng.permutation(signs(np.arange(workers) - minus + 0.5)) for minus in range(workers + 1)]
    votes = np.stack(columns, axis=1) * rng.uniform(0.1, 3.0, (workers, workers + 1))
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        ((estimate,), _, _) = exchanges("majority_vote", [torch.from_numpy(votes).to(dtype)])
        expected = [1.0 if 2 * minus <= workers else -1.0 for minus in range(workers + 1)]
        assert estimate.dtype == dtype and estimate.tolist() == expected


def test_a_zero_votes_for_plus() -> None:
    v = torch.tensor([[0.0, -0.0, 0.0], [-1.0, 0.0, -1.0], [0.0, 1.0, -1.0]], dtype=torch.float64)
    ((estimate,), _, _) = exchanges("majority_vote", [v])
    assert estimate.tolist() == [1.0, 1.0, -1.0]


def test_a_bit_per_coordinate_either_way_and_no_model() -> None:
    course = start("gd(majority_vote, step=0.01)", SMALL).go(9)
    assert (course.runtime.ledger.uplink == 10).all() and (course.runtime.ledger.downlink == 10).all()  # 7 bits: a byte


@pytest.mark.parametrize(
    "problem", [SMALL, "quadratic(d=12, workers=5, noise=0.3, mu=0.2)", "quadratic(d=7, workers=1, noise=0.0, mu=0.1)"]
)
def test_majority_vote_against_a_plain_reference(problem: str) -> None:
    a, b = (tensor.numpy() for tensor in matrices(problem_of(problem)))
    x = problem_of(problem).oracles(Block.whole(len(a))).start().numpy().copy()
    course = start("gd(majority_vote, step=0.0078125)", problem)
    for _ in range(150):
        votes = sum(signs(a[i] @ x - b[i]) for i in range(len(a)))
        x = x - 0.0078125 * np.where(votes < 0, -1.0, 1.0)
        assert np.allclose(course.go().x.numpy(), x, rtol=1e-12, atol=1e-13)


def line(centres: list[float], curvatures: list[float]) -> Problem:
    """f_i(x) = a_i (x - c_i)^2 / 2, in one dimension, from x = 0."""
    roots = np.sqrt(curvatures)
    rows = [np.array([[root]]) for root in roots]
    return Custom.from_arrays(
        rows, [np.array([root * c]) for root, c in zip(roots, centres, strict=True)], loss="ridge", l2=0.0
    )


@pytest.mark.parametrize(
    ("centres", "curvatures", "median"),
    [
        ([0.0, 1.0, 5.0], [1.0, 1.0, 1.0], 1.0),  # the mean is 2
        ([0.0, 1.0, 5.0], [1.0, 1.0, 16.0], 1.0),  # f is minimised by 81 / 18 = 4.5
        ([0.0, -1.0, -5.0], [1.0, 1.0, 4.0], -1.0),
        ([0.0, 1.0, 2.0, 7.0], [1.0, 1.0, 1.0, 1.0], 1.0),  # the lower of the two in the middle: a tie is +1
        ([-7.0, -2.0, -1.0, 0.0], [1.0, 1.0, 1.0, 1.0], -2.0),
        ([3.0], [1.0], 3.0),
    ],
)
def test_the_fixed_point_is_the_median_and_not_the_mean(
    centres: list[float], curvatures: list[float], median: float
) -> None:
    """With steps of 1/8, which are exact, x goes back and forth between the median and the point a step below it."""
    problem = line(centres, curvatures)
    course = Course(method_of("gd(majority_vote, step=0.125)", problem), problem, Local(problem.n)).go(100)
    visited = {float(course.go().x) for _ in range(6)}
    assert visited == {median, median - 0.125}
    solution = float(np.average(centres, weights=curvatures))
    assert abs(solution - median) >= 0.5 or len(centres) == 1
    assert float(sum(course.oracles[0].gradients(torch.tensor([solution], dtype=torch.float64)))) == pytest.approx(0)


def test_in_several_dimensions_it_is_the_median_of_each_coordinate() -> None:
    """For f_i = ||x - c_i||^2 / 4 (half the mean of two squares): no data point, and not the mean."""
    centres = [[0.0, 2.0], [1.0, 1.0], [4.0, 0.25]]
    problem = Custom.from_arrays([np.eye(2)] * 3, [np.array(c) for c in centres], loss="ridge", l2=0.0)
    course = start("gd(majority_vote, step=0.125)", problem).go(60)
    visited = [course.go().x.tolist() for _ in range(4)]
    assert {x for x, _ in visited} == {1.0, 0.875} and {y for _, y in visited} == {1.0, 0.875}


def test_with_different_data_it_leaves_the_solution_however_small_the_step() -> None:
    """Started at x*. On equal data the distance it keeps shrinks with the step, on different data it does not."""
    found = {}
    for noise in (0.0, 0.3):
        problem = problem_of(f"quadratic(d=12, workers=5, noise={noise}, mu=0.2)")
        solution = problem.solution()
        assert solution is not None
        for step, iterations in ((5e-3, 300), (1e-3, 900)):
            course = start(f"gd(majority_vote, step={step})", problem)
            course.state.x = solution.x.clone()
            found[noise, step] = distance(course.go(iterations))
    assert found[0.3, 1e-3] > 0.8 * found[0.3, 5e-3] > 0.02
    assert found[0.0, 1e-3] < 0.4 * found[0.0, 5e-3] < 0.01


# ---- SSDM ------------------------------------------------------------------------------------------------------------


def test_the_coins_of_the_slides_example() -> None:
    """(0.4, 0, -0.3) has norm 1/2: plus with probability 0.9, 0.5, 0.2, so a mean of 0.8, 0, -0.6; and one bit each."""
    workers = 40000
    v = torch.tensor([0.4, 0.0, -0.3], dtype=torch.float64).expand(workers, 3).contiguous()
    ((estimate,), _, runtime) = exchanges("ssdm", [v])
    assert torch.allclose(estimate, torch.tensor([0.8, 0.0, -0.6]).double(), atol=4.5 / workers**0.5)
    assert (runtime.ledger.uplink == 1).all()  # three bits, and no norm
    assert torch.allclose(estimate * workers, (estimate * workers).round(), atol=1e-7)  # a sum of signs


def test_ssdm_draws_from_the_running_average() -> None:
    """m = 3/4 m + 1/4 v from m = v; the estimate is m / ||m|| on average. All workers have the same vectors."""
    workers, rng = 20000, np.random.default_rng(0)
    vectors = [torch.from_numpy(rng.standard_normal(4)) for _ in range(6)]
    estimates, memories, _ = exchanges("ssdm(momentum=0.75)", [v.expand(workers, 4).contiguous() for v in vectors])
    m = vectors[0]
    for v, estimate, memory in zip(vectors, estimates, memories, strict=True):
        m = 0.75 * m + 0.25 * v
        assert torch.allclose(memory["momentum"], m.expand(workers, 4), rtol=1e-14)
        assert torch.allclose(estimate, m / m.norm(), atol=4.5 / workers**0.5)


def test_ssdm_on_a_zero_vector_tosses_fair_coins_afresh_in_each_round() -> None:
    zero = torch.zeros(1000, 5, dtype=torch.float64)
    estimates, _, _ = exchanges("ssdm", [zero, zero])
    assert float(torch.stack(estimates).abs().max()) < 4.5 / 1000**0.5 and not equal(*estimates)


def test_ssdm_without_momentum_is_stochastic_sign_without_its_norms() -> None:
    """Draw for draw: both use the coins of the same addresses."""
    v = torch.from_numpy(np.random.default_rng(0).standard_normal((6, 9)))
    v /= v.norm(dim=1, keepdim=True)
    (plain, _, _), (normed, _, _) = (
        exchanges("ssdm(momentum=0.0)", [v, v]),
        exchanges("direct(stochastic_sign)", [v, v]),
    )
    for one, other in zip(plain, normed, strict=True):
        assert torch.allclose(one, other, rtol=1e-12)


# ---- EF-signSGD ------------------------------------------------------------------------------------------------------


def test_ef_sign_sgd_against_a_plain_reference() -> None:
    """EF14 with the mean magnitude and the signs (Karimireddy et al.), every worker for itself."""
    a, b = (tensor.numpy() for tensor in matrices(problem_of(SMALL)))
    x, error = problem_of(SMALL).oracles(Block.whole(4)).start().numpy().copy(), np.zeros((4, 7))
    course = start("gd(ef14(scaled_sign), step=0.05)", SMALL)
    for _ in range(40):
        p = [error[i] + a[i] @ x - b[i] for i in range(4)]
        sent = [np.abs(v).sum() / 7 * signs(v) for v in p]
        error = np.array(p) - sent
        x = x - 0.05 * np.mean(sent, axis=0)
        assert np.allclose(course.go().x.numpy(), x, rtol=1e-10, atol=1e-12)


# ---- theory ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("spec", ["majority_vote", "ssdm", "ssdm(momentum=0.0)"])
def test_no_theorem_and_what_to_do(spec: str) -> None:
    with pytest.raises(NoTheorem, match="give an explicit step") as caught:
        GD(cast(Any, parse(spec))).settled(hand())
    assert "\n" not in str(caught.value)


def test_what_cannot_be_is_refused_in_a_line() -> None:
    with pytest.raises(ValueError, match="momentum must be a number in"):
        parse("ssdm(momentum=1.0)")
    with pytest.raises(ValueError, match="majority_vote sends no model down.*leave down out"):
        parse("gd(majority_vote, down=ef21_p(topk(k=2)))")
