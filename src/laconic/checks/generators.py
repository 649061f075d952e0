"""The global random generators of Python, NumPy and torch: looked at, never used."""

from __future__ import annotations

import random

import numpy as np
import torch


def states() -> dict[str, bytes]:
    """The state of each generator, by whose it is."""
    words = np.random.get_state(legacy=False)
    numpy_state = (
        words["state"]["key"].tobytes() + repr((words["state"]["pos"], words["has_gauss"], words["gauss"])).encode()
    )
    return {
        "Python": repr(random.getstate()).encode(),
        "NumPy": numpy_state,
        "torch": torch.random.get_rng_state().numpy().tobytes(),
    }
