"""Exponential dithering, biased rounding and floats of eight bits against exact laws and the inputs that hurt most."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from laconic.compressors._levels import Grid, power_fractions
from laconic.compressors.exponential import ExponentialDithering
from laconic.compressors.fp8 import Float8E4M3, Float8E5M2
from laconic.compressors.rounding import ExponentialRounding, NaturalRounding
from laconic.core.compressor import Compressor, Contractive, Unbiased
from laconic.core.message import Message
from laconic.wire.coding import Bits
from sending import assert_rows_stand_alone, keys_of, send, uniforms

DTYPES = [torch.float64, torch.float32, torch.bfloat16]
F64 = torch.float64
DITHERS = [ExponentialDithering(1), ExponentialDithering(4, 2.0), ExponentialDithering(3, 4.0)]
DITHERS += [ExponentialDithering(9, 1.3), ExponentialDithering(127, 16.0), ExponentialDithering(20, 1.0 + 2.0**-52)]
ROUNDINGS: list[Any] = [NaturalRounding(), ExponentialRounding(), ExponentialRounding(2.0), ExponentialRounding(1.1)]
FLOATS: list[Any] = [Float8E4M3(), Float8E4M3(4), Float8E5M2(), Float8E5M2(4)]
ALL = [*DITHERS[:4], *ROUNDINGS, *FLOATS]


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).standard_normal(shape))


# ---- exponential dithering -------------------------------------------------------------------------------------------


def rungs(compressor: ExponentialDithering) -> np.ndarray:
    return np.array([0.0, *(compressor.base ** (k - compressor.levels) for k in range(1, compressor.levels + 1))])


def around(x: np.ndarray, compressor: ExponentialDithering) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of |x_j| / ||x||: the rungs below and above, and the ratio itself."""
    ladder = rungs(compressor)
    ratio = np.minimum(np.abs(x) / np.linalg.norm(x), 1.0)
    below = np.clip(np.searchsorted(ladder, ratio, side="right") - 1, 0, compressor.levels - 1)
    return ladder[below], ladder[below + 1], ratio


def variance(x: np.ndarray, compressor: ExponentialDithering) -> float:
    """E||Q(x) - x||^2 / ||x||^2 of a draw between neighbours that keeps the mean."""
    below, above, ratio = around(x, compressor)
    return float(((ratio - below) * (above - ratio)).sum())


@pytest.mark.parametrize("compressor", DITHERS[:4], ids=str)
@pytest.mark.parametrize("dtype", DTYPES[:2])
@pytest.mark.parametrize("d", [1, 2, 7, 33])
def test_dithering_goes_to_the_neighbours_that_the_words_say(
    compressor: ExponentialDithering, d: int, dtype: torch.dtype
) -> None:
    keys = keys_of(30, step=d)
    for values in (np.random.default_rng(d).standard_normal(d), 5.0 * np.eye(d)[-1], np.ones(d) * -2.0):
        v = torch.from_numpy(values).to(dtype)
        x, out = v.double().numpy(), send(compressor, v.expand(30, d), keys).double().numpy()
        below, above, ratio = around(x, compressor)
        up = uniforms(keys, d, dtype) < (ratio - below) / (above - below)
        expected = np.sign(x) * np.linalg.norm(x) * np.where(up, above, below)
        np.testing.assert_allclose(out, expected, rtol=1e-12 if dtype == F64 else 3e-7, atol=0)


@pytest.mark.parametrize("base", [1.1, 1.5, 2.0, 4.0, 16.0])
@pytest.mark.parametrize("levels", [1, 2, 3, 5])
@pytest.mark.parametrize("d", [1, 2, 5, 64])
def test_the_variance_of_dithering_never_exceeds_its_claim_and_comes_near(base: float, levels: int, d: int) -> None:
    """Over vectors of two magnitudes, which are the worst: some at the peak under the least level, some above it."""
    compressor = ExponentialDithering(levels, base)
    omega = compressor.claim(d, 1).omega
    least = base ** (1 - levels)
    tried = [variance(np.ones(d), compressor)]
    for small in {0.5 * least, 2.0 * least * base / (base + 1) ** 2, least * 0.99, least}:
        for count in range(d):
            for others in range(1, d - count + 1):
                rest = 1.0 - count * small**2
                if rest > 0:
                    x = np.zeros(d)
                    x[:count], x[count : count + others] = small, math.sqrt(rest / others)
                    tried.append(variance(x, compressor))
    rng = np.random.default_rng(d)
    tried += [variance(rng.standard_normal(d) * base ** rng.integers(-6, 1, d), compressor) for _ in range(50)]
    assert max(tried) <= omega * (1 + 1e-12) + 1e-13
    a, c = math.sqrt(d) * least, (base + 1 / base + 2) / 4 - 1
    assert omega <= c + a * min(1.0, a) + 1e-13  # the published form
    if levels == 1 or a >= 2 * (1 + c):
        assert max(tried) == pytest.approx(omega, rel=1e-12, abs=1e-13) == a - 1
    elif d == 64 and a >= 1:
        assert max(tried) >= 0.95 * omega


