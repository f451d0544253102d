"""What endpoints and gateways send under HTTP 200, and what clients send to our server: read rightly or told in words."""

from __future__ import annotations

import json

import httpx2
import openai
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

import test_endpoint as ends
import test_serve
from selfcorrect.engines.chat import ChatFormat
from selfcorrect.episodes.completion import NoCompletion, read_completion
from selfcorrect.episodes.endpoint import _retry_after_s
from selfcorrect.errors import EndpointError, ModelError
from selfcorrect.measuring.endpoint import was_refused
from selfcorrect.serve.engine_backend import Batcher, EngineBackend, _begin
from selfcorrect.serve.protocol import ApiError, Bounds, parse_request
from selfcorrect.types import Verdict
from served import ASK, post, serving
from test_thinking import ThinksAloud, engine
from tokenizers_in_process import gemma


def body(message, finish="stop", **more):
    return json.dumps({"choices": [{"message": message, "finish_reason": finish}], **more}).encode()


TEXT = {"type": "text", "text": "4"}


@pytest.mark.parametrize(
    ("message", "finish", "thinking", "text", "finished"),
    [
        ({"content": "4"}, "stop", "", "4", True),
        ({"content": None}, "stop", "", "", True),
        ({"content": [TEXT, TEXT]}, "stop", "", "44", True),
        ({"content": [{"type": "thinking", "thinking": "hm"}, TEXT]}, "stop", "hm", "4", True),
        (
            {"content": [{"type": "thinking", "thinking": [{"type": "text", "text": "hm"}]}, TEXT]},
            "stop",
            "hm",
            "4",
            True,
        ),
        ({"content": ["4", {"type": "image_url"}]}, "stop", "", "4", True),
        ({"content": "4", "reasoning_content": "hm"}, "stop", "hm", "4", True),
        ({"content": "4", "reasoning": "hm"}, "stop", "hm", "4", True),
        ({"content": "<think>hm</think>\n\n4"}, "stop", "hm", "4", True),
        ({"content": "hm</think>4"}, "stop", "hm", "4", True),
        ({"content": "<think>hm"}, "length", "hm", "", False),
        ({"content": None, "reasoning_content": "hm"}, "length", "hm", "", False),
        ({"content": "", "refusal": None, "tool_calls": [{"id": "x"}]}, "tool_calls", "", "", True),
        ({"content": [{"type": "tool_use", "id": "x"}]}, "tool_calls", "", "", True),
        ({"content": TEXT}, "stop", "", "4", True),
        ({"content": [[TEXT], None]}, "stop", "", "4", True),
        ({"content": [{"type": "text", "text": {"value": "4", "annotations": []}}]}, "stop", "", "4", True),
        ({"content": [{"type": "text", "content": "4"}]}, "stop", "", "4", True),
        ({"content": [{"type": "text", "text": None}]}, "stop", "", "", True),
        ({"content": [{"type": "TEXT", "text": "4"}]}, "stop", "", "4", True),
        ({"content": [{"type": "input_text", "text": "4"}, {"type": "reference", "ids": [1]}]}, "stop", "", "4", True),
        (
            {"content": [{"type": "reasoning", "summary": [{"type": "summary_text", "text": "hm"}]}, TEXT]},
            "stop",
            "hm",
            "4",
            True,
        ),
        (
            {"content": [{"type": "message", "content": [{"type": "thought", "text": "hm"}, TEXT]}]},
            "stop",
            "hm",
            "4",
            True,
        ),
        ({"content": [{"text": "hm 5", "thought": True}, {"text": "4"}]}, "stop", "hm 5", "4", True),
        ({"content": [{"type": "redacted_thinking", "data": "x"}, TEXT]}, "stop", "", "4", True),
        ({"content": "4"}, None, "", "4", True),
        ({"content": "4"}, {"type": "stop", "matched": 2}, "", "4", True),
        ({"content": "4"}, "FinishReason.STOP", "", "4", True),
        ({"content": "4"}, "end_of_text", "", "4", True),
    ],
)
def test_a_message_in_any_form(message, finish, thinking, text, finished):
    reply = read_completion(body(message, finish))
    assert (reply.thinking, reply.text, reply.finished) == (thinking, text, finished)
    assert reply.stop == ("length" if finish == "length" else "end")


