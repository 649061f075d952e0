"""A ballot: numbers and texts of all processes, gathered behind the training's back."""

from __future__ import annotations

import datetime
from collections.abc import Callable
from typing import cast

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from laconic.core.ledger import Ledger
from laconic.runtime.carrier import Carrier

LONGEST = 2000  # bytes of a text


class Ballot:
    """Gathers on a group of its own, so that nothing depends on the order in which others use theirs.

    Making one is collective; so is each gathering, in the same order on all processes and on one thread.

    Parameters
    ----------
    timeout : seconds after which a gathering fails with NetworkFailure.

    Attributes
    ----------
    ledger : whose `transport.framing` counts the bytes that this process has handed over.
    """

    def __init__(self, timeout: float) -> None:
        self.ledger = Ledger(dist.get_world_size())
        group = dist.new_group(backend="gloo", timeout=datetime.timedelta(seconds=timeout))
        self._carrier = Carrier(self.ledger, cast(dist.ProcessGroup, group))

    def begin(self, numbers: Tensor) -> Callable[[], Tensor]:
        """Starts to gather int64 numbers (k,) of every process; the function that is returned waits for (world, k)."""
        wait = self._carrier.gather_padded(numbers.numpy().view(np.uint8), 8 * len(numbers))
        return lambda: torch.from_numpy(np.stack(wait())).view(torch.int64)

    def texts(self, mine: str) -> list[str]:
        """The texts of all processes, by rank, cut to LONGEST bytes."""
        rows = self._carrier.gather_padded(np.frombuffer(mine.encode()[:LONGEST], dtype=np.uint8).copy(), LONGEST)()
        return [row.tobytes().rstrip(b"\0").decode(errors="replace") for row in rows]
