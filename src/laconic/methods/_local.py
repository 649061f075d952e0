"""What methods with local steps share: walks of workers, cohorts, and the theorem about means of local solvers."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from laconic.core.entry import Entry, Source
from laconic.core.estimator import Estimate, Estimator
from laconic.core.link import Cohort, Link
from laconic.core.problem import Oracles
from laconic.core.rows import square
from laconic.core.state import put, take
from laconic.core.theory import Guarantee, NoTheorem, Setting, Snapshot, Terms, estimates, known
from laconic.estimators.full import FullGradient
from laconic.estimators.sgd import SGD

# ---- what workers do -------------------------------------------------------------------------------------------------


def walk(
    first: Estimate,
    x: Tensor,
    steps: int,
    step: float,
    estimator: Estimator,
    oracles: Oracles,
    link: Link,
    shift: Tensor | float = 0.0,
) -> tuple[Tensor, Any]:
    """The sum of v_h + shift over `steps` steps y_h+1 = y_h - step (v_h + shift) from y_0 = x, and what is kept.

    v_0 is `first`, the estimate at x; shape (local, *shape). The workers end at x - step times the sum.
    """
    y, estimate, total = x, first, first.v + shift
    moved = total
    for _ in range(steps - 1):
        y = y - step * moved
        estimate = estimator.estimate(y, estimate.state, oracles, link)
        moved = estimate.v + shift
        total = total + moved
    return total, estimate.state


def first_memory(estimator: Estimator, x: Tensor, oracles: Oracles, link: Link) -> Any:
    """What an estimator keeps before its first estimate. Full gradients and minibatches keep and ask nothing."""
    if isinstance(estimator, (FullGradient, SGD)):
        return None
    return estimator.init(x, oracles, link.scope("estimator")).state


def walk_among(
    who: Cohort,
    x: Tensor,
    kept: Any,
    steps: int,
    step: float,
    estimator: Estimator,
    oracles: Oracles,
    link: Link,
    shift: Tensor | float = 0.0,
) -> tuple[Tensor, Any]:
    """`walk` of a cohort, (its rows, *shape), and what all workers keep."""
    oracles, link = oracles.among(who.rows), link.among(who).scope("estimator")
    first = estimator.estimate(x, take(kept, who.rows), oracles, link)
    total, part = walk(first, x, steps, step, estimator, oracles, link, shift)
    return total, put(kept, who.rows, part)


def cohort_of(entry: Entry, cohort: int | None, n: int) -> int:
    """How many workers take part; None is all. Raises ValueError where there are not as many."""
    if cohort is not None and cohort > n:
        raise ValueError(
            f"{type(entry).__name__}(cohort={cohort}) : the problem has {n} workers; cohort must not exceed them"
        )
    return n if cohort is None else cohort


def terms_of(who: Cohort, oracles: Oracles, like: Tensor) -> Tensor:
    """How many terms each worker of a cohort has, (its rows,)."""
    return torch.from_numpy(np.asarray(oracles.terms())[who.rows]).to(like.dtype)


# ---- averages of local solvers ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Solver:
    """What is known of the maps T_i from x to where worker i ends.

    Attributes
    ----------
    keep : ||T_i(x) - T_i(x*)|| <= keep ||x - x*||.
    away : the root mean square over i of ||T_i(x*) - x*||, at most.
    bias : ||mean T_i(x*) - x*||, at most.
    """

    keep: float
    away: float
    bias: float


def averaged(solver: Solver, n: int, cohort: int, server_step: float) -> tuple[float, float]:
    """Rate and plateau of E||x - x*||^2 under x+ = x + server_step (mean over a random cohort of T_i(x) - x).

    With r = ||x - x*||, q = keep and c = (n - cohort) / (cohort (n - 1)), the variance of the mean over a cohort being
    c times that over workers: E||mean_S T_i(x) - x*||^2 = (1 - c) ||mean T_i(x) - x*||^2 + c mean ||T_i(x) - x*||^2 <=
    (1 - c) (q r + bias)^2 + c mean (q r + away_i)^2, and (q r + a)^2 <= q r^2 + a^2 / (1 - q). A server step <= 1 is
    a convex combination with x.
    """
    spread = (n - cohort) / (cohort * (n - 1.0)) if n > 1 else 0.0
    floor = (1.0 - spread) * solver.bias**2 + spread * solver.away**2
    left = 1.0 - solver.keep
    if floor == 0.0:
        return (1.0 - server_step * left) ** 2, 0.0
    return 1.0 - server_step * left, floor / left**2


def descent_solver(smooth: float, mu: float, sigma: float, steps: int, step: float) -> Solver:
    """`steps` gradient steps on mu-strongly convex, smooth f_i, step <= 1 / smooth; sigma as `Constants.sigma_star`.

    Gradients never grow along the way, so that the h-th point is at most h step ||grad f_i(x*)|| from x*, and the
    gradients there differ from those at x*, whose mean is zero, by at most `smooth` times that.
    """
    keep = (1.0 - step * mu) ** steps
    return Solver(keep, step * steps * sigma, 0.5 * steps * (steps - 1) * step**2 * smooth * sigma)


def weighted(solver: Solver, ratio: float) -> Solver:
    """The same under weights w_i of which the largest is `ratio` times the smallest, in the mean over all workers.

    |n w_i - 1| <= ratio - 1, which is what the h-th gradients at x* no longer cancel by; everything else is at most
    `ratio` times as large. Over a cohort of any size, sum w_i (q r + away_i)^2 <= q r^2 + ratio away^2 / (1 - q).
    """
    if ratio == 1.0:
        return solver
    away = math.sqrt(ratio) * solver.away
    return Solver(solver.keep, away, min(away, (ratio - 1.0) * solver.away + ratio * solver.bias))


def largest_step(smooth: float, steps: int) -> float:
    """min(1 / (4 L), 1 / (8 L (steps - 1)))."""
    return 1.0 / (4.0 * smooth * max(1.0, 2.0 * (steps - 1)))


def local_promise(
    entry: Entry,
    source: Source,
    setting: Setting,
    estimator: Estimator,
    steps: int,
    step: float | None,
    cohort: int,
    server_step: float,
    ratio: float = 1.0,
) -> Guarantee:
    """What averages of local gradient descent promise; see `averaged` and `weighted`. Raises NoTheorem.

    `ratio` is that of the largest weight in the averages to the smallest.
    """
    if not setting.convex:
        raise NoTheorem(f"the theorem of {entry} needs convex f_i; give an explicit step")
    if not estimator.unbiased:
        raise NoTheorem(f"the theorem of {entry} needs unbiased gradients, not {estimator}; give an explicit step")
    if server_step > 1.0:
        raise NoTheorem(f"the theorem of {entry} needs server_step <= 1; give an explicit step")
    c = setting.constants
    (smooth,) = known(L_max=c.L_max) if estimator.exact else known(L_sample=c.L_sample)
    largest = largest_step(smooth, steps)
    bare = Guarantee(
        largest,
        source,
        plateau=math.inf,
        assumes=("f_i convex and smooth", "in the limit not x*, but a floor that grows with the step"),
        sure=False,
        leans_on=estimates(L_max=c.L_max, L_sample=None if estimator.exact else c.L_sample),
    )
    mu, sigma = c.mu_workers, c.sigma_star
    if not estimator.exact or mu is None or sigma is None or float(mu) <= 0.0:
        return bare
    used = min(largest if step is None else step, 1.0 / smooth)
    solver = weighted(descent_solver(smooth, float(mu), float(sigma), steps, used), ratio)
    apart = cohort == setting.n or ratio == 1.0  # the mean over a cohort is that of equal weights, or over all
    rate, plateau = averaged(solver, setting.n, cohort if apart else 1, server_step)
    assumes = ("f_i strongly convex and smooth", "in the limit a ball around x*, not x*")
    return Guarantee(
        largest,
        source,
        rate,
        distance,
        plateau,
        0.5 * float(c.L),
        assumes,
        sure=False,
        leans_on=estimates(L_max=c.L_max, mu_workers=mu, sigma_star=sigma),
    ).at(step)


def distance(snapshot: Snapshot) -> Terms:
    """||x - x*||^2."""
    return Terms(square(snapshot.x - snapshot.solution.x))
