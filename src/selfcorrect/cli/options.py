"""Options that several commands share, and commands whose options are the fields of a dataclass."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from dataclasses import MISSING, fields
from typing import Annotated, TypeVar, get_type_hints

import typer

AsJson = Annotated[bool, typer.Option("--json", help="Print the result as one JSON object.")]
Options = TypeVar("Options")


def takes(options: type[Options]) -> Callable[[Callable[[Options], None]], Callable[..., None]]:
    """Give a command the signature that typer reads: one parameter per field, in order, with the field's default if it has one.

    Args:
        options: a dataclass. Each field is ``Annotated`` with its ``typer.Argument`` or ``typer.Option``.
    """
    hints = get_type_hints(options, include_extras=True)
    parameters = [
        inspect.Parameter(
            f.name,
            inspect.Parameter.POSITIONAL_OR_KEYWORD,
            default=inspect.Parameter.empty if f.default is MISSING else f.default,
            annotation=hints[f.name],
        )
        for f in fields(options)  # type: ignore[arg-type]  # a dataclass, which the type system cannot ask for
    ]

    def decorate(command: Callable[[Options], None]) -> Callable[..., None]:
        @functools.wraps(command)
        def run(**given: object) -> None:
            command(options(**given))

        del run.__wrapped__
        run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        run.__annotations__ = {**hints, "return": None}
        return run

    return decorate
