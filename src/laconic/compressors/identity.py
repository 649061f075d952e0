"""Identity: every value at its full width."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from laconic.core.compressor import Compressor, Decoded, Exact, Unbiased
from laconic.core.keys import Keys
from laconic.core.message import Message, Schema

_EXACT = Exact()


@dataclass(frozen=True)
class Identity(Compressor):
    """No compression: C(x) = x.

    Claim: unbiased with omega = 0 (and so contractive with alpha = 1).

    >>> str(Identity())
    'identity'
    """

    name = "identity"
    aliases = ("none",)
    example = "identity"
    layout = Exact.layout

    def claim(self, d: int, n: int) -> Unbiased:
        return Unbiased(0.0)

    def schema(self, shape: tuple[int, ...], dtype: torch.dtype, keys: Keys) -> Schema:
        return _EXACT.schema(shape, dtype, keys)

    def codes(self, v: Tensor, keys: Keys) -> tuple[Tensor, ...]:
        return _EXACT.codes(v, keys)

    def decode(self, message: Message, shape: tuple[int, ...], dtype: torch.dtype, keys: Keys) -> Decoded:
        return _EXACT.decode(message, shape, dtype, keys)
