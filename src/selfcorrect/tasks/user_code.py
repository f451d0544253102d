"""Code of a user: functions found by import path, and what they may return."""

from __future__ import annotations

import importlib
import inspect
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from selfcorrect.errors import ConfigError
from selfcorrect.tasks.gsm8k import final_line
from selfcorrect.types import Grade, Verdict


def import_callable(setting: str, name: str, form: str, arguments: int) -> Any:
    """What ``package.module:function`` names, from the environment or the working directory.

    Args:
        setting: the setting that names it, for the message.
        name: the import path.
        form: how the function is to be written, for the message.
        arguments: how many it will be given.

    Raises:
        ConfigError: it cannot be imported, or does not take that many arguments.
    """
    module, _, function = name.partition(":")
    if str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))  # as `python -m` does: a file in the working directory is enough
    try:
        found = getattr(importlib.import_module(module), function)
        inspect.signature(found).bind(*range(arguments))
    except Exception as error:  # a user's module may raise anything while it is imported
        raise ConfigError(
            f"{setting} = {name!r} cannot be used: {type(error).__name__}: {error}; it has to name a function {form} in a "
            "module that can be imported from this environment or from the working directory"
        ) from error
    return found


def judged(name: str, judge: Callable[[], Any], text: str, truncated: bool) -> Grade:
    """The grade that a user's verdict stands for: what their code does wrong is an ``error`` with the reason, never a 0.

    Args:
        name: of their function, for the reason.
        judge: calls it; it may return bool, ``Verdict`` or ``Grade``.
        text: what is judged.
        truncated: the token cap cut the text, so that False means ``truncated`` instead of ``wrong``.
    """
    try:
        verdict = judge()
    except (Exception, SystemExit) as error:  # noqa: BLE001  # the edge to a user's code: one bad row must not end a training run
        return Grade(Verdict.ERROR, None, f"{name} raised {type(error).__name__}: {error}")
    if isinstance(verdict, Grade):
        return verdict
    if isinstance(verdict, bool | np.bool_):  # what a comparison of arrays gives
        verdict = Verdict.CORRECT if verdict else Verdict.TRUNCATED if truncated else Verdict.WRONG
    if isinstance(verdict, Verdict):
        # The verifier does not say what it read: the final line, else the whole text, tells two answers apart.
        shown = final_line(text, truncated=False)
        return Grade(verdict, text.strip() if isinstance(shown, Grade) else shown, f"by {name}")
    return Grade(Verdict.ERROR, None, f"{name} returned {type(verdict).__name__}, not bool, Verdict or Grade")
