"""TopLEK: at most k of the largest magnitudes, as few as TopK's worst case needs."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor

from laconic.compressors.composition import Sparsifier
from laconic.core.compressor import Contractive, Decoded, Sparse
from laconic.core.entry import Amount, Source, amount
from laconic.core.keys import Keys
from laconic.core.message import CountIn, Message, Schema, Slot
from laconic.kernels import fold
from laconic.kernels.select import largest
from laconic.wire.coding import Bits, Subset


@dataclass(frozen=True)
class TopLEK(Sparsifier):
    """Keeps the m or m - 1 largest magnitudes, by a coin, so that the error is (1 - k / d) ||x||^2 in expectation.

    m is the least number with E_m >= (k / d) ||x||^2, E_m being the energy (sum of squares) of the m largest; it is at
    most k. With probability ((k / d) ||x||^2 - E_{m-1}) / (E_m - E_{m-1}) they are sent, else m - 1 of them (which may
    be none). Ties go to the lower index. The paper was not re-read; the authors' published code has this rule, but
    for a tenth of ||x||^2 that it adds to both parts of the fraction, for the numerics as it says, and that is left out
    here, since the error would no longer be exactly this. Theirs is for symmetric matrices and orders entries by
    |a_ij|; an svec, as `fednl` hands over, is ordered by energy, as alpha needs.

    Claim: contractive with alpha = k / d, an equality for every x (derived). Biased. What it saves against `topk` is
    bytes, not error: for a vector of one spike it sends the spike with probability k / d and nothing otherwise.

    Parameters
    ----------
    k : how many coordinates at most, a count or a fraction of d.

    >>> TopLEK(k=2).claim(d=10, n=3)
    Contractive(alpha=0.2)
    """

    k: Annotated[int | float, Amount()]

    name = "toplek"
    example = "toplek(k=0.05)"
    layout = (
        "how many there are (as many bits as k has), that many sorted indices (Rice-coded gaps or a bitmap, whichever"
        " is shorter), then their values of full width"
    )
    source = Source(
        "Burlachenko, Richtarik", 2024, "Unlocking FedNL: self-contained compute-optimized implementation", "2410.08760"
    )

    def claim(self, d: int, n: int) -> Contractive:
        return Contractive(amount(self.k, d) / d)

    def share(self, d: int, n: int) -> float:
        return amount(self.k, d) / d

    def numbers(self, d: int, n: int) -> range:
        return range(amount(self.k, d) + 1)

    def schema(self, shape: tuple[int, ...], dtype: torch.dtype, keys: Keys) -> Schema:
        d = math.prod(shape)
        k = amount(self.k, d)
        number = CountIn(0, most=k)
        return (
            Slot(Bits(max(1, k.bit_length())), torch.int64, 1),
            Slot(Subset(d), torch.int64, number),
            Slot(Bits(8 * dtype.itemsize), dtype, number),
        )

    def codes(self, v: Tensor, keys: Keys) -> tuple[Tensor, ...]:
        flat = v.reshape(v.shape[0], math.prod(v.shape[1:]))
        indices, values = largest(flat, amount(self.k, flat.shape[1]))
        order = torch.sort(values.abs(), dim=1, descending=True, stable=True).indices
        counts = _counts(flat, values.gather(1, order), keys.uniform(1)[:, 0])
        kept = torch.empty_like(order, dtype=torch.bool)
        kept.scatter_(1, order, torch.arange(order.shape[1]) < counts[:, None])
        return counts, indices[kept], values[kept]

    def decode(self, message: Message, shape: tuple[int, ...], dtype: torch.dtype, keys: Keys) -> Decoded:
        return Sparse(message.codes[1], message.codes[2], message.offsets[1], shape)


def _counts(flat: Tensor, descending: Tensor, uniform: Tensor) -> Tensor:
    """How many are sent of each row of flat (rows, d), whose largest are given; all of these where it is not finite."""
    d, k = flat.shape[1], descending.shape[1]
    if k == d:  # every coordinate that is not zero, whatever rounding makes of the sums below
        return (descending != 0).sum(1)
    scale = descending[:, :1].abs().to(torch.float64)  # no square overflows, and no sum of them vanishes
    scale = torch.where(scale > 0, scale, 1.0)
    scaled = flat.to(torch.float64) / scale
    wanted = fold.dots(scaled, scaled)[:, None] * (k / d)
    energy = (descending.to(torch.float64) / scale).square().cumsum(1)
    m = (energy < wanted).sum(1, keepdim=True).clamp(max=k - 1)  # those before are not enough, this one is
    before = torch.where(m > 0, energy.gather(1, (m - 1).clamp(min=0)), 0.0)
    gained = energy.gather(1, m) - before
    probability = (wanted - before) / torch.where(gained > 0, gained, 1.0)
    counts = m[:, 0] + (uniform < probability[:, 0])
    return torch.where(torch.isfinite(wanted[:, 0]), counts, k)
