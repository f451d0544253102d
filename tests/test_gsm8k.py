"""GSM8K: rows with their faults, exact grading, and the real data."""

from __future__ import annotations

import gzip
import json
import os
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from selfcorrect.errors import ConfigError, DataError
from selfcorrect.records.files import read_jsonl
from selfcorrect.tasks import make_task
from selfcorrect.tasks.gsm8k import Gsm8k, number_key, parse_number
from selfcorrect.types import Problem, Verdict
from selfcorrect.verify.math import grade_math
from task_config import task_config

REPOSITORY = Path(__file__).resolve().parents[1]
DATA = Path(os.environ.get("SELFCORRECT_DATA", REPOSITORY.parent / "shared" / "data"))
needs_data = pytest.mark.skipif(not (DATA / "gsm8k").is_dir(), reason=f"no data at {DATA}; set SELFCORRECT_DATA")

ROW = {"question": "How many?", "answer": "2*9 = <<2*9=18>>18\n#### 18"}
TASK = Gsm8k()
EIGHTEEN = Problem("p", "How many?", "18", meta={"solution": "2*9 = <<2*9=18>>18"})


def write(path: Path, *rows: Any) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def verdict(text: str, *, truncated: bool = False, gold: str = "18") -> Verdict:
    return TASK.grade(Problem("p", "q", gold), text, truncated=truncated).verdict


@pytest.mark.parametrize(
    "answer",
    ["18", "18.00", "$18", "18.", "$18.00.", "**18**", "+18", "0018", "36/2", "\\$18", "18 %", "`18`",
     " 18 ", "$ 18", "18€"],
)  # fmt: skip
def test_correct(answer: str) -> None:
    assert verdict(f"Steps.\nFinal answer: {answer}") is Verdict.CORRECT


@pytest.mark.parametrize("answer", ["18.000001", "-18", "180", "1", "1,800", "0.18", "18/19", "17"])
def test_wrong(answer: str) -> None:
    assert verdict(f"Final answer: {answer}") is Verdict.WRONG


@pytest.mark.parametrize(
    "answer",
    ["", "eighteen", "18 or 20", "1_8", "18/0", "1,8", "18,00", "<number>", "9" * 200, "--18", "-$-18", "1 8", "٤", "∞",
     "nan", "-", "18 and a half", "18 not 20", "18 apples and 20 pears", "either 18, 19 or maybe 20 of them", "18 dozen", "18个半",
     "18或20", "18 (or 20)", "x = 17 or x = 18", "18 x"],
)  # fmt: skip
def test_answers_that_are_not_one_number(answer: str) -> None:
    assert verdict(f"Final answer: {answer}") is Verdict.NO_ANSWER
    assert verdict(f"Final answer: {answer}\n") is Verdict.NO_ANSWER


@pytest.mark.parametrize(
    "line",
    ["It cannot be 18", "It is definitely not equal to 18", "Not 18 apples here", "18 is wrong, sorry", "there are no more than 18 people", "more than 18 apples",
     "the square root of 18", "the square of 18", "one third of 18", "five more than 18", "twice as many as 18 apples", "12 times 18 apples altogether"],
)  # fmt: skip
def test_a_number_that_the_line_denies_or_works_with_is_no_answer(line: str) -> None:
    assert verdict(f"Final answer: {line}") is not Verdict.CORRECT
    assert grade_math("18", f"Final answer: {line}").verdict is not Verdict.CORRECT


def test_the_last_final_line_counts() -> None:
    assert verdict("Final answer: 17\nNo.\nFinal answer: 18\nDone.") is Verdict.CORRECT
    assert verdict("Final answer: 18\nFinal answer: 17") is Verdict.WRONG
    assert verdict("Final answer: 18\nFinal answer: it depends") is Verdict.NO_ANSWER


@pytest.mark.parametrize(
    "line", ["**Final answer:** 18", "final answer : 18", "FINAL ANSWER:18", "> - Final answer: 18\r"]
)
def test_dressed_lines(line: str) -> None:
    assert verdict(f"Steps\n{line}\n") is Verdict.CORRECT


