"""What step rules share: a rule over a mechanism over an estimator, on the way down a broadcast."""

from __future__ import annotations

import dataclasses
from abc import abstractmethod
from dataclasses import dataclass, field
from typing import Any, ClassVar

from torch import Tensor

from laconic.broadcasts.exact import Exact
from laconic.core.broadcast import Broadcast
from laconic.core.compressor import as_unbiased, informed
from laconic.core.entry import Stepsize
from laconic.core.estimator import Estimate, Estimator
from laconic.core.link import Cohort, Link
from laconic.core.mechanism import Mechanism, Need
from laconic.core.method import Method, explicit, number, resolve
from laconic.core.problem import Oracles
from laconic.core.schedule import Schedule
from laconic.core.state import Server, Shared, put, take
from laconic.core.theory import Guarantee, NoTheorem, Setting
from laconic.estimators.full import FullGradient
from laconic.mechanisms.direct import Direct
from laconic.schedules.constant import Constant


@dataclass
class State:
    """The server's model and estimate, and what rule, mechanism, estimator and broadcast keep."""

    x: Server  # (*shape)
    estimate: Server  # g where the rule asked for it, (*shape)
    rule: dict[str, Server]  # (*shape) each
    memory: Any
    estimator: Any
    told: Any  # the broadcast's


@dataclass
class PublicState:
    """The same where every party can compute the estimate, and so the model."""

    x: Shared  # (*shape)
    estimate: Shared  # g where the rule asked for it, (*shape)
    rule: dict[str, Shared]  # (*shape) each
    memory: Any
    estimator: Any
    told: Any


