"""Rotations and what travels after them: the transform itself, the combinators, and EDEN over all signs."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
from scipy.linalg import hadamard
from scipy.stats import norm
from torch import Tensor

from laconic.compressors import _rotation
from laconic.compressors._rotation import Rotation
from laconic.compressors.dithering import LinfDithering, TernGrad
from laconic.compressors.drive import Drive
from laconic.compressors.eden import ALPHAS, CENTROIDS, MAJORANTS, BiasedEden, Eden
from laconic.compressors.hadamard import Hadamard, SharedHadamard
from laconic.compressors.identity import Identity
from laconic.compressors.natural import Natural
from laconic.compressors.permk import PermK
from laconic.compressors.randk import RandK, SharedRandK
from laconic.compressors.topk import TopK
from laconic.core.compressor import AB, Contractive, Unbiased
from laconic.core.keys import SHARED
from laconic.kernels.hadamard import BLOCK, flip, transform
from sending import assert_rows_stand_alone, keys_of, send, wholes

F64 = torch.float64
DTYPES = [F64, torch.float32, torch.bfloat16]


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).standard_normal(shape))


def squares(v: Tensor) -> Tensor:
    return (v.reshape(len(v), -1) ** 2).sum(1)


def nasty(d: int) -> list[Tensor]:
    rng = np.random.default_rng(d)
    rows = [np.ones(d), rng.choice([-1.0, 1.0], d), np.eye(d)[-1] * -7.0, np.eye(d)[0] + np.eye(d)[-1],
            10.0 ** np.arange(d), rng.standard_normal(d), 0.5 ** np.arange(d)]  # fmt: skip
    return [torch.from_numpy(row) for row in rows]


@pytest.fixture
def all_signs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Row r has the signs whose minuses are the bits of r."""
    monkeypatch.setattr(_rotation, "words", lambda keys, count: keys.workers.astype(np.uint64)[:, None])


# ---- the transform ---------------------------------------------------------------------------------------------------


def plain(v: np.ndarray) -> np.ndarray:
    out, half = v.copy(), 1
    while half < v.shape[1]:
        pairs = out.reshape(len(v), -1, 2, half)
        out = np.stack([pairs[:, :, 0] + pairs[:, :, 1], pairs[:, :, 0] - pairs[:, :, 1]], 2).reshape(v.shape)
        half *= 2
    return out


def roots(rotation: Rotation) -> list[tuple[slice, float]]:
    """The root of the size of its block, for the coordinates of each kind of blocks."""
    return [(slice(begin, begin + count * size), math.sqrt(size)) for begin, count, size in rotation.pieces]


