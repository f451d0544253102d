"""Decides each claim of the paper by an interval: one verdict per claim."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from selfcorrect.measuring.intervals import Estimate
from selfcorrect.reproduce.rows import Claim

Word = Literal["reproduced", "not reproduced", "cannot be told at this n", "not measured"]


@dataclass(frozen=True, slots=True)
class Verdict:
    claim: Claim
    word: Word
    difference: Estimate
    """``above`` minus ``below``, paired; its interval decides."""

    def to_json(self) -> dict[str, Any]:
        c = self.claim
        return {
            "claim": c.text,
            "quantity": c.quantity,
            "above": c.above,
            "below": c.below,
            "verdict": self.word,
            "difference": self.difference.to_json(),
        }


def judge(claim: Claim, difference: Estimate) -> Verdict:
    """Reproduced if the whole interval is above 0, not reproduced if it is below 0; otherwise it cannot be told.

    A difference of 0 in every seed has an interval of width 0 at 0: not reproduced. An interval of width 0 elsewhere
    (a few seeds that happen to agree exactly) says nothing about another seed: it cannot be told.
    """
    word: Word
    if difference.n == 0:
        word = "not measured"
    elif not difference.has_interval or difference.low == difference.high != 0:
        word = "cannot be told at this n"
    elif difference.low > 0:
        word = "reproduced"
    elif difference.high < 0 or difference.low == difference.high == 0:
        word = "not reproduced"
    else:
        word = "cannot be told at this n"
    return Verdict(claim, word, difference)
