"""Kernels that round to the nearest, draw up a ladder, or read back means, each against its plain form."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from laconic.compressors.eden import centroids
from laconic.core.keys import Keys
from laconic.kernels import dither, ladder, nearest, sides
from laconic.kernels.threads import SPAN
from sending import keys_of, uniforms

F64, F32 = torch.float64, torch.float32
SHAPES = [(1, 1, 1), (3, 7, 4), (2, 1000, 64), (2, 1000, 1000), (1, 2 * SPAN + 77, 100), (1, 2 * SPAN + 77, SPAN + 9)]
FORMATS = [torch.float8_e4m3fn, torch.float8_e5m2]


def vectors(rows: int, d: int, dtype: torch.dtype) -> list[Tensor]:
    """Ordinary, heavy tails, near the ends of the range, and few values with many ties."""
    rng, info = np.random.default_rng(d), torch.finfo(dtype)
    v = torch.from_numpy(rng.standard_normal((rows, d)))
    heavy = v * torch.from_numpy(10.0 ** rng.uniform(-30, 5, (rows, d)))
    ties = (2 * v).round() * torch.from_numpy(rng.choice([1.0, -1.0], (rows, d)))
    return [x.to(dtype) for x in (v, heavy, v.clamp(-1, 1) * info.max, v * info.tiny / 100, ties, 0.0 * v)]


def spread(scales: Tensor, size: int, d: int) -> Tensor:
    """The scale of each coordinate, ones in place of zeros."""
    return torch.where(scales > 0, scales, 1).repeat_interleave(size, dim=1)[:, :d]


@pytest.mark.parametrize("dtype", [F64, F32])
@pytest.mark.parametrize(("rows", "d", "size"), SHAPES)
def test_largest_are_those_of_the_blocks(rows: int, d: int, size: int, dtype: torch.dtype, two_threads: None) -> None:
    for v in vectors(rows, d, dtype):
        expected = torch.stack([some.abs().amax(1) for some in v.split(size, 1)], 1)
        assert torch.equal(nearest.largest(v, size), expected)
        assert torch.equal(nearest.largest(v, size), dither.measure(v, size)[..., 0].to(dtype))
    for bad in (math.nan, -math.inf):
        v[0, d // 2] = bad
        out = nearest.largest(v, size)
        assert out[0, d // 2 // size].isnan() and int(out.isnan().sum()) == 1
    assert nearest.largest(v[:0], size).shape == (0, -(-d // size)) and nearest.largest(v[:, :0], 3).shape == (rows, 0)


@pytest.mark.parametrize("dtype", [F64, F32])
@pytest.mark.parametrize(("rows", "d", "size"), SHAPES)
def test_levels_are_the_nearest_integers(rows: int, d: int, size: int, dtype: torch.dtype, two_threads: None) -> None:
    for s in (1, 7, 127):
        for v in vectors(rows, d, dtype):
            scales = nearest.largest(v, size)
            level = torch.round(s * (v / spread(scales, size, d))).to(torch.int64)
            expected = 2 * level.abs() - (level < 0).long()
            assert torch.equal(nearest.levels(v, scales, size, s).long(), expected)
    broken = torch.full((1, 3), math.nan, dtype=dtype)
    assert not nearest.levels(broken, broken[:, :1], 3, 7).any()


def eight(v: Tensor, scales: Tensor, size: int, target: torch.dtype) -> Tensor:
    """`nearest.eight` by adding numbers in whose binades the spacing is the target's."""
    info, top = torch.finfo(target), torch.finfo(target).max
    mantissa, exponent = math.frexp(top)
    ratio = v.to(F64).abs() * mantissa / spread(scales, size, v.shape[1]).to(F64) * 2.0**exponent
    spacing = torch.exp2(torch.frexp(ratio.clamp(min=info.tiny))[1].to(F64) - 1) * info.eps
    near = torch.round(ratio / spacing) * spacing  # ties to even; exact but for the rounding
    return torch.copysign(near, torch.where(near > 0, v.to(F64), 1.0)).to(target).view(torch.uint8)


@pytest.mark.parametrize("dtype", [F64, F32])
@pytest.mark.parametrize(("rows", "d", "size"), SHAPES)
@pytest.mark.parametrize("target", FORMATS, ids=str)
def test_floats_of_eight_bits_are_the_nearest(
    rows: int, d: int, size: int, target: torch.dtype, dtype: torch.dtype, two_threads: None
) -> None:
    for v in vectors(rows, d, dtype):
        scales = nearest.largest(v, size)
        assert torch.equal(nearest.eight(v, scales, size, target), eight(v, scales, size, target))
    broken = torch.full((1, 3), math.nan, dtype=dtype)
    assert not nearest.eight(broken, broken[:, :1], 3, target).any()


@pytest.mark.parametrize("target", FORMATS, ids=str)
def test_every_finite_float_of_eight_bits_stays_itself(target: torch.dtype) -> None:
    codes = torch.arange(256).to(torch.uint8)
    values = codes.view(target).to(F64)
    kept = values.isfinite()
    top = torch.tensor([[torch.finfo(target).max]], dtype=F64)
    out = nearest.eight(values[kept][None], top, int(kept.sum()), target)[0]
    assert torch.equal(out, torch.where(codes[kept] == 0x80, 0, codes[kept])) and int(kept.sum()) >= 248


