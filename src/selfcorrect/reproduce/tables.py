"""Tables 1 to 4: accuracies of both attempts, flips, the difference to SCoRe, and the paper's claims about them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from selfcorrect.measuring.compare import Row, matrix_row
from selfcorrect.measuring.intervals import Estimate, seeds_needed
from selfcorrect.report.charts import Drawing, Levels, draw_levels
from selfcorrect.reproduce.measured import Matrices, Measurements, difference, read_matrix
from selfcorrect.reproduce.planning import CODE_MEASURES, code_job
from selfcorrect.reproduce.result import Column, Grid, GridRow, Result
from selfcorrect.reproduce.rows import ROWS, TARGETS, PaperTable, TableRow, paper_tables
from selfcorrect.reproduce.verdicts import Verdict, judge

COLUMNS = (
    Column("t1", "t1"),
    Column("t2", "t2"),
    Column("delta", "delta", sign=True),
    Column("i_to_c", "i→c"),
    Column("c_to_i", "c→i"),
)
NO_PAPER = PaperTable("", "", (), {})
OVER_BASE = Column("t2_over_base", "t2 - base t2", sign=True)
OVER_SCORE = Column("t2_over_score", "t2 - SCoRe t2", sign=True)


def table(name: str, m: Measurements) -> Result:
    """A table of rows: table 1, 2 or 4, that of the demo, or one that is not in the paper.

    Raises:
        DataError: nothing has been measured, or rows of the table had different budgets.
    """
    target, paper = TARGETS[name], paper_tables().get(name, NO_PAPER)
    rows = m.rows(target.rows)
    spent, notes = m.spent(target.rows)
    lines = []
    for key in target.rows:
        cells = _cells(rows[key]) if key in rows else {}
        if key in rows and "score" in target.rows and key != "score":
            cells[OVER_SCORE.key] = difference(m.matrices(key), m.matrices("score"), "t2")
        lines.append(_line(ROWS[key], rows.get(key), cells, paper.figures(key)))
    columns = (*COLUMNS, OVER_BASE, *((OVER_SCORE,) if "score" in target.rows else ()))
    grid = Grid("Percent correct", columns, tuple(lines), paper.setting, paper.source)
    return Result(
        name,
        target.title,
        (grid,),
        _judged(name, {key: m.matrices(key) for key in target.rows}),
        (_dots(lines),),
        spent,
        tuple(notes),
        _seeds_note(rows.get("score"), rows.get("multi_turn")),
    )


def _cells(row: Row) -> dict[str, Estimate]:
    """A row's estimates by column; the base has no difference to itself."""
    cells = {column.key: getattr(row, column.key) for column in COLUMNS}
    return cells if row.name == "base" else cells | {OVER_BASE.key: row.t2_over_base}


def _line(row: TableRow, measured: Row | None, cells: dict[str, Estimate], paper: dict[str, float]) -> GridRow:
    if measured is None:
        return GridRow(row.label, {}, 0, 0, paper, "not measured")
    note = "ours, not in the paper" if row.ours and not row.key.endswith("literal") else ""
    return GridRow(row.label, cells, measured.seeds, measured.problems, paper, note, measured.corrected)


def _seeds_note(score: Row | None, other: Row | None) -> tuple[str, ...]:
    """How many seeds it takes to show a difference, given the observed spread."""
    if score is None or other is None or score.t2_spread is None or other.t2_spread is None:
        return ()
    spread = math.hypot(score.t2_spread, other.t2_spread)
    needed = ", ".join(f"{d} points takes {seeds_needed(spread, d / 100)}" for d in (2, 5, 10))
    return (
        f"t2 has a standard deviation over seeds of {100 * score.t2_spread:.1f} points (SCoRe) and "
        f"{100 * other.t2_spread:.1f} points (multi-turn RL). With these, showing a difference of {needed} seeds of each.",
    )


def _judged(name: str, matrices: Mapping[str, Matrices]) -> tuple[Verdict, ...]:
    """The claims of a table, judged by differences that are paired by problem and seed."""
    out = []
    for claim in TARGETS[name].claims:
        above, below = (None if key is None else matrices[key] for key in (claim.above, claim.below))
        out.append(judge(claim, difference(above, below, claim.quantity)))
    return tuple(out)


def _dots(lines: Sequence[GridRow]) -> Drawing:
    """A chart of both attempts of every measured row."""
    rows = tuple((line.label, (line.cells["t1"], line.cells["t2"])) for line in lines if line.cells)
    return draw_levels(Levels("Percent correct, 95 % intervals", ("attempt 1", "attempt 2"), rows, "row"))


def code_table(m: Measurements) -> Result:
    """Table 3: HumanEval and, starting from given wrong programs, MBPP-R."""
    target = TARGETS["table3"]
    found = {measure: {key: _code_matrices(m, key, measure) for key in target.rows} for measure in CODE_MEASURES}
    spent, notes = m.spent(target.rows)
    humaneval, repair = (_code_grid(found[measure], measure) for measure in CODE_MEASURES)
    return Result(
        "table3",
        target.title,
        (humaneval, repair),
        _judged("table3", found["humaneval"]),
        (_dots(humaneval.rows),),
        spent,
        tuple(notes),
        ("Claims are judged on HumanEval.",),
    )


def _code_matrices(m: Measurements, key: str, measure: str) -> Matrices:
    row = ROWS[key]
    seeds = m.choice.seeds_of(row) if row.kind == "trained" else m.choice.seeds[:1]
    files = {seed: code_job(m.choice, row, seed, measure).target for seed in seeds}
    made = {seed: read_matrix(file) for seed, file in files.items() if file.exists()}
    return made if row.kind == "trained" else {s: made[seeds[0]] for s in m.choice.seeds if made}


def _code_grid(found: dict[str, Matrices], measure: str) -> Grid:
    paper = paper_tables()["table3" if measure == "humaneval" else "table3_repair"]
    base = found["base"]
    lines = []
    for key, matrices in found.items():
        row = ROWS[key]
        pairs = [(matrix, base[seed]) for seed, matrix in matrices.items() if seed in base]
        measured = matrix_row(key, pairs if row.kind == "trained" else pairs[:1]) if pairs else None
        cells = _cells(measured) if measured is not None else {}
        if measure == "mbpp_repair":  # attempt 1 is given: its score is not the model's
            cells = {k: v for k, v in cells.items() if k in ("t2", OVER_BASE.key)}
        lines.append(_line(row, measured, cells, paper.figures(key)))
    title = "HumanEval" if measure == "humaneval" else "MBPP-R, from given wrong programs"
    columns = (*COLUMNS, OVER_BASE) if measure == "humaneval" else (COLUMNS[1], OVER_BASE)
    return Grid(title, columns, tuple(lines), paper.setting, paper.source)
