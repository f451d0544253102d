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
from collections.abc import Sequence
from typing import Literal

from selfcorrect.tasks.base import Message, Split
from selfcorrect.types import Grade, Problem, Verdict

INSTRUCTION = (
    "There may be a mistake in the answer above. Check it, correct it if needed, and write the whole answer again."
)
AnySplit = Literal["train", "test", "pretrain"]
BUCKETS: dict[AnySplit, range] = {"test": range(15), "train": range(15, 50), "pretrain": range(50, 100)}
"""Hash buckets (of 100) per split; ``pretrain`` is what the embedded model and warm-ups are taught on."""
SIZES: dict[AnySplit, int] = {"test": 5_000, "train": 40_000, "pretrain": 200_000}
_FORM = re.compile(r"Answer: (\d)\nCheck: \d+")


class Arithmetic:
    """Sums of ``terms_min`` to ``terms_max`` digits. Implements ``Task``."""

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
    """Distinct problems of a split, uniform in the number of terms; fewer than its size where there are no more."""
    rng = random.Random(f"arithmetic {split}")
    found: dict[str, list[int]] = {}
    for _ in range(20 * SIZES[split]):
        digits = [rng.randint(1, 9) for _ in range(rng.randint(*terms))]
        text = question(digits)
        if text not in found and split_of(text) == split:
            found[text] = digits
            if len(found) == SIZES[split]:
                break
    return tuple(
        Problem(f"{split}-{i}", text, str(sum(digits) % 10), f"{len(digits)} terms", {"digits": tuple(digits)})
        for i, (text, digits) in enumerate(found.items())
    )
