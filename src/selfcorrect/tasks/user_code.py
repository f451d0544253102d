"""Users' code: finds functions by import path, and checks what they return."""

from __future__ import annotations

import difflib
import importlib
import inspect
import sys
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import TypeAdapter, ValidationError

from selfcorrect.errors import ConfigError, SelfCorrectError
from selfcorrect.tasks.gsm8k import final_line
from selfcorrect.types import Grade, Verdict


def import_callable(setting: str, name: str, form: str, arguments: int) -> Any:
    """What ``package.module:function`` names, from the environment or the working directory.

    Args:
        setting: the setting that names it, for the message.
        name: the import path.
        form: how the function should be written, for the message.
        arguments: number of arguments that it will receive.

    Raises:
        ConfigError: it cannot be imported, or does not take that many arguments.
    """
    module, _, function = name.partition(":")
    if str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))  # as `python -m` does: a file in the working directory is enough
    try:
        found = getattr(importlib.import_module(module), function)
        inspect.signature(found).bind(*range(arguments))
    except (Exception, SystemExit) as error:  # a user's module may raise anything while it is imported
        raise ConfigError(
            f"{setting} = {name!r} cannot be used: {type(error).__name__}: {error}; it has to name a function {form} in a "
            "module that can be imported from this environment or from the working directory"
        ) from error
    return found


def call_with_options(name: str, make: Callable[..., Any], config: Any, options: Mapping[str, Any]) -> Any:
    """Call a user's function with the task section and ``task.options``, and return the result.

    Its further parameters are the options. Each has a default, and a given value must have its type; if the default is
    None, any value is accepted.

    Args:
        name: the function's import path, for messages.
        make: the function.
        config: its first argument.
        options: its keyword arguments.

    Raises:
        ConfigError: the function has no such option, a value has the wrong type, or the function raises an exception.
    """
    _, *parameters = inspect.signature(make).parameters.values()
    defaults = {p.name: p.default for p in parameters if p.default is not p.empty}
    if not any(p.kind is p.VAR_KEYWORD for p in parameters):
        refuse_unknown_options(options, defaults, name)
    given = {}
    for option, value in options.items():
        try:
            default = defaults.get(option)
            given[option] = value if default is None else TypeAdapter(type(default)).validate_python(value)
        except ValidationError as error:
            reason = error.errors()[0]["msg"]
            raise ConfigError(
                f"task.options.{option} = {value!r}: {reason}; its default in {name} is {default!r}"
            ) from None
    try:
        return make(config, **given)
    except SelfCorrectError:
        raise
    except (Exception, SystemExit) as error:
        raise ConfigError(
            f"task.name = {name!r} failed to make a task: {type(error).__name__}: {error}; correct that function or its "
            "task.options"
        ) from error


def refuse_unknown_options(options: Collection[str], known: Collection[str], owner: str) -> None:
    """Refuse options that the owner does not have.

    Raises:
        ConfigError: names the closest ones, else all of them.
    """
    for option in options:
        if option not in known:
            close = difflib.get_close_matches(option, known, n=3) or sorted(known)
            names = " or ".join(f"task.options.{name}" for name in close)
            way_out = f"did you mean {names}?" if close else "it has no options; drop it"
            raise ConfigError(f"unknown setting 'task.options.{option}' of {owner}: {way_out}")


def judged(name: str, judge: Callable[[], Any], text: str, truncated: bool) -> Grade:
    """The grade for a user's verdict. A fault of the user's code is an ``error`` with the reason, never a 0.

    Args:
        name: name of their function, for the reason.
        judge: calls their function, which may return bool, ``Verdict`` or ``Grade``.
        text: what is judged.
        truncated: whether the token cap cut the text; False then means ``truncated`` instead of ``wrong``.
    """
    try:
        verdict = judge()
    except (Exception, SystemExit) as error:  # noqa: BLE001  # the edge to a user's code: one bad row must not end a training run
        return Grade(Verdict.ERROR, None, f"{name} raised {type(error).__name__}: {error}")
    if isinstance(verdict, Grade):
        held: object = verdict.verdict  # nothing checks what a user's code puts there
        if not isinstance(held, Verdict):
            return Grade(
                Verdict.ERROR, None, f"{name} returned a Grade that holds {type(held).__name__}, not a Verdict"
            )
        # records and votes need texts, and a number comes easily out of a verifier
        extracted = None if verdict.extracted is None else str(verdict.extracted)
        return replace(verdict, extracted=extracted, detail=str(verdict.detail or ""))
    if isinstance(verdict, bool | np.bool_):  # what a comparison of arrays gives
        verdict = Verdict.CORRECT if verdict else Verdict.TRUNCATED if truncated else Verdict.WRONG
    if isinstance(verdict, Verdict):
        # The verifier does not say what it read: the final line, else the whole text, tells two answers apart.
        shown = final_line(text, truncated=False)
        return Grade(verdict, text.strip() if isinstance(shown, Grade) else shown, f"by {name}")
    return Grade(Verdict.ERROR, None, f"{name} returned {type(verdict).__name__}, not bool, Verdict or Grade")
