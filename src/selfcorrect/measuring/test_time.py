"""What more sampling buys: accuracy by number of responses, and by number of attempts in a row.

Source: Kumar et al. 2024 (arXiv:2409.12917v2), the figures on inference-time scaling and on ten attempts in a row.
As in `selfcorrect.measuring.metrics`, the unit is the problem, and every mean has an interval over problems.

The curves come first (episodes in, numbers out), then ``measure_votes`` and ``measure_attempts``, which play.

Shape suffixes: ``_N`` problems, ``_K`` attempts.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import chain
from typing import Annotated, Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from selfcorrect.engines.base import Engine
from selfcorrect.episodes.play import Play, given_answers, play
from selfcorrect.episodes.table import EpisodeTable
from selfcorrect.errors import ConfigError
from selfcorrect.measuring.intervals import Estimate, bootstrap_mean, not_measured, paired_difference
from selfcorrect.measuring.records import Number, Storable
from selfcorrect.measuring.votes import Vote, expected_majority
from selfcorrect.tasks.base import CountsAnswers, GivesFirst, Task
from selfcorrect.types import Attempt, Episode, Problem, Verdict

Floats = NDArray[np.float64]
AnswerKey = Callable[[str], str]
Played = Annotated[Sequence[Episode], Field(exclude=True)]
"""Everything that was sampled; not in the JSON."""
BUDGETS = (1, 2, 4, 8, 16, 32)
"""The budgets in the paper."""
MOST_RESPONSES = 256
"""Largest budget. The cost of summing over all subsets of the samples grows with it."""
TEMPERATURE = 0.7
"""Temperature for votes, as in the paper."""
ATTEMPTS = 10
"""Attempts in a row, as in the paper."""
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
    """Majority vote over the second attempts of K/2 samples, which is also K responses. n/a for K = 1."""
    difference: Estimate
    """corrected - parallel, paired by problem."""
    parallel_gain: Estimate
    """parallel minus one first attempt, paired by problem; n/a for K = 1, which is one first attempt."""
    corrected_gain: Estimate
    """corrected minus one first attempt, paired by problem."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Curve(Storable):
    """What all curves have."""

    n_problems: int
    n_left_out: int
    """Problems with a verdict ``error`` among their responses. All numbers leave them out."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    seconds: float = 0.0
    episodes: Played = field(default=(), repr=False, compare=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class VoteCurve(Curve):
    """Accuracy by number of sampled responses."""

    NAME: ClassVar[str] = "vote curve"
    rows: tuple[BudgetRow, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class AttemptCurve(Curve):
    """Accuracy after 1, 2, ... attempts in a row."""

    NAME: ClassVar[str] = "curve of attempts"
    accuracy_K: tuple[Estimate, ...]
    gain_K: tuple[Estimate, ...]
    """Accuracy minus that of attempt 1, paired by problem; n/a for attempt 1."""


@dataclass(frozen=True, slots=True)
class TokenRow:
    """One budget of sampled tokens for a problem, spent in four ways. n/a where a way cannot spend as little or as much."""

    responses: int
    """First attempts that the budget pays for."""
    tokens: float
    """The budget: expected sampled tokens of a problem."""
    parallel: Estimate
    """Majority vote over first attempts."""
    corrected: Estimate
    """Majority vote over second attempts, each after a first one."""
    gated: Estimate
    """Majority vote over final answers where the model's verdict decides whether an answer is revised."""
    best: Estimate
    """One of the first attempts that the model calls correct, by lot; of all where it calls none so."""
    corrected_gain: Estimate
    """corrected - parallel, paired by problem; the next two alike."""
    gated_gain: Estimate
    best_gain: Estimate


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenCurve(Curve):
    """Accuracy by number of sampled tokens."""

    NAME: ClassVar[str] = "token curve"
    rows: tuple[TokenRow, ...]
    """Empty where every problem is left out."""
    tokens_per_sample: Mapping[str, Number]
    """Mean sampled tokens of one sample of each way; nan for a way without samples."""


@dataclass(frozen=True, slots=True)
class ScalingCurves(Storable):
    """The curves of one model: the content of ``scaling.json`` in a run directory."""

    NAME: ClassVar[str] = "measurement of scaling"
    model: str
    step: int | None
    """Step of the measured checkpoint, if the model is a run."""
    command: str
    votes: VoteCurve | None = None
    """None if it was not measured; likewise ``attempts``."""
    attempts: AttemptCurve | None = None
    tokens: TokenCurve | None = None


