"""The processes behind the tables: runs what is missing, in order, a few at once; stops cleanly and continues later.

OUT/runs/<row>-s<seed>-<hash>/             a run of `selfcorrect train`
OUT/runs/<row>-s<seed>-<hash>[.what].jsonl episodes of a measurement of it
OUT/runs/<name>.log                        what the process printed
OUT/times.jsonl                            wall and processor seconds of every process that ended
"""

from __future__ import annotations

import contextlib
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

from selfcorrect.errors import Interrupted, RunError
from selfcorrect.records.files import append_line, cut_torn_line, disk_reason, only_writer, read_journal
from selfcorrect.records.lines import EndRecord, Record, StepRecord, parse_record

POLL_S = 0.2
TAIL_BYTES = 65_536
"""Bytes read from the end of a run's records to find its latest step. A step's line has about 1 KB, an evaluation's up
to 10."""
SELFCORRECT = (sys.executable, "-m", "selfcorrect")


@dataclass(frozen=True, slots=True)
class Job:
    """One process and its output: a run directory, or a file that is written completely or not at all."""

    row: str
    target: Path
    command: tuple[str, ...]
    """Starts a run or a measurement from its beginning."""
    is_run: bool
    total_steps: int = 0
    needs: Path | None = None
    """A run that must finish first."""

    @property
    def name(self) -> str:
        return self.target.name.removesuffix(".jsonl")

    @property
    def finished(self) -> bool:
        return is_finished(self.target) if self.is_run else self.target.exists()

    @property
    def step(self) -> int:
        """Steps done so far according to the records; 0 for a measurement."""
        records = _newest_first(self.target) if self.is_run else iter(())
        return next((r.step for r in records if isinstance(r, StepRecord)), 0)

    @property
    def command_now(self) -> tuple[str, ...]:
        """The command that starts the job, or continues an interrupted run."""
        if self.is_run and self.target.exists():
            return (*SELFCORRECT, "train", "--resume", str(self.target), "--base-from", str(self.target.parent))
        return self.command


def is_finished(run: Path) -> bool:
    """Whether a run directory holds a run that was not stopped before its end."""
    last = next(_newest_first(run), None)
    return isinstance(last, EndRecord) and last.reason == "finished"


def _newest_first(run: Path) -> Iterator[Record]:
    """The latest records of a run, newest first. Incomplete lines are left out."""
    file = run / "metrics.jsonl"
    try:
        with file.open("rb") as stream:
            stream.seek(max(0, file.stat().st_size - TAIL_BYTES))
            lines = stream.read().decode(errors="replace").splitlines()
    except OSError:
        return
    for line in reversed(lines):
        with contextlib.suppress(ValueError):
            yield parse_record(line)


@dataclass(frozen=True, slots=True)
class Status:
    """Progress, for people."""

    running: tuple[tuple[str, int, int, float], ...]
    """Name, steps done, total steps (0: not a run), seconds since the process began."""
    done: int
    failed: int
    total: int
    seconds_left: float | None
    """None until the first process has ended."""


class Watcher(Protocol):
    """Shows the progress."""

    def on_begin(self, job: Job, resumed: bool) -> None: ...
    def on_end(self, job: Job, seconds: float, failure: str | None) -> None: ...
    def on_status(self, status: Status) -> None: ...


@dataclass
class _Child:
    job: Job
    process: subprocess.Popen[bytes]
    began: float
    first_step: int
    cpu_seconds: float = 0.0
    """Processor seconds of the process and its children; known once it has ended."""

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.began

    def has_ended(self, options: int = os.WNOHANG) -> bool:
        """Like ``process.poll``, or ``process.wait`` with options 0. Also keeps the processor time, which is not
        available later."""
        if self.process.returncode is None:
            pid, status, usage = os.wait4(self.process.pid, options)
            if pid:
                self.process.returncode = os.waitstatus_to_exitcode(status)
                self.cpu_seconds = usage.ru_utime + usage.ru_stime
        return self.process.returncode is not None


