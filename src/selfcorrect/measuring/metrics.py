"""What the paper measures, from graded episodes: accuracy per attempt, delta, i->c, c->i, how much attempts change.

Source: Kumar et al. 2024 (arXiv:2409.12917v2), section 3 for the metrics and section 4 for the edit-distance ratio.
Departs from the paper: any number of attempts, and an interval with every mean.

Rules that hold everywhere here:

- The unit is the problem. Several samples of a problem are averaged first, so each problem counts once.
- An attempt is a graded turn; turns without a grade (feedback) are passed over.
- A verdict ``error`` is our verifier's fault: that attempt leaves every number that needs its verdict or its extracted
  answer, pair by pair, and is counted. Without errors delta is the difference of the accuracies; with them, nearly.
  An attempt that an endpoint refused is such an error, and leaves the numbers that need its text too.
- All shares are in [0, 1]; `Estimate.text` prints them as percent points. No data gives n/a, never 0.

Shape suffixes: ``_E`` episodes, sorted by problem id and sample; ``_N`` problems, sorted by id; ``_K`` attempts.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from selfcorrect.episodes.table import EpisodeTable, edit_distances
from selfcorrect.errors import DataError
from selfcorrect.measuring.intervals import RESAMPLES, Estimate, bootstrap_mean, not_measured, paired_difference
from selfcorrect.measuring.records import loaded_fields, plain_record
from selfcorrect.types import Attempt, BoolArray, Episode, Verdict

EDIT_BINS = 20
"""Equal bins of the edit-distance ratio over [0, 1]; each holds its lower edge, the last its upper one too."""
_DESCRIPTIVE_RESAMPLES = 2_000
"""For means of many distinct values (edit ratio, tokens), which cost 5 times as much at 10,000 and decide nothing."""

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class AttemptSummary:
    """One attempt over all episodes."""

    accuracy: Estimate
    n_verifier_errors: int
    """Episodes whose verdict here is ``error``; they are not in ``accuracy``."""
    verdict_shares: Mapping[str, float]
    """Share of every verdict, errors included; the six sum to 1."""
    tokens: Estimate
    """Mean sampled tokens. Attempts that were given or came without token ids are left out."""
    truncated: Estimate
    """Share of sampled attempts stopped by the token cap, answered or not (the verdict ``truncated``: not answered)."""
    thinking_tokens: Estimate | None = None
    """Mean tokens of thinking among ``tokens``; None where no attempt has any."""


@dataclass(frozen=True, slots=True)
class RevisionSummary:
    """From one attempt to the next, y1 to y2."""

    delta: Estimate
    """Accuracy of y2 minus that of y1, on the episodes where both have a verdict: i_to_c - c_to_i."""
    i_to_c: Estimate
    """Share of all problems (not of the wrong ones) wrong at y1 and right at y2."""
    c_to_i: Estimate
    """Share of all problems right at y1 and wrong at y2."""
    answer_changed: Estimate
    """Share whose extracted answers differ as text. None against None is unchanged, None against an answer changed."""
    copied: Estimate
    """Share with y2 = y1, character for character; both empty left out."""
    edit_ratio: Estimate
    """Mean of Levenshtein distance (unit cost, characters) / (len y1 + len y2); both empty left out."""
    edit_histogram: tuple[int, ...]
    """Episodes per bin of the ratio; see `EDIT_BINS`."""
    n_both_empty: int
    """Episodes left out of the ratio, which is 0/0 there."""


@dataclass(frozen=True, slots=True)
class EvalSummary:
    """One checkpoint on one set of problems. Attempts are counted from 1, as in the paper."""

    n_problems: int
    n_episodes: int
    n_verifier_errors: int
    """Episodes with at least one verdict ``error``."""
    level: float
    attempts: tuple[AttemptSummary, ...]
    """Empty where there were no episodes; `accuracy` and the properties then give n/a."""
    revisions: tuple[RevisionSummary, ...]
    """``revisions[0]`` is from attempt 1 to attempt 2."""
    delta_first_last: Estimate
    """Accuracy at the last attempt minus that at the first; n/a with one attempt."""

    def accuracy(self, attempt: int) -> Estimate:
        """Accuracy@t for attempt 1, 2, ...; n/a for one that was not played."""
        played = 1 <= attempt <= len(self.attempts)
        return self.attempts[attempt - 1].accuracy if played else not_measured(self.level)

    @property
    def delta(self) -> Estimate:
        """delta(t1, t2): accuracy at attempt 2 minus that at attempt 1."""
        return self.revisions[0].delta if self.revisions else not_measured(self.level)

    @property
    def i_to_c(self) -> Estimate:
        """Attempt 1 wrong, attempt 2 right, as a share of all problems."""
        return self.revisions[0].i_to_c if self.revisions else not_measured(self.level)

    @property
    def c_to_i(self) -> Estimate:
        """Attempt 1 right, attempt 2 wrong, as a share of all problems."""
        return self.revisions[0].c_to_i if self.revisions else not_measured(self.level)

    def to_json(self) -> dict[str, Any]:
        """A dict that strict JSON can hold."""
        return plain_record(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> EvalSummary:
        """The inverse of `to_json`.

        Raises:
            DataError: a field is missing or unknown.
        """
        try:
            attempts = tuple(AttemptSummary(**loaded_fields(row)) for row in data["attempts"])
            revisions = tuple(RevisionSummary(**loaded_fields(row)) for row in data["revisions"])
            return cls(**{**loaded_fields(data), "attempts": attempts, "revisions": revisions})
        except (KeyError, TypeError) as error:
            raise DataError(
                f"This is not a stored evaluation: {error!r}. Its fields are not those that this version writes. "
                "Evaluate the run again, or read the file with the version that wrote it."
            ) from error


@dataclass(frozen=True, slots=True)
class CorrectnessMatrix:
    """Who got what right, with rows that two runs on the same problems share."""

    problem_ids: tuple[str, ...]
    """Sorted; row i of the matrix."""
    correct_NK: Floats
    """Share of the problem's samples that are right, 0 or 1 with one sample; nan where the verifier failed on all."""
    i_to_c_N: Floats
    """Share of the samples wrong at the first and right at the last attempt; nan as above."""
    c_to_i_N: Floats


