"""Generators of the recipes: each draw has an address, and torch's global generator is never touched."""

from __future__ import annotations

import hashlib

import torch


def generator_at(*address: int | str) -> torch.Generator:
    """A generator whose numbers depend on the address alone, such as `(seed, "augmentation", step, rank)`.

    So a resumed run draws what the uninterrupted one draws, and no generator's state needs to be kept.

    >>> a, b = generator_at(0, "order", 3), generator_at(0, "order", 3)
    >>> bool((torch.randperm(9, generator=a) == torch.randperm(9, generator=b)).all())
    True
    """
    digest = hashlib.sha256(repr(address).encode()).digest()
    generator = torch.Generator()
    generator.manual_seed(int.from_bytes(digest[:8], "little") >> 1)
    return generator
