"""Policies: which mechanism averages which parameter, and when."""

from __future__ import annotations

import fnmatch
import math
from dataclasses import dataclass, field

from torch import Tensor

from laconic.core.mechanism import Mechanism
from laconic.core.problem import Constant, Constants, Kind
from laconic.core.spec import parse
from laconic.core.theory import Setting

DENSE = "direct_all_reduce"  # the plain mean at full width


def mechanism_of(given: Mechanism | str, where: str) -> Mechanism:
    """A mechanism from its spec. Raises ValueError, one line, for another kind of entry."""
    if given == "dense":
        raise ValueError(f"{where}='dense') : the plain mean is called {DENSE!r}")
    chosen = parse(given) if isinstance(given, str) else given
    if not isinstance(chosen, Mechanism):
        kind = getattr(chosen, "kind", type(chosen).__name__)
        raise ValueError(f"{where}={str(given)!r}) : it is a {kind}; give a mechanism such as 'ef14(topk(k=0.01))'")
    return chosen


@dataclass(frozen=True)
class Rule:
    """A mechanism for some of the parameters: those that fit all that is given.

    Parameters
    ----------
    mechanism : or its spec; DENSE is the plain mean.
    names : a pattern of parameters' names as in a shell, "*.bias" say.
    dimensions : the most dimensions that a tensor may have.
    numbers : the most numbers that a tensor may have.

    >>> Rule(DENSE, names="head.*").fits("head.weight", (10, 512))
    True
    """

    mechanism: Mechanism | str
    names: str = "*"
    dimensions: int | None = None
    numbers: int | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "mechanism", mechanism_of(self.mechanism, "Rule(mechanism"))

    def fits(self, name: str, shape: tuple[int, ...]) -> bool:
        """Whether the rule is about a parameter."""
        return (
            fnmatch.fnmatchcase(name, self.names)
            and (self.dimensions is None or len(shape) <= self.dimensions)
            and (self.numbers is None or math.prod(shape) <= self.numbers)
        )

    def __str__(self) -> str:
        names = [] if self.names == "*" else [f"names={self.names!r}"]
        bounds = {"dimensions": self.dimensions, "numbers": self.numbers}
        given = names + [f"{name}={most}" for name, most in bounds.items() if most is not None]
        return f"{self.mechanism} for {', '.join(given) or 'all'}"


@dataclass(frozen=True)
class Plan:
    """What averages one tensor: the mechanism in use up to each step, and the last one for good."""

    stages: tuple[tuple[int, Mechanism], ...]
    mechanism: Mechanism

    def at(self, step: int) -> Mechanism:
        """The mechanism of a step."""
        return next((mechanism for end, mechanism in self.stages if step < end), self.mechanism)


