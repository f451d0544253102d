"""What more sampling buys, from graded episodes: accuracy by number of responses, and by number of attempts in a row.

Source: Kumar et al. 2024 (arXiv:2409.12917v2), the figures on inference-time scaling and on ten attempts in a row.
As in `selfcorrect.measuring.metrics`, the unit is the problem, and every mean has an interval over problems.

Shape suffixes: ``_N`` problems, ``_K`` attempts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from selfcorrect.episodes.table import EpisodeTable
from selfcorrect.errors import DataError
from selfcorrect.measuring.intervals import Estimate, bootstrap_mean, not_measured, paired_difference
from selfcorrect.measuring.votes import Vote, expected_majority
from selfcorrect.types import Attempt, Episode, Verdict

Floats = NDArray[np.float64]
AnswerKey = Callable[[str], str]


@dataclass(frozen=True, slots=True)
class BudgetRow:
    """One budget of responses, spent in two ways."""

    responses: int
    """K: sampled answers per problem."""
    parallel: Estimate
    """Majority vote over K first attempts."""
    corrected: Estimate
    """Majority vote over the second attempts of K/2 samples: K responses too. n/a for K = 1."""
    difference: Estimate
    """corrected - parallel, paired by problem."""
    parallel_gain: Estimate
    """parallel minus one first attempt, paired by problem; n/a for K = 1, which is one first attempt."""
    corrected_gain: Estimate
    """corrected minus one first attempt, paired by problem."""


@dataclass(frozen=True, slots=True)
class VoteCurve:
    """Accuracy by number of sampled responses."""

    rows: tuple[BudgetRow, ...]
    n_problems: int
    n_left_out: int
    """Problems with a verdict ``error`` among their responses; they are in no number."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    seconds: float = 0.0
    episodes: Sequence[Episode] = field(default=(), repr=False, compare=False)
    """Everything that was sampled; not in the JSON."""

    def to_json(self) -> dict[str, Any]:
        """A dict that strict JSON can hold."""
        rows = [{f.name: _plain(getattr(row, f.name)) for f in fields(row)} for row in self.rows]
        return {**_facts(self), "rows": rows}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """The inverse of `to_json`, without episodes.

        Raises:
            DataError: a field is missing or unknown.
        """
        with _reading("a stored vote curve"):
            rows = [BudgetRow(**{name: _loaded(v) for name, v in row.items()}) for row in data["rows"]]
            return cls(**{**data, "rows": tuple(rows)})


