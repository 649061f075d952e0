"""Constants of linear models: the largest eigenvalues of weighted Gram matrices, and how unlike the workers are.

Numbers are rounded to 12 digits, so that the last bits of LAPACK, which depend on the machine, do not reach a stepsize.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator

import numpy as np
import torch
from scipy import sparse

from laconic.core.keys import Keys
from laconic.core.problem import Block, Constant, Constants, Kind, Solution, single_threaded
from laconic.problems._data import Matrix
from laconic.problems._linear import REGULARISER_BEND, Dealt, LinearOracles, Loss, Model
from laconic.problems._similarity import Apart, largest_of, of_matrices, of_products

DENSE = 2048  # the largest side of a matrix whose eigenvalues are computed
EXACT_WORK = 2e9  # n d^3 up to which every worker's matrix is decomposed
POWER_STEPS = 40
ROWS = 4096  # that are orthogonalised at once
MARGIN = 1.05  # on power iterations, which come from below


def rounded(value: float) -> float:
    """To 12 significant digits."""
    return float(f"{value:.11e}")


def gram(matrix: Matrix, weights: np.ndarray) -> np.ndarray:
    """A' diag(weights) A or, where smaller, the other product, with the same eigenvalues but zeros; weights >= 0."""
    scaled: Matrix = sparse.diags(np.sqrt(weights)) @ matrix
    side = scaled.T @ scaled if matrix.shape[1] <= matrix.shape[0] else scaled @ scaled.T
    return side.toarray()


def largest(matrix: Matrix, weights: np.ndarray) -> float:
    """The largest eigenvalue of A' diag(weights) A, weights >= 0; an upper bound where both sides are above DENSE."""
    if min(matrix.shape) <= DENSE:
        return float(torch.linalg.eigvalsh(torch.from_numpy(gram(matrix, weights)))[-1])
    return _collatz(sparse.diags(np.sqrt(weights)) @ matrix)


def _collatz(matrix: Matrix, steps: int = 200) -> float:
    """A bound of lambda_max(A'A): that of |A|'|A|, which for every v > 0 is at most max_j (|A|'|A| v)_j / v_j."""
    size: Matrix = abs(matrix).tocsr()
    v, bound = np.ones(size.shape[1]), math.inf
    for _ in range(steps):
        image = size.T @ (size @ v)
        bound = min(bound, float((image / v).max()))
        v = np.maximum(image / image.max(), 1e-12) if image.max() > 0.0 else v
    return bound


def each_largest(data: Dealt, curvature: float) -> np.ndarray:
    """lambda_max(A_i'A_i) * curvature / m_i of every worker, by the smaller Gram matrix, equal sizes together."""
    tops, grams = np.zeros(data.n), defaultdict(list)
    for worker in range(data.n):
        part = data.part(worker)
        weights = np.full(part.shape[0], curvature / part.shape[0])
        if min(part.shape) > DENSE:
            tops[worker] = largest(part, weights)
        else:
            grams[min(part.shape)].append((worker, gram(part, weights)))
            if len(grams[min(part.shape)]) * min(part.shape) ** 2 > 1 << 22:
                _settle(tops, grams.pop(min(part.shape)))
    for group in grams.values():
        _settle(tops, group)
    return tops


def _settle(tops: np.ndarray, group: list[tuple[int, np.ndarray]]) -> None:
    stacked = torch.from_numpy(np.stack([matrix for _, matrix in group]))
    tops[[worker for worker, _ in group]] = torch.linalg.eigvalsh(stacked)[:, -1].numpy()


def mean_weights(data: Dealt) -> np.ndarray:
    """1 / (n m_i) for every row: the weight of its loss in f."""
    return np.repeat(1.0 / (data.n * data.sizes), data.sizes)


def mean_hessian(data: Dealt, loss: Loss, x: np.ndarray) -> np.ndarray:
    """hess f(x) without regularisers, (d, d)."""
    weights = mean_weights(data) * loss.curvatures(data.matrix @ x, data.labels)
    return (data.matrix.T @ sparse.diags(weights) @ data.matrix).toarray()


def differences(data: Dealt, loss: Loss, x: np.ndarray) -> Apart:
    """How unlike the hess f_i(x) are: by eigenvalues or, where that takes too long, power iterations on products."""
    mean = torch.from_numpy(mean_hessian(data, loss, x))
    if data.n * data.d**3 <= EXACT_WORK:
        return of_matrices(lambda: hessians(data, loss, x), mean, data.n)
    oracles = LinearOracles(data, Model(loss, 0.0), Block.whole(data.n))
    return of_products(oracles, torch.from_numpy(x), POWER_STEPS, mean=lambda v: v @ mean)


