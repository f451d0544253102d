"""The command line: one file per command."""

from __future__ import annotations

import sys

import typer

from selfcorrect.cli.cluster import cluster
from selfcorrect.cli.compare import compare
from selfcorrect.cli.doctor import doctor
from selfcorrect.cli.evaluate import evaluate
from selfcorrect.cli.export import export
from selfcorrect.cli.grade import grade
from selfcorrect.cli.probe import probe
from selfcorrect.cli.report import report
from selfcorrect.cli.reproduce import reproduce
from selfcorrect.cli.scale import scale
from selfcorrect.cli.serve import serve
from selfcorrect.cli.sft import sft
from selfcorrect.cli.train import train
from selfcorrect.cli.validate import validate
from selfcorrect.errors import SelfCorrectError

app = typer.Typer(
    help="Train a language model to correct its own answers (SCoRe, arXiv:2409.12917).",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
)
app.command()(train)
app.command(name="eval")(evaluate)
app.command()(scale)
app.command()(compare)
app.command()(serve)
app.command()(cluster)
app.command()(report)
app.command()(export)
app.command()(reproduce)
app.command()(sft)
app.command()(validate)
app.command()(probe)
app.command()(doctor)
app.add_typer(grade, name="grade")


def main() -> None:
    """Entry point: the user's errors are printed as one paragraph, not as a traceback."""
    try:
        app()
    except SelfCorrectError as error:
        print(f"selfcorrect: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        print("selfcorrect: stopped at once; a run continues from its last checkpoint", file=sys.stderr)
        sys.exit(130)
