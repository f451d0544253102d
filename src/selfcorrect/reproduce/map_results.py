"""The map's results: its runs as cells, and these as a table, a CSV and a picture."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

import numpy as np

from selfcorrect.measuring.compare import CORRECTS
from selfcorrect.measuring.intervals import Estimate, across_seeds, welch_across_seeds
from selfcorrect.measuring.labels import METHODS as LABELS
from selfcorrect.measuring.phase import ENOUGH
from selfcorrect.report.charts import Drawing, Tile, Tiles, draw_tiles
from selfcorrect.reproduce.bases import Recipe, rare

METHODS = ("multi_turn", "score", "no_stage1", "no_shaping", "single_turn")
PRETRAINING_SEED = 1
"""Pretraining seed of the map's bases, as of the shipped ``tiny-rare``. Other seeds give other bases from the same recipe."""
SECOND_ATTEMPTS = 384
"""Second attempts in a step of SCoRe: 32 problems, four trees of three each."""
RATIOS = (0.125, 0.25, 0.5, 1.0)
"""Where the table of seeds that corrected is cut. Read off the first 79 runs."""
SAME = 0.05
"""Two methods are level if the interval of their difference in t2 is within this."""

Verdict = Literal["SCoRe", "multi-turn RL", "both correct", "neither corrects", "undecided"]
STYLES: dict[Verdict, int] = {"SCoRe": 1, "multi-turn RL": 0, "both correct": 2, "neither corrects": 5}


@dataclass(frozen=True, order=True)
class Point:
    """One kind of base."""

    fix: float
    """Probability that attempt 2 is the right solution: how often a correction can be found."""
    redo: float
    """Probability that attempt 2 is a new, mostly wrong try: the harm of changes."""
    edge: float
    """Probability of a mistake on problems that the base could answer at once: how far attempt 1 can improve."""
    pretraining: int = PRETRAINING_SEED
    """Seed of the base's pretraining."""

    @property
    def name(self) -> str:
        seed = "" if self.pretraining == PRETRAINING_SEED else f"-pretraining{self.pretraining}"
        return f"fix{self.fix:g}-redo{self.redo:g}-edge{self.edge:g}{seed}"

    def recipe(self) -> Recipe:
        return rare(self.fix, self.redo, self.edge, self.pretraining)


def key_of(line: dict[str, Any]) -> tuple[Point, int, str]:
    point = Point(line["fix"], line["redo"], line["edge"], line.get("pretraining", PRETRAINING_SEED))
    return point, line["seed"], line["method"]


@dataclass(frozen=True)
class Cell:
    """One point of the grid over its seeds."""

    point: Point
    by_method: dict[str, list[dict[str, Any]]]
    """Finished runs, by seed."""

    def of(self, method: str, quantity: str) -> Estimate:
        return across_seeds(np.array([line[quantity] for line in self.by_method.get(method, [])]))

    def base(self, quantity: str) -> float:
        """A number of the cell's base, the same in all its runs; see ``phase.Revising``."""
        some_run = next(iter(self.by_method.values()))[0]
        return float(some_run["base"][quantity])

    @property
    def ratio(self) -> float:
        """How often the base's changes help, for each time that they harm."""
        return self.base("fixed") / self.base("broken") if self.base("broken") else math.inf

    def corrected(self, method: str) -> tuple[int, int]:
        """Seeds in which the method learned to correct, and all seeds."""
        deltas = [line["delta"] for line in self.by_method.get(method, [])]
        return sum(d > CORRECTS for d in deltas), len(deltas)

    @property
    def difference(self) -> Estimate:
        """t2 of SCoRe minus t2 of multi-turn RL, not paired: runs of one seed are no more alike than others."""
        multi_turn, score = ([line["t2"] for line in self.by_method.get(m, [])] for m in METHODS[:2])
        return welch_across_seeds(multi_turn, score)

    @property
    def verdict(self) -> Verdict:
        """Which method's t2 is ahead by the interval over seeds. If the interval is within ``SAME``, whether both
        correct or neither."""
        d = self.difference
        if not d.has_interval:
            return "undecided"
        if d.low > 0:
            return "SCoRe"
        if d.high < 0:
            return "multi-turn RL"
        if d.low < -SAME or d.high > SAME:
            return "undecided"
        (score, n), (multi_turn, m) = self.corrected("score"), self.corrected("multi_turn")
        if 2 * score > n and 2 * multi_turn > m:
            return "both correct"
        return "neither corrects" if 2 * score < n and 2 * multi_turn < m else "undecided"

    @property
    def expected(self) -> Verdict:
        """What the rule of ``selfcorrect probe`` (``phase.recommend``) says of the base, on its numbers without their
        intervals. Where changes help from the start, both methods should correct."""
        fixed = self.base("fixed")
        if fixed >= self.base("broken"):
            return "both correct"
        return "SCoRe" if fixed * SECOND_ATTEMPTS >= ENOUGH else "neither corrects"

    @property
    def as_expected(self) -> bool:
        """Whether the verdict is the expected one. Where both should correct, multi-turn RL may be ahead."""
        return self.verdict == self.expected or (self.verdict, self.expected) == ("multi-turn RL", "both correct")


