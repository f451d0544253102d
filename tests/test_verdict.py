"""The verdict turn: how it is read, graded, played, summed up, recorded and watched."""

import asyncio
import json
import math
from dataclasses import replace

import numpy as np
import pytest

import toy
from selfcorrect.algorithm.credit import Credit
from selfcorrect.algorithm.sequences import lay_out, policy_gradient_data, sequences
from selfcorrect.algorithm.stages import plan
from selfcorrect.config import load_config
from selfcorrect.engines.base import Sampled
from selfcorrect.episodes.play import Play, longest_conversation, play
from selfcorrect.episodes.table import EpisodeTable
from selfcorrect.episodes.verdict import REQUEST, balanced_accuracy, graded_verdict, judged, said, tokens_saved
from selfcorrect.errors import ConfigError, Interrupted
from selfcorrect.measuring.evaluate import EnginePlayer, Evaluator, check_turns, check_verdicts
from selfcorrect.measuring.intervals import bootstrap_balanced
from selfcorrect.measuring.metrics import EvalSummary, summarise
from selfcorrect.records.lines import EvalRecord, episode_from_row, episode_row, parse_record
from selfcorrect.records.run_directory import RunDirectory
from selfcorrect.report.page import VERDICT_CURVES, build_page
from selfcorrect.report.reading import read_run
from selfcorrect.report.sample import sample_episodes
from selfcorrect.trackers.base import evaluation_metrics, step_metrics
from selfcorrect.training.alarms import WINDOW
from selfcorrect.training.loop import train
from selfcorrect.types import Attempt, Episode, Grade, Problem, Verdict
from test_play import CHAT, END, PROBLEM, PROMPT, TASK, Scripted, bridge, ids

RIGHT, WRONG, ERROR = (Grade(v, "x") for v in (Verdict.CORRECT, Verdict.WRONG, Verdict.ERROR))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("Verdict: correct", "correct"),
        ("the sum is 12, not 13.\n**Verdict:** Wrong.", "wrong"),
        ("Verdict: wrong? No, I misread it.\nVerdict: correct", "correct"),
        ("wrong", "wrong"),
        (" Correct! ", None),
        ('"correct".', "correct"),
        ("The answer is wrong.", None),
        ("Verdict: incorrect", None),
        ("Verdict: correctly", None),
        ("", None),
    ],
)
def test_a_verdict_is_read_in_the_asked_for_form_only(text, says):
    assert said(text) == says


@pytest.mark.parametrize(
    ("text", "answer", "truncated", "verdict"),
    [
        ("correct", RIGHT, False, Verdict.CORRECT),
        ("wrong", WRONG, False, Verdict.CORRECT),
        ("wrong", RIGHT, False, Verdict.WRONG),
        ("correct", WRONG, False, Verdict.WRONG),
        ("correct", Grade(Verdict.NO_ANSWER), False, Verdict.WRONG),
        ("hm", RIGHT, False, Verdict.NO_ANSWER),
        ("hm", RIGHT, True, Verdict.TRUNCATED),
        ("correct", ERROR, False, Verdict.ERROR),
    ],
)
def test_a_verdict_earns_where_it_agrees_with_the_verifier(text, answer, truncated, verdict):
    grade = graded_verdict(text, answer, truncated=truncated)
    assert grade.verdict is verdict
    assert grade.extracted == said(text)


def played(*answers, **how):
    engine = Scripted(*answers)
    how = Play(
        2, len(answers[0]) if isinstance(answers[0][0], tuple) else 1, 8, 1.0, ("v",), verdict="Is it right?", **how
    )
    (group,) = asyncio.run(play(engine, TASK, [PROBLEM], how))
    return engine, group


def ended(text):
    return (*ids(text), END)


def test_a_verdict_is_asked_for_graded_and_shown_to_attempt_2():
    engine, (episode,) = played(ended("a"), ended("wrong"), ended("b"))
    asked = (*PROMPT, *ended("a"), *CHAT.bridge_ids(TASK.first_messages(PROBLEM), "Is it right?", True))
    assert [requests[0].prompt_ids for requests, _ in engine.asked] == [
        PROMPT,
        asked,
        (*asked, *ended("wrong"), *bridge(True)),
    ]
    assert [(a.turn, a.grade.verdict) for a in episode.attempts] == [
        ("answer", Verdict.WRONG),
        ("verdict", Verdict.CORRECT),
        ("answer", Verdict.CORRECT),
    ]
    (sequence,) = sequences(episode)
    assert [k for k, _, _ in sequence.spans] == [0, 1, 2]


