"""Runs a kernel over the rows of a batch on torch's number of threads. Kernels release the GIL and never share rows."""

from __future__ import annotations

import functools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import torch

SMALL = 1 << 16  # elements of work under which starting threads costs more than it saves


@functools.lru_cache(maxsize=1)
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(max_workers=threads, thread_name_prefix="laconic-kernel")


def over_rows(kernel: Callable[..., object], rows: int, work: int, *arguments: object) -> None:
    """Calls `kernel(low, high, *arguments)` for ranges that cover `0..rows`.

    `work` is the number of elements touched in all; little work stays on the calling thread. A kernel's result for
    a row must not depend on the range the row is in, so the number of threads never changes a bit.
    """
    threads = min(torch.get_num_threads(), rows)
    if threads <= 1 or work < SMALL:
        kernel(0, rows, *arguments)
        return
    ends = [rows * part // threads for part in range(threads + 1)]
    pool = _pool(threads - 1)
    others = [pool.submit(kernel, ends[part], ends[part + 1], *arguments) for part in range(1, threads)]
    kernel(ends[0], ends[1], *arguments)
    for other in others:
        other.result()
