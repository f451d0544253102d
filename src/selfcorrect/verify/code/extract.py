"""Finds the program in a model's text.

Works on lines and regular expressions only: hostile text is never parsed in the trainer's process. If a text is
ambiguous, there are several candidates, best first, and the sandboxed process takes the first one that compiles.

Fences and markers inside a triple-quoted string belong to the program. In a text that mixes prose and code it is
uncertain whether a line is inside one. So if this rule makes a difference, the text is read both ways.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

from selfcorrect.verify.turns import own_text

Form = Literal["code", "body", "text"]

MAX_CHARACTERS = 400_000
_MAX_CUTS = 24
_MAX_NESTING = 4
_FENCE = re.compile(
    r"^[ \t]{0,12}(?:(?:[-*+]|\d{1,3}[.)])[ \t]{1,4})?(`{3,}+|~{3,}+)[ \t]*+([A-Za-z0-9_+#.-]*+)[^`\n]*+$"
)
_ONE_LINE_FENCE = re.compile(r"^[ \t]{0,12}(`{1,8})(?:(?:python3?|py)[ \t]+)?([^`\n]++)\1[ \t]*$")
_DEFINITION = re.compile(r"^(?:async[ \t]+def|def|class)[ \t]+\w+[ \t]*[(:]")
_TEXT_TAGS = frozenset({"markdown", "md", "text", "txt", "plaintext", "plain", "quote", "output", "answer"})
_PYTHON_TAG = re.compile(r"(?:i?py(?:thon)?[0-9.]*|sage|)")
_BEGIN = re.compile(r"[ \t>*_`]{0,8}(?:\[ ?(?:BEGIN|PYTHON|CODE) ?\]|<(?:begin|python|code|pre|answer|solution|\|begin_of_solution\|)>)[ \t*_`:.]{0,8}", re.I)  # fmt: skip
_DONE = re.compile(r"[ \t>*_`]{0,8}\[ ?DONE ?\][ \t*_`:.]{0,8}", re.IGNORECASE)
_END = re.compile(
    r"[ \t>*_`]{0,8}(?:\[ ?(?:DONE|END|/ ?(?:BEGIN|PYTHON|CODE)) ?\]|</(?:begin|python|code|pre|answer|solution)>|<\|end_of_solution\|>)[ \t*_`:.]{0,8}",
    re.IGNORECASE,
)
"""A marker counts only on a line of its own. All except [DONE] end a program only after a marker has begun it."""
_LONGEST_MARK = 60
_MARK_WORD = re.compile(r"(?<!\[)(?<!\[ )\b(?:BEGIN|PYTHON|CODE|DONE|END)\b(?! ?\])", re.IGNORECASE)
_BINDS = re.compile(
    r"^[ \t]*(?:(?:async[ \t]+)?def[ \t]+\w+[ \t]*\(|from[ \t]+[\w.]+[ \t]+import\b|(?:global|nonlocal|import)[ \t])"
    r"|\b(?:for|lambda|as)[ \t(]+(?:[\w*]+[ \t]*,[ \t(]*){0,8}\**$"
)
"""What stands before a name that a line of code binds."""
_LONGEST_BINDING = 1000
_INLINE_BEGIN = re.compile(r"[ \t]{0,8}\[(?:BEGIN|PYTHON)\][ \t]{0,8}")
_STRONG_LINE = re.compile(r"^(?:def|class|import|async def)\s+\w|^from\s+[\w.]+\s+import\b|^@\w")
_CODE_LINE = re.compile(r"^(?:def|class|import|from|async def|@\w|if |for |while |[A-Za-z_]\w*\s*=[^=])")
_BODY_LINE = re.compile(
    r"^[ \t]*return\b|^[ \t]+(?:if |for |while |[A-Za-z_]\w*\s*(?:[-+*/|&]?=[^=]|\())", re.MULTILINE
)
_PROSE = re.compile(r"[A-Z][\w'\u2019]*(?: [\w'\u2019,-]+){3}")
_STRING = re.compile(r"#[^\n]*|'''|\"\"\"|'(?:\\.|[^'\\\n])*'?|\"(?:\\.|[^\"\\\n])*\"?")
_INVISIBLE = "\ufeff\u200b\u200c\u200d\u2060\u00ad"
_HIDDEN_MARGIN = re.compile(rf"^[{_INVISIBLE}]+", re.MULTILINE)
_CLEANED = str.maketrans(
    dict.fromkeys(_INVISIBLE, "")
    | dict.fromkeys("\u00a0\u2002\u2003\u2009\u202f\u3000", " ")
    | {"\u2028": "\n", "\u2029": "\n", "\u2018": "'", "\u2019": "'", "\u201c": '"', "\u201d": '"', "\u2212": "-"}
)


@dataclass(frozen=True, slots=True)
class Extracted:
    """Possible programs in one text, best first. Each has a list of sources to run in order, and a text to show."""

    alternatives: tuple[tuple[str, ...], ...]
    shown: tuple[str, ...]
    """For each alternative, the part that came from the text."""


@dataclass(slots=True)
class _Section:
    """The text between two markers."""

    begun: bool = False
    ended: bool = False
    plain: list[str] = field(default_factory=list)
    """Lines outside fences."""
    blocks: list[tuple[str, list[str]]] = field(default_factory=list)
    """(tag, lines) of each fenced block; the last one may lack its end."""


@dataclass(frozen=True, slots=True)
class _Wanted:
    """What a program has to define, and the prompt that it may continue."""

    names: tuple[str, ...]
    prompt: str = ""
    entry_point: str = ""


def defines(source: str, name: str) -> bool:
    """True if an unindented line defines ``name`` as a function, class or value."""
    pattern = rf"^(?:(?:async[ \t]+)?def|class)[ \t]+{re.escape(name)}\b|^{re.escape(name)}[ \t]*(?::[^=\n]*)?=[^=]"
    return re.search(pattern, source, re.MULTILINE) is not None


def _quote_after(line: str, quote: str) -> str:
    """The triple quote that is open after a line of code; empty if none is."""
    position = 0
    while True:
        if quote:
            end = line.find(quote, position)
            while end > 0 and line[end - 1] == "\\":
                end = line.find(quote, end + 1)
            if end < 0:
                return quote
            position, quote = end + 3, ""
        match = _STRING.search(line, position)
        if match is None:
            return ""
        position = match.end()
        quote = match.group() if match.group() in ("'''", '"""') else ""


