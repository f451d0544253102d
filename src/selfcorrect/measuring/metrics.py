"""The paper's metrics, from graded episodes: accuracy per attempt, delta, i->c, c->i, how much attempts change.

Source: Kumar et al. 2024 (arXiv:2409.12917v2), section 3 for the metrics and section 4 for the edit-distance ratio.
Departs from the paper: any number of attempts, and an interval with every mean.

Rules that hold everywhere here:

- The unit is the problem. Several samples of a problem are averaged first, so each problem counts once.
- An attempt is a graded answer; the turns between attempts (feedback, verdicts) are skipped. An attempt that was not
  played, because the model called the one before correct, counts as that one: it is the episode's answer.
- A verdict ``error`` is the verifier's fault: that attempt is counted, and left out of every number that needs its
verdict or its extracted answer, pair by pair. Without errors, delta is exactly the difference of the accuracies; with
errors, nearly. An attempt that an endpoint refused is such an error, and is also left out of numbers that need its
text.
- All shares are in [0, 1]; `Estimate.text` prints them as percent points. No data gives n/a, never 0.

Shape suffixes: ``_E`` episodes, sorted by problem id and sample; ``_N`` problems, sorted by id; ``_K`` attempts.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from selfcorrect.episodes.table import EpisodeTable, edit_distances
from selfcorrect.episodes.verdict import judged, tokens_saved
from selfcorrect.measuring.intervals import (
    RESAMPLES,
    Estimate,
    bootstrap_balanced,
    bootstrap_mean,
    not_measured,
    paired_difference,
)
from selfcorrect.measuring.records import Storable
from selfcorrect.types import BoolArray, Episode, Verdict

EDIT_BINS = 20
"""Number of equal bins of the edit-distance ratio over [0, 1]. A bin includes its lower edge; the last also its upper
edge."""
_DESCRIPTIVE_RESAMPLES = 2_000
"""Resamples for means of many distinct values (edit ratio, tokens). 10,000 would take 5 times as long, and no decision
depends on them."""

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
    """Share of sampled attempts that the token cap stopped, with or without an answer (the verdict ``truncated`` means
    without)."""
    thinking_tokens: Estimate | None = None
    """Mean tokens of thinking among ``tokens``; None where no attempt has any."""


@dataclass(frozen=True, slots=True)
class RevisionSummary:
    """Changes from one attempt to the next, y1 to y2."""

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
    """Episodes left out of the ratio, because it would be 0/0."""


@dataclass(frozen=True, slots=True)
class VerdictSummary:
    """How a model judges its own answers, over all verdict turns that were played."""

    accuracy: Estimate
    """Share that agrees with the verifier; a text without a verdict does not."""
    balanced: Estimate
    """Mean of two shares: of the right answers those called correct, of the wrong ones those called wrong. 1/2 for a
    verdict that is always the same."""
    says_wrong: Estimate
    """Share that says "wrong": with the stop rule the revisions that were asked for."""
    says_nothing: Estimate
    """Share without a verdict in the asked-for form."""
    tokens: Estimate
    """Mean sampled tokens of a verdict turn."""
    tokens_saved: Estimate
    """Per episode, net of the verdict's own tokens: an attempt that was not played counts as long as attempt 1. An estimate;
    below 0 where the verdicts cost more than they save."""


@dataclass(frozen=True, slots=True)
class EvalSummary(Storable):
    """One checkpoint on one set of problems. Attempts are counted from 1, as in the paper."""

    NAME: ClassVar[str] = "evaluation"
    n_problems: int
    n_episodes: int
    n_verifier_errors: int
    """Episodes with at least one verdict ``error``."""
    level: float
    attempts: tuple[AttemptSummary, ...]
    """Empty where there were no episodes; `accuracy` then gives n/a."""
    revisions: tuple[RevisionSummary, ...]
    """``revisions[0]`` is from attempt 1 to attempt 2; empty with one attempt."""
    delta_first_last: Estimate
    """Accuracy at the last attempt minus that at the first; n/a with one attempt."""
    verdicts: VerdictSummary | None = None
    """Of the verdict turns; None where there are none, and in records of an older version."""

    def accuracy(self, attempt: int) -> Estimate:
        """Accuracy@t for attempt 1, 2, ...; n/a for one that was not played."""
        played = 1 <= attempt <= len(self.attempts)
        return self.attempts[attempt - 1].accuracy if played else not_measured(self.level)

    def texts(self, attempts: int) -> tuple[list[str], list[str]]:
        """Table cells: the accuracies of this number of attempts; then delta, i->c, c->i, changed, copied of the last revision."""
        accuracies = [self.accuracy(k).text() for k in range(1, attempts + 1)]
        if not self.revisions:
            return accuracies, ["n/a"] * 5
        last = self.revisions[-1]
        shares = (last.i_to_c, last.c_to_i, last.answer_changed, last.copied)
        return accuracies, [last.delta.text(sign=True), *(e.text() for e in shares)]


@dataclass(frozen=True, slots=True)
class CorrectnessMatrix:
    """Correctness per problem and attempt. Two runs on the same problems have the same rows."""

    problem_ids: tuple[str, ...]
    """Sorted; row i of the matrix."""
    correct_NK: Floats
    """Share of the problem's samples that are right, 0 or 1 with one sample; nan where the verifier failed on all."""
    i_to_c_N: Floats
    """Share of the samples wrong at the first and right at the last attempt; nan as above."""
    c_to_i_N: Floats


