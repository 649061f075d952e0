"""Time per round of representative runs, beside hand-written NumPy, in one process.

    python benchmarks/rounds.py [--data-dir DIR] [--repeats 5]

The data sets a9a and w8a are looked for in DIR, else in LACONIC_DATA; without them the runs that need them are left
out, with the reason. Times are medians over repeats: machines are noisy, so read ratios before milliseconds.
"""

from __future__ import annotations

import laconic  # noqa: F401 - before torch: it asks OpenMP not to spin

# isort: split

import argparse
import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from scipy.special import expit

from laconic.core.method import Method
from laconic.core.problem import Block, Problem
from laconic.core.rows import mean, square
from laconic.core.spec import parse
from laconic.core.theory import Setting
from laconic.lab.evaluate import Party, evaluate
from laconic.runtime.local import Local

A9A = "logistic(data='a9a', l2=1e-3, workers={workers})"
W8A = "logistic(data='w8a', l2=1e-3, workers=142, intercept=True, split='shuffled')"
QUADRATIC = "quadratic(d=100, workers=10000)"


class Simulation:
    """A method on a problem in one process, advanced by hand; every 50 rounds f is evaluated, as `--every 50` does."""

    def __init__(self, problem: str, method: str, data_dir: Path | None, step: float | None = None) -> None:
        self.problem: Problem = parse(problem)  # type: ignore[assignment]
        entry = parse(method)
        if entry.kind == "mechanism":
            entry = parse(f"gd({method}, step={step})")
        runtime = Local(self.problem.n)
        oracles = self.problem.host(Block.whole(self.problem.n), data_dir)
        if step is None:
            constants = self.problem.constants(data_dir)
            terms = oracles.terms()
            setting = Setting(constants, self.problem.n, oracles.shape, (int(terms.min()), int(terms.max())))
            entry = entry.settled(setting)  # type: ignore[attr-defined]
        self.method: Method = entry  # type: ignore[assignment]
        self.runtime, self.party, self.rounds = runtime, Party(runtime.links[0], oracles), 0
        self.party.link.begin(0)
        (self.party.state,) = runtime.drive(self.method.init(oracles, self.party.link))

    def advance(self, rounds: int, every: int = 50) -> None:
        for _ in range(rounds):
            self.rounds += 1
            self.party.link.begin(self.rounds)
            text = self.method.iterate(self.party.state, self.party.oracles, self.party.link)
            (self.party.state,) = self.runtime.drive(text)
            if self.rounds % every == 0:
                self.runtime.drive(evaluate(self.party, self.method.point(self.party.state), None, None))

    def gradient_norm2(self) -> float:
        return square(mean(self.party.oracles.gradients(self.method.point(self.party.state))))


class HandWritten:
    """EF21 with TopK as one writes it in an afternoon: dense rows, a Python loop over workers, NumPy inside."""

    def __init__(self, problem: str, data_dir: Path | None, k: int, step: float) -> None:
        entry = parse(problem)
        dealt = entry.dealt(data_dir)  # type: ignore[attr-defined]
        rows, starts = dealt.matrix.toarray(), dealt.starts
        pairs = list(zip(starts[:-1], starts[1:], strict=True))
        self.parts = [(np.ascontiguousarray(rows[a:b]), dealt.labels[a:b]) for a, b in pairs]
        self.l2, self.k, self.step, self.rounds = 1e-3, k, step, 0
        self.x = np.zeros(rows.shape[1])
        self.shifts = np.zeros((len(self.parts), rows.shape[1]))
        self.estimate = np.zeros(rows.shape[1])

    def advance(self, rounds: int, every: int = 50) -> None:
        n = len(self.parts)
        for _ in range(rounds):
            self.rounds += 1
            self.x = self.x - self.step * self.estimate
            for i, (a, y) in enumerate(self.parts):
                gradient = a.T @ (-y * expit(-y * (a @ self.x))) / len(y) + self.l2 * self.x
                difference = gradient - self.shifts[i]
                largest = np.argsort(np.abs(difference))[-self.k :]
                self.shifts[i, largest] += difference[largest]
                self.estimate[largest] += difference[largest] / n
            if self.rounds % every == 0:
                for a, y in self.parts:
                    np.logaddexp(0.0, -y * (a @ self.x)).mean()


def per_round(advance: Callable[[int], None], rounds: int, repeats: int) -> tuple[float, float, float]:
    """Milliseconds per round: the least, the median and the most of the repeats, after a warm-up."""
    advance(max(2, rounds // 10))
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        advance(rounds)
        times.append(1e3 * (time.perf_counter() - start) / rounds)
    return min(times), statistics.median(times), max(times)


def peak_mib() -> float:
    """The most memory this process has held since it was last reset, in MiB (Linux)."""
    status = Path("/proc/self/status").read_text()
    return next(int(line.split()[1]) / 1024 for line in status.splitlines() if line.startswith("VmHWM"))


def reset_peak() -> float:
    """Starts the peak anew; what is held now, in MiB."""
    Path("/proc/self/clear_refs").write_text("5")
    return peak_mib()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", type=Path, default=os.environ.get("LACONIC_DATA"))
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    data_dir = Path(options.data_dir) if options.data_dir else None
    console = Console(width=140)
    console.print(f"{platform.machine()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads")
    table = Table("what", "ms per round: least", "median", "most", "note")

    def add(what: str, times: tuple[float, float, float], note: str = "") -> None:
        table.add_row(what, *(f"{value:.2f}" for value in times), note)

    n, d = 10_000, 100
    Simulation("quadratic(d=100, workers=10)", "ef21(topk(k=5))", None, step=0.1).advance(50)  # compiles
    before = reset_peak()
    simulation = Simulation(QUADRATIC, "ef21(topk(k=5))", None, step=0.1)
    times = per_round(simulation.advance, 50, options.repeats)
    doubles = (peak_mib() - before) * 2**20 / 8 / (n * d)
    add("quadratic, 10,000 workers, d = 100, EF21 + Top5", times, f"peak memory {doubles:.1f} n d doubles")
    try:
        simulation = Simulation(A9A.format(workers=20), "ef21(topk(k=6))", data_dir, step=0.1)
    except ValueError as missing:
        console.print(table)
        console.print(f"left out: {missing}")
        return
    times = per_round(simulation.advance, 200, options.repeats)
    hand = per_round(HandWritten(A9A.format(workers=20), data_dir, 6, 0.1).advance, 20, options.repeats)
    add("a9a, 20 workers, EF21 + Top6", times, f"{hand[1] / times[1]:.1f} times the rounds per second of the next line")
    add("the same, hand-written NumPy", hand)
    simulation = Simulation(A9A.format(workers=3000), "ef21(topk(k=6))", data_dir, step=0.1)
    add("a9a, 3,000 workers, EF21 + Top6", per_round(simulation.advance, 100, options.repeats))
    simulation = Simulation(W8A, "fednl(topk(k=2408))", data_dir)
    add("w8a, 142 workers, d = 301, FedNL + Top2408", per_round(simulation.advance, 15, options.repeats))
    simulation = Simulation(A9A.format(workers=142), "fednl(topk(k=992))", data_dir)
    simulation.advance(30)
    console.print(table)
    slope = simulation.gradient_norm2()
    console.print(f"a9a, 142 workers, FedNL + Top992 from x = 0: ||grad f||^2 = {slope:.1e} after 30 rounds")


if __name__ == "__main__":
    main()
