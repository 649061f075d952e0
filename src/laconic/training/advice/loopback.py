"""A group of processes that are not there: every transfer is noted, and comes back as if all had said the same."""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass
from typing import Any

import torch.distributed as dist
from torch import Tensor
from torch.futures import Future

from laconic.training.advice.transfers import AllGather, AllReduce, AllToAll, Broadcast, Transfer

_BACKEND = "laconic_loopback"


@dataclass(frozen=True)
class Call:
    """A transfer, and when the group began and ended to play it, in seconds of `time.perf_counter`."""

    transfer: Transfer
    began: float
    ended: float


class _Done(dist.Work):
    """Work that is done already."""

    def __init__(self, result: list[Tensor]) -> None:
        super().__init__()
        self._future: Future[list[Tensor]] = Future()
        self._future.set_result(result)

    def wait(self, timeout: Any = None) -> bool:
        return True

    def is_completed(self) -> bool:
        return True

    def get_future(self) -> Future[list[Tensor]]:  # type: ignore[override]
        return self._future


class Loopback(dist.ProcessGroup):
    """Process `rank` of `size`, alone. What runs over it does its real work on real shapes, and nothing travels.

    An all-reduce leaves a tensor as it is, where the real one gives the sum. It needs no `torch.distributed` to be
    initialised; DDP, its hooks and the runtime of laconic take it for a group.

    Attributes
    ----------
    calls : what was sent, in order.

    >>> import torch
    >>> group = Loopback(0, 4)
    >>> dist.all_reduce(torch.ones(3), group=group)
    >>> [call.transfer for call in group.calls]
    [AllReduce(nbytes=12)]
    """

    def __init__(self, rank: int, size: int) -> None:
        super().__init__(rank, size)  # type: ignore[call-arg]
        self.calls: list[Call] = []
        self._place, self._count = rank, size
        self._awaited: deque[list[Tensor]] = deque()

    def _note(self, transfer: Transfer, began: float, result: list[Tensor]) -> _Done:
        self.calls.append(Call(transfer, began, time.perf_counter()))
        return _Done(result)

    def taken(self) -> list[Call]:
        """What was sent since this was last asked."""
        calls, self.calls = self.calls, []
        return calls

    def getBackendName(self) -> str:
        return "loopback"

    def allreduce(self, tensors: list[Tensor], opts: Any = None) -> _Done:
        return self._note(AllReduce(_size(tensors)), time.perf_counter(), tensors)

    def broadcast(self, tensors: list[Tensor], opts: Any = None) -> _Done:
        return self._note(Broadcast(_size(tensors)), time.perf_counter(), tensors)

    def allgather(self, everyone: list[list[Tensor]], mine: list[Tensor], opts: Any = None) -> _Done:
        began = time.perf_counter()
        for heard, said in zip(everyone, mine, strict=True):
            for tensor in heard:
                tensor.copy_(said)
        return self._note(AllGather(_size(mine)), began, [tensor for heard in everyone for tensor in heard])

    def _allgather_base(self, everyone: Tensor, mine: Tensor, opts: Any = None) -> _Done:
        began = time.perf_counter()
        everyone.view(self._count, -1).copy_(mine.reshape(1, -1))
        return self._note(AllGather(_size([mine])), began, [everyone])

    def alltoall_base(
        self, heard: Tensor, said: Tensor, heard_sizes: list[int], said_sizes: list[int], opts: Any = None
    ) -> _Done:
        """Everybody says to this process what it says to itself, as far as there is room for it."""
        began, n = time.perf_counter(), self._count
        own = said.split(said_sizes or [len(said) // n] * n)[self._place]
        for part in heard.split(heard_sizes or [len(heard) // n] * n):
            shared = min(len(part), len(own))
            part[:shared].copy_(own[:shared])
        return self._note(AllToAll(_size([said])), began, [heard])

    def send(self, tensors: list[Tensor], to: int, tag: int) -> _Done:
        """Of two processes, each sends the other what it gathers: see `laconic.runtime.carrier.gather`."""
        began = time.perf_counter()
        for heard in self._awaited.popleft() if self._awaited else []:
            heard.copy_(tensors[0])
        return self._note(AllGather(_size(tensors)), began, tensors)

    def recv(self, tensors: list[Tensor], source: int, tag: int) -> _Done:
        """Filled by what is sent next."""
        self._awaited.append(tensors)
        return _Done(tensors)

    def barrier(self, opts: Any = None) -> _Done:
        return _Done([])


def registered() -> Loopback:
    """A loopback that `torch.distributed`, which must be initialised, knows as a group. Every process calls it."""
    if _BACKEND not in dist.Backend.backend_list:
        dist.Backend.register_backend(
            _BACKEND, lambda store, rank, size, timeout: Loopback(rank, size), devices=["cpu"]
        )
    group = dist.new_group(backend=_BACKEND)
    assert isinstance(group, Loopback)
    return group


def _size(tensors: list[Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