def _own_names(lines: list[str]) -> set[str]:
    """Names of the program that are spelled like the word in a mark: ``arr[end]`` ends nothing."""
    names = set()
    for line in lines:
        here = line[:_LONGEST_BINDING]
        for word in _MARK_WORD.finditer(here):
            before, after = here[: word.start()], here[word.end() : word.end() + 1]
            parameter = before != "" and not before.strip() and after in (",", ":")
            if parameter or "=" in here[word.end() :] or _BINDS.search(before):
                names.add(word.group())
    return names


class _Reader:
    """Reads a text line by line into sections.

    Args:
        names: see ``_own_names``.
    """

    def __init__(self, strings: bool, names: set[str]) -> None:
        self.strings = strings
        self.names = names
        self.sections = [_Section()]
        self.block: list[str] | None = None
        self.marker = ""
        """The fence that opened ``block``."""
        self.quote = ""
        """The triple-quoted string that the last line left open."""
        self.in_code = False
        self.defined = False
        self.fences = 0
        self.first_closes = False
        """The first fence is bare and follows a definition."""

    def read(self, lines: list[str]) -> bool:
        """Read all lines. False if a triple-quoted string never ends."""
        for line in lines:
            whole = self.block is not None or self.quote
            for part in [line] if whole else _parts(line, self.sections[-1].begun, self.names):
                self._take(part)
        if self.block is not None and not self.quote:
            # A closing fence may be glued to the last line of code, or be missing before prose.
            for i, line in enumerate(self.block):
                if line.rstrip().endswith(self.marker):
                    self.sections[-1].plain += self.block[i + 1 :]
                    self.block[i:] = [line.rstrip().removesuffix(self.marker)]
                    break
                if i and not self.block[i - 1].strip() and _PROSE.match(line):
                    self.sections[-1].plain += self.block[i:]
                    del self.block[i:]
                    break
        return not self.quote

    def _take(self, line: str) -> None:
        here = self.sections[-1]
        fence = None if self.quote else _FENCE.match(line)
        if fence:
            self.fences += 1
            self.first_closes |= self.fences == 1 and self.defined and not line.strip().strip("`~")
        if self.block is not None:
            bare = line.strip()
            after = bare.lstrip(self.marker[0])
            holds_blocks = here.blocks[-1][0] in _TEXT_TAGS or not any(map(str.strip, self.block))
            if self.quote or not bare.startswith(self.marker) or (after and holds_blocks):
                self.block.append(line)
                self.quote = _quote_after(line, self.quote) if self.strings else ""
                return
            self.block, self.in_code = None, False
            if fence and fence[2]:
                self._open(fence)
            else:
                here.plain += [after] if after else []
        elif fence:
            self._open(fence)
        elif not self.quote and self._is_mark(line, _BEGIN):
            self.sections.append(_Section(begun=True))
            self.in_code = False
        elif not self.quote and self._is_mark(line, _END if here.begun else _DONE):
            here.ended = True
            here.plain.append("")
            self.sections.append(_Section())
            self.in_code = False
        else:
            self.defined = self.defined or _DEFINITION.match(line) is not None
            self.in_code = self.in_code or _CODE_LINE.match(line) is not None
            self.quote = _quote_after(line, self.quote) if self.strings and self.in_code else ""
            here.plain.append(line)

    def _open(self, fence: re.Match[str]) -> None:
        self.block, self.marker = [], fence[1]
        self.sections[-1].blocks.append((fence[2].lower(), self.block))

    def _is_mark(self, line: str, mark: re.Pattern[str]) -> bool:
        if len(line) > _LONGEST_MARK or not mark.fullmatch(line):
            return False
        # Of the program's own name, and indented, it is a list in the middle of an expression.
        return not line[0].isspace() or line.strip().strip("[ ]") not in self.names


