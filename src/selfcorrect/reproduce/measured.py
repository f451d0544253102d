"""The finished runs of a choice, read once and shared by all targets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from selfcorrect.errors import DataError
from selfcorrect.measuring.compare import (
    SUPPORT,
    MeasuredRun,
    Row,
    compare_measured,
    matrix_row,
    paired_estimate,
    per_problem,
    read_evaluation,
    read_measured,
)
from selfcorrect.measuring.intervals import Estimate, not_measured
from selfcorrect.measuring.metrics import CorrectnessMatrix, EvalSummary, correctness_matrix
from selfcorrect.records.lines import EvalRecord, StepRecord, read_episodes
from selfcorrect.records.run_directory import RunDirectory
from selfcorrect.reproduce.budget import Spent, check_equal, spent
from selfcorrect.reproduce.choice import Choice
from selfcorrect.reproduce.jobs import is_finished
from selfcorrect.reproduce.planning import prompted_job
from selfcorrect.reproduce.rows import ROWS
from selfcorrect.types import Episode, FloatArray

MEASURE_AGAIN = "delete the file to measure it again"
"""The way out if a measurement's file is damaged."""
Matrices = dict[int, CorrectnessMatrix]
"""Correctness by seed. The untrained model answers greedily, so its one result is entered under every seed, as the same
object."""


@dataclass
class Measurements:
    """Reads results when they are first needed, and keeps them."""

    choice: Choice
    _runs: dict[str, dict[int, MeasuredRun]] = field(default_factory=dict)

    def runs(self, key: str) -> dict[int, MeasuredRun]:
        """Finished runs of a row, by seed."""
        if key not in self._runs:
            self._runs[key] = {seed: read_measured(path) for seed, path in self.paths(key).items()}
        return self._runs[key]

    def paths(self, key: str) -> dict[int, Path]:
        """Directories of a trained row's finished runs, by seed."""
        if ROWS[key].kind != "trained":
            return {}
        paths = {seed: self.choice.run_path(ROWS[key], seed) for seed in self.choice.seeds_of(ROWS[key])}
        return {seed: path for seed, path in paths.items() if is_finished(path)}

    def rows(self, keys: Sequence[str]) -> dict[str, Row]:
        """One row per measured key, always including the base.

        Raises:
            DataError: no run has finished, or runs do not fit together.
        """
        trained = [(key, run) for key in keys for run in self.runs(key).values()]
        if not trained:
            raise DataError("none of the target's runs has finished, so there is nothing to show; see their logs")
        made = compare_measured([run for _, run in trained], [key for key, _ in trained])
        rows = {row.name: row for row in made}
        base = trained[0][1].base
        for key in keys:
            if (matrix := self._prompted(key)) is not None:
                rows[key] = matrix_row(key, [(matrix, base)])
        return rows

    def matrices(self, key: str) -> Matrices:
        """Correctness of a row by seed; empty if the row has not been measured."""
        if ROWS[key].kind == "trained":
            return {seed: run.final for seed, run in self.runs(key).items()}
        one = self._prompted(key)
        if ROWS[key].kind == "base":
            one = next((run.base for runs in self._runs.values() for run in runs.values()), None)
        return {} if one is None else dict.fromkeys(self.choice.seeds, one)

    def _prompted(self, key: str) -> CorrectnessMatrix | None:
        if ROWS[key].kind != "prompted":
            return None
        file = prompted_job(self.choice, ROWS[key]).target
        return read_matrix(file) if file.exists() else None

    def spent(self, keys: Sequence[str]) -> tuple[dict[str, tuple[Spent, ...]], list[str]]:
        """The budget of every trained row, checked.

        Raises:
            DataError: rows differ without a stated reason.
        """
        paths = {key: self.paths(key).values() for key in keys}
        found = {key: tuple(spent(RunDirectory.open(p)) for p in of_row) for key, of_row in paths.items() if of_row}
        return found, check_equal(found)

    def summaries(self, key: str) -> dict[int, EvalSummary]:
        """Recorded evaluations by seed. The base has one, under the first finished seed."""
        name, paths = self._evaluation(key)
        out = {}
        for seed, path in paths.items():
            records = [r for r in RunDirectory.open(path).records() if isinstance(r, EvalRecord) and r.name == name]
            out[seed] = EvalSummary.from_json(records[-1].summary)
        return out

    def episodes(self, key: str) -> dict[int, list[Episode]]:
        """Held-out episodes with their texts, by seed; those of the base once."""
        name, paths = self._evaluation(key)
        return {seed: read_evaluation(path, name) for seed, path in paths.items()}

    def _evaluation(self, key: str) -> tuple[str, dict[int, Path]]:
        """The name of the evaluation that measured a row, and the runs that have it, by seed. For the base it is the
        first finished run."""
        if ROWS[key].kind != "base":
            return "final", self.paths(key)
        first = next((item for other in ROWS for item in self.paths(other).items()), None)
        return "base", {} if first is None else dict([first])

    def steps(self, key: str) -> dict[int, list[StepRecord]]:
        """Training steps by seed."""
        return {
            seed: [r for r in RunDirectory.open(path).records() if isinstance(r, StepRecord)]
            for seed, path in self.paths(key).items()
        }


def difference(above: Matrices | None, below: Matrices | None, quantity: str) -> Estimate:
    """The difference of two rows, over the seeds that both have; None stands for 0.

    If neither side depends on the seed (greedy answers of the untrained model), the interval is over problems.
    """
    seeds = sorted(set.intersection(*(set(side) for side in (above, below) if side is not None)))
    if not seeds:
        return not_measured()
    pairs = [tuple(None if side is None else side[seed] for side in (above, below)) for seed in seeds]
    if all(a is b for pair in pairs for a, b in zip(pair, pairs[0], strict=True)):
        pairs = pairs[:1]
    highs, lows = [], []
    for pair in pairs:
        values = [None if matrix is None else per_problem(matrix, quantity) for matrix in pair]
        zeros: FloatArray = np.zeros(max(len(v) for v in values if v is not None))
        high, low = (zeros if v is None else v for v in values)
        highs.append(high)
        lows.append(low)
    low_end, high_end = SUPPORT[quantity]
    width = high_end - low_end
    support = (-width, width) if above is not None and below is not None else (-high_end, high_end)
    return paired_estimate(lows, highs, support)


def read_matrix(file: Path) -> CorrectnessMatrix:
    """Correctness from a measurement's file.

    Raises:
        DataError: a line is not an episode.
    """
    return correctness_matrix([episode for _, episode in read_episodes(file, MEASURE_AGAIN)])
