"""Local methods: identities, fixed points in closed form, floors, plain references, constants by hand, who computes."""

from __future__ import annotations

import dataclasses
import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from by_hand import RUNTIMES, Course, distance, hand, matrices, method_of, problem_of, start
from laconic.checks.reference import Reference
from laconic.core.keys import Keys
from laconic.core.problem import Batch, Block, Oracles, Problem
from laconic.core.spec import parse
from laconic.core.theory import NoTheorem, Setting
from laconic.methods._inner import minimise, minimise_rows
from laconic.problems.custom import Custom

SMALL = "quadratic(d=7, workers=4, noise=0.3, mu=0.1)"
NONCONVEX = "quadratic(d=7, workers=6, noise=0.8, mu=0.01)"


def ridge(*sizes: int, d: int = 4) -> Problem:
    """Worker i has sizes[i] rows of its own, on another scale than the others'."""
    rng = np.random.default_rng(5)
    rows = [(1.0 + 0.3 * i) * rng.standard_normal((size, d)) for i, size in enumerate(sizes)]
    return Custom.from_arrays(rows, [part @ rng.standard_normal(d) for part in rows], loss="ridge", l2=0.3)


UNLIKE = ridge(6, 6, 6, 6, 6)
UNEQUAL = ridge(3, 9, 5, 4)


def parts(problem: Problem) -> tuple[np.ndarray, np.ndarray]:
    a, b = matrices(problem)
    return a.numpy(), b.numpy()


def gentle(problem: Problem, factor: float = 0.5) -> float:
    return factor / float(problem.constants().L_max)


def solution_of(problem: Problem) -> Tensor:
    solution = problem.solution()
    assert solution is not None
    return solution.x


def same(x: Tensor, expected: Any, rel: float = 1e-11) -> bool:
    return bool(np.allclose(x.numpy(), expected, rtol=rel, atol=1e-12))


# ---- one local step --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("problem", [problem_of(SMALL), UNLIKE], ids=["quadratic", "ridge"])
@pytest.mark.parametrize(
    "spec",
    [
        "local_sgd(local_steps=1, step={})",
        "post_local_sgd(local_steps=9, switch=99, step={})",
        "fedavg(local_steps=1, step={})",
        "scaffold(local_steps=1, step={})",
        "scaffold_i(local_steps=1, step={})",
        "diloco_sgd(local_steps=1, server_step=1.0, momentum=0.0, step={})",
    ],
)
def test_with_one_local_step_it_is_gradient_descent(spec: str, problem: Problem) -> None:
    a, b = parts(problem)
    step = gentle(problem)
    course = start(spec.format(step), problem)
    x = course.x.numpy()
    for _ in range(25):
        x = x - step * (a @ x - b).mean(0)
        assert same(course.go().x, x)


def test_the_same_bits_as_gradient_descent_through_a_mechanism() -> None:
    for mechanism in ("ef21(topk(k=2))", "diana(natural, rate=0.4)", "marina(permk)", "ef14(topk(k=3))"):
        plain, local = (
            start(f"{head}({mechanism}, step=0.2{tail})", SMALL).go(20)
            for head, tail in (("gd", ""), ("local_sgd", ", local_steps=1"))
        )
        assert torch.equal(plain.x, local.x) and (plain.runtime.ledger.uplink == local.runtime.ledger.uplink).all()