def test_constants_of_dithering() -> None:
    assert ExponentialDithering(1).claim(64, 1) == Unbiased(7.0)
    assert ExponentialDithering(3).claim(64, 1).omega == pytest.approx(1 / 8 + 4 / 4.5, rel=1e-15)
    assert ExponentialDithering(3, 4.0).claim(4, 1).omega == pytest.approx(9 / 16 + (1 / 8) ** 2 / 6.25, rel=1e-15)
    for s in (1, 3, 7):  # base 2
        assert torch.equal(ExponentialDithering(s)._fractions(), power_fractions(Grid(s)))


# ---- biased rounding -------------------------------------------------------------------------------------------------


def powers(base: float, dtype: torch.dtype) -> np.ndarray:
    """0 and the powers of the base that a dtype holds as normal numbers, from exact powers."""
    info, exact = torch.finfo(dtype), Fraction(base)
    high = math.floor(math.log(info.max) / math.log(base)) + 2
    low = math.floor(math.log(info.tiny) / math.log(base)) - 2
    found = [exact**k for k in range(low, high)]
    return np.array([0.0, *(float(x) for x in found if Fraction(info.tiny) <= x <= Fraction(info.max))])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("base", [2.0, 4.0, 3.0])
def test_rounding_is_to_the_nearest_power(base: float, dtype: torch.dtype) -> None:
    info, rng = torch.finfo(dtype), np.random.default_rng(3)
    reach = 300 if dtype == F64 else 37
    x = rng.standard_normal(400) * 10.0 ** rng.uniform(-reach, reach, 400)
    edges = [0.0, -0.0, 1.0, info.max, -info.max, info.tiny, info.tiny / 2, info.tiny / 8, 0.75 * info.tiny, 1.5, -3.0]
    v = torch.cat([torch.from_numpy(x), torch.tensor(edges, dtype=F64)]).to(dtype)
    ladder = powers(base, dtype)
    wide = v.double().numpy()
    place = np.searchsorted((ladder[1:] / 2 + ladder[:-1] / 2), np.abs(wide), side="right")
    expected = np.sign(wide) * ladder[place]
    for compressor in [ExponentialRounding(base), *([NaturalRounding()] if base == 2 else [])]:
        out = send(compressor, v[None], keys_of(1))[0]
        assert out.dtype == dtype
        np.testing.assert_allclose(
            out.double().numpy(),
            torch.from_numpy(expected).to(dtype).double(),
            rtol=1e-12 if base == 3 and dtype == F64 else 1e-7,
        )
        if base != 3:
            assert out.double().tolist() == expected.tolist()


@pytest.mark.parametrize("compressor", ROUNDINGS, ids=str)
def test_rounding_attains_its_claim(compressor: Any) -> None:
    base = getattr(compressor, "base", 2.0)
    alpha = compressor.claim(9, 1).alpha
    assert alpha == pytest.approx(4 * base / (base + 1) ** 2, rel=1e-15)
    worst = torch.full((1, 9), (base + 1) / 2, dtype=F64) * (1 - 1e-9)
    error = float(((send(compressor, worst, keys_of(1)) - worst) ** 2).sum() / (worst**2).sum())
    assert error == pytest.approx(1 - alpha, rel=1e-6)
    x = torch.exp(torch.linspace(-50.0, 50.0, 5000, dtype=F64))[None]
    relative = ((send(compressor, x, keys_of(1)) - x) / x) ** 2
    assert float(relative.max()) <= (1 - alpha) * (1 + 1e-9)


