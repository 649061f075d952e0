"""Compressors, what they claim, and decoded messages."""

from __future__ import annotations

import dataclasses
import functools
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar, cast

import numpy as np
import torch
from torch import Tensor

from laconic.core.entry import Entry, parameters
from laconic.core.floats import finite, wide
from laconic.core.keys import Keys
from laconic.core.message import Message, Schema, Slot
from laconic.core.theory import Setting
from laconic.kernels import fold, memory
from laconic.wire.coding import Bits

E = TypeVar("E", bound=Entry)
CHUNK = 1 << 22  # elements decoded at once when other processes' dense messages are folded


@dataclass(frozen=True)
class Unbiased:
    """E Q(x) = x and E||Q(x) - x||^2 <= omega ||x||^2, independent over workers."""

    omega: float


@dataclass(frozen=True)
class MatrixUnbiased(Unbiased):
    """Unbiased, and more is known in worker i's own norm ||x||_i^2 = <x, L_i^-1 x>, L_i f_i's smoothness matrix:

    E||Q_i(x) - x||^2 <= expected ||x||_i^2 and E||Q_i(x) - x||_i^2 <= own ||x||_i^2. In that norm the squared
    difference of two gradients of a convex f_i is at most twice its Bregman distance, so that `expected` stands in
    theorems for omega L_max.

    Attributes
    ----------
    norm2 : gives ||v_r||_i^2 per row of v (rows, *shape) for the numbers i of the rows' workers.
    """

    expected: float
    own: float
    norm2: Callable[[Tensor, np.ndarray], Tensor] = dataclasses.field(compare=False, repr=False)


@dataclass(frozen=True)
class Contractive:
    """E||C(x) - x||^2 <= (1 - alpha) ||x||^2 with 0 < alpha <= 1."""

    alpha: float


@dataclass(frozen=True)
class AB:
    """Unbiased and drawn jointly over workers, each single Q_i with its `omega`:

    E||(1/n) sum Q_i(a_i) - mean a||^2 <= A (1/n) sum ||a_i||^2 - B ||mean a||^2.
    """

    A: float
    B: float
    omega: float


Claim = Unbiased | Contractive | AB


def as_unbiased(claim: Claim | None) -> float | None:
    """omega, or None where a compressor is not known to be unbiased."""
    return claim.omega if isinstance(claim, (Unbiased, AB)) else None


def as_contractive(claim: Claim | None) -> float | None:
    """alpha, or None where a compressor is not known to be contractive (an unbiased one with omega < 1 is)."""
    if isinstance(claim, Contractive):
        return claim.alpha
    omega = as_unbiased(claim)
    return 1.0 - omega if omega is not None and omega < 1.0 else None


def as_joint(claim: Claim | None, n: int) -> AB | None:
    """The constants A and B of n workers' compressors, or None where they are not known to be unbiased."""
    if isinstance(claim, Unbiased):
        return AB(claim.omega / n, 0.0, claim.omega)
    return claim if isinstance(claim, AB) else None


class Decoded(ABC):
    """What a message means: one vector per row, dense or sparse."""

    @abstractmethod
    def dense(self) -> Tensor:
        """The vectors, (rows, *shape); may be borrowed from the message."""

    @abstractmethod
    def scatter(self, target: Tensor, rows: np.ndarray, scale: float) -> None:
        """target[rows[r]] += scale * row r, in place; target is (local, *shape)."""

    @abstractmethod
    def fold(self, target: Tensor, scale: float) -> None:
        """target += scale * row r for r in order, in place; target is (*shape)."""


@dataclass(frozen=True)
class Dense(Decoded):
    """Every coordinate of every row, (rows, *shape)."""

    values: Tensor

    def dense(self) -> Tensor:
        return self.values

    def scatter(self, target: Tensor, rows: np.ndarray, scale: float) -> None:
        values = self.values if scale == 1.0 else scale * self.values  # add_'s alpha would be fused: one rounding less
        if len(rows) == target.shape[0]:
            target.add_(values)
        else:
            target[torch.from_numpy(rows)] += values

    def fold(self, target: Tensor, scale: float) -> None:
        rows = self.values.shape[0]
        fold.fold_dense(self.values.reshape(rows, target.numel()), scale, target.view(-1))


