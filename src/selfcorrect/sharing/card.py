"""The model card: what a run's records say, and "not recorded" if they say nothing."""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING

from selfcorrect.config import Config
from selfcorrect.engines.chat import next_messages
from selfcorrect.engines.models import EMBEDDED, resolve_model
from selfcorrect.errors import ModelError
from selfcorrect.measuring.compare import compare_runs
from selfcorrect.measuring.labels import model_and_control
from selfcorrect.report.reading import RunData
from selfcorrect.report.text import visible
from selfcorrect.sharing.markdown import code, code_block, plain, table
from selfcorrect.sharing.weights import Weights
from selfcorrect.tasks import make_task
from selfcorrect.tasks.base import Message, Task
from selfcorrect.tasks.gsm8k import HUB as GSM8K
from selfcorrect.tasks.mbpp import HUB as MBPP
from selfcorrect.tasks.source import Hub
from selfcorrect.types import Problem

if TYPE_CHECKING:
    from huggingface_hub import ModelCard, ModelCardData

NOT_RECORDED = "not recorded"
PROBLEM = "{problem}"
"""Stands for the question in a prompt."""
HUB_DATA = {"gsm8k": GSM8K, "mbpp": MBPP}
"""Hub data sets of tasks that are read from the Hub unless ``task.path`` names another place."""


def build_card(
    run: Path, data: RunData, weights: Weights, name: str, base_model: str | None = None, license: str | None = None
) -> ModelCard:
    """The card of a finished run and of its exported weights.

    ``base_model``, the Hub id of the base, and ``license`` override the settings and the base's card.

    Raises:
        ConfigError: the run's task cannot be built here (such as a verifier that cannot be imported).
        DataError: its evaluations are damaged.
    """
    from huggingface_hub import ModelCard

    config, task, final = data.config, make_task(data.config.task), data.summaries["final"]
    messages = _first_messages(task)
    lines = []
    for m in messages or [{"role": "user", "content": PROBLEM}]:
        content = "problem" if m["content"] == PROBLEM else f'{m["content"]!r}.replace("{PROBLEM}", problem)'
        lines.append(f'{{"role": "{m["role"]}", "content": {content}}}')
    settings = []
    for section, values in config.model_dump(mode="json", exclude={"sft", "run_dir", "trackers"}).items():
        pairs = values.items() if isinstance(values, Mapping) else [("", values)]
        settings += [f"{section}{'.' if key else ''}{key} = {json.dumps(value)}" for key, value in pairs]
    base_id = base_model or hub_id(config, data.base)
    *_, shown = next_messages([{"role": "user", "content": ""}], "{shown}", "{instruction}", config.task.shown_as)
    card: ModelCard = ModelCard.from_template(
        _metadata(data, weights, name, base_id, license),
        template_str=resources.files("selfcorrect").joinpath("sharing/card.md.j2").read_text(encoding="utf-8"),
        plain=plain,
        code=code,
        code_block=code_block,
        name=name,
        data=data,
        config=config,
        instruction=repr(task.instruction),
        weights=weights,
        base_id=base_id,
        is_embedded=config.model.name in EMBEDDED,
        version=data.starts[-1].versions.get("selfcorrect", NOT_RECORDED) if data.starts else NOT_RECORDED,
        results=_results(data),
        final=final,
        accuracy=final.accuracy(len(final.attempts)),
        gain=next(row.t2_over_base for row in compare_runs([run]) if row.name == config.method.name),
        measured=data.evals["final"].settings,
        verdict=data.evals["final"].settings.get("verdict"),
        not_recorded=NOT_RECORDED,
        first_messages=", ".join(lines),
        quotes_answers=config.task.shown_as != "assistant",
        quoted=repr(str(shown["content"])),
        end_of_thinking=repr((config.model.think_markers or ("<think>", "</think>"))[1]),
        asked="\n\n".join(code_block(f"{m['role']}: {m['content']}") for m in messages or []),
        training=_training(data),
        settings=code_block("\n".join(settings)),
        is_base_local=config.model.name not in EMBEDDED and base_id is None,
    )
    return card


def hub_id(config: Config, base: str | None) -> str | None:
    """The base's id on the Hub; None for embedded models and local directories.

    ``base`` is what the name stood for when the run began, as the run recorded it: elsewhere the name of a directory may look
    like an id, or an id like a directory. None: not recorded, so what the name stands for here counts.
    """
    if base is not None:
        return config.model.name if base == "hub" else None
    try:
        resolved = resolve_model(config.model.name)
    except ModelError:  # a directory that is gone: the whole weights are in the run
        return None
    return resolved.path_or_id if resolved.kind == "hub" else None


