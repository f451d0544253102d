r"""math-verify behind guards, for formulas outside the grammar (sums, integrals, limits). Runs in the worker only.

math-verify accepts ``52_9`` for ``52_8``, ``\neq 42`` for ``42``, ``0.1000000001`` for ``0.1`` and two boxes for a set,
and its plain-text mode evaluates Python. So it gets LaTeX only, no text with any of these, and only if both sides have
a command that needs it.
"""

from __future__ import annotations

import logging
import re
import sys

_NEEDED = re.compile(
    r"\\(?:sum|prod|int|iint|oint|lim|partial|nabla|det|gcd|max|min|mod|pmod|bmod|dots|ldots|cdots|ln|log)(?![A-Za-z])"
)
_FORBIDDEN = re.compile(
    r"""\\ne(?![A-Za-z])|\\not|\\boxed|\\text|\\sep|\\approx   # denials, boxes, words, approximations
    |\d\s*_ | \d\.\d                                            # numerals with a base, decimals
    |(?<![\\A-Za-z])[A-Za-z]{4,} | __ | ['"`@;:]                # plain words, code
    |!\s*! | \d{30,}""",
    re.VERBOSE,
)


def allowed(gold: str, given: str) -> bool:
    """Whether a pair of normalised answers may be shown to math-verify."""
    return all(_NEEDED.search(s) for s in (gold, given)) and not any(_FORBIDDEN.search(s) for s in (gold, given))


def loaded() -> bool:
    return "math_verify" in sys.modules


def load() -> None:
    """Import sympy and math-verify and use them once. This takes seconds, which are not charged to any pair."""
    import math_verify.grader  # noqa: F401  # for its side effect: later imports are free

    logging.disable(logging.CRITICAL)
    # The first parse builds the tables of the grammar, the first comparison imports what sympy left for later.
    verify(r"F_n = \sum_{k=0}^{n} a_k b_{n-k}", r"F_n = \sum_{k=0}^{n} b_{n-k} a_k")


def verify(gold: str, given: str) -> bool:
    """math-verify's verdict on two LaTeX formulas; False where it cannot read one of them."""
    from latex2sympy2_extended import latex2sympy
    from math_verify.grader import verify as math_verify

    try:
        trees = [latex2sympy(s, is_real=True, convert_degrees=False) for s in (gold, given)]
        return bool(math_verify(*trees, float_rounding=30, numeric_precision=30, strict=True, timeout_seconds=None))
    except (MemoryError, RecursionError):
        raise
    except Exception:  # noqa: BLE001  # a parser generator and sympy raise anything on input that they cannot read
        return False
