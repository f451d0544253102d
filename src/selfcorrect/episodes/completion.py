"""One answer of a chat endpoint, read from whatever servers and gateways send under HTTP 200."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

from selfcorrect.engines.thinking import USUAL
from selfcorrect.episodes.play import Reply
from selfcorrect.errors import EndpointError

ENDED = frozenset(
    {
        "",
        "stop",
        "end",
        "eos",
        "eos_token",
        "end_of_text",
        "end_turn",
        "stop_sequence",
        "stop_str",
        "complete",
        "completed",
        "tool_calls",
        "function_call",
    }
)
"""Finish reasons of an answer that the model ended itself, in lower case."""
CUT = frozenset(
    {
        "length",
        "max_tokens",
        "max_output_tokens",
        "max_completion_tokens",
        "model_length",
        "model_context_window_exceeded",
        "token_limit",
    }
)
"""Finish reasons of an answer that the token cap or the end of the context ended."""
FILTERED = frozenset(
    {
        "content_filter",
        "content-filter",
        "content_filtered",
        "guardrail_intervened",
        "image_safety",
        "safety",
        "refusal",
        "recitation",
        "prohibited_content",
        "blocklist",
        "blocked",
        "spii",
        "sensitive",
        "error_toxic",
        "language",
        "content_policy_violation",
        "responsibleaipolicyviolation",
        "moderation_blocked",
    }
)
"""Finish reasons and codes of an answer that a filter withheld. Any other reason is a failure of the server."""
FAILED = frozenset(
    {"error", "abort", "aborted", "cancelled", "failed", "malformed_function_call", "malformed_response", "timeout"}
)
"""Reasons of the model's own server that a gateway may translate to an ordinary finish."""
_TEXTS = frozenset({"", "text", "output_text", "input_text"})
_THOUGHTS = frozenset({"thinking", "reasoning", "reasoning_content", "reasoning_text", "summary_text", "thought"})
"""Types of parts with text, and with thinking, in lower case."""
_MODERATION = re.compile(
    r"moderation|flagged|usage (?:guidelines|polic)|content (?:\w+ )?(?:polic|filter)|safety", re.IGNORECASE
)
_TEXT_KEYS = ("text", "value", "content")
_LONGEST_REASON = 60
_DEEPEST_TEXT = 8
REFUSED = frozenset({400, 413, 422, 451})
"""Statuses that refuse this conversation; other conversations may be answered."""


class NoCompletion(Exception):
    """HTTP 200 without a completion; another try may bring one.

    Args:
        reason: in a few words, to be counted.
        words: the server's own words.
        status: an HTTP status that the body names.
    """

    def __init__(self, reason: str, words: str, status: int | None = None) -> None:
        super().__init__(f"{reason}: {words}")
        self.reason, self.words, self.status = reason, words, status


def read_completion(answer: bytes) -> Reply:
    """The first choice of a chat completion.

    Content may be text, null or a list of parts. Thinking is taken from a separate field, from parts, and from the
    start of the text.

    Raises:
        NoCompletion: the body is something else, or the generation failed.
        EndpointError: a filter withheld the answer, or the model refused.
    """
    try:
        data = _unlisted(json.loads(answer))
    except (ValueError, RecursionError):
        raise NoCompletion("no JSON", their_words(answer)) from None
    choices = data.get("choices") if isinstance(data, dict) else None
    if not choices and (words := filtered_by(data)):
        raise EndpointError(f"the endpoint would not answer: {words}", status=200, one_answer=True, filtered=words)
    if not isinstance(data, dict) or (data.get("error") and not choices):
        error = data.get("error") if isinstance(data, dict) else None
        raise NoCompletion("error in a body of status 200", their_words(answer), _status(error))
    choice = choices[0] if isinstance(choices, list) and choices else None
    if not isinstance(choice, dict):
        raise NoCompletion("no choices", their_words(answer), _status(data))
    message, finish = choice.get("message"), _finish(choice)
    error = _failure(data, choice)
    known = finish in ENDED | CUT | FILTERED
    if error or not known:
        reason = "error beside an answer" if known and finish else f"finish_reason {finish or 'error'}"
        raise NoCompletion(reason, their_words(json.dumps(error or choice).encode()), _status(error))
    parts = list(read_parts(message.get("content"))) if isinstance(message, dict) else None
    if not isinstance(message, dict) or any(kind == "unknown" for kind, _ in parts or ()):
        raise NoCompletion("no message", their_words(answer))
    refusal = _text(message.get("refusal")) or "".join(text for kind, text in parts or () if kind == "refusal")
    if refusal or finish in FILTERED:
        words = one_line(refusal or finish)
        raise EndpointError(f"the endpoint would not answer: {words}", status=200, one_answer=True, filtered=words)
    reply = _reply(message, parts or [], "length" if finish in CUT else "end", data.get("usage"))
    called = message.get("tool_calls") or message.get("function_call") or finish in ("tool_calls", "function_call")
    only_others = bool(parts) and all(kind == "other" for kind, _ in parts or ())
    if not called and (only_others or not (finish or reply.text or reply.thinking)):
        # a model that ends at once has a finish reason, and a text in an unknown form must not count as an empty answer
        raise NoCompletion(
            "no text and no finish_reason" if not finish else "no text in the parts", their_words(answer)
        )
    return reply


