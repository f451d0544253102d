"""Tasks by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from selfcorrect.config.sections import (
    ArithmeticConfig,
    Gsm8kConfig,
    HumanEvalConfig,
    MathConfig,
    MbppConfig,
    MbppRepairConfig,
    OwnConfig,
    TaskConfig,
)
from selfcorrect.errors import ConfigError
from selfcorrect.tasks.base import Task


def make_task(config: TaskConfig) -> Task:
    """Build the task that a config names. Reads no data yet.

    Args:
        config: the task section; its name is one of ``TASKS``, or ``package.module:function`` for a function that makes
            a ``Task`` of the section.

    Raises:
        ConfigError: unknown task, a setting that this task lacks, an empty instruction, or a verifier
            that cannot be imported.
    """
    if config.name not in TASKS and ":" not in config.name:
        raise ConfigError(
            f"task.name = {config.name!r} is not a task; take one of: {', '.join(sorted(TASKS))}; or package.module:function"
        )
    if config.instruction is not None and not config.instruction.strip():
        raise ConfigError(
            "task.instruction is empty, so attempt 2 would not be asked for; drop the setting or write one"
        )
    task = TASKS.get(config.name, _imported)(config)
    if config.instruction is not None:
        task.instruction = config.instruction
    return task


def _imported(config: TaskConfig) -> Task:
    from selfcorrect.tasks.own import import_callable

    task: Task = import_callable("task.name", config.name, "make(config) that returns a Task", 1)(config)
    missing = [
        n
        for n in ("name", "instruction", "problems", "first_messages", "reference_answer", "grade")
        if not hasattr(task, n)
    ]
    if missing:
        raise ConfigError(
            f"task.name = {config.name!r} made a {type(task).__name__} without {', '.join(missing)}; a task needs what "
            "selfcorrect.tasks.base.Task lists"
        )
    return task


def _arithmetic(config: ArithmeticConfig) -> Task:
    from selfcorrect.tasks.arithmetic import Arithmetic

    return Arithmetic(config.terms_min, config.terms_max, config.asks, config.largest)


def _gsm8k(config: Gsm8kConfig) -> Task:
    from selfcorrect.tasks.gsm8k import Gsm8k

    return Gsm8k(config.path)


def _math(config: MathConfig) -> Task:
    from selfcorrect.tasks.math import Math

    return Math(config.path)


def _mbpp(config: MbppConfig) -> Task:
    from selfcorrect.tasks.mbpp import Mbpp

    return Mbpp(config)


def _mbpp_repair(config: MbppRepairConfig) -> Task:
    from selfcorrect.tasks.mbpp_repair import MbppRepair

    return MbppRepair(config)


def _humaneval(config: HumanEvalConfig) -> Task:
    from selfcorrect.tasks.humaneval import HumanEval

    return HumanEval(config)


def _own(config: OwnConfig) -> Task:
    from selfcorrect.tasks.own import Own, OwnPrograms

    return OwnPrograms(config) if config.verifier == "code" else Own(config)


TASKS: dict[str, Callable[[Any], Task]] = {
    "arithmetic": _arithmetic,
    "gsm8k": _gsm8k,
    "math": _math,
    "mbpp": _mbpp,
    "humaneval": _humaneval,
    "mbpp_repair": _mbpp_repair,
    "own": _own,
}
