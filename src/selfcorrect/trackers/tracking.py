"""Sends each record to the trackers exactly once, across restarts. A tracker that fails never stops a run."""

from __future__ import annotations

import contextlib
import sys
import uuid
from collections.abc import Callable, Sequence
from functools import partial
from types import TracebackType
from typing import Self

from pydantic import BaseModel, ConfigDict, ValidationError

from selfcorrect.errors import ConfigError, RunError
from selfcorrect.records.files import write_text
from selfcorrect.records.lines import EvalRecord, Record, StepRecord
from selfcorrect.records.run_directory import RunDirectory
from selfcorrect.trackers.base import Tracked, Tracker, evaluation_metrics, step_metrics


class _Sent(BaseModel):
    """The records that one tracker has received."""

    model_config = ConfigDict(extra="forbid")

    step: int = 0
    """The latest step that was sent."""
    evaluations: list[str] = []


class _State(BaseModel):
    """``trackers.json`` in the run directory."""

    model_config = ConfigDict(extra="forbid")

    id: str
    sent: dict[str, _Sent] = {}


class Tracking:
    """An observer that sends the records of a run to trackers. Use it as a context manager around the whole run.

    Before the first new record, each tracker receives the records that it missed because it was added later or had
    failed. A step that is repeated after a crash is not sent again. A tracker that fails is dropped for the rest of the
    process, with one warning.

    Args:
        run: whose records they are.
        trackers: the receivers; may be empty.
        warn: shows one line.
    """

    def __init__(self, run: RunDirectory, trackers: Sequence[Tracker], warn: Callable[[str], None]) -> None:
        self._run, self._warn = run, warn
        self._trackers, self._alive = trackers, list[Tracker]()
        self._file = run.path / "trackers.json"
        self._caught_up = False

    def __enter__(self) -> Self:
        """Start all trackers.

        Raises:
            ConfigError: a tracker cannot be started. Those that were started are ended.
        """
        self._state = _State(id=uuid.uuid4().hex[:8])
        if self._trackers and self._file.exists():
            try:
                self._state = _State.model_validate_json(self._file.read_text(encoding="utf-8"))
            except (OSError, ValidationError) as error:
                raise ConfigError(
                    f"{self._file} cannot be read ({type(error).__name__}), so the trackers' run cannot continue; delete it to "
                    "begin a new one there"
                ) from None
        config = self._run.config.model_dump(mode="json")
        tracked = Tracked(self._state.id, self._run.path.resolve().name, self._run.path.resolve(), config)
        for tracker in self._trackers:
            try:
                with contextlib.redirect_stdout(sys.stderr):
                    tracker.start(tracked)
            except Exception as error:  # whatever a foreign package raises: before anything expensive
                self._finish()
                raise ConfigError(
                    f"tracker {tracker.name} could not be started: {_line(error)}; correct that, or leave it out (trackers=none, also "
                    f"with `selfcorrect train --resume {self._run.path} trackers=none`): all numbers are in the run's records"
                ) from error
            self._alive.append(tracker)
        if self._alive:
            self._write()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._finish()

    def on_stage(self, *_: object) -> None:
        """Trackers receive the numbers of steps and evaluations only."""

    on_measure = on_stage

    def on_record(self, record: Record) -> None:
        if not self._alive or not isinstance(record, StepRecord | EvalRecord):
            return
        # not at the start: a resumed run first cuts off the records behind its checkpoint
        records: Sequence[Record] = [record] if self._caught_up else [*self._run.records(), record]
        self._caught_up = True
        for tracker in list(self._alive):
            sent = self._state.sent.setdefault(tracker.name, _Sent())
            for r in records:
                if isinstance(r, StepRecord) and r.step > sent.step:
                    if not self._try(tracker, partial(tracker.log, r.step, step_metrics(r))):
                        break
                    sent.step = r.step
                elif isinstance(r, EvalRecord) and r.name not in sent.evaluations:
                    if not self._try(tracker, partial(tracker.log, r.step, evaluation_metrics(r))):
                        break
                    sent.evaluations.append(r.name)
        self._write()

    def _finish(self) -> None:
        for tracker in list(self._alive):
            self._try(tracker, tracker.finish)
        self._alive = []

    def _try(self, tracker: Tracker, call: Callable[[], None]) -> bool:
        try:
            with contextlib.redirect_stdout(sys.stderr):  # some trackers print; standard output holds the result
                call()
        except Exception as error:  # noqa: BLE001  # the edge to a foreign package: it must not end a run
            self._alive.remove(tracker)
            self._warn(
                f"tracker {tracker.name} failed and receives nothing more: {_line(error)}; the run continues, its records are "
                "complete"
            )
            return False
        return True

    def _write(self) -> None:
        try:
            write_text(self._file, self._state.model_dump_json(), "the next resume may send some records twice")
        except RunError as error:
            self._warn(str(error))


def _line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}".removesuffix(": ")
