"""Second-order methods: by their formulas in NumPy, by identities and special cases, local rates and refusals."""

from __future__ import annotations

import functools
import itertools
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from by_hand import RUNTIMES, Course, distance, equal, method_of, problem_of, setting_of, start
from laconic.core import rows
from laconic.core.compressor import Compressor, Decoded, Sparse
from laconic.core.keys import Keys
from laconic.core.link import Link
from laconic.core.message import Message, Schema
from laconic.core.problem import Block, Oracles, Problem
from laconic.core.spec import parse
from laconic.core.theory import NoTheorem
from laconic.kernels import svec as packed
from laconic.mechanisms.cbag import CBAG
from laconic.methods.fednl import FedNLProjected
from laconic.methods.newton import Newton, NewtonStar

LOGISTIC = "logistic(data='breast_cancer', l2=0.1, workers=4)"
MANY = "logistic(data='breast_cancer', l2=0.1, workers=10)"
SMALL = "quadratic(d=7, workers=4, noise=0.1, mu=0.1)"
F64 = torch.float64


class Nothing(Compressor):
    """C = 0: not a byte is sent."""

    name, layout = "nothing", "nothing"

    def schema(self, shape: tuple[int, ...], dtype: torch.dtype, keys: Keys) -> Schema:
        return ()

    def codes(self, v: torch.Tensor, keys: Keys) -> tuple[torch.Tensor, ...]:
        return ()

    def decode(self, message: Message, shape: tuple[int, ...], dtype: torch.dtype, keys: Keys) -> Decoded:
        none = torch.zeros(0, dtype=torch.int64)
        return Sparse(none, none.to(dtype), np.zeros(message.rows + 1, dtype=np.int64), shape)


def near(spec: Any, problem: str = LOGISTIC, away: float = 0.3) -> Course:
    """A course that starts near the solution, where the local theory speaks."""
    asked = problem_of(problem)
    solution = asked.solution()
    assert solution is not None
    direction = torch.from_numpy(np.random.default_rng(0).standard_normal(solution.x.shape))
    return begun(spec, problem, solution.x + away * direction / direction.norm())


def begun(spec: Any, problem: str, x: torch.Tensor) -> Course:
    """A course from a point."""
    asked = problem_of(problem)
    oracles = asked.host(Block.whole(asked.n))
    oracles.start = lambda: x.clone()
    return Course(method_of(spec, asked), asked, RUNTIMES["plain"](asked.n, 0), [oracles])


@functools.cache
def aside(problem: Problem) -> Oracles:
    """Oracles for the test alone: the course's count what is asked."""
    return problem.oracles(Block.whole(problem.n))


def gradient(course: Course, x: torch.Tensor) -> np.ndarray:
    return aside(course.problem).gradients(x).numpy().mean(0)


def hessians(course: Course, x: torch.Tensor) -> np.ndarray:
    """(n, d, d), unpacked by hand."""
    svecs, d = aside(course.problem).hessians(x).numpy().copy(), x.numel()
    return np.stack([unpacked(svec, d) for svec in svecs])


def unpacked(svec: np.ndarray, d: int) -> np.ndarray:
    out = np.zeros((d, d))
    i, j = np.triu_indices(d)
    out[i, j] = out[j, i] = np.where(i == j, svec, svec / math.sqrt(2.0))
    return out


def top(matrix: np.ndarray, k: int) -> np.ndarray:
    """TopK of a symmetric matrix by energy."""
    d = len(matrix)
    i, j = np.triu_indices(d)
    values = np.where(i == j, matrix[i, j], matrix[i, j] * math.sqrt(2.0))
    kept = np.zeros_like(values)
    places = np.argsort(-np.abs(values), kind="stable")[:k]
    kept[places] = values[places]
    return unpacked(kept, d)


def at_least(matrix: np.ndarray, mu: float) -> np.ndarray:
    """[A]_mu."""
    values, vectors = np.linalg.eigh(matrix)
    return (vectors * np.maximum(values, mu)) @ vectors.T


def close(a: torch.Tensor, b: np.ndarray, tolerance: float = 1e-9) -> bool:
    return bool(np.allclose(a.numpy(), b, rtol=tolerance, atol=tolerance))