@pytest.mark.parametrize("mechanism", ["ef21", "ef14", "ef14_inside"])
def test_a_mechanism_carries_the_changes(mechanism: str) -> None:
    """Top-k by hand of the sums of gradients on the way; `ef14_inside` has the step inside its memory."""
    a, b = parts(UNLIKE)
    n, d = b.shape
    steps, k, step = 4, 2, gentle(UNLIKE, 0.2)
    course = start(f"local_sgd({mechanism}(topk(k={k})), local_steps={steps}, step={step}, server_step=0.8)", UNLIKE)

    def sums(x: np.ndarray) -> np.ndarray:
        y, total = np.tile(x, (n, 1)), np.zeros((n, d))
        for _ in range(steps):
            g = np.einsum("ijk,ik->ij", a, y) - b
            y, total = y - step * g, total + g
        return total

    def top(v: np.ndarray) -> np.ndarray:
        out = np.zeros_like(v)
        for row, from_row in zip(out, v, strict=True):
            best = np.argsort(-np.abs(from_row), kind="stable")[:k]
            row[best] = from_row[best]
        return out

    x = course.x.numpy()
    shift, error = np.zeros((n, d)), np.zeros((n, d))
    for _ in range(30):
        if mechanism == "ef21":
            shift = shift + top(sums(x) - shift)
            x = x - 0.8 * step * shift.mean(0)
        else:
            wanted = error + step * sums(x)
            sent = top(wanted)
            error = wanted - sent
            x = x - 0.8 * sent.mean(0)
        assert same(course.go().x, x)


# ---- where they end --------------------------------------------------------------------------------------------------


def limit(problem: Problem, steps: int, step: float, weights: Any = None) -> np.ndarray:
    """x = (sum w_i (I - R_i))^-1 sum w_i (I - R_i) H_i^-1 b_i, R_i = (I - step H_i)^steps."""
    a, b = parts(problem)
    n, d = b.shape
    weights = np.ones(n) if weights is None else np.asarray(weights)
    left, right = np.zeros((d, d)), np.zeros(d)
    for weight, h, linear in zip(weights, a, b, strict=True):
        share = weight * (np.eye(d) - np.linalg.matrix_power(np.eye(d) - step * h, steps))
        left, right = left + share, right + share @ np.linalg.solve(h, linear)
    return np.linalg.solve(left, right)


@pytest.mark.parametrize(
    "spec",
    [
        "local_sgd(local_steps=5, step={})",
        "local_sgd(local_steps=5, step={}, server_step=0.6)",
        "post_local_sgd(local_steps=5, switch=20, step={})",
        "fedavg(local_steps=5, step={})",
        "diloco_sgd(local_steps=5, step={}, server_step=0.7, momentum=0.5)",
        "diloco_sgd(local_steps=5, step={}, server_step=0.8, momentum=0.2)",
    ],
)
def test_local_steps_end_in_the_closed_form_and_not_at_the_solution(spec: str) -> None:
    """The distance to x* is about proportional to the step."""
    best, away = solution_of(UNLIKE), []
    for factor in (0.2, 0.1):
        step = gentle(UNLIKE, factor)
        expected = torch.from_numpy(limit(UNLIKE, 5, step))
        course = start(spec.format(step), UNLIKE).go(300)
        assert float((course.x - expected).norm()) < 1e-7
        away.append(float((expected - best).norm()))
    assert away[1] > 1e-3 and 1.7 < away[0] / away[1] < 2.3


def test_the_outer_momentum_gets_there_sooner() -> None:
    """To the same limit."""
    step, rounds = gentle(UNLIKE, 0.02), []
    goal = torch.from_numpy(limit(UNLIKE, 5, step))
    for spec in (f"local_sgd(local_steps=5, step={step})", f"diloco_sgd(local_steps=5, step={step})"):
        course = start(spec, UNLIKE)
        while float((course.x - goal).norm()) > 1e-6:
            course.go(5)
        rounds.append(course.step)
    assert rounds[1] < 0.5 * rounds[0]


def test_workers_are_weighted_by_their_data() -> None:
    """FedAvg's limit is that of the pooled data; with one local step it minimises sum N_i f_i."""
    sizes, step = [3, 9, 5, 4], gentle(UNEQUAL, 1.0)
    for steps in (1, 5):
        expected = torch.from_numpy(limit(UNEQUAL, steps, step, sizes))
        assert float((start(f"fedavg(local_steps={steps}, step={step})", UNEQUAL).go(300).x - expected).norm()) < 1e-7
    a, b = parts(UNEQUAL)
    pooled = np.linalg.solve(np.einsum("i,ijk->jk", sizes, a), np.einsum("i,ij->j", sizes, b))
    assert np.allclose(limit(UNEQUAL, 1, step, sizes), pooled)
    assert np.linalg.norm(pooled - solution_of(UNEQUAL).numpy()) > 1e-2


