"""Playing episodes: N attempts per sample, token ids in and token ids out, every attempt graded.

Nothing about correctness reaches the model: the instruction between attempts is the task's fixed text, and no verdict
is ever part of a prompt.
"""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from selfcorrect.engines.base import Engine, Sampled, SampleRequest, SamplingParams
from selfcorrect.engines.chat import ChatFormat
from selfcorrect.errors import ConfigError
from selfcorrect.tasks.base import Answer, GivesFirst, Message, Task, grade_answers
from selfcorrect.types import Attempt, Episode, Problem

GivenFirst = Mapping[str, Sequence[tuple[int, ...]]]
"""Per problem id, one stored first answer (token ids) for every sample."""

LONGEST_PROBLEMS = 20
"""Problems of the most characters, among which the one of the most tokens is looked for."""

SAMPLED_PROBLEMS = 200
"""Problems whose correct answers are measured against the token cap before a run."""


@dataclass(frozen=True, slots=True)
class Play:
    """How episodes are played."""

    attempts: int
    samples: int
    """Episodes per problem."""
    max_new_tokens: int
    """Per attempt."""
    temperature: float
    stream: tuple[int | str, ...]
    """Start of every row's random-stream key, e.g. (seed, "train", step)."""
    branches: int = 1
    """Second attempts per first attempt; more than 1 makes every episode a tree of two attempts' depth."""
    feedback: str | None = None
    """Asked for between two attempts, in a turn of its own that is not graded (Self-Refine)."""

    def __post_init__(self) -> None:
        assert self.branches == 1 or (self.attempts == 2 and self.feedback is None), "a tree has two attempts' depth"

    @property
    def turns(self) -> int:
        """Answers per path: attempts, and the feedback turns between them."""
        return self.attempts if self.feedback is None else 2 * self.attempts - 1

    def is_feedback(self, turn: int) -> bool:
        return self.feedback is not None and turn % 2 == 1


def given_answers(chat: ChatFormat, task: GivesFirst, problems: Sequence[Problem], samples: int) -> GivenFirst:
    """A task's stored first answers as token ids, one for each sample of each problem."""
    given: dict[str, list[tuple[int, ...]]] = {}
    for p in problems:
        stored = [chat.answer_ids(text) for text in task.first_answers(p)]
        given[p.id] = [stored[g % len(stored)] for g in range(samples)]
    return given


async def play(
    engine: Engine, task: Task, problems: Sequence[Problem], how: Play, given_first: GivenFirst | None = None
) -> list[list[Episode]]:
    """Play all problems at once, one coroutine per problem.

    Args:
        engine: samples from its published weights.
        task: prompts, instruction and verdicts.
        problems: no two with the same id, which names a random stream.
        how: attempts, samples, caps.
        given_first: stored first answers instead of sampled ones; they carry no log-probs and are never trained on. A
            problem that it lacks samples its own.

    Returns:
        ``groups[b][g]``: the g-th episode of problem b.
    """
    groups = (_play_group(engine, task, p, how, (given_first or {}).get(p.id)) for p in problems)
    return list(await asyncio.gather(*groups))


async def _play_group(
    engine: Engine, task: Task, problem: Problem, how: Play, given: Sequence[tuple[int, ...]] | None
) -> list[Episode]:
    messages = task.first_messages(problem)
    prompts = [engine.chat.prompt_ids(messages)] * how.samples
    attempts: list[list[Attempt]] = [[] for _ in range(how.samples)]
    for k in range(how.turns):
        is_given = k == 0 and given is not None
        rows = [(g, b) for g in range(how.samples) for b in range(how.branches if k else 1)]
        if k == 0 and given is not None:
            answers = [Sampled(ids, (), "end") for ids in given]
        else:
            params = SamplingParams(
                how.max_new_tokens, how.temperature, engine.chat.end_ids, continued=k + 1 < how.turns
            )
            keys = [(*how.stream, problem.id, g, k, *((b,) if k and how.branches > 1 else ())) for g, b in rows]
            requests = [SampleRequest(prompts[g], key) for (g, _), key in zip(rows, keys, strict=True)]
            answers = await engine.sample(requests, params)
        for (g, _), answer in zip(rows, answers, strict=True):
            attempts[g].append(_attempt(engine, problem, prompts[g], answer, k, is_given))
            if k + 1 < how.turns:
                then = how.feedback if how.feedback is not None and how.is_feedback(k + 1) else task.instruction
                prompts[g] = next_prompt(engine, messages, then, prompts[g], answer)
    return await _graded(engine.chat, task, problem, attempts, how)


