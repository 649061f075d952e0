"""Worlds of processes for the tests: four workers, started once, of which a job takes the first few.

The parent speaks to each worker by lines of JSON over its standard input and output. A job is a function of jobs.py
by its name; every process of its world runs it. Its `torch.distributed` group is that of the job before, where that
one had as many processes and ended well.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import itertools
import json
import os
import selectors
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
SOURCE = HERE.parent / "src"
MOST = 4  # processes
START = 100.0  # seconds that their start may take on a busy machine
LIMIT = 30.0  # seconds: the timeout of a group


class Failed(AssertionError):
    """A job raised on some rank, or a rank died: `replies` holds what every rank said."""

    def __init__(self, job: str, replies: list[dict[str, Any]]) -> None:
        super().__init__(job + ":\n" + "\n".join(f"rank {i}: {reply}" for i, reply in enumerate(replies)))
        self.replies = replies


class Worker:
    """One process."""

    def __init__(self) -> None:
        environment = {key: value for key, value in os.environ.items() if key not in ("RANK", "WORLD_SIZE")}
        environment["PYTHONPATH"] = os.pathsep.join([str(SOURCE), str(HERE)])
        environment["OMP_NUM_THREADS"] = "1"
        self.process = subprocess.Popen(
            [sys.executable, "-u", str(HERE / "worker.py")], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            env=environment, text=True,
        )  # fmt: skip
        self._ready = False

    def wait_until_ready(self) -> None:
        if not self._ready:
            started = self.reply(time.monotonic() + START)
            assert started == {"ready": True}, started
            self._ready = True

    def ask(self, request: dict[str, Any]) -> None:
        """Hands it a request."""
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()

    def reply(self, deadline: float) -> dict[str, Any]:
        """What it answers, or how it died."""
        assert self.process.stdout is not None
        with selectors.DefaultSelector() as selector:
            selector.register(self.process.stdout, selectors.EVENT_READ)
            if not selector.select(max(0.0, deadline - time.monotonic())):
                self.stop()
                return {"hung": True}
        line = self.process.stdout.readline()
        return json.loads(line) if line.endswith("\n") else {"died": self.process.wait()}

    def stop(self) -> None:
        self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            with contextlib.suppress(OSError):  # what was not read yet by one who is gone
                if pipe is not None:
                    pipe.close()


class Pool:
    """The workers. One that died is replaced when it is needed again."""

    def __init__(self) -> None:
        self._workers: list[Worker] = []
        self._folder = tempfile.TemporaryDirectory(prefix="laconic-worlds-")
        self._stores = (str(Path(self._folder.name) / str(i)) for i in itertools.count())
        self._group: dict[str, Any] | None = None  # the last job's, where the next may use it

    def run(
        self, job: str, world: int, timeout: float = 60.0, limit: float = LIMIT, **arguments: Any
    ) -> list[dict[str, Any]]:
        """What every rank says: {"result": x}, {"error": type, "message": text}, {"died": status} or {"hung": True}."""
        self._start(MOST)
        for worker in self._workers[:world]:
            worker.wait_until_ready()
        group = self._group
        if group is None or (group["world"], group["limit"]) != (world, limit):
            group = {"store": next(self._stores), "world": world, "limit": limit}
        self._group = None
        deadline = time.monotonic() + timeout
        try:
            for rank in range(world):
                self._workers[rank].ask({"job": job, "group": {**group, "rank": rank}, "arguments": arguments})
            replies = [self._workers[rank].reply(deadline) for rank in range(world)]
        except BaseException:  # the test's own time limit, say: nobody may take a late reply for that of the next job
            for worker in self._workers[:world]:
                worker.stop()
            raise
        if all("result" in reply for reply in replies):
            self._group = group
        return replies

    def results(self, job: str, world: int, timeout: float = 60.0, **arguments: Any) -> list[Any]:
        """What the job gives on every rank. Raises Failed where it does not."""
        replies = self.run(job, world, timeout, **arguments)
        if not all("result" in reply for reply in replies):
            raise Failed(job, replies)
        return [reply["result"] for reply in replies]

    def _start(self, count: int) -> None:
        for worker in self._workers:
            if worker.process.poll() is not None:
                worker.stop()
        alive = [worker for worker in self._workers if worker.process.poll() is None]
        if len(alive) < count:
            self._group = None
        self._workers = alive + [Worker() for _ in range(count - len(alive))]

    def close(self) -> None:
        for worker in self._workers:
            worker.stop()
        self._folder.cleanup()


@functools.cache
def pool() -> Pool:
    """The one pool of this test run."""
    made = Pool()
    atexit.register(made.close)
    return made
