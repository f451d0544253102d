"""What happens between the attempts: edits, collapse over training, distribution shift, difficulty and length."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np

from selfcorrect.measuring.intervals import Estimate, across_seeds, bootstrap_mean
from selfcorrect.measuring.metrics import EvalSummary, by_level
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
from selfcorrect.reproduce.measured import MEASURE_AGAIN, Measurements, by_seed_difference
from selfcorrect.reproduce.planning import shift_job
from selfcorrect.reproduce.result import Column, Grid, GridRow, Result, over_seeds
from selfcorrect.reproduce.rows import ROWS, TARGETS, paper_tables
from selfcorrect.reproduce.shift import FIRSTS, SPLITS
from selfcorrect.reproduce.verdicts import Verdict, judge
from selfcorrect.types import Episode

BySeed = dict[int, float]

EDIT_COLUMNS = (
    Column("edit_ratio", "edit-distance ratio"),
    Column("copied", "copied"),
    Column("answer_changed", "answer changed"),
)


def edits(m: Measurements) -> Result:
    """How far second attempts are from first ones, on held-out problems; greedy."""
    target = TARGETS["edits"]
    summaries = {key: m.summaries(key) for key in target.rows}
    lines, series = [], []
    for key, found in summaries.items():
        last = [s.revisions[-1] for s in found.values()]
        cells = {c.key: over_seeds([getattr(r, c.key) for r in last]) for c in EDIT_COLUMNS} if last else {}
        lines.append(_line(key, cells, list(found.values())))
        if last:
            counts = np.sum([r.edit_histogram for r in last], axis=0)
            series.append((ROWS[key].label, tuple(int(n) for n in counts)))
    grid = Grid(target.title, EDIT_COLUMNS, tuple(lines))

    def of(key: str, quantity: str) -> BySeed:
        return {seed: getattr(s.revisions[-1], quantity).value for seed, s in summaries[key].items()}

    charts = [Histogram(f"{row[0]}: held-out problems of all seeds", (series[0], row)) for row in series[1:]]
    return Result("edits", target.title, (grid,), judged_by_seed("edits", of), tuple(map(draw_histogram, charts)))


def collapse(m: Measurements, name: str = "collapse") -> Result:
    """Share of episodes whose answer the second attempt repeats, at every training step; sampled at temperature 1."""
    target = TARGETS[name]
    records = {key: m.steps(key) for key in target.rows}
    curves = {key: _unchanged(runs) for key, runs in records.items() if runs}
    lines = []
    for key, runs in records.items():
        cells = {}
        if runs:
            by_run = [_ends(steps) for steps in runs.values()]
            ends = {q: across_seeds(np.array([e[q] for e in by_run])) for q in by_run[0]}
            final = over_seeds([s.revisions[-1].answer_changed for s in m.summaries(key).values()])
            cells = ends | {"changed_final": final}
        figures = paper_tables()["collapse"].figures(key)
        lines.append(_line(key, cells, list(m.summaries(key).values()), figures))
    columns = (
        Column("changed_start", "answers changed, start of training"),
        Column("changed_stage1", "end of Stage I"),
        Column("changed_end", "end of training"),
        Column("changed_fall", "fall, start to end", sign=True),
        Column("changed_final", "greedy, held-out"),
    )
    paper = paper_tables()["collapse"]
    grid = Grid("Share of changed answers", columns, tuple(lines), paper.setting, paper.source)

    def of(key: str, quantity: str) -> BySeed:
        return {seed: _ends(steps)[quantity] for seed, steps in records[key].items()}

    drawings = [draw_curves(_curves(curves, records))] if curves else []
    notes = (
        f"Start and end: means of the first and last {WINDOW} steps, or a tenth of the steps where that is fewer.",
    )
    return Result(
        name,
        target.title,
        (grid,),
        judged_by_seed("collapse", of) if name == "collapse" else (),
        tuple(drawings),
        notes=notes,
    )


WINDOW = 10


def _ends(steps: Sequence[StepRecord]) -> dict[str, float]:
    """Share of changed answers at the start, at the end of Stage I where there is one, at the end, and the fall."""
    played = [(r.stage, r.answer_change) for r in steps if r.answer_change is not None]
    n = max(1, min(WINDOW, len(played) // 10))
    start, end = (float(np.mean([v for _, v in part])) for part in (played[:n], played[-n:]))
    held = [v for stage, v in played if stage.startswith("stage1")]
    stage1 = {"changed_stage1": float(np.mean(held[-n:]))} if held else {}
    return {"changed_start": start, **stage1, "changed_end": end, "changed_fall": start - end}


def _unchanged(runs: dict[int, list[StepRecord]]) -> dict[int, float | None]:
    """Mean over seeds of 1 - answer change, by step."""
    by_step: dict[int, list[float]] = {}
    for steps in runs.values():
        for r in steps:
            if r.answer_change is not None:
                by_step.setdefault(r.step, []).append(1 - r.answer_change)
    return {step: float(np.mean(values)) for step, values in sorted(by_step.items())}


def _curves(curves: dict[str, dict[int, float | None]], records: dict[str, dict[int, list[StepRecord]]]) -> Curves:
    steps = sorted({step for curve in curves.values() for step in curve})
    lines = tuple(
        Line(ROWS[key].label, i, tuple(curve.get(step) for step in steps))
        for i, (key, curve) in enumerate(curves.items())
    )
    low, high = axis_range([v for line in lines for v in line.values], share=True)
    staged = next((runs for key, runs in records.items() if key == "score" and runs), {})
    marks = [
        (before.step + 0.5, "Stage II begins")
        for before, after in pairwise(next(iter(staged.values()), []))
        if before.stage != after.stage
    ]
    title = "Unchanged answers in training, mean over seeds"
    return Curves(title, "share", tuple(steps), lines, low, high, tuple(marks))


def shift(m: Measurements) -> Result:
    """Of the wrong first attempts, how many the kept checkpoint mends: its own, and the base's to the same problems."""
    target = TARGETS["shift"]
    rates = {key: _shift_rates(m, key) for key in target.rows}
    names = {"test": "held-out", "train": "training"}
    columns = tuple(
        Column(f"{split}_{what}", f"{words}, {names[split]} problems", sign=what == "gap")
        for split in SPLITS
        for what, words in (("own", "own first attempts"), ("base", "the base's"), ("gap", "base's minus own"))
    )
    lines = []
    for key, by_seed in rates.items():
        values = list(by_seed.values())
        cells = {c.key: over_seeds([v[c.key] for v in values]) for c in columns} if values else {}
        n = max((v["test_base"].n for v in values), default=0)
        lines.append(GridRow(ROWS[key].label, cells, len(values), n, note="" if values else "not measured"))
    grid = Grid("Wrong first attempts that the second attempt makes right", columns, tuple(lines))
    labels = tuple(c.head for c in columns if not c.sign)
    shown = [(line.label, tuple(line.cells[c.key] for c in columns if not c.sign)) for line in lines if line.cells]
    drawing = draw_levels(Levels("Wrong first attempts mended, 95 % intervals", labels, tuple(shown), "row"))

    def of(key: str, quantity: str) -> BySeed:
        return {seed: v[quantity].value for seed, v in rates[key].items() if v[quantity].n}

    notes = (
        "Of the wrong first attempts only, so n differs between columns; problems: wrong first attempts of the base.",
    )
    return Result("shift", target.title, (grid,), judged_by_seed("shift", of), (drawing,), notes=notes)