@pytest.mark.parametrize(
    "spec",
    [
        "local_sgd(local_steps=7, step=0.05)",
        "fedavg(local_steps=7, step=0.05, cohort=1)",
        "fedprox(weight=1.0, cohort=2, accuracy=1e-3)",
        "scaffold(local_steps=7, step=0.05)",
        "diloco_sgd(local_steps=7, step=0.05)",
    ],
)
def test_workers_that_are_alike_agree_on_the_solution(spec: str) -> None:
    assert distance(start(spec, Reference(families=1)).go(150)) < 1e-6


def test_until_the_switch_post_local_sgd_is_minibatch_sgd() -> None:
    plain = start("gd(step=0.02, estimator=sgd(batch=2))", UNLIKE)
    post = start("post_local_sgd(step=0.02, estimator=sgd(batch=2), local_steps=4, switch=9)", UNLIKE)
    asked = post.oracles[0].calls.gradient_terms
    for k in range(1, 9):  # the gradients of iteration 8 are used in iteration 9
        assert torch.equal(plain.go().x, post.go().x)
        assert post.oracles[0].calls.gradient_terms - asked == 2 * 5 * k
    assert torch.equal(plain.go().x, post.go().x) and not torch.equal(plain.go().x, post.go().x)
    assert post.oracles[0].calls.gradient_terms - asked == 2 * 5 * (8 + 2 * 4)


# ---- floors ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("spec", ["local_sgd(local_steps={}, step={})", "fedavg(local_steps={}, step={})"])
def test_the_limit_lies_within_the_plateau(spec: str) -> None:
    for steps, factor in itertools.product((2, 5, 12), (0.9, 0.3)):
        largest = 1 / (8 * float(UNLIKE.constants().L_max) * (steps - 1))
        course = start(spec.format(steps, factor * largest), UNLIKE)
        expected = limit(UNLIKE, steps, factor * largest)
        away = float(np.sum((expected - solution_of(UNLIKE).numpy()) ** 2))
        assert 0 < away <= course.guarantee().plateau


def test_the_limit_under_weights_lies_within_the_plateau() -> None:
    for steps in (1, 3, 12):
        course = start(f"fedavg(local_steps={steps})", UNEQUAL)
        expected = limit(UNEQUAL, steps, cast_any(course.method).step, [3, 9, 5, 4])
        away = float(np.sum((expected - solution_of(UNEQUAL).numpy()) ** 2))
        assert 0 < away <= course.guarantee().plateau


@pytest.mark.parametrize("spec", ["fedavg(step=0.05, local_steps=4{})", "fedprox(weight=3.0, accuracy=1e-2{})"])
def test_a_cohort_leaves_a_noise_floor_within_the_plateau(spec: str) -> None:
    """E||x - x*||^2 over the second half of a run; with all workers x settles."""
    best, means = solution_of(UNLIKE), []
    for cohort in ("", ", cohort=2"):
        course = start(spec.format(cohort), UNLIKE)
        course.go(60)
        squares = [float((course.go().x - best).square().sum()) for _ in range(120)]
        means.append(float(np.mean(squares)))
        assert means[-1] <= course.guarantee().plateau
        assert (np.std(squares) > 0.05 * means[-1]) == bool(cohort)
    assert means[1] > 1.5 * means[0]


@pytest.mark.parametrize("spec", ["local_sgd", "post_local_sgd(switch=5)", "fedavg(local_steps=3)", "fedprox"])
@pytest.mark.parametrize("problem", [UNLIKE, problem_of("logistic(data='breast_cancer', l2=0.1, workers=5)")])
def test_the_distance_contracts_down_to_the_plateau(spec: str, problem: Problem) -> None:
    if problem is not UNLIKE and spec.startswith("fedavg"):
        return  # its workers have unequal numbers of terms
    course = start(spec, problem)
    promise = course.guarantee()
    assert promise.rate is not None and promise.plateau > 0 and not promise.sure
    after = course.lyapunov(promise)
    for _ in range(40):
        before, after = after, course.go().lyapunov(promise)
        assert after <= (promise.rate * before + (1 - promise.rate) * promise.plateau) * (1 + 1e-9)


