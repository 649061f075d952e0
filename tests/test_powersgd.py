"""PowerSGD's collapse of the warm start, its alternating form, and plain references of both."""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import pytest
import torch
from torch import Tensor

from by_hand import equal, hand
from laconic.core.spec import parse
from laconic.core.theory import NoTheorem
from laconic.mechanisms.powersgd import _orthonormal
from laconic.methods.gd import GD
from laconic.runtime.local import Local

FORMS = ("powersgd", "alternating_powersgd")


class Run:
    """One mechanism on one runtime, round by round; memory is everybody's."""

    def __init__(self, spec: str, n: int, seed: int = 0, parts: int = 1) -> None:
        self.mechanism: Any = parse(spec)
        self.runtime = Local(n, seed=seed, parts=parts)
        self.memories: list[Any] = []
        self.step = -1

    def go(self, v: Tensor) -> Tensor:
        self.step += 1
        texts = []
        for party, link in enumerate(self.runtime.links):
            link.begin(self.step)
            own = v[link.block.low : link.block.high].clone()
            kept = self.memories[party] if self.memories else None
            texts.append(self.mechanism.exchange(own, kept, link) if self.memories else self.mechanism.init(own, link))
        replies = self.runtime.drive(*texts)
        self.memories = [memory for _, memory in replies]
        assert all(equal(estimate, replies[0][0]) for estimate, _ in replies)
        return replies[0][0].clone()

    @property
    def memory(self) -> Any:
        return self.memories[0]


def vectors(rounds: int, shape: tuple[int, ...], seed: int = 0) -> list[Tensor]:
    rng = np.random.default_rng(seed)
    return [torch.from_numpy(rng.standard_normal((3, *shape))) for _ in range(rounds)]


# ---- collapse --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("parts", [1, 3, 5])
def test_an_adversarial_warm_start_is_blind_for_one_round_only(parts: int) -> None:
    """Q orthogonal to the rows of M: M Q = 0. Nothing is made up in that round, and what is owed comes in the next."""
    left = torch.from_numpy(np.random.default_rng(1).standard_normal(8))
    matrix = torch.outer(left, torch.tensor([1.0, 1.0, 0.0, -2.0, 0.0, 0.0]).double())
    v = matrix.expand(3, 8, 6).contiguous()
    run = Run("powersgd(rank=1)", 3, parts=parts)
    run.go(torch.zeros(3, 8, 6, dtype=torch.float64))
    for memory in run.memories:
        memory.right = torch.tensor([[1.0, 1.0, 5.0, 1.0, 0.0, 3.0]]).double().T  # sums that are exactly zero
    assert not run.go(v).any()
    assert all(torch.equal(memory.error, v[: len(memory.error)]) for memory in run.memories)
    assert all(equal(memory.right, run.memory.right) and memory.right.all() for memory in run.memories)
    assert torch.allclose(run.go(v), 2 * matrix, rtol=1e-9, atol=1e-11)  # this round's and the last one's


def test_a_single_column_without_a_direction_is_drawn_anew_and_the_others_stay() -> None:
    """Rank 2 on matrices of rank 1, and then of rank 2: a second column that stayed zero would never see the second."""
    rng = np.random.default_rng(2)
    u, w = (torch.from_numpy(rng.standard_normal((8, 2))) for _ in range(2))
    one = (u[:, :1] @ w[:6, :1].T).expand(3, 8, 6).contiguous()
    run = Run("powersgd(rank=2)", 3)
    for _ in range(3):
        assert torch.allclose(run.go(one), one[0], rtol=1e-9, atol=1e-11)
        first, second = run.memory.right.T
        assert float(second.norm()) > 0.5 and float(first.norm()) > 0.5
        aligned = float(first @ w[:6, 0]) / float(first.norm() * w[:6, 0].norm())
        assert abs(aligned) == pytest.approx(1.0, abs=1e-9)  # the warm column is still warm
    both = (u @ w[:6].T).expand(3, 8, 6).contiguous()
    assert torch.allclose(run.go(both), both[0], rtol=1e-8, atol=1e-9)


def test_a_healthy_round_draws_nothing() -> None:
    """The next Q is the mean of M_i' P, to the bit that the all-reduce gave."""
    run = Run("powersgd(rank=2)", 3)
    for v in vectors(4, (8, 6)):
        before = np.zeros((3, 8, 6)) if not run.memories else run.memory.error.numpy().copy()
        right = run.memory.right.numpy().copy() if run.memories else None
        run.go(v)
        if right is not None:
            matrices = v.numpy() + before
            left = np.linalg.qr(np.mean(matrices @ right, axis=0))[0]
            expected = np.mean([m.T @ left for m in matrices], axis=0)
            assert np.allclose(np.abs(run.memory.right.numpy()), np.abs(expected), rtol=1e-10, atol=1e-12)


def test_what_counts_as_a_direction() -> None:
    """Per column and relative to its own size: tiny columns count, copies and zeros do not."""
    e = torch.eye(5, dtype=torch.float64)
    cases = [
        (torch.stack([e[0], 1e-200 * e[1]], 1), [False, False]),
        (torch.stack([e[0], e[0] + 1e-17 * e[1]], 1), [False, True]),
        (torch.stack([e[0], e[0] + 1e-9 * e[1]], 1), [False, False]),
        (torch.stack([0 * e[0], e[2]], 1), [True, False]),
        (torch.stack([e[0] + e[1], e[1] - e[0], 3 * e[0]], 1), [False, False, True]),
    ]
    for matrix, expected in cases:
        basis, collapsed = _orthonormal(matrix)
        assert collapsed.tolist() == expected
        gram = basis.T @ basis
        assert torch.allclose(gram, torch.diag((~collapsed).double()), atol=1e-12)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_zero_gradients_do_no_harm(form: str, dtype: torch.dtype) -> None:
    run = Run(f"{form}(rank=2)", 3)
    for v in (torch.zeros(3, 7, 9, dtype=dtype), torch.zeros(3, 7, 9, dtype=dtype)):
        assert not run.go(v).any()
    total = run.go(torch.ones(3, 7, 9, dtype=dtype)) + run.go(torch.ones(3, 7, 9, dtype=dtype))
    assert torch.allclose(total, 2 * torch.ones(7, 9, dtype=dtype), rtol=1e-4)


