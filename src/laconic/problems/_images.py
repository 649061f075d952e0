"""Pictures of digits: scikit-learn's (8 x 8, embedded) and MNIST (28 x 28, IDX files), with a part held for tests."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from laconic.core import files

NAMES = ("digits", "mnist")
HELD = 297  # of the 1797 embedded pictures, the last: other people wrote them
CLASSES = 10
FILES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")


@dataclass(frozen=True, eq=False)
class Images:
    """Grey levels (count, d), uint8, and classes (count,), int64; a level times `scale` lies in [0, 1]."""

    levels: np.ndarray
    labels: np.ndarray
    held_levels: np.ndarray
    held_labels: np.ndarray
    scale: float

    @property
    def d(self) -> int:
        """The number of pixels."""
        return self.levels.shape[1]


def load(name: str, data_dir: Path | None = None) -> Images:
    """The pictures of that name. Raises ValueError where MNIST's files are absent or broken."""
    return _digits() if name == "digits" else _mnist(_paths(data_dir))


@functools.lru_cache(maxsize=1)
def _digits() -> Images:
    from sklearn.datasets import load_digits

    rows, targets = load_digits(return_X_y=True)
    levels, labels = np.asarray(rows).astype(np.uint8), np.asarray(targets).astype(np.int64)
    return Images(levels[:-HELD], labels[:-HELD], levels[-HELD:], labels[-HELD:], 1.0 / 16.0)


def _paths(data_dir: Path | None) -> tuple[Path, ...]:
    """MNIST's files: in `data_dir`, else in the folder that LACONIC_DATA names, in mnist/ there or beside it."""
    base = files.data_folder(data_dir)
    folders = [] if base is None else [base, base / "mnist", base.parent / "mnist"]
    looked = f"not in {base}" if base is not None else "no data directory is given"
    paths = []
    for name in FILES:
        path = files.found(folders, name)
        if path is None:
            raise ValueError(
                f"data='mnist' : there is no {name}, plain or packed ({looked}); name a folder with MNIST's four files "
                f"with --data-dir or {files.VARIABLE}, or use data='digits'"
            )
        paths.append(path)
    return tuple(paths)


@functools.lru_cache(maxsize=1)
def _mnist(paths: tuple[Path, ...]) -> Images:
    levels, labels, held_levels, held_labels = map(_idx, paths)
    for pictures, classes in ((levels, labels), (held_levels, held_labels)):
        if len(pictures) != len(classes) or classes.max(initial=0) >= CLASSES:
            raise ValueError(
                f"{paths[0].parent} : {len(pictures)} pictures and {len(classes)} labels 0-9 do not go together"
            )
    return Images(levels, labels.astype(np.int64), held_levels, held_labels.astype(np.int64), 1.0 / 255.0)


def _idx(path: Path) -> np.ndarray:
    """An IDX file of bytes: pictures as (count, pixels), labels as (count,)."""
    content = files.content(path)
    dimensions = {b"\x00\x00\x08\x01": 1, b"\x00\x00\x08\x03": 3}.get(content[:4], 0)
    shape = [int.from_bytes(content[at : at + 4], "big") for at in range(4, 4 + 4 * dimensions, 4)]
    if not shape or 0 in shape or len(content) != 4 + 4 * dimensions + math.prod(shape):
        raise ValueError(f"{path} : this is no whole IDX file of bytes")
    values = np.frombuffer(content, dtype=np.uint8, offset=4 + 4 * dimensions)
    return values.reshape(shape[0], -1) if dimensions == 3 else values
