"""Quantisers against exact laws: their kernels against plain forms, two-point laws per coordinate, equality cases."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from laconic.compressors._levels import Grid
from laconic.compressors.blockwise import Int4, Int8
from laconic.compressors.dithering import QSGD, LinfDithering, NaturalDithering, Ternary, TernGrad
from laconic.compressors.halves import BFloat16, Float16
from laconic.compressors.sign import OneBit, ScaledSign, Sign, StochasticSign
from laconic.core.compressor import Compressor, Contractive, Unbiased
from laconic.core.keys import Keys
from laconic.kernels import dither
from laconic.wire.levels import Levels
from sending import keys_of, send, uniforms

DTYPES = [torch.float64, torch.float32]
DITHERS: list[Any] = [
    Ternary(),
    TernGrad(),
    QSGD(1),
    QSGD(2),
    QSGD(7, bucket=3),
    QSGD(300),
    LinfDithering(1),
    LinfDithering(5),
    NaturalDithering(1),
    NaturalDithering(4),
]
SIGNS: list[Any] = [Sign(), ScaledSign(), OneBit(), OneBit(3), StochasticSign()]
OTHERS: list[Any] = [Int8(5), Int4(5), Int8(), Float16(), BFloat16()]
ALL = DITHERS + SIGNS + OTHERS


def at(x: list[float] | np.ndarray, u: float, compressor: Compressor, monkeypatch: pytest.MonkeyPatch) -> Tensor:
    """What arrives of x if every uniform number of the draw is u."""
    word = np.uint64(int(u * 2**53) << 11)
    monkeypatch.setattr(Keys, "words", lambda self, count: np.full((self.rows, count), word))
    v = torch.tensor(np.asarray(x, dtype=float))[None]
    return send(compressor, v, keys_of(1))[0]


def vectors(d: int, seed: int = 0) -> list[np.ndarray]:
    rng = np.random.default_rng([d, seed])
    signs = rng.choice([-1.0, 1.0], d)
    return [
        rng.standard_normal(d),
        signs,
        np.eye(d)[0] * 3,
        np.eye(d)[-1] * -3,
        rng.standard_normal(d) * 10.0 ** rng.integers(-9, 9, d),
        rng.standard_normal(d) * (rng.random(d) < 0.5),
    ]


# ---- dithering: the kernels against plain forms, whose law is exact --------------------------------------------------


def plain_scales(x: np.ndarray, compressor: Any) -> np.ndarray:
    """The scale of every coordinate of x (d,)."""
    if isinstance(compressor, (TernGrad, LinfDithering)):
        return np.full(len(x), np.abs(x).max())
    size = getattr(compressor, "bucket", None) or len(x)
    return np.concatenate([np.full(len(b), np.linalg.norm(b)) for b in np.split(x, range(size, len(x), size))])


def levels_of(compressor: Any) -> np.ndarray:
    """The levels of a magnitude over its scale, ascending."""
    s = getattr(compressor, "levels", 1)
    if isinstance(compressor, NaturalDithering):
        return np.concatenate([[0.0], 2.0 ** np.arange(1 - s, 1)])
    return np.arange(s + 1) / s


def two_points(x: np.ndarray, compressor: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of each |x_j|: the level below times the scale, the one above, and the probability of that one."""
    scales, levels = plain_scales(x, compressor), levels_of(compressor)
    ratio = np.divide(np.abs(x), scales, out=np.zeros_like(x), where=scales > 0)
    ratio = np.minimum(ratio, 1.0)
    below = np.clip(np.searchsorted(levels, ratio, side="right") - 1, 0, len(levels) - 2)
    low, high = levels[below], levels[below + 1]
    return low * scales, high * scales, (ratio - low) / (high - low)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("compressor", DITHERS, ids=str)
