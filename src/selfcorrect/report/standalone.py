"""Charts as SVG files: with titles and legends, the colours of report.css, and nothing to load."""

from __future__ import annotations

import re
from collections.abc import Sequence
from importlib import resources

from markupsafe import Markup

from selfcorrect.report.charts import LEFT, WIDTH, Drawing, shape
from selfcorrect.report.text import visible

LINE_HEIGHT = 16
SHOWN_WIDTH = 2 * WIDTH
"""Pixels on the page; the drawing itself scales."""
_BACKGROUND = "svg { background: var(--paper); } .title { font-weight: 600; }"


def standalone_svg(drawings: Sequence[Drawing], note: str = "") -> str:
    """One SVG file with the charts below each other; ``note`` is a line at the top, for a warning."""
    style = resources.files("selfcorrect.report").joinpath("report.css").read_text(encoding="utf-8")
    parts: list[Markup] = []
    y = 0.0
    if note:
        y += LINE_HEIGHT
        parts.append(shape("text", "title", note, x=6, y=y))
    for drawing in drawings:
        y += LINE_HEIGHT
        parts.append(shape("text", "title", drawing.title, x=6, y=y))
        match = re.search(r'viewBox="0 0 \d+ (\d+)"', drawing.svg)
        assert match is not None, "every chart has a view box"
        height = int(match[1])
        place = f'<svg x="0" y="{y + 4:.0f}" width="{WIDTH}" height="{height}" '
        parts.append(Markup(str(drawing.svg).replace("<svg ", place, 1)))  # Markup.replace would escape both
        y += height + 8
        for style_number, label in drawing.legend:
            y += LINE_HEIGHT
            name = f"{drawing.swatch} s{style_number}"
            swatches = {
                "line": shape("line", name, x1=8, y1=y - 4, x2=38, y2=y - 4),
                "dot": shape("circle", name, cx=23, cy=y - 4, r=4),
                "bar": shape("rect", name, x=16, y=y - 9, width=14, height=9),
            }
            parts += [swatches[drawing.swatch], shape("text", "title", label, x=LEFT, y=y)]
    summary = " ".join(d.summary for d in drawings)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" role="img" aria-label="{Markup.escape(visible(summary))}" '
        f'width="{SHOWN_WIDTH}" height="{2 * (y + 10):.0f}" viewBox="0 0 {WIDTH} {y + 10:.0f}" class="chart">'
        f"<style><![CDATA[{style}{_BACKGROUND}]]></style>{Markup('').join(parts)}</svg>\n"
    )