# Rows n01 to n37 of public reports, with siblings. {} is the number.
LINES = [
    "Final answer: {}", "\u2705 Final Answer: **{}**", "Final answer: $\\boxed{{{}}}$", "**Final Answer**\n\\[\n\\boxed{{{}}}\n\\]",
    "Final answer:\n{}", "Final answer:\n\n{}\n", "Final answer:\n\n**{}**", "Final answer:\n$$\n{}\n$$", "Final answer:\n\\boxed{{{}}}",
    "Final answer: {} dollars.", "Final answer: \\text{{{}}}", "Final answer: \\text{{{} dollars}}", "Final answer: {}\\text{{ dollars}}",
    "The final answer is {}.", "the final answer is {}", "The final answer is: {}", "So the final answer is {}.", "The final answer is $\\boxed{{{}}}$.",
    "The **final answer** is: **{}**", "The **final answer** is **{}**.", "**The final answer is {}.**", "Final answer\uff1a {}", "Final answer\uff1a{}\u3002",
    "Final answer: {} (seventy-three)", "| Final answer: {} |", "| Final answer | {} |", "| **Final answer** | **{}** |", "## Final Answer: {}",
    "### Final answer\n{}", "**Final answer**\n\n{}", "Final Answer\n-----\n{}", "Final answer = {}", "Final answer - {}", "Final answer \u2014 {}", "Final answer -> {}", "Final answer \u2192 {}",
    "Final answer {}", "1. Final answer: {}", "\U0001f449 Final answer: {}", "[Final answer: {}]", "(Final answer: {})", "\u201cFinal answer: {}\u201d", "Final answer (in dollars): {}",
    "Final answer to the problem: {}", "Final answer for Janet is {}", "Final answer: \\({}\\)", "Final answer: \\[{}\\]", "Final answer: $${}$$", "Final answer: `{}`", "Final answer: __{}__",
    "Final answer: ${}", "Final answer: \\${}", "Final answer: USD {}", "Final answer: {} USD", "Final answer: {}\u5143", "Final answer: {}\u4e2a\u3002", "Final answer: \u5171{}\u4eba", "\u6700\u7ec8\u7b54\u6848\uff1a{}\u5143",
    "Final answer: about {}", "Final answer: She has {} clips in all.", "Final answer: x = {}", "Final answer: 70 + 3 = {}", "Final answer: {}!", "Final answer: \\mathbf{{{}}}",
    "Final answer: {} per day", "Final answer: {} kg of rice", "Final answer:\u00a0{}", "Final answer: \u200b{}", "\ufeffFinal answer: {}", "FINAL ANSWER: {}", "final answer:{}<|im_end|>",
    "Final answer: {}</s>", "Final answer: {}\n\nI hope this helps!", "\\boxed{{{}}}", "It is \\boxed{{{}}}. I put it in \\boxed as asked.", "\\boxed{{{}\\text{{ dollars}}}}",
    "<think>\nFinal answer: 12\n</think>\nIt is \\boxed{{{}}}", "<think>\nFinal answer: 12\n</think>\nFinal answer: {}", "Final answer: 12\n</think>\n\nFinal answer: {}", "<think>\\boxed{{12}}</think>Final answer: {}",
    "Final answer: {} minutes (1 hour 13 minutes)", "Final answer: {} apples in 5 boxes", "Final answer: {} apples in total (70 + 3)", "Final answer: **{}** apples left after 3 days",
    "Final answer: Tom has ${}$ dollars after 2 weeks", "Final answer: {} (rounded from 72.6 to the nearest whole number)", "Final answer: She needs {} cups for 10 people.",
    "Final answer: {} apples, 12 more than Tom", "Final answer: He finishes in {} days", "Final answer: {} out of 100 people stay home", "Final answer: {} students did not pass", "Final answer: The greatest common factor {} is it",
    "Final answer: The number of students who did not pass is {}", "Final answer: 5 boxes of 12 apples make {}", "Final answer: In 3 weeks she earns {} dollars",
    "Final answer: {} T-shirts", "Final answer: {} km/h", "Final answer: {} m/s", "Final answer: {} cm^2", "Final answer: ${}/hour", "Final answer: {} apples/day", "Final answer: {} times", "Final answer: {}-year-old",
    "\\boxed{{{}\\text{{ times}}}}", "\\boxed{{US\\${}}}", "\\boxed{{{} km/h}}", "Final answer: {} per cent", "Final answer: Rs. {}", "Final answer: {} CHF", "Final answer: CHF {}", "Final answer: <{}>",
    "Final answer: <number>{}</number>", "Final answer: {} \u2705", "\\textbf{{Final answer:}} {}", "\\textbf{{Final answer: {}}}", "<b>Final answer:</b> {}", "Final answer:\n```\n{}\n```", "Final\u00a0answer: {}", "\u6700\u7ec8\u7b54\u6848\u662f{}\u3002",
    "Final answer: 12\nNo.\nFinal answer: {}", "Final answer: 12\nNo: \\boxed{{{}}}", "\\boxed{{12}}\nFinal answer: {}", "Final answer: {}\n<think>\nFinal answer: 12\n</think>",
]  # fmt: skip


