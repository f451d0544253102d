"""The supervisor inside the sandbox: forks one judge and one program per job, and makes sure that both are gone
afterwards.

One job at a time. The program is forked before the job's tests are anywhere in memory, and this process never holds
them: they go from the grader straight to the judge, over a socket made for that job. It ends when the grader's end of
the control socket closes, whatever the reason. It is the first process of its PID namespace, so all others end with it.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import platform
import random
import select
import signal
import socket
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import NoReturn

from . import candidate, confine, judge, seccomp
from .codec import dumps, loads
from .limits import ProgramLimits
from .wire import recv_frame, send_frame

_JOB_LIMIT = 1 << 28
_TICK_S = 0.25
_TESTS_MEMORY_MB = 1024


@dataclass(frozen=True, slots=True)
class Mode:
    """How far a program is confined. ``isolated`` means inside bubblewrap; otherwise only the remaining protections
    apply."""

    isolated: bool
    seccomp: bool
    readable: tuple[str, ...]
    """Directories of the interpreter. Landlock lets a program read only these and its scratch directory."""


@dataclass(slots=True)
class Child:
    """One forked process and how it ended."""

    pid: int
    pidfd: int
    status: int | None = None
    cpu_s: float = 0.0
    memory_mb: float = 0.0
    killed: str = ""
    """Why the supervisor ended the job: ``cpu``, ``wall`` or ``idle``; empty if it did not."""

    def reap(self) -> None:
        _, self.status, usage = os.wait4(self.pid, 0)
        self.cpu_s = usage.ru_utime + usage.ru_stime
        self.memory_mb = usage.ru_maxrss / 1024

    def kill(self, why: str = "") -> None:
        if self.status is None:
            self.killed = self.killed or why
            signal.pidfd_send_signal(self.pidfd, signal.SIGKILL)


def _fork(body: Callable[[], None]) -> Child:
    pid = os.fork()
    if pid == 0:
        try:
            body()
        except BaseException as error:  # noqa: BLE001  # nothing may unwind into the supervisor's frames
            os.write(2, f"{type(error).__name__}: {error}\n".encode()[:500])
            os._exit(70)
        os._exit(0)
    return Child(pid, os.pidfd_open(pid))


def _become_program(channel: socket.socket, limits: ProgramLimits, mode: Mode, scratch: str) -> None:
    null = os.open("/dev/null", os.O_RDWR)
    for fd in (0, 1, 2):
        os.dup2(null, fd)
    os.dup2(channel.fileno(), 3)
    os.closerange(4, 65536)
    channel.detach()
    with socket.socket(fileno=3) as only:
        try:
            _confine_program(limits, mode, scratch)
        except OSError as error:
            send_frame(only, dumps({"setup_error": str(error)}))
            return
        candidate.serve(only, limits.message_mb << 20)


def _confine_program(limits: ProgramLimits, mode: Mode, scratch: str) -> None:
    os.setsid()
    if mode.isolated:
        confine.enter_namespaces(limits)
    else:
        os.chdir(scratch)
    confine.set_limits(limits)
    confine.drop_privileges()
    confine.landlock(("/",) if mode.isolated else mode.readable, scratch)
    os.environ.clear()
    os.environ.update(HOME=scratch, TMPDIR=scratch, LANG="C.UTF-8")
    random.seed(0)
    if mode.seccomp:
        seccomp.install(os.getpid())


def _become_judge(job_channel: socket.socket, channel: socket.socket, limits: ProgramLimits) -> None:
    os.setsid()
    tests = ProgramLimits(cpu_s=limits.cpu_s, memory_mb=_TESTS_MEMORY_MB, files=limits.files)
    confine.set_limits(tests)
    confine.drop_privileges()
    random.seed(0)
    data = recv_frame(job_channel, _JOB_LIMIT)
    if data is None:
        return
    outcome = judge.judge(channel, loads(data), limits.message_mb << 20)
    send_frame(job_channel, dumps(asdict(outcome)))


class Supervisor:
    """Runs jobs for one grader, one after another."""

    def __init__(self, control: socket.socket, mode: Mode) -> None:
        self.control = control
        self.mode = mode
        self.own_pids = os.open("/proc/self/ns/pid", os.O_RDONLY) if mode.isolated else -1

    def run_forever(self) -> None:
        while True:
            try:
                data, fds, _, _ = socket.recv_fds(self.control, 1 << 16, 1)
            except InterruptedError:
                continue
            if not data or len(fds) != 1:
                return
            with socket.socket(fileno=fds[0]) as job_channel:
                # No local of this frame may hold it: the next program can look at the frames that it was forked from.
                send_frame(self.control, dumps(self._run(job_channel, ProgramLimits(**json.loads(data)))))

    def _run(self, job_channel: socket.socket, limits: ProgramLimits) -> dict[str, object]:
        with contextlib.ExitStack() as stack:
            scratch = confine.SCRATCH
            if not self.mode.isolated:
                import tempfile  # loads the compression libraries, which every fork would pay for

                directory = tempfile.TemporaryDirectory(prefix="selfcorrect-", ignore_cleanup_errors=True)
                scratch = stack.enter_context(directory)
            program, tests = self._start(job_channel, limits, scratch)
            job_channel.close()
            self._watch(program, tests, limits)
        return {
            "program": [program.status, program.cpu_s, program.memory_mb, program.killed],
            "tests": [tests.status, tests.cpu_s, tests.memory_mb, tests.killed],
        }

    def _start(self, job_channel: socket.socket, limits: ProgramLimits, scratch: str) -> tuple[Child, Child]:
        judge_end, program_end = socket.socketpair()
        with judge_end, program_end:
            if self.mode.isolated:
                confine.unshare(confine.CLONE_NEWPID)
            program = _fork(lambda: _become_program(program_end, limits, self.mode, scratch))
            if self.mode.isolated:
                confine.setns(self.own_pids, confine.CLONE_NEWPID)
            program_end.close()
            tests = _fork(lambda: _become_judge(job_channel, judge_end, limits))
        return program, tests

    def _watch(self, program: Child, tests: Child, limits: ProgramLimits) -> None:
        """Wait for the tests' end, then end the program. Both are reaped when this returns."""
        poll = select.poll()
        for child in (program, tests):
            poll.register(child.pidfd, select.POLLIN)
        poll.register(self.control, select.POLLIN)
        clock = _Clock(limits, [program.pid, tests.pid])
        while tests.status is None:
            ready = {fd for fd, _ in poll.poll(_TICK_S * 1000)}
            if self.control.fileno() in ready:  # nothing is sent during a job: the grader is gone
                program.kill()
                tests.kill()
                os._exit(0)
            if program.pidfd in ready and program.status is None:
                program.reap()
                poll.unregister(program.pidfd)
            if tests.pidfd in ready:
                tests.reap()
            if tests.status is None and (why := clock.expired()):
                program.kill(why)
                tests.kill(why)
        program.kill()
        if program.status is None:
            program.reap()
        os.close(program.pidfd)
        os.close(tests.pidfd)


