"""Compressors made of compressors, low rank, windows and rotations: their laws by enumeration."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from scipy.linalg import hadamard
from torch import Tensor

from laconic.compressors import _rotation
from laconic.compressors.drive import Drive
from laconic.compressors.induced import Induced
from laconic.compressors.mean_of import MeanOf
from laconic.compressors.natural import Natural
from laconic.compressors.permk import PermK
from laconic.compressors.randk import RandK, SharedRandK
from laconic.compressors.randseqk import RandSeqK
from laconic.compressors.rank import RandomRank, Rank
from laconic.compressors.scaled import Scaled
from laconic.compressors.topk import TopK
from laconic.core.compressor import AB, Compressor, Contractive, Decoded, Dense, Sparse, Unbiased
from laconic.core.keys import Keys
from laconic.core.message import CountIn, Message, Schema, Slot
from laconic.core.spec import parse
from laconic.kernels.hadamard import BLOCK, transform
from laconic.wire.coding import Bits, Subset
from planted import RoundRobin

ROUNDING = 1e-13
F64 = torch.float64


def keys_of(n: int, step: int = 0) -> Keys:
    return Keys(11, step, "/up0", np.arange(n), n)


def send(compressor: Compressor, v: Tensor, keys: Keys) -> Tensor:
    """What arrives of v (rows, *shape) after it was bytes, dense."""
    shape, message = tuple(v.shape[1:]), compressor.message(v, keys)
    heard = Message.unpack(message.pack(), message.nbytes, compressor.schema(shape, v.dtype, keys))
    return compressor.decode(heard, shape, v.dtype, keys).dense()


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).standard_normal(shape))


def wholes(*shape: int, seed: int = 0) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).integers(-9, 10, shape).astype(float))


def squares(v: Tensor) -> Tensor:
    return v.flatten(1).square().sum(1)


def nasty(d: int) -> Iterator[Tensor]:
    """Equal magnitudes, one spike, many scales, and nothing special."""
    signs = torch.from_numpy(np.random.default_rng(d).choice([-1.0, 1.0], d))
    yield signs
    yield torch.eye(d, dtype=F64)[-1] * -7.0
    yield 10.0 ** torch.arange(d, dtype=F64) * signs
    yield normal(d, seed=d)


@dataclass(frozen=True)
class Nonzero(Compressor):
    """What is not zero, and how much there is of it: a message that says its own counts."""

    name = "nonzero"
    layout = "a count in 16 bits, the indices, the values"

    def claim(self, d: int, n: int) -> Unbiased:
        return Unbiased(0.0)

    def schema(self, shape: tuple[int, ...], dtype: torch.dtype, keys: Keys) -> Schema:
        d = math.prod(shape)
        count = CountIn(0, d)
        return (
            Slot(Bits(16), torch.int16, 1),
            Slot(Subset(d), torch.int64, count),
            Slot(Bits(8 * dtype.itemsize), dtype, count),
        )

    def codes(self, v: Tensor, keys: Keys) -> tuple[Tensor, ...]:
        flat = v.reshape(v.shape[0], math.prod(v.shape[1:]))
        there = flat != 0
        return there.sum(1).to(torch.int16), there.nonzero()[:, 1].contiguous(), flat[there]

    def decode(self, message: Message, shape: tuple[int, ...], dtype: torch.dtype, keys: Keys) -> Decoded:
        return Sparse(message.codes[1], message.codes[2], message.offsets[1], shape)


SPECS: list[Any] = [
    parse("scaled(natural)"),
    Scaled(PermK()),
    Scaled(Nonzero()),
    Induced(TopK(2), RandK(3)),
    Induced(Nonzero(), Nonzero()),
    Induced(Scaled(RandK(1)), PermK()),
    Induced(Rank(1), Induced(TopK(1), MeanOf(Nonzero(), 2))),
    MeanOf(Nonzero(), 3),
    MeanOf(Induced(TopK(1), Natural()), 2),
    MeanOf(SharedRandK(0.3), 1),
    RandSeqK(3),
    Rank(1),
    Rank(2),
    RandomRank(1, oversampling=0, powers=0),
    RandomRank(2, oversampling=9, powers=2),
    Drive(),
]


@pytest.mark.parametrize("compressor", SPECS, ids=str)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("shape", [(1,), (9,), (5, 4), (4, 7, 2), (1, 6)])
def test_bytes_meaning_and_company(compressor: Compressor, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    """Bytes give back what was sent; a row is the same alone; the input stays; nothing at all is a message too."""
    n = 5
    v, keys = normal(n, *shape, seed=3).to(dtype), keys_of(n, 4)
    v[2] = 0.0
    v[3].view(-1)[1:] = 0.0
    before, message = v.clone(), compressor.compress(v, keys)
    out, buffer = send(compressor, v, keys), message.pack()
    assert torch.equal(v, before) and out.shape == v.shape and out.dtype == dtype and not out[2].any()
    assert torch.equal(out, compressor.decode(message, shape, dtype, keys).dense())
    assert len(buffer) == message.nbytes.sum()
    ends = np.cumsum(message.nbytes)
    for row in range(n):
        alone = compressor.compress(v[row : row + 1], keys.at([row]))
        assert alone.pack().tobytes() == buffer[ends[row] - message.nbytes[row] : ends[row]].tobytes()
        assert torch.equal(compressor.decode(alone, shape, dtype, keys.at([row])).dense()[0], out[row])
        one = compressor.decode(message.at(row, row + 1), shape, dtype, keys.at([row]))
        assert torch.equal(one.dense()[0], out[row])
    assert send(compressor, v[:0], keys.at([])).shape == (0, *shape)
    strided = torch.stack([v, v], -1)[..., 0]
    assert not strided.is_contiguous() and torch.equal(send(compressor, strided, keys), out)


# ---- scaled ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def every_support(monkeypatch: pytest.MonkeyPatch) -> Callable[[int, int], int]:
    """Row r of a batch gets support r of all k-subsets of 0..d-1; says how many there are."""

    def play(d: int, k: int) -> int:
        supports = np.array(list(itertools.combinations(range(d), k)))
        monkeypatch.setattr(Keys, "subsets", lambda self, d, k: supports[self.workers])
        return len(supports)

    return play


@pytest.mark.parametrize(("d", "k"), [(1, 1), (4, 1), (5, 2), (5, 4), (6, 3)])
def test_scaled_randk_contracts_by_exactly_alpha(every_support: Callable[[int, int], int], d: int, k: int) -> None:
    count = every_support(d, k)
    claim = Scaled(RandK(k)).claim(d, 3)
    assert claim.alpha == pytest.approx(k / d, rel=1e-15)
    for v in nasty(d):
        out = send(Scaled(RandK(k)), v.expand(count, d), keys_of(count))
        assert float(squares(out - v).mean()) == pytest.approx((1 - k / d) * float(v @ v), rel=1e-12, abs=1e-18)
        kept = out != 0
        assert torch.allclose(out[kept], v.expand(count, d)[kept], rtol=ROUNDING, atol=0)  # the unscaled mask


def test_scaled_is_the_message_of_the_compressor_inside() -> None:
    v, keys = normal(4, 9), keys_of(4)
    for inner, omega in ((Natural(), 0.125), (PermK(), 3.0), (RandK(2), 3.5)):
        outer = Scaled(inner)
        assert outer.claim(9, 4) == Contractive(1 / (1 + omega)) and outer.share(9, 4) == inner.share(9, 4)
        assert outer.compress(v, keys).pack().tobytes() == inner.compress(v, keys).pack().tobytes()
        assert torch.equal(send(outer, v, keys), send(inner, v, keys) * (1 / (1 + omega)))
        packed = outer.decode(outer.compress(v, keys), (9,), F64, keys)
        assert isinstance(packed, Dense if inner == Natural() else Sparse)


def test_what_the_compressors_take() -> None:
    for make in (Scaled, lambda c: Induced(TopK(1), c)):
        with pytest.raises(ValueError, match=r"=topk\(k=2\)\) : \w+ must be unbiased"):
            make(TopK(2))
    for make in (Scaled, MeanOf, lambda c: Induced(c, RandK(1)), lambda c: Induced(TopK(1), c)):
        with pytest.raises(ValueError, match=r"=round_robin\) : \w+ must be a compressor without a state$"):
            make(RoundRobin())


# ---- induced ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("d", "k1", "k2"), [(1, 1, 1), (4, 1, 1), (5, 2, 3), (6, 5, 2), (6, 1, 6)])
def test_induced_is_unbiased_with_omega_of_what_is_left(
    every_support: Callable[[int, int], int], d: int, k1: int, k2: int
) -> None:
    """Over all supports of RandK on TopK's residual; the claim is attained at equal magnitudes."""
    count = every_support(d, k2)
    compressor = Induced(TopK(k1), RandK(k2))
    claim = compressor.claim(d, 3)
    omega = d / k2 - 1
    assert isinstance(claim, Unbiased) and claim.omega == pytest.approx(omega * (1 - k1 / d), rel=1e-14)
    for v in nasty(d):
        left = v - send(TopK(k1), v[None], keys_of(1))[0]
        out = send(compressor, v.expand(count, d), keys_of(count))
        assert torch.allclose(out.mean(0), v, rtol=1e-12, atol=0)
        assert float(squares(out - v).mean()) == pytest.approx(omega * float(left @ left), rel=1e-9, abs=1e-18)
    signs = next(nasty(d))
    out = send(compressor, signs.expand(count, d), keys_of(count))
    assert float(squares(out - signs).mean()) == pytest.approx(claim.omega * d, rel=1e-12, abs=1e-18)


