"""Where things are kept on this machine."""

from __future__ import annotations

import os
from pathlib import Path


def cache() -> Path:
    """What can be computed again: LACONIC_CACHE, else laconic/ in XDG_CACHE_HOME, else ~/.cache/laconic."""
    if os.environ.get("LACONIC_CACHE"):
        return Path(os.environ["LACONIC_CACHE"]).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "laconic"
