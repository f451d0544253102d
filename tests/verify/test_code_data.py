"""Whole data sets through the grader: every reference passes, every recorded verdict is found again."""

import pytest
from code_tools import mbpp_rows, mbpp_tests, needs_sandbox, rows

from selfcorrect.types import Verdict
from selfcorrect.verify.code import CodeGrader, CodeRequest

FORGEABLE = {601, 927, 367}
"""MBPP problems whose tests build objects of the program's own classes."""


@pytest.fixture(scope="module")
def grader():
    needs_sandbox()
    with CodeGrader(trust_forgeable=True) as made:
        yield made


def mbpp_request(row, program):
    return CodeRequest("mbpp", mbpp_tests(row), program, "code")


def failures(grader, requests, wanted):
    grades = grader.grade_many(requests)
    pairs = zip(requests, grades, wanted, strict=True)
    return [(r.completion, g.verdict, g.detail) for r, g, w in pairs if (g.verdict is Verdict.CORRECT) != w], grades


def test_some_references_of_each_set_pass(grader):
    """The quick form of the tests below: every 25th reference, the odd ones included."""
    table = mbpp_rows()
    chosen = {t for t in table if t % 25 == 0} | FORGEABLE | {533, 596, 341, 480}
    requests = [mbpp_request(table[t], table[t]["code"]) for t in sorted(chosen)]
    requests += [
        mbpp_request(row, row["code"]) for row in rows("mbpp/sanitized.jsonl.gz") if row["task_id"] in (737, 787, 98)
    ]
    requests += humaneval_requests()[::10]
    assert failures(grader, requests, [True] * len(requests))[0] == []


def humaneval_requests():
    return [
        CodeRequest("humaneval", row["test"], row["canonical_solution"], "body", row["prompt"], row["entry_point"])
        for row in rows("humaneval/test.jsonl.gz")
    ]


@pytest.mark.slow
def test_all_974_mbpp_references_pass(grader):
    table = mbpp_rows()
    assert len(table) == 974
    requests = [mbpp_request(row, row["code"]) for row in table.values()]
    failed, grades = failures(grader, requests, [True] * 974)
    assert failed == []
    assert {task for task, grade in zip(table, grades, strict=True) if grade.forgeable} == FORGEABLE


@pytest.mark.slow
def test_all_challenge_tests_pass(grader):
    table = [row for row in mbpp_rows().values() if row["challenge_test_list"]]
    requests = [CodeRequest("mbpp", row["challenge_test_list"], row["code"], "code") for row in table]
    assert len(requests) == 11
    assert failures(grader, requests, [True] * 11)[0] == []


@pytest.mark.slow
def test_all_427_sanitized_references_pass(grader):
    requests = [mbpp_request(row, row["code"]) for row in rows("mbpp/sanitized.jsonl.gz")]
    assert len(requests) == 427
    assert failures(grader, requests, [True] * 427)[0] == []


@pytest.mark.slow
@pytest.mark.parametrize("form", ["body", "text fence", "text plain", "code"])
def test_all_164_humaneval_references_pass_in_every_form(grader, form):
    requests = humaneval_requests()
    assert len(requests) == 164
    if form != "body":
        whole = [r.prompt + r.completion for r in requests]
        shown = [f"Here is it:\n```python\n{w}\n```\nDone." for w in whole] if form == "text fence" else whole
        requests = [
            CodeRequest(r.style, r.tests, s, "code" if form == "code" else "text", r.prompt, r.entry_point)
            for r, s in zip(requests, shown, strict=True)
        ]
    assert failures(grader, requests, [True] * 164)[0] == []


@pytest.mark.slow
def test_mbpp_references_pass_as_fenced_text(grader):
    table = mbpp_rows().values()
    requests = [
        CodeRequest("mbpp", mbpp_tests(r), f"Sure.\n\n```python\n{r['code']}\n```\nDone.", "text") for r in table
    ]
    assert failures(grader, requests, [True] * 974)[0] == []


@pytest.mark.slow
def test_1685_mutants_are_wrong(grader):
    table = mbpp_rows()
    mutants = rows("mbpp/first_attempts_mutated.jsonl.gz")
    assert len(mutants) == 1685
    requests = [mbpp_request(table[m["task_id"]], m["attempt"]) for m in mutants]
    assert failures(grader, requests, [False] * 1685)[0] == []


@pytest.mark.slow
def test_1967_model_attempts_get_their_recorded_verdicts(grader):
    table = mbpp_rows()
    attempts = rows("mbpp/first_attempts_models.jsonl.gz")
    assert len(attempts) == 1967
    requests = [mbpp_request(table[a["task_id"]], a["attempt"]) for a in attempts]
    assert failures(grader, requests, [a["passed"] for a in attempts])[0] == []
