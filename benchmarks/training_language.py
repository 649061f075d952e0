"""GPT-2 nano on WikiText-2 at 50 times fewer bytes: its loss after equal steps, and after equal bytes.

    python benchmarks/training_language.py --data-dir DIR [--minutes M] [--only PATTERN] [--list | --report] [--smoke]

Two processes, GPT-2's byte-pair encoding, two epochs; a run takes about twenty minutes on two free cores. The
loss is beside that of a bigram model (interpolated Kneser-Ney), which the script computes from the same tokens. --smoke
is byte by byte on Python's documentation, without data.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from _training import Job, Store, Study, Train, main
from _training_grid import LOSS, Grid, Row
from _training_page import Page, Panel, Verdict, mark_of

FEWER = 50.0  # times fewer bytes
NEAR = 0.02  # of dense's loss
DENSE = Row("dense", {"baseline": "dense"})
OURS = (
    Row(
        "LocalSGD every 6 steps, ef14(int4(block=65536)), small tensors int8",
        {"local": "local_sgd", "sync_every": 6, "mechanism": "ef14(int4(block=65536))", "small": "direct(int8)"},
    ),
    Row("DiLoCo every 16 steps, direct(int8)", {"local": "diloco", "sync_every": 16, "mechanism": "direct(int8)"}),
    Row(
        "ef14(topk(k=0.05) | int4(block=256)), blocks ef14(int4(block=4096)), small tensors int8",
        {
            "mechanism": "ef14(topk(k=0.05) | int4(block=256))",
            "rule": "*.h.*=ef14(int4(block=4096))",
            "small": "direct(int8)",
        },
    ),
)
USUAL = Grid(
    "text", "gpt2", {"size": "nano", "epochs": 2, "evaluate_every": 239, "bf16": True}, (DENSE, *OURS), (3e-3, 6e-3),
    LOSS, seconds=1200.0,
)  # fmt: skip
SMOKE = replace(
    USUAL, options={"size": "nano", "steps": 3, "batch": 2, "evaluate_every": 1, "judge": 512}, rates=(3e-3,),
    rows=(DENSE, OURS[-1]), seeds=(0,), ranks=None, data=False, seconds=15.0,
)  # fmt: skip


def fewer(grid: Grid, store: Store, row: Row) -> float | None:
    """How many times fewer bytes than dense float32 a process says in a whole run."""
    runs = grid.runs(store, row)
    if not runs:
        return None
    result = runs[0]["result"]
    return result["dense_per_step"] / result["up_per_step"] if result["up_per_step"] else math.inf


class Language(Study):
    """The study."""

    name = "training_language"
    summary = __doc__ or ""

    def __init__(self, grid: Grid) -> None:
        self.grid = grid

    def chosen(self, store: Store) -> Row | None:
        """The best of ours that sends so few bytes, once all have run."""
        grid = self.grid
        ours = [row for row in grid.rows if row in OURS]
        if any(grid.found(store, row, grid.rates[0]) is None for row in ours):
            return None
        fitting = [row for row in ours if (fewer(grid, store, row) or 0.0) >= FEWER]
        return max(fitting, key=lambda row: grid.ends(store, row).mean, default=None)

    def within(self, store: Store) -> Job | None:
        """A run without compression that ends when it has said as much as ours in a whole run."""
        row = self.chosen(store)
        best = self.grid.best(store, DENSE)
        if row is None or best is None:
            return None
        result = self.grid.runs(store, row)[0]["result"]
        steps = max(1, math.ceil(result["up_per_step"] * result["steps"] / result["dense_per_step"]))
        taken = {name: value for name, value in self.grid.options.items() if name not in ("epochs", "steps")}
        options = {**taken, **DENSE.options, "steps": steps, "warm_up": max(1, steps // 10), "lr": best, "seed": 0}
        program = Train(self.grid.task, options, self.grid.ranks, self.grid.data)
        return Job("dense within our bytes", program, 20.0 + self.grid.seconds * steps / result["steps"])

    def jobs(self, store: Store) -> Iterable[Job]:
        grid, seed, (first, *others) = self.grid, self.grid.seeds[0], self.grid.rates
        yield from (grid.job(row, first, seed) for row in grid.rows)
        yield from (grid.job(DENSE, lr, seed) for lr in others)
        within = self.within(store)
        if within is not None:
            yield within

    def report(self, store: Store, out: Path) -> None:
        grid = self.grid
        records = grid.records(store)
        page = Page(
            "GPT-2 nano on WikiText-2 at a fiftieth of the bytes",
            self.command, records, mark_of(grid is SMOKE, records),
        )  # fmt: skip
        bigram = next((one["facts"]["bigram_validation_loss"] for one in records if not one["diverged"]), None)
        text = next((one["facts"]["text"] for one in records if not one["diverged"]), "WikiText-2")
        page.add(
            f"{text}; {grid.ranks or 1} processes, {grid.setting}, AdamW with a cosine schedule, gradients clipped "
            "after averaging. Losses are nats per token of the validation text (evenly spread windows), by which "
            "learning rates and our method are chosen too, with seed 0: there is no other split. The second learning "
            "rate is tried of dense alone: ours could only gain by another. Tensors of one dimension or at most 1,024 "
            "numbers travel dense where nothing else is said, and count.",
        )  # fmt: skip
        page.verdicts(self.judged(store, bigram))
        page.add("## Each learning rate", grid.table(store))
        if records:
            lines = {} if bigram is None else {"bigram model": bigram}
            panels = [
                Panel("steps", LOSS.label, grid.curves(store, "step"), "", lines),
                Panel("MB up per process", "", grid.curves(store, "up", 1e-6), "x", lines),
            ]
            page.draw(panels, out, "loss", "Each method at its best learning rate: means, and ranges over seeds")
        page.write(out)

    def judged(self, store: Store, bigram: float | None) -> list[Verdict]:
        """The targets."""
        grid, ours = self.grid, self.chosen(store)
        dense = grid.ends(store, DENSE)
        whole = len(dense.values) == len(grid.seeds) and grid.complete(store, DENSE)
        below = bigram is not None and bool(dense.values) and -dense.mean < bigram
        beaten = below if below or (whole and bigram is not None) else None  # more learning rates could only help
        beside = "not measured" if bigram is None else f"{LOSS.text(dense)}; the bigram model's is {bigram:.4f}"
        found = [Verdict("dense beats a bigram model", beaten, beside)]
        times = None if ours is None else fewer(grid, store, ours)
        if ours is None or times is None:
            return [
                *found,
                Verdict(f"within 2% of dense at {FEWER:.0f} times fewer bytes", None, "nothing is chosen yet"),
            ]
        mine = grid.ends(store, ours)
        ready = whole and len(mine.values) == len(grid.seeds)
        ratio = mine.mean / dense.mean - 1.0 if dense.values else math.nan
        found.append(Verdict(
            f"within {NEAR:.0%} of dense after equal steps at {FEWER:.0f} times fewer bytes",
            ratio <= NEAR if ready else None,
            f"`{ours.name}`: {LOSS.text(mine)}, {100 * ratio:+.2f}%, at {times:.1f} times fewer bytes",
        ))  # fmt: skip
        job = self.within(store)
        early = None if job is None else store.find(job)
        if early is None or early["diverged"]:
            return [*found, Verdict("better than dense after equal bytes", None, "not measured")]
        loss = early["result"]["validation_loss"]
        found.append(Verdict(
            "better than dense after equal bytes", -mine.mean < loss,
            f"dense in the {early['result']['steps']} steps that these bytes allow it (a schedule of its own, seed 0): "
            f"{loss:.4f}",
        ))  # fmt: skip
        return found


if __name__ == "__main__":
    raise SystemExit(main(Language(SMOKE), Language(USUAL)))
