"""What mechanisms that lend importances share: whom they wrap, and what theory promises of them."""

from __future__ import annotations

import dataclasses
import math
from abc import ABC
from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor

from laconic.compressors.impk import Importance, ReweightedImpK
from laconic.core.compressor import Compressor
from laconic.core.entry import Entry, Source, amount, parameters
from laconic.core.estimator import Estimator
from laconic.core.floats import wide
from laconic.core.link import Link
from laconic.core.mechanism import Mechanism
from laconic.core.theory import Guarantee, NoTheorem, Setting, Terms, estimates, known
from laconic.mechanisms._wrapped import Wrapping, inside
from laconic.mechanisms.direct import Direct
from laconic.mechanisms.domains import Cube, Domain

_SOURCE = Source(
    "Khafizov",
    2025,
    "Adaptive compression in distributed optimization",
    where="slides (in Russian); no paper is known",
)


def _compressors(entry: Entry) -> Iterator[Compressor]:
    """All compressors inside an entry."""
    if isinstance(entry, Compressor):
        yield entry
    for parameter in parameters(type(entry)):
        value = getattr(entry, parameter.name)
        if isinstance(value, Entry):
            yield from _compressors(value)


def flat(v: Tensor) -> Tensor:
    """v (rows, *shape) as (rows, d), in the dtype of its importances."""
    return v.reshape(v.shape[0], math.prod(v.shape[1:])).to(wide(v.dtype))


@dataclass(frozen=True)
class Wrapper(Wrapping, ABC):
    """A mechanism whose compressors are lent importances. What it needs and gives is what the mechanism inside does."""

    domain: Domain = dataclasses.field(default_factory=Cube)

    source = _SOURCE

    def __post_init__(self) -> None:
        super().__post_init__()
        if not any(Importance in compressor.borrows for compressor in _compressors(self.mechanism)):
            raise ValueError(
                f"{type(self).__name__}(mechanism={self.mechanism}) : mechanism must hold a compressor that works with "
                "importances, such as impk or reweighted_impk"
            )

    def guarantee(self, setting: Setting, estimator: Estimator, step: float | None) -> Guarantee:
        inner = self.mechanism
        if isinstance(inner, Direct) and isinstance(inner.compressor, ReweightedImpK):
            return _descent(self, inner.compressor, self.domain, setting, estimator, step)
        return inside(inner.guarantee(setting, estimator, step))


def _descent(
    mechanism: Mechanism,
    compressor: ReweightedImpK,
    domain: Domain,
    setting: Setting,
    estimator: Estimator,
    step: float | None,
) -> Guarantee:
    """Theorem (11) of the slides for any cube: how TopK of w . gradient with low <= w <= high descends."""
    if setting.n != 1 or not estimator.exact:
        raise NoTheorem(f"the theorem of {mechanism} is about one worker with full gradients; give an explicit step")
    if not isinstance(domain, Cube) or domain.low == 0.0:
        raise NoTheorem(
            f"no theorem covers {mechanism}: importances must lie between two positive numbers, as in cube(low=1.0, "
            f"high=2.0), not in {domain}; give an explicit step"
        )
    c, share = setting.constants, amount(compressor.k, setting.d) / setting.d
    smooth, mu = known(L=c.L, mu=c.polyak)
    best = 1.0 / (smooth * domain.high)
    used = best if step is None else step
    descent = used * (1.0 - 0.5 * smooth * used * domain.high)
    promise = Guarantee(
        max(best, used) if used < 2.0 * best else best,  # every step below 2 best is covered; best has the best rate
        _SOURCE,
        1.0 - 2.0 * mu * descent * domain.low**2 / domain.high * share,
        lambda snapshot: Terms(snapshot.gap),
        0.0,
        1.0,
        ("f strongly convex (or PL) and smooth", "one worker", "importances in the cube"),
        leans_on=estimates(L=c.L, mu=c.mu),
    )
    return promise.at(step)


def lending(link: Link, weights: Tensor) -> Link:
    """A link that lends all its workers the same importances."""
    return link.lending(Importance(weights.expand(link.local, -1)))