def test_induced_says_its_two_parts_in_two_streams() -> None:
    v, keys = normal(3, 8), keys_of(3)
    biased, unbiased = Scaled(RandK(3)), RandK(3)
    first, second = keys.scope("biased"), keys.scope("unbiased")
    kept = send(biased, v, first)
    assert torch.equal(send(Induced(biased, unbiased), v, keys), kept + send(unbiased, v - kept, second))
    assert (first.subsets(8, 3) != second.subsets(8, 3)).any()
    message = Induced(biased, unbiased).compress(v, keys)
    assert message.codes[0].tolist() == biased.codes(v, first)[0].tolist()
    assert (message.nbytes == 6 * 8).all()


def test_induced_with_a_joint_family(monkeypatch: pytest.MonkeyPatch) -> None:
    """One support for all: A' = omega (1 - alpha) is attained by one vector of equal magnitudes on all workers."""
    d, k, n = 5, 2, 3
    claim = Induced(TopK(1), SharedRandK(k)).claim(d, n)
    assert isinstance(claim, AB)
    assert dataclasses.astuple(claim) == pytest.approx((1.5 * 0.8, 0.0, 1.5 * 0.8), rel=1e-14)
    for a, tight in ((torch.ones(n, d, dtype=F64), True), (wholes(n, d), False)):
        total, error, supports = torch.zeros(d, dtype=F64), 0.0, list(itertools.combinations(range(d), k))
        for support in supports:
            monkeypatch.setattr(Keys, "subsets", lambda self, d, k, one=support: np.array([one] * self.rows))
            mean = send(Induced(TopK(1), SharedRandK(k)), a, keys_of(n)).mean(0)
            total += mean
            error += float(squares((mean - a.mean(0))[None])[0]) / len(supports)
        assert torch.allclose(total / len(supports), a.mean(0), rtol=1e-12, atol=1e-12)
        bound = claim.A * float(squares(a).mean())
        assert error <= bound * (1 + 1e-12) and (not tight or error == pytest.approx(bound, rel=1e-12))
    assert Induced(TopK(1), PermK()).claim(6, 3) == AB(1 - 1 / 6, 0.0, 2.0 * (1 - 1 / 6))