def test_with_the_stop_rule_only_those_who_say_wrong_go_on():
    firsts = tuple(ended(x) for x in "abbb")
    verdicts = (ended("wrong"), ended("correct"), ended("hm"), ended("wrong"))
    engine, group = played(firsts, verdicts, (ended("b"), ended("a")), stop=True)
    assert [len(requests) for requests, _ in engine.asked] == [4, 4, 2]
    assert [r.key[-2:] for r in engine.asked[2][0]] == [(0, 2), (3, 2)]
    assert [[a.source for a in e.attempts] for e in group] == [
        ["sampled"] * 3,
        ["sampled", "sampled", "kept"],
        ["sampled", "sampled", "kept"],
        ["sampled"] * 3,
    ]
    kept = group[1].attempts[2]
    assert (kept.text, kept.grade, kept.token_ids, kept.logprobs) == ("b", group[1].attempts[0].grade, None, None)
    assert [e.played_K.tolist() for e in group] == [[True] * 3, [True, True, False], [True, True, False], [True] * 3]
    assert [s.sampled_T.sum() for e in group for s in sequences(e)] == [
        sum(len(a.token_ids or ()) for a in e.attempts) for e in group
    ]


def test_without_the_stop_rule_everybody_goes_on():
    engine, group = played((ended("a"), ended("b")), (ended("correct"), ended("hm")), (ended("b"), ended("a")))
    assert [len(requests) for requests, _ in engine.asked] == [2, 2, 2]
    assert all(e.played_K.all() for e in group)


def test_a_longer_chain_ends_at_the_first_verdict_that_is_not_wrong():
    engine = Scripted(ended("a"), ended("wrong"), ended("c"), ended("correct"))
    how = Play(3, 1, 8, 1.0, ("v",), verdict="Is it right?", stop=True)
    ((episode,),) = asyncio.run(play(engine, TASK, [PROBLEM], how))
    assert [a.text for a in episode.answers] == ["a", "c", "c"]
    assert [a.source for a in episode.attempts] == ["sampled"] * 4 + ["kept"]
    assert [v.correct for v in episode.verdicts] == [True, False]


def test_the_longest_conversation_counts_verdict_turns():
    cap = 8
    longest = longest_conversation(CHAT, TASK, [PROBLEM], 2, cap, "Is it right?")
    _, (episode,) = played(*[ids("x" * cap)] * 3)
    assert len(episode.attempts[-1].prompt_ids) + cap == longest


# --- numbers ---------------------------------------------------------------------------------------------------------


def episode(problem, first, says, second, tokens=(5, 3, 7)):
    """``second`` None: not played."""
    grades = {1: RIGHT, 0: WRONG, "error": ERROR}
    one = Attempt("one", (), (0,) * tokens[0], (0.0,) * tokens[0], "end", grades[first])
    grade = graded_verdict(says or "", one.grade, truncated=False)
    verdict = Attempt(says or "", (), (0,) * tokens[1], (0.0,) * tokens[1], "end", grade, turn="verdict")
    if second is None:
        two = Attempt("one", None, None, None, "kept", one.grade, source="kept")
    else:
        two = Attempt("two", (), (0,) * tokens[2], (0.0,) * tokens[2], "end", grades[second])
    return Episode(Problem(problem, "q", "a"), 0, (one, verdict, two))


SIX = [
    episode("a", 1, "correct", None),
    episode("b", 1, "correct", None),
    episode("c", 1, "wrong", 0),
    episode("d", 0, "wrong", 1),
    episode("e", 0, "correct", None),
    episode("f", 0, None, None),
]


