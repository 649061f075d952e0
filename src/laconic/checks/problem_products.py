"""Checks of products of Hessians with vectors: by differences of gradients, against Hessians, alone and in company."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from laconic.checks.findings import Findings
from laconic.checks.places import Place
from laconic.checks.trial import same
from laconic.core.problem import Block, Oracles
from laconic.core.rows import svec_to_matrix

LARGEST = 300  # d up to which whole Hessians are multiplied


def products(found: Findings, place: Place) -> None:
    """Of every row, at one point and along one vector for all, and at one of each per row; counted."""
    oracles, x, rows = place.oracles, place.points[-1], np.arange(place.problem.n)
    u, other = place.others(2, "products")
    try:
        all_rows = oracles.products(x, u)
    except ValueError as error:
        return found.expect("\n" not in str(error), "that there are no products is said in more than one line")
    found.expect(all_rows.shape == (len(rows), *oracles.shape), f"the shape is {tuple(all_rows.shape)}")
    found.expect(same(oracles.products(x, u, rows[::-1].copy()), all_rows.flip(0)), "a row's product is not its own")
    found.expect(not bool(oracles.products(x, 0.0 * u).any()), "the product with 0 is not 0")
    points = (x + 0.1 * place.others(len(rows), "points of rows")).contiguous()
    ways = place.others(len(rows), "directions of rows")
    apart = oracles.products(points, ways)
    for row in rows.tolist():
        found.place, here = f"worker {row}", rows[row : row + 1]
        found.expect(same(oracles.products(points[row], ways[row], here)[0], apart[row]), "not at its own point")
    _alone(found, place, x, u)
    for row in place.rows:
        found.place, here = f"worker {row}", rows[row : row + 1]
        for way in (u, other):
            _one(found, oracles, x, way, here)
    found.place = ""
    _counted(found, place, x, u)


def _alone(found: Findings, place: Place, x: Tensor, u: Tensor) -> None:
    """Blocks of any size hold the same workers; what is given stays as it was."""
    n, before = place.problem.n, (x.clone(), u.clone())
    whole = place.oracles.products(x, u)
    for low, high in sorted({(0, 0), (n - 1, n), (n // 3, n)}):
        part = place.problem.host(Block(low, high, n))
        found.expect(same(part.products(x, u), whole[low:high]), f"products of workers {low} to {high - 1} differ")
    found.expect(same(x, before[0]) and same(u, before[1]), "the point or the vector is changed")


def _one(found: Findings, oracles: Oracles, x: Tensor, u: Tensor, row: np.ndarray) -> None:
    """Against differences of gradients, and against the Hessian itself where there is one."""
    product = oracles.products(x, u, row)[0].double().reshape(-1)
    slopes, error = bends(oracles, x, u, row)
    off, size = float((slopes - product).norm()), float(product.norm())
    found.expect(off <= error + 1e-7 * size + 1e-12, f"a product is off by {off:.3g} of {size:.3g}")
    if oracles.d > LARGEST:
        return
    try:
        matrix = svec_to_matrix(oracles.hessians(x, row)[0].double(), oracles.d)
    except ValueError:
        return  # products alone are fine
    off = float((matrix @ u.double().reshape(-1) - product).norm())
    most = 1e3 * torch.finfo(x.dtype).eps * float(matrix.norm())
    found.expect(off <= most, f"a product is off by {off:.3g} of the Hessian times the vector")


def _counted(found: Findings, place: Place, x: Tensor, u: Tensor) -> None:
    oracles, terms = place.oracles, place.oracles.terms()
    for rows, count in ((None, int(terms.sum())), (place.rows, int(terms[place.rows].sum()))):
        before = oracles.calls.product_terms
        oracles.products(x, u, rows)
        asked = oracles.calls.product_terms - before
        found.expect(asked == count, f"products of {count} terms are counted as {asked}")


def bends(oracles: Oracles, x: Tensor, u: Tensor, rows: np.ndarray) -> tuple[Tensor, float]:
    """The change of the gradient of one row along u, by differences of the fourth order, and how far it can be off."""
    eps = torch.finfo(x.dtype).eps
    width = eps**0.2 * (1.0 + float(x.abs().max()))
    found, largest = [], 0.0
    for h in (width, width / 2):
        g = [oracles.gradients(x + k * h * u, rows)[0].double().reshape(-1) for k in (-2, -1, 1, 2)]
        largest = max(largest, *(float(one.norm()) for one in g))
        found.append((g[0] - 8 * g[1] + 8 * g[2] - g[3]) / (12 * h))
    return found[1], float((found[0] - found[1]).norm()) + 40 * eps * largest / width