@pytest.mark.parametrize("bits", [1, 2, 3, 4])
@pytest.mark.parametrize(("rows", "d"), [(1, 1), (3, 40), (2, 1000), (1, 2 * SPAN + 77)])
def test_cells_are_those_of_the_nearest_centroids(bits: int, rows: int, d: int, two_threads: None) -> None:
    v = torch.from_numpy(np.random.default_rng(d).standard_normal((rows, d)))
    v[:, 0] = -0.0
    units, levels = torch.linspace(0.5, 2.0, rows, dtype=F64), centroids(bits)
    y = v / units[:, None]
    codes, products, squares = nearest.cells(v, units, levels)
    expected = torch.bucketize(y, (levels[1:] + levels[:-1]) / 2.0, right=True)
    assert torch.equal(codes.long(), expected)
    torch.testing.assert_close(products, (y * levels[expected]).sum(1), rtol=1e-12, atol=0)
    torch.testing.assert_close(squares, (levels[expected] ** 2).sum(1), rtol=1e-12, atol=0)
    torch.set_num_threads(1)  # the fixture puts it back
    alone = [nearest.cells(v[r : r + 1], units[r : r + 1], levels) for r in range(rows)]
    assert torch.equal(torch.cat([one[1] for one in alone]), products)
    assert torch.equal(torch.cat([one[2] for one in alone]), squares)
    dead = nearest.cells(v, torch.full((rows,), math.nan, dtype=F64), levels)
    assert set(dead[0].view(-1).tolist()) <= {2 ** (bits - 1) - 1, 2 ** (bits - 1)} and not dead[1].any()


def far_keys(rows: int) -> Keys:
    return keys_of(rows).at(np.arange(rows)[::-1])


@pytest.mark.parametrize("dtype", [F64, F32])
@pytest.mark.parametrize("count", [1, 2, 3, 7, 8, 9, 100, 127])
@pytest.mark.parametrize(("rows", "d"), [(1, 1), (3, 40), (1, 2 * SPAN + 77)])
def test_ladders_are_climbed_as_the_words_say(
    count: int, rows: int, d: int, dtype: torch.dtype, two_threads: None
) -> None:
    rungs = torch.cat([torch.zeros(1, dtype=F64), 1.3 ** torch.arange(1.0 - count, 1.0, dtype=F64)])
    keys = far_keys(rows)
    u = uniforms(keys, d, dtype)
    for v in vectors(rows, d, dtype):
        v[:, -1] = v.abs().amax(1)  # the uppermost rung itself
        scales = v.abs().amax(1, keepdim=True)
        ratio = (v.double().abs() / torch.where(scales > 0, scales, 1).double()).numpy()
        steps = rungs.numpy()
        below = np.clip(np.searchsorted(steps, ratio, side="right") - 1, 0, count - 1)
        level = below + (u * (steps[below + 1] - steps[below]) < ratio - steps[below])
        expected = 2 * level - ((v.numpy() < 0) & (level > 0))
        assert np.array_equal(ladder.dither(v, scales, rungs, keys.address, keys.workers).numpy(), expected)
    broken = torch.full((rows, 1), math.nan, dtype=dtype)
    assert not ladder.dither(v, broken, rungs, keys.address, keys.workers).any()


@pytest.mark.parametrize("dtype", [F64, F32])
@pytest.mark.parametrize(("rows", "d"), [(1, 1), (3, 40), (1, 2 * SPAN + 77)])
def test_signs_are_drawn_as_the_words_say(rows: int, d: int, dtype: torch.dtype, two_threads: None) -> None:
    keys = far_keys(rows)
    u = uniforms(keys, d, dtype)
    for v in vectors(rows, d, dtype):
        scales = v.abs().amax(1) * 2
        scales = scales.clamp(max=torch.finfo(dtype).max)
        ratio = v.double() / torch.where(scales > 0, scales, 1).double()[:, None]
        expected = ~(u < 0.5 + 0.5 * ratio.numpy()[:, None].reshape(rows, d))
        assert np.array_equal(ladder.signs(v, scales, keys.address, keys.workers).numpy(), expected)


@pytest.mark.parametrize("dtype", [F64, F32, torch.bfloat16])
@pytest.mark.parametrize("columns", [1, 3, 64])
def test_sides_are_read_column_by_column(columns: int, dtype: torch.dtype, two_threads: None) -> None:
    d, rng = SPAN + 99, np.random.default_rng(columns)
    codes = torch.from_numpy(rng.integers(0, 2, (2, d)).astype(np.uint8))
    means = torch.from_numpy(rng.standard_normal((2, columns, 2))).to(F64 if dtype == F64 else F32)
    places = 2 * (torch.arange(d) % columns) + codes.long()
    assert torch.equal(sides.expand(codes, means, dtype), means.view(2, -1).gather(1, places).to(dtype))
