"""How a model revises, counted by hand."""

from __future__ import annotations

import pytest

from selfcorrect.measuring.intervals import Estimate, not_measured
from selfcorrect.measuring.phase import recommend, revising
from selfcorrect.types import Attempt, Episode, Grade, Problem, Verdict


def episode(problem: str, sample: int, *answers: tuple[str, bool | None]) -> Episode:
    verdict = {True: Verdict.CORRECT, False: Verdict.WRONG, None: Verdict.ERROR}
    attempts = tuple(Attempt(text, None, None, None, "stop", Grade(verdict[right], text)) for text, right in answers)
    return Episode(Problem(problem, problem, "x"), sample, attempts)


GROUPS = [
    [
        episode("a", 0, ("1", False), ("2", True)),  # departs and lands
        episode("a", 1, ("1", False), ("3", False)),  # departs
        episode("a", 2, ("1", False), ("1", False)),  # copies
        episode("a", 3, ("1", None), ("2", True)),  # the verifier failed: counts nowhere
    ],
    [
        episode("b", 0, ("5", True), ("5", True)),
        episode("b", 1, ("5", True), ("6", False)),  # breaks
        episode("b", 2, ("5", True), ("5", True)),
        episode("b", 3, ("5", True), ("5.0", True)),  # changes, and stays right
    ],
]


def test_shares_by_hand():
    found = revising(GROUPS)
    assert found.episodes == 7
    assert found.right_first == pytest.approx(4 / 7)
    assert (found.departs, found.lands, found.breaks) == (
        pytest.approx(2 / 3),
        pytest.approx(1 / 2),
        pytest.approx(1 / 4),
    )
    assert (found.fixed, found.broken) == (pytest.approx(1 / 7), pytest.approx(1 / 7))
    assert (found.samples, found.pass_at_k, found.sound) == (4, 0.5, None)
    assert found.fresh == 0  # of problem a, whose first attempts are all wrong
    p, d, q, f = found.right_first, found.departs, found.lands, found.breaks
    assert found.delta == pytest.approx((1 - p) * d * q - p * f)
    assert found.delta_bound == pytest.approx((1 - p) * q)


def test_a_fresh_try_is_another_sample_of_the_same_problem():
    mixed = [episode("c", i, (str(i), right), ("7", False)) for i, right in enumerate((True, False, False, None, True))]
    # after each of the two wrong ones, two of the three others are right; the one that failed counts nowhere
    assert revising([*GROUPS, mixed]).fresh == pytest.approx((3 * 0 + 2 * 2 / 3) / 5)


def test_checks_that_say_nothing_are_left_out():
    sound = {"1": True, "2": False}
    assert revising(GROUPS, lambda _problem, text: sound.get(text)).sound == pytest.approx(5 / 7)
    assert revising(GROUPS, lambda problem, text: text == problem.answer).sound_if_wrong == 0
    ones = revising(GROUPS, lambda _problem, text: text == "1")
    assert ones.sound_if_wrong == pytest.approx(4 / 6)  # the attempt on which the verifier failed is not wrong


def test_what_no_episode_tells_is_not_a_number():
    right = revising([[episode("b", 0, ("5", True), ("5", True))]])
    assert (right.departs, right.lands, right.delta_bound, right.breaks) == (None, None, None, 0.0)


def estimate(low, high):
    return Estimate((low + high) / 2, low, high, 64)


@pytest.mark.parametrize(
    ("delta", "fixed", "seconds", "method", "says"),
    [
        (estimate(0.01, 0.05), 0.10, 256, "multi_turn", "changes help from the start"),
        (estimate(-0.06, -0.02), 0.008, 384, "score", "a step has 3.1 corrections"),
        (estimate(-0.06, -0.02), 0.002, 384, None, "too few even for Stage I"),
        (estimate(-0.02, 0.02), 0.05, 384, None, "probe more problems"),
        (estimate(-0.02, 0.02), 0.001, 384, None, "too few"),
        (not_measured(), 0.05, 384, None, "probe more problems"),
    ],
)
def test_the_map_is_read_by_whether_changes_help_and_by_corrections_in_a_step(delta, fixed, seconds, method, says):
    found = recommend(delta, fixed, seconds)
    assert found.method == method and says in found.reason
