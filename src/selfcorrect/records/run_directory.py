"""The run directory: config, records, episodes, atomic checkpoints. Nothing existing is ever overwritten.

RUN/
  config.json            the resolved config
  metrics.jsonl          typed records (records.py), the only truth about a run
  episodes.jsonl         sampled training episodes in full text
  evaluations/NAME.jsonl every evaluated episode
  scaling.json           only where `selfcorrect scale` measured the run
  checkpoints/step-N/    engine state and progress; complete or absent
  model/                 the best checkpoint as an ordinary Hugging Face (or PEFT) directory
  .lock                  held by the process that writes; a killed process releases it
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from selfcorrect.config import Config, restore
from selfcorrect.errors import ConfigError, EngineError, RunError, disk_reason
from selfcorrect.records.lines import Record, parse_record

RUNNING_OUT_OF_ROOM = 64 * 2**20
"""A run is refused below this much free disk: the first checkpoint would fail after the expensive part."""


class Progress(BaseModel):
    """Where training stands. Written with every checkpoint, together with the sizes of the record files then."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    step: int = 0
    """Optimiser steps done over the whole run; the data position follows from it."""
    stage: int = 0
    stage_step: int = 0
    best_step: int | None = None
    best_reward: float | None = None
    train_seconds: float = 0.0
    sampled_tokens: int = 0
    sampled_responses: int = 0
    beta2_scale: float = 1.0
    """Factor of beta2 in the next step; moves only with method.beta2_target."""
    metrics_bytes: int = 0
    episodes_bytes: int = 0


