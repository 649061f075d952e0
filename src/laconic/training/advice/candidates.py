"""Candidates by name: mechanisms of laconic, PyTorch's hooks, and local updates."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch.distributed as dist
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook, fp16_compress_hook
from torch.distributed.algorithms.ddp_comm_hooks.powerSGD_hook import PowerSGDState, powerSGD_hook

from laconic.core.mechanism import Mechanism
from laconic.training.advice.compute import Bucket
from laconic.training.advice.cost import Averaged, Candidate, InOneBucket, TorchHook
from laconic.training.advice.loopback import Loopback
from laconic.training.advice.predict import EveryFew, Journey, Order
from laconic.training.needs import refuse
from laconic.training.policy import Policy

__all__ = ["Candidate", "LocalUpdates", "candidate_of"]


@dataclass(frozen=True)
class LocalUpdates(Candidate):
    """Steps of one's own, and every so many of them a dense exchange, as LocalSGD and DiLoCo make it.

    The outer optimizer's work, done once in so many steps, is left out.
    """

    every: int

    @property
    def name(self) -> str:  # type: ignore[override]
        return f"diloco-{self.every}"

    @property
    def order(self) -> Order:  # type: ignore[override]
        return EveryFew(self.every)

    def journeys(self, buckets: Sequence[Bucket], nobody: Loopback) -> list[Journey]:
        return _dense("dense").journeys(buckets, nobody)


def _dense(name: str) -> Candidate:
    return TorchHook(name, allreduce_hook, lambda group: group)


def _fp16(name: str) -> Candidate:
    return TorchHook(name, fp16_compress_hook, lambda group: group)


def _power(name: str) -> Candidate:
    rank = _number(name)

    def state(group: dist.ProcessGroup) -> PowerSGDState:
        return PowerSGDState(group, matrix_approximation_rank=rank, start_powerSGD_iter=2)

    # with several buckets over Gloo its processes issue different collectives, and abort: see `laconic train`
    return InOneBucket(TorchHook(name, powerSGD_hook, state))


def _local(name: str) -> Candidate:
    return LocalUpdates(_number(name))


def _number(name: str) -> int:
    head, _, text = name.partition("-")
    if not text.isdecimal() or int(text) < 1:
        raise ValueError(f"candidate {name!r} : give an integer >= 1 after {head}-, {head}-4 say")
    return int(text)


_PLAIN: dict[str, Callable[[str], Candidate]] = {"dense": _dense, "fp16": _fp16}
_NUMBERED: dict[str, Callable[[str], Candidate]] = {"powersgd": _power, "diloco": _local}


def candidate_of(given: Candidate | Policy | Mechanism | str) -> Candidate:
    """A candidate by its name: `dense`, `fp16` and `powersgd-R` are PyTorch's, `diloco-H` is a dense exchange every H
    steps, and all else the spec of a mechanism; or a policy, a mechanism, or a candidate as it is.

    Raises
    ------
    ValueError : no such name or spec, a mechanism that a DDP hook cannot serve.

    >>> [candidate_of(name).name for name in ("powersgd-4", "diloco-50", "ef14(topk(k=0.01))")]
    ['powersgd-4', 'diloco-50', 'ef14(topk(k=0.01))']
    """
    if isinstance(given, Candidate):
        return given
    if isinstance(given, str):
        name = given.strip()
        make = _PLAIN.get(name) or _NUMBERED.get(name.partition("-")[0] if "-" in name and "(" not in name else "")
        if make is not None:
            return make(name)
    policy = Policy.of(given)
    for mechanism in policy.mechanisms:
        refuse(mechanism, frozenset(), "a DDP hook")
    return Averaged(policy)
