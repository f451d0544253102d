"""The program graders that tasks share. Each starts when first used and ends with the process."""

from __future__ import annotations

import atexit
import functools

from selfcorrect.errors import ConfigError
from selfcorrect.verify.code import CodeGrader


@functools.cache
def code_grader(trust_forgeable: bool, accept_risk: str | None) -> CodeGrader:
    """The grader of programs; its sandboxes start with the first program.

    Args:
        trust_forgeable: whether tests that had to run in the program's process count, see ``CodeGrader``.
        accept_risk: the setting ``task.accept_risk``.

    Raises:
        ConfigError: the machine is unsafe, and the risk was not accepted by name.
    """
    try:
        grader = CodeGrader(trust_forgeable=trust_forgeable, accept_risk=accept_risk)
    except ConfigError as error:
        raise ConfigError(f"{error} The setting for that is task.accept_risk.") from error
    atexit.register(grader.close)
    return grader
