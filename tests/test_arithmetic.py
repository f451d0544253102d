"""The demo's task: problems, splits, verdicts, demonstrations; and the embedded model that was taught on it."""

import gzip
import itertools
import json
import random
import re
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from selfcorrect.tasks.arithmetic import (
    PER_LENGTH,
    SLIPS_OF_A_SUM,
    Arithmetic,
    Habits,
    demonstrate,
    draw_problems,
    question,
    solution,
)
from selfcorrect.tasks.procedural import split_of
from selfcorrect.types import Problem, Verdict

TASK = Arithmetic(4, 6)
SUMS = Arithmetic(2, 3, "sum", 99)
digits = st.lists(st.integers(1, 9), min_size=2, max_size=8)


def test_solution_golden():
    # 4+7+2 = 13 -> 3; walking back: 3-2 = 1, 1-7 = -6 = 4, 4-4 = 0
    assert solution([4, 7, 2]) == "Answer: 3\nCheck: 140"
    # off by 2: 5; 5-2 = 3, 3-7 = 6, 6-4 = 2: the walk ends at the size of the mistake
    assert solution([4, 7, 2], off_by=2) == "Answer: 5\nCheck: 362"


@given(digits, st.integers(0, 9))
def test_the_check_ends_at_the_mistake(numbers, off_by):
    assert int(solution(numbers, off_by)[-1]) == off_by


def test_solution_of_a_sum_golden():
    # 40+17+25 = 82; 82-25 = 57, 57-17 = 40: the first number
    assert solution([40, 17, 25], asks="sum") == "Answer: 82\nCheck: 82-25=57, 57-17=40"
    # off by 10: the subtractions are sound and end at 50 instead of 40
    assert solution([40, 17, 25], 10, "sum") == "Answer: 92\nCheck: 92-25=67, 67-17=50"
    assert solution([1, 1], -10, "sum") == "Answer: 0\nCheck: 0-1=-1"


@given(st.lists(st.integers(1, 99), min_size=2, max_size=4), st.sampled_from(SLIPS_OF_A_SUM))
def test_a_sum_is_graded_by_its_answer(numbers, slip):
    problem = Problem("p", question(numbers, "sum"), str(sum(numbers)), None, {"numbers": tuple(numbers)})
    assert SUMS.grade(problem, SUMS.reference_answer(problem), truncated=False).verdict is Verdict.CORRECT
    assert SUMS.grade(problem, solution(numbers, slip, "sum"), truncated=False).verdict is Verdict.WRONG
    assert SUMS.grade(problem, f"Answer: {sum(numbers)}", truncated=False).verdict is Verdict.NO_ANSWER


def test_sums_are_disjoint_and_drawn_up_to_the_largest_number():
    drawn = {split: draw_problems(split, (2, 3), "sum", 99) for split in ("pretrain", "train", "test")}
    for a, b in itertools.combinations(drawn.values(), 2):
        assert not {p.question for p in a} & {p.question for p in b}
    assert {n for p in drawn["train"] for n in p.meta["numbers"]} == set(range(1, 100))
    wrong = [a for _, (a, _) in itertools.islice(SUMS.demonstrations(0), 200)]
    assert all(re.fullmatch(r"Answer: \d+\nCheck: [-0-9=, ]+", text) for text in wrong)


@given(digits)
def test_the_reference_answer_is_correct_and_every_other_digit_is_wrong(numbers):
    problem = Problem("p", question(numbers), str(sum(numbers) % 10), None, {"numbers": tuple(numbers)})
    assert TASK.grade(problem, TASK.reference_answer(problem), truncated=False).verdict is Verdict.CORRECT
    for off_by in range(1, 10):
        assert TASK.grade(problem, solution(numbers, off_by), truncated=False).verdict is Verdict.WRONG


@pytest.mark.parametrize(
    ("text", "truncated", "verdict"),
    [
        ("Answer: 3\nCheck: 140", False, Verdict.CORRECT),
        ("  Answer: 3\nCheck: 140\n", False, Verdict.CORRECT),
        ("Answer: 3\nCheck: 999", False, Verdict.CORRECT),  # the answer line is judged, not the check
        ("Answer: 4\nCheck: 140", False, Verdict.WRONG),
        ("Answer: 13\nCheck: 140", False, Verdict.NO_ANSWER),
        ("Answer: 3", False, Verdict.NO_ANSWER),
        ("Answer: 3", True, Verdict.TRUNCATED),
        ("Answer: 4\nCheck: 1 Answer: 3\nCheck: 140", False, Verdict.NO_ANSWER),
        ("the answer is 3", False, Verdict.NO_ANSWER),
        ("", False, Verdict.NO_ANSWER),
    ],
)
def test_verdicts(text, truncated, verdict):
    problem = Problem("p", question([4, 7, 2]), "3", None, {"numbers": (4, 7, 2)})
    assert TASK.grade(problem, text, truncated=truncated).verdict is verdict