# ---- FedProx ---------------------------------------------------------------------------------------------------------


def prox_limit(problem: Problem, weight: float) -> np.ndarray:
    """(mean R_i H_i)^-1 mean R_i b_i, R_i = (H_i + weight I)^-1."""
    a, b = parts(problem)
    r = np.linalg.inv(a + weight * np.eye(b.shape[1]))
    return np.linalg.solve((r @ a).mean(0), np.einsum("ijk,ik->ij", r, b).mean(0))


def test_fedprox_ends_in_its_closed_form() -> None:
    """Nearer to x* the larger the weight, and slower."""
    best, away, rounds = solution_of(UNLIKE).numpy(), [], []
    for weight in (1.0, 5.0, 25.0):
        expected = torch.from_numpy(prox_limit(UNLIKE, weight))
        course = start(f"fedprox(weight={weight}, accuracy=1e-6)", UNLIKE)
        while float((course.x - expected).norm()) > 1e-6:
            course.go()
        rounds.append(course.step)
        away.append(float(np.linalg.norm(expected.numpy() - best)))
    assert away[0] > 1.5 * away[1] > 3 * away[2] > 1e-3 and rounds[0] < rounds[1] < rounds[2]


def test_fedprox_with_a_large_weight_is_gradient_descent() -> None:
    a, b = parts(UNLIKE)
    smooth = float(UNLIKE.constants().L_max)
    for weight in (1e2, 1e4):
        course = start(f"fedprox(weight={weight}, accuracy=1e-9)", UNLIKE)
        x = course.x.numpy()
        descent = -(a @ x - b).mean(0) / weight
        gradients = np.linalg.norm(a @ x - b, axis=1).mean() / weight
        assert np.linalg.norm(course.go().x.numpy() - x - descent) <= smooth / weight * gradients


def test_fedprox_of_alike_workers_is_the_proximal_point_method() -> None:
    problem = Reference(families=1)
    a, b = parts(problem)
    course = start("fedprox(weight=3.0, accuracy=1e-12)", problem)
    x = course.x.numpy()
    for _ in range(8):
        x = np.linalg.solve(a[0] + 3 * np.eye(len(x)), b[0] + 3 * x)
        assert same(course.go().x, x, 1e-9)


def test_means_are_those_over_the_cohort() -> None:
    """FedProx and FedAvg by hand, with the cohorts of the shared seed; FedAvg's weights are numbers of terms."""
    a, b = parts(UNEQUAL)
    sizes, eye = np.array([3, 9, 5, 4]), np.eye(4)
    prox = start("fedprox(weight=3.0, cohort=2, accuracy=1e-10)", UNEQUAL)
    walk = start("fedavg(step=0.02, local_steps=3, cohort=2, server_step=0.9)", UNEQUAL)
    x = z = prox.x.numpy()
    for k in range(1, 13):
        chosen = Keys(0, k, "/sample0", np.arange(4), 4).shared.subsets(4, 2)[0]
        x = np.mean([np.linalg.solve(a[i] + 3 * eye, b[i] + 3 * x) for i in chosen], axis=0)
        ends = np.tile(z, (2, 1))
        for _ in range(3):
            ends = ends - 0.02 * (np.einsum("ijk,ik->ij", a[chosen], ends) - b[chosen])
        z = z + 0.9 * np.average(ends - z, axis=0, weights=sizes[chosen])
        assert same(prox.go().x, x, 1e-7) and same(walk.go().x, z, 1e-9)


@pytest.mark.parametrize("accuracy", [0.5, 1e-2, 1e-6])
def test_local_solves_meet_the_papers_criterion(accuracy: float) -> None:
    """||grad h_i(y)|| <= accuracy ||grad f_i(x)||, and finer ones cost more gradients."""
    course = start(f"fedprox(weight=2.0, accuracy={accuracy})", UNLIKE).go(2)
    link, (oracles,) = course.runtime.links[0], course.oracles
    x, method = course.x, cast_any(course.method)
    y = method._solved(x, link.sample(5), oracles, link)
    left = (oracles.gradients(y) + 2.0 * (y - x)).norm(dim=1)
    assert (left <= accuracy * oracles.gradients(x).norm(dim=1)).all() and float(left.max()) > 0
    assert not link.remarks


