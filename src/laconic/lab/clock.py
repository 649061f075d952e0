"""A stopwatch for computing: it stands still while numba compiles, which happens once per machine and not per run."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from numba.core import event


class _Compiling(event.Listener):
    """Seconds during which numba was compiling or loading compiled code, over all threads."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self._depth = 0
        self._since = 0.0

    def on_start(self, event: event.Event) -> None:
        if self._depth == 0:
            self._since = time.perf_counter()
        self._depth += 1

    def on_end(self, event: event.Event) -> None:
        self._depth = max(0, self._depth - 1)
        if self._depth == 0:
            self.seconds += time.perf_counter() - self._since


class Stopwatch:
    """Adds up the seconds spent inside `running()`, less those of compilation."""

    def __init__(self, seconds: float = 0.0) -> None:
        self.seconds = seconds
        self._compiling = _Compiling()

    @contextmanager
    def running(self) -> Iterator[None]:
        before = self._compiling.seconds
        event.register("numba:compiler_lock", self._compiling)
        start = time.perf_counter()
        try:
            yield
        finally:
            elapsed = time.perf_counter() - start
            event.unregister("numba:compiler_lock", self._compiling)
            self.seconds += max(0.0, elapsed - (self._compiling.seconds - before))
