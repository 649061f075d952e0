"""How alike the workers are: the definitions of delta, exactly, by power iterations, and as the samples grow."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from laconic.cli import app
from laconic.core.problem import Block, Constants, Kind, Problem
from laconic.problems._similarity import Apart, of_products, power
from laconic.problems.counterexample import Counterexample
from laconic.problems.custom import Custom
from laconic.problems.quadratic import Quadratic

SHEET = "delta", "delta_server", "delta_mean", "delta_first"


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape)


def ridge(workers: int, rows: int, d: int, seed: int = 0, l2: float = 1e-2) -> Problem:
    """Features of variance 1 / j, and so the Hessians A'A / N + l2 I, each worker's own."""
    a = normal(workers * rows, d, seed=seed) / np.sqrt(np.arange(1, d + 1))
    return Custom.from_arrays(a, a @ normal(d, seed=seed + 1), workers=workers, loss="ridge", l2=l2)


def by_numpy(matrices: np.ndarray) -> dict[str, float]:
    """The definitions, by singular values of the matrices of all workers."""
    norm = lambda m: float(np.linalg.svd(m, compute_uv=False)[0])  # noqa: E731
    mean = matrices.mean(axis=0)
    away = [m - mean for m in matrices]
    return {
        "delta": max(map(norm, away)),
        "delta_server": norm(away[0]),
        "delta_mean": math.sqrt(norm(np.mean([m @ m for m in away], axis=0))),
        "delta_first": max(norm(m - matrices[0]) for m in matrices),
    }


def hessians(problem: Problem, x: np.ndarray) -> np.ndarray:
    """From products with axes, (n, d, d)."""
    oracles = problem.oracles(Block.whole(problem.n))
    at = torch.from_numpy(x)
    return np.stack([oracles.products(at, e).numpy() for e in torch.eye(len(x), dtype=at.dtype)], axis=2)


def value(constants: Constants, name: str) -> float:
    return constants.named()[name].value


@pytest.mark.parametrize("seed", range(3))
def test_exact_constants_of_quadratics_are_the_definitions(seed: int) -> None:
    problem = ridge(5, 12, 6, seed)
    constants, expected = problem.constants(), by_numpy(hessians(problem, np.zeros(6)))
    for name in SHEET:
        assert constants.named()[name].kind is Kind.EXACT
        assert value(constants, name) == pytest.approx(expected[name], rel=1e-10)
    assert expected["delta_mean"] < expected["delta"] < expected["delta_first"] < 2 * expected["delta"]


def test_closed_forms_are_the_definitions() -> None:
    for problem in (Quadratic(d=6, workers=5, noise=0.7, mu=0.1), Counterexample()):
        d = problem.oracles(Block.whole(problem.n)).d
        expected = by_numpy(hessians(problem, np.zeros(d)))
        for name in SHEET:
            assert value(problem.constants(), name) == pytest.approx(expected[name], rel=1e-12), name


@pytest.mark.parametrize("seed", range(3))
def test_power_iteration_on_products_gives_the_exact_norms(seed: int) -> None:
    """To 1e-10, without a matrix: whether the mean is a product with all workers' or a matrix of somebody's."""
    problem = ridge(4, 8, 5, seed)
    oracles, zero = problem.oracles(Block.whole(4)), torch.zeros(5, dtype=torch.float64)
    expected = by_numpy(hessians(problem, np.zeros(5)))
    mean = torch.from_numpy(hessians(problem, np.zeros(5)).mean(axis=0))
    for found in (of_products(oracles, zero, 3000), of_products(oracles, zero, 3000, mean=lambda v: v @ mean)):
        for name, norm in found.named().items():
            assert norm == pytest.approx(expected[name], rel=1e-10), name
            assert norm <= expected[name] * (1.0 + 1e-14), "power iterations come from below"


def test_a_tie_of_signs_does_not_fool_it() -> None:
    """H_1 - H = diag(s, -s, small) in a random basis: from any start v'A v may read 0, but ||A v|| goes to s."""
    basis = np.linalg.qr(normal(3, 3))[0]
    rows = [basis @ np.diag([2.0, 1.0, 1.1]), basis @ np.diag([1.0, 2.0, 1.0])]  # H_i = rows rows' / 3, up to a basis
    problem = Custom.from_arrays([r.T for r in rows], [np.zeros(3)] * 2, loss="ridge", l2=0.0)
    found = of_products(problem.oracles(Block.whole(2)), torch.zeros(3, dtype=torch.float64), 400)
    assert list(found.named().values()) == pytest.approx([0.5, 0.5, 0.5, 1.0], rel=1e-12)
    tied = torch.from_numpy(basis @ np.diag([0.5, -0.5, 0.035]) @ basis.T)
    start = torch.from_numpy(basis @ np.array([1.0, 1.0, 0.0]))[None]
    norms, v = power(lambda v: v @ tied, start, 50)
    assert abs(float((v @ tied @ v.T).squeeze())) < 1e-12 and float(norms) == pytest.approx(0.5, rel=1e-12)


def test_one_worker_is_like_itself() -> None:
    problem = ridge(1, 9, 4)
    found = of_products(problem.oracles(Block.whole(1)), torch.zeros(4, dtype=torch.float64), 30)
    assert max(found.named().values()) < 1e-14
    assert max(value(problem.constants(), name) for name in SHEET) < 1e-12


