"""``selfcorrect eval``: measuring a model with an engine, or one that an endpoint serves."""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer import Argument, Option

from selfcorrect.cli.options import AsJson, takes
from selfcorrect.cli.settings import from_elsewhere, long_form, model_and_settings, read_settings, refuse_ignored
from selfcorrect.config import Config
from selfcorrect.errors import ConfigError, DataError, EndpointError, Interrupted

if TYPE_CHECKING:
    from rich.console import Console

    from selfcorrect.episodes.endpoint import Counts
    from selfcorrect.measuring.endpoint import Journal
    from selfcorrect.measuring.evaluate import Evaluation

USED = ("task", "eval", "seed", "play", "model.template_kwargs")
"""Settings and whole sections that a measurement behind an endpoint reads; of the method it reads ``PLAYED``."""
PLAYED = ("method", "method.name", "method.verdict_instruction", "method.stop")
"""What method=self_refine and method=pag do between attempts."""
DECIDED = frozenset({"model", "messages", "stream", "n", "temperature", "seed", "max_tokens", "max_completion_tokens"})
"""Fields of a request that settings determine, and --body may not."""
TEMPLATE_KWARGS = "chat_template_kwargs"
"""Field of a request in which vLLM, SGLang and llama.cpp take variables of the chat template."""
LINE_EVERY_S = 5.0


@dataclass(frozen=True)
class EvalOptions:
    """The command line of ``selfcorrect eval``."""

    model: Annotated[
        str | None,
        Argument(help="Model (tiny, smollm2, a directory, a hub id) or a run directory; none with --base-url."),
    ] = None
    settings: Annotated[list[str] | None, Argument(metavar="[key=value ...]", help="Settings, e.g. task=gsm8k.")] = None
    out: Annotated[Path | None, Option(help="Also write every episode to this JSONL file.")] = None
    as_json: AsJson = False
    base_url: Annotated[
        str | None, Option(help="Measure a model behind this OpenAI-compatible endpoint (up to /v1).")
    ] = None
    name: Annotated[str | None, Option("--model", help="With --base-url: the endpoint's name of the model.")] = None
    api_key_env: Annotated[str | None, Option(help="With --base-url: the environment variable that holds the key.")] = (
        None
    )
    concurrency: Annotated[int | None, Option(min=1, help="With --base-url: requests in flight at once (8).")] = None
    rate: Annotated[
        float | None, Option(min=0.01, help="With --base-url: requests per minute; no limit if not given.")
    ] = None
    retries: Annotated[
        int | None, Option(min=0, help="With --base-url: times a failing request is sent again (5).")
    ] = None
    timeout: Annotated[float | None, Option(min=0.1, help="With --base-url: seconds to wait for one answer (120).")] = (
        None
    )
    body: Annotated[str | None, Option(help="With --base-url: further fields of every request, a JSON object.")] = None


@takes(EvalOptions)
def evaluate(options: EvalOptions) -> None:
    """Measure a model on held-out problems: accuracy of every attempt, with intervals and controls.

    Example: `selfcorrect eval tiny task=arithmetic attempts=3 limit=500`

    With a turn of prompted feedback between attempts (Self-Refine): `selfcorrect eval tiny method=self_refine limit=500`

    With the model's verdict between attempts (PAG), which may end the episode: `selfcorrect eval tiny method=pag limit=500`

    Behind an endpoint: `selfcorrect eval --base-url http://localhost:8000/v1 --model NAME task=gsm8k`
    """
    settings = [long_form(s) for s in options.settings or []]
    if options.base_url is not None:
        _with_endpoint(options, settings, options.base_url)
        return
    of_endpoint = {
        "model": options.name,
        "api_key_env": options.api_key_env,
        "concurrency": options.concurrency,
        "requests_per_minute": options.rate,
        "retries": options.retries,
        "timeout_s": options.timeout,
        "body": options.body,
    }
    if ignored := [key for key, value in of_endpoint.items() if value is not None]:
        raise ConfigError(
            f"options for an endpoint would be ignored ({', '.join(ignored)}): no endpoint is named; add --base-url URL, or drop them"
        )
    if options.model is None:
        raise ConfigError(
            "no model is named; give one (tiny, smollm2, a directory, a Hub id), a run directory, or --base-url URL --model NAME"
        )
    _with_engine(options, settings, options.model)


