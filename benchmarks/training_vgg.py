"""VGG on CIFAR-10 with and without error feedback, the figure of the lecture on compression.

    python benchmarks/training_vgg.py --data-dir DIR [--full] [--minutes M] [--list | --report] [--smoke]

The usual form is VGG-11 for 400 steps of 2 x 16 images, a quarter of an hour of two cores; --full is VGG-19 for 30
epochs. The source's text keeps the caption and not the curves: what is put to numbers is what the section is about,
that a compressor with error feedback trains better than without.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from _training import Job, Store, Study, main
from _training_grid import ACCURACY, Grid, Measure, Row
from _training_page import Page, Panel, Verdict, mark_of

HELD_OUT = Measure("validation_accuracy", True, "accuracy on held-out images, %", 100.0, "%", 2)
DENSE = Row("no compression", {"baseline": "dense"})
PAIRS = tuple(
    (Row(f"{name}, no feedback", {"mechanism": f"direct({spec})"}), Row(f"{name}, EF", {"mechanism": f"ef14({spec})"}))
    for name, spec in (("TopK 0.1%", "topk(k=0.001)"), ("sign, scaled", "scaled_sign"))
)
ROWS = (DENSE, *(row for pair in PAIRS for row in pair))
USUAL = Grid(
    "vgg11", "vgg11", {"batch": 16, "steps": 400, "validation": 1000, "evaluate_every": 50, "bf16": True}, ROWS,
    (0.05, 0.01), HELD_OUT, seconds=90.0,
)  # fmt: skip
FULL = Grid("vgg19", "vgg19", {"batch": 64, "epochs": 30}, ROWS, (0.05, 0.1, 0.02), ACCURACY, 40_000.0, (0, 1, 2))
SMOKE = replace(
    USUAL, task="digits", options={"batch": 8, "steps": 2, "evaluate_every": 1}, measure=ACCURACY, ranks=None,
    rows=PAIRS[0], rates=(0.1,), seconds=10.0, data=False,
)  # fmt: skip


class Vgg(Study):
    """The study."""

    name = "training_vgg"
    summary = __doc__ or ""

    def __init__(self, grid: Grid) -> None:
        self.grid = grid

    def jobs(self, store: Store) -> Iterable[Job]:
        return self.grid.jobs(store)

    def report(self, store: Store, out: Path) -> None:
        grid = self.grid
        records = grid.records(store)
        page = Page(
            "VGG on CIFAR-10 with and without error feedback", self.command, records,
            mark_of(grid is SMOKE, records),
        )  # fmt: skip
        page.add(
            f"`{grid.task}`, {grid.ranks or 1} processes, {grid.setting}; SGD with momentum 0.9, the best of the same "
            f"learning rates for all; seeds {', '.join(map(str, grid.seeds))}. Tensors of one dimension or at most "
            "1,024 numbers travel dense. Source: A. Beznosikov (2023), lecture slides, \"QGD with error feedback\".",
        )  # fmt: skip
        page.verdicts(judged(grid, store))
        page.add("## Each learning rate", grid.table(store))
        if records:
            panels = [
                Panel("steps", grid.measure.label, grid.curves(store, "step")),
                Panel("MB up per process", "", grid.curves(store, "up", 1e-6), "x"),
            ]
            page.draw(panels, out, "feedback", "Each method at its best learning rate, by steps and by bytes")
        page.write(out)


def judged(grid: Grid, store: Store) -> list[Verdict]:
    """For each compressor: whether error feedback ends higher, at the best learning rate of each."""
    found = []
    for plain, fed in (pair for pair in PAIRS if pair[0] in grid.rows):
        without, within = (grid.ends(store, row) for row in (plain, fed))
        ready = all(grid.complete(store, row) for row in (plain, fed))
        target = f"{fed.name.removesuffix(', EF')}: better with error feedback than without"
        met = within.mean > without.mean if ready else None
        found.append(Verdict(target, met, f"{grid.measure.text(within)} with, {grid.measure.text(without)} without"))
    return found


if __name__ == "__main__":
    raise SystemExit(main(Vgg(SMOKE), Vgg(USUAL), Vgg(FULL)))