class _Clock:
    """CPU time, the wall-clock backstop, and the time in which a job neither ran nor waited for a core.

    RLIMIT_CPU alone is not enough: the kernel checks it by sampled ticks, which are off by a tenth on a busy machine.
    """

    def __init__(self, limits: ProgramLimits, pids: list[int]) -> None:
        self.limits = limits
        self.pids = pids
        self.start = self.last = time.monotonic()
        self.active_s = 0.0
        self.idle_s = 0.0

    def expired(self) -> str:
        now = time.monotonic()
        if now - self.start > self.limits.wall_s:
            return "wall"
        if any(_cpu_s(pid) > self.limits.cpu_s for pid in self.pids):
            return "cpu"
        if now - self.last < _TICK_S:
            return ""
        activities = [_activity(pid) for pid in self.pids]
        active_s = sum(seconds for seconds, _ in activities)
        # A process that computes on a crowded machine waits for a core, and that counts as active. The kernel books the
        # wait only once it is over, hence the look at the states; a starved supervisor must not book it all as idle.
        if not any(ready for _, ready in activities) and active_s - self.active_s < 0.05 * (now - self.last):
            self.idle_s += min(now - self.last, 2 * _TICK_S)
        self.active_s, self.last = active_s, now
        return "idle" if self.idle_s > self.limits.idle_s else ""


def _cpu_s(pid: int) -> float:
    """CPU seconds of all threads of a process, as counted by the scheduler; 0 if the process is gone."""
    try:
        return time.clock_gettime((~pid << 3) | 2)  # the kernel's encoding of clock_getcpuclockid(pid)
    except OSError:
        return 0.0


def _activity(pid: int) -> tuple[float, bool]:
    """Seconds that a process's threads ran or waited for a core, and whether a thread now runs, or waits for a core or
    a disk."""
    total = 0
    ready = False
    # A thread may end while it is looked at; older kernels have no schedstat, and then the states alone decide.
    with contextlib.suppress(OSError):
        for thread in os.listdir(f"/proc/{pid}/task"):
            with open(f"/proc/{pid}/task/{thread}/stat") as file:
                ready |= file.read().rsplit(")", 1)[1].split()[0] in "RD"
            with open(f"/proc/{pid}/task/{thread}/schedstat") as file:
                ran, waited, _ = file.read().split()
            total += int(ran) + int(waited)
    return total / 1e9, ready


def main(arguments: list[str]) -> NoReturn:
    """Entry point: ``zygote CONTROL_FD MODE_AS_JSON``."""
    control = socket.socket(fileno=int(arguments[0]))
    control.set_inheritable(False)
    settings = json.loads(arguments[1])
    mode = Mode(settings["isolated"], settings["seccomp"], tuple(settings["readable"]))
    candidate.prepare_globals()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    supervisor = Supervisor(control, mode)
    if mode.isolated and mode.seccomp:
        seccomp.program(platform.machine(), 1)  # built once: in its own PID namespace every program is process 1
    gc.collect()
    gc.freeze()  # pages stay shared, because the collector no longer writes to every object
    send_frame(control, dumps({"ready": True}))
    supervisor.run_forever()
    sys.exit(0)


if __name__ == "__main__":
    main(sys.argv[1:])
