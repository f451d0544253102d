"""Metrics of graded episodes: hand-computed values, invariants, and the edges (no data, verifier errors, given y1)."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from selfcorrect.episodes.table import edit_distances, judged_means
from selfcorrect.errors import DataError
from selfcorrect.measuring.compare import MeasuredRun, compare_measured, paired_estimate
from selfcorrect.measuring.intervals import Estimate
from selfcorrect.measuring.metrics import EDIT_BINS, EvalSummary, by_level, correctness_matrix, summarise
from selfcorrect.types import Attempt, Episode, Grade, Problem, Verdict

C, W, N, T, E = Verdict.CORRECT, Verdict.WRONG, Verdict.NO_ANSWER, Verdict.TRUNCATED, Verdict.ERROR


def attempt(verdict: Verdict | None, text: str = "y", extracted: str | None = None, tokens: int | None = 3) -> Attempt:
    return Attempt(
        text=text,
        prompt_ids=(1,),
        token_ids=None if tokens is None else tuple(range(tokens)),
        logprobs=None if tokens is None else (0.0,) * tokens,
        stop="length" if verdict is T else "end",
        grade=None if verdict is None else Grade(verdict, extracted),
    )


def episode(problem: str, *attempts: Attempt | Verdict, sample: int = 0, level: str | None = None) -> Episode:
    played = tuple(a if isinstance(a, Attempt) else attempt(a) for a in attempts)
    return Episode(Problem(problem, "q", "a", level), sample, played)


# Ten problems: 4 stay right, 2 are mended, 1 is spoilt, 3 stay wrong (one of them with no answer, one cut at the cap).
TEN = [
    *(episode(f"p{i}", C, C) for i in range(4)),
    *(episode(f"p{i}", W, C) for i in (4, 5)),
    episode("p6", C, W),
    episode("p7", W, W),
    episode("p8", W, N),
    episode("p9", T, T),
]


def test_rewards_of_a_step_leave_out_what_was_not_judged() -> None:
    E = Verdict.ERROR
    assert judged_means([episode("a", C, E), episode("b", E, C), episode("c", W, W)]) == [0.5, 0.5]  # 1 of 2 judged
    assert judged_means([episode("a", E, C)]) == [0.0, 1.0]


def test_accuracies_and_flips_by_hand() -> None:
    s = summarise(TEN)
    assert (s.n_problems, s.n_episodes, s.n_verifier_errors) == (10, 10, 0)
    assert s.accuracy(1).value == pytest.approx(0.5)  # p0-p3, p6: 5 of 10
    assert s.accuracy(2).value == pytest.approx(0.6)  # p0-p5: 6 of 10
    assert s.revisions[0].i_to_c.value == pytest.approx(0.2)  # p4, p5 of ALL 10, not of the 5 wrong ones
    assert s.revisions[0].c_to_i.value == pytest.approx(0.1)  # p6
    assert s.revisions[0].delta.value == pytest.approx(0.1)  # 0.2 - 0.1
    assert s.delta_first_last == s.revisions[0].delta
    assert s.revisions[0].delta.kind == "paired bootstrap over problems" and s.accuracy(1).n == 10


def test_intervals_are_those_of_a_bootstrap_over_problems() -> None:
    # 400 problems: 5 right of 10 forty times over. Standard error sqrt(0.25/400) = 0.025, interval about 0.5 +- 0.049.
    many = [replace(e, problem=replace(e.problem, id=f"{e.problem.id}-{i}")) for e in TEN for i in range(40)]
    s = summarise(many)
    t1 = s.accuracy(1)
    assert (t1.low, t1.high) == (pytest.approx(0.451, abs=0.004), pytest.approx(0.549, abs=0.004))
    # delta: +1, -1, 0 with 0.2, 0.1, 0.7: variance 0.3 - 0.01 = 0.29, standard error 0.0269, interval 0.1 +- 0.053
    assert s.revisions[0].delta.low == pytest.approx(0.047, abs=0.004) and s.revisions[0].delta.high == pytest.approx(
        0.153, abs=0.004
    )
    wide = summarise(many, level=0.99).revisions[0].delta
    assert wide.level == 0.99 and wide.low < s.revisions[0].delta.low and wide.high > s.revisions[0].delta.high


def test_the_seed_moves_the_intervals_only() -> None:
    episodes = [episode(f"p{i}", attempt(C, tokens=i * i)) for i in range(40)]
    one, again, two = (summarise(episodes, seed=seed).attempts[0].tokens for seed in (1, 1, 2))
    assert one == again and one.value == two.value and (one.low, one.high) != (two.low, two.high)


def test_a_perfect_run_still_has_bounds() -> None:
    s = summarise([episode(f"p{i}", C, C) for i in range(10)])
    unseen = 1 - 0.05 ** (1 / 10)  # see stats.bootstrap_mean: equal rows
    assert (s.accuracy(1).low, s.accuracy(1).high) == (pytest.approx(1 - unseen), 1.0)
    assert (s.revisions[0].c_to_i.low, s.revisions[0].c_to_i.high) == (0.0, pytest.approx(unseen))
    assert (s.revisions[0].delta.low, s.revisions[0].delta.high) == (pytest.approx(-unseen), pytest.approx(unseen))


def test_the_level_reaches_every_estimate() -> None:
    three = [replace(e, attempts=(*e.attempts, e.attempts[0])) for e in TEN]
    data = json.dumps(summarise(three, level=0.8).to_json())
    assert '"level": 0.95' not in data and '"level": 0.8' in data
    assert all(e.level == 0.8 for row in by_level(three, level=0.8).values() for e in row)


def test_verdict_shares_tokens_and_truncation_by_hand() -> None:
    s = summarise(
        [
            episode("a", attempt(C, tokens=10), attempt(C, tokens=4)),
            episode("b", attempt(T, tokens=20), attempt(N, tokens=8)),
            episode("c", attempt(W, tokens=None), attempt(E, tokens=None)),
            # a right answer may still run into the cap: truncated counts it, the verdict share does not
            episode(
                "d", replace(attempt(C, tokens=20), stop="length"), replace(attempt(C), stop="given", source="given")
            ),
        ]
    )
    one, two = s.attempts
    assert one.verdict_shares == {
        "correct": 0.5,
        "wrong": 0.25,
        "no_answer": 0,
        "truncated": 0.25,
        "timeout": 0,
        "error": 0,
    }
    assert two.verdict_shares["error"] == 0.25 and sum(two.verdict_shares.values()) == pytest.approx(1)
    assert (one.tokens.value, one.tokens.n) == (pytest.approx(50 / 3), 3)  # (10 + 20 + 20) / 3; c has no ids
    assert (two.tokens.value, two.tokens.n) == (pytest.approx(6), 2)  # (4 + 8) / 2; c has no ids, d was given
    assert (one.truncated.value, one.truncated.n) == (pytest.approx(0.5), 4)  # b and d
    assert (two.truncated.value, two.truncated.n) == (0.0, 3)  # d was given


def test_given_first_attempts_have_accuracy_but_no_tokens() -> None:
    first = replace(attempt(W, tokens=None), stop="given", source="given")
    one = summarise([episode("a", first, C), episode("b", first, W)]).attempts[0]
    assert one.accuracy.value == 0 and str(one.tokens) == "n/a" and str(one.truncated) == "n/a"


def test_verifier_errors_leave_pair_by_pair_and_are_counted() -> None:
    s = summarise([episode("a", W, C), episode("b", C, E), episode("c", E, W), episode("d", C, W), episode("e", E, E)])
    assert s.n_verifier_errors == 3 and [a.n_verifier_errors for a in s.attempts] == [2, 2]
    assert (s.accuracy(1).value, s.accuracy(1).n) == (pytest.approx(2 / 3), 3)  # a, b, d: b and d are right
    assert (s.accuracy(2).value, s.accuracy(2).n) == (pytest.approx(1 / 3), 3)  # a, c, d: a is right
    assert (s.revisions[0].delta.value, s.revisions[0].delta.n) == (0.0, 2)  # a: +1, d: -1; not 1/3 - 2/3
    assert (s.revisions[0].i_to_c.value, s.revisions[0].c_to_i.value, s.revisions[0].i_to_c.n) == (0.5, 0.5, 2)
    assert s.revisions[0].answer_changed.n == 2, "an answer that our verifier failed on is no answer to compare"
    assert s.revisions[0].edit_ratio.n == 5, "texts need no verifier"


def test_only_errors_is_not_measured() -> None:
    s = summarise([episode("a", E, E)])
    assert (
        str(s.accuracy(1)) == str(s.revisions[0].delta) == str(s.revisions[0].i_to_c) == "n/a"
        and s.n_verifier_errors == 1
    )


def test_answer_change_by_hand() -> None:
    pairs = [("4", "4"), ("4", "5"), (None, None), (None, "4"), ("4", None)]
    s = summarise(
        [episode(f"p{i}", attempt(W, extracted=a), attempt(W, extracted=b)) for i, (a, b) in enumerate(pairs)]
    )
    assert s.revisions[0].answer_changed.value == pytest.approx(3 / 5)


def test_edit_ratio_copies_and_histogram_by_hand() -> None:
    pairs = [
        ("abc", "abc"),  # 0/6 = 0: bin 0, a copy
        ("kitten", "sitting"),  # 3/13 = 0.2308: bin 4, [0.20, 0.25)
        ("", "abcd"),  # 4/4 = 1: the last bin
        ("abcdefghij", "abcdefgXYZ"),  # 3/20 = 0.15: bin 3, whose lower edge it is
        ("ab", "ba"),  # 2/4 = 0.5 (a swap costs two): bin 10
        ("", ""),  # 0/0: left out and counted
    ]
    r = summarise([episode(f"p{i}", attempt(W, a), attempt(W, b)) for i, (a, b) in enumerate(pairs)]).revisions[0]
    assert r.edit_ratio.value == pytest.approx((0 + 3 / 13 + 1 + 3 / 20 + 2 / 4) / 5) and r.edit_ratio.n == 5
    assert (r.copied.value, r.copied.n) == (pytest.approx(1 / 5), 5)
    assert r.n_both_empty == 1
    assert len(r.edit_histogram) == EDIT_BINS
    assert {i: c for i, c in enumerate(r.edit_histogram) if c} == {0: 1, 3: 1, 4: 1, 10: 1, 19: 1}


@given(st.text("abé\n", max_size=12), st.text("abé\n", max_size=12))
@settings(deadline=None)
def test_edit_distance_equals_the_textbook_recursion(a: str, b: str) -> None:
    @cache
    def slow(i: int, j: int) -> int:
        if not i or not j:
            return i + j
        return min(slow(i - 1, j) + 1, slow(i, j - 1) + 1, slow(i - 1, j - 1) + (a[i - 1] != b[j - 1]))

    distance, length = edit_distances([(a, b)])
    assert (distance[0], length[0]) == (slow(len(a), len(b)), len(a) + len(b))


def test_three_attempts_by_hand() -> None:
    s = summarise([episode("a", W, C, C), episode("b", W, W, C), episode("c", C, W, C), episode("d", W, C, W)])
    assert [s.accuracy(k).value for k in (1, 2, 3)] == [0.25, 0.5, 0.75]
    first, second = s.revisions
    assert (first.i_to_c.value, first.c_to_i.value, first.delta.value) == (0.5, 0.25, 0.25)  # a, d mended; c spoilt
    assert (second.i_to_c.value, second.c_to_i.value, second.delta.value) == (0.5, 0.25, 0.25)  # b, c mended; d spoilt
    assert s.delta_first_last.value == 0.5 and s.revisions[0].delta.value == 0.25
    assert str(s.accuracy(4)) == str(s.accuracy(0)) == "n/a"


def test_one_attempt_has_accuracy_and_no_delta() -> None:
    s = summarise([episode("a", C), episode("b", W)])
    assert s.accuracy(1).value == 0.5 and s.revisions == ()
    assert (str(s.delta_first_last), s.revisions) == ("n/a", ())


def test_feedback_turns_are_passed_over() -> None:
    with_feedback = [episode(e.problem.id, e.attempts[0], attempt(None, "look again"), e.attempts[1]) for e in TEN]
    assert summarise(with_feedback) == summarise(TEN)


def test_samples_are_averaged_within_their_problem() -> None:
    # a: 3 of 4 right; b: 0 of 1. Per problem (0.75 + 0) / 2 = 0.375; pooled it would be 3/5.
    episodes = [episode("a", v, C, sample=i) for i, v in enumerate([C, C, C, W])] + [episode("b", W, W)]
    s = summarise(episodes)
    assert (s.n_problems, s.n_episodes) == (2, 5)
    assert (s.accuracy(1).value, s.accuracy(1).n) == (pytest.approx(0.375), 2)
    assert s.attempts[0].verdict_shares["correct"] == pytest.approx(0.375)
    assert s.revisions[0].delta.value == pytest.approx((0.25 + 0) / 2)
    # The unit is the problem: 8 copies of each sample must not narrow the interval.
    rng = np.random.default_rng(0)
    right = rng.random(60) < 0.5
    one = [episode(f"p{i}", C if ok else W) for i, ok in enumerate(right)]
    eight = [replace(e, sample=g) for e in one for g in range(8)]
    assert summarise(eight).accuracy(1) == summarise(one).accuracy(1)


def test_empty_input_prints_na_and_never_zero() -> None:
    s = summarise([])
    assert (s.n_problems, s.n_episodes, s.attempts, s.revisions) == (0, 0, (), ())
    for e in (s.accuracy(1), s.accuracy(2), s.delta_first_last):
        assert str(e) == "n/a" and math.isnan(e.value)
    assert by_level([]) == {} and correctness_matrix([]).correct_NK.shape == (0, 0)
    nothing = paired_estimate([np.empty(0)], [np.empty(0)], (-1, 1))
    assert nothing.n == 0 and str(nothing) == "n/a"


verdicts = st.sampled_from(list(Verdict))
texts = st.text("ab", max_size=4)


@st.composite
def evaluations(draw: st.DrawFn) -> list[Episode]:
    n_attempts = draw(st.integers(1, 4))
    keys = draw(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 3)), unique=True, max_size=12))
    turn = st.builds(attempt, verdicts, texts, st.none() | texts, st.none() | st.integers(0, 3))
    return [episode(f"p{p}", *(draw(turn) for _ in range(n_attempts)), sample=g) for p, g in keys]


@given(evaluations())
@settings(max_examples=60, deadline=None)
def test_delta_is_flips_in_minus_flips_out_and_the_difference_of_accuracies(episodes: list[Episode]) -> None:
    s = summarise(episodes)
    for k, r in enumerate(s.revisions):
        assert r.delta.n == r.i_to_c.n == r.c_to_i.n
        if r.delta.n:
            assert r.delta.value == pytest.approx(r.i_to_c.value - r.c_to_i.value, abs=1e-12)
        if s.n_verifier_errors == 0:
            assert r.delta.value == pytest.approx(s.accuracy(k + 2).value - s.accuracy(k + 1).value, abs=1e-12)
        assert sum(r.edit_histogram) + r.n_both_empty == len(episodes)
    for a in s.attempts:
        assert sum(a.verdict_shares.values()) == pytest.approx(1)


@given(evaluations(), st.randoms(use_true_random=False))
@settings(max_examples=60, deadline=None)
def test_order_of_the_episodes_changes_nothing(episodes: list[Episode], random: object) -> None:
    shuffled = list(episodes)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert summarise(episodes).to_json() == summarise(shuffled).to_json()
    assert {k: str(v) for k, v in by_level(episodes).items()} == {k: str(v) for k, v in by_level(shuffled).items()}


@given(evaluations())
@settings(max_examples=60, deadline=None)
def test_summary_survives_strict_json(episodes: list[Episode]) -> None:
    s = summarise(episodes)
    back = EvalSummary.from_json(json.loads(json.dumps(s.to_json(), allow_nan=False)))
    assert back.to_json() == s.to_json()
    assert str(back.accuracy(1)) == str(s.accuracy(1)) and type(back.attempts) is tuple


@pytest.mark.parametrize("damage", [{"attempts": None}, {"extra": 1}, {"revisions": [{"delta": 3}]}])
def test_foreign_json_is_named(damage: dict[str, object]) -> None:
    with pytest.raises(DataError, match="not a stored evaluation"):
        EvalSummary.from_json({**summarise(TEN).to_json(), **damage})
    with pytest.raises(DataError, match="not a stored evaluation"):
        EvalSummary.from_json({})


# ---------------------------------------------------------------- levels, pairing


def test_by_level_in_natural_order_with_the_unlabelled_last() -> None:
    rows: Sequence[tuple[str | None, Verdict]] = [
        ("Level 10", W),
        (None, C),
        ("Level 2", C),
        ("Level 2", W),
        ("Level 1", C),
    ]
    table = by_level([episode(f"p{i}", v, C, level=level) for i, (level, v) in enumerate(rows)])
    assert list(table) == ["Level 1", "Level 2", "Level 10", None]
    assert [e.value for e in table["Level 2"]] == [0.5, 1.0] and table["Level 2"][0].n == 2
    assert [table[name][0].value for name in ("Level 1", "Level 10", None)] == [1.0, 0.0, 1.0]


def test_correctness_matrix_rows_are_problems_sorted_by_id() -> None:
    m = correctness_matrix(
        [episode("b", W, C), episode("c", E, C), episode("a", C, C, sample=1), episode("a", W, C, sample=0)]
    )
    assert m.problem_ids == ("a", "b", "c")
    np.testing.assert_array_equal(m.correct_NK, [[0.5, 1], [0, 1], [math.nan, 1]])


def difference(a: Sequence[Episode], b: Sequence[Episode], *attempts: int) -> Estimate:
    """Run b minus run a, as rows of a table are made: of one attempt's accuracy, or of the gain from one to another."""
    columns = [correctness_matrix(run).correct_NK.T for run in (a, b)]
    values = [x[attempts[-1] - 1] - (x[attempts[0] - 1] if len(attempts) > 1 else 0) for x in columns]
    return paired_estimate([values[0]], [values[1]], (-len(attempts), len(attempts)))


