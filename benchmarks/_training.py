"""What the benchmarks of training share: runs that are started once and kept, a line each, and the page made of them.

A study says which runs it wants, the most important first. Each is a process of its own with its directory in --work;
a finished one leaves a line in OUT/runs.jsonl and is never run again, so a grid can be made in pieces and interrupted.
"""

from __future__ import annotations

import argparse
import contextlib
import fnmatch
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

Record = Mapping[str, Any]  # a line of runs.jsonl
HERE = Path(__file__).resolve().parent
DIVERGED = "the loss of rank"  # so `laconic train` begins to say that a loss is not finite
TRIES = 2  # of a run that ends badly
TAIL = 12  # lines of a failed run's output that are shown


def words_of(options: Mapping[str, Any]) -> list[str]:
    """Options as the command line has them; None is left out, and True is a word by itself.

    >>> words_of({"lr": 0.1, "weight_decay": None, "bf16": True, "evaluate_every": 5})
    ['--lr', '0.1', '--bf16', '--evaluate-every', '5']
    """
    given = ((f"--{name.replace('_', '-')}", value) for name, value in options.items() if value is not None)
    return [word for name, value in given for word in ((name,) if value is True else (name, str(value)))]


# ---- programs ------------------------------------------------------------------------------------------------------


class Program(ABC):
    """What a run consists of. `text` names it in full: runs with the same text are the same run."""

    text: str

    @abstractmethod
    def command(self, folder: Path, data_dir: Path | None) -> list[str]:
        """The words that start it; all that it leaves is in `folder`."""

    @abstractmethod
    def read(self, folder: Path) -> dict[str, Any]:
        """What is kept of a run that has ended well."""


@dataclass(frozen=True)
class Train(Program):
    """`laconic train`.

    Parameters
    ----------
    task : the recipe.
    options : of the command line, in its order.
    ranks : processes that it starts; None leaves that to whoever starts it, or is one process.
    data : whether it reads files from --data-dir.
    """

    task: str
    options: Mapping[str, Any]
    ranks: int | None = 2
    data: bool = True

    @property
    def words(self) -> list[str]:
        """Behind `laconic train`, without directories."""
        ranks = {} if self.ranks is None else {"ranks": self.ranks}
        return [self.task, *words_of({**ranks, **self.options, "checkpoint_every": 0})]

    @property
    def text(self) -> str:  # type: ignore[override]
        """The command, without directories."""
        return " ".join(["train", *(f'"{word}"' if " " in word else word for word in self.words)])

    def arguments(self, folder: Path, data_dir: Path | None) -> list[str]:
        """Behind `laconic`."""
        where = ["--data-dir", str(data_dir)] if self.data and data_dir is not None else []
        return ["train", *self.words, *where, "--out", str(folder / "run")]

    def command(self, folder: Path, data_dir: Path | None) -> list[str]:
        return [sys.executable, "-m", "laconic", *self.arguments(folder, data_dir)]

    def read(self, folder: Path) -> dict[str, Any]:
        document = json.loads((folder / "run" / "run.json").read_text(encoding="utf-8"))
        kept = ("identity", "smoke", "parameters", "bytes", "facts", "versions", "machine", "started", "result")
        found = {name: document.get(name) for name in kept}
        return {**found, "curve": columns(lines_of(folder / "run" / "evaluations.jsonl"))}


def lines_of(path: Path) -> list[dict[str, Any]]:
    """The objects of a file of JSON lines; a last line that was cut short is left out."""
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines(keepends=True) if line[-1] == "\n"]


