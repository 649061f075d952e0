"""GradSkip+: GradSkip and ProxSkip with unbiased compressors in the place of their coins, and a regulariser."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from laconic.compressors.bernoulli import Masked
from laconic.compressors.identity import Identity
from laconic.compressors.randk import RandK, SharedRandK
from laconic.core.compressor import Compressor, as_unbiased, informed
from laconic.core.entry import Source, Stepsize
from laconic.core.link import Link
from laconic.core.method import Method, explicit, number, resolve
from laconic.core.problem import Oracles
from laconic.core.rows import norm2
from laconic.core.state import Server, Worker
from laconic.core.theory import Guarantee, NoTheorem, Setting, Snapshot, Terms, estimates, known

BLIND = (Masked, RandK, SharedRandK, Identity)  # they choose coordinates without looking at the vector


@dataclass
class State:
    """Each worker's model and control variate, and the server's model."""

    local: Worker  # x_i, (local, *shape)
    control: Worker  # h_i, (local, *shape)
    x: Server  # every coordinate as of its last communication, (*shape)


@dataclass(frozen=True)
class GradSkipPlus(Method):
    """h^ = g - C'(g - h) / (1 + omega'), g_i = grad f_i(x_i); x^ = x - step (g - h^); x+ = x^ - C(x^ - prox(x^ -
    step (1 + omega) h^)) / (1 + omega); h+ = h^ + (x+ - x^) / (step (1 + omega)), in the space of all (x_1, ..., x_n).

    prox of "all x_i are equal" is the mean, of which only the coordinates that C lets through are sent, up and down:
    C, drawn once for all workers, chooses coordinates without looking, so that nobody needs the others. Where it lets
    none through nothing is said. A regulariser r of the problem joins the prox at the server, with step
    step (1 + omega); it must be separable over coordinates, unless C keeps all or none. C' is each worker's own, and
    sends nothing.

    With C = all_or_nothing(p) and C' = all_or_nothing(q) it is `gradskip` with equal q_i (which computes no gradients
    in vain, as this method does), with C' = identity `proxskip`. The paper's C' may have another omega' for every
    worker.

    Guarantee for mu-strongly convex, L_i-smooth f_i and convex r (recalled): step <= 1 / (L_max (1 + omega (omega + 2)
    omega' / (1 + omega'))), and mean ||x_i - x*||^2 + (step (1 + omega))^2 mean ||h_i - grad f_i(x*)||^2 contracts in
    expectation by 1 - min(step mu, 1 - (1 - 1 / (1 + omega)^2) / (1 + omega')).

    Parameters
    ----------
    sent : C, of what is communicated: all_or_nothing, bernoulli, randk, their shared forms, or identity.
    skipped : C', of what the control variates learn: any unbiased compressor.
    step : None is the theorem's.

    >>> from laconic.compressors.all_or_nothing import AllOrNothing
    >>> str(GradSkipPlus(RandK(k=0.2), AllOrNothing(p=0.9)))
    'gradskip_plus(randk(k=0.2), all_or_nothing(p=0.9))'
    """

    sent: Compressor
    skipped: Compressor
    step: Stepsize = None

    name = "gradskip_plus"
    aliases = ("gradskip+",)
    example = "gradskip_plus(all_or_nothing(p=0.5), all_or_nothing(p=0.9))"
    proximal = True
    source = Source(
        "Maranjyan, Safaryan, Richtarik",
        2022,
        "GradSkip: communication-accelerated local gradient methods with better computational complexity",
        "2210.16402",
        "Algorithm 2, Theorem 4.5, constants recalled",
    )

    def settled(self, setting: Setting) -> GradSkipPlus:
        if not isinstance(self.sent, BLIND):
            raise ValueError(
                f"GradSkipPlus(sent={self.sent}) : the method needs coordinates that are chosen without looking; use "
                "all_or_nothing, bernoulli, randk or identity"
            )
        method = dataclasses.replace(self, skipped=informed(self.skipped, setting))
        method._omegas(setting.d, setting.n)
        return dataclasses.replace(method, step=resolve(self.step, lambda: method.guarantee(setting).step))

    def _omegas(self, d: int, n: int) -> tuple[float, float]:
        """omega and omega'. Raises ValueError where a compressor is not known to be unbiased."""
        found = [as_unbiased(compressor.claim(d, n)) for compressor in (self.sent, self.skipped)]
        if found[0] is None or found[1] is None:
            biased = self.sent if found[0] is None else self.skipped
            raise ValueError(f"{self} needs unbiased compressors and {biased} is not known to be one; use randk")
        return found[0], found[1]

    def guarantee(self, setting: Setting) -> Guarantee:
        c, (omega, skips) = setting.constants, self._omegas(setting.d, setting.n)
        smooth, mu = known(L_max=c.L_max, mu_workers=c.mu_workers)
        if mu <= 0.0:
            raise NoTheorem("the theorem of gradskip_plus needs strongly convex f_i; give an explicit step")
        largest = 1.0 / (smooth * (1.0 + omega * (omega + 2.0) * skips / (1.0 + skips)))
        step = explicit(self.step) or largest

        def lyapunov(snapshot: Snapshot) -> Terms:
            state, x = snapshot.state, snapshot.solution.x
            drift = norm2(state.control - snapshot.oracles.gradients(x))
            return Terms(0.0, norm2(state.local - x) + (step * (1.0 + omega)) ** 2 * drift)

        promise = Guarantee(
            largest,
            self.source,
            1.0 - min(step * mu, 1.0 - (1.0 - 1.0 / (1.0 + omega) ** 2) / (1.0 + skips)),
            lyapunov,
            assumes=("f_i strongly convex and smooth", "regulariser convex"),
            sure=False,
            leans_on=estimates(L_max=c.L_max, mu_workers=c.mu_workers),
        )
        return promise.at(step)

    async def init(self, oracles: Oracles, link: Link) -> State:
        x = oracles.start()
        local = x.expand(oracles.block.size, *x.shape).clone()
        return State(local, torch.zeros_like(local), x)

    async def iterate(self, state: State, oracles: Oracles, link: Link) -> State:
        step, (omega, skips) = number(self.step), self._omegas(oracles.d, link.n)
        gradient = oracles.gradients(state.local)
        packet = link.scope("skipped").compress(self.skipped, gradient - state.control)
        control = gradient - packet.decoded.dense() / (1.0 + skips)
        ahead = state.local - step * (gradient - control)
        through = self._through(state.x, link)
        chosen = through.nonzero()[:, 0]
        if not len(chosen):
            return State(ahead, control, state.x)
        long = step * (1.0 + omega)
        asked = await link.uplink(None, _flat(ahead - long * control)[:, chosen])
        x = self._prox(state.x, asked.mean.dense(), chosen, long, oracles)
        mean = await link.broadcast(x.reshape(-1)[chosen])
        local = ahead.clone()
        part = _flat(ahead)[:, chosen]
        _flat(local)[:, chosen] = part - through[chosen] / (1.0 + omega) * (part - mean)
        return State(local, control + (local - ahead) / long, x)

    def _through(self, x: Tensor, link: Link) -> Tensor:
        """What C makes of each coordinate of a vector of ones, (d,), the same on all parties."""
        keys = link.scope("sent").keys("choice").shared
        ones = torch.ones(1, *x.shape, dtype=x.dtype)
        return self.sent.decode(self.sent.message(ones, keys), tuple(x.shape), x.dtype, keys).dense().reshape(-1)

    def _prox(self, x: Tensor, mean: Tensor, chosen: Tensor, step: float, oracles: Oracles) -> Tensor:
        """The server's model with the chosen coordinates made anew."""
        moved = x.reshape(-1).index_copy(0, chosen, mean).view(x.shape)
        if oracles.regulariser is None:
            return moved
        renewed = oracles.regulariser.prox(moved, step).reshape(-1)[chosen]
        return x.reshape(-1).index_copy(0, chosen, renewed).view(x.shape)

    def point(self, state: State) -> Tensor:
        return state.x


def _flat(v: Tensor) -> Tensor:
    """A view (rows, d)."""
    return v.view(v.shape[0], math.prod(v.shape[1:]))