async def _graded(
    chat: ChatFormat, task: Task, problem: Problem, attempts: Sequence[Sequence[Attempt]], how: Play
) -> list[Episode]:
    """Verdicts come last: no prompt needs them, and waiting for one between attempts would split sampling batches.

    Feedback turns are left without a grade.
    """
    answers = [
        Answer(a.text, truncated=_was_cut(chat, a))
        for sample in attempts
        for k, a in enumerate(sample)
        if not how.is_feedback(k)
    ]
    grades = iter(await grade_answers(task, problem, answers))
    return [
        Episode(
            problem,
            g,
            tuple(a if how.is_feedback(k) else replace(a, grade=next(grades)) for k, a in enumerate(sample)),
        )
        for g, sample in enumerate(attempts)
    ]


def _was_cut(chat: ChatFormat, attempt: Attempt) -> bool:
    """Also of a given attempt: the same ids get the same verdict as when they were sampled."""
    if attempt.stop == "given":
        return not chat.ended(attempt.token_ids or ())
    return attempt.stop == "length"


def next_prompt(
    engine: Engine, messages: Sequence[Message], instruction: str, prompt: tuple[int, ...], answer: Sampled
) -> tuple[int, ...]:
    """The conversation so far as it was sampled, then the bridge: nothing is decoded and tokenised again."""
    ended = engine.chat.ended(answer.token_ids)
    return (*prompt, *answer.token_ids, *engine.chat.bridge_ids(messages, instruction, ended))


def _attempt(
    engine: Engine, problem: Problem, prompt: tuple[int, ...], answer: Sampled, k: int, given: bool
) -> Attempt:
    return Attempt(
        text=engine.chat.text(answer.token_ids),
        prompt_ids=prompt,
        token_ids=answer.token_ids,
        logprobs=None if given else answer.logprobs,
        stop="given" if given else answer.stop,
        source="given" if given else "sampled",
        parent=k - 1 if k else None,
    )


def longest_conversation(
    chat: ChatFormat,
    task: Task,
    problems: Sequence[Problem],
    attempts: int,
    max_new_tokens: int,
    feedback: str | None = None,
) -> int:
    """Tokens of the longest episode that these problems can give: prompt, all attempts at the cap, all bridges.

    With ``feedback`` a turn that is asked for with that text lies between two attempts.

    Raises:
        ConfigError: the cap is shorter than a correct answer in the asked-for form.
    """
    answers = (
        chat.tokenizer.encode(task.reference_answer(p), add_special_tokens=False) for p in problems[:SAMPLED_PROBLEMS]
    )
    needed = sorted(len(ids) + 1 for ids in answers)
    typical = needed[len(needed) // 2]
    if max_new_tokens < typical:
        raise ConfigError(
            f"play.max_new_tokens={max_new_tokens} is shorter than the answer format: half of the correct answers of task "
            f"{task.name} take {typical} tokens or more with this model (longest seen: {needed[-1]}); raise play.max_new_tokens"
        )
    longest = heapq.nlargest(LONGEST_PROBLEMS, problems, key=lambda p: _characters(task, p))
    return max(_conversation(chat, task, p, attempts, max_new_tokens, feedback) for p in longest)


def _characters(task: Task, problem: Problem) -> int:
    """Of the rendered prompt and of a given first attempt: a question may be the smaller part of what is shown."""
    given = max(map(len, task.first_answers(problem))) if isinstance(task, GivesFirst) else 0
    return given + sum(len(m["content"]) for m in task.first_messages(problem))


def _conversation(
    chat: ChatFormat, task: Task, problem: Problem, attempts: int, max_new_tokens: int, feedback: str | None
) -> int:
    messages = task.first_messages(problem)
    first = max_new_tokens
    if isinstance(task, GivesFirst):  # no cap holds for these
        first = max(len(chat.answer_ids(text)) for text in task.first_answers(problem))
    bridge = len(chat.bridge_ids(messages, task.instruction, False))
    if feedback is not None:
        bridge += max_new_tokens + len(chat.bridge_ids(messages, feedback, False))
    return len(chat.prompt_ids(messages)) + first + (attempts - 1) * (max_new_tokens + bridge)
