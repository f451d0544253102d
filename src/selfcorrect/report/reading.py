"""Reads what a report needs from a run directory in any state. Texts stay on disk until they are shown."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from selfcorrect.config import Config
from selfcorrect.errors import DataError
from selfcorrect.measuring.metrics import EvalSummary
from selfcorrect.measuring.test_time import ScalingCurves
from selfcorrect.records.lines import (
    AlarmRecord,
    CheckpointRecord,
    EndRecord,
    EvalRecord,
    StartRecord,
    StepRecord,
    episode_from_row,
)
from selfcorrect.records.run_directory import RunDirectory
from selfcorrect.report.tags import tags_of
from selfcorrect.types import Attempt, Episode, Grade, Problem

MAIN = ("base", "final")
"""Evaluations whose episodes are read. The controls need their summaries only."""
TRAINING_TAIL_BYTES = 16 * 2**20
"""Bytes read from the end of episodes.jsonl, for the latest training episodes."""


@dataclass(frozen=True, slots=True)
class Location:
    """Where an episode is in its file, and its tags, without its texts."""

    file: Path
    offset: int
    problem: str
    sample: int
    tags: tuple[str, ...]
    step: int | None


@dataclass(frozen=True, slots=True)
class Episodes:
    """One file of episodes: an index of its lines, and each episode without its texts."""

    lines: tuple[Location, ...]
    bare: tuple[Episode, ...]
    """Ids, levels and verdicts, with empty texts. Empty for training episodes."""
    is_whole: bool = True
    """False if only the end of the file was read."""


@dataclass(frozen=True, slots=True)
class RunData:
    """The records of one run so far."""

    name: str
    config: Config
    age_s: float | None
    """Seconds since the last record; None if there is no record."""
    starts: tuple[StartRecord, ...] = ()
    steps: tuple[StepRecord, ...] = ()
    alarms: tuple[AlarmRecord, ...] = ()
    kept_step: int | None = None
    """Step of the best checkpoint so far."""
    evals: dict[str, EvalRecord] = field(default_factory=dict)
    summaries: dict[str, EvalSummary] = field(default_factory=dict)
    end: EndRecord | None = None
    held_out: dict[str, Episodes] = field(default_factory=dict)
    """Episodes of the evaluations base and final, if they exist."""
    training: Episodes = Episodes((), ())
    scaling: ScalingCurves | None = None
    """None if `selfcorrect scale` has not measured the run."""

    @property
    def base(self) -> str | None:
        """What the model's name stood for when the run began; None if that is not recorded."""
        return self.starts[0].base if self.starts else None

    @property
    def state(self) -> Literal["begun", "unfinished", "interrupted", "finished"]:
        if self.end is not None:
            return self.end.reason
        return "unfinished" if self.steps or self.evals else "begun"


def read_run(path: Path) -> RunData:
    """Read a run, finished or not.

    Raises:
        RunError: this is not a run directory, or it is damaged. (A last line that a crash cut short is skipped.)
        DataError: an evaluation is damaged.
    """
    run = RunDirectory.open(path)
    records = run.records()
    scaling = None
    if run.scaling_file.exists():
        try:
            scaling = ScalingCurves.from_json(json.loads(run.scaling_file.read_text(encoding="utf-8")))
        except (ValueError, DataError) as error:
            raise DataError(
                f"{run.scaling_file} cannot be read: {error}; remove it and measure again with `selfcorrect scale`"
            ) from None
    evals = {r.name: r for r in records if isinstance(r, EvalRecord)}
    files = {name: path / "evaluations" / f"{name}.jsonl" for name in MAIN}
    return RunData(
        name=path.resolve().name,
        config=run.config,
        age_s=time.time() - run.metrics_file.stat().st_mtime if run.metrics_file.exists() else None,
        starts=tuple(r for r in records if isinstance(r, StartRecord)),
        steps=tuple(r for r in records if isinstance(r, StepRecord)),
        alarms=tuple(r for r in records if isinstance(r, AlarmRecord)),
        kept_step=next((r.step for r in reversed(records) if isinstance(r, CheckpointRecord) and r.best), None),
        evals=evals,
        summaries={name: EvalSummary.from_json(r.summary) for name, r in evals.items()},
        end=records[-1] if records and isinstance(records[-1], EndRecord) else None,
        held_out={name: _index(file, bare=True) for name, file in files.items() if file.exists() and name in evals},
        training=_index(run.episodes_file, bare=False) if run.episodes_file.exists() else Episodes((), ()),
        scaling=scaling,
    )


def read_rows(lines: Sequence[Location]) -> list[dict[str, Any]]:
    """The complete rows of some lines, in the given order."""
    rows = []
    for line in lines:
        with line.file.open("rb") as stream:
            stream.seek(line.offset)
            rows.append(json.loads(stream.readline()))
    return rows


def _index(file: Path, *, bare: bool) -> Episodes:
    """Read a file of episodes line by line. With ``bare``, read all of it and keep the episodes too, without texts.

    Raises:
        DataError: a line is not an episode. (A last line without its line end is still being written, and is skipped.)
    """
    lines, episodes = [], []
    offset = 0 if bare else max(0, file.stat().st_size - TRAINING_TAIL_BYTES)
    is_whole = offset == 0
    with file.open("rb") as stream:
        if not is_whole:
            stream.seek(offset)
            offset += len(stream.readline())  # the rest of a line that began before
        for raw in stream:
            try:
                row = json.loads(raw)
                episode = episode_from_row(row)
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                if not raw.endswith(b"\n"):
                    break
                raise DataError(
                    f"{file} has a line that is not an episode ({error}); the file was changed, or another version wrote it; "
                    "restore it, or measure again"
                ) from None
            lines.append(Location(file, offset, episode.problem.id, episode.sample, tags_of(episode), row.get("step")))
            offset += len(raw)
            if bare:  # what the flows and the tables by level need; all texts would fill the memory
                attempts = tuple(
                    Attempt("", None, None, None, a.stop, a.grade and Grade(a.grade.verdict), a.source, turn=a.turn)
                    for a in episode.attempts
                )
                problem = Problem(episode.problem.id, "", "", episode.problem.level)
                episodes.append(Episode(problem, episode.sample, attempts))
    return Episodes(tuple(lines), tuple(episodes), is_whole)
