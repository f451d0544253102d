"""Worker processes for symbolic comparison, seen from the calling process.

Workers are plain child processes started with their own interpreter, not forks: the caller's threads, torch state and
``__main__`` never reach them. A worker that dies or exceeds a limit is replaced; its pair gets a ``Reply`` with
``limit``.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import select
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import selfcorrect


@dataclass(frozen=True, slots=True)
class PairLimits:
    """Limits for one pair. CPU time decides; wall time is the backstop on a loaded machine."""

    cpu_s: float = 1.0
    wall_s: float = 4.0
    memory_bytes: int = 1 << 30


@dataclass(frozen=True, slots=True)
class Reply:
    """``equal`` is None when the pair used up its limits (``limit``) or the worker failed (``error``)."""

    equal: bool | None
    how: str = ""
    limit: str = ""
    error: str = ""


_START_TIMEOUT_S = 60.0
_LIMIT_SIGNALS = frozenset({signal.SIGPROF, signal.SIGXCPU})


class _Died(Exception):
    """The worker's pipe closed."""


class _Overran(Exception):
    """The worker did not reply within its wall time."""


def _environment() -> dict[str, str]:
    """Only what the interpreter needs: the worker sees none of the caller's other settings or secrets."""
    kept = {k: os.environ[k] for k in ("PATH", "LD_LIBRARY_PATH", "LANG", "SYSTEMROOT") if k in os.environ}
    root = str(Path(selfcorrect.__file__).resolve().parents[1])
    path = os.pathsep.join([root, *([os.environ["PYTHONPATH"]] if os.environ.get("PYTHONPATH") else [])])
    return {**kept, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "PYTHONHASHSEED": "0"}


class _Worker:
    """One child process. Not thread-safe: the pool lends it to one caller at a time."""

    def __init__(self, limits: PairLimits, *, preload: bool) -> None:
        self.limits = limits
        self.loaded = preload
        command = [sys.executable, "-P", "-m", "selfcorrect.verify.math.worker"]
        command += [str(limits.cpu_s), str(limits.memory_bytes), *(["preload"] if preload else [])]
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=_environment(),
            cwd="/",
            start_new_session=True,  # Ctrl-C is for the caller, who then closes the pool
            bufsize=0,
        )
        assert self.process.stdin is not None and self.process.stdout is not None
        self.requests, self.replies = self.process.stdin, self.process.stdout
        self.buffer = b""
        self.ready = False

    def _read_line(self, timeout_s: float) -> dict[str, Any]:
        deadline = time.monotonic() + timeout_s
        while b"\n" not in self.buffer:
            left = deadline - time.monotonic()
            if not select.select([self.replies], [], [], max(0.0, left))[0]:
                raise _Overran
            chunk = os.read(self.replies.fileno(), 65_536)
            if not chunk:
                raise _Died
            self.buffer += chunk
        line, _, self.buffer = self.buffer.partition(b"\n")
        reply: dict[str, Any] = json.loads(line)
        return reply

    def ask(self, gold: str, given: str, shortcut: bool) -> dict[str, Any]:
        self.wait_until_ready()
        request = json.dumps({"gold": gold, "given": given, "shortcut": shortcut}).encode() + b"\n"
        try:
            self.requests.write(request)
        except BrokenPipeError:
            raise _Died from None
        reply = self._read_line(self.limits.wall_s)
        if "loading" in reply:
            self._read_slowly()
            self.loaded = True
            reply = self._read_line(self.limits.wall_s)
        return reply

    def wait_until_ready(self) -> None:
        """Wait once for the interpreter and its first imports. Raises ``_Died`` if the process ended instead."""
        if not self.ready:
            self._read_slowly()
            self.ready = True

    def _read_slowly(self) -> None:
        """Wait for imports in the worker, which are not charged to any pair."""
        try:
            self._read_line(_START_TIMEOUT_S)
        except _Overran:
            raise _Died from None

    def stop(self, *, finished: bool = False) -> int:
        """Kill the process and reap it. A process that has ``finished`` by itself is only reaped, to get its own exit
        status.

        Returns:
            the exit status; negative for the signal that ended it.
        """
        try:
            self.process.wait(1.0 if finished else 0.0)
        except subprocess.TimeoutExpired:
            self.process.kill()
        status = self.process.wait()
        self.requests.close()
        self.replies.close()
        return status


