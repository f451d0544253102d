"""The web application: routes, the key, and every limit. It knows no engine, only a ``Backend``."""

from __future__ import annotations

import asyncio
import hmac
import sys
import time
import traceback
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager
from dataclasses import asdict, dataclass
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from selfcorrect.errors import EngineError
from selfcorrect.serve.correct import Backend, Conversation, correct
from selfcorrect.serve.page import page
from selfcorrect.serve.protocol import (
    DONE,
    ApiError,
    Bounds,
    ChatRequest,
    Outcome,
    ServedAttempt,
    attempt_fields,
    chunk,
    event,
    parse_request,
    response,
    streamed,
    verdict_fields,
)

KEEP_ALIVE_S = 10.0
"""Seconds between comments on a silent stream. They show whether the client is gone, and keep proxies from closing
it."""
CLOSED_BY_CLIENT = 499
BUG = "the server failed on this request; its log says where"
OPEN_TO_ALL = ("/", "/health")
"""Paths that need no key: they say nothing about a model or its answers."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits that keep one client from blocking the others."""

    body_bytes: int = 2**18
    concurrent: int = 128
    """Requests that are being answered or are waiting."""
    timeout_s: float = 120.0
    """Time for one whole answer, including all attempts and the time in the queue."""
    body_timeout_s: float = 10.0
    """Time to receive a request's body."""
    head_timeout_s: float = 15.0
    """Time to receive a request's head, from the start of the connection or the last answer. Also the longest idle
    time."""
    write_timeout_s: float = 30.0
    """Time for the client to read what was sent."""
    grace_s: float = 20.0
    """Time from the signal to stop until unfinished requests end with an error."""


