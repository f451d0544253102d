"""A task of one's own: rows, verifiers built in and by import path, and the page that explains it, run as it stands."""

import asyncio
import json
import re
import shlex
import sys
from pathlib import Path

import pytest
from code_tools import needs_sandbox

from selfcorrect import cli as package
from selfcorrect.config import load_config
from selfcorrect.errors import ConfigError, DataError
from selfcorrect.experiment import prepare
from selfcorrect.tasks import make_task
from selfcorrect.tasks.base import Answer, grade_answers
from selfcorrect.types import Grade, Verdict
from task_config import task_config

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "your-own-task.md"
ROW = {"question": "2+2?", "answer": "4"}


def own(tmp_path, *rows, **settings):
    file = tmp_path / "test.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows or (ROW,)))
    return make_task(task_config(name="own", path=str(file), **{"verifier": "exact", **settings}))


def verdict(task, text, *, truncated=False):
    return task.grade(task.problems("test")[0], text, truncated=truncated)


@pytest.mark.parametrize(
    ("verifier", "text", "expected"),
    [
        ("exact", "so\nFinal answer:  4 ", "correct"),
        ("exact", "Final answer: 4.0", "wrong"),
        ("exact", "4", "no_answer"),
        ("number", "Final answer: 4.0", "correct"),
        ("number", "Final answer: four", "no_answer"),
        ("number", "Final answer: 5", "wrong"),
        ("math", r"so it is $\boxed{\frac{8}{2}}$", "correct"),
        ("math", "Final answer: 5", "wrong"),
    ],
)
def test_built_in_verifiers(tmp_path, verifier, text, expected):
    assert verdict(own(tmp_path, verifier=verifier), text).verdict.value == expected


@pytest.mark.parametrize(
    "answer", ["__init__", "_x", "*", "=", "a*", "`ls`", ":q", "* or +", "4", "[1, 2]", "**kwargs", "-", "x_"]
)
def test_an_exact_answer_may_consist_of_marks(tmp_path, answer):
    task = own(tmp_path, {**ROW, "answer": answer})
    said = [
        task.reference_answer(task.problems("test")[0]),
        f"Final answer: x\n\nso\nFinal answer:   {answer}  \n",
        f"**Final answer:** {answer}",
        f"**Final answer: {answer}**",
        f"Final answer: **{answer}**",
        f"- Final answer: ` {answer} `",
    ]
    for text in said:
        assert verdict(task, text) == Grade(Verdict.CORRECT, answer, "equal to the answer"), text
        assert verdict(task, f"{text}\n", truncated=True).verdict is Verdict.CORRECT
        assert verdict(task, text.rstrip(), truncated=True).verdict is not Verdict.CORRECT
    assert verdict(task, f"Final answer: {answer}\nFinal answer: 17").verdict is Verdict.WRONG
    assert verdict(task, f"Final answer: {answer}\nThe final answer is 17").verdict is Verdict.WRONG


@pytest.mark.parametrize(
    ("answer", "text"), [("__init__", "init"), ("__init__", "_init_"), ("*", "+"), ("*", ""), ("a*", "a"), ("4", "4*4")]
)
def test_an_exact_answer_needs_its_marks(tmp_path, answer, text):
    assert verdict(own(tmp_path, {**ROW, "answer": answer}), f"Final answer: {text}").verdict is not Verdict.CORRECT


def test_programs_as_answers(tmp_path):
    needs_sandbox()
    row = {"question": "Double it.", "answer": ["assert f(2) == 4", "assert f(0) == 0"]}
    row |= {"reference": "```python\ndef f(x):\n    return 2 * x\n```"}
    task = own(tmp_path, row, verifier="code")
    task.get_ready(training=False)
    (problem,) = task.problems("test")
    texts = [task.reference_answer(problem), "```python\ndef f(x):\n    return x\n```", "no idea"]
    together = asyncio.run(grade_answers(task, problem, [Answer(t) for t in texts]))
    assert [g.verdict.value for g in together] == ["correct", "wrong", "no_answer"]
    assert [g.verdict for g in together] == [task.grade(problem, t, truncated=False).verdict for t in texts]
    assert task.first_messages(problem) == [{"role": "user", "content": "Double it."}]  # tests are not shown


