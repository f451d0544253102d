"""``selfcorrect serve``."""

from __future__ import annotations

import importlib.util
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from typer import Argument, Option

from selfcorrect.cli.options import takes
from selfcorrect.cli.settings import find_run, from_elsewhere, read_settings, refuse_ignored
from selfcorrect.config import Config, override
from selfcorrect.errors import ConfigError

if TYPE_CHECKING:
    from selfcorrect.engines.base import Engine
    from selfcorrect.serve.correct import Backend
    from selfcorrect.serve.engine_backend import Batcher

NEEDED = ("starlette", "uvicorn")
LONGEST_CONTEXT = 8192
"""Tokens of the longest conversation, unless --max-context says otherwise."""
USED = ("model", "engine", "task", "play.max_new_tokens")
"""Settings, or whole sections, that serving a model reads."""
USED_BEFORE_A_BACKEND = ("task", "play.max_new_tokens", "model.template_kwargs")
"""The same for a model that is served elsewhere."""
USED_OF_METHOD = ("method.name", "method.verdict_instruction", "method.stop")
"""Of the method, only the verdict turn of method=pag is served."""


@dataclass(frozen=True)
class ServeOptions:
    """The command line of ``selfcorrect serve``."""

    model: Annotated[str | None, Argument(help="Model or run directory, as for `eval`; none with --backend-url.")] = (
        None
    )
    settings: Annotated[
        list[str] | None, Argument(metavar="[key=value ...]", help="Settings, e.g. engine.device=cpu.")
    ] = None
    host: Annotated[str, Option(help="Address to listen at; beyond this machine a key is needed.")] = "127.0.0.1"
    port: Annotated[int, Option(min=0, max=65535, help="0 takes a free one.")] = 8000
    name: Annotated[str | None, Option(help="Name of the model for clients; else its own.")] = None
    attempts: Annotated[int, Option(min=1, help="Attempts unless a request says otherwise.")] = 2
    max_attempts: Annotated[int, Option(min=1, help="The most attempts a request may ask for.")] = 4
    max_votes: Annotated[int, Option(min=1, help="The most votes a request may ask for.")] = 16
    max_tokens: Annotated[
        int | None, Option(min=1, help="The highest token cap of an attempt (at least 1024, or the model's own).")
    ] = None
    max_context: Annotated[
        int | None, Option(min=16, help="Tokens of the longest conversation (8192, or the model's positions).")
    ] = None
    max_body_kib: Annotated[int, Option(min=1, help="Largest request body.")] = 256
    max_requests: Annotated[int, Option(min=1, help="Requests at once; more are asked to come again.")] = 128
    timeout: Annotated[float, Option(min=0.1, help="Seconds for a whole answer.")] = 120.0
    grace: Annotated[float, Option(min=0.0, help="Seconds for unfinished answers when stopping.")] = 20.0
    instruction: Annotated[str | None, Option(help="Correction instruction between attempts; else the task's.")] = None
    api_key_env: Annotated[
        str | None,
        Option(help="Environment variable with the key that clients must send (SELFCORRECT_API_KEY, if set)."),
    ] = None
    api_key_file: Annotated[Path | None, Option(help="File with that key, instead of the variable.")] = None
    backend_url: Annotated[
        str | None, Option(help="Serve from this OpenAI-compatible endpoint (up to /v1) instead of a model.")
    ] = None
    backend_model: Annotated[str | None, Option(help="With --backend-url: its name of the model.")] = None
    backend_key_env: Annotated[
        str | None, Option(help="With --backend-url: the environment variable with its key.")
    ] = None


@takes(ServeOptions)
def serve(options: ServeOptions) -> None:
    """Serve a model that corrects itself to OpenAI clients and, at /, to people.

    Example: `selfcorrect serve tiny`

    With the model's verdict, which may spare attempt 2: `selfcorrect serve tiny method=pag`

    In front of a server: `selfcorrect serve --backend-url http://localhost:9000/v1 --backend-model NAME`
    """
    missing = [n for n in NEEDED if importlib.util.find_spec(n) is None]
    if missing:
        raise ConfigError(
            f"`selfcorrect serve` needs {' and '.join(missing)}, which are not installed; install them with "
            "`pip install 'selfcorrect[serve]'`"
        )
    from selfcorrect.episodes.verdict import verdict_turn
    from selfcorrect.serve.app import Limits, make_app
    from selfcorrect.serve.protocol import Bounds
    from selfcorrect.serve.run import (
        KEY_VARIABLE,
        Server,
        is_loopback,
        leave_at_once,
        listening_socket,
        server_key,
        url_of,
    )

    o = options
    config = _config(o)
    key = server_key(o.api_key_env, o.api_key_file, os.environ)
    cap = config.play.max_new_tokens
    bounds = Bounds(
        o.attempts,
        max(o.attempts, o.max_attempts),
        o.max_votes,
        min(cap, o.max_tokens or cap),
        o.max_tokens or max(1024, cap),
    )
    limits = Limits(1024 * o.max_body_kib, o.max_requests, timeout_s=o.timeout, grace_s=o.grace)
    sock = listening_socket(o.host, o.port)
    with sock:
        if key is None and not is_loopback(sock):
            raise ConfigError(
                f"--host {o.host} can be reached from other machines, and then clients must send a key; put one into the "
                f"environment variable {o.api_key_env or KEY_VARIABLE} (make one with `openssl rand -hex 24`), or listen at "
                "127.0.0.1"
            )
        batcher: Batcher | None = None
        backend: Backend
        if o.backend_url is not None:
            backend = _before_a_server(o, o.backend_url, config)
        else:
            from selfcorrect.serve.engine_backend import Batcher, EngineBackend

            engine, instruction, context = _engine(o.model or "", config, o.max_context or LONGEST_CONTEXT)
            batcher = Batcher(engine)
            backend = EngineBackend(batcher, instruction, context, **verdict_turn(config))
        served = o.name or o.backend_model or Path(o.model or "").resolve().name
        hosts = frozenset({"localhost", "127.0.0.1", "[::1]", o.host.lower()})
        app = make_app(backend, served, bounds=bounds, limits=limits, key=key, hosts=hosts)

        def ready() -> None:
            print(
                f"serving {served} at {url_of(sock)} (page) and {url_of(sock)}/v1 (OpenAI clients); Ctrl-C stops",
                flush=True,
            )

        Server(app, limits).run_until_stopped(sock, ready)
    print("stopped", flush=True)
    if batcher is not None and batcher.is_running:
        leave_at_once()


