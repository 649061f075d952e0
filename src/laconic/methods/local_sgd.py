"""LocalSGD, with a mechanism for what workers send, and post-local SGD."""

from __future__ import annotations

import dataclasses
from abc import abstractmethod
from dataclasses import dataclass
from typing import Annotated, Any

from torch import Tensor

from laconic.core.entry import Count, Interval, Source
from laconic.core.estimator import Estimate, Probe
from laconic.core.link import Link
from laconic.core.mechanism import Need
from laconic.core.problem import Oracles
from laconic.core.theory import Guarantee, NoTheorem, Setting, known
from laconic.estimators.full import FullGradient
from laconic.methods._descent import Descent
from laconic.methods._local import local_promise, walk


@dataclass(frozen=True)
class _Walked(Descent):
    """Workers hand over the sums of the gradients that they meet on local steps; `steps_at` says how many."""

    local_steps: Annotated[int, Count(1)] = 5
    server_step: Annotated[float, Interval(0.0, open="low")] = 1.0

    @abstractmethod
    def steps_at(self, iteration: int) -> int:
        """How many local steps an iteration has."""

    def refuse(self, setting: Setting) -> None:
        super().refuse(setting)
        if Need.PROBE in self.mechanism.needs and not self.estimator.exact:
            raise ValueError(
                f"{self.mechanism} needs {Need.PROBE.value}, and {self} cannot repeat local steps with {self.estimator}"
                "; use full gradients, or another mechanism"
            )

    def simple(self, setting: Setting) -> bool:
        """Whether nothing but the gradients is random: nothing is compressed, all workers take part."""
        return dataclasses.replace(self, estimator=FullGradient()).plain(setting)

    def begin(self, x: Tensor, oracles: Oracles, link: Link) -> Estimate:
        return self._walked(super().begin(x, oracles, link), x, oracles, link)

    def work(self, x: Tensor, kept: Any, oracles: Oracles, link: Link) -> Estimate:
        return self._walked(super().work(x, kept, oracles, link), x, oracles, link)

    def _walked(self, first: Estimate, x: Tensor, oracles: Oracles, link: Link) -> Estimate:
        steps, step = self.steps_at(link.step), self._at(link.step)

        def same(y: Tensor) -> Tensor:
            again = self.estimator.estimate(y, None, oracles, link)  # full gradients alone are asked for a probe
            return walk(again, y, steps, step, self.estimator, oracles, link)[0]

        total, kept = walk(first, x, steps, step, self.estimator, oracles, link)
        return Estimate(total, kept, Probe(x, same, same))

    def move(
        self, x: Tensor, g: Tensor, rule: dict[str, Tensor], step: float, iteration: int
    ) -> tuple[Tensor, dict[str, Tensor]]:
        return x - self.server_step * step * g, rule


@dataclass(frozen=True)
class LocalSGD(_Walked):
    """y_i = x; local_steps times y_i <- y_i - step v_i(y_i); x <- x + server_step mean (y_i - x).

    The pseudo-gradient (x - y_i) / step, the sum of the gradients on worker i's way, is what the mechanism carries, so
    that everything which compresses gradients compresses local updates. All workers count alike; for weights by data
    size and sampled workers see `fedavg`. With one local step it is `gd`. Like there, the first pseudo-gradients are
    those of the start.

    Guarantee for smooth convex f_i: step <= min(1 / (4 L_max), 1 / (8 L_max (local_steps - 1))) (recalled; with
    minibatches L_sample in place of L_max). In the limit x is not x*: on quadratics it is (mean (I - R_i))^-1 mean
    (I - R_i) H_i^-1 b_i with R_i = (I - step H_i)^local_steps, whose distance to x* is of the order of step
    (local_steps - 1). For full gradients and mu-strongly convex f_i, with q = (1 - step mu)^local_steps, sigma* as of
    the problem and b = step^2 L_max sigma* local_steps (local_steps - 1) / 2 (derived here): ||x - x*||^2 contracts by
    1 - server_step (1 - q) down to a plateau of (b / (1 - q))^2, for server_step <= 1. Compressed updates have no
    theorem and need an explicit step.

    Parameters
    ----------
    mechanism : carries the pseudo-gradients; one that asks for a probe gets one only over full gradients.
    step : of the local steps; None is the theorem's.
    estimator : how workers estimate gradients on their way.
    down, schedule : as of `gd`; the schedule is that of the local steps, by rounds.
    local_steps : per round.
    server_step : of the mean change; 1 is averaging.

    >>> str(LocalSGD(local_steps=8))
    'local_sgd(local_steps=8)'
    """

    name = "local_sgd"
    aliases = ("local_gd",)
    example = "local_sgd(local_steps=4)"
    source = Source(
        "Khaled, Mishchenko, Richtarik",
        2019,
        "Tighter theory for local SGD on identical and heterogeneous data",
        "1909.04746",
        "step recalled; rate and plateau derived anew",
    )

    def steps_at(self, iteration: int) -> int:
        return self.local_steps

    def promise(self, setting: Setting, step: float | None) -> Guarantee:
        if not self.simple(setting):
            raise NoTheorem(f"no theorem of {self} covers compressed updates; give an explicit step")
        steps, n = self.local_steps, setting.n
        return local_promise(self, self.source, setting, self.estimator, steps, step, n, self.server_step)


@dataclass(frozen=True)
class PostLocalSGD(_Walked):
    """Minibatch SGD until iteration `switch`, LocalSGD with `local_steps` from then on.

    The early iterations, in which x moves fast, communicate after every step; later ones after local_steps of them.
    The paper switches where the learning rate first decays.

    Guarantee as of `local_sgd`, with the slower of the two rates: under strong convexity ||x - x*||^2 contracts by
    1 - server_step step mu down to the plateau that goes with it (derived here).

    Parameters
    ----------
    mechanism, step, estimator, down, schedule, local_steps, server_step : as of `local_sgd`.
    switch : how many of the first rounds, that of the start among them, have one local step.

    >>> str(PostLocalSGD(local_steps=8, switch=100))
    'post_local_sgd(local_steps=8, switch=100)'
    """

    switch: Annotated[int, Count(0)] = 10

    name = "post_local_sgd"
    example = "post_local_sgd(local_steps=4, switch=3)"
    source = Source(
        "Lin, Stich, Patel, Jaggi", 2018, "Don't use large mini-batches, use local SGD", "1808.07217", "Algorithm 1"
    )

    def steps_at(self, iteration: int) -> int:
        return 1 if iteration < self.switch else self.local_steps

    def promise(self, setting: Setting, step: float | None) -> Guarantee:
        if not self.simple(setting):
            raise NoTheorem(f"no theorem of {self} covers compressed updates; give an explicit step")
        local = local_promise(
            self, self.source, setting, self.estimator, self.local_steps, step, setting.n, self.server_step
        )
        if local.rate is None:
            return local
        (mu,) = known(mu_workers=setting.constants.mu_workers)
        root = 1.0 - self.server_step * (local.step if step is None else step) * mu
        early = root**2 if local.plateau == 0.0 else root
        plateau = local.plateau * (1.0 - local.rate) / (1.0 - early)
        return dataclasses.replace(local, rate=max(local.rate, early), plateau=plateau)
