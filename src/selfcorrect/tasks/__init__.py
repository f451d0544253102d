"""Tasks by name."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from functools import partial
from typing import Any

from selfcorrect.config import TaskConfig, readers
from selfcorrect.config.tasks import ImportedTaskConfig
from selfcorrect.errors import ConfigError
from selfcorrect.tasks.base import Task

MEMBERS = ("name", "instruction", "problems", "first_messages", "reference_answer", "grade")
"""What every task has; see ``Task``."""


def make_task(config: TaskConfig) -> Task:
    """Build the task that a config names. Reads no data yet.

    Args:
        config: the task section; its name is one of ``TASKS``, or ``package.module:function`` for a function that makes
            a ``Task`` of the section and of ``task.options``.

    Raises:
        ConfigError: unknown task, a setting that this task lacks, an empty instruction, a verifier that cannot be
            imported, or an object that is no task.
    """
    if config.name not in TASKS and ":" not in config.name:
        raise ConfigError(_unknown(config.name))
    if config.instruction is not None and not config.instruction.strip():
        raise ConfigError(
            "task.instruction is empty, so nothing would request attempt 2; drop the setting or write one"
        )
    task = TASKS.get(config.name, _imported)(config)
    if missing := [member for member in MEMBERS if not hasattr(task, member)]:
        raise ConfigError(
            f"task.name = {config.name!r} made a {type(task).__name__} without {', '.join(missing)}; a task needs what "
            "selfcorrect.tasks.base.Task lists"
        )
    if config.instruction is not None:
        task.instruction = config.instruction
    return task


def _imported(config: TaskConfig) -> Task:
    from selfcorrect.tasks.user_code import call_with_options, import_callable

    assert isinstance(config, ImportedTaskConfig)
    make = import_callable("task.name", config.name, "make(config, *, OPTION=DEFAULT) that returns a Task", 1)
    task: Task = call_with_options(config.name, make, config, config.options)
    return task


def _built_in(name: str, config: TaskConfig) -> Task:
    """One of the package's own tasks: ``make(config)`` of the file of its name. Imports only that file."""
    make = _make_of(name)
    if not callable(make):
        lack = "there is no such file" if make is None else "that file has no class or function `make`"
        raise ConfigError(
            f"task {name} is named in TaskConfig (config/tasks.py) and belongs in selfcorrect/tasks/{name}.py, but {lack}; "
            "write a class that takes the task's config, and `make = ` that class"
        )
    task: Task = make(config)
    said = getattr(task, "name", name)
    if said != name and not said.startswith(f"{name}-"):  # gsm8k, mbpp-validation, reasoning_gym-chain_sum
        raise ConfigError(
            f"the task in selfcorrect/tasks/{name}.py has the name {said!r}; write name = {name!r}, the name of its file"
        )
    return task


def _make_of(name: str) -> Any:
    """``make`` of ``selfcorrect/tasks/NAME.py``, False where the file has none, None without a file."""
    module = f"{__name__}.{name}"
    try:
        return getattr(importlib.import_module(module), "make", False)
    except ModuleNotFoundError as error:
        if error.name != module:
            raise
        return None


def _unknown(name: str) -> str:
    if name.isidentifier() and _make_of(name):
        return (
            f"selfcorrect/tasks/{name}.py makes a task, but no class in TaskConfig (config/tasks.py) has the name {name!r}; "
            "write one and add it there"
        )
    return f"task.name = {name!r} is not a task; take one of: {', '.join(sorted(TASKS))}; or package.module:function"


TASKS: dict[str, Callable[[Any], Task]] = {name: partial(_built_in, name) for name in readers("task.name")}
"""How to make each task, by the names in ``TaskConfig``."""
