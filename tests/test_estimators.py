"""Estimators: unbiased over every batch, exact where they should be, and the same in any company."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch

from by_hand import equal, start
from laconic.core.estimator import Estimator, Recursion
from laconic.core.keys import Keys
from laconic.core.link import Link
from laconic.core.problem import Batch, Block, Oracles
from laconic.core.registry import catalogue
from laconic.core.spec import example, parse
from laconic.estimators import saga
from laconic.estimators.lsvrg import LSVRG
from laconic.estimators.sgd import SGD
from laconic.kernels.epochs import drawn
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
    for spec in ("sgd(batch=3)", "lsvrg(batch=2, probability=0.5)", *(str(form) for form in FORMS[len(ESTIMATORS) :])):
        everyone, some, estimator = Block.whole(5), Block(2, 4, 5), parse(spec)
        assert isinstance(estimator, Estimator)
        estimates = []
        for block in (everyone, some):
            oracles, link = hosted(problem, block), Link(block)
            first = estimator.init(x, oracles, link)
            for step in range(1, 5):
                link.begin(step)
                first = estimator.estimate(x + step, first.state, oracles, link)
            estimates.append(first.v)
        assert torch.equal(estimates[0][2:4], estimates[1])


# ---- what each of them says it is ------------------------------------------------------------------------------------


def hosted(problem: Any, block: Block | None = None) -> Oracles:
    return problem.host(block or Block.whole(problem.n))


def single(oracles: Oracles, worker: int, term: int, x: torch.Tensor) -> torch.Tensor:
    """grad f_ij(x)."""
    return oracles.gradients(x, np.array([worker]), Batch(np.array([worker]), np.array([[term]])))[0]


POINTS = torch.tensor([[0.3, -1.0, 2.0], [1.0, 0.0, -1.0]], dtype=torch.float64)
FORMS = [
    *[pytest.param(spec, id=spec) for spec in ESTIMATORS],
    "shuffled(batch=3)",
    "saga(batch=3)",
    "page(batch=2, probability=0.5)",
    "mvr(batch=2, rate=0.5, first=2)",
]


@pytest.mark.parametrize("spec", FORMS)
def test_the_error_vanishes_at_the_solution_exactly_where_that_is_claimed(spec: str) -> None:
    """What was remembered at x* and is used at x*, five times over."""
    problem, estimator, link = arrays(), parse(spec), Link(Block.whole(5))
    x, oracles = problem.solution().x, hosted(problem)
    estimate: Any = estimator.init(x, oracles, link)
    for step in range(1, 6):
        link.begin(step)
        estimate = estimator.estimate(x, estimate.state, oracles, link)
    error = float((estimate.v - oracles.gradients(x)).abs().max())
    assert error < 1e-14 if estimator.vanishing else error > 1e-3
    assert estimator.vanishing or not estimator.exact


def outcomes(monkeypatch: pytest.MonkeyPatch, estimator: Any, state: Any, y: torch.Tensor, worker: int) -> list[Any]:
    """Estimates at y over every minibatch of a worker's terms, no coin showing heads."""
    oracles = hosted(arrays())
    terms, least, estimates = int(oracles.terms()[worker]), int(oracles.terms().min()), []
    for indices in itertools.product(range(terms), repeat=estimator.batch):
        rows = np.tile(np.minimum(np.array(indices), least - 1), (5, 1))
        rows[worker] = indices

        def sample(self: Any, keys: Any, size: int, among: Any = None, rows: np.ndarray = rows) -> Batch:
            return Batch(np.arange(5) if among is None else among, rows if among is None else rows[among])

        with monkeypatch.context() as patch:
            patch.setattr(Oracles, "sample", sample)
            patch.setattr(Link, "coins", lambda self, p: torch.zeros(5, dtype=torch.bool))
            estimates.append(estimator.estimate(y, state, oracles, Link(Block.whole(5))))
    return estimates


