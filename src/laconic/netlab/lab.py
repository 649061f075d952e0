"""A lab: builds a layout, runs a command in each rank's namespace, reads the counters, and leaves nothing behind."""

from __future__ import annotations

import functools
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from laconic.netlab import guardian
from laconic.netlab.counters import Traffic
from laconic.netlab.layout import Layout
from laconic.netlab.ranks import Ended, Ranks

Run = Callable[[Sequence[str]], "subprocess.CompletedProcess[str]"]
EVERY = 1.0  # seconds between two looks at the counters, for the busiest second


class Unavailable(ValueError):
    """This machine cannot make such a lab; the text says what it lacks."""


def run(words: Sequence[str]) -> subprocess.CompletedProcess[str]:
    """One command of iproute2."""
    return subprocess.run(words, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)


def build(layout: Layout, runner: Run = run, platform: str = sys.platform) -> None:
    """Makes everything of the layout.

    Raises
    ------
    Unavailable
        At the first command that fails: what it means, and what the command said.
    """
    if platform != "linux":
        raise Unavailable(f"netlab needs Linux's network namespaces; this is {platform}")
    for command in layout.commands():
        try:
            done = runner(command.words)
        except FileNotFoundError:
            raise Unavailable(f"netlab needs {command.words[0]}: install iproute2 (as root)") from None
        if done.returncode:
            said = " ".join(done.stderr.split()) or f"exit code {done.returncode}"
            raise Unavailable(f"netlab: {command.lacking}; `{' '.join(command.words[:5])} ...` said: {said}")


def program(word: str) -> str:
    """The path of a command: on PATH, or beside this Python, where `laconic` is in an environment not activated.

    Raises
    ------
    ValueError
        There is no such command.
    """
    path = os.pathsep.join([os.environ.get("PATH", os.defpath), str(Path(sys.executable).parent)])
    found = shutil.which(word, path=path)
    if found is None:
        raise ValueError(f"netlab: there is no command {word}; give one after --, such as -- laconic train ...")
    return found


class Lab:
    """A layout that stands while the `with` block lasts.

    Parameters
    ----------
    layout
        What to build; its name must come from `guardian.lab_name(os.getpid())`.
    logs
        A directory for the output of ranks 1, 2, ...: `rank1.log`, ...; without one a temporary directory is made.
    """

    def __init__(self, layout: Layout, logs: Path | None = None) -> None:
        self.layout = layout
        self._logs = logs
        self.ranks = Ranks()
        self.seconds = 0.0
        self.busiest: dict[int, tuple[float, float]] = {}  # bits per second sent and received, in some second
        self._seen: tuple[float, list[Traffic]] = (0.0, [])

    def __enter__(self) -> Self:
        guardian.remove(guardian.stale())
        self._guardian = subprocess.Popen(
            [sys.executable, "-I", "-S", str(Path(guardian.__file__)), self.layout.name],
            stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
        try:
            build(self.layout)
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Ends the ranks and whatever they started, and removes the namespaces; the guardian does it in any case."""
        self.ranks.end()
        if self._guardian.poll() is None:
            self._guardian.communicate(guardian.TIDY)
        left = guardian.namespaces(self.layout.name)
        if left:
            print(f"laconic: could not remove the namespaces {', '.join(left)}", file=sys.stderr)

    @functools.cached_property
    def logs(self) -> Path:
        """Where the ranks' output is; made when it is first asked for."""
        if self._logs is None:
            return Path(tempfile.mkdtemp(prefix="laconic-netlab-"))
        self._logs.mkdir(parents=True, exist_ok=True)
        return self._logs

    def log(self, rank: int) -> Path:
        """Where the output of a rank is; rank 0's is not kept."""
        return self.logs / f"rank{rank}.log"

    def execute(self, words: Sequence[str], grace: float) -> Ended:
        """Runs a command once per rank, and waits for all of them."""
        layout = self.layout
        words = [program(words[0]), *words[1:]]
        cores = len(os.sched_getaffinity(0))
        started = time.monotonic()
        self._seen = (started, self.traffic())
        for rank in range(layout.ranks):
            own = layout.environment(rank, cores)
            if "OMP_NUM_THREADS" in os.environ:
                del own["OMP_NUM_THREADS"]
            inside = ["ip", "netns", "exec", layout.namespace(rank), *words]
            if rank == 0:
                self.ranks.start(inside, {**os.environ, **own}, None)
                continue
            with self.log(rank).open("wb") as output:
                self.ranks.start(inside, {**os.environ, **own}, output)
        ended = self.ranks.wait(grace, EVERY, self._look)
        self.seconds = time.monotonic() - started
        if not self.busiest or time.monotonic() - self._seen[0] > EVERY / 2:
            self._look()
        return ended

    def _look(self) -> None:
        """The rates since the last look, if they are the highest so far."""
        then, before = self._seen
        traffic, now = self.traffic(), time.monotonic()
        self._seen = (now, traffic)
        for rank, (new, old) in enumerate(zip(traffic, before, strict=True)):
            since, best = new - old, self.busiest.get(rank, (0.0, 0.0))
            rates = (8 * since.bytes_sent / (now - then), 8 * since.bytes_received / (now - then))
            self.busiest[rank] = (max(best[0], rates[0]), max(best[1], rates[1]))

    def traffic(self) -> list[Traffic]:
        """What crossed each rank's cable until now, by the counters of the bridge's ends."""
        links = {one["ifname"]: one for one in self._ask("ip", "-n", self.layout.hub, "-s", "-j", "link", "show")}
        found = []
        for rank in range(self.layout.ranks):
            counts = links[self.layout.port(rank)]["stats64"]
            came, went = counts["rx"], counts["tx"]  # what came to the bridge was sent by the rank
            found.append(Traffic(came["bytes"], went["bytes"], came["packets"], went["packets"]))
        return found

    def dropped(self) -> list[int]:
        """Frames on their way to each rank that found the queue full, and were sent again."""
        found = dict.fromkeys(range(self.layout.ranks), 0)
        for one in self._ask("tc", "-n", self.layout.hub, "-s", "-j", "qdisc", "show"):
            if one["dev"].startswith("rank"):
                found[int(one["dev"].removeprefix("rank"))] += one["drops"]
        return list(found.values())

    @staticmethod
    def _ask(*words: str) -> list[dict[str, Any]]:  # iproute2's own JSON
        done = run(words)
        if done.returncode:
            raise Unavailable(f"netlab: `{' '.join(words)}` said: {' '.join(done.stderr.split())}")
        return json.loads(done.stdout)
