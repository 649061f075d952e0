"""Seconds and bytes per step on the network lab, beside the same step without communication, and what was predicted.

    python benchmarks/training_speed.py [--minutes M] [--only PATTERN] [--list | --report] [--smoke]   (Linux, root)

ResNet-18, batch 32 per rank, two ranks, each behind a link of its own. For each rate a block: steps without
communication, the advisor's predictions, and all rows, with steps without communication again after every fifth; ratios
are to the mean of the two around a row, for machines drift. At 100 Mbit/s the rows that have to be close to it are run
by turns with it, several times. A block is best made in one go, beside nothing else.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import matplotlib
from _training import Job, Store, Study, Train, main
from _training_lab import RANKS, Advise, Link, Measured, Row, Timed
from _training_page import Page, Verdict, mark_of, table
from matplotlib.figure import Figure as Canvas

from laconic import parse
from laconic.lab.plots import SETTINGS, WIDTH, save
from laconic.lab.style import COLOURS

DILOCO_EVERY = 20
APART = 5  # rows between two runs without communication
PASSES = 4  # of the rows that have to be close to them
BETWEEN = 100  # where the numbers of the runs without communication in these passes begin


def mechanism(spec: str, nbytes: float, collectives: int = 3) -> Row:
    """A mechanism's row."""
    return Row(spec, {"mechanism": spec}, nbytes, str(parse(spec)), collectives=collectives)


NONE = Row("no communication", {"baseline": "none"}, 0.0)
DENSE = Row("dense", {"baseline": "dense"}, 44.7e6, "dense", first=1)
POWER1 = Row("PowerSGD rank 1 (PyTorch)", {"baseline": "powersgd-1"}, 0.24e6, "powersgd-1", 3, 2, collectives=9)
POWER4 = Row("PowerSGD rank 4 (PyTorch)", {"baseline": "powersgd-4"}, 0.67e6, "powersgd-4", 3, 2, collectives=9)
TOPK = tuple(
    mechanism(f"{wrapped}(topk(k={k}){values})", size)
    for wrapped in ("ef14", "ef21_sgdm")
    for k, small, large in ((0.01, 0.27e6, 0.62e6), (0.001, 0.07e6, 0.11e6))
    for values, size in ((" | natural", small), ("", large))
)
ROWS = (
    DENSE, Row("fp16 (PyTorch)", {"baseline": "fp16"}, 22.3e6, "fp16", first=1), POWER1, POWER4, *TOPK,
    mechanism("direct(natural)", 12.6e6), mechanism("ef14(scaled_sign)", 1.5e6),
    mechanism("powersgd(rank=1)", 0.24e6, 9), mechanism("powersgd(rank=4)", 0.67e6, 9),
    Row(f"DiLoCo, every {DILOCO_EVERY} steps", {"local": "diloco", "sync_every": DILOCO_EVERY}, 2.2e6,
        f"diloco-{DILOCO_EVERY}", every=DILOCO_EVERY),
)  # fmt: skip
FEW = (DENSE, POWER1, TOPK[0], TOPK[2])
NATURAL = (TOPK[0], TOPK[4])  # TopK 1% with natural values
FLOAT = (TOPK[1], TOPK[5])  # the same with float32 values
CLOSE = (*NATURAL, *FLOAT)
MAIN = Link("100mbit", 1500)


@dataclass(frozen=True)
class Form:
    """Which rows at which links; `bench` is the recipe's options."""

    task: str = "resnet18"
    options: Mapping[str, Any] = field(default_factory=lambda: {"batch": 32})
    blocks: Sequence[tuple[Link, Sequence[Row]]] = (
        (MAIN, ROWS), (Link("10mbit", 1500), ROWS), (Link("1gbit", 9000), ROWS),
        (Link("1gbit", 1500), FEW), (Link("none", 9000), FEW),
    )  # fmt: skip
    validation: int = 64  # images of an evaluation, which has no part in this
    lab: bool = True
    smoke: bool = False


SMOKE = Form("digits", {"batch": 8}, ((Link("none", 1500), (TOPK[0],)),), lab=False, smoke=True)


