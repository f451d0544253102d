"""The graders that tasks share: one of each kind per process, started when first used, closed at its end."""

from __future__ import annotations

import atexit
import functools

from selfcorrect.errors import ConfigError
from selfcorrect.verify.code import CodeGrader
from selfcorrect.verify.math import MathGrader


@functools.cache
def math_grader() -> MathGrader:
    """The grader of math answers; its workers start with the first answer that needs one."""
    grader = MathGrader()
    atexit.register(grader.close)
    return grader


@functools.cache
def code_grader(trust_forgeable: bool, accept_risk: str | None) -> CodeGrader:
    """The grader of programs; its sandboxes start with the first program.

    Args:
        trust_forgeable: whether tests that had to run beside the program count, see ``CodeGrader``.
        accept_risk: the setting ``task.accept_risk``.

    Raises:
        ConfigError: the machine is unsafe and the risk was not accepted by its name.
    """
    try:
        grader = CodeGrader(trust_forgeable=trust_forgeable, accept_risk=accept_risk)
    except ConfigError as error:
        raise ConfigError(f"{error} The setting for that is task.accept_risk.") from error
    atexit.register(grader.close)
    return grader
