"""TopK: the k largest magnitudes."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated

import numpy as np
import torch
from torch import Tensor

from laconic.compressors.composition import Sparsifier
from laconic.core.compressor import Contractive, Decoded, Sparse
from laconic.core.entry import Amount, Source, amount
from laconic.core.keys import Keys
from laconic.core.message import Message, Schema, Slot
from laconic.kernels.select import largest, largest_of_sum
from laconic.wire.coding import Bits, Subset


@dataclass(frozen=True)
class TopK(Sparsifier):
    """Keeps the k coordinates of largest magnitude, ties to the lower index.

    Claim: contractive with alpha = k / d, attained where all magnitudes are equal. Biased: averaged over workers
    without error feedback it may diverge.

    Parameters
    ----------
    k : how many coordinates, a count or a fraction of d.

    >>> str(TopK(k=0.05))
    'topk(k=0.05)'
    """

    k: Annotated[int | float, Amount()]

    name = "topk"
    aliases = ("top",)
    example = "topk(k=0.05)"
    layout = "k sorted indices (Rice-coded gaps or a bitmap, whichever is shorter), then k values of full width"
    source = Source(
        "Alistarh, Hoefler, Johansson, Khirirat, Konstantinov, Renggli",
        2018,
        "The convergence of sparsified gradient methods",
        "1809.10505",
    )

    def claim(self, d: int, n: int) -> Contractive:
        return Contractive(amount(self.k, d) / d)

    def share(self, d: int, n: int) -> float:
        return amount(self.k, d) / d

    def numbers(self, d: int, n: int) -> range:
        k = amount(self.k, d)
        return range(k, k + 1)

    def schema(self, shape: tuple[int, ...], dtype: torch.dtype, keys: Keys) -> Schema:
        d = math.prod(shape)
        k = amount(self.k, d)
        return Slot(Subset(d), torch.int64, k), Slot(Bits(8 * dtype.itemsize), dtype, k)

    def codes(self, v: Tensor, keys: Keys) -> tuple[Tensor, ...]:
        flat = _flat(v)
        indices, values = largest(flat, amount(self.k, flat.shape[1]))
        return indices.view(-1), values.view(-1)

    def codes_of_sum(self, v: Tensor, other: Tensor, sign: int, keys: Keys) -> tuple[Tensor, ...]:
        flat = _flat(v)
        indices, values = largest_of_sum(flat, _flat(other), sign, amount(self.k, flat.shape[1]))
        return indices.view(-1), values.view(-1)

    def decode(self, message: Message, shape: tuple[int, ...], dtype: torch.dtype, keys: Keys) -> Decoded:
        k = amount(self.k, math.prod(shape))
        return Sparse(message.codes[0], message.codes[1], np.arange(message.rows + 1) * k, shape)


def _flat(v: Tensor) -> Tensor:
    return v.reshape(v.shape[0], math.prod(v.shape[1:]))
