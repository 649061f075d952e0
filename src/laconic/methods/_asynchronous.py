"""What asynchronous methods share: one text over a queue in virtual time, and the stepsize of its theorem."""

from __future__ import annotations

import dataclasses
import math
from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from laconic.core.delay import Delays
from laconic.core.entry import Source, Stepsize
from laconic.core.events import Queue
from laconic.core.flight import together
from laconic.core.link import Cohort, Link
from laconic.core.method import Method, number, resolve
from laconic.core.problem import Oracles
from laconic.core.state import Server, Worker
from laconic.core.theory import Guarantee, NoTheorem, Setting
from laconic.methods.delays import FixedDelay

ASGRAD = Source(
    "Islamov, Safaryan, Alistarh",
    2023,
    "AsGrad: A Sharp Unified Analysis of Asynchronous-SGD Algorithms",
    "2310.20452",
)
STEPSIZE = Source(
    "Koloskova, Stich, Jaggi",
    2022,
    "Sharper Convergence Guarantees for Asynchronous SGD for Distributed and Federated Learning",
    "2206.08307",
    "Theorems 6 and 11",
)
STARVES = 30  # steps per worker without a word of one of them; exponential delays of equal means stay below half of it


def promise(setting: Setting, stale: int, per_step: int, left: float) -> Guarantee:
    """What theory says where no gradient is older than `stale` steps and a step waits for so many of the n workers.

    `left` is what it leaves of the squared gradient norm in the limit of small steps.
    """
    flying = math.ceil(setting.n / per_step)
    return Guarantee(
        1.0 / (4.0 * float(setting.constants.L_max) * math.sqrt(max(1, stale) * flying)),
        STEPSIZE,
        plateau=left,
        assumes=("f_i smooth", f"no gradient older than {stale} steps"),
        sure=False,
    )


@dataclass
class State:
    """The model, the points that workers are at work on, those of jobs that wait, and the queue."""

    x: Server  # (*shape)
    held: Worker  # (local, *shape)
    waiting: Server | None  # by place, (n, *shape); None where no job ever waits
    queue: Queue


@dataclass(frozen=True)
class Asynchronous(Method):
    """x_(t+1) = x_t - step g_i(x_v): the server never waits for a slow worker, whose gradient is then of an old model.

    One iteration is one step of the server. n jobs are in flight, each a model that one worker is to take its gradient
    at; at the start every worker has x^0. The jobs that finish first end, their workers send their gradients, and as
    many new jobs with the new model are handed out, as `assigned` says. A worker does its jobs one after the other; a
    model goes down when its job starts, and until then the server keeps it.
    """

    step: Stepsize = None
    delays: Delays | None = None

    queues: ClassVar[bool] = False  # whether a job may be given to a worker who is busy

    @abstractmethod
    def assigned(self, finished: np.ndarray, link: Link) -> np.ndarray:
        """The workers who get new jobs, one for each of those who have finished; link.step is the new version."""

    @property
    def per_step(self) -> int:
        """How many gradients make one step of the server."""
        return 1

    # ---- theory -------------------------------------------------------------------------------------------------

    def settled(self, setting: Setting) -> Asynchronous:
        if self.per_step > setting.n:
            raise ValueError(f"{self} waits for {self.per_step} gradients, and there are {setting.n} workers")
        method = dataclasses.replace(self, delays=self.delays or setting.delays or FixedDelay())
        assert method.delays is not None
        method.delays.bounds(setting.n)
        return dataclasses.replace(method, step=resolve(self.step, lambda: method.guarantee(setting).step))

    def guarantee(self, setting: Setting) -> Guarantee:
        delays = self.delays or setting.delays or FixedDelay()
        bounds = delays.bounds(setting.n)
        if bounds is None:
            raise NoTheorem(f"the theorem of {self.name} needs delays that are bounded, and {delays} is not; give step")
        return promise(setting, self.most_stale(*bounds), self.per_step, self.left(setting.n))

    def left(self, n: int) -> float:
        """What the theorem leaves of the squared gradient norm in the limit of small steps."""
        return 0.0

    def most_stale(self, least: np.ndarray, most: np.ndarray) -> int:
        """A bound on how many steps old a gradient can be, from bounds on the workers' seconds, (n,) each.

        A job lasts as long as all jobs before it of the same worker and its own; the others end what they can by then.
        """
        n = len(most)
        lasts = most * (n if self.queues else 1)
        ends = np.floor(lasts[:, None] / least[None, :] + 1e-9) + 1.0
        others = ends.sum(axis=1) - ends.diagonal() + (n - 1 if self.queues else 0)
        return math.ceil(float(others.max()) / self.per_step)

    # ---- the text -----------------------------------------------------------------------------------------------

    async def init(self, oracles: Oracles, link: Link) -> State:
        x = oracles.start()
        held = x.expand(oracles.block.size, *x.shape).clone()
        waiting = x.expand(link.n, *x.shape).clone() if self.queues else None
        return State(x, held, waiting, Queue.begin(self._seconds(np.arange(link.n), link)))

    async def iterate(self, state: State, oracles: Oracles, link: Link) -> State:
        done = state.queue.first(self.per_step)
        finished = state.queue.worker.numpy()[done]
        who = link.cohort(np.sort(finished))
        gradients = oracles.gradients(state.held[torch.from_numpy(who.rows)], who.rows)
        sent = await link.uplink(None, gradients, who)
        x = state.x.clone()
        sent.mean.add_to(x, scale=self.scale(link.n))
        given = self.assigned(finished, link)
        queue, starts = state.queue.after(done, given, link.step, lambda workers: self._seconds(workers, link))
        sendings: list[tuple[Cohort, Tensor]] = []
        if len(starts.new):
            sendings.append((link.cohort(np.sort(queue.worker.numpy()[starts.new])), x))
        for place in starts.old:
            assert state.waiting is not None
            sendings.append((link.cohort(queue.worker.numpy()[[place]]), state.waiting[place]))
        heard = await together(*(link.broadcast(model, to=cohort) for cohort, model in sendings))
        for (cohort, _), model in zip(sendings, heard, strict=True):
            state.held[torch.from_numpy(cohort.rows)] = model
        if state.waiting is not None:
            state.waiting[torch.from_numpy(starts.waiting)] = x
        self._watch(queue, link)
        return dataclasses.replace(state, x=x, queue=queue)

    def scale(self, n: int) -> float:
        """What the mean over n workers of the gradients that have come is multiplied by."""
        return -number(self.step) * n / self.per_step

    def _seconds(self, workers: np.ndarray, link: Link) -> np.ndarray:
        """How long the jobs take that these workers, each once, start in this iteration."""
        assert self.delays is not None
        return self.delays.draw(dataclasses.replace(link.keys("delay"), workers=workers))

    def _watch(self, queue: Queue, link: Link) -> None:
        """Remarks on a worker who never gets to speak, so that its function counts for nothing."""
        place = int(queue.version.argmin())
        age, limit = link.step - int(queue.version[place]), math.ceil(STARVES * link.n / self.per_step)
        if not self.queues and age > 0 and age % limit == 0:
            link.remark(
                f"worker {int(queue.worker[place])} starves: its delay is so long that others step on and on without "
                "its function; give it less, or use random_async or shuffled_async (steps without it)",
                age,
            )

    def point(self, state: State) -> Tensor:
        return state.x

    def virtual_seconds(self, state: State) -> float:
        return float(state.queue.now)
