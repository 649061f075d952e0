"""EF21-BC: EF21 in both directions."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from torch import Tensor

from laconic.compressors.identity import Identity
from laconic.core.compressor import Compressor
from laconic.core.entry import Source
from laconic.core.estimator import Estimator, Probe
from laconic.core.link import Link
from laconic.core.mechanism import Mechanism, full_gradients_only
from laconic.core.rows import square
from laconic.core.state import Server, Shared, Worker
from laconic.core.theory import Guarantee, Setting, Snapshot, Terms, estimates, known
from laconic.mechanisms.ef21 import contraction, shift_error


@dataclass
class Memory:
    """What EF21-BC keeps."""

    shift: Worker  # g~_i, (local, *shape)
    mean: Server  # g~ = mean g~_i, (*shape)
    estimate: Shared  # g, which everyone holds, (*shape)


@dataclass(frozen=True)
class EF21BC(Mechanism):
    """EF21 up, and down a compressed difference to the public estimate: b = C_M(g~ - g), g <- g + b on every party.

    The model itself is never sent: every party takes the step for itself. Start: g~_i = C_w(v_i), and g = g~ is sent
    once at full width.

    Guarantee with r = beta / theta of a compressor. Smooth f: step <= 1 / (L + L~ sqrt(16 r_M + 2 r_w (1 + 8 r_M))).
    Under PL (derived anew): step <= min(1 / (L + L~ sqrt(32 r_M + 4 r_w (1 + 16 r_M))), theta_w / (2 mu),
    theta_M / (2 mu)), and V = f - f* + (2 step / theta_M) ||g - g~||^2 + (2 step (1 + 16 r_M) / theta_w) mean ||g~_i -
    grad f_i(x)||^2 contracts in expectation by 1 - step mu.

    Parameters
    ----------
    up : the workers' compressor C_w, contractive.
    down : the server's compressor C_M, contractive.

    >>> from laconic.compressors.topk import TopK
    >>> str(EF21BC(TopK(k=0.1), TopK(k=0.5)))
    'ef21_bc(topk(k=0.1), topk(k=0.5))'
    """

    up: Compressor
    down: Compressor = field(default_factory=Identity)

    name = "ef21_bc"
    example = "ef21_bc(topk(k=0.05), topk(k=0.2))"
    public = True
    source = Source(
        "Fatkhullin, Sokolov, Gorbunov, Li, Richtarik",
        2021,
        "EF21 with bells & whistles: practical algorithmic extensions of modern error feedback",
        "2110.03294",
        "Section on bidirectional compression; the rate under PL derived anew",
    )

    async def init(self, v: Tensor, link: Link, probe: Probe | None = None) -> tuple[Tensor, Memory]:
        sent = await link.uplink(self.up, v)
        mean = sent.mean.dense()
        memory = Memory(shift=sent.own.dense(), mean=mean, estimate=await link.broadcast(mean))
        return memory.estimate, memory

    async def exchange(
        self, v: Tensor, memory: Memory, link: Link, probe: Probe | None = None
    ) -> tuple[Tensor, Memory]:
        sent = await link.uplink(self.up, v, minus=memory.shift)
        mean = memory.mean + sent.mean.dense()
        change = await link.broadcast(mean - memory.estimate, self.down)
        sent.own.add_to(memory.shift)
        memory.mean = mean
        memory.estimate += change
        return memory.estimate, memory

    def guarantee(self, setting: Setting, estimator: Estimator, step: float | None) -> Guarantee:
        full_gradients_only(self, estimator)
        theta_w, beta_w = contraction(self, self.up, setting)
        theta_m, beta_m = contraction(self, self.down, setting)
        c, r_w, r_m = setting.constants, beta_w / theta_w, beta_m / theta_m
        smooth, spread = known(L=c.L, L_tilde=c.L_tilde)
        leans = estimates(L=c.L, L_tilde=c.L_tilde, mu=c.polyak)
        if c.polyak is None:
            largest = 1.0 / (smooth + spread * math.sqrt(16.0 * r_m + 2.0 * r_w * (1.0 + 8.0 * r_m)))
            return Guarantee(largest, self.source, assumes=("f and f_i smooth",), leans_on=leans)
        mu = float(c.polyak)
        inner = 32.0 * r_m + 4.0 * r_w * (1.0 + 16.0 * r_m)
        largest = min(1.0 / (smooth + spread * math.sqrt(inner)), min(theta_w, theta_m) / (2.0 * mu))
        used = largest if step is None else step

        def lyapunov(snapshot: Snapshot) -> Terms:
            memory = snapshot.state.memory
            behind = 2.0 * used / theta_m * square(memory.estimate - memory.mean)
            return Terms(snapshot.gap + behind, shift_error(snapshot) * (2.0 * used * (1.0 + 16.0 * r_m) / theta_w))

        assumes = ("f and f_i smooth", "f strongly convex (or PL)")
        return Guarantee(largest, self.source, 1.0 - used * mu, lyapunov, 0.0, 1.0, assumes, leans_on=leans)
