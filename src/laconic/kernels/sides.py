"""Back from the means of both sides of zero: each coordinate becomes the mean of its side, column by column."""

from __future__ import annotations

import numba
import torch
from torch import Tensor

from laconic.kernels import memory
from laconic.kernels.threads import over_spans, span


@numba.njit(cache=True, nogil=True)
def _expand(low, high, codes, means, out):
    columns = means.shape[1]
    for piece in range(low, high):
        row, begin, end = span(piece, codes.shape[1])
        here, there = codes[row, begin:end], out[row, begin:end]
        if columns == 1:
            plus, minus = means[row, 0, 0], means[row, 0, 1]
            for j in range(len(here)):
                there[j] = minus if here[j] & 1 else plus
        else:
            column = begin % columns
            for j in range(len(here)):
                there[j] = means[row, column, here[j] & 1]
                column = column + 1 if column + 1 < columns else 0


def expand(codes: Tensor, means: Tensor, dtype: torch.dtype) -> Tensor:
    """means[row, j mod columns, code] of codes (rows, d), uint8, 0 for plus and 1 for minus, in a dtype: (rows, d).

    means (rows, columns, 2) is float64 or float32.
    """
    if dtype != means.dtype:
        return expand(codes, means, means.dtype).to(dtype)
    out = memory.empty(tuple(codes.shape), dtype)
    over_spans(_expand, *codes.shape, codes.contiguous().numpy(), means.contiguous().numpy(), out.numpy())
    return out
