"""`selfcorrect reproduce`: rows as data, budgets, verdicts, processes, and outputs made of runs written by hand."""

import csv
import json
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from xml.etree import ElementTree

import numpy as np
import pytest

import made_runs as made
import toy
from selfcorrect.errors import ConfigError, DataError, Interrupted, RunError
from selfcorrect.measuring.evaluate import held_out
from selfcorrect.measuring.intervals import Estimate, across_seeds, bootstrap_mean, not_measured
from selfcorrect.measuring.test_time import (
    ATTEMPTS,
    BUDGETS,
    AttemptCurve,
    BudgetRow,
    ScalingCurves,
    VoteCurve,
    measure_attempts,
)
from selfcorrect.records.lines import EndRecord, episode_row
from selfcorrect.records.run_directory import RunDirectory
from selfcorrect.reproduce import kept, make
from selfcorrect.reproduce.budget import Spent, check_equal
from selfcorrect.reproduce.choice import Choice, config_hash, planned_cost, rows_in_order, targets_of
from selfcorrect.reproduce.diagnostics import corrected, ends, seed_result
from selfcorrect.reproduce.jobs import Job, Runner, claimed, finished_seconds
from selfcorrect.reproduce.kept import shifted_episodes
from selfcorrect.reproduce.measured import Measurements
from selfcorrect.reproduce.planning import jobs_of, prompted_job, script_job
from selfcorrect.reproduce.result import Column
from selfcorrect.reproduce.rows import CORE, DECIDING, ROWS, TARGETS, Claim, paper_tables
from selfcorrect.reproduce.tables import code_table, table
from selfcorrect.reproduce.verdicts import judge

TRAINED = [row for row in ROWS.values() if row.kind == "trained"]


def choice(out, *settings, **options):
    return Choice(Path(out), **{"seeds": (0, 1), **options}, settings=settings)


# --- rows, claims, the paper's figures ------------------------------------------------------------------------------


@pytest.mark.parametrize("model", ["tiny", "smollm2", "some/model"])
@pytest.mark.parametrize("quick", [False, True])
def test_every_row_can_be_planned_at_one_budget(model, quick):
    c = choice("x", model=model, quick=quick)
    costs = {row.key: planned_cost(c.config(row, 0)) for row in TRAINED}
    strict = {cost for key, cost in costs.items() if not ROWS[key].budget_note}
    assert len(strict) == 1, costs
    full = strict.pop()
    assert all(cost.steps == full.steps and cost.responses <= full.responses for cost in costs.values())


def test_planned_cost_by_hand():
    # 10 steps of 3 problems, 4 samples of 2 attempts: 240 answers of at most 16 tokens
    settings = ("train.problems_per_step=3", "train.samples_per_problem=4")
    cost = planned_cost(choice("x", *settings, budget=10).config(ROWS["score"], 0))
    assert (cost.steps, cost.responses, cost.most_tokens) == (10, 240, 3840)


def test_no_two_rows_are_the_same_run():
    hashes = {config_hash(choice("x").config(row, 0)) for row in TRAINED}
    assert len(hashes) == len(TRAINED)


def test_claims_name_rows_and_quantities_that_their_table_shows():
    for target in TARGETS.values():
        assert set(target.rows) <= ROWS.keys()
        for claim in target.claims:
            assert {claim.above, claim.below} - {None} <= set(target.rows) and claim.above != claim.below


def test_the_papers_figures_belong_to_rows_and_add_up():
    for name, paper in paper_tables().items():
        shown = TARGETS[name.removesuffix("_repair")].rows
        assert paper.rows.keys() <= set(shown)
        for key, values in paper.rows.items():
            figures = paper.figures(key)
            assert len(values) == len(paper.columns)
            if {"t1", "t2", "delta"} <= figures.keys():
                assert figures["t2"] - figures["t1"] == pytest.approx(figures["delta"], abs=0.051), (name, key)
            if {"i_to_c", "delta"} <= figures.keys():
                assert figures["i_to_c"] - figures["c_to_i"] == pytest.approx(figures["delta"], abs=0.151), (name, key)


def test_the_deciding_rows_come_first_then_the_core_with_all_seeds(tmp_path):
    assert [row.key for row in rows_in_order(["table4", "table1"])][: len(CORE)] == list(CORE)
    jobs = jobs_of(choice(tmp_path), ["table4", "shift"])
    rest = CORE[len(DECIDING) :]
    assert [job.row for job in jobs[: 2 * len(CORE)]] == [*DECIDING, *DECIDING, *rest, *rest]
    assert {job.row for job in jobs[2 * len(CORE) :]}.isdisjoint(CORE)
    ends = [i for i, job in enumerate(jobs) if not job.is_run]
    assert ends == list(range(len(jobs) - len(ends), len(jobs)))  # what is measured afterwards comes last


