"""Before a run: every method gets the stepsize its theorem allows, and says where it comes from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from laconic.core.entry import parameters
from laconic.core.method import Method
from laconic.core.theory import Guarantee, NoTheorem, Setting
from laconic.lab.plan import Named
from laconic.lab.trace import finite

THEOREM, EXPLICIT, NO_THEOREM = "theorem", "explicit", "no theorem"


@dataclass(frozen=True)
class Entrant:
    """A method ready to run.

    `step_kind` is "theorem", a multiple such as "4x theorem", "explicit" (a number that a theorem covers) or
    "no theorem" (a number that none covers; `why` says why). `suspicion` is what the method suspects should it diverge.
    """

    label: str
    given: str
    method: Method
    guarantee: Guarantee | None
    step: float | None
    step_kind: str
    why: str = ""
    suspicion: str = ""

    def record(self) -> dict[str, Any]:
        """Plain values for run.json."""
        return {
            "method": self.label,
            "spec": self.given,
            "settled": str(self.method),
            "step": self.step,
            "step_kind": self.step_kind,
            "why": self.why or None,
            "guarantee": None if self.guarantee is None else guarantee_record(self.guarantee),
        }


def guarantee_record(guarantee: Guarantee) -> dict[str, Any]:
    """Plain values of a guarantee: what it says, what it assumes, on whose word."""
    return {
        "largest_step": finite(guarantee.step),
        "rate": guarantee.rate,
        "plateau": finite(guarantee.plateau),
        "gap_factor": guarantee.gap_factor,
        "source": str(guarantee.source),
        "assumes": list(guarantee.assumes),
        "leans_on": list(guarantee.leans_on),
        "tight": guarantee.tight,
        "sure": guarantee.sure,
    }


def settle(named: Named, setting: Setting) -> Entrant:
    """The method with every open parameter fixed. Raises NoTheorem where one is open and no theorem covers it."""
    if setting.composite and not named.method.proximal:
        raise ValueError(f"{named.label}: it has no proximal step, and the problem has a regulariser; use gd")
    try:
        method = named.method.settled(setting)
    except NoTheorem as error:
        raise NoTheorem(f"{named.label}: {error}") from None
    guarantee, why = None, ""
    try:
        guarantee = method.guarantee(setting)
    except NoTheorem as error:
        why = str(error)
    suspicion = method.suspect(setting)
    asked, step = _step(named.method), _step(method)
    if isinstance(asked, str):
        kind = f"{asked} {THEOREM}"
    elif guarantee is None or suspicion:
        kind = NO_THEOREM
    else:
        kind = THEOREM if asked is None else EXPLICIT
    if step is None and guarantee is not None:
        step = finite(guarantee.step)
    number = None if step is None else float(step)
    return Entrant(named.label, named.given, method, guarantee, number, kind, why or suspicion, suspicion)


def _step(method: Method) -> Any:
    """The value of its parameter `step`; None for a method that has none, whose theorem has no stepsize to choose."""
    return next((getattr(method, p.name) for p in parameters(type(method)) if p.name == "step"), None)
