"""Problems against mathematics: dense references, differences, autograd, eigenvalues, closed forms, identities."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from laconic.core.keys import Keys
from laconic.core.problem import Batch, Block, Constant, Constants, Kind, Oracles, Problem, Solution
from laconic.problems import _base, _cache, _linear, _similarity, _spectra
from laconic.problems.counterexample import Counterexample
from laconic.problems.custom import Custom
from laconic.problems.least_squares import LeastSquares
from laconic.problems.logistic import Logistic
from laconic.problems.quadratic import Quadratic
from laconic.problems.ridge import Ridge
from laconic.problems.squared_sigmoid import SquaredSigmoid


def normal(*shape: int, seed: int = 0, scale: float = 1.0) -> Tensor:
    """Standard normal numbers of a test, times a scale."""
    flat = Keys(seed, 0, "test", np.arange(1), 1).normal(max(1, math.prod(shape)))[0]
    return scale * flat[: math.prod(shape)].reshape(shape)


def unpacked(triangles: Tensor, d: int) -> Tensor:
    """Symmetric matrices (rows, d, d) of their svec."""
    i, j = torch.triu_indices(d, d)
    full = torch.zeros((len(triangles), d, d), dtype=torch.float64)
    full[:, i, j] = triangles / math.sqrt(2.0)
    full = full + full.transpose(1, 2)
    return full + (math.sqrt(0.5) - 1.0) * torch.diag_embed(torch.diagonal(full, dim1=1, dim2=2))


def small_module(dtype: torch.dtype = torch.float64) -> torch.nn.Module:
    """Two layers with fixed parameters."""
    module = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Tanh(), torch.nn.Linear(4, 2))
    with torch.no_grad():
        for number, parameter in enumerate(module.parameters()):
            parameter.copy_(normal(*parameter.shape, seed=number))
    return module.to(dtype)


def solved(problem: Problem) -> Solution:
    """The solution that the problem must have."""
    solution = problem.solution()
    assert solution is not None
    return solution


def known(constant: Constant | None) -> float:
    """The value of a constant that the problem must know."""
    assert constant is not None
    return constant.value


def of_module(dtype: torch.dtype = torch.float64, **options) -> Problem:
    """A module's problem with uneven workers."""
    inputs, targets = normal(11, 3, seed=9).to(dtype), torch.arange(11) % 2
    loss = torch.nn.functional.cross_entropy
    return Custom.from_module(small_module(dtype), loss, inputs, targets, workers=4, **options)


def sparse_rows() -> _base.LinearProblem:
    """Sparse rows of negative and positive numbers, an empty row among them, and 7 uneven workers."""
    rows = normal(45, 9).numpy() * (normal(45, 9, seed=1).numpy() > 0.5)
    rows[3] = 0.0
    return Custom.from_arrays(rows, np.sign(normal(45, seed=2).numpy()), workers=7, l2=0.02)


PROBLEMS: dict[str, Callable[[], Any]] = {
    "logistic": lambda: Logistic(workers=7, l2=1e-2),
    "logistic nonconvex": lambda: Logistic(workers=7, l2=1e-2, nonconvex=0.3, split="shuffled"),
    "logistic dirichlet": lambda: Logistic(data="digits", workers=5, split="dirichlet", intercept=True),
    "ridge": lambda: Ridge(workers=6),
    "ridge of one row each": lambda: Ridge(workers=442),
    "arrays": sparse_rows,
    "quadratic": lambda: Quadratic(d=17, workers=5, mu=1e-2),
    "quadratic d=1": lambda: Quadratic(d=1, workers=3, noise=0.2, mu=1e-2),
    "quadratic d=2": lambda: Quadratic(d=2, workers=3, noise=0.2, mu=1e-2),
    "counterexample": Counterexample,
    "module": lambda: of_module(l2=0.1),
    "custom": lambda: Custom(path="diabetes", loss="ridge", workers=3, split="sorted"),
    "least squares": lambda: LeastSquares(workers=5, split="shuffled"),
    "squared sigmoid": lambda: SquaredSigmoid(workers=7, l2=1e-3, intercept=True),
}


@pytest.fixture(params=list(PROBLEMS), scope="module")
def problem(request) -> Problem:
    """Each problem in turn."""
    return PROBLEMS[request.param]()


@pytest.fixture
def oracles(problem: Problem) -> Oracles:
    """Its oracles for all workers."""
    return problem.oracles(Block.whole(problem.n))


def dense_gradients(problem, x: np.ndarray) -> np.ndarray:
    """grad f_i(x) of a linear model in a few lines of NumPy."""
    data, model, out = problem.dealt(), problem.model(), []
    for i in range(data.n):
        a, y = data.part(i).toarray(), data.labels[data.starts[i] : data.starts[i + 1]]
        s = a @ x
        p = 1.0 / (1.0 + np.exp(y * s))
        slope = {_linear.SQUARED: s - y, _linear.LOGISTIC: -y * p, _linear.SIGMOID: -2.0 * y * p * p * (1.0 - p)}
        slope = slope[model.loss]
        out.append(a.T @ slope / len(y) + model.l2 * x + model.nonconvex * 2 * x / (1 + x * x) ** 2)
    return np.array(out)


LINEAR = ["logistic", "logistic nonconvex", "logistic dirichlet", "ridge", "arrays", "least squares", "squared sigmoid"]