def test_rows_of_ours_may_have_fewer_seeds(tmp_path):
    jobs = jobs_of(choice(tmp_path, seeds=(0, 1, 2), own_seeds=2), ["table4", "estimators"])
    seeds = {row.key: sum(job.row == row.key for job in jobs) for row in TRAINED}
    assert seeds["score"] == seeds["offline"] == 3 and seeds["literal"] == seeds["gamma_1"] == 2


def test_all_leaves_out_targets_that_need_another_base():
    assert set(targets_of("all")) == TARGETS.keys() - {"table3", "demo", "successors", "countdown"}


def test_every_target_has_a_maker():
    assert make.MAKERS.keys() == TARGETS.keys()
    with pytest.raises(ConfigError, match=r"'scaling2' cannot be reproduced here; take one of: table1"):
        targets_of("scaling2")


# --- what is asked for ----------------------------------------------------------------------------------------------


def test_a_run_is_known_by_its_settings(tmp_path):
    row = ROWS["score"]
    name = choice(tmp_path).run_path(row, 0).name
    assert name.startswith("score-s0-") and name == choice(tmp_path / "other", seeds=(0,)).run_path(row, 0).name
    others = [
        choice(tmp_path, quick=True).run_path(row, 0).name,
        choice(tmp_path, budget=7).run_path(row, 0).name,
        choice(tmp_path, "train.learning_rate=1e-4").run_path(row, 0).name,
        choice(tmp_path).run_path(row, 1).name,
        choice(tmp_path).run_path(ROWS["no_shaping"], 0).name,
    ]
    assert len({name, *others}) == 6


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("seed=3", "cannot be given for all runs"),
        ("method=star", "cannot be given for all runs"),
        ("run_dir=x", "cannot be given for all runs"),
        ("model=smollm2", "--model"),
        ("sft.steps=3", "cannot be given for all runs"),
        ("method.alpha=3", "the row 'multi-turn RL' cannot be run with these settings"),
        ("eval.temperature=1", "greedy"),
        ("eval.attempts=1", "second attempt"),
        ("train.stepz=3", "did you mean train.steps"),
    ],
)
def test_settings_that_do_not_fit_are_refused_before_anything_runs(tmp_path, setting, words):
    with pytest.raises(ConfigError, match=words):
        jobs_of(choice(tmp_path, setting), ["table4"])
    assert list(tmp_path.iterdir()) == []


def test_table3_is_refused_with_its_cost_from_the_settings(cli):
    code, _, err = cli("reproduce", "table3", "--seeds", "3", "--budget", "10", "train.problems_per_step=5")
    # 2 trained rows x 3 seeds = 6 runs of 10 steps; 10 x 5 problems x 4 samples x 2 attempts = 400 answers of 512 tokens
    assert code == 2 and "needs a model that writes programs" in err and "--model" in err
    assert "6 runs" in err and "2,400 sampled responses" in err and "1,228,800 tokens" in err
    assert "60 gradient steps" in err


def test_wrong_arguments_are_refused_in_one_paragraph(cli):
    for arguments, words in (
        (("table9",), "take one of: table1"),
        (("table1", "--humaneval", "x"), "would be ignored"),
        (("table1", "train.steps"), "not of the form key=value"),
    ):
        code, _, err = cli("reproduce", *arguments)
        assert code == 2 and words in err and "Traceback" not in err


# --- budgets and verdicts -------------------------------------------------------------------------------------------

FULL = Spent(seed=0, steps=10, responses=100, tokens=900, sequences=50)


def test_equal_budgets_pass_and_unequal_ones_make_no_table():
    other = replace(FULL, seed=1, responses=98)  # a step across the end of an epoch: another seed may differ
    assert check_equal({"score": [FULL, other], "star_d": [replace(FULL, sequences=7, tokens=5), other]}) == []
    for wrong in (replace(FULL, steps=9), replace(FULL, responses=99)):
        with pytest.raises(DataError, match=r"'SCoRe' and 'STaR, D' do not have the same budget with seed 0"):
            check_equal({"score": [FULL], "star_d": [wrong]})


def test_a_stated_reason_allows_fewer_responses_and_is_said():
    fewer = replace(FULL, responses=75)
    (note,) = check_equal({"score": [FULL], "offline": [fewer]})
    assert note.startswith("NOT the same budget: offline first attempts sampled 75.0 %")
    assert check_equal({"score": [FULL], "offline": [FULL]}) == []
    for wrong in (replace(FULL, responses=101), replace(FULL, steps=9)):
        with pytest.raises(DataError, match="no table is made"):
            check_equal({"score": [FULL], "offline": [wrong]})


