"""DASHA, its estimators and MARINA: expectations of one round from every state, over all that is random.

Two workers with two quadratic terms each in two dimensions: coins, minibatches and supports can be listed.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from laconic.core.problem import Constant, Constants
from laconic.core.spec import parse
from laconic.core.theory import Setting

TINY = 1e-28  # rounding, where V is zero


class Toy:
    """Two workers with two quadratic terms each in two dimensions: everything random can be listed."""

    n = m = d = 2

    def __init__(self, seed: int) -> None:
        rng = np.random.default_rng(seed)
        base = rng.standard_normal((self.n, self.m, self.d, self.d))
        self.h = base + base.swapaxes(2, 3)
        least, most = np.linalg.eigvalsh(self.h.mean((0, 1)))
        self.h += (rng.choice([0.01, 0.3, 1.0]) * (most - least) - least) * np.eye(self.d)  # terms need not be convex
        self.c = rng.standard_normal((self.n, self.m, self.d))
        self.rng = rng
        workers, mean = self.h.mean(1), self.h.mean((0, 1))
        squares = workers @ workers
        self.solution = np.linalg.solve(mean, self.c.mean((0, 1)))
        self.L, self.mu = float(np.linalg.eigvalsh(mean)[-1]), float(np.linalg.eigvalsh(mean)[0])
        self.plus = math.sqrt(np.linalg.eigvalsh(squares.mean(0))[-1])
        self.pm = math.sqrt(max(0.0, np.linalg.eigvalsh(squares.mean(0) - mean @ mean)[-1]))
        self.l = float(np.abs(np.linalg.eigvalsh(self.h)).max())

    def setting(self, linear: bool) -> Setting:
        values = {"L": self.L, "L_max": self.l, "L_tilde": self.l, "L_plus": self.plus, "L_pm": self.pm}
        values |= {"L_sample": self.l} | ({"mu": self.mu} if linear else {})
        constants = Constants(L_workers=(self.l, self.l), **{name: Constant(v) for name, v in values.items()})
        return Setting(constants, self.n, (self.d,), (self.m, self.m))

    def terms(self, x: np.ndarray) -> np.ndarray:
        """(n, m, d)."""
        return self.h @ x - self.c

    def gap(self, x: np.ndarray) -> float:
        away = x - self.solution
        return 0.5 * float(away @ self.h.mean((0, 1)) @ away)

    def states(self, count: int) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """x, v_i and g_i with errors of all sizes, some of them zero."""
        for _ in range(count):
            sizes = 10.0 ** self.rng.uniform(-2, 1, 3) * (self.rng.random(3) < 0.7)
            x = self.solution + sizes[0] * self.rng.standard_normal(self.d)
            v = self.terms(x).mean(1) + sizes[1] * self.rng.standard_normal((self.n, self.d))
            yield x, v, v + sizes[2] * self.rng.standard_normal((self.n, self.d))


def masks(shared: bool = False) -> Iterator[np.ndarray]:
    """RandK(k=1) in two dimensions of two workers: omega = 1."""
    for one, two in itertools.product(range(2), repeat=2):
        if not shared or one == two:
            yield 2.0 * np.eye(2)[[one, two]]


def batches() -> Iterator[tuple[int, int]]:
    yield from itertools.product(range(2), repeat=2)


def size2(v: np.ndarray) -> float:
    return float((v**2).sum())


def parts(toy: Toy, x: np.ndarray, v: np.ndarray, g: np.ndarray) -> np.ndarray:
    """f - f*, D, G, E, S."""
    e = v - toy.terms(x).mean(1)
    return np.array(
        [toy.gap(x), size2(g.mean(0) - v.mean(0)), size2(g - v) / toy.n, size2(e.mean(0)), size2(e) / toy.n]
    )


Follow = Callable[[Toy, np.ndarray, np.ndarray, np.ndarray], Iterator[tuple[float, np.ndarray]]]


def follow_page(p: float) -> Follow:
    """Every (probability, next v) of PAGE with one term per minibatch."""

    def follow(toy: Toy, x: np.ndarray, new: np.ndarray, v: np.ndarray) -> Iterator[tuple[float, np.ndarray]]:
        slopes, change = toy.terms(new).mean(1), toy.terms(new) - toy.terms(x)
        options = [
            [(p, slopes[i])] + [((1 - p) / toy.m, v[i] + change[i, j]) for j in range(toy.m)] for i in range(toy.n)
        ]
        for one, two in itertools.product(*options):
            yield one[0] * two[0], np.stack([one[1], two[1]])

    return follow


def follow_mvr(b: float) -> Follow:
    def follow(toy: Toy, x: np.ndarray, new: np.ndarray, v: np.ndarray) -> Iterator[tuple[float, np.ndarray]]:
        there, here = toy.terms(new), toy.terms(x)
        for batch in batches():
            rows = [there[i, j] + (1 - b) * (v[i] - here[i, j]) for i, j in enumerate(batch)]
            yield 0.25, np.stack(rows)

    return follow


def dasha_after(
    toy: Toy, follow: Follow, step: float, a: float, state: tuple[np.ndarray, np.ndarray, np.ndarray], shared: bool
) -> np.ndarray:
    """The expected parts after one round."""
    x, v, g = state
    new, total = x - step * g.mean(0), np.zeros(5)
    kinds = list(masks(shared))
    for probability, moved in follow(toy, x, new, v):
        for mask in kinds:
            message = mask * (moved - v - a * (g - v))
            total += probability / len(kinds) * parts(toy, new, moved, g + message)
    return total


def weights(
    left: float, a: float, spread: float, x_part: float, e_part: float, kept: float, s: float, pulled: float
) -> tuple[np.ndarray, float]:
    """c of D, G, E and S in V as the derivation has them, and what a move of the v_i costs; n = 2, omega = 1.

    s <= kept is the factor of ||mean e_i||^2, `left` the part of each contraction that is used.
    """
    ratio = math.sqrt(e_part / x_part) if e_part else 0.0
    w = 0.5 * (1 + ratio)
    c1 = w / (a * (1 + left - a))
    c2 = 2 * a * spread * c1 / left
    moves = 2 * spread * c1 + 2 * c2
    if not e_part:
        return np.array([c1, c2, 0.0, 0.0]), moves
    used = left * (1 - kept)
    c3 = 0.5 * (1 + 1 / ratio) / (used + kept - s)
    c4 = (c3 * (kept - s) / 2 + moves * pulled) / used
    return np.array([c1, c2, c3, c4]), moves


def page_excess(toy: Toy, p: float, linear: bool, shared: bool, times: float) -> float:
    """The largest (E V+ - what is promised) / V over many states, at a multiple of the theorem's step."""
    compressor = "shared_randk(k=1)" if shared else "randk(k=1)"
    method: Any = parse(f"gd(dasha({compressor}), estimator=page(probability={p}))").settled(toy.setting(linear))
    a, spread, q, left = 1 / 3, 1.0 if shared else 0.5, math.sqrt(1 - p), 0.5 if linear else 1.0
    own, of_terms = (12 * spread, 3 * q * q + 2 * q) if linear else (6 * spread, 2 * q * q + q)
    x_part = own * ((1 + p * q) * toy.plus**2 + of_terms * toy.l**2)
    e_part = (2 if linear else 1) * q * q * toy.l**2 / (p * 2)
    largest = 1 / (toy.L + math.sqrt(x_part) + math.sqrt(e_part))
    assert method.step == pytest.approx(min(largest, min(a, p) / (2 * toy.mu)) if linear else largest)
    c, _ = weights(left, a, spread, x_part, e_part, 1 - p, (1 - p) ** 2, p * (1 + 1 / q) if q else 0.0)
    step, worst = times * method.step, -math.inf
    coefficients = np.concatenate([[1.0], step * c])
    for x, v, g in toy.states(25):
        state = (x, v, g) if p < 1 else (x, (slopes := toy.terms(x).mean(1)), g - v + slopes)
        before = float(coefficients @ parts(toy, *state))
        after = float(coefficients @ dasha_after(toy, follow_page(p), step, a, state, shared))
        promised = (1 - step * toy.mu) * before if linear else before - step / 2 * size2(toy.terms(x).mean((0, 1)))
        worst = max(worst, (after - promised) / (before + 1e-20))
    return worst


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("p", [1.0, 0.7, 0.2])
@pytest.mark.parametrize("linear", [False, True])
def test_dasha_and_dasha_page_keep_their_promise_from_every_state(linear: bool, p: float, shared: bool) -> None:
    """E V+ <= (1 - step mu) V under PL, and E V+ <= V - step / 2 ||grad f||^2 without: all coins, batches and supports.

    p = 1 is DASHA, where the errors e_i of the state are set to zero. At four times the step the promise is broken.
    """
    assert max(page_excess(Toy(seed), p, linear, shared, 1.0) for seed in range(6)) <= 1e-9
    assert max(page_excess(Toy(seed), p, linear, shared, 4.0) for seed in range(6)) > 0.01


