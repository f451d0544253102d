"""Measurements of a run's kept checkpoint, and of the base it was trained from, after the run.

Run as a script, ``shift`` writes one line per episode, with ``split`` and ``first``: whether the checkpoint corrects
its own first attempts and those of the base. ``scaling`` writes one line per policy, with ``policy`` next to the curves
over responses and attempts.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from selfcorrect.engines.base import Engine
from selfcorrect.experiment import Job, command_line, load_kept, make_engine, prepare
from selfcorrect.measuring.evaluate import evaluate, held_out
from selfcorrect.measuring.test_time import ATTEMPTS, BUDGETS, ScalingCurves, measure_attempts, measure_votes
from selfcorrect.records.files import read_jsonl, write_jsonl
from selfcorrect.records.lines import episode_row
from selfcorrect.records.run_directory import RunDirectory
from selfcorrect.types import BASE

SPLITS = ("train", "test")
FIRSTS = ("own", "base")
PROBLEMS = 500
"""Most held-out problems for the curves: the largest budget samples 48 responses to each."""


def shifted_episodes(run: RunDirectory, job: Job, engine: Engine) -> Iterator[dict[str, Any]]:
    """Greedy episodes of the kept checkpoint on both splits, from its own first attempts and from the base's.

    The run must have finished, and the job must have its config. Afterwards the engine has the kept checkpoint.

    Yields:
        Rows of ``episode_row``, with ``split`` (train, test) and ``first`` (own, base).
    """
    task, cap = job.task, job.config.play.max_new_tokens
    settings = job.config.eval.model_copy(update={"attempts": 2})
    alone = settings.model_copy(update={"attempts": 1})
    train = task.problems("train")
    order = np.random.default_rng(0).permutation(len(train))  # as ``held_out`` shuffles test problems
    problems = {
        "train": [train[i] for i in order[: settings.problems]],
        "test": held_out(task, settings.problems),
    }
    load_kept(run, engine)
    engine.restore(BASE)
    engine.publish()
    given = {  # by split too: a user's data may have an id in both
        split: {
            e.problem.id: (e.attempts[0].token_ids or (),)
            for e in evaluate(engine, task, problems[split], alone, cap).episodes
        }
        for split in SPLITS
    }
    load_kept(run, engine)
    engine.publish()
    for split in SPLITS:
        for first in FIRSTS:
            firsts = given[split] if first == "base" else None
            for e in evaluate(engine, task, problems[split], settings, cap, given_first=firsts).episodes:
                yield {"split": split, "first": first, **episode_row(e)}


def scaling_curves(run: RunDirectory, job: Job, engine: Engine, *, base: bool) -> Iterator[tuple[str, ScalingCurves]]:
    """Both curves of the kept checkpoint, and with ``base`` also those of the base, which are the same for all seeds.

    Yields:
        The policy's name (base, kept) and its curves, at the temperatures of `selfcorrect scale`.
    """
    config = job.config
    limit = min(PROBLEMS, config.eval.problems or PROBLEMS)
    played = (engine, job.task, held_out(job.task, limit), config.play.max_new_tokens)
    step = load_kept(run, engine)
    for policy in (*((BASE,) if base else ()), "kept"):
        if policy == BASE:
            engine.restore(BASE)
        else:
            load_kept(run, engine)
        engine.publish()
        votes = measure_votes(*played, budgets=BUDGETS, seed=config.seed)
        row = measure_attempts(*played, attempts=ATTEMPTS, seed=config.seed)
        yield policy, ScalingCurves(str(run.path), None if policy == BASE else step, command_line(), votes, row)


def read_curves(file: Path) -> dict[str, ScalingCurves]:
    """What the script wrote, by policy.

    Raises:
        DataError: a line has another form.
    """
    way_out = "delete the file to measure it again"
    return {row.pop("policy"): ScalingCurves.from_json(row) for _, row in read_jsonl(file, way_out, way_out)}


def main(what: str, run_dir: str, out: str) -> None:
    """Measure one run and write the file: ``shift``, ``scaling``, or ``scaling+base`` for the curves of the base too."""
    run = RunDirectory.open(Path(run_dir))
    config = run.config
    if what != "shift":
        config = config.model_copy(update={"eval": config.eval.model_copy(update={"attempts": ATTEMPTS})})
    job = prepare(config, training=True)
    engine = make_engine(job)
    if what == "shift":
        rows = list(shifted_episodes(run, job, engine))
    else:
        found = scaling_curves(run, job, engine, base=what == "scaling+base")
        rows = [{"policy": policy, **curves.to_json()} for policy, curves in found]
    write_jsonl(Path(out), rows, "free some space and measure again")


if __name__ == "__main__":
    main(*sys.argv[1:])
