"""Every setting of a run: frozen, typed, unknown keys refused. The class defaults are the demo: the vetted setting.

Layers, later wins: class defaults < the model's preset (``presets/<model>.toml``) < a TOML file < ``key=value``.
A section that has a ``name`` may be set by it alone: ``model=smollm2`` is ``model.name=smollm2``.
"""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Iterable, Mapping
from importlib import resources
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from selfcorrect.errors import ConfigError

PRESET_MARKER = "selfcorrect_preset.txt"
"""File in a model directory that names the preset its settings start from."""

HINTS = {
    "temperature": "training samples at temperature 1 with no top-p or top-k: the log-probs must be those of the sampling "
    "law (the paper samples at T = 1 too). For an evaluation use eval.temperature.",
    "top_p": "training samples at temperature 1 with no top-p or top-k; there is no setting for it.",
    "top_k": "training samples at temperature 1 with no top-p or top-k; there is no setting for it.",
    "lr": "did you mean train.learning_rate?",
    "learning_rate": "did you mean train.learning_rate?",
    "batch_size": "a step plays train.problems_per_step problems, train.samples_per_problem times each.",
    "steps": "did you mean train.steps?",
}

TrackerName = Literal["trackio", "wandb", "tensorboard"]


class Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)


class ModelConfig(Section):
    name: str = "tiny"
    """``tiny``, ``smollm2``, a local directory, a run directory's export, or a Hugging Face id."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Compute precision. Master weights (or adapters) and optimiser state are float32 either way."""
    lora_rank: int = Field(0, ge=0, le=1024)
    """0 trains every weight; otherwise the rank of LoRA adapters on all linear layers but the output head."""
    lora_alpha: float = Field(32.0, gt=0)
    """Adapters are scaled by lora_alpha / lora_rank."""
    revision: str | None = None
    """Branch, tag or commit of a Hugging Face id; None takes the newest."""
    trust_remote_code: bool = False
    """Run the Python code that a model's repository brings. It runs as you."""


class TaskConfig(Section):
    name: str = "arithmetic"
    """A task of this package, ``own``, or ``package.module:make``."""
    path: str | None = None
    """File or directory of the data set (math: a Hub id too); None takes the task's own Hub id."""
    eval_split: Literal["test", "validation"] = "test"
    """mbpp, mbpp_repair, own: the split that evaluations measure."""
    terms_min: int = Field(4, ge=2, le=12)
    """arithmetic: the fewest numbers in a sum."""
    terms_max: int = Field(6, ge=2, le=12)
    """arithmetic: the most numbers in a sum."""
    asks: Literal["last_digit", "sum"] = "last_digit"
    """arithmetic: what a question asks for; ``sum`` is the form for language models."""
    largest: int = Field(9, ge=2, le=9999)
    """arithmetic: the largest number in a sum."""
    first_attempts: str | None = None
    """mbpp_repair: file of stored first attempts; None takes first_attempts_models.jsonl(.gz) of task.path."""
    verifier: str | None = None
    """own: math, number, exact, code, or ``package.module:function``."""
    prompt: str | None = None
    """own: what attempt 1 is asked, with {question} in it; None asks the question alone."""
    accept_risk: str | None = None
    """Tasks that run programs: the name of the risk (docs/sandbox.md) to run them where the machine lacks a sandbox."""
    instruction: str | None = None
    """Correction instruction between attempts; None takes the task's own. It must not say whether y1 was right."""

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.terms_min > self.terms_max:
            raise ValueError(f"task.terms_min ({self.terms_min}) is above task.terms_max ({self.terms_max})")
        return self


