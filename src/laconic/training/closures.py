"""Closures: gradients at other points on the same minibatch, and everything that this moves is put back."""

from __future__ import annotations

import contextlib
import queue
from collections.abc import Callable, Iterator
from concurrent.futures import Future as Box
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.futures import Future

from laconic.core.estimator import Probe
from laconic.training.joined import Joined

Closure = Callable[[], Any]


@dataclass
class Evaluations:
    """How often the gradient was computed on this process.

    plain : at the model, one in each step; a step without a closure counts as one.
    probe : on the same minibatch at another point.
    full : over all local data.
    server : on the data that stand for the server's.
    """

    plain: int = 0
    probe: int = 0
    full: int = 0
    server: int = 0

    @property
    def total(self) -> int:
        """All of them."""
        return self.plain + self.probe + self.full + self.server


class Desk:
    """Lets another thread have things done on this one, where the user's code expects to be."""

    def __init__(self) -> None:
        self._requests: queue.SimpleQueue[tuple[Callable[[], Any], Box[Any]] | None] = queue.SimpleQueue()

    def ask(self, act: Callable[[], Any]) -> Any:
        """From the other thread: has it done, and waits for its result."""
        box: Box[Any] = Box()
        self._requests.put((act, box))
        return box.result()

    def serve(self, done: Future[Any]) -> None:
        """Does what is asked until a future is done. Raises what an act raised, else what the future did."""
        done.add_done_callback(lambda _: self._requests.put(None))
        failure: BaseException | None = None
        while (request := self._requests.get()) is not None:
            act, box = request
            try:
                box.set_result(act())
            except BaseException as raised:
                failure = failure or raised
                box.set_exception(raised)
        if failure is not None:
            raise failure
        done.wait()


class Minibatch:
    """A step's closures: calls them, and counts.

    What a closure moves besides its result, at whatever point, is put back afterwards: parameters, gradients, the
    model's buffers (the running statistics of a normalisation, say), and torch's random state, which every evaluation
    finds as the first one did, so that dropout has the same masks; `server` finds one that all processes share.
    Randomness of other libraries, and what else a closure may change, is its own affair.

    Parameters
    ----------
    model, joined : the model, and those of its parameters that the points are made of.
    evaluations : where they are counted.
    closure, full, server : compute a loss and its gradients: on the minibatch, on all local data, on the server's.
    shared : the seed of the random state that `server` finds, the same on all processes.
    """

    def __init__(
        self, model: nn.Module, joined: Joined, evaluations: Evaluations, closure: Closure, full: Closure | None,
        server: Closure | None, shared: int,
    ) -> None:  # fmt: skip
        self._model, self._joined, self._evaluations = model, joined, evaluations
        self._closure, self._full, self._server = closure, full, server
        self._random, self._shared = torch.get_rng_state(), shared

    def probe(self, desk: Desk) -> Probe:
        """The probe at the parameters as they are; its calls are made at the desk."""
        at = self._joined.look()
        return Probe(
            at,
            lambda x: desk.ask(lambda: self._same(x)),
            lambda x: desk.ask(lambda: self._over_all(x)),
            lambda x: desk.ask(lambda: self._of_server(x)),
        )

    def _same(self, x: Tensor) -> Tensor:
        self._evaluations.probe += 1
        return self._gradients(x, self._closure, self._random)

    def _over_all(self, x: Tensor) -> Tensor:
        if self._full is None:
            raise ValueError("step() : the mechanism needs gradients over all local data; give step(closure, full=...)")
        self._evaluations.full += 1
        return self._gradients(x, self._full, self._random)

    def _of_server(self, x: Tensor) -> Tensor:
        if self._server is None:
            raise ValueError(
                "step() : the mechanism needs a minibatch that all processes have; give step(closure, server=...)"
            )
        self._evaluations.server += 1
        generator = torch.Generator()
        generator.manual_seed(self._shared)
        return self._gradients(x, self._server, generator.get_state())[0]

    def _gradients(self, x: Tensor, closure: Closure, random: Tensor) -> Tensor:
        """The gradients (1, d) that a closure finds at x."""
        with _put_back(self._model), torch.enable_grad():
            torch.set_rng_state(random)
            try:
                self._joined.move(x)
                closure()
                return self._joined.gradients()[None]
            finally:
                self._joined.move(self._joined.point)


@contextlib.contextmanager
def _put_back(model: nn.Module) -> Iterator[None]:
    """Inside, gradients are none; afterwards gradients, buffers and torch's random state are as they were."""
    gradients = [(parameter, parameter.grad) for parameter in model.parameters()]
    buffers = [
        (module, name, buffer, buffer.clone())
        for module in model.modules()
        for name, buffer in module.named_buffers(recurse=False)
    ]
    with torch.random.fork_rng(devices=[]):
        try:
            for parameter, _ in gradients:
                parameter.grad = None
            yield
        finally:
            for parameter, gradient in gradients:
                parameter.grad = gradient
            with torch.no_grad():
                for module, name, buffer, before in buffers:
                    buffer.copy_(before)
                    module._buffers[name] = buffer
