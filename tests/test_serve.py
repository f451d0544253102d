"""The server as its clients meet it: answers, streams, errors, limits, shutdown. On loopback, at a free port."""

from __future__ import annotations

import asyncio
import gc
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx2
import openai
import pytest
from starlette.datastructures import URL
from starlette.requests import Request

import made_runs
import tiny
from selfcorrect.cli import serve
from selfcorrect.config import load_config
from selfcorrect.engines.base import Sampled, SampleRequest, SamplingParams
from selfcorrect.episodes.endpoint import Endpoint, Patience
from selfcorrect.episodes.play import Play, Reply, play
from selfcorrect.errors import ConfigError, EngineError
from selfcorrect.report import build_report
from selfcorrect.serve import app
from selfcorrect.serve.app import Limits
from selfcorrect.serve.correct import LONGEST_MEASURED, Conversation, correct, edit_ratios, majority
from selfcorrect.serve.endpoint_backend import EndpointBackend
from selfcorrect.serve.engine_backend import Batcher, EngineBackend, cut
from selfcorrect.serve.page import DIFF_GOES_HERE, content_security_policy, page_text
from selfcorrect.serve.protocol import ApiError, Bounds, ServedAttempt, event, parse_request
from selfcorrect.serve.run import listening_socket, server_key
from selfcorrect.types import Grade, Problem, Verdict
from served import ASK, KEY, Scripted, health, in_flight, post, serving, until

ROOT = Path(__file__).parent.parent
SMALL = Bounds(max_tokens=6, tokens_limit=16)
INSTRUCTION = "Again."
HOSTILE = "<script>alert(1)</script> \u202e \x1b[31m \x00 \u2028 </pre> 𝒳 data: [DONE]\n\ndata: x"


OPENED = []


@pytest.fixture(autouse=True)
def clients_are_closed():
    yield
    while OPENED:
        OPENED.pop().close()


def client(url, key="none"):
    """The official client, without its own retries; closed after the test."""
    http = httpx2.Client(trust_env=False)
    OPENED.append(http)
    return openai.OpenAI(base_url=f"{url}/v1", api_key=key, max_retries=0, http_client=http)


class Counting:
    """An engine that notes the size of every call."""

    def __init__(self):
        self._engine = tiny.engine()
        self.chat, self.info = self._engine.chat, self._engine.info
        self.calls = []

    async def sample(self, requests, params):
        self.calls.append(len(requests))
        return await self._engine.sample(requests, params)


class Again:
    """A task with one first message and the instruction of these tests."""

    name, instruction = "again", INSTRUCTION

    def first_messages(self, problem):
        return [{"role": "user", "content": problem.question}]

    def grade(self, problem, text, *, truncated):
        return Grade(Verdict.WRONG)


@pytest.fixture(scope="module")
def real():
    """(url, engine): a random model of a few thousand parameters behind the server."""
    engine = Counting()
    batcher = Batcher(engine, window_s=0.05)
    with serving(EngineBackend(batcher, INSTRUCTION, 512), model="tiny", bounds=SMALL) as (url, _):
        yield url, engine


@pytest.fixture(scope="module")
def scripted():
    backend = Scripted(("It is 5.", "It is 4."))
    with serving(backend, limits=Limits(body_bytes=2_000)) as (url, _):
        yield url, backend


# --- answers -----------------------------------------------------------------------------------------------------


def test_the_answer_is_the_last_attempt_of_an_episode_as_training_plays_it(real):
    url, _ = real
    got = client(url).chat.completions.create(model="tiny", **ASK)
    how = Play(attempts=2, samples=1, max_new_tokens=6, temperature=0, stream=("x",))
    ((episode,),) = asyncio.run(play(tiny.engine(), Again(), [Problem("p", "2+2?", "4")], how))
    more = got.model_extra["selfcorrect"]
    assert [a["text"] for a in more["attempts"]] == [a.text for a in episode.attempts]
    assert got.choices[0].message.content == episode.attempts[1].text
    finish = {"end": "stop", "length": "length"}
    assert got.choices[0].finish_reason == finish[episode.attempts[1].stop]
    assert got.usage.prompt_tokens == len(episode.attempts[0].prompt_ids)
    assert got.usage.completion_tokens == sum(len(a.token_ids) for a in episode.attempts)
    (change,) = more["changes"]
    assert change["changed"] == (episode.attempts[0].text != episode.attempts[1].text)
    assert more["settings"] == {"attempts": 2, "votes": 1, "temperature": 0.0, "max_tokens": 6}


def test_the_server_names_its_one_model(real):
    url, _ = real
    assert [m.id for m in client(url).models.list()] == ["tiny"]


@pytest.mark.parametrize("attempts", [1, 3])
def test_a_stream_gives_the_same_text_and_every_attempt_as_it_comes(real, attempts):
    url, _ = real
    more = {"attempts": attempts}
    plain = client(url).chat.completions.create(model="tiny", **ASK, extra_body=more)
    options = {"include_usage": True}
    chunks = list(
        client(url).chat.completions.create(model="tiny", **ASK, stream=True, stream_options=options, extra_body=more)
    )
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert text == plain.choices[0].message.content
    extras = [c.model_extra["selfcorrect"] for c in chunks if "selfcorrect" in c.model_extra]
    assert [e["attempt"]["attempt"] for e in extras[:-1]] == list(range(1, attempts + 1))
    said = [a["text"] for a in plain.model_extra["selfcorrect"]["attempts"]]
    assert [e["attempt"]["text"] for e in extras[:-1]] == [a["text"] for a in extras[-1]["attempts"]] == said
    assert chunks[-1].usage == plain.usage
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == plain.choices[0].finish_reason


