"""Telling trackers what is recorded, each record once, over every interruption; and living without them."""

from __future__ import annotations

import contextlib
import sys
import uuid
from collections.abc import Callable, Iterator, Sequence
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
    """What one tracker has been told."""

    model_config = ConfigDict(extra="forbid")

    step: int = 0
    evaluations: list[str] = []

    def holds(self, record: StepRecord | EvalRecord) -> bool:
        return record.step <= self.step if isinstance(record, StepRecord) else record.name in self.evaluations

    def add(self, record: StepRecord | EvalRecord) -> None:
        if isinstance(record, StepRecord):
            self.step = record.step
        else:
            self.evaluations.append(record.name)


class _State(BaseModel):
    """``trackers.json`` in the run directory."""

    model_config = ConfigDict(extra="forbid")

    id: str
    sent: dict[str, _Sent] = {}


class Tracking:
    """An observer of a run that passes its records on. Use as a context manager, around all that the run does.

    The records are the truth: before the first new one, each tracker gets those that it lacks (it was added later, or
    had failed). A step that is played again after a crash is not sent again. A tracker that fails later is dropped for
    the rest of the process with one warning.

    Args:
        run: whose records they are.
        trackers: to be told; none is fine.
        warn: shows one line.
    """

    def __init__(self, run: RunDirectory, trackers: Sequence[Tracker], warn: Callable[[str], None]) -> None:
        self._run, self._warn = run, warn
        self._trackers, self._alive = trackers, list[Tracker]()
        self._file = run.path / "trackers.json"
        self._caught_up = False

    def __enter__(self) -> Self:
        """Start all of them.

        Raises:
            ConfigError: one cannot be started; those that had been are finished.
        """
        self._state = self._read() if self._trackers else _State(id="")
        config = self._run.config.model_dump(mode="json")
        tracked = Tracked(self._state.id, self._run.path.resolve().name, self._run.path.resolve(), config)
        for tracker in self._trackers:
            try:
                with _off_standard_output():
                    tracker.start(tracked)
            except Exception as error:  # whatever a foreign package raises: the user is told before anything expensive
                self._finish()
                raise ConfigError(
                    f"tracker {tracker.name} could not be started: {_line(error)}; mend that, or leave it out (trackers=none, also "
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

    def on_stage(self, *_args: object) -> None: ...
    def on_measure(self, *_args: object) -> None: ...

    def on_record(self, record: Record) -> None:
        if not self._alive or not isinstance(record, StepRecord | EvalRecord):
            return
        # not at the start: a resumed run first cuts off the records behind its checkpoint
        records: Sequence[Record] = [record] if self._caught_up else [*self._run.records(), record]
        self._caught_up = True
        for tracker in list(self._alive):
            self._pass_on(tracker, [r for r in records if isinstance(r, StepRecord | EvalRecord)])
        self._write()

    def _pass_on(self, tracker: Tracker, records: Sequence[StepRecord | EvalRecord]) -> None:
        sent = self._state.sent.setdefault(tracker.name, _Sent())
        for record in records:
            if sent.holds(record):
                continue
            metrics = step_metrics(record) if isinstance(record, StepRecord) else evaluation_metrics(record)
            if not self._try(tracker, partial(tracker.log, record.step, metrics)):
                return
            sent.add(record)

    def _finish(self) -> None:
        for tracker in list(self._alive):
            self._try(tracker, tracker.finish)
        self._alive = []

    def _try(self, tracker: Tracker, call: Callable[[], None]) -> bool:
        try:
            with _off_standard_output():
                call()
        except Exception as error:  # noqa: BLE001  # the edge to a foreign package: it must not end a run
            self._alive.remove(tracker)
            self._warn(
                f"tracker {tracker.name} failed and is not told any more: {_line(error)}; the run goes on, its records are complete"
            )
            return False
        return True

    def _read(self) -> _State:
        if not self._file.exists():
            return _State(id=uuid.uuid4().hex[:8])
        try:
            return _State.model_validate_json(self._file.read_text(encoding="utf-8"))
        except (OSError, ValidationError) as error:
            raise ConfigError(
                f"{self._file} cannot be read ({type(error).__name__}), so the trackers' run cannot go on; delete it to begin a new "
                "one there"
            ) from None

    def _write(self) -> None:
        try:
            write_text(self._file, self._state.model_dump_json(), "the next resume may send some records twice")
        except RunError as error:
            self._warn(str(error))


@contextlib.contextmanager
def _off_standard_output() -> Iterator[None]:
    """Some trackers print; standard output belongs to the command's result."""
    with contextlib.redirect_stdout(sys.stderr):
        yield


def _line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}".removesuffix(": ")
