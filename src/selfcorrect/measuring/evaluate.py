"""Measures a model on held-out problems: t1..tN with intervals, and controls for whether attempt 2 uses attempt 1 at
all.

An ``Evaluator`` says what is measured; a ``Player`` plays it, with an engine here or with an endpoint
(``selfcorrect.measuring.endpoint``).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np

from selfcorrect.config import Config, EvalConfig
from selfcorrect.engines.base import Engine, LimitsMemory
from selfcorrect.episodes.play import GivenFirst, Play, given_answers, longest_conversation, play
from selfcorrect.episodes.verdict import FORM, verdict_turn
from selfcorrect.errors import ConfigError
from selfcorrect.measuring.metrics import EvalSummary, summarise
from selfcorrect.tasks.base import GivesFirst, Task
from selfcorrect.types import Attempt, Episode, Problem, Verdict

FEEDBACK = (
    "Read your answer again, step by step. Say which steps are right, and if one is wrong, which one and why. Do not write "
    "a new answer yet."
)
"""Self-Refine's feedback request (after Madaan et al. 2023, reworded). It is fixed and does not depend on whether the
answer is right. The task's own instruction then asks for the refinement."""

TRIES_FOR_A_WRONG_ANSWER = 8
"""First answers sampled per problem to find a wrong one for the control."""

Firsts = Mapping[str, Sequence[Any]]
"""Per problem id, a first answer for every sample, in the form that the player gives: token ids, or text."""


@dataclass(frozen=True, slots=True)
class Evaluation:
    """One measurement: every episode, and the summary."""

    name: str
    episodes: list[Episode]
    summary: EvalSummary
    settings: dict[str, Any] = field(default_factory=dict)
    seconds: float = 0.0


class Player(Protocol):
    """Plays episodes with one model."""

    async def play(self, name: str, problems: Sequence[Problem], how: Play, firsts: Firsts | None) -> list[Episode]:
        """Play ``how.samples`` episodes of each problem. ``how.stream`` holds the seed, and the player extends it to a
        key."""
        ...

    async def wrong_firsts(self, problems: Sequence[Problem], how: Play) -> Firsts:
        """One wrong answer of the model per problem, if one of ``how.samples`` is usable (see ``usable_wrong``)."""
        ...

    def stored(self, problems: Sequence[Problem], samples: int) -> Firsts | None:
        """The first answers that the task gives; None where it gives none."""
        ...

    def first_of(self, attempt: Attempt) -> Any:
        """A first attempt in the form in which it can be given; None if it has no text."""
        ...


