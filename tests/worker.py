"""The process that worlds.py starts: it does the jobs of jobs.py and of files beside it whose names end in _jobs."""

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jobs


def everything() -> dict[str, Callable[..., Any]]:
    """All jobs by name."""
    found: dict[str, Callable[..., Any]] = {}
    for name in ("jobs", *sorted(path.stem for path in Path(__file__).parent.glob("*_jobs.py"))):
        part = jobs.named(vars(importlib.import_module(name)))
        for job, function in part.items():
            if found.setdefault(job, function) is not function:
                raise ValueError(f"two jobs are called {job}; one is in {name}.py")
    return found


if __name__ == "__main__":
    jobs.serve(everything())
