"""One connection: how long its client may take, and which one closes when too many are open."""

from __future__ import annotations

import asyncio
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from selfcorrect.serve.app import Limits

LINGER_S = 2.0
"""How long the rest of a body is discarded after an early answer. Closing at once would reset the connection, and many
clients would then never see the answer."""


class Connection(H11Protocol):
    """uvicorn's HTTP/1.1 connection with additional limits.

    A client has ``head_timeout_s`` for a whole request head, even if bytes of it keep coming, and
    ``write_timeout_s`` to take what was written. Of an unread body, ``body_bytes`` are discarded, for
    ``LINGER_S`` at most. A connection beyond ``limit_concurrency`` takes the place of the one that was idle for longest, so
    that idle ones cannot lock others out; where all are busy, uvicorn answers 503.

    Args:
        limits: of the server.
        more: further arguments from uvicorn.
    """

    def __init__(self, limits: Limits, **more: Any) -> None:
        super().__init__(**more)
        self._limits = limits
        self._idle_timer: asyncio.TimerHandle | None = None
        self._write_timer: asyncio.TimerHandle | None = None
        self._is_lingering = False
        self._n_unread = 0
        self.idle_since: float | None = None
        """Time of the event loop since which no request is being answered; None while one is."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        transport.set_write_buffer_limits(high=0)  # so that writing is "paused" exactly while something is unsent
        self._make_room()
        self._begin_idle()

    def data_received(self, data: bytes) -> None:
        if self._is_lingering:
            self._n_unread += len(data)
            if self._n_unread > self._limits.body_bytes:
                self.transport.abort()
                return
        super().data_received(data)
        if self._is_busy:
            self._end_idle()
        elif self._is_lingering and self.conn.their_state is not h11.SEND_BODY:
            self._begin_idle()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if not self._is_busy and not self.transport.is_closing():
            self._begin_idle()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._write_timer = self.loop.call_later(self._limits.write_timeout_s, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        self._end_write_timer()

    def connection_lost(self, exc: Exception | None) -> None:
        self._end_idle()
        self._end_write_timer()
        super().connection_lost(exc)

    @property
    def _is_busy(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _begin_idle(self) -> None:
        self._end_idle()
        self.idle_since = self.loop.time()
        self._is_lingering = self.conn.their_state is h11.SEND_BODY
        self._n_unread = 0
        patience_s = LINGER_S if self._is_lingering else self._limits.head_timeout_s
        self._idle_timer = self.loop.call_later(patience_s, self.timeout_keep_alive_handler)

    def _end_idle(self) -> None:
        self.idle_since, self._is_lingering = None, False
        if self._idle_timer is not None:
            self._idle_timer.cancel()
            self._idle_timer = None

    def _end_write_timer(self) -> None:
        if self._write_timer is not None:
            self._write_timer.cancel()
            self._write_timer = None

    def _make_room(self) -> None:
        assert self.limit_concurrency is not None
        if len(self.connections) < self.limit_concurrency:
            return
        others = [c for c in self.connections if isinstance(c, Connection) and c is not self]
        idle = [(c.idle_since, id(c), c) for c in others if c.idle_since is not None]
        if idle:
            longest = min(idle)[2]
            self.connections.discard(longest)
            longest.transport.abort()
