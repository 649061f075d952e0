"""Numbers that are not finite: what a step does where some worker has them."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from laconic.training.notices import announce


class NotFinite(Exception):
    """Some workers' numbers are not finite: which of a bucket's tensors it is, by worker."""

    def __init__(self, where: Mapping[int, int]) -> None:
        super().__init__(where)
        self.where = where

    def told(self, names: Sequence[str], step: int) -> str:
        """One line."""
        who = ", ".join(f"{names[place]!r} of worker {worker}" for worker, place in self.where.items())
        return f"step {step}: numbers are not finite in {who}"


class NonFinite(ABC):
    """What to do then; called on every process alike."""

    @abstractmethod
    def met(self, found: NotFinite, names: Sequence[str], tensors: Sequence[Tensor], step: int, scaled: bool) -> None:
        """Leaves in the tensors what the optimizer is to see. `scaled`: a GradScaler looks at them first."""


@dataclass(frozen=True)
class Skip(NonFinite):
    """The bucket's memory stays as it was, and its tensors become zero; NaN for a GradScaler, which skips the step.

    Buckets of the step that were averaged before it keep their averages.

    >>> attached = attach(model, "ef14(topk(k=0.01))", non_finite=Skip())  # doctest: +SKIP
    """

    def met(self, found: NotFinite, names: Sequence[str], tensors: Sequence[Tensor], step: int, scaled: bool) -> None:
        if not scaled:  # a GradScaler meets them as a matter of course
            announce(f"{found.told(names, step)}; they count as zero, on all processes (Stop() ends the run instead)")
        for tensor in tensors:
            tensor.fill_(math.nan if scaled else 0.0)


@dataclass(frozen=True)
class Stop(NonFinite):
    """The step fails on every process, with worker, tensor and step named.

    >>> attached = attach(model, "ef14(topk(k=0.01))", non_finite=Stop())  # doctest: +SKIP
    """

    def met(self, found: NotFinite, names: Sequence[str], tensors: Sequence[Tensor], step: int, scaled: bool) -> None:
        raise FloatingPointError(found.told(names, step))
