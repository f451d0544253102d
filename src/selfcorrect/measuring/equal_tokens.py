"""What a budget of tokens buys, spent in four ways: votes, corrected votes, corrections that the model's verdict asks for,
and the best of several answers by the model's own verdict.

Responses are no fair unit: a verdict is short, and a revision is played or not. Here every way gets the same expected
number of sampled tokens. Where it falls between n and n + 1 responses, a lot decides between the two, so that the mean is
the budget; the accuracy is the mean of both, which is exact. Prompts are not counted: they are not sampled.

Shape suffix: ``_N`` problems.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import comb

import numpy as np

from selfcorrect.engines.base import Engine
from selfcorrect.episodes.play import Play
from selfcorrect.measuring.intervals import not_measured
from selfcorrect.measuring.test_time import (
    AnswerKey,
    Floats,
    OnProgress,
    TokenCurve,
    TokenRow,
    VoteCurve,
    check_votes,
    intervals,
    play_ways,
    vote_of,
)
from selfcorrect.measuring.votes import Vote, expected_majority
from selfcorrect.tasks.base import Task
from selfcorrect.types import Episode, Problem


@dataclass(frozen=True, slots=True)
class Sample:
    """One sample of one way: its final answer, and what it cost."""

    vote: Vote
    tokens: int
    calls_correct: bool = False
    """The model's verdict on the answer is "correct"."""


def expected_best(samples: Sequence[Sample], n: int) -> float:
    """Probability that one of ``n`` of these answers is right, taken by lot among those that the model calls correct.

    Where it calls none of the n so, one is taken by lot. The mean over all subsets of size n, exactly: every answer of a
    kind is as likely to be taken, so only the chance counts that none of the n is called correct.

    Args:
        samples: all first attempts of one problem, with the model's verdicts.
        n: how many are looked at; from 1 to len(samples).
    """
    assert 1 <= n <= len(samples), f"{n} of {len(samples)} answers cannot be looked at"
    called = [s.vote.correct for s in samples if s.calls_correct]
    others = [s.vote.correct for s in samples if not s.calls_correct]
    none_called = comb(len(others), n) / comb(len(samples), n)
    right_called = sum(called) / len(called) if called else 0.0
    right_others = sum(others) / len(others) if others else 0.0
    return (1 - none_called) * right_called + none_called * right_others


def token_curve(
    plain: Sequence[Episode], gated: Sequence[Episode], budgets: Sequence[int], key: AnswerKey, *, seed: int = 0
) -> TokenCurve:
    """Accuracy of the four ways at equal numbers of expected tokens.

    Args:
        plain: episodes of one or two attempts without verdicts; their first attempts are the parallel ones.
        gated: episodes of two attempts with a verdict turn and the stop rule, of the same problems.
        budgets: rising numbers of first attempts; each is a budget of tokens.
        key: which answers are the same, see ``tasks.base.CountsAnswers``.
        seed: of the bootstrap.
    """
    failed = {e.problem.id for e in (*plain, *gated) if not e.valid_K.all()}
    ways: dict[str, dict[str, list[Sample]]] = {"parallel": {}, "corrected": {}, "gated": {}, "best": {}}
    for e in (*plain, *gated):
        if e.problem.id in failed:
            continue
        counts = [len(a.token_ids or ()) for a in e.attempts]
        first, last = vote_of(e.attempts[0], key), vote_of(e.answers[-1], key)
        made = {"parallel": Sample(first, counts[0])}
        if e.verdicts:
            grade = e.verdicts[0].grade
            calls_correct = grade is not None and grade.extracted == "correct"
            made = {"gated": Sample(last, sum(counts)), "best": Sample(first, sum(counts[:2]), calls_correct)}
        elif len(e.answers) > 1:
            made["corrected"] = Sample(last, sum(counts))
        for way, sample in made.items():
            ways[way].setdefault(e.problem.id, []).append(sample)
    names = sorted(ways["parallel"])
    by_way = {way: [samples.get(name, []) for name in names] for way, samples in ways.items()}
    unit = {way: _mean_tokens(samples_N) for way, samples_N in by_way.items()}
    mean, gap = intervals(seed)
    rows = []
    for k in budgets if names else ():  # without a problem a budget is no number of tokens
        tokens = k * unit["parallel"]
        accuracy = {way: _accuracy_N(way, samples_N, tokens / unit[way]) for way, samples_N in by_way.items()}
        parallel_N = accuracy.pop("parallel")
        assert parallel_N is not None, "the budgets are those of the parallel samples"
        rows.append(
            TokenRow(
                k,
                tokens,
                mean(parallel_N),
                *(not_measured() if a is None else mean(a) for a in accuracy.values()),
                *(not_measured() if a is None else gap(parallel_N, a) for a in accuracy.values()),
            )
        )
    return TokenCurve(rows=tuple(rows), tokens_per_sample=unit, n_problems=len(names), n_left_out=len(failed))


def _mean_tokens(samples_N: Sequence[Sequence[Sample]]) -> float:
    """Of one sample: over a problem's samples first, then over the problems. nan where there are none."""
    means = [np.mean([s.tokens for s in samples]) for samples in samples_N if samples]
    return float(np.mean(means)) if means else float("nan")


def _accuracy_N(way: str, samples_N: Sequence[Sequence[Sample]], n: float) -> Floats | None:
    """Expected accuracy of each problem with n samples; between two whole numbers a lot decides. None where n is out of reach."""
    most = min(map(len, samples_N), default=0)
    if abs(n - (whole := np.rint(n))) < 1e-9 * n:  # a quotient of means: 6 may come out as a little more than 6
        n = float(whole)
    if not 1 <= n <= most:  # nan too
        return None

    def with_whole(count: int) -> Floats:
        if way == "best":
            return np.array([expected_best(samples, count) for samples in samples_N])
        return np.array([expected_majority([s.vote for s in samples], count) for samples in samples_N])

    below = int(n)
    share = n - below
    return with_whole(below) if share == 0 else (1 - share) * with_whole(below) + share * with_whole(below + 1)


def measure_tokens(
    engine: Engine,
    task: Task,
    problems: Sequence[Problem],
    votes: VoteCurve,
    *,
    verdict: str,
    on_progress: OnProgress = lambda *_: None,
) -> TokenCurve:
    """Play chains with the model's verdict, and set them against the samples of a vote at equal tokens.

    Every problem gets half as many such chains as the largest budget has responses, at least one.

    Args:
        engine, task, problems, on_progress: as for ``measure_votes``.
        votes: measured with them. Budgets, token cap, temperature and seed are those of this vote.
        verdict: request for the verdict.
    """
    start = time.perf_counter()
    budgets, of_votes = [row.responses for row in votes.rows], votes.settings
    seed, temperature = of_votes["seed"], of_votes["temperature"]
    key = check_votes(task, budgets, temperature).answer_key
    way = Play(
        2,
        max(1, budgets[-1] // 2),
        of_votes["max_new_tokens"],
        temperature,
        (seed, "scale gated"),
        verdict=verdict,
        stop=True,
    )
    settings, (gated,) = play_ways(engine, task, problems, [way], "verdicts", on_progress)
    return replace(
        token_curve(votes.episodes, gated, budgets, key, seed=seed),
        settings={**settings, "verdict": verdict, "gated_per_problem": way.samples},
        seconds=time.perf_counter() - start,
        episodes=gated,
    )
