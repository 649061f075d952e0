"""The numbers that vectors are made of: which dtypes there are, and in which one their scales and sums are kept."""

from __future__ import annotations

import math

import torch
from torch import Tensor

WIDE = {torch.float64: torch.float64, torch.float32: torch.float32, torch.bfloat16: torch.float32}


def wide(dtype: torch.dtype) -> torch.dtype:
    """The dtype that arithmetic on vectors of a dtype is done in, and that their norms and scales travel in.

    Raises ValueError for a dtype that vectors cannot have.

    >>> wide(torch.bfloat16)
    torch.float32
    """
    if dtype not in WIDE:
        names = ", ".join(str(known) for known in WIDE)
        raise ValueError(f"a vector of {dtype} : its dtype must be one of {names}; convert it first")
    return WIDE[dtype]


def finite(v: Tensor) -> bool:
    """Whether every number of a vector is finite.

    >>> finite(torch.tensor([1.0, float("inf")]))
    False
    """
    v = v.detach()
    if math.isfinite(float(v.sum())):  # one that is not makes the sum so, and nothing reads memory faster
        return True
    return bool(v.isfinite().all())  # a sum of large numbers may leave the range as well
