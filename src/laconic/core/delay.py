"""Delay models: how many seconds a worker takes for one gradient, in virtual time."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

import numpy as np

from laconic.core.entry import Entry
from laconic.core.keys import Keys


class Delays(Entry, ABC):
    """Seconds that the workers take for one gradient of their own f_i, all of its terms.

    They are a function of addresses, as every draw: all parties know those of all workers.
    """

    kind: ClassVar[str] = "delay"

    @abstractmethod
    def draw(self, keys: Keys) -> np.ndarray:
        """One number > 0 for each row of the keys, float64 of shape (rows,)."""

    @abstractmethod
    def bounds(self, n: int) -> tuple[np.ndarray, np.ndarray] | None:
        """The least and the most seconds of each of n workers, (n,) each; None where there is no most.

        Raises ValueError, one line, where the model is one of another number of workers.
        """
