"""Flights over `torch.distributed`: one process hosts a block of workers, one flight is one collective."""

from __future__ import annotations

import atexit
import contextlib
import dataclasses
import datetime
import functools
import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from laconic.core.compressor import Mean, Own, Packet, Sent
from laconic.core.flight import AllReduce, Ask, Downlink, Flight, Look, Show, Text, Uplink, drive
from laconic.core.ledger import Account, Ledger
from laconic.core.link import Link
from laconic.core.message import Malformed, Message, fixed_lengths
from laconic.core.problem import Block
from laconic.runtime.base import Runtime, downlink_bytes, received, uplink_bytes
from laconic.runtime.carrier import Carrier, Gathering, NetworkFailure, Sizes
from laconic.runtime.routes import Load, Plain, Routes
from laconic.runtime.two_stage import Request, TwoStage

__all__ = ["NetworkFailure", "Pending", "ProcessGroup", "leave"]

Spoken = Uplink | AllReduce


@dataclass(frozen=True)
class _Gather:
    """What goes up in one collective: which asks of the flight, this process' packets, and how many bytes they are."""

    at: list[int]
    own: list[Packet]
    payload: int
    gathering: Gathering


@dataclass(frozen=True)
class _Sum:
    """Values of one dtype that are summed in flight, joined: which asks of the flight, and who waits for the total."""

    at: list[int]
    wait: Callable[[], Tensor]


@dataclass(frozen=True)
class _Dealt:
    """What travels in two stages: which asks of the flight, and this process' packets."""

    at: list[int]
    own: list[Packet]
    stages: TwoStage


