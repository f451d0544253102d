"""Charts as values, and as SVG with a sentence and a table that say the same. Colours and dashes are in report.css."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from markupsafe import Markup

from selfcorrect.measuring.intervals import Estimate
from selfcorrect.report.text import visible

WIDTH, HEIGHT = 360, 220
LEFT, RIGHT, TOP, BOTTOM = 46, 10, 28, 34
MARK_ROWS_Y = (TOP - 5, TOP - 17)
"""Base lines for what marks say: the second where the first has no room."""
LETTER = 6.0
"""Width of an average letter, on the wide side."""
LONGEST_NAME = 24
"""Letters of a row's name; longer ones are cut."""
MOST_POINTS = 400
"""Drawn per line; longer ones are thinned evenly, their last point kept."""
MOST_ROWS = 20
SMOOTHED_STEPS = 10
"""Running mean drawn over the raw line, where a line has at least three times as many points."""

Number = float | None
Form = Callable[[Number], str]


@dataclass(frozen=True, slots=True)
class Line:
    """One line of a chart over steps."""

    label: str
    style: int
    """Which colour and dash."""
    values: tuple[Number, ...]
    """None (or not finite) is a gap."""
    spread: tuple[tuple[Number, Number], ...] = ()
    """Lower and upper end of each value's interval; empty where the values have none."""


@dataclass(frozen=True, slots=True)
class Curves:
    """Lines over optimiser steps, or over another count."""

    title: str
    unit: str
    """``share`` prints as percent; ``nats`` and ``tokens`` as numbers."""
    steps: tuple[int, ...]
    lines: tuple[Line, ...]
    low: float
    high: float
    """Of the vertical axis; equal for all runs on a page."""
    marks: tuple[tuple[float, str], ...] = ()
    """Steps marked by an upright line, each with what it says."""
    axis: str = "step"
    """What ``steps`` count; where it is another thing, every one of them has its tick."""
    doubling: bool = False
    """Steps at equal distances for equal ratios."""


@dataclass(frozen=True, slots=True)
class Flow:
    """Episodes from right or wrong at one attempt to right or wrong at the next."""

    title: str
    counts: tuple[tuple[int, int, int, int], ...]
    """Per gap between attempts: right to right, right to wrong, wrong to right, wrong to wrong."""
    n_errors: int
    """Episodes left out because the verifier failed."""


@dataclass(frozen=True, slots=True)
class Histogram:
    """Shares of episodes in equal bins over [0, 1]."""

    title: str
    series: tuple[tuple[str, tuple[int, ...]], ...]
    """Label and episodes per bin."""


@dataclass(frozen=True, slots=True)
class Levels:
    """Shares per difficulty level, or per other kind of row."""

    title: str
    labels: tuple[str, ...]
    """Of the estimates in a row."""
    rows: tuple[tuple[str, tuple[Estimate, ...]], ...]
    head: str = "level"
    """What the rows are."""


