"""Data files of the recipes: where they are, how they are read, and arrays kept in the cache for the next run."""

from __future__ import annotations

import hashlib
import lzma
import os
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np

from laconic.core.places import cache

VARIABLE = "LACONIC_DATA"


def folder_of(data_dir: Path | None, part: str, files: Iterable[str], instead: str) -> Path:
    """The folder `part` in `data_dir` or LACONIC_DATA, or that folder itself, where it holds all of `files`.

    Raises
    ------
    ValueError : no such folder, or a file that is missing; the message says `instead` what can be done.
    """
    given = data_dir or (Path(os.environ[VARIABLE]) if os.environ.get(VARIABLE) else None)
    if given is None:
        raise ValueError(f"this needs {part}; name the folder that has it with --data-dir or {VARIABLE}. {instead}")
    missing: list[str] = []
    for folder in (given / part, given):
        absent = [name for name in files if not (folder / name).is_file()]
        if not absent:
            return folder.resolve()
        missing = missing or absent
    raise ValueError(f"--data-dir {given} : there is no {part}/{missing[0]}. {instead}")


def unpacked(path: Path) -> bytes:
    """The content of an .xz file. Raises ValueError where it cannot be read."""
    try:
        with lzma.open(path, "rb") as file:
            return file.read()
    except (OSError, EOFError, lzma.LZMAError) as error:
        raise ValueError(f"{path} : cannot be read: {error}") from None


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