@dataclass(frozen=True)
class Sparse(Decoded):
    """Some coordinates of each row: flat positions and values, row r's from offsets[r] to offsets[r + 1]."""

    indices: Tensor
    values: Tensor
    offsets: np.ndarray
    shape: tuple[int, ...]

    def dense(self) -> Tensor:
        rows = len(self.offsets) - 1
        out = torch.zeros((rows, *self.shape), dtype=self.values.dtype)
        self.scatter(out, np.arange(rows), 1.0)
        return out

    def scatter(self, target: Tensor, rows: np.ndarray, scale: float) -> None:
        flat = target.view(target.shape[0], math.prod(self.shape))
        fold.scatter_rows(self.indices, self.values, self.offsets, rows, scale, flat)

    def fold(self, target: Tensor, scale: float) -> None:
        fold.fold_sparse(self.indices, self.values, scale, target.view(-1))


class Compressor(Entry, ABC):
    """Turns vectors into messages. A pure function of vectors and keys, unless `start` gives it a state.

    An author writes `schema`, `codes` and `decode`, and `claim` where there is one. `layout` is the wire in words.
    `borrows` are the types of state that it takes from a link that lends one, instead of having one of its own there.
    """

    kind: ClassVar[str] = "compressor"
    layout: ClassVar[str]
    borrows: ClassVar[tuple[type, ...]] = ()

    def claim(self, d: int, n: int) -> Claim | None:
        """What it promises for d coordinates and n workers; None promises nothing."""
        return None

    def informed(self, setting: Setting) -> Compressor:
        """The same compressor, knowing what both ends are taken to know of the problem. See also `informed`."""
        return self

    def share(self, d: int, n: int) -> float:
        """The expected size of a message as a share of the d values at full width (indices not counted)."""
        return 1.0

    @abstractmethod
    def schema(self, shape: tuple[int, ...], dtype: torch.dtype, keys: Keys) -> Schema:
        """What a receiver knows of the message before it comes: it has the keys, the shape and the dtype."""

    @abstractmethod
    def codes(self, v: Tensor, keys: Keys) -> tuple[Tensor, ...]:
        """The codes of every slot of the schema for v (rows, *shape), flat over rows. Must not write to v."""

    def codes_of_sum(self, v: Tensor, other: Tensor, sign: int, keys: Keys) -> tuple[Tensor, ...]:
        """`codes` of v + other, or of v - other where the sign is -1, bit for bit; no views of v or other.

        For compressors that need not form the sum. Not called for those with an explicit state.
        """
        return self.codes(fold.combined(v, other, sign), keys)

    @abstractmethod
    def decode(self, message: Message, shape: tuple[int, ...], dtype: torch.dtype, keys: Keys) -> Decoded:
        """What the message means, from the message and what the receiver knows."""

    def __or__(self, other: Compressor) -> Compressor:
        """This compressor, with the values that it keeps sent by another one. Those that keep no values refuse."""
        raise ValueError(
            f"{self} | {other} : what stands before | must be a sparsifier, which keeps some of the values"
        )

    def start(self, shape: tuple[int, ...], dtype: torch.dtype, keys: Keys) -> Any:
        """The explicit state of the local rows (fields marked Worker), or None for a pure compressor."""
        return None

    def advance(self, v: Tensor, keys: Keys, state: Any) -> tuple[tuple[Tensor, ...], Any]:
        """Codes and the next state. The link keeps the state, and only once the message has arrived."""
        return self.codes(v, keys), state

    def message(self, v: Tensor, keys: Keys) -> Message:
        """The message of v (rows, *shape), one row per address in `keys`, for a compressor without a state."""
        return Message(self.schema(tuple(v.shape[1:]), v.dtype, keys), self.codes(v, keys), v.shape[0])

    def compress(self, v: Tensor, keys: Keys) -> Message:
        """`message` of vectors that are looked at first.

        Raises ValueError for NaN and infinities, for vectors that are not on the CPU or have a dtype that vectors
        cannot have, and where there are not as many rows as addresses.
        """
        refuse(v, keys)
        return self.message(v, keys)


