"""What a training run leaves in its directory: run.json, steps.jsonl, evaluations.jsonl, and a checkpoint per process.

Nothing is pickled that could be code: checkpoints are read with weights_only=True. A run that is interrupted while its
processes write a checkpoint has the one before, which is removed only when all have written theirs.
"""

from __future__ import annotations

import json
import os
import platform
import re
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any, TextIO

import torch
import torch.distributed as dist

CHECKPOINT = re.compile(r"checkpoint-(\d+)-rank(\d+)\.pt")


class Record:
    """The directory of one run, as one of its processes sees it: the first one writes what is about all of them.

    Parameters
    ----------
    out : the directory, made where it is not there.
    rank : of this process.

    Raises
    ------
    ValueError : a fresh run in a directory that holds another one.
    """

    def __init__(self, out: Path, rank: int, resume: bool) -> None:
        self.out, self.rank = out, rank
        if not resume and (out / "run.json").exists():
            raise ValueError(f"--out {out} : it holds a run already; name another directory, or go on with --resume")
        if resume and not (out / "run.json").exists():
            raise ValueError(f"--resume : {out} holds no run.json; name the run's directory with --out")
        dist.barrier()  # all have looked before one writes
        out.mkdir(parents=True, exist_ok=True)
        self._files: dict[str, TextIO] = {}

    def describe(self, document: Mapping[str, Any]) -> None:
        """Writes run.json, whole."""
        if self.rank == 0:
            _replace(self.out / "run.json", json.dumps(document, indent=1, allow_nan=False).encode())

    def line(self, name: str, line: Mapping[str, Any]) -> None:
        """Adds a line to NAME.jsonl."""
        if self.rank == 0:
            if name not in self._files:
                self._files[name] = (self.out / f"{name}.jsonl").open("a", encoding="utf-8")
            self._files[name].write(json.dumps(line) + "\n")

    def forget_after(self, step: int) -> None:
        """Takes out the lines that a run which goes on after `step` steps will write again."""
        if self.rank == 0:
            for name, last in (("steps", step - 1), ("evaluations", step)):  # steps count from 0
                path = self.out / f"{name}.jsonl"
                lines = path.read_text(encoding="utf-8").splitlines(keepends=True) if path.exists() else []
                kept = [line for line in lines if line.endswith("\n") and json.loads(line)["step"] <= last]
                _replace(path, "".join(kept).encode())

    def save(self, step: int, state: Mapping[str, Any]) -> None:
        """Writes this process' checkpoint; every process calls it. Earlier ones go once all are written."""
        self.flush()
        path = self.out / f"checkpoint-{step:08d}-rank{self.rank}.pt"
        torch.save(dict(state), path.with_suffix(".part"))
        os.replace(path.with_suffix(".part"), path)
        dist.barrier()
        for old in self._checkpoints():
            if old != step:
                (self.out / f"checkpoint-{old:08d}-rank{self.rank}.pt").unlink()

    def load(self) -> dict[str, Any]:
        """The newest checkpoint that all processes have. Raises ValueError, one line, where there is none."""
        newest = torch.tensor([max(self._checkpoints(), default=-1)])
        dist.all_reduce(newest, dist.ReduceOp.MIN)
        step = int(newest)
        path = self.out / f"checkpoint-{step:08d}-rank{self.rank}.pt"
        if step < 0 or not path.is_file():
            raise ValueError(f"--resume : {self.out} has no checkpoint of each of {dist.get_world_size()} processes")
        try:
            return torch.load(path, weights_only=True)
        except Exception as error:  # whatever a damaged file makes of the reader
            first = str(error).split("\n")[0]
            raise ValueError(f"--resume : {path} cannot be read: {first}") from error

    def _checkpoints(self) -> list[int]:
        found = (CHECKPOINT.fullmatch(path.name) for path in self.out.iterdir())
        return sorted(int(match[1]) for match in found if match and int(match[2]) == self.rank)

    def flush(self) -> None:
        """What was added is on its way to the disk."""
        for file in self._files.values():
            file.flush()

    def close(self) -> None:
        """No more lines."""
        for file in self._files.values():
            file.close()


def _replace(path: Path, content: bytes) -> None:
    part = path.with_name(path.name + ".part")
    part.write_bytes(content)
    os.replace(part, path)


def versions() -> dict[str, str]:
    """Of what a run's numbers depend on."""
    return {
        "laconic": metadata.version("laconic"),
        "torch": str(torch.__version__),
        "python": platform.python_version(),
    }


def machine() -> dict[str, Any]:
    """What the run was timed on."""
    return {
        "processor": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "system": platform.system(),
    }