def cast_any(value: Any) -> Any:
    return value


def test_fedprox_refuses_local_problems_that_are_not_convex() -> None:
    with pytest.raises(NoTheorem, match="not convex") as caught:
        start("fedprox(weight=1e-3)", NONCONVEX)
    assert "give a weight above" in str(caught.value) and "\n" not in str(caught.value)
    course = start("fedprox(weight=9.0)", NONCONVEX)
    assert course.guarantee().rate is None and course.guarantee().plateau == math.inf
    first = distance(course)
    assert distance(course.go(100)) < first


def test_each_row_of_the_inner_solver_stops_by_itself() -> None:
    """Rows together give the bits and counts of rows alone, and those of the solver for one."""
    spectrum = torch.logspace(0, 3, 20, dtype=torch.float64)
    targets = torch.stack([torch.ones(20, dtype=torch.float64), 1e-3 * spectrum, torch.zeros(20, dtype=torch.float64)])
    counts = np.zeros(3, dtype=int)

    def gradient(w: Tensor, rows: np.ndarray) -> Tensor:
        counts[rows] += 1
        return spectrum * w - targets[rows]

    begin = torch.zeros_like(targets)
    together = minimise_rows(gradient, begin, 1e3, 1.0, 1e-6)
    many, counts[:] = counts.copy(), 0
    for row in range(3):
        alone = minimise_rows(lambda w, _, row=row: gradient(w, np.array([row])), begin[row : row + 1], 1e3, 1.0, 1e-6)
        one = minimise(lambda w, row=row: spectrum * w - targets[row], begin[row : row + 1], 1e3, 1.0, 1e-6)
        assert torch.equal(alone[0], together[row]) and torch.equal(one[0], together[row])
    assert (many == counts).all() and len(set(many.tolist())) == 3
    told: list[tuple[str, float]] = []
    minimise_rows(gradient, begin, 1e3, 1.0, 1e-6, most=5, remark=lambda text, number: told.append((text, number)))
    assert len(told) == 1 and told[0][1] > 10
    assert minimise_rows(gradient, begin[:0], 1e3, 1.0, 1e-6).shape == (0, 20)


# ---- SCAFFOLD --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cohort", [5, 2])
@pytest.mark.parametrize("name", ["scaffold", "scaffold_i"])
def test_scaffold_is_the_papers_and_keeps_the_mean_of_its_controls(name: str, cohort: int) -> None:
    a, b = parts(UNLIKE)
    n, d = b.shape
    steps, local, server = 3, gentle(UNLIKE, 0.3), 1.2
    course = start(f"{name}(step={local}, local_steps={steps}, server_step={server}, cohort={cohort})", UNLIKE)
    x, c, own = course.x.numpy(), np.zeros(d), np.zeros((n, d))
    for k in range(1, 31):
        keys = Keys(0, k, "/sample0", np.arange(n), n)
        chosen = keys.shared.subsets(n, cohort)[0]
        moves, changes = [], []
        for i in chosen:
            y = x.copy()
            for _ in range(steps):
                y = y - local * (a[i] @ y - b[i] - own[i] + c)
            new = a[i] @ x - b[i] if name == "scaffold_i" else own[i] - c + (x - y) / (steps * local)
            moves.append(y - x)
            changes.append(new - own[i])
            own[i] = new
        x, c = x + server * np.mean(moves, axis=0), c + cohort / n * np.mean(changes, axis=0)
        assert same(course.go().x, x, 1e-9) and same(course.state.control, own, 1e-9)
        assert np.allclose(c, own.mean(0)) and same(course.state.mean, c, 1e-9)


