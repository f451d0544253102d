"""Charts as SVG files of their own: titles and legends drawn in, colours of report.css, nothing fetched."""

from __future__ import annotations

import re
from collections.abc import Sequence
from importlib import resources

from markupsafe import Markup

from selfcorrect.report.charts import LEFT, WIDTH, Drawing
from selfcorrect.report.text import visible

LINE_HEIGHT = 16
SHOWN_WIDTH = 2 * WIDTH
"""Pixels; the drawing itself has no fixed size."""
_VIEW = re.compile(r'viewBox="0 0 (\d+) (\d+)"')
_BACKGROUND = "svg { background: var(--paper); } .title { font-weight: 600; }"


def standalone_svg(drawings: Sequence[Drawing], note: str = "") -> str:
    """One SVG file with some charts below each other.

    Args:
        drawings: from the functions of charts.py.
        note: a line at the top, for a warning.
    """
    style = resources.files("selfcorrect.report").joinpath("report.css").read_text(encoding="utf-8")
    parts: list[Markup] = []
    y = 0.0
    if note:
        y += LINE_HEIGHT
        parts.append(_words(6, y, note))
    for drawing in drawings:
        y += LINE_HEIGHT
        parts.append(_words(6, y, drawing.title))
        match = _VIEW.search(drawing.svg)
        assert match is not None, "every chart has a view box"
        height = int(match[2])
        place = f'<svg x="0" y="{y + 4:.0f}" width="{WIDTH}" height="{height}" '
        parts.append(Markup(str(drawing.svg).replace("<svg ", place, 1)))  # Markup.replace would escape both
        y += height + 8
        for number, label in drawing.legend:
            y += LINE_HEIGHT
            parts += [_swatch(drawing.swatch, number, y), _words(LEFT, y, label)]
    summary = " ".join(d.summary for d in drawings)
    body = Markup("").join(parts)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" role="img" aria-label="{Markup.escape(visible(summary))}" '
        f'width="{SHOWN_WIDTH}" height="{2 * (y + 10):.0f}" viewBox="0 0 {WIDTH} {y + 10:.0f}" class="chart">'
        f"<style><![CDATA[{style}{_BACKGROUND}]]></style>{body}</svg>\n"
    )


def _words(x: float, y: float, words: str) -> Markup:
    return Markup('<text class="title" x="{:.0f}" y="{:.0f}">{}</text>').format(x, y, visible(words))


def _swatch(kind: str, number: int, y: float) -> Markup:
    shapes = {
        "line": '<line class="line s{}" x1="8" y1="{y:.0f}" x2="38" y2="{y:.0f}"/>',
        "dot": '<circle class="dot s{}" cx="23" cy="{y:.0f}" r="4"/>',
        "bar": '<rect class="bar s{}" x="16" y="{top:.0f}" width="14" height="9"/>',
    }
    return Markup(shapes[kind]).format(number, y=y - 4, top=y - 9)
