"""``selfcorrect train``."""

from __future__ import annotations

import json
import os
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from selfcorrect.cli.settings import from_elsewhere, read_settings
from selfcorrect.config import Config, SftConfig, override
from selfcorrect.errors import ConfigError, RunError, SelfCorrectError

if TYPE_CHECKING:
    from selfcorrect.records.run_directory import RunDirectory


def train(
    settings: Annotated[
        list[str] | None, typer.Argument(metavar="[CONFIG.toml] [key=value ...]", help="A config file, then settings.")
    ] = None,
    resume: Annotated[Path | None, typer.Option(help="Run directory to continue from its latest checkpoint.")] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check and print the resolved settings and the stages, and exit.")
    ] = False,
    base_from: Annotated[
        Path | None,
        typer.Option(
            help="Directory of runs. One that measured the same base greedily spares this run that measurement."
        ),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the result as one JSON object on standard output.")
    ] = False,
) -> None:
    """Train a model: measure it, run the method's stages, keep the best checkpoint, and measure again.

    Example: `selfcorrect train model=tiny task=arithmetic method=score seed=1`

    With a real model: `selfcorrect train model=Qwen/Qwen2.5-0.5B-Instruct task=gsm8k model.lora_rank=32`
    """
    settings = settings or []
    if base_from is not None and not base_from.is_dir():
        raise ConfigError(
            f"--base-from {base_from} is not a directory; give one that holds run directories, or leave it out"
        )
    if resume is not None:
        from selfcorrect.records.run_directory import RunDirectory

        if any(not s.startswith("trackers=") for s in settings):
            raise ConfigError(
                "--resume continues a run with its own settings, and only trackers= may change; drop the settings, or "
                "start a new run without --resume"
            )
        run = RunDirectory.open(resume)
        _run(run.config, run, as_json, settings, base_from)
        return
    config = read_settings(settings)
    if config.sft != SftConfig():
        raise ConfigError(
            "sft.* settings would be ignored by `selfcorrect train`; drop them, or run `selfcorrect sft` first and pass its "
            "directory as the model"
        )
    if dry_run:
        from selfcorrect.algorithm.stages import plan
        from selfcorrect.cli.tables import show_stages
        from selfcorrect.tasks import make_task
        from selfcorrect.trackers import make_trackers

        stages = plan(config)
        make_task(config.task)  # settings that would stop the run, an import path among them; reads no data
        make_trackers(config.trackers)  # imports their packages, as the run does first
        print(config.model_dump_json(indent=2))
        show_stages(stages)
    else:
        _run(config, None, as_json, [], base_from)


def _run(
    config: Config, run: RunDirectory | None, as_json: bool, changes: list[str], base_from: Path | None = None
) -> None:
    """Start a run, or resume one with changed trackers."""
    from selfcorrect.cli.progress import TerminalObserver, measuring_seconds
    from selfcorrect.cli.tables import show_summaries
    from selfcorrect.cli.terminal import plain_console
    from selfcorrect.experiment import make_engine, prepare, run_experiment
    from selfcorrect.measuring.labels import model_and_control
    from selfcorrect.measuring.metrics import EvalSummary
    from selfcorrect.records.lines import EndRecord, EvalRecord
    from selfcorrect.records.run_directory import RunDirectory
    from selfcorrect.trackers import Tracking, make_trackers
    from selfcorrect.training.loop import Observers, stop_on_signal

    if run is not None:
        end = next((r for r in reversed(run.records()) if isinstance(r, EndRecord)), None)
        if end is not None and end.reason == "finished":  # resuming would drop its final measurement
            raise RunError(
                f"{run.path} is finished, after {end.step} steps; see it with `selfcorrect compare {run.path}`, or start a new run "
                "with more train.steps"
            )
    else:
        RunDirectory.refuse_existing(config)
    trackers = make_trackers(override(config, changes).trackers)
    with from_elsewhere(run, config, "`selfcorrect train --resume {run}`"):
        job = prepare(config)
    run = run or RunDirectory.create(config)
    console = plain_console(stderr=True)
    say = partial(console.print, highlight=False, soft_wrap=True)
    say(f"{config.model.name}, {config.task.name}, {config.method.name}, seed {config.seed} -> {run.path}")
    if job.note:
        say(job.note)
    terminal = TerminalObserver(console, measuring_seconds(run))
    with run.writing():
        try:
            with Tracking(run, trackers, partial(say, style="yellow", markup=False)) as tracking:
                engine = make_engine(job)
                with stop_on_signal(announce_stop) as stop, terminal:
                    outcome = run_experiment(
                        job, run, engine, Observers(terminal, tracking), console.print, stop, base_from
                    )
        except SelfCorrectError:
            run.abandon()  # does nothing once there is a record
            raise
    summaries = {r.name: r.summary for r in run.records() if isinstance(r, EvalRecord)}
    if as_json:
        print(json.dumps({"run": str(run.path), "step": outcome.kept_step, "evaluations": summaries}))
        return
    rows = {}
    for name, summary in summaries.items():
        model, control = model_and_control(name)
        row = config.method.name if model == "final" else model
        rows[f"{row}, {control}" if control else row] = EvalSummary.from_json(summary)
    show_summaries(rows, f"{config.task.name}, held-out problems, seed {config.seed}")
    print(f"run      {run.path}\nmodel    {run.path / 'model'}\nrecords  {run.metrics_file}")


def announce_stop() -> None:
    """Say that the run will stop; a step or a measurement may still take minutes. A plain write, for use in a signal
    handler."""
    os.write(sys.stderr.fileno(), b"\nstopping after this step; a second signal stops at once\n")
