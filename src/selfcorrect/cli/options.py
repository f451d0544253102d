"""A command's options as one value: a dataclass with a field for each of them."""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Callable
from typing import Any, get_type_hints

Command = Callable[..., None]


def takes(options: type[Any]) -> Callable[[Command], Command]:
    """Let a command take its options as the dataclass ``options``, in a parameter of that name.

    Typer reads a signature with one parameter per field, in the place of that parameter. A field's annotation and default
    say what they would say in a signature.
    """

    def decorate(command: Command) -> Command:
        @functools.wraps(command)
        def called(**given: Any) -> None:
            chosen = {f.name: given.pop(f.name) for f in dataclasses.fields(options)}
            command(**given, options=options(**chosen))

        del called.__dict__["__wrapped__"]  # typer would read the signature of what is wrapped
        hints = get_type_hints(command, include_extras=True)
        own = [p for p in inspect.signature(command).parameters.values() if p.name != "options"]
        parameters = [p.replace(annotation=hints[p.name]) for p in own]
        hints = get_type_hints(options, include_extras=True)
        for f in dataclasses.fields(options):
            default = inspect.Parameter.empty if f.default is dataclasses.MISSING else f.default
            kind = inspect.Parameter.KEYWORD_ONLY
            parameters.append(inspect.Parameter(f.name, kind, default=default, annotation=hints[f.name]))
        called.__annotations__ = {p.name: p.annotation for p in parameters}
        called.__dict__["__signature__"] = inspect.Signature(parameters)
        return called

    return decorate
