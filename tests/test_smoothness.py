"""Smoothness-aware compression: the laws of sampling and of dithering with a diagonal, and the theory's constants."""

from __future__ import annotations

import itertools
import math
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from laconic.compressors.dithering import QSGD
from laconic.compressors.smoothness import (
    SmoothQuantisation,
    SmoothSparsification,
    expected_smoothness,
    optimal_sampling,
)
from laconic.compressors.topk import TopK
from laconic.core.compressor import Unbiased
from laconic.core.keys import Keys
from laconic.core.message import Message
from laconic.core.spec import parse
from sending import keys_of, send

F64 = torch.float64
DTYPES = [torch.float64, torch.float32, torch.bfloat16]
DIAGONAL = (100.0, 30.0, 1.0, 0.25, 0.01)
ENTRIES: list[Any] = [
    SmoothSparsification(2),
    SmoothSparsification(2, DIAGONAL),
    SmoothSparsification(0.9, (1.0, 2.0, 1e-9, 4.0, 1e9)),
    SmoothQuantisation(),
    SmoothQuantisation(3, DIAGONAL),
    SmoothQuantisation(1, (1.0, 1e4, 1.0, 1e-4, 1e6)),
]


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).standard_normal(shape))


def nasty(d: int) -> list[Tensor]:
    """Equal magnitudes, spikes, many scales, and nothing special."""
    spikes = [row for row in torch.eye(d, dtype=F64) * -7.0]
    return [torch.ones(d, dtype=F64), *spikes, 10.0 ** torch.arange(d, dtype=F64), normal(d, seed=d)]


# ---- what holds of both ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("compressor", ENTRIES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_bytes_meaning_and_company(compressor: Any, dtype: torch.dtype) -> None:
    n, d = 6, 5
    v, keys = normal(n, d, seed=3).to(dtype), keys_of(n, 4)
    v[2], v[3, 1:], v[4] = -0.0, 0.0, torch.finfo(dtype).max
    v[5] = torch.finfo(dtype).tiny * torch.tensor([1.0, -0.5, 2.0, 0.0, 1.0])
    before, message = v.clone(), compressor.compress(v, keys)
    out = send(compressor, v, keys)
    assert torch.equal(v, before) and out.dtype == dtype and not out[2].any() and not out[3, 1:].any()
    assert torch.equal(out, compressor.decode(message, (d,), dtype, keys).dense())
    assert (message.nbytes <= 4 * d * dtype.itemsize + 128).all() and len(message.pack()) == message.nbytes.sum()
    assert torch.isfinite(out[[0, 1, 5]]).all()
    for row in range(n):
        assert torch.equal(send(compressor, v[row : row + 1], keys.at([row]))[0], out[row])
    assert send(compressor, v[:0], keys.at([])).shape == (0, d)
    assert torch.equal(send(compressor, v.view(n, 5, 1), keys).view(n, d), out)
    assert parse(str(compressor)) == compressor


@pytest.mark.parametrize("make", [SmoothSparsification, SmoothQuantisation])
def test_a_diagonal_is_for_so_many_coordinates(make: Any) -> None:
    compressor = make(2, diagonal=(1.0, 2.0, 3.0))
    for d in (1, 2, 4):
        with pytest.raises(ValueError, match=rf"\(diagonal=\.\.\.\) : diagonal must have one .*: {d}, and it has 3$"):
            compressor.compress(normal(2, d), keys_of(2))
    assert compressor.claim(1, 1) == compressor.claim(3, 5)  # asked for without a vector: for those it takes
    for wrong in ((), (1.0, 0.0), [1.0], (1.0, math.nan), 2.0):
        with pytest.raises(ValueError, match="diagonal must be a tuple of numbers > 0"):
            make(2, diagonal=wrong)
    with pytest.raises(ValueError, match=r"SmoothQuantisation\(levels=32767\) : levels must be smaller"):
        SmoothQuantisation(32767, diagonal=(1.0, 2.0))