@pytest.mark.parametrize(
    "finish",
    [
        *("length", "max_tokens", "MAX_TOKENS", "model_length", "model_context_window_exceeded"),
        *("FinishReason.MAX_TOKENS", "FINISH_REASON_MAX_TOKENS", {"type": "length", "length": 5}),
    ],
)
def test_every_name_of_the_cap_is_the_cap(finish):
    assert read_completion(body({"content": "4"}, finish)).stop == "length"


def test_the_cap_of_the_server_behind_a_gateway_is_the_cap():
    choice = {"message": {"content": "4"}, "finish_reason": "stop", "native_finish_reason": "MAX_TOKENS"}
    assert read_completion(json.dumps({"choices": [choice]}).encode()).stop == "length"


def test_how_much_was_thinking():
    usage = {"prompt_tokens": 3, "completion_tokens": 9, "completion_tokens_details": {"reasoning_tokens": 7}}
    reply = read_completion(body({"content": "4", "reasoning_content": "hm"}, usage=usage))
    assert (reply.prompt_tokens, reply.completion_tokens, reply.thinking_tokens) == (3, 9, 7)


FAILED = {
    "an error in the body": (b'{"error": {"message": "model is loading", "code": 503}}', "model is loading"),
    "an error as text": (b'{"error": "overloaded"}', "overloaded"),
    "choices null": (b'{"choices": null, "error": {"message": "upstream gone"}}', "upstream gone"),
    "choices empty": (b'{"choices": []}', "choices"),
    "no object": (b"[1]", "1"),
    "cut": (body({"content": "4"})[:-9], "content"),
    "a gateway's page": (b"<html><h1>502 Bad Gateway</h1></html>", "502 Bad Gateway"),
    "nothing": (b"", "no reason"),
    "a generation that failed": (body({"content": "half"}, "error"), "half"),
    "one that failed with words": (
        b'{"choices": [{"message": {"content": ""}, "finish_reason": "error", "error": {"message": "GPU lost"}}]}',
        "GPU lost",
    ),
    "aborted": (body({"content": "half"}, "abort"), "half"),
    "no message": (b'{"choices": [{"finish_reason": "stop"}]}', "finish_reason"),
    "a choice that is none": (b'{"choices": ["a"]}', "a"),
    "content that is none": (body({"content": 3}), "3"),
    "too deep": (b"[" * 9_999, "["),
    "an error beside a whole answer": (
        body({"content": "4"}, error={"message": "died"}),
        "error beside an answer: died",
    ),
}

ALSO_FAILED = {
    "a list with an error": (b'[{"error": {"code": 503, "message": "overloaded"}}]', "overloaded", 503),
    "an object that is an error": (b'{"object": "error", "message": "engine gone", "code": 500}', "engine gone", 500),
    "an error in the choice": (
        b'{"choices": [{"message": {"content": "4"}, "finish_reason": "stop", "error": {"code": 502}}]}',
        "502",
        502,
    ),
    "an error in the message": (body({"content": "", "error": "lost"}), "lost", None),
    "an abort as an object": (body({"content": "4"}, {"type": "abort", "message": "queue full"}), "queue full", None),
    "no resource": (body({"content": "half"}, "insufficient_system_resource"), "insufficient", None),
    "a state beside an empty answer": (
        body({"content": ""}, base_resp={"status_code": 1002, "status_msg": "rate"}),
        "rate",
        None,
    ),
    "the reason of the server behind": (
        b'{"choices": [{"message": {"content": "4"}, "finish_reason": "stop", "native_finish_reason": "error"}]}',
        "finish_reason error",
        None,
    ),
    "nothing at all, and no reason": (body({"content": ""}, None), "no finish_reason", None),
    "parts of an unknown type": (body({"content": [{"type": "answer", "text": "4"}]}), "no text in the parts", None),
    "a text part without text": (body({"content": [{"type": "text", "data": "4"}]}), "no message", None),
    "a stream": (b'data: {"choices": [{"delta": {"content": "4"}}]}\n\ndata: [DONE]\n\n', "no JSON", None),
    "two bodies": (2 * body({"content": "4"}), "no JSON", None),
    "half a character": (body({"content": "X"}).replace(b"X", b"\xe4\xbd"), "no JSON", None),
}


