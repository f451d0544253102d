"""Results as files: Markdown to read, CSV and JSON to compute with, SVG to look at."""

from __future__ import annotations

import csv
import io
import json
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, get_args

from selfcorrect.records.files import write_text
from selfcorrect.report.standalone import standalone_svg
from selfcorrect.reproduce.result import Grid, GridRow, Result
from selfcorrect.reproduce.rows import ROWS, TARGETS
from selfcorrect.reproduce.verdicts import Word

NOT_CORRECTED = (
    "Each is judged at 95 % by itself: of twenty differences that are none, one is called a difference by chance."
)
WAY_OUT = "free some space and call the same command again"
QUICK_NOTE = "QUICK LOOK, not a result: one seed, few steps, few problems"


@dataclass(frozen=True, slots=True)
class Provenance:
    """Where numbers come from."""

    command: str
    version: str
    """Version of this package, with the commit if it runs from a repository."""
    model: str
    task: str
    seeds: tuple[int, ...]
    seconds: float
    """Total wall seconds of the processes behind the target."""
    settings: tuple[str, ...]
    quick: bool
    failures: dict[str, str]
    """Jobs that failed, with the reason."""


def write_result(result: Result, p: Provenance, out: Path) -> list[Path]:
    """Write ``<target>.md``, ``.csv``, ``.json`` and, if there is something to draw, ``.svg``.

    Raises:
        RunError: the disk refused.
    """
    content = {"md": markdown(result, p), "csv": as_csv(result, p), "json": as_json(result, p)}
    if result.drawings:
        content["svg"] = standalone_svg(result.drawings, QUICK_NOTE if p.quick else "")
    files = {out / f"{result.name}.{ending}": text for ending, text in content.items()}
    for file, text in files.items():
        write_text(file, text, WAY_OUT)
    return list(files)


def write_claims(results: Sequence[Result], p: Provenance, out: Path) -> Path:
    """Write ``claims.md``: a line for every claim of the paper about these targets.

    Raises:
        RunError: the disk refused.
    """
    counts = Counter(v.word for result in results for v in result.verdicts)
    words = ", ".join(f"{counts[word]} {word}" for word in get_args(Word) if counts[word])
    lines = ["# The paper's claims", "", *_head(p), f"{counts.total()} claims: {words}. {NOT_CORRECTED}", ""]
    for result in results:
        if result.verdicts:
            lines += [f"## [{result.title}]({result.name}.md)", "", *_verdicts(result), ""]
    file = out / "claims.md"
    write_text(file, "\n".join(lines), WAY_OUT)
    return file


def markdown(result: Result, p: Provenance) -> str:
    """The page of a target."""
    lines = [f"# {result.title}", "", *_head(p)]
    for grid in result.grids:
        lines += [f"## {grid.title}", "", *_grid(grid), ""]
        lines += [f"The paper's figures: {grid.paper_source}.", ""] if grid.paper_source else []
    if result.verdicts:
        lines += ["## The paper's claims", "", *_verdicts(result), ""]
        if len(p.seeds) == 1:
            note = "One seed: the intervals are over problems and speak of these checkpoints, not of the methods."
            lines += [note, ""]
    if result.budget:
        names = {"steps": "gradient steps", "responses": "sampled responses", "tokens": "sampled tokens"}
        names["sequences"] = "sequences trained on"
        lines += ["## Budget, from the records", "", f"| | seeds | {' | '.join(names.values())} |", "|---" * 6 + "|"]
        for key, runs in result.budget.items():
            cells = [ROWS[key].label, str(len(runs))]
            for name in names:
                low, high = (end(getattr(run, name) for run in runs) for end in (min, max))
                cells.append(f"{low:,}" if low == high else f"{low:,} to {high:,}")
            lines.append(_row(cells))
        same = "Every row has the same gradient steps and sampled responses, seed by seed"
        lines += ["", *(f"{note}." for note in result.budget_notes or (same,)), ""]
    lines += [f"{note}\n" for note in result.notes]
    lines += [f"Not run: `{name}`: {why}\n" for name, why in p.failures.items()]
    if result.drawings:
        lines += [f"![{result.title}]({result.name}.svg)", ""]
    return "\n".join(lines)


