"""DiLoCo: many local steps of any optimizer, and an outer optimizer on the mean change; in fragments, overlapped."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.futures import Future
from torch.optim import SGD, Optimizer

from laconic.core.mechanism import Mechanism
from laconic.training.local_updates import LocalUpdates, at_least, copy_into
from laconic.training.policy import DENSE, Policy

nesterov = functools.partial(SGD, lr=0.7, momentum=0.9, nesterov=True)  # the paper's outer optimizer


def deal(sizes: Sequence[int], fragments: int) -> list[range]:
    """Deals tensors to fragments in order, each fragment one run of them of about the same size, none empty.

    A tensor belongs to the fragment in whose share of all numbers its middle lies.

    >>> deal([6, 6, 1, 1, 10], 2)
    [range(0, 2), range(2, 5)]
    """
    ends = list(itertools.accumulate(sizes))
    dealt, low = [], 0
    for fragment in range(fragments):
        share = ends[-1] * (fragment + 1) / fragments
        most = len(sizes) - (fragments - fragment - 1)  # one tensor is left for each fragment to come
        high = low + 1
        while high < most and (fragment == fragments - 1 or ends[high] - sizes[high] / 2 <= share):
            high += 1
        dealt.append(range(low, high))
        low = high
    return dealt


@dataclass(frozen=True)
class _Flight:
    """A fragment whose mean change is on its way: the future is None where it has arrived."""

    fragment: int
    due: int  # the step after which it is merged
    changes: dict[str, Tensor]
    buffers: dict[str, Tensor]
    arrival: Future[None] | None

    def wait(self) -> None:
        if self.arrival is not None:
            self.arrival.wait()


class DiLoCo(LocalUpdates):
    """Workers take `sync_every` steps of their own; an outer optimizer takes their mean change as a gradient.

    With a the model that all workers share, the anchor, the outer optimizer steps from a along average (a - x_i), and
    workers go on from the new a. Inner moments stay local. With ``outer_optimizer=partial(SGD, lr=1.0)`` it is
    LocalSGD. Changes may be compressed, with error feedback.

    In the streaming form the parameters are dealt, in order and by size, to `fragments`; fragment p = 0, 1, ... is
    exchanged after the steps t with t mod sync_every = ((p + 1) sync_every // fragments) mod sync_every, so that the
    exchanges are spread evenly. An exchange begins after its step, on the averager's thread, and training goes on;
    after `delay` more steps the outer step is taken and x_i <- mixing x_i + (1 - mixing) a. An exchange that is not
    through when the next one begins is waited for. The floating-point buffers travel with the last fragment.

    `anchor` is the model that the workers share, by name: what to evaluate and to keep. There is no theorem.

    Parameters
    ----------
    model, optimizer : as of :class:`~laconic.training.local.LocalSGD`; the optimizer is the inner one.
    sync_every : steps between two exchanges of a fragment.
    mechanism : for the changes a - x_i; dense by default.
    outer_optimizer : makes the outer optimizer from a list of parameters; the paper's Nesterov momentum by default.
    fragments : at most as many as there are parameters, and as `sync_every`.
    delay : steps between the beginning of an exchange and its merging, < sync_every.
    mixing : the weight of a worker's own parameters in the merging, in [0, 1); the paper's alpha, 0.5 there for delayed
        exchanges. 0 forgets the steps that were taken meanwhile.
    seed, window, timeout : of the averager.

    Raises
    ------
    ValueError : as of LocalSGD, and numbers out of these ranges.

    Source: Douillard, Feng, Rusu, Chhaparia, Donchev, Kuncoro, Ranzato, Szlam and Shen (2023), 2311.08105, Algorithm 1;
    Douillard and others (2025), 2501.18512, Algorithm 2 (recalled). There fragments are strided layers; here runs of
    parameters of about equal size.

    Examples
    --------
    >>> with DiLoCo(model, optimizer, sync_every=100, fragments=4, delay=5, mixing=0.5) as diloco:  # doctest: +SKIP
    ...     train(model, optimizer)  # the loop as it was, without DDP
    >>> model.load_state_dict(diloco.anchor, strict=False)  # doctest: +SKIP
    """

    left = "what they share is .anchor"

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        *,
        sync_every: int,
        mechanism: Policy | Mechanism | str = DENSE,
        outer_optimizer: Callable[[list[nn.Parameter]], Optimizer] = nesterov,
        fragments: int = 1,
        delay: int = 0,
        mixing: float = 0.0,
        seed: int = 0,
        window: int = 4,
        timeout: float = 60.0,
    ) -> None:
        self.sync_every = at_least("DiLoCo", "sync_every", sync_every, 1)
        self.delay = at_least("DiLoCo", "delay", delay, 0)
        self.mixing = float(mixing)
        at_least("DiLoCo", "fragments", fragments, 1)
        if delay >= sync_every:
            raise ValueError(
                f"DiLoCo(delay={delay}, sync_every={sync_every}) : a fragment must be merged before its next exchange; "
                f"delay must be < {sync_every}"
            )
        if not 0.0 <= mixing < 1.0:
            raise ValueError(f"DiLoCo(mixing={mixing!r}) : it must lie in [0, 1); with 1 nothing would ever be merged")
        sizes = {name: p.numel() for name, p in model.named_parameters() if p.requires_grad}
        if fragments > min(len(sizes), sync_every):
            raise ValueError(
                f"DiLoCo(fragments={fragments}) : the model has {len(sizes)} parameters and sync_every is {sync_every}"
                "; there can be no more fragments than either"
            )
        if fragments > 1 and Policy.of(mechanism).warm_up:
            raise ValueError(
                f"DiLoCo(fragments={fragments}) : a policy's warm-up counts exchanges, and each is of one fragment; "
                "give a policy without warm_up"
            )
        self.fragments = [list(sizes)[run.start : run.stop] for run in deal(list(sizes.values()), fragments)]
        super().__init__(model, optimizer, mechanism, beside={}, seed=seed, window=window, timeout=timeout)
        self.anchor = {name: nn.Parameter(p.detach().clone()) for name, p in self.parameters.items()}
        self.outer = outer_optimizer(list(self.anchor.values()))
        self._flights: list[_Flight] = []
        self._sent = 0  # the averager counts an exchange when its thread begins with it

    def settings(self) -> dict[str, Any]:
        fragments = len(self.fragments)
        return {"sync_every": self.sync_every, "fragments": fragments, "delay": self.delay, "mixing": self.mixing}

    @property
    def exchanges(self) -> int:
        """Begun so far."""
        return self._sent

    @property
    def in_the_air(self) -> int:
        return len(self._flights)

    # ---- the loop ---------------------------------------------------------------------------------------------

    def after_step(self) -> None:
        self._merge(self.steps)
        for fragment in range(len(self.fragments)):
            offset = (fragment + 1) * self.sync_every // len(self.fragments)
            if (self.steps - offset) % self.sync_every == 0:
                self._send(fragment)
        self._merge(self.steps)

    def _send(self, fragment: int) -> None:
        """Begins the exchange of a fragment."""
        changes = {name: self.anchor[name].detach() - self.parameters[name] for name in self.fragments[fragment]}
        last = fragment == len(self.fragments) - 1
        buffers = {name: buffer.clone() for name, buffer in self.buffers.items()} if last else {}
        arrival = self.averager.start({**changes, **buffers})
        self._sent += 1
        self._flights.append(_Flight(fragment, self.steps + self.delay, changes, buffers, arrival))

    def _merge(self, now: int) -> None:
        """Takes the outer step of the fragments that are due, in the order in which they left."""
        while self._flights and self._flights[0].due <= now:
            flight = self._flights[0]
            flight.wait()
            for name, change in flight.changes.items():
                self.anchor[name].grad = change
            self.outer.step()  # passes over parameters without a gradient, those of other fragments
            for name in flight.changes:
                anchor, p = self.anchor[name], self.parameters[name]
                anchor.grad = None
                if self.mixing == 0.0:
                    p.copy_(anchor)
                else:
                    p.lerp_(anchor, 1.0 - self.mixing)
            copy_into({name: self.buffers[name] for name in flight.buffers}, flight.buffers)
            del self._flights[0]
            if len(self.fragments) == 1 and self.mixing == 0.0:
                self._synced_at = now

    def finish(self) -> None:
        """Merges at once what is in the air."""
        if self._flights:
            with torch.no_grad():
                self._merge(self._flights[-1].due)

    # ---- state ------------------------------------------------------------------------------------------------

    def own_state(self) -> dict[str, Any]:
        for flight in self._flights:  # what is in the air arrives; it is merged when it is due
            flight.wait()
        flights = [
            {"fragment": flight.fragment, "due": flight.due, "changes": flight.changes, "buffers": flight.buffers}
            for flight in self._flights
        ]
        anchor = {name: anchor.detach() for name, anchor in self.anchor.items()}
        return {"anchor": anchor, "outer": self.outer.state_dict(), "flights": flights}

    def load_own_state(self, state: Mapping[str, Any]) -> None:
        self._forget()
        copy_into(self.anchor, state["anchor"])
        self.outer.load_state_dict(state["outer"])
        self._sent = self.averager.steps
        self._flights = [_Flight(**flight, arrival=None) for flight in state["flights"]]

    def _forget(self) -> None:
        """Lets what is in the air arrive, and forgets it."""
        for flight in self._flights:
            flight.wait()
        self._flights = []
