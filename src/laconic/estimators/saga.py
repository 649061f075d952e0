"""SAGA: a table of the gradients of all terms."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated

import numpy as np
import torch
from torch import Tensor

from laconic.core.entry import Count, Source
from laconic.core.estimator import Estimate, Estimator, Probe, of_server
from laconic.core.link import Link
from laconic.core.problem import Oracles
from laconic.core.state import Worker
from laconic.estimators._terms import every_term, mean_of_squares, of_terms, total

LARGEST_TABLE = 1 << 32  # bytes, of one process


@dataclass
class Table:
    """The last gradient of each term, and their mean."""

    terms: Worker  # phi_ij, (local, most terms of any worker, *shape); zero where a worker has fewer
    mean: Worker  # (local, *shape)


@dataclass(frozen=True)
class SAGA(Estimator):
    """v_i = mean_B (grad f_ij(x) - phi_ij) + mean_j phi_ij; then phi_ij becomes grad f_ij(x) for the j in B.

    Parameters
    ----------
    batch : terms in the minibatch B, drawn with replacement.

    The start takes a full gradient for v and fills the table with it, term by term. The table holds (local workers) x
    (most terms of any worker) x d numbers, up to 4 GiB; where that is too much, use lsvrg. It is copied for every
    estimate, for the last one stays as it was: in time, though not in gradients of terms, that is like a pass over the
    data.

    >>> str(SAGA(batch=8))
    'saga(batch=8)'
    """

    batch: Annotated[int, Count(1)] = 1

    name = "saga"
    example = "saga(batch=8)"
    unbiased = True
    vanishing = True
    source = Source(
        "Defazio, Bach, Lacoste-Julien",
        2014,
        "SAGA: a fast incremental gradient method with support for non-strongly convex composite objectives",
        "1407.0202",
    )

    def init(self, x: Tensor, oracles: Oracles, link: Link) -> Estimate:
        v, (rows, terms) = oracles.gradients(x), every_term(oracles)
        table = v.new_zeros(self._room(v, oracles))
        table[torch.from_numpy(rows), torch.from_numpy(terms)] = of_terms(x, rows, terms, oracles)
        probe = Probe(x, oracles.gradients, oracles.gradients, of_server(oracles))
        return Estimate(v, Table(table, v.clone()), probe)

    def _room(self, v: Tensor, oracles: Oracles) -> tuple[int, ...]:
        shape = (v.shape[0], oracles.most_terms, *v.shape[1:])
        size = math.prod(shape) * v.element_size()
        if size > LARGEST_TABLE:
            raise ValueError(
                f"{self} : the table of {shape[0]} workers x {shape[1]} terms x {oracles.d} coordinates takes "
                f"{size / 2**30:.1f} GiB, and {LARGEST_TABLE / 2**30:g} are allowed; use lsvrg, or more processes"
            )
        return shape

    def estimate(self, x: Tensor, state: Table, oracles: Oracles, link: Link) -> Estimate:
        indices = oracles.sample(link.keys("batch"), self.batch).indices
        rows, terms = np.repeat(np.arange(len(indices)), self.batch), indices.reshape(-1)
        place, form = (torch.from_numpy(rows), torch.from_numpy(terms)), (*indices.shape, *oracles.shape)
        old = state.terms[place].view(form)
        correction = total(old) / self.batch - state.mean

        def averaged(new: Tensor) -> Tensor:
            return total(new) / self.batch - correction

        def same(y: Tensor) -> Tensor:
            return averaged(of_terms(y, rows, terms, oracles).view(form))

        new = of_terms(x, rows, terms, oracles).view(form)
        table, counts = state.terms.clone(), torch.from_numpy(oracles.terms())
        table[place] = new.flatten(0, 1)
        share = torch.from_numpy(_firsts(indices)) / counts[:, None]
        change = total((new - old) * share.to(new.dtype).view(form[:2] + (1,) * len(oracles.shape)))
        probe = Probe(x, same, oracles.gradients, of_server(oracles))
        return Estimate(averaged(new), Table(table, state.mean + change), probe)

    def renewal(self, terms: int) -> float:
        return 1.0 - (1.0 - 1.0 / terms) ** self.batch

    def scatter(self) -> float:
        return 1.0 / self.batch

    def aged(self, state: Table, x: Tensor, oracles: Oracles) -> Tensor:
        """||phi_ij - grad f_ij(x)||^2 for 1 / (probability of renewal) estimates."""
        rows, terms = every_term(oracles)
        kept = state.terms[torch.from_numpy(rows), torch.from_numpy(terms)]
        renewals = 1.0 - (1.0 - 1.0 / torch.from_numpy(oracles.terms()).to(torch.float64)) ** self.batch
        return mean_of_squares(kept - of_terms(x, rows, terms, oracles), rows, oracles) / renewals


def _firsts(indices: np.ndarray) -> np.ndarray:
    """1.0 where a term stands in its row (rows, size) for the first time, 0.0 where it was drawn before."""
    order = np.argsort(indices, axis=1, kind="stable")
    ordered = np.take_along_axis(indices, order, axis=1)
    new = np.ones(indices.shape)
    new[:, 1:] = ordered[:, 1:] != ordered[:, :-1]
    firsts = np.empty(indices.shape)
    np.put_along_axis(firsts, order, new, axis=1)
    return firsts