@pytest.mark.parametrize(
    ("low", "high", "word"),
    [
        (0.01, 0.2, "reproduced"),
        (-0.01, 0.2, "cannot be told at this n"),
        (0.0, 0.2, "cannot be told at this n"),
        (-0.2, -0.01, "not reproduced"),
        (-0.2, 0.0, "cannot be told at this n"),  # a bootstrap of few unequal problems ends at 0
        (0.0, 0.0, "not reproduced"),  # equal in every seed: no part of the interval is above 0
        (0.1, 0.1, "cannot be told at this n"),  # two seeds that agree by chance say nothing of a third
        (-0.1, -0.1, "cannot be told at this n"),
        (float("nan"), float("nan"), "cannot be told at this n"),
    ],
)
def test_the_interval_decides(low, high, word):
    assert judge(Claim("", "t2", "score", "base"), Estimate(0.1, low, high, 5)).word == word


def test_seeds_that_agree_but_for_rounding_decide_nothing(tmp_path):
    values = {"score": (0.3, 0.4), "multi_turn": (0.1, 0.2)}
    measured = {
        row: {s: {"changed_end": across_seeds([v])} for s, v in enumerate(of_row)} for row, of_row in values.items()
    }
    columns = (Column("changed_end", "end of training"),)
    result = seed_result("collapse", "", columns, measured, {}, Measurements(choice(tmp_path)))
    (found,) = [v for v in result.verdicts if v.claim.quantity == "changed_end"]
    assert (found.difference.value, found.word) == (0.2, "cannot be told at this n")


def test_what_was_not_measured_is_no_verdict():
    assert judge(Claim("", "t2", "score", "base"), not_measured()).word == "not measured"


# --- processes ------------------------------------------------------------------------------------------------------


class Silent:
    def __init__(self):
        self.begun, self.ended, self.left = [], [], []

    def on_begin(self, job, resumed):
        self.begun.append(job.name)

    def on_end(self, job, seconds, failure):
        self.ended.append((job.name, failure))

    def on_status(self, status):
        self.left.append(status.seconds_left)


def script(out, name, code, **settings):
    """A measurement: a script that is given the file to write."""
    file = out / "runs" / f"{name}.jsonl"
    command = (sys.executable, "-c", f"import sys, time, pathlib; out = pathlib.Path(sys.argv[1]); {code}", str(file))
    return Job(name, file, command, is_run=False, **settings)


def test_jobs_run_once_a_failure_keeps_the_others_going_and_is_tried_again(tmp_path):
    jobs = [
        script(tmp_path, "good", "out.write_text('x')"),
        script(tmp_path, "bad", "print('selfcorrect: no such thing'); sys.exit(2)"),
        script(tmp_path, "silent", "pass"),
        script(tmp_path, "last", "out.write_text('y')"),
    ]
    with claimed(tmp_path):
        first = Runner(tmp_path, 2, Silent())
        first.run(jobs)
        assert first.failures == {"bad": "exit code 2: no such thing", "silent": "exit code 0: it printed nothing"}
        second = Runner(tmp_path, 2, watcher := Silent())
        second.run(jobs)
    assert watcher.begun == ["bad", "silent"] and second.failures == first.failures
    assert (tmp_path / "runs" / "last.jsonl").read_text() == "y"
    assert finished_seconds(tmp_path).keys() == {"good", "last"}


def test_a_killed_job_is_said_to_be_killed_and_what_may_have_killed_it(tmp_path):
    jobs = [
        script(tmp_path, number, f"import os; print('at work', flush=True); os.kill(os.getpid(), {number})")
        for number in ("9", "15")
    ]
    with claimed(tmp_path):
        runner = Runner(tmp_path, 2, Silent())
        runner.run(jobs)
    assert runner.failures["15"] == "killed by SIGTERM: at work"
    assert all(part in runner.failures["9"] for part in ("killed by SIGKILL", "memory runs out", "--jobs", "at work"))


def test_a_job_waits_for_its_run_and_is_given_up_when_that_fails(tmp_path):
    run = Job("score", tmp_path / "runs" / "a-run", (sys.executable, "-c", "import sys; sys.exit(3)"), is_run=True)
    after = script(tmp_path, "after", "out.write_text('x')", needs=run.target)
    with claimed(tmp_path):
        runner = Runner(tmp_path, 2, Silent())
        runner.run([run, after])
    assert runner.failures.keys() == {"a-run", "after"} and not after.target.exists()
    made.finished(run.target)
    with claimed(tmp_path):
        runner = Runner(tmp_path, 2, Silent())
        runner.run([run, after])
    assert runner.failures == {} and after.target.read_text() == "x"