def test_the_second_attempt_of_an_episode_that_stopped_counts_as_the_first():
    summary = summarise(SIX)
    assert summary.accuracy(1).value == summary.accuracy(2).value == pytest.approx(3 / 6)
    revision = summary.revisions[0]
    assert (revision.i_to_c.value, revision.c_to_i.value) == (pytest.approx(1 / 6), pytest.approx(1 / 6))
    assert summary.attempts[1].tokens.value == 7  # of those that were played
    assert EpisodeTable.of(SIX).n_attempts == 2


def test_the_numbers_of_the_verdicts():
    v = summarise(SIX).verdicts
    assert v.accuracy.value == pytest.approx(3 / 6)
    assert v.balanced.value == pytest.approx((2 / 3 + 1 / 3) / 2)
    assert v.says_wrong.value == pytest.approx(2 / 6)
    assert v.says_nothing.value == pytest.approx(1 / 6)
    assert v.tokens.value == 3
    assert [tokens_saved(e) for e in SIX] == [2, 2, -3, -3, 2, 2]
    assert v.tokens_saved.value == pytest.approx(2 / 6)
    assert v.balanced.low < v.balanced.value < v.balanced.high
    assert balanced_accuracy([pair for e in SIX for pair in judged(e)]) == pytest.approx(v.balanced.value)


def test_what_the_verifier_failed_on_is_in_no_number_of_the_verdicts():
    with_error = [*SIX, episode("g", "error", "correct", None)]
    before, after = summarise(SIX).verdicts, summarise(with_error).verdicts
    assert (after.accuracy.value, after.accuracy.n) == (before.accuracy.value, 6)
    assert after.balanced.value == before.balanced.value
    only = summarise([episode("g", "error", "correct", None)]).verdicts
    assert only.accuracy.n == 0 and math.isnan(only.balanced.value)


def test_a_verdict_that_is_always_the_same_is_worth_a_half_once_balanced():
    always = [episode(str(i), int(i < 9), "correct", None) for i in range(10)]
    v = summarise(always).verdicts
    assert (v.accuracy.value, v.balanced.value) == (pytest.approx(0.9), 0.5)
    assert not v.balanced.has_interval  # every resample says the same
    assert bootstrap_balanced(np.zeros((2, 2)), np.array([[1, 0], [1, 0]])).n == 0


def test_episodes_and_summaries_with_verdicts_survive_their_records():
    for e in SIX:
        row = json.loads(json.dumps(episode_row(e)))
        back = episode_from_row(row)
        assert [(a.turn, a.source, a.grade) for a in back.attempts] == [(a.turn, a.source, a.grade) for a in e.attempts]
    summary = summarise(SIX)
    assert EvalSummary.from_json(json.loads(json.dumps(summary.to_json()))) == summary
    record = EvalRecord(name="final", step=1, settings={}, summary=summary.to_json(), seconds=1)
    assert evaluation_metrics(record)["eval/final/verdict_accuracy"] == pytest.approx(3 / 6)
    older = summary.to_json()
    del older["verdicts"]
    assert EvalSummary.from_json(older).verdicts is None
    plain = replace(SIX[2], attempts=SIX[2].answers)
    assert all("turn" not in a for a in episode_row(plain)["attempts"])


# --- weights ---------------------------------------------------------------------------------------------------------


def chain(sample, first, says, second):
    """An episode in one sequence: 1 prompt token, then 1 token for each turn that was played."""
    e = episode("p", first, says, second, tokens=(1, 1, 1))
    one, verdict, two = e.attempts
    two = two if second is None else replace(two, prompt_ids=(9, 0, 0))
    return replace(e, sample=sample, attempts=(replace(one, prompt_ids=(9,)), replace(verdict, prompt_ids=(9, 0)), two))


def weights(group, credit):
    layout = lay_out([group])
    data, report = policy_gradient_data(
        layout, layout.by_attempt([np.zeros(len(s.tokens_T)) for s in layout.sequences]), credit
    )
    return [(d.weights_T[1:] * len(group)).tolist() for d in data], report


PAG = Credit((1, 1, 1), (0, 0, 0), alpha=1, verdicts=(1,), stop=True)


def two_of_four_revised():
    return [
        chain(0, 1, "correct", None),
        chain(1, 0, "wrong", 1),
        chain(2, 0, "wrong", 0),
        chain(3, 0, "correct", None),
    ]


