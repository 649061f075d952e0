"""Reference functions phi: what mirror descent and its accelerated forms measure distances with."""

from __future__ import annotations

import dataclasses
import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from laconic.core.entry import Entry, Source
from laconic.core.link import Link
from laconic.core.method import number
from laconic.core.problem import Oracles
from laconic.core.rows import inner, square
from laconic.core.theory import Guarantee, NoTheorem, Setting, Terms, estimates, known
from laconic.methods._similarity import Accuracy, Near, Positive, convexity_of, doubt, modulus, shrinking, similarity_of

_RELATIVE = Source(
    "Lu, Freund, Nesterov",
    2016,
    "Relatively smooth convex optimization by first-order methods, and applications",
    "1610.05708",
    "Theorem 3.1",
)


class Reference(Entry, ABC):
    """A convex differentiable phi that the server can invert: D_phi(u, x) = phi(u) - phi(x) - <grad phi(x), u - x>.

    f is L_phi-smooth and mu_phi-strongly convex relative to phi where mu_phi D_phi <= D_f <= L_phi D_phi. What takes
    `oracles` is the server's work, by its own copy of f_1 where it needs one.
    """

    kind: ClassVar[str] = "reference"

    def settled(self, setting: Setting) -> Reference:
        """The same phi with every open parameter replaced by a number."""
        return self

    def suspect(self, setting: Setting) -> str:
        """What in its numbers may make a method diverge, or nothing."""
        return ""

    @abstractmethod
    def smoothness(self, setting: Setting) -> float:
        """L_phi. Raises NoTheorem where nothing is known."""

    @abstractmethod
    def convexity(self, setting: Setting) -> float:
        """mu_phi; raises NoTheorem where it is not known to be above 0."""

    @abstractmethod
    def promise(self, setting: Setting, smoothness: float) -> Guarantee:
        """What mirror descent with this phi promises with a step of 1 / smoothness."""

    @abstractmethod
    def image(self, x: Tensor, oracles: Oracles) -> Tensor:
        """grad phi(x), (*shape)."""

    @abstractmethod
    def back(self, image: Tensor, start: Tensor, oracles: Oracles, link: Link) -> Tensor:
        """The x with grad phi(x) = image, (*shape); inner solvers set out from `start`."""

    @abstractmethod
    def divergence(self, u: Tensor, x: Tensor, image: Tensor, oracles: Oracles) -> tuple[float, float]:
        """D_phi(u, x), given grad phi(x), and by how much rounding may have changed it."""


@dataclass(frozen=True)
class Euclidean(Reference):
    """phi(x) = ||x||^2 / 2: mirror descent is gradient descent.

    L_phi = L, mu_phi = mu; ||x - x*||^2 / 2 contracts by 1 - mu / L.

    >>> str(Euclidean())
    'euclidean'
    """

    name = "euclidean"
    example = "euclidean"
    source = _RELATIVE

    def smoothness(self, setting: Setting) -> float:
        (smooth,) = known(L=setting.constants.L)
        return smooth

    def convexity(self, setting: Setting) -> float:
        (mu,) = known(mu=setting.constants.mu)
        return mu

    def promise(self, setting: Setting, smoothness: float) -> Guarantee:
        c = setting.constants
        promise = Guarantee(
            1.0 / self.smoothness(setting),
            _RELATIVE,
            1.0 - self.convexity(setting) / smoothness,
            lambda snapshot: Terms(0.5 * square(snapshot.x - snapshot.solution.x)),
            0.0,
            smoothness,
            ("f strongly convex and smooth",),
            leans_on=estimates(L=c.L, mu=c.mu),
        )
        return promise.at(1.0 / smoothness)

    def image(self, x: Tensor, oracles: Oracles) -> Tensor:
        return x

    def back(self, image: Tensor, start: Tensor, oracles: Oracles, link: Link) -> Tensor:
        return image

    def divergence(self, u: Tensor, x: Tensor, image: Tensor, oracles: Oracles) -> tuple[float, float]:
        return 0.5 * square(u - x), 0.0


@dataclass(frozen=True)
class Quartic(Reference):
    """phi(x) = ||x||^4 / 4 + ||x||^2 / 2, for f that curve more the farther away x is.

    The Hessian is at least I, so L_phi <= L; grad phi is inverted by r^3 + r = ||image||. Mirror descent promises
    f(x_k) - f* <= D_phi(x*, x_0) L / k for convex f, and no linear rate, for mu_phi is nobody's to know.

    >>> str(Quartic())
    'quartic'
    """

    name = "quartic"
    example = "quartic"
    source = _RELATIVE

    def smoothness(self, setting: Setting) -> float:
        (smooth,) = known(L=setting.constants.L)
        return smooth

    def convexity(self, setting: Setting) -> float:
        raise NoTheorem("f is not known to be strongly convex relative to the quartic phi")

    def promise(self, setting: Setting, smoothness: float) -> Guarantee:
        if not setting.convex and setting.constants.mu is None:
            raise NoTheorem("the theorem of mirror descent needs a convex f; give an explicit step")
        assumes, leans = ("f convex and smooth",), estimates(L=setting.constants.L)
        return Guarantee(1.0 / self.smoothness(setting), _RELATIVE, assumes=assumes, leans_on=leans)

    def image(self, x: Tensor, oracles: Oracles) -> Tensor:
        return (square(x) + 1.0) * x

    def back(self, image: Tensor, start: Tensor, oracles: Oracles, link: Link) -> Tensor:
        length = math.sqrt(square(image))
        r = min(length, length ** (1.0 / 3.0))  # above the root, from where Newton's method descends to it
        for _ in range(60):
            ahead = r - (r**3 + r - length) / (3.0 * r * r + 1.0)
            if not ahead < r:
                break
            r = ahead
        return image / (r * r + 1.0)

    def divergence(self, u: Tensor, x: Tensor, image: Tensor, oracles: Oracles) -> tuple[float, float]:
        away, at = square(u - x), square(x)
        along = inner(u - x, x)
        # ||u||^2 = at + 2 along + away, put into the fourth powers
        return 0.5 * away + 0.25 * (2.0 * along + away) ** 2 + 0.5 * at * away, 0.0