@dataclass(frozen=True, slots=True)
class Drawing:
    """A chart ready for the page: picture, sentence, and the numbers as a table."""

    title: str
    svg: Markup
    summary: str
    swatch: Literal["line", "dot", "bar"]
    legend: tuple[tuple[int, str], ...]
    """Style and label."""
    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def draw_curves(chart: Curves) -> Drawing:
    """Lines over steps: raw values thin, their running mean thick where there are many."""
    form = _FORMS[chart.unit]
    first, last = (chart.steps[0], chart.steps[-1]) if chart.steps else (0, 1)
    place: Callable[[float], float] = math.log2 if chart.doubling else float
    along = _scale(place(first), place(max(last, first + 1)), LEFT + (6 if chart.axis != "step" else 0), WIDTH - RIGHT)

    def x(step: float) -> float:
        return along(place(step))

    y = _scale(chart.low, chart.high, HEIGHT - BOTTOM, TOP)
    ticks = () if chart.axis == "step" else chart.steps
    shapes = [_y_axis(chart.low, chart.high, y, form), _x_axis(first, last, x, chart.axis, ticks=ticks)]
    shapes += _uprights([(x(step), label) for step, label in chart.marks])
    for i, line in enumerate(chart.lines):
        shapes += _whiskers([x(step) + 4 * i for step in chart.steps], line, y)
        smooth = _running_mean(line.values)
        shapes.append(_path(chart.steps, line.values, x, y, f"line s{line.style}{' raw' if smooth else ''}"))
        if smooth:
            shapes.append(_path(chart.steps, smooth, x, y, f"line s{line.style}"))
    table = [(str(chart.steps[i]), *(_cell(line, i, form) for line in chart.lines)) for i in _some(len(chart.steps))]
    told = [f"{line.label} from {form(_at(line.values, 0))} to {form(_at(line.values, -1))}" for line in chart.lines]
    told_of = f"{chart.title}, {chart.axis}s {first} to {last}"
    summary = f"{told_of}: {'; '.join(told)}." if chart.steps else f"{chart.title}: n/a."
    if chart.marks:
        summary += " Marked: " + ", ".join(f"{label} (step {step:g})" for step, label in chart.marks) + "."
    return Drawing(
        chart.title,
        _svg(shapes, HEIGHT, summary),
        summary,
        "line",
        tuple((line.style, line.label) for line in chart.lines),
        (chart.axis, *(line.label for line in chart.lines)),
        tuple(table),
    )


def draw_flow(chart: Flow) -> Drawing:
    """A Sankey diagram of two states, right above wrong, one column per attempt."""
    total = sum(chart.counts[0])
    columns = len(chart.counts) + 1
    x = _scale(0, max(columns - 1, 1), 64, WIDTH - 78)
    tall = HEIGHT - TOP - 14
    gap = 8
    unit = (tall - gap) / max(total, 1)
    rights = [c[0] + c[1] for c in chart.counts] + [chart.counts[-1][0] + chart.counts[-1][2]]
    shapes: list[Markup] = []
    for k, (rr, rw, wr, ww) in enumerate(chart.counts):
        below_left, below_right = (TOP + rights[i] * unit + gap for i in (k, k + 1))
        bands = (
            (rr, TOP, TOP, "kept-right"),
            (ww, below_left + wr * unit, below_right + rw * unit, "kept-wrong"),
            (rw, TOP + rr * unit, below_right, "broken"),
            (wr, below_left, TOP + rr * unit, "fixed"),
        )
        shapes += [_band(x(k) + 6, x(k + 1) - 6, a, b, n * unit, f"band {name}") for n, a, b, name in bands if n]
    for k, right in enumerate(rights):
        shapes.append(_text(x(k), TOP - 6, f"attempt {k + 1}", "middle"))
        anchor, at = ("end", x(k) - 9) if k == 0 else ("start", x(k) + 9)
        for n, top, name in ((right, TOP, "right"), (total - right, TOP + right * unit + gap, "wrong")):
            if n:
                shapes.append(_rect(x(k) - 6, top, 12, n * unit, f"node {name}"))
                middle = top + n * unit / 2
                shapes.append(_text(at, middle - 2, name, anchor))
                shapes.append(_text(at, middle + 11, f"{n:,}", anchor))
    rows = []
    for k, counts in enumerate(chart.counts):
        for name, n in zip(("kept right", "broken", "fixed", "kept wrong"), counts, strict=True):
            rows.append((f"{k + 1} to {k + 2}", name, f"{n:,}", _percent(n / total if total else None)))
    told = [f"{row[1]} {row[2]} ({row[3]})" for row in rows[-4:]]
    summary = f"{chart.title}, {total:,} episodes: {', '.join(told)}."
    if chart.n_errors:
        summary += f" Left out because the verifier failed: {chart.n_errors:,}."
    return Drawing(
        chart.title,
        _svg(shapes, HEIGHT, summary),
        summary,
        "bar",
        (),
        ("attempts", "what happened", "episodes", "share"),
        tuple(rows),
    )