# ---- sparsification --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("k", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("diagonal", [DIAGONAL, (1.0,) * 5, (7.0, 7.0, 7.0, 1e-6, 1e6), None])
def test_sparsification_over_all_masks(monkeypatch: pytest.MonkeyPatch, k: int, diagonal: Any) -> None:
    """Mean, variance, and the expected smoothness as an equality, over the 2^5 outcomes with their probabilities."""
    compressor: Any = SmoothSparsification(k, diagonal)
    smooth = torch.tensor(diagonal or (1.0,) * 5, dtype=F64)
    p = compressor.probabilities(5)
    rho, omega = compressor.expected_smoothness(5), compressor.claim(5, 3).omega
    assert float(p.sum()) == pytest.approx(k, rel=1e-12)
    assert torch.allclose((1 / p - 1) * smooth, torch.full((5,), rho, dtype=F64), rtol=1e-9, atol=1e-12)
    assert omega == pytest.approx(float((1 / p - 1).max()), rel=1e-9, abs=1e-12)
    outcomes = torch.tensor(list(itertools.product([False, True], repeat=5)))
    monkeypatch.setattr(Keys, "uniform", lambda self, count: torch.where(outcomes, 0.0, 1.0 - 2.0**-53).to(F64))
    chance = torch.where(outcomes, p, 1 - p).prod(1)
    for v in nasty(5):
        out = send(compressor, v.expand(32, 5), keys_of(32))
        kept = (chance > 0)[:, None]
        out = torch.where(kept, out, 0.0)
        assert torch.allclose((chance[:, None] * out).sum(0), v, rtol=1e-10, atol=0)
        variance = float((chance * (out - v).square().sum(1)).sum())
        assert variance == pytest.approx(rho * float((v * v / smooth).sum()), rel=1e-7, abs=1e-20)  # 1 - p is rounded
        assert variance <= omega * float(v @ v) * (1 + 1e-9)
    spike = torch.eye(5, dtype=F64)[int(smooth.argmin())]
    out = torch.where((chance > 0)[:, None], send(compressor, spike.expand(32, 5), keys_of(32)), 0.0)
    assert float((chance * (out - spike).square().sum(1)).sum()) == pytest.approx(omega, rel=1e-9, abs=1e-12)


def test_rho_is_the_least_expected_smoothness() -> None:
    """Against closed forms, against perturbed probabilities with the same sum, and far below omega times max L."""
    assert optimal_sampling((8.0, 2.0), 1)[1] == pytest.approx(4.0, rel=1e-15)  # 8/12 + 2/6 = 1
    assert optimal_sampling((3.0,) * 6, 2) == ((1 / 3,) * 6, 6.0)
    assert optimal_sampling(DIAGONAL, 5) == ((1.0,) * 5, 0.0)
    rng = np.random.default_rng(0)
    for k in (1, 2, 3, 4):
        p, rho = optimal_sampling(DIAGONAL, k)
        smooth = np.array(DIAGONAL)
        for _ in range(50):
            step = rng.standard_normal(5) * 1e-3 * np.minimum(p, 1 - np.array(p))
            other = (
                np.array(p) + step - step.sum() * np.minimum(p, 1 - np.array(p)) / np.minimum(p, 1 - np.array(p)).sum()
            )
            assert other.sum() == pytest.approx(k) and (other > 0).all() and (other < 1).all()
            assert ((1 / other - 1) * smooth).max() >= rho * (1 - 1e-12)
        assert rho < 0.8 * (5 / k - 1) * max(DIAGONAL)


def test_the_expected_smoothness_of_a_sampling_with_a_full_matrix() -> None:
    """E||L^{1/2} (C(y) - y)||^2 = y' (Ptilde o L) y over all supports, and its largest value is what is said."""
    d = 5
    root = normal(d, d, seed=2)
    matrix = root @ root.T
    half = torch.linalg.cholesky(matrix).T  # half' half = matrix
    p = torch.tensor([0.9, 0.5, 0.3, 0.2, 0.6], dtype=F64)
    masks = torch.tensor(list(itertools.product([0.0, 1.0], repeat=d)), dtype=F64)
    coins = torch.where(masks > 0, p, 1 - p).prod(1)
    of_two = torch.tensor([float(mask.sum() == 2) / 10 for mask in masks], dtype=F64)
    for chance in (coins, of_two):
        joint = (masks * chance[:, None]).T @ masks
        bound = expected_smoothness(matrix, joint)
        measured = []
        shaped = (joint / torch.outer(joint.diagonal(), joint.diagonal()) - 1) * matrix
        for y in [*nasty(d), torch.linalg.eigh(shaped).eigenvectors[:, -1]]:
            errors = (masks / joint.diagonal() * y - y) @ half.T
            value = float((chance * errors.square().sum(1)).sum())
            assert value == pytest.approx(float(y @ shaped @ y), rel=1e-9, abs=1e-12)
            measured.append(value / float(y @ y))
        assert max(measured) == pytest.approx(bound, rel=1e-10)  # the last one attains it
    independent = (masks * coins[:, None]).T @ masks
    assert expected_smoothness(matrix, independent) == pytest.approx(float(((1 / p - 1) * matrix.diagonal()).max()))
    assert expected_smoothness(matrix, torch.ones(d, d, dtype=F64)) == 0.0
    diagonal = tuple(matrix.diagonal().tolist())
    best, rho = optimal_sampling(diagonal, 2)
    p = torch.tensor(best, dtype=F64)
    mask = torch.where(masks > 0, p, 1 - p).prod(1)
    assert expected_smoothness(matrix, (masks * mask[:, None]).T @ masks) == pytest.approx(rho, rel=1e-9)


