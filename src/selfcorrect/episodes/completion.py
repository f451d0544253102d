"""One answer of a chat endpoint, read from whatever servers and gateways send under HTTP 200."""

from __future__ import annotations

import json
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
        "end_turn",
        "stop_sequence",
        "complete",
        "completed",
        "tool_calls",
        "function_call",
    }
)
"""Finish reasons of an answer that the model ended itself, in lower case."""
CUT = frozenset({"length", "max_tokens", "max_output_tokens", "max_completion_tokens", "model_length", "token_limit"})
"""Finish reasons of an answer that the token cap ended."""
FILTERED = frozenset(
    {
        "content_filter",
        "content-filter",
        "safety",
        "refusal",
        "recitation",
        "prohibited_content",
        "blocklist",
        "blocked",
        "spii",
        "sensitive",
    }
)
"""Finish reasons of an answer that a filter withheld. Any other reason is a failure of the server."""
_LONGEST_REASON = 60
_DEEPEST_TEXT = 8
REFUSED = frozenset({400, 413, 422})
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
        data = json.loads(answer)
    except (ValueError, RecursionError):
        raise NoCompletion("no JSON", their_words(answer)) from None
    choices = data.get("choices") if isinstance(data, dict) else None
    if not isinstance(data, dict) or (data.get("error") and not choices):
        error = data.get("error") if isinstance(data, dict) else None
        raise NoCompletion("error in a body of status 200", their_words(answer), _status(error))
    choice = choices[0] if isinstance(choices, list) and choices else None
    if not isinstance(choice, dict):
        raise NoCompletion("no choices", their_words(answer))
    message, finish = choice.get("message"), one_line(choice.get("finish_reason") or "")[:_LONGEST_REASON].lower()
    error = choice.get("error") or (data.get("error") if finish not in ENDED | CUT else None)
    if error or finish not in ENDED | CUT | FILTERED:
        raise NoCompletion(
            f"finish_reason {finish or 'error'}", their_words(json.dumps(error or choice).encode()), _status(error)
        )
    parts = list(_parts(message.get("content"))) if isinstance(message, dict) else None
    if not isinstance(message, dict) or any(kind == "unknown" for kind, _ in parts or ()):
        raise NoCompletion("no message", their_words(answer))
    refusal = _text(message.get("refusal")) or "".join(text for kind, text in parts or () if kind == "refusal")
    if refusal or finish in FILTERED:
        words = one_line(refusal or finish)
        raise EndpointError(f"the endpoint would not answer: {words}", status=200, one_answer=True, filtered=words)
    return _reply(message, parts or [], "length" if finish in CUT else "end", data.get("usage"))


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


def _parts(content: Any) -> Iterator[tuple[str, str]]:
    """(kind, text) of every part of a content; kinds are text, thinking, refusal, other and unknown."""
    if content is None:
        return
    if isinstance(content, str):
        yield "text", content
        return
    if not isinstance(content, list):
        yield "unknown", ""
        return
    for part in content:
        if isinstance(part, str):
            yield "text", part
        elif not isinstance(part, dict):
            yield "unknown", ""
        elif part.get("type") in (None, "text", "output_text"):
            yield "text", _text(part.get("text"))
        elif part["type"] in ("thinking", "reasoning", "reasoning_content"):
            yield (
                "thinking",
                next((t for key in ("thinking", "reasoning", "text", "content") if (t := _text(part.get(key)))), ""),
            )
        elif part["type"] == "refusal":
            yield "refusal", _text(part.get("refusal"))
        else:
            yield "other", ""


def _text(value: Any, levels: int = _DEEPEST_TEXT) -> str:
    """A text, or the texts of a list of parts; empty for anything else, and for lists nested deeply."""
    if isinstance(value, str):
        return value
    if isinstance(value, list) and levels:
        return "".join(_text(part.get("text") if isinstance(part, dict) else part, levels - 1) for part in value)
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


def valid_text(text: str) -> str:
    """The text with lone surrogates replaced by U+FFFD: JSON can spell them, but no file or tokenizer takes them."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def their_words(answer: bytes) -> str:
    """The server's reason in one line, made harmless for a terminal."""
    try:
        data = json.loads(answer)
        error = data.get("error") or data.get("detail") or data
        words = error["message"] if isinstance(error, dict) and error.get("message") else error
    except (ValueError, AttributeError, RecursionError):
        words = answer.decode("utf-8", "replace")
    return one_line(words) or "(no reason given)"


def one_line(words: object) -> str:
    """At most 300 printable characters."""
    line = " ".join(str(words).split())[:300]
    return "".join(c if c.isprintable() else "\ufffd" for c in line)
