"""PyTorch's own ways to average gradients, as baselines; their bytes are computed, for PyTorch does not count them.

A ring all-reduce of s bytes among n processes makes each of them hand over 2 (n - 1) / n s (Patarasuk & Yuan 2009).
`up` and `down` are s, what a worker says and hears.
"""

from __future__ import annotations

import dataclasses
import math
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, ClassVar, cast

import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.algorithms.ddp_comm_hooks import default_hooks, powerSGD_hook
from torch.distributed.algorithms.ddp_comm_hooks.debugging_hooks import noop_hook
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from laconic.training.recipes.exchange import Exchange, Joined, Traffic, parallel

FLOAT = 4  # bytes


def ring_bytes(size: int, n: int) -> int:
    """What each of n processes hands over in a ring all-reduce of `size` bytes.

    >>> ring_bytes(1000, 2), ring_bytes(1000, 4), ring_bytes(1000, 1)
    (1000, 1500, 0)
    """
    return round(2 * (n - 1) * size / n)


class Baseline(Exchange):
    """A communication hook of PyTorch's, or none; the numbers of all parameters are float32."""

    name: ClassVar[str]
    counting = "computed: a ring all-reduce of what the hook averages"

    @property
    def label(self) -> str:  # type: ignore[override]
        """The baseline's name with its parameter."""
        return self.name

    @classmethod
    def of(cls, parameter: str) -> Baseline:
        """From what follows the name. Raises ValueError where the baseline has no such parameter."""
        if parameter:
            raise ValueError(f"--baseline {cls.name}-{parameter} : {cls.name} has no parameter; give {cls.name}")
        return cls()

    @abstractmethod
    def said(self, shapes: Sequence[tuple[int, ...]], step: int) -> int:
        """Bytes that a worker says in a step about tensors of these shapes."""

    @abstractmethod
    def register(self, model: DistributedDataParallel) -> None:
        """Puts the hook into the model."""

    def join(self, module: nn.Module, optimizer: Optimizer, seed: int, bucket_mb: float) -> Joined:
        """The module in DDP with this hook."""
        model = parallel(module, bucket_mb)
        self.register(model)
        return _Computed(self, model, optimizer)

    def candidate(self) -> str | None:
        """By its label."""
        return self.label

    def dense_numbers(self, named: Mapping[str, Tensor]) -> int:
        """All of them, unless a baseline says otherwise."""
        return sum(tensor.numel() for tensor in named.values())


class _Computed(Joined):
    """A baseline at work; bytes by formula."""

    def __init__(self, baseline: Baseline, model: DistributedDataParallel, optimizer: Optimizer) -> None:
        self.model, self.optimizer = model, optimizer
        self._baseline, self._world = baseline, dist.get_world_size()
        self._shapes = [tuple(parameter.shape) for parameter in model.parameters()]
        self._steps, self._traffic = 0, Traffic()

    def stepped(self) -> None:
        """Counts the step."""
        said = self._baseline.said(self._shapes, self._steps)
        self._steps += 1
        old = self._traffic
        self._traffic = Traffic(old.up + said, old.down + said, old.sent + ring_bytes(said, self._world))

    def traffic(self) -> Traffic:
        """By the formulas."""
        return self._traffic

    def state_dict(self) -> dict[str, Any]:
        """The count: the hooks that can be resumed keep nothing."""
        return dataclasses.asdict(self._traffic)

    def load_state_dict(self, state: dict[str, Any], step: int) -> None:
        """Goes on counting."""
        self._steps, self._traffic = step, Traffic(**state)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Nothing was started."""


def _numbers(shapes: Sequence[tuple[int, ...]]) -> int:
    return sum(math.prod(shape) for shape in shapes)


@dataclass(frozen=True)
class Dense(Baseline):
    """DDP without a hook: gradients are averaged in float32."""

    name = "dense"

    def said(self, shapes: Sequence[tuple[int, ...]], step: int) -> int:
        """Four bytes for each number."""
        return FLOAT * _numbers(shapes)

    def register(self, model: DistributedDataParallel) -> None:
        """Nothing: an all-reduce is what DDP does."""


@dataclass(frozen=True)
class HalfPrecision(Baseline):
    """DDP's `fp16_compress_hook`: gradients are averaged in float16."""

    name = "fp16"

    def said(self, shapes: Sequence[tuple[int, ...]], step: int) -> int:
        """Two bytes for each number."""
        return 2 * _numbers(shapes)

    def register(self, model: DistributedDataParallel) -> None:
        """PyTorch's hook."""
        model.register_comm_hook(model.process_group, default_hooks.fp16_compress_hook)

    def dense_numbers(self, named: Mapping[str, Tensor]) -> int:
        """None: all are rounded."""
        return 0


