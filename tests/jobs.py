"""What the processes of worlds.py can be asked to do on problems, and the loop in which they wait for it.

`solve` and `exchange` are also called by the tests themselves, on the simulator, for what must come out.
"""

from __future__ import annotations

import contextlib
import datetime
import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from typer.testing import CliRunner

from laconic.cli import app
from laconic.core.flight import Flight, together
from laconic.core.keys import Keys
from laconic.core.mechanism import Mechanism
from laconic.core.problem import Block, Problem
from laconic.core.spec import parse
from laconic.core.theory import Setting
from laconic.lab.run import processes, run
from laconic.problems.custom import Custom
from laconic.runtime import carrier
from laconic.runtime.base import Runtime
from laconic.runtime.process_group import Pending, ProcessGroup

# ---- the same on the simulator and over processes ---------------------------------------------------------------


def sha(x: Tensor) -> str:
    """Of the bytes of a tensor."""
    return hashlib.sha256(x.contiguous().numpy().tobytes()).hexdigest()


def account(runtime: Runtime) -> dict[str, Any]:
    """What the ledger says, as JSON."""
    ledger = runtime.ledger
    return {
        "uplink": ledger.uplink.tolist(), "downlink": ledger.downlink.tolist(), "rounds": ledger.rounds,
        "messages": [ledger.messages_up, ledger.messages_down],
        "payload": ledger.transport.payload, "framing": ledger.transport.framing,
    }  # fmt: skip


def solve(
    problem: Problem, spec: str, runtime: Runtime, iterations: int, data_dir: Path | None = None
) -> dict[str, Any]:
    """Runs a method on one link: x's hash, the ledger, and how many gradient terms the workers here were asked for."""
    link = runtime.links[0]
    oracles = problem.host(link.block, data_dir)
    method: Any = parse(spec)
    if isinstance(method, Mechanism):
        method = type(parse("gd"))(method)  # type: ignore[call-arg]
    terms = (10, 100)  # only the rate of a variance-reduced method would lean on them
    setting = Setting.of(problem, oracles, terms, data_dir)
    method = method.settled(setting)
    link.begin(0)
    (state,) = runtime.drive(method.init(oracles, link))
    for step in range(1, iterations + 1):
        link.begin(step)
        (state,) = runtime.drive(method.iterate(state, oracles, link))
    x = method.point(state)
    return {
        "x": sha(x),
        "values": x.flatten()[:50].tolist(),
        "finite": bool(torch.isfinite(x).all()),
        "calls": oracles.calls.gradient_terms,
        **account(runtime),
    }


def drawn(link_block: Block, name: str, step: int, shape: Sequence[int]) -> Tensor:
    """Some vectors of the local workers, (local, *shape), the same for a worker wherever it lives."""
    keys = Keys(7, step, name, link_block.workers, link_block.n)
    return keys.normal(int(np.prod(shape))).view(link_block.size, *shape)


def exchange(specs: dict[str, tuple[str, Sequence[int]]], runtime: Runtime, steps: int) -> dict[str, Any]:
    """Several mechanisms, each with a shape, whose messages travel together: their last estimates and hashes."""
    link = runtime.links[0]
    mechanisms: dict[str, Any] = {name: parse(spec) for name, (spec, _) in specs.items()}

    async def init() -> list[Any]:
        return await together(*[
            mechanisms[name].init(drawn(link.block, name, 0, shape), link.scope(name))
            for name, (_, shape) in specs.items()
        ])  # fmt: skip

    async def again(step: int, memories: list[Any]) -> list[Any]:
        return await together(*[
            mechanisms[name].exchange(drawn(link.block, name, step, shape), memory, link.scope(name))
            for (name, (_, shape)), memory in zip(specs.items(), memories, strict=True)
        ])  # fmt: skip

    link.begin(0)
    (pairs,) = runtime.drive(init())
    for step in range(1, steps + 1):
        link.begin(step)
        (pairs,) = runtime.drive(again(step, [memory for _, memory in pairs]))
    estimates = {name: estimate for name, (estimate, _) in zip(specs, pairs, strict=True)}
    return {
        "x": {name: sha(estimate) for name, estimate in estimates.items()},
        "values": {name: estimate.flatten()[:50].tolist() for name, estimate in estimates.items()},
        **account(runtime),
    }


def small_rows(workers: int) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """A small two-class problem, uneven over its workers: rows and labels of each."""
    generator = np.random.default_rng(5)
    counts = [4 + i % 3 for i in range(workers)]
    rows = [generator.normal(size=(count, 7)) for count in counts]
    labels = [
        np.where(generator.normal(size=count) + matrix[:, 0] > 0.0, 1.0, -1.0)
        for count, matrix in zip(counts, rows, strict=True)
    ]
    return rows, labels


