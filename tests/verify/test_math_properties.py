"""Properties that hold for every answer."""

from __future__ import annotations

from fractions import Fraction

from hypothesis import example, given, settings
from hypothesis import strategies as st

from selfcorrect.types import Verdict
from selfcorrect.verify.math import extract_answer, grade_math
from selfcorrect.verify.math.compare import Ternary
from selfcorrect.verify.math.decide import decide
from selfcorrect.verify.math.normalise import normalise, string_key

FRACTIONS = st.fractions(min_value=-1000, max_value=1000, max_denominator=400)
ALPHABET = st.text(alphabet=r"\{}()[]$^_,.;:+-*/=<>!|%&'0123456789abxyfracqtleongid ", max_size=60)


def spellings(value: Fraction) -> list[str]:
    """The same number, written in ways that answers use."""
    n, d = abs(value.numerator), value.denominator
    sign = "-" if value < 0 else ""
    out = [
        f"{sign}{n}/{d}",
        rf"{sign}\frac{{{n}}}{{{d}}}",
        rf"$\dfrac{{{sign}{n}}}{{{d}}}$",
        rf"\left({sign}\tfrac{{{n}}}{{{d}}}\right)",
    ]
    whole, rest = divmod(n, d)
    if whole and rest:
        out.append(rf"{sign}{whole}\frac{{{rest}}}{{{d}}}")
    if d == 1:
        out += [f"{sign}{n}", f"{sign}{n}.0", f"{sign}{n:,}"]
    return out


def equal(a: str, b: str) -> Ternary:
    return decide(a, b, shortcut=False).equal


@given(FRACTIONS, FRACTIONS)
@settings(deadline=None)
def test_rationals_are_equal_exactly_when_their_values_are(a: Fraction, b: Fraction) -> None:
    for first in spellings(a):
        for second in spellings(b):
            assert equal(first, second) is (a == b), (first, second)


@given(st.lists(st.integers(-50, 50), min_size=2, max_size=5), st.randoms())
@settings(deadline=None)
def test_lists_and_sets_have_no_order_and_tuples_have(items: list[int], random: object) -> None:
    shuffled = sorted(items, key=lambda _: random.random())  # type: ignore[attr-defined]  # hypothesis' Random
    a, b = ", ".join(map(str, items)), ", ".join(map(str, shuffled))
    assert equal(a, b) is True
    assert equal(rf"\{{{a}\}}", rf"\{{{b}\}}") is True
    assert equal(f"({a})", f"({b})") is (items == shuffled)
    assert equal(a, f"{b}, 99") is False


@given(ALPHABET, ALPHABET)
@example("", "a_.0")  # the point alone is no number
@settings(max_examples=400, deadline=None)
def test_any_text_is_decided_and_equal_to_itself(a: str, b: str) -> None:
    assert decide(a, b).equal in (True, False, None)
    if string_key(normalise(a)):
        assert decide(a, a).equal is True


@given(ALPHABET, ALPHABET)
@settings(max_examples=300, deadline=None)
def test_equality_is_symmetric_without_percent_and_words(a: str, b: str) -> None:
    if any(c in a + b for c in "%,") or any(c.isalpha() for c in a + b):
        return
    assert equal(a, b) == equal(b, a)


@given(st.text(max_size=300))
@settings(max_examples=300, deadline=None)
def test_any_response_gets_a_verdict_that_is_not_an_error(text: str) -> None:
    assert grade_math("42", text).verdict is not Verdict.ERROR
    assert grade_math("42", text, truncated=True).verdict is not Verdict.ERROR


@given(st.text(alphabet=st.characters(exclude_categories=["Cs"]), max_size=200), st.integers(-(10**6), 10**6))
@settings(deadline=None)
def test_the_last_final_answer_line_wins_whatever_stands_before(prefix: str, value: int) -> None:
    if "</think>" in prefix or "<|" in prefix or "</s>" in prefix:
        return
    assert extract_answer(f"{prefix}\nFinal answer: {value}") == str(value)


@given(FRACTIONS, FRACTIONS)
@settings(deadline=None)
def test_near_misses_are_wrong(a: Fraction, b: Fraction) -> None:
    nearby = a + Fraction(1, 10**9)
    assert equal(f"{a.numerator}/{a.denominator}", f"{nearby.numerator}/{nearby.denominator}") is False
