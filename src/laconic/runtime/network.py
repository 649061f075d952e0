"""The simulated network: what a flight of messages costs in seconds.

In a star, which is the default, the server sits in the middle; worker i is joined to it by a full-duplex line with a
rate up, a rate down and a latency. A flight that carries b_i bytes in one direction takes

    max over the workers that speak of (latency_i + 8 b_i / rate_i)

seconds, and where the server's port has a rate R of its own, at least min latency + 8 sum(b_i) / R, for the port
carries one message after the other. Both directions of one flight run at the same time.

In a ring and in a tree there is no server in the middle. Every worker has one full-duplex port of the given rate, and a
flight consists of collectives (see `collectives`), one after the other, for they share the ports:

    what sums (`link.all_reduce`)     an all-reduce: around the ring, or Rabenseifner's in a tree
    messages to the server            a gather at worker 0, which hosts the server; nothing is added on the way,
                                      for compressed messages of different lengths and supports have no sum of
                                      the same length
    messages from the server          a broadcast from worker 0 of the longest of them: what several are told is
                                      taken to be one message, of which each needs the beginning
    the last two with `replicated`    an all-gather of the messages, and nothing: every worker does the server's
                                      work itself, as processes do in data-parallel training

A step of a collective takes latency + 8 m / rate, m the bytes of its longest message. Adding is no part of it:
computing is measured, not modelled. Whoever has nothing to say costs nothing, in every topology.
"""

from __future__ import annotations

import csv
import math
import re
import tomllib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from laconic.runtime.moves import Cost, Price
from laconic.runtime.topologies import PLACEMENTS, Placement

STAR = "star"
FORM = (
    "a rate and a latency such as '10mbit,20ms' or '10mbit,20ms,server=100mbit', or with a topology after them "
    f"({STAR}; {'; '.join(PLACEMENTS)}), or a .csv or .toml file of links"
)
_RATES = {"bit": 1.0, "kbit": 1e3, "mbit": 1e6, "gbit": 1e9, "tbit": 1e12}
_TIMES = {"ns": 1e-9, "us": 1e-6, "ms": 1e-3, "s": 1.0}
_QUANTITY = re.compile(r"\s*([0-9]*\.?[0-9]+(?:[eE][+-]?[0-9]+)?)\s*([a-zA-Z]+)\s*")


def _quantity(text: Any, units: Mapping[str, float], what: str, where: str) -> float:
    match = _QUANTITY.fullmatch(str(text))
    if match is None or match[2].lower() not in units:
        raise ValueError(f"{where}: {what} must be a number and a unit ({', '.join(units)}), not {str(text)!r}")
    value = float(match[1]) * units[match[2].lower()]
    if not math.isfinite(value) or (value == 0.0 and units is _RATES):
        raise ValueError(f"{where}: {what} must be more than zero, not {str(text)!r}")
    return value


def _rate(text: Any, where: str, what: str = "the rate") -> float:
    return _quantity(text, _RATES, what, where)


def _latency(text: Any, where: str) -> float:
    return _quantity(text, _TIMES, "the latency", where)


@dataclass(frozen=True)
class Line:
    """One worker's line to the server: rates in bit/s, latency in seconds."""

    up: float
    down: float
    latency: float