def _head(p: Provenance) -> list[str]:
    settings = f" Settings of all runs: `{' '.join(p.settings)}`." if p.settings else ""
    origin = (
        f"Command: `{p.command}`. {p.version}. Model {p.model}, task {p.task}, seeds {', '.join(map(str, p.seeds))}; greedy "
        f"evaluation.{settings} Percent; 95 % intervals: over several seeds Student's t on the seeds' means, else a bootstrap "
        f"over problems. The processes took {p.seconds:,.0f} s in all, one thread each."
    )
    return [*([f"**{QUICK_NOTE}.**", ""] if p.quick else []), origin, ""]


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _grid(grid: Grid) -> list[str]:
    """The measured columns, then the paper's figures in one cell, marked as such."""
    paper = [c for c in grid.columns if any(c.key in row.paper for row in grid.rows)]
    counted = any(row.corrected is not None for row in grid.rows)
    heads = ["", *(c.head for c in grid.columns), "seeds", *(["corrected"] if counted else []), "problems"]
    if paper:
        heads.append(f"{grid.paper_setting}: {' / '.join(c.head for c in paper)}")
    lines = [_row(heads), "|---" * len(heads) + "|"]
    for row in grid.rows:
        cells = [f"{row.label} ({row.note})" if row.note else row.label]
        for c in grid.columns:
            cells.append(row.cells[c.key].text(scale=c.scale, sign=c.sign) if c.key in row.cells else "n/a")
        cells += [str(row.seeds), *([_of(row)] if counted else []), str(row.problems)]
        if paper:
            formats = ((row.paper.get(c.key), "+.1f" if c.sign else ".1f") for c in paper)
            figures = ["n/a" if figure is None else format(figure, form) for figure, form in formats]
            cells.append(" / ".join(figures) if row.paper else "")
        lines.append(_row(cells))
    return lines


def _of(row: GridRow) -> str:
    """How many seeds learned to correct, out of how many."""
    return "n/a" if row.corrected is None else f"{row.corrected} of {row.seeds}"


def _verdicts(result: Result) -> list[str]:
    heads = {c.key: c.head for grid in result.grids for c in grid.columns}
    lines = [_row(["claim", "verdict", "decided by", "difference"]), "|---|---|---|---|"]
    for v in result.verdicts:
        above, below = (None if key is None else ROWS[key].label for key in (v.claim.above, v.claim.below))
        decided = f"{heads[v.claim.quantity]}: {above or '0'}{f' - {below}' if below else ''}"
        lines.append(_row([v.claim.text, f"**{v.word}**", decided, v.difference.text(sign=True)]))
    return lines


def as_csv(result: Result, p: Provenance) -> str:
    """One line per number: the measured ones with their intervals, then the paper's."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    head = "target grid row quantity value low high n interval seeds problems source quick"
    writer.writerow(head.split())
    for grid in result.grids:
        for row in grid.rows:
            where = [result.name, grid.title, row.label]
            for c in grid.columns:
                if (e := row.cells.get(c.key)) is not None:
                    values = ["" if math.isnan(v) else f"{v * c.scale:.6g}" for v in (e.value, e.low, e.high)]
                    writer.writerow([*where, c.key, *values, e.n, e.kind, row.seeds, row.problems, "ours", p.quick])
            for key, figure in row.paper.items():
                writer.writerow([*where, key, figure, "", "", "", "", "", "", grid.paper_setting, ""])
    return stream.getvalue()


def as_json(result: Result, p: Provenance) -> str:
    """Everything; shares in [0, 1], the paper's figures in percent as printed there."""
    grids = [
        {
            "title": grid.title,
            "paper": grid.paper_setting,
            "paper_source": grid.paper_source,
            "rows": [
                {
                    "label": row.label,
                    "note": row.note,
                    "seeds": row.seeds,
                    "corrected": row.corrected,
                    "problems": row.problems,
                    "ours": {key: e.to_json() for key, e in row.cells.items()},
                    "paper_percent": row.paper,
                }
                for row in grid.rows
            ],
        }
        for grid in result.grids
    ]
    content: dict[str, Any] = {
        "target": result.name,
        "title": TARGETS[result.name].title,
        "provenance": asdict(p),
        "grids": grids,
        "claims": [v.to_json() for v in result.verdicts],
        "budget": {key: [asdict(s) for s in runs] for key, runs in result.budget.items()},
        "budget_notes": list(result.budget_notes),
        "charts": [{"title": d.title, "columns": d.head, "rows": d.rows} for d in result.drawings],
        "notes": list(result.notes),
    }
    return json.dumps(content, indent=1) + "\n"