class Speed(Study):
    """The study."""

    name = "training_speed"
    summary = __doc__ or ""

    def __init__(self, form: Form) -> None:
        self.form = form

    def job(self, row: Row, link: Link, again: int = 0) -> Job:
        """A row at a link."""
        form = self.form
        steps = 4 if form.smoke else row.steps(link)
        options = {**form.options, **row.options, "steps": steps, "validation": form.validation, "seed": 0}
        options["evaluate_every"] = 1000
        program = Timed(Train(form.task, options, None), link if form.lab else None)
        return Job(f"{link.rate}-{link.mtu} {row.name}", program, row.cost(link), again)

    def advice(self, rows: Sequence[Row], link: Link) -> Job:
        """The predictions at a link."""
        program = Advise(self.form.task, self.form.options, link, [row.advised for row in rows if row.advised])
        return Job(f"{link.rate}-{link.mtu} advise", program, 45.0)

    def jobs(self, store: Store) -> Iterable[Job]:
        for link, rows in self.form.blocks:
            yield self.job(NONE, link)
            if self.form.lab:
                yield self.advice(rows, link)
            for low in range(0, len(rows), APART):
                yield from (self.job(row, link) for row in rows[low : low + APART])
                yield self.job(NONE, link, again=low // APART + 1)
            if self.form.lab and link == MAIN:
                yield from self.passes()

    def passes(self) -> Iterator[Job]:
        """The rows that have to be close, by turns with steps without communication."""
        for place in range(PASSES * len(CLOSE)):
            yield self.job(NONE, MAIN, BETWEEN + place)
            yield self.job(CLOSE[place % len(CLOSE)], MAIN, 1 + place)
        yield self.job(NONE, MAIN, BETWEEN + PASSES * len(CLOSE))

    def close(self, store: Store, row: Row) -> list[float]:
        """The ratios of such a row in all passes: to the mean of the steps before and after it."""
        found = []
        for place in range(CLOSE.index(row), PASSES * len(CLOSE), len(CLOSE)):
            one = self.measured(store, row, MAIN, 1 + place)
            beside = [self.measured(store, NONE, MAIN, BETWEEN + place + more) for more in (0, 1)]
            if one is not None and None not in beside:
                found.append(one.step / mean([other.step for other in beside if other is not None]))
        return found

    def measured(self, store: Store, row: Row, link: Link, again: int = 0) -> Measured | None:
        """What is there of a row."""
        record = store.find(self.job(row, link, again))
        return None if record is None else Measured(row, link, record)

    def alone(self, store: Store, link: Link, row: Row | None = None) -> list[float]:
        """Seconds of steps without communication: of all runs, or of the two around a row."""
        rows = next(rows for one, rows in self.form.blocks if one == link)
        low = 0 if row is None else rows.index(row) // APART
        high = -(-len(rows) // APART) if row is None else low + 1
        found = (self.measured(store, NONE, link, again) for again in range(low, high + 1))
        return [one.step for one in found if one is not None]

    def ratio(self, store: Store, one: Measured) -> float:
        """A row's step to those without communication around it."""
        return one.step / mean(self.alone(store, one.link, one.row))

    def predicted(self, store: Store, rows: Sequence[Row], link: Link) -> Mapping[str, float]:
        """Seconds by the advisor, by its names."""
        record = store.find(self.advice(rows, link)) if self.form.lab else None
        return {} if record is None else record["predicted"]

    def report(self, store: Store, out: Path) -> None:
        records = [one for job in self.jobs(store) if (one := store.find(job)) is not None]
        page = Page("Seconds and bytes per step on the network lab", self.command, records,
                    mark_of(self.form.smoke, ()))  # fmt: skip
        options = ", ".join(f"{name} {value}" for name, value in self.form.options.items())
        page.add(
            f"`{self.form.task}` ({options} per rank), {RANKS} ranks, each in a network namespace of its own behind a "
            "link of the rate that is named, both ways; no latency is added (docs/netlab.md). Seconds are medians of "
            "the settled steps of one run, with the least and the largest; DiLoCo's are means over a whole period. "
            "Compute is forward, backward and optimizer, with what the codec takes of the same cores; codec is the "
            "time of making and reading messages, wherever it falls; exposed is waiting after the backward pass (codec "
            "and wire), hidden the work of communication behind it. PyTorch's hooks do not tell codec and hidden "
            "apart. Bytes are of rank 0, per step: messages by the ledger (computed for PyTorch's hooks), what was "
            "handed to the transport with framing, and what the interface counted; the stated headers are those of "
            "laconic.netlab.wire_bytes: 66 bytes a frame, acknowledgements, and 342 a message of gloo, taken as 3 "
            "collectives a step, 9 for PowerSGD. The ratio is to the mean of the two runs without "
            f"communication before and after a row, of which there is one every {APART} rows; the first two targets "
            f"are judged by {PASSES} more runs of each of their rows, by turns with runs without communication. "
            "Seed 0.",
        )  # fmt: skip
        page.verdicts(self.judged(store))
        drawn = [block for link, rows in self.form.blocks if (block := self.block(store, link, rows))]
        if drawn:
            bars(drawn, [mean(self.alone(store, block[0].link)) for block in drawn], out / "steps")
            page.picture("steps", "A step at each rate; the dashed line is the step without communication")
        for block in drawn:
            page.add(*self._section(store, block))
        page.write(out)

    def block(self, store: Store, link: Link, rows: Sequence[Row]) -> list[Measured]:
        """The rows of a link that are there."""
        return [found for row in rows if (found := self.measured(store, row, link)) is not None]

    def _section(self, store: Store, block: Sequence[Measured]) -> Iterator[str]:
        link = block[0].link
        rows = next(rows for one, rows in self.form.blocks if one == link)
        predicted = self.predicted(store, rows, link)
        yield f"## {link.name}"
        alone = ", ".join(f"{seconds:.3f} s" for seconds in self.alone(store, link))
        yield f"Without communication: {alone or 'not measured'}."
        body = [_cells(one, self.ratio(store, one), predicted.get(one.row.advised)) for one in block]
        yield table(
            ["", "seconds per step (range; steps)", "ratio", "compute", "codec", "exposed", "hidden", "predicted",
             "bytes up (ledger)", "handed over", "interface",
             "interface / ledger", "interface / ledger with headers"], body
        )  # fmt: skip
        if store.find(self.advice(rows, link)) is None and self.form.lab:
            yield "The advisor has not been asked at this link."

    # ---- verdicts ---------------------------------------------------------------------------------------------

    def judged(self, store: Store) -> list[Verdict]:
        """The targets."""
        blocks = [self.block(store, link, rows) for link, rows in self.form.blocks]
        every = [one for block in blocks for one in block]
        ratios = {(one.row.name, one.link): self.ratio(store, one) for one in every}
        found = [
            within("TopK 1% with natural values within 8% of no communication at 100 Mbit/s", 1.08,
                   {row.name: self.close(store, row) for row in NATURAL}),
            within("TopK 1% with float32 values within 12% at 100 Mbit/s", 1.12,
                   {row.name: self.close(store, row) for row in FLOAT}),
        ]  # fmt: skip
        found.append(beside_power(ratios, {(one.row.name, one.link): one.claimed for one in every}))
        errors = {}
        for (_, rows), block in zip(self.form.blocks, blocks, strict=True):
            for one in block:
                seconds = self.predicted(store, rows, one.link).get(one.row.advised)
                if seconds is not None:
                    errors[f"{one.row.name} at {one.link.name}"] = seconds / one.step - 1.0
        found.append(worst("predictions within 15% of the measured step", 0.15, errors))
        seen = [one for one in every if one.claimed > 0 and not math.isnan(one.counted)]
        for what, claim in (("messages by the ledger", "claimed"), ("bytes handed to the transport", "handed")):
            wrong = {
                f"{one.row.name} at {one.link.name}": one.counted / one.stated(getattr(one, claim)) - 1.0
                for one in seen
            }
            found.append(worst(f"the interface's bytes within 5% of {what} with the stated headers", 0.05, wrong))
        return found


def mean(seconds: Sequence[float]) -> float:
    """NaN of none."""
    return statistics.fmean(seconds) if seconds else math.nan


def _cells(one: Measured, ratio: float, predicted: float | None) -> list[str]:
    seconds = one.seconds
    torchs = "baseline" in one.row.options
    error = "" if predicted is None else f"{predicted:.3f} ({100 * (predicted / one.step - 1):+.0f}%)"
    counted = ["", "", ""]
    if not math.isnan(one.counted) and one.claimed:
        counted = [f"{one.counted:,.0f}", f"{one.counted / one.claimed:.3f}"]
        counted.append(f"{one.counted / one.stated(one.claimed):.3f}")
    return [
        f"`{one.row.name}`" if "(" in one.row.name and not torchs else one.row.name,
        f"{one.step:.3f} ({min(seconds):.3f} to {max(seconds):.3f}; {len(seconds)})", _s(ratio),
        f"{one.step - one.exposed:.3f}", "" if torchs else _s(one.codec),
        _s(one.exposed), "" if torchs else _s(one.of("hidden")), error, f"{one.claimed:,.0f}", f"{one.handed:,.0f}",
        *counted,
    ]  # fmt: skip


def _s(seconds: float) -> str:
    return "" if math.isnan(seconds) else f"{seconds:.3f}"


def within(target: str, limit: float, ratios: Mapping[str, Sequence[float]]) -> Verdict:
    """Met where the medians of all rows are within the limit; open before all passes are made."""
    known = {name: statistics.median(values) for name, values in ratios.items() if len(values) == PASSES}
    said = "; ".join(
        f"`{name}` {100 * (ratio - 1):+.1f}% (median of {', '.join(f'{100 * (one - 1):+.1f}' for one in ratios[name])})"
        for name, ratio in known.items()
    )
    met = all(ratio <= limit for ratio in known.values()) if len(known) == len(ratios) else None
    return Verdict(target, met, said or "not measured")


def worst(target: str, limit: float, errors: Mapping[str, float]) -> Verdict:
    """Met where all errors are within the limit; says the worst and how many are not."""
    if not errors:
        return Verdict(target, None, "not measured")
    name = max(errors, key=lambda name: abs(errors[name]))
    beyond = sum(abs(error) > limit for error in errors.values())
    median = statistics.median(map(abs, errors.values()))
    return Verdict(
        target, beyond == 0,
        f"{len(errors) - beyond} of {len(errors)} are; median {100 * median:.1f}%, worst {100 * errors[name]:+.1f}% "
        f"({name})",
    )  # fmt: skip


def beside_power(ratios: Mapping[tuple[str, Link], float], claimed: Mapping[tuple[str, Link], float]) -> Verdict:
    """Whether, at every rate, a mechanism of ours with at most PowerSGD's bytes takes no longer than it, within 1%."""
    target = "not slower than PyTorch's PowerSGD hook at equal bytes, at every rate"
    ours = [row.name for row in ROWS if "mechanism" in row.options]
    gains: dict[str, float] = {}
    for power in (POWER1, POWER4):
        for link in [link for name, link in ratios if name == power.name]:
            size = claimed[power.name, link]
            fitting = [one for one in ours if (one, link) in ratios and claimed[one, link] <= 1.05 * size]
            if fitting:
                best = min(fitting, key=lambda one: ratios[one, link])
                gains[f"`{best}` beside {power.name} at {link.name}"] = (
                    ratios[best, link] / ratios[power.name, link] - 1.0
                )
    if not gains:
        return Verdict(target, None, "not measured")
    name = max(gains, key=lambda name: gains[name])
    slower = sum(gain > 0.01 for gain in gains.values())
    said = f"it is in {len(gains) - slower} of {len(gains)}; the worst is {100 * gains[name]:+.1f}%, {name}"
    return Verdict(target, slower == 0, said)


# ---- picture -------------------------------------------------------------------------------------------------------


def bars(blocks: Sequence[Sequence[Measured]], alone: Sequence[float], stem: Path) -> None:
    """Steps as bars, computing and waiting; those that are far too long are cut, with their length beside them."""
    pairs = []
    for size in sorted({len(block) for block in blocks}, reverse=True):  # those of the same height side by side
        same = [place for place, block in enumerate(blocks) if len(block) == size]
        some = [same[i : i + 2] for i in range(0, len(same), 2)]
        pairs += [([blocks[place] for place in two], [alone[place] for place in two]) for two in some]
    with matplotlib.rc_context(SETTINGS):
        heights = [max(len(block) for block in some) + 2.5 for some, _ in pairs]
        canvas = Canvas(figsize=(1.25 * WIDTH, 0.5 + 0.165 * sum(heights)), layout="constrained")
        grid = canvas.subplots(len(pairs), 2, squeeze=False, gridspec_kw={"height_ratios": heights})
        for (some, nothing), places in zip(pairs, grid, strict=True):
            for axes in places[len(some) :]:
                axes.set_axis_off()
            for block, least, axes in zip(some, nothing, places, strict=False):
                _bars(axes, block, least)
        handles, labels = grid[0][0].get_legend_handles_labels()
        canvas.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False)
        save(canvas, stem)


def _bars(axes: Any, block: Sequence[Measured], alone: float) -> None:
    longest = max(one.step for one in block)
    limit = min(1.08 * longest, 2.2 * alone) if alone > 0 else 1.08 * longest
    places = range(len(block), 0, -1)
    exposed = [min(one.exposed, one.step) for one in block]
    compute = [one.step - waiting for one, waiting in zip(block, exposed, strict=True)]
    axes.barh(places, compute, color=COLOURS[5], height=0.7, label="computing")
    axes.barh(places, exposed, left=compute, color=COLOURS[1], height=0.7, label="waiting for communication")
    if alone > 0:
        axes.axvline(alone, color="0.2", linestyle=(0, (4, 2)), linewidth=0.9, label="step without communication")
    for one, place in zip(block, places, strict=True):
        inside = one.step > limit
        axes.text(
            0.985 * limit if inside else one.step + 0.01 * limit, place, f"{one.step:.2f} s", fontsize=6,
            ha="right" if inside else "left", va="center", color="white" if inside else "0.2",
            weight="bold" if inside else "normal",
        )  # fmt: skip
    axes.set_xlim(0, limit)
    axes.set_ylim(0.3, len(block) + 0.7)
    axes.set_yticks(list(places), [one.row.name for one in block], fontsize=6.5)
    axes.set_title(block[0].link.name, fontsize=8)
    axes.set_xlabel("seconds per step")
    axes.spines[["top", "right"]].set_visible(False)


if __name__ == "__main__":
    raise SystemExit(main(Speed(SMOKE), Speed(Form())))
