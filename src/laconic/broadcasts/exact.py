"""The model as it is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from laconic.core.broadcast import Broadcast
from laconic.core.estimator import Estimator
from laconic.core.link import Cohort, Link
from laconic.core.mechanism import Mechanism
from laconic.core.theory import Guarantee, Setting


@dataclass(frozen=True)
class Exact(Broadcast):
    """The whole model, at its full width.

    Guarantee: that of the mechanism.

    >>> str(Exact())
    'exact'
    """

    name = "exact"
    example = "exact"
    partial = True

    def init(self, x: Tensor, link: Link) -> Any:
        return None

    async def send(self, x: Tensor, memory: Any, link: Link, to: Cohort | None = None) -> tuple[Tensor, Tensor, Any]:
        return x, await link.broadcast(x, to=to), None

    def guarantee(self, setting: Setting, mechanism: Mechanism, estimator: Estimator, step: float | None) -> Guarantee:
        return mechanism.guarantee(setting, estimator, step)