def test_induced_claims_nothing_where_nothing_is_known_of_the_biased_one() -> None:
    assert Induced(RandK(1), RandK(1)).claim(10, 3) is None  # omega = 9: not known to be contractive
    assert Induced(TopK(1), RandK(1)).share(10, 3) == pytest.approx(0.2)


# ---- mean_of ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("d", "k"), [(3, 1), (4, 2), (4, 3)])
def test_copies_divide_the_variance_exactly(monkeypatch: pytest.MonkeyPatch, d: int, k: int) -> None:
    """Over all pairs of supports of two copies, which draw from streams of their own."""
    supports = list(itertools.combinations(range(d), k))
    pairs = np.array(list(itertools.product(supports, supports)))
    monkeypatch.setattr(Keys, "subsets", lambda self, d, k: pairs[self.workers, int(self.stream[-1])])
    compressor = MeanOf(RandK(k), 2)
    assert compressor.claim(d, 1) == Unbiased((d / k - 1) / 2) and compressor.share(d, 1) == 2 * k / d
    for v in nasty(d):
        out = send(compressor, v.expand(len(pairs), d), keys_of(len(pairs)))
        assert torch.allclose(out.mean(0), v, rtol=1e-12, atol=0)
        expected = (d / k - 1) / 2 * float(v @ v)
        assert float(squares(out - v).mean()) == pytest.approx(expected, rel=1e-12, abs=0)