@pytest.mark.parametrize("line", LINES)
def test_lines_that_models_write(line: str) -> None:
    seventy_three = Problem("t", "How many?", "73")
    for before in ("So 73.\n", "", "Steps: 5 * 3 = 15.\n\n"):
        assert TASK.grade(seventy_three, before + line.format("73"), truncated=False).verdict is Verdict.CORRECT
        assert TASK.grade(seventy_three, before + line.format("74"), truncated=False).verdict is Verdict.WRONG


@pytest.mark.parametrize(
    "number",
    ["73,000", "73{,}000", "73\\,000", "73\u202f000", "73\u2009000", "73\u00a0000", "73\u2007000", "73 000", "73'000", "73\u2019000", "73000", "73000.0", "73,000.00",
     "73{,}000.00", "\uff17\uff13,\uff10\uff10\uff10", "\uff17\uff13\uff10\uff10\uff10", "\uff17\uff13\uff0c\uff10\uff10\uff10", "\U0001d7d5\U0001d7d1\U0001d7ce\U0001d7ce\U0001d7ce", "7\u200b3000", "73 thousand", "73\\text{ thousand}",
     "7.3\u4e07", "7.3 \\times 10^4", "73\\!000", "73,\\!000", "\\$73,000", "$73,000$", "\uff0473000", "\uffe573000", "73,000\uff05", "146000/2", "\\frac{146000}{2}"],
)  # fmt: skip
def test_spellings_of_one_number(number: str) -> None:
    many = Problem("t", "How many?", "73,000")
    for line in (
        "Final answer: {}",
        "\\boxed{{{}}}",
        "The final answer is {}.",
        "Final answer: \\({}\\)",
        "Final answer:\n{}",
    ):
        assert TASK.grade(many, line.format(number), truncated=False).verdict is Verdict.CORRECT, line
        assert number_key(number) == number_key("73000") or "times" in number


@pytest.mark.parametrize(
    "text",
    [
        "<think>\nFinal answer: 18",
        "<think>Final answer: 18\n</think>",
        "<think>\n\\boxed{18}\n</think>\n",
        "Put it in \\boxed{...}.",
        "Final answer: \\boxed{}",
    ],
)
def test_what_is_no_answer(text: str) -> None:
    assert verdict(text) is Verdict.NO_ANSWER
    assert verdict(text, truncated=True) is Verdict.TRUNCATED


def test_no_final_line() -> None:
    assert verdict("It is 18.") is Verdict.NO_ANSWER
    assert verdict("My final answers: 18") is Verdict.NO_ANSWER
    assert verdict("The answer is 18.") is Verdict.NO_ANSWER, "not the asked-for form"
    assert verdict("Final answer:\n") is Verdict.NO_ANSWER


def test_without_a_final_line_the_last_box_is_the_answer() -> None:
    assert verdict("So she has \\(\\boxed{17}\\), no, $\\boxed{18}$ apples.") is Verdict.CORRECT
    assert verdict("\\boxed{18\\text{ apples}}") is Verdict.CORRECT
    assert verdict("\\boxed{17}, or 18.") is Verdict.WRONG
    assert verdict("\\boxed{18}\nFinal answer: 17") is Verdict.WRONG, "the asked-for form comes first"
    assert verdict("\\boxed{18}\nFinal answer: eighteen") is Verdict.NO_ANSWER
    assert verdict("\\boxed{18} and", truncated=True) is Verdict.TRUNCATED


def test_truncated() -> None:
    assert verdict("It is", truncated=True) is Verdict.TRUNCATED
    assert verdict("Final answer:", truncated=True) is Verdict.TRUNCATED
    assert verdict("Final answer: 18", truncated=True) is Verdict.TRUNCATED, "perhaps the start of 180"
    assert verdict("Final answer: 18\nAnd so", truncated=True) is Verdict.CORRECT
    assert verdict("Final answer: 17\nAnd so", truncated=True) is Verdict.WRONG


def test_a_grade_says_what_it_read() -> None:
    grade = TASK.grade(EIGHTEEN, "Final answer: $17", truncated=False)
    assert (grade.extracted, grade.detail) == ("$17", "not equal to 18")


@given(st.integers(-(10**12), 10**12), st.integers(0, 4))
def test_numbers_survive_their_spellings(whole: int, places: int) -> None:
    value = Fraction(whole, 10**places)
    plain = f"{Decimal(whole).scaleb(-places):f}"
    for text in (
        plain,
        f"{Decimal(plain):,f}",
        f"${plain}",
        f"{plain}%",
        f"{plain}.",
        f"**{plain}**",
        f"−{plain}"[plain[0] != "-" :],
    ):
        expected = value
        assert parse_number(text.replace("−-", "-")) == expected


