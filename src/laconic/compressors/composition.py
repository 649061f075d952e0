"""Sparsifiers, and what travels of the values they keep: `topk(k=0.01) | natural`."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from laconic.compressors._parts import joined, take_pure, worst
from laconic.core.compressor import (
    AB,
    Claim,
    Compressor,
    Contractive,
    Decoded,
    Unbiased,
    as_contractive,
    as_joint,
    as_unbiased,
)
from laconic.core.entry import Source
from laconic.core.keys import Keys
from laconic.core.message import CountIn, Message, Schema, Slot

FEW = 1 << 16  # so many numbers of values are looked through for the worst claim on them


class Sparsifier(Compressor):
    """Keeps some coordinates, as they are or times a factor that both ends know.

    The last field of its message holds their values at full width, the fields before it say which coordinates they
    are, and `decode` gives a :class:`Sparse` of just these values. So the values may travel in another way.
    """

    @property
    def factor(self) -> float:
        """What kept values are multiplied by, where the claim is contractive."""
        return 1.0

    @abstractmethod
    def numbers(self, d: int, n: int) -> range:
        """How many values a message of d coordinates may hold, for n workers."""

    def __or__(self, other: Compressor) -> Compressor:
        return Composition(self, other) if isinstance(other, Compressor) else NotImplemented


@dataclass(frozen=True)
class Composition(Compressor):
    """`first | second`: which coordinates a sparsifier keeps, then their values in the message of a second compressor.

    The second one works on the vector of kept values, in index order, and draws from a stream of its own. The operator
    associates: `a | b | c` is `a | (b | c)`.

    Claim, with omega, alpha of the first and w of the second for as many values as are kept (the worst, where their
    number is random). Both unbiased: (1 + omega)(1 + w) - 1 (Horvath et al.). A first one that keeps values as they are
    (TopK): alpha (1 - w) for an unbiased second with w < 1, alpha alpha' for a contractive one (derived: the error is
    ||x||^2 - ||x_S||^2 plus that of the second on x_S). So `topk(k=0.01) | natural` has 7/8 of TopK's alpha and
    `topk(k=0.01) | scaled(natural)` 8/9. A first one drawn jointly with A and B: B stays, A grows by w (1 + omega) / n,
    and by w (1 + omega) where the second draws jointly as well (derived: the second's errors are orthogonal to the
    first's, and to each other if independent). None in other cases, and where the numbers of values are too many.

    Pitfalls: rows may keep different numbers of values. Where the seed says how many (PermK, Bernoulli), the second's
    fields must have the same coding for all of them; where only the message does (threshold), each field must moreover
    hold one code per value or a constant number. A row that keeps nothing sends nothing but such constants, as zeros.

    Parameters
    ----------
    first : a sparsifier.
    second : any compressor without a state, for the kept values.

    >>> from laconic.compressors.natural import Natural
    >>> from laconic.compressors.randk import RandK
    >>> str(RandK(k=2) | Natural()), (RandK(k=2) | Natural()).claim(d=10, n=3)
    ('randk(k=2) | natural', Unbiased(omega=4.625))
    """

    first: Compressor
    second: Compressor

    name = "composition"
    example = "topk(k=0.01) | natural"
    layout = (
        "the fields of the sparsifier's message but for the values, then the fields of the second compressor's message"
        " on the values"
    )
    source = Source(
        "Horvath, Ho, Horvath, Sahu, Canini, Richtarik",
        2019,
        "Natural compression for distributed deep learning",
        "1905.10988",
        "composition of unbiased compressors",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        take_pure(self, "first")
        take_pure(self, "second")
        if not isinstance(self.first, Sparsifier):
            raise ValueError(
                f"Composition(first={self.first}) : first must be a sparsifier, as `topk` is: `a | b` sends the values"
                f" that a keeps by b, and {self.first.name} keeps none as they are"
            )
        example = (7,), torch.float64, Keys(0, 0, "", np.arange(3), 3)
        if not isinstance(self.first.schema(*example)[-1].count, int):
            self.schema(*example)  # refuses pairs that have no layout before there is anything to send

    def __str__(self) -> str:
        return f"{self.first} | {self.second}"

    def __or__(self, other: Compressor) -> Compressor:
        return Composition(self.first, self.second | other)

    @property
    def sparsifier(self) -> Sparsifier:
        """`first`, which is one."""
        assert isinstance(self.first, Sparsifier)
        return self.first

    def claim(self, d: int, n: int) -> Claim | None:
        first, second = self.first.claim(d, n), self._second_claim(d, n)
        w, joint = as_unbiased(second), as_joint(first, n)
        if isinstance(first, Contractive):
            return self._contracted(first, second)
        if first is None or w is None or joint is None:
            return None
        omega = (1.0 + first.omega) * (1.0 + w) - 1.0
        if isinstance(first, Unbiased) and isinstance(second, Unbiased):
            return Unbiased(omega)
        extra = w * (1.0 + first.omega) / (n if isinstance(second, Unbiased) else 1)
        return AB(joint.A + extra, joint.B, omega)

    def _contracted(self, first: Contractive, second: Claim | None) -> Contractive | None:
        """For values times a: ||x||^2 - (a (2 - a) - w a^2) ||x_S||^2, alpha being a (2 - a) times the kept share."""
        w, alpha, a = as_unbiased(second), as_contractive(second), self.sparsifier.factor
        kept = 1.0 - w * a / (2.0 - a) if w is not None else alpha if a == 1.0 else None
        return Contractive(first.alpha * kept) if kept is not None and kept > 0.0 else None

    def _second_claim(self, d: int, n: int) -> Claim | None:
        numbers = self.sparsifier.numbers(d, n)
        return worst([self.second.claim(m, n) for m in numbers if m], n) if len(numbers) <= FEW else None

    def share(self, d: int, n: int) -> float:
        own = self.first.share(d, n)
        return own * self.second.share(max(1, round(own * d)), n)

    def schema(self, shape: tuple[int, ...], dtype: torch.dtype, keys: Keys) -> Schema:
        *where, values = self.first.schema(shape, dtype, keys)
        if isinstance(values.count, np.ndarray):
            numbers = self.sparsifier.numbers(math.prod(shape), keys.n)
            return joined([tuple(where), self._grouped(values.count, numbers, dtype, _inner(keys))])
        if isinstance(values.count, CountIn):  # the field that says the number is one of the first message's
            return *where, *self._per_value(values.count, dtype, _inner(keys))
        return joined([tuple(where), self.second.schema((values.count,), dtype, _inner(keys))])

    def _grouped(self, counts: np.ndarray, numbers: range, dtype: torch.dtype, keys: Keys) -> Schema:
        """The second one's fields where the seed says how many values each row keeps."""
        ends = [max(1, numbers[0]), max(1, numbers[-1])]
        slots = [self.second.schema((m,), dtype, keys.at([])) for m in ends]
        total = [np.zeros(len(counts), dtype=np.int64) for _ in slots[0]]
        for m, rows in _groups(counts):
            slots.append(self.second.schema((m,), dtype, keys.at(rows)))
            for count, slot in zip(total, slots[-1], strict=False):
                count[rows] = 0 if isinstance(slot.count, CountIn) else slot.count
        if any(_codings(other) != _codings(slots[0]) for other in slots) or _counts_itself(slots[0]):
            raise ValueError(
                f"{self} : the rows of {self.first.name} keep different numbers of values, and the fields of"
                f" {self.second.name} are not coded alike for {ends[0]} and {ends[1]} of them; use one whose are, as"
                " `natural` is"
            )
        return tuple(Slot(slot.coding, slot.dtype, count) for slot, count in zip(slots[0], total, strict=True))

    def _per_value(self, number: CountIn, dtype: torch.dtype, keys: Keys) -> Schema:
        """The second one's fields where the first one's message says how many values there are."""
        sizes = sorted({1, *(min(m, number.most) for m in (2, 3, number.most // 2 + 1)), number.most})
        schemas = [self.second.schema((m,), dtype, keys) for m in sizes]
        fields = list(zip(*schemas, strict=False))
        counts = [[slot.count if isinstance(slot.count, int) else -1 for slot in field] for field in fields]
        known = all(count[0] >= 0 and count in (sizes, count[:1] * len(sizes)) for count in counts)
        if not known or len({_codings(schema) for schema in schemas}) > 1:
            raise ValueError(
                f"{self} : how many values {self.first.name} keeps is known from its message alone, so that every field"
                f" of {self.second.name} must hold one code per value or a constant number, as `natural`'s does"
            )
        return tuple(
            Slot(field[0].coding, field[0].dtype, number if count == sizes else count[0])
            for field, count in zip(fields, counts, strict=True)
        )

    def codes(self, v: Tensor, keys: Keys) -> tuple[Tensor, ...]:
        return self._further(self.first.codes(v, keys), tuple(v.shape[1:]), keys)

    def codes_of_sum(self, v: Tensor, other: Tensor, sign: int, keys: Keys) -> tuple[Tensor, ...]:
        return self._further(self.first.codes_of_sum(v, other, sign, keys), tuple(v.shape[1:]), keys)

    def _further(self, kept: tuple[Tensor, ...], shape: tuple[int, ...], keys: Keys) -> tuple[Tensor, ...]:
        """What travels instead of the first one's message: the second one's of its values."""
        *where, values = kept
        rows, inner, schema = keys.rows, _inner(keys), self.first.schema(shape, values.dtype, keys)
        if isinstance(schema[-1].count, int):
            return *where, *self.second.codes(values.view(rows, schema[-1].count), inner)
        begins = Message(schema, kept, rows).offsets[-1]
        slots = self.schema(shape, values.dtype, keys)[len(where) :]
        sizes = [_sizes(slot, np.diff(begins)) for slot in slots]
        out = [torch.zeros(int(size.sum()), dtype=slot.dtype) for slot, size in zip(slots, sizes, strict=True)]
        for m, own in _groups(np.diff(begins)):
            places = torch.from_numpy(begins[own][:, None] + np.arange(m))
            codes = self.second.codes(values[places], inner.at(own))
            for field, size, code in zip(out, sizes, codes, strict=True):
                field[_places(size, own)] = code
        return *where, *out

    def decode(self, message: Message, shape: tuple[int, ...], dtype: torch.dtype, keys: Keys) -> Decoded:
        schema, rows, inner = self.first.schema(shape, dtype, keys), message.rows, _inner(keys)
        first = len(schema) - 1
        where, codes = message.codes[:first], message.codes[first:]
        count = schema[-1].count
        if isinstance(count, int):
            heard = Message(self.second.schema((count,), dtype, inner), codes, rows)
            values = self.second.decode(heard, (count,), dtype, inner).dense().reshape(-1)
            return self.first.decode(Message(schema, (*where, values), rows), shape, dtype, keys)
        numbers = count if isinstance(count, np.ndarray) else where[count.slot].numpy().astype(np.int64)
        sizes = [_sizes(slot, numbers) for slot in message.schema[first:]]
        values = torch.zeros(int(numbers.sum()), dtype=dtype)
        for m, own in _groups(numbers):
            parts = tuple(code[_places(size, own)] for code, size in zip(codes, sizes, strict=True))
            heard = Message(self.second.schema((m,), dtype, inner.at(own)), parts, len(own))
            values[_places(numbers, own)] = self.second.decode(heard, (m,), dtype, inner.at(own)).dense().reshape(-1)
        return self.first.decode(Message(schema, (*where, values), rows), shape, dtype, keys)


def _inner(keys: Keys) -> Keys:
    return keys.scope("values")


def _groups(counts: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    """The numbers of values there are, but for 0, and the rows that keep as many."""
    for m in np.unique(counts[counts > 0]).tolist():
        yield m, np.flatnonzero(counts == m)


def _sizes(slot: Slot, numbers: np.ndarray) -> np.ndarray:
    """How many codes of a field each row has, of rows that keep so many values."""
    if isinstance(slot.count, CountIn):
        return numbers
    return np.broadcast_to(np.asarray(slot.count, dtype=np.int64), numbers.shape)


def _places(sizes: np.ndarray, rows: np.ndarray) -> Tensor:
    """Where the codes of some rows are in a field of which each row has so many."""
    begins, own = (np.cumsum(sizes) - sizes)[rows], sizes[rows]
    return torch.from_numpy(np.repeat(begins - (np.cumsum(own) - own), own) + np.arange(int(own.sum())))


def _codings(schema: Schema) -> tuple[object, ...]:
    return tuple((slot.coding, slot.dtype) for slot in schema)


def _counts_itself(schema: Schema) -> bool:
    return any(isinstance(slot.count, CountIn) for slot in schema)
