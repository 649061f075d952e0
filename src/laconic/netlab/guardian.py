"""Ends what is left of a lab: all processes in its namespaces, then the namespaces, with which bridge and veths go.

As a script it waits for the end of its standard input, a pipe of which the lab holds the other end: whatever ends the
lab, SIGKILL included, closes that. It knows nothing of laconic or torch, so that it is small and starts at once.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Container, Iterable

NAMESPACES = "/run/netns"  # where iproute2 keeps the names
NAME = re.compile(r"laconic-(\d+)-(\d+)-(?:hub|\d+)")
PATIENCE = 5.0  # seconds until processes that were killed must be gone
AGAIN = 0.3  # seconds after which a lab that was killed while it built is looked at once more
TIDY = b"."  # what a lab says before it closes the pipe when nothing of it is still at work


def lab_name(pid: int) -> str:
    """The beginning of the names of a process's lab, which says who it is even after its number is given again."""
    return f"laconic-{pid}-{_birth(pid)}"


def _birth(pid: int) -> str:
    """When a process was started, in the kernel's ticks; empty where there is none."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
            state, *rest = file.read().rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if state in "ZX" else rest[18]


def namespaces(name: str = "") -> list[str]:
    """The namespaces of one lab, or of all labs."""
    try:
        found = sorted(os.listdir(NAMESPACES))
    except OSError:
        return []
    return [one for one in found if NAME.fullmatch(one) and (not name or one.startswith(f"{name}-"))]


def stale() -> list[str]:
    """The namespaces of labs that no longer live."""
    parts = [(one, NAME.fullmatch(one)) for one in namespaces()]
    return [one for one, found in parts if found is not None and _birth(int(found[1])) != found[2]]


def remove(names: Iterable[str]) -> None:
    """Kills what runs in the namespaces, wherever it came from, and removes them."""
    names = list(names)
    inodes = {inode for one in names if (inode := _inode(f"{NAMESPACES}/{one}"))} - {_inode("/proc/self/ns/net")}
    deadline = time.monotonic() + PATIENCE
    while inodes and _kill(inodes) and time.monotonic() < deadline:
        time.sleep(0.02)
    for one in names:
        subprocess.run(["ip", "netns", "delete", one], stdin=subprocess.DEVNULL, capture_output=True, check=False)


def _inode(path: str) -> tuple[int, int] | None:
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _kill(inodes: Container[tuple[int, int] | None]) -> int:
    """How many processes it found there and killed."""
    count = 0
    for pid in map(int, filter(str.isdigit, os.listdir("/proc"))):
        if _inode(f"/proc/{pid}/ns/net") not in inodes:
            continue
        with contextlib.suppress(OSError):
            process = os.pidfd_open(pid)  # holds it, so that nobody else gets its number before the signal
            try:
                if _inode(f"/proc/{pid}/ns/net") in inodes:
                    signal.pidfd_send_signal(process, signal.SIGKILL)
                    count += 1
            finally:
                os.close(process)
    return count


def main(name: str) -> int:
    """Waits for the lab's end and cleans up after it; 0 when nothing is left."""
    for one in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(one, signal.SIG_IGN)  # they are for the lab, which then closes the pipe
    tidy = sys.stdin.buffer.read().endswith(TIDY)
    remove(namespaces(name))
    if not tidy:
        time.sleep(AGAIN)
        remove(namespaces(name))
    return len(namespaces(name)) > 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