class MethodConfig(Section):
    name: Literal["score", "multi_turn", "single_turn", "star", "pair_sft", "self_refine"] = "score"
    """What is done with the episodes; ``self_refine`` is for `selfcorrect eval` only."""
    attempts: int = Field(2, ge=1, le=10)
    """Attempts per episode; single_turn plays one and spends the same budget on more samples."""
    alpha: float = Field(10.0, ge=0)
    """Progress bonus of Stage II (paper: 10). 0 is the ablation without shaping."""
    shaping: Literal["progress", "scaled"] = "progress"
    """progress: the bonus alpha (r2 - r1), as in the paper. scaled: (1 + alpha) r2 alone, nothing subtracted."""
    beta1: float = Field(0.01, ge=0)
    """KL weight on every attempt, both stages (paper: 0.01)."""
    beta2: float = Field(0.1, ge=0)
    """Extra KL weight on all but the last attempt in Stage I (paper: 0.1 for MATH, 0.25 for MBPP)."""
    beta2_target: float | None = Field(None, gt=0)
    """Stage I: adapt beta2 so that the held attempts' KL stays near this many nats; None keeps it fixed."""
    gamma: float = Field(0.0, ge=0, le=1)
    """Discount between attempts. 0 in the paper; other values show the failure."""
    kl_credit: Literal["sequence", "to_go", "token"] = "sequence"
    """What a token is charged with of its attempt's KL: all of it, the part from that token on, or its own (biased)."""
    baseline: Literal["leave_one_out", "given_first"] = "leave_one_out"
    """given_first: the baseline of later attempts takes mates whose first attempt had the same verdict."""
    standardise: bool = False
    """Divide the reward part of the advantages by its spread in the group, per attempt. Not in the paper."""
    offline_share: float = Field(0.0, ge=0, le=1)
    """Share of a step's problems whose first attempts are stored answers of the base (Stage II and multi_turn). The
    paper names the option and no share; 1 is its ablation "only offline first attempts"."""
    dataset: Literal["D", "D+"] = "D"
    """star, pair_sft: D holds corrections of a wrong first attempt; D+ also right first attempts kept right."""
    train_attempt1: bool = False
    """star, pair_sft: also imitate the first attempt, which is context otherwise."""
    stage1: Literal["last", "stepwise"] = "last"
    """last: Stage I rewards the last attempt. stepwise: attempt 2, then 3, ..., each with the earlier attempts held at
    the policy before (the paper's recipe for three attempts)."""
    stage2: Literal["reinforce", "star"] = "reinforce"
    """star: the ablation with STaR in place of REINFORCE in Stage II."""
    interleave: int = Field(0, ge=0)
    """Alternate Stage I and Stage II every so many steps (v1 of the paper names the option); 0 runs one after the other."""
    branches: int = Field(1, ge=1, le=16)
    """Second attempts per first attempt, each with the others as its baseline. Not in the paper."""
    stage1_share: float = Field(0.4, ge=0, lt=1)
    """Share of train.steps spent in Stage I (score only; the paper is silent). 0 is the ablation without Stage I."""


class TrainConfig(Section):
    steps: int = Field(200, ge=1)
    """Optimiser steps in all, over all stages."""
    problems_per_step: int = Field(64, ge=1)
    """Problems played in one optimiser step."""
    samples_per_problem: int = Field(8, ge=2)
    """Group size of the leave-one-out baseline. 1 is refused: there would be no baseline."""
    max_new_tokens: int = Field(16, ge=1)
    """Token cap per attempt."""
    learning_rate: float = Field(3e-4, gt=0)
    """Of Adam, after the warm-up."""
    warmup_steps: int = Field(10, ge=0)
    """Linear learning-rate warm-up at the start of each stage; constant afterwards."""
    adam_beta1: float = Field(0.9, ge=0, lt=1)
    """Adam's decay of the mean gradient. Not the method's beta1."""
    adam_beta2: float = Field(0.999, ge=0, lt=1)
    """Adam's decay of the mean squared gradient. Not the method's beta2."""
    adam_eps: float = Field(1e-8, gt=0)
    """Adam's addend to the denominator."""
    weight_decay: float = Field(0.0, ge=0)
    """Decoupled weight decay (AdamW); 0 is Adam, as in the paper."""
    grad_clip: float | None = Field(None, gt=0)
    """Gradient norm limit. Off: it would shrink attempt 1's gradient together with attempt 2's larger one."""
    checkpoint_every: int = Field(20, ge=1)
    """Steps between checkpoints; the end of a stage always writes one."""
    keep_checkpoints: int = Field(2, ge=1)
    """Latest checkpoints kept on disk; the best one is kept besides."""
    best_window: int = Field(10, ge=1)
    """Steps over which the training reward is averaged to choose the best checkpoint: full windows of the final stage
    only, or the whole of a shorter stage."""
    log_problems_per_step: int = Field(2, ge=0)
    """Problems per step whose episodes go into episodes.jsonl in full."""


class SftConfig(Section):
    steps: int = Field(100, ge=1)
    """Supervised optimiser steps."""
    examples_per_step: int = Field(32, ge=1)
    """Demonstrations in one step."""
    learning_rate: float = Field(1e-4, gt=0)
    """Of Adam at the first step; it falls linearly to a tenth."""