@dataclass
class Runner:
    """Runs jobs, a few at once, each with one thread."""

    out: Path
    at_once: int
    watcher: Watcher
    failures: dict[str, str] = field(default_factory=dict)
    """The last line that a failed process printed, by the name of its job."""

    def run(self, jobs: Sequence[Job], stop_requested: Callable[[], bool] = lambda: False) -> None:
        """Run all jobs that have not finished, in order. If a job fails, the others still run.

        Args:
            jobs: in order of precedence; one that needs a run waits for it.
            stop_requested: True stops this and the running processes cleanly.

        Raises:
            Interrupted: a stop was requested; runs have written a checkpoint.
        """
        waiting = [job for job in jobs if not job.finished]
        done = len(jobs) - len(waiting)
        children: list[_Child] = []
        try:
            while waiting or children:
                if stop_requested():
                    for child in children:  # one SIGINT each: a run writes a checkpoint after its step
                        child.process.send_signal(signal.SIGINT)
                    for child in children:  # a second Ctrl-C here kills them
                        child.has_ended(options=0)
                        # one that was measuring goes on to its end, and no later process will record its time
                        done_now = child.process.returncode == 0 and child.job.finished
                        self._note(child, "finished" if done_now else "stopped")
                    children.clear()
                    raise Interrupted(
                        f"stopped as asked; runs so far are in {self.out / 'runs'}. Call the same command again to continue"
                    )
                ready = (job for job in list(waiting) if job.needs is None or is_finished(job.needs))
                while len(children) < self.at_once and (job := next(ready, None)) is not None:
                    waiting.remove(job)
                    children.append(self._start(job))
                for child in [c for c in children if c.has_ended()]:
                    children.remove(child)
                    done += self._end(child)
                for job in list(waiting):
                    if job.needs is not None and job.needs.name in self.failures:  # it could never start
                        waiting.remove(job)
                        self.failures[job.name] = f"its run {job.needs.name} failed"
                running = tuple((c.job.name, c.job.step, c.job.total_steps, c.seconds) for c in children)
                left = self._seconds_left(waiting, children)
                self.watcher.on_status(Status(running, done, len(self.failures), len(jobs), left))
                if children:
                    time.sleep(POLL_S)
        finally:
            for child in children:  # only after an error in this process: no process outlives its parent
                child.process.kill()
                child.has_ended(options=0)

    def _start(self, job: Job) -> _Child:
        first, resumed = job.step, job.is_run and job.target.exists()
        with (self.out / "runs" / f"{job.name}.log").open("wb") as log:
            process = subprocess.Popen(
                job.command_now,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, "OMP_NUM_THREADS": "1"},
                start_new_session=True,  # Ctrl-C reaches this process alone, which passes on one signal each
            )
        self.watcher.on_begin(job, resumed)
        return _Child(job, process, time.monotonic(), first)

    def _end(self, child: _Child) -> bool:
        """Record how a process ended, and return whether its job has finished."""
        job, code, failure = child.job, child.process.returncode, None
        if code != 0 or not job.finished:
            printed = (self.out / "runs" / f"{job.name}.log").read_text(errors="replace").strip()
            last = printed.rpartition("\n")[2].strip() or "it printed nothing"  # an error is one line
            last = last.removeprefix("selfcorrect: ")
            how = f"exit code {code}" if code >= 0 else f"killed by {signal.Signals(-code).name}"
            if code == -signal.SIGKILL:
                how += (
                    ", as the system does when memory runs out (then start fewer at once with --jobs); it printed last"
                )
            failure = self.failures[job.name] = f"{how}: {last}"
        self._note(child, "finished" if failure is None else "failed")
        self.watcher.on_end(job, child.seconds, failure)
        return failure is None

    def _note(self, child: _Child, how: str) -> None:
        row = {
            "job": child.job.name,
            "row": child.job.row,
            "seconds": round(child.seconds, 2),
            "cpu_seconds": round(child.cpu_seconds, 2),
            "ended": how,
        }
        append_line(self.out / "times.jsonl", json.dumps(row), "free some space and call the same command again")

    def _seconds_left(self, waiting: Sequence[Job], children: Sequence[_Child]) -> float | None:
        """Estimate the time left from recorded times: the mean of the row's jobs, else of all jobs. Running jobs count
        with their share of steps left."""
        known = list(finished_seconds(self.out).values())
        if not known:
            return None

        def expected(job: Job) -> float:
            seconds = [s for row, s in known if row == job.row] or [s for _, s in known]
            return sum(seconds) / len(seconds)

        left = sum(map(expected, waiting))
        for child in children:
            steps = child.job.total_steps
            share = 1 - child.first_step / steps if steps else 1
            left += max(expected(child.job) * share - child.seconds, 0)
        return left / self.at_once


def finished_seconds(out: Path) -> dict[str, tuple[str, float]]:
    """Row and wall seconds of every finished job, by its name; parts of an interrupted job are summed.

    Raises:
        RunError: ``times.jsonl`` is damaged.
    """
    total: dict[str, float] = {}
    finished: dict[str, tuple[str, float]] = {}
    for row in read_journal(out / "times.jsonl", json.loads, "delete the file, which only holds times"):
        total[row["job"]] = total.get(row["job"], 0.0) + row["seconds"]
        if row["ended"] == "finished":
            finished[row["job"]] = (row["row"], total[row["job"]])
    return finished


@contextlib.contextmanager
def claimed(out: Path) -> Iterator[None]:
    """Make the output directory and be the only process that works in it.

    Raises:
        RunError: another process works there, or it cannot be written.
    """
    try:
        (out / "runs").mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(f"{out} cannot be written: {disk_reason(error)}; name another place with --out") from None
    with only_writer(out):
        cut_torn_line(out / "times.jsonl")
        yield
