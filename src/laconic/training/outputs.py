"""Where telemetry goes: JSON lines, TensorBoard, a function of the user's, and one line at the end."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import math
import statistics
from abc import ABC, abstractmethod
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from laconic.training.meter import Step
from laconic.training.warned import warn

if TYPE_CHECKING:
    import pandas as pd
    from torch.utils.tensorboard import SummaryWriter

_REMEMBERED = 10_000  # steps over which medians are taken, so that a long run's memory does not grow


@dataclass(frozen=True)
class Totals:
    """What the steps so far came to.

    Attributes
    ----------
    steps : how many were heard of.
    up, down, dense, sent : bytes of this worker over all of them, as in :class:`Step`.
    compress, communicate, decode, exposed : medians in seconds over the last 10,000 steps.
    hidden : the median of what was busy and not waited for: at most compress + communicate + decode - exposed.
    contraction, residual : medians over the last 10,000 samples; None without any.
    skipped : steps of which some bucket was not averaged.
    alarms : how often each rang, by its name.

    >>> sums = Sums()
    >>> sums.add(Step(0, 5_000, 20_000, 1_000_000, 5_100, 0.021, 0.040, 0.004, exposed=0.009, hidden=0.3))
    >>> print(sums.totals)  # doctest: +NORMALIZE_WHITESPACE
    laconic: 1 step, 5 kB up per step (0.5% of dense float32), compress 21 ms, communicate 40 ms, decode 4 ms,
    of which 56 ms hidden and 9 ms waited for, 0 steps skipped
    """

    steps: int
    up: int
    down: int
    dense: int
    sent: int
    compress: float
    communicate: float
    decode: float
    exposed: float
    hidden: float
    contraction: float | None
    residual: float | None
    skipped: int
    alarms: Mapping[str, int]

    def __str__(self) -> str:
        if not self.steps:
            return "laconic: no step was heard of"
        share = f" ({_percent(self.up / self.dense)} of dense float32)" if self.dense else ""
        times = ", ".join(
            f"{name} {1e3 * getattr(self, name):.3g} ms" for name in ("compress", "communicate", "decode")
        )
        said = [
            f"laconic: {_counted(self.steps, 'step')}, {_size(self.up / self.steps)} up per step{share}, {times}, "
            f"of which {1e3 * self.hidden:.3g} ms hidden and {1e3 * self.exposed:.3g} ms waited for",
            *([] if self.contraction is None else [f"contraction {self.contraction:.2g}"]),
            f"{_counted(self.skipped, 'step')} skipped",
            *(f"{name} rang {_counted(times, 'time')}" for name, times in self.alarms.items()),
        ]
        return ", ".join(said)


class Sums:
    """Adds steps up to :class:`Totals`."""

    def __init__(self) -> None:
        self.steps = self.up = self.down = self.dense = self.sent = self.skipped = 0
        self.alarms: Counter[str] = Counter()
        names = ("compress", "communicate", "decode", "exposed", "hidden", "contraction", "residual")
        self._last: dict[str, deque[float]] = {name: deque(maxlen=_REMEMBERED) for name in names}

    def add(self, step: Step) -> None:
        """One step more."""
        self.steps += 1
        self.up += step.up
        self.down += step.down
        self.dense += step.dense
        self.sent += step.sent
        self.skipped += step.skipped > 0
        busy = step.compress + step.communicate + step.decode
        measured = {name: getattr(step, name) for name in self._last}
        measured["hidden"] = min(step.hidden, max(0.0, busy - step.exposed))
        for name, number in measured.items():
            if number is not None:
                self._last[name].append(number)

    @property
    def totals(self) -> Totals:
        """So far."""
        medians = {name: statistics.median(last) if last else None for name, last in self._last.items()}
        for name in ("compress", "communicate", "decode", "exposed", "hidden"):
            medians[name] = medians[name] or 0.0
        counts = {name: getattr(self, name) for name in ("steps", "up", "down", "dense", "sent", "skipped")}
        return Totals(**counts, **medians, alarms=dict(self.alarms))  # type: ignore[arg-type]


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}" + ("" if count == 1 else "s")


def _percent(share: float) -> str:
    return f"{float(f'{100.0 * share:.2g}'):g}%"  # two digits, and no exponent


def _size(size: float) -> str:
    for unit, least in (("GB", 1e9), ("MB", 1e5), ("kB", 1e3)):
        if size >= least:
            return f"{size / (1e6 if unit == 'MB' else least):.3g} {unit}"
    return f"{size:.3g} B"


class Output(ABC):
    """A way out for telemetry; a class of one's own has these three methods."""

    @abstractmethod
    def open(self, rank: int) -> bool:
        """Called once, on every process; gives whether this one writes. Raises ValueError where it cannot."""

    @abstractmethod
    def write(self, step: Step, alarms: Sequence[str]) -> None:
        """One step, in order, on the averager's thread; and the names of the alarms that have rung since the last."""

    @abstractmethod
    def close(self, totals: Totals) -> None:
        """The end: no step comes after it."""