@pytest.mark.parametrize("d", [1, 2, 7, 16])
def test_dithering_draws_the_two_levels_with_the_words_of_the_address(
    compressor: Compressor, d: int, dtype: torch.dtype
) -> None:
    """Up exactly where the worker's j-th uniform number is under the probability that keeps the mean."""
    for values in vectors(d):
        v = torch.from_numpy(values).to(dtype)
        keys, x = keys_of(50), v.double().numpy()
        out = send(compressor, v.expand(50, d), keys).double().numpy()
        low, high, up = two_points(x, compressor)
        drawn = uniforms(keys, d, dtype)
        expected = np.sign(x) * np.where(drawn < up, high, low)
        eps = torch.finfo(dtype).eps
        sure = np.abs(drawn - up) > 4 * 300 * eps  # elsewhere the rounding of the norm decides
        assert sure.mean() > 0.9 or d < 3
        np.testing.assert_allclose(out[sure], expected[sure], rtol=8 * eps, atol=0)


@pytest.mark.parametrize("compressor", DITHERS, ids=str)
@pytest.mark.parametrize("d", [1, 2, 4, 16, 64, 100])
def test_dithering_keeps_its_claim(compressor: Any, d: int) -> None:
    """The exact variance of the two-point laws, which the kernel was shown to draw, is within omega."""
    claim = compressor.claim(d, 3)
    assert isinstance(claim, Unbiased)
    for seed in range(20):
        for x in vectors(d, seed):
            low, high, up = two_points(x, compressor)
            np.testing.assert_allclose((1 - up) * low + up * high, np.abs(x), rtol=1e-12, atol=1e-300)
            variance = (up * (1 - up) * (high - low) ** 2).sum()
            assert variance <= (claim.omega + 1e-12) * (x @ x)


def attained(compressor: Any, x: np.ndarray) -> float:
    low, high, up = two_points(x, compressor)
    return float((up * (1 - up) * (high - low) ** 2).sum() / (x @ x))


@pytest.mark.parametrize("d", [1, 4, 9, 64, 100])
def test_omegas_are_attained(d: int) -> None:
    """Equality cases of the sheet: equal magnitudes for l2, one coordinate of 1 and others of r for the largest."""
    assert attained(Ternary(), np.ones(d)) == pytest.approx(Ternary().claim(d, 1).omega, rel=1e-12, abs=1e-12)
    for s in (1, 2, 4):
        compressor = QSGD(s)
        if 2 * s <= math.sqrt(d):
            assert attained(compressor, np.ones(d)) == pytest.approx(math.sqrt(d) / s - 1, rel=1e-12)
        q = (d - 1) / s**2
        r = 1 / (s * (1 + math.sqrt(1 + q)))
        x = np.concatenate([[1.0], np.full(d - 1, r)])
        claim = LinfDithering(s).claim(d, 1).omega
        assert attained(LinfDithering(s), x) == pytest.approx(claim, rel=1e-9, abs=1e-15)
        assert claim == pytest.approx((math.sqrt(1 + q) - 1) / 2, rel=1e-12, abs=1e-15)
    assert TernGrad().claim(d, 1).omega == pytest.approx(LinfDithering(1).claim(d, 1).omega, abs=1e-15)
    assert TernGrad().claim(d, 1).omega == pytest.approx((math.sqrt(d) - 1) / 2, abs=1e-15)


def test_constants_of_the_sheet() -> None:
    assert QSGD(4).claim(256, 1) == Unbiased(3.0) and QSGD(8).claim(256, 1) == Unbiased(1.0)
    assert QSGD(16).claim(256, 1) == Unbiased(0.25) and QSGD(4, bucket=256).claim(10**6, 1) == Unbiased(3.0)
    assert QSGD(4, bucket=10**6).claim(256, 1) == Unbiased(3.0)
    # found by search in the sheet, under the 8.125 and 2.125 of the paper's 1/8 + a min(1, a)
    assert NaturalDithering(1).claim(64, 1) == Unbiased(7.0) and NaturalDithering(3).claim(64, 1).omega >= 1.0
    for s, d in ((1, 5), (2, 64), (3, 100), (5, 1500)):
        assert attained(NaturalDithering(s), np.ones(d)) == pytest.approx(NaturalDithering(s).claim(d, 1).omega)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("compressor", [*DITHERS, StochasticSign()], ids=str)
