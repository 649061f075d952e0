"""Mechanisms and estimators: identities that hold exactly, special cases that are older methods, and constants by hand."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
from by_hand import Course, equal, matrices, method_of, problem_of, setting_of, start
from torch import Tensor

from laconic.core.compressor import as_contractive
from laconic.core.estimator import Probe
from laconic.core.flight import drive
from laconic.core.link import Link
from laconic.core.problem import Batch, Block, Constant, Constants, Oracles
from laconic.core.registry import catalogue
from laconic.core.spec import example, parse
from laconic.core.state import Placement, flatten
from laconic.core.theory import NoTheorem, Setting
from laconic.estimators.lsvrg import LSVRG
from laconic.estimators.sgd import SGD
from laconic.problems.custom import Custom
from laconic.runtime.local import Local

SMALL = "quadratic(d=7, workers=4, noise=0.3, mu=0.1)"
LOGISTIC = "logistic(data='breast_cancer', l2=0.01, workers=5)"
MECHANISMS = [example(cls) for cls in catalogue().of_kind("mechanism")]
ESTIMATORS = [example(cls) for cls in catalogue().of_kind("estimator")]


def mean_of(tensor: Tensor) -> Tensor:
    """The mean over workers in the order in which messages are added."""
    total = torch.zeros_like(tensor[0])
    for row in tensor:
        total = total + row * (1.0 / len(tensor))
    return total


def gradients(course: Course) -> Tensor:
    return course.oracles[0].gradients(course.x)


# ---- estimators ---------------------------------------------------------------------------------------------------------


def arrays() -> Any:
    """Five workers with three or four terms each."""
    rng = np.random.default_rng(0)
    return Custom.from_arrays(rng.standard_normal((17, 3)), rng.choice([-1, 1], 17), workers=5, l2=0.1)


def test_the_mean_over_single_terms_is_the_full_gradient() -> None:
    problem = arrays()
    oracles = problem.oracles(Block.whole(5))
    x = torch.tensor([0.3, -1.0, 2.0], dtype=torch.float64)
    for worker, terms in enumerate(oracles.terms().tolist()):
        singles = [oracles.gradients(x, np.array([worker]), Batch(np.array([worker]), np.array([[j]]))) for j in range(terms)]
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
        monkeypatch.setattr(Oracles, "sample", lambda self, keys, size, rows=None, drawn=drawn: Batch(np.arange(5), drawn))
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
    first = estimator.init(x, oracles, link)  # type: ignore[attr-defined]
    link.begin(1)
    second = estimator.estimate(y, first.state, oracles, link)  # type: ignore[attr-defined]
    for estimate, at in ((first, x), (second, y)):
        assert torch.equal(estimate.probe.at, at)
        assert equal(estimate.probe(at), estimate.v) and equal(estimate.probe.full(at), oracles.gradients(at))
        kept = estimate.v.clone()
        estimate.probe(at).zero_()
        assert torch.equal(estimate.v, kept)  # owned by the caller
    each = torch.stack([x, y, x, y, x])
    assert estimator.estimate(each, first.state, oracles, link).v.shape == (5, 3)  # type: ignore[attr-defined]


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
    solution = problem_of(LOGISTIC).solution()
    assert solution is not None
    distances = []
    for estimator in ("lsvrg(batch=8)", "sgd(batch=8)"):
        course = start(f"gd(step=0.1, estimator={estimator})", LOGISTIC).go(1500)
        distances.append(float((course.x - solution.x).norm()))
    assert distances[0] < 1e-3 * distances[1]


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


# ---- what a server holds is the mean of what the workers hold -------------------------------------------------------------


@pytest.mark.parametrize(
    ("spec", "workers", "server"),
    [
        ("ef21(topk(k=2))", "shift", "estimate"), ("ef21(natural)", "shift", "estimate"),
        ("ef21_sgdm(topk(k=2))", "shift", "estimate"), ("ef21_bc(topk(k=2), topk(k=3))", "shift", "mean"),
        ("clag(topk(k=2))", "shift", "estimate"), ("diana(natural)", "shift", "mean"), ("diana(randk(k=3))", "shift", "mean"),
    ],
)  # fmt: skip
def test_the_servers_state_is_the_mean_of_the_workers(spec: str, workers: str, server: str) -> None:
    """To rounding: the two are added up in different orders."""
    course = start(spec, SMALL)
    for _ in range(30):
        memory = course.go().state.memory
        expected = getattr(memory, workers).mean(0)
        assert torch.allclose(getattr(memory, server), expected, rtol=1e-12, atol=1e-13)


# ---- EF14 ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("compressor", ["topk(k=1)", "topk(k=3)", "natural"])
def test_the_virtual_iterate_of_ef14_takes_gradient_steps(compressor: str) -> None:
    """x - mean e moves by exactly -step times the mean gradient, to rounding."""
    course = start(f"gd(ef14_inside({compressor}), step=0.05)", SMALL)
    for _ in range(40):
        # the state holds x and the estimate made there: the next x goes with the errors as they are now
        before = course.x - course.state.estimate - course.state.memory.error.mean(0)
        course.go()
        moved = course.x - course.state.estimate - course.state.memory.error.mean(0) - before
        assert torch.allclose(moved, -0.05 * gradients(course).mean(0), rtol=1e-10, atol=1e-13)


def test_step_inside_and_outside_the_memory_agree_at_a_constant_step() -> None:
    """Equal for powers of two; to rounding otherwise."""
    for step, rounding in ((0.0625, 0.0), (0.05, 1e-13)):
        inside, outside = (start(f"gd({name}(topk(k=2)), step={step})", SMALL) for name in ("ef14_inside", "ef14"))
        for _ in range(50):
            assert torch.allclose(inside.go().x, outside.go().x, rtol=rounding, atol=rounding)
            assert torch.allclose(inside.state.memory.error, step * outside.state.memory.error, rtol=rounding, atol=rounding)


def test_ef14_with_the_identity_is_gradient_descent_without_errors() -> None:
    plain, course = start("gd(step=0.3)", SMALL), start("gd(ef14(identity), step=0.3)", SMALL)
    assert torch.equal(plain.go(10).x, course.go(10).x) and not course.state.memory.error.any()


def test_nothing_is_lost_in_ef14() -> None:
    """What was sent and what is owed add up to what was put in."""
    course = start("gd(ef14(topk(k=1)), step=0.05)", SMALL)
    given, sent = gradients(course), course.state.estimate.clone()
    for _ in range(25):
        course.go()
        given, sent = given + gradients(course), sent + course.state.estimate
    assert torch.allclose(sent + course.state.memory.error.mean(0), given.mean(0), rtol=1e-12, atol=1e-12)


# ---- special cases that are older methods ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("special", "exact"),
    [
        ("direct(identity)", True), ("ef21(identity)", False), ("diana(identity)", False), ("marina(identity)", False),
        ("marina(randk(k=1), probability=1.0)", True), ("marina(permk, probability=1.0)", True), ("ef14(identity)", True),
        ("ef21_bc(identity, identity)", False), ("clag(identity, trigger=0.0)", False), ("ef21(topk(k=1.0))", False),
        ("ef21_sgdm(identity, eta=1.0)", False), ("direct(randk(k=1.0))", True), ("powersgd(rank=1)", True),
        ("diana(randk(k=1.0))", False),
    ],
)  # fmt: skip
def test_without_compression_everything_is_gradient_descent(special: str, exact: bool) -> None:
    """Bit for bit where the same sums are made; to rounding where differences are added up."""
    problem = problem_of(SMALL)
    step = 1.0 / float(problem.constants().L)
    course, plain = start(f"gd({special}, step={step})", SMALL), start(f"gd(step={step})", SMALL)
    for _ in range(30):
        course.go(), plain.go()
        assert torch.allclose(course.x, plain.x, rtol=0 if exact else 1e-11, atol=0 if exact else 1e-12)


@pytest.mark.parametrize("compressor", ["topk(k=2)", "natural"])
def test_clag_without_a_trigger_is_ef21_but_for_the_start(compressor: str) -> None:
    """All speak, since every gradient differs from its shift; from the third state on the memories can be compared."""
    lazy, eager = start(f"gd(clag({compressor}, trigger=0.0), step=0.1)", SMALL), start(f"gd(ef21({compressor}), step=0.1)", SMALL)
    for name in ("shift", "estimate"):
        setattr(eager.state.memory, name, getattr(lazy.state.memory, name).clone())
    eager.state.estimate = eager.state.memory.estimate
    for _ in range(30):
        assert torch.equal(lazy.go().x, eager.go().x)
    assert (lazy.runtime.ledger.uplink - eager.runtime.ledger.uplink >= 30).all()  # a flag per round, and the full start


def test_clag_speaks_exactly_when_its_rule_says_so() -> None:
    course = start("gd(clag(topk(k=2), trigger=1.5), step=0.3)", SMALL)
    spoken = 0
    for _ in range(40):
        memory, messages = course.state.memory, course.runtime.ledger.messages_up
        shift, previous, up = memory.shift.clone(), memory.previous.clone(), course.runtime.ledger.uplink.copy()
        course.go()
        v = gradients(course)
        speaks = ((v - shift) ** 2).sum(1) > 1.5 * ((v - previous) ** 2).sum(1)
        assert course.runtime.ledger.messages_up - messages == int(speaks.sum())
        bytes_of_message = 1 + (1 + 2 * 3 + 7) // 8  # checked below only from above: a flag, indices, two values
        assert ((course.runtime.ledger.uplink - up > 1) == speaks.numpy()).all()
        assert (course.runtime.ledger.uplink - up <= bytes_of_message + 16).all()
        assert torch.equal(course.state.memory.shift[~speaks], shift[~speaks]) and torch.equal(course.state.memory.previous, v)
        spoken += int(speaks.sum())
    assert 0 < spoken < 160  # both happened


def test_ef21_sgdm_without_momentum_is_ef21_but_for_the_start() -> None:
    course, plain = start("gd(ef21_sgdm(topk(k=2), eta=1.0), step=0.1)", SMALL), start("gd(ef21(topk(k=2)), step=0.1)", SMALL)
    assert torch.equal(course.state.memory.shift, gradients(course)) and not torch.equal(plain.state.memory.shift, gradients(plain))
    for name in ("shift", "estimate"):
        setattr(plain.state.memory, name, getattr(course.state.memory, name).clone())
    plain.state.estimate = plain.state.memory.estimate
    for _ in range(30):
        assert torch.equal(course.go().x, plain.go().x)


def test_ef21_sgdm_averages_what_it_is_given() -> None:
    course = start("gd(ef21_sgdm(topk(k=2), eta=0.25), step=0.1)", SMALL)
    momentum = gradients(course)
    for _ in range(20):
        momentum = 0.75 * momentum + 0.25 * gradients(course.go())
        assert torch.equal(course.state.memory.momentum, momentum)


def test_ef21_bc_with_the_identity_downwards_is_ef21() -> None:
    """To rounding: the public estimate is the sum of differences."""
    course, plain = start("gd(ef21_bc(topk(k=2), identity), step=0.1)", SMALL), start("gd(ef21(topk(k=2)), step=0.1)", SMALL)
    for _ in range(30):
        assert torch.allclose(course.go().x, plain.go().x, rtol=1e-12, atol=1e-12)
        assert torch.equal(course.state.memory.shift[0], course.state.memory.shift[0])
    full = 7 * 8
    assert (course.runtime.ledger.downlink == full * 31).all()  # the first estimate and 30 differences, never x


def test_ef21_bc_compresses_downwards() -> None:
    course = start("gd(ef21_bc(topk(k=2), topk(k=1)), step=0.01)", SMALL)
    for _ in range(10):
        before, mean = course.state.memory.estimate.clone(), course.state.memory.mean.clone()
        course.go()
        memory = course.state.memory
        change = memory.estimate - before
        assert int((change != 0).sum()) <= 1 and not torch.equal(memory.mean, mean)
        there = int((memory.mean - before).abs().argmax())
        assert float(memory.estimate[there]) == pytest.approx(float(memory.mean[there]), rel=1e-14)


def test_marina_sends_gradients_by_the_coin_and_differences_else() -> None:
    """The estimate follows the recursion, the bytes follow the coin."""
    course = start("gd(marina(randk(k=2), probability=0.3), step=0.05)", SMALL)
    heads, before = 0, gradients(course)
    for _ in range(60):
        estimate, up = course.state.memory.estimate.clone(), course.runtime.ledger.uplink.copy()
        course.go()
        now, spent = gradients(course), course.runtime.ledger.uplink - up
        link = Link(Block.whole(4))
        link.begin(course.step)
        inner = link.scope("mechanism")
        if inner.coin(0.3):
            heads += 1
            assert (spent == 56).all() and torch.equal(course.state.estimate, mean_of(now))
        else:
            keys = inner.keys("up")
            supports = torch.from_numpy(keys.subsets(7, 2))
            change = torch.zeros(4, 7, dtype=torch.float64).scatter(1, supports, (now - before).gather(1, supports) * 3.5)
            assert (spent == 16).all()
            assert torch.allclose(course.state.estimate, estimate + change.mean(0), rtol=1e-12, atol=1e-13)
        before = now
    assert 5 < heads < 35


def test_diana_by_the_formula() -> None:
    course = start("gd(diana(randk(k=2)), step=0.05)", SMALL)
    assert course.method.mechanism.rate == pytest.approx(2 / 7)  # type: ignore[attr-defined]  # 1 / (1 + (7 / 2 - 1))
    for _ in range(20):
        shift = course.state.memory.shift.clone()
        course.go()
        link = Link(Block.whole(4))
        link.begin(course.step)
        supports = torch.from_numpy(link.scope("mechanism").keys("up").subsets(7, 2))
        difference = (gradients(course) - shift).gather(1, supports) * 3.5
        sent = torch.zeros(4, 7, dtype=torch.float64).scatter(1, supports, difference)
        assert torch.allclose(course.state.memory.shift, shift + 2 / 7 * sent, rtol=1e-13, atol=1e-15)
        assert torch.allclose(course.state.estimate, shift.mean(0) + sent.mean(0), rtol=1e-12, atol=1e-14)


# ---- PowerSGD -----------------------------------------------------------------------------------------------------------


def exchange_powersgd(rank: int, tensors: list[Tensor]) -> list[tuple[Tensor, Any, Tensor]]:
    """Estimate, memory and the error before, of each exchange in turn; tensors are (n, *shape)."""
    mechanism: Any = parse(f"powersgd(rank={rank})")
    runtime, memory, seen = Local(len(tensors[0])), None, []
    for step, v in enumerate(tensors):
        runtime.links[0].begin(step)
        before = torch.zeros_like(v) if memory is None else memory.error.clone()
        text = mechanism.init(v, runtime.links[0]) if memory is None else mechanism.exchange(v, memory, runtime.links[0])
        ((estimate, memory),) = runtime.drive(text)
        seen.append((estimate.clone(), memory, before))
    return seen


@pytest.mark.parametrize("shape", [(6, 9), (9, 6), (5, 2, 4)])
@pytest.mark.parametrize("rank", [1, 2])
def test_powersgd_projects_the_mean(shape: tuple[int, ...], rank: int) -> None:
    """The estimate is P P' mean(M_i) with P orthonormal of the given rank, and errors add up to what was left out."""
    rng = np.random.default_rng(rank)
    tensors = [torch.from_numpy(rng.standard_normal((3, *shape))) for _ in range(5)]
    for v, (estimate, memory, error) in zip(tensors, exchange_powersgd(rank, tensors), strict=True):
        owed, found = (v + error).mean(0).flatten(1), estimate.flatten(1)
        left = torch.linalg.svd(found).U[:, :rank]
        assert torch.linalg.matrix_rank(found) == rank
        assert torch.allclose(found, left @ left.T @ owed, rtol=1e-10, atol=1e-11)
        assert torch.allclose(memory.error.mean(0).flatten(1), owed - found, rtol=1e-10, atol=1e-12)