def test_rows_bring_ids_levels_meta_and_references(tmp_path):
    row = {**ROW, "id": 7, "level": 3, "meta": {"a": 1}, "reference": "It is 4."}
    task = own(tmp_path, row, {**ROW, "question": "again?"})
    first, second = task.problems("test")
    assert (first.id, first.level, first.meta["row"], task.reference_answer(first)) == ("7", "3", {"a": 1}, "It is 4.")
    assert (second.id, second.level, task.reference_answer(second)) == ("own-test-1", None, "Final answer: 4")


def test_prompt_and_validation_split(tmp_path):
    for split in ("train", "validation", "test"):
        (tmp_path / f"{split}.jsonl").write_text(json.dumps({"question": f"{{{split}}}", "answer": "4"}))
    settings = {"name": "own", "path": str(tmp_path), "verifier": "exact", "prompt": "Q: {question} {x}"}
    task = make_task(task_config(**settings, eval_split="validation"))
    assert [task.problems(s)[0].question for s in ("train", "test")] == ["{train}", "{validation}"]
    assert task.first_messages(task.problems("test")[0])[0]["content"] == "Q: {validation} {x}"
    assert task.name == "own-validation"


@pytest.mark.parametrize(
    ("settings", "rows", "reason"),
    [
        ({"path": None}, [], r"task=own needs task.path"),
        ({"verifier": None}, [], r"task.verifier = None names no verifier; take one of: code, exact, math, number, or"),
        ({"verifier": "fuzzy"}, [], r"'fuzzy' names no verifier"),
        ({"prompt": "no slot"}, [], r"task.prompt has no \{question\} in it"),
        (
            {"verifier": "no_such_module:verify"},
            [],
            r"cannot be used: ModuleNotFoundError.*verify\(question, answer, text",
        ),
        ({"verifier": "json:nothing"}, [], r"'json:nothing' cannot be used: AttributeError"),
        ({"verifier": "os:getcwd"}, [], r"'os:getcwd' cannot be used: TypeError"),  # takes no arguments
        ({}, [{"question": "q"}], r"line 1 has no field 'answer' \(fields: 'question'\)"),
        ({}, [{**ROW, "meta": 3}], r"line 1 has a field 'meta' that is not an object"),
        ({}, [{**ROW, "id": 1}, {**ROW, "id": "1"}], r"2 problems with the id '1'"),
        ({"verifier": "number"}, [{**ROW, "answer": "four"}], r"line 1 has the answer 'four', which is not one number"),
        ({"verifier": "code"}, [ROW], r"line 1.*tests call nothing"),
        ({"verifier": "code"}, [{**ROW, "answer": "assert f("}], r"line 1.*not Python"),
        ({"verifier": "code"}, [{**ROW, "answer": "assert f()"}], r"line 1 has no field 'reference'"),
    ],
)
def test_faults_are_refused_before_any_model(tmp_path, settings, rows, reason):
    file = tmp_path / "test.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows or [ROW]))
    task = {"path": str(file), "verifier": "exact", **settings}
    given = [f"task.{key}={value}" for key, value in task.items() if value is not None]
    with pytest.raises((ConfigError, DataError), match=reason):
        prepare(load_config(None, ["model=/none", "task=own", *given]), training=False)


VERIFIERS = """
import numpy as np

from selfcorrect.types import Grade, Verdict

def right(question, answer, text, meta):
    assert (question, answer, meta) == ("2+2?", "4", {})
    meta["seen"] = True
    return answer in text

def names(question, answer, text, meta): return Verdict.NO_ANSWER
def grades(question, answer, text, meta): return Grade(Verdict.WRONG, "x", "by hand")
def fails(question, answer, text, meta): raise KeyError("low")
def odd(question, answer, text, meta): return 0.5
def counts(question, answer, text, meta): return Grade(Verdict.WRONG, np.int64(len(text)), None)
def words(question, answer, text, meta): return Grade("correct", text)
def holds(question, answer, text, meta): return Grade(True, text)
def arrays(question, answer, text, meta): return (np.array([1]) == len(text)).all()
"""


