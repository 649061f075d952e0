"""Live progress on standard error: one line per curve, with its round and gap."""

from __future__ import annotations

import sys
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from laconic.lab.plan import Limits
from laconic.lab.trace import Row


class Watch:
    """Shows how far a run is. Does nothing unless `shown` and standard error is a terminal."""

    def __init__(self, shown: bool, limits: Limits) -> None:
        console = Console(file=sys.stderr)
        self._limits = limits
        columns = (
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            TextColumn("{task.fields[note]}"),
            TimeElapsedColumn(),
        )
        self._progress = Progress(*columns, console=console, disable=not (shown and console.is_terminal))
        self._task = None

    def __enter__(self) -> Watch:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def begin(self, label: str, seed: int) -> None:
        """A curve begins."""
        limits = self._limits
        total = limits.rounds or limits.iterations or (int(limits.budget) if limits.budget else None)
        text = f"{label} (seed {seed})".replace("[", r"\[")
        self._task = self._progress.add_task(text, total=total, note="")

    def row(self, row: Row) -> None:
        """The curve has recorded a row."""
        if self._task is None:
            return
        limits = self._limits
        done = row.rounds if limits.rounds else row.iteration if limits.iterations else row.uplink
        measure = f"gap {row.gap:.2e}" if row.gap == row.gap else f"‖∇f‖² {row.grad_norm2:.2e}"
        note = f"round {row.rounds}  {measure}" + ("" if row.status == "running" else f"  {row.status}")
        self._progress.update(self._task, completed=done, note=note)
