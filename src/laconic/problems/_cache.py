"""Constants and solutions kept between processes, so that all of them use the same bits. Nothing is pickled.

The folder is LACONIC_CACHE, else laconic/ in XDG_CACHE_HOME, else ~/.cache/laconic. Whoever stores first wins, and
everybody then reads what is stored. Where the folder cannot be written to, each process uses what it computes.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save

from laconic.core.places import cache as folder
from laconic.core.problem import Constant, Constants, Kind, Solution

FORMAT = "3"  # raise it when a formula changes, so that nothing old is read
T = TypeVar("T")


def _publish(path: Path, content: bytes) -> None:
    """Writes a whole file at once, unless another process was first."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        try:
            os.link(name, path)
        except FileExistsError:
            pass
        except OSError:  # a file system without hard links
            os.replace(name, path)
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name)


def _kept(path: Path, read: Callable[[Path], T], write: Callable[[T], bytes], compute: Callable[[], T]) -> T:
    try:
        return read(path)
    except OSError:  # not there
        pass
    except (ValueError, KeyError, TypeError, SafetensorError):  # damaged
        with contextlib.suppress(OSError):
            path.unlink()
    value = compute()
    with contextlib.suppress(OSError):
        _publish(path, write(value))
        return read(path)
    return value


def constants(key: str, compute: Callable[[], Constants]) -> Constants:
    """The constants stored under `key`, computed and stored where they are not there yet."""
    return _kept(folder() / f"constants-{FORMAT}-{key[:40]}.json", _read_constants, _write_constants, compute)


def solution(key: str, compute: Callable[[], Solution]) -> Solution:
    """The solution stored under `key`, computed and stored where it is not there yet."""
    return _kept(folder() / f"solution-{FORMAT}-{key[:40]}.safetensors", _read_solution, _write_solution, compute)


def _write_constants(constants: Constants) -> bytes:
    plain: dict[str, Any] = {"L_workers": list(constants.L_workers)}
    for name, constant in constants.named().items():
        plain[name] = {"value": constant.value, "kind": constant.kind.value, "how": constant.how}
    return json.dumps(plain, indent=1).encode()


def _read_constants(path: Path) -> Constants:
    plain = json.loads(path.read_text())
    names = {field.name for field in dataclasses.fields(Constants)} - {"L_workers"}
    known = {name: Constant(c["value"], Kind(c["kind"]), c["how"]) for name, c in plain.items() if name in names}
    return Constants(L_workers=tuple(plain["L_workers"]), **known)


def _write_solution(solution: Solution) -> bytes:
    numbers = torch.tensor([solution.value, solution.gap], dtype=torch.float64)
    return save({"x": solution.x.contiguous(), "value_gap": numbers})


def _read_solution(path: Path) -> Solution:
    tensors = load(path.read_bytes())  # not mapped: the file may be replaced while the tensor is in use
    value, gap = tensors["value_gap"].tolist()
    return Solution(tensors["x"], value, gap)
