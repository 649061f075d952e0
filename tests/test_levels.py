"""The coding of quantisation levels: round trips, sizes, the entropy bound, hostile bytes, a reader in Python."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from laconic.wire.bits import get, put, stream, zeros
from laconic.wire.coding import Malformed
from laconic.wire.levels import Levels
from laconic.wire.tables import POWERS

SIZES = (2, 3, 4, 5, 9, 15, 16, 33, 129, 255, 256, 257, 1001, 65535)


def offsets_of(rows: list[np.ndarray]) -> np.ndarray:
    return np.concatenate([[0], np.cumsum([len(row) for row in rows])]).astype(np.int64)


def measured(size: int, rows: list[np.ndarray]) -> np.ndarray:
    out = np.zeros(len(rows), dtype=np.int64)
    Levels(size).measure(np.concatenate(rows), offsets_of(rows), out)
    return out


def trip(size: int, rows: list[np.ndarray], lead: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """The bits of each row and the stream, each row between `lead` bits before and 9 after it that stay as they are."""
    coding, offsets, bits = Levels(size), offsets_of(rows), measured(size, rows)
    ends = np.cumsum((lead + bits + 9 + 7) >> 3)
    begins = 8 * (ends - ((lead + bits + 9 + 7) >> 3))
    buffer = zeros(int(ends[-1]))
    for begin in begins:
        put(buffer, int(begin), np.uint64((1 << lead) - 1), lead)
    cursor = begins + lead
    coding.write(np.concatenate(rows), offsets, buffer, cursor)
    assert np.array_equal(cursor, begins + lead + bits)
    for end in cursor:
        put(buffer, int(end), np.uint64(0x155), 9)
    cursor = begins + lead
    back = coding.read(offsets, buffer, cursor, begins + lead + bits)
    assert np.array_equal(back, np.concatenate(rows)) and np.array_equal(cursor, begins + lead + bits)
    for begin, end in zip(begins, cursor, strict=True):
        assert get(buffer, int(begin), lead) == (1 << lead) - 1 and get(buffer, int(end), 9) == 0x155
    return bits, buffer


def entropy(row: np.ndarray) -> float:
    """The bits of a row at the entropy of its codes."""
    counts = np.bincount(row)
    counts = counts[counts > 0]
    return float(-(counts * np.log2(counts / max(1, len(row)))).sum())


def fixed(size: int, count: int) -> int:
    """The fixed form, and the bit that says so where no number is left over."""
    plain = (8 * count + 4) // 5 if size == 3 else count * (size - 1).bit_length()
    return plain + (count > 0 and size & (size - 1) == 0)


def drawn(rng: np.random.Generator, size: int, count: int, spread: float) -> np.ndarray:
    """Codes about geometric in themselves, with a mean of `spread`."""
    codes = np.minimum(rng.geometric(1.0 / (1.0 + spread), count) - 1, size - 1)
    return codes.astype(np.uint8 if size <= 256 else np.uint16)


def dithered(levels: int, d: int, seed: int = 0) -> np.ndarray:
    """Codes of QSGD of a Gaussian vector."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal(d)
    level = np.floor(np.abs(x) / np.linalg.norm(x) * levels + rng.random(d)).astype(np.int64)
    return np.where((x < 0) & (level > 0), 2 * level - 1, 2 * level).astype(np.uint8 if levels < 128 else np.uint16)


