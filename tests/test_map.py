"""The map of bases: one run leaves one line, and the table reads lines only."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import pytest

from selfcorrect.algorithm.stages import plan
from selfcorrect.errors import Interrupted, RunError
from selfcorrect.reproduce import map as phase_map
from selfcorrect.reproduce.map import GRID, UNSEEN, read_lines, run_config, run_map, run_one
from selfcorrect.reproduce.map_results import METHODS, SECOND_ATTEMPTS, Point, as_csv, cells_of, page, pictures

SHORT = {"steps_sums": 2, "steps_skills": 2, "steps_habits": 2, "batch": 8}


def test_a_run_leaves_one_line_and_the_base(tmp_path, monkeypatch):
    recipe = Point.recipe
    monkeypatch.setattr(Point, "recipe", lambda self: replace(recipe(self), **SHORT))
    monkeypatch.setattr(phase_map, "BUDGET", ("train.problems_per_step=2", "eval.problems=10", "eval.controls=false"))
    monkeypatch.setattr(phase_map, "PROBED", 4)
    point = GRID[0]
    line = json.loads(json.dumps(run_one(point, 7, "multi_turn", tmp_path, ["train.steps=2"])))
    assert (line["method"], line["seed"], line["problems"]) == ("multi_turn", 7, 10)
    assert line["delta"] == pytest.approx(line["t2"] - line["t1"])
    assert line["base"]["episodes"] == 8 * 200
    assert {p.name for p in (tmp_path / "bases").iterdir() if p.is_dir()} == {point.name}
    assert [cell.point for cell in cells_of([line])] == [point]


class RecordingRunner:
    """Takes the place of the processes: every run ends at once with a line."""

    def __init__(self, *_):
        self.failures = {}

    jobs: ClassVar[list] = []

    def run(self, jobs, _stop):
        RecordingRunner.jobs += jobs
        for job in jobs:
            point, seed, method = json.loads(job.command[3]), int(job.command[4]), job.command[5]
            (line,) = [x for x in lines_of((0.9,), (0.6,)) if x["method"] == "score"]
            job.target.parent.mkdir(parents=True, exist_ok=True)
            job.target.write_text(json.dumps(line | point | {"seed": seed, "method": method}) + "\n", encoding="utf-8")


def test_bases_first_then_what_decides_a_cell_and_no_run_twice(tmp_path, monkeypatch):
    monkeypatch.setattr(phase_map, "Runner", RecordingRunner)
    monkeypatch.setattr(RecordingRunner, "jobs", [])
    grid = UNSEEN[2:4]  # of two pretraining seeds
    run_map(tmp_path, (0, 1), 2, None, grid=grid, methods=METHODS[:3])
    order = [(json.loads(j.command[3])["pretraining"], int(j.command[4]), j.command[5]) for j in RecordingRunner.jobs]
    cell = [(0, "score"), (1, "multi_turn"), (1, "score")]
    assert order == [
        *((p.pretraining, 0, "multi_turn") for p in grid),
        *((p.pretraining, *run) for p in grid for run in cell),
        *((p.pretraining, seed, "no_stage1") for p in grid for seed in (0, 1)),
    ]
    assert len((tmp_path / "map.csv").read_text(encoding="utf-8").splitlines()) == 1 + len(order)
    assert f"| {grid[1].pretraining} |" in (tmp_path / "map.md").read_text(encoding="utf-8")
    RecordingRunner.jobs.clear()
    run_map(tmp_path, (0, 1), 2, None, grid=grid, methods=METHODS[:3])
    assert RecordingRunner.jobs == []
    assert not set(GRID) & set(UNSEEN)


def test_an_undecided_cell_gets_as_many_more_seeds_once(tmp_path, monkeypatch):
    class Varied(RecordingRunner):
        """On the second point SCoRe's seeds disagree."""

        def run(self, jobs, stop):
            super().run(jobs, stop)
            for job in jobs:
                line = json.loads(job.target.read_text(encoding="utf-8"))
                apart = line["fix"] == grid[1].fix and line["seed"] % 2 == 0
                line["t2"] = 0.6 if line["method"] == "multi_turn" or apart else 0.9
                job.target.write_text(json.dumps(line) + "\n", encoding="utf-8")

    monkeypatch.setattr(phase_map, "Runner", Varied)
    monkeypatch.setattr(RecordingRunner, "jobs", [])
    grid = UNSEEN[:2]
    for _ in range(2):  # a second call runs nothing
        run_map(tmp_path, (0, 1, 2), 2, None, grid=grid, methods=METHODS[:3])
    runs = [(json.loads(j.command[3])["fix"], int(j.command[4]), j.command[5]) for j in RecordingRunner.jobs]
    more = [(grid[1].fix, seed, method) for seed in (3, 4, 5) for method in METHODS[:2]]
    assert runs[-12:] == [*more, *((p.fix, seed, "no_stage1") for p in grid for seed in (0, 1, 2))]
    assert len(runs) == 12 + 6 + 6
    first, second = cells_of(read_lines(tmp_path))
    assert (first.verdict, second.verdict) == ("SCoRe", "undecided") and second.difference.n == 6


