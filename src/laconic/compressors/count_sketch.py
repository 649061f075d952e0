"""Count sketch: signed sums of the coordinates that share a bucket, by hashes that all workers share."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated

import numpy as np
import torch
from torch import Tensor

from laconic.compressors._ranges import fit, headroom
from laconic.core.compressor import AB, Compressor, Decoded, Dense
from laconic.core.entry import Amount, Count, Source, amount
from laconic.core.keys import Keys
from laconic.core.message import Message, Schema, Slot
from laconic.wire.coding import Bits


@dataclass(frozen=True)
class CountSketch(Compressor):
    """y[r, h_r(j)] += s_r(j) x_j for random buckets h and signs s; x_j is read as median_r s_r(j) y[r, h_r(j)].

    Buckets and signs are drawn anew every round from the shared seed, so the sketch is one linear map for all workers.
    With an even number of rows the median is the mean of the middle two. Where rows times columns is d or more, the
    values travel as they are.

    Claim (derived, exact for every x): with one row unbiased, omega = (d - 1) / columns, since two coordinates share a
    bucket with probability 1 / columns and signs are independent; and jointly A = 0, B = -omega, as for any linear map
    that all workers share. With several rows nothing is claimed: the mean is x still (changing all signs but that of j
    changes the sign of j's error), but the median is not linear, and its variance has no such law.

    Pitfalls: one row is no better than `shared_randk` of as many values. Several rows pay where few coordinates are
    large, and best if the server adds up sketches and looks for large ones in the sum; here each is read by itself.

    Parameters
    ----------
    rows : how many times each coordinate is hashed.
    columns : the buckets of a row, a count or a fraction of d.

    >>> CountSketch(rows=1, columns=3).claim(d=10, n=4)
    AB(A=0.0, B=-3.0, omega=3.0)
    """

    rows: Annotated[int, Count(1)] = 1
    columns: Annotated[int | float, Amount()] = 0.1

    name = "count_sketch"
    example = "count_sketch(columns=0.1)"
    layout = (
        "the buckets' sums of full width, row by row; hashes follow from the shared seed; d values as they are where"
        " these are no more"
    )
    source = Source(
        "Rothchild, Panda, Ullah, Ivkin, Stoica, Braverman, Gonzalez, Arora",
        2020,
        "FetchSGD: communication-efficient federated learning with sketching",
        "2007.07682",
    )

    def claim(self, d: int, n: int) -> AB | None:
        if not self._compresses(d):
            return AB(0.0, 0.0, 0.0)
        omega = (d - 1) / amount(self.columns, d)
        return AB(0.0, -omega, omega) if self.rows == 1 else None

    def share(self, d: int, n: int) -> float:
        return min(d, self.rows * amount(self.columns, d)) / d

    def schema(self, shape: tuple[int, ...], dtype: torch.dtype, keys: Keys) -> Schema:
        d = math.prod(shape)
        return (Slot(Bits(8 * dtype.itemsize), dtype, min(d, self.rows * amount(self.columns, d))),)

    def codes(self, v: Tensor, keys: Keys) -> tuple[Tensor, ...]:
        rows, d = v.shape[0], math.prod(v.shape[1:])
        if not self._compresses(d):
            return (v.reshape(-1),)
        columns, room = amount(self.columns, d), headroom(v)
        buckets, signs = self._hashes(d, keys)
        values = (v.reshape(rows, d).to(torch.float64) * room).numpy()
        first = columns * np.arange(rows)[:, None]
        sums = [  # added in the order of coordinates
            np.bincount((first + bucket).reshape(-1), (values * sign).reshape(-1), rows * columns).reshape(
                rows, columns
            )
            for bucket, sign in zip(buckets, signs, strict=True)
        ]
        sketch = torch.from_numpy(np.concatenate(sums, axis=1).astype(np.float64, copy=False))
        return (fit(sketch / room, v.dtype).reshape(-1),)

    def decode(self, message: Message, shape: tuple[int, ...], dtype: torch.dtype, keys: Keys) -> Decoded:
        rows, d = message.rows, math.prod(shape)
        if not self._compresses(d):
            return Dense(message.codes[0].view(rows, *shape))
        buckets, signs = self._hashes(d, keys)
        sketch = message.codes[0].view(rows, self.rows, amount(self.columns, d))
        pairs = enumerate(zip(torch.from_numpy(buckets), torch.from_numpy(signs).to(dtype), strict=True))
        read = torch.stack([sketch[:, row, bucket] * sign for row, (bucket, sign) in pairs]).sort(0).values
        low, high = read[(self.rows - 1) // 2], read[self.rows // 2]
        return Dense((low if self.rows % 2 else 0.5 * low + 0.5 * high).view(rows, *shape))

    def _compresses(self, d: int) -> bool:
        return self.rows * amount(self.columns, d) < d

    def _hashes(self, d: int, keys: Keys) -> tuple[np.ndarray, np.ndarray]:
        """The bucket and the sign of every coordinate in every row, (self.rows, d)."""
        drawn = keys.shared.uniform(self.rows * d)[0].numpy().reshape(self.rows, d)
        both = (drawn * (2 * amount(self.columns, d))).astype(np.int64)
        return both >> 1, 1.0 - 2.0 * (both & 1)