def test_a_stop_reaches_the_children_once_and_leaves_no_half_file(tmp_path):
    code = "import signal; signal.signal(signal.SIGINT, lambda *a: (out.with_name('heard').open('a').write('x'), sys.exit(130)));"
    code += "from selfcorrect.records.files import replacing\nwith replacing(out, '') as part:\n"
    code += " part.write_text('half'); out.with_name('up').touch(); time.sleep(60)"
    job, up = script(tmp_path, "long", code), tmp_path / "runs" / "up"
    started = time.monotonic()
    with claimed(tmp_path), pytest.raises(Interrupted, match="same command again"):
        Runner(tmp_path, 1, Silent()).run([job], up.exists)
    assert time.monotonic() - started < 30
    assert (tmp_path / "runs" / "heard").read_text() == "x" and not job.finished
    assert {p.name for p in up.parent.iterdir()} == {"heard", "up", "long.log"}  # no half file, by any name


def test_the_time_of_a_process_that_ends_although_a_stop_was_asked_for_is_kept(tmp_path):
    code = "import signal; signal.signal(signal.SIGINT, lambda *a: (out.write_text('x'), sys.exit(0)));"
    code += " out.with_name('up').touch(); time.sleep(60)"
    job, up = script(tmp_path, "last", code), tmp_path / "runs" / "up"
    with claimed(tmp_path), pytest.raises(Interrupted):
        Runner(tmp_path, 1, Silent()).run([job], up.exists)
    assert job.finished and finished_seconds(tmp_path).keys() == {"last"}


def test_a_run_is_begun_resumed_or_left_alone(tmp_path):
    c = choice(tmp_path)
    job = jobs_of(c, ["collapse"])[0]
    assert "train" in job.command_now and f'run_dir="{job.target}"' in job.command_now
    job.target.parent.mkdir(parents=True)
    run = made.begin(job.target, *c.overrides(ROWS["score"], 0))
    assert job.command_now[-4:-2] == ("--resume", str(job.target)) and (job.finished, job.step) == (False, 0)
    made.train(run, steps=7)
    assert (job.finished, job.step) == (False, 7)
    run.append(EndRecord(step=7, reason="interrupted", train_seconds=1, sampled_tokens=1, sampled_responses=1))
    assert not job.finished
    made.finish(run)
    assert job.finished


def test_one_process_at_a_time_works_in_a_directory(tmp_path):
    with claimed(tmp_path), pytest.raises(RunError, match="another process is writing to"), claimed(tmp_path):
        pass
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match=r"cannot be written: .* is a file"), claimed(tmp_path / "file" / "x"):
        pass


def test_time_left_comes_from_recorded_times(tmp_path):
    rows = [("a", "score", 10.0, "stopped"), ("a", "score", 30.0, "finished"), ("b", "star_d", 5.0, "failed")]
    (tmp_path / "times.jsonl").write_text(
        "".join(json.dumps(dict(zip(("job", "row", "seconds", "ended"), r, strict=True))) + "\n" for r in rows)
    )
    assert finished_seconds(tmp_path) == {"a": ("score", 40.0)}  # both stretches of the one that finished
    waiting = [script(tmp_path, name, "pass") for name in ("score", "other", "third")]
    # no job of these rows but score has been timed: 3 x 40 s, two at once
    assert Runner(tmp_path, 2, Silent())._seconds_left(waiting, []) == 60.0


# --- outputs --------------------------------------------------------------------------------------------------------


def write_runs(c, target, responses=100, final=lambda key, seed: made.held_out(trained=True)):
    """Finished runs of every row of a target, written by hand."""
    for key in TARGETS[target].rows:
        row = ROWS[key]
        if row.kind == "prompted":
            file = prompted_job(c, row).target
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text("".join(json.dumps(episode_row(e)) + "\n" for e in made.held_out(trained=False)))
        for seed in c.seeds if row.kind == "trained" else ():
            path = c.run_path(row, seed)
            if path.exists():  # of another target
                continue
            path.parent.mkdir(parents=True, exist_ok=True)
            run = made.begin(path, *c.overrides(row, seed))
            made.evaluate(run, "base", made.held_out(trained=False))
            made.train(run)
            made.evaluate(run, "final", final(key, seed), at_step=19)
            run.append(
                EndRecord(step=20, reason="finished", train_seconds=1, sampled_tokens=2000, sampled_responses=responses)
            )


def untrained_but_score(key, seed):
    """SCoRe learns, more in one seed than in the other; every other row stays the base."""
    episodes = made.held_out(trained=key == "score")
    return [*episodes[:39], made.held_out(trained=False)[39]] if (key, seed) == ("score", 1) else episodes