def _parts(line: str, begun: bool, names: set[str]) -> list[str]:
    """A line outside fences and strings, split so that fences and markers are on separate lines from code."""
    fence = _ONE_LINE_FENCE.match(line)
    if fence and _CODE_LINE.match(fence[2].strip()):
        return ["```", fence[2].strip(), "```"]
    begin = _INLINE_BEGIN.match(line)
    if begin and _CODE_LINE.match(line[begin.end() :]):
        return ["[BEGIN]", *_parts(line[begin.end() :], True, names)]
    code, bracket, mark = line.rpartition("[")
    if not code.strip() or mark.partition("]")[0].strip() in names:
        return [line]
    # Without a mark at the start, ``flags[DONE]`` is an item.
    ends = _END.fullmatch(bracket + mark) if begun else code.endswith(" ") and _DONE.fullmatch(bracket + mark)
    if ends and not any(part.start() <= len(code) < part.end() for part in _STRING.finditer(line)):
        return [code.rstrip(), bracket + mark]
    return [line]


def _sections(text: str, strings: bool) -> list[_Section]:
    """The sections of a text; none if a triple-quoted string never ends.

    Args:
        strings: whether fences and markers inside triple-quoted strings belong to the program.
    """
    lines = text.split("\n")
    names = _own_names(lines)
    reader = _Reader(strings, names)
    whole = reader.read(lines)
    if whole and reader.first_closes and reader.fences % 2:
        # The first fence closes what none has opened. Read as an opening fence, it would turn the words after it into a
        # program: one is put where the code begins.
        start = next(i for i, line in enumerate(lines) if _CODE_LINE.match(line))
        marker = next(line.strip() for line in lines if _FENCE.match(line))
        reader = _Reader(strings, names)
        whole = reader.read([*lines[:start], marker, *lines[start:]])
    return reader.sections if whole else []


