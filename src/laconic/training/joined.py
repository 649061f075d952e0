"""Parameters joined to one vector, for mechanisms that work on the whole gradient at once."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from laconic.core.floats import wide
from laconic.core.mechanism import Mechanism
from laconic.core.problem import Constant, Kind
from laconic.core.theory import Setting
from laconic.training.policy import Plan, Policy, Rule, setting_of

JOINED = "joined parameters"  # the name of the vector; no parameter has a blank in its name
_LEAST = 1e-30  # a learning rate of zero stands still, and a trial stepsize has to be positive


class Joined:
    """Some parameters, in order, as one vector (d,) in the dtype that arithmetic on them is done in.

    Keeps one vector of gradients and one of parameters from step to step: 2 d numbers.

    Parameters
    ----------
    named : parameters by name, of one dtype.

    Attributes
    ----------
    vector : what `gather` has collected, (d,).
    point : the parameters when `look` was called last, (d,).
    """

    def __init__(self, named: Mapping[str, Tensor]) -> None:
        self.named = dict(named)
        dtypes = {parameter.dtype: name for name, parameter in named.items()}
        if len(dtypes) != 1:
            raise ValueError(
                f"Compressed : {' and '.join(f'{name!r} is {dtype}' for dtype, name in dtypes.items())}; a mechanism "
                "that works on all parameters at once needs them in one dtype"
            )
        (dtype,) = dtypes
        size = sum(parameter.numel() for parameter in named.values())
        self.vector = torch.zeros(size, dtype=wide(dtype))
        self.point = torch.zeros_like(self.vector)
        self._gradients = self._pieces(self.vector)

    def _pieces(self, vector: Tensor) -> list[Tensor]:
        """Views of a vector with the shapes of the parameters."""
        parts = vector.split([parameter.numel() for parameter in self.named.values()])
        return [part.view(parameter.shape) for part, parameter in zip(parts, self.named.values(), strict=True)]

    def gather(self, into: Tensor, scales: Sequence[float]) -> Tensor:
        """The gradients, each times its scale; zeros where there is none."""
        for piece, parameter, scale in zip(self._pieces(into), self.named.values(), scales, strict=True):
            if parameter.grad is None:
                piece.zero_()
            else:
                piece.copy_(parameter.grad)
                if scale != 1.0:
                    piece.mul_(scale)
        return into

    def gradients(self) -> Tensor:
        """The gradients in a vector of their own."""
        return self.gather(torch.empty_like(self.vector), [1.0] * len(self.named))

    def scatter(self, names: frozenset[str]) -> None:
        """Puts `vector` into the gradients of these parameters."""
        for (name, parameter), piece in zip(self.named.items(), self._gradients, strict=True):
            if name not in names:
                continue
            if parameter.grad is None:
                parameter.grad = piece.to(parameter.dtype, copy=True)
            else:
                parameter.grad.copy_(piece)

    def look(self) -> Tensor:
        """The parameters as they are, in `point`."""
        for piece, parameter in zip(self._pieces(self.point), self.named.values(), strict=True):
            piece.copy_(parameter.detach())
        return self.point

    def move(self, x: Tensor) -> None:
        """Puts a point, (d,) or (1, d), into the parameters."""
        for piece, parameter in zip(self._pieces(x.reshape(-1)), self.named.values(), strict=True):
            parameter.data.copy_(piece)


@dataclass(frozen=True)
class Joining(Policy):
    """A policy under which the tensors that no rule fits travel as one vector, named JOINED.

    For that vector stepsizes that theory takes from the smoothness of the loss are the learning rate, as if it were
    1 / L: `trial` of importances, and `step` of LAG-WK's rule.
    """

    rate: float = math.nan

    @classmethod
    def around(cls, policy: Policy, rate: float) -> Joining:
        """The same policy, with the vector."""
        return cls(policy.mechanism, policy.rules, policy.warm_up, rate)

    def rule_of(self, name: str, shape: tuple[int, ...]) -> Rule | None:
        return None if name == JOINED else super().rule_of(name, shape)

    def plan(self, name: str, shape: tuple[int, ...], workers: int) -> Plan:
        if name != JOINED:
            return super().plan(name, shape, workers)
        setting = _with_rate(setting_of(workers, shape), self.rate)
        stages = tuple((steps, _settled(stage, setting)) for steps, stage in self.warm_up)
        settled = Joining(_settled(self.mechanism, setting), self.rules, stages)
        return super(Joining, settled).plan(name, shape, workers)

    def depends_on_rate(self, shape: tuple[int, ...], workers: int) -> bool:
        """Whether some stepsize in it is the learning rate."""
        one, other = (dataclasses.replace(self, rate=rate).plan(JOINED, shape, workers) for rate in (1.0, 0.5))
        return one != other


def _settled(mechanism: Mechanism | str, setting: Setting) -> Mechanism:
    assert isinstance(mechanism, Mechanism)
    return mechanism.settled(setting)


def _with_rate(setting: Setting, rate: float) -> Setting:
    smooth = Constant(1.0 / max(rate, _LEAST), Kind.ESTIMATE, "1 / the learning rate")
    return dataclasses.replace(setting, constants=dataclasses.replace(setting.constants, L=smooth))