def informed(entry: E, setting: Setting) -> E:
    """The entry with every compressor in it `informed`; itself where there is nothing to know."""
    values = {p.name: getattr(entry, p.name) for p in parameters(type(entry))}
    inner = {name: (value, informed(value, setting)) for name, value in values.items() if isinstance(value, Entry)}
    changes = {name: new for name, (old, new) in inner.items() if new is not old}
    known: Any = dataclasses.replace(cast(Any, entry), **changes) if changes else entry
    return cast(E, known.informed(setting)) if isinstance(known, Compressor) else known


def refuse(v: Tensor, keys: Keys) -> None:
    """Raises ValueError, one line, for what no compressor takes."""
    wide(v.dtype)
    if v.device.type != "cpu":
        raise ValueError(f"a vector on {v.device} : it must be on the cpu; give v.cpu()")
    if v.dim() == 0 or v.shape[0] != keys.rows:
        raise ValueError(f"vectors of shape {tuple(v.shape)} for {keys.rows} addresses : the first axis is the workers")
    if not finite(v):
        row, *place = torch.nonzero(~v.isfinite())[0].tolist()
        value, worker = float(v[(row, *place)]), keys.workers[row]
        raise ValueError(f"{value} at {tuple(place)} of worker {worker}'s vector : every number must be finite")


class Exact(Compressor):
    """Every value at its full width: what travels where no compressor is named."""

    layout = "d values of the vector's own dtype, in order"

    def schema(self, shape: tuple[int, ...], dtype: torch.dtype, keys: Keys) -> Schema:
        return (Slot(Bits(8 * dtype.itemsize), dtype, math.prod(shape)),)

    def codes(self, v: Tensor, keys: Keys) -> tuple[Tensor, ...]:
        return (v.reshape(-1),)

    def decode(self, message: Message, shape: tuple[int, ...], dtype: torch.dtype, keys: Keys) -> Decoded:
        return Dense(message.codes[0].view(message.rows, *shape))


