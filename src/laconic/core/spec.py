"""Spec strings: "gd(ef21(topk(k=0.01) | natural), step='4x')" to an object. The way back is `str(entry)`."""

from __future__ import annotations

import ast
import dataclasses
import operator
from typing import Any

from laconic.core.entry import Entry, parameters
from laconic.core.registry import catalogue

GRAMMAR = (
    "a name, or name(value, key=value, ...), or two of these with | between them, a value being a number, quoted text,"
    " True, False, None, a tuple of these or a spec"
)


def parse(text: str) -> Entry:
    """The entry that a spec string names.

    Raises ValueError for text that is no spec, an unknown name (with the nearest one), an unknown or missing
    parameter (with those there are), and a value out of its range.

    >>> str(parse("ef21(topk(k=0.05))"))
    'ef21(topk(k=0.05))'
    """
    try:
        tree = ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        raise ValueError(f"cannot read the spec {text!r}: it must be {GRAMMAR}") from None
    try:
        value = _value(tree, text)
    except RecursionError:
        value = None
    if not isinstance(value, Entry):
        raise ValueError(f"cannot read the spec {text!r}: it must be {GRAMMAR}")
    return value


def _value(node: ast.expr, text: str) -> Any:
    if isinstance(node, ast.Name):
        return _build(node.id, [], [], text)
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
        keywords = [(keyword.arg, keyword.value) for keyword in node.keywords]
        if any(isinstance(argument, ast.Starred) for argument in node.args) or None in dict(keywords):
            raise ValueError(f"cannot read the spec {text!r}: * and ** have no meaning here")
        arguments = [_value(argument, text) for argument in node.args]
        return _build(node.func.id, arguments, [(str(key), _value(value, text)) for key, value in keywords], text)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitOr):
        return _joined(_value(node.left, text), _value(node.right, text), text)
    try:
        return ast.literal_eval(node)
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        piece = ast.get_source_segment(text.strip(), node) or text
        raise ValueError(f"cannot read {piece!r} in the spec {text!r}: it must be {GRAMMAR}") from None


def _joined(left: Any, right: Any, text: str) -> Entry:
    """`left | right`, which is what their classes say."""
    try:
        both = operator.or_(left, right) if isinstance(left, Entry) and isinstance(right, Entry) else None
    except TypeError:
        both = None
    if not isinstance(both, Entry):
        raise ValueError(f"cannot read '{left} | {right}' in the spec {text!r}: | stands between two compressors")
    return both


def _build(name: str, arguments: list[Any], keywords: list[tuple[str, Any]], text: str) -> Entry:
    cls = catalogue().find(name)
    known = [parameter.name for parameter in parameters(cls)]
    listing = f"its parameters are {', '.join(known)}" if known else "it has no parameters"
    if len(arguments) > len(known):
        count = len(arguments)
        raise ValueError(f"{name} takes at most {len(known)} values and was given {count} in {text!r}; {listing}")
    given = dict(zip(known, arguments, strict=False))
    for key, value in keywords:
        if key not in known:
            raise ValueError(f"{name}({key}=...) : {name} has no parameter {key!r}; {listing}")
        if key in given:
            raise ValueError(f"{name}({key}=...) : {key!r} is given twice in {text!r}")
        given[key] = value
    missing = [p.name for p in parameters(cls) if p.default is dataclasses.MISSING and p.name not in given]
    if missing:
        raise ValueError(f"{name} needs a value for {', '.join(missing)}, as in `{example(cls)}`")
    return cls(**given)


def example(cls: type[Entry]) -> str:
    """A short valid spec of an entry class, used in messages and documentation."""
    return getattr(cls, "example", cls.name)
