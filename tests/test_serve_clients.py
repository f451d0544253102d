"""Clients that mean no good: silent, slow, deaf, oversized or no HTTP at all. The server must answer the others."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import pytest

from selfcorrect.serve import connection
from selfcorrect.serve.app import Limits
from served import ASK, KEY, Scripted, in_flight, post, serving, until


@pytest.fixture(scope="module")
def scripted():
    with serving(Scripted(), limits=Limits(body_bytes=2_000)) as (url, _):
        yield url


def address_of(url):
    host, port = url.removeprefix("http://").split(":")
    return host, int(port)


def request_bytes(body, *, length=None, path="/v1/chat/completions"):
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: application/json\r\n"
    return f"{head}content-length: {len(data) if length is None else length}\r\n\r\n".encode() + data


def answer_on(sock):
    """One whole answer: its head, and a body of JSON that ends in two braces."""
    got = b""
    while not got.endswith(b"}}"):
        more = sock.recv(4_000)
        assert more, got
        got += more
    return got


def ended(sock, seconds=20):
    """Whether the server ends the connection; what it sends meanwhile is dropped."""
    sock.settimeout(seconds)
    try:
        while sock.recv(65_536):
            pass
    except ConnectionError:
        pass
    except TimeoutError:
        return False
    return True


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_does_not_read_frees_its_place(stream):
    text = " ".join(["x" * 100_000] * 160)  # more than the buffers of the system hold
    limits = Limits(concurrent=1, write_timeout_s=0.5)
    body = {**ASK, "stream": stream, "attempts": 1}
    backend = Scripted((text,))
    with serving(backend, limits=limits) as (url, server):
        with socket.socket() as deaf:
            deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
            deaf.connect(address_of(url))
            deaf.sendall(request_bytes(body))
            until(lambda: len(server.server_state.connections) == 1)
            until(lambda: not server.server_state.connections, seconds=10)
            assert in_flight(url) == 0
            assert ended(deaf)
        backend.answers = ("short",)
        assert post(url).status_code == 200


def test_idle_connections_lock_nobody_out_and_are_ended():
    with serving(Scripted(), limits=Limits(concurrent=2)) as (url, _), ExitStack() as stack:
        idle = [stack.enter_context(socket.create_connection(address_of(url))) for _ in range(20)]
        assert [post(url).status_code for _ in range(10)] == [200] * 10
        assert ended(idle[0])  # the oldest made room
    with serving(Scripted(), limits=Limits(head_timeout_s=0.4)) as (url, _), ExitStack() as stack:
        silent, slow, again = (stack.enter_context(socket.create_connection(address_of(url))) for _ in range(3))
        again.sendall(request_bytes(ASK))
        assert answer_on(again).startswith(b"HTTP/1.1 200")
        begun = time.monotonic()
        for byte in b"POST /v1/ch":  # bytes that come one by one win no time
            with contextlib.suppress(ConnectionError):
                slow.send(bytes([byte]))
            time.sleep(0.1)
        assert ended(silent) and ended(slow) and ended(again)
        assert time.monotonic() - begun < 10


def test_a_busy_connection_never_has_to_make_room():
    hold = threading.Event()
    with (
        serving(Scripted(hold=hold), limits=Limits(concurrent=2)) as (url, _),
        ExitStack() as stack,
        ThreadPoolExecutor(2) as pool,
    ):
        waiting = [pool.submit(post, url) for _ in range(2)]
        until(lambda: in_flight(url) == 2)
        for _ in range(20):
            stack.enter_context(socket.create_connection(address_of(url)))
        hold.set()
        assert [w.result().status_code for w in waiting] == [200, 200]


def test_the_body_of_a_refused_request_is_not_read_without_end(monkeypatch):
    monkeypatch.setattr(connection, "LINGER_S", 60.0)  # so that only the bytes count
    with serving(Scripted(), key=KEY, limits=Limits(body_bytes=50_000)) as (url, _):
        for declared in (10**12, 40_000):
            with socket.create_connection(address_of(url), timeout=10) as sender:
                sender.sendall(request_bytes(b"", length=declared))
                assert answer_on(sender).startswith(b"HTTP/1.1 401")
                sent = 0
                with contextlib.suppress(ConnectionError):
                    while sent < min(declared, 64 * 2**20):
                        sent += sender.send(b"x" * 40_000)
                assert sent < 64 * 2**20
                if declared == 40_000:  # a small rest is thrown away, and the connection lives on
                    sender.sendall(request_bytes(ASK))
                    assert answer_on(sender).startswith(b"HTTP/1.1 401")
        monkeypatch.setattr(connection, "LINGER_S", 0.3)
        with socket.create_connection(address_of(url)) as waiting:  # and for a short time only
            waiting.sendall(request_bytes(b"{", length=100))
            assert ended(waiting, seconds=10)
        assert post(url, headers={"authorization": f"Bearer {KEY}"}).status_code == 200


def attack(url, content, *, read=True):
    with socket.create_connection(address_of(url), timeout=10) as sock, contextlib.suppress(ConnectionError):
        sock.sendall(content)
        if read:
            sock.recv(4_000)


ATTACKS = {
    "no HTTP": b"\x16\x03\x01\x02\x00\x01\x00" + bytes(range(256)),
    "an endless head": b"GET / HTTP/1.1\r\nx: " + b"y" * 200_000,
    "many headers": b"GET / HTTP/1.1\r\n" + b"a: b\r\n" * 20_000,
    "a negative length": request_bytes(b"", length=-1),
    "no number as length": request_bytes(b"", length="²"),
    "two lengths": request_bytes(b"{}").replace(b"\r\n\r\n", b"\r\ncontent-length: 9\r\n\r\n"),
    "a broken chunk": request_bytes(b"").replace(b"content-length: 0", b"transfer-encoding: chunked") + b"zz\r\nq",
    "more than is declared": request_bytes(ASK, length=3),
    "many in a row": request_bytes(ASK) * 30,
    "an upgrade": b"GET / HTTP/1.1\r\nhost: 127.0.0.1\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n",
    "an absolute target": b"GET http://evil.example/ HTTP/1.1\r\nhost: evil.example\r\n\r\n",
    "a body of a page": request_bytes(b"x" * 500, path="/"),
}


@pytest.mark.parametrize("name", ATTACKS)
def test_after_an_attack_the_server_answers(scripted, name):
    url = scripted
    for read in (True, False):
        attack(url, ATTACKS[name], read=read)
    attack(url, ATTACKS[name][: len(ATTACKS[name]) // 2], read=False)
    assert post(url).status_code == 200
    until(lambda: in_flight(url) == 0)


def test_a_body_without_a_declared_length_is_bounded_too(scripted):
    url = scripted
    got = post(url, content=iter([b"x" * 1_500] * 4), headers={"content-type": "application/json"})
    assert got.status_code == 413
    assert post(url).status_code == 200
