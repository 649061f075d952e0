"""Data files: the folder in which they are looked for, found there plain or packed, and read."""

from __future__ import annotations

import bz2
import gzip
import lzma
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

VARIABLE = "LACONIC_DATA"
OPENERS: dict[str, Callable[..., Any]] = {"": open, ".xz": lzma.open, ".bz2": bz2.open, ".gz": gzip.open}


def data_folder(given: Path | None) -> Path | None:
    """The folder that is given, else the one that LACONIC_DATA names."""
    return given or (Path(os.environ[VARIABLE]) if os.environ.get(VARIABLE) else None)


def found(folders: Iterable[Path], name: str) -> Path | None:
    """The first file of that name, plain or with .xz, .bz2 or .gz behind it; None where there is none."""
    for folder in folders:
        for suffix in OPENERS:
            path = folder / f"{name}{suffix}"
            if path.is_file():
                return path.resolve()
    return None


def content(path: Path) -> bytes:
    """A file's bytes, unpacked. Raises ValueError, one line, where it cannot be read."""
    try:
        with OPENERS.get(path.suffix, open)(path, "rb") as file:
            return file.read()
    except (OSError, EOFError, lzma.LZMAError) as error:
        raise ValueError(f"{path} : cannot be read: {error}") from None
