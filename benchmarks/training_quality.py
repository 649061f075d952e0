"""Accuracy after equal steps and after equal bytes: dense, PyTorch's PowerSGD of rank 1, and our best at its bytes.

    python benchmarks/training_quality.py --data-dir DIR [--minutes M] [--only PATTERN] [--list | --report] [--smoke]

ResNet-8 (width 16) on CIFAR-10, two processes. Learning rates and our mechanism are chosen by images held out from the
training set; what was chosen is trained anew on all of it, with other seeds, and judged by the test set. A run takes
about five minutes on two free cores; runs are made the most important first, and may be made in pieces.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from _training import Job, Record, Store, Study, Train, main
from _training_page import Curve, Page, Panel, Spread, Verdict, at, mark_of, numbers, spread, table

HEAD_START = 2  # candidates whose whole grid of learning rates is run


@dataclass(frozen=True)
class Method:
    """A row: its name, what says it on the command line, and how often it is evaluated in the last runs."""

    name: str
    options: Mapping[str, Any]
    evaluate_every: int = 195


DENSE = Method("dense", {"baseline": "dense"}, 65)  # often, since it has few steps within the bytes of the others
POWER = Method("PowerSGD rank 1 (PyTorch)", {"baseline": "powersgd-1"})
CANDIDATES = (
    Method(
        "ef14(topk(k=0.06) | natural), small tensors natural",
        {"mechanism": "ef14(topk(k=0.06) | natural)", "small": "direct(natural)"},
    ),
    Method(
        "ef21_sgdm(topk(k=0.06) | natural, eta=0.3), small tensors natural",
        {"mechanism": "ef21_sgdm(topk(k=0.06) | natural, eta=0.3)", "small": "direct(natural)"},
    ),
    Method(
        "LocalSGD every 8 steps, direct(int8)",
        {"local": "local_sgd", "sync_every": 8, "mechanism": "direct(int8)"},
    ),
    Method(
        "LocalSGD every 4 steps, ef14(int4(block=256)), small tensors int8",
        {"local": "local_sgd", "sync_every": 4, "mechanism": "ef14(int4(block=256))", "small": "direct(int8)"},
    ),
    Method(
        "ef14(scaled_sign), small tensors natural",
        {"mechanism": "ef14(scaled_sign)", "small": "direct(natural)"},
    ),
    Method(
        "LocalSGD every 2 steps, ef14(topk(k=0.13) | natural), small tensors int8",
        {"local": "local_sgd", "sync_every": 2, "mechanism": "ef14(topk(k=0.13) | natural)", "small": "direct(int8)"},
    ),
    Method(
        "LocalSGD every 2 steps, ef14(topk(k=0.5) | scaled_sign), small tensors int8",
        {"local": "local_sgd", "sync_every": 2, "mechanism": "ef14(topk(k=0.5) | scaled_sign)",
         "small": "direct(int8)"},
    ),
    Method(
        "LocalSGD every 3 steps, ef14(int4(block=65536)), small tensors int8",
        {"local": "local_sgd", "sync_every": 3, "mechanism": "ef14(int4(block=65536))", "small": "direct(int8)"},
    ),
    Method(
        "DiLoCo every 8 steps (outer momentum 0.5), direct(int8)",
        {"local": "diloco", "sync_every": 8, "mechanism": "direct(int8)", "outer_lr": 1.0, "outer_momentum": 0.5},
    ),
)  # fmt: skip


@dataclass(frozen=True)
class Form:
    """Sizes. `rates` are tried in this order; the first one is tried with all candidates before any other."""

    task: str = "resnet8"
    options: Mapping[str, Any] = field(default_factory=lambda: {"width": 16, "epochs": 9, "batch": 64})
    rates: Sequence[float] = (0.2, 0.1, 0.4, 0.8)
    seeds: Sequence[int] = (0, 1, 2)
    selection_seed: int = 100
    validation: int = 5000
    seconds: float = 300.0
    ranks: int | None = 2
    candidates: Sequence[Method] = CANDIDATES
    smoke: bool = False

    def every(self, method: Method) -> int:
        """Steps between evaluations in the last runs."""
        return 1 if self.smoke else method.evaluate_every


SMOKE = Form(
    "digits", {"batch": 16, "steps": 3}, rates=(0.1,), seeds=(0,), validation=200, seconds=10, ranks=1,
    candidates=CANDIDATES[1:2], smoke=True,
)  # fmt: skip


def settled_bytes(record: Record) -> float:
    """Bytes up per step and process once the first steps are over."""
    return float(record["result"]["up_per_step_settled"])


def last(record: Record, what: str) -> float:
    """A figure of a run at its end; below everything where its loss was not finite."""
    return -math.inf if record["diverged"] else float(record["result"][what])


@dataclass
class Selection:
    """What the held-out images say so far."""

    form: Form
    store: Store

    def job(self, method: Method, lr: float) -> Job:
        """A run that learns without the held-out images."""
        form = self.form
        options = {**form.options, **method.options, "lr": lr, "seed": form.selection_seed,
                   "validation": form.validation}  # fmt: skip
        return Job(f"select {method.name} lr={lr:g}", Train(form.task, options, form.ranks), form.seconds)

    def found(self, method: Method, lr: float) -> float | None:
        """Validation accuracy at the end; None before it was run."""
        record = self.store.find(self.job(method, lr))
        return None if record is None else last(record, "validation_accuracy")

    def rate(self, method: Method) -> float | None:
        """The best learning rate of those that were run."""
        tried = {lr: self.found(method, lr) for lr in self.form.rates}
        known = {lr: value for lr, value in tried.items() if value is not None}
        return max(known, key=lambda lr: known[lr]) if known else None

    def score(self, method: Method) -> float | None:
        """The accuracy at its best learning rate."""
        rate = self.rate(method)
        return None if rate is None else self.found(method, rate)

    def bytes(self, method: Method) -> float | None:
        """Per settled step and process: the most of all learning rates, for entropy-coded sizes depend on values."""
        records = (self.store.find(self.job(method, lr)) for lr in self.form.rates)
        return max((settled_bytes(one) for one in records if one is not None and not one["diverged"]), default=None)

    def complete(self, method: Method) -> bool:
        """Whether all learning rates were run."""
        return all(self.found(method, lr) is not None for lr in self.form.rates)

    @property
    def ranking(self) -> list[Method]:
        """Candidates that were run and send no more than PowerSGD, the best first."""
        allowed = self.bytes(POWER)
        if allowed is None:
            return []
        sizes = {method.name: self.bytes(method) for method in self.form.candidates}
        fitting = [one for one in self.form.candidates if (sizes[one.name] or math.inf) <= allowed]
        return sorted(fitting, key=lambda one: -(self.score(one) or 0.0))

    @property
    def chosen(self) -> Method | None:
        """The best candidate of those with all learning rates."""
        return next((method for method in self.ranking if self.complete(method)), None)


class Quality(Study):
    """The study."""

    name = "training_quality"
    summary = __doc__ or ""

    def __init__(self, form: Form) -> None:
        self.form = form

    # ---- what is run ------------------------------------------------------------------------------------------

    def final(self, method: Method, lr: float, seed: int) -> Job:
        """A run on all training images."""
        form = self.form
        options = {**form.options, **method.options, "lr": lr, "seed": seed, "evaluate_every": form.every(method)}
        return Job(f"final {method.name} lr={lr:g} seed={seed}", Train(form.task, options, form.ranks), form.seconds)

    def finals(self, selection: Selection, method: Method) -> Iterator[Job]:
        """All seeds at the chosen learning rate, once it is known."""
        rate = selection.rate(method)
        if rate is not None and selection.complete(method):
            yield from (self.final(method, rate, seed) for seed in self.form.seeds)

    def jobs(self, store: Store) -> Iterable[Job]:
        selection, form = Selection(self.form, store), self.form
        first, *others = form.rates
        yield from (selection.job(method, first) for method in (DENSE, POWER, *form.candidates))
        leading = selection.ranking[:HEAD_START]
        for method in (*leading, POWER, DENSE):
            yield from (selection.job(method, lr) for lr in others)
        chosen = selection.chosen
        for method in (POWER, DENSE) if chosen is None else (chosen, POWER, DENSE):
            yield from self.finals(selection, method)

    # ---- what is found ----------------------------------------------------------------------------------------

    def report(self, store: Store, out: Path) -> None:
        selection = Selection(self.form, store)
        ours = selection.chosen
        methods = [DENSE, POWER] + ([ours] if ours is not None else [])
        runs = {one.name: [store.find(job) for job in self.finals(selection, one)] for one in methods}
        found = {name: [one for one in records if one is not None] for name, records in runs.items()}
        every = [record for job in self.jobs(store) if (record := store.find(job)) is not None]
        page = Page(
            "Accuracy after equal steps and after equal bytes", self.command,
            every, mark_of(self.form.smoke, every),
        )  # fmt: skip
        whole = {name: len(records) == len(self.form.seeds) for name, records in found.items()}
        page.add(self._setting())
        page.verdicts(judged(selection, ours, found, whole))
        page.add("## The chosen, on the test set", self._results(found))
        curves = [one for one in methods if found[one.name]]
        if curves:
            panels = accuracy(found, [one.name for one in curves])
            page.draw(panels, out, "accuracy", "Test accuracy by epochs and by bytes: means, and ranges over seeds")
        page.add("## The choice, on held-out images", self._choice(selection), self._remark(selection, ours))
        page.write(out)

    def _setting(self) -> str:
        form = self.form
        options = ", ".join(f"{name} {value}" for name, value in form.options.items())
        return (
            f"`{form.task}` ({options} per process), {form.ranks} processes, SGD with momentum 0.9 and a cosine "
            f"schedule. Selection: seed {form.selection_seed}, {form.validation:,} training images held out, learning "
            f"rates {', '.join(f'{lr:g}' for lr in sorted(form.rates))} for each. Test: seeds "
            f"{', '.join(map(str, form.seeds))}, all training images. Bytes are those that a process says; PyTorch's "
            "are computed from what its hook averages."
        )

    def _choice(self, selection: Selection) -> str:
        rates = sorted(self.form.rates)
        rows = []
        for method in (DENSE, POWER, *self.form.candidates):
            size = selection.bytes(method)
            cells = [_percent(selection.found(method, lr)) for lr in rates]
            rows.append([method.name, "" if size is None else f"{size:,.0f}", *cells])
        return table(["method", "bytes up per settled step", *(f"lr {lr:g}" for lr in rates)], rows)

    def _remark(self, selection: Selection, ours: Method | None) -> str:
        if ours is None:
            return "Nothing is chosen yet: no candidate within PowerSGD's bytes has all its learning rates."
        left = [one.name for one in selection.ranking[:HEAD_START] if not selection.complete(one)]
        more = f" Still to be tried at all of them: {', '.join(left)}." if left else ""
        return (
            f"Chosen: `{ours.name}` at learning rate {selection.rate(ours):g}, the best of those with all learning "
            f"rates. These are tried of the {HEAD_START} that lead.{more}"
        )

    def _results(self, found: Mapping[str, Sequence[Record]]) -> str:
        budget = least_bytes(found)
        rows = []
        for name, records in found.items():
            if not records:
                continue
            sizes = f"{settled_bytes(records[0]):,.0f}", f"{records[0]['curve']['up'][-1] / 1e6:,.4g}"
            equal = "" if budget is None else accuracies(records, budget).text(100, 2, "%")
            rows.append([name, *sizes, accuracies(records).text(100, 2, "%"), equal])
        megabytes = "..." if budget is None else f"{budget / 1e6:,.4g} MB"
        return table(
            ["method", "bytes up per settled step", "MB up in all", "test accuracy after all steps",
             f"after {megabytes} up"], rows
        )  # fmt: skip


def _percent(value: float | None) -> str:
    return "" if value is None else "diverged" if value == -math.inf else f"{100 * value:.2f}%"


def accuracies(records: Sequence[Record], budget: float | None = None) -> Spread:
    """Test accuracies at the end, or after so many bytes up."""
    if budget is None:
        return spread(last(one, "test_accuracy") for one in records)
    return spread(at(one["curve"], "up", budget, "test_accuracy") for one in records if not one["diverged"])


def least_bytes(found: Mapping[str, Sequence[Record]]) -> float | None:
    """What the most frugal method says in a whole run: the bytes at which all are compared."""
    totals = [one["curve"]["up"][-1] for records in found.values() for one in records if not one["diverged"]]
    return float(min(totals)) if totals else None


def judged(
    selection: Selection, ours: Method | None, found: Mapping[str, Sequence[Record]], whole: Mapping[str, bool]
) -> list[Verdict]:
    """The targets. A target is open until all seeds of what it compares have been run."""
    dense, power = (accuracies(found[one.name]) for one in (DENSE, POWER))
    mine = accuracies(found[ours.name]) if ours is not None else Spread(())
    ready = ours is not None and whole[ours.name]
    own, theirs = (None if one is None else selection.bytes(one) for one in (ours, POWER))

    def said(*needed: bool, met: bool) -> bool | None:
        return met if all(needed) else None

    pairs = f"{mine.text(100, 2, '%')} beside {power.text(100, 2, '%')}"
    less = own is not None and theirs is not None and own <= theirs
    size = "not known yet" if own is None or theirs is None else f"{own:,.0f} beside {theirs:,.0f} per settled step"
    budget = least_bytes(found)
    equal = {one.name: accuracies(found[one.name], budget) for one in (POWER, ours) if one is not None}
    bytewise = " beside ".join(one.text(100, 2, "%") for one in reversed(equal.values()))
    ahead = ours is not None and equal[ours.name].mean > equal[POWER.name].mean
    both = ready and whole[POWER.name]
    return [
        Verdict("dense reaches 70%", said(whole[DENSE.name], met=dense.mean >= 0.7), dense.text(100, 2, "%")),
        Verdict("our mean above PowerSGD's after equal steps", said(both, met=mine.mean > power.mean), pairs),
        Verdict("our mean above PowerSGD's after equal bytes", said(both, met=ahead), bytewise),
        Verdict(
            "our mean within 1 point of dense after equal steps",
            said(ready, whole[DENSE.name], met=mine.mean >= dense.mean - 0.01),
            f"{100 * (mine.mean - dense.mean):+.2f} points",
        ),
        Verdict("no more bytes than PowerSGD rank 1", said(own is not None, theirs is not None, met=less), size),
    ]


def accuracy(found: Mapping[str, Sequence[Record]], names: Sequence[str]) -> list[Panel]:
    """The picture."""

    def curves(axis: str, scale: float = 1.0) -> list[Curve]:
        return [
            Curve(name, place, [(scale * numbers(one["curve"], axis), 100 * numbers(one["curve"], "test_accuracy"))
                                for one in found[name] if not one["diverged"]])
            for place, name in enumerate(names)
        ]  # fmt: skip

    return [
        Panel("epochs", "test accuracy, %", curves("epoch")),
        Panel("MB up per process", "", curves("up", 1e-6), "x"),
    ]


if __name__ == "__main__":
    raise SystemExit(main(Quality(SMOKE), Quality(Form())))
