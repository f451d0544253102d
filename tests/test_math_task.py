"""MATH: schemas, rows without a gold answer, the split, and the real test set."""

import asyncio
import json

import pytest
from code_tools import DATA

import tiny
from selfcorrect import cli
from selfcorrect.errors import DataError
from selfcorrect.tasks.base import Answer, GradesTogether, grade_answers
from selfcorrect.tasks.math import Math
from selfcorrect.types import Problem, Verdict

PRM = {"problem": "What is $1+1$?", "solution": r"It is $\boxed{2}$.", "answer": "2", "subject": "Algebra", "level": 3}
PRM |= {"unique_id": "test/algebra/1.json"}
HENDRYCKS = {
    "problem": "Half of 1?",
    "solution": r"$\boxed{1}$, no: $\boxed{\frac12}$.",
    "level": "Level 5",
    "type": "Algebra",
}


def write(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_both_known_forms_of_rows(tmp_path):
    first, second = Math(str(write(tmp_path / "test.jsonl", PRM, HENDRYCKS))).problems("test")
    assert (first.id, first.answer, first.level, first.meta["unique_id"]) == (
        "math-test-0", "2", "level 3", "test/algebra/1.json",
    )  # fmt: skip
    assert (second.answer, second.level, second.meta["subject"]) == (r"\frac12", "level 5", "Algebra")
    (unknown,) = Math(str(write(tmp_path / "test_2.jsonl", {**HENDRYCKS, "level": "Level ?"}))).problems("test")
    assert unknown.level is None


def test_rows_with_an_empty_gold_are_left_out_and_counted(tmp_path):
    empty = [{**PRM, "answer": ""}, {**HENDRYCKS, "solution": r"First \boxed{3}, then \boxed{ }."}]
    task = Math(str(write(tmp_path / "test.jsonl", PRM, *empty)))
    assert [p.id for p in task.problems("test")] == ["math-test-0"]
    assert [line.partition("test.jsonl ")[2] for line in task.left_out] == [
        "line 2: an empty gold answer",
        "line 3: an empty gold answer",
    ]


def test_eval_says_how_many_rows_were_left_out(tmp_path, monkeypatch, capsys):
    rows = [{**PRM, "problem": f"{i}?"} for i in range(3)]
    file = write(tmp_path / "test.jsonl", *rows, {**PRM, "answer": " "})
    model = tiny.save_model(tmp_path / "m")
    settings = ["task=math", f"task.path={file}", "task.instruction=Again.", "play.max_new_tokens=40", "--json"]
    settings += ["model.dtype=float32", "model.lora_rank=0", "eval.controls=false"]
    monkeypatch.setattr("sys.argv", ["selfcorrect", "eval", str(model), *settings])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    out, err = capsys.readouterr()
    assert not stop.value.code, err
    assert f"rows left out of the data: 1; the first: {file} line 4: an empty gold answer" in err
    assert json.loads(out)["plain"]["summary"]["n_problems"] == 3


def test_training_problems_of_the_test_split_are_left_out(tmp_path):
    write(tmp_path / "test.jsonl", PRM)
    write(tmp_path / "train.jsonl", HENDRYCKS, {**PRM, "problem": PRM["problem"] + " "})
    task = Math(str(tmp_path))
    assert [p.question for p in task.problems("train")] == ["Half of 1?"]
    assert task.left_out == [f"{tmp_path / 'train.jsonl'} line 2: a problem of the test split"]


def test_a_training_file_alone_can_be_read(tmp_path):
    file = write(tmp_path / "train_all.jsonl", PRM)
    assert len(Math(str(file)).problems("train")) == 1
    assert len(Math(str(tmp_path)).problems("train")) == 1
    with pytest.raises(DataError, match="holds the train split by its name"):
        Math(str(file)).problems("test")


def test_one_file_is_cut_without_overlap(tmp_path):
    task = Math(str(write(tmp_path / "mine.jsonl", *[{**PRM, "problem": f"{i}?"} for i in range(40)])))
    train, test = ({p.question for p in task.problems(s)} for s in ("train", "test"))
    assert (len(train), len(test)) == (36, 4) and not train & test and not task.left_out


def test_one_file_that_names_the_splits_trains_on_no_test_problem(tmp_path):
    rows = [{**PRM, "problem": f"{i}?", "split": "test" if i < 3 else "train"} for i in range(6)]
    empty = [{**PRM, "problem": f"{split}?", "answer": "", "split": split} for split in ("train", "test")]
    file = write(tmp_path / "all.jsonl", *rows, {**rows[0], "split": "train"}, *empty)
    test = Math(str(file))
    assert len(test.problems("test")) == 3 and test.left_out == [f"{file} line 9: an empty gold answer"]
    both = Math(str(file))
    assert [p.question for p in both.problems("train")] == ["3?", "4?", "5?"]
    assert both.left_out == [
        f"{file} line 9: an empty gold answer",
        f"{file} line 7: a problem of the test split",
        f"{file} line 8: an empty gold answer",
    ]
    alone = write(tmp_path / "one.jsonl", {**PRM, "split": "train"})
    assert len(Math(str(alone)).problems("train")) == 1


def test_rows_of_one_file_are_left_out_once(tmp_path):
    rows = [{**PRM, "problem": f"{i}?", "answer": "" if i == 7 else "2"} for i in range(20)]
    task = Math(str(write(tmp_path / "mine.jsonl", *rows)))
    assert [len(task.problems(split)) for split in ("train", "test")] == [18, 1]
    assert task.left_out == [f"{tmp_path / 'mine.jsonl'} line 8: an empty gold answer"]


def test_the_hub(monkeypatch):
    import datasets

    asked = []

    def load(*args, **options):
        asked.append((args, options))
        return datasets.Dataset.from_list([PRM])

    monkeypatch.setattr(datasets, "load_dataset", load)
    assert Math().problems("test")[0].answer == "2"
    Math("someone/math").problems("test")
    assert asked == [(("HuggingFaceH4/MATH-500",), {"split": "test"}), (("someone/math",), {"split": "test"})]
    with pytest.raises(DataError, match=r"math has no train data of its own on the Hub; set task.path"):
        Math().problems("train")

    def refuse(*_, **__):
        raise ConnectionError("offline")

    monkeypatch.setattr(datasets, "load_dataset", refuse)
    with pytest.raises(
        DataError, match=r"data set dat/math is no file or directory here, and could not be loaded .*offline"
    ):
        Math("dat/math").problems("test")
    with pytest.raises(DataError, match=r"data file no/such/file does not exist"):
        Math("no/such/file").problems("test")


def test_grading_together_is_grading_one_by_one():
    task, problem = Math(), Problem("p", "q", r"\frac{1}{2}")
    answers = [
        Answer("Final answer: 0.5"),
        Answer("Final answer: 0.51"),
        Answer(r"Final answer: $\cos(\pi/3)$"),
        Answer("no idea"),
        Answer("so it is 0.5 and", truncated=True),
    ]
    assert isinstance(task, GradesTogether)
    together = asyncio.run(grade_answers(task, problem, answers))
    assert together == [task.grade(problem, a.text, truncated=a.truncated) for a in answers]
    assert [g.verdict.value for g in together] == ["correct", "wrong", "correct", "no_answer", "truncated"]


@pytest.mark.skipif(not (DATA / "math").is_dir(), reason=f"no data at {DATA}; set SELFCORRECT_DATA")
def test_every_reference_of_math_500_is_graded_correct():
    task = Math(str(DATA / "math"))
    problems = task.problems("test")
    assert (
        len(problems) == 500
        and not task.left_out
        and {p.level for p in problems} == {f"level {i}" for i in range(1, 6)}
    )
    wrong = [
        p.id
        for p in problems
        if task.grade(p, task.reference_answer(p), truncated=False).verdict is not Verdict.CORRECT
    ]
    assert wrong == []
