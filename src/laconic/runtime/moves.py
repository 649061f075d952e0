"""Who sends which chunk to whom: schedules of collectives, what they cost, and a small executor that moves real data.

A vector of n numbers is cut into p chunks, as even as possible (`even_sizes`; some are empty where n < p). In one step
of a :class:`Schedule` every node sends at most one message and receives at most one, both at once. The receiver puts
what arrives in the place of what it had, or adds it to that. A step takes as long as its longest message:

    alpha + m beta, and m gamma more where the m numbers are added;

alpha is the latency, beta the seconds per number on the wire, gamma the seconds per addition. A message without
numbers is not sent and costs nothing. This is the model of Chan, Heimlich, Purkayastha, van de Geijn (2007),
"Collective communication: theory, practice, and experience".
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any, TypeVar

import numpy as np
from torch import Tensor

Array = TypeVar("Array", np.ndarray, Tensor)


class Take(Enum):
    """What a receiver does with what arrives."""

    COPY = "in the place of its own"
    ADD = "added to its own"


@dataclass(frozen=True)
class Send:
    """One message: these chunks, from the sending node to the receiving one."""

    source: int
    target: int
    chunks: tuple[int, ...]


@dataclass(frozen=True)
class Step:
    """Messages that travel at the same time, and what all their receivers do with them."""

    take: Take
    sends: tuple[Send, ...]


@dataclass(frozen=True)
class Price:
    """Seconds: `alpha` per message, `beta` per number sent, `gamma` per addition.

    >>> Price(alpha=1.0, beta=0.5)
    Price(alpha=1.0, beta=0.5, gamma=0.0)
    """

    alpha: float
    beta: float
    gamma: float = 0.0


@dataclass(frozen=True)
class Cost:
    """What the longest chain of messages comes to: messages, numbers sent, and additions, one after the other."""

    messages: float = 0.0
    numbers: float = 0.0
    additions: float = 0.0

    def seconds(self, price: Price) -> float:
        return self.messages * price.alpha + self.numbers * price.beta + self.additions * price.gamma

    def __add__(self, other: Cost) -> Cost:
        return Cost(self.messages + other.messages, self.numbers + other.numbers, self.additions + other.additions)


@dataclass(frozen=True)
class Schedule:
    """Steps of a collective on `nodes` nodes, numbered from 0.

    >>> exchange = Schedule(2, (Step(Take.ADD, (Send(0, 1, (0, 1)), Send(1, 0, (0, 1)))),))
    >>> perform(exchange, np.array([[1.0, 2.0], [10.0, 20.0]])).tolist()
    [[11.0, 22.0], [11.0, 22.0]]
    >>> cost(exchange, even_sizes(2, 2))
    Cost(messages=1.0, numbers=2.0, additions=2.0)
    """

    nodes: int
    steps: tuple[Step, ...]

    def __post_init__(self) -> None:
        for place, step in enumerate(self.steps):
            for side in ("source", "target"):
                ((node, often),) = Counter(getattr(send, side) for send in step.sends).most_common(1)
                assert often == 1, f"step {place}: node {node} is the {side} of {often} messages"
                assert all(0 <= getattr(send, side) < self.nodes for send in step.sends), f"step {place}: no such node"

    def then(self, other: Schedule) -> Schedule:
        """This schedule, and another one after it."""
        assert self.nodes == other.nodes
        return Schedule(self.nodes, self.steps + other.steps)

    def mirrored(self, take: Take) -> Schedule:
        """The same messages the other way round, the last step first.

        What spread one node's data over all then brings all data to one node: a broadcast, mirrored and adding, is a
        reduce; a scatter, mirrored and copying, a gather; an all-gather, mirrored and adding, a reduce-scatter.
        """
        steps = (
            Step(take, tuple(Send(send.target, send.source, send.chunks) for send in step.sends))
            for step in reversed(self.steps)
        )
        return Schedule(self.nodes, tuple(steps))


def even_sizes(n: int, p: int) -> np.ndarray:
    """Lengths of n numbers cut into p chunks: the first n mod p of them are one longer. int64, (p,).

    >>> even_sizes(7, 3).tolist(), even_sizes(2, 3).tolist()
    ([3, 2, 2], [1, 1, 0])
    """
    return np.full(p, n // p, dtype=np.int64) + (np.arange(p) < n % p)


def cost(schedule: Schedule, sizes: np.ndarray | Sequence[int]) -> Cost:
    """What a schedule costs whose chunks have these lengths: per step its longest message."""
    total = Cost()
    for step in schedule.steps:
        longest = max(sum(int(sizes[chunk]) for chunk in send.chunks) for send in step.sends)
        if longest > 0:
            total += Cost(1.0, longest, longest if step.take is Take.ADD else 0)
    return total


def volumes(schedule: Schedule, sizes: np.ndarray | Sequence[int]) -> np.ndarray:
    """Numbers that each node sends in all, int64 of shape (p,)."""
    sent = np.zeros(schedule.nodes, dtype=np.int64)
    for step in schedule.steps:
        for send in step.sends:
            sent[send.source] += sum(int(sizes[chunk]) for chunk in send.chunks)
    return sent


def perform(schedule: Schedule, held: Array, sizes: np.ndarray | Sequence[int] | None = None) -> Array:
    """What the nodes hold after a schedule; the argument stays as it is.

    `held[i]` is the vector (n, ...) of node i, a NumPy array or a tensor; it is cut along its first dimension into
    chunks of the given lengths, evenly by default.
    """
    p, n = held.shape[:2]
    sizes = even_sizes(n, p) if sizes is None else sizes
    if p != schedule.nodes or len(sizes) != p or int(sum(sizes)) != n:
        raise ValueError(
            f"perform(held of shape {tuple(held.shape)}, sizes of sum {int(sum(sizes))}) : the schedule is one of "
            f"{schedule.nodes} nodes; give one row per node, and a length for each of as many chunks"
        )
    ends = np.concatenate([[0], np.cumsum(sizes)]).tolist()
    spans = [slice(start, end) for start, end in zip(ends, ends[1:], strict=False)]
    moved: Any = _copy(held)
    for step in schedule.steps:
        # what leaves is put aside first: all messages of a step travel at once, and none carries what another brought
        parcels = [(send, [_copy(moved[send.source, spans[chunk]]) for chunk in send.chunks]) for send in step.sends]
        for send, parcel in parcels:
            for chunk, content in zip(send.chunks, parcel, strict=True):
                if step.take is Take.ADD:
                    moved[send.target, spans[chunk]] += content
                else:
                    moved[send.target, spans[chunk]] = content
    return moved


def _copy(held: Array) -> Array:
    return held.clone() if isinstance(held, Tensor) else held.copy()


def contributions(schedule: Schedule, start: np.ndarray | None = None) -> list[np.ndarray]:
    """Whose numbers each chunk on each node is the sum of, before the first step and after each.

    Arrays (node, chunk, contributor) of how often the contributor's chunk is in the sum. By default every node begins
    with a whole vector of its own.
    """
    p = schedule.nodes
    held = np.repeat(np.eye(p, dtype=np.int64)[:, None, :], p, axis=1) if start is None else start
    found = [held]
    for step in schedule.steps:
        held = perform(Schedule(p, (step,)), held)
        found.append(held)
    return found
