"""Grades programs: text in, verdict out."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Literal, Self, get_args

from selfcorrect.errors import ConfigError, DataError
from selfcorrect.types import Grade, Verdict
from selfcorrect.verify.code.extract import MAX_CHARACTERS, Extracted, Form, extract
from selfcorrect.verify.code.inside.limits import ProgramLimits
from selfcorrect.verify.code.pool import JobReport, SandboxError, ZygotePool
from selfcorrect.verify.code.report import choose_protection
from selfcorrect.verify.code.tests_plan import TestPlan, plan_tests

Style = Literal["mbpp", "humaneval"]


@dataclass(frozen=True, slots=True)
class CodeRequest:
    """One program to grade."""

    style: Style
    tests: str | Sequence[str]
    """``mbpp``: set-up code and asserts, in order. ``humaneval``: code that defines ``check(candidate)``."""
    completion: str
    completion_form: Form = "text"
    """``code``: a whole program. ``body``: continues ``prompt``. ``text``: a model's answer that holds a program."""
    prompt: str = ""
    """For HumanEval the stub and what precedes it; for MBPP not used."""
    entry_point: str | None = None
    truncated: bool = False
    """True if a token cap cut the completion. A text without a whole program is then ``truncated``, not wrong."""


@dataclass(frozen=True, slots=True)
class CodeGrade(Grade):
    """A verdict on a program, with the time and memory that it took."""

    forgeable: bool = False
    """True if the tests ran in the program's process (because they need its classes), so that the program could forge a
    pass."""
    seconds: float = 0.0
    """Wall seconds, without waiting for a free sandbox."""
    cpu_s: float = 0.0
    """CPU seconds of the program."""
    memory_mb: float = 0.0
    """Peak resident memory of the program, MiB."""


@dataclass(frozen=True, slots=True)
class _Prepared:
    """A request that a sandbox has to decide."""

    plan: TestPlan
    found: Extracted
    message: dict[str, Any]
    truncated: bool


