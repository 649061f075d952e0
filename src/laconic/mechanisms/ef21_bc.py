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
from laconic.core.state import Server, Shared, Worker
from laconic.core.theory import Guarantee, Setting, estimates, known
from laconic.mechanisms.ef21 import contraction


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

    Guarantee (smooth f): step <= 1 / (L + L~ sqrt(16 r_M + 2 r_w (1 + 8 r_M))), r = beta / theta of a compressor.

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
        "Section on bidirectional compression",
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
        c = setting.constants
        smooth, mean_smooth = known(L=c.L, L_tilde=c.L_tilde)
        inner = 16.0 * beta_m / theta_m + 2.0 * beta_w / theta_w * (1.0 + 8.0 * beta_m / theta_m)
        return Guarantee(
            1.0 / (smooth + mean_smooth * math.sqrt(inner)),
            self.source,
            assumes=("f and f_i smooth",),
            leans_on=estimates(L=c.L, L_tilde=c.L_tilde),
        )
