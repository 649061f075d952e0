"""The linear autoencoder's oracles: f_i(D, E) = tr((D E - I) T_i (D E - I)') with T_i = mean a a' + weight I.

All that depends on the data is T_i V for V = [E', D], (d, 2 e), through the samples or through a stored T_i, in loops
of fixed order: a worker's result has the same bits in every block.
"""

from __future__ import annotations

from dataclasses import dataclass

import numba
import numpy as np
import torch
from torch import Tensor

from laconic.core.problem import Batch, Block, Oracles
from laconic.kernels.memory import empty
from laconic.kernels.threads import over_rows
from laconic.problems._images import Images

ALL_TERMS = np.zeros((0, 0), dtype=np.int64)
NOTHING = np.zeros((0, 0, 0))


@numba.njit
def _through_samples(chosen, images, scale, v, hidden, out):
    """out = mean a a' v over samples a = scale * images[chosen]. Grey levels of 0, most of a digit, are left out."""
    d, width = v.shape
    places, levels = np.empty(d, dtype=np.int64), np.empty(d)
    out[:] = 0.0
    for sample in chosen:
        count = 0
        for k in range(d):
            places[count], levels[count] = k, images[sample, k]
            count += images[sample, k] != 0
        hidden[:] = 0.0
        for t in range(count):
            at, level = v[places[t]], levels[t]
            for j in range(width):
                hidden[j] += level * at[j]
        for t in range(count):
            to, level = out[places[t]], levels[t]
            for j in range(width):
                to[j] += level * hidden[j]
    factor = scale * scale / len(chosen)
    for k in range(d):
        for j in range(width):
            out[k, j] *= factor


@numba.njit
def _through_gram(gram, v, out):
    d, width = v.shape
    out[:] = 0.0
    for i in range(d):
        for k in range(d):
            entry = gram[i, k]
            if entry != 0.0:
                for j in range(width):
                    out[i, j] += entry * v[k, j]


@numba.njit
def _product(a, b, out):
    """out = a' b, a sum over rows in their order."""
    out[:] = 0.0
    for k in range(a.shape[0]):
        for i in range(a.shape[1]):
            for j in range(b.shape[1]):
                out[i, j] += a[k, i] * b[k, j]


@numba.njit(cache=True, nogil=True)
def weigh(low, high, rows, batch, starts, chosen, images, scale, grams, weight, v, out):
    """out[r] = T_i v of worker rows[r], over its terms batch[r] or all; `v` is (1, d, width) or (rows, d, width)."""
    d, width, size = v.shape[1], v.shape[2], batch.shape[1]
    hidden = np.empty(width)
    for r in range(low, high):
        worker, point = rows[r], r if v.shape[0] > 1 else 0
        if size > 0:
            _through_samples(chosen[starts[worker] + batch[r]], images, scale, v[point], hidden, out[r])
        elif len(grams) > 0:
            _through_gram(grams[worker], v[point], out[r])
        else:
            _through_samples(chosen[starts[worker] : starts[worker + 1]], images, scale, v[point], hidden, out[r])
        for k in range(d):
            for j in range(width):
                out[r, k, j] += weight * v[point, k, j]


@numba.njit(cache=True, nogil=True)
def finish(low, high, rows, traces, x, values, out):
    """values[r] = f_i(x) and out[r] = grad f_i(x) where they have rows; out[r] holds [T E', T D] in rows of 2 e.

    With U = T E': f = tr T - 2 <U, D> + <D'D, E U>, the gradient in D is 2 (D E U - U), in E' it is 2 (U D'D - T D).
    """
    d, e = x.shape[1] // 2, x.shape[2]
    forward, backward = np.empty((e, e)), np.empty((e, e))
    weighed = np.empty((d, 2 * e))
    for r in range(low, high):
        point = r if x.shape[0] > 1 else 0
        weighed[:] = out[r].reshape(d, 2 * e)
        decode, encode, u = x[point, :d], x[point, d:], weighed[:, :e]
        _product(encode, u, forward)
        if r == low or x.shape[0] > 1:
            _product(decode, decode, backward)
        if len(values) > 0:
            total = traces[rows[r]]
            for k in range(d):
                for j in range(e):
                    total -= 2.0 * u[k, j] * decode[k, j]
            for i in range(e):
                for j in range(e):
                    total += backward[i, j] * forward[j, i]
            values[r] = total
        for k in range(d):
            first, second = out[r, k], out[r, d + k]
            for j in range(e):
                first[j], second[j] = -u[k, j], -weighed[k, e + j]
            for i in range(e):
                one, other, ahead, back = decode[k, i], u[k, i], forward[i], backward[i]
                for j in range(e):
                    first[j] += one * ahead[j]
                    second[j] += other * back[j]
        for k in range(2 * d):
            for j in range(e):
                out[r, k, j] *= 2.0