@pytest.mark.parametrize("name", LINEAR)
def test_gradients_of_linear_models_equal_a_dense_reference(name) -> None:
    problem = PROBLEMS[name]()
    oracles = problem.oracles(Block.whole(problem.n))
    x = normal(oracles.d, scale=0.3)
    assert np.allclose(oracles.gradients(x).numpy(), dense_gradients(problem, x.numpy()), rtol=1e-12, atol=1e-14)


def test_gradients_are_derivatives_of_the_values(problem, oracles) -> None:
    x, v, h = oracles.start() + normal(oracles.d, scale=0.3), normal(oracles.d, seed=1), 1e-5
    slopes = (oracles.values(x + h * v) - oracles.values(x - h * v)) / (2 * h)
    assert torch.allclose(oracles.gradients(x) @ v, slopes, rtol=1e-6, atol=1e-7)


def test_hessians_are_derivatives_of_the_gradients(problem, oracles) -> None:
    x, h, d = oracles.start() + normal(oracles.d, scale=0.3), 1e-5, oracles.d
    full = unpacked(oracles.hessians(x), d)
    for v in (normal(d, seed=1), torch.eye(d, dtype=torch.float64)[d // 2]):
        slopes = (oracles.gradients(x + h * v) - oracles.gradients(x - h * v)) / (2 * h)
        assert torch.allclose(full @ v, slopes, rtol=1e-5, atol=1e-6)
        assert torch.allclose(oracles.products(x, v), full @ v, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("nonconvex", [0.0, 0.3])
def test_the_logistic_hessian_equals_autograds(nonconvex) -> None:
    problem = Logistic(workers=3, l2=0.05, nonconvex=nonconvex)
    data, x = problem.dealt(), normal(30, scale=0.2)

    def value(x: Tensor, i: int) -> Tensor:
        a = torch.from_numpy(data.part(i).toarray())
        y = torch.from_numpy(data.labels[data.starts[i] : data.starts[i + 1]])
        loss = torch.nn.functional.softplus(-y * (a @ x), threshold=1e9).mean()
        return loss + 0.025 * (x * x).sum() + nonconvex * (x * x / (1 + x * x)).sum()

    oracles = problem.oracles(Block.whole(3))
    full = unpacked(oracles.hessians(x), 30)
    for worker in range(3):
        assert torch.allclose(oracles.values(x)[worker], value(x, worker), rtol=1e-12)
        hessian = torch.func.jacrev(torch.func.grad(value))(x, worker)
        assert torch.allclose(full[worker], hessian, rtol=1e-10, atol=1e-12)
        assert float(oracles.hessians(x)[worker].norm()) == pytest.approx(float(hessian.norm()), rel=1e-12)


def test_hessians_are_written_anew_each_time() -> None:
    oracles = Logistic(workers=4).oracles(Block.whole(4))
    x = normal(30)
    first = oracles.hessians(x).clone()
    oracles.hessians(x).fill_(7.0)  # borrowed: callers may write to it
    assert torch.equal(oracles.hessians(x), first)
    assert torch.equal(oracles.hessians(x, np.array([2, 0])), first[[2, 0]])


def points(oracles: Oracles, rows: int) -> list[Tensor]:
    """One point for all rows, and one for each."""
    return [
        (oracles.start() + normal(oracles.d)).to(oracles.dtype),
        (oracles.start() + normal(rows, oracles.d, seed=1)).to(oracles.dtype),
    ]


def everything(oracles: Any, x: Tensor, rows: np.ndarray | None = None) -> list[Tensor]:
    """What a block computes at x; more than one call per kind, so that borrowed memory is copied."""
    v = normal(oracles.d, seed=5).to(oracles.dtype)
    return [
        oracles.values(x, rows),
        oracles.gradients(x, rows),
        oracles.hessians(x, rows).clone(),
        oracles.products(x, v, rows),
    ]


def test_a_row_has_the_same_bits_in_every_block_and_choice_of_rows(problem, oracles) -> None:
    for x in points(oracles, problem.n):
        whole = everything(oracles, x)
        for block in [*Block.deal(problem.n, 3), Block(0, 0, problem.n), Block(0, 1, problem.n)]:
            mine = x if x.ndim == 1 else x[block.low : block.high]
            for part, all_rows in zip(everything(problem.oracles(block), mine), whole, strict=True):
                assert torch.equal(part, all_rows[block.low : block.high])
        rows = np.array([problem.n - 1, 0, problem.n // 2])
        for part, all_rows in zip(everything(oracles, x if x.ndim == 1 else x[rows], rows), whole, strict=True):
            assert torch.equal(part, all_rows[rows])


def test_threads_change_no_bit(problem, oracles, two_threads, monkeypatch) -> None:
    monkeypatch.setattr("laconic.kernels.threads.SMALL", 0)
    for x in points(oracles, problem.n):
        torch.set_num_threads(2)
        parallel = everything(oracles, x)
        torch.set_num_threads(1)
        assert all(torch.equal(a, b) for a, b in zip(parallel, everything(oracles, x), strict=True))


def test_minibatches_average_their_terms(problem, oracles) -> None:
    x, rows = points(oracles, problem.n)[0], np.array([problem.n - 1, 0])
    terms = oracles.terms()
    keys = Keys(0, 3, "batch", np.arange(problem.n), problem.n)
    batch = oracles.sample(keys, 6, rows)
    assert (batch.indices >= 0).all() and (batch.indices < terms[rows][:, None]).all()
    drawn = oracles.gradients(x, rows, batch)
    single = [oracles.gradients(x, rows, dataclasses.replace(batch, indices=batch.indices[:, [k]])) for k in range(6)]
    assert torch.allclose(drawn, torch.stack(single).mean(dim=0), rtol=1e-12, atol=1e-14)
    everyone = np.array([np.arange(terms[0])])
    whole = oracles.gradients(x, np.array([0]), Batch(np.array([0]), everyone))
    assert torch.allclose(whole, oracles.gradients(x, np.array([0])), rtol=1e-12, atol=1e-14)


def test_calls_count_terms() -> None:
    oracles = Logistic(workers=10).oracles(Block.whole(10))
    oracles.gradients(oracles.start())
    assert oracles.calls.gradient_terms == 569
    batch = oracles.sample(Keys(0, 0, "b", np.arange(10), 10), 4, np.arange(2))
    oracles.gradients(oracles.start(), np.arange(2), batch)
    assert oracles.calls.gradient_terms == 569 + 8
    oracles.hessians(oracles.start(), np.array([0]))
    assert oracles.calls.hessian_terms == 56


@pytest.mark.parametrize("loss", ["logistic", "ridge"])
def test_rows_of_others_are_never_looked_at(loss) -> None:
    rows, labels = normal(20, 4).numpy(), np.sign(normal(20, seed=1).numpy())
    whole = Custom.from_arrays(rows, labels, workers=5, loss=loss)
    expected, constants, solution = whole.oracles(Block.whole(5)), whole.constants(), whole.solution()
    block = Block(1, 3, 5)
    own = [(rows[4 * i : 4 * i + 4], labels[4 * i : 4 * i + 4]) for i in range(5)]
    poisoned = [pair if i in (1, 2) else (pair[0] * np.nan, pair[1] * np.nan) for i, pair in enumerate(own)]
    listed = [list(part) for part in zip(*poisoned, strict=True)]
    problem = Custom.from_arrays(*listed, loss=loss, constants=constants, solution=solution)
    x = normal(4, seed=2)
    for mine, everybodys in zip(everything(problem.oracles(block), x), everything(expected, x), strict=True):
        assert torch.isfinite(mine).all() and torch.equal(mine, everybodys[1:3])
    assert problem.constants() is constants and problem.solution() is solution
    with pytest.raises(ValueError, match="some rows are not finite, so constants= and solution= must be given"):
        Custom.from_arrays(*listed, loss=loss).constants()


def test_margins_that_overflow_exp_stay_finite_and_right() -> None:
    rows = np.array([[3000.0], [-3000.0], [3000.0]])
    problem = Custom.from_arrays(rows, [1, 1, -1], workers=3, l2=0.0)
    oracles, x = problem.oracles(Block.whole(3)), torch.ones(1, dtype=torch.float64)
    assert oracles.values(x).tolist() == [0.0, 3000.0, 3000.0]
    assert oracles.gradients(x)[:, 0].tolist() == [0.0, 3000.0, 3000.0]
    assert torch.isfinite(oracles.hessians(x)).all()


def matrices(problem: Any, x: Tensor) -> np.ndarray:
    """The Hessians as (n, d, d)."""
    oracles = problem.oracles(Block.whole(problem.n))
    return np.stack([oracles.products(x, e).numpy() for e in torch.eye(oracles.d, dtype=torch.float64)], axis=2)


def norm(matrix: np.ndarray) -> float:
    """The spectral norm."""
    return float(np.linalg.norm(matrix, 2))


QUADRATICS = [
    "ridge",
    "ridge of one row each",
    "quadratic",
    "quadratic d=1",
    "counterexample",
    "custom",
    "least squares",
]


@pytest.mark.parametrize("name", QUADRATICS)
def test_constants_of_quadratics_equal_eigenvalues(name) -> None:
    problem = PROBLEMS[name]()
    c, n = problem.constants(), problem.n
    h = matrices(problem, problem.oracles(Block.whole(n)).start())
    mean = h.mean(axis=0)
    apart = [norm(one - mean) for one in h]
    spread = math.sqrt(norm(np.mean([(one - mean) @ (one - mean) for one in h], axis=0)))
    smooth = np.array([norm(one) for one in h])
    expected = {
        "L": np.linalg.eigvalsh(mean)[-1],
        "L_max": smooth.max(),
        "L_tilde": math.sqrt((smooth**2).mean()),
        "L_plus": math.sqrt(norm(np.mean([one @ one for one in h], axis=0))),
        "L_pm": spread,
        "delta_mean": spread,
        "mu": np.linalg.eigvalsh(mean)[0],
        "mu_workers": min(np.linalg.eigvalsh(one)[0] for one in h),
        "delta": max(apart),
        "delta_server": apart[0],
        "delta_first": max(norm(one - h[0]) for one in h),
        "hessian_lipschitz": 0.0,
    }
    for name, value in expected.items():
        assert getattr(c, name).kind is Kind.EXACT
        assert getattr(c, name).value == pytest.approx(value, rel=1e-9, abs=1e-9), name
    assert np.allclose(c.L_workers, smooth, rtol=1e-9)


def test_smoothness_of_logistic_models_is_attained_at_zero() -> None:
    for nonconvex in (0.0, 0.2):
        problem = Logistic(workers=7, l2=1e-2, nonconvex=nonconvex)
        c, h = problem.constants(), matrices(problem, torch.zeros(30, dtype=torch.float64))
        assert c.L.kind is Kind.EXACT and c.L.value == pytest.approx(norm(h.mean(axis=0)), rel=1e-10)
        assert np.allclose(c.L_workers, [norm(one) for one in h], rtol=1e-10)
        assert c.L_max.value == max(c.L_workers)
        assert c.L_tilde.value == pytest.approx(math.sqrt(np.mean(np.square(c.L_workers))), rel=1e-10)


@pytest.mark.parametrize("name", [name for name in PROBLEMS if name != "module"])
def test_constants_hold_on_random_pairs(name) -> None:
    problem = PROBLEMS[name]()
    c, oracles = problem.constants(), problem.oracles(Block.whole(problem.n))
    for seed in range(40):
        scale = 10.0 ** (seed % 5 - 3)
        x = normal(oracles.d, seed=seed, scale=10.0 ** (seed % 3 - 1))
        y = x + normal(oracles.d, seed=100 + seed, scale=scale)
        moved, distance = (oracles.gradients(x) - oracles.gradients(y)).numpy(), float((x - y).norm())
        whole, each = moved.mean(axis=0), np.linalg.norm(moved, axis=1)
        slack = 1.0 + 1e-6
        assert np.linalg.norm(whole) <= c.L.value * distance * slack
        assert (each <= np.array(c.L_workers) * distance * slack).all()
        mean_square = (each**2).mean()
        assert mean_square <= (c.L_plus.value * distance * slack) ** 2 and c.L_plus.value <= c.L_tilde.value * slack
        assert mean_square - whole @ whole <= (c.L_pm.value * distance * slack) ** 2 + 1e-9 * mean_square
        if c.mu is not None:
            rounding = 1e-12 * np.linalg.norm(whole) * distance
            assert whole @ (x - y).numpy() >= c.mu.value * distance**2 / slack - rounding
        if c.delta is not None and c.delta.kind is Kind.EXACT:
            assert (np.linalg.norm(moved - whole, axis=1) <= c.delta.value * distance * slack + 1e-12).all()


def test_single_terms_are_no_less_smooth_than_said() -> None:
    problem = Logistic(workers=5, l2=1e-2)
    rows = problem.dealt().matrix.toarray()
    assert known(problem.constants().L_sample) == pytest.approx(max((rows**2).sum(axis=1)) / 4 + 1e-2, rel=1e-10)


@pytest.mark.parametrize("nonconvex", [0.0, 0.5])
def test_the_hessian_is_as_lipschitz_as_said(nonconvex) -> None:
    problem = Logistic(workers=3, l2=1e-2, nonconvex=nonconvex)
    bound = known(problem.constants().hessian_lipschitz)
    t = np.linspace(0, 1, 200001)
    assert max(24 * t * (1 - t * t) / (1 + t * t) ** 4) == pytest.approx(_linear.REGULARISER_BEND, rel=1e-9)
    seen = 0.0
    for seed in range(20):
        x, y = normal(30, seed=seed, scale=0.1), normal(30, seed=50 + seed, scale=0.1)
        change = (matrices(problem, x) - matrices(problem, y)).mean(axis=0)
        seen = max(seen, norm(change) / float((x - y).norm()))
    assert 0.005 * bound < seen <= bound


def test_similarities_of_logistic_models_are_norms_at_the_points_named() -> None:
    problem = Logistic(workers=6, l2=1e-2)
    c = problem.constants()
    apart, mean_square = np.zeros(6), 0.0
    for x in (torch.zeros(30, dtype=torch.float64), solved(problem).x):
        h = matrices(problem, x)
        away = h - h.mean(axis=0)
        apart = np.maximum(apart, [norm(one) for one in away])
        mean_square = max(mean_square, norm(np.mean([one @ one for one in away], axis=0)))
    # power iterations come from below and are raised by 5 percent
    assert 1.0 <= known(c.delta) / apart.max() <= 1.0501 and 1.0 <= known(c.delta_server) / apart[0] <= 1.0501
    assert 1.0 <= known(c.delta_mean) / math.sqrt(mean_square) <= 1.0501
    assert c.delta is not None and c.delta.kind is Kind.ESTIMATE and "x*" in c.delta.how


def test_power_iteration_survives_a_tie_of_signs() -> None:
    """H_1 - H = diag(s, -s): the Rayleigh quotient of (1, 1) is 0, the norm is s."""
    rows = [np.array([[2.0, 0.0], [0.0, 0.0]]), np.array([[0.0, 0.0], [0.0, 2.0]])]
    problem = Custom.from_arrays(rows, [np.ones(2), np.zeros(2)], loss="ridge", l2=0.1)
    by_products = _similarity.of_products(problem.oracles(Block.whole(2)), torch.zeros(2, dtype=torch.float64), 40)
    by_eigenvalues = _spectra.differences(problem.dealt(), _linear.SQUARED, np.zeros(2))
    for found in (by_products, by_eigenvalues):
        assert list(found.named().values()) == pytest.approx([1.0, 1.0, 1.0, 2.0])
    assert known(problem.constants().delta) == pytest.approx(1.0)


def test_wide_data_get_bounds_on_the_safe_side(monkeypatch) -> None:
    problem = sparse_rows()
    exact = problem.constants()
    monkeypatch.setattr(_spectra, "DENSE", 3)
    bounds = _spectra.linear_constants(problem.dealt(), problem.model(), problem.solution())
    for name in ("L", "L_max", "L_tilde", "L_plus", "L_pm", "delta", "delta_server", "delta_mean", "hessian_lipschitz"):
        assert getattr(bounds, name).kind is Kind.BOUND
        margin = 1.05 if name.startswith("delta") else 1.0
        assert getattr(bounds, name).value >= getattr(exact, name).value / margin, name
    nonnegative = Custom.from_arrays(abs(normal(30, 5).numpy()), np.sign(normal(30, seed=1).numpy()), workers=2)
    got = _spectra.linear_constants(nonnegative.dealt(), nonnegative.model(), None).L.value
    assert got == pytest.approx(nonnegative.constants().L.value, rel=1e-9)  # tight for rows >= 0
    matched = _base.minimise(problem.oracles(Block.whole(7)), problem.dealt())  # by conjugate gradients
    assert torch.allclose(matched.x, solved(problem).x, atol=1e-7)


@pytest.mark.parametrize("noise", [0.0, 0.1, 0.8])
def test_the_quadratic_is_the_papers(noise) -> None:
    d, n, mu = 12, 6, 1e-3
    problem = Quadratic(d=d, workers=n, noise=noise, mu=mu, seed=4)
    xi = Keys(4, 0, "problem/quadratic", np.arange(n), n).normal(2).numpy()
    t = (2 * np.eye(d) - np.eye(d, k=1) - np.eye(d, k=-1)) / 4
    nu = 1 + noise * xi[:, 0]
    raw = nu[:, None, None] * t
    a = raw + (mu - np.linalg.eigvalsh(raw.mean(axis=0))[0]) * np.eye(d)
    b = np.zeros((n, d))
    b[:, 0] = nu / 4 * (-1 + noise * xi[:, 1])
    oracles = problem.oracles(Block.whole(n))
    x = normal(d)
    assert np.allclose(oracles.gradients(x).numpy(), a @ x.numpy() - b, rtol=1e-12, atol=1e-13)
    at = x.numpy()
    assert np.allclose(oracles.values(x).numpy(), [at @ m @ at / 2 - c @ at for m, c in zip(a, b, strict=True)])
    assert oracles.start().tolist() == [math.sqrt(d)] + [0.0] * (d - 1)
    star = np.linalg.solve(a.mean(axis=0), b.mean(axis=0))
    assert np.allclose(solved(problem).x.numpy(), star, rtol=1e-8)
    sigma = math.sqrt(np.mean([np.sum((m @ star - c) ** 2) for m, c in zip(a, b, strict=True)]))
    assert known(problem.constants().sigma_star) == pytest.approx(sigma, rel=1e-7, abs=1e-12)
    assert oracles.convex == (np.linalg.eigvalsh(a).min() >= 0)


def test_sheet_values_of_the_quadratic() -> None:
    """L_pm is about the noise, L_- about 1 and L_+ between 1 and 1.24 for n = 1000, d = 1000."""
    for noise, spread in ((0.0, 0.0), (0.05, 0.049), (0.2, 0.195), (0.8, 0.781)):
        c = Quadratic(d=1000, workers=1000, noise=noise).constants()
        assert c.L_pm.value == pytest.approx(spread, rel=0.06)
        assert 0.9 < c.L.value < 1.1 and 0.95 < c.L_plus.value < 1.35
        assert known(c.mu) == 1e-6


def test_hessians_of_a_large_quadratic_are_refused_in_one_line() -> None:
    oracles = Quadratic(d=10000, workers=100, noise=0.1).oracles(Block.whole(100))
    with pytest.raises(ValueError, match=r"quadratic\(d=10000\) : the Hessians of 100 workers take 40 GB"):
        oracles.hessians(oracles.start())


def test_top1_of_the_counterexample_points_away() -> None:
    problem = Counterexample(scale=2.0)
    oracles = problem.oracles(Block.whole(3))
    x = oracles.start()
    assert oracles.gradients(x).tolist() == [[-11.0, 9.0, 9.0], [9.0, -11.0, 9.0], [9.0, 9.0, -11.0]]
    for step in (1e-3, 0.1, 1.0):
        top = torch.diag(torch.diagonal(oracles.gradients(x))).mean(dim=0)
        assert torch.allclose(x - step * top, (1 + 11 * step / 6) * x, rtol=1e-15)
    assert oracles.gradients(x).mean(dim=0).tolist() == pytest.approx([7 / 3] * 3)


CERTIFIED = [name for name in PROBLEMS if name not in ("module", "logistic nonconvex", "squared sigmoid")]


@pytest.mark.parametrize("name", CERTIFIED)
def test_solutions_are_certified(name) -> None:
    problem = PROBLEMS[name]()
    solution, oracles = solved(problem), problem.oracles(Block.whole(problem.n))
    slope = oracles.gradients(solution.x).mean(dim=0)
    model = problem.model() if isinstance(problem, _base.LinearProblem) else None
    least = model.l2 if model is not None and model.l2 > 0.0 else known(problem.constants().mu)
    assert solution.gap <= 1e-22
    assert float(slope @ slope) / (2 * least) == pytest.approx(solution.gap, rel=0.5, abs=1e-27)
    assert float(oracles.values(solution.x).mean()) == pytest.approx(solution.value, rel=1e-12, abs=1e-15)
    for seed in range(5):
        assert oracles.values(solution.x + normal(oracles.d, seed=seed, scale=1e-2)).mean() > solution.value


@pytest.mark.parametrize("name", CERTIFIED)
def test_excess_is_the_gap_and_accurate_near_the_solution(name) -> None:
    problem = PROBLEMS[name]()
    solution, oracles = solved(problem), problem.oracles(Block.whole(problem.n))
    v = normal(oracles.d, seed=3)
    far = solution.x + v
    plain = float(oracles.values(far).mean()) - solution.value
    assert float(oracles.excess(far, solution).mean()) == pytest.approx(plain, rel=1e-7)
    h = matrices(problem, solution.x).mean(axis=0)
    for scale in (1e-3, 1e-5, 1e-8, 1e-11):
        near = solution.x + scale * v
        moved = (near - solution.x).numpy()
        expected = float(moved @ h @ moved) / 2
        assert float(oracles.excess(near, solution).mean()) == pytest.approx(expected, rel=30 * scale + 1e-12)


def test_excess_per_worker_is_the_bregman_divergence_also_for_large_moves() -> None:
    problem = Logistic(workers=4, l2=1e-2)
    solution, oracles = solved(problem), problem.oracles(Block.whole(4))
    for scale in (0.1, 1.0, 1000.0):
        x = solution.x + normal(30, seed=1, scale=scale)
        bregman = oracles.values(x) - oracles.values(solution.x) - oracles.gradients(solution.x) @ (x - solution.x)
        assert torch.allclose(oracles.excess(x, solution), bregman, rtol=1e-9)
        assert (oracles.excess(x, solution) >= 0).all()
    with pytest.raises(ValueError, match="convex"):
        Logistic(workers=4, nonconvex=0.1).oracles(Block.whole(4)).excess(x, solution)


def test_sigma_star_is_the_root_mean_square_gradient_at_the_solution() -> None:
    problem = Logistic(workers=7, l2=1e-2)
    gradients = problem.oracles(Block.whole(7)).gradients(solved(problem).x)
    expected = math.sqrt(float((gradients**2).sum(dim=1).mean()))
    assert known(problem.constants().sigma_star) == pytest.approx(expected, rel=1e-10)


def test_problems_without_strong_convexity_have_no_solution_and_no_mu() -> None:
    for problem in (Logistic(nonconvex=0.1), Logistic(l2=0.0), SquaredSigmoid(l2=0.1)):
        assert problem.solution() is None and problem.constants().mu is None and problem.constants().polyak is None
    assert not Logistic(nonconvex=0.1).oracles(Block.whole(10)).convex and Logistic().oracles(Block.whole(10)).convex


@pytest.mark.parametrize("scale", [1.0, 1e-6])
def test_least_squares_without_full_rank_have_a_polyak_constant(scale) -> None:
    """Rows in 3 of 6 dimensions, one of which is perhaps so weak that its eigenvalue is 1e-12 of the largest."""
    spread = torch.tensor([1.0, 1.0, scale], dtype=torch.float64)
    rows = ((normal(30, 3) * spread) @ normal(3, 6, seed=1)).numpy()
    problem = Custom.from_arrays(rows, normal(30, seed=2).numpy(), workers=3, loss="ridge", l2=0.0)
    c, oracles, solution = problem.constants(), problem.oracles(Block.whole(3)), solved(problem)
    values = np.linalg.svd(rows, compute_uv=False)
    assert c.mu is None and c.polyak is c.mu_pl and known(c.mu_pl) == pytest.approx(values[2] ** 2 / 30, rel=1e-6)
    reference = np.linalg.lstsq(rows, normal(30, seed=2).numpy(), rcond=1e-12)[0]
    assert np.allclose(solution.x.numpy(), reference, rtol=1e-6 / scale**0.5) and solution.gap < 1e-16 / scale
    for seed in range(5):
        x = solution.x + normal(6, seed=seed)
        slope = oracles.gradients(x).mean(dim=0)
        excess = float(oracles.excess(x, solution).mean())
        assert float(slope @ slope) >= 2 * known(c.mu_pl) * excess * (1 - 1e-9)
    assert LeastSquares(workers=4).fingerprint() == Ridge(workers=4, l2=0.0).fingerprint()
    assert known(LeastSquares(workers=4).constants().mu) > 0.0


def test_the_squared_sigmoid_is_as_smooth_as_said() -> None:
    """One row (1): f(t) = (1 - sigma(t))^2, whose derivatives are looked through on a grid."""
    t = torch.linspace(-12.0, 12.0, 400_001, dtype=torch.float64)
    p = torch.sigmoid(t)
    second = 2 * p * (1 - p) ** 2 * (3 * p - 1)
    third = (second[2:] - second[:-2]) / (t[2:] - t[:-2])
    assert _linear.SIGMOID.curvature == pytest.approx(float(second.abs().max()), rel=1e-8)
    assert 0.15405 < _linear.SIGMOID.curvature < 0.15406 and float(second.min()) == pytest.approx(-0.12020, abs=1e-5)
    assert _linear.SIGMOID.bend == pytest.approx(float(third.abs().max()), rel=1e-6)
    problem = Custom.from_arrays(np.array([[1.0], [-2.0]]), [1, -1], workers=2, l2=0.0)
    one = dataclasses.replace(problem, parts=_linear.Model(_linear.SIGMOID, 0.0))
    c, curves = one.constants(), one.oracles(Block.whole(2))
    seen = curves.hessians(torch.tensor([0.4656], dtype=torch.float64))[:, 0]  # logit((9 + sqrt(33)) / 24)
    assert float(seen[0]) == pytest.approx(c.L_workers[0], rel=1e-6) and c.L.kind is Kind.BOUND
    paper = SquaredSigmoid(workers=5)
    rows = paper.dealt().matrix.toarray()
    assert paper.constants().L_max.value <= 0.15406 * max((rows**2).sum(axis=1))


def test_a_nearly_separable_problem_is_still_solved() -> None:
    assert solved(Logistic(l2=1e-9)).gap < 1e-18


@pytest.fixture
def fresh_cache(tmp_path: Path, monkeypatch) -> Path:
    """An empty folder on disk, and nothing in memory."""
    monkeypatch.setenv("LACONIC_CACHE", str(tmp_path / "cache"))
    for function in (_base._constants, _base._solution):
        function.cache_clear()
    return tmp_path / "cache"


def forget() -> None:
    """What another process knows: nothing but the disk."""
    for function in (_base._constants, _base._solution, _base._digest):
        function.cache_clear()


def test_constants_and_solutions_are_read_back_bit_for_bit(fresh_cache, monkeypatch) -> None:
    problem = Logistic(workers=3)
    constants, solution = problem.constants(), solved(problem)
    assert len(list(fresh_cache.iterdir())) == 2
    forget()
    monkeypatch.setattr(_base, "linear_constants", None)  # nothing is computed again
    monkeypatch.setattr(_base, "minimise", None)
    again = solved(problem)
    assert problem.constants() == constants
    assert torch.equal(again.x, solution.x) and (again.value, again.gap) == (solution.value, solution.gap)


def test_computing_again_gives_the_same_bits(fresh_cache) -> None:
    problem = Logistic(workers=3, split="shuffled")
    constants, solution = problem.constants(), solved(problem)
    for path in fresh_cache.iterdir():
        path.unlink()
    forget()
    assert problem.constants() == constants and torch.equal(solved(problem).x, solution.x)


def test_whoever_stores_first_wins(fresh_cache) -> None:
    exact = Logistic(workers=3).constants()
    for path in fresh_cache.iterdir():
        path.unlink()
    other = dataclasses.replace(exact, L=Constant(1 / 3, Kind.BOUND, "another process"))

    def overtaken() -> Constants:
        assert _cache.constants("key", lambda: other) == other
        return exact

    def too_late() -> Constants:
        raise AssertionError("what is stored is used")

    assert _cache.constants("key", overtaken) == other
    assert _cache.constants("key", too_late) == other


def test_damaged_and_unwritable_caches_only_cost_time(fresh_cache, monkeypatch) -> None:
    problem = Logistic(workers=3)
    constants, solution = problem.constants(), solved(problem)
    for path in fresh_cache.iterdir():
        path.write_bytes(path.read_bytes()[:40])
    forget()
    assert problem.constants() == constants and torch.equal(solved(problem).x, solution.x)
    forget()
    blocked = fresh_cache.parent / "file"
    blocked.write_text("")
    monkeypatch.setenv("LACONIC_CACHE", str(blocked))
    assert problem.constants() == constants and torch.equal(solved(problem).x, solution.x)


def test_a_module_has_the_gradients_of_backward() -> None:
    for dtype in (torch.float64, torch.float32):
        problem = of_module(dtype)
        oracles = problem.oracles(Block.whole(4))
        assert oracles.dtype == dtype and oracles.terms().tolist() == [2, 3, 3, 3] and not oracles.convex
        module, inputs, targets = small_module(dtype), normal(11, 3, seed=9).to(dtype), torch.arange(11) % 2
        for worker, rows in enumerate((slice(0, 2), slice(2, 5), slice(5, 8), slice(8, 11))):
            module.zero_grad()
            torch.nn.functional.cross_entropy(module(inputs[rows]), targets[rows]).backward()
            expected = torch.cat([p.grad.reshape(-1) for p in module.parameters() if p.grad is not None])
            assert torch.allclose(oracles.gradients(oracles.start())[worker], expected, rtol=1e-4, atol=1e-6)


def test_a_linear_module_has_ridges_constants_from_below() -> None:
    rows, targets = normal(24, 3), normal(24, 1, seed=1)
    module = torch.nn.Linear(3, 1, bias=False).double()

    def half_square(output: Tensor, target: Tensor) -> Tensor:
        return 0.5 * ((output - target) ** 2).mean()

    problem = Custom.from_module(module, half_square, rows, targets, workers=4, l2=0.1, convex=True)
    exact = Custom.from_arrays(rows, targets[:, 0], workers=4, loss="ridge", l2=0.1).constants()
    c = problem.constants()
    assert c.L.kind is Kind.ESTIMATE and 1.0 <= c.L.value / exact.L.value <= 1.0501
    assert np.all(np.array(c.L_workers) <= 1.0501 * np.array(exact.L_workers))
    assert np.all(np.array(c.L_workers) >= 0.99 * np.array(exact.L_workers))
    assert c.L_pm.value >= exact.L_pm.value and known(c.mu) == 0.1 and problem.solution() is None
    assert of_module().constants().mu is None


def test_modules_buffers_and_frozen_parameters_are_constants() -> None:
    module = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2), torch.nn.Linear(2, 1)).double().eval()
    module[0].bias.requires_grad_(False)
    before = {name: value.clone() for name, value in module.state_dict().items()}
    problem = Custom.from_module(module, torch.nn.functional.mse_loss, normal(8, 3), normal(8, 1, seed=1), workers=2)
    oracles = problem.oracles(Block.whole(2))
    assert oracles.d == 6 + 2 + 2 + 2 + 1
    oracles.gradients(oracles.start() + 1.0)
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())


@pytest.mark.parametrize(
    "change, said",
    [
        (dict(workers=12), "workers=12 : there are only 11 rows"),
        (dict(workers=None), "workers must be an integer >= 1"),
        (dict(module=torch.nn.Tanh()), "has no parameter that asks for a gradient"),
        (dict(module=torch.nn.Linear(3, 2).half()), "must all be float64 or all float32"),
        (dict(targets=torch.zeros(10)), "targets"),
        (dict(inputs=[torch.ones(2, 3), torch.ones(0, 3)], targets=[torch.ones(2), torch.ones(0)]), "has no rows"),
        (dict(inputs=[torch.ones(2, 3)], targets=[torch.ones(2)], workers=2), "inputs were given for 1 workers"),
        (dict(l2=-1.0), "l2 must be a number >= 0"),
    ],
)
def test_modules_that_do_not_fit_are_refused(change, said) -> None:
    good = dict(module=small_module(), inputs=torch.ones(11, 3), targets=torch.zeros(11), workers=4)
    arguments = {**good, **change}
    if isinstance(arguments["inputs"], list):
        arguments["workers"] = change.get("workers")
    with pytest.raises(ValueError, match=said) as caught:
        Custom.from_module(arguments.pop("module"), torch.nn.functional.mse_loss, **arguments)
    assert "\n" not in str(caught.value)


def test_a_module_too_large_for_hessians_says_so(monkeypatch) -> None:
    monkeypatch.setattr("laconic.problems._module.LARGEST_HESSIAN", 5)
    oracles = of_module().oracles(Block.whole(4))
    with pytest.raises(ValueError, match="26 parameters; Hessians are formed up to 5"):
        oracles.hessians(oracles.start())


def test_fingerprints_of_modules_see_parameters_and_data() -> None:
    base = of_module()
    changed = small_module()
    with torch.no_grad():
        next(changed.parameters())[0, 0] += 1.0
    loss, inputs, targets = torch.nn.functional.cross_entropy, normal(11, 3, seed=9), torch.arange(11) % 2
    same = Custom.from_module(small_module(), loss, inputs, targets, workers=4)
    others = [
        Custom.from_module(changed, loss, inputs, targets, workers=4),
        of_module(l2=0.5),
        Custom.from_module(small_module(), loss, inputs + 1.0, targets, workers=4),
        Custom.from_module(small_module(), loss, inputs, targets, workers=3),
    ]
    assert base.fingerprint() == same.fingerprint()
    assert len({problem.fingerprint() for problem in [base, *others]}) == 5


def test_custom_files_are_the_problems_they_name() -> None:
    same = Custom(path="breast_cancer", workers=4, split="shuffled", seed=2)
    assert same.fingerprint() == Logistic(workers=4, split="shuffled", seed=2).fingerprint()
    ridge = Custom(path="diabetes", loss="ridge", l2=1e-2, workers=4)
    assert ridge.fingerprint() == Ridge(workers=4).fingerprint()
    with pytest.raises(ValueError, match="split"):
        Custom(path="diabetes", loss="ridge", split="dirichlet").oracles(Block.whole(10))


def test_real_data(data_dir: Path) -> None:
    """w8a as in FedNL's experiments: the intercept makes d = 301; and the certificate at 3000 workers on a9a."""
    problem = Logistic(data="w8a", l2=1e-3, workers=142, intercept=True, split="shuffled")
    oracles = problem.oracles(Block(0, 3, 142), data_dir)
    assert oracles.d == 301 and set(problem.dealt(data_dir).sizes) == {350, 351}
    x, v = normal(301, scale=0.1), normal(301, seed=1)
    full = unpacked(oracles.hessians(x), 301)
    assert torch.allclose(full[2] @ v, oracles.products(x, v)[2], rtol=1e-11, atol=1e-13)
    solution = Logistic(data="a9a", workers=3000).solution(data_dir)
    assert solution is not None and solution.gap < 1e-26


def test_a_minibatch_of_other_rows_is_refused() -> None:
    """It read beyond the rows before."""
    oracles = Logistic(data="breast_cancer", l2=0.01, workers=5).oracles(Block.whole(5))
    batch = Batch(np.array([0, 3]), np.zeros((2, 4), dtype=np.int64))
    x = oracles.start()
    assert oracles.gradients(x, np.array([0, 3]), batch).shape[0] == 2
    with pytest.raises(ValueError, match=r"a minibatch of the rows \[0, 3\] for the rows \[0, 1, 2, 3, 4\]"):
        oracles.gradients(x, batch=batch)
