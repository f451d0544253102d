"""Tables for people. Every number carries its interval and n; nothing measured is n/a, never 0."""

from __future__ import annotations

from collections.abc import Mapping

from rich.console import Console
from rich.table import Table

from selfcorrect.metrics import EvalSummary
from selfcorrect.stats import Estimate


def summary_table(rows: Mapping[str, EvalSummary], title: str) -> Table:
    """One row per evaluation: accuracy of every attempt, delta, i->c, c->i, answer-change rate."""
    attempts = max((len(s.attempts) for s in rows.values()), default=0)
    table = Table(title=title, title_justify="left", caption_justify="left")
    table.add_column("")
    for k in range(attempts):
        table.add_column(f"t{k + 1}", justify="right")
    if attempts > 1:
        for name in ("delta", "i→c", "c→i", "changed"):
            table.add_column(name, justify="right")
    table.add_column("n", justify="right")
    for name, s in rows.items():
        cells = [_cell(a.accuracy) for a in s.attempts] + ["n/a"] * (attempts - len(s.attempts))
        if attempts > 1:
            cells += [_cell(s.delta_first_last, sign=True), _cell(s.i_to_c), _cell(s.c_to_i)] if s.revisions else ["n/a"] * 3
            cells.append(_cell(s.revisions[-1].answer_changed) if s.revisions else "n/a")
        table.add_row(name, *cells, str(s.n_problems))
    table.caption = "percent; 95 % interval by bootstrap over problems (one training seed: not the spread between seeds)"
    return table


def show(table: Table) -> None:
    Console().print(table)


def _cell(estimate: Estimate, *, sign: bool = False) -> str:
    return estimate.text(sign=sign)
