"""``selfcorrect eval``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from selfcorrect.cli.settings import read_settings

SHORT = {
    "attempts": "eval.attempts",
    "temperature": "eval.temperature",
    "limit": "eval.problems",
    "samples": "eval.samples",
}
"""Evaluation settings that may be written without their section here."""


def evaluate(
    model: Annotated[str, typer.Argument(help="Model (tiny, smollm2, a directory, a hub id) or a run directory.")],
    settings: Annotated[
        list[str] | None, typer.Argument(metavar="[key=value ...]", help="Settings, e.g. task=gsm8k.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Also write every episode to this JSONL file.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as one JSON object.")] = False,
) -> None:
    """Measure a model on held-out problems: accuracy of every attempt, with intervals and controls.

    Example: `selfcorrect eval tiny task=arithmetic attempts=3 limit=500`
    """
    from selfcorrect.cli.tables import show, summary_table
    from selfcorrect.evaluate import controls, held_out
    from selfcorrect.evaluate import evaluate as measure
    from selfcorrect.experiment import make_engine, prepare
    from selfcorrect.records import episode_row

    run_model = Path(model) / "model"
    given = [_long(s) for s in settings or []]
    if (Path(model) / "config.json").exists() and (Path(model) / "metrics.jsonl").exists():
        given = [*_settings_of_run(Path(model)), *given]
        model = str(run_model)
    config = read_settings([f"model={json.dumps(model)}", *given])
    job = prepare(config, training=False)
    engine = make_engine(job)
    engine.publish()
    problems = held_out(job.task, config.eval.problems)
    cap = config.train.max_new_tokens
    results = [measure(engine, job.task, problems, config.eval, cap, name="plain", seed=config.seed)]
    if config.eval.controls and config.eval.attempts > 1:
        results += controls(engine, job.task, results[0], config.eval, cap, seed=config.seed)
    if out is not None:
        out.write_text(
            "".join(json.dumps({"evaluation": r.name, **episode_row(e)}) + "\n" for r in results for e in r.episodes)
        )
    if as_json:
        print(json.dumps({r.name: {"settings": r.settings, "summary": r.summary.to_json()} for r in results}))
    else:
        show(summary_table({r.name: r.summary for r in results}, f"{model} on {job.task.name}"))


def _long(setting: str) -> str:
    key, equals, value = setting.partition("=")
    return f"{SHORT.get(key, key)}{equals}{value}"


def _settings_of_run(run: Path) -> list[str]:
    """Task and cap of a run, so that its model is measured on what it was trained for unless told otherwise."""
    values = json.loads((run / "config.json").read_text())
    task = [f"task.{k}={json.dumps(v)}" for k, v in values["task"].items() if v is not None]
    return [*task, f"train.max_new_tokens={values['train']['max_new_tokens']}"]
