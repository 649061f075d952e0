"""Misprints of the lecture on data similarity that a few lines of algebra decide."""

from __future__ import annotations

import numpy as np

from laconic.core.keys import Keys
from laconic.lab.recipe import Ruling, Verdict
from laconic.recipes._common import ruled


def constant(mu: float = 1.0, delta: float = 10.0) -> Verdict:
    """In one dimension f_1'' = mu + delta is as unlike f'' = mu as it may be."""
    half, full = mu / (mu + delta + delta), mu / (mu + delta + 2.0 * delta)
    claimed, more = mu / (mu + 2.0 * delta), half / full
    wrong = half >= claimed * (1.0 - 1e-12) and full < claimed * (1.0 - 1e-3)
    return Verdict(
        "half-delta",
        "in the theorem's text φ = f_1 + δ‖w‖²",
        Ruling.CORRECTED if wrong else ruled(full >= claimed),
        full,
        f"it must be (δ/2)‖w‖²: where f_1″ = f″ + δ and δ = {delta / mu:.0f}μ, μ_φ is {full:.4f} as printed, below the "
        f"claimed μ/(μ + 2δ) = {claimed:.4f}, and {half:.4f} with the half; it also takes {more:.2f} times the rounds",
    )


def forms(d: int = 6, delta: float = 0.3) -> list[Verdict]:
    """The step as a proximal step, and the estimator of variance reduction: both need gradients for f_1."""
    drawn = Keys(0, 0, "recipe/similarity/forms", np.arange(3), 3).normal(d * d + 3 * d).numpy()
    a = drawn[:, : d * d].reshape(3, d, d)
    h, (b, x, w) = np.einsum("mij,mkj->mik", a, a) / d, np.moveaxis(drawn[:, d * d :].reshape(3, 3, d), 1, 0)
    one = np.eye(d)
    x, w = x[0], w[0]
    gradients = lambda at: np.einsum("mij,j->mi", h, at) - b  # noqa: E731
    mean, first = gradients(x).mean(0), gradients(x)[0]
    mirror = x - np.linalg.solve(h[0] + delta * one, mean)
    centre = x - (mean - first) / delta
    prox = np.linalg.solve(h[0] / delta + one, b[0] / delta + centre)
    apart = float(np.abs(mirror - prox).max())
    estimates = gradients(x) - gradients(w) + gradients(w).mean(0) - first
    bias = float(np.abs(estimates.mean(0) - (mean - first)).max())
    lone = float(np.abs(estimates.mean(0) + first - (0.5 * x @ h[0] @ x - b[0] @ x) - (mean - first)).max())
    return [
        Verdict(
            "proximal-form",
            "the step is prox_{γ g₂}(w_k − γ g₁(w_k)) with g₁ = f − f_1 and g₂ = f_1",
            Ruling.CORRECTED if apart < 1e-10 else Ruling.FAILS,
            apart,
            f"with γ = 1/δ and ∇g₁ where the slide has the number g₁; the two points then differ by {apart:.0e}",
        ),
        Verdict(
            "estimator",
            "variance reduction estimates ∇f(x) − ∇f_1(x) by ∇f_i(x) − ∇f_i(w) + ∇f(w) − f_1(x)",
            Ruling.CORRECTED if bias < 1e-10 < lone else ruled(lone < 1e-10),
            bias,
            f"with ∇f_1(x) in the last place: its mean over i is then off by {bias:.0e}; with the number f_1(x), taken "
            f"from every coordinate, by {lone:.2g}",
        ),
    ]
