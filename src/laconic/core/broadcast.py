"""Broadcasts: how the server's model reaches the workers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar

from torch import Tensor

from laconic.core.entry import Entry
from laconic.core.estimator import Estimator
from laconic.core.link import Cohort, Link
from laconic.core.mechanism import Mechanism
from laconic.core.theory import Guarantee, NoTheorem, Setting


class Broadcast(Entry, ABC):
    """Sends the server's new model down, round after round.

    `send` gives three things: the model that the server goes on from (the one it was given, but for methods that step
    from what the workers hold), the model that the workers hold, and the memory. Memory is written only after the last
    await. `partial`: it may go to some of the workers, who need nothing of earlier rounds.
    """

    kind: ClassVar[str] = "broadcast"
    partial: ClassVar[bool] = False

    @abstractmethod
    def init(self, x: Tensor, link: Link) -> Any:
        """The memory at x^0 (*shape), which everyone knows; nothing is said."""

    @abstractmethod
    async def send(self, x: Tensor, memory: Any, link: Link, to: Cohort | None = None) -> tuple[Tensor, Tensor, Any]:
        """Server's model, workers' model (both *shape) and memory, from the server's new x (*shape)."""

    def settled(self, setting: Setting) -> Broadcast:
        """The same broadcast with every open parameter (None) replaced by its theorem's number."""
        return self

    def guarantee(self, setting: Setting, mechanism: Mechanism, estimator: Estimator, step: float | None) -> Guarantee:
        """What gradient descent over a mechanism promises with it. Raises NoTheorem where nothing, saying why."""
        raise NoTheorem(f"no theorem is known for {mechanism} with {self} on the way down; give an explicit step")
