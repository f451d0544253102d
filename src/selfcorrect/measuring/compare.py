"""Compares runs: per method, over seeds, on the same held-out problems."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from selfcorrect.config import Config, default_of, load_config
from selfcorrect.errors import DataError
from selfcorrect.measuring.intervals import Estimate, across_seeds, bootstrap_mean
from selfcorrect.measuring.metrics import CorrectnessMatrix, correctness_matrix
from selfcorrect.measuring.records import Number, Storable
from selfcorrect.records.lines import read_episodes
from selfcorrect.records.run_directory import RunDirectory
from selfcorrect.types import Episode, FloatArray


@dataclass(frozen=True, slots=True)
class Row(Storable):
    """One method (or one variant of it, or the base) over its seeds."""

    NAME: ClassVar[str] = "row"
    name: str
    t1: Estimate
    t2: Estimate
    """Accuracy of the last attempt."""
    delta: Estimate
    i_to_c: Estimate
    """Share of all problems wrong at the first and right at the last attempt."""
    c_to_i: Estimate
    t2_over_base: Estimate
    """Last attempt minus the base's last attempt, paired by problem and seed."""
    seeds: int
    problems: int
    corrected: int | None = None
    """Seeds that learned to correct: delta above ``CORRECTS``. If only some do, the mean over seeds describes neither
    kind."""
    t2_spread: Number | None = None
    """Standard deviation of t2 over seeds; None with one."""


CORRECTS = 0.05
"""A run has learned to correct if delta is above this. The threshold is a choice of this project."""


@dataclass(frozen=True, slots=True)
class MeasuredRun:
    """The parts of a finished run that rows need."""

    method: str
    seed: int
    model: str
    settings: dict[str, Any]
    """Settings that runs of one row must share."""
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
    return [episode for _, episode in read_episodes(file, "the file was changed, so restore it or train again")]


def compare_runs(runs: Sequence[Path], labels: Sequence[str] | None = None) -> list[Row]:
    """A row for the base and one per label, over the seeds given.

    One seed: percentile bootstrap over problems, paired where two models are subtracted. Several seeds: t-interval on
    the seeds' means; rows of different seeds are never pooled as independent.

    Args:
        runs: finished run directories.
        labels: one per run: the name of its row. Without them a row is a method; where runs of one method differ in
            more than the seed, each variant is a row, whose label gives the settings that are not the model's defaults.

    Raises:
        DataError: unfinished runs, runs measured on different problems, or runs of one label that differ in more than
            the seed.
    """
    return compare_measured([read_measured(path) for path in runs], labels)


def compare_measured(measured: Sequence[MeasuredRun], labels: Sequence[str] | None = None) -> list[Row]:
    """``compare_runs`` of runs that have been read."""
    names = list(labels) if labels is not None else _labels(measured)
    rows = {name: [run for run, n in zip(measured, names, strict=True) if n == name] for name in dict.fromkeys(names)}
    if len({run.final.problem_ids for run in measured} | {run.base.problem_ids for run in measured}) > 1:
        raise DataError(
            "these runs were measured on different held-out problems, so their rows cannot be paired; give runs with the same "
            "task and eval settings"
        )
    models = list(dict.fromkeys(run.model for run in measured))
    if len(models) > 1:
        raise DataError(
            f"these runs start from different models ({', '.join(models)}), so they have no common base; compare the runs of "
            "one model at a time"
        )
    for name, runs in rows.items():
        for i, run in enumerate(runs):
            if any(run.seed == other.seed for other in runs[:i]):
                raise DataError(
                    f"two of these runs are {name} with seed {run.seed}: they are not independent; give each row and seed once"
                )
            common = run.settings.keys() & runs[0].settings
            if different := sorted(key for key in common if run.settings[key] != runs[0].settings[key]):
                raise DataError(
                    f"two runs labelled {name} differ in more than the seed ({', '.join(different)}), so they cannot share a "
                    "row; give them different labels"
                )
    if any(not np.array_equal(run.base.correct_NK, measured[0].base.correct_NK, equal_nan=True) for run in measured):
        raise DataError(
            "these runs did not start from the same base model (their base evaluations differ), so one base row cannot stand "
            "for all; compare runs of one model"
        )
    if not measured:
        return []
    base = measured[0].base  # greedy and untrained: one base, whatever the seed
    trained = [matrix_row(name, [(run.final, run.base) for run in runs]) for name, runs in rows.items()]
    return [matrix_row("base", [(base, base)]), *trained]


