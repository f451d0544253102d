"""Verdicts of the math verifier on real data: the figures of docs/verify-math.md.

    python benchmarks/verify_math_data.py [DATA]

DATA holds the benchmark files (default: shared/data next to the repository, or $SELFCORRECT_DATA).
"""

from __future__ import annotations

import gzip
import json
import os
import random
import re
import sys
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

from selfcorrect.verify.math import MathCase, MathGrader

DEFAULT = Path(__file__).resolve().parents[2] / "shared" / "data"


def rows(data: Path, name: str) -> list[dict[str, Any]]:
    with gzip.open(data / name, "rt", encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def round_trip(golds: dict[str, list[str]]) -> None:
    """Each gold against itself in the required format, with and without the equal-strings shortcut."""
    for shortcut in (True, False):
        with MathGrader(shortcut=shortcut) as grader:
            for name, answers in golds.items():
                grades = grader.grade_many([(a, f"Some work with 17.\nFinal answer: {a}") for a in answers])
                right = sum(g.verdict == "correct" for g in grades)
                kinds = Counter(g.detail.partition(": ")[2] or g.detail for g in grades)
                print(f"round trip {name:12} shortcut={shortcut!s:5} accepted {right}/{len(answers)}  {dict(kinds)}")


def unequal_pairs(golds: list[str], grader: MathGrader, n: int) -> None:
    distinct = sorted({a for a in golds if a})
    groups = defaultdict(list)
    for answer in distinct:
        groups[re.sub(r"\d+", "#", re.sub(r"\s|\\[,!]|[-+]", "", answer))].append(answer)
    shapes = [g for g in groups.values() if len(g) > 1]
    draw = random.Random(1)
    anywhere = [tuple(draw.sample(distinct, 2)) for _ in range(n)]
    draw = random.Random(2)
    alike = [tuple(draw.sample(g, 2)) for g in draw.choices(shapes, [min(len(g), 40) for g in shapes], k=n)]
    for name, pairs in (("random pairs", anywhere), ("pairs of one shape", alike)):
        grades = grader.grade_many([MathCase(a, b, bare=True) for a, b in pairs])
        accepted = {p for p, g in zip(pairs, grades, strict=True) if g.verdict == "correct"}
        print(f"{name}: {dict(Counter(g.verdict.value for g in grades))}; distinct accepted: {len(accepted)}")
        for a, b in sorted(accepted):
            print(f"    {a!r} {b!r}")


def public_cases(data: Path, grader: MathGrader) -> None:
    cases = rows(data, "grading/math_grading_cases.jsonl.gz")
    grades = grader.grade_many([MathCase(r["gold"], r["prediction"], bare=r["kind"] == "answer") for r in cases])
    table: dict[str, Counter[str]] = defaultdict(Counter)
    for row, grade in zip(cases, grades, strict=True):
        ours = (grade.verdict == "correct") == row["expected"]
        score = table[row["tier"]]
        score.update(n=1, ours=ours)
        if row["math_verify_0_9_0"] is not None:
            score.update(compared=1, both=ours, theirs=row["math_verify_0_9_0"] == row["expected"])
        if not ours:
            print(f"    {row['tier']} {row['id']}: expected {row['expected']}, {grade.verdict.value} ({grade.detail})")
    for tier, score in sorted(table.items()):
        print(
            f"tier {tier:15} ours {score['ours']}/{score['n']}; where math-verify 0.9.0 was run: "
            f"ours {score['both']}/{score['compared']}, math-verify {score['theirs']}/{score['compared']}"
        )


def real_solutions(data: Path, grader: MathGrader) -> None:
    solutions = rows(data, "math/model_solutions_100x8.jsonl.gz")
    grades = grader.grade_many([(r["answer"], r["response"]) for r in solutions])
    agree = sum((g.verdict == "correct") == r["correct"] for r, g in zip(solutions, grades, strict=True))
    print(f"MATH solutions of Qwen2.5-Math: verdict equals label in {agree}/{len(solutions)}")
    cases, labels = [], []
    for row in rows(data, "gsm8k/test_model_solutions.jsonl.gz"):
        gold = row["ground_truth"].rpartition("A: ")[2].strip()
        for solution in (v for v in row.values() if isinstance(v, dict)):
            cases.append((gold, solution["solution"]))
            labels.append(solution["is_correct"])
    grades = grader.grade_many(cases)
    agree = sum((g.verdict == "correct") == label for label, g in zip(labels, grades, strict=True))
    print(f"GSM8K solutions of four GPT-3 models: verdict equals label in {agree}/{len(cases)}")


def main() -> None:
    data = Path(sys.argv[1] if len(sys.argv) > 1 else os.environ.get("SELFCORRECT_DATA", DEFAULT))
    golds = {
        "train_12000": [r["answer"] for r in rows(data, "math/train_12000_answers.jsonl.gz")],
        "math_500": [r["answer"] for r in rows(data, "math/test_500.jsonl.gz")],
        "gsm8k": [
            r["answer"].rpartition("####")[2].strip()
            for split in ("train", "test")
            for r in rows(data, f"gsm8k/{split}.jsonl.gz")
        ],
    }
    round_trip(golds)
    with MathGrader() as grader:
        unequal_pairs(golds["train_12000"] + golds["math_500"], grader, 10_000)
        public_cases(data, grader)
        real_solutions(data, grader)


if __name__ == "__main__":
    main()
