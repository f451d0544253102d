"""Majority votes, votes against corrections at equal budgets, attempts in a row; `selfcorrect scale` and its chart."""

import itertools
import json
import re
from fractions import Fraction

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

import made_runs as made
import tiny
import toy
from selfcorrect import experiment
from selfcorrect.config import EvalConfig, load_config
from selfcorrect.engines import models
from selfcorrect.errors import ConfigError, DataError
from selfcorrect.measuring import test_time as scale
from selfcorrect.measuring.evaluate import evaluate, held_out
from selfcorrect.measuring.intervals import paired_difference
from selfcorrect.measuring.test_time import AttemptCurve, ScalingCurves, VoteCurve, attempt_curve, vote_curve
from selfcorrect.measuring.votes import Vote, expected_majority, leaders, tally
from selfcorrect.records.run_directory import RunDirectory
from selfcorrect.report import build_report
from selfcorrect.report.charts import draw_curves
from selfcorrect.report.page import scaling_charts
from selfcorrect.report.reading import read_run
from selfcorrect.tasks import TASKS, make_task
from selfcorrect.types import Attempt, Episode, Grade, Problem, Verdict
from selfcorrect.verify.math import answer_key
from selfcorrect.verify.math.decide import decide
from task_config import task_config

# --- the vote --------------------------------------------------------------------------------------------------------

R, W, X, BLANK = Vote("4", True), Vote("5", False), Vote("6", False), Vote(None, False)


@pytest.mark.parametrize(
    ("votes", "k", "expected"),
    [
        ([R], 1, 1),
        ([R, W], 1, Fraction(1, 2)),
        ([R, W], 2, Fraction(1, 2)),  # a tie of two: half
        ([R, W, X], 3, Fraction(1, 3)),  # a tie of three
        ([R, R, W, W, X], 5, Fraction(1, 2)),  # two lead, the third has no part in the tie
        ([R, R, W], 3, 1),
        ([R, W, W], 3, 0),
        ([R, R, W], 2, Fraction(2, 3)),  # RR wins; RW, twice, is a tie: (1 + 1/2 + 1/2) / 3
        ([R, R, W, W], 3, Fraction(1, 2)),  # RRW twice wins, RWW twice loses
        ([R, BLANK, BLANK], 3, 1),  # no answer is no vote
        ([R, BLANK, BLANK], 1, Fraction(1, 3)),
        ([R, BLANK, BLANK], 2, Fraction(2, 3)),  # of 3 pairs one has no answer at all
        ([BLANK, BLANK], 2, 0),
        ([Vote("4", True), Vote("4", False), W], 3, Fraction(1, 2)),  # two verdicts in the winning answer
    ],
)
def test_the_expected_majority_by_hand(votes, k, expected):
    assert expected_majority(votes, k) == float(expected)


KEYS = st.sampled_from([None, "a", "b", "c", "d"])


@given(st.lists(st.builds(Vote, KEYS, st.booleans()), min_size=1, max_size=8), st.data())
@example([R, R, W, BLANK], None)
def test_the_expected_majority_is_the_mean_over_all_subsets(votes, data):
    """Slow and obvious: every subset, its leaders by `leaders`, each as likely, any of its responses as likely."""
    votes = [Vote(v.key, v.correct and v.key is not None) for v in votes]
    k = 2 if data is None else data.draw(st.integers(1, len(votes)))
    outcomes = []
    for drawn in itertools.combinations(votes, k):
        winners = leaders([v.key for v in drawn])
        shares = []
        for winner in winners:
            same = [v.correct for v in votes if v.key == winner]
            shares.append(Fraction(sum(same), len(same)))
        outcomes.append(sum(shares) / len(shares))
    assert expected_majority(votes, k) == pytest.approx(float(sum(outcomes) / len(outcomes)), abs=1e-12)


def test_a_certain_win_is_exactly_one_at_the_largest_size():
    assert expected_majority([R] * 200 + [W] * 56, 255) == 1.0


def test_the_tally_is_ranked_and_blanks_come_last():
    keys = [None, "x", "y", "y", None, None, "x"]
    assert tally(keys) == [("x", 2), ("y", 2), (None, 3)]
    assert leaders(keys) == ("x", "y")
    assert leaders([None, None]) == (None,)


# --- which answers are the same --------------------------------------------------------------------------------------