def test_powersgd_finds_a_matrix_of_its_rank_at_once() -> None:
    rng = np.random.default_rng(0)
    low = torch.from_numpy(rng.standard_normal((8, 2)) @ rng.standard_normal((2, 6)))
    ((estimate, memory, _),) = exchange_powersgd(2, [low.expand(3, 8, 6)])
    assert torch.allclose(estimate, low, rtol=1e-10, atol=1e-12) and float(memory.error.abs().max()) < 1e-12


def test_powersgd_converges_to_the_best_approximation_of_a_fixed_matrix() -> None:
    """Without the error put back in, warm start is the power iteration."""
    matrix = torch.diag(torch.tensor([4.0, 2.0, 1.0, 0.5, 0.25], dtype=torch.float64))
    mechanism, runtime = parse("powersgd(rank=1)"), Local(1)
    estimate, memory = runtime.drive(mechanism.init(matrix[None], runtime.links[0]))[0]  # type: ignore[attr-defined]
    for _ in range(40):
        memory.error.zero_()
        ((estimate, memory),) = runtime.drive(mechanism.exchange(matrix[None], memory, runtime.links[0]))  # type: ignore[attr-defined]
    assert torch.allclose(estimate, torch.diag(torch.tensor([4.0, 0, 0, 0, 0], dtype=torch.float64)), atol=1e-9)