def test_a_table_of_runs_written_by_hand(tmp_path):
    c = choice(tmp_path)
    write_runs(c, "table2", final=untrained_but_score)
    result = table("table2", Measurements(c))
    rows = {row.label: row for row in result.grids[0].rows}
    # 40 problems, 10 right at first; trained: 36 right at last with seed 0, 35 with seed 1 (made_runs.held_out)
    assert rows["SCoRe"].cells["t2"].value == pytest.approx((36 + 35) / 80)
    assert rows["SCoRe"].cells["i_to_c"].value == pytest.approx((28 + 27) / 80)
    assert rows["SCoRe"].cells["c_to_i"].value == pytest.approx(2 / 40)
    assert (rows["SCoRe"].seeds, rows["base"].seeds, rows["SCoRe"].problems) == (2, 1, 40)
    assert rows["SCoRe"].paper == {"t1": 60.0, "t2": 64.4, "delta": 4.4, "i_to_c": 5.8, "c_to_i": 1.4}
    assert rows["multi-turn RL"].cells["t2_over_score"].value == pytest.approx(-(26 + 25) / 80)
    words = {v.claim.text: v.word for v in result.verdicts}
    assert words["SCoRe corrects: delta is above 0"] == "reproduced"
    assert words["SCoRe's second attempts are better than the base's"] == "reproduced"
    assert words["SCoRe's first attempts are better than the base's"] == "not reproduced"  # the same ones, both seeds
    # 2 broken against none, in both seeds: an interval of width 0
    assert words["SCoRe breaks fewer right answers than the base"] == "cannot be told at this n"


def test_a_row_that_did_not_run_says_so_and_its_claims_are_open(tmp_path):
    c = choice(tmp_path)
    write_runs(c, "table2")
    prompted_job(c, ROWS["self_refine"]).target.unlink()
    result = table("table2", Measurements(c))
    (row,) = [r for r in result.grids[0].rows if r.label == "Self-Refine"]
    assert (row.note, row.cells, row.paper["t1"]) == ("not measured", {}, 52.8)
    assert [v.word for v in result.verdicts if v.claim.below == "self_refine"] == ["not measured"]


def test_runs_of_unequal_budget_make_no_table(tmp_path):
    c = choice(tmp_path, seeds=(0,))
    write_runs(c, "table1")
    run = RunDirectory.open(c.run_path(ROWS["star_d"], 0))
    run.append(EndRecord(step=20, reason="finished", train_seconds=1, sampled_tokens=1, sampled_responses=99))
    with pytest.raises(DataError, match="do not have the same budget"):
        table("table1", Measurements(c))


def test_table3_measures_every_row_on_both_tasks_after_its_run(tmp_path):
    c = choice(tmp_path, "task.path=data", model="some/model", seeds=(0, 1), humaneval="other", task="mbpp")
    jobs = jobs_of(c, ["table3"])
    runs, measures = ([job for job in jobs if job.is_run is wanted] for wanted in (True, False))
    assert len(runs) == 4 and len(measures) == 2 * (4 + 2)  # two trained rows with two seeds, two untrained rows
    assert {job.needs for job in measures} == {None, *(job.target for job in runs)}
    for job in measures:
        given = dict(word.split("=", 1) for word in job.command if "=" in word)  # the last one of a key is in force
        where = '"other"' if given["task.name"] == "humaneval" else "data"
        assert job.needs is not None or given["task.path"] == where
    for job in runs:
        row, seed = ROWS[job.row], int(job.name.split("-s")[1][0])
        job.target.parent.mkdir(parents=True, exist_ok=True)
        made.finish(made.begin(job.target, *c.overrides(row, seed)))
    for job in measures:
        episodes = made.held_out(trained=job.row == "score")
        if "-s1-" in job.name:  # seeds that agree to the last problem decide nothing
            episodes = [*episodes[:39], made.held_out(trained=False)[39]]
        job.target.write_text("".join(json.dumps(episode_row(e)) + "\n" for e in episodes))
    result = code_table(Measurements(c))
    humaneval, repair = result.grids
    score = next(row for row in humaneval.rows if row.label == "SCoRe")
    assert score.cells["t2"].value == pytest.approx((36 + 35) / 80)
    assert score.cells["t2_over_base"].value == pytest.approx((26 + 25) / 80)
    assert score.seeds == 2
    assert score.paper["t2"] == 64.6 and "HumanEval" in humaneval.paper_setting
    assert {key for row in repair.rows for key in row.cells} == {"t2", "t2_over_base"}  # attempt 1 is not the model's
    assert [v.word for v in result.verdicts] == ["reproduced"] * 3 + [
        "cannot be told at this n"
    ]  # Self-Refine: no change


def write_all(c, target):
    """Runs and the measurements after them."""
    write_runs(c, target)
    for seed in c.seeds if target == "shift" else ():
        for key in TARGETS["shift"].rows:
            write_shift(script_job(c, ROWS[key], seed, "shift").target)
    for job in jobs_of(c, [target]) if target in ("scaling", "attempts") else ():
        if not job.is_run:
            write_curves(job)


