"""Measuring a model on held-out problems: t1..tN with intervals, and whether attempt 2 reads attempt 1 at all."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from selfcorrect.config import EvalConfig
from selfcorrect.engines.base import Engine
from selfcorrect.episodes.play import GivenFirst, Play, given_answers, play
from selfcorrect.errors import ConfigError
from selfcorrect.measuring.metrics import EvalSummary, summarise
from selfcorrect.tasks.base import GivesFirst, Task
from selfcorrect.types import Episode, Problem

FEEDBACK = (
    "Read your answer again, step by step. Say which steps are right, and if one is wrong, which one and why. Do not write "
    "a new answer yet."
)
"""Self-Refine's feedback request (Madaan et al. 2023, in our words). Fixed, and blind to whether the answer is right; the
refinement is then asked for with the task's own instruction."""

TRIES_FOR_A_WRONG_ANSWER = 8
"""First answers sampled per problem when looking for a wrong one to give."""


@dataclass(frozen=True, slots=True)
class Evaluation:
    """One measurement: every episode, and what they add up to."""

    name: str
    episodes: list[Episode]
    summary: EvalSummary
    settings: dict[str, Any] = field(default_factory=dict)
    seconds: float = 0.0


def held_out(task: Task, limit: int | None) -> list[Problem]:
    """The first ``limit`` test problems of one fixed shuffle: the same for every run, so that runs can be paired."""
    problems = task.problems("test")
    order = np.random.default_rng(0).permutation(len(problems))
    return [problems[i] for i in order[:limit]]


def check_attempts(task: Task, settings: EvalConfig) -> None:
    """Refuse an evaluation in which the model would write nothing.

    Raises:
        ConfigError: the task gives attempt 1, and no other is played.
    """
    if isinstance(task, GivesFirst) and settings.attempts < 2:
        raise ConfigError(
            f"task={task.name} gives attempt 1, so eval.attempts=1 would measure nothing of the model; set it to 2"
        )


def evaluate(
    engine: Engine,
    task: Task,
    problems: Sequence[Problem],
    settings: EvalConfig,
    max_new_tokens: int,
    *,
    name: str = "eval",
    seed: int = 0,
    given_first: GivenFirst | None = None,
    feedback: str | None = None,
) -> Evaluation:
    """Play every problem and summarise.

    Args:
        engine: its published weights are measured.
        task: prompts and verdicts.
        problems: held-out problems.
        settings: attempts, temperature, samples.
        max_new_tokens: cap per attempt.
        name: goes into the records.
        seed: of the random streams (unused when greedy) and of the bootstrap.
        given_first: first answers to start from instead of sampled ones; None takes those that the task itself stores.
        feedback: request for an ungraded turn between two attempts (``FEEDBACK``: Self-Refine).
    """
    start = time.perf_counter()
    if given_first is None and isinstance(task, GivesFirst):
        given_first = given_answers(engine.chat, task, problems, settings.samples)
    how = Play(
        settings.attempts, settings.samples, max_new_tokens, settings.temperature, (seed, "eval"), feedback=feedback
    )
    groups = asyncio.run(play(engine, task, problems, how, given_first))
    episodes = [e for group in groups for e in group]
    described = {
        "task": task.name,
        "problems": len(problems),
        "attempts": settings.attempts,
        "samples": settings.samples,
        "temperature": settings.temperature,
        "max_new_tokens": max_new_tokens,
        "seed": seed,
        **({"feedback": feedback} if feedback is not None else {}),
    }
    return Evaluation(name, episodes, summarise(episodes, seed=seed), described, time.perf_counter() - start)


def controls(
    engine: Engine,
    task: Task,
    measured: Evaluation,
    settings: EvalConfig,
    max_new_tokens: int,
    *,
    seed: int = 0,
    feedback: str | None = None,
) -> list[Evaluation]:
    """Measure the second attempt again after first attempts it did not write.

    ``swapped``: another problem's first attempt (of the same level where there is one). A model that uses attempt 1
    loses most of its gain. ``given_wrong``: a wrong first attempt of its own at the same problem, sampled at
    temperature 1; problems at which none of a few samples is wrong are left out. A task that gives first attempts is
    itself that kind of measurement and has no ``given_wrong``.

    Args:
        engine: its published weights are measured.
        task: prompts and verdicts.
        measured: a plain evaluation of the same weights; its first attempts are those that are swapped.
        settings: temperature of the second attempt.
        max_new_tokens: cap per attempt.
        seed: of the random streams.
        feedback: as in ``evaluate``.
    """
    once = settings.model_copy(update={"samples": 1, "attempts": 2})
    firsts = {e.problem.id: (e.attempts[0].token_ids or (),) for e in measured.episodes if e.sample == 0}
    problems = list({e.problem.id: e.problem for e in measured.episodes}.values())
    partner = partners(problems)
    swapped = {p.id: firsts[partner[p.id]] for p in problems}
    wrong = {} if isinstance(task, GivesFirst) else _wrong_firsts(engine, task, problems, max_new_tokens, seed)
    out = []
    for name, given in ((f"{measured.name}-swapped", swapped), (f"{measured.name}-given-wrong", wrong)):
        usable = [p for p in problems if p.id in given]
        if usable:
            made = evaluate(
                engine, task, usable, once, max_new_tokens, name=name, seed=seed, given_first=given, feedback=feedback
            )
            out.append(made)
    return out


def answers_per_problem(settings: EvalConfig, with_controls: bool) -> int:
    """The most answers that an evaluation, and its controls, sample for a problem."""
    plain = settings.samples * settings.attempts
    # swapped: attempt 2; given wrong: the search for a wrong attempt 1, then attempt 2
    return plain + (1 + TRIES_FOR_A_WRONG_ANSWER + 1 if with_controls else 0)


def partners(problems: Sequence[Problem]) -> dict[str, str]:
    """Another problem's id for each problem: the next one of the same level, else simply the next one."""
    by_level: dict[str | None, list[Problem]] = {}
    for p in problems:
        by_level.setdefault(p.level, []).append(p)
    rings = [ring for ring in by_level.values() if len(ring) > 1]
    alone = [ring[0] for ring in by_level.values() if len(ring) == 1]
    partner = {p.id: ring[(i + 1) % len(ring)].id for ring in rings for i, p in enumerate(ring)}
    for p in alone:
        partner[p.id] = next((q.id for q in problems if q.id != p.id), p.id)
    return partner


def _wrong_firsts(
    engine: Engine, task: Task, problems: Sequence[Problem], max_new_tokens: int, seed: int
) -> dict[str, tuple[tuple[int, ...]]]:
    how = Play(1, TRIES_FOR_A_WRONG_ANSWER, max_new_tokens, 1.0, (seed, "wrong firsts"))
    found: dict[str, tuple[tuple[int, ...]]] = {}
    for group in asyncio.run(play(engine, task, problems, how)):
        for episode in group:
            first = episode.attempts[0]
            if first.wrong and first.stop == "end" and first.token_ids is not None:
                found[episode.problem.id] = (first.token_ids,)
                break
    return found