@given(st.fractions(max_denominator=10**6))
def test_fractions(value: Fraction) -> None:
    assert parse_number(str(value)) == value


@given(st.text(st.sampled_from("0123456789.,-+$%/ \n*_`\\e٤²五")) | st.text())
def test_parsing_never_raises_and_takes_only_numbers(text: str) -> None:
    if parse_number(text) is not None:
        assert any(c.isnumeric() for c in text)
    TASK.grade(EIGHTEEN, f"Final answer: {text}", truncated=False)


def test_prompt_and_instruction_do_not_leak() -> None:
    messages = TASK.first_messages(EIGHTEEN)
    assert [m["role"] for m in messages] == ["user"]
    assert "How many?" in messages[0]["content"]
    assert "18" not in messages[0]["content"] + TASK.instruction
    assert "might be" in TASK.instruction
    assert "if there is any" in TASK.instruction


def test_braces_in_a_question() -> None:
    problem = Problem("p", "A set {1, 2} has {question} what?", "2")
    assert problem.question in TASK.first_messages(problem)[0]["content"]


def test_reference_answer() -> None:
    assert TASK.reference_answer(EIGHTEEN) == "2*9 = 18\nFinal answer: 18"


def test_directory(tmp_path: Path) -> None:
    write(tmp_path / "train.jsonl", ROW, {**ROW, "question": "Why?"})
    (tmp_path / "test.jsonl.gz").write_bytes(gzip.compress(json.dumps(ROW).encode()))
    task = Gsm8k(str(tmp_path))
    assert [p.question for p in task.problems("train")] == ["How many?", "Why?"]
    assert [p.id for p in task.problems("train")] == ["gsm8k-train-0", "gsm8k-train-1"]
    (only,) = task.problems("test")
    assert (only.id, only.answer, only.meta["solution"]) == ("gsm8k-test-0", "18", "2*9 = <<2*9=18>>18")


def test_a_file_named_for_a_split_gives_that_split_only(tmp_path: Path) -> None:
    task = Gsm8k(str(write(tmp_path / "test_small.jsonl", ROW)))
    assert len(task.problems("test")) == 1
    with pytest.raises(DataError, match=r"holds the test split by its name, and the train split is needed.*directory"):
        task.problems("train")


def test_one_file_is_cut_without_overlap(tmp_path: Path) -> None:
    rows = [{**ROW, "question": f"Question {i % 40}?"} for i in range(80)]  # every question twice
    task = Gsm8k(str(write(tmp_path / "mine.jsonl", *rows)))
    train, test = ({p.question for p in task.problems(s)} for s in ("train", "test"))
    assert (len(train), len(test)) == (36, 4)
    assert not train & test
    assert len(task.problems("train")) == 72


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("{broken", r"data.jsonl line 3 is not valid JSON.*column 2; correct"),
        ("[1]", "line 3 is not a JSON object but a list"),
        ('{"answer": "#### 1"}', r"line 3 has no field 'question' \(fields: 'answer'\)"),
        ('{"question": "q"}', "line 3 has no field 'answer'"),
        ('{"question": "q", "answer": 1}', "line 3 has a field 'answer' that is not a text"),
        ('{"question": " ", "answer": "#### 1"}', "line 3 has a field 'question' that is not a text with content"),
        ('{"question": "q", "answer": "1"}', "line 3 has no '####'"),
        ('{"question": "q", "answer": "#### one"}', "line 3 has 'one' after '####'"),
        ('{"question": "\udcff"}', "line 3 is not UTF-8"),
        (
            r'{"question": "a \ud83d b", "answer": "#### 1"}',
            "line 3 has half of a surrogate pair in field 'question', at .* 2",
        ),
        (r'{"question": "q", "answer": "\udc00 #### 1"}', "line 3 has half of a surrogate pair in field 'answer'"),
        ("[" * 100_000, "line 3 is nested too deeply"),
    ],
)
def test_malformed_rows_are_named_by_line(line: str, reason: str, tmp_path: Path) -> None:
    text = json.dumps(ROW) + "\n\n" + line + "\n" + json.dumps(ROW)
    (tmp_path / "data.jsonl").write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(DataError, match=reason):
        Gsm8k(str(tmp_path / "data.jsonl")).problems("train")


def test_a_malformed_row_shows_whichever_split_it_would_be_in(tmp_path: Path) -> None:
    task = Gsm8k(str(write(tmp_path / "data.jsonl", *[{**ROW, "question": str(i)} for i in range(20)], {})))
    for split in ("train", "test"):
        with pytest.raises(DataError, match=r"line 21"):
            task.problems(split)


