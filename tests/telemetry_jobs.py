"""What the processes of worlds.py can be asked to do with telemetry around a training with DDP."""

from __future__ import annotations

import dataclasses
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from laconic.training import attach
from laconic.training.alarms import (
    Alarm,
    Alarmed,
    ErrorGrows,
    Fatal,
    NothingCompressed,
    ReplicasDrift,
    StepsSkipped,
    Watched,
    Watcher,
)
from laconic.training.meter import Step
from laconic.training.outputs import Callback, JsonLines, Output, Summary
from laconic.training.policy import Policy
from laconic.training.telemetry import Telemetry
from training_jobs import Net, loss_of


@dataclass(frozen=True)
class Rings(Alarm):
    """Rings on one process, from a step on."""

    rank: int
    step: int
    alike = False

    def watcher(self, averager: Watched) -> Watcher:
        mine = averager.rank == self.rank
        return lambda step: f"rank {self.rank} rang at {step.number}" if mine and step.number >= self.step else None


def healthy(model: torch.nn.Module) -> list[Alarm | ReplicasDrift]:
    return [NothingCompressed(over=3), ErrorGrows(window=2), StepsSkipped(over=1), ReplicasDrift(model, every=3)]


def job_observed(mechanism: str, steps: int, folder: str, rules: bool = True, changed: str = "") -> dict[str, Any]:
    """A training with all that telemetry has; `changed` is moved by one ulp on the last rank before the fourth step."""
    model = DistributedDataParallel(Net(torch.float32))
    policy = Policy(mechanism) if rules else Policy(mechanism, rules=())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    lines: list[str] = []
    heard: list[Step] = []
    outputs: list[Output] = [
        JsonLines(Path(folder) / "steps-{rank}.jsonl"), JsonLines(Path(folder) / "first.jsonl"),
        Summary(say=lines.append), Callback(heard.append),
    ]  # fmt: skip
    attached = attach(model, policy)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with Telemetry(attached, *outputs, *healthy(model), sample_every=2) as telemetry:
            telemetry.follow(optimizer)
            for step in range(steps):
                if changed and step == 3 and dist.get_rank() == dist.get_world_size() - 1:
                    first = dict(model.module.named_parameters())[changed].data.view(-1)[:1]
                    first.copy_(torch.nextafter(first, torch.tensor(torch.inf)))
                optimizer.zero_grad()
                loss_of(model, dist.get_rank(), step, torch.float32).backward()
                optimizer.step()
        attached.detach()
    ledger, rank = attached.ledger, attached.averager.rank
    ballot: Any = telemetry._ballot
    return {
        "up": int(ledger.uplink[rank]), "down": int(ledger.downlink[rank]), "lines": lines,
        "sent": ledger.transport.payload + ledger.transport.framing, "own": ballot.ledger.transport.framing,
        "numbers": sum(p.numel() for p in model.parameters()), "tensors": len(list(model.parameters())),
        "heard": [dataclasses.asdict(step) for step in heard], "totals": dataclasses.asdict(telemetry.totals),
        "warned": [str(one.message) for one in caught], "listeners": len(attached.listeners),
    }  # fmt: skip


def job_fatal(check: bool) -> dict[str, Any]:
    """An alarm on rank 1 alone, or a check, ends the run: at which call, saying what, on each process."""
    model = DistributedDataParallel(Net(torch.float32))
    attached = attach(model, "direct(natural)")
    drift = Fatal(ReplicasDrift({"w": torch.full((3,), float(dist.get_rank() == 1))}, every=2))
    telemetry = Telemetry(attached, drift if check else Fatal(Rings(rank=1, step=2)))
    calls, said = 0, ""
    try:
        for step in range(10):
            loss_of(model, dist.get_rank(), step, torch.float32).backward()
            attached.averager.wait()
            telemetry.step()
            calls += 1
    except Alarmed as alarmed:
        said = str(alarmed)
    attached.detach()
    return {"calls": calls, "said": said, "alarms": dict(telemetry.totals.alarms)}
