"""EF21-P: error feedback for the model on its way down."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from laconic.core.broadcast import Broadcast
from laconic.core.compressor import Compressor, as_contractive, as_unbiased
from laconic.core.entry import Source
from laconic.core.estimator import Estimator
from laconic.core.link import Cohort, Link
from laconic.core.mechanism import Mechanism
from laconic.core.rows import square
from laconic.core.state import Shared
from laconic.core.theory import Guarantee, NoTheorem, Setting, Snapshot, Terms, estimates, known
from laconic.mechanisms.diana import DIANA, noise_of
from laconic.mechanisms.direct import Direct
from laconic.mechanisms.ef21 import three_point


@dataclass
class Memory:
    """What EF21-P keeps."""

    model: Shared  # w, (*shape)


@dataclass(frozen=True)
class EF21P(Broadcast):
    """The server sends C(x - w) and everyone adds it to w, the model at which the workers evaluate; w^0 = x^0.

    Guarantee for gradient descent without compression on the way up, theta = 1 - sqrt(1 - alpha), r = (1 - alpha) /
    theta^2: smooth f: step <= 1 / (L + L sqrt(r)). Under PL: step <= min(1 / (L + L sqrt(2 r)), theta / (2 mu)), and
    f - f* + (step L^2 / theta) ||w - x||^2 contracts by 1 - step mu (derived: with L^2 ||w - x||^2, which bounds
    ||grad f(w) - grad f(x)||^2, in place of G the proof is EF21's). With DIANA on the way up: step <= min(n / (160
    omega L_max), sqrt(n alpha) / (20 sqrt(omega) L~), alpha / (100 L), 1 / ((1 + omega) mu)), as recalled.

    Parameters
    ----------
    compressor : contractive.

    >>> from laconic.compressors.topk import TopK
    >>> str(EF21P(TopK(k=0.05)))
    'ef21_p(topk(k=0.05))'
    """

    compressor: Compressor

    name = "ef21_p"
    example = "ef21_p(topk(k=0.05))"
    source: ClassVar[Source] = Source(
        "Gruntkowska, Tyurin, Richtarik",
        2022,
        "EF21-P and friends: improved theoretical communication complexity for distributed optimization with "
        "bidirectional compression",
        "2209.15218",
        "with constants derived anew",
    )

    def init(self, x: Tensor, link: Link) -> Memory:
        return Memory(x)

    async def send(
        self, x: Tensor, memory: Memory, link: Link, to: Cohort | None = None
    ) -> tuple[Tensor, Tensor, Memory]:
        model = memory.model + await link.broadcast(x - memory.model, self.compressor, to)
        return x, model, Memory(model)

    def guarantee(self, setting: Setting, mechanism: Mechanism, estimator: Estimator, step: float | None) -> Guarantee:
        alpha = as_contractive(self.compressor.claim(setting.d, setting.n))
        if alpha is None:
            raise NoTheorem(
                f"the theorem of {self} needs a contractive compressor and {self.compressor} is not known to be one; "
                "give an explicit step"
            )
        if alpha == 1.0:
            return mechanism.guarantee(setting, estimator, step)
        if not estimator.exact:
            raise NoTheorem(f"the theorem of {self} is about full gradients, not {estimator}; give an explicit step")
        if isinstance(mechanism, Direct) and as_unbiased(mechanism.compressor.claim(setting.d, setting.n)) == 0.0:
            return self._exact(setting, alpha, step)
        if isinstance(mechanism, DIANA):
            return self._diana(setting, mechanism, alpha)
        raise NoTheorem(
            f"no theorem is known for {mechanism} with {self} on the way down; give an explicit step, or use "
            "direct(identity) or diana on the way up"
        )

    def _exact(self, setting: Setting, alpha: float, step: float | None) -> Guarantee:
        c, theta = setting.constants, 1.0 - math.sqrt(1.0 - alpha)
        (smooth,) = known(L=c.L)
        leans = estimates(L=c.L, mu=c.polyak)
        promise = three_point(self.source, setting, smooth, theta, (1.0 - alpha) / theta, step, leans)
        used = promise.step if step is None else step

        def lyapunov(snapshot: Snapshot) -> Terms:
            apart = square(snapshot.state.told.model - snapshot.x)
            return Terms(snapshot.gap + used * smooth**2 / theta * apart)

        assumes = tuple(words.replace("f and f_i smooth", "f smooth") for words in promise.assumes)
        return dataclasses.replace(promise, lyapunov=promise.lyapunov and lyapunov, assumes=assumes)

    def _diana(self, setting: Setting, mechanism: DIANA, alpha: float) -> Guarantee:
        c, n = setting.constants, setting.n
        omega = noise_of(mechanism, mechanism.compressor, setting).omega
        if not setting.convex:
            raise NoTheorem(f"the theorem of {self} with diana needs convex f_i; give an explicit step")
        smooth, worst, spread, mu = known(L=c.L, L_max=c.L_max, L_tilde=c.L_tilde, mu=c.mu)
        largest = min(alpha / (100.0 * smooth), 1.0 / ((1.0 + omega) * mu))
        if omega > 0.0:
            largest = min(
                largest, n / (160.0 * omega * worst), math.sqrt(n * alpha) / (20.0 * math.sqrt(omega) * spread)
            )
        return Guarantee(
            largest,
            dataclasses.replace(self.source, where="EF21-P + DIANA, constants recalled"),
            assumes=("f strongly convex", "f_i convex and smooth", "constants recalled, not read in the paper"),
            sure=False,
            leans_on=estimates(L=c.L, L_max=c.L_max, L_tilde=c.L_tilde, mu=c.mu),
        )