def _finish(choice: Mapping[str, Any]) -> str:
    """Why a generation ended, in lower case.

    The reason may be an object with a type (SGLang), the name of an enum's member, or have details after a colon. Where
    it says that the model ended, the reason of the server behind a gateway counts too.
    """
    finish, native = (
        one_line((value.get("type") if isinstance(value, dict) else value) or "")[:_LONGEST_REASON]
        .lower()
        .removeprefix("finishreason.")
        .removeprefix("finish_reason_")
        .partition(":")[0]
        .strip()
        for value in (choice.get("finish_reason"), choice.get("native_finish_reason"))
    )
    if finish not in ENDED:
        return finish
    results = choice.get("content_filter_results")
    if isinstance(results, dict) and any(isinstance(r, dict) and r.get("filtered") is True for r in results.values()):
        return "content_filter"
    return native if native in CUT | FILTERED | FAILED else finish


def _failure(data: Mapping[str, Any], choice: Mapping[str, Any]) -> Any:
    """What says that a generation failed although the body has a choice; None if nothing does."""
    message = choice.get("message")
    for holder in (choice, message, data):
        error = holder.get("error") if isinstance(holder, dict) else None
        if any(error.values()) if isinstance(error, dict) else error:
            return error
    reason, state = choice.get("finish_reason"), data.get("base_resp")
    if isinstance(reason, dict) and reason.get("message"):  # SGLang
        return reason
    return state if isinstance(state, dict) and state.get("status_code") else None  # MiniMax


def _unlisted(data: Any) -> Any:
    """Gemini sends an error as a list of one object."""
    return data[0] if isinstance(data, list) and len(data) == 1 and isinstance(data[0], dict) else data


def _reply(message: Mapping[str, Any], parts: list[tuple[str, str]], stop: Any, usage: Any) -> Reply:
    apart = next((t for key in ("reasoning_content", "reasoning", "thinking") if (t := _text(message.get(key)))), "")
    apart = apart or "".join(text for kind, text in parts if kind == "thinking")
    found = USUAL.split("".join(text for kind, text in parts if kind == "text"))
    thinking = "\n".join(t for t in (apart.strip(), found.thinking) if t)
    details = usage.get("completion_tokens_details") if isinstance(usage, dict) else None
    return Reply(
        valid_text(found.answer),
        stop,
        _count(usage, "prompt_tokens"),
        _count(usage, "completion_tokens"),
        thinking=valid_text(thinking),
        thinking_tokens=_count(details, "reasoning_tokens") if thinking else 0,
        finished=found.finished and (not thinking or bool(found.answer.strip())),
    )


