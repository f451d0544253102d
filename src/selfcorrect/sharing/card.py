"""The model card: what a run's records say, and "not recorded" where they say nothing."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING

from selfcorrect.config import Config
from selfcorrect.engines.chat import next_messages
from selfcorrect.engines.models import EMBEDDED, resolve_model
from selfcorrect.errors import ModelError
from selfcorrect.measuring.compare import compare_runs
from selfcorrect.measuring.intervals import Estimate
from selfcorrect.measuring.labels import model_and_control
from selfcorrect.measuring.metrics import EvalSummary
from selfcorrect.records.lines import EvalRecord
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
"""Stands for the question in the form of a prompt."""
HUB_DATA = {"gsm8k": GSM8K, "mbpp": MBPP}
"""Data sets of tasks that are read from the Hub unless ``task.path`` names another place."""


@dataclass(frozen=True, slots=True)
class Said:
    """What only the user can say."""

    base_model: str | None = None
    """Hub id of the base."""
    license: str | None = None


def build_card(run: Path, data: RunData, weights: Weights, name: str, said: Said) -> ModelCard:
    """The card of a finished run.

    Args:
        run: its directory.
        data: its records.
        weights: what was written.
        name: of the exported model.
        said: what the records cannot know.

    Raises:
        ConfigError: the run's task cannot be made here (a verifier that cannot be imported).
        DataError: its evaluations are damaged.
    """
    from huggingface_hub import ModelCard

    config, task = data.config, make_task(data.config.task)
    gain = next(row.t2_over_base for row in compare_runs([run]) if row.name == config.method.name)
    template = resources.files("selfcorrect").joinpath("sharing/card.md.j2").read_text(encoding="utf-8")
    card: ModelCard = ModelCard.from_template(
        _metadata(data, weights, name, said),
        template_str=template,
        name=plain(name),
        base=_base(config, said),
        method=config.method.name,
        version=plain(_version(data)),
        task=code(config.task.name),
        weights=_weights(weights),
        results=_results(data),
        problems=data.summaries["final"].n_problems,
        interval=_interval(data.summaries["final"]),
        seed=config.seed,
        gain=_gain(gain),
        measured=_measured(data.evals["final"], config),
        snippet=code_block(_snippet(config, task, weights.form), "python"),
        asked=_asked(task),
        training=_training(data),
        settings=code_block(_settings(config)),
        commands=[code_block(start.command, "sh") for start in data.starts],
        alarms=[f"step {a.step}, {plain(a.name)}: {plain(a.message)}" for a in data.alarms],
        limits=_limits(data, weights),
    )
    return card


def hub_id(config: Config) -> str | None:
    """The base's id on the Hub; None for embedded models and local directories."""
    try:
        resolved = resolve_model(config.model.name)
    except ModelError:  # a directory that is gone: the whole weights are in the run
        return None
    return resolved.path_or_id if resolved.kind == "hub" else None


def _metadata(data: RunData, weights: Weights, name: str, said: Said) -> ModelCardData:
    from huggingface_hub import EvalResult, ModelCardData

    config = data.config
    hub = _hub_data(config)
    return ModelCardData(
        base_model=said.base_model or hub_id(config),
        license=said.license or _license_of_base(config),
        library_name="peft" if weights.form == "adapter" else "transformers",
        pipeline_tag="text-generation",
        tags=["selfcorrect", "self-correction", config.method.name],
        datasets=[hub.id] if hub else None,
        model_name=visible(name) if hub else None,
        eval_results=[
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
            for k, attempt in enumerate(data.summaries["final"].attempts, 1)
            if attempt.accuracy.n
        ]
        if hub
        else None,
    )


def _hub_data(config: Config) -> Hub | None:
    """The data set that was trained on, where it is known to be one of the Hub's."""
    return HUB_DATA.get(config.task.name) if getattr(config.task, "path", None) is None else None


def _license_of_base(config: Config) -> str | None:
    """As the base's own card says it, in its directory or in the Hub's local cache; never guessed, never asked for."""
    from huggingface_hub import ModelCard, try_to_load_from_cache
    from yaml import YAMLError

    file: object = Path(config.model.name).expanduser() / "README.md"
    if (name := hub_id(config)) is not None:
        file = try_to_load_from_cache(name, "README.md", revision=config.model.revision)
    if not isinstance(file, str | Path) or not Path(file).is_file():
        return None
    try:
        found = ModelCard.load(file).data.get("license")
    except (OSError, ValueError, YAMLError):  # a card that cannot be read says nothing
        return None
    return found if isinstance(found, str) else None


