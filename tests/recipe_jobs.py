"""What the processes of worlds.py can be asked to do with the training recipes."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from laconic.training.recipes.baselines import BASELINES
from laconic.training.recipes.choice import exchange_of
from laconic.training.recipes.image_tasks import Digits
from laconic.training.recipes.loop import Plan, Run


class Stopped(Exception):
    """The run was interrupted."""


def job_recipe(
    exchange: str | None, out: str, steps: int, stop_after: int | None = None, resume: bool = False,
    local: str | None = None, options: dict[str, Any] | None = None, task: dict[str, Any] | None = None,
    every: int = 4, predict: bool = False, **policy: Any,
) -> dict[str, Any]:  # fmt: skip
    """A run on the digits: a hash of its weights, None where it was stopped, its bytes and its result."""

    def watch(step: int, steps: int, loss: float) -> None:
        if step == stop_after:
            raise Stopped

    baseline = exchange if (exchange or "").partition("-")[0] in BASELINES else None
    chosen = exchange_of(None if baseline else exchange, baseline, local, options=options, **policy)
    plan = Plan(Path(out), steps, evaluate_every=every, resume=resume, predict=predict)
    run = Run(Digits(**{"batch": 8, "warm_up": 2, **(task or {})}), chosen, plan)
    result = {}
    try:
        result = run.train(watch)
    except Stopped:
        return {"x": None, "up": run.joined.traffic().up}
    digest = hashlib.sha256()
    for parameter in run.module.parameters():
        digest.update(parameter.detach().numpy().tobytes())
    with run.joined.judged():
        judged = run.module.head.weight.flatten().tolist()  # type: ignore[union-attr]
        loss = run.course.evaluate(run.module)["test_loss"]
    ledger = getattr(getattr(run.joined, "updates", run.joined), "ledger", None)
    return {
        "x": digest.hexdigest(), "up": run.joined.traffic().up, "result": result, "label": chosen.label,
        "weights": run.module.head.weight.flatten().tolist(),  # type: ignore[union-attr]
        "judged": judged, "judged_loss": loss, "own_loss": run.course.evaluate(run.module)["test_loss"],
        "ledger": None if ledger is None else int(ledger.uplink[run.rank]),
    }  # fmt: skip
