"""Places in an endless row of permutations, one after the other, of which none is kept."""

from __future__ import annotations

import numba
import numpy as np
from numba import uint32, uint64

from laconic.kernels.philox import below
from laconic.kernels.threads import over_rows


@numba.njit(cache=True, nogil=True)
def _drawn(low, high, address, workers, counts, starts, out):
    """out[row, t] = the place starts[row] + t in worker row's permutations of 0..counts[row]-1, epoch by epoch.

    Epoch e is Fisher and Yates' permutation, from the bottom up, with the address (key, worker, step = e): only its
    first places are drawn.
    """
    order = np.empty(counts[low:high].max() if high > low else 0, np.int64)
    there = address.copy()
    for row in range(low, high):
        m, known = counts[row], np.int64(-1)
        made = 0
        for t in range(out.shape[1]):
            place = starts[row] + t
            epoch, within = place // m, place % m
            if epoch != known:
                there[2], there[3] = uint32(uint64(epoch) & uint64(0xFFFFFFFF)), uint32(uint64(epoch) >> uint64(32))
                for j in range(m):
                    order[j] = j
                made, known = 0, epoch
            while made <= within:
                other = made + np.int64(below(there, workers[row], made, m - made))
                order[made], order[other] = order[other], order[made]
                made += 1
            out[row, t] = order[within]


def drawn(address: np.ndarray, workers: np.ndarray, counts: np.ndarray, starts: np.ndarray, size: int) -> np.ndarray:
    """`size` terms of each worker from a place in its permutations on, int64 of shape (workers, size).

    The address's step is not looked at: epochs take its place.
    """
    out = np.empty((len(workers), size), dtype=np.int64)
    over_rows(_drawn, len(workers), int(counts.sum()) + out.size, address, workers, counts, starts, out)
    return out
