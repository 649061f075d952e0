"""Checks that a message is a function of its row and address: not of its company, threads or memory."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from laconic.checks.trial import Trial, addresses, decoded, message_of, rows_of, same, sent
from laconic.checks.vectors import batch, normal
from laconic.core.keys import Keys


def input_is_kept(trial: Trial, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    """Vectors are not written to, however they lie in memory, and how they lie changes nothing."""
    v = normal(shape, 4, "kept").to(dtype)
    keys, d = addresses(4), math.prod(shape)
    plain = sent(trial.compressor, v.clone(), keys)
    gaps = torch.full((4, 2 * d), 3.0, dtype=dtype)
    gaps[:, ::2] = v.view(4, d)
    layouts = {
        "contiguous": (v, v),
        "every second number of a longer row": (gaps, gaps[:, ::2].unflatten(1, shape)),
        "with rows in reverse": (turned := v.flip(0).contiguous(), torch.stack(list(turned.unbind())[::-1])),
    }
    if len(shape) == 2:
        other = v.mT.contiguous()
        layouts["transposed"] = (other, other.mT)
    for name, (memory, view) in layouts.items():
        trial.place = f"{name}, shape {shape}"
        _kept(trial, memory, view, keys, plain)
    trial.place = f"one row for all, shape {shape}"
    _kept(trial, v, v[:1].expand(4, *shape), keys, sent(trial.compressor, v[:1].repeat(4, *[1] * len(shape)), keys))


def _kept(trial: Trial, memory: Tensor, view: Tensor, keys: Keys, plain: Tensor) -> None:
    before = memory.clone()
    out = sent(trial.compressor, view, keys)
    trial.expect(same(memory, before), "the vectors that were to be compressed are changed")
    trial.expect(same(out, plain), "the result depends on how the vectors lie in memory")
    out.fill_(17.0)
    trial.expect(same(memory, before), "writing to what was decoded changes the vectors")


def company(trial: Trial, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    """A row's message and meaning are the same alone, among others, in any order, and the second time."""
    v = batch(shape, dtype)[1]
    rows = v.shape[0]
    keys = addresses(rows)
    message = message_of(trial.compressor, v, keys)
    out, texts = decoded(trial.compressor, message, shape, dtype, keys), rows_of(message)
    again = message_of(trial.compressor, v, keys)
    trial.expect(rows_of(again) == texts, "the same vectors and addresses give another message the second time")
    singles = [np.array([row]) for row in range(0, rows, 3)]
    for some in (*singles, np.arange(rows)[::-1].copy(), np.arange(rows)[1::3], np.arange(0)):
        part = message_of(trial.compressor, v[some], keys.at(some))
        trial.expect(
            rows_of(part) == [texts[row] for row in some],
            f"the message of row {some[0] if len(some) else ''} depends on which rows share its batch",
        )
        trial.expect(
            same(decoded(trial.compressor, part, shape, dtype, keys.at(some)), out[some]),
            "what a row decodes to depends on which rows share its batch",
        )


def threads(trial: Trial, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    """One torch thread or two: the same bits."""
    rows = max(2, min(64, (1 << 17) // math.prod(shape)))
    v, keys, before = normal(shape, rows, "threads").to(dtype), addresses(rows), torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        first = sent(trial.compressor, v, keys)
        torch.set_num_threads(2)
        second = sent(trial.compressor, v, keys)
    finally:
        torch.set_num_threads(before)
    trial.expect(same(first, second), "the result depends on the number of threads")
