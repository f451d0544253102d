"""Common parts of the tasks whose answers are programs: which grader judges, and which tests it trusts."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Sequence

from selfcorrect.tasks.base import Answer
from selfcorrect.tasks.graders import code_grader
from selfcorrect.types import Grade, Problem
from selfcorrect.verify.code import CodeGrader, CodeRequest


class ProgramTask(ABC):
    """Verdicts by sandboxed tests. Implements ``grade``, ``GradesTogether`` and ``GetsReady``.

    Tests that have to run in the program's process (forgeable, see ``docs/sandbox.md``) count in measurements and when
    references are checked. In a training run a pass of such tests on a training problem is ``error``: it earns no
    reward.
    """

    def __init__(self, accept_risk: str | None) -> None:
        self._accept_risk = accept_risk
        self._training = False

    def get_ready(self, *, training: bool) -> None:
        """Check the machine, and remember what the verdicts are used for.

        Raises:
            ConfigError: the machine is unsafe for untrusted programs and the risk was not accepted.
        """
        self._training = training
        code_grader(True, self._accept_risk)

    @abstractmethod
    def request(self, problem: Problem, answer: Answer) -> CodeRequest:
        """The request to the grader."""

    def grade(self, problem: Problem, text: str, *, truncated: bool) -> Grade:
        """Run the program in the text against the problem's tests."""
        return self._grader(problem).grade(self.request(problem, Answer(text, truncated)))

    async def grade_together(self, problem: Problem, answers: Sequence[Answer]) -> list[Grade]:
        """See ``GradesTogether``: as many programs at once as there are sandboxes."""
        grader = self._grader(problem)
        return list(await asyncio.gather(*(grader.grade_async(self.request(problem, a)) for a in answers)))

    def _grader(self, problem: Problem) -> CodeGrader:
        for_reward = self._training and problem.meta.get("split") == "train"
        return code_grader(not for_reward, self._accept_risk)
