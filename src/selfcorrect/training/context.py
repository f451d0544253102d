"""What all stages of a run share: where it plays and writes, and which problems a step has."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from selfcorrect.config import Config
from selfcorrect.engines.base import Engine
from selfcorrect.episodes.play import GivenFirst
from selfcorrect.records.lines import CollectRecord
from selfcorrect.records.run_directory import RunDirectory
from selfcorrect.tasks.base import Task
from selfcorrect.types import Problem


@dataclass(frozen=True)
class Context:
    """A run with its engine and its task."""

    run: RunDirectory
    engine: Engine
    task: Task
    problems: Sequence[Problem]
    """The training split."""
    runner: asyncio.Runner
    tell: Callable[[CollectRecord], None]
    """Called with every part that is collected before a stage's steps."""
    stop_requested: Callable[[], bool]
    firsts: GivenFirst = field(default_factory=dict)
    """Stored first attempts of the base, see ``collect.offline_firsts``."""

    @property
    def config(self) -> Config:
        return self.run.config

    def batch(self, step: int) -> list[Problem]:
        """The problems of a 0-based step."""
        return problems_of_step(self.problems, self.config.seed, step, self.config.train.problems_per_step)


def problems_of_step(problems: Sequence[Problem], seed: int, step: int, count: int) -> list[Problem]:
    """Problems of a 0-based step: consecutive slices of a fresh seeded permutation per epoch.

    A pure function of (seed, step), so that a resumed run needs no data-loader state. A step has no problem twice. So
    it may have fewer than ``count`` problems, if it crosses the end of an epoch or ``count`` exceeds the data set.
    """
    out: list[Problem] = []
    position = step * count
    while len(out) < count:
        epoch, offset = divmod(position, len(problems))
        order = np.random.default_rng([seed, epoch]).permutation(len(problems))
        taken = order[offset : offset + count - len(out)]
        out += [problems[i] for i in taken]
        position += len(taken)
    return list({p.id: p for p in out}.values())


def offline_of_step(batch: Sequence[Problem], seed: int, step: int, share: float) -> list[Problem]:
    """The problems of a step that start from stored first attempts: in expectation exactly this share.

    A pure function of (seed, step). A fractional count is rounded up with the probability of its fraction.
    """
    rng = np.random.default_rng([seed, step, 1])
    count = int(share * len(batch) + rng.random())
    return [batch[i] for i in sorted(rng.permutation(len(batch))[:count])]
