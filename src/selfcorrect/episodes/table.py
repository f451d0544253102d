"""Graded episodes as columns, and their averages per problem: the basis of `selfcorrect.measuring.metrics`.

Shape suffixes: ``_E`` episodes, sorted by problem id and sample; ``_N`` problems, sorted by id; ``_K`` attempts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rapidfuzz.distance import Levenshtein
from rapidfuzz.process import cpdist

from selfcorrect.errors import DataError
from selfcorrect.types import Attempt, BoolArray, Episode, Verdict

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
_CODES = {verdict: code for code, verdict in enumerate(Verdict)}


@dataclass(frozen=True, slots=True)
class EpisodeTable:
    """Sorted, so that nothing computed from it depends on the order in which the episodes came."""

    problem_ids: tuple[str, ...]
    problem_E: Ints
    """Index into ``problem_ids``."""
    attempts: tuple[tuple[Attempt, ...], ...]
    """[E][K] graded attempts."""
    codes_EK: Ints
    """The verdicts, by their place in `Verdict`."""

    @classmethod
    def of(cls, episodes: Sequence[Episode]) -> EpisodeTable:
        """Build the table; turns between attempts (feedback, verdicts) are skipped.

        Raises:
            DataError: (problem id, sample) appears twice, episodes differ in the number of graded attempts, or have
                none.
        """
        ordered = sorted(episodes, key=lambda e: (e.problem.id, e.sample))
        for before, e in pairwise(ordered):
            if (before.problem.id, before.sample) == (e.problem.id, e.sample):
                raise DataError(
                    f"Problem {e.problem.id!r}, sample {e.sample}, appears more than once: rows of several runs or seeds "
                    "would be pooled as if independent. Summarise each run alone (across_seeds combines their "
                    "means), and give every problem its own id."
                )
        attempts = tuple(tuple(a for a in e.answers if a.grade is not None) for e in ordered)
        counts = sorted({len(row) for row in attempts})
        if len(counts) > 1 or counts == [0]:
            raise DataError(
                f"Episodes have {' or '.join(map(str, counts))} graded attempts: every metric needs the same number in "
                "each, at least one. Grade all attempts of an episode, and evaluate each number of attempts by itself."
            )
        problem_ids = tuple(dict.fromkeys(e.problem.id for e in ordered))
        index = {name: i for i, name in enumerate(problem_ids)}
        codes = [[_CODES[a.grade.verdict] for a in row if a.grade] for row in attempts]
        return cls(
            problem_ids,
            np.array([index[e.problem.id] for e in ordered], dtype=np.int64),
            attempts,
            np.array(codes, dtype=np.int64).reshape(len(ordered), counts[0] if counts else 0),
        )

    @property
    def n_attempts(self) -> int:
        return int(self.codes_EK.shape[1])

    @property
    def valid_EK(self) -> BoolArray:
        """False where the verifier itself failed."""
        return ~self.is_EK(Verdict.ERROR)

    def is_EK(self, verdict: Verdict) -> BoolArray:
        """True where the attempt has this verdict."""
        matches_EK: BoolArray = self.codes_EK == _CODES[verdict]
        return matches_EK

    def problem_means(self, values_E: NDArray[Any], keep_E: BoolArray) -> Floats:
        """Mean over each problem's kept samples; nan for a problem without any; shape [N]."""
        n = len(self.problem_ids)
        count_N = np.bincount(self.problem_E[keep_E], minlength=n)
        sum_N = np.bincount(self.problem_E[keep_E], weights=values_E[keep_E], minlength=n)
        mean_N: Floats = np.divide(sum_N, count_N, out=np.full(n, np.nan), where=count_N > 0)
        return mean_N

    def accuracy_N(self, k: int) -> Floats:
        """Share of samples that are right at index k, among those with a verdict; shape [N]."""
        return self.problem_means(self.is_EK(Verdict.CORRECT)[:, k], self.valid_EK[:, k])

    def gain_N(self, first: int, second: int) -> Floats:
        """Correctness at index ``second`` minus at ``first``, on samples with both verdicts; shape [N]."""
        correct_EK = self.is_EK(Verdict.CORRECT).astype(np.int64)
        keep_E = self.valid_EK[:, first] & self.valid_EK[:, second]
        return self.problem_means(correct_EK[:, second] - correct_EK[:, first], keep_E)

    def flips_N(self, first: int, second: int, *, to_right: bool) -> Floats:
        """Share of samples wrong at index ``first`` and right at ``second``, or the other way round; shape [N]."""
        correct_EK = self.is_EK(Verdict.CORRECT)
        keep_E = self.valid_EK[:, first] & self.valid_EK[:, second]
        before, after = correct_EK[:, first], correct_EK[:, second]
        return self.problem_means((~before & after) if to_right else (before & ~after), keep_E)


def edit_distances(pairs: Sequence[tuple[str, str]]) -> tuple[Ints, Ints]:
    """Levenshtein distance (insert, delete, replace cost 1 each) in characters, and the summed lengths, of each pair.

    Their quotient is the paper's edit-distance ratio: 0 for a copy, 1 only where one text is empty, 0/0 where both are.
    """
    length_E = np.array([len(a) + len(b) for a, b in pairs], dtype=np.int64)
    if not pairs:
        return length_E, length_E
    first, second = zip(*pairs, strict=True)
    return cpdist(first, second, scorer=Levenshtein.distance, dtype=np.int64), length_E


def judged_mean(values_N: NDArray[Any], judged_N: BoolArray) -> float:
    """Mean over what the verifier judged; its failures are left out. 0 if it judged nothing."""
    return float(values_N[judged_N].mean()) if judged_N.any() else 0.0


def judged_means(episodes: Sequence[Episode]) -> list[float]:
    """Reward of every attempt, averaged over the episodes in which it was judged; length K."""
    rewards_NK = np.stack([e.rewards_K for e in episodes])
    valid_NK = np.stack([e.valid_K for e in episodes])
    return [judged_mean(rewards_NK[:, k], valid_NK[:, k]) for k in range(rewards_NK.shape[1])]


def drafted_share_K(episodes: Sequence[Episode]) -> list[float | None]:
    """Share of each attempt's sampled tokens that an engine copied from an earlier attempt and only checked; length K.

    None where no tokens were sampled.
    """
    shares: list[float | None] = []
    for column in zip(*(e.answers for e in episodes), strict=True):
        sampled = [a for a in column if a.source == "sampled" and a.token_ids]
        tokens = sum(len(a.token_ids or ()) for a in sampled)
        shares.append(sum(a.drafted for a in sampled) / tokens if tokens else None)
    return shares
