"""The settings of every task: a class each, and their union ``TaskConfig``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import Discriminator, Field, Tag, field_validator, model_validator

from selfcorrect.config.section import Named


class AnyTaskConfig(Named):
    instruction: str | None = None
    """Correction instruction between attempts; None takes the task's own. It must not say whether y1 was right."""
    shown_as: Literal["assistant", "user", "document"] = "assistant"
    """Who shows attempt 1 to attempt 2. assistant: its own turn (SCoRe). user, document: the next user turn quotes the
    answer, as the user's or as a document, and there is no turn of the assistant before attempt 2."""


class SumsConfig(AnyTaskConfig):
    terms_min: int = Field(4, ge=2, le=12)
    """The fewest numbers in a sum."""
    terms_max: int = Field(6, ge=2, le=12)
    """The most numbers in a sum."""
    asks: Literal["last_digit", "sum"] = "last_digit"
    """What a question asks for; ``sum`` is the form for language models."""
    largest: int = Field(9, ge=2, le=9999)
    """The largest number in a sum."""

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.terms_min > self.terms_max:
            raise ValueError(f"task.terms_min ({self.terms_min}) is above task.terms_max ({self.terms_max})")
        return self


class CountdownConfig(AnyTaskConfig):
    name: Literal["countdown"] = "countdown"
    pick: Literal["two", "all"] = "two"
    """two: which two numbers add up to the target. all: an expression that uses every number once."""
    numbers_min: int = Field(3, ge=3, le=6)
    """The fewest numbers of a problem."""
    numbers_max: int = Field(3, ge=3, le=6)
    """The most numbers of a problem."""
    largest_number: int = Field(30, ge=9, le=999)
    """The largest of the numbers; the smallest is 1."""
    operations: str = "+-*"
    """pick=all: the operations allowed, two or more of + - * /."""
    wrong_share: float = Field(0.4, ge=0, le=1)
    """`selfcorrect sft`: share of the demonstrated attempts that are honest wrong tries, each with a sound check."""
    demonstrated_attempts: Literal[1, 2] = 2
    """`selfcorrect sft`: 2 draws both attempts in the same way, independently of each other; 1 shows single turns
    only."""
    system_message: str | None = None
    """A system message before the question. None sends none, because some chat templates refuse one; SmolLM2's template
    then writes its own long one."""

    @field_validator("operations")
    @classmethod
    def _known(cls, value: str) -> str:
        if len(value) < 2 or set(value) - set("+-*/") or len(set(value)) < len(value):
            raise ValueError("write two or more of + - * /, each once, without spaces")
        return value

    @model_validator(mode="after")
    def _form_reads_all(self) -> Self:
        if self.numbers_min > self.numbers_max:
            raise ValueError(f"task.numbers_min ({self.numbers_min}) is above task.numbers_max ({self.numbers_max})")
        ignored = (self.pick == "two", ("operations",), "set task.pick=all")
        return self.refuse_ignored("task", [ignored])


class DataConfig(AnyTaskConfig):
    path: str | None = None
    """File or directory of the data set (math: a Hub id too); None takes the task's own Hub id."""


class RiskConfig(AnyTaskConfig):
    accept_risk: str | None = None
    """Name of the risk (docs/sandbox.md) that you accept, to run a model's programs on a machine without a sandbox."""


class ProgramsConfig(DataConfig, RiskConfig):
    pass


class SplitsConfig(ProgramsConfig):
    eval_split: Literal["test", "validation"] = "test"
    """The split that evaluations measure."""


class StoredAttemptsConfig(SplitsConfig):
    first_attempts: str | None = None
    """File of stored first attempts; None takes first_attempts_models.jsonl(.gz) of task.path."""


class VerifierConfig(SplitsConfig):
    verifier: str | None = None
    """math, number, exact, code, or ``package.module:function``."""
    prompt: str | None = None
    """The prompt of attempt 1, with {question} where the question goes; None sends the question alone."""


class OptionsConfig(AnyTaskConfig):
    options: dict[str, Any] = {}  # noqa: RUF012 - pydantic copies it
    """Settings of an imported task or of a reasoning-gym data set, each as task.options.NAME=VALUE. True and False are
    booleans, as true and false are."""

    @field_validator("options", mode="after")
    @classmethod
    def _words_are_booleans(cls, value: dict[str, Any]) -> dict[str, Any]:
        # Python takes any text for true, "False" too
        return {k: {"True": True, "False": False}.get(v, v) if isinstance(v, str) else v for k, v in value.items()}


class ArithmeticConfig(SumsConfig):
    name: Literal["arithmetic"] = "arithmetic"
    """A task of this package, ``own``, or ``package.module:make``."""


class Gsm8kConfig(DataConfig):
    name: Literal["gsm8k"] = "gsm8k"


class MathConfig(DataConfig):
    name: Literal["math"] = "math"


class HumanEvalConfig(ProgramsConfig):
    name: Literal["humaneval"] = "humaneval"


class MbppConfig(SplitsConfig):
    name: Literal["mbpp"] = "mbpp"


class MbppRepairConfig(StoredAttemptsConfig):
    name: Literal["mbpp_repair"] = "mbpp_repair"


class OwnConfig(VerifierConfig):
    name: Literal["own"] = "own"

    @model_validator(mode="after")
    def _runs_programs(self) -> Self:
        way_out = "set task.verifier=code, which runs programs"
        return self.refuse_ignored("task", [(self.verifier != "code", ("accept_risk",), way_out)])


class ReasoningGymConfig(OptionsConfig, RiskConfig):
    name: Literal["reasoning_gym"] = "reasoning_gym"
    dataset: str | None = None
    """Name of a data set of the package reasoning-gym."""


class ImportedTaskConfig(VerifierConfig, StoredAttemptsConfig, SumsConfig, OptionsConfig):
    """A task from ``package.module:make``. It may read the settings of data and programs, and has its own
    ``options``."""


def _task_tag(task: Any) -> str:
    name = task.get("name") if isinstance(task, Mapping) else getattr(task, "name", None)
    return str(name) if name in _TAGS else "imported"


TaskConfig = Annotated[
    Annotated[ArithmeticConfig, Tag("arithmetic")]
    | Annotated[CountdownConfig, Tag("countdown")]
    | Annotated[Gsm8kConfig, Tag("gsm8k")]
    | Annotated[MathConfig, Tag("math")]
    | Annotated[MbppConfig, Tag("mbpp")]
    | Annotated[MbppRepairConfig, Tag("mbpp_repair")]
    | Annotated[HumanEvalConfig, Tag("humaneval")]
    | Annotated[OwnConfig, Tag("own")]
    | Annotated[ReasoningGymConfig, Tag("reasoning_gym")]
    | Annotated[ImportedTaskConfig, Tag("imported")],
    Discriminator(_task_tag),
]
"""Each but the last has a file of its name in ``selfcorrect/tasks``."""
_TAGS = {member.__metadata__[0].tag for member in get_args(get_args(TaskConfig)[0])}
