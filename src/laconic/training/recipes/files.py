"""Data files of the recipes: where they are, and arrays made of them, kept in the cache for the next run."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np

from laconic.core import files
from laconic.core.places import cache


def files_of(data_dir: Path | None, parts: Sequence[str], names: Iterable[str], instead: str) -> list[Path]:
    """Files by name, plain or packed, in one of the folders `parts` in `data_dir` or LACONIC_DATA, or in that itself.

    Raises
    ------
    ValueError : no such folder, or a file that is missing; the message says `instead` what can be done.
    """
    given = files.data_folder(data_dir)
    if given is None:
        raise ValueError(
            f"this needs {parts[0]}; name the folder that has it with --data-dir or {files.VARIABLE}. {instead}"
        )
    paths = []
    for name in names:
        path = files.found([*(given / part for part in parts), given], name)
        if path is None:
            raise ValueError(f"--data-dir {given} : there is no {parts[0]}/{name}, plain or packed. {instead}")
        paths.append(path)
    return paths


def kept(name: str, sources: Iterable[Path], compute: Callable[[], np.ndarray]) -> np.ndarray:
    """An array computed from files, mapped from the cache where an earlier run has put it there.

    The files' sizes and times of change are part of its name there. Where the cache cannot be written to, every
    process computes the array.
    """
    facts = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in sources]
    key = hashlib.sha256(repr(facts).encode()).hexdigest()[:16]
    path = cache() / "training" / f"{name}-{key}.npy"
    try:
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError):  # not there, or damaged
        array = compute()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, suffix=".part", delete=False) as file:
            np.save(file, array, allow_pickle=False)
        os.replace(file.name, path)  # whole, whoever of several processes comes last
    except OSError:
        return array
    return np.load(path, mmap_mode="r", allow_pickle=False)


def hash_of(*arrays: np.ndarray) -> str:
    """SHA-256 over the bytes of arrays, one after another."""
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()
