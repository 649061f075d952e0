"""Time per round of the second-order methods on w8a and a9a, what they reach, and their cost against sum nnz(row)^2.

    python benchmarks/fednl.py [--data-dir DIR] [--repeats 7] [--rounds 5]

The data sets are looked for in DIR, else in LACONIC_DATA. Methods take turns in one process, beside a reference: one
pass that copies all local Hessians (51 MB on w8a). Milliseconds are the least and the median over repeats of the mean
of some iterations, bytes counted exactly; CPU is that of all threads. On a machine that others use read the least, the
CPU column and the ratio to the copy. Bytes are means per worker and iteration, without the start.
"""

from __future__ import annotations

import laconic  # noqa: F401 - before torch: it asks OpenMP not to spin

# isort: split

import argparse
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from scipy import sparse

from laconic.core.method import Method
from laconic.core.problem import Block, Oracles
from laconic.core.rows import mean, square
from laconic.core.spec import parse
from laconic.core.theory import Setting
from laconic.runtime.local import Local

W8A = "logistic(data='w8a', l2=1e-3, workers=142, intercept=True, split='shuffled')"
A9A = "logistic(data='a9a', l2=1e-3, workers=142, intercept=True, split='shuffled')"
K = 8 * 301
METHODS = {  # what it is -> the most milliseconds per round on two cores, where there is such a bound
    f"fednl(topk(k={K}))": 25.0,
    f"fednl_pp(topk(k={K}), cohort=36)": None,
    f"fednl_projected(topk(k={K}))": 40.0,
    f"fednl_ls(topk(k={K}))": 40.0,
    f"fednl_cr(topk(k={K}))": None,
    f"fednl_bc(topk(k={K}), topk(k=0.5), probability=0.5)": None,
    f"newton_3pc(ef21(topk(k={K}), start=identity))": None,
    f"newton_3pc(cbag(topk(k={K}), probability=0.5))": None,
    "newton": None,
    "n0": None,
}


class Simulation:
    """A method on a problem in one process, advanced by hand."""

    def __init__(self, oracles: Oracles, method: Method, n: int) -> None:
        self.runtime, self.oracles, self.method, self.iteration = Local(n), oracles, method, 0
        self.link = self.runtime.links[0]
        self.link.begin(0)
        (self.state,) = self.runtime.drive(method.init(oracles, self.link))

    def advance(self, iterations: int) -> None:
        for _ in range(iterations):
            self.iteration += 1
            self.link.begin(self.iteration)
            (self.state,) = self.runtime.drive(self.method.iterate(self.state, self.oracles, self.link))

    def slope2(self) -> float:
        """||grad f(x)||^2."""
        return square(mean(self.oracles.gradients(self.method.point(self.state))))


@dataclass
class Times:
    """Milliseconds of one thing, by repeat."""

    wall: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)

    def take(self, what: Callable[[], object], times: int) -> None:
        wall, cpu = time.perf_counter(), time.process_time()
        what()
        self.wall.append(1e3 * (time.perf_counter() - wall) / times)
        self.cpu.append(1e3 * (time.process_time() - cpu) / times)

    def cells(self) -> tuple[str, str, str]:
        return f"{min(self.wall):.1f}", f"{statistics.median(self.wall):.1f}", f"{min(self.cpu):.1f}"


def measured(
    simulations: Mapping[str, Simulation], copy: Callable[[], object], rounds: int, repeats: int
) -> dict[str, Times]:
    """In turns, so that all suffer alike from what else the machine does."""
    found = {name: Times() for name in ("copy", *simulations)}
    for simulation in simulations.values():
        simulation.advance(2)  # compiles, and leaves the start
    for _ in range(repeats):
        found["copy"].take(copy, 1)
        for name, simulation in simulations.items():
            found[name].take(lambda one=simulation: one.advance(rounds), rounds)
    return found


def setting_of(problem: Any, data_dir: Path | None) -> Setting:
    oracles = problem.oracles(Block.whole(problem.n), data_dir)
    return Setting.of(problem, oracles, data_dir=data_dir)


