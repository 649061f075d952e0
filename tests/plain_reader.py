"""A reader of messages in plain Python, written from docs/wire.md alone: what it says is the verdict on any bytes.

It is slow, holds each row as one large integer, and refuses by raising Refused with the number of the field.
"""

from __future__ import annotations

import bisect
from collections.abc import Sequence

import numpy as np

from laconic.core.message import CountIn, Schema, Slot
from laconic.wire.coding import Bits, Coding, Subset
from laconic.wire.levels import Levels

ROOTS = (2147483648, 2341847524, 2553802834, 2784941738, 3037000500, 3311872529, 3611622603, 3938502376)


class Refused(Exception):
    """What a reader refuses. `field` is the number of the field, None for lengths, padding and surplus bytes."""

    def __init__(self, why: str, field: int | None = None) -> None:
        super().__init__(why)
        self.field = field


class Row:
    """The bits of one message, and how far they have been read."""

    def __init__(self, data: bytes) -> None:
        self.stream, self.at, self.end = int.from_bytes(data, "little"), 0, 8 * len(data)

    @property
    def left(self) -> int:
        return self.end - self.at

    def take(self, width: int) -> int:
        if width > self.left:
            raise Refused("the message ends inside a field")
        self.at += width
        return self.stream >> (self.at - width) & ((1 << width) - 1)

    def zeros(self, width: int) -> None:
        if self.take(width):
            raise Refused("bits that fill up are not zero")

    def unary(self, most: int) -> int:
        """How many ones come before a zero; `most` of them need no zero."""
        for ones in range(most):
            if not self.take(1):
                return ones
        return most


def codes(row: Row, coding: Coding, count: int) -> list[int]:
    """The codes of one field of a row."""
    if isinstance(coding, Bits):
        if count * coding.width > row.left:
            raise Refused("the message ends inside a field")
        return [row.take(coding.width) for _ in range(count)]
    if isinstance(coding, Subset):
        return subset(row, coding.size, count)
    assert isinstance(coding, Levels), f"docs/wire.md knows no {coding}"
    return levels(row, coding.size, count)


def subset(row: Row, size: int, k: int) -> list[int]:
    """k ascending indices below size."""
    if k in (0, size):
        return list(range(k))
    if row.take(1):
        bitmap = row.take(size)
        found = [j for j in range(size) if bitmap >> j & 1]
        if len(found) != k:
            raise Refused("a bitmap without exactly k ones")
        return found
    quotient, before, found = 63073 * size // (65536 * k), -1, []
    b = quotient.bit_length() - 1 if quotient else 0
    for _ in range(k):
        before += 1 + (row.unary(row.left + 1) << b) + row.take(b)
        if before >= size:
            raise Refused("an index that reaches the size")
        found.append(before)
    return found


# ---- levels ----------------------------------------------------------------------------------------------------------


def levels(row: Row, size: int, n: int) -> list[int]:
    """n codes below size in one of three forms."""
    if n == 0:
        return []
    width, words = group(size, n)
    if words == 1 << width:
        if not row.take(1):
            return fixed(row, size, n)
    else:
        start, first = row.at, row.take(width)
        if first != words:
            row.at = start
            return fixed(row, size, n)
    return sparse(row, size, n) if row.take(1) else frequencies(row, size, n)


def group(size: int, n: int) -> tuple[int, int]:
    """The bits of the first group of the fixed form, and how many numbers in them have a meaning."""
    if size == 3:
        return (8 * min(5, n) + 4) // 5, 3 ** min(5, n)
    return (size - 1).bit_length(), size


