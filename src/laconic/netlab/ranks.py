"""The processes of a lab's ranks: waiting for them, and ending the others when one fails."""

from __future__ import annotations

import contextlib
import os
import selectors
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import IO

LAST = 2.0  # seconds between the request to end and the end


@dataclass(frozen=True)
class Ended:
    """How the ranks ended: the first one that failed, if any, and the exit code of the whole."""

    failed: int | None = None
    code: int = 0


@dataclass
class Ranks:
    """One process per rank, each the head of a session of its own, so that Ctrl-C reaches the lab alone."""

    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def start(self, words: Sequence[str], environment: Mapping[str, str], output: IO[bytes] | None) -> None:
        """The next rank; `output` takes both its streams, else they go where the lab's go."""
        errors = None if output is None else subprocess.STDOUT
        process = subprocess.Popen(
            words, env=environment, stdin=subprocess.DEVNULL, stdout=output, stderr=errors, start_new_session=True
        )  # fmt: skip
        self.processes.append(process)

    def wait(self, grace: float, every: float, tick: Callable[[], None]) -> Ended:
        """Until all have ended; `tick` is called each so many seconds.

        When one fails, the others have `grace` seconds to notice by themselves. Then they are ended.
        """
        ended, deadline = Ended(), float("inf")
        following = time.monotonic() + every
        with selectors.DefaultSelector() as watched:
            for rank, process in enumerate(self.processes):
                watched.register(os.pidfd_open(process.pid), selectors.EVENT_READ, rank)
            try:
                while watched.get_map():
                    now = time.monotonic()
                    if now >= deadline:
                        self.end()
                    ready = watched.select(max(0.0, min(following, deadline) - now))
                    for key, _ in sorted(ready, key=lambda one: one[0].data):
                        watched.unregister(key.fileobj)
                        os.close(key.fd)
                        code = self.processes[key.data].wait()
                        if code and ended.failed is None:
                            ended = Ended(key.data, code if code > 0 else 128 - code)
                            deadline = time.monotonic() + grace
                    if time.monotonic() >= following:
                        following = time.monotonic() + every
                        tick()
            finally:
                for key in list(watched.get_map().values()):
                    os.close(key.fd)
        return ended

    def end(self) -> None:
        """Asks those who are still there to end, and then insists."""
        self._signal(signal.SIGTERM)
        deadline = time.monotonic() + LAST
        for process in self.processes:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(max(0.0, deadline - time.monotonic()))
        self._signal(signal.SIGKILL)
        for process in self.processes:
            process.wait()

    def _signal(self, number: int) -> None:
        for process in self.processes:
            if process.poll() is None:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, number)
