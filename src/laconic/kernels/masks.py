"""Masks of coordinates: by coins, or by magnitude; and the coordinates that they keep, in order."""

from __future__ import annotations

import numba
import numpy as np
import torch
from numba import uint64
from torch import Tensor

from laconic.kernels import memory
from laconic.kernels.philox import BUFFER, halves
from laconic.kernels.threads import SPAN, over_spans, span

NEAR = 1 << 11  # coordinates that are read twice while they are in the nearest cache


@numba.njit(cache=True, nogil=True)
def _coins(low, high, address, workers, bound, out):
    buffer = np.empty(BUFFER, np.uint32)
    words = buffer.view(np.uint64)
    for piece in range(low, high):
        row, begin, end = span(piece, out.shape[1])
        for start in range(begin, end, len(words)):
            there = out[row, start : min(start + len(words), end)]
            halves(address, workers[row], start // 2, buffer[: (len(there) + 1) // 2 * 4])
            for j in range(len(there)):
                there[j] = (words[j] >> uint64(11)) < bound


def coins(probability: float, address: np.ndarray, workers: np.ndarray, d: int) -> Tensor:
    """Whether each worker's j-th uniform number, of 53 bits, is below the probability: bool of shape (rows, d)."""
    out = memory.empty((len(workers), d), torch.bool)
    bound = np.uint64(np.ceil(probability * 2.0**53))
    over_spans(_coins, len(workers), d, address, workers, bound, out.numpy())
    return out


@numba.njit(cache=True, nogil=True)
def _at_least(low, high, v, least, out):
    for piece in range(low, high):
        row, begin, end = span(piece, v.shape[1])
        here, there, bound = v[row, begin:end], out[row, begin:end], least[row]
        for j in range(len(here)):
            there[j] = abs(np.float64(here[j])) >= bound


def at_least(v: Tensor, least: Tensor) -> Tensor:
    """Whether magnitudes of v (rows, d), float64 or float32, are at least their row's number, float64: bool."""
    out = memory.empty(tuple(v.shape), torch.bool)
    over_spans(_at_least, *v.shape, v.contiguous().numpy(), least.numpy(), out.numpy())
    return out


@numba.njit(cache=True, nogil=True)
def _count(low, high, mask, counts):
    for piece in range(low, high):
        row, begin, end = span(piece, mask.shape[1])
        here, count = mask[row, begin:end], 0
        for j in range(len(here)):
            count += here[j]
        counts[row, piece % counts.shape[1]] = count


@numba.njit(cache=True, nogil=True)
def _positions(low, high, mask, starts, out):
    found = np.empty(NEAR + 1, np.int32)
    for piece in range(low, high):
        row, begin, end = span(piece, mask.shape[1])
        place = starts[row, piece % starts.shape[1]]
        for start in range(begin, end, NEAR):
            here, count = mask[row, start : min(start + NEAR, end)], 0
            for j in range(len(here)):  # no branch: whether one is kept cannot be foreseen
                found[count] = j
                count += here[j]
            for i in range(count):
                out[place + i] = start + found[i]
            place += count


def counts(mask: Tensor) -> np.ndarray:
    """How many a mask (rows, d) keeps in each span of each row, int64 of shape (rows, spans)."""
    out = np.zeros((mask.shape[0], -(-mask.shape[1] // SPAN)), dtype=np.int64)
    over_spans(_count, *mask.shape, mask.contiguous().numpy().view(np.uint8), out)
    return out


def positions(mask: Tensor) -> tuple[Tensor, Tensor]:
    """The coordinates that each row of a mask (rows, d) keeps, row after row, and how many those are: int64."""
    numbers = counts(mask)
    ends = np.cumsum(numbers.reshape(-1))
    out = memory.empty((int(ends[-1]) if len(ends) else 0,), torch.int64)
    starts = (ends - numbers.reshape(-1)).reshape(numbers.shape)
    over_spans(_positions, *mask.shape, mask.contiguous().numpy().view(np.uint8), starts, out.numpy())
    return out, torch.from_numpy(numbers.sum(1))


def kept(v: Tensor, positions: Tensor, numbers: Tensor) -> Tensor:
    """The values of v (rows, d) at the positions, so many of each row."""
    if v.shape[0] != 1:
        positions = positions + v.shape[1] * torch.repeat_interleave(numbers)
    return v.reshape(-1).index_select(0, positions)
