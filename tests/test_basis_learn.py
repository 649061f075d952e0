"""Basis Learn: bases by linear algebra, BL1 to BL3 by their formulas in NumPy, identities, domination, what is sent."""

from __future__ import annotations

import functools
import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch

from by_hand import RUNTIMES, Course, distance, equal, method_of, problem_of, setting_of, start
from laconic.checks.course import carry
from laconic.core.problem import Block, Oracles, Problem
from laconic.core.spec import parse
from laconic.core.theory import NoTheorem
from laconic.kernels import bases as kernels
from laconic.methods.bases import PSDBasis
from laconic.problems.custom import Custom

LOGISTIC = "logistic(data='breast_cancer', l2=0.1, workers=4)"
MANY = "logistic(data='breast_cancer', l2=0.1, workers=10)"
D, N, RIDGE = 14, 4, 0.05


@functools.cache
def narrow() -> Problem:
    """Logistic loss of 17 rows over four workers: 4, 4, 4 and 5 of them, of rank 4, 3, 2 and 5, in 14 coordinates."""
    a, b = rows()
    return Custom.from_arrays(a, b, workers=N, l2=RIDGE)


def rows() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(5)
    a = rng.standard_normal((17, D))
    a[7] = 2.0 * a[4]
    a[10], a[11] = a[8] - a[9], 3.0 * a[8]
    return a, rng.choice([-1.0, 1.0], 17)


def near(spec: Any, problem: str | Problem = LOGISTIC, away: float = 0.3, runtime: str = "plain") -> Course:
    """A course that starts near the solution, where the local theory speaks."""
    asked = problem_of(problem)
    solution = asked.solution()
    assert solution is not None
    direction = torch.from_numpy(np.random.default_rng(0).standard_normal(solution.x.shape))
    begin = solution.x + away * direction / direction.norm()
    driver = RUNTIMES[runtime](asked.n, 0)
    oracles = [asked.host(link.block) for link in driver.links]
    for each in oracles:
        each.start = lambda: begin.clone()
    return Course(method_of(spec, asked), asked, driver, oracles)


@functools.cache
def aside(problem: Problem) -> Oracles:
    """Oracles for the test alone: the course's count what is asked."""
    return problem.oracles(Block.whole(problem.n))


def gradients(course: Course, x: torch.Tensor) -> np.ndarray:
    return aside(course.problem).gradients(x).numpy()


def hessians(course: Course, x: torch.Tensor) -> np.ndarray:
    """(n, d, d)."""
    return np.stack([unpacked(svec) for svec in aside(course.problem).hessians(x).numpy()])


def unpacked(svec: np.ndarray) -> np.ndarray:
    d = math.isqrt(2 * len(svec))
    out = np.zeros((d, d))
    i, j = np.triu_indices(d)
    out[i, j] = out[j, i] = np.where(i == j, svec, svec / math.sqrt(2.0))
    return out


def packed(matrix: np.ndarray) -> np.ndarray:
    i, j = np.triu_indices(len(matrix))
    return np.where(i == j, matrix[i, j], matrix[i, j] * math.sqrt(2.0))


def top(v: np.ndarray, k: int) -> np.ndarray:
    kept = np.zeros_like(v)
    places = np.argsort(-np.abs(v), kind="stable")[:k]
    kept[places] = v[places]
    return kept


def at_least(matrix: np.ndarray, mu: float) -> np.ndarray:
    values, vectors = np.linalg.eigh(matrix)
    return (vectors * np.maximum(values, mu)) @ vectors.T


def squares(d: int) -> np.ndarray:
    """The matrices of the PSD basis, (K, d, d), built one by one."""
    unit = np.eye(d)
    pairs = [(j, i) for j in range(d) for i in range(j, d)]
    vectors = [unit[j] if i == j else unit[j] + unit[i] for j, i in pairs]
    return np.stack([np.outer(v, v) for v in vectors])


def close(a: Any, b: Any, tolerance: float = 1e-9) -> bool:
    return bool(np.allclose(np.asarray(a), np.asarray(b), rtol=tolerance, atol=tolerance))


