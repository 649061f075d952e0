"""Reference solutions of linear models: SciPy's Newton-CG, then Newton to machine precision; least squares by SVD."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from scipy.optimize import minimize
from scipy.sparse.linalg import LinearOperator, cg

from laconic.core.problem import Solution, single_threaded
from laconic.problems._linear import Dealt, LinearOracles
from laconic.problems._spectra import DENSE, mean_hessian, span

NEWTON_STEPS = 100  # at most, where SciPy stopped early


@single_threaded
def minimise(oracles: LinearOracles, data: Dealt) -> Solution:
    """The minimiser of the mean of all workers' functions, certified by ||grad f||^2 / (2 l2)."""
    model, n, d = oracles.model, data.n, data.d

    def value(x: np.ndarray) -> float:
        return math.fsum(oracles.values(torch.from_numpy(x)).numpy()) / n

    def gradient(x: np.ndarray) -> np.ndarray:
        return oracles.gradients(torch.from_numpy(x)).numpy().mean(axis=0)

    def product(x: np.ndarray, v: np.ndarray) -> np.ndarray:
        return oracles.products(torch.from_numpy(x), torch.from_numpy(np.ascontiguousarray(v))).numpy().mean(axis=0)

    def newton(x: np.ndarray, slope: np.ndarray) -> np.ndarray:
        if d <= DENSE:
            hessian = mean_hessian(data, model.loss, x) + model.l2 * np.eye(d)
            return torch.linalg.solve(torch.from_numpy(hessian), torch.from_numpy(slope)).numpy()
        operator: Any = LinearOperator  # its factory's signature is not declared
        operator = operator((d, d), matvec=lambda v: product(x, v.reshape(-1)), dtype=np.float64)
        return cg(operator, slope, rtol=1e-10, maxiter=10 * d)[0]

    options = {"xtol": 1e-6, "maxiter": 30}
    x = minimize(value, np.zeros(d), jac=gradient, hessp=product, method="Newton-CG", options=options).x
    best, least, near = x, math.inf, False
    for _ in range(NEWTON_STEPS):
        slope = gradient(x)
        squared = math.fsum(slope**2)
        if squared < least:
            best, least = x, squared
        elif near:  # full steps no longer help: this is machine precision
            break
        move, height = newton(x, slope), value(x)
        decrement, size = float(slope @ move), 1.0
        near = decrement <= 1e-10 * abs(height)
        while not near and size > 1e-9 and value(x - size * move) > height - 1e-4 * size * decrement:
            size *= 0.5
        x = x - size * move
    return Solution(torch.from_numpy(best.copy()), value(best), least / (2.0 * model.l2))


@single_threaded
def least_norm(oracles: LinearOracles, data: Dealt) -> Solution:
    """The minimiser of least norm of squared losses without l2, certified by ||grad f||^2 / (2 mu_pl).

    Gradient descent from 0 stays in the span of the rows and goes to this one.
    """
    scales, directions = span(data)

    def gradient(x: np.ndarray) -> np.ndarray:
        return oracles.gradients(torch.from_numpy(x)).numpy().mean(axis=0)

    x = best = np.zeros(data.d)
    least = math.inf
    for _ in range(4):  # a solve and three refinements
        slope = gradient(x)
        squared = math.fsum(slope**2)
        if squared < least:
            best, least = x, squared
        x = x - directions.T @ ((directions @ slope) / scales**2)
    found = torch.from_numpy(best.copy())
    value = math.fsum(oracles.values(found).numpy()) / data.n
    return Solution(found, value, least / (2.0 * float(scales[-1]) ** 2) if len(scales) else 0.0)