def test_a_spike_is_exact_and_extremes_do_not_overflow(compressor: Compressor, dtype: torch.dtype) -> None:
    most, least = torch.finfo(dtype).max, torch.finfo(dtype).smallest_normal
    for value in (most, -most, least, -3.7):
        alone = torch.tensor([[value]], dtype=dtype)
        assert torch.equal(send(compressor, alone, keys_of(1)), alone)
    out = send(compressor, torch.full((9, 6), most, dtype=dtype), keys_of(9))
    assert out.isfinite().all()
    denormal = send(compressor, torch.full((9, 6), least / 8, dtype=dtype), keys_of(9))
    assert denormal.isfinite().all() and bool((denormal.abs() <= least).all())


def test_zigzag_codes_of_every_level() -> None:
    for s in (1, 2, 7, 127, 128, 300):
        grid = Grid(s)
        signed = grid.signed().tolist()
        assert signed == [0, *(x for k in range(1, s + 1) for x in (-k, k))]
        v = torch.arange(-s, s + 1, dtype=torch.float64)[None]
        codes = LinfDithering(s).compress(v, keys_of(1)).codes[1]
        assert [signed[c & 0xFFFF] for c in codes.tolist()] == list(range(-s, s + 1))


def test_sixteen_bit_codes_go_all_the_way() -> None:
    v = torch.tensor([[1.0, -1.0, 0.0, 0.5]], dtype=torch.float64)
    for s in (20_000, 32_767):
        out = send(LinfDithering(s), v, keys_of(1))
        assert out[0, :3].tolist() == [1.0, -1.0, 0.0] and abs(float(out[0, 3]) - 0.5) <= 1 / s


@given(st.integers(1, 40), st.integers(1, 50), st.integers(0, 1000))
def test_measures_are_those_of_the_blocks(d: int, size: int, seed: int) -> None:
    v = torch.from_numpy(np.random.default_rng(seed).standard_normal((3, d)))
    out = dither.measure(v, size).numpy()
    for row in range(3):
        for block, x in enumerate(np.split(np.abs(v[row].numpy()), range(size, d, size))):
            np.testing.assert_allclose(out[row, block], (x.max(), 1.0, x.sum(), (x**2).sum()), rtol=1e-14)


