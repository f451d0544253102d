"""The pages of the documentation, and the blocks of commands in them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])
COMMANDS = ("sh", "python")
DATA = ("bibtex", "json", "math", "toml")
_FENCE = re.compile(r"((?:^<!--(?:(?!-->).)*-->\n)*)^```([^\n]*)\n(.*?)^```$", re.M | re.S)
_NOTE = re.compile(r"<!-- (not run|first|slow|background|needs a sandbox)(?:: (.*?))? -->")
_WITH_TEXT = {"not run", "first"}


@dataclass(frozen=True)
class Block:
    language: str
    text: str
    notes: dict[str, str]
    """The comments above the block:

    not run: REASON      no test runs it
    first: COMMANDS      run before it, because it needs their results
    slow                 only `make test-slow` runs it
    background           a server, which is stopped after the last block of the page
    needs a sandbox      skipped if there is none
    """

    @property
    def runs(self) -> bool:
        return self.language in COMMANDS and "not run" not in self.notes


def text_of(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def blocks(text: str) -> list[Block]:
    """All fenced blocks of a page.

    Raises:
        ValueError: an unknown language, or an unknown comment above a block.
    """
    found = []
    for comments, language, inside in _FENCE.findall(text):
        notes = {}
        for line in comments.splitlines():
            note = _NOTE.fullmatch(line)
            if note is None or bool(note[2]) != (note[1] in _WITH_TEXT):
                raise ValueError(f"no test knows what this means above a block: {line}")
            notes[note[1]] = note[2] or ""
        if language not in COMMANDS + DATA:
            raise ValueError(f"a block says {language!r}; say one of {', '.join(COMMANDS + DATA)}")
        found.append(Block(language, inside, notes))
    return found
