"""What a figure of several panels shows, apart from how it is drawn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Series:
    """One line of a panel. The same label has the same look in all panels of a figure; `dashed` is for theory."""

    label: str
    x: np.ndarray
    y: np.ndarray
    dashed: bool = False


@dataclass(frozen=True)
class Panel:
    """One pair of axes. `log` names the logarithmic ones: "", "x", "y" or "xy"."""

    title: str
    x: str
    y: str
    series: Sequence[Series]
    log: str = "y"


@dataclass(frozen=True)
class Grid:
    """A figure: rows of panels. `caption` says in a sentence or two what is to be seen."""

    caption: str
    rows: Sequence[Sequence[Panel]]
