"""A task of your own: JSONL rows, and a verifier that is built in or named by import path. See docs/your-own-task.md."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

from selfcorrect.config.tasks import OwnConfig
from selfcorrect.errors import ConfigError, DataError
from selfcorrect.tasks.base import Answer, Message, Split
from selfcorrect.tasks.gsm8k import final_line, grade_number, number_key, parse_number
from selfcorrect.tasks.jsonl import text_field
from selfcorrect.tasks.programs import ProgramTask
from selfcorrect.tasks.source import Row, Source, local
from selfcorrect.tasks.user_code import import_callable, judged
from selfcorrect.types import Grade, Problem, Verdict
from selfcorrect.verify.code import CodeRequest, plan_tests
from selfcorrect.verify.math import answer_key
from selfcorrect.verify.math.extract import final_clause
from selfcorrect.verify.math.grader import shared_grader
from selfcorrect.verify.turns import own_text

INSTRUCTION = (
    "There might be an error in your answer above, caused by a lack of understanding of the question. Go through it, "
    "correct the error if there is any, and write out the whole answer again, in the same form."
)
SLOT = "{question}"
_SAID = re.compile(r"(?im)^[^\w\n]{0,20}?(?P<mark>[*_`]{0,3})final answer[*_`]{0,3}:(?P<said>[^\n]*)")
_HEAD_MARKS = re.compile(r"\A[*_`]{1,3}(?=\s)")
"""After the colon of **Final answer:** 4."""

Verify = Callable[[str, str, str, Mapping[str, Any]], Any]
"""A user's verifier: ``verify(question, answer, text, meta) -> bool | Verdict | Grade``."""
Grader = Callable[[Problem, str, bool], Grade]


class _Rows:
    """Problems and prompts of a user's own task. The classes below add the verdict."""

    def __init__(self, config: OwnConfig) -> None:
        if config.path is None:
            raise ConfigError(
                "task=own needs task.path: a directory with train.jsonl and test.jsonl, or one JSONL file, rows "
                "{question, answer}"
            )
        if config.prompt is not None and SLOT not in config.prompt:
            raise ConfigError(f"task.prompt has no {SLOT} in it, so every problem would get the same prompt; put it in")
        self.name = "own" if config.eval_split == "test" else f"own-{config.eval_split}"
        self.instruction = INSTRUCTION
        self._prompt = config.prompt or SLOT
        self._eval_split = config.eval_split
        self._source = Source("own", local(config.path), None, ("train", "validation", "test"))

    def problems(self, split: Split) -> Sequence[Problem]:
        """See ``Task``; read once."""
        name = "train" if split == "train" else self._eval_split
        return self._source.load(name, partial(self._problem, name))

    def first_messages(self, problem: Problem) -> list[Message]:
        """One user message: the question in the prompt."""
        return [{"role": "user", "content": self._prompt.replace(SLOT, problem.question)}]

    def reference_answer(self, problem: Problem) -> str:
        """The row's ``reference``, else its answer on a final-answer line."""
        return str(problem.meta["reference"])

    def _answer(self, row: Row, where: str) -> str:
        return text_field(row, "answer", where).strip()

    def _reference(self, row: Row, answer: str, where: str) -> str:
        return text_field(row, "reference", where) if "reference" in row else f"Final answer: {answer}"

    def _problem(self, split: str, identity: str, row: Row, where: str) -> Problem:
        question, answer = text_field(row, "question", where).strip(), self._answer(row, where)
        extra, level, name = row.get("meta", {}), row.get("level"), row.get("id")
        if not isinstance(extra, dict):
            raise DataError(f"{where} has a field 'meta' that is not an object; write {{...}} or leave it out")
        return Problem(
            identity if name is None else str(name),
            question,
            answer,
            None if level is None else str(level),
            {"row": extra, "reference": self._reference(row, answer, where), "split": split},
        )


class Own(_Rows):
    """Rows {question, answer}, optional {id, level, meta, reference}. Implements ``Task`` and ``CountsAnswers``.

    Args:
        config: ``path``: a directory or a file, see ``Source``; ``verifier``; ``prompt``; ``eval_split``.
    """

    def __init__(self, config: OwnConfig) -> None:
        super().__init__(config)
        self._numbers = config.verifier == "number"
        self._grade = make_verifier(config.verifier)
        self._key = KEYS.get(config.verifier or "", _words)

    def grade(self, problem: Problem, text: str, *, truncated: bool) -> Grade:
        return self._grade(problem, text, truncated)

    def answer_key(self, answer: str) -> str:
        """See ``CountsAnswers``: as the built-in verifiers compare; for a user's verifier, the words."""
        return self._key(answer)

    def _answer(self, row: Row, where: str) -> str:
        answer = super()._answer(row, where)
        if self._numbers and parse_number(answer) is None:
            raise DataError(
                f"{where} has the answer {answer!r}, which is not one number; correct that row or take another task.verifier"
            )
        return answer


