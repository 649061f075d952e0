"""`laconic netlab`: the command line of the lab."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Annotated, Any

import typer
from rich.console import Console

from laconic.netlab import guardian
from laconic.netlab.lab import Lab, program
from laconic.netlab.layout import Layout
from laconic.netlab.ranks import Ended
from laconic.netlab.rate import BUSY, Rate
from laconic.netlab.report import Line, table

TAIL = 15  # lines of a failed rank's output that are shown
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Interrupted(BaseException):
    """A signal asks the lab to end."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number


def netlab(
    command: Annotated[list[str] | None, typer.Argument(help="What each rank runs, after --.")] = None,
    ranks: Annotated[int, typer.Option(help="Processes, each in a network namespace of its own.")] = 2,
    rate: Annotated[str, typer.Option(help="Of each rank's link, up and down: 100mbit, 1gbit, none.")] = "100mbit",
    mtu: Annotated[int, typer.Option(help="Bytes of an IP packet; 9000 costs less computing at 1gbit.")] = 1500,
    grace: Annotated[float, typer.Option(help="Seconds that the others have when a rank has failed.")] = 5.0,
    logs: Annotated[Path | None, typer.Option(help="Directory for the output of ranks 1, 2, ...")] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="A file for the counters.")] = None,
    clean: Annotated[bool, typer.Option("--clean", help="Remove what labs left that were killed.")] = False,
) -> None:
    """Run a command once per rank, on a real network of this machine with limited rates (Linux, root)."""
    if clean:
        return _clean()
    if not command:
        raise ValueError(
            "netlab: what shall the ranks run? laconic netlab --ranks 2 --rate 100mbit -- laconic train ..."
        )
    program(command[0])
    lab = Lab(Layout(guardian.lab_name(os.getpid()), ranks, Rate(rate), mtu), logs)
    _note_computing(lab.layout)
    try:
        with _interruptible(), lab:
            ended = lab.execute(command, grace)
            lines = [
                Line(rank, traffic, dropped, *lab.busiest[rank])
                for rank, (traffic, dropped) in enumerate(zip(lab.traffic(), lab.dropped(), strict=True))
            ]
    except Interrupted as interrupted:
        print(
            f"laconic: netlab was ended by {interrupted}; its namespaces are removed; output is in {lab.logs}",
            file=sys.stderr,
        )
        raise typer.Exit(128 + interrupted.number) from None
    _report(lab, lines, ended, json_file)
    if logs is None and ended.code == 0:
        shutil.rmtree(lab.logs)
    raise typer.Exit(ended.code)


def _note_computing(layout: Layout) -> None:
    """Says where this machine may be slower than the link that it plays."""
    cores = len(os.sched_getaffinity(0))
    frames = layout.rate.frames_per_core(layout.ranks, cores, layout.mtu)
    if layout.rate.limited and frames > BUSY:
        print(
            f"laconic: netlab: full links are {frames:,.0f} frames a second for each of {cores} cores, about "
            f"{frames / BUSY / 4:.0%} of its time; a larger --mtu, such as 9000, takes less of it", file=sys.stderr,
        )  # fmt: skip


def _clean() -> None:
    found = guardian.stale()
    guardian.remove(found)
    left = [one for one in guardian.namespaces() if one in found]
    if left:
        raise ValueError(f"netlab: could not remove {', '.join(left)}; are you root?")
    print(f"removed {', '.join(found)}" if found else "no lab has left anything")


@contextmanager
def _interruptible() -> Iterator[None]:
    """Signals end the block, once: what they ask for is then under way, and a second one must not break it."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        for one in SIGNALS:
            signal.signal(one, signal.SIG_IGN)
        raise Interrupted(number)

    before = {one: signal.signal(one, interrupt) for one in SIGNALS}
    try:
        yield
    finally:
        for one, handler in before.items():
            signal.signal(one, handler)


def _report(lab: Lab, lines: list[Line], ended: Ended, json_file: Path | None) -> None:
    layout, seconds = lab.layout, lab.seconds
    # what is not a terminal is a program or a file, and is not cut to a width
    console = Console(stderr=True, highlight=False, width=None if sys.stderr.isatty() else 200)
    if ended.failed is not None:
        console.print(f"[red]laconic: rank {ended.failed} failed with exit code {ended.code}[/red]", soft_wrap=True)
        if ended.failed:
            path = lab.log(ended.failed)
            last = path.read_text(encoding="utf-8", errors="replace").splitlines()[-TAIL:]
            if last:
                console.print(f"the end of {path}:", soft_wrap=True)
                console.print("\n".join(last), markup=False, soft_wrap=True)
            else:
                console.print(f"it said nothing ({path}); what rank 0 said is above", soft_wrap=True)
    ranks = "1 rank" if layout.ranks == 1 else f"{layout.ranks} ranks"
    console.print(f"{ranks}, {layout.rate.text} each way, mtu {layout.mtu}, {seconds:.1f} s; whole frames:")
    console.print(table(lines, seconds))
    if json_file is not None:
        document: dict[str, Any] = {
            "rate": layout.rate.text, "mtu": layout.mtu, "seconds": round(seconds, 3), "exit_code": ended.code,
            "failed_rank": ended.failed, "ranks": [line.document(seconds) for line in lines],
        }  # fmt: skip
        json_file.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
