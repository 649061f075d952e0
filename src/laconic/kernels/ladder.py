"""Random rounding to any ascending levels, whose places are found by halving."""

from __future__ import annotations

import numba
import numpy as np
import torch
from numba import uint64
from torch import Tensor

from laconic.kernels.philox import word_pair
from laconic.kernels.threads import over_rows


@numba.njit(cache=True, nogil=True)
def _dither(low, high, v, scales, rungs, address, workers, out):
    """Coordinate j uses the worker's j-th word."""
    d, top = v.shape[1], len(rungs) - 1
    for row in range(low, high):
        scale = np.float64(scales[row, 0])
        if not scale > 0.0:  # zeros, or a vector that is not finite
            out[row, :] = 0
            continue
        for pair in range((d + 1) // 2):
            words = word_pair(address, workers[row], pair)
            for j in range(2 * pair, min(2 * pair + 2, d)):
                x = np.float64(v[row, j])
                y = abs(x) / scale
                below, above = 0, top
                while above - below > 1:
                    middle = (below + above) >> 1
                    if rungs[middle] <= y:
                        below = middle
                    else:
                        above = middle
                up = (words[j & 1] >> uint64(11)) * 2.0**-53 * (rungs[above] - rungs[below]) < y - rungs[below]
                level = above if up else below
                out[row, j] = 2 * level - 1 if x < 0.0 and level > 0 else 2 * level


def dither(v: Tensor, scales: Tensor, rungs: Tensor, address: np.ndarray, workers: np.ndarray) -> Tensor:
    """Zig-zag codes (0, -1, 1, -2, ... as 0, 1, 2, 3, ...) of v (rows, d) over scales (rows, 1) no smaller than it.

    |v| / scale goes to the rung above with the probability that keeps the mean. rungs is float64, from 0 to 1
    ascending, at most 128 of them; codes are uint8.
    """
    out = torch.empty(v.shape, dtype=torch.uint8)
    inputs = v.contiguous().numpy(), scales.contiguous().numpy(), rungs.numpy()
    over_rows(_dither, v.shape[0], 8 * v.numel(), *inputs, address, workers, out.numpy())
    return out