def minimiser(course: Course) -> np.ndarray:
    solution = course.problem.solution()
    assert solution is not None
    return solution.x.numpy()


# ---- Newton, N0, NewtonStar ------------------------------------------------------------------------------------------


def test_newton_by_the_formula_and_within_its_bound() -> None:
    course = near("newton", away=0.1)
    bend = float(course.problem.constants().hessian_lipschitz or math.nan)
    for _ in range(4):
        x, away = course.x, distance(course)
        matrix = hessians(course, x).mean(0)
        expected = x.numpy() - np.linalg.solve(matrix, gradient(course, x))
        assert close(course.go().x, expected, 1e-11)
        assert distance(course) <= bend / (2 * np.linalg.eigvalsh(matrix)[0]) * away**2 + 1e-14
    assert distance(course) < 1e-12


def test_newton_solves_quadratics_in_one_step_and_counts_what_it_sends() -> None:
    course = start("newton", SMALL)
    assert course.runtime.ledger.rounds == 0
    assert distance(course.go()) < 1e-12
    assert course.runtime.ledger.rounds == 1
    assert (course.runtime.ledger.uplink == 8 * (7 + 28)).all() and (course.runtime.ledger.downlink == 8 * 7).all()
    assert course.oracles[0].calls.hessian_terms == course.oracles[0].calls.gradient_terms > 0


def test_n0_keeps_the_first_hessian_and_its_bound() -> None:
    course = near("n0", away=0.05)
    frozen, first = hessians(course, course.x).mean(0), distance(course)
    least, bend = np.linalg.eigvalsh(frozen)[0], float(course.problem.constants().hessian_lipschitz or math.nan)
    for _ in range(5):
        x, away = course.x, distance(course)
        expected = x.numpy() - np.linalg.solve(frozen, gradient(course, x))
        assert close(course.go().x, expected, 1e-11)
        assert distance(course) <= bend / least * (first + away / 2) * away + 1e-14
    ledger = course.runtime.ledger
    assert (ledger.uplink == 8 * (465 + 5 * 30)).all() and course.oracles[0].calls.hessian_terms == 569


def test_newton_star_is_quadratic_with_a_hessian_that_stays() -> None:
    course = near("newton_star", away=0.1)
    frozen = hessians(course, torch.from_numpy(minimiser(course))).mean(0)
    least, bend = np.linalg.eigvalsh(frozen)[0], float(course.problem.constants().hessian_lipschitz or math.nan)
    for _ in range(4):
        x, away = course.x, distance(course)
        expected = x.numpy() - np.linalg.solve(frozen, gradient(course, x))
        assert close(course.go().x, expected, 1e-11)
        assert distance(course) <= bend / (2 * least) * away**2 + 1e-14
    assert (course.runtime.ledger.uplink == 8 * (465 + 4 * 30)).all()
    assert (course.runtime.ledger.downlink == 8 * 30 * 5).all()  # x* once, then x


def test_newton_star_must_be_told_the_solution() -> None:
    setting = setting_of(problem_of("logistic(data='breast_cancer', nonconvex=0.1, workers=4)"))
    with pytest.raises(ValueError, match="this problem knows none"):
        NewtonStar().settled(setting)
    problem = problem_of(SMALL)
    with pytest.raises(ValueError, match="does not know the solution yet"):
        Course(NewtonStar(), problem, RUNTIMES["plain"](4, 0))


# ---- FedNL, projected ------------------------------------------------------------------------------------------------


def test_fednl_projected_by_the_formula_where_the_projection_acts() -> None:
    course = begun("fednl_projected(topk(k=20), start=topk(k=5), mu=0.2)", LOGISTIC, torch.full((30,), 0.3, dtype=F64))
    each = np.stack([top(h, 5) for h in hessians(course, course.x)])
    acted = 0
    for _ in range(6):
        x, fresh = course.x, hessians(course, course.x)
        acted += int(np.linalg.eigvalsh(each.mean(0))[0] < 0.2)
        expected = x.numpy() - np.linalg.solve(at_least(each.mean(0), 0.2), gradient(course, x))
        assert close(course.go().x, expected)
        each = each + np.stack([top(h, 20) for h in fresh - each])
    assert acted >= 3
    ledger = course.runtime.ledger
    assert ledger.rounds == 7 and (ledger.downlink == 6 * 240).all()