def hessians(data: Dealt, loss: Loss, x: np.ndarray) -> Iterator[torch.Tensor]:
    """hess f_i(x) without regularisers of one worker after the other, (d, d)."""
    for worker in range(data.n):
        part, labels = data.part(worker), data.labels[data.starts[worker] : data.starts[worker + 1]]
        weights = loss.curvatures(part @ x, labels) / part.shape[0]
        yield torch.from_numpy((part.T @ sparse.diags(weights) @ part).toarray())


def _rows_squared(data: Dealt) -> np.ndarray:
    return np.asarray(data.matrix.multiply(data.matrix).sum(axis=1)).reshape(-1)


@single_threaded
def linear_constants(data: Dealt, model: Model, solution: Solution | None) -> Constants:
    """All constants of the mean of linear models. The smoothness of convex parts is attained at x = 0."""
    n, extra, curvature = data.n, model.regularity, model.loss.curvature
    weights, squared = mean_weights(data), _rows_squared(data)
    tops = each_largest(data, curvature)
    worker_of = np.repeat(np.arange(n), data.sizes)
    smoothness = np.array([rounded(top + extra) for top in tops])
    exact = Kind.EXACT if data.d <= DENSE and model.loss.convex else Kind.BOUND
    how = "largest eigenvalue, attained at x = 0" if exact is Kind.EXACT else "largest eigenvalue of |A|'|A| from above"
    if data.d <= DENSE and not model.loss.convex:
        how = "sup |phi''| times the largest eigenvalue of A'A"
    found = {
        "L": Constant(rounded(largest(data.matrix, curvature * weights) + extra), exact, how),
        "L_max": Constant(float(smoothness.max()), exact, how),
        "L_tilde": Constant(rounded(math.sqrt(math.fsum(smoothness**2) / n)), exact, how),
        "L_sample": Constant(rounded(curvature * float(squared.max()) + extra), Kind.EXACT, "max ||a||^2"),
        **_spreads(data, model, tops, weights * curvature, worker_of),
        **_similarities(data, model, tops, solution),
        **_curvatures(data, model, weights, squared),
    }
    if solution is not None:
        gradients = LinearOracles(data, model, Block.whole(n)).gradients(solution.x).numpy()
        mean_square = math.fsum((gradients**2).sum(axis=1)) / n
        found["sigma_star"] = Constant(rounded(math.sqrt(mean_square)), Kind.EXACT, "at x*")
    if model.quadratic and n * data.d**3 <= EXACT_WORK:
        found |= _of_quadratics(data, model)
    if model.quadratic and model.l2 == 0.0 and data.d <= DENSE:
        found.pop("mu", None)
        found |= _of_least_squares(data)
    return Constants(L_workers=tuple(smoothness.tolist()), **found)


def _spreads(
    data: Dealt, model: Model, tops: np.ndarray, weights: np.ndarray, worker_of: np.ndarray
) -> dict[str, Constant]:
    """L_plus and L_pm. With Q_i = sup |phi''| A_i'A_i / m_i, ||H_i v||^2 <= ||Q_i|| v'Q_i v, for H_i = A_i'D A_i / m_i
    with a diagonal |D| <= sup |phi''|. So lambda_max of mean ||Q_i|| Q_i bounds mean H_i^2.

    L_pm does not see what all f_i share, so the regularisers do not enter it.
    """
    spread = math.sqrt(largest(data.matrix, weights * tops[worker_of]))
    root_mean_square = math.sqrt(math.fsum((tops + model.regularity) ** 2) / data.n)
    plus = root_mean_square
    if model.convex:  # (H + l2)^2 <= (||Q|| + l2) (Q + l2)
        shifted = largest(data.matrix, weights * (tops + model.l2)[worker_of])
        plus = min(plus, math.sqrt(shifted + model.l2 * math.fsum(tops + model.l2) / data.n))
    elif model.nonconvex == 0.0:  # (H + l2)^2 <= (||Q|| + 2 l2) Q + l2^2
        shifted = largest(data.matrix, weights * (tops + 2.0 * model.l2)[worker_of])
        plus = min(plus, math.sqrt(shifted + model.l2**2))
    how = "from mean L_i hess f_i at x = 0" if model.loss.convex else "from mean L_i A_i'A_i"
    return {
        "L_plus": Constant(rounded(plus), Kind.BOUND, how),
        "L_pm": Constant(rounded(min(spread, plus)), Kind.BOUND, f"{how}, without regularisers"),
    }


