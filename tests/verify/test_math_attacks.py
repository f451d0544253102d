"""Hostile answers: bounded time and memory, no code runs, no worker or batch is lost."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import selfcorrect
from selfcorrect.types import Verdict
from selfcorrect.verify.math import MathCase, MathGrader, PairLimits, worker

MAX_SECONDS = 5.0
MAX_BYTES = 1 << 30
MAX_CPU_SECONDS = 1.0
"""In the calling process, whatever the load of the machine."""

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


def clocks() -> tuple[float, float]:
    return time.monotonic(), time.process_time()


def assert_within_bounds(start: tuple[float, float]) -> None:
    """CPU time always; elapsed time only where the machine has a core to give, or it measures the neighbours."""
    wall, cpu = (now - then for now, then in zip(clocks(), start, strict=True))
    assert cpu < MAX_CPU_SECONDS
    if os.getloadavg()[0] <= (os.cpu_count() or 1):
        assert wall < MAX_SECONDS


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
        start = clocks()
        grade = grader.grade(gold, text, bare=bare)
        assert_within_bounds(start)
        if name != "bidirectional override":
            # In prose its 42 is the last number; the direction mark is not part of it.
            assert grade.verdict in (Verdict.WRONG, Verdict.TIMEOUT, Verdict.NO_ANSWER), grade
    assert grader.grade("x^2-1", "(x+1)(x-1)", bare=True).verdict is Verdict.CORRECT


@pytest.mark.parametrize("bomb", [r"\sum_{k=1}^{10^{10}} \frac{1}{k}", r"\prod_{k=1}^{10000000} k"])
def test_bombs_for_sympy(grader: MathGrader, bomb: str) -> None:
    # Loads math-verify, which no pair is charged for; a pair of its own, or the cache would answer.
    grader.grade(r"\sum_{k=1}^{n} k", rf"\sum_{{j=1}}^{{n}} j + {len(bomb)}", bare=True)
    start = clocks()
    grade = grader.grade(r"\sum_{k=0}^{n} k", bomb, bare=True)
    assert grade.verdict in (Verdict.WRONG, Verdict.TIMEOUT)
    assert_within_bounds(start)


def peaks() -> list[int]:
    """Largest resident bytes so far, of this process and of any child that has ended."""
    return [resource.getrusage(who).ru_maxrss * 1024 for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]


def test_memory_stays_bounded() -> None:
    before = peaks()  # other tests of this process may have been larger: then bombs must not raise it
    with MathGrader(workers=2) as grader:
        for bomb in BOMBS.values():
            grader.grade("42", bomb, bare=True)
    assert all(now < max(MAX_BYTES, was + 2**20) for now, was in zip(peaks(), before, strict=True))


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
    with MathGrader(workers=1, limits=PairLimits(cpu_s=0.002, wall_s=4.0)) as grader:
        hard = "+".join(rf"\sqrt{{{n}}}" for n in range(2, 150))
        assert grader.grade(hard, hard + "+x-x+1", bare=True).verdict is Verdict.TIMEOUT
        assert grader.grade("x", "2x", bare=True).verdict in (Verdict.WRONG, Verdict.TIMEOUT)


def test_the_memory_limit_holds_in_a_worker_process() -> None:
    code = (
        "from selfcorrect.verify.math import worker\n"
        f"worker._set_limits({MAX_BYTES})\n"
        "try:\n    bytearray(2 << 30)\nexcept MemoryError:\n    print('refused')"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(selfcorrect.__file__).parents[1])}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
    assert done.stdout.strip() == "refused"


@pytest.mark.parametrize(
    ("fault", "field"), [(MemoryError(), "limit"), (RecursionError(), "limit"), (ValueError("a bug"), "error")]
)
def test_the_worker_reports_what_went_wrong(monkeypatch: pytest.MonkeyPatch, fault: Exception, field: str) -> None:
    def fail(*args: object, **kwargs: object) -> None:
        raise fault

    monkeypatch.setattr(worker, "decide", fail)
    reply = worker.answer({"gold": "x", "given": "y", "shortcut": True})
    assert reply is not None and list(reply) == [field]


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
