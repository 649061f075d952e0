"""Linear models on dealt sparse rows: the losses, who holds which rows, and the oracles of a block."""

from __future__ import annotations

import functools
import hashlib
import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy import sparse
from scipy.special import expit
from torch import Tensor

from laconic.core.problem import Batch, Block, Oracles, Solution, single_threaded
from laconic.kernels import csr
from laconic.kernels.memory import empty
from laconic.kernels.threads import over_rows
from laconic.problems._data import Matrix, Table
from laconic.problems._split import Dealing, ends


class Loss(ABC):
    """A loss >= 0 of s = <a, x> and a label, smooth with a bounded second derivative."""

    code: int  # what the kernels call it
    curvature: float  # the largest second derivative in s, by magnitude
    bend: float  # the largest third derivative in s, by magnitude
    convex: bool = True

    @abstractmethod
    def curvatures(self, s: np.ndarray, labels: np.ndarray) -> np.ndarray:
        """The second derivatives at s."""


class LogisticLoss(Loss):
    """log(1 + exp(-label s)) with labels -1 and +1."""

    code, curvature, bend = csr.LOGISTIC, 0.25, 1.0 / (6.0 * math.sqrt(3.0))

    def curvatures(self, s: np.ndarray, labels: np.ndarray) -> np.ndarray:
        e = np.exp(-np.abs(s))
        return e / (1.0 + e) ** 2


class SquaredLoss(Loss):
    """(s - label)^2 / 2."""

    code, curvature, bend = csr.SQUARES, 1.0, 0.0

    def curvatures(self, s: np.ndarray, labels: np.ndarray) -> np.ndarray:
        return np.ones_like(s)


def _second(p: Any) -> Any:
    return 2.0 * p * (1.0 - p) ** 2 * (3.0 * p - 1.0)


def _third(p: Any) -> Any:
    return 2.0 * p * (1.0 - p) ** 2 * (9.0 * p - 1.0 - 12.0 * p * p)


class SigmoidLoss(Loss):
    """(1 - sigma(label s))^2 with labels -1 and +1, sigma(t) = 1 / (1 + exp(-t)).

    In p = sigma the second derivative is 2 p (1 - p)^2 (3 p - 1), largest (0.15406) at p = (9 + sqrt(33)) / 24 and
    least (-0.12020) at p = (9 - sqrt(33)) / 24. The third is 2 p (1 - p)^2 (9 p - 1 - 12 p^2), whose extremes lie at
    the roots of 60 p^3 - 72 p^2 + 21 p - 1.
    """

    code, convex = csr.SIGMOID, False
    curvature = float(_second((9.0 + math.sqrt(33.0)) / 24.0))
    bend = float(np.abs(_third(np.roots([60.0, -72.0, 21.0, -1.0]).real)).max())

    def curvatures(self, s: np.ndarray, labels: np.ndarray) -> np.ndarray:
        return _second(expit(labels * s))


LOGISTIC, SQUARED, SIGMOID = LogisticLoss(), SquaredLoss(), SigmoidLoss()
# sup of |r'''| of r = x^2 / (1 + x^2): 24 x (1 - x^2) / (1 + x^2)^4 at x = tan(18 degrees)
_T = math.tan(math.pi / 10)
REGULARISER_BEND = 24.0 * _T * (1.0 - _T * _T) / (1.0 + _T * _T) ** 4


@dataclass(frozen=True)
class Model:
    """f_i(x) = mean of the loss over worker i's rows + l2 / 2 ||x||^2 + nonconvex sum_j x_j^2 / (1 + x_j^2)."""

    loss: Loss
    l2: float
    nonconvex: float = 0.0

    @property
    def convex(self) -> bool:
        """Whether every f_i is."""
        return self.loss.convex and self.nonconvex == 0.0

    @property
    def quadratic(self) -> bool:
        """Whether every f_i is a convex quadratic."""
        return self.convex and self.loss.bend == 0.0

    @property
    def regularity(self) -> float:
        """What the regularisers add to every smoothness constant (they attain it at 0)."""
        return self.l2 + 2.0 * self.nonconvex


