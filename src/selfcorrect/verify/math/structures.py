"""The outer grammar of an answer: lists, relations, sets, intervals, tuples, matrices, ratios, words."""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Literal, cast

from selfcorrect.verify.math.expressions import ExpressionParser
from selfcorrect.verify.math.nodes import (
    MINUS_INFINITY,
    MINUS_ONE,
    Apply,
    CannotParse,
    Matrix,
    Node,
    Quantity,
    Ratio,
    Rel,
    Seq,
    SetOp,
    Sym,
    Text,
    TooHard,
    children,
    number,
)
from selfcorrect.verify.math.normalise import PLAIN_NUMBER, word_key

_RELATIONS = {
    "=": "=", "<": "<", ">": ">", r"\le": "<=", r"\ge": ">=", r"\ne": "!=", r"\in": "in", r"\approx": "~",
    r"\sim": "~", r"\equiv": "equiv", r"\to": "to", r"\simeq": "~", r"\notin": "notin",
}  # fmt: skip
_SET_OPERATORS: dict[str, Literal["cup", "cap", "minus"]] = {
    r"\cup": "cup", r"\cap": "cap", r"\setminus": "minus", r"\backslash": "minus",
}  # fmt: skip
_MATRIX_ENVIRONMENTS = frozenset({"pmatrix", "bmatrix", "matrix", "array", "smallmatrix", "Bmatrix", "vmatrix"})
MAX_ITEMS = 200


class Parser(ExpressionParser):
    def answer(self) -> Node:
        """The whole text as one answer; several values become a ``list``."""
        groups = [self.group()]
        while self.accept(";"):
            groups.append(self.group())
        if self.token.kind != "end":
            raise CannotParse(f"unexpected {self.token.value!r}")
        if len(groups) == 1:
            return groups[0]
        if all(isinstance(g, Seq) and g.kind == "list" for g in groups):
            # p=5, q=2; p=7, q=2: each group is one solution.
            return Seq("list", tuple(Seq("()", cast(Seq, g).items) for g in groups))
        return as_list(groups)

    def group(self) -> Node:
        items = [self.relation()]
        while self.at(",", r"\sep"):
            while self.accept(",", r"\sep"):
                pass
            if self.token.kind == "end":
                break
            items.append(self.relation())
            if len(items) > MAX_ITEMS:
                raise TooHard(f"more than {MAX_ITEMS} values")
        return as_list(items)

    def relation(self) -> Node:
        self.accept(r"\approx", r"\sim")
        parts, ops = [self.set_expression()], []
        while self.token.kind in ("op", "cmd") and self.token.value in _RELATIONS:
            ops.append(_RELATIONS[self.advance().value])
            parts.append(self.set_expression())
        return Rel(tuple(ops), tuple(parts)) if ops else parts[0]

    def set_expression(self) -> Node:
        left = self.ratio()
        while self.token.value in _SET_OPERATORS:
            op = _SET_OPERATORS[self.advance().value]
            right = self.ratio()
            same = isinstance(left, SetOp) and left.op == op and op != "minus"
            left = SetOp(op, (*cast(SetOp, left).items, right) if same else (left, right))
        return left

    def ratio(self) -> Node:
        items = [self.value()]
        while self.accept(":"):
            items.append(self.value())
        if len(items) == 1:
            return items[0]
        last = items[-1]
        if isinstance(last, Quantity):
            return Quantity(Ratio((*items[:-1], last.value)), last.unit)
        return Ratio(tuple(items))

    def value(self) -> Node:
        return reject_odd_arithmetic(self.expression())

    def structure(self, value: str) -> Node:  # noqa: PLR0911  # one return per opening
        match value:
            case "(" | "[":
                return self.bracketed(value)
            case r"\{":
                return self.set_literal()
            case r"\langle":
                items = self.items((r"\rangle",))
                self.expect(r"\rangle")
                return Seq("()", items)
            case r"\emptyset":
                return Seq("set", ())
            case r"\mathbb":
                name = self.argument()
                if not isinstance(name, Sym):
                    raise CannotParse("blackboard letters")
                return Seq("()", (MINUS_INFINITY, Sym("oo"))) if name.name == "R" else Sym("set " + name.name)
            case "{":
                # A TeX group; with commas inside it is the set that its author meant by ``{1,2}``.
                if self.accept("}"):
                    return self.atom()
                items = self.items(("}",))
                self.expect("}")
                return items[0] if len(items) == 1 else Seq("set", items)
            case _ if value.startswith(r"\begin"):
                return self.matrix(value[7:].partition("}")[0])
        raise CannotParse(f"unexpected {value!r}")

    def items(self, closers: tuple[str, ...]) -> tuple[Node, ...]:
        # A bar inside brackets may open again, whatever is open outside.
        outer_bars, self.bars = self.bars, 0
        outer_angle = self.in_angle
        with self.nested():
            out = [self.relation()]
            while self.accept(",", ";", r"\sep"):
                if self.at(*closers):
                    break
                if not self.at(",", r"\sep"):
                    out.append(self.relation())
                if len(out) > MAX_ITEMS:
                    raise TooHard(f"more than {MAX_ITEMS} values")
        self.bars, self.in_angle = outer_bars, outer_angle
        return tuple(out)

    def bracketed(self, opener: str) -> Node:
        items = self.items((")", "]"))
        closer = self.advance().value
        if closer not in (")", "]"):
            raise CannotParse(f"bracket closed by {closer or 'the end'!r}")
        if len(items) == 1 and (opener + closer == "()" or isinstance(items[0], Matrix)):
            return items[0]
        if len(items) != 2 and opener + closer in ("[)", "(]"):
            raise CannotParse("an interval has two ends")
        return Seq(cast(Literal["()", "[]", "[)", "(]"], opener + closer), items)

    def set_literal(self) -> Node:
        if self.accept(r"\}"):
            return Seq("set", ())
        items = self.items((r"\}",))
        self.expect(r"\}")
        expanded = as_list(list(items))
        return Seq("set", expanded.items if isinstance(expanded, Seq) and expanded.kind == "list" else (expanded,))

    def matrix(self, environment: str) -> Node:
        if environment not in _MATRIX_ENVIRONMENTS:
            raise CannotParse(f"environment {environment}")
        rows: list[tuple[Node, ...]] = []
        row: list[Node] = []
        ended = False
        while not ended:
            if not self.at("&", "\\\\") and not self.token.value.startswith(r"\end"):
                row.append(self.value())
            token = self.advance()
            ended = token.value.startswith(r"\end")
            if token.value == "\\\\" or ended:
                if row:
                    rows.append(tuple(row))
                row = []
            elif token.value != "&":
                raise CannotParse("matrix entry")
        if not rows or len({len(r) for r in rows}) != 1:
            raise CannotParse("rows of different length")
        return Matrix(tuple(rows), bars=environment == "vmatrix")


