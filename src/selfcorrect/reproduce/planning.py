"""Which processes some targets need, in the order in which they run."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from selfcorrect.reproduce.choice import Choice, rows_in_order
from selfcorrect.reproduce.jobs import SELFCORRECT, Job
from selfcorrect.reproduce.rows import CORE, DECIDING, ROWS, TARGETS, TableRow

CODE_MEASURES = ("humaneval", "mbpp_repair")
"""Tasks that table3 measures every row on."""


def jobs_of(choice: Choice, targets: Sequence[str]) -> list[Job]:
    """Every process behind some targets: the deciding rows of all seeds, the core, other rows, then the measurements.

    Raises:
        ConfigError: settings are wrong for a row.
    """
    rows = rows_in_order(targets)
    trained = [row for row in rows if row.kind == "trained"]
    jobs = []
    for group in (DECIDING, CORE[len(DECIDING) :], [row.key for row in trained if row.key not in CORE]):
        for seed in choice.seeds:
            for row in trained:
                if row.key in group and seed in choice.seeds_of(row):
                    path = choice.run_path(row, seed)
                    settings = (*choice.overrides(row, seed), f"run_dir={json.dumps(str(path))}")
                    steps = choice.config(row, seed).train.steps
                    command = (*SELFCORRECT, "train", *settings, "--base-from", str(path.parent))
                    jobs.append(Job(row.key, path, command, is_run=True, total_steps=steps))
    if "table3" in targets:
        return jobs + [
            code_job(choice, row, seed, measure)
            for row in rows
            for seed in (choice.seeds if row.kind == "trained" else choice.seeds[:1])
            for measure in CODE_MEASURES
        ]
    jobs += [prompted_job(choice, row) for row in rows if row.kind == "prompted"]
    if "shift" in targets:
        jobs += [script_job(choice, ROWS[key], seed, "shift") for seed in choice.seeds for key in TARGETS["shift"].rows]
    more = sorted({key for t in ("scaling", "attempts") if t in targets for key in TARGETS[t].rows} - {"base"})
    jobs += [script_job(choice, ROWS[key], seed, "scaling") for seed in choice.seeds for key in more]
    return jobs


def prompted_job(choice: Choice, row: TableRow) -> Job:
    """The job of a way to play the base. It runs once, because greedy answers do not depend on a seed."""
    path = choice.run_path(row, choice.seeds[0])
    return _eval_job(row, path, [choice.model, *choice.overrides(row, choice.seeds[0])[1:]])


def code_job(choice: Choice, row: TableRow, seed: int, measure: str) -> Job:
    """One row of table3 on HumanEval or MBPP-R."""
    run = choice.run_path(row, seed)
    data = [f"task.path={json.dumps(choice.humaneval) if choice.humaneval else 'none'}"]
    onto = [f"task.name={measure}", *(data if measure == "humaneval" else ()), "eval.problems=none"]
    path = run.with_name(f"{run.name}.{measure}")
    if row.kind == "trained":
        return _eval_job(row, path, [str(run), *onto, "eval.controls=false"], needs=run)
    return _eval_job(row, path, [choice.model, *choice.overrides(row, seed)[1:], *onto])


def _eval_job(row: TableRow, path: Path, arguments: Sequence[str], needs: Path | None = None) -> Job:
    out = path.with_name(f"{path.name}.jsonl")
    return Job(row.key, out, (*SELFCORRECT, "eval", *arguments, "--out", str(out)), is_run=False, needs=needs)


def script_job(choice: Choice, row: TableRow, seed: int, what: Literal["shift", "scaling"]) -> Job:
    """A measurement of the kept checkpoint by ``kept``; ``scaling`` measures the base too, with SCoRe's first seed."""
    run = choice.run_path(row, seed)
    out = run.with_name(f"{run.name}.{what}.jsonl")
    with_base = what == "scaling" and row.key == "score" and seed == choice.seeds[0]
    measure = f"{what}+base" if with_base else what
    command = (sys.executable, "-m", "selfcorrect.reproduce.kept", measure, str(run), str(out))
    return Job(f"{row.key}.{what}", out, command, is_run=False, needs=run)
