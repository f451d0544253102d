"""The processes behind the tables: what is missing, in order, a few at once; stopped cleanly, continued where they stopped.

OUT/runs/<row>-s<seed>-<hash>/             a run of `selfcorrect train`
OUT/runs/<row>-s<seed>-<hash>[.what].jsonl episodes of a measurement beside it
OUT/runs/<name>.log                        what the process printed
OUT/times.jsonl                            wall and processor seconds of every process that ended
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from selfcorrect.errors import Interrupted, RunError, disk_reason
from selfcorrect.records.lines import EndRecord, StepRecord, parse_record

POLL_S = 0.2
TAIL_BYTES = 65_536
"""Of a run's records, to find its latest step: lines of steps are about 1 KB, of evaluations up to 10."""
SELFCORRECT = (sys.executable, "-m", "selfcorrect")


@dataclass(frozen=True, slots=True)
class Job:
    """One process and what it leaves: a run directory, or a file that is there only when complete."""

    row: str
    target: Path
    command: tuple[str, ...]
    """Of a run that does not exist yet, or of the measurement; ``{out}`` in it is the file to write."""
    is_run: bool
    total_steps: int = 0
    needs: Path | None = None
    """A run that must have finished before."""

    @property
    def name(self) -> str:
        return self.target.name.removesuffix(".jsonl")

    @property
    def finished(self) -> bool:
        return is_finished(self.target) if self.is_run else self.target.exists()

    @property
    def step(self) -> int:
        """Steps done so far, by the records; 0 for a measurement."""
        return latest_step(self.target) if self.is_run else 0

    def prepare(self) -> list[str]:
        """The command to start now: a new run, the rest of an interrupted one, or a measurement from its beginning."""
        if not self.is_run:
            part = self.target.with_suffix(".unfinished")
            part.unlink(missing_ok=True)
            return [part.as_posix() if word == "{out}" else word for word in self.command]
        if self.target.exists():
            return [*SELFCORRECT, "train", "--resume", str(self.target)]
        return list(self.command)

    def complete(self) -> None:
        """After the process ended well: the file gets its name. Without a file the job has not finished."""
        part = self.target.with_suffix(".unfinished")
        if not self.is_run and part.exists():
            part.replace(self.target)


def is_finished(run: Path) -> bool:
    """Whether a run directory holds a run that has ended by itself."""
    last = _last_line(run / "metrics.jsonl")
    if not last:
        return False
    try:
        record = parse_record(last)
    except ValueError:
        return False
    return isinstance(record, EndRecord) and record.reason == "finished"


def latest_step(run: Path) -> int:
    for line in reversed(_tail(run / "metrics.jsonl")):
        try:
            record = parse_record(line)
        except ValueError:
            continue
        if isinstance(record, StepRecord):
            return record.step
    return 0


def _last_line(file: Path) -> str:
    lines = _tail(file)
    return lines[-1] if lines else ""


def _tail(file: Path) -> list[str]:
    try:
        with file.open("rb") as stream:
            stream.seek(max(0, file.stat().st_size - TAIL_BYTES))
            return stream.read().decode(errors="replace").splitlines()
    except OSError:
        return []


@dataclass
class _Child:
    job: Job
    process: subprocess.Popen[bytes]
    began: float
    first_step: int
    cpu_seconds: float = 0.0
    """Of the process and all that it waited for; known once it has ended."""

    def has_ended(self) -> bool:
        """Like ``process.poll``, and takes note of the processor time, which is lost once a process is waited for."""
        if self.process.returncode is None:
            self._waited(os.WNOHANG)
        return self.process.returncode is not None

    def wait(self) -> None:
        if self.process.returncode is None:
            self._waited(0)

    def _waited(self, options: int) -> None:
        pid, status, usage = os.wait4(self.process.pid, options)
        if pid:
            self.process.returncode = os.waitstatus_to_exitcode(status)
            self.cpu_seconds = usage.ru_utime + usage.ru_stime


@dataclass(frozen=True, slots=True)
class Status:
    """For people: what is going on."""

    running: tuple[tuple[str, int, int, float], ...]
    """Name, steps done, steps in all (0: not a run), seconds since it began."""
    done: int
    failed: int
    total: int
    seconds_left: float | None
    """None until a process of this place has ended."""


class Watcher(Protocol):
    """Whoever shows the progress."""

    def on_begin(self, job: Job, resumed: bool) -> None: ...
    def on_end(self, job: Job, seconds: float, failure: str | None) -> None: ...
    def on_status(self, status: Status) -> None: ...


