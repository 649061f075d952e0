"""Bytes between the processes of `torch.distributed`: gathers, sums, and messages from point to point."""

from __future__ import annotations

import math
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from laconic.core.ledger import Ledger
from laconic.core.message import Malformed

HEADER = 8  # bytes of a length that travels in front of a part whose size depends on data
FIRST = 1 << 12  # bytes agreed for such a part before any has been seen at its address

T = TypeVar("T")


class NetworkFailure(RuntimeError):
    """A collective failed: another process has died or left, or the network is gone."""


@dataclass(frozen=True)
class Sizes:
    """What all processes know of the parts that each of them is about to send.

    `exact` holds every process' bytes where they follow from schemas, else None: then a part travels with its length
    in front, in the capacity that the last part of this `address` has shown to be enough, and what exceeds it follows.
    `most` is what no process may exceed.
    """

    address: str
    exact: Sequence[int] | None
    most: int


class Gathering(ABC):
    """A gather on its way."""

    @abstractmethod
    def wait(self) -> Mapping[int, np.ndarray]:
        """The bytes of every process that they reach this one from, by rank."""


class Carrier:
    """One process' end of a group that spans all processes.

    Every byte handed over is entered in the ledger as framing; who knows that some of them are messages moves them to
    the payload.
    """

    def __init__(self, ledger: Ledger, group: dist.ProcessGroup | None = None) -> None:
        self._ledger, self._group = ledger, group
        self.rank, self.world = dist.get_rank(group), dist.get_world_size(group)
        self._capacities: dict[tuple[str, int], int] = {}

    def hand_over(self, issue: Callable[[], T], tensor: Tensor) -> T:
        """Issues an operation on a tensor that leaves this process."""
        issued = self.guard(issue)
        self._ledger.transport.framing += tensor.numel() * tensor.element_size()
        return issued

    def guard(self, operation: Callable[[], T]) -> T:
        """The result of an operation of the network. Raises NetworkFailure, in one line, where it fails."""
        try:
            return operation()
        except (RuntimeError, ValueError) as error:
            # the backend's first sentence, without the line of its source
            line = (str(error).strip() or type(error).__name__).splitlines()[0]
            reason = re.sub(r"^\[[^]]*\] *", "", line).split(". ")[0]
            raise NetworkFailure(
                f"rank {self.rank} of {self.world}: the network failed ({reason}); another process has probably died"
            ) from error

    def capacity(self, address: str, peer: int) -> int:
        """What is agreed with a peer (or with all, -1) for the next part of unknown size."""
        return self._capacities.get((address, peer), FIRST)

    def agree(self, address: str, peer: int, length: int) -> None:
        """Fits the capacity to a part that was seen, with room for the next one to be somewhat longer.

        Lengths are sums over what was kept, so they scatter like a square root; a step's drift is the 64th part.
        """
        room = length // 64 + 4 * math.isqrt(length)
        self._capacities[address, peer] = max(FIRST // 64, -(-(length + room) // 64) * 64)

    # ---- collectives ------------------------------------------------------------------------------------------

    def all_gather(self, mine: np.ndarray, sizes: Sizes) -> Gathering:
        """Begins to give everyone's bytes to everyone."""
        return _AllGather(self, mine, sizes)

    def to_server(self, mine: np.ndarray, sizes: Sizes) -> Gathering:
        """Everyone's bytes to rank 0 alone, once they are waited for."""
        return _ToServer(self, mine, sizes)

    def gather_padded(self, mine: np.ndarray, width: int) -> Callable[[], list[np.ndarray]]:
        """Begins to gather rows of one width; the function that is returned waits for them."""
        row = torch.zeros(width, dtype=torch.uint8)
        row[: len(mine)] = torch.from_numpy(mine)
        rows = [torch.empty(width, dtype=torch.uint8) for _ in range(self.world)]
        if not width:
            return lambda: [row.numpy() for row in rows]
        works = self.hand_over(lambda: gather(rows, row, self._group), row)

        def wait() -> list[np.ndarray]:
            for work in works:
                self._wait(work)
            return [row.numpy() for row in rows]

        return wait

    def all_to_all(self, parts: Sequence[np.ndarray], incoming: Sequence[int]) -> Callable[[], list[np.ndarray]]:
        """Begins to give each process its part, of which so many bytes come from each; the function waits for them."""
        mine = torch.from_numpy(np.concatenate([np.zeros(0, np.uint8), *parts]))
        heard = torch.empty(sum(incoming), dtype=torch.uint8)
        outgoing = [len(part) for part in parts]
        work = self.hand_over(
            lambda: dist.all_to_all_single(heard, mine, list(incoming), outgoing, group=self._group, async_op=True),
            mine,
        )
        self._ledger.transport.framing -= outgoing[self.rank]  # its own part stays here

        def wait() -> list[np.ndarray]:
            self._wait(work)
            return [piece.numpy() for piece in heard.split(list(incoming))]

        return wait

    def all_reduce(self, total: Tensor) -> Callable[[], Tensor]:
        """Begins to add up a tensor over all processes, in place; the function that is returned waits for it."""
        work = self.hand_over(lambda: dist.all_reduce(total, group=self._group, async_op=True), total)

        def wait() -> Tensor:
            self._wait(work)
            return total

        return wait

    def _wait(self, work: Any) -> None:
        self.guard(work.wait)

    def broadcast(self, tensor: Tensor) -> None:
        """Rank 0's tensor to everyone, in place."""
        self.guard(lambda: dist.broadcast(tensor, 0, group=self._group))
        if self.rank == 0:
            self._ledger.transport.framing += tensor.numel() * tensor.element_size()

    # ---- from point to point ----------------------------------------------------------------------------------

    def send(self, data: np.ndarray, to: int, sizes: Sizes) -> None:
        """One message, of the size that both sides know, or with its length in front."""
        if sizes.exact is not None:
            return self._put(data, to)
        capacity = self.capacity(sizes.address, to)
        head = np.zeros(HEADER + capacity, dtype=np.uint8)
        head[:HEADER] = _header(len(data))
        head[HEADER : HEADER + min(len(data), capacity)] = data[:capacity]
        self._put(head, to)
        self._put(data[capacity:], to)
        self.agree(sizes.address, to, len(data))

    def receive(self, source: int, sizes: Sizes) -> np.ndarray:
        """A message that `send` sent."""
        if sizes.exact is not None:
            return self._take(source, sizes.exact[source])
        capacity = self.capacity(sizes.address, source)
        head = self._take(source, HEADER + capacity)
        length = _length(head, sizes.most, source)
        rest = self._take(source, max(0, length - capacity))
        self.agree(sizes.address, source, length)
        return np.concatenate([head[HEADER : HEADER + min(length, capacity)], rest])

    def _put(self, data: np.ndarray, to: int) -> None:
        if len(data):
            tensor = torch.from_numpy(data.copy())
            self.hand_over(lambda: dist.send(tensor, to, group=self._group), tensor)

    def _take(self, source: int, size: int) -> np.ndarray:
        data = torch.empty(size, dtype=torch.uint8)
        if size:
            self.guard(lambda: dist.recv(data, source, group=self._group))
        return data.numpy()


def gather(rows: list[Tensor], row: Tensor, group: dist.ProcessGroup | None = None) -> list[Any]:
    """Begins to gather everyone's row into `rows`, and gives what is to be waited for.

    Two processes send each other their rows: Gloo's all-gather sends the halves of a row one after the other, and takes
    up to half as long again.
    """
    if len(rows) != 2:
        return [dist.all_gather(rows, row, group=group, async_op=True)]
    rank = dist.get_rank(group)
    heard = dist.irecv(rows[1 - rank], group=group, group_src=1 - rank)
    said = dist.isend(row, group=group, group_dst=1 - rank)
    rows[rank].copy_(row)
    return [heard, said]


class _AllGather(Gathering):
    """One collective where sizes are known or fit the agreed capacity, else a second one for what exceeds it."""

    def __init__(self, carrier: Carrier, mine: np.ndarray, sizes: Sizes) -> None:
        self.carrier, self.mine, self.sizes = carrier, mine, sizes
        self.capacity = carrier.capacity(sizes.address, -1)
        if sizes.exact is not None:
            self.rows = carrier.gather_padded(mine, max(sizes.exact))
        else:
            head = np.concatenate([_header(len(mine)), mine[: self.capacity]])
            self.rows = carrier.gather_padded(head, HEADER + self.capacity)

    def wait(self) -> Mapping[int, np.ndarray]:
        rows, exact = self.rows(), self.sizes.exact
        if exact is not None:
            return {rank: row[: exact[rank]] for rank, row in enumerate(rows)}
        lengths = [_length(row, self.sizes.most, rank) for rank, row in enumerate(rows)]
        most = max(lengths)
        self.carrier.agree(self.sizes.address, -1, most)
        parts = {rank: rows[rank][HEADER : HEADER + min(n, self.capacity)] for rank, n in enumerate(lengths)}
        if most <= self.capacity:
            return parts
        rest = self.carrier.gather_padded(self.mine[self.capacity :], most - self.capacity)()
        more = [row[: max(0, n - self.capacity)] for row, n in zip(rest, lengths, strict=True)]
        return {rank: np.concatenate([part, more[rank]]) for rank, part in parts.items()}


class _ToServer(Gathering):
    """Messages from point to point: on rank 0 everyone's bytes, elsewhere one's own."""

    def __init__(self, carrier: Carrier, mine: np.ndarray, sizes: Sizes) -> None:
        self.carrier, self.mine, self.sizes = carrier, mine, sizes

    def wait(self) -> Mapping[int, np.ndarray]:
        carrier = self.carrier
        if carrier.rank:
            carrier.send(self.mine, 0, self.sizes)
            return {carrier.rank: self.mine}
        others = {rank: carrier.receive(rank, self.sizes) for rank in range(1, carrier.world)}
        return {0: self.mine, **others}


def _header(length: int) -> np.ndarray:
    return np.array([length], dtype="<i8").view(np.uint8)


def _length(head: np.ndarray, most: int, rank: int) -> int:
    length = int(head[:HEADER].copy().view("<i8")[0])
    if not 0 <= length <= most:
        raise Malformed(f"rank {rank} announces {length} bytes where 0 to {most} can come")
    return length
