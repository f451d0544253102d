"""The settings of a run as frozen, typed classes. The defaults are tested and measured with the embedded model.

``tasks.py`` and ``methods.py`` have the classes of tasks and methods; the others are here. ``task``, ``method`` and ``engine`` are unions: their ``name`` picks a class, and a setting without a field in it is
refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import Field, field_validator, model_validator

from selfcorrect.config.methods import MethodConfig, MultiAttemptConfig, ScoreConfig
from selfcorrect.config.section import Named, Section
from selfcorrect.config.tasks import ArithmeticConfig, TaskConfig

TrackerName = Literal["trackio", "wandb", "tensorboard"]
"""Each has a file of its name in ``selfcorrect/trackers``."""

TINKER_LORA_ALPHA = 32.0
"""LoRA alpha of every Tinker server: the API has no setting for it."""


DECIDED_KWARGS = frozenset(
    (
        "add_generation_prompt",
        "bos_token",
        "chat_template",
        "continue_final_message",
        "conversation",
        "documents",
        "eos_token",
        "max_length",
        "messages",
        "padding",
        "raise_exception",
        "return_assistant_tokens_mask",
        "return_dict",
        "return_tensors",
        "self",
        "strftime_now",
        "tokenize",
        "tokenizer_kwargs",
        "tools",
        "truncation",
    )
)
"""Arguments of a rendering that the package decides, not the user."""

BOOLEANS = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}
"""Words that every setting of yes or no accepts."""


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
    """Run Python code from the model's repository. It runs with your rights."""
    template_kwargs: dict[str, Any] = {}  # noqa: RUF012 - pydantic copies it
    """Variables of the chat template, for every rendering: ``{enable_thinking = false}``, or one by one:
    ``model.template_kwargs.enable_thinking=false``. The words true, false, yes, no, on and off in any case are booleans.
    A variable that the template does not read is refused."""
    history: Literal["refuse", "keep", "strip"] = "refuse"
    """What attempt 2 sees of attempt 1 where the chat template drops thinking from earlier turns. refuse: such a model is
    an error. keep: the sampled tokens, thinking included. strip: what the template shows, the answer without its thinking;
    each attempt is then a separate training sequence."""
    think_markers: tuple[str, str] | None = None
    """Texts around the model's thinking, for example ``["<think>", "</think>"]``; None takes them from the chat
    template. What follows the second is the answer that is judged."""

    @field_validator("template_kwargs", mode="before")
    @classmethod
    def _words_are_booleans(cls, value: Any) -> Any:
        if value is None:
            return {}
        if not isinstance(value, Mapping):
            raise ValueError(
                "names with values are needed; write model.template_kwargs.enable_thinking=false, or several as "
                "model.template_kwargs='{enable_thinking = false, effort = \"low\"}'"
            )
        # a template takes any text for true, "False" too
        return {k: BOOLEANS.get(v.lower(), v) if isinstance(v, str) else v for k, v in value.items()}

    @field_validator("template_kwargs")
    @classmethod
    def _free_names(cls, value: dict[str, Any]) -> dict[str, Any]:
        for name in value:
            if not name.isidentifier() or name in DECIDED_KWARGS:
                raise ValueError(
                    f"{name!r} cannot be set: a rendering decides it itself, or it is no name of a variable"
                )
        return value

    @field_validator("think_markers", mode="before")
    @classmethod
    def _both_said(cls, value: Any) -> Any:
        if value is None:
            return None
        texts = isinstance(value, list | tuple) and all(isinstance(part, str) and part.strip() for part in value)
        if not texts or len(value) != 2 or value[0] == value[1]:
            raise ValueError(
                "two different texts are needed: the start and the end of thinking; write "
                """model.think_markers='["<think>", "</think>"]'"""
            )
        return value


class PlayConfig(Section):
    attempts: int = Field(2, ge=1, le=10)
    """Attempts per episode. single_turn trains on one, and spends the same budget on more samples."""
    max_new_tokens: int = Field(16, ge=1)
    """Token cap per attempt."""


