"""The processes of a run: those of torchrun or of the network lab, N that are started here, or this one alone."""

from __future__ import annotations

import contextlib
import ctypes
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
import torch.distributed as dist

TRIM_THRESHOLD, MMAP_MAX = -1, -4  # of glibc's malloc.h


def keep_pages() -> None:
    """Lets malloc keep what is freed, where it is glibc's.

    It would give large tensors back to the system, which clears every page before it hands it out again: a fifth of a
    step of GPT-2 nano, whose logits are large.
    """
    with contextlib.suppress(OSError, AttributeError, TypeError):
        libc = ctypes.CDLL(None)
        libc.mallopt(MMAP_MAX, 0)
        libc.mallopt(TRIM_THRESHOLD, 2**31 - 1)


def started() -> bool:
    """Whether somebody has made this process one of several: RANK is in the environment."""
    return "RANK" in os.environ


def start(ranks: int, threads: int | None, arguments: Sequence[str]) -> int:
    """Runs `laconic ARGUMENTS` in so many processes by `torch.distributed.run`; gives its exit status."""
    each = threads or max(1, (os.cpu_count() or 1) // ranks)
    environment = {**os.environ, "OMP_NUM_THREADS": str(each)}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
    # after -- it does not take our options for short forms of its own
    return subprocess.run([*command, "-m", "--", "laconic", *arguments], env=environment).returncode


@contextmanager
def world(threads: int | None = None) -> Iterator[None]:
    """Within it `torch.distributed` (Gloo) is initialised: as it was, from the environment, or with this process alone.

    `threads` are torch's in this process; None leaves them as they are.
    """
    if threads is not None:
        torch.set_num_threads(threads)
    if dist.is_initialized():
        yield
        return
    if started():
        dist.init_process_group("gloo")
    else:
        dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        yield
    finally:
        dist.destroy_process_group()


def leave() -> None:
    """Ends a process that was started as one of several and has done its work; does nothing in others.

    A process group that DDP has used outlives `destroy_process_group`, and so do its threads. Where the interpreter
    goes through its own end beside them, C++ now and then calls `terminate`: seen with torch 2.13, in about one run of
    twenty over slow links.
    """
    if started() and not dist.is_initialized():
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)
