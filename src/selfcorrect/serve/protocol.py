"""The wire format: chat-completion requests in, responses, chunks and errors out. Pure; docs/serving.md documents it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

from selfcorrect.episodes.completion import read_parts, valid_text
from selfcorrect.episodes.verdict import said
from selfcorrect.tasks.base import Message

DONE = "data: [DONE]\n\n"

NEUTRAL: Mapping[str, tuple[object, ...]] = {
    "n": (1,),
    "top_p": (1,),
    "presence_penalty": (0,),
    "frequency_penalty": (0,),
    "logprobs": (False,),
    "parallel_tool_calls": (True, False),
    "tool_choice": ("none", "auto"),
    "tools": (),
    "stop": ([""],),
    "top_logprobs": (0,),
    "top_k": (-1, 0),
    "min_p": (0,),
    "repetition_penalty": (1,),
    "length_penalty": (1,),
    "min_tokens": (0,),
    "best_of": (1,),
    "echo": (False,),
    "ignore_eos": (False,),
    "use_beam_search": (False,),
    "skip_special_tokens": (True,),
    "stop_token_ids": (),
    "functions": (),
    "function_call": ("none", "auto"),
    "include_obfuscation": (True, False),
    "chat_template_kwargs": (),
    "logit_bias": (),
    "response_format": ({"type": "text"},),
    "modalities": (["text"],),
    "store": (False,),
    "service_tier": ("auto", "default"),
    "verbosity": ("medium",),
    "background": (False,),
    # of vLLM, SGLang, llama.cpp and Ollama
    "typical_p": (1,),
    "tfs_z": (1,),
    "top_a": (0,),
    "repeat_penalty": (1,),
    "mirostat": (0,),
    "dry_multiplier": (0,),
    "xtc_probability": (0,),
    "dynatemp_range": (0,),
    "n_probs": (0,),
    "prompt_logprobs": (0,),
    "early_stopping": (False,),
    "include_stop_str_in_output": (False,),
    "spaces_between_special_tokens": (True,),
    "add_generation_prompt": (True,),
    "add_special_tokens": (False,),
    "continue_final_message": (False,),
    "detokenize": (True,),
    "no_stop_trim": (False,),
    "return_hidden_states": (False,),
    "return_token_ids": (False,),
    "separate_reasoning": (True,),
    "stream_reasoning": (True,),
    "include_reasoning": (True,),
    "truncate_prompt_tokens": (-1,),
    "mirostat_mode": (0,),
    "safe_prompt": (False,),
    "return_prompt": (False,),
}
"""Fields of the OpenAI API and of other servers that are accepted only with a value that changes nothing. Null and an
empty text, list or object change nothing in any field."""
WITHOUT_EFFECT = frozenset(
    {
        "user",
        "metadata",
        "safety_identifier",
        "prompt_cache_key",
        "prompt_cache_retention",
        "request_id",
        "priority",
        "cache_prompt",
        "id_slot",
        "keep_alive",
    }
)
"""Fields about the client and about caches. No answer depends on them."""
EMPTY: tuple[object, ...] = ("", [], {})
OWN_FIELDS = frozenset(
    {
        "reasoning_content",
        "reasoning",
        "reasoning_details",
        "thinking",
        "thinking_blocks",
        "refusal",
        "selfcorrect",
        "provider_specific_fields",
        "finish_reason",
        "stop_reason",
        "index",
        "annotations",
        "usage",
        "created",
        "model",
        "timestamp",
    }
)
"""Fields of this server's own messages, and those that client libraries add before they send these back. Earlier
thinking is not shown to the model."""
MARKS = frozenset({"id", "cache_control"})
"""Fields of any message that no answer depends on."""
ROLES: Mapping[object, Literal["system", "user", "assistant"]] = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "assistant": "assistant",
}


class ApiError(Exception):
    """An answer other than 200, in the form that OpenAI clients understand."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str | None = None,
        param: str | None = None,
        retry_after_s: int | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.code, self.param, self.retry_after_s = status, code, param, retry_after_s

    def body(self) -> dict[str, Any]:
        kinds = {401: "authentication_error", 404: "not_found_error", 429: "rate_limit_error"}
        kind = kinds.get(self.status, "invalid_request_error" if self.status < 500 else "server_error")
        return {"error": {"message": str(self), "type": kind, "param": self.param, "code": self.code}}