class EngineConfig(Section):
    name: Literal["torch", "tinker"] = "torch"
    """torch: this process, CPU or one GPU. tinker: a server of the Tinker API (docs/engines.md)."""
    base_url: str | None = None
    """tinker: the server's address, http://HOST:PORT; None is Tinker itself, with the key in TINKER_API_KEY."""
    timeout_s: float = Field(600.0, gt=0)
    """tinker: longest wait for one request. What may be lost by then is not sent again: the last checkpoint is loaded."""
    wait_s: float = Field(600.0, ge=0)
    """tinker: longest wait for a full server, and for a lost one to come back."""
    sampler: Literal["native", "vllm"] = "native"
    """torch: native samples with the trainer's own weights. vllm: vLLM in this process, on a copy of them that every step
    updates in place; the extra selfcorrect[vllm] (docs/engines.md)."""
    sampler_memory_gb: float = Field(4.0, gt=0)
    """sampler=vllm: GiB for its key-value cache, on a CPU or a GPU; its copy of the weights comes on top."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto takes CUDA where there is a device, else the CPU."""
    tokens_per_microbatch: int = Field(4_096, ge=1)
    """Padded tokens per forward-backward pass: bounds training memory whatever the batch."""
    tokens_per_sampling_batch: int = Field(131_072, ge=1)
    """sampler=native: key-value cache slots (rows x length) of one sampling batch: bounds sampling memory."""
    gradient_checkpointing: bool = False
    """Compute activations again in the backward pass: less memory, more time."""


ENGINE_SETTINGS = {
    "torch": {"sampler", "device", "tokens_per_microbatch", "gradient_checkpointing"},
    "tinker": {"base_url", "timeout_s", "wait_s"},
}
"""Settings of the section ``engine`` that each engine reads."""
SAMPLER_SETTINGS = {"native": {"tokens_per_sampling_batch"}, "vllm": {"sampler_memory_gb"}}
"""Those that each sampler of the torch engine reads."""
TINKER_LORA_ALPHA = 32.0
"""The Tinker API has no setting for it: servers take this."""


class EvalConfig(Section):
    problems: int | None = Field(2000, ge=1)
    """Held-out problems per evaluation; None takes the whole split."""
    attempts: int = Field(2, ge=1, le=10)
    """Attempts per problem; it may be more than were trained."""
    temperature: float = Field(0.0, ge=0)
    """0 is greedy (the paper's choice)."""
    samples: int = Field(1, ge=1)
    """Samples per problem; more than 1 needs a temperature above 0."""
    controls: bool = True
    """Also measure t2 with attempt 1 replaced by another problem's, and by a wrong attempt at the same problem."""

    @model_validator(mode="after")
    def _samples_need_temperature(self) -> Self:
        if self.samples > 1 and self.temperature == 0:
            raise ValueError("eval.samples > 1 with eval.temperature = 0 would repeat the same greedy answer")
        return self


class Config(Section):
    """One run, whole."""

    model: ModelConfig = ModelConfig()
    """What is trained."""
    task: TaskConfig = TaskConfig()
    """Problems, prompts and verdicts. A setting belongs to the tasks named before its colon; others refuse it."""
    method: MethodConfig = MethodConfig()
    """What episodes are made into. Settings that the method does not read are refused."""
    train: TrainConfig = TrainConfig()
    """Budget, optimiser, checkpoints."""
    sft: SftConfig = SftConfig()
    """`selfcorrect sft`: supervised steps on a task's demonstrations, to teach its answer format."""
    engine: EngineConfig = EngineConfig()
    """Where it runs, and in how much memory."""
    eval: EvalConfig = EvalConfig()
    """Measuring: before and after training, and by `selfcorrect eval`."""
    seed: int = Field(0, ge=0, lt=2**31)
    """Moves the order of problems and the sampling; not the problems held out, nor the initial adapters."""
    run_dir: str | None = None
    """Where the run writes; None takes runs/<model>-<task>-<method>-s<seed>."""
    trackers: tuple[TrackerName, ...] = ()
    """Also show the numbers of the records there (docs/sharing.md); ``wandb`` or ``wandb,tensorboard``. Changes no result."""

    @field_validator("trackers", mode="before")
    @classmethod
    def _names(cls, value: Any) -> Any:
        return [name.strip() for name in value.split(",")] if isinstance(value, str) else value or ()

    @model_validator(mode="after")
    def _tinker_trains_adapters(self) -> Self:
        if self.engine.name != "tinker":
            return self
        if self.engine.sampler != "native":
            raise ValueError(
                f"engine.sampler={self.engine.sampler} is a sampler of engine=torch: a Tinker server has its own; drop "
                "engine.sampler, or use engine=torch"
            )
        if not self.model.lora_rank:
            raise ValueError(
                "engine=tinker trains LoRA adapters only, and model.lora_rank=0 asks for every weight; set "
                "model.lora_rank, e.g. to 32"
            )
        if self.model.lora_alpha != TINKER_LORA_ALPHA:
            raise ValueError(
                f"model.lora_alpha={self.model.lora_alpha:g} would be ignored: the Tinker API has no setting for it and its "
                f"servers take {TINKER_LORA_ALPHA:g}; set model.lora_alpha={TINKER_LORA_ALPHA:g}"
            )
        if self.train.grad_clip is not None:
            raise ValueError(
                "train.grad_clip is not done by SkyRL's server, which drops it without a word; set train.grad_clip=none, or "
                "use engine=torch"
            )
        return self

    @property
    def resolved_run_dir(self) -> Path:
        if self.run_dir is not None:
            return Path(self.run_dir)
        model = Path(self.model.name).name
        return Path("runs") / f"{model}-{self.task.name}-{self.method.name}-s{self.seed}"