@pytest.mark.parametrize("exponent", [-1074, -1000, -500, -420, 401, 500, 1000, 1017])
def test_measures_of_extreme_numbers_are_those_of_ordinary_ones(exponent: int) -> None:
    """Times a power of two; a row of ordinary size beside them stays what it is."""
    ordinary = torch.from_numpy(np.random.default_rng(1).integers(1, 100, (1, 50)).astype(float))
    extreme = ordinary.numpy() * 2.0 ** (exponent // 2) * 2.0 ** (exponent - exponent // 2)
    out = dither.measure(torch.from_numpy(np.concatenate([extreme, ordinary.numpy()])), 7).numpy()
    again = dither.measure(ordinary, 7).numpy()[0]
    assert np.array_equal(out[1], again)
    ratio = out[0, :, 1]
    assert ((ratio != 1.0) & (np.frexp(ratio)[0] == 0.5)).all()
    # m = (m / u) u, and sums in units of u: exact, since everything is a whole number times a power of two
    assert np.array_equal(out[0, :, 2] / (out[0, :, 0] / ratio), again[:, 2] / again[:, 0])
    assert np.array_equal(out[0, :, 3] / (out[0, :, 0] / ratio) ** 2, again[:, 3] / again[:, 0] ** 2)


def test_measures_do_not_depend_on_spans() -> None:
    """A block of several spans, against sums without rounding."""
    d = 2 * dither.SPAN + 77
    v = torch.from_numpy(np.random.default_rng(2).integers(-9, 10, (2, d)).astype(float))
    x = v.abs().numpy()
    expected = np.stack([x.max(1), np.ones(2), x.sum(1), (x**2).sum(1)], axis=1)
    assert np.array_equal(dither.measure(v, d)[:, 0].numpy(), expected)
    assert np.array_equal(dither.measure(v.float(), d)[:, 0].numpy(), expected)


# ---- signs -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
def test_signs_of_zeros_are_plus(dtype: torch.dtype) -> None:
    v = torch.tensor([[0.0, -0.0, -2.0, 4.0], [0.0, -0.0, 0.0, 0.0]], dtype=dtype)
    assert send(Sign(), v, keys_of(2)).tolist() == [[1, 1, -1, 1], [1, 1, 1, 1]]
    assert send(ScaledSign(), v, keys_of(2)).tolist() == [[1.5, 1.5, -1.5, 1.5], [0, 0, 0, 0]]
    assert send(OneBit(), v, keys_of(2)).abs().tolist() == [[4 / 3 if dtype == torch.float64 else np.float32(4 / 3)] * 2
                                                            + [2, pytest.approx(4 / 3)], [0, 0, 0, 0]]  # fmt: skip


@pytest.mark.parametrize("d", [1, 2, 7, 50])
def test_scaled_sign_contracts_by_what_its_docstring_says(d: int) -> None:
    assert ScaledSign().claim(d, 2) == Contractive(1 / d)
    for x in vectors(d):
        v = torch.from_numpy(x)
        out = send(ScaledSign(), v[None], keys_of(1))[0].numpy()
        alpha = np.abs(x).sum() ** 2 / (d * (x @ x)) if x.any() else 1.0
        assert ((x - out) ** 2).sum() == pytest.approx((1 - alpha) * (x @ x), rel=1e-9, abs=1e-12 * float(x @ x))
        assert alpha >= 1 / d - 1e-12
    spike = np.eye(d)[0]
    assert ((spike - send(ScaledSign(), torch.from_numpy(spike)[None], keys_of(1))[0].numpy()) ** 2).sum() == (
        pytest.approx(1 - 1 / d, abs=1e-15)
    )


def test_stochastic_sign_of_the_slide() -> None:
    """(0.4, 0, -0.3) has norm 1/2 and is plus with probabilities 0.9, 0.5, 0.2."""
    keys = keys_of(500)
    out = send(StochasticSign(), torch.tensor([0.4, 0.0, -0.3], dtype=torch.float64).expand(500, 3), keys)
    expected = np.where(keys.uniform(3).numpy() < [0.9, 0.5, 0.2], 0.5, -0.5)
    np.testing.assert_allclose(out, expected, rtol=1e-15)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("d", [1, 3, 8])
def test_stochastic_sign_is_unbiased_with_omega_of_d_minus_1(d: int, dtype: torch.dtype) -> None:
    """Every outcome is +-||x||, so the variance is d ||x||^2 - ||x||^2 whatever is drawn; up where u says."""
    assert StochasticSign().claim(d, 3) == Unbiased(d - 1)
    keys = keys_of(40)
    for values in vectors(d):
        v = torch.from_numpy(values).to(dtype)
        x, out = v.double().numpy(), send(StochasticSign(), v.expand(40, d), keys).double().numpy()
        norm = float(np.linalg.norm(x))
        np.testing.assert_allclose(np.abs(out), norm, rtol=1e-14 if dtype == torch.float64 else 1e-7)
        probability = 0.5 + x / (2 * norm) if norm else np.full(d, 0.5)
        np.testing.assert_array_equal(out > 0, (uniforms(keys, d, dtype) < probability) & (norm > 0))
        np.testing.assert_allclose((2 * probability - 1) * norm, x, atol=1e-14 * norm)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("d", "columns"), [(1, 1), (6, 1), (6, 2), (7, 3), (3, 9), (12, 4)])
