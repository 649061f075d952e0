"""Fused kernels of linear models on sparse rows (CSR): values, gradients, Hessians and products, worker by worker.

A worker's rows lie at `starts[w] .. starts[w + 1]` of one CSR matrix (`indptr`, `indices`, `values`) and are added in
that order by one thread, so a worker's result has the same bits whatever shares its batch. Where all entries are 1, as
in many data sets, `values` may be empty. `x` is (1, d) for one point for all, or (rows, d). The loss of a row is a
function of s = <a, x> and its label: LOGISTIC log(1 + exp(-label s)), SQUARES (s - label)^2 / 2, or SIGMOID
1 / (1 + exp(label s))^2. Every f_i also has l2 / 2 ||x||^2 + nonconvex sum_j x_j^2 / (1 + x_j^2).
"""

from __future__ import annotations

import math

import numba
import numpy as np
from numba import uint32, uint64

from laconic.kernels.fold import apart

LOGISTIC, SQUARES, SIGMOID = 0, 1, 2
ROWS = 256  # rows whose inner products are taken before their slopes are, so that neither waits for the other
LOG2_E, SHIFT = 1.4426950408889634, 6755399441055744.0  # 1.5 * 2^52
LN2_HIGH, LN2_LOW = 6.93147180369123816490e-01, 1.90821492927058770002e-10  # the first has trailing zeros
FAR = 708.0  # exp(-708) is the last normal power; beyond it stands 0
SMALL_MOVE = 1e-3  # below it the series of the logistic divergence is the more accurate form


@numba.njit(inline="always")
def _entry(values, k):
    """Entry k of the matrix; an empty array stands for ones, which halves and more what must be read."""
    return values[k] if len(values) else 1.0


@numba.njit(inline="always")
def _dot(indptr, indices, values, row, x, point):
    total = 0.0
    for k in range(uint64(indptr[row]), uint64(indptr[row + 1])):
        total += _entry(values, k) * x[point, uint32(indices[k])]  # unsigned: no test for negative indices
    return total


@numba.njit
def _sigmoid(z):
    e = math.exp(-abs(z))
    return (1.0 if z >= 0.0 else e) / (1.0 + e)


@numba.njit(inline="always")
def _sigmoids(z, count, shifted, power):
    """z[t] <- 1 / (1 + exp(-z[t])) for t < count, in loops that compilers turn into vector instructions.

    exp(-|z|) = 2^k exp(r) with |r| <= ln(2) / 2, by Taylor's polynomial of degree 13 (error below one unit in the last
    place); adding SHIFT rounds to the integer k and leaves it in the low bits. `shifted` and `power` are scratch.
    """
    for t in range(count):
        x = -min(abs(z[t]), FAR)
        shifted[t] = x * LOG2_E + SHIFT
        k = shifted[t] - SHIFT
        r = (x - k * LN2_HIGH) - k * LN2_LOW
        p = 1.0 / 6227020800.0
        p = p * r + 1.0 / 479001600.0
        p = p * r + 1.0 / 39916800.0
        p = p * r + 1.0 / 3628800.0
        p = p * r + 1.0 / 362880.0
        p = p * r + 1.0 / 40320.0
        p = p * r + 1.0 / 5040.0
        p = p * r + 1.0 / 720.0
        p = p * r + 1.0 / 120.0
        p = p * r + 1.0 / 24.0
        p = p * r + 1.0 / 6.0
        p = p * r + 0.5
        p = p * r + 1.0
        power[t] = p * r + 1.0
    bits, exponents = power.view(np.int64), shifted.view(np.int64)
    for t in range(count):
        bits[t] += exponents[t] << 52
    for t in range(count):
        e = 0.0 if abs(z[t]) > FAR else power[t]
        z[t] = (1.0 if z[t] >= 0.0 else e) / (1.0 + e)


@numba.njit
def _divergence(p, t):
    """log(1 + p (exp(-t) - 1)) + p t >= 0 for 0 <= p <= 1, without cancellation or overflow."""
    if p > 0.5:  # 1 - p with -t gives the same number
        p, t = 1.0 - p, -t
    q = 1.0 - p
    if abs(t) < SMALL_MOVE:  # cumulants of a Bernoulli variable
        return p * q * t * t * (0.5 - t * ((q - p) / 6.0 - t * (1.0 - 6.0 * p * q) / 24.0))
    if p == 0.0:
        return 0.0
    if t < -1.0:
        return math.log(p + q * math.exp(t)) - q * t
    return math.log1p(p * math.expm1(-t)) + p * t


