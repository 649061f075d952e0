"""Direct compression: no memory."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from laconic.compressors.identity import Identity
from laconic.core.compressor import Compressor, MatrixUnbiased, as_contractive, as_joint
from laconic.core.entry import Source
from laconic.core.estimator import Estimator, Probe
from laconic.core.link import Link
from laconic.core.mechanism import Mechanism, full_gradients_only
from laconic.core.rows import square
from laconic.core.theory import Guarantee, NoTheorem, Setting, Snapshot, Terms, estimates, known

_SOURCE = Source(
    "Khirirat, Feyzmahdavian, Johansson",
    2018,
    "Distributed learning with compressed gradients",
    "1806.06573",
    "Theorem 1, with constants derived anew for jointly drawn compressors",
)


@dataclass(frozen=True)
class Direct(Mechanism):
    """Every worker sends C_i(v_i) and the estimate is their mean (DCGD, QGD; with the identity, gradient descent).

    Guarantee for unbiased compressors with joint constants A, B (A = omega / n, B = 0 when independent), f
    mu-strongly convex and f_i convex and L_i-smooth: for step <= 1 / (max(1 - B, 0) L + 2 A L_max),
    E||x_k - x*||^2 <= (1 - step mu)^k ||x_0 - x*||^2 + 2 step A sigma*^2 / mu, sigma*^2 = mean ||grad f_i(x*)||^2.
    With a regulariser (derived anew, b = max(-B, 0)): step <= 1 / ((1 + 2 b) L + 2 A L_max), and A + b in the plateau.
    A compressor that knows smoothness matrices (DCGD+) has its expected smoothness / n in place of A L_max (Safaryan et
    al.; derived), and the same bound on the plateau. One worker with a contractive compressor: step <= 1 / L and
    f - f* contracts by 1 - step mu alpha. Several workers with a biased compressor have no theorem: they may diverge.

    Parameters
    ----------
    compressor : of the vectors.

    >>> from laconic.compressors.topk import TopK
    >>> str(Direct(TopK(k=1)))
    'direct(topk(k=1))'
    """

    compressor: Compressor = field(default_factory=Identity)

    name = "direct"
    aliases = ("dcgd", "qgd")
    example = "direct(natural)"
    lazy = True
    proximal = True
    source = _SOURCE

    async def init(self, v: Tensor, link: Link, probe: Probe | None = None) -> tuple[Tensor, Any]:
        return await self.exchange(v, None, link)

    async def exchange(self, v: Tensor, memory: Any, link: Link, probe: Probe | None = None) -> tuple[Tensor, Any]:
        sent = await link.uplink(self.compressor, v)
        return sent.mean.dense(), memory

    def guarantee(self, setting: Setting, estimator: Estimator, step: float | None) -> Guarantee:
        full_gradients_only(self, estimator)
        claim = self.compressor.claim(setting.d, setting.n)
        joint, c = as_joint(claim, setting.n), setting.constants
        if joint is not None and joint.omega == 0.0:
            return _plain(setting, step)
        if joint is not None:
            if not setting.convex:
                raise NoTheorem(f"the theorem of {self} needs convex f_i; give an explicit step")
            smooth, worst, mu = known(L=c.L, L_max=c.L_max, mu=c.mu)
            share, noise = max(1.0 - joint.B, 0.0), joint.A
            if setting.composite:  # grad f(x*) is not 0: B, which is about ||grad f(x)||^2, helps nothing, and may hurt
                share, noise = 1.0 + 2.0 * max(-joint.B, 0.0), joint.A + max(-joint.B, 0.0)
            level = claim.expected / setting.n if isinstance(claim, MatrixUnbiased) else joint.A * worst
            largest = 1.0 / (share * smooth + 2.0 * level)
            used = largest if step is None else step
            sigma = float(c.sigma_star) if c.sigma_star is not None else float("nan")
            plateau = 2.0 * used * noise * sigma**2 / mu if noise > 0.0 else 0.0
            return Guarantee(
                largest,
                _SOURCE,
                1.0 - used * mu,
                _distance,
                plateau,
                0.5 * smooth,
                ("f strongly convex", "f_i convex and smooth", "unbiased compressor"),
                leans_on=estimates(L=c.L, L_max=c.L_max, mu=c.mu),
            )
        alpha = as_contractive(claim)
        if setting.n == 1 and alpha is not None and not setting.composite:
            smooth, mu = known(L=c.L, mu=c.polyak)
            used = 1.0 / smooth if step is None else step
            where = Source(
                "Beznosikov, Horvath, Richtarik, Safaryan",
                2020,
                "On biased compression for distributed learning",
                "2002.12410",
            )
            return Guarantee(
                1.0 / smooth,
                where,
                1.0 - used * mu * alpha,
                _gap,
                0.0,
                1.0,
                ("f strongly convex (or PL) and smooth", "one worker", "contractive compressor"),
                leans_on=estimates(L=c.L, mu=c.mu),
            )
        raise NoTheorem(
            f"no theorem covers {self} with {setting.n} workers: {self.compressor} is biased, and averaging biased "
            "messages without error feedback may diverge; give an explicit step, or use ef21 or ef14"
        )


def _plain(setting: Setting, step: float | None) -> Guarantee:
    """Gradient descent, from the textbook: for step <= 2 / (L + mu) every step shrinks ||x - x*|| by 1 - step mu."""
    c = setting.constants
    (smooth,) = known(L=c.L)
    textbook = Source("Nesterov", 2004, "Introductory lectures on convex optimization", where="Theorem 2.1.15")
    if c.mu is None:
        return Guarantee(1.0 / smooth, textbook, assumes=("f smooth",), leans_on=estimates(L=c.L))
    used = 1.0 / smooth if step is None else step
    return Guarantee(
        1.0 / smooth,
        textbook,
        (1.0 - used * float(c.mu)) ** 2,
        _distance,
        0.0,
        0.5 * smooth,
        ("f strongly convex and smooth",),
        tight=True,
        leans_on=estimates(L=c.L, mu=c.mu),
    )


def _distance(snapshot: Snapshot) -> Terms:
    return Terms(square(snapshot.x - snapshot.solution.x))


def _gap(snapshot: Snapshot) -> Terms:
    return Terms(snapshot.gap)
