"""Tokens of a normalised answer."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from selfcorrect.verify.math.nodes import CannotParse, TooHard
from selfcorrect.verify.math.units import is_unit_word

MAX_ANSWER_CHARS = 2_000
"""Longest answer that is parsed; the longest gold answer of MATH has 159 characters."""

Kind = Literal["num", "based", "sym", "fn", "cmd", "text", "op", "end"]


@dataclass(frozen=True, slots=True)
class Token:
    kind: Kind
    value: str
    spaced: bool
    """Whether there is white space before it."""


FUNCTIONS = frozenset(
    [
        "sin",
        "cos",
        "tan",
        "cot",
        "sec",
        "csc",
        "arcsin",
        "arccos",
        "arctan",
        "arccot",
        "sinh",
        "cosh",
        "tanh",
        "asin",
        "acos",
        "atan",
        "ln",
        "log",
        "lg",
        "exp",
        "sqrt",
    ]
)
GREEK = frozenset(
    """alpha beta gamma delta epsilon varepsilon zeta eta theta iota kappa lambda mu nu xi rho sigma tau upsilon phi chi
    psi omega Gamma Delta Theta Lambda Xi Sigma Phi Psi Omega ell vartheta""".split()  # noqa: SIM905
)
_PLAIN_WORDS = FUNCTIONS | {"pi", "infty", "infinity"}

_FOREIGN = "\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u024f\u0400-\u1eff\u3005-\u318f\u31f0-\u9fff\uac00-\ud7ff\uf900-\ufaff\U00020000-\U0003ffff"
"""Letters of other languages, without Greek."""
_TOKEN = re.compile(
    rf"""(?P<foreign>[A-Za-z]{{0,30}}[{_FOREIGN}][A-Za-z{_FOREIGN}]*(?:\.(?=\s?[{_FOREIGN}]))?)
    |"""
    r"""(?P<space>\s+)
    |(?P<based>(?<![A-Za-z0-9.])(?=[A-Z]*\d)[0-9A-Z]+(?:\.[0-9A-Z]+)?\s?_\s?(?:\{\s?\d+\s?\}|\d+))
    |(?P<repeat>\d*\.\d*\\overline\s?\{\d+\})
    |(?P<num>\d+(?:\.\d+)?[eE][+-]?\d+(?![\w.])|(?:\d+(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|\.\d+)
    |(?P<text>\\text\s?\{[^{}]*\})
    |(?P<env>\\(?:begin|end)\s?\{[a-zA-Z]+\*?\}(?:\s?\{[clr|\s]+\})?)
    |(?P<cmd>\\[A-Za-z]+|\\.)
    |(?P<word>[A-Za-z]+)
    |(?P<op>[-+*/^_=<>()\[\]{}|,;:!%&'])
    """,
    re.VERBOSE,
)


def _is_thousands(digits: str, depth: int) -> bool:
    """Policy: ``1,234`` is one number outside brackets; inside brackets only if a group could not be a number by itself
    (``,050``)."""
    first, *groups = digits.split(".", maxsplit=1)[0].split(",")
    plausible = 1 <= len(first) <= 3 and not first.startswith("0")
    return not groups or (plausible and (depth == 0 or any(g.startswith("0") for g in groups)))


def _words(word: str, spaced: bool, after_value: bool) -> list[Token]:
    """A run of letters: a known function or constant, a unit after a value, or one variable per letter."""
    if word in FUNCTIONS:
        return [Token("fn", word, spaced)]
    if word in _PLAIN_WORDS:
        return [Token("sym", "oo" if word.startswith("inf") else word, spaced)]
    if after_value and (is_unit_word(word) or (spaced and len(word) >= 4)):
        return [Token("text", word, spaced)]
    for name in sorted(_PLAIN_WORDS, key=len, reverse=True):
        if word.startswith(name) and name in ("sqrt", "sin", "cos", "tan", "pi") and len(word) <= len(name) + 1:
            return _words(name, spaced, False) + _words(word[len(name) :], False, False)
    return [Token("sym", letter, spaced and i == 0) for i, letter in enumerate(word)]


_VALUE_ENDS = frozenset(["num", "based", "sym", "text"])
_VALUE_CLOSERS = frozenset("})]%")


def tokenize(text: str) -> list[Token]:
    """Split a normalised answer into tokens, ending with one of kind ``end``.

    Raises:
        TooHard: the answer is longer than ``MAX_ANSWER_CHARS``.
        CannotParse: a character has no place in the grammar.
    """
    if len(text) > MAX_ANSWER_CHARS:
        raise TooHard(f"longer than {MAX_ANSWER_CHARS} characters")
    out: list[Token] = []
    position, depth, spaced = 0, 0, False
    while position < len(text):
        match = _TOKEN.match(text, position)
        if match is None:
            raise CannotParse(f"unexpected character {text[position]!r}")
        kind, value, position = match.lastgroup, match.group(), match.end()
        if kind == "space":
            spaced = True
            continue
        if kind == "num" and not _is_thousands(value, depth):
            value = value.split(",")[0]
            position = match.start() + len(value)
        if kind == "word" and not out and len(value) > 2 and text[position:].lstrip().startswith("="):
            # "Area = 36": a word that names the quantity, not a product of letters.
            out.append(Token("sym", value, spaced))
        elif kind == "word":
            last = out[-1] if out else None
            after_value = last is not None and (last.kind in _VALUE_ENDS or last.value in _VALUE_CLOSERS)
            out += _words(value, spaced, after_value)
        elif kind == "foreign":
            if not out or (out[-1].kind not in _VALUE_ENDS and out[-1].value not in _VALUE_CLOSERS):
                raise CannotParse(f"{value!r} without a value before it")
            out.append(Token("text", value, spaced))
        else:
            out.append(_token(str(kind), value, spaced))
        depth += (value in ("(", "[", r"\{", r"\langle")) - (value in (")", "]", r"\}", r"\rangle"))
        spaced = False
    return [*out, Token("end", "", spaced)]


def _token(kind: str, value: str, spaced: bool) -> Token:  # noqa: PLR0911  # one return per kind
    name = value[1:]
    match kind:
        case "num":
            return Token("num", value.replace(",", ""), spaced)
        case "based":
            return Token("based", re.sub(r"[\s{}]", "", value), spaced)
        case "repeat":
            return Token("num", re.sub(r"\\overline\s?", "", value), spaced)
        case "text":
            return Token("text", value[value.index("{") + 1 : -1].strip(), spaced)
        case "env":
            return Token("cmd", re.sub(r"\s", "", value), spaced)
        case "cmd" if name in GREEK or name == "pi":
            return Token("sym", name, spaced)
        case "cmd" if name == "infty":
            return Token("sym", "oo", spaced)
        case "cmd":
            return Token("fn" if name in FUNCTIONS else "cmd", name if name in FUNCTIONS else value, spaced)
    return Token("op", value, spaced)