def load_config(file: Path | None = None, overrides: Iterable[str] = ()) -> Config:
    """Resolve all layers into one frozen config.

    Args:
        file: a TOML file with the sections of ``Config``, or None.
        overrides: ``section.key=value`` or ``section=name``; a value is read as TOML, else as a plain string.

    Raises:
        ConfigError: unknown key, wrong type, out of range, or settings in conflict; the message names the way out.
    """
    user = _read_toml(file) if file is not None else {}
    _expand_names(user)
    for text in overrides:
        _apply_override(user, text)
    _refuse_unknown(user, Config, prefix="")
    named = user.get("model", {}).get("name", Config().model.name)
    layers = _merge(_preset(named), user)
    config = validate(layers)
    _refuse_ignored(config, user)
    # only what the user gave: presets set it beside a rank that may be taken back
    given = "lora_alpha" in user.get("model", {}) and config.model.lora_alpha != ModelConfig().lora_alpha
    if given and config.model.lora_rank == 0:
        raise ConfigError(
            f"model.lora_alpha = {config.model.lora_alpha:g} would be ignored: model.lora_rank is 0, so there are no adapters; "
            "set model.lora_rank, or drop it"
        )
    return config


def override(config: Config, overrides: Iterable[str]) -> Config:
    """A resolved config with some settings changed.

    Args:
        config: e.g. that of a finished run.
        overrides: as for ``load_config``.

    Raises:
        ConfigError: as ``load_config``.
    """
    values = config.model_dump()
    for text in overrides:
        _apply_override(values, text)
    return validate(values)


def validate(values: Mapping[str, Any]) -> Config:
    """Build a ``Config`` from nested values, with one-paragraph errors.

    Raises:
        ConfigError: as ``load_config``.
    """
    _refuse_unknown(values, Config, prefix="")
    try:
        return Config.model_validate(values)
    except ValidationError as error:
        raise ConfigError("; ".join(_explain(e) for e in error.errors())) from None


def _refuse_ignored(config: Config, user: Mapping[str, Any]) -> None:
    """Settings that the chosen engine would ignore, where the user writes them and not as their default."""
    name = config.engine.name
    keys = ENGINE_SETTINGS[name] | {"name"} | (SAMPLER_SETTINGS[config.engine.sampler] if name == "torch" else set())
    read = {f"engine.{key}" for key in keys}
    theirs = {f"engine.{key}": getattr(config.engine, key) for key in user.get("engine", {})}
    if name == "tinker" and "dtype" in user.get("model", {}):  # the server decides
        theirs["model.dtype"] = config.model.dtype
    defaults = {f"engine.{key}": value for key, value in EngineConfig()} | {"model.dtype": ModelConfig().dtype}
    ignored = [key for key, value in theirs.items() if key not in read and value != defaults[key]]
    if ignored:
        samplers = {f"engine.{key}" for keys in SAMPLER_SETTINGS.values() for key in keys}
        a_samplers = name == "torch" and not samplers.isdisjoint(ignored)
        with_sampler = f" with engine.sampler={config.engine.sampler}" if a_samplers else ""
        raise ConfigError(
            f"engine={name}{with_sampler} would ignore {', '.join(ignored)}; drop the setting, or choose the engine or sampler that reads it"
        )