@pytest.mark.parametrize("name", ALSO_FAILED)
def test_what_is_no_answer_is_told_in_the_servers_words(name):
    content, words, status = ALSO_FAILED[name]
    with pytest.raises(NoCompletion, match=words) as error:
        read_completion(content)
    assert error.value.status == status


@pytest.mark.parametrize("state", [None, "", {}, {"code": 0, "message": ""}])
def test_an_empty_error_field_beside_an_answer_is_none(state):
    assert (
        read_completion(body({"content": "4", "error": state}, error=state, base_resp={"status_code": 0})).text == "4"
    )


@pytest.mark.parametrize("name", FAILED)
def test_what_is_no_completion_is_asked_for_again_then_an_error_of_this_problem_alone(tmp_path, name):
    content, words = FAILED[name]
    once = ends.Server(ends.in_turn(httpx2.Response(200, content=content), ends.says("b")))
    assert once.ask()[0].text == "b" and once.endpoint.counts.retried == 1
    with pytest.raises(NoCompletion):
        read_completion(content)

    def mostly(b):
        if any("Which" in m["content"] for m in b["messages"]) or b["messages"][0]["content"] == bad[0]:
            return httpx2.Response(200, content=content)
        return ends.pupil(b)

    bad = [None]

    def first_is_bad(b):
        bad[0] = bad[0] or b["messages"][0]["content"]
        return mostly(b)

    (plain, *_), _ = ends.measure(tmp_path / "e.jsonl", first_is_bad, "eval.controls=false", concurrency=1)
    (refused,) = filter(was_refused, plain.episodes)
    assert refused.attempts[0].grade.verdict is Verdict.ERROR and words in refused.attempts[0].grade.detail
    assert plain.summary.accuracy(1).n == 11


@pytest.mark.parametrize("status", [424, 500, 403, 503])
def test_a_conversation_on_which_the_server_always_fails_is_one_error(tmp_path, status):
    """Not so a server that is down (503): the measurement ends, to be continued later."""
    bad = []

    def answer(b):
        bad.append(b["messages"][0]["content"])
        if b["messages"][0]["content"] == bad[0]:
            return httpx2.Response(status, json={"error": "the input was flagged, and the parser fails"})
        return ends.pupil(b)

    if status == 503:
        with pytest.raises(EndpointError, match="HTTP 503"):
            ends.measure(tmp_path / "e.jsonl", answer, "eval.controls=false", concurrency=1)
        return
    (plain, *_), _ = ends.measure(tmp_path / "e.jsonl", answer, "eval.controls=false", concurrency=1)
    assert [e.attempts[0].grade.verdict for e in plain.episodes if was_refused(e)] == [Verdict.ERROR]
    assert plain.summary.accuracy(1).n == 11


