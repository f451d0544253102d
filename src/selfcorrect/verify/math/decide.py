"""Compares a gold answer with a given one, both without prose around them. Runs in the caller and in the worker."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from selfcorrect.verify.math.compare import Comparer, Scalars, Ternary, same_words
from selfcorrect.verify.math.exact import key
from selfcorrect.verify.math.fallback import allowed
from selfcorrect.verify.math.nodes import CannotParse, Node, Num, Text, TooHard
from selfcorrect.verify.math.normalise import normalise, string_key, word_key
from selfcorrect.verify.math.structures import parse
from selfcorrect.verify.math.tokens import MAX_ANSWER_CHARS


@dataclass(frozen=True, slots=True)
class Decision:
    """``equal`` is None when only the worker can tell."""

    equal: Ternary
    how: str
    for_math_verify: bool = False
    """Whether ``equal`` is None because of a formula outside the grammar that math-verify may decide."""


def _parsed(text: str) -> Node | Literal["not in the grammar", "too large"]:
    try:
        return parse(text)
    except CannotParse:
        return "not in the grammar"
    except (TooHard, RecursionError):
        return "too large"


_LETTERS_ONLY = re.compile(r"[A-Za-z][A-Za-z ]{3,}")


def decide(  # noqa: PLR0911  # one return per reason
    gold: str, given: str, scalars: Scalars | None = None, *, shortcut: bool = True
) -> Decision:
    """Whether ``given`` equals ``gold``. Neither may contain a box or prose around the answer.

    Args:
        scalars: decides symbolic questions; without it they are left open (``equal`` is None).
        shortcut: accept equal strings at once. It is off only to test the rest on equal strings.
    """
    if len(given) > 2 * MAX_ANSWER_CHARS or len(gold) > 2 * MAX_ANSWER_CHARS:
        return Decision(shortcut and gold.strip() == given.strip(), "longer than any answer")
    a, b = normalise(gold), normalise(given)
    if shortcut and string_key(a) == string_key(b) and a:
        return Decision(True, "equal strings")
    gold_tree, given_tree = _parsed(a), _parsed(b)
    if "too large" in (gold_tree, given_tree):
        return Decision(False, "over the size limits")
    if (
        isinstance(gold_tree, Text)
        or isinstance(given_tree, Text)
        or (_LETTERS_ONLY.fullmatch(a) and _LETTERS_ONLY.fullmatch(b))
    ):
        words = word_key(a)
        same = bool(re.search(r"[^\W\d_]", words)) and same_words(words, word_key(b), isinstance(gold_tree, Text))
        if same or isinstance(gold_tree, str) or isinstance(given_tree, str):
            return Decision(same, "words")
    if isinstance(gold_tree, str) or isinstance(given_tree, str):
        if a == b:
            return Decision(True, "equal strings outside the grammar")
        if allowed(a, b):
            return Decision(None, "outside the grammar", for_math_verify=True)
        return Decision(False, "outside the grammar")
    try:
        if (
            isinstance(gold_tree, Num)
            and gold_tree.value.denominator != 1
            and re.fullmatch(r"-?\d+,(?:\d{1,2}|\d{4,})", b)
        ):
            # Policy: against a gold decimal, ``2,74`` is 2.74 unless it reads as thousands.
            given_tree = parse(b.replace(",", "."))
        equal = Comparer(scalars or Scalars()).equal(gold_tree, given_tree)
    except (TooHard, RecursionError):
        return Decision(False, "over the size limits")
    return Decision(equal, "needs symbolic work" if equal is None else "compared by value")


def answer_key(answer: str) -> str:
    r"""A key for counting votes, the same for different spellings of an answer: equal keys mean equal answers, but not
    the reverse.

    Numbers are compared by exact value, sums, products and sets in any order, words without their case, and text
    outside the grammar by its spelling. There is no gold answer, so a rounded number and its exact value stay different
    answers, and so do ``5`` and ``5 cm``.

    >>> answer_key(r"\frac{1}{2}") == answer_key("0.50"), answer_key("x+1") == answer_key("1 + x")
    (True, True)
    >>> answer_key("listen") == answer_key("silent"), answer_key(r"\text{East}") == answer_key("east")
    (False, True)
    """
    if len(answer) > 2 * MAX_ANSWER_CHARS:
        return answer.strip()
    text = normalise(answer)
    tree = _parsed(text)
    words = word_key(text)
    if (isinstance(tree, Text) and re.search(r"[^\W\d_]", words)) or _LETTERS_ONLY.fullmatch(text):
        return f'"{words.casefold()}"' if len(words) > 1 else f"'{words}'"
    if isinstance(tree, str):
        return string_key(text)
    try:
        return key(tree)
    except RecursionError:
        return string_key(text)