def test_powersgd_starts_anew_after_zero_gradients() -> None:
    zero, some = torch.zeros(2, 5, 6, dtype=torch.float64), torch.ones(2, 5, 6, dtype=torch.float64)
    first, second = exchange_powersgd(1, [zero, some])
    assert not first[0].any() and second[0].any() and torch.allclose(second[0], some[0], rtol=1e-10)


@pytest.mark.parametrize("shape", [(5,), (3, 1), (2, 2), (4, 4), (0,)])
def test_powersgd_averages_what_is_too_small(shape: tuple[int, ...]) -> None:
    v = torch.from_numpy(np.random.default_rng(0).standard_normal((3, *shape)))
    ((estimate, memory, _),) = exchange_powersgd(2, [v])
    assert equal(estimate, mean_of(v)) and memory.right.numel() == 0


# ---- the counterexample ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("step", [1e-3, 1 / 36, 0.0625, 0.5])
def test_direct_top1_grows_by_eleven_sixths_of_the_step(step: float) -> None:
    """Every round, for every step; to rounding, which keeps x on the ray."""
    course = start(f"gd(direct(topk(k=1)), step={step!r})", "counterexample")
    factor, x = 1.0 + 11.0 * step / 6.0, course.x
    for _ in range(100):
        grown = course.go().x
        assert torch.allclose(grown, factor * x, rtol=1e-12, atol=0)
        x = grown


