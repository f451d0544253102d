"""What a tracker is, and which numbers it gets."""

from __future__ import annotations

import importlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, cast, get_args

from selfcorrect.config import TrackerName
from selfcorrect.errors import ConfigError
from selfcorrect.measuring.metrics import EvalSummary
from selfcorrect.records.lines import EvalRecord, StepRecord

NAMES: tuple[TrackerName, ...] = get_args(TrackerName)
NOT_NUMBERS = ("kind", "step", "stage")
"""Fields of a step record that are not sent: the first two are no measurements, and the stage is a name."""


@dataclass(frozen=True, slots=True)
class Tracked:
    """The run that a tracker receives."""

    id: str
    """The same in every process of a run."""
    name: str
    directory: Path
    """Directory of the run. Trackers write their files below it."""
    config: Mapping[str, Any]


class Tracker(Protocol):
    """Receives numbers. Any method may raise: at the start an exception stops the command, later it only drops the
    tracker."""

    name: str

    def start(self, run: Tracked) -> None:
        """Begin the run, or continue the one with the same id."""
        ...

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Numbers at an optimiser step. Steps never go down, except for the kept checkpoint's at the end."""
        ...

    def finish(self) -> None: ...


def make_trackers(names: Sequence[TrackerName]) -> list[Tracker]:
    """The trackers of these names, each once, not started yet. Imports their packages.

    Raises:
        ConfigError: one is not installed, or cannot be imported.
    """
    trackers = []
    for name in dict.fromkeys(names):
        try:
            module = importlib.import_module(f"selfcorrect.trackers.{name}")
        except ImportError as error:
            raise ConfigError(
                f"trackers={name} needs the package {name}, which cannot be imported here ({error}); install it with `pip install "
                f"'selfcorrect[{name}]'`, or leave the tracker out (trackers=none): all numbers are in the run's records anyway"
            ) from None
        trackers.append(cast(Tracker, module.make()))
    return trackers


def step_metrics(record: StepRecord) -> dict[str, float]:
    """Numbers of a step as ``train/FIELD``, with ``/t1``, ``/t2``, ... for values per attempt, ``/PHASE`` for seconds and
    ``/NUMBER`` for verdicts. What was not measured is left out."""
    numbers: dict[str, float | None] = {}
    for field, value in record.model_dump(exclude=set(NOT_NUMBERS)).items():
        if isinstance(value, Mapping):
            numbers |= {f"{field}/{key}": v for key, v in value.items()}
        elif isinstance(value, list):
            numbers |= {f"{field}/t{k}": v for k, v in enumerate(value, 1)}
        elif value is not None:
            numbers[field] = value
    return {f"train/{name}": float(v) for name, v in numbers.items() if v is not None and math.isfinite(v)}


def evaluation_metrics(record: EvalRecord) -> dict[str, float]:
    """Numbers of an evaluation as ``eval/NAME/METRIC``, shares in [0, 1], each with its interval as ``METRIC_low`` and
    ``METRIC_high``."""
    summary = EvalSummary.from_json(record.summary)
    estimates = {f"t{k}": a.accuracy for k, a in enumerate(summary.attempts, 1)}
    if summary.revisions:
        last = summary.revisions[-1]
        estimates |= {key: getattr(last, key) for key in ("delta", "i_to_c", "c_to_i", "answer_changed", "copied")}
    if (v := summary.verdicts) is not None:
        shares = {"accuracy": v.accuracy, "balanced": v.balanced, "says_wrong": v.says_wrong}
        estimates |= {f"verdict_{key}": e for key, e in shares.items()} | {"tokens_saved": v.tokens_saved}
    values: dict[str, float] = {"problems": summary.n_problems, "seconds": record.seconds}
    for key, e in estimates.items():
        values |= {key: e.value, f"{key}_low": e.low, f"{key}_high": e.high}
    return {f"eval/{record.name}/{key}": float(v) for key, v in values.items() if math.isfinite(v)}
