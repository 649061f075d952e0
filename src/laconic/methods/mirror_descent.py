"""Mirror descent for any reference function phi: gradient descent, and statistical preconditioning by the server."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from torch import Tensor

from laconic.core.entry import Source
from laconic.core.link import Link
from laconic.core.method import Method, number
from laconic.core.problem import Oracles
from laconic.core.state import Server
from laconic.core.theory import Guarantee, Setting
from laconic.methods._similarity import Positive, averaged_gradient
from laconic.methods.references import Reference, ServerSimilarity


@dataclass
class State:
    """The server's model."""

    x: Server  # (*shape)


@dataclass(frozen=True)
class MirrorDescent(Method):
    """x goes down, gradients come up, and the server takes x+ = argmin <grad f(x), w> + smoothness D_phi(w, x).

    Guarantee for f that is L_phi-smooth and mu_phi-strongly convex relative to phi: smoothness = L_phi, and
    D_phi(x*, x) contracts by 1 - mu_phi / L_phi. With phi of the server x+ = argmin f_1(w) + <grad f(x) - grad
    f_1(x), w> + (similarity / 2) ||w - x||^2, the rate is 1 - mu / (mu + 2 delta), whatever the condition number of f,
    and what contracts is f(x) - f*, also where the server's step is not exact (see `server`).

    Parameters
    ----------
    reference : phi; `server` (by default), `euclidean`, `quartic`.
    smoothness : L_phi; None is the problem's.

    >>> from laconic.methods.references import Euclidean
    >>> str(MirrorDescent(Euclidean(), smoothness=2.0))
    'mirror_descent(euclidean, smoothness=2.0)'
    """

    reference: Reference = dataclasses.field(default_factory=ServerSimilarity)
    smoothness: Positive = None

    name = "mirror_descent"
    aliases = ("bregman",)
    example = "mirror_descent"
    source = Source(
        "Lu, Freund, Nesterov",
        2016,
        "Relatively smooth convex optimization by first-order methods, and applications",
        "1610.05708",
        "Algorithm 1, Theorem 3.1",
    )

    def settled(self, setting: Setting) -> MirrorDescent:
        phi = self.reference.settled(setting)
        return MirrorDescent(phi, self.smoothness or phi.smoothness(setting))

    def guarantee(self, setting: Setting) -> Guarantee:
        return self.reference.promise(setting, self.smoothness or self.reference.smoothness(setting))

    def suspect(self, setting: Setting) -> str:
        return self.reference.suspect(setting)

    async def init(self, oracles: Oracles, link: Link) -> State:
        return State(oracles.start())

    async def iterate(self, state: State, oracles: Oracles, link: Link) -> State:
        _, _, gradient = await averaged_gradient(state.x, oracles, link)
        return State(ahead(state.x, gradient, self.reference, number(self.smoothness), oracles, link))

    def point(self, state: State) -> Tensor:
        return state.x


def ahead(x: Tensor, gradient: Tensor, phi: Reference, smoothness: float, oracles: Oracles, link: Link) -> Tensor:
    """argmin <gradient, w> + smoothness D_phi(w, x), by the server alone."""
    return link.at_server(
        lambda: phi.back(phi.image(x, oracles) - gradient / smoothness, x, oracles, link),
        like=x,
    )
