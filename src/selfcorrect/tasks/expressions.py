"""Arithmetic with + - * / on whole numbers: read, written and evaluated exactly, within bounds. Never by ``eval``."""

from __future__ import annotations

import re
from collections.abc import Iterator
from fractions import Fraction

Tree = int | tuple[str, "Tree", "Tree"]
"""A number, or an operation with its two operands."""

LONGEST = 200
"""Most characters of an expression; longer ones are not read."""
DEEPEST = 10
"""Deepest nesting of brackets."""
UNICODE = str.maketrans({"×": "*", "·": "*", "−": "-", "–": "-", "÷": "/"})
_TOKEN = re.compile(r"\s*([0-9]{1,9}(?![0-9])|[-+*/()])\s*")
_RANK = {"+": 1, "-": 1, "*": 2, "/": 2}


class _Unreadable(Exception):
    pass


def parse(text: str, *, signs: bool = False) -> Tree | None:
    """The expression in a text, by the usual precedence; None if it is not an expression, or beyond the limits. Never
    raises.

    Args:
        text: an expression and nothing else; × · ÷ and the minus sign − are read as * / and -.
        signs: read -7 as a number if a number is expected there. It becomes (0 - 7).
    """
    text = text.translate(UNICODE)
    if len(text) > LONGEST:
        return None
    tokens, at = [], 0
    while at < len(text):
        match = _TOKEN.match(text, at)
        if match is None:
            return None
        tokens.append(match[1])
        at = match.end()
    reader = _Reader(tokens, signs)
    try:
        tree = reader.operations(1, 0)
    except _Unreadable:
        return None
    return tree if reader.next() is None else None


class _Reader:
    """A parser of tokens by precedence climbing."""

    def __init__(self, tokens: list[str], signs: bool) -> None:
        self._tokens, self._at, self._signs = tokens, 0, signs

    def next(self) -> str | None:
        return self._tokens[self._at] if self._at < len(self._tokens) else None

    def operations(self, lowest: int, depth: int) -> Tree:
        left = self._operand(depth)
        while (sign := self.next()) is not None and _RANK.get(sign, 0) >= lowest:
            self._at += 1
            left = (sign, left, self.operations(_RANK[sign] + 1, depth))
        return left

    def _operand(self, depth: int) -> Tree:
        token = self.next()
        self._at += 1
        if token is not None and token.isdigit():
            return int(token)
        if token == "(" and depth < DEEPEST:
            inside = self.operations(1, depth + 1)
            if self.next() == ")":
                self._at += 1
                return inside
        following = self.next()
        if token == "-" and self._signs and following is not None and following.isdigit():
            self._at += 1
            return ("-", 0, int(following))
        raise _Unreadable


def value(tree: Tree) -> Fraction | None:
    """The exact value; None where it divides by zero."""
    if isinstance(tree, int):
        return Fraction(tree)
    sign, left, right = tree
    a, b = value(left), value(right)
    if a is None or b is None or (sign == "/" and b == 0):
        return None
    return a + b if sign == "+" else a - b if sign == "-" else a * b if sign == "*" else a / b


def numbers_in(tree: Tree) -> Iterator[int]:
    """The numbers of an expression, from left to right."""
    if isinstance(tree, int):
        yield tree
    else:
        yield from numbers_in(tree[1])
        yield from numbers_in(tree[2])


def operations_in(tree: Tree) -> set[str]:
    return set() if isinstance(tree, int) else {tree[0]} | operations_in(tree[1]) | operations_in(tree[2])


def write(tree: Tree) -> str:
    """The shortest text with the same meaning; 3+(4+5) loses its brackets."""
    if isinstance(tree, int):
        return str(tree)
    sign, left, right = tree
    rank = _RANK[sign]
    before = f"({write(left)})" if _rank(left) < rank else write(left)
    needs = _rank(right) < rank or (_rank(right) == rank and sign in "-/")
    return f"{before}{sign}{f'({write(right)})' if needs else write(right)}"


def _rank(tree: Tree) -> int:
    return 3 if isinstance(tree, int) else _RANK[tree[0]]


def one_step(tree: Tree) -> Tree:
    """The expression after its leftmost operation on two plain numbers has been done.

    Every such result must be a whole number.
    """
    if isinstance(tree, int):
        return tree
    sign, left, right = tree
    if isinstance(left, int) and isinstance(right, int):
        result = value(tree)
        assert result is not None and result.denominator == 1, f"{write(tree)} is no whole number"
        return int(result)
    return (sign, left, one_step(right)) if isinstance(left, int) else (sign, one_step(left), right)


def canonical(tree: Tree) -> str:
    """Equal for expressions that differ only in the order of sums and products, or in brackets without effect."""
    if isinstance(tree, int):
        return str(tree)
    rank, parts = _rank(tree), []
    plain, inverse = ("+", "-") if rank == 1 else ("*", "/")

    def collect(node: Tree, inverted: bool) -> None:
        if isinstance(node, int) or _rank(node) != rank:
            parts.append(f"{inverse if inverted else plain}{canonical(node)}")
            return
        collect(node[1], inverted)
        collect(node[2], inverted != (node[0] == inverse))

    collect(tree, False)
    return f"({''.join(sorted(parts))})"