@dataclass
class Runner:
    """Runs jobs, a few at once, each with one thread."""

    out: Path
    at_once: int
    watcher: Watcher
    failures: dict[str, str] = field(default_factory=dict)
    """By the name of the job: the last line that its process printed."""

    def run(self, jobs: Sequence[Job], stop_requested: Callable[[], bool] = lambda: False) -> None:
        """Run all that have not finished, in their order. A job that fails does not keep others from running.

        Args:
            jobs: in order of precedence; one that needs a run waits for it.
            stop_requested: True ends the running processes cleanly, and this.

        Raises:
            Interrupted: asked to stop; runs have written a checkpoint.
        """
        waiting = [job for job in jobs if not job.finished]
        done, total = len(jobs) - len(waiting), len(jobs)
        children: list[_Child] = []
        try:
            while waiting or children:
                if stop_requested():
                    self._stop(children)
                while len(children) < self.at_once and (job := self._next(waiting)) is not None:
                    waiting.remove(job)
                    children.append(self._start(job))
                for child in [c for c in children if c.has_ended()]:
                    children.remove(child)
                    done += self._ended(child)
                self._give_up(waiting)
                left = self._seconds_left(waiting, children)
                self.watcher.on_status(Status(_running(children), done, len(self.failures), total, left))
                if children:
                    time.sleep(POLL_S)
        finally:
            for child in children:  # only where something went wrong here: no process outlives its parent
                child.process.kill()
                child.wait()

    def _next(self, waiting: Sequence[Job]) -> Job | None:
        return next((job for job in waiting if job.needs is None or is_finished(job.needs)), None)

    def _give_up(self, waiting: list[Job]) -> None:
        """Jobs whose run has failed will never start."""
        for job in [j for j in waiting if j.needs is not None and j.needs.name in self.failures]:
            waiting.remove(job)
            assert job.needs is not None
            self.failures[job.name] = f"its run {job.needs.name} failed"

    def _start(self, job: Job) -> _Child:
        first, resumed = job.step, job.is_run and job.target.exists()
        command = job.prepare()
        with self._log(job).open("wb") as log:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, "OMP_NUM_THREADS": "1"},
                start_new_session=True,  # Ctrl-C reaches this process alone, which passes on one signal each
            )
        self.watcher.on_begin(job, resumed)
        return _Child(job, process, time.monotonic(), first)

    def _ended(self, child: _Child) -> bool:
        seconds, code = time.monotonic() - child.began, child.process.returncode
        if code == 0:
            child.job.complete()
        failure = None if code == 0 and child.job.finished else self._said(child.job, code)
        if failure is not None:
            self.failures[child.job.name] = failure
        self._note(child, "finished" if failure is None else "failed")
        self.watcher.on_end(child.job, seconds, failure)
        return failure is None

    def _said(self, job: Job, code: int) -> str:
        """Its own last words: an error of the user's is one line."""
        lines = self._log(job).read_text(errors="replace").split("\n")
        words = [line.strip() for line in lines if line.strip()]
        return f"exit code {code}: {words[-1].removeprefix('selfcorrect: ') if words else 'it printed nothing'}"

    def _stop(self, children: list[_Child]) -> None:
        """One SIGINT to each: a run writes a checkpoint after its step. A second Ctrl-C here kills them."""
        for child in children:
            child.process.send_signal(signal.SIGINT)
        for child in children:
            child.wait()
            self._note(child, "stopped")
        children.clear()
        raise Interrupted(
            f"stopped as asked; runs so far are in {self.out / 'runs'}. Call the same command again to go on"
        )

    def _log(self, job: Job) -> Path:
        return self.out / "runs" / f"{job.name}.log"

    def _note(self, child: _Child, how: str) -> None:
        row = {
            "job": child.job.name,
            "row": child.job.row,
            "seconds": round(time.monotonic() - child.began, 2),
            "cpu_seconds": round(child.cpu_seconds, 2),
            "ended": how,
        }
        with (self.out / "times.jsonl").open("a") as file:
            file.write(json.dumps(row) + "\n")

    def _seconds_left(self, waiting: Sequence[Job], children: Sequence[_Child]) -> float | None:
        """From recorded times: mean of the same row's jobs, else of all; running ones by their share of steps left."""
        known = finished_seconds(self.out)
        if not known:
            return None
        by_row: dict[str, list[float]] = {}
        for row, seconds in known.values():
            by_row.setdefault(row, []).append(seconds)
        overall = sum(s for _, s in known.values()) / len(known)
        expected = {row: sum(values) / len(values) for row, values in by_row.items()}
        todo = sum(expected.get(job.row, overall) for job in waiting)
        for child in children:
            whole = expected.get(child.job.row, overall)
            if child.job.total_steps:
                whole *= 1 - child.first_step / child.job.total_steps
            todo += max(whole - (time.monotonic() - child.began), 0)
        return todo / self.at_once


def _running(children: Sequence[_Child]) -> tuple[tuple[str, int, int, float], ...]:
    now = time.monotonic()
    return tuple((c.job.name, c.job.step, c.job.total_steps, now - c.began) for c in children)


def finished_seconds(out: Path) -> dict[str, tuple[str, float]]:
    """Row and wall seconds of every finished job, interrupted stretches added up; by its name."""
    file = out / "times.jsonl"
    total: dict[str, float] = {}
    finished: dict[str, tuple[str, float]] = {}
    for line in file.read_text().splitlines() if file.exists() else ():
        row = json.loads(line)
        total[row["job"]] = total.get(row["job"], 0.0) + row["seconds"]
        if row["ended"] == "finished":
            finished[row["job"]] = (row["row"], total[row["job"]])
    return finished


@contextlib.contextmanager
def claimed(out: Path) -> Iterator[None]:
    """Make the output directory and be the only process that works in it.

    Raises:
        RunError: another one does, or it cannot be written.
    """
    try:
        (out / "runs").mkdir(parents=True, exist_ok=True)
        lock = (out / ".lock").open("w")
    except OSError as error:
        raise RunError(f"{out} cannot be written: {disk_reason(error)}; name another place with --out") from None
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RunError(
                f"another `selfcorrect reproduce` works in {out}; wait for it, or name another place with --out"
            ) from None
        yield
