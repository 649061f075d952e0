"""Methods: a step rule, written against a problem's oracles and a link."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar

from torch import Tensor

from laconic.core.entry import Entry, Source
from laconic.core.link import Link
from laconic.core.problem import Oracles
from laconic.core.theory import Guarantee, Setting


class Method(Entry, ABC):
    """An algorithm. `settled` fixes its open parameters from theory; `init` and `iterate` are its text.

    `proximal`: it minimises f + r where the problem has a regulariser r; others must not be run on such a problem.
    """

    kind: ClassVar[str] = "method"
    source: ClassVar[Source]
    proximal: ClassVar[bool] = False

    @abstractmethod
    def settled(self, setting: Setting) -> Method:
        """The same method with every open parameter (None, "4x") replaced by a number.

        Raises NoTheorem where a parameter is open and no theorem covers the combination.
        """

    @abstractmethod
    def guarantee(self, setting: Setting) -> Guarantee:
        """What theory promises of a settled method. Raises NoTheorem where it promises nothing, saying why."""

    def suspect(self, setting: Setting) -> str:
        """What in a settled method's numbers is the likely cause should it diverge, and what to give; or nothing."""
        return ""

    @abstractmethod
    async def init(self, oracles: Oracles, link: Link) -> Any:
        """The first state; what is said on the way is counted."""

    @abstractmethod
    async def iterate(self, state: Any, oracles: Oracles, link: Link) -> Any:
        """The next state."""

    @abstractmethod
    def point(self, state: Any) -> Tensor:
        """The server's model x, (*shape)."""

    def virtual_seconds(self, state: Any) -> float | None:
        """The virtual time, of a method that keeps one (an asynchronous one); None of all others."""
        return None


def resolve(step: float | str | None, largest: Callable[[], float]) -> float:
    """The number that a stepsize means where a theorem allows `largest()`: None is that, "4x" four times it.

    A number is taken as it is and asks no theorem.
    """
    if step is None:
        return largest()
    return float(step[:-1]) * largest() if isinstance(step, str) else float(step)


def explicit(step: float | str | None) -> float | None:
    """The stepsize where it is a number, None where it is left to a theorem (None or "4x")."""
    return float(step) if isinstance(step, (int, float)) else None


def number(step: float | str | None) -> float:
    """The stepsize of a settled method. Raises ValueError where it is still open.

    In a sweep it is a number for each of its runs (`laconic.runtime.stack`), and handed on as it is.
    """
    if step is not None and not isinstance(step, str):
        return float(step) if isinstance(step, int) else step
    raise ValueError(f"step={step!r} is not a number yet; run the method that settled(setting) gives")