def small_problem(workers: int, block: Block | None = None, server_too: bool = False) -> Problem:
    """The problem of `small_rows`; with a block, other workers' numbers are NaN (but worker 0's, if `server_too`)."""
    rows, labels = small_rows(workers)
    whole = Custom.from_arrays(rows, labels, l2=0.05)
    if block is None:
        return whole
    for i in range(workers):
        if not block.low <= i < block.high and not (i == 0 and server_too):
            rows[i] = np.full_like(rows[i], np.nan)
    return Custom.from_arrays(rows, labels, l2=0.05, constants=whole.constants(), solution=whole.solution())


# ---- over processes ---------------------------------------------------------------------------------------------


class Meter:
    """The real tensors handed to `torch.distributed`: numel x itemsize. What is not watched is out of bounds."""

    # the operation and which argument leaves
    counted = {"all_gather": 1, "all_reduce": 0, "broadcast": 0, "send": 0, "isend": 0}
    forbidden = (
        "all_gather_coalesced", "all_gather_into_tensor", "all_gather_object", "all_reduce_coalesced", "all_to_all",
        "all_to_all_single", "batch_isend_irecv", "broadcast_object_list", "gather", "gather_object", "reduce",
        "reduce_scatter", "reduce_scatter_tensor", "scatter", "scatter_object_list", "send_object_list",
    )  # fmt: skip

    def __init__(self) -> None:
        self.handed = 0
        self.operations: list[tuple[str, int]] = []

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        names = [*self.counted, *(name for name in self.forbidden if hasattr(dist, name))]
        before = {name: getattr(dist, name) for name in names}
        try:
            for name in names:
                setattr(dist, name, self._wrapped(name, before[name]) if name in self.counted else self._refused(name))
            yield
        finally:
            for name, function in before.items():
                setattr(dist, name, function)

    def _wrapped(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **keywords: Any) -> Any:
            tensor = arguments[self.counted[name]]
            if name != "broadcast" or arguments[1] == dist.get_rank():
                self.handed += tensor.numel() * tensor.element_size()
            self.operations.append((name, tensor.numel()))
            return function(*arguments, **keywords)

        return call

    def _refused(self, name: str) -> Callable[..., Any]:
        def call(*arguments: Any, **keywords: Any) -> Any:
            raise AssertionError(f"torch.distributed.{name} is not metered")

        return call