def restored(rotation: Rotation, values: Tensor, keys: Any) -> Tensor:
    """R' values times the root of each block's size, stage by stage."""
    out = values.clone()
    for begin, count, size in rotation.pieces:
        for place in range(begin, begin + count * size, size):
            out[:, place : place + size] = torch.from_numpy(plain(out[:, place : place + size].numpy()))
    flip(out, keys.words(-(-rotation.size // 64)), 1.0, 0, rotation.size)
    return out[:, : rotation.d]


@pytest.mark.parametrize("d", [1, 2, 4, 8, 16, 128, BLOCK, 2 * BLOCK, 64 * BLOCK, 128 * BLOCK])
def test_long_rows_have_the_bits_of_the_plain_transform(d: int, two_threads: None) -> None:
    v = normal(1 + (d < BLOCK), d, seed=d)
    out = transform(v.clone())
    assert np.array_equal(out.numpy(), plain(v.numpy()))
    torch.set_num_threads(1)  # the fixture puts it back
    assert torch.equal(transform(v.clone()), out)


def test_flips_are_bits_of_the_words() -> None:
    keys = keys_of(3)
    words, ones = keys.words(2), torch.ones(3, 100, dtype=F64)
    flip(ones, words, 0.5, 3, 100)
    for row, j in itertools.product(range(3), range(100)):
        minus = (int(words[row, j // 64]) >> (j % 64)) & 1
        assert float(ones[row, j]) == (1.0 if j < 3 else -0.5 if minus else 0.5)
    assert np.array_equal(_rotation.words(keys, 2), words)


@pytest.mark.parametrize(
    ("d", "block", "pieces"),
    [(1, None, ((0, 1, 1),)), (5, None, ((0, 1, 8),)), (8, 4, ((0, 2, 4),)), (11, 4, ((0, 2, 4), (8, 1, 4))),
     (9, 4, ((0, 2, 4), (8, 1, 1))), (3, 8, ((0, 1, 4),)), (6, 1, ((0, 6, 1),)), (0, 4, ()), (0, None, ())],
)  # fmt: skip
def test_a_rotation_is_orthogonal_block_by_block(d: int, block: int | None, pieces: tuple) -> None:
    rotation, keys = Rotation(d, block), keys_of(3)
    assert rotation.pieces == pieces and rotation.size == sum(count * size for _, count, size in pieces)
    v = wholes(3, d)
    out = rotation.shrunk(v, keys)
    signs = torch.ones(3, rotation.size, dtype=F64)
    flip(signs, keys.words(1), 1.0, 0, rotation.size)
    for begin, count, size in pieces:
        for place in range(begin, begin + count * size, size):
            one = torch.zeros(3, size, dtype=F64)
            stretch = v[:, place : place + size]
            one[:, : stretch.shape[1]] = stretch
            expected = (one * signs[:, place : place + size]) @ torch.from_numpy(hadamard(size).astype(float)) / size
            assert torch.equal(out[:, place : place + size], expected)  # whole numbers: exact
    assert torch.equal(restored(rotation, out, keys), v)
    for dtype in (F64, torch.float32):
        rotated = rotation.scaled(out, dtype)
        assert torch.equal(rotated, torch.cat([out[:, p] * r for p, r in roots(rotation)] or [out], 1).to(dtype))
        back = torch.cat([rotated[:, p].double() / r for p, r in roots(rotation)] or [out], 1)
        assert torch.equal(rotation.back(rotated, keys, dtype), restored(rotation, back, keys).to(dtype))


@pytest.mark.parametrize("dtype", DTYPES[:2])
@pytest.mark.parametrize(("d", "block"), [(BLOCK + 5, None), (3 * BLOCK + 70, BLOCK), (1000, 128), (100, 16)])
def test_long_rotations_have_the_bits_of_the_plain_one(
    d: int, block: int | None, dtype: torch.dtype, two_threads: None
) -> None:
    """There, and back from values and from codes; also where blocks are longer than a piece, and end in zeros."""
    rotation, keys, v = Rotation(d, block), keys_of(2), normal(2, d, seed=d).to(dtype)
    drawn = keys.words(-(-rotation.size // 64))
    padded = torch.zeros(2, rotation.size, dtype=F64)
    padded[:, :d] = v
    flip(padded, drawn, 1.0, 0, rotation.size)
    for begin, count, size in rotation.pieces:
        stretch = padded[:, begin : begin + count * size]
        stretch /= size
        for some in stretch.split(size, 1):
            some.copy_(torch.from_numpy(plain(some.numpy())))
    out = rotation.shrunk(v, keys)
    assert torch.equal(out, padded)
    back = out.clone()
    for places, root in roots(rotation):
        back[:, places] /= root
    assert torch.equal(rotation.back(out, keys, dtype), restored(rotation, back, keys).to(dtype))
    table, scales = normal(4), torch.tensor([0.7, 3e38 if dtype == torch.float32 else 1.7e308], dtype=dtype)
    codes = torch.from_numpy(np.random.default_rng(d).integers(0, 256, out.shape).astype(np.uint8))
    expected = restored(rotation, table[codes.long() & 3], keys) * scales.double()[:, None]
    most = torch.finfo(dtype).max
    heard = rotation.back_codes(codes, table, scales, keys, dtype)
    assert torch.equal(heard, expected.clamp(-most, most).to(dtype)) and float(heard[1].abs().max()) == most


# ---- a compressor in another basis -----------------------------------------------------------------------------------


@pytest.mark.parametrize("block", [None, 4])
@pytest.mark.parametrize("d", [1, 2, 5, 8, 11])
def test_a_rotated_compressor_is_the_compressor_on_rotated_vectors(d: int, block: int | None) -> None:
    keys, v = keys_of(4), normal(4, d, seed=d)
    rotation = Rotation(d, block)
    for wrap, signs in ((Hadamard, keys), (SharedHadamard, keys.shared)):
        for inner in (TopK(k=2), Natural(), RandK(k=1)):
            rotated = rotation.shrunk(v, signs)
            for places, root in roots(rotation):
                rotated[:, places] *= root
            assert torch.allclose(squares(rotated), squares(v), rtol=1e-13)
            heard = send(inner, rotated, keys.scope("rotated"))
            for places, root in roots(rotation):
                heard[:, places] /= root
            assert torch.equal(send(wrap(inner, block), v, keys), restored(rotation, heard, signs))
        back = send(wrap(Identity(), block), v, keys)
        assert torch.allclose(back, v, rtol=0, atol=1e-15 * 8)


def test_claims_of_rotated_compressors() -> None:
    assert Hadamard(TopK(k=2)).claim(5, 3) == Contractive(2 / 8) == SharedHadamard(TopK(k=2)).claim(5, 3)
    assert Hadamard(TopK(k=2), block=4).claim(5, 3) == Contractive(2 / 5)
    assert Hadamard(RandK(k=2)).claim(5, 3) == Unbiased(3.0)
    assert SharedHadamard(SharedRandK(k=2)).claim(5, 3) == AB(0.0, -3.0, 3.0)
    assert Hadamard(SharedRandK(k=2)).claim(5, 3) == AB(3.0, 0.0, 3.0)
    assert SharedHadamard(PermK()).claim(8, 4) == PermK().claim(8, 4)
    assert Hadamard(Eden()).claim(8, 4) is None
    assert Hadamard(TopK(k=2)).share(5, 1) == TopK(k=2).share(8, 1) * 8 / 5


@pytest.mark.parametrize(("d", "block"), [(2, None), (3, None), (4, None), (5, 4)])
def test_rotated_dithering_keeps_mean_and_variance_over_all_signs(all_signs: None, d: int, block: int | None) -> None:
    """At every D: R'(two-point laws of R x) has mean x and the variance of the rotated vector, at most omega."""
    compressor, rotation = Hadamard(LinfDithering(1), block), Rotation(d, block)
    count = 1 << rotation.size
    for x in nasty(d):
        v, omega, square = x.expand(count, d), LinfDithering(1).claim(rotation.size, 1).omega, float(x @ x)
        assert compressor.claim(d, 1) == Unbiased(omega)
        rotated = rotation.shrunk(v, keys_of(count))
        for places, root in roots(rotation):
            rotated[:, places] *= root
        largest = rotated.abs().amax(1)
        exact = largest * rotated.abs().sum(1) - square  # of TernGrad's draw, before coordinates are dropped
        assert float(exact.max()) <= omega * square * (1 + 1e-12)
        draws = torch.stack([send(compressor, v, keys_of(count, step)) for step in range(100)])
        spread = draws.std(0) / math.sqrt(100)
        assert bool(((draws.mean(0) - x).abs() <= 6 * spread + 1e-12 * square**0.5).all())


@pytest.mark.parametrize("d", [2, 4, 8])
def test_rotating_flattens_terngrad_as_its_text_says(all_signs: None, d: int) -> None:
    count = 1 << d
    for x in nasty(d):
        rotated = Rotation(d).shrunk(x.expand(count, d), keys_of(count)) * math.sqrt(d)
        mean = float((rotated.abs().amax(1) * rotated.abs().sum(1)).mean())
        assert mean <= math.sqrt(2 * math.log(2 * d)) * float(x @ x) * (1 + 1e-12)


def test_rotating_flattens_a_long_vector() -> None:
    long = Rotation(4096).shrunk(torch.ones(1, 4096, dtype=F64), keys_of(1)) * 64
    gained = float(long.abs().max() * long.abs().sum() / (long**2).sum() - 1)
    assert gained < math.sqrt(2 * math.log(8192)) - 1 < TernGrad().claim(4096, 1).omega / 6


def test_a_shared_rotation_is_of_the_shared_address_and_lets_sums_commute() -> None:
    keys, v = keys_of(5), normal(5, 12)
    one = SharedHadamard(SharedRandK(k=4))
    assert torch.allclose(send(one, v, keys).mean(0), send(one, v.mean(0)[None], keys.at([0]))[0], atol=1e-14)
    shared = Rotation(12).shrunk(v[:1], keys.shared)
    assert keys.shared.workers.tolist() == [SHARED] and not torch.equal(
        shared, Rotation(12).shrunk(v[:1], keys.at([0]))
    )
    two = Hadamard(SharedRandK(k=4))
    assert not torch.allclose(send(two, v, keys).mean(0), send(two, v.mean(0)[None], keys.at([0]))[0], atol=1e-3)


def test_what_a_rotation_takes() -> None:
    with pytest.raises(ValueError, match="block must be a power of two"):
        Hadamard(TopK(k=1), block=6)


# ---- EDEN ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bits", [1, 2, 3, 4])
def test_centroids_are_the_means_of_their_cells(bits: int) -> None:
    """E(Z | cell) = (density(a) - density(b)) / (distribution(b) - distribution(a)); the error is that of the sheet."""
    half = np.array(CENTROIDS[bits])
    cuts = np.array([0.0, *(half[1:] + half[:-1]) / 2, np.inf])
    mass = norm.sf(cuts[:-1]) - norm.sf(cuts[1:])
    np.testing.assert_allclose((norm.pdf(cuts[:-1]) - norm.pdf(cuts[1:])) / mass, half, rtol=1e-14)
    assert len(half) == 1 << (bits - 1) and np.all(np.diff(half) > 0)
    assert 1 - 2 * (mass * half**2).sum() == pytest.approx([0.3634, 0.1175, 0.0345, 0.0095][bits - 1], abs=6e-5)


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_the_polynomial_that_proves_the_claim_is_above_the_error(bits: int) -> None:
    """On each cell the difference is a polynomial: at its ends and where its derivative vanishes it is positive."""
    a0, a2, a4, a6 = MAJORANTS[bits]
    half = np.array(CENTROIDS[bits])
    cuts = [0.0, *(half[1:] + half[:-1]) / 2, 1e3]
    for q, low, high in zip(half, cuts, cuts[1:], strict=False):
        gap = np.polynomial.Polynomial([a0 - q * q, 2 * q, a2 - 1.0, 0.0, a4, 0.0, a6])
        flat = [root.real for root in gap.deriv().roots() if abs(root.imag) < 1e-9 and low < root.real < high]
        assert min(gap(y) for y in (low, high, *flat)) > 1e-6
    assert a4 >= 0 < a6 and 1 - (a0 + a2 + 3 * a4 + 15 * a6) >= ALPHAS[bits]
    assert [ALPHAS[b] for b in (1, 2, 3, 4)] == [BiasedEden(b).claim(10, 1).alpha for b in (1, 2, 3, 4)]


def test_moments_of_random_sums_are_at_most_those_of_the_normal_law() -> None:
    """What the proof rests on, exactly over all signs."""
    for d in (1, 2, 3, 8):
        signs = np.array(list(itertools.product([1.0, -1.0], repeat=d)))
        for x in nasty(d):
            z = signs @ (x / x.norm()).numpy()
            moments = [(z**k).mean() for k in (2, 4, 6)]
            assert moments[0] == pytest.approx(1) and moments[1] <= 3 and moments[2] <= 15
            assert np.abs(z).mean() >= math.sqrt(0.5) - 1e-12  # Khintchine's inequality, Szarek's constant


def by_hand(x: np.ndarray, signs: np.ndarray, bits: int, biased: bool) -> np.ndarray:
    """EDEN from its definition, with matrices."""
    p = len(signs)
    rotation = hadamard(p) / math.sqrt(p) * signs
    rotated = rotation @ np.concatenate([x, np.zeros(p - len(x))])
    z = np.round(rotated * math.sqrt(p) / np.linalg.norm(x), 13)
    half = np.array(CENTROIDS[bits])
    q = half[np.abs(np.abs(z)[:, None] - half).argmin(1)] * np.where(z < 0, -1, 1)
    scale = rotated @ q / (q @ q) if biased else x @ x / (rotated @ q)
    return (scale * rotation.T @ q)[: len(x)]


@pytest.mark.parametrize("bits", [1, 2, 3, 4])
@pytest.mark.parametrize("d", [1, 2, 3, 4, 7])
def test_eden_over_all_signs(all_signs: None, d: int, bits: int) -> None:
    p = 1 << (d - 1).bit_length()
    signs = [[-1.0 if r >> j & 1 else 1.0 for j in range(p)] for r in range(1 << p)]
    claim = BiasedEden(bits).claim(d, 1)
    assert Eden(bits).claim(d, 1) is None
    for x in nasty(d):
        v, square = x.expand(len(signs), d), float(x @ x)
        for compressor, biased in ((Eden(bits), False), (BiasedEden(bits), True)):
            out = send(compressor, v, keys_of(len(signs)))
            expected = np.array([by_hand(x.numpy(), np.array(s), bits, biased) for s in signs])
            np.testing.assert_allclose(out, expected, rtol=0, atol=1e-11 * math.sqrt(square))
            error = float(squares(out - v).mean())
            assert not biased or error <= (1 - claim.alpha) * square * (1 + 1e-12) + 1e-24 * square
            if int((x != 0).sum()) == 1:
                assert error <= 1e-24 * square  # one spike arrives


def test_one_bit_of_biased_eden_is_drive() -> None:
    for d in (1, 2, 50, 64):
        v = normal(6, d, seed=d)
        assert torch.allclose(send(BiasedEden(1), v, keys_of(6)), send(Drive(), v, keys_of(6)), rtol=1e-13, atol=1e-13)
    ones = torch.ones(400, 2, dtype=F64)
    assert float(squares(send(BiasedEden(1), ones, keys_of(400)) - ones).mean()) == pytest.approx(1.0, rel=1e-12)


@pytest.mark.parametrize(("bits", "share"), [(1, 0.571), (2, 0.1331), (3, 0.0358), (4, 0.0096)])
def test_eden_on_dense_vectors_is_near_the_uniform_rotations_law(bits: int, share: float) -> None:
    d = 1 << 12
    for v in (normal(1, d), torch.ones(1, d, dtype=F64) + normal(1, d).abs()):
        out = send(Eden(bits), v.expand(20, d), keys_of(20))
        assert float((squares(out - v) / squares(v)).mean()) == pytest.approx(share, rel=0.03)
        assert float(squares(out.mean(0, keepdim=True) - v) / squares(v)) < 1.2 * share / 20  # as if unbiased
        biased = send(BiasedEden(bits), v.expand(20, d), keys_of(20))
        assert float((squares(biased - v) / squares(v)).mean()) == pytest.approx(share / (1 + share), rel=0.03)


# ---- all of them -----------------------------------------------------------------------------------------------------

ALL: list[Any] = [Drive(), Eden(), BiasedEden(2), Hadamard(LinfDithering(1)), Hadamard(TopK(k=2), block=8)]
ALL += [SharedHadamard(Natural(), block=4)]


@pytest.mark.parametrize("dtype", DTYPES[:2])
@pytest.mark.parametrize("compressor", ALL, ids=str)
def test_rows_stand_alone_and_extremes_are_finite(compressor: Any, dtype: torch.dtype) -> None:
    keys, info = keys_of(5), torch.finfo(dtype)
    assert_rows_stand_alone(compressor, dtype)
    for size in (info.max, info.max / 4, info.tiny, info.tiny / 8):
        out = send(compressor, torch.full((5, 6), size, dtype=dtype), keys).double()
        assert out.isfinite().all()
        assert send(compressor, torch.tensor([[0.0, -size, 0.0]], dtype=dtype), keys_of(1)).isfinite().all()


@pytest.mark.parametrize("compressor", ALL[:3], ids=str)
def test_bfloat16_is_what_float32_says_and_its_scale_is_as_wide(compressor: Any) -> None:
    v = normal(4, 50).bfloat16()
    out = send(compressor, v, keys_of(4))
    assert torch.equal(out, send(compressor, v.float(), keys_of(4)).bfloat16())
    bits = getattr(compressor, "bits", 1)
    assert (compressor.compress(v, keys_of(4)).bits == 32 + 64 * bits).all()
    assert compressor.share(50, 1) == (64 + 64 * bits) / (64 * 50)


def test_a_rotated_compressor_of_bfloat16_works_on_float32() -> None:
    v = normal(4, 50).bfloat16()
    wide = send(Hadamard(TopK(k=5)), v.float(), keys_of(4))
    assert torch.equal(send(Hadamard(TopK(k=5)), v, keys_of(4)), wide.bfloat16())


def test_two_threads_change_no_bit(two_threads: None) -> None:
    v = normal(3, 70_000)
    for compressor in (Eden(2), Drive(), Hadamard(LinfDithering(1), block=4096)):
        together = send(compressor, v, keys_of(3))
        torch.set_num_threads(1)
        assert torch.equal(send(compressor, v[1:2], keys_of(3).at([1])), together[1:2])
        torch.set_num_threads(2)
