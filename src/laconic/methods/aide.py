"""AIDE: InexactDANE accelerated by Catalyst; and accelerated SONATA, the same shape with other numbers."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Annotated

from laconic.core.entry import Count, Interval, Source
from laconic.core.method import number
from laconic.core.theory import Guarantee, NoTheorem, Setting, known
from laconic.methods._catalyst import Catalyst, Numbers, nesterovs, quadratics_only
from laconic.methods._similarity import Accuracy, Near, Positive, local_with, similarity_of, suspected


@dataclass(frozen=True)
class AIDE(Catalyst):
    """Steps of InexactDANE without a prox of its own on f + (attraction / 2) ||. - y||^2; after every `steps` of them
    y+ = x+ + m (x+ - x), m = (1 - sqrt(q)) / (1 + sqrt(q)), q = mu / (mu + attraction), x where y last moved.

    Guarantee: none that is worked out here; the paper's is of the order sqrt(delta / mu) rounds, times logarithms, for
    quadratics. With attraction = 2 delta each inner step on a quadratic at least halves its error (derived here).
    attraction = 0 is InexactDANE with similarity = 0.

    Parameters
    ----------
    similarity : delta, of which `attraction` is made; None is the problem's.
    attraction : the paper's tau; None is 2 similarity, which is safe. One half of it is often faster.
    mu : strong convexity of f; None is the problem's.
    steps : inner steps until y moves.
    smooth, convex, accuracy : of the inner solver, as of `dane`; convex of the local problems with the attraction.

    >>> str(AIDE(steps=2))
    'aide(steps=2)'
    """

    similarity: Annotated[float | None, Interval(0.0)] = None
    attraction: Annotated[float | None, Interval(0.0)] = None
    mu: Positive = None
    steps: Annotated[int, Count(1)] = 1
    smooth: Positive = None
    convex: Positive = None
    accuracy: Accuracy = 0.1

    name = "aide"
    example = "aide"
    source = Source(
        "Reddi, Konecny, Richtarik, Poczos, Smola",
        2016,
        "AIDE: fast and communication efficient distributed optimization",
        "1608.06879",
    )

    def settled(self, setting: Setting) -> AIDE:
        c = setting.constants
        similarity = similarity_of(self.similarity, c.delta, setting, "delta")
        attraction = 2.0 * similarity if self.attraction is None else self.attraction
        mu = self.mu if self.mu is not None else known(mu=c.mu)[0]
        near = local_with(self, attraction, setting)
        return dataclasses.replace(
            self, similarity=similarity, attraction=attraction, mu=mu, smooth=near.smooth, convex=near.convex
        )

    def guarantee(self, setting: Setting) -> Guarantee:
        return quadratics_only(self, setting)

    def suspect(self, setting: Setting) -> str:
        return suspected(self, setting)

    def numbers(self) -> Numbers:
        attraction = number(self.attraction)
        near = Near(attraction, number(self.smooth), number(self.convex), self.accuracy)
        return Numbers(near, attraction, self.steps, nesterovs(number(self.mu), attraction))


@dataclass(frozen=True)
class AcceleratedSONATA(Catalyst):
    """Steps of SONATA-F on f + (attraction / 2) ||. - y||^2 with attraction = similarity - mu; after every `steps` of
    them y+ = x+ + m (x+ - x), m = (1 - a) / (1 + a), a = sqrt(mu / similarity), x where y last moved.

    Guarantee: none that is worked out here; the paper's is of the order sqrt(similarity / mu) log(similarity / mu)
    rounds, on any network (read in the authors' program).

    Parameters
    ----------
    similarity : the paper's beta; None is the problem's delta.
    mu : strong convexity of f; None is the problem's.
    steps : the paper's T, inner steps until y moves; None is log(similarity / mu), rounded up, at least 1.
    smooth, convex, accuracy : of the inner solver, as of `dane`; convex of the local problems with the attraction.

    >>> str(AcceleratedSONATA(steps=3))
    'acc_sonata(steps=3)'
    """

    similarity: Positive = None
    mu: Positive = None
    steps: Annotated[int | None, Count(1)] = None
    smooth: Positive = None
    convex: Positive = None
    accuracy: Accuracy = 0.1

    name = "acc_sonata"
    example = "acc_sonata"
    source = Source(
        "Tian, Scutari, Cao, Gasnikov",
        2021,
        "Acceleration in distributed optimization under similarity",
        "2110.12347",
    )

    def settled(self, setting: Setting) -> AcceleratedSONATA:
        mu = self.mu if self.mu is not None else known(mu=setting.constants.mu)[0]
        similarity = similarity_of(self.similarity, setting.constants.delta, setting, "delta")
        near = local_with(self, similarity + max(0.0, similarity - mu), setting)
        steps = self.steps or max(1, math.ceil(math.log(similarity / mu)))
        return dataclasses.replace(
            self, similarity=similarity, mu=mu, steps=steps, smooth=near.smooth, convex=near.convex
        )

    def guarantee(self, setting: Setting) -> Guarantee:
        raise NoTheorem(f"the theorem of {self.name} is worked out for no rate per iteration; it is run without one")

    def suspect(self, setting: Setting) -> str:
        return suspected(self, setting)

    def numbers(self) -> Numbers:
        similarity, mu = number(self.similarity), number(self.mu)
        attraction = max(0.0, similarity - mu)
        near = Near(similarity + attraction, number(self.smooth), number(self.convex), self.accuracy)
        return Numbers(near, attraction, self.steps or 1, nesterovs(mu, attraction))
