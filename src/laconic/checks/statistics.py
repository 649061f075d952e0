"""Means with intervals of confidence, from outcomes in groups that may share their draws."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np
import torch
from scipy.special import stdtrit
from torch import Tensor

from laconic.checks.trial import addresses, sent
from laconic.core.compressor import Compressor

LEVEL = 1e-9  # of each interval: thousands are looked at, and a false alarm should be unheard of
RARE = 20.7  # log(1 / LEVEL): an event of probability RARE / N is seen in N draws, up to LEVEL


@functools.cache
def quantile(groups: int) -> float:
    """Student's quantile for the mean of so many groups."""
    return -float(stdtrit(groups - 1, LEVEL))


@dataclass(frozen=True)
class Outcomes:
    """What came back of x (cases, d): means of each group (groups, cases, ...), a group being one step.

    `errors` of squared distances (groups, cases), `means` of what came back (groups, cases, d), `within` the variance
    of the squared distance inside groups (cases,), `sizes` the root mean square of what came back (cases,), `draws`
    how many rows a group has.
    """

    x: Tensor
    errors: Tensor
    means: Tensor
    within: Tensor
    sizes: Tensor
    draws: int

    @property
    def groups(self) -> int:
        """How many steps there are."""
        return self.errors.shape[0]

    @property
    def error(self) -> Tensor:
        """The mean squared distance of each case."""
        return self.errors.mean(0)

    @property
    def surely(self) -> Tensor:
        """What the mean squared distance of each case exceeds, but for a chance of LEVEL.

        Where anything is drawn, good outcomes too rare to be seen may make the mean smaller than it seems.
        """
        least = self.error - quantile(self.groups) * self.errors.std(0) / self.groups**0.5
        return least if self.fixed else least * max(0.0, 1.0 - RARE / self.independent)

    @property
    def fixed(self) -> bool:
        """Whether no draw changes anything."""
        return not bool(self.within.any()) and torch.equal(self.means, self.means[:1].expand_as(self.means))

    @property
    def independent(self) -> int:
        """How many independent draws there are: rows, or steps where rows of a step go together."""
        between = self.errors.var(0) * self.draws
        together = (between > 6.0 * self.within + 1e-18 * self.error**2) & (self.error > 0)
        shared = bool(together.any()) and self.draws > 1
        return self.groups if shared else self.groups * self.draws

    def bias(self, directions: Tensor) -> tuple[Tensor, Tensor]:
        """Of unit directions (cases, count, d): the mean of <direction, outcome - x>, and its interval's half-width."""
        along = torch.einsum("gcd,ckd->gck", self.means - self.x, directions)
        return along.mean(0), quantile(self.groups) * along.std(0) / self.groups**0.5


def outcomes(compressor: Compressor, x: Tensor, groups: int, draws: int, first: int = 0) -> Outcomes:
    """What comes back of x (cases, *shape) in `groups` steps from workers 0..draws-1 each, measured in float64."""
    cases, shape = x.shape[0], tuple(x.shape[1:])
    rows = x.repeat_interleave(draws, 0)
    workers = np.tile(np.arange(draws), cases)
    exact = x.double().reshape(cases, 1, -1)
    errors, means, squares, sizes = [], [], torch.zeros(cases, dtype=torch.float64), torch.zeros(cases)
    for step in range(first, first + groups):
        out = sent(compressor, rows, addresses(workers, draws, step)).double().view(cases, draws, -1)
        distances = (out - exact).square().sum(2)
        errors.append(distances.mean(1))
        squares += distances.var(1) if draws > 1 else 0.0
        means.append(out.mean(1))
        sizes = sizes + out.square().sum(2).mean(1)
    return Outcomes(
        exact[:, 0].reshape(cases, *([-1] if shape else [1])),
        torch.stack(errors),
        torch.stack(means),
        squares / groups,
        (sizes / groups).sqrt(),
        draws,
    )