def test_one_bit_means(d: int, columns: int, dtype: torch.dtype) -> None:
    used = min(d, columns)
    claim = OneBit(columns).claim(d, 1)
    assert claim == Contractive(1 / math.ceil(d / used))
    for values in vectors(d):
        v = torch.from_numpy(values).to(dtype)
        x = v.double().numpy()
        out = send(OneBit(columns), v[None], keys_of(1))[0].double().numpy()
        expected = np.zeros(d)
        for column in range(used):
            places = np.arange(column, d, used)
            for side in (places[x[places] >= 0], places[x[places] < 0]):
                expected[side] = x[side].mean() if len(side) else 0.0
        np.testing.assert_allclose(out, expected, rtol=1e-6 if dtype == torch.float32 else 1e-12)
        assert ((x - out) ** 2).sum() <= (1 - claim.alpha + 1e-6) * (x @ x)
    spikes = torch.zeros(1, d, dtype=torch.float64)
    spikes[0, :used] = 1.0  # one positive spike per column
    error = float(((spikes - send(OneBit(columns), spikes, keys_of(1))) ** 2).sum()) / used
    sizes = np.bincount(np.arange(d) % used)
    assert error == pytest.approx(float((1 - 1 / sizes).mean()), abs=1e-12)


def test_one_bit_of_a_matrix_is_by_its_columns() -> None:
    m = torch.tensor([[[1.0, -4.0], [3.0, -2.0], [-1.0, 6.0]]], dtype=torch.float64)
    assert send(OneBit(columns=2), m, keys_of(1)).tolist() == [[[2.0, -3.0], [2.0, -3.0], [-1.0, 6.0]]]


# ---- integers by blocks ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("compressor", "levels"), [(Int8(4), 127), (Int4(4), 7), (Int8(), 127), (Int4(1), 7)], ids=str)
@pytest.mark.parametrize("d", [1, 4, 11])
def test_integers_are_the_nearest_levels_of_their_block(
    compressor: Any, levels: int, d: int, dtype: torch.dtype
) -> None:
    claim = compressor.claim(d, 1)
    size = min(compressor.block, d)
    assert claim.alpha == pytest.approx(1 / (1 + (size - 1) / (4 * levels**2)), rel=1e-15)
    assert claim.alpha >= 1 - (size - 1) / (4 * levels**2)  # the sheet's
    for values in vectors(d):
        v = torch.from_numpy(values).to(dtype)
        x, out = v.double().numpy(), send(compressor, v[None], keys_of(1))[0].double().numpy()
        for low in range(0, d, size):
            block, heard = x[low : low + size], out[low : low + size]
            m, slack = np.abs(block).max(), 1 + 300 * torch.finfo(dtype).eps
            assert np.all(np.abs(block - heard) <= slack * m / (2 * levels))
            assert np.all(heard[np.abs(block) == m] == block[np.abs(block) == m])
            assert ((block - heard) ** 2).sum() <= ((1 - claim.alpha) * slack + 1e-13) * (block @ block)


@pytest.mark.parametrize(("compressor", "levels"), [(Int8(64), 127), (Int4(64), 7), (Int8(4096), 127)], ids=str)
def test_integer_claims_are_attained(compressor: Any, levels: int) -> None:
    """All but one coordinate halfway to the first level: ties go to level 0, and just under as well."""
    d = compressor.block
    v = torch.full((1, d), 0.5 / levels * (1 - 1e-9), dtype=torch.float64)
    v[0, 3] = -1.0
    error = float(((v - send(compressor, v, keys_of(1))) ** 2).sum() / (v**2).sum())
    assert error == pytest.approx(1 - compressor.claim(d, 1).alpha, rel=1e-6)


