"""Half precision: every value at the nearest float16 or bfloat16."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from laconic.compressors._levels import flat
from laconic.core.compressor import Compressor, Contractive, Decoded, Dense
from laconic.core.entry import Source
from laconic.core.floats import wide
from laconic.core.keys import Keys
from laconic.core.message import Message, Schema, Slot
from laconic.wire.coding import Bits


def _schema(shape: tuple[int, ...], dtype: torch.dtype) -> Schema:
    wide(dtype)
    return (Slot(Bits(16), torch.int16, math.prod(shape)),)


def _codes(v: Tensor, target: torch.dtype) -> tuple[Tensor, ...]:
    """The bit patterns of the nearest numbers of the target, ties to even, magnitudes cut at its largest finite one."""
    rows, most = flat(v), torch.finfo(target).max
    cut = torch.where(rows.isinf(), rows, rows.clamp(-most, most))
    near = _nearest(cut, target) if v.dtype == torch.float64 else cut
    return (near.to(target).view(torch.int16).view(-1),)


def _nearest(v: Tensor, target: torch.dtype) -> Tensor:
    """v (float64) at the target's precision: torch converts by way of float32, which rounds twice."""
    info = torch.finfo(target)
    finite = torch.where(v.isfinite(), v, 0).numpy()
    _, exponents = np.frexp(finite)  # magnitudes in [2^(e-1), 2^e)
    digits = round(-math.log2(info.eps))
    units = np.maximum(exponents - 1 - digits, round(math.log2(info.tiny)) - digits)  # the spacing there, as exponents
    near = torch.from_numpy(np.ldexp(np.rint(np.ldexp(finite, -units)), units))
    return torch.where(v.isfinite(), near, v)


def _decode(message: Message, shape: tuple[int, ...], dtype: torch.dtype, target: torch.dtype) -> Dense:
    return Dense(message.codes[0].view(target).to(dtype).view(message.rows, *shape))


@dataclass(frozen=True)
class Float16(Compressor):
    """Every value at the nearest IEEE half precision number, ties to even.

    Claims nothing, because a claim is for every x and the range is small: magnitudes above 65504 arrive as 65504, and
    those under 2^-14 are off by up to 2^-25. In between the relative error is at most u / (1 + u), u = 2^-11, so that
    vectors within the range are contracted with alpha = 1 - (u / (1 + u))^2. Infinities and NaN stay what they are.

    >>> Float16().claim(d=10, n=3) is None
    True
    """

    name = "fp16"
    aliases = ("float16", "half")
    example = "fp16"
    layout = "every value as IEEE binary16"
    source = Source(
        "Micikevicius, Narang, Alben, Diamos, Elsen, Garcia, Ginsburg, Houston, Kuchaiev, Venkatesh, Wu",
        2017,
        "Mixed precision training",
        "1710.03740",
    )

    def share(self, d: int, n: int) -> float:
        return 16 / 64

    def schema(self, shape: tuple[int, ...], dtype: torch.dtype, keys: Keys) -> Schema:
        return _schema(shape, dtype)

    def codes(self, v: Tensor, keys: Keys) -> tuple[Tensor, ...]:
        return _codes(v, torch.float16)

    def decode(self, message: Message, shape: tuple[int, ...], dtype: torch.dtype, keys: Keys) -> Decoded:
        return _decode(message, shape, dtype, torch.float16)


@dataclass(frozen=True)
class BFloat16(Compressor):
    """Every value at the nearest bfloat16 number (float32's exponents, 8 significant bits), ties to even.

    Claim: contractive with alpha = 1 - (u / (1 + u))^2, u = 2^-8 (derived from the relative error of rounding to
    nearest; attained at 1 + u). Magnitudes under 2^-126 are off by up to 2^-134 absolutely and not relatively, those
    above the largest finite number, (2 - 2^-7) 2^127, arrive as that number. So that the claim is true of every float64
    vector, too, one whose largest magnitude is not in [2^-60, 2^127) is multiplied by a power of two that brings it to
    [1/2, 1) first, and its exponent is sent. Infinities and NaN stay what they are.

    >>> round(1 - BFloat16().claim(d=10, n=3).alpha, 7)
    1.51e-05
    """

    name = "bf16"
    aliases = ("bfloat16",)
    example = "bf16"
    layout = "of float64 vectors an exponent in 16 bits; every value as bfloat16, the upper 16 bits of binary32"
    source = Source(
        "Kalamkar, Mudigere, Mellempudi, Das, Banerjee, Avancha, Vooturi, Jammalamadaka, Huang, Yuen, Yang, Park",
        2019,
        "A study of BFLOAT16 for deep learning training",
        "1905.12322",
    )

    def claim(self, d: int, n: int) -> Contractive:
        return Contractive(1.0 - (1.0 / 257.0) ** 2)

    def share(self, d: int, n: int) -> float:
        return (16 + 16 * d) / (64 * d)

    def schema(self, shape: tuple[int, ...], dtype: torch.dtype, keys: Keys) -> Schema:
        exponent = (Slot(Bits(16), torch.int16, 1),) if dtype == torch.float64 else ()
        return *exponent, *_schema(shape, dtype)

    def codes(self, v: Tensor, keys: Keys) -> tuple[Tensor, ...]:
        if v.dtype != torch.float64:
            return _codes(v, torch.bfloat16)
        rows = flat(v)
        exponents = _exponents(rows)
        return exponents.to(torch.int16), *_codes(_times(rows, -exponents), torch.bfloat16)

    def decode(self, message: Message, shape: tuple[int, ...], dtype: torch.dtype, keys: Keys) -> Decoded:
        values = message.codes[-1].view(torch.bfloat16).to(dtype).view(message.rows, math.prod(shape))
        if dtype == torch.float64:
            most, finite = torch.finfo(dtype).max, values.isfinite()  # what was rounded up may be 2^1024
            scaled = _times(values, message.codes[0].to(torch.int32)).clamp(-most, most)
            values = torch.where(finite, scaled, values)
        return Dense(values.view(message.rows, *shape))


def _exponents(rows: Tensor) -> Tensor:
    """The exponent of each row's largest magnitude where that is out of float32's middle range, else 0; int32."""
    most = torch.zeros(len(rows), dtype=rows.dtype) if rows.shape[1] == 0 else rows.abs().amax(1)
    usual = (most == 0) | ~most.isfinite() | ((most >= 2.0**-60) & (most < 2.0**127))
    return torch.where(usual, 0, torch.frexp(most).exponent)


def _times(rows: Tensor, exponents: Tensor) -> Tensor:
    """rows times 2^exponents, in two steps since the power itself need not be a number."""
    half = exponents >> 1
    return torch.ldexp(torch.ldexp(rows, half[:, None]), (exponents - half)[:, None]) if exponents.any() else rows