@numba.njit(cache=True, nogil=True)
def values(low, high, rows, starts, indptr, indices, data, labels, x, l2, nonconvex, loss, out):
    """out[r] = f_i(x) of worker rows[r]."""
    d = x.shape[1]
    for r in range(low, high):
        worker, point = rows[r], r if x.shape[0] > 1 else 0
        total = 0.0
        for row in range(starts[worker], starts[worker + 1]):
            s = _dot(indptr, indices, data, row, x, point)
            if loss == LOGISTIC:
                z = labels[row] * s
                total += math.log1p(math.exp(-abs(z))) + max(-z, 0.0)
            elif loss == SIGMOID:
                total += _sigmoid(-labels[row] * s) ** 2
            else:
                total += 0.5 * (s - labels[row]) ** 2
        total /= starts[worker + 1] - starts[worker]
        for j in range(d):
            square = x[point, j] * x[point, j]
            total += 0.5 * l2 * square + nonconvex * square / (1.0 + square)
        out[r] = total


@numba.njit(cache=True, nogil=True)
def gradients(low, high, rows, batch, starts, indptr, indices, data, labels, x, l2, nonconvex, loss, out):
    """out[r] = grad f_i(x) of worker rows[r] over its terms batch[r], or over all where batch has no columns."""
    d, size = x.shape[1], batch.shape[1]
    slopes, shifted, power = np.empty(ROWS), np.empty(ROWS), np.empty(ROWS)
    for r in range(low, high):
        worker, point = rows[r], r if x.shape[0] > 1 else 0
        first = starts[worker]
        count = size if size > 0 else starts[worker + 1] - first
        for j in range(d):
            out[r, j] = 0.0
        for begin in range(0, count, ROWS):
            some = min(ROWS, count - begin)
            for t in range(some):
                row = first + (batch[r, begin + t] if size > 0 else begin + t)
                slopes[t] = _dot(indptr, indices, data, row, x, point)
            for t in range(some):
                label = labels[first + (batch[r, begin + t] if size > 0 else begin + t)]
                slopes[t] = slopes[t] - label if loss == SQUARES else -label * slopes[t]
            if loss != SQUARES:
                _sigmoids(slopes, some, shifted, power)
                if loss == SIGMOID:
                    for t in range(some):
                        slopes[t] *= 2.0 * slopes[t] * (1.0 - slopes[t])
                for t in range(some):
                    slopes[t] *= -labels[first + (batch[r, begin + t] if size > 0 else begin + t)]
            for t in range(some):
                row = first + (batch[r, begin + t] if size > 0 else begin + t)
                for k in range(uint64(indptr[row]), uint64(indptr[row + 1])):
                    out[r, uint32(indices[k])] += slopes[t] * _entry(data, k)
        share = 1.0 / count
        for j in range(d):
            out[r, j] = out[r, j] * share + l2 * x[point, j]
        if nonconvex > 0.0:
            for j in range(d):
                out[r, j] += 2.0 * nonconvex * x[point, j] / (1.0 + x[point, j] * x[point, j]) ** 2


@numba.njit(inline="always")
def _curvature(label, s, loss):
    if loss == LOGISTIC:
        p = _sigmoid(label * s)
        return p * (1.0 - p)
    if loss == SIGMOID:
        p = _sigmoid(label * s)
        return 2.0 * p * (1.0 - p) ** 2 * (3.0 * p - 1.0)
    return 1.0


@numba.njit(inline="always")
def _bend(x, l2, nonconvex):
    """The regulariser's second derivative in one coordinate."""
    square = x * x
    return l2 + nonconvex * (2.0 - 6.0 * square) / (1.0 + square) ** 3


