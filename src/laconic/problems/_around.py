"""Smoothness constants of functions about which nothing is known globally: power iterations around x^0."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from laconic.core.keys import Keys
from laconic.core.problem import Constant, Constants, Kind, Oracles
from laconic.problems._similarity import of_products, power

POWER_STEPS = 20
MARGIN = 1.05  # on power iterations, which come from below
CLOSE = 1e-3  # relative growth of a norm that ends its power iteration
AROUND = 2  # points around x^0 at which smoothness is estimated too


def estimates(oracles: Oracles, **others: Constant) -> Constants:
    """Smoothness and similarity at x^0 and at points around it; from below, so estimates with a margin.

    `others` are known besides.
    """
    n, start = oracles.block.n, oracles.start()
    noise = Keys(0, 0, "problem/points", np.arange(AROUND), AROUND).normal(oracles.d).to(oracles.dtype)
    spread = torch.linalg.vector_norm(start).clamp_min(1.0) / math.sqrt(oracles.d)
    points = [start, *(start + spread * noise.view(AROUND, *oracles.shape))]
    seen = [_norms(oracles, x) for x in points]
    each = np.max([norms for norms, _ in seen], axis=0) * MARGIN
    root = math.sqrt(math.fsum(each**2) / n)
    how = f"power iteration at x^0 and {AROUND} points around it, times {MARGIN}"
    values = {
        "L": max(mean for _, mean in seen) * MARGIN,
        "L_max": float(each.max()),
        "L_tilde": root,
        "L_plus": root,
        "L_pm": root,
    }
    found: dict[str, Any] = {name: Constant(value, Kind.ESTIMATE, how) for name, value in values.items()}
    at_start = f"power iteration at x^0, times {MARGIN}"
    for name, value in of_products(oracles, start, POWER_STEPS, CLOSE).named().items():
        found[name] = Constant(value * MARGIN, Kind.ESTIMATE, at_start)
    bend = max(_bend(oracles, start, x) for x in points[1:]) * MARGIN
    between = f"power iteration between x^0 and {AROUND} points around it, times {MARGIN}"
    found["hessian_lipschitz"] = Constant(bend, Kind.ESTIMATE, between)
    return Constants(L_workers=tuple(each.tolist()), **found, **others)


def _norms(oracles: Oracles, x: Tensor) -> tuple[np.ndarray, float]:
    """||hess f_i(x)|| of every worker, and ||hess f(x)||, from below."""
    n, shape = oracles.block.size, oracles.shape
    v = Keys(0, 0, "problem/power", np.arange(n), n).normal(oracles.d).to(oracles.dtype)
    shared, norms, top = v[0], torch.zeros(n), 0.0
    for _ in range(POWER_STEPS):
        v = v / torch.linalg.vector_norm(v, dim=1, keepdim=True).clamp_min(1e-30)
        v = oracles.products(x, v.view(n, *shape)).view(n, -1)
        norms = torch.linalg.vector_norm(v, dim=1)
        shared = shared / torch.linalg.vector_norm(shared).clamp_min(1e-30)
        shared = oracles.products(x, shared.view(shape)).mean(dim=0).view(-1)
        top = float(torch.linalg.vector_norm(shared))
    return norms.double().numpy(), top


def _bend(oracles: Oracles, x: Tensor, y: Tensor) -> float:
    """||hess f(x) - hess f(y)|| / ||x - y||, from below."""
    start = Keys(0, 0, "problem/power", np.arange(1), 1).normal(oracles.d).to(oracles.dtype)

    def change(v: Tensor) -> Tensor:
        away = v.view(oracles.shape)
        return (oracles.products(x, away) - oracles.products(y, away)).mean(dim=0).view(1, -1)

    return float(power(change, start, POWER_STEPS, CLOSE)[0] / torch.linalg.vector_norm(x - y))
