"""Checks of regularisers: a convex function, and its proximal operator by what defines it."""

from __future__ import annotations

import functools
import math

import torch
from torch import Tensor

from laconic.checks.findings import Findings
from laconic.checks.suite import Amounts, Suite
from laconic.checks.trial import same
from laconic.checks.vectors import normal
from laconic.core.regulariser import Regulariser

D = 7
STEPS = (1e-3, 0.1, 1.0, 30.0)
ROUNDING = 1e-9


def regulariser_checks(found: Findings, regulariser: Regulariser, effort: Amounts) -> Suite:
    """Of a regulariser, on vectors small and large."""
    points = _points(8 * effort.points)
    for name, made in (
        ("the function is convex", _convex),
        ("the proximal point is the minimiser", _minimiser),
        ("the proximal operator does not expand", _firm),
        ("the least subgradient vanishes at minimisers", _least),
        ("rows are points of their own", _rows),
        ("points are not written to", _untouched),
    ):
        yield name, functools.partial(made, found, regulariser, points)


def _points(count: int) -> Tensor:
    """Vectors of several sizes, with zeros among their numbers, (count, D)."""
    x = normal((D,), count, "regularisers") * torch.logspace(-2, 1.5, count, dtype=torch.float64)[:, None]
    return torch.where(x.abs() < 0.3 * x.abs().amax(1, keepdim=True), 0.0, x)


def _size(*values: float) -> float:
    return 1.0 + max(abs(value) for value in values if math.isfinite(value)) if values else 1.0


def _convex(found: Findings, r: Regulariser, points: Tensor) -> None:
    values = [r.value(x) for x in points]
    found.expect(all(value > -math.inf and value == value for value in values), "a value is -infinity or not a number")
    inside = [(x, value) for x, value in zip(points, values, strict=True) if math.isfinite(value)]
    for (x, a), (y, b) in zip(inside, inside[1:], strict=False):
        for share in (0.25, 0.5):
            chord = (1.0 - share) * a + share * b
            here = r.value((1.0 - share) * x + share * y)
            found.expect(
                here <= chord + ROUNDING * _size(a, b), f"between two points it is {here:.9g}, above {chord:.9g}"
            )


def _minimiser(found: Findings, r: Regulariser, points: Tensor) -> None:
    """(x - u) / step is a subgradient of r at u = prox(x), against every other point where r is finite."""
    for step in STEPS:
        found.place = f"step {step:g}"
        images = [r.prox(x, step) for x in points]
        values = [r.value(u) for u in images]
        others = [(z, r.value(z)) for z in [*points, *images]]
        for x, u, value in zip(points, images, values, strict=True):
            if not (math.isfinite(value) and bool(torch.isfinite(u).all())):
                found.fail("the proximal point is not finite, or not admitted")
                continue
            slope = (x - u) / step
            for z, there in others:
                if math.isfinite(there):
                    below = value + float(slope @ (z - u))
                    size = _size(value, there) + float(slope.norm() * (z.norm() + u.norm()))
                    found.expect(
                        there >= below - ROUNDING * size,
                        f"another point is better than the proximal one by {step * (below - there):.3g}",
                    )


def _firm(found: Findings, r: Regulariser, points: Tensor) -> None:
    for step in STEPS:
        images = torch.stack([r.prox(x, step) for x in points])
        for a in range(len(points) - 1):
            moved, change = points[a + 1] - points[a], images[a + 1] - images[a]
            square, along = float(change @ change), float(change @ moved)
            found.expect(
                square <= along + ROUNDING * (1.0 + float(moved @ moved)),
                f"proximal points are {math.sqrt(square):.6g} apart, of points {float(moved.norm()):.6g} apart",
            )


def _least(found: Findings, r: Regulariser, points: Tensor) -> None:
    """At u = prox(x) the vector (u - x) / step is minus a subgradient; none shorter than the shortest is reported."""
    for step in STEPS[1:]:
        found.place = f"step {step:g}"
        for x in points:
            u = r.prox(x, step)
            gradient = (u - x) / step
            least = float(r.least_subgradient(u, gradient).norm())
            size = ROUNDING * (1.0 + float(x.norm() + u.norm()) / step) * 10
            found.expect(least <= size, f"at a minimiser the least subgradient has the norm {least:.3g}")
            other = gradient + points[0]
            shortest = float(r.least_subgradient(u, other).norm())
            known = float(points[0].norm())  # other + the subgradient (x - u) / step
            found.expect(
                shortest <= known + size, f"a subgradient of the norm {known:.6g} is there, and {shortest:.6g} said"
            )


def _rows(found: Findings, r: Regulariser, points: Tensor) -> None:
    alone = torch.stack([r.prox(x, 0.5) for x in points])
    found.expect(same(r.prox(points, 0.5), alone), "a row's proximal point depends on the other rows")
    steps = torch.linspace(0.1, 2.0, len(points), dtype=torch.float64)
    apart = torch.stack([r.prox(x, float(step)) for x, step in zip(points, steps, strict=True)])
    off = (r.prox(points, steps[:, None]) - apart).abs().max()
    found.expect(float(off) <= 1e-12 * float(points.abs().max()), "a step for each row gives other points")
    found.expect(r.prox(points[:0], 0.5).shape == (0, D), "no rows give something")


def _untouched(found: Findings, r: Regulariser, points: Tensor) -> None:
    x, gradient = points.clone(), points.flip(0).clone()
    u = r.prox(x, 0.5)
    r.value(x[0])
    least = r.least_subgradient(x[0], gradient[0])
    found.expect(same(x, points) and same(gradient, points.flip(0)), "a point is changed")
    u.fill_(17.0)
    least.fill_(17.0)
    found.expect(same(x, points) and same(gradient, points.flip(0)), "what is returned is the point's own memory")
    found.expect(not bool((r.prox(x, 0.5) == 17.0).any()), "what is returned is kept")