@dataclass(frozen=True, slots=True)
class Bounds:
    """Limits and defaults of a request."""

    attempts: int = 2
    """Attempts unless the request says otherwise."""
    max_attempts: int = 4
    max_votes: int = 16
    max_tokens: int = 512
    """Token cap of an attempt unless the request says otherwise."""
    tokens_limit: int = 1024
    """The highest cap a request may set."""


@dataclass(frozen=True, slots=True)
class ChatRequest:
    messages: tuple[Message, ...]
    attempts: int
    votes: int
    temperature: float
    max_tokens: int
    """Cap of each attempt."""
    seed: int | None = None
    stream: bool = False
    include_usage: bool = False


@dataclass(frozen=True, slots=True)
class ServedAttempt:
    """One attempt as it is reported to the client."""

    text: str
    stop: Literal["end", "length", "refused"]
    """``refused``: the model behind this server, or its filter, gave no answer."""
    tokens: int | None
    """Sampled tokens; None where a backend does not count."""
    seconds: float
    """Seconds from the request to the answer, including the time in the queue."""
    thinking: str = ""
    """What came before the answer; ``text`` is the answer."""
    thinking_tokens: int | None = None
    """Thinking tokens among ``tokens``; None if the backend does not say."""
    refusal: str | None = None
    """The words of a refusal."""
    is_verdict: bool = False
    """A turn in which the model judged its answer."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """The result of a request."""

    attempts: tuple[ServedAttempt, ...]
    """Attempts of the conversation whose last attempt is the answer."""
    edit_ratios: tuple[float | None, ...]
    """Edit-distance ratio of each attempt and the next: Levenshtein distance in characters over the summed lengths;
    None: not measured."""
    votes: tuple[tuple[str | None, int], ...] | None
    """Each final answer with its votes, most first; the answer None stands for texts without one. None: there was no vote."""
    prompt_tokens: int
    completion_tokens: int
    """Tokens of all attempts of all conversations."""
    reasoning_tokens: int
    """Thinking tokens among these, as far as backends report them."""
    seconds: float
    verdicts: tuple[ServedAttempt, ...] | None = None
    """Of that conversation: the model's verdict on each attempt but the last that could follow. None: none is asked for."""


def parse_request(raw: bytes, model: str, bounds: Bounds) -> ChatRequest:
    """Read a request body. A field that would be ignored is refused by name.

    Args:
        raw: the body.
        model: the one name that is served.
        bounds: limits and defaults.

    Raises:
        ApiError: 400 with the field at fault, 404 for another model.
    """
    try:
        body = json.loads(raw)
    except (ValueError, RecursionError):
        raise ApiError(400, "the body is not valid JSON") from None
    if not isinstance(body, dict):
        raise ApiError(400, "the body must be a JSON object")
    fields = {key: value for key, value in body.items() if value is not None}
    named = fields.pop("model", model)
    if named != model:
        raise ApiError(
            404,
            f"model {_shown(named)} is not served here; the model is {model!r}",
            code="model_not_found",
            param="model",
        )
    votes = _integer(fields, "votes", 1, 1, bounds.max_votes)
    temperature = _number(fields, "temperature", 1.0 if votes > 1 else 0.0, 0.0, 2.0)
    if votes > 1 and temperature == 0:
        raise ApiError(
            400,
            "votes above 1 with temperature 0 would repeat one greedy answer; raise the temperature",
            param="temperature",
        )
    cap = _integer(fields, "max_tokens", bounds.max_tokens, 1, bounds.tokens_limit)
    stream = _boolean(fields, "stream")
    options = fields.pop("stream_options", {})
    if isinstance(options, dict):
        options = {
            k: v for k, v in options.items() if v not in (None, False) and (k, v) != ("include_obfuscation", True)
        }
    if not isinstance(options, dict) or options.keys() - {"include_usage"}:
        raise ApiError(400, "stream_options may hold include_usage only", param="stream_options")
    if options.get("include_usage") and not stream:
        raise ApiError(400, "stream_options would be ignored without stream", param="stream_options")
    given = fields.pop("messages", None)
    if not isinstance(given, list) or not given:
        raise ApiError(400, "messages must be a list with at least one message", param="messages")
    messages = tuple(_message(m, i) for i, m in enumerate(given))
    if messages[-1]["role"] != "user":
        raise ApiError(400, "the last message must be the user's: it is what is answered", param="messages")
    if not messages[-1]["content"].strip():
        where = f"messages[{len(messages) - 1}].content"
        raise ApiError(400, f"{where} must be text (a string, or parts of type text) that is not empty", param=where)
    request = ChatRequest(
        messages=messages,
        attempts=_integer(fields, "attempts", bounds.attempts, 1, bounds.max_attempts),
        votes=votes,
        temperature=temperature,
        max_tokens=_integer(fields, "max_completion_tokens", cap, 1, bounds.tokens_limit),
        seed=_integer(fields, "seed", None, -(2**63), 2**63 - 1),
        stream=stream,
        include_usage=_boolean(dict(options), "include_usage"),
    )
    _refuse_rest(fields)
    return request


