"""What every entry of the catalogue is: a frozen dataclass with declared ranges, a source and a spec string."""

from __future__ import annotations

import dataclasses
import functools
import math
import sys
import types
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Union, get_args, get_origin, get_type_hints


class Range(ABC):
    """The values a parameter may take. `Annotated[int, Count(1)]` on a field declares one; `str` says which."""

    @abstractmethod
    def holds(self, value: Any) -> bool:
        """Whether the parameter may take the value."""

    @abstractmethod
    def examples_outside(self) -> tuple[Any, ...]:
        """Values that must be refused; the contract tests try each of them."""


def _is_integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    """Whether a value is a finite number that a float can hold."""
    return (_is_integer(value) or isinstance(value, float)) and abs(value) <= sys.float_info.max


@dataclass(frozen=True)
class Amount(Range):
    """How many of d coordinates: an integer is a count, a float is a fraction (1 is one, 1.0 is all)."""

    def holds(self, value: Any) -> bool:
        return (_is_integer(value) and value >= 1) or (isinstance(value, float) and 0.0 < value <= 1.0)

    def examples_outside(self) -> tuple[Any, ...]:
        return (0, -3, 0.0, 1.5, -0.1, math.nan, math.inf, "many", True)

    def __str__(self) -> str:
        return "a fraction in (0, 1] or a count >= 1"


def amount(k: int | float, d: int) -> int:
    """The count that `k` (see :class:`Amount`) means among `d` coordinates, between 1 and d (0 if d is 0)."""
    count = k if isinstance(k, int) else math.ceil(k * d - 1e-9)
    return min(max(1, count), d)


@dataclass(frozen=True)
class Count(Range):
    """An integer of at least `least`."""

    least: int = 1

    def holds(self, value: Any) -> bool:
        return _is_integer(value) and value >= self.least

    def examples_outside(self) -> tuple[Any, ...]:
        return (self.least - 1, self.least + 0.5, "many")

    def __str__(self) -> str:
        return f"an integer >= {self.least}"


@dataclass(frozen=True)
class Interval(Range):
    """A real number between two ends; `open` names the ends left out ("", "low", "high" or "both")."""

    low: float = -math.inf
    high: float = math.inf
    open: str = ""

    def holds(self, value: Any) -> bool:
        if not _is_number(value):
            return False
        above = value > self.low if self.open in ("low", "both") else value >= self.low
        below = value < self.high if self.open in ("high", "both") else value <= self.high
        return above and below

    def examples_outside(self) -> tuple[Any, ...]:
        outside: list[Any] = [math.nan, "much"]
        if math.isfinite(self.low):
            outside += [self.low - 1.0] + ([self.low] if self.open in ("low", "both") else [])
        if math.isfinite(self.high):
            outside += [self.high + 1.0] + ([self.high] if self.open in ("high", "both") else [])
        return tuple(outside)

    def __str__(self) -> str:
        if self.high == math.inf:
            return f"a number {'>' if self.open in ('low', 'both') else '>='} {self.low:g}"
        left = "(" if self.open in ("low", "both") else "["
        right = ")" if self.open in ("high", "both") else "]"
        return f"a number in {left}{self.low:g}, {self.high:g}{right}"


@dataclass(frozen=True)
class OneOf(Range):
    """One of a few words."""

    words: tuple[str, ...]

    def holds(self, value: Any) -> bool:
        return value in self.words

    def examples_outside(self) -> tuple[Any, ...]:
        return ("no such word", 3)

    def __str__(self) -> str:
        return "one of " + ", ".join(repr(word) for word in self.words)


@dataclass(frozen=True)
class Step(Range):
    """A stepsize: a positive number, "4x" (four times the theorem's), or None (the theorem's)."""

    def holds(self, value: Any) -> bool:
        if isinstance(value, str):
            try:
                return value.endswith("x") and 0.0 < float(value[:-1]) < math.inf
            except ValueError:
                return False
        return _is_number(value) and value > 0

    def examples_outside(self) -> tuple[Any, ...]:
        return (0.0, -1.0, math.nan, math.inf, "fast", "-2x", "x")

    def __str__(self) -> str:
        return "a number > 0, a multiple of the theorem's step such as \"4x\", or None for the theorem's"


Stepsize = Annotated[float | str | None, Step()]


