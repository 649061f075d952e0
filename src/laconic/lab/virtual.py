"""Virtual seconds of synchronous methods: what their workers take for gradients, on the axis of asynchronous ones."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from laconic.core.delay import Delays
from laconic.core.keys import Keys
from laconic.lab.evaluate import Party
from laconic.runtime.base import Runtime


class VirtualTime:
    """Adds up, worker by worker, the delays of the gradients that each has computed, until a round: it waits for all.

    A worker's delay in an iteration is one draw of the model, times the gradients that it computes there (a minibatch
    of a tenth of its terms is a tenth of one; a product of its Hessian with a vector is one; Hessians and what the
    server computes take no time). Iterations without a round let fast workers run ahead. Without delays there is no
    time, which is NaN.
    """

    def __init__(self, delays: Delays | None, seed: int, runtime: Runtime) -> None:
        self._delays, self._seed, self._runtime = delays, seed, runtime
        self._last_round = 0.0
        self._since = np.zeros(runtime.n)

    @property
    def seconds(self) -> float:
        """When the slowest worker has done what was asked of it."""
        return math.nan if self._delays is None else self._last_round + float(self._since.max())

    @contextlib.contextmanager
    def passing(self, iteration: int, parties: Sequence[Party]) -> Iterator[None]:
        """One iteration runs inside."""
        if self._delays is None:
            yield
            return
        for party in parties:
            party.oracles.calls.by_worker = np.zeros(party.link.block.size, dtype=np.int64)
        before = self._runtime.ledger.rounds
        yield
        passes = self._runtime.drive(*[_passes(party) for party in parties])[0].numpy()
        n = self._runtime.n
        self._since += self._delays.draw(Keys(self._seed, iteration, "delays", np.arange(n), n)) * passes
        if self._runtime.ledger.rounds > before:
            self._last_round, self._since = self.seconds, np.zeros(n)

    def state(self) -> dict[str, Tensor]:
        """What a checkpoint keeps."""
        since = torch.from_numpy(self._since.copy())
        return {"since": since, "last_round": torch.tensor(self._last_round, dtype=torch.float64)}

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Goes on from a checkpoint; one of an older version has no virtual time."""
        if state:
            self._since, self._last_round = state["since"].numpy().copy(), float(state["last_round"])


async def _passes(party: Party) -> Tensor:
    """How many times each worker of the problem looked at all of its terms, (n,), on every party."""
    looked = party.oracles.calls.by_worker
    assert looked is not None
    return await party.link.look(torch.from_numpy(looked / party.oracles.terms()))