class Service:
    """The handlers and what they share.

    Args:
        backend: gives single answers; closed when the application ends.
        model: the one name that is served.
        bounds: of a request.
        limits: of the server.
    """

    def __init__(self, backend: Backend, model: str, bounds: Bounds, limits: Limits) -> None:
        self._backend, self._model, self._bounds, self._limits = backend, model, bounds, limits
        self._created = int(time.time())
        self._in_flight = 0
        self._draining = False
        self._closing = asyncio.Event()

    def drain(self) -> None:
        """Take no new requests. After the grace time, end unfinished ones with an error."""
        if not self._draining:
            self._draining = True
            asyncio.get_running_loop().call_later(self._limits.grace_s, self._closing.set)

    async def health(self, _request: Request) -> Response:
        fault = "stopping" if self._draining else self._backend.fault()
        content = {"status": "ok" if fault is None else fault, "in_flight": self._in_flight}
        return JSONResponse(content, 200 if fault is None else 503)

    async def models(self, _request: Request) -> Response:
        return JSONResponse({"object": "list", "data": [self._listed()], "selfcorrect": asdict(self._bounds)})

    async def model(self, request: Request) -> Response:
        if (name := request.path_params["name"]) != self._model:
            raise ApiError(
                404, f"model {name!r} is not served here; the model is {self._model!r}", code="model_not_found"
            )
        return JSONResponse({**self._listed(), "selfcorrect": asdict(self._bounds)})

    def _listed(self) -> dict[str, Any]:
        return {"id": self._model, "object": "model", "created": self._created, "owned_by": "selfcorrect"}

    async def chat(self, request: Request) -> Response:
        chat_request = parse_request(await self._body(request), self._model, self._bounds)
        conversation = await self._admitted(chat_request)
        if chat_request.stream:
            return _Held(self._events(chat_request, conversation), self._release)
        try:
            gone = asyncio.create_task(_disconnected(request.receive))
            outcome = await self._answer(chat_request, conversation, lambda _k, _a: None, gone)
        finally:
            self._release()
        return JSONResponse(response(chat_request, outcome, _identity(), int(time.time()), self._model))

    async def _admitted(self, chat_request: ChatRequest) -> Conversation:
        """Count the request in, or refuse it. ``_release`` must follow once it is answered."""
        if self._draining:
            raise ApiError(503, "the server is stopping; ask another one, or later", retry_after_s=5)
        if (broken := self._backend.fault()) is not None:
            raise ApiError(503, f"the model cannot answer any more: {broken}")
        if self._in_flight >= self._limits.concurrent:
            message = f"{self._in_flight} requests are being answered, the most this server takes at once; try again"
            raise ApiError(429, message, retry_after_s=1)
        self._in_flight += 1
        try:
            return await self._backend.open(chat_request)
        except BaseException:
            self._release()
            raise

    def _release(self) -> None:
        self._in_flight -= 1

    async def _body(self, request: Request) -> bytes:
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != "application/json":  # which a page of another site cannot send without asking this server first
            raise ApiError(400, "the content type must be application/json")
        limit = self._limits.body_bytes
        too_large = ApiError(413, f"the body is larger than {limit} bytes, the most this server takes")
        if int(length if (length := request.headers.get("content-length", "0")).isdecimal() else 0) > limit:
            raise too_large
        body = bytearray()
        try:
            async with asyncio.timeout(self._limits.body_timeout_s), aclosing(request.stream()) as parts:
                async for part in parts:
                    body += part
                    if len(body) > limit:
                        raise too_large
        except TimeoutError:
            raise ApiError(408, f"the body did not arrive within {self._limits.body_timeout_s:g} s") from None
        return bytes(body)

    async def _answer(
        self,
        chat_request: ChatRequest,
        conversation: Conversation,
        on_attempt: Callable[[int, ServedAttempt], None],
        gone: asyncio.Task[None] | None,
    ) -> Outcome:
        """Correct within the limits. The answer, the time limit, a stop of the server or the client's departure ends
        the work."""
        work = asyncio.create_task(correct(conversation, chat_request, on_attempt))
        closing = asyncio.create_task(self._closing.wait())
        tasks: tuple[asyncio.Task[Any], ...] = (work, closing, *([gone] if gone is not None else []))
        try:
            await asyncio.wait(tasks, timeout=self._limits.timeout_s, return_when=asyncio.FIRST_COMPLETED)
            if work.done():
                return _result(work)
            if closing.done():
                raise ApiError(503, "the server stopped before this answer was finished", code="server_stopping")
            if gone is not None and gone.done():
                raise ApiError(CLOSED_BY_CLIENT, "the client is gone")
            raise ApiError(
                504,
                f"no answer within {self._limits.timeout_s:g} s; ask for fewer tokens, attempts or votes, or try again when fewer "
                "others do",
                code="timeout",
            )
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _events(self, chat_request: ChatRequest, conversation: Conversation) -> AsyncIterator[str]:
        """A stream: the role at once, every finished attempt as extra fields, then the final attempt's text."""
        identity, created = _identity(), int(time.time())
        news: asyncio.Queue[tuple[int, ServedAttempt] | None] = asyncio.Queue()
        # no watch for a client that is gone: starlette then cancels this generator
        work = asyncio.create_task(self._answer(chat_request, conversation, lambda k, a: news.put_nowait((k, a)), None))
        work.add_done_callback(lambda _work: news.put_nowait(None))
        try:
            more = {"usage": None} if chat_request.include_usage else {}
            yield chunk(identity, created, self._model, {"role": "assistant", "content": ""}, **more)
            while True:
                try:
                    async with asyncio.timeout(KEEP_ALIVE_S):
                        found = await news.get()
                except TimeoutError:
                    yield ": waiting\n\n"
                    continue
                if found is None:
                    break
                part = (
                    {"verdict": verdict_fields(*found)} if found[1].is_verdict else {"attempt": attempt_fields(*found)}
                )
                yield chunk(identity, created, self._model, {}, selfcorrect=part, **more)
            for text in streamed(chat_request, _result(work), identity, created, self._model):
                yield text
        except ApiError as error:
            yield event(error.body())
            yield DONE
        finally:
            work.cancel()
            await asyncio.gather(work, return_exceptions=True)


class _Held(StreamingResponse):
    """A stream that calls ``release`` when it is over, however it ends, even if its generator never started."""

    def __init__(self, events: AsyncIterator[str], release: Callable[[], None]) -> None:
        super().__init__(events, media_type="text/event-stream", headers={"cache-control": "no-store"})
        self._events, self._release = events, release

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._release()
            await self._events.aclose()  # type: ignore[attr-defined]


