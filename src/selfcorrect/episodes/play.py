"""Playing episodes: N attempts per sample, and every attempt graded.

One player, ``play_turns``, knows the order of turns. It takes its answers from a ``Source``: an engine (token ids in and
out), or a chat endpoint (messages in, text out). Nothing about correctness reaches the model: the instruction between
attempts is the task's fixed text, and no verdict is ever part of a prompt.
"""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, TypeVar

from selfcorrect.engines.base import Engine, Sampled, SampleRequest, SamplingParams
from selfcorrect.engines.chat import ChatFormat
from selfcorrect.engines.chat import Prompt as TokenPrompt
from selfcorrect.episodes.verdict import graded_verdict, said
from selfcorrect.errors import ConfigError
from selfcorrect.tasks.base import Answer, GivesFirst, Task, grade_answers
from selfcorrect.types import Attempt, Episode, Grade, Problem, Turn, Verdict

GivenFirst = Mapping[str, Sequence[tuple[int, ...]]]
"""Per problem id, one stored first answer (token ids) for every sample."""
Key = tuple[int | str, ...]
"""Key of the random stream of one answer."""
Prompt = TypeVar("Prompt")
"""A conversation so far, in the form of its source: token ids, or messages."""

LONGEST_PROBLEMS = 20
"""Number of problems with the most characters. Among them the one with the most tokens is found."""

SAMPLED_PROBLEMS = 200
"""Problems whose correct answers are measured against the token cap before a run."""


@dataclass(frozen=True, slots=True)
class Play:
    """Settings of play: how many attempts and samples, under which cap, temperature and random stream."""

    attempts: int
    samples: int
    """Episodes per problem."""
    max_new_tokens: int
    """Per attempt."""
    temperature: float
    stream: Key
    """Start of every row's random-stream key, e.g. (seed, "train", step)."""
    branches: int = 1
    """Second attempts per first attempt; more than 1 makes every episode a tree that is two attempts deep."""
    feedback: str | None = None
    """Request for a turn between two attempts that is not graded (Self-Refine)."""
    verdict: str | None = None
    """Request for a turn between two attempts in which the model judges its answer (PAG)."""
    stop: bool = False
    """Play the next attempt only where the verdict is "wrong"."""

    def __post_init__(self) -> None:
        assert self.branches == 1 or (self.attempts == 2 and self.between is None), "a tree has two attempts' depth"
        assert self.feedback is None or self.verdict is None, "one turn at most between two attempts"
        assert self.verdict is not None or not self.stop, "the stop rule needs a verdict turn"

    @property
    def between(self) -> str | None:
        """The request for the turn between two attempts, where there is one."""
        return self.verdict if self.feedback is None else self.feedback

    @property
    def turns(self) -> int:
        """Answers per path: attempts, and the turns between them."""
        return self.attempts if self.between is None else 2 * self.attempts - 1

    def turn(self, k: int) -> Turn:
        """What the model does in the turn at index k."""
        if self.between is None or k % 2 == 0:
            return "answer"
        return "verdict" if self.feedback is None else "feedback"


@dataclass(frozen=True, slots=True)
class Reply:
    """One answer of a source."""

    text: str
    stop: Literal["end", "length", "refused", "kept"]
    """Why the answer ended. A given answer that lacks the model's end token has ``length``. ``kept``: this turn was not
    played, by the stop rule; the text is that of the answer that stands."""
    prompt_tokens: int | None = None
    """Tokens of the prompt as the source counts them; None if it does not say."""
    completion_tokens: int | None = None
    prompt_ids: tuple[int, ...] | None = None
    """Everything before the answer; None from a text source."""
    sampled: Sampled | None = None
    """The answer as token ids; None from a text source."""
    fault: str = ""
    """Why the source refused this conversation."""
    thinking: str = ""
    """The thinking before the answer; ``text`` is the answer."""
    thinking_tokens: int | None = None
    """Thinking tokens among the completion tokens; None if the source does not say."""
    finished: bool = True
    """False if the thinking never ends: there is then no answer, and the verdict is ``truncated``."""


class Source(Protocol[Prompt]):
    """Where answers come from."""

    async def answer(self, prompts: Sequence[Prompt], keys: Sequence[Key], *, continued: bool) -> list[Reply]:
        """One answer per prompt, in order; ``continued`` says that a later prompt extends them."""
        ...

    def extend(self, prompt: Prompt, reply: Reply, request: str) -> Prompt:
        """The conversation after an answer and the next request of the user."""
        ...