def _shift_rates(m: Measurements, key: str) -> dict[int, dict[str, Estimate]]:
    out = {}
    for seed in m.paths(key):
        file = shift_job(m.choice, ROWS[key], seed).target
        if file.exists():
            out[seed] = mended(file)
    return out


def mended(file: Path) -> dict[str, Estimate]:
    """Share of wrong first attempts made right, by ``<split>_<whose first attempts>``, and the gap between the two.

    The two sides have wrong first attempts at different problems, so the gap of a single run has no interval.
    """
    found: dict[str, list[float]] = {f"{split}_{first}": [] for split in SPLITS for first in FIRSTS}
    for row, episode in read_episodes(file, MEASURE_AGAIN):
        if episode.attempts[0].wrong and episode.valid_K.all():
            found[f"{row['split']}_{row['first']}"].append(float(episode.attempts[-1].correct))
    rates = {name: bootstrap_mean(np.array(values), support=(0, 1)) for name, values in found.items()}
    gaps = {f"{s}_gap": rates[f"{s}_base"].value - rates[f"{s}_own"].value for s in SPLITS}
    return rates | {name: across_seeds(np.array([gap] if np.isfinite(gap) else [])) for name, gap in gaps.items()}


LENGTHS: dict[str, Callable[[str], int]] = {"characters": len, "lines": lambda text: len(text.splitlines())}


