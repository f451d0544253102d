"""Finds the program in a model's text.

Works on lines and regular expressions only: hostile text is never parsed in the trainer's process. Where the text
leaves a choice, several candidates come out, best first, and the sandboxed process takes the first that compiles.
"""

from __future__ import annotations

import re
import textwrap
from dataclasses import dataclass
from typing import Literal

Form = Literal["code", "body", "text"]

MAX_CHARACTERS = 400_000
_MAX_CUTS = 24
_FENCE = re.compile(r"^[ \t]{0,12}(```+|~~~+)[ \t]*([A-Za-z0-9_+#.-]*)[^`\n]*$")
_DEFINITION = re.compile(r"^(?:async[ \t]+def|def|class)[ \t]+\w+[ \t]*[(:]")
_PYTHON_TAGS = frozenset({"", "py", "python", "python3", "py3", "python2", "ipython"})
_CODE_LINE = re.compile(r"^(?:def|class|import|from|async def|@\w|if |for |while |[A-Za-z_]\w*\s*=[^=])")
_BODY_LINE = re.compile(
    r"^[ \t]*return\b|^[ \t]+(?:if |for |while |[A-Za-z_]\w*\s*(?:[-+*/|&]?=[^=]|\())", re.MULTILINE
)


@dataclass(frozen=True, slots=True)
class Extracted:
    """Possible programs in one text, best first. Each is the list of sources to run in order, and what to show."""

    alternatives: tuple[tuple[str, ...], ...]
    shown: tuple[str, ...]
    """Per alternative, the part that came from the text."""


def defines(source: str, name: str) -> bool:
    """True where a line at the margin defines ``name`` as a function, class or value."""
    pattern = rf"^(?:(?:async[ \t]+)?def|class)[ \t]+{re.escape(name)}\b|^{re.escape(name)}[ \t]*(?::[^=\n]*)?=[^=]"
    return re.search(pattern, source, re.MULTILINE) is not None


def _fences(text: str) -> list[tuple[str, str]]:
    """(tag, content) of each fenced block; the last one may lack its end."""
    found: list[tuple[str, str]] = []
    marker, tag, lines = "", "", list[str]()
    for line in text.split("\n"):
        match = _FENCE.match(line)
        if not marker and match:
            marker, tag, lines = match[1], match[2].lower(), []
        elif marker and line.strip().startswith(marker) and not line.strip().strip(marker[0]):
            found.append((tag, "\n".join(lines)))
            marker = ""
        elif marker:
            lines.append(line)
    if marker:
        found.append((tag, "\n".join(lines)))
    return [(tag, textwrap.dedent(content)) for tag, content in found if content.strip()]


def _pick_fence(text: str, names: tuple[str, ...]) -> list[str]:
    """Fenced blocks in order of preference: the last that defines all names, else the last that defines one, else the last."""
    fences = _fences(text)
    python = [content for tag, content in fences if tag in _PYTHON_TAGS]
    blocks = list(reversed(python or [content for _, content in fences]))
    complete = [b for b in blocks if all(defines(b, n) for n in names)]
    # Only blocks of the best class stand for the answer: an earlier draft does not replace a broken last version.
    some = [b for b in blocks if any(defines(b, n) for n in names)]
    return (complete or some or blocks)[:1]


def _between_markers(text: str) -> str:
    """Cut to what stands between the MBPP prompt's [BEGIN] and [DONE], where the text has them.

    After [BEGIN], a line that is nothing but [END] or [/BEGIN] ends the program as well: models close the bracket with
    what fits it, and neither is a statement of a program.
    """
    _, begun, body = text.split("[DONE]", 1)[0].rpartition("[BEGIN]")
    return re.split(r"^[ \t]*\[(?:END|/BEGIN)\][ \t]*$", body, maxsplit=1, flags=re.MULTILINE)[0] if begun else body


def _opened(text: str) -> str:
    """Add the opening fence to a program that has only a closing one; return other texts unchanged.

    Such a text has an odd number of fences, and the first of them is bare and follows a definition. Read as an opening
    fence, it would turn the words after it into a program.
    """
    lines = text.split("\n")
    fences = [i for i, line in enumerate(lines) if _FENCE.match(line)]
    if len(fences) % 2 == 0 or lines[fences[0]].strip().strip("`~"):
        return text
    if not any(_DEFINITION.match(line) for line in lines[: fences[0]]):
        return text
    start = next(i for i, line in enumerate(lines) if _CODE_LINE.match(line))
    return "\n".join([*lines[:start], lines[fences[0]].strip(), *lines[start:]])


def _from_prose(text: str) -> list[str]:
    """Programs in text without fences: from the first line of code, with fewer and fewer lines at the end."""
    lines = text.split("\n")
    start = next((i for i, line in enumerate(lines) if _CODE_LINE.match(line)), None)
    if start is None:
        return []
    lines = lines[start:]
    margins = [i for i in range(1, len(lines)) if lines[i].strip() and not lines[i][0].isspace()]
    ends = [len(lines), *reversed([i for i in margins if not _CODE_LINE.match(lines[i])])]
    return ["\n".join(lines[:end]) for end in ends[:_MAX_CUTS]]


def _humaneval_text(text: str, prompt: str, entry_point: str) -> Extracted:
    fenced = _pick_fence(text, (entry_point,))
    candidates = fenced or ([] if not defines(text, entry_point) else _from_prose(text))
    if candidates and defines(candidates[0], entry_point):
        # Imports and helpers that the prompt holds before its stub stay in force.
        stub = re.search(rf"^(?:async[ \t]+)?def[ \t]+{re.escape(entry_point)}\b", prompt, re.MULTILINE)
        preamble = prompt[: stub.start()] if stub else ""
        return Extracted(tuple((preamble, c) for c in candidates), tuple(candidates))
    body = candidates[0] if candidates else text.strip("\n")
    if not candidates and not _BODY_LINE.search(body):
        return Extracted((), ())
    indented = textwrap.indent(textwrap.dedent(body), "    ")
    return Extracted(((prompt + body,), (prompt.rstrip() + "\n" + indented,)), (body, body))


def extract(form: Form, completion: str, prompt: str, entry_point: str | None, names: tuple[str, ...]) -> Extracted:
    """Find the program in a completion.

    Args:
        form: ``code``: the completion is the program. ``body``: it continues ``prompt``. ``text``: a model's answer,
            with the program in a fence (the last Python one that defines what the tests call), between [BEGIN] and
            [DONE], or plain.
        completion: the model's text.
        prompt: the problem's prompt; code for HumanEval, not used for MBPP.
        entry_point: name of the function that a HumanEval prompt declares.
        names: names that the tests call.

    Returns:
        No alternative where the text holds no program.
    """
    completion = completion.replace("\r\n", "\n")
    if not completion.strip():
        return Extracted((), ())
    if form in ("code", "body"):
        before = prompt.replace("\r\n", "\n") if form == "body" else ""
        return Extracted(((before + completion,),), (completion,))
    text = _opened(_between_markers(completion))
    if entry_point and defines(prompt, entry_point):
        return _humaneval_text(text, prompt, entry_point)
    found = _pick_fence(text, names) or _from_prose(text)
    return Extracted(tuple((c,) for c in found), tuple(found))
