"""Sparsifiers that keep k coordinates which follow from the seed."""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import dataclass
from typing import Annotated

import numpy as np
import torch
from torch import Tensor

from laconic.compressors.composition import Sparsifier
from laconic.core.compressor import Decoded, Sparse
from laconic.core.entry import Amount, amount
from laconic.core.keys import Keys
from laconic.core.message import Message, Schema, Slot
from laconic.wire.coding import Bits


@dataclass(frozen=True)
class Drawn(Sparsifier):
    """Sends the values of k drawn coordinates in index order, times d / k; both ends draw the support."""

    k: Annotated[int | float, Amount()]

    layout = "k values of full width in index order; the support follows from the seed and is not sent"

    @abstractmethod
    def support(self, d: int, k: int, keys: Keys) -> np.ndarray:
        """The coordinates of each row in ascending order, int64 of shape (rows, k)."""

    def gain(self, d: int, k: int) -> float:
        """What values are multiplied by."""
        return d / k

    def share(self, d: int, n: int) -> float:
        return amount(self.k, d) / d

    def numbers(self, d: int, n: int) -> range:
        k = amount(self.k, d)
        return range(k, k + 1)

    def schema(self, shape: tuple[int, ...], dtype: torch.dtype, keys: Keys) -> Schema:
        return (Slot(Bits(8 * dtype.itemsize), dtype, amount(self.k, math.prod(shape))),)

    def codes(self, v: Tensor, keys: Keys) -> tuple[Tensor, ...]:
        flat = v.reshape(v.shape[0], math.prod(v.shape[1:]))
        d = flat.shape[1]
        k = amount(self.k, d)
        values, gain = flat.gather(1, torch.from_numpy(self.support(d, k, keys))), self.gain(d, k)
        return (values.view(-1) if gain == 1.0 else values.mul_(gain).view(-1),)

    def decode(self, message: Message, shape: tuple[int, ...], dtype: torch.dtype, keys: Keys) -> Decoded:
        d = math.prod(shape)
        support = torch.from_numpy(self.support(d, amount(self.k, d), keys))
        return Sparse(support.view(-1), message.codes[0], np.arange(message.rows + 1) * support.shape[1], shape)
