"""DiRegINA: cubic-regularised Newton steps with the Hessian of one worker, the server's, or of each worker."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Annotated

from torch import Tensor

from laconic.core.entry import Interval, Source
from laconic.core.link import Link
from laconic.core.method import Method, number
from laconic.core.problem import Constant, Oracles
from laconic.core.state import Server
from laconic.core.theory import Guarantee, Setting, Snapshot, Terms, estimates, known
from laconic.methods._cubic import attempted, cubic_steps
from laconic.methods._similarity import averaged_gradient, doubt

_SOURCE = Source(
    "Daneshmand, Scutari, Dvurechensky, Gasnikov",
    2021,
    "Newton method over networks is fast up to the statistical precision",
    "2102.06780",
)
Positive = Annotated[float | None, Interval(0.0)]


@dataclass
class State:
    """The server's model."""

    x: Server  # (*shape)


def _guarantee(method: DiRegINA | DiRegINAAveraged, delta: Constant | None, setting: Setting, where: str) -> Guarantee:
    """The contraction of the gap where the Hessian is constant. It holds at a similarity of at least delta."""
    c = setting.constants
    mu, least, third = known(mu=c.mu, delta=delta, hessian_lipschitz=c.hessian_lipschitz)
    similarity, bend = number(method.similarity), number(method.hessian_lipschitz)
    promise = Guarantee(
        1.0,
        dataclasses.replace(_SOURCE, where=where),
        1.0 - mu / (mu + similarity + least) if bend == 0.0 else None,
        _gap if bend == 0.0 else None,
        0.0,
        1.0 if bend == 0.0 else None,
        ("f strongly convex", "f_i similar to f", "Lipschitz Hessian of f", "rate derived, not read in the paper"),
        sure=False,
        leans_on=estimates(delta=delta, hessian_lipschitz=c.hessian_lipschitz, mu=c.mu),
    )
    if similarity < least * (1.0 - 1e-12) or bend < third * (1.0 - 1e-12):
        return dataclasses.replace(promise, rate=None, lyapunov=None, gap_factor=None)
    return promise


def _gap(snapshot: Snapshot) -> Terms:
    return Terms(snapshot.gap)


@dataclass(frozen=True)
class DiRegINA(Method):
    """Gradients come up, and the server alone takes x+ = x + s, s = argmin <grad f(x), s> + s'(hess f_1(x) +
    similarity I) s / 2 + (hessian_lipschitz / 6) ||s||^3, by an eigendecomposition. One round, and vectors only.

    Guarantee for f mu-strongly convex, ||hess f_1 - hess f|| <= delta <= similarity and hess f M-Lipschitz: the model
    is above f, so that f never grows, and f(x) - f* shrinks by 1 - t in every iteration, with t = mu / (mu + similarity
    + delta + (2 / 3) M ||x - x*||) (derived here by the step t (x* - x)). On quadratics, where M = 0 and this is mirror
    descent, that is a fixed rate; else it is reached as ||x - x*|| falls: about sqrt(M R / mu) iterations until
    M R <= delta (recalled), and then 1 + 2 delta / mu times the logarithm. f_1 need not be convex.

    Parameters
    ----------
    similarity : tau; None is the problem's delta of f_1.
    hessian_lipschitz : M; None is the problem's. The bounds known of data are often large; smaller ones often work.

    >>> str(DiRegINA(hessian_lipschitz=0.1))
    'diregina(hessian_lipschitz=0.1)'
    """

    similarity: Positive = None
    hessian_lipschitz: Positive = None

    name = "diregina"
    example = "diregina"
    source = dataclasses.replace(_SOURCE, where="Algorithm 1 in a star, one agent")

    def settled(self, setting: Setting) -> DiRegINA:
        c = setting.constants
        return DiRegINA(*_settled(self, c.delta_server, c.hessian_lipschitz))

    def guarantee(self, setting: Setting) -> Guarantee:
        return _guarantee(self, setting.constants.delta_server, setting, "Theorem 1, for the server's step")

    def suspect(self, setting: Setting) -> str:
        return doubt(self.similarity, "delta_server", setting.constants.delta_server)

    async def init(self, oracles: Oracles, link: Link) -> State:
        return State(oracles.start())

    async def iterate(self, state: State, oracles: Oracles, link: Link) -> State:
        x = state.x
        _, _, g = await averaged_gradient(x, oracles, link)

        def move() -> Tensor:
            shift, weight = number(self.similarity), number(self.hessian_lipschitz)
            return cubic_steps(oracles.server.hessians(x), g, shift, weight)[0]

        return State(x + link.at_server(lambda: attempted(move, x, link), like=x))

    def point(self, state: State) -> Tensor:
        return state.x


@dataclass(frozen=True)
class DiRegINAAveraged(Method):
    """Gradients come up, their mean goes down, and x+ = x + mean s_i, where worker i takes s_i = argmin <grad f(x), s>
    + s'(hess f_i(x) + similarity I) s / 2 + (hessian_lipschitz / 6) ||s||^3. Two rounds, and vectors only.

    Guarantee as of `diregina`, with the delta of all workers: every worker's model is above f, and f is convex.

    Parameters
    ----------
    similarity : tau; None is the problem's delta.
    hessian_lipschitz : M; None is the problem's.

    >>> str(DiRegINAAveraged(similarity=0.5))
    'diregina_averaged(similarity=0.5)'
    """

    similarity: Positive = None
    hessian_lipschitz: Positive = None

    name = "diregina_averaged"
    example = "diregina_averaged"
    source = dataclasses.replace(_SOURCE, where="Algorithm 1 in a star")

    def settled(self, setting: Setting) -> DiRegINAAveraged:
        c = setting.constants
        return DiRegINAAveraged(*_settled(self, c.delta, c.hessian_lipschitz))

    def guarantee(self, setting: Setting) -> Guarantee:
        return _guarantee(self, setting.constants.delta, setting, "Theorem 1")

    def suspect(self, setting: Setting) -> str:
        return doubt(self.similarity, "delta", setting.constants.delta)

    async def init(self, oracles: Oracles, link: Link) -> State:
        return State(oracles.start())

    async def iterate(self, state: State, oracles: Oracles, link: Link) -> State:
        held, own, mean = await averaged_gradient(state.x, oracles, link)
        g = await link.broadcast(mean)

        def moves() -> Tensor:
            shift, weight = number(self.similarity), number(self.hessian_lipschitz)
            return cubic_steps(oracles.hessians(held), g, shift, weight)

        sent = await link.uplink(None, attempted(moves, own, link))
        return State(state.x + sent.mean.dense())

    def point(self, state: State) -> Tensor:
        return state.x


def _settled(
    method: DiRegINA | DiRegINAAveraged, delta: Constant | None, third: Constant | None
) -> tuple[float, float]:
    """The similarity and the Lipschitz constant, as given or else the problem's."""
    similarity, bend = method.similarity, method.hessian_lipschitz
    if similarity is None:
        (similarity,) = known(delta=delta)
    if bend is None:
        (bend,) = known(hessian_lipschitz=third)
    return similarity, bend