@dataclass(frozen=True, eq=False)
class Dealt:
    """Rows in the order of the workers: worker i holds rows starts[i] .. starts[i + 1]. Indices ascend within a row."""

    starts: np.ndarray  # (n + 1,) int64
    indptr: np.ndarray  # (rows + 1,) int64
    indices: np.ndarray  # (entries,) int32
    values: np.ndarray  # (entries,) float64
    labels: np.ndarray  # (rows,) float64
    d: int

    @property
    def n(self) -> int:
        """The number of workers."""
        return len(self.starts) - 1

    @property
    def sizes(self) -> np.ndarray:
        """The number of rows of each worker, int64 of shape (n,)."""
        return np.diff(self.starts)

    @functools.cached_property
    def matrix(self) -> Matrix:
        """All rows as SciPy's matrix, sharing memory."""
        return sparse.csr_matrix((self.values, self.indices, self.indptr), shape=(len(self.labels), self.d))

    def part(self, worker: int) -> Matrix:
        """The rows of one worker, sharing memory."""
        first, last = self.starts[worker], self.starts[worker + 1]
        low, high = self.indptr[first], self.indptr[last]
        pieces = (self.values[low:high], self.indices[low:high], self.indptr[first : last + 1] - low)
        return sparse.csr_matrix(pieces, shape=(last - first, self.d))

    def digest(self) -> str:
        """A hash of rows, labels and who holds them."""
        digest = hashlib.sha256(str(self.d).encode())
        for part in (self.starts, self.indptr, self.indices, self.values, self.labels):
            digest.update(part.tobytes())
        return digest.hexdigest()


def deal(table: Table, labels: np.ndarray, dealing: Dealing, workers: int, intercept: bool) -> Dealt:
    """The rows of a table in the hands of `workers` workers; `intercept` appends a column of ones."""
    starts = ends(len(labels), workers, dealing.drop_last)
    order = dealing.split.order(labels, starts, dealing.seed)[: starts[-1]]
    matrix: Matrix = table.matrix
    if intercept:
        matrix = sparse.hstack([matrix, np.ones((matrix.shape[0], 1))], format="csr")
    return dealt(matrix[order], labels[order], starts)


def dealt(matrix: Matrix, labels: np.ndarray, starts: np.ndarray) -> Dealt:
    """Rows that are already in the order of the workers."""
    matrix.sort_indices()
    indptr, indices = matrix.indptr.astype(np.int64), matrix.indices.astype(np.int32)
    return Dealt(starts.astype(np.int64), indptr, indices, matrix.data, np.ascontiguousarray(labels), matrix.shape[1])


@single_threaded
def row_space(matrix: Tensor) -> Tensor:
    """Orthonormal rows that span those of a matrix (m, d), as many as its numerical rank."""
    _, sizes, found = torch.linalg.svd(matrix, full_matrices=False)
    least = max(matrix.shape) * torch.finfo(matrix.dtype).eps * sizes.max()
    return found[: int((sizes > least).sum())]


ALL_TERMS = np.zeros((0, 0), dtype=np.int64)


