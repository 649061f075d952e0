"""Notices: what a user should know is said once, on the first process, through Python's logging."""

from __future__ import annotations

import logging
from collections import Counter

import torch.distributed as dist

LOGGER = logging.getLogger("laconic")
said: Counter[str] = Counter()  # how often there was reason to say each


def announce(text: str) -> None:
    """Says a line once, where rank 0 writes its log (standard error unless set up otherwise), and counts it."""
    said[text] += 1
    if said[text] == 1 and (not dist.is_initialized() or dist.get_rank() == 0):
        LOGGER.warning("laconic: %s", text)
