"""Sums with a fixed order: scatter and fold of decoded rows, dot products and norms of a batch of rows.

The torch forms serve devices without a fast form; they give the same bits, since every sum has one defined order:
folds add row after row; a dot product has LANES partial sums (lane j adds the products j, j + LANES, ...) that are
then added from lane 0 up.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numba
import numpy as np
import torch
from torch import Tensor

from laconic.kernels import memory
from laconic.kernels.threads import compiled_for, over_rows, over_spans, span

LANES = 8


@numba.njit(cache=True, nogil=True)
def _scatter_rows(low, high, indices, values, offsets, rows, scale, target, outside):
    """Adds what lies inside; positions may come from another machine, and `outside` says whether any was not one."""
    d = target.shape[1]
    for r in range(low, high):
        row = rows[r]
        for j in range(offsets[r], offsets[r + 1]):
            if 0 <= indices[j] < d:
                target[row, indices[j]] += scale * values[j]
            else:
                outside[0] = True


def _refuse(outside: np.ndarray, d: int) -> None:
    if outside[0]:
        raise ValueError(f"a decoded position is not in 0..{d - 1}: the message cannot be what it should be")


@numba.njit(cache=True, nogil=True)
def _fold_rows(low, high, values, scale, target):
    for r in range(values.shape[0]):
        for j in range(low, high):
            target[j] += scale * values[r, j]


@numba.njit(inline="always")
def product(a, b):
    """<a, b> of two rows, in the order that this module gives dot products."""
    d = len(a)
    whole = d - d % LANES
    s0 = s1 = s2 = s3 = s4 = s5 = s6 = s7 = a.dtype.type(0.0)
    for j in range(0, whole, LANES):
        s0 += a[j] * b[j]
        s1 += a[j + 1] * b[j + 1]
        s2 += a[j + 2] * b[j + 2]
        s3 += a[j + 3] * b[j + 3]
        s4 += a[j + 4] * b[j + 4]
        s5 += a[j + 5] * b[j + 5]
        s6 += a[j + 6] * b[j + 6]
        s7 += a[j + 7] * b[j + 7]
    lanes = (s0, s1, s2, s3, s4, s5, s6, s7)
    total = a.dtype.type(0.0)
    for lane in range(LANES):
        part = lanes[lane]
        if whole + lane < d:
            part += a[whole + lane] * b[whole + lane]
        total += part
    return total


@numba.njit(inline="always")
def apart(a, b, out):
    """out = a - b, and `product(out, out)`, in one pass."""
    d = len(a)
    whole = d - d % LANES
    s0 = s1 = s2 = s3 = s4 = s5 = s6 = s7 = a.dtype.type(0.0)
    for j in range(0, whole, LANES):
        c0, c1, c2, c3 = a[j] - b[j], a[j + 1] - b[j + 1], a[j + 2] - b[j + 2], a[j + 3] - b[j + 3]
        c4, c5, c6, c7 = a[j + 4] - b[j + 4], a[j + 5] - b[j + 5], a[j + 6] - b[j + 6], a[j + 7] - b[j + 7]
        out[j], out[j + 1], out[j + 2], out[j + 3] = c0, c1, c2, c3
        out[j + 4], out[j + 5], out[j + 6], out[j + 7] = c4, c5, c6, c7
        s0 += c0 * c0
        s1 += c1 * c1
        s2 += c2 * c2
        s3 += c3 * c3
        s4 += c4 * c4
        s5 += c5 * c5
        s6 += c6 * c6
        s7 += c7 * c7
    lanes = (s0, s1, s2, s3, s4, s5, s6, s7)
    total = a.dtype.type(0.0)
    for lane in range(LANES):
        part = lanes[lane]
        if whole + lane < d:
            out[whole + lane] = a[whole + lane] - b[whole + lane]
            part += out[whole + lane] * out[whole + lane]
        total += part
    return total


@numba.njit(cache=True, nogil=True)
def _dots(low, high, a, b, out):
    for r in range(low, high):
        out[r] = product(a[r], b[r])


def _numpy(tensor: Tensor) -> np.ndarray:
    return tensor.detach().numpy()


def combined(v: Tensor, other: Tensor, sign: int) -> Tensor:
    """v + other, or v - other where the sign is -1, as a fresh tensor; v is on the CPU."""
    return torch.add(v, other, alpha=sign, out=memory.empty(tuple(v.shape), v.dtype))  # a factor of -1 is exact


def scatter_rows(
    indices: Tensor, values: Tensor, offsets: np.ndarray, rows: np.ndarray, scale: float, target: Tensor
) -> None:
    """target[rows[r], indices] += scale * values for every row r of a ragged batch; target is (local, d), in place.

    Raises ValueError where an index is not in 0..d-1.
    """
    if not compiled_for(target):
        lengths = torch.from_numpy(np.diff(offsets)).to(target.device)
        where = torch.repeat_interleave(torch.from_numpy(rows).to(target.device), lengths)
        target.index_put_((where, indices), scale * values, accumulate=True)
        return
    factor, outside = _numpy(target).dtype.type(scale), np.zeros(1, dtype=np.bool_)
    arrays = _numpy(indices), _numpy(values), offsets, rows, factor, _numpy(target), outside
    over_rows(_scatter_rows, len(rows), 4 * len(values), *arrays)
    _refuse(outside, target.shape[1])


def fold_sparse(indices: Tensor, values: Tensor, scale: float, target: Tensor) -> None:
    """target[indices[j]] += scale * values[j] for j in order; target is (d,), written in place."""
    if not compiled_for(target):
        target.index_put_((indices,), scale * values, accumulate=True)
        return
    ends, row = np.array([0, len(values)]), np.zeros(1, dtype=np.int64)
    factor, outside = _numpy(target).dtype.type(scale), np.zeros(1, dtype=np.bool_)
    _scatter_rows(0, 1, _numpy(indices), _numpy(values), ends, row, factor, _numpy(target).reshape(1, -1), outside)
    _refuse(outside, len(target))


Pair = tuple[Tensor, Tensor]  # positions and values of a vector's numbers that are not zero


@dataclass(frozen=True)
class Heard:
    """Sparse vectors, and what their sum is multiplied by."""

    pairs: Sequence[Pair]
    scale: float


def _in_one_pass(kernel: Callable[..., None], pairs: Sequence[Pair], scale: float, v: Tensor, other: Tensor) -> bool:
    """Runs the kernel on all pairs, joined, if it can: it finds those of a span by bisection."""
    d = v.shape[1]
    if not compiled_for(v) or any(values.dtype != v.dtype for _, values in pairs):
        return False
    arrays = [(_numpy(where), _numpy(values)) for where, values in pairs]
    if not all(_ascends(where, d) for where, _ in arrays):
        return False
    ends = np.cumsum([0, *(len(where) for where, _ in arrays)])
    indices, values = (np.concatenate([pair[side] for pair in arrays]) for side in (0, 1))
    over_spans(kernel, 1, d, indices, values, ends, values.dtype.type(scale), _numpy(v), _numpy(other))
    return True


@numba.njit(cache=True, nogil=True)
def _ascends(where, d):
    """Whether these are positions in 0..d-1, each after the one before."""
    before = -1
    for j in range(len(where)):
        if where[j] <= before:
            return False
        before = where[j]
    return before < d


@numba.njit(inline="always")
def _add_inside(where, values, scale, begin, target):
    """target[where - begin] += scale * values, as far as positions, which ascend, lie inside."""
    first = np.searchsorted(where, begin)
    last = first + np.searchsorted(where[first : first + len(target)], begin + len(target))
    for i in range(first, last):
        target[where[i] - begin] += scale * values[i]


@numba.njit(cache=True, nogil=True)
def _settle(low, high, indices, values, ends, scale, v, error):
    d, minus = v.shape[1], -v.dtype.type(1.0)
    for piece in range(low, high):
        row, begin, end = span(piece, d)
        mean, owed = v[row, begin:end], error[row, begin:end]
        for j in range(len(mean)):
            owed[j] += mean[j]
        _add_inside(indices[: ends[1]], values[: ends[1]], minus, begin, owed)
        mean[:] = 0.0
        for part in range(1, len(ends) - 1):
            here = slice(ends[part], ends[part + 1])
            _add_inside(indices[here], values[here], scale, begin, mean)


def settle(own: Pair, heard: Heard, v: Tensor, error: Tensor) -> bool:
    """error += v - own and v = the scaled sum of what was heard, in place and in one pass; v and error are (1, d).

    The bits are those of the passes one by one. False, and nothing is written, where the positions of a pair do not
    ascend within 0..d-1, or there is no fast form.
    """
    return _in_one_pass(_settle, [own, *heard.pairs], heard.scale, v, error)


@numba.njit(cache=True, nogil=True)
def _renew(low, high, indices, values, ends, scale, v, estimate):
    d = v.shape[1]
    for piece in range(low, high):
        row, begin, end = span(piece, d)
        kept = estimate[row, begin:end]
        for part in range(len(ends) - 1):
            here = slice(ends[part], ends[part + 1])
            _add_inside(indices[here], values[here], scale, begin, kept)
        v[row, begin:end] = kept


def renew(heard: Heard, estimate: Tensor, v: Tensor) -> bool:
    """estimate += the scaled sum of what was heard and v = estimate, in place and in one pass; both are (1, d).

    Bits, and what False means, as of `settle`.
    """
    return _in_one_pass(_renew, heard.pairs, heard.scale, v, estimate)


def fold_dense(values: Tensor, scale: float, target: Tensor) -> None:
    """target += scale * values[r] for r in order; values is (rows, d), target (d,), written in place."""
    if not compiled_for(target):
        for row in values:
            target.add_(scale * row)
        return
    factor = _numpy(target).dtype.type(scale)
    over_rows(_fold_rows, values.shape[1], values.numel(), _numpy(values), factor, _numpy(target))


def dots(a: Tensor, b: Tensor) -> Tensor:
    """Row-wise dot products of two (rows, d) tensors, shape (rows,); a row's bits do not depend on its neighbours."""
    if not compiled_for(a):
        return dots_reference(a, b)
    out = torch.empty(a.shape[0], dtype=a.dtype)
    over_rows(_dots, a.shape[0], a.numel(), _numpy(a), _numpy(b), _numpy(out))
    return out


def dots_reference(a: Tensor, b: Tensor) -> Tensor:
    """`dots` in torch: the definition of the order."""
    rows, d = a.shape
    products = torch.zeros(rows, -(-d // LANES) * LANES, dtype=a.dtype, device=a.device)
    products[:, :d] = a * b
    lanes = torch.zeros(rows, LANES, dtype=a.dtype, device=a.device)
    for chunk in products.view(rows, products.shape[1] // LANES, LANES).unbind(1):
        lanes = lanes + chunk
    total = torch.zeros(rows, dtype=a.dtype, device=a.device)
    for lane in lanes.unbind(1):
        total = total + lane
    return total
