"""Runs a kernel over the rows of a batch on torch's number of threads. Kernels release the GIL and never share rows."""

from __future__ import annotations

import atexit
import threading
from collections.abc import Callable
from queue import SimpleQueue

import numba
import torch
from torch import Tensor

SMALL = 1 << 16  # elements of work under which waking a thread costs more than it saves
SHARES = 3  # pieces per thread: whoever is awake takes the next one

SPAN = 1 << 14  # coordinates of a piece of a row, where rows are shared by threads

Kernel = Callable[..., object]


class _Job:
    """A kernel on ranges of rows that several threads take from one list until it is empty."""

    def __init__(self, kernel: Kernel, ranges: list[tuple[int, int]], arguments: tuple[object, ...]) -> None:
        self.kernel, self.ranges, self.arguments = kernel, ranges, arguments
        self.unfinished = len(ranges)
        self.failure: BaseException | None = None
        self.guard, self.finished = threading.Lock(), threading.Lock()
        self.finished.acquire()

    def work(self) -> None:
        while True:
            try:
                low, high = self.ranges.pop()
            except IndexError:
                return
            try:
                self.kernel(low, high, *self.arguments)
            except BaseException as failure:  # raised again by the caller's thread
                self.failure = failure
            with self.guard:
                self.unfinished -= 1
                if self.unfinished == 0:
                    self.finished.release()


_waiting: SimpleQueue[_Job | None] = SimpleQueue()
_helpers: list[threading.Thread] = []


def _help() -> None:
    while (job := _waiting.get()) is not None:
        job.work()


@atexit.register
def _dismiss() -> None:
    """A thread that wakes up while the interpreter is taken down would take the whole process down with an abort."""
    for _ in _helpers:
        _waiting.put(None)
    for helper in _helpers:
        helper.join(timeout=1.0)


def _call(helpers: int, job: _Job) -> None:
    """Asks that many other threads to help; one that wakes up late finds nothing left to do."""
    while len(_helpers) < helpers:
        _helpers.append(threading.Thread(target=_help, name="laconic-kernel", daemon=True))
        _helpers[-1].start()
    for _ in range(helpers):
        _waiting.put(job)


def compiled_for(tensor: Tensor) -> bool:
    """Whether there are kernels for numbers like these: float64 or float32 on the CPU."""
    return tensor.is_cpu and tensor.dtype in (torch.float64, torch.float32)


def over_rows(kernel: Kernel, rows: int, work: int, *arguments: object) -> None:
    """Calls `kernel(low, high, *arguments)` for ranges that cover `0..rows`.

    `work` is the number of elements touched in all; little work stays on the calling thread. A kernel's result for
    a row must not depend on the range the row is in, so the number of threads never changes a bit.
    """
    threads = min(torch.get_num_threads(), rows)
    if threads <= 1 or work < SMALL:
        kernel(0, rows, *arguments)
        return
    pieces = min(SHARES * threads, rows)
    ends = [rows * piece // pieces for piece in range(pieces + 1)]
    job = _Job(kernel, list(zip(ends, ends[1:], strict=False)), arguments)
    _call(threads - 1, job)
    job.work()
    job.finished.acquire()
    if job.failure is not None:
        raise job.failure


@numba.njit(inline="always")
def span(piece, d):
    """The row, first and last coordinate (exclusive) of a piece of rows of d coordinates, in `over_spans`."""
    spans = (d + SPAN - 1) // SPAN
    begin = piece % spans * SPAN
    return piece // spans, begin, min(begin + SPAN, d)


def over_spans(kernel: Kernel, rows: int, d: int, *arguments: object) -> None:
    """As `over_rows`, with `kernel(low, high, ...)` for pieces of at most SPAN coordinates of rows of d of them."""
    over_rows(kernel, rows * -(-d // SPAN), 8 * rows * d, *arguments)
