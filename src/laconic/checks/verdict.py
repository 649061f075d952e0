"""What a check of an entry finds: failures in one line each, and constants claimed and measured."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

SHOWN = 12  # failures said by an AssertionError; the verdict holds them all


@dataclass(frozen=True)
class Failure:
    """A promise that was not kept: which check found it, and what happened, in one line."""

    check: str
    what: str

    def __str__(self) -> str:
        return f"{self.check}: {self.what}"


@dataclass(frozen=True)
class Constant:
    """A claimed constant beside the worst that was measured, where it came closest to its claim.

    Parameters
    ----------
    name : "omega", "alpha", or "A, B", whose measured value is the error as a share of the bound.
    claimed, measured : "A, B" has both claimed values in `claimed`.
    sure : what the measured value is at least (for alpha: at most), but for a negligible chance.
    d, n : coordinates and workers; `where` says which vectors.
    """

    name: str
    claimed: tuple[float, ...]
    measured: float
    sure: float
    d: int
    n: int
    where: str

    @property
    def tightness(self) -> float:
        """How much of what the claim allows was surely seen: 1 where it is attained."""
        if self.name == "alpha":
            return (1.0 - self.sure) / (1.0 - self.claimed[0]) if self.claimed[0] < 1.0 else 0.0
        if self.name == "omega":
            return self.sure / self.claimed[0] if self.claimed[0] > 0.0 else 0.0
        return self.sure

    def __str__(self) -> str:
        claimed = ", ".join(f"{value:.4g}" for value in self.claimed)
        if self.name == "A, B":
            return f"A, B = {claimed} claimed, {self.measured:.4g} of the bound worst measured"
        return f"{self.name} {claimed} claimed, {self.measured:.4g} worst measured"


@dataclass(frozen=True)
class Verdict:
    """What was found about one entry.

    `constants` are those of a compressor's claim, `notes` what else was measured, in words; `checks` are the names of
    all checks made.
    """

    entry: str
    constants: tuple[Constant, ...]
    failures: tuple[Failure, ...]
    checks: tuple[str, ...]
    seconds: float = field(compare=False)
    kind: str = "compressor"
    notes: tuple[str, ...] = ()

    @property
    def passed(self) -> bool:
        """Whether every check was passed."""
        return not self.failures

    def measured(self) -> str:
        """What was claimed and measured, in words."""
        return "; ".join([*map(str, self.constants), *self.notes]) or "nothing is claimed"

    def line(self) -> str:
        """The verdict in one line."""
        return f"{self.entry}   {self.measured()}   {self.outcome()}"

    def outcome(self) -> str:
        """Whether it passed, how many checks there were, and how long they took."""
        state = "ok" if self.passed else f"FAILED {len({failure.check for failure in self.failures})}"
        return f"{state} ({len(self.checks)} checks, {self.seconds:.1f} s)"

    def record(self) -> dict[str, Any]:
        """The verdict as plain values."""
        constants = [{**asdict(one), "claimed": list(one.claimed)} for one in self.constants]
        return {
            "entry": self.entry,
            "kind": self.kind,
            "passed": self.passed,
            "constants": constants,
            "notes": list(self.notes),
            "failures": [asdict(failure) for failure in self.failures],
            "checks": list(self.checks),
            "seconds": round(self.seconds, 3),
        }


class NotConforming(AssertionError):
    """An entry that does not keep what it must; says what, one line each."""

    def __init__(self, entry: str, failures: Sequence[Failure]) -> None:
        self.failures = tuple(failures)
        lines = [f"  {failure}" for failure in failures[:SHOWN]]
        more = [f"  and {len(failures) - SHOWN} more"] if len(failures) > SHOWN else []
        super().__init__("\n".join([f"{entry} does not conform:", *lines, *more]))
