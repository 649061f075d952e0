"""Low rank and symmetric matrices: power iteration, ATOMO, rank by eigenvalues, TopLEK; their laws by enumeration."""

from __future__ import annotations

import itertools
import math
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from by_hand import RUNTIMES, Course, distance, equal, method_of, problem_of, start
from laconic.compressors.atomo import Atomo, probabilities
from laconic.compressors.power_iteration import PowerIteration, Subspace
from laconic.compressors.rank import RandomRank, Rank
from laconic.compressors.symmetric_rank import SymmetricRank
from laconic.compressors.topk import TopK
from laconic.compressors.toplek import TopLEK
from laconic.core.compressor import Contractive, Unbiased
from laconic.core.keys import Keys
from laconic.core.message import CountIn, Message
from laconic.core.problem import Block
from laconic.core.rows import svec_to_matrix
from laconic.core.spec import parse
from laconic.core.state import Placement
from laconic.runtime.local import Local
from sending import keys_of, send

F64 = torch.float64
DTYPES = [torch.float64, torch.float32, torch.bfloat16]
PURE: list[Any] = [Atomo(1), Atomo(2), SymmetricRank(1), SymmetricRank(2), TopLEK(3), TopLEK(0.5), PowerIteration(1)]


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).standard_normal(shape))


def squares(v: Tensor) -> Tensor:
    return v.double().flatten(1).square().sum(1)


def with_spectrum(sigma: list[float], rows: int, columns: int, seed: int = 0) -> Tensor:
    size = len(sigma)
    u, w = (torch.linalg.qr(normal(side, size, seed=seed + side)).Q for side in (rows, columns))
    return (u * torch.tensor(sigma, dtype=F64)) @ w.T


def svec(matrix: Tensor) -> Tensor:
    i, j = torch.triu_indices(*matrix.shape)
    return torch.where(i == j, matrix[i, j], matrix[i, j] * math.sqrt(2.0))


