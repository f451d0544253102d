"""``selfcorrect compare``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from selfcorrect.cli.options import AsJson
from selfcorrect.errors import DataError


def compare(
    runs: Annotated[list[Path], typer.Argument(help="Run directories; the base of the first is the baseline row.")],
    as_json: AsJson = False,
) -> None:
    """Compare methods in one table with intervals, on the same held-out problems.

    Runs that differ only in the seed share a row, with a t-interval over the seeds' means. Runs of the same method with
    other settings have separate rows, which name the settings that are not at their default.

    Example: `selfcorrect compare runs/tiny-arithmetic-score-s0 runs/tiny-arithmetic-multi_turn-s0`
    """
    from rich.table import Table

    from selfcorrect.cli.tables import show
    from selfcorrect.measuring.compare import compare_runs

    rows = compare_runs(runs)
    if not rows:
        raise DataError(
            "none of these runs has finished: `compare` needs the final evaluation, which `train` does at its end; "
            "continue a run with `selfcorrect train --resume RUN`"
        )
    if as_json:
        print(json.dumps([row.to_json() for row in rows]))
        return
    table = Table("", title="held-out problems, percent, 95 % intervals", title_justify="left", caption_justify="left")
    table.columns[0].overflow = "fold"  # the end of a name is what tells two variants apart
    for name in ("t1", "t2", "delta", "i→c", "c→i", "t2 - base t2", "seeds", "corrected", "problems"):
        table.add_column(name, justify="right")
    for row in rows:
        cells = [row.t1.text(), row.t2.text(), row.delta.text(sign=True), row.i_to_c.text(), row.c_to_i.text()]
        counts = (str(row.seeds), str(row.corrected), str(row.problems))
        table.add_row(row.name, *cells, row.t2_over_base.text(sign=True), *counts)
    table.caption = "corrected: seeds with a delta above 5 points; one seed: bootstrap over problems; several seeds: t-interval over seed means"
    show(table)