@pytest.mark.parametrize(
    "spec", ["sgd(batch=2)", "lsvrg(batch=2)", "saga", "saga(batch=2)", "page(batch=2)", "mvr(batch=2)"]
)
@pytest.mark.parametrize("worker", [0, 4])
def test_means_and_variances_over_every_minibatch(monkeypatch: pytest.MonkeyPatch, spec: str, worker: int) -> None:
    """Unbiased where claimed, else the recursion's mean; the probe's differences vary as single terms / B."""
    x, y = POINTS
    oracles, estimator = hosted(arrays()), parse(spec)
    assert isinstance(estimator, Estimator)
    state = estimator.init(x, oracles, Link(Block.whole(5))).state
    if hasattr(state, "value"):
        state.value += torch.tensor([0.5, -0.25, 1.0])  # an error that is carried on
    found = outcomes(monkeypatch, estimator, state, y, worker)
    mean = torch.stack([estimate.v[worker] for estimate in found]).mean(0)
    new, old = oracles.gradients(y)[worker], oracles.gradients(x)[worker]
    if estimator.unbiased:
        expected = new
    else:
        keep = 1.0 - getattr(estimator, "rate", 0.0)
        expected = new + keep * (state.value[worker] - old)
        assert not torch.allclose(expected, new)
    assert torch.allclose(mean, expected, rtol=1e-12, atol=1e-14)
    count = int(oracles.terms()[worker])
    changes = torch.stack([single(oracles, worker, j, y) - single(oracles, worker, j, x) for j in range(count)])
    variance = float(((changes - changes.mean(0)) ** 2).sum(1).mean())
    seen = np.mean([float((((e.probe(y) - e.probe(x))[worker] - (new - old)) ** 2).sum()) for e in found])
    scatter = estimator.scatter()
    assert scatter is not None
    assert seen == pytest.approx(variance * scatter, rel=1e-10)
    smooth = float(arrays().constants().L_sample)
    assert variance <= smooth**2 * float(((x - y) ** 2).sum())


def test_what_has_no_unbiased_differences_says_so() -> None:
    for spec, scatter in (("full", 0.0), ("shuffled(batch=2)", None), ("sgd(batch=4)", 0.25)):
        estimator: Any = parse(spec)
        assert estimator.scatter() == scatter and estimator.unbiased == (scatter is not None)


def test_recursions_by_hand() -> None:
    """p = 0.36, q = 0.8: kept 1 - p, noise q^2 / B, moved 1 + p q, stirred q^2 / B, pulled p (1 + 1 / q)."""
    page: Any = parse("page(batch=2, probability=0.36)")
    assert page.recursion((3, 4)) == Recursion(*(pytest.approx(v) for v in (0.64, 0.32, 1.288, 0.32, 0.81)))
    mvr: Any = parse("mvr(batch=2, rate=0.4)")
    assert mvr.recursion((3, 4)) == Recursion(*(pytest.approx(v) for v in (0.36, 0.36, 1.4, 0.36, 0.56)))
    assert parse("full").recursion((3, 4)) == parse("page(probability=1.0)").recursion((3, 4)) == Recursion()
    usual: Any = parse("page(batch=2)")
    assert usual.recursion((3, 4)) is None and usual.recursion((4, 4)).kept == pytest.approx(1 - 2 / 6)
    assert parse("sgd").recursion((3, 3)) is None and parse("saga").recursion((3, 3)) is None


@pytest.mark.parametrize("spec", ["page(probability=0.0)", "page(probability=1.5)", "mvr(rate=0.0)", "mvr(rate=1.1)"])
def test_coins_and_rates_outside_their_range_are_refused(spec: str) -> None:
    with pytest.raises(ValueError, match=r"must be a number in \(0, 1\]"):
        parse(spec)


# ---- references, from the pseudo-code --------------------------------------------------------------------------------


