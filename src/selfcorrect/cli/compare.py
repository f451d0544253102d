"""``selfcorrect compare``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from selfcorrect.errors import DataError


def compare(
    runs: Annotated[list[Path], typer.Argument(help="Run directories; the first one's base is the baseline row.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as one JSON object.")] = False,
) -> None:
    """Put methods side by side with intervals, on the same held-out problems.

    Runs of one method with different seeds form one row: the interval is then a t-interval over the seeds' means. Runs
    of one method with other settings have rows of their own, which say what is not at its default.

    Example: `selfcorrect compare runs/tiny-arithmetic-score-s0 runs/tiny-arithmetic-multi_turn-s0`
    """
    from rich.table import Table

    from selfcorrect.cli.tables import show
    from selfcorrect.measuring.compare import compare_runs

    rows = compare_runs(runs)
    if not rows:
        raise DataError(
            "no finished run among those given: `compare` needs the final evaluation that `train` ends with"
        )
    if as_json:
        print(json.dumps([row.to_json() for row in rows]))
        return
    table = Table(title="held-out problems, percent, 95 % intervals", title_justify="left", caption_justify="left")
    table.add_column("")
    for name in ("t1", "t2", "delta", "i→c", "c→i", "t2 - base t2", "seeds", "problems"):
        table.add_column(name, justify="right")
    for row in rows:
        table.add_row(row.name, *_cells(row), str(row.seeds), str(row.problems))
    table.caption = "one seed: bootstrap over problems; several seeds: t-interval over seed means"
    show(table)


def _cells(row: Any) -> list[str]:
    return [
        row.t1.text(),
        row.t2.text(),
        row.delta.text(sign=True),
        row.i_to_c.text(),
        row.c_to_i.text(),
        row.t2_over_base.text(sign=True),
    ]
