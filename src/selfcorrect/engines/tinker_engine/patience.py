"""Waiting for a server: repeats requests with growing waits, and waits up to a limit for a server or for a place on
it."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Iterator
from itertools import islice
from typing import TypeVar

from selfcorrect.engines.tinker_engine.remote import RemoteFailure

T = TypeVar("T")

RETRIES = 4
"""How often a request that changes nothing is repeated."""
FIRST_WAIT_S, LONGEST_WAIT_S = 1.0, 30.0
IN_FLIGHT = 256
"""Samples requested at once. SkyRL's server has 15 connections to its database; with 1,500 samples some timed out there."""

log = logging.getLogger(__name__)


def backoff() -> Iterator[float]:
    """Seconds to wait after each failure, doubling up to a limit; endless."""
    wait_s = FIRST_WAIT_S
    while True:
        yield wait_s
        wait_s = min(2 * wait_s, LONGEST_WAIT_S)


def retried(ask: Callable[[], T]) -> T:
    """Send a request that changes nothing; repeat it if the failure may pass.

    Raises:
        RemoteFailure: the last one.
    """
    for wait_s in islice(backoff(), RETRIES):
        try:
            return ask()
        except RemoteFailure as failure:
            if not failure.passing:
                raise
            time.sleep(wait_s)
    return ask()


class Gate:
    """``retried`` for coroutines, of which at most ``IN_FLIGHT`` run at once. One gate serves any event loop."""

    def __init__(self) -> None:
        self._of_loop: tuple[asyncio.AbstractEventLoop, asyncio.Semaphore] | None = None

    async def retried(self, ask: Callable[[], Awaitable[T]]) -> T:
        """See the function of this name."""
        for wait_s in islice(backoff(), RETRIES):
            try:
                return await self._admitted(ask)
            except RemoteFailure as failure:
                if not failure.passing:
                    raise
            await asyncio.sleep(wait_s)
        return await self._admitted(ask)

    async def _admitted(self, ask: Callable[[], Awaitable[T]]) -> T:
        loop = asyncio.get_running_loop()
        if self._of_loop is None or self._of_loop[0] is not loop:
            self._of_loop = loop, asyncio.Semaphore(IN_FLIGHT)
        async with self._of_loop[1]:
            return await ask()


def waited(make: Callable[[], T], worth_waiting: Callable[[RemoteFailure], bool], what: str, limit_s: float) -> T:
    """Try until it works; log a line when the wait begins.

    Raises:
        RemoteFailure: one that is not worth waiting for, or the last one within the limit.
    """
    deadline, waits = time.monotonic() + limit_s, backoff()
    while True:
        try:
            return make()
        except RemoteFailure as failure:
            wait_s = next(waits)
            if not worth_waiting(failure) or time.monotonic() + wait_s > deadline:
                raise
            if wait_s == FIRST_WAIT_S:
                log.warning("waiting for %s, up to %.0f s (engine.wait_s): %s", what, limit_s, failure)
            time.sleep(wait_s)
