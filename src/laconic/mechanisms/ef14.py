"""EF14, the classical error feedback, with the step outside or inside the memory."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from laconic.core.compressor import Compressor
from laconic.core.entry import Source
from laconic.core.estimator import Estimator, Probe
from laconic.core.link import Link
from laconic.core.mechanism import Mechanism, Need, contractive_only, full_gradients_only
from laconic.core.rows import norm2, square
from laconic.core.state import Worker
from laconic.core.theory import Guarantee, NoTheorem, Setting, Snapshot, Terms, estimates, known

SEIDE = Source(
    "Seide, Fu, Droppo, Li, Yu",
    2014,
    "1-bit stochastic gradient descent and its application to data-parallel distributed training of speech DNNs",
)
_THEOREM = Source(
    "Beznosikov, Horvath, Richtarik, Safaryan",
    2020,
    "On biased compression for distributed learning",
    "2002.12410",
    "step 1 / (14 (2 / alpha + B) L), B = 0 for full gradients; rate and plateau derived anew",
)


@dataclass
class Memory:
    """What EF14 keeps."""

    error: Worker  # e_i, (local, *shape)


async def feed(compressor: Compressor, v: Tensor, memory: Memory, link: Link) -> tuple[Tensor, Memory]:
    """One exchange of EF14: sends c_i = C(e_i + v_i), keeps e_i + v_i - c_i, gives mean c_i."""
    sent = await link.uplink(compressor, v, plus=memory.error)
    memory.error += v
    sent.own.add_to(memory.error, scale=-1.0)
    return sent.mean.dense(), memory


async def feed_inside(compressor: Compressor, v: Tensor, memory: Memory, link: Link) -> Memory:
    """`feed` with mean c_i in v[0]: messages of e_i + v_i are no views of v_i."""
    sent = await link.uplink(compressor, v, plus=memory.error)
    sent.settle(v, memory.error)
    return memory


def convex_only(mechanism: Mechanism, setting: Setting) -> None:
    """Raises NoTheorem where a theorem for convex f_i is asked about others."""
    if not setting.convex:
        raise NoTheorem(f"the theorem of {mechanism} needs convex f_i; give an explicit step")


@dataclass(frozen=True)
class Owed:
    """V = ||y - x*||^2 + `errors` mean ||e_i||^2 + `servers` ||E||^2 + `shifts` mean ||h_i - grad f_i(x*)||^2.

    y is the next x less step (mean e_i + E), with E and h_i where a mechanism's memory has them. Errors and estimates
    that a step is in already are taken out of it first.
    """

    takes_step: bool
    step: float
    errors: float
    servers: float = 0.0
    shifts: float = 0.0

    def __call__(self, snapshot: Snapshot) -> Terms:
        memory, goal = snapshot.state.memory, snapshot.solution.x
        unit = 1.0 if self.takes_step else self.step
        owed, ahead = unit * memory.error, snapshot.x - unit * snapshot.state.estimate
        workers, shared = norm2(owed) * (self.errors / self.step**2), 0.0
        if self.servers > 0.0:
            ahead = ahead - unit * memory.servers
            shared = self.servers * square(memory.servers)
        if self.shifts > 0.0:
            workers = workers + self.shifts * norm2(memory.shift - snapshot.oracles.gradients(goal))
        return Terms(shared, workers, owed, lambda mean: square(ahead - mean - goal))


def owing(
    source: Source,
    setting: Setting,
    largest: float,
    weight: float,
    slower: tuple[float, ...],
    step: float | None,
    lyapunov: Callable[[float], Owed],
    assumes: tuple[str, ...] = (),
) -> Guarantee:
    """What holds of a virtual iterate y = x - step (all that is owed), which takes exact gradient steps.

    A vector of squared length P that is put into the memories adds `weight` step^3 L P to V. For strongly convex f and
    convex f_i, P <= 4 L_max (f - f*) + 2 sigma*^2 on average, and V = ||y - x*||^2 + (what is owed, squared and
    weighted; `lyapunov` of a step) contracts by the largest of 1 - step mu / 2 and `slower`, up to
    2 `weight` step^3 L sigma*^2: for steps <= 1 / (4 L) with 4 `weight` step^2 L L_max <= 1 / 2.
    """
    c = setting.constants
    smooth, mu = known(L=c.L, mu=c.mu)
    used = largest if step is None else step
    rate = max((1.0 - 0.5 * used * mu, *slower))
    sigma = float(c.sigma_star) if c.sigma_star is not None else math.nan
    plateau = 2.0 * weight * used**3 * smooth * sigma**2 / (1.0 - rate) if weight > 0.0 else 0.0
    return Guarantee(
        largest,
        source,
        rate,
        lyapunov(used),
        plateau,
        leans_on=estimates(L=c.L, L_max=c.L_max, mu=c.mu),
        assumes=("f strongly convex", "f_i convex and smooth", *assumes),
        average=lambda k: -(k + 1) * math.log(rate),  # weights rate^-(k+1), about whose average the paper's theorem is
    )


def promise(
    mechanism: Mechanism, compressor: Compressor, setting: Setting, estimator: Estimator, step: float | None
) -> Guarantee:
    """The theorem of EF14 with this compressor."""
    full_gradients_only(mechanism, estimator)
    alpha = contractive_only(mechanism, compressor, setting)
    convex_only(mechanism, setting)
    c = setting.constants
    worst, smooth = known(L_max=c.L_max, L=c.L)
    slower = (1.0 - alpha / 4.0,) if alpha < 1.0 else ()
    weight = 24.0 * (1.0 - alpha) / alpha**2
    floor = "converges to a neighbourhood that shrinks with the step, and to x* only if grad f_i(x*) = 0 for all i"

    def owed(used: float) -> Owed:
        return Owed(mechanism.takes_step, used, 12.0 * smooth * used**3 / alpha)

    return owing(_THEOREM, setting, alpha / (28.0 * worst), weight, slower, step, owed, (floor,))


@dataclass(frozen=True)
class EF14(Mechanism):
    """Worker i sends c_i = C(e_i + v_i) and keeps what was not sent: e_i <- e_i + v_i - c_i. Step outside the memory.

    With a constant step and a positively homogeneous compressor this equals :class:`EF14Inside`. Where the step
    varies use that one: there the memory is in units of x.

    Guarantee for f strongly convex and f_i convex, at steps <= alpha / (28 L_max): the virtual iterate y = x - step
    mean e_i takes exact gradient steps, and V = ||y - x*||^2 + (12 L step^3 / alpha) mean ||e_i||^2 contracts by
    max(1 - step mu / 2, 1 - alpha / 4), up to 48 (1 - alpha) L step^3 sigma*^2 / alpha^2. The step is recalled from
    the paper; rate and plateau are derived anew, and hold up to min(1 / (4 L), alpha / (14 sqrt((1 - alpha) L L_max))).
    The floor vanishes if all grad f_i(x*) do.

    Parameters
    ----------
    compressor : contractive.

    >>> from laconic.compressors.topk import TopK
    >>> str(EF14(TopK(k=0.01)))
    'ef14(topk(k=0.01))'
    """

    compressor: Compressor

    name = "ef14"
    aliases = ("ef",)
    example = "ef14(topk(k=0.05))"
    lazy = True
    needs = frozenset({Need.CONSTANT_STEP})
    instead = "use ef14_inside"
    source = SEIDE

    async def init(self, v: Tensor, link: Link, probe: Probe | None = None) -> tuple[Tensor, Memory]:
        return await feed(self.compressor, v, Memory(torch.zeros_like(v)), link)

    async def exchange(
        self, v: Tensor, memory: Memory, link: Link, probe: Probe | None = None
    ) -> tuple[Tensor, Memory]:
        return await feed(self.compressor, v, memory, link)

    async def overwrite(self, v: Tensor, memory: Memory, link: Link, probe: Probe | None = None) -> Memory:
        return await feed_inside(self.compressor, v, memory, link)

    def guarantee(self, setting: Setting, estimator: Estimator, step: float | None) -> Guarantee:
        return promise(self, self.compressor, setting, estimator, step)


@dataclass(frozen=True)
class EF14Inside(Mechanism):
    """EF14 with the step inside the memory: p_i = e_i + step v_i, c_i = C(p_i), e_i <- p_i - c_i, x <- x - mean c_i.

    The virtual iterate x - mean e_i then moves by exactly -step mean v_i, whatever the steps. Guarantee: that of EF14.

    Parameters
    ----------
    compressor : contractive.

    >>> from laconic.compressors.topk import TopK
    >>> str(EF14Inside(TopK(k=0.01)))
    'ef14_inside(topk(k=0.01))'
    """

    compressor: Compressor

    name = "ef14_inside"
    example = "ef14_inside(topk(k=0.05))"
    lazy = True
    takes_step = True
    source = SEIDE

    async def init(self, v: Tensor, link: Link, probe: Probe | None = None) -> tuple[Tensor, Memory]:
        return await feed(self.compressor, v, Memory(torch.zeros_like(v)), link)

    async def exchange(
        self, v: Tensor, memory: Memory, link: Link, probe: Probe | None = None
    ) -> tuple[Tensor, Memory]:
        return await feed(self.compressor, v, memory, link)

    async def overwrite(self, v: Tensor, memory: Memory, link: Link, probe: Probe | None = None) -> Memory:
        return await feed_inside(self.compressor, v, memory, link)

    def guarantee(self, setting: Setting, estimator: Estimator, step: float | None) -> Guarantee:
        return promise(self, self.compressor, setting, estimator, step)