class OwnPrograms(ProgramTask, _Rows):
    """``verifier=code``: the gold answer is one text of asserts (or a list of them), and the model's answer is a
    program.

    ``reference`` is a program that passes, as a model would write it.
    """

    def __init__(self, config: OwnConfig) -> None:
        _Rows.__init__(self, config)
        ProgramTask.__init__(self, config.accept_risk)

    def request(self, problem: Problem, answer: Answer) -> CodeRequest:
        """The request to grade the program in the text with the asserts."""
        return CodeRequest("mbpp", problem.answer, answer.text, "text", truncated=answer.truncated)

    def _answer(self, row: Row, where: str) -> str:
        tests = row.get("answer")
        whole = "\n".join(map(str, tests)) if isinstance(tests, list) else tests
        answer = text_field({**row, "answer": whole}, "answer", where)
        try:
            plan_tests("mbpp", None, (answer,))
        except DataError as error:
            raise DataError(f"{where}: {error}") from error
        return answer

    def _reference(self, row: Row, answer: str, where: str) -> str:
        return text_field(row, "reference", where)


def make_verifier(name: str | None) -> Grader:
    """The verifier that ``task.verifier`` names, except ``code``, which is ``OwnPrograms``.

    Raises:
        ConfigError: none is named, or it cannot be imported or called.
    """
    if name is not None and name in BUILT_IN:
        return BUILT_IN[name]
    if name is None or ":" not in name:
        raise ConfigError(
            f"task.verifier = {name!r} names no verifier; take one of: code, {', '.join(sorted(BUILT_IN))}, or name a function of "
            "your own as package.module:function"
        )
    verify: Verify = import_callable("task.verifier", name, "verify(question, answer, text, meta)", 4)
    return lambda problem, text, truncated: judged(
        name, lambda: verify(problem.question, problem.answer, text, dict(problem.meta["row"])), text, truncated
    )


def _words(answer: str) -> str:
    return " ".join(answer.split())


def _as_written(text: str, *, truncated: bool) -> Iterator[str]:
    """What the last final-answer line says, whole; then without the Markdown around it, one pair of marks after the other.

    ``final_line`` takes every outer mark for Markdown, but an answer may consist of them: ``__init__``, ``*``, ``=``.
    """
    text = own_text(text)
    found, lines = final_clause(text), list(_SAID.finditer(text))
    if not lines or (found is not None and found.start > lines[-1].start()):
        return
    last = lines[-1]
    if truncated and "\n" not in text[last.end() :]:
        return
    said = _HEAD_MARKS.sub("", last["said"]).strip()
    yield said
    if last["mark"] and said.endswith(last["mark"]):  # **Final answer: 4**
        said = said.removesuffix(last["mark"]).strip()
        yield said
    while len(said) > 2 and said[0] == said[-1] and said[0] in "*_`":
        said = said[1:-1].strip()
        yield said


def _exact(problem: Problem, text: str, truncated: bool) -> Grade:
    for said in _as_written(text, truncated=truncated):
        if _words(said) == _words(problem.answer):
            return Grade(Verdict.CORRECT, said, "equal to the answer")
    shown = final_line(text, truncated=truncated)
    if isinstance(shown, Grade):
        return shown
    same = _words(shown) == _words(problem.answer)
    return Grade(Verdict.CORRECT if same else Verdict.WRONG, shown, f"{'equal' if same else 'not equal'} to the answer")


BUILT_IN: dict[str, Grader] = {
    "exact": _exact,
    "number": lambda problem, text, truncated: grade_number(problem.answer, text, truncated=truncated),
    "math": lambda problem, text, truncated: shared_grader().grade(problem.answer, text, truncated=truncated),
}

KEYS: dict[str, Callable[[str], str]] = {"number": number_key, "math": answer_key}
"""Answer keys of verifiers for which equal answers may differ in their words."""


def make(config: OwnConfig) -> Own | OwnPrograms:
    return OwnPrograms(config) if config.verifier == "code" else Own(config)