def levels(m: Measurements) -> Result:
    """Accuracy at each difficulty, and how much longer second attempts are, in characters and in steps (lines)."""
    target = TARGETS["levels"]
    episodes = {key: m.episodes(key) for key in target.rows}
    tables = {key: [by_level(found) for found in runs.values()] for key, runs in episodes.items() if runs}
    rows = []
    for level in dict.fromkeys(level for made in tables.values() for t in made for level in t):
        for key, made in tables.items():
            known = [t[level] for t in made if level in t]
            cells = {"t1": over_seeds([row[0] for row in known]), "t2": over_seeds([row[-1] for row in known])}
            problems = max((row[0].n for row in known), default=0)
            rows.append((level or "no level", key, GridRow(ROWS[key].label, cells, len(known), problems)))
    by_name = dict.fromkeys(name for name, _, _ in rows)
    shown = [(name, tuple(row.cells["t2"] for level, _, row in rows if level == name)) for name in by_name]
    chart = Levels("Percent correct at the last attempt", tuple(ROWS[key].label for key in tables), tuple(shown))
    accuracy = tuple(replace(row, label=f"{name}: {row.label}") for name, _, row in rows)
    grids = (
        Grid("Accuracy by level", (Column("t1", "t1"), Column("t2", "t2")), accuracy),
        Grid("Change from the first to the last attempt, mean", LENGTH_COLUMNS, tuple(_length_lines(episodes))),
    )
    return Result("levels", target.title, grids, (), (draw_levels(chart),))


LENGTH_COLUMNS = tuple(Column(key, key, scale=1, sign=True) for key in LENGTHS)


def _length_lines(episodes: dict[str, dict[int, list[Episode]]]) -> list[GridRow]:
    lines = []
    for key, runs in episodes.items():
        cells = {name: over_seeds([_change(found, size) for found in runs.values()]) for name, size in LENGTHS.items()}
        problems = len(next(iter(runs.values()), []))
        lines.append(GridRow(ROWS[key].label, cells if runs else {}, len(runs), problems))
    return lines


def _change(episodes: Sequence[Episode], size: Callable[[str], int]) -> Estimate:
    return bootstrap_mean(np.array([size(e.attempts[-1].text) - size(e.attempts[0].text) for e in episodes]))


def _line(
    key: str, cells: dict[str, Estimate], summaries: Sequence[EvalSummary], paper: dict[str, float] | None = None
) -> GridRow:
    problems = summaries[0].n_problems if summaries else 0
    note = "" if cells else "not measured"
    return GridRow(ROWS[key].label, cells, len(summaries), problems, paper or {}, note)


def judged_by_seed(target: str, of: Callable[[str, str], BySeed]) -> tuple[Verdict, ...]:
    """Claims about numbers that have one value per seed."""
    out = []
    for claim in TARGETS[target].claims:
        sides = [None if key is None else of(key, claim.quantity) for key in (claim.above, claim.below)]
        out.append(judge(claim, by_seed_difference(*sides)))
    return tuple(out)
