"""What run.json says of the problem and of where the run was made, as plain values."""

from __future__ import annotations

import contextlib
import math
import os
import platform
import sys
from importlib import metadata
from typing import Any

from laconic.core.entry import parameters
from laconic.core.problem import Constants, Problem, Solution


def problem_record(problem: Problem, shape: tuple[int, ...], terms: int, constants: Constants) -> dict[str, Any]:
    """The problem with every parameter, its size, and its constants with their kinds. `terms` are all workers'."""
    return {
        "spec": str(problem),
        "parameters": {one.name: str(getattr(problem, one.name)) for one in parameters(type(problem))},
        "workers": problem.n,
        "shape": list(shape),
        "terms": terms,
        "constants": {
            name: {"value": constant.value, "kind": constant.kind.value, "how": constant.how}
            for name, constant in constants.named().items()
        },
    }


def solution_record(solution: Solution | None, stable: bool) -> dict[str, float | None] | None:
    """`gap` certifies f*. `accuracy` is what can be told of f(x) - f*, which cancels unless it is `stable`.

    Of a saddle point `value` is None, and both are of ||x - x*||^2.
    """
    if solution is None:
        return None
    if not math.isfinite(solution.value):
        return {"value": None, "gap": solution.gap, "accuracy": solution.gap}
    rounding = 0.0 if stable else 4.0 * sys.float_info.epsilon * abs(solution.value)
    return {"value": solution.value, "gap": solution.gap, "accuracy": solution.gap + rounding}


def versions() -> dict[str, str]:
    """Of laconic and everything that can change a number."""
    found = {"python": platform.python_version()}
    for name in ("laconic", "torch", "numpy", "numba", "scipy", "scikit-learn"):
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


def machine() -> dict[str, Any]:
    """The machine that a run was made on; processes are torchrun's."""
    return {
        "system": platform.system(),
        "architecture": platform.machine(),
        "cores": os.cpu_count(),
        "processes": int(os.environ.get("WORLD_SIZE", "1")),
    }
