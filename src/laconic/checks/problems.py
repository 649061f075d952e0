"""Checks of problems: gradients and Hessians by differences, minibatches, whose data are whose, what is counted."""

from __future__ import annotations

import functools
import math

import numpy as np
import torch
from torch import Tensor

from laconic.checks import problem_constants
from laconic.checks.findings import Findings, label
from laconic.checks.places import Place, place_of
from laconic.checks.problem_products import LARGEST, bends, products
from laconic.checks.suite import Amounts, Suite
from laconic.checks.trial import same
from laconic.core.problem import Batch, Block, Oracles, Problem
from laconic.core.rows import svec_to_matrix
from laconic.core.spec import parse


def problem_checks(found: Findings, problem: Problem, effort: Amounts) -> Suite:
    """Of a problem. Its oracles are made once; what cannot be made is said by every check."""

    @functools.cache
    def place() -> Place:
        return place_of(problem, effort.points)

    for name, made in (
        ("gradients by differences of values", _gradients),
        ("Hessians by differences of gradients", _hessians),
        ("products with Hessians by differences of gradients", products),
        ("minibatches are means of terms", _minibatches),
        ("the gradient of the right worker", _right_worker),
        ("the same alone and in company", _company),
        ("the same problem every time", _same_again),
        ("points are not written to", _untouched),
        ("calls are counted", _counted),
    ):
        yield name, functools.partial(lambda made: made(found, place()), made)
    for name, made in problem_constants.CHECKS:
        yield name, functools.partial(lambda made: made(found, place(), effort), made)


# ---- derivatives -----------------------------------------------------------------------------------------------------


def _gradients(found: Findings, place: Place) -> None:
    oracles, rows = place.oracles, place.rows
    for at, x in enumerate(place.points):
        gradients = _ascending(oracles, oracles.gradients(x, rows).double())
        size = gradients.flatten(1).norm(dim=1)
        for u in _directions(place, gradients):
            slopes, error = _slopes(oracles, x, u, rows)
            along = (gradients * u.double()).flatten(1).sum(1)
            off = (slopes - along).abs()
            allowed = error + 1e-7 * size + 1e-12
            for row in (off > allowed).nonzero()[:, 0].tolist():
                found.place = f"worker {rows[row]}, point {at}"
                found.fail(
                    f"the gradient's slope along a direction is {float(along[row]):.9g} "
                    f"and differences of values give {float(slopes[row]):.9g}"
                )


def _ascending(oracles: Oracles, gradients: Tensor) -> Tensor:
    """The gradients of the f_i, whose signs are turned where f is maximised."""
    return gradients if oracles.maximised is None else torch.where(oracles.maximised, -gradients, gradients)


def _directions(place: Place, gradients: Tensor) -> list[Tensor]:
    """Random ones, an axis, and the gradient's own: where values and gradients disagree by a factor, it is seen."""
    own = gradients.mean(0)
    norm = float(own.norm())
    axis = torch.zeros(place.oracles.d, dtype=place.oracles.dtype)
    axis[-1] = 1.0
    found = [*place.others(3, "directions"), axis.view(place.oracles.shape)]
    return found + ([(own / norm).to(place.oracles.dtype)] if norm > 0.0 and math.isfinite(norm) else [])


def _slopes(oracles: Oracles, x: Tensor, u: Tensor, rows: np.ndarray) -> tuple[Tensor, Tensor]:
    """Slopes of the values along u by two widths of differences of the fourth order, and how far they can be off."""
    eps = torch.finfo(x.dtype).eps
    width = eps**0.2 * (1.0 + float(x.abs().max()))
    found, largest = [], torch.zeros(len(rows), dtype=torch.float64)
    for h in (width, width / 2):
        values = [oracles.values(x + k * h * u, rows).double() for k in (-2, -1, 1, 2)]
        largest = torch.stack([largest, *(value.abs() for value in values)]).amax(0)
        found.append((values[0] - 8 * values[1] + 8 * values[2] - values[3]) / (12 * h))
    return found[1], (found[0] - found[1]).abs() + 40 * eps * largest / width


