"""What more sampling buys: accuracy by number of responses, and by number of attempts in a row.

Source: Kumar et al. 2024 (arXiv:2409.12917v2), the figures on inference-time scaling and on ten attempts in a row.
As in `selfcorrect.measuring.metrics`, the unit is the problem, and every mean has an interval over problems.

The curves come first (episodes in, numbers out), then ``measure_votes`` and ``measure_attempts``, which play.

Shape suffixes: ``_N`` problems, ``_K`` attempts.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import chain
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from selfcorrect.engines.base import Engine
from selfcorrect.episodes.play import Play, given_answers, play
from selfcorrect.episodes.table import EpisodeTable
from selfcorrect.errors import ConfigError, DataError
from selfcorrect.measuring.intervals import Estimate, bootstrap_mean, not_measured, paired_difference
from selfcorrect.measuring.records import loaded, loaded_fields, plain_record
from selfcorrect.measuring.votes import Vote, expected_majority
from selfcorrect.tasks.base import CountsAnswers, GivesFirst, Task
from selfcorrect.types import Attempt, Episode, Problem, Verdict

Floats = NDArray[np.float64]
AnswerKey = Callable[[str], str]
BUDGETS = (1, 2, 4, 8, 16, 32)
"""The paper's."""
MOST_RESPONSES = 256
"""Largest budget: the sums over all subsets of the samples grow with it."""
TEMPERATURE = 0.7
"""Of the votes (the paper's)."""
ATTEMPTS = 10
"""In a row (the paper's)."""
ROWS_AT_ONCE = 512
"""Conversations played together: enough to fill the engine's batches, few enough to show progress."""

