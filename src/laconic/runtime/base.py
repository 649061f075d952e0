"""What every runtime does: hosts parties, performs their flights, keeps one ledger."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import numpy as np

from laconic.core.compressor import Mean, Own, Packet, Sent, Unknown
from laconic.core.flight import Text
from laconic.core.ledger import Ledger
from laconic.core.link import Link


class Runtime(ABC):
    """Performs what texts ask of the network.

    Attributes
    ----------
    links : one per party hosted in this process.
    ledger : of the run; complete on the leader.
    rank, leader : the number of this process, and whether it is the one that writes and prints.
    """

    links: list[Link]
    ledger: Ledger
    rank: int = 0

    @property
    def n(self) -> int:
        return self.links[0].n

    @property
    def leader(self) -> bool:
        return self.rank == 0

    @abstractmethod
    def drive(self, *texts: Text) -> list[Any]:
        """Runs one text per link of this process to their ends, and gives their results."""

    def agree(self, value: int) -> int:
        """The leader's integer, on every process; not counted."""
        return value


def received(link: Link, own: Packet, packets: Sequence[Packet]) -> Sent:
    """The reply to an uplink on one party: `packets` are those of all parties in worker order."""
    spoke = sum(packet.message.rows for packet in packets)
    mean = Mean(packets, link.n) if link.holds_server else Unknown(own.shape, own.dtype)
    return Sent(Own(own, link.block.size), mean, spoke if link.holds_server else own.message.rows)


def uplink_bytes(asked: Packet, packets: Sequence[Packet], n: int) -> np.ndarray:
    """Logical bytes per worker of an uplink, int64 of shape (n,); a private decision to speak costs a byte of flag."""
    up = asked.flags(n)
    for packet in packets:
        if packet.message.rows == n:
            up += packet.message.nbytes
        else:
            up[packet.keys.workers] += packet.message.nbytes
    return up


def downlink_bytes(packet: Packet, n: int, to: np.ndarray | None) -> np.ndarray:
    """Logical bytes per worker of a broadcast, int64 of shape (n,)."""
    size = int(packet.message.nbytes[0])
    if to is None:
        return np.full(n, size, dtype=np.int64)
    down = np.zeros(n, dtype=np.int64)
    down[to] = size
    return down
