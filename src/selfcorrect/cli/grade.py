"""``selfcorrect grade math`` and ``selfcorrect grade code``."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from selfcorrect.errors import Interrupted, RunError

if TYPE_CHECKING:
    from selfcorrect.types import Grade
    from selfcorrect.verify.cases import CaseRow

Case = TypeVar("Case")

grade = typer.Typer(
    help="Give the verdict on every row of a file of answers: math answers, or programs in sandboxes.\n\n"
    "Example: `selfcorrect grade math --cases cases.jsonl --out verdicts.jsonl`",
    no_args_is_help=True,
    rich_markup_mode="markdown",
)

Cases = Annotated[Path, typer.Option(help="JSONL file, plain or gzipped; one case per line, blank lines do not count.")]
Out = Annotated[Path, typer.Option(help="JSONL file for the verdicts, in the order of the cases; must not exist.")]
Resume = Annotated[bool, typer.Option("--resume", help="Go on behind the verdicts that --out holds.")]
Workers = Annotated[int | None, typer.Option(min=1, max=256, help="Rows graded at once.", show_default="by the cores")]


@grade.command(name="math")
def math_command(
    cases: Cases,
    out: Out,
    bare: Annotated[bool, typer.Option("--bare", help="`response` is the answer itself: nothing is searched.")] = False,
    workers: Workers = None,
    resume: Resume = False,
) -> None:
    """Grade math answers: rows with `id`, `gold`, `response`.

    Writes one row `{id, verdict, seconds, detail}` per case; a row that cannot be graded gets the verdict `error` and
    the reason.

    Example: `selfcorrect grade math --cases cases.jsonl.gz --out verdicts.jsonl`
    """
    from selfcorrect.verify.cases import math_case, read_cases
    from selfcorrect.verify.math import MathGrader

    _claim(out, resume)
    _note_missing_packages()
    with MathGrader(workers=workers) as grader:
        grader.warm_up()  # else the first rows would be charged for it
        rows = read_cases(cases, partial(math_case, bare=bare))
        _run(rows, out, lambda c: grader.grade(c.gold, c.text, bare=c.bare), grader.workers, resume)


@grade.command(name="code")
def code_command(
    cases: Cases,
    out: Out,
    trust_forgeable: Annotated[
        bool,
        typer.Option(
            help="Count a pass of tests that need the program's own classes, and so ran beside it; `detail` marks it."
        ),
    ] = True,
    accept_risk: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Run on a machine that lacks a protection: the name that the refusal gives."),
    ] = None,
    workers: Workers = None,
    resume: Resume = False,
) -> None:
    """Grade programs: rows with `id`, `style`, `prompt`, `entry_point`, `tests`, `completion`, `completion_form`.

    Every program runs in a sandbox of its own. Writes one row `{id, verdict, seconds, detail}` per case; a row that
    cannot be graded gets the verdict `error` and the reason.

    Example: `selfcorrect grade code --cases cases.jsonl --out verdicts.jsonl`
    """
    from selfcorrect.verify.cases import code_request, read_cases
    from selfcorrect.verify.code import CodeGrader

    _claim(out, resume)
    with CodeGrader(workers=workers, trust_forgeable=trust_forgeable, accept_risk=accept_risk) as grader:
        _note_missing_protections()
        grader.warm()
        _run(read_cases(cases, code_request), out, grader.grade, grader.workers, resume)


def _claim(out: Path, resume: bool) -> None:
    from selfcorrect.records.files import claim

    if resume and out.exists():
        return
    if out.exists():
        raise RunError(
            f"{out} exists already and is not overwritten; remove it, name another place, or finish it with --resume"
        )
    claim(out)


def _run(
    rows: Iterator[CaseRow[Case]], out: Path, grade_one: Callable[[Case], Grade], workers: int, resume: bool
) -> None:
    from selfcorrect.training.loop import stop_on_signal
    from selfcorrect.verify.batch import grade_rows

    try:
        with stop_on_signal(_heard) as stop_requested:
            tally = grade_rows(rows, out, grade_one, workers, resume=resume, stop_requested=stop_requested)
    except KeyboardInterrupt:
        raise Interrupted(f"stopped at once; {out} holds the verdicts written so far, and --resume goes on") from None
    print(tally.text(), file=sys.stderr)
    if tally.stopped:
        raise Interrupted(
            f"stopped as asked; {out} holds the verdicts of the first {tally.kept + tally.written} rows, and --resume "
            "goes on behind them"
        )


def _heard() -> None:
    os.write(sys.stderr.fileno(), b"\nfinishing the rows that are being graded; once more drops them\n")


def _note_missing_packages() -> None:
    import importlib.util

    if importlib.util.find_spec("math_verify") is None:
        print(
            "note: math-verify is not installed, so formulas outside our own grammar get the verdict error; "
            "pip install math-verify",
            file=sys.stderr,
        )


def _note_missing_protections() -> None:
    from selfcorrect.verify.code import sandbox_report

    for item in sandbox_report().items:
        if not item.present:
            print(f"note: without {item.name}: {item.detail}", file=sys.stderr)
