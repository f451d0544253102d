"""What more responses and more attempts buy: a run's kept checkpoint and the base it was trained from.

Run as a script on a run directory: it writes one line per policy and measurement, ``policy`` beside the curves.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

from selfcorrect.engines.base import Engine
from selfcorrect.experiment import Job, command_line, load_kept, make_engine, prepare
from selfcorrect.measuring.evaluate import held_out
from selfcorrect.measuring.test_time import ATTEMPTS, BUDGETS, ScalingCurves, measure_attempts, measure_votes
from selfcorrect.records.files import read_jsonl, write_jsonl
from selfcorrect.records.run_directory import RunDirectory
from selfcorrect.types import BASE

PROBLEMS = 500
"""Held-out problems at most: the largest budget samples 48 responses to each."""


def curves(run: RunDirectory, job: Job, engine: Engine, *, base: bool) -> Iterator[tuple[str, ScalingCurves]]:
    """Both curves of the kept checkpoint, and of the base where that is asked for.

    Args:
        run: finished.
        job: of the run's config.
        engine: fresh; left on the kept checkpoint.
        base: measure the base too; it is the same for all seeds.

    Yields:
        The policy's name (base, kept) and its curves, at the temperatures of `selfcorrect scale`.
    """
    config = job.config
    limit = min(PROBLEMS, config.eval.problems or PROBLEMS)
    asked = (engine, job.task, held_out(job.task, limit), config.play.max_new_tokens)
    step = load_kept(run, engine)
    for policy in (*((BASE,) if base else ()), "kept"):
        if policy == BASE:
            engine.restore(BASE)
        else:
            load_kept(run, engine)
        engine.publish()
        votes = measure_votes(*asked, budgets=BUDGETS, seed=config.seed)
        row = measure_attempts(*asked, attempts=ATTEMPTS, seed=config.seed)
        yield policy, ScalingCurves(str(run.path), None if policy == BASE else step, command_line(), votes, row)


def read_curves(file: Path) -> dict[str, ScalingCurves]:
    """What the script wrote, by policy.

    Raises:
        DataError: a line is not of its making.
    """
    way_out = "delete the file to measure it again"
    return {row.pop("policy"): ScalingCurves.from_json(row) for _, row in read_jsonl(file, way_out, way_out)}


def main(run_dir: str, which: str, out: str) -> None:
    """Measure one run, ``kept`` alone or ``base+kept``, and write the file."""
    run = RunDirectory.open(Path(run_dir))
    settings = run.config.eval.model_copy(update={"attempts": ATTEMPTS})
    job = prepare(run.config.model_copy(update={"eval": settings}), training=True)
    engine = make_engine(job)
    found = [{"policy": policy, **c.to_json()} for policy, c in curves(run, job, engine, base="base" in which)]
    write_jsonl(Path(out), found, "free room and measure again")


if __name__ == "__main__":
    main(*sys.argv[1:])