TABLES_AND_MORE = (
    "table1",
    "table2",
    "table4",
    "estimators",
    "edits",
    "collapse",
    "shift",
    "scaling",
    "attempts",
    "levels",
)


@pytest.mark.parametrize("target", TABLES_AND_MORE)
@pytest.mark.parametrize("quick", [False, True])
def test_outputs_are_there_agree_and_carry_the_mark_of_a_quick_look(tmp_path, target, quick):
    c = choice(tmp_path, quick=quick)
    write_all(c, target)
    result = make.reproduce(target, c, 1, watcher := Silent())
    assert watcher.begun == [] and result.failures == {}  # all of it is cached by its config
    assert {f.name for f in result.files} == {
        *(f"{target}.{ending}" for ending in ("md", "csv", "json", "svg")),
        "report.html",
        "episodes.jsonl",
    }
    page, data = (tmp_path / f"{target}.md").read_text(), json.loads((tmp_path / f"{target}.json").read_text())
    rows = list(csv.DictReader((tmp_path / f"{target}.csv").read_text().splitlines()))
    assert data["target"] == target and data["provenance"]["quick"] is quick and data["provenance"]["seeds"] == [0, 1]
    assert ("QUICK LOOK" in page) is quick and {r["quick"] for r in rows if r["source"] == "ours"} == {str(quick)}
    for grid in data["grids"]:
        for row in grid["rows"]:
            assert f"| {row['label']}" in page
            for key, estimate in row["ours"].items():
                (line,) = [
                    r
                    for r in rows
                    if (r["grid"], r["row"], r["quantity"], r["source"]) == (grid["title"], row["label"], key, "ours")
                ]
                scale = 1 if key in ("characters", "lines") else 100
                if estimate["value"] is not None:
                    assert float(line["value"]) == pytest.approx(estimate["value"] * scale, rel=1e-4, abs=1e-9)
    assert len(data["claims"]) == len(TARGETS[target].claims) and all(c["claim"] in page for c in data["claims"])
    assert "paper, Gemini" not in page or target in paper_tables()
    drawn = ElementTree.parse(tmp_path / f"{target}.svg").getroot()
    assert drawn.tag.endswith("svg") and len(list(drawn.iter())) > 20
    assert ("QUICK LOOK" in "".join(drawn.itertext())) is quick
    kinds = [json.loads(line)["kind"] for line in (tmp_path / "episodes.jsonl").read_text().splitlines()]
    assert set(kinds) == {"fixed", "broken", "kept-right", "kept-wrong", "copied"}


