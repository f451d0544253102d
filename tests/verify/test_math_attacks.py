"""Hostile answers: bounded time and memory, no code runs, no worker or batch is lost."""

from __future__ import annotations

import os
import resource
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from selfcorrect.types import Verdict
from selfcorrect.verify.math import Limits, MathCase, MathGrader
from selfcorrect.verify.math.pool import WorkerPool

MAX_SECONDS = 5.0
MAX_BYTES = 1 << 30

BOMBS = {
    "tower": "9^{9^{9^9}}",
    "towers": "10^{10^{10}}",
    "factorial": "100000000!",
    "factorials": "9!!!!!!",
    "binomial": r"\binom{1000000000}{500000000}",
    "power of a sum": "(a+b+c+d)^{1000000}",
    "sine of a large number": r"\sin(10^{100})",
    "exponentials": "e^{e^{e^{e^{e}}}}",
    "scientific": "1e399999999",
    "root index": r"\sqrt[1000000000]{2}",
    "parentheses": "(" * 100_000 + "1" + ")" * 100_000,
    "braces": "{" * 100_000 + "1" + "}" * 100_000,
    "fractions": r"\frac{1}{" * 100_000 + "1" + "}" * 100_000,
    "short deep fractions": r"\frac1{" * 250 + "1" + "}" * 250,
    "minus signs": "-" * 1_900 + "1",
    "powers": "x^" * 900 + "x",
    "divisions": "/".join(["x"] * 900),
    "bars": "|" * 1_500 + "x",
    "factorial signs": "x" + "!" * 1_500,
    "plus-minus": ",".join([r"\pm 1"] * 300),
    "matrices": r"\begin{pmatrix}" * 100 + "1" + r"\end{pmatrix}" * 100,
    "long line": "x" * 1_000_000,
    "long number": "9" * 1_000_000,
    "spaces": " " * 1_000_000 + "5",
    "stars": "*" * 100_000,
    "hashes": "#" * 200_000,
    "dollars": "$" * 100_000,
    "open boxes": r"\boxed{" * 100_000,
    "boxes": r"\boxed{1}" * 50_000,
    "final answers": "Final answer:" * 50_000,
    "final answer lines": "Final answer:\n" * 50_000,
    "answers are": "answer is " * 50_000,
    "commas": "1," * 100_000,
    "open texts": r"\text{" * 5_000,
    "conjunctions": r"\text{and}" * 5_000,
    "backslashes": "\\" * 10_000,
    "nulls": "\x00" * 1_000,
    "surrogate": "\ud800",
    "bidirectional override": "\u202e42",
}

CODE = [
    "__import__('os').system('touch {marker}') or 42",
    "(lambda: open('{marker}', 'w'))() or 42",
    "[open('{marker}', 'w') for _ in [0]] or 42",
    "globals()['__builtins__']['open']('{marker}', 'w') or 42",
    r"\operatorname{{exec}}(open('{marker}','w'))",
    r"\sum_{{k=0}}^{{1}} __import__('os').system('touch {marker}')",
]


@pytest.fixture(scope="module")
def grader() -> Iterator[MathGrader]:
    with MathGrader(workers=1) as grader:
        grader.grade("x^2-1", "(x-1)(x+1)", bare=True)
        yield grader


@pytest.mark.parametrize("name", BOMBS)
@pytest.mark.parametrize("gold", ["42", r"\sqrt{2} + x"])
def test_bombs(grader: MathGrader, name: str, gold: str) -> None:
    bomb = BOMBS[name]
    for text, bare in ((bomb, True), (f"Final answer: {bomb}", False), (rf"\boxed{{{bomb}}}", False), (bomb, False)):
        start = time.monotonic()
        grade = grader.grade(gold, text, bare=bare)
        assert time.monotonic() - start < MAX_SECONDS
        if name != "bidirectional override":
            # In prose its 42 is the last number; the direction mark is not part of it.
            assert grade.verdict in (Verdict.WRONG, Verdict.TIMEOUT, Verdict.NO_ANSWER), grade
    assert grader.grade("x^2-1", "(x+1)(x-1)", bare=True).verdict is Verdict.CORRECT


