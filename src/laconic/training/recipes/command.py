"""`laconic train`: a recipe from the command line, under torchrun, in the network lab, or in processes of its own."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from laconic.training.recipes.exchange import Exchange
    from laconic.training.recipes.loop import Plan
    from laconic.training.recipes.tasks import Task


def train(
    name: Annotated[str, typer.Argument(help="digits, gpt2, resnet8, resnet18, vgg11, vgg16 or vgg19.")] = "digits",
    mechanism: Annotated[
        str | None, typer.Option(help='What averages gradients, such as "ef14(topk(k=0.01) | natural)".')
    ] = None,
    baseline: Annotated[
        str | None,
        typer.Option(help="PyTorch's own: dense (default), fp16, powersgd-RANK, or none (nothing sent)."),
    ] = None,
    ranks: Annotated[
        int | None, typer.Option(min=1, help="Start so many processes here (else: torchrun's, or one).")
    ] = None,
    steps: Annotated[int | None, typer.Option(help="Of the optimizer (default: the epochs).")] = None,
    epochs: Annotated[float | None, typer.Option(help="Passes over the training data.")] = None,
    batch: Annotated[int | None, typer.Option(help="Samples of one process in one step.")] = None,
    lr: Annotated[float | None, typer.Option(help="The learning rate at its height.")] = None,
    momentum: Annotated[float | None, typer.Option(help="Of SGD (images).")] = None,
    weight_decay: Annotated[float | None, typer.Option(help="Of the optimizer.")] = None,
    schedule: Annotated[str | None, typer.Option(help="constant, cosine or step.")] = None,
    warm_up: Annotated[int | None, typer.Option(help="Steps in which the learning rate rises.")] = None,
    clip: Annotated[float | None, typer.Option(help="The largest norm of the averaged gradient (gpt2).")] = None,
    width: Annotated[int | None, typer.Option(help="Channels of the first stage (resnet8, resnet18).")] = None,
    size: Annotated[str | None, typer.Option(help="nano, micro, mini or small (gpt2).")] = None,
    validation: Annotated[
        int | None, typer.Option(help="Hold out so many training images and judge by them (to choose options by).")
    ] = None,
    judge: Annotated[int | None, typer.Option(help="Validation tokens to judge by; 0 is all (gpt2).")] = None,
    seed: Annotated[int, typer.Option(help="Of weights, order, augmentation and the mechanism.")] = 0,
    data_dir: Annotated[Path | None, typer.Option(help="Where CIFAR-10 or WikiText-2 is (else LACONIC_DATA).")] = None,
    out: Annotated[Path | None, typer.Option(help="The run directory (default runs/NAME-<time>).")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in --out.")] = False,
    evaluate_every: Annotated[
        int | None, typer.Option(help="Steps (default: an epoch or a tenth of the run, 100 or more).")
    ] = None,
    checkpoint_every: Annotated[
        int | None, typer.Option(help="Steps; 0 is never (default: when it is evaluated).")
    ] = None,
    bucket_mb: Annotated[float, typer.Option(help="The size of DDP's buckets in MiB.")] = 25.0,
    threads: Annotated[int | None, typer.Option(min=1, help="Of torch, in each process.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON and nothing else.")] = False,
) -> None:
    """Train a network with compressed communication, or by one of PyTorch's own ways; see what it costs."""
    from laconic.training.recipes import launch
    from laconic.training.recipes.loop import Plan

    options = {
        "epochs": epochs, "batch": batch, "lr": lr, "momentum": momentum, "weight_decay": weight_decay,
        "schedule": schedule, "warm_up": warm_up, "clip": clip, "width": width, "size": size, "judge": judge,
        "validation": validation, "data_dir": data_dir,
    }  # fmt: skip
    task = _task_of(name, {key: value for key, value in options.items() if value is not None})
    exchange = _exchange_of(mechanism, baseline)
    if resume and out is None:
        raise ValueError("--resume : name the run's directory with --out")
    plan = Plan(out or Path("runs"), steps, seed, evaluate_every, checkpoint_every, bucket_mb, resume)
    task.check()
    if ranks is not None and not launch.started():
        raise typer.Exit(launch.start(ranks, threads, sys.argv[1:]))
    with launch.world(threads):
        _run(task, exchange, plan, named=out is not None, ranks=ranks, as_json=as_json)