def test_missing_empty_and_damaged_data(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none.jsonl does not exist; set task.path"):
        Gsm8k(str(tmp_path / "none.jsonl")).problems("train")
    with pytest.raises(DataError, match=r"neither train.jsonl nor train.jsonl.gz"):
        Gsm8k(str(tmp_path)).problems("train")
    (tmp_path / "train.jsonl").write_text("\n\n")
    with pytest.raises(DataError, match=r"train split of gsm8k .* is empty"):
        Gsm8k(str(tmp_path)).problems("train")
    (tmp_path / "test.jsonl.gz").write_bytes(gzip.compress(json.dumps(ROW).encode() * 100)[:-20])
    with pytest.raises(DataError, match=r"damaged gzip"):
        Gsm8k(str(tmp_path)).problems("test")


def test_line_separators_inside_a_text_do_not_end_a_line(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    file.write_text(json.dumps({"t": "a\u2028b\x85"}, ensure_ascii=False) + "\r\n" + '{"t": "c"}', encoding="utf-8-sig")
    assert [row["t"] for _, row in read_jsonl(file, "")] == ["a\u2028b\x85", "c"]


def test_hub_out_of_reach(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    def refuse(*_: object, **__: object) -> None:
        raise ConnectionError("Couldn't reach 'openai/gsm8k' on the Hub")

    monkeypatch.setattr(datasets, "load_dataset", refuse)
    with pytest.raises(DataError, match=r"Couldn't reach.*set task.path to a directory"):
        Gsm8k().problems("train")


def test_hub_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    asked = []

    def load(*args: object, **options: object) -> Any:
        asked.append((args, options))
        return datasets.Dataset.from_list([ROW, {**ROW, "answer": "18"}][: len(asked)])

    monkeypatch.setattr(datasets, "load_dataset", load)
    task = Gsm8k()
    assert [p.answer for p in task.problems("train")] == ["18"]
    assert task.problems("train") is task.problems("train"), "read once"
    assert asked == [(("openai/gsm8k", "main"), {"split": "train"})]
    with pytest.raises(DataError, match=r"openai/gsm8k test row 1 has no '####'"):
        task.problems("test")


def test_make_task(tmp_path: Path) -> None:
    task = make_task(task_config(name="gsm8k", path=str(tmp_path), instruction="Try again."))
    assert isinstance(task, Gsm8k)
    assert task.instruction == "Try again."
    assert make_task(task_config(name="gsm8k")).instruction != "Try again."
    with pytest.raises(
        ConfigError, match=r"'gsm9k' is not a task; take one of: arithmetic, .*, gsm8k, .*package\.module:function"
    ):
        make_task(task_config(name="gsm9k"))
    with pytest.raises(ConfigError, match=r"instruction is empty"):
        make_task(task_config(name="gsm8k", instruction=" "))
    with pytest.raises(ConfigError, match=r"would be ignored"):
        make_task(task_config(name="arithmetic", path="x"))


@needs_data
@pytest.mark.parametrize(("split", "rows"), [("train", 7473), ("test", 1319)])
def test_every_gold_answer_is_graded_correct(split: Any, rows: int) -> None:
    task = Gsm8k(str(DATA / "gsm8k"))
    problems = task.problems(split)
    assert len(problems) == rows
    for problem in problems:
        answer = task.reference_answer(problem)
        assert "<<" not in answer
        assert "####" not in answer
        assert task.grade(problem, answer, truncated=False).verdict is Verdict.CORRECT, problem.id


@needs_data
def test_verdicts_on_real_model_solutions_agree_with_upstream() -> None:
    """5,276 GPT-3 solutions that end in 'A: <number>', each with OpenAI's own verdict."""
    agree, differ = 0, []
    problems = Gsm8k(str(DATA / "gsm8k")).problems("test")
    for problem, (_, row) in zip(
        problems, read_jsonl(DATA / "gsm8k" / "test_model_solutions.jsonl.gz", ""), strict=True
    ):
        for model in ("6b_finetuning", "6b_verification", "175b_finetuning", "175b_verification"):
            text = row[model]["solution"].replace("\nA: ", "\nFinal answer: ")
            grade = TASK.grade(problem, text, truncated=False)
            if (grade.verdict is Verdict.CORRECT) == row[model]["is_correct"]:
                agree += 1
            else:
                differ.append((problem.answer, text[-60:], row[model]["is_correct"]))
    assert agree + len(differ) == 5276
    assert differ == []