OnProgress = Callable[[str, int, int], None]
"""``on_progress(what, done, total)``: problems played so far."""


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
        return plain_record(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """The inverse of `to_json`, without episodes.

        Raises:
            DataError: a field is missing or unknown.
        """
        with _reading("a stored vote curve"):
            return cls(**{**data, "rows": tuple(BudgetRow(**loaded_fields(row)) for row in data["rows"])})


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
        return plain_record(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """The inverse of `to_json`, without episodes.

        Raises:
            DataError: a field is missing or unknown.
        """
        with _reading("a stored curve of attempts"):
            return cls(**{**data, **{name: loaded(data[name]) for name in ("accuracy_K", "gain_K")}})


@dataclass(frozen=True, slots=True)
class ScalingCurves:
    """Both curves of one model, and what ``scaling.json`` of a run directory holds."""

    model: str
    step: int | None
    """Of a run: the checkpoint that was measured."""
    command: str
    votes: VoteCurve | None = None
    """None where it was not measured, as below."""
    attempts: AttemptCurve | None = None

    def to_json(self) -> dict[str, Any]:
        """A dict that strict JSON can hold."""
        return plain_record(self)

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
    failed = {e.problem.id for e in (*chains, *alone) if not e.valid_K.all()}
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
    failed = {e.problem.id for e in episodes if not e.valid_K.all()}
    table = EpisodeTable.of([e for e in episodes if e.problem.id not in failed])
    columns = [table.accuracy_N(k) for k in range(table.n_attempts)]
    gains = [_difference(columns[0], column, seed) for column in columns[1:]]
    return AttemptCurve(
        tuple(_mean(column, seed) for column in columns),
        tuple([not_measured(), *gains][: len(columns)]),
        len(table.problem_ids),
        len(failed),
    )


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


@contextmanager
def _reading(what: str) -> Iterator[None]:
    """Turns what a value of another form raises into a ``DataError``."""
    try:
        yield
    except (KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f"This is not {what}: {error!r}. Its fields are not those that this version writes. Measure again, or read the "
            "file with the version that wrote it."
        ) from error


def check_budgets(budgets: Sequence[int]) -> None:
    """Refuse budgets that cannot be spent in both ways.

    Raises:
        ConfigError: none, not rising, an odd one above 1, or one out of range.
    """
    shown = ",".join(map(str, budgets)) or "(none)"
    if not budgets or min(budgets) < 1 or max(budgets) > MOST_RESPONSES:
        raise ConfigError(f"--budget {shown}: a budget is a number of responses from 1 to {MOST_RESPONSES}")
    odd = next((k for k in budgets if k > 1 and k % 2), None)
    if odd is not None:
        raise ConfigError(
            f"--budget {shown}: {odd} responses cannot be spent on answers that are each corrected once; take even numbers, or 1"
        )
    if list(budgets) != sorted(set(budgets)):
        raise ConfigError(f"--budget {shown}: the numbers must rise, none of them twice")


def check_temperature(temperature: float) -> None:
    """Refuse votes of a greedy model.

    Raises:
        ConfigError: the temperature is not above 0.
    """
    if temperature <= 0:
        raise ConfigError(
            "--temperature 0 would repeat one greedy answer, so nothing could be outvoted; raise it (the paper: 0.7)"
        )


def check_votes(task: Task) -> CountsAnswers:
    """The task as one whose answers can be counted.

    Raises:
        ConfigError: they cannot, or the first ones are not sampled.
    """
    if isinstance(task, GivesFirst):
        raise ConfigError(
            f"task={task.name} starts from stored first attempts, so there are no parallel samples to vote; leave the votes out "
            "(--only attempts)"
        )
    if not isinstance(task, CountsAnswers):
        raise ConfigError(
            f"task={task.name} has no majority vote: its answers (programs, say) are not texts of which equal ones could be "
            "counted; leave the votes out (--only attempts), or give a task of your own the method answer_key(answer)"
        )
    return task


def measure_votes(
    engine: Engine,
    task: Task,
    problems: Sequence[Problem],
    max_new_tokens: int,
    *,
    budgets: Sequence[int] = BUDGETS,
    temperature: float = TEMPERATURE,
    seed: int = 0,
    on_progress: OnProgress = lambda *_: None,
) -> VoteCurve:
    """Majority vote over K first attempts, against one over K/2 samples that were each corrected once.

    For the largest K every problem gets K/2 episodes of two attempts and K/2 first attempts besides, 3K/2 responses in
    all: the first attempts of the former are among the K parallel ones.

    Args:
        engine: its published weights are measured.
        task: prompts, verdicts, and which answers are the same.
        problems: held-out problems.
        max_new_tokens: cap per attempt.
        budgets: numbers of responses, see ``check_budgets``.
        temperature: above 0; samples of a greedy model do not differ.
        seed: of the random streams and of the bootstrap.
        on_progress: called after every chunk of problems.

    Raises:
        ConfigError: a budget, the temperature or the task does not fit.
    """
    start = time.perf_counter()
    check_budgets(budgets)
    check_temperature(temperature)
    key = check_votes(task).answer_key
    largest = budgets[-1]
    pairs = largest // 2

    ways = [Play(1, largest - pairs, max_new_tokens, temperature, (seed, "scale alone"))]
    if pairs:
        ways.append(Play(2, pairs, max_new_tokens, temperature, (seed, "scale corrected")))
    alone, *chains = _played(engine, task, problems, ways, lambda done: on_progress("votes", done, len(problems)))
    corrected = [e for episodes in chains for e in episodes]
    renumbered = [replace(e, sample=e.sample + pairs) for e in alone]
    return replace(
        vote_curve(corrected, alone, budgets, key, seed=seed),
        settings=_settings(task, problems, max_new_tokens, temperature, seed, responses_per_problem=largest + pairs),
        seconds=time.perf_counter() - start,
        episodes=corrected + renumbered,
    )


def measure_attempts(
    engine: Engine,
    task: Task,
    problems: Sequence[Problem],
    max_new_tokens: int,
    *,
    attempts: int = ATTEMPTS,
    temperature: float = 0.0,
    seed: int = 0,
    on_progress: OnProgress = lambda *_: None,
) -> AttemptCurve:
    """Accuracy after 1, 2, ... attempts in a row, each reading all before it.

    Args:
        engine: its published weights are measured; every conversation must fit its length.
        task: prompts and verdicts.
        problems: held-out problems.
        max_new_tokens: cap per attempt.
        attempts: at least 2.
        temperature: 0 is greedy (the paper's choice).
        seed: of the random streams (unused when greedy) and of the bootstrap.
        on_progress: called after every chunk of problems.
    """
    start = time.perf_counter()
    how = Play(attempts, 1, max_new_tokens, temperature, (seed, "scale attempts"))
    (episodes,) = _played(engine, task, problems, [how], lambda done: on_progress("attempts", done, len(problems)))
    return replace(
        attempt_curve(episodes, seed=seed),
        settings=_settings(task, problems, max_new_tokens, temperature, seed, attempts=attempts),
        seconds=time.perf_counter() - start,
        episodes=episodes,
    )


def _played(
    engine: Engine, task: Task, problems: Sequence[Problem], ways: Sequence[Play], on_done: Callable[[int], None]
) -> list[list[Episode]]:
    """The episodes of each way to play, over all problems, a chunk at a time.

    They come without prompts and log-probs, which nothing reads again and which would fill the memory.
    """
    out: list[list[Episode]] = [[] for _ in ways]
    size = max(1, ROWS_AT_ONCE // sum(way.samples for way in ways))
    for start in range(0, len(problems), size):
        chunk = problems[start : start + size]
        for way, episodes in zip(ways, out, strict=True):
            given = given_answers(engine.chat, task, chunk, way.samples) if isinstance(task, GivesFirst) else None
            for e in chain.from_iterable(asyncio.run(play(engine, task, chunk, way, given))):
                attempts = tuple(replace(a, prompt_ids=None, logprobs=None) for a in e.attempts)
                episodes.append(replace(e, attempts=attempts))
        on_done(start + len(chunk))
    return out


def _settings(
    task: Task, problems: Sequence[Problem], max_new_tokens: int, temperature: float, seed: int, **more: int
) -> dict[str, Any]:
    return {
        "task": task.name,
        "problems": len(problems),
        "temperature": temperature,
        "max_new_tokens": max_new_tokens,
        "seed": seed,
        **more,
    }
