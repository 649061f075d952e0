"""`laconic advise`: does compression pay here? Under torchrun, in the network lab, or in processes of its own."""

from __future__ import annotations

import json
import logging
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from laconic.training.advice.verdict import Advice
    from laconic.training.recipes.tasks import Task


def advise(
    name: Annotated[str, typer.Argument(help="digits, gpt2, resnet8, resnet18, vgg11, vgg16 or vgg19.")] = "resnet18",
    mechanism: Annotated[
        list[str] | None,
        typer.Option(
            help="A candidate beside dense (may be repeated): a mechanism's spec; fp16 or powersgd-RANK, which are "
            "PyTorch's; or diloco-H, a dense exchange every H steps. Default: a short list of all kinds."
        ),
    ] = None,
    ranks: Annotated[
        int | None, typer.Option(min=1, help="Start so many processes here (else: torchrun's, or one).")
    ] = None,
    batch: Annotated[int | None, typer.Option(help="Samples of one process in one step.")] = None,
    width: Annotated[int | None, typer.Option(help="Channels of the first stage (resnet8, resnet18).")] = None,
    size: Annotated[str | None, typer.Option(help="nano, micro, mini or small (gpt2).")] = None,
    data_dir: Annotated[Path | None, typer.Option(help="Where CIFAR-10 or WikiText-2 is (else LACONIC_DATA).")] = None,
    bf16: Annotated[bool, typer.Option("--bf16", help="Compute products in bfloat16 (autocast).")] = False,
    bucket_mb: Annotated[float, typer.Option(help="The size of DDP's buckets in MiB.")] = 25.0,
    threads: Annotated[int | None, typer.Option(min=1, help="Of torch, in each process.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON and nothing else.")] = False,
) -> None:
    """Does compression pay here? Measure the link, a network and mechanisms, predict a step with each, and choose."""
    from laconic.training import notices
    from laconic.training.advice.advisor import DEFAULTS
    from laconic.training.advice.candidates import candidate_of
    from laconic.training.recipes import launch
    from laconic.training.recipes.catalogue import task_of

    candidates = DEFAULTS if mechanism is None else tuple(dict.fromkeys(["dense", *mechanism]))
    for candidate in candidates:
        candidate_of(candidate)  # what cannot be read is said before processes are started
    task = task_of(name, {"batch": batch, "width": width, "size": size, "data_dir": data_dir, "bf16": bf16})
    task.check()
    if ranks is not None and not launch.started():
        raise typer.Exit(launch.start(ranks, threads, sys.argv[1:]))
    notices.LOGGER.setLevel(logging.ERROR)  # each candidate's averager has the same to say
    launch.keep_pages()
    with launch.world(threads):
        import torch.distributed as dist

        found = _advice(task, candidates, bucket_mb)
        if dist.get_rank() == 0:
            _print(found, as_json)
    launch.leave()


def _advice(task: Task, candidates: tuple[str, ...], bucket_mb: float) -> Advice:
    """For a recipe as `laconic train` runs it: buffers are not broadcast, and batches are made in the step."""
    import itertools

    import torch.distributed as dist

    from laconic.training.advice.advisor import advise as advise_on
    from laconic.training.advice.verdict import Advice
    from laconic.training.recipes.exchange import ddp_options

    if dist.get_world_size() == 1:
        return Advice(1, None, None, None, {})
    data, steps = task.course(0, dist.get_rank(), dist.get_world_size()), itertools.count()
    return advise_on(
        task.module(0), lambda model: data.loss(model, next(steps)), candidates, optimizer=task.optimizer,
        ddp=ddp_options(bucket_mb),
    )  # fmt: skip


def _print(found: Advice, as_json: bool) -> None:
    if as_json:
        return print(json.dumps(found.document(), indent=2, allow_nan=False))
    from rich.console import Console

    # piped output is for programs and files: it is not cut to a terminal's width
    console = Console(highlight=False) if sys.stdout.isatty() else Console(highlight=False, width=220)
    for name, reason in found.left_out.items():
        console.print(f"{name} is left out: {reason}", soft_wrap=True, markup=False)
    if found.predicted:
        console.print(found.heading, soft_wrap=True)
        console.print(found.table)
    console.print(found.sentence, soft_wrap=True, markup=False)