class JsonLines(Output):
    """A file with one JSON object per step, written at once: a process that is killed leaves all of its lines.

    An object has the fields of :class:`Step`, its `number` as "step", and "ratio" (bytes up over dense ones) and
    "alarms" (the names of those that have rung since the line before). What was not measured is null; what is not
    finite is "inf", "-inf" or "nan", as JSON knows no such numbers.

    A run that is resumed appends. Steps that it takes again (those after its checkpoint), and a last line that was cut
    when the process was killed, make room for the new lines, which is warned of.

    Parameters
    ----------
    path : written by rank 0 only; by every process where it contains "{rank}", as in "steps-{rank}.jsonl".

    Raises
    ------
    ValueError : before the first step, where the file cannot be opened or holds other things than steps.

    >>> telemetry = Telemetry(attached, JsonLines("steps.jsonl"))  # doctest: +SKIP
    """

    def __init__(self, path: str | Path) -> None:
        self._path = str(path)
        self._file: IO[bytes] | None = None
        self._before: list[tuple[int, int]] | None = []  # of an earlier run's lines: step, and where it begins
        self._end = 0  # of its whole lines

    def open(self, rank: int) -> bool:
        if rank and "{rank}" not in self._path:
            return False
        self._path = self._path.replace("{rank}", str(rank))
        try:
            self._file = open(self._path, "a+b", buffering=0)
        except OSError as error:
            raise ValueError(f"JsonLines({self._path!r}) : cannot be written ({error.strerror})") from error
        self._before = before = []
        try:
            for told, size in _rows(self._file, f"JsonLines({self._path!r})"):
                before.append((told["step"], self._end))
                self._end += size
        except ValueError:
            self._file.close()
            raise
        return True

    def write(self, step: Step, alarms: Sequence[str]) -> None:
        assert self._file is not None
        self._make_room(self._file, step.number)
        fields = dataclasses.asdict(step)
        told = {"step": fields.pop("number"), **fields, "ratio": step.ratio, "alarms": list(alarms)}
        line = json.dumps({name: _plain(value) for name, value in told.items()}, allow_nan=False)
        self._file.write(line.encode() + b"\n")

    def close(self, totals: Totals) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def _make_room(self, file: IO[bytes], number: int) -> None:
        """Cuts off what was cut before, and an earlier run's lines from this step on."""
        if self._before is None:
            return
        again = [at for before, at in self._before if before >= number]
        file.truncate(min(again, default=self._end))
        self._before = None
        if again:
            warn(f"{self._path}: {_counted(len(again), 'line')} of an earlier run, from step {number} on, made room")


class Callback(Output):
    """A function that is called with every :class:`Step`, on every process, on the averager's thread.

    Parameters
    ----------
    f : should return soon, as the next step waits for it. What it raises switches it off, with a warning.

    >>> telemetry = Telemetry(attached, Callback(lambda step: print(step.number, step.up)))  # doctest: +SKIP
    """

    def __init__(self, f: Callable[[Step], object]) -> None:
        self._f = f

    def open(self, rank: int) -> bool:
        return True

    def write(self, step: Step, alarms: Sequence[str]) -> None:
        self._f(step)

    def close(self, totals: Totals) -> None:
        pass