def metered(act: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    meter = Meter()
    with meter.watching():
        found = act()
    return {**found, "handed": meter.handed, "operations": len(meter.operations)}


def job_solve(problem: str, spec: str, iterations: int, data_dir: str | None = None, **options: Any) -> dict[str, Any]:
    """`solve` over the processes of this world."""
    asked: Any = parse(problem)
    runtime = ProcessGroup(asked.n, **options)
    return metered(lambda: solve(asked, spec, runtime, iterations, data_dir and Path(data_dir)))


def job_solve_own_rows(workers: int, spec: str, iterations: int, server_too: bool, **options: Any) -> dict[str, Any]:
    """`solve` where this process has NaN for the rows of all workers but its own."""
    runtime = ProcessGroup(workers, **options)
    block = runtime.links[0].block
    problem = small_problem(workers, block, server_too)
    whole = small_problem(workers).dealt()  # type: ignore[attr-defined]
    here = problem.dealt()  # type: ignore[attr-defined]
    hidden = float(np.isnan(here.values).mean())
    assert here.values.shape == whole.values.shape
    return {**metered(lambda: solve(problem, spec, runtime, iterations)), "hidden": hidden}


def job_exchange(specs: dict[str, Any], workers: int, steps: int, **options: Any) -> dict[str, Any]:
    """`exchange` over the processes of this world."""
    runtime = ProcessGroup(workers, **options)
    return metered(lambda: exchange(specs, runtime, steps))


class Struck(ProcessGroup):
    """A process group in which something happens to one rank before its k-th flight."""

    def __init__(self, n: int, rank: int, flight: int, happens: Callable[[], None], **options: Any) -> None:
        super().__init__(n, **options)
        self._left = flight if self.rank == rank else -1
        self._happens = happens
        self.began = time.monotonic()  # the latest flight

    def begin(self, flight: Flight) -> Pending:
        self.began = time.monotonic()
        if self._left == 0:
            self._happens()
        self._left -= 1
        return super().begin(flight)


def job_struck(rank: int, flight: int, how: str, star: bool) -> dict[str, Any]:
    """Rank `rank` dies, or sleeps beyond every timeout, before its k-th flight; how long the others took to notice."""
    fates = {"dies": lambda: os._exit(3), "sleeps": lambda: time.sleep(6.0)}
    runtime = Struck(6, rank, flight, fates[how], star=star)
    try:
        solve(small_problem(6), "ef21(topk(k=2))", runtime, 10_000)
    except Exception as failure:
        seconds = time.monotonic() - runtime.began
        return {
            "error": type(failure).__name__,
            "message": str(failure),
            "seconds": seconds,
            "rounds": runtime.ledger.rounds,
        }
    raise AssertionError("it ended")


def corrupt_header(row: Tensor) -> None:
    row[:8] = 255  # a length of -1


def corrupt_length(row: Tensor) -> None:
    row[:8] = torch.tensor([0, 0, 0, 0, 0, 0, 1, 0], dtype=torch.uint8)  # a length of 2^48


def corrupt_too_short(row: Tensor) -> None:
    row[:8] = torch.tensor([3, 0, 0, 0, 0, 0, 0, 0], dtype=torch.uint8)  # cut in the middle of a row's length


def corrupt_row_length(row: Tensor) -> None:
    row[8:12] = 255  # of the first row: 2^32 - 1 bytes


def corrupt_flag(row: Tensor) -> None:
    row[8] = 7  # of the first worker


def corrupt_body(row: Tensor) -> None:
    row[8 + 12 :] = 255  # after the lengths of three workers: indices that cannot be, padding that is not zero


def corrupt_longer(row: Tensor) -> None:
    row[0] += 5  # bytes that nothing explains


CORRUPTIONS: dict[str, Callable[[Tensor], None]] = {
    name.removeprefix("corrupt_"): value for name, value in list(globals().items()) if name.startswith("corrupt_")
}


def job_corrupted(how: str, spec: str) -> dict[str, Any]:
    """Rank 1 sends bytes that cannot be; what the others say to it, and whether rank 1 itself would have gone on."""
    runtime = ProcessGroup(6)
    genuine, done = carrier.gather, []

    def gather(rows: list[Tensor], row: Tensor, group: Any) -> Any:
        if runtime.rank == 1 and runtime.ledger.rounds == 2 and not done:
            done.append(CORRUPTIONS[how](row))
        return genuine(rows, row, group)

    carrier.gather = gather
    try:
        return solve(small_problem(6), spec, runtime, 2)
    finally:
        carrier.gather = genuine


# ---- what a user calls -----------------------------------------------------------------------------------------


def job_run(problem: str, methods: list[str], rounds: int, every: int, out: str) -> None:
    """Runs methods on these processes, with checkpoints all the time."""
    run(problem, methods, rounds=rounds, every=every, out=out, save_every=0.05, runtime=processes)


def job_command(arguments: list[str]) -> str:
    """What a command prints where torchrun has started these processes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RANK", str(dist.get_rank()))
        patch.setenv("WORLD_SIZE", str(dist.get_world_size()))
        done = CliRunner().invoke(app, arguments)
    if done.exception is not None:
        raise done.exception
    return done.stdout


# ---- the loop ---------------------------------------------------------------------------------------------------


class Membership:
    """The group this process is in: it stays in it from job to job, and leaves it for another or when a job fails."""

    def __init__(self) -> None:
        self._group: dict[str, Any] | None = None

    def enter(self, group: dict[str, Any]) -> None:
        """Is in this group from now on: its store's file, the rank in it, its size and its timeout in seconds."""
        if group == self._group:
            return
        self.leave()
        store = dist.FileStore(group["store"], group["world"])
        limit = datetime.timedelta(seconds=group["limit"])
        dist.init_process_group("gloo", store=store, rank=group["rank"], world_size=group["world"], timeout=limit)
        self._group = group

    def leave(self) -> None:
        """Is in no group."""
        self._group = None
        if dist.is_initialized():
            dist.destroy_process_group()


def serve(pipe: Connection, jobs: dict[str, Callable[..., Any]]) -> None:
    """Answers requests until there are no more. What anybody prints goes to standard error."""
    os.dup2(2, 1)
    pipe.send_bytes(json.dumps({"ready": True}).encode())
    membership = Membership()
    while True:
        try:
            request = json.loads(pipe.recv_bytes())
        except EOFError:
            return
        try:
            membership.enter(request["group"])
            reply = {"result": jobs[request["job"]](**request["arguments"])}
        except Exception as failure:
            membership.leave()
            reply = {"error": type(failure).__name__, "message": str(failure)}
        pipe.send_bytes(json.dumps(reply).encode())
