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
    model: str
    settings: dict[str, Any]
    """What runs of one row must share."""
    base: CorrectnessMatrix
    final: CorrectnessMatrix


def read_evaluation(run: Path, name: str) -> list[Episode]:
    """Episodes of one evaluation of a run.

    Raises:
        DataError: the run has no such evaluation, or a line of it is malformed.
    """
    file = run / "evaluations" / f"{name}.jsonl"
    if not file.exists():
        raise DataError(
            f"{run} has no evaluation {name!r}: the run has not finished; continue it with `selfcorrect train --resume {run}`"
        )
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
    doubled = [m for i, m in enumerate(measured) if any((m.method, m.seed) == (o.method, o.seed) for o in measured[:i])]
    if doubled:
        raise DataError(
            f"two of these runs are {doubled[0].method} with seed {doubled[0].seed}: they are not independent; give each "
            "method and seed once"
        )
    _refuse_other_differences(measured)
    if any(not np.array_equal(m.base.correct_NK, measured[0].base.correct_NK, equal_nan=True) for m in measured):
        raise DataError(
            "these runs did not start from the same base model (their base evaluations differ), so one base row cannot stand "
            "for all; compare runs of one model"
        )
    methods = list(dict.fromkeys(m.method for m in measured))
    rows = [_row("base", [(measured[0].base, measured[0].base)])]  # greedy and untrained: one base, whatever the seed
    rows += [_row(name, [(m.final, m.base) for m in measured if m.method == name]) for name in methods]
    return rows


def _refuse_other_differences(measured: Sequence[_Measured]) -> None:
    """Seeds may differ within a row; another model anywhere, or another setting within a row, would be hidden by it."""
    for i, m in enumerate(measured):
        for other in measured[:i]:
            if m.model != other.model:
                raise DataError(
                    f"these runs start from different models ({other.model}, {m.model}), so they have no common base; compare "
                    "the runs of one model at a time"
                )
            different = sorted(k for k in m.settings.keys() & other.settings if m.settings[k] != other.settings[k])
            if m.method == other.method and different:
                raise DataError(
                    f"two {m.method} runs differ in more than the seed ({', '.join(different)}), so they cannot share a row; "
                    "compare runs of one setting at a time"
                )


def _read(path: Path) -> _Measured:
    run = RunDirectory.open(path)
    base, final = (correctness_matrix(read_evaluation(path, name)) for name in ("base", "final"))
    dumped = run.config.model_dump(exclude={"seed", "run_dir", "sft", "engine", "trackers"})
    settings = {f"{section}.{k}": v for section, values in dumped.items() for k, v in values.items()}
    return _Measured(run.config.method.name, run.config.seed, run.config.model.name, settings, base, final)


def _row(name: str, pairs: Sequence[tuple[CorrectnessMatrix, CorrectnessMatrix]]) -> Row:
    finals = [f.correct_NK for f, _ in pairs]
    bases = [b.correct_NK for _, b in pairs]
    nothing = [np.zeros(len(f)) for f in finals]
    return Row(
        name=name,
        t1=_estimate(nothing, [f[:, 0] for f in finals], (0, 1)),
        t2=_estimate(nothing, [f[:, -1] for f in finals], (0, 1)),
        delta=_estimate([f[:, 0] for f in finals], [f[:, -1] for f in finals], (-1, 1)),
        t2_over_base=_estimate([b[:, -1] for b in bases], [f[:, -1] for f in finals], (-1, 1)),
        seeds=len(pairs),
        problems=len(finals[0]),
    )


def _estimate(a: Sequence[FloatArray], b: Sequence[FloatArray], support: tuple[float, float]) -> Estimate:
    """Mean of b - a from per-problem values, one pair of arrays per seed; nan rows (verifier failures) left out."""
    differences = [(y - x)[~np.isnan(y - x)] for x, y in zip(a, b, strict=True)]
    if len(differences) == 1:
        return bootstrap_mean(differences[0], support=support)
    return across_seeds(np.array([d.mean() for d in differences if len(d)]))
