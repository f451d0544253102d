"""Tables for people. Every number carries its interval and n; nothing measured is n/a, never 0."""

from __future__ import annotations

from collections.abc import Mapping

from rich.console import Console
from rich.table import Table

from selfcorrect.measuring.intervals import Estimate
from selfcorrect.measuring.metrics import EvalSummary

WIDTH_OF_A_FILE = 160


def summary_table(rows: Mapping[str, EvalSummary], title: str) -> Table:
    """One row per evaluation: accuracy of every attempt, delta, i->c, c->i, answer-change rate.

    With more than two attempts the last four columns are those of the last revision.
    """
    attempts = max((len(s.attempts) for s in rows.values()), default=0)
    table = Table(title=title, title_justify="left", caption_justify="left")
    table.add_column("")
    for k in range(attempts):
        table.add_column(f"t{k + 1}", justify="right", no_wrap=True)
    if attempts > 1:
        for name in ("delta", "i→c", "c→i", "changed"):
            table.add_column(name, justify="right", no_wrap=True)
    table.add_column("n", justify="right", no_wrap=True)
    for name, s in rows.items():
        cells = [_cell(a.accuracy) for a in s.attempts] + ["n/a"] * (attempts - len(s.attempts))
        if attempts > 1:
            if s.revisions:
                last = s.revisions[-1]
                cells += [
                    _cell(last.delta, sign=True),
                    _cell(last.i_to_c),
                    _cell(last.c_to_i),
                    _cell(last.answer_changed),
                ]
            else:
                cells += ["n/a"] * 4
        table.add_row(name, *cells, str(s.n_problems))
    table.caption = (
        "percent; 95 % interval by bootstrap over problems (one training seed: not the spread between seeds)"
    )
    return table


def show(table: Table) -> None:
    """Print on standard output; a pipe gets full-width lines, as a file of results should have."""
    console = Console()
    if not console.is_terminal:
        console = Console(width=WIDTH_OF_A_FILE)
    console.print(table)


def _cell(estimate: Estimate, *, sign: bool = False) -> str:
    return estimate.text(sign=sign)
