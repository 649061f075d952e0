"""EControl: compressed differences, with the errors fed back at a controlled weight."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor

from laconic.core.compressor import Compressor
from laconic.core.entry import Interval, Source
from laconic.core.estimator import Estimator, Probe
from laconic.core.link import Link
from laconic.core.mechanism import Mechanism, contractive_only, full_gradients_only
from laconic.core.rows import norm2
from laconic.core.state import Server, Worker
from laconic.core.theory import Guarantee, NoTheorem, Setting, Snapshot, Terms, estimates, known
from laconic.mechanisms.ef21 import three_point


@dataclass
class Memory:
    """What EControl keeps."""

    error: Worker  # e_i, (local, *shape)
    shift: Worker  # h_i, (local, *shape)
    estimate: Server  # h = mean h_i, (*shape)


@dataclass(frozen=True)
class EControl(Mechanism):
    """Worker i sends c_i = C(eta e_i + v_i - h_i); e_i <- e_i + v_i - h_i - c_i, h_i <- h_i + c_i; h = mean h_i.

    Start: e_i = h_i = 0. Like EF14, the virtual iterate x - step mean e_i takes exact gradient steps; like EF21, there
    is no floor with full gradients.

    Guarantee (derived anew; the paper's step is of the order alpha / L~) with s = sqrt(1 - alpha) and
    q = 1 - max((1 + 5 eta / 2) s, 1 - eta / 3): smooth f: step <= 1 / (L + L~ / q). Under PL: step <= min(1 / (L +
    sqrt(2) L~ / q), q / (2 mu)), and V = f - f* + (step / q) mean (||eta e_i + grad f_i(x) - h_i|| + (3 eta / 2)
    ||e_i||)^2 contracts by 1 - step mu for deterministic compressors (for random ones the norms are those of
    L_2(Omega)). With the paper's eta q is at least (1 - s) / 9. V is read at the next x, as that of `diana`.

    Parameters
    ----------
    compressor : contractive.
    control : eta; None is the paper's alpha / (3 s (1 + s)), but at most 1.

    >>> from laconic.compressors.topk import TopK
    >>> str(EControl(TopK(k=0.05)))
    'econtrol(topk(k=0.05))'
    """

    compressor: Compressor
    control: Annotated[float | None, Interval(0.0, 1.0, open="low")] = None

    name = "econtrol"
    example = "econtrol(topk(k=0.05), control=0.1)"
    lazy = True
    source = Source(
        "Gao, Islamov, Stich",
        2023,
        "EControl: fast distributed optimization with compression and error control",
        "2311.05645",
        "with constants derived anew",
    )

    async def init(self, v: Tensor, link: Link, probe: Probe | None = None) -> tuple[Tensor, Memory]:
        memory = Memory(torch.zeros_like(v), torch.zeros_like(v), v.new_zeros(v.shape[1:]))
        return await self.exchange(v, memory, link)

    async def exchange(
        self, v: Tensor, memory: Memory, link: Link, probe: Probe | None = None
    ) -> tuple[Tensor, Memory]:
        if self.control is None:
            raise ValueError(f"{self} has no control; use settled(), or give control=")
        difference = v.sub_(memory.shift)
        sent = await link.uplink(self.compressor, self.control * memory.error, plus=difference)
        memory.error += difference
        sent.own.add_to(memory.error, scale=-1.0)
        sent.own.add_to(memory.shift)
        sent.mean.add_to(memory.estimate)
        return memory.estimate, memory

    def settled(self, setting: Setting) -> EControl:
        if self.control is not None:
            return self
        alpha = contractive_only(self, self.compressor, setting)
        s = math.sqrt(1.0 - alpha)
        full = 3.0 * s * (1.0 + s)
        return dataclasses.replace(self, control=alpha / full if alpha < full else 1.0)

    def guarantee(self, setting: Setting, estimator: Estimator, step: float | None) -> Guarantee:
        full_gradients_only(self, estimator)
        alpha = contractive_only(self, self.compressor, setting)
        eta = self.settled(setting).control or 1.0
        c = setting.constants
        (spread,) = known(L_tilde=c.L_tilde)
        leans = estimates(L=c.L, L_tilde=c.L_tilde, mu=c.polyak)
        if alpha == 1.0:  # nothing is ever owed, and h_i is the gradient
            return three_point(self.source, setting, spread, 1.0, 0.0, step, leans)
        q = 1.0 - max((1.0 + 2.5 * eta) * math.sqrt(1.0 - alpha), 1.0 - eta / 3.0)
        if q <= 0.0:
            raise NoTheorem(
                f"the theorem of {self} needs (1 + 5 control / 2) sqrt(1 - alpha) < 1; give a smaller control, or an "
                "explicit step"
            )
        return _controlled(self.source, setting, spread, eta, q, step, leans)


def _controlled(
    source: Source, setting: Setting, spread: float, eta: float, q: float, step: float | None, leans: tuple[str, ...]
) -> Guarantee:
    c = setting.constants
    (smooth,) = known(L=c.L)
    if c.polyak is None:
        return Guarantee(1.0 / (smooth + spread / q), source, assumes=("f and f_i smooth",), leans_on=leans)
    mu = float(c.polyak)
    largest = min(1.0 / (smooth + math.sqrt(2.0) * spread / q), q / (2.0 * mu))
    used = largest if step is None else step

    def lyapunov(snapshot: Snapshot) -> Terms:
        memory = snapshot.state.memory
        ahead = snapshot.x - used * snapshot.state.estimate
        owed = eta * memory.error + snapshot.oracles.gradients(ahead) - memory.shift
        norms = norm2(owed).sqrt() + 1.5 * eta * norm2(memory.error).sqrt()
        gaps = snapshot.oracles.values(ahead) - snapshot.solution.value
        return Terms(0.0, gaps + norms.square() * (used / q))

    assumes = ("f and f_i smooth", "f strongly convex (or PL)", "deterministic compressor")
    return Guarantee(largest, source, 1.0 - used * mu, lyapunov, 0.0, None, assumes, leans_on=leans)