class Guard:
    """Checks the key before every handler, or the host name if no key is needed.

    Without a key the server listens on this machine only, and is then also protected from web pages that point their
    own host name at it (DNS rebinding).
    """

    def __init__(self, app: ASGIApp, key: str | None, hosts: frozenset[str]) -> None:
        self._app, self._hosts = app, hosts
        self._key = key.encode() if key is not None else None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        fault = self._fault(Request(scope)) if scope["type"] == "http" else None
        await (_error(fault) if fault is not None else self._app)(scope, receive, send)

    def _fault(self, request: Request) -> ApiError | None:
        if self._key is None:
            host = request.headers.get("host", "")
            name = host.rpartition(":")[0] if not host.endswith("]") and ":" in host else host
            if name.lower() not in self._hosts:
                return ApiError(403, "this server answers only by the names of this machine itself (localhost)")
            return None
        # not request.url: older versions of starlette build it from the Host header, which the client writes
        if request.scope["path"] in OPEN_TO_ALL:
            return None
        scheme, _, given = request.headers.get("authorization", "").partition(" ")
        if scheme.lower() == "bearer" and hmac.compare_digest(given.strip().encode(), self._key):
            return None
        return ApiError(401, "this server needs its API key, as 'Authorization: Bearer KEY'", code="invalid_api_key")


def make_app(
    backend: Backend,
    model: str,
    *,
    bounds: Bounds,
    limits: Limits,
    key: str | None,
    hosts: frozenset[str] = frozenset(),
) -> Starlette:
    """The application; ``app.state.service`` is its ``Service``, there once it has started.

    Args:
        backend: see ``Service``.
        model: see ``Service``.
        bounds: see ``Service``.
        limits: see ``Service``.
        key: the key that clients must send; None requires none.
        hosts: names by which clients may address the server if it needs no key.
    """

    @asynccontextmanager
    async def lifespan(_app: Starlette) -> AsyncIterator[None]:
        yield
        await backend.aclose()

    service = Service(backend, model, bounds, limits)
    routes = [
        Route("/", page),
        Route("/health", service.health),
        Route("/v1/models", service.models),
        Route("/v1/models/{name:path}", service.model),
        Route("/v1/chat/completions", service.chat, methods=["POST"]),
    ]
    app = Starlette(
        routes=routes,
        lifespan=lifespan,
        exception_handlers=dict.fromkeys((ApiError, HTTPException, ClientDisconnect, Exception), _on_error),
    )
    app.add_middleware(Guard, key=key, hosts=hosts)
    app.state.service = service
    return app


def _error(error: ApiError) -> JSONResponse:
    headers = {"retry-after": str(error.retry_after_s)} if error.retry_after_s is not None else {}
    if error.status == 401:
        headers["www-authenticate"] = "Bearer"
    if error.status == 408:  # its client is too slow
        headers["connection"] = "close"
    return JSONResponse(error.body(), error.status, headers=headers)


async def _on_error(request: Request, error: Exception) -> Response:
    if isinstance(error, ClientDisconnect):
        return Response(status_code=CLOSED_BY_CLIENT)
    if isinstance(error, HTTPException):
        path = request.scope["path"]
        what = {404: f"{path} is not served here", 405: f"{request.method} is not for {path}"}
        error = ApiError(error.status_code, what.get(error.status_code, error.detail))
    return _error(error if isinstance(error, ApiError) else ApiError(500, BUG))


def _result(work: asyncio.Task[Outcome]) -> Outcome:
    """The outcome. Faults of the engine become errors of the API."""
    try:
        return work.result()
    except ApiError:
        raise
    except EngineError as error:
        raise ApiError(503 if not error.usable else 500, f"the model failed: {error}") from None
    except Exception as error:  # noqa: BLE001  # the server's edge: one request may fail, with its trace in the log only
        traceback.print_exception(error, file=sys.stderr)
        raise ApiError(500, BUG) from None


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def _identity() -> str:
    return f"chatcmpl-{uuid.uuid4().hex}"
