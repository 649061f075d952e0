"""Checks of messages: exact sizes, and bytes that tell a receiver everything, whoever and whatever else was sent."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from laconic.checks.trial import Trial, addresses, decoded, message_of, rows_of, same, sent
from laconic.checks.vectors import batch, extremes, normal
from laconic.core.keys import Keys
from laconic.core.message import Message, fixed_lengths

SEED_OF_NOISE = 7
MOST, ADDED = 4, 128  # a row takes at most MOST times the values at full width and ADDED bytes: runtimes rely on it


def inputs(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Everything that a compressor may be handed, (rows, *shape): the cases and the extremes."""
    return torch.cat([batch(shape, dtype)[1], torch.stack(list(extremes(shape, dtype).values()))])


def messages(trial: Trial, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    """Sizes are the lengths of what is packed, and bytes and schema alone decode to the same bits."""
    v = inputs(shape, dtype)
    keys, d = addresses(v.shape[0]), math.prod(shape)
    message = message_of(trial.compressor, v, keys)
    direct = decoded(trial.compressor, message, shape, dtype, keys)
    trial.expect(direct.shape == v.shape and direct.dtype == dtype, f"decodes to {tuple(direct.shape)} {direct.dtype}")
    nbytes, buffer = message.nbytes, message.pack()
    trial.expect(nbytes.shape == (v.shape[0],), f"nbytes has the shape {nbytes.shape}")
    trial.expect(len(buffer) == nbytes.sum(), f"nbytes says {nbytes.sum()} and pack gives {len(buffer)} bytes")
    trial.expect(bool((nbytes == (message.bits + 7) // 8).all()), "nbytes are not the bits in whole bytes")
    alone = [message.at(row, row + 1).pack().tobytes() for row in range(message.rows)]
    trial.expect(alone == rows_of(message), "a row packed alone is not its part of the whole")
    limit = MOST * d * dtype.itemsize + ADDED
    trial.expect(int(nbytes.max()) <= limit, f"a message of {nbytes.max()} bytes; at most {limit} are allowed")
    known = fixed_lengths(trial.receiver.schema(shape, dtype, _again(keys)), message.rows)
    trial.expect(known is None or np.array_equal(known, nbytes), "the schema's lengths are not the message's")
    # what the sender may have kept of these vectors is replaced before anything is decoded
    sent(trial.compressor, v.flip(0) * 0.5 + 1.0, keys)
    _heard(trial, buffer, nbytes, direct, keys)


def _again(keys: Keys) -> Keys:
    """Equal addresses in an object of its own."""
    return dataclasses.replace(keys, workers=keys.workers.copy())


def _heard(trial: Trial, buffer: np.ndarray, nbytes: np.ndarray, direct: Tensor, keys: Keys) -> None:
    shape, dtype = tuple(direct.shape[1:]), direct.dtype
    for who, compressor in (("a receiver", trial.receiver), ("the sender, later,", trial.compressor)):
        schema = compressor.schema(shape, dtype, _again(keys))
        heard = Message.unpack(buffer.copy(), nbytes.copy(), schema)
        out = decoded(compressor, heard, shape, dtype, _again(keys))
        trial.expect(same(out, direct), f"{who} decodes the bytes to other numbers: {_difference(out, direct)}")
        trial.expect(heard.pack().tobytes() == buffer.tobytes(), "what was unpacked packs to other bytes")
    folded = torch.zeros(shape, dtype=dtype)
    if direct.shape[0]:
        schema = trial.receiver.schema(shape, dtype, keys.at([0]))
        first = Message.unpack(buffer[: nbytes[0]].copy(), nbytes[:1].copy(), schema)
        trial.receiver.decode(first, shape, dtype, keys.at([0])).fold(folded, 1.0)
        trial.expect(torch.equal(folded, direct[0]), "folding a row gives other numbers than its dense form")


def _difference(a: Tensor, b: Tensor) -> str:
    if a.shape != b.shape or a.dtype != b.dtype:
        return f"{tuple(a.shape)} {a.dtype} for {tuple(b.shape)} {b.dtype}"
    places = ((a != b) | (torch.signbit(a) != torch.signbit(b))).nonzero()
    if not len(places):
        return "NaNs differ"
    place = tuple(int(index) for index in places[0])
    return f"{float(a[place]):.9g} for {float(b[place]):.9g} at row {place[0]}, position {place[1:]}"


def equal_bytes(trial: Trial, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    """At one address, messages of equal bytes mean the same: nothing travels beside them."""
    v = torch.cat([inputs(shape, dtype), normal(shape, 24, "bytes").to(dtype)])
    keys = addresses(np.ones(v.shape[0], dtype=np.int64), 3)
    message = message_of(trial.compressor, v, keys)
    out, meanings = decoded(trial.compressor, message, shape, dtype, keys), {}
    for row, text in enumerate(rows_of(message)):
        known = meanings.setdefault(text, out[row])
        trial.expect(same(known, out[row]), f"two messages of the same {len(text)} bytes decode to different vectors")


def state(trial: Trial, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    """A compressor with a state: its second message, from the state that the first one left."""
    v, compressor = normal(shape, 5, "state").to(dtype), trial.compressor
    current = compressor.start(shape, dtype, addresses(5))
    for step in range(3):
        keys = addresses(5, step=step)
        codes, following = compressor.advance(v * (step + 1), keys, current)
        again, _ = compressor.advance(v * (step + 1), keys, current)
        trial.expect(
            all(same(a, b) for a, b in zip(codes, again, strict=True)),
            "the same vectors, addresses and state give other codes: the state was written to",
        )
        message = Message(compressor.schema(shape, dtype, keys), codes, 5)
        direct, buffer = decoded(compressor, message, shape, dtype, keys), message.pack()
        trial.expect(len(buffer) == message.nbytes.sum(), "nbytes is not the length of what pack gives")
        _heard(trial, buffer, message.nbytes, direct, keys)
        current = following


def malformed(trial: Trial, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    """Bytes that are cut short, too long or noise are refused by a ValueError, or mean something; nothing crashes."""
    v = batch(shape, dtype)[1]
    keys = addresses(v.shape[0])
    message = message_of(trial.compressor, v, keys)
    for row, text in list(enumerate(rows_of(message)))[::2]:
        one = keys.at([row])
        if text:
            _refused(trial, text[:-1], one, shape, dtype, "a message cut short by a byte")
            _refused(trial, b"", one, shape, dtype, "an empty message")
        _refused(trial, text + b"\0", one, shape, dtype, "a message with a byte added")
        _refused(trial, text + b"\xff", one, shape, dtype, "a message with a byte added")
        for noise in _noise(text, row):
            _survives(trial, noise, one, shape, dtype)


def _noise(text: bytes, row: int) -> Iterator[bytes]:
    """Other bytes of the same length: all ones, random ones, and the message with one byte changed."""
    length = len(text)
    yield b"\xff" * length
    random = Keys(SEED_OF_NOISE, row, "/noise", np.arange(2), 2).words(length // 8 + 1).tobytes()
    yield random[:length]
    if length:
        place = random[0] * length // 256
        yield text[:place] + bytes([text[place] ^ (random[1] | 1)]) + text[place + 1 :]


def _unpacked(trial: Trial, text: bytes, keys: Keys, shape: tuple[int, ...], dtype: torch.dtype) -> Message:
    buffer = np.frombuffer(text, dtype=np.uint8).copy()
    return Message.unpack(buffer, np.array([len(text)]), trial.receiver.schema(shape, dtype, keys))


def _refused(trial: Trial, text: bytes, keys: Keys, shape: tuple[int, ...], dtype: torch.dtype, what: str) -> None:
    try:
        _unpacked(trial, text, keys, shape, dtype)
    except ValueError:
        return
    trial.fail(f"{what} is taken")


def _survives(trial: Trial, text: bytes, keys: Keys, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    try:
        out = decoded(trial.receiver, _unpacked(trial, text, keys, shape, dtype), shape, dtype, keys)
    except ValueError:
        return
    except Exception as error:
        return trial.fail(f"random bytes raise {type(error).__name__}: {' '.join(str(error).split())[:120]}")
    trial.expect(out.shape == (1, *shape) and out.dtype == dtype, f"random bytes decode to {tuple(out.shape)}")
