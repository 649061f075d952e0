"""`laconic.tune`: the best stepsize and parameters of methods, chosen on some seeds and judged on others."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from laconic.core.entry import Entry
from laconic.core.problem import Problem
from laconic.core.spec import parse
from laconic.lab.bank import Bank
from laconic.lab.contest import Choice, Contest
from laconic.lab.criteria import Criterion, MeanLog, ToTarget
from laconic.lab.grid import multiples, points
from laconic.lab.plan import DEFAULT_ROUNDS, Limits
from laconic.lab.sweep import Field
from laconic.lab.trace import finite

EVALUATIONS = 200  # in a curve, about


@dataclass(frozen=True)
class Tuned:
    """What a tuning found.

    Attributes
    ----------
    problem, criterion : what was solved, and what "best" means, in words.
    choices : one per method, in the order given.
    curves : one row per curve: method, spec, multiple, step, seed, part ("tuning" or "test"), score, and where it
        ended (status, iterations, rounds, uplink, downlink, f, gap, grad_norm2).
    notes : what should be known: methods without a theorem, winners at an edge, curves that could not be batched.
    minutes : that it took, curves read from the cache included.
    """

    problem: str
    criterion: str
    choices: tuple[Choice, ...]
    curves: pd.DataFrame = field(repr=False)
    notes: tuple[str, ...] = ()
    minutes: float = 0.0

    @property
    def best(self) -> Choice:
        """The best choice of all, by the seeds of the tuning. Raises ValueError where there is none."""
        good = [choice for choice in self.choices if choice.spec is not None]
        if not good:
            raise ValueError(f"no method has a finite score ({self.criterion}): {'; '.join(self.notes)}")
        return min(good, key=lambda choice: choice.score)

    @property
    def winner(self) -> str:
        """The spec of the best choice of all. Raises ValueError where there is none."""
        return str(self.best.spec)

    @property
    def winners(self) -> dict[str, str | None]:
        """The winning spec of each method, by label."""
        return {choice.method: choice.spec for choice in self.choices}

    @property
    def test(self) -> dict[str, float]:
        """The score of each method on seeds not used for tuning, by label."""
        return {choice.method: choice.test for choice in self.choices}

    def document(self) -> dict[str, Any]:
        """Everything as plain values, for JSON: what is not finite is None."""
        choices = [{name: _plain(value) for name, value in vars(choice).items()} for choice in self.choices]
        rows = [{str(name): _plain(value) for name, value in row.items()} for row in self.curves.to_dict("records")]
        return {
            "problem": self.problem,
            "criterion": self.criterion,
            "winner": None if all(choice.spec is None for choice in self.choices) else self.winner,
            "choices": choices,
            "notes": list(self.notes),
            "minutes": self.minutes,
            "curves": rows,
        }


def _plain(value: Any) -> Any:
    if isinstance(value, float):
        return finite(value)
    if isinstance(value, dict):
        return {name: _plain(one) for name, one in value.items()}
    return str(value) if isinstance(value, Entry) else value


def tune(
    problem: str | Problem,
    methods: Any,
    *,
    target: float | None = None,
    rounds: int | None = None,
    iterations: int | None = None,
    budget: float | None = None,
    multipliers: Sequence[float] | str | None = None,
    grid: Mapping[str, Sequence[Any]] | None = None,
    seeds: int | Sequence[int] = 3,
    test_seeds: int | Sequence[int] | None = None,
    criterion: Criterion | None = None,
    every: int | None = None,
    widen: int = 4,
    jobs: int = 1,
    cache: str | Path | None = None,
    data_dir: str | Path | None = None,
    progress: bool = False,
) -> Tuned:
    """The best stepsize and parameters of each method on a problem.

    Parameters
    ----------
    problem, methods : as of `laconic.run`. A method's spec may hold sets of values in braces, such as
        "ef21(topk(k={1, 10, 100}))"; every combination is tried. The stepsize that a spec names is the base of the
        multiples; without one it is the theorem's, and where there is no theorem 1 / L.
    target : the gap to reach (where f* is not known, or there is none: ||grad f||^2); best is then the fewest uplink
        bytes.
        Without a target, best is the smallest mean of log10 of the gap over the last 90% of what was recorded.
    rounds, iterations, budget : when a curve ends, as of `laconic.run`.
    multipliers : of the base stepsize: numbers, or text such as "2^-3..2^8", the default.
    grid : values of parameters by their path from the method, such as {"mechanism.compressor.k": [1, 5, 10]}.
    seeds : of the tuning; a list, or how many (0, 1, ...).
    test_seeds : on which the winners are evaluated anew; by default as many, beginning after the last of `seeds`.
    criterion : another criterion than the one `target` stands for (see `laconic.lab.criteria`).
    every : iterations between two evaluations; by default about 200 in a curve.
    widen : how often the multiples may be widened, by four at an end, where the best of them lies there.
    jobs : processes at a time; with more than one a script needs the usual `if __name__ == "__main__"`.
    cache : the folder of finished curves, which an interrupted or repeated tuning reads; by default tune/ in
        LACONIC_CACHE.
    data_dir : where LIBSVM files are; else the environment's LACONIC_DATA.
    progress : show live progress on standard error.

    Raises
    ------
    ValueError : in one line, for anything that cannot be tuned.

    >>> tuned = tune("counterexample", "ef21(topk(k={1, 2}))", target=1e-3, rounds=60, seeds=1)
    >>> tuned.winner, tuned.choices[0].edge
    ("gd(ef21(topk(k=1)), step='16x')", '')
    """
    began = time.monotonic()
    chosen, tested = _seeds(seeds, "seeds"), None if test_seeds is None else _seeds(test_seeds, "test_seeds")
    tested = tested or tuple(range(max(chosen) + 1, max(chosen) + 1 + len(chosen)))
    if set(chosen) & set(tested):
        raise ValueError(f"tune(test_seeds={test_seeds!r}) : these must not be among the seeds of the tuning")
    _counted(jobs, "jobs", 1)
    _counted(widen, "widen", 0)
    if criterion is not None and target is not None:
        raise ValueError("tune(target=..., criterion=...) : give one of the two; a target stands for ToTarget(target)")
    judge = criterion or (MeanLog() if target is None else ToTarget(target))
    if not isinstance(judge, Criterion):
        raise ValueError(f"tune(criterion={criterion!r}) : give a Criterion, such as ToTarget(1e-6) or MeanLog()")
    steps = multiples(multipliers)
    given = parse(problem) if isinstance(problem, str) else problem
    if not isinstance(given, Problem):
        raise ValueError(f"{problem} is not a problem; `laconic list problem` shows them")
    combinations = [(label, points(spec, grid)) for label, spec in _labelled(methods)]
    ground = Field.of(given, None if data_dir is None else Path(data_dir))
    gaps = ground.solution is not None and not ground.setting.variational
    limits = _limits(rounds, iterations, judge.until if gaps else None, budget)
    if every is None:
        every = max(1, (limits.rounds or limits.iterations or 10 * EVALUATIONS) // EVALUATIONS)
    _counted(every, "every", 1)
    contests = [Contest(label, found, ground, judge, steps, widen) for label, found in combinations]
    folder = None if cache is None else Path(cache).expanduser()
    with _Shown(progress) as shown, Bank(ground, limits, every, jobs, folder, shown.advance) as bank:
        for seeds_, part in ((chosen, "tuning"), (tested, "test")):
            while wanted := [job for contest in contests for job in contest.wants(seeds_, part)]:
                shown.expect(sum(len(job.methods) for job in wanted))
                bank.fill(wanted)
                for contest in contests:
                    contest.take(bank, seeds_, part)
        notes = [f"{label}: its curves were run one by one ({why})" for label, why in bank.notes.items()]
    choices = tuple(contest.choice() for contest in contests)
    curves = pd.DataFrame([row for contest in contests for row in contest.rows()])
    notes = [note for contest in contests for note in contest.notes()] + notes
    return Tuned(str(given), str(judge), choices, curves, tuple(notes), (time.monotonic() - began) / 60.0)


def _labelled(methods: Any) -> list[tuple[str, str | Entry]]:
    if isinstance(methods, (str, Entry)):
        methods = [methods]
    pairs = list(methods.items()) if isinstance(methods, Mapping) else [_pair(one) for one in methods]
    labels = [label for label, _ in pairs]
    twice = next((label for label in labels if labels.count(label) > 1), None)
    if twice is not None:
        raise ValueError(f"the method {twice!r} is given twice; give one of them another label")
    if not pairs:
        raise ValueError("tune(methods=[]) : give at least one method, such as 'ef21(topk(k={1, 10}))'")
    return pairs


def _pair(one: Any) -> tuple[str, Any]:
    if isinstance(one, Mapping) and "spec" in one:
        one = (one.get("label") or one["spec"], one["spec"])
    label, spec = one if isinstance(one, tuple) and len(one) == 2 else (one, one)
    if not isinstance(spec, (str, Entry)):
        raise ValueError(f"{spec!r} is no method; give a spec such as 'ef21(topk(k={{1, 10}}))'")
    return str(label).strip(), spec


def _seeds(given: int | Sequence[int], name: str) -> tuple[int, ...]:
    wrong = ValueError(f"tune({name}={given!r}) : give a list of different integers >= 0, or how many")
    if isinstance(given, int) and not isinstance(given, bool) and given > 0:
        return tuple(range(given))
    if isinstance(given, (str, int)) or not given or len(set(given)) < len(given):
        raise wrong
    if any(isinstance(seed, bool) or not isinstance(seed, int) or seed < 0 for seed in given):
        raise wrong
    return tuple(given)


def _counted(value: Any, name: str, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ValueError(f"tune({name}={value!r}) : {name} must be an integer >= {least}")


def _limits(rounds: int | None, iterations: int | None, until: float | None, budget: float | None) -> Limits:
    if rounds is None and iterations is None and budget is None:
        rounds = DEFAULT_ROUNDS
    try:
        return Limits.make(rounds, iterations, until, budget)
    except ValueError as error:
        raise ValueError(str(error).replace("run(", "tune(", 1)) from None


class _Shown:
    """Live progress on standard error, where it is a terminal."""

    def __init__(self, shown: bool) -> None:
        console = Console(file=sys.stderr)
        columns = (TextColumn("{task.description}"), BarColumn(bar_width=24), MofNCompleteColumn(), TimeElapsedColumn())
        self._progress = Progress(*columns, console=console, disable=not (shown and console.is_terminal))
        self._task = self._progress.add_task("curves", total=0)
        self._total = 0

    def __enter__(self) -> _Shown:
        self._progress.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self._progress.stop()

    def expect(self, count: int) -> None:
        """That many curves more."""
        self._total += count
        self._progress.update(self._task, total=self._total)

    def advance(self, count: int) -> None:
        """That many curves are there."""
        self._progress.advance(self._task, count)
