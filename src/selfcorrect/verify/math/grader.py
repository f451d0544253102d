"""Grades answers: extraction, then comparison in this process, then in a worker if needed."""

from __future__ import annotations

import asyncio
import atexit
import functools
import os
import threading
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Self

from selfcorrect.types import Grade, Verdict
from selfcorrect.verify.math.decide import decide
from selfcorrect.verify.math.extract import Found, bare_answer, find_answer, last_box
from selfcorrect.verify.math.pool import PairLimits, WorkerPool

_CACHE_SIZE = 50_000
_MAX_CACHED_CHARS = 1_000
"""Most characters of a pair in the cache. Longer pairs are compared every time."""


@dataclass(frozen=True, slots=True)
class MathCase:
    """One gold answer with the text to grade."""

    gold: str
    text: str
    bare: bool = False
    """The text is the answer itself: nothing is searched for, except a box around it."""
    truncated: bool = False
    """The token cap cut the text: only an explicit answer in it counts."""


def extract_answer(text: str) -> str | None:
    """The answer in a response as written, or None. The rules are in ``extract``."""
    found = find_answer(text)
    return None if found is None else found.answer


def clean_gold(gold: str) -> str:
    """A gold answer without what surrounds it in data sets: a box in a solution, or ``####`` in GSM8K."""
    box = last_box(gold)
    return gold.rpartition("####")[2].strip() if box is None else box.content


class MathGrader:
    """Grades math answers. Symbolic work runs in a pool of worker processes, everything else in the caller.

    Thread-safe. Use as a context manager, or call ``close``. The same input gets the same verdict; verdicts that depend
    on the machine (``timeout``, ``error``) are not cached.

    Args:
        workers: worker processes; default the number of CPUs, at most 4.
        fallbacks: whether rule 2 of ``extract`` applies. If not, only explicit answers are graded.
        limits: what one symbolic comparison may cost.
        shortcut: accept equal strings without parsing them. It is off only to test the rest.
    """

    def __init__(
        self,
        *,
        workers: int | None = None,
        fallbacks: bool = True,
        limits: PairLimits | None = None,
        shortcut: bool = True,
    ) -> None:
        self.workers = workers or min(4, os.cpu_count() or 1)
        self.fallbacks = fallbacks
        self.shortcut = shortcut
        self._pool = WorkerPool(self.workers, limits)
        self._threads = ThreadPoolExecutor(self.workers, thread_name_prefix="math-grader")
        self._known: dict[tuple[str, str], tuple[Verdict, str]] = {}
        """Verdict and reason per (gold answer, answer)."""
        self._lock = threading.Lock()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the workers. Later gradings that need one give ``error``."""
        self._pool.close()
        self._threads.shutdown(wait=True, cancel_futures=True)

    def warm_up(self) -> None:
        """Start the workers now rather than at the first symbolic pair."""
        self._pool.warm_up()

    def grade(self, gold: str, text: str, *, bare: bool = False, truncated: bool = False) -> Grade:
        """Grade one text; blocks while a worker compares."""
        case = MathCase(gold, text, bare, truncated)
        ready = self._grade_here(case)
        return ready if isinstance(ready, Grade) else self._grade_in_worker(case.gold, ready)

    async def grade_async(self, gold: str, text: str, *, bare: bool = False, truncated: bool = False) -> Grade:
        """Like ``grade``, without blocking the event loop on a worker."""
        case = MathCase(gold, text, bare, truncated)
        ready = self._grade_here(case)
        if isinstance(ready, Grade):
            return ready
        return await asyncio.wrap_future(self._threads.submit(self._grade_in_worker, case.gold, ready))

    def grade_many(self, cases: Sequence[MathCase | tuple[str, str]]) -> list[Grade]:
        """Grade a batch on all workers. Result i belongs to case i, and a bad pair affects no other verdict."""
        out: list[Grade | Future[Grade]] = []
        pending: dict[tuple[str, Found], Future[Grade]] = {}
        for row in cases:
            case = row if isinstance(row, MathCase) else MathCase(*row)
            ready = self._grade_here(case)
            if isinstance(ready, Grade):
                out.append(ready)
                continue
            pair = (case.gold, ready)
            if pair not in pending:
                pending[pair] = self._threads.submit(self._grade_in_worker, *pair)
            out.append(pending[pair])
        return [g if isinstance(g, Grade) else g.result() for g in out]

    def _grade_here(self, case: MathCase) -> Grade | Found:  # one return per verdict
        """The grade, or the found answer if a worker has to compare it."""
        try:
            if not clean_gold(case.gold):
                return Grade(Verdict.ERROR, None, "the gold answer is empty")
            fallbacks = self.fallbacks and not case.truncated
            found = bare_answer(case.text) if case.bare else find_answer(case.text, fallbacks=fallbacks)
            if found is None and case.truncated:
                return Grade(Verdict.TRUNCATED, None, "cut by the token cap before an answer")
            if found is None:
                return Grade(Verdict.NO_ANSWER, None, "no answer found")
            if known := self._known.get((case.gold, found.answer)):
                return Grade(known[0], found.answer, f"{found.rule}: {known[1]}")
            decision = decide(clean_gold(case.gold), found.answer, shortcut=self.shortcut)
        except Exception as fault:  # noqa: BLE001  # the grader's edge: our own fault must not end a training run
            return Grade(Verdict.ERROR, None, f"verifier failure: {type(fault).__name__}: {fault}")
        return found if decision.equal is None else self._settled(case.gold, found, decision.equal, decision.how)

    def _grade_in_worker(self, gold: str, found: Found) -> Grade:
        reply = self._pool.compare(clean_gold(gold), found.answer, shortcut=self.shortcut)
        if reply.equal is not None:
            return self._settled(gold, found, reply.equal, reply.how)
        if reply.limit:
            return Grade(Verdict.TIMEOUT, found.answer, f"{found.rule}: comparison used up {reply.limit}")
        return Grade(Verdict.ERROR, found.answer, f"{found.rule}: verifier failure: {reply.error}")

    def _settled(self, gold: str, found: Found, equal: bool, how: str) -> Grade:
        """Cache and return a grade that depends only on the pair. When the cache is full, the oldest pair is
        dropped."""
        verdict = Verdict.CORRECT if equal else Verdict.WRONG
        if len(gold) + len(found.answer) <= _MAX_CACHED_CHARS:
            with self._lock:
                self._known[gold, found.answer] = verdict, how
                if len(self._known) > _CACHE_SIZE:
                    del self._known[next(iter(self._known))]
        return Grade(verdict, found.answer, f"{found.rule}: {how}")


def shared_grader() -> MathGrader:
    """The grader that all callers in this process share. It starts when first used and ends with the process."""
    return _grader_of(os.getpid())  # a forked child must not talk to its parent's workers


@functools.cache
def _grader_of(_process: int) -> MathGrader:
    grader = MathGrader()
    atexit.register(grader.close)
    return grader


def grade_math(gold: str, text: str, *, bare: bool = False, truncated: bool = False) -> Grade:
    """Grade one text against a gold answer with the shared grader.

    Args:
        gold: the gold answer; with or without dollar signs, in a box, or after ``####``.
        text: a response to search for its answer, or with ``bare`` the answer itself.
        truncated: the token cap cut the text.
    """
    return shared_grader().grade(gold, text, bare=bare, truncated=truncated)
