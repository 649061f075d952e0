"""Steps of second-order models, on one thread: the cubic-regularised Newton step, and what is not positive definite."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from laconic.core.link import Link
from laconic.core.problem import single_threaded
from laconic.core.rows import svec_to_matrix

MOST = 200  # trials of the norm: bisection alone needs no more
CLOSE = 4e-16  # relative, of the norm
FLAT = 1e-14  # share of the gradient along the lowest eigenvectors below which it does not see them
SAME = 1e-14  # relative, of eigenvalues that are told apart


class Indefinite(torch.linalg.LinAlgError):
    """A matrix is not positive definite: its least eigenvalue is `least`, NaN where it is not finite."""

    def __init__(self, what: str, least: float) -> None:
        super().__init__(f"{what} is not positive definite: its least eigenvalue is {least:.3g}")
        self.what, self.least = what, least


def attempted(compute: Callable[[], Tensor], like: Tensor, link: Link) -> Tensor:
    """What `compute` gives or, where a matrix of it is `Indefinite`, NaN of the shape of `like` and a remark.

    The NaN ends the run, and the remark is its reason. An exception would be the process' who computes alone, and the
    others would wait for it.
    """
    try:
        return compute()
    except Indefinite as error:
        link.remark(f"{error.what} is not positive definite (minus its least eigenvalue)", -error.least)
        return torch.full_like(like, math.nan)


@single_threaded
def factored(matrix: Tensor, what: str) -> Tensor:
    """The Cholesky factor of a symmetric matrix (d, d). Raises Indefinite."""
    factor, failed = torch.linalg.cholesky_ex(matrix)
    if bool(failed) or not bool(torch.isfinite(factor).all()):
        finite = bool(torch.isfinite(matrix).all())
        raise Indefinite(what, float(torch.linalg.eigvalsh(matrix)[0]) if finite else math.nan)
    return factor


@single_threaded
def solved(factor: Tensor, vector: Tensor) -> Tensor:
    """The solution (*shape) for a Cholesky factor (d, d) and a vector (*shape)."""
    return torch.cholesky_solve(vector.reshape(-1, 1), factor).view(vector.shape)


def shifted(svec: Tensor, shift: float, d: int) -> Tensor:
    """A + shift I (d, d) of an svec."""
    matrix = svec_to_matrix(svec, d)
    matrix.diagonal().add_(shift)
    return matrix


def cubic_steps(hessians: Tensor, gradient: Tensor, shift: float, weight: float) -> Tensor:
    """argmin_s <g, s> + s'(A_i + shift I) s / 2 + (weight / 6) ||s||^3 of each svec A_i: (rows, *shape) for g (*shape).

    Raises Indefinite where weight is 0 and a matrix is not positive definite.
    """
    flat = gradient.reshape(-1)
    steps = [cubic_step(shifted(one, shift, len(flat)), flat, weight) for one in hessians]
    return (torch.stack(steps) if steps else flat.new_zeros(0, len(flat))).view(-1, *gradient.shape)


@single_threaded
def cubic_step(matrix: Tensor, gradient: Tensor, weight: float) -> Tensor:
    """argmin_s <g, s> + s'As / 2 + (weight / 6) ||s||^3 for a symmetric A (d, d), g (d,), weight >= 0, on one thread.

    It is the s with (A + m I) s = -g, A + m I >= 0 and m = (weight / 2) ||s||. In A's eigenvectors the norm of
    (A + m I)^{-1} g falls with m, so m is found by Newton's method on 1 / ||s||, nearly linear in m, between bounds
    that bisect where it leaves them. In the hard case, where g does not see the lowest eigenvectors of an indefinite A
    and s is too short even at the least m, the rest of its length is put along one of them (the first, positive).

    Raises Indefinite where weight is 0 and A is not positive definite, for then the model has no minimiser, and where A
    is not finite.
    """
    if not bool(torch.isfinite(matrix).all()):
        raise Indefinite("the matrix of a cubic step", math.nan)
    if not bool(torch.isfinite(gradient).all()):
        return torch.full_like(gradient, math.nan)
    values, vectors = torch.linalg.eigh(matrix)
    slope = vectors.T @ gradient.clone()  # at an address of torch's choice, on which BLAS depends
    if weight == 0.0:
        if not float(values[0]) > 0.0:
            raise Indefinite("the matrix of a Newton step", float(values[0]))
        return -(vectors @ (slope / values))
    return -(vectors @ _coordinates(values, slope, weight))


def _coordinates(values: Tensor, slope: Tensor, weight: float) -> Tensor:
    """-s in the eigenvectors, of ascending eigenvalues.

    Works with t = m - low, low the least m that is allowed, and with the eigenvalues of A + low I, the least of which
    is then exactly 0 where A is indefinite: sums of m and eigenvalues would cancel there.
    """
    size, low = float(torch.linalg.vector_norm(slope)), max(0.0, -float(values[0]))
    if size == 0.0 and low == 0.0:
        return torch.zeros_like(slope)
    gaps = values + low
    lowest = gaps <= gaps[0] + SAME * float(values.abs().max())
    if low > 0.0 and float(torch.linalg.vector_norm(slope[lowest])) <= FLAT * size:
        rest = torch.where(lowest, 0.0, slope / torch.where(lowest, 1.0, gaps))
        short = (2.0 * low / weight) ** 2 - float(rest.square().sum())
        if short >= 0.0:  # the hard case
            rest[0] = -math.sqrt(short)
            return rest
    return slope / (gaps + _shift(gaps, slope, weight, low))


def _shift(gaps: Tensor, slope: Tensor, weight: float, low: float) -> float:
    """The t > 0 with (weight / 2) ||(gaps + t)^{-1} slope|| = low + t: the left falls, the right grows.

    The norm is at least |slope_j| / (gaps_j + t) for every j, and at most that of the least gap for the whole slope.
    """

    def bound(size: float, gap: float) -> float:  # the t of a slope with one coordinate
        product = 2.0 * weight * size - 4.0 * low * gap
        return product / (2.0 * (low + gap + math.sqrt((low + gap) ** 2 + product))) if product > 0.0 else 0.0

    sizes = slope.abs()
    below = max(bound(size, gap) for size, gap in zip(sizes.tolist(), gaps.tolist(), strict=True))
    above = bound(float(torch.linalg.vector_norm(slope)), float(gaps[0]))
    t = above
    for _ in range(MOST):
        shifted = gaps + t
        image = slope / shifted
        length, m = float(torch.linalg.vector_norm(image)), low + t
        below, above = (t, above) if 0.5 * weight * length > m else (below, t)
        # Newton's method on 1 / length - weight / (2 m), whose first term is nearly linear in t
        bend = float(((image / length).square() / shifted).sum()) / length
        move = (0.5 * weight / m - 1.0 / length) / (bend + 0.5 * weight / (m * m))
        if abs(move) <= CLOSE * t:
            break
        t += move
        if not below < t < above:
            t = math.sqrt(below) * math.sqrt(above) if below > 0.0 else 0.5 * above
            if not below < t < above:
                break
    return t
