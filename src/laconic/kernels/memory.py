"""Large fresh tensors without fresh pages: memory that nobody holds any more is handed out again.

The operating system clears every page of a large allocation when it is first touched, which can cost as much as
computing what is written there. Each of these tensors gives its memory back when its last reference goes.
"""

from __future__ import annotations

import math
from collections import defaultdict
from typing import Any

import numpy as np
import torch
from torch import Tensor

LARGE = 1 << 19  # bytes from which it pays
KEPT = 2  # free pieces of one size that are kept

_free: defaultdict[int, list[np.ndarray]] = defaultdict(list)


class _Lease:
    """A piece of memory in use; arrays made of it hold it, and its end is theirs."""

    def __init__(self, nbytes: int) -> None:
        pieces = _free[nbytes]
        self.piece = pieces.pop() if pieces else np.empty(nbytes, dtype=np.uint8)

    @property
    def __array_interface__(self) -> dict[str, Any]:
        return self.piece.__array_interface__

    def __del__(self) -> None:
        pieces = _free[self.piece.nbytes]
        if len(pieces) < KEPT:
            pieces.append(self.piece)


def empty(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """A CPU tensor with undefined contents, like `torch.empty`.

    >>> empty((3, 2), torch.float64).shape
    torch.Size([3, 2])
    """
    nbytes = math.prod(shape) * dtype.itemsize
    if nbytes < LARGE:
        return torch.empty(shape, dtype=dtype)
    return torch.from_numpy(np.asarray(_Lease(nbytes))).view(dtype).view(shape)


def gathered(v: Tensor, rows: Tensor) -> Tensor:
    """v[rows] of a CPU tensor."""
    return torch.index_select(v, 0, rows, out=empty((len(rows), *v.shape[1:]), v.dtype))


def copied(v: Tensor) -> Tensor:
    """A copy of a CPU tensor."""
    return empty(tuple(v.shape), v.dtype).copy_(v)
