"""`check` and `conform`: every check of one entry, whatever its kind, quickly or thoroughly."""

from __future__ import annotations

from collections.abc import Callable

from laconic.checks.broadcasts import broadcast_checks
from laconic.checks.compressors import check_compressor
from laconic.checks.entries import entry_checks
from laconic.checks.estimators import estimator_checks
from laconic.checks.findings import Findings, label
from laconic.checks.mechanisms import mechanism_checks
from laconic.checks.methods import method_checks
from laconic.checks.problems import problem_checks
from laconic.checks.regularisers import regulariser_checks
from laconic.checks.schedules import schedule_checks
from laconic.checks.suite import QUICK, WHOLE, Suite
from laconic.checks.verdict import NotConforming, Verdict
from laconic.core.broadcast import Broadcast
from laconic.core.compressor import Compressor
from laconic.core.entry import Entry
from laconic.core.estimator import Estimator
from laconic.core.mechanism import Mechanism
from laconic.core.method import Method
from laconic.core.problem import Problem
from laconic.core.registry import catalogue
from laconic.core.regulariser import Regulariser
from laconic.core.schedule import Schedule
from laconic.core.spec import example, parse

SUITES: tuple[tuple[type[Entry], Callable[..., Suite]], ...] = (
    (Problem, problem_checks),
    (Estimator, estimator_checks),
    (Mechanism, mechanism_checks),
    (Method, method_checks),
    (Regulariser, regulariser_checks),
    (Broadcast, broadcast_checks),
    (Schedule, schedule_checks),
)


def check(entry: Entry | str, quick: bool = True) -> Verdict:
    """Puts an entry, an object or a spec, through every check of its kind.

    Nothing is raised for what it does wrong: the verdict says it. A spec that cannot be read raises ValueError.
    """
    subject = entry_of(entry)
    if isinstance(subject, Compressor):
        return check_compressor(subject, quick)
    found, effort = Findings(label(subject), subject.kind), QUICK if quick else WHOLE
    checks = list(entry_checks(found, subject))
    for kind, suite in SUITES:
        if isinstance(subject, kind):
            checks += suite(found, subject, effort)
    for name, made in checks:
        with found.checking(name):
            made()
    return found.found()


def conform(entry: Entry | str, quick: bool = True) -> None:
    """Raises :class:`NotConforming`, an AssertionError that says what failed, unless every check is passed."""
    verdict = check(entry, quick)
    if not verdict.passed:
        raise NotConforming(verdict.entry, verdict.failures)


def entry_of(entry: Entry | str) -> Entry:
    """The entry that a spec or a name means (a name alone its example), or the one given. Raises ValueError."""
    if not isinstance(entry, str):
        return entry
    names = catalogue().names
    return parse(example(catalogue().find(entry)) if entry.strip() in names and not _whole(entry) else entry)


def compressor_of(spec: str) -> Compressor:
    """The compressor that a spec or a name means. Raises ValueError for anything else."""
    found = entry_of(spec)
    if not isinstance(found, Compressor):
        raise ValueError(f"{spec} is a {found.kind}, not a compressor; see `laconic list compressor`")
    return found


def _whole(name: str) -> bool:
    """Whether a name alone is a spec."""
    try:
        parse(name)
    except ValueError:
        return False
    return True


def entries_of(words: list[str]) -> list[str]:
    """Specs to check: a kind ("mechanism", "mechanisms") means the examples of all its entries, nothing all kinds.

    Raises ValueError, one line, for what cannot be read.
    """
    entries = catalogue().entries
    kinds = {cls.kind for cls in entries.values()}
    chosen: list[str] = []
    for word in words or sorted(kinds):
        kind = next((one for one in kinds if word in (one, f"{one}s") and word not in catalogue().names), "")
        chosen += [example(cls) for cls in catalogue().of_kind(kind)] if kind else [label(entry_of(word))]
    return chosen
