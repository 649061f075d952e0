"""What mechanisms around a mechanism share: they need and give what the one inside does."""

from __future__ import annotations

import dataclasses
from abc import ABC
from dataclasses import dataclass

from laconic.core.estimator import Estimator
from laconic.core.mechanism import Mechanism
from laconic.core.theory import Guarantee, Setting, Snapshot


@dataclass(frozen=True)
class Wrapping(Mechanism, ABC):
    """A mechanism around another one."""

    mechanism: Mechanism

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "needs", type(self).needs | self.mechanism.needs)
        for name in ("public", "takes_step", "lazy", "instead"):
            object.__setattr__(self, name, getattr(self.mechanism, name))

    @property
    def participation(self) -> float:
        return self.mechanism.participation

    def settled(self, setting: Setting) -> Mechanism:
        return dataclasses.replace(self, mechanism=self.mechanism.settled(setting))

    def refuse(self, setting: Setting, estimator: Estimator) -> None:
        self.mechanism.refuse(setting, estimator)


def inside(promise: Guarantee) -> Guarantee:
    """A promise of the mechanism inside for one whose memory holds its as `inner`."""
    if promise.lyapunov is None:
        return promise
    of_inner = promise.lyapunov

    def lyapunov(snapshot: Snapshot):
        state = dataclasses.replace(snapshot.state, memory=snapshot.state.memory.inner)
        return of_inner(dataclasses.replace(snapshot, state=state))

    return dataclasses.replace(promise, lyapunov=lyapunov)