def test_masks_are_drawn_with_the_probabilities_and_sizes_follow() -> None:
    n, compressor = 4000, SmoothSparsification(2, DIAGONAL)
    v = torch.ones(n, 5, dtype=F64)
    out, p = send(compressor, v, keys_of(n)), compressor.probabilities(5)
    kept = out != 0
    spread = (p * (1 - p) / n).sqrt()
    assert ((kept.double().mean(0) - p).abs() <= 5 * spread).all()
    assert torch.allclose(out[kept], (v / p)[kept], rtol=1e-15)
    assert (compressor.compress(v, keys_of(n)).nbytes == 8 * kept.sum(1).numpy()).all()
    assert isinstance(parse("smooth_sparsification(k=1) | natural").claim(4, 1), Unbiased)  # type: ignore[attr-defined]


# ---- quantisation ----------------------------------------------------------------------------------------------------


def variance(compressor: SmoothQuantisation, v: Tensor) -> float:
    """E||Q(v) - v||^2 from the step that is sent: each coordinate is rounded to one of its two neighbours."""
    step = Fraction(float(compressor.codes(v[None], keys_of(1))[0]))
    total = Fraction(0)
    for value in map(Fraction, v.tolist()):
        distance = abs(value) / step
        part = distance - math.floor(distance)
        total += part * (1 - part) * step**2
    return float(total)