class ByHand:
    """Coefficients of a basis and back, in plain NumPy."""

    def __init__(self, course: Course, basis: str) -> None:
        self.basis, self.d = basis, course.x.numel()
        if basis == "data_basis":
            self.v = course.state.span.everyone.numpy().copy()
        self.matrices = squares(self.d)
        self.solver = np.linalg.inv(np.stack([packed(m) for m in self.matrices], axis=1))

    def of(self, hessian: np.ndarray, i: int) -> np.ndarray:
        if self.basis == "data_basis":
            return packed(self.v[i].T @ (hessian - RIDGE * np.eye(self.d)) @ self.v[i])
        return packed(hessian) if self.basis == "standard_basis" else self.solver @ packed(hessian)

    def back(self, coefficients: np.ndarray, i: int) -> np.ndarray:
        if self.basis == "data_basis":
            return self.v[i] @ unpacked(coefficients) @ self.v[i].T + RIDGE * np.eye(self.d)
        if self.basis == "standard_basis":
            return unpacked(coefficients)
        return np.einsum("k,kij->ij", coefficients, self.matrices)


BASES = ["standard_basis", "data_basis", "psd_basis"]

# ---- bases -----------------------------------------------------------------------------------------------------------


def test_changes_of_basis_are_those_of_their_matrices_row_by_row() -> None:
    rng = np.random.default_rng(1)
    for d, k in ((1, 1), (6, 3), (9, 9)):
        raw = rng.standard_normal((4, d, d))
        matrices = raw + raw.transpose(0, 2, 1)
        svecs = torch.from_numpy(np.stack([packed(m) for m in matrices]))
        v, x, y = (torch.from_numpy(rng.standard_normal(size)) for size in ((4, d, k), (4, d), (4, k)))
        vectors = v.numpy()
        inner = np.einsum("nia,nij,njb->nab", vectors, matrices - 0.7 * np.eye(d), vectors)
        found = kernels.inward(svecs, 0.7, v)
        assert close(found, np.stack([packed(m) for m in inner]), 1e-12)
        assert equal(found[1:], kernels.inward(svecs[1:], 0.7, v[1:]))
        assert close(kernels.unpacked(found, k), inner, 1e-12)
        assert close(kernels.products(svecs, x), np.einsum("nij,nj->ni", matrices, x.numpy()), 1e-12)
        assert close(kernels.coordinates(v, x), np.einsum("nia,ni->na", vectors, x.numpy()), 1e-12)
        assert close(kernels.combinations(v, y), np.einsum("nia,na->ni", vectors, y.numpy()), 1e-12)


def test_the_psd_basis_is_one_of_matrices_without_negative_eigenvalues() -> None:
    rng, basis = np.random.default_rng(2), PSDBasis()
    for d in (1, 2, 5):
        matrices = squares(d)
        assert np.linalg.eigvalsh(matrices).min() >= -1e-15
        raw = rng.standard_normal((3, d, d))
        svecs = torch.from_numpy(np.stack([packed(m + m.T) for m in raw]))
        weights = basis.coefficients(svecs, d)
        for svec, weight in zip(svecs.numpy(), weights.numpy(), strict=True):
            assert close(np.einsum("k,kij->ij", weight, matrices), unpacked(svec), 1e-12)
        assert close(basis.matrices(weights, d), svecs, 1e-12)
        assert close(basis.lengths(weights, d), np.linalg.norm(raw + raw.transpose(0, 2, 1), axis=(1, 2)), 1e-12)


