"""The conductor: several texts in flight on one thread, in an order that never depends on timing."""

from __future__ import annotations

import contextlib
import queue
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch.futures import Future

from laconic.core.flight import Text
from laconic.runtime.process_group import Pending, ProcessGroup
from laconic.training.meter import Meter


@dataclass(frozen=True)
class _Piece:
    """One text of a step; `last` says that the step has no more."""

    text: Text
    last: bool
    outcome: Future[Any]


@dataclass(frozen=True)
class _Aloft:
    """A text whose flight is in the air."""

    piece: _Piece
    pending: Pending


class Conductor:
    """Runs the texts of one step after another on a thread of its own, at most `window` of them at once.

    While there is room in the window and the step has more texts, it waits for the next one and sends its first flight
    off; else it waits for the flight that was sent off first, advances that text, and sends off its next one. So the
    order of all collectives follows from the order of the texts and what they say, which is the same on every
    process, and never from when something arrives. (Collectives issued from callbacks of futures would be ordered by
    timing, and processes would issue them in different orders.)

    After one failure the processes no longer agree on what comes next, so every text that has not ended fails with the
    same error, as does everything submitted later.

    Parameters
    ----------
    runtime : whose `begin` and `finish` nobody else calls any more; a group of its own keeps it apart from others.
    window : texts in flight at most.
    ended : called on the thread when all texts of a step have ended well.
    """

    def __init__(self, runtime: ProcessGroup, window: int = 4, ended: Callable[[], None] = lambda: None) -> None:
        if window < 1:
            raise ValueError(f"Conductor(window={window}) : window must be an integer >= 1")
        self.meter = Meter()
        self.idle = threading.Event()  # set while no step is in hand
        self.idle.set()
        self._runtime, self._window, self._ended = runtime, window, ended
        self._inbox: queue.SimpleQueue[_Piece | None] = queue.SimpleQueue()
        self._aloft: deque[_Aloft] = deque()
        self._failure: Exception | None = None
        self._thread = threading.Thread(target=self._run, name="laconic-conductor", daemon=True)
        self._thread.start()

    @property
    def failure(self) -> Exception | None:
        """What has ended it, if something has."""
        return self._failure

    def submit(self, text: Text, last: bool) -> Future[Any]:
        """Takes the next text of the step, on every process in the same order; gives the future of its result."""
        outcome: Future[Any] = Future()
        self.idle.clear()
        self._inbox.put(_Piece(text, last, outcome))
        # the error of a future made by `then` is one for C++ as well; that of `set_exception` alone is not
        return outcome.then(Future.value)

    def close(self) -> None:
        """Ends the thread, once the step in hand has ended; a step that is not complete fails."""
        self._inbox.put(None)
        self._thread.join()

    def _run(self) -> None:
        more = True  # whether the step in hand has texts to come
        while True:
            if more and len(self._aloft) < self._window:
                since = self.meter.clock()
                piece = self._inbox.get()
                if not self._aloft:
                    self.meter.waited(since)
                if piece is None:
                    break
                more = not piece.last
                self._advance(piece, None)
            else:
                aloft = self._aloft.popleft()
                self._advance(aloft.piece, aloft.pending)
            if not self._aloft and (not more or self._failure is not None):
                more = True
                self._end()
        for aloft in self._aloft:
            self._fail(aloft.piece, RuntimeError("the conductor was closed in the middle of a step"))
        self.idle.set()

    def _advance(self, piece: _Piece, pending: Pending | None) -> None:
        """Gives a text its replies and sends its next flight off, or sets its outcome where it has ended."""
        if self._failure is not None:
            return self._fail(piece, self._failure)
        meter = self.meter
        try:
            replies = None if pending is None else self._landed(pending)
            before = meter.clock()
            try:
                flight = piece.text.send(replies)
            finally:
                after = meter.clock()
                if pending is None:
                    meter.compress += after - before
                else:
                    meter.decode += after - before
            issued = self._runtime.begin(flight)
            now = meter.clock()
            meter.compress += now - after
            meter.took_off(now)
            self._aloft.append(_Aloft(piece, issued))
        except StopIteration as stop:
            piece.outcome.set_result(stop.value)
        except Exception as failure:
            self._fail(piece, failure)

    def _landed(self, pending: Pending) -> list[Any]:
        try:
            return self._runtime.finish(pending)
        finally:
            self.meter.landed(self.meter.clock())

    def _end(self) -> None:
        """No text is left of the step in hand."""
        try:
            if self._failure is None:
                self._ended()
        except Exception as failure:  # of a listener: training must hear of it
            self._failure = failure
        finally:
            self.idle.set()

    def _fail(self, piece: _Piece, failure: Exception) -> None:
        self._failure = failure
        with contextlib.suppress(Exception):  # the text raises it again, or has ended already
            piece.text.throw(failure)
        piece.text.close()
        piece.outcome.set_exception(failure)
