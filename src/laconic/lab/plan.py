"""What a run is asked to do: problem, methods, limits and everything else, read from text and checked."""

from __future__ import annotations

import difflib
import math
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from laconic.core.delay import Delays
from laconic.core.entry import Entry, a
from laconic.core.mechanism import Mechanism
from laconic.core.method import Method
from laconic.core.problem import Problem
from laconic.core.registry import catalogue
from laconic.core.spec import parse
from laconic.runtime.network import Network

DEFAULT_ROUNDS = 1000  # where no limit is given
TOPOLOGIES = ("replicated", "star")
WIRES = ("counted", "encoded")

# the options of `laconic run`, which are also the keys of its TOML file
KEYS = (
    "problem", "method", "rounds", "iterations", "until", "budget", "every", "seed", "seeds", "network", "topology",
    "wire", "delays", "out", "resume", "data_dir",
)  # fmt: skip


@dataclass(frozen=True)
class Named:
    """A method with the label it has in tables and figures, and its spec as it was given."""

    label: str
    given: str
    method: Method


@dataclass(frozen=True)
class Limits:
    """When a curve ends: rounds, iterations, target gap, uplink bytes per worker; whichever comes first."""

    rounds: int | None = None
    iterations: int | None = None
    until: float | None = None
    budget: float | None = None

    @staticmethod
    def make(rounds: int | None, iterations: int | None, until: float | None, budget: float | None) -> Limits:
        """Checked limits; a run for which nothing is given ends after 1000 rounds."""
        for name, value in (("rounds", rounds), ("iterations", iterations)):
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 0):
                raise ValueError(f"run({name}={value!r}) : {name} must be an integer >= 0")
        for name, value in (("until", until), ("budget", budget)):
            if value is not None and not (isinstance(value, (int, float)) and math.isfinite(value) and value > 0):
                raise ValueError(f"run({name}={value!r}) : {name} must be a number > 0")
        if rounds is None and iterations is None and budget is None:
            rounds = DEFAULT_ROUNDS
        return Limits(rounds, iterations, until, budget)


@dataclass(frozen=True)
class Plan:
    """Everything that defines a run. Two runs with equal plans and data leave the same bits."""

    problem: Problem
    methods: tuple[Named, ...]
    limits: Limits
    every: int = 1
    seeds: tuple[int, ...] = (0,)
    networks: tuple[Network, ...] = ()
    topology: str = "replicated"
    wire: str = "counted"
    delays: Delays | None = None
    data_dir: Path | None = None

    def identity(self) -> dict[str, Any]:
        """Plain values for run.json; a run is resumed only by an equal one, on any number of processes."""
        return {
            "problem": str(self.problem),
            "methods": [{"label": named.label, "spec": named.given} for named in self.methods],
            "limits": vars(self.limits),
            "every": self.every,
            "seeds": list(self.seeds),
            "networks": [network.record() for network in self.networks],
            "topology": self.topology,
            "wire": self.wire,
            **({} if self.delays is None else {"delays": str(self.delays)}),
        }


def plan(
    problem: str | Problem,
    methods: Any,
    *,
    limits: Limits,
    every: int = 1,
    seeds: int | Sequence[int] = (0,),
    network: str | Network | Sequence[str | Network] = (),
    topology: str = "replicated",
    wire: str = "counted",
    delays: str | Delays | None = None,
    data_dir: str | Path | None = None,
) -> Plan:
    """A checked plan. Raises ValueError for anything that is out of its range."""
    if isinstance(every, bool) or not isinstance(every, int) or every < 1:
        raise ValueError(f"run(every={every!r}) : every must be an integer >= 1, in iterations")
    if topology not in TOPOLOGIES:
        raise ValueError(f"run(topology={topology!r}) : topology must be one of {', '.join(map(repr, TOPOLOGIES))}")
    if wire not in WIRES:
        raise ValueError(f"run(wire={wire!r}) : wire must be one of {', '.join(map(repr, WIRES))}")
    texts = [network] if isinstance(network, (str, Network)) else list(network)
    networks = tuple(Network.parse(text) for text in texts)
    names = [one.name for one in networks]
    if len(set(names)) < len(names):
        raise ValueError(f"run(network=...) : the same network is given twice: {names}")
    return Plan(
        problem=_problem(problem),
        methods=_methods(methods),
        limits=limits,
        every=every,
        seeds=_seeds(seeds),
        networks=networks,
        topology=topology,
        wire=wire,
        delays=None if delays is None else _delays(delays),
        data_dir=None if data_dir is None else Path(data_dir),
    )


