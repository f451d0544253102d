"""What the user asks for, and the config of every run that follows from it. Everything is checked before anything runs."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from selfcorrect.algorithm.stages import Stage, plan
from selfcorrect.config import Config, load_config, preset_name
from selfcorrect.errors import ConfigError
from selfcorrect.reproduce.rows import CORE, ROWS, TARGETS, TableRow

EMBEDDED = "tiny"
QUICK = ("train.steps=20", "train.problems_per_step=8", "eval.problems=200")
"""A look: enough for every method to take its steps, far too little for any of them to learn."""
WITHOUT_CONTROLS = "eval.controls=false"
"""Controls double the time of measuring and no table shows them; a trailing setting switches them on."""
NOT_FOR_ALL = ("seed", "run_dir", *(f"{s}{name}" for s in ("method", "model", "task") for name in ("", ".name")))


@dataclass(frozen=True)
class Choice:
    """The options of one call."""

    out: Path
    seeds: tuple[int, ...]
    own_seeds: int | None = None
    """How many of the seeds rows get that the paper does not have; None: all."""
    model: str = EMBEDDED
    task: str | None = None
    """None: arithmetic; mbpp for table3."""
    quick: bool = False
    budget: int | None = None
    """Optimiser steps of every run; None takes the preset's."""
    settings: tuple[str, ...] = ()
    """``key=value`` for all runs."""
    humaneval: str | None = None
    """table3: where HumanEval's rows are; None takes the Hub's."""

    def __post_init__(self) -> None:
        for setting in self.settings:
            key = setting.partition("=")[0].strip()
            if key in NOT_FOR_ALL or key.startswith("sft."):
                raise ConfigError(
                    f"setting {setting!r} cannot be given for all runs: rows differ in method and seed, no run reads the "
                    "warm-up's settings, and model, task and place are options; use --model, --task, --seeds, --out, or drop it"
                )

    def overrides(self, row: TableRow, seed: int, task: str) -> list[str]:
        """The settings of one run, without its directory."""
        return [
            f"model.name={json.dumps(self.model)}",
            f"task.name={json.dumps(task)}",
            WITHOUT_CONTROLS,
            *(QUICK if self.quick else ()),
            *self.budget_setting,
            *self.settings,
            *row.settings,
            f"seed={seed}",
        ]

    @property
    def budget_setting(self) -> tuple[str, ...]:
        return () if self.budget is None else (f"train.steps={self.budget}",)

    def config(self, row: TableRow, seed: int, task: str) -> Config:
        """The resolved config of one run.

        Raises:
            ConfigError: a setting is wrong, would be ignored by this row, or makes the tables' evaluations random.
        """
        try:
            config = load_config(None, self.overrides(row, seed, task))
            if row.kind == "trained":
                plan(config)
        except ConfigError as error:
            raise ConfigError(f"the row {row.label!r} cannot be run with these settings: {error}") from None
        if config.eval.temperature > 0:
            raise ConfigError(
                "eval.temperature above 0 is refused here: the tables are greedy, as the paper's are, and their base is one "
                "measurement for all seeds; drop the setting"
            )
        if config.eval.attempts < 2 or config.play.attempts < 2:
            raise ConfigError("the tables measure a second attempt: set play.attempts and eval.attempts to 2 or more")
        return config

    def seeds_of(self, row: TableRow) -> tuple[int, ...]:
        return self.seeds[: self.own_seeds] if row.ours else self.seeds

    def task_of(self, target: str) -> str:
        return self.task or ("mbpp" if target == "table3" else "arithmetic")

    def name_of(self, row: TableRow, seed: int, task: str) -> str:
        """``<row>-s<seed>-<hash of the resolved config>``: what makes a finished run usable again."""
        return f"{row.key}-s{seed}-{config_hash(self.config(row, seed, task))}"

    @property
    def runs_dir(self) -> Path:
        return self.out / "runs"


def config_hash(config: Config) -> str:
    """Ten hex digits of all settings but the run's directory and the warm-up's, which no run reads."""
    text = json.dumps(config.model_dump(mode="json", exclude={"run_dir", "sft", "trackers"}), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:10]


def targets_of(name: str) -> tuple[str, ...]:
    """The targets that a name stands for.

    Raises:
        ConfigError: there is no such target.
    """
    if name == "all":
        return tuple(t for t in TARGETS if t != "table3")
    if name in TARGETS:
        return (name,)
    raise ConfigError(f"{name!r} cannot be reproduced here; take one of: {', '.join([*TARGETS, 'all'])}")


def rows_in_order(targets: Sequence[str]) -> list[TableRow]:
    """Rows of some targets, each once, in the order of running: the core first."""
    wanted = {key for target in targets for key in TARGETS[target].rows}
    return sorted((ROWS[key] for key in wanted), key=lambda row: (row.key not in CORE, list(ROWS).index(row.key)))


@dataclass(frozen=True, slots=True)
class Cost:
    """What a run will sample and train, from its settings."""

    steps: int
    responses: int
    most_tokens: int


def planned_cost(config: Config) -> Cost:
    """Optimiser steps, sampled responses and the most tokens of one training run, evaluations left out.

    Offline first attempts are counted as if each were sampled when it is needed: an upper bound.
    """
    stages = plan(config)
    responses = sum(s.steps * config.train.problems_per_step * s.samples_per_problem * _answers(s) for s in stages)
    return Cost(sum(s.steps for s in stages), responses, responses * config.play.max_new_tokens)


def _answers(stage: Stage) -> int:
    return stage.attempts if stage.branches == 1 else 1 + stage.branches


def refuse_without_code_model(choice: Choice) -> None:
    """Table 3 with an embedded model would show nothing; say what it takes instead.

    Raises:
        ConfigError: the model is an embedded one.
    """
    if preset_name(choice.model) == "language_model":
        return
    asked = replace(choice, model="CODE-MODEL")
    trained = [ROWS[key] for key in TARGETS["table3"].rows if ROWS[key].kind == "trained"]
    configs = [asked.config(row, seed, asked.task_of("table3")) for row in trained for seed in choice.seeds]
    costs = [planned_cost(config) for config in configs]
    measured = sum(1 for _ in TARGETS["table3"].rows[:2]) + len(configs)
    limit = configs[0].eval.problems
    raise ConfigError(
        f"table3 needs a model that writes programs, and {choice.model} does not; name one with --model (a Hugging Face id or "
        f"directory). It would cost {len(costs)} runs ({len(trained)} rows x {len(choice.seeds)} seeds) with "
        f"{sum(c.responses for c in costs):,} sampled responses, at most {sum(c.most_tokens for c in costs):,} tokens, and "
        f"{sum(c.steps for c in costs):,} gradient steps, then {measured} measurements on HumanEval and on MBPP-R of at most "
        f"{'all' if limit is None else limit} problems each, with these settings of a language model; --budget, --seeds and "
        "trailing settings change it"
    )
