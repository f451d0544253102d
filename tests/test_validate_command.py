"""`selfcorrect validate`: every reference through its own verifier."""

import json
import os
from pathlib import Path

import pytest

from selfcorrect.errors import ConfigError, DataError
from selfcorrect.measuring.validate import AT_ONCE, splits_of, validate
from selfcorrect.tasks import TASKS
from selfcorrect.tasks.arithmetic import Arithmetic
from selfcorrect.types import Grade, Problem, Verdict

DATA = Path(os.environ.get("SELFCORRECT_DATA", Path(__file__).resolve().parents[2] / "shared" / "data"))


class Pupils:
    """Grades together, as code tasks do. Problem i of ``bad`` has a reference that fails in its own way."""

    name = "pupils"
    instruction = "Again."

    def __init__(self, n=5, bad=(), splits=("prompt", "test")):
        self.splits = splits
        self.n, self.bad, self.batches = n, dict(bad), []

    def problems(self, split):
        if split == "absent":
            raise DataError("the file of this split does not exist")
        return [Problem(f"{split}-{i}", "?", str(i)) for i in range(self.n)]

    def first_messages(self, problem):
        raise AssertionError("no model is asked")

    def reference_answer(self, problem):
        if self.bad.get(problem.id) == "raises":
            raise KeyError("solution")
        return self.bad.get(problem.id, problem.answer)

    def grade(self, problem, text, *, truncated):
        raise AssertionError("grade_together is there")

    async def grade_together(self, problem, answers):
        (answer,) = answers
        assert not answer.truncated
        return [Grade(Verdict.CORRECT if answer.text == problem.answer else Verdict.WRONG, answer.text, "compared")]


def test_every_problem_of_every_split_is_graded():
    reports = validate(Pupils(n=2 * AT_ONCE + 1))
    assert [(r.split, r.problems, r.rejected, r.passed) for r in reports] == [
        ("prompt", 2 * AT_ONCE + 1, 0, True),
        ("test", 2 * AT_ONCE + 1, 0, True),
    ]


def test_rejected_references_are_told_in_order_with_verdict_and_detail():
    told = []
    task = Pupils(bad={"test-3": "7", "test-1": "raises", "prompt-0": "x"})
    reports = validate(task, ["test"], told.append)
    assert [(r.split, r.problem_id, r.grade.verdict) for r in told] == [
        ("test", "test-1", Verdict.ERROR),
        ("test", "test-3", Verdict.WRONG),
    ]
    assert "KeyError" in told[0].grade.detail and told[1].grade.detail == "compared"
    assert [(r.split, r.problems, r.rejected, r.passed) for r in reports] == [("test", 5, 2, False)]


def test_a_split_that_cannot_be_read_fails_alone_and_all_of_them_raise():
    reports = validate(Pupils(splits=("absent", "test")))
    assert [(r.split, r.passed) for r in reports] == [("absent", False), ("test", True)]
    assert "does not exist" in reports[0].unreadable
    with pytest.raises(DataError, match="does not exist"):
        validate(Pupils(splits=("absent",)))


def test_splits_are_those_of_the_task_else_of_the_contract():
    assert splits_of(Pupils()) == ("prompt", "test")
    assert {"train", "test"} <= set(splits_of(Arithmetic(4, 6)))
    with pytest.raises(ConfigError, match="its splits: prompt, test"):
        validate(Pupils(), ["train"])


def test_the_command_ends_well_where_all_pass(cli):
    code, out, err = cli("validate", "task=arithmetic", "test")
    assert (code, err) == (0, "")
    (line,) = out.splitlines()
    assert line.startswith("arithmetic test: ") and " 0 fail" in line


def test_the_command_prints_each_failure_and_exits_1(cli, monkeypatch):
    monkeypatch.setitem(TASKS, "pupils", lambda config: Pupils(bad={"test-3": "7"}))
    code, out, _ = cli("validate", "task=pupils")
    assert code == 1
    assert out.splitlines() == [
        "test  test-3  wrong: compared",
        "pupils prompt: 5 references, 0 fail (correct 5)",
        "pupils test: 5 references, 1 fail (correct 4, wrong 1)",
    ]
    code, out, _ = cli("validate", "task=pupils", "--json")
    printed = json.loads(out)
    assert code == 1 and printed["rejected"] == [
        {"split": "test", "id": "test-3", "verdict": "wrong", "detail": "compared"}
    ]
    assert [s["verdicts"] for s in printed["splits"]] == [{"correct": 5}, {"correct": 4, "wrong": 1}]
    monkeypatch.setitem(TASKS, "pupils", lambda config: Pupils(splits=("absent", "test")))
    code, out, _ = cli("validate", "task=pupils")
    assert code == 1 and "pupils absent: cannot be read: the file of this split" in out


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["task=chess"], "chess"),
        (["task=arithmetic", "validation"], "nor a split of task arithmetic"),
        (["task=arithmetic", "nonsense=1"], "unknown setting"),
        (["none.toml"], "does not exist"),
        (["task=gsm8k", "task.path=absent"], "absent does not exist"),
    ],
)
def test_bad_input_is_one_paragraph(cli, arguments, says):
    code, out, err = cli("validate", *arguments)
    assert (code, out) == (2, "") and err.startswith("selfcorrect: ") and says in err


def test_all_of_gsm8k(cli):
    if not (DATA / "gsm8k").is_dir():
        pytest.skip(f"{DATA / 'gsm8k'} is absent: set SELFCORRECT_DATA to the directory with gsm8k")
    code, out, _ = cli("validate", "task=gsm8k", f"task.path={DATA / 'gsm8k'}")
    assert code == 0
    assert out.splitlines() == [
        "gsm8k train: 7473 references, 0 fail (correct 7473)",
        "gsm8k test: 1319 references, 0 fail (correct 1319)",
    ]
