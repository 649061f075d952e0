"""DiSCO: inexact damped Newton steps, by conjugate gradients that the server's own Hessian preconditions."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor

from laconic.core.entry import Interval, Source
from laconic.core.flight import together
from laconic.core.link import Link
from laconic.core.method import Method, number
from laconic.core.problem import Oracles
from laconic.core.rows import inner, square
from laconic.core.state import Server, Shared
from laconic.core.theory import Guarantee, Setting, estimates, known
from laconic.methods._cubic import attempted, factored, shifted, solved
from laconic.methods._similarity import doubt, similarity_of

FORCING = 0.05  # beta: the Newton equation is solved to ||residual|| <= beta sqrt(mu / L) ||grad f(x)||
MOST = 1000  # products in a Newton step
SHORT = "conjugate gradients stopped short of their accuracy (residual over what is allowed)"
DOWNHILL = "hess f is not positive definite along a direction (minus the curvature)"


@dataclass
class State:
    """The model, the conjugate gradients' vectors, and what the server says next."""

    x: Server  # (*shape)
    said: Server  # what goes down next: x, or a direction u, (*shape)
    fresh: Server  # 1 where that is x, whose gradients are asked for, 0 where products with u are, (1,)
    held: Shared  # the workers' x, (*shape)
    factor: Server  # of hess f_1(x) + rho I, (d, d)
    move: Server  # v, (*shape)
    image: Server  # hess f(x) v, (*shape)
    residual: Server  # r = grad f(x) - hess f(x) v, (*shape)
    turned: Server  # <r, s>, s = (hess f_1(x) + rho I)^{-1} r, ()
    allowed: Server  # what ||r|| is to fall to, ()
    products: Server  # in this Newton step, ()


