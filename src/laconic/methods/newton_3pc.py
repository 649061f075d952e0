"""Newton-3PC: Newton's method with Hessians that any mechanism learns: EF21, lazy uploads, Bernoulli aggregation."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Annotated, Any

from torch import Tensor

from laconic.core.compressor import informed
from laconic.core.entry import Interval, Source
from laconic.core.flight import together
from laconic.core.link import Link
from laconic.core.mechanism import Mechanism, Need
from laconic.core.method import Method, number
from laconic.core.problem import Oracles
from laconic.core.state import Server, put, take
from laconic.core.theory import Guarantee, NoTheorem, Setting
from laconic.estimators.full import FullGradient
from laconic.mechanisms.ef21 import EF21, contraction
from laconic.mechanisms.partial import PartialParticipation
from laconic.mechanisms.threepc import ThreePoint, split
from laconic.methods._hessian_learning import attempted, convexity, local, of_hessians, projected_step

IMPOSSIBLE = {
    Need.PROBE: "it compares gradients at two points, and is handed Hessians",
    Need.CONSTANT_STEP: "it owes the server what it did not send, to be multiplied by a step that Newton has not",
}


@dataclass
class State:
    """The model, the gradient there, the estimate of the Hessian, and what the mechanism keeps."""

    x: Server  # (*shape)
    gradient: Server  # grad f(x), (*shape)
    hessian: Server  # as svec, (d (d + 1) / 2,)
    memory: Any


@dataclass(frozen=True)
class Newton3PC(Method):
    """x+ = x - [H]_mu^{-1} grad f(x), H a mechanism's estimate of mean hess f_i(x), on svecs.

    Workers send gradients at full width, and the mechanism's messages for hess f_i(x+), in one round. Any mechanism of
    vectors that stands alone serves: three-point compressors as in the paper (`ef21`, `lag`, `clag`, `cbag`,
    `threepc_v1` to `threepc_v5`), or `partial(ef21(...))`, which is `cbag` where silent workers do not compute their
    Hessians either. With lossless messages it is `newton` but for the projection. The first Hessians are sent as the
    mechanism does: at full width by three-point compressors, compressed by `ef21` unless it has a `start`.

    Guarantee (local, recalled): for E||C_{H,Y}(X) - X||^2 <= (1 - A) ||H - Y||^2 + B ||X - Y||^2, x^0 close to x* and
    H_i^0 to the Hessians there, ||x_k - x*||^2 halves per iteration and in the end falls faster than any geometric
    rate, the faster the larger A and the smaller B; for `cbag` A = 1 - sqrt(1 - p alpha), B = (1 - p alpha) / A.

    Parameters
    ----------
    mechanism : of the Hessians.
    mu : of the projection; None is the problem's strong convexity.

    >>> from laconic.mechanisms.lag import LAG
    >>> str(Newton3PC(LAG(trigger=4.0)))
    'newton_3pc(lag(trigger=4.0))'
    """

    mechanism: Mechanism
    mu: Annotated[float | None, Interval(0.0, open="low")] = None

    name = "newton_3pc"
    example = "newton_3pc(clag(topk(k=0.05), trigger=4.0))"
    source = Source(
        "Islamov, Qian, Hanzely, Safaryan, Richtarik",
        2022,
        "Distributed Newton-type methods with communication compression and Bernoulli aggregation",
        "2206.03588",
        "Newton-3PC",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        why = next((words for need, words in IMPOSSIBLE.items() if need in self.mechanism.needs), None)
        if self.mechanism.takes_step:
            why = IMPOSSIBLE[Need.CONSTANT_STEP]
        if why is not None:
            raise ValueError(
                f"Newton3PC(mechanism={self.mechanism}) : {why}; use ef21, lag, clag, cbag or one of threepc_v1 to v5"
            )

    def settled(self, setting: Setting) -> Newton3PC:
        svecs = of_hessians(setting)
        self.mechanism.refuse(svecs, FullGradient())
        mechanism = informed(self.mechanism, svecs).settled(svecs)
        return dataclasses.replace(self, mechanism=mechanism, mu=convexity(self.mu, setting))

    def constants(self, setting: Setting) -> tuple[float, float]:
        """A and B of the mechanism on Hessians. Raises NoTheorem where it is no three-point compressor."""
        svecs, inner, p = of_hessians(setting), self.mechanism, 1.0
        if isinstance(inner, PartialParticipation):
            inner, p = inner.mechanism, inner.participation
        if isinstance(inner, EF21):
            alpha = 1.0 - (1.0 - contraction(inner, inner.compressor, svecs)[0]) ** 2
            return split(1.0 - p * alpha)
        if isinstance(inner, ThreePoint) and p == 1.0:
            return inner.constants(svecs)
        raise NoTheorem(f"no theorem is known for {self}: {self.mechanism} is no three-point compressor")

    def guarantee(self, setting: Setting) -> Guarantee:
        a, b = self.constants(setting)
        close = f"local: x^0 and H_i^0 close to x* and its Hessians, by A = {a:.3g} and B = {b:.3g}"
        return local(setting, self.source, close)

    async def init(self, oracles: Oracles, link: Link) -> State:
        x = oracles.start()
        sent, (hessian, memory) = await together(
            link.uplink(None, oracles.gradients(x)),
            self.mechanism.init(oracles.hessians(x), link.scope("mechanism")),
        )
        return State(x, sent.mean.dense(), hessian, memory)

    async def iterate(self, state: State, oracles: Oracles, link: Link) -> State:
        mu = number(self.mu)
        step = attempted(link, lambda: projected_step(state.hessian, mu, state.gradient), like=state.x)
        x = state.x - step
        held = await link.broadcast(x)
        sent, (hessian, memory) = await together(
            link.uplink(None, oracles.gradients(held)), self._learn(held, state.memory, oracles, link)
        )
        return State(x, sent.mean.dense(), hessian, memory)

    async def _learn(self, x: Tensor, memory: Any, oracles: Oracles, link: Link) -> tuple[Tensor, Any]:
        """The mechanism's exchange, among those who take part."""
        p = self.mechanism.participation
        if p == 1.0:
            return await self.mechanism.exchange(oracles.hessians(x), memory, link.scope("mechanism"))
        who = link.scope("participation").bernoulli(p)
        hessians = oracles.hessians(x, who.rows)
        inside = link.among(who).scope("mechanism")
        hessian, part = await self.mechanism.exchange(hessians, take(memory, who.rows), inside)
        return hessian, put(memory, who.rows, part)

    def point(self, state: State) -> Tensor:
        return state.x
