"""Sampling more at test time: majority votes against corrected pairs, and many attempts in a row.

One function per figure, each from an engine to a small value that `selfcorrect.measuring.test_time` computes.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

from selfcorrect.engines.base import Engine
from selfcorrect.episodes.play import Play, given_answers, play
from selfcorrect.errors import ConfigError
from selfcorrect.measuring.test_time import AttemptCurve, VoteCurve, attempt_curve, vote_curve
from selfcorrect.tasks.base import CountsAnswers, GivesFirst, Task
from selfcorrect.types import Episode, Problem

BUDGETS = (1, 2, 4, 8, 16, 32)
"""The paper's."""
MOST_RESPONSES = 256
"""Largest budget: the sums over all subsets of the samples grow with it."""
TEMPERATURE = 0.7
"""Of the votes (the paper's)."""
ATTEMPTS = 10
"""In a row (the paper's)."""
ROWS_AT_ONCE = 512
"""Conversations played together: enough to fill the engine's batches, few enough for progress to be seen."""

Told = Callable[[str, int, int], None]
"""``told(what, done, of)``: problems played so far."""


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
    told: Told = lambda *_: None,
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
        told: hears of progress.

    Raises:
        ConfigError: a budget, the temperature or the task does not fit.
    """
    start = time.perf_counter()
    check_budgets(budgets)
    check_temperature(temperature)
    key = check_votes(task).answer_key
    largest = budgets[-1]
    pairs = largest // 2

    corrected = Play(2, pairs, max_new_tokens, temperature, (seed, "scale corrected"))
    once = Play(1, largest - pairs, max_new_tokens, temperature, (seed, "scale alone"))
    chains: list[Episode] = []
    alone: list[Episode] = []
    for done, chunk in _chunks(problems, largest):
        chains += _episodes(engine, task, chunk, corrected) if pairs else []
        alone += _episodes(engine, task, chunk, once)
        told("votes", done, len(problems))
    renumbered = [replace(e, sample=e.sample + pairs) for e in alone]
    return replace(
        vote_curve(chains, alone, budgets, key, seed=seed),
        settings=_settings(task, problems, max_new_tokens, temperature, seed, responses_per_problem=largest + pairs),
        seconds=time.perf_counter() - start,
        episodes=chains + renumbered,
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
    told: Told = lambda *_: None,
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
        told: hears of progress.
    """
    start = time.perf_counter()
    how = Play(attempts, 1, max_new_tokens, temperature, (seed, "scale attempts"))
    episodes: list[Episode] = []
    for done, chunk in _chunks(problems, 1):
        episodes += _episodes(engine, task, chunk, how)
        told("attempts", done, len(problems))
    return replace(
        attempt_curve(episodes, seed=seed),
        settings=_settings(task, problems, max_new_tokens, temperature, seed, attempts=attempts),
        seconds=time.perf_counter() - start,
        episodes=episodes,
    )


def _chunks(problems: Sequence[Problem], rows_each: int) -> Iterator[tuple[int, Sequence[Problem]]]:
    """Problems to play together, with the number that are done after them."""
    size = max(1, ROWS_AT_ONCE // rows_each)
    for start in range(0, len(problems), size):
        chunk = problems[start : start + size]
        yield start + len(chunk), chunk


def _episodes(engine: Engine, task: Task, problems: Sequence[Problem], how: Play) -> list[Episode]:
    """Without prompts and log-probs, which nobody reads again and which would fill the memory."""
    given = given_answers(engine.chat, task, problems, how.samples) if isinstance(task, GivesFirst) else None
    groups = asyncio.run(play(engine, task, problems, how, given))
    return [
        replace(e, attempts=tuple(replace(a, prompt_ids=None, logprobs=None) for a in e.attempts))
        for group in groups
        for e in group
    ]


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
