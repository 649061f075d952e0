"""Every check of a compressor, quickly or thoroughly."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch

from laconic.checks import claims, edges, purity, wire
from laconic.checks.ascent import worst_found
from laconic.checks.claims import Budget
from laconic.checks.findings import label
from laconic.checks.trial import Trial
from laconic.checks.vectors import DTYPES
from laconic.checks.verdict import Constant, Verdict
from laconic.core.compressor import Compressor

Shape = tuple[int, ...]
Check = Callable[[Trial, Shape, torch.dtype], None]

SMALL: tuple[Shape, ...] = ((1,), (2,), (3,), (7,), (6, 5))
LARGE: tuple[Shape, ...] = ((4096,), (64, 64))


@dataclass(frozen=True)
class Effort:
    """How much of everything there is: shapes of the cheap checks and of claims, draws, rounds of ascent."""

    shapes: tuple[Shape, ...]
    narrow: tuple[Shape, ...]  # of the cheap checks in float32 and bfloat16
    claims: tuple[Shape, ...]
    large: tuple[Shape, ...]
    draws: Budget
    coarse: Budget  # where only gross errors are looked for
    rounds: int
    seconds: float  # of one ascent


QUICK = Effort(
    shapes=(*SMALL, (4096,)),
    narrow=((1,), (7,), (6, 5)),
    claims=((1,), (2,), (7,), (64,), (8, 8)),
    large=(),
    draws=Budget(32, 16, 256, 600, 0.4),
    coarse=Budget(32, 8, 64, 64, 0.1),
    rounds=6,
    seconds=0.05,
)
WHOLE = Effort(
    shapes=(*SMALL, *LARGE),
    narrow=(*SMALL, *LARGE),
    claims=((1,), (2,), (3,), (7,), (64,), (8, 8)),
    large=LARGE,
    draws=Budget(48, 32, 512, 1200, 0.8),
    coarse=Budget(32, 16, 128, 128, 0.3),
    rounds=20,
    seconds=0.2,
)

EACH: tuple[tuple[str, Check], ...] = (
    ("sizes, and bytes decode to the same bits", wire.messages),
    ("equal bytes mean the same", wire.equal_bytes),
    ("the same alone and in company", purity.company),
    ("vectors are not written to", purity.input_is_kept),
    ("zeros decode to zeros", edges.zeros),
    ("denormals and near overflow", edges.ends),
)


def check_compressor(compressor: Compressor, quick: bool) -> Verdict:
    """Puts a compressor through every check."""
    trial, effort = Trial.of(compressor), QUICK if quick else WHOLE
    for name, made in _checks(trial, effort):
        with trial.checking(name, _place(made)):
            made()
    trial.constants[:] = _closest(trial.constants)
    return trial.verdict()


def _place(made: functools.partial[None]) -> str:
    """The shape and dtype that a check is made for, where it has them."""
    words = [f"shape {one}" for one in made.args if isinstance(one, tuple)]
    return ", ".join(words + [str(one) for one in made.args if isinstance(one, torch.dtype)])


def _checks(trial: Trial, effort: Effort) -> Iterator[tuple[str, functools.partial[None]]]:
    """Names and what to do; several with one name count as one check."""
    for name, made in EACH:
        for dtype in DTYPES:
            for shape in effort.shapes if dtype == torch.float64 else effort.narrow:
                yield name, functools.partial(made, trial, shape, dtype)
    yield "the same on one thread and two", functools.partial(purity.threads, trial, (4096,), torch.float32)
    for dtype in DTYPES:
        yield "malformed bytes are refused", functools.partial(wire.malformed, trial, (7,), dtype)
        if trial.pure:
            yield "NaN and infinities are refused", functools.partial(edges.refusals, trial, (3, 2), dtype)
        else:
            yield "the state is carried on", functools.partial(wire.state, trial, (6, 5), dtype)
    yield from _amounts(trial, effort)
    yield from _claims(trial, effort)


def _amounts(trial: Trial, effort: Effort) -> Iterator[tuple[str, functools.partial[None]]]:
    for variant in edges.everything(trial.compressor):
        other = Trial.of(variant)
        for shape in SMALL:
            yield "k >= d", functools.partial(_as_part, trial, other, shape, effort)


def _as_part(trial: Trial, other: Trial, shape: Shape, effort: Effort) -> None:
    """The messages and claims of a variant, told as the original's failures."""
    with other.checking(f"k >= d: {label(other.compressor)}"):
        wire.messages(other, shape, torch.float64)
        claims.single(other, shape, torch.float64, effort.coarse)
    for failure in other.failures:
        trial.fail(f"{label(other.compressor)}: {failure.what}")
    other.failures.clear()


def _claims(trial: Trial, effort: Effort) -> Iterator[tuple[str, functools.partial[None]]]:
    name = "unbiased, variance, contraction"
    for shape in effort.claims:
        budget = effort.draws if shape[-1] > 2 else effort.coarse
        yield name, functools.partial(claims.single, trial, shape, torch.float64, budget)
    for shape in effort.large:
        yield name, functools.partial(claims.single, trial, shape, torch.float64, effort.coarse)
    for dtype in (torch.float32, torch.bfloat16):
        for shape in ((1,), (7,), (8, 8)):
            yield (
                f"{name} in {str(dtype).removeprefix('torch.')}",
                functools.partial(claims.single, trial, shape, dtype, effort.coarse),
            )
    for n, d in ((2, 7), (3, 7), (8, 24), (8, 5)):
        yield "constants of n workers together", functools.partial(claims.joint, trial, n, d, effort.draws)
    for shape in ((16,), (4, 4)):
        found = functools.partial(worst_found, trial, shape, effort.rounds, effort.seconds, effort.draws)
        yield "claims on vectors found by ascent", found
    yield "something is compressed", functools.partial(_compresses, trial)


def _compresses(trial: Trial) -> None:
    """A claim of a positive error by what returns every vector as it is: nothing is rounded, drawn or left out."""
    trial.expect(
        trial.changed or not trial.claims_something, "every vector comes back as it is; the claim says it does not"
    )


def _closest(found: list[Constant]) -> list[Constant]:
    """Of each constant the place where it came closest to its claim, of several the one of most coordinates."""
    best: dict[str, Constant] = {}
    for one in found:
        other = best.get(one.name)
        if other is None or (round(one.tightness, 2), one.d) > (round(other.tightness, 2), other.d):
            best[one.name] = one
    return list(best.values())
