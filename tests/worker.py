"""A process of worlds.py: it does the jobs of jobs.py and of files beside it whose names end in _jobs."""

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any


def everything() -> dict[str, Callable[..., Any]]:
    """All jobs by name."""
    found: dict[str, Callable[..., Any]] = {}
    for name in ("jobs", *sorted(path.stem for path in Path(__file__).parent.glob("*_jobs.py"))):
        part = importlib.import_module(name)
        for job, function in {key: value for key, value in vars(part).items() if key.startswith("job_")}.items():
            if found.setdefault(job, function) is not function:
                raise ValueError(f"two jobs are called {job}; one is in {name}.py")
    return {name.removeprefix("job_"): function for name, function in found.items()}


def serve(pipe: Any) -> None:
    """Does what it is asked over a pipe until that ends."""
    importlib.import_module("jobs").serve(pipe, everything())
