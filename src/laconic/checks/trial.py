"""One compressor on trial: the sender, a receiver who has never seen it send, and what was found so far."""

from __future__ import annotations

import copy
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from laconic.checks import generators
from laconic.checks.verdict import Constant, Failure, Verdict
from laconic.core.compressor import Compressor
from laconic.core.keys import Keys
from laconic.core.message import Message
from laconic.core.spec import parse

SEED, STREAM = 20, "/check0"
LINES = 3  # different failures of one check that are told; the next shape and dtype would say the same again

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
        return compressor.compress(v, keys)
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
class Trial:
    """The sender, the receiver, and what was found. `place` says what is being tried, for the failures' lines."""

    compressor: Compressor
    receiver: Compressor
    failures: list[Failure] = field(default_factory=list)
    constants: list[Constant] = field(default_factory=list)
    checks: list[str] = field(default_factory=list)
    place: str = ""
    changed: bool = False  # some vector came back as another one
    claims_something: bool = False  # some claim allows that
    _told: list[tuple[str, str]] = field(default_factory=list)
    started: float = field(default_factory=time.perf_counter)

    @classmethod
    def of(cls, compressor: Compressor) -> Trial:
        """A trial whose receiver is built from the spec, or else copied, before anything is sent."""
        return cls(compressor, _unused(compressor))

    @property
    def pure(self) -> bool:
        """Whether the compressor has no state."""
        return type(self.compressor).start is Compressor.start

    @contextmanager
    def checking(self, check: str, place: str = "") -> Iterator[None]:
        """A check: an exception inside is a failure, and so is a global generator that moved."""
        self.checks.append(check)
        self.place, before = place, generators.states()
        try:
            yield
        except Exception as error:  # whatever an author's code raises is a finding about it
            words = " ".join(str(error).split())[:200]
            self.fail(f"{type(error).__name__}: {words}")
        after = generators.states()
        for owner in before:
            if before[owner] != after[owner]:
                self.fail(f"{owner}'s global random generator was used; numbers come from keys")

    def expect(self, kept: bool, what: str) -> None:
        """Notes a failure of the present check where a promise was not kept."""
        if not kept:
            self.fail(what)

    def fail(self, what: str) -> None:
        """Notes a failure of the present check, unless there are many of it already."""
        check = self.checks[-1]
        told = [known for name, known in self._told if name == check]
        if what not in told and len(told) < LINES:
            self._told.append((check, what))
            self.failures.append(Failure(check, f"{what} ({self.place})" if self.place else what))

    def verdict(self) -> Verdict:
        """What was found."""
        seconds = time.perf_counter() - self.started
        checks = tuple(dict.fromkeys(self.checks))
        return Verdict(label(self.compressor), tuple(self.constants), tuple(self.failures), checks, seconds)


def label(compressor: Compressor) -> str:
    """The spec of a compressor, or its class where it has no name."""
    try:
        return str(compressor)
    except Exception:  # an object that is no dataclass, say: what it computes can be checked all the same
        return type(compressor).__name__


def _unused(compressor: Compressor) -> Compressor:
    try:
        again = parse(str(compressor))
    except Exception:  # not in the registry
        return copy.deepcopy(compressor)
    return again if isinstance(again, Compressor) and type(again) is type(compressor) else copy.deepcopy(compressor)
