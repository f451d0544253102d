"""Equal tokens: what a verdict buys against votes, by hand and by all subsets."""

import asyncio
import itertools
import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

import toy
from selfcorrect.cli.scale import _token_table
from selfcorrect.episodes.play import Play, play
from selfcorrect.measuring.equal_tokens import Sample, expected_best, measure_tokens, token_curve
from selfcorrect.measuring.test_time import ScalingCurves, measure_votes
from selfcorrect.measuring.votes import Vote
from selfcorrect.report.charts import draw_curves
from selfcorrect.report.page import scaling_charts
from selfcorrect.types import Attempt, Episode, Grade, Problem
from test_verdict import ERROR, RIGHT, WRONG, episode


def sample(right, called):
    return Sample(Vote("x", right), 1, called)


@given(st.lists(st.builds(sample, st.booleans(), st.booleans()), min_size=1, max_size=7), st.data())
def test_the_best_by_the_verdict_is_the_mean_over_all_subsets(samples, data):
    n = data.draw(st.integers(1, len(samples)))
    outcomes = []
    for drawn in itertools.combinations(samples, n):
        called = [s for s in drawn if s.calls_correct] or list(drawn)
        outcomes.append(sum(s.vote.correct for s in called) / len(called))
    assert expected_best(samples, n) == pytest.approx(sum(outcomes) / len(outcomes), abs=1e-12)


def plain(problem, number, *grades, tokens=(4, 6)):
    attempts = tuple(
        Attempt(f"{g.verdict}", None, (0,) * n, None, "end", Grade(g.verdict, g.verdict.value))
        for g, n in zip(grades, tokens, strict=False)
    )
    return Episode(Problem(problem, "q", "a"), number, attempts)


def gated(problem, number, *played, tokens=(4, 2, 6)):
    e = episode(problem, *played, tokens=tokens)
    attempts = tuple(a if a.turn == "verdict" else _keyed(a) for a in e.attempts)
    return Episode(e.problem, number, attempts)


def _keyed(attempt):
    verdict = attempt.grade.verdict
    return Attempt(**{**{f: getattr(attempt, f) for f in attempt.__slots__}, "grade": Grade(verdict, verdict.value)})


PLAIN = [plain("p", 0, RIGHT, RIGHT), plain("p", 1, WRONG, RIGHT), plain("p", 2, WRONG), plain("p", 3, WRONG)]
GATED = [gated("p", 0, 1, "correct", None), gated("p", 1, 0, "wrong", 1)]


def test_every_way_gets_the_same_expected_tokens():
    curve = token_curve(PLAIN, GATED, (1, 2, 4), str)
    assert curve.tokens_per_sample == {"parallel": 4, "corrected": 10, "gated": (6 + 12) / 2, "best": 6}
    one, two, four = curve.rows
    assert [r.tokens for r in curve.rows] == [4, 8, 16]
    # four tokens pay for one first attempt, and for nothing else
    assert one.parallel.value == pytest.approx(1 / 4) and one.corrected.n == one.gated.n == one.best.n == 0
    # eight: 8/6 of a judged answer, so one with weight 2/3 and two with weight 1/3: 1/2 and 1
    assert two.best.value == pytest.approx(2 / 3 * 1 / 2 + 1 / 3 * 1)
    assert two.corrected.n == two.gated.n == 0  # a chain costs ten and nine
    # sixteen: 1.6 corrected chains, 16/9 gated ones; all of both end right
    assert four.corrected.value == four.gated.value == 1
    assert four.best.n == 0  # 16/6 judged answers, and there are two
    assert four.parallel.value == 0
    assert four.gated_gain.value == 1 and two.best_gain.value == pytest.approx(2 / 3 + 0 - two.parallel.value)


def test_a_budget_of_whole_samples_is_not_lost_by_rounding():
    tokens = (4, 3, 3, 3, 3)  # 3.2 on average, and 6 * 3.2 / 3.2 is above 6 in binary
    firsts = [plain(f"p{i}", g, RIGHT, tokens=(n,)) for i, n in enumerate(tokens) for g in range(3)]
    chains = [plain(f"p{i}", g + 3, WRONG, RIGHT, tokens=(n, n)) for i, n in enumerate(tokens) for g in range(3)]
    largest = token_curve([*firsts, *chains], [], (1, 6), str).rows[-1]
    assert largest.parallel.value == 1 / 2 and largest.corrected.value == 1


def test_a_problem_with_a_failure_of_the_verifier_is_in_no_number():
    more = [plain("q", 0, ERROR), plain("q", 1, RIGHT)], [gated("q", 0, 1, "correct", None)]
    assert (
        token_curve([*PLAIN, *more[0]], [*GATED, *more[1]], (1, 2, 4), str).rows
        == token_curve(PLAIN, GATED, (1, 2, 4), str).rows
    )


@pytest.mark.parametrize("failing", [True, False])
def test_a_curve_without_a_number_is_strict_json_and_is_shown(failing):
    """Every problem is left out, or a budget of one response leaves no second attempts."""
    first = plain("p", 0, ERROR if failing else RIGHT)
    curve = token_curve([first], GATED, (1,), str)
    assert (curve.n_left_out, len(curve.rows)) == (int(failing), int(not failing))
    stored = ScalingCurves("m", None, "c", tokens=replace(curve, settings={"temperature": 1.0}))
    back = ScalingCurves.from_json(json.loads(json.dumps(stored.to_json(), allow_nan=False)))
    assert [draw_curves(chart).title for chart in scaling_charts(back)] == ["Accuracy by sampled tokens, T = 1.0"]
    assert "nan" not in str(_token_table(back.tokens, "m").caption)


def test_gated_chains_are_played_measured_stored_and_drawn(tmp_path):
    e, task = toy.engine(toy.config(tmp_path)), toy.Toy()
    e.publish()
    problems = task.problems("test")[:4]
    how = {"budgets": (1, 2, 4), "temperature": 1.0, "seed": 3}
    with toy.judging():
        votes = measure_votes(e, task, problems, 4, **how)
        curve = measure_tokens(e, task, problems, votes, verdict="Correct or wrong?")
        again = asyncio.run(
            play(e, task, problems, Play(2, 2, 4, 1.0, (3, "scale gated"), verdict="Correct or wrong?", stop=True))
        )
    assert [a.text for x in curve.episodes for a in x.attempts] == [
        a.text for g in again for x in g for a in x.attempts
    ]
    assert {len(x.verdicts) for x in curve.episodes} == {1} and curve.settings["verdict"] == "Correct or wrong?"
    assert curve.n_problems == 4 and curve.rows[-1].tokens == pytest.approx(4 * curve.tokens_per_sample["parallel"])
    stored = ScalingCurves("m", None, "c", votes, None, curve)
    back = ScalingCurves.from_json(json.loads(json.dumps(stored.to_json())))
    assert back.tokens == curve
    older = stored.to_json()
    del older["tokens"]
    assert ScalingCurves.from_json(older).tokens is None
    titles = [draw_curves(chart).title for chart in scaling_charts(back)]
    assert "Accuracy by sampled tokens, T = 1.0" in titles
