r"""Finds the answer in a response. The first rule that matches decides; ``docs/verify-math.md`` states them as policy.

1. Explicit answers: the last line that starts with ``Final answer:`` (or, inside a line, ``final answer is`` before a
   formula or number) and the last complete ``\boxed{...}``. The later of the two counts, so an answer followed by
   another does not count.
2. Fallbacks, for text that ended on its own and holds no explicit answer: the last ``#### x``, ``Answer: x`` or
   ``the answer is x``; then the last formula or number, whichever is later.

Text after an end-of-turn token is not the model's answer, nor is its thinking. A box that only shows the form
(``\boxed as asked``, ``\boxed{...}``) is no answer. Every search is linear in the length of the text, with bounded work
per match.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from selfcorrect.verify.math.normalise import one_width
from selfcorrect.verify.turns import own_text

Rule = Literal["final answer line", "box", "answer sentence", "last formula or number", "bare"]

_MAX_BOX_CHARS = 10_000
_MAX_BOXES_TRIED = 200
_MAX_CLAUSE_CHARS = 5_000
_TAIL_CHARS = 4_000
_MAX_TRIES = 20
"""Most candidates that are tried, from the end. A text with more of them repeats itself."""

_FINAL_LINE = re.compile(
    r"(?im)^(?:[^\w\n]{0,20}|[^\w\n]{0,10}\d{1,2}[.)][^\w\n]{0,6})(?:\\?text(?:bf)?\s?\{|<?(?:b|strong)>)?(?:the[ \t])?[*_`]{0,3}"
    r"(?:final[ \t\u00a0]{1,3}answer(?![a-z])|\u6700[\u7ec8\u7d42]\u7b54\u6848)"
)
_AFTER_LINE = re.compile(
    r"[^\w\n:=(|]{0,10}(?:\([^()\n:]{0,40}\)[^\w\n:=(|]{0,10}|(?:to|for|of|in)(?![a-z])[^\n:=]{0,60}?)?"
    r"(?:[:=|\u2192\u662f\u4e3a\u70ba]|->|(?<![a-z])is(?![a-z])|(?<=\s)[-\u2013\u2014](?=\s)|[*_`#]{0,4}[ \t]*\n|[ \t*_`]{1,6}(?=[-+]?[$\\\d]))",
    re.IGNORECASE,
)
"""What may be between the words and the answer. After a heading on a separate line there is nothing."""
_BOLD_END = re.compile(r"\A\s*(?:\}|</(?:b|strong)>)")
_AROUND_LINE = (("|", "|"), ("[", "]"), ("(", ")"), ("{", "}"), ("\u201c", "\u201d"), ('"', '"'), ("\u3010", "\u3011"))
_FINAL_PHRASE = re.compile(r"\bfinal answer[*_`]{0,3}(?::| is(?![a-z])| =)", re.IGNORECASE)
_PLACEHOLDER = re.compile(
    r"[\s.\u2026\u22ef?_]*|\\[lc]?dots|\\(?:square|quad|cdot|blank)|\\(?:phantom|hspace)\s?\{[^{}]*\}|\\text\s?\{[\s.?_]*\}"
    r"|[<\[($]*(?:\\text\s?\{)?(?:(?:the|your|my|an?|insert|put|final|numeric|numerical|correct)[ _])*"
    r"(?:answer|result|number|integer|solution|value|expression|content|\u7b54\u6848)s?(?:[ _](?:goes )?here)?\}?[>\])]?"
    r"|\\(?:checkmark|blacksquare|qed)",
    re.IGNORECASE,
)
"""The content of a box that shows the form instead of an answer."""
_BARE_BOX = re.compile(
    r"[-+]?[\d.][^\s$\\{}]{0,100}+(?! (?:times?|box|boxes)\b)|[A-Za-z](?=\s*(?:\$|\\[\])]|[.,]?\s*\Z))"
)
_NAMED_AGAIN = re.compile(r"[,;]? where ")
"""After ``\\boxed{x}``: the form is described, and x stands for an answer."""
_BOX = re.compile(r"\\(?:boxed|fbox)(?![A-Za-z])")
_GAP = r"(?:[\s~]|\\[,;: ]|\\q?quad)*"
_CONNECTIVE = re.compile(rf"{_GAP},?{_GAP}\\(?:text|mbox|textrm|mathrm)\s?\{{[\s,]*(?:and|or)[\s,]*\}}{_GAP}")
_COMMA = re.compile(rf"{_GAP},{_GAP}")
_SENTENCE = re.compile(
    r"####|\b[Aa]nswers?(?:\*\*)?\s{0,3}(?:is|are|:|=)(?![A-Za-z])|\bANSWER\s{0,3}(?::|IS\b)|\u7b54\u6848\s?[\u662f\u4e3a\u70ba:]"
)
_SENTENCE_END = re.compile(r"\.(?=\s|$|<)|[.\s]*\bI hope it is correct|\n\s*\n|(?<=[^\s:])\n")
_FILLERS = re.compile(
    r"(?:[\s*_:=]|the\s+(?:final\s+)?answer\s+is(?![a-z])|is(?![a-z])|(?:approximately|about|simply|equal\s+to|just|####)(?![a-z]))+",
    re.IGNORECASE,
)
_PLAIN_WORD = re.compile(r"(?<![\\A-Za-z{])[A-Za-z]{2,}(?![A-Za-z}])")
_DELIMITER = re.compile(r"\$\$|(?<!\\)\$|\\[\[\]()]")
_CLOSERS = {"$$": "$$", "$": "$", r"\(": r"\)", r"\[": r"\]"}
_ASIDE = re.compile(r"(?<=[\w*$.%]) \([^()]*\)")
_CIRCUMSTANCE = re.compile(
    r"\b(?:in|for|after|before|from|within|during|per|every|each|over|on|among|between|out of|of (?:the|all|those))\s+[*$\\(]{0,4}\Z",
    re.IGNORECASE,
)
"""What stands before a number that says when, where or for whom: an answer only if no other number is there."""
_COMPARED = re.compile(r"[*$\\)]{0,4}\s+(?:\w+\s+)?(?:more|less|fewer)\s+than\b", re.IGNORECASE)
_DENIED = re.compile(
    r"(?:(?:\b(?:not|cannot|never)|n['\u2019]t)(?:\s+(?:be|is|equals?|to|exactly|quite|really|simply|the|answer|correct)){0,4}"
    r"|\b(?:more|less|fewer|greater|smaller|larger|other|rather) than|\bas (?:many|much) as|\b(?:root|square|cube|power) of"
    r"|\b(?:half|third|quarter|fourth|fifth|tenth|multiple|factor)s? of|\b(?:half|double|twice|triple|times))\s+[*$\\(]{0,4}\Z",
    re.IGNORECASE,
)
"""What stands before a number that is not the value: it is denied, or the value is worked out from it."""
_REVOKED = re.compile(r"[*$\\)]{0,4}\s+(?:is|was|would be)\s+(?:not|wrong|incorrect|false)\b", re.IGNORECASE)
_LONGEST_CONTEXT = 60
_PICTURES = re.compile("[\\s\u2600-\u27bf\ufe0f\U0001f300-\U0001faff]+\\Z")
_IN_ANGLES = re.compile(r"(?:<[a-z]{1,20}>|<)([-+]?\d[^<>]{0,60})(?:</[a-z]{1,20}>|>)")
"""The prompt shows the form of the line as ``<number>``."""
_NUMBER = re.compile(r"(?<![A-Za-z0-9_.,])-?\$?(?:\d+(?:,\d+)*(?:\.\d+)?|\.\d+)(?:\s?/\s?\d+(?!\w|\.\d))?(?:\s?\\?%)?")


@dataclass(frozen=True, slots=True)
class Found:
    """An answer as written, without its box or sentence, and the rule that found it."""

    answer: str
    rule: Rule
    whole: bool = True
    """False if the text ends within the answer's line, so that a cut text may contain only its start."""


