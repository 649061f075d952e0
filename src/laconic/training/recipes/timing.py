"""Where the time of a step of the loop goes: forward, backward, waiting for communication, the optimizer."""

from __future__ import annotations

import time
from dataclasses import dataclass, fields

from torch import Tensor, nn


@dataclass(frozen=True)
class Seconds:
    """Of one step.

    Attributes
    ----------
    forward : making the batch, and the forward pass.
    backward : to the moment when the last gradient is computed; what a hook computes on the way counts here.
    waiting : from then to the end of the backward pass: the communication that nothing hides.
    optimizer : clipping, the optimizer's step, and what communicates in it: local updates, and the gradients at other
        points that a mechanism asks for.
    """

    forward: float
    backward: float
    waiting: float
    optimizer: float

    @property
    def total(self) -> float:
        """Of all four."""
        return sum(getattr(self, field.name) for field in fields(self))


class Stopwatch:
    """Takes the times of a step; a hook on every parameter notes when its gradient is there."""

    def __init__(self, module: nn.Module) -> None:
        self._marks: list[float] = []
        self._ready = 0.0
        self._handles = [
            parameter.register_post_accumulate_grad_hook(self._note)
            for parameter in module.parameters()
            if parameter.requires_grad
        ]

    def _note(self, parameter: Tensor) -> None:
        self._ready = time.perf_counter()

    def start(self) -> None:
        """A step begins."""
        self._marks = [time.perf_counter()]

    def forward(self) -> None:
        """A forward pass has ended; the first of a step counts."""
        if len(self._marks) == 1:
            self._marks.append(time.perf_counter())

    def backward(self) -> None:
        """A backward pass has ended; the first of a step counts."""
        if len(self._marks) == 2:
            self._marks += [self._ready, time.perf_counter()]

    def end(self) -> None:
        """The step has ended."""
        self._marks.append(time.perf_counter())

    def seconds(self) -> Seconds:
        """Of the step, once it has ended."""
        start, forward, ready, backward, end = self._marks
        return Seconds(forward - start, ready - forward, backward - ready, end - backward)

    def close(self) -> None:
        """Takes the hooks out."""
        for handle in self._handles:
            handle.remove()