@pytest.fixture
def mine(tmp_path, monkeypatch):
    """A module in the working directory, which is where a user's verifier may lie."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "my_verifiers.py").write_text(VERIFIERS)
    yield lambda name: own(tmp_path, verifier=f"my_verifiers:{name}")
    sys.modules.pop("my_verifiers", None)


def test_what_a_verifier_of_ones_own_may_return(mine):
    assert verdict(mine("right"), "It is 4.") == Grade(Verdict.CORRECT, "It is 4.", "by my_verifiers:right")
    assert verdict(mine("right"), "a\nFinal answer: 4").extracted == "4"
    assert verdict(mine("right"), "5").verdict is Verdict.WRONG
    assert verdict(mine("right"), "5", truncated=True).verdict is Verdict.TRUNCATED
    assert verdict(mine("right"), "4", truncated=True).verdict is Verdict.CORRECT
    assert verdict(mine("names"), "4").verdict is Verdict.NO_ANSWER
    assert [verdict(mine("arrays"), text).verdict for text in ("4", "44")] == [Verdict.CORRECT, Verdict.WRONG]
    assert verdict(mine("grades"), "4") == Grade(Verdict.WRONG, "x", "by hand")
    counted = verdict(mine("counts"), "4")
    assert json.dumps([counted.extracted, counted.detail]) == '["1", ""]'  # as records hold them


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("fails", "my_verifiers:fails raised KeyError: 'low'"),
        ("odd", "my_verifiers:odd returned float, not bool, Verd"),
        ("words", "my_verifiers:words returned a Grade that holds str, not a Verdict"),
        ("holds", "my_verifiers:holds returned a Grade that holds bool, not a Verdict"),
    ],
)
def test_a_verifier_that_fails_is_an_error_with_its_reason_and_never_a_0(mine, name, reason):
    grade = verdict(mine(name), "4")
    assert grade.verdict is Verdict.ERROR and grade.detail.startswith(reason)


def test_a_whole_task_by_import_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "my_task.py").write_text(
        "import toy\n\ndef make(config):\n    return toy.Toy(n_test=config.terms_max)\n\ndef wrong(config):\n    return 3\n"
    )
    task = make_task(task_config(name="my_task:make", terms_max=9, instruction="Once more."))
    assert len(task.problems("test")) == 9 and task.instruction == "Once more."
    with pytest.raises(ConfigError, match=r"made a int without name, instruction, problems"):
        make_task(task_config(name="my_task:wrong"))
    sys.modules.pop("my_task", None)


def test_every_row_of_the_example_is_accepted_by_its_verifier(monkeypatch):
    monkeypatch.chdir(ROOT)
    task = make_task(
        task_config(
            name="own", path="examples/own_task", verifier="examples.own_task.verify:verify", prompt="{question}"
        )
    )
    for split, n in (("train", 30), ("test", 10)):
        problems = task.problems(split)
        assert len(problems) == n
        assert {task.grade(p, task.reference_answer(p), truncated=False).verdict for p in problems} == {Verdict.CORRECT}
        assert {task.grade(p, "Final answer: 9", truncated=False).verdict for p in problems} == {Verdict.WRONG}


def test_the_page_runs_as_it_stands(tmp_path, monkeypatch, capsys):
    """Every command of docs/your-own-task.md that needs no download, two steps of training among them."""
    monkeypatch.chdir(ROOT)
    text = "\n".join(re.findall(r"^```sh\n(.*?)^```", PAGE.read_text(), re.M | re.S)).replace("\\\n", " ")
    commands = [shlex.split(line) for line in text.splitlines() if line.startswith("selfcorrect ") and "tiny" in line]
    assert [c[1] for c in commands] == ["eval", "train", "train"]
    for command in commands:
        extra = [f"run_dir={tmp_path / 'run'}"] if command[1] == "train" and "--dry-run" not in command else []
        monkeypatch.setattr(sys, "argv", [*command, *extra, "--json"])
        with pytest.raises(SystemExit) as stop:
            package.main()
        out, err = capsys.readouterr()
        assert not stop.value.code, err
        assert json.loads(out)
    records = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    steps = [r for r in records if r["kind"] == "step"]
    assert len(steps) == 2 and all(r["errors"] == 0 for r in steps)
    assert (tmp_path / "run" / "model" / "config.json").exists()
