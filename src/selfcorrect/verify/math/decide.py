"""Gold string against given string, without extraction: the one decision procedure, run here and in the worker."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from selfcorrect.verify.math.compare import Comparer, ExactOnly, Scalars, Ternary
from selfcorrect.verify.math.nodes import CannotParse, Node, Num, TooHard
from selfcorrect.verify.math.normalise import normalise, string_key, word_key
from selfcorrect.verify.math.structures import Text, parse
from selfcorrect.verify.math.tokens import MAX_ANSWER_CHARS


@dataclass(frozen=True, slots=True)
class Decision:
    """``equal`` is None when only the worker can tell."""

    equal: Ternary
    how: str
    parsed: bool = True
    """False when the None comes from text outside our grammar, which only math-verify may read."""


def _parsed(text: str) -> tuple[Node | None, Literal["", "grammar", "size"]]:
    try:
        return parse(text), ""
    except CannotParse:
        return None, "grammar"
    except (TooHard, RecursionError):
        return None, "size"


def _decimal_comma(gold: Node, given: str) -> str | None:
    """Policy: beside a gold decimal, ``2,74`` is 2.74 unless it reads as thousands."""
    if isinstance(gold, Num) and gold.value.denominator != 1 and re.fullmatch(r"-?\d+,(?:\d{1,2}|\d{4,})", given):
        return given.replace(",", ".")
    return None


def _is_word(text: str) -> bool:
    return bool(re.fullmatch(r"[A-Za-z][A-Za-z ]{3,}", text))


def decide(gold: str, given: str, scalars: Scalars | None = None, *, shortcut: bool = True) -> Decision:
    """Whether ``given`` is an answer equal to ``gold``; neither holds a box or prose around the answer.

    Args:
        scalars: decides symbolic questions; without it they are left open (``equal`` is None).
        shortcut: accept equal strings at once. Off only in the round-trip check of the rest.
    """
    if len(given) > 2 * MAX_ANSWER_CHARS or len(gold) > 2 * MAX_ANSWER_CHARS:
        return Decision(shortcut and gold.strip() == given.strip(), "longer than any answer")
    a, b = normalise(gold), normalise(given)
    if shortcut and string_key(a) == string_key(b) and a:
        return Decision(True, "equal strings")
    (gold_tree, gold_fault), (given_tree, given_fault) = _parsed(a), _parsed(b)
    if "size" in (gold_fault, given_fault):
        return Decision(False, "over the size limits")
    if isinstance(gold_tree, Text) or isinstance(given_tree, Text) or (_is_word(a) and _is_word(b)):
        same = word_key(a).casefold() == word_key(b).casefold() and bool(re.search(r"[^\W\d_]", word_key(a)))
        if same or gold_tree is None or given_tree is None:
            return Decision(same, "words")
    if gold_tree is None or given_tree is None:
        if not shortcut and a == b:
            return Decision(True, "equal strings outside the grammar")
        return Decision(None, "outside the grammar", parsed=False)
    decimal = _decimal_comma(gold_tree, b)
    if decimal is not None:
        given_tree = parse(decimal)
    try:
        equal = Comparer(scalars or ExactOnly()).equal(gold_tree, given_tree)
    except (TooHard, RecursionError):
        return Decision(False, "over the size limits")
    return Decision(equal, "needs symbolic work" if equal is None else "compared by value")