@dataclass(frozen=True)
class Packet:
    """A message on its way: which compressor made it of what, at which addresses, for which rows of its block.

    `members` are the workers who speak at all, None for everyone; `private`: only they know it, at a flag each from
    everyone in `asked` (None: all workers).
    `state` is the compressor's next state, kept by the link once the packet has arrived.
    """

    compressor: Compressor
    message: Message
    keys: Keys
    shape: tuple[int, ...]
    dtype: torch.dtype
    rows: np.ndarray
    members: np.ndarray | None = None
    private: bool = False
    asked: np.ndarray | None = None
    state: Any = None

    @property
    def width(self) -> int:
        """The bytes of one vector at full width."""
        return self.dtype.itemsize * math.prod(self.shape)

    @functools.cached_property
    def decoded(self) -> Decoded:
        """What its messages mean."""
        return self.compressor.decode(self.message, self.shape, self.dtype, self.keys)

    def flags(self, n: int) -> np.ndarray:
        """How many bytes of flag each worker pays, int64 of shape (n,)."""
        if self.asked is None:
            return np.full(n, int(self.private), dtype=np.int64)
        flags = np.zeros(n, dtype=np.int64)
        flags[self.asked] = int(self.private)
        return flags

    def parts(self) -> Iterator[Decoded]:
        """The decoded rows in order, in pieces of bounded size unless they are decoded already."""
        step = max(1, CHUNK // max(1, math.prod(self.shape)))
        if "decoded" in vars(self) or self.message.rows <= step:
            yield self.decoded
            return
        for low in range(0, self.message.rows, step):
            high = min(low + step, self.message.rows)
            keys = self.keys.at(np.arange(low, high))
            yield self.compressor.decode(self.message.at(low, high), self.shape, self.dtype, keys)


@dataclass(frozen=True)
class Own:
    """What the other side decoded from this block's own messages."""

    packet: Packet
    local: int

    def dense(self) -> Tensor:
        """(local, *shape), a fresh tensor; zero for workers who were silent."""
        out = torch.zeros((self.local, *self.packet.shape), dtype=self.packet.dtype)
        self.packet.decoded.scatter(out, self.packet.rows, 1.0)
        return out

    def add_to(self, target: Tensor, scale: float = 1.0) -> None:
        """target += scale * dense(), in place, at the cost of the messages."""
        self.packet.decoded.scatter(target, self.packet.rows, scale)


@dataclass(frozen=True)
class Mean:
    """(1/n) times the sum over the workers who spoke, added in worker order, without forming n x d."""

    packets: Sequence[Packet]
    n: int

    def dense(self) -> Tensor:
        """(*shape), a fresh tensor."""
        first = self.packets[0]
        out = memory.empty(first.shape, first.dtype).zero_()
        self.add_to(out)
        return out

    def add_to(self, target: Tensor, scale: float = 1.0) -> None:
        """target += scale * dense(), in place, at the cost of the messages."""
        for packet in self.packets:
            for part in packet.parts():
                part.fold(target, scale / self.n)

    def spread(self, target: Tensor) -> None:
        """target[i] += worker i's message, in place, (n, *shape): for a server that keeps every worker's vector."""
        for packet in self.packets:
            packet.decoded.scatter(target, packet.keys.workers, 1.0)


@dataclass(frozen=True)
class Unknown:
    """A server's value on a party that does not hold it: NaN."""

    shape: tuple[int, ...]
    dtype: torch.dtype

    def dense(self) -> Tensor:
        """NaN (*shape), a fresh tensor."""
        return torch.full(self.shape, math.nan, dtype=self.dtype)

    def add_to(self, target: Tensor, scale: float = 1.0) -> None:
        """Makes target NaN, in place."""
        target.fill_(math.nan)

    def spread(self, target: Tensor) -> None:
        """Makes target NaN, in place."""
        target.fill_(math.nan)


@dataclass(frozen=True)
class Total:
    """The mean over all workers of what they said, where some process has added it up for everyone."""

    mean: Tensor

    def dense(self) -> Tensor:
        """(*shape), a fresh tensor."""
        return self.mean.clone()

    def add_to(self, target: Tensor, scale: float = 1.0) -> None:
        """target += scale * dense(), in place."""
        target.add_(self.mean, alpha=scale)

    def spread(self, target: Tensor) -> None:
        """Not to be had here: messages are asked for apart by `link.uplink(..., apart=True)`."""
        raise ValueError("each worker's own message was not asked for")


@dataclass(frozen=True)
class Sent:
    """What an uplink leaves behind: each worker's own decoded message, the server's mean, and how many spoke.

    On a party that does not hold the server's values, `mean` is NaN and `count` counts the local speakers alone.
    """

    own: Own
    mean: Mean | Unknown | Total
    count: int

    def settle(self, v: Tensor, error: Tensor) -> None:
        """error += v - own.dense() and v[0] = mean.dense(), in place, at the cost of one pass over both.

        For one local row; no message may be a view of v.
        """
        heard, own = self._heard(), self.own.packet.decoded
        settled = (
            isinstance(own, Sparse) and heard is not None and v.is_contiguous() and error.is_contiguous()
            and fold.settle((own.indices, own.values), heard, v.view(1, -1), error.view(1, -1))
        )  # fmt: skip
        if not settled:
            error += v
            self.own.add_to(error, scale=-1.0)
            self.mean.add_to(v[0].zero_())

    def renew(self, estimate: Tensor, v: Tensor) -> None:
        """estimate += mean.dense() and v[0] = estimate, in place, at the cost of one pass over both.

        For one local row; no message may be a view of v.
        """
        heard = self._heard()
        renewed = (
            heard is not None and v.is_contiguous() and estimate.is_contiguous()
            and fold.renew(heard, estimate.view(1, -1), v.view(1, -1))
        )  # fmt: skip
        if not renewed:
            self.mean.add_to(estimate)
            v[0].copy_(estimate)

    def _heard(self) -> fold.Heard | None:
        """What all workers said, where each says its own and all of it is sparse."""
        if not isinstance(self.mean, Mean) or len(self.own.packet.rows) != 1:
            return None
        packets = self.mean.packets
        pairs = [(one.indices, one.values) for packet in packets if isinstance(one := packet.decoded, Sparse)]
        if len(pairs) < len(packets) or sum(packet.message.rows for packet in packets) != len(packets):
            return None
        return fold.Heard(pairs, 1.0 / self.mean.n)

    def among(self, rows: np.ndarray) -> Sent:
        """The same for a text whose rows are these rows of the block, in ascending order."""
        packet = dataclasses.replace(self.own.packet, rows=np.searchsorted(rows, self.own.packet.rows))
        return dataclasses.replace(self, own=Own(packet, len(rows)))
