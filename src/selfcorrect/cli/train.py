"""``selfcorrect train``."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from selfcorrect.cli.settings import read_settings
from selfcorrect.config import SftConfig
from selfcorrect.errors import ConfigError, RunError, SelfCorrectError


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
    if resume is not None and settings:
        raise ConfigError(
            "--resume continues a run with its own settings; drop the settings, or start a new run without --resume"
        )
    if resume is not None:
        _run(None, resume, as_json)
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
    _run(config, None, as_json)


def _run(config: Any, resume: Path | None, as_json: bool) -> None:
    from rich.console import Console

    from selfcorrect.cli.progress import TerminalObserver
    from selfcorrect.cli.tables import show, summary_table
    from selfcorrect.experiment import make_engine, prepare, run_experiment
    from selfcorrect.run import RunDirectory
    from selfcorrect.train import stop_on_signal

    run = RunDirectory.open(resume) if resume is not None else None
    config = run.config if run is not None else config
    if run is None:
        RunDirectory.refuse_existing(config)
    else:
        _refuse_finished(run)
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
    with run.writing():
        try:
            engine = make_engine(job)
        except SelfCorrectError:
            run.abandon()
            raise
        with stop_on_signal(_heard) as stop_requested, TerminalObserver(console) as observer:
            outcome = run_experiment(job, run, engine, observer, console.print, stop_requested)
    summaries = {r.name: r.summary for r in _evaluations(run)}
    if as_json:
        print(json.dumps({"run": str(run.path), "step": outcome.kept_step, "evaluations": summaries}))
        return
    from selfcorrect.metrics import EvalSummary

    rows = {_row_name(name, config.method.name): EvalSummary.from_json(s) for name, s in summaries.items()}
    show(summary_table(rows, f"{config.task.name}, held-out problems, seed {config.seed}"))
    print(f"run      {run.path}\nmodel    {run.path / 'model'}\nrecords  {run.metrics_file}")


def _refuse_finished(run: Any) -> None:
    """Going on from the last checkpoint would drop the final measurement before making it again."""
    from selfcorrect.records import EndRecord

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
    from selfcorrect.records import EvalRecord

    return [r for r in run.records() if isinstance(r, EvalRecord)]


def _row_name(name: str, method: str) -> str:
    """``final-swapped`` -> ``score, attempt 1 swapped``."""
    first, _, control = name.partition("-")
    who = method if first == "final" else first
    words = {"": "", "swapped": ", attempt 1 of another problem", "given-wrong": ", wrong attempt 1 given"}
    return who + words.get(control, f", {control}")
