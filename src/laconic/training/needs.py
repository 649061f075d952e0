"""Refusals: what a mechanism needs and a training loop cannot give is said by name and reason."""

from __future__ import annotations

from laconic.core.mechanism import Mechanism, Need

# the compressor's affair, and the optimizer's: with a learning rate that falls, memories of gradients count too much
NOT_ASKED = frozenset({Need.UNBIASED, Need.CONSTANT_STEP})


def refuse(
    mechanism: Mechanism, given: frozenset[Need], who: str, gives_step: bool = False, elsewhere: str = ""
) -> None:
    """Raises ValueError, one line, where a mechanism needs what `who` cannot give.

    Parameters
    ----------
    given : the needs that are met.
    who : as the message names it, "a DDP hook".
    gives_step : whether vectors come multiplied by the stepsize.
    elsewhere : what the user can do to have all but cohorts, as the message says it.
    """
    asks = mechanism.needs - NOT_ASKED - given
    lacks = [need.value for need in sorted(asks, key=lambda need: need.value)]
    if mechanism.takes_step and not gives_step:
        lacks.append("the stepsize (its estimate is a step, and a hook hands gradients to an optimizer)")
    if lacks:
        remedy = f"{elsewhere}, or {mechanism.instead}" if elsewhere and Need.COHORTS not in asks else mechanism.instead
        raise ValueError(f"{mechanism} needs {' and '.join(lacks)}, which {who} cannot give; {remedy}")
