"""Checks of what is claimed: unbiased, variance, contraction and joint constants, within intervals of confidence."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from laconic.checks.statistics import RARE, Outcomes, outcomes
from laconic.checks.trial import Trial, addresses, sent
from laconic.checks.vectors import cases, normal
from laconic.checks.verdict import Constant
from laconic.core.compressor import AB, Claim, Contractive, as_contractive, as_joint, as_unbiased

FEW = 8  # workers where draws are shared, so that steps and not rows are what counts
LIKELY = 3  # vectors looked at again with many more draws: those that came closest to breaking the claim
ELEMENTS = 1 << 20  # numbers in one batch


@dataclass(frozen=True)
class Budget:
    """How much is drawn.

    Parameters
    ----------
    groups, draws : steps, and rows of each, for every vector.
    many : rows for the few vectors that are likely to break a claim.
    steps : where draws are shared by all rows of a step.
    seconds : of computing for one batch, where a compressor is slow; fewer rows then.
    """

    groups: int
    draws: int
    many: int
    steps: int
    seconds: float


def unit_roundoff(dtype: torch.dtype) -> float:
    """The largest relative error of one rounding."""
    return torch.finfo(dtype).eps / 2


def drawn(trial: Trial, x: Tensor, budget: Budget, draws: int, first: int) -> tuple[Outcomes, int]:
    """What comes back of x (cases, *shape) from a step on, and for how many workers: as many as are affordable."""
    began = time.process_time()
    probe = outcomes(trial.compressor, x, 2, FEW)
    each = (time.process_time() - began) / (2 * FEW)
    if not probe.within.any() and torch.equal(probe.means[0], probe.means[1]):
        return outcomes(trial.compressor, x, 2, 1), 1  # nothing is drawn
    least = FEW if draws == budget.many else 2
    while draws > least and (draws * x.numel() > ELEMENTS or draws * each * budget.groups > budget.seconds):
        draws //= 2
    found = outcomes(trial.compressor, x, budget.groups, draws, first)
    if found.independent < found.groups * draws:
        steps = budget.steps if draws == budget.many else budget.groups
        return outcomes(trial.compressor, x, steps, FEW, first), FEW
    return found, draws


def single(trial: Trial, shape: tuple[int, ...], dtype: torch.dtype, budget: Budget) -> None:
    """One worker's constants on the cases of a shape."""
    found = cases(shape)
    claim_holds(trial, list(found), torch.stack(list(found.values())).to(dtype), budget)


def claim_holds(trial: Trial, names: Sequence[str], x: Tensor, budget: Budget) -> None:
    """Mean and variance, or contraction, on each vector of x (cases, *shape); again on the worst, with other draws."""
    if trial.compressor.claim(math.prod(x.shape[1:]), 4) is None:
        return
    found, n = drawn(trial, x, budget, budget.draws, 2)
    if n > 1:  # a first look only says which vectors to look at
        likely = _likely(found, as_unbiased(trial.compressor.claim(math.prod(x.shape[1:]), n)) is not None)
        names, x = [names[case] for case in likely], x[likely]
        found, n = drawn(trial, x, budget, budget.many, 100_000)
    _judge(trial, names, x, found, n)


def _likely(found: Outcomes, unbiased: bool) -> list[int]:
    """The vectors that come closest to breaking a claim: of the largest error, and of the largest bias."""
    squares = found.x.square().sum(1).clamp(min=1e-300)
    likely = (found.error / squares).topk(min(LIKELY, len(squares))).indices.tolist()
    if unbiased:
        bias, width = found.bias(_directions(found.x))
        excess = ((bias.abs() - width).amax(1) / squares.sqrt()).topk(min(LIKELY - 1, len(squares)))
        likely += excess.indices.tolist()
    return sorted(set(likely))


def _judge(trial: Trial, names: Sequence[str], x: Tensor, found: Outcomes, n: int) -> None:
    shape, d = tuple(x.shape[1:]), math.prod(x.shape[1:])
    claim, u = trial.compressor.claim(d, n), unit_roundoff(x.dtype)
    norms = found.x.norm(dim=1)
    rounding = u * (norms + found.sizes)  # one of the vector, one of what it becomes
    trial.place = f"shape {shape}, {x.dtype}"
    trial.expect(bool(torch.isfinite(found.errors).all()), "what is decoded is not finite")
    if bool((found.errors > 0).any()):
        trial.changed = True
    omega = as_unbiased(claim)
    share = omega if omega is not None else 1.0 - claim.alpha if isinstance(claim, Contractive) else 1.0
    trial.claims_something |= share > 0.0
    most = math.sqrt(max(share, 0.0)) * norms + rounding
    for case in (found.surely.clamp(min=0).sqrt() > most * (1 + 1e-12)).nonzero()[:, 0].tolist():
        trial.place = f"{names[case]}, shape {shape}, {x.dtype}, n = {n}"
        ratio, name = (
            float(found.error[case] / norms[case].clamp(min=1e-300) ** 2),
            "omega" if omega is not None else "1 - alpha",
        )
        trial.fail(f"{name} is {share:.6g} and the error is {ratio:.6g} of the squared norm")
    if omega is not None:
        _unbiased(trial, names, found, omega, rounding, f"shape {shape}, {x.dtype}, n = {n}")
    if x.dtype == torch.float64:
        _note(trial, names, claim, found, d, n)


