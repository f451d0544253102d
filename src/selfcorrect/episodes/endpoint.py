"""A chat model behind an OpenAI-compatible endpoint: messages in, text out. There are no token ids, so it cannot be
trained on.

Many coroutines share one ``Endpoint``. It bounds the requests in flight, spaces them, and repeats those that failed in
a way that may pass (a status of ``PASSING``, 5xx, no connection, no answer in time). ``TextSource`` plays attempts with it.
"""

from __future__ import annotations

import asyncio
import json
import math
import random
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC
from email.utils import parsedate_to_datetime
from typing import Any, Self

import httpx2

from selfcorrect.engines.chat import Messages, ShownAs, next_messages
from selfcorrect.episodes.completion import REFUSED, NoCompletion, is_moderation, read_completion, their_words
from selfcorrect.episodes.play import Key, Reply
from selfcorrect.errors import ConfigError, EndpointError

PASSING = frozenset({408, 409, 424, 425, 429, 499})
"""With 5xx, the statuses after which a request is repeated. 424 is TGI's for a generation that failed, 499 a gateway's."""
POISONED = frozenset({424, 500})
"""Statuses that servers give for one conversation on which the generation fails, again and again. Others go on."""
FIRST_WAIT_S, LONGEST_WAIT_S = 1.0, 60.0
LONGEST_RETRY_AFTER_S = 600.0
"""A server that asks for a longer wait than this fails the request."""
NEWER_CAP = "max_completion_tokens"
"""Newer OpenAI models refuse ``max_tokens`` and name this field instead."""
LARGEST_ANSWER_BYTES = 16 * 2**20
LOOPBACK = ("localhost", "127.0.0.1", "::1")


@dataclass(frozen=True, slots=True)
class Patience:
    """Limits on the requests to an endpoint, and on the wait for its answers."""

    concurrency: int = 8
    """Requests in flight at once."""
    requests_per_minute: float | None = None
    """Requests are evenly spaced at this rate, including repeated ones; None sets no rate."""
    retries: int = 5
    """Most times that one request is repeated."""
    timeout_s: float = 120.0
    """Seconds to wait for one whole answer."""
    repeats_slow: bool = True
    """Repeat a request that had no answer in that time."""


@dataclass(slots=True)
class Counts:
    """Requests so far."""

    sent: int = 0
    """Requests sent, including repeated ones."""
    retried: int = 0
    reasons: dict[str, int] = field(default_factory=dict)
    """Number of repeated requests for each reason, e.g. ``HTTP 429``."""


class _Again(Exception):
    """A failure that may pass."""

    def __init__(self, reason: str, error: EndpointError, retry_after_s: float | None = None) -> None:
        super().__init__(reason)
        self.reason, self.error, self.retry_after_s = reason, error, retry_after_s


