"""Speed of the math verifier beside math-verify alone. Run on an otherwise idle machine:

    python benchmarks/verify_math.py

Every pair is distinct and every grader starts with an empty cache. The worker processes are started, and math-verify
is imported, before the clock starts. Prints the load average, without which the figures mean nothing.
"""

from __future__ import annotations

import argparse
import logging
import os
import random
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from selfcorrect.verify.math import MathCase, MathGrader

_PROSE = "First we look at what is given, then we add the parts, which gives 17 of them in step {}.\n"


def plain_cases(n: int, seed: int) -> list[MathCase]:
    """Numbers, fractions, decimals and tuples at the end of a response of about 700 characters; half are wrong."""
    draw = random.Random(seed)
    cases = []
    for k in range(n):
        a, b = draw.randrange(10**6), draw.randrange(2, 999)
        c = a if k % 2 else a + 1
        gold, answer = draw.choice(
            [
                (f"{a}", f"{c:,}"),
                (rf"\frac{{{a}}}{{{b}}}", f"{c}/{b}"),
                (f"{a}.50", f"{c}.5"),
                (f"({a},{b})", f"({c}, {b})"),
            ]
        )
        prose = "".join(_PROSE.format(i) for i in range(8))
        cases.append(MathCase(gold, f"{prose}Final answer: {answer}" if k % 3 else rf"{prose}So \boxed{{{answer}}}."))
    return cases


def symbolic_cases(n: int, seed: int) -> list[MathCase]:
    """Polynomials, radicals, trigonometry and equations that only evaluation can compare; half are wrong."""
    draw = random.Random(seed)
    cases = []
    for k in range(n):
        a, b, c = (draw.randrange(2, 500) for _ in range(3))
        off = 0 if k % 2 else 1
        gold, answer = draw.choice(
            [
                (rf"(x+{a})(x-{b})", rf"x^2 + {a - b}x - {a * b + off}".replace("+ -", "- ")),
                (rf"\frac{{{a}}}{{\sqrt{{{b}}}+{c}}}", rf"\frac{{{a}(\sqrt{{{b}}}-{c})}}{{{b - c * c + off}}}"),
                (rf"\sin^2({a}x) + {b}", rf"{b + 1 + off} - \cos^2({a}x)"),
                (rf"{a}x + {b}y = {c}", rf"{2 * a}x + {2 * b}y - {2 * c + off} = 0"),
                (rf"{a}\sqrt{{{b}}}", rf"\sqrt{{{a * a * b + off}}}"),
                (rf"\frac{{x+{a}}}{{{b}}} + {c}", rf"\frac{{x}}{{{b}}} + \frac{{{a + b * c + off}}}{{{b}}}"),
            ]
        )
        cases.append(MathCase(gold, answer, bare=True))
    return cases


@dataclass(frozen=True)
class Timing:
    """Gradings per second of wall time, and per second of CPU time of the calling process (its workers apart)."""

    per_s: float
    per_cpu_s: float
    outcome: Counter[bool]


def timed(run: Callable[[], list[bool]], n: int) -> Timing:
    wall, cpu = time.perf_counter(), time.process_time()
    outcome = Counter(run())
    return Timing(n / (time.perf_counter() - wall), n / (time.process_time() - cpu), outcome)


def ours(cases: list[MathCase], workers: int) -> Timing:
    with MathGrader(workers=workers) as grader:
        grader.warm_up()
        grader.grade_many([MathCase(f"x+{k}", f"{k}+1x", bare=True) for k in range(workers)])
        return timed(lambda: [g.verdict == "correct" for g in grader.grade_many(cases)], len(cases))


def math_verify_alone(cases: list[MathCase]) -> Timing:
    from math_verify import parse, verify

    logging.disable(logging.CRITICAL)

    def run() -> list[bool]:
        out = []
        for case in cases:
            text = f"${case.text}$" if case.bare else case.text
            out.append(verify(parse(f"${case.gold}$"), parse(text)))
        return out

    parse("$x+1$")
    return timed(run, len(cases))


def report(cases: str, grader: str, timing: Timing) -> None:
    print(
        f"{cases:9} {grader:12} {timing.per_s:8.0f} gradings/s {timing.per_cpu_s:8.0f} per CPU second of the caller  "
        f"n={timing.outcome.total()} correct={timing.outcome[True]} wrong={timing.outcome[False]}"
    )


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--plain", type=int, default=20_000)
    arguments.add_argument("--symbolic", type=int, default=2_000)
    arguments.add_argument("--seed", type=int, default=0)
    arguments.add_argument("--workers", type=int, default=2)
    options = arguments.parse_args()
    print(f"cpus {os.cpu_count()}, load average before {os.getloadavg()}")
    for name, make, n in (("plain", plain_cases, options.plain), ("symbolic", symbolic_cases, options.symbolic)):
        cases = make(n, options.seed)
        report(name, "ours", ours(cases, options.workers))
        sample = cases[: max(1, n // 20)]
        report(name, "math-verify", math_verify_alone(sample))
    print(f"load average after {os.getloadavg()}")


if __name__ == "__main__":
    main()