def test_a_stop_among_further_seeds_changes_no_number_of_them(tmp_path, monkeypatch):
    class StoppedOnce(RecordingRunner):
        """A stop after four runs of the further seeds. By then the interval excludes 0."""

        stops = False

        def run(self, jobs, stop):
            further = jobs and int(jobs[0].command[4]) > 2
            some = jobs[:4] if further and StoppedOnce.stops else jobs
            super().run(some, stop)
            for job in some:
                line = json.loads(job.target.read_text(encoding="utf-8"))
                line["t2"] = 0.6 if line["method"] == "multi_turn" else 0.7 + 0.1 * (line["seed"] % 3)
                job.target.write_text(json.dumps(line) + "\n", encoding="utf-8")
            if some is not jobs:
                StoppedOnce.stops = False
                raise Interrupted("as asked")

    monkeypatch.setattr(phase_map, "Runner", StoppedOnce)
    grid = UNSEEN[:1]
    run_map(tmp_path / "whole", (0, 1, 2), 2, None, grid=grid, methods=METHODS[:2])
    StoppedOnce.stops = True
    with pytest.raises(Interrupted):
        run_map(tmp_path / "stopped", (0, 1, 2), 2, None, grid=grid, methods=METHODS[:2])
    (cell,) = cells_of(read_lines(tmp_path / "stopped"))
    assert cell.difference.n == 5 and cell.verdict == "SCoRe"
    run_map(tmp_path / "stopped", (0, 1, 2), 2, None, grid=grid, methods=METHODS[:2])
    assert cells_of(read_lines(tmp_path / "stopped")) == cells_of(read_lines(tmp_path / "whole"))


def test_runs_with_other_settings_are_not_mixed_into_a_map(tmp_path, monkeypatch):
    monkeypatch.setattr(phase_map, "Runner", RecordingRunner)
    run_map(tmp_path, (0,), 2, None, grid=GRID[:1])
    with pytest.raises(RunError, match="made with no settings, and one table must not mix them"):
        run_map(tmp_path, (0,), 2, None, grid=GRID[:1], settings=["train.steps=100"])


def test_a_stopped_map_has_a_page_of_what_was_run(tmp_path, monkeypatch):
    class Stopped(RecordingRunner):
        def run(self, jobs, stop):
            super().run(jobs[:2], stop)
            raise Interrupted("as asked")

    monkeypatch.setattr(phase_map, "Runner", Stopped)
    with pytest.raises(Interrupted):
        run_map(tmp_path, (0,), 2, None, grid=GRID[:3])
    made = (tmp_path / "map.md").read_text(encoding="utf-8")
    assert "2 cells, 2 runs" in made and made.count("| not run |") == 2 and "nan" not in made


def lines_of(score, multi_turn):
    base = {"fixed": 0.01, "broken": 0.03}
    return [
        {
            **{
                "fix": 0.01,
                "redo": 0.1,
                "edge": 0.8,
                "method": method,
                "seed": seed,
                "base": base,
                "t1": 0.6,
                "t2": t2,
            },
            **{"delta": t2 - 0.6, "changed": [], "settings": [], "seconds": 1800.0},
        }
        for method, values in (("score", score), ("multi_turn", multi_turn))
        for seed, t2 in enumerate(values)
    ]


@pytest.mark.parametrize(
    ("fixed", "broken", "expected"),
    [(0.05, 0.05, "both correct"), (0.0025, 0.05, "neither corrects"), (0.003, 0.05, "SCoRe")],
)
def test_what_the_base_lets_one_expect(fixed, broken, expected):
    lines = [
        {**line, "base": {"fixed": fixed, "broken": broken}} for line in lines_of((0.9, 0.91, 0.92), (0.60, 0.61, 0.62))
    ]
    (cell,) = cells_of(lines)
    assert cell.expected == expected and cell.as_expected == (expected == "SCoRe")
    assert f"1 of 1 (100%), {int(cell.as_expected)} of them as expected" in page(lines)


def test_seeds_that_corrected_are_counted_by_what_changes_do():
    made = page(lines_of((0.9, 0.6, 0.7), (0.6, 0.61, 0.9)))  # i->c over c->i is a third
    assert "| 0.25 to 0.5 | 1 | 1 of 3 | 2 of 3 |" in made
    assert made.count("| 0 | 0 of 0 | 0 of 0 |") == 4


def test_the_expectation_counts_the_second_attempts_of_a_step():
    stage, *_ = plan(run_config(Path("tiny"), "score", 0, (), Path("run")))
    assert 32 * stage.samples_per_problem * stage.branches == SECOND_ATTEMPTS


@pytest.mark.parametrize(
    ("score", "multi_turn", "verdict"),
    [
        ((0.90, 0.91, 0.92), (0.60, 0.61, 0.62), "SCoRe"),
        ((0.60, 0.61, 0.62), (0.90, 0.91, 0.92), "multi-turn RL"),
        ((0.60, 0.61, 0.62), (0.601, 0.612, 0.619), "neither corrects"),
        ((0.90, 0.91, 0.92), (0.901, 0.912, 0.919), "both correct"),
        ((0.60, 0.90, 0.61), (0.60, 0.61, 0.62), "undecided"),
        ((0.90,), (0.60,), "undecided"),  # one seed decides nothing
    ],
)
def test_a_cell_is_decided_by_the_interval_over_seeds(score, multi_turn, verdict):
    lines = lines_of(score, multi_turn)
    (cell,) = cells_of(lines)
    assert cell.verdict == verdict
    assert cell.corrected("score") == (sum(t2 > 0.65 for t2 in score), len(score))
    text = page(lines)
    assert f"| {verdict} |" in text and f"{len(lines) / 2:.1f} h of one thread" in text
    (drawing,) = pictures([cell])
    assert drawing.summary.count(f" in {int(verdict != 'undecided')}") >= 1
    words = f"{100 * sum(score) / len(score):.0f} | {100 * sum(multi_turn) / len(multi_turn):.0f}"
    assert words in drawing.svg and drawing.rows[0][1].startswith(words)
    assert ('class="tile bar' in drawing.svg) == (verdict != "undecided")
    assert as_csv(lines).count("\n") == len(lines) + 1