@dataclass(frozen=True, slots=True)
class Evaluator:
    """Says what is measured; works with any player."""

    player: Player
    task: Task
    settings: EvalConfig
    max_new_tokens: int
    """Cap per attempt."""
    seed: int = 0
    """Of the random streams (unused when greedy) and of the bootstrap."""
    feedback: str | None = None
    """Request for an ungraded turn between two attempts (``FEEDBACK``: Self-Refine)."""
    verdict: str | None = None
    """Request for a turn between two attempts in which the model judges its answer (PAG)."""
    stop: bool = False
    """Play the next attempt only where that verdict is "wrong"."""

    @classmethod
    def of(cls, player: Player, task: Task, config: Config) -> Evaluator:
        """An evaluator with the settings of a config; ``method=self_refine`` adds the feedback turn, ``method=pag`` the
        verdict turn."""
        feedback = FEEDBACK if config.method.name == "self_refine" else None
        verdict = verdict_turn(config)
        return cls(player, task, config.eval, config.play.max_new_tokens, config.seed, feedback, **verdict)

    @property
    def between(self) -> dict[str, Any]:
        """What is played between two attempts, as the settings of a measurement say it."""
        turns = {"feedback": self.feedback, "verdict": self.verdict}
        asked = {name: request for name, request in turns.items() if request is not None}
        return asked | ({"stop": self.stop} if self.verdict is not None else {})

    async def run(self, problems: Sequence[Problem], name: str = "plain") -> list[Evaluation]:
        """The plain evaluation and, where the settings ask for them, its controls."""
        plain = await self.evaluate(problems, name)
        wanted = self.settings.controls and self.settings.attempts > 1
        return [plain, *(await self.controls(plain) if wanted else [])]

    async def evaluate(self, problems: Sequence[Problem], name: str, firsts: Firsts | None = None) -> Evaluation:
        """Play every problem and summarise; ``firsts`` None takes the first answers that the task itself stores."""
        start = time.perf_counter()
        attempts, samples, temperature = self.settings.attempts, self.settings.samples, self.settings.temperature
        if firsts is None:
            firsts = self.player.stored(problems, samples)
        how = Play(attempts, samples, self.max_new_tokens, temperature, (self.seed,))
        how = replace(how, feedback=self.feedback, verdict=self.verdict, stop=self.stop)
        episodes = await self.player.play(name, problems, how, firsts)
        settings = {
            "task": self.task.name,
            "problems": len(problems),
            "attempts": attempts,
            "samples": samples,
            "temperature": temperature,
            "max_new_tokens": self.max_new_tokens,
            "seed": self.seed,
            **self.between,
        }
        summary = summarise(episodes, seed=self.seed)
        return Evaluation(name, episodes, summary, settings, time.perf_counter() - start)

    async def controls(self, measured: Evaluation) -> list[Evaluation]:
        """Measure second attempts again, after first attempts that do not belong to them.

        ``swapped``: another problem's first attempt, of the same level where there is one; a model that uses attempt 1
        loses most of its gain. ``given-wrong``: the model's own wrong first attempt, sampled at temperature 1. Problems
        without one are left out. A task that gives first attempts has no such control.

        Args:
            measured: a plain evaluation of the same weights; its first attempts are those that are swapped.
        """
        once = replace(self, settings=self.settings.model_copy(update={"samples": 1, "attempts": 2}))
        own = {e.problem.id: self.player.first_of(e.attempts[0]) for e in measured.episodes if e.sample == 0}
        problems = list({e.problem.id: e.problem for e in measured.episodes}.values())
        partner = partners([p for p in problems if own[p.id] is not None])
        given: dict[str, Firsts] = {"swapped": {i: (own[other],) for i, other in partner.items()}}
        if not isinstance(self.task, GivesFirst):
            how = Play(1, TRIES_FOR_A_WRONG_ANSWER, self.max_new_tokens, 1.0, (self.seed,))
            given["given-wrong"] = await self.player.wrong_firsts(problems, how)
        out = []
        for control, firsts in given.items():
            usable = [p for p in problems if p.id in firsts]
            if usable:
                out.append(await once.evaluate(usable, f"{measured.name}-{control}", firsts))
        return out


def usable_wrong(episode: Episode) -> bool:
    """Whether an episode's first attempt can be given as a wrong one: judged wrong, not cut, and with thinking that
    ends."""
    first = episode.attempts[0]
    unfinished = first.grade is not None and first.grade.verdict is Verdict.TRUNCATED
    return first.wrong and first.stop == "end" and not unfinished


@dataclass(frozen=True, slots=True)
class EnginePlayer:
    """A ``Player`` that samples from an engine's published weights."""

    engine: Engine
    task: Task

    async def play(self, name: str, problems: Sequence[Problem], how: Play, firsts: Firsts | None) -> list[Episode]:
        how = replace(how, stream=(*how.stream, "eval"))
        return [e for group in await self._groups(problems, how, firsts) for e in group]

    async def _groups(
        self, problems: Sequence[Problem], how: Play, firsts: Firsts | None = None
    ) -> list[list[Episode]]:
        """Play some problems after the others where the caches of all would take too much memory."""
        engine, cap = self.engine, how.max_new_tokens
        if isinstance(engine, LimitsMemory) and problems:
            tokens = longest_conversation(
                engine.chat, self.task, problems, how.attempts, cap, how.between, any_cap=True
            )
            at_once = engine.episodes_at_once(tokens)
            if at_once is not None and at_once < len(problems) * how.samples:
                groups: list[list[Episode]] = []
                n = max(1, at_once // how.samples)
                for start in range(0, len(problems), n):
                    groups += await play(engine, self.task, problems[start : start + n], how, firsts)
                    engine.drop_caches()
                return groups
        return await play(engine, self.task, problems, how, firsts)

    async def wrong_firsts(self, problems: Sequence[Problem], how: Play) -> Firsts:
        groups = await self._groups(problems, replace(how, stream=(*how.stream, "wrong firsts")))
        wrong = [next(filter(usable_wrong, group), None) for group in groups]
        return {e.problem.id: (e.attempts[0].token_ids,) for e in wrong if e is not None}

    def stored(self, problems: Sequence[Problem], samples: int) -> Firsts | None:
        task = self.task
        return given_answers(self.engine.chat, task, problems, samples) if isinstance(task, GivesFirst) else None

    def first_of(self, attempt: Attempt) -> tuple[int, ...]:
        return attempt.token_ids or ()


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
) -> Evaluation:
    """``Evaluator.evaluate`` with an engine."""
    evaluator = Evaluator(EnginePlayer(engine, task), task, settings, max_new_tokens, seed)
    return asyncio.run(evaluator.evaluate(problems, name, given_first))