def _base(config: Config, said: Said) -> str:
    name = said.base_model or hub_id(config)
    if name is not None:
        revision = f" (revision {code(config.model.revision)})" if config.model.revision else ""
        return f"The model {code(name)}{revision}"
    if config.model.name in EMBEDDED:
        return f"The model {code(config.model.name)} that comes with selfcorrect"
    return f"The model in the local directory {code(config.model.name)}"


def _version(data: RunData) -> str:
    return data.starts[-1].versions.get("selfcorrect", NOT_RECORDED) if data.starts else NOT_RECORDED


def _weights(weights: Weights) -> str:
    if weights.form == "full":
        return f"These are the whole weights, in {weights.dtype}."
    if weights.form == "adapter":
        return (
            "This is a LoRA adapter: it needs the model that it was trained on. It is kept in float32, and was measured "
            f"beside a base in {weights.dtype}."
        )
    text = f"A LoRA adapter was trained; here it is merged into the whole weights, in {weights.dtype}."
    if weights.dtype == "float32" or weights.rounded is None:
        return text
    return (
        f"{text} Rounding to {weights.dtype} changed the weights by {weights.rounded:.1%} of the norm of the whole update, so "
        "answers can differ from those measured below, which were made with the adapter beside its base. The adapter "
        "alone (`selfcorrect export --adapter`) does not have that difference."
    )


def _results(data: RunData) -> str:
    attempts = max(len(s.attempts) for s in data.summaries.values())
    several = attempts > 1
    head = ["", *(f"t{k + 1}" for k in range(attempts)), *(["delta", "i→c", "c→i"] if several else []), "n", "seeds"]
    rows = []
    for name, s in sorted(data.summaries.items(), key=lambda item: not item[0].startswith("base")):
        who, control = model_and_control(name)
        label = "base" if who == "base" else f"trained ({data.config.method.name})"
        label += f", {control}" if control else ""
        cells = [a.accuracy.text() for a in s.attempts] + ["n/a"] * (attempts - len(s.attempts))
        if several and s.revisions:
            last = s.revisions[-1]
            cells += [last.delta.text(sign=True), last.i_to_c.text(), last.c_to_i.text()]
        elif several:
            cells += ["n/a"] * 3
        rows.append([plain(label), *cells, str(s.n_problems), "1"])
    return table(head, rows)


def _interval(summary: EvalSummary) -> str:
    accuracy = summary.accuracy(len(summary.attempts))
    return f"in brackets {accuracy.level:.0%} intervals ({accuracy.kind})" if accuracy.has_interval else ""


def _gain(gain: Estimate) -> str:
    """Whether the last attempt is better than the base's, as far as this one run can say."""
    said = f"Last attempt minus the base's last attempt, paired by problem: {gain.text(sign=True)}."
    if not gain.has_interval:
        return said
    if gain.low > 0:
        return said
    return f"{said} **On these problems the last attempt is {'worse than' if gain.high < 0 else 'not shown to be better than'} the base's.**"


def _measured(final: EvalRecord, config: Config) -> str:
    s = final.settings
    parts = {
        "attempts": "attempts",
        "max_new_tokens": "new tokens per attempt at most",
        "samples": "sample(s) per problem",
    }
    said = [f"{s.get(key, NOT_RECORDED)} {words}" for key, words in parts.items()]
    temperature = s.get("temperature", NOT_RECORDED)
    said.append("greedy decoding" if temperature == 0 else f"temperature {temperature}")
    return f"{', '.join(said)}, in {config.model.dtype}, by selfcorrect's own sampler and the task's own verifier"


def _snippet(config: Config, task: Task, form: str) -> str:
    adapter = form == "adapter"
    loader = "AutoPeftModelForCausalLM" if adapter else "AutoModelForCausalLM"
    source = "from peft import AutoPeftModelForCausalLM\n" if adapter else ""
    names = "AutoTokenizer, GenerationConfig" if adapter else "AutoModelForCausalLM, AutoTokenizer, GenerationConfig"
    return f"""import torch
{source}from transformers import {names}

name = "."  # this directory, or its id on the Hub
problem = "Write your problem here."
instruction = {task.instruction!r}

tokenizer = AutoTokenizer.from_pretrained(name)
model = {loader}.from_pretrained(name, dtype=torch.{config.model.dtype})
model.generation_config = GenerationConfig.from_pretrained(name)  # greedy, as measured


def answer(messages):
    prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    written = model.generate(**prompt, max_new_tokens={config.play.max_new_tokens})[0]
    return tokenizer.decode(written[prompt["input_ids"].shape[1] :], skip_special_tokens=True)


messages = {_message_lines(task)}
{_attempt_lines(config)}"""