@pytest.mark.parametrize("quick", [False, True])
def test_all_leaves_one_page_with_a_line_for_every_claim(tmp_path, quick):
    c = choice(tmp_path, quick=quick)
    for target in targets_of("all"):
        write_all(c, target)
    seconds = {job.name: 7.0 for job in jobs_of(c, targets_of("all"))}  # once each, though targets share them
    lines = [{"job": name, "row": "r", "seconds": s, "ended": "finished"} for name, s in seconds.items()]
    (tmp_path / "times.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    result = make.reproduce("all", c, 1, Silent())
    page = (tmp_path / "claims.md").read_text()
    assert tmp_path / "claims.md" in result.files and f"took {7 * len(seconds):,} s in all" in page
    verdicts = [v for of_target in result.verdicts.values() for v in of_target]
    assert f"{len(verdicts)} claims: " in page and ("QUICK LOOK" in page) is quick
    for word in {v.word for v in verdicts}:
        assert f"{sum(v.word == word for v in verdicts)} {word}" in page
    for target, of_target in result.verdicts.items():
        section = page.partition(f"({target}.md)")[2].partition("\n## ")[0]
        assert section.count("\n| ") == (1 + len(of_target) if of_target else 0)
        assert all(f"| {v.claim.text} | **{v.word}** |" in section for v in of_target)


def write_curves(job):
    """Votes of 50 % (parallel) and 70 % (corrected) at every budget; attempts of 40 %, then 60 % of ten problems."""

    def share(tenths):
        return bootstrap_mean(np.arange(10) < tenths, support=(0, 1))

    spent = tuple(BudgetRow(k, share(5), share(7), share(2), share(1), share(3)) for k in BUDGETS)
    votes = VoteCurve(rows=spent, n_problems=10, n_left_out=0)
    in_a_row = tuple(share(4 if k < 2 else 6) for k in range(ATTEMPTS))
    row = AttemptCurve(accuracy_K=in_a_row, gain_K=(share(2),) * ATTEMPTS, n_problems=9, n_left_out=1)
    policies = ("base", "kept") if "scaling+base" in job.command else ("kept",)
    lines = [
        {"policy": p, **ScalingCurves("m", 1, "c", replace(votes, settings={"temperature": 0.7}), row).to_json()}
        for p in policies
    ]
    job.target.write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_more_responses_and_attempts_are_measured_once_per_seed_and_the_base_once(tmp_path):
    c = choice(tmp_path)
    write_runs(c, "attempts")
    both = [job for job in jobs_of(c, ["scaling", "attempts"]) if not job.is_run]
    assert len({job.target for job in both}) == len(both) == 2 * len(c.seeds)  # SCoRe and multi-turn, one file for both
    assert sum("scaling+base" in job.command for job in both) == 1
    for job in both:
        write_curves(job)
    scaling, attempts = (make.MAKERS[t](Measurements(c)) for t in ("scaling", "attempts"))
    base, score = scaling.grids[0].rows
    assert (base.seeds, score.seeds, score.problems) == (1, 2, 10)
    assert [row.problems for row in attempts.grids[0].rows] == [9, 9, 9]  # each measurement leaves out its own failures
    assert (score.cells["parallel_32"].value, score.cells["gap_32"].value) == (0.5, 0.2)
    assert [v.difference.value for v in scaling.verdicts] == pytest.approx([0.2, 0.3])
    assert [v.difference.value for v in attempts.verdicts] == pytest.approx([0.2, 0.0])  # t10 - t2; t10 - the base's
    assert [attempts.grids[0].rows[1].cells[k].value for k in ("t2", "t10")] == [0.4, 0.6]


def test_more_samples_are_of_the_kept_checkpoint_and_of_the_base(tmp_path, monkeypatch):
    monkeypatch.setattr(kept, "BUDGETS", (1, 2))
    monkeypatch.setattr(kept, "ATTEMPTS", 2)
    run, _, _ = toy.run(tmp_path / "run", "train.learning_rate=0.05")
    job = SimpleNamespace(config=run.config, task=toy.Toy())
    found = dict(kept.scaling_curves(run, job, toy.engine(run.config), base=True))
    assert list(found) == ["base", "kept"] and (found["base"].step, found["kept"].step) == (None, run_step(run))
    untrained = toy.engine(run.config)
    untrained.publish()
    problems = held_out(job.task, 6)
    plain = measure_attempts(untrained, job.task, problems, run.config.play.max_new_tokens, attempts=2)
    assert found["base"].attempts.to_json()["accuracy_K"] == plain.to_json()["accuracy_K"]
    texts = [[a.text for e in c.attempts.episodes for a in e.attempts] for c in found.values()]
    assert texts[0] != texts[1]  # the weights have moved
    file = tmp_path / "curves.jsonl"
    file.write_text("".join(json.dumps({"policy": p, **c.to_json()}) + "\n" for p, c in found.items()))
    assert kept.read_curves(file)["kept"].votes.rows == found["kept"].votes.rows


def run_step(run):
    return run.read_progress(run.latest_checkpoint()).best_step or run.read_progress(run.latest_checkpoint()).step


def write_shift(file):
    """Test problems: 4 wrong first attempts of its own, 1 corrected; 2 of the base's, both corrected. Training: none wrong."""
    pairs = {
        ("test", "own"): ["-+", "--", "--", "--", "++"],
        ("test", "base"): ["-+", "-+", "++"],
        ("train", "own"): ["++"],
        ("train", "base"): ["-+"],
    }
    words = {"+": "correct", "-": "wrong"}
    lines = [
        {"split": split, "first": first, **episode_row(made.episode(i, *[("text", words[m]) for m in pair]))}
        for (split, first), found in pairs.items()
        for i, pair in enumerate(found)
    ]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_the_rate_of_corrected_answers_is_of_the_wrong_ones(tmp_path):
    write_shift(tmp_path / "s.jsonl")
    rates = corrected(tmp_path / "s.jsonl")
    assert (rates["test_own"].value, rates["test_own"].n, rates["test_base"].value) == (0.25, 4, 1.0)
    assert rates["test_gap"].value == 0.75 and not rates["test_gap"].has_interval
    assert rates["train_own"].n == 0 and rates["train_gap"].n == 0  # nothing was wrong: n/a, not 0


def test_shift_plays_the_kept_checkpoint_after_the_bases_first_attempts(tmp_path):
    c = toy.config(tmp_path / "run")
    run, _, _ = toy.run(tmp_path / "run", "train.learning_rate=0.05")
    task = toy.Toy()
    job = SimpleNamespace(config=run.config, task=task)
    rows = list(shifted_episodes(run, job, toy.engine(c)))
    assert len(rows) == 4 * 6 and {(r["split"], r["first"]) for r in rows} == {
        (s, f) for s in ("train", "test") for f in ("own", "base")
    }
    untrained = toy.engine(c)
    untrained.publish()
    from selfcorrect.measuring.evaluate import evaluate, held_out

    settings = run.config.eval.model_copy(update={"attempts": 1})
    base = {
        e.problem.id: e.attempts[0].text for e in evaluate(untrained, task, held_out(task, 6), settings, 4).episodes
    }
    given = {r["problem"]: r["attempts"][0] for r in rows if (r["split"], r["first"]) == ("test", "base")}
    assert {p: a["text"] for p, a in given.items()} == base and {a["source"] for a in given.values()} == {"given"}
    own = {r["problem"]: r["attempts"][0]["text"] for r in rows if (r["split"], r["first"]) == ("test", "own")}
    assert own.keys() == base.keys() and own != base  # the weights have moved


def test_shift_takes_the_bases_answer_of_the_same_split(tmp_path):
    class Shared(toy.Toy):
        """Both splits number their problems from 0, as a user's files may."""

        def problems(self, split):
            return [replace(p, id=p.id.partition("-")[2]) for p in super().problems(split)]

    run, _, _ = toy.run(tmp_path / "run")
    job = SimpleNamespace(config=run.config, task=Shared(n_train=12))
    rows = list(shifted_episodes(run, job, toy.engine(run.config)))
    first = {(r["split"], r["problem"]): r["attempts"][0]["text"] for r in rows if r["first"] == "base"}
    from selfcorrect.measuring.evaluate import evaluate

    untrained = toy.engine(run.config)
    untrained.publish()
    alone = run.config.eval.model_copy(update={"attempts": 1})
    train = [p for p in job.task.problems("train") if ("train", p.id) in first]
    own = {e.problem.id: e.attempts[0].text for e in evaluate(untrained, job.task, train, alone, 4).episodes}
    assert own == {i: text for (split, i), text in first.items() if split == "train"}


def test_collapse_is_measured_at_the_ends_of_training_and_of_stage_1():
    steps = [
        SimpleNamespace(stage="stage1" if i < 20 else "stage2", answer_change=0.5 - i / 100 if i < 20 else 0.1)
        for i in range(40)
    ]
    found = ends(steps)  # 40 steps: windows of 4
    assert found["changed_start"] == pytest.approx(0.5 - 1.5 / 100)
    assert found["changed_stage1"] == pytest.approx(0.5 - 17.5 / 100)
    assert found["changed_end"] == pytest.approx(0.1)
    assert "changed_stage1" not in ends(steps[20:])
    assert found["changed_fall"] == pytest.approx(found["changed_start"] - 0.1)


def test_a_broken_run_does_not_keep_other_targets_from_being_written(tmp_path):
    c = choice(tmp_path, seeds=(0,))
    write_runs(c, "collapse")
    path = c.run_path(ROWS["multi_turn"], 0)
    (path / "evaluations" / "final.jsonl").write_text('{"problem": 1}\n')
    made_now = make.write_outputs(c, ["levels", "collapse"], {})
    assert "collapse" in made_now.verdicts and made_now.failures.keys() == {"levels", "report.html"}


# --- the whole command ----------------------------------------------------------------------------------------------

LITTLE = ("train.steps=6", "eval.problems=20")


def command(out, *arguments):
    return [
        sys.executable,
        "-m",
        "selfcorrect",
        "reproduce",
        "table4",
        "--quick",
        "--out",
        str(out),
        *LITTLE,
        *arguments,
    ]


@pytest.mark.slow
def test_table4_from_nothing_stopped_and_continued(tmp_path):
    """Stopped in its first run, then all fourteen runs, then nothing left to run."""
    with subprocess.Popen(command(tmp_path), stderr=subprocess.PIPE, text=True, start_new_session=True) as first:
        for _ in range(3000):
            if list(tmp_path.glob("runs/score-*/checkpoints/step-*")):
                break
            time.sleep(0.1)
        first.send_signal(signal.SIGINT)
        _, said = first.communicate(timeout=300)
    assert first.returncode == 130 and "Call the same command again" in said
    done = subprocess.run(command(tmp_path, "--json"), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "continued from step" in done.stderr
    answer = json.loads(done.stdout)
    assert {c["verdict"] for c in answer["claims"]} <= {"reproduced", "not reproduced", "cannot be told at this n"}
    data = json.loads((tmp_path / "table4.json").read_text())
    assert {len(row["ours"]) for row in data["grids"][0]["rows"]} == {
        6,
        7,
    }  # base and SCoRe have one difference, the others two
    assert {s["steps"] for runs in data["budget"].values() for s in runs} == {6}
    times = (tmp_path / "times.jsonl").read_text()
    again = subprocess.run(command(tmp_path, "--json"), capture_output=True, text=True, check=True)
    assert json.loads(again.stdout)["claims"] == answer["claims"] and (tmp_path / "times.jsonl").read_text() == times
