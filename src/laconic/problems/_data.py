"""Where rows come from: LIBSVM files (plain, .xz, .bz2, .gz) by name or path, and the sets that scikit-learn ships."""

from __future__ import annotations

import functools
import io
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy import sparse

from laconic.core import files

Matrix = Any  # SciPy's csr_matrix, whose package declares no types


@dataclass(frozen=True, eq=False)
class Table:
    """Rows and what is to be predicted: CSR float64 with ascending int32 indices, and targets (rows,)."""

    matrix: Matrix
    targets: np.ndarray
    name: str


def table(matrix: Matrix, targets: object, name: str) -> Table:
    """A :class:`Table` of anything that SciPy or NumPy reads as a matrix and a vector."""
    csr: Matrix = sparse.csr_matrix(matrix, dtype=np.float64, copy=True)
    csr.sum_duplicates()
    vector = np.array(targets, dtype=np.float64).reshape(-1)
    if len(vector) != csr.shape[0]:
        raise ValueError(f"{name} : {csr.shape[0]} rows and {len(vector)} labels; there must be one label for each row")
    if csr.shape[0] == 0:
        raise ValueError(f"{name} : there are no rows")
    return Table(csr, vector, name)


PAIRS = ({-1.0, 1.0}, {0.0, 1.0}, {1.0, 2.0})


def signs(targets: np.ndarray, name: str) -> np.ndarray:
    """Labels as -1 and +1. The two classes may be -1/+1, 0/1 or 1/2.

    NaN stays NaN (rows that belong to others and are never looked at); the rest must then be -1/+1 already.
    """
    classes, partial = np.unique(targets[~np.isnan(targets)]), bool(np.isnan(targets).any())
    if not any(set(classes) <= pair for pair in (PAIRS[:1] if partial else PAIRS)):
        few = ", ".join(f"{label:g}" for label in classes[:5]) + (", ..." if len(classes) > 5 else "")
        raise ValueError(f"{name} : labels must be two classes (-1/+1, 0/1 or 1/2) and are {few}")
    if len(classes) < 2 and not partial:
        raise ValueError(f"{name} : labels must be two classes and all are {classes[0]:g}")
    upper = 2.0 if 2.0 in classes else 1.0
    return np.where(np.isnan(targets), np.nan, np.where(targets == upper, 1.0, -1.0))


def _standardised(array: np.ndarray) -> np.ndarray:
    return (array - array.mean(axis=0)) / array.std(axis=0)


def _breast_cancer() -> Table:
    from sklearn.datasets import load_breast_cancer

    rows, targets = load_breast_cancer(return_X_y=True)
    return table(_standardised(np.asarray(rows)), targets, "breast_cancer")


def _digits() -> Table:
    from sklearn.datasets import load_digits

    rows, targets = load_digits(return_X_y=True)
    return table(np.asarray(rows) / 16.0, np.where(np.asarray(targets) < 5, 0, 1), "digits")


def _diabetes() -> Table:
    from sklearn.datasets import load_diabetes

    rows, targets = load_diabetes(return_X_y=True)
    return table(_standardised(np.asarray(rows)), _standardised(np.asarray(targets)), "diabetes")


EMBEDDED: dict[str, Callable[[], Table]] = {
    "breast_cancer": _breast_cancer,
    "digits": _digits,
    "diabetes": _diabetes,
}


def load(name: str, data_dir: Path | None = None, features: int | None = None) -> Table:
    """The rows of an embedded set, or of the LIBSVM file of that name or path.

    Raises ValueError where there is no such file, and for a line that is empty or broken.
    """
    if name in EMBEDDED:
        return _embedded(name)
    path = find(name, data_dir)
    status = path.stat()
    return _read(path, status.st_mtime_ns, status.st_size, features)


@functools.lru_cache(maxsize=len(EMBEDDED))
def _embedded(name: str) -> Table:
    return EMBEDDED[name]()


def find(name: str, data_dir: Path | None) -> Path:
    """The file that `name` means: in `data_dir`, else in the folder that LACONIC_DATA names, else a path as it is."""
    folder = files.data_folder(data_dir)
    folders = [] if folder is None else [folder, folder / "libsvm"]
    path = files.found(folders, name) or files.found([Path()], str(Path(name).expanduser()))
    if path is not None:
        return path
    looked = f"not in {folder}" if folder is not None else "no data directory is given"
    raise ValueError(
        f"data={name!r} : there is no such file ({looked}); name a folder of LIBSVM files with --data-dir or "
        f"{files.VARIABLE}, give a path, or use an embedded set: {', '.join(EMBEDDED)}"
    )


@functools.lru_cache(maxsize=4)
def _read(path: Path, changed: int, size: int, features: int | None) -> Table:
    from sklearn.datasets import load_svmlight_file

    content = files.content(path)
    lines = content.count(b"\n") + (not content.endswith(b"\n") and len(content) > 0)
    if lines == 0:
        raise ValueError(f"{path} : the file is empty")
    try:
        matrix, targets = load_svmlight_file(io.BytesIO(content), n_features=features, dtype=np.float64)
        whole = matrix.shape[0] == lines and bool(np.isfinite(matrix.data).all() and np.isfinite(targets).all())
        reason = "a line does not hold `label index:value ...`"
    except (ValueError, OverflowError) as error:
        whole, reason = False, str(error)
    if not whole:
        number, fault = _first_fault(content, features)
        raise ValueError(f"{path}, line {number} : {fault}" if number else f"{path} : {reason}")
    return table(matrix, targets, path.name)


def _first_fault(content: bytes, features: int | None) -> tuple[int, str]:
    """The number of the first bad line and what is wrong with it; (0, "") where none is found."""
    for number, line in enumerate(content.decode("utf-8", "replace").split("\n")[: content.count(b"\n") + 1], start=1):
        if number > content.count(b"\n") and not line:
            break
        fault = _fault(line.split("#", 1)[0].split(), features)
        if fault:
            return number, fault
    return 0, ""


def _fault(tokens: list[str], features: int | None) -> str:
    if not tokens:
        return "the line is empty; remove it"
    if _number(tokens[0]) is None:
        return f"the label {tokens[0]!r} is not a finite number"
    last = -1
    for token in tokens[1:]:
        index, colon, value = token.partition(":")
        if not colon or not index.isdigit() or _number(value) is None:
            return f"{token!r} is not index:value with a finite value"
        if int(index) <= last:
            return f"index {index} comes after {last}; indices must ascend"
        last = int(index)
    if features is not None and last > features:
        return f"index {last} is larger than features={features}"
    return ""


def _number(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None
