"""Messages: what is counted is what is packed, bytes give back the codes, rows stand alone, wrong bytes are refused."""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from laconic.core.compressor import Compressor, Dense, Mean, Own, Packet, Sparse
from laconic.core.keys import Keys
from laconic.core.message import CountIn, Message, Slot, fixed_lengths
from laconic.core.registry import catalogue
from laconic.core.spec import example, parse
from laconic.wire.coding import Bits, Malformed, Subset
from laconic.wire.levels import Levels

COMPRESSORS = [cls.name for cls in catalogue().of_kind("compressor")]


def compressor_of(name: str, k: int | float) -> Compressor:
    """An entry of the catalogue; with the given k where it has one."""
    entry: Any = parse(example(catalogue().find(name)))
    return dataclasses.replace(entry, k=k) if hasattr(entry, "k") else entry


def keys_of(workers: Any, n: int, seed: int = 0, step: int = 3) -> Keys:
    return Keys(seed, step, "/up0", np.asarray(workers, dtype=np.int64), n)


def bits_of(tensor: Tensor) -> bytes:
    return tensor.contiguous().numpy().tobytes()


def same(a: Message, b: Message) -> bool:
    return a.rows == b.rows and [bits_of(x) for x in a.codes] == [bits_of(x) for x in b.codes]


SHAPES = st.one_of(
    st.tuples(st.integers(1, 40)), st.tuples(st.integers(1, 6), st.integers(1, 6)), st.tuples(*[st.integers(1, 4)] * 3)
)


@st.composite
def batches(draw: st.DrawFn) -> tuple[Compressor, Tensor, Keys]:
    """Any compressor of the catalogue with any amount, on vectors of any shape, of some of the workers."""
    compressor = compressor_of(
        draw(st.sampled_from(COMPRESSORS)), draw(st.one_of(st.integers(1, 50), st.floats(0, 1, exclude_min=True)))
    )
    shape, n = draw(SHAPES), draw(st.integers(1, 9))
    workers = draw(st.lists(st.integers(0, n - 1), unique=True, max_size=n).map(sorted))
    dtype = draw(st.sampled_from([torch.float64, torch.float32]))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    v = rng.standard_normal((len(workers), *shape)) * 10.0 ** rng.integers(-20, 20, (len(workers), *shape))
    v[rng.random(v.shape) < draw(st.sampled_from([0.0, 0.5, 1.0]))] = 0.0
    return compressor, torch.from_numpy(v).to(dtype), keys_of(workers, n, draw(st.integers(0, 2**40)))


# ---- every compressor of the catalogue -------------------------------------------------------------------------------


def test_the_catalogue_has_compressors() -> None:
    assert {"identity", "topk", "randk", "shared_randk", "permk", "natural"} <= set(COMPRESSORS)


@given(batches())
def test_bytes_give_back_the_codes_and_their_number_is_known(batch: tuple[Compressor, Tensor, Keys]) -> None:
    compressor, v, keys = batch
    message = compressor.compress(v, keys)
    buffer = message.pack()
    assert message.nbytes.shape == (len(v),) and buffer.nbytes == message.nbytes.sum()
    schema = compressor.schema(tuple(v.shape[1:]), v.dtype, keys)
    back = Message.unpack(buffer, message.nbytes, schema)
    assert same(back, message)
    np.testing.assert_array_equal(back.nbytes, message.nbytes)
    fixed = fixed_lengths(schema, len(v))
    assert fixed is None or (fixed == message.nbytes).all()
    decoded = [compressor.decode(m, tuple(v.shape[1:]), v.dtype, keys).dense() for m in (message, back)]
    assert decoded[0].shape == v.shape and decoded[0].dtype == v.dtype
    assert bits_of(decoded[0]) == bits_of(decoded[1])


@given(batches())
def test_a_row_stands_alone(batch: tuple[Compressor, Tensor, Keys]) -> None:
    """Its bytes and meaning are those of the same worker compressed in a batch of its own."""
    compressor, v, keys = batch
    shape = tuple(v.shape[1:])
    message = compressor.compress(v, keys)
    dense, buffer = compressor.decode(message, shape, v.dtype, keys).dense(), message.pack()
    ends = np.cumsum(message.nbytes)
    for row in range(len(v)):
        own = keys.at([row])
        single, sliced = compressor.compress(v[row : row + 1], own), message.at(row, row + 1)
        assert same(single, sliced)
        assert single.pack().tobytes() == buffer[ends[row] - message.nbytes[row] : ends[row]].tobytes()
        assert bits_of(compressor.decode(sliced, shape, v.dtype, own).dense()) == bits_of(dense[row : row + 1])