class WorkerPool:
    """Up to ``size`` workers, started when first needed, replaced when they end. Thread-safe."""

    def __init__(self, size: int, limits: PairLimits | None = None) -> None:
        self.limits = limits or PairLimits()
        self.size = size
        self._idle: queue.LifoQueue[_Worker | None] = queue.LifoQueue()
        for _ in range(size):
            self._idle.put(None)
        self._alive: set[_Worker] = set()
        self._lock = threading.Lock()
        self._closed = False
        self._preload = False

    def compare(self, gold: str, given: str, *, shortcut: bool = True) -> Reply:
        """Ask a worker; blocks while all are busy. A pair is tried once more if its worker was killed from outside."""
        for _ in range(2):
            if (reply := self._compare_once(gold, given, shortcut)) is not None:
                return reply
        return Reply(None, error="the worker process died twice on this pair")

    def _compare_once(self, gold: str, given: str, shortcut: bool) -> Reply | None:  # noqa: PLR0911
        """Compare once. Returns a reply for every way in which a worker can end, or None if it was killed from
        outside."""
        worker = self._idle.get()
        try:
            if self._closed:
                return Reply(None, error="the grader is closed")
            worker = worker or self._start()
            raw = worker.ask(gold, given, shortcut)
            if "limit" in raw:
                worker, _ = self._replaced(worker)
                return Reply(None, limit=f"memory or depth limit ({raw['limit']})")
            if "error" in raw:
                return Reply(None, error=str(raw["error"]))
            return Reply(bool(raw["equal"]), how=str(raw["how"]))
        except _Overran:
            assert worker is not None
            worker, _ = self._replaced(worker)
            return Reply(None, limit=f"{self.limits.wall_s} s of wall time")
        except _Died:
            assert worker is not None
            worker, status = self._replaced(worker, finished=True)
            if -status in _LIMIT_SIGNALS:
                return Reply(None, limit=f"{self.limits.cpu_s} s of CPU time")
            return None
        except (OSError, ValueError) as fault:
            # No worker could be started, or its pipe was closed, or its reply is not JSON.
            worker = self._replaced(worker)[0] if worker is not None else None
            return Reply(None, error=f"cannot use a worker process: {fault}")
        finally:
            self._idle.put(worker)

    def _start(self) -> _Worker:
        worker = _Worker(self.limits, preload=self._preload)
        with self._lock:
            self._alive.add(worker)
        return worker

    def _replaced(self, worker: _Worker, *, finished: bool = False) -> tuple[_Worker | None, int]:
        """End a worker and start the next at once, so that the pair after this one does not wait for an interpreter.

        Returns:
            the new worker (None once the pool is closed) and the old one's exit status.
        """
        with self._lock:
            self._alive.discard(worker)
            # Where one pair needed math-verify, more will: the next worker has it before its first pair.
            self._preload = self._preload or worker.loaded
        status = worker.stop(finished=finished)
        try:
            return (None if self._closed else self._start()), status
        except OSError:
            # The next pair tries again, and reports it if it fails again.
            return None, status

    def warm_up(self) -> None:
        """Start every worker and wait for it, so that the first comparison does not wait for an interpreter."""
        taken: list[_Worker | None] = [self._idle.get() for _ in range(self.size)]
        try:
            for i, worker in enumerate(taken):
                taken[i] = worker or self._start()
            for worker in taken:
                assert worker is not None
                with contextlib.suppress(_Died):  # the first pair finds it gone, and reports a second death
                    worker.wait_until_ready()
        finally:
            for worker in taken:
                self._idle.put(worker)

    def close(self) -> None:
        """End all workers. Comparisons that are under way get an error."""
        self._closed = True
        with self._lock:
            alive, self._alive = self._alive, set()
        for worker in alive:
            worker.stop()