@dataclass(frozen=True, slots=True)
class _Box:
    start: int
    end: int
    content: str


def _balanced(text: str, start: int) -> int | None:
    """Index after the brace that closes the one at ``start``; None when the text ends first."""
    depth, position = 0, start
    limit = min(len(text), start + _MAX_BOX_CHARS)
    while position < limit:
        char = text[position]
        if char == "\\":
            position += 1
        elif char == "{":
            depth += 1
        elif char == "}":
            depth -= 1
            if depth == 0:
                return position + 1
        position += 1
    return None


def _box_at(text: str, start: int, after_name: int) -> _Box | None:
    position = after_name
    while text[position : position + 1] == " ":
        position += 1
    if text[position : position + 1] == "{":
        end = _balanced(text, position)
        return None if end is None else _Box(start, end, text[position + 1 : end - 1].strip())
    word = _BARE_BOX.match(text, position)
    return _Box(start, position + len(word.group()), word.group()) if word else None


def _shows_the_form(text: str, box: _Box) -> bool:
    """Whether a box is named or shown as a form, and holds no answer."""
    described = len(box.content) == 1 and box.content.isalpha() and _NAMED_AGAIN.match(text, box.end)
    return bool(described) or (len(box.content) <= 80 and _PLACEHOLDER.fullmatch(box.content) is not None)


