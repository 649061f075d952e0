"""Full smoothness matrices: the compressor by enumeration, the problems' matrices, and DCGD+, DIANA+ and ADIANA+."""

from __future__ import annotations

import dataclasses
import itertools
import math
from typing import Any, cast

import numpy as np
import pytest
import torch
from torch import Tensor

from by_hand import RUNTIMES, Course, equal, hand, matrices, method_of, problem_of, setting_of, start
from laconic.compressors.matrix_smoothness import FLOOR, MatrixSmoothSparsification
from laconic.compressors.smoothness import SmoothSparsification, expected_smoothness
from laconic.core.compressor import Compressor, MatrixUnbiased, Unbiased, informed
from laconic.core.keys import SERVER, Keys
from laconic.core.problem import Block, Problem
from laconic.core.spec import parse
from laconic.core.state import flatten, restore
from laconic.core.theory import Setting
from laconic.problems.custom import Custom

F64 = torch.float64
CONVEX = "quadratic(d=20, workers=6, noise=0.2, mu=0.05)"
SMALL = "quadratic(d=7, workers=4, noise=0.1, mu=0.1)"


def psd(n: int, d: int, seed: int = 0) -> Tensor:
    """Dense matrices with uneven diagonals."""
    rng = np.random.default_rng(seed)
    half = rng.standard_normal((n, d, d)) * np.logspace(0, 1.5, d)
    return torch.from_numpy(np.einsum("nij,nik->njk", half, half) / d)


def keys(workers: list[int], n: int, step: int = 0) -> Keys:
    return Keys(3, step, "/test", np.array(workers, dtype=np.int64), n)


def sent(compressor: Compressor, v: Tensor, at: Keys) -> Tensor:
    message = compressor.message(v, at)
    return compressor.decode(message, tuple(v.shape[1:]), v.dtype, at).dense()


def with_matrices(setting: Setting, smoothness: Tensor) -> Setting:
    return dataclasses.replace(setting, matrices=lambda: smoothness)


