"""Alarms: what goes wrong with compression in training and would otherwise go unnoticed.

An alarm says once what it has found, in a :class:`LaconicWarning`, and is counted from then on. Within :class:`Fatal`
it ends the run, on all processes at the same step. (Numbers that are not finite are the averager's affair: see
:class:`laconic.training.Skip` and :class:`laconic.training.Stop`.)
"""

from __future__ import annotations

import math
import statistics
from abc import ABC, abstractmethod
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Protocol

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from laconic.training.fingerprint import fingerprint
from laconic.training.meter import Step
from laconic.training.policy import Plan, Policy

Watcher = Callable[[Step], str | None]  # what is wrong as of a step, in one line; None where nothing is


class Watched(Protocol):
    """What alarms and telemetry use of an :class:`laconic.training.Averager`."""

    rank: int
    world: int
    sample_every: int
    policy: Policy
    plans: dict[str, Plan]
    shapes: dict[str, tuple[int, ...]]
    listeners: list[Callable[[Step], None]]

    def wait(self) -> None: ...


class Alarmed(RuntimeError):
    """An alarm that was Fatal has rung, on this process or another."""


class Alarm(ABC):
    """Something to be noticed in the steps of this process.

    Attributes
    ----------
    alike : whether all processes notice it, so that rank 0 alone has to say it.

    >>> class Slow(Alarm):
    ...     alike = False
    ...     def watcher(self, averager):
    ...         return lambda step: "a second was waited for" if step.exposed > 1.0 else None
    """

    alike: ClassVar[bool]

    @abstractmethod
    def watcher(self, averager: Watched) -> Watcher:
        """A watch over an averager from now on: called with each step, in order, on the averager's thread.

        Raises ValueError where the averager does not measure what it needs.
        """


class Check(ABC):
    """Something to be noticed by comparing the processes between steps. Every process has the same ones.

    Attributes
    ----------
    every : calls of `Telemetry.step` from one comparison to the next; the first call makes one.
    """

    alike: ClassVar[bool] = True
    every: int

    @abstractmethod
    def numbers(self) -> Tensor:
        """What this process contributes, int64 of shape (k,) with the same k on all of them."""

    @abstractmethod
    def judge(self, rows: Tensor, step: int) -> str | None:
        """What is wrong with the contributions of all, (world, k), as of an optimizer step, counted from 0."""


@dataclass(frozen=True)
class Fatal:
    """An alarm or a check that ends the run: `Telemetry.step` raises :class:`Alarmed`, on all processes at once.

    It is agreed upon in the background, so it comes one or two calls after the step that was found wrong.

    >>> telemetry = Telemetry(attached, Fatal(StepsSkipped(over=50)))  # doctest: +SKIP
    >>> telemetry.follow(optimizer)  # doctest: +SKIP
    """

    alarm: Alarm | Check


def _at_least(owner: str, **given: tuple[float, float]) -> None:
    for name, (value, least) in given.items():
        if not least <= value < math.inf:
            raise ValueError(f"{owner}({name}={value!r}) : {name} must be a number >= {least:g}")


@dataclass(frozen=True)
class NothingCompressed(Alarm):
    """As many bytes go up as without compression.

    It rings once the policy's warm-up is over, when this worker's bytes up in the last `over` steps are not below
    `below` times those of dense float32, and tells which rules send how much as it is.

    Parameters
    ----------
    over : steps.
    below : a share of the dense bytes.

    >>> telemetry = Telemetry(attached, NothingCompressed(below=0.5))  # doctest: +SKIP
    """

    alike = True
    over: int = 10
    below: float = 1.0

    def __post_init__(self) -> None:
        _at_least("NothingCompressed", over=(self.over, 1), below=(self.below, 0.0))

    def watcher(self, averager: Watched) -> Watcher:
        warm = sum(steps for steps, _ in averager.policy.warm_up)
        last: deque[Step] = deque(maxlen=self.over)

        def watch(step: Step) -> str | None:
            if step.number < warm or step.skipped:
                return None
            last.append(step)
            up, dense = sum(one.up for one in last), sum(one.dense for one in last)
            if len(last) < self.over or up < self.below * dense:
                return None
            return (
                f"nothing is compressed: {up / self.over:,.0f} bytes up per step where dense float32 takes "
                f"{dense / self.over:,.0f} (steps {last[0].number} to {step.number}); {senders(averager)}"
            )

        return watch


