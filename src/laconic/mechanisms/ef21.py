"""EF21 and its forms with momentum: error feedback by compressed differences."""

from __future__ import annotations

import dataclasses
import math
from abc import abstractmethod
from dataclasses import dataclass
from typing import Annotated, Any

from torch import Tensor

from laconic.core.compressor import Compressor, Sent
from laconic.core.entry import Interval, Source
from laconic.core.estimator import Estimator, Probe
from laconic.core.link import Link
from laconic.core.mechanism import Mechanism, contractive_only
from laconic.core.rows import mixed, norm2
from laconic.core.state import Server, Worker
from laconic.core.theory import Guarantee, NoTheorem, Setting, Snapshot, Terms, estimates, known
from laconic.mechanisms._recursive import ALL, HALF, drifts, recursion_of
from laconic.mechanisms.dasha import promise

_BELLS = Source(
    "Fatkhullin, Sokolov, Gorbunov, Li, Richtarik",
    2021,
    "EF21 with bells & whistles: practical algorithmic extensions of modern error feedback",
    "2110.03294",
)


@dataclass
class Memory:
    """What EF21 keeps."""

    shift: Worker  # g_i, (local, *shape)
    estimate: Server  # g = mean g_i, (*shape)


def contraction(mechanism: Mechanism, compressor: Compressor, setting: Setting) -> tuple[float, float]:
    """theta = 1 - sqrt(1 - alpha) and beta = (1 - alpha) / theta of a contractive compressor.

    Raises NoTheorem where the compressor is not known to be contractive.
    """
    alpha = contractive_only(mechanism, compressor, setting)
    theta = 1.0 - math.sqrt(1.0 - alpha)
    return theta, (1.0 - alpha) / theta


def shift_error(snapshot: Snapshot) -> Tensor:
    """||g_i - grad f_i(x)||^2 per local worker."""
    return norm2(snapshot.state.memory.shift - snapshot.oracles.gradients(snapshot.x))


def three_point(
    source: Source, setting: Setting, spread: float, a: float, b: float, step: float | None, leans: tuple[str, ...]
) -> Guarantee:
    """The theorem of three-point compressors with constants A and B; `spread` is L~ or L+ of the f_i.

    Smooth f: step <= 1 / (L + spread sqrt(B / A)). Under PL: step <= min(1 / (L + spread sqrt(2 B / A)), A / (2 mu)),
    and f - f* + (step / A) mean ||shift_i - grad f_i||^2 contracts by 1 - step mu.
    """
    c = setting.constants
    (smooth,) = known(L=c.L)
    if c.polyak is None:
        largest = 1.0 / (smooth + spread * math.sqrt(b / a))
        return Guarantee(largest, source, assumes=("f and f_i smooth",), leans_on=leans)
    mu = float(c.polyak)
    largest = min(1.0 / (smooth + spread * math.sqrt(2.0 * b / a)), a / (2.0 * mu))
    used = largest if step is None else step

    def lyapunov(snapshot: Snapshot) -> Terms:
        return Terms(snapshot.gap, shift_error(snapshot) * (used / a))

    assumes = ("f and f_i smooth", "f strongly convex (or PL)")
    return Guarantee(largest, source, 1.0 - used * mu, lyapunov, 0.0, 1.0, assumes, leans_on=leans)


class Shifting(Mechanism):
    """Mechanisms whose estimate g = mean g_i moves by the mean of the messages by which the g_i do."""

    @abstractmethod
    async def send(self, v: Tensor, memory: Any, link: Link) -> Sent:
        """The workers' part of an exchange, all memory but `memory.estimate`."""

    async def exchange(self, v: Tensor, memory: Any, link: Link, probe: Probe | None = None) -> tuple[Tensor, Any]:
        sent = await self.send(v, memory, link)
        sent.mean.add_to(memory.estimate)
        return memory.estimate, memory

    async def overwrite(self, v: Tensor, memory: Any, link: Link, probe: Probe | None = None) -> Any:
        sent = await self.send(v, memory, link)
        sent.renew(memory.estimate, v)
        return memory


