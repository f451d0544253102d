"""Majority votes: the rule for who wins, and the expected outcome over all subsets of responses.

A response without an answer (key None) abstains: it wins only if no response has an answer. If answers tie, the caller
chooses; `expected_majority` takes the mean, which is a fair draw in expectation.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from math import comb


@dataclass(frozen=True, slots=True)
class Vote:
    """One response in a majority vote."""

    key: str | None
    """Which answer it votes for, see ``tasks.base.CountsAnswers``; None abstains."""
    correct: bool


def tally(keys: Sequence[str | None]) -> list[tuple[str | None, int]]:
    """Every answer with its votes: most votes first, equals in order of appearance, None last.

    >>> tally(["4", None, "5", "5", None, None])
    [('5', 2), ('4', 1), (None, 3)]
    """
    counts = Counter(keys)
    return sorted(counts.items(), key=lambda item: (item[0] is None, -item[1]))  # stable: in order of appearance


def leaders(keys: Sequence[str | None]) -> tuple[str | None, ...]:
    """The answers that share the most votes, in order of appearance.

    >>> leaders(["4", "5", "5", "4", "6", None, None, None])
    ('4', '5')
    """
    ranked = tally(keys)
    return tuple(key for key, n in ranked if n == ranked[0][1] and (key is None) == (ranked[0][0] is None))


def expected_majority(votes: Sequence[Vote], k: int) -> float:
    """Probability that the majority of ``k`` of these responses is right.

    The exact mean over all subsets of size k (`_wins`), not over some random ones. It is unbiased for the accuracy of k
    new responses (a U-statistic), and needs no seed. k = 1 is the share of right responses. If responses with one key
    have different verdicts, that answer counts as the share of them that is right.

    Args:
        votes: all responses to one problem.
        k: how many of them vote; from 1 to len(votes).
    """
    assert 1 <= k <= len(votes), f"{k} of {len(votes)} responses cannot vote"
    counts = Counter(v.key for v in votes)
    right = Counter(v.key for v in votes if v.correct)
    blanks = counts.pop(None, 0)
    total = Fraction(0)
    for key, own in counts.items():
        if right[key]:
            others = sorted(n for other, n in counts.items() if other != key)
            total += Fraction(right[key], own) * _wins(own, tuple(others), blanks, k)
    return float(total)


@lru_cache(maxsize=100_000)
def _wins(own: int, others: tuple[int, ...], blanks: int, k: int) -> Fraction:
    """Probability that an answer with ``own`` responses wins a vote of k responses drawn without replacement; ties are
    shared.

    Counts subsets in which the answer gets ``votes`` and no other answer gets more. If t others get as many, it has
    1/(t+1) of the win. Whole numbers throughout, so that a certain win is exactly 1.

    Args:
        own: responses with this answer.
        others: responses of each other answer, sorted (for the cache).
        blanks: responses without an answer.
        k: size of the subset.
    """
    won = Fraction(0)
    for votes in range(1, min(own, k) + 1):
        ways: dict[tuple[int, int], int] = {(0, 0): 1}  # (drawn of the others so far, tied) -> subsets
        for count in others:
            grown: defaultdict[tuple[int, int], int] = defaultdict(int)
            for (drawn, tied), n in ways.items():
                for more in range(min(count, votes, k - votes - drawn) + 1):
                    grown[drawn + more, tied + (more == votes)] += n * comb(count, more)
            ways = grown
        for (drawn, tied), n in ways.items():
            won += Fraction(comb(own, votes) * n * comb(blanks, k - votes - drawn), tied + 1)
    return won / comb(own + sum(others) + blanks, k)