@pytest.mark.parametrize(("spec", "iterations"), [("gd(ef14(topk(k=1)), step=0.0277)", 1500), ("ef21(topk(k=1))", 4000),
                                                  ("gd(ef14_inside(topk(k=1)), step=0.0277)", 1500),
                                                  ("gd(ef21(topk(k=1)), step=0.01)", 2500)])  # fmt: skip
def test_error_feedback_repairs_the_counterexample(spec: str, iterations: int) -> None:
    course = start(spec, "counterexample")
    assert float(course.go(iterations).x.norm()) < 1e-7 * math.sqrt(3)


def test_ef14s_theorem_step_converges_on_the_counterexample() -> None:
    course = start("ef14(topk(k=1))", "counterexample")
    assert course.method.step == pytest.approx(1 / (14 * 2 * 3 * 34.5), rel=1e-12)  # type: ignore[attr-defined]
    norms = [float(course.go(1500).x.norm()) for _ in range(3)]
    assert norms[1] < 0.75 * norms[0] and norms[2] < 0.75 * norms[1]


def test_ef21s_step_on_the_counterexample_is_the_sheets() -> None:
    assert start("ef21(topk(k=1))", "counterexample").method.step == pytest.approx(0.00427, abs=5e-6)  # type: ignore[attr-defined]


# ---- constants by hand ----------------------------------------------------------------------------------------------------


