"""The grader: batches, cache, threads, asyncio, failures of its own."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from selfcorrect.types import Verdict
from selfcorrect.verify.math import MathCase, MathGrader, grade_math
from selfcorrect.verify.math import grader as grader_module
from selfcorrect.verify.math.pool import Reply, WorkerPool


def symbolic(n: int) -> tuple[str, str]:
    return f"x^2 - {n * n}", f"(x - {n})(x + {n if n % 2 else n + 1})"


def test_a_batch_keeps_its_order() -> None:
    cases: list[MathCase | tuple[str, str]] = []
    for n in range(1, 31):
        gold, answer = symbolic(n)
        cases += [MathCase(gold, answer, bare=True), (str(n), f"Final answer: {n}"), (str(n), f"Final answer: {n + 1}")]
    with MathGrader(workers=2) as grader:
        verdicts = [g.verdict for g in grader.grade_many(cases)]
        again = [g.verdict for g in grader.grade_many(cases)]
    right, wrong = Verdict.CORRECT, Verdict.WRONG
    expected = [v for n in range(1, 31) for v in (right if n % 2 else wrong, right, wrong)]
    assert verdicts == expected == again


def test_the_cache_answers_without_a_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    with MathGrader(workers=1) as grader:
        first = grader.grade(*symbolic(3), bare=True)
        monkeypatch.setattr(WorkerPool, "compare", lambda *a, **k: pytest.fail("asked a worker"))
        second = grader.grade(*symbolic(3), bare=True)
    assert first == second and first.verdict is Verdict.CORRECT


def test_async_and_threads_agree_with_the_plain_call() -> None:
    async def run(grader: MathGrader) -> list[Verdict]:
        grades = await asyncio.gather(*(grader.grade_async(*symbolic(n), bare=True) for n in range(1, 21)))
        return [g.verdict for g in grades]

    expected = [Verdict.CORRECT if n % 2 else Verdict.WRONG for n in range(1, 21)]
    with MathGrader(workers=2) as grader:
        assert asyncio.run(run(grader)) == expected
    with MathGrader(workers=2) as grader, ThreadPoolExecutor(8) as threads:
        grades = threads.map(lambda n: grader.grade(*symbolic(n), bare=True), range(1, 21))
        assert [g.verdict for g in grades] == expected


def test_a_worker_killed_from_outside_is_replaced_and_the_pair_tried_again() -> None:
    pool = WorkerPool(1)
    try:
        assert pool.compare("x^2-1", "(x-1)(x+1)").equal is True
        (worker,) = pool._alive
        os.kill(worker.process.pid, signal.SIGKILL)
        assert pool.compare("x^2-4", "(x-2)(x+2)").equal is True
    finally:
        pool.close()


def test_our_own_failure_is_an_error_and_is_not_cached(monkeypatch: pytest.MonkeyPatch) -> None:
    with MathGrader(workers=1) as grader:
        monkeypatch.setattr(WorkerPool, "compare", lambda *a, **k: Reply(None, error="broken"))
        assert grader.grade(*symbolic(3), bare=True).verdict is Verdict.ERROR
        monkeypatch.undo()
        assert grader.grade(*symbolic(3), bare=True).verdict is Verdict.CORRECT

        def explode(*args: object, **kwargs: object) -> None:
            raise RuntimeError("a bug of ours")

        monkeypatch.setattr(grader_module, "decide", explode)
        grade = grader.grade("1", "Final answer: 2")
        assert grade.verdict is Verdict.ERROR and "a bug of ours" in grade.detail


def test_workers_that_cannot_start_give_errors_not_exceptions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.executable", "/nonexistent/python")
    with MathGrader(workers=1) as grader:
        assert grader.grade(*symbolic(3), bare=True).verdict is Verdict.ERROR
        assert grader.grade("5", "Final answer: 5").verdict is Verdict.CORRECT


def test_a_closed_grader_gives_errors() -> None:
    grader = MathGrader(workers=1)
    grader.close()
    assert grader.grade(*symbolic(3), bare=True).verdict is Verdict.ERROR


def test_the_module_entry_and_its_detail() -> None:
    grade = grade_math(r"\frac{1}{2}", "so\nFinal answer: 0.5")
    assert (grade.verdict, grade.extracted) == (Verdict.CORRECT, "0.5")
    assert grade.detail == "final answer line: compared by value"


def test_workers_see_nothing_of_the_callers_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("A_SECRET", "hunter2")
    pool = WorkerPool(1)
    try:
        pool.warm_up()
        pool.compare("x", "x+1-1")
        (worker,) = pool._alive
        with open(f"/proc/{worker.process.pid}/environ", "rb") as environment:
            assert b"hunter2" not in environment.read()
    finally:
        pool.close()


def test_closing_while_workers_are_busy_gives_verdicts_not_exceptions() -> None:
    grader = MathGrader(workers=2)
    grader.warm_up()
    with ThreadPoolExecutor(4) as threads:
        slow = [
            threads.submit(grader.grade, r"\sum_{k=0}^{n} k", rf"\prod_{{k=1}}^{{{n}0000000}} k", bare=True)
            for n in range(1, 5)
        ]
        time.sleep(0.3)
        grader.close()
        assert {f.result().verdict for f in slow} <= {Verdict.ERROR, Verdict.TIMEOUT, Verdict.WRONG}