class TrainConfig(Section):
    steps: int = Field(200, ge=1)
    """Optimiser steps in total, over all stages."""
    problems_per_step: int = Field(64, ge=1)
    """Problems played in one optimiser step."""
    samples_per_problem: int = Field(8, ge=2)
    """Group size of the leave-one-out baseline. 1 is refused: there would be no baseline."""
    learning_rate: float = Field(3e-4, gt=0)
    """Adam's learning rate after the warm-up."""
    warmup_steps: int = Field(10, ge=0)
    """Linear learning-rate warm-up at the start of each stage; constant afterwards."""
    adam_beta1: float = Field(0.9, ge=0, lt=1)
    """Adam's decay of the mean gradient. Not the method's beta1."""
    adam_beta2: float = Field(0.999, ge=0, lt=1)
    """Adam's decay of the mean squared gradient. Not the method's beta2."""
    adam_eps: float = Field(1e-8, gt=0)
    """Adam's epsilon, added to the denominator."""
    weight_decay: float = Field(0.0, ge=0)
    """Decoupled weight decay (AdamW); 0 is Adam, as in the paper."""
    grad_clip: float | None = Field(None, gt=0)
    """Limit on the gradient norm. Off by default: it would shrink attempt 1's gradient together with attempt 2's larger
    one."""
    ratio_cap: float | Literal["auto"] | None = "auto"
    """Largest importance ratio (trainer over sampler) of a token, at least 1; larger ones are truncated. auto: none if
    the sampler's log-probs equal the trainer's, else 2. With such an exact sampler a cap costs one forward pass."""
    ratio_mask: float | Literal["auto"] | None = "auto"
    """Leave out sequences whose geometric mean ratio is above this or below its inverse; above 1. auto: none or 1.5, as
    for ratio_cap."""
    checkpoint_every: int = Field(20, ge=1)
    """Steps between checkpoints; the end of a stage always writes one."""
    keep_checkpoints: int = Field(2, ge=1)
    """Latest checkpoints kept on disk; the best one is kept as well."""
    best_window: int = Field(10, ge=1)
    """Steps over which the training reward is averaged to choose the best checkpoint: full windows of the final stage
    only, or the whole of a shorter stage."""
    log_problems_per_step: int = Field(2, ge=0)
    """Problems per step whose episodes go into episodes.jsonl in full."""

    @model_validator(mode="after")
    def _bounds_let_a_ratio_of_1_pass(self) -> Self:
        if isinstance(self.ratio_cap, float) and not 1 <= self.ratio_cap < float("inf"):
            raise ValueError(
                f"train.ratio_cap={self.ratio_cap:g} would shrink tokens on which trainer and sampler agree (ratio 1); take 1 "
                "or more (2 is usual), auto, or none"
            )
        if isinstance(self.ratio_mask, float) and not 1 < self.ratio_mask < float("inf"):
            raise ValueError(
                f"train.ratio_mask={self.ratio_mask:g} would leave out every sequence: it is a factor from 1, up or down; take "
                "more than 1, auto, or none"
            )
        return self

    def ratio_bounds(self, exact_sampler: bool) -> tuple[float | None, float | None]:
        """The cap of a token's ratio and the band of a sequence's ratio, which depend on whether the sampler is
        exact."""
        usual = (None, None) if exact_sampler else (2.0, 1.5)
        cap, band = (u if v == "auto" else v for u, v in zip(usual, (self.ratio_cap, self.ratio_mask), strict=True))
        return cap, band


class SftConfig(Section):
    steps: int = Field(100, ge=1)
    """Supervised optimiser steps."""
    examples_per_step: int = Field(32, ge=1)
    """Demonstrations in one step."""
    learning_rate: float = Field(1e-4, gt=0)
    """Of Adam at the first step; it falls linearly to a tenth."""
    eval_problems: int = Field(100, ge=0)
    """Held-out problems on which the warmed-up model is measured greedily at the end; 0 measures nothing."""


