"""A torch.nn.Module with a loss as a problem, behind `Custom.from_module`: each worker has its own rows."""

from __future__ import annotations

import functools
import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor
from torch.func import functional_call, grad, jacrev, vjp

from laconic.core.problem import Batch, Block, Constant, Constants, Kind, Oracles, Problem, Solution, single_threaded
from laconic.problems._around import estimates
from laconic.problems._split import ends

LARGEST_HESSIAN = 4096  # parameters up to which dense Hessians are formed


@dataclass(frozen=True, eq=False)
class Flat:
    """A module as a function of one vector: the parameters that ask for a gradient, in the module's order.

    `view` is the shape in which methods see the vector; () is a vector.
    """

    module: torch.nn.Module
    loss: Callable[[Tensor, Tensor], Tensor]
    l2: float
    view: tuple[int, ...] = ()

    @functools.cached_property
    def parameters(self) -> dict[str, Tensor]:
        """Name to present value."""
        return {name: p.detach().clone() for name, p in self.module.named_parameters() if p.requires_grad}

    @functools.cached_property
    def fixed(self) -> dict[str, Tensor]:
        """Frozen parameters and buffers."""
        frozen = {name: p.detach().clone() for name, p in self.module.named_parameters() if not p.requires_grad}
        return frozen | {name: buffer.detach().clone() for name, buffer in self.module.named_buffers()}

    @property
    def shape(self) -> tuple[int, ...]:
        """Of x."""
        return self.view or tuple(self.start.shape)

    @functools.cached_property
    def start(self) -> Tensor:
        """The vector of the present parameters."""
        return torch.cat([p.reshape(-1) for p in self.parameters.values()])

    def value(self, x: Tensor, inputs: Tensor, targets: Tensor) -> Tensor:
        """loss(module(inputs), targets) + l2 / 2 ||x||^2 with the parameters in x."""
        pieces = torch.split(x, [p.numel() for p in self.parameters.values()])
        named = {name: piece.view_as(p) for (name, p), piece in zip(self.parameters.items(), pieces, strict=True)}
        output = functional_call(self.module, {**self.fixed, **named}, (inputs,))
        return self.loss(output, targets) + 0.5 * self.l2 * (x * x).sum()


class ModuleOracles(Oracles):
    """Oracles of a block, by torch.func, one worker after the other on one thread: the same bits in every block."""

    def __init__(
        self, flat: Flat, inputs: Sequence[Tensor], targets: Sequence[Tensor], block: Block, convex: bool
    ) -> None:
        super().__init__()
        self.block, self.shape, self.dtype, self.convex = block, flat.shape, flat.start.dtype, convex
        self._flat, self._inputs, self._targets = flat, inputs, targets

    def start(self) -> Tensor:
        """The module's parameters."""
        return self._flat.start.clone().view(self.shape)

    def _points(self, x: Tensor) -> Tensor:
        """(d,) or (rows, d)."""
        return x.reshape(-1) if x.ndim == len(self.shape) else x.reshape(len(x), self.d)

    def terms(self) -> np.ndarray:
        return np.array([len(targets) for targets in self._targets], dtype=np.int64)

    @single_threaded
    def _each(self, function: Callable[..., Tensor], rows: np.ndarray, size: int | None, *points: Tensor) -> Tensor:
        """function(point, ..., inputs, targets) of every row; points are (*shape) or (rows, *shape)."""
        out = torch.empty((len(rows),) if size is None else (len(rows), size), dtype=self.dtype)
        vectors = [self._points(point) for point in points]
        for position, worker in enumerate(rows):
            at = [_aligned(point if point.ndim == 1 else point[position]) for point in vectors]
            out[position] = function(*at, self._inputs[worker], self._targets[worker]).detach()
        return out

    def _values(self, x: Tensor, rows: np.ndarray) -> Tensor:
        return self._each(self._flat.value, rows, None, x)

    def _gradients(self, x: Tensor, rows: np.ndarray, batch: Batch | None) -> Tensor:
        slope = grad(self._flat.value)
        if batch is None:
            return self._each(slope, rows, self.d, x).view(len(rows), *self.shape)
        return self._batched(slope, self._points(x), rows, torch.from_numpy(batch.indices)).view(len(rows), *self.shape)

    @single_threaded
    def _batched(self, slope: Callable[..., Tensor], x: Tensor, rows: np.ndarray, indices: Tensor) -> Tensor:
        out = torch.empty((len(rows), self.d), dtype=self.dtype)
        for position, worker in enumerate(rows):
            terms = indices[position]
            point = _aligned(x if x.ndim == 1 else x[position])
            out[position] = slope(point, self._inputs[worker][terms], self._targets[worker][terms]).detach()
        return out

    def _hessians(self, x: Tensor, rows: np.ndarray) -> Tensor:
        d = self.d
        if d > LARGEST_HESSIAN:
            raise ValueError(f"the module has {d} parameters; Hessians are formed up to {LARGEST_HESSIAN} of them")
        i, j = torch.triu_indices(d, d)
        weights = torch.full((len(i),), math.sqrt(2.0), dtype=self.dtype)
        weights[i == j] = 1.0
        curvature = jacrev(grad(self._flat.value))
        return self._each(lambda *args: curvature(*args)[i, j] * weights, rows, len(i), x)

    def _products(self, x: Tensor, v: Tensor, rows: np.ndarray) -> Tensor:
        slope = grad(self._flat.value)

        def product(point: Tensor, direction: Tensor, inputs: Tensor, targets: Tensor) -> Tensor:
            return vjp(lambda at: slope(at, inputs, targets), point)[1](direction)[0]  # the Hessian is symmetric

        return self._each(product, rows, self.d, x, v).view(len(rows), *self.shape)