@given(batches())
def test_a_value_is_what_comes_out_of_the_bytes_in_every_use(batch: tuple[Compressor, Tensor, Keys]) -> None:
    """dense, add_to, and the mean: all from the same decoded rows, silent workers counting as zero."""
    compressor, v, keys = batch
    shape, local = tuple(v.shape[1:]), len(v) + 2
    rows = np.arange(len(v)) * (2 if len(v) < 3 else 1)  # some local rows are silent
    packet = Packet(compressor, compressor.compress(v, keys), keys, shape, v.dtype, rows)
    dense = compressor.decode(packet.message, shape, v.dtype, keys).dense()
    local = max(local, int(rows.max(initial=0)) + 1)
    expected = torch.zeros(local, *shape, dtype=v.dtype)
    expected[torch.from_numpy(rows)] = dense
    own = Own(packet, local)
    assert torch.equal(own.dense(), expected)
    target = torch.ones_like(expected)
    own.add_to(target, scale=-0.5)
    assert torch.equal(target, 1.0 - 0.5 * expected)
    mean, total = Mean([packet], keys.n).dense(), torch.zeros(shape, dtype=v.dtype)
    for row in dense:
        total = total + row * (v.new_tensor(1.0) / keys.n)
    assert torch.equal(mean, total)


@given(batches(), st.data())
def test_damaged_bytes_raise_malformed_or_mean_something(
    batch: tuple[Compressor, Tensor, Keys], data: st.DataObject
) -> None:
    """Never another error, and never a position outside the vector: kernels check no bounds."""
    compressor, v, keys = batch
    message = compressor.compress(v, keys)
    buffer = message.pack()
    if not len(buffer):
        return
    flips = data.draw(st.lists(st.integers(0, 8 * len(buffer) - 1), min_size=1, max_size=4))
    for flip in flips:
        buffer[flip // 8] ^= np.uint8(1 << flip % 8)
    schema, d = compressor.schema(tuple(v.shape[1:]), v.dtype, keys), v[0].numel()
    try:
        back = Message.unpack(buffer, message.nbytes, schema)
        decoded = compressor.decode(back, tuple(v.shape[1:]), v.dtype, keys)
    except Malformed:
        return
    if isinstance(decoded, Sparse):
        for low, high in itertools.pairwise(decoded.offsets):
            indices = decoded.indices[low:high].tolist()
            assert indices == sorted(set(indices)) and all(0 <= j < d for j in indices)
    assert decoded.dense().shape == v.shape


@given(batches(), st.integers(1, 3))
def test_missing_and_surplus_bytes_raise_malformed(batch: tuple[Compressor, Tensor, Keys], by: int) -> None:
    compressor, v, keys = batch
    message = compressor.compress(v, keys)
    schema, buffer = compressor.schema(tuple(v.shape[1:]), v.dtype, keys), message.pack()
    if not len(v):
        return
    with pytest.raises(Malformed):  # the last row claims bytes that are not there
        Message.unpack(buffer, message.nbytes + np.eye(len(v), dtype=np.int64)[-1] * by, schema)
    longer = message.nbytes + np.eye(len(v), dtype=np.int64)[-1] * by
    with pytest.raises(Malformed):
        Message.unpack(np.concatenate([buffer, np.zeros(by, dtype=np.uint8)]), longer, schema)
    if message.nbytes[-1] >= by:
        shorter = message.nbytes - np.eye(len(v), dtype=np.int64)[-1] * by
        with pytest.raises(Malformed):
            Message.unpack(buffer[: len(buffer) - by], shorter, schema)


# ---- by hand ---------------------------------------------------------------------------------------------------------


def test_topk_by_hand() -> None:
    """d = 16, k = 2: flag 0, gaps less one 3 and 5 with two low bits each, then two float32 in index order."""
    v = torch.zeros(1, 16)
    v[0, 3], v[0, 9] = 1.0, -2.0
    message = compressor_of("topk", 2).compress(v, keys_of([0], 1))
    assert message.bits.tolist() == [8 + 64]
    assert message.pack().tobytes() == bytes([0b01011100]) + np.array([1.0, -2.0], dtype="<f4").tobytes()


def test_natural_by_hand() -> None:
    """A power of two is kept: -2 is sign 1 and exponent 1024, twelve bits; 0 is twelve zeros."""
    message = compressor_of("natural", 1).compress(torch.tensor([[-2.0, 0.0]], dtype=torch.float64), keys_of([0], 1))
    assert message.pack().tobytes() == (0b1_10000000000).to_bytes(3, "little")
    assert message.nbytes.tolist() == [3]


@pytest.mark.parametrize(
    ("name", "k", "dtype", "nbytes"),
    [
        ("identity", 1, torch.float64, 80), ("identity", 1, torch.float32, 40), ("randk", 3, torch.float64, 24),
        ("shared_randk", 0.25, torch.float32, 12), ("natural", 1, torch.float64, 15), ("natural", 1, torch.float32, 12),
        ("topk", 10, torch.float64, 80), ("randk", 1.0, torch.float64, 80), ("topk", 99, torch.float32, 40),
    ],
)  # fmt: skip
def test_sizes_by_hand(name: str, k: int | float, dtype: torch.dtype, nbytes: int) -> None:
    """d = 10. The support of randk costs nothing, all indices cost nothing; natural is 9 or 12 bits a value."""
    message = compressor_of(name, k).compress(torch.arange(20, dtype=dtype).view(2, 10), keys_of([0, 1], 2))
    assert message.nbytes.tolist() == [nbytes, nbytes]


def test_a_row_is_padded_with_zeros_to_bytes_of_its_own() -> None:
    schema = (Slot(Bits(3), torch.uint8, np.array([1, 2, 0])), Slot(Bits(7), torch.int16, 1))
    message = Message(
        schema, (torch.tensor([7, 1, 2], dtype=torch.uint8), torch.tensor([1, 127, 64], dtype=torch.int16)), 3
    )
    assert message.bits.tolist() == [10, 13, 7] and message.nbytes.tolist() == [2, 2, 1]
    assert message.pack().tobytes() == bytes([0b00001_111, 0, 0b11_010_001, 0b11111, 64])
    assert same(Message.unpack(message.pack(), message.nbytes, schema), message)
    for byte, bit in ((1, 2), (1, 7), (3, 5), (4, 7)):
        damaged = message.pack()
        damaged[byte] |= np.uint8(1 << bit)
        with pytest.raises(Malformed, match="padding"):
            Message.unpack(damaged, message.nbytes, schema)


@pytest.mark.parametrize("lead", range(1, 9))
@pytest.mark.parametrize("size", [2, 3, 4, 15, 16, 255])
def test_no_field_writes_beyond_its_row(size: int, lead: int) -> None:
    """Rows of 0 to 40 levels, whose last bits lie anywhere in a byte; the row behind has its first field already."""
    rng = np.random.default_rng(lead)
    schema = (Slot(Bits(lead), torch.uint8, 1), Slot(Levels(size), torch.uint8, np.arange(41)))
    levels = torch.from_numpy(rng.integers(0, size, 820).astype(np.uint8))
    message = Message(schema, (torch.full((41,), (1 << lead) - 1, dtype=torch.uint8), levels), 41)
    assert same(Message.unpack(message.pack(), message.nbytes, schema), message)


# ---- a number of codes that the message itself says ------------------------------------------------------------------

SIZE = 20


def counted_schema() -> tuple[Slot, ...]:
    """A count, that many indices, and a value for each."""
    return (
        Slot(Bits(6), torch.int16, 1), Slot(Subset(SIZE), torch.int64, CountIn(0, SIZE)),
        Slot(Bits(32), torch.float32, CountIn(0, SIZE)),
    )  # fmt: skip


def counted(rows: list[list[int]]) -> Message:
    flat = torch.tensor(list(itertools.chain(*rows)), dtype=torch.int64)
    counts = torch.tensor([len(row) for row in rows], dtype=torch.int16)
    return Message(counted_schema(), (counts, flat, flat.float() + 0.5), len(rows))


@given(st.lists(st.sets(st.integers(0, SIZE - 1)).map(sorted), min_size=1, max_size=4))
def test_ragged_rows_come_back(rows: list[list[int]]) -> None:
    message = counted(rows)
    assert fixed_lengths(message.schema, len(rows)) is None
    back = Message.unpack(message.pack(), message.nbytes, counted_schema())
    assert same(back, message) and back.offsets[1].tolist() == np.cumsum([0, *map(len, rows)]).tolist()
    for row, indices in enumerate(rows):
        assert same(message.at(row, row + 1), counted([indices]))


@pytest.mark.parametrize("count", [SIZE + 1, 63])
def test_a_count_that_is_too_large_is_refused(count: int) -> None:
    buffer = counted([[1, 2]]).pack()
    buffer[0] = np.uint8(buffer[0] & 0b11000000 | count)
    with pytest.raises(Malformed, match=f"0..{SIZE}"):
        Message.unpack(buffer, np.array([len(buffer)]), counted_schema())


def test_a_count_that_asks_for_more_than_there_is_reserves_nothing() -> None:
    """A count is trusted with no memory before the bytes are there."""
    schema = (Slot(Bits(40), torch.int64, 1), Slot(Bits(64), torch.float64, CountIn(0, 2**40)))
    with pytest.raises(Malformed, match="cut short"):
        Message.unpack(np.full(5, 255, dtype=np.uint8), np.array([5]), schema)


@given(st.binary(max_size=40), st.integers(1, 4))
def test_any_bytes_are_a_message_or_malformed(piece: bytes, rows: int) -> None:
    lengths = np.array([len(part) for part in np.array_split(np.zeros(len(piece)), rows)])
    try:
        back = Message.unpack(np.frombuffer(piece, dtype=np.uint8), lengths, counted_schema())
    except Malformed:
        return
    assert back.rows == rows and back.nbytes.sum() <= len(piece) + rows


@pytest.mark.parametrize("lengths", [[-1, 10], [4, 4], [10, 0, 1], [2**62, 2**62]])
def test_lengths_that_do_not_fit_the_buffer_are_refused(lengths: list[int]) -> None:
    with pytest.raises(Malformed):
        Message.unpack(np.zeros(9, dtype=np.uint8), np.array(lengths), (Slot(Bits(8), torch.uint8, 1),))


def test_a_message_without_rows_is_no_bytes() -> None:
    message = Message((Slot(Bits(8), torch.uint8, 3),), (torch.zeros(0, dtype=torch.uint8),), 0)
    assert message.pack().nbytes == 0 and message.nbytes.shape == (0,)
    assert Message.unpack(message.pack(), message.nbytes, message.schema).rows == 0


# ---- the same bits for a row whatever shares its block ---------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_a_row_is_scattered_alike_whoever_speaks_beside_it(dtype: torch.dtype) -> None:
    """A fused multiply-add where all speak and none where some do would be two roundings."""
    v = torch.from_numpy(np.random.default_rng(1).standard_normal((5, 37))).to(dtype)
    before = torch.from_numpy(np.random.default_rng(2).standard_normal((5, 37))).to(dtype)
    everyone, some = before.clone(), before.clone()
    Dense(v).scatter(everyone, np.arange(5), 1.0 / 3.0)
    Dense(v[1:4].clone()).scatter(some, np.arange(1, 4), 1.0 / 3.0)
    assert torch.equal(everyone[1:4], some[1:4])
    alone = before[2:3].clone()
    Dense(v[2:3].clone()).scatter(alone, np.arange(1), 1.0 / 3.0)
    assert torch.equal(everyone[2], alone[0])


def test_a_mean_in_pieces_is_the_mean_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Large dense messages of others are decoded piece by piece."""
    v = torch.from_numpy(np.random.default_rng(3).standard_normal((7, 5)))
    for name in COMPRESSORS:
        compressor, keys = compressor_of(name, 2), keys_of(range(7), 7)
        packets = [
            Packet(compressor, compressor.compress(v, keys), keys, (5,), v.dtype, np.arange(7)) for _ in range(2)
        ]
        at_once = Mean(packets[:1], 7).dense()
        monkeypatch.setattr("laconic.core.compressor.CHUNK", 10)
        assert len(list(packets[1].parts())) == 4
        assert torch.equal(Mean(packets[1:], 7).dense(), at_once)
        monkeypatch.undo()
