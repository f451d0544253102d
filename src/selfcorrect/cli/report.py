"""``selfcorrect report``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def report(
    runs: Annotated[list[Path], typer.Argument(help="Run directories, finished or not.")],
    out: Annotated[
        Path | None, typer.Option(help="HTML file to write; default: report.html in the first run's directory.")
    ] = None,
) -> None:
    """Write one self-contained HTML page: results, curves, what happened between attempts, and the episodes.

    Also works while a run is training; call it again to update the page.

    Example: `selfcorrect report runs/tiny-arithmetic-score-s0`
    """
    from selfcorrect.report import write_report

    target = out or runs[0] / "report.html"
    size = write_report(runs, target)
    print(f"{target} ({size / 1e6:.1f} MB)")
