"""What variance-reduced methods over workers share: an anchor with everyone's gradients there, and who is asked."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from laconic.core.flight import together
from laconic.core.link import Cohort, Link
from laconic.core.method import Method
from laconic.core.problem import Oracles
from laconic.core.state import Server, Shared, Worker
from laconic.core.theory import NoTheorem, Setting


@dataclass
class Anchor:
    """A point w that everyone holds, each worker's gradient there, and their mean."""

    point: Shared  # w, (*shape)
    own: Worker  # grad f_i(w), (local, *shape)
    gradient: Server  # grad f(w), (*shape)


def unset(x: Tensor, oracles: Oracles) -> Anchor:
    """No anchor yet: x without any gradient. The first iteration makes one."""
    own = torch.zeros(oracles.block.size, *x.shape, dtype=x.dtype)
    return Anchor(x, own, torch.zeros_like(x))


async def renewed(w: Tensor, oracles: Oracles, link: Link) -> Anchor:
    """An anchor at the server's w: it goes down to all workers, and all their gradients come up."""
    held = await link.broadcast(w)
    own = oracles.gradients(held)
    sent = await link.uplink(None, own)
    return Anchor(held, own, sent.mean.dense())


async def estimate(x: Tensor, anchor: Anchor, cohort: int, oracles: Oracles, link: Link) -> Tensor:
    """mean over a random cohort of grad f_i(x) - grad f_i(w), + grad f(w): the cohort alone computes, one gradient."""
    who = link.sample(cohort)
    held = await link.broadcast(x, to=who)
    sent = await link.uplink(None, _moved(held, anchor.own, who, oracles), who)
    g = anchor.gradient.clone()
    sent.mean.add_to(g, scale=link.n / cohort)
    return g


async def renewed_estimate(w: Tensor, x: Tensor, cohort: int, oracles: Oracles, link: Link) -> tuple[Anchor, Tensor]:
    """An anchor at w and the estimate at another point x that leans on it, in one round."""
    who = link.sample(cohort)
    point, held = await together(link.broadcast(w), link.broadcast(x, to=who))
    own = oracles.gradients(point)
    everyone, some = await together(link.uplink(None, own), link.uplink(None, _moved(held, own, who, oracles), who))
    anchor = Anchor(point, own, everyone.mean.dense())
    g = anchor.gradient.clone()
    some.mean.add_to(g, scale=link.n / cohort)
    return anchor, g


def _moved(x: Tensor, own: Tensor, who: Cohort, oracles: Oracles) -> Tensor:
    return oracles.gradients(x, who.rows) - own[torch.from_numpy(who.rows)]


def refuse_cohort(method: Method, cohort: int, setting: Setting) -> None:
    """Raises ValueError where more workers are to take part than there are."""
    if cohort > setting.n:
        raise ValueError(
            f"{type(method).__name__}(cohort={cohort}) : the problem has {setting.n} workers; cohort must not exceed "
            "them"
        )


def needs_convex(method: Method, setting: Setting, instead: str = "give an explicit step") -> None:
    """Raises NoTheorem where some f_i is not convex."""
    if not setting.convex:
        raise NoTheorem(f"the theorem of {method} needs convex f_i; {instead}")


def share(cohort: int, setting: Setting) -> float:
    """The probability of a new anchor with which renewals cost as many messages as all other steps."""
    return min(1.0, cohort / setting.n)
