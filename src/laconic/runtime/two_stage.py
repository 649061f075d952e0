"""Sums in two stages: a process gets the messages of the requests that it owns, adds them up, and shares the sums."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from laconic.core.compressor import Mean, Packet, Total
from laconic.core.message import Malformed
from laconic.runtime.carrier import Carrier


@dataclass(frozen=True)
class Request:
    """One of the requests of a flight, for which everyone speaks: who owns it, and how its messages are made and read.

    `encoded` are this process' bytes, `sizes` their lengths per row; `most` bounds those of any process, and `decode`
    reads those of a rank from its bytes at a place and says where the next begin.
    """

    owner: int
    packet: Packet
    encoded: np.ndarray
    sizes: np.ndarray
    most: int
    decode: Callable[[int, np.ndarray, int], tuple[Packet, int]]


class TwoStage:
    """The requests of one flight on their way. Begun and finished in one order on all processes.

    First the lengths of what is to come and then the messages themselves go to the owners, each exactly as long as it
    is; then the sums, with the lengths of all messages, go to everyone. Sums are added in worker order.
    """

    def __init__(self, carrier: Carrier, n: int, requests: Sequence[Request]) -> None:
        self._carrier, self._n, self._requests = carrier, n, requests
        self._parts = [
            np.concatenate([np.zeros(0, np.uint8), *(r.encoded for r in requests if r.owner == rank)])
            for rank in range(carrier.world)
        ]
        lengths = [np.array([len(part)], dtype="<i8").view(np.uint8) for part in self._parts]
        self._lengths = carrier.all_to_all(lengths, [8] * carrier.world)

    @property
    def payload(self) -> int:
        """Bytes of messages that this process sends to others."""
        return sum(len(part) for rank, part in enumerate(self._parts) if rank != self._carrier.rank)

    def wait(self) -> list[tuple[Total, np.ndarray]]:
        """For each request the mean, and the bytes of every worker's message, int64 of shape (n,)."""
        carrier = self._carrier
        mine = [r for r in self._requests if r.owner == carrier.rank]
        incoming = [int(row.view("<i8")[0]) for row in self._lengths()]
        most = sum(request.most for request in mine)
        for rank, length in enumerate(incoming):
            if not 0 <= length <= most:
                raise Malformed(f"rank {rank} announces {length} bytes where 0 to {most} can come")
        buffers = carrier.all_to_all(self._parts, incoming)()
        pieces, cursors = [np.zeros(0, np.uint8)], [0] * carrier.world
        for request in mine:
            packets = []
            for rank in range(carrier.world):
                packet, cursors[rank] = request.decode(rank, buffers[rank], cursors[rank])
                packets.append(packet)
            sizes = np.concatenate([packet.message.nbytes for packet in packets]).astype("<i8")
            pieces += [_bytes(Mean(packets, self._n).dense()), sizes.view(np.uint8)]
        for rank, buffer in enumerate(buffers):
            if cursors[rank] != len(buffer):
                raise Malformed(f"rank {rank} sent {len(buffer)} bytes where {cursors[rank]} were due")
        return self._shared(np.concatenate(pieces))

    def _shared(self, sums: np.ndarray) -> list[tuple[Total, np.ndarray]]:
        """Everyone's sums to everyone."""
        widths = [0] * self._carrier.world
        for request in self._requests:
            widths[request.owner] += request.packet.width + 8 * self._n
        rows = self._carrier.gather_padded(sums, max(widths))()
        cursors = [0] * self._carrier.world
        found = []
        for request in self._requests:
            at, width = cursors[request.owner], request.packet.width
            row = rows[request.owner]
            mean = torch.from_numpy(row[at : at + width].copy()).view(request.packet.dtype).view(request.packet.shape)
            sizes = row[at + width : at + width + 8 * self._n].copy().view("<i8")
            cursors[request.owner] = at + width + 8 * self._n
            found.append((Total(mean), sizes))
        return found


def _bytes(dense: Tensor) -> np.ndarray:
    return dense.contiguous().view(-1).view(torch.uint8).numpy()
