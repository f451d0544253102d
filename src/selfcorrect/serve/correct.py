"""Attempts and votes over any backend: how single answers become a corrected one."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Protocol, TypeVar

from selfcorrect.episodes.completion import valid_text
from selfcorrect.episodes.play import Key, Play, Reply, Source, play_turns
from selfcorrect.episodes.table import edit_distances
from selfcorrect.measuring.votes import leaders, tally
from selfcorrect.serve.protocol import ChatRequest, Outcome, ServedAttempt
from selfcorrect.verify.math import answer_key
from selfcorrect.verify.math.extract import find_answer
from selfcorrect.verify.math.normalise import normalise, string_key

T = TypeVar("T")

LONGEST_KEY = 1_000
"""Most characters of a final answer that are compared; longer answers are cut to this length."""
LONGEST_SEARCHED = 100_000
"""Characters at the end of a text in which its final answer is looked for."""
LONGEST_MEASURED = 50_000
"""Most characters of an attempt whose edit distance is measured. For longer ones it would take seconds."""


@dataclass(frozen=True, slots=True)
class Conversation:
    """A request that a backend has accepted, ready to be played."""

    source: Source[Any]
    start: Any
    """The first prompt, in the form of the source."""
    instruction: str
    """The instruction between attempts."""
    key: Key = ()
    """Start of every answer's random-stream key."""
    verdict: str | None = None
    """Request for the model's verdict on each attempt but the last; None asks for none."""
    stop: bool = False
    """Play the next attempt only where the verdict is "wrong"."""


class Backend(Protocol):
    """Where single answers come from."""

    async def open(self, request: ChatRequest) -> Conversation:
        """Check a request; nothing is sampled yet.

        Raises:
            ApiError: 400, the model cannot take these messages.
        """
        ...

    def fault(self) -> str | None:
        """Why the backend can answer no request any more; None while it can."""
        ...

    async def aclose(self) -> None: ...


async def correct(
    conversation: Conversation, request: ChatRequest, on_attempt: Callable[[int, ServedAttempt], None]
) -> Outcome:
    """Play all attempts of all votes at once and choose the answer.

    Args:
        conversation: as the backend opened it for this request.
        request: attempts and votes.
        on_attempt: called with the number (from 1) and content of every attempt as it comes, where there is one vote, and
            of every verdict turn with the number of the attempt that it judges. With several votes, the order of attempts
            would mean nothing.

    Raises:
        ApiError: 502 or 504 from an upstream server.
        EngineError: the engine failed.
    """
    start = time.perf_counter()
    how = Play(
        request.attempts,
        1,
        request.max_tokens,
        request.temperature,
        conversation.key,
        verdict=conversation.verdict,
        stop=conversation.stop,
    )
    prompt_tokens: list[int | None] = []

    async def vote(sample: int) -> tuple[ServedAttempt, ...]:
        turns: list[ServedAttempt] = []
        last = time.perf_counter()

        def on_turn(reply: Reply) -> None:
            nonlocal last
            now = time.perf_counter()
            assert reply.stop != "kept", "what was not played does not come"
            turn = how.turn(len(turns))
            turns.append(
                ServedAttempt(
                    valid_text(reply.text),
                    reply.stop,
                    reply.completion_tokens,
                    now - last,
                    valid_text(reply.thinking),
                    reply.thinking_tokens,
                    reply.fault or None,
                    is_verdict=turn == "verdict",
                )
            )
            last = now
            if request.votes == 1:
                on_attempt(sum(not t.is_verdict for t in turns), turns[-1])

        c = conversation
        ((first, *_),) = await play_turns(
            c.source, c.start, how, c.instruction, c.key, samples=(sample,), on_turn=on_turn
        )
        if sample == 0:
            prompt_tokens.append(first.prompt_tokens)
        return tuple(turns)

    chains = await _all_or_none(list(map(vote, range(request.votes))))
    played = [tuple(t for t in chain if not t.is_verdict) for chain in chains]
    chosen, votes = 0, None
    if len(played) > 1:  # in a thread, as below: long texts must not hold up the other requests
        chosen, votes = await asyncio.to_thread(majority, [chain[-1] for chain in played])
    return Outcome(
        attempts=played[chosen],
        edit_ratios=await asyncio.to_thread(edit_ratios, [a.text for a in played[chosen]]),
        votes=votes,
        prompt_tokens=prompt_tokens[0] or 0,
        completion_tokens=sum(t.tokens or 0 for chain in chains for t in chain),
        reasoning_tokens=sum(t.thinking_tokens or 0 for chain in chains for t in chain),
        seconds=time.perf_counter() - start,
        verdicts=None if how.verdict is None else tuple(t for t in chains[chosen] if t.is_verdict),
    )


async def _all_or_none(votes: Sequence[Coroutine[Any, Any, T]]) -> list[T]:
    """The results of all. The first fault stops the others: nobody waits for their answers any more."""
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(vote) for vote in votes]
    except ExceptionGroup as faults:
        raise faults.exceptions[0] from None
    return [task.result() for task in tasks]


def majority(finals: Sequence[ServedAttempt]) -> tuple[int, tuple[tuple[str | None, int], ...]]:
    """The index of the chosen attempt, and the votes.

    The answer with the most votes wins, and in a tie the one that came first; its first attempt is chosen. Attempts
    without an answer vote only if none has one. Answers are shown as their first attempt spells them.

    >>> texts = ["Answer: 3", "so it is 4.\\nAnswer: 4", "Answer: 4.0"]
    >>> majority([ServedAttempt(t, "end", None, 0.0) for t in texts])
    (1, (('4', 2), ('3', 1)))
    """
    answers = [final_answer(a) for a in finals]
    keys = [None if a is None else a.key for a in answers]
    first_spelling = {a.key: a.shown for a in reversed(answers) if a is not None}
    votes = tuple((None if key is None else first_spelling[key], n) for key, n in tally(keys))
    return keys.index(leaders(keys)[0]), votes


@dataclass(frozen=True, slots=True)
class FinalAnswer:
    """What an attempt votes for."""

    key: str
    """The same for equal answers."""
    shown: str


def final_answer(attempt: ServedAttempt) -> FinalAnswer | None:
    """The answer that the math grader finds; else the whole text.

    None for an empty text, and for a text that was cut by the cap before an explicit answer.
    """
    cut = attempt.stop != "end"
    found = find_answer(attempt.text[-LONGEST_SEARCHED:], fallbacks=not cut)
    if found is not None:
        answer = found.answer[:LONGEST_KEY]
        shown = string_key(normalise(answer))
        return FinalAnswer(answer_key(answer), shown) if shown else None
    text = "" if cut else " ".join(attempt.text.split())[:LONGEST_KEY]
    return FinalAnswer(text, text) if text else None


def edit_ratios(texts: Sequence[str]) -> tuple[float | None, ...]:
    """The edit-distance ratio of each text and the next; None for two empty texts, and for texts beyond
    ``LONGEST_MEASURED``."""
    pairs = [(a, b) if max(len(a), len(b)) <= LONGEST_MEASURED else ("", "") for a, b in pairwise(texts)]
    distances, lengths = edit_distances(pairs)
    return tuple(int(d) / int(n) if n else None for d, n in zip(distances, lengths, strict=True))