def fixed_size(size: int, n: int) -> int:
    return 8 * (n // 5) + (8 * (n % 5) + 4) // 5 if size == 3 else n * (size - 1).bit_length()


def fixed(row: Row, size: int, n: int) -> list[int]:
    out: list[int] = []
    while len(out) < n:
        many = min(5, n - len(out)) if size == 3 else 1
        width, words = group(size, many)
        number = row.take(width)
        if number >= words:
            raise Refused("a level that reaches the size")
        out += [number // size**digit % size for digit in range(many)]
    return out


def sparse(row: Row, size: int, n: int) -> list[int]:
    k = row.take(n.bit_length())
    if k > n:
        raise Refused("more codes that are not 0 than codes")
    where, what = subset(row, n, k), [0] * k
    if k and size > 2:
        what = frequencies(row, size - 1, k) if row.take(1) else fixed(row, size - 1, k)
    out = [0] * n
    for place, code in zip(where, what, strict=True):
        out[place] = code + 1
    return out


def table(row: Row, size: int) -> tuple[list[int], int]:
    """The marks, and F."""
    top = row.take((size - 1).bit_length()) + 1
    if top > size:
        raise Refused("a table of more codes than there are")
    fine, rice = row.take(2), row.take(2)
    marks = [row.take(5 + fine)]
    while len(marks) < top:
        quotient = row.unary(8)
        if quotient == 8:
            marks.append(row.take(5 + fine))
            continue
        number = (quotient << rice) + row.take(rice)
        difference = number // 2 if number % 2 == 0 else -(number + 1) // 2
        marks.append(marks[max(0, len(marks) - 2)] + difference)
        if not 0 <= marks[-1] < 32 << fine:
            raise Refused("a mark out of its range")
    if marks[-1] == 0:
        raise Refused("a table that ends in a code that does not occur")
    return marks, fine


def shares(marks: list[int], fine: int, n: int) -> tuple[list[int], int]:
    """The frequencies, and P."""
    used = sum(mark > 0 for mark in marks)
    precision = max(min(max(n.bit_length() + 2, 8), 14), min(used.bit_length() + 3, 16))
    eighths = [mark - 1 << 3 - fine for mark in marks]
    most = max(eighths) // 8
    weights = [ROOTS[e % 8] >> most - e // 8 if e >= 0 else 0 for e in eighths]
    room, total = (1 << precision) - used, sum(weights)
    freq = [
        max(1, weight * room // total) if weight or mark else 0 for weight, mark in zip(weights, marks, strict=True)
    ]
    freq[marks.index(max(marks))] += (1 << precision) - sum(freq)
    return freq, precision


def frequencies(row: Row, size: int, n: int) -> list[int]:
    marks, fine = table(row, size)
    freq, precision = shares(marks, fine, n)
    if not row.take(1):
        body = row.take(fixed_size(size, n).bit_length())
        count = max(0, (body - 31) // 32)
        state = row.take(body - 32 * count)
        return unwind([state], [row.take(32) for _ in range(count)], n, 1, freq, precision)
    before = -row.at % 8  # a row begins at a byte
    row.zeros(before)
    segments = [min(1 << 20, n - begin) for begin in range(0, n, 1 << 20)]
    counts = [row.take(32) for _ in segments]
    out: list[int] = []
    for many, count in zip(segments, counts, strict=True):
        if 512 + 32 * count > row.left:
            raise Refused("the message ends inside a field")
        states = [row.take(64) for _ in range(8)]
        out += unwind(states, [row.take(32) for _ in range(count)], many, 1 << 31, freq, precision)
    row.zeros(7 - before)
    return out


def unwind(states: list[int], words: list[int], n: int, end: int, freq: list[int], precision: int) -> list[int]:
    """n codes from states and words, the next word last in the list."""
    starts = [sum(freq[:code]) for code in range(len(freq))]
    words, out = words[::-1], []
    while states[0] < 1 << 31 and words:
        states[0] = states[0] << 32 | words.pop()
    for j in range(n):
        x = states[j % len(states)]
        slot = x % (1 << precision)
        code = bisect.bisect_right(starts, slot) - 1
        x = freq[code] * (x >> precision) + slot - starts[code]
        if x < 1 << 31 and words:
            x = x << 32 | words.pop()
        states[j % len(states)] = x
        out.append(code)
    if words or set(states) != {end}:
        raise Refused("states that end otherwise than they must")
    return out


# ---- messages --------------------------------------------------------------------------------------------------------


def read(data: bytes, lengths: Sequence[int], schema: Schema) -> list[list[list[int]]]:
    """The codes of every field of every row, as numbers without a sign: by field, then by row."""
    if any(length < 0 for length in lengths) or sum(lengths) != len(data):
        raise Refused("lengths that are not those of the bytes")
    ends = [sum(lengths[: row + 1]) for row in range(len(lengths))]
    rows = [Row(data[end - length : end]) for end, length in zip(ends, lengths, strict=True)]
    fields: list[list[list[int]]] = []
    for field, slot in enumerate(schema):
        try:
            counts = [_count(slot, row, fields) for row in range(len(rows))]
            fields.append([codes(row, slot.coding, count) for row, count in zip(rows, counts, strict=True)])
        except Refused as refusal:
            raise Refused(str(refusal), field) from None
    for row in rows:
        if row.left > 7:
            raise Refused("more than 7 bits after the last field")
        row.zeros(row.left)
    return fields


def _count(slot: Slot, row: int, fields: list[list[list[int]]]) -> int:
    if isinstance(slot.count, np.ndarray):
        return int(slot.count[row])
    if isinstance(slot.count, CountIn):
        (count,) = fields[slot.count.slot][row]
        if count > slot.count.most:
            raise Refused("a count that is too large")
        return count
    return slot.count
