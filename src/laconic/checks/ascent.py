"""Vectors found by ascent on the ratio E||C(x) - x||^2 / ||x||^2: what the cases do not think of."""

from __future__ import annotations

import math
import time

import torch
from torch import Tensor

from laconic.checks.claims import Budget, claim_holds
from laconic.checks.trial import Trial, addresses, sent
from laconic.checks.vectors import cases, normal

STARTS, WIDTH = 3, 0.03
REACHES = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0)


class _Ratio:
    """The mean of ||C(x) - x||^2 / ||x||^2 over the same draws for every x: differences are those of x alone."""

    def __init__(self, trial: Trial, shape: tuple[int, ...], steps: int, workers: int) -> None:
        self.trial, self.shape, self.steps, self.workers = trial, shape, steps, workers

    def __call__(self, x: Tensor) -> Tensor:
        """Of each row of x (rows, d), whose norms are 1."""
        rows = x.repeat_interleave(self.workers, 0)
        numbers = torch.arange(self.workers).repeat(x.shape[0]).numpy()
        total = torch.zeros(len(rows), dtype=x.dtype)
        for step in range(self.steps):
            keys = addresses(numbers, self.workers, step)
            out = sent(self.trial.compressor, rows.view(-1, *self.shape), keys).view(rows.shape)
            total += (out - rows).square().sum(1)
        return (total / self.steps).view(-1, self.workers).mean(1)


def _unit(x: Tensor) -> Tensor:
    return x / x.norm(dim=-1, keepdim=True).clamp(min=1e-300)


def ascend(trial: Trial, shape: tuple[int, ...], rounds: int, seconds: float) -> Tensor:
    """The worst vectors found (STARTS, *shape), from the worst of the cases."""
    d = math.prod(shape)
    known = _unit(torch.stack(list(cases(shape).values())).view(-1, d))
    one = _Ratio(trial, shape, 1, 1)
    twice = sent(trial.compressor, known.repeat(2, 1).view(-1, *shape), addresses(2 * len(known), None, 3))
    drawn = not torch.equal(*twice.view(2, len(known), d))
    began = time.process_time()
    ratio = _Ratio(trial, shape, 6, 8) if drawn else one
    values = ratio(known)
    if time.process_time() - began > seconds / 3:  # a slow one: noisier slopes, and as much judgement afterwards
        ratio = _Ratio(trial, shape, 2, 2) if drawn else one
    best = known[values.topk(STARTS).indices]
    jumps = normal((d,), rounds * STARTS * len(REACHES), f"jumps of {d}")
    for turn in range(rounds):
        candidates = torch.cat([best[:, None], _along(best, _slope(ratio, best)), _jumps(best, jumps, turn)], 1)
        values = ratio(candidates.view(-1, d)).view(STARTS, -1)
        best = candidates[torch.arange(STARTS), values.argmax(1)]
        if time.process_time() - began > seconds:
            break
    return best.view(STARTS, *shape)


def _slope(ratio: _Ratio, best: Tensor) -> Tensor:
    """Central differences of the ratio at each row of best."""
    count, d = best.shape
    width = WIDTH * best.abs().clamp(min=0.1 / math.sqrt(d))
    moves = torch.diag_embed(width)
    around = torch.cat([best[:, None] + moves, best[:, None] - moves], 1)
    values = ratio(_unit(around).view(-1, d)).view(count, 2, d)
    return (values[:, 0] - values[:, 1]) / (2 * width)


def _along(best: Tensor, slope: Tensor) -> Tensor:
    """Points along the slope, (STARTS, len(REACHES), d)."""
    direction = _unit(slope)
    return _unit(torch.stack([best + reach * direction for reach in REACHES], 1))


def _jumps(best: Tensor, jumps: Tensor, turn: int) -> Tensor:
    """Points near by in random directions, for where the slope is nothing or noise: every other one moves few."""
    count, d = best.shape
    some = jumps[turn * count * len(REACHES) :][: count * len(REACHES)].view(count, len(REACHES), d)
    few = torch.where(some.abs() > 1.2, some, 0.0)
    moves = torch.where((torch.arange(len(REACHES)) % 2 == 0)[:, None], some, few) / math.sqrt(d)
    return _unit(best[:, None] + torch.tensor(REACHES, dtype=best.dtype)[:, None] * moves)


def worst_found(trial: Trial, shape: tuple[int, ...], rounds: int, seconds: float, budget: Budget) -> None:
    """The claim on vectors found by ascent, judged with draws that the ascent has not seen."""
    if trial.compressor.claim(math.prod(shape), 4) is None:
        return
    x = ascend(trial, shape, rounds, seconds)
    claim_holds(trial, [f"found by ascent {1 + row}" for row in range(len(x))], x, budget)
