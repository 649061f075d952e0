"""Products of Hessians with vectors: what they are, whose, in every block alike, and counted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import laconic
from by_hand import equal, problem_of
from laconic.checks.findings import Findings
from laconic.checks.places import place_of
from laconic.checks.problem_products import products as products_check
from laconic.checks.reference import Reference
from laconic.core.problem import Batch, Block, Oracles, Problem
from laconic.core.rows import svec_to_matrix
from laconic.problems.custom import Custom
from laconic.problems.ridge import Ridge
from laconic.regularisers.l1 import L1


def numbers(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape)


def classified(workers: int = 3, rows: int = 5, d: int = 4) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Rows and labels of every worker; uneven numbers of rows."""
    matrices = [numbers(rows + i, d, seed=i) for i in range(workers)]
    return matrices, [np.where(numbers(rows + i, seed=100 + i) > 0, 1.0, -1.0) for i in range(workers)]


def perceptron() -> Problem:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.Tanh(), torch.nn.Linear(2, 1)).double()
    inputs, targets = torch.from_numpy(numbers(12, 3)), torch.from_numpy(numbers(12, 1, seed=1))
    return Custom.from_module(module, torch.nn.functional.mse_loss, inputs, targets, workers=3, l2=0.1)


PROBLEMS: dict[str, Any] = {
    "logistic": lambda: Custom.from_arrays(*classified(), l2=0.03, nonconvex=0.2),
    "squares": lambda: Custom.from_arrays(*classified(), loss="ridge", l2=0.03),
    "sigmoid": lambda: "squared_sigmoid(workers=3)",
    "quadratic": lambda: "quadratic(d=7, workers=3, noise=0.8)",
    "one coordinate": lambda: "quadratic(d=1, workers=2, noise=0.8)",
    "rotated": lambda: "rotated_quadratic(d=7, workers=3)",
    "counterexample": lambda: "counterexample",
    "pictures": lambda: "autoencoder(features=2, workers=3)",
    "a module": perceptron,
    "with a regulariser": lambda: "composite(ridge(workers=3), l1(weight=0.1))",
    "the kit's reference": lambda: Reference(workers=3, regulariser=L1(0.1)),
}


def made(name: str) -> Problem:
    return problem_of(PROBLEMS[name]())


@pytest.mark.parametrize("name", PROBLEMS)
def test_every_problem_keeps_what_the_kit_asks_of_products(name: str) -> None:
    found, place = Findings(name, "problem"), place_of(made(name), 3)
    with found.checking("products"):
        products_check(found, place)
    assert not found.failures


