"""`laconic.run`: many methods on one problem, several seeds, one table of what happened."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import pandas as pd
import pyarrow as pa

from laconic.core.delay import Delays
from laconic.core.problem import Constants, Oracles, Problem, Solution
from laconic.core.theory import Setting
from laconic.lab.curve import Curve, Stop
from laconic.lab.evaluate import Excess, Party, survey
from laconic.lab.pacer import Pacer
from laconic.lab.plan import Limits, Plan, plan
from laconic.lab.progress import Watch
from laconic.lab.record import machine, problem_record, solution_record, versions
from laconic.lab.settle import Entrant, settle
from laconic.lab.store import Checkpoint, RunDirectory
from laconic.lab.trace import Row, Trace
from laconic.runtime.base import Runtime
from laconic.runtime.local import Local
from laconic.runtime.network import Network
from laconic.runtime.process_group import NetworkFailure, ProcessGroup

__all__ = ["NetworkFailure", "Runs", "run"]

NETWORK = "10mbit,20ms"  # the default network
SAVE_EVERY = 5.0  # seconds between two checkpoints


class OpenRuntime(Protocol):
    """Makes the runtime of one curve."""

    def __call__(self, n: int, *, seed: int, topology: str, encoded: bool) -> Runtime: ...


def local(n: int, *, seed: int, topology: str, encoded: bool) -> Runtime:
    """Everything in this process; a star is the debug link, which catches methods that cheat."""
    return Local.debug(n, seed=seed, encoded=encoded) if topology == "star" else Local(n, seed=seed, encoded=encoded)


def processes(n: int, *, seed: int, topology: str, encoded: bool) -> Runtime:
    """This process is one of several, started by torchrun."""
    return ProcessGroup(n, seed=seed, star=topology == "star", encoded=encoded)


@dataclass(frozen=True)
class Runs:
    """What a run found.

    Attributes
    ----------
    document : the contents of run.json: plan, constants, settled methods and, under "results", one entry per curve.
    table : the trace as an Arrow table (see `laconic.lab.trace.Row` for its columns).
    path : the run directory, or None where nothing was written.
    """

    document: dict[str, Any]
    table: pa.Table
    path: Path | None = None

    @property
    def trace(self) -> pd.DataFrame:
        """The trace as a pandas table, one row per recorded iteration of every curve."""
        return self.table.to_pandas()

    @property
    def results(self) -> list[dict[str, Any]]:
        """One entry per finished curve: status, rounds, bytes, gap, `x_sha256` and more."""
        return self.document["results"]

    @staticmethod
    def load(path: str | Path) -> Runs:
        """The run in a directory. Raises ValueError where there is none."""
        directory = RunDirectory(Path(path))
        document, table = directory.read(), directory.read_trace()
        if table is None:
            raise ValueError(f"{path} has no trace yet; let the run go on with --resume")
        return Runs(document, table, Path(path))


def run(
    problem: str | Problem,
    methods: Any,
    *,
    rounds: int | None = None,
    iterations: int | None = None,
    until: float | None = None,
    budget: float | None = None,
    every: int = 1,
    seeds: int | Sequence[int] = (0,),
    network: str | Network | Sequence[str | Network] = NETWORK,
    topology: str = "replicated",
    wire: str = "counted",
    delays: str | Delays | None = None,
    out: str | Path | None = None,
    resume: bool = False,
    data_dir: str | Path | None = None,
    progress: bool = False,
    runtime: OpenRuntime | None = None,
    save_every: float = SAVE_EVERY,
) -> Runs:
    """Runs every method with every seed on a problem, and gives the trace of each.

    Parameters
    ----------
    problem : a spec such as "logistic(l2=1e-3, workers=10)", or a Problem.
    methods : specs or Methods, several in a list; (label, spec) pairs or a dict of specs by label name them.
        A mechanism means gradient descent with it.
    rounds, iterations, until, budget : when a curve ends: rounds of communication, iterations of the method, the gap
        f(x) - f* to reach (of a saddle point ||x - x*||^2), mean uplink bytes per worker. The first that is met ends
        it; without a bound on rounds, iterations or bytes it is 1000 rounds.
    every : the trace evaluates f and its gradient at x^0, whenever `every` iterations and at least one round have
        passed since (iterations without communication leave the server's x as it was), and at the end.
    seeds : the seeds, or how many of them.
    network : one or several networks for simulated seconds, such as "10mbit,20ms" (see `Network.parse`).
    topology : "replicated" (every process does the server's part) or "star" (one does; in a single process this is
        the debug link).
    wire : "counted" (exact sizes are computed) or "encoded" (every message is packed to bytes and read back).
    delays : how long workers take for a gradient, such as "fixed_delay((1, 2, 5))": what asynchronous methods run by
        that say nothing else, and all others are priced by in the trace's `virtual_seconds`.
    out : the run directory to write; without it everything stays in memory.
    resume : go on with the run in `out`. It must be the same run; the number of processes may differ.
    data_dir : where LIBSVM files are; else the environment's LACONIC_DATA.
    progress : show live progress on standard error.
    runtime : makes the runtime of each curve; by default one process, or under torchrun its processes.
    save_every : seconds between two checkpoints.

    Raises
    ------
    ValueError : in one line, for anything that cannot be run.

    >>> runs = run("counterexample", ["ef21(topk(k=1))"], rounds=5)
    >>> runs.results[0]["rounds"]
    5
    """
    limits = Limits.make(rounds, iterations, until, budget)
    what = plan(
        problem, methods, limits=limits, every=every, seeds=seeds, network=network, topology=topology, wire=wire,
        delays=delays, data_dir=data_dir,
    )  # fmt: skip
    if resume and out is None:
        raise ValueError("run(resume=True) : resume needs out, the directory of the run to go on with")
    opens = runtime or (processes if "WORLD_SIZE" in os.environ else local)
    session = _Session(what, opens, None if out is None else RunDirectory(Path(out)), resume, save_every)
    return session.run(progress)


class _Session:
    """One call of `run`: what all its curves share."""

    def __init__(
        self, what: Plan, opens: OpenRuntime, out: RunDirectory | None, resume: bool, save_every: float
    ) -> None:
        self.plan, self._opens, self._save_every = what, opens, save_every
        self._oracles: dict[tuple[int, int], Oracles] = {}
        names = [network.name for network in what.networks]
        self.trace = Trace(names)
        self.results: list[dict[str, Any]] = []
        self._checkpoint: Checkpoint | None = None
        self._directory: RunDirectory | None = None
        self._saves = out is not None
        first = self._open(what.seeds[0])
        self.leader = first.leader
        self._settle(first)
        if out is not None:
            self._open_directory(first, out, resume)

    def _open(self, seed: int) -> Runtime:
        what = self.plan
        return self._opens(what.problem.n, seed=seed, topology=what.topology, encoded=what.wire == "encoded")

    def _parties(self, runtime: Runtime) -> list[Party]:
        """Oracles hold the data, so they are made once per block and shared by all curves."""
        parties = []
        for link in runtime.links:
            key = (link.block.low, link.block.high)
            if key not in self._oracles:
                self._oracles[key] = self.plan.problem.host(link.block, self.plan.data_dir)
            parties.append(Party(link, self._oracles[key]))
        return parties

    def _settle(self, runtime: Runtime) -> None:
        problem, data_dir = self.plan.problem, self.plan.data_dir
        parties = self._parties(runtime)
        fewest, most, self.terms = runtime.drive(*[survey(party) for party in parties])[0]
        self.constants: Constants = problem.constants(data_dir)
        self.solution: Solution | None = problem.solution(data_dir)
        if self.plan.limits.until is not None and self.solution is None:
            raise ValueError(
                f"run(until={self.plan.limits.until:g}) : {problem} has no reference solution and no known gap; "
                "limit rounds, iterations or budget instead"
            )
        oracles = parties[0].oracles
        delays = self.plan.delays
        setting = dataclasses.replace(Setting.of(problem, oracles, (fewest, most), data_dir), delays=delays)
        if delays is not None:
            delays.bounds(problem.n)  # those of another number of workers are an error now, not after the first curve
        self.entrants: list[Entrant] = [settle(named, setting) for named in self.plan.methods]
        for network in self.plan.networks:
            network.clock(problem.n)  # a missing line is an error now, not after the first curve
        self.shape = oracles.shape
        self._identity = {**self.plan.identity(), "data_sha256": problem.fingerprint(data_dir)}

    # ---- the directory, on the leader ---------------------------------------------------------------------------

    def _open_directory(self, runtime: Runtime, directory: RunDirectory, resume: bool) -> None:
        """The leader opens the directory; the others learn whether it could, and read the checkpoint that it uses."""
        refused: ValueError | None = None
        source = 0
        if runtime.leader:
            try:
                source = self._read_directory(directory, resume)
            except ValueError as error:
                refused = error
        if runtime.agree(int(refused is not None)):
            raise refused or ValueError(f"the leading process cannot use {directory.path}")
        source = runtime.agree(source)
        if source and not runtime.leader:
            with contextlib.suppress(ValueError):
                self._checkpoint = Checkpoint.read(directory.sources[source - 1])
        mine = 0 if self._checkpoint is None else self._checkpoint.fingerprint
        if runtime.agree(mine) != mine:
            raise ValueError(
                f"process {runtime.rank} does not see the checkpoint in {directory.path} that the first one does"
            )

    def _read_directory(self, directory: RunDirectory, resume: bool) -> int:
        document = directory.open(self._identity, resume, _say)
        source = 0
        if document is not None:
            self.results = document["results"]
            table = directory.read_trace()
            if table is not None:
                self.trace = Trace.of(table, self.trace.networks)
            self._checkpoint, source = directory.read_checkpoint(_say)
            self._forget_unfinished()
        self._directory = directory
        self._write()
        return source if self._checkpoint is not None else 0

    def _forget_unfinished(self) -> None:
        """Rows after the checkpoint will be recorded again, so they go."""
        finished = {(result["method"], result["seed"]) for result in self.results}
        current = None
        if self._checkpoint is not None:
            facts = self._checkpoint.facts
            current = (facts["method"], facts["seed"], facts["iteration"])
            if current[:2] in finished:
                self._checkpoint = current = None
        self.trace.keep(finished, current)

    def _write(self) -> None:
        if self._directory is not None:
            self._directory.write_trace(self.trace.table())
            self._directory.write(self.document())

    def document(self) -> dict[str, Any]:
        """The contents of run.json."""
        stable = all(isinstance(oracles, Excess) for oracles in self._oracles.values())
        return {
            "identity": self._identity,
            "problem": problem_record(self.plan.problem, self.shape, self.terms, self.constants),
            "solution": solution_record(self.solution, stable),
            "methods": [entrant.record() for entrant in self.entrants],
            "results": self.results,
            "versions": versions(),
            "machine": machine(),
        }

    # ---- running ------------------------------------------------------------------------------------------------

    def run(self, progress: bool) -> Runs:
        """All curves that are not finished yet."""
        path = self._directory.path if self._directory is not None else None
        with Watch(progress and self.leader, self.plan.limits) as watch:
            for entrant in self.entrants:
                for seed in self.plan.seeds:
                    self._curve(entrant, seed, watch)
        if self._directory is not None:
            self._directory.drop_checkpoints()
        return Runs(self.document(), self.trace.table(), path)

    def _curve(self, entrant: Entrant, seed: int, watch: Watch) -> None:
        runtime = self._open(seed)
        if self._finished(runtime, entrant.label, seed):
            return
        watch.begin(entrant.label, seed)

        def record(row: Row, seconds: list[float]) -> None:
            self.trace.add(row, seconds)
            watch.row(row)

        curve = Curve(
            entrant=entrant,
            seed=seed,
            runtime=runtime,
            parties=self._parties(runtime),
            limits=self.plan.limits,
            every=self.plan.every,
            networks=self.plan.networks,
            terms=self.terms,
            shares_decisions=self.plan.topology == "star",
            solution=self.solution,
            delays=self.plan.delays,
            record=record,
            pause=self._pauser(runtime),
        )
        stop = curve.run(self._checkpoint_of(entrant.label, seed))
        self.results.append(curve.result(stop))
        if stop is Stop.DIVERGED and runtime.leader:
            _say(f"{entrant.label} (seed {seed}) diverged: {curve.reason}")
        if runtime.leader:
            for remark in curve.remarks:
                _say(f"{entrant.label} (seed {seed}): {remark}")
        self._write()

    def _checkpoint_of(self, label: str, seed: int) -> Checkpoint | None:
        found = self._checkpoint
        return found if found is not None and (found.facts["method"], found.facts["seed"]) == (label, seed) else None

    def _finished(self, runtime: Runtime, label: str, seed: int) -> bool:
        done = any((result["method"], result["seed"]) == (label, seed) for result in self.results)
        return bool(runtime.agree(int(done)))

    def _pauser(self, runtime: Runtime) -> Callable[[Curve], None]:
        pacer = Pacer(runtime, self._save_every)

        def pause(curve: Curve) -> None:
            if self._saves and pacer.due(curve.iteration):
                checkpoint = curve.checkpoint()
                if self._directory is not None:
                    self._directory.write_trace(self.trace.table())
                    self._directory.write_checkpoint(checkpoint)

        return pause


def _say(line: str) -> None:
    print(f"laconic: {line}", file=sys.stderr)
