"""Makes model text safe to look at: invisible characters become visible signs."""

from __future__ import annotations

import re

SHOWN_CHARACTERS = 3_200
"""Most characters shown of one text. Longer texts are cut in the middle, because the end of a solution has its
answer."""
_TAIL = 800

_INVISIBLE = re.compile(
    "["
    "\x00-\x08\x0b-\x1f\x7f-\x9f"  # control characters except tab and line feed: NUL, the escape that begins ANSI codes
    "\u00ad\u061c\u180e\u200b\u200e\u200f\u2028\u2029\u202a-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb"  # directions, breaks, zero width
    "\ud800-\udfff"  # lone surrogates, which no encoding accepts
    "\ufdd0-\ufdef\ufffe\uffff\U000e0000-\U000e007f"  # noncharacters; invisible tags
    "]"
)


def visible(text: str) -> str:
    """The text with control characters as pictures (U+2400) and other invisible characters as ``⟨U+202E⟩``.

    Zero-width joiners stay: scripts and emoji need them. Apart from these, the result has no control characters, none
    that change the direction of text, and none that cannot be encoded.
    """

    def picture(match: re.Match[str]) -> str:
        code = ord(match[0])
        if code < 0x20:
            return chr(0x2400 + code)
        return "\u2421" if code == 0x7F else f"⟨U+{code:04X}⟩"

    return _INVISIBLE.sub(picture, text)


def shown(text: str) -> tuple[str, int]:
    """The part of a text that goes on the page, made visible, and the number of characters left out of its middle."""
    left_out = len(text) - SHOWN_CHARACTERS
    if left_out <= 0:
        return visible(text), 0
    head, tail = text[: SHOWN_CHARACTERS - _TAIL], text[-_TAIL:]
    return f"{visible(head)}\n[… {left_out:,} characters not shown …]\n{visible(tail)}", left_out
