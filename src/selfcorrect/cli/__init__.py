"""The command line: one file per command."""

from __future__ import annotations

import sys
from collections.abc import Collection
from importlib import import_module
from typing import Annotated

import typer

from selfcorrect import __version__
from selfcorrect.errors import SelfCorrectError

COMMANDS = {
    "train": ("train", "Train a model and measure it before and after."),
    "eval": ("evaluate", "Measure a model, a run or an endpoint on held-out problems."),
    "scale": ("scale", "Measure accuracy by number of responses and of attempts."),
    "compare": ("compare", "Compare runs in one table, with intervals."),
    "serve": ("serve", "Serve a model that corrects itself, OpenAI-compatible."),
    "cluster": ("cluster", "Show how to start a SkyRL server for large models."),
    "report": ("report", "Write one HTML page about runs."),
    "export": ("export", "Export a run's model with its model card."),
    "reproduce": ("reproduce", "Reproduce the paper's tables."),
    "sft": ("sft", "Teach a model a task's answer format before training."),
    "validate": ("validate", "Check a task before training on it."),
    "probe": ("probe", "Check whether a model can learn to correct itself on a task."),
    "doctor": ("doctor", "Check what works on this machine."),
    "grade": ("grade", "Grade a file of answers, without a model."),
}
"""Module and summary of every command. The module has a function, or a group of commands, of the same name."""


def make_app(load: Collection[str] = tuple(COMMANDS)) -> typer.Typer:
    """The command line.

    Args:
        load: commands that can be run. The others are listed with their summary but not imported, which keeps
            ``--help`` and every command fast.
    """
    app = typer.Typer(
        no_args_is_help=True,
        add_completion=False,
        rich_markup_mode="markdown",
        pretty_exceptions_enable=False,
    )
    app.callback()(before_any_command)
    for name, (module, summary) in COMMANDS.items():
        command = getattr(import_module(f"selfcorrect.cli.{module}"), module) if name in load else lambda: None
        if isinstance(command, typer.Typer):
            app.add_typer(command, name=name, short_help=summary)
        else:
            app.command(name, short_help=summary)(command)
    return app


def show_version(asked: bool) -> None:
    """Print the version, if it was asked for."""
    if asked:
        print(__version__)
        raise typer.Exit


def before_any_command(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version, and exit.", callback=show_version, is_eager=True)
    ] = False,
) -> None:
    """Train a language model to correct its own answers (SCoRe, arXiv:2409.12917)."""


def main() -> None:
    """Entry point: a user's error is printed as one paragraph, not as a traceback."""
    try:
        make_app(COMMANDS.keys() & set(sys.argv[1:]))()
    except SelfCorrectError as error:
        print(f"selfcorrect: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        print("selfcorrect: stopped at once; a run continues from its last checkpoint", file=sys.stderr)
        sys.exit(130)
