"""Exact selection of the k largest |v| of every row. Ties go to the lower index; NaN counts as largest.

Magnitudes are compared as integers: the bit pattern without its sign orders like the absolute value.
"""

from __future__ import annotations

import numba
import numpy as np
import torch
from numba import uint64
from torch import Tensor

from laconic.kernels.threads import over_rows

DIGIT = 12  # bits per pass of the radix selection
FEW = 24  # up to this k, a sorted list of the k largest beats counting


@numba.njit(cache=True, nogil=True)
def _threshold_few(row, mask, k, best):
    """The k-th largest magnitude and how many of those equal to it are among the k largest, by insertion."""
    filled = 0
    for j in range(len(row)):
        magnitude = uint64(row[j]) & mask
        if filled < k:
            place = filled
            filled += 1
        elif magnitude > best[k - 1]:
            place = k - 1
        else:
            continue
        while place > 0 and best[place - 1] < magnitude:
            best[place] = best[place - 1]
            place -= 1
        best[place] = magnitude
    equal = 0
    for place in range(k):
        equal += best[place] == best[k - 1]
    return best[k - 1], equal


@numba.njit(cache=True, nogil=True)
def _threshold_many(row, mask, width, k, pool, counts):
    """The same by radix: count the leading digit, keep the candidates of the digit where the k-th lies, go on."""
    size, shift, wanted = len(row), width - DIGIT, k
    for j in range(size):
        pool[j] = uint64(row[j]) & mask
    prefix = uint64(0)
    while True:
        counts[:] = 0
        for j in range(size):
            counts[(pool[j] >> uint64(shift)) & uint64((1 << DIGIT) - 1)] += 1
        digit = (1 << DIGIT) - 1
        while counts[digit] < wanted:
            wanted -= counts[digit]
            digit -= 1
        prefix |= uint64(digit) << uint64(shift)
        if shift == 0 or counts[digit] == size == wanted:
            break
        kept = 0
        for j in range(size):
            if (pool[j] >> uint64(shift)) & uint64((1 << DIGIT) - 1) == uint64(digit):
                pool[kept] = pool[j]
                kept += 1
        size, shift = kept, max(0, shift - DIGIT)
    if shift > 0:  # all that is left is among the k largest: the threshold is the least of them
        prefix = pool[0]
        for j in range(1, size):
            prefix = min(prefix, pool[j])
        wanted = 0
        for j in range(size):
            wanted += pool[j] == prefix
    return prefix, wanted


@numba.njit(cache=True, nogil=True)
def _largest(low, high, patterns, mask, width, k, out):
    d = patterns.shape[1]
    best = np.empty(max(1, k), np.uint64)
    pool = np.empty(d if k > FEW else 0, np.uint64)
    counts = np.empty(1 << DIGIT if k > FEW else 0, np.int64)
    for r in range(low, high):
        row = patterns[r]
        if k <= FEW:
            threshold, equal = _threshold_few(row, mask, k, best)
        else:
            threshold, equal = _threshold_many(row, mask, width, k, pool, counts)
        found = 0
        for j in range(d):
            magnitude = uint64(row[j]) & mask
            if magnitude > threshold:
                out[r, found] = j
                found += 1
            elif magnitude == threshold and equal > 0:
                out[r, found] = j
                found += 1
                equal -= 1
            if found == k:
                break


def largest(v: Tensor, k: int) -> Tensor:
    """Sorted positions of the k largest |v| of each row of v (rows, d), int64 of shape (rows, k); 0 <= k <= d."""
    if v.device.type != "cpu" or v.dtype not in (torch.float64, torch.float32):
        return largest_reference(v, k)
    rows, d = v.shape
    out = torch.empty(rows, k, dtype=torch.int64)
    if k == 0 or rows == 0:
        return out
    bits = 8 * v.element_size()
    patterns = v.contiguous().numpy().view(f"u{v.element_size()}")
    mask = np.uint64((1 << (bits - 1)) - 1)
    over_rows(_largest, rows, v.numel(), patterns, mask, bits, k, out.numpy())
    return out


def largest_reference(v: Tensor, k: int) -> Tensor:
    """`largest` in torch, for devices without a fast form."""
    magnitude = torch.where(torch.isnan(v), torch.inf, v.abs())
    order = torch.sort(magnitude, dim=1, descending=True, stable=True).indices
    return torch.sort(order[:, :k], dim=1).values