def test_mates_at_attempt_2_are_those_that_played_it():
    group = two_of_four_revised()
    found, report = weights(group, PAG)
    # attempt 1: 1, 0, 0, 0; verdicts: 1, 1, 1, 0; attempt 2 of the two that played: 1 + 1 and 0 + 0
    assert found == [
        [1, pytest.approx(1 / 3)],
        [pytest.approx(-1 / 3), pytest.approx(1 / 3), 2],
        [pytest.approx(-1 / 3), pytest.approx(1 / 3), -2],
        [pytest.approx(-1 / 3), -1],
    ]
    assert report.skipped_groups_K == (0, 0, 0) and report.zero_variance_share_K == (0, 0, 0)


def test_a_lone_revision_stands_against_the_answers_that_were_kept():
    group = [chain(0, 1, "correct", None), chain(1, 0, "correct", None), chain(2, 0, "wrong", 1)]
    assert weights(group, PAG)[0][2][2] == pytest.approx(2 - 1 / 2)  # kept: returns of r1, 1 and 0
    failed = [chain(0, "error", "correct", None), chain(1, 0, "wrong", 1)]
    found, report = weights(failed, PAG)
    assert found[1] == [0, 0, 0] and report.skipped_groups_K == (1, 1, 1)  # no mate with a known return


def test_the_bonus_compares_attempt_2_with_attempt_1_and_not_with_the_verdict():
    group = [chain(0, 1, "wrong", 1), chain(1, 0, "wrong", 1)]
    found, _ = weights(group, replace(PAG, alpha=10))
    assert [w[2] for w in found] == [-10, 10]  # 1 + 0 and 1 + 10; the verdicts' rewards are 0 and 1
    assert [w[1] for w in found] == [-1, 1]


def test_normalising_per_role_divides_attempts_and_verdicts_by_their_own_spread():
    group = two_of_four_revised()
    plain, _ = weights(group, PAG)
    scaled, _ = weights(group, replace(PAG, per_role=True))
    attempts = [w[0] for w in plain] + [w[2] for w in plain if len(w) == 3]
    verdicts = [w[1] for w in plain]
    for a, b in zip(plain, scaled, strict=True):
        for k, (x, y) in enumerate(zip(a, b, strict=True)):
            spread = np.sqrt(np.mean(np.square(verdicts if k == 1 else attempts)))
            assert y == pytest.approx(x / spread)


# --- runs ------------------------------------------------------------------------------------------------------------


class Acting:
    """The toy's engine, whose answers and verdicts are written by ``script(step, sample) -> (attempt 1, verdict, attempt 2)``."""

    def __init__(self, engine, script):
        self._engine, self._script = engine, script

    def __getattr__(self, name):
        return getattr(self._engine, name)

    async def sample(self, requests, params):
        out = []
        for r in requests:
            _, what, step, _, sample, turn = r.key
            assert what == "train"
            tokens = ended(self._script(step, sample)[turn])
            out.append(Sampled(tokens, (-0.01,) * len(tokens), "end"))
        return out


def acted(tmp_path, script, steps, *more):
    c = toy.config(
        tmp_path / "run",
        "method=pag",
        "train.samples_per_problem=6",
        f"train.steps={steps}",
        "play.max_new_tokens=12",
        *more,
    )
    run, watcher = RunDirectory.create(c), toy.Watcher()
    train(run, Acting(toy.engine(c), script), toy.Toy(), watcher)
    return run, watcher


def alarms(watcher):
    return {a.name for a in watcher.alarms} - {"sampler mismatch"}  # nothing of the script is likely


def mixed(step, sample):
    return ("b", "correct", "b") if sample % 2 else ("a", "wrong", "b")