# ---- the compressor --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("worker", [0, 2, SERVER])
def test_mean_and_variance_by_enumeration(worker: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Over the 2^4 outcomes of the coins: unbiased, and with variance rho <x, L^-1 x>, an equality for these p."""
    d, k = 4, 2
    smoothness = psd(3, d)
    matrix = smoothness.mean(0) if worker == SERVER else smoothness[worker]
    compressor = MatrixSmoothSparsification(k).knowing(smoothness)
    masks = torch.tensor(list(itertools.product([False, True], repeat=d)))
    diagonal = matrix.diagonal().numpy()
    rho = bisected(diagonal, k)
    p = torch.from_numpy(diagonal / (diagonal + rho))
    chances = torch.where(masks, p, 1 - p).prod(1)
    monkeypatch.setattr(MatrixSmoothSparsification, "_mask", lambda self, d, at: masks)
    rows = keys([worker] * len(masks), 3)
    for seed in range(3):
        x = torch.from_numpy(np.random.default_rng(seed).standard_normal(d))
        arrived = sent(compressor, x.expand(len(masks), d).contiguous(), rows)
        assert torch.allclose((chances[:, None] * arrived).sum(0), x, rtol=1e-10, atol=1e-12)
        variance = float((chances * ((arrived - x) ** 2).sum(1)).sum())
        assert variance == pytest.approx(rho * float(x @ torch.linalg.solve(matrix, x)), rel=1e-8)
        own = float((chances * torch.stack([e @ torch.linalg.solve(matrix, e) for e in arrived - x])).sum())
        assert own <= rho / diagonal.min() * float(x @ torch.linalg.solve(matrix, x)) * (1 + 1e-9)


def bisected(diagonal: np.ndarray, k: int) -> float:
    """rho with sum L_j / (L_j + rho) = k."""
    low, high = 0.0, float(diagonal.max()) * len(diagonal)
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if (diagonal / (diagonal + middle)).sum() > k else (low, middle)
    return high


def test_the_claim_by_hand() -> None:
    """Of each worker's own matrix: rho is the expected smoothness, an eigenvalue; it is less than omega L."""
    smoothness, d, k = psd(3, 6), 6, 2
    claim = MatrixSmoothSparsification(k).knowing(smoothness).claim(d, 3)
    rhos = [bisected(matrix.diagonal().numpy(), k) for matrix in smoothness]
    for matrix, rho in zip(smoothness, rhos, strict=True):
        p = matrix.diagonal() / (matrix.diagonal() + rho)
        joint = torch.outer(p, p)
        joint.diagonal().copy_(p)
        assert expected_smoothness(matrix, joint) == pytest.approx(rho, rel=1e-9)
        assert rho < (d / k - 1) * float(torch.linalg.eigvalsh(matrix)[-1]) / 1.5
    assert isinstance(claim, MatrixUnbiased)
    assert claim.expected == pytest.approx(max(rhos), rel=1e-9)
    own = [rho / float(matrix.diagonal().min()) for matrix, rho in zip(smoothness, rhos, strict=True)]
    assert claim.own == pytest.approx(max(own), rel=1e-9)
    plain = [rho / float(torch.linalg.eigvalsh(matrix)[0]) for matrix, rho in zip(smoothness, rhos, strict=True)]
    assert claim.omega == pytest.approx(max(plain), rel=1e-6) and claim.omega >= claim.own
    v = torch.from_numpy(np.random.default_rng(1).standard_normal((2, 6)))
    norms = torch.stack([row @ torch.linalg.solve(smoothness[i], row) for i, row in zip((2, 0), v, strict=True)])
    assert torch.allclose(claim.norm2(v, np.array([2, 0])), norms, rtol=1e-9)


def test_measured_variance_is_as_claimed() -> None:
    """With the coins that it really draws; the number of values is k on average."""
    smoothness, x, draws = psd(2, 6) + 50 * torch.eye(6, dtype=F64), torch.ones(1, 6, dtype=F64), 2000
    compressor = MatrixSmoothSparsification(k=3).knowing(smoothness)
    at = [keys([1], 2, step) for step in range(draws)]
    errors = torch.stack([(sent(compressor, x, one) - x).square().sum() for one in at]).numpy()
    rho = bisected(smoothness[1].diagonal().numpy(), 3)
    bound = rho * float(x[0] @ torch.linalg.solve(smoothness[1], x[0]))
    error = errors.std() / math.sqrt(draws)
    assert abs(errors.mean() - bound) < 4 * error < 0.4 * bound
    sizes = [int(compressor.message(x, one).nbytes[0]) / 8 for one in at]
    assert abs(np.mean(sizes) - 3) < 4 * np.std(sizes) / math.sqrt(draws)


def test_identity_matrices_make_the_ordinary_compressor() -> None:
    """Bit for bit, with the coins of a diagonal of ones; and without matrices it is `smooth_sparsification(k)`."""
    d, v = 9, torch.from_numpy(np.random.default_rng(0).standard_normal((3, 9)))
    whole = MatrixSmoothSparsification(k=3).knowing(torch.eye(d, dtype=F64).expand(3, d, d).contiguous())
    pairs = [(whole, SmoothSparsification(3, (1.0,) * d)), (MatrixSmoothSparsification(3), SmoothSparsification(3))]
    for step, (one, other) in itertools.product(range(20), pairs):
        at = keys([0, 1, 2], 3, step)
        assert one.message(v, at).pack().tobytes() == other.message(v, at).pack().tobytes()
        assert equal(sent(one, v, at), sent(other, v, at))
    assert MatrixSmoothSparsification(3).claim(9, 3) == Unbiased(2.0)
    assert whole.claim(9, 3).omega == pytest.approx(2.0, rel=1e-12)


def test_diagonal_matrices_make_the_sparsifier_with_that_diagonal() -> None:
    """To rounding: L^(1/2) and L^(-1/2) cancel."""
    diagonal = (8.0, 0.5, 2.0, 3.0, 1.0)
    v = torch.from_numpy(np.random.default_rng(0).standard_normal((2, 5)))
    whole = MatrixSmoothSparsification(k=2).knowing(torch.diag(torch.tensor(diagonal, dtype=F64)).expand(2, 5, 5))
    for step in range(20):
        at = keys([0, 1], 2, step)
        assert torch.allclose(sent(whole, v, at), sent(SmoothSparsification(2, diagonal), v, at), rtol=1e-13)


def test_all_coordinates_lose_nothing() -> None:
    v = torch.from_numpy(np.random.default_rng(0).standard_normal((3, 6)))
    whole = MatrixSmoothSparsification(k=1.0).knowing(psd(3, 6))
    assert torch.allclose(sent(whole, v, keys([0, 1, 2], 3)), v, rtol=1e-10, atol=1e-12)
    assert whole.claim(6, 3).omega == 0.0  # type: ignore[union-attr]
    single = sent(whole, v.to(torch.float32), keys([0, 1, 2], 3))
    assert single.dtype == torch.float32 and torch.allclose(single, v.to(torch.float32), rtol=1e-4, atol=1e-5)


def test_singular_matrices_are_made_a_little_larger() -> None:
    """What lies outside the range of L_i arrives as well, without bias; a zero matrix is like the identity."""
    low = torch.zeros(2, 4, 4, dtype=F64)
    low[0] = torch.outer(torch.ones(4, dtype=F64), torch.ones(4, dtype=F64))
    compressor = MatrixSmoothSparsification(k=4).knowing(low)
    v = torch.tensor([[1.0, 2.0, -3.0, 0.5], [1.0, 2.0, -3.0, 0.5]], dtype=F64)
    assert torch.allclose(sent(compressor, v, keys([0, 1], 2)), v, rtol=1e-8)
    assert compressor.roots is not None and compressor.roots.least[0] == pytest.approx(4 * FLOOR, rel=1e-6)


def test_other_vectors_are_refused_in_one_line() -> None:
    compressor = MatrixSmoothSparsification(k=2).knowing(psd(3, 6))
    for ask in (lambda: compressor.claim(5, 3), lambda: compressor.message(torch.zeros(3, 5, dtype=F64), keys([0], 3))):
        with pytest.raises(ValueError, match="are for 6 coordinates, and this is a vector of 5; use") as caught:
            ask()
        assert "\n" not in str(caught.value)


def test_matrices_come_with_the_setting_and_stay_out_of_the_spec() -> None:
    """Wherever the compressor stands in a method; two specs are equal whatever they know."""
    setting = with_matrices(hand(d=6, n=3), psd(3, 6))
    for spec in ("direct(matrix_smooth(k=2))", "direct(mean_of(matrix_smooth(k=2), copies=2))", "matrix_smooth(k=2)"):
        known = informed(cast(Any, parse(spec)), setting)
        assert known == parse(spec) and str(known) == str(parse(spec))
        compressor: Any = known
        while not isinstance(compressor, MatrixSmoothSparsification):
            compressor = compressor.compressor
        assert compressor.roots is not None and compressor.roots.d == 6
    plain = parse("gd(ef21(topk(k=1)))")
    assert informed(plain, setting) is plain
    assert informed(parse("matrix_smooth(k=2)"), hand(d=6)).roots is None  # type: ignore[attr-defined]


# ---- the problems' matrices ------------------------------------------------------------------------------------------


def test_the_matrices_of_quadratics_are_their_hessians() -> None:
    for spec in (SMALL, CONVEX, "quadratic(d=1, workers=2, noise=0.1, mu=0.1)", "ridge(workers=4)"):
        problem = problem_of(spec)
        known = problem.smoothness_matrices()
        assert known is not None and torch.allclose(known, matrices(problem)[0], rtol=1e-10, atol=1e-12)
        assert problem.smoothness_matrices() is known
        tops = torch.linalg.eigvalsh(known)[:, -1]
        assert torch.allclose(tops, torch.tensor(problem.constants().L_workers, dtype=F64), rtol=1e-9)


def test_the_matrices_of_parts_that_are_not_convex_are_their_absolute_values() -> None:
    problem = problem_of("quadratic(d=20, workers=6, noise=1.5, mu=1e-4)")
    known, a = problem.smoothness_matrices(), matrices(problem)[0]
    assert known is not None and not torch.allclose(known, a)
    values, vectors = torch.linalg.eigh(a)
    assert torch.allclose(known, vectors * values.abs()[:, None] @ vectors.mT, rtol=1e-9, atol=1e-12)


def test_the_matrices_of_logistic_regression_are_the_hessians_at_zero() -> None:
    problem = problem_of("logistic(data='breast_cancer', l2=0.01, workers=5)")
    oracles, known = problem.oracles(Block.whole(5)), problem.smoothness_matrices()
    upper = torch.triu_indices(30, 30)
    scale = torch.where(upper[0] == upper[1], torch.tensor(1.0, dtype=F64), math.sqrt(2.0))
    assert known is not None
    svec = known[:, upper[0], upper[1]] * scale
    assert torch.allclose(svec, oracles.hessians(oracles.start()), rtol=1e-9, atol=1e-12)
    x, y = (torch.from_numpy(np.random.default_rng(i).standard_normal(30)) for i in (0, 1))
    bound = oracles.values(x) + oracles.gradients(x) @ (y - x) + 0.5 * ((known @ (y - x)) @ (y - x))
    assert (oracles.values(y) <= bound).all()


def test_arrays_with_other_workers_rows_missing_have_none() -> None:
    rows = [np.eye(3), np.full((3, 3), np.nan)]
    labels = [np.ones(3), np.full(3, np.nan)]
    full = Custom.from_arrays([np.eye(3), np.eye(3)], [np.ones(3), np.ones(3)], loss="ridge", l2=0.5)
    known = full.smoothness_matrices()
    assert known is not None and torch.allclose(known, torch.eye(3, dtype=F64) * (1 / 3 + 0.5))
    part = Custom.from_arrays(rows, labels, loss="ridge", l2=0.5, constants=full.constants(), solution=full.solution())
    assert part.smoothness_matrices() is None


# ---- the methods -----------------------------------------------------------------------------------------------------


def two() -> Tensor:
    """Four workers with diag(8, 2) and k = 1: 8 / (8 + rho) + 2 / (2 + rho) = 1 gives rho = 4; 1 / p - 1 = 1/2, 2."""
    return torch.diag(torch.tensor([8.0, 2.0], dtype=F64)).expand(4, 2, 2).contiguous()


@pytest.mark.parametrize(
    ("spec", "step", "rate"),
    [
        # 1 / (L + 2 rho / n); the rate a = 1/3; 1 / (L + 6 rho / n)
        ("gd(direct(matrix_smooth(k=1)))", 1 / (2 + 2), 1 - 0.5 / 4),
        ("gd(diana(matrix_smooth(k=1)))", 1 / (2 + 6), 1 - 0.5 / 8),
        ("gd(diana(matrix_smooth(k=1), rate=0.02))", 1 / (2 + 6), 0.99),
        ("gd(artemis(matrix_smooth(k=1), randk(k=1)))", 1 / 16, 1 - 0.5 / 16),
        ("gd(bi_qgd(matrix_smooth(k=1), randk(k=1)))", 1 / 8, 1 - 0.5 / 8),
        # p = 1 / 6: 4 / (64 * 4 * (2 * 3 / 6 + 1)^2)
        ("adiana(matrix_smooth(k=1))", 4 / (64 * 4 * 4), None),
    ],
)
def test_steps_and_rates_by_hand(spec: str, step: float, rate: float | None) -> None:
    setting = with_matrices(hand(d=2), two())
    method: Any = parse(spec)
    method = method.settled(setting)
    assert method.step == pytest.approx(step, rel=1e-9)
    assert method.guarantee(setting).rate == (None if rate is None else pytest.approx(rate, rel=1e-9))
    shown = str(method)
    assert ("rate=0.3333" in shown) is (spec in ("gd(diana(matrix_smooth(k=1)))", "adiana(matrix_smooth(k=1))"))
    # with diag(8, 2) and k = 1 as an ordinary compressor omega L_max is 1 * 7
    ordinary: Any = parse(spec.replace("matrix_smooth(k=1)", "bernoulli(p=0.5)"))
    assert ordinary.settled(setting).step != pytest.approx(step, rel=1e-3)


def test_the_plateau_of_dcgd_plus_is_bounded_as_claimed() -> None:
    problem = "quadratic(d=7, workers=5, noise=0.1, mu=0.3)"
    solution = problem_of(problem).solution()
    assert solution is not None
    course = start("direct(matrix_smooth(k=2))", problem)
    method: Any = course.method
    promise, total, constants = course.guarantee(), 0.0, course.problem.constants().named()
    claim, sigma = method.mechanism.compressor.claim(7, 5), float(constants["sigma_star"])
    assert promise.plateau == pytest.approx(2 * method.step * claim.omega / 5 * sigma**2 / 0.3, rel=1e-12)
    course.go(400)
    for _ in range(600):
        total += float((course.go().x - solution.x).square().sum())
    assert 0 < total / 600 < promise.plateau


@pytest.mark.parametrize("problem", [CONVEX, "logistic(data='breast_cancer', l2=0.01, workers=5)", "ridge(workers=4)"])
def test_the_lyapunov_function_of_diana_plus_contracts_on_average(problem: str) -> None:
    course = start("diana(matrix_smooth(k=0.3))", problem).go(15)
    solution, rate = course.problem.solution(), course.guarantee().rate
    assert solution is not None and rate is not None
    before, after = course.lyapunov(), []
    kept, step, draws = {name: leaf.tensor.clone() for name, leaf in flatten(course.state).items()}, course.step, 80
    for draw in range(draws):
        course.states = [restore(course.state, kept)]
        course.step = step + 1000 * draw  # other randomness
        after.append(course.go().lyapunov())
    error = float(np.std(after)) / math.sqrt(draws)
    assert float(np.mean(after)) <= rate * before + 4 * error and error < 0.2 * before


def test_the_lyapunov_function_of_diana_plus_by_hand() -> None:
    """||x+ - x*||^2 + (4 rho step^2 / (n a)) mean <e_i, L_i^-1 e_i>, e_i = h_i - grad f_i(x*)."""
    course = start("diana(matrix_smooth(k=2))", SMALL).go(5)
    solution = course.problem.solution()
    assert solution is not None
    a, b = matrices(course.problem)
    rho = max(bisected(matrix.diagonal().numpy(), 2) for matrix in a)
    method: Any = course.method
    step, rate, state = method.step, method.mechanism.rate, course.state
    errors = state.memory.shift - (a @ solution.x - b)
    drift = float((errors * torch.linalg.solve(a, errors)).sum(1).mean())
    ahead = float((state.x - step * state.estimate - solution.x).square().sum())
    assert course.lyapunov() == pytest.approx(ahead + 4 * rho * step**2 / (4 * rate) * drift, rel=1e-8)


def uneven() -> Problem:
    """Least squares whose columns differ by a factor of 100, with a solution that fits (nearly) all rows."""
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((240, 30)) * np.logspace(-1, 1, 30)
    return Custom.from_arrays(rows, rows @ rng.standard_normal(30), workers=8, loss="ridge", l2=0.05)


def bytes_to(spec: str, problem: Problem, gap: float, budget: float) -> float:
    """Mean uplink bytes until f - f* is that share of the first; infinite where the budget does not suffice."""
    course, solution = start(spec, problem), problem.solution()
    assert solution is not None
    oracles: Any = course.oracles[0]
    first = float(oracles.excess(course.x, solution).mean())
    while (spent := float(course.runtime.ledger.uplink.mean())) < budget:
        if float(oracles.excess(course.x, solution).mean()) < gap * first:
            return spent
        course.go(20)
    return math.inf


@pytest.mark.parametrize("mechanism", ["direct", "diana"])
def test_matrices_save_bytes_where_the_diagonal_is_uneven(mechanism: str) -> None:
    """Both at their theorem's step and with as many values a message: DCGD+ against DCGD, DIANA+ against DIANA."""
    problem = uneven()
    fast = bytes_to(f"{mechanism}(matrix_smooth(k=3))", problem, 2e-3, 1e5)
    assert fast < math.inf
    assert bytes_to(f"{mechanism}(smooth_sparsification(k=3))", problem, 2e-3, 2.5 * fast) == math.inf


@pytest.mark.parametrize("runtime", [name for name in RUNTIMES if name != "plain"])
@pytest.mark.parametrize(
    "spec",
    [
        "gd(direct(matrix_smooth(k=2)))",
        "gd(diana(matrix_smooth(k=2)))",
        "gd(marina(matrix_smooth(k=2)), step=0.1)",
        "adiana(matrix_smooth(k=2))",
        "gd(diana(matrix_smooth(k=2)), down=mcm(matrix_smooth(k=4), rate=0.2), step=0.05)",
        "gd(artemis(matrix_smooth(k=2), matrix_smooth(k=4)))",
    ],
)
def test_it_is_the_same_everywhere(spec: str, runtime: str) -> None:
    problem = problem_of(SMALL)
    method = method_of(spec, problem)
    plain = Course(method, problem, RUNTIMES["plain"](4, 5)).go(8)
    course = Course(method, problem, RUNTIMES[runtime](4, 5)).go(8)
    assert equal(course.x, plain.x) and float(plain.x.norm()) > 0
    assert (course.runtime.ledger.uplink == plain.runtime.ledger.uplink).all()
    assert (course.runtime.ledger.downlink == plain.runtime.ledger.downlink).all()


def test_equal_matrices_make_diana_of_the_ordinary_compressor() -> None:
    """With L_i = I the step differs (rho is for L_i, not L_max), but at one step the iterates do not."""
    problem = problem_of(SMALL)
    identity = torch.eye(7, dtype=F64).expand(4, 7, 7).contiguous()
    setting = with_matrices(setting_of(problem), identity)
    method: Any = parse("gd(diana(matrix_smooth(k=2), rate=0.2), step=0.1)")
    one = Course(method.settled(setting), problem, RUNTIMES["plain"](4, 5)).go(20)
    ones = (1.0,) * 7
    two_ = method_of(f"gd(diana(smooth_sparsification(k=2, diagonal={ones}), rate=0.2), step=0.1)", problem)
    assert equal(one.x, Course(two_, problem, RUNTIMES["plain"](4, 5)).go(20).x)