def _before_a_server(o: ServeOptions, backend_url: str, config: Config) -> Backend:
    """Answers from the server at this address."""
    from selfcorrect.episodes.endpoint import Endpoint, Patience, api_key_from
    from selfcorrect.episodes.verdict import verdict_turn
    from selfcorrect.serve.endpoint_backend import EndpointBackend
    from selfcorrect.tasks import make_task

    # a little less than this server's own limit, and no second try, so that the error names a slow upstream server
    patience = Patience(concurrency=o.max_requests, retries=2, timeout_s=0.95 * o.timeout, repeats_slow=False)
    key = api_key_from(o.backend_key_env, os.environ)
    body = {"chat_template_kwargs": dict(kwargs)} if (kwargs := config.model.template_kwargs) else {}
    endpoint = Endpoint(backend_url, o.backend_model or "", api_key=key, patience=patience, body=body)
    return EndpointBackend(endpoint, make_task(config.task).instruction, config.task.shown_as, **verdict_turn(config))


def _config(options: ServeOptions) -> Config:
    """The settings for serving, checked so that none would be ignored."""
    model = options.model
    settings = list(options.settings or [])
    if options.backend_url is not None and model is not None and "=" in model:  # no model, but the first setting
        settings, model = [model, *settings], None
    settings = ["method.name" + s.strip()[6:] if s.strip().startswith("method=") else s for s in settings]
    if options.backend_url is None:
        if options.backend_model is not None or options.backend_key_env is not None:
            raise ConfigError(
                "--backend-model and --backend-key-env would be ignored without --backend-url; drop them, or add it"
            )
        if model is None:
            raise ConfigError(
                "no model is named; give one (tiny, smollm2, a directory, a Hub id), a run directory, or --backend-url URL"
            )
        counts = (
            "to serve a model only model.*, engine.*, task.*, play.max_new_tokens and the verdict turn of method=pag "
            "(method.verdict_instruction, method.stop) count"
        )
        refuse_ignored(settings, (*USED, *USED_OF_METHOD), counts)
    else:
        if options.max_context is not None:
            raise ConfigError(
                "--max-context would be ignored with --backend-url: that server counts the tokens and has its own limit; "
                "drop it"
            )
        if not options.backend_model:
            raise ConfigError("--backend-url needs --backend-model NAME, the name by which that server knows the model")
        if model is not None:
            raise ConfigError(f"both {model!r} and --backend-url are given, and one model is served; drop one of them")
        counts = "the model runs elsewhere; with --backend-url only task.*, play.max_new_tokens, model.template_kwargs and the verdict turn of method=pag count"
        refuse_ignored(settings, (*USED_BEFORE_A_BACKEND, *USED_OF_METHOD), counts)
        model = options.backend_model
    changed = list(settings)
    if options.instruction is not None:
        if any(s.partition("=")[0].strip() == "task.instruction" for s in settings):
            raise ConfigError("task.instruction would be ignored: --instruction is given too; drop one of them")
        changed.append(f"task.instruction={json.dumps(options.instruction, ensure_ascii=False)}")
    run = find_run(model) if options.backend_url is None else None
    if run is not None:
        refused = [s for s in settings if s.partition("=")[0].partition(".")[0] == "model"]
        if refused:
            raise ConfigError(f"{refused[0]!r} cannot be combined with a run, which brings its own model; drop it")
        return _served(override(run.config, changed), changed)
    return _served(read_settings([f"model={json.dumps(model)}", *changed]), changed)


def _served(config: Config, settings: list[str]) -> Config:
    """The config, whose method is one that serving knows where the settings name it."""
    name = config.method.name
    if name != "pag" and any(s.partition("=")[0].strip() == "method.name" for s in settings):
        raise ConfigError(
            f"method={name} would be ignored: of the methods only pag is served differently, with the model's verdict between "
            "attempts; drop it"
        )
    return config


def _engine(model: str, config: Config, max_context: int) -> tuple[Engine, str, int]:
    """The engine with its weights, the instruction, and the longest conversation. Everything is checked before the
    weights load."""
    from selfcorrect.engines import models
    from selfcorrect.experiment import Job, load_kept, make_engine
    from selfcorrect.tasks import make_task

    run = find_run(model)
    with from_elsewhere(run, config, "the same command for {run}"):
        task = make_task(config.task)
        resolved = models.resolve_model(config.model.name)
        chat = models.load_chat(resolved, config)
        hf_config = models.load_config(resolved, config.model.revision, config.model.trust_remote_code)
    positions = getattr(hf_config.get_text_config(decoder=True), "max_position_embeddings", None)
    context = min(max_context, positions or max_context, models.steady_length(hf_config) or max_context)
    models.check_attention(hf_config, context)
    models.check_vocabulary(hf_config, chat.tokenizer, chat.end_ids)
    engine = make_engine(Job(config, task, resolved, chat, context))
    if run is not None:
        load_kept(run, engine)
    engine.publish()
    return engine, task.instruction, context
