"""Checks of what every entry keeps, whatever its kind: it is its text, and wrong values are refused in one line."""

from __future__ import annotations

import copy
import functools

from laconic.checks.findings import Findings, one_line
from laconic.checks.suite import Suite
from laconic.core.entry import Entry, parameters
from laconic.core.registry import catalogue
from laconic.core.spec import parse


def entry_checks(found: Findings, entry: Entry) -> Suite:
    """Of an entry of any kind."""
    if type(entry) in catalogue().entries.values():
        yield "the spec says what it is", functools.partial(_round_trip, found, entry)
    yield "values out of range are refused", functools.partial(_refusals, found, entry)


def _round_trip(found: Findings, entry: Entry) -> None:
    again = parse(str(entry))
    found.expect(again == entry and str(again) == str(entry), f"{entry} reads as {again}")
    found.expect(hash(copy.deepcopy(entry)) == hash(entry), "a copy is another entry")


def _refusals(found: Findings, entry: Entry) -> None:
    cls = type(entry)
    if "__dataclass_fields__" not in vars(cls):
        return
    given = {parameter.name: getattr(entry, parameter.name) for parameter in parameters(cls)}
    for parameter in parameters(cls):
        for value in () if parameter.range is None else parameter.range.examples_outside():
            try:
                cls(**{**given, parameter.name: value})
            except ValueError as error:
                found.expect("\n" not in str(error), f"{parameter.name}={value!r} is refused in more than one line")
            except Exception as error:
                found.fail(f"{parameter.name}={value!r} raises {type(error).__name__}: {one_line(error)}")
            else:
                found.fail(f"{parameter.name}={value!r} is taken; {parameter.range} is declared")