def _aligned(point: Tensor) -> Tensor:
    """A vector at an address of torch's choice: the last bits of BLAS depend on where rows of a batch happen to lie."""
    return point if point.data_ptr() % 64 == 0 else point.clone()


@dataclass(frozen=True, eq=False)
class Modules(Problem):
    """A problem over a module. It has no spec string; `str` describes it."""

    flat: Flat
    inputs: tuple[Tensor, ...]
    targets: tuple[Tensor, ...]
    convex: bool = False
    constants_known: Constants | None = None
    solution_known: Solution | None = None

    name: ClassVar[str] = "custom"

    @property
    def n(self) -> int:
        """The number of workers."""
        return len(self.inputs)

    def oracles(self, block: Block, data_dir: Path | None = None) -> ModuleOracles:
        """The oracles of a block."""
        mine = slice(block.low, block.high)
        return ModuleOracles(self.flat, self.inputs[mine], self.targets[mine], block, self.convex)

    def constants(self, data_dir: Path | None = None) -> Constants:
        """Those that were given, else estimates."""
        return self.constants_known or _estimates(self)

    def solution(self, data_dir: Path | None = None) -> Solution | None:
        """The one that was given."""
        return self.solution_known

    def fingerprint(self, data_dir: Path | None = None) -> str:
        """A hash of the rows, the initial parameters and the names of module and loss."""
        name = getattr(self.flat.loss, "__qualname__", type(self.flat.loss).__qualname__)
        digest = hashlib.sha256(f"{self.flat.module!r} {name} {self.flat.l2!r}".encode())
        for tensor in (self.flat.start, *self.flat.fixed.values(), *self.inputs, *self.targets):
            digest.update(repr(tuple(tensor.shape)).encode() + tensor.detach().contiguous().view(-1).numpy().tobytes())
        return digest.hexdigest()

    def __str__(self) -> str:
        return f"custom(module {type(self.flat.module).__name__}, d={self.flat.start.numel()}, workers={self.n})"


def build(
    module: torch.nn.Module,
    loss: Callable[[Tensor, Tensor], Tensor],
    inputs: Tensor | Sequence[Tensor],
    targets: Tensor | Sequence[Tensor],
    workers: int | None,
    l2: float,
    convex: bool,
    constants: Constants | None,
    solution: Solution | None,
) -> Modules:
    """See `Custom.from_module`."""
    if not any(p.requires_grad for p in module.parameters()):
        raise ValueError("from_module(module=...) : the module has no parameter that asks for a gradient")
    if not (math.isfinite(l2) and l2 >= 0.0):
        raise ValueError(f"from_module(l2={l2!r}) : l2 must be a number >= 0")
    flat = Flat(module, loss, float(l2))
    dtypes = {p.dtype for p in flat.parameters.values()}
    if len(dtypes) > 1 or not dtypes <= {torch.float32, torch.float64}:
        raise ValueError(f"from_module(module=...) : parameters must all be float64 or all float32 and are {dtypes}")
    first, second = _dealt(inputs, workers, "inputs"), _dealt(targets, workers, "targets")
    lengths = [len(t) for t in first], [len(t) for t in second]
    if lengths[0] != lengths[1]:
        raise ValueError(f"from_module(targets=...) : workers have {lengths[0]} inputs and {lengths[1]} targets")
    if 0 in lengths[0]:
        raise ValueError(f"from_module(inputs=...) : worker {lengths[0].index(0)} has no rows")
    return Modules(flat, first, second, convex, constants, solution)


def _dealt(rows: Tensor | Sequence[Tensor], workers: int | None, what: str) -> tuple[Tensor, ...]:
    if not isinstance(rows, Tensor):
        if workers not in (None, len(rows)):
            raise ValueError(f"from_module(workers={workers}) : {what} were given for {len(rows)} workers")
        return tuple(rows)
    if workers is None or workers < 1:
        raise ValueError(f"from_module(workers={workers}) : with one tensor of {what}, workers must be an integer >= 1")
    starts = ends(len(rows), workers, drop_last=False)
    return tuple(rows[low:high] for low, high in zip(starts, starts[1:], strict=False))


@functools.lru_cache(maxsize=4)
def _estimates(problem: Modules) -> Constants:
    """Estimates of smoothness around x^0; strong convexity where the module is said to be convex."""
    known = {}
    if problem.convex and problem.flat.l2 > 0.0:
        known["mu"] = known["mu_workers"] = Constant(problem.flat.l2, Kind.BOUND, "l2")
    return estimates(problem.oracles(Block.whole(problem.n)), **known)
