"""Gradients of single terms, as estimators remember them and as theorems about them look at them."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from laconic.core.problem import Batch, Oracles
from laconic.core.rows import norm2


def every_term(oracles: Oracles) -> tuple[np.ndarray, np.ndarray]:
    """(row, term) of all terms of the local workers, worker by worker; two arrays (total,)."""
    counts = oracles.terms()
    rows = np.repeat(np.arange(len(counts)), counts)
    return rows, np.arange(len(rows)) - np.repeat(np.cumsum(counts) - counts, counts)


def of_terms(x: Tensor, rows: np.ndarray, terms: np.ndarray, oracles: Oracles) -> Tensor:
    """grad f_ij for the pairs (i, j) of rows and terms, (pairs, *shape); x is (*shape) or (local, *shape)."""
    at = x if x.dim() == len(oracles.shape) else x[torch.from_numpy(rows)]
    return oracles.gradients(at, rows, Batch(rows, terms[:, None]))


def total(values: Tensor) -> Tensor:
    """The sum over the second axis of (local, size, *shape), added in its order whatever the other axes are."""
    return values[:, 0] if values.shape[1] == 1 else values.cumsum(1)[:, -1]


def mean_of_squares(values: Tensor, rows: np.ndarray, oracles: Oracles) -> Tensor:
    """The mean over each worker's terms of ||values||^2, (local,); values are those of `every_term`."""
    sums = np.bincount(rows, norm2(values).numpy(), minlength=len(oracles.terms()))
    return torch.from_numpy(sums / oracles.terms())