def summarise(episodes: Sequence[Episode], *, level: float = 0.95, seed: int = 0) -> EvalSummary:
    """Every metric of one checkpoint. The order of the episodes does not matter.

    Args:
        episodes: graded, all with the same number of attempts, (problem id, sample) never twice. May be empty.
        level: of the intervals.
        seed: of the bootstrap.

    Raises:
        DataError: attempts differ in number or have no grades, or an episode appears twice, as it does when runs or
            training seeds are thrown together (combine their means with `across_seeds`).
    """
    table = EpisodeTable.of(episodes)
    mean = _Mean(table, level, seed)
    last = table.n_attempts - 1
    return EvalSummary(
        n_problems=len(table.problem_ids),
        n_episodes=len(table.attempts),
        n_verifier_errors=int((~table.valid_EK).any(axis=1).sum()),
        level=level,
        attempts=tuple(_attempt(mean, k) for k in range(table.n_attempts)),
        revisions=tuple(_revision(mean, k) for k in range(last)),
        delta_first_last=mean.gain(0, last) if last > 0 else not_measured(level),
    )


def by_level(
    episodes: Sequence[Episode], *, level: float = 0.95, seed: int = 0
) -> dict[str | None, tuple[Estimate, ...]]:
    """Accuracy of each attempt per difficulty level of the problems.

    Returns:
        Level -> one estimate per attempt, in the natural order of the levels ("Level 2" before "Level 10"). Problems
        without a level come last, under None.

    Raises:
        DataError: as `summarise`.
    """
    EpisodeTable.of(episodes)  # what is wrong with the set as a whole is reported as such
    groups: dict[str | None, list[Episode]] = {}
    for episode in episodes:
        groups.setdefault(episode.problem.level, []).append(episode)
    means = {name: _Mean(EpisodeTable.of(groups[name]), level, seed) for name in sorted(groups, key=_natural)}
    return {name: tuple(mean.accuracy(k) for k in range(mean.table.n_attempts)) for name, mean in means.items()}


def correctness_matrix(episodes: Sequence[Episode]) -> CorrectnessMatrix:
    """Correctness per problem and attempt, problems sorted by id.

    Raises:
        DataError: as `summarise`.
    """
    table = EpisodeTable.of(episodes)
    columns = [table.accuracy_N(k) for k in range(table.n_attempts)]
    correct_NK = np.stack(columns, axis=1) if columns else np.empty((0, 0))
    last = table.n_attempts - 1
    flips = [table.flips_N(0, last, to_right=to_right) if columns else np.empty(0) for to_right in (True, False)]
    return CorrectnessMatrix(table.problem_ids, correct_NK, *flips)


