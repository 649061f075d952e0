"""Collectives: how p nodes bring together, or spread, what each of them has, step by step.

Seven operations on vectors of n numbers, cut into p pieces of which piece j belongs to node j:

    broadcast        one node, the root, has x; then all have it
    scatter          the root has x; then node j has piece j of it
    gather           node j has piece j; then the root has x
    all-gather       node j has piece j; then all have x
    reduce           every node has a vector; then the root has their sum
    reduce-scatter   every node has a vector; then node j has piece j of their sum
    all-reduce       every node has a vector; then all have their sum

They are three pairs of mirror images (broadcast and reduce, scatter and gather, all-gather and reduce-scatter: the same
messages the other way round, added where there was a sum to make), and an all-reduce is a reduce-scatter and then an
all-gather, or a reduce and then a broadcast. Each has forms with few messages (trees, recursive doubling:
ceil(log2 p) steps) and forms in which nodes speak to one neighbour alone (the ring, also called bucket: p - 1 steps).
Every form works for every p >= 1 and every n, p no power of two and n < p included: what would leave the last node is
left out of a tree, and the textbooks' partner i XOR 2^k, which needs p = 2^m, is here i - 2^k mod p, the circulant
form of Bruck, Ho, Kipnis, Upfal, Weathersby (1997), with the same number of steps and numbers.

Costs are counted from the schedules (`moves.cost`); `Collective.formula` is the closed form of Chan, Heimlich,
Purkayastha, van de Geijn (2007), which tests hold the schedules to. Below, lg p is ceil(log2 p).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from laconic.runtime.moves import Cost, Price, Schedule, Send, Step, Take, cost, even_sizes

# ---- trees and doubling: few steps ------------------------------------------------------------------------------


def tree_broadcast(p: int, root: int = 0) -> Schedule:
    """Whoever has x passes it on: after each step twice as many nodes have it.

    A binomial tree: node v, counted from the root, tells v + 4, then v + 2, then v + 1 (for p = 8). The whole vector
    travels in each of the lg p steps, which is right for short vectors.

    >>> [[(send.source, send.target) for send in step.sends] for step in tree_broadcast(4).steps]
    [[(0, 2)], [(0, 1), (2, 3)]]
    """
    return _binomial(p, root, lambda child, span: range(p))


def tree_scatter(p: int, root: int = 0) -> Schedule:
    """A broadcast in which nobody is told more than it and its part of the tree need.

    The root gives the upper half of the pieces to the node in the middle, and both go on with half as many. The root
    sends every piece but its own exactly once: no form can do with less.
    """
    return _binomial(p, root, lambda child, span: range(child, min(child + span, p)))


def _binomial(p: int, root: int, given: Callable[[int, int], range]) -> Schedule:
    """Node v passes `given(v + span, span)`, chunks counted from the root, to v + span; the largest span first."""
    steps = []
    for span in _powers(p)[::-1]:
        sends = tuple(
            Send((v + root) % p, (v + span + root) % p, tuple((c + root) % p for c in given(v + span, span)))
            for v in range(0, p - span, 2 * span)
        )
        steps.append(Step(Take.COPY, sends))
    return Schedule(p, tuple(steps))


def _powers(p: int) -> list[int]:
    """1, 2, 4, ... below p: lg p of them."""
    return [1 << k for k in range(levels(p))]


def levels(p: int) -> int:
    """ceil(log2 p): in how many steps news can reach p nodes if everybody passes it on.

    >>> [levels(p) for p in (1, 2, 3, 4, 5, 8, 9)]
    [0, 1, 2, 2, 3, 3, 4]
    """
    return (p - 1).bit_length()


def tree_reduce(p: int, root: int = 0) -> Schedule:
    """The broadcast mirrored: vectors run down the tree to the root and are added where they meet."""
    return tree_broadcast(p, root).mirrored(Take.ADD)


def tree_gather(p: int, root: int = 0) -> Schedule:
    """The scatter mirrored: each node hands on what it has collected, its own piece and those of its part."""
    return tree_scatter(p, root).mirrored(Take.COPY)


def doubling_all_gather(p: int) -> Schedule:
    """Everybody has one piece, then two, then four: in step k node i sends all that it has to i - 2^k.

    In the last step only what the other one still lacks is sent, so every node sends p - 1 pieces, for any p.
    """
    steps = (
        Step(
            Take.COPY,
            tuple(Send(i, (i - span) % p, tuple((i + j) % p for j in range(min(span, p - span)))) for i in range(p)),
        )
        for span in _powers(p)
    )
    return Schedule(p, tuple(steps))


def halving_reduce_scatter(p: int) -> Schedule:
    """The doubling all-gather mirrored: half of the vector is given away to be added, then half of the rest, ..."""
    return doubling_all_gather(p).mirrored(Take.ADD)


def tree_all_reduce(p: int) -> Schedule:
    """A reduce to node 0 along the tree, and a broadcast from there. The whole vector travels 2 lg p times."""
    return tree_reduce(p).then(tree_broadcast(p))


def rabenseifner_all_reduce(p: int) -> Schedule:
    """A reduce-scatter by halving, and an all-gather by doubling (Rabenseifner 2004).

    As few messages as the tree, as few numbers as the ring. Where p is no power of two the original first folds the
    surplus nodes into others, for two more messages with the whole vector; the circulant form needs none.
    """
    return halving_reduce_scatter(p).then(doubling_all_gather(p))


# ---- the ring: one neighbour ------------------------------------------------------------------------------------


def ring_all_gather(p: int) -> Schedule:
    """Every node passes the piece that came last to its right neighbour; after p - 1 steps all pieces were everywhere.

    In step s = 0, 1, ... node i sends piece i - s to node i + 1 (all modulo p).
    """
    return _ring(p, Take.COPY, 0)


def ring_reduce_scatter(p: int) -> Schedule:
    """Chunks run around the ring, and every node they come to adds its own numbers to them.

    In step s node i sends chunk i - 1 - s to node i + 1. A chunk that starts at node j + 1 has been everywhere when it
    comes to node j, which keeps it.
    """
    return _ring(p, Take.ADD, 1)


def _ring(p: int, take: Take, back: int) -> Schedule:
    steps = (Step(take, tuple(Send(i, (i + 1) % p, ((i - back - s) % p,)) for i in range(p))) for s in range(p - 1))
    return Schedule(p, tuple(steps))


def ring_all_reduce(p: int) -> Schedule:
    """Chunks run around the ring twice: first they are added up, then the sums are handed on.

    In all 2(p - 1) steps every node sends to its right neighbour. It sends every chunk but one in each round,
    2n(p - 1)/p numbers, less than 2n for any number of nodes, and no all-reduce can do with less. The price are the
    many messages.

    >>> import numpy as np
    >>> from laconic.runtime.moves import perform
    >>> perform(ring_all_reduce(3), np.array([[1, 2, 3, 4], [10, 20, 30, 40], [100, 200, 300, 400]]))[1].tolist()
    [111, 222, 333, 444]
    """
    return ring_reduce_scatter(p).then(ring_all_gather(p))


def ring_gather(p: int) -> Schedule:
    """Pieces walk to node 0 along the ring: every node passes its own to the right, then those that came to it.

    The last line carries p - 1 pieces one after the other, so it takes as long as the all-gather that serves everybody.
    """
    steps = (Step(Take.COPY, tuple(Send(i, (i + 1) % p, (i - s,)) for i in range(s + 1, p))) for s in range(p - 1))
    return Schedule(p, tuple(steps))


def ring_broadcast(p: int, root: int = 0) -> Schedule:
    """A scatter down a tree, and an all-gather around the ring: for long vectors.

    Every node helps to spread x: less than 2n numbers on the longest path, where the tree has n lg p.
    """
    return tree_scatter(p, root).then(ring_all_gather(p))


def ring_reduce(p: int, root: int = 0) -> Schedule:
    """A reduce-scatter around the ring, and a gather down a tree: the ring's broadcast mirrored."""
    return ring_reduce_scatter(p).then(tree_gather(p, root))