@pytest.mark.parametrize("extra", ["", ", cohort=2"])
@pytest.mark.parametrize("name", ["scaffold", "scaffold_i"])
def test_scaffold_reaches_the_solution_of_unlike_workers(name: str, extra: str) -> None:
    """With c_i = grad f_i(x*), whoever takes part; and it rests there."""
    course = start(f"{name}(step={gentle(UNLIKE, 0.2)}, local_steps=5{extra})", UNLIKE).go(150)
    assert distance(course) < 1e-9
    at_solution = course.oracles[0].gradients(solution_of(UNLIKE))
    assert float((course.state.control - at_solution).abs().max()) < 1e-8 < float(at_solution.norm())
    assert distance(course.go(20)) < 1e-9


def test_scaffold_is_not_faster_than_gradient_descent_by_more_steps() -> None:
    """With the same step times local steps, and like with cohorts."""
    rounds = []
    for steps, extra in ((1, ""), (5, ""), (20, ""), (5, ", cohort=3")):
        course = start(f"scaffold(step={gentle(UNLIKE, 0.5) / steps}, local_steps={steps}{extra})", UNLIKE)
        while distance(course) > 1e-6:
            course.go(2)
        rounds.append(course.step)
    assert max(rounds) < 1.25 * min(rounds)


def test_what_scaffold_says_and_computes() -> None:
    """Two vectors up and down per member; local_steps gradients, and one more with option I."""
    for name, more in (("scaffold", 0), ("scaffold_i", 1)):
        course = start(f"{name}(step=0.01, local_steps=4, cohort=2)", UNLIKE).go(10)
        ledger = course.runtime.ledger
        assert ledger.rounds == 10 and ledger.messages_up == ledger.messages_down == 10 * 2 * 2
        assert int(ledger.uplink.sum()) == int(ledger.downlink.sum()) == 10 * 2 * 2 * 4 * 8
        assert course.oracles[0].calls.gradient_terms == 10 * 2 * (4 + more) * 6


def test_fedavg_sends_a_vector_and_a_number() -> None:
    ledger = start("fedavg(step=0.01, local_steps=4, cohort=2)", UNLIKE).go(10).runtime.ledger
    assert ledger.rounds == 10 and int(ledger.uplink.sum()) == 10 * 2 * (4 + 1) * 8
    assert int(ledger.downlink.sum()) == 10 * 2 * 4 * 8


class Strict(Oracles):
    """The oracles of a problem, of which only some workers may be asked."""

    def __init__(self, inner: Oracles) -> None:
        super().__init__()
        self.inner, self.block, self.shape, self.convex = inner, inner.block, inner.shape, inner.convex
        self.allowed: set[int] = set()
        self.asked: set[int] = set()

    def start(self) -> Tensor:
        return self.inner.start()

    def terms(self) -> np.ndarray:
        return self.inner.terms()

    def _values(self, x: Tensor, rows: np.ndarray) -> Tensor:
        return self.inner._values(x, rows)

    def _gradients(self, x: Tensor, rows: np.ndarray, batch: Batch | None) -> Tensor:
        self.asked |= {self.block.low + int(row) for row in rows}
        assert self.asked <= self.allowed, f"workers {self.asked - self.allowed} compute for others"
        return self.inner._gradients(x, rows, batch)


@pytest.mark.parametrize("runtime", ["plain", "three parts"])
@pytest.mark.parametrize("spec", ["fedavg(step=0.1, cohort=2)", "fedprox(cohort=2)", "scaffold_i(step=0.1, cohort=2)"])
def test_who_is_not_in_the_cohort_computes_nothing(spec: str, runtime: str) -> None:
    problem = problem_of(SMALL)
    local = RUNTIMES[runtime](4, 0)
    strict = [Strict(problem.oracles(link.block)) for link in local.links]
    course = Course(method_of(spec, problem), problem, local, list(strict))
    seen: set[int] = set()
    for _ in range(8):
        link = local.links[0]
        link.begin(course.step + 1)
        members = link.sample(2).members
        assert members is not None
        for oracles in strict:
            oracles.allowed, oracles.asked = set(members.tolist()), set()
        course.go()
        assert set().union(*(oracles.asked for oracles in strict)) == set(members.tolist())
        seen |= set(members.tolist())
    assert seen == {0, 1, 2, 3}


