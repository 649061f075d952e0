"""The link: everything that a text may say to the network, and the randomness that goes with it."""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from laconic.core.compressor import Compressor, Exact, Packet, Sent
from laconic.core.flight import AllReduce, Downlink, Look, Show, Uplink
from laconic.core.keys import SERVER, Keys
from laconic.core.message import Message
from laconic.core.problem import Block
from laconic.core.state import Leaf, Placement, flatten, put, restore, take
from laconic.kernels.fold import combined

_EXACT = Exact()


@dataclass(frozen=True)
class Cohort:
    """The workers who act. `rows` are the local rows among them; `members` all of them, None where only they know.

    `private` decisions cost each worker of the problem one byte of flag when the cohort speaks.
    """

    rows: np.ndarray
    members: np.ndarray | None

    @property
    def private(self) -> bool:
        """Whether only the members know that they are."""
        return self.members is None


# of a message that is about to leave: its packet, v, and the `other` and sign where it is one of v + sign other
Observer = Callable[[Packet, Tensor, "Tensor | None", int], None]


@dataclass
class _Root:
    """What all scopes of one link share."""

    block: Block
    seed: int
    holds_server: bool
    step: int = 0
    ordinals: Counter[str] = field(default_factory=Counter)
    states: dict[str, Any] = field(default_factory=dict)  # of compressors, by address
    saved: dict[str, Leaf] = field(default_factory=dict)  # leaves of such states that nobody has asked for yet
    remarks: dict[str, dict[int, float]] = field(default_factory=dict)  # text -> step -> the worst number there
    observer: Observer | None = None


