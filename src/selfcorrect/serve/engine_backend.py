"""Answers from an engine in this process. Concurrent requests share batches, which run in a separate thread."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import secrets
import sys
import threading
import traceback
from collections.abc import Sequence
from dataclasses import dataclass

from selfcorrect.engines.base import Engine, Sampled, SampleRequest, SamplingParams
from selfcorrect.engines.chat import ChatFormat, Messages, Prompt
from selfcorrect.episodes.play import TokenSource
from selfcorrect.errors import EngineError, ModelError
from selfcorrect.serve.correct import Conversation
from selfcorrect.serve.protocol import ApiError, ChatRequest


@dataclass(frozen=True)
class _Waiting:
    """One answer that a request waits for."""

    request: SampleRequest
    params: SamplingParams
    answer: asyncio.Future[Sampled]

    @property
    def group(self) -> tuple[float, int]:
        """Answers of one group are sampled together: one temperature, and caps within a factor of two.

        They are sampled up to the longest cap of the group and then cut. This is exact, because a row's tokens depend
        only on its own stream. The factor of two keeps a long answer from delaying short ones.
        """
        return self.params.temperature, self.params.max_new_tokens.bit_length()


class Batcher:
    """Collects answers for a few milliseconds, or while the engine is busy, and has them sampled together.

    The engine runs on the event loop of a daemon thread, so that the server stays responsive. A batch that runs cannot
    be stopped; an answer whose client is gone is dropped before it starts.

    Args:
        engine: used by this batcher only.
        window_s: how long the first of a batch waits for others.
        max_rows: answers in one batch; those after it wait for the next.
    """

    def __init__(self, engine: Engine, *, window_s: float = 0.005, max_rows: int = 64) -> None:
        self._engine = engine
        self.chat = engine.chat
        self._window_s, self._max_rows = window_s, max_rows
        self._queue: asyncio.Queue[_Waiting] = asyncio.Queue()
        self._worker: asyncio.Task[None] | None = None
        self._engine_loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run_engine, name="engine", daemon=True)
        self._call: concurrent.futures.Future[list[Sampled]] | None = None
        self.broken: str | None = None
        """Why the engine can sample no more; None while it can."""

    async def sample(self, requests: Sequence[SampleRequest], params: SamplingParams) -> list[Sampled]:
        """As ``Engine.sample``; the stop ids are always those of the engine's chat format.

        Raises:
            EngineError: sampling failed.
        """
        if self._worker is None:
            self._thread.start()
            self._worker = asyncio.create_task(self._work())
        loop = asyncio.get_running_loop()
        waiting = [_Waiting(request, params, loop.create_future()) for request in requests]
        for w in waiting:
            self._queue.put_nowait(w)
        return list(await asyncio.gather(*(w.answer for w in waiting)))

    async def aclose(self) -> None:
        """Stop, and cancel waiting requests. A running batch continues to its end in its thread."""
        if self._worker is not None:
            self._worker.cancel()
            await asyncio.gather(self._worker, return_exceptions=True)
        while not self._queue.empty():
            self._queue.get_nowait().answer.cancel()
        self._engine_loop.call_soon_threadsafe(self._engine_loop.stop)
        if self._worker is None:
            self._engine_loop.close()
            return
        await asyncio.to_thread(self._thread.join, 1.0)
        if not self._thread.is_alive():
            self._engine_loop.close()

    @property
    def is_running(self) -> bool:
        """Whether the thread is still in a batch, after ``aclose``."""
        return self._thread.is_alive()

    async def _work(self) -> None:
        while True:
            waiting = [await self._queue.get()]
            await asyncio.sleep(self._window_s)
            while not self._queue.empty() and len(waiting) < self._max_rows:
                waiting.append(self._queue.get_nowait())
            for group in sorted({w.group for w in waiting}):
                await self._sample([w for w in waiting if w.group == group])

    async def _sample(self, group: Sequence[_Waiting]) -> None:
        """Give every answer of the group its result or its error. The worker continues in any case."""
        wanted = [w for w in group if not w.answer.done()]
        if not wanted:
            return
        try:
            answers = [
                cut(a, w.params.max_new_tokens) for w, a in zip(wanted, await self._sampled(wanted), strict=True)
            ]
        except EngineError as error:
            self.broken = self.broken if error.usable else str(error)
            _fail(wanted, error)
        except Exception as error:  # noqa: BLE001  # whatever an engine raises, it must not end the worker
            traceback.print_exception(error, file=sys.stderr)
            _fail(
                wanted, EngineError(f"{type(error).__name__} while sampling; the server's log says where", usable=True)
            )
        else:
            for w, answer in zip(wanted, answers, strict=True):
                if not w.answer.done():
                    w.answer.set_result(answer)

    async def _sampled(self, wanted: Sequence[_Waiting]) -> list[Sampled]:
        """One call of the engine, up to the longest cap."""
        if self.broken is not None:
            raise EngineError(self.broken, usable=False)
        params = SamplingParams(
            max(w.params.max_new_tokens for w in wanted),
            wanted[0].params.temperature,
            self.chat.end_ids,
            continued=any(w.params.continued for w in wanted),
        )
        self._call = asyncio.run_coroutine_threadsafe(
            self._engine.sample([w.request for w in wanted], params), self._engine_loop
        )
        self._give_up_call()  # if the thread ended before it could know of this call
        return await asyncio.wrap_future(self._call)

    def _run_engine(self) -> None:
        """The engine's thread. What ends it early (``SystemExit``, for instance) becomes the error of the running call."""
        try:
            self._engine_loop.run_forever()
        except BaseException as error:  # noqa: BLE001  # the thread's own end
            traceback.print_exception(error, file=sys.stderr)
            # Told. The loop's task holds the error still, and would have the loop tell it again whenever it is collected.
            self._engine_loop.set_exception_handler(lambda _loop, _context: None)
            self.broken = f"the engine's thread has ended ({type(error).__name__}); start the server again"
            self._give_up_call()

    def _give_up_call(self) -> None:
        """Fail the running call if the engine's thread has ended; called from either thread."""
        if self.broken is not None and self._call is not None:
            with contextlib.suppress(concurrent.futures.InvalidStateError):  # answered already
                self._call.set_exception(EngineError(self.broken, usable=False))