class TorchEngineConfig(Named):
    name: Literal["torch"] = "torch"
    """torch: this process, CPU or one GPU. tinker: a server of the Tinker API (docs/engines.md)."""
    sampler: Literal["native", "vllm"] = "native"
    """native: samples with the trainer's own weights. vllm: vLLM in this process, on a copy of them that every step
    updates in place; the extra selfcorrect[vllm] (docs/engines.md)."""
    sampler_memory_gb: float = Field(4.0, gt=0)
    """sampler=vllm: GiB for its key-value cache, on a CPU or a GPU. Its copy of the weights needs more memory."""
    drafts: bool | None = None
    """Where an answer repeats an earlier attempt, check several tokens per pass: the same answers, in less time
    (docs/engines.md). None: on with sampler=native in float32."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto takes CUDA where there is a device, else the CPU."""
    deterministic: bool | None = None
    """Equal settings give equal records and weights, bit for bit, on any machine with the same kind of CPU and torch.
    None: on for a CPU with the native sampler, where this can be guaranteed; false switches it off."""
    threads: int | None = Field(None, ge=1, le=1024)
    """CPU threads. None: one for the embedded models of 0.1 M parameters, which a second thread slows down; otherwise
    OMP_NUM_THREADS, or one per core."""
    tokens_per_microbatch: int = Field(4_096, ge=1)
    """Padded tokens per forward-backward pass: bounds training memory whatever the batch."""
    tokens_per_sampling_batch: int = Field(131_072, ge=1)
    """sampler=native: key-value cache slots (rows x length) of one sampling batch: bounds sampling memory."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, more time."""


class TinkerEngineConfig(Named):
    name: Literal["tinker"] = "tinker"
    base_url: str | None = None
    """The server's address, http://HOST:PORT; None is Tinker itself, with the key in TINKER_API_KEY."""
    timeout_s: float = Field(600.0, gt=0)
    """Longest wait for one request, in seconds. After it, a request that may have changed something is not repeated:
    the last checkpoint is loaded."""
    wait_s: float = Field(600.0, ge=0)
    """Longest wait for a full server, or for a lost server to come back, in seconds."""


EngineConfig = Annotated[TorchEngineConfig | TinkerEngineConfig, Field(discriminator="name")]


