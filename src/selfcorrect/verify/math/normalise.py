"""From an answer as written to one spelling per meaning. Strings only; no mathematics.

White space, sizing commands, spelling variants of one symbol, currency signs and thousands separators go here.
"""

from __future__ import annotations

import re
from collections.abc import Callable

_UNICODE = {
    "−": "-", "–": "-", "—": "-", "×": "*", "·": "*", "⋅": "*", "∙": "*", "÷": "/", "∕": "/", "⁄": "/",
    "≤": r"\le ", "≥": r"\ge ", "≠": r"\ne ", "≈": r"\approx ", "±": r"\pm ", "∓": r"\mp ", "∞": r"\infty ",
    "°": r"^\circ ", "∪": r"\cup ", "∩": r"\cap ", "∈": r"\in ", "√": r"\sqrt ", "∠": r"\angle ", "ℝ": r"\mathbb{R}",
    "π": r"\pi ", "θ": r"\theta ", "α": r"\alpha ", "β": r"\beta ", "γ": r"\gamma ", "φ": r"\phi ", "λ": r"\lambda ",
    "⟨": r"\langle ", "⟩": r"\rangle ", "⌊": r"\lfloor ", "⌋": r"\rfloor ", "⌈": r"\lceil ", "⌉": r"\rceil ",
    "½": r"\frac{1}{2}", "⅓": r"\frac{1}{3}", "⅔": r"\frac{2}{3}", "¼": r"\frac{1}{4}", "¾": r"\frac{3}{4}",
    "⁰": "^0", "¹": "^1", "²": "^2", "³": "^3", "⁴": "^4", "⁵": "^5", "⁶": "^6", "⁷": "^7", "⁸": "^8", "⁹": "^9",
    "’": "'", "′": "'", "“": '"', "”": '"', "\u00a0": " ", "\u202f": " ", "\u2009": " ", "，": ",", "（": "(",
    "）": ")",
    "\u200b": "", "\u200c": "", "\u200d": "", "\u2060": "", "\ufeff": "", "€": "", "£": "",
    "：": ":", "∅": r"\emptyset ", "∑": r"\sum ", "∫": r"\int ",
}  # fmt: skip
_UNICODE_TABLE = str.maketrans(_UNICODE)

PLAIN_NUMBER = re.compile(r"\d+(?:\.\d+)?", re.ASCII)
_CLOCK = re.compile(
    r"(?:(?<=\d)|(?<=\d\s))(?:([aApP])\.\s?[mM]\b\.?|(?<=:\d\d)\s?([aApP])[mM]\b|(?<=:\d\d\s)([aApP])[mM]\b)"
)
_DOUBLED = re.compile(r"\\\\(?=[A-Za-z({\[])")
_STRAY_BACKSLASH = re.compile(r"\\(?=\d)")
_SYNONYMS = [
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"\\(?:leqslant|leqq|leq|le)(?![A-Za-z])|<=|=<", r"\\le "),
        (r"\\(?:geqslant|geqq|geq|ge)(?![A-Za-z])|>=", r"\\ge "),
        (r"\\(?:neq|ne)(?![A-Za-z])|\\not\s*=|!=", r"\\ne "),
        (r"\\lt(?![A-Za-z])", "<"),
        (r"\\gt(?![A-Za-z])", ">"),
        (r"\\(?:cdot|times|ast)(?![A-Za-z])|\\\*", "*"),
        (r"\\div(?![A-Za-z])", "/"),
        (r"\*\*", "^"),
        (r"\\(?:lbrace)(?![A-Za-z])", r"\\{"),
        (r"\\(?:rbrace)(?![A-Za-z])", r"\\}"),
        (r"\\(?:l|r)?vert(?![A-Za-z])|\\mid(?![A-Za-z])", "|"),
        (r"\\(?:lbrack)(?![A-Za-z])", "["),
        (r"\\(?:rbrack)(?![A-Za-z])", "]"),
        (r"\\colon(?![A-Za-z])", ":"),
        (r"\\%", "%"),
        (r"\\(?:varphi)(?![A-Za-z])", r"\\phi "),
        (r"\\(?:varnothing)(?![A-Za-z])", r"\\emptyset "),
        (r"\\(?:iff|implies|Rightarrow|Longrightarrow)(?![A-Za-z])", r"\\to "),
    )
]
_BASES = ["two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"]
_BRACKETED_NUMERAL = re.compile(r"\(([0-9A-Z]+)\)\s?_")
_CONJUNCTION_TEXT = re.compile(r"\\text\s*\{[\s,]*(?:and|or|and/or)[\s,]*\}", re.IGNORECASE)
_CONJUNCTION = re.compile(r"(?<![A-Za-z\\])(?:and|or)(?![A-Za-z])")


def _unwrap_font(match: re.Match[str]) -> str:
    content = match.group(1).strip()
    if re.search(r"[a-zA-Z]{2}|[a-zA-Z]/[a-zA-Z]", content) and "\\" not in content:
        return rf"\text{{{content}}}"
    return f" {content} "


def _base_from_word(match: re.Match[str]) -> str:
    word = match.group(1).lower()
    return f"_{{{_BASES.index(word) + 2}}}" if word in _BASES else match.group()


def _unwrap_numeric_text(match: re.Match[str]) -> str:
    rest = match.group(2).strip()
    return f" {match.group(1)} " + (rf"\text{{{rest}}}" if rest else "")


