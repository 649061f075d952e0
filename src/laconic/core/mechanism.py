"""Mechanisms: how n workers' vectors become one estimate of their mean. Error feedback lives here."""

from __future__ import annotations

import enum
from abc import ABC, abstractmethod
from typing import Any, ClassVar

from torch import Tensor

from laconic.core.compressor import AB, Compressor, as_contractive, as_joint
from laconic.core.entry import Entry, Source
from laconic.core.estimator import Estimator, Probe
from laconic.core.link import Link
from laconic.core.theory import Guarantee, NoTheorem, Setting


class Need(enum.Enum):
    """What a mechanism asks of whoever drives it."""

    FULL_GRADIENTS = "full gradients"
    PROBE = "a probe (gradients at other points on the same data)"
    UNBIASED = "an unbiased compressor"
    CONSTANT_STEP = "a constant stepsize (it owes the server vectors that are not multiplied by the step yet)"
    COHORTS = "rounds in which some workers take no part"


class Mechanism(Entry, ABC):
    """Turns one vector per worker into one estimate, round after round.

    `exchange` returns the estimate, borrowed until the next exchange, and the memory. It writes to memory only after
    its last await, so that a failed collective changes nothing. It may overwrite v, and must not keep it: v is the
    caller's to reuse. The estimate is the server's, unless the mechanism is
    `public`: then every party can compute it, and no model need be broadcast. `takes_step`: the vectors handed in are
    already multiplied by the stepsize, and the estimate is subtracted from x as it is. `lazy`: a worker who is silent
    for a round leaves estimate and memory valid, so that some of the workers may run `exchange` without the others.
    `proximal`: `guarantee` holds for f + r too, with proximal steps and the constants of f.
    """

    kind: ClassVar[str] = "mechanism"
    source: ClassVar[Source]
    needs: ClassVar[frozenset[Need]] = frozenset()
    public: ClassVar[bool] = False
    takes_step: ClassVar[bool] = False
    lazy: ClassVar[bool] = False
    proximal: ClassVar[bool] = False
    instead: ClassVar[str] = "use another mechanism"  # what to do where a need is not met
    caution: ClassVar[str] = ""  # what to know where gradients are stochastic
    compressor: Compressor  # of mechanisms with the need of an unbiased one

    @property
    def participation(self) -> float:
        """The probability with which a worker takes part in an exchange; who does not computes and says nothing."""
        return 1.0

    @abstractmethod
    async def init(self, v: Tensor, link: Link, probe: Probe | None = None) -> tuple[Tensor, Any]:
        """The first estimate (*shape) of the mean of v (local, *shape), and the memory."""

    @abstractmethod
    async def exchange(self, v: Tensor, memory: Any, link: Link, probe: Probe | None = None) -> tuple[Tensor, Any]:
        """The next estimate (*shape) and the memory."""

    async def overwrite(self, v: Tensor, memory: Any, link: Link, probe: Probe | None = None) -> Any:
        """`exchange` for one local worker whose v (1, *shape) is to become the estimate; gives the memory.

        To be overridden where the estimate can be made there at once, without a pass that copies it.
        """
        estimate, memory = await self.exchange(v, memory, link, probe)
        v[0].copy_(estimate)
        return memory

    def settled(self, setting: Setting) -> Mechanism:
        """The same mechanism with every parameter left open (None) replaced by its theorem's number."""
        return self

    def refuse(self, setting: Setting, estimator: Estimator) -> None:
        """Raises ValueError, one line, where an estimator or compressor cannot give what the mechanism needs.

        This holds whatever the stepsize; what merely has no theorem is `guarantee`'s to say.
        """
        if Need.FULL_GRADIENTS in self.needs and not estimator.exact:
            raise ValueError(f"{self} needs full gradients and {estimator} gives estimates; {self.instead}")
        if Need.UNBIASED in self.needs:
            unbiased_only(self, self.compressor, setting)

    def guarantee(self, setting: Setting, estimator: Estimator, step: float | None) -> Guarantee:
        """What gradient descent x <- x - step * estimate promises with it; `step=None` asks for the largest step.

        Raises NoTheorem where no theorem covers the combination, saying why.
        """
        raise NoTheorem(f"no theorem is known for {self}; give an explicit step")


def unbiased_only(mechanism: Mechanism, compressor: Compressor, setting: Setting) -> AB:
    """The joint constants of a compressor. Raises ValueError where a mechanism that breaks without them gets others."""
    joint = as_joint(compressor.claim(setting.d, setting.n), setting.n)
    if joint is None:
        raise ValueError(
            f"{mechanism} needs an unbiased compressor and {compressor} is not known to be one; {mechanism.instead}"
        )
    return joint


def full_gradients_only(mechanism: Mechanism, estimator: Estimator) -> None:
    """Raises NoTheorem where a theorem for exact gradients is asked about another estimator."""
    if not estimator.exact:
        raise NoTheorem(f"the theorem of {mechanism} is about full gradients, not {estimator}; give an explicit step")


def contractive_only(mechanism: Mechanism, compressor: Compressor, setting: Setting) -> float:
    """alpha of a compressor. Raises NoTheorem where a mechanism's theorem is asked about one not known to contract."""
    alpha = as_contractive(compressor.claim(setting.d, setting.n))
    if alpha is None:
        raise NoTheorem(
            f"the theorem of {mechanism} needs a contractive compressor and {compressor} is not known to be one; "
            "give an explicit step"
        )
    return alpha
