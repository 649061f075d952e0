"""The communication hook of PyTorch's DDP: its gradients are averaged by mechanisms, one worker per process."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any, Protocol, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.futures import Future
from torch.nn.parallel import DistributedDataParallel

from laconic.core.ledger import Ledger
from laconic.core.mechanism import Mechanism
from laconic.training.averager import Averager
from laconic.training.meter import Step
from laconic.training.needs import refuse
from laconic.training.nonfinite import NonFinite
from laconic.training.notices import announce
from laconic.training.policy import Policy


class Scaler(Protocol):
    """What is used of `torch.amp.GradScaler`."""

    def get_scale(self) -> float: ...


class _Switch:
    """The hook that a model has for good: DDP takes one, once. It leads to the averager that is attached, if one is."""

    def __init__(self, model: DistributedDataParallel) -> None:
        self.attached: Attached | None = None
        self._group = cast(dist.ProcessGroup, model.process_group)

    def hook(self, bucket: dist.GradBucket) -> Future[Tensor]:
        """What DDP calls when the gradients of a bucket are ready, on every process in the order of the buckets."""
        if self.attached is None:
            return allreduce_hook(self._group, bucket)
        return self.attached.hook(bucket)


_switches: weakref.WeakKeyDictionary[nn.Module, _Switch] = weakref.WeakKeyDictionary()


class Attached:
    """Mechanisms at work inside a DDP model; made by :func:`attach`.

    Attributes
    ----------
    averager : which averages, and knows memory, bytes and times.

    >>> attached = attach(model, "ef14(topk(k=0.01))")  # doctest: +SKIP
    >>> attached.steps, attached.ledger.uplink, attached.averager.collectives  # doctest: +SKIP
    """

    def __init__(self, switch: _Switch, averager: Averager, names: dict[Tensor, str]) -> None:
        self.averager = averager
        self._switch, self._names = switch, names

    @property
    def ledger(self) -> Ledger:
        """The bytes said so far."""
        return self.averager.ledger

    @property
    def memory(self) -> dict[str, Any]:
        """What mechanisms keep, by parameter name; not to be touched during a backward pass.

        (DDP deals parameters to other buckets after its first iteration, so a bucket is no name.)
        """
        return self.averager.memory

    @property
    def steps(self) -> int:
        """Backward passes with communication so far; the address of their randomness."""
        return self.averager.steps

    @property
    def listeners(self) -> list[Callable[[Step], None]]:
        """Called with what each step has cost; see :class:`Averager`."""
        return self.averager.listeners

    def state_dict(self) -> dict[str, Any]:
        """This process' part of the state, to be saved by every process; safe to load with weights_only=True.

        `laconic.training.merge` makes one whole of the parts of all processes.
        """
        return self.averager.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on from this process' part, or from a whole, of as many or of another number of processes.

        Raises ValueError, one line, for a checkpoint of another model or mechanism, naming what differs.
        """
        self.averager.load_state_dict(state)

    def detach(self) -> None:
        """Ends the compression: from now on DDP averages gradients by an all-reduce, as it does without a hook."""
        if self._switch.attached is self:
            self._switch.attached = None
            self.averager.close()

    def hook(self, bucket: dist.GradBucket) -> Future[Tensor]:
        """Hands a bucket of DDP's to the averager."""
        names = [self._names[parameter] for parameter in bucket.parameters()]
        return self.averager.submit(
            names, gradients_of(bucket), first=bucket.index() == 0, last=bucket.is_last(), result=bucket.buffer()
        )


def gradients_of(bucket: dist.GradBucket) -> list[Tensor]:
    """The gradients in a bucket, in order, as views of it with the shapes of their parameters.

    `bucket.gradients()` takes what lies in it for tensors in the usual order; but where a parameter has its channels
    last in memory, so has its gradient.
    """
    pairs = zip(bucket.parameters(), bucket.gradients(), strict=True)
    return [
        gradient.as_strided(parameter.shape, parameter.stride()) if _unusual(parameter) else gradient
        for parameter, gradient in pairs
    ]


def _unusual(parameter: Tensor) -> bool:
    """Whether DDP keeps the order of its memory: there is another one, without holes or overlaps."""
    return not parameter.is_contiguous() and torch.empty_like(parameter, device="meta").stride() == parameter.stride()