def test_spans_are_those_of_the_rows_and_hold_gradients_and_hessians() -> None:
    oracles = aside(narrow())
    vectors, ridge = oracles.spans()
    v, (a, _) = vectors.numpy(), rows()
    parts = np.split(a, np.cumsum(oracles.terms())[:-1])
    assert ridge == RIDGE and v.shape == (4, D, 5)
    assert [int((each != 0.0).any(axis=0).sum()) for each in v] == [4, 3, 2, 5]
    x = torch.from_numpy(np.random.default_rng(3).standard_normal(D))
    for i, part in enumerate(parts):
        onto = v[i] @ v[i].T
        assert close(onto, np.linalg.pinv(part) @ part, 1e-10)
        assert close(v[i].T @ v[i], np.diag((v[i] != 0.0).any(axis=0).astype(float)), 1e-12)
        slope = oracles.gradients(x)[i].numpy() - RIDGE * x.numpy()
        bend = unpacked(oracles.hessians(x)[i].numpy()) - RIDGE * np.eye(D)
        assert close(onto @ slope, slope, 1e-12) and close(onto @ bend @ onto, bend, 1e-12)
    some = np.array([1, 2])
    fewer, _ = oracles.spans(some)
    assert fewer.shape == (2, D, 3) and equal(fewer, vectors[1:3, :, :3])  # a worker's bits are its own
    assert equal(oracles.among(some).spans()[0], fewer)


# ---- BL1 -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "parameters",
    ["topk(k=40), identity", "topk(k=40), topk(k=15), probability=0.5", "randk(k=300), randk(k=20), probability=0.5"],
)
def test_bl1_in_the_standard_basis_is_fednl_bc_bit_for_bit(parameters: str) -> None:
    ours, other = near(f"bl1({parameters})"), near(f"fednl_bc({parameters})")
    for _ in range(8):
        assert equal(ours.go().x, other.go().x)
    assert equal(ours.state.hessian, other.state.hessian) and equal(ours.state.learned, other.state.shift)
    assert (ours.runtime.ledger.uplink == other.runtime.ledger.uplink).all()


def test_bl1_in_the_standard_basis_with_exact_models_is_fednl() -> None:
    ours, fednl = near("bl1(topk(k=40), identity)"), near("fednl_projected(topk(k=40))")
    for _ in range(8):
        assert torch.allclose(ours.go().x, fednl.go().x, rtol=1e-12, atol=1e-12)
    assert (ours.runtime.ledger.uplink == fednl.runtime.ledger.uplink).all()


@pytest.mark.parametrize("basis", BASES)
def test_bl1_loses_nothing_in_any_basis(basis: str) -> None:
    """With the identity both ways, the model does not depend on the basis, and nor does it on what is sent."""
    ours, fednl = near(f"bl1(identity, identity, {basis})", narrow()), near("fednl_projected(identity)", narrow())
    for _ in range(6):
        assert torch.allclose(ours.go().x, fednl.go().x, rtol=1e-9, atol=1e-9)
    assert distance(ours) < 1e-12
    ledger, width = ours.runtime.ledger, D * (D + 1) // 2
    if basis == "data_basis":  # the rank, V_i, 15 coefficients; then a gradient of 5 and 15 coefficients
        assert (ledger.uplink == 8 * (1 + 5 * D + 15 + 6 * (5 + 15))).all()
        assert (ledger.downlink == 8 * (1 + 6 * D)).all() and ledger.rounds == 3 + 6
    else:
        assert (ledger.uplink == 8 * (width + 6 * (D + width))).all()
        assert (ledger.downlink == 8 * 6 * D).all() and ledger.rounds == 1 + 6


@pytest.mark.parametrize("basis", BASES)
def test_bl1_by_the_formula(basis: str) -> None:
    """In the paper's form, with g = [H]_mu (z - w) + grad f(w) where no gradient is sent, and with a projection."""
    course = near(f"bl1(topk(k=6), topk(k=8), {basis}, probability=0.5, start=topk(k=3), mu=0.06)", narrow(), 0.5)
    hand = ByHand(course, basis)
    learned = [top(hand.of(h, i), 3) for i, h in enumerate(hessians(course, course.x))]
    w, asked, acted = course.x, 0, 0
    for step in range(1, 25):
        z, fresh, before = course.x, hessians(course, course.x), course.oracles[0].calls.gradient_terms
        course.go()
        renewed = course.oracles[0].calls.gradient_terms > before
        assert renewed or step > 1
        asked, w = asked + renewed, z if renewed else w
        model = np.mean([hand.back(each, i) for i, each in enumerate(learned)], axis=0)
        acted += int(np.linalg.eigvalsh(model)[0] < 0.06 - 1e-9)
        matrix = at_least(model, 0.06)
        g = matrix @ (z - w).numpy() + gradients(course, w).mean(0)
        assert close(course.x, z.numpy() + top(-np.linalg.solve(matrix, g), 8), 1e-8)
        learned = [each + top(hand.of(fresh[i], i) - each, 6) for i, each in enumerate(learned)]
    assert 0 < asked < 24 and acted > 0 and close(course.state.learned, np.stack(learned), 1e-8)


