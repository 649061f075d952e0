"""The search for importances: its steps by NumPy, the domains it stays in, and that it finds less of f."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from by_hand import equal
from laconic.compressors.impk import ImpK
from laconic.compressors.topk import TopK
from laconic.mechanisms.domains import Cube, Domain, Simplex, importances
from sending import keys_of, send
from test_impk import lent


def bowl(d: int, seed: int) -> tuple[Tensor, Tensor]:
    """A quadratic f(x) = x' A x / 2 whose eigenvalues are from 1 to 100, and a point."""
    rng = np.random.default_rng(seed)
    basis = np.linalg.qr(rng.standard_normal((d, d)))[0]
    matrix = basis @ np.diag(np.geomspace(1.0, 100.0, d)) @ basis.T
    return torch.from_numpy(0.5 * (matrix + matrix.T)), torch.from_numpy(rng.standard_normal(d))


def sheet(domain: Domain, a: np.ndarray, x: np.ndarray, w: np.ndarray, steps: int) -> np.ndarray:
    """The search as one would write it down, for one worker."""
    g, d, eta, tau = a @ x, len(x), 0.02, 0.3
    for _ in range(steps):
        q = -eta * g * (a @ (x - eta * w * g))
        m = np.abs(q).max()
        if isinstance(domain, Cube):
            w = np.clip(w - tau * q / m, domain.low, domain.high)
        else:
            w = w * np.exp(-tau * q / m)
            w = d * w / w.sum()
    return w


@pytest.mark.parametrize("domain", [Simplex(), Cube(), Cube(low=0.0, high=3.0), Cube(low=0.5, high=0.5)], ids=str)
@pytest.mark.parametrize("steps", [1, 2, 7])
def test_the_search_by_the_sheet(domain: Domain, steps: int) -> None:
    found = [bowl(9, seed) for seed in range(4)]
    a, x = torch.stack([a for a, _ in found]), torch.stack([x for _, x in found])
    g = torch.einsum("rij,rj->ri", a, x)
    first = domain.start(g)
    options = {"trial": 0.02, "step": 0.3, "steps": steps}
    ours = importances(domain, first, x, g, lambda y: torch.einsum("rij,rj->ri", a, y), **options)
    for row in range(4):
        expected = sheet(domain, a[row].numpy(), x[row].numpy(), first[row].numpy(), steps)
        assert np.allclose(ours[row].numpy(), expected, rtol=1e-12)
        one, there = a[row], slice(row, row + 1)
        alone = importances(domain, first[there], x[there], g[there], lambda y, one=one: (one @ y[0])[None], **options)
        assert np.allclose(alone[0].numpy(), expected, rtol=1e-12)


@pytest.mark.parametrize("domain", [Simplex(), Cube()], ids=str)
@pytest.mark.parametrize("seed", range(5))
def test_more_steps_of_the_search_find_less_of_f(domain: Domain, seed: int) -> None:
    a, x = bowl(40, seed)
    eta = 0.5 / 100.0
    g = (a @ x)[None]
    values = []
    for steps in (0, 1, 2, 5, 10, 50):
        w = importances(domain, domain.start(g), x, g, lambda y: (a @ y[0])[None], trial=eta, step=0.3, steps=steps)
        there = x - eta * w[0] * g[0]
        values.append(float(there @ a @ there))
    assert values == sorted(values, reverse=True) and values[-1] < values[0] - 1e-3 * abs(values[0])


@pytest.mark.parametrize("seed", range(5))
def test_one_free_step_from_nothing_is_topk(seed: int) -> None:
    """At w = 0 the trial point is x itself, so the importances go by g^2 and impk keeps what topk does."""
    a, x = bowl(12, seed)
    g = (a @ x)[None]
    asked = []

    def gradient(y: Tensor) -> Tensor:
        asked.append(y)
        return (a @ y[0])[None]

    for domain in (Simplex(), Cube(low=0.0, high=1.0)):
        w = importances(domain, torch.zeros_like(g), x, g, gradient, trial=0.01, step=0.3, steps=1)
        assert equal(asked[-1][0], x)
        assert equal(lent(ImpK(4), g, w, keys_of(1)), send(TopK(4), g, keys_of(1)))
    assert torch.allclose(w, (0.3 * g**2 / (g**2).max()).clamp(max=1.0), rtol=1e-14)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("domain", [Simplex(), Cube(), Cube(low=0.0, high=1e-3)], ids=str)
def test_what_no_step_leaves(domain: Domain, dtype: torch.dtype) -> None:
    """The domain, at any scale; where the gradient of phi is zero or no number, the importances stay as they were."""
    rng = np.random.default_rng(0)
    scales = 10.0 ** rng.integers(-36, 37, (300, 17))
    g = torch.from_numpy(rng.standard_normal((300, 17)) * scales).to(dtype)
    slopes = torch.from_numpy(rng.standard_normal((300, 17))).to(dtype)
    g[0], slopes[1], slopes[2], slopes[3, 4], g[4, 0] = 0.0, 0.0, math.nan, math.inf, -math.inf
    w = first = domain.start(g)
    for step in (0.3, 1.0, 1e4, 3.0):
        w = importances(domain, w, g, g, lambda y: slopes, trial=1.0, step=step, steps=3)
        assert torch.isfinite(w).all() and (w >= 0).all()
        if isinstance(domain, Cube):
            bounds = torch.tensor([domain.low, domain.high], dtype=dtype)
            assert (w >= bounds[0]).all() and (w <= bounds[1]).all()
        else:
            assert torch.allclose(w.sum(1), torch.full((300,), 17.0, dtype=dtype), rtol=1e-5)
    assert torch.equal(w[:5], first[:5]) and not (w[5:] == first[5:]).all(dim=1).any()
    still = importances(domain, w, g, g, torch.zeros_like, trial=1.0, step=0.3, steps=2)
    assert equal(still, w)
    for row in range(0, 300, 37):
        alone = domain.moved(first[row : row + 1], 0.3 * slopes[5:6])
        together = domain.moved(first, 0.3 * slopes[5:6].expand(300, 17))
        assert equal(alone[0], together[row])


@pytest.mark.parametrize("domain", [Simplex(), Cube()], ids=str)
def test_the_scale_of_gradients_is_of_no_matter(domain: Domain) -> None:
    """Though their products overflow or vanish."""
    rng = np.random.default_rng(1)
    g, slope = (torch.from_numpy(rng.standard_normal((6, 11))) for _ in range(2))
    first = domain.start(g)
    expected = importances(domain, first, g, g, lambda y: slope, trial=0.1, step=0.3, steps=3)
    assert not (expected == first).any(dim=1).all()
    for power in (-700, 700):
        a, b = g * 2.0**power, slope * 2.0**power
        assert equal(importances(domain, first, a, a, lambda y, b=b: b, trial=0.1, step=0.3, steps=3), expected)


def test_weights_that_died_come_back_on_the_simplex() -> None:
    w = torch.tensor([[4.0, 0.0, 0.0, 0.0]], dtype=torch.float64)
    for _ in range(4):
        w = Simplex().moved(w, torch.tensor([[-500.0, 500.0, 0.0, 0.0]], dtype=torch.float64))
    assert w[0].tolist() == [0.0, 4.0, 0.0, 0.0]
