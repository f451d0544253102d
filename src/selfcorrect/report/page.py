"""What the page says about each run, as plain values without HTML."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise, zip_longest
from pathlib import Path

from selfcorrect.errors import DataError
from selfcorrect.measuring.compare import Row, compare_runs
from selfcorrect.measuring.intervals import Estimate, not_measured
from selfcorrect.measuring.labels import CONTROLS, METHODS, model_and_control
from selfcorrect.measuring.metrics import VerdictSummary, by_level
from selfcorrect.measuring.test_time import ScalingCurves
from selfcorrect.records.lines import AlarmRecord, StepRecord
from selfcorrect.report.charts import Curves, Flow, Histogram, Levels, Line, Number, axis_range
from selfcorrect.report.reading import MAIN, RunData
from selfcorrect.types import Verdict

NAMES = {"base": "base", "final": "trained"}
STAGES = {"stage1": "Stage I", "stage2": "Stage II"}
MOST_LEVELS = 30


@dataclass(frozen=True, slots=True)
class Result:
    """One row of the table of results."""

    name: str
    n: str
    accuracies: tuple[str, ...]
    delta: str
    i_to_c: str
    c_to_i: str
    changed: str
    copied: str


@dataclass(frozen=True, slots=True)
class Alarm:
    name: str
    steps: str
    message: str
    """Message of the latest such alarm."""


@dataclass(frozen=True, slots=True)
class RunPage:
    """Everything about one run except its episodes."""

    name: str
    title: str
    state: str
    attempts: int
    results: tuple[Result, ...]
    curves: tuple[Curves, ...]
    flows: tuple[Flow, ...]
    edits: Histogram | None
    levels: Levels | None
    scaling: tuple[Curves, ...]
    alarms: tuple[Alarm, ...]
    facts: tuple[tuple[str, str], ...]
    """Facts about the run: what was run, with which versions, and for how long."""
    settings: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class Page:
    runs: tuple[RunPage, ...]
    methods: tuple[Row, ...]
    methods_note: str
    """Why there are no rows, if there are none."""


@dataclass(frozen=True, slots=True)
class Metric:
    """A number that every step records, and the title and unit of its chart."""

    title: str
    unit: str
    values: Callable[[StepRecord], Sequence[Number]]
    """One value per line of the chart."""
    labels: tuple[str, ...] = ()
    """Labels of the lines; empty if the lines are the attempts."""


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


VERDICT_CURVES = (
    Metric(
        "Verdicts of the model on its own answers",
        "share",
        lambda r: (r.verdicts.accuracy, r.verdicts.balanced, r.verdicts.says_wrong) if r.verdicts else (None,) * 3,
        ("agree with the verifier", "balanced accuracy", "ask for a revision"),
    ),
)
"""Charts of runs with verdict turns."""


def build_page(runs: Sequence[RunData], paths: Sequence[Path]) -> Page:
    """The page of some runs, in the given order."""
    ranges = {}
    for metric in (*CURVES, *VERDICT_CURVES):
        values = [v for run in runs for record in run.steps for v in metric.values(record)]
        ranges[metric.title] = axis_range(values, share=metric.unit == "share")
    methods: tuple[Row, ...] = ()
    note = ""
    if unfinished := [run.name for run in runs if any(name not in run.held_out for name in MAIN)]:
        note = (
            "Methods are compared once every run has its base and its final evaluation; still missing in: "
            f"{', '.join(unfinished)}."
        )
    else:
        try:
            methods = tuple(replace(row, name=METHODS.get(row.name, row.name)) for row in compare_runs(paths))
        except DataError as error:
            note = f"Methods are not compared: {error}."
    return Page(tuple(_run_page(run, ranges) for run in runs), methods, note)


def _run_page(run: RunData, ranges: dict[str, tuple[float, float]]) -> RunPage:
    c = run.config
    order = [f"{main}{control}" for main in MAIN for control in ("", *(f"-{name}" for name in CONTROLS))]
    names = [n for n in order if n in MAIN or n in run.summaries] + sorted(run.summaries.keys() - set(order))
    attempts = max((len(s.attempts) for s in run.summaries.values()), default=0) or c.eval.attempts
    edits = tuple(
        (NAMES[name], run.summaries[name].revisions[-1].edit_histogram)
        for name in MAIN
        if name in run.summaries and run.summaries[name].revisions
    )
    shown = (*CURVES, *(VERDICT_CURVES if any(r.verdicts for r in run.steps) else ()))
    settings = []
    for section, values in c.model_dump().items():
        named = {f"{section}.{key}": v for key, v in values.items()} if isinstance(values, dict) else {section: values}
        settings += [(name, json.dumps(value, ensure_ascii=False)) for name, value in named.items()]
    return RunPage(
        name=run.name,
        title=f"{METHODS.get(c.method.name, c.method.name)}, {c.model.name}, {c.task.name}, seed {c.seed}",
        state=_state(run),
        attempts=attempts,
        results=tuple(_result(name, run, attempts) for name in names),
        curves=tuple(_curves(metric, run, ranges[metric.title]) for metric in shown if run.steps),
        flows=tuple(filter(None, (_flow(name, run) for name in MAIN))),
        edits=Histogram("Edit-distance ratio between the last two attempts", edits) if edits else None,
        levels=_levels(run),
        scaling=scaling_charts(run.scaling) if run.scaling is not None else (),
        alarms=_alarms(run),
        facts=_facts(run),
        settings=tuple(settings),
    )


def _state(run: RunData) -> str:
    total = run.config.train.steps
    at = f"step {run.steps[-1].step:,} of {total:,}" if run.steps else f"no step of {total:,} done yet"
    if run.state != "unfinished":
        return {
            "begun": "Started; nothing measured yet",
            "interrupted": f"Interrupted at {at}",
            "finished": f"Finished: {at}",
        }[run.state]
    age = "at an unknown time"
    if run.age_s is not None:
        units = (("d", 86_400), ("h", 3_600), ("min", 60), ("s", 1))
        unit, size = next((u for u in units if run.age_s >= u[1]), ("s", 1))
        age = f"{max(run.age_s, 0) / size:.0f} {unit} before this page was made"
    return f"Not finished: {at}; last record {age}"


def _result(name: str, run: RunData, attempts: int) -> Result:
    main, control = model_and_control(name)
    words = NAMES.get(main, main) + (f", {control}" if control else "")
    summary = run.summaries.get(name)
    if summary is None:
        return Result(words, "n/a", ("n/a",) * attempts, *["n/a"] * 5)
    if name == "final":
        words += f" (step {run.evals[name].step:,})"
    accuracies, last = summary.texts(attempts)
    return Result(words, f"{summary.n_problems:,}", tuple(accuracies), *last)


def _curves(metric: Metric, run: RunData, limits: tuple[float, float]) -> Curves:
    lines = [
        Line(metric.labels[i] if metric.labels else f"attempt {i + 1}", i, column)
        for i, column in enumerate(zip_longest(*map(metric.values, run.steps)))
    ]
    marks: list[tuple[float, str]] = []
    for before, after in pairwise(run.steps):
        if before.stage != after.stage:
            marks.append((before.step + 0.5, f"{STAGES.get(after.stage, after.stage)} begins"))
    if run.kept_step is not None:
        marks.append((run.kept_step, "kept" if run.state == "finished" else "best so far"))
    steps = tuple(r.step for r in run.steps)
    return Curves(metric.title, metric.unit, steps, tuple(lines), *limits, tuple(marks))


def _flow(name: str, run: RunData) -> Flow | None:
    if name not in run.held_out:
        return None
    usable, failed = [], 0
    for episode in run.held_out[name].bare:
        graded = [a for a in episode.answers if a.grade is not None]
        if any(a.grade is not None and a.grade.verdict is Verdict.ERROR for a in graded):
            failed += 1
        elif len(graded) > 1:
            usable.append([a.correct for a in graded])
    if not usable:
        return None
    counts = []
    for k in range(len(usable[0]) - 1):
        seen = Counter((v[k], v[k + 1]) for v in usable)
        counts.append((seen[True, True], seen[True, False], seen[False, True], seen[False, False]))
    return Flow(f"Right and wrong, {NAMES[name]}", tuple(counts), failed)


def _levels(run: RunData) -> Levels | None:
    tables = {name: by_level(run.held_out[name].bare) for name in MAIN if name in run.held_out}
    found = dict.fromkeys(level for table in tables.values() for level in table)
    if not 2 <= len(found) <= MOST_LEVELS:
        return None
    attempts = max(len(row) for table in tables.values() for row in table.values())
    labels = tuple(f"{NAMES[name]}, attempt {k + 1}" for name in tables for k in range(attempts))
    rows = []
    for level in found:
        cells: list[Estimate] = []
        for table in tables.values():
            known = table.get(level, ())
            cells += [*known, *(not_measured() for _ in range(attempts - len(known)))]
        rows.append((level or "no level", tuple(cells)))
    return Levels("Percent correct per level, 95 % intervals", labels, tuple(rows))


def scaling_charts(curves: ScalingCurves) -> tuple[Curves, ...]:
    """Accuracy by number of responses, and by number of attempts in a row, as far as they were measured."""
    found: list[tuple[str, str, Sequence[int], dict[str, tuple[int, Sequence[Estimate]]]]] = []
    if curves.votes is not None:
        rows = curves.votes.rows
        lines = {
            "K parallel, majority vote": (0, [row.parallel for row in rows]),
            "K/2 corrected once, majority vote": (1, [row.corrected for row in rows]),
        }
        title = f"Accuracy by sampled responses, T = {curves.votes.settings.get('temperature', 'n/a')}"
        found.append((title, "response", [row.responses for row in rows], dict(lines)))
    if curves.tokens is not None:
        by_tokens = curves.tokens.rows
        lines = {
            "majority vote": (0, [row.parallel for row in by_tokens]),
            "corrected, majority vote": (1, [row.corrected for row in by_tokens]),
            "corrected where the verdict asks, majority vote": (2, [row.gated for row in by_tokens]),
            "best by the verdict": (3, [row.best for row in by_tokens]),
        }
        title = f"Accuracy by sampled tokens, T = {curves.tokens.settings.get('temperature', 'n/a')}"
        found.append((title, "token", [round(row.tokens) for row in by_tokens], dict(lines)))
    if curves.attempts is not None:
        values = curves.attempts.accuracy_K
        counts = range(1, len(values) + 1)
        found.append(("Accuracy by attempts in a row", "attempt", counts, {"accuracy": (1, values)}))
    charts = []
    for title, axis, numbers, by_label in found:
        drawn = []
        for label, (style, estimates) in by_label.items():
            points = tuple(e.value if e.n else None for e in estimates)
            spread = tuple((e.low, e.high) if e.n else (None, None) for e in estimates)
            drawn.append(Line(label, style, points, spread))
        limits = axis_range([high for line in drawn for _, high in line.spread], share=True)
        doubling = axis in ("response", "token")
        charts.append(Curves(title, "share", tuple(numbers), tuple(drawn), *limits, axis=axis, doubling=doubling))
    return tuple(charts)


def verdict_words(v: VerdictSummary) -> str:
    """The numbers of the verdict turns in one line."""
    return (
        f"{v.accuracy.text()} % agree with the verifier, balanced accuracy {v.balanced.text()} %, {v.says_wrong.text()} % ask for "
        f"a revision, {v.tokens_saved.text(scale=1, sign=True)} tokens saved per episode"
    )


def _alarms(run: RunData) -> tuple[Alarm, ...]:
    by_name: dict[str, list[AlarmRecord]] = {}
    for record in run.alarms:
        by_name.setdefault(record.name, []).append(record)
    alarms = []
    for name, records in by_name.items():
        first, last = records[0], records[-1]
        steps = f"{len(records)} times, from step {first.step:,} to {last.step:,}"
        alarms.append(Alarm(name, steps if len(records) > 1 else f"at step {first.step:,}", last.message))
    return tuple(alarms)


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
    for name in MAIN:
        if name in run.summaries and (v := run.summaries[name].verdicts) is not None:
            facts.append((f"verdicts: {NAMES[name]}", verdict_words(v)))
    if run.scaling is not None:
        step = "" if run.scaling.step is None else f", step {run.scaling.step:,}"
        facts.append((f"scaling{step}", run.scaling.command))
    if run.end is not None:
        facts.append(("training", f"{run.end.train_seconds:,.0f} s, {run.end.sampled_tokens:,} tokens sampled"))
    return tuple(facts)