@pytest.mark.parametrize("diagonal", [None, (1.0,) * 5, DIAGONAL, (1.0, 1e4, 1.0, 1e-4, 1e6)])
@pytest.mark.parametrize("levels", [1, 2, 7, 100])
def test_quantisation_rounds_without_bias_to_its_levels(
    monkeypatch: pytest.MonkeyPatch, levels: int, diagonal: Any
) -> None:
    """Each coordinate goes up exactly where its uniform number is below its fraction; nothing is beyond its levels."""
    compressor, smooth = SmoothQuantisation(levels, diagonal), torch.tensor(diagonal or (1.0,) * 5, dtype=F64)
    most = (levels * (smooth / smooth.mean()).sqrt() - 1e-12).ceil()
    grid = (torch.arange(64, dtype=F64) + 0.5) / 64
    monkeypatch.setattr(Keys, "uniform", lambda self, count: grid[self.workers % 64, None].expand(-1, count))
    for v in nasty(5):
        step = float(compressor.codes(v[None], keys_of(1))[0])
        norm = float((v * v / smooth).sum().sqrt())
        assert step >= norm * float(smooth.mean().sqrt()) / levels * (1 - 1e-14)
        assert step <= norm * float(smooth.mean().sqrt()) / levels * (1 + 1e-14)
        out = send(compressor, v.expand(64, 5), keys_of(64)) / step
        assert torch.allclose(out, out.round(), rtol=1e-12, atol=1e-12) and (out.abs() <= most * (1 + 1e-12)).all()
        distance = (v / step).abs()
        up = (distance.floor() + (grid[:, None] < distance - distance.floor())) * v.sign()
        assert torch.allclose(out, up, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("levels", [1, 2, 5])
@pytest.mark.parametrize("diagonal", [(1.0,) * 64, tuple(1.0 / (1 + j) for j in range(64)), (1e3,) + (1.0,) * 63, None])
def test_the_constants_of_quantisation(levels: int, diagonal: Any) -> None:
    """The expected smoothness holds for whatever is tried and is attained at the maximiser; so does omega."""
    d, compressor = 64, SmoothQuantisation(levels, diagonal)
    smooth = torch.tensor(diagonal or (1.0,) * d, dtype=F64)
    bound, omega = compressor.expected_smoothness(d), compressor.claim(d, 3).omega
    tried = [*nasty(d)[:3], *(normal(d, seed=seed) for seed in range(5)), smooth.sqrt(), smooth, 1 / smooth]
    for v in tried:
        value = variance(compressor, v)
        assert value <= bound * float((v * v / smooth).sum()) * (1 + 1e-12)
        assert value <= omega * float(v @ v) * (1 + 1e-12)
    low, high = 0.0, 1e9  # the maximiser of the sum of a (1 - a) with sum a^2 / L = levels^2 / mean L
    for _ in range(300):
        price = (low + high) / 2
        a = 0.5 / (1 + price / smooth)
        low, high = (price, high) if float((a * a / smooth).sum()) > levels**2 / float(smooth.mean()) else (low, price)
    a = 0.5 / (1 + high / smooth)
    if high > 1e-6:  # else all are in the middle between two levels
        assert variance(compressor, a) == pytest.approx(bound * float((a * a / smooth).sum()), rel=1e-6)
    else:
        assert bound == pytest.approx(d * float(smooth.mean()) / (4 * levels**2), rel=1e-9)
    assert bound <= float(smooth.mean()) * min(d**0.5 / levels, d / (4 * levels**2)) * (1 + 1e-12)
    if diagonal is None or len(set(diagonal)) == 1:
        assert omega == pytest.approx(bound) == pytest.approx(QSGD(levels).claim(d, 1).omega)
        signs = torch.ones(d, dtype=F64)
        assert 2 * levels > 8 or variance(compressor, signs) == pytest.approx(omega * d, rel=1e-12)


def test_the_steps_are_the_best_ones_and_smoothness_pays() -> None:
    """h_j ~ 1 / sqrt(L_j) minimises ||diag(L) h|| at a given ||1 / h||; with it, tr L takes the place of d max L."""
    smooth, rng = np.array(DIAGONAL), np.random.default_rng(0)
    best = 1 / np.sqrt(smooth)
    for _ in range(100):
        other = best * np.exp(0.1 * rng.standard_normal(5))
        other *= np.linalg.norm(1 / other) / np.linalg.norm(1 / best)
        assert np.linalg.norm(smooth * other) >= np.linalg.norm(smooth * best)
    diagonal = (100.0,) + (0.01,) * 99
    aware = SmoothQuantisation(4, diagonal).expected_smoothness(100)
    assert aware < 0.02 * QSGD(4).claim(100, 1).omega * max(diagonal)


def test_widths_follow_the_levels() -> None:
    """Levels 1, 1, 2, 8 in 2, 2, 3 and 5 bits: the shorter first; codes that nobody writes mean zero."""
    compressor = SmoothQuantisation(4, (64.0, 1.0, 4.0, 0.5 / 64))
    mean = (64 + 1 + 4 + 0.5 / 64) / 4
    most = [math.ceil(4 * math.sqrt(item / mean)) for item in (64.0, 1.0, 4.0, 0.5 / 64)]
    assert most == [8, 1, 2, 1]
    schema = compressor.schema((4,), torch.float32, keys_of(1))
    assert [(slot.coding.width, slot.count) for slot in schema[1:]] == [(2, 2), (3, 1), (5, 1)]  # type: ignore[attr-defined]
    assert compressor.share(4, 1) == (64 + 2 + 2 + 3 + 5) / 256
    codes = (torch.tensor([0.5]), *(torch.tensor(c, dtype=torch.int32) for c in ([3, 1], [4], [17])))
    message = Message(schema, codes, 1)
    heard = Message.unpack(message.pack(), message.nbytes, schema)
    assert compressor.decode(heard, (4,), torch.float32, keys_of(1)).dense().tolist() == [[0.0, 0.0, 1.0, -0.5]]


def test_what_is_not_finite_spoils_its_row_alone() -> None:
    v = normal(3, 5)
    v[1, 2] = math.inf
    compressor = SmoothQuantisation(3, DIAGONAL)
    codes = compressor.codes(v, keys_of(3))
    message = Message(compressor.schema((5,), F64, keys_of(3)), codes, 3)
    out = compressor.decode(message, (5,), F64, keys_of(3)).dense()
    assert out[1].isnan().all() and torch.equal(out[::2], send(compressor, v[::2], keys_of(3).at([0, 2])))
    with pytest.raises(ValueError, match="must be unbiased"):
        parse(f"scaled({TopK(1)})")
    assert "smooth" in str(parse("scaled(smooth_quantisation(levels=2, diagonal=(1.0, 2.0)))"))