def _boxes_from_end(text: str) -> Iterator[_Box]:
    """Complete, non-empty boxes, the last one first."""
    stop = len(text)
    for _ in range(_MAX_BOXES_TRIED):
        start = max(text.rfind(r"\boxed", 0, stop), text.rfind(r"\fbox", 0, stop))
        if start < 0:
            return
        name = _BOX.match(text, start)
        box = _box_at(text, start, name.end()) if name else None
        if box is not None and not _shows_the_form(text, box):
            yield box
        stop = start


def last_box(text: str) -> _Box | None:
    r"""The last box. Boxes that a formula joins with ``\text{and}`` or ``\text{or}`` are one answer.

    Boxes that merely follow one another are never joined: the last one is the answer.
    """
    boxes = _boxes_from_end(text)
    last = next(boxes, None)
    if last is None:
        return None
    contents, first, joined = [last.content], last, False
    for previous in boxes:
        between = text[previous.end : first.start] if first.start - previous.end <= 80 else "x"
        if not _CONNECTIVE.fullmatch(between) and not (joined and _COMMA.fullmatch(between)):
            break
        joined = True
        contents.append(previous.content)
        first = previous
    return _Box(first.start, last.end, ", ".join(reversed(contents)))


def _last(matches: Iterator[re.Match[str]]) -> Iterator[re.Match[str]]:
    """The last matches, in reverse order."""
    return reversed(deque(matches, maxlen=_MAX_TRIES))


def _cut_sentence(clause: str) -> str:
    """The clause up to the end of its first sentence."""
    end = _SENTENCE_END.search(clause)
    return clause[: end.start()] if end and end.start() else clause


@dataclass(frozen=True, slots=True)
class Clause:
    """What a final-answer line says, as written."""

    start: int
    """Where the line starts."""
    text: str
    whole: bool
    """Whether the text continues on another line."""


def final_clause(text: str) -> Clause | None:
    """The last line that starts with ``Final answer:``; its answer may be on the next lines."""
    for match in _last(_FINAL_LINE.finditer(text)):
        rest = _AFTER_LINE.match(text, match.end(), match.end() + 120)
        if rest:
            start = rest.end()
            clause = _clause(_BOLD_END.sub("", text[start : start + _MAX_CLAUSE_CHARS]).lstrip(" \t*_:="))
            if clause:
                end = text.find(clause, start) + len(clause)
                for opener, closer in _AROUND_LINE:
                    opened = opener in match.group() or (opener == "|" and rest.group().endswith("|"))
                    if opened and clause.count(closer) > (clause.count(opener) if opener != closer else 0):
                        # A line in brackets or quotes, or the row of a table.
                        clause = clause.rpartition(closer)[0].rstrip()
                return Clause(match.start(), clause, "\n" in text[end:])
    return None


def _final_phrase(text: str) -> Clause | None:
    """The last ``final answer is``/``Final Answer:`` inside a line that continues with a formula."""
    for match in _last(_FINAL_PHRASE.finditer(text)):
        after = text[match.end() : match.end() + _MAX_CLAUSE_CHARS]
        clause = _without_fillers(_clause(after))
        if clause[:1] in tuple("$\\([{-+.0123456789"):
            return Clause(match.start(), _cut_sentence(clause), "\n" in after[after.find(clause) + len(clause) :])
    return None


def _clause(text: str) -> str:
    """The answer at the start of ``text``: up to the end of its line, or of the display formula that begins there."""
    body = re.sub(r"\A\s*(?:(?:[-=*_]{3,}|`{3,}\w*)[ \t]*\n\s*)?", "", text)  # the rule or the fence under a heading
    for opener in (r"\[", "$$", r"\begin"):
        if body.startswith(opener):
            closer = {r"\[": r"\]", "$$": "$$"}.get(opener, r"\end")
            end = body.find(closer, len(opener))
            if end >= 0:
                line_end = body.find("\n", end)
                return body[: line_end if line_end >= 0 else len(body)]
    line = body.split("\n", 1)[0]
    while line.count("{") > line.count("}") and len(line) < len(body):
        line = body[: len(line) + 1] + body[len(line) + 1 :].split("\n", 1)[0]
    return line


