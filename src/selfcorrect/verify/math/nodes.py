"""The syntax tree of an answer, frozen and hashable, and the functions that build and walk it. Nothing is evaluated."""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal, TypeAlias


@dataclass(frozen=True, slots=True)
class Num:
    """An exact rational. ``digits`` is the number of significant digits of a decimal literal; 0 for anything else."""

    value: Fraction
    digits: int = 0


@dataclass(frozen=True, slots=True)
class Sym:
    """A variable or a named constant (``pi``, ``e``, ``i``, ``oo``); a subscript is part of the name."""

    name: str


@dataclass(frozen=True, slots=True)
class Apply:
    """An operator or function: add, mul, div, pow, neg, pm, fact, abs, sqrt, sin, ..., ``user:f``, ``geo:angle``."""

    fn: str
    args: tuple[Node, ...]


@dataclass(frozen=True, slots=True)
class Seq:
    """Several values. ``list`` has no brackets and no order, ``set`` is a set; the rest are named by their brackets.

    ``()`` is a tuple or an open interval: both are written and compared in the same way.
    """

    kind: Literal["list", "set", "()", "[]", "[)", "(]"]
    items: tuple[Node, ...]


@dataclass(frozen=True, slots=True)
class Matrix:
    """A matrix, or with ``bars`` a determinant."""

    rows: tuple[tuple[Node, ...], ...]
    bars: bool = False


@dataclass(frozen=True, slots=True)
class SetOp:
    op: Literal["cup", "cap", "minus"]
    items: tuple[Node, ...]


@dataclass(frozen=True, slots=True)
class Rel:
    """A chain ``parts[0] ops[0] parts[1] ops[1] ...``; the ops are = != < > <= >= in other."""

    ops: tuple[str, ...]
    parts: tuple[Node, ...]


@dataclass(frozen=True, slots=True)
class Text:
    words: str


@dataclass(frozen=True, slots=True)
class Based:
    """A numeral with its base, as in 52_8. Digits and base must both agree, because the form is the answer."""

    digits: str
    base: int


@dataclass(frozen=True, slots=True)
class Ratio:
    """a:b or a clock time."""

    items: tuple[Node, ...]


@dataclass(frozen=True, slots=True)
class Quantity:
    """A value with the unit or words written after it; ``%`` is a unit here."""

    value: Node
    unit: str


Node: TypeAlias = Num | Sym | Apply | Seq | Matrix | SetOp | Rel | Text | Based | Ratio | Quantity

MINUS_ONE = Num(Fraction(-1))
MINUS_INFINITY = Apply("mul", (MINUS_ONE, Sym("oo")))
CONSTANTS = frozenset({"pi", "e", "i", "oo"})


class TooHard(ValueError):
    """The input is over a size limit: too long, too deep, or a number too large to write out."""


class CannotParse(ValueError):
    """The text is not in the grammar of answers."""


_MAX_DECIMAL_EXPONENT = 400


def number(literal: str) -> Num:
    """Exact value of a decimal literal; ``0.1{6}`` is a repeating decimal, ``1e5`` scientific."""
    repeating = re.fullmatch(r"(\d*)\.(\d*)\{(\d+)\}", literal)
    if repeating:
        whole, fixed, cycle = repeating.groups()
        value = Fraction(int(whole + fixed or "0")) + Fraction(int(cycle), 10 ** len(cycle) - 1)
        return Num(value / 10 ** len(fixed))
    mantissa, _, exponent = literal.lower().partition("e")
    if not re.search(r"\d", mantissa):
        raise CannotParse(f"{literal!r} is not a number")  # the point of ``a_.0``, taken alone as a subscript
    if exponent and abs(int(exponent)) > _MAX_DECIMAL_EXPONENT:
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


def children(node: Node) -> tuple[Node, ...]:
    match node:
        case Apply(args=inner) | Seq(items=inner) | SetOp(items=inner) | Rel(parts=inner) | Ratio(items=inner):
            return inner
        case Quantity(value=inner_value):
            return (inner_value,)
        case Matrix(rows=rows):
            return tuple(entry for row in rows for entry in row)
        case _:
            return ()


def symbols(node: Node) -> frozenset[str]:
    """The names of all variables and constants in a tree."""
    own = frozenset({node.name}) if isinstance(node, Sym) else frozenset[str]()
    return own.union(*(symbols(child) for child in children(node)))
