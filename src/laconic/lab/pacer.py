"""When to save a checkpoint: decided by the leader's clock, known to all processes."""

from __future__ import annotations

import time

from laconic.runtime.base import Runtime


class Pacer:
    """Says when to save, every few seconds by the leader's clock, asking the others for agreement only now and then."""

    LOOK = 0.25  # seconds between two agreements, at most

    def __init__(self, runtime: Runtime, seconds: float) -> None:
        self._runtime, self._seconds, self._look = runtime, seconds, min(self.LOOK, seconds / 8)
        self._saved = self._looked = time.monotonic()
        self._at, self._next = 0, 0

    def due(self, iteration: int) -> bool:
        """Whether to save after this iteration; the same on all processes."""
        if iteration < self._next:
            return False
        now = time.monotonic()
        pace = (now - self._looked) / max(1, iteration - self._at)
        stride = self._runtime.agree(max(1, min(10_000, int(self._look / max(pace, 1e-9)))))
        self._looked, self._at, self._next = now, iteration, iteration + stride
        due = bool(self._runtime.agree(int(now - self._saved >= self._seconds)))
        if due:
            self._saved = time.monotonic()
        return due
