"""Entries that the tests plant: what the kernel must carry, and what it must catch."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from laconic.compressors.randk import RandK
from laconic.core.compressor import Compressor, Decoded, Sparse
from laconic.core.estimator import Probe
from laconic.core.flight import together
from laconic.core.keys import Keys
from laconic.core.link import Link
from laconic.core.mechanism import Mechanism
from laconic.core.message import Message, Schema, Slot
from laconic.core.method import Method
from laconic.core.problem import Oracles
from laconic.core.state import Server, Worker
from laconic.core.theory import Guarantee, Setting
from laconic.mechanisms.ef21 import EF21
from laconic.wire.coding import Bits

# ---- a compressor that remembers -------------------------------------------------------------------------------------


@dataclass
class Turn:
    """Whose turn it is, and how much was sent so far."""

    next: Worker  # (rows,) int64
    sent: Worker  # (rows,) float64


@dataclass(frozen=True)
class RoundRobin(Compressor):
    """One coordinate after another, and its number; worker i begins with coordinate i."""

    name = "round_robin"
    layout = "the index in 16 bits, the value at full width"

    def schema(self, shape: tuple[int, ...], dtype: torch.dtype, keys: Keys) -> Schema:
        return Slot(Bits(16), torch.int16, 1), Slot(Bits(8 * dtype.itemsize), dtype, 1)

    def codes(self, v: Tensor, keys: Keys) -> tuple[Tensor, ...]:
        raise AssertionError("a compressor with a state is advanced")

    def start(self, shape: tuple[int, ...], dtype: torch.dtype, keys: Keys) -> Turn:
        return Turn(torch.from_numpy(keys.workers % math.prod(shape)), torch.zeros(keys.rows, dtype=torch.float64))

    def advance(self, v: Tensor, keys: Keys, state: Turn) -> tuple[tuple[Tensor, ...], Turn]:
        flat = v.reshape(v.shape[0], math.prod(v.shape[1:]))
        values = flat.gather(1, state.next[:, None])[:, 0]
        renewed = Turn((state.next + 1) % flat.shape[1], state.sent + values.abs())
        return (state.next.to(torch.int16), values), renewed

    def decode(self, message: Message, shape: tuple[int, ...], dtype: torch.dtype, keys: Keys) -> Decoded:
        indices, values = message.codes
        offsets = torch.arange(message.rows + 1).numpy()
        return Sparse(indices.to(torch.int64), values, offsets, shape)


# ---- mechanisms ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Both(Mechanism):
    """The mean of what two mechanisms say, which travel together."""

    first: Mechanism
    second: Mechanism

    name = "both"

    async def init(self, v: Tensor, link: Link, probe: Probe | None = None) -> tuple[Tensor, Any]:
        (a, left), (b, right) = await together(
            self.first.init(v.clone(), link.scope("first"), probe), self.second.init(v, link.scope("second"), probe)
        )
        return 0.5 * (a + b), [left, right]

    async def exchange(self, v: Tensor, memory: Any, link: Link, probe: Probe | None = None) -> tuple[Tensor, Any]:
        (a, left), (b, right) = await together(
            self.first.exchange(v.clone(), memory[0], link.scope("first"), probe),
            self.second.exchange(v, memory[1], link.scope("second"), probe),
        )
        return 0.5 * (a + b), [left, right]


# ---- methods that cheat ----------------------------------------------------------------------------------------------


@dataclass
class State:
    x: Server
    memory: Any = None


@dataclass(frozen=True)
class Planted(Method):
    """Gradient descent; what is wrong with it, subclasses say in `iterate`."""

    step: float = 0.1

    name = "planted"

    def settled(self, setting: Setting) -> Planted:
        return self

    def guarantee(self, setting: Setting) -> Guarantee:
        raise AssertionError("nobody asks")

    async def init(self, oracles: Oracles, link: Link) -> State:
        return State(oracles.start())

    async def iterate(self, state: State, oracles: Oracles, link: Link) -> State:
        x = await link.broadcast(state.x)
        sent = await link.uplink(None, oracles.gradients(x))
        return State(state.x - self.step * sent.mean.dense())

    def point(self, state: State) -> Tensor:
        return state.x


@dataclass(frozen=True)
class UsesBeforeBroadcast(Planted):
    """Workers look at the server's x."""

    async def iterate(self, state: State, oracles: Oracles, link: Link) -> State:
        sent = await link.uplink(None, oracles.gradients(state.x))
        return State(state.x - self.step * sent.mean.dense())


@dataclass(frozen=True)
class ReadsTheMean(Planted):
    """Workers subtract from their gradients the mean that only the server knows."""

    async def iterate(self, state: State, oracles: Oracles, link: Link) -> State:
        gradients = oracles.gradients(await link.broadcast(state.x))
        sent = await link.uplink(None, gradients)
        again = await link.uplink(None, gradients - sent.mean.dense())
        return State(state.x - self.step * (sent.mean.dense() + again.mean.dense()))


@dataclass(frozen=True)
class HasAPrivateCoin(Planted):
    """The first worker of each party decides for it whether anything is sent."""

    async def iterate(self, state: State, oracles: Oracles, link: Link) -> State:
        coins = link.coins(0.5)
        x = await link.broadcast(state.x)
        if bool(coins[:1].any()):
            sent = await link.uplink(None, oracles.gradients(x))
            return State(state.x - self.step * sent.mean.dense())
        return dataclasses.replace(state)


@dataclass(frozen=True)
class EndsEarly(Planted):
    """A party without workers says nothing."""

    async def iterate(self, state: State, oracles: Oracles, link: Link) -> State:
        return await super().iterate(state, oracles, link) if link.block.size else state


@dataclass(frozen=True)
class Silent(Planted):
    """Workers speak privately: with `only`, one of them; else nobody."""

    only: int = -1

    async def iterate(self, state: State, oracles: Oracles, link: Link) -> State:
        x = await link.broadcast(state.x)
        who = link.volunteers(torch.from_numpy(link.block.workers == self.only))
        sent = await link.uplink(EF21(RandK(k=2)).compressor, oracles.gradients(x, who.rows), who)
        assert sent.own.dense().shape[0] == link.block.size
        return State(
            state.x - self.step * sent.mean.dense(), memory=float(sent.count) if link.holds_server else math.nan
        )
