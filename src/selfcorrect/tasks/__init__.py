"""Tasks by name."""

from __future__ import annotations

from collections.abc import Callable

from selfcorrect.config import TaskConfig
from selfcorrect.errors import ConfigError
from selfcorrect.tasks.base import Task


def make_task(config: TaskConfig) -> Task:
    """Build the task that a config names. Reads no data yet.

    Args:
        config: the task section; its name is one of ``TASKS``, or ``package.module:function`` for a function that makes
            a ``Task`` of the section.

    Raises:
        ConfigError: unknown task, a setting that this task would ignore or lacks, an empty instruction, or a verifier
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
    read = {"name", "instruction", *READ.get(config.name, TaskConfig.model_fields)}
    if config.name == "own" and config.verifier != "code":
        read.discard("accept_risk")
    for name, field in TaskConfig.model_fields.items():
        value = getattr(config, name)
        if name not in read and value != field.default:
            users = ", ".join(task for task, names in READ.items() if name in names)
            raise ConfigError(
                f"task.{name} = {value!r} would be ignored by task={config.name}, since only {users} read it; drop the "
                "setting"
            )
    task = TASKS.get(config.name, _imported)(config)
    if config.instruction is not None:
        task.instruction = config.instruction
    return task


READ = {
    "arithmetic": ("terms_min", "terms_max", "asks", "largest"),
    "gsm8k": ("path",),
    "math": ("path",),
    "mbpp": ("path", "eval_split", "accept_risk"),
    "humaneval": ("path", "accept_risk"),
    "mbpp_repair": ("path", "eval_split", "accept_risk", "first_attempts"),
    "own": ("path", "eval_split", "accept_risk", "verifier", "prompt"),
}
"""Settings that each task reads, apart from its name and the instruction."""


def _imported(config: TaskConfig) -> Task:
    from selfcorrect.tasks.own import import_callable

    task: Task = import_callable("task.name", config.name, "make(config) that returns a Task", 1)(config)
    names = ("name", "instruction", "problems", "first_messages", "reference_answer", "grade")
    if missing := [n for n in names if not hasattr(task, n)]:
        raise ConfigError(
            f"task.name = {config.name!r} made a {type(task).__name__} without {', '.join(missing)}; a task needs what "
            "selfcorrect.tasks.base.Task lists"
        )
    return task


def _built_in(config: TaskConfig) -> Task:  # noqa: PLR0911  # one return per task
    """One of the package's own tasks. Imports only the module of that task."""
    match config.name:
        case "arithmetic":
            from selfcorrect.tasks.arithmetic import Arithmetic

            return Arithmetic(config.terms_min, config.terms_max, config.asks, config.largest)
        case "gsm8k":
            from selfcorrect.tasks.gsm8k import Gsm8k

            return Gsm8k(config.path)
        case "math":
            from selfcorrect.tasks.math import Math

            return Math(config.path)
        case "mbpp":
            from selfcorrect.tasks.mbpp import Mbpp

            return Mbpp(config)
        case "mbpp_repair":
            from selfcorrect.tasks.mbpp_repair import MbppRepair

            return MbppRepair(config)
        case "humaneval":
            from selfcorrect.tasks.humaneval import HumanEval

            return HumanEval(config)
    from selfcorrect.tasks.own import Own, OwnPrograms

    return OwnPrograms(config) if config.verifier == "code" else Own(config)


TASKS: dict[str, Callable[[TaskConfig], Task]] = dict.fromkeys(READ, _built_in)
