"""Minibatches without replacement: every epoch goes through a fresh permutation of the terms."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor

from laconic.core.entry import Count, Source
from laconic.core.estimator import Estimate, Estimator, Probe, of_server
from laconic.core.link import Link
from laconic.core.problem import Batch, Oracles
from laconic.core.state import Worker
from laconic.kernels import epochs


@dataclass
class Place:
    """How many terms each worker has looked at: its epoch and the place in it follow."""

    seen: Worker  # (local,) int64


@dataclass(frozen=True)
class RandomReshuffling(Estimator):
    """v_i = the mean gradient of the next `batch` terms of worker i's permutation, a fresh one for every epoch.

    A minibatch at the end of an epoch goes on with the next one, so that every term is looked at once per epoch,
    whatever the number of terms. Given the past the estimate is biased; its mean over an epoch is not, but for the
    moves of x. Permutations are addressed by worker and epoch: none is kept.

    Parameters
    ----------
    batch : terms per worker and estimate.

    >>> str(RandomReshuffling(batch=32))
    'shuffled(batch=32)'
    """

    batch: Annotated[int, Count(1)] = 1

    name = "shuffled"
    aliases = ("random_reshuffling", "without_replacement")
    example = "shuffled(batch=32)"
    source = Source(
        "Mishchenko, Khaled, Richtarik",
        2020,
        "Random reshuffling: simple analysis with vast improvements",
        "2006.05988",
    )

    def init(self, x: Tensor, oracles: Oracles, link: Link) -> Estimate:
        return self.estimate(x, Place(torch.zeros(len(oracles.terms()), dtype=torch.int64)), oracles, link)

    def estimate(self, x: Tensor, state: Place, oracles: Oracles, link: Link) -> Estimate:
        keys, counts = link.keys("order"), oracles.terms()
        stable = keys.stream.rstrip("0123456789")  # the same in every step, however often it was asked there
        address = type(keys)(keys.seed, 0, stable, keys.workers, keys.n).address
        terms = epochs.drawn(address, keys.workers, counts, state.seen.numpy(), self.batch)
        batch = Batch(torch.arange(len(counts)).numpy(), terms)

        def same(y: Tensor) -> Tensor:
            return oracles.gradients(y, batch=batch)

        probe = Probe(x, same, oracles.gradients, of_server(oracles))
        return Estimate(same(x), Place(state.seen + self.batch), probe)
