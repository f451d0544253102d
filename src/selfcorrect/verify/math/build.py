"""Building blocks of trees: exact numbers from literals, sums, products, negation."""

from __future__ import annotations

import re
from fractions import Fraction

from selfcorrect.verify.math.nodes import MINUS_ONE, Apply, CannotParse, Node, Num, Quantity, TooHard

MAX_DECIMAL_EXPONENT = 400


def number(literal: str) -> Num:
    """Exact value of a decimal literal; ``0.1{6}`` is a repeating decimal, ``1e5`` scientific."""
    repeating = re.fullmatch(r"(\d*)\.(\d*)\{(\d+)\}", literal)
    if repeating:
        whole, fixed, cycle = repeating.groups()
        value = Fraction(int(whole + fixed or "0")) + Fraction(int(cycle), 10 ** len(cycle) - 1)
        return Num(value / 10 ** len(fixed))
    mantissa, _, exponent = literal.lower().partition("e")
    if not re.search(r"\d", mantissa):
        raise CannotParse(f"{literal!r} is no number")  # the point of ``a_.0``, taken alone as a subscript
    if exponent and abs(int(exponent)) > MAX_DECIMAL_EXPONENT:
        raise TooHard(f"decimal exponent {exponent}")
    digits = len(mantissa.replace(".", "").lstrip("0")) if "." in mantissa else 0
    return Num(Fraction(literal), digits)


def add(*terms: Node) -> Node:
    return terms[0] if len(terms) == 1 else Apply("add", terms)


def mul(left: Node, right: Node) -> Node:
    """A product; a longer one is kept flat."""
    if isinstance(left, Apply) and left.fn == "mul":
        return Apply("mul", (*left.args, right))
    return Apply("mul", (left, right))


def neg(node: Node) -> Node:
    if isinstance(node, Num):
        return Num(-node.value, node.digits)
    if isinstance(node, Quantity):
        return Quantity(neg(node.value), node.unit)
    return mul(MINUS_ONE, node)
