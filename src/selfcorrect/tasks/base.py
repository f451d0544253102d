"""What a task is: data, prompts, a correction instruction, a verdict. About 100 lines each."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, TypedDict, runtime_checkable

from selfcorrect.types import Grade, Problem

Split = Literal["train", "test"]
"""The two splits that the rest of the package uses: problems to train on, and problems to measure on (``test``,
whichever split of the data set the task takes for it)."""


class Message(TypedDict):
    role: Literal["system", "user", "assistant"]
    content: str


class Task(Protocol):
    """Everything the rest of the package needs of a task. A user's own task implements these six members."""

    name: str
    instruction: str
    """Correction instruction between attempts (p1 of the paper). Fixed; never says whether the answer was right."""

    def problems(self, split: Split) -> Sequence[Problem]:
        """All problems of a split, in the fixed order of the data set.

        Raises:
            DataError: the data is missing, empty or malformed (with file and line), or the Hub cannot be reached.
        """
        ...

    def first_messages(self, problem: Problem) -> list[Message]:
        """The conversation up to the model's first answer."""
        ...

    def reference_answer(self, problem: Problem) -> str:
        """A correct answer in the form that the prompt requests; the token cap is checked against its length before a run."""
        ...

    def grade(self, problem: Problem, text: str, *, truncated: bool) -> Grade:
        """Verdict on one attempt. ``truncated`` says that the token cap cut the text. Pure and deterministic."""
        ...


@dataclass(frozen=True, slots=True)
class Answer:
    """One text to grade."""

    text: str
    truncated: bool = False
    """The token cap cut it."""


@runtime_checkable
class GradesTogether(Protocol):
    """A task whose verifier does better with many answers at once (programs in parallel sandboxes)."""

    async def grade_together(self, problem: Problem, answers: Sequence[Answer]) -> list[Grade]:
        """Verdicts in the order of the answers; each equals that of ``Task.grade``."""
        ...


async def grade_answers(task: Task, problem: Problem, answers: Sequence[Answer]) -> list[Grade]:
    """Verdicts on several answers to one problem, all at once if the task can do that."""
    if isinstance(task, GradesTogether):
        return await task.grade_together(problem, answers)
    return [task.grade(problem, a.text, truncated=a.truncated) for a in answers]


@runtime_checkable
class GetsReady(Protocol):
    """A task that checks its machine, or has to know what its verdicts are used for, before anything expensive."""

    def get_ready(self, *, training: bool) -> None:
        """Called once before a model loads.

        Args:
            training: whether verdicts on training problems will be rewards of the policy that writes the answers.

        Raises:
            ConfigError: the machine or the task cannot do this.
        """
        ...


@runtime_checkable
class GivesFirst(Protocol):
    """A task with stored first attempts, which are given to the policy instead of sampled from it.

    An evaluation then measures attempt 2 onwards; attempt 1 has a verdict, but no log-probs and no weight.
    """

    def first_answers(self, problem: Problem) -> Sequence[str]:
        """Stored first answers to a problem, as the policy would have written them; at least one.

        Sample g of a problem starts from stored answer g modulo their number.
        """
        ...


@runtime_checkable
class CountsAnswers(Protocol):
    """A task that can say which answers are the same, so that a majority vote can count them."""

    def answer_key(self, answer: str) -> str:
        """A key that is equal for answers that the verifier treats as the same; ``answer`` is the ``extracted`` of a
        grade."""
        ...


@runtime_checkable
class LeavesOut(Protocol):
    """A task that has to leave out rows of its data, and lists them."""

    left_out: list[str]
    """One line per row (which one, why) of the splits read so far."""


@runtime_checkable
class Demonstrates(Protocol):
    """A task that can show its answer format, for a warm-up before any reinforcement learning."""

    def demonstrations(self, seed: int) -> Iterator[tuple[Problem, tuple[str, ...]]]:
        """An endless seeded stream of problems with the texts of consecutive attempts.

        The problems are in neither the training split nor the test split.
        """
        ...


@runtime_checkable
class ChecksItself(Protocol):
    """A task whose answers contain a check of themselves. The verdict does not depend on that check."""

    def check_is_sound(self, problem: Problem, text: str) -> bool | None:
        """Whether the check in an answer is true. A check that rightly finds the answer wrong is true.

        None where the text has no check that can be read.
        """
        ...
