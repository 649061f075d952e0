"""Routes: by which collectives the messages of a flight travel, chosen by their sizes and the number of processes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

JOINED = 1 << 16  # more bytes that may come in so that a flight is one collective: 5 ms at 100 Mbit/s


@dataclass(frozen=True)
class Load:
    """What one request of a flight weighs, as all processes know it alike, in bytes.

    message : of one process at most, as agreed or as far as known.
    dense : of the mean at full width.
    """

    message: int
    dense: int


class Routes(ABC):
    """Chooses; from nothing but what all processes know alike."""

    @abstractmethod
    def joins(self, dense: int, world: int) -> bool:
        """Whether vectors of so many bytes that could be summed in flight join messages that are gathered anyway."""

    @abstractmethod
    def owners(self, loads: Sequence[Load], world: int) -> list[int] | None:
        """Which process adds up which request in two stages, a rank each; None where all messages go to all."""


@dataclass(frozen=True)
class Plain(Routes):
    """What sums is summed in flight, and messages are gathered: the same bits in every runtime."""

    def joins(self, dense: int, world: int) -> bool:
        return False

    def owners(self, loads: Sequence[Load], world: int) -> list[int] | None:
        return None


@dataclass(frozen=True)
class Cheapest(Routes):
    """What brings the fewest bytes to the busiest process.

    A gather of messages of m bytes brings in (n - 1) m. Where that is more than what an all-reduce of the d dense bytes
    brings, 2 d (n - 1) / n, requests may be dealt out: each process gets the messages of those that it owns, adds them
    up, and all gather the sums. An all-reduce of vectors joins a gather where it brings in at most `JOINED` more.

    >>> loads = [Load(message=1100, dense=4000)] * 16  # nine bits in the place of 32
    >>> Cheapest().owners(loads, 4) is None, Cheapest().owners(loads, 16) == list(range(16))
    (True, True)
    """

    def joins(self, dense: int, world: int) -> bool:
        return (world - 1) * (1.0 - 2.0 / world) * dense <= JOINED

    def owners(self, loads: Sequence[Load], world: int) -> list[int] | None:
        messages, dense = sum(load.message for load in loads), sum(load.dense for load in loads)
        gathered = (world - 1) * messages
        if gathered <= 2.0 * dense * (world - 1) / world:
            return None
        owners, mine, sums = [0] * len(loads), [0] * world, [0] * world
        for place in sorted(range(len(loads)), key=lambda place: -loads[place].dense):
            owner = sums.index(min(sums))
            owners[place] = owner
            mine[owner] += loads[place].message
            sums[owner] += loads[place].dense
        dealt = (world - 1) * (max(mine) + max(sums))
        return owners if dealt < gathered else None