def _fail(wanted: Sequence[_Waiting], error: EngineError) -> None:
    for w in wanted:
        if not w.answer.done():
            w.answer.set_exception(EngineError(str(error), usable=error.usable))


def cut(answer: Sampled, cap: int) -> Sampled:
    """The answer as it would have been under a lower cap."""
    if len(answer.token_ids) <= cap:
        return answer
    return Sampled(answer.token_ids[:cap], answer.logprobs[:cap], "length")


def _begin(chat: ChatFormat, messages: Messages) -> Prompt:
    """The prompt of a conversation, without an empty system text where the template takes no system text."""
    try:
        return chat.begin(messages)
    except ModelError:
        spoken = [m for m in messages if m["role"] != "system" or str(m["content"]).strip()]
        if len(spoken) == len(messages):
            raise
        return chat.begin(spoken)


class EngineBackend:
    """Plays conversations as token ids: sampled text is never encoded again.

    Args:
        batcher: the engine's batcher.
        instruction: between attempts.
        context: the longest conversation, in tokens.
        verdict: request for the model's verdict between attempts; None asks for none.
        stop: play the next attempt only where that verdict is "wrong".
    """

    def __init__(
        self, batcher: Batcher, instruction: str, context: int, verdict: str | None = None, *, stop: bool = False
    ) -> None:
        self._batcher, self._instruction, self._context = batcher, instruction, context
        self._verdict, self._stop = verdict, stop
        self._encoding = asyncio.Lock()

    async def open(self, request: ChatRequest) -> Conversation:
        """See ``Backend.open``."""
        chat = self._batcher.chat
        try:
            async with self._encoding:  # in a thread, one at a time: a long text must not stop the server
                prompt = await asyncio.to_thread(_begin, chat, request.messages)
                requests = [self._instruction] if self._verdict is None else [self._verdict, self._instruction]
                between = (request.attempts - 1) * requests
                frame = await asyncio.to_thread(chat.frame, prompt.first, between)
        except ModelError as error:
            raise ApiError(400, f"the model cannot take this conversation: {error}", param="messages") from None
        needed = frame + (1 + len(between)) * request.max_tokens
        if needed > self._context:
            verdicts = "" if self._verdict is None else f" and {request.attempts - 1} verdicts"
            raise ApiError(
                400,
                f"this conversation may take {needed} tokens (messages {len(prompt.ids)}, {request.attempts} attempts{verdicts} of up to "
                f"{request.max_tokens}, instructions), but the limit is {self._context}; shorten the messages, or ask for fewer "
                "attempts or a lower max_tokens",
                code="context_length_exceeded",
                param="messages",
            )
        seed = request.seed if request.seed is not None else secrets.randbits(62)
        source = TokenSource(self._batcher, request.max_tokens, request.temperature)
        return Conversation(source, prompt, self._instruction, (seed, "serve"), self._verdict, self._stop)

    def fault(self) -> str | None:
        """See ``Backend.fault``."""
        return self._batcher.broken

    async def aclose(self) -> None:
        await self._batcher.aclose()