@pytest.mark.parametrize(
    ("message", "finish"),
    [
        ({"content": "half"}, "content_filter"),
        ({"content": None, "refusal": "I will not."}, "stop"),
        ({"content": [{"type": "refusal", "refusal": "I will not."}]}, "stop"),
        ({"content": ""}, "SAFETY"),
        ({"content": None}, "FinishReason.PROHIBITED_CONTENT"),
        ({"content": None}, "content_filter: RECITATION"),
        ({"content": "Sorry."}, "guardrail_intervened"),
        ({"content": ""}, "ERROR_TOXIC"),
        ({"content": ""}, "LANGUAGE"),
    ],
)
def test_what_a_filter_took_away_is_an_error_without_another_try(message, finish):
    server = ends.Server(lambda _: httpx2.Response(200, content=body(message, finish)))
    with pytest.raises(EndpointError, match="would not answer") as error:
        server.ask()
    assert len(server.sent) == 1 and error.value.one_answer and error.value.filtered


@pytest.mark.parametrize(
    ("status", "answer"),
    [
        (200, b'{"choices": [{"message": {}, "finish_reason": "stop", "native_finish_reason": "SAFETY"}]}'),
        (
            200,
            b'{"choices": [{"message": {}, "finish_reason": "stop", "content_filter_results": {"hate": {"filtered": true}}}]}',
        ),
        (200, b'{"choices": [{"finish_reason": "error", "error": {"code": 403, "message": "flagged by moderation"}}]}'),
        (403, b'{"error": {"code": 403, "message": "This model requires moderation, your input was flagged"}}'),
        (403, b'{"code": "denied", "error": "Content violates usage guidelines."}'),
        (400, b'{"error": {"code": "content_filter", "message": "The prompt triggered a content management policy"}}'),
        (400, b'{"error": {"code": "x", "message": "no", "innererror": {"code": "ResponsibleAIPolicyViolation"}}}'),
        (200, b'{"error": {"code": "content_filter", "message": "no"}}'),
        (200, b'{"choices": [], "prompt_feedback": {"block_reason": "SAFETY"}}'),
        (200, b'{"promptFeedback": {"blockReason": "OTHER"}}'),
    ],
)
def test_a_filter_that_a_gateway_names_takes_one_answer(status, answer):
    server = ends.Server(lambda _: httpx2.Response(status, content=answer))
    with pytest.raises(EndpointError, match="would not answer") as error:
        server.ask()
    assert len(server.sent) == 1 and error.value.one_answer and error.value.filtered


@pytest.mark.parametrize("status", [201, 202, 203])
def test_every_success_with_a_completion_is_an_answer(status):
    server = ends.Server(lambda _: httpx2.Response(status, content=body({"content": "4"})))
    (reply,) = server.ask()
    assert reply.text == "4"


def test_a_success_without_a_body_is_asked_for_again():
    server = ends.Server(lambda _: httpx2.Response(204))
    with pytest.raises(EndpointError, match="not a chat completion"):
        server.ask()
    assert len(server.sent) > 1


def test_a_conversation_that_the_law_blocks_is_one_error(tmp_path):
    def answer(b):
        if b["messages"][0]["content"] == seen.setdefault("first", b["messages"][0]["content"]):
            return httpx2.Response(451, json={"error": "not here"})
        return ends.pupil(b)

    seen = {}
    (plain, *_), _ = ends.measure(tmp_path / "e.jsonl", answer, "eval.controls=false", concurrency=1)
    assert plain.summary.accuracy(1).n == 11


def test_a_key_without_permission_is_no_filter():
    server = ends.Server(lambda _: httpx2.Response(403, json={"error": "the key may not use this model"}))
    with pytest.raises(EndpointError, match="what the key may do") as error:
        server.ask()
    assert not error.value.one_answer and error.value.filtered is None


