"""Answers from a model that is served elsewhere: self-correction in front of any OpenAI-compatible server."""

from __future__ import annotations

from selfcorrect.episodes.endpoint import REFUSED, Endpoint, alternate
from selfcorrect.errors import EndpointError
from selfcorrect.serve.correct import Conversation, Said
from selfcorrect.serve.protocol import ApiError, ChatRequest


class EndpointBackend:
    """Conversations by text: attempt 2 is asked for with attempt 1 as the assistant's message.

    Args:
        endpoint: the server behind; closed with this.
        instruction: between attempts.
    """

    def __init__(self, endpoint: Endpoint, instruction: str) -> None:
        self._endpoint, self._instruction = endpoint, instruction

    async def open(self, asked: ChatRequest) -> list[Conversation]:
        """See ``Backend.open``. The length is checked by the server behind."""
        return [self._conversation(asked, sample) for sample in range(asked.votes)]

    def fault(self) -> str | None:
        """See ``Backend.fault``: a server that is down now may be up for the next request."""
        return None

    async def aclose(self) -> None:
        await self._endpoint.aclose()

    def _conversation(self, asked: ChatRequest, sample: int) -> Conversation:
        return _EndpointConversation(self._endpoint, self._instruction, asked, sample)


class _EndpointConversation:
    def __init__(self, endpoint: Endpoint, instruction: str, asked: ChatRequest, sample: int) -> None:
        self._endpoint, self._instruction, self._asked = endpoint, instruction, asked
        self._messages: list[dict[str, object]] = [dict(m) for m in asked.messages]
        self._seed = None if asked.seed is None else (asked.seed + 1_000 * sample) % 2**31
        self.prompt_tokens = 0
        self._number = 0

    async def attempt(self, *, last: bool) -> Said:
        try:
            reply = await self._endpoint.complete(
                self._messages,
                max_tokens=self._asked.max_tokens,
                temperature=self._asked.temperature,
                seed=None if self._seed is None else self._seed + self._number,
            )
        except EndpointError as error:
            raise _api_error(error, self._endpoint.base_url) from None
        if self._number == 0:
            self.prompt_tokens = reply.prompt_tokens or 0
        self._number += 1
        if not last:
            self._messages = alternate(self._messages, reply.text, self._instruction)
        return Said(reply.text, reply.stop, reply.completion_tokens)


def _api_error(error: EndpointError, address: str) -> ApiError:
    """Clients are told the reason, and not where the server behind stands."""
    reason = str(error).replace(address, "it")
    if error.timed_out:
        return ApiError(504, f"the model server was too slow: {reason}", code="upstream_timeout")
    if error.status in (401, 403):  # its words may hold a part of this server's key
        return ApiError(502, f"the model server refuses this server's key (HTTP {error.status})", code="upstream_error")
    if error.status in REFUSED:
        return ApiError(400, f"the model server refuses this conversation: {reason}", code="upstream_refused")
    return ApiError(502, f"the model server failed: {reason}", code="upstream_error")
