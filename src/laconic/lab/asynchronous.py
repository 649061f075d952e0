"""A real asynchronous run: settled as any run, by this process' part in it, with what the server leaves behind."""

from __future__ import annotations

import atexit
import datetime
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch.distributed as dist
from torch import Tensor

from laconic.core.method import Method
from laconic.core.problem import Block, Oracles, Problem
from laconic.core.theory import Setting
from laconic.lab.plan import Limits, plan
from laconic.runtime.asynchronous import Served, Serving, serve, work
from laconic.runtime.process_group import leave


@dataclass(frozen=True)
class Recording:
    """What a real run leaves: x (*shape), and the method that follows it in the simulator, to the same bits."""

    x: Tensor
    served: Served
    replay: str

    def document(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        ledger = self.served.ledger
        return {
            "replay": self.replay,
            "x_sha256": hashlib.sha256(self.x.contiguous().numpy().tobytes()).hexdigest(),
            "steps": ledger.rounds,
            "lost": [{"worker": worker, "after_steps": step} for worker, step in self.served.lost],
            "uplink_bytes": ledger.uplink.tolist(),
            "downlink_bytes": ledger.downlink.tolist(),
        }


def asynchronous(
    problem: str | Problem,
    method: str | Method,
    steps: int,
    *,
    seed: int = 0,
    needs: int | None = None,
    out: str | Path | None = None,
    timeout: float = 600.0,
    data_dir: str | Path | None = None,
) -> Recording | None:
    """This process' part in a real asynchronous run, started by `torchrun`: one process more than there are workers.

    The first process is the server and gets a recording; the others work for it and get None.

    Parameters
    ----------
    problem, method : as in `laconic.run`; the method is an asynchronous one. Its delays are real here.
    steps : of the server.
    seed : of the method's draws.
    needs : how many living workers the server goes on with when one dies; None needs all of them.
    out : a file for the recording, as JSON.
    timeout : seconds that one gradient may take.
    data_dir : where LIBSVM files are; else the environment's LACONIC_DATA.

    Raises
    ------
    ValueError : in one line, for anything that cannot be run.
    NetworkFailure : in one line, where too few workers are left.
    """
    what = plan(problem, method, limits=Limits.make(None, steps, None, None), data_dir=data_dir)
    asked, folder = what.problem, what.data_dir
    if len(what.methods) != 1:
        raise ValueError("a real asynchronous run is of one method")
    ready = _settled(asked, what.methods[0].method, folder)
    if not dist.is_initialized():
        dist.init_process_group("gloo", timeout=datetime.timedelta(seconds=timeout))
        atexit.register(leave)
    rank = dist.get_rank()
    block = Block(rank - 1, rank, asked.n) if 0 < rank <= asked.n else Block(0, 0, asked.n)
    oracles = asked.host(block, folder)
    if rank:
        work(oracles)
        return None
    served = serve(ready, oracles, steps, seed=seed, needs=needs)
    found = Recording(served.x, served, _replay(ready, served))
    if out is not None:
        Path(out).write_text(json.dumps(found.document(), indent=2) + "\n", encoding="utf-8")
    return found


def _settled(problem: Problem, method: Method, data_dir: Path | None) -> Any:
    if not isinstance(method, Serving):
        raise ValueError(f"{method} is no asynchronous method; use pure_async, waiting_async, random_async, ...")
    oracles: Oracles = problem.oracles(Block.whole(problem.n), data_dir)
    return method.settled(Setting.of(problem, oracles, data_dir=data_dir))


def _replay(method: Any, served: Served) -> str:
    wait = f", wait={method.per_step}" if method.per_step > 1 else ""
    return f"replayed_async(order={served.order}, step={method.step!r}{wait})"
