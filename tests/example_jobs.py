"""What the processes of worlds.py can be asked to do with the examples."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import os
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"


def job_example(name: str) -> Any:
    """Runs an example as torchrun does, but in the group that there is; gives what it prints."""
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    rank, world = str(dist.get_rank()), str(dist.get_world_size())
    started = {
        "RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world, "LOCAL_WORLD_SIZE": world, "TORCHELASTIC_RUN_ID": "none",
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500",
    }  # fmt: skip
    printed = io.StringIO()
    with contextlib.ExitStack() as stack:
        stack.enter_context(mock.patch.dict(os.environ, started))
        stack.enter_context(mock.patch.object(dist, "init_process_group", lambda *args, **options: None))
        stack.enter_context(mock.patch.object(dist, "destroy_process_group", lambda *args, **options: None))
        stack.enter_context(torch.random.fork_rng())
        stack.enter_context(contextlib.redirect_stdout(printed))
        spec.loader.exec_module(module)
        module.main()
    return printed.getvalue()