def test_compare_by_hand() -> None:
    a = [episode("p1", W, W), episode("p2", W, C), episode("p3", C, C), episode("p4", C, W)]
    b = [episode("p4", C, C), episode("p3", C, C), episode("p2", C, C), episode("p1", W, C)]
    assert [difference(a, b, k).value for k in (1, 2)] == [0.25, 0.5]  # t1: 3/4 - 2/4; t2: 4/4 - 2/4
    assert difference(a, b, 1).n == 4
    assert difference(a, b, 1, 2).value == 0.25  # (4 - 3)/4 - (2 - 2)/4
    assert [difference(b, a, k).value for k in (1, 2)] == [-0.25, -0.5]
    json.dumps(difference(a, b, 1, 2).to_json(), allow_nan=False)


def test_compare_three_attempts_by_hand() -> None:
    a = [episode("p1", W, C, W), episode("p2", W, W, W)]
    b = [episode("p1", W, C, C), episode("p2", C, W, C)]
    assert [difference(a, b, k).value for k in (1, 2, 3)] == [0.5, 0.0, 1.0]
    assert difference(a, b, 1, 2).value == -0.5  # 0 - 1/2
    assert difference(a, b, 2, 3).value == 1.0  # 1/2 + 1/2
    assert difference(a, b, 1, 3).value == 0.5  # (2 - 1)/2 - 0