def _hessians(found: Findings, place: Place) -> None:
    oracles, rows = place.oracles, place.rows[-1:]
    x = place.points[-1]
    if oracles.d > LARGEST:
        return
    try:
        matrix = svec_to_matrix(oracles.hessians(x, rows)[0].double(), oracles.d)
    except ValueError as error:
        return found.expect("\n" not in str(error), "that there are no Hessians is said in more than one line")
    before = oracles.calls.hessian_terms
    for u in place.others(3, "bends"):
        slopes, error = bends(oracles, x, u, rows)
        along = matrix @ u.double().reshape(-1)
        off, size = float((slopes - along).norm()), float(matrix.norm())
        found.expect(
            off <= error + 1e-7 * size + 1e-12,
            f"the Hessian times a direction is off by {off:.3g} of {float(along.norm()):.3g}",
        )
    oracles.hessians(x, rows)
    terms = int(oracles.terms()[rows].sum())
    found.expect(oracles.calls.hessian_terms - before == terms, "a Hessian is not counted as its worker's terms")


def _close(a: Tensor, b: Tensor) -> bool:
    """Equal but for the roundings of a sum."""
    scale = float(torch.maximum(a.abs(), b.abs()).max()) if a.numel() else 0.0
    return bool(((a - b).abs() <= 1e3 * torch.finfo(a.dtype).eps * scale).all())


