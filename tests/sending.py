"""What the tests of compressors share: keys, a trip through bytes, and vectors whose sums are exact."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from laconic.core.compressor import Compressor
from laconic.core.keys import Keys
from laconic.core.message import Message


def keys_of(n: int, step: int = 0) -> Keys:
    return Keys(11, step, "/up0", np.arange(n), n)


def send(compressor: Compressor, v: Tensor, keys: Keys) -> Tensor:
    """What a receiver makes of the bytes of v (rows, *shape), dense."""
    shape, sent = tuple(v.shape[1:]), compressor.message(v, keys)
    heard = Message.unpack(sent.pack(), sent.nbytes, compressor.schema(shape, v.dtype, keys))
    return compressor.decode(heard, shape, v.dtype, keys).dense()


def wholes(n: int, d: int, seed: int = 0) -> Tensor:
    """Small whole numbers: sums of them are exact, so that identities can be equalities."""
    return torch.from_numpy(np.random.default_rng(seed).integers(-9, 10, (n, d)).astype(float))


def uniforms(keys: Keys, d: int, dtype: torch.dtype) -> np.ndarray:
    """What kernels round with, in [0, 1), (rows, d): 53 bits of a word, or for float32 the 32 of half a word."""
    if dtype == torch.float64:
        return keys.uniform(d).numpy()
    return keys.words((d + 1) // 2).view(np.uint32)[:, :d] * 2.0**-32


def assert_rows_stand_alone(compressor: Compressor, dtype: torch.dtype) -> None:
    """A row's meaning is the same alone and among others, zeros stay zero, the input stays what it is, no rows do."""
    keys = keys_of(5)
    for d in (1, 2, 33):
        v = torch.from_numpy(np.random.default_rng(d).standard_normal((5, d))).to(dtype)
        v[2] = 0.0
        before, out = v.clone(), send(compressor, v, keys)
        assert torch.equal(v, before) and out.dtype == dtype and not out[2].any()
        for row in range(5):
            assert torch.equal(send(compressor, v[row : row + 1], keys.at([row])), out[row : row + 1])
    assert send(compressor, torch.zeros(0, 3, dtype=dtype), keys.at([])).shape == (0, 3)
