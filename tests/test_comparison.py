"""Runs side by side: goldens, pairing, and what is refused."""

from dataclasses import replace

import numpy as np
import pytest

import toy
from selfcorrect.errors import DataError
from selfcorrect.measuring.compare import compare_runs, matrix_row, read_evaluation
from selfcorrect.measuring.intervals import across_seeds
from selfcorrect.measuring.metrics import correctness_matrix, summarise
from selfcorrect.records.lines import episode_row
from selfcorrect.records.run_directory import RunDirectory
from selfcorrect.types import Attempt, Episode, Grade, Problem, Verdict

MARK = {"+": Verdict.CORRECT, "-": Verdict.WRONG, "!": Verdict.ERROR}


def episodes(pairs, prefix="p"):
    """``"-+ ++"``: problem p0 wrong then right, problem p1 right twice."""
    return [
        Episode(
            Problem(f"{prefix}{i}", "?", "a"),
            0,
            tuple(Attempt("x", None, None, None, "end", Grade(MARK[m], "x")) for m in pair),
        )
        for i, pair in enumerate(pairs.split())
    ]


def a_run(path, base, final, *overrides, prefix="p"):
    run = RunDirectory.create(toy.config(path, *overrides))
    for name, pairs in (("base", base), ("final", final)):
        if pairs is not None:
            run.write_evaluation(name, (episode_row(e) for e in episodes(pairs, prefix)))
    return path


BASE = "-- -- +- ++"


def test_one_seed_is_measured_over_problems_and_paired_with_its_base(tmp_path):
    base, score = compare_runs([a_run(tmp_path / "a", BASE, "-+ -- ++ ++")])
    assert (base.name, score.name) == ("base", "score")
    assert (base.t1.value, base.t2.value, base.delta.value, base.t2_over_base.value) == (0.5, 0.25, -0.25, 0)
    assert (score.t1.value, score.t2.value, score.delta.value, score.t2_over_base.value) == (0.5, 0.75, 0.25, 0.5)
    assert (score.seeds, score.problems, score.corrected, score.t2_spread) == (1, 4, 1, None)
    assert score.t2_over_base.low < 0.5 < score.t2_over_base.high


def test_several_seeds_are_a_t_interval_over_their_means(tmp_path):
    finals = ("-+ -- ++ ++", "-+ -+ ++ ++", "-- -- ++ ++")
    runs = [a_run(tmp_path / str(i), BASE, f, f"seed={i}") for i, f in enumerate(finals)]
    _, score = compare_runs(runs)
    assert (score.seeds, score.corrected) == (3, 2)  # the third seed only copies
    assert score.t2_spread == pytest.approx(0.25)
    assert score.t2 == across_seeds(np.array([0.75, 1.0, 0.5]))
    assert score.t2_over_base == across_seeds(np.array([0.5, 0.75, 0.25]))


def test_methods_have_their_own_rows_in_the_order_given(tmp_path):
    runs = [
        a_run(tmp_path / "b", BASE, "++ ++ ++ ++", "method=multi_turn"),
        a_run(tmp_path / "a", BASE, "-- -- -- --"),
    ]
    assert [row.name for row in compare_runs(runs)] == ["base", "multi_turn", "score"]
    assert [row.t2.value for row in compare_runs(runs)] == [0.25, 1.0, 0.0]


def test_a_verifier_failure_is_left_out_not_counted_as_wrong(tmp_path):
    _, score = compare_runs([a_run(tmp_path / "a", BASE, "-! -+ ++ ++")])
    assert score.t2.value == 1.0
    assert score.t1.value == 0.5  # attempt 1 of that problem was graded
    assert score.delta.value == pytest.approx(1 / 3)


def test_a_failure_on_one_of_several_samples_leaves_its_pair_out_of_delta():
    """As in ``summarise``: delta is i->c minus c->i, whatever the other samples of the problem got."""
    grades = {("p", 0): "-+", ("p", 1): "+!", ("q", 0): "--", ("q", 1): "-+"}
    played = [replace(episodes(pair, i)[0], sample=sample) for (i, sample), pair in grades.items()]
    matrix = correctness_matrix(played)
    row = matrix_row("score", [(matrix, matrix)])
    assert row.delta.value == summarise(played).delta_first_last.value == row.i_to_c.value - row.c_to_i.value == 0.75