@settings(max_examples=100, deadline=None)
@given(
    st.sampled_from(SIZES),
    st.lists(st.tuples(st.integers(0, 700), st.floats(0.001, 100.0)), min_size=1, max_size=4),
    st.integers(0, 7),
    st.sampled_from(("as drawn", "sorted", "even", "high")),
    st.integers(0, 2**32 - 1),
)
def test_any_rows_come_back_from_any_bit(size, shapes, lead, order, seed) -> None:
    rng = np.random.default_rng(seed)
    rows = [drawn(rng, size, count, spread) for count, spread in shapes]
    if order == "sorted":
        rows = [np.sort(row) for row in rows]
    if order == "even":
        rows = [row & ~np.ones_like(row) for row in rows]
    if order == "high":
        rows = [(size - 1 - row).astype(row.dtype) for row in rows]
    bits, _ = trip(size, rows, lead)
    for row, size_in_bits in zip(rows, bits, strict=True):
        assert size_in_bits <= fixed(size, len(row))
        assert measured(size, [row])[0] == size_in_bits  # alone as in company


@pytest.mark.parametrize("levels", (1, 4, 7, 16, 64, 127))
@pytest.mark.parametrize("d", (256, 500, 4096, 100_000, 1_000_000))
def test_dithered_gaussians_are_within_five_percent_and_64_bits_of_their_entropy(levels: int, d: int) -> None:
    row = dithered(levels, d)
    positive = np.where(row & 1, row + 1, row).astype(row.dtype)
    for codes in (row, np.sort(row), row[::-1].copy(), positive):
        bits, _ = trip(2 * levels + 1, [codes], 3)
        assert bits[0] <= fixed(2 * levels + 1, d)
        if d > 256 or levels <= 16:
            assert bits[0] <= 1.05 * entropy(codes) + 64
        else:  # tables of some forty symbols for 256 codes
            assert bits[0] <= 1.15 * entropy(codes) + 64


