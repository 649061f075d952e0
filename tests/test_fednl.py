"""FedNL: Newton's method with learned Hessians, by its formulas, special cases and local rates."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from by_hand import RUNTIMES, Course, distance, equal, method_of, problem_of, start
from laconic.core import rows
from laconic.core.keys import Keys
from laconic.core.problem import Block
from laconic.core.spec import parse
from laconic.kernels import fold

SMALL = "quadratic(d=7, workers=4, noise=0.1, mu=0.1)"
LOGISTIC = "logistic(data='breast_cancer', l2=0.01, workers=5)"


def hessians_of(course: Course, x: Tensor) -> Tensor:
    return torch.stack([rows.svec_to_matrix(h, course.oracles[0].d) for h in course.oracles[0].hessians(x).clone()])


def near(spec: str, away: float = 0.3) -> Course:
    """A course that starts near the solution, where the local theory speaks: x and all that init made of it."""
    problem = problem_of("logistic(data='breast_cancer', l2=0.1, workers=4)")
    solution = problem.solution()
    assert solution is not None
    direction = torch.from_numpy(np.random.default_rng(0).standard_normal(solution.x.shape))
    oracles = problem.host(Block.whole(4))
    oracles.start = lambda: solution.x + away * direction / direction.norm()
    return Course(method_of(spec, problem), problem, RUNTIMES["plain"](4, 0), [oracles])


def test_fednl_with_the_identity_is_newton_with_a_hessian_one_step_old() -> None:
    course = start("fednl(identity)", LOGISTIC)
    assert course.method.learning_rate == 1.0
    old = x = course.x
    for _ in range(8):
        g = rows.mean(course.oracles[0].gradients(x))
        change = hessians_of(course, x) - hessians_of(course, old)
        shift = torch.linalg.matrix_norm(change).mean()  # option 2: the mean of ||hess f_i(x) - H_i||_F
        matrix = hessians_of(course, old).mean(0) + shift * torch.eye(len(x), dtype=x.dtype)
        expected = x - torch.linalg.solve(matrix, g)
        old, x = x, course.go().x
        assert torch.allclose(x, expected, rtol=1e-9, atol=1e-11)  # sums of differences, and a solve


@pytest.mark.parametrize(
    ("spec", "rate"), [("fednl(topk(k=20))", 1.0), ("fednl(randk(k=20))", 20 / 465), ("fednl(natural)", 8 / 9)]
)
def test_fednl_by_the_formula(spec: str, rate: float) -> None:
    """The server's H is the mean of the H_i; both learn by the same message, at theory's learning rate."""
    course = start(spec, LOGISTIC)
    assert course.oracles[0].d == 30 and course.method.learning_rate == pytest.approx(rate, rel=1e-12)
    for _ in range(6):
        x, shift, server = course.x, course.state.shift.clone(), course.state.hessian.clone()
        course.go()
        fresh = course.oracles[0].hessians(x).clone()
        learned = course.state.shift - shift
        sent = learned / rate
        if "topk" in spec:
            assert ((sent != 0).sum(1) <= 20).all()
            kept = sent != 0
            assert torch.allclose(sent[kept], (fresh - shift)[kept], rtol=1e-12, atol=1e-14)
        assert torch.allclose(course.state.hessian, server + learned.mean(0), rtol=1e-12, atol=1e-14)
        assert torch.allclose(course.state.hessian, course.state.shift.mean(0), rtol=1e-12, atol=1e-14)
        error = (fresh - shift).norm(dim=1).mean()
        matrix = rows.svec_to_matrix(server, 30) + error * torch.eye(30, dtype=x.dtype)
        g = rows.mean(course.oracles[0].gradients(x))
        assert torch.allclose(course.x, x - torch.linalg.solve(matrix, g), rtol=1e-9, atol=1e-11)


def test_hessians_as_svec_have_the_frobenius_norm() -> None:
    """So that top-k by energy keeps k of d (d + 1) / 2: ones + 0.01 I is where choosing by |a_ij| breaks it."""
    for spec in (LOGISTIC, SMALL, "counterexample"):
        oracles = problem_of(spec).oracles(Block.whole(problem_of(spec).n))
        x = oracles.start() + 0.1
        svec = oracles.hessians(x).clone()
        full = torch.stack([rows.svec_to_matrix(row, oracles.d) for row in svec])
        assert torch.allclose(svec.norm(dim=1), torch.linalg.matrix_norm(full), rtol=1e-13)
        assert torch.allclose(fold.dots(svec, svec), (full**2).sum((1, 2)), rtol=1e-12)
    d, k = 20, 20
    matrix = torch.ones(d, d, dtype=torch.float64) + 0.01 * torch.eye(d, dtype=torch.float64)
    i, j = torch.triu_indices(d, d)
    svec = torch.where(i == j, matrix[i, j], matrix[i, j] * math.sqrt(2.0))
    top: Any = parse("topk(k=20)")
    keys = Keys(0, 0, "", np.zeros(1, dtype=np.int64), 1)
    kept = top.decode(top.compress(svec[None], keys), tuple(svec.shape), svec.dtype, keys).dense()[0]
    lost = float(
        torch.linalg.matrix_norm(matrix - rows.svec_to_matrix(kept, d)) ** 2 / torch.linalg.matrix_norm(matrix) ** 2
    )
    assert 1 - lost >= 2 * k / (d * (d + 1)) and top.claim(d * (d + 1) // 2, 1).alpha == pytest.approx(
        2 * k / (d * (d + 1))
    )


def test_fednl_pp_with_everyone_is_option_two_with_the_hessian_learned_first() -> None:
    """To 1e-12 relative, and rounding of the images g_i."""
    course = near("fednl_pp(topk(k=20), cohort=4)")
    oracles = course.oracles[0]
    hessians = oracles.hessians(course.x).clone()
    x, errors = course.x, torch.zeros(4, dtype=torch.float64)
    top: Any = parse("topk(k=20)")
    keys = Keys(0, 0, "", np.arange(4), 4)
    for _ in range(6):
        matrix = rows.svec_to_matrix(hessians.mean(0), 30) + errors.mean() * torch.eye(30, dtype=x.dtype)
        expected = x - torch.linalg.solve(matrix, oracles.gradients(x).mean(0))
        x = course.go().x
        assert torch.allclose(x, expected, rtol=1e-12, atol=1e-12)
        difference = oracles.hessians(x) - hessians
        hessians = hessians + top.decode(top.compress(difference, keys), (465,), x.dtype, keys).dense()
        errors = (oracles.hessians(x) - hessians).norm(dim=1)


def test_fednl_pp_keeps_what_the_others_said() -> None:
    course = near("fednl_pp(topk(k=50), cohort=1)")
    for _ in range(10):
        before = {name: getattr(course.state, name).clone() for name in ("shift", "error", "image")}
        course.go()
        link = course.runtime.links[0]
        link.begin(course.step)
        (speaker,) = link.sample(1).members
        for name, value in before.items():
            rest = torch.arange(4) != int(speaker)
            assert equal(getattr(course.state, name)[rest], value[rest])
        for mean, each in (("hessian", "shift"), ("mean_error", "error"), ("mean_image", "image")):
            assert torch.allclose(
                getattr(course.state, mean), getattr(course.state, each).mean(0), rtol=1e-11, atol=1e-12
            )


@pytest.mark.parametrize("spec", ["fednl(topk(k=200))", "fednl(identity)", "fednl_pp(topk(k=200), cohort=4)"])
def test_fednl_is_superlinear_and_halves_the_squared_distance(spec: str) -> None:
    course = near(spec)
    distances = [distance(course)]
    while distances[-1] > 1e-9 and len(distances) < 30:
        distances.append(distance(course.go()))
    assert distances[-1] <= 1e-9
    ratios = [after / before for before, after in itertools.pairwise(distances)]
    assert all(ratio**2 <= 0.5 for ratio in ratios)
    # the first step has the exact Hessian from the start; from then on each ratio is smaller than the one before
    assert len(ratios) >= 4 and all(after < before for before, after in itertools.pairwise(ratios[1:]))


def test_fednl_counts_its_three_messages_as_one_round() -> None:
    course = start("fednl(topk(k=465))", LOGISTIC)
    ledger = course.runtime.ledger
    assert ledger.rounds == 1 and (ledger.uplink == 465 * 8).all() and not ledger.downlink.any()
    course.go()
    assert (
        ledger.rounds == 2 and (ledger.uplink == 2 * 465 * 8 + 30 * 8 + 8).all() and (ledger.downlink == 30 * 8).all()
    )


def test_fednl_on_an_indefinite_model_goes_nan_and_raises_nothing() -> None:
    """The lab ends such a curve as diverged."""
    course = start("fednl(topk(k=5))", "quadratic(d=6, workers=3, noise=0.1, mu=0.1)")
    course.state.hessian = -course.state.hessian
    assert torch.isnan(course.go().x).all()
