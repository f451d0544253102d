"""Tasks by name."""

from __future__ import annotations

from collections.abc import Callable

from selfcorrect.config import TaskConfig
from selfcorrect.errors import ConfigError
from selfcorrect.tasks.base import Task


def make_task(config: TaskConfig) -> Task:
    """Build the task that a config names. Reads no data yet.

    Args:
        config: the task section.

    Raises:
        ConfigError: unknown task, a setting that this task would ignore, or an empty instruction.
    """
    if config.name not in TASKS:
        raise ConfigError(f"task.name = {config.name!r} is not a task; take one of: {', '.join(sorted(TASKS))}")
    if config.instruction is not None and not config.instruction.strip():
        raise ConfigError(
            "task.instruction is empty, so attempt 2 would not be asked for; drop the setting or write one"
        )
    task = TASKS[config.name](config)
    if config.instruction is not None:
        task.instruction = config.instruction
    return task


def _arithmetic(config: TaskConfig) -> Task:
    if config.path is not None:
        raise ConfigError(
            f"task.path = {config.path!r} would be ignored: arithmetic draws its problems; drop the setting"
        )
    from selfcorrect.tasks.arithmetic import Arithmetic

    return Arithmetic(config.terms_min, config.terms_max, config.asks, config.largest)


def _gsm8k(config: TaskConfig) -> Task:
    from selfcorrect.tasks.gsm8k import Gsm8k

    return Gsm8k(config.path)


TASKS: dict[str, Callable[[TaskConfig], Task]] = {"arithmetic": _arithmetic, "gsm8k": _gsm8k}
