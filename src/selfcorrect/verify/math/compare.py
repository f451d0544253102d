"""Equivalence of two parsed answers, in three values: True, False, and None for "needs the worker".

The structure is decided here; scalars that exact arithmetic cannot decide go to a ``Scalars`` object, which knows
nothing in the calling process (``ExactOnly``) and evaluates to many digits in the worker.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from fractions import Fraction
from typing import Protocol

from selfcorrect.verify.math.build import neg
from selfcorrect.verify.math.exact import key, try_rational
from selfcorrect.verify.math.nodes import Apply, Based, Matrix, Node, Num, Quantity, Ratio, Rel, Seq, SetOp, Sym, Text
from selfcorrect.verify.math.relations import as_pieces, flip, is_label, split_label
from selfcorrect.verify.math.structures import children
from selfcorrect.verify.math.units import canonical_unit, is_unit_letter

Ternary = bool | None

ROUNDING_DIGITS = 10
"""Policy: a decimal with at least so many significant digits may stand for a value that no decimal equals."""

_NUMBER_WORDS = {
    w: n
    for n, w in enumerate(
        [
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
    )
}


class Scalars(Protocol):
    """What decides scalars beyond exact arithmetic. None means: not decided here."""

    def identical(self, a: Node, b: Node) -> Ternary: ...
    def factor_between(self, a: Node, b: Node) -> int | None: ...
    def within(self, a: Node, b: Node, tolerance: Fraction) -> Ternary: ...


class ExactOnly:
    """Leaves every symbolic question open."""

    def identical(self, a: Node, b: Node) -> Ternary:
        return None

    def factor_between(self, a: Node, b: Node) -> int | None:
        return None

    def within(self, a: Node, b: Node, tolerance: Fraction) -> Ternary:
        return None


def every(outcomes: Iterable[Ternary]) -> Ternary:
    """False beats None beats True."""
    unknown = False
    for outcome in outcomes:
        if outcome is False:
            return False
        unknown = unknown or outcome is None
    return None if unknown else True


def some(outcomes: Iterable[Ternary]) -> Ternary:
    """True beats None beats False."""
    unknown = False
    for outcome in outcomes:
        if outcome is True:
            return True
        unknown = unknown or outcome is None
    return None if unknown else False


def _difference(a: Node, b: Node) -> Node:
    return Apply("add", (a, neg(b)))


def same_words(gold: str, given: str, gold_is_text: bool) -> bool:
    """Equal but for case; the case of a single letter counts unless the gold answer is marked as text."""
    if len(gold) == 1 and not gold_is_text:
        return gold == given
    return gold.casefold() == given.casefold()


def _spelled(node: Node) -> str | None:
    """The word that a tree spells: ``E*v*e*n`` came from plain letters."""
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
    """Holds infinity, a named figure or a set name: comparable by key only."""
    named = isinstance(node, Sym) and (node.name == "oo" or " " in node.name)
    return named or isinstance(node, Based | Text) or any(_is_valueless(child) for child in children(node))


def _is_terminating(value: Fraction) -> bool:
    bottom = value.denominator
    for prime in (2, 5):
        while bottom % prime == 0:
            bottom //= prime
    return bottom == 1


class Comparer:
    """Compares a gold tree with a predicted one. Asymmetric only where a policy says so (percent, number words)."""

    def __init__(self, scalars: Scalars) -> None:
        self.scalars = scalars

    def equal(self, gold: Node, given: Node) -> Ternary:
        if key(gold) == key(given):
            return True
        if isinstance(gold, Text) and gold.words.casefold() in _NUMBER_WORDS:
            gold = Num(Fraction(_NUMBER_WORDS[gold.words.casefold()]))
        rules: tuple[tuple[type | tuple[type, ...], Callable[[Node, Node], Ternary]], ...] = (
            (Text, self._words),
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

    @staticmethod
    def _words(gold: Node, given: Node) -> Ternary:
        a, b = _spelled(gold), _spelled(given)
        return a is not None and b is not None and same_words(a, b, isinstance(gold, Text))

    def _quantities(self, gold: Node, given: Node) -> Ternary:
        gold_value, gold_unit = _unpack(gold)
        given_value, given_unit = _unpack(given)
        if gold_unit is not None and given_unit is not None and gold_unit != given_unit:
            return False
        if {"am", "pm"} & {gold_unit, given_unit} and isinstance(gold_value, Ratio) != isinstance(given_value, Ratio):
            return False
        percent_gold, percent_given = gold_unit == "%", given_unit == "%"
        if percent_gold and not percent_given:
            return some((self.equal(gold_value, given_value), self.equal(_hundredth(gold_value), given_value)))
        if percent_given and not percent_gold:
            magnitude = try_rational(gold_value)
            sign_left_out = magnitude is not None and abs(magnitude) >= 1
            plain = self.equal(gold_value, given_value) if sign_left_out else False
            return some((plain, self.equal(gold_value, _hundredth(given_value))))
        return self.equal(gold_value, given_value)

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
        mirrored = Rel(tuple(flip(op) for op in reversed(given.ops)), tuple(reversed(given.parts)))
        return some((self._same_chain(gold, given), self._same_chain(gold, mirrored), self._pieces(gold, given, True)))

    def _same_chain(self, gold: Rel, given: Rel) -> Ternary:
        if gold.ops != given.ops:
            return False
        return every(self.equal(a, b) for a, b in zip(gold.parts, given.parts, strict=True))

    def _two_parts(self, gold: Rel, given: Rel) -> Ternary:
        """Equations, inequalities and inequations: one side must be a constant multiple of the other."""
        op, other = gold.ops[0], given.ops[0]
        if op not in ("=", "!=", "<", ">", "<=", ">=") or other not in (op, flip(op)):
            return self._same_chain(gold, given)
        parts = (*gold.parts, *given.parts)
        if any(_is_valueless(p) or not _is_scalar(p) for p in parts):
            return some((self._same_chain(gold, given), self._same_chain(gold, _mirror(given))))
        sign = self.scalars.factor_between(_difference(*gold.parts), _difference(*given.parts))
        if sign is None:
            return None
        if op in ("=", "!="):
            return sign != 0
        return sign != 0 and (other == op) == (sign > 0)

    def _pieces(self, gold: Node, given: Node, labels: bool = False) -> Ternary:
        """Unions of intervals and points, inequalities among them."""
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
        """Match one to one. Equality is transitive, so the first match found is as good as any."""
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
        """Entry by entry; a column may also be written as a tuple."""
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
        return self.equal(_as_quotient(gold), _as_quotient(given)) if _has_two_parts(gold, given) else False

    def _scalars(self, gold: Node, given: Node) -> Ternary:
        if _is_valueless(gold) or _is_valueless(given) or (isinstance(gold, Sym) and isinstance(given, Sym)):
            return False
        a, b = try_rational(gold), try_rational(given)
        if a is not None and b is not None:
            return a == b or _rounds_to(a, given) or _rounds_to(b, gold)
        bare = _without_unit_letter(given)
        if a is not None and bare is not None:
            return self.equal(gold, bare)
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
    if not isinstance(given, Num) or given.digits < ROUNDING_DIGITS or _is_terminating(exact):
        return False
    return abs(exact - given.value) < _last_place(given)


def _unpack(node: Node) -> tuple[Node, str | None]:
    """Value and canonical unit; a unit that is only words counts as none."""
    if isinstance(node, Quantity):
        return node.value, canonical_unit(node.unit)
    return node, None


def _hundredth(value: Node) -> Node:
    return Apply("div", (value, Num(Fraction(100))))


def _approximations(node: Node) -> list[Node] | None:
    """The two readings of ``exact ~ decimal``; None without such a sign."""
    if not isinstance(node, Rel) or "~" not in node.ops:
        return None
    cut = node.ops.index("~")
    before = Rel(node.ops[:cut], node.parts[: cut + 1]) if cut else node.parts[0]
    return [before, node.parts[cut + 1]]


def _without_label(node: Node) -> Node | None:
    """The value that a labelled relation gives; other relations have none, other nodes are their own."""
    if not isinstance(node, Rel):
        return node
    label = split_label(node)
    return None if label is None else label[1]


def _mirror(relation: Rel) -> Rel:
    return Rel(tuple(flip(op) for op in reversed(relation.ops)), tuple(reversed(relation.parts)))


def _is_scalar(node: Node) -> bool:
    return isinstance(node, Num | Sym | Apply | Quantity)


def _are_assignments(items: Sequence[Node]) -> bool:
    """Every item names its own quantity: AB=4, CD=5."""
    labels = [split_label(item) if isinstance(item, Rel) else None for item in items]
    names = {key(label[0]) for label in labels if label is not None}
    return len(names) == len(items) and all(label is not None and is_label(label[0]) for label in labels)


def _has_two_parts(*nodes: Node) -> bool:
    return all(len(n.items) == 2 for n in nodes if isinstance(n, Ratio))


def _as_quotient(node: Node) -> Node:
    return Apply("div", node.items) if isinstance(node, Ratio) else node


def _without_unit_letter(given: Node) -> Node | None:
    """``3s`` beside a gold without variables: the letter is a unit."""
    if isinstance(given, Apply) and given.fn == "mul" and len(given.args) == 2:
        value, letter = given.args
        if isinstance(letter, Sym) and is_unit_letter(letter.name) and try_rational(value) is not None:
            return value
    return None