def follows(spec: str, steps: int = 25) -> Any:
    """(step, point, estimate, addresses, gradient terms asked for) along a walk; step 0 is the start."""
    oracles, estimator, link = hosted(arrays()), parse(spec), Link(Block.whole(5))
    rng, state = np.random.default_rng(3), None
    for step in range(steps + 1):
        x = torch.from_numpy(rng.standard_normal(3))
        link.begin(step)
        oracles.forget_calls()
        estimate: Any = estimator.estimate(x, state, oracles, link) if step else estimator.init(x, oracles, link)
        calls, state = oracles.calls.gradient_terms, estimate.state
        again = Link(Block.whole(5))
        again.begin(step)
        yield step, x, estimate, again, calls


def test_page_by_the_pseudo_code() -> None:
    """Each worker's own coin: the full gradient, or the minibatch's change added; nobody computes for nothing."""
    oracles, p, v, before, heads = arrays().oracles(Block.whole(5)), 0.4, None, None, 0
    for step, x, estimate, link, calls in follows("page(batch=2, probability=0.4)"):
        coins = link.keys("coins").uniform(1)[:, 0] < p if step else torch.ones(5, dtype=torch.bool)
        batch = oracles.sample(link.keys("batch"), 2)
        full, expected = oracles.gradients(x), []
        for i in range(5):
            if coins[i]:
                expected.append(full[i])
                continue
            assert v is not None and before is not None
            pairs = [(single(oracles, i, j, x), single(oracles, i, j, before)) for j in batch.indices[i].tolist()]
            expected.append(v[i] + sum(new - old for new, old in pairs) / 2)
        v, before = torch.stack(expected), x
        heads += int(coins.sum())
        assert torch.allclose(estimate.v, v, rtol=1e-12, atol=1e-13)
        assert calls == int(oracles.terms()[coins.numpy()].sum()) + 4 * int((~coins).sum())
    assert 40 < heads - 5 < 60  # of 125


def test_page_s_own_probability_is_the_paper_s() -> None:
    """batch / (batch + terms): with a batch of 1000 a coin in 250 falls on the other side."""
    counts = torch.from_numpy(arrays().oracles(Block.whole(5)).terms())
    for spec, p in (("page(batch=1000)", 1000 / (1000 + counts)), ("page(batch=2)", 2 / (2 + counts))):
        for step, _, estimate, link, calls in itertools.islice(follows(spec), 1, None):
            coins = link.keys("coins").uniform(1)[:, 0] < p
            batch: Any = parse(spec)
            assert calls == int(counts[coins].sum()) + 2 * batch.batch * int((~coins).sum()), (step, estimate)