class Link:
    """One party's end of the network: a block of workers, and the server's part where it holds it.

    In the replicated topology every party holds the server's part; in a star one does, and every value of the server
    is NaN on the others until it is broadcast.

    Parameters
    ----------
    block : the workers hosted here.
    seed : of the run; every draw is a function of it, the step, the scope, the kind of draw and the worker.
    holds_server : whether the server's values are computed here.
    """

    def __init__(self, block: Block, seed: int = 0, holds_server: bool = True) -> None:
        self._root = _Root(block, seed, holds_server)
        self._path = ""
        self._lent: Any = None
        self._who: Cohort | None = None

    @property
    def block(self) -> Block:
        """The workers hosted here."""
        return self._root.block

    @property
    def n(self) -> int:
        """The workers of the whole problem."""
        return self._root.block.n

    @property
    def holds_server(self) -> bool:
        """Whether the server's values are computed here."""
        return self._root.holds_server

    @property
    def step(self) -> int:
        """The iteration that `begin` started."""
        return self._root.step

    def begin(self, step: int) -> None:
        """Starts an iteration: draws are addressed by it, and ordinals of draws start again."""
        self._root.step = step
        self._root.ordinals.clear()

    def scope(self, name: str) -> Link:
        """The same link, with randomness and compressor states addressed under a name."""
        return self._view(f"{self._path}/{name}", self._lent, self._who)

    def lending(self, state: Any) -> Link:
        """The same link, where uplinks' compressors that borrow such a state (of all local rows) work with this one.

        It stays the lender's: the link does not keep it, and drops what they make of it. Scopes of it lend it too.
        """
        return self._view(self._path, state, self._who)

    def among(self, who: Cohort) -> Link:
        """The same link for a text that only these workers run: its rows are theirs, and nobody else speaks.

        Means over workers stay (1/n) times the sum over those who spoke. Further cohorts and all-reduces need all
        workers and are refused there; private decisions (`volunteers`) are not.
        """
        if self._who is not None:
            raise ValueError("a cohort inside a cohort: take the workers of both at once")
        return self._view(self._path, None if self._lent is None else take(self._lent, who.rows), who)

    def _view(self, path: str, lent: Any, who: Cohort | None) -> Link:
        inner = type(self).__new__(type(self))
        inner._root, inner._path, inner._lent, inner._who = self._root, path, lent, who
        return inner

    def _everyone(self, what: str) -> None:
        if self._who is not None:
            raise ValueError(f"{what} needs all workers, and this text runs among some of them")

    @property
    def local(self) -> int:
        """How many local workers run this text: the rows of its vectors."""
        return self.block.size if self._who is None else len(self._who.rows)

    @property
    def _rows(self) -> np.ndarray:
        """The rows of the block whose text this is."""
        return np.arange(self.block.size) if self._who is None else self._who.rows

    # ---- randomness -------------------------------------------------------------------------------------------

    def keys(self, kind: str) -> Keys:
        """Fresh addresses for the local workers; the ordinal of the draw in this scope and step is part of them."""
        keys = self._all_keys(kind)
        return keys if self._who is None else keys.at(self._who.rows)

    def _all_keys(self, kind: str) -> Keys:
        return Keys(self._root.seed, self._root.step, self._address(kind), self.block.workers, self.n)

    def _address(self, kind: str) -> str:
        stream = f"{self._path}/{kind}"
        ordinal = self._root.ordinals[stream]
        self._root.ordinals[stream] += 1
        return f"{stream}{ordinal}"

    def coin(self, probability: float) -> bool:
        """One coin that all parties share."""
        return bool(self.keys("coin").shared.coins(probability))

    def coins(self, probability: float | Tensor) -> Tensor:
        """One private coin per local worker, bool of shape (local,)."""
        return self.keys("coins").uniform(1)[:, 0] < probability

    def sample(self, m: int) -> Cohort:
        """m of the n workers, uniformly without replacement, the same on all parties."""
        return self.cohort(self.keys("sample").shared.subsets(self.n, m)[0])

    def bernoulli(self, probability: float) -> Cohort:
        """Each worker with a probability, independently; all parties know who."""
        keys = self.keys("bernoulli")
        everyone = Keys(keys.seed, keys.step, keys.stream, np.arange(self.n), self.n)
        return self.cohort(np.flatnonzero(everyone.coins(probability).numpy()))

    def cohort(self, members: np.ndarray) -> Cohort:
        """The workers with these numbers, known to all parties."""
        self._everyone("a cohort")
        here = members[(members >= self.block.low) & (members < self.block.high)]
        return Cohort(here - self.block.low, members)

    def volunteers(self, mask: Tensor) -> Cohort:
        """The local workers who privately decide to speak; mask is bool of shape (local,)."""
        return Cohort(np.flatnonzero(mask.numpy()), None)

    # ---- messages ---------------------------------------------------------------------------------------------

    def compress(
        self,
        compressor: Compressor | None,
        v: Tensor,
        who: Cohort | None = None,
        *,
        plus: Tensor | None = None,
        minus: Tensor | None = None,
    ) -> Packet:
        """Makes the messages of the local workers, one per row of v (as many rows as speak). Sends nothing.

        They are those of v + plus or v - minus where one of these is given, which a compressor need not form.
        """
        mine = self._rows
        rows = mine if who is None else mine[who.rows]
        lent = self._lent if who is None or self._lent is None else take(self._lent, who.rows)
        if v.shape[0] != len(rows):
            raise ValueError(f"uplink of {v.shape[0]} rows for {len(rows)} speaking workers")
        if plus is not None and minus is not None:
            raise ValueError("a message of v + plus or of v - minus, not of both at once")
        other, sign = (plus, 1) if minus is None else (minus, -1)
        packet = self._pack(compressor or _EXACT, v, self._all_keys("up"), rows, lent, other, sign)
        who = who or self._who
        if who is None:
            return packet
        asked = self._who.members if who.private and self._who is not None else None
        return dataclasses.replace(packet, members=who.members, private=who.private, asked=asked)

    def _pack(
        self,
        compressor: Compressor,
        v: Tensor,
        keys: Keys,
        rows: np.ndarray,
        lent: Any = None,
        other: Tensor | None = None,
        sign: int = 1,
    ) -> Packet:
        """The message of v or, where there is an `other`, of v + sign other."""
        shape, everyone, borrowed = tuple(v.shape[1:]), len(rows) == keys.rows, isinstance(lent, compressor.borrows)
        state = lent if borrowed else self._state(compressor, shape, v.dtype, keys)
        if not everyone:
            keys, state = keys.at(rows), state if borrowed else take(state, rows)
        if other is None:
            codes, state = compressor.advance(v, keys, state)
        elif state is None:
            codes = compressor.codes_of_sum(v, other, sign, keys)
        else:
            codes, state = compressor.advance(combined(v, other, sign), keys, state)
        message = Message(compressor.schema(shape, v.dtype, keys), codes, v.shape[0])
        return Packet(compressor, message, keys, shape, v.dtype, rows, state=None if borrowed else state)

    def _state(self, compressor: Compressor, shape: tuple[int, ...], dtype: torch.dtype, keys: Keys) -> Any:
        """The compressor's state at an address, for all local rows: as it was left, as it was saved, or a first one."""
        address = keys.stream
        if address in self._root.states:
            return self._root.states[address]
        state = compressor.start(shape, dtype, keys)
        if state is not None:
            names = [name for name in self._root.saved if name.startswith(f"{address}#")]
            saved = {name.removeprefix(f"{address}#"): self._root.saved.pop(name).tensor for name in names}
            self._root.states[address] = state = restore(state, saved) if saved else state
        return state

    def _arrived(self, packet: Packet) -> None:
        """Keeps the state that a compressor has moved on to, now that its message is there."""
        if packet.state is not None:
            address = packet.keys.stream
            self._root.states[address] = put(self._root.states[address], packet.rows, packet.state)

    def again(self, packet: Packet, v: Tensor) -> Packet:
        """The message of other vectors by a packet's compressor at its addresses: the same coins, the same state lent.

        Instead of the packet, for as many speaking rows; for compressors without a state of their own. Sends nothing.
        """
        made = self._pack(packet.compressor, v, packet.keys, packet.rows, self._lent)
        return dataclasses.replace(made, members=packet.members, private=packet.private, asked=packet.asked)

    async def uplink(
        self,
        what: Packet | Compressor | None,
        v: Tensor | None = None,
        who: Cohort | None = None,
        *,
        plus: Tensor | None = None,
        minus: Tensor | None = None,
        apart: bool = False,
    ) -> Sent:
        """Compresses, sends and decodes: one message to the server of each local worker in `who` (None: of all).

        `what` is a packet made before, a compressor for v (speaking rows, *shape), or None for v as it is; `plus` and
        `minus` are those of `compress`; `apart`: the server needs each worker's message (`mean.spread`), not only the
        mean.
        """
        if not isinstance(what, Packet):
            if v is None:
                raise ValueError("uplink needs a packet, or a compressor and values")
            what = self.compress(what, v, who, plus=plus, minus=minus)
            if self._root.observer is not None:
                self._root.observer(what, v, plus if minus is None else minus, 1 if minus is None else -1)
        sent = await Uplink(what, apart)
        self._arrived(what)
        return sent if self._who is None else sent.among(self._who.rows)

    async def broadcast(self, x: Tensor, compressor: Compressor | None = None, to: Cohort | None = None) -> Tensor:
        """The server's x (*shape) as the workers in `to` (None: all) decode it; NaN on parties without any."""
        keys = Keys(self._root.seed, self._root.step, self._address("down"), np.array([SERVER]), self.n)
        chosen, rows, shape = compressor or _EXACT, np.zeros(1, dtype=np.int64), tuple(x.shape)
        if self.holds_server:
            packet = self._pack(chosen, x[None], keys, rows)
        else:
            packet = Packet(chosen, Message(chosen.schema(shape, x.dtype, keys), (), 1), keys, shape, x.dtype, rows)
        x = await Downlink(packet, None if to is None else to.members)
        self._arrived(packet)
        return x

    async def all_reduce(self, v: Tensor) -> Tensor:
        """The mean over all workers of v (local, *shape), on every party, (*shape): for what sums in flight."""
        self._everyone("an all-reduce")
        return await AllReduce(self._pack(_EXACT, v, self.keys("sum"), np.arange(self.block.size)))

    def at_server(self, compute: Callable[[], Tensor], like: Tensor) -> Tensor:
        """Work that the server alone does; NaN of the shape of `like` on other parties."""
        return compute() if self.holds_server else torch.full_like(like, math.nan)

    # ---- compressors' explicit states -------------------------------------------------------------------------

    def compressor_leaves(self) -> dict[str, Leaf]:
        """Explicit states of compressors as named leaves, to be checkpointed with the method's state."""
        leaves = dict(self._root.saved)
        for address, state in self._root.states.items():
            servers = address.rpartition("/")[2].startswith("down")
            for name, leaf in flatten(state).items():
                leaves[f"{address}#{name}"] = dataclasses.replace(leaf, placement=Placement.SERVER) if servers else leaf
        return leaves

    def restore_compressors(self, leaves: dict[str, Leaf]) -> None:
        """Goes on from leaves as `compressor_leaves` gave them: each state is taken up when it is next asked for."""
        self._root.states.clear()
        self._root.saved = dict(leaves)

    # ---- observation, off the books ---------------------------------------------------------------------------

    def observe(self, observer: Observer | None) -> None:
        """From now on, calls it with every message that `uplink` makes of a vector, before it leaves. None ends it."""
        self._root.observer = observer

    def remark(self, text: str, number: float) -> None:
        """Notes that something worth telling happened in this iteration, and how bad it was; larger is worse.

        Nothing is sent: whoever runs the text collects the remarks of all parties, and tells each text once.
        """
        number = math.inf if math.isnan(number) else float(number)
        worst = self._root.remarks.setdefault(text, {})
        worst[self.step] = max(worst.get(self.step, number), number)

    @property
    def remarks(self) -> dict[str, dict[int, float]]:
        """What was remarked here: the worst number of each iteration, by text."""
        return self._root.remarks

    async def look(self, rows: Tensor) -> Tensor:
        """One row per local worker (local, ...) as the rows of all workers (n, ...), on every party; not counted."""
        return await Look(rows)

    async def show(self, value: Tensor) -> Tensor:
        """A value of the server on every party; not counted."""
        return await Show(value)