SAME = [
    [r"\frac{1}{2}", "0.5", "1/2", r"$\dfrac12$", "0.50"],
    ["x+1", "1+x", r"1 + x"],
    ["1,000", "1000", r"1{,}000"],
    [r"\text{East}", "east"],
    [r"\{1,2\}", r"\{2, 1\}"],
    [r"2\sqrt{4}", "4"],
    ["5 cm", r"5\text{ cm}"],
    ["(1,2)", "( 1, 2 )"],
    ["listen"],
    ["silent"],
    ["(2,1)"],
    [r"\frac{1}{0}"],
    ["0.333"],
    [r"\frac13"],
    [""],
    ["a" * 5000],
    [r"\notlatex{((("],
]


def test_math_answers_vote_together_where_they_are_the_same():
    keys = [{answer_key(a) for a in group} for group in SAME]
    assert all(len(k) == 1 for k in keys)
    assert len(set.union(*keys)) == len(SAME)


def test_what_votes_together_is_equal_to_the_grader_too():
    for group in SAME:
        for a, b in itertools.permutations(group, 2):
            assert decide(a, b).equal, (a, b)


@pytest.mark.parametrize(
    ("settings", "same", "different"),
    [
        ({"name": "arithmetic"}, ("7", "7"), ("7", "8")),
        ({"name": "gsm8k"}, ("$1,000.00", "1000"), ("10", "100")),
        ({"name": "math"}, (r"\frac{6}{4}", "1.5"), ("x", "y")),
        ({"name": "own", "path": "x", "verifier": "number"}, ("0.5", "1/2"), ("half", "1/2")),
        ({"name": "own", "path": "x", "verifier": "exact"}, ("a  b", "a b"), ("1.0", "1")),
        ({"name": "own", "path": "x", "verifier": "math"}, ("2/4", "0.5"), ("1", "2")),
        ({"name": "own", "path": "x", "verifier": "os.path:samestat"}, ("a  b", "a b"), ("1.0", "1")),
    ],
)
def test_every_task_with_answers_says_which_are_the_same(settings, same, different, monkeypatch):
    monkeypatch.setattr("selfcorrect.tasks.own.import_callable", lambda *_: None)
    key = scale.check_votes(make_task(task_config(**settings))).answer_key
    assert key(same[0]) == key(same[1])
    assert key(different[0]) != key(different[1])


# --- budgets, by hand ------------------------------------------------------------------------------------------------


def attempt(answer, gold="4", verdict=None):
    verdict = verdict or ("correct" if answer == gold else "wrong")
    return Attempt(f"it is {answer}", None, (1,), None, "end", Grade(Verdict(verdict), answer))


def episodes(problem, *chains):
    """One episode per chain of answers; ``None`` is a text without an answer."""
    rows = [tuple(attempt(a, verdict="no_answer" if a is None else None) for a in chain) for chain in chains]
    return [Episode(Problem(problem, "2+2?", "4"), g, row) for g, row in enumerate(rows)]


CHAINS = episodes("p", "54", "44") + episodes("q", "55", "65")
ALONE = episodes("p", "5", "6") + episodes("q", "4", "4")
"""p: first attempts 5 4 5 6, second ones 4 4. q: first attempts 5 6 4 4, second ones 5 5."""


def test_budgets_by_hand():
    rows = vote_curve(CHAINS, ALONE, (1, 2, 4), str).rows
    assert [r.responses for r in rows] == [1, 2, 4]
    # one response: p 1/4, q 2/4
    assert rows[0].parallel.value == (1 / 4 + 2 / 4) / 2
    assert rows[0].corrected.n == rows[0].difference.n == rows[0].parallel_gain.n == 0  # half a sample: n/a
    # two votes: agreement, or a fair lot between two: the same as one. Of one corrected sample: p right, q wrong
    assert rows[1].parallel.value == (1 / 4 + 2 / 4) / 2
    assert rows[1].corrected.value == 1 / 2
    # four: p has 5 twice, wrong; q has 4 twice, right. Two corrected: p 4 4, q 5 5
    assert (rows[2].parallel.value, rows[2].corrected.value) == (1 / 2, 1 / 2)
    assert rows[1].difference.value == 1 / 2 - 3 / 8
    assert (rows[2].parallel_gain.value, rows[2].corrected_gain.value) == (1 / 8, 1 / 8)


