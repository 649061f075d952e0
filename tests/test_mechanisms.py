"""Mechanisms: identities that hold exactly, and special cases that are older methods."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from by_hand import Course, equal, hand, problem_of, start
from laconic.core.estimator import Probe
from laconic.core.link import Link
from laconic.core.mechanism import Mechanism
from laconic.core.problem import Block
from laconic.core.registry import catalogue
from laconic.core.spec import example, parse
from laconic.core.state import Placement, flatten
from laconic.runtime.local import Local

SMALL = "quadratic(d=7, workers=4, noise=0.3, mu=0.1)"
LOGISTIC = "logistic(data='breast_cancer', l2=0.01, workers=5)"
MECHANISMS = [example(cls) for cls in catalogue().of_kind("mechanism")]


def mean_of(tensor: Tensor) -> Tensor:
    """The mean over workers in the order in which messages are added."""
    total = torch.zeros_like(tensor[0])
    for row in tensor:
        total = total + row * (1.0 / len(tensor))
    return total


def gradients(course: Course) -> Tensor:
    return course.oracles[0].gradients(course.x)


# ---- what a server holds is the mean of what the workers hold --------------------------------------------------------


@pytest.mark.parametrize(
    ("spec", "workers", "server"),
    [
        ("ef21(topk(k=2))", "shift", "estimate"),
        ("ef21(natural)", "shift", "estimate"),
        ("ef21_sgdm(topk(k=2))", "shift", "estimate"),
        ("ef21_bc(topk(k=2), topk(k=3))", "shift", "mean"),
        ("clag(topk(k=2))", "shift", "estimate"),
        ("diana(natural)", "shift", "mean"),
        ("diana(randk(k=3))", "shift", "mean"),
    ],
)
def test_the_servers_state_is_the_mean_of_the_workers(spec: str, workers: str, server: str) -> None:
    """To rounding: the two are added up in different orders."""
    course = start(spec, SMALL)
    for _ in range(30):
        memory = course.go().state.memory
        expected = getattr(memory, workers).mean(0)
        assert torch.allclose(getattr(memory, server), expected, rtol=1e-12, atol=1e-13)


# ---- EF14 ------------------------------------------------------------------------------------------------------------


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
            assert torch.allclose(
                inside.state.memory.error, step * outside.state.memory.error, rtol=rounding, atol=rounding
            )


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


# ---- special cases that are older methods ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("special", "exact"),
    [
        ("direct(identity)", True),
        ("ef21(identity)", False),
        ("diana(identity)", False),
        ("marina(identity)", False),
        ("marina(randk(k=1), probability=1.0)", True),
        ("marina(permk, probability=1.0)", True),
        ("ef14(identity)", True),
        ("ef21_bc(identity, identity)", False),
        ("clag(identity, trigger=0.0)", False),
        ("ef21(topk(k=1.0))", False),
        ("ef21_sgdm(identity, eta=1.0)", False),
        ("direct(randk(k=1.0))", True),
        ("powersgd(rank=1)", True),
        ("diana(randk(k=1.0))", False),
    ],
)
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
    lazy, eager = (
        start(f"gd(clag({compressor}, trigger=0.0), step=0.1)", SMALL),
        start(f"gd(ef21({compressor}), step=0.1)", SMALL),
    )
    for name in ("shift", "estimate"):
        setattr(eager.state.memory, name, getattr(lazy.state.memory, name).clone())
    eager.state.estimate = eager.state.memory.estimate
    for _ in range(30):
        assert torch.equal(lazy.go().x, eager.go().x)
    assert (
        lazy.runtime.ledger.uplink - eager.runtime.ledger.uplink >= 30
    ).all()  # a flag per round, and the full start


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
        spent = course.runtime.ledger.uplink - up
        # a flag for everyone; speakers send at most a flag bit and a bitmap of 7 (one byte), and two values
        assert (spent[~speaks.numpy()] == 1).all() and (spent[speaks.numpy()] == 1 + 1 + 16).all()
        assert torch.equal(course.state.memory.shift[~speaks], shift[~speaks]) and torch.equal(
            course.state.memory.previous, v
        )
        spoken += int(speaks.sum())
    assert 0 < spoken < 160  # both happened


def test_ef21_sgdm_without_momentum_is_ef21_but_for_the_start() -> None:
    course, plain = (
        start("gd(ef21_sgdm(topk(k=1), eta=1.0), step=0.1)", SMALL),
        start("gd(ef21(topk(k=1)), step=0.1)", SMALL),
    )
    assert torch.equal(course.state.memory.shift, gradients(course)) and not torch.equal(
        plain.state.memory.shift, gradients(plain)
    )
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
        assert torch.allclose(course.state.memory.momentum, momentum, rtol=1e-12, atol=1e-15)


def test_ef21_bc_with_the_identity_downwards_is_ef21() -> None:
    """To rounding: the public estimate is the sum of differences."""
    course, plain = (
        start("gd(ef21_bc(topk(k=2), identity), step=0.1)", SMALL),
        start("gd(ef21(topk(k=2)), step=0.1)", SMALL),
    )
    for _ in range(30):
        assert torch.allclose(course.go().x, plain.go().x, rtol=1e-12, atol=1e-12)
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
            change = torch.zeros(4, 7, dtype=torch.float64).scatter(
                1, supports, (now - before).gather(1, supports) * 3.5
            )
            assert (spent == 16).all()
            assert torch.allclose(course.state.estimate, estimate + change.mean(0), rtol=1e-12, atol=1e-13)
        before = now
    assert 5 < heads < 35


def test_diana_by_the_formula() -> None:
    course = start("gd(diana(randk(k=2)), step=0.05)", SMALL)
    assert course.method.mechanism.rate == pytest.approx(2 / 7)  # 1 / (1 + (7 / 2 - 1))
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


# ---- PowerSGD --------------------------------------------------------------------------------------------------------


def exchange_powersgd(rank: int, tensors: list[Tensor]) -> list[tuple[Tensor, Any, Tensor]]:
    """Estimate, memory and the error before, of each exchange in turn; tensors are (n, *shape)."""
    mechanism: Any = parse(f"powersgd(rank={rank})")
    runtime, memory, seen = Local(len(tensors[0])), None, []
    for step, v in enumerate(tensors):
        runtime.links[0].begin(step)
        before = torch.zeros_like(v) if memory is None else memory.error.clone()
        text = (
            mechanism.init(v, runtime.links[0]) if memory is None else mechanism.exchange(v, memory, runtime.links[0])
        )
        ((estimate, memory),) = runtime.drive(text)
        seen.append((estimate.clone(), dataclasses.replace(memory, error=memory.error.clone()), before))
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
        # each worker keeps what its own Q_i leaves out, so no error lies in the range of P
        assert float((left.T @ memory.error.flatten(2)).abs().max()) < 1e-11
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
    estimate, memory = runtime.drive(mechanism.init(matrix[None], runtime.links[0]))[0]
    for _ in range(40):
        memory.error.zero_()
        ((estimate, memory),) = runtime.drive(mechanism.exchange(matrix[None], memory, runtime.links[0]))
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


# ---- the counterexample ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("step", [1e-3, 1 / 36, 0.0625, 0.5])
def test_direct_top1_grows_by_eleven_sixths_of_the_step(step: float) -> None:
    """Every round, for every step; to rounding, which keeps x on the ray."""
    course = start(f"gd(direct(topk(k=1)), step={step!r})", "counterexample")
    factor, x = 1.0 + 11.0 * step / 6.0, course.x
    for _ in range(100):
        grown = course.go().x
        assert torch.allclose(grown, factor * x, rtol=1e-12, atol=0)
        x = grown


@pytest.mark.parametrize(
    ("spec", "iterations"),
    [
        ("gd(ef14(topk(k=1)), step=0.0277)", 1500),
        ("ef21(topk(k=1))", 4000),
        ("gd(ef14_inside(topk(k=1)), step=0.0277)", 1500),
        ("gd(ef21(topk(k=1)), step=0.01)", 2500),
    ],
)
def test_error_feedback_repairs_the_counterexample(spec: str, iterations: int) -> None:
    course = start(spec, "counterexample")
    assert float(course.go(iterations).x.norm()) < 1e-7 * math.sqrt(3)


def test_ef14s_theorem_step_converges_on_the_counterexample() -> None:
    course = start("ef14(topk(k=1))", "counterexample")
    assert course.method.step == pytest.approx(1 / (14 * 2 * 3 * 34.5), rel=1e-12)
    norms = [float(course.go(1500).x.norm()) for _ in range(3)]
    assert norms[1] < 0.75 * norms[0] and norms[2] < 0.75 * norms[1]


def test_ef21s_step_on_the_counterexample_is_the_sheets() -> None:
    assert start("ef21(topk(k=1))", "counterexample").method.step == pytest.approx(0.00427, abs=5e-6)


# ---- what every mechanism of the catalogue keeps ---------------------------------------------------------------------

# the gradients of ||x||^2 / 2 on three workers, for mechanisms that ask
PROBE = Probe(
    torch.ones(5, 8, dtype=torch.float64), lambda x: x.expand(3, 5, 8), lambda x: x.expand(3, 5, 8), torch.clone
)


@pytest.mark.parametrize("spec", MECHANISMS)
def test_memories_are_plain_states_that_say_who_holds_what(spec: str) -> None:
    mechanism: Any = parse(spec)
    mechanism = mechanism.settled(hand(n=3, d=40))
    runtime, v = Local(3), torch.from_numpy(np.random.default_rng(0).standard_normal((3, 5, 8)))
    ((estimate, memory),) = runtime.drive(mechanism.init(v, runtime.links[0], PROBE))
    assert estimate.shape == (5, 8) and estimate.dtype == v.dtype
    for leaf in flatten(memory).values():
        assert leaf.placement is not Placement.WORKER or leaf.tensor.shape[0] == 3
    v.fill_(7.0)
    for step in range(1, 4):
        assert all(not (leaf.tensor == 7.0).any() for leaf in flatten(memory).values())  # v is the caller's to reuse
        runtime.links[0].begin(step)
        v = torch.from_numpy(np.random.default_rng(step).standard_normal((3, 5, 8)))
        ((estimate, memory),) = runtime.drive(mechanism.exchange(v, memory, runtime.links[0], PROBE))
        v.fill_(7.0)


@pytest.mark.parametrize("spec", [spec for spec in MECHANISMS if not spec.startswith(("majority_vote", "ssdm"))])
def test_zero_vectors_give_a_zero_estimate(spec: str) -> None:
    """But for methods of signs, which have none of zero."""
    mechanism: Any = parse(spec)
    mechanism = mechanism.settled(hand(n=3, d=40))
    link, zero = Link(Block.whole(3)), torch.zeros(3, 5, 8, dtype=torch.float64)
    runtime, probe = Local(3), Probe(PROBE.at, lambda x: zero.clone(), lambda x: zero.clone(), PROBE.server)
    estimate, memory = runtime.drive(mechanism.init(zero, runtime.links[0], probe))[0]
    assert not estimate.any()
    assert not runtime.drive(mechanism.exchange(zero, memory, runtime.links[0], probe))[0][0].any()
    assert link.n == 3


# ---- estimates written into what was handed in -----------------------------------------------------------------------

SPECS = [*MECHANISMS, "ef14(natural)", "ef14(identity)", "ef14(topk(k=3) | natural)", "ef14_inside(topk(k=3))"]
OVERWRITING = [spec for spec in SPECS if "overwrite" in vars(type(parse(spec)))]


@pytest.mark.parametrize("spec", OVERWRITING)
def test_overwriting_gives_the_bits_of_exchanging(spec: str) -> None:
    mechanism = parse(spec)
    assert isinstance(mechanism, Mechanism)
    runtimes = [Local(1, seed=3), Local(1, seed=3)]
    apart, inside = (runtime.links[0] for runtime in runtimes)
    memories: list[Any] = [None, None]
    for step in range(6):
        v = torch.from_numpy(np.random.default_rng(step).standard_normal((1, 5, 4)))
        for link in (apart, inside):
            link.begin(step)
        if step == 0:
            for place, runtime in enumerate(runtimes):
                ((_, memories[place]),) = runtime.drive(mechanism.init(v.clone(), runtime.links[0]))
            continue
        ((estimate, memories[0]),) = runtimes[0].drive(mechanism.exchange(v.clone(), memories[0], apart))
        (memories[1],) = runtimes[1].drive(mechanism.overwrite(v, memories[1], inside))
        assert equal(v[0], estimate)
        leaves, others = flatten(memories[0]), flatten(memories[1])
        assert all(equal(leaves[name].tensor, others[name].tensor) for name in leaves)