def test_copies_are_the_compressor_in_streams_of_their_own() -> None:
    v, keys = normal(4, 6), keys_of(4)
    copies = [send(RandK(2), v, keys.scope(f"copy{copy}")) for copy in range(3)]
    assert not torch.equal(copies[0], copies[1])
    assert torch.equal(send(MeanOf(RandK(2), 3), v, keys), (copies[0] + copies[1] + copies[2]) / 3)
    twelve = MeanOf(Natural(), 2).compress(v[:, :1], keys)
    assert (twelve.bits == 24).all() and (twelve.nbytes == 3).all()  # no padding between the copies


def test_claims_of_copies() -> None:
    assert MeanOf(TopK(2), 5).claim(8, 3) == Contractive(0.25)
    assert MeanOf(SharedRandK(2), 2).claim(8, 3) == AB(0.0, -1.5, 1.5)
    assert MeanOf(PermK(), 2).claim(8, 4) == AB(0.5, 0.5, 1.5)
    v = wholes(1, 8, seed=2).expand(4, 8)
    assert torch.equal(send(MeanOf(PermK(), 2), v, keys_of(4)).mean(0), v[0])  # A = B: equal vectors are exact


# ---- randseqk --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("d", "k"), [(d, k) for d in range(1, 7) for k in range(1, d + 1)])
def test_a_window_has_the_variance_of_randk(monkeypatch: pytest.MonkeyPatch, d: int, k: int) -> None:
    """Over all d starts."""
    assert RandSeqK(k).claim(d, 2) == Unbiased(d / k - 1)
    monkeypatch.setattr(Keys, "subsets", lambda self, d, k: self.workers[:, None])
    for v in nasty(d):
        out = send(RandSeqK(k), v.expand(d, d), keys_of(d))
        for start in range(d):
            window = [(start + j) % d for j in range(k)]
            expected = torch.zeros(d, dtype=F64)
            expected[window] = v[window] if k == d else v[window] * (d / k)
            assert torch.equal(out[start], expected)
        assert torch.allclose(out.mean(0), v, rtol=ROUNDING, atol=0)
        expected = (d / k - 1) * float(v @ v)
        assert float(squares(out - v).mean()) == pytest.approx(expected, rel=ROUNDING, abs=0)


def test_windows_start_everywhere_alike_and_travel_without_indices() -> None:
    n, d = 6000, 6
    v = torch.ones(n, d, dtype=F64)
    message = RandSeqK(2).compress(v, keys_of(n))
    assert (message.nbytes == 16).all()
    owned = send(RandSeqK(2), v, keys_of(n)) != 0
    starts = np.array([int(row.nonzero()[0, 0]) if not (row[0] and row[-1]) else d - 1 for row in owned])
    counts = np.bincount(starts, minlength=d)
    assert ((counts - n / d) ** 2).sum() / (n / d) < 25  # chi square with 5 degrees of freedom: p = 1e-4


# ---- low rank --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(5, 4), (4, 9), (8, 8), (6, 3, 4), (30, 7)])
@pytest.mark.parametrize("rank", [1, 2, 3])
def test_rank_is_the_best_approximation(shape: tuple[int, ...], rank: int) -> None:
    """Its error is the tail of the spectrum (Eckart and Young), and its size that of the factors."""
    v = normal(3, *shape, seed=rank)
    rows, columns = shape[0], math.prod(shape[1:])
    out, message = send(Rank(rank), v, keys_of(3)), Rank(rank).compress(v, keys_of(3))
    sigma = np.linalg.svd(v.reshape(3, rows, columns).numpy(), compute_uv=False)
    small = rank * (rows + columns) >= rows * columns
    tail = np.zeros(3) if small else (sigma[:, rank:] ** 2).sum(1)
    np.testing.assert_allclose(squares(out - v).numpy(), tail, rtol=1e-9, atol=1e-25)
    assert (message.nbytes == 8 * (rows * columns if small else rank * (rows + columns))).all()
    assert torch.equal(out, v) or not small
    alpha = Rank(rank).claim(rows * columns, 3).alpha
    assert alpha <= min(1.0, rank / min(rows, columns)) and (tail <= (1 - alpha) * (sigma**2).sum(1) + 1e-12).all()


