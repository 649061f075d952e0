"""The averager: named tensors of n processes become their averages, each by its own mechanism."""

from __future__ import annotations

import dataclasses
import datetime
import hashlib
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar, cast

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor
from torch.futures import Future, collect_all

from laconic.core.estimator import Probe
from laconic.core.flight import together
from laconic.core.floats import finite, wide
from laconic.core.ledger import Ledger
from laconic.core.link import Link
from laconic.core.mechanism import Mechanism
from laconic.runtime.process_group import ProcessGroup
from laconic.runtime.routes import Cheapest, Routes
from laconic.training import state as states
from laconic.training.conductor import Conductor
from laconic.training.meter import Sampler, Step
from laconic.training.nonfinite import NonFinite, NotFinite, Skip
from laconic.training.notices import announce
from laconic.training.policy import DENSE, Plan, Policy, dense_share, mechanism_of

DTYPES = (torch.float64, torch.float32, torch.bfloat16)
SMALL = 1 << 16  # numbers of a dense tensor that travels joined with others of its bucket
BUCKET = 25 << 20  # bytes of tensors that travel together where the caller does not say, as of DDP
R = TypeVar("R")


class Averager:
    """n processes, each one worker, with tensors of the same names and shapes: a step overwrites them with averages.

    Tensors are handed in bucket by bucket. The messages of a bucket travel together, on a group and a thread of the
    averager's own, while the caller goes on; the order of buckets must be the same on every process. Memory is kept by
    the tensors' names. A step in which a worker's numbers are not finite changes no memory of the buckets concerned.

    Parameters
    ----------
    named : tensors (or parameters) on the CPU with the names, shapes and dtypes of what will be averaged. Narrow
        floats are averaged in float32.
    policy : which mechanism averages which tensor; a mechanism or its spec is the default policy around it.
    seed : of the mechanisms' randomness.
    window : buckets in flight at most.
    timeout : seconds after which a collective that does not complete is an error.
    non_finite : what to do where gradients are not finite.
    sample_every : steps between measurements of residual, contraction and norm; 0 for none. They cost a few passes.
    routes : which collectives are used; None is `Cheapest()`, by sizes and the number of processes.

    Raises
    ------
    ValueError : what the policy refuses; tensors elsewhere or in another dtype; processes with another policy, other
        tensors, another seed or window (told at once, on all of them).

    Attributes
    ----------
    memory : what the mechanisms keep, by name. Not to be touched during a step.
    steps : begun so far; the address of their randomness.
    listeners : called with the :class:`Step` at the end of each, on the averager's thread, in order. What they raise
        reaches the next step.

    >>> averager = Averager(dict(net.named_parameters()), "ef14(topk(k=0.01))")  # doctest: +SKIP
    >>> averager.average({name: p.grad for name, p in net.named_parameters()})  # doctest: +SKIP
    """

    def __init__(
        self, named: Mapping[str, Tensor], policy: Policy | Mechanism | str, *, seed: int = 0, window: int = 4,
        timeout: float = 60.0, non_finite: NonFinite | None = None, sample_every: int = 0, routes: Routes | None = None,
    ) -> None:  # fmt: skip
        if not dist.is_initialized():
            raise ValueError("Averager : torch.distributed is not initialised; call init_process_group('gloo') first")
        for name, tensor in named.items():
            if tensor.device.type != "cpu" or tensor.dtype not in DTYPES:
                raise ValueError(
                    f"Averager : {name!r} is {tensor.dtype} on {tensor.device}; it must be float64, float32 or "
                    "bfloat16 on the CPU"
                )
        self.policy = Policy.of(policy)
        self.shapes = {name: tuple(tensor.shape) for name, tensor in named.items()}
        self.dtypes = {name: wide(tensor.dtype) for name, tensor in named.items()}
        self.memory: dict[str, Any] = {}
        self.steps = 0
        self.listeners: list[Callable[[Step], None]] = []
        self.sample_every = sample_every
        self.seed = seed
        self._non_finite = non_finite or Skip()
        self._units: Callable[[], float] | None = None
        self._dense = 0
        n = dist.get_world_size()
        _refuse_debts(self.policy)
        self._plain = mechanism_of(DENSE, "")
        self._small = {name for name, tensor in named.items() if tensor.numel() <= SMALL}
        self.plans = {name: self.policy.plan(name, shape, n) for name, shape in self.shapes.items()}
        group = cast(dist.ProcessGroup, dist.new_group(timeout=datetime.timedelta(seconds=timeout)))
        self.runtime = ProcessGroup(n, seed=seed, group=group, routes=routes or Cheapest())
        self.rank, self.world = self.runtime.rank, n
        self._conductor = Conductor(self.runtime, window, self._ended)
        self._sampler: Sampler | None = None
        self._skipped = 0
        self._counted = (0, 0, 0)
        self._agree(window)
        text = dense_share(self.policy, dict(named))
        if text is not None and self.world > 1:
            announce(text)

    @property
    def collectives(self) -> dict[str, int]:
        """How many flights there were by what carried them: "all-reduce", "all-gather", "two stages"."""
        return {name: count for name, count in self.runtime.issued.items() if count}

    @property
    def ledger(self) -> Ledger:
        """The bytes said so far."""
        return self.runtime.ledger

    @property
    def failure(self) -> Exception | None:
        """What has gone wrong for good, if something has; futures only tell it as text."""
        return self._conductor.failure

    def scaled_by(self, units: Callable[[], float]) -> None:
        """From now on tensors come multiplied by `units()`, as a GradScaler's gradients do; memory is without it."""
        self._units = units

    # ---- a step -----------------------------------------------------------------------------------------------

    def submit(
        self, names: Sequence[str], tensors: Sequence[Tensor], *, first: bool, last: bool, result: R = None,
        probes: Mapping[str, Probe] | None = None,
    ) -> Future[R]:  # fmt: skip
        """Hands in a bucket of the step; the future gives `result` once the tensors hold their averages.

        Parameters
        ----------
        names, tensors : of the bucket; the tensors are overwritten, and are not to be touched before that.
        first, last : whether the step begins and ends with it.
        probes : by name, for mechanisms that need one; called on the averager's thread.
        """
        if first:
            self.wait()  # for the listeners of the step before
            self._conductor.meter.restart()
        future = self._conductor.submit(self._bucket(names, tensors, first, result, probes or {}), last)
        if last:
            self._conductor.meter.handed_in()
        return future

    def start(self, tensors: Mapping[str, Tensor], probes: Mapping[str, Probe] | None = None) -> Future[None]:
        """A whole step at once, in place; the future is done when it is."""
        buckets = _buckets(tensors)
        futures = [
            self.submit(
                bucket, [tensors[name] for name in bucket], first=place == 0, last=place == len(buckets) - 1,
                probes=probes,
            )
            for place, bucket in enumerate(buckets)
        ]  # fmt: skip
        return futures[0] if len(futures) == 1 else collect_all(futures).then(_raise_the_first)

    def average(self, tensors: Mapping[str, Tensor]) -> None:
        """A whole step at once, in place."""
        self.start(tensors).wait()

    def wait(self) -> None:
        """Waits until the step in hand, if there is one, has ended and the listeners have heard of it."""
        self._conductor.idle.wait()

    async def _bucket(
        self, names: Sequence[str], tensors: Sequence[Tensor], first: bool, result: R, probes: Mapping[str, Probe]
    ) -> R:
        """The text of a bucket: what its tensors say travels together."""
        link = self.runtime.links[0]
        if first:  # no text of the step before is left: who hands tensors in waits for all of them
            link.begin(self.steps)
            self._begin()
        self._dense += 4 * sum(tensor.numel() for tensor in tensors)
        units = 1.0 if self._units is None else self._units()
        if units != 1.0:
            for tensor in tensors:
                tensor.div_(units)
        flags = torch.zeros(1, self.world, dtype=wide(tensors[0].dtype))
        joined = [place for place, name in enumerate(names) if self._is_small_and_dense(name)]
        alone = [place for place in range(len(names)) if place not in joined]
        parts = [self._average(names[i], tensors[i], probes.get(names[i]), flags, i + 1) for i in alone]
        if joined:
            parts.append(self._average_joined(names[joined[0]], [tensors[i] for i in joined], flags, joined))
        try:
            await together(self._all_finite(link.scope(names[0]), flags), *parts)
        except NotFinite as found:
            self._skipped += 1
            self._non_finite.met(found, names, tensors, self.steps - 1, self._units is not None)
            return result
        if units != 1.0:
            for tensor in tensors:
                tensor.mul_(units)
        return result

    def _begin(self) -> None:
        self.steps += 1
        sampled = self.sample_every > 0 and (self.steps - 1) % self.sample_every == 0
        self._sampler = Sampler() if sampled else None
        self.runtime.links[0].observe(None if self._sampler is None else self._sampler.sent)
        self._skipped = self._dense = 0

    async def _average(self, name: str, tensor: Tensor, probe: Probe | None, flags: Tensor, place: int) -> None:
        """One tensor of a bucket; flags its place there where it holds what is not finite."""
        v = tensor.detach()[None].to(self.dtypes[name]).contiguous()  # channels may have been last
        if not finite(v):  # just before it is compressed, so that it is read from memory once
            flags[0, self.rank] = place
            v = torch.zeros_like(v)  # what is said of it is thrown away
        await self._exchange(name, v, probe)
        if v.data_ptr() != tensor.data_ptr():
            tensor.copy_(v[0])

    def _is_small_and_dense(self, name: str) -> bool:
        return name in self._small and self.plans[name].at(self.steps - 1) == self._plain

    async def _average_joined(self, name: str, tensors: list[Tensor], flags: Tensor, places: list[int]) -> None:
        """The small dense tensors of a bucket as one vector: each by itself would cost more time than its bytes do."""
        flat = torch.cat([tensor.detach().reshape(-1) for tensor in tensors]).to(self.dtypes[name])
        if not finite(flat):
            bad = (place for place, tensor in zip(places, tensors, strict=True) if not finite(tensor.detach()))
            flags[0, self.rank] = next(bad) + 1
            flat.zero_()
        if self._sampler is not None:
            self._sampler.handed(flat)
        mean, _ = await self._plain.exchange(flat[None], None, self.runtime.links[0].scope(name))
        for tensor, piece in zip(tensors, mean.split([tensor.numel() for tensor in tensors]), strict=True):
            tensor.copy_(piece.view_as(tensor))

    async def _all_finite(self, link: Link, flags: Tensor) -> None:
        """Tells everyone whose numbers are not finite. Raises NotFinite, on all processes, where some are not.

        It has to hear of it before the other texts of the bucket do, since it ends them, and so it speaks before them:
        what it says is written into `flags` by those that come after it, in the same flight.
        """
        found = await link.all_reduce(flags)
        if bool((found != 0).any()):
            places = (found * self.world).round().to(torch.int64).tolist()
            raise NotFinite({worker: place - 1 for worker, place in enumerate(places) if place})

    async def _exchange(self, name: str, v: Tensor, probe: Probe | None = None) -> None:
        """v (1, *shape) becomes the estimate."""
        plan, link, step = self.plans[name], self.runtime.links[0].scope(name), self.steps - 1
        mechanism = plan.at(step)
        if self._sampler is not None:
            self._sampler.handed(v)
        if name in self.memory and not self._starts_anew(plan, step):
            memory = await mechanism.overwrite(v, self.memory[name], link, probe)
        else:
            estimate, memory = await mechanism.init(v, link, probe)
            v[0].copy_(estimate)
        self.memory[name] = memory
        if self._sampler is not None:
            self._sampler.kept(name, memory)

    @staticmethod
    def _starts_anew(plan: Plan, step: int) -> bool:
        """Whether a step is the first of a stage whose mechanism cannot go on with the memory of the one before."""
        return step > 0 and type(plan.at(step)) is not type(plan.at(step - 1))

    def _ended(self) -> None:
        """On the conductor's thread: all buckets of the step have their averages."""
        ledger, meter, sampler = self.ledger, self._conductor.meter, self._sampler
        transport = ledger.transport
        now = (
            int(ledger.uplink[self.rank]),
            int(ledger.downlink[self.rank]),
            transport.payload + transport.framing,
        )
        up, down, sent = (new - old for new, old in zip(now, self._counted, strict=True))
        self._counted = now
        step = Step(
            self.steps - 1, up, down, self._dense, sent, meter.compress, meter.communicate, meter.decode,
            meter.exposed, meter.hidden, skipped=self._skipped,
        )  # fmt: skip
        if sampler is not None:
            step = dataclasses.replace(
                step, residual=sampler.residual, contraction=sampler.contraction, norm=sampler.norm
            )
        for listener in self.listeners:
            listener(step)

    # ---- agreement, state, end ----------------------------------------------------------------------------------

    def _agree(self, window: int) -> None:
        """Compares what the processes were given. Raises ValueError on all of them where it differs."""
        given = {
            "policy": str(self.policy),
            "tensors": str(self.shapes),
            "seed": str(self.seed),
            "window": str(window),
        }
        digests = [hashlib.blake2b(text.encode(), digest_size=7).digest() for text in given.values()]
        mine = torch.tensor([[int.from_bytes(digest, "little") for digest in digests]], dtype=torch.int64)
        (everyone,) = self.runtime.drive(self._look(mine))
        differ = (everyone != everyone[0]).numpy()
        if differ.any():
            what = [name for name, column in zip(given, differ.T, strict=True) if column.any()]
            ranks = np.flatnonzero(differ.any(axis=1)).tolist()
            self._conductor.close()
            raise ValueError(
                f"rank {self.rank} : ranks {ranks} were given another {' and another '.join(what)} than rank 0; "
                f"here it is {', '.join(given[name][:200] for name in what)}"
            )

    async def _look(self, rows: Tensor) -> Tensor:
        return await self.runtime.links[0].look(rows)

    def state_dict(self) -> dict[str, Any]:
        """This process' part of the state: tensors, numbers and text. See :mod:`laconic.training.state`."""
        self.wait()
        return states.part(self)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on from a state. Raises ValueError, one line, where it is not one of this run's kind."""
        self.wait()
        states.load(self, state)
        transport = self.ledger.transport
        self._counted = (
            int(self.ledger.uplink[self.rank]), int(self.ledger.downlink[self.rank]),
            transport.payload + transport.framing,
        )  # fmt: skip

    def close(self) -> None:
        """Ends the thread."""
        self._conductor.close()


def _refuse_debts(policy: Policy) -> None:
    """Raises ValueError where a stage of a warm-up leaves a memory that the next one does not take over."""
    given = [*(mechanism for _, mechanism in policy.warm_up), policy.mechanism]
    for one, following in itertools.pairwise(given):
        assert isinstance(one, Mechanism)
        if type(one) is not type(following) and not states.stateless(one):
            raise ValueError(
                f"Policy(warm_up=...) : what {one} keeps would be lost when {following} follows; a stage is dense or "
                "of the kind of mechanism that follows it"
            )


def _buckets(tensors: Mapping[str, Tensor]) -> list[list[str]]:
    """The names in order, in runs of at most BUCKET bytes, so that one is compressed while another travels."""
    runs: list[list[str]] = [[]]
    size = 0
    for name, tensor in tensors.items():
        size += tensor.numel() * tensor.element_size()
        if runs[-1] and size > BUCKET:
            runs.append([])
            size = tensor.numel() * tensor.element_size()
        runs[-1].append(name)
    return runs


def _raise_the_first(done: Future[list[Future[None]]]) -> None:
    for future in done.value():
        future.value()