def test_a_stream_that_has_to_wait_says_so(monkeypatch):
    monkeypatch.setattr(app, "KEEP_ALIVE_S", 0.05)
    hold = threading.Event()
    with (
        serving(Scripted(hold=hold)) as (url, _),
        httpx2.stream(
            "POST", f"{url}/v1/chat/completions", json={**ASK, "stream": True}, trust_env=False, timeout=30
        ) as got,
    ):
        lines = []
        for line in got.iter_lines():
            lines.append(line)
            if line.startswith(":"):
                hold.set()
    assert ": waiting" in lines and lines[-2:] == ["data: [DONE]", ""]


def test_a_seed_repeats_a_sampled_answer_and_without_one_answers_differ(real):
    url, _ = real

    def text(**more):
        body = {**ASK, "temperature": 1, "attempts": 1, "max_tokens": 16, **more}
        return post(url, body).json()["choices"][0]["message"]["content"]

    assert text(seed=3) == text(seed=3)
    assert len({text() for _ in range(4)}) > 1


def test_the_vote_takes_the_most_frequent_final_answer(scripted):
    url, _ = scripted
    # conversation k says answers[k], answers[k + 1]: two of three end in 4
    more = post(url, {**ASK, "votes": 3}).json()
    assert more["choices"][0]["message"]["content"] == "It is 4."
    assert more["selfcorrect"]["votes"] == [{"answer": "4", "count": 2}, {"answer": "5", "count": 1}]
    assert more["selfcorrect"]["settings"]["temperature"] == 1
    assert more["usage"]["completion_tokens"] == 3 * 2 * 3


def test_the_vote_compares_answers_and_not_words():
    def final(text, stop="end"):
        return ServedAttempt(text, stop, None, 0.0)

    tied = [
        final("Final answer: 7"),
        final(r"so \boxed{ 8 }"),
        final("Answer: 8, of course?\nFinal answer: 8"),
        final("I say 7"),
    ]
    assert majority(tied) == (0, (("7", 2), ("8", 2)))
    cut_off = [final("it is 12", "length"), final("it is 12", "length"), final("Final answer: 3")]
    assert majority(cut_off) == (2, (("3", 1), (None, 2)))
    assert majority([final("yes"), final("no"), final(" yes\n")])[0] == 0


def test_how_much_an_attempt_changed():
    # "kitten" to "sitting": 3 edits over 6 + 7 characters
    assert edit_ratios(["kitten", "sitting", "sitting", "", ""]) == (3 / 13, 0.0, 1.0, None)
    assert edit_ratios(["only one"]) == ()
    long = "x" * (LONGEST_MEASURED + 1)
    assert edit_ratios([long[1:], long[1:], long, long]) == (0.0, None, None)


def test_long_answers_do_not_stop_the_server():
    """Two of 3 MB, whose edit distance would take minutes; others are answered meanwhile."""
    texts = tuple(c * 3_000_000 for c in "xy")
    with serving(Scripted(texts)) as (url, _), ThreadPoolExecutor(1) as pool:
        long = pool.submit(post, url)
        slowest = 0.0
        while not long.done():
            begun = time.monotonic()
            assert health(url).status_code == 200
            slowest = max(slowest, time.monotonic() - begun)
        assert long.result().json()["selfcorrect"]["changes"] == [
            {"from": 1, "to": 2, "changed": True, "edit_ratio": None}
        ]
        assert slowest < 10


def test_concurrent_requests_share_batches_and_lose_nothing(real):
    url, engine = real
    questions = [f"{i}+1?" for i in range(64)]
    alone = [post(url, {"messages": [{"role": "user", "content": q}]}).json() for q in questions[:3]]
    engine.calls.clear()

    async def ask_all():
        http = httpx2.AsyncClient(trust_env=False, timeout=60, limits=httpx2.Limits(max_connections=64))
        async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, http_client=http) as ask:
            asked = ([{"role": "user", "content": q}] for q in questions)
            return await asyncio.gather(*(ask.chat.completions.create(model="tiny", messages=m) for m in asked))

    answers = asyncio.run(ask_all())
    assert len({a.id for a in answers}) == 64 and all(a.choices[0].message.content is not None for a in answers)
    assert sum(engine.calls) == 128 and len(engine.calls) < 64  # one by one it would be 128 calls
    assert [a.choices[0].message.content for a in answers[:3]] == [a["choices"][0]["message"]["content"] for a in alone]
    assert in_flight(url) == 0