def times(problem: Any, data_dir: Path | None, options: argparse.Namespace) -> Table:
    oracles, setting = problem.host(Block.whole(problem.n), data_dir), setting_of(problem, data_dir)
    methods = {spec: parse(spec).settled(setting) for spec in METHODS}  # type: ignore[attr-defined]
    simulations = {spec: Simulation(oracles, method, problem.n) for spec, method in methods.items()}
    starts = {spec: float(one.runtime.ledger.uplink.mean()) for spec, one in simulations.items()}
    svecs = torch.empty(problem.n, setting.d * (setting.d + 1) // 2, dtype=torch.float64)
    other = torch.zeros_like(svecs)
    found = measured(simulations, lambda: svecs.copy_(other), options.rounds, options.repeats)
    table = Table("method", "ms per iteration: least", "median", "CPU", "copies", "bound", "bytes up")
    once = min(found["copy"].wall)
    table.add_row("a copy of all local Hessians", *found["copy"].cells(), "1.0", "", "")
    for spec, simulation in simulations.items():
        ledger, limit = simulation.runtime.ledger, METHODS[spec]
        each = (float(ledger.uplink.mean()) - starts[spec]) / simulation.iteration
        bound = "" if limit is None else f"{limit:.0f} ({'met' if min(found[spec].wall) <= limit else 'NOT met'})"
        table.add_row(spec, *found[spec].cells(), f"{min(found[spec].wall) / once:.1f}", bound, f"{each:,.0f}")
    return table


def reached(problem: Any, data_dir: Path | None) -> Table:
    table = Table("a9a with intercept, 142 workers, d = 124, x^0 = 0", "rounds", "||grad f||^2")
    setting = setting_of(problem, data_dir)
    for spec, rounds in (("fednl(topk(k=992))", 30), ("n0", 30), ("n0", 200)):
        method = parse(spec).settled(setting)  # type: ignore[attr-defined]
        simulation = Simulation(problem.host(Block.whole(problem.n), data_dir), method, problem.n)
        simulation.advance(rounds - simulation.runtime.ledger.rounds)
        table.add_row(spec, str(simulation.runtime.ledger.rounds), f"{simulation.slope2():.1e}")
    return table


def cost(rounds: int, repeats: int) -> Table:
    """FedNL on synthetic rows of more and more entries: what grows is the outer products of rows with themselves."""
    from laconic.problems.custom import Custom

    rng, workers, rows, d = np.random.default_rng(0), 20, 4000, 300
    table = Table("entries per row", "sum nnz(row)^2", "hessian_changes: ms CPU", "ns CPU per unit beyond the sparsest")
    base: tuple[float, float] | None = None
    for entries in (5, 20, 40, 80, 160, 300):
        columns = np.concatenate([rng.choice(d, entries, replace=False) for _ in range(rows)])
        starts = np.arange(rows + 1) * entries
        matrix = sparse.csr_matrix((rng.standard_normal(rows * entries), columns, starts), shape=(rows, d))
        problem = Custom.from_arrays(matrix, rng.choice([-1, 1], rows), workers=workers, l2=0.01)
        oracles = problem.oracles(Block.whole(workers))
        x, since = oracles.start(), oracles.hessians(oracles.start()).clone()
        found = Times()
        for _ in range(repeats + 1):
            found.take(lambda o=oracles, x=x, s=since: [o.hessian_changes(x, s) for _ in range(rounds)], rounds)
        work, ms = float(rows * entries**2), min(found.cpu)
        base = base or (work, ms)
        unit = "" if work == base[0] else f"{1e6 * (ms - base[1]) / (work - base[0]):.2f}"
        table.add_row(str(entries), f"{work:,.0f}", f"{ms:.1f}", unit)
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", type=Path, default=os.environ.get("LACONIC_DATA"))
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    data_dir = Path(options.data_dir) if options.data_dir else None
    console = Console(width=160)
    load = f", load {os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else ""
    console.print(f"{platform.machine()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads{load}")
    console.print(cost(options.rounds, options.repeats))
    try:
        console.print("w8a with intercept, 142 workers, d = 301, l2 = 1e-3, float64")
        console.print(times(parse(W8A), data_dir, options))
        console.print(reached(parse(A9A), data_dir))
    except ValueError as missing:
        console.print(f"left out: {missing}")


if __name__ == "__main__":
    main()
