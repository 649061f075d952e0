"""What tuning tries: sets of values in a spec's braces, grids of parameters, multiples of a stepsize."""

from __future__ import annotations

import dataclasses
import itertools
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from laconic.core.entry import Entry, a, parameters
from laconic.core.mechanism import Mechanism
from laconic.core.method import Method, explicit
from laconic.core.spec import parse
from laconic.core.theory import NoTheorem, Setting
from laconic.lab.plan import descent

LARGEST = 10_000  # combinations of one method
DEFAULT = "2^-3..2^8"
STEP = "step"
_RANGE = re.compile(r"\s*2\^(-?\d+)\s*\.\.\s*2\^(-?\d+)\s*")

Grid = Mapping[str, Sequence[Any]]


@dataclass(frozen=True)
class Point:
    """One combination of parameters of a method, whose stepsize is still to be chosen.

    `other` makes the method with another value of one of the parameters, by its name; it raises ValueError where that
    is out of range.
    """

    parameters: dict[str, Any]
    method: Method
    other: Callable[[str, Any], Method]

    def allows(self, name: str, value: Any) -> bool:
        """Whether a parameter may have another value."""
        try:
            self.other(name, value)
        except ValueError:
            return False
        return True


@dataclass(frozen=True)
class Base:
    """What multiples of a stepsize multiply: `kind` is "theorem", "1/L" or "as given"; `why` no theorem."""

    kind: str
    unit: float | None  # None where the theorem says
    why: str = ""


# ---- stepsizes --------------------------------------------------------------------------------------------------


def multiples(given: str | Sequence[float] | None) -> tuple[float, ...]:
    """Sorted multiples from numbers or from text such as "2^-3..2^8" or "0.5,1,2"."""
    given = DEFAULT if given is None else given
    wrong = ValueError(f"tune(multipliers={given!r}) : give numbers > 0, or powers of two such as '2^-3..2^8'")
    if isinstance(given, str):
        ends = _RANGE.fullmatch(given)
        if ends is not None:
            low, high = int(ends[1]), int(ends[2])
            if not -1000 <= low <= high <= 1000:
                raise wrong
            return tuple(2.0**power for power in range(low, high + 1))
        try:
            given = [float(piece) for piece in given.split(",")]
        except ValueError:
            raise wrong from None
    try:
        found = sorted({float(value) for value in given})
    except (TypeError, ValueError):
        raise wrong from None
    if not found or not all(0.0 < value < float("inf") for value in found):
        raise wrong
    return tuple(found)


def wider(tried: Sequence[float], high: bool, count: int = 4) -> list[float]:
    """More multiples beyond an end, in the ratio of the last two there."""
    ordered = sorted(tried)
    pair = ordered[-2:] if high else ordered[:2]
    ratio = pair[1] / pair[0] if len(pair) == 2 else 2.0
    return [ordered[-1] * ratio ** (i + 1) if high else ordered[0] / ratio ** (i + 1) for i in range(count)]


def has_step(method: Method) -> bool:
    """Whether it has a stepsize to tune."""
    return any(parameter.name == STEP for parameter in parameters(type(method)))


def base_of(method: Method, setting: Setting) -> Base:
    """What multiples of a method's stepsize multiply. Raises ValueError where more than a stepsize is missing."""
    step = getattr(method, STEP)
    if explicit(step) is not None:
        return Base("as given", float(step))
    why = ""
    try:
        method.settled(setting)
        return Base("theorem", None)
    except NoTheorem as error:
        why = str(error)
    unit = 1.0 / float(setting.operator.L)
    _with_step(method, unit).settled(setting)  # what is still open then is said by itself
    return Base("1/L", unit, why)


def candidate(method: Method, base: Base, multiple: float) -> Method:
    """The method at a multiple of its base."""
    if base.unit is not None:
        return _with_step(method, multiple * base.unit)
    factor = multiple * (float(getattr(method, STEP)[:-1]) if isinstance(getattr(method, STEP), str) else 1.0)
    short = f"{factor:g}"
    return _with_step(method, f"{short if float(short) == factor else repr(factor)}x")


def _with_step(method: Method, step: float | str) -> Method:
    return dataclasses.replace(method, **{STEP: step})  # type: ignore[type-var]


# ---- parameters -------------------------------------------------------------------------------------------------