@dataclass(frozen=True)
class EF21(Shifting):
    """Worker i sends c_i = C(v_i - g_i) and adds it to its shift g_i; the estimate is g = mean g_i.

    Start: g_i = C(v_i), a message of the same size as every other; with `start=identity` g_i = v_i, at full width. The
    paper allows any start. From g_i = 0 the first step is none at all, and then g_i = C(v_i): it is the default, one
    round later.

    Guarantee with G = mean ||g_i - grad f_i(x)||^2, theta = 1 - sqrt(1 - alpha), beta = (1 - alpha) / theta:
    smooth f: step <= 1 / (L + L~ sqrt(beta / theta)). Under PL: step <= min(1 / (L + L~ sqrt(2 beta / theta)),
    theta / (2 mu)), and E[f - f* + (step / theta) G] contracts by 1 - step mu.

    EF21-PAGE with minibatches of size B, one p for all, q^2 = 1 - p and the smoothness l of terms: step <= 1 / (L +
    sqrt((beta / theta) ((1 + p q) L+^2 + (2 q^2 + q) l^2 / B)) + q l / sqrt(p n B)). Under PL 2 beta stands for beta,
    3 q^2 + 2 q for 2 q^2 + q, and p / 2 for p under the last root; step <= min(theta, p) / (2 mu), rate 1 - step mu.
    Over the estimator mvr in the same way, to a floor. Both derived; the paper's constants are others.

    Parameters
    ----------
    compressor : contractive.
    start : of the first messages alone; None is `compressor`.

    >>> from laconic.compressors.topk import TopK
    >>> str(EF21(TopK(k=0.05)))
    'ef21(topk(k=0.05))'
    """

    compressor: Compressor
    start: Compressor | None = None

    name = "ef21"
    example = "ef21(topk(k=0.05))"
    lazy = True
    caution = (
        "with stochastic gradients it stops at a distance that neither smaller steps nor more workers take away "
        "(Fatkhullin, Tyurin, Richtarik 2023); ef21_sgdm averages the noise out"
    )
    source = Source(
        "Richtarik, Sokolov, Fatkhullin",
        2021,
        "EF21: a new, simpler, theoretically better, and practically faster error feedback",
        "2106.05203",
        "Theorems 1 and 2",
    )

    async def init(self, v: Tensor, link: Link, probe: Probe | None = None) -> tuple[Tensor, Memory]:
        if self.start is None:
            sent = await link.uplink(self.compressor, v)
        else:
            sent = await link.scope("start").uplink(self.start, v)
        memory = Memory(shift=sent.own.dense(), estimate=sent.mean.dense())
        return memory.estimate, memory

    async def send(self, v: Tensor, memory: Memory, link: Link) -> Sent:
        sent = await link.uplink(self.compressor, v, minus=memory.shift)
        sent.own.add_to(memory.shift)
        return sent

    def guarantee(self, setting: Setting, estimator: Estimator, step: float | None) -> Guarantee:
        theta, beta = contraction(self, self.compressor, setting)
        if not estimator.exact:
            return self._recursive(setting, estimator, theta, beta, step)
        c = setting.constants
        (spread,) = known(L_tilde=c.L_tilde)
        leans = estimates(L=c.L, L_tilde=c.L_tilde, mu=c.polyak)
        return three_point(self.source, setting, spread, theta, beta, step, leans)

    def _recursive(
        self, setting: Setting, estimator: Estimator, theta: float, beta: float, step: float | None
    ) -> Guarantee:
        left = HALF if setting.constants.polyak is not None and estimator.vanishing else ALL
        found = drifts(recursion_of(self, estimator, setting), setting, beta / (left * theta), left)
        made = promise(setting, found, theta, step, left)
        where = dataclasses.replace(_BELLS, where="EF21-PAGE; with constants derived anew")
        floor = () if estimator.vanishing else ("gradients of single terms of bounded variance",)
        return dataclasses.replace(made, source=where, assumes=(*made.assumes, *floor))


@dataclass
class MomentumMemory:
    """What EF21-SGDM keeps."""

    momentum: Worker  # v_i, (local, *shape)
    shift: Worker  # g_i, (local, *shape)
    estimate: Server  # g = mean g_i, (*shape)


