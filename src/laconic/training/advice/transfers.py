"""Transfers: the collectives that gloo performs, and what each comes to in messages and bytes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

from laconic.runtime.collectives import COLLECTIVES
from laconic.runtime.moves import Cost

_FORMS = {form.name: form for form in COLLECTIVES}


@dataclass(frozen=True)
class Transfer(ABC):
    """One collective among p processes, for which each process hands in `nbytes` bytes.

    Gloo's all-reduce and all-gather run around a ring, and its broadcast down a binomial tree; the all-to-all is an
    exchange of every process with every other one. Costs are those of the longest chain of messages.
    """

    nbytes: int
    name: ClassVar[str]

    @abstractmethod
    def cost(self, p: int) -> Cost:
        """Messages, and bytes in the place of numbers, that follow one after the other."""


class AllReduce(Transfer):
    """2(p - 1) messages, 2(p - 1)/p of the bytes.

    >>> AllReduce(1000).cost(2).numbers
    1000.0
    """

    name = "all-reduce"

    def cost(self, p: int) -> Cost:
        return _FORMS["ring all-reduce"].closed(p, self.nbytes)


class AllGather(Transfer):
    """p - 1 messages, each of all the bytes of one process."""

    name = "all-gather"

    def cost(self, p: int) -> Cost:
        return _FORMS["ring all-gather"].closed(p, p * self.nbytes)


class AllToAll(Transfer):
    """p - 1 messages, each of a p-th of the bytes."""

    name = "all-to-all"

    def cost(self, p: int) -> Cost:
        return Cost(p - 1, self.nbytes * (p - 1) / p)


class Broadcast(Transfer):
    """From one process to all: lg p messages, each of all the bytes."""

    name = "broadcast"

    def cost(self, p: int) -> Cost:
        return _FORMS["tree broadcast"].closed(p, self.nbytes)