# ---- what holds of all of them ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("compressor", PURE, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(1,), (2,), (28,), (6, 7), (1, 9), (4, 3, 5)])
def test_bytes_meaning_and_company(compressor: Any, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    """Bytes give back what was sent; a row is the same alone; the input stays; zeros arrive as zeros."""
    n, d = 5, math.prod(shape)
    v, keys = normal(n, *shape, seed=3).to(dtype), keys_of(n, 4)
    v[2] = -0.0
    v[3].view(-1)[1:] = 0.0
    before, message = v.clone(), compressor.compress(v, keys)
    out = send(compressor, v, keys)
    assert torch.equal(v, before) and out.shape == v.shape and out.dtype == dtype and not out[2].any()
    assert torch.equal(out, compressor.decode(message, shape, dtype, keys).dense())
    assert (message.nbytes <= 4 * d * dtype.itemsize + 128).all() and len(message.pack()) == message.nbytes.sum()
    for row in range(n):
        assert torch.equal(send(compressor, v[row : row + 1], keys.at([row]))[0], out[row])
        one = compressor.decode(message.at(row, row + 1), shape, dtype, keys.at([row]))
        assert torch.equal(one.dense()[0], out[row])
    assert send(compressor, v[:0], keys.at([])).shape == (0, *shape)
    turned = v.transpose(0, -1).contiguous().transpose(0, -1)  # as it lies in memory matters to LAPACK
    assert torch.equal(send(compressor, turned, keys), out)


@pytest.mark.parametrize("compressor", [*PURE, Rank(2), RandomRank(2)], ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_huge_tiny_and_broken_numbers(compressor: Any, dtype: torch.dtype) -> None:
    """Near overflow and in the range of denormals all is finite; what is not finite spoils its own row alone."""
    v, info, keys = normal(3, 6, 6, seed=1).to(dtype), torch.finfo(dtype), keys_of(3)
    v /= v.abs().amax((1, 2), keepdim=True)
    plain = send(compressor, v, keys).double()
    for scale in (0.01 * info.max, info.tiny):
        scaled = send(compressor, v * scale, keys)
        assert torch.isfinite(scaled).all()
        error = (scaled.double() / scale - plain).abs().max()
        assert error <= 64 * info.eps  # the smallest normal number has eps of itself as its unit
    v[1, 2, 3] = math.inf
    shape = tuple(v.shape[1:])
    codes = compressor.codes(v, keys)
    out = compressor.decode(Message(compressor.schema(shape, dtype, keys), codes, 3), shape, dtype, keys).dense()
    assert torch.equal(out[::2].double(), plain[::2]) and not torch.isfinite(out[1]).all()


@pytest.mark.parametrize("compressor", PURE, ids=str)
def test_any_values_mean_something(compressor: Any) -> None:
    """Any bit patterns, NaN and infinities among them, and any number of them, also one that nobody sends."""
    keys, shape, d, rng = keys_of(1), (5, 11), 55, np.random.default_rng(0)
    schema = compressor.schema(shape, F64, keys)
    counted = isinstance(schema[-1].count, CountIn)
    for number in range(schema[-1].count.most + 1 if counted else 20):
        codes = [torch.from_numpy(rng.integers(-(2**63), 2**63, d)).view(F64) for _ in schema]
        codes = [code[:number] if counted else code[: slot.count] for code, slot in zip(codes, schema, strict=True)]
        if counted:
            codes[0] = torch.tensor([number])
        if isinstance(compressor, TopLEK):
            codes[1] = torch.arange(number)
        sent = Message(schema, tuple(codes), 1)
        heard = Message.unpack(sent.pack(), sent.nbytes, schema)
        assert compressor.decode(heard, shape, F64, keys).dense().shape == (1, *shape)
    if isinstance(compressor, Atomo):
        values = torch.arange(33, dtype=F64)  # two triples of 5 + 11 values, and one more
        out = compressor.decode(Message(schema, (torch.tensor([33]), values), 1), shape, F64, keys).dense()[0]
        assert torch.equal(out, torch.outer(values[:5], values[5:16]) + torch.outer(values[16:21], values[21:32]))


# ---- power iteration -------------------------------------------------------------------------------------------------


def advanced(compressor: PowerIteration, v: Tensor, keys: Keys, state: Any) -> tuple[Tensor, Any]:
    """What arrives of a message from a state, and the next state."""
    shape = tuple(v.shape[1:])
    schema = compressor.schema(shape, v.dtype, keys)
    codes, state = compressor.advance(v, keys, state)
    sent = Message(schema, codes, v.shape[0])
    heard = Message.unpack(sent.pack(), sent.nbytes, schema)
    return compressor.decode(heard, shape, v.dtype, keys).dense(), state


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_power_iteration_is_the_projection_of_its_definition(rank: int) -> None:
    """M -> P P' M with any orthonormal P of the range of M Q; then Q = M' P."""
    n, rows, columns = 3, 8, 9
    compressor, v, keys = PowerIteration(rank), normal(n, rows, columns), keys_of(n)
    state = compressor.start((rows, columns), F64, keys)
    assert isinstance(state, Subspace) and state.right.shape == (n, columns, rank)
    assert not torch.equal(state.right[0], state.right[1])  # every worker draws for itself
    right = state.right.clone()
    for step in range(4):
        out, state = advanced(compressor, v, keys_of(n, step), state)
        left = torch.linalg.qr(v @ right).Q
        expected = left @ (left.transpose(1, 2) @ v)
        assert torch.allclose(out, expected, rtol=1e-11, atol=1e-13)
        right = v.transpose(1, 2) @ left
        gap = torch.linalg.qr(right).Q @ torch.linalg.qr(right).Q.mT - (
            torch.linalg.qr(state.right).Q @ torch.linalg.qr(state.right).Q.mT
        )
        assert float(gap.abs().max()) < 1e-11  # the same subspace
    assert (compressor.compress(v, keys).nbytes == 8 * rank * (rows + columns)).all()
    first = compressor.start((rows, columns), F64, keys)
    assert torch.equal(send(compressor, v, keys), advanced(compressor, v, keys, first)[0])


def test_power_iteration_never_expands_and_comes_to_the_best_approximation() -> None:
    v, keys = normal(4, 12, 10, seed=5), keys_of(4)
    compressor: Any = PowerIteration(2)
    state = compressor.start((12, 10), F64, keys)
    best, energy, errors = squares(v - send(Rank(2), v, keys)), squares(v), []
    for step in range(400):
        out, state = advanced(compressor, v, keys_of(4, step), state)
        errors.append(squares(v - out))
        assert (squares(out) <= energy * (1 + 1e-14)).all() and (errors[-1] <= energy * (1 + 1e-14)).all()
        assert torch.allclose(squares(out) + errors[-1], energy, rtol=1e-12)  # a projection
    assert (errors[0] > 1.02 * best).all() and torch.allclose(errors[-1], best, rtol=1e-6)
    assert all((after <= before * (1 + 1e-12)).all() for before, after in itertools.pairwise(errors))  # monotone
    assert compressor.claim(120, 4) is None


def test_a_first_message_keeps_a_share_of_flat_spectra() -> None:
    """Gaussian Q: r / min(rows, columns) for orthogonal matrices, whatever is drawn; more on average for others."""
    flat = torch.linalg.qr(normal(9, 9)).Q.expand(5, 9, 9)
    assert torch.allclose(squares(flat - send(PowerIteration(2), flat, keys_of(5))), torch.tensor(7.0, dtype=F64))
    v = with_spectrum([3.0, 2.0, 1.0, 1.0, 0.5], 5, 8).expand(300, 5, 8)
    error = squares(v - send(PowerIteration(1), v, keys_of(300)))
    assert float(error.mean()) + 5 * float(error.std()) / math.sqrt(300) < (1 - 1 / 5) * float(squares(v[:1])[0])


def test_a_matrix_that_turns_away_from_the_subspace_is_found_again() -> None:
    """M Q = 0: without a new draw nothing would be sent, and never again. Zeros lose nothing either."""
    compressor = PowerIteration(2)
    first, second = torch.zeros(2, 1, 8, 9, dtype=F64).unbind(0)
    first[0, :4, :4], second[0, 4:, 4:] = normal(4, 4), normal(4, 5)
    keys = keys_of(1)
    _, state = advanced(compressor, first, keys, compressor.start((8, 9), F64, keys))
    assert not (second[0] @ state.right[0]).any()
    for step, v in enumerate((second, first, torch.zeros_like(first), second)):
        out, state = advanced(compressor, v, keys_of(1, step), state)
        left = torch.linalg.matrix_rank(out[0]).item()
        assert left == (2 if v.any() else 0) and torch.isfinite(state.right).all() and state.right.any(1).all()
        assert not v.any() or float(squares(v - out)[0]) < 0.95 * float(squares(v)[0])
    again = advanced(compressor, second, keys_of(1, 9), Subspace(torch.zeros(1, 9, 2, dtype=F64)))
    assert torch.equal(
        again[0], advanced(compressor, second, keys_of(1, 9), Subspace(torch.zeros(1, 9, 2, dtype=F64)))[0]
    )
    other = advanced(compressor, second, keys_of(1, 10), Subspace(torch.zeros(1, 9, 2, dtype=F64)))
    assert not torch.equal(again[0], other[0])  # redrawn by the step's address


def test_a_matrix_of_smaller_rank_is_sent_exactly() -> None:
    v = (normal(2, 9, 1) @ normal(2, 1, 9)).expand(2, 9, 9)
    compressor, keys = PowerIteration(3), keys_of(2)
    state = compressor.start((9, 9), F64, keys)
    for step in range(3):
        out, state = advanced(compressor, v, keys_of(2, step), state)
        assert torch.allclose(out, v, rtol=1e-11, atol=1e-13) and state.right.any(1).all()


@pytest.mark.parametrize("name", [name for name in RUNTIMES if name != "plain"])
def test_the_subspaces_are_the_links_and_the_same_everywhere(name: str) -> None:
    """In a mechanism, on matrices: one block or many, as objects or as bytes; and only matrices have them."""
    mechanism: Any = parse("ef21(power_iteration(rank=1))")
    for shape in ((9, 7), (5,)):
        texts = [_rounds(mechanism, make, shape) for make in (RUNTIMES[name](5, 1), Local(5, seed=1))]
        (estimates, leaves), (expected, kept) = texts
        assert all(equal(a, b) for a, b in zip(estimates, expected, strict=True))
        assert equal(leaves, kept) and leaves.numel() == (5 * 7 if len(shape) == 2 else 0)


def _rounds(mechanism: Any, runtime: Local, shape: tuple[int, ...]) -> tuple[list[Tensor], Tensor]:
    estimates, memories = [], []
    for step in range(4):
        v = torch.from_numpy(np.random.default_rng(step).standard_normal((runtime.n, *shape)))
        texts = []
        for party, link in enumerate(runtime.links):
            link.begin(step)
            own = v[link.block.low : link.block.high].clone()
            texts.append(mechanism.exchange(own, memories[party], link) if step else mechanism.init(own, link))
        replies = runtime.drive(*texts)
        memories = [memory for _, memory in replies]
        estimates.append(replies[0][0].clone())
    leaves = [link.compressor_leaves() for link in runtime.links]
    assert all(leaf.placement is Placement.WORKER for part in leaves for leaf in part.values())
    return estimates, torch.cat(
        [torch.zeros(0), *(leaf.tensor.reshape(-1) for part in leaves for leaf in part.values())]
    )


# ---- ATOMO -----------------------------------------------------------------------------------------------------------

SPECTRA = [[1.0] * 4, [8.0, 1.0, 1.0, 0.5], [5.0, 4.0, 3.0, 2.0], [9.0, 8.0, 1e-3, 1e-6], [3.0, 2.0, 0.0, 0.0], [7.0]]


def by_bisection(sigma: list[float], rank: int) -> list[float]:
    """p_j = min(1, c sigma_j) with the sum `rank`, or all ones."""
    low, high = 0.0, 1e12
    for _ in range(200):
        c = math.sqrt(low * high) if low else high / 2
        low, high = (c, high) if sum(min(1.0, c * s) for s in sigma) < rank else (low, c)
    return [min(1.0, high * s) for s in sigma]


@pytest.mark.parametrize("rank", [1, 2])
@pytest.mark.parametrize("sigma", SPECTRA, ids=str)
def test_atomo_over_all_coins(monkeypatch: pytest.MonkeyPatch, sigma: list[float], rank: int) -> None:
    """Mean and variance over the 2^4 outcomes with their probabilities, and the size of each message."""
    v, size = with_spectrum(sigma, 6, 5, seed=len(sigma)), 5
    compressor: Any = Atomo(rank)
    p = (by_bisection(sigma, rank) if len(sigma) > rank else [1.0] * len(sigma)) + [0.0] * (size - len(sigma))
    outcomes = list(itertools.product([0, 1], repeat=size))
    coins = torch.tensor([[0.0 if one else 1.0 - 2.0**-53 for one in outcome] for outcome in outcomes], dtype=F64)
    monkeypatch.setattr(Keys, "uniform", lambda self, count: coins[:, :count])
    chance = torch.tensor(
        [math.prod(q if one else 1 - q for q, one in zip(p, outcome, strict=True)) for outcome in outcomes], dtype=F64
    )
    some = chance > 0
    many = v.expand(len(outcomes), 6, 5)
    out, sizes = send(compressor, many, keys_of(len(outcomes))), compressor.compress(many, keys_of(len(outcomes)))
    assert float(chance.sum()) == pytest.approx(1.0, rel=1e-12)
    mean = (chance[:, None, None] * out)[some].sum(0)
    assert torch.allclose(mean, v, rtol=1e-9, atol=1e-8 if min(sigma) < 1e-2 else 1e-12)
    variance = float((chance * squares(out - v))[some].sum())
    expected = sum(s * s * (1 / q - 1) for s, q in zip(sigma, p, strict=False) if s)
    square = sum(s * s for s in sigma)
    assert variance == pytest.approx(expected, rel=1e-9, abs=1e-9 * square)
    omega = compressor.claim(30, 1).omega
    assert omega == max(0.0, 5 / rank - 1.0) and variance <= omega * square * (1 + 1e-12)
    for outcome, nbytes in zip(outcomes, sizes.nbytes.tolist(), strict=True):
        count = sum(one for one, q in zip(outcome, p, strict=True) if q)
        assert chance[outcomes.index(outcome)] == 0 or nbytes == -(-(5 + 64 * min(30, 11 * count)) // 8)


def test_atomo_attains_its_claim_at_flat_spectra_and_nowhere_else() -> None:
    """Of an orthogonal matrix every triple comes with probability r / side: the variance is the claim's."""
    for side, rank in ((5, 1), (6, 2), (9, 4)):
        p = probabilities(torch.ones(side, dtype=F64), rank)
        assert torch.allclose(p, torch.full((side,), rank / side, dtype=F64), rtol=1e-15)
        omega = Atomo(rank).claim(side * side, 3).omega
        assert float((1 / p - 1).sum()) == pytest.approx(omega * side, rel=1e-14)
    sigma = torch.tensor([3.0, 1.0, 1.0], dtype=F64)
    p = probabilities(sigma, 1)
    assert float((sigma**2 * (1 / p - 1)).sum()) < (3 - 1) * 11.0 * 0.7
    assert torch.equal(probabilities(torch.zeros(3, dtype=F64), 2), torch.ones(3, dtype=F64))


def test_the_probabilities_of_atomo_are_the_clipped_ones() -> None:
    rng = np.random.default_rng(2)
    for rank in (1, 2, 5):
        for _ in range(30):
            sigma = sorted((rng.standard_normal(7) ** 4).tolist(), reverse=True)
            p = probabilities(torch.tensor(sigma, dtype=F64), rank)
            assert p.tolist() == pytest.approx(by_bisection(sigma, rank), rel=1e-9, abs=1e-300)
            assert float(p.sum()) == pytest.approx(rank, rel=1e-12)


def test_atomo_sends_r_triples_on_average() -> None:
    v = normal(1, 20, 20).expand(400, 20, 20)
    values = Atomo(3).compress(v, keys_of(400)).codes[0].double() / 40
    assert float(values.mean()) == pytest.approx(3.0, abs=5 * float(values.std()) / 20)
    assert Atomo(3).claim(3, 1) == Unbiased(0.0) and Atomo(2).claim(100, 1) == Unbiased(4.0)


# ---- symmetric matrices ----------------------------------------------------------------------------------------------


def symmetric(eigenvalues: list[float], seed: int = 0) -> Tensor:
    q = torch.linalg.qr(normal(len(eigenvalues), len(eigenvalues), seed=seed)).Q
    return (q * torch.tensor(eigenvalues, dtype=F64)) @ q.T


@pytest.mark.parametrize("rank", [1, 2, 3])
@pytest.mark.parametrize(
    "eigenvalues", [[5.0, -4.0, 3.0, 2.0, -1.0, 0.5, 0.1, 0.0], [1.0, -2.0, 3.0, -4.0, 5.0, 6.0, 7.0]]
)
def test_symmetric_rank_is_the_best_approximation(eigenvalues: list[float], rank: int) -> None:
    side = len(eigenvalues)
    matrix = symmetric(eigenvalues)
    v, compressor = svec(matrix)[None], SymmetricRank(rank)
    out, message = send(compressor, v, keys_of(1)), compressor.compress(v, keys_of(1))
    tail = sum(sorted(value**2 for value in eigenvalues)[: side - rank])
    assert float(squares(v - out)[0]) == pytest.approx(tail, rel=1e-12)
    back = svec_to_matrix(out[0], side)
    left, value, right = torch.linalg.svd(matrix)
    assert torch.allclose(back, (left[:, :rank] * value[:rank]) @ right[:rank], rtol=1e-10, atol=1e-12)
    assert message.nbytes.tolist() == [8 * rank * (side + 1)]
    claim = compressor.claim(v.shape[1], 3)
    assert claim == Contractive(rank / side) and compressor.share(v.shape[1], 3) == rank * (side + 1) / v.shape[1]
    assert tail <= (1 - claim.alpha) * sum(value**2 for value in eigenvalues)


def test_symmetric_rank_attains_its_claim_and_is_as_cheap_as_can_be() -> None:
    for side, rank in ((4, 1), (7, 2), (9, 4)):
        v = svec(symmetric([(-1.0) ** j for j in range(side)]))[None]
        error = float(squares(v - send(SymmetricRank(rank), v, keys_of(1)))[0])
        assert error == pytest.approx(side - rank, rel=1e-12)
        assert SymmetricRank(rank).claim(side * (side + 1) // 2, 1) == Contractive(rank / side)
    for d in (1, 2, 3, 4, 5, 7, 27, 29):  # no triangle, or one of side 2 (3 values, as many as a pair)
        v = normal(2, d)
        assert torch.equal(send(SymmetricRank(1), v, keys_of(2)), v)
        assert SymmetricRank(1).claim(d, 1) == Contractive(1.0) and SymmetricRank(1).share(d, 1) == 1.0
    assert SymmetricRank(3).claim(21, 1) == Contractive(1.0)  # side 6: 3 pairs are 21 values


@pytest.mark.parametrize(("spec", "alpha"), [("symmetric_rank(rank=2)", 2 / 30), ("toplek(k=20)", 20 / 465)])
def test_inside_fednl(spec: str, alpha: float) -> None:
    """What is learned is the compressed change of the Hessians, at its bytes and with the learning rate 1."""
    course = start(f"fednl({spec})", "logistic(data='breast_cancer', l2=0.01, workers=5)")
    method: Any = course.method
    assert course.oracles[0].d == 30 and method.learning_rate == 1.0
    assert method.compressor.claim(465, 5) == Contractive(alpha)
    for _ in range(3):
        x, shift, before = course.x, course.state.shift.clone(), course.runtime.ledger.uplink.copy()
        course.go()
        change = course.oracles[0].hessians(x).clone() - shift
        learned = course.state.shift - shift
        assert torch.allclose(course.state.hessian, course.state.shift.mean(0), rtol=1e-12, atol=1e-14)
        if isinstance(method.compressor, SymmetricRank):
            values = torch.linalg.eigvalsh(torch.stack([svec_to_matrix(row, 30) for row in change]))
            tail = values.square().sort(1).values[:, :28].sum(1)
            assert torch.allclose(squares(change - learned), tail, rtol=1e-9, atol=1e-20)
            assert (course.runtime.ledger.uplink - before == 8 * (30 + 1 + 2 * 31)).all()
        else:
            kept = learned.abs() > 1e-12
            assert (kept.sum(1) <= 20).all() and torch.allclose(learned[kept], change[kept], rtol=1e-9, atol=1e-14)


def test_fednl_with_symmetric_rank_halves_the_squared_distance() -> None:
    problem = problem_of("logistic(data='breast_cancer', l2=0.1, workers=4)")
    solution = problem.solution()
    assert solution is not None
    oracles, direction = problem.host(Block.whole(4)), normal(*solution.x.shape)
    oracles.start = lambda: solution.x + 0.3 * direction / direction.norm()
    for spec in ("fednl(symmetric_rank(rank=2))", "fednl(toplek(k=60))", "fednl_pp(symmetric_rank(rank=2), cohort=4)"):
        course = Course(method_of(spec, problem), problem, RUNTIMES["plain"](4, 0), [oracles])
        distances = [distance(course)]
        while distances[-1] > 1e-8 and len(distances) < 30:
            distances.append(distance(course.go()))
        assert distances[-1] <= 1e-8
        assert all(after**2 <= 0.5 * before**2 for before, after in itertools.pairwise(distances))


# ---- TopLEK ----------------------------------------------------------------------------------------------------------


def test_toplek_has_exactly_the_error_of_topks_worst_case(monkeypatch: pytest.MonkeyPatch) -> None:
    """For every x: the coin turns at the chance of m by exact arithmetic, and the error is (1 - k / d) ||x||^2."""
    rng = np.random.default_rng(0)
    vectors = [rng.integers(-9, 10, d).tolist() for d in (1, 2, 5, 8, 8, 13)]
    vectors += [[3] * 6, [0] * 5, [0, 0, 7, 0, 0], [1, -1, 1, 1], [100, 1, 1, 1, 1, 1], [2, 2, -2, 1, 1, 0]]
    for x, k in [(values, k) for values in vectors for k in range(1, len(values) + 1)]:
        d, energies = len(x), [Fraction(value * value) for value in sorted(map(abs, x), reverse=True)]
        wanted, sums = Fraction(k, d) * sum(energies), [sum(energies[:m]) for m in range(d + 1)]
        m = next(m for m in range(d + 1) if sums[m] >= wanted)
        assert m <= k
        chance = (wanted - sums[m - 1]) / (sums[m] - sums[m - 1]) if m else Fraction(0)
        error = Fraction(0)
        for count, weight in ((m, chance), (m - 1, 1 - chance)) if m else ((0, Fraction(1)),):
            if weight:
                inside = float(chance) * (1 - 1e-12 if count == m else 1 + 1e-12)
                monkeypatch.setattr(Keys, "uniform", lambda self, n, u=inside: torch.full((self.rows, n), u, dtype=F64))
                v = torch.tensor([x], dtype=F64)
                out = send(TopLEK(k), v, keys_of(1))
                best = send(TopK(count), v, keys_of(1)) if count else torch.zeros_like(v)
                assert torch.equal(out, best), (x, k, count)
                error += weight * sum(Fraction(e) ** 2 for e in (v - out)[0].tolist())
        assert error == (1 - Fraction(k, d)) * sum(energies)


def test_toplek_draws_for_every_worker_and_saves_bytes() -> None:
    n, d, k = 4000, 8, 3
    v = torch.tensor([[4.0, 0.0, 0.0, -2.0, 1.0, 1.0, 1.0, 1.0]], dtype=F64).expand(n, d)
    counts = TopLEK(k).compress(v, keys_of(n)).codes[0].double()
    share = (3 / 8 * 24) / 16  # of ||x||^2 = 24 three eighths are 9, and the largest coordinate has 16
    assert set(counts.tolist()) == {0.0, 1.0}
    assert float(counts.mean()) == pytest.approx(share, abs=5 * math.sqrt(share * (1 - share) / n))
    assert torch.equal(send(TopLEK(8), v[:3], keys_of(3)), v[:3])  # k = d: everything
    tiny = torch.tensor([[1.0, 1e-200, 0.0]], dtype=F64)
    assert torch.equal(send(TopLEK(3), tiny, keys_of(1)), tiny)
    assert TopLEK(k).claim(d, 2) == Contractive(3 / 8) and TopLEK(k).share(d, 2) == 3 / 8
    assert parse("toplek(k=3) | natural").claim(d, 2) == Contractive(3 / 8 * 7 / 8)  # type: ignore[attr-defined]
