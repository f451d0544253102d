"""From a choice to files: check everything, run what is missing, write every target."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from importlib import metadata
from itertools import islice
from pathlib import Path
from typing import Any

from selfcorrect.errors import SelfCorrectError
from selfcorrect.experiment import command_line, prepare
from selfcorrect.measuring.compare import read_evaluation
from selfcorrect.records.files import write_jsonl
from selfcorrect.records.lines import episode_row
from selfcorrect.report import write_report
from selfcorrect.report.tags import tags_of
from selfcorrect.reproduce import diagnostics, scaling_results, tables
from selfcorrect.reproduce.choice import Choice, refuse_without_code_model, rows_in_order, targets_of
from selfcorrect.reproduce.jobs import Runner, Watcher, claimed, finished_seconds
from selfcorrect.reproduce.measured import Measurements
from selfcorrect.reproduce.output import Provenance, write_claims, write_result
from selfcorrect.reproduce.planning import jobs_of
from selfcorrect.reproduce.result import Result
from selfcorrect.reproduce.rows import ROWS, TARGETS
from selfcorrect.reproduce.verdicts import Verdict

MAKERS: dict[str, Callable[[Measurements], Result]] = {
    "table1": lambda m: tables.table("table1", m),
    "table2": lambda m: tables.table("table2", m),
    "table3": tables.code_table,
    "table4": lambda m: tables.table("table4", m),
    "estimators": lambda m: tables.table("estimators", m),
    "edits": diagnostics.edits,
    "collapse": diagnostics.collapse,
    "shift": diagnostics.shift,
    "demo": lambda m: replace(tables.table("demo", m), drawings=diagnostics.collapse(m, "demo").drawings),
    "successors": lambda m: tables.table("successors", m),
    "countdown": lambda m: replace(tables.table("countdown", m), drawings=diagnostics.collapse(m).drawings),
    "levels": diagnostics.levels,
    "scaling": scaling_results.scaling,
    "attempts": scaling_results.attempts,
}
EPISODES_PER_KIND = 20
"""Episodes of every row and kind (fixed, broken, kept, copied) in episodes.jsonl."""
KINDS = ("fixed", "broken", "kept-right", "kept-wrong", "copied")


@dataclass(frozen=True)
class Made:
    """The outputs of a call."""

    files: tuple[Path, ...]
    verdicts: dict[str, tuple[Verdict, ...]]
    """Verdicts on claims, by target."""
    failures: dict[str, str]
    """Why a job or target is missing, by name."""


def reproduce(
    name: str,
    choice: Choice,
    at_once: int,
    watcher: Watcher,
    stop_requested: Callable[[], bool] = lambda: False,
) -> Made:
    """Run what is missing for a target, or for ``all``, and write the outputs.

    Args:
        name: a target or ``all``.
        choice: models, seeds and settings.
        at_once: processes that run at the same time, one thread each.
        watcher: shows the progress.
        stop_requested: True ends everything cleanly; the same call continues later.

    Raises:
        SelfCorrectError: something is wrong with the settings, the model or the data, before anything runs.
        Interrupted: asked to stop.
    """
    targets = targets_of(name)
    if "table3" in targets:
        refuse_without_code_model(choice)
    jobs = jobs_of(choice, targets)
    if any(not job.finished for job in jobs):
        first = next(row for row in rows_in_order(targets) if row.kind == "trained")
        prepare(choice.config(first, choice.seeds[0]))
    with claimed(choice.out):
        runner = Runner(choice.out, at_once, watcher)
        runner.run(jobs, stop_requested)
        return write_outputs(choice, targets, runner.failures)


def write_outputs(choice: Choice, targets: Sequence[str], failures: dict[str, str]) -> Made:
    """Write what the finished runs show, target by target."""
    files: list[Path] = []
    results: list[Result] = []
    failed = dict(failures)
    measured = Measurements(choice)
    for target in targets:
        try:
            result = MAKERS[target](measured)
        except SelfCorrectError as error:
            failed[target] = str(error)
            continue
        files += write_result(result, _provenance(choice, [target], failures), choice.out)
        results.append(result)
    if len(results) > 1:
        files.append(write_claims(results, _provenance(choice, targets, failures), choice.out))
    try:
        files += _browsable(choice, measured, targets)
    except SelfCorrectError as error:
        failed["report.html"] = str(error)
    return Made(tuple(files), {result.name: result.verdicts for result in results}, failed)


def _provenance(choice: Choice, targets: Sequence[str], failures: dict[str, str]) -> Provenance:
    own = {job.name for job in jobs_of(choice, targets)}
    return Provenance(
        command=command_line(),
        version=version(),
        model=choice.model,
        task=choice.task,
        seeds=choice.seeds,
        seconds=sum(s for name, (_, s) in finished_seconds(choice.out).items() if name in own),
        settings=choice.common,
        quick=choice.quick,
        failures={name: why for name, why in failures.items() if name in own},
    )


def version() -> str:
    """Package version, with the commit if the package runs from its own repository."""
    named = f"selfcorrect {metadata.version('selfcorrect')}"
    root = Path(__file__).resolve().parents[3]
    if not (root / ".git").exists():
        return named
    git = ["git", "-C", str(root), "describe", "--always", "--dirty", "--exclude", "*"]
    try:
        commit = subprocess.run(git, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return named
    return f"{named}, commit {commit}"


def _browsable(choice: Choice, measured: Measurements, targets: Sequence[str]) -> list[Path]:
    """The report page of the first seed's runs, and some episodes of every kind as JSONL."""
    seed = choice.seeds[0]
    shown = {key: measured.paths(key) for key in ROWS if any(key in TARGETS[t].rows for t in targets)}
    paths = {key: by_seed[seed] for key, by_seed in shown.items() if seed in by_seed}
    if not paths:
        return []
    page, sample = choice.out / "report.html", choice.out / "episodes.jsonl"
    write_report(list(paths.values()), page)
    rows: list[dict[str, Any]] = []
    for key, path in paths.items():
        episodes = sorted(read_evaluation(path, "final"), key=lambda e: (e.problem.id, e.sample))
        for kind in KINDS:
            some = islice((e for e in episodes if kind in tags_of(e)), EPISODES_PER_KIND)
            rows += [{"row": key, "seed": seed, "kind": kind, **episode_row(e)} for e in some]
    write_jsonl(sample, rows, "free some space and call the same command again")
    return [page, sample]
