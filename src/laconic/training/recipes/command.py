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
        str | None,
        typer.Option(
            help='What averages gradients, or changes of models with --local: "ef14(topk(k=0.01) | natural)", say.'
        ),
    ] = None,
    small: Annotated[
        str | None,
        typer.Option(help='What averages small and one-dimensional tensors (default: dense); "direct(natural)", say.'),
    ] = None,
    rule: Annotated[
        list[str] | None,
        typer.Option(help="NAMES=SPEC: what averages parameters whose names fit a pattern (may be repeated)."),
    ] = None,
    warm_up_dense: Annotated[int | None, typer.Option(help="First steps in which all is averaged dense.")] = None,
    baseline: Annotated[
        str | None,
        typer.Option(help="PyTorch's own: dense (default), fp16, powersgd-RANK, or none (nothing sent)."),
    ] = None,
    local: Annotated[
        str | None, typer.Option(help="Local updates: local_sgd, post_local_sgd, diloco, proxskip or scaffold.")
    ] = None,
    sync_every: Annotated[int | None, typer.Option(help="Steps between two averages of models (20).")] = None,
    local_start: Annotated[
        int | None, typer.Option(help="First steps, with averaged gradients (post_local_sgd).")
    ] = None,
    fragments: Annotated[int | None, typer.Option(help="Parts that are exchanged in turn (diloco; 1).")] = None,
    delay: Annotated[int | None, typer.Option(help="Steps that an exchange may take (diloco; 0).")] = None,
    mixing: Annotated[
        float | None, typer.Option(help="The share of its own model a process keeps (diloco; 0).")
    ] = None,
    outer_lr: Annotated[float | None, typer.Option(help="Of the outer optimizer (diloco; 0.7).")] = None,
    outer_momentum: Annotated[float | None, typer.Option(help="Of the outer optimizer (diloco; 0.9).")] = None,
    probability: Annotated[float | None, typer.Option(help="Of an average after a step (proxskip; 0.05).")] = None,
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
    bf16: Annotated[
        bool, typer.Option("--bf16", help="Compute products in bfloat16 (autocast); what is averaged stays float32.")
    ] = False,
    validation: Annotated[
        int | None, typer.Option(help="Hold out so many training images and judge by them (to choose options by).")
    ] = None,
    judge: Annotated[int | None, typer.Option(help="Validation tokens to judge by; 0 is all (gpt2).")] = None,
    seed: Annotated[int, typer.Option(help="Of weights, order, augmentation and the mechanism.")] = 0,
    data_dir: Annotated[Path | None, typer.Option(help="Where CIFAR-10 or WikiText-2 is (else LACONIC_DATA).")] = None,
    out: Annotated[Path | None, typer.Option(help="The run directory (default runs/NAME-<time>).")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in --out.")] = False,
    evaluate_every: Annotated[
        int | None, typer.Option(help="Steps (default: an epoch; gpt2: at most a tenth of the run, but 100 or more).")
    ] = None,
    checkpoint_every: Annotated[
        int | None, typer.Option(help="Steps; 0 is never (default: when it is evaluated).")
    ] = None,
    bucket_mb: Annotated[float, typer.Option(help="The size of DDP's buckets in MiB.")] = 25.0,
    predict: Annotated[
        bool, typer.Option("--predict", help="Predict the time of a step first, to be compared with what it took.")
    ] = False,
    threads: Annotated[int | None, typer.Option(min=1, help="Of torch, in each process.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON and nothing else.")] = False,
) -> None:
    """Train a network with compressed communication, and see what it costs; or by PyTorch's own ways."""
    from laconic.training.recipes import launch
    from laconic.training.recipes.catalogue import task_of
    from laconic.training.recipes.choice import exchange_of
    from laconic.training.recipes.loop import Plan

    task = task_of(name, {
        "epochs": epochs, "batch": batch, "lr": lr, "momentum": momentum, "weight_decay": weight_decay,
        "schedule": schedule, "warm_up": warm_up, "clip": clip, "width": width, "size": size, "judge": judge,
        "validation": validation, "data_dir": data_dir, "bf16": bf16,
    })  # fmt: skip
    exchange = exchange_of(
        mechanism, baseline, local, small=small, warm_up_dense=warm_up_dense, rules=rule or (),
        options={
            "sync_every": sync_every, "local_start": local_start, "fragments": fragments, "delay": delay,
            "mixing": mixing, "outer_lr": outer_lr, "outer_momentum": outer_momentum, "probability": probability,
        },
    )  # fmt: skip
    if resume and out is None:
        raise ValueError("--resume : name the run's directory with --out")
    plan = Plan(out or Path("runs"), steps, seed, evaluate_every, checkpoint_every, bucket_mb, resume, predict)
    task.check()
    _check(task, exchange)
    if ranks is not None and not launch.started():
        raise typer.Exit(launch.start(ranks, threads, sys.argv[1:]))
    launch.keep_pages()
    with launch.world(threads):
        _run(task, exchange, plan, named=out is not None, ranks=ranks, as_json=as_json)
    launch.leave()


def _check(task: Task, exchange: Exchange) -> None:
    """What the exchange cannot do with the task's optimizer is said before processes are started."""
    from torch import nn

    exchange.check(task.optimizer(nn.Linear(1, 1)))


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
        if isinstance(run.predicted, str):
            print(f"--predict : {run.predicted}")
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
    predicted = f" where {1e3 * result['predicted']:.1f} ms were predicted" if result.get("predicted") else ""
    smoke = "; a smoke run: too short to compare methods by" if result["smoke"] else ""
    return (
        f"{name}, {label}, {world} process{'es' * (world > 1)}: {judged} after {result['steps']} steps "
        f"({result['epochs']:.3g} epochs); {up:,.0f} bytes up per step and process, {saved}; "
        f"{1e3 * result['seconds_per_step']:.1f} ms per step{predicted} "
        f"(forward {1e3 * seconds['forward']:.1f}, backward {1e3 * seconds['backward']:.1f}, waiting "
        f"{1e3 * seconds['waiting']:.1f}, optimizer {1e3 * seconds['optimizer']:.1f}){smoke}"
    )
