"""Smoothness constants of functions about which nothing is known globally: power iterations around x^0."""

from __future__ import annotations

import math
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from laconic.core.keys import Keys
from laconic.core.problem import Block, Constant, Constants, Kind

POWER_STEPS = 20
MARGIN = 1.05  # on power iterations, which come from below
AROUND = 2  # points around x^0 at which smoothness is estimated too


class Products(Protocol):
    """Oracles of all workers that multiply by Hessians."""

    block: Block
    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def d(self) -> int:
        """The number of coordinates."""
        ...

    def start(self) -> Tensor:
        """x^0."""
        ...

    def products(self, x: Tensor, v: Tensor) -> Tensor:
        """hess f_i(x) v, v one for all or one per row."""
        ...


def estimates(oracles: Products, **others: Constant) -> Constants:
    """Smoothness at x^0 and at points around it; from below, so estimates with a margin. `others` are known besides."""
    n, start = oracles.block.n, oracles.start()
    noise = Keys(0, 0, "problem/points", np.arange(AROUND), AROUND).normal(oracles.d).to(oracles.dtype)
    spread = torch.linalg.vector_norm(start).clamp_min(1.0) / math.sqrt(oracles.d)
    seen = [_norms(oracles, x) for x in [start, *(start + spread * noise.view(AROUND, *oracles.shape))]]
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
    return Constants(L_workers=tuple(each.tolist()), **found, **others)


def _norms(oracles: Products, x: Tensor) -> tuple[np.ndarray, float]:
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
