"""``selfcorrect validate``."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated

import typer

from selfcorrect.cli.settings import read_settings

if TYPE_CHECKING:
    from selfcorrect.measuring.validate import Rejected


def validate(
    settings: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[CONFIG.toml] [key=value ...] [SPLIT ...]",
            help="A config file, settings, and splits (default: all, and demonstrations).",
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as one JSON object.")] = False,
) -> None:
    """Run every gold answer or reference program of a task through the task's own verifier, and print each that fails.

    If the task has demonstrations, judges 500 of them too (`demonstrations` names them like a split): right answers
    must be judged right, honest wrong tries wrong, and their checks must be sound.

    Loads no model. The exit code is 1 if an answer fails or a split cannot be read.

    Example: `selfcorrect validate task=gsm8k task.path=data/gsm8k test`
    """
    from selfcorrect.measuring.validate import DEMONSTRATIONS
    from selfcorrect.measuring.validate import validate as run
    from selfcorrect.tasks import make_task

    given = settings or []
    splits = [a for a in given if "=" not in a and not a.endswith(".toml")]
    task = make_task(read_settings([a for a in given if a not in splits]).task)
    rejected: list[Rejected] = []

    def tell(found: Rejected) -> None:
        rejected.append(found)
        if not as_json:
            print(f"{found.split}  {found.problem_id}  {found.grade.verdict.value}: {found.grade.detail}")

    reports = run(task, splits, tell)
    if as_json:
        rows = [
            {"split": r.split, "id": r.problem_id, "verdict": r.grade.verdict.value, "detail": r.grade.detail}
            for r in rejected
        ]
        print(json.dumps({"task": task.name, "splits": [r.to_json() for r in reports], "rejected": rows}))
    else:
        for r in reports:
            counts = ", ".join(f"{verdict.value} {n}" for verdict, n in sorted(r.verdicts.items())) or "no problems"
            what = "demonstrated answers" if r.split == DEMONSTRATIONS else "references"
            checks = (
                f"; checks: {r.checks[True]} sound, {r.checks[False]} not" if r.checks[True] or r.checks[False] else ""
            )
            result = f"{r.problems} {what}, {r.rejected} fail ({counts}{checks})"
            print(f"{task.name} {r.split}: {f'cannot be read: {r.unreadable}' if r.unreadable else result}")
    if not all(report.passed for report in reports):
        raise typer.Exit(1)
