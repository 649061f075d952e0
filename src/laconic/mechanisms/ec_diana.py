"""EC-DIANA: error feedback on gradients from which learned shifts are taken."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor

from laconic.core.compressor import Compressor, Unbiased
from laconic.core.entry import Interval, Source
from laconic.core.estimator import Estimator, Probe
from laconic.core.flight import together
from laconic.core.link import Link
from laconic.core.mechanism import Mechanism, Need, contractive_only, full_gradients_only
from laconic.core.state import Server, Worker
from laconic.core.theory import Guarantee, NoTheorem, Setting, known
from laconic.mechanisms.ef14 import Owed, convex_only, owing


@dataclass
class Memory:
    """What EC-DIANA keeps."""

    error: Worker  # e_i, (local, *shape)
    shift: Worker  # h_i, (local, *shape)
    mean: Server  # h = mean h_i, (*shape)


@dataclass(frozen=True)
class ECDIANA(Mechanism):
    """EF14 on p_i = v_i - h_i + h, with DIANA's shifts: h_i <- h_i + a Q(v_i - h_i), h = mean h_i.

    Every round h goes down at full width, and two messages go up: C(e_i + p_i), of which e_i keeps what is left, and
    Q(v_i - h_i). The estimate is the mean of the first. At the solution p_i vanishes, and with it EF14's floor.
    Start: e_i = h_i = 0.

    Guarantee (derived anew) for f strongly convex and f_i convex, a <= 1 / (1 + omega): step <= min(1 / (4 L),
    alpha / (24 sqrt((1 - alpha) L L_max))), and V = ||y - x*||^2 + (12 L step^3 / alpha) (mean ||e_i||^2 +
    (8 (1 - alpha) / (alpha a)) mean ||h_i - grad f_i(x*)||^2) with the virtual iterate y = x - step mean e_i contracts
    in expectation by max(1 - step mu / 2, 1 - alpha / 4, 1 - a / 2).

    Parameters
    ----------
    compressor : C, contractive.
    learner : Q, unbiased, independent over workers.
    rate : a of the shifts; None is 1 / (1 + omega).

    >>> from laconic.compressors.natural import Natural
    >>> from laconic.compressors.topk import TopK
    >>> str(ECDIANA(TopK(k=0.05), Natural()))
    'ec_diana(topk(k=0.05), natural)'
    """

    compressor: Compressor
    learner: Compressor
    rate: Annotated[float | None, Interval(0.0, 1.0, open="low")] = None

    name = "ec_diana"
    aliases = ("ec_sgd_diana",)
    example = "ec_diana(topk(k=0.05), randk(k=0.05), rate=0.05)"
    needs = frozenset({Need.CONSTANT_STEP})
    instead = "use ef14_inside"
    source = Source(
        "Gorbunov, Kovalev, Makarenko, Richtarik",
        2020,
        "Linearly converging error compensated SGD",
        "2010.12292",
        "EC-SGD-DIANA; with constants derived anew",
    )

    async def init(self, v: Tensor, link: Link, probe: Probe | None = None) -> tuple[Tensor, Memory]:
        memory = Memory(torch.zeros_like(v), torch.zeros_like(v), v.new_zeros(v.shape[1:]))
        return await self.exchange(v, memory, link)

    async def exchange(
        self, v: Tensor, memory: Memory, link: Link, probe: Probe | None = None
    ) -> tuple[Tensor, Memory]:
        if self.rate is None:
            raise ValueError(f"{self} has no rate for its shifts; use settled(), or give rate=")
        h = await link.broadcast(memory.mean)
        change = v.sub_(memory.shift)
        put_in = change + h
        sent, learned = await together(
            link.uplink(self.compressor, put_in, plus=memory.error),
            link.scope("learner").uplink(self.learner, change),
        )
        memory.error += put_in
        sent.own.add_to(memory.error, scale=-1.0)
        learned.own.add_to(memory.shift, scale=self.rate)
        learned.mean.add_to(memory.mean, scale=self.rate)
        return sent.mean.dense(), memory

    def settled(self, setting: Setting) -> ECDIANA:
        if self.rate is not None:
            return self
        return dataclasses.replace(self, rate=1.0 / (1.0 + self._omega(setting)))

    def _omega(self, setting: Setting) -> float:
        claim = self.learner.claim(setting.d, setting.n)
        if not isinstance(claim, Unbiased):
            raise NoTheorem(
                f"the theorem of {self} needs an unbiased learner, independent over workers, and {self.learner} is not "
                "known to be one; give explicit rate and step"
            )
        return claim.omega

    def guarantee(self, setting: Setting, estimator: Estimator, step: float | None) -> Guarantee:
        full_gradients_only(self, estimator)
        alpha, omega = contractive_only(self, self.compressor, setting), self._omega(setting)
        convex_only(self, setting)
        a = self.settled(setting).rate or 1.0
        if a > 1.0 / (1.0 + omega) + 1e-12:
            raise NoTheorem(
                f"the theorem of {self} needs rate <= 1 / (1 + omega) = {1.0 / (1.0 + omega):.6g}; "
                "give an explicit step"
            )
        c = setting.constants
        smooth, worst = known(L=c.L, L_max=c.L_max)
        largest = 0.25 / smooth
        if alpha < 1.0:
            largest = min(largest, alpha / (24.0 * math.sqrt((1.0 - alpha) * smooth * worst)))
        slower = (1.0 - alpha / 4.0, 1.0 - a / 2.0) if alpha < 1.0 else ()

        def owed(used: float) -> Owed:
            errors = 12.0 * smooth * used**3 / alpha
            return Owed(self.takes_step, used, errors, shifts=errors * 8.0 * (1.0 - alpha) / (alpha * a))

        return owing(self.source, setting, largest, 0.0, slower, step, owed)
