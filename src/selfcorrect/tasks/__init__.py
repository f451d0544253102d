"""Tasks by name."""

from __future__ import annotations

from collections.abc import Callable

from selfcorrect.config.sections import (
    ArithmeticConfig,
    CountdownConfig,
    Gsm8kConfig,
    HumanEvalConfig,
    ImportedTaskConfig,
    MathConfig,
    MbppConfig,
    MbppRepairConfig,
    OwnConfig,
    ReasoningGymConfig,
    TaskConfig,
)
from selfcorrect.errors import ConfigError
from selfcorrect.tasks.base import Task


def make_task(config: TaskConfig) -> Task:
    """Build the task that a config names. Reads no data yet.

    Args:
        config: the task section; its name is one of ``TASKS``, or ``package.module:function`` for a function that makes
            a ``Task`` of the section and of ``task.options``.

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
            "task.instruction is empty, so nothing would request attempt 2; drop the setting or write one"
        )
    task = TASKS.get(config.name, _imported)(config)
    if config.instruction is not None:
        task.instruction = config.instruction
    return task


def _imported(config: TaskConfig) -> Task:
    from selfcorrect.tasks.user_code import call_with_options, import_callable

    assert isinstance(config, ImportedTaskConfig)
    make = import_callable("task.name", config.name, "make(config, *, OPTION=DEFAULT) that returns a Task", 1)
    task: Task = call_with_options(config.name, make, config, config.options)
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


def _built_in(config: TaskConfig) -> Task:  # noqa: PLR0911  # one return per task
    """One of the package's own tasks. Imports only the module of that task."""
    match config:
        case ArithmeticConfig():
            from selfcorrect.tasks.arithmetic import Arithmetic

            return Arithmetic(config.terms_min, config.terms_max, config.asks, config.largest)
        case CountdownConfig():
            from selfcorrect.tasks.countdown import Countdown

            return Countdown(config)
        case Gsm8kConfig():
            from selfcorrect.tasks.gsm8k import Gsm8k

            return Gsm8k(config.path)
        case MathConfig():
            from selfcorrect.tasks.math import Math

            return Math(config.path)
        case MbppConfig():
            from selfcorrect.tasks.mbpp import Mbpp

            return Mbpp(config)
        case MbppRepairConfig():
            from selfcorrect.tasks.mbpp_repair import MbppRepair

            return MbppRepair(config)
        case HumanEvalConfig():
            from selfcorrect.tasks.humaneval import HumanEval

            return HumanEval(config)
        case OwnConfig():
            from selfcorrect.tasks.own import Own, OwnPrograms

            return OwnPrograms(config) if config.verifier == "code" else Own(config)
        case ReasoningGymConfig():
            from selfcorrect.tasks.reasoning_gym import ReasoningGym

            return ReasoningGym(config)
        case _:
            raise AssertionError(f"{config.name} is no task of this package")


TASKS: dict[str, Callable[[TaskConfig], Task]] = dict.fromkeys(
    ("arithmetic", "countdown", "gsm8k", "math", "mbpp", "humaneval", "mbpp_repair", "own", "reasoning_gym"), _built_in
)