@pytest.mark.parametrize("bomb", [r"\sum_{k=1}^{10^{10}} \frac{1}{k}", r"\prod_{k=1}^{10000000} k"])
def test_bombs_for_sympy(grader: MathGrader, bomb: str) -> None:
    grader.grade(r"\sum_{k=1}^{n} k", r"\sum_{j=1}^{n} j", bare=True)  # loads math-verify, which no pair is charged for
    start = time.process_time()
    grade = grader.grade(r"\sum_{k=0}^{n} k", bomb, bare=True)
    assert grade.verdict in (Verdict.WRONG, Verdict.TIMEOUT)
    assert time.process_time() - start < MAX_SECONDS


def test_memory_stays_bounded(grader: MathGrader) -> None:
    for bomb in BOMBS.values():
        grader.grade("42", bomb, bare=True)
    usage = [resource.getrusage(who).ru_maxrss * 1024 for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    assert max(usage) < MAX_BYTES


@pytest.mark.parametrize("code", CODE)
def test_text_is_never_run(grader: MathGrader, tmp_path: Path, code: str) -> None:
    marker = tmp_path / "marker"
    for text in (code.format(marker=marker), rf"\boxed{{{code.format(marker=marker)}}}"):
        for bare in (True, False):
            grader.grade("42", text, bare=bare)
            grader.grade(r"\sum_{k=0}^{1} k", text, bare=bare)
    assert grader.grade("42", code.format(marker=marker), bare=True).verdict is Verdict.WRONG
    assert not marker.exists() and not Path("marker").exists()


def test_a_bomb_in_a_batch_costs_no_other_verdict() -> None:
    slow = MathCase(r"\sum_{k=0}^{n} k", r"\sum_{k=1}^{10^{10}} \frac{1}{k}", bare=True)
    good = [MathCase(f"x^2-{n * n}", f"(x-{n})(x+{n})", bare=True) for n in range(2, 12)]
    with MathGrader(workers=2) as grader:
        grades = grader.grade_many([*good[:5], slow, *good[5:]])
    assert [g.verdict for g in grades[:5] + grades[6:]] == [Verdict.CORRECT] * 10
    assert grades[5].verdict in (Verdict.WRONG, Verdict.TIMEOUT)


def test_cpu_limit_gives_timeout_and_a_fresh_worker() -> None:
    with MathGrader(workers=1, limits=Limits(cpu_s=0.002, wall_s=4.0)) as grader:
        hard = "+".join(rf"\sqrt{{{n}}}" for n in range(2, 150))
        assert grader.grade(hard, hard + "+x-x+1", bare=True).verdict is Verdict.TIMEOUT
        assert grader.grade("x", "2x", bare=True).verdict in (Verdict.WRONG, Verdict.TIMEOUT)


def test_memory_limit_gives_timeout() -> None:
    # Enough address space for the interpreter and math-verify, too little for this sum.
    pool = WorkerPool(1, Limits(cpu_s=20.0, wall_s=20.0, memory_bytes=1 << 20))
    try:
        reply = pool.compare(r"\sqrt{2}", r"\sqrt{" + "+".join(["x"] * 500) + "}")
        assert reply.equal is None or reply.equal is False
        assert pool.compare("x", "y").error == "" or pool.compare("x", "y").limit
    finally:
        pool.close()


def test_no_process_is_left() -> None:
    before = _children()
    with MathGrader(workers=2) as grader:
        grader.warm_up()
        assert len(_children() - before) == 2
        grader.grade(r"\sum_{k=0}^{n} k", r"\prod_{k=1}^{10000000} k", bare=True)
    assert _children() == before


def _children() -> set[int]:
    """Process ids of this process's children."""
    out = set()
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            if int(fields[1]) == os.getpid():
                out.add(int(entry.name))
    return out
