"""The syntax tree of an answer. Frozen and hashable; nothing here evaluates anything."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import Literal, TypeAlias


@dataclass(frozen=True, slots=True)
class Num:
    """An exact rational. ``digits`` counts the significant digits of a decimal literal, 0 for anything else."""

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

    ``()`` is a tuple or an open interval: the two are written alike and compared alike.
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
    """A chain ``parts[0] ops[0] parts[1] ops[1] ...`` with ops out of = != < > <= >= in other."""

    ops: tuple[str, ...]
    parts: tuple[Node, ...]


@dataclass(frozen=True, slots=True)
class Text:
    words: str


@dataclass(frozen=True, slots=True)
class Based:
    """A numeral with its base, as in 52_8. Digits and base must both agree: the form is the answer."""

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

ONE = Num(Fraction(1))
MINUS_ONE = Num(Fraction(-1))
CONSTANTS = frozenset({"pi", "e", "i", "oo"})


class TooHard(ValueError):
    """The input is over a size limit: too long, too deep, or a number too large to write out."""


class CannotParse(ValueError):
    """The text is not in the grammar of answers."""
