"""From runs to what a page says: plain values, without a tag of HTML in them."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from selfcorrect.errors import DataError
from selfcorrect.measuring.compare import Row, compare_runs
from selfcorrect.measuring.intervals import Estimate, not_measured
from selfcorrect.measuring.labels import CONTROLS, METHODS, model_and_control
from selfcorrect.measuring.metrics import by_level
from selfcorrect.measuring.test_time import ScalingCurves
from selfcorrect.records.lines import StepRecord
from selfcorrect.report.charts import Curves, Flow, Histogram, Levels, Line, Number, axis_range
from selfcorrect.report.reading import MAIN, RunData
from selfcorrect.types import Episode, Verdict

NAMES = {
    "base": "base",
    "final": "trained",
}
STAGES = {"stage1": "Stage I", "stage2": "Stage II"}
MOST_LEVELS = 30


@dataclass(frozen=True, slots=True)
class Result:
    """One row of the table of results."""

    name: str
    measured: bool
    accuracies: tuple[str, ...]
    delta: str
    i_to_c: str
    c_to_i: str
    changed: str
    copied: str
    n: str


@dataclass(frozen=True, slots=True)
class Results:
    attempts: int
    rows: tuple[Result, ...]


@dataclass(frozen=True, slots=True)
class Alarm:
    name: str
    steps: str
    message: str
    """The latest."""


@dataclass(frozen=True, slots=True)
class RunPage:
    """Everything about one run but its episodes."""

    name: str
    title: str
    state: str
    results: Results
    curves: tuple[Curves, ...]
    flows: tuple[Flow, ...]
    edits: Histogram | None
    levels: Levels | None
    scaling: tuple[Curves, ...]
    alarms: tuple[Alarm, ...]
    facts: tuple[tuple[str, str], ...]
    """What was run, where and with what."""
    settings: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class MethodRow:
    """One method over its seeds."""

    name: str
    t1: str
    last: str
    delta: str
    over_base: str
    seeds: int
    problems: int


@dataclass(frozen=True, slots=True)
class Page:
    runs: tuple[RunPage, ...]
    methods: tuple[MethodRow, ...]
    methods_note: str
    """Why there is no row per method, where there is none."""


@dataclass(frozen=True, slots=True)
class Metric:
    """A number that every step records, and how its chart looks."""

    title: str
    unit: str
    of: Callable[[StepRecord], Sequence[Number]]
    """One value per line; per attempt unless ``labels`` says otherwise."""
    labels: tuple[str, ...] = ()


CURVES = (
    Metric("Reward: share of correct answers", "share", lambda r: r.reward),
    Metric("KL to the base, nats per attempt", "nats", lambda r: r.kl),
    Metric(
        "Answers changed in the last revision",
        "share",
        lambda r: (r.answer_change, r.fixed, r.broken),
        ("changed", "fixed", "broken"),
    ),
    Metric("Answer length, tokens", "tokens", lambda r: r.answer_tokens),
    Metric("Cut by the token cap before an answer", "share", lambda r: r.truncated),
)


def build_page(runs: Sequence[RunData], paths: Sequence[Path]) -> Page:
    """The page of some runs, in their order."""
    methods, note = _methods(runs, paths)
    ranges = {m.title: _range(m, runs) for m in CURVES}
    return Page(tuple(_run_page(run, ranges) for run in runs), methods, note)


def _run_page(run: RunData, ranges: dict[str, tuple[float, float]]) -> RunPage:
    c = run.config
    return RunPage(
        name=run.name,
        title=f"{METHODS.get(c.method.name, c.method.name)}, {c.model.name}, {c.task.name}, seed {c.seed}",
        state=_state(run),
        results=_results(run),
        curves=tuple(_curves(metric, run, ranges[metric.title]) for metric in CURVES if run.steps),
        flows=tuple(filter(None, (_flow(name, run) for name in MAIN))),
        edits=_edits(run),
        levels=_levels(run),
        scaling=scaling_charts(run.scaling) if run.scaling is not None else (),
        alarms=_alarms(run),
        facts=_facts(run),
        settings=_settings(run),
    )


def _state(run: RunData) -> str:
    total = run.config.train.steps
    at = f"step {run.steps[-1].step:,} of {total:,}" if run.steps else f"no step of {total:,} done yet"
    since = "n/a" if run.age_s is None else _ago(run.age_s)
    return {
        "begun": "Begun; nothing measured yet",
        "unfinished": f"Not finished: {at}; last record {since} before this page was made",
        "interrupted": f"Interrupted at {at}",
        "finished": f"Finished: {at}",
    }[run.state]


def _ago(seconds: float) -> str:
    for unit, size in (("d", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= size:
            return f"{seconds / size:.0f} {unit}"
    return f"{max(seconds, 0):.0f} s"


def _results(run: RunData) -> Results:
    order = [f"{main}{control}" for main in MAIN for control in ("", *(f"-{c}" for c in CONTROLS))]
    names = [n for n in order if n in MAIN or n in run.summaries] + sorted(run.summaries.keys() - set(order))
    attempts = max((len(s.attempts) for s in run.summaries.values()), default=0) or run.config.eval.attempts
    return Results(attempts, tuple(_result(name, run, attempts) for name in names))


def _result(name: str, run: RunData, attempts: int) -> Result:
    summary = run.summaries.get(name)
    main, control = model_and_control(name)
    words = NAMES.get(main, main) + (f": {control}" if control else "")
    if summary is None:
        return Result(words, False, ("n/a",) * attempts, "n/a", "n/a", "n/a", "n/a", "n/a", "n/a")
    if name == "final":
        words += f" (step {run.evals[name].step:,})"
    last = summary.revisions[-1] if summary.revisions else None
    i_to_c, c_to_i, changed, copied = (
        (e.text() for e in (last.i_to_c, last.c_to_i, last.answer_changed, last.copied)) if last else ("n/a",) * 4
    )
    return Result(
        name=words,
        measured=True,
        accuracies=tuple(summary.accuracy(k + 1).text() for k in range(attempts)),
        delta=last.delta.text(sign=True) if last else "n/a",
        i_to_c=i_to_c,
        c_to_i=c_to_i,
        changed=changed,
        copied=copied,
        n=f"{summary.n_problems:,}",
    )


def _range(metric: Metric, runs: Sequence[RunData]) -> tuple[float, float]:
    values = [v for run in runs for record in run.steps for v in metric.of(record)]
    return axis_range(values, share=metric.unit == "share")


def _curves(metric: Metric, run: RunData, limits: tuple[float, float]) -> Curves:
    width = max(len(metric.of(record)) for record in run.steps)
    rows = [[*metric.of(record), *[None] * (width - len(metric.of(record)))] for record in run.steps]
    lines = []
    for i, column in enumerate(zip(*rows, strict=True)):
        label = metric.labels[i] if metric.labels else f"attempt {i + 1}"
        lines.append(Line(label, i, column))
    return Curves(metric.title, metric.unit, tuple(r.step for r in run.steps), tuple(lines), *limits, _marks(run))


def _marks(run: RunData) -> tuple[tuple[float, str], ...]:
    marks: list[tuple[float, str]] = [
        (before.step + 0.5, f"{STAGES.get(after.stage, after.stage)} begins")
        for before, after in pairwise(run.steps)
        if before.stage != after.stage
    ]
    if run.kept_step is not None:
        marks.append((run.kept_step, "kept" if run.state == "finished" else "best so far"))
    return tuple(marks)


def _flow(name: str, run: RunData) -> Flow | None:
    if name not in run.held_out:
        return None
    episodes = run.held_out[name].bare
    usable = [v for v in map(_correctness, episodes) if v is not None and len(v) > 1]
    if not usable:
        return None
    counts = []
    for k in range(len(usable[0]) - 1):
        seen = Counter((v[k], v[k + 1]) for v in usable)
        counts.append((seen[True, True], seen[True, False], seen[False, True], seen[False, False]))
    return Flow(NAMES[name], tuple(counts), sum(_correctness(e) is None for e in episodes))


def _correctness(episode: Episode) -> tuple[bool, ...] | None:
    graded = [a for a in episode.attempts if a.grade is not None]
    failed = any(a.grade is not None and a.grade.verdict is Verdict.ERROR for a in graded)
    return None if failed else tuple(a.correct for a in graded)


def _edits(run: RunData) -> Histogram | None:
    series = [
        (NAMES[name], run.summaries[name].revisions[-1].edit_histogram)
        for name in MAIN
        if name in run.summaries and run.summaries[name].revisions
    ]
    return Histogram("Edit-distance ratio between the last two attempts", tuple(series)) if series else None


def _levels(run: RunData) -> Levels | None:
    tables = {name: by_level(run.held_out[name].bare) for name in MAIN if name in run.held_out}
    found = dict.fromkeys(level for table in tables.values() for level in table)
    if len(found) < 2 or len(found) > MOST_LEVELS:
        return None
    attempts = max(len(row) for table in tables.values() for row in table.values())
    labels, rows = [], []
    for name in tables:
        labels += [f"{NAMES[name]}, attempt {k + 1}" for k in range(attempts)]
    for level in found:
        cells: list[Estimate] = []
        for table in tables.values():
            known = table.get(level, ())
            cells += [*known, *(not_measured() for _ in range(attempts - len(known)))]
        rows.append((level or "no level", tuple(cells)))
    return Levels("Percent correct per level, 95 % intervals", tuple(labels), tuple(rows))


def scaling_charts(curves: ScalingCurves) -> tuple[Curves, ...]:
    """Accuracy by number of responses, and by number of attempts in a row; those that were measured."""
    charts = []
    if curves.votes is not None:
        rows = curves.votes.rows
        lines = (
            _estimates("K parallel, majority vote", 0, [row.parallel for row in rows]),
            _estimates("K/2 corrected once, majority vote", 1, [row.corrected for row in rows]),
        )
        title = f"Accuracy by sampled responses, T = {curves.votes.settings.get('temperature', 'n/a')}"
        charts.append(_accuracies(title, "response", [row.responses for row in rows], lines, doubling=True))
    if curves.attempts is not None:
        accuracies = curves.attempts.accuracy_K
        line = _estimates("accuracy", 1, accuracies)
        numbers = range(1, len(accuracies) + 1)
        charts.append(_accuracies("Accuracy by attempts in a row", "attempt", numbers, (line,), doubling=False))
    return tuple(charts)


def _estimates(label: str, style: int, estimates: Sequence[Estimate]) -> Line:
    values = tuple(e.value if e.n else None for e in estimates)
    return Line(label, style, values, tuple((e.low, e.high) if e.n else (None, None) for e in estimates))


def _accuracies(title: str, axis: str, steps: Sequence[int], lines: tuple[Line, ...], *, doubling: bool) -> Curves:
    limits = axis_range([high for line in lines for _, high in line.spread], share=True)
    return Curves(title, "share", tuple(steps), lines, *limits, axis=axis, doubling=doubling)


def _alarms(run: RunData) -> tuple[Alarm, ...]:
    by_name: dict[str, list[tuple[int, str]]] = {}
    for record in run.alarms:
        by_name.setdefault(record.name, []).append((record.step, record.message))
    return tuple(Alarm(name, _step_list([s for s, _ in rang]), rang[-1][1]) for name, rang in by_name.items())


def _step_list(steps: Sequence[int]) -> str:
    if len(steps) == 1:
        return f"at step {steps[0]:,}"
    return f"{len(steps)} times, from step {steps[0]:,} to {steps[-1]:,}"


def _facts(run: RunData) -> tuple[tuple[str, str], ...]:
    facts = [("seed", str(run.config.seed))]
    for start in run.starts:
        again = "" if start.resumed_from_step is None else f", resumed from step {start.resumed_from_step:,}"
        facts.append((f"command, {start.time}{again}", start.command))
    if run.starts:
        facts.append(("versions", ", ".join(f"{k} {v}" for k, v in run.starts[-1].versions.items())))
        facts.append(("engine", ", ".join(f"{k} {v}" for k, v in run.starts[-1].engine.items())))
    for name in MAIN:
        if name in run.evals:
            settings = ", ".join(f"{k} {v}" for k, v in run.evals[name].settings.items())
            facts.append((f"evaluation: {NAMES[name]}", f"{settings}; {run.evals[name].seconds:.0f} s"))
    if run.scaling is not None:
        step = "" if run.scaling.step is None else f", step {run.scaling.step:,}"
        facts.append((f"scaling{step}", run.scaling.command))
    if run.end is not None:
        facts.append(("training", f"{run.end.train_seconds:,.0f} s, {run.end.sampled_tokens:,} tokens sampled"))
    return tuple(facts)


def _settings(run: RunData) -> tuple[tuple[str, str], ...]:
    out = []
    for section, values in run.config.model_dump().items():
        if isinstance(values, dict):
            out += [(f"{section}.{key}", json.dumps(value, ensure_ascii=False)) for key, value in values.items()]
        else:
            out.append((section, json.dumps(values, ensure_ascii=False)))
    return tuple(out)


def _methods(runs: Sequence[RunData], paths: Sequence[Path]) -> tuple[tuple[MethodRow, ...], str]:
    unfinished = [run.name for run in runs if any(name not in run.held_out for name in MAIN)]
    if unfinished:
        return (), f"Methods are compared once base and final evaluation are there; not yet: {', '.join(unfinished)}."
    try:
        return tuple(_method(row) for row in compare_runs(paths)), ""
    except DataError as error:
        return (), f"Methods are not compared: {error}."


def _method(row: Row) -> MethodRow:
    return MethodRow(
        METHODS.get(row.name, row.name),
        row.t1.text(),
        row.t2.text(),
        row.delta.text(sign=True),
        "" if row.name == "base" else row.t2_over_base.text(sign=True),
        row.seeds,
        row.problems,
    )
