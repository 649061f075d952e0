"""Hostile bytes, for everything that reads them: the verdict of the plain reader, with and without checks of bounds.

Compiled decoders run twice: as they are, and in a process of their own whose code is compiled with every index checked.
There is only one such process, and it does nothing but judge, as compiling is what takes time.
"""

from __future__ import annotations

import itertools
import multiprocessing
import tracemalloc
from collections.abc import Iterator
from concurrent.futures import Executor, ProcessPoolExecutor

import numba
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import fuzzing
from fuzzing import DAMAGES, DTYPES, SHAPES, Bytes, Fields, Row, Subject, Vectors, honest, judge
from laconic.core.compressor import Compressor, Packet
from laconic.core.flight import Uplink
from laconic.core.keys import Keys
from laconic.core.message import CountIn, Message, Slot
from laconic.core.problem import Block
from laconic.core.spec import parse
from laconic.runtime.carrier import _header, _length
from laconic.runtime.process_group import ProcessGroup
from laconic.wire.coding import Bits, Malformed, Subset

SIZES = (2, 3, 4, 5, 15, 16, 255, 256, 257, 1001, 65535)


@pytest.fixture(scope="module")
def checked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Executor]:
    """A process whose kernels check every index. Its cache is its own: numba would take unchecked code from another."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("NUMBA_BOUNDSCHECK", "1")
            patch.setenv("NUMBA_CACHE_DIR", str(tmp_path_factory.mktemp("checked")))
            assert pool.submit(int).result() == 0
        yield pool


@numba.njit
def _behind(array: np.ndarray, place: int) -> int:
    return array[place]


def behind_the_end() -> int:
    return _behind(np.zeros(3, dtype=np.int64), 3)


def test_the_process_checks_bounds(checked: Executor) -> None:
    with pytest.raises(IndexError):
        checked.submit(behind_the_end).result()


def verdict(checked: Executor, subject: Subject, given_bytes: Bytes) -> str:
    """Of the process that checks every index first: the other one would write where it must not."""
    said = checked.submit(judge, subject, *given_bytes).result()
    assert judge(subject, *given_bytes) == said
    return said


def sentence(checked: Executor, subject: Subject, seed: int, damage: int) -> None:
    """Damages a valid message and has it judged; what certainly cannot be read must not be."""
    rows, other = honest(subject, seed % 6), honest(subject, 6 + seed % 5)
    harm = DAMAGES[damage]
    data, lengths = harm(rows, other, np.random.default_rng(seed))
    said = verdict(checked, subject, (data, lengths))
    if (data, lengths) == (b"".join(rows), tuple(map(len, rows))):
        assert said == ""
    elif harm in (fuzzing.truncated, fuzzing.extended):
        assert said != "" and not said.startswith("decode")


@pytest.mark.parametrize("spec", fuzzing.specs())
@given(st.sampled_from(SHAPES), st.sampled_from(list(DTYPES)), st.integers(1, 3), st.data())
def test_damaged_messages_of_every_compressor(
    checked: Executor, spec: str, shape: tuple[int, ...], dtype: str, rows: int, data: st.DataObject
) -> None:
    seed, damage = data.draw(st.integers(0, 2**32)), data.draw(st.integers(0, len(DAMAGES) - 1))
    sentence(checked, Vectors(spec, shape, dtype, rows), seed, damage)


@pytest.mark.parametrize("size", SIZES)
@given(st.sampled_from((1, 2, 6, 40, 700)), st.integers(0, 2**32), st.integers(0, len(DAMAGES) - 1))
def test_damaged_levels_whose_number_the_message_says(
    checked: Executor, size: int, most: int, seed: int, damage: int
) -> None:
    sentence(checked, Fields(size, most, 2), seed, damage)


@given(st.sampled_from(SIZES), st.integers(1, 40), st.lists(st.binary(max_size=40), min_size=1, max_size=3))
def test_any_bytes_at_all(checked: Executor, size: int, most: int, rows: list[bytes]) -> None:
    verdict(checked, Fields(size, most, len(rows)), (b"".join(rows), tuple(map(len, rows))))


@pytest.mark.parametrize("size", SIZES)
@given(st.sampled_from((1, 4, 31, 500, 2_000)), st.integers(0, 2**32))
def test_any_bits_behind_the_escape_of_levels(checked: Executor, size: int, n: int, seed: int) -> None:
    """A table, a number of codes that are not 0, a state: where random bytes seldom come."""
    row, rng = Row(size, n), np.random.default_rng(seed)
    for _ in range(4):
        data = row.escaped(rng)
        verdict(checked, row, (data, (len(data),)))
    valid = bytearray(honest(row, seed % 6)[0])
    for _ in range(4):  # a bit of a valid row's beginning
        place = int(rng.integers(min(8 * len(valid), 100)))
        valid[place // 8] ^= 1 << place % 8
        verdict(checked, row, (bytes(valid), (len(valid),)))
        valid[place // 8] ^= 1 << place % 8


def test_both_verdicts_are_passed_on_every_kind_of_damage() -> None:
    """Or the tests above would compare little."""
    for damage in DAMAGES:
        read, refused = 0, 0
        for seed, (spec, rows) in enumerate(itertools.product(("topk(k=0.3)", "qsgd", "threshold(t=0.5)"), (1, 2, 3))):
            subject = Vectors(spec, (40,), "float32", rows)
            for turn in range(6):
                rng = np.random.default_rng(100 * seed + turn)
                if judge(subject, *damage(honest(subject, turn), honest(subject, 7), rng)):
                    refused += 1
                else:
                    read += 1
        assert refused > 5 or damage is fuzzing.untouched, damage
        assert read > 2 or damage in (fuzzing.truncated, fuzzing.extended, fuzzing.misled), damage


# ---- memory ----------------------------------------------------------------------------------------------------------


def peak_of_unpack(data: bytes, lengths: tuple[int, ...], schema: tuple[Slot, ...]) -> int:
    buffer, sizes = np.frombuffer(data, dtype=np.uint8), np.array(lengths, dtype=np.int64)
    tracemalloc.start()
    try:
        Message.unpack(buffer, sizes, schema)
    except Malformed:
        pass
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    return peak


def allowed(schema: tuple[Slot, ...], rows: int) -> int:
    """The codes that a message of this schema can have, at eight bytes each."""
    most = 0
    for slot in schema:
        count = slot.count.most if isinstance(slot.count, CountIn) else slot.count
        most += int(np.sum(count)) if isinstance(count, np.ndarray) else rows * count
    return 8 * most


@pytest.mark.parametrize("spec", fuzzing.specs())
def test_no_bytes_take_more_memory_than_the_schema_allows(spec: str) -> None:
    subject = Vectors(spec, (20, 15), "float32", 2)
    most = 3 * allowed(subject.schema, 2)
    for seed, damage in enumerate(DAMAGES):
        data, lengths = damage(honest(subject, seed % 5), honest(subject, 5), np.random.default_rng(seed))
        assert peak_of_unpack(data, lengths, subject.schema) < most + 8 * len(data) + (1 << 15)


@pytest.mark.parametrize("coding", [Bits(64), Bits(1), Subset(1 << 40)])
@pytest.mark.parametrize("count", [1 << 39, (1 << 40) - 1])
def test_a_large_count_takes_no_memory_before_its_codes_are_there(coding: Bits | Subset, count: int) -> None:
    schema = (Slot(Bits(64), torch.int64, 1), Slot(coding, torch.int64, CountIn(0, 1 << 40)))
    data = count.to_bytes(8, "little") + bytes(12)
    assert peak_of_unpack(data, (20,), schema) < 1 << 15


# ---- lengths ---------------------------------------------------------------------------------------------------------

ONE_BYTE = (Slot(Bits(8), torch.uint8, 1),)


@pytest.mark.parametrize(
    ("lengths", "dtype"),
    [
        ([2**62] * 4, np.int64),  # their sum is 0 in 64 bits, as is that of
        ([2**63] * 2, np.uint64),
        ([2**32] * 2**4, np.int64),
        ([-1, 1], np.int64),
        ([-(2**63), -(2**63)], np.int64),
        ([2**63 - 1, 1, -(2**63)], np.int64),
        ([1], np.int64),
    ],
)
def test_lengths_of_no_bytes_at_all(lengths: list[int], dtype: type) -> None:
    with pytest.raises(Malformed, match="in a buffer of 0"):
        Message.unpack(np.zeros(0, dtype=np.uint8), np.array(lengths, dtype=dtype), ONE_BYTE)


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.uint32, np.int64, np.uint64])
def test_lengths_of_any_integers_are_read(dtype: type) -> None:
    data = np.arange(250, dtype=np.uint8)
    back = Message.unpack(data, np.ones(250, dtype=dtype), ONE_BYTE)
    assert back.codes[0].tolist() == data.tolist()


def test_a_refusal_names_the_field_and_the_row() -> None:
    schema = (Slot(Bits(6), torch.int16, 1), Slot(Subset(9), torch.int64, CountIn(0, 9)), *ONE_BYTE)
    said = {
        b"\x0a": "field 1, Subset(size=9): the count 10 of row 1, which field 0 says, is not in 0..9",
        b"\x02": "field 1, Subset(size=9): row 1 holds no valid 2-subset of 9",
        b"\x00": "field 2, Bits(width=8): row 1 is cut short",
        b"": "field 0, Bits(width=6): row 1 is cut short",
        b"\x00\x00\x00\x00": "row 1 is 2 bytes longer than its fields",
        b"\x00\x80": "the padding of row 1 is not zero",
    }
    for row, why in said.items():
        with pytest.raises(ValueError, match=".") as refusal:
            Message.unpack(np.frombuffer(b"\x00\x00" + row, dtype=np.uint8), np.array([2, len(row)]), schema)
        assert str(refusal.value) == why


# ---- between processes -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("length", [-1, 101, 2**31, 2**62, 2**63 - 1, -(2**63)])
def test_an_announced_length_that_cannot_be_is_refused(length: int) -> None:
    head = np.concatenate([_header(length), np.zeros(5, dtype=np.uint8)])
    with pytest.raises(Malformed, match=f"rank 2 announces {length} bytes where 0 to 100"):
        _length(head, 100, 2)
    assert _length(_header(100), 100, 2) == 100


def _part(spec: str, rows: int, private: bool) -> tuple[Uplink, bytes]:
    """A request for two vectors of each of two processes, and the bytes of rank 1: flags, lengths, messages."""
    compressor, block = parse(spec), Block(2, 4, 4)
    assert isinstance(compressor, Compressor)
    keys = Keys(3, 5, "/up0", block.workers[:rows], 4)
    v = torch.from_numpy(np.random.default_rng(0).standard_normal((rows, 40)))
    message = compressor.message(v, keys)
    packet = Packet(compressor, message, keys, (40,), v.dtype, np.arange(rows), private=private)
    lengths = message.nbytes.astype("<u4").tobytes() if spec.startswith(("topk", "threshold")) else b""
    flags = bytes([1] * rows + [0] * (2 - rows)) if private else b""
    return Uplink(packet), flags + lengths + message.pack().tobytes()


def _heard(ask: Uplink, data: bytes) -> tuple[Packet, int]:
    group = ProcessGroup.__new__(ProcessGroup)  # no network: only what it knows of the others
    group.blocks = Block.deal(4, 2)
    return group._decode(ask, 1, np.frombuffer(data, dtype=np.uint8), 0)


@pytest.mark.parametrize("spec", ["topk(k=0.3)", "threshold(t=0.5)", "natural"])
@pytest.mark.parametrize(("rows", "private"), [(2, False), (2, True), (1, True)])
@given(st.integers(0, 2**32))
def test_a_part_of_another_process_is_read_or_refused(spec: str, rows: int, private: bool, seed: int) -> None:
    ask, data = _part(spec, rows, private)
    packet, at = _heard(ask, data)
    assert at == len(data) and packet.message.rows == rows
    assert all(torch.equal(a, b) for a, b in zip(packet.message.codes, ask.packet.message.codes, strict=True))
    rng = np.random.default_rng(seed)
    for damaged in (
        data[: rng.integers(len(data))],
        rng.bytes(len(data)),
        bytes(byte ^ (1 << rng.integers(8) if rng.random() < 0.05 else 0) for byte in data),
        b"\xff" * (2 + 4 * rows) + data,
    ):
        try:
            packet, at = _heard(ask, damaged)
        except Malformed:
            continue
        assert 0 <= at <= len(damaged)
        assert packet.decoded.dense().shape == (packet.message.rows, 40)


def test_the_lengths_and_flags_of_another_process_are_checked() -> None:
    ask, data = _part("threshold(t=0.5)", 2, True)
    for damaged, why in (
        (b"\x02" + data[1:], "a flag is neither 0 nor 1"),
        (data[:2] + b"\xff\xff\xff\xff" + data[6:], "bytes came where at least"),
        (data[:2] + b"\x00\x00\x00\x00" + data[6:], "field 0"),
        (data[:1], "1 bytes came where at least 2"),
        (data[:5], "5 bytes came where at least 10"),
    ):
        with pytest.raises(Malformed, match=why):
            _heard(ask, damaged)
