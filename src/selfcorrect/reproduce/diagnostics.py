"""What happens between the attempts: edits, collapse over training, distribution shift, difficulty and length."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np

from selfcorrect.measuring.intervals import Estimate, across_seeds, bootstrap_mean
from selfcorrect.measuring.metrics import by_level
from selfcorrect.records.lines import StepRecord, read_episodes
from selfcorrect.report.charts import (
    Curves,
    Histogram,
    Levels,
    Line,
    axis_range,
    draw_curves,
    draw_histogram,
    draw_levels,
)
from selfcorrect.reproduce.kept import FIRSTS, SPLITS
from selfcorrect.reproduce.measured import MEASURE_AGAIN, Measurements
from selfcorrect.reproduce.planning import script_job
from selfcorrect.reproduce.result import Column, Grid, GridRow, Result, over_seeds
from selfcorrect.reproduce.rows import ROWS, TARGETS, paper_tables
from selfcorrect.reproduce.verdicts import judge

BySeed = dict[int, dict[str, Estimate]]
"""Estimates of one row, by seed and quantity. What was not measured for a seed is missing."""
WINDOW = 10
LENGTHS: dict[str, Callable[[str], int]] = {"characters": len, "lines": lambda text: len(text.splitlines())}


def seed_result(
    name: str,
    title: str,
    columns: Sequence[Column],
    measured: Mapping[str, BySeed],
    problems: Mapping[str, int],
    m: Measurements,
) -> Result:
    """A target with one value per seed: its grid, and its claims, judged by the differences for each seed.

    ``title`` is that of the grid; ``measured`` and ``problems`` are by row. If a seed lacks a quantity, the row leaves
    it out.
    """
    paper = paper_tables().get(name)
    lines = []
    for key, by_seed in measured.items():
        seeds = list(by_seed.values())
        shown = [c.key for c in columns if seeds and all(c.key in values for values in seeds)]
        cells = {quantity: over_seeds([values[quantity] for values in seeds]) for quantity in shown}
        figures = paper.figures(key) if paper is not None else {}
        note = "" if seeds else "not measured"
        lines.append(GridRow(ROWS[key].label, cells, len(seeds), problems.get(key, 0), figures, note))
    verdicts = []
    for claim in TARGETS[name].claims:
        sides = []
        for side in (claim.above, claim.below):
            found = {} if side is None else measured[side]
            values = {
                s: q[claim.quantity].value for s, q in found.items() if claim.quantity in q and q[claim.quantity].n
            }
            if side is None:
                values = dict.fromkeys(m.choice.seeds, 0.0)
            elif side == "base" and values:  # untrained and greedy: one measurement stands for all seeds
                values = dict.fromkeys(m.choice.seeds, next(iter(values.values())))
            sides.append(values)
        above, below = sides
        # 0.3 - 0.1 and 0.4 - 0.2 agree, but not in binary: unrounded they would look like a spread between seeds
        differences = [round(above[s] - below[s], 12) for s in sorted(above.keys() & below.keys())]
        verdicts.append(judge(claim, across_seeds(differences)))
    setting, source = (paper.setting, paper.source) if paper is not None else ("", "")
    grid = Grid(title, tuple(columns), tuple(lines), setting, source)
    return Result(name, TARGETS[name].title, (grid,), tuple(verdicts))


def edits(m: Measurements) -> Result:
    """How far second attempts are from first ones, on held-out problems; greedy."""
    columns = (
        Column("edit_ratio", "edit-distance ratio"),
        Column("copied", "copied"),
        Column("answer_changed", "answer changed"),
    )
    measured: dict[str, BySeed] = {}
    problems, series = {}, []
    for key in TARGETS["edits"].rows:
        summaries = m.summaries(key)
        last = {seed: s.revisions[-1] for seed, s in summaries.items()}
        measured[key] = {seed: {c.key: getattr(r, c.key) for c in columns} for seed, r in last.items()}
        if last:
            problems[key] = next(iter(summaries.values())).n_problems
            counts = np.sum([r.edit_histogram for r in last.values()], axis=0)
            series.append((ROWS[key].label, tuple(counts.tolist())))
    charts = [Histogram(f"{row[0]}: held-out problems of all seeds", (series[0], row)) for row in series[1:]]
    result = seed_result("edits", TARGETS["edits"].title, columns, measured, problems, m)
    return replace(result, drawings=tuple(map(draw_histogram, charts)))


def collapse(m: Measurements, name: str = "collapse") -> Result:
    """Share of episodes whose second attempt repeats the answer, at every training step; sampled at temperature 1."""
    columns = (
        Column("changed_start", "answers changed, start of training"),
        Column("changed_stage1", "end of Stage I"),
        Column("changed_end", "end of training"),
        Column("changed_fall", "fall, start to end", sign=True),
        Column("changed_final", "greedy, held-out"),
    )
    records = {key: m.steps(key) for key in TARGETS[name].rows}
    measured: dict[str, BySeed] = {}
    problems = {}
    for key, runs in records.items():
        summaries = m.summaries(key)
        measured[key] = {
            seed: {quantity: across_seeds([value]) for quantity, value in ends(steps).items()}
            | {"changed_final": summaries[seed].revisions[-1].answer_changed}
            for seed, steps in runs.items()
        }
        if summaries:
            problems[key] = next(iter(summaries.values())).n_problems
    result = seed_result(name, "Share of changed answers", columns, measured, problems, m)
    note = f"Start and end: means of the first and last {WINDOW} steps, or a tenth of the steps where that is fewer."
    drawings = (draw_curves(_unchanged(records)),) if any(records.values()) else ()
    return replace(result, drawings=drawings, notes=(note,))


def ends(steps: Sequence[StepRecord]) -> dict[str, float]:
    """Share of changed answers at the start, at the end of Stage I (if there is one) and at the end of training, and
    how far it fell."""
    played = [(r.stage, r.answer_change) for r in steps if r.answer_change is not None]
    n = max(1, min(WINDOW, len(played) // 10))
    start, end = (float(np.mean([v for _, v in part])) for part in (played[:n], played[-n:]))
    held = [v for stage, v in played if stage.startswith("stage1")]
    stage1 = {"changed_stage1": float(np.mean(held[-n:]))} if held else {}
    return {"changed_start": start, **stage1, "changed_end": end, "changed_fall": start - end}


def _unchanged(records: Mapping[str, dict[int, list[StepRecord]]]) -> Curves:
    """The chart of 1 - answer change by step, as the mean over seeds."""
    curves: dict[str, dict[int, list[float]]] = {}
    for key, runs in records.items():
        for r in (record for steps in runs.values() for record in steps):
            if r.answer_change is not None:
                curves.setdefault(key, {}).setdefault(r.step, []).append(1 - r.answer_change)
    numbers = sorted({step for curve in curves.values() for step in curve})
    lines = []
    for i, (key, curve) in enumerate(curves.items()):
        values = tuple(float(np.mean(curve[step])) if step in curve else None for step in numbers)
        lines.append(Line(ROWS[key].label, i, values))
    low, high = axis_range([v for line in lines for v in line.values], share=True)
    first_run = next(iter(records["score"].values()), [])
    marks = [(a.step + 0.5, "Stage II begins") for a, b in pairwise(first_run) if a.stage != b.stage]
    title = "Unchanged answers in training, mean over seeds"
    return Curves(title, "share", tuple(numbers), tuple(lines), low, high, tuple(marks))


def shift(m: Measurements) -> Result:
    """Share of wrong first attempts that the kept checkpoint corrects: its own, and the base's on the same problems."""
    splits = {"test": "held-out", "train": "training"}
    columns = tuple(
        Column(f"{split}_{what}", f"{words}, {splits[split]} problems", sign=what == "gap")
        for split in SPLITS
        for what, words in (("own", "own first attempts"), ("base", "the base's"), ("gap", "base's minus own"))
    )
    measured: dict[str, BySeed] = {}
    for key in TARGETS["shift"].rows:
        files = {seed: script_job(m.choice, ROWS[key], seed, "shift").target for seed in m.paths(key)}
        measured[key] = {seed: corrected(file) for seed, file in files.items() if file.exists()}
    problems = {key: max((v["test_base"].n for v in found.values()), default=0) for key, found in measured.items()}
    title = "Wrong first attempts that the second attempt makes right"
    result = seed_result("shift", title, columns, measured, problems, m)
    rates = [c for c in columns if not c.sign]
    rows = [(row.label, tuple(row.cells[c.key] for c in rates)) for row in result.grids[0].rows if row.cells]
    heads = tuple(c.head for c in rates)
    chart = Levels("Wrong first attempts corrected, 95 % intervals", heads, tuple(rows), "row")
    note = "Of the wrong first attempts only, so n differs between columns; problems: wrong first attempts of the base."
    return replace(result, drawings=(draw_levels(chart),), notes=(note,))