def test_a_run_that_judges_well_raises_no_alarm_and_records_its_verdicts(tmp_path):
    run, watcher = acted(tmp_path, mixed, WINDOW)
    assert alarms(watcher) == set()
    record = watcher.steps[-1]
    assert record == parse_record(record.model_dump_json())
    assert record.reward == [pytest.approx(0.5), 1.0] and len(record.kl) == len(record.zero_variance) == 2
    v = record.verdicts
    assert (v.accuracy, v.balanced, v.says_wrong, v.says_correct) == (1.0, 1.0, pytest.approx(0.5), pytest.approx(0.5))
    assert record.sampled_responses == 4 * 4 * 2 + 4 * 2  # of four samples of four problems, two revise
    assert v.tokens_saved == pytest.approx(2 / 2 - v.tokens)
    rows = [json.loads(line) for line in run.episodes_file.read_text().splitlines()]
    assert {a.get("turn", "answer") for row in rows for a in row["attempts"]} == {"answer", "verdict"}
    data = read_run(run.path)  # and the report shows them
    (page,) = build_page([data], [run.path]).runs
    (chart,) = [c for c in page.curves if c.title == VERDICT_CURVES[0].title]
    assert [line.values[-1] for line in chart.lines] == [1.0, 1.0, pytest.approx(0.5)]
    assert {tag for line in data.training.lines for tag in line.tags} == {"fixed", "kept-right", "not-revised"}
    sample = sample_episodes([data], most=50, most_bytes=100_000).to_json()
    shown = json.dumps(sample)
    assert '"turn": "verdict"' in shown and '"kept": true' in shown


@pytest.mark.parametrize(("says", "name"), [("correct", "verdict always correct"), ("wrong", "verdict always wrong")])
def test_a_verdict_that_is_always_the_same_rings(tmp_path, says, name):
    _, watcher = acted(tmp_path, lambda step, sample: ("ab"[sample % 2], says, "ab"[sample % 2]), WINDOW)
    assert name in alarms(watcher) and not alarms(watcher) - {name, "copying"}
    _, watcher = acted(tmp_path / "true", lambda step, sample: ("ab"[says == "correct"], says, "b"), WINDOW)
    assert not {"verdict always correct", "verdict always wrong"} & alarms(watcher)  # always the same, and true


def test_first_attempts_made_wrong_to_be_judged_rightly_ring(tmp_path):
    def script(step, sample):
        if step < WINDOW:
            return ("ab"[sample % 2], "wrong", "b")
        return ("a", "wrong", "b")

    _, watcher = acted(tmp_path, script, 3 * WINDOW)
    assert "first attempt wrong on purpose" in alarms(watcher)
    _, watcher = acted(tmp_path / "better", lambda step, sample: script(29 - step, sample), 3 * WINDOW)
    assert "first attempt wrong on purpose" not in alarms(watcher)


def test_a_run_where_nobody_revises_goes_on(tmp_path):
    _, watcher = acted(tmp_path, lambda step, sample: ("ab"[sample % 2], "correct", "b"), 2)
    record = watcher.steps[-1]
    told = step_metrics(record)  # what was not measured is not sent to a tracker
    assert told["train/verdicts/accuracy"] == pytest.approx(0.5) and "train/kl/t2" not in told
    assert record.reward[1] == record.reward[0] and record.kl[1] is None and record.answer_tokens[1] is None


def test_a_resumed_run_is_the_run_that_was_not_stopped(tmp_path):
    whole, *_ = toy.run(tmp_path / "whole", "method=pag", "train.samples_per_problem=6")
    steps = iter([False, False, True])
    with pytest.raises(Interrupted, match="stopped after step 3"):
        toy.run(tmp_path / "part", "method=pag", "train.samples_per_problem=6", stop=lambda: next(steps))
    part, *_ = toy.resume(tmp_path / "part")
    assert toy.step_records(part) == toy.step_records(whole)


# --- ThinkTwice ------------------------------------------------------------------------------------------------------


