"""What collectives of messages of different lengths cost, by arithmetic: the schedules' costs without the schedules.

A round of thousands of workers is priced too often to write a schedule down for it. Tests hold these costs, in messages
and bytes one after the other, to those counted from the schedules of `collectives`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import numpy as np

from laconic.runtime.moves import Cost, even_sizes


class Form(ABC):
    """One form of the collectives that a round consists of. `sizes` are bytes per node, int64 of shape (p,)."""

    @abstractmethod
    def gather(self, sizes: np.ndarray) -> Cost:
        """Each node's message to node 0, which keeps its own."""

    @abstractmethod
    def all_gather(self, sizes: np.ndarray) -> Cost:
        """Each node's message to all."""

    @abstractmethod
    def broadcast(self, sizes: np.ndarray) -> Cost:
        """Node 0's message to all; each node needs only the beginning of it, as long as its entry says."""

    @abstractmethod
    def all_reduce(self, p: int, size: int) -> Cost:
        """The sum of a vector of each of the p nodes, to all."""


def _steps(longest: np.ndarray) -> Cost:
    """Steps whose longest messages have these bytes; an empty one takes no time."""
    return Cost(float(np.count_nonzero(longest)), float(longest.sum()))


@dataclass(frozen=True)
class Ring(Form):
    """Every node speaks to the next: `ring_gather`, `ring_all_gather`, `ring_broadcast`, `ring_all_reduce`.

    A message goes through all nodes on its way, so a broadcast serves all at the price of the longest part that any of
    them needs.
    """

    def gather(self, sizes: np.ndarray) -> Cost:
        return _steps(np.maximum.accumulate(sizes[1:]))  # the message of node 1 has the longest way

    def all_gather(self, sizes: np.ndarray) -> Cost:
        return _steps(np.full(len(sizes) - 1, sizes.max(initial=0)))

    def broadcast(self, sizes: np.ndarray) -> Cost:
        pieces = even_sizes(int(sizes[1:].max(initial=0)), len(sizes))
        return Tree().gather(pieces) + self.all_gather(pieces)  # a scatter costs what its mirror image does

    def all_reduce(self, p: int, size: int) -> Cost:
        half = self.all_gather(even_sizes(size, p))
        return half + half


@dataclass(frozen=True)
class Tree(Form):
    """As few steps as can be: `tree_gather`, `doubling_all_gather`, `tree_broadcast`, `rabenseifner_all_reduce`.

    A branch of the tree in which nobody speaks or listens takes no part.
    """

    def gather(self, sizes: np.ndarray) -> Cost:
        return self._up_the_tree(sizes, np.add)

    def broadcast(self, sizes: np.ndarray) -> Cost:
        return self._up_the_tree(sizes, np.maximum)

    @staticmethod
    def _up_the_tree(sizes: np.ndarray, join: np.ufunc) -> Cost:
        """Neighbours are joined, then pairs of them, then fours; the right one of two has its message on the line."""
        levels = (len(sizes) - 1).bit_length()
        held = np.zeros(1 << levels, dtype=np.int64)
        held[: len(sizes)] = sizes
        longest = np.zeros(levels, dtype=np.int64)
        for level in range(levels):
            longest[level] = held[1::2].max()
            held = join(held[::2], held[1::2])
        return _steps(longest)

    def all_gather(self, sizes: np.ndarray) -> Cost:
        p = len(sizes)
        ends = np.concatenate([[0], np.cumsum(np.concatenate([sizes, sizes]))])
        spans = [min(1 << k, p - (1 << k)) for k in range((p - 1).bit_length())]
        # node i sends what it has collected, the messages of i, i + 1, ..., i + span - 1
        return _steps(np.array([(ends[span : span + p] - ends[:p]).max() for span in spans], dtype=np.int64))

    def all_reduce(self, p: int, size: int) -> Cost:
        half = self.all_gather(even_sizes(size, p))
        return half + half


class Placement(ABC):
    """Where the server's work is done, and so what a flight's messages have to do. Bytes per worker, (n,)."""

    form: Form

    @abstractmethod
    def up(self, sizes: np.ndarray) -> Cost:
        """What workers tell the server."""

    @abstractmethod
    def down(self, sizes: np.ndarray) -> Cost:
        """What the server tells workers."""


@dataclass(frozen=True)
class Hosted(Placement):
    """Worker 0 is the server as well: messages are gathered there, and what it says is broadcast from there."""

    form: Form

    def up(self, sizes: np.ndarray) -> Cost:
        return self.form.gather(sizes)

    def down(self, sizes: np.ndarray) -> Cost:
        return self.form.broadcast(sizes)


@dataclass(frozen=True)
class Replicated(Placement):
    """Every worker gathers all messages and does the server's work itself: what it would say needs no telling."""

    form: Form

    def up(self, sizes: np.ndarray) -> Cost:
        return self.form.all_gather(sizes)

    def down(self, sizes: np.ndarray) -> Cost:
        return Cost()


PLACEMENTS: dict[str, Placement] = {  # what may follow rate and latency in the text of a network
    "ring": Hosted(Ring()),
    "tree": Hosted(Tree()),
    "ring,replicated": Replicated(Ring()),
    "tree,replicated": Replicated(Tree()),
}
