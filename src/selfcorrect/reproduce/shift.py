"""Distribution shift: a kept checkpoint corrects its own first attempts, and those of the base it was trained from.

Run as a script on a run directory: it writes every episode, a line each, with ``split`` and ``first`` beside it.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from selfcorrect.engines.base import Engine
from selfcorrect.experiment import Job, load_kept, make_engine, prepare
from selfcorrect.measuring.evaluate import evaluate, held_out
from selfcorrect.records.files import write_jsonl
from selfcorrect.records.lines import episode_row
from selfcorrect.records.run_directory import RunDirectory
from selfcorrect.tasks.base import Task
from selfcorrect.types import BASE, Problem

SPLITS = ("train", "test")
FIRSTS = ("own", "base")


def shifted_episodes(run: RunDirectory, job: Job, engine: Engine) -> Iterator[dict[str, Any]]:
    """Greedy episodes of the kept checkpoint on both splits, from its own first attempts and from the base's.

    Args:
        run: finished.
        job: of the run's config.
        engine: fresh; left on the kept checkpoint.

    Yields:
        Rows as ``episode_row`` makes them, with ``split`` (train, test) and ``first`` (own, base).
    """
    task, cap = job.task, job.config.play.max_new_tokens
    settings = job.config.eval.model_copy(update={"attempts": 2})
    alone = settings.model_copy(update={"attempts": 1})
    problems = {split: _problems(task, split, settings.problems) for split in SPLITS}
    load_kept(run, engine)
    engine.restore(BASE)
    engine.publish()
    given = {}
    for split in SPLITS:
        for e in evaluate(engine, task, problems[split], alone, cap).episodes:
            given[e.problem.id] = (e.attempts[0].token_ids or (),)
    load_kept(run, engine)
    engine.publish()
    for split in SPLITS:
        for first in FIRSTS:
            firsts = {p.id: given[p.id] for p in problems[split]} if first == "base" else None
            for e in evaluate(engine, task, problems[split], settings, cap, given_first=firsts).episodes:
                yield {"split": split, "first": first, **episode_row(e)}


def _problems(task: Task, split: str, limit: int | None) -> list[Problem]:
    """Held-out problems as every evaluation has them, and as many of the training split, in one fixed order too."""
    if split == "test":
        return held_out(task, limit)
    problems = task.problems("train")
    return [problems[i] for i in np.random.default_rng(0).permutation(len(problems))[:limit]]


def main(run_dir: str, out: str) -> None:
    """Measure one run and write the file."""
    run = RunDirectory.open(Path(run_dir))
    job = prepare(run.config, training=True)
    engine = make_engine(job)
    write_jsonl(Path(out), list(shifted_episodes(run, job, engine)), "free room and measure again")


if __name__ == "__main__":
    main(*sys.argv[1:])
