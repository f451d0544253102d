"""Identity of two expressions by evaluation to many digits at fixed points. Runs in the worker only.

Two expressions are called equal when they agree to 40 digits at every comparable point and to 230 digits at one of
them. Points are real, of both signs. A point is comparable when both sides are real there; expressions that contain
``i``, or constants that are not real, are compared as complex numbers (principal values).
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from fractions import Fraction
from typing import Any

import mpmath  # type: ignore[import-untyped]  # it carries no types

from selfcorrect.verify.math.exact import try_rational
from selfcorrect.verify.math.nodes import CONSTANTS, Apply, Node, Num, Quantity, Sym, TooHard, symbols

_COARSE_DIGITS, _FINE_DIGITS, _GUARD = 60, 250, 20
_NOISE = 1e-20
"""A larger difference at the coarse precision counts as a real difference."""
_MAX_LOG2 = 40_000
_POINTS = 10
_SEED = 20240912

Number = Any
"""mpmath's mpf or mpc; mpmath has no type annotations."""


class OutOfDomain(ValueError):
    """The expression has no value, or in real mode no real value, at this point."""


class Unevaluable(ValueError):
    """The expression contains something without a value: words, a figure, a set."""


class Evaluator:
    """Value of a tree at one point. ``real`` forbids every non-real intermediate value."""

    def __init__(self, point: Mapping[str, Number], *, real: bool) -> None:
        self.point = point
        self.real = real

    def __call__(self, node: Node) -> Number:
        value = self._value(node)
        if not mpmath.isfinite(value):
            raise OutOfDomain("not finite")
        if value != 0 and abs(mpmath.mag(value)) > _MAX_LOG2:
            raise TooHard("a value of too many digits")
        return value

    def _value(self, node: Node) -> Number:  # noqa: PLR0911, PLR0912  # one case per kind of node
        match node:
            case Num():
                return mpmath.mpf(node.value.numerator) / node.value.denominator
            case Sym("pi"):
                return mpmath.pi()
            case Sym("e"):
                return mpmath.e()
            case Sym("i"):
                return mpmath.mpc(0, 1)
            case Sym() if node.name in self.point:
                return self.point[node.name]
            case Quantity():
                return self(node.value) / (100 if node.unit == "%" else 1)
            case Apply(fn="add"):
                return mpmath.fsum(self(a) for a in node.args)
            case Apply(fn="mul"):
                return mpmath.fprod(self(a) for a in node.args)
            case Apply(fn="pow"):
                return self._power(self(node.args[0]), self(node.args[1]), try_rational(node.args[1]))
            case Apply(fn="root"):
                index = try_rational(node.args[1])
                if not index:
                    raise Unevaluable("index of a root")
                return self._power(self(node.args[0]), 1 / self(node.args[1]), 1 / index)
            case Apply(fn="frac" | "div"):
                bottom = self(node.args[1])
                if bottom == 0:
                    raise OutOfDomain("division by zero")
                return self(node.args[0]) / bottom
            case Apply():
                return self._function(node.fn, [self(a) for a in node.args])
        raise Unevaluable(type(node).__name__)

    def _power(self, base: Number, exponent: Number, rational: Fraction | None) -> Number:
        if base == 0:
            if mpmath.re(exponent) <= 0:
                raise OutOfDomain("zero to a power that is not positive")
            return mpmath.mpf(0)
        if abs(exponent) * (abs(mpmath.mag(base)) + 1) > _MAX_LOG2:
            raise TooHard("a power of too many digits")
        is_real = not isinstance(base, mpmath.mpc) or base.imag == 0
        if is_real and mpmath.re(base) < 0 and rational is not None and rational.denominator % 2 == 1:
            # The real root, as answers mean it: (-8)^(1/3) = -2.
            root = mpmath.power(-mpmath.re(base), exponent)
            return -root if rational.numerator % 2 else root
        if self.real and is_real and mpmath.re(base) < 0:
            raise OutOfDomain("even root of a negative number")
        return mpmath.power(base, exponent)

    def _function(self, fn: str, args: list[Number]) -> Number:  # noqa: PLR0911  # one return per family
        if fn.startswith("user:"):
            # An unknown function stands for some fixed transcendental one: equal arguments, equal values.
            salt = sum(ord(c) * (k + 1) for k, c in enumerate(fn)) % 97 + 2
            return mpmath.fsum(mpmath.sin(x * salt / 31 + k + salt) + x / salt for k, x in enumerate(args))
        x = args[0]
        if any(abs(a) > 10**6 for a in args) and fn not in ("abs", "sqrt", "ln", "log", "log10", "floor", "ceil"):
            raise TooHard(f"{fn} of a large number")
        if fn == "sqrt":
            return self._power(x, mpmath.mpf(1) / 2, Fraction(1, 2))
        if fn in ("ln", "log", "log10"):
            return self._logarithm(fn, args)
        if fn in ("floor", "ceil"):
            return mpmath.floor(x) if fn == "floor" else mpmath.ceil(x)
        if fn == "fact":
            if mpmath.re(x) < 0:
                raise OutOfDomain("factorial of a negative number")
            if abs(x) > 10_000:
                raise TooHard("a large factorial")
            return mpmath.factorial(x)
        if fn == "binom":
            return mpmath.binomial(x, args[1])
        function = getattr(mpmath, _FUNCTIONS.get(fn, ""), None)
        if function is None:
            raise Unevaluable(fn)
        if self.real and fn in ("arcsin", "arccos") and abs(x) > 1:
            raise OutOfDomain(fn)
        return function(x)

    def _logarithm(self, fn: str, args: list[Number]) -> Number:
        """``log`` without a base is natural, like ``ln``: MATH writes both; ``lg`` is to base ten."""
        if any(a == 0 or (self.real and mpmath.re(a) < 0) for a in args):
            raise OutOfDomain("logarithm")
        bottom = mpmath.log(args[1]) if len(args) == 2 else mpmath.log(10) if fn == "log10" else mpmath.mpf(1)
        if bottom == 0:
            raise OutOfDomain("logarithm to base one")
        return mpmath.log(args[0]) / bottom


