"""One measurement of the base for all runs that would measure the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from selfcorrect.config import Config
from selfcorrect.errors import SelfCorrectError
from selfcorrect.measuring.evaluate import Evaluation
from selfcorrect.measuring.metrics import EvalSummary
from selfcorrect.records.lines import EvalRecord, StartRecord, read_episodes
from selfcorrect.records.run_directory import RunDirectory

SAME_SECTIONS = ("model", "task", "play", "eval", "engine")
BETWEEN = ("feedback", "verdict", "stop")
"""Fields of a measurement's settings that say what is played between two attempts."""


def can_be_shared(config: Config) -> bool:
    """Whether the base's measurement is the same for every seed: greedy, and without controls, which draw answers."""
    return config.eval.temperature == 0 and not config.eval.controls


def _measured_settings(config: Config) -> dict[str, Any]:
    return config.model_dump(mode="json", include=set(SAME_SECTIONS))


def _made_with(start: StartRecord) -> dict[str, Any]:
    return start.model_dump(mode="json", include={"base", "versions", "engine"})


def measured_alike(
    directory: Path, config: Config, start: StartRecord, between: dict[str, Any]
) -> tuple[Evaluation, EvalRecord, list[dict[str, Any]]] | None:
    """The base's measurement from the first run of a directory that measured what this run would measure.

    Args:
        directory: holds run directories. What else lies there is passed over.
        config: of this run.
        start: this run's first record. The other must name the same base, versions and engine.
        between: what this run plays between two attempts, as in the settings of a measurement.

    Returns:
        The evaluation, whose episodes have no token ids, its record, and its rows as they were written; None if no run
        fits.
    """
    if not can_be_shared(config) or start.base is None:
        return None
    for path in sorted(p for p in directory.glob("*") if p.is_dir()):
        try:
            other = RunDirectory.open(path)
            records = other.records()
            if _measured_settings(other.config) != _measured_settings(config):
                continue
            began = next((r for r in records if isinstance(r, StartRecord)), None)
            found = next((r for r in records if isinstance(r, EvalRecord) and r.name == "base"), None)
            if began is None or found is None or {k: v for k, v in found.settings.items() if k in BETWEEN} != between:
                continue
            if _made_with(began) != _made_with(start):
                continue
            file = path / "evaluations" / "base.jsonl"
            rows = list(read_episodes(file, "measure again"))
            summary = EvalSummary.from_json(found.summary)
        except SelfCorrectError:  # not a run, or damaged: it is only an offer
            continue
        origin = found.reused_from or path.name
        record = found.model_copy(update={"reused_from": origin})
        evaluation = Evaluation("base", [e for _, e in rows], summary, found.settings, found.seconds)
        return evaluation, record, [row for row, _ in rows]
    return None
