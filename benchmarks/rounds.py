"""Time per round of representative runs, beside a hand-written NumPy loop, in one process.

Run with `make bench`, or `python benchmarks/rounds.py [--data-dir DIR] [--quick]`. The data sets a9a and w8a are looked
for in DIR, else in LACONIC_DATA; without them the runs that need them are left out, with the reason. Times are medians
over repeats; machines are noisy, so read the ratio, not the milliseconds.
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

import laconic
from laconic.core.link import Link
from laconic.core.method import Method
from laconic.core.problem import Block, Oracles, Problem
from laconic.core.spec import parse
from laconic.core.theory import Setting
from laconic.runtime.local import Local

A9A = "logistic(data='a9a', l2=1e-3, workers=20)"
A9A_MANY = "logistic(data='a9a', l2=1e-3, workers=3000)"
QUADRATIC = "quadratic(d=100, workers=10000)"
W8A = "logistic(data='w8a', l2=1e-3, workers=142, intercept=True, split='shuffled')"
A9A_NEWTON = "logistic(data='a9a', l2=1e-3, workers=142)"


def numpy_ef21(problem: Problem, data_dir: Path | None, k: int, step: float, rounds: int) -> float:
    """Seconds per round of EF21 with TopK as one writes it by hand: dense rows, a Python loop over workers."""
    from laconic.problems._data import load  # the same rows, made dense

    raise NotImplementedError(load)


def main() -> None:
    pass
