"""Telemetry of compressed training: what each step cost, alarms, and a line at the end."""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType
from typing import Any, Protocol, Self

import torch
from torch import Tensor
from torch.optim import Optimizer

from laconic.training.alarms import Alarm, Alarmed, Check, Fatal, Watched, Watcher
from laconic.training.averager import Averager
from laconic.training.ballot import Ballot
from laconic.training.meter import Step
from laconic.training.outputs import Output, Sums, Totals
from laconic.training.warned import LaconicWarning, warn

PATIENCE = 20  # averaged steps after which `Telemetry.step` should have been called, where something depends on it


class HasAverager(Protocol):
    """What `attach` returns, for one, and the wrappers of local updates."""

    @property
    def averager(self) -> Averager: ...


class Telemetry:
    """Listens to the steps of an averager, writes them where one wants to read them, and rings alarms.

    ::

        telemetry = Telemetry(attached, JsonLines("steps.jsonl"), Summary(), NothingCompressed(), ErrorGrows())
        ...                 # the training loop as it is
        telemetry.close()   # laconic: 500 steps, 0.24 MB up per step (0.5% of dense float32), compress 21 ms, ...

    or the same as ``with Telemetry(...):`` around the loop. Alarms that compare processes (:class:`ReplicasDrift`) and
    those that end the run (:class:`Fatal`) need a word after every optimizer step, on all processes alike: either
    ``telemetry.follow(optimizer)`` once, or ``telemetry.step()`` each time.

    Steps are written on the averager's thread, after the last bucket and before the next step's first one. Outputs
    write on rank 0 if they do not say otherwise, so every process may have the same ones. An output that fails is
    dropped with a warning, and training goes on. Alarms watch on every process.

    Parameters
    ----------
    source : an averager, or what has one: the result of `attach`, say.
    parts : outputs (:class:`JsonLines`, :class:`TensorBoard`, :class:`Callback`, :class:`Summary`) and alarms. Checks
        and what is Fatal have to be the same on all processes, and making this is collective then.
    sample_every : averaged steps from one measurement of residual, contraction and norm to the next, where the averager
        measures none so far; 0 leaves it at that.
    timeout : seconds for collectives of its own.

    Raises
    ------
    ValueError : what is no part; an output that cannot write; an alarm without the measurements it needs.

    Attributes
    ----------
    totals : what the steps so far came to.
    """

    def __init__(
        self,
        source: Averager | HasAverager,
        *parts: Output | Alarm | Check | Fatal,
        sample_every: int = 20,
        timeout: float = 60.0,
    ) -> None:
        self._averager: Watched = source if isinstance(source, Averager) else source.averager
        if self._averager.sample_every == 0:
            self._averager.sample_every = sample_every
        self._sums = Sums()
        self._outputs: list[Output] = []
        self._watchers: list[tuple[_Bell, Watcher]] = []
        self._checks: list[tuple[_Bell, Check]] = []
        self._bells: list[_Bell] = []
        for part in parts:
            self._take(part)
        fatal = any(bell.fatal for bell in self._bells)
        self._votes = fatal and bool(self._watchers)
        self._called = fatal or bool(self._checks)
        self._ballot = Ballot(timeout) if self._called and self._averager.world > 1 else None
        self._pending: Callable[[], None] | None = None
        self._calls = self._heard_of = 0
        self._following: list[Any] = []
        self._open = True
        self._averager.listeners.append(self._heard)

    def _take(self, part: Output | Alarm | Check | Fatal) -> None:
        alarm = part.alarm if isinstance(part, Fatal) else part
        if isinstance(part, Output):
            if part.open(self._averager.rank):
                self._outputs.append(part)
            return
        if not isinstance(alarm, Alarm | Check):
            raise ValueError(f"Telemetry({type(alarm).__name__}) : it must be an output or an alarm")
        fatal = isinstance(part, Fatal)
        aloud = not fatal and (self._averager.rank == 0 or not alarm.alike)
        bell = _Bell(type(alarm).__name__, fatal, aloud)
        self._bells.append(bell)
        if isinstance(alarm, Alarm):
            self._watchers.append((bell, alarm.watcher(self._averager)))
        else:
            self._checks.append((bell, alarm))

    @property
    def totals(self) -> Totals:
        """What the steps so far came to."""
        for bell in self._bells:
            if bell.rung:
                self._sums.alarms[bell.name] = bell.rung
        return self._sums.totals

    # ---- steps ------------------------------------------------------------------------------------------------

    def _heard(self, step: Step) -> None:
        """On the averager's thread, at the end of each step."""
        self._heard_of += 1
        self._sums.add(step)
        for bell, watch in self._watchers:
            if (found := watch(step)) is not None:
                bell.ring(found)
        names = [bell.name for bell in self._bells if bell.fresh()]
        for output in list(self._outputs):
            try:
                output.write(step, names)
            except LaconicWarning:  # where warnings are errors
                raise
            except Exception as error:
                self._outputs.remove(output)
                what = f"{type(error).__name__}: {error}"
                warn(f"{type(output).__name__} failed at step {step.number} and writes no more ({what})")
        if self._called and self._heard_of == PATIENCE and not self._calls:
            warn("checks and Fatal alarms rest: nobody calls Telemetry.step() or Telemetry.follow(optimizer)")

    def step(self) -> None:
        """Says that an optimizer step has been made; on every process, between steps, on the thread that trains.

        Raises
        ------
        Alarmed : on all processes, where something Fatal was found as of the call before.
        NetworkFailure : where the other processes are gone.
        """
        self._settle()
        due = [(bell, check) for bell, check in self._checks if self._calls % check.every == 0]
        if due or self._votes:
            self._pending = self._asked(due)
        self._calls += 1

    def follow(self, optimizer: Optimizer) -> None:
        """Calls `step` after every step of an optimizer, until `close`."""
        self._following.append(optimizer.register_step_post_hook(lambda *_: self.step()))

    def _asked(self, due: list[tuple[_Bell, Check]]) -> Callable[[], None]:
        """Begins to gather what all processes have found, and what checks compare; gives how that ends."""
        fatal = next((bell.text for bell in self._bells if bell.fatal and bell.text), "")
        contributions = [torch.tensor([bool(fatal)], dtype=torch.int64), *(check.numbers() for _, check in due)]
        mine, number = torch.cat(contributions), self._calls
        gathered: Callable[[], Tensor] = (lambda: mine[None]) if self._ballot is None else self._ballot.begin(mine)

        def settle() -> None:
            votes, *rows = gathered().split([len(part) for part in contributions], dim=1)
            for (bell, check), row in zip(due, rows, strict=True):
                if (found := check.judge(row, number)) is not None:
                    bell.ring(found)
                    if bell.fatal:
                        raise Alarmed(found)
            if votes.any():
                texts = [fatal] if self._ballot is None else self._ballot.texts(fatal)
                raise Alarmed("; ".join(text for text in dict.fromkeys(texts) if text))

        return settle

    def _settle(self) -> None:
        pending, self._pending = self._pending, None
        if pending is not None:
            pending()

    # ---- the end ----------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Hears of the last step, ends the outputs (the summary is said now) and listens no more. Twice is once.

        Raises
        ------
        Alarmed, NetworkFailure : as `step` does, once all else is closed.
        """
        if self._open:
            try:
                self._averager.wait()
                self._settle()
                if self._votes:  # on what was found since
                    self._pending = self._asked([])
                    self._settle()
            finally:
                self._end()

    def _end(self) -> None:
        self._open = False
        self._averager.listeners.remove(self._heard)
        for handle in self._following:
            handle.remove()
        totals = self.totals
        for output in self._outputs:
            output.close(totals)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self.close()
        elif self._open:  # the processes do not agree on what comes next any more: no collective
            self._end()


class _Bell:
    """How often an alarm rang, and what it said first."""

    def __init__(self, name: str, fatal: bool, aloud: bool) -> None:
        self.name, self.fatal, self._aloud = name, fatal, aloud
        self.rung = 0
        self.text = ""
        self._told = 0

    def ring(self, text: str) -> None:
        """Says it the first time."""
        self.rung += 1
        if self.rung == 1:
            self.text = text
            if self._aloud:
                warn(f"{self.name}: {text}")

    def fresh(self) -> bool:
        """Whether it has rung since it was asked this last."""
        told, self._told = self._told, self.rung
        return self.rung > told