@pytest.mark.parametrize(("code", "tries"), [(401, 1), (404, 1), (400, 1), (429, 3), (500, 3), ("503", 3), ("x", 3)])
def test_a_status_inside_the_body_counts_as_one(code, tries):
    content = json.dumps({"error": {"message": "no", "code": code}}).encode()
    server = ends.Server(lambda _: httpx2.Response(200, content=content, headers={"retry-after": "7"}), retries=2)
    with pytest.raises(EndpointError, match="no") as error:
        server.ask()
    assert len(server.sent) == tries
    assert error.value.one_answer == (code not in (401, 404))
    assert all(wait >= 7 for wait in server.waits)


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"retry-after": "3"}, 3.0),
        ({"retry-after": "1.5"}, 1.5),
        ({"retry-after-ms": "250", "retry-after": "9"}, 0.25),
        ({"retry-after": "-4"}, 0.0),
        ({"retry-after": "nan"}, None),
        ({"retry-after": "soon"}, None),
        ({"retry-after": "Thu, 01 Jan 1970 00:00:00 -0000"}, 0.0),
        ({}, None),
    ],
)
def test_every_form_of_retry_after(headers, seconds):
    assert _retry_after_s(headers) == seconds


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 600) | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                [
                    "choices",
                    "message",
                    "content",
                    "finish_reason",
                    "native_finish_reason",
                    "content_filter_results",
                    "filtered",
                    "error",
                    "base_resp",
                    "status_code",
                    "code",
                    "value",
                    "thought",
                    "summary",
                    "type",
                    "text",
                    "thinking",
                    "refusal",
                    "usage",
                    "reasoning_content",
                    "completion_tokens_details",
                    "role",
                    "messages",
                    "stream_options",
                    "max_tokens",
                    "stop",
                    "model",
                ]
            )
            | st.text(max_size=4),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)
CHOICE = st.fixed_dictionaries(
    {},
    optional={
        "message": JSON
        | st.fixed_dictionaries({"content": JSON}, optional={"refusal": JSON, "reasoning_content": JSON}),
        "finish_reason": JSON,
        "native_finish_reason": JSON,
        "content_filter_results": JSON,
        "error": JSON,
    },
)


@given(
    st.binary(max_size=40)
    | JSON.map(json.dumps).map(str.encode)
    | st.fixed_dictionaries(
        {"choices": st.lists(CHOICE, min_size=1, max_size=1)}, optional={"usage": JSON, "error": JSON}
    )
    .map(json.dumps)
    .map(str.encode)
)
@example(b'{"choices": [{"message": {"content": "a"}, "finish_reason": []}]}')
@example(b'{"choices": [{"message": {"content": [{"type": []}]}}]}')
def test_no_answer_of_an_endpoint_breaks_the_reader(answer):
    try:
        reply = read_completion(answer)
    except (NoCompletion, EndpointError) as error:
        assert str(error)
    else:
        reply.text.encode(), reply.thinking.encode()


@given(
    st.binary(max_size=40)
    | JSON.map(json.dumps).map(str.encode)
    | st.fixed_dictionaries(
        {
            "messages": JSON
            | st.lists(
                st.fixed_dictionaries({"role": st.sampled_from(["user", "system", "assistant", 3]), "content": JSON}),
                max_size=3,
            )
        },
        optional=dict.fromkeys(
            (
                "model",
                "stream",
                "stream_options",
                "max_tokens",
                "votes",
                "temperature",
                "stop",
                "logit_bias",
                "attempts",
                "seed",
            ),
            JSON,
        ),
    )
    .map(json.dumps)
    .map(str.encode)
)
@example(b'{"messages": [{"role": "user", "content": "x"}], "model": {}}')
@example(b'{"messages": [{"role": "user", "content": "x"}], "temperature": NaN}')
def test_no_request_breaks_the_parser(raw):
    try:
        asked = parse_request(raw, "m", Bounds())
    except ApiError as error:
        assert 400 <= error.status < 500
        json.dumps(error.body())
    else:
        assert asked.messages[-1]["role"] == "user"


# --- our own server ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def thinker():
    e = engine("strip", ThinksAloud)
    with serving(EngineBackend(Batcher(e), "Again.", 512), model="org/t", bounds=Bounds(max_tokens=8)) as (url, _):
        yield url


def thought(url):
    """A sampled answer with thinking, as the openai client gives it."""
    client = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)
    for seed in range(40):
        got = client.chat.completions.create(model="org/t", messages=ASK["messages"], temperature=1, seed=seed)
        if got.choices[0].message.content and getattr(got.choices[0].message, "reasoning_content", None):
            return client, seed, got
    raise AssertionError("no answer has both parts")


