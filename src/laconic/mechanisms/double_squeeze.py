"""DoubleSqueeze: error feedback on both sides."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from laconic.compressors.identity import Identity
from laconic.core.compressor import Compressor
from laconic.core.entry import Source
from laconic.core.estimator import Estimator, Probe
from laconic.core.link import Link
from laconic.core.mechanism import Mechanism, Need, contractive_only, full_gradients_only
from laconic.core.state import Server, Worker
from laconic.core.theory import Guarantee, Setting, known
from laconic.mechanisms.ef14 import Owed, convex_only, owing, promise


@dataclass
class Memory:
    """What DoubleSqueeze keeps."""

    error: Worker  # e_i, (local, *shape)
    servers: Server  # E, the server's own error, (*shape)


@dataclass(frozen=True)
class DoubleSqueeze(Mechanism):
    """EF14 up: c_i = C_w(e_i + v_i), e_i <- e_i + v_i - c_i. EF14 down: u = E + mean c_i, g = C_M(u), E <- u - g.

    Everyone holds g and takes the step for itself; the model is never sent. The virtual iterate x - step (mean e_i + E)
    takes exact gradient steps.

    Guarantee (derived anew; the paper's assumes errors of bounded length) for f strongly convex, f_i convex, with
    s = (1 - alpha_M) / alpha_M^2 and K = 48 (1 - alpha_w) (1 + 64 s) / alpha_w^2 + 384 s: step <= min(1 / (4 L),
    1 / sqrt(8 K L L_max)), rate max(1 - step mu / 2, 1 - alpha_w / 4, 1 - alpha_M / 4), up to
    2 K step^3 L sigma*^2. With nothing lost on the way down it is EF14, with EF14's guarantee.

    Parameters
    ----------
    up : the workers' compressor C_w, contractive.
    down : the server's compressor C_M, contractive.

    >>> from laconic.compressors.topk import TopK
    >>> str(DoubleSqueeze(TopK(k=0.1), TopK(k=0.5)))
    'double_squeeze(topk(k=0.1), topk(k=0.5))'
    """

    up: Compressor
    down: Compressor = field(default_factory=Identity)

    name = "double_squeeze"
    example = "double_squeeze(topk(k=0.05), topk(k=0.2))"
    public = True
    needs = frozenset({Need.CONSTANT_STEP})
    instead = "use ef14_inside"
    source = Source(
        "Tang, Yu, Lian, Zhang, Liu",
        2019,
        "DoubleSqueeze: parallel stochastic gradient descent with double-pass error-compensated compression",
        "1905.05957",
        "Algorithm 1; the guarantee derived anew",
    )

    async def init(self, v: Tensor, link: Link, probe: Probe | None = None) -> tuple[Tensor, Memory]:
        return await self.exchange(v, Memory(torch.zeros_like(v), v.new_zeros(v.shape[1:])), link)

    async def exchange(
        self, v: Tensor, memory: Memory, link: Link, probe: Probe | None = None
    ) -> tuple[Tensor, Memory]:
        sent = await link.uplink(self.up, v, plus=memory.error)
        owed = memory.servers + sent.mean.dense()
        estimate = await link.broadcast(owed, self.down)
        memory.error += v
        sent.own.add_to(memory.error, scale=-1.0)
        memory.servers = owed - estimate
        return estimate, memory

    def guarantee(self, setting: Setting, estimator: Estimator, step: float | None) -> Guarantee:
        down = contractive_only(self, self.down, setting)
        if down == 1.0:
            return promise(self, self.up, setting, estimator, step)
        full_gradients_only(self, estimator)
        up = contractive_only(self, self.up, setting)
        convex_only(self, setting)
        c, s = setting.constants, (1.0 - down) / down**2
        smooth, worst = known(L=c.L, L_max=c.L_max)
        weight = 48.0 * (1.0 - up) * (1.0 + 64.0 * s) / up**2 + 384.0 * s
        largest = min(0.25 / smooth, (8.0 * weight * smooth * worst) ** -0.5)

        def owed(used: float) -> Owed:
            errors = 24.0 * smooth * used**3 / up * (1.0 + 64.0 * s)
            return Owed(self.takes_step, used, errors, servers=24.0 * smooth * used**3 / down)

        return owing(self.source, setting, largest, weight, (1.0 - up / 4.0, 1.0 - down / 4.0), step, owed)