def test_half_of_a_budget_votes_after_correction():
    chains = episodes("p", "54", "54", "54", "55")
    rows = vote_curve(chains, episodes("p", *"4444"), (4, 8), str).rows
    # K = 4: pairs of second attempts; 3 of 6 are 4 4, the others a tie: (3 + 3/2) / 6. K = 8: 4 4 4 5 is right
    assert [r.corrected.value for r in rows] == [3 / 4, 1]
    # K = 8 in parallel: four 5 and four 4, a tie
    assert rows[1].parallel.value == 1 / 2


def test_differences_are_paired_by_problem():
    row = vote_curve(CHAINS, ALONE, (4,), str, seed=3).rows[0]
    # p: 1 - 0, q: 0 - 1
    paired = paired_difference([0, 1], [1, 0], seed=3, support=(-1, 1))
    assert (row.difference.low, row.difference.high, row.difference.kind) == (paired.low, paired.high, paired.kind)
    assert row.difference.n == 2


def test_the_order_of_samples_does_not_matter():
    back = vote_curve(CHAINS[::-1], ALONE[::-1], (1, 2, 4), str)
    assert back == vote_curve(CHAINS, ALONE, (1, 2, 4), str)


def test_a_verifier_error_takes_its_problem_out_of_both_arms_and_is_counted():
    failed = Episode(Problem("q", "2+2?", "4"), 7, (attempt("4", verdict="error"),))
    curve = vote_curve(CHAINS, [*ALONE, failed], (2,), str)
    assert (curve.n_problems, curve.n_left_out) == (1, 1)
    assert curve.rows[0].corrected.value == 1 and curve.rows[0].parallel.value == 1 / 4


def test_texts_without_an_answer_abstain_and_a_right_one_without_an_extract_votes():
    chains = episodes("p", (None, None), (None, "4"))
    assert vote_curve(chains, episodes("p", "5", "5"), (4,), str).rows[0].corrected.value == 1
    assert vote_curve(chains, episodes("p", "5", "5"), (4,), str).rows[0].parallel.value == 0
    judged = Attempt("yes", None, (1,), None, "end", Grade(Verdict.CORRECT, None))
    alone = [Episode(Problem("p", "?", "yes"), 0, (judged,))]
    assert vote_curve([], alone, (1,), str).rows[0].parallel.value == 1


def test_attempts_in_a_row_by_hand():
    played = episodes("p", "554") + episodes("q", "454") + episodes("r", "444")
    curve = attempt_curve(played)
    assert [e.value for e in curve.accuracy_K] == pytest.approx([2 / 3, 1 / 3, 1])
    assert curve.gain_K[0].n == 0
    assert [e.value for e in curve.gain_K[1:]] == pytest.approx([-1 / 3, 1 / 3])
    failed = Episode(Problem("s", "?", "4"), 0, (attempt("4"), attempt("4", verdict="error"), attempt("4")))
    left = attempt_curve([*played, failed])
    assert (left.n_problems, left.n_left_out) == (3, 1) and left.accuracy_K == curve.accuracy_K


# --- bad input -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("budgets", "says"),
    [
        ((), "from 1 to 256"),
        ((0, 2), "from 1 to 256"),
        ((-2,), "from 1 to 256"),
        ((2, 512), "from 1 to 256"),
        ((1, 3), "3 responses cannot be spent"),
        ((4, 2), "must rise"),
        ((2, 2), "must rise"),
    ],
)
def test_budgets_that_cannot_be_spent_both_ways_are_refused(budgets, says):
    with pytest.raises(ConfigError, match=says):
        scale.check_votes(make_task(task_config(name="arithmetic")), budgets)


REFUSED = {
    "not numbers": (["--budget", "one"], ["not a list of whole numbers", "1,2,4,8"]),
    "odd": (["--budget", "1,5"], ["5 responses", "even numbers"]),
    "greedy votes": (["--temperature", "0"], ["one greedy answer", "0.7"]),
    "programs": (["task=humaneval"], ["no majority vote", "--only attempts"]),
    "stored first attempts": (
        ["task=mbpp_repair", "task.first_attempts=x", "task.path=y"],
        ["stored first attempts", "--only attempts"],
    ),
    "eval's attempts": (["attempts=3"], ["eval.attempts", "would be ignored", "--attempts"]),
    "eval's samples": (["samples=3"], ["would be ignored", "--budget"]),
    "a setting of training": (["train.steps=3"], ["train.steps", "would be ignored", "drop it"]),
    "feedback": (["method=self_refine"], ["would be ignored"]),
    "too long": (
        ["play.max_new_tokens=60", "--attempts", "9"],
        ["9 attempts may take", "512 positions, which hold 3"],
    ),
    "out exists": (["--out", "old.jsonl"], ["exists already"]),
}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny.save_model(tmp_path_factory.mktemp("model"))


