"""The process: a socket that is bound before a model loads, a server that stops cleanly, the key."""

from __future__ import annotations

import asyncio
import ipaddress
import math
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import uvicorn
from starlette.applications import Starlette

from selfcorrect.episodes.endpoint import api_key_from
from selfcorrect.errors import ConfigError
from selfcorrect.records.files import disk_reason
from selfcorrect.serve.app import Limits
from selfcorrect.serve.connection import Connection

SHORTEST_KEY = 16
HEADERS_BYTES = 16_384
STOPPING = (signal.SIGINT, signal.SIGTERM)


def listening_socket(host: str, port: int) -> socket.socket:
    """Bind the address, before anything expensive; no client can connect yet.

    Raises:
        ConfigError: the host has no address here, or the port is taken.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        found = socket.socket(family, kind, protocol)
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            found.bind(address)
        except OSError:
            found.close()
            raise
    except OSError as error:
        raise ConfigError(
            f"cannot listen at {host} port {port}: {error.strerror or error}; give another --port, or a --host of this machine"
        ) from None
    return found


def is_loopback(sock: socket.socket) -> bool:
    """Whether only this machine can connect."""
    return ipaddress.ip_address(sock.getsockname()[0].partition("%")[0]).is_loopback


def url_of(sock: socket.socket) -> str:
    host, port = sock.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


KEY_VARIABLE = "SELFCORRECT_API_KEY"
"""The variable that is read if no other is named."""


def server_key(variable: str | None, file: Path | None, environment: Mapping[str, str]) -> str | None:
    """The key that clients must send: from a file, else from the named environment variable, else from ``KEY_VARIABLE``
    if it is set, else none.

    Raises:
        ConfigError: the file cannot be read, the named variable is not set, or the key is too short or not printable ASCII.
    """
    if file is not None:
        try:
            key: str | None = file.read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(
                f"the key file {file} cannot be read: {disk_reason(error)}; name a text file that holds the key"
            ) from None
    else:
        if variable is None and environment.get(KEY_VARIABLE):
            variable = KEY_VARIABLE
        key = api_key_from(variable, environment)
    if key is None:
        return None
    if len(key) < SHORTEST_KEY or not key.isascii() or not key.isprintable() or " " in key:
        raise ConfigError(
            f"the API key is shorter than {SHORTEST_KEY} characters, or holds others than printable ASCII without spaces; make one "
            "with `openssl rand -hex 24`"
        )
    return key


class Server(uvicorn.Server):
    """A server that signals stop without ending the process: code after ``serve`` still runs.

    Args:
        app: from ``make_app``.
        limits: those of ``Connection``, ``grace_s`` and ``concurrent``; four times as many connections may be open.
    """

    def __init__(self, app: Starlette, limits: Limits) -> None:
        self._app = app
        config = uvicorn.Config(
            app,
            http=partial(Connection, limits),  # type: ignore[arg-type]  # uvicorn only calls it
            ws="none",
            loop="asyncio",
            log_level="warning",
            access_log=False,
            server_header=False,
            proxy_headers=False,
            limit_concurrency=4 * limits.concurrent,
            timeout_keep_alive=math.ceil(limits.head_timeout_s),
            timeout_graceful_shutdown=int(limits.grace_s) + 5,
            h11_max_incomplete_event_size=HEADERS_BYTES,
        )
        super().__init__(config)

    def run_until_stopped(self, sock: socket.socket, ready: Callable[[], None] = lambda: None) -> None:
        """Serve until a signal or ``stop``; unfinished requests end within the grace time.

        Args:
            sock: bound.
            ready: called once requests are taken.
        """

        async def announce() -> None:
            while not self.started:
                await asyncio.sleep(0.02)
            ready()

        async def serve_and_announce() -> None:
            announcing = asyncio.create_task(announce())
            try:
                await self.serve(sockets=[sock])
            finally:
                announcing.cancel()

        asyncio.run(serve_and_announce())

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        if threading.current_thread() is not threading.main_thread():  # signals come to the main thread only
            yield
            return
        loop = asyncio.get_running_loop()
        for number in STOPPING:
            loop.add_signal_handler(number, self.stop)
        try:
            yield
        finally:
            for number in STOPPING:
                loop.remove_signal_handler(number)

    def stop(self) -> None:
        """Take no more requests and end; a second call ends at once. Call it in the server's event loop only."""
        self._app.state.service.drain()
        self.force_exit = self.should_exit
        self.should_exit = True


def leave_at_once() -> None:
    """End the process although a batch still runs in its thread. An ordinary exit would destroy the engine while the
    batch uses it."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)