@dataclass(frozen=True)
class EF21SGDM(Shifting):
    """EF21 on a running average of stochastic gradients: v_i <- (1 - eta) v_i + eta (new gradient), c_i = C(v_i - g_i).

    Start: v_i = g_i = the first vectors, sent at full width. The momentum lets the variance average out over workers,
    which plain EF21 with stochastic gradients does not.

    Guarantee: step <= min(alpha / (20 L~), eta / (7 L)); the constants are recalled from the paper and were only
    checked for convergence.

    Parameters
    ----------
    compressor : contractive.
    eta : weight of the new gradient; 1 is EF21 with stochastic gradients.

    >>> from laconic.compressors.topk import TopK
    >>> str(EF21SGDM(TopK(k=0.05), eta=0.1))
    'ef21_sgdm(topk(k=0.05))'
    """

    compressor: Compressor
    eta: Annotated[float, Interval(0.0, 1.0, open="low")] = 0.1

    name = "ef21_sgdm"
    example = "ef21_sgdm(topk(k=0.05), eta=0.1)"
    source = Source(
        "Fatkhullin, Tyurin, Richtarik", 2023, "Momentum provably improves error feedback!", "2305.15155", "Theorem 3"
    )

    async def init(self, v: Tensor, link: Link, probe: Probe | None = None) -> tuple[Tensor, MomentumMemory]:
        sent = await link.uplink(None, v)
        memory = MomentumMemory(momentum=v.clone(), shift=sent.own.dense(), estimate=sent.mean.dense())
        return memory.estimate, memory

    async def send(self, v: Tensor, memory: MomentumMemory, link: Link) -> Sent:
        momentum = mixed(memory.momentum, v, self.eta)
        sent = await link.uplink(self.compressor, momentum, minus=memory.shift)
        memory.momentum = momentum
        sent.own.add_to(memory.shift)
        return sent

    def guarantee(self, setting: Setting, estimator: Estimator, step: float | None) -> Guarantee:
        alpha = contractive_only(self, self.compressor, setting)
        c = setting.constants
        smooth, mean_smooth = known(L=c.L, L_tilde=c.L_tilde)
        largest = min(alpha / (20.0 * mean_smooth), self.eta / (7.0 * smooth))
        return Guarantee(
            largest,
            self.source,
            assumes=("f and f_i smooth", "bounded variance"),
            sure=False,
            leans_on=estimates(L=c.L, L_tilde=c.L_tilde),
        )


@dataclass
class DoubleMomentumMemory:
    """What EF21-SGD2M keeps."""

    momentum: Worker  # v_i, (local, *shape)
    double: Worker  # u_i, (local, *shape)
    shift: Worker  # g_i, (local, *shape)
    estimate: Server  # g = mean g_i, (*shape)


@dataclass(frozen=True)
class EF21SGD2M(Shifting):
    """EF21-SGDM on a running average of the running average: u_i <- (1 - eta) u_i + eta v_i, c_i = C(u_i - g_i).

    As there, v_i <- (1 - eta) v_i + eta (new gradient). Start: v_i = u_i = g_i = the first vectors, sent at full width.
    Guarantee: none; the paper has one, whose constants are not at hand.

    Parameters
    ----------
    compressor : contractive.
    eta : weight of the new in both averages; 1 is EF21 with stochastic gradients.

    >>> from laconic.compressors.topk import TopK
    >>> str(EF21SGD2M(TopK(k=0.05), eta=0.2))
    'ef21_sgd2m(topk(k=0.05), eta=0.2)'
    """

    compressor: Compressor
    eta: Annotated[float, Interval(0.0, 1.0, open="low")] = 0.1

    name = "ef21_sgd2m"
    example = "ef21_sgd2m(topk(k=0.05), eta=0.2)"
    source = Source(
        "Fatkhullin, Tyurin, Richtarik", 2023, "Momentum provably improves error feedback!", "2305.15155", "EF21-SGD2M"
    )

    async def init(self, v: Tensor, link: Link, probe: Probe | None = None) -> tuple[Tensor, DoubleMomentumMemory]:
        sent = await link.uplink(None, v)
        memory = DoubleMomentumMemory(v.clone(), v.clone(), shift=sent.own.dense(), estimate=sent.mean.dense())
        return memory.estimate, memory

    async def send(self, v: Tensor, memory: DoubleMomentumMemory, link: Link) -> Sent:
        momentum = mixed(memory.momentum, v, self.eta)
        double = mixed(memory.double, momentum, self.eta)
        sent = await link.uplink(self.compressor, double, minus=memory.shift)
        memory.momentum, memory.double = momentum, double
        sent.own.add_to(memory.shift)
        return sent

    def guarantee(self, setting: Setting, estimator: Estimator, step: float | None) -> Guarantee:
        raise NoTheorem(f"the constants of the theorem of {self} are not at hand; give an explicit step")