def _problem(given: str | Problem) -> Problem:
    found = parse(given) if isinstance(given, str) else given
    if not isinstance(found, Problem):
        raise ValueError(f"{given} is {_kind(found)}, not a problem; `laconic list problem` shows them")
    return found


def _delays(given: str | Delays) -> Delays:
    found = parse(given) if isinstance(given, str) else given
    if not isinstance(found, Delays):
        raise ValueError(f"{given} is {_kind(found)}, no model of delays; `laconic list delay` shows them")
    return found


def _kind(found: Any) -> str:
    return a(found.kind if isinstance(found, Entry) else type(found).__name__)


def _methods(given: Any) -> tuple[Named, ...]:
    if isinstance(given, (str, Entry)):
        given = [given]
    pairs = (
        [(label, spec) for label, spec in given.items()]
        if isinstance(given, Mapping)
        else [_pair(one) for one in given]
    )
    named = tuple(_named(label, spec) for label, spec in pairs)
    if not named:
        raise ValueError("run(methods=[]) : give at least one method, such as 'gd' or 'ef21(topk(k=0.05))'")
    labels = [one.label for one in named]
    twice = next((label for label in labels if labels.count(label) > 1), None)
    if twice is not None:
        raise ValueError(f"the method {twice!r} is given twice; give one of them another label")
    return named


def _pair(one: Any) -> tuple[str | None, Any]:
    if isinstance(one, Mapping):
        unknown = sorted(set(one) - {"spec", "label"})
        if unknown or "spec" not in one:
            raise ValueError(f"a method is a spec, or has the keys spec and label, not {sorted(one)}")
        return one.get("label"), one["spec"]
    return (one[0], one[1]) if isinstance(one, tuple) and len(one) == 2 else (None, one)


def descent(mechanism: Mechanism) -> Method:
    """Gradient descent with a mechanism."""
    gd: Any = catalogue().find("gd")
    return gd(mechanism)


def _named(label: str | None, spec: Any) -> Named:
    found = parse(spec) if isinstance(spec, str) else spec
    given = spec if isinstance(spec, str) else str(spec)
    if isinstance(found, Mechanism):
        found = descent(found)
    if not isinstance(found, Method):
        hint = f"; as in gd(direct({spec}))" if isinstance(found, Entry) and found.kind == "compressor" else ""
        raise ValueError(f"{spec} is {_kind(found)}, not a method or mechanism{hint}")
    return Named(str(label) if label else given.strip(), given, found)


def _seeds(given: int | Sequence[int]) -> tuple[int, ...]:
    wrong = ValueError(
        f"run(seeds={given!r}) : seeds must be a list of different integers >= 0, or how many (0, 1, ...)"
    )
    if isinstance(given, int) and not isinstance(given, bool):
        if given < 1:
            raise wrong
        return tuple(range(given))
    if isinstance(given, (str, bool)) or not given:
        raise wrong
    seeds = tuple(given)
    if any(isinstance(s, bool) or not isinstance(s, int) or s < 0 for s in seeds) or len(set(seeds)) < len(seeds):
        raise wrong
    return seeds


def read_file(path: Path) -> dict[str, Any]:
    """The options in a TOML file, by the names of `laconic run`'s options. Raises ValueError for an unknown one."""
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"cannot read {str(path)!r} ({error.strerror}); give a TOML file of run options") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not a TOML file: {error}") from None
    options = {}
    for key, value in document.items():
        name = {"methods": "method", "networks": "network"}.get(key, key.replace("-", "_"))
        if name not in KEYS:
            near = difflib.get_close_matches(name, KEYS, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(KEYS)}"
            raise ValueError(f"{path}: there is no option {key!r}; {hint}")
        options[name] = value
    return options
