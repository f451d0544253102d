"""``selfcorrect eval --base-url``: measuring a model that someone else serves."""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from selfcorrect.cli.settings import read_settings, refuse_ignored
from selfcorrect.config import Config
from selfcorrect.errors import ConfigError, DataError, EndpointError, Interrupted

if TYPE_CHECKING:
    from rich.console import Console

    from selfcorrect.episodes.endpoint import Endpoint
    from selfcorrect.measuring.endpoint import Journal
    from selfcorrect.measuring.evaluate import Evaluation
    from selfcorrect.tasks.base import Task
    from selfcorrect.types import Problem

USED = ("task", "eval", "seed", "play")
"""Settings, or whole sections, that a measurement behind an endpoint reads."""
DECIDED = frozenset({"model", "messages", "stream", "n", "temperature", "seed", "max_tokens", "max_completion_tokens"})
"""Fields of a request that the settings decide."""
LINE_EVERY_S = 5.0


@dataclass(frozen=True)
class Asked:
    """The options of the command line."""

    base_url: str
    out: Path | None
    as_json: bool
    model: str = ""
    api_key_env: str | None = None
    concurrency: int = 8
    requests_per_minute: float | None = None
    retries: int = 5
    timeout_s: float = 120.0
    body: str = "{}"


def evaluate_endpoint(asked: Asked, settings: Sequence[str]) -> None:
    """Measure, or go on measuring, and print the table of `selfcorrect eval`."""
    from rich.console import Console

    config, body = _config(asked, settings), _body(asked.body)
    from selfcorrect.episodes.endpoint import Endpoint, Patience, api_key_from
    from selfcorrect.measuring.evaluate import check_attempts, held_out
    from selfcorrect.tasks import make_task
    from selfcorrect.tasks.base import GetsReady

    key = api_key_from(asked.api_key_env, os.environ)
    patience = Patience(asked.concurrency, asked.requests_per_minute, asked.retries, asked.timeout_s)
    endpoint = Endpoint(asked.base_url, asked.model, api_key=key, patience=patience, body=body)
    task = make_task(config.task)
    check_attempts(task, config.eval)
    problems = held_out(task, config.eval.problems)
    if not problems:
        raise DataError(f"task {task.name} has no held-out problems; check task.path and the task's settings")
    if isinstance(task, GetsReady):
        task.get_ready(training=False)  # before any request is paid for
    console = Console(stderr=True)
    if key and endpoint.base_url.startswith("http://") and not endpoint.is_local:
        console.print("the key travels unencrypted over http; use https where others can listen", style="yellow")
    _measure(asked, endpoint, task, problems, config, body, console)


def _measure(
    asked: Asked,
    endpoint: Endpoint,
    task: Task,
    problems: Sequence[Problem],
    config: Config,
    body: dict[str, Any],
    console: Console,
) -> None:
    from selfcorrect.cli.tables import show, summary_table
    from selfcorrect.measuring.endpoint import Journal, journal_path, settings_of, was_refused

    path = asked.out or journal_path(asked.model, task.name, config.seed)
    settings = settings_of(endpoint, task, problems, config, body)
    with Journal.opened(path, settings) as journal:
        if journal.n_episodes:
            console.print(f"{path} holds {journal.n_episodes} episodes; going on", highlight=False, soft_wrap=True)
        try:
            results = asyncio.run(_played(endpoint, task, problems, config, journal, console))
        except KeyboardInterrupt:
            raise Interrupted(_go_on("stopped", journal, path)) from None
        except EndpointError as error:
            raise EndpointError(
                f"{error}. {_go_on('So far', journal, path)}", status=error.status, timed_out=error.timed_out
            ) from None
    refused = {r.name: [e.problem.id for e in r.episodes if was_refused(e)] for r in results}
    counts = endpoint.counts
    if asked.as_json:
        requests = {"sent": counts.sent, "retried": counts.retried, "reasons": counts.reasons}
        shown = {r.name: {"settings": r.settings, "summary": r.summary.to_json()} for r in results}
        print(json.dumps({**shown, "refused": refused, "requests": requests, "episodes": str(path)}))
        return
    show(summary_table({r.name: r.summary for r in results}, f"{asked.model} at {endpoint.base_url} on {task.name}"))
    for name, ids in refused.items():
        if ids:
            print(f"refused by the endpoint, so in no number of {name}: {len(ids)} episodes ({', '.join(ids)})")
    print(
        f"episodes {path}\nrequests {counts.sent} sent, {counts.retried} of them again {_reasons(counts.reasons)}".rstrip()
    )


async def _played(
    endpoint: Endpoint, task: Task, problems: Sequence[Problem], config: Config, journal: Journal, console: Console
) -> list[Evaluation]:
    from selfcorrect.measuring.endpoint import Measurement

    last = time.monotonic()

    def said() -> None:
        nonlocal last
        if time.monotonic() - last > LINE_EVERY_S:
            last = time.monotonic()
            console.print(
                f"{journal.n_episodes} episodes, {endpoint.counts.sent} requests, {endpoint.counts.retried} sent again "
                f"{_reasons(endpoint.counts.reasons)}".rstrip(),
                highlight=False,
                markup=False,
            )

    async with endpoint:
        return await Measurement(endpoint, task, problems, config, journal, said).run()


def _config(asked: Asked, settings: Sequence[str]) -> Config:
    if not asked.model:
        raise ConfigError("--base-url needs --model NAME, the name by which the endpoint knows the model")
    for setting in settings:
        if "=" not in setting:
            raise ConfigError(
                f"{setting!r} would be ignored: with --base-url the model is the endpoint's; give its name with --model"
            )
    refuse_ignored(
        settings,
        USED,
        "the endpoint decides it; with --base-url only task.*, eval.*, play.* and seed count",
    )
    return read_settings([f"model={json.dumps(asked.model)}", *settings])


def _body(text: str) -> dict[str, Any]:
    try:
        body = json.loads(text)
    except ValueError:
        body = None
    if not isinstance(body, dict):
        raise ConfigError(f"--body {text[:80]!r} is not a JSON object; write for example --body '{{\"top_p\": 0.9}}'")
    ours = sorted(DECIDED & body.keys())
    if ours:
        raise ConfigError(f"--body sets {', '.join(ours)}, which the measurement itself decides; drop it")
    return body


def _go_on(what: str, journal: Journal, path: Path) -> str:
    return f"{what}: {journal.n_episodes} finished episodes are in {path}; the same command goes on from there"


def _reasons(reasons: dict[str, int]) -> str:
    return f"({', '.join(f'{name}: {n}' for name, n in sorted(reasons.items()))})" if reasons else ""