_LATEX: list[tuple[re.Pattern[str], str | Callable[[re.Match[str]], str]]] = [
    # Formula delimiters and dollar signs, sizing commands, decoration.
    (re.compile(r"(?<!\\)\\[\[\]()]|\\?\$"), " "),
    (
        re.compile(
            r"\\(?:left|right|[bB]igg?[lrm]?|displaystyle|textstyle|limits|nolimits|mathstrut|strut|phantom\s*\{[^{}]*\}|phantom"
            r"|hspace\s*\{[^{}]*\}|vspace\s*\{[^{}]*\}|hfill|rm|bf|it)(?![A-Za-z])"
        ),
        " ",
    ),
    (
        re.compile(
            r"\\(?:text)?color\s*\{[^{}]*\}|\\(?:underline|ensuremath|mathop|pmb|large|Large|huge|Huge|small|normalsize)(?![A-Za-z])"
        ),
        " ",
    ),
    # The base of a numeral in words, kinds of fractions, separators of thousands, negative space.
    (re.compile(r"_\s?\{?\s*\\(?:text|mathrm|textrm)\s?\{\s*([A-Za-z]+)\s*\}\s*\}?"), _base_from_word),
    (re.compile(r"\\[dtc]frac(?![A-Za-z])"), r"\\frac"),
    (re.compile(r"(?<=\d)\s*(?:,\s*\\[!,]|\{,\}(?:\\!)?|\\[,!;: ]|\\text\{,\})\s*(?=\d{3}(?!\d))"), ""),
    (re.compile(r"(?<!\\)\\!"), ""),
    # Text commands, fonts, spaces, numbers inside a text, degree signs.
    (re.compile(r"\\(?:mbox|textnormal|textbf|textit|textrm|textsf|texttt|hbox|operatorname\*?)\s*(?=\{)"), r"\\text"),
    (re.compile(r"\\text\s+(?=\{)"), r"\\text"),
    (re.compile(r"\\(?:mathrm|mathbf|mathit|mathsf|boldsymbol|bm|mathnormal)\s*\{([^{}]*)\}"), _unwrap_font),
    (re.compile(r"(?<!\\)\\(?:[,;:> ]|q?quad(?![A-Za-z])|thinspace(?![A-Za-z])|enspace(?![A-Za-z]))|~"), " "),
    (re.compile(r"\\text\s*\{\s*([-+]?\d[\d.,:]*|[A-Z]?\d+[A-Z]?)((?:\s|\b)[^{}]*)\}"), _unwrap_numeric_text),
    (re.compile(r"\^\s*(?:\{\s*(?:\\circ|o)\s*\}|\\circ)|\\degree(?![A-Za-z])|\\circ(?![A-Za-z])"), r"\\deg "),
]
"""Replacements in LaTeX, in this order."""


def _conjunctions(text: str) -> str:
    r"""``and``/``or`` between values become ``\sep``; inside ``\text{...}`` with other words they stay words."""
    text = _CONJUNCTION_TEXT.sub(r" \\sep ", text)
    if "and" not in text and "or" not in text:
        return text
    parts = re.split(r"(\\text\s*\{[^{}]*\})", text)
    return "".join(part if i % 2 else _CONJUNCTION.sub(r" \\sep ", part) for i, part in enumerate(parts))


def normalise(answer: str) -> str:
    """One spelling per meaning. Linear in the length of the input; the caller bounds that length.

    >>> normalise(r"$\\dfrac{1}{2}\\,\\mbox{ cm}$.")
    '\\\\frac{1}{2} \\\\text{ cm}'
    """
    if PLAIN_NUMBER.fullmatch(answer):
        return answer
    text = (answer.translate(_UNICODE_TABLE) if not answer.isascii() else answer).strip()
    while len(text) > 4 and text.startswith("**") and text.endswith("**"):
        text = text[2:-2].strip()
    if "\\" in text or "$" in text or "{" in text:
        if r"\begin" not in text:
            text = _STRAY_BACKSLASH.sub("", _DOUBLED.sub(r"\\", text))
        for pattern, replacement in _LATEX:
            text = pattern.sub(replacement, text)
    for pattern, synonym in _SYNONYMS:
        text = pattern.sub(synonym, text)
    text = _BRACKETED_NUMERAL.sub(r"\1_", text)
    text = _conjunctions(text)
    text = _CLOCK.sub(lambda m: rf" \text{{{(m.group(1) or m.group(2) or m.group(3)).lower()}m}}", text)
    text = re.sub(r"\s+", " ", text).strip()
    # Emphasis marks around the answer and punctuation after it go.
    while len(text) > 1 and text[0] == text[-1] and text[0] in "*_`'\"":
        text = text[1:-1].strip()
    text = text.rstrip(" .,;:")
    while text.endswith("\\"):
        text = text[:-1].rstrip(" .,;:")
    return text.lstrip(" ,;:*=")


_IDLE_SPACE = re.compile(r"(?<![\d,])\s+|(?<=\d)\s+(?!\d)|(?<=,)\s+(?!\d{3}(?!\d))")


def string_key(normalised: str) -> str:
    """Key of the equal-strings shortcut: white space goes where it cannot matter.

    Kept: a space between digits (``3 1/2`` is not ``31/2``) and one that separates a list from a thousands group.
    """
    return _IDLE_SPACE.sub("", normalised)


def word_key(normalised: str) -> str:
    """Key for answers in words: letters and digits only, without markup; case is kept."""
    text = re.sub(r"\\(?:text|sep)(?![A-Za-z])", lambda m: " and " if m.group() == r"\sep" else " ", normalised)
    return " ".join(re.findall(r"[^\W_]+(?:'[a-z]+)?", text))
