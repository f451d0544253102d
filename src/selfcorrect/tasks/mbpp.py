"""MBPP (Austin et al. 2021): short Python programs, described in words and by the tests that they must pass.

The prompt of attempt 1 is that of the paper's appendix and of MBPP's own evaluation: three solved examples (task ids 2, 3, 4),
then the task, each with its tests. A chat model sees each example as a separate turn.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from selfcorrect.config.tasks import MbppConfig, MbppRepairConfig
from selfcorrect.errors import DataError
from selfcorrect.tasks.base import Answer, Message, Split
from selfcorrect.tasks.jsonl import text_field
from selfcorrect.tasks.programs import ProgramTask
from selfcorrect.tasks.source import SPLITS, Hub, Row, Source, local
from selfcorrect.types import Problem
from selfcorrect.verify.code import CodeRequest

HUB = Hub("google-research-datasets/mbpp", "full")
EXAMPLES = (2, 3, 4)
"""Task ids of the worked examples, all in the split ``prompt``."""

PROMPT = (
    "You are an expert Python programmer, and here is your task: {text} Your code should pass these tests:\n\n{tests}\n"
)
ANSWER = "[BEGIN]\n{program}\n[DONE]"
INSTRUCTION = (
    "There might be an error in the program above, caused by a lack of understanding of the task. Go through it, correct "
    "the error if there is any, and write out the whole program again, between [BEGIN] and [DONE]."
)


class Mbpp(ProgramTask):
    """MBPP from local rows, in the full or the sanitized form, or from the Hub. Implements ``Task``.

    Args:
        config: ``path``: a directory with a file per split (``prompt`` holds the worked examples); or one file, with
            rows that name their split, or named after a split and next to a file ``prompt.jsonl``; None takes the Hub.
            ``eval_split``: what evaluations measure.
    """

    name = "mbpp"
    splits: tuple[str, ...] = SPLITS

    def __init__(self, config: MbppConfig | MbppRepairConfig) -> None:
        super().__init__(config.accept_risk)
        self.instruction = INSTRUCTION
        self.name = type(self).name if config.eval_split == "test" else f"{type(self).name}-{config.eval_split}"
        self._eval_split = config.eval_split
        self._source = Source("mbpp", local(config.path), HUB, SPLITS, "text, code, task_id, test_list")
        self._examples: tuple[Message, ...] = ()

    def problems(self, split: Split) -> Sequence[Problem]:
        """See ``Task``; read once, together with the worked examples."""
        if not self._examples:
            self._examples = _as_turns(_load(_beside(self._source), "prompt"))
        return _load(self._source, self._eval_split if split == "test" else split)

    def first_messages(self, problem: Problem) -> list[Message]:
        """The worked examples as earlier turns, then the task with its tests. ``problems`` must have been called."""
        assert self._examples, "the worked examples come with the problems"
        return [*self._examples, {"role": "user", "content": _asked(problem)}]

    def reference_answer(self, problem: Problem) -> str:
        """The data set's program, in the requested form."""
        return ANSWER.format(program=problem.meta["code"])

    def request(self, problem: Problem, answer: Answer) -> CodeRequest:
        """The request to grade the program in the text with set-up code and all tests."""
        return CodeRequest("mbpp", problem.meta["tests"], answer.text, "text", truncated=answer.truncated)


def _load(source: Source, split: str) -> tuple[Problem, ...]:
    return source.load(split, lambda _, row, where: _problem(row, where, split))


def _problem(row: Row, where: str, split: str) -> Problem:
    text = text_field(row, "text" if "text" in row else "prompt", where).strip()
    code = text_field(row, "code", where).replace("\r\n", "\n").strip("\n")
    shown = _texts(row, "test_list", where)
    task_id = row.get("task_id")
    if not isinstance(task_id, int) or not shown:
        fault = "a test_list without tests" if shown == () else "a task_id that is not a number"
        raise DataError(f"{where} has {fault}; correct or drop that row")
    setup = row.get("test_setup_code")
    tests = (*_texts(row, "test_imports", where), *([str(setup)] if setup else []), *shown)
    meta = {"code": code, "split": split, "task_id": task_id, "shown": shown, "tests": tests}
    return Problem(f"mbpp-{task_id}", text, "\n".join(tests), meta=meta)


def _texts(row: Row, field: str, where: str) -> tuple[str, ...]:
    found: Any = row.get(field, [])
    if not isinstance(found, list) or not all(isinstance(t, str) for t in found):
        raise DataError(f"{where} has a field {field!r} that is not a list of texts; write one string per test")
    return tuple(t.replace("\r\n", "\n").strip() for t in found)


def _asked(problem: Problem) -> str:
    return PROMPT.format(text=problem.question, tests="\n".join(problem.meta["shown"]))


def _as_turns(problems: Sequence[Problem]) -> tuple[Message, ...]:
    by_id = {p.meta["task_id"]: p for p in problems}
    if missing := [i for i in EXAMPLES if i not in by_id]:
        raise DataError(
            f"the prompt split of mbpp lacks the worked examples with task_id {', '.join(map(str, missing))}; take the "
            "data set's own prompt split (task ids 1 to 10)"
        )
    turns: list[Message] = []
    for i in EXAMPLES:
        turns.append({"role": "user", "content": _asked(by_id[i])})
        turns.append({"role": "assistant", "content": ANSWER.format(program=by_id[i].meta["code"])})
    return tuple(turns)


def _beside(source: Source) -> Source:
    """The source of the worked examples: that of the problems, or a file next to one that is named after another
    split."""
    path = source.path
    if path is None or not path.is_file() or source.has("prompt"):
        return source
    return Source(source.task, path.parent, None, source.splits, source.fields)


make = Mbpp
