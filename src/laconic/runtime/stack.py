"""Stacked values: the vectors of several runs in one tensor, which a text handles as if it were those of one run.

A `Stack` looks like the value of a single run: its `shape` does not say how many runs there are. Operations that treat
every number by itself act on all runs at once, with the bits of each run alone. Everything else (norms, products,
decisions, whatever looks inside) raises `Unstackable`: a text that needs it must be run run by run.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from laconic.core.entry import Entry, parameters

T = TypeVar("T")


class Unstackable(TypeError):
    """What was asked for would mix runs, or is not known to leave them apart."""


class _Missing(Unstackable, AttributeError):
    """What a stack has no such thing as."""


class Stack:
    """A value of `runs` runs. `data` has them on the axis `axis`: 0, or 1 where axis 0 are the workers.

    A value of the server (*shape) is held as (runs, *shape), one of the workers (rows, *shape) as (rows, runs, *shape):
    so the two meet as they do in a single run.
    """

    __slots__ = ("axis", "data")
    __array_ufunc__ = None  # NumPy's numbers leave operators to this class
    __hash__ = object.__hash__

    def __init__(self, data: Tensor, axis: int) -> None:
        self.data, self.axis = data, axis

    @staticmethod
    def numbers(values: Sequence[float]) -> Stack:
        """One number per run, as a parameter of a method."""
        return Stack(torch.tensor(values, dtype=torch.float64), 0)

    @property
    def runs(self) -> int:
        return self.data.shape[self.axis]

    @property
    def tail(self) -> int:
        """How many axes come after that of the runs."""
        return self.data.dim() - self.axis - 1

    @property
    def number(self) -> bool:
        """Whether it is one number per run."""
        return self.axis == 0 and self.data.dim() == 1

    def of(self, index: Tensor) -> Stack:
        """Some of the runs."""
        return Stack(self.data.index_select(self.axis, index), self.axis)

    # ---- what a text may ask of a value ---------------------------------------------------------------------------

    @property
    def shape(self) -> torch.Size:
        shape = self.data.shape
        return shape[: self.axis] + shape[self.axis + 1 :]

    @property
    def ndim(self) -> int:
        return self.data.dim() - 1

    def dim(self) -> int:
        return self.ndim

    @property
    def dtype(self) -> torch.dtype:
        return self.data.dtype

    @property
    def device(self) -> torch.device:
        return self.data.device

    def __len__(self) -> int:
        return self.shape[0]

    def clone(self) -> Stack:
        return Stack(self.data.clone(), self.axis)

    def expand(self, *shape: Any) -> Stack:
        wanted = torch.Size(shape[0] if len(shape) == 1 and not isinstance(shape[0], int) else shape)
        if wanted == self.shape:
            return self
        if self.axis == 0 and wanted[1:] == self.shape:
            return Stack(self.data.expand(wanted[0], *self.data.shape), 1)
        raise Unstackable(f"a value of shape {tuple(self.shape)} as {tuple(wanted)}")

    def new_zeros(self, *shape: Any) -> Stack:
        wanted = torch.Size(shape[0] if len(shape) == 1 and not isinstance(shape[0], int) else shape)
        if wanted == self.shape:
            return Stack(torch.zeros_like(self.data), self.axis)
        if self.axis == 1 and wanted == self.shape[1:]:
            return Stack(self.data.new_zeros(self.data.shape[1:]), 0)
        raise Unstackable(f"zeros of shape {tuple(wanted)} beside a value of shape {tuple(self.shape)}")

    def __getitem__(self, index: Any) -> Stack:
        if index is None and self.axis == 0:
            return Stack(self.data[None], 1)
        return Stack(self.data[self._rows(index)], 1)

    def __setitem__(self, index: Any, value: Any) -> None:
        rows, (other, axis) = self._rows(index), _beside(self, value)
        if axis != 1:
            raise Unstackable("a value of the server written to workers' rows")
        self.data[rows] = other

    def _rows(self, index: Any) -> Tensor:
        """An index of workers' rows."""
        if isinstance(index, np.ndarray):
            index = torch.from_numpy(index)
        if self.axis == 1 and isinstance(index, Tensor) and index.dim() == 1 and not index.is_floating_point():
            return index
        raise Unstackable("an index other than of workers' rows")

    def __getattr__(self, name: str) -> Any:
        raise _Missing(f"{name} of the values of several runs")

    # ---- operations on every number by itself ----------------------------------------------------------------------

    def __add__(self, other: Any) -> Stack:
        return _combined(torch.add, self, other)

    def __radd__(self, other: Any) -> Stack:
        return _combined(torch.add, self, other)

    def __sub__(self, other: Any) -> Stack:
        return _combined(torch.sub, self, other)

    def __rsub__(self, other: Any) -> Stack:
        return _combined(lambda a, b: b - a, self, other)

    def __mul__(self, other: Any) -> Stack:
        return _combined(torch.mul, self, other)

    def __rmul__(self, other: Any) -> Stack:
        return _combined(torch.mul, self, other)

    def __truediv__(self, other: Any) -> Stack:
        return _combined(torch.true_divide, self, other)

    def __rtruediv__(self, other: Any) -> Stack:
        if self.number and isinstance(other, (int, float)):  # Python divides; torch multiplies by the reciprocal
            return Stack(torch.true_divide(torch.full_like(self.data, other), self.data), 0)
        return _combined(lambda a, b: b / a, self, other)

    def __neg__(self) -> Stack:
        return Stack(-self.data, self.axis)

    def __iadd__(self, other: Any) -> Stack:
        return self.add_(other)

    def __isub__(self, other: Any) -> Stack:
        return self.sub_(other)

    def __imul__(self, other: Any) -> Stack:
        return self.mul_(other)

    def __itruediv__(self, other: Any) -> Stack:
        return self.div_(other)

    def add_(self, other: Any) -> Stack:
        return self._into(Tensor.add_, other)

    def sub_(self, other: Any) -> Stack:
        return self._into(Tensor.sub_, other)

    def mul_(self, other: Any) -> Stack:
        return self._into(Tensor.mul_, other)

    def div_(self, other: Any) -> Stack:
        return self._into(Tensor.div_, other)

    def copy_(self, other: Any) -> Stack:
        return self._into(Tensor.copy_, other)

    def zero_(self) -> Stack:
        self.data.zero_()
        return self

    def _into(self, operation: Callable[..., Tensor], other: Any) -> Stack:
        number, axis = _beside(self, other)
        if axis != self.axis or (self.number and not isinstance(other, (int, float, Stack))):
            raise Unstackable("a value of the workers written into one of the server")
        operation(self.data, number)
        return self

    def sqrt(self) -> Stack:
        return Stack(self.data.sqrt(), self.axis)

    def abs(self) -> Stack:
        return Stack(self.data.abs(), self.axis)

    __abs__ = abs

    def sign(self) -> Stack:
        return Stack(self.data.sign(), self.axis)

    def clamp(self, min: float | None = None, max: float | None = None) -> Stack:
        if not all(end is None or isinstance(end, (int, float)) for end in (min, max)):
            raise Unstackable("bounds that are not numbers")
        return Stack(self.data.clamp(min, max), self.axis)

    def __lt__(self, other: Any) -> Stack:
        return _combined(torch.lt, self, other)

    def __le__(self, other: Any) -> Stack:
        return _combined(torch.le, self, other)

    def __gt__(self, other: Any) -> Stack:
        return _combined(torch.gt, self, other)

    def __ge__(self, other: Any) -> Stack:
        return _combined(torch.ge, self, other)

    def __eq__(self, other: object) -> Any:
        return self is other  # entries that hold numbers of runs are compared; tensors never are

    def _refuse(self, *_: Any) -> Any:
        raise Unstackable("a decision or a number from the values of several runs")

    __bool__ = __float__ = __int__ = __index__ = __iter__ = __pow__ = __rpow__ = __matmul__ = _refuse

    @classmethod
    def __torch_function__(
        cls, function: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        known = _KNOWN.get(getattr(function, "__name__", ""))
        if known is None or kwargs:
            raise Unstackable(f"{getattr(function, '__name__', function)} of the values of several runs")
        return known(*args)


def _beside(stack: Stack, other: Any) -> tuple[Any, int]:
    """The other operand as it meets `stack.data`, and the axis of the runs in what comes out."""
    if isinstance(other, (bool, int, float)):
        return other, stack.axis
    if isinstance(other, Stack):
        if other.number and not stack.number:
            return _column(other, stack), stack.axis
        if other.tail == stack.tail:
            return other.data, max(stack.axis, other.axis)
        raise Unstackable(f"values of shapes {tuple(stack.shape)} and {tuple(other.shape)} of several runs")
    if isinstance(other, Tensor) and not stack.number:
        if other.dim() <= stack.tail:
            return other, stack.axis
        if other.dim() == stack.tail + 1:
            return other.unsqueeze(1), 1
    raise Unstackable(f"{type(other).__name__} beside the values of several runs")


def _column(number: Stack, beside: Stack) -> Tensor:
    """A number per run as it multiplies values: in their precision, as torch does with a number of Python."""
    if not beside.dtype.is_floating_point:
        raise Unstackable("numbers of several runs beside integers")
    return number.data.to(beside.dtype).view(-1, *[1] * beside.tail)


def _combined(operation: Callable[[Any, Any], Tensor], stack: Stack, other: Any) -> Stack:
    if stack.number and isinstance(other, Stack) and not other.number:
        return Stack(operation(_column(stack, other), other.data), other.axis)
    data, axis = _beside(stack, other)
    return Stack(operation(stack.data, data), axis)


def _either(operation: Callable[[Any, Any], Tensor]) -> Callable[[Any, Any], Stack]:
    """An operation of torch in which the stack may come second."""

    def combined(a: Any, b: Any) -> Stack:
        if isinstance(a, Stack):
            return _combined(operation, a, b)
        return _combined(lambda x, y: operation(y, x), b, a)

    return combined


def _where(condition: Any, a: Any, b: Any) -> Stack:
    if not isinstance(condition, Stack):
        raise Unstackable("torch.where with one condition for several runs")
    (first, axis), (second, other) = _beside(condition, a), _beside(condition, b)
    return Stack(torch.where(condition.data, first, second), max(axis, other))


def _lerp(a: Any, b: Any, weight: Any) -> Stack:
    if not isinstance(a, Stack):
        raise Unstackable("a mixture of one value and those of several runs")
    if isinstance(weight, Stack):
        weight = _column(weight, a)
    return _combined(lambda x, y: torch.lerp(x, y, weight), a, b)


_KNOWN: dict[str, Callable[..., Stack]] = {
    "zeros_like": lambda a: Stack(torch.zeros_like(a.data), a.axis),
    "clone": Stack.clone,
    "sqrt": Stack.sqrt,
    "abs": Stack.abs,
    "sign": Stack.sign,
    "where": _where,
    "lerp": _lerp,
    **dict.fromkeys(("add", "__add__", "__radd__"), _either(torch.add)),
    **dict.fromkeys(("sub", "__sub__"), _either(torch.sub)),
    "__rsub__": lambda a, b: _either(torch.sub)(b, a),
    "rsub": lambda a, b: _either(torch.sub)(b, a),
    **dict.fromkeys(("mul", "__mul__", "__rmul__"), _either(torch.mul)),
    **dict.fromkeys(("div", "true_divide", "__truediv__"), _either(torch.true_divide)),
    "minimum": _either(torch.minimum),
    "maximum": _either(torch.maximum),
}


# ---- structures that hold stacked values ------------------------------------------------------------------------


def chosen(state: T, index: Tensor, known: dict[int, Any] | None = None) -> T:
    """A state with some of the runs; what was one value in two places still is."""
    known = {} if known is None else known
    if id(state) in known:
        return known[id(state)]
    again = functools.partial(chosen, index=index, known=known)
    found: Any = state
    if isinstance(state, Stack):
        found = state.of(index)
    elif dataclasses.is_dataclass(state) and not isinstance(state, type):
        found = copy.copy(state)
        for field in dataclasses.fields(state):
            object.__setattr__(found, field.name, again(getattr(state, field.name)))
    elif isinstance(state, dict):
        found = {key: again(value) for key, value in state.items()}
    elif isinstance(state, (list, tuple)):
        found = type(state)(again(value) for value in state)
    elif not isinstance(state, (Tensor, bool, int, float, str, type(None))):
        raise Unstackable(f"a state that holds {type(state).__name__}")
    known[id(state)] = found
    return found


def stacked(entries: Sequence[T]) -> T:
    """One entry for several that differ in numbers alone, each of these numbers being one per run.

    Raises Unstackable where they differ in more, or in a parameter of a compressor.
    """
    first = entries[0]
    if all(type(one) is type(first) and one == first for one in entries):
        return first
    if all(type(one) is float for one in entries):
        return Stack.numbers([float(one) for one in entries])  # type: ignore[return-value, arg-type]
    if not isinstance(first, Entry) or first.kind == "compressor" or any(type(e) is not type(first) for e in entries):
        raise Unstackable(f"{first} and {next(e for e in entries if e != first)} in one sweep")
    found = copy.copy(first)
    for parameter in parameters(type(first)):
        values = [getattr(one, parameter.name) for one in entries]
        object.__setattr__(found, parameter.name, stacked(values))
    return found
