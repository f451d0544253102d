"""Texts of users, data sets and models inside Markdown: they are shown literally and never act as markup."""

from __future__ import annotations

import re
from collections.abc import Sequence

from selfcorrect.report.text import visible

_MARKUP = re.compile(r"([\\`*_\[\]<>|~&$#])")


def plain(text: str) -> str:
    """One line of ordinary text."""
    return _MARKUP.sub(r"\\\1", " ".join(visible(text).split()))


def code(text: str) -> str:
    """One line of code inside a sentence or a table."""
    line = " ".join(visible(text).split()) or " "
    marks = "`" * (_longest_run(line) + 1)
    inner = f" {line} " if line.startswith("`") or line.endswith("`") else line
    return f"{marks}{inner}{marks}".replace("|", "\\|")  # a table takes a bar for a border even inside code


def code_block(text: str, language: str = "") -> str:
    """Lines of code, which may contain fences."""
    fence = "`" * max(3, _longest_run(text) + 1)
    return f"{fence}{language}\n{visible(text)}\n{fence}"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table; its cells are Markdown already. The first column is text, the others are numbers."""
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _longest_run(text: str) -> int:
    return max(map(len, re.findall("`+", text)), default=0)
