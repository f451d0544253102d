"""``selfcorrect eval``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from selfcorrect.cli.evaluate_endpoint import Asked, evaluate_endpoint
from selfcorrect.cli.settings import long_form, model_and_settings
from selfcorrect.errors import ConfigError


def evaluate(
    model: Annotated[
        str | None,
        typer.Argument(help="Model (tiny, smollm2, a directory, a hub id) or a run directory; none with --base-url."),
    ] = None,
    settings: Annotated[
        list[str] | None, typer.Argument(metavar="[key=value ...]", help="Settings, e.g. task=gsm8k.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Also write every episode to this JSONL file.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as one JSON object.")] = False,
    base_url: Annotated[
        str | None, typer.Option(help="Measure a model behind this OpenAI-compatible endpoint (up to /v1).")
    ] = None,
    name: Annotated[
        str | None, typer.Option("--model", help="With --base-url: the endpoint's name of the model.")
    ] = None,
    api_key_env: Annotated[
        str | None, typer.Option(help="With --base-url: the environment variable that holds the key.")
    ] = None,
    concurrency: Annotated[
        int | None, typer.Option(min=1, help="With --base-url: requests in flight at once (8).")
    ] = None,
    rate: Annotated[
        float | None, typer.Option(min=0.01, help="With --base-url: requests per minute; no limit if not given.")
    ] = None,
    retries: Annotated[
        int | None, typer.Option(min=0, help="With --base-url: times a failing request is sent again (5).")
    ] = None,
    timeout: Annotated[
        float | None, typer.Option(min=0.1, help="With --base-url: seconds to wait for one answer (120).")
    ] = None,
    body: Annotated[
        str | None, typer.Option(help="With --base-url: further fields of every request, a JSON object.")
    ] = None,
) -> None:
    """Measure a model on held-out problems: accuracy of every attempt, with intervals and controls.

    Example: `selfcorrect eval tiny task=arithmetic attempts=3 limit=500`

    With a turn of prompted feedback between attempts (Self-Refine): `selfcorrect eval tiny method=self_refine limit=500`

    Behind an endpoint: `selfcorrect eval --base-url http://localhost:8000/v1 --model NAME task=gsm8k`
    """
    options = {
        "model": name,
        "api_key_env": api_key_env,
        "concurrency": concurrency,
        "requests_per_minute": rate,
        "retries": retries,
        "timeout_s": timeout,
        "body": body,
    }
    options = {key: value for key, value in options.items() if value is not None}
    if base_url is not None:
        asked = Asked(base_url, out=out, as_json=as_json, **options)  # type: ignore[arg-type]
        evaluate_endpoint(asked, [long_form(s) for s in ([model] if model else []) + (settings or [])])
        return
    if options:
        raise ConfigError(
            f"options of an endpoint are given ({', '.join(options)}) and would be ignored; add --base-url URL, or drop them"
        )
    if model is None:
        raise ConfigError(
            "no model is named; give one (tiny, smollm2, a directory, a Hub id), a run directory, or --base-url URL --model NAME"
        )
    from selfcorrect.cli.tables import show, summary_table
    from selfcorrect.experiment import load_kept, make_engine, prepare
    from selfcorrect.measuring.evaluate import FEEDBACK, controls, held_out
    from selfcorrect.measuring.evaluate import evaluate as measure
    from selfcorrect.records.files import claim, write_jsonl
    from selfcorrect.records.lines import episode_row

    run, config = model_and_settings(model, [long_form(s) for s in settings or []])
    if out is not None:
        claim(out)
    job = prepare(config, training=False)
    if job.note:
        typer.echo(job.note, err=True)
    engine = make_engine(job, frozen=run is None)
    if run is not None:
        load_kept(run, engine)
    engine.publish()
    problems = held_out(job.task, config.eval.problems)
    cap = config.train.max_new_tokens
    feedback = FEEDBACK if config.method.name == "self_refine" else None
    results = [measure(engine, job.task, problems, config.eval, cap, name="plain", seed=config.seed, feedback=feedback)]
    if config.eval.controls and config.eval.attempts > 1:
        results += controls(engine, job.task, results[0], config.eval, cap, seed=config.seed, feedback=feedback)
    if out is not None:
        rows = ({"evaluation": r.name, **episode_row(e)} for r in results for e in r.episodes)
        write_jsonl(out, rows, "name another place with --out")
    if as_json:
        print(json.dumps({r.name: {"settings": r.settings, "summary": r.summary.to_json()} for r in results}))
    else:
        show(summary_table({r.name: r.summary for r in results}, f"{model} on {job.task.name}"))