@dataclass(frozen=True)
class Network:
    """The lines of all workers, and how they are joined.

    Attributes
    ----------
    name : the text it was made from; names its column of seconds in the trace.
    default : the line of every worker that has none of its own.
    lines : the lines of single workers, by number.
    server : the rate of the server's port in bit/s, or None where it never is the bottleneck.
    topology : 'star', or one of `topologies.PLACEMENTS`, where all lines are equal and symmetric.

    >>> clock = Network.parse("10mbit,20ms").clock(2)
    >>> clock(np.array([1000, 5000]), None)
    >>> round(clock.seconds, 6)
    0.024
    """

    name: str
    default: Line | None
    lines: tuple[tuple[int, Line], ...] = ()
    server: float | None = None
    topology: str = STAR

    @staticmethod
    def parse(text: str | Network) -> Network:
        """The network that `text` names: `rate,latency[,topology][,server=rate]` or the path of a file of links.

        The topology is star (by default), ring or tree, the last two also as in `10mbit,20ms,ring,replicated`; only a
        star has a `server=`.

        A CSV file has the columns `worker` (a number, `0-9`, `server` or `*` for all others), `rate` (or `up` and
        `down`) and `latency`; the row of `server` has only a rate. A TOML file has `server = "100mbit"` (optional) and
        tables `[[links]]` with the same keys. Raises ValueError for anything else.
        """
        if isinstance(text, Network):
            return text
        text = text.strip()
        suffix = Path(text).suffix.lower()
        if suffix in (".csv", ".toml"):
            return _from_file(Path(text), suffix)
        pieces = [piece.strip() for piece in text.split(",")]
        server = None
        if len(pieces) > 2 and pieces[-1].startswith("server="):
            server = _rate(pieces.pop()[len("server=") :], f"network {text!r}", "the server's rate")
        topology = ",".join(pieces[2:]) or STAR
        if len(pieces) < 2 or topology not in (STAR, *PLACEMENTS):
            raise ValueError(f"network {text!r}: a network is {FORM}")
        if server is not None and topology != STAR:
            raise ValueError(f"network {text!r}: only a star has a server's port; leave server= or {topology} out")
        rate = _rate(pieces[0], f"network {text!r}")
        line = Line(rate, rate, _latency(pieces[1], f"network {text!r}"))
        return Network(text.replace(" ", ""), line, (), server, topology)

    @property
    def repriceable(self) -> bool:
        """Whether flights and their peaks alone give the seconds: a star of equal symmetric lines, no server port.

        A ring and a tree must know what sums, and a tree who speaks.
        """
        line, star = self.default, self.topology == STAR
        return star and not self.lines and self.server is None and line is not None and line.up == line.down

    def price(self, flights: np.ndarray, peak: np.ndarray) -> np.ndarray:
        """Seconds of `flights` flights whose largest messages add up to `peak` bytes; only where `repriceable`."""
        if not self.repriceable or self.default is None:
            raise ValueError(
                f"network {self.name!r}: a finished run can be priced only for a star of equal, symmetric lines "
                "without a server rate; give this network to `laconic run` with --network"
            )
        return flights * self.default.latency + 8.0 * peak / self.default.up

    def clock(self, n: int) -> Clock:
        """A clock for n workers. Raises ValueError where a worker has no line."""
        own = dict(self.lines)
        beyond = [worker for worker in own if worker >= n]
        if beyond:
            raise ValueError(f"network {self.name!r} has a line for worker {beyond[0]}, but there are only {n} workers")
        lines = [own.get(worker, self.default) for worker in range(n)]
        for worker, line in enumerate(lines):
            if line is None:
                raise ValueError(f"network {self.name!r} has no line for worker {worker}; add one, or a row for '*'")
        table = np.array([(line.up, line.down, line.latency) for line in lines if line is not None]).reshape(n, 3)
        if self.topology == STAR:
            return StarClock(table[:, 0], table[:, 1], table[:, 2], self.server)
        equal = self.default
        if equal is None or self.lines or self.server is not None or equal.up != equal.down:
            raise ValueError(f"network {self.name!r}: a {self.topology} needs one symmetric line for all workers")
        return CollectiveClock(PLACEMENTS[self.topology], equal)

    @staticmethod
    def of_record(record: Mapping[str, Any]) -> Network:
        """The network that `record` made plain values of."""
        lines = tuple((int(worker), Line(**line)) for worker, line in record["lines"].items())
        default = None if record["default"] is None else Line(**record["default"])
        return Network(record["name"], default, lines, record["server"], record.get("topology", STAR))

    def record(self) -> dict[str, Any]:
        """Plain values for run.json."""
        lines = {str(worker): vars(line) for worker, line in self.lines}
        default = None if self.default is None else vars(self.default)
        others = {} if self.topology == STAR else {"topology": self.topology}  # a star's record is as it always was
        return {"name": self.name, "default": default, "lines": lines, "server": self.server, **others}


class Clock(ABC):
    """Adds up the seconds of every flight; a listener of the ledger."""

    seconds: float = 0.0

    def __call__(self, up: np.ndarray | None, down: np.ndarray | None, returned: np.ndarray | None = None) -> None:
        """One flight with these bytes per worker, (n,) each, or None for a direction in which nothing travels.

        `returned` comes back from all-reduces, and is part of `up` as well.
        """
        self.seconds += self.flight(up, down, returned)

    @abstractmethod
    def flight(self, up: np.ndarray | None, down: np.ndarray | None, returned: np.ndarray | None) -> float:
        """The seconds of one flight."""

    def state(self) -> dict[str, Tensor]:
        """What a checkpoint keeps."""
        return {"seconds": torch.tensor(self.seconds, dtype=torch.float64)}

    def load(self, state: Mapping[str, Tensor]) -> None:
        self.seconds = float(state["seconds"])


