"""Fingerprints of tensors: 64 bits that tell whether replicas still hold the same bits."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor

_WIDTH = 1024  # words of a row
_WORD = 8  # bytes


def fingerprint(tensor: Tensor) -> int:
    """A signed 64-bit fingerprint of a tensor's bits, in the order in which they lie in memory.

    Its 64-bit words are laid out in rows; the BLAKE2b hash of the sums of all rows and of all columns, modulo 2^64, and
    of the bytes that fill no row is the fingerprint. One changed word changes a row's sum for certain, and two that are
    exchanged change the sums of their rows or columns. It is no protection against someone who wants to deceive. It
    reads memory twice and copies nothing of the tensor's size, unless the tensor has gaps in memory or begins in the
    middle of a word.

    Parameters
    ----------
    tensor : any shape, dtype and device. Zeros of either sign differ, as do NaNs with different bits.

    >>> x = torch.arange(6.0)
    >>> fingerprint(x) == fingerprint(x.clone()), fingerprint(x) == fingerprint(x.flip(0))
    (True, False)
    """
    flat = _flat(tensor.detach())
    each = flat.element_size()
    body = flat.numel() * each // (_WIDTH * _WORD) * _WIDTH * _WORD // each  # numbers that fill whole rows
    state = hashlib.blake2b(digest_size=_WORD)
    if body:
        rows = flat[:body].view(torch.int64).view(-1, _WIDTH)
        for sums in (rows.sum(dim=1), rows.sum(dim=0)):  # integers: no order of addition gives another sum
            state.update(_bytes(sums))
    state.update(_bytes(flat[body:]))
    return int.from_bytes(state.digest(), "little", signed=True)


def _flat(tensor: Tensor) -> Tensor:
    """The numbers in the order of memory; a copy where there are gaps between them, or where words are cut."""
    if tensor.is_complex():
        tensor = torch.view_as_real(tensor)
    strides = sorted((step, size) for step, size in zip(tensor.stride(), tensor.shape, strict=True) if size > 1)
    expected = 1
    for step, size in strides:
        if step != expected:
            return tensor.contiguous().view(-1)
        expected *= size
    flat = tensor.as_strided((tensor.numel(),), (1,), tensor.storage_offset())
    return flat.clone() if flat.storage_offset() * flat.element_size() % _WORD else flat


def _bytes(numbers: Tensor) -> memoryview:
    return numbers.cpu().contiguous().view(torch.uint8).numpy().data