@pytest.mark.parametrize("name", REFUSED)
def test_bad_input_is_refused_before_any_weights_load(cli, model, tmp_path, monkeypatch, name):
    monkeypatch.setattr(models, "load_model", lambda *_: pytest.fail("weights were loaded"))
    (tmp_path / "old.jsonl").write_text("precious")
    arguments, expected = REFUSED[name]
    code, out, err = cli("scale", model, *arguments)
    assert (code, out) == (2, "") or name == "out exists"
    assert len(err.strip().splitlines()) == 1
    for part in expected:
        assert part in err
    assert (tmp_path / "old.jsonl").read_text() == "precious"


# --- whole measurements ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def embedded():
    job = experiment.prepare(load_config(None, ["model=tiny", "engine.device=cpu"]), training=False)
    engine = experiment.make_engine(job, frozen=True)
    engine.publish()
    return engine, job.task, held_out(job.task, 5)


def test_the_largest_budget_is_sampled_once(embedded):
    engine, task, problems = embedded
    heard = []
    curve = scale.measure_votes(
        engine, task, problems, 16, budgets=(1, 2, 4), seed=2, on_progress=lambda *progress: heard.append(progress)
    )
    per_problem = [[len(e.attempts) for e in curve.episodes if e.problem.id == p.id] for p in problems]
    assert per_problem == [[2, 2, 1, 1]] * 5  # 4 first attempts, 2 second ones
    assert len({(e.problem.id, e.sample) for e in curve.episodes}) == 20
    assert heard[-1] == ("votes", 5, 5)
    assert curve.settings["responses_per_problem"] == 6 and curve.settings["temperature"] == 0.7
    right = [[e.attempts[0].correct for e in curve.episodes if e.problem.id == p.id] for p in problems]
    assert curve.rows[0].parallel.value == pytest.approx(sum(map(sum, right)) / 20)
    seconds = [e.attempts[1].correct for e in curve.episodes if len(e.attempts) == 2]
    assert curve.rows[1].corrected.value == pytest.approx(sum(seconds) / 10)
    again = scale.measure_votes(engine, task, problems, 16, budgets=(1, 2, 4), seed=2)
    assert again.rows == curve.rows
    texts = [a.text for e in curve.episodes for a in e.attempts]
    other = scale.measure_votes(engine, task, problems, 16, budgets=(1, 2, 4), seed=3)
    assert [a.text for e in other.episodes for a in e.attempts] != texts


def test_how_problems_are_put_together_changes_nothing(embedded, monkeypatch):
    engine, task, problems = embedded
    at_once = scale.measure_votes(engine, task, problems, 16, budgets=(4,))
    monkeypatch.setattr(scale, "ROWS_AT_ONCE", 8)
    assert scale.measure_votes(engine, task, problems, 16, budgets=(4,)).rows == at_once.rows


def test_one_response_needs_no_second_attempt(embedded):
    engine, task, problems = embedded
    curve = scale.measure_votes(engine, task, problems, 16, budgets=(1,))
    assert [len(e.attempts) for e in curve.episodes] == [1] * 5


def test_attempts_in_a_row_begin_as_an_evaluation_does(embedded):
    engine, task, problems = embedded
    curve = scale.measure_attempts(engine, task, problems, 16, attempts=10)
    assert len(curve.accuracy_K) == len(curve.gain_K) == 10
    plain = evaluate(engine, task, problems, EvalConfig(attempts=2, controls=False), 16).summary
    assert [e.value for e in curve.accuracy_K[:2]] == [plain.accuracy(1).value, plain.accuracy(2).value]
    assert curve.gain_K[1].value == plain.revisions[0].delta.value


def test_a_curve_goes_through_json_and_back(embedded):
    engine, task, problems = embedded
    votes = scale.measure_votes(engine, task, problems, 16, budgets=(1, 2))
    row = scale.measure_attempts(engine, task, problems, 16, attempts=2)
    curves = ScalingCurves("tiny", None, "selfcorrect scale tiny", votes, row)
    text = json.dumps(curves.to_json(), allow_nan=False)
    back = ScalingCurves.from_json(json.loads(text))
    assert json.dumps(back.to_json()) == text
    assert isinstance(back.votes, VoteCurve) and isinstance(back.attempts, AttemptCurve)
    with pytest.raises(DataError, match="not a stored vote curve"):
        VoteCurve.from_json({"rows": [{"responses": 1}]})
    with pytest.raises(DataError, match="not a stored measurement"):
        ScalingCurves.from_json({"votes": None, "attempts": None, "of": "another version"})


