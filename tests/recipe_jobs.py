"""What the processes of worlds.py can be asked to do with the training recipes."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from laconic.training.policy import Policy
from laconic.training.recipes.baselines import BASELINES, baseline_of
from laconic.training.recipes.exchange import Compressed
from laconic.training.recipes.image_tasks import Digits
from laconic.training.recipes.loop import Plan, Run


class Stopped(Exception):
    """The run was interrupted."""


def job_recipe(
    exchange: str, out: str, steps: int, stop_after: int | None = None, resume: bool = False
) -> dict[str, Any]:
    """A run on the digits: a hash of its weights, None where it was stopped, and the bytes up."""

    def watch(step: int, steps: int, loss: float) -> None:
        if step == stop_after:
            raise Stopped

    chosen = baseline_of(exchange) if exchange.partition("-")[0] in BASELINES else Compressed(Policy(exchange))
    run = Run(Digits(batch=8, warm_up=2), chosen, Plan(Path(out), steps, evaluate_every=4, resume=resume))
    try:
        run.train(watch)
    except Stopped:
        run.joined.close()
        return {"x": None, "up": run.joined.traffic().up}
    except BaseException:
        run.joined.close()
        raise
    digest = hashlib.sha256()
    for parameter in run.module.parameters():
        digest.update(parameter.detach().numpy().tobytes())
    return {"x": digest.hexdigest(), "up": run.joined.traffic().up}