def _task_of(name: str, options: dict[str, Any]) -> Task:
    from laconic.training.recipes.image_tasks import IMAGE_TASKS
    from laconic.training.recipes.tasks import made
    from laconic.training.recipes.text_tasks import GPT2

    tasks = {**IMAGE_TASKS, GPT2.name: GPT2}
    if name not in tasks:
        raise ValueError(f"train {name} : give one of {', '.join(tasks)}")
    return made(tasks[name], options)


def _exchange_of(mechanism: str | None, baseline: str | None) -> Exchange:
    from laconic.training.policy import Policy
    from laconic.training.recipes.baselines import baseline_of
    from laconic.training.recipes.exchange import Compressed

    if mechanism is not None and baseline is not None:
        raise ValueError("give either --mechanism or --baseline, not both")
    return baseline_of(baseline or "dense") if mechanism is None else Compressed(Policy(mechanism))


def _run(task: Task, exchange: Exchange, plan: Plan, named: bool, ranks: int | None, as_json: bool) -> None:
    import dataclasses

    import torch.distributed as dist

    from laconic.training.recipes.loop import Run

    if ranks is not None and ranks != dist.get_world_size():
        raise ValueError(f"--ranks {ranks} : this is one of {dist.get_world_size()} processes already; leave it out")
    if not named:
        plan = dataclasses.replace(plan, out=plan.out / f"{task.name}-{_agreed_time()}")
    run = Run(task, exchange, plan)
    if run.rank > 0:
        run.train()
        return
    result = _watched(run) if sys.stderr.isatty() and not as_json else run.train()
    if as_json:
        print(json.dumps({"path": str(plan.out), **result}, indent=2, allow_nan=False))
    else:
        print(summary(task.name, exchange.label, run.world, result, run.course.facts))
        print(f"written to {plan.out}")


def _agreed_time() -> str:
    """The first process' time: all processes write to one directory."""
    import torch
    import torch.distributed as dist

    now = torch.tensor([int(time.time())])
    dist.broadcast(now, src=0)
    return time.strftime("%Y-%m-%d-%H%M%S", time.localtime(int(now)))


def _watched(run: Any) -> dict[str, Any]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        bar = progress.add_task(f"{run.task.name}, {run.exchange.label}", total=run.steps, completed=run.step)
        return run.train(
            lambda step, steps, loss: progress.update(
                bar, completed=step, description=f"{run.task.name}, {run.exchange.label}: loss {loss:.3f}"
            )
        )


def summary(name: str, label: str, world: int, result: dict[str, Any], facts: dict[str, Any]) -> str:
    """The last line of a run."""
    judged = ", ".join(
        f"{key.replace('_', ' ')} {value:.4f}" for key, value in result.items() if key.endswith(("_accuracy", "_loss"))
    )
    if "bigram_validation_loss" in facts:
        judged += f" (a bigram model's is {facts['bigram_validation_loss']:.4f})"
    up, dense, seconds = result["up_per_step"], result["dense_per_step"], result["seconds"]
    saved = f"1/{dense / up:.1f} of dense float32" if up else "nothing is sent"
    smoke = "; a smoke run: too short to compare methods by" if result["smoke"] else ""
    return (
        f"{name}, {label}, {world} process{'es' * (world > 1)}: {judged} after {result['steps']} steps "
        f"({result['epochs']:.3g} epochs); {up:,.0f} bytes up per step and process, {saved}; "
        f"{1e3 * result['seconds_per_step']:.1f} ms per step (forward {1e3 * seconds['forward']:.1f}, backward "
        f"{1e3 * seconds['backward']:.1f}, waiting {1e3 * seconds['waiting']:.1f}, optimizer "
        f"{1e3 * seconds['optimizer']:.1f}){smoke}"
    )