def test_scale_prints_both_tables_and_writes_the_episodes(cli, tmp_path):
    code, out, err = cli("scale", "tiny", "limit=4", "--budget", "1,2", "--attempts", "3", "--out", "e.jsonl")
    assert code == 0, err
    assert "K/2, each corrected once" in out and "gain over attempt 1" in out and "n = 4 problems" in out
    rows = [json.loads(line) for line in (tmp_path / "e.jsonl").read_text().splitlines()]
    assert [r["measurement"] for r in rows] == ["votes"] * 8 + ["attempts"] * 4
    assert "votes: 4 of 4 problems" in err and "attempts: 4 of 4 problems" in err


def test_one_of_the_two_alone_as_json(cli):
    code, out, err = cli("scale", "tiny", "limit=3", "--budget", "2", "--only", "votes", "--json")
    assert code == 0, err
    said = json.loads(out)
    assert said["attempts"] is None and [r["responses"] for r in said["votes"]["rows"]] == [2]
    assert said["command"].startswith("selfcorrect scale tiny limit=3")
    code, out, err = cli("scale", "tiny", "limit=3", "--attempts", "2", "--only", "attempts", "--json")
    assert code == 0 and json.loads(out)["votes"] is None


# --- of a run, and in its report -------------------------------------------------------------------------------------


@pytest.fixture
def run(tmp_path, model, monkeypatch):
    monkeypatch.setitem(TASKS, "toy", lambda _config: toy.Toy())
    config = load_config(None, [*toy.SMALL, f"model={model}", f"run_dir={tmp_path / 'run'}", "eval.controls=false"])
    job = experiment.prepare(config)
    run = RunDirectory.create(config)
    experiment.run_experiment(job, run, experiment.make_engine(job), tiny.Silent())
    return run


def test_a_run_keeps_its_curves_and_the_report_draws_them(cli, run):
    assert read_run(run.path).scaling is None
    assert 'id="scaling"' not in build_report([run.path])
    code, out, err = cli("scale", run.path, "--budget", "1,2,4", "--attempts", "3", "--json")
    assert code == 0, err
    stored = json.loads(run.scaling_file.read_text())
    assert stored == json.loads(out)
    progress = run.read_progress(run.latest_checkpoint())
    assert stored["step"] == progress.best_step
    # the kept checkpoint is measured: greedy attempts equal the run's own final evaluation
    final = next(r for r in run.records() if r.kind == "eval" and r.name == "final").summary
    assert stored["attempts"]["accuracy_K"][0]["value"] == final["attempts"][0]["accuracy"]["value"]
    page = build_report([run.path])
    assert 'id="scaling"' in page and "Accuracy by attempts in a row" in page and "selfcorrect scale" in page
    code, _, err = cli("scale", run.path, "--budget", "2")
    assert code != 0 and "earlier measurement and is not overwritten" in err


def test_a_damaged_file_of_curves_is_named(run):
    run.scaling_file.write_text('{"votes": 3}')
    with pytest.raises(DataError, match=r"scaling\.json cannot be read.*remove it and measure again"):
        build_report([run.path])


def test_the_chart_has_intervals_and_its_own_axis():
    votes = vote_curve(CHAINS, ALONE, (1, 2, 4), str)
    chart = scaling_charts(ScalingCurves("m", None, "c", votes, None))[0]
    drawn = draw_curves(chart)
    assert drawn.head[0] == "response" and [row[0] for row in drawn.rows] == ["1", "2", "4"]
    assert drawn.rows[0][2] == "n/a" and drawn.rows[0][1].startswith("37.5 [")
    assert "nan" not in drawn.svg
    whiskers = len(re.findall(r'<line class="line s[01] solid"', drawn.svg))
    assert whiskers == 5  # three budgets of one line, two of the other
    ticks = [float(x) for x in re.findall(r'<text class="label" x="([\d.]+)"[^>]*>[124]<', drawn.svg)]
    assert len(ticks) == 3 and ticks[1] - ticks[0] == pytest.approx(ticks[2] - ticks[1], abs=0.2)  # doublings
    made_of = made.held_out(trained=True)
    rows = attempt_curve(made_of)
    assert len(scaling_charts(ScalingCurves("m", 3, "c", votes, rows))) == 2