# ---- DiLoCo ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("decay", [0.0, 0.2])
def test_diloco_is_torchs_adamw_inside_torchs_nesterov(decay: float) -> None:
    """One AdamW per worker, kept from round to round; the outer optimizer gets the mean change as its gradient."""
    oracles = UNLIKE.oracles(Block.whole(5))
    steps, lr = 3, 0.02
    course = start(f"diloco(step={lr}, local_steps={steps}, decay={decay}, server_step=0.7, momentum=0.9)", UNLIKE)
    model = torch.nn.Parameter(course.x)
    outer = torch.optim.SGD([model], lr=0.7, momentum=0.9, nesterov=True)
    workers = [torch.nn.Parameter(course.x) for _ in range(5)]
    inner = [torch.optim.AdamW([worker], lr=lr, weight_decay=decay) for worker in workers]
    for _ in range(20):
        for i, (worker, optimizer) in enumerate(zip(workers, inner, strict=True)):
            worker.data.copy_(model.data)
            for _ in range(steps):
                worker.grad = oracles.gradients(worker.data, np.array([i]))[0]
                optimizer.step()
        model.grad = torch.stack([model.data - worker.data for worker in workers]).mean(0)
        outer.step()
        assert same(course.go().x, model.data.numpy(), 1e-9)


def test_diloco_with_plain_steps_is_local_sgd() -> None:
    step = gentle(UNLIKE, 0.4)
    outer = start(f"diloco_sgd(step={step}, local_steps=6, server_step=1.0, momentum=0.0)", UNLIKE)
    others = [start(f"{name}(step={step}, local_steps=6)", UNLIKE) for name in ("local_sgd", "fedavg")]
    for _ in range(20):
        x = outer.go().x
        assert all(same(other.go().x, x.numpy(), 1e-12) for other in others)


def test_a_mechanism_that_does_not_fit_is_refused_in_one_line() -> None:
    for spec, why in [
        ("diloco(ef14_inside(topk(k=2)), step=0.1)", "finished steps"),
        ("diloco_sgd(lag_wk, step=0.1)", "needs a probe"),
        ("local_sgd(vr_marina(permk), step=0.1, estimator=sgd)", "cannot repeat local steps"),
        ("local_sgd(marina(permk), step=0.1, estimator=sgd)", "needs full gradients"),
    ]:
        with pytest.raises(ValueError, match=why) as caught:
            start(spec, UNLIKE)
        assert "\n" not in str(caught.value)


# ---- constants by hand -----------------------------------------------------------------------------------------------

EQUAL = dataclasses.replace(hand(), terms=(5, 5))
Q5, Q1 = (1 - 0.5 / 224) ** 5, 1 - 0.5 / 28
B5 = 7 * 3 * 10 / 224**2  # step^2 L_max sigma* 5 * 4 / 2