def test_compare_of_a_run_with_itself_is_nothing_with_a_bound() -> None:
    # No difference in 10 pairs: others are rarer than 1 - 0.05^(1/10) = 0.2589, each at most 1 (2 for delta).
    same = [difference(TEN, TEN, k) for k in (1, 2)]
    assert [(e.value, round(e.low, 4), round(e.high, 4)) for e in same] == [(0.0, -0.2589, 0.2589)] * 2
    delta = difference(TEN, TEN, 1, 2)
    assert (delta.value, round(delta.high, 4)) == (0.0, 0.5177)


def test_compare_pairs_within_problems_and_leaves_errors_out() -> None:
    a = [episode("p1", W, E), episode("p2", W, C), episode("p3", C, C)]
    b = [episode("p1", C, C), episode("p2", C, C), episode("p3", E, C)]
    found = [difference(a, b, k) for k in (1, 2)]
    assert [(e.value, e.n) for e in found] == [(1.0, 2), (0.0, 2)]  # t1: p1, p2; t2: p2, p3
    delta = difference(a, b, 1, 2)
    assert (delta.value, delta.n) == (-1.0, 1)  # p2 alone: (1 - 1) - (1 - 0)


def test_compare_refuses_what_cannot_be_paired() -> None:
    def run(seed: int, episodes: Sequence[Episode]) -> MeasuredRun:
        matrix = correctness_matrix(episodes)
        return MeasuredRun("score", seed, "m", {}, matrix, matrix)

    a, b = [episode("p1", W, C), episode("p2", W, C)], [episode("p2", C, C), episode("p3", C, C)]
    for one, two in ((a, b), (a[:1], b[1:]), (a, []), ([], a), (a, a[:1]), (a[:1], a)):
        with pytest.raises(DataError, match="different held-out problems"):
            compare_measured([run(0, one), run(1, two)])
    with pytest.raises(DataError, match="did not start from the same base model"):
        compare_measured([run(0, a), run(1, [episode("p1", W), episode("p2", W)])])


def test_what_cannot_be_summarised_is_named() -> None:
    with pytest.raises(DataError, match=r"'p0', sample 0, appears more than once.*across_seeds"):
        summarise(TEN + TEN)  # two seeds thrown together
    with pytest.raises(DataError, match="1 or 2 graded attempts"):
        summarise([episode("a", C, C), episode("b", C)])
    with pytest.raises(DataError, match="0 graded attempts"):
        summarise([episode("a", attempt(None))])
    with pytest.raises(DataError, match="appears more than once"):
        by_level([episode("a", C, level="1"), episode("a", C, level="2")])


@pytest.mark.slow
def test_a_hundred_thousand_episodes_take_under_ten_seconds() -> None:
    rng = np.random.default_rng(0)
    kinds = [attempt(v, f"text {i}", str(i), tokens=i) for v in (C, W, N) for i in range(30)]
    picks = rng.integers(0, len(kinds), (100_000, 2))
    episodes = [episode(f"p{i}", kinds[a], kinds[b]) for i, (a, b) in enumerate(picks)]
    start = time.perf_counter()
    summarise(episodes)
    difference(episodes, episodes, 1)
    assert time.perf_counter() - start < 10