def test_integers_by_hand() -> None:
    v = torch.tensor([[7.0, -3.4, 0.0, 0.6, 0.0, 0.0, 0.0, -1e-310]], dtype=torch.float64)
    message = Int4(block=4).compress(v, keys_of(1))
    assert message.codes[0].tolist() == [7.0, 1e-310] and message.codes[1].tolist() == [14, 5, 0, 2, 0, 0, 0, 13]
    assert send(Int4(block=4), v, keys_of(1)).tolist()[0] == (
        pytest.approx([7.0, -3.0, 0.0, 1.0, 0.0, 0.0, 0.0, -1e-310], rel=1e-15, abs=0)
    )


# ---- half precision --------------------------------------------------------------------------------------------------


def nearest(x: Fraction, digits: int, least: int) -> Fraction:
    """x at the nearest number of so many significant bits and a spacing of at least 2^least, ties to even."""
    if not x:
        return x
    exponent = math.floor(math.log2(float(abs(x)))) if abs(x) > Fraction(2) ** -1000 else -1001
    unit = Fraction(2) ** max(exponent - digits + 1, least)
    return round(x / unit) * unit  # Fraction rounds ties to even


HALVES = [(Float16(), 11, -24, torch.float16), (BFloat16(), 8, -133, torch.bfloat16)]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("compressor", "digits", "least", "target"), HALVES, ids=str)
def test_halves_are_the_nearest(
    compressor: Any, digits: int, least: int, target: torch.dtype, dtype: torch.dtype
) -> None:
    rng, tie = np.random.default_rng(0), 1 + 2.0**-digits
    top = 4 if digits == 11 else 37
    scales = 10.0 ** rng.uniform(-9 if digits == 11 else -44, top, 300)
    edge = [tie, tie + 2.0**-40, tie - 2.0**-40, -tie, 1.0, 0.0, -0.0, 2.0**least, 2.0 ** (least - 1), 1e-300]
    v = torch.from_numpy(np.concatenate([rng.standard_normal(300) * scales, edge])).to(dtype)
    out = send(compressor, v[None], keys_of(1))[0].tolist()
    assert out == [float(nearest(Fraction(x), digits, least)) for x in v.tolist()]
    most = torch.finfo(target).max
    extreme = torch.tensor([[most, -most, torch.finfo(dtype).max, math.inf, -math.inf]], dtype=dtype)
    assert send(compressor, extreme, keys_of(1)).tolist() == [[most, -most, most, math.inf, -math.inf]]
    assert send(compressor, torch.tensor([[math.nan]], dtype=dtype), keys_of(1)).isnan().all()


def test_bf16_attains_its_claim() -> None:
    v = torch.full((1, 5), 1 + 2.0**-8, dtype=torch.float64)  # halfway, and down to the even neighbour 1
    error = float(((v - send(BFloat16(), v, keys_of(1))) ** 2).sum() / (v**2).sum())
    assert error == pytest.approx(1 - BFloat16().claim(5, 1).alpha, rel=1e-9)


@pytest.mark.parametrize("exponent", [-1074, -1022, -200, 130, 1000, 1023])
def test_bf16_keeps_its_claim_over_all_of_float64(exponent: int) -> None:
    """Beyond float32's range, whose exponents bfloat16 has; the exponent is sent."""
    x = np.array([1.0, 1 + 2.0**-8, -0.3, 1e-3, 0.0]) if exponent > -1000 else np.array([1.0, -1.0, 3.0])
    v = torch.from_numpy(np.ldexp(x, exponent))[None]
    out = send(BFloat16(), v, keys_of(1))
    assert out.isfinite().all()
    largest = float(v.abs().max())
    error, square = float((((out - v) / largest) ** 2).sum()), float(((v / largest) ** 2).sum())
    assert error <= (1 - BFloat16().claim(5, 1).alpha) * square
    most = torch.tensor([[torch.finfo(torch.float64).max, -1.0]], dtype=torch.float64)
    assert send(BFloat16(), most, keys_of(1)).tolist() == [[torch.finfo(torch.float64).max, 0.0]]


# ---- all of them -----------------------------------------------------------------------------------------------------