@pytest.mark.parametrize(
    ("spec", "setting", "step", "rate", "plateau"),
    [
        ("local_sgd(local_steps=1)", hand(), 1 / 28, Q1**2, 0.0),
        ("local_sgd", hand(), 1 / 224, Q5, (B5 / (1 - Q5)) ** 2),
        ("local_sgd(server_step=0.5)", hand(), 1 / 224, 1 - 0.5 * (1 - Q5), (B5 / (1 - Q5)) ** 2),
        ("local_sgd", hand(mu=None), 1 / 224, None, math.inf),
        ("local_sgd(estimator=sgd)", hand(L_sample=10.0), 1 / 320, None, math.inf),
        ("post_local_sgd", hand(), 1 / 224, 1 - 0.5 / 224, (B5 / (1 - Q5)) ** 2 * (1 - Q5) * 448),
        ("fedavg", EQUAL, 1 / 224, Q5, (B5 / (1 - Q5)) ** 2),
        # c = 3 / 3 = 1 with one worker of four, and 2 / 6 with two
        ("fedavg(cohort=1)", EQUAL, 1 / 224, Q5, (15 / 224 / (1 - Q5)) ** 2),
        ("fedavg(cohort=2)", EQUAL, 1 / 224, Q5, (2 / 3 * B5**2 + (15 / 224) ** 2 / 3) / (1 - Q5) ** 2),
        # terms of 5 to 6: weights up to 1.2 times as large, and no help from the size of a cohort
        ("fedavg", hand(), 1 / 224, Q5, (1.2 * B5 + 0.2 * 15 / 224) ** 2 / (1 - Q5) ** 2),
        ("fedavg(cohort=2)", hand(), 1 / 224, Q5, 1.2 * (15 / 224 / (1 - Q5)) ** 2),
        ("scaffold", hand(), 1 / (81 * 35), 1 - 0.25 / 81 / 7, 0.0),
        ("scaffold(cohort=2, server_step=2.0)", hand(mu=400.0), 1 / (15 * 400 * 20), 1 - 1 / 60, 0.0),
        ("scaffold_i", hand(mu=None), 1 / (81 * 35), None, 0.0),
    ],
)
def test_steps_rates_and_plateaus_by_hand(
    spec: str, setting: Setting, step: float, rate: float | None, plateau: float
) -> None:
    method: Any = parse(spec)
    method = method.settled(setting)
    promise = method.guarantee(setting)
    assert method.step == promise.step == pytest.approx(step, rel=1e-12)
    assert promise.rate == (None if rate is None else pytest.approx(rate, rel=1e-12))
    assert promise.plateau == pytest.approx(plateau, rel=1e-9) and not promise.sure
    assert dataclasses.replace(method, step=2 * step).guarantee(setting).rate is None


@pytest.mark.parametrize(("cohort", "share"), [(4, 0.0), (2, 1 / 3), (1, 1.0)])
def test_fedprox_by_hand(cohort: int, share: float) -> None:
    """weight 14, mu 0.5, L_max 7, sigma* 3: a = 3 / 14.5, b = a / 2, and an accuracy of 1e-3 adds s = 14e-3 / 14.5."""
    method: Any = parse(f"fedprox(weight=14.0, cohort={cohort})")
    promise = method.settled(hand()).guarantee(hand())
    s, a = 14e-3 / 14.5, 3 / 14.5
    keep = 14 / 14.5 + s / 3
    floor = (1 - share) * ((0.5 + s) * a) ** 2 + share * ((1 + s) * a) ** 2
    assert promise.rate == pytest.approx(keep, rel=1e-12) and promise.step == pytest.approx(1 / 14)
    assert promise.plateau == pytest.approx(floor / (1 - keep) ** 2, rel=1e-9)
    assert cast_any(parse("fedprox")).settled(hand()).weight == 7.0
    assert cast_any(parse("fedprox(accuracy=0.5)")).settled(hand()).guarantee(hand()).rate is None


@pytest.mark.parametrize(
    ("spec", "setting", "why"),
    [
        ("local_sgd(ef21(topk(k=2)))", hand(), "compressed"),
        ("local_sgd", hand(convex=False), "convex"),
        ("local_sgd(server_step=2.0)", hand(), "server_step"),
        ("local_sgd(estimator=page)", hand(), "unbiased"),
        ("post_local_sgd(ef21(topk(k=2)))", hand(), "compressed"),
        ("fedavg(server_step=3.0)", hand(), "server_step"),
        ("scaffold", hand(convex=False), "convex"),
        ("scaffold(estimator=sgd)", hand(), "full gradients"),
        ("scaffold_i(server_step=0.5)", hand(), "server_step"),
        ("diloco", hand(), "no theorem"),
        ("diloco_sgd", hand(), "no theorem"),
    ],
)
def test_a_combination_that_no_theorem_covers_needs_a_step_and_says_why(spec: str, setting: Setting, why: str) -> None:
    with pytest.raises(NoTheorem, match=why) as caught:
        cast_any(parse(spec)).settled(setting)
    assert "explicit step" in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["fedavg(step=0.1, cohort=5)", "fedprox(cohort=5)", "scaffold(step=0.1, cohort=5)"])
def test_a_cohort_larger_than_all_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="cohort=5.*has 4 workers"):
        cast_any(parse(name)).settled(hand())
