"""Checks at the edges: zeros, the ends of the numbers, k >= d, and what must be refused."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import torch

from laconic.checks.trial import Trial, addresses, sent
from laconic.checks.vectors import extremes, normal
from laconic.core.compressor import Compressor, as_contractive, as_unbiased
from laconic.core.entry import Amount, Entry, parameters

STEPS = 12  # where all workers of a step draw the same, steps are what counts
ALL = 64  # a count above every d that it is tried on


def zeros(trial: Trial, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    """Nothing comes back as nothing, where something is claimed: an error of at most a share of 0."""
    if trial.compressor.claim(math.prod(shape), 4) is None:
        return
    v = torch.zeros((4, *shape), dtype=dtype)
    trial.expect(not sent(trial.compressor, v, addresses(4)).any(), "zeros do not decode to zeros")
    trial.expect(not sent(trial.compressor, -v, addresses(4)).any(), "zeros of sign - do not decode to zeros")


def ends(trial: Trial, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    """Denormals, and numbers near overflow: finite, and within the claim up to the smallest normal number."""
    d, info, n = math.prod(shape), torch.finfo(dtype), 8
    claim = trial.compressor.claim(d, n)
    omega, alpha = as_unbiased(claim), as_contractive(claim)
    # an unbiased compressor's values are up to 1 + omega times as large, and sums over d must be finite
    room = 4.0 * (1.0 + (omega or 0.0)) * d
    found = extremes(shape, dtype)
    x = torch.stack([values / room if "largest" in name else values for name, values in found.items()])
    keys = [addresses(np.tile(np.arange(n), len(x)), n, step) for step in range(STEPS)]
    rows = x.repeat_interleave(n, 0)
    came = torch.stack([sent(trial.compressor, rows, key) for key in keys]).double().view(STEPS, len(x), n, d)
    bound = None if claim is None else omega if omega is not None else 1.0 - (alpha or 0.0)
    for name, out, exact in zip(found, came.unbind(1), x.double().view(-1, d), strict=True):
        trial.place = f"{name}, shape {shape}, {dtype}"
        trial.expect(bool(torch.isfinite(out).all()), "what is decoded is not finite")
        if bound is None or "largest" in name:
            continue
        allowed = 1.0 + math.sqrt(bound)  # an unbiased one returns multiples of what it rounds
        error = float((out - exact).div(info.tiny).square().sum(2).mean()) ** 0.5
        most = 2.0 * math.sqrt(bound) * float(exact.div(info.tiny).norm()) + allowed * math.sqrt(d)
        trial.expect(error <= most, f"an error of {error:.3g} times the smallest normal number; {most:.3g} at most")


def refusals(trial: Trial, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    """NaN and infinities are refused by `compress`, with the row and the position."""
    for bad in (math.nan, math.inf, -math.inf):
        for row, position in ((0, 0), (3, math.prod(shape) - 1)):
            v = normal(shape, 5, "refused").to(dtype)
            v.view(5, -1)[row, position] = bad
            try:
                trial.compressor.compress(v, addresses(5))
            except ValueError as error:
                said = str(error)
                place = [str(int(index)) for index in torch.unravel_index(torch.tensor(position), shape)]
                named = str(row) in said and (str(position) in said or all(part in said for part in place))
                trial.expect(named, f"{bad} is refused without row {row} and position {position}: {said[:100]}")
            else:
                trial.fail(f"a vector with {bad} is compressed; ValueError must say where it is")


def everything(compressor: Compressor) -> list[Compressor]:
    """The compressor with each of its amounts, and those of its parts, above every d."""
    return [found for found in _replaced(compressor) if isinstance(found, Compressor)]


def _replaced(entry: Entry) -> list[Entry]:
    found: list[Entry] = []
    if not dataclasses.is_dataclass(entry):
        return found
    for parameter in parameters(type(entry)):
        value: Any = getattr(entry, parameter.name)
        if isinstance(parameter.range, Amount):
            found.append(dataclasses.replace(entry, **{parameter.name: ALL}))
        elif isinstance(value, Entry):
            found += [dataclasses.replace(entry, **{parameter.name: part}) for part in _replaced(value)]
    return found