async def play_turns(
    source: Source[Prompt],
    start: Prompt,
    how: Play,
    instruction: str,
    key: Key,
    *,
    samples: Sequence[int] | None = None,
    given: Sequence[Reply] | None = None,
    on_turn: Callable[[Reply], None] = lambda _reply: None,
) -> list[list[Reply]]:
    """Play every turn of some samples of one problem; the samples of one turn are requested together.

    Args:
        source: gives the answers.
        start: the first prompt.
        how: attempts, branches, the turn between attempts, the stop rule. ``samples``, ``max_new_tokens``, ``temperature`` and ``stream`` are not read:
            the source knows them.
        instruction: the request before each attempt but the first.
        key: start of every answer's random-stream key.
        samples: numbers of the samples, for the keys; None: 0 to ``how.samples`` - 1.
        given: a stored first answer for each sample, instead of a sampled one.
        on_turn: called with every answer as it comes; not with those that only fill a turn.

    Returns:
        For every sample its answers, in order. After a refused answer nothing more is requested, and the refusal fills
        the remaining turns. With the stop rule nothing more is requested where a verdict is not "wrong"; the answer before
        it fills the remaining turns.
    """
    numbers = range(how.samples) if samples is None else samples
    prompts = [start] * len(numbers)
    turns: list[list[Reply]] = [[] for _ in numbers]
    over: dict[int, Reply] = {}
    for k in range(how.turns):
        last = k + 1 == how.turns
        rows = [(i, b) for i in range(len(numbers)) for b in range(how.branches if k else 1)]
        ended = frozenset(over)
        if k == 0 and given is not None:
            answers = list(given)
        else:
            asked = [(i, b) for i, b in rows if i not in over]
            keys = [(*key, numbers[i], k, *((b,) if k and how.branches > 1 else ())) for i, b in asked]
            got = iter(await source.answer([prompts[i] for i, _ in asked], keys, continued=not last) if asked else [])
            answers = [over[i] if i in over else next(got) for i, _ in rows]
        for (i, _), reply in zip(rows, answers, strict=True):
            turns[i].append(reply)
            if i not in ended:
                on_turn(reply)
            if reply.stop == "refused":
                over[i] = reply
            elif how.stop and how.turn(k) == "verdict" and not asks_for_revision(reply):
                over[i] = Reply(turns[i][-2].text, "kept", finished=turns[i][-2].finished)
            if not last and i not in over:
                then = instruction if how.between is None or how.turn(k + 1) == "answer" else how.between
                prompts[i] = source.extend(prompts[i], reply, then)
    return turns


def asks_for_revision(verdict: Reply) -> bool:
    """Whether a verdict turn says "wrong". A text without a verdict does not."""
    return verdict.finished and said(verdict.text) == "wrong"


async def graded(
    task: Task, problem: Problem, turns: Mapping[int, Sequence[Reply]], how: Play, *, given: bool
) -> list[Episode]:
    """Episodes from the answers of each sample.

    The verifier comes last: no prompt needs its verdicts, and waiting for one between attempts would split sampling
    batches. A feedback turn has no grade. A verdict turn is graded against the verifier's verdict on the answer before
    it. A refused attempt has the verdict ``error``, and one that was not played the grade of the attempt that stands.
    """
    texts = [
        Answer(r.text, truncated=r.stop == "length")
        for replies in turns.values()
        for k, r in enumerate(replies)
        if how.turn(k) == "answer" and r.stop not in ("refused", "kept") and r.finished
    ]
    grades = iter(await grade_answers(task, problem, texts) if texts else [])

    def grade_of(turn: Turn, reply: Reply, answered: Grade | None) -> Grade | None:
        """``answered``: of the last answer; None before the first."""
        if turn == "feedback" or (turn == "verdict" and reply.stop == "kept"):
            return None
        if reply.stop == "refused":
            return Grade(Verdict.ERROR, None, reply.fault)
        if turn == "verdict":
            text = reply.text if reply.finished else ""
            return graded_verdict(text, answered, truncated=reply.stop == "length" or not reply.finished)
        if reply.stop == "kept":
            return answered
        return next(grades) if reply.finished else Grade(Verdict.TRUNCATED, None, "the thinking never ended")

    def attempt(k: int, reply: Reply, grade: Grade | None) -> Attempt:
        is_given = given and k == 0
        is_kept = reply.stop == "kept"
        return Attempt(
            text=reply.text,
            prompt_ids=reply.prompt_ids,
            token_ids=reply.sampled.token_ids if reply.sampled else None,
            logprobs=reply.sampled.logprobs if reply.sampled and not is_given else None,
            stop="given" if is_given else reply.stop,
            grade=grade,
            source="given" if is_given else "kept" if is_kept else "sampled",
            parent=None if k == 0 else 0 if how.branches > 1 else k - 1,
            thinking=reply.thinking,
            thinking_tokens=reply.thinking_tokens,
            drafted=reply.sampled.drafted if reply.sampled else 0,
            turn=how.turn(k),
        )

    episodes = []
    for g, replies in turns.items():
        played: list[Attempt] = []
        for k, reply in enumerate(replies):
            answered = next((a.grade for a in reversed(played) if a.turn == "answer"), None)
            played.append(attempt(k, reply, grade_of(how.turn(k), reply, answered)))
        episodes.append(Episode(problem, g, tuple(played)))
    return episodes


class SamplesTokens(Protocol):
    """The part of an ``Engine`` that answers."""

    chat: ChatFormat

    async def sample(self, requests: Sequence[SampleRequest], params: SamplingParams) -> list[Sampled]: ...