class CodeGrader:
    """A pool of sandboxes that grades programs. Thread-safe; use as a context manager."""

    def __init__(
        self,
        *,
        limits: ProgramLimits | None = None,
        workers: int | None = None,
        trust_forgeable: bool = False,
        accept_risk: str | None = None,
    ) -> None:
        """Check the machine. Sandboxes start with the first program, or in ``warm``.

        Args:
            limits: what one program may use.
            workers: sandboxes that run at once; by default two per core, since starting a program is mostly waiting.
            trust_forgeable: let a pass of tests that ran in the program's process count as ``correct``. Use it for
                evaluation and for checking references. By default such a pass is an ``error``: it earns no reward and
                enters no baseline.
            accept_risk: name of the risk (``RISK_NAME``), to run although the machine lacks protections.

        Raises:
            ConfigError: a limit makes no sense, or the machine is unsafe and the risk was not accepted.
        """
        self.limits = limits or ProgramLimits()
        if problems := self.limits.problems():
            raise ConfigError(f"The limits for programs make no sense: {'; '.join(problems)}.")
        if workers is not None and workers < 1:
            raise ConfigError(f"workers is {workers}, but at least one sandbox is needed.")
        protection = choose_protection(accept_risk)
        self.workers = workers or 2 * len(os.sched_getaffinity(0))
        self.trust_forgeable = trust_forgeable
        self._pool = ZygotePool(self.workers, protection)
        self._threads: ThreadPoolExecutor | None = None
        self._lock = threading.Lock()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def warm(self) -> None:
        """Start all sandboxes now rather than with the first programs.

        Raises:
            SandboxError: one did not start.
        """
        self._pool.warm()

    def close(self) -> None:
        """Wait for running programs and end all sandboxes."""
        with self._lock:
            threads, self._threads = self._threads, None
        if threads is not None:
            threads.shutdown(wait=True, cancel_futures=True)
        self._pool.close()

    def grade(self, request: CodeRequest) -> CodeGrade:
        """Grade one program. Raises nothing: a broken problem or a failed sandbox gives ``error`` with the reason."""
        prepared = self._prepare(request)
        if isinstance(prepared, CodeGrade):
            return prepared
        reason = ""
        for _ in range(2):  # a supervisor may have been killed from outside, so one failure is tried again
            start = time.perf_counter()
            try:
                report = self._pool.run(prepared.message, self.limits)
            except SandboxError as error:
                reason = str(error)
                continue
            if report.outcome is None or report.outcome.get("outcome") != "setup":
                return self._verdict(prepared, report, time.perf_counter() - start)
            reason = f"the sandbox could not confine the program: {report.outcome.get('detail')}"
        return CodeGrade(Verdict.ERROR, prepared.found.shown[0], reason)

    def grade_many(self, requests: Iterable[CodeRequest]) -> list[CodeGrade]:
        """Grade programs in parallel; verdicts come in the order of the requests."""
        return list(self._executor().map(self.grade, requests))

    async def grade_async(self, request: CodeRequest) -> CodeGrade:
        """Grade one program without blocking the event loop."""
        return await asyncio.get_running_loop().run_in_executor(self._executor(), self.grade, request)

    def _executor(self) -> ThreadPoolExecutor:
        with self._lock:  # after a close a late caller gets a new one, and then the verdict ``error``
            if self._threads is None:
                self._threads = ThreadPoolExecutor(self.workers, thread_name_prefix="code-grader")
            return self._threads

    def _prepare(self, request: CodeRequest) -> _Prepared | CodeGrade:
        """Read the tests and find the program. Returns a grade if one of these already decides it."""
        tests = (request.tests,) if isinstance(request.tests, str) else tuple(request.tests)
        if request.style not in get_args(Style):
            return CodeGrade(Verdict.ERROR, None, f"unknown style {request.style!r}; mbpp or humaneval")
        if request.completion_form not in get_args(Form):
            return CodeGrade(Verdict.ERROR, None, f"unknown form {request.completion_form!r}; code, body or text")
        try:
            plan = plan_tests(request.style, request.entry_point, tests)
        except DataError as error:
            return CodeGrade(Verdict.ERROR, None, str(error))
        if len(request.completion) > MAX_CHARACTERS:
            return CodeGrade(Verdict.WRONG, None, f"a completion of {len(request.completion)} characters is not graded")
        found = extract(request.completion_form, request.completion, request.prompt, request.entry_point, plan.names)
        if not found.alternatives:
            verdict = Verdict.TRUNCATED if request.truncated else Verdict.NO_ANSWER
            return CodeGrade(verdict, None, "no program in the text")
        message = {
            "style": request.style,
            "prompt": request.prompt.replace("\r\n", "\n") if request.style == "humaneval" else "",
            "names": plan.names,
            "entry_point": request.entry_point or "",
            "modules": plan.modules,
            "classes": plan.classes,
            "identity": plan.identity,
            "writes": plan.writes,
            "fallback": bool(plan.fallback),
            "tests": tests,
            "alternatives": found.alternatives,
        }
        return _Prepared(plan, found, message, request.truncated)

    def _verdict(self, job: _Prepared, report: JobReport, seconds: float) -> CodeGrade:
        verdict, detail = _judge(report, self.limits)
        outcome = report.outcome or {}
        if job.truncated and outcome.get("outcome") == "compile":
            verdict = Verdict.TRUNCATED
        forgeable = job.plan.fallback and f"ran in the program's process, since {job.plan.fallback}"
        if forgeable := forgeable or str(outcome.get("forgeable", "")):
            detail = f"{detail} [forgeable: {forgeable}]"
            if verdict is Verdict.CORRECT and not self.trust_forgeable:
                verdict, detail = Verdict.ERROR, f"not counted without trust_forgeable: {detail}"
        shown = job.found.shown[outcome.get("alternative", 0)]
        cost = seconds, report.program.cpu_s, report.program.memory_mb
        return CodeGrade(verdict, shown, detail, bool(forgeable), *cost)


_OUTCOMES = {
    "passed": (Verdict.CORRECT, ""),
    "failed": (Verdict.WRONG, ""),
    "compile": (Verdict.WRONG, "not a program: "),
    "load": (Verdict.WRONG, "the program failed before its tests: "),
    "gone": (Verdict.WRONG, ""),
    "unusable": (Verdict.ERROR, ""),
}
"""The verdict for each outcome that the judge reports, and the beginning of its detail."""


def _judge(report: JobReport, limits: ProgramLimits) -> tuple[Verdict, str]:
    """The verdict from the reports of both processes."""
    for part, who in ((report.program, "the program"), (report.tests, "the tests, on the program's answers,")):
        if part.killed == "idle":
            return Verdict.TIMEOUT, f"neither computed nor answered for {limits.idle_s:g} s"
        if part.killed == "wall":
            return Verdict.TIMEOUT, f"still running after {limits.wall_s:g} s of wall clock"
        # The measured time decides: a program that ends just over the limit is over it.
        if part.cpu_s > limits.cpu_s:
            return Verdict.TIMEOUT, f"{who} used up {limits.cpu_s:g} s of CPU time"
    if report.outcome is None:
        return Verdict.ERROR, f"the judge ended without a verdict (wait status {report.tests.status})"
    verdict, prefix = _OUTCOMES[report.outcome["outcome"]]
    detail = f"{prefix}{report.outcome['detail']}"
    if report.outcome["outcome"] == "gone" and report.program.signal not in (0, signal.SIGKILL):
        detail += f" (signal {signal.Signals(report.program.signal).name})"
    return verdict, detail