def test_fednl_projected_that_sends_nothing_is_n0() -> None:
    nothing, n0 = near(FedNLProjected(Nothing(), learning_rate=1.0)), near("n0")
    for _ in range(6):
        assert torch.allclose(nothing.go().x, n0.go().x, rtol=1e-12, atol=1e-12)
    assert (nothing.runtime.ledger.uplink == n0.runtime.ledger.uplink).all()


def test_the_projection_takes_the_cheap_way_where_it_can() -> None:
    """H itself where H >= mu I, the same matrix as by eigenvalues where not."""
    from laconic.methods._hessian_learning import projected

    rng = np.random.default_rng(1)
    for shift in (5.0, 0.0):
        raw = rng.standard_normal((6, 6))
        matrix = raw + raw.T + shift * np.eye(6)
        i, j = np.triu_indices(6)
        svec = torch.from_numpy(np.where(i == j, matrix[i, j], matrix[i, j] * math.sqrt(2.0)))
        assert close(projected(svec, 0.3, 6), at_least(matrix, 0.3), 1e-12)


# ---- FedNL-CR --------------------------------------------------------------------------------------------------------


def test_fednl_cr_takes_the_minimiser_of_its_model_and_f_never_grows() -> None:
    course = begun("fednl_cr(topk(k=60), start=topk(k=1))", LOGISTIC, torch.full((30,), 5.0, dtype=F64))
    bend = course.method.hessian_lipschitz  # type: ignore[attr-defined]
    assert bend == float(course.problem.constants().hessian_lipschitz or math.nan)
    each, values = np.stack([top(h, 1) for h in hessians(course, course.x)]), [course.gap()]
    for _ in range(8):
        x, fresh = course.x, hessians(course, course.x)
        lengths = np.linalg.norm(fresh - each, axis=(1, 2)).mean()
        matrix, g = each.mean(0) + lengths * np.eye(30), gradient(course, x)
        s = (course.go().x - x).numpy()
        slope = g + matrix @ s + bend / 2 * np.linalg.norm(s) * s
        assert np.linalg.norm(slope) <= 1e-9 * np.linalg.norm(g)  # a stationary point of a convex model
        each = each + np.stack([top(h, 60) for h in fresh - each])
        values.append(course.gap())
    assert all(after < before for before, after in itertools.pairwise(values))


# ---- FedNL-LS --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("decrease", [0.5, 1e-4])
def test_fednl_ls_takes_the_first_trial_that_descends_enough(decrease: float) -> None:
    spec = f"fednl_ls(topk(k=60), start=topk(k=1), decrease={decrease})"
    course = begun(spec, LOGISTIC, torch.full((30,), 5.0, dtype=F64))
    mu, trials = float(course.problem.constants().mu or math.nan), 0
    each = np.stack([top(h, 1) for h in hessians(course, course.x)])
    for _ in range(14):
        x, fresh, rounds = course.x, hessians(course, course.x), course.runtime.ledger.rounds
        g = gradient(course, x)
        p = -np.linalg.solve(at_least(each.mean(0), mu), g)
        value = lambda t, x=x, p=p: float(aside(course.problem).values(x + t * torch.from_numpy(p)).mean())  # noqa: E731
        t, count = 1.0, 1
        while value(t) > value(0.0) + decrease * t * (g @ p) + 1e-14 * abs(value(0.0)):
            t, count = t / 2, count + 1
        assert close(course.go().x, x.numpy() + t * p, 1e-8)
        assert course.runtime.ledger.rounds - rounds == 1 + count  # one for what is learned, one for each trial
        assert float(course.state.value) == pytest.approx(value(t), rel=1e-12)
        each, trials = each + np.stack([top(h, 60) for h in fresh - each]), trials + count - 1
    assert trials > 0 and distance(course) < 5.0
    scalars = course.runtime.ledger.rounds - 1 - 14  # of trials; every one is answered
    assert (course.runtime.ledger.downlink == 14 * 240 + 8 * scalars).all()