@dataclass(frozen=True, slots=True)
class _Mean:
    """Means over problems of whatever is given per episode."""

    table: EpisodeTable
    level: float
    seed: int

    def share(self, values_E: NDArray[Any], keep_E: BoolArray, resamples: int = RESAMPLES) -> Estimate:
        """Of values in [0, 1]."""
        return self._over_problems(self.table.problem_means(values_E, keep_E), (0.0, 1.0), resamples)

    def number(self, values_E: NDArray[Any], keep_E: BoolArray) -> Estimate:
        """Of values without bounds."""
        return self._over_problems(self.table.problem_means(values_E, keep_E), None, _DESCRIPTIVE_RESAMPLES)

    def accuracy(self, k: int) -> Estimate:
        return self._over_problems(self.table.accuracy_N(k), (0.0, 1.0), RESAMPLES)

    def gain(self, first: int, second: int) -> Estimate:
        gain_N = self.table.gain_N(first, second)
        gain_N = gain_N[~np.isnan(gain_N)]  # paired already, in whole numbers: equal rows are equal in binary
        return paired_difference(np.zeros(len(gain_N)), gain_N, seed=self.seed, level=self.level, support=(-1.0, 1.0))

    def _over_problems(self, mean_N: Floats, support: tuple[float, float] | None, resamples: int) -> Estimate:
        known_N = mean_N[~np.isnan(mean_N)]
        return bootstrap_mean(known_N, seed=self.seed, resamples=resamples, level=self.level, support=support)


def _attempt(mean: _Mean, k: int) -> AttemptSummary:
    table = mean.table
    column = [row[k] for row in table.attempts]
    everyone = np.ones(len(column), dtype=bool)
    sampled_E = np.array([a.source == "sampled" and a.stop != "refused" for a in column], dtype=bool)
    counted_E = sampled_E & np.array([a.token_ids is not None for a in column], dtype=bool)
    return AttemptSummary(
        accuracy=mean.accuracy(k),
        n_verifier_errors=int((~table.valid_EK[:, k]).sum()),
        verdict_shares={v.value: float(table.problem_means(table.is_EK(v)[:, k], everyone).mean()) for v in Verdict},
        tokens=mean.number(np.array([len(a.token_ids or ()) for a in column]), counted_E),
        truncated=mean.share(np.array([a.stop == "length" for a in column]), sampled_E),
        thinking_tokens=mean.number(np.array([a.thinking_tokens or 0 for a in column]), counted_E)
        if any(a.thinking_tokens for a in column)
        else None,
    )


def _revision(mean: _Mean, k: int) -> RevisionSummary:
    table = mean.table
    correct_EK = table.is_EK(Verdict.CORRECT)
    before, after = correct_EK[:, k], correct_EK[:, k + 1]
    judged_E = table.valid_EK[:, k] & table.valid_EK[:, k + 1]
    changed_E = np.array([_extracted(row[k]) != _extracted(row[k + 1]) for row in table.attempts], dtype=bool)
    distance_E, length_E = edit_distances([(row[k].text, row[k + 1].text) for row in table.attempts])
    texts_E = np.array([all(a.stop != "refused" for a in row[k : k + 2]) for row in table.attempts], dtype=bool)
    some_E = texts_E & (length_E > 0)
    ratio_E = np.divide(distance_E, length_E, out=np.zeros(len(length_E)), where=some_E)
    # In whole numbers: 3/20 belongs to the bin that begins at 0.15, whatever 0.15 is in binary.
    bins_E = np.minimum(EDIT_BINS * distance_E[some_E] // length_E[some_E], EDIT_BINS - 1)
    return RevisionSummary(
        delta=mean.gain(k, k + 1),
        i_to_c=mean.share(~before & after, judged_E),
        c_to_i=mean.share(before & ~after, judged_E),
        answer_changed=mean.share(changed_E, judged_E),
        copied=mean.share(distance_E == 0, some_E),
        edit_ratio=mean.share(ratio_E, some_E, _DESCRIPTIVE_RESAMPLES),
        edit_histogram=tuple(np.bincount(bins_E, minlength=EDIT_BINS).tolist()),
        n_both_empty=int((texts_E & ~some_E).sum()),
    )


def _extracted(attempt: Attempt) -> str | None:
    return attempt.grade.extracted if attempt.grade else None


def _natural(level: str | None) -> tuple[bool, list[int | str]]:
    """Sort key: digits as numbers, None last."""
    parts = re.split(r"(\d+)", level or "")
    return level is None, [int(part) if i % 2 else part for i, part in enumerate(parts)]