@pytest.mark.parametrize("b", [0.1, 0.5, 1.0])
def test_dasha_mvr_descends_to_its_floor_from_every_state(b: float) -> None:
    """E V+ <= V - step / 2 ||grad f||^2 + step 2 b^2 (moves + c_S + c_E / n) sigma^2, sigma^2 the variance at x+."""
    for seed in range(6):
        toy = Toy(seed)
        method: Any = parse(f"gd(dasha(randk(k=1)), estimator=mvr(rate={b}))").settled(toy.setting(False))
        step, a = method.step, 1 / 3
        x_part = 3 * ((1 + b) * toy.plus**2 + 6 * (1 - b) ** 2 / (2 - b) * toy.l**2)
        e_part = (1 - b) ** 2 * toy.l**2 / (b * (2 - b))
        assert step == pytest.approx(1 / (toy.L + math.sqrt(x_part) + math.sqrt(e_part)))
        kept = (1 - b) ** 2
        c, moves = weights(1.0, a, 0.5, x_part, e_part or 1e-9, kept, kept, b * (1 + b))
        coefficients = np.concatenate([[1.0], step * c])
        for state in toy.states(25):
            new = state[0] - step * state[2].mean(0)
            variance = size2(toy.terms(new) - toy.terms(new).mean(1)[:, None]) / 4
            floor = step * 2 * b * b * (moves + c[3] + c[2] / 2) * variance
            before = float(coefficients @ parts(toy, *state))
            after = float(coefficients @ dasha_after(toy, follow_mvr(b), step, a, state, False))
            assert after <= before - step / 2 * size2(toy.terms(state[0]).mean((0, 1))) + floor + 1e-12 * (
                before + floor
            )


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("spec", ["marina", "vr_marina", "dasha_sync_mvr"])
def test_mechanisms_with_a_shared_coin_keep_their_promise_from_every_state(spec: str, shared: bool) -> None:
    """E V+ <= (1 - step mu) V over the coin, all minibatches and all supports, p = 1/2."""
    p, a, spread = 0.5, 1 / 3, 1.0 if shared else 0.5
    compressor, synced = ("shared_randk(k=1)" if shared else "randk(k=1)"), spec == "dasha_sync_mvr"
    estimator = "full" if spec == "marina" else "sgd"
    for seed in range(8):
        toy = Toy(seed)
        method: Any = parse(f"gd({spec}({compressor}), estimator={estimator})").settled(toy.setting(True))
        step, kinds = method.step, list(masks(shared))
        x_part, e_part = 12 * spread * (1 - p) * (toy.plus**2 + toy.l**2), (1 - p) / p * toy.l**2
        c, _ = weights(0.5, a, spread, x_part, e_part, 1 - p, 1 - p, 0.0)
        coefficients = np.concatenate([[1.0], step * c]) if synced else np.array([1.0, step / p, 0, 0, 0])
        for x, v, g in toy.states(25):
            v = v if synced else np.broadcast_to(toy.terms(x).mean(1), v.shape)  # g - grad f is all there is
            new = x - step * g.mean(0)
            slopes, change = toy.terms(new).mean(1), toy.terms(new) - toy.terms(x)
            after = p * coefficients @ parts(toy, new, slopes, slopes)
            for batch, mask in itertools.product(batches(), kinds):
                moved = np.stack([change[i, j] for i, j in enumerate(batch)]) if estimator == "sgd" else change.mean(1)
                if synced:
                    outcome = parts(toy, new, v + moved, g + mask * (moved - a * (g - v)))
                else:
                    outcome = parts(toy, new, slopes, g + mask * moved)
                after += (1 - p) / (4 * len(kinds)) * coefficients @ outcome
            before = coefficients @ parts(toy, x, v, g)
            assert after <= (1 - step * toy.mu) * before + 1e-12 * before + TINY


def test_marina_with_a_shared_support_needs_the_smoothness_of_f() -> None:
    """E||(1/n) sum Q(a_i) - mean a||^2 = omega ||mean a||^2, which L+^2 - L_pm^2 does not bound and L^2 does."""
    h = np.stack([np.diag([3.0, 1.0]), np.diag([3.0, -1.0])])  # two workers: the mean is diag(3, 0)
    mean, squares = h.mean(0), h @ h
    plus2, pm2 = np.linalg.eigvalsh(squares.mean(0))[-1], np.linalg.eigvalsh(squares.mean(0) - mean @ mean)[-1]
    assert plus2 - pm2 == pytest.approx(8.0) and np.linalg.eigvalsh(mean @ mean)[-1] == pytest.approx(9.0)
    step_in_x = np.array([1.0, 0.0])
    added = np.mean([size2((mask * (h @ step_in_x)).mean(0) - mean @ step_in_x) for mask in masks(shared=True)])
    assert added == pytest.approx(9.0)  # omega = 1
