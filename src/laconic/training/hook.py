"""The communication hook of PyTorch's DDP: its gradients are averaged by a mechanism, one worker per process."""

from __future__ import annotations

import datetime
import math
from collections.abc import Sequence
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.futures import Future
from torch.nn.parallel import DistributedDataParallel

from laconic.core.flight import together
from laconic.core.ledger import Ledger
from laconic.core.mechanism import Mechanism, Need
from laconic.core.problem import Constant, Constants, Kind
from laconic.core.spec import parse
from laconic.core.theory import Setting
from laconic.runtime.process_group import ProcessGroup
from laconic.training.conductor import Conductor

DTYPES = (torch.float32, torch.float64)
# the compressor's affair, and the optimizer's: with a learning rate that falls, memories of gradients count too much
_NOT_ASKED = frozenset({Need.UNBIASED, Need.CONSTANT_STEP})


class Attached:
    """A mechanism at work inside a DDP model; made by :func:`attach`.

    Attributes
    ----------
    memory : what the mechanism keeps, by parameter name. (DDP deals parameters to other buckets after its first
        iteration, so a bucket is no name.) Do not touch it during a backward pass.
    steps : backward passes with communication so far; the address of their randomness.
    """

    def __init__(
        self, model: DistributedDataParallel, mechanisms: dict[str, Mechanism], runtime: ProcessGroup, window: int
    ) -> None:
        self.memory: dict[str, Any] = {}
        self.steps = 0
        self._mechanisms, self._runtime = mechanisms, runtime
        self._group = _group(model)
        self._names = {parameter: name for name, parameter in model.module.named_parameters()}
        self._conductor: Conductor | None = Conductor(runtime, window)

    @property
    def ledger(self) -> Ledger:
        """The bytes said so far."""
        return self._runtime.ledger

    def detach(self) -> None:
        """Ends the compression: from now on DDP averages gradients by an all-reduce, as it does without a hook.

        DDP cannot be rid of a hook, so the model keeps one that does this, and takes no second mechanism.
        """
        if self._conductor is not None:
            self._conductor.close()
            self._conductor = None

    def hook(self, bucket: dist.GradBucket) -> Future[Tensor]:
        """What DDP calls when the gradients of a bucket are ready, on every process in the order of the buckets."""
        if self._conductor is None:
            return allreduce_hook(self._group, bucket)
        names = [self._names[parameter] for parameter in bucket.parameters()]
        text = self._average(names, bucket.gradients(), bucket.buffer(), first=bucket.index() == 0)
        return self._conductor.submit(text, last=bucket.is_last())

    async def _average(self, names: Sequence[str], gradients: Sequence[Tensor], buffer: Tensor, first: bool) -> Tensor:
        """The text of a bucket: `gradients` are views of the flat `buffer`; what parameters say travels together."""
        if first:  # no text of the step before is left: DDP waits for all of its buckets, and so does the conductor
            self._runtime.links[0].begin(self.steps)
            self.steps += 1
        estimates = await together(*map(self._exchange, names, gradients))
        for gradient, estimate in zip(gradients, estimates, strict=True):
            gradient.copy_(estimate)
        return buffer

    async def _exchange(self, name: str, gradient: Tensor) -> Tensor:
        mechanism, link = self._mechanisms[name], self._runtime.links[0].scope(name)
        v = gradient.detach()[None]
        if name in self.memory:
            estimate, self.memory[name] = await mechanism.exchange(v, self.memory[name], link)
        else:
            estimate, self.memory[name] = await mechanism.init(v, link)
        return estimate


def attach(
    model: DistributedDataParallel, mechanism: Mechanism | str, *, seed: int = 0, window: int = 4, timeout: float = 60.0
) -> Attached:
    """Lets a mechanism average the gradients of a DDP model. Call it on every process, before the first backward pass.

    Each process is one worker. The messages of a bucket travel together, on a group of their own that this call makes
    and a thread of their own, while DDP goes on with the backward pass.

    Parameters
    ----------
    model : with parameters on the CPU in float32 or float64, over all processes of `torch.distributed`.
    mechanism : or its spec, such as "ef21(topk(k=0.01))".
    seed : of its randomness, the same on every process.
    window : buckets in flight at most.
    timeout : seconds after which a collective that does not complete is an error.

    Returns
    -------
    Attached : what the mechanism keeps, its ledger, and `detach()`.

    Raises
    ------
    ValueError : a mechanism that needs what a hook cannot give, a theorem's parameter that is open and has no theorem
        for a parameter's size, a model elsewhere or in another dtype.

    Examples
    --------
    >>> attached = attach(DistributedDataParallel(net), "ef21(topk(k=0.01))")  # doctest: +SKIP
    >>> loss(model(inputs), targets).backward()  # doctest: +SKIP
    """
    chosen = parse(mechanism) if isinstance(mechanism, str) else mechanism
    if not isinstance(chosen, Mechanism):
        raise ValueError(f"attach(mechanism={str(mechanism)!r}) : it is a {chosen.kind}; give a mechanism")
    _refuse_what_a_hook_cannot_give(chosen)
    n, spans = dist.get_world_size(), dist.get_world_size(_group(model))
    if spans != n:
        raise ValueError(f"attach : the model spans {spans} of {n} processes; it must span all of them")
    mechanisms = {}
    for name, parameter in model.module.named_parameters():
        if parameter.device.type != "cpu" or parameter.dtype not in DTYPES:
            raise ValueError(
                f"attach : the parameter {name!r} is {parameter.dtype} on {parameter.device}; "
                "it must be float32 or float64 on the CPU"
            )
        mechanisms[name] = chosen.settled(setting_of(n, tuple(parameter.shape)))
    group = cast(dist.ProcessGroup, dist.new_group(timeout=datetime.timedelta(seconds=timeout)))
    attached = Attached(model, mechanisms, ProcessGroup(n, seed=seed, group=group), window)
    # DDP compares a hook's annotations with types, and ours are text; a lambda has none
    model.register_comm_hook(attached, lambda attached, bucket: attached.hook(bucket))
    return attached


def _group(model: DistributedDataParallel) -> dist.ProcessGroup:
    return cast(dist.ProcessGroup, model.process_group)


def _refuse_what_a_hook_cannot_give(mechanism: Mechanism) -> None:
    asks = mechanism.needs - _NOT_ASKED
    lacks = [need.value for need in sorted(asks, key=lambda need: need.value)]
    if mechanism.takes_step:
        lacks.append("the stepsize (its estimate is a step, and a hook hands gradients to an optimizer)")
    if lacks:
        raise ValueError(f"attach : {mechanism} needs {' and '.join(lacks)}, which a DDP hook cannot give")


def setting_of(n: int, shape: tuple[int, ...]) -> Setting:
    """What is known of one parameter: its size. Constants of the loss are not."""
    unknown = Constant(math.nan, Kind.ESTIMATE, "unknown in training")
    constants = Constants(L=unknown, L_workers=(), L_max=unknown, L_tilde=unknown, L_plus=unknown, L_pm=unknown)
    return Setting(constants, n, shape, convex=False)