@dataclass(frozen=True)
class DiSCO(Method):
    """x+ = x - v / (1 + M sqrt(v' hess f(x) v)), where v solves hess f(x) v = grad f(x) to ||r|| <= accuracy
    ||grad f(x)|| by conjugate gradients preconditioned with hess f_1(x) + rho I, which the server factorises.

    An iteration is a round: the server sends x, and gets gradients, or a direction u, and gets products hess f_i(x) u.
    One more number says which. Nobody sends a matrix.

    Guarantee for f mu-strongly convex and ||hess f_1 - hess f|| <= rho: the preconditioned matrix has its eigenvalues
    in [mu / (mu + 2 rho), 1], so a Newton step takes at most sqrt(1 + 2 rho / mu) ln(2 sqrt(L / mu) / accuracy) + 1
    products, about sqrt(rho / mu), and L / mu is only in the logarithm. For self-concordant f (Zhang and Lin) the
    damped steps converge from everywhere: (f(x^0) - f* + ln ln(1 / eps)) Newton steps up to constants (recalled). On
    quadratics grad f(x+) is r itself where the step is not damped, so that each Newton step shrinks the gradient by
    `accuracy` (derived).

    The paper scales f so that it is standard self-concordant (M = 1). Here M is a parameter: `concordance` is 0, a full
    step, where the Hessian is constant, and else 1 as in the paper, whatever the scale of f.

    Parameters
    ----------
    similarity : rho; None is the problem's delta of f_1.
    accuracy : of the Newton equation; None is sqrt(mu / L) / 20.
    concordance : M, with |f'''(x)[v, v, v]| <= 2 M (v' hess f(x) v)^{3/2}.

    >>> str(DiSCO(similarity=0.1))
    'disco(similarity=0.1)'
    """

    similarity: Annotated[float | None, Interval(0.0)] = None
    accuracy: Annotated[float | None, Interval(0.0, 1.0, open="both")] = None
    concordance: Annotated[float | None, Interval(0.0)] = None

    name = "disco"
    example = "disco"
    source = Source(
        "Zhang, Lin",
        2015,
        "DiSCO: distributed optimization for self-concordant empirical loss",
        "1501.00263",
        "Algorithms 1 and 2",
    )

    def settled(self, setting: Setting) -> DiSCO:
        c, similarity, accuracy, concordance = setting.constants, self.similarity, self.accuracy, self.concordance
        similarity = similarity_of(similarity, c.delta_server, setting, "delta_server")
        if accuracy is None:
            smooth, mu = known(L=c.L, mu=c.mu)
            accuracy = FORCING * math.sqrt(min(1.0, mu / smooth))
        if concordance is None:
            concordance = 0.0 if c.hessian_lipschitz is not None and float(c.hessian_lipschitz) == 0.0 else 1.0
        return DiSCO(similarity, accuracy, concordance)

    def guarantee(self, setting: Setting) -> Guarantee:
        c = setting.constants
        known(delta_server=c.delta_server, mu=c.mu)
        return Guarantee(
            1.0,
            self.source,
            assumes=("f strongly convex and self-concordant", "f_1 similar to f", "constants recalled"),
            sure=False,
            leans_on=estimates(delta_server=c.delta_server, mu=c.mu, L=c.L),
        )

    def suspect(self, setting: Setting) -> str:
        return doubt(self.similarity, "delta_server", setting.constants.delta_server)

    async def init(self, oracles: Oracles, link: Link) -> State:
        x = oracles.start()
        nothing, zero = torch.zeros_like(x), x.new_zeros(())
        return State(
            x, x, x.new_ones(1), x, x.new_zeros(oracles.d, oracles.d), nothing, nothing, nothing, zero, zero, zero
        )

    async def iterate(self, state: State, oracles: Oracles, link: Link) -> State:
        said, _, fresh = await together(link.broadcast(state.said), link.broadcast(state.fresh), link.show(state.fresh))
        if bool(fresh > 0.5):
            sent = await link.uplink(None, oracles.gradients(said))
            return self._begun(state, said, sent.mean.dense(), oracles, link)
        sent = await link.uplink(None, oracles.products(state.held, said))
        return self._turned(state, sent.mean.dense(), link)

    def _begun(self, state: State, held: Tensor, g: Tensor, oracles: Oracles, link: Link) -> State:
        """The Newton equation at a new point: v = 0."""

        def factor() -> Tensor:
            preconditioner = shifted(oracles.server.hessians(state.x)[0], number(self.similarity), g.numel())
            return factored(preconditioner, "the preconditioner hess f_1 + similarity I")

        size = link.at_server(lambda: torch.tensor(math.sqrt(square(g)), dtype=g.dtype), like=state.allowed)
        made = link.at_server(lambda: attempted(factor, state.factor, link), like=state.factor)
        s, nothing = solved(made, g), torch.zeros_like(g)
        arrived, turned = size == 0.0, torch.full_like(size, inner(g, s))
        x = torch.where(turned.isfinite(), state.x, torch.nan)
        return State(
            x,
            torch.where(arrived, x, s),  # nothing is left to solve where x has arrived
            link.at_server(lambda: arrived.to(g.dtype).view(1), like=state.fresh),
            held,
            made,
            nothing,
            nothing,
            g,
            turned,
            number(self.accuracy) * size,
            torch.zeros_like(size),
        )

    def _turned(self, state: State, image: Tensor, link: Link) -> State:
        """A step of conjugate gradients along u, whose product is `image`; at the end of them the Newton step."""
        u = state.said
        curvature = inner(u, image)
        if curvature <= 0.0:
            link.remark(DOWNHILL, -curvature)
            curvature = math.nan
        a = float(state.turned) / curvature
        move, of_move, r = state.move + a * u, state.image + a * image, state.residual - a * image
        left, products = math.sqrt(square(r)), state.products + 1.0
        more = left > float(state.allowed) and float(products) < MOST
        if not more:
            if left > float(state.allowed):
                link.remark(SHORT, left / float(state.allowed))
            x = state.x - move / (1.0 + number(self.concordance) * math.sqrt(max(inner(move, of_move), 0.0)))
            said, turned = x, state.turned
        else:
            s = solved(state.factor, r)
            x, turned = state.x, torch.full_like(state.turned, inner(r, s))
            said = s + (turned / state.turned) * u
        fresh = link.at_server(lambda: state.fresh.new_full((1,), float(not more)), like=state.fresh)
        return dataclasses.replace(
            state, x=x, said=said, fresh=fresh, move=move, image=of_move, residual=r, turned=turned, products=products
        )

    def point(self, state: State) -> Tensor:
        return state.x
