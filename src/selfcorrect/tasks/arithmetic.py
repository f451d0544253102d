"""Adding numbers, answer first, then the check. Two forms, ``task.asks``:

``last_digit`` is the task of the demo. A solution writes the answer at once and then walks back from it (mod 10),
subtracting one number at a time from the right. ``sum`` is ordinary arithmetic for language models, which can add already:

    What is the last digit of 4+7+2?      Answer: 3           What is 40+17+25?     Answer: 82
                                          Check: 140                                Check: 82-25=57, 57-17=40

If the walk does not end at 0, or the subtraction not at the first number, the answer was wrong, and the rest shows by
how much. So a second attempt that reads the first can be better than any first one. Problems are procedural; a stable
hash of the question alone decides the split.
"""

from __future__ import annotations

import functools
import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from selfcorrect.config.tasks import ArithmeticConfig
from selfcorrect.tasks.base import Message, Split
from selfcorrect.tasks.procedural import AnySplit, split_of
from selfcorrect.types import Grade, Problem, Verdict

INSTRUCTION = (
    "There may be a mistake in the answer above. Check it, correct it if needed, and write the whole answer again."
)
PER_LENGTH: dict[AnySplit, int] = {"test": 900, "train": 2_200, "pretrain": 3_000}
"""Distinct problems for each number of terms (about as many as exist with 4 terms), so every length has the same weight
in every split."""
Asks = Literal["last_digit", "sum"]
_FORMS: dict[Asks, re.Pattern[str]] = {
    "last_digit": re.compile(r"Answer: (\d)\nCheck: \d+"),
    "sum": re.compile(r"Answer: (\d{1,9})\nCheck: [-0-9=, ]+"),
}
SLIPS_OF_A_SUM = (-10, -2, -1, 1, 2, 10)
"""Mistakes in demonstrations: a missed carry, or a small error."""


@dataclass(frozen=True, slots=True)
class Habits:
    """How the pupil in demonstrations answers, as probabilities. ``short`` and ``long`` refer to the length of a
    problem."""

    slip_short: float
    """Attempt 1 is off by a random amount."""
    slip_long: float
    fix_short: float
    """Attempt 2 is the right solution."""
    fix_long: float
    redo: float
    """Attempt 2 is a new try, with its own slips; otherwise it copies attempt 1."""
    slip_again: float | None = None
    """Probability of a slip in a new second try; None: as in attempt 1."""
    slip_edge: float | None = None
    """Probability of a slip in attempt 1 at the longest of the short problems; None: slip_short."""
    off_by_one: bool = False
    """Slips of attempt 1 at short problems are off by one, up or down; False: by any amount."""


WARM_UP = Habits(slip_short=0.3, slip_long=0.5, fix_short=0.3, fix_long=0.3, redo=0.1)
"""For language models that have to learn the format first (``selfcorrect sft``)."""


class Arithmetic:
    """Sums of ``terms_min`` to ``terms_max`` numbers from 1 to ``largest``.

    Implements ``Task``, ``CountsAnswers``, ``Demonstrates`` and ``ChecksItself``.
    """

    name = "arithmetic"

    def __init__(self, terms_min: int, terms_max: int, asks: Asks = "last_digit", largest: int = 9) -> None:
        self.instruction = INSTRUCTION
        self._terms = (terms_min, terms_max)
        self._asks: Asks = asks
        self._largest = largest

    def problems(self, split: Split) -> Sequence[Problem]:
        """All problems of a split: distinct, in a fixed order, the same in every run."""
        return draw_problems(split, self._terms, self._asks, self._largest)

    def first_messages(self, problem: Problem) -> list[Message]:
        return [{"role": "user", "content": problem.question}]

    def reference_answer(self, problem: Problem) -> str:
        return solution(problem.meta["numbers"], asks=self._asks)

    def grade(self, problem: Problem, text: str, *, truncated: bool) -> Grade:
        """The whole text must have the form of a solution; only its answer line is judged, not its check."""
        match = _FORMS[self._asks].fullmatch(text.strip())
        if match is None:
            verdict = Verdict.TRUNCATED if truncated else Verdict.NO_ANSWER
            return Grade(verdict, None, f"not of the form {solution((4, 7, 2), asks=self._asks)!r}")
        right = match.group(1) == problem.answer
        return Grade(Verdict.CORRECT if right else Verdict.WRONG, match.group(1), f"expected {problem.answer}")

    def check_is_sound(self, problem: Problem, text: str) -> bool | None:
        """Whether the check is the correct check of the written answer, right or wrong; None without a check."""
        match = _FORMS[self._asks].fullmatch(text.strip())
        if match is None:
            return None
        numbers, answer = problem.meta["numbers"], int(match.group(1))
        off_by = answer - sum(numbers)
        return text.strip() == solution(numbers, off_by, self._asks)

    def answer_key(self, answer: str) -> str:
        """See ``CountsAnswers``: the digits as written, as the verdict compares them."""
        return answer

    def demonstrations(self, seed: int) -> Iterator[tuple[Problem, tuple[str, ...]]]:
        """See ``Demonstrates``: a pupil with the habits of ``WARM_UP`` on problems of the pretraining split."""
        rng = random.Random(f"demonstrations {seed}")
        problems = draw_problems("pretrain", self._terms, self._asks, self._largest)
        while True:
            problem = rng.choice(problems)
            yield problem, demonstrate(problem.meta["numbers"], WARM_UP, self._terms[0], rng, self._asks)