def controls(
    engine: Engine, task: Task, measured: Evaluation, settings: EvalConfig, max_new_tokens: int, *, seed: int = 0
) -> list[Evaluation]:
    """``Evaluator.controls`` with an engine."""
    return asyncio.run(Evaluator(EnginePlayer(engine, task), task, settings, max_new_tokens, seed).controls(measured))


def held_out(task: Task, limit: int | None) -> list[Problem]:
    """The first ``limit`` test problems of one fixed shuffle: the same for every run, so that runs can be paired."""
    problems = task.problems("test")
    order = np.random.default_rng(0).permutation(len(problems))
    return [problems[i] for i in order[:limit]]


def check_attempts(task: Task, settings: EvalConfig) -> None:
    """Refuse an evaluation in which the model would not write anything.

    Raises:
        ConfigError: the task gives attempt 1, and no other is played.
    """
    if isinstance(task, GivesFirst) and settings.attempts < 2:
        raise ConfigError(
            f"task={task.name} gives attempt 1, so eval.attempts=1 would measure nothing of the model; set it to 2"
        )


def check_turns(config: Config) -> None:
    """Refuse an evaluation without a place for the turn that the method plays between attempts.

    Raises:
        ConfigError: it has too few attempts, or more than the method.
    """
    attempts = config.eval.attempts
    if config.method.name == "self_refine" and attempts < 2:
        raise ConfigError("method=self_refine asks for feedback between attempts: set eval.attempts to 2 or more")
    if config.method.name == "pag" and attempts != 2:
        raise ConfigError(
            f"method=pag has exactly two attempts, with the model's verdict between them, and eval.attempts is {attempts}; set "
            "eval.attempts=2"
        )


def check_verdicts(base: Evaluation) -> None:
    """Refuse to train on verdicts that the base never gives, or that nothing can be compared with.

    Args:
        base: of the model before training; without verdict turns there is nothing to check.

    Raises:
        ConfigError: the task's verifier judged no answer, or no verdict turn holds a verdict in the asked-for form.
    """
    found = base.summary.verdicts
    if found is None:
        return
    if found.accuracy.n == 0:
        raise ConfigError(
            f"the verifier of task {base.settings['task']} judged none of the first attempts, so the model's verdicts cannot be "
            "compared with anything and would earn nothing; see why with `selfcorrect validate`, or take another task"
        )
    if found.says_nothing.value == 1:
        shown = next(v.text for e in base.episodes for v in e.verdicts)
        raise ConfigError(
            f"after the request for a verdict the base never answered in the asked-for form ({FORM}), so no verdict would earn "
            f"anything and no revision would be asked for; one answer was {shown[:80]!r}. Set method.verdict_instruction to a "
            "request that this model follows, raise play.max_new_tokens, or teach it the form first"
        )


def answers_per_problem(settings: EvalConfig, with_controls: bool, verdicts: bool = False) -> int:
    """The largest number of answers that an evaluation with its controls samples per problem; ``verdicts``: with a verdict
    turn."""
    turns = 1 if verdicts else 0
    plain = settings.samples * (settings.attempts + turns)
    # swapped: attempt 2; given wrong: the search for a wrong attempt 1, then attempt 2
    return plain + (1 + TRIES_FOR_A_WRONG_ANSWER + 1 + 2 * turns if with_controls else 0)


def partners(problems: Sequence[Problem]) -> dict[str, str]:
    """The id of another problem for each problem: the next one of the same level, else any other. None for a single problem."""
    by_level: dict[str | None, list[Problem]] = {}
    for p in problems:
        by_level.setdefault(p.level, []).append(p)
    partner = {}
    for same in by_level.values():
        for i, p in enumerate(same):
            if len(same) > 1:
                partner[p.id] = same[(i + 1) % len(same)].id
            elif others := [q.id for q in problems if q.id != p.id]:
                partner[p.id] = others[0]
    return partner
