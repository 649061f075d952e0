"""What the advisor predicts for a run, before it begins: the seconds of a step, measured link and all."""

from __future__ import annotations

import itertools

import torch.distributed as dist
from torch import nn

from laconic.training.advice import Bench, Prediction
from laconic.training.recipes.exchange import Exchange, ddp_options
from laconic.training.recipes.tasks import Course, Task


def forecast(task: Task, exchange: Exchange, course: Course, module: nn.Module, bucket_mb: float) -> Prediction | str:
    """A step of this run, or in words why there is no prediction. Every process calls it; the module stays as it is.

    The steps that are measured are the first ones of the run: their batches, the task's loss and optimizer.
    """
    candidate = exchange.candidate()
    if dist.get_world_size() == 1:
        return "there is one process, and nothing to communicate"
    if candidate is None:
        return f"the advisor does not know {exchange.label}"
    steps = itertools.count()
    try:
        bench = Bench.measure(
            module, lambda model: course.loss(model, next(steps)), optimizer=task.optimizer, ddp=ddp_options(bucket_mb)
        )
        return bench.predict(candidate)
    except ValueError as refusal:  # of a link that cannot be measured, or of the model's tensors: all processes meet it
        return str(refusal)
