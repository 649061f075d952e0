"""The l1 norm: solutions with few coordinates other than 0."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor

from laconic.core.entry import Interval, Source
from laconic.core.regulariser import Regulariser
from laconic.core.rows import inner


@dataclass(frozen=True)
class L1(Regulariser):
    """r(x) = weight ||x||_1, whose proximal operator shrinks every coordinate towards 0 by step * weight.

    Parameters
    ----------
    weight : of the norm.

    >>> L1(weight=1.0).prox(torch.tensor([3.0, -0.5, -2.0]), step=1.0).tolist()
    [2.0, 0.0, -1.0]
    """

    weight: Annotated[float, Interval(0.0, open="low")] = 0.01

    name = "l1"
    example = "l1(weight=0.01)"
    source = Source(
        "Daubechies, Defrise, De Mol",
        2004,
        "An iterative thresholding algorithm for linear inverse problems with a sparsity constraint",
        "math/0307152",
    )

    def value(self, x: Tensor) -> float:
        return self.weight * inner(x.abs(), torch.ones_like(x))

    def prox(self, x: Tensor, step: float | Tensor) -> Tensor:
        far = torch.as_tensor(step * self.weight, dtype=x.dtype)
        return x - torch.maximum(torch.minimum(x, far), -far)

    def least_subgradient(self, x: Tensor, gradient: Tensor) -> Tensor:
        return torch.where(x == 0.0, self.prox(gradient, 1.0), gradient + self.weight * torch.sign(x))

    def excess(self, x: Tensor, at: Tensor, gradient: Tensor) -> float:
        w, slope = self.weight, gradient.clamp(-self.weight, self.weight)
        across = w * (1.0 - torch.sign(x) * torch.sign(at))  # 0 on the same side, w + w on the other one
        return inner(torch.where(at == 0.0, w + slope * torch.sign(x), across), x.abs())

    def certificate(self, x: Tensor, gradient: Tensor, above: float) -> float:
        beyond = max(float(gradient.abs().max()) - self.weight, 0.0)
        return inner(self.weight + gradient * torch.sign(x), x.abs()) + beyond * above / self.weight
