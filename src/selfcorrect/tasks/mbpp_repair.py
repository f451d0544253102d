"""MBPP-R: repair of given wrong programs. Attempt 1 is stored, the policy writes attempt 2 onwards.

The paper's own set of wrong programs (by PaLM 2) was never published; any file of stored attempts can take its place.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from selfcorrect.config.tasks import MbppRepairConfig
from selfcorrect.errors import ConfigError, DataError
from selfcorrect.records.files import read_jsonl
from selfcorrect.tasks.base import Answer, Split
from selfcorrect.tasks.jsonl import SET_PATH, text_field
from selfcorrect.tasks.mbpp import ANSWER, Mbpp
from selfcorrect.tasks.source import local
from selfcorrect.types import Problem
from selfcorrect.verify.code import CodeRequest

DEFAULT_FILE = "first_attempts_models.jsonl"


class MbppRepair(Mbpp):
    """One problem per MBPP task and distinct wrong program for it. Implements ``Task`` and ``GivesFirst``.

    Args:
        config: as for ``Mbpp``; and ``first_attempts``: a JSONL file of rows {task_id, attempt}, with ``passed`` (true:
            nothing to repair, left out), and ``model`` or ``operator``, which becomes the problem's level. None takes
            ``first_attempts_models.jsonl`` (or ``.gz``) in the directory of the data.
    """

    name = "mbpp_repair"
    splits = ("train", "test")

    def __init__(self, config: MbppRepairConfig) -> None:
        super().__init__(config)
        self._attempts = _attempts_file(config)
        self._repairs: dict[Split, tuple[Problem, ...]] = {}

    def problems(self, split: Split) -> Sequence[Problem]:
        """All wrong programs for tasks of a split, in the order of their file; read once.

        Raises:
            DataError: as ``Mbpp.problems``; or the stored attempts are missing, malformed, or all belong to other
                splits.
        """
        if split not in self._repairs:
            tasks = {p.meta["task_id"]: p for p in super().problems(split)}
            self._repairs[split] = tuple(_repairs(self._attempts, tasks))
            if not self._repairs[split]:
                raise DataError(
                    f"{self._attempts} holds no wrong program for a task of this split of mbpp ({split}); take "
                    "another file with task.first_attempts, or another task.eval_split"
                )
        return self._repairs[split]

    def first_answers(self, problem: Problem) -> Sequence[str]:
        """The wrong program, in the form that the prompt requests."""
        return [ANSWER.format(program=problem.meta["given"])]

    def request(self, problem: Problem, answer: Answer) -> CodeRequest:
        """The request to grade a program. A given program runs as stored; only a model's text is searched for code."""
        request = super().request(problem, answer)
        if answer.text == self.first_answers(problem)[0]:
            return replace(request, completion=problem.meta["given"], completion_form="code")
        return request


def _attempts_file(config: MbppRepairConfig) -> Path:
    given, data = local(config.first_attempts), local(config.path)
    if given is not None:
        return given
    if data is None:
        raise ConfigError(
            "mbpp_repair needs stored first attempts, and the Hub's MBPP has none: set task.first_attempts to a JSONL file "
            "with rows {task_id, attempt, passed}"
        )
    directory = data if data.is_dir() else data.parent
    packed = directory / f"{DEFAULT_FILE}.gz"
    return packed if packed.is_file() else directory / DEFAULT_FILE


def _repairs(file: Path, tasks: dict[int, Problem]) -> list[Problem]:
    if not file.is_file():
        raise DataError(
            f"stored first attempts {file} do not exist; set task.first_attempts to a JSONL file with rows "
            "{task_id, attempt, passed}"
        )
    found: dict[tuple[int, str], Problem] = {}
    count: dict[int, int] = {}
    for where, row in read_jsonl(file, SET_PATH):
        attempt, task_id, passed = text_field(row, "attempt", where), row.get("task_id"), row.get("passed", False)
        if not isinstance(task_id, int) or not isinstance(passed, bool):
            fault = (
                "a task_id that is not a number"
                if isinstance(passed, bool)
                else "a field 'passed' that is not a boolean"
            )
            raise DataError(f"{where} has {fault}; correct or drop that row")
        program = attempt.replace("\r\n", "\n").strip("\n")
        if passed or task_id not in tasks or (task_id, program) in found:
            continue
        count[task_id] = count.get(task_id, 0) + 1
        task, author = tasks[task_id], row.get("model") or row.get("operator")
        found[task_id, program] = replace(
            task,
            id=f"{task.id}-given-{count[task_id]}",
            level=None if author is None else str(author),
            meta={**task.meta, "given": program},
        )
    return list(found.values())


make = MbppRepair
