"""Sums of numbers near the end of a dtype's range: how they stay finite, and how they are cut to it."""

from __future__ import annotations

import torch
from torch import Tensor

LARGE = 2.0**900
DOWN = 2.0**-200  # a power of two: scaling by it rounds nothing of a row whose largest magnitude is so large


def headroom(x: Tensor) -> Tensor:
    """A factor per row of x (rows, ...) in float64 under which no sum overflows, (rows, 1): 1 for ordinary rows."""
    flat = x.reshape(x.shape[0], -1) if x.numel() else x.new_zeros(x.shape[0], 1)
    large = flat.abs().amax(1, keepdim=True).to(torch.float64) > LARGE
    return torch.ones(large.shape, dtype=torch.float64).masked_fill_(large, DOWN)


def fit(x: Tensor, dtype: torch.dtype) -> Tensor:
    """x (float64) in a dtype, magnitudes cut at its largest finite number."""
    most = torch.finfo(dtype).max
    return x.clamp(-most, most).to(dtype)