# ---- plain references ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(8, 6), (6, 9), (5, 2, 4)])
@pytest.mark.parametrize("rank", [1, 2])
def test_powersgd_against_a_plain_reference(shape: tuple[int, ...], rank: int) -> None:
    """A basis is only known to its signs, so estimates and errors are compared."""
    tensors, run = vectors(6, shape), Run(f"powersgd(rank={rank})", 3)
    rows = shape[0]
    run.go(tensors[0])
    right, errors = run.memory.right.numpy().copy(), run.memory.error.flatten(2).numpy().copy()
    for v in tensors[1:]:
        m = v.flatten(2).numpy() + errors
        left = np.linalg.qr(np.mean([one @ right for one in m], axis=0))[0]
        own = [one.T @ left for one in m]
        right = np.mean(own, axis=0)
        errors = np.stack([one - left @ q.T for one, q in zip(m, own, strict=True)])
        assert np.allclose(run.go(v).flatten(1).numpy(), (left @ right.T).reshape(rows, -1), rtol=1e-9, atol=1e-11)
        assert np.allclose(run.memory.error.flatten(2).numpy(), errors, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("shape", [(8, 6), (6, 9), (5, 2, 4)])
@pytest.mark.parametrize("rank", [1, 2])
def test_the_alternating_form_against_a_plain_reference(shape: tuple[int, ...], rank: int) -> None:
    tensors, run = vectors(7, shape), Run(f"alternating_powersgd(rank={rank})", 3)
    run.go(tensors[0])
    left, right = run.memory.left.numpy().copy(), run.memory.right.numpy().copy()
    errors = run.memory.error.flatten(2).numpy().copy()
    for number, v in enumerate(tensors[1:], start=1):
        m = v.flatten(2).numpy() + errors
        if number % 2:
            left = np.linalg.qr(left)[0]
            own = [one.T @ left for one in m]
            right = np.mean(own, axis=0)
            errors = np.stack([one - left @ q.T for one, q in zip(m, own, strict=True)])
        else:
            right = np.linalg.qr(right)[0]
            own = [one @ right for one in m]
            left = np.mean(own, axis=0)
            errors = np.stack([one - p @ right.T for one, p in zip(m, own, strict=True)])
        assert np.allclose(run.go(v).flatten(1).numpy(), left @ right.T, rtol=1e-9, atol=1e-11)
        assert np.allclose(run.memory.error.flatten(2).numpy(), errors, rtol=1e-9, atol=1e-11)


def test_the_alternating_form_sends_one_factor_per_exchange() -> None:
    """8 x 6 at rank 2 in float64: 16 numbers, then 12, against 28 and two rounds."""
    v, (whole, half) = vectors(1, (8, 6))[0], [Run(f"{form}(rank=2)", 3) for form in FORMS]
    for run, expected in ((whole, [28, 28, 28]), (half, [16, 12, 16])):
        sizes = [0]
        for _ in range(3):
            run.go(v)
            sizes.append(int(run.runtime.ledger.uplink[0]))
        assert np.diff(sizes).tolist() == [8 * count for count in expected]
    assert (whole.runtime.ledger.rounds, half.runtime.ledger.rounds) == (6, 3)


def test_the_alternating_form_is_the_power_iteration_too() -> None:
    """On a fixed matrix, with the errors left out, it finds the best approximation."""
    matrix = torch.diag(torch.tensor([4.0, 2.0, 1.0, 0.5, 0.25], dtype=torch.float64))[None]
    run = Run("alternating_powersgd(rank=1)", 1)
    for _ in range(60):
        estimate = run.go(matrix)
        run.memory.error.zero_()
    assert torch.allclose(estimate, torch.diag(torch.tensor([4.0, 0, 0, 0, 0], dtype=torch.float64)), atol=1e-9)


@pytest.mark.parametrize("form", FORMS)
def test_nothing_is_lost(form: str) -> None:
    """Estimates and mean errors add up to what was given."""
    given, got, run = torch.zeros(9, 7).double(), torch.zeros(9, 7).double(), Run(f"{form}(rank=1)", 3)
    for v in vectors(12, (9, 7)):
        given, got = given + v.mean(0), got + run.go(v)
    assert torch.allclose(got + run.memory.error.mean(0), given, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("shape", [(5,), (3, 1), (4, 4), (0,)])
def test_vectors_and_small_matrices_are_averaged_as_they_are(form: str, shape: tuple[int, ...]) -> None:
    run = Run(f"{form}(rank=2)", 3)
    for v in vectors(2, shape):
        assert torch.allclose(run.go(v), v.mean(0), rtol=1e-14, atol=1e-15)
    assert not run.memory.error.any() and run.memory.right.numel() == 0


@pytest.mark.parametrize("form", FORMS)
def test_no_theorem(form: str) -> None:
    with pytest.raises(NoTheorem, match="no theorem is known for .*give an explicit step"):
        GD(cast(Any, parse(form))).settled(hand())