def _read_toml(file: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(
            f"config file {file} does not exist; give the path of a TOML file, or key=value settings"
        ) from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"config file {file} is not valid TOML: {error}; mend that line") from None
    except OSError as error:
        raise ConfigError(
            f"config file {file} cannot be read: {error.strerror}; check the path and its permissions"
        ) from None


def _preset(model: str) -> dict[str, Any]:
    """Vetted settings of one embedded model, or of any other language model; class defaults are those of ``tiny``.

    A directory written by `selfcorrect sft` keeps the preset of the model it was warmed from.
    """
    name = preset_name(model)
    if name == "tiny":
        return {}
    return tomllib.loads(resources.files("selfcorrect").joinpath(f"presets/{name}.toml").read_text(encoding="utf-8"))


def preset_name(model: str) -> str:
    """``tiny``, ``smollm2`` or ``language_model``."""
    marker = Path(model) / PRESET_MARKER
    name = marker.read_text(encoding="utf-8").strip() if marker.is_file() else model
    return name if name in ("tiny", "smollm2") else "language_model"


def _expand_names(values: dict[str, Any]) -> None:
    for key, field in Config.model_fields.items():
        if key in values and not isinstance(values[key], dict) and _is_named_section(field.annotation):
            values[key] = {"name": values[key]}


def _is_named_section(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, Section) and "name" in annotation.model_fields


def _apply_override(values: dict[str, Any], text: str) -> None:
    key, equals, raw = text.partition("=")
    if not equals or not key:
        raise ConfigError(f"setting {text!r} is not of the form key=value; write for example train.steps=100")
    path = key.strip().split(".")
    field = Config.model_fields.get(path[0])
    if len(path) == 1 and field is not None and _is_named_section(field.annotation):
        path.append("name")
    node = values
    for part in path[:-1]:
        node = node.setdefault(part, {})
        if not isinstance(node, dict):
            raise ConfigError(f"setting {text!r}: {part!r} is not a section; write section.key=value")
    node[path[-1]] = _parse_value(raw.strip())


def _parse_value(raw: str) -> Any:
    if raw in ("none", "None", "null"):
        return None
    try:
        return tomllib.loads(f"v = {raw}")["v"]
    except tomllib.TOMLDecodeError:
        return raw


def _refuse_unknown(values: Mapping[str, Any], section: type[BaseModel], prefix: str) -> None:
    for key, value in values.items():
        full = f"{prefix}{key}"
        if key not in section.model_fields:
            raise ConfigError(f"unknown setting {full!r}: {_suggest(key, prefix)}")
        annotation = section.model_fields[key].annotation
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            if not isinstance(value, Mapping):
                raise ConfigError(
                    f"{full!r} is a section, not a value; set one of: {', '.join(annotation.model_fields)}"
                )
            _refuse_unknown(value, annotation, f"{full}.")


def _suggest(key: str, prefix: str) -> str:
    if key in HINTS:
        return HINTS[key]
    known = all_keys()
    close = difflib.get_close_matches(f"{prefix}{key}", known, n=3) or [k for k in known if k.endswith(f".{key}")]
    if close:
        return f"did you mean {' or '.join(close)}?"
    return "see every setting with `selfcorrect train --dry-run`."


def all_keys() -> list[str]:
    """Every dotted setting name."""
    keys = []
    for name, field in Config.model_fields.items():
        annotation = field.annotation
        if isinstance(annotation, type) and issubclass(annotation, Section):
            keys += [f"{name}.{k}" for k in annotation.model_fields]
        else:
            keys.append(name)
    return keys


def _merge(base: Mapping[str, Any], top: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in top.items():
        below = merged.get(key)
        merged[key] = _merge(below, value) if isinstance(below, Mapping) and isinstance(value, Mapping) else value
    return merged


def _explain(error: Any) -> str:
    where = ".".join(part for part in error["loc"] if isinstance(part, str))  # a number counts the entries of a list
    message = str(error["msg"]).removeprefix("Value error, ")
    if where == "train.samples_per_problem":
        return (
            f"train.samples_per_problem = {error['input']!r} is refused: the leave-one-out baseline needs at least "
            "2 samples of each problem; use 4 or more"
        )
    if where not in all_keys():  # a check between settings: its message names them
        return message
    default: Any = Config()
    for part in where.split("."):
        default = getattr(default, part)
    return f"{where} = {error['input']!r}: {message}; the default is {default!r}"