def _formulas(text: str) -> Iterator[tuple[int, int, str]]:
    """(start, end, content) of the formulas, in order; a formula in dollar signs does not extend across a blank
    line."""
    position = 0
    while opening := _DELIMITER.search(text, position):
        closer = _CLOSERS.get(opening.group())
        end = text.find(closer, opening.end()) if closer else -1
        content = text[opening.end() : end] if end >= 0 else ""
        if content.strip() and "\n\n" not in content:
            assert closer is not None
            yield opening.start(), end + len(closer), content.strip()
            position = end + len(closer)
        else:
            position = opening.end()


def _last_formula_or_number(text: str) -> str | None:
    tail = text[-_TAIL_CHARS:]
    formulas = list(_formulas(tail))
    covered = formulas[-1][1] if formulas else 0
    numbers = [m for m in _NUMBER.finditer(tail, covered) if any(c.isdigit() for c in m.group())]
    if numbers:
        return numbers[-1].group().strip()
    return formulas[-1][2] if formulas else None


def _stated(clause: str) -> str | None:
    """The last formula or number that a sentence states as its value; None if it states none.

    What is in brackets explains the value. A number after ``in`` or ``for`` counts only if there is no other, and one
    that the sentence denies or works with never does.
    """
    outside = _ASIDE.sub("", clause)
    clause = outside if _NUMBER.search(outside) else clause
    formulas = list(_formulas(clause))
    numbers = [
        (m.start(), m.end(), m.group().strip())
        for m in _NUMBER.finditer(clause)
        if any(c.isdigit() for c in m.group()) and not any(start <= m.start() < end for start, end, _ in formulas)
    ]
    best, spare = None, None
    for start, end, content in sorted([*formulas, *numbers]):
        before, after = clause[max(0, start - _LONGEST_CONTEXT) : start], clause[end : end + _LONGEST_CONTEXT]
        if _DENIED.search(before) or _REVOKED.match(after):
            continue
        if _CIRCUMSTANCE.search(before) or _COMPARED.match(after):
            spare = content
        else:
            best = content
    return best or spare


def _without_fillers(clause: str) -> str:
    filler = _FILLERS.match(clause)
    return clause[filler.end() :] if filler else clause


def _tidy(clause: str) -> str | None:
    """The answer within a clause: its box, else the clause without fillers, or in longer prose its last formula or
    number."""
    box = last_box(clause)
    if box is not None:
        return box.content
    hope = clause.find("I hope it is correct")
    clause = clause[:hope] if hope >= 0 else clause
    clause = _without_fillers(_PICTURES.sub("", clause).strip().rstrip(".*_ ").strip())
    clause = shown[1] if (shown := _IN_ANGLES.fullmatch(clause)) else clause
    words = _PLAIN_WORD.findall(re.sub(r"\\text\s?\{[^{}]*\}", "", clause))
    # Numbers joined by such words are candidates, or parts of one answer: the last alone is not what it says.
    joined = {"or", "either", "and", "not"} & {word.lower() for word in words} and len(_NUMBER.findall(clause)) > 1
    prose = len(words) >= 3 and not joined
    return (_stated(clause) if prose else None) or clause or None


def find_answer(text: str, *, fallbacks: bool = True) -> Found | None:
    """The answer in a response, or None.

    Args:
        fallbacks: whether rule 2 counts; off for text that the token cap cut.
    """
    text = one_width(own_text(text))
    box, line = last_box(text), final_clause(text)
    phrase = _final_phrase(text)
    if phrase is not None and (line is None or phrase.start > line.start + len(line.text) + 40):
        line = phrase
    if line is not None and (box is None or box.start < line.start) and (answer := _tidy(line.text)):
        return Found(answer, "final answer line", line.whole)
    if box is not None:
        in_line = line is not None and box.start < line.start + len(line.text) + 40
        return Found(box.content, "final answer line" if in_line else "box")
    if not fallbacks:
        return None
    tail = text[-4 * _TAIL_CHARS :]
    for match in _last(_SENTENCE.finditer(tail)):
        rest = tail[match.end() : match.end() + _MAX_CLAUSE_CHARS]
        if answer := _tidy(_cut_sentence(_clause(rest.lstrip(" *_:")))):
            return Found(answer, "answer sentence")
    answer = _last_formula_or_number(text)
    return Found(answer, "last formula or number") if answer else None


def bare_answer(text: str) -> Found | None:
    """The answer in a text that is the answer itself: the content of its box if it has one, else the whole text."""
    box = last_box(text)
    answer = box.content if box is not None else text.strip()
    return Found(answer, "bare") if answer else None