@numba.njit(inline="always")
def _triangle(worker, starts, indptr, indices, data, labels, x, point, l2, nonconvex, loss, triangle):
    """triangle = svec of hess f_i(x), by sparse outer products. Indices of a row ascend."""
    d = x.shape[1]
    root = math.sqrt(2.0)
    triangle[:] = 0.0
    count = starts[worker + 1] - starts[worker]
    for row in range(starts[worker], starts[worker + 1]):
        s = _dot(indptr, indices, data, row, x, point)
        weight = _curvature(labels[row], s, loss) / count
        end = indptr[row + 1]
        for k in range(indptr[row], end):
            i = np.int64(indices[k])
            base = i * d - (i * (i + 1)) // 2
            scaled = weight * _entry(data, k)
            triangle[base + i] += scaled * _entry(data, k)
            scaled *= root
            for other in range(uint64(k + 1), uint64(end)):
                triangle[uint64(base + indices[other])] += scaled * _entry(data, other)
    for i in range(d):
        triangle[i * d - (i * (i - 1)) // 2] += _bend(x[point, i], l2, nonconvex)


@numba.njit(cache=True, nogil=True)
def hessians(low, high, rows, starts, indptr, indices, data, labels, x, l2, nonconvex, loss, out):
    """out[r] = svec of hess f_i(x): the upper triangle by rows, off-diagonals times sqrt(2).

    The triangle of one worker is filled while it stays in cache.
    """
    for r in range(low, high):
        point = r if x.shape[0] > 1 else 0
        _triangle(rows[r], starts, indptr, indices, data, labels, x, point, l2, nonconvex, loss, out[r])


@numba.njit(cache=True, nogil=True)
def hessian_changes(
    low, high, rows, starts, indptr, indices, data, labels, x, l2, nonconvex, loss, since, out, squares
):
    """out[r] = svec of hess f_i(x) less since[r], and squares[r] = ||out[r]||^2, while the triangle is in cache."""
    fresh = np.empty(out.shape[1])
    for r in range(low, high):
        point = r if x.shape[0] > 1 else 0
        _triangle(rows[r], starts, indptr, indices, data, labels, x, point, l2, nonconvex, loss, fresh)
        squares[r] = apart(fresh, since[r], out[r])


@numba.njit(cache=True, nogil=True)
def products(low, high, rows, starts, indptr, indices, data, labels, x, v, l2, nonconvex, loss, out):
    """out[r] = hess f_i(x) v of worker rows[r]; `v` is (1, d) or (rows, d) like x."""
    d = x.shape[1]
    for r in range(low, high):
        worker, point, direction = rows[r], r if x.shape[0] > 1 else 0, r if v.shape[0] > 1 else 0
        count = starts[worker + 1] - starts[worker]
        for j in range(d):
            out[r, j] = 0.0
        for row in range(starts[worker], starts[worker + 1]):
            s = _dot(indptr, indices, data, row, x, point)
            slope = _curvature(labels[row], s, loss) * _dot(indptr, indices, data, row, v, direction)
            for k in range(indptr[row], indptr[row + 1]):
                out[r, indices[k]] += slope * _entry(data, k)
        for j in range(d):
            out[r, j] = out[r, j] / count + _bend(x[point, j], l2, nonconvex) * v[direction, j]


@numba.njit(cache=True, nogil=True)
def excess(low, high, rows, starts, indptr, indices, data, labels, x, solution, l2, loss, out):
    """out[r] = f_i(x) - f_i(x*) - <grad f_i(x*), x - x*>, a sum of terms >= 0; x* is `solution` (1, d)."""
    d = x.shape[1]
    for r in range(low, high):
        worker, point = rows[r], r if x.shape[0] > 1 else 0
        total = 0.0
        for row in range(starts[worker], starts[worker + 1]):
            s, move = 0.0, 0.0
            for k in range(indptr[row], indptr[row + 1]):
                at = solution[0, indices[k]]
                s += _entry(data, k) * at
                move += _entry(data, k) * (x[point, indices[k]] - at)
            if loss == LOGISTIC:
                total += _divergence(_sigmoid(-labels[row] * s), labels[row] * move)
            else:
                total += 0.5 * move * move
        total /= starts[worker + 1] - starts[worker]
        for j in range(d):
            total += 0.5 * l2 * (x[point, j] - solution[0, j]) ** 2
        out[r] = total