_FUNCTIONS = {
    "sin": "sin", "cos": "cos", "tan": "tan", "cot": "cot", "sec": "sec", "csc": "csc", "arcsin": "asin",
    "arccos": "acos", "arctan": "atan", "arccot": "acot", "arcsec": "asec", "arccsc": "acsc", "sinh": "sinh",
    "cosh": "cosh", "tanh": "tanh", "exp": "exp", "abs": "fabs",
}  # fmt: skip


def _points(names: frozenset[str]) -> Iterator[dict[str, Fraction]]:
    """Fixed points: three with every variable positive (where roots and logarithms are real), then mixed signs."""
    for k in range(_POINTS if names else 1):
        draw = random.Random(_SEED + k)
        point = {}
        for name in sorted(names):
            size = Fraction(draw.randrange(10**6, 10**7), 10**6 * (3 if k % 2 else 1) + 7)
            point[name] = size if k < 3 or draw.random() < 0.5 else -size
        yield point


def _evaluate(node: Node, point: Mapping[str, Fraction], *, real: bool) -> Number | None:
    values = {name: mpmath.mpf(v.numerator) / v.denominator for name, v in point.items()}
    try:
        return Evaluator(values, real=real)(node)
    except (OutOfDomain, ZeroDivisionError):
        return None


def _near(a: Number, b: Number, digits: int) -> bool:
    return bool(abs(a - b) <= max(abs(a), abs(b)) * mpmath.mpf(10) ** -digits)


def _settled(node: Node, point: Mapping[str, Fraction], *, real: bool) -> Number | None:
    """The value to many digits, or exactly 0 if its digits are rounding noise, which changes with the precision."""
    with mpmath.workdps(_FINE_DIGITS):
        first = _evaluate(node, point, real=real)
    with mpmath.workdps(2 * _FINE_DIGITS):
        second = _evaluate(node, point, real=real)
        if first is None or second is None:
            return None
        return second if _near(first, second, _COARSE_DIGITS) else mpmath.mpf(0)


def _pairs(a: Node, b: Node, digits: int) -> list[tuple[dict[str, Fraction], bool, Number, Number]]:
    """(point, real mode, value of a, value of b) at points where both are defined; complex values only if no real point
    is found."""
    names = symbols(a) | symbols(b)
    modes = (False,) if "i" in names else (True, False)
    with mpmath.workdps(digits):
        for real in modes:
            found = []
            for point in _points(names - CONSTANTS):
                x, y = _evaluate(a, point, real=real), _evaluate(b, point, real=real)
                if x is not None and y is not None:
                    found.append((point, real, x, y))
            if found:
                return found
    return []


def _agree_at(a: Node, b: Node, point: Mapping[str, Fraction], *, real: bool, digits: int) -> bool:
    with mpmath.workdps(2 * _FINE_DIGITS):
        x, y = _settled(a, point, real=real), _settled(b, point, real=real)
        return x is not None and y is not None and _near(x, y, digits)


def identical(a: Node, b: Node) -> bool:
    """Whether two scalar expressions are equal for all values of their variables.

    Raises:
        TooHard: a value is over the size limits.
        Unevaluable: an expression has no numerical meaning.
    """
    pairs = _pairs(a, b, _COARSE_DIGITS)
    if not pairs:
        return False
    with mpmath.workdps(_COARSE_DIGITS):
        for point, real, x, y in pairs:
            if _near(x, y, _COARSE_DIGITS - _GUARD):
                continue
            # Near zero the coarse digits may be what cancellation left over; elsewhere they decide.
            if abs(x - y) > _NOISE or not _agree_at(a, b, point, real=real, digits=_COARSE_DIGITS - _GUARD):
                return False
    point, real, _, _ = pairs[0]
    return _agree_at(a, b, point, real=real, digits=_FINE_DIGITS - _GUARD)


def factor_between(a: Node, b: Node) -> int:
    """Sign of the constant c with a = c*b for all values of the variables; 0 if there is no such c."""
    pairs = _pairs(a, b, _COARSE_DIGITS)
    with mpmath.workdps(_COARSE_DIGITS):
        if len(pairs) < 3 or any(x == 0 or y == 0 for _, _, x, y in pairs):
            return 0
        ratios = [x / y for _, _, x, y in pairs]
        if any(not _near(r, ratios[0], _COARSE_DIGITS - _GUARD) for r in ratios):
            return 0
        return 1 if mpmath.re(ratios[0]) > 0 else -1


def within(a: Node, b: Node, tolerance: Fraction) -> bool:
    """Whether two constants differ by less than ``tolerance``; False for expressions with variables."""
    if (symbols(a) | symbols(b)) - CONSTANTS:
        return False
    with mpmath.workdps(_COARSE_DIGITS):
        x, y = _evaluate(a, {}, real=True), _evaluate(b, {}, real=True)
        if x is None or y is None:
            return False
        return bool(abs(x - y) < mpmath.mpf(tolerance.numerator) / tolerance.denominator)
