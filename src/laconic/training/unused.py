"""Parameters without a gradient: which ones no process has had one for, alike on all processes."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.distributed as dist
from torch import Tensor

from laconic.training.notices import announce


class Unused:
    """Parameters that no process has had a gradient for yet; an optimizer leaves them alone, weight decay included.

    As long as there are any, each step compares them: one all-reduce of a byte for each, on the default group and not
    in the ledger.

    Parameters
    ----------
    named : all parameters, by name.

    Attributes
    ----------
    names : of those without a gradient so far.
    """

    def __init__(self, named: Mapping[str, Tensor]) -> None:
        self._named = dict(named)
        self.names = set(named)

    def agreed(self) -> frozenset[str]:
        """The names of all others, after the backward pass of this step; collective. Raises ValueError where sparse."""
        here = {name: parameter.grad for name, parameter in self._named.items()}
        for name, gradient in here.items():
            if gradient is not None and gradient.layout != torch.strided:
                raise ValueError(
                    f"Compressed : the gradient of {name!r} is sparse; make it dense (sparse=False in an embedding)"
                )
        if self.names:
            self._compare(here)
        used = frozenset(here.keys() - self.names)
        lacking = [name for name, gradient in here.items() if name in used and gradient is None]
        if lacking:
            announce(f"{lacking[0]!r} has no gradient on this process in some steps; zeros stand for it in the average")
        return used

    def _compare(self, here: Mapping[str, Tensor | None]) -> None:
        asked = [name for name in here if name in self.names]
        there = torch.tensor([here[name] is not None for name in asked], dtype=torch.uint8)
        dist.all_reduce(there, op=dist.ReduceOp.MAX)
        left = [name for name, some in zip(asked, there.tolist(), strict=True) if not some]
        self.names = set(left)
        if left:
            announce(
                f"{len(left)} of {len(here)} parameters have had no gradient on any process ({left[0]!r} first); they "
                "are left alone until one has"
            )
