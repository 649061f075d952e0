"""What has been found about one entry so far, and what every check of it goes through."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from laconic.checks import generators
from laconic.checks.verdict import Failure, Verdict
from laconic.core.entry import Entry

LINES = 3  # different failures of one check that are told; the next shape and dtype would say the same again


@dataclass
class Findings:
    """Failures and notes about an entry. `place` says what is being tried, for the failures' lines."""

    entry: str
    kind: str
    failures: list[Failure] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    checks: list[str] = field(default_factory=list)
    place: str = ""
    _told: list[tuple[str, str]] = field(default_factory=list)
    started: float = field(default_factory=time.perf_counter)

    @contextmanager
    def checking(self, check: str, place: str = "") -> Iterator[None]:
        """A check: an exception inside is a failure, and so is a global generator that moved."""
        self.checks.append(check)
        self.place, before = place, generators.states()
        try:
            yield
        except Exception as error:  # whatever an author's code raises is a finding about it
            self.fail(f"{type(error).__name__}: {one_line(error)}")
        after = generators.states()
        for owner in before:
            if before[owner] != after[owner]:
                self.fail(f"{owner}'s global random generator was used; numbers come from keys")

    def expect(self, kept: bool, what: str) -> None:
        """Notes a failure of the present check where a promise was not kept."""
        if not kept:
            self.fail(what)

    def fail(self, what: str) -> None:
        """Notes a failure of the present check, unless there are many of it already."""
        check = self.checks[-1]
        told = [known for name, known in self._told if name == check]
        if what not in told and len(told) < LINES:
            self._told.append((check, what))
            self.failures.append(Failure(check, f"{what} ({self.place})" if self.place else what))

    def found(self) -> Verdict:
        """What was found."""
        seconds = time.perf_counter() - self.started
        checks = tuple(dict.fromkeys(self.checks))
        return Verdict(self.entry, (), tuple(self.failures), checks, seconds, self.kind, tuple(self.notes))


def one_line(error: BaseException) -> str:
    """What an exception says, on one line."""
    return " ".join(str(error).split())[:200]


def label(entry: Entry) -> str:
    """The spec of an entry, or its class where it has no name."""
    try:
        return str(entry)
    except Exception:  # an object that is no dataclass, say: what it computes can be checked all the same
        return type(entry).__name__
