"""GSM8K (Cobbe et al. 2021): grade-school word problems with one number as the answer."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

from selfcorrect.errors import DataError
from selfcorrect.tasks.base import Message, Split
from selfcorrect.tasks.jsonl import read_jsonl, split_file, text_field
from selfcorrect.types import Grade, Problem, Verdict

HUB_ID = "openai/gsm8k"

PROMPT = (
    "Solve the problem below. Work it out step by step, and end with one line of the form\n"
    "Final answer: <number>\n\n"
    "Problem: {question}"
)
INSTRUCTION = (
    "There might be an error in your solution, caused by a lack of understanding of the problem. Go through it, "
    "correct the error if there is any, and write out the whole solution again. End with one line of the form\n"
    "Final answer: <number>"
)

_CALCULATOR = re.compile(r"<<.*?>>")
_FINAL_LINE = re.compile(r"^[ \t*_#>-]*final answer[*_ \t]*:(.*)$", re.IGNORECASE | re.MULTILINE)
_NUMBER = re.compile(
    r"([+-]?)[$€£]?([+-]?)"  # -$18 and $-18
    r"((?:[0-9]{1,3}(?:,[0-9]{3})+|[0-9]+)(?:\.[0-9]+)?|\.[0-9]+)"
    r"(?:/([0-9]+))?[%$€£]?"
)
_LONGEST_NUMBER = 100


class Gsm8k:
    """Local rows, or the Hub's.

    Args:
        path: a directory with train and test files; or one file, which gives the split that its name starts with, else
            both splits: a tenth of its questions (fixed by hash, at least one) is test, so that no question is in both.
            None takes the Hub's data set.
    """

    name = "gsm8k"

    def __init__(self, path: str | None = None) -> None:
        self.instruction = INSTRUCTION
        self._path = Path(path).expanduser() if path is not None else None
        self._splits: dict[Split, tuple[Problem, ...]] = {}

    def problems(self, split: Split) -> Sequence[Problem]:
        """All problems of a split, in the order of the data set; read once.

        Raises:
            DataError: the data is missing, empty or malformed (with file and line), or the Hub cannot be reached.
        """
        if split not in self._splits:
            rows, is_cut = (_hub_rows(split), False) if self._path is None else _local_rows(self._path, split)
            found = [_problem(f"gsm8k-{split}-{i}", row, where) for i, (where, row) in enumerate(rows)]
            if is_cut:
                held_out = _held_out(found)
                found = [p for p in found if (p.question in held_out) == (split == "test")]
            if not found:
                raise DataError(
                    f"the {split} split of gsm8k from {self._path or HUB_ID} is empty; give a file with at least one "
                    "row for it"
                )
            self._splits[split] = tuple(found)
        return self._splits[split]

    def first_messages(self, problem: Problem) -> list[Message]:
        """One user message; no system message, which some chat templates refuse."""
        return [{"role": "user", "content": PROMPT.format(question=problem.question)}]

    def reference_answer(self, problem: Problem) -> str:
        """The gold solution without calculator marks, then the final line."""
        steps = _CALCULATOR.sub("", str(problem.meta["solution"])).strip()
        return f"{steps}\nFinal answer: {problem.answer}"

    def grade(self, problem: Problem, text: str, *, truncated: bool) -> Grade:
        """Compare the number of the last final-answer line exactly with the gold one.

        A truncated text whose final-answer line has no end counts as truncated: "18" may be the start of "180".
        """
        found = list(_FINAL_LINE.finditer(text))
        if not found or (truncated and found[-1].end() == len(text)):
            if truncated:
                return Grade(
                    Verdict.TRUNCATED, detail="the token cap cut the text before the end of a final-answer line"
                )
            return Grade(Verdict.NO_ANSWER, detail="no line starts with 'Final answer:'")
        shown = found[-1].group(1).strip()
        value = parse_number(shown)
        if value is None:
            return Grade(Verdict.NO_ANSWER, shown, "the last final-answer line does not hold one number")
        if value == parse_number(problem.answer):
            return Grade(Verdict.CORRECT, shown, "equal to the gold answer")
        return Grade(Verdict.WRONG, shown, f"not equal to {problem.answer}")


def parse_number(text: str) -> Fraction | None:
    """The exact value of a text that is one number and nothing else; None for any other text. Never raises.

    Taken: sign, thousands separators in their places, decimals, a/b, a currency sign or % (ignored: 50% is 50), one
    trailing full stop, and Markdown or LaTeX dressing around it (``**18**``, ``\\$18``).
    """
    bare = text.replace("\\", "").replace("−", "-").strip(" \t\r\n*_`").removesuffix(".").strip(" \t*_`")
    match = _NUMBER.fullmatch(bare.replace("$ ", "$").replace(" %", "%")) if len(bare) <= _LONGEST_NUMBER else None
    if match is None or (match[1] and match[2]) or (match[4] and not int(match[4])):
        return None
    value = Fraction(match[3].replace(",", "")) / int(match[4] or 1)
    return -value if "-" in match[1] + match[2] else value


def _problem(identity: str, row: dict[str, Any], where: str) -> Problem:
    solution = text_field(row, "answer", where)
    question = text_field(row, "question", where)
    steps, marker, gold = solution.rpartition("####")
    if not marker:
        raise DataError(f"{where} has no '####' in its answer; a GSM8K answer ends in a line '#### <number>'")
    if parse_number(gold) is None:
        raise DataError(f"{where} has {gold.strip()!r} after '####', which is not one number; mend or drop that row")
    return Problem(identity, question.strip(), gold.strip(), meta={"solution": steps.strip()})


def _local_rows(path: Path, split: Split) -> tuple[Iterable[tuple[str, dict[str, Any]]], bool]:
    """Rows of a path, and whether they are of both splits and have to be cut."""
    if path.is_dir():
        return read_jsonl(split_file(path, split)), False
    for named in ("train", "test"):
        if path.name.startswith(named) and path.is_file():
            if named != split:
                raise DataError(
                    f"task.path {path} holds the {named} split by its name, and the {split} split is needed too; set "
                    "task.path to a directory with train.jsonl and test.jsonl"
                )
            return read_jsonl(path), False
    return read_jsonl(path), True


def _held_out(problems: Sequence[Problem]) -> set[str]:
    ranked = sorted({p.question for p in problems}, key=lambda q: hashlib.sha256(q.encode()).digest())
    return set(ranked[: max(1, len(ranked) // 10)])


def _hub_rows(split: Split) -> list[tuple[str, dict[str, Any]]]:
    import datasets

    try:
        data = datasets.load_dataset(HUB_ID, "main", split=split)
    except (OSError, ValueError) as error:
        reason = str(error).strip().split("\n")[0]
        raise DataError(
            f"data set {HUB_ID} could not be had from the Hugging Face Hub or its local cache: {reason}; set "
            "task.path to a directory with train.jsonl and test.jsonl (plain or .gz), rows {question, answer}"
        ) from error
    return [(f"{HUB_ID} {split} row {i}", dict(row)) for i, row in enumerate(data)]