@dataclass(frozen=True)
class Nothing(Baseline):
    """No communication: every process trains alone, which measures computing. Its accuracy means nothing."""

    name = "none"
    counting = "nothing is sent"

    def said(self, shapes: Sequence[tuple[int, ...]], step: int) -> int:
        """Nothing."""
        return 0

    def candidate(self) -> None:
        """There is nothing to predict."""

    def register(self, model: DistributedDataParallel) -> None:
        """PyTorch's hook for this very purpose."""
        model.register_comm_hook(None, noop_hook)


@dataclass(frozen=True)
class TorchPowerSGD(Baseline):
    """PyTorch's PowerSGD hook (Vogels et al. 2019, arXiv:1905.13727), with error feedback and warm start.

    Its defaults, but for `start_powerSGD_iter`: it averages in float32 for two steps, the fewest that it allows with
    error feedback, where its default is 1,000. A tensor of shape (n, ...) is an n x m matrix; with q = min(n, m, rank)
    it is compressed where 2 (n + m) q < n m, and then P and Q, (n + m) q numbers, are averaged; else all n m.

    All gradients are in one bucket, whatever `--bucket-mb` says: the hook issues collectives from the callbacks of
    others, and with several buckets over Gloo their order depends on timing, so that processes issue different ones and
    abort. So nothing of its communication is hidden behind the backward pass.
    """

    rank: int

    name = "powersgd"
    cannot_resume = (
        "keeps its errors by DDP's bucket numbers, which a new process deals anew; start again, or use --mechanism "
        "'powersgd(rank=...)'"
    )
    FIRST: ClassVar[int] = 2

    @property
    def label(self) -> str:  # type: ignore[override]
        """powersgd-RANK."""
        return f"{self.name}-{self.rank}"

    @classmethod
    def of(cls, parameter: str) -> Baseline:
        """From the rank."""
        if not parameter.isdecimal() or int(parameter) < 1:
            given = f"powersgd-{parameter}" if parameter else "powersgd"
            raise ValueError(f"--baseline {given} : give an integer >= 1 as the rank, powersgd-1 say")
        return cls(int(parameter))

    def bucket_mb(self, module: nn.Module, asked: float) -> float:
        """As much as there is, and a MiB."""
        return 1.0 + sum(parameter.numel() * parameter.element_size() for parameter in module.parameters()) / 2**20

    def said(self, shapes: Sequence[tuple[int, ...]], step: int) -> int:
        """Those of P, Q and the tensors that are not worth it; everything in the first two steps."""
        if step < self.FIRST:
            return FLOAT * _numbers(shapes)
        return FLOAT * sum(self._of(shape)[0] for shape in shapes)

    def _of(self, shape: tuple[int, ...]) -> tuple[int, bool]:
        """Numbers that are averaged for a tensor, and whether it is compressed."""
        n = shape[0] if shape else 1
        m = math.prod(shape) // n
        factors = (n + m) * min(n, m, self.rank)
        return (factors, True) if 2 * factors < n * m else (n * m, False)

    def register(self, model: DistributedDataParallel) -> None:
        """PyTorch's hook with a state of its own."""
        state = powerSGD_hook.PowerSGDState(
            cast(dist.ProcessGroup, model.process_group), matrix_approximation_rank=self.rank,
            start_powerSGD_iter=self.FIRST,
        )  # fmt: skip
        model.register_comm_hook(state, powerSGD_hook.powerSGD_hook)

    def dense_numbers(self, named: Mapping[str, Tensor]) -> int:
        """Those of the tensors that are not worth it."""
        return sum(tensor.numel() for tensor in named.values() if not self._of(tuple(tensor.shape))[1])


BASELINES: dict[str, type[Baseline]] = {cls.name: cls for cls in (Dense, HalfPrecision, TorchPowerSGD, Nothing)}


def baseline_of(text: str) -> Baseline:
    """A baseline by its name, `powersgd-4` say. Raises ValueError, one line, for one that there is not.

    >>> baseline_of("powersgd-4").said([(64, 64, 3, 3), (64,)], step=5)
    10496
    """
    name, _, parameter = text.partition("-")
    if name not in BASELINES:
        raise ValueError(f"--baseline {text} : give dense, fp16, powersgd-RANK or none")
    return BASELINES[name].of(parameter)