def _minibatches(found: Findings, place: Place) -> None:
    oracles, x = place.oracles, place.points[-1]
    for row in place.rows.tolist():
        found.place = f"worker {row}"
        one, terms = np.array([row]), int(oracles.terms()[row])
        every = np.arange(terms)[None]
        whole = oracles.gradients(x, one)
        found.expect(_close(oracles.gradients(x, one, Batch(one, every)), whole), "all terms are not the gradient")
        picks = np.unique([0, terms // 2, terms - 1])
        each = [oracles.gradients(x, one, Batch(one, np.array([[j]]))) for j in picks]
        both = oracles.gradients(x, one, Batch(one, picks[None]))
        found.expect(_close(torch.stack(each).mean(0), both), "a minibatch is not the mean of its terms")
        twice = oracles.gradients(x, one, Batch(one, np.array([[terms - 1, terms - 1]])))
        found.expect(_close(twice, each[-1]), "a term drawn twice is not that term")
        if terms <= 64:
            singles = [oracles.gradients(x, one, Batch(one, np.array([[j]]))) for j in range(terms)]
            mean = torch.stack(singles).mean(0)
            limit = 1e3 * torch.finfo(whole.dtype).eps * max(float(s.abs().max()) for s in singles)
            found.expect(bool(((mean - whole).abs() <= limit).all()), "the mean of all terms is not the gradient")


# ---- whose data ------------------------------------------------------------------------------------------------------


def _per_row(place: Place) -> Tensor:
    """A point for each worker, (n, *shape)."""
    return place.oracles.start() + place.others(place.problem.n, "rows") * math.sqrt(place.oracles.d)


def _right_worker(found: Findings, place: Place) -> None:
    """Rows in any order, with a point each or one for all: every row is its own worker's."""
    oracles, n = place.oracles, place.problem.n
    x, each = place.points[-1], _per_row(place)
    gradients, values = oracles.gradients(x), oracles.values(x)
    apart, apart_values = oracles.gradients(each), oracles.values(each)
    found.expect(
        gradients.shape == (n, *oracles.shape), f"gradients of n = {n} have the shape {tuple(gradients.shape)}"
    )
    found.expect(values.shape == (n,), f"values of n = {n} have the shape {tuple(values.shape)}")
    for some in (np.arange(n)[::-1].copy(), np.arange(n)[1::2], np.arange(n)[-1:], np.arange(0)):
        found.place = f"rows {some[:4].tolist()}{'...' if len(some) > 4 else ''}"
        found.expect(same(oracles.gradients(x, some), gradients[some]), "gradients depend on which rows are asked for")
        found.expect(same(oracles.values(x, some), values[some]), "values depend on which rows are asked for")
        found.expect(same(oracles.gradients(each[some], some), apart[some]), "a row's gradient is not at its own point")
        found.expect(
            same(oracles.values(each[some], some), apart_values[some]), "a row's value is not at its own point"
        )
    found.place = ""
    shared = x.expand(n, *oracles.shape)
    found.expect(same(oracles.gradients(shared), gradients), "one point for all and that point for each differ")
    terms = oracles.terms()
    last = Batch(np.arange(n), terms[:, None] - 1)
    batched = oracles.gradients(each, batch=last)
    some = np.arange(n)[::-1].copy()
    part = oracles.gradients(each[some], some, Batch(some, last.indices[some]))
    found.expect(same(part, batched[some]), "a minibatch's gradient is not that of its row's worker")


def _company(found: Findings, place: Place) -> None:
    """Blocks of any size hold the same workers."""
    problem, whole, n = place.problem, place.oracles, place.problem.n
    x, each = place.points[-1], _per_row(place)
    gradients, apart, values = whole.gradients(x), whole.gradients(each), whole.values(x)
    for low, high in sorted({(0, n), (0, 0), (n - 1, n), (n // 3, n), (0, (n + 1) // 2)}):
        found.place = f"workers {low} to {high - 1}" if high > low else "a block without workers"
        part = problem.host(Block(low, high, n))
        found.expect(part.shape == whole.shape, f"the shape is {part.shape}, and {whole.shape} in the whole block")
        found.expect(part.dtype == whole.dtype and part.convex == whole.convex, "dtype or convexity differs in a block")
        found.expect(same(part.start(), whole.start()), "the start depends on the block")
        found.expect(np.array_equal(part.terms(), whole.terms()[low:high]), "numbers of terms depend on the block")
        if part.shape != whole.shape:
            continue
        found.expect(same(part.gradients(x), gradients[low:high]), "gradients depend on the block")
        found.expect(same(part.gradients(each[low:high]), apart[low:high]), "gradients at points of their own do")
        found.expect(same(part.values(x), values[low:high]), "values depend on the block")
        found.expect(same(part.server.gradients(x)[0], gradients[0]), "the server's copy is not worker 0's function")


def _same_again(found: Findings, place: Place) -> None:
    """Made anew from its spec, and asked again."""
    problem, oracles, x = place.problem, place.oracles, place.points[-1]
    first = oracles.gradients(x)
    found.expect(same(oracles.gradients(x), first), "the same point gives another gradient the second time")
    try:
        again = parse(label(problem))
    except ValueError:
        again = problem  # of no spec: an object in memory
    assert isinstance(again, Problem)
    found.expect(again.n == problem.n, "another number of workers")
    found.expect(again.fingerprint() == problem.fingerprint(), "another fingerprint")
    found.expect(same(again.oracles(Block.whole(again.n)).gradients(x), first), "other gradients when made anew")
    block = oracles.block
    found.expect(block.n == problem.n and block.size == problem.n, f"n = {problem.n}, and the block is {block}")
    found.expect(oracles.start().shape == oracles.shape, "the start has another shape than the points")
    found.expect(first.dtype == oracles.dtype, f"gradients are {first.dtype} and points {oracles.dtype}")
    found.expect(bool((oracles.terms() >= 1).all()), "a worker has no terms")
    found.expect(again.constants() == problem.constants(), "other constants the second time")


def _untouched(found: Findings, place: Place) -> None:
    oracles = place.oracles
    x, each = place.points[-1].clone(), _per_row(place)
    for point in (x, each):
        before = point.clone()
        gradients = oracles.gradients(point)
        oracles.values(point)
        found.expect(same(point, before), "the point is changed")
        kept = gradients.clone()
        oracles.gradients(place.points[0])
        found.expect(same(gradients, kept), "a gradient changes when the next one is asked for: the caller owns it")
        gradients.fill_(17.0)
        found.expect(same(point, before), "writing to a gradient changes the point")
        found.expect(same(oracles.gradients(point), kept), "writing to a gradient changes the next one")
    start = oracles.start()
    start.fill_(17.0)
    found.expect(not bool((oracles.start() == 17.0).all()), "writing to the start changes it for everyone")


def _counted(found: Findings, place: Place) -> None:
    oracles, x = place.oracles, place.points[0]
    terms, rows = oracles.terms(), place.rows
    three = Batch(rows, np.zeros((len(rows), 3), dtype=np.int64))
    for what, ask, count in (
        ("a gradient of all", lambda: oracles.gradients(x), int(terms.sum())),
        ("gradients of some rows", lambda: oracles.gradients(x, rows), int(terms[rows].sum())),
        ("a minibatch", lambda: oracles.gradients(x, rows, three), 3 * len(rows)),
        ("a value", lambda: oracles.values(x), 0),
    ):  # fmt: skip
        before = oracles.calls.gradient_terms
        ask()
        asked = oracles.calls.gradient_terms - before
        found.expect(asked == count, f"{what} is counted as {asked} terms of gradients and takes {count}")