def test_of_many_workers_those_who_stand_out_are_held_against_the_mean() -> None:
    """Worker 17 is unlike the others; few are looked at, and it is among them, as is the server's."""
    parts = [normal(40, 3, seed=i) for i in range(25)]
    parts[17] = 3.0 * parts[17]
    problem = Custom.from_arrays(parts, [np.zeros(40)] * 25, loss="ridge", l2=0.1)
    oracles, zero = problem.oracles(Block.whole(25)), torch.zeros(3, dtype=torch.float64)
    expected = by_numpy(hessians(problem, np.zeros(3)))
    for most in (1, 3):
        found = of_products(oracles, zero, 400, most=most)
        assert found.named() == pytest.approx(expected, rel=1e-9)


def test_similarities_of_logistic_models_are_the_largest_at_the_points_named() -> None:
    a, labels = normal(60, 4), np.sign(normal(60, seed=5))
    problem = Custom.from_arrays(a, labels, workers=3, l2=1e-2)
    solution = problem.solution()
    assert solution is not None
    at_points = [by_numpy(hessians(problem, x)) for x in (np.zeros(4), solution.x.numpy())]
    for name in SHEET:
        known = problem.constants().named()[name]
        assert known.value == pytest.approx(1.05 * max(at[name] for at in at_points), rel=1e-5)
        assert known.kind is Kind.ESTIMATE and known.how == "eigenvalues at x = 0 and x*, times 1.05"


def test_a_module_gets_estimates_of_every_constant_that_say_how() -> None:
    """A linear module with half the mean square is ridge regression, whose constants are known exactly."""
    a, targets = torch.from_numpy(normal(24, 3)), torch.from_numpy(normal(24, 1, seed=2))
    module = torch.nn.Linear(3, 1, bias=False).double()
    half = lambda output, target: 0.5 * torch.nn.functional.mse_loss(output, target)  # noqa: E731
    rough = Custom.from_module(module, half, a, targets, workers=4, l2=0.1).constants()
    exact = Custom.from_arrays(a.numpy(), targets[:, 0].numpy(), workers=4, loss="ridge", l2=0.1).constants()
    for name in ("L", *SHEET):
        known = rough.named()[name]
        assert known.kind is Kind.ESTIMATE and "power iteration" in known.how and "1.05" in known.how
        assert 0.97 < known.value / value(exact, name) <= 1.05 * (1.0 + 1e-9), name
    assert value(rough, "hessian_lipschitz") < 1e-12


def test_the_estimated_lipschitz_constant_of_a_logistic_modules_hessian_keeps_its_bound() -> None:
    a, labels = normal(40, 3), np.sign(normal(40, seed=2))
    softplus = lambda s, y: torch.nn.functional.softplus(-s[:, 0] * y).mean()  # noqa: E731
    with torch.random.fork_rng():
        torch.manual_seed(1)
        module = torch.nn.Linear(3, 1, bias=False).double()
    problem = Custom.from_module(module, softplus, torch.from_numpy(a), torch.from_numpy(labels), workers=2)
    bound = Custom.from_arrays(a, labels, workers=2, l2=1e-3).constants()
    assert 0.01 * value(bound, "hessian_lipschitz") < value(problem.constants(), "hessian_lipschitz")
    assert value(problem.constants(), "hessian_lipschitz") <= 1.05 * value(bound, "hessian_lipschitz")


@pytest.mark.parametrize("loss", ["ridge", "logistic"])
def test_similarity_falls_as_one_over_the_root_of_the_samples(loss: str) -> None:
    """Of rows dealt at random: the slope of log delta against log N is -1/2; so it is not -1, of quadratics either."""
    sizes, d, seeds, spectrum = (100, 200, 400, 800, 1600, 3200), 8, range(4), np.sqrt(np.arange(1, 9))
    found: dict[str, list[float]] = {"delta": [], "delta_mean": []}
    for size in sizes:
        seen = []
        for seed in seeds:
            a = normal(5 * size, d, seed=31 * seed + size) / spectrum
            labels = np.sign(normal(5 * size, seed=seed)) if loss == "logistic" else np.zeros(5 * size)
            oracles = Custom.from_arrays(a, labels, workers=5, loss=loss, l2=1e-2).oracles(Block.whole(5))
            seen.append(of_products(oracles, torch.zeros(d, dtype=torch.float64), 100, 1e-6).named())
        for name, values in found.items():
            values.append(math.exp(np.mean([math.log(one[name]) for one in seen])))
    for name, values in found.items():
        slope = np.polyfit(np.log(sizes), np.log(values), 1)[0]
        assert -0.6 <= slope <= -0.4, (name, slope)


def test_show_prints_every_constant_with_its_kind_and_how_it_was_found() -> None:
    runner = CliRunner()
    text = runner.invoke(app, ["show", "ridge(workers=3)"], env={"COLUMNS": "200"}).output
    assert "delta_first = " in text and "exact: eigenvalues" in text and "hessian_lipschitz = 0" in text
    found = json.loads(runner.invoke(app, ["show", "logistic(workers=3)", "--json"]).output)["constants"]
    kinds = {one["name"]: one["kind"] for one in found}
    assert kinds["delta"] == "estimate" and kinds["L"] == "exact" and kinds["mu"] == "bound"
    missing = runner.invoke(app, ["show", "logistic(data='nowhere')"])
    assert missing.exit_code == 0 and "not known: data='nowhere'" in missing.output


def test_apart_is_named_as_the_constants_are() -> None:
    assert tuple(Apart(1.0, 2.0, 3.0, 4.0).named()) == SHEET
    assert Apart(1.0, 2.0, 3.0, 4.0).named() == {
        "delta": 1.0,
        "delta_server": 2.0,
        "delta_mean": 3.0,
        "delta_first": 4.0,
    }
