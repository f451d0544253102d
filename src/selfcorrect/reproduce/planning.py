"""Which processes some targets need, in the order of running."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

from selfcorrect.reproduce.choice import Choice, rows_in_order
from selfcorrect.reproduce.jobs import SELFCORRECT, Job
from selfcorrect.reproduce.rows import CORE, ROWS, TARGETS, TableRow

CODE_MEASURES = ("humaneval", "mbpp_repair")
"""Tasks that table3 measures every row on."""


def jobs_of(choice: Choice, targets: Sequence[str]) -> list[Job]:
    """Every process behind some targets: core rows of all seeds, the other rows, then what is measured afterwards.

    Raises:
        ConfigError: settings are wrong for a row.
    """
    rows = rows_in_order(targets)
    task = choice.task_of(targets[0])
    core, rest = [[row for row in rows if (row.key in CORE) is wanted] for wanted in (True, False)]
    jobs = [
        run_job(choice, row, seed, task)
        for group in (core, rest)
        for seed in choice.seeds
        for row in group
        if row.kind == "trained" and seed in choice.seeds_of(row)
    ]
    if "table3" in targets:
        return jobs + [code_job(choice, row, seed, m) for row, seed in _measured(choice, rows) for m in CODE_MEASURES]
    jobs += [prompted_job(choice, row, task) for row in rows if row.kind == "prompted"]
    if "shift" in targets:
        shown = [ROWS[key] for key in TARGETS["shift"].rows]
        jobs += [shift_job(choice, row, seed, task) for seed in choice.seeds for row in shown]
    more = sorted({key for t in ("scaling", "attempts") if t in targets for key in TARGETS[t].rows} - {"base"})
    jobs += [samples_job(choice, ROWS[key], seed, task) for seed in choice.seeds for key in more]
    return jobs


def _measured(choice: Choice, rows: Sequence[TableRow]) -> list[tuple[TableRow, int]]:
    """Untrained rows are the same with every seed: measured once."""
    return [(row, seed) for row in rows for seed in (choice.seeds if row.kind == "trained" else choice.seeds[:1])]


def run_path(choice: Choice, row: TableRow, seed: int, task: str) -> Path:
    return choice.runs_dir / choice.name_of(row, seed, task)


def run_job(choice: Choice, row: TableRow, seed: int, task: str) -> Job:
    """A run of `selfcorrect train`."""
    path = run_path(choice, row, seed, task)
    settings = [*choice.overrides(row, seed, task), f"run_dir={json.dumps(str(path))}"]
    steps = choice.config(row, seed, task).train.steps
    return Job(row.key, path, (*SELFCORRECT, "train", *settings), is_run=True, total_steps=steps)


def prompted_job(choice: Choice, row: TableRow, task: str) -> Job:
    """A way to play the base: measured once, because greedy answers have no seed."""
    seed = choice.seeds[0]
    return _eval_job(row, run_path(choice, row, seed, task), choice.model, choice.overrides(row, seed, task)[1:])


def code_job(choice: Choice, row: TableRow, seed: int, measure: str) -> Job:
    """One row of table3 on HumanEval or MBPP-R."""
    task = choice.task_of("table3")
    path = run_path(choice, row, seed, task)
    where = (
        []
        if measure == "mbpp_repair"
        else [f"task.path={json.dumps(choice.humaneval) if choice.humaneval else 'none'}"]
    )
    onto = [f"task.name={measure}", *where, "eval.problems=none"]
    target = path.with_name(f"{path.name}.{measure}")
    if row.kind == "trained":
        return _eval_job(row, target, str(path), [*onto, "eval.controls=false"], needs=path)
    return _eval_job(row, target, choice.model, [*choice.overrides(row, seed, task)[1:], *onto])


def _eval_job(row: TableRow, path: Path, subject: str, settings: Sequence[str], needs: Path | None = None) -> Job:
    command = (*SELFCORRECT, "eval", subject, *settings, "--out", "{out}")
    return Job(row.key, path.with_name(f"{path.name}.jsonl"), command, is_run=False, needs=needs)


def shift_job(choice: Choice, row: TableRow, seed: int, task: str) -> Job:
    """The kept checkpoint after its own and after the base's first attempts."""
    path = run_path(choice, row, seed, task)
    command = (sys.executable, "-m", "selfcorrect.reproduce.shift", str(path), "{out}")
    return Job(f"{row.key}.shift", path.with_name(f"{path.name}.shift.jsonl"), command, is_run=False, needs=path)


def samples_job(choice: Choice, row: TableRow, seed: int, task: str) -> Job:
    """The kept checkpoint with more responses and more attempts; beside SCoRe's first seed, the base."""
    path = run_path(choice, row, seed, task)
    which = "base+kept" if row.key == "score" and seed == choice.seeds[0] else "kept"
    command = (sys.executable, "-m", "selfcorrect.reproduce.more_samples", str(path), which, "{out}")
    return Job(f"{row.key}.scaling", path.with_name(f"{path.name}.scaling.jsonl"), command, is_run=False, needs=path)
