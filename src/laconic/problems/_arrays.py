"""Linear models on arrays in memory, behind `Custom.from_arrays`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from scipy import sparse
from torch import Tensor

from laconic.core.problem import Constants, Solution
from laconic.problems import _data
from laconic.problems._base import LinearProblem
from laconic.problems._linear import LOGISTIC, SQUARED, Dealt, Model, dealt
from laconic.problems._split import ends

LOSSES = {"logistic": LOGISTIC, "ridge": SQUARED}


@dataclass(frozen=True, eq=False)
class Arrays(LinearProblem):
    """A problem over rows in memory. It has no spec string; `str` describes it."""

    rows: Dealt
    parts: Model
    constants_known: Constants | None = None
    solution_known: Solution | None = None

    name: ClassVar[str] = "custom"

    @property
    def n(self) -> int:
        """The number of workers."""
        return self.rows.n

    def model(self) -> Model:
        """The loss and the regularisers."""
        return self.parts

    def dealt(self, data_dir: Path | None = None) -> Dealt:
        """The rows as they were given."""
        return self.rows

    def constants(self, data_dir: Path | None = None) -> Constants:
        """Those that were given, else computed."""
        if self.constants_known is None:
            self._need_all_rows()
        return self.constants_known or super().constants(data_dir)

    def solution(self, data_dir: Path | None = None) -> Solution | None:
        """The one that was given, else computed."""
        if self.solution_known is None:
            self._need_all_rows()
        return self.solution_known or super().solution(data_dir)

    def smoothness_matrices(self, data_dir: Path | None = None) -> Tensor | None:
        """Of the rows; None where other workers' rows are not here."""
        return super().smoothness_matrices(data_dir) if np.isfinite(self.rows.values).all() else None

    def _need_all_rows(self) -> None:
        if not (np.isfinite(self.rows.values).all() and np.isfinite(self.rows.labels).all()):
            raise ValueError(f"{self} : some rows are not finite, so constants= and solution= must be given")

    def __str__(self) -> str:
        loss = next(name for name, loss in LOSSES.items() if loss is self.parts.loss)
        rows = f"{len(self.rows.labels)}x{self.rows.d}"
        return f"custom(arrays {rows}, loss={loss!r}, l2={self.parts.l2!r}, workers={self.n})"


def build(
    rows: Any,
    labels: Any,
    workers: int | None,
    loss: str,
    l2: float,
    nonconvex: float,
    constants: Constants | None,
    solution: Solution | None,
) -> Arrays:
    """See `Custom.from_arrays`."""
    if loss not in LOSSES:
        raise ValueError(f"from_arrays(loss={loss!r}) : loss must be one of {', '.join(map(repr, LOSSES))}")
    for name, weight in (("l2", l2), ("nonconvex", nonconvex)):
        if not (np.isfinite(weight) and weight >= 0.0):
            raise ValueError(f"from_arrays({name}={weight!r}) : {name} must be a number >= 0")
    matrices, vectors, starts = _parts(rows, labels, workers)
    pairs = zip(matrices, vectors, strict=True)
    tables = [_data.table(matrix, vector, f"worker {i}") for i, (matrix, vector) in enumerate(pairs)]
    widths = {table.matrix.shape[1] for table in tables}
    if len(widths) > 1:
        raise ValueError(f"from_arrays(rows=...) : all matrices must be equally wide and have {sorted(widths)} columns")
    targets = np.concatenate([table.targets for table in tables])
    if LOSSES[loss] is LOGISTIC:
        targets = _data.signs(targets, "from_arrays(labels=...)")
    matrix = sparse.vstack([table.matrix for table in tables], format="csr")
    if starts is None:
        starts = np.r_[0, np.cumsum([table.matrix.shape[0] for table in tables])]
    return Arrays(dealt(matrix, targets, starts), Model(LOSSES[loss], float(l2), float(nonconvex)), constants, solution)


def _plain(array: Any) -> Any:
    return array.detach().numpy() if isinstance(array, Tensor) else array


def _parts(rows: Any, labels: Any, workers: int | None) -> tuple[list[Any], list[Any], np.ndarray | None]:
    """The matrices and vectors, and where workers start when there is one matrix for all."""
    if isinstance(rows, Sequence) and not isinstance(rows, str) and len(rows) and np.ndim(_plain(rows[0])) != 1:
        if workers not in (None, len(rows)) or len(labels) != len(rows):
            raise ValueError(
                f"from_arrays(workers={workers}) : {len(rows)} matrices and {len(labels)} vectors were given; "
                "there must be one of each per worker"
            )
        return [_plain(matrix) for matrix in rows], [_plain(vector) for vector in labels], None
    if workers is None or workers < 1:
        raise ValueError(f"from_arrays(workers={workers}) : with one matrix, workers must be an integer >= 1")
    matrix = _plain(rows)
    count = matrix.shape[0] if hasattr(matrix, "shape") else len(matrix)
    return [matrix], [_plain(labels)], ends(count, workers, drop_last=False)