def summarise(episodes: Sequence[Episode], *, level: float = 0.95, seed: int = 0) -> EvalSummary:
    """Every metric of one checkpoint, with bootstrap intervals of this level and seed.

    Args:
        episodes: graded, all with the same number of attempts, in any order; each (problem id, sample) once. May be
            empty.

    Raises:
        DataError: attempts differ in number or have no grades, or an episode appears twice, as when several runs or
            training seeds are combined (combine their means with `across_seeds` instead).
    """
    table = EpisodeTable.of(episodes)
    means = _Means(table, level, seed)
    last = table.n_attempts - 1
    return EvalSummary(
        n_problems=len(table.problem_ids),
        n_episodes=len(table.attempts),
        n_verifier_errors=int((~table.valid_EK).any(axis=1).sum()),
        level=level,
        attempts=tuple(_attempt(means, k) for k in range(table.n_attempts)),
        revisions=tuple(_revision(means, k) for k in range(last)),
        delta_first_last=means.gain(0, last) if last > 0 else not_measured(level),
        verdicts=_verdicts(episodes, means) if any(e.verdicts for e in episodes) else None,
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
    out = {}
    for name in sorted(groups, key=_natural_order):
        means = _Means(EpisodeTable.of(groups[name]), level, seed)
        out[name] = tuple(means.mean(means.table.accuracy_N(k)) for k in range(means.table.n_attempts))
    return out


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
class _Means:
    """Means over the problems of one table."""

    table: EpisodeTable
    level: float
    seed: int

    def mean(
        self, values_N: Floats, support: tuple[float, float] | None = (0.0, 1.0), resamples: int = RESAMPLES
    ) -> Estimate:
        """The mean of one value per problem; nan is left out."""
        known_N = values_N[~np.isnan(values_N)]
        return bootstrap_mean(known_N, seed=self.seed, resamples=resamples, level=self.level, support=support)

    def gain(self, first: int, second: int) -> Estimate:
        """Accuracy at one attempt minus that at another."""
        gain_N = self.table.gain_N(first, second)
        gain_N = gain_N[~np.isnan(gain_N)]  # paired already, in whole numbers: equal rows are equal in binary
        return paired_difference(np.zeros(len(gain_N)), gain_N, seed=self.seed, level=self.level, support=(-1.0, 1.0))


def _attempt(means: _Means, k: int) -> AttemptSummary:
    table, per_problem = means.table, means.table.problem_means
    column = [row[k] for row in table.attempts]
    everyone = np.ones(len(column), dtype=bool)
    sampled_E = np.array([a.source == "sampled" and a.stop != "refused" for a in column], dtype=bool)
    counted_E = sampled_E & np.array([a.token_ids is not None for a in column], dtype=bool)
    tokens_E = np.array([len(a.token_ids or ()) for a in column])
    cut_E = np.array([a.stop == "length" for a in column])
    thinking = None
    if any(a.thinking_tokens for a in column):
        thinking_E = np.array([a.thinking_tokens or 0 for a in column])
        thinking = means.mean(per_problem(thinking_E, counted_E), None, _DESCRIPTIVE_RESAMPLES)
    return AttemptSummary(
        accuracy=means.mean(table.accuracy_N(k)),
        n_verifier_errors=int((~table.valid_EK[:, k]).sum()),
        verdict_shares={v.value: float(per_problem(table.is_EK(v)[:, k], everyone).mean()) for v in Verdict},
        tokens=means.mean(per_problem(tokens_E, counted_E), None, _DESCRIPTIVE_RESAMPLES),
        truncated=means.mean(per_problem(cut_E, sampled_E)),
        thinking_tokens=thinking,
    )


def _revision(means: _Means, k: int) -> RevisionSummary:
    table, per_problem = means.table, means.table.problem_means
    correct_EK = table.is_EK(Verdict.CORRECT)
    before, after = correct_EK[:, k], correct_EK[:, k + 1]
    judged_E = table.valid_EK[:, k] & table.valid_EK[:, k + 1]
    answers = [[a.grade.extracted if a.grade else None for a in row[k : k + 2]] for row in table.attempts]
    changed_E = np.array([first != second for first, second in answers], dtype=bool)
    distance_E, length_E = edit_distances([(row[k].text, row[k + 1].text) for row in table.attempts])
    texts_E = np.array([all(a.stop != "refused" for a in row[k : k + 2]) for row in table.attempts], dtype=bool)
    some_E = texts_E & (length_E > 0)
    ratio_E = np.divide(distance_E, length_E, out=np.zeros(len(length_E)), where=some_E)
    # In whole numbers: 3/20 belongs to the bin that begins at 0.15, whatever 0.15 is in binary.
    bins_E = np.minimum(EDIT_BINS * distance_E[some_E] // length_E[some_E], EDIT_BINS - 1)
    return RevisionSummary(
        delta=means.gain(k, k + 1),
        i_to_c=means.mean(per_problem(~before & after, judged_E)),
        c_to_i=means.mean(per_problem(before & ~after, judged_E)),
        answer_changed=means.mean(per_problem(changed_E, judged_E)),
        copied=means.mean(per_problem(distance_E == 0, some_E)),
        edit_ratio=means.mean(per_problem(ratio_E, some_E), resamples=_DESCRIPTIVE_RESAMPLES),
        edit_histogram=tuple(np.bincount(bins_E, minlength=EDIT_BINS).tolist()),
        n_both_empty=int((texts_E & ~some_E).sum()),
    )


def _verdicts(episodes: Sequence[Episode], means: _Means) -> VerdictSummary:
    table = means.table
    index = {name: i for i, name in enumerate(table.problem_ids)}
    turns = [(index[e.problem.id], answer, verdict) for e in episodes for answer, verdict in judged(e)]
    verdicts = [v for _, _, v in turns]
    says = [v.grade.extracted if v.grade else None for v in verdicts]
    asked = np.array([v.stop != "refused" for v in verdicts], dtype=bool)
    known = np.array([a.correct or a.wrong for _, a, _ in turns], dtype=bool) & asked
    counted = np.array([v.token_ids is not None for v in verdicts], dtype=bool)
    hits_N2, counts_N2 = np.zeros((len(index), 2)), np.zeros((len(index), 2))
    for (i, answer, verdict), is_known in zip(turns, known, strict=True):
        if is_known:
            kind = int(answer.wrong)
            counts_N2[i, kind] += 1
            hits_N2[i, kind] += verdict.correct

    def share(values: Sequence[float], keep: BoolArray, support: tuple[float, float] | None = (0.0, 1.0)) -> Estimate:
        return _mean_by_problem(means, [i for i, _, _ in turns], values, keep, support)

    saved = [tokens_saved(e) for e in episodes]
    sampled = np.array([all(a.token_ids is not None for a in e.attempts if a.source == "sampled") for e in episodes])
    return VerdictSummary(
        accuracy=share([v.correct for v in verdicts], known),
        balanced=bootstrap_balanced(
            hits_N2, counts_N2, seed=means.seed, level=means.level, resamples=_DESCRIPTIVE_RESAMPLES
        ),
        says_wrong=share([s == "wrong" for s in says], asked),
        says_nothing=share([s is None for s in says], asked),
        tokens=share([len(v.token_ids or ()) for v in verdicts], counted, None),
        tokens_saved=_mean_by_problem(means, [index[e.problem.id] for e in episodes], saved, sampled, None),
    )


def _mean_by_problem(
    means: _Means,
    problems: Sequence[int],
    values: Sequence[float],
    keep: BoolArray,
    support: tuple[float, float] | None,
) -> Estimate:
    """Mean of a value per turn or episode: of each problem's kept ones first, then over the problems."""
    n = len(means.table.problem_ids)
    where, kept = np.array(problems, dtype=np.int64)[keep], np.array(values, dtype=np.float64)[keep]
    count_N = np.bincount(where, minlength=n)
    sum_N = np.bincount(where, weights=kept, minlength=n)
    return means.mean(sum_N[count_N > 0] / count_N[count_N > 0], support, _DESCRIPTIVE_RESAMPLES)


def _natural_order(level: str | None) -> tuple[bool, list[int | str]]:
    """Sort key: digits as numbers, None last."""
    parts = re.split(r"(\d+)", level or "")
    return level is None, [int(part) if i % 2 else part for i, part in enumerate(parts)]
