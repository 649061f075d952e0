"""laconic: communication-efficient distributed optimization."""

from __future__ import annotations

import os

# Read by OpenMP when torch is first imported: its idle threads would spin on the cores that our kernels need
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from laconic.core.spec import parse as parse
    from laconic.lab.report import report as report
    from laconic.lab.run import Runs as Runs
    from laconic.lab.run import run as run
    from laconic.lab.tune import Tuned as Tuned
    from laconic.lab.tune import tune as tune

__version__ = "0.1.0"

# where public names live; they are imported when first used, so that `import laconic` stays light
_HOMES = {
    "parse": "laconic.core.spec",
    "report": "laconic.lab.report",
    "run": "laconic.lab.run",
    "Runs": "laconic.lab.run",
    "Tuned": "laconic.lab.tune",
    "tune": "laconic.lab.tune",
}

__all__ = ["Runs", "Tuned", "__version__", "parse", "report", "run", "tune"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'laconic' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