@dataclass(frozen=True)
class Source:
    """Where a definition or theorem comes from."""

    authors: str
    year: int
    title: str
    arxiv: str = ""
    where: str = ""

    def __str__(self) -> str:
        tail = f", arXiv:{self.arxiv}" if self.arxiv else ""
        place = f", {self.where}" if self.where else ""
        return f"{self.authors} ({self.year}). {self.title}{tail}{place}"

    def bibtex(self) -> str:
        """The source as a BibTeX entry."""
        first = self.authors.split(",")[0].split(" and ")[0].split()[-1].lower()
        word = "".join(c for c in self.title.split()[0].lower() if c.isalnum())
        authors = self.authors.replace(", ", " and ")
        lines = [f"@article{{{first}{self.year}{word},", f"  author = {{{authors}}},", f"  title = {{{self.title}}},"]
        if self.arxiv:
            lines.append(f"  journal = {{arXiv:{self.arxiv}}},")
        return "\n".join([*lines, f"  year = {{{self.year}}},", "}"])


class Entry:
    """An entry of the catalogue. Subclasses are frozen dataclasses whose fields are their parameters.

    Attributes
    ----------
    name, aliases : how spec strings call it.
    source : the paper that defines it.
    """

    kind: ClassVar[str]
    name: ClassVar[str]
    aliases: ClassVar[tuple[str, ...]] = ()
    source: ClassVar[Source | None] = None

    def __post_init__(self) -> None:
        for parameter in parameters(type(self)):
            parameter.check(type(self).__name__, getattr(self, parameter.name))

    def __str__(self) -> str:
        return spec_of(self)


@dataclass(frozen=True)
class Parameter:
    """One field of an entry: its name, the type and range declared for it, and its default."""

    name: str
    type: Any
    range: Range | None
    default: Any

    def check(self, owner: str, value: Any) -> None:
        """Raises ValueError, in the call syntax of `owner`, for a value that the parameter may not take."""
        if value is None and type(None) in _members(self.type):
            return
        if self.range is not None:
            if not self.range.holds(value):
                raise ValueError(f"{owner}({self.name}={_show(value)}) : {self.name} must be {self.range}")
        elif not _matches(self.type, value):
            raise ValueError(f"{owner}({self.name}={_show(value)}) : {self.name} must be {_type_name(self.type)}")


def _show(value: Any) -> str:
    return str(value) if isinstance(value, Entry) else repr(value)


def _members(hint: Any) -> tuple[Any, ...]:
    return get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)


def _matches(hint: Any, value: Any) -> bool:
    for member in _members(hint):
        base = get_origin(member) or member
        if base is Any or not isinstance(base, type) or (base is float and _is_number(value)):
            return True
        if isinstance(value, base) and (base is bool or not isinstance(value, bool)):
            return True
    return False


def a(noun: str) -> str:
    """The noun with its article.

    >>> a("estimator")
    'an estimator'
    """
    return f"an {noun}" if noun[0] in "aeio" else f"a {noun}"


def _type_name(hint: Any) -> str:
    words = {"NoneType": "None", "str": "text", "bool": "True or False"}
    classes = [member for member in _members(hint) if isinstance(member, type)]
    names = [a(c.kind) if issubclass(c, Entry) else words.get(c.__name__, c.__name__) for c in classes]
    return " or ".join(names)


@functools.cache
def parameters(cls: type) -> tuple[Parameter, ...]:
    """The declared parameters of an entry class, in order."""
    hints = get_type_hints(cls, include_extras=True)
    found = []
    for field in dataclasses.fields(cls):
        if not field.init:
            continue
        hint, declared = hints[field.name], None
        if get_origin(hint) is Annotated:
            declared = next((extra for extra in hint.__metadata__ if isinstance(extra, Range)), None)
            hint = get_args(hint)[0]
        default = field.default
        if default is dataclasses.MISSING and field.default_factory is not dataclasses.MISSING:
            default = field.default_factory()
        found.append(Parameter(field.name, hint, declared, default))
    return tuple(found)


def spec_of(entry: Entry) -> str:
    """The spec string of an entry, defaults left out: `name(entry, key=value)`. It parses back to an equal entry."""
    parts, keyword = [], False
    for parameter in parameters(type(entry)):
        value = getattr(entry, parameter.name)
        if parameter.default is not dataclasses.MISSING and _same(value, parameter.default):
            keyword = True
            continue
        text = str(value) if isinstance(value, Entry) else repr(value)
        nested = isinstance(value, Entry) and not keyword
        parts.append(text if nested else f"{parameter.name}={text}")
        keyword = keyword or not nested
    return f"{entry.name}({', '.join(parts)})" if parts else entry.name


def _same(a: Any, b: Any) -> bool:
    return type(a) is type(b) and a == b