def _message(value: object, i: int) -> Message:
    where = f"messages[{i}]"
    if not isinstance(value, dict):
        raise ApiError(400, f"{where} must be an object with role and content", param=where)
    role = ROLES.get(value.get("role")) if isinstance(value.get("role"), str) else None
    if role is None:
        raise ApiError(400, f"{where}.role must be one of: {', '.join(map(str, ROLES))}", param=f"{where}.role")
    own = {"role", "content"} | MARKS | (OWN_FIELDS if role == "assistant" else frozenset())
    more = sorted(k for k, v in value.items() if k not in own and v not in (None, False, *EMPTY))
    if more:
        raise ApiError(400, f"{where}.{_shown(more[0])} is not supported: messages have a role and a text", param=where)
    content = value.get("content")
    if role == "assistant" and not content and isinstance(refusal := value.get("refusal"), str):
        content = refusal
    return {"role": role, "content": valid_text(_text(content, f"{where}.content", role))}


def _text(content: object, where: str, role: str) -> str:
    """A message's text. null counts as empty, since an assistant's turn may have it; so may one have parts that were
    thinking or a refusal."""
    shown = {"text", "refusal"} if role == "assistant" else {"text"}
    parts = list(read_parts(content))
    if any(kind not in shown and (kind, role) != ("thinking", "assistant") for kind, _ in parts):
        raise ApiError(400, f"{where} must be text (a string, or parts of type text)", param=where)
    return "".join(text for kind, text in parts if kind in shown)


def _integer(fields: dict[str, Any], key: str, default: Any, low: int, high: int) -> Any:
    value = fields.pop(key, default)
    if value is default:
        return default
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise ApiError(400, f"{key} must be a whole number from {low} to {high}, not {_shown(value)}", param=key)
    return value


def _number(fields: dict[str, Any], key: str, default: float, low: float, high: float) -> float:
    value = fields.pop(key, default)
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        raise ApiError(400, f"{key} must be a number from {low:g} to {high:g}, not {_shown(value)}", param=key)
    return float(value)


def _boolean(fields: dict[str, Any], key: str) -> bool:
    value = fields.pop(key, False)
    if not isinstance(value, bool):
        raise ApiError(400, f"{key} must be true or false, not {_shown(value)}", param=key)
    return value


def _refuse_rest(fields: Mapping[str, object]) -> None:
    for key, value in fields.items():
        if key in WITHOUT_EFFECT or value in EMPTY or (key in NEUTRAL and value in NEUTRAL[key]):
            continue
        if key in NEUTRAL:
            raise ApiError(
                400, f"{key} = {_shown(value)} is not supported and would be ignored; leave it out", param=key
            )
        raise ApiError(400, f"{_shown(key)} is not a field of this server; leave it out", param=valid_text(key)[:80])


