"""FedAvg: sampled clients walk from the server's model, which becomes the mean of theirs, weighted by data size."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Annotated, Any

from torch import Tensor

from laconic.core.entry import Count, Interval, Source, Stepsize
from laconic.core.estimator import Estimator
from laconic.core.flight import together
from laconic.core.link import Link
from laconic.core.method import Method, explicit, number, resolve
from laconic.core.problem import Oracles
from laconic.core.state import Server
from laconic.core.theory import Guarantee, Setting
from laconic.estimators.full import FullGradient
from laconic.methods._local import cohort_of, first_memory, local_promise, terms_of, walk_among


@dataclass
class State:
    """The model, and what each worker's estimator keeps."""

    x: Server  # (*shape)
    kept: Any


@dataclass(frozen=True)
class FedAvg(Method):
    """x goes to a random cohort S; y_i = x, local_steps times y_i <- y_i - step v_i(y_i); and

    x <- x + server_step (sum over S of N_i (y_i - x)) / (sum over S of N_i), N_i being worker i's number of terms.
    Each message is accompanied by N_i. For compressed updates see `local_sgd`.

    Where the N_i differ, the weights are those of the pooled data, and x moves towards the minimiser of sum N_i f_i,
    not of mean f_i. Where they are alike the fixed point is that of `local_sgd`, not x*; with a cohort x does not
    settle at all: means over few of the y_i differ from round to round, which leaves a noise floor.

    Guarantee: step as of `local_sgd`. With c = (n - cohort) / (cohort (n - 1)), for full gradients and strongly convex
    f_i, b and q as there and a = step local_steps sigma*, E||x - x*||^2 contracts by 1 - server_step (1 - q) down to
    ((1 - c) b^2 + c a^2) / (1 - q)^2. With N_i that differ by a factor r at most, b becomes the smaller of
    (r - 1) a + r b and sqrt(r) a for all workers, and a sqrt(r) and c 1 for cohorts. All of this is derived here; it
    does not show that the noise of cohorts, too, shrinks with the step.

    Parameters
    ----------
    step : of the local steps; None is the theorem's.
    local_steps : per round.
    cohort : how many workers take part in a round; None is all.
    server_step : of the mean change; 1 is averaging.
    estimator : how workers estimate gradients on their way.

    >>> str(FedAvg(local_steps=10, cohort=3))
    'fedavg(local_steps=10, cohort=3)'
    """

    step: Stepsize = None
    local_steps: Annotated[int, Count(1)] = 5
    cohort: Annotated[int | None, Count(1)] = None
    server_step: Annotated[float, Interval(0.0, open="low")] = 1.0
    estimator: Estimator = field(default_factory=FullGradient)

    name = "fedavg"
    aliases = ("federated_averaging",)
    example = "fedavg(local_steps=4)"
    source = Source(
        "McMahan, Moore, Ramage, Hampson, Aguera y Arcas",
        2016,
        "Communication-efficient learning of deep networks from decentralized data",
        "1602.05629",
        "Algorithm 1",
    )

    def settled(self, setting: Setting) -> FedAvg:
        cohort = cohort_of(self, self.cohort, setting.n)
        step = resolve(self.step, lambda: self.guarantee(setting).step)
        return dataclasses.replace(self, step=step, cohort=cohort)

    def guarantee(self, setting: Setting) -> Guarantee:
        cohort = cohort_of(self, self.cohort, setting.n)
        step, (fewest, most) = explicit(self.step), setting.terms
        steps, outer, ratio = self.local_steps, self.server_step, most / max(1, fewest)
        return local_promise(self, self.source, setting, self.estimator, steps, step, cohort, outer, ratio)

    async def init(self, oracles: Oracles, link: Link) -> State:
        x = oracles.start()
        return State(x, first_memory(self.estimator, x, oracles, link))

    async def iterate(self, state: State, oracles: Oracles, link: Link) -> State:
        step, who = number(self.step), link.sample(self.cohort or link.n)
        x = await link.broadcast(state.x, to=who)
        total, kept = walk_among(who, x, state.kept, self.local_steps, step, self.estimator, oracles, link)
        sizes = terms_of(who, oracles, x)
        change = -step * (sizes.view(-1, *[1] * x.dim()) * total)
        moved, heard = await together(link.uplink(None, change, who), link.uplink(None, sizes, who))
        return State(state.x + self.server_step * (moved.mean.dense() / heard.mean.dense()), kept)

    def point(self, state: State) -> Tensor:
        return state.x
