"""The ledger: exact bytes, messages and rounds of a run, and apart from them what the transport handed over."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

# of a flight's bytes per worker: up, down, and those of `up` that are sums and come back once all is up
Listener = Callable[["np.ndarray | None", "np.ndarray | None", "np.ndarray | None"], None]


@dataclass
class Transport:
    """Bytes that this process handed to the transport: messages, and what surrounds them (lengths, padding)."""

    payload: int = 0
    framing: int = 0


@dataclass
class Account:
    """What one flight comes to: bytes per worker, int64 of shape (n,), None where nobody spoke, and messages.

    `returned` goes down once everything has come up: the sums of an all-reduce.
    """

    up: np.ndarray | None = None
    down: np.ndarray | None = None
    returned: np.ndarray | None = None
    messages_up: int = 0
    messages_down: int = 0

    def said_up(self, sizes: np.ndarray, messages: int) -> None:
        """Workers spoke to the server."""
        self.up = sizes if self.up is None else self.up + sizes
        self.messages_up += messages

    def said_down(self, sizes: np.ndarray, messages: int) -> None:
        """The server spoke to workers."""
        self.down = sizes if self.down is None else self.down + sizes
        self.messages_down += messages

    def summed(self, sizes: np.ndarray) -> None:
        """All workers gave a vector and got the mean back."""
        self.said_up(sizes, len(sizes))
        self.returned = sizes if self.returned is None else self.returned + sizes
        self.messages_down += len(sizes)


class Ledger:
    """Counts what n workers and the server say to each other.

    `uplink` and `downlink` are logical bytes per worker, int64 of shape (n,): the lengths of messages, equal in every
    runtime. Each of `listeners` is called once per flight with that flight's bytes per worker: up, down, and what
    all-reduces return after that, which is part of `up` as well (None where nothing was said). The network models are
    such listeners.
    """

    def __init__(self, n: int) -> None:
        self.n = n
        self.uplink = np.zeros(n, dtype=np.int64)
        self.downlink = np.zeros(n, dtype=np.int64)
        self.messages_up = self.messages_down = self.rounds = 0
        self.transport = Transport()
        self.listeners: list[Listener] = []

    def flight(self, account: Account) -> None:
        """Enters one flight. It is a round if workers spoke to the server."""
        self.rounds += account.up is not None
        self.messages_up += account.messages_up
        self.messages_down += account.messages_down
        up, down, returned = account.up, account.down, account.returned
        if up is not None:
            self.uplink += up
        for sizes in (down, returned):
            if sizes is not None:
                self.downlink += sizes
        if up is not None or down is not None:
            for listener in self.listeners:
                listener(up, down, returned)

    def state(self) -> dict[str, Tensor]:
        """For a checkpoint."""
        counts = [self.messages_up, self.messages_down, self.rounds, self.transport.payload, self.transport.framing]
        return {
            "uplink": torch.from_numpy(self.uplink.copy()),
            "downlink": torch.from_numpy(self.downlink.copy()),
            "counts": torch.tensor(counts, dtype=torch.int64),
        }

    def load(self, state: dict[str, Tensor]) -> None:
        """Goes on from a checkpoint, forgetting what was entered since."""
        self.uplink[:] = state["uplink"].numpy()
        self.downlink[:] = state["downlink"].numpy()
        counts = state["counts"].tolist()
        self.messages_up, self.messages_down, self.rounds = counts[:3]
        self.transport = Transport(*counts[3:])
