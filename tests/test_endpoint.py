"""Measuring behind an endpoint: the same verdicts as locally, patience with failures, continuing after a stop."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from contextlib import contextmanager
from email.utils import formatdate
from pathlib import Path

import httpx2
import pytest

from selfcorrect import cli as package
from selfcorrect.cli.serve import _engine
from selfcorrect.config import load_config
from selfcorrect.episodes.endpoint import Endpoint, Patience, api_key_from, checked_url
from selfcorrect.errors import ConfigError, EndpointError, RunError
from selfcorrect.measuring.endpoint import EndpointPlayer, Journal, settings_of, was_refused
from selfcorrect.measuring.evaluate import FEEDBACK, Evaluator, held_out
from selfcorrect.measuring.metrics import summarise
from selfcorrect.serve.engine_backend import Batcher, EngineBackend
from selfcorrect.serve.protocol import Bounds
from selfcorrect.tasks import TASKS, make_task
from selfcorrect.tasks.arithmetic import solution
from selfcorrect.types import Verdict
from served import serving

MESSAGES = [{"role": "user", "content": "q"}]
URL = "http://up.example/v1"


def says(text="a", finish="stop", status=200, **headers):
    return httpx2.Response(
        status, json={"choices": [{"message": {"content": text}, "finish_reason": finish}]}, headers=headers
    )


class Server:
    """An endpoint that a function plays; counts requests, and waits in no time."""

    def __init__(self, answer, **patience):
        self.sent, self.waits, self.together, self.most = [], [], 0, 0
        self._answer = answer
        self.endpoint = Endpoint(
            URL, "big", patience=Patience(**patience), transport=httpx2.MockTransport(self._handle), sleep=self._sleep
        )

    async def _sleep(self, seconds):
        self.waits.append(seconds)
        await asyncio.sleep(0)

    async def _handle(self, request):
        body = json.loads(request.content)
        self.sent.append(body)
        self.together += 1
        self.most = max(self.most, self.together)
        await asyncio.sleep(0)
        self.together -= 1
        return self._answer(body)

    def ask(self, n=1, **more):
        async def all_at_once():
            async with self.endpoint as e:
                return await asyncio.gather(
                    *(e.complete(MESSAGES, max_tokens=5, temperature=0.0, **more) for _ in range(n))
                )

        return asyncio.run(all_at_once())


def in_turn(*answers):
    left = list(answers)
    return lambda _body: left.pop(0)() if callable(left[0]) else left.pop(0)


def raising(error):
    def handle():
        raise error

    return handle


# --- one request -------------------------------------------------------------------------------------------------


def test_an_answer_has_its_text_stop_and_counts():
    usage = {"prompt_tokens": 3, "completion_tokens": 2}
    data = {"choices": [{"message": {"content": "a\ud800"}, "finish_reason": "length"}], "usage": usage}
    (reply,) = Server(lambda _: httpx2.Response(200, content=json.dumps(data))).ask()
    assert (reply.text, reply.stop, reply.prompt_tokens, reply.completion_tokens) == ("a�", "length", 3, 2)
    (empty,) = Server(lambda _: says(None)).ask()
    assert (empty.text, empty.stop, empty.completion_tokens) == ("", "end", None)


def test_what_may_pass_is_sent_again_and_counted():
    server = Server(
        in_turn(
            says(status=503),
            says(status=408),
            raising(httpx2.ConnectError("x")),
            raising(httpx2.ReadTimeout("x")),
            says("b"),
        )
    )
    (reply,) = server.ask()
    assert reply.text == "b" and len(server.sent) == 5
    counts = server.endpoint.counts
    assert (counts.sent, counts.retried) == (5, 4)
    assert counts.reasons == {"HTTP 503": 1, "HTTP 408": 1, "no connection": 1, "no answer in time": 1}
    for retry, wait in enumerate(server.waits):  # 1, 2, 4, 8 s, each shortened by up to a half
        assert 2**retry / 2 <= wait <= 2**retry
    assert len(set(server.waits)) == 4


def test_retry_after_is_honoured_as_seconds_and_as_a_date():
    later = formatdate(time.time() + 90, usegmt=True)
    server = Server(
        in_turn(says(status=429, **{"retry-after": "45"}), says(status=503, **{"retry-after": later}), says())
    )
    server.ask()
    assert server.waits[0] == 45 and 80 < server.waits[1] <= 90


def test_a_server_that_asks_for_an_hour_is_given_up_on():
    server = Server(lambda _: says(status=429, **{"retry-after": "3600"}))
    with pytest.raises(EndpointError, match="HTTP 429"):
        server.ask()
    assert len(server.sent) == 1


@pytest.mark.parametrize("status", [400, 401, 403, 404, 413, 422, 302])
def test_what_will_not_pass_is_not_sent_again(status):
    server = Server(lambda _: httpx2.Response(status, json={"error": {"message": "no\x1b[31m\nway"}}))
    with pytest.raises(EndpointError, match=rf"HTTP {status}: no.\[31m way") as error:
        server.ask()
    assert (len(server.sent), error.value.status) == (1, status)


def test_retries_come_to_an_end():
    server = Server(lambda _: says(status=500), retries=3)
    with pytest.raises(EndpointError, match="HTTP 500"):
        server.ask()
    assert (len(server.sent), server.endpoint.counts.retried) == (4, 3)


def test_requests_in_flight_are_bounded_and_spaced():
    server = Server(lambda _: says(), concurrency=3)
    server.ask(12)
    assert server.most == 3
    spaced = Server(lambda _: says(), requests_per_minute=30)
    spaced.ask(4)
    assert [round(w) for w in spaced.waits] == [0, 2, 4, 6]


def test_models_that_want_the_newer_name_of_the_cap_get_it():
    def answer(body):
        if "max_tokens" in body:
            return httpx2.Response(400, json={"error": {"message": "Use 'max_completion_tokens' instead."}})
        return says()

    server = Server(answer, concurrency=1)
    server.ask(2)
    caps = [body.keys() & {"max_tokens", "max_completion_tokens"} for body in server.sent]
    assert caps == [{"max_tokens"}, {"max_completion_tokens"}, {"max_completion_tokens"}]


@pytest.mark.parametrize(
    "content", [b"<html>", b"{}", b'{"choices": []}', b'{"choices": [{"message": {"content": 3}}]}', b"[" * 9_999]
)
def test_an_answer_of_another_form_is_an_error_in_words(content):
    with pytest.raises(EndpointError, match="not a chat completion"):
        Server(lambda _: httpx2.Response(200, content=content)).ask()


def test_addresses_and_keys():
    assert str(checked_url("https://a.example/v1")) == "https://a.example/v1"
    for bad in ("a.example/v1", "ftp://a.example", "http://", "http://a.example/v1?x=1", "http://[::1"):
        with pytest.raises(ConfigError, match="not the address of an endpoint"):
            checked_url(bad)
    with pytest.raises(ConfigError, match="list of processes") as error:
        checked_url("http://me:secret@a.example/v1")
    assert "secret" not in str(error.value)
    assert api_key_from("K", {"K": " k \n"}) == "k" and api_key_from(None, {}) is None
    for value in ("", "k\nl", "schlüssel"):
        with pytest.raises(ConfigError, match="variable K"):
            api_key_from("K", {"K": value})


# --- whole measurements ------------------------------------------------------------------------------------------

SETTINGS = ("model=big", "task=arithmetic", "eval.problems=12", "play.max_new_tokens=40")


def pupil(body):
    """Wrong at once, right after the instruction, except where the first message says 9."""
    asked = body["messages"][0]["content"]
    digits = [int(d) for d in asked.split(" of ")[1].rstrip("?").split("+")]
    wrong = len(body["messages"]) == 1 or "9" in asked
    return says(solution(digits, 1 if wrong else 0))


def measure(path, answer, *more, stop_after=None, **patience):
    config = load_config(None, [*SETTINGS, *more])
    task = make_task(config.task)
    problems = held_out(task, config.eval.problems)
    done = []

    def counted(body):
        done.append(body)
        if stop_after is not None and len(done) > stop_after:
            raise KeyboardInterrupt
        return answer(body)

    server = Server(counted, **patience)
    with Journal.opened(path, settings_of(server.endpoint, task, problems, config, {})) as journal:
        player = EndpointPlayer(server.endpoint, task, journal)
        results = asyncio.run(Evaluator.of(player, task, config).run(problems))
    return results, done


def summaries(results):
    return {r.name: (r.settings, r.summary.to_json()) for r in results}


def test_stopped_and_continued_is_the_same_as_uninterrupted(tmp_path):
    whole, n_whole = measure(tmp_path / "whole.jsonl", pupil)
    assert [r.name for r in whole] == ["plain", "plain-swapped", "plain-given-wrong"]
    assert whole[0].summary.accuracy(1).value == 0 < whole[0].summary.accuracy(2).value < 1
    path, sent = tmp_path / "parts.jsonl", 0
    for stop_after in (5, 17, 20):
        with pytest.raises(KeyboardInterrupt):
            measure(path, pupil, stop_after=stop_after, concurrency=2)
        sent += stop_after
    with path.open("a") as file:
        file.write('{"evaluation": "plain", "prob')  # what a killed process leaves
    parts, n_rest = measure(path, pupil)
    assert summaries(parts) == summaries(whole)
    assert len(n_rest) < len(n_whole)
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    keys = [(r["evaluation"], r["problem"], r["sample"]) for r in rows[1:]]
    assert len(keys) == len(set(keys))
    again, n_none = measure(path, pupil)
    assert summaries(again) == summaries(whole) and n_none == []


@pytest.mark.parametrize(
    "changed", ["eval.attempts=3", "play.max_new_tokens=41", "task.instruction=Hm.", "seed=1", "eval.problems=11"]
)
def test_other_settings_do_not_go_into_the_same_file(tmp_path, changed):
    path = tmp_path / "e.jsonl"
    measure(path, pupil, "eval.controls=false")
    before = path.read_bytes()
    with pytest.raises(RunError, match="was begun with other settings"):
        measure(path, pupil, "eval.controls=false", changed)
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    "content",
    [
        "precious",
        '{"a": 1}\n',
        '{"settings": {}}\nprecious\n',
        '{"settings": null}\n',
        '{"settings": 3}\n',
        "\x00\n",
        b"\xff\n",
    ],
)
def test_a_file_of_something_else_is_left_alone(tmp_path, content):
    path = tmp_path / "e.jsonl"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    before = path.read_bytes()
    with pytest.raises(RunError, match=r"not overwritten|other settings"):
        measure(path, pupil)
    assert path.read_bytes() == before


@pytest.mark.parametrize("torn", ['{"set', '{"settings": {"base_url": "htt'])
def test_a_journal_killed_in_its_first_line_begins_again(tmp_path, torn):
    path = tmp_path / "e.jsonl"
    path.write_text(torn)
    measure(path, pupil, "eval.controls=false")
    first, *rest = path.read_text().splitlines()
    assert "base_url" in json.loads(first)["settings"] and len(rest) == 12


@pytest.mark.parametrize("place", [0, 2])
def test_a_journal_whose_first_line_alone_must_hold_settings(tmp_path, place):
    path = tmp_path / "e.jsonl"
    measure(path, pupil, "eval.controls=false")
    first, *rest = path.read_text().splitlines()
    before = "\n".join([*rest[:place], first, *rest[place:]][0 if place else 1 :]) + "\n"
    path.write_text(before)
    with pytest.raises(RunError, match="holds something else; it is not overwritten"):
        measure(path, pupil, "eval.controls=false")
    assert path.read_text() == before


def test_a_fault_keeps_what_was_finished(tmp_path):
    path, asked = tmp_path / "e.jsonl", []

    def breaking(body):
        asked.append(body)
        return pupil(body) if len(asked) < 8 else says(status=403)

    with pytest.raises(EndpointError, match="HTTP 403"):
        measure(path, breaking, "eval.controls=false", concurrency=1)
    finished = len(path.read_text().splitlines()) - 1
    assert finished == 3  # seven answers, two to an episode
    _, rest = measure(path, pupil, "eval.controls=false")
    assert len(rest) == 2 * (12 - finished)


def refusing(*numbers, attempt=1):
    """Refuses an attempt at the problems that were first seen as these numbers, from 1."""
    seen = []

    def answer(body):
        question = body["messages"][0]["content"]
        if question not in seen:
            seen.append(question)
        if seen.index(question) + 1 in numbers and len(body["messages"]) == 2 * attempt - 1:
            return httpx2.Response(400, json={"error": {"message": "the context is too long"}})
        return pupil(body)

    return answer


@pytest.mark.parametrize("attempt", [1, 2])
def test_a_refused_problem_is_an_error_and_the_others_are_measured(tmp_path, attempt):
    path = tmp_path / "e.jsonl"
    plain, swapped, given = measure(path, refusing(3, attempt=attempt), concurrency=1)[0]
    summary = plain.summary
    (refused,) = (e for e in plain.episodes if was_refused(e))
    errors = [a.grade.verdict is Verdict.ERROR for a in refused.attempts]
    assert errors == [attempt == 1, True] and "the context is too long" in refused.attempts[1].grade.detail
    assert (summary.n_problems, summary.n_verifier_errors) == (12, 1)
    assert [summary.accuracy(k).n for k in (1, 2)] == [12 - (attempt == 1), 11]
    # no text: in no number about texts, and not among those with two empty ones
    assert summary.revisions[0].edit_ratio.n == summary.revisions[0].copied.n == 11
    assert summary.revisions[0].n_both_empty == 0
    assert summary.attempts[1].truncated.n == 11
    whole = measure(tmp_path / "whole.jsonl", pupil, concurrency=1)[0][0]
    others = [e for e in whole.episodes if e.problem.id != refused.problem.id]
    assert summary.accuracy(2) == summarise(others).accuracy(2)
    assert summary.revisions[0].edit_ratio.value == summarise(others).revisions[0].edit_ratio.value
    if attempt == 1:  # it has no first attempt to swap, and is asked for no wrong one again and again
        assert refused.problem.id not in {e.problem.id for e in swapped.episodes + given.episodes}
        rows = [json.loads(line) for line in path.read_text().splitlines()[1:]]
        assert sum(r["evaluation"] == "wrong-firsts" and r["problem"] == refused.problem.id for r in rows) == 1
    again, sent = measure(path, pupil)  # mended meanwhile: only what was refused is asked for
    assert [r.summary.n_verifier_errors for r in again] == [0, 0, 0]
    assert sum(map(was_refused, again[0].episodes)) == 0 and len(sent) < 20


def test_a_measurement_of_which_much_is_refused_stops(tmp_path):
    only = ("eval.controls=false",)
    with pytest.raises(EndpointError, match=r"refused 10 episodes without answering any.*correct the request"):
        measure(tmp_path / "all.jsonl", refusing(*range(1, 99)), *only, "eval.problems=300")
    with pytest.raises(EndpointError, match=r"too long.*refused 2 episodes of 12"):
        measure(tmp_path / "two.jsonl", refusing(5, 7), *only, concurrency=1)
    results, _ = measure(tmp_path / "two.jsonl", refusing(2), *only, concurrency=1)  # one of what is left: it goes on
    assert results[0].summary.n_verifier_errors == 1
    with pytest.raises(EndpointError, match="refused 1 episodes without"):
        measure(tmp_path / "one.jsonl", refusing(1), *only, "eval.problems=1")


class Repairs:
    """Sums with a stored wrong answer each."""

    name, instruction = "repairs", "Again."

    def __init__(self):
        self._task = make_task(load_config(None, SETTINGS).task)
        self.problems, self.first_messages = self._task.problems, self._task.first_messages
        self.reference_answer, self.grade = self._task.reference_answer, self._task.grade

    def first_answers(self, problem):
        return ["Answer: x", "Answer: y"]


def test_a_task_that_gives_first_attempts_is_asked_for_the_second_ones(tmp_path, monkeypatch):
    monkeypatch.setitem(TASKS, "repairs", lambda _config: Repairs())
    more = ("task=repairs", "eval.samples=3", "eval.temperature=1")
    results, sent = measure(tmp_path / "e.jsonl", pupil, *more)
    assert [r.name for r in results] == ["plain", "plain-swapped"]
    assert len(sent) == 12 * 3 + 12 and all(len(body["messages"]) == 3 for body in sent)
    firsts = {(e.sample, e.attempts[0].text, e.attempts[0].source) for e in results[0].episodes}
    assert firsts == {(0, "Answer: x", "given"), (1, "Answer: y", "given"), (2, "Answer: x", "given")}
    monkeypatch.setattr(Repairs, "first_answers", lambda _self, _problem: ["Answer: z"])
    with pytest.raises(RunError, match="problems_sha256 was"):
        measure(tmp_path / "e.jsonl", pupil, *more)


def test_a_cut_answer_is_truncated_and_not_wrong(tmp_path):
    results, _ = measure(tmp_path / "e.jsonl", lambda _: says("Answer", finish="length"), "eval.controls=false")
    (attempt, _) = results[0].summary.attempts
    assert attempt.verdict_shares[Verdict.TRUNCATED] == 1 and attempt.truncated.value == 1


def test_sampled_attempts_carry_seeds_of_their_own(tmp_path):
    _, sent = measure(tmp_path / "e.jsonl", pupil, "eval.temperature=0.5", "eval.samples=2", "eval.controls=false")
    assert len({body["seed"] for body in sent}) == len(sent) == 12 * 2 * 2
    _, greedy = measure(tmp_path / "g.jsonl", pupil, "eval.controls=false")
    assert all("seed" not in body for body in greedy)


def reviewer(body):
    """Reviews an answer where that is asked for; corrects it where it has read its own review."""
    asked = body["messages"]
    if asked[-1]["content"] == FEEDBACK:
        return says("The sum is wrong.")
    digits = [int(d) for d in asked[0]["content"].split(" of ")[1].rstrip("?").split("+")]
    reviewed = any(m["content"] == "The sum is wrong." for m in asked)
    return says(solution(digits, 0 if reviewed else 1))


def test_self_refine_asks_for_feedback_and_shows_it_to_the_next_attempt(tmp_path):
    path, only = tmp_path / "e.jsonl", ("method=self_refine", "eval.attempts=3", "eval.controls=false")
    (plain,), sent = measure(path, reviewer, *only)
    assert len(sent) == 12 * 5  # three attempts and the two feedback turns between them
    longest = max(sent, key=lambda body: len(body["messages"]))["messages"]
    assert [m["role"] for m in longest] == ["user", "assistant"] * 4 + ["user"]
    assert [m["content"] for m in longest[2::4]] == [FEEDBACK] * 2
    assert [plain.summary.accuracy(k).value for k in (1, 2, 3)] == [0, 1, 1]
    assert all([a.grade is None for a in e.attempts] == [False, True, False, True, False] for e in plain.episodes)
    assert plain.settings["feedback"] == FEEDBACK
    again, none = measure(path, reviewer, *only)
    assert summaries(again) == summaries([plain]) and none == []
    with pytest.raises(RunError, match="feedback was"):
        measure(path, reviewer, *only[1:])


def test_self_refine_has_its_controls_behind_an_endpoint(tmp_path):
    results, sent = measure(tmp_path / "e.jsonl", reviewer, "method=self_refine")
    assert [r.name for r in results] == ["plain", "plain-swapped", "plain-given-wrong"]
    # plain: 3 turns; the search for a wrong answer: 1; each control: the feedback and the second attempt
    assert len(sent) == 12 * (3 + 1 + 2 + 2)
    for control in results[1:]:
        assert [(a.source, a.grade is None) for a in control.episodes[0].attempts] == [
            ("given", False),
            ("sampled", True),
            ("sampled", False),
        ]
        assert control.summary.accuracy(2).value == 1


@pytest.mark.parametrize("turn", [1, 2])
def test_a_refused_turn_of_self_refine_ends_its_episode(tmp_path, turn):
    def answer(body):
        refused = len(body["messages"]) == 2 * turn + 1 and len(refusals) < 1
        if refused:
            refusals.append(body)
        return says("too long", status=400) if refused else reviewer(body)

    refusals = []
    only = ("method=self_refine", "eval.controls=false")
    (plain,), sent = measure(tmp_path / "e.jsonl", answer, *only, concurrency=1)
    (episode,) = filter(was_refused, plain.episodes)
    assert len(sent) == 12 * 3 - (2 - turn)
    assert [a.stop for a in episode.attempts] == ["end"] * turn + ["refused"] * (3 - turn)
    assert episode.attempts[1].grade is None and episode.attempts[2].grade.verdict is Verdict.ERROR
    assert (plain.summary.n_problems, plain.summary.n_verifier_errors) == (12, 1)


def test_controls_give_another_problems_attempt_and_a_wrong_one_of_its_own(tmp_path):
    plain, swapped, given = measure(tmp_path / "e.jsonl", pupil)[0]
    own = {e.problem.id: e.attempts[0].text for e in plain.episodes}
    for episode in swapped.episodes:
        first = episode.attempts[0]
        assert first.source == "given" and first.text in {t for i, t in own.items() if i != episode.problem.id}
    assert given.episodes and all(e.attempts[0].wrong and e.attempts[0].source == "given" for e in given.episodes)
    assert {e.problem.id for e in given.episodes} <= own.keys()


# --- the command -------------------------------------------------------------------------------------------------


@pytest.fixture
def cli(monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)

    def call(*arguments):
        capsys.readouterr()
        monkeypatch.setattr(sys, "argv", ["selfcorrect", *map(str, arguments)])
        with pytest.raises(SystemExit) as stop:
            package.main()
        out, err = capsys.readouterr()
        return stop.value.code or 0, out, err

    return call


@contextmanager
def tiny_server():
    engine, instruction, context = _engine("tiny", load_config(None, ["engine.device=cpu"]), 512)
    with serving(EngineBackend(Batcher(engine), instruction, context), model="tiny", bounds=Bounds(max_tokens=16)) as (
        url,
        _,
    ):
        yield f"{url}/v1"


@pytest.mark.parametrize("method", [(), ("method=self_refine",)], ids=["plain", "self_refine"])
def test_our_own_server_gives_the_verdicts_of_the_local_measurement(cli, method):
    settings = ["task=arithmetic", "limit=24", *method, "engine.device=cpu"]
    code, out, _ = cli("eval", "tiny", *settings, "--json", "--out", "local.jsonl")
    assert code == 0
    local = json.loads(out)
    with tiny_server() as url:
        code, out, _ = cli(
            "eval",
            "--base-url",
            url,
            "--model",
            "tiny",
            *settings[:-1],
            "--body",
            '{"attempts": 1}',
            "--json",
            "--out",
            "e.jsonl",
        )
    assert code == 0
    served = json.loads(out)
    for name in ("plain", "plain-swapped"):
        assert served[name]["settings"] == local[name]["settings"]
        # token counts are the one thing that an endpoint's text cannot give
        mine, theirs = ([{**a, "tokens": None} for a in x[name]["summary"]["attempts"]] for x in (served, local))
        assert mine == theirs
        assert served[name]["summary"]["revisions"] == local[name]["summary"]["revisions"]
    assert served["requests"]["retried"] == 0

    def verdicts(path):
        rows = [json.loads(line) for line in Path(path).read_text().splitlines()]
        plain = [r for r in rows if r.get("evaluation") == "plain"]
        return {r["problem"]: [(a["text"], a["verdict"]) for a in r["attempts"]] for r in plain}

    assert verdicts("e.jsonl") == verdicts("local.jsonl") and len(verdicts("e.jsonl")) == 24


BAD = {
    "no model": (["--base-url", URL, "task=arithmetic"], "needs --model NAME"),
    "a local model too": (["tiny", "--base-url", URL, "--model", "m"], "'tiny' would be ignored"),
    "an engine setting": (["--base-url", URL, "--model", "m", "engine.device=cpu"], "engine.device"),
    "a method that trains": (["--base-url", URL, "--model", "m", "method=star"], "method=star would be ignored"),
    "a setting of a method": (["--base-url", URL, "--model", "m", "method.alpha=3"], "method.alpha"),
    "a training setting": (["--base-url", URL, "--model", "m", "train.steps=3"], "train.steps"),
    "a body that is none": (["--base-url", URL, "--model", "m", "--body", "x"], "not a JSON object"),
    "a body of ours": (["--base-url", URL, "--model", "m", "--body", '{"seed": 1}'], "sets seed"),
    "no key": (["--base-url", URL, "--model", "m", "--api-key-env", "NO_SUCH_VARIABLE"], "NO_SUCH_VARIABLE"),
    "endpoint options alone": (["tiny", "--rate", "5"], "no endpoint is named; add --base-url"),
    "nothing": ([], "no model is named"),
    "nobody there": (
        ["--base-url", "http://127.0.0.1:9/v1", "--model", "m", "task=arithmetic", "limit=2", "--retries", "0"],
        "cannot be reached",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_one_paragraph(cli, name):
    arguments, expected = BAD[name]
    code, out, err = cli("eval", *arguments)
    assert code in (2, 3) and out == "" and "Traceback" not in err
    assert err.startswith("selfcorrect: ") and expected in err and err.count("\n") == 1
