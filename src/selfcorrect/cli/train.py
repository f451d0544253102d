"""``selfcorrect train``."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from selfcorrect.cli.settings import read_settings
from selfcorrect.config import SftConfig, override
from selfcorrect.errors import ConfigError, RunError, SelfCorrectError

if TYPE_CHECKING:
    from selfcorrect.records.run_directory import RunDirectory


def train(
    settings: Annotated[
        list[str] | None, typer.Argument(metavar="[CONFIG.toml] [key=value ...]", help="A config file, then settings.")
    ] = None,
    resume: Annotated[Path | None, typer.Option(help="Run directory to continue from its latest checkpoint.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the resolved settings and stop.")] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the result as one JSON object on standard output.")
    ] = False,
) -> None:
    """Train a model: measure it, run the method's stages, keep the best checkpoint, measure again.

    Example: `selfcorrect train model=tiny task=arithmetic method=score seed=1`

    With a real model: `selfcorrect train model=Qwen/Qwen2.5-0.5B-Instruct task=gsm8k model.lora_rank=32`
    """
    if resume is not None:
        if any(not s.startswith("trackers=") for s in settings or []):
            raise ConfigError(
                "--resume continues a run with its own settings (only trackers= may change); drop the settings, or start a new "
                "run without --resume"
            )
        _run(None, resume, as_json, settings or [])
        return
    config = read_settings(settings or [])
    if config.sft != SftConfig():
        raise ConfigError(
            "sft.* settings would be ignored by `selfcorrect train`; drop them, or run `selfcorrect sft` first and give its "
            "directory as the model"
        )
    if dry_run:
        print(config.model_dump_json(indent=2))
        return
    _run(config, None, as_json, [])


def _run(config: Any, resume: Path | None, as_json: bool, changed: list[str]) -> None:
    from rich.console import Console

    from selfcorrect.cli.progress import TerminalObserver, measuring_seconds
    from selfcorrect.cli.tables import show, summary_table
    from selfcorrect.experiment import make_engine, prepare, run_experiment
    from selfcorrect.records.run_directory import RunDirectory
    from selfcorrect.trackers import Tracking, make_trackers
    from selfcorrect.training.loop import Observers, stop_on_signal

    run = RunDirectory.open(resume) if resume is not None else None
    config = run.config if run is not None else config
    if run is None:
        RunDirectory.refuse_existing(config)
    else:
        _refuse_finished(run)
    trackers = make_trackers(override(config, changed).trackers)
    job = prepare(config)
    run = run or RunDirectory.create(config)
    console = Console(stderr=True)
    console.print(
        f"{config.model.name}, {config.task.name}, {config.method.name}, seed {config.seed} -> {run.path}",
        highlight=False,
        soft_wrap=True,
    )
    if job.note:
        console.print(job.note, highlight=False, soft_wrap=True)
    say = partial(console.print, style="yellow", highlight=False, soft_wrap=True, markup=False)
    with run.writing(), _abandoned_on_failure(run), Tracking(run, trackers, say) as tracking:
        engine = make_engine(job)
        with stop_on_signal(_heard) as stop_requested, TerminalObserver(console, measuring_seconds(run)) as terminal:
            outcome = run_experiment(job, run, engine, Observers(terminal, tracking), console.print, stop_requested)
    summaries = {r.name: r.summary for r in _evaluations(run)}
    if as_json:
        print(json.dumps({"run": str(run.path), "step": outcome.kept_step, "evaluations": summaries}))
        return
    from selfcorrect.measuring.metrics import EvalSummary

    rows = {_row_name(name, config.method.name): EvalSummary.from_json(s) for name, s in summaries.items()}
    show(summary_table(rows, f"{config.task.name}, held-out problems, seed {config.seed}"))
    print(f"run      {run.path}\nmodel    {run.path / 'model'}\nrecords  {run.metrics_file}")


@contextmanager
def _abandoned_on_failure(run: RunDirectory) -> Iterator[None]:
    """A new run that failed before its first record leaves nothing behind."""
    try:
        yield
    except SelfCorrectError:
        run.abandon()
        raise


def _refuse_finished(run: Any) -> None:
    """Going on from the last checkpoint would drop the final measurement before making it again."""
    from selfcorrect.records.lines import EndRecord

    ends = [r for r in run.records() if isinstance(r, EndRecord)]
    if ends and ends[-1].reason == "finished":
        raise RunError(
            f"{run.path} is finished, after {ends[-1].step} steps; see it with `selfcorrect compare {run.path}`, or start a new "
            "run with more train.steps"
        )


def _heard() -> None:
    """Say so at once, by a plain write: a step or a measurement may still take minutes, and this runs in a signal handler."""
    os.write(sys.stderr.fileno(), b"\nstopping after this step; once more stops at once\n")


def _evaluations(run: Any) -> list[Any]:
    from selfcorrect.records.lines import EvalRecord

    return [r for r in run.records() if isinstance(r, EvalRecord)]


def _row_name(name: str, method: str) -> str:
    """``final-swapped`` -> ``score, attempt 1 swapped``."""
    from selfcorrect.measuring.labels import model_and_control

    who, control = model_and_control(name)
    return (method if who == "final" else who) + (f", {control}" if control else "")