def test_in_the_basis_of_the_data_little_is_sent() -> None:
    """Per iteration a third of what FedNL sends with as many entries as coordinates, and no more iterations."""
    sent = {}
    for spec in ("bl1(topk(k=5), identity, data_basis)", f"fednl_projected(topk(k={D}))"):
        course = near(spec, narrow(), 0.1)
        first, steps = int(course.runtime.ledger.uplink.max()), 0
        while distance(course) > 1e-10:
            course.go()
            steps += 1
        sent[spec] = steps, (int(course.runtime.ledger.uplink.max()) - first) / steps
    (ours, small), (theirs, large) = sent.values()
    assert ours <= theirs and small < large / 2.5


# ---- BL2 -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cohort", [1, 3, 4])
def test_bl2_in_the_standard_basis_with_all_gradients_is_fednl_pp(cohort: int) -> None:
    ours, other = near(f"bl2(topk(k=60), cohort={cohort})"), near(f"fednl_pp(topk(k=60), cohort={cohort})")
    for _ in range(10):
        assert torch.allclose(ours.go().x, other.go().x, rtol=1e-10, atol=1e-10)
    assert (ours.runtime.ledger.uplink == other.runtime.ledger.uplink).all()
    assert (ours.runtime.ledger.downlink == other.runtime.ledger.downlink).all()


def spoke(before: torch.Tensor, after: torch.Tensor) -> np.ndarray:
    """The workers whose rows at the server are others now."""
    return np.flatnonzero((before != after).flatten(1).any(dim=1).numpy())


@pytest.mark.parametrize("basis", BASES)
def test_bl2_by_the_formula(basis: str) -> None:
    """The server solves with all w_i, l_i and H_i; only the cohort computes, and only some send gradients."""
    course = near(f"bl2(topk(k=6), cohort=2, basis={basis}, probability=0.5)", narrow())
    hand, x = ByHand(course, basis), course.x
    learned = [hand.of(h, i) for i, h in enumerate(hessians(course, x))]
    w, at_w, lengths = [x.numpy()] * N, gradients(course, x), np.zeros(N)
    terms, spoken, quiet = aside(course.problem).terms(), 0, 0
    for _ in range(12):
        points, copies = course.state.points.clone(), course.state.copies.clone()
        calls = course.oracles[0].calls
        gradient_terms, hessian_terms = calls.gradient_terms, calls.hessian_terms
        models = [hand.back(each, i) + lengths[i] * np.eye(D) for i, each in enumerate(learned)]
        right = np.mean([m @ w[i] - at_w[i] for i, m in enumerate(models)], axis=0)
        x = torch.from_numpy(np.linalg.solve(np.mean(models, axis=0), right))
        assert close(course.go().x, x, 1e-8)
        who, renewed = spoke(copies, course.state.copies), spoke(points, course.state.points)
        assert len(who) == 2 and set(renewed) <= set(who)
        assert calls.hessian_terms - hessian_terms == terms[who].sum()
        assert calls.gradient_terms - gradient_terms == terms[renewed].sum()
        fresh, slopes = hessians(course, x), gradients(course, x)
        for i in who:
            learned[i] = learned[i] + top(hand.of(fresh[i], i) - learned[i], 6)
            lengths[i] = np.linalg.norm(hand.back(learned[i], i) - fresh[i])
        for i in renewed:
            w[i], at_w[i] = x.numpy(), slopes[i]
        spoken, quiet = spoken + len(renewed), quiet + 2 - len(renewed)
    assert spoken > 0 and quiet > 0
    assert close(course.state.errors, lengths, 1e-8) and close(course.state.learned, course.state.copies, 1e-12)