def as_list(items: list[Node]) -> Node:
    """A single value is returned as it is; each value with plus-minus becomes two values."""
    if len(items) == 1 and not contains_plus_minus(items[0]):
        return items[0]
    out: list[Node] = []
    for item in items:
        if contains_plus_minus(item):
            out += [choose_sign(item, upper=True), choose_sign(item, upper=False)]
        elif isinstance(item, Text) and "," in item.words:
            out += [Text(w.strip()) for w in item.words.strip("()").split(",") if w.strip()]
        else:
            out.append(item)
    return Seq("list", tuple(out))


def contains_plus_minus(node: Node) -> bool:
    here = isinstance(node, Apply) and node.fn in ("pm", "mp")
    return here or any(contains_plus_minus(child) for child in children(node))


def choose_sign(node: Node, *, upper: bool) -> Node:
    """The tree with every plus-minus read as its upper, or lower, sign."""
    match node:
        case Apply(fn="pm" | "mp", args=(inner,)):
            chosen = choose_sign(inner, upper=upper)
            return chosen if (node.fn == "pm") == upper else Apply("mul", (MINUS_ONE, chosen))
        case Apply():
            return Apply(node.fn, tuple(choose_sign(a, upper=upper) for a in node.args))
        case Rel():
            return Rel(node.ops, tuple(choose_sign(p, upper=upper) for p in node.parts))
        case Quantity():
            return Quantity(choose_sign(node.value, upper=upper), node.unit)
        case Seq():
            return Seq(node.kind, tuple(choose_sign(i, upper=upper) for i in node.items))
    return node


def reject_odd_arithmetic(node: Node) -> Node:
    """Refuse sets, relations and words as operands: ``2*(1,2)`` or ``E = 5`` inside a sum is not in the grammar."""
    if isinstance(node, Apply):
        vector = node.fn.startswith("user:")
        for argument in node.args:
            if isinstance(argument, Seq | SetOp | Rel | Text | Ratio) and not vector:
                raise CannotParse(f"{type(argument).__name__} as an operand")
            reject_odd_arithmetic(argument)
    return node


_WORDS = re.compile(r"(?![-!])[\w\s.,'\"():;?!&/-]+")
_MAX_CACHED_CHARS = 200


def parse(normalised: str) -> Node:
    """The tree of a normalised answer. Trees of short answers are cached.

    Raises:
        CannotParse: the text is not in the grammar.
        TooHard: it is over a size limit.
    """
    return (_parse if len(normalised) <= _MAX_CACHED_CHARS else _parse.__wrapped__)(normalised)


@lru_cache(maxsize=20_000)
def _parse(normalised: str) -> Node:
    if len(normalised) < 100 and PLAIN_NUMBER.fullmatch(normalised):
        return number(normalised)
    if re.fullmatch("[A-Z]{2,}", normalised):
        # LQSX is a string of labels, not a product: the order of its letters counts.
        return Text(normalised)
    try:
        node = Parser(normalised).answer()
    except CannotParse:
        # Words in a \text, or several plain words. Nothing without a letter, nothing like a formula.
        plain = normalised.replace(r"\text", "").replace("{", "").replace("}", "").replace(r"\sep", "and")
        words = word_key(normalised)
        if not _WORDS.fullmatch(plain) or not re.search(r"[^\W\d_]", words):
            raise
        return Text(words)
    except RecursionError:
        raise TooHard("nested too deeply") from None
    if isinstance(node, Text) and "," in node.words:
        # \text{A, C, F} is a list of words.
        letters = [w.strip(" .()") for w in node.words.strip("()").split(",")]
        return Seq("list", tuple(Text(w) for w in letters if w))
    return node
