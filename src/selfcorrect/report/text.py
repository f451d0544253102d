"""Model text made safe to look at: whatever would act on a reader's screen without being seen becomes a visible sign."""

from __future__ import annotations

import re

SHOWN_CHARACTERS = 3_200
"""Of one text. Longer ones lose their middle: a solution's end holds its answer."""
_TAIL = 800

_UNSEEN = re.compile(
    "["
    "\x00-\x08\x0b-\x1f\x7f-\x9f"  # control characters but tab and line feed: NUL, the escape that begins ANSI codes
    "\u00ad\u061c\u180e\u200b\u200e\u200f\u2028\u2029\u202a-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb"  # directions, breaks, nothing
    "\ud800-\udfff"  # halves of a pair: no encoding can hold them
    "\ufdd0-\ufdef\ufffe\uffff\U000e0000-\U000e007f"  # no characters; invisible tags
    "]"
)


def visible(text: str) -> str:
    """A text that shows what is in it: control characters as pictures (U+2400), the rest of the unseen as ``⟨U+202E⟩``.

    Zero-width joiners stay: scripts and emoji need them. Nothing that is left is a control character, changes the
    direction of what follows, or cannot be encoded.
    """
    return _UNSEEN.sub(_picture, text)


def shown(text: str) -> tuple[str, int]:
    """What of a text goes on the page, visible, and how many of its characters are left out of its middle."""
    left_out = len(text) - SHOWN_CHARACTERS
    if left_out <= 0:
        return visible(text), 0
    head, tail = text[: SHOWN_CHARACTERS - _TAIL], text[-_TAIL:]
    return f"{visible(head)}\n[… {left_out:,} characters not shown …]\n{visible(tail)}", left_out


def _picture(match: re.Match[str]) -> str:
    code = ord(match[0])
    if code < 0x20:
        return chr(0x2400 + code)
    return "\u2421" if code == 0x7F else f"⟨U+{code:04X}⟩"
