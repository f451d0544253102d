"""What a tracker is, and which numbers it gets."""

from __future__ import annotations

import contextlib
import importlib
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Protocol, cast, get_args

from selfcorrect.config import TrackerName
from selfcorrect.errors import ConfigError
from selfcorrect.measuring.metrics import EvalSummary
from selfcorrect.records.lines import EvalRecord, StepRecord

NAMES: tuple[TrackerName, ...] = get_args(TrackerName)
MEMBERS = ("name", "start", "log", "finish")
"""What every tracker has; see ``Tracker``."""
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
    """Receives the numbers of each record once, by ``log``. Any method may raise: at the start an exception stops the
    command, later it only drops the tracker."""

    name: str
    """The name of its file."""

    def start(self, run: Tracked) -> None:
        """Begin the run, or continue the one with the same id."""
        ...

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Numbers at an optimiser step. One step can have several calls, with different names.

        Steps never go down, except for the kept checkpoint's at the end.
        """
        ...

    def finish(self) -> None: ...


def make_trackers(names: Sequence[TrackerName]) -> list[Tracker]:
    """The trackers of these names, each once, not started yet. Imports their packages.

    Raises:
        ConfigError: one is not installed, cannot be imported, or is no tracker.
    """
    return [_made(name) for name in dict.fromkeys(names)]


def package_of(name: TrackerName) -> str | None:
    """The package that a tracker needs, as the extra of its name says; None without such an extra."""
    with contextlib.suppress(metadata.PackageNotFoundError):
        for requirement in metadata.requires("selfcorrect") or ():
            if re.search(rf"""extra == ["']{name}["']""", requirement):
                return re.split(r"[^\w.-]", requirement, maxsplit=1)[0]
    return None


def _made(name: TrackerName) -> Tracker:
    file, module_name = f"selfcorrect/trackers/{name}.py", f"selfcorrect.trackers.{name}"
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise ConfigError(_not_imported(name, file, error)) from None
    make = getattr(module, "make", None)
    if not callable(make):
        raise ConfigError(f"{file} has no class or function `make`, which makes the tracker; write `make = ` its class")
    tracker = make()
    if missing := [member for member in MEMBERS if not hasattr(tracker, member)]:
        raise ConfigError(
            f"{file} made a {type(tracker).__name__} without {', '.join(missing)}; a tracker needs what "
            "selfcorrect.trackers.base.Tracker lists"
        )
    if tracker.name != name:
        raise ConfigError(
            f"the tracker in {file} has the name {tracker.name!r}; write name = {name!r}, the name of its file"
        )
    return cast(Tracker, tracker)


def _not_imported(name: TrackerName, file: str, error: ImportError) -> str:
    module = error.name or ""
    if module == f"selfcorrect.trackers.{name}":
        return f"trackers={name} is named in config/sections.py, but there is no {file}; write that file"
    if module.partition(".")[0] == "selfcorrect":
        return f"{file} imports what this package does not have ({error}); correct that import"
    package = package_of(name)
    install = f"it with `pip install 'selfcorrect[{name}]'`" if package else f"the package that has the module {module}"
    return (
        f"trackers={name} needs the package {package or module}, which cannot be imported here ({error}); install {install}, or "
        "leave the tracker out (trackers=none): all numbers are in the run's records anyway"
    )


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
