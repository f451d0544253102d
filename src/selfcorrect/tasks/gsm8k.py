"""GSM8K (Cobbe et al. 2021): grade-school word problems with one number as the answer."""

from __future__ import annotations

import re
from collections.abc import Sequence
from fractions import Fraction

from selfcorrect.config.tasks import Gsm8kConfig
from selfcorrect.errors import DataError
from selfcorrect.tasks.base import Message, Split
from selfcorrect.tasks.jsonl import text_field
from selfcorrect.tasks.source import Hub, Row, Source, local
from selfcorrect.types import Grade, Problem, Verdict
from selfcorrect.verify.math.exact import try_rational
from selfcorrect.verify.math.extract import final_clause, find_answer
from selfcorrect.verify.math.grader import shared_grader
from selfcorrect.verify.math.nodes import CannotParse, Node, Quantity, Rel, TooHard
from selfcorrect.verify.math.normalise import normalise, one_width
from selfcorrect.verify.math.structures import parse
from selfcorrect.verify.math.units import acceptable, power_of_ten
from selfcorrect.verify.turns import own_text

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
_NUMBER = re.compile(
    r"([+-]?)[$€£]?([+-]?)"  # -$18 and $-18
    r"((?:[0-9]{1,3}(?:,[0-9]{3})+|[0-9]+)(?:\.[0-9]+)?|\.[0-9]+)"
    r"(?:/([0-9]+))?[%$€£]?"
)
_LONGEST_NUMBER = 100
_GROUPED = re.compile(r"([-+]?\d{1,3}(?:'\d{3})+|[-+]?\d{1,2}(?:,\d{2})+,\d{3})(\.\d+)?")
"""Thousands as in Switzerland and as in India."""
_COUNTED = re.compile(r"([-+]?[\d.,/]+)\s*%?\s+\(?([^\W\d_]{2}[^\d\\=<>{}()$]*)\)?")
"""A number with the thing that it counts, or with its spelling in brackets."""


class Gsm8k:
    """GSM8K from local rows or from the Hub. Implements ``Task`` and ``CountsAnswers``.

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
        """See ``grade_number``."""
        return grade_number(problem.answer, text, truncated=truncated)

    def answer_key(self, answer: str) -> str:
        """See ``CountsAnswers``: the exact number."""
        return number_key(answer)


def number_key(answer: str) -> str:
    """The number of an answer, in lowest terms; the answer itself if it is not a single number."""
    value = parse_number(answer)
    return answer if value is None else str(value)


def final_line(text: str, *, truncated: bool) -> str | Grade:
    """What the last final-answer line says, or the grade of a text without one.

    A truncated text whose final-answer line has no end counts as truncated: "18" may be the start of "180".
    """
    found = final_clause(own_text(text))
    if found and (found.whole or not truncated):
        return found.text.strip(" \t*_`")
    return _nothing(truncated)


def _nothing(truncated: bool) -> Grade:
    if truncated:
        return Grade(Verdict.TRUNCATED, detail="the token cap cut the text before the end of a final-answer line")
    return Grade(Verdict.NO_ANSWER, detail="no line starts with 'Final answer:'")


def grade_number(gold: str, text: str, *, truncated: bool) -> Grade:
    """Compare the number in an explicit answer exactly with ``gold``, itself one number.

    MATH's rules choose that answer: the last final-answer line or the last box, whichever is later. A
    box counts only in a text that ended on its own, since the line was asked for.
    """
    found = find_answer(text, fallbacks=False)
    if found is None or (truncated and not (found.rule == "final answer line" and found.whole)):
        return _nothing(truncated)
    value = parse_number(found.answer)
    if value is None and found.rule == "final answer line" and not re.search(r"[A-Za-z\\]", found.answer):
        return Grade(Verdict.NO_ANSWER, found.answer, "the last final-answer line does not hold one number")
    if value is None:
        # MATH's rules may read a formula as one number, or the words of the gold answer.
        grade = shared_grader().grade(gold, found.answer, bare=True)
        if grade.verdict is Verdict.WRONG and found.rule == "final answer line":
            return Grade(Verdict.NO_ANSWER, found.answer, "the last final-answer line does not hold one number")
        return grade
    if value == parse_number(gold):
        return Grade(Verdict.CORRECT, found.answer, "equal to the gold answer")
    return Grade(Verdict.WRONG, found.answer, f"not equal to {gold}")


def parse_number(text: str) -> Fraction | None:
    """The exact value of a text that is one number, with a unit or without; None for any other text. Never raises.

    It accepts a sign, thousands separators in their places, decimals, a/b, a currency sign or % (ignored: 50% is 50),
    words for what is counted, Markdown or LaTeX formatting, and every spelling of a number that MATH's rules read.
    """
    bare = one_width(text).replace("\u2212", "-")
    if len(bare) > _LONGEST_NUMBER:
        return None
    bare = bare.replace("\\$", "$").strip(" \t\r\n*_`").removesuffix(".").removesuffix("!").strip(" \t*_`")
    match = _NUMBER.fullmatch(bare.replace("$ ", "$").replace(" %", "%"))
    if match is None:
        return _read_value(bare)
    if (match[1] and match[2]) or (match[4] and not int(match[4])):
        return None
    value = Fraction(match[3].replace(",", "")) / int(match[4] or 1)
    return -value if "-" in match[1] + match[2] else value


def _read_value(text: str) -> Fraction | None:
    answer = normalise(text)
    if grouped := _GROUPED.fullmatch(answer):
        return Fraction(re.sub("[',]", "", grouped[1]) + (grouped[2] or ""))
    if re.match(r"[-+]\s*[-+]", answer):
        return None
    try:
        tree = parse(answer)
    except (CannotParse, TooHard, RecursionError):
        tree = None
    value = None if tree is None else _value(tree)
    counted = _COUNTED.fullmatch(answer)
    if value is None and counted and acceptable(counted[2]):
        number = parse_number(counted[1])
        value = None if number is None else number * 10 ** power_of_ten(counted[2])
    return value


def _value(tree: Node) -> Fraction | None:
    """The value of a tree without its unit; for an equation, the value of its right side."""
    if isinstance(tree, Rel) and set(tree.ops) <= {"=", "~"}:
        tree = tree.parts[-1]
    return try_rational(tree.value if isinstance(tree, Quantity) else tree)


def _problem(identity: str, row: Row, where: str) -> Problem:
    solution = text_field(row, "answer", where)
    question = text_field(row, "question", where)
    steps, marker, gold = solution.rpartition("####")
    if not marker:
        raise DataError(f"{where} has no '####' in its answer; a GSM8K answer ends in a line '#### <number>'")
    if parse_number(gold) is None:
        raise DataError(f"{where} has {gold.strip()!r} after '####', which is not one number; correct or drop that row")
    return Problem(identity, question.strip(), gold.strip(), meta={"solution": steps.strip()})


def make(config: Gsm8kConfig) -> Gsm8k:
    return Gsm8k(config.path)