def test_bl2_sends_short_gradients_in_the_basis_of_the_data() -> None:
    sizes = {}
    for basis in ("standard_basis", "data_basis"):
        course = near(f"bl2(identity, cohort=4, basis={basis})", narrow())
        first = course.runtime.ledger.uplink.copy()
        sizes[basis] = (course.go().runtime.ledger.uplink - first).tolist()
    assert sizes == {"standard_basis": [8 * (105 + 1 + 14)] * 4, "data_basis": [8 * (15 + 1 + 5)] * 4}


# ---- BL3 -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("compressor", ["topk(k=20)", "randk(k=30)"])
def test_bl3_by_the_formula_and_its_model_dominates(compressor: str) -> None:
    """As in the paper: A_i = sum (L_i + 2 c_i) B, C_i = 2 c_i sum B, x = (b A - C)^{-1} (b mean A_i w_i - ...)."""
    course = near(f"bl3({compressor}, cohort=2, probability=0.5)", narrow(), 1.0)
    hand = ByHand(course, "psd_basis")
    last, w, ratios = hessians(course, course.x), [course.x.numpy()] * N, np.ones(N)
    at_w, ones = gradients(course, course.x), hand.back(np.ones(105), 0)
    model: Any = course.method
    stretched = 0.0
    for _ in range(12):
        points, copies = course.state.points.clone(), course.state.copies.clone()
        learned = copies.numpy()
        c = np.maximum(1e-9, np.abs(learned).max(axis=1))
        a = [hand.back(learned[i], i) + 2 * c[i] * ones for i in range(N)]
        b = ratios.max()
        each = [b * a[i] - 2 * c[i] * ones for i in range(N)]
        for i in range(N):
            assert np.linalg.eigvalsh(each[i] - last[i])[0] >= -1e-12
            assert close(each[i], hand.back(model.model(course.state)[i].numpy(), i), 1e-10)
        right = np.mean([b * a[i] @ w[i] - (2 * c[i] * ones @ w[i] + at_w[i]) for i in range(N)], axis=0)
        x = torch.from_numpy(np.linalg.solve(np.mean(each, axis=0), right))
        assert close(course.go().x, x, 1e-8)
        fresh, slopes = hessians(course, x), gradients(course, x)
        who, renewed = spoke(copies, course.state.copies), spoke(points, course.state.points)
        assert len(who) == 2 and set(renewed) <= set(who)
        for i in who:
            new = course.state.copies[i].numpy()
            if compressor.startswith("topk"):
                assert close(new, learned[i] + top(hand.of(fresh[i], i) - learned[i], 20), 1e-10)
            shift = 2 * max(1e-9, np.abs(new).max())
            ratios[i], last[i] = np.max((hand.of(fresh[i], i) + shift) / (new + shift)), fresh[i]
        for i in renewed:
            w[i], at_w[i] = x.numpy(), slopes[i]
        stretched = max(stretched, b)
    assert stretched > 1.001 and equal(course.state.copies, course.state.learned)


def test_bl3_with_nothing_lost_is_newton_with_the_hessian_of_the_last_point() -> None:
    course = near("bl3(identity, cohort=4)")
    at = course.x
    matrix = hessians(course, at).mean(0)
    for _ in range(5):
        expected = at.numpy() - np.linalg.solve(matrix, gradients(course, at).mean(0))
        at = course.go().x
        assert close(at, expected, 1e-10)
        matrix = hessians(course, at).mean(0)
    assert (course.runtime.ledger.uplink == 8 * (465 + 30 + 5 * (465 + 1 + 30))).all()


# ---- all of them -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "spec",
    [
        "bl1(topk(k=8), identity, data_basis)", "bl1(topk(k=100), identity, psd_basis)",
        "bl2(topk(k=8), cohort=4, basis=data_basis)", "bl2(topk(k=100), cohort=4, basis=psd_basis)",
        "bl3(topk(k=100), cohort=4)",
    ],
)  # fmt: skip
def test_near_the_solution_steps_are_superlinear(spec: str) -> None:
    course = near(spec, narrow(), away=0.05)
    distances = [distance(course)]
    while distances[-1] > 1e-10 and len(distances) < 25:
        distances.append(distance(course.go()))
    assert distances[-1] <= 1e-10
    ratios = [after / before for before, after in itertools.pairwise(distances)]
    assert all(ratio**2 <= 0.5 for ratio in ratios) and ratios[-1] < 0.1


