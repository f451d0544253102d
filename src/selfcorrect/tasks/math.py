r"""MATH (Hendrycks et al. 2021) in the split of Lightman et al. 2023: 12,000 problems to train on, MATH-500 to measure.

Rows have ``problem`` and ``solution``; the gold answer is the field ``answer``, or the last box of the solution.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import Sequence

from selfcorrect.config.tasks import MathConfig
from selfcorrect.errors import DataError
from selfcorrect.tasks.base import Answer, Message, Split
from selfcorrect.tasks.jsonl import text_field
from selfcorrect.tasks.source import Hub, Row, Source, local
from selfcorrect.types import Grade, Problem
from selfcorrect.verify.math import answer_key
from selfcorrect.verify.math.extract import last_box
from selfcorrect.verify.math.grader import shared_grader

MATH_500 = Hub("HuggingFaceH4/MATH-500")
"""The default for measuring. For training there is none: docs/tasks.md says why."""

PROMPT = (
    "Solve the math problem below. Work it out step by step, and end with one line of the form\n"
    "Final answer: <answer>\n"
    "that holds the answer alone, written in LaTeX where it is not a plain number or word.\n\n"
    "Problem: {question}"
)
INSTRUCTION = (
    "There might be an error in your solution, caused by a lack of understanding of the problem. Go through it, "
    "correct the error if there is any, and write out the whole solution again. End with one line of the form\n"
    "Final answer: <answer>"
)

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_EMPTY_BOX = re.compile(r"\\boxed\s*\{\s*\}")


class Math:
    """MATH from local rows or from a data set on the Hub. Implements ``Task``, ``GradesTogether``, ``CountsAnswers``
    and ``LeavesOut``.

    Left out are rows whose gold answer is empty (two of the 12,000), and training problems that are also in the test
    split: a training file with all 12,500 problems gives the 12,000 that are not in MATH-500.

    Args:
        path: a directory or a file, see ``Source``, or the Hub id of a data set with both splits; None takes MATH-500
            from the Hub, which has no training split.
    """

    name = "math"

    def __init__(self, path: str | None = None) -> None:
        self.instruction = INSTRUCTION
        self.left_out: list[str] = []
        self._path = path
        self._splits: dict[Split, tuple[Problem, ...]] = {}

    def problems(self, split: Split) -> Sequence[Problem]:
        """See ``Task``; read once."""
        if split not in self._splits:
            source = self._source(split)
            one_file = source.path is not None and source.path.is_file()
            shared = one_file and source.has("test" if split == "train" else "train")
            # Training must not see test problems. Where the data has no test split, a run reports that itself.
            held_out: frozenset[str] = frozenset()
            if split == "train" and source.has("test"):
                # one file may have no test row; its other faults show when the training rows are read
                with contextlib.suppress(DataError) if shared else contextlib.nullcontext():
                    held_out = frozenset(p.question for p in self.problems("test"))

            def parse(identity: str, row: Row, where: str) -> Problem | None:
                problem, name = _problem(identity, row, where), row.get("split")
                if shared and name not in (None, split):
                    return problem  # the source leaves it out: it is of another split
                fault = ""
                if problem is None:
                    fault = f"{where}: an empty gold answer"
                elif problem.question in held_out and not (shared and name is None):  # else a hash keeps them apart
                    fault = f"{where}: a problem of the test split"
                if fault and fault not in self.left_out:  # one file is read once for each split
                    self.left_out.append(fault)
                return None if fault else problem

            self._splits[split] = source.load(split, parse)
        return self._splits[split]

    def first_messages(self, problem: Problem) -> list[Message]:
        """One user message; no system message, which some chat templates refuse."""
        return [{"role": "user", "content": PROMPT.format(question=problem.question)}]

    def reference_answer(self, problem: Problem) -> str:
        """The gold solution, then the final line."""
        return f"{problem.meta['solution']}\nFinal answer: {problem.answer}"

    def grade(self, problem: Problem, text: str, *, truncated: bool) -> Grade:
        """By value, see docs/verify-math.md."""
        return shared_grader().grade(problem.answer, text, truncated=truncated)

    async def grade_together(self, problem: Problem, answers: Sequence[Answer]) -> list[Grade]:
        """See ``GradesTogether``: comparisons that need a worker share the workers."""
        gold, grader = problem.answer, shared_grader()
        return list(await asyncio.gather(*(grader.grade_async(gold, a.text, truncated=a.truncated) for a in answers)))

    def answer_key(self, answer: str) -> str:
        """See ``CountsAnswers``: by value if there is an exact one."""
        return answer_key(answer)

    def _source(self, split: Split) -> Source:
        path, hub = local(self._path), MATH_500 if self._path is None and split == "test" else None
        if self._path is not None and path is not None and not path.exists() and _HUB_ID.fullmatch(self._path):
            path, hub = None, Hub(self._path, named_by_user=True)
        return Source("math", path, hub, fields="problem, solution, answer")


def _problem(identity: str, row: Row, where: str) -> Problem | None:
    """The problem of a row; None if its gold answer is empty.

    Raises:
        DataError: a field is missing, or the row contains no answer.
    """
    question, solution = (text_field(row, field, where).strip() for field in ("problem", "solution"))
    answer = row.get("answer", _boxed(solution))
    if answer is None:
        raise DataError(
            f"{where} has no gold answer: neither a field 'answer' nor a \\boxed{{...}} in its solution; add one, or "
            "drop that row"
        )
    if not isinstance(answer, str):
        raise DataError(f"{where} has a field 'answer' that is not a text; write it as a string, in LaTeX")
    if not answer.strip():
        return None
    level = re.search(r"\d+", str(row.get("level")))
    meta = {"solution": solution, "unique_id": row.get("unique_id"), "subject": row.get("subject") or row.get("type")}
    return Problem(identity, question, answer.strip(), f"level {level[0]}" if level else None, meta)


def _boxed(solution: str) -> str | None:
    """The content of the last box; None without one."""
    if _EMPTY_BOX.match(solution, max(0, solution.rfind("\\boxed"))):
        return ""
    box = last_box(solution)
    return None if box is None else box.content


def make(config: MathConfig) -> Math:
    return Math(config.path)
