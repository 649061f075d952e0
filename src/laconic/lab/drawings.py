"""What `laconic show ring` draws: a collective on a few nodes, step by step, and what its forms cost."""

from __future__ import annotations

import inspect
import re
import string
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from rich.console import Group
from rich.table import Table
from rich.text import Text

from laconic.runtime.collectives import COLLECTIVES, Collective, lower_bound
from laconic.runtime.moves import Price, Schedule, Step, Take, contributions, even_sizes, volumes

NODES, MOST = 4, 16  # drawn by default, and at most
EXAMPLE = Price(alpha=1e-5, beta=32 / 10e9)  # float32 over lines of 10 Gbit/s and 10 microseconds
_SHOWN = ((4, 1_000), (4, 25_600_000), (256, 1_000), (256, 25_600_000))  # nodes and numbers of the table of costs


@dataclass(frozen=True)
class Drawing:
    """A collective on `nodes` nodes."""

    collective: Collective
    nodes: int

    @property
    def schedule(self) -> Schedule:
        return self.collective.build(self.nodes)

    def document(self) -> dict[str, Any]:
        """Plain values."""
        sizes = even_sizes(self.nodes, self.nodes)
        return {
            "name": self.collective.name,
            "kind": "collective",
            "definition": inspect.getdoc(self.collective.build),
            "nodes": self.nodes,
            "steps": [
                {
                    "take": step.take.name.lower(),
                    "sends": [{"from": s.source, "to": s.target, "chunks": list(s.chunks)} for s in step.sends],
                }
                for step in self.schedule.steps
            ],
            "chunks_sent": volumes(self.schedule, sizes).tolist(),
            "formula": self.collective.formula,
            "example": {"alpha": EXAMPLE.alpha, "beta": EXAMPLE.beta, "gamma": EXAMPLE.gamma},
            "seconds": [
                {"nodes": p, "numbers": n, "seconds": self.collective.closed(p, n).seconds(EXAMPLE)} for p, n in _SHOWN
            ],
        }

    def __rich__(self) -> Group:
        what, p = self.collective, self.nodes
        explained = (inspect.getdoc(what.build) or "").split("\n>>>")[0].rstrip()
        cost, sent = what.cost(p, p), volumes(self.schedule, even_sizes(p, p))
        adds = f" and {cost.additions:g} chunks of additions" if cost.additions else ""
        return Group(
            Text(f"{what.name}  (collective), {p} nodes, a vector cut into {p} chunks", style="bold"),
            Text(explained),
            Text(),
            self._steps(),
            Text(),
            Text(f"cost       {what.formula}, with lg p = ceil(log2 p)", style="bold"),
            Text(f"here       {cost.messages:g} messages, {cost.numbers:g} chunks{adds} one after the other"),
            Text(f"sent       {', '.join(map(str, sent))} chunks by the nodes"),
            Text(),
            Text(
                f"all forms of {what.operation} at {EXAMPLE.alpha * 1e6:g} µs a message and 10 Gbit/s, "
                "numbers of 32 bits, adding left out"
            ),
            _costs(what.operation),
        )

    def _steps(self) -> Table:
        table = Table("step", *(f"node {i}" for i in range(self.nodes)), box=None, pad_edge=False, header_style="bold")
        held = contributions(self.schedule, _start(self.collective, self.nodes))
        adding = any(step.take is Take.ADD for step in self.schedule.steps)
        rows = [[_contents(chunks, adding) for chunks in nodes] for nodes in held]
        table.add_row("", *rows[0], style="dim")
        for place, (step, after) in enumerate(zip(self.schedule.steps, rows[1:], strict=True), 1):
            table.add_row(str(place), *_sent(step, self.nodes))
            table.add_row("", *after, style="dim")
        return table


def named(text: str) -> Drawing | None:
    """The drawing that a text such as `ring`, `broadcast`, `ring broadcast` or `ring(p=5)` names, or None.

    A form alone means the all-reduce of that form, an operation alone its first form. Raises ValueError for a number of
    nodes that is not drawn.
    """
    match = re.fullmatch(r"([\w\- ]+?)\s*(?:\(\s*p\s*=\s*(\d+)\s*\))?", text.strip())
    if match is None:
        return None
    collective = _names().get(_plain(match[1]))
    if collective is None:
        return None
    nodes = int(match[2] or NODES)
    if not 1 <= nodes <= MOST:
        raise ValueError(f"show {text} : p must be from 1 to {MOST} to be drawn")
    return Drawing(collective, nodes)


def _plain(name: str) -> str:
    return re.sub(r"[\s_-]+", " ", name.lower()).strip()


def _names() -> dict[str, Collective]:
    found = {_plain(one.name): one for one in COLLECTIVES}
    for one in COLLECTIVES:
        found.setdefault(_plain(one.operation), one)
        if one.operation == "all-reduce":
            found.setdefault(_plain(one.form), one)
    return found


def _start(collective: Collective, p: int) -> np.ndarray:
    """Whose numbers are where before the first step: (node, chunk, contributor)."""
    held = np.zeros((p, p, p), dtype=np.int64)
    if "reduce" in collective.operation:
        held[np.arange(p), :, np.arange(p)] = 1
    elif "gather" in collective.operation:
        held[np.arange(p), np.arange(p), np.arange(p)] = 1
    else:
        held[0, :, 0] = 1
    return held


def _contents(chunks: np.ndarray, adding: bool) -> str:
    """One node's chunks, (chunk, contributor): A02 is the sum of the chunks A of nodes 0 and 2, ΣA that of all."""
    words = []
    for letter, whose in zip(string.ascii_uppercase, chunks, strict=False):
        if adding:
            all_in = len(whose) > 1 and bool((whose == 1).all())
            words.append(f"Σ{letter}" if all_in else letter + "".join(f"{i:x}" for i in np.flatnonzero(whose)))
        else:
            words.append(letter if whose.any() else "·")
    return " ".join(words)


def _sent(step: Step, p: int) -> Iterable[str]:
    """What every node sends in a step."""
    cells = [""] * p
    for send in step.sends:
        chunks = "".join(string.ascii_uppercase[chunk] for chunk in send.chunks)
        cells[send.source] = f"{chunks} → {send.target}" + (", added" if step.take is Take.ADD else "")
    return cells


def _costs(operation: str) -> Table:
    table = Table("form", "cost", *(f"p = {p}, n = {n:,}" for p, n in _SHOWN), box=None, header_style="bold")
    for one in COLLECTIVES:
        if one.operation == operation:
            times = [one.closed(p, n).seconds(EXAMPLE) for p, n in _SHOWN]
            table.add_row(one.form, one.formula, *map(_time, times))
    bounds = [lower_bound(operation, p, n, EXAMPLE) for p, n in _SHOWN]
    table.add_row("", "no form is below", *map(_time, bounds), style="dim")
    return table


def _time(seconds: float) -> str:
    return (
        f"{seconds * 1e6:.4g} µs"
        if seconds < 1e-3
        else f"{seconds * 1e3:.4g} ms"
        if seconds < 1
        else f"{seconds:.4g} s"
    )
