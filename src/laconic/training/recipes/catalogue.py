"""The recipes by name, for every command that takes one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from laconic.training.recipes.image_tasks import IMAGE_TASKS
from laconic.training.recipes.tasks import Task, made
from laconic.training.recipes.text_tasks import GPT2

TASKS: dict[str, type[Task]] = {**IMAGE_TASKS, GPT2.name: GPT2}


def task_of(name: str, options: Mapping[str, Any]) -> Task:
    """A recipe's task; options that are None were not given, and are the recipe's own.

    Raises
    ------
    ValueError : no such recipe, or an option that it does not have, in one line.

    >>> task_of("digits", {"batch": 8, "width": None}).record()["batch"]
    8
    """
    if name not in TASKS:
        raise ValueError(f"there is no recipe {name!r}; give one of {', '.join(TASKS)}")
    return made(TASKS[name], {option: value for option, value in options.items() if value is not None})