SIZES = [  # bits of d = 11 coordinates of w bits, of levels at most
    (Sign(), lambda w: 11),
    (ScaledSign(), lambda w: w + 11),
    (StochasticSign(), lambda w: w + 11),
    (OneBit(), lambda w: 2 * w + 11),
    (OneBit(3), lambda w: 6 * w + 11),
    (Ternary(), lambda w: w + 24),
    (TernGrad(), lambda w: w + 24),
    (QSGD(7), lambda w: w + 4 * 11),
    (QSGD(8, bucket=4), lambda w: 3 * w + 5 * 11),
    (LinfDithering(200), lambda w: w + 9 * 11),
    (NaturalDithering(3), lambda w: w + 3 * 11),
    (Int8(4), lambda w: 3 * w + 8 * 11),
    (Int4(11), lambda w: w + 4 * 11),
    (Float16(), lambda w: 16 * 11),
    (BFloat16(), lambda w: 16 * 11 + (16 if w == 64 else 0)),
]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("compressor", "bits"), SIZES, ids=[str(compressor) for compressor, _ in SIZES])
def test_sizes(compressor: Any, bits: Any, dtype: torch.dtype) -> None:
    v = torch.from_numpy(np.random.default_rng(1).standard_normal((2, 11))).to(dtype)
    message, expected = compressor.compress(v, keys_of(2)), bits(8 * dtype.itemsize)
    levels = isinstance(message.schema[-1].coding, Levels)
    assert all(bits == expected or (levels and bits < expected) for bits in message.bits.tolist())
    assert len(message.pack()) == message.nbytes.sum()
    assert compressor.share(11, 2) == pytest.approx(bits(64) / (64 * 11), rel=1e-15)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("compressor", ALL, ids=str)
def test_rows_do_not_depend_on_company_and_zeros_stay_zero(compressor: Compressor, dtype: torch.dtype) -> None:
    keys = keys_of(5, step=4)
    for d in (1, 2, 33):
        v = torch.from_numpy(np.random.default_rng(d).standard_normal((5, d))).to(dtype)
        v[2] = 0.0
        before, out = v.clone(), send(compressor, v, keys)
        assert torch.equal(v, before) and out.dtype == dtype
        assert isinstance(compressor, Sign) or not out[2].any()
        for row in range(5):
            assert torch.equal(send(compressor, v[row : row + 1], keys.at([row])), out[row : row + 1])
    assert send(compressor, torch.zeros(0, 3, dtype=dtype), keys.at([])).shape == (0, 3)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("compressor", [c for c in ALL if not isinstance(c, Sign)], ids=str)
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_what_is_not_finite_is_seen(compressor: Compressor, bad: float, dtype: torch.dtype) -> None:
    v = torch.tensor([[1.0, -2.0, bad, 0.5], [1.0, 1.0, -1.0, 0.5]], dtype=dtype)
    out = send(compressor, v, keys_of(2))
    assert not out[0, 2].isfinite() and out[1].isfinite().all()


@pytest.mark.parametrize("compressor", ALL, ids=str)
def test_other_dtypes_are_refused(compressor: Compressor) -> None:
    with pytest.raises(ValueError, match=r"float16 : its dtype must be one of torch.float64, torch.float32"):
        compressor.compress(torch.ones(1, 3, dtype=torch.float16), keys_of(1))


def test_two_threads_change_no_bit(two_threads: None) -> None:
    """Enough work to be shared out: the same codes as one row at a time."""
    v = torch.from_numpy(np.random.default_rng(0).standard_normal((4, 20_000)))
    for compressor in (QSGD(7, bucket=512), NaturalDithering(), OneBit(10), ScaledSign()):
        together = compressor.compress(v, keys_of(4)).pack()
        alone = [compressor.compress(v[r : r + 1], keys_of(4).at([r])).pack() for r in range(4)]
        assert np.array_equal(together, np.concatenate(alone))
