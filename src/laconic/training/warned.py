"""The category of warnings that training gives, and how they are given from any thread."""

from __future__ import annotations

import warnings


class LaconicWarning(UserWarning):
    """Something about compressed training that its user should know of: an alarm, or telemetry that had to end.

    >>> warnings.simplefilter("error", LaconicWarning)  # doctest: +SKIP
    """


def warn(text: str) -> None:
    """Warns. Raises LaconicWarning where warnings are errors."""
    warnings.warn(f"laconic: {text}", LaconicWarning, stacklevel=3)