def _shown(value: object) -> str:
    text = json.dumps(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def response(request: ChatRequest, outcome: Outcome, identity: str, created: int, model: str) -> dict[str, Any]:
    """The body of a plain answer."""
    last = outcome.attempts[-1]
    message = {"role": "assistant", "content": None if last.refusal else last.text, "refusal": last.refusal}
    if last.thinking:
        message["reasoning_content"] = last.thinking
    return {
        "id": identity,
        "object": "chat.completion",
        "created": created,
        "model": model,
        "choices": [{"index": 0, "message": message, "logprobs": None, "finish_reason": _finish(last)}],
        "usage": _usage(outcome),
        "selfcorrect": extra(request, outcome),
    }


def extra(request: ChatRequest, outcome: Outcome) -> dict[str, Any]:
    """The fields beyond OpenAI's: every attempt, how much each changed, the votes, the time."""
    texts = [a.text for a in outcome.attempts]
    return {
        "attempts": [attempt_fields(k, a) for k, a in enumerate(outcome.attempts, 1)],
        "changes": [
            {"from": k, "to": k + 1, "changed": a != b, "edit_ratio": ratio}
            for k, ((a, b), ratio) in enumerate(zip(pairwise(texts), outcome.edit_ratios, strict=True), 1)
        ],
        **verdict_part(request, outcome),
        "votes": None if outcome.votes is None else [{"answer": a, "count": n} for a, n in outcome.votes],
        "settings": {
            "attempts": request.attempts,
            "votes": request.votes,
            "temperature": request.temperature,
            "max_tokens": request.max_tokens,
        },
        "seconds": round(outcome.seconds, 6),
    }


def verdict_part(request: ChatRequest, outcome: Outcome) -> dict[str, Any]:
    """The verdicts, and how many attempts were not played for them; nothing where none are asked for."""
    if outcome.verdicts is None:
        return {}
    return {
        "verdicts": [verdict_fields(k, v) for k, v in enumerate(outcome.verdicts, 1)],
        "skipped_attempts": request.attempts - len(outcome.attempts),
    }


def verdict_fields(number: int, verdict: ServedAttempt) -> dict[str, Any]:
    """``number``: of the attempt that is judged. ``says`` is ``correct``, ``wrong``, or null for a text without a verdict."""
    return {**attempt_fields(number, verdict), "says": said(verdict.text)}


def attempt_fields(number: int, attempt: ServedAttempt) -> dict[str, Any]:
    return {
        "attempt": number,
        "text": attempt.text,
        "finish_reason": _finish(attempt),
        "completion_tokens": attempt.tokens,
        "seconds": round(attempt.seconds, 6),
        **({"reasoning_content": attempt.thinking} if attempt.thinking else {}),
        **({"refusal": attempt.refusal} if attempt.refusal else {}),
    }


def chunk(identity: str, created: int, model: str, delta: Mapping[str, str], **more: Any) -> str:
    """One server-sent event of a streamed answer; ``finish_reason`` goes into its choice, other fields next to it."""
    choice = {"index": 0, "delta": dict(delta), "logprobs": None, "finish_reason": more.pop("finish_reason", None)}
    head = {"id": identity, "object": "chat.completion.chunk", "created": created, "model": model}
    return event({**head, "choices": [choice], **more})


def streamed(request: ChatRequest, outcome: Outcome, identity: str, created: int, model: str) -> Iterator[str]:
    """The events of the final attempt: its text word by word, then the end with the extra fields, then the usage on request."""
    last = outcome.attempts[-1]
    more = {"usage": None} if request.include_usage else {}
    for key, text in (("reasoning_content", last.thinking), ("content", last.text), ("refusal", last.refusal or "")):
        for piece in re.findall(r"\s*\S+\s*|\s+", text):
            yield chunk(identity, created, model, {key: piece}, **more)
    end = {"finish_reason": _finish(last), "selfcorrect": extra(request, outcome)}
    yield chunk(identity, created, model, {}, **end, **more)
    if request.include_usage:
        head = {"id": identity, "object": "chat.completion.chunk", "created": created, "model": model}
        yield event({**head, "choices": [], "usage": _usage(outcome)})
    yield DONE


def event(data: Mapping[str, Any]) -> str:
    # ASCII JSON: no line break, NUL or lone surrogate of a model's text can break the framing
    return f"data: {json.dumps(data)}\n\n"


def _usage(outcome: Outcome) -> dict[str, Any]:
    prompt, completion = outcome.prompt_tokens, outcome.completion_tokens
    usage = {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}
    if not outcome.reasoning_tokens:
        return usage
    return {**usage, "completion_tokens_details": {"reasoning_tokens": outcome.reasoning_tokens}}


def _finish(attempt: ServedAttempt) -> str:
    return {"end": "stop", "length": "length", "refused": "content_filter"}[attempt.stop]
