"""A verifier for problems with many right answers. Used by docs/your-own-task.md."""

import re

FINAL = re.compile(r"^Final answer:[ \t]*(\d{1,9})[ \t]*$", re.MULTILINE)


def verify(question: str, answer: str, text: str, meta: dict) -> bool:
    """Whether the last final-answer line holds a number in the row's range that its divisor divides.

    Args:
        question: the row's question; here everything needed is in ``meta``.
        answer: the row's answer, one of several right ones here.
        text: what the model wrote. Untrusted: read it, never run it.
        meta: the row's ``meta``.
    """
    found = FINAL.findall(text)
    return bool(found) and meta["low"] <= int(found[-1]) <= meta["high"] and int(found[-1]) % meta["divisor"] == 0
