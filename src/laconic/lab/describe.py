"""What `laconic list` and `laconic show` say, as plain values."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Sequence
from typing import Any

from laconic.core.compressor import AB, Claim, Compressor, Contractive, Unbiased
from laconic.core.entry import Entry, Parameter, a, parameters
from laconic.core.mechanism import Mechanism
from laconic.core.method import Method
from laconic.core.problem import Block, Problem
from laconic.core.registry import catalogue
from laconic.core.spec import example, parse
from laconic.core.theory import Guarantee, NoTheorem, Setting
from laconic.lab.plan import descent
from laconic.lab.settle import guarantee_record

KINDS = (
    "problem", "regulariser", "method", "mechanism", "broadcast", "schedule", "compressor", "estimator", "domain",
    "delay", "reference", "basis", "recipe",
)  # fmt: skip
REFERENCE = "logistic(l2=1e-3, workers=10)"  # the problem for which `show` works a guarantee out
SHAPE = (1000, 10)  # d and n for which `show` works a claim out


def listing(kind: str | None = None) -> dict[str, Any]:
    """Every entry (of a kind) by name, with its first line; and the modules that cannot be used, with the reason."""
    kinds = KINDS if kind is None else tuple(one for one in KINDS if kind in (one, f"{one}s"))
    if not kinds:
        raise ValueError(f"there is no kind called {kind!r}; there are {', '.join(KINDS)}")
    entries = [_listed(entry) for one in kinds for entry in catalogue().of_kind(one)]
    broken = [{"module": one.module, "reason": _one_line(one.reason)} for one in catalogue().broken]
    return {"entries": entries, "broken": broken}


def _listed(entry: type[Entry]) -> dict[str, Any]:
    found = {
        "kind": entry.kind,
        "name": entry.name,
        "aliases": list(entry.aliases),
        "summary": _summary(entry),
        "example": example(entry),
        "parameters": [_parameter(one) for one in parameters(entry)],
        "source": None if entry.source is None else str(entry.source),
    }
    if issubclass(entry, Compressor):
        found |= _of_compressor(parse(example(entry)))
    return found


def _of_compressor(instance: Any) -> dict[str, Any]:
    """What a compressor claims, at a d and n, and its wire."""
    d, n = SHAPE
    return {"claim": {"d": d, "n": n, "promise": claim(instance.claim(d, n))}, "layout": instance.layout}


def _summary(entry: type[Entry]) -> str:
    text = inspect.getdoc(entry) or ""
    return " ".join(text.split("\n\n")[0].split())


def _one_line(text: str) -> str:
    return " ".join(text.split())


def showing(name: str) -> dict[str, Any]:
    """Everything about one entry, given by its name or by a whole spec."""
    spec = parse(name) if "(" in name or "|" in name else None
    entry = type(spec) if spec is not None else catalogue().find(name)
    instance = spec if spec is not None else parse(example(entry))
    found: dict[str, Any] = {
        "kind": entry.kind,
        "name": entry.name,
        "aliases": list(entry.aliases),
        "definition": inspect.getdoc(entry) or "",
        "parameters": [_parameter(one) for one in parameters(entry)],
        "example": str(instance),
        "source": None if entry.source is None else str(entry.source),
        "bibtex": None if entry.source is None else entry.source.bibtex(),
        "module": entry.__module__,
    }
    if isinstance(instance, Compressor):
        found |= _of_compressor(instance)
    if isinstance(instance, (Mechanism, Method)):
        found["guarantee"] = _guarantee(instance)
    if isinstance(instance, Problem):
        found["workers"] = instance.n
        found["constants"] = _constants(instance)
    return found


def _constants(problem: Problem) -> list[dict[str, Any]] | str:
    """Every known constant with its kind and how it was found; why not, where the data are not there."""
    try:
        known = problem.constants().named()
    except (ValueError, OSError) as error:
        return _one_line(str(error))
    return [{"name": name, "value": c.value, "kind": c.kind.value, "how": c.how} for name, c in known.items()]


def _parameter(one: Parameter) -> dict[str, Any]:
    required = one.default is dataclasses.MISSING
    kinds = [part.kind for part in _parts(one.type) if isinstance(part, type) and issubclass(part, Entry)]
    allowed = str(one.range) if one.range is not None else a(kinds[0]) if kinds else _type(one.type)
    default = None if required else str(one.default) if isinstance(one.default, Entry) else repr(one.default)
    return {"name": one.name, "allowed": allowed, "default": default}


def _parts(hint: Any) -> Sequence[Any]:
    return getattr(hint, "__args__", None) or (hint,)


def _type(hint: Any) -> str:
    return hint.__name__ if isinstance(hint, type) else str(hint)


def claim(promise: Claim | None) -> str:
    """A compressor's claim in words."""
    if isinstance(promise, Unbiased):
        return f"unbiased, E‖Q(x) − x‖² ≤ ω‖x‖² with ω = {promise.omega:g}"
    if isinstance(promise, Contractive):
        return f"contractive, E‖C(x) − x‖² ≤ (1 − α)‖x‖² with α = {promise.alpha:g}"
    if isinstance(promise, AB):
        return f"unbiased and drawn jointly, A = {promise.A:g}, B = {promise.B:g}; each alone has ω = {promise.omega:g}"
    return "nothing is claimed"


def _guarantee(instance: Mechanism | Method) -> dict[str, Any]:
    """The guarantee of gradient descent with a mechanism, or of a method, worked out on the reference problem."""
    problem = parse(REFERENCE)
    assert isinstance(problem, Problem)
    method = descent(instance) if isinstance(instance, Mechanism) else instance
    assert isinstance(method, Method)
    setting = Setting.of(problem, problem.oracles(Block.whole(problem.n)))
    try:
        settled = method.settled(setting)
        promise: Guarantee = settled.guarantee(setting)
    except NoTheorem as error:
        return {"problem": REFERENCE, "settled": None, "none": str(error)}
    return {"problem": REFERENCE, "settled": str(settled), **guarantee_record(promise)}
