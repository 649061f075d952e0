"""Coroutines that talk: `await` hands requests to a driver, `together` lets several travel in one flight.

No event loop: a text is advanced by hand, its requests of one moment are a flight, and a driver performs flights.
"""

from __future__ import annotations

import contextlib
import types
from collections.abc import Callable, Coroutine, Generator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from laconic.core.compressor import Packet

Text = Coroutine[Any, Any, Any]


class Ask:
    """One request to the network. Its reply is what `await` gives."""

    def __await__(self) -> Generator[list[Ask], list[Any], Any]:
        return (yield [self])[0]


@dataclass(frozen=True)
class Sending(Ask):
    """A request that sends messages."""

    packet: Packet


@dataclass(frozen=True)
class Uplink(Sending):
    """Messages of the local workers to the server, which needs them `apart` or their mean alone."""

    apart: bool = False


@dataclass(frozen=True)
class Downlink(Sending):
    """A message of the server to the workers in `to` (None: to all). Without content where the server is not."""

    to: np.ndarray | None


@dataclass(frozen=True)
class AllReduce(Sending):
    """The mean over workers of vectors that sum in flight; the packet holds them at full width."""


@dataclass(frozen=True)
class Look(Ask):
    """Off the books: one row per local worker, to become the rows of all n workers."""

    rows: Tensor


@dataclass(frozen=True)
class Show(Ask):
    """Off the books: a value of the server, for everyone."""

    value: Tensor


Flight = list[Ask]


def fail(text: Text | Generator[Flight, list[Any], Any], failure: BaseException) -> None:
    """Throws a failed flight into a text at its `await`. It may clean up; whatever it does, the failure stands."""
    with contextlib.suppress(StopIteration, type(failure)):
        text.throw(failure)


@types.coroutine
def _advance(parts: Sequence[Generator[Flight, list[Any], Any]]) -> Generator[Flight, list[Any], list[Any]]:
    live, results = dict(enumerate(parts)), [None] * len(parts)
    answers: dict[int, list[Any] | None] = {}
    while live:
        flight: Flight = []
        shares: list[tuple[int, int]] = []
        for i, part in list(live.items()):
            try:
                asks = part.send(answers.get(i))  # type: ignore[arg-type]
            except StopIteration as stop:
                results[i] = stop.value
                del live[i]
                continue
            shares.append((i, len(asks)))
            flight += asks
        if flight:
            try:
                replies = yield flight
            except BaseException as failure:
                for i, _ in shares:
                    fail(live[i], failure)
                raise
            for i, count in shares:
                answers[i], replies = replies[:count], replies[count:]
    return results


async def together(*parts: Any) -> list[Any]:
    """Awaits several requests or coroutines at once; what they ask at the same time travels in one flight.

    >>> gradient, matrix = await together(link.uplink(a, g), mechanism.exchange(v, memory, link))  # doctest: +SKIP
    """
    return await _advance([part.__await__() for part in parts])


def drive(text: Text, perform: Callable[[Flight], list[Any]]) -> Any:
    """Runs a text to its end; `perform` answers each flight."""
    replies: list[Any] | None = None
    while True:
        try:
            flight = text.send(replies)
        except StopIteration as stop:
            return stop.value
        try:
            replies = perform(flight)
        except BaseException as failure:
            fail(text, failure)
            raise
