"""Checks in the records that the methods of a table had the same budget of samples and gradient steps, as in the paper."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from selfcorrect.errors import DataError
from selfcorrect.records.lines import EndRecord, StepRecord
from selfcorrect.records.run_directory import RunDirectory
from selfcorrect.reproduce.rows import ROWS


@dataclass(frozen=True, slots=True)
class Spent:
    """What one finished run has used."""

    seed: int
    steps: int
    """Gradient steps."""
    responses: int
    """Responses sampled in training, not in evaluations."""
    tokens: int
    sequences: int
    """Training sequences over all steps. A stage that imitates has fewer than it sampled, because it keeps only
    some."""


def spent(run: RunDirectory) -> Spent:
    """Read what a run used from its records.

    Raises:
        DataError: it has not finished.
    """
    records = run.records()
    end = records[-1] if records else None
    if not isinstance(end, EndRecord) or end.reason != "finished":
        raise DataError(f"{run.path} has not finished, so its budget is not known; call the same command again")
    sequences = sum(r.episodes for r in records if isinstance(r, StepRecord))
    return Spent(run.config.seed, end.step, end.sampled_responses, end.sampled_tokens, sequences)


def check_equal(rows: Mapping[str, Sequence[Spent]]) -> list[str]:
    """Compare the budgets of the rows of one table, seed by seed.

    Args:
        rows: trained rows, by their key.

    Returns:
        A sentence for every row that used less for a stated reason.

    Raises:
        DataError: a row differs without a stated reason.
    """
    norm: dict[int, tuple[str, Spent]] = {}
    for key, runs in rows.items():
        for s in runs if not ROWS[key].budget_note else ():
            other, first = norm.setdefault(s.seed, (key, s))
            if (s.steps, s.responses) != (first.steps, first.responses):
                raise DataError(
                    f"the rows {ROWS[other].label!r} and {ROWS[key].label!r} do not have the same budget with seed {s.seed}: "
                    f"{first.steps:,} steps and {first.responses:,} sampled responses against {s.steps:,} and {s.responses:,}. "
                    "No table is made of them; give both the same train.steps and samples, or report the fault if they had"
                )
    notes = []
    for key, runs in rows.items():
        if not (reason := ROWS[key].budget_note):
            continue
        pairs = [(s, norm[s.seed][1]) for s in runs if s.seed in norm]
        if any(s.steps != full.steps or s.responses > full.responses for s, full in pairs):
            raise DataError(
                f"the row {ROWS[key].label!r} has another number of gradient steps than the rest of its table, or more "
                "sampled responses, so no table is made of them; give all rows the same train.steps and samples"
            )
        shares = [s.responses / full.responses for s, full in pairs]
        if any(share != 1 for share in shares):
            percent = 100 * sum(shares) / len(shares)
            notes.append(
                f"NOT the same budget: {ROWS[key].label} sampled {percent:.1f} % of the other rows' responses ({reason})"
            )
    return notes