@pytest.mark.parametrize("cohort", [2, 5])
@pytest.mark.parametrize("method", ["bl2(topk(k=200), ", "bl3(topk(k=200), "])
def test_any_cohort_converges_with_rare_gradients(method: str, cohort: int) -> None:
    course = near(f"{method}cohort={cohort}, probability=0.5)", MANY)
    asked, calls = [], course.oracles[0].calls
    for _ in range(150):
        before = calls.hessian_terms
        asked.append(course.go() and calls.hessian_terms - before)
        if distance(course) < 1e-9:
            break
    assert distance(course) < 1e-9 and max(asked) <= 57 * cohort  # 569 rows over ten workers


@pytest.mark.parametrize("runtime", [name for name in RUNTIMES if name != "plain"])
@pytest.mark.parametrize(
    "spec",
    [
        "bl1(randk(k=4), topk(k=8), data_basis, probability=0.5)",
        "bl2(topk(k=4), cohort=2, basis=data_basis, probability=0.5)",
    ],
)
def test_the_basis_of_the_data_is_the_same_everywhere(spec: str, runtime: str) -> None:
    plain, other = near(spec, narrow()).go(6), near(spec, narrow(), runtime=runtime).go(6)
    assert equal(plain.x, other.x) and (plain.runtime.ledger.uplink == other.runtime.ledger.uplink).all()
    assert (plain.runtime.ledger.downlink == other.runtime.ledger.downlink).all()


@pytest.mark.parametrize(
    "spec", ["bl1(randk(k=4), topk(k=8), data_basis)", "bl2(topk(k=4), basis=data_basis)", "bl3(topk(k=4))"]
)
def test_a_run_goes_on_from_its_state(spec: str) -> None:
    straight, first, second = near(spec, narrow()).go(6), near(spec, narrow()).go(3), near(spec, narrow(), away=1.0)
    carry(first, second)
    assert equal(second.go(3).x, straight.x)


@pytest.mark.parametrize(
    ("problem", "why"),
    [
        ("quadratic(d=7, workers=4, noise=0.1, mu=0.1)", "QuadraticOracles is no linear model"),
        ("logistic(data='breast_cancer', nonconvex=0.1, workers=4)", "the nonconvex regulariser"),
    ],
)
def test_data_that_span_nothing_are_refused_in_one_line(problem: str, why: str) -> None:
    with pytest.raises(ValueError, match=f"{why}.*standard_basis") as caught:
        start("bl1(topk(k=3), identity, data_basis, mu=0.1)", problem)
    assert "\n" not in str(caught.value)


def test_what_has_no_number_is_refused() -> None:
    setting = setting_of(problem_of(LOGISTIC))
    for name in ("bl2", "bl3"):
        with pytest.raises(ValueError, match=rf"{name.upper()}\(cohort=5\) : the problem has 4 workers"):
            parse(f"{name}(topk(k=1), cohort=5)").settled(setting)  # type: ignore[attr-defined]
    nonconvex = setting_of(problem_of("logistic(data='breast_cancer', nonconvex=0.1, workers=4)"))
    with pytest.raises(NoTheorem):
        parse("bl1(topk(k=9), identity)").settled(nonconvex)  # type: ignore[attr-defined]


def test_the_learning_rate_is_that_of_as_many_coefficients_as_there_can_be() -> None:
    """randk of 4 of K: 1 / (1 + omega) = 4 / K, with K = 15 in the span of five rows and 105 of all matrices."""
    setting = setting_of(narrow())
    for basis, count in (("standard_basis", 105), ("data_basis", 15), ("psd_basis", 105)):
        for spec in (f"bl1(randk(k=4), identity, {basis})", f"bl2(randk(k=4), basis={basis})"):
            settled: Any = parse(spec).settled(setting)  # type: ignore[attr-defined]
            assert settled.learning_rate == pytest.approx(4 / count)