def _with_engine(options: EvalOptions, settings: list[str], model: str) -> None:
    from selfcorrect.experiment import load_kept, make_engine, prepare
    from selfcorrect.measuring.evaluate import EnginePlayer, Evaluator, held_out
    from selfcorrect.records.files import claim, write_jsonl
    from selfcorrect.records.lines import episode_row

    run, config = model_and_settings(model, settings)
    if options.out is not None:
        claim(options.out)
    with from_elsewhere(run, config, "the same command for {run}"):
        job = prepare(config, training=False)
    if job.note:
        typer.echo(job.note, err=True)
    named = {s.partition("=")[0].strip() for s in settings}
    for key, missing in (("eval.controls", not config.eval.controls), ("eval.attempts", config.eval.attempts == 1)):
        if run is not None and missing and key not in named:
            value = json.dumps(getattr(config.eval, key.partition(".")[2]))
            way_out = f"{key}={'true' if key == 'eval.controls' else 2}"
            typer.echo(f"no controls: the run was made with {key}={value}; add {way_out} to measure them", err=True)
    engine = make_engine(job, frozen=run is None)
    if run is not None:
        load_kept(run, engine)
    engine.publish()
    problems = held_out(job.task, config.eval.problems)
    results = asyncio.run(Evaluator.of(EnginePlayer(engine, job.task), job.task, config).run(problems))
    if options.out is not None:
        rows = ({"evaluation": r.name, **episode_row(e)} for r in results for e in r.episodes)
        write_jsonl(options.out, rows, "name another place with --out")
    _print(options, results, f"{model} on {job.task.name}", {})


def _print(options: EvalOptions, results: list[Evaluation], title: str, more: Mapping[str, Any]) -> None:
    """Print the table, or with --json the numbers and ``more``."""
    if options.as_json:
        shown = {r.name: {"settings": r.settings, "summary": r.summary.to_json()} for r in results}
        print(json.dumps({**shown, **more}))
        return
    from selfcorrect.cli.tables import show_summaries

    show_summaries({r.name: r.summary for r in results}, title)


def _with_endpoint(options: EvalOptions, settings: list[str], base_url: str) -> None:
    config, body = _endpoint_config(options, settings)
    from selfcorrect.cli.terminal import plain_console
    from selfcorrect.episodes.endpoint import Endpoint, Patience, api_key_from
    from selfcorrect.measuring.endpoint import EndpointPlayer, Journal, journal_path, settings_of, was_refused
    from selfcorrect.measuring.evaluate import Evaluator, check_attempts, check_turns, held_out
    from selfcorrect.tasks import make_task
    from selfcorrect.tasks.base import GetsReady

    key = api_key_from(options.api_key_env, os.environ)
    limits = {"concurrency": options.concurrency, "retries": options.retries, "timeout_s": options.timeout}
    patience = Patience(
        requests_per_minute=options.rate,
        **{k: v for k, v in limits.items() if v is not None},  # type: ignore[arg-type]
    )
    model = config.model.name
    endpoint = Endpoint(base_url, model, api_key=key, patience=patience, body=body)
    task = make_task(config.task)
    check_attempts(task, config.eval)
    check_turns(config)
    problems = held_out(task, config.eval.problems)
    if not problems:
        raise DataError(f"task {task.name} has no held-out problems; check task.path and the task's settings")
    if isinstance(task, GetsReady):
        task.get_ready(training=False)  # before any request is paid for
    console = plain_console(stderr=True)
    if key and endpoint.base_url.startswith("http://") and not endpoint.is_local:
        console.print("the key travels unencrypted over http; use https where others can listen", style="yellow")
    path = options.out or journal_path(model, task.name, config.seed)
    with Journal.opened(path, settings_of(endpoint, task, problems, config, body)) as journal:
        if journal.n_episodes:
            console.print(f"{path} holds {journal.n_episodes} episodes; continuing", highlight=False, soft_wrap=True)
        counts = endpoint.counts
        player = EndpointPlayer(
            endpoint, task, journal, _progress_lines(console, journal, counts), config.task.shown_as
        )
        evaluator = Evaluator.of(player, task, config)

        async def measured() -> list[Evaluation]:
            async with endpoint:
                return await evaluator.run(problems)

        try:
            results = asyncio.run(measured())
        except (KeyboardInterrupt, EndpointError) as error:
            kept = f"{journal.n_episodes} finished episodes are in {path}; the same command continues from there"
            if isinstance(error, KeyboardInterrupt):
                raise Interrupted(f"stopped: {kept}") from None
            raise EndpointError(f"{error}. So far: {kept}", status=error.status, timed_out=error.timed_out) from None
    refused = {r.name: [e.problem.id for e in r.episodes if was_refused(e)] for r in results}
    requests = {"sent": counts.sent, "retried": counts.retried, "reasons": counts.reasons}
    title = f"{model} at {endpoint.base_url} on {task.name}"
    _print(options, results, title, {"refused": refused, "requests": requests, "episodes": str(path)})
    if options.as_json:
        return
    for evaluation, ids in refused.items():
        if ids:
            print(f"refused by the endpoint, so in no number of {evaluation}: {len(ids)} episodes ({', '.join(ids)})")
    print(f"episodes {path}\nrequests {counts.sent} sent, {counts.retried} of them again {_reasons(counts)}".rstrip())


