"""What the processes of worlds.py can be asked to do asynchronously: a server and workers, one of whom may die."""

from __future__ import annotations

import os
import time
from typing import Any

import torch.distributed as dist
from torch import Tensor

from jobs import sha
from laconic.core.problem import Block, Oracles
from laconic.core.spec import parse
from laconic.core.theory import Setting
from laconic.lab.asynchronous import asynchronous
from laconic.runtime.asynchronous import serve, work


def account(ledger: Any) -> dict[str, Any]:
    return {
        "uplink": ledger.uplink.tolist(), "downlink": ledger.downlink.tolist(), "rounds": ledger.rounds,
        "messages": [ledger.messages_up, ledger.messages_down],
        "payload": ledger.transport.payload, "framing": ledger.transport.framing,
    }  # fmt: skip


def job_asynchronous(
    problem: str, spec: str, steps: int, needs: int | None = None, slow: float = 0.0, dies: int | None = None,
    after: int = 0, says: float | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Rank 0 serves, the others work, each `slow` seconds times its rank slower; worker `dies` does so at a job."""
    asked: Any = parse(problem)
    rank = dist.get_rank()
    if rank:
        oracles = asked.host(Block(rank - 1, rank, asked.n))
        return {"jobs": work(_hindered(oracles, slow * rank, after if dies == rank - 1 else None, says))}
    oracles = asked.host(Block(0, 0, asked.n))
    method: Any = parse(spec)
    method = method.settled(Setting.of(asked, oracles, (1, 1)))
    said: list[str] = []
    try:
        served = serve(method, oracles, steps, seed=4, needs=needs, say=said.append)
    except Exception as failure:
        return {"error": type(failure).__name__, "message": str(failure), "said": said}
    return {
        "x": sha(served.x), "values": served.x.flatten().tolist(), "order": served.order, "lost": served.lost,
        "said": said, **account(served.ledger),
    }  # fmt: skip


def job_recorded(problem: str, spec: str, steps: int, out: str) -> dict[str, Any]:
    """A run by `laconic.lab.asynchronous`, as `laconic serve` makes it."""
    found = asynchronous(problem, spec, steps, out=out)
    return {} if found is None else found.document()


def _hindered(oracles: Oracles, slow: float, left: int | None, says: float | None) -> Oracles:
    """The same oracles, which take their time; instead of gradient number `left` the process dies, or it says that."""
    genuine, done = oracles.gradients, []

    def gradients(*arguments: Any, **keywords: Any) -> Tensor:
        time.sleep(slow)
        done.append(1)
        if left is not None and len(done) > left:
            if says is None:
                os._exit(3)
            return genuine(*arguments, **keywords).fill_(says)
        return genuine(*arguments, **keywords)

    oracles.gradients = gradients  # type: ignore[method-assign]
    return oracles