@dataclass(frozen=True)
class Pending:
    """A flight in the air, to be handed to `finish`."""

    flight: Flight
    gather: _Gather | None
    sums: list[_Sum]
    dealt: _Dealt | None = None


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
    group : a group of all processes, whose own timeout holds then; the default is the group of `torch.distributed`.
    routes : which collectives messages travel by where nothing above says it; None sums and gathers plainly. Others
        spare bytes, and may add up in another way than one process does.

    Attributes
    ----------
    issued : how many flights there were by their collectives: "all-reduce", "all-gather", "two stages".
    """

    def __init__(
        self, n: int, *, seed: int = 0, star: bool = False, encoded: bool = False, ordered: bool = False,
        timeout: float = 60.0, backend: str = "gloo", group: dist.ProcessGroup | None = None,
        routes: Routes | None = None,
    ) -> None:  # fmt: skip
        if not dist.is_initialized():
            dist.init_process_group(backend, timeout=datetime.timedelta(seconds=timeout))
            atexit.register(leave)
        self.ledger = Ledger(n)
        self.carrier = Carrier(self.ledger, group)
        self.rank, self.world = self.carrier.rank, self.carrier.world
        self.star, self.encoded, self.ordered = star, encoded, ordered
        self.routes = routes or Plain()
        self.issued: Counter[str] = Counter()
        self._longest: dict[str, int] = {}  # by address: the longest message that all have seen there
        self.blocks = Block.deal(n, self.world)
        self.links = [Link(self.blocks[self.rank], seed, holds_server=not star or self.rank == 0)]

    def drive(self, *texts: Text) -> list[Any]:
        (text,) = texts
        return [drive(text, self.perform)]

    def agree(self, value: int) -> int:
        box = torch.tensor([value], dtype=torch.int64)
        self.carrier.broadcast(box)
        return int(box)

    # ---- one flight -------------------------------------------------------------------------------------------

    def perform(self, flight: Flight) -> list[Any]:
        """Answers a flight: what goes up or is looked at in one collective, sums in another, then what comes down."""
        return self.finish(self.begin(flight))

    def begin(self, flight: Flight) -> Pending:
        """Sends a flight off without waiting. Several may be in the air, begun and finished in one order everywhere."""
        gathers = self._gathers(flight)
        summed = [i for i, ask in enumerate(flight) if isinstance(ask, AllReduce) and not gathers]
        gathered = [i for i, ask in enumerate(flight) if isinstance(ask, Spoken) and i not in summed]
        owners = self._owners(flight, gathered)
        self.issued.update(
            {"all-reduce": bool(summed), "two stages": bool(owners), "all-gather": bool(gathered and not owners)}
        )
        if owners is not None:
            return Pending(
                flight, None, self._begin_sums(flight, summed), self._begin_two_stage(flight, gathered, owners)
            )
        return Pending(flight, self._begin_gather(flight, gathered), self._begin_sums(flight, summed))

    def finish(self, pending: Pending) -> list[Any]:
        """Waits for a flight, and gives its replies. What comes down, or is off the books, travels only now."""
        flight = pending.flight
        replies: dict[int, Any] = {}
        account = Account()
        for i, own, everyone in self._finish_gather(pending):
            ask = flight[i]
            assert isinstance(ask, Spoken)
            if isinstance(ask, Uplink):
                sizes = uplink_bytes(ask.packet, everyone, self.n)
                account.said_up(sizes, sum(packet.message.rows for packet in everyone))
                replies[i] = received(self.links[0], own, everyone)
            else:
                replies[i] = Mean(everyone, self.n).dense()
        for summed in pending.sums:
            replies |= self._finish_sum(flight, summed)
        if pending.dealt is not None:
            replies |= self._finish_two_stage(flight, pending.dealt, account)
        for i, ask in enumerate(flight):
            if isinstance(ask, AllReduce):
                size = ask.packet.width
                account.summed(np.full(self.n, size, dtype=np.int64))
            elif isinstance(ask, Downlink):
                heard = self._spread(ask.packet, ask.to)
                if heard is None:
                    replies[i] = torch.full(ask.packet.shape, torch.nan, dtype=ask.packet.dtype)
                else:
                    replies[i] = heard.decoded.dense()[0].clone()
                    sizes = downlink_bytes(heard, self.n, ask.to)
                    account.said_down(sizes, self.n if ask.to is None else len(ask.to))
            elif isinstance(ask, Look):
                replies[i] = self._look(ask.rows)
            elif isinstance(ask, Show):
                replies[i] = self._show(ask.value)
        self.ledger.flight(account)
        return [replies[i] for i in range(len(flight))]

    def _gathers(self, flight: Flight) -> bool:
        """Whether what could be summed in flight is gathered: where asked for, or where it spares a collective."""
        if self.ordered:
            return True
        if self.star or not any(isinstance(ask, Uplink) for ask in flight):
            return False
        return self.routes.joins(sum(ask.packet.width for ask in flight if isinstance(ask, AllReduce)), self.world)

    def _paid(self, size: int) -> None:
        """Some of the bytes handed over were messages."""
        self.ledger.transport.payload += size
        self.ledger.transport.framing -= size

    # ---- workers to server ------------------------------------------------------------------------------------

    def _begin_gather(self, flight: Flight, at: list[int]) -> _Gather | None:
        asks = [ask for i in at if isinstance(ask := flight[i], Spoken)]
        if not asks:
            return None
        own = [self._through_bytes(ask.packet) for ask in asks]
        parts = [self._encode(ask, packet) for ask, packet in zip(asks, own, strict=True)]
        mine = np.concatenate([piece for part in parts for piece in part])
        payload = sum(len(flags) + len(body) for flags, _, body in parts)
        travel = self.carrier.to_server if self.star else self.carrier.all_gather
        return _Gather(at, own, payload, travel(mine, self._sizes(asks)))

    def _finish_gather(self, pending: Pending) -> list[tuple[int, Packet, list[Packet]]]:
        """For every ask that was gathered its place in the flight, this process' packet, and those in worker order."""
        gather = pending.gather
        if gather is None:
            return []
        buffers = gather.gathering.wait()
        if not (self.star and self.rank == 0):
            self._paid(gather.payload)
        cursors = dict.fromkeys(buffers, 0)
        columns: list[tuple[int, Packet, list[Packet]]] = []
        for i, own in zip(gather.at, gather.own, strict=True):
            ask = pending.flight[i]
            assert isinstance(ask, Spoken)
            column = []
            for rank in sorted(buffers):
                packet = own
                if rank != self.rank:
                    with _blamed_on(rank):
                        packet, cursors[rank] = self._decode(ask, rank, buffers[rank], cursors[rank])
                column.append(packet)
            columns.append((i, own, column))
        for rank, buffer in buffers.items():
            if rank != self.rank and cursors[rank] != len(buffer):
                raise Malformed(f"rank {rank} sent {len(buffer)} bytes where {cursors[rank]} were due")
        return columns

    # ---- the same in two stages -------------------------------------------------------------------------------

    def _owners(self, flight: Flight, at: list[int]) -> list[int] | None:
        """Who adds up which of these asks; None where all of their messages go to all."""
        asks = [ask for i in at if isinstance(ask := flight[i], Spoken)]
        apart = any(isinstance(ask, Uplink) and ask.apart for ask in asks)
        partial = any(ask.packet.private or ask.packet.members is not None for ask in asks)
        if not asks or apart or partial or self.star or self.ordered or self.world < 3:  # of two, none is spared
            return None
        return self.routes.owners([Load(self._known(ask), ask.packet.width) for ask in asks], self.world)

    def _known(self, ask: Spoken) -> int:
        """The bytes of one process' message as all know them: from its schema, or as long as the last one was."""
        sizes = self._sizes([ask])
        if sizes.exact is not None:
            return max(sizes.exact)
        return self._longest.get(ask.packet.keys.stream, ask.packet.width // 4)

    def _begin_two_stage(self, flight: Flight, at: list[int], owners: list[int]) -> _Dealt:
        asks = [ask for i in at if isinstance(ask := flight[i], Spoken)]
        own = [self._through_bytes(ask.packet) for ask in asks]
        rows = max(block.size for block in self.blocks)
        requests = [
            Request(
                owner, packet, np.concatenate(self._encode(ask, packet)), packet.message.nbytes,
                rows * _most(packet), functools.partial(self._read, ask),
            )
            for owner, ask, packet in zip(owners, asks, own, strict=True)
        ]  # fmt: skip
        return _Dealt(at, own, TwoStage(self.carrier, self.n, requests))

    def _read(self, ask: Spoken, rank: int, buffer: np.ndarray, at: int) -> tuple[Packet, int]:
        with _blamed_on(rank):
            return self._decode(ask, rank, buffer, at)

    def _finish_two_stage(self, flight: Flight, dealt: _Dealt, account: Account) -> dict[int, Any]:
        replies: dict[int, Any] = {}
        self._paid(dealt.stages.payload)
        for i, own, (total, sizes) in zip(dealt.at, dealt.own, dealt.stages.wait(), strict=True):
            ask = flight[i]
            if isinstance(ask, Uplink):
                account.said_up(sizes.astype(np.int64), self.n)
                self._longest[ask.packet.keys.stream] = int(sizes.max())
                replies[i] = Sent(Own(own, self.links[0].block.size), total, self.n)
            else:
                replies[i] = total.dense()
        return replies

    def _rows(self, ask: Spoken, rank: int) -> np.ndarray | None:
        """Which rows of a process speak, None where only it knows."""
        block = self.blocks[rank]
        if isinstance(ask, AllReduce) or (ask.packet.members is None and not ask.packet.private):
            return np.arange(block.size)
        if ask.packet.members is None:
            return None
        return ask.packet.members[(ask.packet.members >= block.low) & (ask.packet.members < block.high)] - block.low

    def _encode(self, ask: Spoken, packet: Packet) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Flags of a private decision, lengths where they depend on data, and the messages."""
        flags = np.zeros(self.links[0].block.size if self._rows(ask, self.rank) is None else 0, dtype=np.uint8)
        if len(flags):
            flags[packet.rows] = 1
        message = packet.message
        fixed = fixed_lengths(message.schema, message.rows)
        lengths = np.zeros(0, np.uint8) if fixed is not None else message.nbytes.astype("<u4").view(np.uint8)
        return flags, lengths, message.pack()

    def _decode(self, ask: Spoken, rank: int, buffer: np.ndarray, at: int) -> tuple[Packet, int]:
        """One ask's packet of another process from its bytes, and where the next ask's begins."""
        block, packet = self.blocks[rank], ask.packet
        rows = self._rows(ask, rank)
        if rows is None:
            flags, at = _take(buffer, at, block.size)
            if np.any(flags > 1):
                raise Malformed("a flag is neither 0 nor 1")
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

    def _sizes(self, asks: Sequence[Spoken]) -> Sizes:
        """The bytes that every process sends where all of them follow from schemas, and the most that can come."""
        address = asks[0].packet.keys.stream
        rows = max(block.size for block in self.blocks)
        most = sum(rows * _most(ask.packet) for ask in asks)
        exact = [0] * self.world
        for ask in asks:
            for rank, block in enumerate(self.blocks):
                speaking = self._rows(ask, rank)
                if speaking is None:
                    return Sizes(address, None, most)
                keys = dataclasses.replace(ask.packet.keys, workers=block.workers[speaking])
                schema = ask.packet.compressor.schema(ask.packet.shape, ask.packet.dtype, keys)
                lengths = fixed_lengths(schema, len(speaking))
                if lengths is None:
                    return Sizes(address, None, most)
                exact[rank] += int(lengths.sum())
        return Sizes(address, exact, most)

    def _through_bytes(self, packet: Packet) -> Packet:
        if not self.encoded:
            return packet
        message = packet.message
        return dataclasses.replace(packet, message=Message.unpack(message.pack(), message.nbytes, message.schema))

    # ---- sums, server to workers, observation -----------------------------------------------------------------

    def _begin_sums(self, flight: Flight, at: list[int]) -> list[_Sum]:
        """One all-reduce for all values of a dtype."""
        by_dtype: dict[torch.dtype, list[int]] = {}
        for i in at:
            by_dtype.setdefault(_packet(flight[i]).dtype, []).append(i)
        return [
            _Sum(places, self.carrier.all_reduce(torch.cat([_local_sum(_packet(flight[i])) for i in places])))
            for places in by_dtype.values()
        ]

    def _finish_sum(self, flight: Flight, summed: _Sum) -> dict[int, Tensor]:
        total = summed.wait()
        self._paid(total.numel() * total.element_size())
        total.div_(self.n)
        shapes = [_packet(flight[i]).shape for i in summed.at]
        pieces = total.split([math.prod(shape) for shape in shapes])
        return {i: piece.view(shape) for i, piece, shape in zip(summed.at, pieces, shapes, strict=True)}

    def _spread(self, packet: Packet, to: np.ndarray | None) -> Packet | None:
        """A message of the server as it is heard here; None where no worker of this process is spoken to."""
        if not self.star:
            return self._through_bytes(packet)
        hosts = [rank for rank, block in enumerate(self.blocks) if rank and _hosts(block, to)]
        fixed = fixed_lengths(packet.message.schema, 1)
        exact = None if fixed is None else [int(fixed[0])] * self.world
        sizes = Sizes(packet.keys.stream, exact, _most(packet))
        if self.rank == 0:
            data = packet.message.pack()
            for rank in hosts:
                self.carrier.send(data, rank, sizes)
                self._paid(len(data))
            return self._through_bytes(packet)
        if self.rank not in hosts:
            return None
        data = self.carrier.receive(0, sizes)
        with _blamed_on(0):
            message = Message.unpack(data, np.array([len(data)]), packet.message.schema)
        return dataclasses.replace(packet, message=message)

    def _look(self, rows: Tensor) -> Tensor:
        each = math.prod(rows.shape[1:]) * rows.element_size()
        exact = [block.size * each for block in self.blocks]
        mine = rows.contiguous().numpy().reshape(-1).view(np.uint8)
        gathered = self.carrier.all_gather(mine, Sizes("look", exact, max(exact))).wait()
        joined = torch.from_numpy(np.concatenate([gathered[rank] for rank in range(self.world)])).view(rows.dtype)
        return joined.view(self.n, *rows.shape[1:])

    def _show(self, value: Tensor) -> Tensor:
        if not self.star:
            return value
        shown = value.clone().contiguous()
        self.carrier.broadcast(shown)
        return shown


def leave() -> None:
    """Leaves `torch.distributed`, if this process is in it."""
    if dist.is_initialized():
        dist.destroy_process_group()


@contextlib.contextmanager
def _blamed_on(rank: int) -> Iterator[None]:
    try:
        yield
    except Malformed as error:
        raise Malformed(f"rank {rank} sent what cannot be right: {error}") from None


def _packet(ask: Ask) -> Packet:
    assert isinstance(ask, Spoken)
    return ask.packet


def _local_sum(packet: Packet) -> Tensor:
    """The sum over the local workers, flat; perhaps a view of their values."""
    if packet.message.rows == 1:
        return packet.decoded.dense().reshape(-1)
    total = torch.zeros(packet.shape, dtype=packet.dtype)
    packet.decoded.fold(total, 1.0)
    return total.view(-1)


def _most(packet: Packet) -> int:
    """A bound in bytes on one worker's message, flag and length: four times the values at full width, and some."""
    return 128 + 4 * packet.width


def _take(buffer: np.ndarray, at: int, size: int) -> tuple[np.ndarray, int]:
    if at + size > len(buffer):
        raise Malformed(f"{len(buffer)} bytes came where at least {at + size} were due")
    return buffer[at : at + size], at + size


def _hosts(block: Block, to: np.ndarray | None) -> bool:
    return block.size > 0 and (to is None or bool(np.any((to >= block.low) & (to < block.high))))