def _attempt_lines(config: Config) -> str:
    """Python that plays the attempts as the run did."""
    loop = f"for attempt in range({config.eval.attempts}):"
    if config.task.shown_as == "assistant":
        kept = "# in training, later attempts also read the thinking of earlier ones, which this chat template drops\n"
        return f"""{kept if config.model.history == "keep" else ""}{loop}
    messages += [{{"role": "user", "content": instruction}}] if attempt else []
    messages.append({{"role": "assistant", "content": answer(messages)}})
    print(messages[-1]["content"])"""
    *_, shown = next_messages([{"role": "user", "content": ""}], "{shown}", "{instruction}", config.task.shown_as)
    return f"""{loop}
    written = answer(messages)
    print(written)
    shown = written.split({(config.model.think_markers or ("<think>", "</think>"))[1]!r})[-1].strip()
    messages[-1]["content"] += f{str(shown["content"])!r}"""


def _message_lines(task: Task) -> str:
    """Python that makes the first messages of ``problem``."""
    parts = []
    for m in _first_messages(task) or [{"role": "user", "content": PROBLEM}]:
        content = "problem" if m["content"] == PROBLEM else f'{m["content"]!r}.replace("{PROBLEM}", problem)'
        parts.append(f'{{"role": "{m["role"]}", "content": {content}}}')
    return f"[{', '.join(parts)}]"


def _first_messages(task: Task) -> list[Message] | None:
    """The conversation with ``PROBLEM`` in the place of a question; None where a task needs more than a question."""
    try:
        return list(task.first_messages(Problem("", PROBLEM, "")))
    except Exception:  # noqa: BLE001  # the edge to a user's code; mbpp needs the tests and worked examples of its data
        return None


def _asked(task: Task) -> str:
    asked = _first_messages(task)
    return "\n\n".join(code_block(f"{m['role']}: {m['content']}") for m in asked) if asked else ""


def _training(data: RunData) -> list[tuple[str, str]]:
    config, end = data.config, data.end
    hub = _hub_data(config)
    start = data.starts[-1] if data.starts else None
    episodes = config.train.problems_per_step * config.train.samples_per_problem
    kept = f"step {data.evals['final'].step} of {end.step if end else NOT_RECORDED}"
    path = getattr(config.task, "path", None)
    source = code(path) if path else code(hub.id) if hub else "the task's own"
    engine = start.engine if start else {}
    rows = {
        "method": code(config.method.name),
        "data": f"task {code(config.task.name)}, source {source}",
        "checkpoint kept": kept + (", by training reward" if data.kept_step is not None else ", the last"),
        "episodes per step": f"{episodes} ({config.train.problems_per_step} problems, {config.train.samples_per_problem} samples each)",
        "sampled": f"{end.sampled_responses:,} responses, {end.sampled_tokens:,} tokens" if end else NOT_RECORDED,
        "training time": f"{end.train_seconds:,.0f} s" if end else NOT_RECORDED,
        "engine": ", ".join(plain(f"{k} {v}") for k, v in engine.items()) or NOT_RECORDED,
        "versions": ", ".join(plain(f"{k} {v}") for k, v in start.versions.items()) if start else NOT_RECORDED,
        "started": plain(data.starts[0].time) if data.starts else NOT_RECORDED,
    }
    return list(rows.items())


def _settings(config: Config) -> str:
    lines = []
    for section, values in config.model_dump(mode="json", exclude={"sft", "run_dir", "trackers"}).items():
        pairs = values.items() if isinstance(values, Mapping) else [("", values)]
        lines += [f"{section}{'.' if key else ''}{key} = {json.dumps(value)}" for key, value in pairs]
    return "\n".join(lines)


def _limits(data: RunData, weights: Weights) -> list[str]:
    final = data.summaries["final"]
    out = ["One training run on one task: how much another seed, model or task would give is not known from it."]
    if final.n_verifier_errors:
        out.append(
            f"The verifier failed on {final.n_verifier_errors} of {final.n_episodes} episodes, which are left out."
        )
    if "final-swapped" not in data.summaries:
        out.append("Whether attempt 2 reads attempt 1 was not measured (no control with attempt 1 swapped).")
    if data.config.model.name not in EMBEDDED and weights.form == "adapter" and hub_id(data.config) is None:
        out.append("The adapter's base is a local directory that this card can only name.")
    out.append("Safety, bias and abilities outside the task were not measured.")
    return out
