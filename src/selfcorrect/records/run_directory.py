"""The run directory: config, records, episodes, atomic checkpoints. Nothing existing is ever overwritten.

RUN/
  config.json            the resolved config
  metrics.jsonl          typed records (lines.py), the single source of truth
  episodes.jsonl         sampled training episodes in full text
  evaluations/NAME.jsonl every evaluated episode
  scaling.json           only where `selfcorrect scale` measured the run
  checkpoints/step-N/    engine state and progress; complete or absent
  model/                 the kept checkpoint as an ordinary Hugging Face (or PEFT) directory
  .lock                  held by the process that writes; a killed process releases it
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Self

from pydantic import BaseModel, ConfigDict

from selfcorrect.config import Config, restore
from selfcorrect.errors import ConfigError, RunError
from selfcorrect.records.files import (
    append_line,
    checksums,
    cut_torn_line,
    disk_reason,
    only_writer,
    read_journal,
    remove,
    replacing,
    sync,
    write_jsonl,
    write_text,
)
from selfcorrect.records.lines import Record, StartRecord, parse_record

CHECKSUMS = "files.json"
"""The file of a checkpoint that has the sizes and checksums of its other files. Older versions did not write it."""
_CHECKPOINT = re.compile(r"step-\d{7,}")
RUNNING_OUT_OF_ROOM = 64 * 2**20
"""A run is refused if less disk space is free: the first checkpoint would fail, after the expensive part."""


class Progress(BaseModel):
    """How far training has come. Written with every checkpoint, together with the sizes of the record files."""

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
    """Factor of beta2 in the next step; changes only with method.beta2_target."""
    metrics_bytes: int = 0
    episodes_bytes: int = 0


class RunDirectory:
    """Files of one run. Use ``create`` or ``open``."""

    settings_name = "config.json"
    """Name of the file of settings, which tells the kind of directory."""
    command = "train"
    """The command that writes and resumes such a directory."""
    another = "choose another with run_dir=NEW"
    """The way out if it cannot be created."""

    def __init__(self, path: Path, config: Config) -> None:
        self.path = path
        self.config = config
        self.metrics_file = path / "metrics.jsonl"
        self.episodes_file = path / "episodes.jsonl"
        self.scaling_file = path / "scaling.json"

    @classmethod
    def create(cls, config: Config) -> Self:
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
            (path / cls.settings_name).write_text(config.model_dump_json(indent=2) + "\n")
        except OSError as error:
            if ours:
                shutil.rmtree(path, ignore_errors=True)
            raise RunError(f"run directory {path} cannot be written: {disk_reason(error)}; {cls.another}") from None
        free = shutil.disk_usage(path).free
        if free < RUNNING_OUT_OF_ROOM:
            shutil.rmtree(path)
            raise RunError(
                f"only {free / 2**20:.0f} MiB are free at {path}, too little for a checkpoint; free some space or set run_dir"
            )
        return cls(path, config)

    @classmethod
    def refuse_existing(cls, config: Config) -> None:
        """Refuse to overwrite anything. Looks at the path only, so it can be the first check of a command.

        Raises:
            RunError: something is there already.
        """
        path = config.resolved_run_dir
        if path.exists():
            raise RunError(
                f"run directory {path} exists already and is not overwritten: it may hold results. Continue it with "
                f"`{cls(path, config).resume}`, or {cls.another}"
            )

    @classmethod
    def open(cls, path: Path) -> Self:
        """Open an existing run directory.

        Raises:
            RunError: it is not a run directory.
        """
        settings = path / cls.settings_name
        try:
            values = json.loads(settings.read_text())
            if not isinstance(values, dict) or "method" not in values:
                raise ValueError("it is not the config of a run")
        except (OSError, ValueError) as error:
            if settings.is_file() and (path / "checkpoints").is_dir():
                raise RunError(
                    f"{settings} cannot be read, so the run's settings are not known ({error}); put it back from a copy"
                ) from None
            raise RunError(
                f"{path} is not a run directory (no {cls.settings_name} of a run); give the path that `{cls.command}` printed"
            ) from None
        try:
            return cls(path, restore(values))
        except ConfigError as error:
            raise RunError(f"{path / cls.settings_name} was written by another version or changed: {error}") from None

    def abandon(self) -> None:
        """Remove a new run in which nothing has been recorded, so that a failed start leaves nothing behind."""
        if not self.metrics_file.exists() and not any((self.path / "checkpoints").glob("*")):
            shutil.rmtree(self.path)

    def writing(self) -> AbstractContextManager[None]:
        """Be the only process that writes to this run, see ``only_writer``."""
        return only_writer(self.path)

    def append(self, record: Record) -> None:
        """Add one record to metrics.jsonl."""
        append_line(self.metrics_file, record.model_dump_json(), self._way_out)

    def append_episode(self, row: Mapping[str, Any]) -> None:
        append_line(self.episodes_file, json.dumps(row), self._way_out)

    def write_evaluation(self, name: str, rows: Iterable[Mapping[str, Any]]) -> None:
        """Write all episodes of one evaluation, replacing an earlier one of the same name only when complete.

        Raises:
            RunError: the disk refused.
        """
        write_jsonl(self.path / "evaluations" / f"{name}.jsonl", rows, self._way_out)

    def write_scaling(self, values: Mapping[str, Any]) -> None:
        """Write what ``selfcorrect scale`` measured of this run.

        Raises:
            RunError: the disk refused.
        """
        write_text(self.scaling_file, json.dumps(values, indent=1) + "\n", "free some space and measure again")

    def collected(self, name: str) -> list[dict[str, Any]]:
        """Parts stored so far under a name; a last line cut by a crash is removed from the file.

        Raises:
            RunError: another line is malformed.
        """
        file = self._collected_file(name)
        cut_torn_line(file)
        return read_journal(file, json.loads, "delete it to sample it again")

    def append_collected(self, name: str, part: Mapping[str, Any]) -> None:
        """Store the next part under a name."""
        file = self._collected_file(name)
        file.parent.mkdir(exist_ok=True)
        append_line(file, json.dumps(part), self._way_out)

    def _collected_file(self, name: str) -> Path:
        return self.path / "collected" / f"{name}.jsonl"

    @property
    def target(self) -> Path:
        """The path to pass to the command."""
        return self.path

    @property
    def resume(self) -> str:
        """The command that continues this run."""
        return f"selfcorrect {self.command} --resume {self.target}"

    @property
    def _way_out(self) -> str:
        """The way out if the disk refuses a file while the run is being written."""
        return f"checkpoints are whole, so free some space and continue with `{self.resume}`"

    def records(self) -> list[Record]:
        """All records so far. A last line cut by a crash does not count.

        Raises:
            RunError: another line is not a record.
        """
        return read_journal(
            self.metrics_file, parse_record, "restore the file, or open it with the version that wrote it"
        )

    @property
    def base(self) -> str | None:
        """What the model's name stood for when the run began, from its first record; None if that does not say."""
        try:
            with self.metrics_file.open(encoding="utf-8", errors="replace") as lines:
                first = parse_record(next(lines, ""))
        except (OSError, ValueError):
            return None
        return first.base if isinstance(first, StartRecord) else None

    def _complete(self) -> list[Path]:
        """The checkpoints, oldest first. Copies that users made next to them have other names."""
        found = (self.path / "checkpoints").glob("step-*")
        return sorted(p for p in found if _CHECKPOINT.fullmatch(p.name))

    def latest_checkpoint(self) -> Path | None:
        complete = self._complete()
        return complete[-1] if complete else None

    def set_aside(self, checkpoint: Path) -> None:
        """Rename a checkpoint that cannot be read, so that the one before it is the latest.

        Raises:
            RunError: there is no checkpoint before it.
        """
        aside = checkpoint.with_name(f"damaged-{checkpoint.name}")
        remove(aside)
        checkpoint.rename(aside)
        if self.latest_checkpoint() is None:
            raise RunError(
                f"{checkpoint} cannot be read, there is no checkpoint before it, and it is now called {aside.name}; put the "
                "checkpoint back from a copy, or start a new run"
            )

    def checkpoint(self, step: int) -> Path:
        return self.path / "checkpoints" / f"step-{step:07d}"

    def check(self, checkpoint: Path) -> None:
        """Compare the files of a checkpoint with the checksums that were written with them.

        Raises:
            RunError: a file is missing, cut or changed.
        """
        try:
            written = dict(json.loads((checkpoint / CHECKSUMS).read_text()))
            there = checksums(checkpoint)
        except FileNotFoundError:
            return  # by an older version, or cut; the second shows when it is read
        except (OSError, ValueError, TypeError) as error:
            raise RunError(f"checkpoint {checkpoint} is damaged ({type(error).__name__} in {CHECKSUMS})") from None
        for name, (size, crc) in written.items():
            found = there.get(name)
            if found != [size, crc]:
                how = "is missing" if found is None else "was changed" if found[0] == size else f"has {found[0]} bytes"
                was = "" if found is None or found[0] == size else f" instead of {size}"
                raise RunError(f"checkpoint {checkpoint} is damaged: its file {name} {how}{was}")

    def read_progress(self, checkpoint: Path) -> Progress:
        """The progress of training at a checkpoint.

        Raises:
            RunError: its progress cannot be read.
        """
        try:
            return Progress.model_validate_json((checkpoint / "progress.json").read_text())
        except (OSError, ValueError) as error:
            raise RunError(
                f"checkpoint {checkpoint} is damaged, or another version wrote it ({type(error).__name__} in progress.json); delete "
                "it to continue from the one before"
            ) from None

    @contextlib.contextmanager
    def writing_checkpoint(self, progress: Progress) -> Iterator[Path]:
        """A directory to fill. It becomes a checkpoint, in one rename, only if the block ends without an error.

        Raises:
            RunError: the disk refused; earlier checkpoints are untouched.
        """
        with replacing(self.checkpoint(progress.step), self._way_out, "checkpoint") as part:
            part.mkdir()
            yield part
            # a checkpoint that outlives its records after a power failure could not be continued
            for file in (self.metrics_file, self.episodes_file, *self.path.glob("collected/*.jsonl")):
                if file.exists():
                    sync(file)
            (part / "progress.json").write_text(progress.model_dump_json())
            (part / CHECKSUMS).write_text(json.dumps(checksums(part)))

    def sizes(self) -> dict[str, int]:
        """Sizes of the record files in bytes, by field of ``Progress``. Resuming cuts the files back to them."""
        files = {"metrics_bytes": self.metrics_file, "episodes_bytes": self.episodes_file}
        return {name: file.stat().st_size if file.exists() else 0 for name, file in files.items()}

    def rewind(self, progress: Progress) -> None:
        """Remove what was recorded after a checkpoint, and half-written files of a killed process.

        Raises:
            RunError: records from before the checkpoint are gone.
        """
        there = self.sizes()["metrics_bytes"]
        if there < progress.metrics_bytes:
            raise RunError(
                f"{self.metrics_file} has {there} bytes, but had {progress.metrics_bytes} at the checkpoint of step "
                f"{progress.step}: records are gone, and the results of the run would be without them; put the file back from "
                "a copy, or start a new run"
            )
        sizes = {self.metrics_file: progress.metrics_bytes, self.episodes_file: progress.episodes_bytes}
        for file, size in sizes.items():
            if file.exists() and file.stat().st_size > size:
                os.truncate(file, size)
        for name in ("checkpoints", "evaluations"):  # some copies leave out empty directories
            (self.path / name).mkdir(exist_ok=True)
        for part in (self.path / "checkpoints").glob(".step-*.part"):
            remove(part)
        for later in self._complete():
            if later > self.checkpoint(progress.step):
                remove(later)

    def prune(self, keep: int, best: int | None) -> None:
        """Delete all but the newest ``keep`` checkpoints and the best one."""
        for old in self._complete()[:-keep]:
            if best is None or old != self.checkpoint(best):
                remove(old)


class WarmUpDirectory(RunDirectory):
    """Files of a warm-up, in ``OUT.run`` next to the model that it will write to ``OUT``."""

    settings_name = "warmup.json"
    command = "sft"
    another = "remove it, or name another output"

    @staticmethod
    def of(out: Path) -> Path:
        """The directory of the warm-up that writes the model ``out``."""
        return out.with_name(f"{out.name}.run")

    @property
    def target(self) -> Path:
        return self.path.with_name(self.path.name.removesuffix(".run"))

    def drop_checkpoints(self) -> None:
        """Delete what is needed only to resume: the model has been written."""
        shutil.rmtree(self.path / "checkpoints")
