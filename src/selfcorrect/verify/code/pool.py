"""Supervisor processes as seen from the grader: start one, give it a job, replace it when it fails."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import socket
import subprocess
import tempfile
import threading
from dataclasses import asdict, dataclass
from typing import Any

from selfcorrect.errors import SelfCorrectError
from selfcorrect.verify.code.bwrap import zygote_command
from selfcorrect.verify.code.inside.codec import CodecError, dumps, loads
from selfcorrect.verify.code.inside.limits import ProgramLimits
from selfcorrect.verify.code.inside.wire import FrameTooLarge, recv_frame, send_frame

_START_S = 60.0
_GRACE_S = 30.0
_REPORT_LIMIT = 1 << 20


class SandboxError(SelfCorrectError):
    """The sandbox did not start, or stopped working. This says nothing about the program that was to run."""

    exit_code = 3


@dataclass(frozen=True, slots=True)
class Usage:
    """How one process of a job ended."""

    status: int | None
    cpu_s: float
    memory_mb: float
    killed: str

    @property
    def signal(self) -> int:
        """The signal that ended it; 0 if it ended by itself."""
        return os.WTERMSIG(self.status) if self.status is not None and os.WIFSIGNALED(self.status) else 0


@dataclass(frozen=True, slots=True)
class JobReport:
    """How one job ended."""

    outcome: dict[str, Any] | None
    """The judge's report; None if the judge was killed before it could report."""
    program: Usage
    tests: Usage


@dataclass(frozen=True, slots=True)
class Protection:
    """The protections with which a supervisor is started."""

    bwrap: str | None
    seccomp: bool


class Zygote:
    """One supervisor with its sandbox. Takes one job at a time."""

    def __init__(self, protection: Protection) -> None:
        """Start it, and wait until it can take jobs.

        Raises:
            SandboxError: it did not start.
        """
        self._inner_pid = 0
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115  # lives as long as the process that writes to it
        self._control, far = socket.socketpair()
        info_read, info_write = os.pipe()
        try:
            command, environment = zygote_command(protection.bwrap, far.fileno(), protection.seccomp)
            if protection.bwrap is not None:
                command[1:1] = ["--info-fd", str(info_write)]
            self._process = subprocess.Popen(
                command,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=self._errors,
                pass_fds=(far.fileno(), info_write),
                start_new_session=True,  # a Ctrl-C for the trainer must not reach it
            )
        except (OSError, subprocess.SubprocessError) as error:
            os.close(info_read)
            self._control.close()
            self._errors.close()
            raise SandboxError(f"The code sandbox did not start: {error}.") from error
        finally:
            far.close()
            os.close(info_write)
        with os.fdopen(info_read, "rb") as info:
            if protection.bwrap is not None and (described := info.read()):
                self._inner_pid = json.loads(described)["child-pid"]
        self._control.settimeout(_START_S)
        try:
            ready = recv_frame(self._control, _REPORT_LIMIT)
        except TimeoutError:
            ready = None
        if ready is None:
            self._errors.seek(0)
            text = self._errors.read(2000).decode(errors="replace").strip()
            self.close()
            raise SandboxError(f"The code sandbox did not start. Its output: {text or 'none'}")

    def run(self, job: dict[str, Any], limits: ProgramLimits) -> JobReport:
        """Run one job to its end.

        Raises:
            SandboxError: the supervisor is gone or does not answer; close it and start another.
        """
        patience_s = limits.wall_s + _GRACE_S
        near, far = socket.socketpair()
        with near, far:
            try:
                socket.send_fds(self._control, [json.dumps(asdict(limits)).encode()], [far.fileno()])
                far.close()
                near.settimeout(patience_s)
                # A judge that could not start reads nothing; the report says how it ended.
                with contextlib.suppress(ConnectionError):
                    send_frame(near, dumps(job))
                data = recv_frame(near, _REPORT_LIMIT)
                self._control.settimeout(patience_s)
                report = recv_frame(self._control, _REPORT_LIMIT)
                if report is None:
                    raise SandboxError("The code sandbox's supervisor ended in the middle of a job.")
                parsed = loads(report)
                outcome = loads(data) if data is not None else None
                return JobReport(outcome, Usage(*parsed["program"]), Usage(*parsed["tests"]))
            except (OSError, FrameTooLarge, CodecError) as error:
                raise SandboxError(f"The code sandbox does not answer: {type(error).__name__} {error}.") from error

    def close(self) -> None:
        """End the supervisor and everything in its sandbox. Safe to call twice."""
        self._control.close()
        try:
            self._process.wait(timeout=2)
        except subprocess.TimeoutExpired:
            # The first process inside takes its whole PID namespace along; killing bubblewrap's outer half would not.
            for pid in (self._inner_pid, self._process.pid):
                if pid:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
            self._process.wait()
        self._errors.close()


class ZygotePool:
    """A fixed number of supervisors, started when first needed and shared by threads."""

    def __init__(self, size: int, protection: Protection) -> None:
        self.size = size
        self.protection = protection
        self._idle: queue.LifoQueue[Zygote | None] = queue.LifoQueue()
        self._closed = threading.Event()
        for _ in range(size):
            self._idle.put(None)

    def run(self, job: dict[str, Any], limits: ProgramLimits) -> JobReport:
        """Run one job on any free supervisor; waits for one.

        Raises:
            SandboxError: as ``Zygote.run``. The supervisor has been closed; the next job starts a new one.
        """
        zygote = self._idle.get()
        try:
            if self._closed.is_set():
                raise SandboxError("This CodeGrader is closed; make another.")
            zygote = zygote or Zygote(self.protection)
            return zygote.run(job, limits)
        except BaseException:
            if zygote is not None:
                zygote.close()
            zygote = None
            raise
        finally:
            self._idle.put(zygote)

    def warm(self) -> None:
        """Start every supervisor now.

        Raises:
            SandboxError: one did not start.
        """
        held = [self._idle.get() for _ in range(self.size)]
        try:
            held = [zygote or Zygote(self.protection) for zygote in held]
        finally:
            for zygote in held:
                self._idle.put(zygote)

    def close(self) -> None:
        """End all supervisors; waits for running jobs."""
        self._closed.set()
        for zygote in [self._idle.get() for _ in range(self.size)]:
            if zygote is not None:
                zygote.close()
            self._idle.put(None)  # a late caller gets the error above, and does not wait forever
