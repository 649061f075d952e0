"""What compressors made of compressors share: messages one after another, and which compressors they take."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence

import numpy as np

from laconic.core.compressor import AB, Claim, Compressor, Contractive, Unbiased, as_contractive, as_joint, as_unbiased
from laconic.core.entry import Entry
from laconic.core.keys import SERVER, Keys
from laconic.core.message import CountIn, Message, Schema, Slot


def joined(schemas: Iterable[Schema]) -> Schema:
    """The fields of several messages one after another, in one message."""
    slots: list[Slot] = []
    for schema in schemas:
        first = len(slots)
        slots += [_moved(slot, first) for slot in schema]
    return tuple(slots)


def _moved(slot: Slot, first: int) -> Slot:
    """The slot of a message whose own first field is now number `first`."""
    if not isinstance(slot.count, CountIn):
        return slot
    return dataclasses.replace(slot, count=CountIn(slot.count.slot + first, slot.count.most))


def separated(message: Message, schemas: Sequence[Schema]) -> list[Message]:
    """The messages that `joined` put together."""
    messages, first = [], 0
    for schema in schemas:
        last = first + len(schema)
        messages.append(Message(schema, message.codes[first:last], message.rows))
        first = last
    return messages


def take_pure(owner: Entry, field: str) -> None:
    """Raises ValueError for a compressor with an explicit state: a compressor made of it has no place to keep it."""
    compressor = getattr(owner, field)
    if type(compressor).start is not Compressor.start:
        raise ValueError(f"{type(owner).__name__}({field}={compressor}) : {field} must be a compressor without a state")


def take_unbiased(owner: Entry, field: str) -> None:
    """Raises ValueError for a compressor that is not known to be unbiased."""
    compressor = getattr(owner, field)
    if as_unbiased(compressor.claim(1, 1)) is None:
        raise ValueError(f"{type(owner).__name__}({field}={compressor}) : {field} must be unbiased, as `natural` is")


def worst(claims: Sequence[Claim | None], n: int) -> Claim | None:
    """What holds of a compressor on several vectors at once, of n workers, if these are its claims on each of them."""
    if claims and all(isinstance(claim, Unbiased) for claim in claims):
        return Unbiased(max(as_unbiased(claim) or 0.0 for claim in claims))
    joint = [known for known in (as_joint(claim, n) for claim in claims) if known is not None]
    if claims and len(joint) == len(claims):
        return AB(max(one.A for one in joint), min(one.B for one in joint), max(one.omega for one in joint))
    alphas = [alpha for alpha in map(as_contractive, claims) if alpha is not None]
    return Contractive(min(alphas)) if claims and len(alphas) == len(claims) else None


def dealt(owner: Entry, keys: Keys) -> np.ndarray:
    """The workers of the rows, int64. Raises ValueError where coordinates are dealt to workers and these are none."""
    outside = (keys.workers < 0) | (keys.workers >= keys.n)
    if outside.any():
        number = keys.workers[outside][0]
        who = "the server" if number == SERVER else f"worker {number}"
        raise ValueError(
            f"{owner} for {who} of n = {keys.n} : it deals the coordinates to"
            " workers, whose numbers must be below n; give the whole problem's, and the server another compressor"
        )
    return keys.workers
