"""Does a task's verifier accept the task's own reference answers? A gold answer it rejects can never earn reward.

Also checks demonstrations: right ones must be judged right, wrong ones wrong, and their checks must be sound.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, cast, get_args

from selfcorrect.errors import ConfigError, SelfCorrectError
from selfcorrect.tasks.base import Answer, ChecksItself, Demonstrates, Split, Task, grade_answers
from selfcorrect.tasks.procedural import Procedural
from selfcorrect.types import Grade, Problem, Verdict

AT_ONCE = 256
"""Problems graded together: enough to keep a task's pool of workers busy."""
DEMONSTRATIONS = "demonstrations"
"""Name of the demonstrations in place of a split, for tasks that have them."""
DEMONSTRATED = 500
"""Number of demonstrations that are judged; the stream is endless."""


@dataclass(frozen=True, slots=True)
class Rejected:
    """A reference answer that did not get the verdict ``correct``, or a faulty demonstration."""

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
    rejected: int = 0
    """References that failed, or demonstrated answers with a fault."""
    checks: Counter[bool | None] = field(default_factory=Counter)
    """Counts of demonstrated answers by whether their check is sound; None stands for answers without a check."""

    @property
    def problems(self) -> int:
        """Number of references, or of demonstrated answers."""
        return self.verdicts.total()

    @property
    def passed(self) -> bool:
        return not self.unreadable and not self.rejected

    def to_json(self) -> dict[str, Any]:
        return {
            "split": self.split,
            "problems": self.problems,
            "rejected": self.rejected,
            "verdicts": {v.value: self.verdicts[v] for v in Verdict if self.verdicts[v]},
            **({"sound_checks": self.checks[True]} if self.checks.total() else {}),
            "unreadable": self.unreadable or None,
            "seconds": round(self.seconds, 3),
        }


def splits_of(task: Task) -> tuple[str, ...]:
    """The splits in the task's attribute ``splits``, else those of the task contract."""
    own: Sequence[str] | None = getattr(task, "splits", None)
    return tuple(own) if own else get_args(Split)


def validate(
    task: Task, wanted: Sequence[str] = (), on_rejected: Callable[[Rejected], object] = lambda _found: None
) -> list[SplitReport]:
    """Grade the reference answer of every problem, and the first demonstrations.

    Args:
        task: gives the problems, the references and the verdicts.
        wanted: splits, ``demonstrations`` among them; none means all that the task has.
        on_rejected: called with every answer that fails, in the order of the problems.

    Raises:
        ConfigError: the task has no such split.
        SelfCorrectError: no split can be read; gives the reason for the first.
    """
    known = (*splits_of(task), *([DEMONSTRATIONS] if isinstance(task, Demonstrates) else []))
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
        if isinstance(task, Demonstrates) and split == DEMONSTRATIONS:
            for found in _faulty_demonstrations(task, report):
                report.rejected += 1
                on_rejected(found)
            report.seconds = time.perf_counter() - start
            reports.append(report)
            continue
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
                    report.rejected += 1
                    on_rejected(Rejected(split, problem.id, grade))
        report.seconds = time.perf_counter() - start
        reports.append(report)
    if len(faults) == len(reports):
        raise faults[0]
    return reports


def _faulty_demonstrations(task: Task, report: SplitReport) -> Iterator[Rejected]:
    """Judge demonstrated answers and count them in the report. If the task is written by hand, it is not known which
    are meant to be right."""
    assert isinstance(task, Demonstrates)
    try:
        for problem, attempts in itertools.islice(_labelled(task), DEMONSTRATED):
            for right, text in attempts:
                grade = task.grade(problem, text, truncated=False)
                sound = task.check_is_sound(problem, text) if isinstance(task, ChecksItself) else None
                report.verdicts[grade.verdict] += 1
                report.checks[sound] += 1
                meant = {True: (Verdict.CORRECT,), False: (Verdict.WRONG,), None: (Verdict.CORRECT, Verdict.WRONG)}[
                    right
                ]
                if grade.verdict not in meant:
                    claim = {True: "a right answer, ", False: "an honest wrong try, ", None: ""}[right]
                    detail = f"demonstrated as {claim}{text!r}; {grade.detail}"
                    yield Rejected(DEMONSTRATIONS, problem.id, replace(grade, detail=detail))
                elif sound is False:
                    detail = f"the check in the demonstrated {text!r} is not sound"
                    yield Rejected(DEMONSTRATIONS, problem.id, replace(grade, detail=detail))
    except Exception as fault:  # noqa: BLE001  # a task may be a user's own
        report.verdicts[Verdict.ERROR] += 1
        grade = Grade(Verdict.ERROR, None, f"{type(fault).__name__}: {fault}")
        yield Rejected(DEMONSTRATIONS, f"number {report.problems}", grade)


def _labelled(task: Demonstrates) -> Iterator[tuple[Problem, Sequence[tuple[bool | None, str]]]]:
    if isinstance(task, Procedural):
        yield from task.labelled_demonstrations(0)
    else:
        yield from ((problem, [(None, text) for text in texts]) for problem, texts in task.demonstrations(0))


async def _grade(task: Task, problem: Problem) -> Grade:
    try:
        (grade,) = await grade_answers(task, problem, [Answer(task.reference_answer(problem))])
    except Exception as fault:  # noqa: BLE001  # a task may be a user's own; one bad row must not hide the others
        return Grade(Verdict.ERROR, None, f"{type(fault).__name__}: {fault}")
    return grade