@pytest.mark.parametrize("dtype", DTYPES)
def test_halves_go_up_and_the_top_stays(dtype: torch.dtype) -> None:
    info = torch.finfo(dtype)
    v = torch.tensor([[1.5, -6.0, info.tiny / 2, info.max, -info.max, 0.0]], dtype=dtype)
    top = 2.0 ** (math.frexp(info.max)[1] - 1)
    for compressor in (NaturalRounding(), ExponentialRounding(2.0)):
        assert send(compressor, v, keys_of(1)).tolist() == [[2.0, -8.0, info.tiny, top, -top, 0.0]]
    bad = torch.tensor([[math.inf, -math.inf, math.nan, 1.0]], dtype=dtype)
    for compressor in (NaturalRounding(), ExponentialRounding(2.0)):
        message = Message(compressor.schema((4,), dtype, keys_of(1)), compressor.codes(bad, keys_of(1)), 1)
        out = compressor.decode(message, (4,), dtype, keys_of(1)).dense()
        assert not out[0, :3].isfinite().any() and out[0, 3] == 1.0


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("compressor", ROUNDINGS, ids=str)
def test_every_code_of_a_rounding_has_a_meaning(compressor: Any, dtype: torch.dtype) -> None:
    schema = compressor.schema((1,), dtype, keys_of(1))
    width = schema[0].coding.width
    codes = torch.arange(1 << width).to(torch.int16)
    out = compressor.decode(Message(schema, (codes,), 1 << width), (1,), dtype, keys_of(1)).dense().view(-1)
    finite = out[out.isfinite()]
    again = compressor.codes(finite[:, None], keys_of(1))[0].to(torch.int64) & ((1 << width) - 1)
    back = codes[out.isfinite()].to(torch.int64) & ((1 << width) - 1)
    assert torch.equal(again[finite != 0], back[finite != 0]) and len(finite) > 1 << (width - 2)
    assert int((~out.isfinite()).sum()) >= 1


def test_widths_of_rounding() -> None:
    for base, dtype, width in [(4.0, F64, 11), (4.0, torch.float32, 8), (4.0, torch.bfloat16, 8), (2.0, F64, 12),
                               (2.0, torch.float32, 9), (1.1, F64, 15), (1.1, torch.float32, 12)]:  # fmt: skip
        assert ExponentialRounding(base).schema((1,), dtype, keys_of(1))[0].coding == Bits(width)
    for dtype, width in ((F64, 12), (torch.float32, 9), (torch.bfloat16, 9)):
        assert NaturalRounding().schema((1,), dtype, keys_of(1))[0].coding == Bits(width)


# ---- floats of eight bits --------------------------------------------------------------------------------------------


def grid(mantissa: int, bias: int, top: float) -> list[Fraction]:
    """The magnitudes of a format from its definition, up to the largest finite one."""
    least = Fraction(2) ** (1 - bias - mantissa)
    out = [k * least for k in range(1 << mantissa)]
    for exponent in range(1, 2 * bias + 2):
        out += [
            (Fraction(1) + Fraction(m, 1 << mantissa)) * Fraction(2) ** (exponent - bias) for m in range(1 << mantissa)
        ]
    return [x for x in out if x <= top]


FORMATS = [(Float8E4M3(1000), grid(3, 7, 448), 448), (Float8E5M2(1000), grid(2, 15, 57344), 57344)]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("compressor", "values", "top"), FORMATS, ids=["e4m3", "e5m2"])
def test_floats_are_the_nearest_ties_to_even(compressor: Any, values: list, top: int, dtype: torch.dtype) -> None:
    """The grid, its midpoints, and numbers on both sides of these that float32 would take for them."""
    middles = [float((a + b) / 2) for a, b in zip(values, values[1:], strict=False)]
    near = [m * (1 + sign * 2.0**-45) for m in middles for sign in (-1, 1)]
    x = [float(top), *map(float, values), *middles, *near, *np.random.default_rng(0).uniform(-top, top, 200), -3.3]
    v = torch.tensor(x, dtype=F64).to(dtype)[None, :1000]
    out = send(compressor, v, keys_of(1))[0].double().tolist()
    for given, heard in zip(v[0].double().tolist(), out, strict=True):
        exact = Fraction(abs(given))
        place = next(i for i in range(len(values)) if i + 1 == len(values) or exact <= (values[i] + values[i + 1]) / 2)
        if place + 1 < len(values) and exact == (values[place] + values[place + 1]) / 2:
            place += place % 2  # an even last bit
        expected = torch.tensor(math.copysign(float(values[place]), given), dtype=dtype)
        assert (
            heard == float(expected)
            or (heard == 0 == float(expected))
            or (abs(heard / float(expected) - 1) <= torch.finfo(dtype).eps)
        )