def _labels(measured: Sequence[MeasuredRun]) -> list[str]:
    """The method, and the settings that are not at their defaults and differ between runs of that method."""
    out = []
    for run in measured:
        variants = [other.settings for other in measured if other.method == run.method]
        moved = [key for key in run.settings if any(v.get(key) != run.settings[key] for v in variants)]
        if moved:
            defaults = _flat(load_config(None, [f"model.name={json.dumps(run.model)}"]))
            moved = [key for key in moved if run.settings[key] != defaults.get(key, default_of(key))]
        out.append(" ".join([run.method, *(f"{key}={json.dumps(run.settings[key])}" for key in moved)]))
    return out


def read_measured(path: Path) -> MeasuredRun:
    """Read what rows need of a run.

    Raises:
        RunError: not a run directory.
        DataError: it has not finished, or an evaluation is malformed.
    """
    run = RunDirectory.open(path)
    base, final = (correctness_matrix(read_evaluation(path, name)) for name in ("base", "final"))
    return MeasuredRun(run.config.method.name, run.config.seed, run.config.model.name, _flat(run.config), base, final)


def _flat(config: Config) -> dict[str, Any]:
    """Settings that runs of one row must share, by dotted name."""
    dumped = config.model_dump(exclude={"seed", "run_dir", "sft", "engine", "trackers"})
    return {f"{section}.{k}": v for section, values in dumped.items() for k, v in values.items()}


def matrix_row(name: str, pairs: Sequence[tuple[CorrectnessMatrix, CorrectnessMatrix]]) -> Row:
    """A row from correctness matrices: for each seed that of the model and that of its base, on the same problems."""
    own = {}
    for quantity, support in SUPPORT.items():
        values = [per_problem(final, quantity) for final, _ in pairs]
        own[quantity] = paired_estimate([np.zeros(len(v)) for v in values], values, support)
    bases, finals = ([per_problem(pair[i], "t2") for pair in pairs] for i in (1, 0))
    over_base = paired_estimate(bases, finals, (-1, 1))
    deltas, t2 = ([float(np.nanmean(per_problem(final, q))) for final, _ in pairs] for q in ("delta", "t2"))
    return Row(
        name,
        **own,
        t2_over_base=over_base,
        seeds=len(pairs),
        problems=len(pairs[0][0].problem_ids),
        corrected=sum(delta > CORRECTS for delta in deltas),
        t2_spread=float(np.std(t2, ddof=1)) if len(pairs) > 1 else None,
    )


SUPPORT: dict[str, tuple[float, float]] = {
    "t1": (0, 1),
    "t2": (0, 1),
    "delta": (-1, 1),
    "i_to_c": (0, 1),
    "c_to_i": (0, 1),
}
"""Quantities of a row, each with its smallest and largest value per problem."""


def per_problem(matrix: CorrectnessMatrix, quantity: str) -> FloatArray:
    """A quantity of ``SUPPORT`` per problem; nan where the verifier failed; shape [N]."""
    gain_N = matrix.i_to_c_N - matrix.c_to_i_N  # of the samples with both verdicts: not the gap of two other means
    own = {"t1": matrix.correct_NK[:, 0], "t2": matrix.correct_NK[:, -1], "delta": gain_N}
    return own[quantity] if quantity in own else getattr(matrix, f"{quantity}_N")


def paired_estimate(a: Sequence[FloatArray], b: Sequence[FloatArray], support: tuple[float, float]) -> Estimate:
    """Mean of b - a from per-problem values: over problems for one seed, else over seeds.

    Args:
        a: one array of shape [N] per seed; nan rows (verifier failures) are left out, pair by pair.
        b: the same, with the same problems and seeds.
        support: smallest and largest possible difference of a problem.
    """
    differences = [(y - x)[~np.isnan(y - x)] for x, y in zip(a, b, strict=True)]
    if len(differences) == 1:
        return bootstrap_mean(differences[0], support=support)
    return across_seeds(np.array([d.mean() for d in differences if len(d)]))