@dataclass(frozen=True)
class Policy:
    """Which mechanism averages which tensor: the first rule that fits a tensor, else `mechanism`.

    Small tensors and those with one dimension (biases, normalisation) travel dense by default: they are a thousandth
    of most networks, and compressing them saves nothing that can be measured.

    A warm-up is a sequence of stages (steps, mechanism) before the mechanism proper, such as
    ``((100, DENSE), (100, "ef14(topk(k=0.1))"))``. Of two neighbours of one kind, as in a schedule of k, the second
    takes over the memory of the first. Else it starts with a memory of its own, and the first must not have any,
    because what it owes would be lost.

    Parameters
    ----------
    mechanism : or its spec.
    rules : tried in this order.
    warm_up : for the tensors that no rule fits.

    Raises
    ------
    ValueError : what is not a mechanism; a stage of no steps; a stage whose memory nobody would take over.

    >>> policy = Policy("ef14(topk(k=0.01) | natural)", warm_up=((100, DENSE),))
    >>> str(policy.plan("weight", (512, 512), workers=4).at(0)), str(policy.plan("bias", (512,), workers=4).mechanism)
    ('direct_all_reduce', 'direct_all_reduce')
    """

    mechanism: Mechanism | str
    rules: tuple[Rule, ...] = field(default_factory=lambda: (Rule(DENSE, dimensions=1), Rule(DENSE, numbers=1024)))
    warm_up: tuple[tuple[int, Mechanism | str], ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "mechanism", mechanism_of(self.mechanism, "Policy(mechanism"))
        stages = []
        for steps, given in self.warm_up:
            if not isinstance(steps, int) or steps < 1:
                raise ValueError(f"Policy(warm_up=(({steps}, ...),)) : a stage must last an integer >= 1 of steps")
            stages.append((steps, mechanism_of(given, "Policy(warm_up")))
        object.__setattr__(self, "warm_up", tuple(stages))
        object.__setattr__(self, "rules", tuple(self.rules))

    @classmethod
    def of(cls, given: Policy | Mechanism | str) -> Policy:
        """A policy, or the default one around a mechanism."""
        return given if isinstance(given, Policy) else cls(given)

    @property
    def mechanisms(self) -> tuple[Mechanism, ...]:
        """All that can come into use."""
        given = (self.mechanism, *(rule.mechanism for rule in self.rules), *(stage for _, stage in self.warm_up))
        return tuple(mechanism for mechanism in given if isinstance(mechanism, Mechanism))

    def rule_of(self, name: str, shape: tuple[int, ...]) -> Rule | None:
        """The rule for a tensor; None where no rule fits it."""
        return next((rule for rule in self.rules if rule.fits(name, shape)), None)

    def plan(self, name: str, shape: tuple[int, ...], workers: int) -> Plan:
        """What averages a tensor over so many workers, with open parameters settled for its size."""
        setting = setting_of(workers, shape)
        rule = self.rule_of(name, shape)
        if rule is not None:
            return Plan((), _settled(rule.mechanism, setting))
        stages, end = [], 0
        for steps, mechanism in self.warm_up:
            end += steps
            stages.append((end, _settled(mechanism, setting)))
        return Plan(tuple(stages), _settled(self.mechanism, setting))

    def __str__(self) -> str:
        rules = "; ".join(map(str, self.rules))
        stages = "; ".join(f"{mechanism} for {steps} steps" for steps, mechanism in self.warm_up)
        return f"{self.mechanism}" + (f"; {rules}" if rules else "") + (f"; first {stages}" if stages else "")


def _settled(mechanism: Mechanism | str, setting: Setting) -> Mechanism:
    assert isinstance(mechanism, Mechanism)
    return mechanism.settled(setting)


def setting_of(n: int, shape: tuple[int, ...]) -> Setting:
    """What is known of one tensor: its size. Constants of the loss are not."""
    unknown = Constant(math.nan, Kind.ESTIMATE, "unknown in training")
    constants = Constants(L=unknown, L_workers=(), L_max=unknown, L_tilde=unknown, L_plus=unknown, L_pm=unknown)
    return Setting(constants, n, shape, convex=False)


def dense_share(policy: Policy, named: dict[str, Tensor]) -> str | None:
    """One line about what a policy sends dense; None where nothing is."""
    found = {name: rule for name, tensor in named.items() if (rule := policy.rule_of(name, tuple(tensor.shape)))}
    dense = [named[name].numel() for name, rule in found.items() if str(rule.mechanism) == DENSE]
    if not dense:
        return None
    total = sum(tensor.numel() for tensor in named.values())
    default = policy.rules == Policy(policy.mechanism).rules
    why = "that are small or have one dimension (Policy(rules=...) says otherwise)" if default else "by the rules given"
    others = f"; the others by {policy.mechanism}" if len(dense) < len(named) else ""
    return (
        f"{sum(dense):,} of {total:,} numbers ({float(f'{100 * sum(dense) / total:.2g}'):g}%) travel dense, in "
        f"{len(dense)} of {len(named)} tensors {why}{others}"
    )