class Endpoint:
    """Use as an async context manager.

    Args:
        base_url: up to and with ``/v1``.
        model: the name that the endpoint knows the model by.
        api_key: sent as a bearer token; None sends none.
        patience: limits, retries, timeouts.
        body: further fields of every request, e.g. ``{"top_p": 0.9}``.
        transport: of httpx; for tests.
        sleep: waits between retries and for the rate; for tests.

    Raises:
        ConfigError: the text is not an address, or contains a password.
    """

    def __init__(
        self,
        base_url: str,
        model: str,
        *,
        api_key: str | None = None,
        patience: Patience | None = None,
        body: Mapping[str, Any] | None = None,
        transport: httpx2.AsyncBaseTransport | None = None,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        url = checked_url(base_url)
        self.base_url = str(url).rstrip("/")
        self.is_local = url.host in LOOPBACK
        self.model = model
        self.counts = Counts()
        self._patience = patience or Patience()
        self.concurrency = self._patience.concurrency
        self._body = dict(body or {})
        self._cap_field = "max_tokens"
        self._sleep = sleep
        self._slots = asyncio.Semaphore(self._patience.concurrency)
        self._next_start = 0.0
        limits = httpx2.Limits(max_connections=self._patience.concurrency)
        self._client = httpx2.AsyncClient(
            headers={"authorization": f"Bearer {api_key}"} if api_key else {},
            timeout=httpx2.Timeout(self._patience.timeout_s),
            limits=limits,
            transport=transport,
            trust_env=not self.is_local,  # a proxy of the environment cannot reach this machine's own servers
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_fault: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        await self._client.aclose()

    async def complete(
        self, messages: Messages, *, max_tokens: int, temperature: float, seed: int | None = None
    ) -> Reply:
        """The assistant's next message.

        Args:
            messages: the conversation; it ends in a user turn.
            max_tokens: cap of the answer.
            temperature: 0 is greedy.
            seed: of the endpoint's sampling; None sends none. An endpoint may ignore it.

        Raises:
            EndpointError: refused, or still failing after all retries.
        """
        request = {"model": self.model, "messages": list(messages), "temperature": temperature}
        if seed is not None:
            request["seed"] = seed
        for retry in range(self._patience.retries + 1):
            try:
                async with self._slots:
                    return await self._post_capped(request, max_tokens)
            except _Again as failure:
                if retry == self._patience.retries or (failure.retry_after_s or 0) > LONGEST_RETRY_AFTER_S:
                    raise failure.error from None
                self.counts.retried += 1
                self.counts.reasons[failure.reason] = self.counts.reasons.get(failure.reason, 0) + 1
                backoff_s = min(LONGEST_WAIT_S, FIRST_WAIT_S * 2**retry)
                # jitter: clients that failed together must not come back together
                await self._sleep(max(backoff_s * random.uniform(0.5, 1.0), failure.retry_after_s or 0.0))
        raise AssertionError("unreachable: the last retry returns or raises")

    async def _post_capped(self, request: Mapping[str, Any], max_tokens: int) -> Reply:
        """Post a request with the token cap under its usual name, or under the newer one if the endpoint asks for
        it."""
        used = self._cap_field
        try:
            return await self._post({**request, used: max_tokens, **self._body})
        except EndpointError as error:
            if used == NEWER_CAP or error.status not in REFUSED or NEWER_CAP not in str(error):
                raise
        self._cap_field = NEWER_CAP
        return await self._post({**request, NEWER_CAP: max_tokens, **self._body})

    async def _post(self, body: Mapping[str, Any]) -> Reply:
        if (
            rate := self._patience.requests_per_minute
        ) is not None:  # wait for this request's place in the even spacing
            now = time.monotonic()
            start = max(now, self._next_start)
            self._next_start = start + 60.0 / rate
            await self._sleep(start - now)
        self.counts.sent += 1
        try:
            async with asyncio.timeout(self._patience.timeout_s):
                return await self._exchange(body)
        except (TimeoutError, httpx2.TimeoutException):
            message = (
                f"{self.base_url} gave no answer within {self._patience.timeout_s:g} s; raise the timeout, or ask for "
                "fewer tokens or fewer requests at once"
            )
            error = EndpointError(message, timed_out=True)
            raise (_Again("no answer in time", error) if self._patience.repeats_slow else error) from None
        except httpx2.HTTPError as fault:
            message = (
                f"{self.base_url} cannot be reached: {str(fault) or type(fault).__name__}; check the address and that "
                "the server is running"
            )
            raise _Again("no connection", EndpointError(message)) from None

    async def _exchange(self, body: Mapping[str, Any]) -> Reply:
        # ASCII JSON: whatever is in a message, the bytes are valid
        content = json.dumps(body).encode("ascii")
        headers = {"content-type": "application/json"}
        async with self._client.stream(
            "POST", f"{self.base_url}/chat/completions", content=content, headers=headers
        ) as response:
            answer = bytearray()
            try:
                async for chunk in response.aiter_bytes():
                    answer += chunk
                    if len(answer) > LARGEST_ANSWER_BYTES:
                        raise EndpointError(
                            f"{self.base_url} sends an answer of more than {LARGEST_ANSWER_BYTES // 2**20} MiB; it is no chat "
                            "endpoint, or it ignores the token cap",
                            status=response.status_code,
                            one_answer=response.is_success,
                        )
            except (httpx2.DecodingError, httpx2.NetworkError, httpx2.ProtocolError) as error:
                if response.is_success:
                    raise self._none(NoCompletion("cut answer", str(error) or type(error).__name__), response) from None
                raise
            if not response.is_success:
                raise self._fault(response, bytes(answer))
            try:
                return read_completion(bytes(answer))
            except NoCompletion as found:
                raise self._none(found, response) from None
            except EndpointError as refusal:
                message = str(refusal).replace("the endpoint", self.base_url, 1)
                raise EndpointError(message, status=200, one_answer=True, filtered=refusal.filtered) from None

    def _none(self, found: NoCompletion, response: httpx2.Response) -> Exception:
        """The error for HTTP 200 without an answer. It is tried again, unless the body names a permanent status."""
        status = found.status
        if status is not None and is_moderation(status, found.words):
            return self._moderated(found.words, 200)
        stays = status is not None and status < 500 and status not in PASSING
        error = EndpointError(
            f"{self.base_url} answers HTTP 200 with what is not a chat completion ({found}); if this persists, check "
            "that the address ends in /v1 and belongs to an OpenAI-compatible server",
            status=status if status is not None and stays else 200,
            one_answer=not stays or status in REFUSED,
        )
        return error if stays else _Again(found.reason, error, _retry_after_s(response.headers))

    def _moderated(self, words: str, status: int) -> EndpointError:
        """The error for a conversation that a filter in front of the model took; others may be answered."""
        message = f"{self.base_url} would not answer: {words}"
        return EndpointError(message, status=status, one_answer=True, filtered=words)

    def _fault(self, response: httpx2.Response, answer: bytes) -> Exception:
        status = response.status_code
        if is_moderation(status, words := their_words(answer), answer):
            return self._moderated(words, status)
        way_out = {
            401: "check the key",
            403: "check what the key may do",
            404: f"check the address (it ends in /v1) and the model's name ({self.model!r})",
            429: "lower the concurrency or the rate",
        }.get(status, "its own log may say more")
        error = EndpointError(
            f"{self.base_url} answers HTTP {status}: {words}; {way_out}", status=status, one_answer=status in POISONED
        )
        if status in PASSING or status >= 500:
            return _Again(f"HTTP {status}", error, _retry_after_s(response.headers))
        return error


def checked_url(base_url: str) -> httpx2.URL:
    """The address of an endpoint.

    Raises:
        ConfigError: it is not an address, or it contains a password, which every process list would show.
    """
    try:
        url = httpx2.URL(base_url)
    except httpx2.InvalidURL:
        url = httpx2.URL("")
    if url.scheme not in ("http", "https") or not url.host or url.query or url.fragment:
        raise ConfigError(
            f"{base_url!r} is not the address of an endpoint; write it up to /v1, for example http://localhost:8000/v1"
        )
    if url.userinfo:
        raise ConfigError(
            f"the address of {url.host} holds a user name or password, which other users of this machine can see in the "
            "list of processes; put a key into an environment variable and name that variable"
        )
    return url


def _retry_after_s(headers: Mapping[str, str]) -> float | None:
    """The wait that the headers ask for: seconds or a date, as in HTTP, or milliseconds, as OpenAI sends too."""
    for name, per_second in (("retry-after-ms", 1000.0), ("retry-after", 1.0)):
        value = headers.get(name)
        if value is None:
            continue
        try:
            seconds = float(value) / per_second
        except ValueError:
            try:
                then = parsedate_to_datetime(value)
            except (ValueError, TypeError):
                continue
            # a date without a zone is UTC
            seconds = (then if then.tzinfo else then.replace(tzinfo=UTC)).timestamp() - time.time()
        if not math.isnan(seconds):
            return max(0.0, seconds)
    return None


def api_key_from(variable: str | None, environment: Mapping[str, str]) -> str | None:
    """The key in an environment variable.

    Raises:
        ConfigError: a variable is named, and it is not set.
    """
    if variable is None:
        return None
    key = environment.get(variable, "").strip()
    if not key:
        raise ConfigError(
            f"the environment variable {variable} is empty or not set; export the key in it, or drop the option"
        )
    if not key.isascii() or not key.isprintable():
        raise ConfigError(
            f"the key in the environment variable {variable} holds characters that no header can carry; set it again"
        )
    return key


def raise_fault(fault: EndpointError) -> Reply:
    """Raise a fault of the endpoint, which ends the play."""
    raise fault


@dataclass(frozen=True, slots=True)
class TextSource:
    """A ``Source`` of text answers: the prompt is the conversation as messages."""

    endpoint: Endpoint
    max_tokens: int
    temperature: float
    seed_of: Callable[[Key], int | None]
    """The seed that an answer's request carries."""
    on_fault: Callable[[EndpointError], Reply] = raise_fault
    """Returns the reply for a request that failed, or raises."""
    shown_as: ShownAs = "assistant"
    """Who shows an answer to the next attempt."""

    async def answer(self, prompts: Sequence[Messages], keys: Sequence[Key], *, continued: bool) -> list[Reply]:
        return list(await asyncio.gather(*map(self._one, prompts, keys)))

    async def _one(self, messages: Messages, key: Key) -> Reply:
        try:
            return await self.endpoint.complete(
                messages, max_tokens=self.max_tokens, temperature=self.temperature, seed=self.seed_of(key)
            )
        except EndpointError as fault:
            return self.on_fault(fault)

    def extend(self, messages: Messages, reply: Reply, request: str) -> Messages:
        return next_messages(messages, reply.text, request, self.shown_as)
