"""Virtual time: a queue of jobs that says which worker finishes next, the same for all parties, without any clock."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from laconic.core.state import Shared


@dataclass(frozen=True)
class Starts:
    """What a step leaves to be done: the places (int64) of new jobs that start, of old ones, and of new ones that wait.

    A job that starts needs its model at its worker; one that waits leaves it with the server.
    """

    new: np.ndarray
    old: np.ndarray
    waiting: np.ndarray


@dataclass
class Queue:
    """The n jobs in flight of n workers, one per place. A worker does its own one after the other, as they were given.

    `now` is the virtual time in seconds. Of each job: its worker, when it finishes (infinity while it waits for its
    worker), its turn (the number of starts before its own, which settles ties; while it waits, of jobs given before
    it), and the version of the model that it is about. `turns` is the next turn.
    """

    now: Shared  # float64, ()
    worker: Shared  # int64, (jobs,)
    finish: Shared  # float64, (jobs,)
    turn: Shared  # int64, (jobs,)
    version: Shared  # int64, (jobs,)
    turns: int

    @staticmethod
    def begin(seconds: np.ndarray) -> Queue:
        """Each of n workers starts a job of version 0 at time 0, which takes it so many seconds, (n,)."""
        n = len(seconds)
        finish, workers = torch.from_numpy(seconds.astype(np.float64)), torch.arange(n)
        now = torch.zeros((), dtype=torch.float64)
        return Queue(now, workers, finish, torch.arange(n), torch.zeros(n, dtype=torch.int64), n)

    def first(self, count: int) -> np.ndarray:
        """The places of the jobs that finish first, in that order; of equals the one that has started first."""
        return np.lexsort((self.turn.numpy(), self.finish.numpy()))[:count]

    def after(
        self, done: np.ndarray, given: np.ndarray, version: int, seconds: Callable[[np.ndarray], np.ndarray]
    ) -> tuple[Queue, Starts]:
        """The queue once the jobs in the places `done` (as `first` gives them) have finished, with new ones in there.

        A worker who is done starts the next of its waiting jobs; then the workers in `given` (one for each place in
        `done`) get theirs, of that version, and start it unless they are busy. `seconds` says for some workers, each
        once, how long the jobs take that they start now.
        """
        worker, finish = self.worker.numpy().copy(), self.finish.numpy().copy()
        turn, versions = self.turn.numpy().copy(), self.version.numpy().copy()
        now = float(finish[done[-1]])
        old = _next_jobs(worker, finish, turn, worker[done])
        worker[done], versions[done], finish[done] = given, version, np.inf
        finish[old] = 0.0  # its worker is busy
        busy = _marked(worker[np.isfinite(finish)], len(worker))[given] | _repeated(given)
        new = done[~busy]
        starting = np.concatenate([old, new])
        if len(starting):
            finish[starting] = now + seconds(worker[starting])
        arriving = np.concatenate([starting, done[busy]])
        turn[arriving] = self.turns + np.arange(len(arriving))
        queue = Queue(
            torch.tensor(now, dtype=torch.float64),
            torch.from_numpy(worker),
            torch.from_numpy(finish),
            torch.from_numpy(turn),
            torch.from_numpy(versions),
            self.turns + len(arriving),
        )
        return queue, Starts(new, old, done[busy])


def _next_jobs(worker: np.ndarray, finish: np.ndarray, turn: np.ndarray, free: np.ndarray) -> np.ndarray:
    """Of each free worker that has jobs waiting, the place of the one that was given first."""
    waiting = np.flatnonzero(np.isinf(finish) & _marked(free, len(worker))[worker])
    if len(waiting) < 2:
        return waiting
    waiting = waiting[np.argsort(turn[waiting])]
    return waiting[np.unique(worker[waiting], return_index=True)[1]]


def _marked(places: np.ndarray, size: int) -> np.ndarray:
    """True in these places."""
    marks = np.zeros(size, dtype=bool)
    marks[places] = True
    return marks


def _repeated(values: np.ndarray) -> np.ndarray:
    """Which of the values have stood before."""
    marks = np.ones(len(values), dtype=bool)
    marks[np.unique(values, return_index=True)[1]] = False
    return marks
