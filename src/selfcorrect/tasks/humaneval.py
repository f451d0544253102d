"""HumanEval (Chen et al. 2021): functions to complete from signature and docstring. For measuring only.

The prompt has no examples and no tests; only the verifier reads the tests.
"""

from __future__ import annotations

from collections.abc import Sequence

from selfcorrect.config.tasks import HumanEvalConfig
from selfcorrect.errors import ConfigError
from selfcorrect.tasks.base import Answer, Message, Split
from selfcorrect.tasks.jsonl import text_field
from selfcorrect.tasks.programs import ProgramTask
from selfcorrect.tasks.source import Hub, Row, Source, local
from selfcorrect.types import Problem
from selfcorrect.verify.code import CodeRequest

HUB = Hub("openai/openai_humaneval")

PROMPT = (
    "Complete the Python function below. Answer with one Python code block that holds the whole function, with the "
    "imports that it needs.\n\n```python\n{prompt}\n```"
)
INSTRUCTION = (
    "There might be an error in the function above, caused by a lack of understanding of what it should do. Go through "
    "it, correct the error if there is any, and write out the whole function again, in one Python code block."
)


class HumanEval(ProgramTask):
    """HumanEval from local rows (a directory with ``test.jsonl``, or one file) or from the Hub. Implements ``Task``."""

    name = "humaneval"
    splits = ("test",)

    def __init__(self, config: HumanEvalConfig) -> None:
        super().__init__(config.accept_risk)
        self.instruction = INSTRUCTION
        fields = "task_id, prompt, entry_point, canonical_solution, test"
        self._source = Source("humaneval", local(config.path), HUB, ("test",), fields)

    def problems(self, split: Split) -> Sequence[Problem]:
        """All problems, in the order of the data set; read once.

        Raises:
            ConfigError: there is no training split.
            DataError: the data is missing, empty or malformed (with file and line), or the Hub cannot be reached.
        """
        if split == "train":
            raise ConfigError(
                "humaneval has no training split: its 164 problems are for measuring only, and training on them would "
                "make every later figure worthless; train on mbpp, then measure with `selfcorrect eval MODEL task=humaneval`"
            )
        return self._source.load("test", _problem)

    def first_messages(self, problem: Problem) -> list[Message]:
        """One user message with the stub; no tests."""
        return [{"role": "user", "content": PROMPT.format(prompt=problem.question.rstrip())}]

    def reference_answer(self, problem: Problem) -> str:
        """The whole function in a code block."""
        return f"```python\n{problem.question}{problem.meta['solution']}\n```"

    def request(self, problem: Problem, answer: Answer) -> CodeRequest:
        """The request to grade the function in the text. Imports and definitions of the stub stay available."""
        stub, entry = problem.question, problem.meta["entry_point"]
        return CodeRequest("humaneval", problem.answer, answer.text, "text", stub, entry, truncated=answer.truncated)


def _problem(_identity: str, row: Row, where: str) -> Problem:
    name, prompt, entry, tests = (text_field(row, f, where) for f in ("task_id", "prompt", "entry_point", "test"))
    meta = {"entry_point": entry, "solution": text_field(row, "canonical_solution", where)}
    return Problem(name, prompt, tests, meta=meta)


make = HumanEval