def draw_histogram(chart: Histogram) -> Drawing:
    """Bars side by side, as shares of each series, so that sets of different size compare."""
    bins = max((len(counts) for _, counts in chart.series), default=1)
    shares = [[n / max(sum(counts), 1) for n in counts] for _, counts in chart.series]
    high = _ceiling(max((s for row in shares for s in row), default=1.0))
    x = _scale(0, 1, LEFT, WIDTH - RIGHT)
    y = _scale(0, high, HEIGHT - BOTTOM, TOP)
    shapes = [_y_axis(0, high, y, _percent), _x_axis(0, 1, x, "edit-distance ratio")]
    width = (WIDTH - LEFT - RIGHT) / bins / (len(shares) + 0.4)
    for s, row in enumerate(shares):
        for i, share in enumerate(row):
            if share:
                height = max(y(0) - y(share), 0.5)
                shapes.append(_rect(x(i / bins) + (s + 0.2) * width, y(0) - height, width, height, f"bar s{s}"))
    rows = [
        (f"{i / bins:.2f} to {(i + 1) / bins:.2f}", *(f"{counts[i]:,}" for _, counts in chart.series))
        for i in range(bins)
        if any(counts[i] for _, counts in chart.series)
    ]
    told = [
        f"{label}: {_percent(row[0])} in the lowest bin" for (label, _), row in zip(chart.series, shares, strict=True)
    ]
    summary = f"{chart.title}. {'; '.join(told)}."
    return Drawing(
        chart.title,
        _svg(shapes, HEIGHT, summary),
        summary,
        "bar",
        tuple((i, f"{label} ({sum(counts):,} episodes)") for i, (label, counts) in enumerate(chart.series)),
        ("edit-distance ratio", *(label for label, _ in chart.series)),
        tuple(rows),
    )


def draw_levels(chart: Levels) -> Drawing:
    """One band per level, one dot with its interval per estimate."""
    each = 14
    pitch = each * len(chart.labels) + 14
    height = TOP + pitch * len(chart.rows) + BOTTOM
    longest = min(max((len(name) for name, _ in chart.rows), default=0), LONGEST_NAME)
    left = max(96.0, longest * LETTER + 18)
    x = _scale(0, 1, left, WIDTH - RIGHT)
    shapes = [_x_axis(0, 1, x, "correct", form=_percent, bottom=height - BOTTOM, grid_to=TOP)]
    for r, (level, estimates) in enumerate(chart.rows):
        top = TOP + r * pitch
        shapes.append(_segment(8, top, WIDTH - RIGHT, top, "grid"))
        short = level if len(level) <= LONGEST_NAME else level[: LONGEST_NAME - 1] + "…"
        shapes.append(_text(left - 6, top + pitch / 2 + 4, short, "end"))
        for e, estimate in enumerate(estimates):
            if estimate.n == 0:
                continue
            at = top + 14 + e * each
            if estimate.has_interval:
                shapes.append(_segment(x(estimate.low), at, x(estimate.high), at, f"line s{e} solid"))
            shapes.append(
                Markup('<circle class="dot s{}" cx="{:.1f}" cy="{:.1f}" r="4"/>').format(e, x(estimate.value), at)
            )
    rows = [(level, *(e.text() for e in row), str(max(e.n for e in row))) for level, row in chart.rows]
    summary = f"{chart.title}: " + "; ".join(
        f"{level}: " + ", ".join(f"{label} {e.text()}" for label, e in zip(chart.labels, row, strict=True))
        for level, row in chart.rows
    )
    return Drawing(
        chart.title,
        _svg(shapes, height, summary + "."),
        summary + ".",
        "dot",
        tuple(enumerate(chart.labels)),
        (chart.head, *chart.labels, "n"),
        tuple(rows),
    )


# --- parts ---------------------------------------------------------------------------------------------------------


