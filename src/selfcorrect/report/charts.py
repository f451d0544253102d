"""Draws charts as SVG, each with a sentence and a table of the same numbers. report.css has the colours and dashes."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, TypeGuard

from markupsafe import Markup

from selfcorrect.measuring.intervals import Estimate
from selfcorrect.report.text import visible

WIDTH, HEIGHT = 360, 220
LEFT, RIGHT, TOP, BOTTOM = 46, 10, 28, 34
MARK_ROWS_Y = (TOP - 5, TOP - 17)
"""Base lines for the labels of marks. Labels that do not fit on the first line go on the second."""
LETTER = 6.0
"""Width of an average letter, rounded up."""
LONGEST_NAME = 24
"""Most letters of a row's name; longer names are cut."""
MOST_POINTS = 400
"""Points drawn per line. Longer lines are thinned evenly and keep their last point."""
MOST_ROWS = 20
"""Most rows of the table below a chart over steps."""
SMOOTHED_STEPS = 10
"""Window of the running mean, which is drawn if a line has at least three times as many points."""

Number = float | None
Scale = Callable[[float], float]
"""Maps a value to a pixel position."""


@dataclass(frozen=True, slots=True)
class Line:
    """One line of a chart over steps."""

    label: str
    style: int
    """Number of its colour and dash."""
    values: tuple[Number, ...]
    """None and NaN are gaps."""
    spread: tuple[tuple[Number, Number], ...] = ()
    """Lower and upper end of each value's interval; empty if the values have none."""


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
    """``low`` and ``high`` end the vertical axis, which is the same for all runs on a page."""
    marks: tuple[tuple[float, str], ...] = ()
    """Steps marked by a vertical line, each with its label."""
    axis: str = "step"
    """What ``steps`` count. Unless it is steps, each of them has a tick."""
    doubling: bool = False
    """True for a logarithmic axis: equal distances for equal ratios."""


@dataclass(frozen=True, slots=True)
class Flow:
    """How many episodes go from right or wrong at one attempt to right or wrong at the next."""

    title: str
    counts: tuple[tuple[int, int, int, int], ...]
    """Per pair of attempts: right to right, right to wrong, wrong to right, wrong to wrong."""
    n_errors: int
    """Episodes left out because the verifier failed."""


@dataclass(frozen=True, slots=True)
class Histogram:
    """Shares of episodes in equal bins over [0, 1]."""

    title: str
    series: tuple[tuple[str, tuple[int, ...]], ...]
    """Label, and episodes per bin."""


@dataclass(frozen=True, slots=True)
class Levels:
    """Shares per difficulty level, or per another kind of row."""

    title: str
    labels: tuple[str, ...]
    """Names of the estimates in a row."""
    rows: tuple[tuple[str, tuple[Estimate, ...]], ...]
    head: str = "level"
    """Heading of the column of row names."""


@dataclass(frozen=True, slots=True)
class Tile:
    """One cell of a chart of tiles."""

    style: int | None
    """Number of its colour; None leaves it empty."""
    lines: tuple[str, ...]
    """Text of the cell, two short lines at most."""


