"""One compressor on trial: the sender, a receiver who has never seen it send, and what was found so far."""

from __future__ import annotations

import copy
import dataclasses
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from laconic.checks.findings import Findings, label
from laconic.checks.verdict import Constant, Verdict
from laconic.core.compressor import Compressor
from laconic.core.keys import Keys
from laconic.core.message import Message
from laconic.core.spec import parse

SEED, STREAM = 20, "/check0"

PATTERNS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def addresses(workers: int | np.ndarray, n: int | None = None, step: int = 0) -> Keys:
    """Addresses of workers 0, 1, ... (or of those given) of n at a step."""
    numbers = np.arange(workers) if isinstance(workers, int) else np.asarray(workers, dtype=np.int64)
    return Keys(SEED, step, STREAM, numbers, max(1, len(numbers)) if n is None else n)


def message_of(compressor: Compressor, v: Tensor, keys: Keys) -> Message:
    """The message of v, the first one of a compressor with a state."""
    shape = tuple(v.shape[1:])
    state = compressor.start(shape, v.dtype, keys)
    if state is None:
        message = compressor.compress(v, keys)
        if type(message) is not Message:  # nothing is done with it: its sizes may make packing write out of bounds
            raise TypeError("the message is of a class of its own, whose sizes nobody checks")
        return message
    codes, _ = compressor.advance(v, keys, state)
    return Message(compressor.schema(shape, v.dtype, keys), codes, v.shape[0])


def decoded(compressor: Compressor, message: Message, shape: tuple[int, ...], dtype: torch.dtype, keys: Keys) -> Tensor:
    """What a message means, (rows, *shape), a tensor of its own."""
    return compressor.decode(message, shape, dtype, keys).dense().clone()


def sent(compressor: Compressor, v: Tensor, keys: Keys) -> Tensor:
    """What arrives of v where messages are not serialised."""
    return decoded(compressor, message_of(compressor, v, keys), tuple(v.shape[1:]), v.dtype, keys)


def same(a: Tensor, b: Tensor) -> bool:
    """Equal bit for bit: -0.0 is not 0.0, and a NaN is itself."""
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    whole = PATTERNS[a.element_size()]
    return torch.equal(a.contiguous().view(whole), b.contiguous().view(whole))


def rows_of(message: Message) -> list[bytes]:
    """The bytes of each row, cut out of all of them."""
    buffer, ends = message.pack().tobytes(), np.cumsum(message.nbytes)
    return [buffer[end - length : end] for end, length in zip(ends, message.nbytes, strict=True)]


@dataclass
class Trial(Findings):
    """The sender, the receiver, and what was found."""

    compressor: Compressor = field(kw_only=True)
    receiver: Compressor = field(kw_only=True)
    constants: list[Constant] = field(default_factory=list)
    changed: bool = False  # some vector came back as another one
    claims_something: bool = False  # some claim allows that

    @classmethod
    def of(cls, compressor: Compressor) -> Trial:
        """A trial whose receiver is built from the spec, or else copied, before anything is sent."""
        return cls(label(compressor), "compressor", compressor=compressor, receiver=_unused(compressor))

    @property
    def pure(self) -> bool:
        """Whether the compressor has no state."""
        return type(self.compressor).start is Compressor.start

    def verdict(self) -> Verdict:
        """What was found, with the constants."""
        return dataclasses.replace(self.found(), constants=tuple(self.constants))


def _unused(compressor: Compressor) -> Compressor:
    try:
        again = parse(str(compressor))
    except Exception:  # not in the registry
        return copy.deepcopy(compressor)
    return again if isinstance(again, Compressor) and type(again) is type(compressor) else copy.deepcopy(compressor)