def test_products_of_logistic_models_by_hand() -> None:
    """A' diag(s (1 - s)) A v / N + l2 v + the regulariser's curvature, at one point and vector for each worker."""
    rows, labels = classified()
    problem = Custom.from_arrays(rows, labels, l2=0.03, nonconvex=0.2)
    points, ways = numbers(3, 4, seed=7), numbers(3, 4, seed=8)
    got = problem.oracles(Block.whole(3)).products(torch.from_numpy(points), torch.from_numpy(ways)).numpy()
    for a, x, v, product in zip(rows, points, ways, got, strict=True):
        s = 1.0 / (1.0 + np.exp(-a @ x))
        bend = 0.03 + 0.2 * (2.0 - 6.0 * x**2) / (1.0 + x**2) ** 3
        assert np.allclose(product, a.T @ (s * (1.0 - s) * (a @ v)) / len(a) + bend * v, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("name", [name for name in PROBLEMS if name != "pictures"])
def test_products_are_hessians_times_vectors(name: str) -> None:
    problem = made(name)
    oracles = problem.oracles(Block.whole(problem.n))
    x = oracles.start() + torch.from_numpy(0.3 * numbers(oracles.d)).to(oracles.dtype)
    v = torch.from_numpy(numbers(oracles.d, seed=3)).to(oracles.dtype)
    products = oracles.products(x, v)
    for hessian, product in zip(oracles.hessians(x), products, strict=True):
        assert torch.allclose(svec_to_matrix(hessian, oracles.d) @ v, product, rtol=1e-10, atol=1e-12)


def test_rows_of_a_cohort_are_theirs_and_calls_are_shared() -> None:
    problem = made("logistic")
    oracles, x, v = problem.oracles(Block.whole(3)), torch.zeros(4, dtype=torch.float64), torch.ones(4).double()
    every = oracles.products(x, v)
    some = oracles.among(np.array([2, 0]))
    assert equal(some.products(x, v), every[[2, 0]]) and equal(some.products(x, v, np.array([1])), every[:1])
    # 5, 6 and 7 rows: all, the first and third, and the first alone
    assert oracles.calls.product_terms == 18 + 12 + 5
    assert oracles.calls.gradient_terms == oracles.calls.hessian_terms == 0
    assert oracles.products(x, v, np.zeros(0, dtype=np.int64)).shape == (0, 4)


def test_the_servers_products_are_among_its_terms() -> None:
    oracles = made("logistic").host(Block(1, 3, 3))
    x = torch.zeros(4, dtype=torch.float64)
    oracles.server.products(x, x + 1.0)
    oracles.server.gradients(x)
    oracles.server.hessians(x)
    asked = oracles.asked()
    assert (asked.server_terms, asked.server_hessian_terms, asked.product_terms) == (10, 5, 0)
    oracles.forget_calls()
    assert oracles.asked().server_hessian_terms == 0


class Wrong(Oracles):
    """Ridge regression whose products are made wrong by one of the functions below."""

    def __init__(self, inner: Oracles, spoil: Any) -> None:
        super().__init__()
        self.inner, self.block, self.shape, self.spoil = inner, inner.block, inner.shape, spoil

    def terms(self) -> np.ndarray:
        return self.inner.terms()

    def _values(self, x: Tensor, rows: np.ndarray) -> Tensor:
        return self.inner._values(x, rows)

    def _gradients(self, x: Tensor, rows: np.ndarray, batch: Batch | None) -> Tensor:
        return self.inner._gradients(x, rows, batch)

    def _products(self, x: Tensor, v: Tensor, rows: np.ndarray) -> Tensor:
        return self.spoil(self, x, v, rows)


SPOILT: dict[str, Any] = {
    "twice the product": lambda o, x, v, rows: 2.0 * o.inner._products(x, v, rows),
    "a part in a million": lambda o, x, v, rows: (1.0 + 1e-6) * o.inner._products(x, v, rows),
    "without the ridge": lambda o, x, v, rows: o.inner._products(x, v, rows) - 1e-3 * v,
    "gradients": lambda o, x, v, rows: o.inner._gradients(v, rows, None),
    "the next worker's": lambda o, x, v, rows: o.inner._products(x, v, (rows + 1) % o.block.size),
    "all rows": lambda o, x, v, rows: o.inner.products(x, v),
    "the mean of the block": lambda o, x, v, rows: o.inner._products(x, v, rows).mean(0).expand(len(rows), o.d).clone(),
    "written to": lambda o, x, v, rows: o.inner._products(x, v.mul_(1.0 + 1e-9), rows),
}


@pytest.mark.parametrize("name", SPOILT)
def test_the_kit_finds_products_that_are_wrong(name: str) -> None:
    class Spoilt(Ridge):
        name = None  # type: ignore[assignment]  # no entry

        def oracles(self, block: Block, data_dir: Path | None = None) -> Any:
            return Wrong(Ridge.oracles(self, block, data_dir), SPOILT[name])

    found, place = Findings(name, "problem"), place_of(Spoilt(workers=4), 2)
    with found.checking("products"):
        products_check(found, place)
    assert found.failures and "random" not in found.failures[0].what


def test_no_products_is_one_clear_line() -> None:
    class Bare(Wrong):
        _products = Oracles._products

    oracles = Bare(problem_of("ridge(workers=2)").oracles(Block.whole(2)), None)
    with pytest.raises(ValueError, match="Bare has no Hessian products; use a method that needs gradients only"):
        oracles.products(oracles.start(), oracles.start())


def test_a_run_records_products_and_the_servers_hessians() -> None:
    """Rounds of disco are gradients or products; the server makes one Hessian for each gradient of all."""
    run = laconic.run("ridge(workers=4)", ["disco"], rounds=12)
    trace = run.trace
    assert np.array_equal(trace["gradients"].to_numpy() + trace["products"].to_numpy(), trace["rounds"].to_numpy())
    last = trace.iloc[-1]
    terms = Ridge(workers=4).oracles(Block.whole(4)).terms()
    assert last["rounds"] == 12 and last["hessians"] == 0 and 0 < last["gradients"] < 6
    # in passes of one worker's share of all data: 1 / n of it each
    assert last["server_hessians"] == pytest.approx(last["gradients"] * 4 * terms[0] / terms.sum())
    assert last["server_gradients"] == 0