class Summary(Output):
    """One line at the end, on rank 0 only.

    Parameters
    ----------
    say : what to do with the line.

    >>> telemetry = Telemetry(attached, Summary(logging.info))  # doctest: +SKIP
    """

    def __init__(self, say: Callable[[str], object] = print) -> None:
        self._say = say
        self._first = False

    def open(self, rank: int) -> bool:
        self._first = rank == 0
        return self._first

    def write(self, step: Step, alarms: Sequence[str]) -> None:
        pass

    def close(self, totals: Totals) -> None:
        if self._first:
            self._say(str(totals))


class TensorBoard(Output):
    """Scalars for TensorBoard, under "laconic/" and the names of :class:`Step`; what was not measured is left out.

    Parameters
    ----------
    target : a `torch.utils.tensorboard.SummaryWriter`, which is flushed but not closed at the end, or a directory for
        one of its own, in which the steps that a resumed run takes again are purged. Rank 0 writes; every process does
        where the directory's name contains "{rank}".

    Raises
    ------
    ModuleNotFoundError : one line, without the package tensorboard.
    """

    def __init__(self, target: SummaryWriter | str | Path) -> None:
        if importlib.util.find_spec("tensorboard") is None:
            raise ModuleNotFoundError(
                "TensorBoard : needs the package tensorboard; `pip install tensorboard` brings it"
            )
        self._own = isinstance(target, str | Path)
        self._target: Any = str(target) if self._own else target
        self._writer: Any = None

    def open(self, rank: int) -> bool:
        if rank and not (self._own and "{rank}" in self._target):
            return False
        if self._own:
            self._target = self._target.replace("{rank}", str(rank))
        else:
            self._writer = self._target
        return True

    def write(self, step: Step, alarms: Sequence[str]) -> None:
        if self._writer is None:
            from torch.utils.tensorboard import SummaryWriter

            self._writer = SummaryWriter(self._target, purge_step=step.number or None)
        told = dataclasses.asdict(step)
        number = told.pop("number")
        for name, value in {**told, "ratio": step.ratio, "alarms": len(alarms)}.items():
            if value is not None:
                self._writer.add_scalar(f"laconic/{name}", value, number)

    def close(self, totals: Totals) -> None:
        if self._writer is not None:
            self._writer.close() if self._own else self._writer.flush()
            self._writer = None


def read_steps(path: str | Path) -> pd.DataFrame:
    """The table of a file that :class:`JsonLines` wrote: one row per step, its number as the index "step".

    Numbers are int64 or float64 (NaN where nothing was measured), alarms are tuples of names. A last line that was cut
    when its process was killed is left out.

    Raises
    ------
    ValueError : for any other line that is no such object, with its number.

    >>> read_steps("steps.jsonl")["up"].cumsum()  # doctest: +SKIP
    """
    import pandas as pd

    with open(path, "rb") as file:
        rows = [told for told, _ in _rows(file, f"read_steps({str(path)!r})")]
    names = [field.name for field in dataclasses.fields(Step) if field.name != "number"]
    table = pd.DataFrame(rows, columns=["step", *names, "ratio", "alarms"]).set_index("step")
    for field in ("compress", "communicate", "decode", "exposed", "hidden", "residual", "contraction", "norm", "ratio"):
        table[field] = table[field].astype("float64")
    table["alarms"] = table["alarms"].map(tuple)
    return table


def _rows(file: IO[bytes], who: str) -> Iterator[tuple[dict[str, Any], int]]:
    """The objects of a file and the sizes of their lines, without a last line that was cut."""
    file.seek(0)
    for place, line in enumerate(file, start=1):
        if not line.endswith(b"\n"):
            return
        told = _told(line)
        if told is None:
            raise ValueError(f"{who} : line {place} is no step of telemetry: {line[:60]!r}")
        yield told, len(line)


def _told(line: bytes) -> dict[str, Any] | None:
    """The object of a line; None for anything else."""
    try:
        told = json.loads(line)
    except ValueError:
        return None
    return told if isinstance(told, dict) and isinstance(told.get("step"), int) and "up" in told else None


def _plain(value: Any) -> Any:
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