@dataclass(frozen=True)
class Descent(Method):
    """A step rule: `move` makes the next model of the estimate, `ahead` is where the next gradients are taken.

    What the rule keeps is a dict of tensors (*shape). A regulariser of the problem is applied after the move, by its
    proximal operator, where the rule is `proximal`. `move`, `ahead` and `adopt` are elementwise in x, so that several
    models may be stacked along a first dimension, each with its own step.
    """

    mechanism: Mechanism = field(default_factory=Direct)
    step: Stepsize = None
    estimator: Estimator = field(default_factory=FullGradient)
    down: Broadcast = field(default_factory=Exact)
    schedule: Schedule = field(default_factory=Constant)

    proximal: ClassVar[bool] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        mechanism, down, owner = self.mechanism, self.down, type(self).__name__
        if mechanism.public and not isinstance(down, Exact):
            raise ValueError(
                f"{owner}(down={down}) : {mechanism} sends no model down, for every worker can step by itself; "
                "leave down out"
            )
        if mechanism.participation < 1.0 and not down.partial:
            raise ValueError(
                f"{owner}(down={down}) : with {mechanism} some workers miss rounds, and {down} needs all of them; "
                "use down=exact"
            )
        if Need.CONSTANT_STEP in mechanism.needs and not self.schedule.constant:
            raise ValueError(
                f"{owner}(schedule={self.schedule}) : {mechanism} needs {Need.CONSTANT_STEP.value}; {mechanism.instead}"
            )

    def settled(self, setting: Setting) -> Descent:
        self.refuse(setting)
        mechanism, down = (
            informed(self.mechanism, setting).settled(setting),
            informed(self.down, setting).settled(setting),
        )
        method = dataclasses.replace(self, mechanism=mechanism, down=down)
        step = resolve(self.step, lambda: method.largest(setting))
        return dataclasses.replace(method, step=step, schedule=self.schedule.settled(setting, step))

    def refuse(self, setting: Setting) -> None:
        """Raises ValueError, one line, for a problem or combination that the method cannot work on."""
        if setting.composite and not self.proximal:
            raise ValueError(f"{self} has no proximal step, and the problem has a regulariser; use gd or nesterov")
        self.mechanism.refuse(setting, self.estimator)

    def largest(self, setting: Setting) -> float:
        """The largest stepsize that a theorem allows."""
        return self.promise(setting, None).step

    def guarantee(self, setting: Setting) -> Guarantee:
        step = explicit(self.step)
        return self.schedule.guarantee(self.promise(setting, step).at(step))

    def promise(self, setting: Setting, step: float | None) -> Guarantee:
        """What theory promises at a constant step; None asks for the largest. Raises NoTheorem."""
        raise NoTheorem(f"no theorem is known for {self}; give an explicit step")

    def plain(self, setting: Setting) -> bool:
        """Whether the estimate is the gradient: nothing is compressed on either way, nothing is sampled."""
        mechanism = self.mechanism
        return (
            isinstance(mechanism, Direct)
            and as_unbiased(mechanism.compressor.claim(setting.d, setting.n)) == 0.0
            and self.estimator.exact
            and isinstance(self.down, Exact)
        )

    # ---- the rule -------------------------------------------------------------------------------------------------

    def first(self, x: Tensor) -> dict[str, Tensor]:
        """What the rule keeps at x^0."""
        return {}

    @abstractmethod
    def move(
        self, x: Tensor, g: Tensor, rule: dict[str, Tensor], step: float, iteration: int
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """x^(k+1), k = `iteration`, and what the rule keeps. The arguments stay untouched."""

    def ahead(self, x: Tensor, before: Tensor) -> Tensor:
        """Where the workers are to take their gradients next; `before` is the model before x."""
        return x

    def adopt(self, x: Tensor, point: Tensor, rule: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """The model, and what the rule keeps, once `ahead` is `point` for the server: what it goes on from."""
        return point, rule

    # ---- what workers do between two exchanges ----------------------------------------------------------------------

    def begin(self, x: Tensor, oracles: Oracles, link: Link) -> Estimate:
        """What each worker hands to the mechanism at first: an estimate of its gradient at x^0 (*shape)."""
        return self.estimator.init(x, oracles, link)

    def work(self, x: Tensor, kept: Any, oracles: Oracles, link: Link) -> Estimate:
        """What it hands over at the model x that it was told, from what it has kept."""
        return self.estimator.estimate(x, kept, oracles, link)

    # ---- the text -------------------------------------------------------------------------------------------------

    async def init(self, oracles: Oracles, link: Link) -> State | PublicState:
        x = oracles.start()
        estimate = self.begin(x, oracles, link.scope("estimator"))
        v = self._scaled(estimate.v, 0)
        g, memory = await self.mechanism.init(v, link.scope("mechanism"), estimate.probe)
        state = PublicState if self.mechanism.public else State
        return state(x, g, self.first(x), memory, estimate.state, self.down.init(x, link))

    async def iterate(self, state: State | PublicState, oracles: Oracles, link: Link) -> State | PublicState:
        k = link.step  # the estimate at hand was made in iteration k - 1
        x, rule = self.move(state.x, state.estimate, state.rule, self._outer(k - 1), k - 1)
        if oracles.regulariser is not None:
            x = oracles.regulariser.prox(x, self._at(k - 1))
        point = held = self.ahead(x, state.x)
        told, who = state.told, self._who(link)
        if not self.mechanism.public:
            point, held, told = await self.down.send(point, state.told, link, who)
        x, rule = self.adopt(x, point, rule)
        if who is None:
            g, memory, kept = await self._estimate(held, state.memory, state.estimator, oracles, link)
        else:
            rows, memory, kept = who.rows, state.memory, state.estimator
            g, part, of_part = await self._estimate(
                held, take(memory, rows), take(kept, rows), oracles.among(rows), link.among(who)
            )
            memory, kept = put(memory, rows, part), put(kept, rows, of_part)
        return type(state)(x, g, rule, memory, kept, told)

    async def _estimate(
        self, x: Tensor, memory: Any, kept: Any, oracles: Oracles, link: Link
    ) -> tuple[Tensor, Any, Any]:
        estimate = self.work(x, kept, oracles, link.scope("estimator"))
        v = self._scaled(estimate.v, link.step)
        g, memory = await self.mechanism.exchange(v, memory, link.scope("mechanism"), estimate.probe)
        return g, memory, estimate.state

    def _who(self, link: Link) -> Cohort | None:
        p = self.mechanism.participation
        return link.scope("participation").bernoulli(p) if p < 1.0 else None

    def _at(self, iteration: int) -> float:
        """The stepsize of an iteration."""
        return number(self.step) * self.schedule.factor(iteration)

    def _outer(self, iteration: int) -> float:
        """What the estimate is still to be multiplied by."""
        return 1.0 if self.mechanism.takes_step else self._at(iteration)

    def _scaled(self, v: Tensor, iteration: int) -> Tensor:
        return v * self._at(iteration) if self.mechanism.takes_step else v

    def point(self, state: State | PublicState) -> Tensor:
        return state.x