def _percent(value: Number) -> str:
    return "n/a" if value is None or not math.isfinite(value) else f"{100 * value:z.1f} %"


def _plain(value: Number) -> str:
    return "n/a" if value is None or not math.isfinite(value) else f"{value:z.3g}"


_FORMS: dict[str, Form] = {"share": _percent, "nats": _plain, "tokens": _plain}


def _scale(low: float, high: float, start: float, stop: float) -> Callable[[float], float]:
    return lambda v: start + (v - low) / (high - low) * (stop - start)


def _ceiling(value: float) -> float:
    """The next of 1, 2, 5 times a power of ten."""
    if value <= 0:
        return 1.0
    power = 10.0 ** math.floor(math.log10(value))
    return next(m * power for m in (1, 2, 5, 10) if m * power >= value * (1 - 1e-9))


def axis_range(values: Sequence[Number], *, share: bool) -> tuple[float, float]:
    """Axis from 0 (or below, where values are) to a round number above all; shares never beyond 1."""
    known = [v for v in values if v is not None and math.isfinite(v)]
    high = _ceiling(max(known, default=0.0))
    low = -_ceiling(-min(known)) if known and min(known) < -high / 50 else 0.0  # a little noise below 0 needs no room
    return low, (1.0 if share and high > 0.5 else high)


def _some(n: int, most: int = MOST_ROWS) -> list[int]:
    if n <= most:
        return list(range(n))
    return sorted({round(i * (n - 1) / (most - 1)) for i in range(most)})


def _at(values: Sequence[Number], index: int) -> Number:
    return values[index] if values else None


def _running_mean(values: Sequence[Number]) -> list[Number]:
    """Mean of the latest values; empty where the line is short or has gaps."""
    known = [v for v in values if v is not None and math.isfinite(v)]
    if len(known) < max(len(values), 3 * SMOOTHED_STEPS):
        return []
    windows = (known[max(0, i + 1 - SMOOTHED_STEPS) : i + 1] for i in range(len(known)))
    return [sum(w) / len(w) for w in windows]


def _path(
    steps: Sequence[int],
    values: Sequence[Number],
    x: Callable[[float], float],
    y: Callable[[float], float],
    style: str,
) -> Markup:
    parts, joined = [], False
    for i in _some(len(steps), MOST_POINTS):
        value = values[i]
        if value is None or not math.isfinite(value):
            joined = False
            continue
        parts.append(f"{'L' if joined else 'M'}{x(steps[i]):.1f} {y(value):.1f}")
        joined = True
    if len(parts) == 1:
        parts.append("h0.1")  # a lone step is a dot, through round line ends
    return Markup('<path class="{}" d="{}"/>').format(style, "".join(parts))


def _known(value: Number) -> bool:
    return value is not None and math.isfinite(value)


def _cell(line: Line, i: int, form: Form) -> str:
    """A value, with its interval where it has one."""
    if not line.spread or not all(map(_known, line.spread[i])):
        return form(line.values[i])
    low, high = (form(end).removesuffix(" %") for end in line.spread[i])
    return f"{form(line.values[i]).removesuffix(' %')} [{low}, {high}]"


def _whiskers(places: Sequence[float], line: Line, y: Callable[[float], float]) -> list[Markup]:
    """An upright stroke over every interval."""
    ends = [(at, *pair) for at, pair in zip(places, line.spread, strict=False) if all(map(_known, pair))]
    return [_segment(at, y(low or 0), at, y(high or 0), f"line s{line.style} solid") for at, low, high in ends]


def _y_axis(low: float, high: float, y: Callable[[float], float], form: Form) -> Markup:
    scale, sign = (100, " %") if form is _percent else (1, "")
    step = _ceiling((high - low) * scale / 5)
    ticks = [i * step for i in range(math.ceil(low * scale / step - 1e-9), math.floor(high * scale / step + 1e-9) + 1)]
    digits = max(0, -math.floor(math.log10(step) + 1e-9))
    lines = [_segment(LEFT, y(t / scale), WIDTH - RIGHT, y(t / scale), "grid") for t in ticks]
    words = [_text(LEFT - 5, y(t / scale) + 4, f"{t:z.{digits}f}{sign}", "end") for t in ticks]
    return Markup("").join(lines + words)