def corrected(file: Path) -> dict[str, Estimate]:
    """Share of wrong first attempts that were corrected, by ``<split>_<whose first attempts>``, and the gap between the
    two.

    The two sides are wrong on different problems, so the gap of a single run has no interval.
    """
    found: dict[str, list[float]] = {f"{split}_{first}": [] for split in SPLITS for first in FIRSTS}
    for row, episode in read_episodes(file, MEASURE_AGAIN):
        if episode.attempts[0].wrong and episode.valid_K.all():
            found[f"{row['split']}_{row['first']}"].append(float(episode.attempts[-1].correct))
    rates = {name: bootstrap_mean(np.array(values), support=(0, 1)) for name, values in found.items()}
    gaps = {f"{s}_gap": rates[f"{s}_base"].value - rates[f"{s}_own"].value for s in SPLITS}
    return rates | {name: across_seeds(np.array([gap] if np.isfinite(gap) else [])) for name, gap in gaps.items()}


def levels(m: Measurements) -> Result:
    """Accuracy at each difficulty, and how much longer second attempts are, in characters and in steps (lines)."""
    target = TARGETS["levels"]
    episodes = {key: m.episodes(key) for key in target.rows}
    tables = {key: [by_level(found) for found in runs.values()] for key, runs in episodes.items() if runs}
    accuracy, shown = [], []
    for level in dict.fromkeys(level for found in tables.values() for table in found for level in table):
        last = []
        for key, found in tables.items():
            known = [table[level] for table in found if level in table]
            cells = {"t1": over_seeds([row[0] for row in known]), "t2": over_seeds([row[-1] for row in known])}
            problems = max((row[0].n for row in known), default=0)
            accuracy.append(GridRow(f"{level or 'no level'}: {ROWS[key].label}", cells, len(known), problems))
            last.append(cells["t2"])
        shown.append((level or "no level", tuple(last)))
    lengths = []
    for key, runs in episodes.items():
        cells = {}
        for name, size in LENGTHS.items() if runs else ():
            changes = [[size(e.attempts[-1].text) - size(e.attempts[0].text) for e in found] for found in runs.values()]
            cells[name] = over_seeds([bootstrap_mean(np.array(change)) for change in changes])
        lengths.append(GridRow(ROWS[key].label, cells, len(runs), len(next(iter(runs.values()), []))))
    chart = Levels("Percent correct at the last attempt", tuple(ROWS[key].label for key in tables), tuple(shown))
    length_columns = tuple(Column(name, name, scale=1, sign=True) for name in LENGTHS)
    grids = (
        Grid("Accuracy by level", (Column("t1", "t1"), Column("t2", "t2")), tuple(accuracy)),
        Grid("Change from the first to the last attempt, mean", length_columns, tuple(lengths)),
    )
    return Result("levels", target.title, grids, (), (draw_levels(chart),))