def _similarities(data: Dealt, model: Model, tops: np.ndarray, solution: Solution | None) -> dict[str, Constant]:
    """The delta family: norms at a few points, or bounds where d is too large for them."""
    if data.d > DENSE:
        top, how = max(tops.max(), largest(data.matrix, model.loss.curvature * mean_weights(data))), "max ||hess f_i||"
        if not model.loss.convex:  # their differences may be larger than they are
            top, how = 2.0 * top, f"2 {how}"
        return {name: Constant(rounded(top), Kind.BOUND, how) for name in Apart(0.0, 0.0, 0.0, 0.0).named()}
    points, where = [np.zeros(data.d)], "x = 0"
    if model.loss.bend > 0.0:  # otherwise the Hessians are constant
        if solution is not None:
            points, where = [*points, solution.x.numpy()], "x = 0 and x*"
        else:
            points.append(Keys(0, 0, "problem/points", np.arange(1), 1).normal(data.d).numpy()[0])
            where = "x = 0 and a random point"
    seen = largest_of(differences(data, model.loss, x) for x in points)
    means = "eigenvalues" if data.n * data.d**3 <= EXACT_WORK else "power iteration"
    how = f"{means} at {where}, times {MARGIN}"
    values = {name: float(f"{MARGIN * value:.5e}") for name, value in seen.named().items()}
    return {name: Constant(value, Kind.ESTIMATE, how) for name, value in values.items()}


def _curvatures(data: Dealt, model: Model, weights: np.ndarray, squared: np.ndarray) -> dict[str, Constant]:
    """Strong convexity and the Lipschitz constant of the Hessian, from max_v (1/n) sum |a|(a'v)^2 phi'''."""
    bend = model.loss.bend
    third = bend * largest(data.matrix, weights * np.sqrt(squared)) if bend else 0.0
    third += model.nonconvex * REGULARISER_BEND
    found = {"hessian_lipschitz": Constant(rounded(third), Kind.BOUND, "sup |phi'''|")}
    if model.convex and model.l2 > 0.0:
        found["mu"] = found["mu_workers"] = Constant(model.l2, Kind.BOUND, "l2")
    return found


def _of_quadratics(data: Dealt, model: Model) -> dict[str, Constant]:
    """Constants of constant Hessians, exact by eigenvalues."""
    n, zero, identity = data.n, np.zeros(data.d), torch.eye(data.d, dtype=torch.float64)
    mean = torch.from_numpy(mean_hessian(data, model.loss, zero)) + model.l2 * identity
    least, squares = math.inf, torch.zeros_like(mean)

    def matrices() -> Iterator[torch.Tensor]:
        return (one + model.l2 * identity for one in hessians(data, model.loss, zero))

    for one in matrices():
        least = min(least, float(torch.linalg.eigvalsh(one)[0]))
        squares += one @ one / n
    apart = of_matrices(matrices, mean, n)
    values = {
        "mu": max(float(torch.linalg.eigvalsh(mean)[0]), model.l2),
        "mu_workers": max(least, model.l2),
        "L_plus": math.sqrt(float(torch.linalg.eigvalsh(squares)[-1])),
        "L_pm": apart.mean,
        **apart.named(),
        "hessian_lipschitz": 0.0,
    }
    return {name: Constant(rounded(value), Kind.EXACT, "eigenvalues") for name, value in values.items()}


def _of_least_squares(data: Dealt) -> dict[str, Constant]:
    """Strong convexity where the rows span the space, else the Polyak-Lojasiewicz constant."""
    scales, directions = span(data)
    name = "mu" if len(scales) == data.d else "mu_pl"
    least = float(scales[-1]) ** 2 if len(scales) else 0.0
    return {name: Constant(rounded(least), Kind.EXACT, f"least eigenvalue of {len(scales)} that are not 0")}


def span(data: Dealt) -> tuple[np.ndarray, np.ndarray]:
    """Singular values (r,), largest first, that are not 0, and right singular vectors (r, d) of all weighted rows.

    Their squares are the eigenvalues of hess f of the squared loss, from the rows themselves and not from their Gram
    matrix, whose rounding hides those below 1e-16 of the largest.
    """
    matrix: Matrix = sparse.diags(np.sqrt(mean_weights(data))) @ data.matrix
    triangle = np.zeros((0, data.d))
    for first in range(0, matrix.shape[0], ROWS):
        triangle = np.linalg.qr(np.vstack([triangle, matrix[first : first + ROWS].toarray()]), mode="r")
    _, scales, directions = np.linalg.svd(triangle, full_matrices=False)
    rank = int((scales > scales[0] * max(matrix.shape) * np.finfo(float).eps).sum())
    return scales[:rank], directions[:rank]
