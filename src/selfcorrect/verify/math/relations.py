"""Relations as answers: labels such as ``x =``, and inequalities as unions of intervals."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

from selfcorrect.verify.math.exact import try_rational
from selfcorrect.verify.math.nodes import (
    CONSTANTS,
    MINUS_INFINITY,
    Apply,
    Node,
    Ratio,
    Rel,
    Seq,
    SetOp,
    Sym,
    Text,
    symbols,
)

_FLIPPED = {"<": ">", ">": "<", "<=": ">=", ">=": "<="}
Bounds = Literal["()", "[]", "[)", "(]"]


def flip(op: str) -> str:
    """The operator of the mirrored relation."""
    return _FLIPPED.get(op, op)


def is_label(node: Node) -> bool:  # noqa: PLR0911  # one return per kind of node
    """Whether a node can be the label of a value: x, F_n, f(x), AB, NO/BO, |AB|, a:b, (p, q), angle ABC.

    Not ``2x + z``: an equation about it is an answer in itself.
    """
    match node:
        case Sym():
            return node.name not in CONSTANTS
        case Text():
            return True
        case Apply(fn="mul"):
            names = [a.name for a in node.args if isinstance(a, Sym)]
            figure = any(" " in name for name in names)
            return len(names) == len(node.args) and (figure or all(name[0].isupper() for name in names))
        case Apply(fn="div" | "frac" | "abs" | "prime"):
            return all(is_label(a) for a in node.args)
        case Apply():
            return node.fn.startswith("user:")
        case Ratio() | Seq(kind="()"):
            return all(is_label(i) for i in node.items)
    return False


def split_label(relation: Rel) -> tuple[Node, Node] | None:
    """(label, value) of ``x = ... = 5``, ``5 = x`` and ``x in S``; for ``1 + 1 = 2`` the value is the last part, and
    the label is a word."""
    first, last = relation.parts[0], relation.parts[-1]
    if relation.ops == ("in",) and is_label(first):
        return first, last
    if set(relation.ops) != {"="}:
        return None
    if is_label(first) and not (is_label(last) and isinstance(last, Seq)):
        return first, last
    if len(relation.parts) == 2 and is_label(last):
        return last, first
    if all(symbols(part) <= CONSTANTS for part in relation.parts):
        return Text(""), last
    return None


@dataclass(frozen=True, slots=True)
class Pieces:
    """A union of intervals and one-point sets, with the variable that an inequality named."""

    label: Node | None
    pieces: tuple[Node, ...]


def _interval(low: Node, high: Node, low_closed: bool, high_closed: bool) -> Node:
    kinds: tuple[Bounds, Bounds, Bounds, Bounds] = ("()", "(]", "[)", "[]")
    return Seq(kinds[2 * low_closed + high_closed], (low, high))


def _inequality(relation: Rel) -> Pieces | None:  # noqa: PLR0911  # one return per form
    if len(relation.ops) == 1:
        (left, right), op = relation.parts, relation.ops[0]
        if not is_label(left):
            left, right, op = right, left, flip(op)
        if not is_label(left) or isinstance(left, Seq | Ratio):
            return None
        match op[0]:
            case "<":
                return Pieces(left, (_interval(MINUS_INFINITY, right, False, op.endswith("=")),))
            case ">":
                return Pieces(left, (_interval(right, Sym("oo"), op.endswith("="), False),))
            case "!":
                return Pieces(left, _complement((right,)))
        return None
    if len(relation.ops) != 2 or not is_label(relation.parts[1]):
        return None
    low, label, high = relation.parts
    first, second = relation.ops
    if first[0] == ">" and second[0] == ">":
        low, high, first, second = high, low, flip(second), flip(first)
    if first[0] != "<" or second[0] != "<":
        return None
    return Pieces(label, (_interval(low, high, first.endswith("="), second.endswith("=")),))


def _complement(points: tuple[Node, ...]) -> tuple[Node, ...]:
    """The real line without some points; points without a rational value keep their order."""
    values = [try_rational(p) for p in points]
    if len(points) > 1 and None not in values:
        points = tuple(p for _, p in sorted(zip(values, points, strict=True), key=lambda pair: pair[0] or 0))
    ends = [MINUS_INFINITY, *points, Sym("oo")]
    return tuple(_interval(a, b, False, False) for a, b in pairwise(ends))


def as_pieces(node: Node) -> Pieces | None:  # noqa: PLR0911  # one return per kind of node
    """The set that an interval, a union, an inequality or a list of them describes; None for anything else."""
    match node:
        case Seq(kind="set"):
            return Pieces(None, tuple(Seq("set", (item,)) for item in node.items))
        case Seq(kind="list") if all(isinstance(item, Rel) for item in node.items):
            return _union(node.items)
        case Seq(items=(_, _)) if node.kind != "list":
            return Pieces(None, (node,))
        case SetOp(op="cup"):
            return _union(node.items)
        case SetOp(op="minus", items=(Seq(kind="()") as line, Seq(kind="set") as holes)):
            whole = line.items == (MINUS_INFINITY, Sym("oo"))
            return Pieces(None, _complement(holes.items)) if whole else None
        case Rel(ops=("in",)):
            inner = as_pieces(node.parts[1])
            return None if inner is None else Pieces(node.parts[0], inner.pieces)
        case Rel():
            return _inequality(node)
    return None


def _union(items: tuple[Node, ...]) -> Pieces | None:
    pieces: list[Node] = []
    label: Node | None = None
    for item in items:
        part = as_pieces(item)
        if part is None:
            return None
        label = label or part.label
        pieces += part.pieces
    return Pieces(label, tuple(pieces))