def senders(averager: Watched) -> str:
    """One line: which rule of an averager's policy sends how many numbers by which mechanism."""
    counts: Counter[str] = Counter()
    for name, shape in averager.shapes.items():
        rule = averager.policy.rule_of(name, shape)
        counts[f"{averager.plans[name].mechanism} (no rule)" if rule is None else f"Rule({rule})"] += math.prod(shape)
    total = max(1, sum(counts.values()))
    return "; ".join(
        f"{numbers:,} numbers ({100 * numbers / total:.3g}%) by {who}" for who, numbers in counts.most_common()
    )


@dataclass(frozen=True)
class ErrorGrows(Alarm):
    """What error feedback owes grows without bound.

    Where the compressor leaves out at most the share q^2 = ||x - C(x)||^2 / ||x||^2 < 1 of what it is given, error
    feedback never owes more than q / (1 - q) times the largest vector, for ||e'|| <= q (||e|| + ||v||). So a memory
    that first fills, as each does, is sound, however much it grows. It is unsound when, in windows of `window` samples,

    - the median residual is more than `factor` times the smallest that an earlier window had, and
    - it has risen twice in a row, and
    - the median of residual / norm exceeds 1 and 2 q / (1 - q), q^2 the largest median contraction of these three
      windows, or `most` if that is less, or where no contraction is known (where q >= 1 there is no bound: 1 is
      enough).

    A residual that stays within a band [a, b], b < factor * a, or falls, never rings. One that grows g-fold from sample
    to sample with q >= 1 and more than the norm rings within
    ``window * (1 + max(2, ceil(log(factor) / (window * log(g)))))`` samples.

    Needs samples: an averager with `sample_every`. Samples in which nothing is owed, as in a dense warm-up, do not
    count.

    Parameters
    ----------
    window : samples.
    factor : how much is growth.
    most : times the norm of the gradients, beyond which no memory is taken for sound.

    >>> telemetry = Telemetry(attached, Fatal(ErrorGrows(window=5)), sample_every=10)  # doctest: +SKIP
    """

    alike = False
    window: int = 10
    factor: float = 4.0
    most: float = 1000.0

    def __post_init__(self) -> None:
        _at_least("ErrorGrows", window=(self.window, 1), factor=(self.factor, 1.0), most=(self.most, 1.0))

    def watcher(self, averager: Watched) -> Watcher:
        if averager.sample_every < 1:
            raise ValueError(
                "ErrorGrows : the averager takes no samples; give Telemetry(sample_every=20) or attach(sample_every=20)"
            )
        samples: list[Step] = []
        medians: deque[tuple[float, float]] = deque(maxlen=3)  # of residuals, and of contractions, by window
        least = math.inf  # median residual of a window before the last one

        def watch(step: Step) -> str | None:
            nonlocal least
            if not step.residual or step.norm is None or step.skipped:
                return None
            samples.append(step)
            if len(samples) < self.window:
                return None
            residual, share = _median(one.residual for one in samples), _median(map(_share, samples))
            found = [one.contraction for one in samples if one.contraction is not None]
            samples.clear()
            medians.append((residual, _median(found) if found else math.nan))
            earlier, least = least, min(least, residual)
            rises = len(medians) == 3 and medians[0][0] < medians[1][0] < medians[2][0]
            bound = self._bound([contraction for _, contraction in medians])
            if not (rises and residual > self.factor * earlier and share > bound):
                return None
            return (
                f"step {step.number}, rank {averager.rank}: what error feedback owes grows without bound: its norm is "
                f"{residual:.3g} where it was {earlier:.3g}, and {share:.3g} times that of the gradients, where "
                f"{bound:.3g} is sound; contraction {medians[-1][1]:.3g}"
            )

        return watch

    def _bound(self, contractions: Sequence[float]) -> float:
        """The largest sound residual in norms of the gradients; contractions that are not known are NaN."""
        if any(map(math.isnan, contractions)):
            return self.most
        q = math.sqrt(max(contractions))
        return max(1.0, min(self.most, 2.0 * q / (1.0 - q))) if q < 1.0 else 1.0


