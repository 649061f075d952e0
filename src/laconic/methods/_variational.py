"""What methods for operators share: rounds that ask for F at a point, anchors, and what theorems ask of a problem."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from laconic.core.link import Link
from laconic.core.problem import Constants, Oracles
from laconic.core.rows import square
from laconic.core.state import Server, Worker
from laconic.core.theory import NoTheorem, Setting, Snapshot, Terms, known

ALIKE = 1e-5  # of L: workers more alike count as that, for larger steps multiply rounding


async def operator_at(x: Tensor, oracles: Oracles, link: Link) -> Tensor:
    """F(x), by one round of all workers."""
    sent = await link.uplink(None, oracles.gradients(await link.broadcast(x)))
    return sent.mean.dense()


@dataclass
class Anchor:
    """A point where everybody's operator is known: w, F(w), and the F_i(w)."""

    point: Server  # (*shape)
    mean: Server  # (*shape)
    own: Worker  # (local, *shape)


async def anchored(x: Tensor, oracles: Oracles, link: Link) -> Anchor:
    """An anchor at the server's x, by one round of all workers."""
    own = oracles.gradients(await link.broadcast(x))
    sent = await link.uplink(None, own)
    return Anchor(x, sent.mean.dense(), own)


def strongly_monotone(setting: Setting) -> tuple[Constants, float, float]:
    """The constants, and L and mu of F. Raises NoTheorem where F is not known to be strongly monotone."""
    c = setting.operator
    smooth, mu = known(L=c.L, mu=c.mu)
    if mu <= 0.0:
        raise NoTheorem("the theorem needs a strongly monotone operator (mu > 0); give an explicit step")
    return c, smooth, mu


def alike(similarity: float, c: Constants) -> float:
    """The similarity as it is divided by."""
    return max(similarity, ALIKE * float(c.L))


def distance(snapshot: Snapshot) -> Terms:
    """||z - z*||^2."""
    return Terms(square(snapshot.x - snapshot.solution.x))


def gap_factor(setting: Setting) -> float | None:
    """What bounds f - f* by ||z - z*||^2 where the operator is the gradient of f, and nothing is added to f."""
    return None if setting.variational or setting.composite else 0.5 * float(setting.operator.L)