def _metadata(data: RunData, weights: Weights, name: str, base_id: str | None, license: str | None) -> ModelCardData:
    from huggingface_hub import EvalResult, ModelCardData

    config = data.config
    hub = _hub_data(config)
    results = [
        EvalResult(
            task_type="text-generation",
            dataset_type=hub.id,
            dataset_name=config.task.name,
            dataset_config=hub.config,
            dataset_split=getattr(config.task, "eval_split", "test"),
            metric_type="accuracy",
            metric_name=f"accuracy at attempt {k}, percent",
            metric_value=round(100 * attempt.accuracy.value, 1),
        )
        for k, attempt in enumerate(data.summaries["final"].attempts if hub else (), 1)
        if hub and attempt.accuracy.n
    ]
    return ModelCardData(
        base_model=base_id,
        license=license or _license_of_base(config, hub_id(config, data.base)),
        library_name="peft" if weights.form == "adapter" else "transformers",
        pipeline_tag="text-generation",
        tags=["selfcorrect", "self-correction", config.method.name],
        datasets=[hub.id] if hub else None,
        model_name=visible(name) if hub else None,
        eval_results=results if hub else None,
    )


def _hub_data(config: Config) -> Hub | None:
    """The Hub data set of the training problems; None for another source."""
    return HUB_DATA.get(config.task.name) if getattr(config.task, "path", None) is None else None


def _license_of_base(config: Config, name: str | None) -> str | None:
    """The license in the base's own card, in its directory or in the Hub's local cache; never guessed, never downloaded."""
    from huggingface_hub import ModelCard, try_to_load_from_cache
    from yaml import YAMLError

    file: object = Path(config.model.name).expanduser() / "README.md"
    if name is not None:
        file = try_to_load_from_cache(name, "README.md", revision=config.model.revision)
    if not isinstance(file, str | Path) or not Path(file).is_file():
        return None
    try:
        found = ModelCard.load(file).data.get("license")
    except (OSError, ValueError, YAMLError):  # a card that cannot be read says nothing
        return None
    return found if isinstance(found, str) else None


def _results(data: RunData) -> str:
    attempts = max(len(s.attempts) for s in data.summaries.values())
    several = attempts > 1
    head = ["", *(f"t{k + 1}" for k in range(attempts)), *(["delta", "i→c", "c→i"] if several else []), "n", "seeds"]
    rows = []
    for name, s in sorted(data.summaries.items(), key=lambda item: not item[0].startswith("base")):
        who, control = model_and_control(name)
        label = "base" if who == "base" else f"trained ({data.config.method.name})"
        label += f", {control}" if control else ""
        accuracies, last = s.texts(attempts)
        rows.append([plain(label), *accuracies, *last[: 3 if several else 0], str(s.n_problems), "1"])
    return table(head, rows)


def _first_messages(task: Task) -> list[Message] | None:
    """The first messages with ``PROBLEM`` in place of the question; None if a task needs more than a question."""
    try:
        return list(task.first_messages(Problem("", PROBLEM, "")))
    except Exception:  # noqa: BLE001  # the edge to a user's code; mbpp needs the tests and worked examples of its data
        return None


def _training(data: RunData) -> list[tuple[str, str]]:
    config, end = data.config, data.end
    hub = _hub_data(config)
    start = data.starts[-1] if data.starts else None
    counts = [r.episodes for r in data.steps]  # settings do not tell: a method makes its own number of them
    ends = sorted({min(counts), max(counts)}) if counts else []
    kept = f"step {data.evals['final'].step} of {end.step if end else NOT_RECORDED}"
    path = getattr(config.task, "path", None)
    source = code(path) if path else code(hub.id) if hub else "the task's own"
    engine = start.engine if start else {}
    rows = {
        "method": code(config.method.name),
        "data": f"task {code(config.task.name)}, source {source}",
        "checkpoint kept": kept + (", by training reward" if data.kept_step is not None else ", the last"),
        "sequences trained on per step": " to ".join(f"{n:,}" for n in ends) or NOT_RECORDED,
        "sampled": f"{end.sampled_responses:,} responses, {end.sampled_tokens:,} tokens" if end else NOT_RECORDED,
        "training time": f"{end.train_seconds:,.0f} s" if end else NOT_RECORDED,
        "engine": ", ".join(plain(f"{k} {v}") for k, v in engine.items()) or NOT_RECORDED,
        "versions": ", ".join(plain(f"{k} {v}") for k, v in start.versions.items()) if start else NOT_RECORDED,
        "started": plain(data.starts[0].time) if data.starts else NOT_RECORDED,
    }
    return list(rows.items())