def test_mvr_by_the_pseudo_code() -> None:
    oracles, b, v, before = arrays().oracles(Block.whole(5)), 0.3, None, None
    for _, x, estimate, link, calls in follows("mvr(batch=2, rate=0.3)"):
        batch = oracles.sample(link.keys("batch"), 2)
        if v is None:
            v = oracles.gradients(x)
            assert calls == 17
        else:
            v = oracles.gradients(x, batch=batch) + (1 - b) * (v - oracles.gradients(before, batch=batch))
            assert calls == 2 * 2 * 5
        before = x
        assert torch.allclose(estimate.v, v, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("batch", [1, 2, 6])
def test_saga_by_the_pseudo_code(batch: int) -> None:
    """A dict of gradients; a term that is drawn twice is renewed once; the mean is that of the table."""
    oracles, table = arrays().oracles(Block.whole(5)), {}
    for step, x, estimate, link, calls in follows(f"saga(batch={batch})", 40):
        drawn = oracles.sample(link.keys("batch"), batch).indices
        for i, count in enumerate(oracles.terms().tolist()):
            if step == 0:
                table |= {(i, j): single(oracles, i, j, x) for j in range(count)}
                assert torch.allclose(estimate.v[i], oracles.gradients(x)[i], rtol=1e-12, atol=1e-14)
                continue
            mean = sum(table[i, j] for j in range(count)) / count
            expected = mean + sum(single(oracles, i, j, x) - table[i, j] for j in drawn[i].tolist()) / batch
            assert torch.allclose(estimate.v[i], expected, rtol=1e-12, atol=1e-13)
            table |= {(i, j): single(oracles, i, j, x) for j in drawn[i].tolist()}
            renewed = torch.stack([table[i, j] for j in range(count)])
            assert torch.equal(estimate.state.terms[i, :count], renewed) and not estimate.state.terms[i, count:].any()
            assert torch.allclose(estimate.state.mean[i], renewed.mean(0), rtol=1e-12, atol=1e-13)
        assert calls == (5 * batch if step else 34)  # the start looks at every term twice


def test_saga_leaves_the_last_table_as_it_was() -> None:
    oracles, link = hosted(arrays()), Link(Block.whole(5))
    estimator: Any = parse("saga(batch=2)")
    first = estimator.init(POINTS[0], oracles, link)
    kept = first.state.terms.clone(), first.state.mean.clone()
    link.begin(1)
    after = estimator.estimate(POINTS[1], first.state, oracles, link).state
    assert torch.equal(first.state.terms, kept[0]) and torch.equal(first.state.mean, kept[1])
    assert not torch.equal(after.terms, kept[0])


def test_saga_refuses_a_table_that_is_too_large(monkeypatch: pytest.MonkeyPatch) -> None:
    """5 workers x 4 terms x 3 coordinates x 8 bytes are 480."""
    monkeypatch.setattr(saga, "LARGEST_TABLE", 479)
    with pytest.raises(ValueError, match=r"5 workers x 4 terms x 3 coordinates takes .* use lsvrg") as caught:
        parse("saga").init(POINTS[0], hosted(arrays()), Link(Block.whole(5)))
    assert "\n" not in str(caught.value)
    monkeypatch.setattr(saga, "LARGEST_TABLE", 480)
    assert parse("saga").init(POINTS[0], hosted(arrays()), Link(Block.whole(5))).state.terms.shape == (5, 4, 3)


def test_a_table_has_room_for_the_terms_of_workers_elsewhere() -> None:
    """So that parts of a run fit together; oracles that know nobody else say so."""
    problem = arrays()
    counts = problem.oracles(Block.whole(5)).terms()
    (least,) = np.flatnonzero(counts == counts.min())[:1]
    alone = Block(int(least), int(least) + 1, 5)
    assert hosted(problem, alone).most_terms == hosted(problem, alone).among(np.array([0])).most_terms == counts.max()
    assert hosted(problem, Block(0, 0, 5)).most_terms == counts.max() > counts.min()
    with pytest.raises(ValueError, match="Problem.host"):
        _ = problem.oracles(alone).most_terms


def test_mvr_with_rate_one_is_sgd_and_page_with_every_coin_is_the_full_gradient() -> None:
    pairs = [("mvr(batch=3, rate=1.0, first=3)", "sgd(batch=3)"), ("page(batch=2, probability=1.0)", "full")]
    for spec, plain in pairs:
        course, other = (start(f"gd(step=0.1, estimator={e})", arrays()) for e in (spec, plain))
        for _ in range(20):
            assert equal(course.go().x, other.go().x)


def test_saga_where_every_term_was_seen_is_the_full_gradient() -> None:
    """With a minibatch so large that no term is missed, the second estimate at a point is exact."""
    oracles, link, estimator = hosted(arrays()), Link(Block.whole(5)), parse("saga(batch=200)")
    assert isinstance(estimator, Estimator)
    state = estimator.init(POINTS[0], oracles, link).state
    for step in (1, 2):
        link.begin(step)
        estimate = estimator.estimate(POINTS[1], state, oracles, link)
        exact = torch.allclose(estimate.v, oracles.gradients(POINTS[1]), rtol=1e-12, atol=1e-14)
        assert exact == (step == 2)
        state = estimate.state


# ---- without replacement ---------------------------------------------------------------------------------------------


def order_of(worker: int, epoch: int, m: int) -> list[int]:
    """Fisher and Yates from the bottom up, with the words of the address (seed, epoch, stream, worker)."""
    words = Keys(0, epoch, "/order", np.array([worker]), 5).words(m)[0]
    order = list(range(m))
    for t in range(m):
        other = t + (int(words[t]) * (m - t) >> 64)
        order[t], order[other] = order[other], order[t]
    return order


@pytest.mark.parametrize("batch", [1, 2, 3, 7])
def test_shuffled_goes_through_every_worker_s_terms_once_per_epoch(batch: int) -> None:
    """Whatever the number of terms: what is looked at is one permutation after the other, cut into minibatches."""
    oracles = arrays().oracles(Block.whole(5))
    rows: list[list[int]] = [[] for _ in range(5)]
    for step, x, estimate, _, calls in follows(f"shuffled(batch={batch})", 30):
        for i, m in enumerate(oracles.terms().tolist()):
            places = range(step * batch, (step + 1) * batch)
            terms = [order_of(i, place // m, m)[place % m] for place in places]
            rows[i] += terms
            expected = sum(single(oracles, i, j, x) for j in terms) / batch
            assert torch.allclose(estimate.v[i], expected, rtol=1e-12, atol=1e-13)
        assert calls == 5 * batch and estimate.state.seen.tolist() == [(step + 1) * batch] * 5
    for row, m in zip(rows, oracles.terms().tolist(), strict=True):
        epochs = [row[low : low + m] for low in range(0, len(row) - m + 1, m)]
        assert len(epochs) >= 7 and all(sorted(epoch) == list(range(m)) for epoch in epochs)
        assert len({tuple(epoch) for epoch in epochs}) > 2  # fresh ones


def test_permutations_are_uniform() -> None:
    """All 24 orders of four terms over 4800 workers and epochs."""
    address = Keys(5, 0, "/order", np.arange(1), 1200).address
    workers = np.arange(1200)
    terms = drawn(address, workers, np.full(1200, 4), np.zeros(1200, dtype=np.int64), 16).reshape(-1, 4)
    _, counts = np.unique(terms, axis=0, return_counts=True)
    assert len(counts) == 24 and float(((counts - 200) ** 2 / 200).sum()) < 60  # chi squared with 23 degrees, 1e-5


def test_epochs_far_away_are_drawn_at_once() -> None:
    """A place beyond 2^32 epochs is a place like any other."""
    address, one = Keys(0, 0, "/order", np.array([2]), 5).address, np.array([2])
    start_at = np.array([3 * ((1 << 32) + 7)])
    assert drawn(address, one, np.array([3]), start_at, 3)[0].tolist() == order_of(2, (1 << 32) + 7, 3)


def test_shuffled_beats_sgd_at_the_same_step() -> None:
    """Within an epoch errors cancel: what is left is of order step^2, not step."""
    problem = arrays()
    x = problem.solution().x
    floors = []
    for spec in ("shuffled", "sgd"):
        course = start(f"gd(step=0.05, estimator={spec})", problem).go(300)
        floors.append(np.mean([float(((course.go().x - x) ** 2).sum()) for _ in range(300)]))
    assert floors[0] < 0.1 * floors[1]


def test_what_is_remembered_ages_as_it_is_used() -> None:
    """lsvrg: (1 - p) / p uses are expected, the coin falling first; saga: 1 / (1 - (1 - 1 / m)^B)."""
    oracles, link = hosted(arrays()), Link(Block.whole(5))
    x, y = POINTS
    for spec in ("lsvrg(batch=2)", "saga(batch=2)", "lsvrg(probability=1.0)"):
        estimator: Any = parse(spec)
        aged = estimator.aged(estimator.init(x, oracles, link).state, y, oracles)
        for i, m in enumerate(oracles.terms().tolist()):
            moved = [float(((single(oracles, i, j, x) - single(oracles, i, j, y)) ** 2).sum()) for j in range(m)]
            p = {"lsvrg(batch=2)": 2 / m, "saga(batch=2)": 1 - (1 - 1 / m) ** 2}.get(spec, 1.0)
            assert estimator.renewal(m) == pytest.approx(p)
            uses = 1 / p if "saga" in spec else (1 - p) / p
            assert float(aged[i]) == pytest.approx(uses * math.fsum(moved) / m, rel=1e-12)
    assert parse("sgd").aged(None, x, oracles) is None