def star_all_reduce(p: int) -> Schedule:
    """Everybody sends to node 0, which adds and answers, one after the other.

    Node 0 is a worker too; with a server that only serves, p workers are a star of p + 1 nodes. Its port carries all.
    """
    up = tuple(Step(Take.ADD, (Send(i, 0, tuple(range(p))),)) for i in range(1, p))
    down = tuple(Step(Take.COPY, (Send(0, i, tuple(range(p))),)) for i in range(1, p))
    return Schedule(p, up + down)


# ---- what there is, with its price ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Collective:
    """One form of an operation.

    Attributes
    ----------
    operation, form : such as all-reduce, ring.
    build : the schedule on p nodes.
    closed : its cost for p nodes and n numbers in closed form; exact where p divides n.
    formula : the same in words.
    """

    operation: str
    form: str
    build: Callable[[int], Schedule]
    closed: Callable[[int, int], Cost]
    formula: str

    @property
    def name(self) -> str:
        return f"{self.form} {self.operation}"

    def cost(self, p: int, n: int) -> Cost:
        """Counted from the schedule."""
        return cost(self.build(p), even_sizes(n, p))


def _share(p: int, n: int) -> float:
    """(p - 1)/p n: what a node has to hear or say if its own piece is left out."""
    return n * (p - 1) / p


