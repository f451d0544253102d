"""Recursive-descent parser for the scalar part of an answer: sums, products, powers, functions, numbers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction

from selfcorrect.verify.math.nodes import (
    MINUS_ONE,
    Apply,
    Based,
    CannotParse,
    Node,
    Num,
    Quantity,
    Sym,
    Text,
    TooHard,
    add,
    mul,
    neg,
    number,
)
from selfcorrect.verify.math.tokens import Token, tokenize
from selfcorrect.verify.math.units import acceptable, power_of_ten

MAX_DEPTH = 60
"""Deepest nesting that is parsed: far below the interpreter's own recursion limit."""
MAX_CHAIN = 20
"""Most divisions or postfix operators in one term: each adds a level to the tree without nesting in the text."""

_ALIASES = {"asin": "arcsin", "acos": "arccos", "atan": "arctan", "lg": "log10"}
_ANGLE_FUNCTIONS = frozenset({"sin", "cos", "tan", "cot", "sec", "csc"})
_UNINTERPRETED = frozenset("fgh")
_GEOMETRY = frozenset({r"\angle", r"\triangle", r"\overline", r"\overrightarrow", r"\widehat", r"\vec", r"\hat"})
_BINOMIALS = (r"\binom", r"\dbinom", r"\tbinom")
_OPENING_COMMANDS = _GEOMETRY | {*_BINOMIALS, r"\frac", r"\lfloor", r"\lceil", r"\{", r"\langle"}


