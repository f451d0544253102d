"""Equivalence of two parsed answers, in three values: True, False, and None for "needs the worker".

This module decides the structure. Scalars that exact arithmetic cannot decide go to a ``Scalars`` object. In the
calling process it leaves them open; in the worker it evaluates them to many digits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from fractions import Fraction

from selfcorrect.verify.math.exact import key, try_rational
from selfcorrect.verify.math.nodes import (
    Apply,
    Based,
    Matrix,
    Node,
    Num,
    Quantity,
    Ratio,
    Rel,
    Seq,
    SetOp,
    Sym,
    Text,
    children,
    neg,
)
from selfcorrect.verify.math.relations import as_pieces, flip, is_label, split_label
from selfcorrect.verify.math.units import UNIT_LETTERS, canonical_unit

Ternary = bool | None

ROUNDING_DIGITS = 10
"""Policy: a decimal with this many significant digits or more may stand for a value that no decimal equals."""

_NUMBER_WORDS = [
    "zero",
    "one",
    "two",
    "three",
    "four",
    "five",
    "six",
    "seven",
    "eight",
    "nine",
    "ten",
    "eleven",
    "twelve",
    "thirteen",
    "fourteen",
    "fifteen",
    "sixteen",
    "seventeen",
    "eighteen",
    "nineteen",
    "twenty",
]


class Scalars:
    """Decides scalars beyond exact arithmetic. This one leaves every question open: None means "not decided here"."""

    def identical(self, a: Node, b: Node) -> Ternary:
        return None

    def factor_between(self, a: Node, b: Node) -> int | None:
        return None

    def within(self, a: Node, b: Node, tolerance: Fraction) -> Ternary:
        return None


def every(outcomes: Iterable[Ternary]) -> Ternary:
    """Three-valued "and": False if any is False, else None if any is None, else True."""
    result: Ternary = True
    for outcome in outcomes:
        if outcome is False:
            return False
        result = None if outcome is None else result
    return result


def some(outcomes: Iterable[Ternary]) -> Ternary:
    """Three-valued "or": True if any is True, else None if any is None, else False."""
    result: Ternary = False
    for outcome in outcomes:
        if outcome is True:
            return True
        result = None if outcome is None else result
    return result


def same_words(gold: str, given: str, gold_is_text: bool) -> bool:
    """Whether two words are equal, ignoring case. The case of a single letter counts, unless the gold answer is marked
    as text."""
    if len(gold) == 1 and not gold_is_text:
        return gold == given
    return gold.casefold() == given.casefold()


def _spelled(node: Node) -> str | None:
    """The word that a tree spells: plain letters were parsed as a product, such as ``E*v*e*n``."""
    match node:
        case Text():
            return node.words.strip(" .()")
        case Sym():
            return node.name
        case Apply(fn="mul") if all(isinstance(a, Sym) for a in node.args):
            return "".join(a.name for a in node.args if isinstance(a, Sym))
        case Quantity():
            inner = _spelled(node.value)
            return None if inner is None else f"{inner} {node.unit}"
    return None


def _is_valueless(node: Node) -> bool:
    """Whether a tree contains infinity, a named figure or a set name, so that it can be compared by key only."""
    named = isinstance(node, Sym) and (node.name == "oo" or " " in node.name)
    return named or isinstance(node, Based | Text) or any(_is_valueless(child) for child in children(node))


class Comparer:
    """Compares a gold tree with a predicted one. Asymmetric only if a policy says so (percent, number words)."""

    def __init__(self, scalars: Scalars) -> None:
        self.scalars = scalars

    def equal(self, gold: Node, given: Node) -> Ternary:
        if key(gold) == key(given):
            return True
        if isinstance(gold, Text) and gold.words.casefold() in _NUMBER_WORDS:
            gold = Num(Fraction(_NUMBER_WORDS.index(gold.words.casefold())))
        if isinstance(gold, Text) or isinstance(given, Text):
            a, b = _spelled(gold), _spelled(given)
            return a is not None and b is not None and same_words(a, b, isinstance(gold, Text))
        rules: tuple[tuple[type, Callable[[Node, Node], Ternary]], ...] = (
            (Quantity, self._quantities),
            (Rel, self._relations),
            (SetOp, self._pieces),
            (Seq, self._sequences),
            (Matrix, self._matrices),
            (Ratio, self._ratios),
        )
        for kind, rule in rules:
            if isinstance(gold, kind) or isinstance(given, kind):
                return rule(gold, given)
        return self._scalars(gold, given)

    def _quantities(self, gold: Node, given: Node) -> Ternary:
        gold_value, gold_unit = _unpack(gold)
        given_value, given_unit = _unpack(given)
        if gold_unit is not None and given_unit is not None and gold_unit != given_unit:
            return False
        if {"am", "pm"} & {gold_unit, given_unit} and isinstance(gold_value, Ratio) != isinstance(given_value, Ratio):
            return False
        percent_gold, percent_given = gold_unit == "%", given_unit == "%"
        if percent_gold == percent_given:
            return self.equal(gold_value, given_value)
        hundred = Num(Fraction(100))
        if percent_gold:
            hundredth = Apply("div", (gold_value, hundred))
            return some((self.equal(gold_value, given_value), self.equal(hundredth, given_value)))
        magnitude = try_rational(gold_value)
        sign_left_out = magnitude is not None and abs(magnitude) >= 1
        plain = self.equal(gold_value, given_value) if sign_left_out else False
        return some((plain, self.equal(gold_value, Apply("div", (given_value, hundred)))))

    def _relations(self, gold: Node, given: Node) -> Ternary:
        gold_approximations = _approximations(gold)
        if gold_approximations is not None:
            return some(self.equal(part, given) for part in gold_approximations)
        given_approximations = _approximations(given)
        if given_approximations is not None:
            return self.equal(gold, given_approximations[0])
        if isinstance(gold, Rel) and isinstance(given, Rel):
            return self._two_relations(gold, given)
        gold_value, given_value = _without_label(gold), _without_label(given)
        if gold_value is None or given_value is None:
            return self._pieces(gold, given)
        return self.equal(gold_value, given_value)

    def _two_relations(self, gold: Rel, given: Rel) -> Ternary:
        gold_label, given_label = split_label(gold), split_label(given)
        if gold_label is not None and given_label is not None:
            if key(gold_label[0]) == key(given_label[0]):
                return self.equal(gold_label[1], given_label[1])
            if gold.ops != ("=",) or given.ops != ("=",):
                return False
        if len(gold.ops) == len(given.ops) == 1:
            return some((self._two_parts(gold, given), self._pieces(gold, given, labels=True)))
        return some((self._same_chain(gold, given), self._pieces(gold, given, labels=True)))

    def _same_chain(self, gold: Rel, given: Rel) -> Ternary:
        """Whether the parts of two relations are equal, read from left to right or from right to left."""
        mirrored = Rel(tuple(flip(op) for op in reversed(given.ops)), tuple(reversed(given.parts)))
        return some(
            self._in_order(gold.parts, relation.parts) for relation in (given, mirrored) if gold.ops == relation.ops
        )

    def _two_parts(self, gold: Rel, given: Rel) -> Ternary:
        """Compare equations, inequalities and ``!=``: one relation must be a constant multiple of the other."""
        op, other = gold.ops[0], given.ops[0]
        if op not in ("=", "!=", "<", ">", "<=", ">=") or other not in (op, flip(op)):
            return gold.ops == given.ops and self._in_order(gold.parts, given.parts)
        parts = (*gold.parts, *given.parts)
        if any(_is_valueless(p) or not isinstance(p, Num | Sym | Apply | Quantity) for p in parts):
            return self._same_chain(gold, given)
        differences = (Apply("add", (left, neg(right))) for left, right in (gold.parts, given.parts))
        sign = self.scalars.factor_between(*differences)
        if sign is None:
            return None
        if op in ("=", "!="):
            return sign != 0
        return sign != 0 and (other == op) == (sign > 0)

    def _pieces(self, gold: Node, given: Node, labels: bool = False) -> Ternary:
        """Compare unions of intervals and points. An inequality counts as such a union."""
        a, b = as_pieces(gold), as_pieces(given)
        if a is None or b is None:
            return False
        if labels and a.label is not None and b.label is not None and key(a.label) != key(b.label):
            return False
        return self._unordered(a.pieces, b.pieces, distinct=True)

    def _sequences(self, gold: Node, given: Node) -> Ternary:  # noqa: PLR0911  # one return per pair of kinds
        if isinstance(gold, Matrix) or isinstance(given, Matrix):
            return self._matrices(gold, given)
        if not isinstance(gold, Seq) or not isinstance(given, Seq):
            return False
        loose = ("list", "set")
        if gold.kind in loose and given.kind in loose:
            if _are_assignments(gold.items) != _are_assignments(given.items) and len(gold.items) > 1:
                return self._in_order(gold.items, given.items)
            return self._unordered(gold.items, given.items, distinct="set" in (gold.kind, given.kind))
        if gold.kind == given.kind:
            return self._in_order(gold.items, given.items)
        for a, b in ((gold, given), (given, gold)):
            if a.kind == "list" and b.kind == "()" and _are_assignments(a.items):
                return self._in_order(gold.items, given.items)
            if a.kind == "list" and all(isinstance(item, Rel) for item in a.items) and b.kind != "list":
                return self._pieces(gold, given)
        return False

    def _in_order(self, gold: Sequence[Node], given: Sequence[Node]) -> Ternary:
        if len(gold) != len(given):
            return False
        return every(self.equal(a, b) for a, b in zip(gold, given, strict=True))

    def _unordered(self, gold: Sequence[Node], given: Sequence[Node], *, distinct: bool) -> Ternary:
        """Match the values one to one. Equality is transitive, so the first match is as good as any other."""
        if distinct:
            gold, given = self._deduplicated(gold), self._deduplicated(given)
        if len(gold) != len(given):
            return False
        rest = list(given)
        unknown = False
        for wanted in gold:
            outcomes = []
            for candidate in rest:
                outcomes.append(self.equal(wanted, candidate))
                if outcomes[-1]:
                    break
            if outcomes and outcomes[-1]:
                rest.pop(len(outcomes) - 1)
            elif None in outcomes:
                unknown = True
            else:
                return False
        return None if unknown else True

    def _deduplicated(self, items: Sequence[Node]) -> list[Node]:
        out: list[Node] = []
        for item in items:
            if not any(self.equal(seen, item) for seen in out):
                out.append(item)
        return out

    def _matrices(self, gold: Node, given: Node) -> Ternary:
        """Compare entry by entry; a column may also be written as a tuple."""
        if isinstance(gold, Matrix) and isinstance(given, Matrix):
            if gold.bars != given.bars or len(gold.rows) != len(given.rows):
                return False
            return every(self._in_order(a, b) for a, b in zip(gold.rows, given.rows, strict=True))
        matrix, other = (gold, given) if isinstance(gold, Matrix) else (given, gold)
        if not isinstance(matrix, Matrix) or not isinstance(other, Seq) or other.kind != "()" or matrix.bars:
            return False
        if any(len(row) != 1 for row in matrix.rows):
            return False
        column = [row[0] for row in matrix.rows]
        return self._in_order(column, other.items) if matrix is gold else self._in_order(other.items, column)

    def _ratios(self, gold: Node, given: Node) -> Ternary:
        if isinstance(gold, Ratio) and isinstance(given, Ratio):
            return self._in_order(gold.items, given.items)
        if any(isinstance(node, Ratio) and len(node.items) != 2 for node in (gold, given)):
            return False
        a, b = (Apply("div", node.items) if isinstance(node, Ratio) else node for node in (gold, given))
        return self.equal(a, b)

    def _scalars(self, gold: Node, given: Node) -> Ternary:
        if _is_valueless(gold) or _is_valueless(given) or (isinstance(gold, Sym) and isinstance(given, Sym)):
            return False
        a, b = try_rational(gold), try_rational(given)
        if a is not None and b is not None:
            return a == b or _rounds_to(a, given) or _rounds_to(b, gold)
        if a is not None and isinstance(given, Apply) and given.fn == "mul" and len(given.args) == 2:
            # ``3s`` against a gold answer without variables: the letter is a unit.
            value, letter = given.args
            if isinstance(letter, Sym) and letter.name in UNIT_LETTERS and try_rational(value) is not None:
                return self.equal(gold, value)
        outcomes = [self.scalars.identical(gold, given)]
        for exact, decimal in ((gold, given), (given, gold)):
            if isinstance(decimal, Num) and decimal.digits >= ROUNDING_DIGITS and try_rational(exact) is None:
                outcomes.append(self.scalars.within(exact, decimal, _last_place(decimal)))
        return some(outcomes)


def _last_place(decimal: Num) -> Fraction:
    """Size of one unit in the last written digit."""
    power = 0
    magnitude = abs(decimal.value)
    while magnitude >= 1:
        magnitude, power = magnitude / 10, power + 1
    while 0 < magnitude < Fraction(1, 10):
        magnitude, power = magnitude * 10, power - 1
    return Fraction(10) ** (power - decimal.digits)


def _rounds_to(exact: Fraction, given: Node) -> bool:
    """Whether a long decimal is the rounded value of a fraction that no decimal equals."""
    if not isinstance(given, Num) or given.digits < ROUNDING_DIGITS:
        return False
    terminating = 10 ** exact.denominator.bit_length() % exact.denominator == 0
    return not terminating and abs(exact - given.value) < _last_place(given)


def _unpack(node: Node) -> tuple[Node, str | None]:
    """The value and the canonical unit of a node. Words that are no unit count as no unit."""
    if isinstance(node, Quantity):
        return node.value, canonical_unit(node.unit)
    return node, None


def _approximations(node: Node) -> list[Node] | None:
    """Both sides of ``exact ~ decimal``; None without such a sign."""
    if not isinstance(node, Rel) or "~" not in node.ops:
        return None
    cut = node.ops.index("~")
    before = Rel(node.ops[:cut], node.parts[: cut + 1]) if cut else node.parts[0]
    return [before, node.parts[cut + 1]]


def _without_label(node: Node) -> Node | None:
    """The value that a labelled relation gives. Other relations have no value; any other node is its own value."""
    if not isinstance(node, Rel):
        return node
    label = split_label(node)
    return None if label is None else label[1]


def _are_assignments(items: Sequence[Node]) -> bool:
    """Whether every item names its own quantity, as in AB=4, CD=5."""
    labels = [split_label(item) if isinstance(item, Rel) else None for item in items]
    names = {key(label[0]) for label in labels if label is not None}
    return len(names) == len(items) and all(label is not None and is_label(label[0]) for label in labels)
