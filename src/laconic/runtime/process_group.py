"""Flights over `torch.distributed`: one process hosts a block of workers, one flight is one collective."""

from __future__ import annotations

import atexit
import dataclasses
import datetime
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from laconic.core.compressor import Mean, Packet
from laconic.core.flight import AllReduce, Ask, Downlink, Flight, Look, Show, Text, Uplink, drive
from laconic.core.ledger import Ledger
from laconic.core.link import Link
from laconic.core.message import Malformed, Message, fixed_lengths
from laconic.core.problem import Block
from laconic.runtime.base import Runtime, downlink_bytes, received, uplink_bytes

HEADER = 8  # bytes of a length that travels in front of a part whose size depends on data
FIRST = 1 << 12  # bytes agreed for such a part before any has been seen

T = TypeVar("T")


class NetworkFailure(RuntimeError):
    """A collective failed: another process has died or left, or the network is gone."""


class ProcessGroup(Runtime):
    """n workers over the processes of `torch.distributed`, blocks in rank order, sizes differing by at most one.

    Replicated (default): every process receives all messages and computes the server's part itself. Star: rank 0 holds
    the server's values, and messages go to it and from it alone.

    Parameters
    ----------
    n : workers.
    seed : of the run.
    star : the topology.
    encoded : whether a process decodes even its own messages from bytes.
    ordered : whether all-reduced values are gathered and added in worker order (the same bits as in one process)
        instead of summed in flight (a tolerance, at a fraction of the traffic).
    timeout : seconds after which a collective that does not complete is an error.
    backend : of `torch.distributed`, where it is not initialised yet; the addresses come from the environment, as
        `torchrun` sets it. It is joined once per process, and left when the process ends.
    """

    def __init__(
        self, n: int, *, seed: int = 0, star: bool = False, encoded: bool = False, ordered: bool = False,
        timeout: float = 60.0, backend: str = "gloo",
    ) -> None:  # fmt: skip
        if not dist.is_initialized():
            dist.init_process_group(backend, timeout=datetime.timedelta(seconds=timeout))
            atexit.register(leave)
        self.rank, self.world = dist.get_rank(), dist.get_world_size()
        self.star, self.encoded, self.ordered = star, encoded, ordered
        self.blocks = Block.deal(n, self.world)
        self.ledger = Ledger(n)
        self.links = [Link(self.blocks[self.rank], seed, holds_server=not star or self.rank == 0)]
        self._capacity = [FIRST] * self.world

    def drive(self, *texts: Text) -> list[Any]:
        (text,) = texts
        return [drive(text, self.perform)]

    def agree(self, value: int) -> int:
        box = torch.tensor([value], dtype=torch.int64)
        self._guard(lambda: dist.broadcast(box, 0))
        if self.rank == 0:
            self.ledger.transport.framing += 8
        return int(box)

    # ---- one flight -------------------------------------------------------------------------------------------

    def perform(self, flight: Flight) -> list[Any]:
        """Answers a flight: what goes up or is looked at in one collective, sums in another, then what comes down."""
        replies: dict[int, Any] = {}
        up = down = None
        said_up = said_down = 0
        gathered = [(i, ask) for i, ask in enumerate(flight) if isinstance(ask, Uplink) or self._is_ordered(ask)]
        for (i, ask), packets in zip(gathered, self._gather([ask for _, ask in gathered]), strict=True):
            own = next(packet for packet, rank in packets if rank == self.rank)
            everyone = [packet for packet, _ in packets]
            size = uplink_bytes(everyone, self.n, ask.packet.private)
            up = size if up is None else up + size
            if isinstance(ask, Uplink):
                said_up += sum(packet.message.rows for packet in everyone)
                replies[i] = received(self.links[0], own, everyone)
            else:
                down = size if down is None else down + size
                said_up, said_down = said_up + self.n, said_down + self.n
                replies[i] = Mean(everyone, self.n).dense()
        for i, ask in enumerate(flight):
            if isinstance(ask, AllReduce) and i not in replies:
                size = np.full(self.n, ask.packet.dtype.itemsize * int(np.prod(ask.packet.shape)), dtype=np.int64)
                up, down = (size if total is None else total + size for total in (up, down))
                said_up, said_down = said_up + self.n, said_down + self.n
                replies[i] = self._sum(ask.packet)
            elif isinstance(ask, Downlink):
                size = downlink_bytes(ask.packet, self.n, ask.to)
                down = size if down is None else down + size
                said_down += self.n if ask.to is None else len(ask.to)
                replies[i] = self._spread(ask.packet, ask.to)
            elif isinstance(ask, Look):
                replies[i] = self._look(ask.rows)
            elif isinstance(ask, Show):
                replies[i] = self._show(ask.value)
        self.ledger.flight(up, down, said_up, said_down)
        return [replies[i] for i in range(len(flight))]

    def _is_ordered(self, ask: Ask) -> bool:
        return self.ordered and isinstance(ask, AllReduce)

    # ---- workers to server ------------------------------------------------------------------------------------

    def _gather(self, asks: Sequence[Uplink | AllReduce]) -> list[list[tuple[Packet, int]]]:
        """The packets of every ask from every process that they reach this one from, in worker order."""
        if not asks:
            return []
        own = [self._through_bytes(ask.packet) for ask in asks]
        parts = [self._encode(ask, packet) for ask, packet in zip(asks, own, strict=True)]
        mine = np.concatenate([piece for part in parts for piece in part])
        self.ledger.transport.payload += sum(len(part[0]) + len(part[2]) for part in parts)
        self.ledger.transport.framing += sum(len(part[1]) for part in parts)
        sizes = self._known_sizes(asks)
        if self.star:
            buffers = self._to_server(mine, sizes)
        else:
            buffers = dict(enumerate(self._all_gather(mine, sizes)))
        cursors = dict.fromkeys(buffers, 0)
        columns: list[list[tuple[Packet, int]]] = []
        for ask, packet in zip(asks, own, strict=True):
            column: list[tuple[Packet, int]] = []
            for rank in sorted(buffers):
                if rank == self.rank:
                    column.append((packet, rank))
                else:
                    theirs, cursors[rank] = self._decode(ask, rank, buffers[rank], cursors[rank])
                    column.append((theirs, rank))
            columns.append(column)
        return columns

    def _rows(self, ask: Uplink | AllReduce, rank: int) -> np.ndarray | None:
        """Which rows of a process speak, None where only it knows."""
        block = self.blocks[rank]
        if isinstance(ask, AllReduce) or (ask.packet.members is None and not ask.packet.private):
            return np.arange(block.size)
        if ask.packet.members is None:
            return None
        return ask.packet.members[(ask.packet.members >= block.low) & (ask.packet.members < block.high)] - block.low

    def _encode(self, ask: Uplink | AllReduce, packet: Packet) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Flags of a private decision, lengths where they depend on data, and the messages."""
        flags = np.zeros(self.links[0].block.size if self._rows(ask, self.rank) is None else 0, dtype=np.uint8)
        if len(flags):
            flags[packet.rows] = 1
        message = packet.message
        fixed = fixed_lengths(message.schema, message.rows)
        lengths = np.zeros(0, np.uint8) if fixed is not None else message.nbytes.astype("<u4").view(np.uint8)
        return flags, lengths, message.pack()

    def _decode(self, ask: Uplink | AllReduce, rank: int, buffer: np.ndarray, at: int) -> tuple[Packet, int]:
        """One ask's packet of another process from its bytes, and where the next ask's begins."""
        block, packet = self.blocks[rank], ask.packet
        rows = self._rows(ask, rank)
        if rows is None:
            flags, at = _take(buffer, at, block.size)
            if np.any(flags > 1):
                raise Malformed(f"rank {rank} sent a flag that is neither 0 nor 1")
            rows = np.flatnonzero(flags)
        keys = dataclasses.replace(packet.keys, workers=block.workers[rows])
        schema = packet.compressor.schema(packet.shape, packet.dtype, keys)
        lengths = fixed_lengths(schema, len(rows))
        if lengths is None:
            raw, at = _take(buffer, at, 4 * len(rows))
            lengths = raw.view("<u4").astype(np.int64)
        body, at = _take(buffer, at, int(lengths.sum()))
        message = Message.unpack(body, lengths, schema)
        return Packet(packet.compressor, message, keys, packet.shape, packet.dtype, rows), at

    def _known_sizes(self, asks: Sequence[Uplink | AllReduce]) -> list[int] | None:
        """The bytes that every process sends, where all of them follow from schemas; else None."""
        sizes = [0] * self.world
        for ask in asks:
            for rank, block in enumerate(self.blocks):
                rows = self._rows(ask, rank)
                if rows is None:
                    return None
                keys = dataclasses.replace(ask.packet.keys, workers=block.workers[rows])
                lengths = fixed_lengths(ask.packet.compressor.schema(ask.packet.shape, ask.packet.dtype, keys), len(rows))
                if lengths is None:
                    return None
                sizes[rank] += int(lengths.sum())
        return sizes

    def _through_bytes(self, packet: Packet) -> Packet:
        if not self.encoded:
            return packet
        message = packet.message
        return dataclasses.replace(packet, message=Message.unpack(message.pack(), message.nbytes, message.schema))

    # ---- transport --------------------------------------------------------------------------------------------

    def _all_gather(self, mine: np.ndarray, sizes: list[int] | None) -> list[np.ndarray]:
        """Everyone's bytes. Sizes that depend on data travel in front; what exceeds the agreed capacity follows."""
        if sizes is not None:
            rows = self._gather_padded(mine, max(sizes))
            return [row[:size] for row, size in zip(rows, sizes, strict=True)]
        capacity = self._capacity[0]
        head = np.concatenate([np.array([len(mine)], dtype="<i8").view(np.uint8), mine[:capacity]])
        rows = self._gather_padded(head, HEADER + capacity)
        self.ledger.transport.framing -= min(len(mine), capacity)  # counted as payload or lengths already
        lengths = [_length(row) for row in rows]
        most = max(lengths)
        self._capacity = [_agreed(most)] * self.world
        parts = [row[HEADER : HEADER + min(length, capacity)] for row, length in zip(rows, lengths, strict=True)]
        if most <= capacity:
            return parts
        rest = self._gather_padded(mine[capacity:], most - capacity)
        self.ledger.transport.framing -= max(0, len(mine) - capacity)
        return [
            np.concatenate([part, more[: max(0, length - capacity)]])
            for part, more, length in zip(parts, rest, lengths, strict=True)
        ]

    def _gather_padded(self, mine: np.ndarray, width: int) -> list[np.ndarray]:
        row = torch.zeros(width, dtype=torch.uint8)
        row[: len(mine)] = torch.from_numpy(mine)
        rows = [torch.empty(width, dtype=torch.uint8) for _ in range(self.world)]
        self._guard(lambda: dist.all_gather(rows, row))
        self.ledger.transport.framing += width
        return [row.numpy() for row in rows]

    def _to_server(self, mine: np.ndarray, sizes: list[int] | None) -> dict[int, np.ndarray]:
        """On rank 0 everyone's bytes, elsewhere one's own."""
        if self.rank:
            self._send(mine, 0, None if sizes is None else sizes[self.rank])
            return {self.rank: mine}
        buffers = {0: mine}
        for rank in range(1, self.world):
            buffers[rank] = self._receive(rank, None if sizes is None else sizes[rank])
        return buffers

    def _send(self, data: np.ndarray, to: int, size: int | None) -> None:
        """One message from point to point; where its size depends on data, with its length in front."""
        if size is not None:
            if size:
                self._guard(lambda: dist.send(torch.from_numpy(data.copy()), to))
            return
        slot = to if self.rank == 0 else self.rank
        capacity = self._capacity[slot]
        head = np.zeros(HEADER + capacity, dtype=np.uint8)
        head[:HEADER] = np.array([len(data)], dtype="<i8").view(np.uint8)
        head[HEADER : HEADER + min(len(data), capacity)] = data[:capacity]
        self._guard(lambda: dist.send(torch.from_numpy(head), to))
        self.ledger.transport.framing += HEADER + capacity - min(len(data), capacity)
        if len(data) > capacity:
            self._guard(lambda: dist.send(torch.from_numpy(data[capacity:].copy()), to))
        self._capacity[slot] = _agreed(len(data))

    def _receive(self, source: int, size: int | None) -> np.ndarray:
        if size is not None:
            return self._take_from(source, size)
        slot = source if self.rank == 0 else self.rank
        capacity = self._capacity[slot]
        head = self._take_from(source, HEADER + capacity)
        length = _length(head)
        data = head[HEADER : HEADER + min(length, capacity)]
        if length > capacity:
            data = np.concatenate([data, self._take_from(source, length - capacity)])
        self._capacity[slot] = _agreed(length)
        return data

    def _take_from(self, source: int, size: int) -> np.ndarray:
        data = torch.empty(size, dtype=torch.uint8)
        if size:
            self._guard(lambda: dist.recv(data, source))
        return data.numpy()

    def _guard(self, collective: Callable[[], T]) -> T:
        try:
            return collective()
        except (RuntimeError, ValueError) as error:
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise NetworkFailure(
                f"rank {self.rank} of {self.world}: the network failed ({reason}); another process has probably died"
            ) from error

    # ---- sums, server to workers, observation -----------------------------------------------------------------

    def _sum(self, packet: Packet) -> Tensor:
        total = torch.zeros(packet.shape, dtype=packet.dtype)
        packet.decoded.fold(total, 1.0)
        self._guard(lambda: dist.all_reduce(total))
        self.ledger.transport.payload += total.numel() * total.element_size()
        return total.div_(self.n)

    def _spread(self, packet: Packet, to: np.ndarray | None) -> Tensor:
        """What the workers decode of a message of the server."""
        if not self.star:
            return self._through_bytes(packet).decoded.dense()[0].clone()
        hosts = [rank for rank, block in enumerate(self.blocks) if rank and _hosts(block, to)]
        fixed = fixed_lengths(packet.message.schema, 1)
        size = None if fixed is None else int(fixed[0])
        if self.rank == 0:
            data = packet.message.pack()
            for rank in hosts:
                self._send(data, rank, size)
                self.ledger.transport.payload += len(data)
            return self._through_bytes(packet).decoded.dense()[0].clone()
        if self.rank not in hosts:
            return torch.full(packet.shape, torch.nan, dtype=packet.dtype)
        data = self._receive(0, size)
        message = Message.unpack(data, np.array([len(data)]), packet.message.schema)
        return dataclasses.replace(packet, message=message).decoded.dense()[0].clone()

    def _look(self, rows: Tensor) -> Tensor:
        each = rows[0].numel() * rows.element_size() if len(rows) else int(np.prod(rows.shape[1:])) * rows.element_size()
        sizes = [block.size * each for block in self.blocks]
        gathered = self._all_gather(rows.contiguous().numpy().reshape(-1).view(np.uint8), sizes)
        joined = torch.from_numpy(np.concatenate(gathered)).view(rows.dtype)
        return joined.view(self.n, *rows.shape[1:])

    def _show(self, value: Tensor) -> Tensor:
        if not self.star:
            return value
        shown = value.clone().contiguous()
        self._guard(lambda: dist.broadcast(shown, 0))
        if self.rank == 0:
            self.ledger.transport.framing += shown.numel() * shown.element_size()
        return shown


def leave() -> None:
    """Leaves `torch.distributed`, if this process is in it."""
    if dist.is_initialized():
        dist.destroy_process_group()


def _take(buffer: np.ndarray, at: int, size: int) -> tuple[np.ndarray, int]:
    if at + size > len(buffer):
        raise Malformed(f"{len(buffer)} bytes came where at least {at + size} were due")
    return buffer[at : at + size], at + size


def _length(head: np.ndarray) -> int:
    length = int(head[:HEADER].copy().view("<i8")[0])
    if not 0 <= length < 1 << 48:
        raise Malformed(f"a length of {length} bytes")
    return length


def _agreed(most: int) -> int:
    """The next capacity after parts of at most this size: an eighth more, in steps of 64 bytes."""
    return max(FIRST // 64, -(-(most + most // 8) // 64) * 64)


def _hosts(block: Block, to: np.ndarray | None) -> bool:
    return block.size > 0 and (to is None or bool(np.any((to >= block.low) & (to < block.high))))