class EvalConfig(Section):
    problems: int | None = Field(2000, ge=1)
    """Held-out problems per evaluation; None takes the whole split."""
    attempts: int = Field(2, ge=1, le=10)
    """Attempts per problem, possibly more than in training; None takes play.attempts."""
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
    """All settings of one run."""

    model: ModelConfig = ModelConfig()
    """The model that is trained."""
    task: TaskConfig = ArithmeticConfig()
    """Problems, prompts and verdicts. A task refuses settings that it does not read."""
    method: MethodConfig = ScoreConfig()
    """The training method. A method refuses settings that it does not read."""
    play: PlayConfig = PlayConfig()
    """How a problem is played, in training, measuring and serving alike."""
    train: TrainConfig = TrainConfig()
    """Budget, optimiser, checkpoints."""
    sft: SftConfig = SftConfig()
    """`selfcorrect sft`: supervised steps on a task's demonstrations, to teach its answer format."""
    engine: EngineConfig = TorchEngineConfig()
    """Where the model runs, and with how much memory. An engine refuses settings that it does not read."""
    eval: EvalConfig = EvalConfig()
    """Measuring: before and after training, and by `selfcorrect eval`."""
    seed: int = Field(0, ge=0, lt=2**31)
    """Decides the order of problems and the sampling. The held-out problems and the initial adapters do not depend on
    it."""
    run_dir: str | None = None
    """Where the run writes; None takes runs/<model>-<task>-<method>-s<seed>."""
    trackers: tuple[TrackerName, ...] = ()
    """Trackers that also receive the numbers (docs/sharing.md): ``wandb`` or ``wandb,tensorboard``. They change no
    result."""

    @model_validator(mode="before")
    @classmethod
    def _resolve(cls, values: Any) -> Any:
        """Name the default member of each union, and let eval.attempts follow play.attempts."""
        if not isinstance(values, Mapping):
            return values
        out = {key: {**value} if isinstance(value, Mapping) else value for key, value in values.items()}
        for section in ("task", "method", "engine"):
            if isinstance(out.get(section), dict):
                out[section].setdefault("name", cls.model_fields[section].default.name)
        measured, played = out.setdefault("eval", {}), out.get("play")
        if isinstance(measured, dict) and measured.get("attempts") is None:
            attempts = played.get("attempts") if isinstance(played, dict) else getattr(played, "attempts", None)
            measured.pop("attempts", None)
            if attempts in range(1, 11):  # any other is refused as play.attempts
                measured["attempts"] = attempts
        return out

    @field_validator("trackers", mode="before")
    @classmethod
    def _names(cls, value: Any) -> Any:
        return [name.strip() for name in value.split(",")] if isinstance(value, str) else value or ()

    @model_validator(mode="after")
    def _name_the_estimator(self) -> Self:
        m = self.method
        if isinstance(m, MultiAttemptConfig) and m.branches is None:
            branches = m.fitting_branches(self.play.attempts, self.train.samples_per_problem)
            object.__setattr__(self, "method", m.model_copy(update={"branches": branches}))
        return self

    @model_validator(mode="after")
    def _tinker_trains_adapters(self) -> Self:
        if self.engine.name != "tinker":
            return self
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
                "train.grad_clip would be ignored: SkyRL's server drops it without an error; set train.grad_clip=none, or use "
                "engine=torch"
            )
        return self

    @model_validator(mode="after")
    def _feedback_needs_own_turns(self) -> Self:
        name = self.method.name
        if name in ("self_refine", "pag") and self.task.shown_as != "assistant":
            turn = "feedback" if name == "self_refine" else "verdict"
            raise ValueError(
                f"task.shown_as={self.task.shown_as} makes no sense with method={name}: its {turn} is the assistant's "
                "own second turn; drop one of them"
            )
        return self

    @property
    def resolved_run_dir(self) -> Path:
        if self.run_dir is not None:
            return Path(self.run_dir)
        model = Path(self.model.name).name
        return Path("runs") / f"{model}-{self.task.name}-{self.method.name}-s{self.seed}"


def _classes(annotation: Any) -> list[type[Section]]:
    if isinstance(annotation, type):
        return [annotation] if issubclass(annotation, Section) else []
    return [found for part in get_args(annotation) for found in _classes(part)]


SECTIONS: dict[str, list[type[Section]]] = {
    name: found for name, field in Config.model_fields.items() if (found := _classes(field.annotation))
}
"""The classes of every section; more than one for a union, its default first."""
UNIONS = {name: classes for name, classes in SECTIONS.items() if len(classes) > 1}


def all_keys() -> list[str]:
    """Every dotted setting name, each once."""
    keys: dict[str, None] = {}
    for name in Config.model_fields:
        classes = SECTIONS.get(name)
        keys |= dict.fromkeys([f"{name}.{key}" for c in classes for key in c.model_fields] if classes else [name])
    return list(keys)


def names_of(member: type[Section]) -> tuple[str, ...]:
    """The names that choose this member of a union; none for a task of the user's own."""
    return get_args(member.model_fields["name"].annotation)


def readers(key: str) -> list[str]:
    """Names of the members of a union that read a setting, e.g. ``method.alpha``; empty elsewhere."""
    section, _, name = key.partition(".")
    return [n for c in UNIONS.get(section, []) if name in c.model_fields for n in names_of(c)]


def default_of(key: str, member: str | None = None) -> Any:
    """The default of a setting: of the member of that name in a union, else of the first class that reads it."""
    section, _, name = key.partition(".")
    classes, name = (SECTIONS[section], name) if name else ([Config], section)
    if member is not None:
        classes = [c for c in classes if member in names_of(c)] or classes
    return next(c.model_fields[name].default for c in classes if name in c.model_fields)