class LinearOracles(Oracles):
    """Oracles of a block of workers. They look at these workers' rows only; the others' may be NaN."""

    def __init__(self, data: Dealt, model: Model, block: Block) -> None:
        super().__init__()
        self.block, self.shape, self.convex = block, (data.d,), model.convex
        self.model = model
        starts = data.starts[block.low : block.high + 1]
        self._starts = starts
        self._sizes = np.diff(starts)
        low, high = data.indptr[starts[0]], data.indptr[starts[-1]]
        self._entries = int(high - low)
        values = data.values[:0] if np.all(data.values[low:high] == 1.0) else data.values
        self._data = (starts, data.indptr, data.indices, values, data.labels)
        self._triangles: Tensor | None = None

    def terms(self) -> np.ndarray:
        return self._sizes

    def _points(self, x: Tensor) -> np.ndarray:
        return x.detach().to(torch.float64).reshape(-1, self.d).contiguous().numpy()

    @property
    def _model(self) -> tuple[float, float, int]:
        return float(self.model.l2), float(self.model.nonconvex), self.model.loss.code

    def _values(self, x: Tensor, rows: np.ndarray) -> Tensor:
        out = torch.empty(len(rows), dtype=torch.float64)
        over_rows(csr.values, len(rows), self._entries, rows, *self._data, self._points(x), *self._model, out.numpy())
        return out

    def _gradients(self, x: Tensor, rows: np.ndarray, batch: Batch | None) -> Tensor:
        out = empty((len(rows), self.d), torch.float64)
        terms = ALL_TERMS if batch is None else np.ascontiguousarray(batch.indices)
        arguments = (rows, terms, *self._data, self._points(x), *self._model, out.numpy())
        over_rows(csr.gradients, len(rows), self._entries, *arguments)
        return out

    def _memory(self, rows: int) -> Tensor:
        """Of as many triangles, reused from call to call."""
        if self._triangles is None or len(self._triangles) < rows:
            self._triangles = torch.empty((rows, self.d * (self.d + 1) // 2), dtype=torch.float64)
        return self._triangles[:rows]

    def _hessians(self, x: Tensor, rows: np.ndarray) -> Tensor:
        out = self._memory(len(rows))
        arguments = (rows, *self._data, self._points(x), *self._model, out.numpy())
        over_rows(csr.hessians, len(rows), self._entries + out.numel(), *arguments)
        return out

    def _hessian_changes(self, x: Tensor, since: Tensor, rows: np.ndarray) -> tuple[Tensor, Tensor]:
        out, squares = self._memory(len(rows)), torch.empty(len(rows), dtype=torch.float64)
        arguments = (rows, *self._data, self._points(x), *self._model, since.numpy(), out.numpy(), squares.numpy())
        over_rows(csr.hessian_changes, len(rows), self._entries + out.numel(), *arguments)
        return out, squares

    def _products(self, x: Tensor, v: Tensor, rows: np.ndarray) -> Tensor:
        out = empty((len(rows), self.d), torch.float64)
        arguments = (rows, *self._data, self._points(x), self._points(v), *self._model, out.numpy())
        over_rows(csr.products, len(rows), 2 * self._entries, *arguments)
        return out

    def _spans(self, rows: np.ndarray) -> tuple[Tensor, float]:
        if self.model.nonconvex:
            raise ValueError("the nonconvex regulariser's Hessian is in no span of the data; use standard_basis")
        found = [row_space(self._dense(int(row))) for row in rows]
        out = torch.zeros((len(rows), self.d, max((len(each) for each in found), default=0)), dtype=torch.float64)
        for here, each in zip(out, found, strict=True):
            here[:, : len(each)] = each.T
        return out, float(self.model.l2)

    def _dense(self, row: int) -> Tensor:
        """All rows of data of a worker, (m_i, d)."""
        _, indptr, indices, values, _ = self._data
        ends = indptr[self._starts[row] : self._starts[row + 1] + 1]
        low, high = ends[0], ends[-1]
        kept = values[low:high] if len(values) else np.ones(high - low)
        matrix = sparse.csr_matrix((kept, indices[low:high], ends - low), shape=(len(ends) - 1, self.d))
        return torch.from_numpy(matrix.toarray())

    def excess(self, x: Tensor, solution: Solution, rows: np.ndarray | None = None) -> Tensor:
        """f_i(x) - f_i(x*) - <grad f_i(x*), x - x*> >= 0, shape (rows,), accurate however near x is to x*.

        Its mean over all workers is f(x) - f* to within the solution's certificate. Convex models only.
        """
        if not self.model.convex:
            raise ValueError("excess is defined for convex problems; this one is not convex and has no solution")
        rows = self._rows(rows)
        out = torch.empty(len(rows), dtype=torch.float64)
        l2, _, loss = self._model
        arguments = (rows, *self._data, self._points(x), self._points(solution.x), l2, loss, out.numpy())
        over_rows(csr.excess, len(rows), self._entries, *arguments)
        return out