@pytest.mark.parametrize(("size", "rank"), [(4, 1), (6, 2), (9, 4)])
def test_rank_attains_its_claim_at_orthogonal_matrices(size: int, rank: int) -> None:
    v = torch.linalg.qr(normal(size, size)).Q[None]
    error = float(squares(v - send(Rank(rank), v, keys_of(1)))[0])
    claim = Rank(rank).claim(size * size, 1)
    assert claim == Contractive(rank / size)
    assert error == pytest.approx((1 - claim.alpha) * size, rel=1e-12)


def test_low_rank_of_what_is_no_matrix_or_hurts() -> None:
    for compressor in (Rank(2), RandomRank(2)):
        assert compressor.claim(1, 1) == compressor.claim(3, 1) == Contractive(1.0)
        vectors = normal(2, 50)
        assert torch.equal(send(compressor, vectors, keys_of(2)), vectors)
        assert torch.equal(send(compressor, vectors.view(2, 1, 50), keys_of(2)), vectors.view(2, 1, 50))
        v = normal(1, 7, 2) @ normal(4, 2, 8)  # of rank 2
        for scale in (1.0, 1e-300, 1e300):
            assert torch.allclose(send(compressor, v * scale, keys_of(4)) / scale, v, rtol=1e-6, atol=1e-9)
        tiny = v * 1e-320  # denormal: what is wrong is at most some units of them
        assert float((send(compressor, tiny, keys_of(4)) - tiny).abs().max()) < torch.finfo(F64).tiny / 1e6
        v[1, 2, 3], v[2, 0, 0] = math.nan, math.inf
        out = send(compressor, v, keys_of(4))
        assert out[1:3].isnan().all() and torch.allclose(out[::3], v[::3], rtol=1e-9)


def test_the_signs_of_factors_are_settled() -> None:
    right = Rank(2).codes(normal(6, 9, 8), keys_of(6))[1].view(6, 8, 2)
    largest = right.gather(1, right.abs().argmax(1, keepdim=True))
    assert (largest > 0).all() and (right < 0).any()
    assert torch.equal(send(Rank(2), -normal(6, 9, 8), keys_of(6)), -send(Rank(2), normal(6, 9, 8), keys_of(6)))


@pytest.mark.parametrize(("rank", "oversampling", "powers"), [(1, 0, 0), (2, 0, 1), (2, 3, 0), (1, 2, 2)])
def test_random_rank_attains_its_claim_at_flat_spectra(rank: int, oversampling: int, powers: int) -> None:
    """All that is found of an orthogonal matrix is r of its directions, whatever is drawn."""
    v = torch.linalg.qr(normal(9, 9)).Q.expand(20, 9, 9)
    compressor = RandomRank(rank, oversampling, powers)
    assert compressor.claim(81, 20) == Contractive(rank / 9)
    kept = send(compressor, v, keys_of(20))
    assert torch.allclose(squares(v - kept), torch.full((20,), 9.0 - rank, dtype=F64), rtol=1e-10)
    assert not torch.allclose(kept[0], kept[1])  # every worker draws for itself


def test_random_rank_contracts_on_average_and_powers_help() -> None:
    for spectrum in (
        torch.arange(1.0, 7.0, dtype=F64),
        2.0 ** torch.arange(6, dtype=F64),
        torch.tensor([1.0] * 5 + [9.0]),
    ):
        u, w = torch.linalg.qr(normal(6, 6, seed=1)).Q, torch.linalg.qr(normal(10, 6, seed=2)).Q
        v = ((u * spectrum.to(F64)) @ w.T).expand(500, 6, 10)
        errors = [squares(v - send(RandomRank(2, 0, powers), v, keys_of(500))) for powers in (0, 1, 4)]
        total = float((spectrum**2).sum())
        assert float(errors[0].mean()) < (1 - 2 / 6) * total - 5 * float(errors[0].std()) / math.sqrt(500)
        means = [float(error.mean()) for error in errors]
        assert means[0] > means[1] > means[2]
        best = float(squares(v[:1] - send(Rank(2), v[:1], keys_of(1)))[0])
        assert all(float(error.min()) >= best * (1 - 1e-9) for error in errors)


# ---- rotations -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("d", [1, 2, 4, 64, 512])
def test_the_transform_is_the_product_with_hadamards_matrix(d: int) -> None:
    v = wholes(3, d)
    assert torch.equal(transform(v.clone()), v @ torch.from_numpy(hadamard(d).astype(float)))  # whole numbers: exact