@dataclass(frozen=True, slots=True)
class TokenSource:
    """Answers of an engine. The chat format decides what a later attempt sees of an earlier one."""

    engine: SamplesTokens
    max_new_tokens: int
    temperature: float

    async def answer(self, prompts: Sequence[TokenPrompt], keys: Sequence[Key], *, continued: bool) -> list[Reply]:
        chat = self.engine.chat
        params = SamplingParams(
            self.max_new_tokens, self.temperature, chat.end_ids, continued=continued and not chat.renders_anew
        )
        requests = [SampleRequest(prompt.ids, key) for prompt, key in zip(prompts, keys, strict=True)]
        answers = await self.engine.sample(requests, params)
        return [self.reply(prompt, sampled) for prompt, sampled in zip(prompts, answers, strict=True)]

    def reply(self, prompt: TokenPrompt, sampled: Sampled) -> Reply:
        ids, chat = sampled.token_ids, self.engine.chat
        parts = chat.parts(prompt.ids, ids)
        return Reply(
            parts.answer,
            sampled.stop,
            len(prompt.ids),
            len(ids),
            prompt.ids,
            sampled,
            thinking=parts.thinking,
            thinking_tokens=chat.thinking_tokens(ids, parts),
            finished=parts.finished,
        )

    def extend(self, prompt: TokenPrompt, reply: Reply, request: str) -> TokenPrompt:
        assert reply.sampled is not None, "an engine's answers have token ids"
        return self.engine.chat.extend(prompt, reply.sampled.token_ids, request)


async def play(
    engine: Engine, task: Task, problems: Sequence[Problem], how: Play, given_first: GivenFirst | None = None
) -> list[list[Episode]]:
    """Play all problems with an engine at once, one coroutine per problem.

    Args:
        engine: samples from its published weights.
        task: prompts, instruction and verdicts.
        problems: problems with distinct ids, because an id names a random stream.
        how: attempts, samples, caps.
        given_first: stored first answers instead of sampled ones; they have no log-probs and are never trained on.
            First answers of other problems are sampled.

    Returns:
        ``groups[b][g]``: the g-th episode of problem b.
    """

    async def group(problem: Problem) -> list[Episode]:
        source = TokenSource(engine, how.max_new_tokens, how.temperature)
        prompt = engine.chat.begin(task.first_messages(problem))
        given = None
        if given_first is not None and problem.id in given_first:
            stored = given_first[problem.id]
            given = [source.reply(prompt, Sampled(i, (), "end" if engine.chat.ended(i) else "length")) for i in stored]
        turns = await play_turns(source, prompt, how, task.instruction, (*how.stream, problem.id), given=given)
        return await graded(task, problem, dict(enumerate(turns)), how, given=given is not None)

    groups = (group(p) for p in problems)
    return list(await asyncio.gather(*groups))


def given_answers(chat: ChatFormat, task: GivesFirst, problems: Sequence[Problem], samples: int) -> GivenFirst:
    """A task's stored first answers as token ids, one for each sample of each problem."""
    given: dict[str, list[tuple[int, ...]]] = {}
    for p in problems:
        stored = [chat.answer_ids(text) for text in task.first_answers(p)]
        given[p.id] = [stored[g % len(stored)] for g in range(samples)]
    return given


def longest_conversation(
    chat: ChatFormat,
    task: Task,
    problems: Sequence[Problem],
    attempts: int,
    max_new_tokens: int,
    between: str | None = None,
    *,
    any_cap: bool = False,
) -> int:
    """Tokens of the longest episode that these problems can give: prompt, all attempts at the cap, all bridges.

    ``between`` is the request for a turn between two attempts, where there is one; ``any_cap`` leaves out the check of the cap.

    Raises:
        ConfigError: the cap is shorter than a correct answer in the asked-for form.
    """
    answers = (
        chat.tokenizer.encode(task.reference_answer(p), add_special_tokens=False) for p in problems[:SAMPLED_PROBLEMS]
    )
    needed = sorted(len(ids) + 1 for ids in answers)
    typical = needed[len(needed) // 2]
    if max_new_tokens < typical and not any_cap:
        raise ConfigError(
            f"play.max_new_tokens={max_new_tokens} is shorter than the answer format: half of the correct answers of task "
            f"{task.name} take {typical} tokens or more with this model (longest seen: {needed[-1]}); raise play.max_new_tokens"
        )
    longest = heapq.nlargest(LONGEST_PROBLEMS, problems, key=lambda p: _characters(task, p))
    lengths = []
    for p in longest:
        messages = task.first_messages(p)
        first = max_new_tokens
        if isinstance(task, GivesFirst):  # no cap holds for these
            first = max(len(chat.answer_ids(text)) for text in task.first_answers(p))
        requests = [task.instruction] if between is None else [between, task.instruction]
        later = (attempts - 1) * requests
        lengths.append(chat.frame(messages, later) + first + len(later) * max_new_tokens)
    return max(lengths)


def _characters(task: Task, problem: Problem) -> int:
    """Characters of the rendered prompt and of a given first attempt. The question may be only a small part of them."""
    given = max(map(len, task.first_answers(problem))) if isinstance(task, GivesFirst) else 0
    return given + sum(len(m["content"]) for m in task.first_messages(problem))