@dataclass(frozen=True)
class ServerSimilarity(Reference):
    """phi = f_1 + (similarity / 2) ||.||^2 with f_1 the server's own copy of worker 0's function.

    Where the Hessians of f_1 and f are within delta <= similarity of each other, L_phi = 1 and mu_phi = mu / (mu +
    similarity + delta): f_1 need not be convex, for its Hessian plus delta is at least that of f. The server inverts
    grad phi by accelerated gradient descent, to a relative accuracy.

    Guarantee of mirror descent with L_phi = 1: f(x) - f* contracts by 1 - (1 - lost) mu / (mu + similarity + delta),
    lost = (accuracy / (1 - accuracy))^2 (derived here).

    Parameters
    ----------
    similarity : None is the problem's delta_server. Less may diverge; more only slows down.
    smooth : smoothness of f_1, for the inner solver; None is the problem's L_1.
    convex : strong convexity of phi, for the inner solver; None is what the constants say.
    accuracy : the inner solver stops where its gradient is at most this times convex times the way it went.

    >>> str(ServerSimilarity(similarity=0.5))
    'server(similarity=0.5)'
    """

    similarity: Positive = None
    smooth: Positive = None
    convex: Positive = None
    accuracy: Accuracy = 0.01

    name = "server"
    example = "server"
    source = Source(
        "Hendrikx, Xiao, Bubeck, Bach, Massoulie",
        2020,
        "Statistically preconditioned accelerated gradient method for distributed optimization",
        "2002.10726",
    )

    def settled(self, setting: Setting) -> ServerSimilarity:
        c = setting.constants
        similarity = similarity_of(self.similarity, c.delta_server, setting, "delta_server")
        return dataclasses.replace(
            self,
            similarity=similarity,
            smooth=self.smooth or c.L_workers[0],
            convex=convexity_of(self.convex, similarity, c.delta_server, setting, self),
        )

    def suspect(self, setting: Setting) -> str:
        return doubt(self.similarity, "delta_server", setting.constants.delta_server)

    def smoothness(self, setting: Setting) -> float:
        return 1.0

    def convexity(self, setting: Setting) -> float:
        c = setting.constants
        mu, delta = known(mu=c.mu, delta_server=c.delta_server)
        return mu / (mu + number(self.settled(setting).similarity) + delta)

    def promise(self, setting: Setting, smoothness: float) -> Guarantee:
        c, phi = setting.constants, self.settled(setting)
        mu, delta = known(mu=c.mu, delta_server=c.delta_server)
        similarity = number(phi.similarity)
        promise = Guarantee(
            1.0,
            _RELATIVE,
            shrinking(similarity, delta, mu, self.accuracy),
            lambda snapshot: Terms(snapshot.gap),
            0.0,
            1.0,
            ("f strongly convex", "f - f_1 smooth, in both directions"),
            leans_on=estimates(mu=c.mu, delta_server=c.delta_server),
        )
        convex = modulus(similarity, c.delta_server, setting)
        sound = convex is not None and number(phi.convex) <= convex * (1.0 + 1e-12)
        if sound and similarity >= delta * (1.0 - 1e-12) and abs(smoothness - 1.0) <= 1e-12:
            return promise
        return dataclasses.replace(promise, rate=None, lyapunov=None, gap_factor=None)

    def image(self, x: Tensor, oracles: Oracles) -> Tensor:
        return oracles.server.gradients(x)[0] + number(self.similarity) * x

    def back(self, image: Tensor, start: Tensor, oracles: Oracles, link: Link) -> Tensor:
        weight, server = number(self.similarity), oracles.server
        near = Near(weight, number(self.smooth), number(self.convex), self.accuracy)
        slope = (weight * start - image)[None]
        return near.solve(lambda w, rows: server.gradients(w[0]), slope, start[None], start[None], link)[0]

    def divergence(self, u: Tensor, x: Tensor, image: Tensor, oracles: Oracles) -> tuple[float, float]:
        server, weight, way = oracles.server, number(self.similarity), u - x
        above, below = float(server.values(u)), float(server.values(x))
        straight = above - below - inner(image - weight * x, way)
        rounding = 8.0 * torch.finfo(x.dtype).eps * (abs(above) + abs(below))
        return straight + 0.5 * weight * square(way), rounding
