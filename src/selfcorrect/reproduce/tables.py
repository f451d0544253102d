"""Tables 1 to 4: accuracies of both attempts, flips, the difference to SCoRe, and the paper's claims about them."""

from __future__ import annotations

from collections.abc import Sequence

from selfcorrect.measuring.compare import Row, matrix_row
from selfcorrect.measuring.intervals import Estimate
from selfcorrect.report.charts import Levels, draw_levels
from selfcorrect.reproduce.measured import Matrices, Measurements, difference, read_matrix
from selfcorrect.reproduce.planning import CODE_MEASURES, code_job
from selfcorrect.reproduce.result import Column, Grid, GridRow, Result
from selfcorrect.reproduce.rows import ROWS, TARGETS, Claim, PaperTable, TableRow, paper_tables
from selfcorrect.reproduce.verdicts import judge

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
    """Tables 1, 2 and 4, and the demo's.

    Raises:
        DataError: nothing has been measured, or rows of the table had different budgets.
    """
    target, paper = TARGETS[name], paper_tables().get(name, NO_PAPER)
    rows = m.rows(target.rows)
    spent, notes = m.spent(target.rows)
    lines = []
    for key in target.rows:
        cells = cells_of(rows[key]) if key in rows else {}
        if key in rows and "score" in target.rows and key != "score":
            cells[OVER_SCORE.key] = difference(m.matrices(key), m.matrices("score"), "t2")
        lines.append(_line(ROWS[key], rows.get(key), cells, paper.figures(key)))
    columns = (*COLUMNS, OVER_BASE, *((OVER_SCORE,) if "score" in target.rows else ()))
    grid = Grid("Percent correct", columns, tuple(lines), paper.setting, paper.source)
    return Result(
        name,
        target.title,
        (grid,),
        tuple(m.judge(claim) for claim in target.claims),
        (draw_levels(dots(lines)),),
        spent,
        tuple(notes),
    )


def cells_of(row: Row) -> dict[str, Estimate]:
    """A row's estimates by column; of the base no difference to itself."""
    cells = {column.key: getattr(row, column.key) for column in COLUMNS}
    return cells if row.name == "base" else cells | {OVER_BASE.key: row.t2_over_base}


def _line(row: TableRow, measured: Row | None, cells: dict[str, Estimate], paper: dict[str, float]) -> GridRow:
    note = "ours, not in the paper" if row.ours else ""
    if measured is None:
        return GridRow(row.label, {}, 0, 0, paper, "not measured")
    return GridRow(row.label, cells, measured.seeds, measured.problems, paper, note)


def dots(lines: Sequence[GridRow]) -> Levels:
    """Both attempts of every measured row."""
    rows = tuple((line.label, (line.cells["t1"], line.cells["t2"])) for line in lines if line.cells)
    return Levels("Percent correct, 95 % intervals", ("attempt 1", "attempt 2"), rows, "row")


def code_table(m: Measurements) -> Result:
    """Table 3: HumanEval and, after given wrong programs, MBPP-R."""
    target = TARGETS["table3"]
    found = {measure: {key: _code_matrices(m, key, measure) for key in target.rows} for measure in CODE_MEASURES}
    spent, notes = m.spent(target.rows)
    humaneval, repair = (_code_grid(found[measure], measure) for measure in CODE_MEASURES)

    def judged(claim: Claim) -> Estimate:
        above, below = (None if key is None else found["humaneval"][key] for key in (claim.above, claim.below))
        return difference(above, below, claim.quantity)

    return Result(
        "table3",
        target.title,
        (humaneval, repair),
        tuple(judge(claim, judged(claim)) for claim in target.claims),
        (draw_levels(dots(humaneval.rows)),),
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
        cells = cells_of(measured) if measured is not None else {}
        if measure == "mbpp_repair":  # attempt 1 is given: what it scores is not the model's
            cells = {k: v for k, v in cells.items() if k in ("t2", OVER_BASE.key)}
        lines.append(_line(row, measured, cells, paper.figures(key)))
    title = "HumanEval" if measure == "humaneval" else "MBPP-R, from given wrong programs"
    columns = (*COLUMNS, OVER_BASE) if measure == "humaneval" else (COLUMNS[1], OVER_BASE)
    return Grid(title, columns, tuple(lines), paper.setting, paper.source)
