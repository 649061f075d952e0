"""Asynchronous SGD: pure, waiting for several gradients, and with workers who are assigned at random or in turns."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Annotated

import numpy as np

from laconic.core.entry import Count
from laconic.core.link import Link
from laconic.methods._asynchronous import ASGRAD, Asynchronous


@dataclass(frozen=True)
class PureAsync(Asynchronous):
    """x <- x - step g_i(x_v) whenever a worker i is done, which then goes on with the new x. A slow worker speaks less.

    A worker speaks as often as it is fast, so with unlike workers the method goes to another point than x*, to x_w with
    sum_i grad f_i(x_w) / tau_i = 0 where worker i takes tau_i seconds, however small the step is.

    Guarantee (recalled): step = 1 / (4 L_max sqrt(tau n)) where no gradient is older than tau steps; gradients become
    small but for a floor by the unlikeness of the workers. tau is here a bound from those of the delays.

    Parameters
    ----------
    step : None is the theorem's, which needs bounded delays.
    delays : how long a worker takes for a gradient; None is the run's, or else one second.

    >>> str(PureAsync(step=0.1))
    'pure_async(step=0.1)'
    """

    name = "pure_async"
    aliases = ("async_sgd",)
    example = "pure_async(delays=speeds(ratio=3.0))"
    source = dataclasses.replace(ASGRAD, where="Section 3, pure asynchronous SGD")

    def assigned(self, finished: np.ndarray, link: Link) -> np.ndarray:
        return finished

    def left(self, n: int) -> float:
        return math.inf  # a multiple of the unlikeness of the workers, which no step makes smaller


@dataclass(frozen=True)
class WaitingAsync(Asynchronous):
    """x <- x - step (mean of the first `wait` gradients to come), and their workers go on with the new x.

    With `wait` = n it is gradient descent, at the pace of the slowest worker; with 1 it is pure_async.

    Guarantee (recalled): step = 1 / (4 L_max sqrt(tau n / wait)) where no gradient is older than tau steps; the floor
    of pure_async unless `wait` = n.

    Parameters
    ----------
    wait : how many gradients a step waits for.
    step : None is the theorem's, which needs bounded delays.
    delays : how long a worker takes for a gradient; None is the run's, or else one second.

    >>> str(WaitingAsync(wait=3))
    'waiting_async(wait=3)'
    """

    wait: Annotated[int, Count(1)] = 2

    name = "waiting_async"
    example = "waiting_async(wait=2, delays=speeds(ratio=3.0))"
    source = dataclasses.replace(ASGRAD, where="Section 3, pure asynchronous SGD with waiting")

    @property
    def per_step(self) -> int:
        return self.wait

    def assigned(self, finished: np.ndarray, link: Link) -> np.ndarray:
        return finished

    def left(self, n: int) -> float:
        return 0.0 if self.wait == n else math.inf


@dataclass(frozen=True)
class RandomAsync(Asynchronous):
    """x <- x - step g_i(x_v) whenever a worker i is done; the new x goes to a random worker, where it may have to wait.

    All workers get as many jobs, so there is no bias; the slowest one sets the pace.

    Guarantee (recalled): step = 1 / (4 L_max sqrt(tau n)) where no gradient is older than tau steps; gradients vanish
    in the limit of small steps. tau is here a crude bound from those of the delays (all jobs at one worker): larger
    steps often work.

    Parameters
    ----------
    step : None is the theorem's, which needs bounded delays.
    delays : how long a worker takes for a gradient; None is the run's, or else one second.

    >>> str(RandomAsync(step="4x"))
    "random_async(step='4x')"
    """

    name = "random_async"
    example = "random_async(delays=speeds(ratio=3.0))"
    queues = True
    source = dataclasses.replace(ASGRAD, where="Section 3, random asynchronous SGD")

    def assigned(self, finished: np.ndarray, link: Link) -> np.ndarray:
        return link.keys("assignment").shared.subsets(link.n, len(finished))[0]


@dataclass(frozen=True)
class ShuffledAsync(Asynchronous):
    """x <- x - step g_i(x_v) whenever a worker i is done; the new x goes to the next worker of a random permutation.

    Every n steps another permutation is drawn. All workers get as many jobs, and none has to be lucky.

    Guarantee (recalled): step = 1 / (4 L_max sqrt(tau n)) where no gradient is older than tau steps; gradients vanish
    in the limit of small steps. tau is here a crude bound from those of the delays (all jobs at one worker): larger
    steps often work.

    Parameters
    ----------
    step : None is the theorem's, which needs bounded delays.
    delays : how long a worker takes for a gradient; None is the run's, or else one second.

    >>> str(ShuffledAsync(step=0.1))
    'shuffled_async(step=0.1)'
    """

    name = "shuffled_async"
    example = "shuffled_async(delays=speeds(ratio=3.0))"
    queues = True
    source = dataclasses.replace(ASGRAD, where="Section 3, shuffled asynchronous SGD")

    def assigned(self, finished: np.ndarray, link: Link) -> np.ndarray:
        pass_, place = divmod(link.step - 1, link.n)
        keys = dataclasses.replace(link.keys("shuffle").shared, step=pass_)
        return keys.permutations(link.n)[0, [place]]
