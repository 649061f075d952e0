"""Steps on the network lab, what `training_speed.py` consists of: links, rows, programs, and a row's measurements."""

from __future__ import annotations

import json
import math
import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from _training import Program, Record, Train, lines_of, words_of

from laconic.netlab import wire_bytes

RANKS = 2
START = 9.0  # seconds of a run besides its steps: imports, data, two evaluations of few images
COMPUTE = 0.75  # seconds of a step without communication, for estimates
KEPT = ("forward", "backward", "waiting", "optimizer", "exposed", "hidden", "compress", "decode", "communicate", "up",
        "sent", "wire_up")  # fmt: skip


@dataclass(frozen=True)
class Link:
    """A lab: a rate as tc has it, and the size of an IP packet."""

    rate: str
    mtu: int

    @property
    def name(self) -> str:
        """In tables."""
        return "no limit" if self.rate == "none" else f"{self.rate}, mtu {self.mtu}"

    def seconds(self, nbytes: float) -> float:
        """For so many bytes each way."""
        return {"1gbit": 8e-9, "100mbit": 8e-8, "10mbit": 8e-7, "none": 3e-9}[self.rate] * nbytes


@dataclass(frozen=True)
class Row:
    """A row of the table.

    Parameters
    ----------
    name : in the table.
    options : of `laconic train`.
    nbytes : up per step, roughly, for estimates.
    advised : what the advisor calls it; "" where it does not know it.
    first : steps that are left out, since they set things up.
    dense : how many of these send everything.
    every : steps of a period; the mean over whole periods counts, not the median.
    collectives : of a step with three buckets, as a guess: the headers of their messages are stated from it.
    """

    name: str
    options: Mapping[str, Any]
    nbytes: float
    advised: str = ""
    first: int = 2
    dense: int = 0
    every: int = 1
    collectives: int = 3

    def steps(self, link: Link) -> int:
        """How many: few where each takes long, in whole periods."""
        if self.every > 1:
            return self.first + self.every
        each = COMPUTE + link.seconds(self.nbytes)
        return self.first + max(2, min(12, round(12.0 / each)))

    def cost(self, link: Link) -> float:
        """Seconds of a run."""
        steps, whole = self.steps(link), link.seconds(44.7e6)
        sent = (whole if self.every > 1 else 0.0) + self.dense * whole
        return START + steps * (COMPUTE + (link.seconds(self.nbytes) if self.every == 1 else 0.0)) + sent


# ---- programs ------------------------------------------------------------------------------------------------------


def in_lab(link: Link, folder: Path, command: Sequence[str]) -> list[str]:
    """A command, once per rank, in the lab."""
    options = words_of({"ranks": RANKS, "rate": link.rate, "mtu": link.mtu, "json": folder / "lab.json"})
    logs = folder / "logs"
    logs.mkdir(exist_ok=True)
    return [sys.executable, "-m", "laconic", "netlab", *options, "--logs", str(logs), "--", *command]


@dataclass(frozen=True)
class Timed(Program):
    """A training whose steps are kept one by one, in the lab where `link` is given."""

    train: Train
    link: Link | None

    @property
    def text(self) -> str:  # type: ignore[override]
        where = "" if self.link is None else f" @ {self.link.rate} mtu {self.link.mtu}"
        return self.train.text + where

    def command(self, folder: Path, data_dir: Path | None) -> list[str]:
        command = self.train.command(folder, data_dir)
        return command if self.link is None else in_lab(self.link, folder, command)

    def read(self, folder: Path) -> dict[str, Any]:
        steps, lab = lines_of(folder / "run" / "steps.jsonl"), folder / "lab.json"
        found = self.train.read(folder)
        found.pop("curve")
        kept = {name: [_short(step.get(name)) for step in steps] for name in KEPT}
        return {**found, "steps": kept, "lab": json.loads(lab.read_text()) if lab.exists() else None}


def _short(value: float | None) -> float | None:
    return None if value is None else round(value, 6)


@dataclass(frozen=True)
class Advise(Program):
    """`laconic advise` for all rows at once."""

    task: str
    options: Mapping[str, Any]
    link: Link
    names: Sequence[str]

    @property
    def text(self) -> str:  # type: ignore[override]
        return " ".join(["advise", *self.words, f"@ {self.link.rate} mtu {self.link.mtu}"])

    @property
    def words(self) -> list[str]:
        """Behind `laconic advise`."""
        return [self.task, *words_of(self.options), *(word for name in self.names for word in ("--mechanism", name))]

    def command(self, folder: Path, data_dir: Path | None) -> list[str]:
        where = [] if data_dir is None else ["--data-dir", str(data_dir)]
        return in_lab(
            self.link, folder, [sys.executable, "-m", "laconic", "advise", *self.words, *where, "--json"]
        )  # fmt: skip

    def read(self, folder: Path) -> dict[str, Any]:
        said = (folder / "stdout.txt").read_text(encoding="utf-8")
        document = json.loads(said[said.index("{") : said.rindex("}") + 1])
        return {"predicted": {name: one["seconds"] for name, one in document["predicted"].items()},
                "left_out": document["left_out"], "measured_link": document["link"], "smoke": False}  # fmt: skip


# ---- what a run has shown ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Measured:
    """A row at a link, from its record."""

    row: Row
    link: Link
    record: Record

    @property
    def seconds(self) -> list[float]:
        """Of the settled steps."""
        parts = [self._part(name) for name in ("forward", "backward", "waiting", "optimizer")]
        return [sum(one) for one in zip(*parts, strict=True)]

    def _part(self, name: str) -> list[float]:
        values = self.record["steps"][name][self.row.first :]
        return [] if None in values else values

    def typical(self, values: Sequence[float]) -> float:
        """The median; of rows with periods the mean."""
        if not values:
            return math.nan
        return statistics.fmean(values) if self.row.every > 1 else statistics.median(values)

    def of(self, name: str) -> float:
        """A part of the step."""
        return self.typical(self._part(name))

    @property
    def step(self) -> float:
        """Seconds of a step."""
        return self.typical(self.seconds)

    @property
    def codec(self) -> float:
        """Seconds in which messages were made and read; not known of PyTorch's hooks."""
        return self.of("compress") + self.of("decode")

    @property
    def exposed(self) -> float:
        """Seconds of waiting: after the backward pass, or in the optimizer's step, as the averager tells."""
        told = self.of("exposed")
        return max(self.of("waiting"), 0.0 if math.isnan(told) else told)

    @property
    def counted(self) -> float:
        """Bytes per step that left the interface by its own counter; not a number where there is none."""
        return _mean(self._part("wire_up"))

    @property
    def claimed(self) -> float:
        """Bytes up per step: of messages by the ledger, or computed for PyTorch's hooks."""
        return _mean(self._part("up"))

    @property
    def handed(self) -> float:
        """Bytes per step that were handed to the transport: messages and what surrounds them."""
        return _mean(self._part("sent"))

    def stated(self, nbytes: float) -> float:
        """What the interface should count for so many in a step, with frames' headers and gloo's.

        With two ranks a process sends what it says once, in an all-gather as in an all-reduce.
        """
        messages = 2 * (RANKS - 1) * self.row.collectives if nbytes else 0
        return float(wire_bytes(round(nbytes), round(nbytes), round(messages / self.row.every), self.link.mtu))


def _mean(values: Sequence[float]) -> float:
    return statistics.fmean(values) if values else math.nan