def _directions(x: Tensor) -> Tensor:
    """Unit vectors along which a bias is looked for, (cases, count, d): x itself, its signs, axes, random signs."""
    d = x.shape[1]
    signs = torch.where(x < 0, -1.0, 1.0)
    random = torch.where(normal((d,), 6, "directions") < 0, -1.0, 1.0).to(x.dtype)
    fixed = torch.cat([random, torch.eye(d, dtype=x.dtype)[: min(d, 64)]])
    all_of_them = torch.cat([torch.stack([x, signs], 1), fixed.expand(x.shape[0], -1, -1)], 1)
    return all_of_them / all_of_them.norm(dim=2, keepdim=True).clamp(min=1e-300)


def _unbiased(trial: Trial, names: Sequence[str], found: Outcomes, omega: float, rounding: Tensor, place: str) -> None:
    bias, width = found.bias(_directions(found.x))
    unseen = math.sqrt(omega) * found.x.norm(dim=1) * RARE / found.independent  # what no draw happened to show
    allowed = width + (unseen + rounding)[:, None] * (1 + 1e-9)
    for case in (bias.abs() > allowed).any(1).nonzero()[:, 0].tolist():
        trial.place = f"{names[case]}, {place}"
        worst = float((bias[case].abs() / found.x[case].norm().clamp(min=1e-300)).max())
        trial.fail(f"the mean is off by {worst:.3g} of the norm along one direction; unbiased is claimed")


def _note(trial: Trial, names: Sequence[str], claim: Claim | None, found: Outcomes, d: int, n: int) -> None:
    """The vector with the error that is surely worst: a mean of few draws may be large by chance."""
    squares = found.x.square().sum(1)
    sure = found.surely / squares.clamp(min=1e-300)
    case = int(sure.argmax())
    worst, least = float(found.error[case] / squares[case].clamp(min=1e-300)), float(sure[case])
    omega, alpha = as_unbiased(claim), as_contractive(claim)
    if omega is not None:
        trial.constants.append(Constant("omega", (omega,), worst, least, d, n, names[case]))
    elif alpha is not None:
        trial.constants.append(Constant("alpha", (alpha,), 1.0 - worst, 1.0 - least, d, n, names[case]))


def families(n: int, d: int) -> dict[str, Tensor]:
    """Vectors of n workers (n, d), float64: where joint constants are attained, and random ones."""
    g = normal((d,), n + 1, f"families of {n}")
    j = torch.arange(d, dtype=torch.float64)
    alternate = torch.where((torch.arange(n)[:, None] + torch.arange(d)) % 2 == 0, 1.0, -1.0).double()
    axes = torch.zeros(n, d, dtype=torch.float64)
    axes[torch.arange(n), torch.arange(n) % d] = 1.0
    only = torch.zeros(n, d, dtype=torch.float64)
    only[0] = torch.where(j % 2 == 0, 1.0, -1.0)
    return {
        "normal numbers": g[1:],
        "equal vectors": g[:1].repeat(n, 1),
        "equal magnitudes on all workers": only[:1].repeat(n, 1),
        "opposite signs on neighbours": alternate,
        "nearly equal vectors": g[:1] + 0.1 * g[1:],
        "an axis each": axes,
        "one worker speaks": only,
        "mantissas of 4/3 on all workers": (only[:1] * (4 / 3)).repeat(n, 1),
    }


def joint(trial: Trial, n: int, d: int, budget: Budget) -> None:
    """The mean over n workers against A and B; independent draws have A = omega / n and B = 0."""
    claim = as_joint(trial.compressor.claim(d, n), n)
    if claim is None:
        return
    found = families(n, d)
    a = torch.stack(list(found.values()))
    together = isinstance(trial.compressor.claim(d, n), AB)
    errors, sizes = _mean_errors(trial, a, min(budget.steps, 600) // (2 if together else 6))
    steps, mean = errors.shape[0], a.mean(1)
    squares, common = a.square().sum((1, 2)) / n, mean.square().sum(1)
    bound = (claim.A * squares - claim.B * common).clamp(min=0)
    kind = Outcomes(mean, errors, errors[:, :, None], bound * 0, sizes, 1)
    rounding = 4 * unit_roundoff(a.dtype) * (squares.sqrt() + sizes)  # the mean is a sum of n
    broken = kind.surely.clamp(min=0).sqrt() > bound.sqrt() + rounding
    for case, name in enumerate(found):
        trial.place = f"{name}, n = {n}, d = {d}, {steps} steps"
        if bool(broken[case]):
            trial.fail(
                f"A = {claim.A:.4g} and B = {claim.B:.4g} allow {float(bound[case]):.6g} "
                f"and the mean's squared error is {float(kind.error[case]):.6g}"
            )
    if together:
        kept = torch.where(bound > 1e-12 * squares, 1 / bound.clamp(min=1e-300), 0.0)
        case = int((kind.surely * kept).argmax())
        worst, least = float(kind.error[case] * kept[case]), float(kind.surely[case] * kept[case])
        trial.constants.append(Constant("A, B", (claim.A, claim.B), worst, least, d, n, list(found)[case]))


def _mean_errors(trial: Trial, a: Tensor, steps: int) -> tuple[Tensor, Tensor]:
    """Squared errors of the mean of a (families, n, d) over steps, (steps, families), and the size of what came."""
    count, n, d = a.shape
    workers = torch.arange(n).repeat(count).numpy()
    errors, sizes = [], torch.zeros(count, dtype=a.dtype)
    for step in range(steps):
        out = sent(trial.compressor, a.view(count * n, d), addresses(workers, n, step)).view(count, n, d)
        errors.append((out.mean(1) - a.mean(1)).square().sum(1))
        sizes += out.square().sum((1, 2)) / n
    return torch.stack(errors), (sizes / len(errors)).sqrt()