def _programs(blocks: list[tuple[str, list[str]]], strings: bool, depth: int = 0) -> Iterator[tuple[str, str]]:
    """(tag, program) of each block. A block of Markdown, or one that begins with a fence, contains blocks itself."""
    for tag, lines in blocks:
        first = next((line for line in lines if line.strip()), "")
        if depth < _MAX_NESTING and (tag in _TEXT_TAGS or _FENCE.match(first)):
            inner = [b for s in _sections("\n".join(lines), strings) for b in s.blocks]
            if inner:
                yield from _programs(inner, strings, depth + 1)
                continue
        kept = list(lines)
        while kept and (not kept[0].strip() or _BEGIN.fullmatch(kept[0])):
            del kept[0]
        while kept and (not kept[-1].strip() or _END.fullmatch(kept[-1])):
            last = kept.pop()
            if not last.strip() and not any(_END.fullmatch(line) for line in kept[-3:]):
                kept.append(last)
                break
        if any(line.strip() for line in kept):
            yield tag, textwrap.dedent("\n".join(kept))


def _pick_fence(section: _Section, names: tuple[str, ...], strings: bool) -> list[str]:
    """The last fenced block that defines all names, else the last that defines one, else the last."""
    fences = list(_programs(section.blocks, strings))
    python = [content for tag, content in fences if _PYTHON_TAG.fullmatch(tag)]
    blocks = list(reversed(python or [content for _, content in fences]))
    complete = [b for b in blocks if all(defines(b, n) for n in names)]
    # Only blocks of the best class stand for the answer: an earlier draft does not replace a broken last version.
    some = [b for b in blocks if any(defines(b, n) for n in names)]
    return (complete or some or blocks)[:1]


def _from_prose(lines: list[str]) -> list[str]:
    """Candidate programs in text without fences: each starts at the first line of code, and has fewer lines at the end
    than the one before."""
    found: list[str] = []
    starts = [next((i for i, line in enumerate(lines) if p.match(line)), None) for p in (_CODE_LINE, _STRONG_LINE)]
    for start in dict.fromkeys(s for s in starts if s is not None):
        part = lines[start:]
        margins = [i for i in range(1, len(part)) if part[i].strip() and not part[i][0].isspace()]
        ends = [len(part), *reversed([i for i in margins if not _CODE_LINE.match(part[i])])]
        found += ["\n".join(part[:end]) for end in ends[:_MAX_CUTS]]
    return found


def _best(sections: list[_Section], wanted: _Wanted, strings: bool) -> tuple[_Section | None, list[str]]:
    """The section with the answer, and the programs in it, best first.

    Sections that define what the tests call come first. Among those, a section between two markers is preferred, then
    one after an opening marker. Of several such sections the last counts; of several without an opening marker, the first.
    """
    best: tuple[tuple[int, bool, bool, int], _Section, list[str]] | None = None
    for index, section in enumerate(sections):
        found = _pick_fence(section, wanted.names, strings)
        if not found and (not wanted.prompt or any(defines("\n".join(section.plain), n) for n in wanted.names)):
            found = _from_prose(section.plain)
        if found:
            defined = [defines(found[0], name) for name in wanted.names]
            score = 2 if all(defined) else int(any(defined))
            rank = score, section.begun and section.ended, section.begun, index if section.begun else -index
            if best is None or rank > best[0]:
                best = rank, section, found
    return (best[1], best[2]) if best else (None, [])


