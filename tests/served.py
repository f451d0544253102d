"""A server of this package in a thread, with a real engine or with scripted answers, and what its clients need."""

from __future__ import annotations

import asyncio
import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass, field

import httpx2

from selfcorrect.episodes.play import Reply
from selfcorrect.serve.app import Limits, make_app
from selfcorrect.serve.correct import Conversation
from selfcorrect.serve.protocol import Bounds
from selfcorrect.serve.run import Server, listening_socket, url_of

KEY = "a-key-of-this-test-0123"
ASK = {"messages": [{"role": "user", "content": "2+2?"}]}
HOSTS = frozenset({"127.0.0.1", "localhost"})


def post(url, body=None, **more):
    return httpx2.post(
        f"{url}/v1/chat/completions", json=ASK if body is None else body, trust_env=False, timeout=30, **more
    )


def in_flight(url):
    return httpx2.get(f"{url}/health", trust_env=False).json()["in_flight"]


def until(condition, seconds=20):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it never came to that"
        time.sleep(0.01)


def health(url):
    return httpx2.get(f"{url}/health", trust_env=False)


@dataclass
class Scripted:
    """A backend that gives the same answers to everybody; ``hold`` keeps every answer back until it is set."""

    answers: tuple[str, ...] = ("first", "second")
    hold: threading.Event | None = None
    stop: str = "end"
    asked: list = field(default_factory=list)

    async def open(self, asked):
        self.asked.append(asked)
        return Conversation(self, (), "Again.")

    def fault(self):
        return None

    async def aclose(self):
        pass

    async def answer(self, prompts, keys, *, continued):
        """Conversation k says answers[k], answers[k + 1], and so on."""
        while self.hold is not None and not self.hold.is_set():
            await asyncio.sleep(0.01)
        return [Reply(self.answers[sum(key) % len(self.answers)], self.stop, 7, 3) for key in keys]

    def extend(self, prompt, reply, request):
        return prompt


@contextmanager
def serving(backend, *, model="m", bounds=None, limits=None, key=None, host="127.0.0.1"):
    """``with serving(backend) as (url, server)``; the server has stopped when the block ends."""
    limits = limits or Limits()
    app = make_app(backend, model, bounds=bounds or Bounds(), limits=limits, key=key, hosts=HOSTS)
    sock = listening_socket(host, 0)
    server, ready = Server(app, limits), threading.Event()
    loops = []

    def said():
        loops.append(asyncio.get_running_loop())
        ready.set()

    thread = threading.Thread(target=server.run_until_stopped, args=(sock, said))
    url = url_of(sock)
    thread.start()
    try:
        assert ready.wait(30)
        server.stop_from_outside = lambda: loops[0].call_soon_threadsafe(server.stop)
        yield url, server
    finally:
        if thread.is_alive():
            loops[0].call_soon_threadsafe(server.stop)
        thread.join(30)
        sock.close()
        assert not thread.is_alive()