def test_the_order_of_rows_in_a_file_does_not_matter(tmp_path):
    run = a_run(tmp_path / "a", BASE, "-+ -- ++ ++")
    straight = compare_runs([run])
    file = run / "evaluations" / "final.jsonl"
    file.write_text("\n".join(reversed(file.read_text().splitlines())) + "\n")
    assert compare_runs([run]) == straight


def test_an_unfinished_run_is_refused_with_the_way_to_finish_it(tmp_path):
    with pytest.raises(DataError, match=r"no evaluation 'final'.*has not finished.*--resume"):
        compare_runs([a_run(tmp_path / "a", BASE, None)])


def test_runs_on_different_problems_are_refused(tmp_path):
    runs = [a_run(tmp_path / "a", BASE, BASE), a_run(tmp_path / "b", BASE, BASE, "seed=1", prefix="q")]
    with pytest.raises(DataError, match="different held-out problems"):
        compare_runs(runs)


def test_the_same_method_and_seed_twice_is_not_two_samples(tmp_path):
    with pytest.raises(DataError, match="not independent"):
        compare_runs([a_run(tmp_path / "a", BASE, BASE), a_run(tmp_path / "b", BASE, BASE)])


def test_runs_of_different_models_have_no_common_base(tmp_path):
    runs = [a_run(tmp_path / "a", BASE, BASE), a_run(tmp_path / "b", BASE, BASE, "seed=1", "model.name=other/model")]
    with pytest.raises(DataError, match="different models"):
        compare_runs(runs)


def test_variants_of_a_method_have_rows_that_say_what_differs(tmp_path):
    runs = [
        a_run(tmp_path / "a", BASE, BASE),
        a_run(tmp_path / "b", BASE, "++ ++ ++ ++", "seed=1"),
        a_run(tmp_path / "c", BASE, BASE, "method.alpha=3", "method.stage1_share=0"),
        a_run(tmp_path / "d", BASE, BASE, "method=multi_turn", "train.learning_rate=1e-6"),
    ]
    rows = {row.name: row.seeds for row in compare_runs(runs)}
    # the lone multi_turn has no other variant, so its learning rate is not part of its name
    assert rows == {"base": 1, "score": 2, "score method.alpha=3.0 method.stage1_share=0.0": 1, "multi_turn": 1}


@pytest.mark.parametrize("text", ["[again]", "[/INST]", ":eyes:"])
def test_a_setting_in_a_table_is_shown_as_it_is(tmp_path, cli, text):
    runs = [a_run(tmp_path / "a", BASE, BASE), a_run(tmp_path / "b", BASE, BASE, f"task.instruction={text}")]
    code, out, _ = cli("compare", *runs)
    assert code == 0
    name = "".join(line.split("│")[1].strip() for line in out.splitlines() if line.startswith("│"))
    assert f'task.instruction="{text}"' in name


def test_labels_name_the_rows_and_hold_one_setting_each(tmp_path):
    runs = [
        a_run(tmp_path / "a", BASE, BASE),
        a_run(tmp_path / "b", BASE, BASE, "method.alpha=3"),
    ]
    assert [row.name for row in compare_runs(runs, ["SCoRe", "alpha 3"])] == ["base", "SCoRe", "alpha 3"]
    with pytest.raises(DataError, match="not independent"):
        compare_runs(runs, ["SCoRe", "SCoRe"])
    other = a_run(tmp_path / "c", BASE, BASE, "method.alpha=3", "seed=1")
    with pytest.raises(DataError, match=r"labelled SCoRe differ in more than the seed \(method\.alpha\)"):
        compare_runs([runs[0], other], ["SCoRe", "SCoRe"])


def test_flips_are_shares_of_all_problems(tmp_path):
    _, score = compare_runs([a_run(tmp_path / "a", BASE, "-+ +- ++ -+")])
    assert (score.i_to_c.value, score.c_to_i.value) == (0.5, 0.25)
    _, score = compare_runs([a_run(tmp_path / "b", BASE, "-+ !- ++ -+")])  # a failed verdict is in neither
    assert (score.i_to_c.value, score.i_to_c.n, score.c_to_i.value) == (pytest.approx(2 / 3), 3, 0)


def test_a_changed_file_is_named_with_its_line(tmp_path):
    run = a_run(tmp_path / "a", BASE, BASE)
    file = run / "evaluations" / "final.jsonl"
    lines = file.read_text().splitlines()
    file.write_text("\n".join([lines[0], '{"problem": "p1"}', *lines[2:]]))
    with pytest.raises(DataError, match=r"final\.jsonl line 2"):
        read_evaluation(run, "final")