@pytest.mark.parametrize(
    ("compressor", "normal_tie", "denormal_tie"),
    [(Float8E4M3(50), 272 / 448, 2.0**-10 / 448), (Float8E5M2(50), 9 / 14, 2.0**-17 / 57344)], ids=str,
)  # fmt: skip
def test_the_claims_of_floats_are_attained(compressor: Any, normal_tie: float, denormal_tie: float) -> None:
    claim = compressor.claim(200, 1)
    for ratio, attained in (
        (normal_tie, 1 - claim.alpha),
        (denormal_tie, 49 * denormal_tie**2 / (1 + 49 * denormal_tie**2)),
    ):
        v = torch.full((1, 50), ratio, dtype=F64) * (1 - 1e-12 if ratio == denormal_tie else 1)
        v[0, 7] = -1.0
        v = torch.cat([v, v, v, v], 1)
        error = float(((send(compressor, v, keys_of(1)) - v) ** 2).sum() / (v**2).sum())
        assert error == pytest.approx(attained, rel=1e-9)
    assert compressor.claim(1, 1) == Contractive(1.0) and type(compressor)(1).claim(9, 1) == Contractive(1.0)
    u = 17 if isinstance(compressor, Float8E4M3) else 9
    assert 1 - 1 / u**2 <= type(compressor)(10**7).claim(10**8, 1).alpha == pytest.approx(1 - 1 / u**2, rel=1e-6)
    huge = 10**9 if u == 17 else 10**18
    t = huge * denormal_tie**2
    assert type(compressor)(huge).claim(huge, 1).alpha == pytest.approx(1 / (1 + t), rel=1e-6)


@pytest.mark.parametrize("compressor", FLOATS, ids=str)
def test_no_vector_found_exceeds_the_claims_of_floats(compressor: Any) -> None:
    rng = np.random.default_rng(1)
    for d in (1, 2, 3, 5, 40):
        alpha = compressor.claim(d, 1).alpha
        x = rng.standard_normal((500, d)) * 2.0 ** rng.integers(-20, 1, (500, d))
        v = torch.from_numpy(x)
        ratio = ((send(compressor, v, keys_of(500)) - v) ** 2).sum(1) / (v**2).sum(1)
        assert float(ratio.max()) <= (1 - alpha) * (1 + 1e-9) + 1e-30


@pytest.mark.parametrize("compressor", FLOATS, ids=str)
def test_codes_that_no_writer_makes(compressor: Any) -> None:
    schema = compressor.schema((1,), F64, keys_of(1))
    scales = torch.full((256,), 2.0, dtype=F64)
    message = Message(schema, (scales, torch.arange(256).to(torch.uint8)), 256)
    out = compressor.decode(message, (1,), F64, keys_of(1)).dense().view(-1)
    e4m3 = isinstance(compressor, Float8E4M3)
    strange = [127, 255] if e4m3 else [124, 125, 126, 127, 252, 253, 254, 255]
    assert (~out.isfinite()).nonzero().view(-1).tolist() == strange
    assert out[strange[0]].isinf() == (not e4m3) and out[out.isfinite()].abs().max() == 2.0


# ---- all of them -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("compressor", ALL, ids=str)
def test_rows_stand_alone_and_extremes_are_finite(compressor: Compressor, dtype: torch.dtype) -> None:
    keys, info = keys_of(5), torch.finfo(dtype)
    assert_rows_stand_alone(compressor, dtype)
    for size in (info.max, info.tiny, info.tiny / 8):
        assert send(compressor, torch.full((5, 6), size, dtype=dtype), keys).isfinite().all()
        spike = torch.tensor([[0.0, -size, 0.0]], dtype=dtype)
        heard = send(compressor, spike, keys_of(1))
        assert heard.isfinite().all() and not heard[0, [0, 2]].any() and heard[0, 1] <= 0


def test_other_dtypes_are_refused() -> None:
    for compressor in (*ROUNDINGS, *FLOATS, *DITHERS[:2]):
        with pytest.raises(ValueError, match="dtype"):
            compressor.schema((3,), torch.float16, keys_of(1))


def test_two_threads_change_no_bit(two_threads: None) -> None:
    v = normal(4, 20_000)
    for compressor in (ExponentialDithering(), NaturalRounding(), ExponentialRounding(), Float8E4M3()):
        together = compressor.compress(v, keys_of(4)).pack()
        alone = [compressor.compress(v[r : r + 1], keys_of(4).at([r])).pack() for r in range(4)]
        assert np.array_equal(together, np.concatenate(alone))


@pytest.mark.parametrize("compressor", FLOATS, ids=str)
@pytest.mark.parametrize("denormals", [[5e-324], [5e-324, -5e-324], [1.5e-323, 5e-324, -1e-323]])
def test_floats_of_eight_bits_know_the_least_denormals(compressor: Any, denormals: list[float]) -> None:
    """The largest magnitude of a block comes back, and the others off by half of it at most."""
    v = torch.tensor([denormals], dtype=torch.float64)
    out = send(compressor, v, keys_of(1))
    assert out[0, 0] == v[0, 0] and float((out - v).abs().max()) <= 1e-323
