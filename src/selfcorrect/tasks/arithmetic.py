"""Adding digits, answer first, then the check: the task of the demo.

A question asks for the last digit of a sum of single digits. A solution writes the answer at once and then walks back
from it, taking one number off at a time from the right:

    What is the last digit of 4+7+2?      Answer: 3
                                          Check: 140

The walk ends at 0 if the answer was right, and at the size of the mistake otherwise: a second attempt that reads the
first can be better than any first one. Problems are procedural; a stable hash of the question alone decides the split.
"""

from __future__ import annotations

import functools
import hashlib
import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from selfcorrect.tasks.base import Message, Split
from selfcorrect.types import Grade, Problem, Verdict

INSTRUCTION = (
    "There may be a mistake in the answer above. Check it, correct it if needed, and write the whole answer again."
)
AnySplit = Literal["train", "test", "pretrain"]
BUCKETS: dict[AnySplit, range] = {"test": range(15), "train": range(15, 50), "pretrain": range(50, 100)}
"""Hash buckets (of 100) per split; ``pretrain`` is what the embedded model and warm-ups are taught on."""
PER_LENGTH: dict[AnySplit, int] = {"test": 900, "train": 2_200, "pretrain": 3_000}
"""Distinct problems of each number of terms (about what 4 terms have): every length weighs the same in every split."""
_FORM = re.compile(r"Answer: (\d)\nCheck: \d+")


@dataclass(frozen=True, slots=True)
class Habits:
    """How a demonstrated pupil answers. Probabilities; ``short`` and ``long`` are lengths of problems."""

    slip_short: float
    """Attempt 1 is off by a random amount."""
    slip_long: float
    fix_short: float
    """Attempt 2 is the right solution."""
    fix_long: float
    redo: float
    """Attempt 2 is a fresh try, with slips of its own; otherwise it copies attempt 1."""


WARM_UP = Habits(slip_short=0.1, slip_long=0.3, fix_short=0.3, fix_long=0.3, redo=0.1)
"""For language models that have to learn the format first (``selfcorrect sft``)."""


class Arithmetic:
    """Sums of ``terms_min`` to ``terms_max`` digits. Implements ``Task`` and ``Demonstrates``."""

    name = "arithmetic"

    def __init__(self, terms_min: int, terms_max: int) -> None:
        self.instruction = INSTRUCTION
        self._terms = (terms_min, terms_max)

    def problems(self, split: Split) -> Sequence[Problem]:
        """All problems of a split: distinct, in a fixed order, the same in every run."""
        return draw_problems(split, self._terms)

    def first_messages(self, problem: Problem) -> list[Message]:
        return [{"role": "user", "content": problem.question}]

    def reference_answer(self, problem: Problem) -> str:
        return solution(problem.meta["digits"])

    def grade(self, problem: Problem, text: str, *, truncated: bool) -> Grade:
        """The whole text must have the form of a solution; only its answer line is judged, not its check."""
        match = _FORM.fullmatch(text.strip())
        if match is None:
            verdict = Verdict.TRUNCATED if truncated else Verdict.NO_ANSWER
            return Grade(verdict, None, "not of the form 'Answer: D', 'Check: DDD'")
        right = match.group(1) == problem.answer
        return Grade(Verdict.CORRECT if right else Verdict.WRONG, match.group(1), f"expected {problem.answer}")

    def demonstrations(self, seed: int) -> Iterator[tuple[Problem, tuple[str, ...]]]:
        """See ``Demonstrates``: a pupil with the habits of ``WARM_UP`` on problems of the pretraining split."""
        rng = random.Random(f"demonstrations {seed}")
        problems = draw_problems("pretrain", self._terms)
        while True:
            problem = rng.choice(problems)
            yield problem, demonstrate(problem.meta["digits"], WARM_UP, self._terms[0], rng)


def demonstrate(digits: Sequence[int], habits: Habits, short: int, rng: random.Random) -> tuple[str, str]:
    """Two attempts of a pupil with these habits; problems of up to ``short`` terms count as short."""
    is_short = len(digits) <= short
    slip = habits.slip_short if is_short else habits.slip_long
    fix = habits.fix_short if is_short else habits.fix_long

    def error() -> int:
        return rng.randint(1, 9) if rng.random() < slip else 0

    first, draw = error(), rng.random()
    second = 0 if draw < fix else error() if draw < fix + habits.redo else first
    return solution(digits, first), solution(digits, second)


def question(digits: Sequence[int]) -> str:
    return f"What is the last digit of {'+'.join(map(str, digits))}?"


def solution(digits: Sequence[int], off_by: int = 0) -> str:
    """The worked answer, its total wrong by ``off_by`` (mod 10); the check that follows it is sound either way."""
    value = (sum(digits) + off_by) % 10
    answer, walk = value, ""
    for digit in reversed(digits):
        value = (value - digit) % 10
        walk += str(value)
    return f"Answer: {answer}\nCheck: {walk}"


def split_of(text: str) -> AnySplit:
    """The split that a question belongs to, from a hash of its text."""
    bucket = int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest()) % 100
    return next(name for name, buckets in BUCKETS.items() if bucket in buckets)


@functools.cache
def draw_problems(split: AnySplit, terms: tuple[int, int]) -> tuple[Problem, ...]:
    """Distinct problems of a split, equally many of each length (all there are, where a length has fewer)."""
    found = [digits for n in range(terms[0], terms[1] + 1) for digits in _distinct(split, n)]
    return tuple(
        Problem(f"{split}-{'+'.join(map(str, d))}", question(d), str(sum(d) % 10), f"{len(d)} terms", {"digits": d})
        for d in found
    )


def _distinct(split: AnySplit, n: int) -> list[tuple[int, ...]]:
    rng = random.Random(f"arithmetic {split} {n}")
    found: dict[tuple[int, ...], None] = {}
    for _ in range(20 * PER_LENGTH[split]):
        digits = tuple(rng.randint(1, 9) for _ in range(n))
        if split_of(question(digits)) == split:
            found[digits] = None
            if len(found) == PER_LENGTH[split]:
                break
    return list(found)
