"""Answers from a model that is served elsewhere: self-correction in front of any OpenAI-compatible server."""

from __future__ import annotations

from selfcorrect.engines.chat import ShownAs
from selfcorrect.episodes.completion import REFUSED
from selfcorrect.episodes.endpoint import Endpoint, TextSource
from selfcorrect.episodes.play import Key, Reply
from selfcorrect.errors import EndpointError
from selfcorrect.serve.correct import Conversation
from selfcorrect.serve.protocol import ApiError, ChatRequest


class EndpointBackend:
    """Plays conversations as text: attempt 2 sees attempt 1 as the assistant's message.

    Args:
        endpoint: the upstream server; closed with this.
        instruction: the instruction between attempts.
        shown_as: who shows an answer to the next attempt.
        verdict: request for the model's verdict between attempts; None asks for none.
        stop: play the next attempt only where that verdict is "wrong".
    """

    def __init__(
        self,
        endpoint: Endpoint,
        instruction: str,
        shown_as: ShownAs = "assistant",
        verdict: str | None = None,
        *,
        stop: bool = False,
    ) -> None:
        self._endpoint, self._instruction, self._shown_as = endpoint, instruction, shown_as
        self._verdict, self._stop = verdict, stop

    async def open(self, request: ChatRequest) -> Conversation:
        """See ``Backend.open``. The upstream server checks the length."""

        def seed_of(key: Key) -> int | None:
            sample, number = map(int, key)
            # 31 bits, which every server accepts
            return None if request.seed is None else (request.seed + 1_000 * sample + number) % 2**31

        source = TextSource(
            self._endpoint, request.max_tokens, request.temperature, seed_of, self._raise_api_error, self._shown_as
        )
        return Conversation(source, request.messages, self._instruction, verdict=self._verdict, stop=self._stop)

    def fault(self) -> str | None:
        """See ``Backend.fault``: an upstream server that is down now may be up for the next request."""
        return None

    async def aclose(self) -> None:
        await self._endpoint.aclose()

    def _raise_api_error(self, error: EndpointError) -> Reply:
        """Raise the error for the client: it gets the reason, but not the upstream server's address. Refused answers
        are passed on."""
        if error.filtered is not None:
            return Reply("", "refused", fault=error.filtered)
        reason = str(error).replace(self._endpoint.base_url, "it")
        if error.timed_out:
            raise ApiError(504, f"the model server was too slow: {reason}", code="upstream_timeout") from None
        if error.status in (401, 403):  # its words may hold a part of this server's key
            message = f"the model server refuses this server's key (HTTP {error.status})"
            raise ApiError(502, message, code="upstream_error") from None
        if error.status in REFUSED:
            message = f"the model server refuses this conversation: {reason}"
            raise ApiError(400, message, code="upstream_refused") from None
        raise ApiError(502, f"the model server failed: {reason}", code="upstream_error") from None
