"""The options of a call, and the config of every run. Everything is checked before anything runs."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from selfcorrect.algorithm.stages import plan
from selfcorrect.config import Config, load_config, preset_name
from selfcorrect.errors import ConfigError
from selfcorrect.reproduce.rows import CORE, ONLY_BY_NAME, ROWS, TARGETS, TableRow

EMBEDDED = "tiny"
QUICK = ("train.steps=20", "train.problems_per_step=8", "eval.problems=200")
"""Settings for a quick look: so few steps that no method learns anything."""
WITHOUT_CONTROLS = "eval.controls=false"
"""Controls are off: they double the time of an evaluation, and no table shows them. ``eval.controls=true`` switches
them on."""
NOT_FOR_ALL = ("seed", "run_dir", *(f"{s}{name}" for s in ("method", "model", "task") for name in ("", ".name")))


@dataclass(frozen=True)
class Choice:
    """What a call of ``reproduce`` asks for, apart from the target."""

    out: Path
    seeds: tuple[int, ...]
    own_seeds: int | None = None
    """Number of seeds for rows that the paper does not have; None: all."""
    model: str = EMBEDDED
    task: str = "arithmetic"
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
                    "warm-up's settings, and model, task and directory are options; use --model, --task, --seeds, --out, or "
                    "drop it"
                )

    def overrides(self, row: TableRow, seed: int) -> list[str]:
        """The settings of one run, without its directory."""
        return [
            f"model.name={json.dumps(self.model)}",
            f"task.name={json.dumps(self.task)}",
            WITHOUT_CONTROLS,
            *self.common,
            *row.settings,
            f"seed={seed}",
        ]

    @property
    def common(self) -> tuple[str, ...]:
        """The settings of all runs: those that follow from --quick and --budget, and those given."""
        quick = QUICK if self.quick else ()
        budget = () if self.budget is None else (f"train.steps={self.budget}",)
        return (*quick, *budget, *self.settings)

    def config(self, row: TableRow, seed: int) -> Config:
        """The resolved config of one run.

        Raises:
            ConfigError: a setting is wrong, would be ignored by this row, or makes the tables' evaluations random.
        """
        try:
            config = load_config(None, self.overrides(row, seed))
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

    def run_path(self, row: TableRow, seed: int) -> Path:
        """``runs/<row>-s<seed>-<hash of the resolved config>``, so that a finished run is found again."""
        return self.out / "runs" / f"{row.key}-s{seed}-{config_hash(self.config(row, seed))}"


def config_hash(config: Config) -> str:
    """Hash of all settings except the run's directory and those of the warm-up, which no run reads; ten hex digits."""
    text = json.dumps(config.model_dump(mode="json", exclude={"run_dir", "sft", "trackers"}), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:10]


def targets_of(name: str) -> tuple[str, ...]:
    """The targets that a name stands for.

    Raises:
        ConfigError: there is no such target.
    """
    if name == "all":
        return tuple(t for t in TARGETS if t not in ONLY_BY_NAME)
    if name in TARGETS:
        return (name,)
    raise ConfigError(f"{name!r} cannot be reproduced here; take one of: {', '.join([*TARGETS, 'all'])}")


def rows_in_order(targets: Sequence[str]) -> list[TableRow]:
    """The rows of some targets, each once, in the order in which they run: the core first."""
    wanted = {key for target in targets for key in TARGETS[target].rows}
    return sorted((ROWS[key] for key in wanted), key=lambda row: (row.key not in CORE, list(ROWS).index(row.key)))


@dataclass(frozen=True, slots=True)
class Cost:
    """What a run will sample and train, by its settings."""

    steps: int
    responses: int
    most_tokens: int


def planned_cost(config: Config) -> Cost:
    """Optimiser steps, sampled responses and the most tokens of one training run, evaluations left out.

    Offline first attempts are counted as if every use sampled a new one. This is an upper bound.
    """
    stages, problems = plan(config), config.train.problems_per_step
    responses = problems * sum(s.responses for s in stages)
    return Cost(sum(s.steps for s in stages), responses, responses * config.play.max_new_tokens)


def refuse_without_code_model(choice: Choice) -> None:
    """Refuse table 3 for an embedded model, which writes no programs, and say what it would cost with another model.

    Raises:
        ConfigError: the model is an embedded one.
    """
    if preset_name(choice.model) == "language_model":
        return
    other = replace(choice, model="CODE-MODEL")
    trained = [ROWS[key] for key in TARGETS["table3"].rows if ROWS[key].kind == "trained"]
    configs = [other.config(row, seed) for row in trained for seed in choice.seeds]
    costs = [planned_cost(config) for config in configs]
    measured = len(TARGETS["table3"].rows) - len(trained) + len(configs)
    limit = configs[0].eval.problems
    raise ConfigError(
        f"table3 needs a model that writes programs, and {choice.model} does not; name one with --model (a Hugging Face id or "
        f"directory). It would cost {len(costs)} runs ({len(trained)} rows x {len(choice.seeds)} seeds) with "
        f"{sum(c.responses for c in costs):,} sampled responses, at most {sum(c.most_tokens for c in costs):,} tokens, and "
        f"{sum(c.steps for c in costs):,} gradient steps, then {measured} measurements on HumanEval and on MBPP-R of at most "
        f"{'all' if limit is None else limit} problems each, with these settings of a language model; --budget, --seeds and "
        "trailing settings change it"
    )