class ExpressionParser(ABC):
    """Parses the tokens in one pass; every method consumes what it parses. ``structures.Parser`` adds lists and
    relations."""

    def __init__(self, text: str) -> None:
        self.tokens = tokenize(text)
        self.position = 0
        self.depth = 0
        self.in_angle = False
        self.bars = 0

    @property
    def token(self) -> Token:
        return self.tokens[self.position]

    def peek(self, offset: int = 1) -> Token:
        return self.tokens[min(self.position + offset, len(self.tokens) - 1)]

    def advance(self) -> Token:
        token = self.token
        self.position += 1
        return token

    def at(self, *values: str) -> bool:
        return self.token.kind in ("op", "cmd") and self.token.value in values

    def accept(self, *values: str) -> bool:
        if self.at(*values):
            self.position += 1
            return True
        return False

    def expect(self, value: str) -> None:
        if not self.accept(value):
            raise CannotParse(f"expected {value} before {self.token.value or 'the end'!r}")

    @contextmanager
    def nested(self) -> Iterator[None]:
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise TooHard(f"nested deeper than {MAX_DEPTH}")
        yield
        self.depth -= 1

    def expression(self) -> Node:
        """Terms joined by + - and plus-minus."""
        with self.nested():
            terms = [self.signed_term()]
            while self.at("+", "-", r"\pm", r"\mp"):
                terms.append(self.signed_term())
        # Words after a sum belong to the whole of it: 480 + 480\sqrt3 feet.
        last = terms[-1]
        if len(terms) > 1 and isinstance(last, Quantity) and last.unit != "%":
            return Quantity(add(*terms[:-1], last.value), last.unit)
        return add(*terms)

    def signed_term(self) -> Node:
        sign = self.advance().value if self.at("+", "-", r"\pm", r"\mp") else "+"
        if self.at("+", "-"):
            with self.nested():
                term = self.signed_term()
        else:
            term = self.term()
        if sign in (r"\pm", r"\mp"):
            return Apply(sign[1:], (term,))
        return neg(term) if sign == "-" else term

    def term(self) -> Node:
        """Factors joined by *, / or nothing; then an optional unit."""
        result = self.factor()
        divisions = 0
        while True:
            if self.at("*", "/"):
                divided = self.advance().value == "/"
                divisions += divided
                if divisions > MAX_CHAIN:
                    raise TooHard("a long chain of divisions")
                negative = self.accept("-")
                if not negative:
                    self.accept("+")
                right = neg(self.factor()) if negative else self.factor()
                result = Apply("div", (result, right)) if divided else mul(result, right)
            elif self.token.kind == "text":
                return self.unit_after(result)
            elif self.starts_factor():
                result = self.juxtaposed(result)
            else:
                return result

    def juxtaposed(self, left: Node) -> Node:
        """``left`` followed by a factor without an operator: a mixed number, a unit letter or a product."""
        previous = self.tokens[self.position - 1]
        left_is_integer = previous.kind == "num" and isinstance(left, Num) and left.value.denominator == 1
        if self.token.kind == "num":
            if left_is_integer and self.peek().value == "/" and self.peek(2).kind == "num":
                top, bottom = number(self.advance().value), number(self.tokens[self.position + 1].value)
                self.position += 2
                return self.mixed(left, Apply("div", (top, bottom)))
            raise CannotParse("two numbers side by side")
        right = self.factor()
        if left_is_integer and isinstance(right, Apply) and right.fn == "frac":
            return self.mixed(left, right)
        return mul(left, right)

    @staticmethod
    def mixed(whole: Node, part: Apply) -> Node:
        """A whole number before a proper fraction of whole numbers makes a mixed number; before anything else it is a
        factor."""
        top, bottom = part.args
        proper = isinstance(top, Num) and isinstance(bottom, Num) and 0 < top.value < bottom.value
        return add(whole, Apply("div", part.args)) if proper else mul(whole, part)

    def unit_after(self, value: Node) -> Node:
        words: list[str] = []
        while self.token.kind == "text":
            words.append(self.advance().value)
            if self.accept("^"):
                braced = self.accept("{")
                exponent = self.advance()
                if exponent.kind != "num":
                    raise CannotParse("exponent of a unit")
                words.append("^" + exponent.value)
                if braced:
                    self.expect("}")
            if self.at("/") and self.peek().kind == "text":
                words.append(self.advance().value)
        unit = " ".join(words)
        if not acceptable(unit):
            raise CannotParse(f"words that are not a unit: {unit!r}")
        if power := power_of_ten(unit):
            value = mul(value, Num(Fraction(10**power)))
        if isinstance(value, Quantity):
            return Quantity(value.value, f"{value.unit} {unit}")
        return Quantity(value, unit)

    def starts_factor(self) -> bool:
        token = self.token
        if token.value == "|":
            return self.bars == 0
        if token.kind == "op":
            return token.value in "([{"
        return token.kind in ("num", "based", "sym", "fn") or (token.kind == "cmd" and token.value in _OPENING_COMMANDS)

    def factor(self) -> Node:
        """An atom with what follows it: powers, factorials, percent and degree signs."""
        with self.nested():
            base = self.atom()
            for _ in range(MAX_CHAIN):
                if self.accept("^"):
                    base = Apply("pow", (base, self.script()))
                elif self.at("!"):
                    self.advance()
                    base = Apply("fact", (base,))
                elif self.accept("%"):
                    base = Quantity(base, "%")
                elif self.accept(r"\deg"):
                    base = self.degrees(base)
                elif self.at("'"):
                    self.advance()
                    base = Apply("prime", (base,))
                else:
                    return base
        raise TooHard("a long chain of postfix operators")

    def degrees(self, value: Node) -> Node:
        """Inside a trigonometric function a degree sign is a factor pi/180; elsewhere it is a unit."""
        if self.token.kind == "sym" and self.token.value in "CF" and self.peek().kind == "end":
            self.advance()
        if self.in_angle:
            return mul(value, Apply("div", (Sym("pi"), Num(Fraction(180)))))
        return Quantity(value, "deg")

    def script(self) -> Node:
        """The exponent after ^ : a braced expression or a signed atom. All digits of a number belong to it, although
        TeX would take only one."""
        if self.accept("-"):
            return neg(self.script())
        if self.accept("{"):
            if self.accept("}"):
                raise CannotParse("empty exponent")
            inner = self.expression()
            self.expect("}")
            return inner
        return self.atom()

    def argument(self) -> Node:
        """An argument of a command: braced, or one token; ``\\frac12`` takes one digit each."""
        if self.at("{"):
            return self.script()
        token = self.token
        if token.kind == "num" and len(token.value) > 1:
            rest = Token("num", token.value[1:], False)
            self.tokens[self.position : self.position + 1] = [Token("num", token.value[0], token.spaced), rest]
        with self.nested():
            return self.atom()

    def atom(self) -> Node:
        token = self.advance()
        match token.kind:
            case "num":
                return number(token.value)
            case "based":
                return self.based(token.value)
            case "sym":
                return self.symbol(token.value)
            case "fn":
                return self.function(token.value)
            case "text" if token.value:
                if self.token.kind in ("num", "fn", "based") or self.token.value in ("(", "{", "-"):
                    raise CannotParse("words before a value")
                return Text(token.value)
            case "cmd" | "op":
                return self.command(token.value)
        raise CannotParse(f"unexpected {token.value or 'end'!r}")

    @staticmethod
    def based(literal: str) -> Node:
        digits, _, subscript = literal.partition("_")
        base = int(subscript)
        if not digits.strip(".") or not 2 <= base <= 36 or any(int(d, 36) >= base for d in digits.replace(".", "")):
            raise CannotParse(f"{digits} is not a numeral in base {base}")
        if base == 10:
            return Num(Fraction(digits))
        return Based(digits.lstrip("0") or "0", base)

    def symbol(self, name: str) -> Node:
        if self.accept("_"):
            start = self.position
            self.argument()
            name += "_" + "".join(t.value for t in self.tokens[start : self.position] if t.value not in ("{", "}"))
        if name not in _UNINTERPRETED:
            return Sym(name)
        primes = ""
        while self.accept("'"):
            primes += "'"
        return self.application(name + primes) if self.at("(", "^") else Sym(name)

    def application(self, name: str) -> Node:
        """An unknown function: f(x), f^{-1}(x). Without an argument the letter is a variable."""
        start = self.position
        if self.accept("^"):
            self.script()
            name += "^" + "".join(t.value for t in self.tokens[start + 1 : self.position] if t.value not in ("{", "}"))
        if not self.accept("("):
            self.position = start
            return Sym(name.split("^")[0])
        arguments = [self.expression()]
        while self.accept(","):
            arguments.append(self.expression())
        self.expect(")")
        return Apply(f"user:{name}", tuple(arguments))

    def function(self, name: str) -> Node:
        name = _ALIASES.get(name, name)
        if name == "sqrt":
            return self.root()
        subscript = self.argument() if name == "log" and self.accept("_") else None
        power = self.script() if self.accept("^") else None
        outer, self.in_angle = self.in_angle, name in _ANGLE_FUNCTIONS
        argument = self.function_argument()
        self.in_angle = outer
        if power == MINUS_ONE:
            if name not in _ANGLE_FUNCTIONS:
                raise CannotParse(f"inverse of {name}")
            return Apply("arc" + name, (argument,))
        applied: Node = Apply(name, (argument,) if subscript is None else (argument, subscript))
        return applied if power is None else Apply("pow", (applied, power))

    def function_argument(self) -> Node:
        """A bracketed argument, or the factors up to the next operator or function: ``sin 3x``, ``2 sin b cos a``."""
        if self.at("("):
            return self.factor()
        self.accept("-")
        negative = self.tokens[self.position - 1].value == "-"
        product = self.factor()
        while self.starts_factor() and self.token.kind != "fn" and self.token.value not in ("(", "["):
            product = mul(product, self.factor())
        return neg(product) if negative else product

    def root(self) -> Node:
        index: Node | None = None
        if self.accept("["):
            index = self.expression()
            self.expect("]")
        if self.accept("("):
            radicand = self.expression()
            self.expect(")")
        elif self.token.kind == "num":
            # People write \sqrt12 for the root of 12, although TeX prints the root of 1 and then a 2.
            radicand = number(self.advance().value)
        else:
            radicand = self.argument()
        return Apply("sqrt", (radicand,)) if index is None else Apply("root", (radicand, index))

    def command(self, value: str) -> Node:  # one return per command
        match value:
            case r"\frac":
                return Apply("frac", (self.argument(), self.argument()))
            case _ if value in _BINOMIALS:
                return Apply("binom", (self.argument(), self.argument()))
            case r"\lfloor" | r"\lceil":
                inner = self.expression()
                self.expect(r"\r" + value[2:])
                return Apply(value[2:], (inner,))
            case "|":
                self.bars += 1
                inner = self.expression()
                self.bars -= 1
                self.expect("|")
                return Apply("abs", (inner,))
            case _ if value in _GEOMETRY:
                # A named figure such as angle ABC: letters only, compared by name.
                braced = self.accept("{")
                letters = ""
                while self.token.kind == "sym":
                    letters += self.advance().value
                if braced:
                    self.expect("}")
                if not letters:
                    raise CannotParse(f"{value[1:]} of nothing")
                return Sym(f"{value[1:]} {letters}")
        return self.structure(value)

    @abstractmethod
    def structure(self, value: str) -> Node:
        """A structure that opens with a bracket, or with a command outside the scalar part."""
