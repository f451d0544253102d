"""Runs side by side: per method, over seeds, on the same held-out problems."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from selfcorrect.errors import DataError
from selfcorrect.metrics import CorrectnessMatrix, correctness_matrix
from selfcorrect.records import episode_from_row
from selfcorrect.run import RunDirectory
from selfcorrect.stats import Estimate, across_seeds, bootstrap_mean
from selfcorrect.types import Episode, FloatArray


@dataclass(frozen=True, slots=True)
class Row:
    """One method (or the base) over its seeds."""

    name: str
    t1: Estimate
    t2: Estimate
    """Accuracy of the last attempt."""
    delta: Estimate
    t2_over_base: Estimate
    """Last attempt minus the base's last attempt, paired by problem and seed."""
    seeds: int
    problems: int

    def to_json(self) -> dict[str, Any]:
        estimates = {k: getattr(self, k).to_json() for k in ("t1", "t2", "delta", "t2_over_base")}
        return {"name": self.name, "seeds": self.seeds, "problems": self.problems, **estimates}


@dataclass(frozen=True, slots=True)
class _Measured:
    method: str
    seed: int
    base: CorrectnessMatrix
    final: CorrectnessMatrix


def read_evaluation(run: Path, name: str) -> list[Episode]:
    """Episodes of one evaluation of a run.

    Raises:
        DataError: the run has no such evaluation, or a line of it is malformed.
    """
    file = run / "evaluations" / f"{name}.jsonl"
    if not file.exists():
        raise DataError(f"{run} has no evaluation {name!r}: the run has not finished; continue it with `selfcorrect train --resume {run}`")
    out = []
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
        try:
            out.append(episode_from_row(json.loads(line)))
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(f"{file}, line {number} is not an episode ({error}); the file was changed") from None
    return out


def compare_runs(runs: Sequence[Path]) -> list[Row]:
    """A row for the base and one per method, over the seeds given.

    One seed: percentile bootstrap over problems, paired where two models are subtracted. Several seeds: t-interval on
    the seeds' means; rows of different seeds are never pooled as independent.

    Raises:
        DataError: unfinished runs, or runs measured on different problems.
    """
    measured = [_read(path) for path in runs]
    ids = {m.final.problem_ids for m in measured} | {m.base.problem_ids for m in measured}
    if len(ids) > 1:
        raise DataError(
            "these runs were measured on different held-out problems, so their rows cannot be paired; give runs with the same "
            "task and eval settings"
        )
    methods = list(dict.fromkeys(m.method for m in measured))
    first_of_seed = list({m.seed: m for m in measured}.values())
    rows = [_row("base", [(m.base, m.base) for m in first_of_seed])]
    rows += [_row(name, [(m.final, m.base) for m in measured if m.method == name]) for name in methods]
    return rows


def _read(path: Path) -> _Measured:
    run = RunDirectory.open(path)
    base, final = (correctness_matrix(read_evaluation(path, name)) for name in ("base", "final"))
    return _Measured(run.config.method.name, run.config.seed, base, final)


def _row(name: str, pairs: Sequence[tuple[CorrectnessMatrix, CorrectnessMatrix]]) -> Row:
    finals = [f.correct_NK for f, _ in pairs]
    bases = [b.correct_NK for _, b in pairs]
    return Row(
        name=name,
        t1=_estimate([f[:, 0] for f in finals]),
        t2=_estimate([f[:, -1] for f in finals]),
        delta=_estimate([f[:, -1] - f[:, 0] for f in finals]),
        t2_over_base=_estimate([f[:, -1] - b[:, -1] for f, b in zip(finals, bases, strict=True)]),
        seeds=len(pairs),
        problems=len(finals[0]),
    )


def _estimate(per_seed: Sequence[FloatArray]) -> Estimate:
    """Of per-problem values, one array per seed."""
    known = [x[~np.isnan(x)] for x in per_seed]
    if len(known) == 1:
        return bootstrap_mean(known[0])
    return across_seeds(np.array([x.mean() for x in known]))
