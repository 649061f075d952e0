"""What theorems about mechanisms over recursive estimators (PAGE, MVR) share.

A mechanism makes g of the v_i, and ||g - grad f||^2 <= (1 + s) ||g - mean v_i||^2 + (1 + 1 / s) ||mean v_i - grad f||^2
for every s > 0. The first part is the mechanism's, whose bound grows by a multiple of mean ||v_i+ - v_i||^2 a round;
the second is the estimator's, as its `Recursion` says.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from laconic.core.estimator import Estimator, Recursion
from laconic.core.mechanism import Mechanism
from laconic.core.theory import NoTheorem, Setting, known

ALL, HALF = 1.0, 0.5  # how much of a contraction is left where none, or half, is kept for the rate of V under PL


@dataclass(frozen=True)
class Drifts:
    """Steps up to 1 / (L + own + noise) are allowed (s = noise / own); under PL step mu is at most `forgets` / 2."""

    own: float
    noise: float
    forgets: float


def recursion_of(mechanism: Mechanism, estimator: Estimator, setting: Setting) -> Recursion:
    """How the estimator's errors move. Raises NoTheorem where that is not known."""
    recursion = estimator.recursion(setting.terms)
    if recursion is None:
        few, most = setting.terms
        raise NoTheorem(
            f"the theorem of {mechanism} is about full gradients, mvr, and page with one probability for all workers, "
            f"not {estimator} on {few if few == most else f'{few} to {most}'} terms per worker; give an explicit step"
        )
    return recursion


def drifts(recursion: Recursion, setting: Setting, weight: float, part: float) -> Drifts:
    """Of a mechanism for which a move of the v_i adds `weight` mean ||v_i+ - v_i||^2 in all to ||g - mean v_i||^2.

    In all: with the rounds in which the addition is still felt. With left = part (1 - kept), what the e_i add to the
    first part of ||g - grad f||^2 is pulled noise weight l^2 / left; ||mean e_i||^2 sums up to noise l^2 / (left n).
    """
    (plus,) = known(L_plus=setting.constants.L_plus)
    forgets = 1.0 - recursion.kept
    left = part * forgets
    own, noise = weight * recursion.moved * plus**2, 0.0
    if recursion.noise > 0.0:
        (sample,) = known(L_sample=setting.constants.L_sample)
        own += weight * (recursion.stirred + recursion.pulled * recursion.noise / left) * sample**2
        noise = recursion.noise * sample**2 / (left * setting.n)
    return Drifts(math.sqrt(own), math.sqrt(noise), forgets)
