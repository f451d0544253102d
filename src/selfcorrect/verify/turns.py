"""The part of a model's text that is its answer: outside its thinking, and before the end of its turn."""

from __future__ import annotations

import re

_NAMES = "think|thinking|thought|thoughts|reasoning|scratchpad|seed:think"
_OPEN = r"\[THINK\]|\u25c1think\u25b7|<\|START_THINKING\|>|<\|begin_of_thought\|>|<\|channel>thought"
_CLOSE = r"\[/THINK\]|\u25c1/think\u25b7|<\|END_THINKING\|>|<\|end_of_thought\|>|<channel\|>"
"""The pairs of ``engines.thinking.KNOWN`` that are no tags."""
_THOUGHT = re.compile(
    rf"<(?P<open>{_NAMES})>|</(?P<close>{_NAMES})>|(?P<open2>{_OPEN})|(?P<close2>{_CLOSE})",
    re.IGNORECASE,
)
_FINAL_CHANNEL = re.compile(r"<\|channel\|>final[^<\n]{0,80}<\|message\|>")
_END_OF_TURN = re.compile(
    r"<\|(?:im_end|im_start|endoftext|eot_id|eom_id|end_of_text|end|return|user|observation)\|>|</s>|<end_of_turn>|<\uff5cend"
)
_QUOTES = frozenset("'\"")
_COMMENT = re.compile(r"(?:^|[^#])#(?![#A-Za-z0-9])")


def _named(text: str, start: int, end: int, code: bool) -> bool:
    """Whether a program or a sentence only mentions the tag: a quote touches it or is on both sides, or it is in a
    comment."""
    before, after = text[max(0, start - 200) : start].rpartition("\n")[2], text[end : end + 200].partition("\n")[0]
    touched = before[-1:] in _QUOTES or after[:1] in _QUOTES
    around = any(q in before and q in after for q in "'\"`")
    in_code = code and (before.startswith(("  ", "\t")) or _COMMENT.search(before))  # a docstring is indented
    return bool(touched or around or in_code)


def without_thinking(text: str, *, code: bool = False) -> str:
    """The text outside its thinking. A block that never ends extends to the end of the text. A block without a start
    begins at the start of the text."""
    if channel := [match.end() for match in _FINAL_CHANNEL.finditer(text)]:
        return text[channel[-1] :]
    kept: list[str] = []
    position = 0
    thinking = False
    for match in _THOUGHT.finditer(text):
        if _named(text, *match.span(), code):
            continue
        opens = bool(match["open"] or match["open2"])
        if opens and not thinking:
            kept.append(text[position : match.start()])
        elif not opens and not thinking:
            kept.clear()
        thinking, position = opens, match.end()
    return "".join(kept) if thinking else "".join([*kept, text[position:]])


def own_text(text: str, *, code: bool = False) -> str:
    """The model's answer: its turn without its thinking. Empty if all of it is thinking.

    Args:
        code: whether the answer is a program, whose comments may mention the tags.
    """
    channel = _FINAL_CHANNEL.search(text)  # the channels before it end with the token that ends a turn elsewhere
    start = channel.end() if channel else 0
    start += len(text[start:]) - len(text[start:].lstrip())
    for end in _END_OF_TURN.finditer(text, start + 1):
        if not _named(text, *end.span(), code):
            return without_thinking(text[: end.start()], code=code)
    return without_thinking(text, code=code)