def vote_curve(
    chains: Sequence[Episode], alone: Sequence[Episode], budgets: Sequence[int], key: AnswerKey, *, seed: int = 0
) -> VoteCurve:
    """Majority votes over parallel first attempts, compared with votes over the same number of responses in corrected
    pairs.

    The value of a problem is its expectation over all choices of voting samples (`expected_majority`): the largest
    budget uses every sample once, smaller budgets use all subsets.

    Args:
        chains: episodes of two attempts; at least K/2 per problem for the largest budget K. Their first attempts are
            among the parallel ones too.
        alone: episodes of one attempt, of the same problems; with the chains at least K first attempts per problem.
        budgets: rising numbers of responses; all but 1 are even.
        key: which answers are the same, see ``tasks.base.CountsAnswers``.
        seed: of the bootstrap.
    """
    failed = {e.problem.id for e in (*chains, *alone) if not e.valid_K.all()}
    firsts: dict[str, list[Vote]] = {}
    lasts: dict[str, list[Vote]] = {}
    for episode in (*chains, *alone):
        if episode.problem.id not in failed:
            firsts.setdefault(episode.problem.id, []).append(vote_of(episode.attempts[0], key))
    for episode in chains:
        if episode.problem.id not in failed:
            lasts.setdefault(episode.problem.id, []).append(vote_of(episode.attempts[-1], key))
    names = sorted(firsts)
    first_votes, last_votes = ([votes.get(name, []) for name in names] for votes in (firsts, lasts))
    mean, gap = intervals(seed)
    one_N = _majorities(first_votes, 1)
    rows = []
    for k in budgets:
        if k == 1:
            rows.append(BudgetRow(1, mean(one_N), *[not_measured()] * 4))
            continue
        parallel_N, corrected_N = _majorities(first_votes, k), _majorities(last_votes, k // 2)
        gaps = (gap(parallel_N, corrected_N), gap(one_N, parallel_N), gap(one_N, corrected_N))
        rows.append(BudgetRow(k, mean(parallel_N), mean(corrected_N), *gaps))
    return VoteCurve(rows=tuple(rows), n_problems=len(names), n_left_out=len(failed))


def attempt_curve(episodes: Sequence[Episode], *, seed: int = 0) -> AttemptCurve:
    """Accuracy of every attempt, and its gain over the first.

    Args:
        episodes: graded, all with the same number of attempts. May be several per problem.
        seed: of the bootstrap.
    """
    failed = {e.problem.id for e in episodes if not e.valid_K.all()}
    table = EpisodeTable.of([e for e in episodes if e.problem.id not in failed])
    columns = [table.accuracy_N(k) for k in range(table.n_attempts)]
    mean, gap = intervals(seed)
    gains = tuple(gap(columns[0], column) if k else not_measured() for k, column in enumerate(columns))
    n, left_out = len(table.problem_ids), len(failed)
    return AttemptCurve(accuracy_K=tuple(map(mean, columns)), gain_K=gains, n_problems=n, n_left_out=left_out)


def vote_of(attempt: Attempt, key: AnswerKey) -> Vote:
    """The vote of an attempt. A text without an answer abstains. If its verdict names no extracted answer, it votes
    with its whole text."""
    grade = attempt.grade
    if grade is None or grade.verdict in (Verdict.NO_ANSWER, Verdict.TRUNCATED):
        return Vote(None, False)
    return Vote(key(attempt.text.strip() if grade.extracted is None else grade.extracted), attempt.correct)


def _majorities(votes_N: Sequence[Sequence[Vote]], k: int) -> Floats:
    return np.array([expected_majority(votes, k) for votes in votes_N], dtype=np.float64)


def intervals(seed: int) -> tuple[Callable[[Floats], Estimate], Callable[[Floats, Floats], Estimate]]:
    """Functions for the mean of shares and for the paired difference of two, over problems."""
    mean = partial(bootstrap_mean, seed=seed, support=(0.0, 1.0))
    return mean, partial(paired_difference, seed=seed, support=(-1.0, 1.0))


def check_votes(task: Task, budgets: Sequence[int] = BUDGETS, temperature: float = TEMPERATURE) -> CountsAnswers:
    """Check that votes can be measured, and return the task as one whose answers can be counted.

    Raises:
        ConfigError: a budget cannot be spent in both ways, the model would be greedy, the task's answers cannot be
            counted, or its first attempts are not sampled.
    """
    shown = ",".join(map(str, budgets)) or "(none)"
    if not budgets or min(budgets) < 1 or max(budgets) > MOST_RESPONSES:
        raise ConfigError(f"--budget {shown}: a budget is a number of responses from 1 to {MOST_RESPONSES}")
    if odd := next((k for k in budgets if k > 1 and k % 2), None):
        raise ConfigError(
            f"--budget {shown}: {odd} responses cannot be spent on answers that are each corrected once; take even numbers, or 1"
        )
    if list(budgets) != sorted(set(budgets)):
        raise ConfigError(f"--budget {shown}: the numbers must rise, without repeats")
    if temperature <= 0:
        raise ConfigError(
            "--temperature 0 would repeat one greedy answer, so nothing could be outvoted; raise it (the paper: 0.7)"
        )
    if isinstance(task, GivesFirst):
        raise ConfigError(
            f"task={task.name} starts from stored first attempts, so there are no parallel samples to vote; leave the votes out "
            "(--only attempts)"
        )
    if not isinstance(task, CountsAnswers):
        raise ConfigError(
            f"task={task.name} has no majority vote: its answers (such as programs) are not texts, so equal ones cannot be "
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
    """Majority vote over K first attempts, compared with a vote over K/2 samples that were each corrected once.

    For the largest K every problem gets K/2 episodes of two attempts and K/2 further first attempts, 3K/2 responses in
    all: the first attempts of the episodes are among the K parallel ones.

    Args:
        engine: its published weights are measured.
        task: prompts, verdicts, and which answers are the same.
        problems: held-out problems.
        max_new_tokens: cap per attempt.
        budgets: numbers of responses, see ``check_votes``.
        temperature: above 0; samples of a greedy model do not differ.
        seed: of the random streams and of the bootstrap.
        on_progress: called after every chunk of problems.

    Raises:
        ConfigError: as ``check_votes``.
    """
    start = time.perf_counter()
    key = check_votes(task, budgets, temperature).answer_key
    largest = budgets[-1]
    pairs = largest // 2
    ways = [Play(1, largest - pairs, max_new_tokens, temperature, (seed, "scale alone"))]
    if pairs:
        ways.append(Play(2, pairs, max_new_tokens, temperature, (seed, "scale corrected")))
    settings, (alone, *chains) = play_ways(engine, task, problems, ways, "votes", on_progress)
    corrected = [e for episodes in chains for e in episodes]
    renumbered = [replace(e, sample=e.sample + pairs) for e in alone]
    return replace(
        vote_curve(corrected, alone, budgets, key, seed=seed),
        settings={**settings, "responses_per_problem": largest + pairs},
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
    """Accuracy after 1, 2, ... ``attempts`` in a row, each reading all before it. The paper plays them greedily.

    The other arguments are those of ``measure_votes``; every conversation must fit the engine's length.
    """
    start = time.perf_counter()
    how = Play(attempts, 1, max_new_tokens, temperature, (seed, "scale attempts"))
    settings, (episodes,) = play_ways(engine, task, problems, [how], "attempts", on_progress)
    return replace(
        attempt_curve(episodes, seed=seed),
        settings={**settings, "attempts": attempts},
        seconds=time.perf_counter() - start,
        episodes=episodes,
    )


def play_ways(
    engine: Engine, task: Task, problems: Sequence[Problem], ways: Sequence[Play], what: str, on_progress: OnProgress
) -> tuple[dict[str, Any], list[list[Episode]]]:
    """Play all problems in each of the ``ways``, a chunk at a time. Returns the common settings and the episodes of
    each way.

    The episodes have no prompts and log-probs: nothing reads them again, and they would take much memory.
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
        on_progress(what, start + len(chunk), len(problems))
    settings = {
        "task": task.name,
        "problems": len(problems),
        "temperature": ways[0].temperature,
        "max_new_tokens": ways[0].max_new_tokens,
        "seed": ways[0].stream[0],
    }
    return settings, out
