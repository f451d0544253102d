"""Does a task's verifier accept the task's own reference answers? A gold answer it rejects can never earn reward."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, cast, get_args

from selfcorrect.errors import ConfigError, SelfCorrectError
from selfcorrect.tasks.base import Answer, Split, Task, grade_answers
from selfcorrect.types import Grade, Problem, Verdict

AT_ONCE = 256
"""Problems graded together: enough to keep a task's pool of workers busy."""


@dataclass(frozen=True, slots=True)
class Rejected:
    """A reference answer that did not get the verdict ``correct``."""

    split: str
    problem_id: str
    grade: Grade


@dataclass(slots=True)
class SplitReport:
    """The verdicts on one split."""

    split: str
    verdicts: Counter[Verdict] = field(default_factory=Counter)
    unreadable: str = ""
    """Why the problems of the split cannot be read; empty where they can."""
    seconds: float = 0.0

    @property
    def problems(self) -> int:
        return self.verdicts.total()

    @property
    def rejected(self) -> int:
        return self.problems - self.verdicts[Verdict.CORRECT]

    @property
    def passed(self) -> bool:
        return not self.unreadable and not self.rejected

    def to_json(self) -> dict[str, Any]:
        return {
            "split": self.split,
            "problems": self.problems,
            "verdicts": {v.value: self.verdicts[v] for v in Verdict if self.verdicts[v]},
            "unreadable": self.unreadable or None,
            "seconds": round(self.seconds, 3),
        }


def splits_of(task: Task) -> tuple[str, ...]:
    """The splits that a task says it has (its attribute ``splits``), else those of the task contract."""
    own: Sequence[str] | None = getattr(task, "splits", None)
    return tuple(own) if own else get_args(Split)


def validate(
    task: Task, wanted: Sequence[str] = (), on_rejected: Callable[[Rejected], object] = lambda _found: None
) -> list[SplitReport]:
    """Grade the reference answer of every problem.

    Args:
        task: gives the problems, the references and the verdicts.
        wanted: splits; none means all that the task has.
        on_rejected: called with every reference that fails, in the order of the problems.

    Raises:
        ConfigError: a wanted split is none of the task's.
        SelfCorrectError: no split can be read; the first one's reason.
    """
    known = splits_of(task)
    if unknown := [s for s in wanted if s not in known]:
        raise ConfigError(
            f"{unknown[0]!r} is neither a setting key=value nor a split of task {task.name}; its splits: {', '.join(known)}"
        )
    return asyncio.run(_validate(task, wanted or known, on_rejected))


async def _validate(task: Task, splits: Sequence[str], on_rejected: Callable[[Rejected], object]) -> list[SplitReport]:
    reports: list[SplitReport] = []
    faults: list[SelfCorrectError] = []
    for split in splits:
        report, start = SplitReport(split), time.perf_counter()
        try:
            problems = task.problems(cast("Split", split))
        except SelfCorrectError as fault:
            faults.append(fault)
            report.unreadable = str(fault)
            problems = ()
        for first in range(0, len(problems), AT_ONCE):
            chunk = problems[first : first + AT_ONCE]
            for problem, grade in zip(chunk, await asyncio.gather(*(_grade(task, p) for p in chunk)), strict=True):
                report.verdicts[grade.verdict] += 1
                if grade.verdict is not Verdict.CORRECT:
                    on_rejected(Rejected(split, problem.id, grade))
        report.seconds = time.perf_counter() - start
        reports.append(report)
    if len(faults) == len(reports):
        raise faults[0]
    return reports


async def _grade(task: Task, problem: Problem) -> Grade:
    try:
        (grade,) = await grade_answers(task, problem, [Answer(task.reference_answer(problem))])
    except Exception as fault:  # noqa: BLE001  # a task may be a user's own; one bad row must not hide the others
        return Grade(Verdict.ERROR, None, f"{type(fault).__name__}: {fault}")
    return grade