def hand(n: int = 4, d: int = 100, convex: bool = True, mu: float | None = 0.5, **other: float) -> Setting:
    """L = 2, L_i = 1, 2, 2, 7 (so L~^2 = 14.5), L+ = 3, L_pm = 1.5, mu = 0.5."""
    values = {"L": 2.0, "L_max": 7.0, "L_tilde": math.sqrt(14.5), "L_plus": 3.0, "L_pm": 1.5, "sigma_star": 3.0, **other}
    if mu is not None:
        values |= {"mu": mu, "mu_workers": mu}
    named = {name: Constant(value) for name, value in values.items()}
    return Setting(Constants(L_workers=(1.0, 2.0, 2.0, 7.0), **named), n, (d,), (5, 6), convex)  # type: ignore[arg-type]


ALPHA = 0.36  # topk(k=36) of 100: theta = 0.2, beta = 3.2
OMEGA = 4.0  # randk(k=20) of 100


@pytest.mark.parametrize(
    ("spec", "setting", "step", "rate"),
    [
        # 1 / (2 + sqrt(14.5) * 4) without mu; with mu the root is sqrt(32) and theta / (2 mu) = 0.2 is larger
        ("ef21(topk(k=36))", hand(mu=None), 1 / (2 + 4 * math.sqrt(14.5)), None),
        ("ef21(topk(k=36))", hand(), 1 / (2 + math.sqrt(14.5 * 32)), 1 - 0.5 / (2 + math.sqrt(464))),
        ("ef21(topk(k=36))", hand(mu=3.0), 0.2 / 6, 1 - 0.1),
        ("ef21(identity)", hand(), 0.5, 0.75),
        # 3PC: A = 0.2, B = max(3.2, trigger)
        ("clag(topk(k=36), trigger=1.0)", hand(mu=None), 1 / (2 + 3 * 4), None),
        ("clag(topk(k=36), trigger=5.0)", hand(mu=None), 1 / (2 + 3 * 5), None),
        ("clag(topk(k=36), trigger=5.0)", hand(), 1 / (2 + 3 * math.sqrt(50)), 1 - 0.5 / (2 + 3 * math.sqrt(50))),
        ("clag(identity, trigger=4.0)", hand(mu=None), 1 / (2 + 3 * 2), None),
        # 1 / (L + 6 omega L_max / n); a = 1/5, so 1 - a / 2 = 0.9; 9 / 8 makes natural's 1 / (2 + 6 * 7 / 32)
        ("diana(randk(k=20))", hand(), 1 / 44, 1 - 0.5 / 44),
        ("diana(randk(k=20))", hand(mu=8.8), 1 / 44, 0.9),
        ("diana(natural)", hand(), 1 / (2 + 42 / 32), 1 - 0.5 / (2 + 42 / 32)),
        ("diana(randk(k=20), rate=0.1)", hand(mu=8.8), 1 / 44, 0.95),
        ("diana(identity)", hand(), 0.5, 0.75),
        # p = 0.2: (1 - p) / p = 4; A = omega / n = 1, B = 0: M = sqrt(4 * 9) = 6
        ("marina(randk(k=20))", hand(mu=None), 1 / 8, None),
        ("marina(randk(k=20))", hand(), 1 / (2 + 6 * math.sqrt(2)), 1 - 0.5 / (2 + 6 * math.sqrt(2))),
        ("marina(randk(k=20), probability=0.1)", hand(mu=None), 1 / (2 + 9), None),
        ("marina(randk(k=20))", hand(mu=20.0), 0.2 / 40, 0.9),
        # PermK: p = 1/4, A = B = 1: M = sqrt(3) L_pm; shared: A = 0, B = -4: M^2 = 4 (4 * 9 - 4 * 2.25) = 108
        ("marina(permk)", hand(mu=None), 1 / (2 + 1.5 * math.sqrt(3)), None),
        ("marina(shared_randk(k=20))", hand(mu=None), 1 / (2 + math.sqrt(108)), None),
        ("marina(randk(k=1.0), probability=1.0)", hand(mu=None), 0.5, None),
        # d = 3 < n = 7: p = 1/3, A = 16/49, B = 2/7: M^2 = 2 (2/49 * 9 + 2/7 * 2.25)
        ("marina(permk)", hand(n=7, d=3, mu=None), 1 / (2 + math.sqrt(2 * (18 / 49 + 4.5 / 7))), None),
        # 1 / (max(1 - B, 0) L + 2 A L_max)
        ("direct(randk(k=20))", hand(), 1 / 16, 1 - 0.5 / 16),
        ("direct(natural)", hand(), 1 / (2 + 14 / 32), 1 - 0.5 / (2 + 14 / 32)),
        ("direct(permk)", hand(), 1 / 14, 1 - 0.5 / 14),
        ("direct(shared_randk(k=20))", hand(), 1 / 10, 0.95),
        ("direct(topk(k=36))", hand(n=1), 0.5, 1 - 0.25 * 0.36),
        # gradient descent: ||x - x*|| itself shrinks by 1 - step mu
        ("direct(identity)", hand(), 0.5, 0.75**2),
        ("direct(identity)", hand(mu=None), 0.5, None),
        ("ef14(topk(k=36))", hand(), 0.36 / (28 * 7), None),
        ("ef14_inside(topk(k=1))", hand(), 0.01 / (28 * 7), None),
        ("ef21_sgdm(topk(k=36), eta=0.1)", hand(), 0.1 / 14, None),
        ("ef21_sgdm(topk(k=36), eta=1.0)", hand(), 0.36 / (20 * math.sqrt(14.5)), None),
        # beta / theta = 16 on either side: 1 / (2 + sqrt(14.5 (16 * 16 + 32 * 129))); with the identity down sqrt(14.5 * 32)
        ("ef21_bc(topk(k=36), topk(k=36))", hand(), 1 / (2 + math.sqrt(14.5 * (256 + 32 * 129))), None),
        ("ef21_bc(topk(k=36), identity)", hand(), 1 / (2 + math.sqrt(14.5 * 32)), None),
    ],
)  # fmt: skip
def test_steps_and_rates_by_hand(spec: str, setting: Setting, step: float, rate: float | None) -> None:
    entry: Any = parse(spec)
    method = parse("gd").__class__(entry).settled(setting)  # type: ignore[call-arg, attr-defined]
    promise = method.guarantee(setting)
    assert method.step == promise.step == pytest.approx(step, rel=1e-12)
    assert promise.rate == (None if rate is None else pytest.approx(rate, rel=1e-12))
    four: Any = parse("gd").__class__(entry, step="4x").settled(setting)  # type: ignore[call-arg, attr-defined]
    assert four.step == pytest.approx(4 * step, rel=1e-12)
    assert four.guarantee(setting).rate is None and four.guarantee(setting).lyapunov is None
    half: Any = parse("gd").__class__(entry, step=step / 2).settled(setting)  # type: ignore[call-arg, attr-defined]
    assert (half.guarantee(setting).rate is None) == (rate is None)