def _stub(prompt: str, name: str) -> re.Match[str] | None:
    """The line of a prompt that declares ``name``, with any indentation."""
    return re.search(rf"^([ \t]*)(?:async[ \t]+def|def|class)[ \t]+{re.escape(name)}\b", prompt, re.MULTILINE)


def _completed(sections: list[_Section], wanted: _Wanted, strings: bool) -> Iterator[tuple[tuple[str, ...], str]]:
    """Programs that complete a prompt with the entry point, each as (sources, the part of the text)."""
    prompt = wanted.prompt
    path = re.findall(r"\w+", wanted.entry_point)
    root, method = path[0], path[-1]
    candidates = _best(sections, wanted, strings)[1]
    stub = _stub(prompt, root)
    if candidates and defines(candidates[0], root):
        # Imports and helpers that the prompt holds before its stub stay in force.
        preamble = prompt[: stub.start()] if stub else ""
        yield from (((preamble, c), c) for c in candidates)
        return
    inner = _stub(prompt, method)
    if candidates and inner and inner[1] and defines(candidates[0], method):
        # The method alone, without its class.
        yield from ((((prompt[: inner.start()] + textwrap.indent(c, inner[1])),), c) for c in candidates)
        return
    plain = sorted(sections, key=lambda s: (-s.begun, -s.ended))
    texts = ["\n".join(s.plain).strip("\n") for s in plain]
    body = candidates[0] if candidates else next((t for t in texts if _BODY_LINE.search(t)), "")
    if body:
        margin = (inner[1] if inner else "") + "    "
        yield (prompt + body,), body
        yield (prompt.rstrip() + "\n" + textwrap.indent(textwrap.dedent(body), margin),), body


def _found(text: str, wanted: _Wanted, strings: bool) -> Iterator[tuple[tuple[str, ...], str]]:
    """The programs in one reading of a text, best first, each as (sources, text to show)."""
    sections = _sections(text, strings)
    if wanted.prompt:
        yield from _completed(sections, wanted, strings)
    else:
        yield from (((program,), program) for program in _best(sections, wanted, strings)[1])


def extract(form: Form, completion: str, prompt: str, entry_point: str | None, names: tuple[str, ...]) -> Extracted:
    """Find the program in a completion.

    Args:
        form: ``code``: the completion is the program. ``body``: it continues ``prompt``. ``text``: a model's answer,
            with the program in a fence (the last Python one that defines what the tests call), between [BEGIN] and
            [DONE] on lines of their own, or plain.
        completion: the model's text.
        prompt: the problem's prompt; code for HumanEval, not used for MBPP.
        entry_point: name of the function that a HumanEval prompt declares, or an expression such as
            ``Solution().solve`` that reads it from the class that the prompt declares.
        names: names that the tests call.

    Returns:
        The candidates; none if the text contains no program.
    """
    completion = completion.replace("\r\n", "\n")
    if not completion.strip():
        return Extracted((), ())
    if form in ("code", "body"):
        before = prompt.replace("\r\n", "\n") if form == "body" else ""
        found: list[tuple[tuple[str, ...], str]] = [((before + completion,), completion)]
    else:
        text = _HIDDEN_MARGIN.sub("", own_text(completion, code=True).replace("\r", "\n"))
        root = re.match(r"\w*", entry_point or "")
        declared = entry_point and root and defines(prompt, root[0])
        wanted = _Wanted((root[0],), prompt, entry_point) if declared and root and entry_point else _Wanted(names)
        found = list(_found(text, wanted, strings=True))
        if "'''" in text or '"""' in text:
            found += [reading for reading in _found(text, wanted, strings=False) if reading not in found]
    # Characters that a chat interface puts into code, and that no program can hold outside its strings.
    cleaned = [(tuple(source.translate(_CLEANED) for source in sources), part) for sources, part in found]
    found += [reading for reading in cleaned if reading not in found]
    return Extracted(tuple(sources for sources, _ in found), tuple(part for _, part in found))