def test_fednl_ls_goes_on_at_the_solution_where_rounding_decides() -> None:
    course = near("fednl_ls(topk(k=200))", away=1e-7)
    course.go(12)
    assert distance(course) < 1e-12 and course.runtime.ledger.rounds <= 1 + 12 * 3


# ---- FedNL-PP --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cohort", [2, 5, 10])
def test_fednl_pp_converges_with_any_cohort(cohort: int) -> None:
    course = near(f"fednl_pp(topk(k=200), cohort={cohort})", MANY)
    ledger = course.runtime.ledger
    asked = []
    for _ in range(60):
        before = course.oracles[0].calls.hessian_terms
        course.go()
        asked.append(course.oracles[0].calls.hessian_terms - before)
        if distance(course) < 1e-9:
            break
    assert distance(course) < 1e-9
    assert max(asked) <= 57 * cohort  # nobody computes for the others: 569 rows over ten workers
    assert ledger.messages_down == course.step * cohort and ledger.messages_up == 20 + 3 * course.step * cohort


# ---- FedNL-BC --------------------------------------------------------------------------------------------------------


def test_fednl_bc_with_nothing_lost_is_fednl_projected() -> None:
    both, one = near("fednl_bc(topk(k=40), identity)"), near("fednl_projected(topk(k=40))")
    for _ in range(8):
        assert torch.allclose(both.go().x, one.go().x, rtol=1e-12, atol=1e-12)
    assert (both.runtime.ledger.uplink == one.runtime.ledger.uplink).all()


def test_fednl_bc_by_the_formula() -> None:
    """In the paper's form, with g = [H]_mu (z - w) + grad f(w) where no gradient is sent."""
    course = near("fednl_bc(topk(k=40), topk(k=15), probability=0.5)")
    mu, each = float(course.problem.constants().mu or math.nan), hessians(course, course.x)
    w, at_w, asked = course.x, gradient(course, course.x), 0
    for step in range(1, 30):
        z, fresh, before = course.x, hessians(course, course.x), course.oracles[0].calls.gradient_terms
        course.go()
        renewed = course.oracles[0].calls.gradient_terms > before
        assert renewed or step > 1
        asked += renewed
        matrix = at_least(each.mean(0), mu)
        if renewed:
            w, at_w = z, gradient(course, z)
        g = matrix @ (z - w).numpy() + at_w
        move = -np.linalg.solve(matrix, g)
        kept = np.zeros(30)
        places = np.argsort(-np.abs(move), kind="stable")[:15]
        kept[places] = move[places]
        assert close(course.x, z.numpy() + kept, 1e-8)
        each = each + np.stack([top(h, 40) for h in fresh - each])
        if distance(course) < 1e-6:
            break
    assert 0 < asked < step and distance(course) < 1e-6


# ---- Newton-3PC ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "mechanism", ["direct", "lag(trigger=0.0)", "ef21(identity)", "cbag(identity, probability=1.0)"]
)
def test_newton_3pc_with_nothing_lost_is_newton(mechanism: str) -> None:
    ours, newton = near(f"newton_3pc({mechanism})"), near("newton")
    for _ in range(6):
        assert torch.allclose(ours.go().x, newton.go().x, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    "rule", ["lag(trigger=2.0)", "clag(topk(k=60), trigger=2.0)", "ef21(topk(k=60), start=identity)"]
)
def test_newton_3pc_by_the_formula(rule: str) -> None:
    course = begun(f"newton_3pc({rule}, mu=0.05)", LOGISTIC, torch.full((30,), 0.2, dtype=F64))
    each = last = hessians(course, course.x)
    spoke = 0
    for _ in range(8):
        x = course.x
        expected = x.numpy() - np.linalg.solve(at_least(each.mean(0), 0.05), gradient(course, x))
        assert close(course.go().x, expected)
        fresh = hessians(course, course.x)
        moved = np.linalg.norm(fresh - each, axis=(1, 2)) ** 2
        speaks = moved > 2.0 * np.linalg.norm(fresh - last, axis=(1, 2)) ** 2
        if rule.startswith("ef21"):
            speaks[:] = True
        change = fresh - each if rule.startswith("lag") else np.stack([top(h, 60) for h in fresh - each])
        each, last, spoke = each + speaks[:, None, None] * change, fresh, spoke + int(speaks.sum())
    assert spoke > 0 and (rule.startswith("ef21") or spoke < 32)