def test_plateaus_by_hand() -> None:
    """2 step A sigma*^2 / mu with sigma* = 3: A = 1 at step 1/16, A = B = 1 at 1/14, and none with a shared support."""
    plateaus = {"randk(k=20)": 2 / 16 * 9 / 0.5, "permk": 2 / 14 * 9 / 0.5, "shared_randk(k=20)": 0.0, "identity": 0.0}
    for compressor, plateau in plateaus.items():
        promise = parse("gd").__class__(parse(f"direct({compressor})")).guarantee(hand())  # type: ignore[call-arg, attr-defined]
        assert promise.plateau == pytest.approx(plateau, rel=1e-12)


def test_vr_diana_by_hand() -> None:
    """omega = 4, n = 4, terms up to 6: 1 / (L (1 + (144 + 34) / 4)), and 1 - 1 / 12 is the largest of the three."""
    method: Any = parse("gd(diana(randk(k=20)), estimator=lsvrg)")
    setting = hand(L_sample=10.0, mu=3.0)
    promise = method.settled(setting).guarantee(setting)
    assert promise.step == pytest.approx(1 / (10 * (1 + 178 / 4)), rel=1e-12)
    assert promise.rate == pytest.approx(max(1 - 3 * promise.step, 0.9, 1 - 1 / 12), rel=1e-12)


@pytest.mark.parametrize(
    ("spec", "setting", "why"),
    [
        ("direct(topk(k=2))", hand(), "biased"), ("marina(topk(k=2))", hand(), "unbiased"), ("diana(topk(k=2))", hand(), "unbiased"),
        ("diana(permk)", hand(), "independent"), ("ef21(randk(k=2))", hand(), "contractive"), ("ef14(randk(k=2))", hand(), "contractive"),
        ("clag(randk(k=2))", hand(), "contractive"), ("ef21_bc(randk(k=2))", hand(), "contractive"), ("powersgd", hand(), "theorem"),
        ("ef21_sgdm(permk)", hand(), "contractive"), ("direct(natural)", hand(convex=False), "convex"),
        ("diana(natural)", hand(convex=False), "convex"), ("diana(natural)", hand(mu=None), "mu"),
        ("ef14(topk(k=2))", hand(convex=False), "convex"), ("ef14_inside(topk(k=2))", hand(convex=False), "convex"),
        ("gd(ef21(topk(k=2)), estimator=sgd)", hand(), "full gradients"), ("gd(marina(permk), estimator=lsvrg)", hand(), "full gradients"),
        ("gd(diana(natural), estimator=sgd)", hand(), "variance-reduced"), ("gd(diana(natural, rate=1.0))", hand(), "rate"),
    ],
)  # fmt: skip
def test_a_combination_that_no_theorem_covers_needs_a_step_and_says_why(spec: str, setting: Setting, why: str) -> None:
    entry: Any = parse(spec)
    method: Any = entry if entry.kind == "method" else parse("gd").__class__(entry)  # type: ignore[call-arg]
    with pytest.raises(NoTheorem, match=why) as caught:
        method.settled(setting)
    assert "step" in str(caught.value) or "admit" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_explicit_step_asks_no_theorem() -> None:
    for spec in ("gd(direct(topk(k=2)), step=0.1)", "gd(powersgd, step=0.1)", "gd(ef14(randk(k=2)), step=0.1)"):
        assert method_of(spec, problem_of(SMALL)).step == 0.1  # type: ignore[attr-defined]


