"""Exact arithmetic on trees: rational values and a canonical key. Bounded in time and memory, so safe anywhere."""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction

from selfcorrect.verify.math.nodes import Apply, Based, Matrix, Node, Num, Quantity, Ratio, Rel, Seq, SetOp, Sym, Text

MAX_BITS = 40_000
"""Largest numerator or denominator, in bits, that is written out; beyond it an expression stays symbolic."""
_MAX_FACTORIAL = 3_000
_MAX_BINOMIAL = 10_000


class NotRational(ValueError):
    """The expression has no rational value, or none that may be written out."""


def _bounded(value: Fraction) -> Fraction:
    if max(value.numerator.bit_length(), value.denominator.bit_length()) > MAX_BITS:
        raise NotRational("too large to write out")
    return value


def _integer(value: Fraction, limit: int) -> int:
    if value.denominator != 1 or not 0 <= value <= limit:
        raise NotRational("not a small whole number")
    return int(value)


def _perfect_root(value: int, index: int) -> int:
    if index == 2:
        root = math.isqrt(value)
    else:
        root = round(value ** (1 / index)) if value.bit_length() < 900 else 0
        root = next((r for r in (root - 1, root, root + 1) if r >= 0 and r**index == value), 0)
    if root**index != value:
        raise NotRational("irrational root")
    return root


def _root(value: Fraction, index: Fraction) -> Fraction:
    n = _integer(index, 64)
    if n == 0 or (value < 0 and n % 2 == 0):
        raise NotRational("not real")
    sign = -1 if value < 0 else 1
    return Fraction(sign * _perfect_root(abs(value.numerator), n), _perfect_root(value.denominator, n))


def _power(base: Fraction, exponent: Fraction) -> Fraction:
    if exponent.denominator != 1:
        return _power(_root(base, Fraction(exponent.denominator)), Fraction(exponent.numerator))
    if base == 0 and exponent <= 0:
        raise NotRational("zero to a power that is not positive")
    if base in (0, 1):
        return base
    if base == -1:
        return Fraction(1 if exponent.numerator % 2 == 0 else -1)
    bits = max(base.numerator.bit_length(), base.denominator.bit_length())
    if bits * abs(exponent.numerator) > MAX_BITS:
        raise NotRational("too large to write out")
    return Fraction(base**exponent.numerator)


def _quotient(a: Fraction, b: Fraction) -> Fraction:
    if b == 0:
        raise NotRational("division by zero")
    return a / b


_UNARY: dict[str, Callable[[Fraction], Fraction]] = {
    "abs": abs,
    "sqrt": lambda x: _root(x, Fraction(2)),
    "fact": lambda x: Fraction(math.factorial(_integer(x, _MAX_FACTORIAL))),
    "floor": lambda x: Fraction(math.floor(x)),
    "ceil": lambda x: Fraction(math.ceil(x)),
}
_BINARY: dict[str, Callable[[Fraction, Fraction], Fraction]] = {
    "div": _quotient,
    "frac": _quotient,
    "pow": _power,
    "root": _root,
    "binom": lambda n, k: Fraction(math.comb(_integer(n, _MAX_BINOMIAL), _integer(k, _MAX_BINOMIAL))),
}


def rational(node: Node) -> Fraction:
    """Exact value.

    Raises:
        NotRational: there is none, or it is too large to write out.
    """
    match node:
        case Num():
            return node.value
        case Quantity():
            return rational(node.value) / (100 if node.unit == "%" else 1)
        case Apply(fn="add"):
            return _bounded(sum((rational(a) for a in node.args), Fraction(0)))
        case Apply(fn="mul"):
            product = Fraction(1)
            for argument in node.args:
                product = _bounded(product * rational(argument))
            return product
        case Apply(args=(x,)) if node.fn in _UNARY:
            return _bounded(_UNARY[node.fn](rational(x)))
        case Apply(args=(x, y)) if node.fn in _BINARY:
            return _bounded(_BINARY[node.fn](rational(x), rational(y)))
    raise NotRational("no rational value")


def try_rational(node: Node) -> Fraction | None:
    try:
        return rational(node)
    except NotRational:
        return None


def _flat(node: Node, fn: str) -> list[Node]:
    if isinstance(node, Apply) and node.fn == fn:
        return [leaf for argument in node.args for leaf in _flat(argument, fn)]
    return [node]


def key(node: Node) -> str:  # noqa: PLR0911  # one return per kind of node
    """A canonical key, with sorted sums and products and numbers in lowest terms. Equal keys mean equal answers, but
    not the reverse."""
    value = try_rational(node) if isinstance(node, Apply | Num) else None
    if value is not None:
        return f"{value.numerator:x}/{value.denominator:x}"
    match node:
        case Apply(fn="add" | "mul"):
            return f"{node.fn}({','.join(sorted(key(leaf) for leaf in _flat(node, node.fn)))})"
        case Apply():
            name = "div" if node.fn == "frac" else node.fn
            return f"{name}({','.join(key(a) for a in node.args)})"
        case Sym():
            return f"'{node.name}'"
        case Text():
            return f'"{node.words}"'
        case Based():
            return f"{node.digits}_{node.base}"
        case Quantity():
            return f"{key(node.value)}[{node.unit}]"
        case Seq():
            items = [key(i) for i in node.items]
            return f"{node.kind}<{','.join(sorted(items) if node.kind in ('set', 'list') else items)}>"
        case Matrix():
            rows = ";".join(",".join(key(entry) for entry in row) for row in node.rows)
            return f"{'det' if node.bars else 'matrix'}<{rows}>"
        case SetOp():
            items = [key(i) for i in node.items]
            return f"{node.op}<{','.join(items if node.op == 'minus' else sorted(items))}>"
        case Rel():
            return "".join(key(p) + op for p, op in zip(node.parts, (*node.ops, ""), strict=True))
        case Ratio():
            return ":".join(key(i) for i in node.items)
    raise AssertionError(f"no key for {type(node).__name__}")