@numba.njit(cache=True, nogil=True)
def bend(low, high, weighed, change, x, v, out):
    """out[r] = hess f_i(x) v; weighed[r] is [T E', T D] at x and change[r] the same at v, both (d, 2 e).

    The derivative along v = (dD, dE') of the gradient of `finish`: with U = T E' and dU = T dE' it is
    2 (dD E U + D (dE U + E dU) - dU) in D and 2 (dU D'D + U (dD'D + D'dD) - T dD) in E'.
    """
    d, e = x.shape[1] // 2, x.shape[2]
    forward, backward, part = np.empty((e, e)), np.empty((e, e)), np.empty((e, e))
    more_forward, more_backward = np.empty((e, e)), np.empty((e, e))
    for r in range(low, high):
        point, way = r if x.shape[0] > 1 else 0, r if v.shape[0] > 1 else 0
        decode, encode, more_decode, more_encode = x[point, :d], x[point, d:], v[way, :d], v[way, d:]
        u, more_u = weighed[r, :, :e], change[r, :, :e]
        _product(encode, u, forward)
        _product(decode, decode, backward)
        _product(more_encode, u, more_forward)
        _product(encode, more_u, part)
        more_forward += part
        _product(more_decode, decode, more_backward)
        _product(decode, more_decode, part)
        more_backward += part
        for k in range(d):
            first, second = out[r, k], out[r, d + k]
            for j in range(e):
                first[j], second[j] = -more_u[k, j], -change[r, k, e + j]
            for i in range(e):
                for j in range(e):
                    first[j] += more_decode[k, i] * forward[i, j] + decode[k, i] * more_forward[i, j]
                    second[j] += more_u[k, i] * backward[i, j] + u[k, i] * more_backward[i, j]
        for k in range(2 * d):
            for j in range(e):
                out[r, k, j] *= 2.0


@dataclass(frozen=True, eq=False)
class Samples:
    """Who holds which pictures: worker i those numbered chosen[starts[i]] .. chosen[starts[i + 1] - 1]."""

    images: Images
    starts: np.ndarray
    chosen: np.ndarray

    def part(self, worker: int) -> np.ndarray:
        """A worker's pictures as grey levels, (count, d) float64: whole numbers, whose products are exact."""
        return self.images.levels[self.chosen[self.starts[worker] : self.starts[worker + 1]]].astype(np.float64)


class BilinearOracles(Oracles):
    """Oracles of a block. `grams`: T_i is stored, which costs d^2 numbers each and pays where samples are many."""

    convex = False

    def __init__(self, samples: Samples, weight: float, start: Tensor, grams: bool, block: Block) -> None:
        super().__init__()
        self.block, self.shape = block, tuple(start.shape)
        self._start, self._weight, images = start, weight, samples.images
        self._starts = samples.starts[block.low : block.high + 1]
        mine = [samples.part(worker) for worker in block.workers]
        square = images.scale * images.scale
        self._traces = np.array([square * (part * part).sum() / len(part) for part in mine]) + weight * images.d
        kept = [square * (part.T @ part) / len(part) for part in mine] if grams else []
        stored = np.stack(kept) if kept else NOTHING
        self._data = (self._starts, samples.chosen, images.levels, images.scale, stored, weight)

    def start(self) -> Tensor:
        return self._start.clone()

    def terms(self) -> np.ndarray:
        return np.diff(self._starts)

    def _points(self, x: Tensor) -> np.ndarray:
        return x.detach().reshape(-1, *self.shape).contiguous().numpy()

    def _work(self, rows: np.ndarray) -> int:
        return int(self.terms()[rows].sum()) * self.d

    def _weighed(self, points: np.ndarray, rows: np.ndarray, terms: np.ndarray) -> Tensor:
        """[T E', T D] of every row, (rows, d, 2 e)."""
        d = self.shape[0] // 2
        v = np.ascontiguousarray(np.concatenate([points[:, d:], points[:, :d]], axis=2))
        out = empty((len(rows), *v.shape[1:]), torch.float64)
        over_rows(weigh, len(rows), self._work(rows), rows, terms, *self._data, v, out.numpy())
        return out

    def _finished(self, x: Tensor, rows: np.ndarray, terms: np.ndarray, values: np.ndarray) -> Tensor:
        points = self._points(x)
        out = self._weighed(points, rows, terms).view(len(rows), *self.shape)
        over_rows(finish, len(rows), self._work(rows), rows, self._traces, points, values, out.numpy())
        return out

    def _values(self, x: Tensor, rows: np.ndarray) -> Tensor:
        values = np.empty(len(rows))
        self._finished(x, rows, ALL_TERMS, values)
        return torch.from_numpy(values)

    def _gradients(self, x: Tensor, rows: np.ndarray, batch: Batch | None) -> Tensor:
        terms = ALL_TERMS if batch is None else np.ascontiguousarray(batch.indices)
        return self._finished(x, rows, terms, np.empty(0))

    def _products(self, x: Tensor, v: Tensor, rows: np.ndarray) -> Tensor:
        points, directions = self._points(x), self._points(v)
        at, change = (self._weighed(here, rows, ALL_TERMS).numpy() for here in (points, directions))
        out = empty((len(rows), *self.shape), torch.float64)
        over_rows(bend, len(rows), self._work(rows), at, change, points, directions, out.numpy())
        return out
