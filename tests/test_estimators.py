"""Estimators: unbiased over every batch, exact where they should be, and the same in any company."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch

from by_hand import equal, start
from laconic.core.link import Link
from laconic.core.problem import Batch, Block, Oracles
from laconic.core.registry import catalogue
from laconic.core.spec import example, parse
from laconic.estimators.lsvrg import LSVRG
from laconic.estimators.sgd import SGD
from laconic.problems.custom import Custom

LOGISTIC = "logistic(data='breast_cancer', l2=0.01, workers=5)"
ESTIMATORS = [example(cls) for cls in catalogue().of_kind("estimator")]


def arrays() -> Any:
    """Five workers with three or four terms each."""
    rng = np.random.default_rng(0)
    return Custom.from_arrays(rng.standard_normal((17, 3)), rng.choice([-1, 1], 17), workers=5, l2=0.1)


def test_the_mean_over_single_terms_is_the_full_gradient() -> None:
    problem = arrays()
    oracles = problem.oracles(Block.whole(5))
    x = torch.tensor([0.3, -1.0, 2.0], dtype=torch.float64)
    for worker, terms in enumerate(oracles.terms().tolist()):
        singles = [
            oracles.gradients(x, np.array([worker]), Batch(np.array([worker]), np.array([[j]]))) for j in range(terms)
        ]
        full = oracles.gradients(x, np.array([worker]))
        assert torch.allclose(torch.cat(singles).mean(0), full[0], rtol=1e-13, atol=1e-15)


@pytest.mark.parametrize("batch", [1, 2])
def test_sgd_is_unbiased_over_every_batch(monkeypatch: pytest.MonkeyPatch, batch: int) -> None:
    """All batches of one worker's four terms, drawn with replacement."""
    oracles = arrays().oracles(Block.whole(5))
    (worker,) = np.flatnonzero(oracles.terms() == 4)[:1]
    x, link = torch.tensor([0.3, -1.0, 2.0], dtype=torch.float64), Link(Block.whole(5))
    total, count = torch.zeros(3, dtype=torch.float64), 0
    for indices in itertools.product(range(4), repeat=batch):
        drawn = np.tile(np.minimum(np.array(indices), oracles.terms().min() - 1), (5, 1))
        drawn[worker] = indices
        monkeypatch.setattr(
            Oracles, "sample", lambda self, keys, size, rows=None, drawn=drawn: Batch(np.arange(5), drawn)
        )
        total += SGD(batch=batch).estimate(x, None, oracles, link).v[worker]
        count += 1
    assert torch.allclose(total / count, oracles.gradients(x)[worker], rtol=1e-13, atol=1e-15)


def test_terms_are_drawn_evenly() -> None:
    oracles = arrays().oracles(Block.whole(5))
    batch = oracles.sample(Link(Block.whole(5)).keys("batch"), 20_000)
    for worker, terms in enumerate(oracles.terms().tolist()):
        counts = np.bincount(batch.indices[worker], minlength=terms)
        assert len(counts) == terms and abs(counts / 20_000 - 1 / terms).max() < 5 * math.sqrt(0.25 / 20_000)


@pytest.mark.parametrize("spec", ESTIMATORS)
def test_a_probe_at_the_point_of_the_estimate_is_the_estimate(spec: str) -> None:
    oracles, link, estimator = arrays().oracles(Block.whole(5)), Link(Block.whole(5)), parse(spec)
    x, y = torch.tensor([[0.3, -1.0, 2.0], [1.0, 0.0, -1.0]], dtype=torch.float64)
    assert isinstance(estimator, object)
    first = estimator.init(x, oracles, link)
    link.begin(1)
    second = estimator.estimate(y, first.state, oracles, link)
    for estimate, at in ((first, x), (second, y)):
        assert torch.equal(estimate.probe.at, at)
        assert equal(estimate.probe(at), estimate.v) and equal(estimate.probe.full(at), oracles.gradients(at))
        kept = estimate.v.clone()
        estimate.probe(at).zero_()
        assert torch.equal(estimate.v, kept)  # owned by the caller
    each = torch.stack([x, y, x, y, x])
    assert estimator.estimate(each, first.state, oracles, link).v.shape == (5, 3)


def test_lsvrg_with_probability_one_is_the_full_gradient() -> None:
    """The correction cancels but for rounding: the same minibatch at the same point twice."""
    course, plain = (start(f"gd(step=0.1, estimator={e})", LOGISTIC) for e in ("lsvrg(probability=1.0)", "full"))
    for _ in range(20):
        course.go(), plain.go()
        assert torch.allclose(course.x, plain.x, rtol=1e-12, atol=1e-14)


def test_lsvrg_by_the_formula_with_the_reference_left_behind() -> None:
    oracles, link = arrays().oracles(Block.whole(5)), Link(Block.whole(5))
    w, x = torch.tensor([[0.3, -1.0, 2.0], [1.0, 0.0, -1.0]], dtype=torch.float64)
    estimator = LSVRG(batch=2, probability=1e-9)
    reference = estimator.init(w, oracles, link).state
    link.begin(1)
    estimate = estimator.estimate(x, reference, oracles, link)
    assert estimate.state is reference
    batch = oracles.sample(Link(Block.whole(5)).keys("batch"), 2)
    link.begin(2)
    assert not torch.equal(estimator.estimate(x, reference, oracles, link).v, estimate.v)  # fresh minibatches
    other = Link(Block.whole(5))
    other.begin(1)
    batch = oracles.sample(other.keys("batch"), 2)
    expected = oracles.gradients(x, batch=batch) - oracles.gradients(w, batch=batch) + oracles.gradients(w)
    assert torch.allclose(estimate.v, expected, rtol=1e-13, atol=1e-15)


def test_lsvrg_converges_where_sgd_does_not() -> None:
    problem = arrays()
    solution = problem.solution()
    distances = [
        float((start(f"gd(step=0.2, estimator={estimator}(batch=1))", problem).go(800).x - solution.x).norm())
        for estimator in ("lsvrg", "sgd")
    ]
    assert distances[0] < 1e-6 and distances[1] > 1e-2


def test_a_worker_alone_estimates_what_it_estimates_among_others() -> None:
    problem = arrays()
    x = torch.tensor([0.3, -1.0, 2.0], dtype=torch.float64)
    for estimator in (SGD(batch=3), LSVRG(batch=2, probability=0.5)):
        everyone, some = Block.whole(5), Block(2, 4, 5)
        estimates = []
        for block in (everyone, some):
            oracles, link = problem.oracles(block), Link(block)
            first = estimator.init(x, oracles, link)
            for step in range(1, 5):
                link.begin(step)
                first = estimator.estimate(x + step, first.state, oracles, link)
            estimates.append(first.v)
        assert torch.equal(estimates[0][2:4], estimates[1])