def read_parts(content: Any, levels: int = _DEEPEST_TEXT) -> Iterator[tuple[str, str]]:
    """(kind, text) of every part of a content; kinds are text, thinking, refusal, other and unknown."""
    if content is None:
        return
    if isinstance(content, str):
        yield "text", content
        return
    if not isinstance(content, list | dict) or not levels:
        yield "unknown", ""
        return
    for part in content if isinstance(content, list) else [content]:
        if not isinstance(part, dict):
            yield from [("other", "")] if part is None else read_parts(part, levels - 1)
            continue
        kind = str(part.get("type") or "").lower()
        if kind in _THOUGHTS or part.get("thought") is True:
            keys = ("thinking", "reasoning", "thought", "text", "content", "summary")
            yield "thinking", next((t for key in keys if (t := _text(part.get(key)))), "")
        elif kind in _TEXTS:
            known = [k for k in _TEXT_KEYS if k in part and isinstance(part[k], str | list | dict | None)]
            yield ("text" if known else "unknown"), next((t for key in known if (t := _text(part[key]))), "")
        elif kind == "message":
            yield from read_parts(part.get("content"), levels - 1)
        elif kind == "refusal":
            yield "refusal", _text(part.get("refusal"))
        else:
            yield "other", ""


def _text(value: Any, levels: int = _DEEPEST_TEXT) -> str:
    """A text, or the texts of a part or of a list of parts; empty for anything else, and for what is nested deeply."""
    if isinstance(value, str):
        return value
    if isinstance(value, list) and levels:
        return "".join(_text(part, levels - 1) for part in value)
    if isinstance(value, dict) and levels:
        return next((t for key in _TEXT_KEYS if (t := _text(value.get(key), levels - 1))), "")
    return ""


def _count(values: Any, key: str) -> int | None:
    n = values.get(key) if isinstance(values, dict) else None
    return n if isinstance(n, int) and not isinstance(n, bool) and n >= 0 else None


def _status(error: Any) -> int | None:
    """The HTTP status that an error names inside a body of status 200."""
    for key in ("code", "status", "status_code"):
        value = error.get(key) if isinstance(error, dict) else None
        if isinstance(value, str) and value.isdecimal() and len(value) == 3:
            value = int(value)
        if isinstance(value, int) and not isinstance(value, bool) and 400 <= value < 600:
            return value
    return None


def filtered_by(data: Any) -> str:
    """What a body without choices says of a filter that took the conversation, by a code (Azure, OpenAI) or by feedback
    on the prompt (Gemini); empty if it says nothing of one."""
    if not isinstance(data, dict):
        return ""
    error = data.get("error")
    inner = error.get("innererror") if isinstance(error, dict) else None
    for part in (error, inner):
        codes = [part.get(key) for key in ("code", "type")] if isinstance(part, dict) else []
        if any(isinstance(code, str) and code.lower() in FILTERED for code in codes):
            return one_line((error or {}).get("message") or "content_filter")
    feedback = data.get("prompt_feedback") or data.get("promptFeedback")
    reason = (feedback.get("block_reason") or feedback.get("blockReason")) if isinstance(feedback, dict) else None
    return one_line(reason or "")


def is_moderation(status: int, words: str, answer: bytes = b"") -> bool:
    """Whether an HTTP error is about this conversation: by a code in its body, or in an HTTP 403 by its words, which may
    also be about the key (OpenRouter, xAI)."""
    try:
        code = filtered_by(_unlisted(json.loads(answer)))
    except (ValueError, RecursionError):
        code = ""
    return bool(code) or (status == 403 and _MODERATION.search(words) is not None)


def valid_text(text: str) -> str:
    """The text with lone surrogates replaced by U+FFFD: JSON can spell them, but no file or tokenizer takes them."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def their_words(answer: bytes) -> str:
    """The server's reason in one line, made harmless for a terminal."""
    try:
        data = _unlisted(json.loads(answer))
        error = data.get("error") or data.get("detail") or data
        words = error["message"] if isinstance(error, dict) and error.get("message") else error
    except (ValueError, AttributeError, RecursionError):
        words = answer.decode("utf-8", "replace")
    return one_line(words) or "(no reason given)"


def one_line(words: object) -> str:
    """At most 300 printable characters."""
    line = " ".join(str(words).split())[:300]
    return "".join(c if c.isprintable() else "\ufffd" for c in line)