def _share(step: Step) -> float:
    assert step.residual is not None and step.norm is not None
    return step.residual / step.norm if step.norm > 0.0 else math.inf if step.residual else 0.0


def _median(numbers: object) -> float:
    # what is not finite counts as very large: a median of NaN would depend on the order
    finite = [number if math.isfinite(number) else math.inf for number in numbers]  # type: ignore[attr-defined]
    return statistics.median_low(finite)


@dataclass(frozen=True)
class StepsSkipped(Alarm):
    """Each of the last `over` steps was skipped at least in part, since some worker's numbers were not finite.

    Parameters
    ----------
    over : steps; more than a GradScaler needs to find its scale.

    >>> telemetry = Telemetry(attached, StepsSkipped(over=50))  # doctest: +SKIP
    """

    alike = True
    over: int = 20

    def __post_init__(self) -> None:
        _at_least("StepsSkipped", over=(self.over, 1))

    def watcher(self, averager: Watched) -> Watcher:
        row = 0

        def watch(step: Step) -> str | None:
            nonlocal row
            row = row + 1 if step.skipped else 0
            if row < self.over:
                return None
            return f"step {step.number}: numbers were not finite in each of the last {row} steps; training goes nowhere"

        return watch


@dataclass(frozen=True)
class ReplicasDrift(Check):
    """Processes no longer hold the same parameters, bit for bit.

    Every `every` calls of `Telemetry.step` each process takes a :func:`fingerprint` of each tensor, which are
    compared over a group of telemetry's own: 8 bytes per tensor, in the background of the next step. Under local
    updates, where models differ on purpose, let `every` be a multiple of the steps between synchronisations.

    Parameters
    ----------
    model : its parameters; or tensors by name, such as buffers. (DDP lets buffers of batch normalisation differ until
        the next forward pass.)
    every : calls.

    >>> telemetry = Telemetry(attached, ReplicasDrift(model, every=50))  # doctest: +SKIP
    >>> telemetry.follow(optimizer)  # doctest: +SKIP
    """

    model: nn.Module | Mapping[str, Tensor] = field(repr=False)
    every: int = 100

    def __post_init__(self) -> None:
        _at_least("ReplicasDrift", every=(self.every, 1))
        if not self.named:
            raise ValueError("ReplicasDrift(model) : it has no parameters; give a model, or tensors by name")

    @property
    def named(self) -> dict[str, Tensor]:
        """What is compared."""
        if not isinstance(self.model, nn.Module):
            return dict(self.model)
        model = self.model.module if isinstance(self.model, DistributedDataParallel) else self.model
        return dict(model.named_parameters())

    def numbers(self) -> Tensor:
        return torch.tensor([fingerprint(tensor) for tensor in self.named.values()], dtype=torch.int64)

    def judge(self, rows: Tensor, step: int) -> str | None:
        usual = _usual(rows)
        differ = rows != rows[usual]
        if not differ.any():
            return None
        ranks, places = (differ.any(dim=dim).nonzero().flatten().tolist() for dim in (1, 0))
        who = f"rank {ranks[0]} differs" if len(ranks) == 1 else f"ranks {_listed(ranks)} differ"
        return (
            f"replicas have drifted apart as of optimizer step {step}: {who} from rank {usual}, first in "
            f"{list(self.named)[places[0]]!r}, in {len(places)} of {rows.shape[1]} tensors"
        )


def _usual(rows: Tensor) -> int:
    """The first process that has what most processes have."""
    each = [tuple(row) for row in rows.tolist()]
    counts = Counter(each)
    return each.index(max(each, key=counts.__getitem__))


def _listed(ranks: Sequence[int]) -> str:
    return ", ".join(map(str, ranks[:-1])) + f" and {ranks[-1]}"