def test_thinking_is_apart_from_the_answer_plain_and_streamed(thinker):
    client, seed, got = thought(thinker)
    message = got.choices[0].message
    assert "</t>" not in message.content and "</t>" not in message.reasoning_content
    assert got.usage.completion_tokens_details.reasoning_tokens >= 2 * 5
    assert got.model_extra["selfcorrect"]["attempts"][-1]["reasoning_content"] == message.reasoning_content
    stream = client.chat.completions.create(
        model="org/t",
        messages=ASK["messages"],
        temperature=1,
        seed=seed,
        stream=True,
        stream_options={"include_usage": True},
    )
    parts = {"content": "", "reasoning_content": ""}
    usages = []
    for part in stream:
        usages.append(part.usage)
        for choice in part.choices:
            for key in parts:
                parts[key] += getattr(choice.delta, key, None) or ""
    assert parts == {"content": message.content, "reasoning_content": message.reasoning_content}
    assert usages[-1] == got.usage and set(usages[:-1]) == {None}


def test_the_server_takes_its_own_messages_back(thinker):
    client, _, got = thought(thinker)
    history = [
        {"role": "system", "content": ""},
        *ASK["messages"],
        got.choices[0].message.model_dump(),
        {"role": "user", "content": "Sure?"},
    ]
    again = client.chat.completions.create(model="org/t", messages=history)
    assert again.choices[0].finish_reason in ("stop", "length")
    for empty in ("", None, []):
        history[2] = {"role": "assistant", "content": empty}
        assert post(thinker, {"messages": history}).status_code == 200


def test_one_model_is_described_by_its_name(thinker):
    client = openai.OpenAI(base_url=f"{thinker}/v1", api_key="none", max_retries=0)
    assert client.models.retrieve("org/t").id == "org/t" == next(iter(client.models.list())).id
    with pytest.raises(openai.NotFoundError, match="other"):
        client.models.retrieve("other")


def test_fields_that_change_nothing_are_taken():
    more = {
        "top_logprobs": 0,
        "logprobs": False,
        "stop": "",
        "include_obfuscation": False,
        "n": 1,
        "best_of": 1,
        "top_k": -1,
    }
    options = {"stream_options": {"include_usage": None, "include_obfuscation": False}}
    parse_request(json.dumps({**ASK, **more, **options}).encode(), "m", Bounds())
    for bad in ({"top_logprobs": 2}, {"top_k": 5}, {"chat_template_kwargs": {"enable_thinking": False}}):
        with pytest.raises(ApiError, match="would be ignored"):
            parse_request(json.dumps({**ASK, **bad}).encode(), "m", Bounds())


FIELDS = {
    "verbosity": "medium",
    "samplers": [],
    "grammar": "",
    "options": {},
    "logit_bias": [],
    "typical_p": 1.0,
    "repeat_penalty": 1.0,
    "mirostat": 0,
    "cache_prompt": True,
    "priority": 0,
    "keep_alive": "5m",
    "add_generation_prompt": True,
    "continue_final_message": False,
    "separate_reasoning": True,
    "include_reasoning": True,
    "return_token_ids": False,
    "prompt_logprobs": 0,
    "background": False,
    "truncate_prompt_tokens": -1,
    "mirostat_mode": 0,
    "safe_prompt": False,
    "return_prompt": False,
}


@pytest.mark.parametrize("name", FIELDS)
def test_a_field_of_another_server_is_taken_with_the_value_that_changes_nothing(name):
    parse_request(json.dumps({**ASK, name: FIELDS[name]}).encode(), "m", Bounds())
    if name not in ("cache_prompt", "priority", "keep_alive"):
        with pytest.raises(ApiError, match=name):
            parse_request(json.dumps({**ASK, name: ["x"]}).encode(), "m", Bounds())