def _x_axis(
    low: float,
    high: float,
    x: Callable[[float], float],
    name: str,
    *,
    form: Form = _plain,
    bottom: float = HEIGHT - BOTTOM,
    grid_to: float | None = None,
    ticks: Sequence[float] = (),
) -> Markup:
    whole = form is _plain and high - low > 1
    if not ticks:
        ticks = [low, low + (high - low) // 2, high] if whole else [low + (high - low) * i / 4 for i in range(5)]
    parts = [_segment(x(low), bottom, x(high), bottom, "axis")]
    for t in dict.fromkeys(ticks):
        if grid_to is not None:
            parts.append(_segment(x(t), bottom, x(t), grid_to, "grid"))
        words = f"{t:.0f}" if whole else form(t).removesuffix(".0 %") + (" %" if form is _percent else "")
        anchor = "end" if t == high else "middle"
        parts.append(_text(x(t), bottom + 15, words, anchor))
    parts.append(_text((x(low) + x(high)) / 2, bottom + 29, name, "middle"))
    return Markup("").join(parts)


def _uprights(marks: Sequence[tuple[float, str]]) -> list[Markup]:
    """Upright lines with their words, which do not write over each other as long as two rows suffice."""
    out, ends = [], [0.0] * len(MARK_ROWS_Y)
    for at, label in marks:
        width = LETTER * len(label)
        begins = at if at + width < WIDTH else at - width
        row = next((i for i, end in enumerate(ends) if begins > end), len(ends) - 1)
        ends[row] = begins + width + LETTER
        anchor = "start" if begins == at else "end"
        out.append(_segment(at, MARK_ROWS_Y[row], at, HEIGHT - BOTTOM, "mark"))
        out.append(_text(at + (3 if anchor == "start" else -3), MARK_ROWS_Y[row], label, anchor, "mark-label"))
    return out


def _segment(x1: float, y1: float, x2: float, y2: float, style: str) -> Markup:
    return Markup('<line class="{}" x1="{:.1f}" y1="{:.1f}" x2="{:.1f}" y2="{:.1f}"/>').format(style, x1, y1, x2, y2)


def _rect(x: float, y: float, width: float, height: float, style: str) -> Markup:
    form = '<rect class="{}" x="{:.1f}" y="{:.1f}" width="{:.1f}" height="{:.2f}"/>'
    return Markup(form).format(style, x, y, width, height)


def _band(x1: float, x2: float, y1: float, y2: float, thick: float, style: str) -> Markup:
    middle = (x1 + x2) / 2
    d = (
        f"M{x1:.1f} {y1:.2f}C{middle:.1f} {y1:.2f} {middle:.1f} {y2:.2f} {x2:.1f} {y2:.2f}v{thick:.2f}"
        f"C{middle:.1f} {y2 + thick:.2f} {middle:.1f} {y1 + thick:.2f} {x1:.1f} {y1 + thick:.2f}Z"
    )
    return Markup('<path class="{}" d="{}"/>').format(style, d)


def _text(x: float, y: float, words: str, anchor: str, style: str = "label") -> Markup:
    form = '<text class="{}" x="{:.1f}" y="{:.1f}" text-anchor="{}">{}</text>'
    return Markup(form).format(style, x, y, anchor, visible(words))


def _svg(shapes: Sequence[Markup], height: float, summary: str) -> Markup:
    form = '<svg role="img" aria-label="{}" viewBox="0 0 {} {:.0f}" class="chart">{}</svg>'
    return Markup(form).format(visible(summary), WIDTH, height, Markup("").join(shapes))