COLLECTIVES = (
    Collective(
        "broadcast", "tree", tree_broadcast, lambda p, n: Cost(levels(p), n * levels(p)), "lg p (α + nβ)"
    ),
    Collective(
        "broadcast", "ring", ring_broadcast, lambda p, n: Cost(levels(p) + p - 1, 2 * _share(p, n)),
        "(lg p + p − 1)α + 2(p−1)/p nβ",
    ),
    Collective(
        "reduce", "tree", tree_reduce, lambda p, n: Cost(levels(p), n * levels(p), n * levels(p)),
        "lg p (α + nβ + nγ)",
    ),
    Collective(
        "reduce", "ring", ring_reduce, lambda p, n: Cost(levels(p) + p - 1, 2 * _share(p, n), _share(p, n)),
        "(lg p + p − 1)α + 2(p−1)/p nβ + (p−1)/p nγ",
    ),
    Collective(
        "scatter", "tree", tree_scatter, lambda p, n: Cost(levels(p), _share(p, n)), "lg p α + (p−1)/p nβ"
    ),
    Collective("gather", "tree", tree_gather, lambda p, n: Cost(levels(p), _share(p, n)), "lg p α + (p−1)/p nβ"),
    Collective("gather", "ring", ring_gather, lambda p, n: Cost(p - 1, _share(p, n)), "(p−1)α + (p−1)/p nβ"),
    Collective(
        "all-gather", "ring", ring_all_gather, lambda p, n: Cost(p - 1, _share(p, n)), "(p−1)α + (p−1)/p nβ"
    ),
    Collective(
        "all-gather", "doubling", doubling_all_gather, lambda p, n: Cost(levels(p), _share(p, n)),
        "lg p α + (p−1)/p nβ",
    ),
    Collective(
        "reduce-scatter", "ring", ring_reduce_scatter, lambda p, n: Cost(p - 1, _share(p, n), _share(p, n)),
        "(p−1)α + (p−1)/p n(β + γ)",
    ),
    Collective(
        "reduce-scatter", "halving", halving_reduce_scatter,
        lambda p, n: Cost(levels(p), _share(p, n), _share(p, n)), "lg p α + (p−1)/p n(β + γ)",
    ),
    Collective(
        "all-reduce", "ring", ring_all_reduce, lambda p, n: Cost(2 * (p - 1), 2 * _share(p, n), _share(p, n)),
        "2(p−1)α + 2(p−1)/p nβ + (p−1)/p nγ",
    ),
    Collective(
        "all-reduce", "rabenseifner", rabenseifner_all_reduce,
        lambda p, n: Cost(2 * levels(p), 2 * _share(p, n), _share(p, n)), "2 lg p α + 2(p−1)/p nβ + (p−1)/p nγ",
    ),
    Collective(
        "all-reduce", "tree", tree_all_reduce,
        lambda p, n: Cost(2 * levels(p), 2 * n * levels(p), n * levels(p)), "lg p (2α + 2nβ + nγ)",
    ),
    Collective(
        "all-reduce", "star", star_all_reduce, lambda p, n: Cost(2 * (p - 1), 2 * n * (p - 1), n * (p - 1)),
        "(p−1)(2α + 2nβ + nγ)",
    ),
)  # fmt: skip


def lower_bound(operation: str, p: int, n: int, price: Price) -> float:
    """Seconds below which no form of an operation can be: the largest of three bounds, each on one of its resources.

    News needs lg p messages to reach everybody or to come from everybody (for a scatter: to leave a root that sends
    one message a step and may let others pass it on). Somebody has to hear or say all but its own piece; in an
    all-reduce as many numbers twice; in a broadcast and a reduce somebody all n. And p vectors are summed by
    (p - 1)n additions, at best spread evenly over the nodes.
    """
    if p == 1 or n == 0:
        return 0.0
    share = _share(p, n)
    ends = float(n - even_sizes(n, p)[0])  # the root keeps its own piece, which may be the longest
    numbers = {
        "broadcast": float(n), "reduce": float(n), "scatter": ends, "gather": ends, "all-gather": share,
        "reduce-scatter": share, "all-reduce": 2 * share,
    }  # fmt: skip
    additions = share if "reduce" in operation else 0.0
    reached = min(n, p) if operation in ("scatter", "gather") else p  # nodes without numbers take no part
    return max(levels(reached) * price.alpha, numbers[operation] * price.beta, additions * price.gamma)