# ---- Lyapunov functions -----------------------------------------------------------------------------------------------------

CONVEX = "quadratic(d=20, workers=6, noise=0.2, mu=0.05)"
NONCONVEX_PARTS = "quadratic(d=20, workers=6, noise=0.8, mu=0.01)"  # f is strongly convex, some f_i are not convex


def lyapunovs(spec: str, problem: str, iterations: int, seed: int = 0) -> tuple[list[float], float]:
    """V after every iteration, and the rate."""
    course = start(spec, problem, seed)
    solution, promise = course.problem.solution(), course.guarantee()
    assert solution is not None and promise.rate is not None
    values = [course.lyapunov(solution)]
    for _ in range(iterations):
        values.append(course.go().lyapunov(solution))
    return values, promise.rate


@pytest.mark.parametrize("problem", [CONVEX, NONCONVEX_PARTS, LOGISTIC, "counterexample"])
@pytest.mark.parametrize("spec", ["direct(identity)", "ef21(topk(k=2))", "ef21(topk(k=0.5))", "clag(topk(k=2), trigger=1.0)",
                                  "clag(identity, trigger=9.0)", "gd(ef21(topk(k=1)), step='0.5x')"])  # fmt: skip
def test_deterministic_mechanisms_contract_at_every_step(spec: str, problem: str) -> None:
    """Down to rounding: below 1e-13 of the start differences of f decide nothing."""
    if "direct" in spec and not setting_of(problem_of(problem)).convex:
        pytest.skip("gradient descent's rate is promised for convex problems only")
    values, rate = lyapunovs(spec, problem, 150)
    for before, after in itertools.pairwise(values):
        assert after <= rate * before * (1 + 1e-9) + 1e-13 * values[0]


def test_gradient_descent_attains_its_rate() -> None:
    """The bound is called tight: on an eigenvector of mu nothing is given away."""
    problem = problem_of("quadratic(d=5, workers=2, noise=0.0, mu=0.1)")
    course, solution = start("gd", problem), problem.solution()
    assert solution is not None and course.guarantee().tight and course.guarantee().rate is not None
    a, _ = matrices(problem)
    slow = torch.linalg.eigh(a.mean(0)).eigenvectors[:, 0]
    course.state.x, course.state.estimate = solution.x + slow, mean_of(course.oracles[0].gradients(solution.x + slow))
    before = course.lyapunov(solution)
    assert course.go().lyapunov(solution) / before == pytest.approx(course.guarantee().rate, rel=1e-9)


@pytest.mark.parametrize("problem", [CONVEX, LOGISTIC])
@pytest.mark.parametrize("spec", ["diana(natural)", "diana(randk(k=4))", "diana(randk(k=4), rate=0.05)"])
def test_diana_contracts_on_average(spec: str, problem: str) -> None:
    """E[V after | before] <= rate V before: one step from one state, averaged over seeds, with its sampling error."""
    average_contracts(spec, problem, warm=15, draws=60)


@pytest.mark.parametrize("problem", [CONVEX, NONCONVEX_PARTS])
@pytest.mark.parametrize("spec", ["marina(randk(k=4))", "marina(permk)", "marina(natural)", "marina(shared_randk(k=4))"])
def test_marina_contracts_on_average(spec: str, problem: str) -> None:
    average_contracts(spec, problem, warm=15, draws=120)


def average_contracts(spec: str, problem: str, warm: int, draws: int) -> None:
    course = start(spec, problem).go(warm)
    solution, rate = course.problem.solution(), course.guarantee().rate
    assert solution is not None and rate is not None
    before, after = course.lyapunov(solution), []
    kept, step = {name: leaf.tensor.clone() for name, leaf in flatten(course.state).items()}, course.step
    from laconic.core.state import restore

    for draw in range(draws):
        course.states = [restore(course.state, kept)]
        course.step = step + 1000 * draw  # other randomness
        after.append(course.go().lyapunov(solution))
    error = float(np.std(after)) / math.sqrt(draws)
    assert float(np.mean(after)) <= rate * before + 4 * error
    assert error < 0.2 * before  # the average says something


# ---- the plateau of direct compression -------------------------------------------------------------------------------------


def plateau_of_randk(a: Tensor, b: Tensor, step: float, omega: float) -> float:
    """tr Sigma of the stationary law of x <- x - step mean RandK(A_i x - b_i), solved exactly.

    Given z = x - x*, worker i's gradient is g_i = A_i z + r_i. RandK scales a uniform k-subset: Cov(Q(g)) has the
    entries omega g_j^2 on the diagonal and (d (k - 1) / (k (d - 1)) - 1) g_j g_l off it. Workers are independent.
    E z = 0 in the stationary law, so Sigma solves a linear equation: Sigma = (I - sH) Sigma (I - sH) + s^2 N(Sigma).
    """
    n, d = b.shape
    h = a.mean(0)
    solution = torch.linalg.solve(h, b.mean(0))
    residual = a @ solution - b
    k = d / (1 + omega)
    off = d * (k - 1) / (k * (d - 1)) - 1
    weights = torch.full((d, d), off, dtype=a.dtype).fill_diagonal_(omega)
    keep = torch.eye(d, dtype=a.dtype) - step * h

    def push(sigma: Tensor) -> Tensor:
        second = a @ sigma @ a.transpose(1, 2) + residual[:, :, None] * residual[:, None, :]
        return keep @ sigma @ keep + step**2 * (weights * second).sum(0) / n**2

    sigma = torch.zeros(d, d, dtype=a.dtype)
    for _ in range(200_000):
        renewed = push(sigma)
        if float((renewed - sigma).abs().max()) < 1e-14 * float(renewed.abs().max()):
            break
        sigma = renewed
    return float(sigma.trace())