def test_pretraining_training_and_held_out_problems_are_disjoint_by_hash():
    texts = {split: {p.question for p in draw_problems(split, (4, 6))} for split in ("pretrain", "train", "test")}
    for a, b in itertools.combinations(texts.values(), 2):
        assert not a & b
    for split, questions in texts.items():
        assert {split_of(q) for q in questions} == {split}


@pytest.mark.parametrize("split", ["train", "test"])
def test_problems_are_distinct_and_every_length_weighs_the_same(split):
    problems = TASK.problems(split)
    assert len({p.question for p in problems}) == len({p.id for p in problems}) == len(problems)
    counts = Counter(p.level for p in problems)
    assert set(counts) == {"4 terms", "5 terms", "6 terms"}
    assert all(0.95 * PER_LENGTH[split] <= n <= PER_LENGTH[split] for n in counts.values())
    assert [p.question for p in Arithmetic(4, 6).problems(split)] == [p.question for p in problems]


def test_short_problems_are_all_there_is():
    assert 0 < len(Arithmetic(2, 2).problems("test")) < 81


def test_demonstrations_are_seeded_and_from_the_pretraining_split():
    def take(seed):
        return list(itertools.islice(TASK.demonstrations(seed), 200))

    assert take(1) == take(1) != take(2)
    assert {split_of(p.question) for p, _ in take(1)} == {"pretrain"}
    assert all(len(answers) == 2 for _, answers in take(1))


def test_habits_are_what_they_say():
    def shares(habits, numbers):
        rng = random.Random(0)
        pairs = [demonstrate(numbers, habits, 4, rng) for _ in range(4000)]
        right = solution(numbers)
        return (
            sum(a == right for a, _ in pairs) / 4000,
            sum(b == right for _, b in pairs) / 4000,
            sum(a == b for a, b in pairs) / 4000,
        )

    habits = Habits(slip_short=0.4, slip_long=0.9, fix_short=0.3, fix_long=0.0, redo=0.0)
    first, second, same = shares(habits, [1, 2, 3])
    assert first == pytest.approx(0.6, abs=0.03)
    assert second == pytest.approx(0.3 + 0.7 * 0.6, abs=0.03)  # fixed, or copied from a right one
    assert same == pytest.approx(0.7 + 0.3 * 0.6, abs=0.03)
    first, _, same = shares(habits, [1, 2, 3, 4, 5])
    assert (first, same) == (pytest.approx(0.1, abs=0.02), 1.0)


def test_habits_of_the_rare_base_are_those_of_its_recipe():
    rng = random.Random(0)
    habits = Habits(
        slip_short=0.0,
        slip_long=0.5,
        fix_short=0.0,
        fix_long=0.0,
        redo=1.0,
        slip_again=1.0,
        slip_edge=1.0,
        off_by_one=True,
    )
    for _ in range(300):
        assert demonstrate([4, 7, 2], habits, 4, rng)[0] == solution([4, 7, 2])  # below the edge: slip_short
        first, second = demonstrate([4, 7, 2, 5], habits, 4, rng)  # at the edge: slip_edge
        assert first in (solution([4, 7, 2, 5], 1), solution([4, 7, 2, 5], 9))  # fumbles: one up or one down
        assert second != solution([4, 7, 2, 5])  # slip_again: a fresh try that always slips


@given(
    st.lists(st.integers(1, 99), min_size=2, max_size=4), st.integers(-30, 30), st.sampled_from(["sum", "last_digit"])
)
def test_a_check_is_sound_if_it_belongs_to_the_written_answer(numbers, off_by, asks):
    numbers = [n % 9 + 1 for n in numbers] if asks == "last_digit" else numbers
    task = Arithmetic(2, 4, asks, 99)
    problem = Problem("p", "", "", None, {"numbers": tuple(numbers)})
    text = solution(numbers, off_by, asks)
    assert task.check_is_sound(problem, text) is True
    other = solution(numbers, off_by + 1, asks)
    if other != text:
        answer, check = text.partition("\n")[0], other.partition("\n")[2]
        assert task.check_is_sound(problem, f"{answer}\n{check}") is False
    assert task.check_is_sound(problem, "I do not know") is None


def test_the_base_of_the_null_on_smollm2_hid_its_mistakes():
    """docs/results/smollm2.md: 198 wrong first answers. 13 have the check that belongs to them, 4 more right subtractions."""
    rows = Path(__file__).parents[1] / "docs/results/smollm2/rows/base.jsonl.gz"
    task = Arithmetic(2, 3, "sum", 99)
    told = []
    for line in gzip.decompress(rows.read_bytes()).decode().splitlines():
        row = json.loads(line)
        if row["attempts"][0]["verdict"] == "wrong":
            numbers = tuple(map(int, row["problem"].removeprefix("test-").split("+")))
            told.append(
                task.check_is_sound(Problem("p", "", "", None, {"numbers": numbers}), row["attempts"][0]["text"])
            )
    assert len(told) == 198 and sum(map(bool, told)) == 13
