"""Turns an answer as written into one spelling per meaning. It handles strings only, no mathematics.

This removes white space, sizing commands, spelling variants of a symbol, currency signs and thousands separators.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from selfcorrect.verify.math.units import canonical_unit

_UNICODE = {
    "−": "-", "–": "-", "—": "-", "×": "*", "·": "*", "⋅": "*", "∙": "*", "÷": "/", "∕": "/", "⁄": "/",
    "≤": r"\le ", "≥": r"\ge ", "≠": r"\ne ", "≈": r"\approx ", "±": r"\pm ", "∓": r"\mp ", "∞": r"\infty ",
    "°": r"^\circ ", "∪": r"\cup ", "∩": r"\cap ", "∈": r"\in ", "√": r"\sqrt ", "∠": r"\angle ", "ℝ": r"\mathbb{R}",
    "π": r"\pi ", "θ": r"\theta ", "α": r"\alpha ", "β": r"\beta ", "γ": r"\gamma ", "φ": r"\phi ", "λ": r"\lambda ",
    "⟨": r"\langle ", "⟩": r"\rangle ", "⌊": r"\lfloor ", "⌋": r"\rfloor ", "⌈": r"\lceil ", "⌉": r"\rceil ",
    "½": r"\frac{1}{2}", "⅓": r"\frac{1}{3}", "⅔": r"\frac{2}{3}", "¼": r"\frac{1}{4}", "¾": r"\frac{3}{4}",
    "⁰": "^0", "¹": "^1", "²": "^2", "³": "^3", "⁴": "^4", "⁵": "^5", "⁶": "^6", "⁷": "^7", "⁸": "^8", "⁹": "^9",
    "’": "'", "′": "'", "“": '"', "”": '"', "、": ",", "。": ".", "º": r"^\circ ",
    "€": "", "£": "", "¥": "", "\uffe5": "", "\uffe1": "", "₹": "", "₽": "", "₩": "", "฿": "", "₫": "", "₺": "", "₱": "",
    "∅": r"\emptyset ", "∑": r"\sum ", "∫": r"\int ",
}  # fmt: skip
_ONE_WIDTH = str.maketrans(
    {c: chr(c - 0xFEE0) for c in range(0xFF01, 0xFF5E)}  # full-width forms
    | {c: str((c - 0x1D7CE) % 10) for c in range(0x1D7CE, 0x1D800)}  # bold and other mathematical digits
    | dict.fromkeys((ord(c) for c in "\u200b\u200c\u200d\u2060\ufeff\u00ad\u200e\u200f\ufe0f"), "")
    | {ord(c): " " for c in "\u3000\u2002\u2003"}
)
_UNICODE_TABLE = str.maketrans(_UNICODE)
_THIN_SPACE = "\u00a0\u2004\u2005\u2006\u2007\u2008\u2009\u200a\u202f\u205f"
_THIN_THOUSANDS = re.compile(rf"(?<=\d)[{_THIN_SPACE}](?=\d{{3}}(?!\d))")
_SPACED_THOUSANDS = re.compile(r"[-+]?\$?\d{1,3}(?: \d{3})+(?:\.\d+)?")
_DOT = r"\\dot\s?(?:\{\s?\d\s?\}|\d)"
_DOTTED = re.compile(
    rf"(?<![\d.])(\d{{0,60}}\.\d{{0,60}})(\\(?:bar|overline)\s?(?:\{{\s?\d{{1,60}}\s?\}}|\d)|{_DOT}(?:(?:\d|{_DOT}){{0,60}}{_DOT})?)"
)
_COMBINING = re.compile(
    "(?<![\\d.])(\\d{0,60}\\.\\d{0,60}?)((?:\\d[\u0304\u0305]){1,60}|\\d\u0307(?:(?:\\d\u0307?){0,60}\\d\u0307)?)"
)
_ELLIPSIS = re.compile(
    r"(?<![\d.])(\d{0,60}\.\d{0,30}?)(?:(\d)\2{2,60}|(\d{2,12}?)\3{1,20})\s?(?:\.{3}|\u2026|\\[lc]?dots(?![A-Za-z]))"
)
_BEFORE_NUMBER = re.compile(
    "(?:(?:\u6700[\u7ec8\u7d42])?\u7b54\u6848[\u662f\u4e3a:]?|\u5927?\u7ea6|[\u4e00\u603b\u5408]?[\u5171\u8ba1]|\u7b49\u4e8e|[\u4e3a\u662f])\\s?(?=-?\\d)"
)
"""Chinese for: the answer is, about, altogether, equals, is."""

PLAIN_NUMBER = re.compile(r"\d+(?:\.\d+)?", re.ASCII)
_CLOCK = re.compile(
    r"(?:(?<=\d)|(?<=\d\s))(?:([aApP])\.\s?[mM]\b\.?|(?<=:\d\d)\s?([aApP])[mM]\b|(?<=:\d\d\s)([aApP])[mM]\b)"
)
_DOUBLED = re.compile(r"\\{2,}(?=[A-Za-z({\[])")
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
_CURRENCY = re.compile(
    r"(?:(?:US|[ACSR]|HK|NT)\\?\$|\\?\$US|(?:USD|EUR|GBP|INR|RMB|CNY|JPY|CAD|AUD|CHF|Rs\.?|kr)(?![A-Za-z])|[\u20aa\u20a6])\s?(?=[-+]?[$\\\d.])"
)
_AMOUNT = r"([-+]?(?:\d[\d,]*(?:\.\d+)?|\.\d+))"
_RATE = re.compile(rf"{_AMOUNT}\s?([A-Za-z]{{0,20}})(\^?\{{?[23]\}}?)?\s?/\s?([A-Za-z]{{1,20}})(\^?\{{?[23]\}}?)?")
"""An amount of one unit for each of another."""
_POWER = re.compile(rf"{_AMOUNT}\s?(?:[cmk]m|ft|in|yd)\^\{{?[23]\}}?")
"""Not of metres: ``2 m^2`` may be a formula in m."""
_JOINED = re.compile(rf"{_AMOUNT}(?: [A-Za-z]+['-][A-Za-z]{{4,20}}| [A-Za-z]{{2,20}}' [A-Za-z]{{4,20}}|-year-olds?)")
"""A count of things whose name is joined by a hyphen or has an apostrophe."""
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
    (re.compile(r"\\text\s*\{\s*([-+]?\d[\d.,:/]*|[A-Z]?\d+[A-Z]?)((?:\s|\b)[^{}]*)\}"), _unwrap_numeric_text),
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


def _with_unit(text: str) -> str:
    r"""An amount with a unit that would read as mathematics, with the unit as ``\text{...}``; other text unchanged."""
    if (rate := _RATE.fullmatch(text)) is not None:
        for_each, of = rate[4], rate[2]
        known = canonical_unit(for_each) and (not of or canonical_unit(of) or len(of) > 3)
        letters = len(of) <= 1 and len(for_each) == 1  # most often variables
        if not known or (letters and f"{of}/{for_each}".lower() not in ("m/s", "g/l")):
            return text
    elif not _POWER.fullmatch(text) and not _JOINED.fullmatch(text):
        return text
    amount, unit = re.fullmatch(rf"{_AMOUNT}\s?-?(.*)", text, re.DOTALL).groups()  # type: ignore[union-attr]
    unit = re.sub(r"[{} ]*([{}/]) *", lambda m: "/" if m[1] == "/" else "", unit)
    return rf"{amount} \text{{{'per ' + unit[1:] if unit.startswith('/') else unit}}}"


def one_width(text: str) -> str:
    """Replace full-width forms by ASCII, and remove characters without a width."""
    return text if text.isascii() else text.translate(_ONE_WIDTH)


def _repeating(text: str) -> str:
    r"""Write repeating decimals as ``0.1\overline{6}``, whether dots, bars over digits or an ellipsis mark them."""
    for pattern in (_DOTTED, _COMBINING, _ELLIPSIS):
        text = pattern.sub(_overlined, text)
    return re.sub(r"(\d?\.)\((\d{1,60})\)", r"\1\\overline{\2}", text)


def _overlined(match: re.Match[str]) -> str:
    fixed, *cycle = match.groups()
    return rf"{fixed}\overline{{{re.sub('[^0-9]', '', next(filter(None, cycle)))}}}"


def normalise(answer: str) -> str:
    """One spelling per meaning. Linear in the length of the input; the caller bounds that length.

    >>> normalise(r"$\\dfrac{1}{2}\\,\\mbox{ cm}$.")
    '\\\\frac{1}{2} \\\\text{ cm}'
    """
    if PLAIN_NUMBER.fullmatch(answer):
        return answer
    text = _CURRENCY.sub("", answer.strip(), count=1) if _CURRENCY.match(answer.strip()) else answer.strip()
    if "." in text:
        text = _repeating(text)
    if not text.isascii():
        text = re.sub(
            f"[{_THIN_SPACE}]", " ", _THIN_THOUSANDS.sub("", _BEFORE_NUMBER.sub("", one_width(text), count=1))
        )
        text = text.translate(_UNICODE_TABLE).strip()
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
    text = _with_unit(re.sub(r"\bper cent\b", "percent", text.lstrip(" ,;:*=")))
    return text.replace(" ", "") if _SPACED_THOUSANDS.fullmatch(text) else text


_IDLE_SPACE = re.compile(r"(?<![\d,])\s+|(?<=\d)\s+(?!\d)|(?<=,)\s+(?!\d{3}(?!\d))")


def string_key(normalised: str) -> str:
    """Key of the equal-strings shortcut: white space is removed if it cannot matter.

    Kept: a space between digits (``3 1/2`` is not ``31/2``) and one that separates a list from a thousands group.
    """
    return _IDLE_SPACE.sub("", normalised)


def word_key(normalised: str) -> str:
    """Key for answers in words: letters and digits only, without markup; case is kept."""
    text = re.sub(r"\\(?:text|sep)(?![A-Za-z])", lambda m: " and " if m.group() == r"\sep" else " ", normalised)
    return " ".join(re.findall(r"[^\W_]+(?:'[a-z]+)?", text))
