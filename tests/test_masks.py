"""Kernels of masks against plain torch: coins, thresholds, and which coordinates and values a mask keeps."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from laconic.core.keys import SHARED
from laconic.kernels import masks
from laconic.kernels.threads import SPAN
from sending import keys_of

SHAPES = [(0, 3), (3, 0), (1, 1), (3, 40), (5, 1000), (2, 3 * SPAN + 77)]


@pytest.mark.parametrize("probability", [1e-300, 0.01, 0.25, 0.3, 1.0 - 2.0**-53, 1.0])
@pytest.mark.parametrize(("rows", "d"), SHAPES)
def test_coins_are_uniform_numbers_below_the_probability(
    rows: int, d: int, probability: float, two_threads: None
) -> None:
    keys = keys_of(rows).at(np.arange(rows)[::-1])
    out = masks.coins(probability, keys.address, keys.workers, d)
    assert out.dtype == torch.bool and torch.equal(out, keys.uniform(d) < probability)
    shared = masks.coins(probability, keys.address, np.array([SHARED]), d)
    assert torch.equal(shared, keys.shared.uniform(d) < probability)


def test_a_coin_whose_uniform_number_is_the_probability_itself_falls_on_no() -> None:
    keys = keys_of(1)
    u = keys.uniform(5)[0]
    for j in range(5):
        assert not masks.coins(float(u[j]), keys.address, keys.workers, 5)[0, j]
        assert masks.coins(math.nextafter(float(u[j]), 1.0), keys.address, keys.workers, 5)[0, j]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize(("rows", "d"), SHAPES)
def test_thresholds_are_met_with_equality(rows: int, d: int, dtype: torch.dtype, two_threads: None) -> None:
    v = torch.from_numpy(np.random.default_rng(d).integers(-4, 5, (rows, d)) / 4).to(dtype)
    least = torch.linspace(0.25, 1.0, rows, dtype=torch.float64)
    assert torch.equal(masks.at_least(v, least), v.abs().double() >= least[:, None])
    if v.numel():
        v[0, 0] = math.nan
        assert not masks.at_least(v, least)[0, 0]


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 1.0])
@pytest.mark.parametrize(("rows", "d"), SHAPES)
def test_what_a_mask_keeps(rows: int, d: int, share: float, two_threads: None) -> None:
    rng = np.random.default_rng(d)
    mask = torch.from_numpy(rng.random((rows, d)) < share)
    mask[: rows // 3] = False
    v = torch.from_numpy(rng.standard_normal((rows, d)))
    for one, values in ((mask, v), (mask[:1].expand(rows, d), v), (mask.t().contiguous().t(), v[:, ::1])):
        positions, numbers = masks.positions(one)
        assert torch.equal(positions, one.nonzero()[:, 1]) and torch.equal(numbers, one.sum(1))
        assert masks.counts(one).sum(1).tolist() == numbers.tolist()
        assert torch.equal(masks.kept(values, positions, numbers), values[one])
