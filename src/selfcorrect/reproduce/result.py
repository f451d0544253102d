"""The result of one target as plain values: grids of estimates, verdicts on claims, budgets, charts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from selfcorrect.measuring.intervals import Estimate, across_seeds
from selfcorrect.report.charts import Drawing
from selfcorrect.reproduce.budget import Spent
from selfcorrect.reproduce.verdicts import Verdict


@dataclass(frozen=True, slots=True)
class Column:
    """A quantity that a grid shows."""

    key: str
    head: str
    scale: float = 100.0
    """100 for a share, which is shown in percent; 1 for other numbers."""
    sign: bool = False


@dataclass(frozen=True, slots=True)
class GridRow:
    label: str
    cells: dict[str, Estimate]
    """Estimates by the column's key; a missing one shows n/a."""
    seeds: int
    problems: int
    paper: dict[str, float] = field(default_factory=dict)
    """The paper's figures by column, percent."""
    note: str = ""
    corrected: int | None = None
    """Seeds that learned to correct, if they were counted."""


@dataclass(frozen=True, slots=True)
class Grid:
    title: str
    columns: tuple[Column, ...]
    rows: tuple[GridRow, ...]
    paper_setting: str = ""
    """Model and data of the figures in ``GridRow.paper``; empty if the paper has none."""
    paper_source: str = ""


@dataclass(frozen=True, slots=True)
class Result:
    """One target."""

    name: str
    title: str
    grids: tuple[Grid, ...]
    verdicts: tuple[Verdict, ...] = ()
    drawings: tuple[Drawing, ...] = ()
    budget: dict[str, tuple[Spent, ...]] = field(default_factory=dict)
    """Budgets, by the key of the row."""
    budget_notes: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def over_seeds(estimates: Sequence[Estimate]) -> Estimate:
    """Combine estimates of one row, one per seed: a single one is unchanged, several give a t-interval over their
    values."""
    if len(estimates) == 1:
        return estimates[0]
    return across_seeds(np.array([e.value for e in estimates if e.n]))