@pytest.mark.parametrize("count", (1, 2, 7, 100, 500, 3_000_000))
@pytest.mark.parametrize("size", (2, 3, 15, 255))
def test_extremes_are_within_the_bound(size: int, count: int) -> None:
    zero, rng = np.zeros(count, np.uint8), np.random.default_rng(count)
    last, spike, uniform = zero + np.uint8(size - 1), zero.copy(), rng.integers(0, size, count).astype(np.uint8)
    spike[count // 3] = size - 1
    mostly_last = last.copy()
    mostly_last[count // 3] = 0
    for row in (zero, spike, uniform, np.sort(uniform)):
        bits, _ = trip(size, [row], 5)
        assert bits[0] <= fixed(size, count)
        assert bits[0] <= 1.05 * entropy(row) + 64 or bits[0] == fixed(size, count)
    for row in (last, mostly_last):  # the most frequent code is not 0: its place in the table, and its share of 2^14
        bits, _ = trip(size, [row], 5)
        assert bits[0] <= min(fixed(size, count), 1.05 * entropy(row) + 96 + size + count / 5000)


@pytest.mark.parametrize("share", (2.0**-3, 2.0**-5, 2.0**-7, 2.0**-8, 2.0**-9, 2.0**-10, 2.0**-12, 2.0**-14))
@pytest.mark.parametrize("size", (2, 3, 15))
def test_sparse_rows_in_any_order_are_within_the_bound(size: int, share: float) -> None:
    rng = np.random.default_rng(0)
    row = np.where(rng.random(400_000) < share, drawn(rng, size - 1, 400_000, 0.5) + 1, 0).astype(np.uint8)
    clusters = np.concatenate([np.sort(part) for part in np.array_split(row, 5)])
    for codes in (row, np.sort(row), clusters):
        bits, _ = trip(size, [codes])
        assert bits[0] <= 1.05 * entropy(codes) + 64 + (size == 2)


def test_long_rows_are_cut_into_segments_and_do_not_depend_on_company() -> None:
    rng = np.random.default_rng(1)
    rows = [drawn(rng, 15, (1 << 20) + 5, 0.6), drawn(rng, 15, 9, 0.6), drawn(rng, 15, 1 << 20, 2.0)]
    rows += [np.tile(np.arange(1, 5, dtype=np.uint8), 600_000), drawn(rng, 15, 3 << 20, 0.05)]
    together, _ = trip(15, rows, 2)
    assert together.tolist() == [int(trip(15, [row], 6)[0][0]) for row in rows]


def test_a_code_outside_the_alphabet_is_an_error() -> None:
    with pytest.raises(ValueError, match="alphabet"):
        measured(15, [np.array([3, 15], dtype=np.uint8)])
    for size in (1, 65537):
        with pytest.raises(ValueError, match="alphabet"):
            Levels(size)


def test_bit_patterns_of_int16_are_read_as_unsigned() -> None:
    codes = np.array([40_000, 0, 1], dtype=np.uint16)
    assert measured(65535, [codes.view(np.int16)])[0] == measured(65535, [codes])[0] == 48


def attack(seed: int, times: int) -> tuple[int, int]:
    """Cut, flipped and random bytes. Returns how many were refused, and how many were read as other codes."""
    rng, refused, other = np.random.default_rng(seed), 0, 0
    for time in range(times):
        size = (3, 15, 255, 4)[time % 4]
        count = (7, 124, 5000, 60_000)[time // 4 % 4]
        row = drawn(rng, size, count, (0.01, 0.5, 3.0)[time % 3])
        bits, buffer = trip(size, [row])
        data = buffer[: (int(bits[0]) + 7) // 8].copy()
        kind = time % 5
        if kind == 0:
            data = data[: rng.integers(0, len(data))]
        elif kind == 1:
            data = rng.integers(0, 256, len(data), dtype=np.uint8)
        elif kind == 2:  # behind the escape all is random
            data[1:] = rng.integers(0, 256, len(data) - 1, dtype=np.uint8)
        else:
            place = rng.integers(0, int(bits[0]) if kind == 3 else min(100, int(bits[0])))
            data[place >> 3] ^= np.uint8(1 << (place & 7))
        cursor = np.zeros(1, dtype=np.int64)
        try:
            back = Levels(size).read(np.array([0, count]), stream(data), cursor, np.array([8 * len(data)]))
        except Malformed:
            refused += 1
            continue
        assert len(back) == count and back.max() < size and cursor[0] <= 8 * len(data)
        other += not np.array_equal(back, row)
    return refused, other


def test_hostile_bytes_are_refused_or_read_within_the_alphabet() -> None:
    refused, _ = attack(0, 600)
    assert refused > 300


class Reader:
    """docs/wire.md, read literally."""

    def __init__(self, data: bytes, n: int) -> None:
        self.stream, self.at, self.n = int.from_bytes(data, "little"), 0, n

    def take(self, width: int) -> int:
        self.at += width
        return self.stream >> (self.at - width) & ((1 << width) - 1)

    def unary(self) -> int:
        ones = 0
        while self.take(1):
            ones += 1
        return ones

    def fixed(self, n: int, size: int) -> list[int]:
        if size != 3:
            return [self.take((size - 1).bit_length()) for _ in range(n)]
        out: list[int] = []
        while len(out) < n:
            r = min(5, n - len(out))
            number = self.take((8 * r + 4) // 5)
            out += [number // 3**digit % 3 for digit in range(r)]
        return out

    def levels(self, size: int) -> list[int]:
        n, start = self.n, self.at
        r = min(5, n)
        width, words = ((8 * r + 4) // 5, 3**r) if size == 3 else ((size - 1).bit_length(), size)
        if words == 1 << width:
            if not self.take(1):
                return self.fixed(n, size)
        elif self.take(width) != words:
            self.at = start
            return self.fixed(n, size)
        if not self.take(1):
            return self.frequencies(n, size)
        k = self.take(n.bit_length())
        where = self.subset(n, k)
        what = [0] * k
        if k and size > 2:
            what = self.frequencies(k, size - 1) if self.take(1) else self.fixed(k, size - 1)
        out = [0] * n
        for position, code in zip(where, what, strict=True):
            out[position] = code + 1
        return out

    def subset(self, size: int, k: int) -> list[int]:
        if k in (0, size):
            return list(range(k))
        if self.take(1):
            return [j for j in range(size) if self.take(1)]
        quotient, before, out = 63073 * size // (65536 * k), -1, []
        b = quotient.bit_length() - 1 if quotient else 0
        for _ in range(k):
            high = self.unary()
            before += 1 + (high << b) + self.take(b)
            out.append(before)
        return out

    def table(self, n: int, size: int) -> tuple[list[int], int]:
        top = self.take((size - 1).bit_length()) + 1
        fine, rice = self.take(2), self.take(2)
        marks = [self.take(5 + fine)]
        while len(marks) < top:
            ones = 0
            while ones < 8 and self.take(1):
                ones += 1
            if ones == 8:
                marks.append(self.take(5 + fine))
                continue
            number = (ones << rice) + self.take(rice)
            step = -(number + 1) // 2 if number % 2 else number // 2
            marks.append(marks[max(0, len(marks) - 2)] + step)
        used = sum(mark > 0 for mark in marks)
        precision = max(min(max(n.bit_length() + 2, 8), 14), min(used.bit_length() + 3, 16))
        most = (max(marks) - 1 << 3 - fine) // 8
        eighths = [mark - 1 << 3 - fine for mark in marks]
        weights = [POWERS[e % 8] >> most - e // 8 if e >= 0 else 0 for e in eighths]
        room, total = (1 << precision) - used, sum(weights)
        freq = [max(1, w * room // total) if mark else 0 for w, mark in zip(weights, marks, strict=True)]
        freq[marks.index(max(marks))] += (1 << precision) - sum(freq)
        return freq, precision

    def frequencies(self, n: int, size: int) -> list[int]:
        freq, precision = self.table(n, size)
        starts = [sum(freq[:code]) for code in range(len(freq))]
        symbol = [code for code, f in enumerate(freq) for _ in range(f)]

        def unwind(states: list[int], words: list[int], count: int, end: int) -> list[int]:
            words, out = words[::-1], []
            while states[0] < 1 << 31 and words:
                states[0] = states[0] << 32 | words.pop()
            for j in range(count):
                x = states[j % len(states)]
                code = symbol[x % (1 << precision)]
                x = freq[code] * (x >> precision) + x % (1 << precision) - starts[code]
                if x < 1 << 31 and words:
                    x = x << 32 | words.pop()
                states[j % len(states)] = x
                out.append(code)
            assert not words and set(states) == {end}
            return out

        if not self.take(1):
            plain = (8 * n + 4) // 5 if size == 3 else n * (size - 1).bit_length()
            body = self.take(plain.bit_length())
            count = max(0, (body - 31) // 32)
            state = self.take(body - 32 * count)
            return unwind([state], [self.take(32) for _ in range(count)], n, 1)
        before = -self.at % 8
        assert self.take(before) == 0
        counts = [self.take(32) for _ in range((n + (1 << 20) - 1) >> 20)]
        out: list[int] = []
        for segment, count in enumerate(counts):
            states = [self.take(64) for _ in range(8)]
            words = [self.take(32) for _ in range(count)]
            out += unwind(states, words, min(1 << 20, n - (segment << 20)), 1 << 31)
        assert self.take(7 - before) == 0
        return out


@pytest.mark.parametrize("size", (2, 3, 4, 15, 255, 1001))
@pytest.mark.parametrize("spread", (0.0005, 0.02, 0.6, 40.0))
@pytest.mark.parametrize("count", (1, 6, 124, 3000, 40_000))
def test_a_reader_written_from_the_page_reads_it(size: int, spread: float, count: int) -> None:
    row = drawn(np.random.default_rng(count), size, count, spread)
    bits, buffer = trip(size, [row], 1)
    reader = Reader(buffer.tobytes(), count)
    reader.at = 1
    assert reader.levels(size) == row.tolist() and reader.at == 1 + bits[0]
