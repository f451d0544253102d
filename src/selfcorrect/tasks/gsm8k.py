"""GSM8K (Cobbe et al. 2021): grade-school word problems with one number as the answer."""

from __future__ import annotations

import re
from collections.abc import Sequence
from fractions import Fraction

from selfcorrect.errors import DataError
from selfcorrect.tasks.base import Message, Split
from selfcorrect.tasks.jsonl import text_field
from selfcorrect.tasks.source import Hub, Row, Source, local
from selfcorrect.types import Grade, Problem, Verdict
from selfcorrect.verify.math.extract import last_box, own_text
from selfcorrect.verify.math.grader import shared_grader

HUB = Hub("openai/gsm8k", "main")

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
    """Local rows, or the Hub's. Implements ``Task`` and ``CountsAnswers``.

    Args:
        path: a directory or a file, see ``Source``; None takes the Hub's data set.
    """

    name = "gsm8k"

    def __init__(self, path: str | None = None) -> None:
        self.instruction = INSTRUCTION
        self._source = Source("gsm8k", local(path), HUB)

    def problems(self, split: Split) -> Sequence[Problem]:
        """See ``Task``; read once."""
        return self._source.load(split, _problem)

    def first_messages(self, problem: Problem) -> list[Message]:
        """One user message; no system message, which some chat templates refuse."""
        return [{"role": "user", "content": PROMPT.format(question=problem.question)}]

    def reference_answer(self, problem: Problem) -> str:
        """The gold solution without calculator marks, then the final line."""
        steps = _CALCULATOR.sub("", str(problem.meta["solution"])).strip()
        return f"{steps}\nFinal answer: {problem.answer}"

    def grade(self, problem: Problem, text: str, *, truncated: bool) -> Grade:
        """Compare the number of the last final-answer line exactly with the gold one.

        A whole text without such a line may have boxed its answer, as models tuned on MATH do: MATH's rules then.
        """
        grade = grade_number(problem.answer, text, truncated=truncated)
        if grade.verdict is Verdict.NO_ANSWER and grade.extracted is None and last_box(own_text(text)) is not None:
            return shared_grader().grade(problem.answer, text, truncated=truncated)
        return grade

    def answer_key(self, answer: str) -> str:
        """See ``CountsAnswers``: the exact number."""
        return number_key(answer)


def number_key(answer: str) -> str:
    """The number of an answer, in lowest terms; the answer itself where it is not one number."""
    value = parse_number(answer)
    return answer if value is None else str(value)


def final_line(text: str, *, truncated: bool) -> str | Grade:
    """What the last final-answer line says, or the grade of a text without one.

    A truncated text whose final-answer line has no end counts as truncated: "18" may be the start of "180".
    """
    found = list(_FINAL_LINE.finditer(text))
    if found and not (truncated and found[-1].end() == len(text)):
        return found[-1].group(1).strip()
    if truncated:
        return Grade(Verdict.TRUNCATED, detail="the token cap cut the text before the end of a final-answer line")
    return Grade(Verdict.NO_ANSWER, detail="no line starts with 'Final answer:'")


def grade_number(gold: str, text: str, *, truncated: bool) -> Grade:
    """Compare the number of the last final-answer line exactly with ``gold``, itself one number."""
    shown = final_line(text, truncated=truncated)
    if isinstance(shown, Grade):
        return shown
    value = parse_number(shown)
    if value is None:
        return Grade(Verdict.NO_ANSWER, shown, "the last final-answer line does not hold one number")
    if value == parse_number(gold):
        return Grade(Verdict.CORRECT, shown, "equal to the gold answer")
    return Grade(Verdict.WRONG, shown, f"not equal to {gold}")


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


def _problem(identity: str, row: Row, where: str) -> Problem:
    solution = text_field(row, "answer", where)
    question = text_field(row, "question", where)
    steps, marker, gold = solution.rpartition("####")
    if not marker:
        raise DataError(f"{where} has no '####' in its answer; a GSM8K answer ends in a line '#### <number>'")
    if parse_number(gold) is None:
        raise DataError(f"{where} has {gold.strip()!r} after '####', which is not one number; correct or drop that row")
    return Problem(identity, question.strip(), gold.strip(), meta={"solution": steps.strip()})