def _endpoint_config(options: EvalOptions, settings: list[str]) -> tuple[Config, dict[str, Any]]:
    """The settings of a measurement behind an endpoint, checked so that none would be ignored, and --body as an
    object."""
    if not options.name:
        raise ConfigError("--base-url needs --model NAME, the name by which the endpoint knows the model")
    settings = [*([long_form(options.model)] if options.model else []), *settings]
    for setting in settings:
        if "=" not in setting:
            raise ConfigError(
                f"{setting!r} would be ignored: with --base-url the model is the endpoint's; give its name with --model"
            )
    method = [s for s in settings if s.partition("=")[0].strip().partition(".")[0] == "method"]
    refuse_ignored(
        [s for s in settings if s not in method],
        USED,
        "the endpoint decides it; with --base-url only task.*, eval.*, play.*, seed, model.template_kwargs and method=self_refine or pag count",
    )
    config = read_settings([f"model={json.dumps(options.name)}", *settings])
    if method and config.method.name not in ("self_refine", "pag"):
        raise ConfigError(
            f"{method[-1]} would be ignored: behind an endpoint nothing is trained, and only method=self_refine and method=pag "
            "play differently; drop it"
        )
    trained = [s for s in method if s.partition("=")[0].strip() not in PLAYED]
    if trained:
        raise ConfigError(
            f"{trained[-1]} would be ignored: behind an endpoint nothing is trained; of method=pag only "
            "method.verdict_instruction and method.stop are played; drop it"
        )
    text = options.body or "{}"
    try:
        body = json.loads(text)
    except ValueError:
        body = None
    if not isinstance(body, dict):
        raise ConfigError(f"--body {text[:80]!r} is not a JSON object; write for example --body '{{\"top_p\": 0.9}}'")
    if decided := sorted(DECIDED & body.keys()):
        raise ConfigError(f"--body sets {', '.join(decided)}, which the measurement itself decides; drop it")
    if config.model.template_kwargs:
        if TEMPLATE_KWARGS in body:
            raise ConfigError(
                f"model.template_kwargs and {TEMPLATE_KWARGS} in --body say the same thing; drop one of them"
            )
        body[TEMPLATE_KWARGS] = dict(config.model.template_kwargs)
    return config, body


def _progress_lines(console: Console, journal: Journal, counts: Counts) -> Callable[[], None]:
    """A function to call after every episode. It prints a line every few seconds."""
    last = time.monotonic()

    def on_episode() -> None:
        nonlocal last
        if time.monotonic() - last > LINE_EVERY_S:
            last = time.monotonic()
            requests = f"{counts.sent} requests, {counts.retried} sent again {_reasons(counts)}".rstrip()
            console.print(f"{journal.n_episodes} episodes, {requests}", highlight=False, markup=False)

    return on_episode


def _reasons(counts: Counts) -> str:
    return f"({', '.join(f'{name}: {n}' for name, n in sorted(counts.reasons.items()))})" if counts.reasons else ""