@pytest.mark.parametrize(
    ("message", "text"),
    [
        ({"content": "4", "provider_specific_fields": {"refusal": None}, "tool_calls": None}, "4"),
        ({"content": "4", "reasoning_details": [{"type": "reasoning.text", "text": "hm"}]}, "4"),
        ({"content": "4", "selfcorrect": {"attempts": []}, "finish_reason": "stop", "index": 0}, "4"),
        (
            {"content": "4", "annotations": [{"type": "url"}], "usage": {}, "created": 1, "model": "m", "timestamp": 1},
            "4",
        ),
        ({"content": "4", "id": "msg_1", "cache_control": {"type": "ephemeral"}, "prefix": False}, "4"),
        ({"content": None, "refusal": "No."}, "No."),
        ({"content": [{"type": "refusal", "refusal": "No."}]}, "No."),
        ({"content": [{"type": "thinking", "thinking": "hm"}, TEXT]}, "4"),
        ({"content": [{"type": "output_text", "text": "4", "annotations": []}]}, "4"),
        ({"content": [{"type": "text", "text": None}]}, ""),
        ({}, ""),
    ],
)
def test_a_message_of_this_server_comes_back_through_other_libraries(message, text):
    messages = [*ASK["messages"], {"role": "assistant", **message}, *ASK["messages"]]
    asked = parse_request(json.dumps({"messages": messages}).encode(), "m", Bounds())
    assert asked.messages[1] == {"role": "assistant", "content": text}


@pytest.mark.parametrize(
    "message",
    [
        {"content": [{"type": "thinking", "thinking": "hm"}, TEXT]},
        {"content": [{"type": "image_url", "image_url": {"url": "x"}}, TEXT]},
        {"content": [{"type": "text", "text": 4}]},
        {"content": "4", "name": "bob"},
        {"content": "4", "reasoning_content": "hm"},
    ],
)
def test_what_a_users_message_would_lose_is_refused(message):
    with pytest.raises(ApiError, match=r"messages\[0\]"):
        parse_request(json.dumps({"messages": [{"role": "user", **message}]}).encode(), "m", Bounds())


def test_an_empty_system_text_is_no_text_for_a_template_without_a_system_role():
    chat = ChatFormat(gemma())
    asked = {"messages": [{"role": "system", "content": ""}, *ASK["messages"]]}
    messages = parse_request(json.dumps(asked).encode(), "m", Bounds()).messages
    assert _begin(chat, messages).ids == chat.prompt_ids(messages[1:])
    with pytest.raises(ModelError, match="system"):
        _begin(chat, [{"role": "system", "content": "Be brief."}, *ASK["messages"]])


@pytest.mark.parametrize(
    ("message", "finish", "status"),
    [
        ({"content": "half"}, "error", 502),
        ({"content": "half"}, "content_filter", 200),
        ({"refusal": "No."}, "stop", 200),
    ],
)
def test_a_failed_generation_behind_the_server_is_passed_on(message, finish, status):
    server, _ = test_serve.upstream(lambda _b: httpx2.Response(200, content=body(message, finish)))
    with server as (url, _):
        got = post(url)
    assert got.status_code == status
    if status == 200:
        choice = got.json()["choices"][0]
        assert choice["finish_reason"] == "content_filter" and choice["message"]["content"] is None
        assert choice["message"]["refusal"] == (message.get("refusal") or "content_filter")
    else:
        assert "finish_reason error" in got.json()["error"]["message"]


def test_the_server_behind_gives_thinking_and_quotes_the_answer_to_attempt_2():
    server, sent = test_serve.upstream(lambda _b: test_serve.says("<think>hm</think>4"))
    with server as (url, _):
        got = post(url).json()["choices"][0]["message"]
    assert (got["content"], got["reasoning_content"]) == ("4", "hm")
    assert json.loads(sent[1].content)["messages"][1] == {"role": "assistant", "content": "4"}