@dataclass(frozen=True, slots=True)
class AttemptCurve:
    """Accuracy after 1, 2, ... attempts in a row."""

    accuracy_K: tuple[Estimate, ...]
    gain_K: tuple[Estimate, ...]
    """Minus attempt 1, paired by problem; the first is n/a."""
    n_problems: int
    n_left_out: int
    """Problems with a verdict ``error`` among their attempts; they are in no number."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    seconds: float = 0.0
    episodes: Sequence[Episode] = field(default=(), repr=False, compare=False)
    """Everything that was sampled; not in the JSON."""

    def to_json(self) -> dict[str, Any]:
        """A dict that strict JSON can hold."""
        return {**_facts(self), **{n: [e.to_json() for e in getattr(self, n)] for n in ("accuracy_K", "gain_K")}}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """The inverse of `to_json`, without episodes.

        Raises:
            DataError: a field is missing or unknown.
        """
        with _reading("a stored curve of attempts"):
            lists = {n: tuple(Estimate.from_json(e) for e in data[n]) for n in ("accuracy_K", "gain_K")}
            return cls(**{**data, **lists})


@dataclass(frozen=True, slots=True)
class ScalingCurves:
    """Both curves of one model, and what ``scaling.json`` of a run directory holds."""

    model: str
    step: int | None
    """Of a run: the checkpoint that was measured."""
    command: str
    votes: VoteCurve | None = None
    """None where it was not asked for, as below."""
    attempts: AttemptCurve | None = None

    def to_json(self) -> dict[str, Any]:
        """A dict that strict JSON can hold."""
        return {
            "model": self.model,
            "step": self.step,
            "command": self.command,
            "votes": None if self.votes is None else self.votes.to_json(),
            "attempts": None if self.attempts is None else self.attempts.to_json(),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """The inverse of `to_json`, without episodes.

        Raises:
            DataError: a field is missing or unknown.
        """
        with _reading("a stored measurement of scaling"):
            votes, attempts = data["votes"], data["attempts"]
            curves = {
                "votes": None if votes is None else VoteCurve.from_json(votes),
                "attempts": None if attempts is None else AttemptCurve.from_json(attempts),
            }
            return cls(**{**data, **curves})


def vote_curve(
    chains: Sequence[Episode], alone: Sequence[Episode], budgets: Sequence[int], key: AnswerKey, *, seed: int = 0
) -> VoteCurve:
    """Majority votes over parallel first attempts, against votes over as many responses in corrected pairs.

    Each value of a problem is its expectation over all choices of the voting samples (`expected_majority`): the largest
    budget uses every sample once, smaller ones all their subsets.

    Args:
        chains: episodes of two attempts; at least K/2 per problem for the largest budget K. Their first attempts are
            among the parallel ones too.
        alone: episodes of one attempt, of the same problems; with the chains at least K first attempts per problem.
        budgets: rising numbers of responses; all but 1 are even.
        key: which answers are the same, see ``tasks.base.CountsAnswers``.
        seed: of the bootstrap.
    """
    firsts: dict[str, list[Attempt]] = {}
    lasts: dict[str, list[Attempt]] = {}
    for episode in (*chains, *alone):
        firsts.setdefault(episode.problem.id, []).append(episode.attempts[0])
    for episode in chains:
        lasts.setdefault(episode.problem.id, []).append(episode.attempts[-1])
    failed = {name for pools in (firsts, lasts) for name, pool in pools.items() if any(map(_is_error, pool))}
    names = sorted(firsts.keys() - failed)
    first_votes = [[_vote(a, key) for a in firsts[name]] for name in names]
    last_votes = [[_vote(a, key) for a in lasts.get(name, ())] for name in names]
    one_N = _majorities(first_votes, 1)
    rows = []
    for k in budgets:
        if k == 1:
            rows.append(BudgetRow(1, _mean(one_N, seed), *[not_measured()] * 4))
            continue
        parallel_N, corrected_N = _majorities(first_votes, k), _majorities(last_votes, k // 2)
        pairs = ((parallel_N, corrected_N), (one_N, parallel_N), (one_N, corrected_N))
        differences = (_difference(a_N, b_N, seed) for a_N, b_N in pairs)
        rows.append(BudgetRow(k, _mean(parallel_N, seed), _mean(corrected_N, seed), *differences))
    return VoteCurve(tuple(rows), len(names), len(failed))


def attempt_curve(episodes: Sequence[Episode], *, seed: int = 0) -> AttemptCurve:
    """Accuracy of every attempt, and what it gained over the first.

    Args:
        episodes: graded, all with the same number of attempts. May be several per problem.
        seed: of the bootstrap.
    """
    failed = {e.problem.id for e in episodes if any(map(_is_error, e.attempts))}
    table = EpisodeTable.of([e for e in episodes if e.problem.id not in failed])
    columns = [table.accuracy_N(k) for k in range(table.n_attempts)]
    gains = [_difference(columns[0], column, seed) for column in columns[1:]]
    return AttemptCurve(
        tuple(_mean(column, seed) for column in columns),
        tuple([not_measured(), *gains][: len(columns)]),
        len(table.problem_ids),
        len(failed),
    )


def _is_error(attempt: Attempt) -> bool:
    return attempt.grade is not None and attempt.grade.verdict is Verdict.ERROR


def _vote(attempt: Attempt, key: AnswerKey) -> Vote:
    """A text without an answer abstains; one that was judged without saying on what votes with all of its words."""
    grade = attempt.grade
    if grade is None or grade.verdict in (Verdict.NO_ANSWER, Verdict.TRUNCATED):
        return Vote(None, False)
    return Vote(key(attempt.text.strip() if grade.extracted is None else grade.extracted), attempt.correct)


def _majorities(votes_N: Sequence[Sequence[Vote]], k: int) -> Floats:
    return np.array([expected_majority(votes, k) for votes in votes_N], dtype=np.float64)


def _mean(values_N: Floats, seed: int) -> Estimate:
    return bootstrap_mean(values_N, seed=seed, support=(0.0, 1.0))


def _difference(a_N: Floats, b_N: Floats, seed: int) -> Estimate:
    return paired_difference(a_N, b_N, seed=seed, support=(-1.0, 1.0))


def _facts(curve: VoteCurve | AttemptCurve) -> dict[str, Any]:
    return {
        "n_problems": curve.n_problems,
        "n_left_out": curve.n_left_out,
        "settings": dict(curve.settings),
        "seconds": curve.seconds,
    }


def _plain(value: Any) -> Any:
    return value.to_json() if isinstance(value, Estimate) else value


def _loaded(value: Any) -> Any:
    return Estimate.from_json(value) if isinstance(value, Mapping) else value


@contextmanager
def _reading(what: str) -> Iterator[None]:
    """Turns what a value of another form raises into a ``DataError``."""
    try:
        yield
    except (KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f"This is not {what}: {error!r}. Its fields are not those that this version writes. Measure again, or read the file "
            "with the version that wrote it."
        ) from error
