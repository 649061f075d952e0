"""Everything in one process: the simulator, k parts of one text in lockstep, and the star debug link."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from laconic.core.compressor import Mean, Packet
from laconic.core.flight import AllReduce, Ask, Downlink, Flight, Look, Sending, Show, Text, Uplink, fail
from laconic.core.ledger import Account, Ledger
from laconic.core.link import Link
from laconic.core.message import Message
from laconic.core.problem import Block
from laconic.runtime.base import Runtime, downlink_bytes, received, uplink_bytes


class Diverged(RuntimeError):
    """Parties that run the same text ask for different things: some decision in it is not shared."""


class Cheating(RuntimeError):
    """A worker uses a value of the server that was never sent to it."""


class Local(Runtime):
    """n workers in this process.

    Parameters
    ----------
    n : workers.
    seed : of the run.
    parts : how many parties share them; 1 is the simulator, more run the text in lockstep.
    star : whether only the first party holds the server's values. The debug link is `Local.debug(n)`.
    encoded : whether every message travels as bytes, and the receivers decode those.

    >>> runtime = Local(3)
    >>> runtime.n
    3
    """

    def __init__(self, n: int, *, seed: int = 0, parts: int = 1, star: bool = False, encoded: bool = False) -> None:
        self._host(Block.deal(n, parts), seed, star, encoded)

    @staticmethod
    def debug(n: int, *, seed: int = 0, encoded: bool = False) -> Local:
        """The star debug link: a server with no worker, and the workers in two parties that hold NaN for its values."""
        runtime = Local.__new__(Local)
        blocks = [Block(0, 0, n), Block(0, n // 2, n), Block(n // 2, n, n)]
        runtime._host([b for b in blocks if b.size or b is blocks[0]], seed, True, encoded)
        return runtime

    def _host(self, blocks: Sequence[Block], seed: int, star: bool, encoded: bool) -> None:
        self.star, self.encoded = star, encoded
        self.ledger = Ledger(blocks[0].n)
        self.links = [Link(block, seed, holds_server=not star or part == 0) for part, block in enumerate(blocks)]

    def drive(self, *texts: Text) -> list[Any]:
        live: list[Text] = list(texts)
        results: list[Any] = [None] * len(live)
        replies: list[list[Any] | None] = [None] * len(live)
        while True:
            flights: list[Flight] = []
            for part, text in enumerate(live):
                try:
                    flights.append(text.send(replies[part]))
                except StopIteration as stop:
                    results[part] = stop.value
            if not flights:
                return results
            if len(flights) < len(live):
                raise Diverged(f"{len(live) - len(flights)} of {len(live)} parties have ended while others still ask")
            try:
                replies = list(self.perform(flights))
            except BaseException as failure:
                for text in live:
                    fail(text, failure)
                raise

    def perform(self, flights: Sequence[Flight]) -> list[list[Any]]:
        """Answers the flights of all parties, which ask for the same things at the same time."""
        shapes = [[_signature(ask) for ask in flight] for flight in flights]
        for part, shape in enumerate(shapes):
            if shape != shapes[0]:
                raise Diverged(f"party 0 asks for {shapes[0]} and party {part} for {shape}")
        account = Account()
        columns = [self._answer(asks, account) for asks in zip(*flights, strict=True)]
        self.ledger.flight(account)
        return [[column[part] for column in columns] for part in range(len(flights))]

    def _answer(self, asks: Sequence[Ask], account: Account) -> list[Any]:
        first = asks[0]
        packets = [ask.packet for ask in asks if isinstance(ask, Sending)]
        if isinstance(first, Uplink):
            return self._uplink(packets, account)
        if isinstance(first, Downlink):
            return self._downlink(first.packet, first.to, account)
        if isinstance(first, AllReduce):
            return self._all_reduce(packets, account)
        if isinstance(first, Look):
            parts = [ask.rows for ask in asks if isinstance(ask, Look)]
            rows = parts[0] if len(parts) == 1 else torch.cat(parts)
            return [rows for _ in asks]
        if isinstance(first, Show):
            return [first.value.clone() for _ in asks]
        raise TypeError(f"{type(first).__name__} is no request that a runtime knows")

    def _uplink(self, packets: list[Packet], account: Account) -> list[Any]:
        self._watch(packets)
        packets = [self._through_bytes(packet) for packet in packets]
        account.said_up(uplink_bytes(packets[0], packets, self.n), sum(p.message.rows for p in packets))
        return [received(link, own, packets) for link, own in zip(self.links, packets, strict=True)]

    def _downlink(self, packet: Packet, to: np.ndarray | None, account: Account) -> list[Any]:
        packet = self._through_bytes(packet)
        down = downlink_bytes(packet, self.n, to)
        account.said_down(down, self.n if to is None else len(to))
        x = packet.decoded.dense()[0]
        hears = [link.holds_server or bool(down[link.block.low : link.block.high].any()) for link in self.links]
        return [x.clone() if there else torch.full_like(x, torch.nan) for there in hears]

    def _all_reduce(self, packets: list[Packet], account: Account) -> list[Any]:
        self._watch(packets)
        account.summed(uplink_bytes(packets[0], packets, self.n))
        return [Mean(packets, self.n).dense() for _ in self.links]

    def _through_bytes(self, packet: Packet) -> Packet:
        if not self.encoded:
            return packet
        message = packet.message
        return dataclasses.replace(packet, message=Message.unpack(message.pack(), message.nbytes, message.schema))

    def _watch(self, packets: list[Packet]) -> None:
        if not self.star:
            return
        for link, packet in zip(self.links, packets, strict=True):
            if not link.holds_server and torch.isnan(packet.decoded.dense()).any():
                stream = packet.keys.stream
                raise Cheating(
                    f"a worker sends NaN in {stream!r}: it uses a value of the server that was not broadcast"
                )


def _signature(ask: Ask) -> tuple[Any, ...]:
    """What must be alike on all parties for a request to be the same request."""
    if isinstance(ask, Sending):
        packet = ask.packet
        return (type(ask).__name__, type(packet.compressor).__name__, packet.keys.stream, packet.shape)
    return (type(ask).__name__,)