def cells_of(lines: Sequence[dict[str, Any]]) -> list[Cell]:
    found: dict[Point, dict[str, list[dict[str, Any]]]] = {}
    for line in sorted(lines, key=lambda line: line["seed"]):
        point, _, method = key_of(line)
        found.setdefault(point, {}).setdefault(method, []).append(line)
    return [Cell(point, found[point]) for point in sorted(found)]


def page(lines: Sequence[dict[str, Any]]) -> str:
    """The table of all cells, as Markdown."""
    cells = cells_of(lines)
    decided = [cell for cell in cells if cell.verdict != "undecided"]
    out = [
        f"{len(cells)} cells, {len(lines)} runs; decided at 95 %: {len(decided)} of {len(cells)} "
        f"({len(decided) / max(len(cells), 1):.0%}), {sum(c.as_expected for c in decided)} of them as expected from the base. "
        f"Recorded time: {sum(line['seconds'] for line in lines) / 3600:.1f} h of one thread.",
        "",
        "| fix | redo | edge | pretraining seed | base: i→c, c→i at T = 1 | multi-turn RL t1 / t2 | SCoRe t1 / t2 | SCoRe − multi-turn, t2 | corrected: multi-turn, SCoRe | expected from the base | verdict |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for cell in cells:
        pairs = [
            f"{100 * cell.of(m, 't1').value:.1f} / {100 * cell.of(m, 't2').value:.1f}"
            if m in cell.by_method
            else "not run"
            for m in METHODS[:2]
        ]
        corrected = ", ".join("{} of {}".format(*cell.corrected(m)) for m in METHODS[:2])
        p = cell.point
        out.append(
            f"| {p.fix:g} | {p.redo:g} | {p.edge:g} | {p.pretraining} | {100 * cell.base('fixed'):.1f}, {100 * cell.base('broken'):.1f} | "
            f"{pairs[0]} | {pairs[1]} | {cell.difference.text(sign=True)} | {corrected} | {cell.expected} | {cell.verdict} |"
        )
    return "\n".join([*out, "", *_by_ratio(cells), ""])


def _by_ratio(cells: Sequence[Cell]) -> list[str]:
    """Seeds that corrected, by how often the base's changes help for each time that they harm."""
    out = [
        "Seeds that corrected, of those run, by the base's i→c over c→i:",
        "",
        "| i→c over c→i | bases | " + " | ".join(LABELS[m] for m in METHODS[:2]) + " |",
        "|---|---|---|---|",
    ]
    for low, high in pairwise((0.0, *RATIOS, math.inf)):
        here = [cell for cell in cells if low <= cell.ratio < high]
        counts = (tuple(map(sum, zip((0, 0), *(c.corrected(m) for c in here), strict=True))) for m in METHODS[:2])
        name = f"below {high:g}" if low == 0 else f"{low:g} and above" if high == math.inf else f"{low:g} to {high:g}"
        out.append(f"| {name} | {len(here)} | " + " | ".join("{} of {}".format(*c) for c in counts) + " |")
    return out


def as_csv(lines: Sequence[dict[str, Any]]) -> str:
    """One row for each run."""
    stream = io.StringIO()
    rows = [
        {k: v for k, v in line.items() if k not in ("base", "changed", "settings")}
        | {f"base_{k}": v for k, v in line["base"].items()}
        for line in lines
    ]
    names = dict.fromkeys(name for row in rows for name in row)  # older runs have fewer numbers of their base
    writer = csv.DictWriter(stream, fieldnames=list(names) or ["fix"], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return stream.getvalue()


def pictures(cells: Sequence[Cell]) -> list[Drawing]:
    """For each ``edge`` a chart of tiles: t2 of SCoRe and of multi-turn RL, coloured where the cell is decided."""
    out = []
    for edge in sorted({cell.point.edge for cell in cells}):
        here = {(cell.point.fix, cell.point.redo): cell for cell in cells if cell.point.edge == edge}
        fixes, redos = (sorted({key[i] for key in here}) for i in (0, 1))
        rows = tuple((f"{redo:g}", tuple(_tile(here.get((fix, redo))) for fix in fixes)) for redo in reversed(redos))
        legend = (
            (1, "SCoRe ahead"),
            (0, "multi-turn RL ahead"),
            (2, "level, both correct"),
            (5, "level, neither does"),
        )
        title = f"t2 of SCoRe | of multi-turn RL, edge {edge:g}"
        columns = tuple(f"{fix:g}" for fix in fixes)
        out.append(draw_tiles(Tiles(title, columns, rows, ("fix: corrections", "redo: harm"), legend)))
    return out


def _tile(cell: Cell | None) -> Tile:
    if cell is None or not all(cell.by_method.get(m) for m in METHODS[:2]):
        return Tile(None, ("",))
    levels = " | ".join(f"{100 * cell.of(m, 't2').value:.0f}" for m in ("score", "multi_turn"))
    d = cell.difference
    second = f"{100 * d.value:+.0f} ± {50 * (d.high - d.low):.0f}" if d.has_interval else "one seed"
    return Tile(STYLES.get(cell.verdict), (levels, second))
