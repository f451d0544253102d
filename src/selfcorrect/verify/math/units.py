"""Units and words after a value.

A unit is dropped when only one side has one, or when both have the same; two different known units are a mismatch.
"""

from __future__ import annotations

import re

_SPELLINGS = {
    "cm": "cm centimeter centimeters centimetre centimetres",
    "mm": "mm millimeter millimeters millimetre millimetres",
    "m": "m meter meters metre metres",
    "km": "km kilometer kilometers kilometre kilometres",
    "in": "in inch inches",
    "ft": "ft foot feet",
    "yd": "yd yard yards",
    "mi": "mi mile miles",
    "g": "g gm gram grams",
    "mg": "mg milligram milligrams",
    "kg": "kg kilogram kilograms",
    "lb": "lb lbs pound pounds",
    "oz": "oz ounce ounces",
    "ton": "ton tons tonne tonnes",
    "L": "l liter liters litre litres",
    "mL": "ml milliliter milliliters millilitre millilitres",
    "gal": "gal gallon gallons",
    "s": "s sec secs second seconds",
    "min": "min mins minute minutes",
    "h": "h hr hrs hour hours",
    "day": "day days",
    "week": "week weeks",
    "month": "month months",
    "year": "year years yr yrs",
    "mph": "mph",
    "km/h": "km/h kph kmh",
    "m/s": "m/s",
    "cent": "cent cents",
    "dollar": "dollar dollars usd",
    "euro": "euro euros eur",
    "yuan": "yuan rmb",
    "deg": "deg degree degrees",
    "rad": "rad radian radians",
    "%": "% percent pct percentage percents",
    "am": "am",
    "pm": "pm",
    "unit": "unit units",
    "sq": "sq square cubic cu squared cubed",
}
_CANONICAL = {word: unit for unit, words in _SPELLINGS.items() for word in words.split()}
_GENERIC = frozenset({"unit", "sq"})
UNIT_LETTERS = frozenset("mgsh")
"""Common one-letter units: after a number such a letter may be a unit or a variable."""
_MULTIPLIERS = {"hundred": 2, "thousand": 3, "million": 6, "billion": 9, "trillion": 12}
_DENIALS = frozenset({"not", "no", "or", "nor", "wrong", "except", "but", "incorrect", "never", "isn't", "without"})


def canonical_unit(words: str) -> str | None:
    """The known unit that ``words`` name, ``%`` included; None for other words and for a bare 'square units'."""
    lowered = re.sub(r"[\^{}]", " ", words.casefold().replace(".", ""))
    units = (_CANONICAL.get(word, "unit") for word in lowered.split())
    return next((unit for unit in units if unit not in _GENERIC), None)


def power_of_ten(words: str) -> int:
    """Exponent named by number words in a unit: 6 for ``million dollars``, 0 without one."""
    return sum(_MULTIPLIERS.get(w.strip(".,"), 0) for w in words.casefold().split())


def acceptable(words: str) -> bool:
    """Whether words after a value may be read as its unit: no further numbers, nothing that takes the value back."""
    bare = re.sub(r"\^\s*\{?\s*-?[1-9]\s*\}?", "", words)
    return not re.search(r"[0-9=<>]", bare) and not _DENIALS & set(re.findall(r"[a-z']+", bare.casefold()))


def is_unit_word(word: str) -> bool:
    """Whether a plain word after a value (not in ``\\text``) is read as a unit: a known one of two letters or more."""
    return len(word) > 1 and word.casefold() in _CANONICAL
