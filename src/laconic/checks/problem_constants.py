"""Checks of a problem's constants and solution: never broken by differences of gradients, and in their known order."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from laconic.checks.findings import Findings
from laconic.checks.places import Excess, Place
from laconic.checks.suite import Amounts
from laconic.core.problem import Constant, Constants, Kind, Oracles, Solution

ORDER = (  # what is never larger stands first
    ("L", "L_plus"),
    ("L_plus", "L_tilde"),
    ("L_tilde", "L_max"),
    ("L_pm", "L_plus"),
    ("L_max", "L_sample"),
    ("mu", "L"),
    ("mu_workers", "mu"),
    ("delta_mean", "delta"),
    ("delta_server", "delta"),
)
SLACK = 1.0 + 1e-6
TURNS = 8  # of the power method


def _sure(constant: Constant | None) -> bool:
    return constant is not None and constant.kind is not Kind.ESTIMATE


def _order(found: Findings, place: Place, effort: Amounts) -> None:
    c = place.problem.constants()
    known = c.named()
    found.notes.append(", ".join(f"{name} {float(known[name]):.4g}" for name in ("L", "L_max", "mu") if name in known))
    for name, constant in known.items():
        found.expect(math.isfinite(float(constant)), f"{name} is {float(constant)}")
        found.expect(float(constant) >= 0.0 or name == "mu_workers", f"{name} is negative: {float(constant):.6g}")
    for low, high in ORDER:
        a, b = known.get(low), known.get(high)
        if a is not None and b is not None and a.kind is Kind.EXACT and b.kind is not Kind.ESTIMATE:
            size = SLACK * float(b) + 1e-9 * float(c.L)
            found.expect(float(a) <= size, f"{low} = {float(a):.9g} is larger than {high} = {float(b):.9g}")
    if c.delta_first is not None and c.delta is not None and c.delta_first.kind is Kind.EXACT is c.delta.kind:
        twice = 2.0 * SLACK * float(c.delta) + 1e-9 * float(c.L)
        found.expect(float(c.delta_first) <= twice, f"delta_first = {float(c.delta_first):.9g} is above 2 delta")
    n = place.problem.n
    found.expect(len(c.L_workers) == n, f"{len(c.L_workers)} smoothness constants of {n} workers")
    root = math.sqrt(math.fsum(one**2 for one in c.L_workers) / max(1, len(c.L_workers)))
    found.expect(math.isclose(max(c.L_workers), float(c.L_max), rel_tol=1e-9), "L_max is not the largest L_i")
    found.expect(math.isclose(root, float(c.L_tilde), rel_tol=1e-9), "L_tilde is not the root mean square of the L_i")


def _differences(found: Findings, place: Place, effort: Amounts) -> None:
    """Ratios of differences of gradients, along random directions and along those that bend f the most."""
    oracles, c = place.oracles, place.problem.constants()
    if not any(_sure(constant) for constant in c.named().values()):
        return  # nothing but estimates, which promise nothing
    for at, x in enumerate(place.points):
        steepest = _power(x, lambda u, x=x: _turned(oracles, x, u).mean(0))
        worst = int(_turned(oracles, x, steepest).flatten(1).norm(dim=1).argmax())
        row = np.array([worst])
        of_worst = _power(x, lambda u, x=x, row=row: _turned(oracles, x, u, row)[0])
        for reach in (1e-3, 1.0):
            found.place = f"point {at}, a difference of {reach:g}"
            for u in [*place.others(2, f"pairs{at}"), steepest, of_worst]:
                _pair(found, oracles, c, x, x + reach * (1.0 + float(x.abs().max())) * u)


def _pair(found: Findings, oracles: Oracles, c: Constants, x: Tensor, y: Tensor) -> None:
    change = (oracles.gradients(y) - oracles.gradients(x)).double().flatten(1)
    apart = (y - x).double().reshape(-1)
    length, mean = float(apart.norm()), change.mean(0)
    each, rounding = change.norm(dim=1), 1e-9 * (1.0 + float(oracles.gradients(x).abs().max()) / length)
    square = float(each.square().mean())
    away = (change - mean).norm(dim=1)
    measured = {
        "L": float(mean.norm()),
        "L_max": float(each.max()),
        "L_plus": math.sqrt(square),
        "L_tilde": math.sqrt(square),
        "L_pm": math.sqrt(max(0.0, square - float(mean.square().sum()))),
        "delta": float(away.max()),
        "delta_server": float(away[0]),
        "delta_mean": float(away.square().mean().sqrt()),
        "delta_first": float((change - change[0]).norm(dim=1).max()),
    }
    known = c.named()
    for name, value in measured.items():
        if name in known and _sure(known[name]):
            most = float(known[name]) * SLACK + rounding + 1e-7 * float(c.L)
            found.expect(
                value / length <= most, f"{name} is {float(known[name]):.9g}; gradients show {value / length:.9g}"
            )
    if _sure(c.L_max):
        allowed = torch.tensor(c.L_workers, dtype=torch.float64) * SLACK + rounding
        broken = (each / length > allowed).nonzero()[:, 0].tolist()
        found.expect(not broken, f"L_workers[{broken[0] if broken else ''}] is less than gradients show")
    slopes = change @ apart / length**2
    for name, least in (("mu", float(mean @ apart) / length**2), ("mu_workers", float(slopes.min()))):
        if name in known and _sure(known[name]):
            low = float(known[name]) - 1e-6 * abs(float(known[name])) - rounding
            found.expect(least >= low, f"{name} is {float(known[name]):.9g}; gradients show {least:.9g}")


def _turned(oracles: Oracles, x: Tensor, u: Tensor, rows: np.ndarray | None = None) -> Tensor:
    """The Hessians of the rows at x times u, (rows, *shape), by differences."""
    h = 1e-4 * (1.0 + float(x.abs().max()))
    return (oracles.gradients(x + h * u, rows) - oracles.gradients(x - h * u, rows)) / (2 * h)


def _power(x: Tensor, turn: Callable[[Tensor], Tensor]) -> Tensor:
    """A direction in which `turn`, a Hessian times a direction, is about the longest."""
    u = torch.ones_like(x) + 0.1 * torch.arange(x.numel(), dtype=x.dtype).view(x.shape).cos()
    u = u / u.norm()
    for _ in range(TURNS):
        v = turn(u)
        norm = float(v.norm())
        if not (norm > 0.0 and math.isfinite(norm)):
            break
        u = v / norm
    return u


def _solution(found: Findings, place: Place, effort: Amounts) -> None:
    solution, oracles = place.problem.solution(), place.oracles
    if solution is None:
        return
    if oracles.variational:
        return _saddle_point(found, place, solution)
    x, c = solution.x, place.problem.constants()
    gradient = oracles.gradients(x).mean(0).double()
    smooth = float(c.L)
    values = oracles.values(x).double()
    rounding = 64 * torch.finfo(oracles.dtype).eps * max(1.0, float(values.abs().max()))
    f, r = float(values.mean()), oracles.regulariser
    total = f + (0.0 if r is None else r.value(x))
    found.expect(solution.gap >= 0.0, f"the certificate is {solution.gap:.3g}")
    found.expect(
        abs(total - solution.value) <= rounding + 1e-9 * abs(total), f"f(x*) is {total:.12g}, not {solution.value:.12g}"
    )
    # a step of 1 / L from x* gains at least this much, so f(x*) - f* is no less
    away = x - r.prox(x - gradient / smooth, 1.0 / smooth) if r is not None else gradient / smooth
    gained = 0.5 * smooth * float(away.square().sum())
    if c.L.kind is not Kind.ESTIMATE:
        found.expect(
            gained <= SLACK * solution.gap + rounding**2 + 1e-28 * smooth,
            f"a gradient step from x* gains {gained:.3g}, and the certificate says {solution.gap:.3g} at most",
        )
    for point in place.points:
        here = float(oracles.values(point).double().mean()) + (0.0 if r is None else r.value(point))
        below = total - here
        found.expect(
            below <= solution.gap + rounding * max(1.0, abs(here)),
            f"f is {below:.3g} lower at another point than at x*",
        )
    _excess(found, place, solution, rounding)
    _spread(found, place, solution)


def _spread(found: Findings, place: Place, solution: Solution) -> None:
    """sigma_star, by the gradients at x*."""
    c = place.problem.constants()
    if _sure(c.sigma_star):
        spread = math.sqrt(float(place.oracles.gradients(solution.x).double().flatten(1).square().sum(1).mean()))
        close = math.isclose(spread, float(c.sigma_star or 0.0), rel_tol=1e-4, abs_tol=1e-7 * float(c.L))
        found.expect(close, f"sigma_star is {float(c.sigma_star or 0.0):.9g}; the gradients at x* say {spread:.9g}")


def _saddle_point(found: Findings, place: Place, solution: Solution) -> None:
    """F vanishes at x*, points away from it near it, and ||F(x*)||^2 / mu^2 is no more than the certificate.

    With a regulariser r it is the shortest of F(x*) + (subgradients of r) that vanishes.
    """
    oracles, c, x = place.oracles, place.problem.constants(), solution.x
    at_solution, r = oracles.gradients(x).double(), place.oracles.regulariser
    mean = at_solution.mean(0)
    norm2 = float((mean if r is None else r.least_subgradient(x, mean)).square().sum())
    size = math.sqrt(float(at_solution.flatten(1).square().sum(1).mean())) + float(c.L) * float(x.norm())
    found.expect(math.sqrt(norm2) <= 1e-9 * size + 1e-14, f"||F(x*)|| is {math.sqrt(norm2):.3g}")
    found.expect(math.isnan(solution.value), f"a saddle point has no f*, and it is said to be {solution.value:.6g}")
    if _sure(c.mu):
        known = norm2 / float(c.mu or 0.0) ** 2
        found.expect(
            known <= SLACK * solution.gap + (64 * torch.finfo(oracles.dtype).eps * size / float(c.mu or 1.0)) ** 2,
            f"||F(x*)||^2 / mu^2 is {known:.3g}, and the certificate says {solution.gap:.3g} at most",
        )
    away = 1e-3 * (1.0 + float(x.norm()))
    for u in place.others(4, "saddle") if r is None else ():
        outwards = float((oracles.gradients(x + away * u).mean(0).double() * u.double()).sum())
        found.expect(outwards > 0.0, f"F points inwards, by {-outwards:.3g}, at a distance of {away:.3g} from x*")
    _spread(found, place, solution)


def _excess(found: Findings, place: Place, solution: Solution, rounding: float) -> None:
    """What the trace takes for f(x) - f*, where oracles know it without cancellation."""
    oracles = place.oracles
    if not isinstance(oracles, Excess) or oracles.regulariser is not None:
        return
    x, at_solution = solution.x, oracles.values(solution.x).double()
    slopes = oracles.gradients(x).double().flatten(1)
    for point in place.points:
        expected = oracles.values(point).double() - at_solution - slopes @ (point - x).double().reshape(-1)
        off = (oracles.excess(point, solution).double() - expected).abs()
        scale = rounding * (1.0 + float(oracles.values(point).abs().max()) + float((point - x).norm() * slopes.norm()))
        found.expect(bool((off <= scale).all()), f"excess is off by {float(off.max()):.3g}")
    found.expect(not bool(oracles.excess(x, solution).any()), "excess is not zero at x*")


CHECKS = (
    ("constants are in order", _order),
    ("constants against differences of gradients", _differences),
    ("the solution keeps its certificate", _solution),
)
