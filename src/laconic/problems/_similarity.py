"""How unlike the workers' Hessians are at one point: by their eigenvalues, or by power iterations on products alone."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from laconic.core.keys import Keys
from laconic.core.problem import Oracles

CANDIDATES = 4  # workers whose distance to the mean is looked at, where more would take a pass over the data each
Apply = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Apart:
    """With H_i = hess f_i(x) and their mean H, in spectral norms.

    delta : max ||H_i - H||.  server : ||H_0 - H||.  mean : the root of ||mean (H_i - H)^2||.
    first : max ||H_i - H_0||, at most twice delta.
    """

    delta: float
    server: float
    mean: float
    first: float

    def named(self) -> dict[str, float]:
        """By the names of the constants."""
        return {
            "delta": self.delta,
            "delta_server": self.server,
            "delta_mean": self.mean,
            "delta_first": self.first,
        }


def largest_of(several: Iterable[Apart]) -> Apart:
    """The largest of each over several points."""
    return Apart(*(max(values) for values in zip(*(vars(one).values() for one in several), strict=True)))


def of_matrices(hessians: Callable[[], Iterable[Tensor]], mean: Tensor, n: int) -> Apart:
    """By eigenvalues; `hessians` goes through the n matrices (d, d) anew each time it is called."""
    away, first, square, server = [], [], torch.zeros_like(mean), None
    for one in hessians():
        server = one if server is None else server
        difference = one - mean
        away.append(_norm(difference))
        first.append(_norm(one - server))
        square += difference @ difference / n
    return Apart(max(away), away[0], math.sqrt(_norm(square)), max(first))


def _norm(matrix: Tensor) -> float:
    return float(torch.linalg.eigvalsh(matrix).abs().max())


def power(apply: Apply, start: Tensor, steps: int, close: float = 0.0) -> tuple[Tensor, Tensor]:
    """The norms of symmetric matrices from below, one per row of `start` (rows, d), and the vectors v that show them.

    `apply` multiplies each row by its matrix, at most `steps` times; it ends early where no norm grows by more than a
    factor of 1 + close. A norm is ||A v||, which only grows, and not v'A v, which reads 0 where eigenvalues s and -s
    tie.
    """
    v, image, norms = start, start, torch.zeros(len(start), dtype=start.dtype)
    for _ in range(steps):
        v = image / torch.linalg.vector_norm(image, dim=1, keepdim=True).clamp_min(1e-30)
        image = apply(v)
        before, norms = norms, torch.linalg.vector_norm(image, dim=1)
        if bool((norms <= before * (1.0 + close)).all()):
            break
    return norms, v


def of_products(
    oracles: Oracles, x: Tensor, steps: int, close: float = 0.0, mean: Apply | None = None, most: int = CANDIDATES
) -> Apart:
    """By power iterations on products of all workers' oracles, from below; no matrix is formed.

    `mean` multiplies rows (k, d) by H; without it that takes a pass over the data for each of them, and only the `most`
    workers who stand out (and worker 0) are held against H.
    """
    n, d, shape = oracles.block.n, oracles.d, oracles.shape
    start = Keys(0, 0, "problem/power", np.arange(n), n).normal(d).to(oracles.dtype)

    def times(v: Tensor, rows: np.ndarray) -> Tensor:
        return oracles.products(x, v.view(*v.shape[:-1], *shape), rows).view(len(rows), d)

    everyone, nobody_else = np.arange(n), np.zeros(n, dtype=np.int64)

    def whole(v: Tensor) -> Tensor:
        return torch.stack([times(one, everyone).mean(dim=0) for one in v]) if mean is None else mean(v)

    def spread(v: Tensor) -> Tensor:  # mean (H_i - H)^2 v: the second time H adds nothing, for its vectors sum to 0
        away = times(v[0], everyone)
        return times(away - away.mean(dim=0), everyone).mean(dim=0, keepdim=True)

    square, top = power(spread, start[:1], steps, close)
    chosen = everyone
    if mean is None and n > most:
        seen = times(top[0], everyone)
        stand_out = torch.linalg.vector_norm(seen - seen.mean(dim=0), dim=1).argsort(descending=True, stable=True)
        chosen = np.unique(np.append(stand_out[:most].numpy(), 0))
    away, _ = power(lambda v: times(v, chosen) - whole(v), start[torch.from_numpy(chosen)], steps, close)
    first, _ = power(lambda v: times(v, everyone) - times(v, nobody_else), start, steps, close)
    return Apart(float(away.max()), float(away[0]), math.sqrt(float(square)), float(first.max()))
