"""What a report needs from a run directory, whatever state the run is in. Texts stay on disk until they are asked for."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Iterator, Sequence
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
"""Evaluations whose episodes are read; of the controls the summary is enough."""
TRAINING_TAIL_BYTES = 16 * 2**20
"""Of episodes.jsonl only the end is read: the latest training episodes."""


@dataclass(frozen=True, slots=True)
class Line:
    """Where an episode is, and what it is, without its texts."""

    file: Path
    offset: int
    problem: str
    sample: int
    tags: tuple[str, ...]
    step: int | None


@dataclass(frozen=True, slots=True)
class Episodes:
    """One file of episodes: an index of its lines, and every episode without its texts."""

    lines: tuple[Line, ...]
    bare: tuple[Episode, ...]
    """Ids, levels and verdicts; texts are empty. Empty for training episodes."""
    is_whole: bool = True
    """False where only the end of the file was read."""

    @property
    def tag_counts(self) -> Counter[str]:
        return Counter(tag for line in self.lines for tag in line.tags)


@dataclass(frozen=True, slots=True)
class RunData:
    """One run, as far as it has come."""

    name: str
    config: Config
    age_s: float | None
    """Seconds since the last record; None without records."""
    starts: tuple[StartRecord, ...] = ()
    steps: tuple[StepRecord, ...] = ()
    alarms: tuple[AlarmRecord, ...] = ()
    checkpoints: tuple[CheckpointRecord, ...] = ()
    evals: dict[str, EvalRecord] = field(default_factory=dict)
    summaries: dict[str, EvalSummary] = field(default_factory=dict)
    end: EndRecord | None = None
    held_out: dict[str, Episodes] = field(default_factory=dict)
    """By name: base, final; those that are there."""
    training: Episodes = Episodes((), ())
    scaling: ScalingCurves | None = None
    """None where `selfcorrect scale` has not measured the run."""

    @property
    def state(self) -> Literal["begun", "unfinished", "interrupted", "finished"]:
        if self.end is not None:
            return self.end.reason
        return "unfinished" if self.steps or self.evals else "begun"

    @property
    def kept_step(self) -> int | None:
        """Step of the checkpoint that is the best so far; None while there is none."""
        return next((c.step for c in reversed(self.checkpoints) if c.best), None)


def read_run(path: Path) -> RunData:
    """Read a run that has finished, is going on, or has only begun.

    Raises:
        RunError: not a run directory, or a damaged one (a last line cut by a crash is passed over).
        DataError: an evaluation is damaged.
    """
    run = RunDirectory.open(path)
    records = run.records()
    evals = {r.name: r for r in records if isinstance(r, EvalRecord)}
    files = {name: path / "evaluations" / f"{name}.jsonl" for name in MAIN}
    return RunData(
        name=path.resolve().name,
        config=run.config,
        age_s=time.time() - run.metrics_file.stat().st_mtime if run.metrics_file.exists() else None,
        starts=tuple(r for r in records if isinstance(r, StartRecord)),
        steps=tuple(r for r in records if isinstance(r, StepRecord)),
        alarms=tuple(r for r in records if isinstance(r, AlarmRecord)),
        checkpoints=tuple(r for r in records if isinstance(r, CheckpointRecord)),
        evals=evals,
        summaries={name: EvalSummary.from_json(r.summary) for name, r in evals.items()},
        end=records[-1] if records and isinstance(records[-1], EndRecord) else None,
        held_out={name: _index(file, bare=True) for name, file in files.items() if file.exists() and name in evals},
        training=_index(run.episodes_file, bare=False) if run.episodes_file.exists() else Episodes((), ()),
        scaling=_scaling(run.scaling_file) if run.scaling_file.exists() else None,
    )


def _scaling(file: Path) -> ScalingCurves:
    try:
        return ScalingCurves.from_json(json.loads(file.read_text(encoding="utf-8")))
    except (ValueError, DataError) as error:
        raise DataError(
            f"{file} cannot be read: {error}; remove it and measure again with `selfcorrect scale`"
        ) from None


def read_rows(lines: Sequence[Line]) -> list[dict[str, Any]]:
    """The whole rows of some lines, in their order."""
    rows: dict[Line, dict[str, Any]] = {}
    for file in {line.file for line in lines}:
        with file.open("rb") as stream:
            for line in lines:
                if line.file == file:
                    stream.seek(line.offset)
                    rows[line] = json.loads(stream.readline())
    return [rows[line] for line in lines]


def _index(file: Path, *, bare: bool) -> Episodes:
    """Read a file of episodes line by line.

    Raises:
        DataError: a line is not an episode, unless it is a last one without its line end: it is still being written.
    """
    lines, episodes = [], []
    skipped = 0 if bare else max(0, file.stat().st_size - TRAINING_TAIL_BYTES)
    for offset, raw in _raw_lines(file, skipped):
        try:
            row = json.loads(raw)
            episode = episode_from_row(row)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            if not raw.endswith(b"\n"):
                break
            raise DataError(
                f"{file} has a line that is not an episode ({error}); the file was changed, or written by another version"
            ) from None
        lines.append(Line(file, offset, episode.problem.id, episode.sample, tags_of(episode), row.get("step")))
        if bare:
            episodes.append(_without_texts(episode))
    return Episodes(tuple(lines), tuple(episodes), is_whole=not skipped)


def _raw_lines(file: Path, start: int) -> Iterator[tuple[int, bytes]]:
    with file.open("rb") as stream:
        stream.seek(start)
        if start:
            stream.readline()  # the rest of a line that began before
        offset = stream.tell()
        for raw in stream:
            yield offset, raw
            offset += len(raw)


def _without_texts(episode: Episode) -> Episode:
    """What the tables by level and the flows need; texts would fill the memory."""
    attempts = tuple(
        Attempt("", None, None, None, a.stop, grade=a.grade and Grade(a.grade.verdict), source=a.source)
        for a in episode.attempts
    )
    problem = Problem(episode.problem.id, "", "", episode.problem.level)
    return Episode(problem, episode.sample, attempts)