def demonstrate(
    numbers: Sequence[int],
    habits: Habits,
    short: int,
    rng: random.Random,
    asks: Asks = "last_digit",
    attempts: int = 2,
) -> tuple[str, ...]:
    """Attempts of a pupil with these habits, two or more; problems of up to ``short`` terms count as short."""
    is_short = len(numbers) <= short
    slip = habits.slip_short if is_short else habits.slip_long
    if len(numbers) == short and habits.slip_edge is not None:
        slip = habits.slip_edge
    again = slip if habits.slip_again is None else habits.slip_again
    fix = habits.fix_short if is_short else habits.fix_long

    def error(slip: float) -> int:
        if rng.random() >= slip:
            return 0
        return rng.randint(1, 9) if asks == "last_digit" else rng.choice(SLIPS_OF_A_SUM)

    first, draw = error(slip), rng.random()
    if first and is_short and habits.off_by_one:
        first = 1 if first % 2 else 9
    errors = [first]
    while True:
        errors.append(0 if draw < fix else error(again) if draw < fix + habits.redo else errors[-1])
        if len(errors) == attempts:
            return tuple(solution(numbers, off_by, asks) for off_by in errors)
        draw = rng.random()


def question(numbers: Sequence[int], asks: Asks = "last_digit") -> str:
    terms = "+".join(map(str, numbers))
    return f"What is the last digit of {terms}?" if asks == "last_digit" else f"What is {terms}?"


def solution(numbers: Sequence[int], off_by: int = 0, asks: Asks = "last_digit") -> str:
    """The worked answer, with a total that is wrong by ``off_by``. Its check is sound in any case."""
    steps = []
    if asks == "sum":
        answer = value = max(sum(numbers) + off_by, 0)
        for number in reversed(numbers[1:]):
            steps.append(f"{value}-{number}={value - number}")
            value -= number
        return f"Answer: {answer}\nCheck: {', '.join(steps)}"
    answer = value = (sum(numbers) + off_by) % 10
    for digit in reversed(numbers):
        value = (value - digit) % 10
        steps.append(str(value))
    return f"Answer: {answer}\nCheck: {''.join(steps)}"


@functools.cache
def draw_problems(
    split: AnySplit, terms: tuple[int, int], asks: Asks = "last_digit", largest: int = 9
) -> tuple[Problem, ...]:
    """Distinct problems of a split: the same number of each length, or all problems of a length that has fewer."""
    problems: list[Problem] = []
    for n in range(terms[0], terms[1] + 1):
        rng = random.Random(f"arithmetic {split} {n}")
        found: dict[tuple[int, ...], Problem] = {}
        for _ in range(20 * PER_LENGTH[split]):
            numbers = tuple(rng.randint(1, largest) for _ in range(n))
            text = question(numbers, asks)
            if numbers in found or split_of(text) != split:
                continue
            answer = sum(numbers) % 10 if asks == "last_digit" else sum(numbers)
            identity = f"{split}-{'+'.join(map(str, numbers))}"
            found[numbers] = Problem(identity, text, str(answer), f"{n} terms", {"numbers": numbers})
            if len(found) == PER_LENGTH[split]:
                break
        problems += found.values()
    return tuple(problems)


def make(config: ArithmeticConfig) -> Arithmetic:
    return Arithmetic(config.terms_min, config.terms_max, config.asks, config.largest)
