"""What holds for every task: where its rows come from, what is refused, what a prompt may show."""

from __future__ import annotations

import gzip
import json
import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest
from code_tools import DATA, needs_sandbox

import tiny
from selfcorrect.config import all_keys, load_config
from selfcorrect.engines.chat import ChatFormat
from selfcorrect.episodes.play import longest_conversation
from selfcorrect.errors import ConfigError, DataError
from selfcorrect.experiment import prepare
from selfcorrect.tasks import TASKS, make_task
from selfcorrect.tasks import graders as shared
from selfcorrect.tasks.base import GivesFirst
from selfcorrect.tasks.source import Source
from selfcorrect.types import Problem
from selfcorrect.verify.code import report as machine
from task_config import task_config

REAL = {
    "gsm8k": DATA / "gsm8k",
    "math": DATA / "math",
    "mbpp": DATA / "mbpp",
    "humaneval": DATA / "humaneval",
    "mbpp_repair": DATA / "mbpp",
}


def real_task(name, **settings):
    if not REAL[name].is_dir():
        pytest.skip(f"no data at {REAL[name]}; set SELFCORRECT_DATA")
    return make_task(task_config(name=name, path=str(REAL[name]), **settings))


def write(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


# --- settings ----------------------------------------------------------------------------------------------------

OTHER = {
    "path": "data",
    "eval_split": "validation",
    "terms_min": 5,
    "terms_max": 7,
    "asks": "sum",
    "largest": 99,
    "pick": "all",
    "numbers_min": 4,
    "numbers_max": 5,
    "largest_number": 50,
    "operations": "+-",
    "wrong_share": 0.5,
    "demonstrated_attempts": 1,
    "system_message": "Be brief.",
    "options": {"size": 3},
    "dataset": "chain_sum",
    "first_attempts": "f.jsonl",
    "verifier": "math",
    "prompt": "Q: {question}",
    "accept_risk": "run-untrusted-code-without-a-sandbox",
}


READ = {
    "arithmetic": {"terms_min", "terms_max", "asks", "largest"},
    "countdown": {
        *("pick", "numbers_min", "numbers_max", "largest_number", "operations"),
        *("wrong_share", "demonstrated_attempts", "system_message"),
    },
    "gsm8k": {"path"},
    "math": {"path"},
    "mbpp": {"path", "eval_split", "accept_risk"},
    "humaneval": {"path", "accept_risk"},
    "mbpp_repair": {"path", "eval_split", "accept_risk", "first_attempts"},
    "own": {"path", "eval_split", "accept_risk", "verifier", "prompt"},
    "reasoning_gym": {"dataset", "options", "accept_risk"},
}
"""Settings that these tasks read, in addition to those of every task, as a promise to users. A new task needs no row."""
OF_ALL = {"name", "instruction", "shown_as"}


def read_by(task):
    return type(task_config(name=task)).model_fields.keys() - OF_ALL


def test_the_tasks_read_what_was_promised():
    assert {name: read_by(name) for name in READ} == READ
    assert set().union(*READ.values()) == OTHER.keys()
    imported = type(task_config(name="module:make")).model_fields.keys()
    assert imported == OTHER.keys() - READ["countdown"] - {"dataset"} | OF_ALL


def test_every_setting_of_a_task_is_read_by_one():
    settings = {key.partition(".")[2] for key in all_keys() if key.startswith("task.")}
    assert settings == OF_ALL.union(*map(read_by, TASKS))


@pytest.mark.parametrize("task", TASKS)
def test_a_setting_that_a_task_does_not_read_is_refused(task):
    for setting in set().union(*map(read_by, TASKS)) - read_by(task):
        with pytest.raises(
            ConfigError, match=rf"task\.{setting} = .* would be ignored by task={task}; drop it, or use task="
        ):
            make_task(task_config(name=task, **{setting: OTHER.get(setting, 1)}))


def test_what_a_new_task_lacks_is_named_with_its_file(monkeypatch):
    def lacks(says):
        with pytest.raises(ConfigError, match=says):
            make_task(task_config(name="gsm8k"))

    monkeypatch.setitem(
        sys.modules, "selfcorrect.tasks.gsm8k", SimpleNamespace(make=lambda _: SimpleNamespace(name="gsm8k"))
    )
    lacks("made a SimpleNamespace without instruction, problems, first_messages, reference_answer, grade; ")
    monkeypatch.setitem(
        sys.modules, "selfcorrect.tasks.gsm8k", SimpleNamespace(make=lambda _: SimpleNamespace(name="gsm9k"))
    )
    lacks(r"the task in selfcorrect/tasks/gsm8k\.py has the name 'gsm9k'; write name = 'gsm8k', the name of its file")
    monkeypatch.setitem(sys.modules, "selfcorrect.tasks.gsm8k", SimpleNamespace())
    lacks(
        r"task gsm8k .* belongs in selfcorrect/tasks/gsm8k\.py, but that file has no class or function `make`; write a"
    )
    monkeypatch.setitem(sys.modules, "selfcorrect.tasks.gsm8k", None)
    lacks(r"task gsm8k .* belongs in selfcorrect/tasks/gsm8k\.py, but there is no such file; write a")
    monkeypatch.setitem(sys.modules, "selfcorrect.tasks.chess", SimpleNamespace(make=print))
    with pytest.raises(
        ConfigError, match=r"tasks/chess\.py makes a task, but no class in TaskConfig .* the name 'chess'; "
    ):
        make_task(task_config(name="chess"))


def test_the_risk_of_running_programs_is_nothing_to_a_verifier_that_runs_none():
    with pytest.raises(ConfigError, match=r"task\.accept_risk = .* would be ignored by task=own"):
        make_task(task_config(name="own", path="x", verifier="math", accept_risk=OTHER["accept_risk"]))


# --- where rows come from ----------------------------------------------------------------------------------------


def rows_of(path, split, splits=("train", "test")):
    source = Source("mine", path, None, splits)
    return [p.question for p in source.load(split, lambda identity, row, _: Problem(identity, row["q"], "a"))]


def test_rows_may_name_their_split(tmp_path):
    file = write(tmp_path / "all.jsonl", *[{"q": f"{s}{i}", "split": s} for i in range(2) for s in ("test", "train")])
    assert rows_of(file, "train") == ["train0", "train1"]
    assert rows_of(file, "test") == ["test0", "test1"]
    with pytest.raises(DataError, match=r"validation split of mine .* is empty"):
        rows_of(file, "validation", ("train", "validation", "test"))
    write(file, {"q": "1", "split": "test"}, {"q": "2"})
    with pytest.raises(DataError, match=r"line 2 has no split, and other rows"):
        rows_of(file, "train")
    write(file, {"q": "1", "split": "tset"})
    with pytest.raises(DataError, match=r"line 1 has split 'tset'; take one of: train, validation, test, prompt"):
        rows_of(file, "test")


def test_a_file_without_splits_has_no_validation_split_to_cut(tmp_path):
    file = write(tmp_path / "all.jsonl", *[{"q": str(i)} for i in range(20)])
    assert len(rows_of(file, "test")) == 2
    with pytest.raises(DataError, match=r"validation split of mine .* is empty"):
        rows_of(file, "validation", ("train", "validation", "test"))


def test_a_task_with_one_split_takes_all_of_a_file(tmp_path):
    file = write(tmp_path / "HumanEval.jsonl", *[{"q": str(i)} for i in range(20)])
    assert len(rows_of(file, "test", ("test",))) == 20


def test_a_longer_file_name_will_do_where_it_is_the_only_one(tmp_path):
    write(tmp_path / "test_500.jsonl", {"q": "long"})
    assert rows_of(tmp_path, "test") == ["long"]
    write(tmp_path / "test_10.jsonl", {"q": "other"})
    with pytest.raises(DataError, match=r"test_10.jsonl and test_500.jsonl leave open which is meant"):
        rows_of(tmp_path, "test")
    write(tmp_path / "test.jsonl", {"q": "short"})
    assert rows_of(tmp_path, "test") == ["short"]


def test_two_problems_of_one_id_are_refused(tmp_path):
    file = write(tmp_path / "test.jsonl", {"q": "1"}, {"q": "2"})
    with pytest.raises(DataError, match=r"2 problems with the id 'same'"):
        Source("mine", file, None).load("test", lambda _id, row, _where: Problem("same", row["q"], "a"))


# --- bad data, before a model loads ------------------------------------------------------------------------------

MATH = {"problem": "1+1?", "solution": r"\boxed{2}", "level": 1}
MBPP = {"text": "Add.", "code": "def f(a): return a", "task_id": 11, "test_list": ["assert f(1) == 1"]}
HUMANEVAL = {
    "task_id": "HumanEval/0",
    "prompt": "def f(a):\n",
    "entry_point": "f",
    "canonical_solution": "  return a",
    "test": "def check(c): assert c(1) == 1",
}
FAULTS = [
    ("math", {**MATH, "solution": "so 2"}, "line 2 has no gold answer: neither a field 'answer' nor a"),
    ("math", {**MATH, "answer": 2}, "line 2 has a field 'answer' that is not a text"),
    ("math", {"question": "q", "answer": "2"}, "line 2 has no field 'problem'"),
    ("mbpp", {**MBPP, "test_list": []}, "line 2 has a test_list without tests"),
    ("mbpp", {**MBPP, "test_list": "assert"}, "line 2 has a field 'test_list' that is not a list of texts"),
    ("mbpp", {**MBPP, "task_id": "x"}, "line 2 has a task_id that is not a number"),
    ("mbpp", {"text": "t", "task_id": 1}, "line 2 has no field 'code'"),
    ("humaneval", {**HUMANEVAL, "test": ""}, "line 2 has a field 'test' that is not a text with content"),
    ("humaneval", {"prompt": "x"}, "line 2 has no field 'task_id'"),
]


@pytest.mark.parametrize(("name", "row", "reason"), FAULTS)
def test_a_broken_row_is_named_by_line_before_any_model(tmp_path, name, row, reason):
    good = {"math": MATH, "mbpp": MBPP, "humaneval": HUMANEVAL}[name]
    write(tmp_path / "test.jsonl", good, row)
    write(tmp_path / "prompt.jsonl", *[{**MBPP, "task_id": i} for i in (2, 3, 4)])
    with pytest.raises(DataError, match=f"test.jsonl {reason}"):
        prepare(load_config(None, ["model=/none", f"task={name}", f"task.path={tmp_path}"]), training=False)


@pytest.mark.parametrize("name", ["math", "mbpp", "humaneval", "mbpp_repair"])
def test_missing_data_is_refused_before_any_model(tmp_path, name):
    for path in (tmp_path, tmp_path / "none.jsonl"):
        with pytest.raises(DataError, match=r"holds neither|does not exist"):
            prepare(load_config(None, ["model=/none", f"task={name}", f"task.path={path}"]), training=False)


@pytest.fixture
def unsafe(monkeypatch):
    """A machine without bubblewrap."""
    item = machine.Item("bubblewrap", False, True, "no bwrap on PATH; install it")
    monkeypatch.setattr(machine, "sandbox_report", lambda: machine.SandboxReport((item, item)))
    shared.code_grader.cache_clear()
    yield
    shared.code_grader.cache_clear()


@pytest.mark.usefixtures("unsafe")
def test_an_unsafe_machine_is_refused_before_any_model(tmp_path):
    write(tmp_path / "test.jsonl", HUMANEVAL)
    settings = ["model=/none", "task=humaneval", f"task.path={tmp_path}"]
    with pytest.raises(
        ConfigError, match=r"Refusing to run.*no bwrap on PATH.*The setting for that is task\.accept_risk"
    ):
        prepare(load_config(None, settings), training=False)
    with pytest.raises(ConfigError, match=r"the only risk that can be accepted"):
        prepare(load_config(None, [*settings, "task.accept_risk=yes"]), training=False)
    task = make_task(load_config(None, [*settings, f"task.accept_risk={OTHER['accept_risk']}"]).task)
    task.get_ready(training=False)


# --- prompts -----------------------------------------------------------------------------------------------------

SECRET = "the secret of the verifier"


@pytest.mark.parametrize("name", REAL)
def test_a_prompt_holds_nothing_that_only_the_verifier_may_see(name):
    task = real_task(name)
    problem = task.problems("test")[0]
    shown = ("shown",)  # MBPP's prompt shows its tests
    hidden = {k: v if k in shown else SECRET for k, v in problem.meta.items()}
    sealed = replace(problem, answer=SECRET, level=SECRET, meta=hidden)
    messages = task.first_messages(sealed)
    assert messages == task.first_messages(problem)
    assert SECRET not in str(messages) and messages[-1]["role"] == "user"
    assert problem.question.strip() in messages[-1]["content"]


@pytest.mark.parametrize("name", REAL)
def test_the_instruction_does_not_say_whether_the_answer_was_right(name):
    instruction = make_task(task_config(name=name, path="x")).instruction
    assert "might be an error" in instruction and "if there is any" in instruction
    assert "whole" in instruction and "again" in instruction


def test_braces_in_a_question_stay_as_they_are():
    for name in ("math", "humaneval"):
        task = make_task(task_config(name=name))
        assert r"{1} {question}" in task.first_messages(Problem("p", r"{1} {question}", "2"))[0]["content"]


@pytest.mark.parametrize("name", ["math", "mbpp", "humaneval", "mbpp_repair"])
def test_the_longest_conversation_is_found_by_what_is_shown_not_by_the_question(name, monkeypatch):
    """Held against the rendered prompts: the longest MBPP prompt has a question of 55 characters and tests of 4,000."""
    chat, task = ChatFormat(tiny.tokenizer()), real_task(name)
    every = task.problems("test")
    problems = [*every[::25], max(every, key=lambda p: len(p.answer)), max(every, key=lambda p: len(p.question))]
    bridge = len(chat.bridge_ids(task.first_messages(problems[0]), task.instruction, False))
    cap = 2_000
    monkeypatch.setattr("selfcorrect.episodes.play.LONGEST_PROBLEMS", 1)

    def length(p):
        first = len(chat.answer_ids(task.first_answers(p)[0])) if isinstance(task, GivesFirst) else cap
        return len(chat.prompt_ids(task.first_messages(p))) + first + bridge + cap

    assert longest_conversation(chat, task, problems, 2, cap) == max(map(length, problems))


def test_a_directory_without_a_training_split_can_be_measured_on(tmp_path):
    (tmp_path / "test_500.jsonl.gz").write_bytes(gzip.compress(json.dumps(MATH).encode()))
    model = tiny.save_model(tmp_path / "m")
    settings = [
        f"model={model}",
        "task=math",
        f"task.path={tmp_path}",
        "play.max_new_tokens=30",
        "task.instruction=Again",
    ]
    job = prepare(load_config(None, settings), training=False)
    assert len(job.task.problems("test")) == 1
    with pytest.raises(DataError, match=r"holds neither train.jsonl nor train.jsonl.gz"):
        prepare(load_config(None, settings))
    file = [s if "task.path" not in s else f"task.path={tmp_path / 'test_500.jsonl.gz'}" for s in settings]
    assert len(prepare(load_config(None, file), training=False).task.problems("test")) == 1


@pytest.mark.parametrize("name", ["humaneval", "mbpp_repair"])
def test_tasks_for_measuring_only_refuse_training_with_the_reason(name):
    needs_sandbox()
    real_task(name)
    with pytest.raises(ConfigError, match=r"for measuring.*train on.*mbpp.*selfcorrect eval"):
        prepare(load_config(None, ["model=/none", f"task={name}", f"task.path={REAL[name]}"]))