def points(spec: str | Entry, grid: Grid | None) -> list[Point]:
    """Every combination of the values in a spec's braces and in a grid. Raises ValueError, one line, for a bad one."""
    grid = grid or {}
    for path, values in grid.items():
        if isinstance(values, (str, Entry)) or not isinstance(values, Sequence) or not values:
            raise ValueError(f"tune(grid={{{path!r}: {values!r}}}) : give a list of values, such as [1, 5, 10]")
    pieces, sets = _sets(spec) if isinstance(spec, str) else ([], [])
    names = [*_names(pieces), *grid]
    count = math.prod(map(len, (*sets, *grid.values())))
    if count > LARGEST:
        raise ValueError(f"{spec} and its grid have {count} combinations; at most {LARGEST} are tried")

    def made(choice: Sequence[Any]) -> Method:
        texts = [str(value) for value in choice[: len(sets)]]
        whole = "".join(a + b for a, b in zip(pieces, [*texts, ""], strict=True)) if isinstance(spec, str) else spec
        method = _method(whole)
        for path, value in zip(grid, choice[len(sets) :], strict=True):
            method = put(method, path, value)
        return method

    def point(choice: Sequence[Any]) -> Point:
        named = dict(zip(names, [*map(_plain, choice[: len(sets)]), *choice[len(sets) :]], strict=True))
        return Point(named, made(choice), lambda name, value: made([*({**named, name: value}).values()]))

    return [point(choice) for choice in itertools.product(*sets, *grid.values())]


def _method(spec: str | Entry) -> Method:
    found = parse(spec) if isinstance(spec, str) else spec
    found = descent(found) if isinstance(found, Mechanism) else found
    if not isinstance(found, Method):
        kind = a(found.kind if isinstance(found, Entry) else type(found).__name__)
        raise ValueError(f"{spec} is {kind}, not a method or mechanism")
    return found


def grid_of(text: str) -> tuple[str, list[Any]]:
    """Path and values of text such as "mechanism.compressor.k={1, 5, 10}"; the braces may be left out.

    >>> grid_of("mechanism.compressor.k={1, 5, 10}")
    ('mechanism.compressor.k', [1, 5, 10])
    """
    path, equals, values = text.partition("=")
    if not equals or not path.strip() or not values.strip():
        raise ValueError(f"--grid {text} : give a path and values, such as 'mechanism.compressor.k={{1, 5, 10}}'")
    inside = values.strip().removeprefix("{").removesuffix("}")
    return path.strip(), [_plain(value) for value in _values(inside, text)]


def put(entry: Any, path: str, value: Any) -> Any:
    """An entry with the parameter at a dotted path replaced; text for an entry is parsed.

    >>> str(put(parse("gd(ef21(topk(k=1)))"), "mechanism.compressor.k", 5))
    'gd(ef21(topk(k=5)))'
    """
    name, _, rest = path.partition(".")
    known = [parameter.name for parameter in parameters(type(entry))] if isinstance(entry, Entry) else []
    if name not in known:
        there = f"it has {', '.join(known)}" if known else "it has no parameters"
        raise ValueError(f"tune(grid={{{path!r}: ...}}) : {entry} has no parameter {name!r}; {there}")
    inner = getattr(entry, name)
    if rest:
        return dataclasses.replace(entry, **{name: put(inner, rest, value)})  # type: ignore[type-var]
    if isinstance(inner, Entry) and isinstance(value, str):
        value = parse(value)
    return dataclasses.replace(entry, **{name: value})  # type: ignore[type-var]


def _sets(spec: str) -> tuple[list[str], list[list[str]]]:
    """The text around the braces of a spec, and the values in each pair of them."""
    pieces = re.split(r"\{([^{}]*)\}", spec)
    if any("{" in piece or "}" in piece for piece in pieces):
        raise ValueError(f"cannot read the braces in {spec!r}: they hold values, such as {{1, 10, 100}}, and no braces")
    return pieces[0::2], [_values(inside, spec) for inside in pieces[1::2]]


def _values(inside: str, spec: str) -> list[str]:
    """The values between two braces: commas inside parentheses and quotes belong to a value."""
    found, depth, quote, current = [], 0, "", ""
    for letter in inside:
        if quote:
            quote = "" if letter == quote else quote
        elif letter in "'\"":
            quote = letter
        else:
            depth += (letter in "([") - (letter in ")]")
        if letter == "," and depth == 0 and not quote:
            found.append(current.strip())
            current = ""
        else:
            current += letter
    found.append(current.strip())
    if not all(found):
        raise ValueError(f"cannot read the braces in {spec!r}: they hold values, such as {{1, 10, 100}}")
    return list(dict.fromkeys(found))


def _names(before: Sequence[str]) -> list[str]:
    """What the sets are called: the parameter before them, numbered where it comes twice."""
    names: list[str] = []
    for text in before[:-1]:
        found = re.search(r"(\w+)\s*=\s*$", text)
        name = found[1] if found else "choice"
        count = sum(one.split("#")[0] == name for one in names)
        names.append(f"{name}#{count + 1}" if count else name)
    return names


def _plain(value: str) -> Any:
    """A number where the text is one."""
    for kind in (int, float):
        try:
            return kind(value)
        except ValueError:
            continue
    return value