def test_newton_3pc_among_some_computes_no_hessians_for_the_rest() -> None:
    course = near("newton_3pc(partial(ef21(topk(k=200), start=identity), probability=0.4))", MANY)
    asked = course.oracles[0].calls.hessian_terms
    course.go(25)
    share = (course.oracles[0].calls.hessian_terms - asked) / (25 * 569)
    assert 0.25 < share < 0.55 and course.oracles[0].calls.gradient_terms == 26 * 569
    assert distance(course) < 1e-9


@pytest.mark.parametrize("p", [0.3, 0.8, 1.0])
def test_cbag_is_a_three_point_compressor_with_its_constants(p: float) -> None:
    """E||C_{h, y}(x) - x||^2 by both outcomes of the coin, and the share of the workers who send."""
    mechanism, setting = CBAG(parse("topk(k=3)"), probability=p), setting_of(problem_of(SMALL))  # type: ignore[arg-type]
    a, b = mechanism.constants(setting)
    kept = 1.0 - p * 3 / 7
    assert a == pytest.approx(1.0 - math.sqrt(kept)) and b == pytest.approx(kept / (1.0 - math.sqrt(kept)))
    rng, sent = np.random.default_rng(2), 0
    for trial in range(50):
        h, y, x = (torch.from_numpy(rng.standard_normal((20, 7))) for _ in range(3))
        link = Link(Block.whole(20), seed=trial)
        link.begin(1)
        (packet,) = mechanism.packets(x, h, y, link)
        after = h.clone()
        packet.decoded.scatter(after, packet.rows, 1.0)
        sent += len(packet.rows)
        silent = np.setdiff1d(np.arange(20), packet.rows)
        assert equal(after[silent], h[silent])
        top3 = (x - h).square().sort(1).values
        expected = p * top3[:, :4].sum(1) + (1 - p) * top3.sum(1)
        assert torch.allclose((after - x).square().sum(1)[packet.rows], top3[packet.rows, :4].sum(1))
        bound = (1 - a) * (h - y).square().sum(1) + b * (x - y).square().sum(1)
        assert (expected <= bound + 1e-12).all()
    assert abs(sent / 1000 - p) <= 5 * math.sqrt(p * (1 - p) / 1000)


@pytest.mark.parametrize(
    ("spec", "why"),
    [
        ("newton_3pc(lag_wk)", "compares gradients at two points"),
        ("newton_3pc(ef14(topk(k=5)))", "owes the server"),
        ("newton_3pc(identity)", "must be a mechanism"),
        ("fednl_ls(topk(k=1), decrease=0.7)", "decrease must be"),
        ("fednl_bc(topk(k=1), topk(k=1), probability=0.0)", "probability must be"),
    ],
)
def test_what_cannot_work_is_refused_in_one_line(spec: str, why: str) -> None:
    with pytest.raises(ValueError, match=why) as caught:
        parse(spec)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("spec", ["fednl_projected(topk(k=9))", "fednl_ls(topk(k=9))", "newton_3pc(lag)"])
def test_without_strong_convexity_mu_must_be_given(spec: str) -> None:
    setting = setting_of(problem_of("logistic(data='breast_cancer', nonconvex=0.1, workers=4)"))
    with pytest.raises(NoTheorem):
        parse(spec).settled(setting)  # type: ignore[attr-defined]
    assert parse(f"{spec[:-1]}, mu=0.1)").settled(setting).mu == 0.1  # type: ignore[attr-defined]


# ---- the whole family ------------------------------------------------------------------------------------------------

FAMILY = [
    "newton", "newton_star", "fednl(topk(k=200))", "fednl(symmetric_rank(rank=3))", "fednl_projected(topk(k=200))",
    "fednl_cr(topk(k=200))", "fednl_ls(topk(k=200))", "fednl_pp(topk(k=200), cohort=4)",
    "fednl_bc(topk(k=200), identity)", "newton_3pc(lag(trigger=1.0))", "newton_3pc(ef21(topk(k=200), start=identity))",
    "newton_3pc(clag(topk(k=200)))",
]  # fmt: skip