class RunDirectory:
    """Files of one run. Use ``create`` or ``open``."""

    def __init__(self, path: Path, config: Config) -> None:
        self.path = path
        self.config = config
        self.metrics_file = path / "metrics.jsonl"
        self.episodes_file = path / "episodes.jsonl"
        self.scaling_file = path / "scaling.json"

    @classmethod
    def create(cls, config: Config) -> RunDirectory:
        """Make a new run directory.

        Raises:
            RunError: it exists already, or cannot be written.
        """
        path = config.resolved_run_dir
        cls.refuse_existing(config)
        ours = False
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.mkdir()
            ours = True
            (path / "checkpoints").mkdir()
            (path / "evaluations").mkdir()
            (path / "config.json").write_text(config.model_dump_json(indent=2) + "\n")
        except OSError as error:
            if ours:
                shutil.rmtree(path, ignore_errors=True)
            raise RunError(
                f"run directory {path} cannot be written: {disk_reason(error)}; choose another place with run_dir=NEW"
            ) from None
        free = shutil.disk_usage(path).free
        if free < RUNNING_OUT_OF_ROOM:
            shutil.rmtree(path)
            raise RunError(
                f"only {free / 2**20:.0f} MiB are free at {path}, too little for a checkpoint; free room or set run_dir"
            )
        return cls(path, config)

    @staticmethod
    def refuse_existing(config: Config) -> None:
        """Refuse to write over anything. Looks at the path only: the first check of a command.

        Raises:
            RunError: something is there already.
        """
        path = config.resolved_run_dir
        if path.exists():
            raise RunError(
                f"run directory {path} exists already and is not overwritten: it may hold results. Continue it with "
                f"`selfcorrect train --resume {path}`, or choose another with run_dir=NEW"
            )

    @classmethod
    def open(cls, path: Path) -> RunDirectory:
        """Open an existing run directory.

        Raises:
            RunError: it is not one.
        """
        try:
            values = json.loads((path / "config.json").read_text())
            if not isinstance(values, dict) or "method" not in values:
                raise ValueError("it is not the config of a run")
        except (OSError, ValueError):
            raise RunError(
                f"{path} is not a run directory (no config.json of a run); give the path that `train` printed"
            ) from None
        try:
            return cls(path, restore(values))
        except ConfigError as error:
            raise RunError(f"{path / 'config.json'} was written by another version or changed: {error}") from None

    def abandon(self) -> None:
        """Remove a new run in which nothing has been recorded, so that a failed start leaves nothing behind."""
        if not self.metrics_file.exists():
            shutil.rmtree(self.path)

    @contextlib.contextmanager
    def writing(self) -> Iterator[None]:
        """Be the only process that writes to this run.

        Raises:
            RunError: another process is.
        """
        with (self.path / ".lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise RunError(
                    f"another process is writing to {self.path}, and two would damage it; stop that one first, or wait for "
                    "it to end"
                ) from None
            yield

    def append(self, record: Record) -> None:
        """Add one record to metrics.jsonl."""
        self._append_line(self.metrics_file, record.model_dump_json())

    def append_episode(self, row: Mapping[str, Any]) -> None:
        self._append_line(self.episodes_file, json.dumps(row, ensure_ascii=True))

    def write_evaluation(self, name: str, rows: Iterator[Mapping[str, Any]]) -> None:
        """Write all episodes of one evaluation, replacing an earlier one of the same name only when complete.

        Raises:
            RunError: the disk refused.
        """
        target = self.path / "evaluations" / f"{name}.jsonl"
        part = target.with_suffix(".part")
        try:
            with part.open("w", encoding="utf-8") as file:
                for row in rows:
                    file.write(json.dumps(row, ensure_ascii=True) + "\n")
            part.replace(target)
        except OSError as error:
            part.unlink(missing_ok=True)
            raise RunError(
                f"{target} could not be written: {disk_reason(error)}. The last checkpoint is whole; free room and continue with "
                f"`selfcorrect train --resume {self.path}`"
            ) from error

    def write_scaling(self, values: Mapping[str, Any]) -> None:
        """Write what ``selfcorrect scale`` measured of this run.

        Raises:
            RunError: the disk refused.
        """
        part = self.scaling_file.with_suffix(".part")
        try:
            part.write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")
            part.replace(self.scaling_file)
        except OSError as error:
            part.unlink(missing_ok=True)
            raise RunError(
                f"{self.scaling_file} could not be written: {disk_reason(error)}; free room and measure again"
            ) from error

    def collected(self, name: str) -> list[dict[str, Any]]:
        """Parts stored so far under a name; a last line cut by a crash is removed from the file.

        Raises:
            RunError: another line is malformed.
        """
        file = self._collected_file(name)
        if not file.exists():
            return []
        text = file.read_text(encoding="utf-8")
        whole = text[: text.rfind("\n") + 1]
        if whole != text:
            os.truncate(file, len(whole.encode()))
        try:
            return [json.loads(line) for line in whole.splitlines()]
        except ValueError:
            raise RunError(
                f"{file} was changed: it holds a line that is not JSON; delete it to sample it anew"
            ) from None

    def append_collected(self, name: str, part: Mapping[str, Any]) -> None:
        """Store the next part under a name."""
        file = self._collected_file(name)
        file.parent.mkdir(exist_ok=True)
        self._append_line(file, json.dumps(part, ensure_ascii=True))

    def _collected_file(self, name: str) -> Path:
        return self.path / "collected" / f"{name}.jsonl"

    def records(self) -> list[Record]:
        """All records so far.

        Raises:
            RunError: a line that is not a record, unless it is a last line cut by a crash.
        """
        if not self.metrics_file.exists():
            return []
        lines = self.metrics_file.read_text(encoding="utf-8", errors="surrogateescape").removesuffix("\n").split("\n")
        out: list[Record] = []
        for number, line in enumerate(lines, 1):
            try:
                out.append(parse_record(line))
            except ValueError:
                if number == len(lines):
                    break
                raise RunError(
                    f"{self.metrics_file}, line {number} is not a record of this version; the file was changed"
                ) from None
        return out

    def latest_checkpoint(self) -> Path | None:
        complete = sorted((self.path / "checkpoints").glob("step-*"))
        return complete[-1] if complete else None

    def checkpoint(self, step: int) -> Path:
        return self.path / "checkpoints" / f"step-{step:07d}"

    def read_progress(self, checkpoint: Path) -> Progress:
        """Where training stood at a checkpoint.

        Raises:
            RunError: its progress cannot be read.
        """
        try:
            return Progress.model_validate_json((checkpoint / "progress.json").read_text())
        except (OSError, ValueError) as error:
            raise RunError(
                f"checkpoint {checkpoint} is damaged or of another version ({type(error).__name__} in progress.json); delete "
                "it to continue from the one before"
            ) from None

    @contextlib.contextmanager
    def writing_checkpoint(self, progress: Progress) -> Iterator[Path]:
        """A directory to fill; it becomes a checkpoint only when the block ends well, in one rename.

        Raises:
            RunError: the disk refused; earlier checkpoints are untouched.
        """
        final = self.checkpoint(progress.step)
        part = final.parent / f".part-{uuid.uuid4().hex}"
        try:
            part.mkdir()
            yield part
            (part / "progress.json").write_text(progress.model_dump_json())
            for file in part.iterdir():
                _sync(file)
            if final.exists():
                shutil.rmtree(final)
            part.rename(final)
            _sync(final.parent)
        except (OSError, EngineError) as error:
            if isinstance(error, EngineError) and not error.usable:
                raise  # a lost server, not a disk: the run goes on from an earlier checkpoint
            raise RunError(
                f"checkpoint {final} could not be written: {disk_reason(error)}. Earlier checkpoints are whole; free room and "
                f"continue with `selfcorrect train --resume {self.path}`"
            ) from error
        finally:
            shutil.rmtree(part, ignore_errors=True)

    def sizes(self) -> dict[str, int]:
        """Bytes in the record files, to cut them back to on resume."""
        size = {name: (file.stat().st_size if file.exists() else 0) for name, file in self._files().items()}
        return {"metrics_bytes": size["metrics"], "episodes_bytes": size["episodes"]}

    def rewind(self, progress: Progress) -> None:
        """Forget what was recorded after a checkpoint, and what a killed process left half-written."""
        for name, size in (("metrics", progress.metrics_bytes), ("episodes", progress.episodes_bytes)):
            file = self._files()[name]
            if file.exists() and file.stat().st_size > size:
                os.truncate(file, size)
        for part in (self.path / "checkpoints").glob(".part-*"):
            shutil.rmtree(part)
        for later in (self.path / "checkpoints").glob("step-*"):
            if later > self.checkpoint(progress.step):
                shutil.rmtree(later)

    def prune(self, keep: int, best: int | None) -> None:
        """Delete all but the newest ``keep`` checkpoints and the best one."""
        complete = sorted((self.path / "checkpoints").glob("step-*"))
        for old in complete[:-keep]:
            if best is None or old != self.checkpoint(best):
                shutil.rmtree(old)

    def _files(self) -> dict[str, Path]:
        return {"metrics": self.metrics_file, "episodes": self.episodes_file}

    @staticmethod
    def _append_line(file: Path, line: str) -> None:
        try:
            with file.open("a", encoding="utf-8") as stream:
                stream.write(line + "\n")
        except OSError as error:
            raise RunError(
                f"{file} could not be written: {error.strerror}. The last checkpoint is whole; free room and resume the run"
            ) from error


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
