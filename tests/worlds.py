"""Worlds of processes for the tests: four workers, started once, of which a job takes the first few.

Workers are forks of one process that has imported everything and done nothing else, so that one that died is replaced
in no time. The parent speaks to each by JSON over a pipe. A job is a function of jobs.py by its name; every process of
its world runs it. Its `torch.distributed` group is that of the job before, where that one had as many processes and
ended well.
"""

from __future__ import annotations

import atexit
import functools
import itertools
import json
import multiprocessing
import multiprocessing.forkserver
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import worker

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


@functools.cache
def forks() -> Any:
    """What starts processes that are copies of one with all jobs imported."""
    context: Any = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["ready"])
    before = dict(os.environ)
    os.environ.update(PYTHONPATH=os.pathsep.join([str(SOURCE), str(HERE)]), OMP_NUM_THREADS="1")
    for name in ("RANK", "WORLD_SIZE"):
        os.environ.pop(name, None)
    try:
        multiprocessing.forkserver.ensure_running()
    finally:
        os.environ.clear()
        os.environ.update(before)
    return context


class Worker:
    """One process."""

    def __init__(self) -> None:
        self._pipe, theirs = forks().Pipe()
        self.process = forks().Process(target=worker.serve, args=(theirs,), daemon=True)
        self.process.start()
        theirs.close()
        self._ready = False

    def wait_until_ready(self) -> None:
        if not self._ready:
            started = self.reply(time.monotonic() + START)
            assert started == {"ready": True}, started
            self._ready = True

    def ask(self, request: dict[str, Any]) -> None:
        """Hands it a request."""
        self._pipe.send_bytes(json.dumps(request).encode())

    def reply(self, deadline: float) -> dict[str, Any]:
        """What it answers, or how it died."""
        if not self._pipe.poll(max(0.0, deadline - time.monotonic())):
            self.stop()
            return {"hung": True}
        try:
            return json.loads(self._pipe.recv_bytes())
        except (EOFError, OSError):
            self.process.join()
            return {"died": self.process.exitcode}

    def stop(self) -> None:
        self.process.kill()
        self.process.join()
        self._pipe.close()


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
        for one in self._workers[:world]:
            one.wait_until_ready()
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
            for one in self._workers[:world]:
                one.stop()
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

    def kill(self, world: int) -> None:
        """Ends the first workers by SIGKILL, whatever they are doing."""
        for one in self._workers[:world]:
            one.process.kill()

    def _start(self, count: int) -> None:
        for one in self._workers:
            if not one.process.is_alive():
                one.stop()
        alive = [one for one in self._workers if one.process.is_alive()]
        if len(alive) < count:
            self._group = None
        self._workers = alive + [Worker() for _ in range(count - len(alive))]

    def close(self) -> None:
        for one in self._workers:
            one.stop()
        self._folder.cleanup()


@functools.cache
def pool() -> Pool:
    """The one pool of this test run."""
    made = Pool()
    atexit.register(made.close)
    return made