@pytest.mark.parametrize("spec", FAMILY)
def test_near_the_solution_steps_are_superlinear(spec: str) -> None:
    """||x_k+1 - x*|| / ||x_k - x*|| falls towards 0, and the squares halve throughout."""
    course = near(spec, away=0.05)
    distances = [distance(course)]
    while distances[-1] > 1e-10 and len(distances) < 25:
        distances.append(distance(course.go()))
    assert distances[-1] <= 1e-10
    ratios = [after / before for before, after in itertools.pairwise(distances)]
    assert all(ratio**2 <= 0.5 for ratio in ratios)
    assert ratios[-1] < 0.1 and (len(ratios) < 4 or ratios[-1] < 0.5 * ratios[1])


def test_n0_is_linear_and_no_more() -> None:
    course = near("n0", away=0.3)
    distances = [distance(course)] + [distance(course.go()) for _ in range(9)]
    ratios = [after / before for before, after in itertools.pairwise(distances)]
    assert max(ratios) < 1.0 and ratios[-1] > 0.5 * ratios[3] > 0.0


def test_a_singular_or_indefinite_hessian_is_remarked_in_one_line() -> None:
    course = begun(Newton(), "logistic(data='breast_cancer', nonconvex=1.0, workers=4)", torch.ones(30, dtype=F64))
    least = np.linalg.eigvalsh(hessians(course, course.x).mean(0))[0]
    assert least < 0.0
    assert torch.isnan(course.go().x).all()
    ((text, numbers),) = course.runtime.links[0].remarks.items()
    assert "singular or indefinite" in text and "\n" not in text
    assert numbers == {1: pytest.approx(-least, rel=1e-9)}


# ---- what they stand on ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("problem", [LOGISTIC, SMALL, "counterexample", f"composite({LOGISTIC}, l1(weight=0.1))"])
def test_changes_of_hessians_are_the_same_bits_as_by_hand(problem: str) -> None:
    asked = problem_of(problem)
    oracles = asked.oracles(Block.whole(asked.n))
    x, some = oracles.start() + 0.1, np.array([2, 0])
    since = oracles.hessians(oracles.start() - 0.2).clone()
    expected = oracles.hessians(x).clone() - since
    change, squares = oracles.hessian_changes(x, since)
    assert equal(change, expected) and equal(squares, rows.norm2(expected))
    counted = oracles.calls.hessian_terms
    change, squares = oracles.hessian_changes(x, since[some], some)
    assert equal(change, expected[some]) and equal(squares, rows.norm2(expected[some]))
    assert oracles.calls.hessian_terms - counted == oracles.terms()[some].sum()


def test_products_of_svecs_are_those_of_their_matrices() -> None:
    rng = np.random.default_rng(3)
    for d in (1, 2, 7, 300):
        svecs, x = (torch.from_numpy(rng.standard_normal(size)) for size in ((5, d * (d + 1) // 2), (d,)))
        expected = np.stack([unpacked(svec, d) @ x.numpy() for svec in svecs.numpy()])
        found = packed.products(svecs, x)
        assert np.allclose(found.numpy(), expected, rtol=1e-12, atol=1e-12)
        assert equal(found[3:], packed.products(svecs[3:], x))
        assert np.array_equal(packed.matrix(svecs[0], d).numpy(), unpacked(svecs[0].numpy(), d))


def test_fednl_on_a9a_is_exact_where_a_frozen_hessian_is_not(data_dir: Path) -> None:
    problem = problem_of("logistic(data='a9a', l2=1e-3, workers=142, intercept=True)")
    slopes = {}
    for spec, rounds in ((exact := "fednl(topk(k=992), learning_rate=1.0)", 30), ("n0", 200)):
        oracles = problem.host(Block.whole(142), data_dir)
        method: Any = parse(spec)
        course = Course(method, problem, RUNTIMES["plain"](142, 0), [oracles]).go(rounds - 1)  # one round is the start
        slopes[spec] = rows.square(rows.mean(oracles.gradients(course.x)))
        assert course.runtime.ledger.rounds == rounds
    assert slopes[exact] < 1e-30 and slopes["n0"] > 1e-14
