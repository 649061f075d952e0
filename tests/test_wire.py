"""Bits and codings against a plain Python twin; bytes that cannot be right are refused and never read past."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable
from unittest import mock

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from laconic.wire.bits import stream, zeros
from laconic.wire.coding import Bits, Coding, Malformed, Subset

TWO_LOG_PHI = 2 * math.log((1 + math.sqrt(5)) / 2)

# ---- the twin: a stream of bits as text, least significant bit first -------------------------------------------------


def low_first(value: int, width: int) -> str:
    return "".join(str(value >> bit & 1) for bit in range(width))


def to_bytes(stream: str) -> bytes:
    padded = stream + "0" * (-len(stream) % 8)
    return bytes(int(padded[at : at + 8][::-1], 2) for at in range(0, len(padded), 8))


def twin_of_bits(row: Iterable[int], width: int) -> str:
    return "".join(low_first(code, width) for code in row)


def rice(row: list[int], size: int) -> str:
    """Gaps less one as a unary quotient and b low bits."""
    b = max(0, math.floor(math.log2(TWO_LOG_PHI * size / len(row))))
    gaps = [after - before - 1 for before, after in itertools.pairwise([-1, *row])]
    return "".join("1" * (gap >> b) + "0" + low_first(gap, b) for gap in gaps)


def twin_of_subset(row: list[int], size: int) -> str:
    if len(row) in (0, size):
        return ""
    bitmap = "".join("1" if j in set(row) else "0" for j in range(size))
    sparse = rice(row, size)
    return "0" + sparse if len(sparse) <= size else "1" + bitmap


# ---- a batch of rows, each starting at a byte ------------------------------------------------------------------------


def offsets_of(rows: list[list[int]]) -> np.ndarray:
    return np.cumsum([0, *(len(row) for row in rows)])


def encode(coding: Coding, rows: list[list[int]], dtype: type = np.int64) -> list[bytes]:
    """Each row as written by the coding, at a cursor of its own, checked against its own measure."""
    codes, offsets = np.array(list(itertools.chain(*rows)), dtype=dtype), offsets_of(rows)
    bits = np.zeros(len(rows), dtype=np.int64)
    coding.measure(codes, offsets, bits)
    lengths = (bits + 7) // 8
    ends = np.cumsum(lengths)
    cursor = 8 * (ends - lengths)
    start, buffer = cursor.copy(), zeros(int(lengths.sum()))
    coding.write(codes, offsets, buffer, cursor)
    np.testing.assert_array_equal(cursor - start, bits)  # what is measured is what is written
    fixed = coding.fixed(np.diff(offsets))
    if fixed is not None:
        np.testing.assert_array_equal(fixed, bits)
    return [buffer[end - length : end].tobytes() for end, length in zip(ends, lengths, strict=True)]


def decode(coding: Coding, pieces: list[bytes], counts: list[int]) -> list[list[int]]:
    """The rows back. Ones in the room behind the bytes would show a read past their end."""
    lengths = np.array([len(piece) for piece in pieces])
    ends = 8 * np.cumsum(lengths)
    data = np.frombuffer(b"".join(pieces), dtype=np.uint8)
    buffer, cursor = stream(data), ends - 8 * lengths
    buffer[len(data) :] = 255
    offsets = np.cumsum([0, *counts])
    codes = coding.read(offsets, buffer, cursor, ends)
    assert (cursor <= ends).all() and (cursor > ends - 8).all() or not lengths.any()
    return [codes[low:high].tolist() for low, high in itertools.pairwise(offsets)]


# ---- fields of equal width -------------------------------------------------------------------------------------------


@st.composite
def equal_width(draw: st.DrawFn) -> tuple[int, list[list[int]]]:
    width = draw(st.integers(1, 64))
    return width, draw(st.lists(st.lists(st.integers(0, 2**width - 1), max_size=9), min_size=1, max_size=4))


@given(equal_width())
def test_codes_of_equal_width_are_the_twins_and_come_back(case: tuple[int, list[list[int]]]) -> None:
    width, rows = case
    pieces = encode(Bits(width), rows, np.uint64)
    assert pieces == [to_bytes(twin_of_bits(row, width)) for row in rows]
    assert decode(Bits(width), pieces, [len(row) for row in rows]) == rows


@given(st.integers(1, 64), st.lists(st.integers(0, 200), min_size=1, max_size=3), st.integers(0, 7), st.data())
def test_long_rows_in_pieces_are_what_they_are_in_one(
    width: int, counts: list[int], start: int, data: st.DataObject
) -> None:
    """A span of 16 codes, so that pieces share bytes and words; a field that starts at any bit."""
    rng = np.random.default_rng(data.draw(st.integers(0, 10**6)))
    size = data.draw(st.sampled_from([size for size in (1, 2, 4, 8) if 8 * size >= width]))
    codes = rng.integers(0, 2**width, sum(counts), dtype=np.uint64, endpoint=width < 64).astype(f"u{size}")
    codes &= np.array(2**width - 1, dtype=np.uint64).astype(codes.dtype)
    offsets = np.cumsum([0, *counts])
    lengths = -(-(start + width * np.diff(offsets)) // 8)
    ends = np.cumsum(8 * lengths)
    buffer, cursor = zeros(int(lengths.sum())), ends - 8 * lengths + start
    with mock.patch("laconic.wire.bits.SPAN", 16):
        moved = cursor.copy()
        Bits(width).write(codes, offsets, buffer, moved)
        assert np.array_equal(moved, cursor + width * np.diff(offsets))
        assert np.array_equal(Bits(width).read(offsets, buffer, cursor.copy(), ends), codes)
    rows = [codes[low:high].tolist() for low, high in itertools.pairwise(offsets)]
    expected = b"".join(to_bytes("0" * start + twin_of_bits(row, width)) for row in rows)
    assert buffer[: len(expected)].tobytes() == expected


def test_a_vector_by_hand() -> None:
    # 5, 1, 6 in three bits, low bit first: 101 100 011 -> bits 10110001 1 -> bytes 0b10001101, 0b1
    assert encode(Bits(3), [[5, 1, 6]], np.uint64) == [bytes([0b10001101, 0b1])]
    assert encode(Bits(64), [[2**64 - 2]], np.uint64) == [bytes([254, *[255] * 7])]
    assert encode(Bits(1), [[1], [], [0, 1]], np.uint64) == [b"\x01", b"", b"\x02"]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_floats_travel_as_their_own_bits(dtype: type) -> None:
    specials = np.array([0.0, -0.0, np.nan, -np.inf, 1.5, np.finfo(dtype).smallest_subnormal], dtype=dtype)
    width = 8 * specials.itemsize
    buffer, cursor = zeros(specials.nbytes), np.zeros(1, dtype=np.int64)
    Bits(width).write(specials, np.array([0, len(specials)]), buffer, cursor)
    assert buffer[: specials.nbytes].tobytes() == specials.tobytes()


@given(equal_width(), st.integers(1, 20))
def test_a_field_that_is_cut_short_is_refused(case: tuple[int, list[list[int]]], missing: int) -> None:
    width, rows = case
    counts = [len(row) for row in rows]
    counts[-1] += missing + 7 // width  # more codes than the bytes can hold, even in the padding
    with pytest.raises(Malformed):
        decode(Bits(width), encode(Bits(width), rows, np.uint64), counts)


# ---- subsets ---------------------------------------------------------------------------------------------------------


@st.composite
def subsets(draw: st.DrawFn) -> tuple[int, list[list[int]]]:
    """Rows of one size: scattered, dense, or bunched at either end, where gaps are extreme."""
    size = draw(st.integers(1, 300))
    row = st.one_of(
        st.sets(st.integers(0, size - 1)),
        st.sets(st.integers(0, size - 1)).map(lambda out: set(range(size)) - out),
        st.integers(0, size).map(lambda k: range(size - k, size)),
        st.integers(0, size).map(range),
    )
    return size, draw(st.lists(row.map(sorted), min_size=1, max_size=4))


@given(subsets())
def test_subsets_are_the_twins_and_come_back(case: tuple[int, list[list[int]]]) -> None:
    size, rows = case
    pieces = encode(Subset(size), rows)
    assert pieces == [to_bytes(twin_of_subset(row, size)) for row in rows]
    assert decode(Subset(size), pieces, [len(row) for row in rows]) == rows


@given(subsets())
def test_the_shorter_of_gaps_and_bitmap_is_taken(case: tuple[int, list[list[int]]]) -> None:
    size, rows = case
    bits = np.zeros(len(rows), dtype=np.int64)
    offsets = offsets_of(rows)
    Subset(size).measure(np.array(list(itertools.chain(*rows)), dtype=np.int64), offsets, bits)
    for row, taken in zip(rows, bits.tolist(), strict=True):
        assert taken == (0 if len(row) in (0, size) else 1 + min(len(rice(row, size)), size))


def test_both_forms_occur_at_the_same_size() -> None:
    gaps, bitmap = encode(Subset(16), [[3, 9]])[0], encode(Subset(16), [[0, 1, 2, 3, 4, 5, 15]])[0]
    # k = 2: floor(log2(0.962 * 8)) = 2 low bits; gaps less one 3 and 5: quotients 0 and 1, low bits 11 and 10
    assert gaps == to_bytes("0" + "0" + "11" + "10" + "10")
    # k = 7: one low bit, 14 bits and a quotient of 9 >> 1 = 4 exceed 16
    assert bitmap == to_bytes("1" + "1111110000000001")


@pytest.mark.parametrize("size", [1, 2, 7, 1000, 10**6])
def test_nothing_is_sent_for_no_index_and_for_all(size: int) -> None:
    assert encode(Subset(size), [[], list(range(size))]) == [b"", b""]
    assert decode(Subset(size), [b"", b""], [0, size]) == [[], list(range(size))]


@pytest.mark.parametrize(
    ("size", "k", "bits"), [(10**6, 10**4, 8.11), (10**6, 10**3, 11.50), (10**6, 10**5, 4.76), (10**6, 5 * 10**4, 5.79)]
)
def test_an_index_costs_what_golomb_and_rice_cost(size: int, k: int, bits: float) -> None:
    """b + 1 / (1 - (1 - p)^(2^b)) at the best b, for several densities p (Sattler et al. 2019)."""
    p = k / size
    assert min(b + 1 / (1 - (1 - p) ** 2**b) for b in range(20)) == pytest.approx(bits, abs=0.006)
    row = np.sort(np.random.default_rng(0).choice(size, k, replace=False))
    total = np.zeros(1, dtype=np.int64)
    Subset(size).measure(row, np.array([0, k]), total)
    assert total[0] / k == pytest.approx(bits, rel=0.01)  # sampling error of the mean gap


def test_the_rice_parameter_is_the_formulas() -> None:
    """Read off the wire: index 0 alone costs the flag, a zero and the low bits."""
    for size in [*range(2, 200), 2**20, 2**31, 2**33]:
        bits = np.zeros(1, dtype=np.int64)
        Subset(size).measure(np.zeros(1, dtype=np.int64), np.array([0, 1]), bits)
        assert bits[0] == min(2 + math.floor(math.log2(TWO_LOG_PHI * size)), 1 + size)


# ---- what cannot be right --------------------------------------------------------------------------------------------


@given(st.binary(max_size=12), st.integers(1, 70), st.data())
def test_any_bytes_are_a_subset_or_malformed(piece: bytes, size: int, data: st.DataObject) -> None:
    k = data.draw(st.integers(0, size))
    try:
        (row,) = decode(Subset(size), [piece], [k])
    except (Malformed, AssertionError):  # the assertion is decode's own: bytes are left over, for unpack to refuse
        return
    assert len(row) == k and row == sorted(set(row)) and all(0 <= index < size for index in row)


@given(subsets())
def test_a_truncated_subset_is_refused(case: tuple[int, list[list[int]]]) -> None:
    size, rows = case
    for row in rows:
        (piece,) = encode(Subset(size), [row])
        for kept in range(len(piece)):
            with pytest.raises(Malformed):
                decode(Subset(size), [piece[:kept]], [len(row)])


@pytest.mark.parametrize(
    ("stream", "why"),
    [
        ("1" + "11110000" + "00000000", "a bitmap with more ones than k"),
        ("1" + "10000000" + "00000000", "a bitmap with fewer ones than k"),
        ("1" + "1100", "a bitmap cut short"),
        ("0" + "0" + "11" + "1110" + "11", "a gap that leads beyond the size"),
        ("0" + rice([3, 16], 16), "an index that is the size itself"),
        ("0" + "1" * 30, "a quotient without an end"),
        ("0" + "0" + "11" + "1110", "low bits cut short"),
        ("", "nothing at all"),
    ],
)
def test_a_wrong_subset_is_refused(stream: str, why: str) -> None:
    with pytest.raises(Malformed, match="no valid 2-subset of 16"):
        decode(Subset(16), [to_bytes(stream)], [2])


def test_a_row_does_not_read_into_the_next() -> None:
    """The second row would complete the first; each row has its own end."""
    (whole,) = encode(Subset(1000), [list(range(0, 1000, 37))])
    halves = [whole[:7], whole[7:]]
    with pytest.raises(Malformed, match="row 0"):
        decode(Subset(1000), halves, [28, 28])