def test_thinktwice_alternates_on_the_same_problems_and_keeps_the_optimiser(tmp_path, monkeypatch):
    resets = []
    monkeypatch.setattr(toy.TorchEngine, "reset_optimiser", lambda self: resets.append(1))
    run, _, progress = toy.run(tmp_path / "run", "method=thinktwice", "train.steps=4", "train.log_problems_per_step=4")
    records = toy.step_records(run)
    assert [len(r.reward) for r in records] == [1, 2, 1, 2] and {r.stage for r in records} == {"thinktwice"}
    assert not resets
    rows = [json.loads(line) for line in run.episodes_file.read_text().splitlines()]
    problems = {s: {row["problem"] for row in rows if row["step"] == s} for s in (1, 2, 3, 4)}
    assert problems[1] == problems[2] != problems[3] == problems[4]
    firsts = {row["attempts"][0]["text"] for row in rows if row["step"] == 2}
    assert len(firsts) <= 4 < len([row for row in rows if row["step"] == 2])  # one first attempt of each problem
    assert [r.sampled_responses for r in records] == [4 * 3, 4 * 4] * 2  # the budget is 2 x 2 responses of a problem
    assert progress.best_reward == pytest.approx(np.mean([records[1].reward[1], records[3].reward[1]]))


def test_a_step_on_first_attempts_does_not_compete_for_the_best_checkpoint(tmp_path):
    settings = ["method=thinktwice", "train.steps=4", "train.checkpoint_every=1", "train.best_window=1"]
    run, _, progress = toy.run(tmp_path / "run", *settings)
    records = toy.step_records(run)
    windows = {r.step: r.window_reward for r in run.records() if r.kind == "checkpoint"}
    assert windows == {0: None, 1: None, 2: records[1].reward[1], 3: None, 4: records[3].reward[1]}
    assert progress.best_reward == max(records[1].reward[1], records[3].reward[1])


def test_thinktwice_resumes_in_the_middle_of_a_round(tmp_path):
    whole, *_ = toy.run(tmp_path / "whole", "method=thinktwice", "train.steps=4")
    steps = iter([True])
    with pytest.raises(Interrupted, match="stopped after step 1"):
        toy.run(tmp_path / "part", "method=thinktwice", "train.steps=4", stop=lambda: next(steps))
    part, *_ = toy.resume(tmp_path / "part")
    assert toy.step_records(part) == toy.step_records(whole)


# --- bad input -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        (("method=pag", "play.attempts=3"), "pag has exactly two attempts.*set play.attempts=2, or use method=score"),
        (("method=thinktwice", "play.attempts=3"), "thinktwice has exactly two attempts"),
        (("method=thinktwice", "train.steps=5"), "is odd; set train.steps to 6"),
        (("method=pag", "train.samples_per_problem=2"), "raise it to 3 or more"),
        (
            ("method=score", "method.stop=true"),
            "stop = True would be ignored by method=score; drop it, or use method=pag",
        ),
        (("method=pag", "method.verdict_instruction=Is it right?"), "does not name the word 'correct' nor 'wrong'"),
        (("method=pag", "method.standardise=true", "method.per_role=true"), "drop one of them"),
        (("method=pag", "task.shown_as=user"), "its verdict is the assistant's own second turn"),
    ],
)
def test_settings_that_do_not_fit_a_verdict_are_refused(settings, says):
    with pytest.raises(ConfigError, match=says):
        plan(load_config(None, settings))


def test_an_evaluation_of_pag_has_two_attempts():
    with pytest.raises(ConfigError, match=r"set eval\.attempts=2"):
        check_turns(load_config(None, ["method=pag", "eval.attempts=3"]))
    check_turns(load_config(None, ["method=pag"]))


class Failing(toy.Toy):
    def grade(self, problem, text, *, truncated):
        return Grade(Verdict.ERROR)


def measured(task, *settings):
    c = load_config(None, [*toy.SMALL, "method=pag", *settings])
    return asyncio.run(Evaluator.of(EnginePlayer(toy.engine(c), task), task, c).evaluate(task.problems("test"), "base"))


def test_a_base_that_never_gives_a_verdict_is_refused_after_its_first_measurement():
    base = measured(toy.Toy())
    assert base.settings["verdict"] == REQUEST and base.settings["stop"] is True
    with pytest.raises(ConfigError, match=r"never answered in the asked-for form.*Set method\.verdict_instruction"):
        check_verdicts(base)
    with toy.judging():
        check_verdicts(measured(toy.Toy()))


def test_a_task_whose_verifier_judges_nothing_is_refused():
    with toy.judging():
        base = measured(Failing())
    with pytest.raises(ConfigError, match="cannot be compared with anything"):
        check_verdicts(base)