def columns(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """Rows as columns, numbers to seven digits.

    >>> columns([{"step": 0, "loss": 2.302585093}, {"step": 5, "loss": 1.5}])
    {'step': [0, 5], 'loss': [2.302585, 1.5]}
    """
    names = dict.fromkeys(name for row in rows for name in row)
    return {name: [_short(row.get(name)) for row in rows] for name in names}


def _short(value: Any) -> Any:
    return float(f"{value:.7g}") if isinstance(value, float) else value


# ---- runs ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Job:
    """A run that a study wants.

    Parameters
    ----------
    name : for --only and --list.
    program : what is run.
    seconds : that it takes on two free cores, roughly.
    again : tells runs apart that are to be made more than once.
    """

    name: str
    program: Program
    seconds: float
    again: int = 0

    @property
    def key(self) -> str:
        """What makes it this run and no other."""
        return self.program.text + (f" (again: {self.again})" if self.again else "")

    @property
    def digest(self) -> str:
        """The name of its directory."""
        return hashlib.sha256(self.key.encode()).hexdigest()[:12]


class Store:
    """The finished runs of OUT/runs.jsonl, by key."""

    def __init__(self, out: Path) -> None:
        self.path = out / "runs.jsonl"
        self._found: dict[str, Record] = {line["key"]: line for line in lines_of(self.path)}

    def __contains__(self, job: Job) -> bool:
        return job.key in self._found

    def find(self, job: Job) -> Record | None:
        """The line of a run; None where it has not been made."""
        return self._found.get(job.key)

    def add(self, record: Record) -> None:
        """Keeps a line, on the disk before it returns."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        before = self.path.read_bytes() if self.path.exists() else b""
        whole = before[: before.rfind(b"\n") + 1]  # without a line that was cut short
        part = self.path.with_suffix(".part")
        part.write_bytes(whole + json.dumps(record).encode() + b"\n")
        os.replace(part, self.path)
        self._found[record["key"]] = record


class Failed(Exception):
    """A run has ended badly, for a reason that says nothing about what was to be measured."""


@dataclass(frozen=True)
class Workshop:
    """Where runs are made: directories in `work`, data in `data_dir`."""

    work: Path
    data_dir: Path | None

    def make(self, job: Job) -> dict[str, Any]:
        """Runs a job to its end; gives its line. Raises Failed."""
        folder = self.work / job.digest
        if folder.exists():  # what an interruption has left
            shutil.rmtree(folder)
        folder.mkdir(parents=True)
        environment = {name: value for name, value in os.environ.items() if name != "LACONIC_DATA"}
        start, log = time.time(), folder / "log.txt"
        with log.open("wb") as output, (folder / "stdout.txt").open("wb") as said:
            code = run(job.program.command(folder, self.data_dir), said, output, environment)
        line = {"key": job.key, "name": job.name, "wall": round(time.time() - start, 1), "diverged": False,
                "load": round(os.getloadavg()[0], 1), "processor": processor()}  # fmt: skip
        if code == 0:
            return {**line, **job.program.read(folder)}
        text = log.read_text(encoding="utf-8", errors="replace")
        if DIVERGED in text:
            return {**line, "diverged": True, "smoke": False}
        raise Failed(f"{job.key} ended with {code}:\n" + "\n".join(text.splitlines()[-TAIL:]))


def run(command: Sequence[str], said: IO[bytes], output: IO[bytes], environment: Mapping[str, str]) -> int:
    """The exit status of a command. What it has started ends with it, and with this process."""
    process = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=said, stderr=output, env=environment, start_new_session=True
    )
    try:
        return process.wait()
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        process.wait()


def processor() -> str:
    """The processor's name, where Linux tells it."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown")


# ---- studies -------------------------------------------------------------------------------------------------------


class Study(ABC):
    """A question, the runs that answer it, and the page with the answer.

    Attributes
    ----------
    name : of the folder in docs/results.
    summary : what --help says.
    flag : the option that asks for this form of it.
    """

    name: str
    summary: str
    flag: str = ""

    @property
    def command(self) -> str:
        """What makes the page."""
        return f"python benchmarks/{self.name}.py --data-dir DIR{self.flag}"

    @abstractmethod
    def jobs(self, store: Store) -> Iterable[Job]:
        """What is wanted, the most important first; may depend on what is there."""

    @abstractmethod
    def report(self, store: Store, out: Path) -> None:
        """Writes README.md and the pictures from what is there."""


@dataclass
class Bench:
    """Makes a study's runs, as far as there is time, and its page."""

    study: Study
    out: Path
    workshop: Workshop
    only: str = "*"
    minutes: float = float("inf")
    failed: dict[str, int] = field(default_factory=dict)  # how often, by key

    def waiting(self, store: Store) -> Iterator[Job]:
        """The runs that are still to be made."""
        for job in self.study.jobs(store):
            if job not in store and self.failed.get(job.key, 0) < TRIES and fnmatch.fnmatchcase(job.name, self.only):
                yield job

    def list(self) -> str:
        """What is to be run, with seconds."""
        store = Store(self.out)
        jobs = [job for job in self.study.jobs(store) if fnmatch.fnmatchcase(job.name, self.only)]
        rows = [f"{'done' if job in store else f'{job.seconds:5.0f} s':>8}  {job.name:<40} {job.key}" for job in jobs]
        left = sum(job.seconds for job in jobs if job not in store)
        return "\n".join([*rows, f"{len(jobs)} runs known so far; those to be made take about {left / 60:.0f} minutes"])

    def run(self) -> int:
        """Makes runs until none is left or time is up, then the page. Gives an exit status."""
        end = time.monotonic() + 60.0 * self.minutes
        while (job := next(self.waiting(store := Store(self.out)), None)) is not None:
            if time.monotonic() + job.seconds > end:
                print(f"time is up before {job.name}", flush=True)
                break
            print(f"{time.strftime('%H:%M:%S')} {job.name}: {job.key} (about {job.seconds:.0f} s)", flush=True)
            try:
                store.add(self.workshop.make(job))
            except Failed as failure:
                print(failure, file=sys.stderr, flush=True)
                self.failed[job.key] = self.failed.get(job.key, 0) + 1
        self.report()
        return 1 if any(times == TRIES for times in self.failed.values()) else 0

    def report(self) -> None:
        """The page and its pictures."""
        self.out.mkdir(parents=True, exist_ok=True)
        self.study.report(Store(self.out), self.out)
        print(f"written to {self.out / 'README.md'}")


def main(smoke: Study, usual: Study, full: Study | None = None, arguments: Sequence[str] | None = None) -> int:
    """The command line of a benchmark, with its forms."""
    parser = argparse.ArgumentParser(description=usual.summary, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="the page's folder (default docs/results/..., or WORK/... for smoke)")
    parser.add_argument("--work", type=Path, default=Path("build/training"), help="where run directories are")
    parser.add_argument("--data-dir", type=Path, default=os.environ.get("LACONIC_DATA"))
    parser.add_argument("--only", default="*", help="pattern of names: make only these runs")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="start no run that would end later")
    parser.add_argument("--list", action="store_true", help="what is to be run, with estimated seconds")
    parser.add_argument("--report", action="store_true", help="page and pictures from what is there")
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--smoke", action="store_true", help="a tiny form that shows nothing but that it works")
    if full is not None:
        form.add_argument("--full", action="store_true", help="the form of the source; many hours")
    given = parser.parse_args(arguments)
    study = smoke if given.smoke else full if full is not None and given.full else usual
    study.flag = " --smoke" if study is smoke else " --full" if study is full else ""
    folder = f"{study.name}{'_full' * (study is full)}"  # forms do not write over each other
    home = given.work if given.smoke else HERE.parent / "docs" / "results"
    data = None if given.data_dir is None else Path(given.data_dir).resolve()
    bench = Bench(study, given.out or home / folder, Workshop(given.work.resolve(), data), given.only, given.minutes)
    if given.list:
        print(bench.list())
        return 0
    if given.report:
        bench.report()
        return 0
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # the run in hand ends too
    try:
        return bench.run()
    finally:
        signal.signal(signal.SIGTERM, before)