@dataclass(frozen=True, slots=True)
class Tiles:
    """A table of coloured cells."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, tuple[Tile, ...]], ...]
    """Name, and one tile for each column."""
    axes: tuple[str, str]
    """What the columns and the rows are."""
    legend: tuple[tuple[int, str], ...]


@dataclass(frozen=True, slots=True)
class Drawing:
    """A chart for the page: picture, sentence, and the numbers as a table."""

    title: str
    svg: Markup
    summary: str
    swatch: Literal["line", "dot", "bar"]
    legend: tuple[tuple[int, str], ...]
    """Style and label."""
    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def draw_curves(chart: Curves) -> Drawing:
    """Lines over steps: raw values thin, and their running mean thick if there are many."""
    steps, unit = chart.steps, chart.unit
    first, last = (steps[0], steps[-1]) if steps else (0, 1)
    left = LEFT + (6 if chart.axis != "step" else 0)
    x = _scale(first, max(last, first + 1), left, WIDTH - RIGHT, math.log2 if chart.doubling else float)
    y = _scale(chart.low, chart.high, HEIGHT - BOTTOM, TOP)
    ticks = sorted({first, (first + last) // 2, last}) if chart.axis == "step" else steps
    shapes = [*_y_axis(chart.low, chart.high, y, unit), *_x_axis(x, [(t, str(t)) for t in ticks], chart.axis)]
    shapes += _marks([(x(step), label) for step, label in chart.marks])
    for i, line in enumerate(chart.lines):
        for step, (low, high) in zip(steps, line.spread, strict=False):
            if _known(low) and _known(high):
                at = x(step) + 4 * i
                shapes.append(_segment(at, y(low), at, y(high), f"line s{line.style} solid"))
        smooth = _running_mean(line.values)
        shapes.append(_path(steps, line.values, x, y, f"line s{line.style}{' raw' if smooth else ''}"))
        if smooth:
            shapes.append(_path(steps, smooth, x, y, f"line s{line.style}"))
    ends = [[_number(line.values[i], unit) if line.values else "n/a" for i in (0, -1)] for line in chart.lines]
    sentences = "; ".join(f"{line.label} from {a} to {b}" for line, (a, b) in zip(chart.lines, ends, strict=True))
    summary = f"{chart.title}, {chart.axis}s {first} to {last}: {sentences}." if steps else f"{chart.title}: n/a."
    if chart.marks:
        summary += " Marked: " + ", ".join(f"{label} (step {step:g})" for step, label in chart.marks) + "."
    legend = tuple((line.style, line.label) for line in chart.lines)
    table = tuple(
        (str(steps[i]), *(_with_interval(line, i, unit) for line in chart.lines))
        for i in _spread_out(len(steps), MOST_ROWS)
    )
    head = (chart.axis, *(line.label for line in chart.lines))
    return Drawing(chart.title, _svg(shapes, HEIGHT, summary), summary, "line", legend, head, table)


def draw_flow(chart: Flow) -> Drawing:
    """A Sankey diagram of two states, right above wrong, with one column per attempt."""
    total = sum(chart.counts[0])
    x = _scale(0, len(chart.counts), 64, WIDTH - 78)
    gap = 8
    unit = (HEIGHT - TOP - 14 - gap) / max(total, 1)
    rights = [c[0] + c[1] for c in chart.counts] + [chart.counts[-1][0] + chart.counts[-1][2]]
    shapes: list[Markup] = []
    rows = []
    for k, (rr, rw, wr, ww) in enumerate(chart.counts):
        wrong_left, wrong_right = (TOP + rights[i] * unit + gap for i in (k, k + 1))
        bands = (  # left and right edge at the top; the last drawn lies on top
            ("kept right", rr, TOP, TOP),
            ("kept wrong", ww, wrong_left + wr * unit, wrong_right + rw * unit),
            ("broken", rw, TOP + rr * unit, wrong_right),
            ("fixed", wr, wrong_left, TOP + rr * unit),
        )
        start, stop = x(k) + 6, x(k + 1) - 6
        middle = (start + stop) / 2
        for name, n, left, right in bands:
            thick = n * unit
            d = (
                f"M{start:.1f} {left:.2f}C{middle:.1f} {left:.2f} {middle:.1f} {right:.2f} {stop:.1f} {right:.2f}"
                f"v{thick:.2f}C{middle:.1f} {right + thick:.2f} {middle:.1f} {left + thick:.2f} {start:.1f} {left + thick:.2f}Z"
            )
            if n:
                shapes.append(shape("path", f"band {name.replace(' ', '-')}", d=d))
        for name, n in (("kept right", rr), ("broken", rw), ("fixed", wr), ("kept wrong", ww)):
            rows.append((f"{k + 1} to {k + 2}", name, f"{n:,}", _number(n / total if total else None, "share")))
    for k, right in enumerate(rights):
        shapes.append(_text(x(k), TOP - 6, f"attempt {k + 1}", "middle"))
        anchor, at = ("end", x(k) - 9) if k == 0 else ("start", x(k) + 9)
        for n, top, name in ((right, TOP, "right"), (total - right, TOP + right * unit + gap, "wrong")):
            if n:
                middle = top + n * unit / 2
                shapes.append(shape("rect", f"node {name}", x=x(k) - 6, y=top, width=12, height=n * unit))
                shapes += [_text(at, middle - 2, name, anchor), _text(at, middle + 11, f"{n:,}", anchor)]
    summary = f"{chart.title}, {total:,} episodes: {', '.join(f'{row[1]} {row[2]} ({row[3]})' for row in rows[-4:])}."
    if chart.n_errors:
        summary += f" Left out because the verifier failed: {chart.n_errors:,}."
    head = ("attempts", "what happened", "episodes", "share")
    return Drawing(chart.title, _svg(shapes, HEIGHT, summary), summary, "bar", (), head, tuple(rows))


def draw_histogram(chart: Histogram) -> Drawing:
    """Bars next to each other, as shares of each series, so that sets of different sizes can be compared."""
    bins = max((len(counts) for _, counts in chart.series), default=1)
    shares = [[n / max(sum(counts), 1) for n in counts] for _, counts in chart.series]
    high = _round_up(max((s for row in shares for s in row), default=1.0))
    x = _scale(0, 1, LEFT, WIDTH - RIGHT)
    y = _scale(0, high, HEIGHT - BOTTOM, TOP)
    ticks = [(i / 4, f"{i / 4:.3g}") for i in range(5)]
    shapes = [*_y_axis(0, high, y, "share"), *_x_axis(x, ticks, "edit-distance ratio")]
    width = (WIDTH - LEFT - RIGHT) / bins / (len(shares) + 0.4)
    for s, row in enumerate(shares):
        for i, share in enumerate(row):
            if share:
                height = max(y(0) - y(share), 0.5)
                left = x(i / bins) + (s + 0.2) * width
                shapes.append(shape("rect", f"bar s{s}", x=left, y=y(0) - height, width=width, height=height))
    rows = [
        (f"{i / bins:.2f} to {(i + 1) / bins:.2f}", *(f"{counts[i]:,}" for _, counts in chart.series))
        for i in range(bins)
        if any(counts[i] for _, counts in chart.series)
    ]
    labels = tuple(label for label, _ in chart.series)
    lowest = [
        f"{label}: {_number(row[0], 'share')} in the lowest bin" for label, row in zip(labels, shares, strict=True)
    ]
    summary = f"{chart.title}. {'; '.join(lowest)}."
    legend = tuple((i, f"{label} ({sum(counts):,} episodes)") for i, (label, counts) in enumerate(chart.series))
    head = ("edit-distance ratio", *labels)
    return Drawing(chart.title, _svg(shapes, HEIGHT, summary), summary, "bar", legend, head, tuple(rows))


def draw_levels(chart: Levels) -> Drawing:
    """One band per level, and in it one dot with its interval per estimate."""
    each = 14
    pitch = each * len(chart.labels) + 14
    height = TOP + pitch * len(chart.rows) + BOTTOM
    longest = min(max((len(name) for name, _ in chart.rows), default=0), LONGEST_NAME)
    left = max(96.0, longest * LETTER + 18)
    x = _scale(0, 1, left, WIDTH - RIGHT)
    ticks = [(i / 4, f"{25 * i} %") for i in range(5)]
    shapes = [_segment(x(at), height - BOTTOM, x(at), TOP, "grid") for at, _ in ticks]
    shapes += _x_axis(x, ticks, "correct", bottom=height - BOTTOM)
    for r, (level, estimates) in enumerate(chart.rows):
        top = TOP + r * pitch
        shapes.append(_segment(8, top, WIDTH - RIGHT, top, "grid"))
        short = level if len(level) <= LONGEST_NAME else level[: LONGEST_NAME - 1] + "…"
        shapes.append(_text(left - 6, top + pitch / 2 + 4, short, "end"))
        for e, estimate in enumerate(estimates):
            at = top + 14 + e * each
            if estimate.has_interval:
                shapes.append(_segment(x(estimate.low), at, x(estimate.high), at, f"line s{e} solid"))
            if estimate.n:
                shapes.append(shape("circle", f"dot s{e}", cx=x(estimate.value), cy=at, r=4))
    rows = [(level, *(e.text() for e in row), str(max(e.n for e in row))) for level, row in chart.rows]
    sentences = [
        f"{level}: " + ", ".join(f"{label} {e.text()}" for label, e in zip(chart.labels, row, strict=True))
        for level, row in chart.rows
    ]
    summary = f"{chart.title}: {'; '.join(sentences)}."
    head = (chart.head, *chart.labels, "n")
    svg = _svg(shapes, height, summary)
    return Drawing(chart.title, svg, summary, "dot", tuple(enumerate(chart.labels)), head, tuple(rows))


def draw_tiles(chart: Tiles) -> Drawing:
    """Coloured cells with their numbers in them."""
    left, height = 62.0, 34.0
    width = (WIDTH - RIGHT - left) / max(len(chart.columns), 1)
    bottom = TOP + height * len(chart.rows)
    middles = [left + (c + 0.5) * width for c in range(len(chart.columns))]
    shapes = [_text(left - 8, TOP - 8, chart.axes[1], "end")]
    shapes += [_text(at, bottom + 14, name, "middle") for at, name in zip(middles, chart.columns, strict=True)]
    shapes.append(_text((left + WIDTH - RIGHT) / 2, bottom + 29, chart.axes[0], "middle"))
    for r, (name, tiles) in enumerate(chart.rows):
        top = TOP + r * height
        shapes.append(_text(left - 8, top + height / 2 + 4, name, "end"))
        for c, tile in enumerate(tiles):
            style = "tile" if tile.style is None else f"tile bar s{tile.style}"
            shapes.append(shape("rect", style, x=left + c * width + 1, y=top + 1, width=width - 2, height=height - 2))
            first = top + height / 2 + 4 - 7 * (len(tile.lines) - 1)
            shapes += [
                _text(middles[c], first + 14 * i, words, "middle", "mark-label") for i, words in enumerate(tile.lines)
            ]
    rows = tuple((name, *(" ".join(tile.lines) for tile in tiles)) for name, tiles in chart.rows)
    named = dict(chart.legend)
    counts = [
        (label, sum(t.style == style for _, tiles in chart.rows for t in tiles)) for style, label in named.items()
    ]
    summary = f"{chart.title}: {', '.join(f'{label} in {n}' for label, n in counts)} cells."
    svg = _svg(shapes, bottom + 36, summary)
    return Drawing(chart.title, svg, summary, "bar", chart.legend, (chart.axes[1], *chart.columns), rows)


# --- numbers -------------------------------------------------------------------------------------------------------


def axis_range(values: Sequence[Number], *, share: bool) -> tuple[float, float]:
    """Ends of an axis: 0 (or lower for negative values) and a round number above all values; for a share at most 1."""
    known = [v for v in values if _known(v)]
    high = _round_up(max(known, default=0.0))
    low = -_round_up(-min(known)) if known and min(known) < -high / 50 else 0.0  # a little noise below 0 needs no room
    return low, (1.0 if share and high > 0.5 else high)


def _known(value: Number) -> TypeGuard[float]:
    return value is not None and math.isfinite(value)


def _number(value: Number, unit: str) -> str:
    if not _known(value):
        return "n/a"
    return f"{100 * value:z.1f} %" if unit == "share" else f"{value:z.3g}"


def _with_interval(line: Line, i: int, unit: str) -> str:
    if not line.spread or not all(map(_known, line.spread[i])):
        return _number(line.values[i], unit)
    value, low, high = (_number(v, unit).removesuffix(" %") for v in (line.values[i], *line.spread[i]))
    return f"{value} [{low}, {high}]"


def _round_up(value: float) -> float:
    """The next larger value of the form 1, 2 or 5 times a power of ten."""
    if value <= 0:
        return 1.0
    power = 10.0 ** math.floor(math.log10(value))
    return next(m * power for m in (1, 2, 5, 10) if m * power >= value * (1 - 1e-9))


def _spread_out(n: int, most: int) -> list[int]:
    """Up to ``most`` of n indices at even distances, first and last included."""
    if n <= most:
        return list(range(n))
    return sorted({round(i * (n - 1) / (most - 1)) for i in range(most)})


def _running_mean(values: Sequence[Number]) -> list[float]:
    """Mean of the latest values; empty if the line is short or has gaps."""
    known = [v for v in values if _known(v)]
    if len(known) < max(len(values), 3 * SMOOTHED_STEPS):
        return []
    windows = (known[max(0, i + 1 - SMOOTHED_STEPS) : i + 1] for i in range(len(known)))
    return [sum(w) / len(w) for w in windows]


def _scale(low: float, high: float, start: float, stop: float, place: Scale = float) -> Scale:
    """A linear map from [low, high] to [start, stop], after ``place`` has transformed the values."""
    return lambda v: start + (place(v) - place(low)) / (place(high) - place(low)) * (stop - start)


# --- shapes --------------------------------------------------------------------------------------------------------


def _path(steps: Sequence[int], values: Sequence[Number], x: Scale, y: Scale, style: str) -> Markup:
    parts, joined = [], False
    for i in _spread_out(len(steps), MOST_POINTS):
        value = values[i]
        if _known(value):
            parts.append(f"{'L' if joined else 'M'}{x(steps[i]):.1f} {y(value):.1f}")
        joined = _known(value)
    if len(parts) == 1:
        parts.append("h0.1")  # round line ends make a single step a dot
    return shape("path", style, d="".join(parts))


def _y_axis(low: float, high: float, y: Scale, unit: str) -> list[Markup]:
    scale, sign = (100, " %") if unit == "share" else (1, "")
    step = _round_up((high - low) * scale / 5)
    digits = max(0, -math.floor(math.log10(step) + 1e-9))
    shapes = []
    for i in range(math.ceil(low * scale / step - 1e-9), math.floor(high * scale / step + 1e-9) + 1):
        at = y(i * step / scale)
        shapes.append(_segment(LEFT, at, WIDTH - RIGHT, at, "grid"))
        shapes.append(_text(LEFT - 5, at + 4, f"{i * step:z.{digits}f}{sign}", "end"))
    return shapes


def _x_axis(x: Scale, ticks: Sequence[tuple[float, str]], name: str, bottom: float = HEIGHT - BOTTOM) -> list[Markup]:
    if not ticks:
        return []
    start, stop = x(ticks[0][0]), x(ticks[-1][0])
    shapes = [_segment(start, bottom, stop, bottom, "axis"), _text((start + stop) / 2, bottom + 29, name, "middle")]
    for at, words in ticks:
        shapes.append(_text(x(at), bottom + 15, words, "end" if at == ticks[-1][0] else "middle"))
    return shapes


def _marks(marks: Sequence[tuple[float, str]]) -> list[Markup]:
    """Vertical lines with labels, which do not overlap as long as two rows suffice."""
    out, ends = [], [0.0] * len(MARK_ROWS_Y)
    for at, label in marks:
        width = LETTER * len(label)
        begins = at if at + width + LETTER < WIDTH else at - width
        row = next((i for i, end in enumerate(ends) if begins > end), len(ends) - 1)
        ends[row] = begins + width + LETTER
        anchor, aside = ("start", 3) if begins == at else ("end", -3)
        out.append(_segment(at, MARK_ROWS_Y[row], at, HEIGHT - BOTTOM, "mark"))
        out.append(_text(at + aside, MARK_ROWS_Y[row], label, anchor, "mark-label"))
    return out


def _segment(x1: float, y1: float, x2: float, y2: float, style: str) -> Markup:
    return shape("line", style, x1=x1, y1=y1, x2=x2, y2=y2)


def _text(x: float, y: float, words: str, anchor: str, style: str = "label") -> Markup:
    return shape("text", style, words, x=x, y=y, text_anchor=anchor)


def shape(tag: str, style: str, words: str = "", **attributes: float | str) -> Markup:
    """One SVG element. Numbers are pixels; ``words`` become visible, escaped text."""
    pairs = {name: v if isinstance(v, str) else f"{v:.2f}".rstrip("0").rstrip(".") for name, v in attributes.items()}
    listed = Markup("").join(Markup(' {}="{}"').format(name.replace("_", "-"), v) for name, v in pairs.items())
    return Markup('<{0} class="{1}"{2}>{3}</{0}>').format(tag, style, listed, visible(words))


def _svg(shapes: Sequence[Markup], height: float, summary: str) -> Markup:
    form = '<svg role="img" aria-label="{}" viewBox="0 0 {} {:.0f}" class="chart">{}</svg>'
    return Markup(form).format(visible(summary), WIDTH, height, Markup("").join(shapes))