@pytest.mark.slow
def test_64_at_once_lose_none_and_are_4_times_as_fast_as_one_at_a_time():
    """The benchmark, which ends with 1 where an answer is lost or the ratio is below 4."""
    command = [sys.executable, ROOT / "benchmarks/serve.py", "--rounds", "2"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_request_that_comes_while_a_batch_runs_is_in_the_next_one():
    """With the second attempts of those before."""
    engine = Counting()
    begun, go_on = threading.Event(), threading.Event()
    sample = engine.sample

    async def held(requests, params):
        begun.set()
        assert go_on.wait(20)
        return await sample(requests, params)

    engine.sample = held
    backend = EngineBackend(Batcher(engine), INSTRUCTION, 512)
    with serving(backend, bounds=SMALL) as (url, _), ThreadPoolExecutor(8) as pool:
        first = pool.submit(post, url)
        assert begun.wait(20)
        others = [pool.submit(post, url) for _ in range(7)]
        until(lambda: in_flight(url) == 8)
        go_on.set()
        assert [w.result().status_code for w in (first, *others)] == [200] * 8
    # 1 alone; then its second attempt with the seven others' first ones; then their second ones
    assert engine.calls == [1, 8, 7]


def test_unequal_caps_and_temperatures_give_what_each_would_get_alone():
    engine = Counting()
    prompt = engine.chat.prompt_ids(ASK["messages"])
    wanted = [(3, 0.0), (5, 0.0), (7, 1.0), (4, 1.0), (6, 1.0)]
    requests = [SampleRequest(prompt, ("k", i)) for i in range(len(wanted))]

    async def together():
        batcher = Batcher(engine, window_s=0.05)
        calls = (batcher.sample([r], SamplingParams(*w)) for r, w in zip(requests, wanted, strict=True))
        answers = [answer for (answer,) in await asyncio.gather(*calls)]
        await batcher.aclose()
        assert not batcher.is_running
        return answers

    def alone(request, cap, temperature):
        params = SamplingParams(cap, temperature, engine.chat.end_ids)
        return asyncio.run(tiny.engine().sample([request], params))[0]

    answers = asyncio.run(together())
    assert [a.token_ids for a in answers] == [alone(r, *w).token_ids for r, w in zip(requests, wanted, strict=True)]
    assert sum(engine.calls) == 5 and len(engine.calls) < 5
    assert cut(Sampled((1, 2, 3), (0.0, 0.0, 0.0), "end"), 2) == Sampled((1, 2), (0.0, 0.0), "length")


def test_a_failing_engine_fails_its_requests_only():
    class Failing(Counting):
        async def sample(self, requests, params):
            self.calls.append(len(requests))
            if len(self.calls) == 1:
                raise EngineError("out of memory", usable=True)
            if len(self.calls) == 4:
                raise EngineError("gone for good", usable=False)
            return await self._engine.sample(requests, params)

    engine = Failing()
    with serving(EngineBackend(Batcher(engine), INSTRUCTION, 512), bounds=SMALL) as (url, _):
        assert (post(url).status_code, post(url).status_code, post(url).status_code) == (500, 200, 503)
        later = post(url)
        assert later.status_code == 503 and "gone for good" in later.json()["error"]["message"]
        assert httpx2.get(f"{url}/health", trust_env=False).status_code == 503


def raising(error, n=1):
    """An engine whose first n calls raise."""

    class Raising(Counting):
        async def sample(self, requests, params):
            self.calls.append(len(requests))
            if len(self.calls) <= n:
                raise error
            return await self._engine.sample(requests, params)

    return Raising()


@pytest.mark.parametrize("error", [ValueError("a bug"), MemoryError(), KeyError("x")], ids=lambda e: type(e).__name__)
def test_a_bug_in_the_engine_fails_its_requests_only(error, capfd):
    engine = raising(error)
    with serving(EngineBackend(Batcher(engine), INSTRUCTION, 512), bounds=SMALL) as (url, _):
        got = post(url)
        assert got.status_code == 500 and type(error).__name__ in got.json()["error"]["message"]
        assert "a bug" not in got.text  # what it says is for the log
        assert health(url).status_code == 200 and post(url).status_code == 200
    assert "Traceback" in capfd.readouterr().err


def test_an_answer_too_few_is_a_bug_of_the_engine():
    class Forgetful(Counting):
        async def sample(self, requests, params):
            self.calls.append(len(requests))
            return [] if len(self.calls) == 1 else await self._engine.sample(requests, params)

    engine = Forgetful()
    with serving(EngineBackend(Batcher(engine), INSTRUCTION, 512), bounds=SMALL) as (url, _):
        assert (post(url).status_code, post(url).status_code) == (500, 200)


def test_the_end_of_the_engines_thread_is_told_once(caplog):
    engine = raising(SystemExit(1))
    with serving(EngineBackend(Batcher(engine), INSTRUCTION, 512), bounds=SMALL) as (url, _):
        assert post(url).status_code == 503
        assert health(url).status_code == 503 and "thread has ended" in health(url).json()["status"]
        later = post(url)
        assert later.status_code == 503 and "start the server again" in later.json()["error"]["message"]
    gc.collect()
    assert "never retrieved" not in caplog.text


# --- bad requests ------------------------------------------------------------------------------------------------

TEXT = {"role": "user", "content": "x"}
BAD = {
    "no messages": ({}, "messages"),
    "empty messages": ({"messages": []}, "messages"),
    "the assistant last": ({"messages": [TEXT, {"role": "assistant", "content": "y"}]}, "messages"),
    "unknown role": ({"messages": [{"role": "wizard", "content": "x"}]}, "messages[0].role"),
    "no text": ({"messages": [{"role": "user", "content": ""}]}, "messages[0].content"),
    "an image": ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages[0].content"),
    "a name": ({"messages": [{**TEXT, "name": "n"}]}, "messages[0]"),
    "many choices": ({**ASK, "n": 2}, "n"),
    "top_p": ({**ASK, "top_p": 0.5}, "top_p"),
    "tools": ({**ASK, "tools": [{"type": "function"}]}, "tools"),
    "stop words": ({**ASK, "stop": ["x"]}, "stop"),
    "unknown field": ({**ASK, "best_of": 3}, "best_of"),
    "too many attempts": ({**ASK, "attempts": 5}, "attempts"),
    "attempts in words": ({**ASK, "attempts": "two"}, "attempts"),
    "no attempts": ({**ASK, "attempts": 0}, "attempts"),
    "true attempts": ({**ASK, "attempts": True}, "attempts"),
    "greedy votes": ({**ASK, "votes": 3, "temperature": 0}, "temperature"),
    "too many votes": ({**ASK, "votes": 17}, "votes"),
    "hot": ({**ASK, "temperature": 3}, "temperature"),
    "many tokens": ({**ASK, "max_tokens": 2000}, "max_tokens"),
    "many tokens, new name": ({**ASK, "max_completion_tokens": 2000}, "max_completion_tokens"),
    "stream in words": ({**ASK, "stream": "yes"}, "stream"),
    "options of no stream": ({**ASK, "stream_options": {"include_usage": True}}, "stream_options"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_request_names_the_field_at_fault(name):
    body, param = BAD[name]
    with pytest.raises(ApiError) as error:
        parse_request(json.dumps(body).encode(), "m", Bounds())
    assert (error.value.status, error.value.param) == (400, param)


def test_neutral_and_null_fields_of_other_clients_are_taken():
    more = {
        "n": 1,
        "top_p": 1.0,
        "presence_penalty": 0,
        "stop": None,
        "tools": [],
        "user": "u",
        "response_format": {"type": "text"},
    }
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b\ud800"}]
    body = {
        **more,
        "model": "m",
        "messages": [{"role": "developer", "content": "s"}, {"role": "user", "content": parts, "name": None}],
    }
    asked = parse_request(json.dumps(body).encode(), "m", Bounds())
    assert asked.messages == ({"role": "system", "content": "s"}, {"role": "user", "content": "ab�"})
    assert (asked.attempts, asked.votes, asked.temperature, asked.max_tokens) == (2, 1, 0.0, 512)


@pytest.mark.parametrize("raw", [b"", b"{", b"[]", b"\xff\xfe", b"[" * 1_500, b'{"messages": ' + b"9" * 1_900])
def test_malformed_bodies_are_refused_and_the_server_stays_healthy(scripted, raw):
    url, _ = scripted
    got = (
        post(url, content=raw, headers={"content-type": "application/json"})
        if raw
        else post(url, content=b" ", headers={"content-type": "application/json"})
    )
    assert got.status_code == 400 and got.json()["error"]["type"] == "invalid_request_error"
    assert post(url).status_code == 200


def test_faults_arrive_as_the_exceptions_of_the_openai_client(scripted):
    url, _ = scripted
    ask = client(url).chat.completions.create
    with pytest.raises(openai.NotFoundError, match="is not served here; the model is 'm'"):
        ask(model="gpt", **ASK)
    with pytest.raises(openai.BadRequestError, match="attempts must be a whole number from 1 to 4") as error:
        ask(model="m", **ASK, extra_body={"attempts": 9})
    assert error.value.param == "attempts"
    with pytest.raises(openai.APIStatusError) as error:
        ask(model="m", messages=[{"role": "user", "content": "x" * 3_000}])
    assert error.value.status_code == 413 and "2000 bytes" in str(error.value)


def test_a_conversation_beyond_the_context_is_refused_with_the_count(real):
    url, _ = real
    got = post(url, {"messages": [{"role": "user", "content": "x" * 600}]})
    assert got.status_code == 400 and got.json()["error"]["code"] == "context_length_exceeded"
    assert "the limit is 512" in got.json()["error"]["message"]
    assert in_flight(url) == 0


def test_other_paths_methods_and_content_types(scripted):
    url, _ = scripted
    assert httpx2.get(f"{url}/v1/completions", trust_env=False).json()["error"]["type"] == "not_found_error"
    assert httpx2.get(f"{url}/v1/chat/completions", trust_env=False).status_code == 405
    # what a form on another site's page could send without asking first
    assert post(url, content=json.dumps(ASK), headers={"content-type": "text/plain"}).status_code == 400


# --- limits ------------------------------------------------------------------------------------------------------


def test_too_many_too_slow_and_gone_clients():
    hold = threading.Event()
    limits = Limits(concurrent=2, timeout_s=0.6, body_timeout_s=0.3)
    with serving(Scripted(hold=hold), limits=limits) as (url, _), ThreadPoolExecutor(2) as pool:
        waiting = [pool.submit(post, url), pool.submit(post, url, {**ASK, "stream": True})]
        until(lambda: in_flight(url) == 2)
        third = post(url)
        assert third.status_code == 429 and third.headers["retry-after"] == "1"
        plain, stream = (w.result() for w in waiting)
        assert plain.status_code == 504 and plain.json()["error"]["code"] == "timeout"
        assert (
            stream.status_code == 200
            and '"code": "timeout"' in stream.text
            and stream.text.endswith("data: [DONE]\n\n")
        )
        assert in_flight(url) == 0

        host, port = url.removeprefix("http://").split(":")
        head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: {host}\r\ncontent-type: application/json\r\ncontent-length: 50\r\n\r\n"
        with socket.create_connection((host, int(port)), timeout=10) as slow:
            slow.sendall(head.encode() + b'{"mess')
            assert slow.recv(4_000).startswith(b"HTTP/1.1 408")
        for body in (ASK, {**ASK, "stream": True}):
            data = json.dumps(body).encode()
            with socket.create_connection((host, int(port)), timeout=10) as leaving:
                leaving.sendall(head.replace("50", str(len(data))).encode() + data)
                until(lambda: in_flight(url) == 1)
            until(lambda: in_flight(url) == 0, seconds=0.5)  # at once, not at the time limit
        hold.set()
        assert post(url).status_code == 200


def test_a_key_is_needed_where_one_is_set(monkeypatch):
    with serving(Scripted(), key=KEY) as (url, _):
        assert post(url).status_code == 401
        with pytest.raises(openai.AuthenticationError):
            client(url, key="another-key-01234567").models.list()
        for scheme in ("Basic", ""):
            assert post(url, headers={"authorization": f"{scheme} {KEY}".strip()}).status_code == 401
        assert client(url, key=KEY).chat.completions.create(model="m", **ASK).choices[0].message.content == "second"
        assert httpx2.get(f"{url}/health", trust_env=False).status_code == 200
        assert httpx2.get(f"{url}/", trust_env=False).status_code == 200


@pytest.mark.parametrize("host", ["x/health?", "x/?", "x/health#"])
def test_a_host_header_does_not_open_a_path_that_needs_the_key(monkeypatch, host):
    """starlette 1.0, which is allowed too, writes the Host header into the URL as it is."""

    def as_starlette_1_0_does(request):
        scope = request.scope
        return URL(f"{scope['scheme']}://{dict(scope['headers'])[b'host'].decode()}{scope['path']}")

    monkeypatch.setattr(Request, "url", property(as_starlette_1_0_does))
    with serving(Scripted(), key=KEY) as (url, _):
        assert post(url, headers={"host": host}).status_code == 401
        assert httpx2.get(f"{url}/v1/models", headers={"host": host}, trust_env=False).status_code == 401


def test_beyond_this_machine_a_request_without_the_key_is_refused():
    """Without a key the command does not start there: tests/test_cli.py."""
    with serving(Scripted(), key=KEY, host="0.0.0.0") as (url, _):
        assert url.startswith("http://0.0.0.0:")
        for ask in (post, lambda u: httpx2.get(f"{u}/v1/models", trust_env=False)):
            assert ask(url).status_code == 401
        assert post(url, headers={"authorization": f"Bearer {KEY}"}).status_code == 200


def test_without_a_key_only_this_machines_names_are_answered(scripted):
    url, _ = scripted
    assert post(url, headers={"host": "evil.example"}).status_code == 403
    assert post(url, headers={"host": f"LocalHost:{url.rpartition(':')[2]}"}).status_code == 200


def test_keys_come_from_a_variable_or_a_file(tmp_path):
    file = tmp_path / "key"
    file.write_text(f"{KEY}\n")
    assert server_key(None, None, {}) is None
    assert server_key(None, None, {"SELFCORRECT_API_KEY": KEY}) == KEY
    with pytest.raises(ConfigError, match="K is empty or not set"):
        server_key("K", None, {})  # a key that was asked for by name
    assert server_key("K", None, {"K": KEY}) == server_key("K", file, {}) == KEY
    for bad in ("short", "with a blank in it 1", "schlüssel-0123456789"):
        with pytest.raises(ConfigError, match="key"):
            server_key("K", None, {"K": bad})
    with pytest.raises(ConfigError, match="cannot be read"):
        server_key("K", tmp_path / "none", {})


def test_a_taken_port_is_an_error_in_words():
    with listening_socket("127.0.0.1", 0) as taken:
        taken.listen()
        with pytest.raises(ConfigError, match="give another --port"):
            listening_socket("127.0.0.1", taken.getsockname()[1])


# --- stopping ----------------------------------------------------------------------------------------------------


def test_unfinished_answers_end_well_within_the_grace_time():
    hold = threading.Event()
    with serving(Scripted(hold=hold), limits=Limits(grace_s=30)) as (url, server), ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(post, url)
        until(lambda: in_flight(url) == 1)
        server.stop_from_outside()
        time.sleep(0.1)
        hold.set()
        assert waiting.result().status_code == 200
    with pytest.raises(httpx2.ConnectError):
        post(url)


def test_after_the_grace_time_they_get_a_clear_error():
    with (
        serving(Scripted(hold=threading.Event()), limits=Limits(grace_s=0.2)) as (url, server),
        ThreadPoolExecutor(2) as pool,
    ):
        waiting = [pool.submit(post, url), pool.submit(post, url, {**ASK, "stream": True})]
        until(lambda: in_flight(url) == 2)
        server.stop_from_outside()
        plain, stream = (w.result() for w in waiting)
        assert plain.status_code == 503 and plain.json()["error"]["code"] == "server_stopping"
        assert "server_stopping" in stream.text


@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)])
def test_the_command_serves_and_stops_cleanly(number):
    command = [sys.executable, "-m", "selfcorrect", "serve", "tiny", "engine.device=cpu", "--port", "0", "--name", "t"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        line = process.stdout.readline()
        url = re.search(r"http://[\d.:]+", line)[0]
        got = client(url).chat.completions.create(
            model="t", messages=[{"role": "user", "content": "What is the last digit of 1+2+3+4?"}]
        )
        assert re.fullmatch(r"Answer: \d\nCheck: \d+", got.choices[0].message.content)
        process.send_signal(number)
        out, err = process.communicate(timeout=60)
    assert (process.returncode, out, err) == (0, "stopped\n", "")


# --- in front of another server ----------------------------------------------------------------------------------


def upstream(answer, **verdict_turn):
    """``with upstream(handler) as url``: self-correction in front of a server that ``handler`` plays."""
    sent = []

    def handle(request):
        sent.append(request)
        return answer(json.loads(request.content))

    async def no_wait(_seconds):
        pass

    patience = Patience(retries=1, timeout_s=5)
    endpoint = Endpoint(
        "http://up.example/v1",
        "big",
        api_key=KEY,
        patience=patience,
        transport=httpx2.MockTransport(handle),
        sleep=no_wait,
    )
    return serving(EndpointBackend(endpoint, INSTRUCTION, **verdict_turn)), sent


def says(text, **more):
    usage = {"prompt_tokens": 10, "completion_tokens": 2}
    return httpx2.Response(
        200, json={"choices": [{"message": {"content": text}, "finish_reason": "stop"}], "usage": usage, **more}
    )


def test_attempt_2_is_asked_for_after_attempt_1_and_the_instruction():
    server, sent = upstream(lambda body: says(f"{len(body['messages'])} messages"))
    with server as (url, _):
        got = post(url, {**ASK, "temperature": 0.5, "max_tokens": 9, "seed": 4}).json()
    assert got["choices"][0]["message"]["content"] == "3 messages"
    assert got["usage"] == {"prompt_tokens": 10, "completion_tokens": 4, "total_tokens": 14}
    first, second = (json.loads(r.content) for r in sent)
    assert first == {"model": "big", **ASK, "temperature": 0.5, "max_tokens": 9, "seed": 4}
    turns = [{"role": "assistant", "content": "1 messages"}, {"role": "user", "content": INSTRUCTION}]
    assert second["messages"] == [*ASK["messages"], *turns]
    assert sent[0].headers["authorization"] == f"Bearer {KEY}"


@pytest.mark.parametrize(
    ("status", "ours", "calls"),
    [(500, 502, 2), (429, 502, 2), (404, 502, 1), (401, 502, 1), (400, 400, 1), ("slow", 504, 2), ("gone", 502, 2)],
)
def test_faults_of_the_server_behind_are_told_with_their_reason(status, ours, calls):
    def answer(_body):
        if status == "slow":
            raise httpx2.ReadTimeout("slow")
        if status == "gone":
            raise httpx2.ConnectError("refused")
        return httpx2.Response(status, json={"error": {"message": f"because of {KEY[:4]}"}})

    server, sent = upstream(answer)
    with server as (url, _):
        got = post(url)
        assert in_flight(url) == 0
    message = got.json()["error"]["message"]
    assert (got.status_code, len(sent)) == (ours, calls)
    assert "up.example" not in message
    assert (KEY[:4] in message) == (status in (500, 429, 404, 400))


def refuses(at):
    """A server behind that refuses conversations of this many messages."""

    def answer(body):
        if len(body["messages"]) == at:
            message = {"content": None, "refusal": "I will not."}
            return httpx2.Response(200, json={"choices": [{"message": message, "finish_reason": "stop"}]})
        return says("Verdict: wrong" if body["messages"][-1]["content"] == "Right?" else "text")

    return answer


@pytest.mark.parametrize(("at", "played"), [(1, [""]), (3, ["text", ""])])
def test_after_a_refused_answer_no_attempt_is_told_that_was_not_played(at, played):
    server, sent = upstream(refuses(at))
    with server as (url, _):
        found = post(url, {**ASK, "attempts": 3}).json()
        stream = post(url, {**ASK, "attempts": 3, "stream": True}).text
    assert len(sent) == 2 * len(played) and stream.count('"attempt": {') == len(played)
    assert found["choices"][0]["finish_reason"] == "content_filter"
    assert [a["text"] for a in found["selfcorrect"]["attempts"]] == played
    assert len(found["selfcorrect"]["changes"]) == len(played) - 1


@pytest.mark.parametrize(("at", "played", "verdicts", "text"), [(1, 1, [], None), (3, 1, [None], "text")])
def test_a_refusal_leaves_no_verdict_that_was_not_asked_for(at, played, verdicts, text):
    server, sent = upstream(refuses(at), verdict="Right?", stop=True)
    with server as (url, _):
        found = post(url).json()
    extra = found["selfcorrect"]
    assert len(extra["attempts"]) == played and len(sent) == played + len(verdicts)
    assert [v["says"] for v in extra["verdicts"]] == verdicts and extra["skipped_attempts"] == 1
    assert found["choices"][0]["message"]["content"] == text


@pytest.mark.parametrize("seed", [-1, 2**31 - 1, 2**63 - 1, -(2**63)])
def test_the_server_behind_gets_seeds_of_31_bits(seed):
    server, sent = upstream(lambda _body: says("text"))
    with server as (url, _):
        assert post(url, {**ASK, "seed": seed, "votes": 2, "attempts": 2}).status_code == 200
    seeds = [json.loads(r.content)["seed"] for r in sent]
    assert len(set(seeds)) == 4 and all(0 <= s < 2**31 for s in seeds)


def test_a_slow_server_behind_is_asked_once_and_named(monkeypatch):
    """A second try would end at this server's own limit, whose error says nothing of the other server."""
    sent = []

    def slow(request):
        sent.append(request)
        raise httpx2.ReadTimeout("slow")

    def with_transport(*args, **options):
        return Endpoint(*args, **options, transport=httpx2.MockTransport(slow))

    monkeypatch.setattr("selfcorrect.episodes.endpoint.Endpoint", with_transport)
    options = serve.ServeOptions(backend_url="http://up.example/v1", backend_model="big", timeout=100)
    backend = serve._before_a_server(options, options.backend_url, load_config(None, []))
    with serving(backend, limits=Limits(timeout_s=options.timeout)) as (url, _):
        got = post(url)
    assert (got.status_code, got.json()["error"]["code"], len(sent)) == (504, "upstream_timeout", 1)
    assert "no answer within 95 s" in got.json()["error"]["message"]


def test_a_vote_that_fails_ends_the_others():
    gone_on = []

    class OneFails(Scripted):
        async def answer(self, prompts, keys, *, continued):
            if keys == [(2, 0)]:
                raise ApiError(502, "the model server failed")
            await asyncio.sleep(0.01)
            gone_on.extend(keys)
            return [Reply("text", "end") for _ in keys]

    async def play_on():
        backend = OneFails()
        asked = parse_request(json.dumps({**ASK, "votes": 4, "attempts": 3}).encode(), "m", Bounds())
        with pytest.raises(ApiError, match="the model server failed"):
            await correct(await backend.open(asked), asked, lambda _k, _a: None)
        await asyncio.sleep(0.1)

    asyncio.run(play_on())
    assert gone_on == []


def test_an_answer_that_is_none_is_an_error_of_the_server_behind():
    server, _ = upstream(lambda _body: httpx2.Response(200, text="<html>"))
    with server as (url, _):
        got = post(url)
    assert got.status_code == 502 and "not a chat completion" in got.json()["error"]["message"]


# --- hostile text and the page -----------------------------------------------------------------------------------


def test_hostile_text_comes_back_unchanged():
    with serving(Scripted((HOSTILE, f"{HOSTILE} again"))) as (url, _):
        got = client(url).chat.completions.create(model="m", **ASK)
        chunks = list(client(url).chat.completions.create(model="m", **ASK, stream=True))
    assert got.choices[0].message.content == f"{HOSTILE} again"
    assert got.model_extra["selfcorrect"]["attempts"][0]["text"] == HOSTILE
    assert "".join(c.choices[0].delta.content or "" for c in chunks) == f"{HOSTILE} again"
    assert event({"text": HOSTILE}).count("\n") == 2


def test_half_of_a_pair_breaks_no_answer():
    with serving(Scripted(("a\ud83d", "b\ude00"))) as (url, _):
        got = client(url).chat.completions.create(model="m", **ASK)
    assert [a["text"] for a in got.model_extra["selfcorrect"]["attempts"]] == ["a�", "b�"]


def test_the_page_runs_its_own_script_only_and_shows_text_as_text(scripted):
    url, _ = scripted
    got = httpx2.get(f"{url}/", trust_env=False)
    policy = got.headers["content-security-policy"]
    assert policy == content_security_policy() and policy.startswith("default-src 'none'; script-src 'sha256-")
    assert "unsafe" not in policy and "http" not in policy
    for dangerous in (
        "innerHTML",
        "outerHTML",
        "insertAdjacent",
        "document.write",
        "eval(",
        "Function(",
        "DOMParser",
        "://",
        "style=",
    ):
        assert dangerous not in got.text
    assert not re.search(r"<[a-z]+[^>]*\son[a-z]+=", got.text)
    assert got.text == page_text()


SCRIPT = """
const hostile = JSON.parse(process.argv[1]);
const joined = (parts, kinds) => parts.filter((p) => kinds.includes(p[0])).map((p) => p[1]).join("");
const check = (a, b) => { const d = wordDiff(a, b); return [joined(d, ["same", "gone"]) === a, joined(d, ["same", "new"]) === b]; };
const long = (word) => Array(4000).fill(0).map((_, i) => word + i).join(" ");
console.log(JSON.stringify({
  diff: wordDiff("the sum is 15, today", "the sum is 14, he said"),
  whole: [["", "a b"], ["a b", ""], [long("a"), long("b")], [hostile, hostile + " x"]].map(([a, b]) => check(a, b)).flat(),
  visible: visible(hostile),
}));
"""


def test_there_is_one_diff_and_both_pages_have_it(tmp_path):
    diff = (ROOT / "src/selfcorrect/assets/word_diff.js").read_text()
    made_runs.begin(tmp_path / "run")
    for page in (page_text(), build_report([tmp_path / "run"])):
        assert page.count("function wordDiff") == 1 and diff in page
    assert DIFF_GOES_HERE not in page_text()


def test_the_pages_diff_and_its_spelling_of_control_characters():
    node = next((p for p in ("/usr/bin/node", "/usr/local/bin/node") if os.access(p, os.X_OK)), None)
    if node is None:
        pytest.skip("there is no node to run the page's functions")
    script = re.search(r"<script>(.*?)</script>", page_text(), re.S)[1]
    functions = (
        script[: script.index("const at =")]
        + script[script.index("function visible") : script.index("function element")]
    )
    done = subprocess.run(
        [node, "-e", functions + SCRIPT, "--", json.dumps(HOSTILE)], capture_output=True, text=True, check=True
    )
    got = json.loads(done.stdout)
    assert got["diff"] == [
        ["same", "the sum is "],
        ["gone", "15"],
        ["new", "14"],
        ["same", ", "],
        ["gone", "today"],
        ["new", "he said"],
    ]
    assert got["whole"] == [True] * 8
    assert "[U+202E]" in got["visible"] and "[U+0000]" in got["visible"] and "[U+001B]" in got["visible"]
    assert "<script>" in got["visible"] and not re.search("[\x00\x1b\u202e]", got["visible"])


# --- the model's verdict ---------------------------------------------------------------------------------------------


class Judging:
    """A backend whose model answers the verdict turns too; notes what it was asked."""

    def __init__(self, *answers, stop=True):
        self.answers, self.stop, self.asked = answers, stop, []

    async def open(self, asked):
        return Conversation(self, (), "Again.", verdict="Right?", stop=self.stop)

    def fault(self):
        return None

    async def answer(self, prompts, keys, *, continued):
        self.asked += prompts
        return [Reply(self.answers[len(p)], "end", 10, 4) for p in prompts]

    def extend(self, prompt, reply, request):
        return (*prompt, request)

    async def aclose(self):
        pass


def test_attempt_2_is_skipped_where_the_model_calls_attempt_1_correct():
    backend = Judging("first", "Verdict: correct", "second")
    with serving(backend) as (url, _):
        found = post(url).json()
    assert backend.asked == [(), ("Right?",)]
    assert found["choices"][0]["message"]["content"] == "first"
    extra = found["selfcorrect"]
    assert [a["text"] for a in extra["attempts"]] == ["first"] and extra["changes"] == []
    (verdict,) = extra["verdicts"]
    assert (verdict["attempt"], verdict["says"], verdict["text"]) == (1, "correct", "Verdict: correct")
    assert verdict["completion_tokens"] == 4 and verdict["seconds"] >= 0
    assert extra["skipped_attempts"] == 1
    assert found["usage"]["completion_tokens"] == 8  # attempt 1 and the verdict
    assert extra["seconds"] >= verdict["seconds"]


@pytest.mark.parametrize(("says", "stop"), [("Verdict: wrong", True), ("Verdict: correct", False)])
def test_attempt_2_is_played_where_the_model_calls_it_wrong_or_always(says, stop):
    backend = Judging("first", says, "second", stop=stop)
    with serving(backend) as (url, _):
        found = post(url).json()
        alone = post(url, {**ASK, "attempts": 1}).json()
    assert found["choices"][0]["message"]["content"] == "second"
    extra = found["selfcorrect"]
    assert [a["text"] for a in extra["attempts"]] == ["first", "second"]
    assert extra["skipped_attempts"] == 0 and len(extra["changes"]) == 1
    assert found["usage"]["completion_tokens"] == 12
    assert alone["selfcorrect"]["verdicts"] == [] and alone["usage"]["completion_tokens"] == 4


def test_votes_are_taken_among_final_answers_not_among_verdicts():
    backend = Judging("Answer: 3", "Verdict: correct", "Answer: 4")
    with serving(backend) as (url, _):
        found = post(url, {**ASK, "votes": 3}).json()
    assert found["selfcorrect"]["votes"] == [{"answer": "3", "count": 3}]
    assert found["usage"]["completion_tokens"] == 3 * 8


def test_a_stream_tells_the_verdict_as_it_comes():
    with serving(Judging("first", "Verdict: wrong", "second")) as (url, _):
        text = post(url, {**ASK, "stream": True}).text
    parts = [json.loads(line[6:]) for line in text.splitlines() if line.startswith("data: {")]
    extras = [p["selfcorrect"] for p in parts if p.get("selfcorrect")]
    told = [next(iter(extra.items())) for extra in extras if extra.keys() <= {"attempt", "verdict"}]
    told = [(what, fields["attempt"]) for what, fields in told if fields]
    assert told == [("attempt", 1), ("verdict", 1), ("attempt", 2)]


def test_an_engine_is_asked_for_the_verdict_and_its_context_counts():
    engine = tiny.engine()
    with serving(EngineBackend(Batcher(engine), INSTRUCTION, 400, "Right?", stop=True), bounds=SMALL) as (url, _):
        found = post(url).json()["selfcorrect"]
    assert found["verdicts"][0]["says"] is None and found["skipped_attempts"] == 1  # no verdict asks for no revision
    for context, status in ((100, 200), (30, 400)):
        backend = EngineBackend(Batcher(engine), INSTRUCTION, context, "Right?")
        with serving(backend, bounds=SMALL) as (url, _):
            answer = post(url)
        assert answer.status_code == status
    assert "2 attempts and 1 verdicts" in answer.json()["error"]["message"]
