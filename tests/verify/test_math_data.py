"""The figures of docs/verify-math.md, on the real data: gold round trip, unequal golds, cases of public graders."""

from __future__ import annotations

import gzip
import json
import os
import random
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from selfcorrect.types import Verdict
from selfcorrect.verify.math import MathCase, MathGrader

DATA = Path(os.environ.get("SELFCORRECT_DATA", Path(__file__).resolve().parents[3] / "shared" / "data"))

pytestmark = pytest.mark.skipif(
    not (DATA / "grading").is_dir(), reason=f"no benchmark data at {DATA}; set SELFCORRECT_DATA to its folder"
)

FORMATS = ("Some work with 17.\nFinal answer: {}", r"Some work with 17, so $\boxed{{{}}}$.")


def rows(name: str) -> list[dict[str, Any]]:
    with gzip.open(DATA / name, "rt", encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def golds(source: str) -> list[str]:
    """Gold answers of a data set. Two of the 12,000 training golds are empty: their solutions box nothing."""
    match source:
        case "train_12000":
            return [r["answer"] for r in rows("math/train_12000_answers.jsonl.gz")]
        case "math_500":
            return [r["answer"] for r in rows("math/test_500.jsonl.gz")]
        case _:
            both = rows("gsm8k/train.jsonl.gz") + rows("gsm8k/test.jsonl.gz")
            return [r["answer"].rpartition("####")[2].strip() for r in both]


@pytest.fixture(scope="module")
def grader() -> Iterator[MathGrader]:
    with MathGrader(workers=2) as grader:
        yield grader


@pytest.mark.parametrize("shortcut", [True, False])
@pytest.mark.parametrize(
    ("source", "n", "empty"), [("train_12000", 12_000, 2), ("math_500", 500, 0), ("gsm8k", 8_792, 0)]
)
def test_every_gold_answer_is_accepted_for_itself(source: str, n: int, empty: int, shortcut: bool) -> None:
    answers = golds(source)
    assert len(answers) == n
    with MathGrader(workers=2, shortcut=shortcut) as grader:
        for form in FORMATS:
            grades = grader.grade_many([(a, form.format(a)) for a in answers])
            refused = [a for a, g in zip(answers, grades, strict=True) if g.verdict is not Verdict.CORRECT]
            assert refused == [""] * empty


def test_every_gold_answer_is_in_our_grammar() -> None:
    """With the shortcut off nothing may fall back on equal strings: each gold is parsed or a word."""
    with MathGrader(workers=1, shortcut=False) as grader:
        grades = grader.grade_many([MathCase(a, a, bare=True) for a in golds("train_12000") + golds("math_500") if a])
    assert {g.detail for g in grades} == {"bare: compared by value", "bare: words"}


def accepted_pairs(grader: MathGrader, pairs: list[tuple[str, str]]) -> set[tuple[str, str]]:
    grades = grader.grade_many([MathCase(a, b, bare=True) for a, b in pairs])
    assert {g.verdict for g in grades} <= {Verdict.CORRECT, Verdict.WRONG}
    return {p for p, g in zip(pairs, grades, strict=True) if g.verdict is Verdict.CORRECT}


def test_random_pairs_of_unequal_golds_are_refused(grader: MathGrader) -> None:
    distinct = sorted({a for a in golds("train_12000") + golds("math_500") if a})
    draw = random.Random(1)
    pairs = [(a, b) for a, b in (draw.sample(distinct, 2) for _ in range(10_000))]
    # The one accepted pair is equal by value: a currency sign is dropped, and 0.50 is 1/2.
    assert accepted_pairs(grader, pairs) == {(r"\dfrac{1}{2}", r"\$0.50")}


def test_pairs_of_unequal_golds_of_the_same_shape_are_refused(grader: MathGrader) -> None:
    """Harder than random pairs: both are written alike but for their digits and signs."""
    groups: dict[str, list[str]] = {}
    for answer in sorted({a for a in golds("train_12000") + golds("math_500") if a}):
        groups.setdefault(re.sub(r"\d+", "#", re.sub(r"\s|\\[,!]|[-+]", "", answer)), []).append(answer)
    shapes = [g for g in groups.values() if len(g) > 1]
    draw = random.Random(2)
    chosen = draw.choices(shapes, [min(len(g), 40) for g in shapes], k=10_000)
    pairs = [(a, b) for a, b in (draw.sample(g, 2) for g in chosen)]
    for a, b in accepted_pairs(grader, pairs):
        assert re.sub(r"\s", "", a) == re.sub(r"\s", "", b)


@pytest.mark.parametrize(
    ("tier", "right", "total"),
    [("clear", 249, 249), ("extraction", 16, 16), ("security", 5, 5), ("convention", 64, 69)],
)
def test_cases_of_public_graders(grader: MathGrader, tier: str, right: int, total: int) -> None:
    cases = [r for r in rows("grading/math_grading_cases.jsonl.gz") if r["tier"] == tier]
    grades = grader.grade_many([MathCase(r["gold"], r["prediction"], bare=r["kind"] == "answer") for r in cases])
    agree = [(g.verdict is Verdict.CORRECT) == r["expected"] for r, g in zip(cases, grades, strict=True)]
    assert len(cases) == total
    assert sum(agree) >= right, [r["id"] for r, ok in zip(cases, agree, strict=True) if not ok]
    assert Verdict.ERROR not in {g.verdict for g in grades}


def test_real_solutions_of_math(grader: MathGrader) -> None:
    solutions = rows("math/model_solutions_100x8.jsonl.gz")
    grades = grader.grade_many([(r["answer"], r["response"]) for r in solutions])
    wrong = [r["unique_id"] for r, g in zip(solutions, grades, strict=True) if (g.verdict == "correct") != r["correct"]]
    assert len(solutions) == 800 and wrong == []


def test_real_solutions_of_gsm8k(grader: MathGrader) -> None:
    cases, labels = [], []
    for row in rows("gsm8k/test_model_solutions.jsonl.gz"):
        gold = row["ground_truth"].rpartition("A: ")[2].strip()
        for solution in (v for v in row.values() if isinstance(v, dict)):
            cases.append((gold, solution["solution"]))
            labels.append(solution["is_correct"])
    grades = grader.grade_many(cases)
    differ = [c for c, label, g in zip(cases, labels, grades, strict=True) if (g.verdict == "correct") != label]
    assert len(cases) == 5_276 and differ == []
