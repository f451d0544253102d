"""The page itself: template, style and script in one file that asks the network for nothing."""

from __future__ import annotations

import base64
import hashlib
import json
import time
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any

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
"""Within the first bytes of every page: what carries it may be replaced by a newer one."""


def write_report(runs: Sequence[Path], out: Path) -> int:
    """Write the page of some runs, replacing an earlier report only when complete.

    Args:
        runs: run directories, in the order of the page.
        out: the HTML file.

    Returns:
        Its size in bytes.

    Raises:
        RunError: a run cannot be read, or ``out`` is something else than a report, or cannot be written.
        DataError: an evaluation is damaged.
    """
    for path in runs:
        RunDirectory.open(path)
    _refuse_other(out)
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
    """HTML of a page model and the episodes to go with it. All text in it is escaped, and shows what is in it."""
    diff = resources.files("selfcorrect").joinpath("assets/word_diff.js").read_text(encoding="utf-8")
    style, script = _asset("report.css"), diff + _asset("report.js")
    environment = Environment(
        loader=DictLoader({"page": _asset("page.html.j2")}),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=lambda value: visible(value) if type(value) is str else value,
    )
    return environment.get_template("page").render(
        page=page,
        charts=[_charts(run) for run in page.runs],
        style=Markup(style),
        script=Markup(script),
        policy=Markup(_policy(style, script)),
        mark=Markup(MARK),
        episodes=Markup(_json(sample.to_json())),
        made=time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
    )


def _charts(run: Any) -> dict[str, Any]:
    return {
        "curves": [draw_curves(c) for c in run.curves],
        "flows": [draw_flow(f) for f in run.flows],
        "edits": draw_histogram(run.edits) if run.edits is not None else None,
        "levels": draw_levels(run.levels) if run.levels is not None else None,
        "scaling": [draw_curves(c) for c in run.scaling],
    }


def _policy(style: str, script: str) -> str:
    """Nothing may load or run but this style and this script: a second lock behind the escaping."""
    return (
        f"default-src 'none'; style-src {_hash(style)}; script-src {_hash(script)}; base-uri 'none'; form-action 'none'"
    )


def _hash(content: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()}'"


def _json(value: Any) -> str:
    """JSON that may stand inside a script element: nothing in it can end the element or begin a comment."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    for sign in "<>&\u2028\u2029":
        text = text.replace(sign, f"\\u{ord(sign):04x}")
    return text


def _asset(name: str) -> str:
    return resources.files("selfcorrect.report").joinpath(name).read_text(encoding="utf-8").strip()


def _refuse_other(out: Path) -> None:
    try:
        if not out.exists():
            if not out.parent.is_dir():
                raise RunError(
                    f"there is no directory {out.parent} to write {out.name} into; make it, or name another --out"
                )
            return
        with out.open("rb") as file:
            is_ours = MARK.encode() in file.read(1024)
    except OSError as error:
        raise RunError(f"{out} cannot be written: {disk_reason(error)}; name another place with --out") from None
    if not is_ours:
        raise RunError(
            f"{out} exists and is not a report of this command, so it is not overwritten; name another --out"
        )
