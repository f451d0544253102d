"""Renders the page: template, style and script in one file that loads nothing from the network."""

from __future__ import annotations

import base64
import hashlib
import json
import time
from collections.abc import Sequence
from importlib import resources
from pathlib import Path

from jinja2 import DictLoader, Environment, StrictUndefined
from markupsafe import Markup

from selfcorrect.errors import RunError
from selfcorrect.records.files import disk_reason, write_text
from selfcorrect.records.run_directory import RunDirectory
from selfcorrect.report.charts import draw_curves, draw_flow, draw_histogram, draw_levels
from selfcorrect.report.page import Page, build_page
from selfcorrect.report.reading import read_run
from selfcorrect.report.sample import Sample, sample_episodes
from selfcorrect.report.text import visible

MARK = '<meta name="generator" content="selfcorrect report">'
"""Marker in the first 1,024 bytes of every report. A newer report may replace a file that has it."""


def write_report(runs: Sequence[Path], out: Path) -> int:
    """Write the page of some runs, in the given order, and return its size in bytes.

    An earlier report is replaced only once the new one is complete.

    Raises:
        RunError: a run cannot be read, or ``out`` is a file other than a report, or cannot be written.
        DataError: an evaluation is damaged.
    """
    for path in runs:
        RunDirectory.open(path)
    _refuse_other_files(out)
    page = build_report(runs)
    write_text(out, page, "name another place with --out")
    return len(page.encode())


def build_report(runs: Sequence[Path]) -> str:
    """The page as text.

    Raises:
        RunError, DataError: a run cannot be read.
    """
    data = [read_run(path) for path in runs]
    return render(build_page(data, runs), sample_episodes(data))


def render(page: Page, sample: Sample) -> str:
    """HTML of the page and its episodes. All text in it is escaped, and invisible characters are shown."""
    style, script = _asset("report/report.css"), _asset("assets/word_diff.js") + "\n" + _asset("report/report.js")
    # Only this style and this script may load or run: a second defence behind the escaping.
    digests = (base64.b64encode(hashlib.sha256(part.encode()).digest()).decode() for part in (style, script))
    policy = "style-src 'sha256-{}'; script-src 'sha256-{}'".format(*digests)
    episodes = json.dumps(sample.to_json(), ensure_ascii=False, separators=(",", ":"))
    for sign in "<>&\u2028\u2029":  # nothing in it may end the script element or begin a comment
        episodes = episodes.replace(sign, f"\\u{ord(sign):04x}")
    charts = [
        {
            "curves": [draw_curves(c) for c in run.curves],
            "between": [*map(draw_flow, run.flows), *([draw_histogram(run.edits)] if run.edits else [])],
            "levels": [draw_levels(run.levels)] if run.levels else [],
            "scaling": [draw_curves(c) for c in run.scaling],
        }
        for run in page.runs
    ]
    environment = Environment(
        loader=DictLoader({"page": _asset("report/page.html.j2")}),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=lambda value: visible(value) if type(value) is str else value,
    )
    return environment.get_template("page").render(
        page=page,
        charts=charts,
        style=Markup(style),
        script=Markup(script),
        policy=Markup(f"default-src 'none'; {policy}; base-uri 'none'; form-action 'none'"),
        mark=Markup(MARK),
        episodes=Markup(episodes),
        made=time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
    )


def _asset(name: str) -> str:
    return resources.files("selfcorrect").joinpath(name).read_text(encoding="utf-8").strip()


def _refuse_other_files(out: Path) -> None:
    try:
        if not out.exists():
            if not out.parent.is_dir():
                raise RunError(f"there is no directory {out.parent} for {out.name}; create it, or name another --out")
            return
        with out.open("rb") as file:
            is_report = MARK.encode() in file.read(1024)
    except OSError as error:
        raise RunError(f"{out} cannot be written: {disk_reason(error)}; name another place with --out") from None
    if not is_report:
        raise RunError(
            f"{out} exists and is not a report of this command, so it is not overwritten; name another --out"
        )