def test_the_plateau_of_direct_randk_is_the_exact_one() -> None:
    problem = problem_of("quadratic(d=6, workers=5, noise=0.5, mu=0.3)")
    a, b = matrices(problem)
    solution = problem.solution()
    assert solution is not None and torch.allclose(torch.linalg.solve(a.mean(0), b.mean(0)), solution.x, rtol=1e-10)
    for factor in ("1x", "0.25x"):
        course = start(f"gd(direct(randk(k=2)), step={factor!r})", problem)
        step: float = course.method.step  # type: ignore[attr-defined]
        expected = plateau_of_randk(a, b, step, omega=2.0)
        promise = course.guarantee()
        assert expected < promise.plateau  # the bound is safe
        course.go(math.ceil(8 / (step * 0.3)))
        batches = []
        for _ in range(24):  # means over batches that are long against the mixing time are nearly independent
            total, length = 0.0, math.ceil(10 / (step * 0.3))
            for _ in range(length):
                total += float(((course.go().x - solution.x) ** 2).sum())
            batches.append(total / length)
        error = float(np.std(batches, ddof=1)) / math.sqrt(len(batches))
        assert abs(float(np.mean(batches)) - expected) < 4 * error and error < 0.1 * expected


def test_a_shared_support_has_no_plateau() -> None:
    problem = problem_of("quadratic(d=6, workers=5, noise=0.5, mu=0.3)")
    solution = problem.solution()
    assert solution is not None
    course = start("direct(shared_randk(k=2))", problem)
    assert float((course.go(3000).x - solution.x).norm()) < 1e-12


# ---- what every mechanism of the catalogue keeps ----------------------------------------------------------------------------


@pytest.mark.parametrize("spec", MECHANISMS)
def test_memories_are_plain_states_that_say_who_holds_what(spec: str) -> None:
    mechanism: Any = parse(spec)
    mechanism = mechanism.settled(hand(n=3, d=40))
    runtime, v = Local(3), torch.from_numpy(np.random.default_rng(0).standard_normal((3, 5, 8)))
    ((estimate, memory),) = runtime.drive(mechanism.init(v, runtime.links[0]))
    assert estimate.shape == (5, 8) and estimate.dtype == v.dtype
    for leaf in flatten(memory).values():
        assert leaf.placement is not Placement.WORKER or leaf.tensor.shape[0] == 3
    before = v.clone()
    for step in range(1, 4):
        runtime.links[0].begin(step)
        ((estimate, memory),) = runtime.drive(mechanism.exchange(v, memory, runtime.links[0]))
        assert torch.equal(v, before)  # vectors are borrowed
    kept = flatten(memory)
    v.fill_(7.0)
    assert all(not (leaf.tensor == 7.0).any() for leaf in kept.values())  # and not kept without a copy


@pytest.mark.parametrize("spec", MECHANISMS)
def test_zero_vectors_give_a_zero_estimate(spec: str) -> None:
    mechanism: Any = parse(spec)
    mechanism = mechanism.settled(hand(n=3, d=40))
    link, zero = Link(Block.whole(3)), torch.zeros(3, 5, 8, dtype=torch.float64)
    runtime = Local(3)
    estimate, memory = runtime.drive(mechanism.init(zero, runtime.links[0]))[0]
    assert not estimate.any()
    assert not runtime.drive(mechanism.exchange(zero, memory, runtime.links[0]))[0][0].any()
    assert link.n == 3


def test_the_helpers_of_this_file_are_right() -> None:
    """The matrices of a quadratic, and the plateau's formula in one dimension, where it can be solved by hand."""
    problem = problem_of(SMALL)
    a, b = matrices(problem)
    oracles = problem.oracles(Block.whole(4))
    x = torch.arange(7, dtype=torch.float64)
    assert torch.allclose(a @ x - b, oracles.gradients(x), rtol=1e-12, atol=1e-13)
    assert as_contractive(parse("topk(k=36)").claim(100, 4)) == ALPHA  # type: ignore[attr-defined]
    assert parse("randk(k=20)").claim(100, 4).omega == OMEGA  # type: ignore[attr-defined]
    probe = Probe(x, oracles.gradients, oracles.gradients)
    assert torch.equal(probe(x), oracles.gradients(x))

    async def nothing() -> int:
        return 3

    assert drive(nothing(), lambda flight: []) == 3