def test_a_transform_beyond_one_block() -> None:
    d = 8 * BLOCK
    v = wholes(3, d, seed=1)
    expected = v.numpy().copy()
    half = 1
    while half < d:
        pairs = expected.reshape(3, -1, 2, half)
        expected = np.stack([pairs[:, :, 0] + pairs[:, :, 1], pairs[:, :, 0] - pairs[:, :, 1]], 2).reshape(3, d)
        half *= 2
    out = transform(v.clone())
    assert np.array_equal(out.numpy(), expected)
    assert torch.equal(transform(out), v * d)
    assert transform(v[:0].clone()).shape == (0, d)


@pytest.mark.parametrize("wrong", [torch.ones(2, 3, dtype=F64), torch.ones(2, 4)])
def test_what_a_transform_takes(wrong: Tensor) -> None:
    with pytest.raises(ValueError, match=r"2\^m values of float64"):
        transform(wrong)


def by_hand(v: np.ndarray, signs: np.ndarray) -> np.ndarray:
    """DRIVE from its definition, with matrices."""
    p = len(signs)
    rotation = hadamard(p) / math.sqrt(p) * signs
    rotated = rotation @ np.concatenate([v, np.zeros(p - len(v))])
    bits = np.where(rotated < -1e-12 * np.abs(v).max(), -1.0, 1.0)
    return (np.abs(rotated).sum() / p * (rotation.T @ bits))[: len(v)]


@pytest.mark.parametrize("d", [1, 2, 3, 4, 5, 8])
def test_drive_contracts_by_a_half_over_all_signs(monkeypatch: pytest.MonkeyPatch, d: int) -> None:
    p = 1 << (d - 1).bit_length()
    signs = torch.tensor(list(itertools.product([1.0, -1.0], repeat=p)), dtype=F64).flip(1)
    monkeypatch.setattr(_rotation, "words", lambda keys, count: keys.workers.astype(np.uint64)[:, None])
    claim = Drive().claim(d, 1)
    assert claim == Contractive(1.0 if d == 1 else 0.5)
    for v in (*nasty(d), torch.eye(d, dtype=F64)[0] + torch.eye(d, dtype=F64)[-1], wholes(d)):
        out = send(Drive(), v.expand(len(signs), d), keys_of(len(signs)))
        expected = np.array([by_hand(v.numpy(), own.numpy()) for own in signs])
        np.testing.assert_allclose(out.numpy(), expected, rtol=0, atol=1e-12 * float(v.abs().max()))
        error, square = float(squares(out - v).mean()), float(v @ v)
        assert error <= (1 - claim.alpha) * square * (1 + 1e-12)
        if int((v != 0).sum()) == 1:
            assert error <= 1e-24 * square  # one spike arrives
    if d == 2:
        ones = torch.ones(len(signs), 2, dtype=F64)
        assert float(squares(send(Drive(), ones, keys_of(len(signs))) - ones).mean()) == pytest.approx(
            0.5 * 2, rel=1e-12
        )


def test_drive_on_dense_vectors_is_near_the_uniform_rotations_law() -> None:
    d = 1 << 12
    for v in (normal(1, d), torch.ones(1, d, dtype=F64) + normal(1, d).abs()):
        out = send(Drive(), v.expand(20, d), keys_of(20))
        share = squares(out - v) / squares(v)
        assert float(share.mean()) == pytest.approx(1 - 2 / math.pi, abs=0.02)
        assert not torch.equal(out[0], out[1])


@pytest.mark.parametrize(("dtype", "width"), [(torch.float64, 64), (torch.float32, 32)])
def test_drive_is_a_bit_per_coordinate_and_survives_large_and_small_numbers(dtype: torch.dtype, width: int) -> None:
    message = Drive().compress(normal(2, 1000).to(dtype), keys_of(2))
    assert (message.bits == width + 1024).all()
    info = torch.finfo(dtype)
    for size in (info.max / 4, info.tiny, info.smallest_normal * 2.0**-10):
        v = torch.full((2, 6), size, dtype=dtype)
        out = send(Drive(), v, keys_of(2))
        assert out.isfinite().all() and float((out.to(F64) - v).abs().max()) <= 3 * size
    assert not send(Drive(), torch.zeros(2, 6, dtype=dtype), keys_of(2)).any()