class StarClock(Clock):
    """Every worker has its own line to the server; what is summed is summed there, and goes down once all is up.

    Rates are bit/s and latencies seconds, arrays of shape (n,).
    """

    def __init__(self, up: np.ndarray, down: np.ndarray, latency: np.ndarray, server: float | None) -> None:
        self._up, self._down, self._latency, self._server = up, down, latency, server

    def flight(self, up: np.ndarray | None, down: np.ndarray | None, returned: np.ndarray | None) -> float:
        both = max(self._one_way(up, self._up), self._one_way(down, self._down))
        return both + self._one_way(returned, self._down)

    def _one_way(self, sizes: np.ndarray | None, rates: np.ndarray) -> float:
        if sizes is None:
            return 0.0
        speaks = sizes > 0
        if not speaks.any():
            return 0.0
        latency = self._latency[speaks]
        slowest = float((latency + 8.0 * sizes[speaks] / rates[speaks]).max())
        if self._server is None:
            return slowest
        return max(slowest, float(latency.min() + 8.0 * float(sizes.sum()) / self._server))


class CollectiveClock(Clock):
    """Every flight consists of collectives, which follow each other."""

    def __init__(self, placement: Placement, line: Line) -> None:
        self._placement, self._price = placement, Price(line.latency, 8.0 / line.up)

    def flight(self, up: np.ndarray | None, down: np.ndarray | None, returned: np.ndarray | None) -> float:
        total = Cost()
        if up is not None and returned is not None:
            total += self._placement.form.all_reduce(len(returned), int(returned.max()))
            up = up - returned
        if up is not None:
            total += self._placement.up(up)
        if down is not None:
            total += self._placement.down(down)
        return total.seconds(self._price)


def _from_file(path: Path, suffix: str) -> Network:
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ValueError(
            f"network {str(path)!r}: cannot read the file ({error.strerror}); a network is {FORM}"
        ) from None
    server: float | None = None
    if suffix == ".csv":
        rows = list(csv.DictReader(text.splitlines(), skipinitialspace=True))
        places = [f"{path}, line {number}" for number in range(2, len(rows) + 2)]
    else:
        try:
            document = tomllib.loads(text)
        except tomllib.TOMLDecodeError as error:
            raise ValueError(f"network {str(path)!r}: {error}") from None
        rows = document.get("links", [])
        places = [f"{path}, link {number}" for number in range(1, len(rows) + 1)]
        if "server" in document:
            server = _rate(document["server"], str(path), "the server's rate")
    default: Line | None = None
    lines: dict[int, Line] = {}
    for row, where in zip(rows, places, strict=True):
        row = {str(key): value for key, value in row.items() if value not in (None, "")}
        worker = str(row.get("worker", "*")).strip()
        if worker == "server":
            server = _rate(row.get("rate", ""), where, "the server's rate")
        elif worker == "*":
            default = _line(row, where)
        else:
            line = _line(row, where)
            for number in _workers(worker, where):
                if number in lines:
                    raise ValueError(f"{where}: worker {number} has a line already")
                lines[number] = line
    if default is None and not lines:
        raise ValueError(f"network {str(path)!r} has no links; each needs worker, rate (or up and down) and latency")
    return Network(path.name, default, tuple(sorted(lines.items())), server)


def _line(row: Mapping[str, Any], where: str) -> Line:
    unknown = sorted(set(row) - {"worker", "rate", "up", "down", "latency"})
    if unknown:
        raise ValueError(f"{where}: there is no column {unknown[0]!r}; use worker, rate (or up and down) and latency")
    up = _rate(row.get("up", row.get("rate", "")), where, "the rate up")
    down = _rate(row.get("down", row.get("rate", "")), where, "the rate down")
    return Line(up, down, _latency(row.get("latency", ""), where))


def _workers(text: str, where: str) -> Iterable[int]:
    match = re.fullmatch(r"(\d+)(?:-(\d+))?", text)
    if match is None or (match[2] is not None and int(match[2]) < int(match[1])):
        raise ValueError(f"{where}: worker must be a number, a range such as 0-9, '*' or 'server', not {text!r}")
    return range(int(match[1]), int(match[2] or match[1]) + 1)
