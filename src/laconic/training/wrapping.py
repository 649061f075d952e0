"""What can be wrapped: the optimizers, models and mechanisms of `Compressed`, and what is no use is said at once."""

from __future__ import annotations

import inspect
from collections.abc import Iterable

import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import SGD, Optimizer

from laconic.core.mechanism import Mechanism, Need
from laconic.training.needs import refuse


def named_of(optimizer: Optimizer, model: nn.Module) -> dict[str, Tensor]:
    """The parameters of an optimizer by their names in the model, in the model's order."""
    held = {p for group in optimizer.param_groups for p in group["params"] if p.requires_grad}
    named: dict[str, Tensor] = {name: p for name, p in model.named_parameters() if p in held}
    strangers = len(held) - len(named)
    if strangers:
        raise ValueError(
            f"Compressed(model={type(model).__name__}) : {strangers} of the optimizer's {len(held)} parameters are not "
            "the model's"
        )
    if not named:
        raise ValueError("Compressed : none of the optimizer's parameters requires a gradient")
    return named


def refuse_optimizer(optimizer: Optimizer, model: nn.Module) -> None:
    """Raises ValueError, one line, for an optimizer or a model that cannot be wrapped, or a process in no group."""
    if not dist.is_initialized():
        raise ValueError(
            "Compressed : torch.distributed is not initialised; call init_process_group('gloo') first, in a single "
            "process init_process_group('gloo', store=torch.distributed.HashStore(), rank=0, world_size=1)"
        )
    if not isinstance(optimizer, Optimizer) or hasattr(optimizer, "averager"):
        raise ValueError(
            f"Compressed(optimizer={type(optimizer).__name__}) : optimizer must be one of torch's, not wrapped yet"
        )
    if isinstance(model, DistributedDataParallel):
        raise ValueError(
            "Compressed(model=DistributedDataParallel) : DDP averages gradients itself; use laconic.training.attach on "
            "it, or give the model without DDP"
        )
    closure = inspect.signature(optimizer.step).parameters.get("closure")
    if closure is not None and closure.default is inspect.Parameter.empty:
        raise ValueError(
            f"Compressed(optimizer={type(optimizer).__name__}) : it calls closures itself, several times a step, and "
            "those gradients would not be averaged; use an optimizer whose step() needs none"
        )


def refuse_mechanism(mechanism: Mechanism, optimizer: Optimizer, probe: bool) -> None:
    """Raises ValueError, one line, for what cannot be served.

    `probe`: whether it is about the joined parameters, for which there is one.
    """
    if mechanism.takes_step:
        reason = _not_plain(optimizer)
        if reason:
            raise ValueError(
                f"{mechanism} gives steps, not gradients, so the optimizer must be plain SGD, and it is {reason}; use "
                "the mechanism's form for gradients, such as ef14"
            )
    given = {Need.FULL_GRADIENTS, Need.PROBE} if probe else {Need.FULL_GRADIENTS}
    who = "a wrapped optimizer" if probe else "a rule for single parameters"
    refuse(mechanism, frozenset(given), who, gives_step=True)


def _not_plain(optimizer: Optimizer) -> str:
    """What makes an optimizer more than plain SGD; nothing if it is just that."""
    if type(optimizer) is not SGD:
        return type(optimizer).__name__
    extras = ("momentum", "weight_decay", "maximize")
    found = [f"{extra}={group[extra]}" for group in optimizer.param_groups for extra in extras if group[extra]]
    return f"SGD with {', '.join(dict.fromkeys(found))}" if found else ""


def spread(tensors: Iterable[Tensor]) -> None:
    """Rank 0's tensors to everyone."""
    for tensor in tensors:
        whole = tensor.detach().contiguous()
        dist.broadcast(whole, 0)
        if whole.data_ptr() != tensor.data_ptr():
            tensor.detach().copy_(whole)
