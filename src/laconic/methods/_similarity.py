"""What methods under similarity share: subproblems at f_i, how convex they are, and the gap's contraction."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Protocol

import numpy as np
import torch
from torch import Tensor

from laconic.core.entry import Interval
from laconic.core.flight import together
from laconic.core.link import Link
from laconic.core.problem import Constant, Oracles
from laconic.core.theory import Setting, known
from laconic.methods._inner import minimise_rows

Gradient = Callable[[Tensor, np.ndarray], Tensor]  # of points and their rows
Positive = Annotated[float | None, Interval(0.0, open="low")]
Accuracy = Annotated[float, Interval(0.0, 0.5, open="both")]


@dataclass(frozen=True)
class Near:
    """Subproblems f_i(w) + <slope, w> + (weight / 2) ||w - centre||^2, solved by accelerated gradient descent.

    `smooth` is of the f_i, `convex` of the whole. Where the inner solver stops the gradient is at most accuracy *
    convex * ||w - start||, so w is within accuracy / (1 - accuracy) of the way from the start to the solution.
    """

    weight: float
    smooth: float
    convex: float
    accuracy: float

    def solve(self, gradient: Gradient, slope: Tensor, centre: Tensor, start: Tensor, link: Link) -> Tensor:
        """w (rows, *shape), one row for each f_i, whose gradients `gradient` gives; so are the others."""

        def subproblem(w: Tensor, rows: np.ndarray) -> Tensor:
            if len(rows) == len(slope):
                return gradient(w, rows) + slope + self.weight * (w - centre)
            at = torch.from_numpy(rows)
            return gradient(w, rows) + slope[at] + self.weight * (w - centre[at])

        return minimise_rows(
            subproblem,
            start,
            self.smooth + self.weight,
            self.convex,
            self.accuracy * self.convex,
            remark=link.remark,
        )


def similarity_of(given: float | None, delta: Constant | None, setting: Setting, name: str) -> float:
    """The similarity as given, or else the problem's; next to nothing, but not nothing, where all are alike."""
    if given is not None:
        return given
    (known_,) = known(**{name: delta})
    return max(known_, 1e-9 * float(setting.constants.L))


def modulus(weight: float, delta: Constant | None, setting: Setting) -> float | None:
    """How convex f_i + (weight / 2) ||.||^2 is, for f_i that are within delta of f; None where nothing is known.

    By the least curvature of the f_i, or since their Hessians are at least mu - delta; negative is not convex.
    """
    c = setting.constants
    own = float(c.mu_workers) if c.mu_workers is not None else 0.0 if setting.convex else None
    least = [] if own is None else [own]
    if delta is not None and c.mu is not None:
        least.append(float(c.mu) - float(delta))
    return weight + max(least) if least else None


def convexity_of(given: float | None, weight: float, delta: Constant | None, setting: Setting, method: object) -> float:
    """The modulus as given, or as known. Raises ValueError where nothing makes the subproblems convex."""
    if given is not None:
        return given
    found = modulus(weight, delta, setting)
    if found is not None and found > 0.0:
        return found
    why, what = "nobody knows their least curvature", "give convex, or take a method without a prox"
    if found is not None:
        least = found - weight
        why, what = f"their least curvature is {least:.4g}", f"it must be above {-least:.4g}, which similarity makes it"
    raise ValueError(
        f"{method}: the f_i are not convex ({why}), and a prox of weight {weight:.4g} does not make them so; {what}"
    )


def doubt(similarity: float | None, name: str, delta: Constant | None) -> str:
    """What to say of a similarity below the problem's, should the method diverge."""
    if similarity is None or delta is None or similarity >= float(delta) * (1.0 - 1e-12):
        return ""
    return (
        f"similarity={similarity:.6g} is below this problem's {name} = {float(delta):.6g} ({delta.kind.value}): "
        "give at least that, or leave it out"
    )


def shrinking(similarity: float, delta: float, mu: float, accuracy: float) -> float:
    """The factor of f(x) - f* of one step x+ = argmin f(x) + <grad f(x), w - x> + D_phi(w, x), inexactly solved.

    With phi = f_i + (similarity / 2) ||.||^2 and delta <= similarity, f is below that model A, and A(u) <= f(u) +
    ((similarity + delta) / 2) ||u - x||^2; u = x + a (x* - x) with a = mu / (mu + similarity + delta) gives the factor
    1 - a of the exact step. A point whose gradient of A is at most accuracy * convex * ||w - x|| loses at most the
    share (accuracy / (1 - accuracy))^2 of what the exact one wins.
    """
    lost = (accuracy / (1.0 - accuracy)) ** 2
    return 1.0 - (1.0 - lost) * mu / (mu + similarity + delta)


async def averaged_gradient(x: Tensor, oracles: Oracles, link: Link) -> tuple[Tensor, Tensor, Tensor]:
    """One round: x goes down, gradients come up. x as the workers hold it, their gradients, and the server's mean."""
    held = await link.broadcast(x)
    own = oracles.gradients(held)
    sent = await link.uplink(None, own)
    return held, own, sent.mean.dense()


async def agreed(decision: Tensor, link: Link) -> bool:
    """A decision of the server's (0 or 1, of shape (1,)), which everyone must know to go on: it travels, and counts.

    A process without workers hears nothing, and is shown it off the books.
    """
    _, shown = await together(link.broadcast(decision), link.show(decision))
    return bool(shown > 0.5)


# ---- local problems at every worker ----------------------------------------------------------------------------------


class Local(Protocol):
    """A method whose workers solve f_i(w) + (similarity / 2) ||w - x||^2 with a linear term."""

    @property
    def similarity(self) -> float | None: ...
    @property
    def smooth(self) -> float | None: ...
    @property
    def convex(self) -> float | None: ...
    @property
    def accuracy(self) -> float: ...


def local_near(method: Local, setting: Setting) -> Near:
    """The local problems, with every number of the method's that is open replaced."""
    weight = similarity_of(method.similarity, setting.constants.delta, setting, "delta")
    return local_with(method, weight, setting)


def local_with(method: Local, weight: float, setting: Setting) -> Near:
    """The same with another weight of ||w - x||^2 / 2 than the similarity."""
    c = setting.constants
    convex = convexity_of(method.convex, weight, c.delta, setting, method)
    return Near(weight, method.smooth or float(c.L_max), convex, method.accuracy)


def suspected(method: Local, setting: Setting) -> str:
    """What to say of a similarity below the problem's delta, should the method diverge."""
    return doubt(method.similarity, "delta", setting.constants.delta)


async def average_of_local(
    x: Tensor, near: Near, oracles: Oracles, link: Link, weight: float = 1.0, pull: Tensor | None = None
) -> Tensor:
    """The mean of w_i = argmin f_i(w) - <grad f_i(x) - weight g, w> + (near.weight / 2) ||w - x||^2, g = grad f(x).

    With the server's `pull` added to g. Two rounds: gradients come up in one, g goes down and the w_i come up in the
    other.
    """
    held, own, gradient = await averaged_gradient(x, oracles, link)
    g = await link.broadcast(gradient if pull is None else gradient + pull)
    here = held.expand(own.shape)
    sent = await link.uplink(None, near.solve(oracles.gradients, weight * g - own, here, here, link))
    return sent.mean.dense()
