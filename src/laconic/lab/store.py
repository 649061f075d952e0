"""The run directory: run.json, trace.parquet and a checkpoint. Nothing is pickled and nothing is left half-written.

    run.json            what was asked, settled and found (see `laconic.lab.run`)
    trace.parquet       the trace (see `laconic.lab.trace`)
    checkpoint.safetensors, checkpoint.previous.safetensors
                        the state of the curve that was running; metadata and a SHA-256 in the file's own header

Every file is written beside its place, synced and renamed, and the trace before the checkpoint: whatever a checkpoint
says has been recorded is on disk. A damaged checkpoint is noticed by its hash, and the one before is used.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, uint8

PARTS = {"identity", "problem", "solution", "methods", "results"}  # of run.json
FORMAT = 1  # of the run directory; raised when a reader of the old one would be misled


def write_atomically(path: Path, content: bytes) -> None:
    """Writes a file so that at any moment either the old or the new content is there, also after a power cut."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@dataclass(frozen=True)
class Checkpoint:
    """The state of the curve that was running: `facts` are plain values, `tensors` whole (all n workers' rows)."""

    facts: dict[str, Any]
    tensors: dict[str, Tensor]

    def encode(self) -> bytes:
        tensors = {name: tensor.detach().contiguous().clone() for name, tensor in sorted(self.tensors.items())}
        facts = json.dumps(self.facts, sort_keys=True)
        return save(tensors, {"facts": facts, "sha256": _digest(facts, tensors)})

    @property
    def fingerprint(self) -> int:
        """A positive integer that two processes compare to be sure that they hold the same checkpoint."""
        return int(_digest(json.dumps(self.facts, sort_keys=True), self.tensors)[:15], 16) + 1

    @staticmethod
    def read(path: Path) -> Checkpoint:
        """The checkpoint in a file. Raises ValueError where it is truncated or damaged."""
        try:
            with safe_open(path, framework="pt") as file:
                metadata = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
            facts = metadata["facts"]
            whole = metadata["sha256"] == _digest(facts, tensors)
        except (SafetensorError, OSError, KeyError, ValueError):
            whole = False
        if not whole:
            raise ValueError(f"{path} is truncated or damaged")
        return Checkpoint(json.loads(facts), tensors)


def _digest(facts: str, tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256(facts.encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"|{name}|{tensor.dtype}|{tuple(tensor.shape)}|".encode())
        if tensor.numel():
            digest.update(tensor.contiguous().reshape(-1).view(dtype=uint8).numpy().tobytes())
    return digest.hexdigest()


class RunDirectory:
    """One run's directory. Only the leading process of a run holds one."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.run_json = path / "run.json"
        self.trace = path / "trace.parquet"
        self.checkpoint = path / "checkpoint.safetensors"
        self.previous = path / "checkpoint.previous.safetensors"
        self.sources = (self.checkpoint, self.previous)

    def open(self, identity: Mapping[str, Any], resume: bool, say: Callable[[str], None]) -> dict[str, Any] | None:
        """Makes the directory ready for a run, and returns the document of the run it goes on with, if any.

        Raises ValueError where the directory holds another run, or the same run and `resume` was not asked for.
        """
        if self.run_json.exists():
            document = self.read()
            if not resume:
                raise ValueError(f"{self.path} already holds a run; go on with it by --resume, or give another --out")
            different = first_difference(document["identity"], identity)
            if different is not None:
                raise ValueError(f"{self.path} holds another run: {different}; give another --out")
            return document
        if self.path.exists() and not self.path.is_dir():
            raise ValueError(f"{self.path} is a file; --out needs a directory")
        if self.path.is_dir() and any(self.path.iterdir()):
            raise ValueError(f"{self.path} is not empty and holds no run; give another --out")
        self.path.mkdir(parents=True, exist_ok=True)
        if resume:
            say(f"{self.path} holds no run yet; starting from the beginning")
        return None

    def read(self) -> dict[str, Any]:
        """The document run.json. Raises ValueError where there is none or it cannot be read."""
        try:
            document = json.loads(self.run_json.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise ValueError(f"{self.path} holds no run: there is no run.json") from None
        except (OSError, ValueError) as error:
            raise ValueError(f"{self.run_json} cannot be read ({error})") from None
        if not isinstance(document, dict) or document.get("format") != FORMAT or not PARTS <= set(document):
            raise ValueError(f"{self.run_json} was written by another version of laconic")
        return document

    def write(self, document: Mapping[str, Any]) -> None:
        text = json.dumps({"format": FORMAT, **document}, indent=2, allow_nan=False)
        write_atomically(self.run_json, text.encode() + b"\n")

    def write_trace(self, table: pa.Table) -> None:
        sink = pa.BufferOutputStream()
        pq.write_table(table, sink)
        write_atomically(self.trace, sink.getvalue().to_pybytes())

    def read_trace(self) -> pa.Table | None:
        """The trace as it is on disk, or None before the first one is written."""
        if not self.trace.exists():
            return None
        try:
            return pq.read_table(self.trace)
        except (OSError, pa.ArrowException) as error:
            raise ValueError(
                f"{self.trace} is damaged ({error}); move it away and start again with another --out"
            ) from None

    def write_checkpoint(self, checkpoint: Checkpoint) -> None:
        """Keeps the last checkpoint as the one before."""
        content = checkpoint.encode()
        if self.checkpoint.exists():
            os.replace(self.checkpoint, self.previous)
        write_atomically(self.checkpoint, content)

    def read_checkpoint(self, say: Callable[[str], None]) -> tuple[Checkpoint | None, int]:
        """The newest checkpoint that is whole, and which of `sources` it is (1, 2); None and 0 where there is none.

        Raises ValueError where there are checkpoints and every one is damaged.
        """
        complaints = []
        for number, path in enumerate(self.sources, start=1):
            if not path.exists():
                continue
            try:
                found = Checkpoint.read(path)
            except ValueError as error:
                complaints.append(str(error))
                continue
            if complaints:
                say(f"{complaints[0]}; going on from the one before")
            return found, number
        if complaints:
            raise ValueError(
                f"{complaints[0]} and there is no other; delete it to begin its curve again (finished curves are kept)"
            )
        return None, 0

    def drop_checkpoints(self) -> None:
        """Once every curve is finished."""
        self.checkpoint.unlink(missing_ok=True)
        self.previous.unlink(missing_ok=True)


def first_difference(old: Any, new: Any, where: str = "") -> str | None:
    """In words, the first value in which two documents differ."""
    if isinstance(old, dict) and isinstance(new, dict):
        for key in [*old, *(key for key in new if key not in old)]:
            found = first_difference(old.get(key), new.get(key), f"{where}.{key}" if where else str(key))
            if found:
                return found
        return None
    if isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        for place, (a, b) in enumerate(zip(old, new, strict=True)):
            found = first_difference(a, b, f"{where}[{place}]")
            if found:
                return found
        return None
    return None if old == new else f"its {where} is {_short(old)}, not {_short(new)}"


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 100 else text[:97] + "..."
