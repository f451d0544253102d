"""Inputs of the kinds that public reports tell of, each with its right verdict. Ids that begin with "s" are siblings."""

import json
from pathlib import Path

import pytest
from code_tools import needs_sandbox

from selfcorrect.tasks.gsm8k import grade_number
from selfcorrect.verify.cases import CaseRow, code_request, math_case, read_cases
from selfcorrect.verify.code import CodeGrader
from selfcorrect.verify.math import MathGrader

REPORTED = Path(__file__).parents[1] / "data" / "reported"


def expected(name):
    return [json.loads(line) for line in (REPORTED / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()]


def ids(name):
    return [row["id"] for row in expected(name)]


def cases(name, make) -> dict[str, CaseRow]:
    return {json.loads(row.id_json): row.case for row in read_cases(REPORTED / f"{name}.jsonl", make)}


@pytest.fixture(scope="module")
def code_grader():
    needs_sandbox()
    with CodeGrader(workers=1) as made:
        yield made


@pytest.fixture(scope="module")
def math_grader():
    with MathGrader(workers=1) as made:
        yield made


def test_every_file_is_read_by_a_test_below():
    assert {path.stem: len(ids(path.stem)) for path in REPORTED.iterdir()} == {"math": 30, "number": 32, "code": 56}
    assert all(len(set(ids(name))) == len(ids(name)) for name in ("math", "number", "code"))


@pytest.mark.parametrize("number", range(30), ids=ids("math"))
def test_math(math_grader, number):
    row = expected("math")[number]
    case = cases("math", math_case)[row["id"]]
    grade = math_grader.grade(case.gold, case.text)
    assert grade.verdict == row["expect"], grade


@pytest.mark.parametrize("number", range(32), ids=ids("number"))
def test_numbers(number):
    row = expected("number")[number]
    grade = grade_number(row["gold"], row["response"], truncated=False)
    assert grade.verdict == row["expect"], grade


@pytest.mark.parametrize("number", range(56), ids=ids("code"))
def test_code(code_grader, number):
    row = expected("code")[number]
    grade = code_grader.grade(cases("code", code_request)[row["id"]])
    assert grade.verdict == row["expect"], grade
    assert not grade.forgeable
