"""Finished curves of a tuning: read from a folder where they are there, else computed, several processes at a time.

One JSON file per curve, named by a hash of everything that defines it. Nothing is pickled to disk; a file that cannot
be read counts as absent. Where the folder cannot be written to, curves are kept in memory alone.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import multiprocessing
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from laconic.core.method import Method
from laconic.core.places import cache
from laconic.core.problem import Problem
from laconic.core.spec import parse
from laconic.lab.plan import Limits
from laconic.lab.record import versions
from laconic.lab.store import write_atomically
from laconic.lab.sweep import COLUMNS, Field, Recording, sweep

FORMAT = 1  # of the files; raised when a curve would come out otherwise


@dataclass(frozen=True)
class Job:
    """Curves that are computed together: methods (as asked for, and settled) that differ in their stepsize alone."""

    label: str
    methods: tuple[Method, ...]
    settled: tuple[Method, ...]
    seed: int

    def parts(self, size: int) -> Iterator[Job]:
        """The same in pieces of about equal size, at most `size`."""
        count = math.ceil(len(self.methods) / size)
        ends = [len(self.methods) * i // count for i in range(count + 1)]
        for low, high in zip(ends, ends[1:], strict=False):
            yield Job(self.label, self.methods[low:high], self.settled[low:high], self.seed)


class Bank:
    """The curves of one problem with one set of limits. Used in a `with`, which ends its processes."""

    def __init__(
        self, field: Field, limits: Limits, every: int, jobs: int, folder: Path | None, said: Callable[[int], None]
    ) -> None:
        self._field, self._limits, self._every, self._said = field, limits, every, said
        self._jobs, self._pool = jobs, None
        self._facts = {
            "format": FORMAT,
            "versions": versions(),
            "problem": str(field.problem),
            "data": field.problem.fingerprint(field.data_dir),
            "limits": vars(limits),
            "every": every,
        }
        whole = (folder or cache() / "tune") / _digest(self._facts)[:16]
        self._folder: Path | None = whole
        with contextlib.suppress(OSError):
            whole.mkdir(parents=True, exist_ok=True)
        if not os.access(whole, os.W_OK):
            self._folder = None
        self._known: dict[tuple[str, int], Recording] = {}
        self._certain: dict[str, Recording] = {}  # curves for which no seed matters
        self.notes: dict[str, str] = {}  # by label: why its curves are not stacked

    def __enter__(self) -> Bank:
        return self

    def __exit__(self, *_: Any) -> None:
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)

    # ---- curves ---------------------------------------------------------------------------------------------------

    def find(self, settled: Method, seed: int) -> Recording | None:
        """A finished curve."""
        name = str(settled)
        found = self._known.get((name, seed)) or self._certain.get(name) or self._read(name, seed)
        if found is not None:
            self._keep(name, seed, found)
        return found

    def fill(self, jobs: Sequence[Job]) -> None:
        """Computes what is not there yet. Where a first seed turns out not to matter, the others are that curve."""
        for seed in dict.fromkeys(job.seed for job in jobs):
            missing = [left for job in jobs if job.seed == seed and (left := self._missing(job)) is not None]
            runs = sum(len(job.methods) for job in missing)
            share = max(1, math.ceil(runs / self._jobs))
            parts = [part for job in missing for part in job.parts(share)]
            for part, found, why in self._computed(parts):
                for settled, recording in zip(part.settled, found, strict=True):
                    self._keep(str(settled), seed, recording)
                    self._write(str(settled), seed, recording)
                    self._said(1)
                if why:
                    self.notes.setdefault(part.label, why)

    def _missing(self, job: Job) -> Job | None:
        pairs = list(zip(job.methods, job.settled, strict=True))
        left = [pair for pair in pairs if self.find(pair[1], job.seed) is None]
        self._said(len(pairs) - len(left))
        return Job(job.label, tuple(m for m, _ in left), tuple(s for _, s in left), job.seed) if left else None

    def _keep(self, name: str, seed: int, recording: Recording) -> None:
        self._known[name, seed] = recording
        if not recording.random:
            self._certain[name] = recording

    def _computed(self, jobs: Sequence[Job]) -> Iterator[tuple[Job, list[Recording], str]]:
        away = [job for job in jobs if self._travels(job)] if self._jobs > 1 and len(jobs) > 1 else []
        futures: dict[Future[Any], Job] = {}
        for job in away:
            specs = [str(method) for method in job.methods]
            futures[self._processes().submit(_elsewhere, specs, job.seed, self._limits, self._every)] = job
        for job in jobs:
            if job not in away:
                yield job, *sweep(self._field, job.settled, job.seed, self._limits, self._every)
        try:
            for future in as_completed(futures):
                yield futures[future], *future.result()
        except BaseException:
            for future in futures:
                future.cancel()
            raise

    # ---- processes ------------------------------------------------------------------------------------------------

    def _travels(self, job: Job) -> bool:
        return _says_all(self._field.problem) and all(map(_says_all, job.methods))

    def _processes(self) -> ProcessPoolExecutor:
        if self._pool is None:
            threads = max(1, (os.cpu_count() or 1) // self._jobs)
            self._pool = ProcessPoolExecutor(
                self._jobs,
                multiprocessing.get_context("spawn"),
                _begin,
                (str(self._field.problem), self._field.data_dir, threads),
            )
        return self._pool

    # ---- files ----------------------------------------------------------------------------------------------------

    def _path(self, settled: str, seed: int) -> Path | None:
        if self._folder is None:
            return None
        return self._folder / f"{_digest({**self._facts, 'method': settled, 'seed': seed})[:40]}.json"

    def _read(self, settled: str, seed: int) -> Recording | None:
        path = self._path(settled, seed)
        if path is None:
            return None
        try:
            plain = json.loads(path.read_text())
            columns = {name: [math.nan if v is None else v for v in plain["columns"][name]] for name in COLUMNS}
            return Recording(columns, str(plain["status"]), bool(plain["random"]))
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def _write(self, settled: str, seed: int, found: Recording) -> None:
        path = self._path(settled, seed)
        if path is None:
            return
        columns = {name: [v if math.isfinite(v) else None for v in column] for name, column in found.columns.items()}
        plain = {"method": settled, "seed": seed, "status": found.status, "random": found.random, "columns": columns}
        with contextlib.suppress(OSError):
            write_atomically(path, json.dumps(plain).encode())


def _digest(facts: Any) -> str:
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def _says_all(entry: Problem | Method) -> bool:
    """Whether another process makes the same entry of its spec."""
    try:
        return parse(str(entry)) == entry
    except ValueError:
        return False


_here: list[Field] = []  # in a process of a pool: the problem that it works on


def _begin(problem: str, data_dir: Path | None, threads: int) -> None:
    torch.set_num_threads(threads)
    found: Any = parse(problem)
    _here[:] = [Field.of(found, data_dir)]


def _elsewhere(specs: list[str], seed: int, limits: Limits, every: int) -> tuple[list[Recording], str]:
    (field,) = _here
    asked: list[Any] = [parse(spec) for spec in specs]
    return sweep(field, [method.settled(field.setting) for method in asked], seed, limits, every)