def attach(
    model: DistributedDataParallel,
    mechanism: Policy | Mechanism | str,
    *,
    seed: int = 0,
    window: int = 4,
    timeout: float = 60.0,
    scaler: Scaler | None = None,
    non_finite: NonFinite | None = None,
    sample_every: int = 0,
) -> Attached:
    """Lets a mechanism average the gradients of a DDP model. Call it on every process, before the first backward pass.

    Each process is one worker. The messages of a bucket travel together, on a group and a thread of their own, while
    DDP goes on with the backward pass. Small and one-dimensional tensors travel dense, which is announced; a
    :class:`Policy` decides otherwise, and has warm-ups.

    Gradient accumulation (`no_sync`), clipping, learning-rate schedules, `find_unused_parameters`, autocast and
    `torch.compile` work as without it: mechanisms see the gradients that DDP would have averaged.

    Parameters
    ----------
    model : with parameters on the CPU in float32, float64 or bfloat16, over all processes of `torch.distributed`.
    mechanism : a policy, a mechanism or its spec, such as "ef21_sgdm(topk(k=0.01) | natural)".
    seed : of its randomness, the same on every process.
    window : buckets in flight at most.
    timeout : seconds after which a collective that does not complete is an error.
    scaler : the GradScaler in use, if any: memories are kept in units without its scale.
    non_finite : what to do where gradients are not finite; None is `Skip()`.
    sample_every : steps between measurements of what is owed (`Step.residual`); 0 for none.

    Returns
    -------
    Attached : its ledger, state and `detach()`.

    Raises
    ------
    ValueError : what is not a DDP model, or has a hook already; a mechanism that needs what a hook cannot give; a
        theorem's parameter that is open and has no theorem for a parameter's size; sparse gradients; a model elsewhere,
        in another dtype or over some of the processes; processes that were given different things.

    Examples
    --------
    >>> attached = attach(DistributedDataParallel(net), "ef21_sgdm(topk(k=0.01) | natural)")  # doctest: +SKIP
    >>> loss(model(inputs), targets).backward()  # doctest: +SKIP
    """
    if not isinstance(model, DistributedDataParallel):
        raise ValueError(
            f"attach(model={type(model).__name__}) : model must be a DistributedDataParallel; wrap it in one, or use "
            "laconic.training.Compressed around the optimizer"
        )
    policy = Policy.of(mechanism)
    for one in policy.mechanisms:
        refuse(one, frozenset(), "a DDP hook", elsewhere="put laconic.training.Compressed around the optimizer, no DDP")
        if one.caution:
            announce(f"{one} : {one.caution}")
    switch = _switches.get(model)
    if switch is not None and switch.attached is not None:
        raise ValueError("attach : the model has a mechanism attached already; call detach(model) first")
    n, spans = dist.get_world_size(), dist.get_world_size(cast(dist.ProcessGroup, model.process_group))
    if spans != n:
        raise ValueError(f"attach : the model spans {spans} of {n} processes; it must span all of them")
    named = {name: parameter for name, parameter in model.module.named_parameters() if parameter.requires_grad}
    _refuse_sparse(model.module)
    averager = Averager(
        named, policy, seed=seed, window=window, timeout=timeout, non_finite=non_finite, sample_every=sample_every
    )
    if scaler is not None:
        averager.scaled_by(scaler.get_scale)
    if switch is None:
        switch = _registered(model, averager)
    switch.attached = Attached(switch, averager, {parameter: name for name, parameter in named.items()})
    return switch.attached


def detach(model: DistributedDataParallel) -> None:
    """Ends the compression of a model: from now on DDP averages gradients by an all-reduce.

    DDP cannot be rid of a hook, so the model keeps one that does this; another `attach` takes it over.

    >>> detach(model)  # doctest: +SKIP
    """
    switch = _switches.get(model)
    if switch is not None and switch.attached is not None:
        switch.attached.detach()


def _registered(model: DistributedDataParallel, averager: Averager) -> _Switch:
    switch = _Switch(model)
    try:
        # DDP compares a hook's annotations with types, and ours are text; a lambda has none
        model.register_comm_hook(switch, lambda switch, bucket: switch.hook(bucket))
    except RuntimeError as error:
        averager.close()
        line = str(error).splitlines()[0]
        raise ValueError(f"attach : the model has another communication hook already ({line})") from error
    _switches[model] = switch
    return switch


def _refuse_sparse(module: nn.Module) -> None:
    for name, part in module.named_modules():
        if getattr(part, "sparse", False) and isinstance(part, (nn.Embedding, nn.EmbeddingBag)):
            raise ValueError(
                f"attach : {name!r} ({type(part).__name__}) gives sparse gradients, which DDP averages without hooks; "
                "make it with sparse=False"
            )
